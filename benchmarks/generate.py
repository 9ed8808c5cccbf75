"""Times decoding: ours dense, ours with gaze, and transformers on PyTorch.

python benchmarks/generate.py [--only=576,4608] [--batches=1,8]
    [--methods=dense,gaze_kv_group,transformers] [--json=FILE] [--plot=FILE]
    [--rounds=10] [--seconds=60] [--shape=qwen3-0.6b]

First a small model end to end, unless sizes or methods are chosen: see
generate_small.py. Then one new token a row through a whole decoder of
Qwen3-0.6B's shape with random weights, float32, the same on all sides. The
cache is filled with random visual keys and values, the same memory on all
sides: a prefill of 20,480 tokens would take two cores an hour. A tenth of the
regions is routed. All methods of a case are called in turns, dense always, and
each stands beside its bound: the bytes of weights and cache that its step must
read, over the speed at which memory streams in the same rounds. Before anything
is timed, our dense step and transformers' must agree. 20,480 tokens, and 4,608
in 8 rows, take 10 and 14 GB of memory.
"""

import gc
import os
import pathlib
import sys
from typing import Any

import jax
from absl import flags

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks import chart
from benchmarks import decode_methods
from benchmarks import generate_models
from benchmarks import generate_small
from benchmarks import timing
from gaze_jax import cli
from gaze_jax import config as config_lib
from gaze_jax import errors
from gaze_jax.view import overlay

_CASES = ((576, 1), (4608, 1), (20480, 1), (4608, 8))
_METHODS = {
  "dense": None,
  "gaze_query_head": "query_head",
  "gaze_kv_group": "kv_group",
}
_PEER = "transformers"
_HEADER = (
  "tokens batch  method             ms   median   bound  /bound  speedup  pages"
)
_INSTALL = (
  "transformers is left out: it or PyTorch is not installed; pip install -r"
  " requirements-reference.txt"
)

_ONLY = flags.DEFINE_list("only", None, "visual tokens, such as 576,20480")
_BATCHES = flags.DEFINE_list("batches", None, "rows, such as 1")
_WANTED = flags.DEFINE_list(
  "methods", [*_METHODS, _PEER], "to time, such as dense,transformers"
)
_JSON = cli.define_file("json", "a file for the rows")
_PLOT = cli.define_file("plot", "a picture of one row's steps")
_ROUNDS = flags.DEFINE_integer("rounds", 10, "calls of each method, at most", 1)
_SECONDS = flags.DEFINE_float("seconds", 60.0, "of a case's rounds, about", 0.0)
_SHAPE = flags.DEFINE_enum(
  "shape", "qwen3-0.6b", list(generate_models.SHAPES), "of the decoder"
)


def main() -> None:
  cases = _wanted()
  _check_methods()
  if _PLOT.value:
    overlay.check_name(_PLOT.value)
  if timing.torch is not None:
    timing.torch.set_num_threads(os.cpu_count())
  small = None
  if not any(flag.present for flag in (_ONLY, _BATCHES, _WANTED)):
    small = _small_model()
  rows = real_shaped(cases)
  result = dict(rows=rows, small_model=small, **_about())
  timing.write_json(_JSON.value, result)
  if _PLOT.value:
    _plot(rows)
    print(f"wrote {_PLOT.value}")


def _wanted() -> list[tuple[int, int]]:
  out = _CASES
  for flag, i in ((_ONLY, 0), (_BATCHES, 1)):
    chosen = cli.whole_numbers(flag)
    known = sorted({case[i] for case in _CASES})
    for x in chosen or ():
      if x not in known:
        raise errors.GazeError(
          f"--{flag.name}={x}: there are {', '.join(map(str, known))}"
        )
    out = [case for case in out if chosen is None or case[i] in chosen]
  if not out:
    raise errors.GazeError(
      "nothing to run: the cases are "
      + ", ".join(f"{t} tokens in {b} rows" for t, b in _CASES)
    )
  return out


def _check_methods() -> None:
  known = (*_METHODS, _PEER)
  for method in _WANTED.value:
    if method not in known:
      raise errors.GazeError(
        f"--methods={method}: there are {', '.join(known)}"
      )


def _small_model() -> list[dict] | None:
  """A small model end to end, if transformers is there to compare with."""
  if generate_small.small_model.transformers is None:
    print(_INSTALL)
    return None
  rows = generate_small.run()
  print(generate_small.table(rows), flush=True)
  return rows


def real_shaped(cases: list[tuple[int, int]]) -> list[dict]:
  """A step of a decoder of a real shape, for some (visual tokens, rows)."""
  config = generate_models.SHAPES[_SHAPE.value]
  params = generate_models.weights(config)
  model = _their_model(config, params) if _PEER in _WANTED.value else None
  weights = sum(x.nbytes for x in jax.tree.leaves(params))
  print(f"\nA step of the whole decoder, {weights / 1e9:.2f} GB of weights")
  print(_HEADER)
  rows = []
  for tokens, batch in cases:
    case = generate_models.make(config, tokens, batch)
    line = _line(case, params, model, weights)
    for row in line:
      print(_text(row), flush=True)
    rows += line
    del case
    gc.collect()  # the next cache needs the room
  return rows


def _their_model(config: config_lib.DecoderConfig, params) -> Any:
  """transformers' model, if it is there."""
  if timing.torch is None or generate_models.transformers is None:
    print(_INSTALL)
    return None
  return generate_models.transformers_model(config, params)


def _line(case: generate_models.Case, params, model, weights: int):
  """All methods on one case."""
  steps = {
    name: generate_models.ours(params, case, granularity)
    for name, granularity in _METHODS.items()
    if name in ("dense", *_WANTED.value)
  }
  methods = {name: step.call for name, step in steps.items()}
  cache = None
  if model is not None:
    cache, methods["transformers"] = generate_models.faster(
      case, model, methods["dense"]
    )
    steps["transformers"] = steps["dense"]
  result = timing.in_turns(
    methods, rounds=_ROUNDS.value, seconds=_SECONDS.value
  )
  dense = result.times["dense"].least
  rows = []
  for method, times in result.times.items():
    size = weights + steps[method].bytes
    bound = size / result.bandwidth * 1e3
    rows.append(
      dict(
        visual_tokens=case.tokens,
        batch=len(case.new),
        method=method,
        milliseconds_per_step=times.least,
        median_milliseconds=times.median,
        bound_milliseconds=bound,
        bytes=size,
        pages_read=steps[method].pages_read,
        ratio_to_bound=times.least / bound,
        speedup=dense / times.least,
        bandwidth_gigabytes=result.bandwidth / 1e9,
        rounds=result.rounds,
        cache=cache if method == "transformers" else "pages",
      )
    )
  return rows


def _text(row: dict) -> str:
  own = row["cache"]
  return (
    f"{row['visual_tokens']:6d} {row['batch']:5d}  {row['method']:16s}"
    f" {row['milliseconds_per_step']:8.2f} {row['median_milliseconds']:8.2f}"
    f" {row['bound_milliseconds']:7.2f} {row['ratio_to_bound']:7.2f}"
    f" {row['speedup']:8.2f} {row['pages_read']:6.1%}"
    + (f"  {own}" if own != "pages" else "")
  )


def _about() -> dict:
  return dict(
    statistic="milliseconds_per_step is the least of the rounds,"
    " bound_milliseconds is bytes over the fastest streaming read of the same"
    " rounds, speedup is over our dense step",
    shape=_SHAPE.value,
    regions=decode_methods.REGION,
    routed=decode_methods.ROUTED,
    **timing.machine(),
  )


def _plot(rows: list[dict]) -> None:
  """The steps of one row, or of the fewest that were run."""
  batch = min(row["batch"] for row in rows)
  rows = [row for row in rows if row["batch"] == batch]
  lines = {}
  for row in rows:
    at = row["visual_tokens"], row["milliseconds_per_step"]
    lines.setdefault(row["method"], []).append(at)
  for row in rows:
    if row["method"] in ("dense", "gaze_kv_group"):
      at = row["visual_tokens"], row["bound_milliseconds"]
      lines.setdefault(f"bound ({row['method']})", []).append(at)
  title = (
    f"One step of the decoder, float32, batch {batch}, a tenth of the regions"
  )
  chart.draw(title, lines).save(_PLOT.value)


if __name__ == "__main__":
  cli.main(main)
