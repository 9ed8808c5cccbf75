"""Trains a model; run it again to resume.

python launch/train.py --config=configs/emoji_tiny.py --workdir=DIR

As one of several processes (launch/local.py and its neighbours start them) it
does its share of the same run.
"""

from absl import flags

from gaze_jax import cli
from gaze_jax import storage
from gaze_jax.runtime import processes
from gaze_jax.train import loop

_WORKDIR = cli.define_path("workdir", "where the run is kept", bucket=True)
_WAIT = flags.DEFINE_integer(
  "wait_seconds", 300, "for the other processes to come, at most", 1
)
flags.mark_flag_as_required("workdir")


def main() -> None:
  config = cli.read_config()
  processes.initialize(_WAIT.value)
  loop.train(config, storage.path(_WORKDIR.value))


if __name__ == "__main__":
  cli.main(main, config=True, leave=processes.leave)
