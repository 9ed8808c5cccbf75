"""The viewer: one self-contained page of where the model looked.

The page works offline and asks the network for nothing. Template, style and
script are beside this file; `render` puts them together with the data:

  pictures  JPEGs of about `_PIXELS` pixels in all, never enlarged
  arrays    [words, N, Q, R], a byte a number, deflated, in base64. One of more
            than `_DEFLATED` bytes (or `_RAW` before) is averaged over heads,
            and if need be over layers; the page then says so.

So a page has 8 MB at the most beside its pictures, which take about 1 MB.
"""

import base64
import hashlib
import html
import io
import json
import math
import pathlib
import re
import zlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from PIL import Image

from gaze_jax import errors
from gaze_jax.view import words as words_lib

_PIXELS = 2**21  # of all pictures together
_SIDE = 1024, 64  # the longer side of a picture, at most and at least
_DEFLATED = 2**21  # bytes of an array in the page, before base64
_RAW = 2**26  # bytes of an array in the browser
_NOTHING = 255  # the byte of a score that there is not


def check_name(path: str) -> None:
  """Refuses a file name that is not one of a page.

  Raises:
    errors.GazeError: its ending is another, or its folder is not there.
  """
  errors.check_folder(path)
  if pathlib.Path(path).suffix.lower() not in (".html", ".htm"):
    raise errors.GazeError(f"{path}: the viewer is a page; name it .html")


def render(
  views: Sequence[words_lib.View],
  words: Sequence[words_lib.Word],
  *,
  question: str,
  answer: str,
  budget: Mapping[str, int | float],
  accounting: Mapping[str, str],
  noun: str = "frame",
) -> str:
  """The page, as HTML to be written in UTF-8.

  Args:
    views: the images, tiles or frames; none for a question about no image.
    words: the answer, with `chosen`; `dense` and `scores` if recorded.
    question: the page's title.
    answer: the answer's whole text.
    budget: by name: `top_k` regions that a query head read at a step, of
      `regions`; `visual_kv`, the visual KV entries read per query head, and
      `unique` ones per KV head, as fractions of those that dense attention
      reads (docs/method.md, section 8).
    accounting: the lines of a table, name to figure.
    noun: what several views are called: "frame", "image" or "tile".
  """
  data = {
    "question": question,
    "answer": answer,
    "noun": noun,
    "words": [w.text for w in words],
    "views": _views(views),
    "budget": dict(budget),
    "accounting": [[str(k), str(v)] for k, v in accounting.items()],
    **_arrays(views, words),
  }
  style, script = _part("viewer.css"), _part("viewer.js")
  return _fill(
    _part("viewer.html"),
    {
      "TITLE": html.escape(question),
      "ANSWER": html.escape(answer),
      "POLICY": html.escape(_policy(style, script)),
      "STYLE": style,
      "DATA": _json(data),
      "SCRIPT": script,
    },
  )


def _part(name: str) -> str:
  return (pathlib.Path(__file__).parent / name).read_text(encoding="utf-8")


def _fill(template: str, parts: Mapping[str, str]) -> str:
  """The template with its marks replaced, in one pass: parts may hold any.

  What UTF-8 can't hold (a lone surrogate of a command line) becomes "?".
  """
  page = re.sub("@@([A-Z]+)@@", lambda m: parts[m[1]], template)
  return page.encode("utf-8", "replace").decode("utf-8")


def _policy(style: str, script: str) -> str:
  """A Content-Security-Policy: our script and style by hash, no network."""
  digest = lambda text: base64.b64encode(
    hashlib.sha256(text.encode()).digest()
  ).decode()
  return (
    "default-src 'none'; img-src data:;"
    f" style-src 'sha256-{digest(style)}';"
    f" script-src 'sha256-{digest(script)}';"
    " base-uri 'none'; form-action 'none'"
  )


def _json(data: object) -> str:
  """ASCII JSON that can stand in a script element: no markup begins in it."""
  text = json.dumps(data, allow_nan=False, separators=(",", ":"))
  for character in "<>&":
    text = text.replace(character, f"\\u{ord(character):04x}")
  return text


def _views(views: Sequence[words_lib.View]) -> list[dict]:
  """Pictures as data URIs, and the boxes of their regions in tokens."""
  largest, least = _SIDE
  share = math.sqrt(_PIXELS / max(len(views), 1))
  side = min(largest, max(least, int(share)))
  out = []
  for view in views:
    picture = Image.fromarray(view.picture)
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=88, subsampling=0)
    out.append(
      {
        "picture": "data:image/jpeg;base64," + _base64(file.getvalue()),
        "width": picture.width,
        "height": picture.height,
        "rows": view.regions.shape[0],
        "columns": view.regions.shape[1],
        "boxes": _boxes(view.regions),
        "bare": _bare(view.regions),
      }
    )
  return out


def _boxes(regions: np.ndarray) -> list[list[int]]:
  """Region, left, top, right, bottom of each region of a map."""
  out = []
  for region in np.unique(regions[regions >= 0]):
    y, x = np.nonzero(regions == region)
    box = (region, x.min(), y.min(), x.max() + 1, y.max() + 1)
    out.append([int(i) for i in box])
  return out


def _bare(regions: np.ndarray) -> list[list[int]]:
  """Left, top, right, bottom of each run of tokens that have no region."""
  out = []
  for y, row in enumerate(np.pad(regions < 0, ((0, 0), (1, 1)))):
    edges = np.flatnonzero(np.diff(row))
    out += [[int(a), y, int(b), y + 1] for a, b in edges.reshape(-1, 2)]
  return out


def _arrays(
  views: Sequence[words_lib.View], words: Sequence[words_lib.Word]
) -> dict[str, object]:
  """The shape [N, Q, R], and what the words read, as the script unpacks it."""
  if not words:
    shape = dict(layers=0, heads=0, regions=0)
    return dict(shape=shape, chosen=None, dense=None, scores=None)
  # A row has room for more regions than the views show.
  count = 1 + max((int(v.regions.max()) for v in views), default=-1)
  stack = lambda arrays: np.stack([a[..., :count] for a in arrays])
  chosen = stack([w.chosen for w in words])
  n, q, count = chosen.shape[1:]
  out = {
    "shape": dict(layers=n, heads=q, regions=count),
    "chosen": _pack(chosen, _share_bytes),
    "dense": None,
    "scores": None,
  }
  if all(w.dense is not None for w in words):
    out["dense"] = _pack(stack([w.dense for w in words]), _mass_bytes)
  if all(w.scores is not None for w in words) and count:
    scores = stack([w.scores for w in words])
    finite = scores[np.isfinite(scores)]
    low, high = float(finite.min(initial=0)), float(finite.max(initial=0))
    step = max(high - low, 1e-6) / (_NOTHING - 1)
    packed = _pack(scores, lambda x: _score_bytes(x, low, step))
    out["scores"] = packed | dict(low=low, step=step)
  return out


def _pack(
  array: np.ndarray, to_bytes: Callable[[np.ndarray], np.ndarray]
) -> dict[str, object]:
  """[words, N, Q, R] as base64 of zlib's deflate, averaged if too large.

  `to_bytes` gives uint8 of the same shape. `layers` and `heads` are those
  left: 1 where they were averaged.
  """
  for axes in ((), (2,), (1, 2)):
    left = words_lib.finite_mean(array, axes) if axes else array
    if left.size > _RAW and axes != (1, 2):
      continue
    deflated = zlib.compress(to_bytes(left).tobytes(), 6)
    if len(deflated) <= _DEFLATED:
      break
  layers, heads = left.shape[1:3]
  return dict(layers=layers, heads=heads, bytes=_base64(deflated))


def _share_bytes(share: np.ndarray) -> np.ndarray:
  """Shares in 255ths; what was read at all is at least one."""
  return np.ceil(share * 255 - 1e-3).clip(0, 255).astype(np.uint8)


def _mass_bytes(mass: np.ndarray) -> np.ndarray:
  """Square roots in 255ths: of hundreds of regions each has little mass."""
  return np.sqrt(mass.clip(0, 1) * 255**2).round().astype(np.uint8)


def _score_bytes(score: np.ndarray, low: float, step: float) -> np.ndarray:
  there = np.isfinite(score)
  level = (np.where(there, score, low) - low) / step
  return np.where(there, level.round(), _NOTHING).astype(np.uint8)


def _base64(data: bytes) -> str:
  return base64.b64encode(data).decode("ascii")
