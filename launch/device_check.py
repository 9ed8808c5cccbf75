"""Checks and times the kernels on this machine's device: run it there first.

python launch/device_check.py [--json=FILE] [--only=attend_pages,choice]

Every kernel and form of gaze_jax/kernels that the device has, in float32 and
bfloat16, at the default and the highest matmul precision, at regions of 36
tokens and others. First, that the same regions are chosen as in float32 at the
highest precision, unless scores are as good as equal; then, the choice given,
that a form's error is at most 1.5 times that of plain XLA, or 1e-5 of the
largest value more. Then times beside the bytes that must be moved over the
device's bandwidth. Exits with 1 if something fails.

On CPU the kernels of TPU and GPU are interpreted, at small sizes.
"""

import json
import pathlib

from absl import flags

from gaze_jax import cli
from gaze_jax.device import report

_JSON = cli.define_file("json", "a file for the rows")
_ONLY = flags.DEFINE_list("only", list(report.PARTS), "what to check and time")


def main() -> int:
  found = report.run(_ONLY.value)
  if _JSON.value:
    pathlib.Path(_JSON.value).write_text(json.dumps(found, indent=1) + "\n")
  return 1 if found["failed"] else 0


if __name__ == "__main__":
  cli.main(main)
