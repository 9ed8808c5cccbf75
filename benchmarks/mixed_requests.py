"""Requests of a mix, and the shape of the model that benchmarks ask them."""

import dataclasses
import pathlib
import sys

import numpy as np
from absl import flags
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks import small_model
from gaze_jax import api
from gaze_jax import cli

SHAPE = small_model.Shape(
  width=1024,
  depth=6,
  mlp=3072,
  head_dim=128,
  family="qwen3",
  vocabulary=151_936,
  side=168,
)
_LEAST, _MOST = 4, 64  # new tokens

# Of every benchmark that asks them.
REQUESTS = flags.DEFINE_integer("requests", 64, "how many", 4)
ROWS = flags.DEFINE_integer("batch_size", 16, "decoded together", 1)
JSON = cli.define_file("json", "a file for the rows")
ROUNDS = flags.DEFINE_integer("rounds", 1, "of each method", 1)


@dataclasses.dataclass(frozen=True)
class Asked:
  """A request on both sides."""

  question: str
  images: tuple[Image.Image, ...]
  new_tokens: int


def make(count: int) -> list[Asked]:
  """The same each time, in order of arrival."""
  rng = np.random.default_rng(0)
  kinds = [0, 1, 1, 2]  # of each four
  pictures = small_model.pictures(16)
  words = "where is the red fox and what does it hold now ".split()
  out = []
  for i in range(count):
    images = kinds[i % 4] if kinds[i % 4] < 2 else int(rng.integers(2, 5))
    first = int(rng.integers(len(pictures)))
    out.append(
      Asked(
        " ".join(rng.choice(words, int(rng.integers(3, 24)))) + "?",
        tuple(pictures[(first + j) % len(pictures)] for j in range(images)),
        int(rng.integers(_LEAST, _MOST + 1)),
      )
    )
  return [out[i] for i in rng.permutation(count)]


def request(one: Asked) -> api.Request:
  """As our side asks it."""
  return api.Request(one.question, images=one.images, max_tokens=one.new_tokens)
