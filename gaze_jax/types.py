"""The dims legend, and the pytrees that travel between the rooms.

Dims (docs/method.md, section 2), used in every shape comment and einsum:

  B rows            S sequence          Q query heads       H KV heads
  G = Q / H         D head dim          M units of a row    R regions of a row
  L tokens of a region (padded)         C context tokens of a unit
  K regions picked  T visual tokens of a unit               F vision width
  E model width     A answer slots      V vocabulary        N layers
  P descriptors of a region             U pages visited by a KV head

A *unit* is an image, a tile or a frame. One row is one sequence in reading
order; a `Layout` holds what each slot of it is:

  slot      0    1 .. 144   145 .. 148   149 ..  156   157 ..  163   164 ..
  role      TEXT VISUAL     CONTEXT      TEXT          TEXT          PAD
  unit      -1   0          0            -1            -1            -1
  region    -1   0 .. 15    -1           -1            -1            -1
  position  0    1 .. 144   145 .. 148   149 ..  156   149 ..  155   0
  segment   0    0          0            0             0             -1
  branch    0    0          0            1             2             0

Branch 0 is the trunk that every branch of its segment sees; branch 1 and
branch 2 (two questions about one image) never see each other, and their
positions both continue from the trunk, so that a question is answered as if
it were alone.
"""

import dataclasses
import enum
from typing import Any

import jax
import jaxtyping
import numpy as np

# An array on the host or in a compiled function. Shapes are checked under
# pytest, never in production: `Float[Array, "B S E"]` with the dims above.
Array = jax.Array | np.ndarray
Float, Int, Bool = jaxtyping.Float, jaxtyping.Int, jaxtyping.Bool

# A field of a pytree: an array, or what stands for one in an abstract pytree.
Leaf = Any


class Role(enum.IntEnum):
  """What a slot of the sequence holds."""

  PAD = 0
  TEXT = 1
  VISUAL = 2
  CONTEXT = 3


def _pytree(cls):
  frozen = dataclasses.dataclass(frozen=True)(cls)
  return jax.tree_util.register_dataclass(frozen)


@_pytree
class Layout:
  """What each slot is; int32 `[B, S]` each (or `[B, X]` for X new slots).

  Attributes:
    role: a `Role`.
    unit: number of the unit within the row; -1 outside VISUAL and CONTEXT.
    region: number of the region within the row; -1 unless VISUAL.
    position: RoPE position.
    segment: packed samples never see each other; -1 on PAD.
    branch: 0 for the trunk, else the branch within the segment.
  """

  role: Leaf
  unit: Leaf
  region: Leaf
  position: Leaf
  segment: Leaf
  branch: Leaf


@_pytree
class Patches:
  """Pictures of any aspect, as patches (SigLIP2 NaFlex).

  Attributes:
    pixels: uint8 [..., T, side * side * 3], or float32 that is normalised;
      patches row-major, each flattened as (row, column, channel). 0 past the
      unit's grid.
    grid: int32 [..., 2], rows and columns of patches, at most T of them; 0
      where there is no unit.
  """

  pixels: Leaf
  grid: Leaf


@_pytree
class Batch:
  """One batch of rows, the same shapes in every step.

  Attributes:
    tokens: int32 [B, S], token ids on TEXT slots, 0 elsewhere.
    layout: `Layout` of [B, S].
    feed: int32 [B, S]; on VISUAL slots the index into the visual tokens of the
      row's pool, flattened to [M * T], or -1 for the learned newline; on
      CONTEXT slots the context token's number; 0 elsewhere. [B, S, 4] where
      tokens are blended.
    region_slots: int32 [B, R, L], the slot of each token of each region; -1
      where padded.
    images: uint8 [P, M, height, width, 3] (or float32 that is normalised),
      `Patches` of [P, M], or float [P, M, T, F] cached features of a frozen
      tower. Each of the P pools is of B / P rows that follow each other; mostly
      of one.
    answer_slots: int32 [B, A], the slots whose *next* token is scored; -1
      where padded.
    answer_of: int32 [B, A], which question of the row it belongs to; -1 where
      padded.
    blend: float32 [B, S, 4], the weights of the visual tokens that `feed`
      names; None where a slot is one token, which is the usual case.
  """

  tokens: Leaf
  layout: Layout
  feed: Leaf
  region_slots: Leaf
  images: Leaf
  answer_slots: Leaf
  answer_of: Leaf
  blend: Leaf = None


@_pytree
class Plan:
  """What routing needs to know of a batch, the same in every layer.

  Attributes:
    layout: `Layout` of [B, S].
    region_slots: int32 [B, R, L].
    segment: int32 [B, R], the segment of each region; -1 where there is none.
    end: int32 [B, R], the slot after a region's last token; 0 likewise.
    unit: int32 [B, R], the first unit of each region; -1 likewise. A region
      has others only where it spans frames.
    opens: int32 [B, R], the units whose first region this is.
    routed: bool [B, S], the slots whose queries choose regions.
    source: int32 [B, S], the slot whose query chooses for each slot; None when
      every query chooses for itself.
    order: int32 [B, S], slots of TEXT and CONTEXT in reading order, then the
      rest.
    rank: int32 [B, S], where each slot is in `order`.
    place: int32 [B, S], where each slot of a region is among its slots.
  """

  layout: Layout
  region_slots: Leaf
  segment: Leaf
  end: Leaf
  unit: Leaf
  opens: Leaf
  routed: Leaf
  source: Leaf
  order: Leaf
  rank: Leaf
  place: Leaf


@_pytree
class Attended:
  """Attention over some keys, ready to be merged with the rest.

  Attributes:
    out: [B, X, Q, D], the softmax-weighted mean of the values; 0 where a query
      sees no key.
    lse: float32 [B, X, Q], log of the softmax's denominator; -inf there.
  """

  out: Leaf
  lse: Leaf


@_pytree
class Visits:
  """The pages that a decoding step reads: once per KV head, for its group.

  Row i of a KV head is token x of query head h * G + g, with i = x * G + g.

  Attributes:
    ids: int32 [B, H, U], region ids; past `count` anything in range.
    rows: int32 [B, H, words, U], a word for 32 rows: bit i % 32 of word i // 32
      is set where row i reads the page; past the last row it is anything.
    count: int32 [B, H], how many entries are real.
  """

  ids: Leaf
  rows: Leaf
  count: Leaf


@_pytree
class Usage:
  """Visual KV entries that routed queries read, summed.

  See docs/method.md, section 8. Every sum is over TEXT queries that have a
  region to choose from, so a quotient with `visible` is a mean fraction.
  float32 scalars.

  Attributes:
    chosen: entries per query head, context tokens included.
    unique: entries per KV head: the union over the heads of its group.
    visible: entries that dense attention would read, without context tokens.
    context: the context tokens among `chosen`.
  """

  chosen: Leaf
  unique: Leaf
  visible: Leaf
  context: Leaf


@_pytree
class VisualCache:
  """The region-major cache of the visual tokens.

  A region is a page: contiguous, of fixed size.

  Attributes:
    k: [B, H, R, L, D] post-RoPE keys ([N, B, ...] for all layers). For the TPU
      kernel [B, H, R, *attend_pages_tpu.page_shape(L, D, dtype)], which memory
      holds without padding.
    v: [B, H, R, L, D] values (likewise).
    descriptors: float32 [B, H, P * R, D], P to a region (likewise); see
      `regions.descriptors`.
    valid: bool [B, R, L], False where a page is padded, which is its end; one
      for all layers.
    unit: int32 [B, R, L], the unit of each token, -1 where a page is padded;
      one for all layers.
  """

  k: Leaf
  v: Leaf
  descriptors: Leaf
  valid: Leaf
  unit: Leaf


@_pytree
class DecodeCache:
  """What decoding needs of the past: one sample a row, all layers.

  Attributes:
    visual: `VisualCache` with a leading N on all but `valid` and `unit`; None
      where it is held apart, as what is never written.
    k: [N, B, H, Y, D] keys of TEXT and CONTEXT slots, in reading order.
    v: [N, B, H, Y, D] values.
    length: int32 [B], filled slots of Y.
    position: int32 [B], RoPE position of the next token.
    choice: bool [N, B, Q, R], the regions that the prompt's last token chose;
      None unless the answer keeps to them.
  """

  visual: VisualCache | None
  k: Leaf
  v: Leaf
  length: Leaf
  position: Leaf
  choice: Leaf


@_pytree
class Chunk:
  """Slots of one row that are added to its cache together, no TEXT among them.

  Attributes:
    layout: `Layout` of [B, X], in the numbers of the whole row; PAD past the
      last. The context tokens of a unit are in one chunk.
    index: int32 [B, X], on VISUAL slots the place within the region's page.
  """

  layout: Layout
  index: Leaf


@_pytree
class Trace:
  """Where queries looked, in all layers.

  Attributes:
    chosen: bool [N, B, X, Q, R], the regions read.
    scores: float32 [N, B, X, Q, R], each head's own score of each region; None
      unless it was asked for, as `dense`.
    dense: float32 [N, B, X, Q, R], the share of its attention that each region
      would get if the query read everything; the rest is text's and context's.
  """

  chosen: Leaf
  scores: Leaf = None
  dense: Leaf = None


@_pytree
class ModelOutput:
  """What the parallel form returns.

  Attributes:
    logits: float32 [B, A, V] at the answer slots.
    usage: `Usage`, summed over layers.
    chosen: bool [N, B, A, Q, R], the regions read at each answer slot.
    router_loss: float32 [B] in nats, summed over layers, slots and those that
      choose (see `mllm.router_terms`); 0 unless scores learn by distillation.
  """

  logits: Leaf
  usage: Usage
  chosen: Leaf
  router_loss: Leaf
