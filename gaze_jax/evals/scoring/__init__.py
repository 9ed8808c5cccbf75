"""Scores of predictions in the benchmarks' own metrics: text in, verdict out.

Pure functions of the standard library: no model, no judge, no chance. Rules are
those of each benchmark's own script ("default"), or what lmms-eval 0.7.3 does
("lmms"), where its random guesses are no answers.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from gaze_jax.evals.scoring import anls
from gaze_jax.evals.scoring import exact
from gaze_jax.evals.scoring import letters
from gaze_jax.evals.scoring import lmms_letters
from gaze_jax.evals.scoring import mathvista
from gaze_jax.evals.scoring import mmmu
from gaze_jax.evals.scoring import ocrbench
from gaze_jax.evals.scoring import tempcompass
from gaze_jax.evals.scoring import text_vqa
from gaze_jax.evals.scoring import yes_no
from gaze_jax.evals.scoring.verdict import ScoringError
from gaze_jax.evals.scoring.verdict import Verdict
from gaze_jax.evals.scoring.verdict import field
from gaze_jax.evals.scoring.verdict import one_of

__all__ = [
  "METRICS",
  "PROTOCOLS",
  "ScoringError",
  "Verdict",
  "is_unparsed",
  "score",
]

PROTOCOLS = ("default", "lmms")
Scorer = Callable[[str, Mapping[str, Any]], Verdict]


@dataclasses.dataclass(frozen=True)
class Metric:
  """How a kind of answer is scored.

  Attributes:
    keys: fields of a reference that have to be there.
    default: the benchmark's own rule.
    lmms: lmms-eval's rule.
    labels_empty: whether an empty prediction has a label as well.
  """

  keys: tuple[str, ...]
  default: Scorer
  lmms: Scorer
  labels_empty: bool = False


_MATHVISTA = ("question_type", "answer_type", "precision", "choices", "answer")
METRICS: dict[str, Metric] = {
  "textvqa": Metric(("answers",), text_vqa.default, text_vqa.lmms),
  "exact": Metric(("answer",), exact.exact, exact.exact),
  "gqa": Metric(("answer",), exact.gqa, exact.gqa_lmms),
  "chartqa": Metric(("answer",), exact.chartqa, exact.chartqa),
  "realworldqa": Metric(
    ("answer",), letters.realworldqa, lmms_letters.realworldqa
  ),
  "mmmu_open": Metric(("answer",), mmmu.open_question, mmmu.open_question_lmms),
  "anls": Metric(("answers",), anls.default, anls.lmms),
  "ocrbench": Metric(("answer", "dataset"), ocrbench.default, ocrbench.lmms),
  "mme_label": Metric((), yes_no.mme, yes_no.mme_lmms, labels_empty=True),
  "pope_label": Metric((), yes_no.pope, yes_no.pope_lmms, labels_empty=True),
  "mmvp": Metric(("Correct Answer",), letters.mmvp, lmms_letters.mmvp),
  "scienceqa": Metric(
    ("choices", "answer"), letters.scienceqa, lmms_letters.scienceqa
  ),
  "videomme_letter": Metric(
    (), letters.videomme, lmms_letters.videomme, labels_empty=True
  ),
  "mmmu_mc": Metric(
    ("options",), mmmu.multiple_choice, mmmu.multiple_choice_lmms
  ),
  "mc5": Metric(("options",), letters.mc5, lmms_letters.mc5),
  "mlvu": Metric(("candidates", "answer"), letters.mlvu, lmms_letters.mlvu),
  "mathvista": Metric(_MATHVISTA, mathvista.default, mathvista.lmms),
  "mmbench": Metric(("options",), letters.mc5, lmms_letters.mmbench),
  "cv_bench": Metric(("choices",), letters.cv_bench, lmms_letters.cv_bench),
  **{
    f"tempcompass_{kind}": Metric(keys, rule, rule)
    for kind, keys, rule in (
      ("multi_choice", ("answer",), tempcompass.multiple_choice),
      ("yes_no", ("answer",), tempcompass.yes_no),
      (
        "caption_matching",
        ("question", "answer"),
        tempcompass.caption_matching,
      ),
    )
  },
}


def is_unparsed(metric: str, verdict: Verdict) -> bool:
  """Whether no answer was read: None, or a label that says so."""
  label = METRICS[metric].labels_empty and verdict.parsed in ("", "other")
  return label or verdict.parsed is None


def score(
  metric: str,
  prediction: str,
  reference: Mapping[str, Any],
  protocol: str = "default",
) -> Verdict:
  """Scores one prediction.

  Of metrics that read a label or a letter (mme_label, pope_label,
  videomme_letter, mmmu_mc, mc5, mmbench, cv_bench) the gold may be given too,
  as `answer`: yes or no, or a letter or its 0-based index. Without it their
  value is 0.

  Args:
    metric: one of METRICS.
    prediction: what the model wrote; it is stripped here, once.
    reference: fields of the item, of which METRICS[metric].keys are needed.
    protocol: one of PROTOCOLS.

  Raises:
    ScoringError: no such metric or protocol, or a field is missing.
  """
  one_of("metric", metric, METRICS)
  one_of("protocol", protocol, PROTOCOLS)
  rule = METRICS[metric]
  for key in rule.keys:
    field(reference, key, metric)
  text = prediction.strip()
  if not text and protocol == "default" and not rule.labels_empty:
    return Verdict(0.0, None)
  return getattr(rule, protocol)(text, reference)
