"""Compiles a run for a TPU pod, on a machine without one; reports on it.

python launch/aot_check.py --config=configs/cambrian_4b.py \
  --topology=v5e:16x16 [--json=FILE] [--what=train]
python launch/aot_check.py --config=configs/cambrian_4b.py --topology=v5e:1x1 \
  --what=serve --images=1
python launch/aot_check.py --recipes [--only=4b-stage2] [--json=FILE]
  [--table=FILE.md]

A training step; what answers prompts of 8 and of 36 images, and evaluates
(--what=serve these alone): memory of a chip against its limit, FLOPs,
collectives, seconds of compilation. A step that does not fit is tried with
other settings; exits with 1 if none does, or something else does not fit.
--topology=gpu:8x80GB is arithmetic. --recipes is all of configs/recipes.py.
"""

import json
import pathlib
import sys

from absl import flags

from gaze_jax import cli
from gaze_jax import errors
from gaze_jax.aot import check
from gaze_jax.aot import report
from gaze_jax.aot import topology as topology_lib

_TOPOLOGY = flags.DEFINE_string("topology", "v5e:16x16", "or gpu:8x80GB")
_RECIPES = flags.DEFINE_bool("recipes", False, "all of configs/recipes.py")
_ONLY = flags.DEFINE_string("only", "", "recipes whose name holds this")
_WHAT = flags.DEFINE_enum(
  *("what", "all", ["all", "train", "serve"], "to compile")
)
_IMAGES = flags.DEFINE_list("images", ["8", "36"], "of each prompt")
_JSON = cli.define_file("json", "a file for what was found")
_TABLE = cli.define_file("table", "recipes: a file for the table")
_LEVEL = flags.DEFINE_enum(
  *("optimization_level", "O0", topology_lib.LEVELS),
  "of the compiler; a run has UNKNOWN, which takes longer",
)
_LIMIT = flags.DEFINE_float("limit_gb", None, "HBM of a device; its own", 0)


def main() -> int:
  if _TABLE.value and not _RECIPES.value:
    raise errors.GazeError("--table is one of --recipes; --json takes any")
  if not _TOPOLOGY.value.startswith("gpu:") or _RECIPES.value:
    topology_lib.prepare(_LEVEL.value)
  options = dict(
    what=_WHAT.value,
    images=cli.whole_numbers(_IMAGES),
    limit=_LIMIT.value and round(_LIMIT.value * 1e9),
  )
  if _RECIPES.value:
    path = pathlib.Path(__file__).parent.parent / "configs/recipes.py"
    known = cli.read_recipes(path).items()
    wanted = {name: of for name, of in known if _ONLY.value in name}
    if not wanted:
      names = ", ".join(name for name, _ in known)
      raise errors.GazeError(f"--only={_ONLY.value}: in none of {names}")
    found = check.recipes(wanted, **options)
  else:
    found = check.check(cli.read_config(), _TOPOLOGY.value, **options)
  if _JSON.value:
    pathlib.Path(_JSON.value).write_text(json.dumps(found, indent=1) + "\n")
  if _TABLE.value:
    pathlib.Path(_TABLE.value).write_text(report.markdown(found))
  return 0 if found["fits"] else 1


if __name__ == "__main__":
  cli.main(main, config="--recipes" not in sys.argv)
