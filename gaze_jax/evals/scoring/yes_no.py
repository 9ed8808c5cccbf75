"""Labels of yes/no questions: MME, POPE."""

from collections.abc import Mapping
from typing import Any

from gaze_jax.evals.scoring.verdict import Verdict


def mme(text: str, reference: Mapping[str, Any]) -> Verdict:
  """MME's own rule: "yes" within the first four characters, else "no".

  So "Not sure" is no, and "**Yes**" is neither.
  """
  return _verdict(_within_four(text.lower()), reference)


def mme_lmms(text: str, reference: Mapping[str, Any]) -> Verdict:
  """The same without full stops; y and n alone are labels."""
  text = text.lower().replace(".", "")
  label = {"y": "yes", "n": "no"}.get(text)
  return _verdict(label or _within_four(text), reference)


def pope(text: str, reference: Mapping[str, Any]) -> Verdict:
  """LLaVA's rule: no if the first sentence has a word No, no or not."""
  words = text.split(".")[0].replace(",", "").split()
  label = "no" if {"No", "no", "not"} & set(words) else "yes"
  return _verdict(label, reference)


def pope_lmms(text: str, reference: Mapping[str, Any]) -> Verdict:
  """Nothing but yes or no, in any case."""
  label = text.lower()
  return _verdict(label if label in ("yes", "no") else "other", reference)


def _within_four(text: str) -> str:
  return next((x for x in ("yes", "no") if x in text[:4]), "other")


def _verdict(label: str, reference: Mapping[str, Any]) -> Verdict:
  gold = str(reference.get("answer", "")).lower().strip().replace(".", "")
  return Verdict(float(label == gold), label)
