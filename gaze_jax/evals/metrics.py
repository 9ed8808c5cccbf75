"""Pure metrics: exact match per question, intervals, routing accuracy."""

import math

import numpy as np


def exact_match(
  right: np.ndarray, answer_of: np.ndarray, questions: int
) -> np.ndarray:
  """Which questions got every token of their answer right.

  Under greedy decoding an answer equals the reference, `<eos>` included, just
  when each of its tokens is the most likely one after those before it; so
  teacher-forced argmax decides exact match exactly.

  Args:
    right: bool [B, A], the argmax at a slot is the reference token.
    answer_of: int [B, A], question of each slot; -1 on padding.
    questions: questions of a row, at most.

  Returns:
    bool [B, questions]; True also where a row has no such question.
  """
  out = np.ones((right.shape[0], questions), bool)
  wrong = (answer_of >= 0) & ~right
  rows = np.nonzero(wrong)[0]
  out[rows, answer_of[wrong]] = False
  return out


def wilson(right: int, n: int, z: float = 1.96) -> tuple[float, float]:
  """Wilson score interval of a proportion, 95 % by default (Wilson 1927)."""
  if n == 0:
    return (0.0, 1.0)
  p = right / n
  middle = p + z * z / (2 * n)
  half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
  scale = 1 + z * z / n
  # Rounding can step out of [0, 1] by an ulp.
  return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def on_target(
  mask: np.ndarray, regions: np.ndarray, threshold: float
) -> np.ndarray:
  """Regions that show a thing.

  Args:
    mask: bool [frames, height, width], pixels of the thing.
    regions: int [rows, columns], region of each visual token, in all frames.
    threshold: share of a region's pixels that must be of the thing.

  Returns:
    bool [R].
  """
  _, height, width = mask.shape
  rows, columns = regions.shape
  y = np.arange(height) * rows // height
  x = np.arange(width) * columns // width
  ids = regions[y][:, x].ravel()
  covered = np.bincount(ids, weights=mask.mean(axis=0).ravel())
  return covered / np.bincount(ids) >= threshold


def routing_accuracy(
  chosen: np.ndarray, target: np.ndarray
) -> tuple[np.ndarray, float]:
  """Share of the chosen regions that show the thing asked about.

  Args:
    chosen: bool [N, Q, R], regions read by each layer and query head.
    target: bool [R], from `on_target`.

  Returns:
    float [N], mean over heads; and what random regions would reach. NaN for a
    layer that chose nothing.
  """
  picked = chosen.sum(axis=(1, 2))
  hits = (chosen & target).sum(axis=(1, 2))
  with np.errstate(invalid="ignore"):
    return hits / picked, float(target.mean())
