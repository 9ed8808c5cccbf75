"""Prompts as a checkpoint of transformers wants them: raw text with marks.

The prompt is tokenized as it stands, special tokens included, as with a
tokenizer of transformers; the chat format is up to whoever writes it. Each
`<image>` and `<video>` in it stands for all the tokens of one image or video.
"""

import dataclasses
import os
import pathlib
import re
from collections.abc import Sequence

import tokenizers

from gaze_jax import config as config_lib
from gaze_jax import types
from gaze_jax.data import images as images_lib
from gaze_jax.data import samples
from gaze_jax.data import tokenizer as tokenizer_lib
from gaze_jax.data import units
from gaze_jax.layout import row as row_lib
from gaze_jax.layout import tiles

IMAGE, VIDEO = "<image>", "<video>"
Part = row_lib.Text | row_lib.Unit

# Rows come in multiples of so many slots and regions, so few programs compile.
_SLOTS, _REGIONS = 64, 8


@dataclasses.dataclass(frozen=True)
class Request:
  """One prompt with its images and videos.

  Attributes:
    parts: text and units, in reading order.
    pixels: of the units, one after the other.
  """

  parts: tuple[Part, ...]
  pixels: units.Pixels


def read_tokenizer(path: str | os.PathLike) -> tokenizers.Tokenizer:
  """Reads a tokenizer.json, or that of a directory (`tokenizer.read`).

  Raises:
    samples.DataError: it is missing or broken.
  """
  file = pathlib.Path(path)
  file = file / "tokenizer.json" if file.is_dir() else file
  return tokenizer_lib.read(file)


def make(
  prompt: str,
  tokenizer: tokenizers.Tokenizer,
  model: config_lib.ModelConfig,
  *,
  images: Sequence[images_lib.Picture] = (),
  videos: Sequence[Sequence[images_lib.Picture]] = (),
) -> Request:
  """A prompt with what its marks stand for, in order.

  Args:
    prompt: the whole text, in the model's chat format.
    tokenizer: the model's own.
    model: the model.
    images: as in `units.of_images`.
    videos: frames of each, as in `units.of_video`.

  Raises:
    samples.DataError: there are more or fewer marks than images or videos.
    images.ImageError: an image can't be used.
  """
  pieces = split(prompt, tokenizer)
  seen = {
    IMAGE: units.of_images(images, model),
    VIDEO: [units.of_video(frames, model) for frames in videos],
  }
  for mark, given in seen.items():
    if pieces.count(mark) != len(given):
      raise samples.DataError(
        f"the prompt has {pieces.count(mark)} {mark} for {len(given)} given"
      )
  parts: list[Part] = []
  pixels: list[units.Pixels] = []
  for piece in pieces:
    if isinstance(piece, str):
      one = seen[piece].pop(0)
      parts += one.units
      pixels.append(one.pixels)
    else:
      parts.append(row_lib.Text(piece))
  return Request(tuple(parts), units.join(pixels, model))


def split(
  prompt: str, tokenizer: tokenizers.Tokenizer
) -> list[list[int] | str]:
  """The ids between the marks of a prompt, and the marks.

  A mark that the vocabulary has is a token like others. One that it lacks, as
  in LLaVA's own checkpoints, cuts the text, and each piece is tokenized alone.
  """
  ids = {tokenizer.token_to_id(mark): mark for mark in (IMAGE, VIDEO)}
  unknown = [m for m in (IMAGE, VIDEO) if tokenizer.token_to_id(m) is None]
  texts = [prompt]
  if unknown:
    texts = re.split("(" + "|".join(map(re.escape, unknown)) + ")", prompt)
  out: list[list[int] | str] = []
  for i, text in enumerate(texts):
    if text in unknown:
      out.append(text)
      continue
    # What begins a text (a <bos>) begins the prompt alone.
    out.append([])
    for token in tokenizer.encode(text, add_special_tokens=not i).ids:
      if token in ids:
        out += [ids[token], []]
      else:
        out[-1].append(token)
  return [piece for piece in out if piece]


def batch(
  requests: Sequence[Request],
  model: config_lib.ModelConfig,
  shape: row_lib.RowShape | None = None,
) -> types.Batch:
  """Lays requests out as rows.

  Args:
    requests: at least one.
    model: the model.
    shape: of every row; by default the smallest with room for each request.

  Returns:
    A batch, whose `images` is None when the shape has room for none.

  Raises:
    layout.LayoutError: a request does not fit the shape.
  """
  shape = shape or shape_of(requests, model)
  rows = [row_lib.lay_out(request.parts, shape) for request in requests]
  tiles = shape.tiles or shape.units
  if not tiles:
    return row_lib.make_batch(rows, None)
  pixels = units.stack([request.pixels for request in requests], tiles)
  return row_lib.make_batch(rows, pixels)


def shape_of(
  requests: Sequence[Request], model: config_lib.ModelConfig
) -> row_lib.RowShape:
  """The smallest row that has room for each of the requests."""
  grids = [
    [p for p in r.parts if isinstance(p, row_lib.Unit)] for r in requests
  ]
  texts = [
    [p for p in r.parts if isinstance(p, row_lib.Text)] for r in requests
  ]
  scored = [sum(len(t.ids) for t in ts if t.question >= 0) for ts in texts]
  context, region = model.gaze.context_tokens, model.gaze.region
  slots = [
    sum(len(t.ids) for t in ts) + sum(u.tokens + context for u in us)
    for ts, us in zip(texts, grids, strict=True)
  ]
  pages = [
    [tiles.pages(u.rows, u.columns, u.tail, region) for u in us] for us in grids
  ]
  up = lambda n, step: -(-n // step) * step
  every = [page for row in pages for page in row]
  return row_lib.RowShape(
    slots=up(max(slots), _SLOTS),
    units=max(len(us) for us in grids),
    unit_tokens=model.vision.tokens,
    regions=up(max(*(sum(n for n, _ in p) for p in pages), 1), _REGIONS),
    region_length=max((length for _, length in every), default=1),
    answer_slots=max(*scored, 1),
    region=region,
    context_tokens=context,
    tiles=max(sum(u.tiles for u in us) for us in grids),
    largest_unit=tiles.largest_unit(model),
    taps=4 if any(u.blend is not None for us in grids for u in us) else 1,
  )
