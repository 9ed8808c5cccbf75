"""Average normalized Levenshtein similarity: DocVQA, InfographicVQA."""

from collections.abc import Callable, Mapping
from typing import Any

from gaze_jax.evals.scoring.verdict import Verdict

_THRESHOLD = 0.5  # less similar answers are wrong altogether


def levenshtein(a: str, b: str) -> int:
  """Characters to insert, delete or replace to make `b` of `a`."""
  row = list(range(len(b) + 1))  # distances of a[:i] to each b[:j]
  for i, x in enumerate(a):
    diagonal, row[0] = row[0], i + 1
    for j, y in enumerate(b):
      step = min(row[j], row[j + 1]) + 1
      diagonal, row[j + 1] = row[j + 1], min(step, diagonal + (x != y))
  return row[-1]


def default(text: str, reference: Mapping[str, Any]) -> Verdict:
  """Similarity to the nearest gold, lower-cased and with spaces collapsed."""
  return _score(text, reference["answers"], lambda answer: len(_plain(answer)))


def lmms(text: str, reference: Mapping[str, Any]) -> Verdict:
  """The distance of the same texts, over the length that they had before."""
  return _score(text, reference["answers"], lambda answer: len(answer.upper()))


def _score(
  text: str, golds: list[str], length: Callable[[str], int]
) -> Verdict:
  answer, best = _plain(text), 0.0
  for gold in golds:
    # Two empty texts are equal.
    of = max(length(text), length(gold)) or 1
    best = max(best, 1 - levenshtein(answer, _plain(gold)) / of)
  return Verdict(best if best >= _THRESHOLD else 0.0, answer)


def _plain(answer: str) -> str:
  return " ".join(answer.lower().split())
