"""Questions that are answered in words: GQA, TextVQA, OCRBench, documents."""

import os
from collections.abc import Callable, Iterator, Sequence

from gaze_jax.data import samples
from gaze_jax.tasks import media
from gaze_jax.tasks import tables
from gaze_jax.tasks.task import SHORT
from gaze_jax.tasks.task import Fields
from gaze_jax.tasks.task import Files
from gaze_jax.tasks.task import Item
from gaze_jax.tasks.task import Task

_OCR_TYPES = {
  "dataset_name": "dataset",
  "type": "question_type",
  "answers": "answer",
}
_GQA = ("id", "imageId", "question", "answer")
_TEXTVQA = ("question_id", "image_id", "question", "answers")


def _gqa_tables(
  folder: str, questions: Sequence[str], pictures: Sequence[str]
) -> Iterator[Item]:
  shown = {
    fields["id"]: cells["image"]
    for fields, cells in tables.rows(pictures, ["id"], pictures=["image"])
  }
  for fields, _ in tables.rows(questions, _GQA, optional=["types"]):
    if fields["imageId"] not in shown:
      raise samples.DataError(
        f"gqa: question {fields['id']} is about picture {fields['imageId']},"
        f" which {', '.join(pictures)} lack"
      )
    yield Item(str(fields["id"]), fields, (shown[fields["imageId"]],))


def _gqa_official(folder: str, questions: Sequence[str]) -> Iterator[Item]:
  for name, fields in tables.table_of(questions[0], _GQA[1:]).items():
    shown = media.Named(folder, f"images/{fields['imageId']}.jpg")
    yield Item(name, fields | {"id": name}, (shown,))


def _textvqa_official(
  folder: str, questions: Sequence[str], ocr: Sequence[str] = ()
) -> Iterator[Item]:
  tokens = {
    one["image_id"]: one["ocr_tokens"]
    for path in ocr
    for one in tables.records(path, ["image_id", "ocr_tokens"])
  }
  for fields in tables.records(questions[0], _TEXTVQA):
    image = fields["image_id"]
    if ocr and image not in tokens:
      raise samples.DataError(f"{ocr[0]}: nothing about picture {image}")
    more = {"ocr_tokens": tokens[image]} if ocr else {}
    shown = media.Named(folder, f"train_images/{image}.jpg")
    yield Item(str(fields["question_id"]), fields | more, (shown,))


def _textvqa_ocr(fields: Fields) -> str:
  tokens = ", ".join(fields["ocr_tokens"])
  question = fields["question"].capitalize()
  return f"{question}\nReference OCR token: {tokens}{SHORT}"


def _ocrbench_official(folder: str, files: Sequence[str]) -> Iterator[Item]:
  columns = (*_OCR_TYPES, "id", "image_path", "question")
  beside = os.path.dirname(files[0])
  inside = os.path.join(beside, "OCRBench_Images")
  pictures = inside if os.path.isdir(inside) else beside
  for number, one in enumerate(tables.records(files[0], columns)):
    fields = {_OCR_TYPES.get(key, key): value for key, value in one.items()}
    shown = media.Named(pictures, str(one["image_path"]))
    # Ids repeat between its data sets; places do not.
    yield Item(str(number), fields, (shown,))


def _easy_vqa(folder: str, files: Sequence[str]) -> Iterator[Item]:
  path = files[0]
  every = tables.json_of(path)
  if not isinstance(every, list):
    raise samples.DataError(
      f"{path}: a list is needed, got {type(every).__name__}"
    )
  for number, one in enumerate(every):
    if not isinstance(one, list) or len(one) != 3:
      raise samples.DataError(
        f"{path}, item {number}: [question, answer, picture] is needed"
      )
    question, answer, picture = one
    shown = media.Named(os.path.dirname(path), f"images/{picture}.png")
    fields = {"question": question, "answer": answer, "picture": picture}
    yield Item(str(number), fields, (shown,))


def _scenes(folder: str, files: Sequence[str]) -> Iterator[Item]:
  columns = ("id", "image", "question", "answer", "kind")
  for fields in tables.records(files[0], columns):
    shown = media.Named(os.path.dirname(files[0]), str(fields["image"]))
    yield Item(str(fields["id"]), fields, (shown,))


def _asked(suffix: str) -> Callable[[Fields], str]:
  return lambda fields: fields["question"] + suffix


def _document(fields: Fields, column: str) -> str:
  """What a question is about; itself, where the table does not say."""
  document = fields.get(column)
  if document is None:
    return f"question {fields['questionId']}"
  return str(document)


def _doc_vqa(name: str, config: str, items: int, cluster: str) -> Task:
  return Task(
    name=name,
    folder=name.removesuffix("_val"),
    forms=(
      Files(
        (f"**/{config}/validation-*.parquet",),
        tables.of_table(
          lambda fields: fields["questionId"],
          ("questionId", "question", "answers"),
          optional=(cluster,),
        ),
      ),
    ),
    items=items,
    prompt=_asked(SHORT),
    metric=lambda fields: "anls",
    cluster=lambda fields: _document(fields, cluster),
    max_tokens=32,
    source=f"lmms-lab-encoder/DocVQA, config {config}, split validation",
  )


def _textvqa(name: str, ocr: bool) -> Task:
  files = ("**/TextVQA_0.5.1_val.json",)
  if ocr:
    files += ("**/TextVQA_Rosetta_OCR_v0.2_val.json",)
  columns = (*_TEXTVQA, "ocr_tokens") if ocr else _TEXTVQA
  return Task(
    name=name,
    folder="textvqa",
    forms=(
      Files(
        ("**/validation-*.parquet",),
        tables.of_table(lambda fields: fields["question_id"], columns),
      ),
      Files(files, _textvqa_official),
    ),
    items=5000,
    prompt=_textvqa_ocr
    if ocr
    else lambda fields: fields["question"].capitalize() + SHORT,
    metric=lambda fields: "textvqa",
    cluster=lambda fields: str(fields["image_id"]),
    source="lmms-lab-encoder/textvqa, split validation; or textvqa.org's"
    " TextVQA_0.5.1_val.json with train_images/",
    paper=66.2,
    note="The paper does not say whether OCR tokens stood in the prompt;"
    " textvqa_ocr has them and is many points higher.",
  )


TASKS = (
  Task(
    name="gqa",
    folder="gqa",
    forms=(
      Files(
        (
          "**/testdev_balanced_instructions/testdev-*.parquet",
          "**/testdev_balanced_images/testdev-*.parquet",
        ),
        _gqa_tables,
      ),
      Files(("**/testdev_balanced_questions.json",), _gqa_official),
    ),
    items=12578,
    prompt=_asked(SHORT),
    metric=lambda fields: "gqa",
    cluster=lambda fields: str(fields["imageId"]),
    source="lmms-lab-encoder/GQA, configs testdev_balanced_instructions and"
    " testdev_balanced_images; or the official questions with images/",
    paper=58.2,
  ),
  _textvqa("textvqa", ocr=False),
  _textvqa("textvqa_ocr", ocr=True),
  Task(
    name="ocrbench",
    folder="ocrbench",
    forms=(
      Files(
        ("**/test-*.parquet",),
        tables.of_table(
          None, ("dataset", "question", "question_type", "answer")
        ),
      ),
      Files(("**/OCRBench.json",), _ocrbench_official),
    ),
    items=1000,
    prompt=lambda fields: fields["question"].strip(),
    metric=lambda fields: "ocrbench",
    max_tokens=128,
    most=1000.0,
    counted=True,
    source="echo840/OCRBench, split test; or OCRBench.json with its pictures"
    " beside it or in OCRBench_Images/",
  ),
  Task(
    name="chartqa",
    folder="chartqa",
    forms=(
      Files(
        ("**/test-*.parquet",),
        tables.of_table(None, ("type", "question", "answer")),
      ),
    ),
    items=2500,
    prompt=_asked("\nAnswer the question with a single word."),
    metric=lambda fields: "chartqa",
    source="lmms-lab-encoder/ChartQA, split test",
  ),
  _doc_vqa("docvqa_val", "DocVQA", 5349, "docId"),
  _doc_vqa("infovqa_val", "InfographicVQA", 2801, "image_url"),
  Task(
    name="easy_vqa",
    folder="easy_vqa",
    forms=(Files(("**/test/questions.json",), _easy_vqa),),
    items=9673,
    prompt=_asked(""),
    metric=lambda fields: "exact",
    cluster=lambda fields: str(fields["picture"]),
    source="the folder data/ of the PyPI package easy-vqa",
  ),
  Task(
    name="emoji_scenes",
    folder="emoji_scenes",
    forms=(Files(("questions.json",), _scenes),),
    items=2333,
    prompt=_asked(""),
    metric=lambda fields: "exact",
    cluster=lambda fields: str(fields["image"]),
    source="launch/scene.py --config=configs/emoji_tiny.py --all=DIR",
  ),
)
