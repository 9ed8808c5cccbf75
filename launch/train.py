"""Trains a model; run it again to resume.

python launch/train.py --config=configs/emoji_tiny.py --workdir=DIR
"""

import pathlib

from absl import flags

from gaze_jax import cli
from gaze_jax.train import loop

_WORKDIR = flags.DEFINE_string("workdir", None, "where the run is kept")
flags.mark_flag_as_required("workdir")


def main() -> None:
  loop.train(cli.read_config(), pathlib.Path(_WORKDIR.value))


if __name__ == "__main__":
  cli.main(main, config=True)
