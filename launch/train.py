"""Trains a model; run it again to resume.

python launch/train.py --config=configs/emoji_tiny.py --workdir=DIR
"""

import pathlib
import socket

import jax
from absl import flags

from gaze_jax import cli
from gaze_jax.train import loop

_WORKDIR = flags.DEFINE_string("workdir", None, "where the run is kept")
flags.mark_flag_as_required("workdir")


def main() -> None:
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
  jax.distributed.initialize(f"127.0.0.1:{port}", 1, 0)
  loop.train(cli.read_config(), pathlib.Path(_WORKDIR.value))


if __name__ == "__main__":
  cli.main(main, config=True)
