"""Where an answer looked, as clients get it; docs/serve.md."""

import base64
import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from gaze_jax import config as config_lib
from gaze_jax.api import media
from gaze_jax.data import detokenizer as detokenizer_lib
from gaze_jax.data import messages
from gaze_jax.data import tokenizer as tokenizer_lib
from gaze_jax.decode import context as context_lib
from gaze_jax.serve import pictures
from gaze_jax.view import words

_SIDE = 512  # pixels of a frame's longer side


def geometry(
  after: context_lib.Context,
  shown: Sequence[pictures.Decoded],
  model: config_lib.ModelConfig,
) -> dict[str, Any]:
  """What stays the same for all tokens: sizes, and where regions are.

  Args:
    after: the context of the prompt, with its views and its conversation.
    shown: what it shows, in order.
    model: the model.
  """
  views = iter(after.views)
  out, number = [], 0
  for message in after.talk:
    parts = [p for p in message.parts if p.kind not in messages.TEXTS]
    alone = [p.kind for p in parts].count(messages.IMAGE) == 1
    for part in parts:
      video = part.kind == messages.VIDEO
      for i in range(part.units):
        size = (shown[number][i] if video else shown[number]).shape[:2]
        view = next(views)
        part_shown = media.shown_part(size, model, alone=alone or video)
        out.append(
          dict(
            picture=number,
            kind=part.kind,
            frame=i if video else 0,
            frames=part.units if video else 1,
            image=_data_uri(view.picture) if video else None,
            boxes=list(_boxes(view, part_shown)),
          )
        )
      number += 1
  return dict(
    layers=model.decoder.depth,
    heads=model.decoder.query_heads,
    regions=len(after.sizes),
    views=out,
  )


def bits(chosen: np.ndarray) -> str:
  """bool [T, N, Q, R] as base64 of bits, each head's from a byte of its own."""
  packed = np.packbits(chosen, axis=-1, bitorder="little")
  return base64.b64encode(packed.tobytes()).decode()


class Pieces:
  """What each token adds to the text, as tokens come."""

  def __init__(self, tokenizer: tokenizer_lib.Tokenizer):
    self._ends = tokenizer.ends
    self._detokenizer: detokenizer_lib.Detokenizer = tokenizer.detokenizer()

  def add(self, tokens: Sequence[int], last: bool) -> list[str | None]:
    """Of tokens that are new; `last`: no more will come."""
    out = [
      None if token in self._ends else self._detokenizer.add(token)
      for token in tokens
    ]
    texts = [i for i, piece in enumerate(out) if piece is not None]
    if last and texts:
      out[texts[-1]] += self._detokenizer.rest
    return out


def _boxes(
  view: words.View, part: tuple[float, float, float, float]
) -> Iterator[list[float]]:
  """Region, left, top, right and bottom of each region of a view.

  Args:
    view: the view.
    part: of the picture that it shows.
  """
  rows, columns = view.regions.shape
  left, top, right, bottom = part
  across = lambda x: _fraction(left + (right - left) * x / columns)
  down = lambda y: _fraction(top + (bottom - top) * y / rows)
  for region in np.unique(view.regions[view.regions >= 0]):
    y, x = np.nonzero(view.regions == region)
    box = across(x.min()), down(y.min()), across(x.max() + 1), down(y.max() + 1)
    yield [int(region), *box]


def _fraction(x: float) -> float:
  """From 0 to 1, in ten-thousandths: what was padded is not the picture's."""
  return round(min(max(float(x), 0.0), 1.0), 4)


def _data_uri(picture: np.ndarray) -> str:
  """A JPEG of uint8 [h, w, 3]."""
  small, file = Image.fromarray(picture), io.BytesIO()
  small.thumbnail((_SIDE, _SIDE))
  small.save(file, "JPEG", quality=85)
  content = base64.b64encode(file.getvalue()).decode()
  return f"data:image/jpeg;base64,{content}"
