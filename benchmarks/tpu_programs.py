"""What benchmarks/tpu.py compiles: shapes, functions, and what they move."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gaze_jax import config as config_lib
from gaze_jax import types
from gaze_jax.kernels import attend_pages_tpu
from gaze_jax.kernels import attend_regions_tpu
from gaze_jax.kernels import attend_visual_tpu
from gaze_jax.kernels import attention
from gaze_jax.ops import gaze
from gaze_jax.ops import routing

_SIZES = (576, 4608, 20480, 65536)
_HEADS = ((32, 8), (28, 4))
_DTYPES = ("bfloat16", "float32")
_GRANULARITIES = ("query_head", "kv_group")
_REGION, _HEAD_DIM, _ROUTED = 36, 128, 0.1
_LAYERS = 2  # of the stacked cache
_TEXT = 128  # routed rows of a prompt; slots of the linear cache
# Text rows are compiled chunk by chunk: larger rows take minutes.
_PARALLEL_SIZES = (576, 4608)


@dataclasses.dataclass(frozen=True)
class Case:
  """One row: T visual tokens, Q query and H KV heads."""

  tokens: int
  q: int
  h: int
  dtype: str

  @property
  def regions(self) -> int:
    return -(-self.tokens // _REGION)

  @property
  def budget(self) -> int:
    return max(1, round(_ROUTED * self.regions))

  def size(self, granularity: str) -> int:
    """U: the most pages that a KV head can have to visit."""
    group = self.q // self.h if granularity == "query_head" else 1
    return min(group * self.budget, self.regions)

  def counts(self, granularity: str) -> np.ndarray:
    """int [1, H], pages of each KV head if heads choose independently."""
    if not granularity:
      return np.full((1, self.h), self.regions)
    choosers = self.q // self.h if granularity == "query_head" else 1
    random = np.random.default_rng(0)
    choose = lambda: random.permutation(self.regions)[: self.budget]
    union = lambda: len(np.unique([choose() for _ in range(choosers)]))
    return np.array([[union() for _ in range(self.h)]])

  def chosen_bytes(self, granularity: str) -> int:
    """Of the keys and values of the chosen regions."""
    token = 2 * _HEAD_DIM * np.dtype(self.dtype).itemsize
    return int(self.counts(granularity).sum()) * _REGION * token

  def ideal(self, granularity: str) -> int:
    descriptors = 4 * self.h * self.regions * _HEAD_DIM
    ends = 2 * self.q * _HEAD_DIM * np.dtype(self.dtype).itemsize
    return self.chosen_bytes(granularity) + descriptors + ends

  def moved(self, granularity: str, memory: Any) -> int:
    """By `attend_pages`, given the memory that the compiler says it takes."""
    page = attend_pages_tpu.page_shape(_REGION, _HEAD_DIM, self.dtype)
    pages = 2 * _LAYERS * self.h * self.regions * math.prod(page)
    cache = pages * np.dtype(self.dtype).itemsize
    fetched = attend_pages_tpu.fetched_bytes(
      self.counts(granularity),
      tokens=_REGION,
      head_dim=_HEAD_DIM,
      dtype=self.dtype,
    )
    blocks = memory.argument_size_in_bytes - cache + memory.output_size_in_bytes
    return fetched + blocks + 4 * self.h * self.regions * _HEAD_DIM


@dataclasses.dataclass(frozen=True)
class Program:
  """What is compiled.

  Attributes:
    case: its sizes.
    name: as in the module's docstring.
    form: dense, gather or kernel.
    choice: who chooses; empty where nothing is chosen.
    make: to a function and its abstract arguments.
  """

  case: Case
  name: str
  form: str
  choice: str
  make: Callable[[], tuple[Callable[..., Any], tuple]]


NAMES = (
  *("decode", "prompt", "attend_pages"),
  *("attend_regions", "attend_visual", "parallel"),
)


def programs(names: list[str], quick: bool) -> Iterator[Program]:
  """All that is compiled for a topology, or a subset."""
  for size, dtype, heads in itertools.product(_SIZES, _DTYPES, _HEADS):
    case = Case(size, *heads, dtype)
    for program in (*_decoding(case), *_training(case)):
      if program.name in names and (not quick or _is_quick(program)):
        yield program


def _is_quick(program: Program) -> bool:
  """The decode kernel alone, and in bfloat16 at one head shape the rest."""
  case, least, most = program.case, _SIZES[0], _SIZES[-1]
  if case.tokens not in (least, most) or program.name == "parallel":
    return False
  if program.name == "attend_pages":
    return case.dtype == "bfloat16" or case.tokens == most
  if (case.dtype, case.q) != ("bfloat16", 28):
    return False
  if case.tokens == least:
    return True
  # The sorts of the other large steps take the longest to compile.
  return program.name == "decode" and program.choice == "kv_group"


def _decoding(case: Case) -> Iterator[Program]:
  step = functools.partial(_step, case)
  yield Program(case, "decode", "dense", "", lambda: step("masked", None))
  for choice in _GRANULARITIES:
    for form, option in (("gather", "gather"), ("kernel", "pallas")):
      make = functools.partial(step, option, choice)
      yield Program(case, "decode", form, choice, make)
    make = functools.partial(step, "pallas", choice, tokens=_TEXT)
    yield Program(case, "prompt", "kernel", choice, make)
    make = functools.partial(_attend_pages, case, choice)
    yield Program(case, "attend_pages", "kernel", choice, make)


def _training(case: Case) -> Iterator[Program]:
  for name, make in (
    ("attend_regions", _attend_regions),
    ("attend_visual", _attend_visual),
    ("parallel", _parallel),
  ):
    if name != "parallel" or case.tokens in _PARALLEL_SIZES:
      choice = "" if name == "attend_visual" else "query_head"
      make = functools.partial(make, case)
      yield Program(case, name, "kernel", choice, make)


_abstract = jax.ShapeDtypeStruct
_ints = lambda *shape: _abstract(shape, jnp.int32)


def _step(case: Case, implementation: str, choice: str | None, tokens: int = 1):
  """`gaze.decode` of one layer of a stacked cache; all regions if no choice."""
  config = config_lib.GazeConfig(
    granularity=choice or "kv_group", decode_implementation=implementation
  )
  linear = _abstract((1, _TEXT, case.h, _HEAD_DIM), case.dtype)

  def function(query, cache, key, value, length, budget, layer):
    seen = jnp.arange(_TEXT) <= length
    return gaze.decode(
      query,
      cache,
      attention.attend(query, key, value, seen[None, None, None]),
      budget,
      config,
      layer=layer,
      dense=choice is None,
    ).out

  return function, (
    _abstract((1, tokens, case.q, _HEAD_DIM), case.dtype),
    _cache(case, config),
    linear,
    linear,
    _ints(1),
    _ints(1),
    _ints(),
  )


def _cache(case: Case, config: config_lib.GazeConfig) -> types.VisualCache:
  """Of a row, in all layers."""
  decoder = config_lib.DecoderConfig(
    depth=_LAYERS,
    query_heads=case.q,
    kv_heads=case.h,
    head_dim=_HEAD_DIM,
    dtype=case.dtype,
  )
  model = config_lib.ModelConfig(decoder=decoder, gaze=config)
  return jax.eval_shape(lambda: gaze.empty(1, case.regions, _REGION, model))


def _plan(case: Case, slots: int) -> types.Plan:
  make = functools.partial(routing.plan, config=config_lib.GazeConfig())
  region_slots = _ints(1, case.regions, _REGION)
  return jax.eval_shape(make, _layout(slots), region_slots)


def _layout(slots: int) -> types.Layout:
  return types.Layout(
    *(_ints(1, slots) for _ in dataclasses.fields(types.Layout))
  )


def _attend_pages(case: Case, choice: str):
  shape = attend_pages_tpu.page_shape(_REGION, _HEAD_DIM, case.dtype)
  pages = (_LAYERS, 1, case.h, case.regions, *shape)

  def function(query, k, v, length, visits, layer):
    return attend_pages_tpu.attend_pages(
      query, k, v, length, visits, layer=layer
    )

  return function, (
    _abstract((1, 1, case.q, _HEAD_DIM), case.dtype),
    *(_abstract(pages, case.dtype),) * 2,
    _ints(1, case.regions),
    types.Visits(
      ids=_ints(1, case.h, case.size(choice)),
      rows=_ints(1, case.h, 1, case.size(choice)),
      count=_ints(1, case.h),
    ),
    _ints(),
  )


def _gradients(function: Callable[..., Any]):
  """Sums what a function of (query, key, value, ...) returns, and back."""
  total = lambda *x: sum(
    leaf.astype(jnp.float32).sum() for leaf in jax.tree.leaves(function(*x))
  )
  return jax.value_and_grad(total, argnums=(0, 1, 2))


def _attend_regions(case: Case):
  pages = _abstract((1, case.h, case.regions, _REGION, _HEAD_DIM), case.dtype)
  return _gradients(attend_regions_tpu.attend_regions), (
    _abstract((1, _TEXT, case.q, _HEAD_DIM), case.dtype),
    pages,
    pages,
    _ints(1, case.regions),
    _abstract((1, _TEXT, case.q, case.regions), jnp.bool_),
  )


def _attend_visual(case: Case):
  return _gradients(attend_visual_tpu.attend_visual), (
    *_sequence(case, case.tokens),
    _layout(case.tokens),
  )


def _sequence(case: Case, slots: int) -> list[Any]:
  heads = case.q, case.h, case.h
  return [_abstract((1, slots, n, _HEAD_DIM), case.dtype) for n in heads]


def _parallel(case: Case):
  config = config_lib.GazeConfig(implementation="pallas", chunk=_TEXT)
  slots = case.tokens + _TEXT
  attend = lambda query, key, value, plan, budget: (
    gaze.parallel(query, key, value, plan, budget, config).out
  )
  return _gradients(attend), (
    *_sequence(case, slots),
    _plan(case, slots),
    _ints(1),
  )
