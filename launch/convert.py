"""Converts weights between transformers' format and ours.

python launch/convert.py --from=HF_DIR --to=DIR        in (or from a WORKDIR)
python launch/convert.py --from=DIR --export=HF_DIR    out (or from a WORKDIR)
python launch/convert.py --from=DIR --verify=HF_DIR    same numbers?
python launch/convert.py --inspect=DIR                 what is in it
python launch/convert.py --from=HF_DIR --vision=VISION_HF_DIR \
    --config=configs/cambrian_4b.py --to=DIR           two into one model
"""

import pathlib
import sys

from absl import flags

from gaze_jax import cli
from gaze_jax import errors
from gaze_jax.api import directory
from gaze_jax.weights import load

# Only a model that is made of two needs a config.
_CONFIG = any(a.startswith("--config") for a in sys.argv)
_FROM = cli.define_path("from", "a directory of weights")
_VISION = cli.define_path("vision", "a vision tower to join with it")
_TO = cli.define_path("to", "a new directory, in our format")
_EXPORT = cli.define_path("export", "one in transformers' format")
_INSPECT = cli.define_path("inspect", "print what is in a directory")
_VERIFY = cli.define_path("verify", "compare with transformers there")
_DRY = flags.DEFINE_bool("dry-run", False, "check everything, write nothing")
_DTYPES = ("float32", "bfloat16", "float16")
_DTYPE = flags.DEFINE_enum("dtype", None, _DTYPES, "default: as it is")


def main() -> None:
  path = lambda flag: flag.value and pathlib.Path(flag.value)
  source, to, out, reference = map(path, (_FROM, _TO, _EXPORT, _VERIFY))
  if _INSPECT.value:
    return print(load.inspect(path(_INSPECT)))
  if not source or not (to or out or reference):
    raise errors.GazeError(
      "needs --inspect=DIR, or --from=DIR and --to, --export or --verify"
    )
  dry, tower = _DRY.value, path(_VISION)
  directory.convert(
    source,
    tower=tower,
    model=cli.read_model() if tower and _CONFIG else None,
    to=to,
    export=out,
    dtype=_DTYPE.value,
    dry=dry,
  )
  for place in filter(None, (to, out)):
    print(f"{source} {'fits' if dry else 'is now in'} {place}")
  if reference:
    print(directory.compare(to if to and not dry else source, reference))


if __name__ == "__main__":
  cli.main(main, config=_CONFIG)
