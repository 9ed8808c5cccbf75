"""`published.py` of the tasks that are answered by a letter, and MathVista."""

import csv

import pyarrow

from tests.tasks.published import FLOAT
from tests.tasks.published import IMAGE
from tests.tasks.published import INT8
from tests.tasks.published import INT32
from tests.tasks.published import INT64
from tests.tasks.published import TEXT
from tests.tasks.published import TEXTS
from tests.tasks.published import cell
from tests.tasks.published import columns
from tests.tasks.published import table
from tests.tasks.published import write_json
from tests.tasks.published import write_picture

# --- RealWorldQA: the question carries its instruction.

_LETTER_ONLY = (
  "\nPlease answer directly with only the letter of the correct option and"
  " nothing else."
)


def realworldqa_parquet(root):
  types = columns({"image": IMAGE}, "image_path question answer")
  rows = [
    {"image": cell("red"), "image_path": "0.webp"}
    | {"question": f"Which way?\n\nA. Left\nB. Right{_LETTER_ONLY}"}
    | {"answer": "B"},
    {"image": cell("blue"), "image_path": "1.webp"}
    | {"question": "How many lanes? Please answer with a number. "}
    | {"answer": "3"},
    {"image": cell("red"), "image_path": "2.webp"}
    | {"question": "Are we going up or down?"}
    | {"answer": "Downhill"},
  ]
  name = "test-00000-of-00001.parquet"
  table(root / "realworldqa" / "data" / name, types, rows)


# --- MMVP: pairs by the 1-based Index, which is not the order of the rows.

MMVP = [
  # Index, question, options, answer, colour
  (2, "Is it open?", "(a) Yes (b) No", "(b)", "red"),
  (1, "Is it open?", "(a) Yes (b) No", "(a)", "blue"),
  (3, "What is f?", "(a) f(x) (left) (b) g, or (c)", "(a)", "green"),
  (4, 'Which one, "x"?', "(a) f(x) (left) (b) g, or (c)", "(b)", "green"),
]


def mmvp_parquet(root):
  types = [
    *(("Index", INT32), ("Question", TEXT), ("Options", TEXT)),
    *(("Correct Answer", TEXT), ("image", IMAGE)),
  ]
  names = [name for name, _ in types]
  rows = [
    dict(zip(names, (*one[:4], cell(one[4])), strict=True)) for one in MMVP
  ]
  name = "train-00000-of-00001.parquet"
  table(root / "mmvp" / "data" / name, types, rows)


def mmvp_official(root, header="lndex"):
  folder = root / "mmvp" / "MMVP"
  folder.mkdir(parents=True)
  path = folder / "Questions.csv"
  with path.open("w", encoding="utf-8-sig", newline="") as file:
    writer = csv.writer(file)
    writer.writerow([header, "Question", "Options", "Correct Answer"])
    writer.writerows(one[:4] for one in MMVP)
  for number, *_, colour in MMVP:
    write_picture(folder / "MMVP Images" / f"{number}.jpg", colour)


# --- ScienceQA: two of five have a picture.

SCIENCE = {
  # id: split, question, choices, answer, hint, colour
  "4": ("test", "Which is true?", ["yes", "no"], 1, "Read it.", None),
  "11": (
    *("test", "Which ocean is it?", ["Arctic", "Indian", "Pacific"], 2),
    *("", "red"),
  ),
  "12": ("train", "Which one is big?", ["a cat", "a car"], 1, "", "black"),
  "5": (
    *("test", "Select the mammal.", ["frog", "bat", "ant", "hen", "asp"], 1),
    *("Frogs are\namphibians.", "blue"),
  ),
  "7": ("test", "Which word is last?", ["a", "b"], 0, "", None),
}
_SCIENCE_TEST = ["11", "4", "5", "7"]


def _science_rows(names):
  for name in names:
    _, question, choices, answer, hint, colour = SCIENCE[name]
    yield {
      "image": colour and cell(colour),
      "question": question,
      "choices": choices,
      "answer": answer,
      "hint": hint,
      "task": "closed choice",
      "grade": "grade2",
      "subject": "natural science",
    }


def _science_table(root, config, names):
  types = columns(
    {"image": IMAGE, "choices": TEXTS, "answer": INT8},
    "question hint task grade subject topic category skill lecture solution",
  )
  path = root / "scienceqa" / config / "test-00000-of-00001.parquet"
  table(path, types, list(_science_rows(names)))


def science_img(root):
  shown = [name for name in _SCIENCE_TEST if SCIENCE[name][-1]]
  _science_table(root, "ScienceQA-IMG", shown)


def science_full(root):
  _science_table(root, "ScienceQA-FULL", _SCIENCE_TEST)


def science_official(root):
  folder, problems = root / "scienceqa", {}
  for name, (split, question, choices, answer, hint, colour) in SCIENCE.items():
    problems[name] = {
      "question": question,
      "choices": choices,
      "answer": answer,
      "hint": hint,
      "image": colour and "image.png",
      "split": split,
      "subject": "natural science",
    }
    if colour:
      write_picture(folder / "images" / split / name / "image.png", colour)
  write_json(folder / "problems.json", problems)
  write_json(
    folder / "pid_splits.json",
    {"train": ["12"], "val": [], "test": _SCIENCE_TEST, "minitest": ["11"]},
  )


# --- MMMU: options are the text of a list; pictures stand where they are named.

MMMU = [
  {
    "id": "validation_Art_Theory_1",
    "question": "<image 1> Who painted it?",
    "options": "['Monet', 'Vermeer (the elder)']",
    "answer": "B",
    "question_type": "multiple-choice",
    "image_1": "red",
  },
  {
    "id": "validation_Art_Theory_2",
    "question": "Which is like <image 3>?",
    "options": '["<image 1>", "<image 2>", "it\'s none"]',
    "answer": "A",
    "question_type": "multiple-choice",
    "image_1": "blue",
    "image_2": "yellow",
    "image_3": "green",
  },
  {
    "id": "validation_Math_9",
    "question": "Compare <image 2> with <image 1>. What is in <image 2>?",
    "options": "[]",
    "answer": "['8', 'eight']",
    "question_type": "open",
    "image_1": "black",
    "image_2": "white",
  },
  {
    "id": "validation_Math_10",
    "question": "Find the interval of <image 1>",
    "options": "[]",
    "answer": "[0, 1)",
    "question_type": "open",
    "image_1": "red",
  },
]


def mmmu_table(path, items):
  shown = [f"image_{i}" for i in range(1, 8)]
  types = columns(
    dict.fromkeys(shown, IMAGE),
    "id question options explanation img_type answer topic_difficulty"
    " question_type subfield",
  )
  rows = [
    one
    | {"subfield": "x", "img_type": "['Paintings']"}
    | {key: cell(one[key]) for key in shown if key in one}
    for one in items
  ]
  table(path, types, rows)


def mmmu_subjects(root):
  """A folder a subject, each with a file of the same name."""
  for subject in ("Art_Theory", "Math"):
    some = [one for one in MMMU if subject in one["id"]]
    folder = root / "mmmu" / subject
    mmmu_table(folder / "validation-00000-of-00001.parquet", some)
    # Other splits, which are not read.
    mmmu_table(folder / "dev-00000-of-00001.parquet", some)


def mmmu_merged(root):
  folder = root / "mmmu" / "data"
  mmmu_table(folder / "validation-00000-of-00001.parquet", MMMU)


# --- AI2D, SEED-Bench, MMBench, CV-Bench: Parquet alone.


def ai2d_parquet(root):
  types = columns({"options": TEXTS, "image": IMAGE}, "question answer")
  rows = [
    {
      "question": question,
      "options": options,
      "answer": answer,
      "image": cell(colour),
    }
    for question, options, answer, colour in (
      ("Which label is the leaf?", ["A", "C", "B", "F"], "2", "red"),
      ("What eats grass?", ["hare", "fox (red)", "owl", "elk"], "0", "blue"),
      ("What is shown?", ["a pond", "a wood", "a sea", "none"], "3", "red"),
    )
  ]
  table(root / "ai2d" / "data" / "test-00000-of-00001.parquet", types, rows)


def seed_parquet(root):
  """Of four rows one is about a video, and left out."""
  types = columns(
    {
      "question_type_id": INT64,
      "image": pyarrow.list_(IMAGE),
      "segment": pyarrow.list_(INT64),
    },
    "answer choice_a choice_b choice_c choice_d data_id data_type question"
    " question_id",
  )
  names = [f"choice_{x}" for x in "abcd"]
  rows = [
    {
      "answer": answer,
      **dict(zip(names, choices, strict=True)),
      "data_id": f"data-{name}",
      "data_type": kind,
      "question": "How many are there?",
      "question_id": name,
      "question_type_id": 5,
      "image": [cell(colour) for colour in colours],
      "segment": [0, 8] if kind == "video" else None,
    }
    for name, kind, answer, choices, colours in (
      ("101669", "image", "C", ["One", "Two", "Three", "Four"], ["red"]),
      ("v_1", "video", "A", ["One", "Two", "Six", "Ten"], ["blue", "green"]),
      ("101670", "image", "A", ["Zero", "One", "Two", "Many"], ["yellow"]),
      ("43", "image", "D", ["(a)", "(b)", "(c)", "(d)"], ["green"]),
    )
  ]
  table(root / "seed" / "data" / "test-00000-of-00001.parquet", types, rows)


def mmbench_parquet(root):
  """Two questions: one of four options and two rows, one of two options."""
  types = columns(
    {"index": INT64, "image": IMAGE},
    "question hint answer A B C D category source L2-category comment split",
  )
  rows = [
    {
      "index": index,
      "question": question,
      "hint": hint,
      "answer": answer,
      **dict(zip("ABCD", options, strict=True)),
      "category": "spatial_relationship",
      "image": cell(colour),
      "source": "x",
      "L2-category": "relation_reasoning",
      "comment": "nan",
      "split": "dev",
    }
    for index, question, hint, answer, options, colour in (
      (241, "Where is it?", "nan", "A", ["up", "down", "in", "out"], "red"),
      (
        252,
        "Who wins?",
        "They play.",
        "B",
        ["He", "She", "nan", "nan"],
        "blue",
      ),
      (1_000_241, "Where is it?", "", "D", ["down", "in", "out", "up"], "red"),
    )
  ]
  # The second and the third are not read.
  for file in ("en/dev", "en/test", "cn/dev"):
    table(root / "mmbench" / f"{file}-00000-of-00001.parquet", types, rows)


_CV_BENCH = columns(
  {
    "idx": INT64,
    "image": IMAGE,
    "choices": TEXTS,
    "target_size": FLOAT,
    "bbox": pyarrow.list_(pyarrow.list_(FLOAT)),
  },
  "type task question answer prompt filename source source_dataset"
  " source_filename target_class",
)


def cv_bench_parquet(root):
  rows = [
    {
      "idx": index,
      "type": kind,
      "task": task,
      "image": cell(colour),
      "question": question,
      "choices": choices,
      "answer": answer,
      "prompt": f"{question} Select from the following choices.\n{lines}",
      "filename": f"img/{kind}/{index}.png",
      "source": source,
    }
    for index, kind, task, source, question, choices, lines, answer, colour in (
      (
        *(0, "2D", "Count", "ADE20K", "How many?", ["1", "0", "2"]),
        *("(A) 1\n(B) 0\n(C) 2", "(C)", "red"),
      ),
      (
        *(1, "2D", "Relation", "COCO", "Where?", ["above", "below"]),
        *("(A) above\n(B) below", "(A)", "blue"),
      ),
      (
        *(1438, "3D", "Depth", "Omni3D", "Which is closer?", ["bin", "bed"]),
        *("(A) bin\n(B) bed", "(B)", "green"),
      ),
    )
  ]
  table(root / "cv_bench" / "test_2d.parquet", _CV_BENCH, rows[:2])
  table(root / "cv_bench" / "test_3d.parquet", _CV_BENCH, rows[2:])


# --- MathVista: precision is a float in Parquet, a whole number in JSON.

_TEXT, _FREE = ("multi_choice", "text"), "free_form"
MATHVISTA = {
  # pid: question, choices, unit, precision, answer, question_type,
  # answer_type, number of the picture
  "1": (
    "Which is it?",
    ["6 cm", "12 cm", "5 cm"],
    None,
    None,
    "12 cm",
    *_TEXT,
    1,
  ),
  "2": ("How many cats?", None, "", None, "4", _FREE, "integer", 2),
  "3": ("How long is it?", None, "m", 1, "1.2", _FREE, "float", 2),
  "8": ("What is the cost?", None, "$", 2, "1.45", _FREE, "float", 3),
  "5": ("Which years?", None, None, None, "[2007, 2008]", _FREE, "list", 1),
  "6": ("Is it (A)?", ["Yes", "No"], None, None, "No", *_TEXT, 3),
}
MATHVISTA_PICTURES = {1: "red", 2: "green", 3: "blue"}
_MATHVISTA = (
  *("question", "choices", "unit", "precision", "answer"),
  *("question_type", "answer_type", "image"),
)


def _mathvista_rows():
  for name, values in MATHVISTA.items():
    fields = dict(zip(_MATHVISTA, values, strict=True)) | {"pid": name}
    fields["metadata"] = {"split": "testmini", "skills": ["arithmetic"]}
    fields["query"] = f"Hint: ...\nQuestion: {fields['question']}"
    number = fields["image"]
    yield fields | {"image": f"images/{number}.jpg"}, MATHVISTA_PICTURES[number]


def mathvista_parquet(root):
  others = "category context grade language source split task".split()
  metadata = [(name, TEXT) for name in others]
  metadata += [("img_height", INT64), ("img_width", INT64), ("skills", TEXTS)]
  types = columns(
    {
      "decoded_image": IMAGE,
      "choices": TEXTS,
      "precision": FLOAT,
      "metadata": pyarrow.struct(metadata),
    },
    "pid question image unit answer question_type answer_type query",
  )
  rows = [
    fields | {"decoded_image": cell(colour)}
    for fields, colour in _mathvista_rows()
  ]
  name = "testmini-00000-of-00001-725687bf7a18d64b.parquet"
  table(root / "mathvista" / "data" / name, types, rows)


def mathvista_official(root):
  folder, found = root / "mathvista", {}
  for fields, colour in _mathvista_rows():
    found[fields["pid"]] = fields
    write_picture(folder / fields["image"], colour)
  write_json(folder / "data" / "testmini.json", found)


_BOTH = {"parquet": mathvista_parquet, "official": mathvista_official}
WRITERS = {
  "realworldqa": {"parquet": realworldqa_parquet},
  "mmvp": {"parquet": mmvp_parquet, "official": mmvp_official},
  "scienceqa_img": {
    "img": science_img,
    "full": science_full,
    "official": science_official,
  },
  "mmmu_val": {"subjects": mmmu_subjects, "merged": mmmu_merged},
  "ai2d": {"parquet": ai2d_parquet},
  "seed": {"parquet": seed_parquet},
  "mmbench_en_dev": {"parquet": mmbench_parquet},
  "cv_bench": {"parquet": cv_bench_parquet},
  "mathvista_format": _BOTH,
  "mathvista_cot": _BOTH,
}
