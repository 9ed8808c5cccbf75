"""Routed rows as lanes, and who reads which page (for `gaze_prefill`).

A *tile* is as many routed rows as fit `rows` lanes with the G query heads of
one KV head side by side; N = tiles * rows lanes in all:

  lane    0       1       ..  G-1      G       ..           rows-1
  holds   row 0   row 0       row 0    row 1       ..       row TX-1 | unused
          head 0  head 1      head G-1 head 0
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from gaze_jax import types

_WORD = 32  # pages of a word
BLOCK = 8 * _WORD  # pages of a block of words: 8 sublanes


class Plan(NamedTuple):
  """Who reads what, int32; W = ceil((R + 1) / BLOCK) * 8.

  Page R is nobody's: it ends the lists and has no token.

  Attributes:
    length: [B, 1, 32 W], filled tokens of each page, 0 past R.
    words: [B, H, W, N]; lane n reads page r if bit r % 32 of word r // 32.
    by_tile: [B, H, tiles, 1, 1 + R], a count, then the ids of the pages that
      some lane of the tile reads, ascending, then R. As long as asked for.
    by_page: [B, H, 32 W, 1 + tiles], a count, then the tiles that read it.
  """

  length: types.Leaf
  words: types.Leaf
  by_tile: types.Leaf
  by_page: types.Leaf


def make(length, members, kv_heads: int, rows: int, multiple: int) -> Plan:
  """Lists what each tile reads, and who reads each page.

  Args:
    length: int [B, R], filled tokens of each page.
    members: bool [B, X, Q, R].
    kv_heads: H.
    rows: lanes of a tile.
    multiple: of this many ids the lists by tile are made.
  """
  b, _, _, r = members.shape
  spare = round_up(r + 1, BLOCK) - r
  length = jnp.pad(length.astype(jnp.int32), ((0, 0), (0, spare)))
  members = jnp.pad(members, [(0, 0)] * 3 + [(0, spare)])
  bits = members.reshape(*members.shape[:3], -1, _WORD)
  powers = jnp.uint32(1) << jnp.arange(_WORD, dtype=jnp.uint32)
  words = jnp.where(bits, powers, 0).sum(-1, dtype=jnp.uint32)
  words = to_lanes(words, kv_heads, rows)
  tiles = words.reshape(*words.shape[:3], -1, rows)
  union = jax.lax.reduce(tiles, jnp.uint32(0), jax.lax.bitwise_or, (4,))
  reads = (union[:, :, :, None] & powers[:, None]) > 0
  reads = reads.reshape(b, kv_heads, r + spare, -1)  # [B, H, 32 W, tiles]
  reads &= (length > 0)[:, None, :, None]
  return Plan(
    length=length[:, None],
    words=jax.lax.bitcast_convert_type(words, jnp.int32),
    by_tile=_ids(reads[:, :, :r].swapaxes(2, 3), multiple)[:, :, :, None],
    by_page=_ids(reads, 1),
  )


def _ids(flags, multiple: int):
  """bool [..., n] to int32 [..., 1 + n]: a count, where True, then n's."""
  n = flags.shape[-1]
  ids = jnp.sort(jnp.where(flags, jnp.arange(n, dtype=jnp.int32), n), axis=-1)
  count = flags.sum(-1, keepdims=True, dtype=jnp.int32)
  rest = jnp.full((*flags.shape[:-1], round_up(n, multiple) - n), n, jnp.int32)
  return jnp.concatenate([count, ids, rest], axis=-1)


def tile_rows(x: int, group: int, rows: int) -> int:
  """Lanes of a tile: `rows`, or fewer (of 128) where all rows are fewer."""
  return max(min(rows, round_up(x * group, 128)), group)


def to_lanes(array, kv_heads: int, rows: int):
  """[B, X, Q, D] to [B, H, D, N]; unused lanes are 0."""
  b, x, q, d = array.shape
  group = q // kv_heads
  tile_x = rows // group
  tiles = -(-x // tile_x)
  array = jnp.pad(array, ((0, 0), (0, tiles * tile_x - x), (0, 0), (0, 0)))
  array = array.reshape(b, tiles, tile_x, kv_heads, group, d)
  array = array.transpose(0, 3, 5, 1, 2, 4)
  array = array.reshape(b, kv_heads, d, tiles, tile_x * group)
  array = jnp.pad(array, [(0, 0)] * 4 + [(0, rows - tile_x * group)])
  return array.reshape(b, kv_heads, d, tiles * rows)


def from_lanes(array, x: int, group: int, rows: int):
  """[B, H, D, N] back to [B, X, Q, D]."""
  b, h, d, n = array.shape
  tile_x = rows // group
  array = array.reshape(b, h, d, n // rows, rows)[..., : tile_x * group]
  array = array.reshape(b, h, d, n // rows, tile_x, group)
  array = array.transpose(0, 3, 4, 1, 5, 2)
  return array.reshape(b, -1, h * group, d)[:, :x]


def round_up(n: int, multiple: int) -> int:
  return -(-n // multiple) * multiple
