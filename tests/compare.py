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
  off = [
    _off(one, other, tolerance, jax.tree_util.keystr(path) or "the array")
    for one, (path, other) in zip(got_leaves, want_leaves, strict=True)
  ]
  assert not any(off), "\n".join(filter(None, off))


def joined(gradients):
  """A model's gradients, with the biases of query, key and value as one array.

  Softmax takes away what all keys have in common, so the gradient of a key's
  bias is 0, and what a program finds instead is how its sums were rounded. As
  one array it is held to the size of what was added up.
  """
  if not isinstance(gradients, dict):
    return gradients
  tree = {name: joined(part) for name, part in gradients.items()}
  if "bias" in tree.get("key", ()):
    names = ("query", "key", "value")
    biases = [np.ravel(tree[name].pop("bias")) for name in names]
    tree["bias"] = np.concatenate(biases)
  return tree


def decided(logits, tolerance: float = 1e-4) -> None:
  """Holds that no choice of the largest hangs on how a sum was rounded.

  Two programs say the same tokens only where the first choice is ahead of the
  second by more than both may be off: elsewhere another CPU may say another.

  Args:
    logits: [..., V].
    tolerance: the least lead, of the largest value: ten times `close`'s.
  """
  logits = np.asarray(logits).astype(np.float64)
  top = np.sort(logits)[..., -2:]
  lead, least = (
    (top[..., 1] - top[..., 0]).min(),
    tolerance * np.abs(logits).max(),
  )
  assert lead > least, f"a choice leads by {lead:.3g}, less than {least:.3g}"


def _off(got, want, tolerance: float, name: str) -> str:
  """What is to be said of an array; nothing if it is close."""
  got = np.asarray(got).astype(np.float64)
  want = np.asarray(want).astype(np.float64)
  if got.shape != want.shape:
    return f"{name}: {got.shape} is not {want.shape}"
  finite = np.isfinite(want)
  largest = np.abs(want[finite]).max(initial=0.0)
  with np.errstate(invalid="ignore"):  # inf - inf
    error = np.where(finite, np.abs(got - want), np.inf)
  error = np.where(np.isnan(error), np.inf, error)
  error = np.where(~finite & _same(got, want), 0, error)
  if (error <= tolerance * largest).all():
    return ""
  at = np.unravel_index(error.argmax(), error.shape)
  return (
    f"{name}: {(error > tolerance * largest).sum()} of {error.size} are off by "
    f"more than {tolerance:g} of the largest value, {largest:g}; most at "
    f"{tuple(map(int, at))}: {got[at]:.9g}, not {want[at]:.9g}"
    f" ({error[at] / largest if largest else np.inf:.3g} of it)"
  )


def _same(got: np.ndarray, want: np.ndarray) -> np.ndarray:
  return (got == want) | (np.isnan(got) & np.isnan(want))


def difference(got, want) -> str:
  """What `close` raises, as text; "" where they agree."""
  try:
    close(got, want)
  except AssertionError as error:
    return str(error)
  return ""
