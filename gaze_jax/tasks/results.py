"""Predictions to figures: results.json, and the table that is made of it."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from gaze_jax.evals import scoring
from gaze_jax.evals.scoring import totals
from gaze_jax.tasks import task as task_lib
from gaze_jax.tasks.predictions import Prediction

Figures = dict[str, Any]
_ENTRIES = ("per_query_head", "unique_per_kv_head", "dense")
_COLUMNS = (
  *("task", "score", "paper", "n", "unparsed", "failed"),
  *("visual KV", "unique", "dense", "tokens", "seconds"),
)


def verdict(
  task: task_lib.Task, item: task_lib.Item, text: str, protocol: str
) -> scoring.Verdict:
  """The score of a prediction for an item."""
  reference = task.reference(item.fields)
  return scoring.score(task.metric(item.fields), text, reference, protocol)


def rows(
  task: task_lib.Task,
  items: Sequence[task_lib.Item],
  predictions: Mapping[str, Prediction],
  protocol: str,
) -> list[totals.Row]:
  """Items with their verdicts; those without a prediction are left out."""
  out = []
  for item in items:
    if one := predictions.get(item.id):
      found = scoring.Verdict(0.0, None)
      if not one.error:
        found = verdict(task, item, one.text, protocol)
      out.append(totals.Row(item.fields, found))
  return out


def headline(
  task: task_lib.Task, some: Sequence[totals.Row], protocol: str
) -> float:
  """The score of rows; NaN if they have none."""
  try:
    figures = totals.total(task.total or task.name, some, protocol)
  except scoring.ScoringError:
    return math.nan
  return _score_of(task, figures)


def _score_of(task: task_lib.Task, figures: Figures) -> float:
  score = figures[totals.TOTALS[task.total or task.name].headline]
  return score * (1 if task.counted else task.most)


def of_task(
  task: task_lib.Task,
  items: Sequence[task_lib.Item],
  predictions: Mapping[str, Prediction],
  *,
  protocol: str,
  expected: int,
) -> Figures:
  """The figures of a task.

  An item that could not be asked is wrong, and one without a prediction is left
  out. The result is complete if all of the published items were asked.

  Args:
    task: any.
    items: that were to be asked.
    predictions: by id.
    protocol: of `scoring.PROTOCOLS`.
    expected: how many items its files have.

  Raises:
    scoring.ScoringError: no item has a prediction, or the files lack a field
      that the total reads.
  """
  scored = rows(task, items, predictions, protocol)
  seen = [predictions[i.id] for i in items if i.id in predictions]
  asked = [one for one in seen if not one.error]
  unparsed = sum(
    scoring.is_unparsed(task.metric(row.doc), row.verdict)
    for row, one in zip(scored, seen, strict=True)
    if not one.error
  )
  complete = len(asked) == expected == task.items
  figures, why = _figures(task, scored, protocol, complete)
  return {
    "headline": totals.TOTALS[task.total or task.name].headline,
    "score": _score_of(task, figures) if figures else None,
    "most": task.most,
    "paper": task.paper,
    "metrics": figures,
    "n": len(scored),
    "n_expected": expected,
    "n_published": task.items,
    "unparsed": unparsed,
    "failed": len(seen) - len(asked),
    "complete": complete,
    "protocol": protocol,
    "visual_kv": {
      name: _mean([getattr(one, name) for one in asked]) for name in _ENTRIES
    },
    "tokens": sum(one.tokens for one in asked),
    "notes": [note for note in (task.note, why) if note],
  }


def _figures(
  task: task_lib.Task,
  some: Sequence[totals.Row],
  protocol: str,
  complete: bool,
) -> tuple[Figures, str]:
  """All figures, or why there are none of a part of the items."""
  try:
    return totals.total(task.total or task.name, some, protocol), ""
  except scoring.ScoringError as error:
    if complete or not some:
      raise
    return {}, f"No headline: {error}"


def _mean(numbers: Sequence[int | float]) -> float:
  return statistics.fmean(numbers or [0.0])


def markdown(results: Figures) -> str:
  """The table of results.json."""
  lines = [
    "# Benchmarks",
    "",
    "Visual KV: entries that a token's queries read, a mean over answers, per"
    " query head and the union over a KV group, context tokens included; dense:"
    " what there is. `unparsed`: answers that no rule reads, which are wrong."
    " `failed`: items that could not be asked, wrong as well.",
    "",
    f"| {' | '.join(_COLUMNS)} |",
    "| --- " * len(_COLUMNS) + "|",
  ]
  notes = []
  for name, of in results["tasks"].items():
    mark = "" if of["complete"] else " (incomplete)"
    kv = of["visual_kv"]
    cells = [
      f"{name}{mark}",
      shown(of["score"]),
      "" if of["paper"] is None else f"{of['paper']:g}",
      f"{of['n']} of {of['n_expected']}",
      str(of["unparsed"]),
      str(of["failed"]),
      *(f"{kv[key]:.1f}" for key in _ENTRIES),
      str(of["tokens"]),
      f"{results['timing'][name]:.0f}",
    ]
    lines.append(f"| {' | '.join(cells)} |")
    notes += [f"* {name}: {note}" for note in of["notes"]]
  if average := results.get("average"):
    told = f"Mean of {', '.join(average['of'])}, each of 100"
    lines += ["", f"{told}: {average['score']:.1f}"]
  asked: dict[str, list[str]] = {}
  for name, of in results["tasks"].items():
    asked.setdefault(_asked_as(of), []).append(name)
  lines += ["", *notes, ""]
  lines += [f"* {', '.join(names)}: {how}" for how, names in asked.items()]
  return "\n".join(lines) + "\n"


def shown(score: float | None) -> str:
  """A score for a table; nothing where there is none."""
  return "" if score is None else f"{score:.1f}"


def _asked_as(of: Figures) -> str:
  """How a task was asked, in a sentence."""
  made = of["made_by"]
  top_k, share = made["budget"]["top_k"], made["budget"]["share"]
  budget = "the trained budget"
  if top_k is not None:
    budget = f"K = {top_k}"
  elif share is not None:
    budget = f"{share:g} of the regions"
  budget = "no picture" if made["blind"] else budget
  chosen = ", drawn at random" if made["regions"] == "random" else ""
  frames = f", {made['frames']} frames" if made["frames"] else ""
  return (
    f"asked with {budget}{chosen}{frames}, greedy, in {made['dtype']}; scored"
    f" by protocol `{of['protocol']}`; model {made['model'][:12]}, gaze_jax"
    f" {made['code']}."
  )
