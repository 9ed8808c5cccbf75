"""Times a task of launch/benchmark.py beside lmms-eval's own model.

bash launch/lmms.sh --help    # installs lmms-eval into .venv-lmms
.venv-lmms/bin/python benchmarks/lmms.py [--items=1000] [--per_picture=30]
    [--batches=8,1] [--json=FILE]

The small LLaVA of `small_model` (CLIP 7 x 256, Llama 8 x 512, 576 visual
tokens), float32, is asked questions about pictures in Parquet files of GQA's
columns, 16 new tokens each, all regions read. GQA has 32 questions about each
of its pictures, POPE 18, MME 2; we read each picture once. Methods:

  lmms-eval   `generate_until` of its llava_hf, which takes one question at a
              time; its start and the loading of the model are not counted
  ours, B     all of launch/benchmark.py but the loading of the model: files,
              compilation, pictures, answers, scores, B rows decoded together

Texts must be the same, but where the two best logits are too close for two
programs to agree on; a text that parts there is counted.
"""

import io
import os
import pathlib
import sys
import tempfile
import time
import types
from typing import Any

import jax
import numpy as np
import pyarrow
from absl import flags
from pyarrow import parquet

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks import small_model
from benchmarks import timing
from gaze_jax import api
from gaze_jax import cli
from gaze_jax import errors
from gaze_jax.data import tokenizer as tokenizer_lib
from gaze_jax.decode import programs
from gaze_jax.tasks import asking
from gaze_jax.tasks import media
from gaze_jax.tasks import predictions
from gaze_jax.tasks import registry
from gaze_jax.tasks import run as run_lib
from gaze_jax.tasks import task as task_lib

try:
  from lmms_eval.models.simple import llava_hf
except ImportError:
  llava_hf = None

_ITEMS = flags.DEFINE_integer("items", 1000, "how many questions", 1)
_EACH = flags.DEFINE_integer("per_picture", 30, "questions about each", 1)
_BATCHES = flags.DEFINE_list("batches", ["8", "1"], "rows of ours")
_JSON = cli.define_file("json", "a file for the rows")

TASK = registry.TASKS["gqa"]
# What llava_hf puts before a question goes; the picture stands as ours does.
TEMPLATE = (
  f"{{{{ '{small_model.beginning(1)}{tokenizer_lib.USER} ' +"
  f" messages[0]['content'].replace('{tokenizer_lib.IMAGE}\\n', '') +"
  f" '{tokenizer_lib.ASSISTANT}' }}}}"
)


def write_items(data: pathlib.Path, count: int, each: int) -> None:
  """GQA's two tables, of pictures of 480 x 360 pixels."""
  rng = np.random.default_rng(0)
  words = "where is the red fox and what does it hold now ".split()
  pictures = []
  for number, picture in enumerate(small_model.pictures(-(-count // each))):
    file = io.BytesIO()
    picture.save(file, "PNG")
    cell = {"bytes": file.getvalue(), "path": f"{number}.png"}
    pictures.append({"id": str(number), "image": cell})
  questions = [
    {
      "id": str(i),
      "imageId": str(i // each),
      "question": " ".join(rng.choice(words, int(rng.integers(3, 16)))) + "?",
      "answer": "none",
    }
    for i in range(count)
  ]
  for name, rows in (("instructions", questions), ("images", pictures)):
    folder = data / TASK.folder / f"testdev_balanced_{name}"
    folder.mkdir(parents=True)
    parquet.write_table(
      pyarrow.Table.from_pylist(rows),
      folder / "testdev-00000-of-00001.parquet",
      row_group_size=100,
    )


def ours(
  model: api.Model, data: pathlib.Path, out: pathlib.Path, batch: int
) -> dict[str, Any]:
  """A row of ours, its programs compiled anew."""
  jax.clear_caches()
  before = programs.compiled()
  start = time.perf_counter()
  suite = run_lib.Suite(tasks=[TASK], data=str(data))
  options = asking.Options(share=1.0, batch_size=batch)
  run_lib.run(model, suite, run_lib.load(suite), {out: options})
  seconds = time.perf_counter() - start
  found = predictions.read(out, TASK.name).values()
  texts = [one.text for one in sorted(found, key=lambda one: one.place)]
  compiled = programs.compiled() - before
  return dict(
    method=f"ours, {batch}", seconds=seconds, texts=texts, programs=compiled
  )


def theirs(folder: pathlib.Path, data: pathlib.Path) -> dict[str, Any]:
  """The row of lmms-eval's llava_hf."""
  model = llava_hf.LlavaHf(
    pretrained=str(folder),
    device="cpu",
    device_map="cpu",
    dtype="float32",
    chat_template=TEMPLATE,
  )
  items = sorted(task_lib.items(TASK, str(data)), key=lambda one: one.place)
  model.task_dict = {TASK.name: {"test": items}}
  options = dict(max_new_tokens=TASK.max_tokens, temperature=0)
  requests = [
    types.SimpleNamespace(
      args=(
        *(TASK.prompt(item.fields), dict(options), _picture, item.place),
        *(TASK.name, "test"),
      )
    )
    for item in items
  ]
  start = time.perf_counter()
  texts = model.generate_until(requests)
  return dict(
    method="lmms-eval", seconds=time.perf_counter() - start, texts=texts
  )


def _picture(item: task_lib.Item) -> list[Any]:
  pixels = media.picture(item.images[0], 2**24)
  return [small_model.Image.fromarray(pixels)]


def run(count: int, each: int, batches: list[int]) -> list[dict[str, Any]]:
  """A row for each method; see the top of this file.

  Raises:
    errors.GazeError: lmms-eval is not installed.
  """
  if llava_hf is None:
    raise errors.GazeError(
      "lmms-eval is not installed here: bash launch/lmms.sh --help, and run"
      " this by .venv-lmms/bin/python"
    )
  small_model.torch.set_num_threads(os.cpu_count())
  jax.config.update("jax_enable_compilation_cache", False)
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    small_model.write(folder / "model", small_model.Shape())
    write_items(folder / "data", count, each)
    rows = [theirs(folder / "model", folder / "data")]
    model = api.load(folder / "model")
    for batch in batches:
      out = folder / f"out {batch}"
      rows.append(ours(model, folder / "data", out, batch))
  first = rows[0]
  want = [text.strip() for text in first["texts"]]
  for row in rows:
    texts = [text.strip() for text in row.pop("texts")]
    row["texts_that_part"] = sum(
      a != b for a, b in zip(texts, want, strict=True)
    )
    row["items_per_second"] = count / row["seconds"]
    print(
      f"{row['method']:10s} {row['seconds']:8.1f} s"
      f" {row['items_per_second']:7.2f} items/s"
      f" {first['seconds'] / row['seconds']:5.2f}x"
      f"  {row['texts_that_part']} texts part",
      flush=True,
    )
  return rows


def main() -> None:
  batches = [int(b) for b in _BATCHES.value]
  rows = run(_ITEMS.value, _EACH.value, batches)
  timing.write_json(_JSON.value, dict(rows=rows, **timing.machine()))


if __name__ == "__main__":
  cli.main(main)
