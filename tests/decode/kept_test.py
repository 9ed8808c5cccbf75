"""Contexts by content: read once, within their memory, and the same numbers."""

import jax
import numpy as np
import pytest

from gaze_jax.decode import context
from gaze_jax.decode import kept as kept_lib
from gaze_jax.decode import reading
from gaze_jax.layout import row as row_lib

UNIT = row_lib.Unit(5, 5)


@pytest.fixture
def openings(row):
  """Openings of a prompt: a text and images by seed, each a part."""

  def make(*seeds, budget=2, text=(5, 6)):
    before, parts = context.Context(None), []
    for seed in seeds:
      batch = row([row_lib.Text([1, *text]), UNIT], seed)
      parts.append((before, batch))
      before = context.extended(before, batch)
    return kept_lib.openings(parts, budget)

  return make


@pytest.fixture
def kept(tiny, tiny_params, monkeypatch):
  """A store, and how many openings it has read."""

  def make(limit=10**9):
    out = kept_lib.Kept(tiny_params, tiny, limit)
    out.reads = 0
    read = out._read

    def counted(*args):
      out.reads += 1
      return read(*args)

    out._read = counted
    return out

  return make


def same(a, b):
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_array_equal(x, y)


def test_what_was_read_is_not_read_again(kept, openings):
  store = kept()
  first, reused = store.read(openings(1))
  assert (store.reads, reused) == (1, 0)
  again, reused = store.read(openings(1))
  # 25 visual tokens, 2 context tokens, 3 of text.
  assert (store.reads, reused) == (1, 30)
  same(first, again)
  grown, reused = store.read(openings(1, 2))
  assert (store.reads, reused) == (2, 30)
  store.read(openings(3))
  assert store.reads == 3
  alone, _ = kept().read(openings(1, 2))
  same(alone, grown)
  # Nothing is shown: what every conversation begins with.
  nothing, reused = store.read(())
  assert reused == 0 and int(nothing.length[0]) == 0


def test_a_key_is_of_all_that_is_read(openings):
  key = lambda *seeds, **how: openings(*seeds, **how)[-1].key
  keys = [
    key(1),
    key(2),
    key(1, text=(5, 7)),
    key(1, 2),
    key(2, 2),
    key(1, 2, budget=3),  # of the text behind an image
  ]
  assert len(set(keys)) == len(keys)
  assert key(1) == key(1, budget=3)  # no text of it has an image in sight
  assert key(1, 2) == key(1, 2)


def test_memory_is_bounded_by_what_was_used_last(kept, openings, tiny):
  need, _, _ = kept()._needs(openings(1)[0])
  store = kept(2 * need)
  for seed in (1, 2, 1, 3):
    store.read(openings(seed))
    assert store.nbytes <= 2 * need
  assert store.reads == 3
  store.read(openings(1))
  assert store.reads == 3
  store.read(openings(2))  # used longest ago, and gone
  assert store.reads == 4
  with pytest.raises(context.LimitError, match="kept_bytes is"):
    kept(need - 1).check(openings(1))
  kept(need).check(openings(1))


def test_a_kept_context_is_never_written_into(
  kept, openings, row, tiny, tiny_params
):
  store = kept()
  cache, _ = store.read(openings(1))
  # Copies: a view of an array keeps it from being donated.
  before = jax.tree.map(np.array, cache)
  parts = openings(1)
  after = context.extended(parts[0].before, parts[0].batch)
  batch = row([row_lib.Text([7, 8, 9])])
  for _ in range(2):
    whole = context.dataclasses.replace(after, cache=cache)
    reading.read(tiny_params, tiny, whole, batch, 2, room=4)
  same(before, cache)
