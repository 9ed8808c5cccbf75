"""The byte-level BPE tokenizer, and the command that trains it.

Retrain what is shipped (needs the package emoji for general words):

  python -m gaze_jax.data.tokenizer gaze_jax/data/tokenizer.json
"""

import functools
import pathlib
import sys
from collections.abc import Iterator, Sequence

import tokenizers
from tokenizers import decoders
from tokenizers import models
from tokenizers import pre_tokenizers
from tokenizers import trainers

from gaze_jax.data import emoji
from gaze_jax.data import questions
from gaze_jax.data import samples
from gaze_jax.data import scenes

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"
USER, ASSISTANT, IMAGE = "<user>", "<assistant>", "<image>"
SPECIAL = (PAD, BOS, EOS, USER, ASSISTANT, IMAGE)
VOCABULARY = 2048
SHIPPED = pathlib.Path(__file__).with_name("tokenizer.json")


class Tokenizer:
  """Text to ids and back, exactly, for any text.

  A space is put before every text and taken away again, so that a word has
  the same id at the start of an answer as within a question. Special tokens
  written out in a text are ordinary text: no user can forge one.

  Attributes:
    pad, bos, eos, user, assistant, image: ids of the special tokens.
    size: number of ids.
  """

  def __init__(self, tokenizer: tokenizers.Tokenizer, name: str = "tokenizer"):
    self._tokenizer = tokenizer
    self._tokenizer.encode_special_tokens = True
    ids = {token: tokenizer.token_to_id(token) for token in SPECIAL}
    missing = [token for token, i in ids.items() if i is None]
    if missing:
      raise samples.DataError(
        f"{name} lacks the special tokens {', '.join(missing)}; train one with"
        " python -m gaze_jax.data.tokenizer"
      )
    self.pad, self.bos, self.eos = ids[PAD], ids[BOS], ids[EOS]
    self.user, self.assistant, self.image = (
      ids[USER],
      ids[ASSISTANT],
      ids[IMAGE],
    )
    self.size = tokenizer.get_vocab_size()
    # Questions repeat: a training run asks a few hundred different ones.
    self._cached = functools.lru_cache(maxsize=8192)(self._encode)

  @classmethod
  def load(cls, path: str = "") -> "Tokenizer":
    """Reads a tokenizer.json; "" is the shipped one.

    Raises:
      samples.DataError: it is missing, broken, or lacks a special token.
    """
    file = pathlib.Path(path) if path else SHIPPED
    try:
      text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
      raise samples.DataError(
        f"can't read the tokenizer {file}: {error}"
      ) from None
    try:
      tokenizer = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the package raises a bare Exception
      raise samples.DataError(
        f"{file} is not a tokenizer.json: {error}"
      ) from None
    return cls(tokenizer, str(file))

  def __reduce__(self):
    return _restore, (self._tokenizer.to_str(),)

  def encode(self, text: str) -> list[int]:
    """Ids of a text, without special tokens; [] for the empty text."""
    return list(self._cached(text))

  def _encode(self, text: str) -> tuple[int, ...]:
    if not text:
      return ()
    return tuple(self._tokenizer.encode(" " + text).ids)

  def decode(self, ids: Sequence[int]) -> str:
    """The text of ids up to the first <eos>; special tokens are left out."""
    ids = [int(i) for i in ids]
    if self.eos in ids:
      ids = ids[: ids.index(self.eos)]
    return self._tokenizer.decode(ids, skip_special_tokens=True).removeprefix(
      " "
    )


def _restore(text: str) -> Tokenizer:
  return Tokenizer(tokenizers.Tokenizer.from_str(text))


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
