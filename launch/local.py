"""Runs a command as one or several processes here, and again if one is lost.

python launch/local.py --processes=2 --devices=2 -- python launch/train.py \
  --config=configs/emoji_tiny.py --workdir=DIR

What process 0 prints comes as it is, lines of process 1 after "[1] ". Without
--processes the command is one process of whatever the environment says: so
each host of a cluster starts its own, and again when another one is lost.
"""

from absl import flags

from gaze_jax import cli
from gaze_jax.runtime import supervisor

_PROCESSES = flags.DEFINE_integer("processes", None, "how many to start", 1)
_DEVICES = flags.DEFINE_integer(
  "devices", None, "fake CPU devices of each process; default: the real ones", 1
)
_RESTARTS = flags.DEFINE_integer(
  "restarts", 3, "how often all start again after one was lost", 0
)
_STOPPED_CODE = flags.DEFINE_integer(
  "stopped_code",
  0,
  "exit code if all end well after SIGTERM; for schedulers that take 0 for"
  " finished, and would not start the command again",
  0,
  255,
)
_DRY_RUN = flags.DEFINE_bool("dry-run", False, "print what would be run")


def main(command: list[str]) -> int:
  job = supervisor.Job(
    tuple(command),
    processes=_PROCESSES.value,
    devices=_DEVICES.value,
    restarts=_RESTARTS.value,
    stopped_code=_STOPPED_CODE.value,
  )
  if _DRY_RUN.value:
    print(supervisor.describe(job))
    return 0
  return supervisor.run(job)


if __name__ == "__main__":
  cli.main(main, command=True)
