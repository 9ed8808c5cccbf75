"""A chart of scores over visual KV entries."""

from collections.abc import Sequence
from typing import Any

from PIL import Image
from PIL import ImageDraw
from PIL import ImageFont

_SIZE, _LEFT, _TOP, _RIGHT, _BOTTOM = (720, 480), 70, 50, 170, 60
_GAZE, _RANDOM, _DENSE, _BLIND = "#1f6fb4", "#e08a00", "#444444", "#8c8c8c"
_STEPS = 5


def draw(title: str, points: dict[str, dict[str, Any]]) -> Image.Image:
  """Budgets by score and at random as lines; dense and blind beside them.

  Args:
    title: above the chart.
    points: of `curve.of_task`.
  """
  lines: dict[tuple[str, str], list[dict[str, Any]]] = {}
  for name, of in points.items():
    lines.setdefault(_line(name), []).append(of)
  ends = [x for of in points.values() for x in _ends(of)]
  low, high = min(ends), max(ends)
  room = 0.05 * (high - low) or 1.0
  low, high = low - room, high + room
  most = max(of["visual_kv"]["per_query_head"] for of in points.values()) or 1
  width = _SIZE[0] - _LEFT - _RIGHT
  height = _SIZE[1] - _TOP - _BOTTOM
  across = lambda x: _LEFT + 0.97 * width * x / most
  down = lambda y: _TOP + height * (1 - (y - low) / (high - low))
  page = Image.new("RGB", _SIZE, "white")
  pen, font = ImageDraw.Draw(page), ImageFont.load_default(size=14)
  pen.text((_LEFT, 16), title, fill="black", font=font)
  for i in range(_STEPS + 1):
    y = low + (high - low) * i / _STEPS
    pen.line([(_LEFT, down(y)), (_LEFT + width, down(y))], fill="#dddddd")
    text = dict(fill="#666666", font=font)
    pen.text((_LEFT - 8, down(y)), f"{y:.1f}", anchor="rm", **text)
    x = most * i / _STEPS
    pen.text((across(x), _TOP + height + 8), f"{x:.0f}", anchor="mt", **text)
  middle = (_LEFT + width / 2, _SIZE[1] - 18)
  told = "visual KV entries a query head reads"
  pen.text(middle, told, fill="#666666", font=font, anchor="mm")
  for number, ((name, colour), some) in enumerate(lines.items()):
    some = sorted(some, key=lambda of: of["visual_kv"]["per_query_head"])
    spots = [
      (across(of["visual_kv"]["per_query_head"]), down(of["score"]))
      for of in some
    ]
    pen.line(spots, fill=colour, width=2)
    for (x, y), of in zip(spots, some, strict=True):
      ends = _ends(of)
      pen.line([(x, down(min(ends))), (x, down(max(ends)))], fill=colour)
      pen.ellipse((x - 4, y - 4, x + 4, y + 4), fill=colour)
    at = (_LEFT + width + 16, _TOP + 24 * number)
    pen.text(at, name, fill=colour, font=font)
  return page


def _line(condition: str) -> tuple[str, str]:
  """The line that a condition is a point of, and its colour."""
  if condition.startswith("random_"):
    return "random regions", _RANDOM
  alone = {"dense": _DENSE, "blind": _BLIND}
  return (
    (condition, alone[condition]) if condition in alone else ("gaze", _GAZE)
  )


def _ends(of: dict[str, Any]) -> Sequence[float]:
  """The score of a point, and the ends of its interval."""
  return [of["score"], *(of["interval_95"] or ())]
