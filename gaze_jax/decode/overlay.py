"""Pictures of the gaze: the image once a word, its regions drawn over it."""

import pathlib
import textwrap
from collections.abc import Sequence

import numpy as np
from PIL import Image
from PIL import ImageDraw
from PIL import ImageFont

from gaze_jax import errors
from gaze_jax.decode import trace

_PANEL = 336  # pixels a side of an image in the picture
_MARGIN = 16
_CAPTION = 40
_TINT = (255, 176, 0)
_VEIL = 0.62  # how far a region that no head reads is darkened
_COLUMNS = 4


def check_name(path: str) -> None:
  """Refuses a file name that no picture can be saved under.

  Raises:
    errors.GazeError: its ending names no image format, or its folder is not
      there.
  """
  if not (folder := pathlib.Path(path).parent).is_dir():
    raise errors.GazeError(f"{path}: there is no folder {folder}")
  Image.init()
  ending = pathlib.Path(path).suffix.lower()
  if Image.EXTENSION.get(ending) not in Image.SAVE:
    raise errors.GazeError(
      f"{path}: {ending or 'no ending'} is not a format of pictures; name it"
      " .png or .jpg"
    )


def draw(
  image: np.ndarray,
  regions: np.ndarray,
  words: Sequence[trace.Word],
  *,
  title: str,
) -> Image.Image:
  """Draws where each word looked.

  A region is as bright, and its frame as opaque, as the share of heads that
  read it; what no head reads is darkened.

  Args:
    image: uint8 [height, width, 3].
    regions: int [rows, columns], region number of each visual token.
    words: the answer.
    title: text above the panels, such as the question.
  """
  panels = [_plain(image), *(_panel(image, regions, w) for w in words)]
  names = ["image", *(w.text for w in words)]
  columns = min(_COLUMNS, len(panels))
  rows = -(-len(panels) // columns)
  width = columns * (_PANEL + _MARGIN) + _MARGIN
  lines = textwrap.wrap(title, max(20, width // 11))
  top = 2 * _MARGIN + 24 * len(lines)
  height = top + rows * (_PANEL + _CAPTION)
  page = Image.new("RGB", (width, height), "white")
  pen = ImageDraw.Draw(page)
  font = ImageFont.load_default(size=20)
  for i, line in enumerate(lines):
    pen.text((_MARGIN, _MARGIN + 24 * i), line, fill="black", font=font)
  for i, (name, panel) in enumerate(zip(names, panels, strict=True)):
    x = _MARGIN + (i % columns) * (_PANEL + _MARGIN)
    y = top + (i // columns) * (_PANEL + _CAPTION)
    page.paste(panel, (x, y))
    fill = "#666666" if i == 0 else "black"
    pen.text((x, y + _PANEL + 6), name, fill=fill, font=font)
  return page


def _plain(image: np.ndarray) -> Image.Image:
  size = (_PANEL, _PANEL)
  return Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)


def _panel(
  image: np.ndarray, regions: np.ndarray, word: trace.Word
) -> Image.Image:
  base = np.asarray(_plain(image), np.float32)
  share = word.share[regions]  # [rows, columns]
  rows, columns = regions.shape
  y = np.arange(_PANEL) * rows // _PANEL
  x = np.arange(_PANEL) * columns // _PANEL
  opacity = share[y][:, x][..., None]
  lit = base * (1 - _VEIL * (1 - opacity))
  picture = Image.fromarray(lit.clip(0, 255).astype(np.uint8))
  frames = Image.new("RGBA", picture.size)
  pen = ImageDraw.Draw(frames)
  for region in np.unique(regions):
    alpha = float(word.share[region])
    if alpha <= 0:
      continue
    inside_y, inside_x = np.nonzero(regions == region)
    box = (
      inside_x.min() * _PANEL / columns + 1,
      inside_y.min() * _PANEL / rows + 1,
      (inside_x.max() + 1) * _PANEL / columns - 2,
      (inside_y.max() + 1) * _PANEL / rows - 2,
    )
    pen.rectangle(box, outline=(*_TINT, round(255 * alpha)), width=4)
  return Image.alpha_composite(picture.convert("RGBA"), frames).convert("RGB")
