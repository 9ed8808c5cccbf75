"""Times a training step: ours dense, ours with gaze, and transformers.

python benchmarks/train.py [--json=FILE] [--rounds=5] [--seconds=120]
    [--shape=llava-38m]

One LLaVA with random weights (`train_models`), written by transformers and
read by both sides; float32, the same rows, AdamW with the same settings, the
gradient clipped. Before anything is timed, our dense loss must be that of
transformers. Its faster attention, sdpa or eager, is the one that stands in
the table. Gaze reads a tenth of the regions and four context tokens; the share
of the visual entries that it reads is printed. All methods are called in turns,
and of the times the least is kept, as it is of the CPU seconds of all threads.

The bound is the step's FLOPs (train/flops.py) over the fastest matrix product
of the same rounds. Then one more step of each goes through its profiler, and
its milliseconds are shared out: products with weights, attention, the rest.
"""

import os
import pathlib
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import flags

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks import small_model
from benchmarks import step_shares
from benchmarks import timing
from benchmarks import train_models
from gaze_jax import cli
from gaze_jax import errors

_LARGEST_DIFFERENCE = 1e-4  # of losses
_LEAST_ROUNDS = 2
_PRODUCT = (4096, 512, 1536)  # rows, inputs, outputs of the product timed
_HEADER = (
  "method         tokens/s  seconds  median  CPU s   bound  /bound  faults"
)

_JSON = cli.define_file("json", "a file for the rows")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "calls of each method, at most", 1)
_SECONDS = flags.DEFINE_float("seconds", 120.0, "of the rounds, about", 0.0)
_SHAPE = flags.DEFINE_enum(
  "shape", "llava-38m", list(train_models.SHAPES), "of model and batch"
)


def main() -> None:
  small_model.check_installed()
  small_model.torch.set_num_threads(os.cpu_count())
  shape = train_models.SHAPES[_SHAPE.value]
  steps = _steps(shape)
  _check(steps)
  rows, rate = _measure(steps, shape)
  print(f"\nproducts reach {rate / 1e9:.0f} GFLOP/s\n{_HEADER}")
  for row in rows:
    print(_text(row))
  shares = {
    row["method"]: step_shares.of(step.call, step.compiled)
    if step.compiled
    else step_shares.of_theirs(step.call)
    for row in rows
    for step in [steps[row["form"]]]
  }
  print(f"\n{step_shares.table(shares)}", flush=True)
  result = dict(rows=rows, shares=shares, **_about(rate))
  timing.write_json(_JSON.value, result)


def _steps(shape: train_models.Shape) -> dict[str, train_models.Step]:
  """A step by each method, and by transformers with each attention."""
  text = train_models.draw(shape)
  with tempfile.TemporaryDirectory() as name:
    directory = pathlib.Path(name)
    train_models.write(directory, shape)
    steps = {
      f"transformers {kind}": train_models.theirs(directory, shape, text, kind)
      for kind in train_models.PEERS
    }
    for name, routed in (("dense", False), ("gaze", True)):
      steps[name] = train_models.ours(directory, shape, text, routed=routed)
  for name, step in steps.items():
    print(f"{name}: loss {step.loss:.6f}, visual entries {step.read:.1%}")
  return steps


def _check(steps: dict[str, train_models.Step]) -> None:
  """Our dense loss must be theirs.

  Raises:
    GazeError: it is not.
  """
  want, got = (steps[x].loss for x in ("transformers eager", "dense"))
  if not abs(want - got) <= _LARGEST_DIFFERENCE:
    raise errors.GazeError(
      f"the loss of transformers is {want:.6f}, ours {got:.6f}: these are not"
      " one model on the same rows"
    )


def _measure(
  steps: dict[str, train_models.Step], shape: train_models.Shape
) -> tuple[list[dict], float]:
  """Rows of the table, and FLOPs a second of the fastest product."""
  product = _product()
  taken: dict[str, list[tuple[float, float, int]]] = {x: [] for x in steps}
  fastest, start = np.inf, time.perf_counter()
  for done in range(_ROUNDS.value):
    spent = time.perf_counter() - start
    if done >= _LEAST_ROUNDS and spent > _SECONDS.value:
      break
    fastest = min(fastest, *(_timed(product)[0] for _ in range(10)))
    for name, step in steps.items():
      taken[name].append(_timed(step.call))
  rate = 2 * np.prod(_PRODUCT, dtype=float) / fastest
  least = {name: min(x)[0] for name, x in taken.items()}
  peer = min((x for x in steps if x.startswith("transformers")), key=least.get)
  bound = steps["dense"].flops / rate
  rows = []
  for method, name in (
    ("transformers", peer),
    ("dense", "dense"),
    ("gaze", "gaze"),
  ):
    seconds, cpu, faults = zip(*taken[name], strict=True)
    rows.append(
      dict(
        method=method,
        form=name,
        tokens_per_second=shape.rows * shape.slots / min(seconds),
        seconds=min(seconds),
        median_seconds=float(np.median(seconds)),
        cpu_seconds=min(cpu),
        bound_seconds=bound,
        page_faults=min(faults),
        speedup=least[peer] / min(seconds),
        visual_read=steps[name].read,
        loss=steps[name].loss,
        rounds=len(seconds),
      )
    )
  return rows, rate


def _product() -> Callable[[], Any]:
  """A matrix product as the decoder has them."""
  rows, inputs, outputs = _PRODUCT
  x, y = (
    jax.random.normal(jax.random.key(i), size)
    for i, size in enumerate([(rows, inputs), (inputs, outputs)])
  )
  multiply = jax.jit(jax.numpy.matmul)
  call = lambda: multiply(x, y).block_until_ready()
  call()  # compiles
  return call


def _timed(call: Callable[[], Any]) -> tuple[float, float, int]:
  """Seconds, CPU seconds of all threads, and page faults of a call."""
  before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
  call()
  seconds = time.perf_counter() - start
  after = resource.getrusage(resource.RUSAGE_SELF)
  cpu = lambda x: x.ru_utime + x.ru_stime
  return seconds, cpu(after) - cpu(before), after.ru_minflt - before.ru_minflt


def _text(row: dict) -> str:
  return (
    f"{row['method']:14s} {row['tokens_per_second']:8.0f} {row['seconds']:8.2f}"
    f" {row['median_seconds']:7.2f} {row['cpu_seconds']:6.2f}"
    f" {row['bound_seconds']:7.2f} {row['seconds'] / row['bound_seconds']:7.2f}"
    f" {row['page_faults']:7d}"
    + ("" if row["form"] == row["method"] else f"  {row['form']}")
  )


def _about(rate: float) -> dict:
  return dict(
    statistic="seconds is the least of the rounds, bound_seconds is FLOPs over"
    " the fastest matrix product of the same rounds, speedup is over"
    " transformers",
    shape=_SHAPE.value,
    gigaflops_per_second=rate / 1e9,
    **timing.machine(),
  )


if __name__ == "__main__":
  cli.main(main)
