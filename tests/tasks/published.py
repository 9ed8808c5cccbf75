"""Tiny data sets of the picture tasks, in the forms that they are published in.

WRITERS[task][layout](root) writes one below root/FOLDER, columns and types as
they are in the published files; columns that are not read are there as well.
Each picture has one colour, by which a test tells it.
"""

import io
import json

import pyarrow
from PIL import Image
from pyarrow import parquet

COLOURS = {
  "red": (220, 20, 20),
  "green": (20, 200, 20),
  "blue": (20, 20, 220),
  "yellow": (230, 220, 20),
  "black": (10, 10, 10),
  "white": (245, 245, 245),
}
TEXT = pyarrow.string()
INT8, INT32, INT64 = pyarrow.int8(), pyarrow.int32(), pyarrow.int64()
FLOAT = pyarrow.float64()
TEXTS = pyarrow.list_(TEXT)
IMAGE = pyarrow.struct([("bytes", pyarrow.binary()), ("path", TEXT)])


def encoded(colour, form="PNG"):
  """The bytes of a picture of one colour."""
  out = io.BytesIO()
  Image.new("RGB", (8, 6), COLOURS[colour]).save(out, form, quality=95)
  return out.getvalue()


def cell(colour, path="image.png"):
  """A picture in a table; paths collide, as they do in published files."""
  return {"bytes": encoded(colour), "path": path}


def colour_of(pixels):
  """The name of a picture's colour."""
  seen = pixels.reshape(-1, 3).mean(axis=0)
  far = lambda name: abs(seen - COLOURS[name]).sum()
  return min(COLOURS, key=far)


def table(path, types, rows, group=2):
  """Writes a Parquet table; what a row lacks is null."""
  path.parent.mkdir(parents=True, exist_ok=True)
  made = pyarrow.Table.from_pylist(rows, schema=pyarrow.schema(types))
  parquet.write_table(made, path, row_group_size=group)


def columns(types, names=""):
  """Types of columns of text, by names divided by blanks, and of others."""
  return dict.fromkeys(names.split(), TEXT) | types


def write_json(path, value):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(value), encoding="utf-8")


def write_picture(path, colour):
  path.parent.mkdir(parents=True, exist_ok=True)
  form = "PNG" if path.suffix == ".png" else "JPEG"
  path.write_bytes(encoded(colour, form))


def struct(names):
  return pyarrow.struct([(name, TEXT) for name in names.split()])


# --- GQA: pictures in a table of their own.

GQA_PICTURES = {"n1": "red", "n2": "blue", "n3": "green", "n9": "black"}
GQA_QUESTIONS = {
  "201": ("n1", "Is the sky blue?", "no"),
  "202": ("n3", "What is on the table?", "remote control"),
  "203": ("n1", "What color is the car?", "red"),
  "204": ("n2", "Who is wearing a hat?", "man"),
}


def _gqa_fields(name):
  image, question, answer = GQA_QUESTIONS[name]
  return {
    "imageId": image,
    "question": question,
    "answer": answer,
    "fullAnswer": f"It is {answer}.",
    "isBalanced": True,
    "groups": {"global": None, "local": "10"},
    "entailed": "",
    "equivalent": "['201']",
    "types": {"structural": "query", "semantic": "attr", "detailed": "x"},
    "semantic": [
      {"operation": "select", "argument": "sky", "dependencies": []}
    ],
    "semanticStr": "select: sky",
  }


def gqa_parquet(root):
  steps = [("operation", TEXT), ("argument", TEXT)]
  types = columns(
    {
      "isBalanced": pyarrow.bool_(),
      "groups": struct("global local"),
      "types": struct("structural semantic detailed"),
      "semantic": pyarrow.list_(
        pyarrow.struct([*steps, ("dependencies", pyarrow.list_(INT32))])
      ),
    },
    "id imageId question answer fullAnswer entailed equivalent annotations"
    " semanticStr",
  )
  rows = [{"id": name, **_gqa_fields(name)} for name in GQA_QUESTIONS]
  name = "testdev-00000-of-00001.parquet"
  folder = root / "gqa"
  table(folder / "testdev_balanced_instructions" / name, types, rows)
  shown = [
    {"id": image, "image": cell(colour)}
    for image, colour in GQA_PICTURES.items()
  ]
  types = columns({"image": IMAGE}, "id")
  table(folder / "testdev_balanced_images" / name, types, shown, group=1)


def gqa_official(root):
  found = {name: _gqa_fields(name) for name in GQA_QUESTIONS}
  write_json(root / "gqa" / "testdev_balanced_questions.json", found)
  for image, colour in GQA_PICTURES.items():
    write_picture(root / "gqa" / "images" / f"{image}.jpg", colour)


# --- TextVQA: two questions about one picture, and a question without tokens.

TEXTVQA = [
  # question_id, image_id, question, answers, OCR tokens
  (34602, "00a3", "what does Mr. Smith's sign say?", "stop", ["STOP", "ALL"]),
  (34603, "00b7", "What is the number on the BUS?", "12", []),
  (34604, "00a3", "is this a Stop sign", "yes", ["STOP", "ALL"]),
]
TEXTVQA_PICTURES = {"00a3": "red", "00b7": "green"}


def _textvqa_fields(number, image, question, answer):
  return {
    "image_id": image,
    "question_id": number,
    "question": question,
    "question_tokens": question.lower().split(),
    "image_width": 8,
    "image_height": 6,
    "answers": [answer] * 9 + ["unanswerable"],
    "image_classes": ["Sign"],
    "set_name": "val",
  }


def textvqa_parquet(root):
  types = columns(
    {
      "question_id": INT32,
      "image_width": INT32,
      "image_height": INT32,
      "image": IMAGE,
      **dict.fromkeys(
        ("question_tokens", "answers", "image_classes", "ocr_tokens"), TEXTS
      ),
    },
    "image_id question flickr_original_url flickr_300k_url set_name",
  )
  rows = [
    _textvqa_fields(number, image, question, answer)
    | {"ocr_tokens": tokens, "image": cell(TEXTVQA_PICTURES[image])}
    for number, image, question, answer, tokens in TEXTVQA
  ]
  folder = root / "textvqa" / "data"
  # In two files, as large sets are.
  table(folder / "validation-00000-of-00002.parquet", types, rows[:2])
  table(folder / "validation-00001-of-00002.parquet", types, rows[2:])


def textvqa_official(root):
  folder = root / "textvqa"
  found = [_textvqa_fields(*one[:4]) for one in TEXTVQA]
  write_json(
    folder / "TextVQA_0.5.1_val.json", {"dataset_type": "val", "data": found}
  )
  ocr = [
    {"image_id": image, "ocr_tokens": tokens, "ocr_info": []}
    for image, tokens in {one[1]: one[4] for one in TEXTVQA}.items()
  ]
  write_json(folder / "TextVQA_Rosetta_OCR_v0.2_val.json", {"data": ocr})
  for image, colour in TEXTVQA_PICTURES.items():
    write_picture(folder / "train_images" / f"{image}.jpg", colour)


# --- OCRBench: golds are lists, of which JSON writes most as text.

OCRBENCH = [
  {
    "dataset": "IIIT5K",
    "question": "what is written in the image?",
    "answer": ["CENTRE"],
    "colour": "red",
    "question_type": "Regular Text Recognition",
  },
  {
    "dataset": "textVQA",
    "question": "who makes this?\n",
    "answer": ["Lay's", "lays"],
    "colour": "blue",
    "question_type": "Scene Text-centric VQA",
  },
  {
    "dataset": "HME100k",
    "question": "Write out the expression of the formula.",
    "answer": [r"\frac { A } { b }"],
    "colour": "green",
    "question_type": "Handwritten Mathematical Expression Recognition",
  },
  {
    "dataset": "docVQA",
    "question": "What is the date? ",
    "answer": ["1 May 1999"],
    "colour": "yellow",
    "question_type": "Doc-oriented VQA",
  },
]


def ocrbench_parquet(root):
  types = columns(
    {"answer": TEXTS, "image": IMAGE}, "dataset question question_type"
  )
  rows = [one | {"image": cell(one["colour"])} for one in OCRBENCH]
  name = "test-00000-of-00001.parquet"
  table(root / "ocrbench" / "data" / name, types, rows)


def ocrbench_official(root):
  folder = root / "ocrbench" / "OCRBench"
  found = []
  for number, one in enumerate(OCRBENCH):
    path, answers = f"{one['dataset']}/{number}.png", one["answer"]
    write_picture(folder / path, one["colour"])
    found.append(
      {
        "dataset_name": one["dataset"],
        "id": number % 2,  # they repeat
        "image_path": path,
        "question": one["question"],
        "answers": answers[0] if len(answers) == 1 else answers,
        "type": one["question_type"],
      }
    )
  write_json(folder / "OCRBench.json", found)


# --- ChartQA, DocVQA, InfographicVQA: Parquet alone.


def chartqa_parquet(root):
  types = columns({"image": IMAGE}, "type question answer")
  of = lambda *values: dict(
    zip(("type", "question", "answer", "image"), values, strict=True)
  )
  rows = [
    of("human_test", "How many bars are there?", "4", cell("red")),
    of("human_test", "Is the sum above 20%?", "Yes", cell("blue")),
    of("augmented_test", "What was the share in 2019?", "37.5", cell("blue")),
  ]
  table(root / "chartqa" / "data" / "test-00000-of-00001.parquet", types, rows)


def docvqa_parquet(root):
  types = columns(
    {
      "question_types": TEXTS,
      "image": IMAGE,
      "docId": INT64,
      "answers": TEXTS,
    },
    "questionId question ucsf_document_id ucsf_document_page_no data_split",
  )
  rows = [
    {
      "questionId": name,
      "question": question,
      "question_types": ["handwritten", "form"],
      "image": cell(colour),
      "docId": doc,
      "ucsf_document_id": "pybv0228",
      "ucsf_document_page_no": "81",
      "answers": answers,
      "data_split": "val",
    }
    for name, question, doc, answers, colour in (
      ("49153", "What is the ‘actual’ value?", 0, ["0.28", ".28"], "red"),
      ("24580", "What is the name of the company?", 7, ["itc limited"], "blue"),
      ("57349", "Who signed it?", 0, ["Ed"], "red"),
    )
  ]
  name = "validation-00000-of-00001.parquet"
  table(root / "docvqa" / "DocVQA" / name, types, rows)


def infovqa_parquet(root):
  types = columns(
    {
      "answers": TEXTS,
      "answer_type": TEXTS,
      "image": IMAGE,
      "operation/reasoning": TEXTS,
    },
    "questionId question image_url ocr data_split",
  )
  rows = [
    {
      "questionId": name,
      "question": question,
      "answers": answers,
      "answer_type": ["single span"],
      "image": cell(colour),
      "image_url": f"example.org/{colour}.jpg",
      "operation/reasoning": ["counting"],
      "ocr": "[]",
      "data_split": "val",
    }
    for name, question, answers, colour in (
      ("98313", "How many females are affected?", ["25%"], "green"),
      ("98314", "Which platform comes first?", ["facebook"], "yellow"),
      ("98315", "What comes after it?", ["email", "e-mail"], "green"),
    )
  ]
  name = "validation-00000-of-00001.parquet"
  table(root / "infovqa" / "InfographicVQA" / name, types, rows)


# --- Two that are rebuilt here: easy-VQA as its package has it, EmojiScenes.


def easy_vqa_package(root):
  folder = root / "easy_vqa" / "data" / "test"
  found = [
    ["what color is the shape?", "red", 0],
    ["is there a circle?", "no", 1],
    ["what shape is in the image?", "triangle", 0],
  ]
  write_json(folder / "questions.json", found)
  write_picture(folder / "images" / "0.png", "red")
  write_picture(folder / "images" / "1.png", "blue")


def emoji_scenes_files(root):
  folder = root / "emoji_scenes"
  found = [
    {
      "id": f"scene-{number}",
      "image": f"pictures/{picture}.png",
      "question": question,
      "answer": answer,
      "kind": kind,
    }
    for number, picture, question, answer, kind in (
      (0, "a", "How many cats are there?", "two", "count"),
      (1, "b", "Is there a dog?", "Yes", "exists"),
      (2, "a", "What is left of the cat?", "a car", "position"),
    )
  ]
  write_json(folder / "questions.json", found)
  write_picture(folder / "pictures" / "a.png", "green")
  write_picture(folder / "pictures" / "b.png", "black")


# --- MME: the picture repeats in both rows of a pair.

MME = {
  # category/file: colour, whether texts lie apart from pictures, questions
  "existence/000000006040.jpg": ("red", False, "Is a bus there?", "A dog?"),
  "artwork/10256.jpg": ("blue", True, "Is it Dutch?", "Is it titled moses?"),
  "code_reasoning/0020.png": ("green", False, "Is it C?", 'Is it "Hi"?'),
  # The same file as another category has.
  "posters/10256.jpg": ("yellow", True, "Is it by him?", "Is it a horror?"),
}
MME_ANSWERS = ("Yes", "No")
_MME_ASKS = " Please answer yes or no."


def mme_parquet(root):
  types = columns({"image": IMAGE}, "question_id question answer category")
  rows = [
    {
      "question_id": name,
      "question": question + _MME_ASKS,
      "answer": answer,
      "category": name.split("/")[0],
      "image": cell(colour),
    }
    for name, (colour, _, *questions) in MME.items()
    for question, answer in zip(questions, MME_ANSWERS, strict=True)
  ]
  # In the order of the hub's copy, which is not that of the folders.
  table(root / "mme" / "data" / "test-00000-of-00002.parquet", types, rows[4:])
  table(root / "mme" / "data" / "test-00001-of-00002.parquet", types, rows[:4])


def mme_official(root):
  above = root / "mme" / "MME_Benchmark_release_version"
  for name, (colour, apart, *questions) in MME.items():
    category, file = name.split("/")
    shown = texts = above / category
    if apart:
      shown, texts = texts / "images", texts / "questions_answers_YN"
    write_picture(shown / file, colour)
    texts.mkdir(parents=True, exist_ok=True)
    pairs = zip(questions, MME_ANSWERS, strict=True)
    lines = [f"{question}{_MME_ASKS}\t{answer}\n" for question, answer in pairs]
    text = texts / f"{file.rpartition('.')[0]}.txt"
    text.write_text("".join([*lines, "\n"]), encoding="utf-8")
  # What lies beside it, where it was unpacked as its authors say.
  tool = root / "mme" / "eval_tool" / "Your_Results"
  tool.mkdir(parents=True)
  (tool / "existence.txt").write_text("1.jpg\tIs it?\tYes\n", encoding="utf-8")
  (above / "readme.txt").write_text("Perception and cognition\n")


# --- POPE: numbers of questions begin anew in each split.


def _pope_rows(category):
  names = ("question_id", "question", "answer", "image_source", "image")
  found = (
    ("1", " Is there a snowboard in the image?", "yes", "COCO_7", "red"),
    ("2", "Is there a dining table in the image?", "no", "COCO_9", "blue"),
    ("3", "Is there a car in the image?", "no", "COCO_7", "red"),
  )
  for number, values in enumerate(found):
    row = dict(zip(names, values, strict=True)) | {"category": category}
    path = f"{row['image_source']}.jpg"
    yield row | {"id": str(number), "image": cell(row["image"], path)}


_POPE = columns(
  {"image": IMAGE}, "id question_id question answer image_source category"
)


def pope_parquet(root):
  rows = [
    row
    for category in ("adversarial", "popular", "random")
    for row in _pope_rows(category)
  ]
  table(root / "pope" / "data" / "test-00000-of-00001.parquet", _POPE, rows)


def pope_full(root):
  for category in ("adversarial", "popular", "random"):
    path = root / "pope" / "Full" / f"{category}-00000-of-00001.parquet"
    table(path, _POPE, list(_pope_rows(category)))


WRITERS = {
  "gqa": {"parquet": gqa_parquet, "official": gqa_official},
  "textvqa": {"parquet": textvqa_parquet, "official": textvqa_official},
  "textvqa_ocr": {"parquet": textvqa_parquet, "official": textvqa_official},
  "ocrbench": {"parquet": ocrbench_parquet, "official": ocrbench_official},
  "chartqa": {"parquet": chartqa_parquet},
  "docvqa_val": {"parquet": docvqa_parquet},
  "infovqa_val": {"parquet": infovqa_parquet},
  "easy_vqa": {"package": easy_vqa_package},
  "emoji_scenes": {"files": emoji_scenes_files},
  "mme": {"parquet": mme_parquet, "official": mme_official},
  "pope": {"parquet": pope_parquet, "full": pope_full},
}
