"""A data file that the caller names, and a run's config for it."""

import dataclasses
from collections.abc import Sequence

from gaze_jax import config as config_lib
from gaze_jax import data_config
from gaze_jax import errors
from gaze_jax import plugins
from gaze_jax.data import llava
from gaze_jax.data import media
from gaze_jax.data import packing
from gaze_jax.data import prompts
from gaze_jax.data import samples
from gaze_jax.data import tokenizer as tokenizer_lib
from gaze_jax.data import units
from gaze_jax.layout import row as row_lib
from gaze_jax.layout import tiles

_LONGEST = 2**15  # slots of a row


def load(
  config: config_lib.Config, data: str, image_folder: str
) -> tuple[config_lib.Config, samples.Source | None]:
  """Opens a file to score a run on.

  Rows become as long as the file needs, whatever was trained on, and batches
  smaller for it. Those of a run that packs its samples hold several: here they
  are as short as the file allows, and batches larger.

  Args:
    config: of the run.
    data: the file; "" for what the run names.
    image_folder: what image names are relative to; "" for the run's.

  Returns:
    The config that it is scored by, and its samples; the run's own config and
    None without a file.

  Raises:
    errors.GazeError: a folder without a file, or the file can't be used.
  """
  if not data:
    if image_folder:
      raise errors.GazeError(
        f"--image_folder={image_folder} goes with --data=FILE"
      )
    return config, None
  largest = _LargestRow(config)
  source = llava.LlavaJson(
    data,
    image_folder=image_folder or config.data.image_folder,
    max_skipped=config.data.max_skipped,
    reader=media.Reader(
      config.data.max_pixels, media.sampling(config.data), largest.check
    ),
  )
  largest.may_grow = False
  slots, max_units, answer_slots = largest.sizes
  changed = dataclasses.replace(
    config.data,
    source="llava_json",
    options=plugins.NoOptions(),
    eval_path=data,
    image_folder=image_folder or config.data.image_folder,
    sequence_length=slots,
    max_units=max_units,
    answer_slots=answer_slots,
    packing="none",
    pool_rows=1,
    pool_tiles=0,
  )
  return with_data(config, changed), source


def with_data(
  config: config_lib.Config, data: data_config.DataConfig
) -> config_lib.Config:
  """The config with another data section, and batches of as many slots."""
  rows = config.eval.batch_size * config.data.sequence_length
  size = max(rows // data.sequence_length, 1)
  smaller = dataclasses.replace(config.eval, batch_size=size)
  return dataclasses.replace(config, data=data, eval=smaller)


class _LargestRow:
  """The row that a file needs, at least as large as one of the run's samples.

  Attributes:
    sizes: slots, units and answer slots.
    may_grow: while the file is opened; after that, a sample whose images were
      replaced by larger ones is refused.
  """

  def __init__(self, config: config_lib.Config):
    self._model, data = config.model, config.data
    self._tokenizer = tokenizer_lib.Tokenizer.load(data.tokenizer)
    self.sizes = (data.sequence_length, data.max_units, data.answer_slots)
    if data.packing != "none":
      self.sizes = (1, 1, 1)
    self.may_grow = True

  def check(
    self,
    sample: samples.Sample,
    images: Sequence[tiles.Size],
    videos: Sequence[Sequence[tiles.Size]],
  ) -> None:
    """Makes room for a sample; refuses one that no row will hold."""
    seen = packing.units_of(sample, images, videos, self._model)
    parts = packing.parts(sample, self._tokenizer, seen)
    none = units.join([], self._model)
    shape = prompts.shape_of([prompts.Prompt(tuple(parts), none)], self._model)
    if shape.slots > _LONGEST:
      raise row_lib.LayoutError(
        f"a row of up to {shape.slots} slots, and {_LONGEST} are the most"
      )
    needed = (shape.slots, shape.units, shape.answer_slots)
    grown = tuple(map(max, self.sizes, needed))
    if grown != self.sizes and not self.may_grow:
      raise row_lib.LayoutError("its images were smaller when it was opened")
    self.sizes = grown
