"""Prepares data for training at scale: other formats to shards.

python launch/prepare.py --from=SOURCE --to=DIR [--image_folder=DIR]
    [--name=prepared] [--split=train] [--tokenizer=FILE] [--max_side=0]
    [--frames=0] [--max_skipped=0.01] [--workers=N]
python launch/prepare.py --index=DIR --tokenizer=FILE

SOURCE is a file of LLaVA's JSON or JSON Lines, Parquet files as `datasets`
writes them, WebDataset tars, or a folder of media with a .json or .txt beside
each. Run again, it goes on where it was. docs/data.md has the details.
"""

import os
import pathlib

from absl import flags

from gaze_jax import cli
from gaze_jax import errors
from gaze_jax.prepare import job
from gaze_jax.prepare import origins
from gaze_jax.prepare import shard

_FROM = cli.define_path("from", "the data")
_TO = cli.define_path("to", "a new directory")
_FOLDER = cli.define_path("image_folder", "of media that JSON names", "")
_NAME = flags.DEFINE_string("name", "prepared", "of the data set")
_SPLIT = flags.DEFINE_string("split", "train", "likewise")
_TOKENIZER = flags.DEFINE_string("tokenizer", "", "as data.tokenizer")
_SIDE = flags.DEFINE_integer("max_side", 0, "of a picture; 0: as it is", 0)
_FRAMES = flags.DEFINE_integer("frames", 0, "of a video; 0: as it is", 0)
_PIXELS = flags.DEFINE_integer("max_pixels", 50_000_000, "of a picture", 1)
_SKIPPED = flags.DEFINE_float("max_skipped", 0.01, "share of samples", 0, 1)
_SAMPLES = flags.DEFINE_integer("shard_samples", 5000, "of a shard", 1)
_WORKERS = flags.DEFINE_integer("workers", os.cpu_count(), "processes", 0)
_INDEX = cli.define_path("index", "a directory to count anew")


def main() -> None:
  if _INDEX.value:
    return print(job.add_index(pathlib.Path(_INDEX.value), _TOKENIZER.value))
  if not (_FROM.value and _TO.value):
    raise errors.GazeError("needs --from=SOURCE and --to=DIR, or --index=DIR")
  options = shard.Options(
    tokenizer=_TOKENIZER.value,
    max_pixels=_PIXELS.value,
    max_side=_SIDE.value,
    frames=_FRAMES.value,
  )
  done = job.prepare(
    origins.open_origin(_FROM.value, _FOLDER.value),
    pathlib.Path(_TO.value),
    job.Plan(_NAME.value, _SPLIT.value, _SAMPLES.value, options),
    max_skipped=_SKIPPED.value,
    workers=_WORKERS.value,
  )
  print(done)


if __name__ == "__main__":
  cli.main(main)
