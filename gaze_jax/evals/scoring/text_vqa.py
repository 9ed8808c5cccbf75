"""TextVQA: EvalAI's normal form of an answer, and soft accuracy."""

import re
from collections.abc import Mapping
from typing import Any

from gaze_jax.evals.scoring.verdict import Verdict

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_NUMBERS = {"none": "0"} | {
  word: str(number)
  for number, word in enumerate(
    "zero one two three four five six seven eight nine ten".split()
  )
}
_ARTICLES = ("a", "an", "the")
_CONTRACTED = """
  ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't
  hadn't've hasn't haven't he'd he'd've he's how'd how'll how's isn't it'd
  it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't
  not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't
  shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've
  someone'll someone's something'd something'd've something'll that's there'd
  there'd've there're there's they'd they'd've they'll they're they've 'twas
  wasn't we'd've we've weren't what'll what're what's what've when's where'd
  where's where've who'd who'd've who'll who's who've why'll why're why's won't
  would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll
  you're you've
""".split()
# Each is recognised by itself with one of its apostrophes missing. One entry of
# EvalAI's table takes the apostrophe away.
_CONTRACTIONS = {
  word[:i] + word[i + 1 :]: word
  for word in _CONTRACTED
  for i, mark in enumerate(word)
  if mark == "'"
} | {"somebody'd": "somebodyd"}
# EvalAI's code hands re.sub a flag, 32, in the place of the count.
_LMMS_PERIODS = 32


def normalize(text: str, periods: int = 0) -> str:
  """EvalAI's normal form.

  Commas go first, so that the rule about a comma between digits (then all marks
  are deleted) never applies.

  Args:
    text: an answer.
    periods: how many full stops are taken off, at most; 0 is all.
  """
  text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
  before = text.strip().replace("\n", " ").replace("\t", " ").strip()
  after = before
  for mark in _PUNCTUATION:
    at_a_space = f"{mark} " in before or f" {mark}" in before
    after = after.replace(mark, "" if at_a_space else " ")
  after = re.sub(r"\.(?!\d)", "", after, count=periods)
  words = (_NUMBERS.get(word, word) for word in after.split())
  return " ".join(
    _CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES
  )


def default(text: str, reference: Mapping[str, Any]) -> Verdict:
  """EvalAI: three other annotators with this answer make it right."""
  return _score(text, reference["answers"], periods=0)


def lmms(text: str, reference: Mapping[str, Any]) -> Verdict:
  return _score(text, reference["answers"], periods=_LMMS_PERIODS)


def _score(text: str, golds: list[str], periods: int) -> Verdict:
  """Mean over golds of min(1, equal answers among the others / 3)."""
  answer = normalize(text, periods)
  equal = [normalize(gold, periods) == answer for gold in golds]
  thirds = sum(min(3, sum(equal) - one) for one in equal)
  return Verdict(thirds / (3 * len(golds)) if golds else 0.0, answer)
