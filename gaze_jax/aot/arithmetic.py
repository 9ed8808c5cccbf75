"""Memory of a training step by arithmetic, where there is no compiler.

Bytes of a device, of a mesh of `data` x `fsdp` x `tensor` (x `sequence`):

  parameters   4 P                      those of frozen parts as they are kept
  optimizer    8 P' (AdamW), 4 P' (EMA) P' of P train
  gradients    4 P'                     as much again to add micro-batches up
  activations  n S E w (N (1 + kept) + work) + the head's and the tower's

each divided by how far the mesh cuts it. n are the rows of a micro-batch on a
device, S slots, E the width, w the bytes of the computation's dtype, N layers.
`kept` is what remat keeps of a layer, in units of E, beside its input:

  full         0
  attention    (2 Q + 2 H) D / E + 1    query, key, value, attention, out
  dots         the same + 2 F / E       gate, up; F the hidden width
  none         the same, and again      norms and products, about twice dots

`work` is one layer at its backward pass: twice what "dots" keeps. The head has
its logits at answer slots thrice in float32 (themselves, their gradient, the
softmax) and the table of embeddings, gathered, in w bytes and its gradient in
4. The tower keeps, of each block, its input (remat) or 8 F' + 4 T Q' (F' its
width, T tokens, Q' heads: the weights of attention) of 4 bytes for each token.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from gaze_jax import config as config_lib
from gaze_jax import layout as layout_lib
from gaze_jax.parallel import mesh as mesh_lib
from gaze_jax.train import groups
from gaze_jax.train import optimizer as optimizer_lib
from gaze_jax.train import state as state_lib


@dataclasses.dataclass(frozen=True)
class Estimate:
  """Bytes of a device; see the top of this file."""

  parameters: int
  optimizer: int
  gradients: int
  activations: int

  @property
  def total(self) -> int:
    return sum(dataclasses.astuple(self))


def estimate(config: config_lib.Config, sizes: dict[str, int]) -> Estimate:
  """Of a training step.

  Args:
    config: of the run.
    sizes: of the mesh's axes.
  """
