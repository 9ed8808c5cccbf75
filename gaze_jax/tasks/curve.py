"""Every budget of one model: scores over visual KV entries, with intervals.

  OUT/CONDITION/        predictions and results.json of each condition
  OUT/curve.json        scores, intervals, differences against dense
  OUT/curve.md, TASK.png

Intervals are of the bootstrap over clusters, the items that share an image, a
video or a pair, with the task's total computed anew; differences are paired:
the same clusters are drawn for both.
"""

import collections
import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gaze_jax import schema
from gaze_jax import whole_file
from gaze_jax.evals.scoring import totals
from gaze_jax.runtime import processes
from gaze_jax.tasks import asking
from gaze_jax.tasks import chart
from gaze_jax.tasks import predictions as predictions_lib
from gaze_jax.tasks import results as results_lib
from gaze_jax.tasks import run as run_lib
from gaze_jax.tasks import task as task_lib

DENSE, BLIND = "dense", "blind"
_DRAWS, _LEVEL = 1000, (2.5, 97.5)  # per cent
_LEAST_CLUSTERS = 10  # of which an interval says something

Conditions = dict[str, asking.Options]


def conditions(
  budgets: Sequence[int | float], options: asking.Options
) -> Conditions:
  """Each budget by score and at random, beside all regions and no picture.

  Args:
    budgets: K as whole numbers, shares with a point.
    options: for the rest.
  """
  out = {
    DENSE: dataclasses.replace(options, top_k=None, share=1.0),
    BLIND: dataclasses.replace(options, top_k=None, share=None, blind=True),
  }
  for budget in budgets:
    share = isinstance(budget, float)
    name = f"share_{budget:g}" if share else f"k{budget}"
    given = (
      dict(share=budget, top_k=None)
      if share
      else dict(top_k=budget, share=None)
    )
    scored = dataclasses.replace(options, **given)
    out[name] = scored
    out[f"random_{name}"] = dataclasses.replace(scored, regions="random")
  return out


def run(
  model: Any,
  suite: run_lib.Suite,
  loaded: Mapping[str, run_lib.Loaded],
  asked: Conditions,
  out: pathlib.Path,
) -> dict[str, Any]:
  """Asks all conditions; writes the curve.

  Args:
    model: an `api.Model`.
    suite: the tasks.
    loaded: of `run.load`.
    asked: of `conditions`.
    out: a folder for each condition, and the curve.

  Returns:
    What curve.json holds; nothing but on process 0.

  Raises:
    errors.GazeError: as `run.run`.
  """
  found_in = run_lib.run(
    model, suite, loaded, {out / name: of for name, of in asked.items()}
  )
  results = {path.name: figures for path, figures in found_in.items()}
  found: dict[str, Any] = {}
  if processes.is_first():
    found = _write(suite, loaded, asked, results, out)
  processes.share("drawn")  # as in `run.run`
  return found


def _write(
  suite: run_lib.Suite,
  loaded: Mapping[str, run_lib.Loaded],
  asked: Conditions,
  results: dict[str, dict[str, Any]],
  out: pathlib.Path,
) -> dict[str, Any]:
  """Makes the curve of what was asked; writes and returns it."""
  tasks = {
    task.name: of_task(
      task,
      loaded[task.name].asked,
      {name: out / name for name in asked},
      results,
      suite.protocol,
    )
    for task in suite.tasks
  }
  found = schema.stamp("results") | {
    "made_by": {"protocol": suite.protocol, "draws": _DRAWS},
    "tasks": tasks,
  }
  text = json.dumps(found, indent=2, ensure_ascii=False)
  whole_file.write(out / "curve.json", text + "\n")
  whole_file.write(out / "curve.md", markdown(found))
  for name, points in tasks.items():
    scored = {k: of for k, of in points.items() if of["score"] is not None}
    if not scored:
      continue
    with whole_file.replacing(out / f"{name}.png") as partial:
      chart.draw(name, scored).save(partial, "PNG")
  return found


def of_task(
  task: task_lib.Task,
  items: Sequence[task_lib.Item],
  folders: dict[str, pathlib.Path],
  results: dict[str, dict[str, Any]],
  protocol: str,
) -> dict[str, dict[str, Any]]:
  """A task's figures by condition: score, interval, entries, difference.

  Args:
    task: any.
    items: that were asked.
    folders: of the predictions, by condition.
    results: of each condition, as results.json.
    protocol: of `scoring.PROTOCOLS`.
  """
  rows = {
    name: results_lib.rows(
      task, items, predictions_lib.read(folder, task.name), protocol
    )
    for name, folder in folders.items()
  }
  clusters = [item.cluster for item in items]
  drawn = bootstrap(task, rows, clusters, protocol)
  few = len(set(clusters)) < _LEAST_CLUSTERS
  out = {}
  for name in folders:
    of = results[name]["tasks"][task.name]
    out[name] = {
      "score": of["score"],
      "interval_95": None if few else interval(drawn[name]),
      "clusters": len(set(clusters)),
      "visual_kv": of["visual_kv"],
      "n": of["n"],
      "unparsed": of["unparsed"],
      "failed": of["failed"],
      "complete": of["complete"],
    }
    dense = results[DENSE]["tasks"][task.name]["score"]
    if name != DENSE and None not in (of["score"], dense):
      out[name]["against_dense"] = {
        "difference": of["score"] - dense,
        "interval_95": None if few else interval(drawn[name] - drawn[DENSE]),
      }
  return out


def bootstrap(
  task: task_lib.Task,
  rows: dict[str, list[totals.Row]],
  clusters: Sequence[str],
  protocol: str = "default",
  draws: int = _DRAWS,
) -> dict[str, np.ndarray]:
  """Headlines of samples of the clusters, the same samples for each condition.

  Args:
    task: any.
    rows: of all items, by condition, in the same order.
    clusters: of each item.
    protocol: of `scoring.PROTOCOLS`.
    draws: how many samples.

  Returns:
    float64 [draws] by condition; NaN where a sample has no headline.
  """
  names = {name: i for i, name in enumerate(dict.fromkeys(clusters))}
  members: list[list[int]] = [[] for _ in names]
  for place, name in enumerate(clusters):
    members[names[name]].append(place)
  rng = np.random.default_rng(0)
  taken = rng.integers(len(members), size=(draws, len(members)))
  if totals.TOTALS[task.total or task.name].of_items:
    times = np.stack(
      [np.bincount(one, minlength=len(members)) for one in taken]
    )
    sizes = times @ np.array([len(places) for places in members])
    return {
      name: task.most * (times @ _sums(some, members)) / sizes
      for name, some in rows.items()
    }
  out = {name: np.empty(draws) for name in rows}
  for draw, chosen in enumerate(taken.tolist()):
    seen: collections.Counter[int] = collections.Counter()
    places = []
    for one in chosen:
      places += [(place, seen[one]) for place in members[one]]
      seen[one] += 1
    for name, some in rows.items():
      again = [_again(task, some[place], n) for place, n in places]
      out[name][draw] = results_lib.headline(task, again, protocol)
  return out


def _sums(
  rows: Sequence[totals.Row], members: Sequence[Sequence[int]]
) -> np.ndarray:
  """Of the values of each cluster's items."""
  values = np.array([row.verdict.value for row in rows])
  return np.array([values[places].sum() for places in members])


def _again(task: task_lib.Task, row: totals.Row, again: int) -> totals.Row:
  """A row that is drawn once more, as one of another cluster."""
  if not again or task.again is None:
    return row
  return totals.Row(task.again(row.doc, again), row.verdict)


def interval(scores: np.ndarray) -> list[float] | None:
  """The middle 95 % of samples; None if some have no score."""
  if np.isnan(scores).any():
    return None
  return [float(x) for x in np.percentile(scores, _LEVEL)]


def markdown(found: dict[str, Any]) -> str:
  """The tables of curve.json, one a task."""
  lines = [
    "# Scores by budget",
    "",
    "95 % intervals by the bootstrap over clusters: items that share an image,"
    " a video or a pair; with fewer than ten there is none. Against dense: the"
    " paired difference."
    " Visual KV: entries read a query head, and the union over a KV group.",
  ]
  for task, conditions_of in found["tasks"].items():
    lines += [
      "",
      f"## {task}",
      "",
      "| condition | score | against dense | n | clusters | unparsed | failed"
      " | visual KV | unique |",
      "| --- " * 9 + "|",
    ]
    for name, of in conditions_of.items():
      kv, against = of["visual_kv"], of.get("against_dense")
      cells = [
        name if of["complete"] else f"{name} (incomplete)",
        results_lib.shown(of["score"]) + _range(of["interval_95"]),
        f"{against['difference']:+.1f}{_range(against['interval_95'])}"
        if against
        else "",
        *(str(of[key]) for key in ("n", "clusters", "unparsed", "failed")),
        f"{kv['per_query_head']:.1f}",
        f"{kv['unique_per_kv_head']:.1f}",
      ]
      lines.append(f"| {' | '.join(cells)} |")
  return "\n".join(lines) + "\n"


def _range(of: Sequence[float] | None) -> str:
  return "" if of is None else f" ({of[0]:.1f} to {of[1]:.1f})"
