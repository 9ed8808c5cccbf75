"""Scores of predictions, by hand: an example for each sentence of the rules."""

import random
import subprocess
import sys

import hypothesis
import pytest
from hypothesis import strategies

from gaze_jax import errors
from gaze_jax.evals import scoring
from gaze_jax.evals.scoring import anls
from gaze_jax.evals.scoring import mathvista
from gaze_jax.evals.scoring import text_vqa

FOUR = ["red", "green", "blue", "a red car"]
CHOICE = {
  "question_type": "multi_choice",
  "answer_type": "text",
  "precision": None,
  "choices": ["12 cm", "5 cm", "120 degrees"],
  "answer": "5 cm",
}
# A reference of each metric.
REFERENCES = {
  "textvqa": {"answers": ["stop"] * 8 + ["halt", "a"]},
  "exact": {"answer": "top left"},
  "gqa": {"answer": "yes"},
  "chartqa": {"answer": "20"},
  "realworldqa": {"answer": "B"},
  "mmmu_open": {"answer": "3.14"},
  "anls": {"answers": ["stop", "stop sign"]},
  "ocrbench": {"answer": ["Stop"], "dataset": "SVT", "question_type": "x"},
  "mme_label": {"answer": "Yes"},
  "pope_label": {"answer": "no"},
  "mmvp": {
    "Index": 1,
    "Question": "Which?",
    "Options": "(a) Black (b) Blue",
    "Correct Answer": "(b)",
  },
  "scienceqa": {"choices": FOUR[:3], "answer": 1},
  "videomme_letter": {"answer": "B"},
  "mmmu_mc": {"options": FOUR, "answer": "B"},
  "mc5": {"options": FOUR, "answer": 1},
  "mlvu": {"candidates": FOUR, "answer": "green"},
  "mathvista": CHOICE,
  "mmbench": {"options": FOUR, "answer": "B"},
  "cv_bench": {"choices": FOUR, "answer": "(B)"},
  "tempcompass_multi_choice": {"answer": "B. green"},
  "tempcompass_yes_no": {"answer": "yes"},
  "tempcompass_caption_matching": {
    "question": "Which?\nSentence A: Red.\nSentence B: Green.",
    "answer": "Sentence B: Green.",
  },
}


def value(metric, text, protocol="default", **reference):
  reference = reference or REFERENCES[metric]
  return scoring.score(metric, text, reference, protocol).value


def parsed(metric, text, protocol="default", **reference):
  reference = reference or REFERENCES[metric]
  return scoring.score(metric, text, reference, protocol).parsed


# --- All of them.


def test_every_metric_has_a_reference_here():
  assert REFERENCES.keys() == scoring.METRICS.keys()
  assert scoring.PROTOCOLS == ("default", "lmms")


@pytest.mark.parametrize("protocol", scoring.PROTOCOLS)
@pytest.mark.parametrize("metric", scoring.METRICS)
@hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
@hypothesis.given(text=strategies.text())
def test_no_text_raises(metric, protocol, text):
  verdict = scoring.score(metric, text, REFERENCES[metric], protocol)
  assert 0 <= verdict.value <= 1
  assert verdict.value == 0 or verdict.parsed is not None
  assert verdict == scoring.score(metric, text, REFERENCES[metric], protocol)


WORDS = [
  *("A", "B", "C", "E", "(A)", "(b)", "B)", "B.", "b", "\n", "No"),
  *("The answer is", "answer is", "Best option:", "red", "green", "12 cm"),
  *("5", "nan", "inf", "-1e999", "9" * 5000, "１", "²"),
  *("%", "[", "{", "\\", "\0", "="),
]


@pytest.mark.parametrize("protocol", scoring.PROTOCOLS)
@pytest.mark.parametrize("metric", scoring.METRICS)
def test_no_sequence_of_words_raises(metric, protocol):
  rng = random.Random(metric)
  references = [REFERENCES[metric]]
  if metric == "mathvista":
    types = ("integer", "float", "list")
    references += [
      {**CHOICE, "question_type": "free_form", "answer_type": x} for x in types
    ]
  for _ in range(60):
    text = " ".join(rng.choices(WORDS, k=rng.randrange(9)))
    for reference in references:
      verdict = scoring.score(metric, text, reference, protocol)
      assert verdict.value == 0 or verdict.parsed is not None


@pytest.mark.parametrize("metric", scoring.METRICS)
def test_a_prediction_is_stripped(metric):
  plain = scoring.score(metric, "B", REFERENCES[metric])
  assert scoring.score(metric, " \n B\t ", REFERENCES[metric]) == plain


@pytest.mark.parametrize("metric", scoring.METRICS)
def test_nothing_is_no_answer(metric):
  # A label is read out of nothing too; LLaVA's of POPE is yes.
  labels = {"mme_label": "other", "pope_label": "yes", "videomme_letter": ""}
  expected = scoring.Verdict(0.0, labels.get(metric))
  assert scoring.score(metric, " \n", REFERENCES[metric]) == expected


def test_scoring_draws_nothing(monkeypatch):
  for name in ("choice", "random", "randrange", "shuffle"):
    monkeypatch.setattr(random, name, None)
  for metric, reference in REFERENCES.items():
    for protocol in scoring.PROTOCOLS:
      scoring.score(metric, "who knows", reference, protocol)


@pytest.mark.parametrize(
  "call, says",
  [
    (
      lambda: value("vqa", "x", answer="x"),
      "metric 'vqa' .* textvqa, exact, gqa",
    ),
    (lambda: value("gqa", "x", "vlmevalkit"), "protocol .* default, lmms"),
    (
      lambda: value("gqa", "x", answers=["x"]),
      r"gqa: 'answer' .*\['answers'\]",
    ),
    (lambda: value("mc5", "A", "lmms", options=[], dataset="x"), "nextqa, ego"),
    (lambda: value("mc5", "A", options=FOUR, answer="red"), "'red' is neither"),
  ],
)
def test_what_is_not_there_is_named(call, says):
  with pytest.raises(scoring.ScoringError, match=says) as caught:
    call()
  assert isinstance(caught.value, errors.GazeError)


@pytest.mark.parametrize("metric", scoring.METRICS)
def test_each_key_is_needed(metric):
  for key in scoring.METRICS[metric].keys:
    less = {k: v for k, v in REFERENCES[metric].items() if k != key}
    with pytest.raises(scoring.ScoringError, match=f"{metric}: '{key}'"):
      scoring.score(metric, "x", less)


@pytest.mark.parametrize(
  "metric, text, label",
  [
    ("mme_label", "Yes", "yes"),
    ("pope_label", "No", "no"),
    ("videomme_letter", "B", "B"),
    ("mmmu_mc", "B", "B"),
    ("mc5", "B", "B"),
  ],
)
def test_a_gold_may_be_given_for_a_label(metric, text, label):
  assert scoring.score(metric, text, REFERENCES[metric]).value == 1
  options = {"options": FOUR}
  assert scoring.score(metric, text, options) == scoring.Verdict(0.0, label)
  assert scoring.score(metric, "?", options).value == 0


@pytest.mark.parametrize("gold", ["B", "(b)", 1, "1"])
def test_a_gold_is_a_letter_or_an_index(gold):
  assert value("mc5", "B", options=FOUR, answer=gold) == 1
  assert value("mc5", "A", options=FOUR, answer=gold) == 0


def test_scoring_imports_no_jax():
  code = (
    "import sys, gaze_jax.evals.scoring.totals; assert 'jax' not in sys.modules"
  )
  subprocess.run([sys.executable, "-c", code], check=True)


# --- TextVQA.


@pytest.mark.parametrize(
  "text, normal",
  [
    ("  Coca Cola ", "coca cola"),
    ("1,000", "1000"),
    ("who?me", "whome"),
    ("Joe's", "joe 's"),
    ("a\nred\tcar", "red car"),
    ("coca-cola", "coca cola"),  # touches no space: becomes one
    ("coca - cola", "coca cola"),
    ("x-ray- y", "xray y"),
    ("x-ray -y", "xray y"),  # touches a space somewhere: deleted everywhere
    ("5.", "5"),
    ("5.5", "5.5"),
    ("u.s.a", "usa"),
    ("." * 40 + "x", "x"),
    ("none", "0"),
    ("zero ten eleven", "0 10 eleven"),
    ("an apple the end", "apple end"),
    ("dont", "don't"),
    ("couldnt've", "couldn't've"),
    ("couldn'tve", "couldn't've"),
    ("couldntve", "couldntve"),
    ("somebody'd", "somebodyd"),
  ],
)
def test_evalai_normal_form(text, normal):
  assert text_vqa.normalize(text) == normal


def test_each_mark_goes():
  marks = ';/[]"{}()=+\\_-><@`,?!'
  assert len(marks) == 21
  for mark in marks:
    assert text_vqa.normalize(f"x {mark}") == "x"
    assert text_vqa.normalize(f"x{mark}y") in ("x y", "xy")


@pytest.mark.parametrize(
  "matches, accuracy", [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)]
)
def test_soft_accuracy(matches, accuracy):
  answers = ["five"] * matches + [f"no {i}" for i in range(10 - matches)]
  assert value("textvqa", "5.", answers=answers) == accuracy


def test_lmms_takes_32_full_stops():
  assert parsed("textvqa", "." * 33 + "x", "lmms", answers=["x"]) == ".x"
  assert parsed("textvqa", "." * 33 + "x", answers=["x"]) == "x"


@pytest.mark.parametrize(
  "metric, key",
  [
    ("textvqa", "answers"),
    ("anls", "answers"),
    ("ocrbench", "answer"),
  ],
)
@hypothesis.settings(max_examples=100, deadline=None, derandomize=True)
@hypothesis.given(data=strategies.data())
def test_the_order_of_golds_is_nothing(metric, key, data):
  words = strategies.sampled_from(
    ["stop", "Stop!", "stop sign", "two", "2", "x"]
  )
  golds = data.draw(strategies.lists(words, min_size=10, max_size=10))
  text = data.draw(words)
  for protocol in scoring.PROTOCOLS:
    of = lambda some, protocol=protocol: scoring.score(
      metric, text, REFERENCES[metric] | {key: some}, protocol
    )
    assert of(golds) == of(data.draw(strategies.permutations(golds)))


# --- Equal answers, numbers, similar answers, contained answers.


@pytest.mark.parametrize(
  "text, gold, default, lmms",
  [
    ("Yes.", "yes", 1, 1),
    ("yes..", "yes", 1, 1),
    ("ye-s", "yes", 0, 1),
    ("yes, it is", "yes", 0, 0),
    ("t-shirt", "t-shirt", 1, 1),
  ],
)
def test_gqa(text, gold, default, lmms):
  assert value("gqa", text, answer=gold) == default
  assert value("gqa", text, "lmms", answer=gold) == lmms


@pytest.mark.parametrize("protocol", scoring.PROTOCOLS)
@pytest.mark.parametrize(
  "text, gold, right",
  [
    ("21", "20", 1),  # 5 % exactly
    ("21.01", "20", 0),
    ("-19", "-20", 1),
    ("19", "-20", 0),
    ("5%", "0.05", 1),
    ("5%", "5", 0),
    ("0", "0", 1),
    ("0.0", "0", 0),  # 0 is compared as text
    ("1,000", "1000", 0),  # no number, so as text
    ("1,000", "1,000", 1),
    ("1000", "1,000", 0),
    ("no", "NO", 1),
    ("no.", "no", 0),
  ],
)
def test_chartqa(text, gold, right, protocol):
  assert value("chartqa", text, protocol, answer=gold) == right


@pytest.mark.parametrize(
  "text, gold, similar",
  [
    ("Stop  Sign", "stop sign", 1),
    ("abcd", "abxy", 0.5),  # exactly the threshold
    ("abcde", "abxyz", 0),
    ("abcde", "abcdx", 0.8),
  ],
)
def test_anls(text, gold, similar):
  assert value("anls", text, answers=["zzzzzz", gold]) == similar


def test_lmms_divides_by_the_length_as_written():
  # Two of 10 characters with its blanks, of 5 without.
  text, golds = "a   b    c", ["a x y"]
  assert value("anls", text, answers=golds) == pytest.approx(0.6)
  assert value("anls", text, "lmms", answers=golds) == pytest.approx(0.8)


@pytest.mark.parametrize(
  "a, b, distance",
  [("", "", 0), ("", "abc", 3), ("kitten", "sitting", 3), ("ab", "ba", 2)],
)
def test_levenshtein(a, b, distance):
  assert anls.levenshtein(a, b) == anls.levenshtein(b, a) == distance


@pytest.mark.parametrize(
  "text, dataset, gold, right",
  [
    ("It says STOP here", "SVT", "stop", 1),
    ("st op", "SVT", "stop", 0),
    ("new\nyork", "SVT", "New York", 1),
    ("stop", "SVT", ["halt", "stop"], 1),
    ("halt", "SVT", ["stop"], 0),
    ("x ^ 2\n+ 1", "HME100k", "x^2 + 1", 1),
    ("X ^ 2 + 1", "HME100k", "x^2 + 1", 0),
  ],
)
def test_ocrbench(text, dataset, gold, right):
  reference = {"dataset": dataset, "answer": gold, "question_type": "x"}
  assert value("ocrbench", text, **reference) == right
  assert value("ocrbench", text, "lmms", **reference) == right


def test_full_width_is_half_width_to_lmms_alone():
  reference = {"dataset": "SVT", "answer": "AB 1"}
  assert value("ocrbench", "ＡＢ　１", **reference) == 0
  assert value("ocrbench", "ＡＢ　１", "lmms", **reference) == 1


# --- Yes or no.


@pytest.mark.parametrize(
  "text, default, lmms",
  [
    ("Yes", "yes", "yes"),
    ("NO", "no", "no"),
    ("Yes, it is", "yes", "yes"),
    ("Not sure", "no", "no"),
    ("**Yes**", "other", "other"),
    ("It is, yes", "other", "other"),
    ("y", "other", "yes"),
    ("N.", "other", "no"),
    ("...yes", "other", "yes"),
  ],
)
def test_mme_label(text, default, lmms):
  assert parsed("mme_label", text) == default
  assert parsed("mme_label", text, "lmms") == lmms


@pytest.mark.parametrize(
  "text, default, lmms",
  [
    ("No", "no", "no"),
    ("yes", "yes", "yes"),
    ("No, there is none", "no", "other"),
    ("There is not", "no", "other"),
    ("There is. No", "yes", "other"),  # the first sentence alone
    ("Nothing there", "yes", "other"),  # not a word No
    ("NO", "yes", "no"),
    ("who knows", "yes", "other"),
  ],
)
def test_pope_label(text, default, lmms):
  assert parsed("pope_label", text) == default
  assert parsed("pope_label", text, "lmms") == lmms


# --- MathVista.


@pytest.mark.parametrize(
  "text, choice",
  [
    ("(b) 12 cm", "5 cm"),  # a bracketed letter comes first
    ("It is (C), not (A)", "120 degrees"),
    ("B", "5 cm"),
    ("B. 12 cm", "5 cm"),
    ("5 cm", "5 cm"),
    ("120 degree", "120 degrees"),  # the nearest
    ("f(x) 12 cm", "12 cm"),  # no option has that letter
  ],
)
def test_mathvista_choices(text, choice):
  assert scoring.score("mathvista", text, CHOICE) == scoring.Verdict(
    float(choice == "5 cm"), choice
  )


@pytest.mark.parametrize(
  "answer_type, precision, text, answer",
  [
    ("integer", None, "3.9", "3"),
    ("integer", None, "-3.9", "-3"),
    ("integer", None, "1e2", "100"),
    ("integer", None, "It is 3", None),
    ("integer", None, "inf", None),
    ("float", 1.0, "0.55", "0.6"),  # of parquet
    ("float", 2, "2", "2.0"),
    ("float", 1, "about 2", None),
    ("list", None, "[1, 2]", "[1, 2]"),
    ("list", None, "[1,2]", "[1,2]"),
  ],
)
def test_mathvista_numbers(answer_type, precision, text, answer):
  reference = {
    "question_type": "free_form",
    "answer_type": answer_type,
    "precision": precision,
    "choices": None,
    "answer": "[1, 2]" if answer_type == "list" else str(answer),
  }
  verdict = scoring.score("mathvista", text, reference)
  right = answer is not None and answer == reference["answer"]
  assert verdict == scoring.Verdict(float(right), answer)


def test_lmms_reads_no_float_with_a_precision_of_parquet():
  reference = {**CHOICE, "question_type": "free_form", "answer_type": "float"}
  reference |= {"answer": "0.5", "precision": 1.0}
  assert scoring.score("mathvista", "0.5", reference).value == 1
  assert parsed("mathvista", "0.5", "lmms", **reference) is None
  assert value("mathvista", "0.5", "lmms", **reference | {"precision": 1}) == 1


def test_an_empty_prediction_is_the_shortest_choice_officially():
  assert scoring.score("mathvista", "", CHOICE) == scoring.Verdict(0.0, None)
  assert parsed("mathvista", "", "lmms") == "5 cm"
  assert mathvista.official_default(CHOICE) == 1
  assert mathvista.official_default({**CHOICE, "answer": "12 cm"}) == 0
  free = {**CHOICE, "question_type": "free_form", "answer_type": "integer"}
  assert mathvista.official_default(free) == 0


def test_exact_is_equal_to_the_letter():
  assert value("exact", " top left\n") == 1
  for text in ("Top left", "top left.", "top  left", "top"):
    assert value("exact", text) == 0
