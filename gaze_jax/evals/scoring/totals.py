"""From the items of a task to its figures: headline and breakdown.

Figures are shares, 0..1, but for MME's points and OCRBench's count. Nothing is
kept between calls.
"""

import collections
import dataclasses
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from gaze_jax.evals.scoring import mathvista
from gaze_jax.evals.scoring import verdict as verdict_lib
from gaze_jax.evals.scoring.verdict import ScoringError
from gaze_jax.evals.scoring.verdict import Verdict

# A figure, or figures of groups.
Figures = dict[str, float | dict[str, float]]

_MME = {
  "perception": (
    *("existence", "count", "position", "color", "posters", "celebrity"),
    *("scene", "landmark", "artwork", "OCR"),
  ),
  "cognition": (
    *("commonsense_reasoning", "numerical_calculation", "text_translation"),
    "code_reasoning",
  ),
}
_OCRBENCH = (
  *("Regular Text Recognition", "Irregular Text Recognition"),
  *("Artistic Text Recognition", "Handwriting Recognition"),
  *("Digit String Recognition", "Non-Semantic Text Recognition"),
  *("Scene Text-centric VQA", "Doc-oriented VQA", "Key Information Extraction"),
  "Handwritten Mathematical Expression Recognition",
)
_OCRBENCH_ITEMS = 1000
_CV_BENCH = {"2D": ("ADE20K", "COCO"), "3D": ("Omni3D",)}
# MMBench numbers a question's rotation r as this, r times, plus its own number.
_MMBENCH_ROTATION = 1_000_000


@dataclasses.dataclass(frozen=True)
class Row:
  """An item that was scored: its fields in the data set, and the verdict."""

  doc: Mapping[str, Any]
  verdict: Verdict

  def __getitem__(self, key: str) -> Any:
    return verdict_lib.field(self.doc, key, "total")


Rows = Sequence[Row]


def mean(rows: Rows) -> Figures:
  return {"mean": _mean(rows)}


def mean_by(key: str) -> Callable[[Rows], Figures]:
  """The mean, and that of each group with the same field."""
  return lambda rows: {
    "mean": _mean(rows),
    f"by_{key}": _means(_groups(rows, lambda row: row[key])),
  }


def mean_of_means_by(key: str) -> Callable[[Rows], Figures]:
  """The mean of the means of the groups that are there."""

  def total(rows: Rows) -> Figures:
    groups = _means(_groups(rows, lambda row: row[key]))
    return {"mean": statistics.fmean(groups.values()), f"by_{key}": groups}

  return total


def mme(rows: Rows) -> Figures:
  """acc over questions and acc+ over images, x100, summed over sub-tasks.

  Fields: category, question_id (of the image, in its category).

  Raises:
    ScoringError: an image without exactly two questions, an unknown category.
  """
  known = [category for names in _MME.values() for category in names]
  acc, plus = {}, {}
  for category, some in _groups(rows, lambda row: row["category"]).items():
    verdict_lib.one_of("MME's category", category, known)
    images = _groups(some, lambda row: row["question_id"])
    for image, questions in images.items():
      if len(questions) != 2:
        raise ScoringError(
          f"MME: image {image!r} of {category} has {len(questions)} of its 2 "
          "questions: its acc+ needs both"
        )
    acc[category] = 100 * _mean(some)
    plus[category] = 100 * statistics.fmean(map(_all_right, images.values()))
  points = {category: acc[category] + plus[category] for category in acc}
  return {
    part: sum(points.get(category, 0.0) for category in names)
    for part, names in _MME.items()
  } | {"by_category": points, "acc": acc, "acc_plus": plus}


def mmvp(rows: Rows) -> Figures:
  """Pairs (1, 2), (3, 4), ... by Index, both of which are right.

  Pairs of which one item is missing are left out, and counted.

  Raises:
    ScoringError: an Index twice.
  """
  _check_unique(rows, "Index")
  pairs = _groups(rows, lambda row: (int(row["Index"]) - 1) // 2).values()
  whole = [pair for pair in pairs if len(pair) == 2]
  return {
    "pair_accuracy": statistics.fmean(map(_all_right, whole)) if whole else 0.0,
    "accuracy": _mean(rows),
    "incomplete_pairs": len(pairs) - len(whole),
  }


def mmmu(rows: Rows) -> Figures:
  """Each item counts the same; by subject, which stands in the id."""
  subject = lambda row: "_".join(str(row["id"]).split("_")[1:-1])
  return {"mean": _mean(rows), "by_subject": _means(_groups(rows, subject))}


def mathvista_total(rows: Rows) -> Figures:
  """The mean, and what the official script's empty predictions would add."""
  official = (
    mathvista.official_default(row.doc)
    if row.verdict.parsed is None
    else row.verdict.value
    for row in rows
  )
  return {"mean": _mean(rows), "official_default": statistics.fmean(official)}


def pope(rows: Rows) -> Figures:
  """Of "yes", by split (category), and the mean over splits.

  The yes ratio is that of predictions.
  """
  splits = _groups(rows, lambda row: row["category"])
  by_split = {name: _of_yes(some) for name, some in splits.items()}
  return {
    figure: statistics.fmean(of[figure] for of in by_split.values())
    for figure in ("f1", "accuracy", "precision", "recall", "yes_ratio")
  } | {f"by_{name}": of for name, of in by_split.items()}


def ocrbench(rows: Rows) -> Figures:
  """How many are right, of 1,000 however many there are; by the ten types.

  Raises:
    ScoringError: an unknown question_type.
  """
  by_type = dict.fromkeys(_OCRBENCH, 0.0)
  for row in rows:
    verdict_lib.one_of("OCRBench's type", row["question_type"], _OCRBENCH)
    by_type[row["question_type"]] += row.verdict.value
  right = sum(by_type.values())
  return {
    "right": right,
    "share_of_1000": right / _OCRBENCH_ITEMS,
    "by_type": by_type,
  }


def videomme(rows: Rows) -> Figures:
  """The mean over all items; by duration; and over those with an answer."""
  answered = [row for row in rows if row.verdict.parsed]
  return mean_by("duration")(rows) | {
    "answered_only": _mean(answered) if answered else 0.0
  }


def cv_bench(rows: Rows) -> Figures:
  """The mean of 2D (the mean of ADE20K and COCO) and 3D (Omni3D).

  Raises:
    ScoringError: no item of one of these sources.
  """
  sources = _means(_groups(rows, lambda row: row["source"]))
  parts = {
    part: statistics.fmean(
      verdict_lib.field(sources, name, "CV-Bench's mean") for name in names
    )
    for part, names in _CV_BENCH.items()
  }
  overall = statistics.fmean(parts.values())
  return {"mean": overall, "by_source": sources, **parts, "items": _mean(rows)}


def mmbench(rows: Rows) -> Figures:
  """Circular: a question is right when all its rotations are.

  Vanilla is over the questions as they are, unrotated.

  Raises:
    ScoringError: an index twice.
  """
  _check_unique(rows, "index")
  question = lambda row: mmbench_question(row["index"])
  circular = statistics.fmean(map(_all_right, _groups(rows, question).values()))
  plain = [row for row in rows if int(row["index"]) < _MMBENCH_ROTATION]
  return {"circular": circular, "vanilla": _mean(plain) if plain else 0.0}


def mmbench_question(index: int | str) -> int:
  """The number of a question of MMBench, whichever of its rotations it is."""
  return int(index) % _MMBENCH_ROTATION


def pope_pooled(rows: Rows) -> Figures:
  """Of "yes", over all splits together; the yes ratio is that of golds."""
  golds = [str(row["answer"]).strip().lower() == "yes" for row in rows]
  return {**_of_yes(rows), "yes_ratio": sum(golds) / len(rows)}


@dataclasses.dataclass(frozen=True)
class Total:
  """How a task's rows become figures, and which of them is the headline.

  Attributes:
    figures: rows -> figures.
    headline: one of these.
    lmms: rows -> figures as lmms-eval makes them; None where it has the same.
    of_items: whether the headline is the mean of all items' values.
  """

  figures: Callable[[Rows], Figures]
  headline: str = "mean"
  lmms: Callable[[Rows], Figures] | None = None
  of_items: bool = False


TOTALS: dict[str, Total] = {
  **{
    task: Total(mean, of_items=True)
    for task in (
      *("gqa", "textvqa", "textvqa_ocr", "realworldqa", "scienceqa_img"),
      *("egoschema_subset", "ai2d", "docvqa_val", "infovqa_val", "seed"),
      "easy_vqa",
    )
  },
  "ocrbench": Total(ocrbench, "right"),
  "mmvp": Total(mmvp, "pair_accuracy"),
  "mmmu_val": Total(mmmu, of_items=True),
  "mathvista_format": Total(mathvista_total, of_items=True),
  "mathvista_cot": Total(mathvista_total, of_items=True),
  "mme": Total(mme, "perception"),
  "videomme": Total(videomme, of_items=True),
  "videomme_sub": Total(videomme, of_items=True),
  "videomme_official": Total(videomme, of_items=True),
  "mlvu_dev": Total(mean_of_means_by("question_type")),
  "longvideobench_val": Total(mean_by("duration_group"), of_items=True),
  "nextqa_mc": Total(mean_by("type"), of_items=True),
  "tempcompass": Total(mean_of_means_by("task")),
  "chartqa": Total(mean_by("type"), of_items=True),
  "mmbench_en_dev": Total(mmbench, "circular"),
  "pope": Total(pope, "f1", pope_pooled),
  "cv_bench": Total(cv_bench),
  "emoji_scenes": Total(mean_by("kind"), of_items=True),
}


def total(task: str, rows: Iterable[Row], protocol: str = "default") -> Figures:
  """The figures of a task; TOTALS[task].headline names the first of them.

  Raises:
    ScoringError: no such task, no rows, or a field of a row is missing.
  """
  verdict_lib.one_of("task", task, TOTALS)
  rows = list(rows)
  if not rows:
    raise ScoringError(f"{task}: there is no row to take a mean of")
  rule = TOTALS[task]
  return (protocol == "lmms" and rule.lmms or rule.figures)(rows)


def _mean(rows: Rows) -> float:
  return statistics.fmean(row.verdict.value for row in rows)


def _groups(rows: Rows, key: Callable[[Row], Any]) -> dict[Any, list[Row]]:
  out = collections.defaultdict(list)
  for row in rows:
    out[key(row)].append(row)
  return dict(out)


def _means(groups: Mapping[Any, Rows]) -> dict[str, float]:
  return {str(name): _mean(groups[name]) for name in sorted(groups)}


def _all_right(rows: Rows) -> float:
  return float(all(row.verdict.value == 1 for row in rows))


def _check_unique(rows: Rows, key: str) -> None:
  counts = collections.Counter(int(row[key]) for row in rows)
  if twice := [index for index, n in counts.items() if n > 1]:
    raise ScoringError(f"{key} {twice[0]} is there {counts[twice[0]]} times")


def _of_yes(rows: Rows) -> dict[str, float]:
  said = [row.verdict.parsed == "yes" for row in rows]
  so = [str(row["answer"]).strip().lower() == "yes" for row in rows]
  true = sum(a and b for a, b in zip(said, so, strict=True))
  precision = true / sum(said) if any(said) else 0.0
  recall = true / sum(so) if any(so) else 0.0
  both = precision + recall
  return {
    "f1": 2 * precision * recall / both if both else 0.0,
    "accuracy": _mean(rows),
    "precision": precision,
    "recall": recall,
    "yes_ratio": sum(said) / len(rows),
  }
