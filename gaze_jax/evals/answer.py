"""One image, one question: the answer, what it cost, and where it looked."""

import dataclasses
import pathlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

from gaze_jax import config as config_lib
from gaze_jax import errors
from gaze_jax import layout
from gaze_jax import types
from gaze_jax.data import packing
from gaze_jax.data import requests
from gaze_jax.data import tokenizer as tokenizer_lib
from gaze_jax.data import units
from gaze_jax.decode import generate
from gaze_jax.decode import overlay
from gaze_jax.decode import trace
from gaze_jax.evals import weights
from gaze_jax.models import mllm

MAX_TOKENS = 64


@dataclasses.dataclass(frozen=True)
class Model:
  """A trained model, ready for questions."""

  config: config_lib.Config
  params: mllm.Params
  tokenizer: tokenizer_lib.Tokenizer


def load(directory: pathlib.Path) -> Model:
  """A model that sees, out of any directory that `weights.load` reads.

  Raises:
    errors.GazeError: there is none.
  """
  config, params = weights.load(directory)
  if missing := {"vision", "projector", "decoder"} - params.keys():
    raise errors.GazeError(
      f"{directory}: no {', '.join(sorted(missing))} here, and a question about"
      " an image needs all three; join a decoder and a tower with"
      " launch/convert.py --vision"
    )
  tokenizer = tokenizer_lib.Tokenizer.load(config.data.tokenizer)
  return Model(config, params, tokenizer)


class Answer:
  """An answer being generated; iterate over it for its growing text.

  Args:
    model: from `load`.
    image: uint8 [height, width, 3]; None for a question about no image.
    question: the text.
    top_k: K, in the unit of `model.gaze.budget`; None for the trained one.
    max_tokens: at most so many tokens are generated.

  Raises:
    errors.GazeError: the question is empty or too long for a row.
  """

  def __init__(
    self,
    model: Model,
    image: np.ndarray | None,
    question: str,
    *,
    top_k: int | None = None,
    max_tokens: int = MAX_TOKENS,
  ):
    self.model, self.question = model, question
    trained = layout.budgets(model.config)[1]
    self.top_k = trained if top_k is None else top_k
    if self.top_k < 0 or max_tokens < 1:
      raise errors.GazeError(
        "top_k must be at least 0, and max_tokens at least 1"
      )
    if not question.strip():
      raise errors.GazeError("the question is empty")
    self.batch = _prompt(model, image, question)
    self._max_tokens = max_tokens
    self.steps: list[trace.Step] = []

  def __iter__(self) -> Iterator[str]:
    """Generates; yields the text so far after each token, whole characters."""
    steps = generate.stream(
      self.model.params,
      self.model.config.model,
      self.batch,
      top_k=self.top_k,
      max_tokens=self._max_tokens,
      stop=self.model.tokenizer.eos,
    )
    for step in steps:
      self.steps.append(step)
      yield trace.whole(self.text)

  @property
  def text(self) -> str:
    """What was said so far."""
    return self._decode([s.token for s in self.steps])

  def accounting(self) -> generate.Accounting:
    """The four figures of METHOD.md section 8."""
    return generate.account(
      self.model.params,
      self.model.config.model,
      self.batch,
      self.steps,
      top_k=self.top_k,
    )

  def picture(
    self, *, layers: list[int] | None = None, heads: list[int] | None = None
  ) -> Image.Image:
    """The image once a word, with the regions that were read.

    Of a tiled image it is the unit that shows the whole.
    """
    words = trace.words(self.steps, self._decode, layers=layers, heads=heads)
    tile, grid = _first_tile(self.batch, self.model.config.model.vision)
    regions = layout.region_map(*grid, self.model.config.model.gaze.region)
    return overlay.draw(
      [trace.View(tile, regions)],
      words,
      title=f"{self.question}  {self.text}",
    )

  def _decode(self, ids: list[int]) -> str:
    return self.model.tokenizer.decode(ids)


def _prompt(
  model: Model, image: np.ndarray | None, question: str
) -> types.Batch:
  config = model.config
  seen = units.of_images([] if image is None else [image], config.model)
  grids = [unit for one in seen for unit in one.units]
  request = requests.Request(
    tuple(packing.prompt(model.tokenizer, question, grids)),
    units.join([one.pixels for one in seen], config.model),
  )
  # One shape serves all requests, but for tiles: there may be dozens, or one.
  tiled = config.model.tiling.kind != "none"
  shape = None if tiled else layout.row_shape(config)
  return requests.batch([request], config.model, shape)


def _first_tile(
  batch: types.Batch, vision: config_lib.VisionConfig
) -> tuple[np.ndarray, tuple[int, int]]:
  """The picture of a request, uint8 [h, w, 3], and its tokens' grid."""
  images, side = batch.images, vision.patch_size
  grid = (1, 1)  # of a question about no image
  seen = np.zeros((side, side, 3), np.float32)
  if isinstance(images, types.Patches) and images.grid[0, 0].all():
    grid = rows, columns = tuple(map(int, images.grid[0, 0]))
    patches = images.pixels[0, 0, : rows * columns]
    patches = patches.reshape(rows, columns, side, side, 3).swapaxes(1, 2)
    seen = patches.reshape(rows * side, columns * side, 3)
  elif isinstance(images, np.ndarray):
    grid, seen = (vision.grid, vision.grid), images[0, 0]
  seen = seen * np.array(vision.std) + np.array(vision.mean)
  return (255 * seen).round().clip(0, 255).astype(np.uint8), grid
