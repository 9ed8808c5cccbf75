"""Every kernel and form against plain XLA, on the device that is at hand."""

import concurrent.futures
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

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


# float64 arrays by name; or why there are none.
_Found = dict[str, np.ndarray] | Exception


def compare(
  operations: Iterable[cases.Operation],
  precisions: Sequence[str] = PRECISIONS,
  threads: int = 1,
) -> Iterator[Row]:
  """All forms of operations; what fails to compile or run says so.

  Args:
    operations: what is compared.
    precisions: of PRECISIONS.
    threads: how many programs are compiled, and run, at a time.
  """
  with concurrent.futures.ThreadPoolExecutor(threads) as pool:
    started = [(x, _start(x, precisions, pool)) for x in operations]
    for operation, (want, found) in started:
      yield from _rows(operation, precisions, want, found)


def _start(operation, precisions, pool):
  """Futures of what the results should be, and of each form's."""
  run = functools.partial(_results, operation)
  plain = cases.PLAIN
  # One program, of the inputs as each dtype rounds them.
  exact = lambda: {x: run(plain, x, "highest", exact=True) for x in DTYPES}
  found = {
    key: pool.submit(run, *key)
    for key in itertools.product(operation.forms, DTYPES, precisions)
    if not operation.forms[key[0]].refuses(key[1])
  }
  return pool.submit(exact), found


def _rows(operation, precisions, want, found) -> Iterator[Row]:
  for dtype, precision in itertools.product(DTYPES, precisions):
    plain = found[cases.PLAIN, dtype, precision].result()
    for form in operation.forms:
      for direction, wanted in want.result()[dtype].items():
        row = Row(
          *(operation.name, operation.shape, form),
          *(direction, dtype, precision),
        )
        if note := operation.forms[form].refuses(dtype):
          yield dataclasses.replace(row, note=note)
        else:
          got = found[form, dtype, precision].result()
          yield _judged(row, got[direction], plain[direction], wanted)


def _results(
  operation: cases.Operation,
  form: str,
  dtype: str,
  precision: str,
  exact: bool = False,
) -> dict[str, _Found]:
  """By direction; `exact` of the rounded inputs, computed in float32."""
  floats = tuple(jnp.asarray(x, dtype) for x in operation.floats)
  if exact:
    floats = tuple(x.astype(jnp.float32) for x in floats)
  forward = operation.forms[form].function
  run = functools.partial(_tried, _run, floats, operation.others, precision)
  if not operation.trained:
    return {"forward": run(forward)}
  both = run(_with_gradients(forward))
  if isinstance(both, Exception):
    return {"forward": run(forward), "backward": both}
  gradients = {n: both.pop(n) for n in tuple(both) if n.startswith(_OF)}
  return {"forward": both, "backward": gradients}


def _run(floats, others, precision, function) -> dict[str, np.ndarray]:
  with jax.default_matmul_precision(precision):
    results = jax.jit(function)(*floats, others)
  return {n: np.asarray(x).astype(np.float64) for n, x in results.items()}


_OF = "gradient of input "


@functools.cache  # or else it would be compiled anew
def _with_gradients(function: Callable[..., cases.Results]):
  """Results, and gradients of their sum, each weighed in its own way."""

  def weigh(x):
    weight = jnp.cos(0.7 * jnp.arange(x.size)).reshape(x.shape)
    return jnp.where(jnp.isfinite(x), weight, 0).astype(x.dtype)

  def both(*inputs):
    *floats, others = inputs
    results, pull = jax.vjp(lambda *x: function(*x, others), *floats)
    of_floats = pull(jax.tree.map(weigh, results))
    gradients = {f"{_OF}{i}": x for i, x in enumerate(of_floats)}
    return results | gradients

  return both


def _tried(run: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
  """What it returns, or the exception: of any kind, as compilers raise any."""
  try:
    return run(*inputs, **options)
  except Exception as error:
    return error


def _judged(row: Row, got: _Found, plain: _Found, want: _Found) -> Row:
  for what, results in (
    ("float32 at the highest precision", want),
    ("plain XLA", plain),
    (row.form, got),
  ):
    if isinstance(results, Exception):
      return dataclasses.replace(row, failure=f"{what}: {one_line(results)}")
  worst = -1.0
  for name, wanted in want.items():
    error, base = _error(got[name], wanted), _error(plain[name], wanted)
    if error is None or base is None:
      whose = row.form if error is None else "plain XLA"
      failure = f"{whose}: {name} is infinite or NaN, or should be"
      return dataclasses.replace(row, array=name, failure=failure)
    over = error / (MOST * base + FLOOR)
    if over > worst:
      worst = over
      row = dataclasses.replace(row, array=name, error=error, plain_error=base)
  failure = None
  if worst > 1:
    failure = f"{row.array} is off by {worst:.2g} times what it may be"
  return dataclasses.replace(row, failure=failure)


def _error(got: np.ndarray, want: np.ndarray) -> float | None:
  """Root mean square over the largest; None if other places are infinite."""
  finite = np.isfinite(want)
  odd = (got[~finite] != want[~finite]) & ~np.isnan(want[~finite])
  if odd.any() or not np.isfinite(got[finite]).all():
    return None
  off = np.square(got[finite] - want[finite]).mean() ** 0.5
  return float(off / max(np.abs(want[finite]).max(), np.finfo(float).tiny))


def choices(
  size: cases.Size,
  precisions: Sequence[str] = PRECISIONS,
  threads: int = 1,
) -> Iterator[Row]:
  """Which regions are chosen, against float32 at the highest precision.

  Only those may differ whose scores are as good as equal. Forms are compared
  with the choice given, so that one that differs is no error of theirs.
  """
  kinds = list(itertools.product(size.pages, DTYPES, precisions))
  run = functools.partial(_tried, _choices, size)
  with concurrent.futures.ThreadPoolExecutor(threads) as pool:
    every = list(pool.map(lambda kind: run(*kind), kinds))
  for (page, dtype, precision), found in zip(kinds, every, strict=True):
    shape = f"{page[0]} x {page[1]}"
    for granularity in cases.GRANULARITIES:
      row = Row("choice", shape, granularity, "forward", dtype, precision)
      if isinstance(found, Exception):
        yield dataclasses.replace(row, failure=one_line(found))
      else:
        yield _chosen(row, *found[granularity])


def _choices(size: cases.Size, page: tuple[int, int], dtype, precision: str):
  """By granularity: the choice; scores and choice as they should be."""
  tokens, dim = page
  query = cases.draw(cases.ROWS, size.text, cases.QUERY_HEADS, dim)
  k = cases.draw(cases.ROWS, cases.KV_HEADS, size.regions, tokens, dim)
  length = cases.lengths(size.regions, tokens)
  rounded = [jnp.asarray(x, dtype) for x in (query, k)]
  exact = [x.astype(jnp.float32) for x in rounded]
  with jax.default_matmul_precision(precision):
    got = cases.choose(*rounded, length)
  with jax.default_matmul_precision("highest"):
    want = cases.choose(*exact, length)
  return jax.tree.map(
    np.asarray,
    {name: (got[name][1], *want[name]) for name in cases.GRANULARITIES},
  )


def _chosen(
  row: Row, got: np.ndarray, score: np.ndarray, want: np.ndarray
) -> Row:
  differ = (got != want).any(axis=-1)
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
  "operation       shape        form                  direction dtype    "
  "precision    error     plain"
)


def text(row: Row) -> str:
  """A row of the table under HEADER."""
  number = lambda x: f"{'-' if x is None else f'{x:.1e}':>9s}"
  out = (
    f"{row.operation:15s} {row.shape:12s} {row.form:21s} {row.direction:9s}"
    f" {row.dtype:8s} {row.precision:9s} {number(row.error)}"
    f" {number(row.plain_error)}"
  )
  if row.note:
    out += f"  {row.note}"
  return out + (f"  FAILED: {row.failure}" if row.failure else "")
