"""Subtitles of a video, and those that are seen with some of its frames."""

import pathlib
import re
from collections.abc import Sequence
from typing import NamedTuple

from gaze_jax import json_file
from gaze_jax.data import samples

_TIME = r"(\d+):(\d\d):(\d\d)[,.](\d{1,3})"
_SPAN = re.compile(rf"{_TIME}\s*-->\s*{_TIME}")
_TAG = re.compile(r"</?[a-zA-Z][^>]*>")  # "1 < 2" has none


class Line(NamedTuple):
  """A subtitle, shown from `start` to `end`, in seconds."""

  start: float
  end: float
  text: str


def read(path: str) -> list[Line]:
  """The subtitles of a file of SubRip, in the order of their times, no tags.

  Raises:
    samples.DataError: it can't be read.
  """
  text = json_file.read_text(pathlib.Path(path), samples.DataError)
  out = []
  for block in re.split(r"\n\s*\n", text):
    if span := _SPAN.search(block):
      said = _TAG.sub("", block[span.end() :]).split()
      hours = list(map(int, span.groups()))
      start, end = (
        3600 * h + 60 * m + s + milliseconds / 1000
        for h, m, s, milliseconds in (hours[:4], hours[4:])
      )
      if said:
        out.append(Line(start, end, " ".join(said)))
  return sorted(out)


def at(path: str, seconds: Sequence[float]) -> str:
  """Lines that are shown at any of some times, each once, in their order."""
  return "\n".join(
    line.text
    for line in read(path)
    if any(line.start <= second < line.end for second in seconds)
  )
