"""How closely two float32 programs that compute one thing have to agree."""

import jax
import numpy as np


def close(got, want, tolerance: float = 1e-5) -> None:
  """Holds `|got - want| <= tolerance * max|want|`, for each array of a tree.

  Two programs of different shape add the same numbers up in another order, and
  each order rounds in its own way. Which order a program takes is the
  compiler's choice, by the widths of the CPU at hand: the same pair is equal to
  the bit on one machine and off by some units in the last place of its largest
  terms on another. That error is relative to what was added up, for which the
  largest value of the array stands, and not to each element: logits of size 5
  are within 1e-5 * 5, those near 0 among them as well. An absolute 1e-5 is 20
  units in the last place of a 5, less than a sum in another order may be off.

  It is not for numbers computed by hand, one program run twice, nor what must
  be equal to the bit; they have bars of their own.

  Args:
    got: an array, or a tree of arrays, of any numeric type; compared in
      float64.
    want: the same, of the same structure and shapes. Where it is infinite or
      NaN, `got` must be the same, and nowhere else. An array of zeros allows
      no error at all.
    tolerance: more than 1e-5 only where numbers were rounded to bfloat16.

  Raises:
    AssertionError: names the array, the element and both values.
  """
  got_leaves, got_tree = jax.tree.flatten(got)
  want_leaves, want_tree = jax.tree.flatten_with_path(want)
  assert got_tree == want_tree, f"{got_tree} is not {want_tree}"
  for one, (path, other) in zip(got_leaves, want_leaves, strict=True):
    _close(one, other, tolerance, jax.tree_util.keystr(path) or "the array")


def _close(got, want, tolerance: float, name: str) -> None:
  got = np.asarray(got).astype(np.float64)
  want = np.asarray(want).astype(np.float64)
  assert got.shape == want.shape, f"{name}: {got.shape} is not {want.shape}"
  finite = np.isfinite(want)
  largest = np.abs(want[finite]).max(initial=0.0)
  with np.errstate(invalid="ignore"):  # inf - inf
    error = np.where(finite, np.abs(got - want), np.inf)
  error = np.where(np.isnan(error), np.inf, error)
  error = np.where(~finite & _same(got, want), 0, error)
  if (error <= tolerance * largest).all():
    return
  at = np.unravel_index(error.argmax(), error.shape)
  raise AssertionError(
    f"{name}: {(error > tolerance * largest).sum()} of {error.size} are off by "
    f"more than {tolerance:g} of the largest value, {largest:g}; most at "
    f"{tuple(map(int, at))}: {got[at]:.9g}, not {want[at]:.9g}"
    f" ({error[at] / largest if largest else np.inf:.3g} of it)"
  )


def _same(got: np.ndarray, want: np.ndarray) -> np.ndarray:
  return (got == want) | (np.isnan(got) & np.isnan(want))
