"""Attention of routed rows to the regions they chose: plain, under a mask."""

import jax.numpy as jnp

from gaze_jax import types
from gaze_jax.kernels import attention


def attend_regions(
  query: types.Float[types.Array, "B X Q D"],
  k: types.Float[types.Array, "B H R L D"],
  v: types.Float[types.Array, "B H R L D"],
  length: types.Int[types.Array, "B R"],
  members: types.Bool[types.Array, "B X Q R"],
) -> types.Attended:
  """Attention of each row to the pages it chose, differentiable in q, k, v.

  Softmax and sums are float32 whatever the inputs are.

  Args:
    query: float32 or bfloat16 [B, X, Q, D], post-RoPE; query head q reads KV
      head q // G.
    k: [B, H, R, L, D], region-major pages, in the dtype of `query`.
    v: [B, H, R, L, D], likewise.
    length: int32 [B, R], filled tokens of each page, a prefix of L; what
      follows is never used. 0 where there is no region.
    members: bool [B, X, Q, R], the regions that each row of each head reads.

  Returns:
    `Attended` of [B, X, Q, D] in the dtype of `v`, lse float32 [B, X, Q]; 0
    and -inf for a row that reads no token. Cotangents of both are used.
  """
  b, h, r, l, d = k.shape
  flat = lambda page: page.reshape(b, h, r * l, d).transpose(0, 2, 1, 3)
  filled = jnp.arange(l) < length[..., None]
  mask = members[..., None] & filled[:, None, None]
  mask = mask.reshape(*members.shape[:3], r * l).transpose(0, 2, 1, 3)
  return attention.attend(query, flat(k), flat(v), mask)
