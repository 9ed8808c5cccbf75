"""Converts weights between transformers' format and ours.

  python launch/convert.py --from=HF_DIR --to=DIR             in
  python launch/convert.py --from=TEXT_HF_DIR --vision=VISION_HF_DIR \
    --config=configs/cambrian_4b.py --to=DIR                  two into one
  python launch/convert.py --from=DIR --export=HF_DIR         out
  python launch/convert.py --inspect=DIR                      what is in it
  python launch/convert.py --from=DIR --verify=HF_DIR         same numbers?

--from=WORKDIR takes the newest checkpoint of launch/train.py. --dry-run checks
everything and writes nothing. --dtype=float32|bfloat16|float16 casts.
"""

import pathlib
import sys

from absl import flags

from gaze_jax import cli
from gaze_jax import errors
from gaze_jax.convert import convert
from gaze_jax.convert import export
from gaze_jax.evals import weights

# Only a model that is made of two needs a config.
_CONFIG = any(a.startswith("--config") for a in sys.argv)
_FROM = flags.DEFINE_string("from", None, "a directory of weights")
_VISION = flags.DEFINE_string("vision", None, "a vision tower to join with it")
_TO = flags.DEFINE_string("to", None, "a new directory, in our format")
_EXPORT = flags.DEFINE_string("export", None, "one in transformers' format")
_INSPECT = flags.DEFINE_string("inspect", None, "print what is in a directory")
_VERIFY = flags.DEFINE_string("verify", None, "compare with transformers there")
_DRY_RUN = flags.DEFINE_bool("dry-run", False, "check all, write nothing")
_DTYPE = flags.DEFINE_enum(
  "dtype", None, ["float32", "bfloat16", "float16"], "default: as it is"
)


_FLAGS = "--to, --export or --verify"


def main() -> None:
  path = lambda flag: flag.value and pathlib.Path(flag.value)
  source, to, out = path(_FROM), path(_TO), path(_EXPORT)
  if _INSPECT.value:
    print(convert.inspect(path(_INSPECT)))
    return
  if source is None or not (to or out or _VERIFY.value):
    raise errors.GazeError(f"needs --inspect, or --from and one of {_FLAGS}")
  if _VISION.value and (not to or not _CONFIG):
    raise errors.GazeError("--vision needs --config and --to")
  dry = _DRY_RUN.value
  if to:
    _take_in(source, None if dry else to)
  if out:
    export.to_hf(source, None if dry else out, dtype=_DTYPE.value)
  for written in filter(None, (to, out)):
    print(f"{'can be' if dry else 'was'} converted: {written}")
  if _VERIFY.value:
    _verify(source if dry or not to else to)


def _take_in(source: pathlib.Path, to: pathlib.Path | None) -> None:
  if _VISION.value:
    tower = pathlib.Path(_VISION.value)
    config = cli.read_config()
    convert.assemble(source, tower, config, to, dtype=_DTYPE.value)
  elif weights.is_run(source):
    weights.keep(source, to, dtype=_DTYPE.value)
  else:
    convert.to_ours(source, to, dtype=_DTYPE.value)


def _verify(ours: pathlib.Path) -> None:
  try:
    from gaze_jax.evals import verify  # imports torch, for this command alone
  except ImportError as error:
    raise errors.GazeError(
      f"--verify needs {error.name}: pip install {error.name}"
    ) from None
  for line in verify.verify(ours, pathlib.Path(_VERIFY.value)):
    print(line)


if __name__ == "__main__":
  cli.main(main, config=_CONFIG)
