"""Evaluates the newest checkpoint of a workdir; prints and writes a report.

python launch/eval.py --workdir=DIR [--json=FILE] [--markdown=FILE]
  [--data=FILE --image_folder=DIR] [--budgets=1,4,0.25]
  [--parallel.fsdp=8] [--dtype=bfloat16]
"""

import json
import time

from absl import flags

from gaze_jax import cli
from gaze_jax import storage
from gaze_jax import whole_file
from gaze_jax.evals import report
from gaze_jax.evals import run
from gaze_jax.runtime import processes

_WORKDIR = cli.define_path(
  "workdir", "a workdir of launch/train.py", bucket=True
)
_DATA = flags.DEFINE_string(
  "data", "", "a file in LLaVA's format to score; default: what the run names"
)
_IMAGE_FOLDER = flags.DEFINE_string(
  "image_folder", "", "what image names of --data are relative to"
)
_BUDGETS = flags.DEFINE_list(
  "budgets", None, "K and shares (0.25) to score; default: eval.budgets"
)
_FRAMES = flags.DEFINE_integer(
  "frames", None, "of a video at most; default: as trained", 1
)
_JSON = cli.define_path("json", "default: WORKDIR/report.json")
_MARKDOWN = cli.define_path("markdown", "default: WORKDIR/report.md")
_STARTED = flags.DEFINE_float(
  "started", None, "count `seconds` from this Unix time, not from now"
)
_PLACEMENT = cli.define_placement(answers=False)
flags.mark_flag_as_required("workdir")


def main() -> None:
  workdir = storage.path(_WORKDIR.value)
  result = run.evaluate(
    workdir,
    data=_DATA.value,
    image_folder=_IMAGE_FOLDER.value,
    others=cli.budgets(_BUDGETS),
    frames=_FRAMES.value,
    **_PLACEMENT(),
  )
  if not processes.is_first():
    return
  if _STARTED.value is not None:
    result["seconds"] = time.time() - _STARTED.value
  text = report.markdown(result)
  print(text)
  as_json = storage.path(_JSON.value or workdir / "report.json")
  whole_file.write(as_json, json.dumps(result, indent=2) + "\n")
  as_text = storage.path(_MARKDOWN.value or workdir / "report.md")
  whole_file.write(as_text, text)
  print(f"wrote {as_json} and {as_text}")


if __name__ == "__main__":
  cli.main(main, leave=processes.leave)
