"""Activations of a traced training step: what its backward pass reads again.

A loop over layers stacks what each of them keeps, and the loop of the backward
pass, which runs the other way, reads the stacks: these are counted, in the
jaxpr. Outside loops, and where layers are unrolled, the compiler decides what
is there at once, and its temporaries hold all of it.
"""

import math
from typing import Any

from gaze_jax.aot import flops


def of_jaxpr(jaxpr: Any) -> int:
  """Bytes on all devices together; of micro-batches, those of one."""
  stacked, kept, deepest = set(), 0, 0
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == "scan":
      params = eqn.params
      if params["reverse"]:
        read = eqn.invars[params["num_consts"] + params["num_carry"] :]
        kept += sum(_bytes(x) for x in read if id(x) in stacked)
      else:
        stacked |= set(map(id, eqn.outvars[params["num_carry"] :]))
    inner = map(of_jaxpr, flops.jaxprs(eqn.params))
    deepest = max(deepest, *inner, 0)
  return kept + deepest


def _bytes(x: Any) -> int:
  return math.prod(x.aval.shape) * x.aval.dtype.itemsize
