"""A run's config for a file of the caller's."""

import dataclasses
from collections.abc import Sequence

from gaze_jax import config as config_lib
from gaze_jax import errors
from gaze_jax.data import llava
from gaze_jax.data import packing
from gaze_jax.data import prompts
from gaze_jax.data import samples
from gaze_jax.data import tokenizer as tokenizer_lib
from gaze_jax.data import units
from gaze_jax.layout import row as row_lib
from gaze_jax.layout import tiles

_LONGEST = 2**15  # slots of a row


def on(
  config: config_lib.Config, data: str, image_folder: str
) -> config_lib.Config:
  """The config of a run that is scored on a file.

  Rows become as long as the file needs, whatever was trained on, and batches
  smaller for it.

  Args:
    config: of the run.
    data: the file; "" for what the run names, and its own config.
    image_folder: what image names are relative to; "" for the run's.

  Raises:
    errors.GazeError: a folder without a file, or the file can't be used.
  """
  if not data:
    if image_folder:
      raise errors.GazeError(
        f"--image_folder={image_folder} goes with --data=FILE"
      )
    return config
  needs = _Needs(config)
  llava.LlavaJson(
    data,
    image_folder=image_folder or config.data.image_folder,
    max_skipped=config.data.max_skipped,
    max_pixels=config.data.max_pixels,
    fits=needs.measure,
  )
  slots = max(config.data.sequence_length, needs.slots)
  changed = dataclasses.replace(
    config.data,
    source="llava_json",
    eval_path=data,
    image_folder=image_folder or config.data.image_folder,
    sequence_length=slots,
    max_units=max(config.data.max_units, needs.units),
    answer_slots=max(config.data.answer_slots, needs.answers),
  )
  rows = config.eval.batch_size * config.data.sequence_length // slots
  smaller = dataclasses.replace(config.eval, batch_size=max(rows, 1))
  return dataclasses.replace(config, data=changed, eval=smaller)


class _Needs:
  """What the longest rows of a file need: slots, units and answer slots."""

  def __init__(self, config: config_lib.Config):
    self._model = config.model
    self._tokenizer = tokenizer_lib.Tokenizer.load(config.data.tokenizer)
    self.slots = self.units = self.answers = 0

  def measure(
    self, sample: samples.Sample, sizes: Sequence[tiles.Size]
  ) -> None:
    """Takes note of a sample; refuses one that no row will hold."""
    seen = units.of_sizes(sizes, self._model, packing.together(sample))
    parts = packing.parts(sample, self._tokenizer, seen)
    none = units.join([], self._model)
    shape = prompts.shape_of([prompts.Prompt(tuple(parts), none)], self._model)
    if shape.slots > _LONGEST:
      raise row_lib.LayoutError(
        f"a row of up to {shape.slots} slots, and {_LONGEST} are the most"
      )
    self.slots = max(self.slots, shape.slots)
    self.units = max(self.units, shape.units)
    self.answers = max(self.answers, shape.answer_slots)
