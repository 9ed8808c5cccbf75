"""Contexts of what prompts show, kept by content: read once, asked often.

A prompt is cut where a message has shown its last image, and read up to there
as a context of its own, whether it is kept or not. So what follows is computed
from the same numbers whoever read them:

  prompt    t | v v c c | t t t t | v v c c | t t t
  openings  [1          ] [2                ]
"""

import collections
import dataclasses
import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from gaze_jax import config as config_lib
from gaze_jax import types
from gaze_jax.decode import context as context_lib
from gaze_jax.decode import reading
from gaze_jax.models import mllm


class Opening(NamedTuple):
  """A part of a prompt that ends with an image.

  Attributes:
    key: of its content, and of all before it.
    before: the context that it follows, without a cache.
    batch: `Batch` of the part, in numpy.
    budget: K of the text in it that has images in sight; 0 without any.
  """

  key: bytes
  before: context_lib.Context
  batch: types.Batch
  budget: int


def openings(
  parts: Sequence[tuple[context_lib.Context, types.Batch]], budget: int
) -> tuple[Opening, ...]:
  """Parts of a prompt that follow each other, as openings.

  Args:
    parts: what each follows, without a cache, and its `Batch` in numpy.
    budget: K of the prompt.
  """
  out, key = [], b""
  for before, batch in parts:
    role = np.asarray(batch.layout.role)[0]
    text = np.flatnonzero(role == types.Role.TEXT)
    shown = np.flatnonzero(role == types.Role.VISUAL)
    first = -1 if before.units else shown.min(initial=len(role))
    own = budget if text.max(initial=-1) > first else 0
    key = _key(key, batch, own)
    out.append(Opening(key, before, batch, own))
  return tuple(out)


def _key(before: bytes, batch: types.Batch, budget: int) -> bytes:
  """Of what is read, and of all that it follows."""
  out = hashlib.sha256(before)
  for x in jax.tree.leaves((batch, np.int64(budget))):
    out.update(repr((x.shape, x.dtype.str)).encode())
    out.update(np.ascontiguousarray(x))
  return out.digest()


class Kept:
  """Contexts that were read last, within a limit of memory.

  Args:
    params: as in `mllm.apply`.
    config: the model.
    limit: bytes that they may take on a device.

  Attributes:
    nbytes: that they take there.
  """

  def __init__(
    self, params: mllm.Params, config: config_lib.ModelConfig, limit: int
  ):
    self._params, self._config, self._limit = params, config, limit
    # The one used last comes last.
    self._contexts: collections.OrderedDict[
      bytes, tuple[context_lib.Context, int]
    ] = collections.OrderedDict()
    self._empty: context_lib.Context | None = None
    self.nbytes = 0

  def check(self, openings: Sequence[Opening]) -> None:
    """Refuses a prompt that shows more than may ever be kept.

    Raises:
      context_lib.LimitError: saying by how much.
    """
    for opening in openings[-1:]:
      need, regions, slots = self._needs(opening)
      context_lib.check_bytes(need, self._limit, regions, slots, "kept_bytes")

  def read(self, openings: Sequence[Opening]) -> tuple[types.DecodeCache, int]:
    """Reads what of a prompt's openings is not kept.

    Returns:
      The cache after them, and how many of their slots were there already.
    """
    first, context = 0, self._nothing()
    for number, opening in enumerate(openings, 1):
      if opening.key in self._contexts:
        first, context = number, self._contexts[opening.key][0]
        self._contexts.move_to_end(opening.key)
    reused = context.length + context.visual_tokens
    for opening in openings[first:]:
      context = self._read(
        opening, dataclasses.replace(opening.before, cache=context.cache)
      )
    return context.cache, reused

  def _read(
    self, opening: Opening, before: context_lib.Context
  ) -> context_lib.Context:
    need, regions, slots = self._needs(opening)
    while self._contexts and self.nbytes + need > self._limit:
      _, (_, freed) = self._contexts.popitem(last=False)
      self.nbytes -= freed
    cache, _, _ = reading.read_together(
      self._params,
      self._config,
      [reading.Prompt(before, opening.batch, opening.budget)],
      regions=regions,
      slots=slots,
    )
    after = context_lib.extended(before, opening.batch)
    # What it shows is the request's, and need not be held for others.
    after = dataclasses.replace(after, cache=cache, views=(), talk=())
    if need <= self._limit:
      self._contexts[opening.key] = after, need
      self.nbytes += need
    return after

  def _needs(self, opening: Opening) -> tuple[int, int, int]:
    """Bytes on a device, regions and slots of the context after an opening."""
    after = context_lib.extended(opening.before, opening.batch)
    regions, slots = reading.needs(after, 1)
    need = context_lib.row_bytes(self._config, regions, slots)
    return need, regions, slots

  def _nothing(self) -> context_lib.Context:
    """The context that every conversation begins with."""
    if self._empty is None:
      self._empty = context_lib.empty(self._config)
    return self._empty
