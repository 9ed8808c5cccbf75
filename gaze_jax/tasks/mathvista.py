"""MathVista: a letter, a number or a list, and an instruction that says so."""

import os
from collections.abc import Iterator, Sequence

from gaze_jax.data import samples
from gaze_jax.tasks import media
from gaze_jax.tasks import tables
from gaze_jax.tasks import task as task_lib
from gaze_jax.tasks.task import LETTER
from gaze_jax.tasks.task import Fields
from gaze_jax.tasks.task import Files
from gaze_jax.tasks.task import Item
from gaze_jax.tasks.task import Task

_FIELDS = (
  *("question", "choices", "unit", "precision", "answer"),
  *("question_type", "answer_type"),
)
_DIRECT = {
  "integer": "Answer the question using a single integer number.",
  "float 1": "Answer the question using a single floating-point number with one"
  " decimal place.",
  "float 2": "Answer the question using a single floating-point number with two"
  " decimal places.",
  "list": "Answer the question using a Python list.",
}
_HINT = "Hint: Please answer the question "
_STEPS = {
  "letter": "and provide the correct option letter, e.g., A, B, C, D, at the"
  " end.",
  "integer": "requiring an integer answer and provide the final value, e.g., 1,"
  " 2, 3, at the end.",
  "float 1": "requiring a floating-point number with one decimal place and"
  " provide the final value, e.g., 1.2, 1.3, 1.4, at the end.",
  "float 2": "requiring a floating-point number with two decimal places and"
  " provide the final value, e.g., 1.23, 1.34, 1.45, at the end.",
  "list": "requiring a Python list as an answer and provide the final list,"
  " e.g., [1, 2, 3], [1.2, 1.3, 1.4], at the end.",
}


def _official(folder: str, files: Sequence[str]) -> Iterator[Item]:
  root = os.path.dirname(os.path.dirname(files[0]))
  for name, fields in tables.table_of(files[0], (*_FIELDS, "image")).items():
    shown = media.Named(root, str(fields["image"]))
    yield Item(name, fields | {"pid": name}, (shown,))


def _kind(fields: Fields) -> str:
  """What is asked for: a letter, or a number of some form."""
  if fields["question_type"] == "multi_choice":
    return "letter"
  kind = fields["answer_type"]
  if kind == "float":  # Parquet has the precision as a float
    kind = f"float {fields['precision']}".removesuffix(".0")
  if kind not in _DIRECT:
    raise samples.DataError(
      f"MathVista: problem {fields['pid']} wants a {kind}; known:"
      f" {', '.join(_DIRECT)}"
    )
  return kind


def _unit(fields: Fields) -> str:
  return f" (Unit: {fields['unit']})" if fields["unit"] else ""


def _direct(fields: Fields) -> str:
  lines = [fields["question"] + _unit(fields)]
  if fields["choices"]:
    lines.append(task_lib.options(fields["choices"]))
  kind = _kind(fields)
  lines.append(LETTER.strip() if kind == "letter" else _DIRECT[kind])
  return "\n".join(lines).strip()


def _steps(fields: Fields) -> str:
  lines = [f"Question: {fields['question']}{_unit(fields)}"]
  if fields["choices"]:
    lines.append("Choices:")
    lines += [f"({chr(65 + i)}) {x}" for i, x in enumerate(fields["choices"])]
  return "\n".join([*lines, _HINT + _STEPS[_kind(fields)]]).strip()


def _task(name: str, prompt, max_tokens: int, paper: float | None) -> Task:
  return Task(
    name=name,
    folder="mathvista",
    forms=(
      Files(
        ("**/testmini-*.parquet",),
        tables.of_table(
          lambda fields: fields["pid"],
          ("pid", *_FIELDS),
          picture="decoded_image",
          optional=("image",),
        ),
      ),
      Files(("data/testmini.json",), _official),
    ),
    items=1000,
    prompt=prompt,
    metric=lambda fields: "mathvista",
    cluster=lambda fields: str(fields.get("image") or fields["pid"]),
    max_tokens=max_tokens,
    source="AI4Math/MathVista, split testmini; or data/testmini.json with"
    " images/",
    paper=paper,
    note="Scored by rules alone, without a judge; `official_default` is what"
    " the official script would give, which answers nothing by the shortest"
    " choice. lmms-eval scores all 40 decimal answers 0.",
  )


TASKS = (
  _task("mathvista_format", _direct, 64, 31.1),
  _task("mathvista_cot", _steps, 1024, None),
)
