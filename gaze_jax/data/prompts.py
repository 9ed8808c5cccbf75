"""Prompts laid out as rows: text and units, in the smallest row that fits."""

import dataclasses
import itertools
from collections.abc import Sequence

from gaze_jax import config as config_lib
from gaze_jax import types
from gaze_jax.data import units
from gaze_jax.layout import row as row_lib
from gaze_jax.layout import tiles

Part = row_lib.Text | row_lib.Unit

# Rows come in multiples of so many slots and regions, so few programs compile.
_SLOTS, _REGIONS = 64, 8


@dataclasses.dataclass(frozen=True)
class Prompt:
  """Text with its images and videos, as ids and units.

  Attributes:
    parts: text and units, in reading order.
    pixels: of the units, one after the other.
  """

  parts: tuple[Part, ...]
  pixels: units.Pixels


def batch(
  prompts: Sequence[Prompt],
  model: config_lib.ModelConfig,
  shape: row_lib.RowShape | None = None,
) -> types.Batch:
  """Lays prompts out as rows.

  Args:
    prompts: at least one.
    model: the model.
    shape: of every row; by default the smallest with room for each prompt.

  Returns:
    A batch, whose `images` is None when the shape has room for none.

  Raises:
    layout.LayoutError: a prompt does not fit the shape.
  """
  shape = shape or shape_of(prompts, model)
  rows = [row_lib.lay_out(prompt.parts, shape) for prompt in prompts]
  tiles = shape.tiles or shape.units
  if not tiles:
    return row_lib.make_batch(rows, None)
  pixels = units.stack([prompt.pixels for prompt in prompts], tiles)
  return row_lib.make_batch(rows, pixels)


def shape_of(
  prompts: Sequence[Prompt], model: config_lib.ModelConfig
) -> row_lib.RowShape:
  """The smallest row that has room for each of the prompts."""
  texts = [_of_kind(p, row_lib.Text) for p in prompts]
  grids = [_of_kind(p, row_lib.Unit) for p in prompts]
  scored = [sum(len(t.ids) for t in ts if t.question >= 0) for ts in texts]
  context, region = model.gaze.context_tokens, model.gaze.region
  slots = [
    sum(len(t.ids) for t in ts) + sum(u.tokens + context for u in us)
    for ts, us in zip(texts, grids, strict=True)
  ]
  regions = [sum(u.completes(region) for u in us) for us in grids]
  region_lengths = [u.largest_region(region) for u in itertools.chain(*grids)]
  up = lambda n, step: -(-n // step) * step
  return row_lib.RowShape(
    slots=up(max(slots), _SLOTS),
    units=max(len(us) for us in grids),
    unit_tokens=model.vision.tokens,
    regions=up(max(*regions, 1), _REGIONS),
    region_length=max(region_lengths, default=1),
    answer_slots=max(*scored, 1),
    region=region,
    context_tokens=context,
    tiles=max(sum(u.tiles for u in us) for us in grids),
    largest_unit=tiles.largest_unit(model),
    taps=4 if any(u.blend is not None for us in grids for u in us) else 1,
  )


def _of_kind(prompt: Prompt, kind: type) -> list[Part]:
  return [part for part in prompt.parts if isinstance(part, kind)]
