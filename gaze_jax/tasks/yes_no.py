"""Questions about pictures that are answered by yes or no: MME, POPE."""

import os
import pathlib
from collections.abc import Iterator, Sequence

from gaze_jax import json_file
from gaze_jax.data import samples
from gaze_jax.tasks import media
from gaze_jax.tasks import tables
from gaze_jax.tasks.task import SHORT
from gaze_jax.tasks.task import Files
from gaze_jax.tasks.task import Item
from gaze_jax.tasks.task import Task

_MME = ("question_id", "question", "answer", "category")
_POPE = ("question_id", "question", "answer", "image_source", "category")
_INSTRUCTION = " Please answer yes or no."
# Other texts are notes of the authors, and answers that their tool reads.
_CATEGORIES = (
  *("existence", "count", "position", "color", "posters", "celebrity"),
  *("scene", "landmark", "artwork", "OCR", "commonsense_reasoning"),
  *("numerical_calculation", "text_translation", "code_reasoning"),
)
# Five categories keep texts and pictures apart.
_TEXTS, _IMAGES = "questions_answers_YN", "images"
_SUFFIXES = (".jpg", ".png", ".jpeg")


def _mme_tables(folder: str, files: Sequence[str]) -> Iterator[Item]:
  """Two rows a picture, told apart by their order."""
  seen: dict[str, int] = {}
  read = tables.of_table(None, _MME)
  for item in read(folder, files):
    image = item.fields["question_id"]
    seen[image] = seen.get(image, 0) + 1
    yield Item(f"{image} {seen[image]}", item.fields, item.images)


def _mme_official(folder: str, files: Sequence[str]) -> Iterator[Item]:
  for path in files:
    where, name = os.path.split(path)
    base = (
      os.path.dirname(where) if os.path.basename(where) == _TEXTS else where
    )
    category = os.path.basename(base)
    if category not in _CATEGORIES:
      continue
    stem = os.path.splitext(name)[0]
    shown = _picture(where, base, stem)
    image = f"{category}/{os.path.basename(shown.name)}"
    text = json_file.read_text(pathlib.Path(path), samples.DataError)
    questions = [line for line in text.splitlines() if line.strip()]
    for number, line in enumerate(questions, 1):
      question, tab, answer = line.partition("\t")
      if not tab or "\t" in answer:
        raise samples.DataError(
          f"{path}: one tab between question and answer is needed, got"
          f" {line[:200]!r}"
        )
      fields = dict(
        zip(
          _MME,
          (image, question.strip(), answer.strip(), category),
          strict=True,
        )
      )
      yield Item(f"{image} {number}", fields, (shown,))


def _picture(where: str, base: str, stem: str) -> media.Named:
  for folder in (where, os.path.join(base, _IMAGES)):
    for suffix in _SUFFIXES:
      if os.path.isfile(os.path.join(folder, stem + suffix)):
        return media.Named(folder, stem + suffix)
  return media.Named(where, stem + _SUFFIXES[0])  # says that it is missing


TASKS = (
  Task(
    name="mme",
    folder="mme",
    forms=(
      Files(("**/test-*.parquet",), _mme_tables),
      Files(("**/*.txt",), _mme_official),
    ),
    items=2374,
    prompt=lambda fields: (
      fields["question"].strip().replace(_INSTRUCTION, "") + SHORT
    ),
    metric=lambda fields: "mme_label",
    cluster=lambda fields: fields["question_id"],
    again=lambda fields, n: {
      **fields,
      "question_id": f"{fields['question_id']} again {n}",
    },
    source="lmms-lab-encoder/MME, split test; or the official folders of .txt",
    paper=1590.0,
    most=2000.0,
    counted=True,
    note="Perception, of 2,000 points.",
  ),
  Task(
    name="pope",
    folder="pope",
    forms=(
      Files(
        (
          "**/adversarial-*.parquet",
          "**/popular-*.parquet",
          "**/random-*.parquet",
        ),
        tables.of_table(lambda f: f"{f['category']} {f['question_id']}", _POPE),
      ),
      Files(
        ("**/test-*.parquet",),
        tables.of_table(lambda f: f"{f['category']} {f['question_id']}", _POPE),
      ),
    ),
    items=9000,
    prompt=lambda fields: fields["question"].strip() + SHORT,
    metric=lambda fields: "pope_label",
    cluster=lambda fields: fields["image_source"],
    max_tokens=128,
    source="lmms-lab-encoder/POPE, split test, or config Full",
  ),
)
