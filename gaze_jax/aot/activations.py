"""Activations of a traced training step: what its backward pass reads again.

A loop over layers stacks what each of them keeps, and the loop of the backward
pass, which runs the other way, reads the stacks: these are counted, in the
jaxpr. Outside loops, and where layers are unrolled, the compiler decides what
is there at once, and its temporaries hold all of it.
"""

import math
from typing import Any

from jax.extend import core


def of_jaxpr(jaxpr: Any) -> int:
  """Bytes on all devices together; of micro-batches, those of one."""
  stacked, kept, deepest = set(), 0, 0
  for eqn in jaxpr.eqns:
    inner = list(core.jaxprs_in_params(eqn.params))
    if eqn.primitive.name == "scan":
      if eqn.params["reverse"]:
        read = _stacks(eqn.invars, inner[0].invars)
        kept += sum(_bytes(x) for x in read if id(x) in stacked)
      else:
        stacked |= set(map(id, _stacks(eqn.outvars, inner[0].outvars)))
    deepest = max(deepest, *map(of_jaxpr, inner), 0)
  return kept + deepest


def _stacks(outside: list[Any], inside: list[Any]) -> list[Any]:
  """What a scan takes, or returns, by its turns: one axis more outside."""
  pairs = zip(outside, inside, strict=True)
  return [x for x, part in pairs if x.aval.ndim > part.aval.ndim]


def _bytes(x: Any) -> int:
  return math.prod(x.aval.shape) * x.aval.dtype.itemsize
