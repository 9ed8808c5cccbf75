"""TempCompass' three kinds of questions, by hand; both protocols are one."""

import pytest

from gaze_jax.evals import scoring

protocols = pytest.mark.parametrize("protocol", scoring.PROTOCOLS)


def score(kind, text, protocol="default", **reference):
  return scoring.score(f"tempcompass_{kind}", text, reference, protocol)


@protocols
@pytest.mark.parametrize(
  "text, letter, right",
  [
    ("B. swims", "B", 1),  # the line
    ("B", "B", 1),
    ("B.", "B", 1),
    ("B. flies", "B", 1),  # the letter counts, not what follows
    ("B) swims", "B", 1),
    ("B)", "B", 1),
    ("A", "A", 0),
    ("A. swims", "A", 0),
    ("D)", "D", 0),
    ("swims", None, 0),
    ("b", None, 0),
    ("(B) swims", None, 0),
    ("B: swims", None, 0),
    ("B swims", None, 0),
    ("The answer is B.", None, 0),
    ("E", None, 0),
    ("E. swims", None, 0),
    ("", None, 0),
  ],
)
def test_multi_choice(protocol, text, letter, right):
  verdict = score("multi_choice", text, protocol, answer="B. swims")
  assert verdict == scoring.Verdict(float(right), letter)


@protocols
def test_a_line_of_any_form_is_the_answer(protocol):
  verdict = score("multi_choice", "E: no", protocol, answer="E: no")
  assert verdict == scoring.Verdict(1.0, "E")


@protocols
@pytest.mark.parametrize(
  "text, label",
  [
    ("yes", "yes"),
    ("Yes, he does.", "yes"),
    ("YES", "yes"),
    ("yesterday", "yes"),
    ("no", "no"),
    ("No.", "no"),
    ("Not at all", "no"),
    ("Nobody knows, yes", "no"),
    ("He does", None),
    ("**Yes**", None),
    ("The answer is yes", None),
    ("y", None),
    ("", None),
  ],
)
def test_yes_no(protocol, text, label):
  for gold in ("yes", "no"):
    verdict = score("yes_no", text, protocol, answer=gold)
    assert verdict == scoring.Verdict(float(label == gold), label)


OPTIONS = "Which?\nOption 1: It grows.\nOption 2: It fades."
SENTENCES = "Which?\nSentence A: It grows.\nSentence B: It fades."
CAPTIONS = "Which?\nCaption A: It grows.\nCaption B: It fades."


@protocols
@pytest.mark.parametrize(
  "question, text, said, right",
  [
    (OPTIONS, "Option 2: It fades.", "Option 2: It fades.", 1),
    (OPTIONS, "Option 1: It grows.", "Option 1: It grows.", 0),
    (OPTIONS, "It fades.", "It fades.", 1),
    (OPTIONS, "It grows.", "It grows.", 0),
    (OPTIONS, "Option 2", "Option 2", 1),
    (OPTIONS, "Option 2.", "Option 2", 1),  # without full stops
    (OPTIONS, "2", "2", 1),
    (OPTIONS, "2.", "2", 1),
    (OPTIONS, "1", "1", 0),
    (OPTIONS, "(2) It fades.", "It fades.", 1),  # what follows ") "
    (OPTIONS, "x) It grows.", "It grows.", 0),
    (OPTIONS, "Option 3", None, 0),
    (OPTIONS, "It fades", None, 0),
    (OPTIONS, "option 2", None, 0),
    (OPTIONS, "B", None, 0),
    (OPTIONS, "Sentence 2", None, 0),
    (OPTIONS, "I say Option 2", None, 0),
    (OPTIONS, "a) b) It fades.", None, 0),
    (OPTIONS, "", None, 0),
    (SENTENCES, "B", "B", 1),
    (SENTENCES, "Sentence B", "Sentence B", 1),
    (SENTENCES, "A", "A", 0),
    (CAPTIONS, "B.", "B", 1),
    (CAPTIONS, "Caption A", "Caption A", 0),
    (CAPTIONS, "Caption B: It fades.", "Caption B: It fades.", 1),
  ],
)
def test_caption_matching(protocol, question, text, said, right):
  gold = question.split("\n")[2]
  verdict = score(
    "caption_matching", text, protocol, question=question, answer=gold
  )
  assert verdict == scoring.Verdict(float(right), said)


def test_the_last_of_several_counts():
  """A line, and after its bracket the sentence of another option."""
  question = "Which?\nOption 1: so) It fades.\nOption 2: It fades."
  text = "Option 1: so) It fades."
  for gold, right in ((question.split("\n")[1], 0), ("Option 2: It fades.", 1)):
    verdict = score("caption_matching", text, question=question, answer=gold)
    assert verdict == scoring.Verdict(float(right), "It fades.")


def test_a_sentence_that_is_the_number_of_another():
  question = "Which?\nOption 1: 2\nOption 2: 1"
  for text in "12":  # what the answer is called, and what it says
    verdict = score(
      "caption_matching", text, question=question, answer="Option 1: 2"
    )
    assert verdict == scoring.Verdict(1.0, text)


def test_a_sentence_ends_at_its_own_colon():
  question = "Which?\nOption 1: He says: go.\nOption 2: He rests."
  one = dict(question=question, answer="Option 1: He says: go.")
  assert score("caption_matching", "He says", **one).value == 1
  assert score("caption_matching", "He says: go.", **one).parsed is None
  assert score("caption_matching", "Option 1: He says: go.", **one).value == 1


@pytest.mark.parametrize(
  "question, answer, says",
  [
    ("Which?\nOption 1. x", "Option 1: x", "'Option 1. x' is no option"),
    ("Which?\nOption 1: x", "Option 1", "'Option 1' is no option"),
  ],
)
def test_a_data_set_without_colons_is_named(question, answer, says):
  with pytest.raises(scoring.ScoringError, match=says):
    score("caption_matching", "1", question=question, answer=answer)


@pytest.mark.parametrize(
  "kind, key",
  [
    ("multi_choice", "answer"),
    ("yes_no", "answer"),
    ("caption_matching", "question"),
  ],
)
def test_a_missing_field_is_named(kind, key):
  with pytest.raises(scoring.ScoringError, match=f"'{key}' is missing"):
    score(kind, "A", other="x")
