"""Caches that grow and stand side by side, by hand."""

import dataclasses

import jax
import numpy as np
import pytest

from gaze_jax.decode import context
from gaze_jax.models import cached


@pytest.fixture
def cache(tiny):
  """8 pages and 64 slots, numbered; submean has descriptors in 3 parts."""
  gaze = dataclasses.replace(
    tiny.gaze, descriptor="submean", sub_cells=3, refresh="question"
  )
  config = dataclasses.replace(tiny, gaze=gaze)
  plain = cached.empty(config, 1, regions=8, region_length=4, capacity=64)

  def number(x):
    numbers = np.arange(1, x.size + 1).reshape(x.shape)
    return jax.numpy.asarray(
      numbers % 2 if x.dtype == bool else numbers
    ).astype(x.dtype)

  return jax.tree.map(number, plain)


def test_a_grown_cache_has_what_it_had_and_nothing_more(cache):
  grown = context.reserve(cache, regions=9, slots=65)
  assert grown.visual.valid.shape == (1, 12, 4)
  assert grown.k.shape[3] == grown.v.shape[3] == 96
  for got, had, axis in (
    (grown.visual.k, cache.visual.k, 3),
    (grown.visual.v, cache.visual.v, 3),
    (grown.visual.valid, cache.visual.valid, 1),
    (grown.k, cache.k, 3),
    (grown.v, cache.v, 3),
    (grown.choice, cache.choice, 3),
  ):
    old, new = np.split(np.asarray(got), [had.shape[axis]], axis=axis)
    np.testing.assert_array_equal(old, had)
    assert new.size and not new.any()
  old, new = np.split(np.asarray(grown.visual.unit), [8], axis=1)
  np.testing.assert_array_equal(old, cache.visual.unit)
  assert (new == -1).all()
  # Descriptors lie by part: 8 regions of each become 12.
  had = np.asarray(cache.visual.descriptors).reshape(2, 1, 2, 3, 8, 8)
  got = np.asarray(grown.visual.descriptors).reshape(2, 1, 2, 3, 12, 8)
  np.testing.assert_array_equal(got[..., :8, :], had)
  assert not got[..., 8:, :].any()


def test_a_cache_with_room_shares_its_pages_and_copies_its_text(cache):
  same = context.reserve(cache, regions=3, slots=10)
  assert same.visual is cache.visual
  places = lambda c: [x.unsafe_buffer_pointer() for x in (c.k, c.v, c.choice)]
  assert not set(places(same)) & set(places(cache))
  np.testing.assert_array_equal(same.k, cache.k)


def test_rows_side_by_side_and_apart_again(cache):
  other = context.reserve(cache, regions=12, slots=96)
  both = context.stack([cache, other], 3)
  assert both.visual.valid.shape == (3, 12, 4)
  for row, one in enumerate((cache, other)):
    alone = context.one_row(both, row)
    slots = one.k.shape[3]
    np.testing.assert_array_equal(alone.k[:, :, :, :slots], one.k)
    np.testing.assert_array_equal(alone.v[:, :, :, :slots], one.v)
    assert alone.length.tolist() == one.length.tolist()
    assert alone.position.tolist() == one.position.tolist()
    pages = one.visual.valid.shape[1]
    np.testing.assert_array_equal(
      both.choice[:, row, :, :pages], one.choice[:, 0]
    )
    np.testing.assert_array_equal(
      both.visual.k[:, row, :, :pages], one.visual.k[:, 0]
    )
    np.testing.assert_array_equal(alone.visual.v[:, :, :, :pages], one.visual.v)
    np.testing.assert_array_equal(
      both.visual.valid[row, :pages], one.visual.valid[0]
    )
  # A row that fills up the batch has nothing.
  empty = context.one_row(both, 2)
  assert not any(np.asarray(x).any() for x in jax.tree.leaves(empty))
  assert not both.visual.valid[2].any()


def test_a_context_forgets_what_was_read_past_it(cache):
  short = context.current_cache(context.Context(cache, length=3, position=28))
  assert (short.length.tolist(), short.position.tolist()) == ([3], [28])
  assert short.k is cache.k
