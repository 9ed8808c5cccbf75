"""What a picture shows, and where the model looked, word by word."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from gaze_jax import errors
from gaze_jax.decode import engine


@dataclasses.dataclass(frozen=True)
class View:
  """What a unit (image, tile or frame) shows.

  Attributes:
    picture: uint8 [height, width, 3].
    regions: int [rows, columns], the region of each visual token laid over
      the picture, numbered within the row: several units number on. -1 where
      there is none.
  """

  picture: np.ndarray
  regions: np.ndarray


@dataclasses.dataclass(frozen=True)
class Word:
  """A word of the answer; its arrays are means over the word's tokens.

  Attributes:
    text: the word, without spaces around it.
    share: float [R], share of the selected layers' heads that read each
      region.
    chosen: float32 [N, Q, R], share of the tokens that read each region, of
      every layer and query head. None where only a picture is wanted.
    scores: float32 [N, Q, R], routing scores; -inf where none is finite. None
      when they were not recorded.
    dense: float32 [N, Q, R], mass of dense attention, likewise.
  """

  text: str
  share: np.ndarray
  chosen: np.ndarray | None = None
  scores: np.ndarray | None = None
  dense: np.ndarray | None = None


def words(
  steps: Sequence[engine.Step],
  pieces: Sequence[str | None],
  *,
  layers: Sequence[int] | None = None,
  heads: Sequence[int] | None = None,
) -> list[Word]:
  """Joins tokens into words and their regions into shares.

  Args:
    steps: what was generated.
    pieces: the text that each step's token adds: "" where it ends within a
      character, which comes with its last token; None where it shows nothing,
      as a token that ends the answer, which is dropped.
    layers: which layers count in `share`; None for all.
    heads: which query heads count in `share`; None for all.

  Raises:
    errors.GazeError: a layer or head that the model does not have.
  """
  if not steps:
    return []
  n, q, _ = steps[0].chosen.shape
  layers = within(layers, n, "layer")
  heads = within(heads, q, "head")
  out = []
  for text, group in _groups(steps, pieces):
    chosen = np.mean([s.chosen for s in group], axis=0, dtype=np.float32)
    share = chosen[layers][:, heads].mean(axis=(0, 1))
    scores = _mean_of([s.scores for s in group])
    dense = _mean_of([s.dense for s in group])
    out.append(Word(text, share, chosen, scores, dense))
  return out


def _groups(
  steps: Sequence[engine.Step], pieces: Sequence[str | None]
) -> list[tuple[str, list[engine.Step]]]:
  """The words, each with the steps of its tokens."""
  out: list[tuple[str, list[engine.Step]]] = []
  waiting: list[engine.Step] = []  # tokens that end within a character
  apart = True  # whether there is a space before what comes
  for step, piece in zip(steps, pieces, strict=True):
    if piece is None:
      continue
    waiting.append(step)
    if not piece:
      continue
    if word := piece.strip():
      if out and not apart and not piece[0].isspace():
        out[-1] = (out[-1][0] + word, [*out[-1][1], *waiting])
      else:
        out.append((word, waiting))
    waiting, apart = [], piece[-1].isspace()
  return out


def _mean_of(arrays: Sequence[np.ndarray | None]) -> np.ndarray | None:
  if any(a is None for a in arrays):
    return None
  mean = finite_mean(np.asarray(arrays, np.float32), 0)[0]
  return mean.astype(np.float32)


def finite_mean(array: np.ndarray, axes: int | tuple[int, ...]) -> np.ndarray:
  """Mean over axes, which stay as 1, of what is finite; -inf where nothing."""
  finite = np.isfinite(array)
  count = finite.sum(axis=axes, keepdims=True)
  total = np.where(finite, array, 0).sum(axis=axes, keepdims=True)
  return np.where(count, total / np.maximum(count, 1), -np.inf)


def within(chosen: Sequence[int] | None, count: int, name: str) -> np.ndarray:
  """The layers or heads that were asked for, int [n]; all of them for None.

  Raises:
    errors.GazeError: one that the model does not have, or none at all.
  """
  picked = np.arange(count) if chosen is None else np.asarray(chosen, int)
  wrong = [int(i) for i in picked if not 0 <= i < count]
  if wrong or not len(picked):
    raise errors.GazeError(
      f"no {name} {', '.join(map(str, wrong)) or '(none named)'}: the model has"
      f" {name}s 0 to {count - 1}"
    )
  return picked
