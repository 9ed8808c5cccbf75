"""OCRBench: a gold text stands somewhere in the prediction."""

from collections.abc import Callable, Mapping
from typing import Any

from gaze_jax.evals.scoring.verdict import Verdict

# Handwritten formulas, in LaTeX: case counts and spaces do not.
_FORMULAS = "HME100k"
# ASCII's marks, digits and letters, and the space, of full width.
_HALF_WIDTH = {wide: wide - 0xFEE0 for wide in range(0xFF01, 0xFF5F)}
_HALF_WIDTH[0x3000] = ord(" ")


def default(text: str, reference: Mapping[str, Any]) -> Verdict:
  """Right if any gold is contained."""
  return _score(text, reference, lambda answer: answer)


def lmms(text: str, reference: Mapping[str, Any]) -> Verdict:
  """The same after full-width ASCII became half-width, but in formulas."""
  return _score(text, reference, lambda answer: answer.translate(_HALF_WIDTH))


def _score(
  text: str, reference: Mapping[str, Any], fold: Callable[[str], str]
) -> Verdict:
  if reference["dataset"] == _FORMULAS:
    plain = lambda x: x.strip().replace("\n", "").replace(" ", "")
  else:
    plain = lambda x: fold(x).lower().strip().replace("\n", " ")
  golds = reference["answer"]
  golds = [golds] if isinstance(golds, str) else golds
  answer = plain(text)
  return Verdict(float(any(plain(gold) in answer for gold in golds)), answer)
