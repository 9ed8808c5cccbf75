"""Prompts of the tasks against lmms-eval 0.7.3's own.

Not a test of the suite: it needs lmms-eval, in an environment of its own, which
tests/evals/lmms_parity.py says how to make.

  HF_HUB_OFFLINE=1 HF_HOME=lmms OPENAI_API_KEY=none \
    python tests/tasks/lmms_prompts.py --lmms=lmms/bin/python

Rows of each task are drawn at random in the columns of its published files, and
written as such. Ours are read from there and prompted; lmms-eval's
`doc_to_text` is called on the rows, with the `default` of its YAML. For each
task it prints how many prompts differ, and why. It exits with 1 if a difference
is unexplained.
"""

import argparse
import collections
import dataclasses
import importlib
import json
import pathlib
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

Doc = dict[str, Any]
PICTURE = {"bytes": b"x", "path": None}
WORDS = """what How many Cats is THE dog (left) of "it"? Red, 5 1,000 0.5 x = 3
don't A. B) <b> é 选 yes no café; [1] {} % $x^2$ a/b""".split()
END_MME = " Please answer yes or no."
END_REAL_WORLD = (
  "\nPlease answer directly with only the letter of the correct option and"
  " nothing else."
)


# --- Rows, in the columns of lmms-eval's data sets.


def text(rng: random.Random) -> str:
  """A few words, with blanks and lines around them now and then."""
  words = " ".join(rng.choices(WORDS, k=rng.randint(1, 8)))
  before, after = rng.choices(("", "", "", " ", "\n"), k=2)
  return before + words + after


def texts(rng: random.Random, least: int, most: int) -> list[str]:
  return [text(rng) for _ in range(rng.randint(least, most))]


def asked(rng: random.Random) -> Doc:
  names = ("answer", "type", "imageId", "id", "dataset", "question_type")
  names += ("questionId", "question_id", "image_id", "category", "image_source")
  return dict.fromkeys(names, "x") | {
    "question": text(rng) + rng.choices(("", END_MME, END_REAL_WORLD))[0],
    "answers": ["x"] * 10,
    "ocr_tokens": texts(rng, 0, 4),
  }


def mmvp(rng: random.Random) -> Doc:
  one, other = (" ".join(rng.choices(WORDS, k=3)) for _ in range(2))
  return {
    "Index": 1,
    "Question": text(rng),
    "Options": f"(a) {one} (b) {other}",
    "Correct Answer": "(a)",
  }


def science_qa(rng: random.Random) -> Doc:
  return {
    "question": text(rng),
    "choices": texts(rng, 2, 5),
    "answer": 0,
    "hint": rng.choices(("", text(rng)))[0],
  }


def mmmu(rng: random.Random) -> Doc:
  words = [*rng.choices(WORDS, k=4), "<image 1>", *rng.choices(WORDS, k=2)]
  again = rng.choices(("", " <image 1>", " <image 2> <image 3>"))[0]
  options = [
    *texts(rng, 2, 8),
    *rng.choices(([], ["<image 4>", "<image 1>"]))[0],
  ]
  choice = rng.random() < 0.7
  return {
    "id": "validation_Art_1",
    "question": " ".join(words) + again,
    "options": repr(options if choice else []),
    "answer": "A",
    "question_type": "multiple-choice" if choice else "open",
    "subfield": "x",
  }


def math_vista(rng: random.Random) -> Doc:
  kind = rng.choices(("text", "integer", "float", "list"))[0]
  choice = kind == "text"
  return {
    "pid": "1",
    "question": text(rng),
    "choices": texts(rng, 2, 8) if choice else None,
    "unit": rng.choices((None, "", "$\\mathrm{cm}$"))[0],
    "precision": rng.choices((1.0, 2.0))[0] if kind == "float" else None,
    "question_type": "multi_choice" if choice else "free_form",
    "answer_type": kind,
    "answer": "1",
  }


def video_mme(rng: random.Random) -> Doc:
  names = ("videoID", "duration", "domain", "sub_category", "task_type")
  lines = [f"{x}. {text(rng)}" for x in "ABCD"]
  doc = dict.fromkeys((*names, "question_id", "answer"), "x")
  return doc | {"question": text(rng), "options": lines}


def mlvu(rng: random.Random) -> Doc:
  """The question holds the options to lmms-eval; `asked` is without them."""
  asked, candidates = text(rng), texts(rng, 4, 4)
  lines = [f"({x}) {y}" for x, y in zip("ABCD", candidates, strict=True)]
  return {
    "question": "\n".join([asked, *lines]),
    "asked": asked,
    "candidates": candidates,
  }


def ego(rng: random.Random) -> Doc:
  lines = [f"{x}. {text(rng)}" for x in "ABCDE"]
  doc = {"video_idx": "x", "answer": "0"}
  return doc | {"question": text(rng), "option": lines}


def long_video(rng: random.Random) -> Doc:
  some = [*texts(rng, 2, 5), *["N/A"] * 5][:5]
  doc = {"id": "x", "video_path": "x", "duration_group": 15}
  doc |= {f"option{i}": x for i, x in enumerate(some)}
  return doc | {"question": text(rng), "correct_choice": 1}


def next_qa(rng: random.Random) -> Doc:
  doc = {f"a{i}": text(rng) for i in range(5)}
  doc |= {"video": 1, "qid": 1, "type": "CW", "answer": 2}
  return doc | {"question": text(rng)}


def compass(rng: random.Random) -> Doc:
  lines = [text(rng), *(f"{x}. {text(rng)}" for x in "ABC")]
  doc = {"video_id": "1", "dim": "order", "answer": "A. x"}
  return doc | {"question": "\n".join(lines)}


def ai2d(rng: random.Random) -> Doc:
  return {"question": text(rng), "options": texts(rng, 2, 4), "answer": "1"}


def mmbench(rng: random.Random) -> Doc:
  none = rng.choices(("nan", None))[0]
  some = [*texts(rng, 2, 4), none, none][:4]
  names = ("category", "L2-category", "source", "split", "answer")
  return dict.fromkeys(names, "x") | {
    "index": 1,
    "question": text(rng),
    "hint": rng.choices((none, text(rng)))[0],
    **dict(zip("ABCD", some, strict=True)),
  }


def seed(rng: random.Random) -> Doc:
  doc = {f"choice_{x}": text(rng) for x in "abcd"}
  doc |= {"question_id": "1", "answer": "A", "data_type": "image"}
  return doc | {"question": text(rng)}


def cv_bench(rng: random.Random) -> Doc:
  doc = dict.fromkeys(("task", "answer", "source"), "x")
  return doc | {"idx": 1, "prompt": text(rng), "choices": texts(rng, 2, 6)}


# --- Rows as published files.


def compass_files(kind: str) -> Callable[[list[Doc]], list[list[Doc]]]:
  kinds = ("multi-choice", "yes_no", "caption_matching")
  return lambda docs: [docs if one == kind else [] for one in kinds]


def mlvu_files(docs: list[Doc]) -> list[list[Doc]]:
  more = {"video": "x.mp4", "answer": "x", "question_type": "ego"}
  return [[doc | more | {"question": doc["asked"]} for doc in docs]]


def write(path: pathlib.Path, docs: list[Doc], pictures: Doc) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  if path.suffix == ".json":
    path.write_text(json.dumps(docs))
    return
  pyarrow = importlib.import_module("pyarrow")
  parquet = importlib.import_module("pyarrow.parquet")
  rows = pyarrow.Table.from_pylist([doc | pictures for doc in docs])
  parquet.write_table(rows, path)


# --- Why a prompt of ours is another.


def at_marks(doc: Doc, theirs: str) -> str:
  """The text with a mark where a picture is shown first."""
  seen: set[str] = set()

  def mark(found: re.Match) -> str:
    first = found[1] not in seen
    seen.add(found[1])
    return "<image>" if first else f"image {found[1]}"

  return re.sub(r"<image (\d)>", mark, theirs)


def whole_options(doc: Doc, theirs: str) -> str | None:
  """The text with options whole, if one holds what lmms-eval ends it at."""
  one, other = doc["Options"].removeprefix("(a) ").split(" (b) ")
  if "(" not in one + other:
    return None
  question, end = doc["Question"], theirs.rsplit("\n", 1)[1]
  return f"{question}\nA. {one}\nB. {other}\n{end}"


# A reason, and how their text becomes ours; None where that is no reason.
Reason = tuple[str, Callable[[Doc, str], str | None]]
REASONS: dict[str, Reason] = {
  "mmmu_val": ("pictures stand where `<image k>` is", at_marks),
  "mmvp": ("an option goes on after a '('", whole_options),
}


# --- The comparison.


@dataclasses.dataclass(frozen=True)
class Case:
  """A task of ours, and where lmms-eval has it.

  Attributes:
    name: in the registry.
    theirs: folder of lmms-eval's tasks, YAML there, function in its utils.
    doc: draws a row.
    form: of the task's `forms`, which is read.
    files: rows -> rows of each of the form's files.
    pictures: columns of pictures, and what is in them.
    changes: of the YAML's `default`.
    only: of lmms-eval's task, printed beside ours.
  """

  name: str
  theirs: tuple[str, str, str]
  doc: Callable[[random.Random], Doc]
  form: int = 0
  files: Callable[[list[Doc]], list[list[Doc]]] = lambda docs: [docs]
  pictures: Doc = dataclasses.field(default_factory=lambda: {"image": PICTURE})
  changes: Doc = dataclasses.field(default_factory=dict)
  only: str = ""


def of_compass(kind: str, yaml: str, function: str) -> Case:
  name = f"tempcompass_doc_to_text_{function}"
  place = ("tempcompass", f"tempcompass_{yaml}.yaml", name)
  files = compass_files(kind)
  return Case("tempcompass", place, compass, files=files, only=kind)


def of_math_vista(name: str) -> Case:
  yaml = f"mathvista_testmini_{name}.yaml"
  return Case(
    f"mathvista_{name}",
    ("mathvista", yaml, "mathvista_doc_to_text"),
    math_vista,
    pictures={"decoded_image": PICTURE},
  )


CASES = (
  Case(
    "gqa",
    ("gqa", "gqa.yaml", "gqa_doc_to_text"),
    asked,
    files=lambda docs: [docs, [{"id": "x"}]],
  ),
  Case(
    "textvqa", ("textvqa", "textvqa_val.yaml", "textvqa_doc_to_text"), asked
  ),
  Case(
    "textvqa_ocr",
    ("textvqa", "textvqa_val.yaml", "textvqa_doc_to_text"),
    asked,
    changes={"ocr": True},
  ),
  Case(
    "ocrbench", ("ocrbench", "ocrbench.yaml", "ocrbench_doc_to_text"), asked
  ),
  Case(
    "realworldqa",
    ("realworldqa", "realworldqa.yaml", "realworldqa_doc_to_text"),
    asked,
  ),
  Case("mmvp", ("mmvp", "mmvp.yaml", "mmvp_doc_to_text"), mmvp),
  Case(
    "scienceqa_img",
    ("scienceqa", "scienceqa_img.yaml", "sqa_doc_to_text"),
    science_qa,
  ),
  Case(
    "mmmu_val",
    ("mmmu", "mmmu_val.yaml", "mmmu_doc_to_text"),
    mmmu,
    pictures={f"image_{i}": PICTURE for i in range(1, 8)},
  ),
  of_math_vista("format"),
  of_math_vista("cot"),
  Case("mme", ("mme", "mme.yaml", "mme_doc_to_text"), asked),
  Case(
    "videomme", ("videomme", "videomme.yaml", "videomme_doc_to_text"), video_mme
  ),
  Case(
    "videomme_sub",
    (
      "videomme",
      "videomme_w_subtitle.yaml",
      "videomme_doc_to_text_subtitle",
    ),
    video_mme,
    only="no subtitles",
  ),
  Case(
    "mlvu_dev",
    ("mlvu", "mlvu_dev.yaml", "mlvu_doc_to_text"),
    mlvu,
    files=mlvu_files,
  ),
  Case(
    "egoschema_subset",
    ("egoschema", "egoschema_subset.yaml", "egoschema_doc_to_text"),
    ego,
    form=1,
  ),
  Case(
    "longvideobench_val",
    (
      "longvideobench",
      "longvideobench_val_v.yaml",
      "longvideobench_doc_to_text",
    ),
    long_video,
    form=1,
  ),
  Case(
    "nextqa_mc_lmms",
    ("nextqa", "nextqa_mc_test.yaml", "nextqa_doc_to_text_mc"),
    next_qa,
    form=1,
  ),
  of_compass("multi-choice", "mc", "multi_choice"),
  of_compass("yes_no", "yes_no", "yes_no"),
  of_compass("caption_matching", "caption_matching", "caption_matching"),
  Case("ai2d", ("ai2d", "ai2d.yaml", "ai2d_doc_to_text"), ai2d),
  Case("chartqa", ("chartqa", "chartqa.yaml", "chartqa_doc_to_text"), asked),
  Case(
    "docvqa_val", ("docvqa", "docvqa_val.yaml", "docvqa_doc_to_text"), asked
  ),
  Case(
    "infovqa_val", ("infovqa", "infovqa_val.yaml", "infovqa_doc_to_text"), asked
  ),
  Case(
    "mmbench_en_dev",
    ("mmbench", "mmbench_en_dev.yaml", "en_utils.mmbench_doc_to_text"),
    mmbench,
  ),
  Case(
    "seed",
    ("seedbench", "seedbench.yaml", "seed_doc_to_text"),
    seed,
    pictures={"image": [PICTURE]},
  ),
  Case("pope", ("pope", "pope.yaml", "pope_doc_to_text"), asked, form=1),
  Case(
    "cv_bench",
    ("cv_bench", "cv_bench.yaml", "cv_bench_doc_to_text"),
    cv_bench,
    files=lambda docs: [docs[:9], docs[9:]],
  ),
)


def ours(case: Case, docs: list[Doc], folder: pathlib.Path) -> list[str]:
  """Our prompts, of what our readers read."""
  registry = importlib.import_module("gaze_jax.tasks.registry")
  task = registry.TASKS[case.name]
  form = task.forms[case.form]
  files = []
  for pattern, rows in zip(form.patterns, case.files(docs), strict=True):
    path = folder / re.sub(r"\[1-7\]", "3", pattern[3:]).replace("*", "x")
    write(path, rows, case.pictures)
    files.append([str(path)])
  return [task.prompt(item.fields) for item in form.read(str(folder), *files)]


def read_yaml(path: pathlib.Path) -> Doc:
  """A YAML file of lmms-eval, with those that it includes."""
  yaml = importlib.import_module("yaml")

  class Loader(yaml.SafeLoader):
    """Which takes `!function` for a text."""

  Loader.add_constructor("!function", lambda loader, node: node.value)
  found = yaml.load(path.read_text(), Loader)
  if "include" in found:
    found = read_yaml(path.parent / found["include"]) | found
  return found


def theirs(wanted: list[Doc]) -> list[list[str]]:
  """lmms-eval's prompts, in its own interpreter."""
  tasks = pathlib.Path(importlib.import_module("lmms_eval.tasks").__file__)
  out = []
  for one in wanted:
    folder, yaml, name = one["theirs"]
    file, _, name = f"utils.{name}".rpartition(".")
    module = f"lmms_eval.tasks.{folder}.{file.split('.')[-1]}"
    to_text = getattr(importlib.import_module(module), name)
    how = read_yaml(tasks.parent / folder / yaml)
    kwargs = how.get("lmms_eval_specific_kwargs", {}).get("default")
    more = () if kwargs is None else ({**kwargs, **one["changes"]},)
    out.append([to_text(doc, *more) for doc in one["docs"]])
  return out


def compare(
  case: Case, docs: list[Doc], mine: list[str], other: list[str]
) -> int:
  """Prints one case; returns what is left unexplained."""
  reason, becomes = REASONS.get(case.name, ("", lambda doc, said: None))
  why: collections.Counter[str] = collections.Counter()
  same = 0
  for doc, one, said in zip(docs, mine, other, strict=True):
    if one == said:
      same += 1
    elif becomes(doc, said) == one:
      why[reason] += 1
    else:
      why["UNEXPLAINED"] += 1
      if why["UNEXPLAINED"] <= 2:
        print(f"   ours {one!r}\n  theirs {said!r}")
  name = f"{case.name} {case.only}"
  print(f"{name:30} {len(docs)} compared, {len(docs) - same} differ", dict(why))
  return why["UNEXPLAINED"]


def main() -> int:
  parser = argparse.ArgumentParser()
  parser.add_argument("--lmms", default="", help="lmms-eval's interpreter")
  parser.add_argument("--n", type=int, default=20)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--answer", default="", help="for its own use")
  args = parser.parse_args()
  if args.answer:
    path = pathlib.Path(args.answer)
    path.write_text(json.dumps(theirs(json.loads(path.read_text()))))
    return 0
  left, wanted, mine = 0, [], []
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    for number, case in enumerate(CASES):
      rng = random.Random(f"{case.name} {case.only} {args.seed}")
      docs = [case.doc(rng) for _ in range(args.n)]
      mine.append(ours(case, docs, folder / str(number)))
      one = {"theirs": case.theirs, "changes": case.changes, "docs": docs}
      wanted.append(one)
    path = folder / "wanted.json"
    path.write_text(json.dumps(wanted))
    command = [args.lmms, __file__, f"--answer={path}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    found = json.loads(path.read_text())
  for case, one, prompts, other in zip(CASES, wanted, mine, found, strict=True):
    left += compare(case, one["docs"], prompts, other)
  print("left unexplained:", left)
  return int(left > 0)


if __name__ == "__main__":
  sys.exit(main())
