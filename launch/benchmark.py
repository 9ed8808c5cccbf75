"""Scores a model on published benchmarks; leaves results.json and a table.

python launch/benchmark.py --workdir=DIR --data=DIR --tasks=gqa,textvqa
  [--top_k=K | --share=S | --budgets=1,4,0.25] [--frames=32] [--limit=N]
  [--batch_size=8] [--out=DIR] [--parallel.fsdp=8] [--dtype=bfloat16]
python launch/benchmark.py --score_only=DIR --data=DIR [--protocol=lmms]
python launch/benchmark.py --list

DATA/NAME holds the files of a data set; --list says which, and where they come
from. Killed, the same command goes on where it was.
"""

import pathlib

from absl import flags

from gaze_jax import api
from gaze_jax import cli
from gaze_jax import errors
from gaze_jax.evals import scoring
from gaze_jax.runtime import processes
from gaze_jax.tasks import asking
from gaze_jax.tasks import curve
from gaze_jax.tasks import predictions
from gaze_jax.tasks import registry
from gaze_jax.tasks import results
from gaze_jax.tasks import run

_WORKDIR = cli.define_path("workdir", "a model, as for launch/generate.py")
_DATA = cli.define_path("data", "the folder with a folder of each data set")
_TASKS = flags.DEFINE_list("tasks", None, "names of --list, by commas")
_OUT = cli.define_path("out", "of all results; default: WORKDIR/benchmark")
_SCORE_ONLY = cli.define_path("score_only", "an --out whose answers to score")
_LIST = flags.DEFINE_bool("list", False, "print all tasks and their files")
_TOP_K = flags.DEFINE_integer("top_k", None, "K; default: as trained", 0)
_SHARE = flags.DEFINE_float("share", None, "share of the regions", 0, 1)
_BUDGETS = flags.DEFINE_list(
  "budgets", None, "K and shares, each by score and at random, for a curve"
)
_FRAMES = flags.DEFINE_integer("frames", 32, "of a video", 1)
_BLIND = flags.DEFINE_bool("blind", False, "show no picture and no video")
_BATCH = flags.DEFINE_integer("batch_size", 8, "decoded together", 1)
_LIMIT = flags.DEFINE_integer("limit", None, "items of a task, about", 1)
_PARTIAL = flags.DEFINE_bool("partial", False, "go on without all items")
_PROTOCOL = flags.DEFINE_enum(
  "protocol", "default", scoring.PROTOCOLS, "rules that answers are scored by"
)
_AVERAGE = flags.DEFINE_list("average", [], "tasks to average the scores of")
_PLACEMENT = cli.define_placement()


def main() -> None:
  if _LIST.value:
    print(registry.listing())
    return
  stored = pathlib.Path(_SCORE_ONLY.value) if _SCORE_ONLY.value else None
  names = _TASKS.value or (predictions.stored(stored) if stored else [])
  if not names:
    raise errors.GazeError(
      f"{stored}: no predictions there"
      if stored
      else "--tasks is needed: name tasks of --list"
    )
  if not _DATA.value:
    raise errors.GazeError("--data is needed: the folder of the data sets")
  suite = run.Suite(
    tasks=registry.named(names),
    data=_DATA.value,
    limit=_LIMIT.value,
    partial=_PARTIAL.value,
    protocol=_PROTOCOL.value,
    average=_AVERAGE.value,
  )
  if not stored:
    text = _asked(suite)
  elif processes.is_first():
    text = results.markdown(run.score(suite, run.load(suite), stored))
  if processes.is_first():
    print(text)


def _asked(suite: run.Suite) -> str:
  """Asks a model; returns the table, or tables, of process 0."""
  if not _WORKDIR.value:
    raise errors.GazeError("--workdir is needed: the model to ask")
  budgets = cli.budgets(_BUDGETS)
  if budgets is not None and _BLIND.value:
    raise errors.GazeError("--budgets has a blind line; leave out --blind")
  given = (_TOP_K.value, _SHARE.value, budgets)
  if sum(one is not None for one in given) > 1:
    raise errors.GazeError("give one of --top_k, --share and --budgets")
  options = asking.Options(
    top_k=_TOP_K.value,
    share=_SHARE.value,
    frames=_FRAMES.value,
    batch_size=_BATCH.value,
    blind=_BLIND.value,
  )
  out = pathlib.Path(_OUT.value or f"{_WORKDIR.value}/benchmark")
  placement = _PLACEMENT()
  loaded = run.load(suite)  # before the model, which takes longer
  model = api.load(_WORKDIR.value, **placement)
  if budgets is None:
    found = run.run(model, suite, loaded, {out: options})
    return results.markdown(found[out]) if found else ""
  asked = curve.conditions(budgets, options)
  found = curve.run(model, suite, loaded, asked, out)
  return curve.markdown(found) if found else ""


if __name__ == "__main__":
  cli.main(main, leave=processes.leave)
