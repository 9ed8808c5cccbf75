"""Answers that are right when they are equal: ours, GQA's, ChartQA's."""

import string
from collections.abc import Mapping
from typing import Any

from gaze_jax.evals.scoring.verdict import Verdict

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_RELAXED = 0.05  # of the gold number (Methani et al. 2020)


def exact(text: str, reference: Mapping[str, Any]) -> Verdict:
  """Equal, as `launch/eval.py` counts a question as right."""
  return _equal(text, reference["answer"].strip())


def gqa(text: str, reference: Mapping[str, Any]) -> Verdict:
  """Equal but for case and full stops at the end."""
  plain = lambda answer: answer.strip().rstrip(".").lower()
  return _equal(plain(text), plain(reference["answer"]))


def gqa_lmms(text: str, reference: Mapping[str, Any]) -> Verdict:
  """Equal but for case and ASCII punctuation, wherever it stands."""
  plain = lambda answer: answer.lower().translate(_NO_PUNCTUATION)
  return _equal(plain(text), plain(reference["answer"]))


def chartqa(text: str, reference: Mapping[str, Any]) -> Verdict:
  """Within 5 % of the gold number; what is no number, equal but for case."""
  gold = reference["answer"]
  number, target = _number(text), _number(gold)
  if number is not None and target:
    close = abs(number - target) / abs(target) <= _RELAXED
    return Verdict(float(close), number)
  return _equal(text.lower(), gold.lower())


def _equal(answer: str, gold: str) -> Verdict:
  return Verdict(float(answer == gold), answer)


def _number(text: str) -> float | None:
  percent = text.endswith("%")
  try:
    return float(text.rstrip("%")) / (100 if percent else 1)
  except ValueError:
    return None
