"""Every kernel and form against plain XLA, on the device that is at hand."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gaze_jax import config as config_lib
from gaze_jax.device import cases

DTYPES = ("float32", "bfloat16")
PRECISIONS = ("default", "highest")
# A form's error is at most so many times that of plain XLA, or so much of the
# largest value more: what two float32 programs of different shape may be apart.
MOST, FLOOR = 1.5, 1e-5
# Scores so close, of the largest, may be ranked either way.
_TIE = 1e-5


@dataclasses.dataclass(frozen=True)
class Row:
  """What was found of a form.

  Attributes:
    operation: such as attend_pages.
    shape: of its inputs, such as tokens x head dim of a region.
    form: which is compared.
    direction: forward or backward.
    dtype: of the inputs.
    precision: `jax_default_matmul_precision`.
    array: the result that is off by most; empty where there is none.
    error: root mean square of the difference from float32 at the highest
      precision, over the largest value; None where there is none.
    plain_error: the same of plain XLA.
    note: why nothing was compared, or what else there is to say.
    failure: what is wrong, or None.
  """

  operation: str
  shape: str
  form: str
  direction: str
  dtype: str
  precision: str
  array: str = ""
  error: float | None = None
  plain_error: float | None = None
  note: str = ""
  failure: str | None = None


def compare(
  operation: cases.Operation, precisions: Sequence[str] = PRECISIONS
) -> Iterator[Row]:
  """All forms of an operation; what fails to compile or run says so."""
  directions = ("forward", "backward") if operation.trained else ("forward",)
  for dtype, direction in itertools.product(DTYPES, directions):
    run = functools.partial(_run, operation, direction)
    want = _tried(run, cases.PLAIN, dtype, "highest", exact=True)
    for precision in precisions:
      plain = _tried(run, cases.PLAIN, dtype, precision)
      for form in operation.forms:
        row = Row(
          operation.name, operation.shape, form, direction, dtype, precision
        )
        if note := operation.forms[form].refuses(dtype):
          yield dataclasses.replace(row, note=note)
          continue
        got = plain
        if form != cases.PLAIN:
          got = _tried(run, form, dtype, precision)
        yield _judged(row, got, plain, want)


def _run(
  operation: cases.Operation,
  direction: str,
  form: str,
  dtype: str,
  precision: str,
  exact: bool = False,
) -> dict[str, np.ndarray]:
  """Results as float64; `exact` of the rounded inputs, computed in float32."""
  floats = tuple(jnp.asarray(x, dtype) for x in operation.floats)
  if exact:
    floats = tuple(x.astype(jnp.float32) for x in floats)
  function = operation.forms[form].function
  if direction == "backward":
    function = _gradient(function)
  with jax.default_matmul_precision(precision):
    results = jax.jit(function)(*floats, operation.others)
  return {n: np.asarray(x).astype(np.float64) for n, x in results.items()}


def _gradient(function: Callable[..., cases.Results]):
  """Of a sum of all results, each weighed in its own way."""

  def weigh(x):
    weight = jnp.cos(0.7 * jnp.arange(x.size)).reshape(x.shape)
    return jnp.where(jnp.isfinite(x), weight, 0).astype(x.dtype)

  def gradient(*inputs):
    *floats, others = inputs
    results, pull = jax.vjp(lambda *x: function(*x, others), *floats)
    of_floats = pull(jax.tree.map(weigh, results))
    return {f"gradient of input {i}": x for i, x in enumerate(of_floats)}

  return gradient


def _tried(run: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
  """What it returns, or the exception: of any kind, as compilers raise any."""
  try:
    return run(*inputs, **options)
  except Exception as error:
    return error


def _judged(row: Row, got: Any, plain: Any, want: Any) -> Row:
  for what, results in (
    ("float32 at the highest precision", want),
    ("plain XLA", plain),
    (row.form, got),
  ):
    if isinstance(results, Exception):
      return dataclasses.replace(row, failure=f"{what}: {one_line(results)}")
  found = []
  for name in want:
    error, base = _error(got[name], want[name]), _error(plain[name], want[name])
    over = error / (MOST * base + FLOOR)
    found.append((over if np.isfinite(over) else np.inf, name, error, base))
  over, name, error, base = max(found)
  row = dataclasses.replace(row, array=name, error=error, plain_error=base)
  if row.form == cases.PLAIN:
    bad = not np.isfinite(error)
  else:
    bad = over > 1
  return dataclasses.replace(row, failure="is off by more" if bad else None)


def _error(got: np.ndarray, want: np.ndarray) -> float:
  """Root mean square over the largest; infinite if other places are."""
  finite = np.isfinite(want)
  odd = (got[~finite] != want[~finite]) & ~np.isnan(want[~finite])
  if odd.any() or not np.isfinite(got[finite]).all():
    return np.inf
  off = np.square(got[finite] - want[finite]).mean() ** 0.5
  return float(off / max(np.abs(want[finite]).max(), np.finfo(float).tiny))


def choices(
  size: cases.Size, precisions: Sequence[str] = PRECISIONS
) -> Iterator[Row]:
  """Which regions are chosen, against float32 at the highest precision.

  Only those may differ whose scores are as good as equal. Forms are compared
  with the choice given, so that one that differs is no error of theirs.
  """
  for (tokens, dim), dtype, precision, granularity in itertools.product(
    size.pages, DTYPES, precisions, ("query_head", "kv_group")
  ):
    row = Row(
      *("choice", f"{tokens} x {dim}", granularity),
      *("forward", dtype, precision),
    )
    found = _tried(_choice, size, tokens, dim, row)
    if isinstance(found, Exception):
      found = dataclasses.replace(row, failure=one_line(found))
    yield found


def _choice(size: cases.Size, tokens: int, dim: int, row: Row) -> Row:
  config = config_lib.GazeConfig(granularity=row.form)
  length = cases.lengths(size.regions, tokens)
  query = cases.draw(cases.ROWS, size.text, cases.QUERY_HEADS, dim)
  page = (cases.ROWS, cases.KV_HEADS, size.regions, tokens, dim)
  rounded = [jnp.asarray(x, row.dtype) for x in (query, cases.draw(*page))]
  exact = [x.astype(jnp.float32) for x in rounded]
  with jax.default_matmul_precision(row.precision):
    got = cases.choose(*rounded, length, config)[1]
  with jax.default_matmul_precision("highest"):
    score, want = cases.choose(*exact, length, config)
  score, want = np.asarray(score), np.asarray(want)
  differ = (np.asarray(got) != want).any(axis=-1)
  last = np.where(want, score, np.inf).min(axis=-1)
  following = np.where(want, -np.inf, score).max(axis=-1)
  tie = last - following <= _TIE * np.abs(score).max()
  wrong = int((differ & ~tie).sum())
  note = f"{int(differ.sum())} of {differ.size} differ"
  if differ.any():
    note += f", {int((differ & tie).sum())} of them over equal scores"
  failure = f"{wrong} differ over scores that do" if wrong else None
  return dataclasses.replace(row, note=note, failure=failure)


def one_line(error: Exception) -> str:
  """An exception, cut to what fits beside a row."""
  return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]


HEADER = (
  "operation      shape        form                  direction dtype    "
  "precision    error     plain"
)


def text(row: Row) -> str:
  """A row of the table under HEADER."""
  number = lambda x: f"{'-' if x is None else f'{x:.1e}':>9s}"
  out = (
    f"{row.operation:14s} {row.shape:12s} {row.form:21s} {row.direction:9s}"
    f" {row.dtype:8s} {row.precision:9s} {number(row.error)}"
    f" {number(row.plain_error)}"
  )
  if row.note:
    out += f"  {row.note}"
  return out + (f"  FAILED: {row.failure}" if row.failure else "")
