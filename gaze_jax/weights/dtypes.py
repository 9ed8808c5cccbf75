"""In which dtype weights are held, and a model computes.

Matrices, which are nearly all of a model, keep the dtype that they have on
disk, or have the one that was asked for. What is added to them or multiplied
with (norms, biases, positions, context tokens) is float32: it is small, and
every sum that it enters is float32.
"""

import dataclasses
import pathlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from absl import logging

from gaze_jax import config as config_lib
from gaze_jax.weights import errors
from gaze_jax.weights import store
from gaze_jax.weights import tables

CHOICES = ("float32", "bfloat16")
# Last names of parameters that are only operands of products, or looked up.
_MATRICES = ("weight", "kernel", "embedding")


def check(dtype: str | None) -> None:
  """Refuses a dtype that no model is held in.

  Raises:
    ConversionError: naming those that there are.
  """
  if dtype is not None and dtype not in CHOICES:
    raise errors.ConversionError(
      f"dtype = {dtype!r}: give {' or '.join(map(repr, CHOICES))}, or none for"
      " that of the weights on disk"
    )


def held(
  path: Sequence[str], stored: np.dtype, asked: str | None = None
) -> np.dtype:
  """The dtype that a parameter is held in.

  Args:
    path: of the parameter; its last name tells matrices from others.
    stored: the dtype on disk; float16 is held as float32, which is exact.
    asked: one of `CHOICES`, of all matrices; None for the one on disk.
  """
  if path[-1] not in _MATRICES or (stored == np.float16 and not asked):
    return np.dtype(np.float32)
  return np.dtype(asked or stored)


def leaves(
  found: Iterable[store.Leaf], asked: str | None = None
) -> list[store.Leaf]:
  """Leaves that give what is held of them."""
  return [
    dataclasses.replace(leaf, dtype=held(leaf.path, leaf.dtype, asked))
    for leaf in found
  ]


def computed(
  config: config_lib.Config,
  found: Mapping[tables.Path, np.dtype],
  asked: str | None = None,
) -> config_lib.Config:
  """A config that computes in the dtype of the matrices that are held.

  float32 matrices are computed with as the config says, which may be bfloat16:
  a run that was trained so answers so.

  Args:
    config: of the model.
    found: what each parameter is held in, by path.
    asked: as in `held`.
  """
  model = config.model
  for part in ("decoder", "vision"):
    kinds = {
      kind.name
      for path, kind in found.items()
      if path[0] == part and path[-1] in _MATRICES
    }
    if asked or kinds == {"bfloat16"}:
      changed = dataclasses.replace(
        getattr(model, part), dtype=asked or "bfloat16"
      )
      model = dataclasses.replace(model, **{part: changed})
  return dataclasses.replace(config, model=model)


def log_widened(
  directory: pathlib.Path, found: Iterable[store.Leaf], asked: str | None
) -> None:
  """Says that float16 weights will take twice their size."""
  if not asked and any(leaf.dtype == np.float16 for leaf in found):
    logging.warning(
      "%s: float16 weights are held as float32; dtype = 'bfloat16' halves them",
      directory,
    )
