"""Between a row's slots and its regions."""

import jax
import jax.numpy as jnp

from gaze_jax import config as config_lib
from gaze_jax import types
from gaze_jax.kernels import attention

# Up to here a product with a one-hot matrix of regions beats a gather.
FEW = 64


def one_hot(
  region: types.Int[types.Array, "B Y"], regions: int
) -> types.Float[types.Array, "B R Y"]:
  """float32 [B, R, Y], 1 where slot y holds a token of region r.

  Args:
    region: int32 [B, Y], -1 on slots outside every region.
    regions: R.
  """
  ids = jnp.arange(regions, dtype=jnp.int32)
  return (region[:, None, :] == ids[:, None]).astype(jnp.float32)


def mean_keys(
  key: types.Float[types.Array, "B Y H D"],
  members: types.Float[types.Array, "B R Y"],
) -> types.Float[types.Array, "B H R D"]:
  """Descriptor of each region: the mean of its keys.

  See docs/method.md, section 1.

  Args:
    key: [B, Y, H, D], post-RoPE.
    members: float32 [B, R, Y] from `one_hot`.

  Returns:
    float32 [B, H, R, D]; 0 for a region without tokens, NaN where a key is not
    finite.
  """
  # A key that is not finite is no other region's: 0 * NaN would be NaN.
  key, lost = attention.known(key.astype(jnp.float32))
  total = jnp.einsum(
    "bry,byhd->bhrd", members, key, precision=jax.lax.Precision.HIGHEST
  )
  lost = jnp.einsum("bry,byh->bhr", members, jnp.isnan(lost) * 1.0) > 0
  count = members.sum(axis=-1)
  mean = total / jnp.maximum(count, 1.0)[:, None, :, None]
  return jnp.where(lost[..., None], jnp.nan, mean)


def descriptors(
  key: types.Float[types.Array, "B Y H D"],
  region: types.Int[types.Array, "B Y"],
  region_slots: types.Int[types.Array, "B R L"],
  config: config_lib.GazeConfig,
) -> types.Float[types.Array, "B H PR D"]:
  """What each region is scored by (docs/method.md, section 5).

  Args:
    key: [B, Y, H, D], post-RoPE.
    region: int32 [B, Y], -1 on slots outside every region.
    region_slots: int32 [B, R, L], the same the other way round.
    config: for `descriptor` and `sub_cells`.

  Returns:
    float32 [B, H, P * R, D], the first of every region first. mean: P = 1,
    the mean key. submean: the means of P = sub_cells balanced runs of the
    region's tokens (in a region of fewer tokens, runs share one). minmax:
    P = 2, the least and the greatest of each coordinate.
  """
  if config.descriptor == "mean" and region_slots.shape[1] <= FEW:
    return mean_keys(key, one_hot(region, region_slots.shape[1]))
  return of_pages(pages(key, region_slots), region_slots >= 0, config)


def of_pages(
  page: types.Float[types.Array, "B H R L D"],
  valid: types.Bool[types.Array, "B R L"],
  config: config_lib.GazeConfig,
) -> types.Float[types.Array, "B H PR D"]:
  """`descriptors` of keys that are in pages already.

  Args:
    page: [B, H, R, L, D], post-RoPE keys; anything where padded.
    valid: bool [B, R, L], False where a page is padded, which is its end.
    config: for `descriptor` and `sub_cells`.
  """
  b, h, r, l, _ = page.shape
  page = jnp.where(valid[:, None, ..., None], page.astype(jnp.float32), 0.0)
  token = jnp.arange(l)
  size = valid.sum(-1)[..., None]  # [B, R, 1]
  if config.descriptor == "minmax":
    real = (token < size)[:, None, :, :, None]
    least = jnp.where(real, page, jnp.inf).min(axis=3)
    most = jnp.where(real, page, -jnp.inf).max(axis=3)
    both = jnp.stack([least, most], axis=2)
    both = jnp.where((size > 0)[:, None, None], both, 0.0)
    return both.reshape(b, h, 2 * r, -1)
  m = config.sub_cells if config.descriptor == "submean" else 1
  run = jnp.arange(m)
  start = run * size // m  # [B, R, P]
  end = jnp.maximum((run + 1) * size // m, start + 1)
  inside = (start[..., None] <= token) & (token < end[..., None])
  inside &= (size > 0)[..., None]
  mean = jnp.einsum(
    "brpl,bhrld->bhprd",
    inside / jnp.maximum(inside.sum(-1, keepdims=True), 1),
    page,
    precision=jax.lax.Precision.HIGHEST,
  )
  return mean.reshape(b, h, m * r, -1)


def parts(config: config_lib.GazeConfig) -> int:
  """P, descriptors of a region."""
  return dict(mean=1, submean=config.sub_cells, minmax=2)[config.descriptor]


def ends(
  region_slots: types.Int[types.Array, "B R L"],
) -> types.Int[types.Array, "B R"]:
  """int32 [B, R], the slot after each region's last token; 0 if it has none.

  Args:
    region_slots: int32 [B, R, L], -1 where padded.
  """
  return region_slots.max(axis=-1) + 1


def of_first_token(
  x: types.Int[types.Array, "B S"],
  region_slots: types.Int[types.Array, "B R L"],
) -> types.Int[types.Array, "B R"]:
  """int32 [B, R], x at each region's first slot; -1 if the region is empty."""
  return _at(x, region_slots[..., 0])


def of_last_token(
  x: types.Int[types.Array, "B S"],
  region_slots: types.Int[types.Array, "B R L"],
) -> types.Int[types.Array, "B R"]:
  """int32 [B, R], x at each region's last slot; -1 if the region is empty."""
  return _at(x, region_slots.max(axis=-1))


def _at(x: types.Array, slots: types.Array) -> types.Array:
  found = jnp.take_along_axis(x, jnp.maximum(slots, 0), axis=1)
  return jnp.where(slots >= 0, found, -1)


def opened(
  first: types.Int[types.Array, "B R"], last: types.Int[types.Array, "B R"]
) -> types.Int[types.Array, "B R"]:
  """int32 [B, R], how many units begin with each region.

  Regions of the same units follow each other; the first of them opens all.

  Args:
    first: int32 [B, R], the first unit of each region, -1 if it is empty.
    last: int32 [B, R], its last unit, likewise.
  """
  new = (jnp.diff(first, axis=1, prepend=-1) != 0) & (first >= 0)
  return jnp.where(new, last - first + 1, 0)


def places(
  region: types.Int[types.Array, "B S"],
  region_slots: types.Int[types.Array, "B R L"],
) -> types.Int[types.Array, "B S"]:
  """int32 [B, S], where a slot is among its region's; 0 outside every region.

  Args:
    region: int32 [B, S], -1 on slots outside every region.
    region_slots: int32 [B, R, L], the same the other way round.
  """
  own = jnp.maximum(region, 0)[..., None]
  own = jnp.take_along_axis(region_slots, own, axis=1)
  slots = jnp.arange(region.shape[1])[:, None]
  return (own == slots).argmax(axis=-1).astype(jnp.int32)


def pages(
  x: types.Float[types.Array, "B S H D"],
  region_slots: types.Int[types.Array, "B R L"],
) -> types.Float[types.Array, "B H R L D"]:
  """Copies keys or values into region-major pages.

  Args:
    x: [B, S, H, D].
    region_slots: int32 [B, R, L], -1 where padded.

  Returns:
    [B, H, R, L, D], 0 where padded.
  """
  b, r, l = region_slots.shape
  slots = jnp.maximum(region_slots, 0).reshape(b, r * l, 1, 1)
  page = jnp.take_along_axis(x, slots, axis=1).reshape(b, r, l, *x.shape[2:])
  page = jnp.where((region_slots >= 0)[..., None, None], page, 0)
  return page.transpose(0, 3, 1, 2, 4)
