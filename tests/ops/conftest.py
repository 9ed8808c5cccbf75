"""The method as a loop over rows, queries and heads, in plain numpy."""

import numpy as np
import pytest

from gaze_jax import types

# An attribute of an enumeration takes long, and this loop asks for millions.
CONTEXT, TEXT, VISUAL = types.Role.CONTEXT, types.Role.TEXT, types.Role.VISUAL


def _descriptors(keys, config):
  """Of one region's keys [n, D]: what `_score` takes."""
  if config.descriptor == "mean":
    return keys.mean(0)[None]
  if config.descriptor == "minmax":
    return np.stack([keys.min(0), keys.max(0)])
  n, m = len(keys), config.sub_cells
  runs = [(i * n // m, max((i + 1) * n // m, i * n // m + 1)) for i in range(m)]
  return np.stack([keys[a:b].mean(0) for a, b in runs])


def _score(query, descriptors, config):
  if config.descriptor == "minmax":
    return np.maximum(query * descriptors[0], query * descriptors[1]).sum()
  return (descriptors @ query).max()


def _budget(k, ready, units_of, config):
  if config.budget == "ratio":
    return int(np.ceil(len(ready) * k / 1000))
  if config.budget == "per_unit":
    return k * len({unit for g in ready for unit in units_of[g]})
  return k


class _Row:
  """One row of a batch."""

  def __init__(self, h, batch, row, k, config):
    lay = batch.layout
    self.q, self.k, self.v = h.q[row], h.k[row], h.v[row]
    self.role, self.unit = lay.role[row], lay.unit[row]
    self.segment, self.branch = lay.segment[row], lay.branch[row]
    self.pages = [p[p >= 0] for p in batch.region_slots[row]]
    self.budget, self.config = k, config
    self.group = self.q.shape[1] // self.k.shape[1]
    slots = batch.answer_slots[row]
    self.chooser = {i: i for i in range(len(self.role))}
    self.answers = set()
    for question in set(batch.answer_of[row]) - {-1}:
      mine = slots[batch.answer_of[row] == question]
      self.answers |= {int(s) + 1 for s in mine}
      if config.refresh == "question":
        self.chooser |= {int(s) + 1: int(mine.min()) for s in mine}

  def ready(self, i):
    return [
      g
      for g, page in enumerate(self.pages)
      if len(page) and page[-1] < i and self.segment[page[0]] == self.segment[i]
    ]

  def choice(self, i, head):
    """Regions that query head `head` of the routed slot i reads."""
    i, config = self.chooser[i], self.config
    ready, heads = self.ready(i), self.q.shape[1]
    together = dict(
      query_head=[head],
      kv_group=[
        p for p in range(heads) if p // self.group == head // self.group
      ],
      layer=range(heads),
    )[config.granularity]
    score = {
      g: sum(
        _score(
          self.q[i, p],
          _descriptors(self.k[self.pages[g], p // self.group], config),
          config,
        )
        for p in together
      )
      for g in ready
    }
    units_of = {g: self.unit[self.pages[g]].tolist() for g in ready}
    count = _budget(self.budget, ready, units_of, config)
    return sorted(ready, key=lambda g: (-score[g], g))[:count]

  def sees(self, i, j, read):
    ok = self.segment[j] == self.segment[i]
    ok &= self.branch[j] in (0, self.branch[i])
    if self.role[i] == CONTEXT:
      ok &= self.unit[j] == self.unit[i]
    if self.role[i] == TEXT and self.role[j] == VISUAL and read is not None:
      ok &= j in read
    if self.config.visual_attention == "own_unit":
      if self.role[i] == self.role[j] == VISUAL:
        ok &= self.unit[j] == self.unit[i]
    return ok

  def out(self, i, head):
    routed = self.role[i] == types.Role.TEXT
    routed &= self.config.route_prompt or i in self.answers
    read = None
    if routed:
      read = {int(t) for g in self.choice(i, head) for t in self.pages[g]}
    seen = [j for j in range(i + 1) if self.sees(i, j, read)]
    kv = head // self.group
    logits = self.k[seen, kv] @ self.q[i, head] / np.sqrt(self.q.shape[-1])
    weights = np.exp(logits - logits.max())
    return weights @ self.v[seen, kv] / weights.sum()


@pytest.fixture
def plain():
  """`plain(heads, batch, budgets, config)`: out [B, S, Q, D]."""

  def run(h, batch, budgets, config):
    out = np.zeros_like(h.q)
    for r, k in enumerate(np.broadcast_to(budgets, (len(h.q),))):
      row = _Row(h, batch, r, int(k), config)
      for i in np.flatnonzero(row.role != types.Role.PAD):
        for head in range(h.q.shape[2]):
          out[r, i, head] = row.out(int(i), head)
    return out

  return run
