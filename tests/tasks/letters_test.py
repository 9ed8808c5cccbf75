"""Picture tasks that are answered by a letter, and MathVista: their items.

Each is written as it is published, and read; what is asked stands here.
"""

import pytest

from gaze_jax.evals import scoring
from gaze_jax.tasks import registry
from gaze_jax.tasks import task as task_lib
from tests.tasks import expected_items
from tests.tasks import published
from tests.tasks import published_letters
from tests.tasks.expected_items import Expected

WRITERS = published_letters.WRITERS
_LETTER = "\nAnswer with the option's letter from the given choices directly."
_ALONE = (
  "Note: You only need to respond with {} without providing any additional"
  " information.\n\n"
)
_STEPS = "\nHint: Please answer the question {}, at the end."


def _letter(name, shown, prompt, right, wrong):
  return Expected(name, shown, prompt + _LETTER, right, wrong)


EXPECTED = {
  "realworldqa": [
    Expected(
      *("0", "red"),
      "Which way?\n\nA. Left\nB. Right\nPlease answer directly with only the"
      " letter of the correct option and nothing else.",
      *("B", "A"),
    ),
    Expected(
      *("1", "blue", "How many lanes? Please answer with a number."),
      *("3", "three"),
    ),
    Expected("2", "red", "Are we going up or down?", "downhill.", "down"),
  ],
  # Rows stand as in the file; pairs are by Index.
  "mmvp": [
    _letter("2", "red", "Is it open?\nA. Yes\nB. No", "(B)", "A"),
    _letter("1", "blue", "Is it open?\nA. Yes\nB. No", "a", "b"),
    _letter("3", "green", "What is f?\nA. f(x) (left)\nB. g, or (c)", "A", "B"),
    _letter(
      *("4", "green", 'Which one, "x"?\nA. f(x) (left)\nB. g, or (c)'),
      *("B.", "A."),
    ),
  ],
  "scienceqa_img": [
    _letter(
      *("0", "red", "Which ocean is it?\nA. Arctic\nB. Indian\nC. Pacific"),
      *("C", "Pacific"),
    ),
    _letter(
      *("1", "blue"),
      "Context: Frogs are\namphibians.\nSelect the mammal.\nA. frog\nB. bat\n"
      "C. ant\nD. hen\nE. asp",
      *("B. bat", "E"),
    ),
  ],
  "mmmu_val": [
    Expected(
      *("validation_Art_Theory_1", "red"),
      f"<image> Who painted it?\nA. Monet\nB. Vermeer (the elder)\n{_LETTER}",
      *("(B)", "A"),
    ),
    # In the order in which they are named; options have pictures too.
    Expected(
      *("validation_Art_Theory_2", "green blue yellow"),
      "Which is like <image>?\nA. <image>\nB. <image>\nC. it's none\n"
      f"{_LETTER}",
      *("A", "C"),
    ),
    # Named again, it is not shown again.
    Expected(
      *("validation_Math_9", "white black"),
      "Compare <image> with <image>. What is in image 2?\n\nAnswer the question"
      " using a single word or phrase.",
      *("8", "nine"),
    ),
    Expected(
      *("validation_Math_10", "red"),
      "Find the interval of <image>\n\nAnswer the question using a single word"
      " or phrase.",
      *("[0, 1)", "0, 2"),
    ),
  ],
  "ai2d": [
    _letter(
      *("0", "red", "Which label is the leaf?\nA. A\nB. C\nC. B\nD. F"),
      *("C.", "B."),
    ),
    _letter(
      *("1", "blue"),
      "What eats grass?\nA. hare\nB. fox (red)\nC. owl\nD. elk",
      *("A", "hare"),
    ),
    _letter(
      *("2", "red"),
      "What is shown?\nA. a pond\nB. a wood\nC. a sea\nD. none",
      *("D", "A"),
    ),
  ],
  # A row about a video is left out.
  "seed": [
    _letter(
      *("101669", "red"),
      "How many are there?\nA. One\nB. Two\nC. Three\nD. Four",
      *("C", "Three"),
    ),
    _letter(
      *("101670", "yellow"),
      "How many are there?\nA. Zero\nB. One\nC. Two\nD. Many",
      *("A", "B"),
    ),
    _letter(
      *("43", "green"),
      "How many are there?\nA. (a)\nB. (b)\nC. (c)\nD. (d)",
      *("D", "A"),
    ),
  ],
  # Rotations of a question follow it.
  "mmbench_en_dev": [
    _letter(
      *("241", "red"),
      "Where is it? There are several options:\nA. up\nB. down\nC. in\n"
      "D. out\n",
      *("A", "B"),
    ),
    _letter(
      *("1000241", "red"),
      "Where is it? There are several options:\nA. down\nB. in\nC. out\n"
      "D. up\n",
      *("D", "A"),
    ),
    _letter(
      *("252", "blue"),
      "They play. Who wins? There are several options:\nA. He\nB. She\n",
      *("B", "A"),
    ),
  ],
  "cv_bench": [
    Expected(
      *("0", "red"),
      _ALONE.format("A, B, C")
      + "How many? Select from the following choices.\n(A) 1\n(B) 0\n(C) 2",
      *("(C)", "(A)"),
    ),
    Expected(
      *("1", "blue"),
      _ALONE.format("A, B")
      + "Where? Select from the following choices.\n(A) above\n(B) below",
      *("A", "B"),
    ),
    Expected(
      *("1438", "green"),
      _ALONE.format("A, B")
      + "Which is closer? Select from the following choices.\n(A) bin\n(B) bed",
      *("B", "A"),
    ),
  ],
  "mathvista_format": [
    _letter(
      "1", "red", "Which is it?\nA. 6 cm\nB. 12 cm\nC. 5 cm", "(B)", "(A)"
    ),
    Expected(
      *("2", "green"),
      "How many cats?\nAnswer the question using a single integer number.",
      *("4", "4 cats"),
    ),
    Expected(
      *("3", "green"),
      "How long is it? (Unit: m)\nAnswer the question using a single"
      " floating-point number with one decimal place.",
      *("1.21", "1.3"),
    ),
    Expected(
      *("8", "blue"),
      "What is the cost? (Unit: $)\nAnswer the question using a single"
      " floating-point number with two decimal places.",
      *("1.45", "1.4"),
    ),
    Expected(
      *("5", "red", "Which years?\nAnswer the question using a Python list."),
      *("[2007, 2008]", "[2007]"),
    ),
    _letter("6", "blue", "Is it (A)?\nA. Yes\nB. No", "no", "yes"),
  ],
  "mathvista_cot": [
    Expected(
      *("1", "red"),
      "Question: Which is it?\nChoices:\n(A) 6 cm\n(B) 12 cm\n(C) 5 cm"
      + _STEPS.format(
        "and provide the correct option letter, e.g., A, B, C, D"
      ),
      *("(B)", "(A)"),
    ),
    Expected(
      *("2", "green"),
      "Question: How many cats?"
      + _STEPS.format(
        "requiring an integer answer and provide the final value, e.g., 1, 2, 3"
      ),
      *("4", "five"),
    ),
    Expected(
      *("3", "green"),
      "Question: How long is it? (Unit: m)"
      + _STEPS.format(
        "requiring a floating-point number with one decimal place and provide"
        " the final value, e.g., 1.2, 1.3, 1.4"
      ),
      *("1.2", "1.3"),
    ),
    Expected(
      *("8", "blue"),
      "Question: What is the cost? (Unit: $)"
      + _STEPS.format(
        "requiring a floating-point number with two decimal places and provide"
        " the final value, e.g., 1.23, 1.34, 1.45"
      ),
      *("1.45", "1.54"),
    ),
    Expected(
      *("5", "red"),
      "Question: Which years?"
      + _STEPS.format(
        "requiring a Python list as an answer and provide the final list, e.g.,"
        " [1, 2, 3], [1.2, 1.3, 1.4]"
      ),
      *("[2007, 2008]", "2007"),
    ),
    Expected(
      *("6", "blue"),
      "Question: Is it (A)?\nChoices:\n(A) Yes\n(B) No"
      + _STEPS.format(
        "and provide the correct option letter, e.g., A, B, C, D"
      ),
      *("(B)", "(A)"),
    ),
  ],
}
# ScienceQA's table of all rows numbers these too; JSON has ids of its own.
_IDS = {
  ("scienceqa_img", "full"): ("0", "2"),
  ("scienceqa_img", "official"): ("11", "5"),
}
CASES = [(name, layout) for name, forms in WRITERS.items() for layout in forms]


def expected_of(name, layout):
  ids = _IDS.get((name, layout)) or [one.id for one in EXPECTED[name]]
  some = zip(EXPECTED[name], ids, strict=True)
  return [one._replace(id=new) for one, new in some]


def test_every_picture_task_is_written_and_has_its_items_here():
  assert EXPECTED.keys() == WRITERS.keys()
  written = WRITERS.keys() | published.WRITERS.keys()
  assert written == {x for x, task in registry.TASKS.items() if not task.video}


@pytest.mark.parametrize("name, layout", CASES)
def test_items_are_as_they_were_published(name, layout, tmp_path):
  """Ids, pictures, prompts; and of each a right and a wrong answer."""
  WRITERS[name][layout](tmp_path)
  expected_items.check(name, tmp_path, expected_of(name, layout))


FIELDS = {
  "mmvp": ("Index", "Question", "Options", "Correct Answer"),
  "scienceqa_img": ("question", "choices", "answer", "hint"),
  "mmmu_val": ("id", "question", "options", "answer", "question_type"),
  "mathvista_format": (
    *("pid", "question", "choices", "unit", "precision", "answer"),
    *("question_type", "answer_type"),
  ),
}


@pytest.mark.parametrize("name", FIELDS)
def test_all_layouts_have_the_same_fields(name, tmp_path):
  """Those that prompts, scorers, totals and clusters read."""
  read = []
  for layout, write in WRITERS[name].items():
    write(tmp_path / layout)
    _, items = expected_items.of(name, tmp_path / layout)
    read.append([[item.fields[key] for key in FIELDS[name]] for item in items])
  assert all(one == read[0] for one in read[1:])


# --- Traps of single tasks.


def test_mathvistas_precision_is_a_float_or_a_whole_number(tmp_path):
  """Both are read; lmms-eval calls no float answer right of Parquet's."""
  kinds, lmms = {}, {}
  for layout, write in WRITERS["mathvista_format"].items():
    write(tmp_path / layout)
    task, items = expected_items.of("mathvista_format", tmp_path / layout)
    item = next(x for x in items if x.id == "3")
    kinds[layout] = type(item.fields["precision"])
    assert expected_items.value(task, item, "1.2") == 1
    lmms[layout] = expected_items.value(task, item, "1.2", "lmms")
  assert kinds == {"parquet": float, "official": int}
  assert lmms == {"parquet": 0, "official": 1}


def test_lmms_has_rules_of_its_own_for_ai2d_and_seed(tmp_path):
  """A small letter; and the first one of a word, of any case."""
  for name, text in (("ai2d", "c"), ("seed", "can't say")):
    WRITERS[name]["parquet"](tmp_path)
    task, items = expected_items.of(name, tmp_path)
    assert expected_items.value(task, items[0], text) == 0
    assert expected_items.value(task, items[0], text, "lmms") == 1


def test_options_of_mmbench_that_are_nan_are_none(tmp_path):
  WRITERS["mmbench_en_dev"]["parquet"](tmp_path)
  task, items = expected_items.of("mmbench_en_dev", tmp_path)
  assert items[2].fields["options"] == ["He", "She"]
  assert expected_items.value(task, items[2], "C") == 0


def test_golds_of_mmmu_that_are_lists_are_lists(tmp_path):
  WRITERS["mmmu_val"]["merged"](tmp_path)
  task, items = expected_items.of("mmmu_val", tmp_path)
  golds = [task.reference(item.fields)["answer"] for item in items]
  assert golds == ["B", "[0, 1)", "A", ["8", "eight"]]
  for protocol in scoring.PROTOCOLS:
    assert expected_items.value(task, items[3], "It is eight", protocol) == 1


def test_lists_of_mmmu_that_are_not_of_texts(tmp_path):
  """Numbers without quotes are read as what stands there."""
  path = tmp_path / "mmmu" / "data" / "validation-0.parquet"
  rows = [
    {"question_type": "multiple-choice", "options": "[1, 2.50, None]"}
    | {"id": "validation_Math_1", "question": "?", "answer": "B"},
    {"question_type": "open", "options": "[]"}
    | {"id": "validation_Math_2", "question": "?", "answer": "[4, '5']"},
  ]
  published_letters.mmmu_table(path, rows)
  task, items = expected_items.of("mmmu_val", tmp_path)
  assert items[0].fields["options"] == ["1", "2.5", "None"]
  long = "I would say that it is just 2.5"
  assert expected_items.value(task, items[0], long) == 1
  assert expected_items.value(task, items[1], "4") == 1


def test_mmvps_header_may_be_right(tmp_path):
  published_letters.mmvp_official(tmp_path, header="Index")
  expected_items.check("mmvp", tmp_path, EXPECTED["mmvp"])


# --- Figures.


@pytest.mark.parametrize("name, layout", CASES)
def test_right_answers_give_the_largest_headline(name, layout, tmp_path):
  WRITERS[name][layout](tmp_path)
  expected = expected_of(name, layout)
  assert expected_items.figures(name, tmp_path, expected)[0] == 1
  every = {one.id for one in expected}
  assert expected_items.figures(name, tmp_path, expected, wrong=every)[0] == 0


def figures(name, root, wrong):
  layout = next(iter(WRITERS[name]))
  WRITERS[name][layout](root)
  return expected_items.figures(name, root, EXPECTED[name], wrong)


def test_a_pair_of_mmvp_is_right_as_a_whole(tmp_path):
  pairs, of = figures("mmvp", tmp_path, {"1"})
  assert pairs == 0.5 and of["accuracy"] == 0.75


def test_a_question_of_mmbench_is_right_in_all_rotations(tmp_path):
  circular, of = figures("mmbench_en_dev", tmp_path, {"1000241"})
  assert circular == 0.5 and of["vanilla"] == 1


def test_cv_bench_is_the_mean_of_two_and_three_dimensions(tmp_path):
  mean, of = figures("cv_bench", tmp_path, {"0"})
  assert (mean, of["2D"], of["3D"]) == (0.75, 0.5, 1)


def test_mmmu_is_by_subject_as_the_id_has_it(tmp_path):
  mean, of = figures("mmmu_val", tmp_path, {"validation_Math_9"})
  assert mean == 0.75 and of["by_subject"] == {"Art_Theory": 1, "Math": 0.5}


# --- Clusters.


CLUSTERS = {
  "realworldqa": ["red", "red", "blue"],
  "scienceqa_img": ["red", "blue"],
  "mmmu_val": ["red", "red", "green blue yellow", "white black"],
  "ai2d": ["red", "red", "blue"],
  "mmvp": ["pair 0", "pair 0", "pair 1", "pair 1"],
  "mmbench_en_dev": ["241", "241", "252"],
  "seed": ["data-101669", "data-101670", "data-43"],
  **dict.fromkeys(
    ("mathvista_format", "mathvista_cot"),
    [f"images/{n}.jpg" for n in (1, 1, 2, 2, 3, 3)],
  ),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_clusters(name, tmp_path):
  """Pairs, rotations of a question, pictures by name or by their bytes."""
  layout = next(iter(WRITERS[name]))
  WRITERS[name][layout](tmp_path)
  task, items = expected_items.of(name, tmp_path)
  found = expected_items.clusters(task, items)
  assert found == CLUSTERS.get(name, [one.id for one in EXPECTED[name]])


@pytest.mark.parametrize("name, count", [("mmvp", 2), ("mmbench_en_dev", 2)])
def test_a_limit_takes_whole_clusters(name, count, tmp_path):
  WRITERS[name]["parquet"](tmp_path)
  task, items = expected_items.of(name, tmp_path)
  assert task_lib.limited(items, 1) == items[:count]
