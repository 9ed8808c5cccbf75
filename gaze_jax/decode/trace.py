"""Where the model looked, word by word."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from gaze_jax import errors
from gaze_jax.decode import generate


@dataclasses.dataclass(frozen=True)
class Word:
  """A word of the answer.

  Attributes:
    text: the word, without spaces around it.
    share: float [R], share of the selected layers' heads that read each
      region, a mean over the word's tokens.
  """

  text: str
  share: np.ndarray


def words(
  steps: Sequence[generate.Step],
  decode: Callable[[list[int]], str],
  *,
  layers: Sequence[int] | None = None,
  heads: Sequence[int] | None = None,
) -> list[Word]:
  """Joins tokens into words and their regions into shares.

  Args:
    steps: what was generated; a last stop token decodes to nothing and is
      dropped.
    decode: token ids to text, exact on any prefix of the answer.
    layers: which layers count; None for all.
    heads: which query heads count; None for all.

  Raises:
    errors.GazeError: a layer or head that the model does not have.
  """
  if not steps:
    return []
  n, q, _ = steps[0].chosen.shape
  layers = within(layers, n, "layer")
  heads = within(heads, q, "head")
  out: list[tuple[str, list[np.ndarray]]] = []
  text = ""
  waiting: list[np.ndarray] = []  # tokens that end within a character
  for i, step in enumerate(steps):
    so_far = decode([s.token for s in steps[: i + 1]])
    before, text = text, whole(so_far)
    piece = text[len(before) :]
    waiting.append(step.chosen[layers][:, heads].mean(axis=(0, 1)))
    if not piece.strip():
      waiting = waiting if text != so_far else []
      continue
    if out and not piece[0].isspace() and not before[-1:].isspace():
      out[-1] = (out[-1][0] + piece.strip(), [*out[-1][1], *waiting])
    else:
      out.append((piece.strip(), waiting))
    waiting = []
  return [Word(t, np.mean(shares, axis=0)) for t, shares in out]


def whole(text: str) -> str:
  """A decoded prefix without the character that its last token began.

  A byte-level token may end within a character; it decodes to U+FFFD until
  the rest of its bytes have come.
  """
  return text.rstrip("\ufffd")


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
