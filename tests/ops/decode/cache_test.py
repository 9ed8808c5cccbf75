"""Chunks into caches, and what is counted of a step, by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from gaze_jax import config as config_lib
from gaze_jax import types
from gaze_jax.kernels import attend_pages_tpu
from gaze_jax.ops import regions
from gaze_jax.ops import usage
from gaze_jax.ops.decode import cache

P, T, V, C = types.Role
# Two rows of five slots: v v c v c, and c and padding.
ROLE = np.array([[V, V, C, V, C], [C, P, P, P, P]], np.int32)
REGION = np.array([[1, 0, -1, 1, -1], [-1] * 5], np.int32)
INDEX = np.array([[0, 1, 0, 2, 0], [0] * 5], np.int32)


def chunk():
  zeros = np.zeros_like(ROLE)
  layout = types.Layout(
    role=ROLE,
    unit=np.where(ROLE == P, -1, 0),
    region=REGION,
    position=zeros,
    segment=np.where(ROLE == P, -1, 0),
    branch=zeros,
  )
  return types.Chunk(layout, INDEX)


def numbered(heads=2, dim=2):
  """[1, B, X, H, D]: 1, 2, .. by slot, ten times that in the second head."""
  slot = np.arange(1, 11, dtype=np.float32).reshape(1, 2, 5, 1, 1)
  head = np.array([1, 10], np.float32)[:heads].reshape(heads, 1)
  return jnp.asarray(slot * head * np.ones(dim, np.float32))


def test_context_goes_behind_what_is_filled():
  buffer = jnp.full((1, 2, 2, 6, 2), -1.0)
  length = np.array([3, 0])
  got = np.asarray(
    cache.put_context(buffer, numbered(), chunk().layout, length)
  )
  assert got.shape == buffer.shape
  want = [[-1, -1, -1, 3, 5, -1], [6, -1, -1, -1, -1, -1]]
  for head, scale in enumerate((1, 10)):
    for row in range(2):
      line = [n * scale if n > 0 else n for n in want[row]]
      for d in range(2):
        assert got[0, row, head, :, d].tolist() == line


def test_context_past_the_room_is_dropped():
  buffer = jnp.full((1, 2, 2, 4, 2), -1.0)
  got = cache.put_context(buffer, numbered(), chunk().layout, np.array([3, 4]))
  assert got[0, :, 0, :, 0].tolist() == [[-1, -1, -1, 3], [-1] * 4]


def test_visual_slots_go_to_their_pages():
  pages = jnp.full((1, 2, 2, 3, 4, 2), -1.0)
  got = np.asarray(cache.put_pages(pages, numbered(), chunk()))
  assert got.shape == pages.shape
  want = [[-1, 2, -1, -1], [1, -1, 4, -1], [-1] * 4]
  assert got[0, 0, 0, :, :, 0].tolist() == want
  assert got[0, 0, 0, :, :, 1].tolist() == want
  tens = np.where(np.array(want) > 0, 10 * np.array(want), -1)
  assert got[0, 0, 1, :, :, 0].tolist() == tens.tolist()
  assert (got[0, 1] == -1).all()


@pytest.mark.parametrize("length", [4, 12, 3])
def test_tiled_pages_are_plain_pages_in_tiles(length):
  tiles, t, wide = attend_pages_tpu.page_shape(length, 2, np.float32)
  assert (tiles, t) == {4: (1, 4), 12: (3, 4), 3: (3, 1)}[length]
  plain = cache.put_pages(
    jnp.zeros((1, 2, 2, 3, length, 2)), numbered(), chunk()
  )
  tiled = jnp.zeros((1, 2, 2, 3, tiles, t, wide))
  got = cache.put_pages(tiled, numbered(), chunk())
  assert got.shape == tiled.shape
  got = np.asarray(got).reshape(1, 2, 2, 3, -1, wide)
  np.testing.assert_array_equal(got[..., :2], plain)
  assert not got[..., 2:].any()


# A page of two tokens and room for a third, one that is full, and none.
PAGE = np.array([[1, 6], [3, 2], [99, 99]], np.float32)
FULL = np.array([[0, 1], [1, 5], [5, 3]], np.float32)
VALID = np.array([[[1, 1, 0], [1, 1, 1], [0, 0, 0]]], bool)


@pytest.mark.parametrize(
  "config, want",
  [
    ({}, [[2, 4], [2, 3], [0, 0]]),
    (
      dict(descriptor="minmax"),
      [[1, 2], [0, 1], [0, 0], [3, 6], [5, 5], [0, 0]],
    ),
    (
      dict(descriptor="submean", sub_cells=2),
      [[1, 6], [0, 1], [0, 0], [3, 2], [3, 4], [0, 0]],
    ),
    (
      dict(descriptor="submean", sub_cells=3),  # two tokens, three runs
      [[1, 6], [0, 1], [0, 0], [1, 6], [1, 5], [0, 0], [3, 2], [5, 3], [0, 0]],
    ),
  ],
  ids=["mean", "minmax", "submean", "more runs than tokens"],
)
def test_descriptors_of_pages(config, want):
  page = np.stack([PAGE, FULL, np.full((3, 2), 99, np.float32)])[None, None]
  got = regions.of_pages(page, VALID, config_lib.GazeConfig(**config))
  assert got.dtype == np.float32
  np.testing.assert_allclose(got[0, 0], want, atol=1e-6)


def test_entries_of_a_step_by_hand():
  size = np.array([[4, 2, 1], [3, 0, 0]], np.float32)
  chosen = np.zeros((2, 2, 2, 3), bool)  # [N, B, Q, R]
  chosen[0, 0, 0, [0]] = True  # 4 entries
  chosen[0, 0, 1, [0, 1]] = True  # 6, and 6 together
  chosen[1, 0, 1, [2]] = True  # 0 and 1, and 1 together
  chosen[:, 1, :, 0] = True
  got = usage.of_step(chosen, size, kv_heads=1)
  assert got.tolist() == [[(5 + 0.5) / 2, (6 + 1) / 2], [3, 3]]
  # Of heads that share no keys nothing is read together.
  got = usage.of_step(chosen, size, kv_heads=2)
  assert got.tolist() == [[2.75, 2.75], [3, 3]]
