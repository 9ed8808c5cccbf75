"""The section of a config about data, and the sources that it names."""

import dataclasses
from typing import Any, Literal

from gaze_jax import fields
from gaze_jax import plugins


@dataclasses.dataclass(frozen=True)
class SourceConfig:
  """Where samples come from."""

  # Of a package, by name (gaze_jax/plugins.py): llava_json reads a file in
  # LLaVA's format, prepared a directory that launch/prepare.py made, tfds data
  # that tensorflow-datasets prepared; emoji_scenes makes its samples.
  source: str = "llava_json"
  options: Any = dataclasses.field(  # what a source has beside what follows
    default=plugins.NoOptions(),
    metadata=fields.read_as(lambda of: plugins.source(of["source"]).options),
  )
  path: str = ""  # the file or directory, of a source that reads one
  image_folder: str = ""  # what image names are relative to
  samples: fields.Count = 4000  # of a source that makes them: for training
  questions: fields.Count = 8  # that such a source asks about an image


@dataclasses.dataclass(frozen=True)
class MixtureConfig(SourceConfig):
  """One source of `DataConfig.mixture`, and how often it is read.

  Of the sources of a mixture all have a weight, or all have epochs.
  """

  name: str = ""  # in the log; "": that of the source, and its number
  # Share of the samples of the run, relative to the other weights.
  weight: fields.NonNegative = 0.0
  # How often it is run through while another with 1 is run through once.
  epochs: fields.NonNegative = 0.0


@dataclasses.dataclass(frozen=True)
class DataConfig(SourceConfig):
  """Where samples come from and how they become rows."""

  # Several sources for training, in place of the one above, which then is that
  # of `eval_path` alone (data/mixture.py).
  mixture: tuple[MixtureConfig, ...] = ()
  eval_path: str = ""  # a file held out for evaluation; "" for none
  max_skipped: fields.Share = 0.01  # share of samples that may be bad
  # A tokenizer.json; "": the shipped 2,048-token BPE; the name of pretrained
  # weights of a package: theirs.
  tokenizer: str = ""
  seed: fields.Seed = 0
  # Of a row: an image is one; with tiling, alone, two.
  max_units: fields.Count = 1
  sequence_length: fields.Count = 256
  answer_slots: fields.Count = 32
  # Samples that share a row: one, or as many as first_fit finds room for, up to
  # `row_samples`, in each window of so many (data/packed.py).
  packing: Literal["none", "first_fit"] = "none"
  row_samples: fields.Count = 16
  packing_window: fields.Count = 256
  # Packed rows that share a pool of pictures: those that a device has of a
  # micro-batch, or fewer. It has room for so many squares of pixels; 0: for all
  # that its rows may hold, so that most of it is blank.
  pool_rows: fields.Count = 1
  pool_tiles: fields.Natural = 0
  # A larger image is refused before decoding.
  max_pixels: fields.Count = 50_000_000
  # Of a video, evenly spaced in time: so many, or with fps so many a second and
  # `frames` at most. Each is a unit.
  frames: fields.Count = 8
  fps: fields.NonNegative = 0.0
  workers: fields.Natural = 1  # grain worker processes; 0: in this process

  @property
  def segments(self) -> int:
    """G, samples that a row may hold."""
    return 1 if self.packing == "none" else self.row_samples
