"""Questions about pictures that are answered by an option's letter."""

import ast
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

from gaze_jax.data import samples
from gaze_jax.evals.scoring import totals
from gaze_jax.tasks import media
from gaze_jax.tasks import tables
from gaze_jax.tasks import task as task_lib
from gaze_jax.tasks.task import LETTER
from gaze_jax.tasks.task import SHORT
from gaze_jax.tasks.task import Fields
from gaze_jax.tasks.task import Files
from gaze_jax.tasks.task import Item
from gaze_jax.tasks.task import Task

_MMVP = ("Index", "Question", "Options", "Correct Answer")
_MMVP_ITEMS = 300
_SCIENCE_QA = ("question", "choices", "answer", "hint")
_MMMU = ("id", "question", "options", "answer", "question_type", "subfield")
_MMMU_PICTURES = tuple(f"image_{i}" for i in range(1, 8))
_MMMU_MARK = re.compile(r"<image ([1-7])>")
_SEED = ("question_id", "question", "answer", "data_type")
_CHOICES = ("choice_a", "choice_b", "choice_c", "choice_d")
_MMBENCH = ("index", "question", "hint", "answer", "category", "L2-category")
_MMBENCH_NUMBERS = 10_000  # above the number of any question
_CV_BENCH = ("idx", "task", "choices", "answer", "prompt", "source")


def lettered(question: str, texts: Sequence[str]) -> str:
  """A question, its options a line each, and the instruction."""
  return f"{question}\n{task_lib.options(texts)}{LETTER}"


def _mmvp_official(folder: str, questions: Sequence[str]) -> Iterator[Item]:
  found = tables.lines(questions[0], _MMVP, {"lndex": "Index"})
  for fields in found:
    if not fields["Index"].strip().isdecimal():
      raise samples.DataError(
        f"{questions[0]}: Index {fields['Index']!r} is no whole number"
      )
    number = int(fields["Index"])
    shown = media.Named(
      os.path.dirname(questions[0]), f"MMVP Images/{number}.jpg"
    )
    yield Item(str(number), fields | {"Index": number}, (shown,))


def _mmvp(fields: Fields) -> str:
  """Options are divided at the literal (a) and (b): a text may hold "("."""
  first, mark, second = fields["Options"].partition("(b)")
  if not mark:
    raise samples.DataError(
      f"mmvp: Options of item {fields['Index']} have no (b):"
      f" {fields['Options']!r}"
    )
  texts = [first.replace("(a)", "", 1).strip(), second.strip()]
  return lettered(fields["Question"], texts)


def _science_tables(folder: str, files: Sequence[str]) -> Iterator[Item]:
  """Those with a picture; an item is named by its row."""
  found = tables.rows(files, _SCIENCE_QA, pictures=["image"])
  for number, (fields, cells) in enumerate(found):
    if not cells["image"].is_null():
      yield Item(str(number), fields, (cells["image"],))


def _science_official(
  folder: str, problems: Sequence[str], splits: Sequence[str]
) -> Iterator[Item]:
  split = tables.json_of(splits[0])
  tables.check(split, ["test"], splits[0])
  if not isinstance(split["test"], list):
    raise samples.DataError(f'{splits[0]}: under "test" a list is needed')
  every = tables.table_of(problems[0], (*_SCIENCE_QA, "image"))
  inside = os.path.dirname(problems[0])
  for name in map(str, split["test"]):
    if name not in every:
      raise samples.DataError(f"{problems[0]}: no problem {name}, of test")
    fields = every[name]
    if fields["image"]:
      shown = media.Named(inside, f"images/test/{name}/{fields['image']}")
      yield Item(name, fields, (shown,))


def _science_qa(fields: Fields) -> str:
  context = f"Context: {fields['hint']}\n" if fields["hint"] else ""
  return context + lettered(fields["question"], fields["choices"])


def _mmmu_tables(folder: str, files: Sequence[str]) -> Iterator[Item]:
  found = tables.rows(files, _MMMU, pictures=_MMMU_PICTURES)
  for fields, cells in found:
    texts = literal_list(fields["options"])
    if fields["question_type"] == "multiple-choice" and texts is None:
      raise samples.DataError(
        f"mmmu_val: options of {fields['id']} are no list:"
        f" {fields['options']!r}"
      )
    fields = fields | {"options": texts or []}
    shown = [
      cells[f"image_{i}"]
      for i in dict.fromkeys(_MMMU_MARK.findall(_mmmu_text(fields)))
    ]
    yield Item(fields["id"], fields, tuple(shown))


def _mmmu_text(fields: Fields) -> str:
  if _mmmu_metric(fields) == "mmmu_mc":
    lines = task_lib.options(fields["options"])
    return f"{fields['question']}\n{lines}\n\n{LETTER.strip()}"
  return f"{fields['question']}\n\n{SHORT.strip()}"


def _mmmu(fields: Fields) -> str:
  """Each picture stands where its `<image k>` is written first."""
  seen = set()

  def mark(found: re.Match[str]) -> str:
    first = found[1] not in seen
    seen.add(found[1])
    return "<image>" if first else f"image {found[1]}"

  return _MMMU_MARK.sub(mark, _mmmu_text(fields))


def _mmmu_metric(fields: Fields) -> str:
  choice = fields["question_type"] == "multiple-choice"
  return "mmmu_mc" if choice else "mmmu_open"


def _mmmu_reference(fields: Fields) -> Fields:
  """Three golds of the open questions are lists, written as text."""
  if _mmmu_metric(fields) == "mmmu_mc":
    return fields
  several = literal_list(fields["answer"])
  return fields if several is None else fields | {"answer": several}


def literal_list(text: Any) -> list[str] | None:
  """The texts of a list that a text writes in Python's way, or None."""
  value = text
  if not isinstance(value, list):
    try:
      value = ast.literal_eval(str(text).strip())
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
      return None
  return [str(one) for one in value] if isinstance(value, list) else None


def _seed_tables(folder: str, files: Sequence[str]) -> Iterator[Item]:
  found = tables.rows(
    files, (*_SEED, *_CHOICES), optional=["data_id"], pictures=["image"]
  )
  for fields, cells in found:
    if fields["data_type"] == "image":
      cell = cells["image"]
      shown = media.Cell(cell.file, cell.group, cell.row, cell.column, 0)
      texts = [fields[name] for name in _CHOICES]
      more = {"options": texts, "dataset": "seed"}
      yield Item(str(fields["question_id"]), fields | more, (shown,))


def _mmbench_tables(folder: str, files: Sequence[str]) -> Iterator[Item]:
  found = tables.rows(files, (*_MMBENCH, *"ABCD"), pictures=["image"])
  for fields, cells in found:
    texts = [
      str(fields[x]) for x in "ABCD" if not tables.unused(fields[x], "nan")
    ]
    item = fields | {"options": texts}
    yield Item(str(fields["index"]), item, (cells["image"],))


def _mmbench(fields: Fields) -> str:
  """As lmms-eval joins it: by blanks, and a blank line before the end."""
  hint = "" if tables.unused(fields["hint"], "nan") else f"{fields['hint']} "
  lines = task_lib.options(fields["options"]).rstrip("\n")
  asked = f"{hint}{fields['question']} There are several options:\n{lines}"
  return f"{asked}\n{LETTER}"


def _cv_bench(fields: Fields) -> str:
  letters = ", ".join("ABCDEFGHI"[: len(fields["choices"])])
  return (
    f"Note: You only need to respond with {letters} without providing any"
    f" additional information.\n\n{fields['prompt']}"
  )


TASKS = (
  Task(
    name="realworldqa",
    folder="realworldqa",
    forms=(
      Files(
        ("**/test-*.parquet",), tables.of_table(None, ("question", "answer"))
      ),
    ),
    items=765,
    prompt=lambda fields: fields["question"].strip(),
    metric=lambda fields: "realworldqa",
    source="lmms-lab-encoder/RealWorldQA, split test",
    paper=61.7,
  ),
  Task(
    name="mmvp",
    folder="mmvp",
    forms=(
      Files(
        ("**/train-*.parquet",),
        tables.of_table(lambda fields: fields["Index"], _MMVP),
      ),
      Files(("**/Questions.csv",), _mmvp_official),
    ),
    items=_MMVP_ITEMS,
    prompt=_mmvp,
    metric=lambda fields: "mmvp",
    cluster=lambda fields: f"pair {(int(fields['Index']) - 1) // 2}",
    again=lambda fields, n: {
      **fields,
      "Index": int(fields["Index"]) + _MMVP_ITEMS * n,
    },
    source="lmms-lab-eval/MMVP, split train; or Questions.csv with MMVP"
    " Images/",
    paper=47.3,
    note="Labels 99, 100, 279 and 280 are swapped in the original, and mended"
    " in lmms-eval's copy; the hash tells which was read.",
  ),
  Task(
    name="scienceqa_img",
    folder="scienceqa",
    forms=(
      Files(("**/ScienceQA-IMG/test-*.parquet",), _science_tables),
      Files(("**/ScienceQA-FULL/test-*.parquet",), _science_tables),
      Files(("**/problems.json", "**/pid_splits.json"), _science_official),
    ),
    items=2017,
    prompt=_science_qa,
    metric=lambda fields: "scienceqa",
    source="lmms-lab-encoder/ScienceQA, config ScienceQA-IMG, split test; or"
    " problems.json and pid_splits.json with images/test/",
    paper=82.1,
  ),
  Task(
    name="mmmu_val",
    folder="mmmu",
    forms=(Files(("**/validation-*.parquet",), _mmmu_tables),),
    items=900,
    prompt=_mmmu,
    metric=_mmmu_metric,
    reference=_mmmu_reference,
    max_tokens=128,
    source="MMMU/MMMU, all 30 configs, split validation; or"
    " lmms-lab-encoder/MMMU",
    paper=47.4,
    note="Pictures stand where the question has them; lmms-eval puts them"
    " first. Up to its 0.7.2 every open question scored 0.",
  ),
  Task(
    name="ai2d",
    folder="ai2d",
    forms=(
      Files(
        ("**/test-*.parquet",),
        tables.of_table(None, ("question", "options", "answer")),
      ),
    ),
    items=3088,
    prompt=lambda fields: lettered(fields["question"], fields["options"]),
    metric=lambda fields: "mc5",
    reference=lambda fields: fields | {"dataset": "ai2d"},
    source="lmms-lab-encoder/ai2d, split test (labels masked by letters)",
  ),
  Task(
    name="seed",
    folder="seed",
    forms=(Files(("**/test-*.parquet",), _seed_tables),),
    items=14233,
    prompt=lambda fields: lettered(fields["question"], fields["options"]),
    metric=lambda fields: "mc5",
    cluster=lambda fields: str(fields.get("data_id") or fields["question_id"]),
    source="lmms-lab-encoder/SEED-Bench, split test; its images alone",
  ),
  Task(
    name="mmbench_en_dev",
    folder="mmbench",
    forms=(Files(("**/en/dev-*.parquet",), _mmbench_tables),),
    items=4329,
    prompt=_mmbench,
    metric=lambda fields: "mmbench",
    max_tokens=1024,
    cluster=lambda fields: str(totals.mmbench_question(fields["index"])),
    again=lambda fields, n: {
      **fields,
      "index": int(fields["index"]) + _MMBENCH_NUMBERS * n,
    },
    source="lmms-lab-encoder/MMBench, config en, split dev",
  ),
  Task(
    name="cv_bench",
    folder="cv_bench",
    forms=(
      Files(
        ("**/test_2d.parquet", "**/test_3d.parquet"),
        tables.of_table(
          lambda fields: fields["idx"],
          _CV_BENCH,
          optional=("source_filename",),
        ),
      ),
    ),
    items=2638,
    prompt=_cv_bench,
    metric=lambda fields: "cv_bench",
    cluster=lambda fields: str(fields.get("source_filename") or fields["idx"]),
    max_tokens=1024,
    source="nyu-visionx/CV-Bench, test_2d.parquet and test_3d.parquet",
  ),
)
