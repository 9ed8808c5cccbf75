"""Tokenizers and their chat formats.

The shipped one, tokenizer.json beside this file, is made by
gaze_jax/demo/train_tokenizer.py.
"""

import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Sequence
from typing import Any

import tokenizers

from gaze_jax import json_file
from gaze_jax import plugins
from gaze_jax.data import chat as chat_lib
from gaze_jax.data import chat_files
from gaze_jax.data import detokenizer as detokenizer_lib
from gaze_jax.data import messages
from gaze_jax.data import samples
from gaze_jax.data import stop_tokens

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"
USER, ASSISTANT, IMAGE = "<user>", "<assistant>", "<image>"
SPECIAL = (PAD, BOS, EOS, USER, ASSISTANT, IMAGE)
TURN, END = "<|im_start|>", "<|im_end|>"  # ChatML
SHIPPED = pathlib.Path(__file__).with_name("tokenizer.json")

# For a vocabulary that no template came with.
_OURS = SHIPPED.with_name("chat_template.jinja")
_CHATML = SHIPPED.with_name("chatml.jinja")


class Tokenizer:
  """Text to ids and back, exactly, for any text whose bytes it has.

  Ours has all 256 bytes. SmolLM2's lacks those of six control characters and
  of planes where Unicode has none; they are dropped, as by its own library.

  Control tokens written out in a text are ordinary text: no user can forge
  one. Conversations are written by the chat template.

  Args:
    tokenizer: the tokenizer; it is changed.
    name: what errors call it.
    files: what stands beside it. Without a template ours is taken, or ChatML's,
      where the vocabulary has the control tokens of one.
    ends: ids that end an answer beside the template's own.

  Attributes:
    chat: the chat format.
    eos: id that ends an answer where one is written.
    ends: every id that ends an answer where a model says it; `eos` is first.
    size: one more than the largest id.

  Raises:
    samples.DataError: there is no chat template, or it can't be used.
  """

  def __init__(
    self,
    tokenizer: tokenizers.Tokenizer,
    name: str = "tokenizer",
    files: chat_files.ChatFiles = chat_files.ChatFiles(),  # noqa: B008
    ends: Sequence[int] = (),
  ):
    self._tokenizer, self._name, self._files = tokenizer, name, files
    chat_files.add_tokens(tokenizer, files)
    self.size = 1 + max(tokenizer.get_vocab().values())
    # Which gives it marks of images too, if need be.
    self.chat = chat_lib.Chat(tokenizer, _with_template(tokenizer, name, files))
    self.eos = self.chat.end
    self.ends = tuple(dict.fromkeys((self.eos, *ends)))
    # Questions repeat: a training run asks a few hundred different ones.
    self._cached = functools.lru_cache(maxsize=8192)(self._encode)

  @classmethod
  def load(cls, source: str = "") -> "Tokenizer":
    """Reads a tokenizer.

    Args:
      source: path of a tokenizer.json (a chat template and more ids that end
        an answer are looked for beside it); the name of pretrained weights that
        bring one (`plugins.weights`); "" for the shipped one.

    Raises:
      samples.DataError: it is missing, broken, or has no chat template.
      errors.GazeError: the package of that name can't be read.
    """
    if plugins.has_weights(source):
      named = plugins.weights(source, "data.tokenizer").tokenizer
      if named is None:
        raise samples.DataError(f"{source}: these weights have no tokenizer")
      text, template = named()
      files = chat_files.ChatFiles(template=template, template_file=source)
      return cls(tokenizers.Tokenizer.from_str(text), source, files)
    file = pathlib.Path(source) if source else SHIPPED
    ends = stop_tokens.beside(file)
    return cls(read(file), str(file), chat_files.beside(file), ends)

  def __reduce__(self):
    text = self._tokenizer.to_str()
    return _restore, (text, self.size, self._name, self._files, self.ends)

  def check_rows(self, rows: int) -> None:
    """Refuses a model that has no row of its embedding for some token.

    Rows past the last id are padding, and do no harm.

    Args:
      rows: of the embedding.

    Raises:
      samples.DataError: naming the first such tokens, their ids and the rows.
    """
    vocabulary = self._tokenizer.get_vocab().items()
    past = {i: t for t, i in vocabulary if rows <= i < self.size}
    if not past:
      return
    first = [f"{past[i]!r} = {i}" for i in sorted(past)[:3]]
    more = f" and {len(past) - 3} more" if len(past) > 3 else ""
    raise samples.DataError(
      f"{self._name}: the ids of {', '.join(first)}{more} are beyond the"
      f" embedding, which has rows 0 to {rows - 1} (model.decoder.vocab_size ="
      f" {rows}): take the tokenizer that came with these weights, or add rows"
      " where they come from (transformers' resize_token_embeddings)"
    )

  def fingerprint(self) -> str:
    """What tells it from others: template, ids, and what it makes of texts.

    The texts are those of all its ids, so that it does not matter how a file,
    or a version of the library, writes the same tokenizer down.
    """
    ids = range(self.size)
    texts = self._tokenizer.decode_batch(
      [[i] for i in ids], skip_special_tokens=False
    )
    encoded = self._tokenizer.encode_batch(texts, add_special_tokens=False)
    out = hashlib.sha256(self.chat.identity.encode())
    for i, one in zip(ids, encoded, strict=True):
      out.update(repr((self._tokenizer.id_to_token(i), one.ids)).encode())
    return out.hexdigest()[:32]

  def start(self, system: str | None = None) -> tuple[int, ...]:
    """What begins a row, up to the text of its first question.

    Args:
      system: a system text; None for the template's own.

    Raises:
      samples.DataError: the template takes no system text.
    """
    return self.chat.opening((), system)

  def encode(self, text: str) -> list[int]:
    """Ids of a text, without control tokens; [] for the empty text."""
    return list(self._cached(text))

  def _encode(self, text: str) -> tuple[int, ...]:
    if not text:
      return ()
    return tuple(self.chat.control_tokens.plain(self.chat.lead + text))

  def decode(self, ids: Sequence[int]) -> str:
    """The text of ids up to the end of an answer, without special tokens."""
    return "".join(text or "" for text in self.pieces(ids))

  def detokenizer(self) -> detokenizer_lib.Detokenizer:
    """Gives the text of ids that come one by one; joined it is `decode`."""
    return detokenizer_lib.Detokenizer(self._tokenizer, self.chat.lead)

  def pieces(self, ids: Sequence[int]) -> list[str | None]:
    """What each id adds to the text; joined they are `decode` of all.

    Returns:
      "" where a character is not whole yet, which comes with its last id; None
      for an id that shows nothing.
    """
    detokenizer = self.detokenizer()
    out: list[str | None] = []
    for i in ids:
      if i in self.ends:
        break
      out.append(detokenizer.add(i))
    if rest := detokenizer.rest:
      last = max(n for n, text in enumerate(out) if text is not None)
      out[last] += rest
    return out + [None] * (len(ids) - len(out))

  def answer(self, ids: Sequence[int], text: str) -> messages.Message:
    """An answer as a message, for the next turn of its conversation.

    Args:
      ids: its tokens.
      text: as much of their text as belongs to the answer.
    """
    parts, left = [], len(text)
    for i, piece in zip(ids, self.pieces(ids), strict=True):
      piece, own = (piece or "")[:left], i in self.chat.control_ids
      left -= len(piece)
      if own and piece:
        parts.append(messages.Part(messages.OWN, piece))
      elif parts and parts[-1].kind == messages.TEXT:
        parts[-1] = messages.Part(messages.TEXT, parts[-1].text + piece)
      elif piece:
        parts.append(messages.Part(messages.TEXT, piece))
    parts = parts or [messages.Part(messages.TEXT)]
    return messages.Message(messages.ASSISTANT, tuple(parts))


def read(file: pathlib.Path) -> tokenizers.Tokenizer:
  """A tokenizer.json without what it may store of one use of it.

  Truncation and padding are how somebody called it last; texts here are as
  long as they are.

  Raises:
    samples.DataError: it is missing or broken.
  """
  if not file.is_file():
    raise samples.DataError(_absent(file))
  text = json_file.read_text(file, samples.DataError)
  try:
    tokenizer = tokenizers.Tokenizer.from_str(text)
  except Exception as error:  # the package raises a bare Exception
    raise samples.DataError(
      f"{file} is not a tokenizer.json: {error}"
    ) from None
  tokenizer.no_truncation()
  tokenizer.no_padding()
  return tokenizer


def _absent(file: pathlib.Path) -> str:
  """That there is no such file, and how to come by it."""
  folder = file.parent
  others = ("tokenizer.model", "vocab.json", "merges.txt", "vocab.txt")
  found = [name for name in others if (folder / name).is_file()]
  beside = f" (but {', '.join(found)}, of which transformers makes one)"
  return (
    f"{file}: no such tokenizer{beside if found else ''}; copy the"
    " tokenizer.json that belongs to these weights there, or make it: python -c"
    f" \"import transformers as t; t.AutoTokenizer.from_pretrained('{folder}')"
    f".save_pretrained('{folder}')\""
  )


def _restore(text: str, size: int, *parts: Any) -> Tokenizer:
  out = Tokenizer(tokenizers.Tokenizer.from_str(text), *parts)
  out.size = size
  return out


def _with_template(
  tokenizer: tokenizers.Tokenizer, name: str, files: chat_files.ChatFiles
) -> chat_files.ChatFiles:
  """Files with a template, that of the control tokens where there is none."""
  if files.template is not None:
    return files
  for file, tokens in ((_OURS, SPECIAL), (_CHATML, (TURN, END))):
    if all(tokenizer.token_to_id(token) is not None for token in tokens):
      template = file.read_text(encoding="utf-8")
      return dataclasses.replace(
        files, template=template, template_file=str(file)
      )
  raise samples.DataError(
    f"{name}: no chat template stands beside it, and its vocabulary has neither"
    f" {TURN} and {END} of ChatML nor the control tokens of ours: put the"
    " model's chat_template.jinja or tokenizer_config.json there"
  )
