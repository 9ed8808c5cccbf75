"""Times attention: a decoding step, and a training step, dense and routed.

python benchmarks/attention.py [--only=576,20480] [--json=FILE] [--plot=FILE]
    [--rounds=30] [--seconds=4] [--dtypes=float32,bfloat16]

Decoding: one new token, a tenth of the regions routed, the time of one layer of
several that are called together, as in a model. Every row of the table stands
beside its bound: the bytes that it must read (keys and values of all tokens, or
of the pages chosen and the descriptors) over the speed at which memory streams
in the same run. Training: forward and backward of a row of frames and text. All
methods of a line are called in turns.
"""

import os
import pathlib
import sys

from absl import flags

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks import chart
from benchmarks import decode_methods
from benchmarks import timing
from benchmarks import train_methods
from gaze_jax import cli
from gaze_jax import errors
from gaze_jax.view import overlay

_DECODE_SIZES = (576, 4608, 20480, 65536)
_BATCHES = (1, 8)
_DTYPES = ("float32", "bfloat16")
_HEADS = ((32, 8), (28, 4))
_TRAIN_HEADS = (8, 2)
_HEADER = (
  "tokens batch    dtype heads  method             ms   median   bound"
  "  /bound  speedup  pages"
)
_INSTALL_TORCH = (
  "torch_dense is left out: PyTorch is not installed; pip install torch==2.13.0"
)

_ONLY = flags.DEFINE_list("only", None, "sizes to run, such as 576,20480")
_JSON = cli.define_file("json", "a file for the rows")
_PLOT = cli.define_file("plot", "a picture for the decoding rows")
_ROUNDS = flags.DEFINE_integer("rounds", 30, "calls of each method, at most", 1)
_KINDS = flags.DEFINE_list("dtypes", list(_DTYPES), "of the decoding rows")
_SECONDS = flags.DEFINE_float("seconds", 4.0, "of a line's rounds, about", 0.0)


def main() -> None:
  sizes = cli.whole_numbers(_ONLY)
  _check(sizes)
  wanted = lambda size: sizes is None or size in sizes
  if timing.torch is None:
    print(_INSTALL_TORCH)
  else:
    timing.torch.set_num_threads(os.cpu_count())
  rows = _decoding([x for x in _DECODE_SIZES if wanted(x)])
  train = _training([x for x in train_methods.FRAMES if wanted(x)])
  timing.write_json(_JSON.value, dict(rows=rows, train=train, **_about()))
  if _PLOT.value and rows:
    _plot(rows)
    print(f"wrote {_PLOT.value}")


def _check(sizes: list[int] | None) -> None:
  known = sorted({*_DECODE_SIZES, *train_methods.FRAMES})
  for size in sizes or ():
    if size not in known:
      raise errors.GazeError(
        f"--only={size}: the sizes are {', '.join(map(str, known))}"
      )
  for kind in _KINDS.value:
    if kind not in _DTYPES:
      raise errors.GazeError(f"--dtypes={kind}: one of {', '.join(_DTYPES)}")
  if _PLOT.value:
    overlay.check_name(_PLOT.value)


def _decoding(sizes: list[int]) -> list[dict]:
  rows = []
  if sizes:
    print("\nA decoding step of one layer; ms is the least of the rounds")
    print(_HEADER)
  for tokens in sizes:
    for dtype in _KINDS.value:
      for heads in _HEADS:
        layouts = None
        for batch in _BATCHES:
          case = decode_methods.make(tokens, batch, dtype, *heads)
          layouts = layouts or decode_methods.best_layouts(case)
          line = _line(case, layouts)
          rows += line
          for row in line:
            print(_text(row), flush=True)
          del case
  return rows


def _line(case: decode_methods.Case, layouts: dict[str, str]) -> list[dict]:
  """All methods on one case."""
  routed = ("query_head", "kv_group")
  methods = {m: decode_methods.dense(case, m, x) for m, x in layouts.items()}
  methods |= {f"gaze_{g}": decode_methods.routed(case, g) for g in routed}
  methods["gaze_all_regions"] = decode_methods.every_region(case)
  result = timing.in_turns(
    methods, rounds=_ROUNDS.value, seconds=_SECONDS.value
  )
  everything = decode_methods.page_bytes(case, case.pages)
  must = {m: (everything, 1.0) for m in methods}
  must |= {f"gaze_{g}": decode_methods.chosen_bytes(case, g) for g in routed}
  layers = len(case.caches)
  dense = min(result.times[m].least for m in layouts) / layers
  rows = []
  for method, times in result.times.items():
    size, share = must[method]
    bound = size / result.bandwidth * 1e3
    least, median = times.least / layers, times.median / layers
    rows.append(
      dict(
        visual_tokens=case.tokens,
        batch=case.query.shape[0],
        dtype=str(case.query.dtype),
        heads=f"{case.query.shape[2]}/{case.caches[0].k.shape[1]}",
        method=method,
        layout=layouts.get(method, "pages"),
        milliseconds=least,
        median_milliseconds=median,
        bound_milliseconds=bound,
        bytes=size,
        pages_read=share,
        ratio_to_bound=least / bound,
        speedup=dense / least,
        bandwidth_gigabytes=result.bandwidth / 1e9,
        rounds=result.rounds,
        layers=layers,
      )
    )
  return rows


def _text(row: dict) -> str:
  return (
    f"{row['visual_tokens']:6d} {row['batch']:5d} {row['dtype']:>8s}"
    f" {row['heads']:5s}  {row['method']:16s}"
    f" {row['milliseconds']:8.3f} {row['median_milliseconds']:8.3f}"
    f" {row['bound_milliseconds']:7.3f} {row['ratio_to_bound']:7.2f}"
    f" {row['speedup']:8.2f} {row['pages_read']:6.1%}"
    + (f"  {row['layout']}" if row["layout"] != "pages" else "")
  )


def _training(sizes: list[int]) -> list[dict]:
  rows = []
  q, h = _TRAIN_HEADS
  if sizes:
    print(
      "\nForward and backward of a training step's attention, float32, batch 1,"
      f" heads {q}/{h}\ntokens frames   K    dense ms   gaze ms  speedup"
    )
  for tokens in sizes:
    case = train_methods.make(tokens, q, h, decode_methods.HEAD_DIM)
    methods = train_methods.methods(case)
    result = timing.in_turns(
      methods, rounds=_ROUNDS.value, seconds=_SECONDS.value
    )
    dense, gaze = (result.times[m].least for m in methods)
    row = dict(
      tokens=tokens,
      frames=train_methods.FRAMES[tokens],
      top_k=train_methods.budget(case),
      dense_milliseconds=dense,
      gaze_milliseconds=gaze,
      speedup=dense / gaze,
      rounds=result.rounds,
    )
    rows.append(row)
    print(
      f"{tokens:6d} {row['frames']:6d} {row['top_k']:3d} {dense:11.1f}"
      f" {gaze:9.1f} {row['speedup']:8.2f}",
      flush=True,
    )
  return rows


def _about() -> dict:
  return dict(
    statistic="milliseconds is the least of the rounds, bound_milliseconds is"
    " bytes over the fastest streaming read of the same rounds",
    regions=decode_methods.REGION,
    routed=decode_methods.ROUTED,
    **timing.machine(),
  )


def _plot(rows: list[dict]) -> None:
  """float32, 32/8 heads, one row."""
  picked = [
    r
    for r in rows
    if (r["batch"], r["dtype"], r["heads"]) == (1, "float32", "32/8")
  ]
  lines = {}
  for row in picked:
    at = row["visual_tokens"], row["milliseconds"]
    lines.setdefault(row["method"], []).append(at)
  lines["bound (kv_group)"] = [
    (r["visual_tokens"], r["bound_milliseconds"])
    for r in picked
    if r["method"] == "gaze_kv_group"
  ]
  title = "One decoding step, float32, heads 32/8, a tenth of the regions"
  chart.draw(title, lines).save(_PLOT.value)


if __name__ == "__main__":
  cli.main(main)
