"""Which option a prediction names, and MMMU's open questions, by hand."""

import pytest

from gaze_jax.evals import scoring

FOUR = ["red", "green", "blue", "a red car"]


def parsed(metric, text, protocol="default", **reference):
  return scoring.score(metric, text, reference, protocol).parsed


# --- RealWorldQA.


@pytest.mark.parametrize(
  "text, letter, lmms",
  [
    ("A", "A", "A"),
    ("A.", "A", "A"),
    ("(A)", "A", "A"),
    ("A. Left", "A", "A"),
    ("The answer is A", "A", "A"),
    ("The answer is B, not A", "B", "A"),  # the first
    ("DNA", None, "A"),  # within a word
    ("a", None, None),
    ("E", None, None),
  ],
)
def test_realworldqa_letters(text, letter, lmms):
  assert parsed("realworldqa", text, answer="B") == letter
  assert parsed("realworldqa", text, "lmms", answer="B") == lmms
  right = scoring.score("realworldqa", text, {"answer": "B"}).value
  assert right == (letter == "B")


@pytest.mark.parametrize(
  "text, gold, right",
  [
    ("downhill.", "Downhill", 1),
    ("Downhill", "downhill.", 1),
    ("2", "two", 0),  # number words stay words
    ("It is downhill", "Downhill", 0),
  ],
)
def test_realworldqa_texts(text, gold, right):
  assert scoring.score("realworldqa", text, {"answer": gold}).value == right


# --- MMVP, ScienceQA, Video-MME.


@pytest.mark.parametrize(
  "text, letter, lmms",
  [
    ("b", "B", "B"),
    ("B.", "B", "B"),
    ("(b)", "B", "B"),
    ("B is right", "B", "B"),
    ("B. It is open", "B", "B"),
    ("The answer is a", "A", "A"),
    ("the answer is (B).", "B", "B"),
    ("It looks left (b)", "B", "B"),
    ("Black", None, "B"),  # an option's text
    ("The panda", None, "A"),  # the end of a word
    ("the answer is about", None, "A"),
    ("C", None, None),
  ],
)
def test_mmvp(text, letter, lmms):
  gold = {"Correct Answer": "(b)"}
  for protocol, expected in (("default", letter), ("lmms", lmms)):
    verdict = scoring.score("mmvp", text, gold, protocol)
    assert verdict == scoring.Verdict(float(expected == "B"), expected)


@pytest.mark.parametrize(
  "text, letter, lmms",
  [
    ("B", "B", "B"),
    ("B. green", "B", "B"),
    ("I say so. The answer is B.", "B", None),
    ("The answer is B", None, None),
    ("The answer is B. The answer is B.", None, None),
    ("B.", None, "B"),
    ("b", None, "B"),
    ("(B)", None, None),
    ("green", None, None),
    ("D", None, None),  # out of range
    ("D. x", None, None),
    ("The answer is D.", None, None),
    ("ABC", None, None),
  ],
)
def test_scienceqa(text, letter, lmms):
  reference = {"choices": FOUR[:3], "answer": 1}
  for protocol, expected in (("default", letter), ("lmms", lmms)):
    verdict = scoring.score("scienceqa", text, reference, protocol)
    assert verdict == scoring.Verdict(float(expected == "B"), expected)


@pytest.mark.parametrize(
  "text, letter",
  [
    ("C", "C"),
    ("The best answer is C", "C"),
    ("The correct answer is (C).", "C"),
    ("The answer is C", "C"),
    ("Best option: (C)", "C"),  # else the first would be the B of Best
    ("Best answer: C", "C"),
    ("Can not say", "C"),  # in a word too
    ("it is c", ""),
    ("one two three four five six seven eight nine ten eleven", ""),
    ("one two three four five six seven eight nine ten then D", "D"),
    ("E", ""),
  ],
)
def test_videomme_letter(text, letter):
  assert parsed("videomme_letter", text) == letter


@pytest.mark.parametrize(
  "text, letter",
  [
    ("B", "B"),
    ("'B.'", "B"),
    ("The answer is B so not A, fine", "A"),  # the last after a phrase
    ("DNA is", "A"),
    ("A cat is there", "A"),
    ("it is (C) or D.", "D"),  # the end counts more than brackets
    ("say (C) or D: so", "C"),
    ("D x (C) y", "D"),  # the beginning counts most
    ("xBxAxBx", "B"),
    ("", ""),
    ("none", ""),
  ],
)
def test_the_extractor_that_lmms_eval_shares(text, letter):
  assert parsed("videomme_letter", text, "lmms") == letter


# --- MMMU.


@pytest.mark.parametrize(
  "text, letter, lmms",
  [
    ("B", "B", "B"),
    ("B.", "B", "B"),
    ("!?B;:", None, None),  # marks go in one order, once
    (";:B?!", "B", "B"),
    ("(B) and then (A)", "A", "A"),  # the last
    ("A or (B) or C", "B", "B"),  # brackets first
    ("A or B", "B", "B"),
    ("B. green", None, "B"),
    ("DNA is", None, "A"),
    ("green", None, None),
    ("I am sure that it is green", "B", "B"),
    ("it is not red but rather green", "B", "B"),
    ("now I say it's green", None, None),  # five words
    ("E", None, None),
  ],
)
def test_mmmu_multiple_choice(text, letter, lmms):
  assert parsed("mmmu_mc", text, options=FOUR) == letter
  assert parsed("mmmu_mc", text, "lmms", options=FOUR) == lmms


def test_letters_follow_the_number_of_options():
  nine = [f"option {i}" for i in range(9)]
  assert parsed("mmmu_mc", "I", options=nine) == "I"
  assert parsed("mmmu_mc", "I", options=nine[:8]) is None


@pytest.mark.parametrize(
  "text, gold, right",
  [
    ("3.14159", "3.14", 1),  # rounded to 2
    ("The result is 1,234.", "1234", 1),
    ("1,234 of them", "1234", 1),
    ("about 1.5e3 in all", "1500", 1),
    ("5 or 7", "7", 1),  # all numbers
    ("x = 6", "6", 1),
    ("3 = 6", "3", 0),
    ("x = 6\nso y", "6", 0),  # "=" counts in the last line alone
    ("I add 6. So it is seven", "six", 0),
    ("The answer is the red house", "red house", 1),  # within a candidate
    ("It could be red so it is blue", "red", 0),  # the shortest tail
    ("It is red\nand so it is blue", "red", 1),  # each line has one
    ("RED", "red", 1),
    ("a", "a", 1),
    ("cat", "a", 0),  # one character is padded
    ("a cat", "a", 1),
    ("It is :", "is :", 1),  # a trivial tail is none, so all of it
    ("blue", "['red', 'blue']", 1),
    ("5.0", "['red', '5']", 1),
    ("green", "['red', 'blue']", 0),
    ("say [1, 2", "[1, 2", 1),
    ("say [x]", "[x]", 1),
  ],
)
def test_mmmu_open(text, gold, right):
  assert scoring.score("mmmu_open", text, {"answer": gold}).value == right


def test_a_list_of_golds_is_text_to_lmms():
  gold = "['red', 'blue']"
  assert scoring.score("mmmu_open", "blue", {"answer": gold}, "lmms").value == 0
  listed = {"answer": ["red", "blue"]}
  for protocol in scoring.PROTOCOLS:
    assert scoring.score("mmmu_open", "blue", listed, protocol).value == 1


# --- Videos: EgoSchema, NExT-QA, LongVideoBench, MLVU.


@pytest.mark.parametrize(
  "text, letter",
  [
    ("B", "B"),
    ("B.", "B"),
    ("B. green", "B"),
    ("B: green", "B"),
    ("(B)", "B"),
    ("B) green", "B"),
    ("The answer is B", "B"),
    ("the answer is (B).", "B"),
    ("I would say (B) here", "B"),
    ("A. C talks to B", "A"),
    ("as I see it all is Green", "B"),
    ("all I see is green.", None),  # five words
    ("as I see it a red car comes", None),  # red, and a red car
    ("b", None),
    ("(b)", None),
    ("green", None),
    ("it is green", None),
    ("(A) or (B)", None),
    ("A. red, or (B)", None),
    ("The answer is A. No, the answer is B.", None),
    ("who knows", None),
    ("A red car", None),
    ("DNA", None),
    ("E", None),  # there are four
  ],
)
def test_mc5(text, letter):
  assert parsed("mc5", text, options=FOUR) == letter


@pytest.mark.parametrize(
  "dataset, text, letter",
  [
    ("nextqa", "A or B", "B"),  # the last
    ("egoschema", "(A) or (B)", "A"),  # the first
    ("longvideobench", "The best answer is (D)", "D"),
    ("longvideobench", "I Can", "C"),
    ("ai2d", "B. green", "B"),
    ("ai2d", "(b)", "B"),
    ("ai2d", "B green", None),
    ("seed", "blue", "B"),  # the first character
    ("seed", "(B)", None),
  ],
)
def test_mc5_of_lmms_goes_by_data_set(dataset, text, letter):
  reference = {"options": FOUR, "dataset": dataset}
  assert parsed("mc5", text, "lmms", **reference) == letter


def test_mc5_of_lmms_is_nextqas_without_a_data_set():
  assert parsed("mc5", "A or B", "lmms", options=FOUR) == "B"


@pytest.mark.parametrize(
  "text, letter",
  [
    ("B", "B"),
    ("B.", "B"),
    ("(B) Red", "B"),
    ("B) Red", "B"),
    ("(A) no, (B)", "B"),  # the last
    ("A) no, B) Red", "B"),
    ("Red", None),
    ("A red car", None),
    ("b", None),
    ("E", None),
  ],
)
def test_mlvu(text, letter):
  reference = {"candidates": FOUR, "answer": "green"}
  expected = scoring.Verdict(float(letter == "B"), letter)
  assert scoring.score("mlvu", text, reference) == expected


@pytest.mark.parametrize("protocol", scoring.PROTOCOLS)
def test_mlvus_odd_golds(protocol):
  twice = {"candidates": ["x", "y", "x", "z"], "answer": "x"}
  right = [scoring.score("mlvu", x, twice, protocol).value for x in "ABCD"]
  assert right == [1, 0, 1, 0]
  none = {"candidates": ["x", "y"], "answer": "z"}
  assert scoring.score("mlvu", "A", none, protocol) == scoring.Verdict(0.0, "A")


# --- MMBench, CV-Bench.


@pytest.mark.parametrize(
  "text, letter, lmms",
  [
    ("B", "B", "B"),
    ("B.", "B", "B"),
    ("(B)", "B", "B"),
    ("B. green", "B", "B"),
    ("The answer is B", "B", "B"),
    ("the one is B", None, "B"),  # alone among the words
    ("a B or a C", None, "C"),  # two: the extractor that tasks share
    ("A B.", None, "A"),  # the letter with nothing around it first
    ("A man in B.", None, "B"),  # more than three words: an article
    ("no, A", None, "A"),
    ("(A) or B", "A", "B"),
    ("A, B.", None, "B"),  # a full stop before a comma
    ("so :C (D)x so", "D", "C"),
    ("so (C) (D)x so", None, "C"),
    ("it A B.", None, "A"),  # three words: no article
    ("say GREY", None, "D"),  # in any case
    ("green", None, "B"),  # one option's text
    ("red and blue", None, None),
    ("I am sure that it is green", "B", "B"),
    ("E", None, "E"),
    ("Dnot", None, "D"),
    ("b", None, None),
  ],
)
def test_mmbench(text, letter, lmms):
  reference = {"options": FOUR[:3] + ["Grey"], "answer": "B"}
  for protocol, expected in (("default", letter), ("lmms", lmms)):
    verdict = scoring.score("mmbench", text, reference, protocol)
    assert verdict == scoring.Verdict(float(expected == "B"), expected)


@pytest.mark.parametrize(
  "text, count, letter",
  [
    ("it is red", 2, "A"),
    ("a banana", 3, "D"),  # in which "nan" is
    ("a banana", 2, None),  # C and D
    ("red banana", 3, None),
    ("red banana", 4, "A"),
    ("D", 2, "D"),
  ],
)
def test_an_option_that_is_not_there_is_nan_to_lmms(text, count, letter):
  reference = {"options": [*FOUR[:3], "grey"][:count], "answer": "A"}
  assert parsed("mmbench", text, "lmms", **reference) == letter


@pytest.mark.parametrize(
  "text, letter, lmms",
  [
    ("B", "B", "B"),
    ("(B)", "B", "B"),
    ("B. green", "B", "B"),
    ("( B", None, "B"),
    ("b", None, "B"),  # either case
    ("(b) green", None, "B"),
    ("The answer is (B)", "B", "T"),  # the first character
    ("blue", None, "B"),
    ("I see (B)", "B", "I"),
    ("((\n b)", None, "B"),
    ("5 B", None, None),
    ("'B'", None, None),
    ("E", None, "E"),
  ],
)
def test_cv_bench(text, letter, lmms):
  reference = {"choices": FOUR, "answer": "(B)"}
  for protocol, expected in (("default", letter), ("lmms", lmms)):
    verdict = scoring.score("cv_bench", text, reference, protocol)
    assert verdict == scoring.Verdict(float(expected == "B"), expected)


# --- What no rule reads.


@pytest.mark.parametrize(
  "metric, text, protocol, unparsed",
  [
    ("videomme_letter", "it is c", "default", True),
    ("videomme_letter", "C", "default", False),
    ("mme_label", "Maybe", "default", True),
    ("mme_label", "yes", "default", False),
    ("pope_label", "Maybe", "default", False),  # LLaVA's rule says yes
    ("pope_label", "Maybe", "lmms", True),
    ("mmmu_mc", "who knows", "default", True),
    ("mc5", "A", "default", False),
    ("mc5", "", "lmms", True),
    ("tempcompass_yes_no", "He does", "default", True),
    ("gqa", "other", "default", False),  # words that stand for themselves
    ("gqa", "", "default", True),
    ("gqa", "", "lmms", False),  # which compares the empty text
  ],
)
def test_what_is_unparsed(metric, text, protocol, unparsed):
  reference = {"options": FOUR, "answer": "B"}
  verdict = scoring.score(metric, text, reference, protocol)
  found = scoring.is_unparsed(metric, verdict)
  assert found is unparsed
