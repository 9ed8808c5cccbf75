"""What the operations of a training step on CPU took, by what they are.

Both sides are given in milliseconds of the clock, so that they can be held
against each other: of ours, operations that run side by side share their time;
those of PyTorch run one after the other, each on all cores.
"""

import collections
import gzip
import json
import pathlib
import re
import tempfile
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax

from benchmarks import timing

# Operations that run others, which the profiler lists as well.
_OUTER = ("while", "call", "conditional", "cond")
_OPERATION = re.compile(r'%([\w.\-]+) = .*op_name="([^"]*)"')
KINDS = ("products", "attention", "rest")

# PyTorch's operations; a linear map is a product with a weight, and bmm and
# softmax are of attention that is written out.
_THEIRS = {
  "products": r"aten::(mm|addmm|linear|mkldnn_convolution|convolution\w*)",
  "attention": r"aten::(_scaled_dot_product\w*|bmm|_softmax\w*)",
}
_THEIR_COPIES = r"aten::(copy_|clone|contiguous|cat|fill_|zero_|index\w*)"

Shares = dict[str, float]


def of(call: Callable[[], Any], compiled: Any) -> Shares:
  """Milliseconds of a call of ours by kind.

  Args:
    call: runs the program once.
    compiled: the program.

  Returns:
    By kind: products with weights, attention, the rest; `copies`, the part of
    the rest that moves numbers alone; and `between`, when no operation ran.
  """
  names = dict(_OPERATION.findall(compiled.as_text()))
  with tempfile.TemporaryDirectory() as directory:
    with jax.profiler.trace(directory):
      passed = _milliseconds(call)
    (file,) = pathlib.Path(directory).rglob("*.trace.json.gz")
    events = json.loads(gzip.open(file).read())["traceEvents"]
  spans = []
  for event in events:
    operation = event.get("args", {}).get("hlo_op")
    if operation is None or operation.startswith(_OUTER):
      continue
    kind = _kind(names.get(operation, ""))
    if kind == "rest" and re.search("copy|slice|broadcast", operation):
      kind = "copies"
    spans.append((event["ts"], event["ts"] + event["dur"], kind))
  taken = [(kind, us / 1e3) for kind, us in divided(spans).items()]
  return _shares(taken, passed)


def of_theirs(call: Callable[[], Any]) -> Shares:
  """The same of a call of PyTorch."""
  profiler = timing.torch.profiler
  with profiler.profile(activities=[profiler.ProfilerActivity.CPU]) as profile:
    passed = _milliseconds(call)
  events = profile.events()
  taken = [(_their_kind(x.name), x.self_cpu_time_total / 1e3) for x in events]
  return _shares(taken, passed)


def _milliseconds(call: Callable[[], Any]) -> float:
  start = time.perf_counter()
  call()
  return (time.perf_counter() - start) * 1e3


def _kind(name: str) -> str:
  if "/attend/" in name:
    return "attention"
  return "products" if name.endswith("dot_general") else "rest"


def _their_kind(name: str) -> str:
  for kind, pattern in _THEIRS.items():
    if re.fullmatch(pattern, name):
      return kind
  return "copies" if re.fullmatch(_THEIR_COPIES, name) else "rest"


def divided(spans: Iterable[tuple[float, float, str]]) -> dict[str, float]:
  """The time that spans (start, stop, kind) cover, by kind.

  Where several do, each has an equal part.
  """
  edges = [
    (at, change, kind)
    for *ends, kind in spans
    for at, change in zip(ends, (1, -1), strict=True)
  ]
  out: dict[str, float] = collections.Counter()
  running, before = collections.Counter(), 0.0
  for at, change, kind in sorted(edges):
    for other, count in (+running).items():  # without those that are 0
      out[other] += (at - before) * count / running.total()
    running[kind] += change
    before = at
  return out


def _shares(taken: Iterable[tuple[str, float]], passed: float) -> Shares:
  """Sums by kind, of a call that took so many milliseconds."""
  out = dict.fromkeys((*KINDS, "copies"), 0.0)
  for kind, milliseconds in taken:
    out[kind] += milliseconds
  out["rest"] += out["copies"]
  out["between"] = passed - sum(out[kind] for kind in KINDS)
  return out


def table(shares: dict[str, Shares]) -> str:
  """Lines for people, of a method each."""
  columns = (*KINDS, "copies", "between")
  lines = [
    "method           ms  products attention      rest  (copies)   between"
  ]
  for method, by_kind in shares.items():
    total = sum(by_kind[kind] for kind in (*KINDS, "between"))
    numbers = " ".join(f"{by_kind[kind]:9.0f}" for kind in columns)
    lines.append(f"{method:12s} {total:6.0f} {numbers}")
  return "\n".join(lines)
