"""What the operations of a compiled program on CPU took, by what they are."""

import collections
import gzip
import json
import pathlib
import re
import tempfile
from collections.abc import Callable
from typing import Any

import jax

# Operations that run others, which the profiler lists as well.
_OUTER = ("while", "call", "conditional")
_OPERATION = re.compile(r'%([\w.\-]+) = .*op_name="([^"]*)"')
KINDS = ("products", "attention", "rest")


def of(call: Callable[[], Any], compiled: Any) -> dict[str, float]:
  """Milliseconds of a call by kind.

  Args:
    call: runs the program once.
    compiled: the program.

  Returns:
    By kind: products with weights, attention, the rest; and `copies`, the part
    of the rest that moves numbers alone. What runs side by side counts each.
  """
  names = dict(_OPERATION.findall(compiled.as_text()))
  with tempfile.TemporaryDirectory() as directory:
    with jax.profiler.trace(directory):
      call()
    (file,) = pathlib.Path(directory).rglob("*.trace.json.gz")
    events = json.loads(gzip.open(file).read())["traceEvents"]
  out = collections.Counter(dict.fromkeys((*KINDS, "copies"), 0.0))
  for event in events:
    operation = event.get("args", {}).get("hlo_op")
    if operation is None or operation.startswith(_OUTER):
      continue
    kind = _kind(names.get(operation, ""))
    out[kind] += event["dur"] / 1e3
    if kind == "rest" and re.search("copy|slice|broadcast", operation):
      out["copies"] += event["dur"] / 1e3
  return dict(out)


def _kind(name: str) -> str:
  if "/attend/" in name:
    return "attention"
  return "products" if name.endswith("dot_general") else "rest"


def table(shares: dict[str, dict[str, float]]) -> str:
  """Lines for people, of `of` by method."""
  lines = ["method       operations   products attention     rest (copies)"]
  for method, by_kind in shares.items():
    total = sum(by_kind[kind] for kind in KINDS)
    lines.append(
      f"{method:12s} {total:7.0f} ms  "
      + " ".join(f"{by_kind[x] / total:9.1%}" for x in (*KINDS, "copies"))
    )
  return "\n".join(lines)
