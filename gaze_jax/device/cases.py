"""What is checked on a device: the operations of kernels/, inputs, and forms.

Inputs are random. Regions come in several lengths, the last of a row is not
full, and a chosen region is one that the query's own scores choose.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas import tpu as pltpu

from gaze_jax import config as config_lib
from gaze_jax import types
from gaze_jax.kernels import attend_linear
from gaze_jax.kernels import attend_linear_cpu
from gaze_jax.kernels import attend_pages
from gaze_jax.kernels import attend_pages_cpu
from gaze_jax.kernels import attend_pages_tpu
from gaze_jax.kernels import attend_regions
from gaze_jax.kernels import attend_regions_tpu
from gaze_jax.kernels import attend_segments
from gaze_jax.kernels import attend_segments_tpu
from gaze_jax.kernels import attend_visual
from gaze_jax.kernels import attend_visual_gpu
from gaze_jax.kernels import attend_visual_tpu
from gaze_jax.kernels import region_scores
from gaze_jax.kernels import region_scores_cpu
from gaze_jax.kernels import table_product
from gaze_jax.kernels import table_product_cpu
from gaze_jax.ops import regions as regions_lib
from gaze_jax.ops import routing

PLAIN = "xla"  # the form that the others are held against

# By name; each float32 or of the dtype that is checked.
Results = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Size:
  """How large the inputs are.

  Attributes:
    pages: tokens and head dim of a region, of each case.
    regions: R.
    text: routed queries of a row.
    slots: S of a row of visual tokens.
    entries: of a table.
  """

  pages: tuple[tuple[int, int], ...]
  regions: int
  text: int
  slots: int
  entries: int


# On an accelerator, and where kernels are interpreted.
FULL = Size(((36, 128), (9, 64)), 96, 128, 1024, 32_768)
SMALL = Size(((36, 128), (9, 64)), 6, 8, 128, 4_096)
ROWS, QUERY_HEADS, KV_HEADS = 2, 8, 2
GRANULARITIES = ("query_head", "kv_group")


def _served(dtype: Any) -> str | None:
  del dtype


@dataclasses.dataclass(frozen=True)
class Form:
  """A form of an operation.

  Attributes:
    function: of the operation's floats and its other inputs, to `Results`.
    refuses: of a dtype: why the form isn't for it, or None.
  """

  function: Callable[..., Results]
  refuses: Callable[[Any], str | None] = _served


@dataclasses.dataclass(frozen=True)
class Operation:
  """What is computed, of what, and how.

  Attributes:
    name: of a file in kernels/.
    shape: what tells this case of it from others.
    floats: float32 inputs, which are rounded to the dtype that is checked.
    others: the other inputs.
    forms: by name, PLAIN first.
    trained: whether gradients of `floats` are checked too.
  """

  name: str
  shape: str
  floats: tuple[np.ndarray, ...]
  others: Any
  forms: dict[str, Form]
  trained: bool = False


NAMES = (
  *("attend_pages", "attend_linear", "attend_regions", "attend_visual"),
  *("attend_segments", "region_scores", "table_product"),
)


def operations(names: list[str], size: Size, platform: str) -> Iterator:
  """The operations of these names, with the forms that a platform runs.

  A CPU runs those of other platforms interpreted.
  """
  for page in size.pages:
    if "attend_pages" in names:
      yield _pages(*page, size, platform)
    if "attend_regions" in names:
      yield _regions(*page, size, platform)
  if "attend_visual" in names:
    yield _visual(size, platform)
  if "attend_segments" in names:
    yield _segments(size, platform)
  if "attend_linear" in names:
    yield _linear(size, platform)
  if "region_scores" in names:
    yield _scores(size, platform)
  if "table_product" in names:
    yield _table(size, platform)


def draw(*shape: int, seed: int = 0) -> np.ndarray:
  """Normal numbers, float32."""
  rng = np.random.default_rng([seed, *shape])
  return rng.standard_normal(shape, np.float32)


def lengths(regions: int, tokens: int) -> np.ndarray:
  """int32 [ROWS, R], filled tokens of each region; the last is not full."""
  out = np.full((ROWS, regions), tokens, np.int32)
  out[:, -1] = tokens // 2 + 1
  return out


@jax.jit
def choose(
  query: types.Float[types.Array, "B X Q D"],
  k: types.Float[types.Array, "B H R L D"],
  length: types.Int[types.Array, "B R"],
) -> dict[str, tuple[types.Array, types.Array]]:
  """By granularity, scores [B, X, n, R] and the eighth of regions chosen.

  Args:
    query: [B, X, Q, D].
    k: [B, H, R, L, D].
    length: int32 [B, R].
  """
  r, l = k.shape[2:4]
  filled = jnp.arange(l) < length[..., None]
  open_ = jnp.ones((*query.shape[:2], r), bool)
  count = jnp.full(query.shape[:2], max(1, r // 8), jnp.int32)
  out = {}
  for granularity in GRANULARITIES:
    config = config_lib.GazeConfig(granularity=granularity)
    descriptors = regions_lib.of_pages(k, filled, config)
    score = routing.scores(query, descriptors, config)
    out[granularity] = score, routing.members(score, open_, count)
  return out


def _stored(pages: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Pages [B, H, R, L, D] in the shape of a form's `page_shape`."""
  l, d = pages.shape[3:]
  rows = math.prod(shape[:-1])
  pages = jnp.pad(pages, ((0, 0),) * 3 + ((0, rows - l), (0, shape[-1] - d)))
  return pages.reshape(*pages.shape[:3], *shape)


def _chosen(query, k, length) -> types.Array:
  """bool [B, X, Q, R], as float32 at the highest precision chooses."""
  with jax.default_matmul_precision("highest"):
    return choose(query, k, length)["query_head"][1]


def _attended(x: types.Attended) -> Results:
  return {"out": x.out, "lse": x.lse}


def _pages(tokens: int, dim: int, size: Size, platform: str) -> Operation:
  """One new token before chosen pages."""
  query = draw(ROWS, 1, QUERY_HEADS, dim)
  page = (ROWS, KV_HEADS, size.regions, tokens, dim)
  k, v = draw(*page, seed=1), draw(*page, seed=2)
  length = lengths(size.regions, tokens)
  visits = routing.visits(_chosen(query, k, length), KV_HEADS)

  def form(file, **options) -> Form:
    def attend(query, k, v, others):
      shape = file.page_shape(tokens, dim, k.dtype)
      k, v = (_stored(x, shape)[None] for x in (k, v))
      return _attended(
        file.attend_pages(query, k, v, *others, layer=jnp.int32(0), **options)
      )

    return Form(attend)

  forms = {PLAIN: form(attend_pages)}
  if platform == "tpu":
    forms["pallas"] = form(attend_pages_tpu)
  if platform == "cpu":
    forms["cpu"] = form(attend_pages_cpu)
    # One interpreter knows the views that a TPU takes, the other one the rest.
    forms["pallas, interpreted"] = form(attend_pages_tpu, interpret=True)
    simulated = pltpu.InterpretParams()
    forms["pallas, simulated"] = form(attend_pages_tpu, interpret=simulated)
  return Operation(
    "attend_pages", f"{tokens} x {dim}", (query, k, v), (length, visits), forms
  )


def _regions(tokens: int, dim: int, size: Size, platform: str) -> Operation:
  """Text of whole rows before the regions that it chose."""
  query = draw(ROWS, size.text, QUERY_HEADS, dim)
  page = (ROWS, KV_HEADS, size.regions, tokens, dim)
  k, v = draw(*page, seed=1), draw(*page, seed=2)
  length = lengths(size.regions, tokens)

  def form(attend, **options) -> Form:
    return Form(
      lambda query, k, v, others: _attended(
        attend(query, k, v, *others, **options)
      )
    )

  kernel = attend_regions_tpu.attend_regions
  forms = {PLAIN: form(attend_regions.attend_regions)}
  if platform == "tpu":
    forms["pallas"] = form(kernel)
  if platform == "cpu":
    simulated = pltpu.InterpretParams()
    forms["pallas, simulated"] = form(kernel, rows=128, interpret=simulated)
  members = _chosen(query, k, length)
  return Operation(
    "attend_regions",
    f"{tokens} x {dim}",
    (query, k, v),
    (length, members),
    forms,
    trained=True,
  )


def row_layout(slots: int, segments: int) -> types.Layout:
  """Rows of `segments` samples each: text, a unit, two branches, padding."""
  each = slots // segments
  place = np.arange(slots) % each
  text, branch = each // 16, each // 8
  number = np.arange(slots) // each
  role = np.full(slots, types.Role.VISUAL)
  role[place < text] = types.Role.TEXT
  which = np.zeros(slots, int)
  for i in (1, 2):
    at = (place >= each - (i + 1) * branch) & (place < each - i * branch)
    which[at], role[at] = 3 - i, types.Role.TEXT
  outside = (place >= each - branch) | (number >= segments)
  role[outside] = types.Role.PAD
  unit = np.where(role == types.Role.VISUAL, number, -1)
  segment = np.where(outside, -1, number)
  # Nothing here reads region or position.
  leaves = role, unit, unit, np.arange(slots), segment, which
  rows = lambda x: jnp.asarray(np.broadcast_to(x, (ROWS, slots)), jnp.int32)
  return types.Layout(*map(rows, leaves))


def _visual(size: Size, platform: str) -> Operation:
  """Visual tokens of rows of two segments."""
  layout = row_layout(size.slots, segments=2)
  visual = (layout.role == types.Role.VISUAL)[..., None, None]
  heads = QUERY_HEADS, KV_HEADS, KV_HEADS
  dim = 64
  floats = [draw(ROWS, size.slots, n, dim, seed=i) for i, n in enumerate(heads)]

  def form(file, **options) -> Form:
    def attend(query, key, value, layout):
      out = file.attend_visual(query, key, value, layout, **options)
      return {"out": jnp.where(visual, out, 0)}

    return Form(attend)

  forms = {PLAIN: form(attend_visual)}
  if platform == "tpu":
    forms["pallas"] = form(attend_visual_tpu)
  if platform == "gpu":
    forms["cudnn"] = dataclasses.replace(
      form(attend_visual_gpu),
      refuses=lambda dtype: attend_visual_gpu.supported(
        dim=dim, dtypes={dtype}
      ),
    )
  if platform == "cpu":
    forms["pallas, interpreted"] = form(attend_visual_tpu, interpret=True)
    forms["cudnn, interpreted"] = form(attend_visual_gpu, interpret=True)
  return Operation(
    "attend_visual",
    f"{size.slots} x {dim}",
    tuple(floats),
    layout,
    forms,
    trained=True,
  )


def _segments(size: Size, platform: str) -> Operation:
  """Units of a prompt before what came earlier; some slots see nothing."""
  heads = QUERY_HEADS, KV_HEADS, KV_HEADS
  dim, slots = 64, size.slots
  floats = [draw(ROWS, slots, n, dim, seed=i) for i, n in enumerate(heads)]
  place = np.broadcast_to(np.arange(slots, dtype=np.int32), (ROWS, slots))
  query_segment, key_segment = place * 4 // slots, place * 3 // slots
  key_segment = np.where(place % 7 == 0, -1, key_segment)

  def form(attend, **options) -> Form:
    return Form(
      lambda query, key, value, segments: _attended(
        attend(query, key, value, *segments, causal=False, **options)
      )
    )

  kernel = attend_segments_tpu.attend_segments
  forms = {PLAIN: form(attend_segments.attend_segments)}
  if platform == "tpu":
    forms["pallas"] = form(kernel)
  if platform == "cpu":
    forms["pallas, interpreted"] = form(kernel, interpret=True)
  return Operation(
    "attend_segments",
    f"{slots} x {dim}",
    tuple(floats),
    (query_segment, key_segment),
    forms,
  )


def _linear(size: Size, platform: str) -> Operation:
  """A new token before text and context."""
  page = (1, ROWS, KV_HEADS, size.slots, 64)
  floats = draw(ROWS, 1, QUERY_HEADS, 64), draw(*page, seed=1)
  length = np.array([size.slots // 2 + 1, size.slots], np.int32)
  form = lambda file: Form(
    lambda query, k, v, length: _attended(
      file.attend_linear(query, k, v, length, layer=jnp.int32(0))
    )
  )
  forms = {PLAIN: form(attend_linear)}
  if platform == "cpu":
    forms["cpu"] = form(attend_linear_cpu)
  floats = (*floats, draw(*page, seed=2))
  return Operation("attend_linear", f"{size.slots} x 64", floats, length, forms)


def _scores(size: Size, platform: str) -> Operation:
  """A new token's queries with the descriptors of regions."""
  query = draw(ROWS, 1, KV_HEADS, QUERY_HEADS // KV_HEADS, 128)
  table = draw(ROWS, KV_HEADS, size.regions, 128, seed=1)

  def form(file) -> Form:
    def dot(query, table, others):
      del others
      query, table = (x.astype(jnp.float32) for x in (query, table))
      return {"scores": file.region_scores(query, table)}

    return Form(dot)

  forms = {PLAIN: form(region_scores)}
  if platform == "cpu":
    forms["cpu"] = form(region_scores_cpu)
  shape = f"{size.regions} x 128"
  return Operation("region_scores", shape, (query, table), None, forms)


def _table(size: Size, platform: str) -> Operation:
  """Logits of a few rows."""
  floats = draw(4, 128), draw(size.entries, 128, seed=1)

  def form(file) -> Form:
    def logits(x, table, others):
      del others
      return {"logits": file.table_product(x, table, jnp.float32)}

    return Form(logits)

  forms = {PLAIN: form(table_product)}
  if platform == "cpu":
    forms["cpu"] = form(table_product_cpu)
  shape = f"{size.entries} x 128"
  return Operation("table_product", shape, floats, None, forms, trained=True)
