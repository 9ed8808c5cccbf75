"""Trains the shipped tokenizer; needs the package emoji for general words.

python -m gaze_jax.demo.train_tokenizer gaze_jax/data/tokenizer.json
"""

import sys
from collections.abc import Iterator

import emoji as emoji_names
import tokenizers
from tokenizers import decoders
from tokenizers import models
from tokenizers import pre_tokenizers
from tokenizers import trainers

from gaze_jax.data import tokenizer as tokenizer_lib
from gaze_jax.demo import emoji
from gaze_jax.demo import questions
from gaze_jax.demo import scenes

VOCABULARY = 2048


def train(texts: Iterator[str], size: int = VOCABULARY) -> tokenizers.Tokenizer:
  """Trains a byte-level BPE of `size` ids; all 256 bytes are among them."""
  tokenizer = tokenizers.Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=size,
    special_tokens=list(tokenizer_lib.SPECIAL),
    initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    show_progress=False,
  )
  tokenizer.train_from_iterator(texts, trainer)
  return tokenizer


def training_text() -> Iterator[str]:
  """Our own questions and answers, then the names of all emoji in English."""
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
    sys.exit("usage: python -m gaze_jax.demo.train_tokenizer OUT.json")
  train(training_text()).save(sys.argv[1], pretty=False)
  print(f"wrote {sys.argv[1]}")
