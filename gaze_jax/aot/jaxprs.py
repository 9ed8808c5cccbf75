"""FLOPs and activations of a traced program, counted in its jaxpr.

The jaxpr says how often a loop over the layers turns, and what it keeps for the
backward pass; the compiler's own analyses count the body of each loop once, and
have one number for all temporaries.
"""

import math
from typing import Any

from jax.extend import core


def flops(jaxpr: Any) -> float:
  """FLOPs of matrix products and convolutions, on all devices together.

  What remat runs again counts again. Of a Pallas kernel all the products of its
  whole grid count, also those of tiles that it skips; of a loop whose bound is
  data one turn; of a condition the dearest branch.
  """
  return sum(map(_flops_of, jaxpr.eqns), 0.0)


def _flops_of(eqn: Any) -> float:
  name, params = eqn.primitive.name, eqn.params
  if name == "dot_general":
    (contracted, _), _ = params["dimension_numbers"]
    shape = eqn.invars[0].aval.shape
    depth = math.prod(shape[i] for i in contracted)
    return 2.0 * depth * math.prod(eqn.outvars[0].aval.shape)
  if name == "conv_general_dilated":
    kernel = eqn.invars[1].aval.shape
    features = kernel[params["dimension_numbers"].rhs_spec[0]]
    out = math.prod(eqn.outvars[0].aval.shape)
    return 2.0 * out * (math.prod(kernel) / features)
  if name == "cond":
    return max(map(flops, core.jaxprs_in_params(params)))
  inner = sum(map(flops, core.jaxprs_in_params(params)), 0.0)
  if name == "scan":
    return inner * params["length"]
  if name == "shard_map":
    return inner * params["mesh"].size
  if name == "pallas_call":
    return inner * math.prod(params["grid_mapping"].grid)
  return inner


def activations(jaxpr: Any) -> int:
  """Bytes that loops keep for the backward pass, on all devices together.

  A loop over layers stacks what each of them keeps, and the loop of the
  backward pass, which runs the other way, reads the stacks. Of micro-batches
  one counts. Outside loops, and where layers are unrolled, the compiler decides
  what is there at once, and its temporaries hold all of it.
  """
  stacked, kept, deepest = set(), 0, 0
  for eqn in jaxpr.eqns:
    inner = list(core.jaxprs_in_params(eqn.params))
    if eqn.primitive.name == "scan":
      if eqn.params["reverse"]:
        read = _stacks(eqn.invars, inner[0].invars)
        kept += sum(_bytes(x) for x in read if id(x) in stacked)
      else:
        stacked |= set(map(id, _stacks(eqn.outvars, inner[0].outvars)))
    deepest = max(deepest, *map(activations, inner), 0)
  return kept + deepest


def _stacks(outside: list[Any], inside: list[Any]) -> list[Any]:
  """What a scan takes, or returns, by its turns: one axis more outside."""
  pairs = zip(outside, inside, strict=True)
  return [x for x, part in pairs if x.aval.ndim > part.aval.ndim]


def _bytes(x: Any) -> int:
  return math.prod(x.aval.shape) * x.aval.dtype.itemsize
