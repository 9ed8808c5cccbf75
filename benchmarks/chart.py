"""A chart of milliseconds over visual tokens, both axes logarithmic."""

import math
from collections.abc import Sequence

from PIL import Image
from PIL import ImageDraw
from PIL import ImageFont

_SIZE = (720, 480)
_LEFT, _TOP, _RIGHT, _BOTTOM = 70, 50, 200, 60
_COLOURS = ("#8c8c8c", "#444444", "#1f6fb4", "#e08a00", "#9a5fb0", "#2a9d55")


def draw(title: str, lines: dict[str, Sequence[tuple[float, float]]]):
  """A line with dots for each method.

  Args:
    title: above the chart.
    lines: (visual tokens, milliseconds) by method.
  """
  page = Image.new("RGB", _SIZE, "white")
  pen = ImageDraw.Draw(page)
  font = ImageFont.load_default(size=14)
  points = [p for line in lines.values() for p in line]
  xs, ys = ([p[i] for p in points] for i in (0, 1))
  low, high = math.floor(_log(min(ys))), math.ceil(_log(max(ys)))
  left, right = _log(min(xs)) - 0.1, _log(max(xs)) + 0.1
  width = _SIZE[0] - _LEFT - _RIGHT
  height = _SIZE[1] - _TOP - _BOTTOM

  def place(point: tuple[float, float]) -> tuple[float, float]:
    x = (_log(point[0]) - left) / (right - left)
    y = (_log(point[1]) - low) / max(high - low, 1)
    return _LEFT + x * width, _TOP + (1 - y) * height

  pen.text((_LEFT, 16), title, fill="black", font=font)
  for power in range(low, high + 1):
    y = place((min(xs), 10.0**power))[1]
    pen.line([(_LEFT, y), (_LEFT + width, y)], fill="#dddddd")
    text = f"{10.0**power:g} ms"
    pen.text((_LEFT - 8, y), text, fill="#666666", font=font, anchor="rm")
  for x in sorted(set(xs)):
    at = (place((x, 10.0**low))[0], _TOP + height + 8)
    pen.text(at, f"{x:,}", fill="#666666", font=font, anchor="mt")
  middle = (_LEFT + width / 2, _SIZE[1] - 18)
  pen.text(middle, "visual tokens", fill="#666666", font=font, anchor="mm")
  for i, (name, line) in enumerate(lines.items()):
    colour = _COLOURS[i % len(_COLOURS)]
    spots = [place(p) for p in sorted(line)]
    pen.line(spots, fill=colour, width=2)
    for x, y in spots:
      pen.ellipse((x - 4, y - 4, x + 4, y + 4), fill=colour)
    at = (_LEFT + width + 16, _TOP + 24 * i)
    pen.text(at, name, fill=colour, font=font)
  return page


def _log(x: float) -> float:
  return math.log10(x)
