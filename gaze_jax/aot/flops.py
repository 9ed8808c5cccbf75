"""FLOPs of a traced program: what its products and kernels are asked to do.

Counted in the jaxpr, where a loop over layers says how long it is: the
compiler's own count has the body of each loop once. What remat runs again
counts again. Of matrix products and convolutions alone; of a Pallas kernel all
the products of its whole grid, also those of tiles that it skips; of a loop
whose bound is data one turn; of a condition the dearest branch.
"""

import math
from typing import Any

from jax.extend import core


def of_jaxpr(jaxpr: Any) -> float:
  """FLOPs of a jaxpr."""
  return float(sum(map(_of, jaxpr.eqns)))


def _of(eqn: Any) -> float:
  name, params = eqn.primitive.name, eqn.params
  if name == "dot_general":
    (contracted, _), _ = params["dimension_numbers"]
    shape = eqn.invars[0].aval.shape
    depth = math.prod(shape[i] for i in contracted)
    return 2.0 * depth * math.prod(eqn.outvars[0].aval.shape)
  if name == "conv_general_dilated":
    kernel = eqn.invars[1].aval.shape
    features = kernel[params["dimension_numbers"].rhs_spec[0]]
    return (
      2.0
      * math.prod(eqn.outvars[0].aval.shape)
      * (math.prod(kernel) / features)
    )
  if name == "cond":
    return max(map(of_jaxpr, core.jaxprs_in_params(params)))
  inner = sum(map(of_jaxpr, core.jaxprs_in_params(params)))
  if name == "scan":
    return inner * params["length"]
  if name == "shard_map":
    return inner * params["mesh"].size
  if name == "pallas_call":
    return inner * math.prod(params["grid_mapping"].grid)
  return inner
