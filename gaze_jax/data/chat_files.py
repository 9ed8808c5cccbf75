"""Reads the files beside a tokenizer.json that define chats, as transformers.

  processor_config.json    chat_template; image_token, video_token
  chat_template.json       chat_template, of older processors
  chat_template.jinja      the template; chat_templates/NAME.jinja more of them
  tokenizer_config.json    chat_template: one, or several by name; bos_token ...
  special_tokens_map.json  bos_token and so on, of older tokenizers
  added_tokens.json        tokens that tokenizer.json may lack, likewise
  config.json              whether it is a model of images, and their marks

A model of images is asked through its processor, whose template comes first and
which begins a prompt as the tokenizer does; a model of text through the
tokenizer alone.
"""

import dataclasses
import pathlib
from typing import Any

import tokenizers

from gaze_jax import json_file
from gaze_jax.data import samples

_NAMES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
# Classes that read tokenizer.json as it is; others know tokens by themselves.
_PLAIN = ("PreTrainedTokenizer", "TokenizersBackend")


@dataclasses.dataclass(frozen=True)
class ChatFiles:
  """What stands beside a tokenizer.json; all of it may be absent.

  Attributes:
    folder: where.
    template: the chat template; None for none.
    template_file: where it stands.
    tokens: `bos_token` and so on, for the template.
    token_ids: ids of those that no file says and the model's config.json does.
    added: tokens that must be in the vocabulary: content, id (None: any) and
      whether it is special.
    marks: what stands for an image and for a video in a prompt, where the
      files say so; by "image" and "video".
    mark_ids: likewise, their ids.
    whole: whether it is a processor's prompt, which begins as the tokenizer's
      post-processor says unless it begins so already.
  """

  folder: str = ""
  template: str | None = None
  template_file: str = ""
  tokens: dict[str, str] = dataclasses.field(default_factory=dict)
  token_ids: dict[str, int] = dataclasses.field(default_factory=dict)
  added: tuple[tuple[str, int | None, bool], ...] = ()
  marks: dict[str, str] = dataclasses.field(default_factory=dict)
  mark_ids: dict[str, int] = dataclasses.field(default_factory=dict)
  whole: bool = False


def beside(file: pathlib.Path) -> ChatFiles:
  """Reads what stands in the folder of a tokenizer.json.

  Raises:
    samples.DataError: a file is broken, or there are several templates and no
      default.
  """
  folder = file.parent
  config = _read(folder / "config.json")
  processor = _read(folder / "processor_config.json")
  settings = _read(folder / "tokenizer_config.json")
  whole = _is_whole(config, settings)
  template, where = _template(folder, processor, settings, whole)
  merged = _with_older_file(folder, settings)
  tokens = _tokens(merged)
  marks, ids = {}, {}
  for kind in ("image", "video"):
    name = f"{kind}_token"
    if mark := tokens.get(name) or _content(processor.get(name)):
      marks[kind] = mark
    for key in (f"{kind}_token_id", f"{kind}_token_index"):
      if isinstance(config.get(key), int):
        ids[kind] = config[key]
  return ChatFiles(
    folder=str(folder),
    template=template,
    template_file=str(where or ""),
    tokens=tokens,
    token_ids=_token_ids(merged, config),
    added=_added(folder, settings, tokens),
    marks=marks,
    mark_ids=ids,
    whole=whole,
  )


def add_tokens(tokenizer: tokenizers.Tokenizer, files: ChatFiles) -> None:
  """Adds the tokens that the files name and tokenizer.json lacks.

  Raises:
    samples.DataError: one has another id than its file says.
  """
  there = {t.content for t in tokenizer.get_added_tokens_decoder().values()}
  for content, number, special in files.added:
    if content not in there:
      token = tokenizers.AddedToken(
        content, special=special, normalized=not special
      )
      tokenizer.add_tokens([token])
    if number is not None and (got := tokenizer.token_to_id(content)) != number:
      raise samples.DataError(
        f"{files.folder}: {content!r} is id {got} in tokenizer.json, and"
        f" {number} by the files beside it: these are of two tokenizers"
      )


def _read(file: pathlib.Path) -> dict[str, Any]:
  """A JSON object; {} where there is no such file."""
  return json_file.read(file, samples.DataError) if file.is_file() else {}


def _is_whole(config: dict[str, Any], settings: dict[str, Any]) -> bool:
  if config:
    return "vision_config" in config or "mm_vision_tower" in config
  return "processor_class" in settings


def _template(
  folder: pathlib.Path,
  processor: dict[str, Any],
  settings: dict[str, Any],
  whole: bool,
) -> tuple[str | None, pathlib.Path | None]:
  """The first template, and its file."""
  places = []
  if whole:
    legacy = folder / "chat_template.json"
    places = [
      (folder / "processor_config.json", processor.get("chat_template")),
      (legacy, _read(legacy).get("chat_template")),
    ]
  single = folder / "chat_template.jinja"
  more = sorted((folder / "chat_templates").glob("*.jinja"))
  named = {
    path.stem: json_file.read_text(path, samples.DataError) for path in more
  }
  if single.is_file():
    named["default"] = json_file.read_text(single, samples.DataError)
  places += [
    (single, named or None),
    (folder / "tokenizer_config.json", settings.get("chat_template")),
  ]
  for place, template in places:
    if template is not None:
      return _default(template, place), place
  return None, None


def _default(template: Any, place: pathlib.Path) -> str:
  """The template that is meant where several have names."""
  if isinstance(template, list):
    pairs = [t if isinstance(t, dict) else {} for t in template]
    template = {t.get("name"): t.get("template") for t in pairs}
  if isinstance(template, dict):
    if "default" not in template:
      names = ", ".join(sorted(map(str, template)))
      raise samples.DataError(
        f"{place}: several chat templates ({names}), and none of them is the"
        ' default; name the one to use "default"'
      )
    template = template["default"]
  if not isinstance(template, str):
    raise samples.DataError(
      f"{place}: a chat template is a text, got {type(template).__name__}"
    )
  return template


def _content(token: Any) -> str | None:
  """The text of a token, which may be written out with its options."""
  if isinstance(token, dict):
    token = token.get("content")
  return token if isinstance(token, str) else None


def _with_older_file(
  folder: pathlib.Path, settings: dict[str, Any]
) -> dict[str, Any]:
  """tokenizer_config.json, with special_tokens_map.json where that counts."""
  if "added_tokens_decoder" in settings:
    return settings
  return settings | _read(folder / "special_tokens_map.json")


def _tokens(settings: dict[str, Any]) -> dict[str, str]:
  """Tokens by the names that templates know them by."""
  extra = settings.get("extra_special_tokens")
  out = {k: _content(v) for k, v in settings.items() if k.endswith("_token")}
  if isinstance(extra, dict):
    out |= {k: _content(v) for k, v in extra.items()}
  return {k: v for k, v in out.items() if v is not None}


def _token_ids(
  settings: dict[str, Any], config: dict[str, Any]
) -> dict[str, int]:
  """Tokens that a class of transformers knows by itself, from the config."""
  if str(settings.get("tokenizer_class")).removesuffix("Fast") in _PLAIN:
    return {}
  text = config.get("text_config")
  ids = (text if isinstance(text, dict) else {}) | config
  return {
    f"{name}_token": ids[f"{name}_token_id"]
    for name in ("bos", "eos")
    if f"{name}_token" not in settings
    and isinstance(ids.get(f"{name}_token_id"), int)
  }


def _added(
  folder: pathlib.Path, settings: dict[str, Any], tokens: dict[str, str]
) -> tuple[tuple[str, int | None, bool], ...]:
  """Tokens that the vocabulary is to have, those with ids first."""
  out: dict[str, tuple[int | None, bool]] = {}
  decoder = settings.get("added_tokens_decoder")
  if isinstance(decoder, dict):
    for number, token in decoder.items():
      special = bool(isinstance(token, dict) and token.get("special"))
      if content := _content(token):
        out[content] = int(number), special
  else:
    named = set(tokens.values())
    for content, number in _read(folder / "added_tokens.json").items():
      out[content] = int(number), content in named
  names = [f"{name}_token" for name in _NAMES]
  named = [tokens[name] for name in names if name in tokens]
  more = settings.get("extra_special_tokens") or settings.get(
    "additional_special_tokens"
  )
  if isinstance(more, list):
    named += filter(None, map(_content, more))
  named += [t for k, t in tokens.items() if k not in names]
  for content in named:
    out.setdefault(content, (None, True))
  with_ids = sorted((n, c, s) for c, (n, s) in out.items() if n is not None)
  rest = [(c, None, s) for c, (n, s) in out.items() if n is None]
  return (*((c, n, s) for n, c, s in with_ids), *rest)
