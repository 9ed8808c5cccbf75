"""Times data on its way to the trainer: opening, decoding, packing.

python benchmarks/data.py [--only=open,pictures,packing]
    [--records=10000,1000000]
    [--seconds=20] [--json=FILE]

open       From a started process, its imports done, to the first batch of a
           prepared set of so many records, in random order over 16 shards:
           seconds, and what the process grows by. The shards are one file.
pictures   Pictures a second that one worker process, and two, hand to the
           trainer, from JPEGs of 640 x 480: read, decoded, resized to 336 each,
           with the tokens of a question, in batches of 8. Beside it the bound:
           as many processes that decode and resize the same files with Pillow,
           and nothing else.
packing    Training on texts, 70 % of which take 1/16 to 1/3 of a row of 1,024
           slots and 30 % from there to all of it, half of each the answer:
           answer tokens a second with packed rows and with one sample a row,
           and the share of slots that is filled. The bound of both is that of
           rows whose every slot is filled, at the same seconds a step.
"""

import io
import json
import multiprocessing
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

import jax
import numpy as np
from absl import flags
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))


from benchmarks import prepared_sets
from gaze_jax import cli
from gaze_jax import config as config_lib
from gaze_jax import errors
from gaze_jax import types
from gaze_jax.data import pipeline
from gaze_jax.data import tokenizer as tokenizer_lib
from gaze_jax.train import optimizer as optimizer_lib
from gaze_jax.train import state as state_lib
from gaze_jax.train import step as step_lib

ROOT = pathlib.Path(__file__).resolve().parent.parent
KINDS = ("open", "pictures", "packing")
_SLOTS, _TEXTS = 1024, 2048
_SHARDS = 16
_SIDE = 336

_ONLY = flags.DEFINE_list("only", list(KINDS), "what is measured")
_RECORDS = flags.DEFINE_list(
  "records", ["10000", "100000", "1000000"], "of the sets that are opened"
)
_SECONDS = flags.DEFINE_float("seconds", 20.0, "of each rate, about", 0.0)
_JSON = cli.define_file("json", "a file for the rows")
# What a process of its own is told to do.
_OPEN = flags.DEFINE_string("open", None, "open this set, print what it took")

Row = dict[str, Any]


def config(directory: pathlib.Path, **data: Any) -> config_lib.Config:
  """A run on a prepared set."""
  data = dict(source="prepared", path=str(directory), workers=0) | data
  return config_lib.from_config_dict(
    dict(
      model=dict(vision=dict(image_size=_SIDE, patch_size=14)),
      data=dict(sequence_length=700) | data,
      train=dict(batch_size=8),
    )
  )


def opened(work: pathlib.Path, records: int) -> list[Row]:
  """Seconds to the first batch, and megabytes."""
  one, many = work / f"one_{records}", work / f"open_{records}"
  each = records // _SHARDS
  texts = tuple(("<image>What is it?", f"number {i % 97}") for i in range(each))
  small = prepared_sets.jpeg(32, 32, 0)
  prepared_sets.make(prepared_sets.Questions((small,), texts), one, each)
  prepared_sets.repeat(one, many, _SHARDS)
  done = subprocess.run(
    [sys.executable, __file__, f"--open={many}"],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    text=True,
  )
  if done.returncode:
    raise errors.GazeError(f"opening {many} ended with {done.returncode}")
  found = json.loads(done.stdout.splitlines()[-1])
  return [
    _row(f"first_batch_{records}", found["seconds"], 5.0, "s"),
    _row(f"memory_{records}", found["bytes"] / 2**20, 60.0, "MB"),
  ]


def _open(directory: str) -> dict[str, float]:
  c = config(pathlib.Path(directory))
  before, start = _resident(), time.perf_counter()
  batches = pipeline.make_iterator(c)
  next(batches)
  seconds, after = time.perf_counter() - start, _resident()
  batches.close()
  return dict(seconds=seconds, bytes=after - before)


def pictures(work: pathlib.Path, workers: int, seconds: float) -> list[Row]:
  """Pictures a second of so many workers."""
  folder = work / "pictures"
  files = tuple(prepared_sets.jpeg(480, 640, i) for i in range(64))
  if not folder.exists():
    texts = tuple(
      ("<image>\nWhat is in the picture, and where is it?", f"A thing {i}.")
      for i in range(1024)
    )
    prepared_sets.make(prepared_sets.Questions(files, texts), folder)
  batches = pipeline.make_iterator(config(folder, max_units=1, workers=workers))
  for _ in range(4 * workers):  # those that were made while they started
    next(batches)
  start, count = time.perf_counter(), 0
  while time.perf_counter() - start < seconds:
    count += len(next(batches)["indices"])
  rate = count / (time.perf_counter() - start)
  batches.close()
  bound = _bound(files, workers, seconds)
  return [_row(f"pictures_{workers}", rate, bound, "a second")]


def _bound(files: tuple[bytes, ...], workers: int, seconds: float) -> float:
  """Pictures a second that Pillow decodes and resizes."""
  context = multiprocessing.get_context("spawn")
  with context.Pool(workers) as pool:
    pool.starmap(_decode_for, [(files, 0.1)] * workers)
    counts = pool.starmap(_decode_for, [(files, seconds)] * workers)
  return sum(counts)


def _decode_for(files: tuple[bytes, ...], seconds: float) -> float:
  start, count = time.perf_counter(), 0
  while time.perf_counter() - start < seconds:
    with Image.open(io.BytesIO(files[count % len(files)])) as image:
      image.convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
    count += 1
  return count / (time.perf_counter() - start)


def packing(work: pathlib.Path, seconds: float) -> list[Row]:
  """Answer tokens a second, packed and not, and the fill."""
  folder = work / "packing"
  prepared_sets.make(prepared_sets.Questions((), _texts()), folder)
  rows, filled = [], {}
  for name, kind in (("packed", "first_fit"), ("unpacked", "none")):
    c = _training(folder, kind)
    optimizer = optimizer_lib.make(c.train)
    state = state_lib.create(c, optimizer)
    step = step_lib.make(c, optimizer)
    shape = c.train.batch_size, c.data.segments
    budget = jax.device_put(np.full(shape, c.model.gaze.top_k, np.int32))
    batches = pipeline.make_iterator(c)
    answers = slots = steps = 0
    start = None
    while start is None or time.perf_counter() - start < seconds:
      batch = next(batches)["batch"]
      state, values = step(state, jax.device_put(batch), budget, {})
      jax.block_until_ready(values)
      if start is None:  # the first one compiles
        start = time.perf_counter()
        continue
      answers += int((batch.answer_slots >= 0).sum())
      slots += int((batch.layout.role != types.Role.PAD).sum())
      steps += 1
    passed = time.perf_counter() - start
    batches.close()
    filled[name] = slots / (steps * c.train.batch_size * _SLOTS)
    rate = answers / passed
    bound = rate / filled[name]
    rows.append(_row(f"answer_tokens_{name}", rate, bound, "a second"))
  rows.append(_row("fill_packed", filled["packed"], 1.0, "of slots"))
  return rows


def _texts() -> tuple[tuple[str, str], ...]:
  """Texts of the mix; a word is a token, as nearly as makes no difference."""
  rng = np.random.default_rng(0)
  tokenizer = tokenizer_lib.Tokenizer.load()
  word = " fox"
  each = len(tokenizer.encode(word * 8)) / 8
  out = []
  for _ in range(_TEXTS):
    short = rng.random() < 0.7
    low, high = (1 / 16, 1 / 3) if short else (1 / 3, 1)
    words = int((rng.uniform(low, high) * _SLOTS - 8) / each)
    asked = max(words // 2, 1)
    out.append((word * asked, word * max(words - asked, 1)))
  return tuple(out)


def _training(folder: pathlib.Path, kind: str) -> config_lib.Config:
  decoder = dict(
    width=256, depth=4, query_heads=4, kv_heads=2, head_dim=64, mlp_dim=768
  )
  vision = dict(image_size=28, patch_size=14, width=32, depth=1, heads=2)
  return config_lib.from_config_dict(
    dict(
      model=dict(vision=vision, decoder=decoder),
      data=dict(
        source="prepared",
        path=str(folder),
        sequence_length=_SLOTS,
        answer_slots=_SLOTS // 2 + 16,
        packing=kind,
        workers=1,
      ),
      train=dict(batch_size=4),
    )
  )


def _row(what: str, value: float, bound: float, unit: str) -> Row:
  row = dict(what=what, value=value, bound=bound, unit=unit)
  print(
    f"{what:24s} {value:10.3f} {unit:10s} bound {bound:10.3f}"
    f"  {value / bound:6.2f}",
    flush=True,
  )
  return row


def _resident() -> int:
  """Bytes that are resident."""
  status = pathlib.Path("/proc/self/status").read_text()
  (line,) = (x for x in status.splitlines() if x.startswith("VmRSS"))
  return int(line.split()[1]) * 1024


def main() -> None:
  if _OPEN.value:
    return print(json.dumps(_open(_OPEN.value)))
  if unknown := set(_ONLY.value) - set(KINDS):
    raise errors.GazeError(
      f"--only={','.join(sorted(unknown))}: there are {', '.join(KINDS)}"
    )
  rows: list[Row] = []
  with tempfile.TemporaryDirectory(prefix="gaze_data_") as folder:
    work = pathlib.Path(folder)
    if "open" in _ONLY.value:
      for records in cli.whole_numbers(_RECORDS):
        rows += opened(work, records)
    if "pictures" in _ONLY.value:
      for workers in (1, 2):
        rows += pictures(work, workers, _SECONDS.value)
    if "packing" in _ONLY.value:
      rows += packing(work, _SECONDS.value)
  if _JSON.value:
    table = json.dumps(dict(rows=rows, cores=os.cpu_count()), indent=1)
    pathlib.Path(_JSON.value).write_text(table + "\n", encoding="utf-8")
    print(f"wrote {_JSON.value}")


if __name__ == "__main__":
  cli.main(main)
