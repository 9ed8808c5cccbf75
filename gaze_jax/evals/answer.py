"""One image, one question: the answer, what it cost, and where it looked."""

import dataclasses
import pathlib
from collections.abc import Iterator

import jax
import numpy as np
from PIL import Image

from gaze_jax import config as config_lib
from gaze_jax import errors
from gaze_jax import layout
from gaze_jax import types
from gaze_jax.data import images
from gaze_jax.data import packing
from gaze_jax.data import tokenizer as tokenizer_lib
from gaze_jax.decode import generate
from gaze_jax.decode import overlay
from gaze_jax.decode import trace
from gaze_jax.models import mllm
from gaze_jax.train import checkpoint
from gaze_jax.train import frozen

MAX_TOKENS = 64


@dataclasses.dataclass(frozen=True)
class Model:
  """A trained model, ready for questions."""

  config: config_lib.Config
  params: mllm.Params
  tokenizer: tokenizer_lib.Tokenizer


def load(workdir: pathlib.Path) -> Model:
  """The newest checkpoint of a workdir.

  Raises:
    checkpoint.CheckpointError: there is none.
  """
  saved = checkpoint.Checkpoints(workdir, keep=1, create=False)
  config, params = saved.config(), saved.params()
  saved.close()
  params = params | frozen.load(config)
  tokenizer = tokenizer_lib.Tokenizer.load(config.data.tokenizer)
  return Model(config, jax.device_put(params), tokenizer)


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
    self._pixels = self.batch.images[0, 0]
    self._max_tokens = max_tokens
    self.steps: list[generate.Step] = []

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
    """The image once a word, with the regions that were read."""
    vision = self.model.config.model.vision
    seen = self._pixels * np.array(vision.std) + np.array(vision.mean)
    words = trace.words(self.steps, self._decode, layers=layers, heads=heads)
    return overlay.draw(
      (255 * seen).round().clip(0, 255).astype(np.uint8),
      layout.region_map(
        vision.grid, vision.grid, self.model.config.model.gaze.region
      ),
      words,
      title=f"{self.question}  {self.text}",
    )

  def _decode(self, ids: list[int]) -> str:
    return self.model.tokenizer.decode(ids)


def _prompt(
  model: Model, image: np.ndarray | None, question: str
) -> types.Batch:
  config = model.config
  vision = config.model.vision
  units = [] if image is None else [layout.Unit(vision.grid, vision.grid)]
  parts = packing.prompt(model.tokenizer, question, units)
  row = layout.lay_out(parts, layout.row_shape(config))
  size = vision.image_size
  pixels = np.zeros((1, config.data.max_units, size, size, 3), np.float32)
  if image is not None:
    pixels[0, 0] = images.preprocess(image, vision)
  return layout.make_batch([row], pixels)
