"""Picture tasks that are answered in words, or by yes or no: their items.

Each is written as it is published, and read; what is asked stands here.
"""

import pytest

from gaze_jax.tasks import task as task_lib
from tests.tasks import expected_items
from tests.tasks import published
from tests.tasks.expected_items import Expected

_SHORT = "\nAnswer the question using a single word or phrase."
_WORD = "\nAnswer the question with a single word."


def _short(name, shown, question, right, wrong):
  return Expected(name, shown, question + _SHORT, right, wrong)


def _pope(category):
  """The three questions of a split."""
  return {
    "1": _short(
      *(f"{category} 1", "red", "Is there a snowboard in the image?"),
      *("Yes", "No"),
    ),
    "2": _short(
      *(f"{category} 2", "blue", "Is there a dining table in the image?"),
      *("No", "Yes"),
    ),
    "3": _short(
      *(f"{category} 3", "red", "Is there a car in the image?", "no", "yes"),
    ),
  }


_SPLITS = [_pope(name) for name in ("adversarial", "popular", "random")]

# Questions about one picture follow each other.
EXPECTED = {
  "gqa": [
    _short("201", "red", "Is the sky blue?", "No.", "yes"),
    _short("203", "red", "What color is the car?", "red", "a red car"),
    _short("202", "green", "What is on the table?", "Remote control", "remote"),
    _short("204", "blue", "Who is wearing a hat?", "man", "woman"),
  ],
  # The rest of the question becomes lower-case, names too.
  "textvqa": [
    _short("34602", "red", "What does mr. smith's sign say?", "Stop!", "go"),
    _short("34604", "red", "Is this a stop sign", "yes", "no"),
    _short("34603", "green", "What is the number on the bus?", "12", "13"),
  ],
  "textvqa_ocr": [
    _short(
      "34602",
      "red",
      "What does mr. smith's sign say?\nReference OCR token: STOP, ALL",
      *("Stop!", "go"),
    ),
    _short(
      "34604",
      "red",
      "Is this a stop sign\nReference OCR token: STOP, ALL",
      *("yes", "no"),
    ),
    _short(
      "34603",
      "green",
      "What is the number on the bus?\nReference OCR token: ",
      *("12", "13"),
    ),
  ],
  "ocrbench": [
    Expected(
      *("0", "red", "what is written in the image?"),
      *("The Centre.", "center"),
    ),
    Expected("1", "blue", "who makes this?", "LAYS", "lay"),
    Expected(
      *("2", "green", "Write out the expression of the formula."),
      *(r"$\frac{A}{b}$", r"\frac{a}{b}"),
    ),
    Expected("3", "yellow", "What is the date?", "on 1 May 1999", "May 1999"),
  ],
  "chartqa": [
    Expected("0", "red", f"How many bars are there?{_WORD}", "4", "4.3"),
    Expected("1", "blue", f"Is the sum above 20%?{_WORD}", "yes", "no"),
    Expected("2", "blue", f"What was the share in 2019?{_WORD}", "38", "37.5%"),
  ],
  "docvqa_val": [
    _short("49153", "red", "What is the ‘actual’ value?", "0.28", "19"),
    _short("57349", "red", "Who signed it?", "ed", "Mr"),
    _short(
      *("24580", "blue", "What is the name of the company?"),
      *("ITC  Limited", "IBM"),
    ),
  ],
  "infovqa_val": [
    _short("98313", "green", "How many females are affected?", "25%", "7"),
    _short("98315", "green", "What comes after it?", "E-mail", "fax"),
    _short("98314", "yellow", "Which platform comes first?", "Facebook", "X"),
  ],
  "easy_vqa": [
    Expected("0", "red", "what color is the shape?", "red", "Red"),
    Expected("2", "red", "what shape is in the image?", "triangle", "circle"),
    Expected("1", "blue", "is there a circle?", "no", "yes"),
  ],
  "emoji_scenes": [
    Expected("scene-0", "green", "How many cats are there?", "two", "2"),
    Expected("scene-2", "green", "What is left of the cat?", "a car", "a dog"),
    Expected("scene-1", "black", "Is there a dog?", "Yes", "yes"),
  ],
  # In the order of the table; the folders are read in theirs.
  "mme": [
    _short(f"{image} {number}", colour, question, *answers)
    for image, colour, *questions in (
      ("code_reasoning/0020.png", "green", "Is it C?", 'Is it "Hi"?'),
      ("posters/10256.jpg", "yellow", "Is it by him?", "Is it a horror?"),
      ("existence/000000006040.jpg", "red", "Is a bus there?", "A dog?"),
      ("artwork/10256.jpg", "blue", "Is it Dutch?", "Is it titled moses?"),
    )
    for number, question, answers in zip(
      (1, 2), questions, (("Yes", "No"), ("no", "yes")), strict=True
    )
  ],
  "pope": [
    *(split[name] for split in _SPLITS for name in ("1", "3")),
    *(split["2"] for split in _SPLITS),
  ],
}
_SORTED = {("mme", "official")}
CASES = [
  (x, layout) for x, forms in published.WRITERS.items() for layout in forms
]


def test_every_task_that_is_written_has_its_items_here():
  assert EXPECTED.keys() == published.WRITERS.keys()


@pytest.mark.parametrize("name, layout", CASES)
def test_items_are_as_they_were_published(name, layout, tmp_path):
  """Ids, pictures, prompts; and of each a right and a wrong answer."""
  published.WRITERS[name][layout](tmp_path)
  expected = EXPECTED[name]
  if (name, layout) in _SORTED:
    expected = sorted(expected)
  expected_items.check(name, tmp_path, expected)


FIELDS = {
  "gqa": "id imageId question answer types",
  "textvqa": "question_id image_id question answers",
  "textvqa_ocr": "question_id image_id question answers ocr_tokens",
  "ocrbench": "dataset question question_type",
  "mme": "question_id question answer category",
  "pope": "question_id question answer image_source category",
}


@pytest.mark.parametrize("name", FIELDS)
def test_two_layouts_have_the_same_fields(name, tmp_path):
  """Those that prompts, scorers, totals and clusters read."""
  read = {}
  for layout, write in published.WRITERS[name].items():
    write(tmp_path / layout)
    task, items = expected_items.of(name, tmp_path / layout)
    read[layout] = {
      item.id: (
        {key: item.fields[key] for key in FIELDS[name].split()},
        item.cluster,
      )
      for item in items
    }
  first, second = read.values()
  assert first == second


def test_ocrbench_has_golds_as_lists_and_as_texts(tmp_path):
  """Only the JSON file writes a single one as text."""
  for layout, write in published.WRITERS["ocrbench"].items():
    write(tmp_path / layout)
    _, items = expected_items.of("ocrbench", tmp_path / layout)
    found = [item.fields["answer"] for item in items]
    single = ["CENTRE"] if layout == "parquet" else "CENTRE"
    assert found[:2] == [single, ["Lay's", "lays"]]


# --- Figures.

PERFECT = {
  "gqa": 1,
  "textvqa": 1,
  "textvqa_ocr": 1,
  "ocrbench": 4,
  "chartqa": 1,
  "docvqa_val": 1,
  "infovqa_val": 1,
  "easy_vqa": 1,
  "emoji_scenes": 1,
  "mme": 600,  # of 200 for each of three sub-tasks of perception
  "pope": 1,
}


@pytest.mark.parametrize("name, layout", CASES)
def test_right_answers_give_the_largest_headline(name, layout, tmp_path):
  published.WRITERS[name][layout](tmp_path)
  best, _ = expected_items.figures(name, tmp_path, EXPECTED[name])
  assert best == PERFECT[name]
  ids = {one.id for one in EXPECTED[name]}
  worst, _ = expected_items.figures(name, tmp_path, EXPECTED[name], wrong=ids)
  assert worst == 0


def figures(name, root, wrong):
  layout = next(iter(published.WRITERS[name]))
  published.WRITERS[name][layout](root)
  return expected_items.figures(name, root, EXPECTED[name], wrong)


def test_figures_of_some_wrong_answers_by_hand(tmp_path):
  assert figures("gqa", tmp_path, {"203"})[0] == 0.75
  right, of = figures("ocrbench", tmp_path, {"2"})
  assert right == 3 and of["share_of_1000"] == 0.003
  assert of["by_type"]["Doc-oriented VQA"] == 1
  _, of = figures("chartqa", tmp_path, {"0"})
  assert of["by_type"] == {"augmented_test": 1, "human_test": 0.5}


def test_a_wrong_answer_costs_mme_its_picture_too(tmp_path):
  points, of = figures("mme", tmp_path, {"posters/10256.jpg 2"})
  assert points == 450 and of["cognition"] == 200
  assert of["by_category"]["posters"] == 50
  assert of["by_category"]["artwork"] == 200


def test_pope_is_by_split(tmp_path):
  """A "yes" that is missed: no recall there, and 1 in the other two."""
  f1, of = figures("pope", tmp_path, {"popular 1"})
  assert f1 == pytest.approx(2 / 3)
  assert of["by_popular"]["f1"] == 0 and of["by_random"]["f1"] == 1


# --- Clusters.


CLUSTERS = {
  "gqa": ["n1", "n1", "n3", "n2"],
  "textvqa": ["00a3", "00a3", "00b7"],
  "textvqa_ocr": ["00a3", "00a3", "00b7"],
  "ocrbench": ["red", "blue", "green", "yellow"],
  "chartqa": ["red", "blue", "blue"],
  "docvqa_val": ["0", "0", "7"],  # a document may be number 0
  "infovqa_val": 2 * ["example.org/green.jpg"] + ["example.org/yellow.jpg"],
  "easy_vqa": ["0", "0", "1"],
  "emoji_scenes": ["pictures/a.png", "pictures/a.png", "pictures/b.png"],
  "mme": [
    *2 * ["code_reasoning/0020.png"],
    *2 * ["posters/10256.jpg"],
    *2 * ["existence/000000006040.jpg"],
    *2 * ["artwork/10256.jpg"],
  ],
  "pope": 6 * ["COCO_7"] + 3 * ["COCO_9"],
}


@pytest.mark.parametrize("name", EXPECTED)
def test_clusters_share_a_picture(name, tmp_path):
  layout = next(iter(published.WRITERS[name]))
  published.WRITERS[name][layout](tmp_path)
  task, items = expected_items.of(name, tmp_path)
  assert expected_items.clusters(task, items) == CLUSTERS[name]


def test_a_picture_that_is_missing_is_a_cluster(tmp_path):
  published.ocrbench_official(tmp_path)
  for path in tmp_path.rglob("*.png"):
    path.unlink()
  _, items = expected_items.of("ocrbench", tmp_path)
  assert [one.cluster for one in items] == [f"item {i}" for i in range(4)]


@pytest.mark.parametrize(
  "limit, ids",
  [
    (0, []),
    (1, ["201", "203"]),
    (2, ["201", "203"]),
    (3, ["201", "203", "202"]),
    (99, ["201", "203", "202", "204"]),
    (None, ["201", "203", "202", "204"]),
  ],
)
def test_a_limit_takes_whole_clusters(limit, ids, tmp_path):
  published.gqa_parquet(tmp_path)
  task, items = expected_items.of("gqa", tmp_path)
  some = task_lib.limited(items, limit)
  assert [item.id for item in some] == ids


def test_some_of_mme_has_both_questions_of_a_picture(tmp_path):
  published.mme_parquet(tmp_path)
  task, items = expected_items.of("mme", tmp_path)
  assert len(task_lib.limited(items, 3)) == 4


def test_a_question_of_a_document_that_is_not_known_is_a_cluster(tmp_path):
  types = published.columns(
    {"answers": published.TEXTS, "image": published.IMAGE},
    "questionId question",
  )
  rows = [
    {"questionId": name, "question": "?", "answers": ["a"], "image": None}
    for name in ("0", "7")
  ]
  folder = tmp_path / "docvqa" / "DocVQA"
  published.table(folder / "validation-0.parquet", types, rows)
  task, items = expected_items.of("docvqa_val", tmp_path)
  found = [item.cluster for item in items]
  assert found == ["question 0", "question 7"]


# --- How sets may lie there.


def test_the_cache_of_the_hub_has_links_for_files(tmp_path):
  """snapshots/HASH/FILE leads to blobs/HASH."""
  published.gqa_parquet(tmp_path / "made")
  above = tmp_path / "gqa" / "snapshots" / "0f1e"
  for number, path in enumerate((tmp_path / "made").rglob("*.parquet")):
    blob = tmp_path / "gqa" / "blobs" / str(number)
    blob.parent.mkdir(parents=True, exist_ok=True)
    path.rename(blob)
    link = above / path.parent.name / path.name
    link.parent.mkdir(parents=True)
    link.symlink_to(blob)
  expected_items.check("gqa", tmp_path, EXPECTED["gqa"])


def test_what_a_download_keeps_beside_its_files_is_not_read(tmp_path):
  """Hidden folders, and the files that macOS adds."""
  published.textvqa_parquet(tmp_path)
  folder = tmp_path / "textvqa"
  found = folder / "data" / "validation-00000-of-00002.parquet"
  hidden = folder / ".cache" / "huggingface" / found.name
  hidden.parent.mkdir(parents=True)
  hidden.write_bytes(found.read_bytes())
  (found.parent / f"._{found.name}").write_bytes(b"\0\5\26\7")
  expected_items.check("textvqa", tmp_path, EXPECTED["textvqa"])


def test_of_two_layouts_the_first_is_read(tmp_path):
  published.mme_parquet(tmp_path)
  published.mme_official(tmp_path)
  _, items = expected_items.of("mme", tmp_path)
  assert [item.id for item in items] == [one.id for one in EXPECTED["mme"]]


def test_rows_of_large_tables_are_in_groups(tmp_path):
  """Of one row each here: every question has its picture, in any order."""
  published.gqa_parquet(tmp_path)
  _, items = expected_items.of("gqa", tmp_path)
  assert {item.images[0].group for item in items} == {0, 1, 2}
  found = [expected_items.shown(item) for item in reversed(items)]
  assert found == ["blue", "green", "red", "red"]
