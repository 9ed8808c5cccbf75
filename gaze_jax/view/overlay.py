"""Pictures of the gaze: what was seen, with the regions that a word read."""

import math
import pathlib
import textwrap
from collections.abc import Sequence

import numpy as np
from PIL import Image
from PIL import ImageDraw
from PIL import ImageFont

from gaze_jax import errors
from gaze_jax.view import words as words_lib

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tiff")
ANIMATIONS = (".gif", ".webp")
_PANEL = 336  # pixels a side of a panel of the picture
_STAGE = 480  # pixels a side of the animation's panel
_MARGIN = 16
_CAPTION = 40
_LINE = 24
_TINT = (255, 176, 0)
_MARK = (255, 222, 150)
_VEIL = 0.62  # how far a region that no head reads is darkened
_COLUMNS = 4
_MOST = 9  # views of a panel
_GAP = 4  # pixels between them
_MILLISECONDS = 900  # of a word; the last stays as long again and a half


def check_name(path: str, *, animation: bool = False) -> None:
  """Refuses a file name that no picture, or animation, can be saved under.

  Raises:
    errors.GazeError: its ending names no format, or its folder is not there.
  """
  errors.check_folder(path)
  ending = pathlib.Path(path).suffix.lower()
  endings = ANIMATIONS if animation else PICTURES
  if ending not in endings:
    what = "animations" if animation else "pictures"
    raise errors.GazeError(
      f"{path}: {ending or 'no ending'} is not a format of {what}; name it"
      f" {endings[0]} or {endings[1]}"
    )


def draw(
  views: Sequence[words_lib.View],
  words: Sequence[words_lib.Word],
  *,
  title: str,
) -> Image.Image:
  """Draws where each word looked: a panel a word, and one without.

  A region is as bright, and its frame as opaque, as the share of heads that
  read it; what no head reads is darkened. Several views share a panel; of more
  than 9 it shows those that the word read most, in their order and numbered.

  Args:
    views: the images, tiles or frames.
    words: the answer.
    title: text above the panels, such as the question.
  """
  panels = [
    _panel(views, None, _PANEL),
    *(_panel(views, word.share, _PANEL) for word in words),
  ]
  names = ["image" if len(views) < 2 else "images", *(w.text for w in words)]
  columns = min(_COLUMNS, len(panels))
  rows = -(-len(panels) // columns)
  width = columns * (_PANEL + _MARGIN) + _MARGIN
  lines = textwrap.wrap(title, max(20, width // 11))
  top = 2 * _MARGIN + _LINE * len(lines)
  height = top + rows * (_PANEL + _CAPTION)
  page = Image.new("RGB", (width, height), "white")
  pen = ImageDraw.Draw(page)
  font = ImageFont.load_default(size=20)
  for i, line in enumerate(lines):
    pen.text((_MARGIN, _MARGIN + _LINE * i), line, fill="black", font=font)
  for i, (name, panel) in enumerate(zip(names, panels, strict=True)):
    x = _MARGIN + (i % columns) * (_PANEL + _MARGIN)
    y = top + (i // columns) * (_PANEL + _CAPTION)
    page.paste(panel, (x, y))
    fill = "#666666" if i == 0 else "black"
    pen.text((x, y + _PANEL + 6), name, fill=fill, font=font)
  return page


def animate(
  views: Sequence[words_lib.View],
  words: Sequence[words_lib.Word],
  *,
  title: str,
) -> list[Image.Image]:
  """A frame a word: what it read, and the answer with the word marked.

  Args:
    views: the images, tiles or frames.
    words: the answer; a single plain frame if there are none.
    title: text above, such as the question.

  Returns:
    RGB images of one size, for `save_animation`.
  """
  font = ImageFont.load_default(size=20)
  lines = textwrap.wrap(title, _STAGE // 11)
  top = 2 * _MARGIN + _LINE * len(lines)
  places, end = _flow([w.text for w in words], font, top + _STAGE + _MARGIN)
  size = (_STAGE + 2 * _MARGIN, end + _MARGIN)
  frames = []
  for at in range(max(len(words), 1)):
    page = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(page)
    for i, line in enumerate(lines):
      pen.text((_MARGIN, _MARGIN + _LINE * i), line, fill="black", font=font)
    share = words[at].share if words else None
    page.paste(_panel(views, share, _STAGE), (_MARGIN, top))
    for i, (x, y, width) in enumerate(places):
      if i == at:
        box = (x - 4, y - 2, x + width + 4, y + _LINE + 1)
        pen.rounded_rectangle(box, 4, fill=_MARK)
      fill = "black" if i == at else "#666666"
      pen.text((x, y), words[i].text, fill=fill, font=font)
    frames.append(page)
  return frames


def save_animation(frames: Sequence[Image.Image], path: str) -> None:
  """Writes frames as a GIF or WebP that repeats, by the name's ending."""
  durations = [_MILLISECONDS] * (len(frames) - 1) + [5 * _MILLISECONDS // 2]
  options = dict(save_all=True, duration=durations, loop=0)
  if pathlib.Path(path).suffix.lower() == ".webp":
    options |= dict(quality=85)
  frames[0].save(path, append_images=list(frames[1:]), **options)


def _flow(
  texts: Sequence[str], font: ImageFont.FreeTypeFont, top: int
) -> tuple[list[tuple[int, int, int]], int]:
  """x, y and width of each word of a paragraph, and where it ends below."""
  space = round(font.getlength(" ")) + 4
  places, x, y = [], _MARGIN, top
  for text in texts:
    width = round(font.getlength(text))
    if x > _MARGIN and x + width > _MARGIN + _STAGE:
      x, y = _MARGIN, y + _LINE + 6
    places.append((x, y, width))
    x += width + space
  return places, y + _LINE + 6


def _panel(
  views: Sequence[words_lib.View], share: np.ndarray | None, side: int
) -> Image.Image:
  """The views in a square; lit by `share` [R], or plain without one."""
  shown = _shown(views, share)
  across = math.ceil(math.sqrt(len(shown)))
  down = -(-len(shown) // max(across, 1))
  panel = Image.new("RGB", (side, side), "white")
  pen = ImageDraw.Draw(panel)
  font = ImageFont.load_default(size=14)
  for place, number in enumerate(shown):
    row, column = divmod(place, across)
    left, width = _cell(column, across, side)
    upper, height = _cell(row, down, side)
    size = _fit(views[number].picture.shape, width, height)
    x, y = left + (width - size[0]) // 2, upper + (height - size[1]) // 2
    panel.paste(_lit(views[number], share, size), (x, y))
    if len(views) > len(shown):
      name = str(number + 1)
      box = pen.textbbox((x + 5, y + 3), name, font=font)
      pen.rectangle((x, y, box[2] + 4, box[3] + 3), fill="black")
      pen.text((x + 5, y + 3), name, fill="white", font=font)
  return panel


def _cell(number: int, count: int, side: int) -> tuple[int, int]:
  """Where one of `count` cells begins, and its length, with gaps between."""
  start, end = number * side // count, (number + 1) * side // count
  return start, end - start - (_GAP if number + 1 < count else 0)


def _shown(
  views: Sequence[words_lib.View], share: np.ndarray | None
) -> list[int]:
  """Numbers of at most `_MOST` views: those read most, or spread evenly."""
  count = len(views)
  if count <= _MOST:
    return list(range(count))
  if share is None:
    return [i * (count - 1) // (_MOST - 1) for i in range(_MOST)]
  read = [share[np.unique(v.regions[v.regions >= 0])].sum() for v in views]
  most = np.argsort(-np.array(read), kind="stable")[:_MOST]
  return sorted(map(int, most))


def _fit(shape: tuple[int, ...], width: int, height: int) -> tuple[int, int]:
  """Width and height of a picture of `shape` that fills a box."""
  scale = min(width / shape[1], height / shape[0])
  return max(1, round(shape[1] * scale)), max(1, round(shape[0] * scale))


def _lit(
  view: words_lib.View, share: np.ndarray | None, size: tuple[int, int]
) -> Image.Image:
  """A view at `size` (width, height), its regions as bright as their share."""
  plain = Image.fromarray(view.picture).resize(size, Image.Resampling.BICUBIC)
  if share is None:
    return plain
  width, height = size
  rows, columns = view.regions.shape
  shares = np.append(share, 0)[view.regions]  # 0 where there is no region
  y = np.arange(height) * rows // height
  x = np.arange(width) * columns // width
  opacity = shares[y][:, x][..., None]
  lit = np.asarray(plain, np.float32) * (1 - _VEIL * (1 - opacity))
  picture = Image.fromarray(lit.clip(0, 255).astype(np.uint8))
  frames = Image.new("RGBA", size)
  pen = ImageDraw.Draw(frames)
  line = 4 if min(size) >= _PANEL // 2 else 2
  for region in np.unique(view.regions):
    alpha = float(share[region]) if region >= 0 else 0.0
    if alpha <= 0:
      continue
    inside_y, inside_x = np.nonzero(view.regions == region)
    left = inside_x.min() * width / columns + 1
    upper = inside_y.min() * height / rows + 1
    right = (inside_x.max() + 1) * width / columns - 2
    lower = (inside_y.max() + 1) * height / rows - 2
    box = (left, upper, max(left, right), max(upper, lower))
    pen.rectangle(box, outline=(*_TINT, round(255 * alpha)), width=line)
  return Image.alpha_composite(picture.convert("RGBA"), frames).convert("RGB")
