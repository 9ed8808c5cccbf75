"""Fields of a config: which values they take, and how they are read.

A field's type says it all, beside the field: `steps: fields.Count = 1000`. A
type may bring a remedy: `Annotated[fields.Positive, "what to do instead"]`.
"""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Any, Literal, NoReturn

import numpy as np

from gaze_jax import errors

_INTS = 2**31 - 1  # what a number of an array may be
_TINY = float(np.finfo(np.float32).tiny)  # what is smaller counts as 0


class ConfigError(errors.GazeError):
  """A configuration that can't be used; the message names the key."""


@dataclasses.dataclass(frozen=True)
class Bound:
  """A range of numbers, which end up in arrays of 32 bits and are held to it.

  Attributes:
    low: the lowest.
    high: the highest.
    above: whether `low` itself is out.
    below: whether `high` itself is out.
  """

  low: int | float = -_INTS
  high: int | float = _INTS
  above: bool = False
  below: bool = False

  def refusal(self, value: int | float) -> str | None:
    """What is wrong with a number, in words that follow it; None: nothing."""
    number = value
    if isinstance(value, float):
      with np.errstate(over="ignore"):
        number = float(np.float32(value))
      if not math.isfinite(number):
        return "is no finite number of 32 bits"
      number = 0.0 if abs(number) < _TINY else number
    if number < self.low:
      return f"is below {self.low}"
    if self.above and number == self.low:
      return f"is not above {self.low}"
    if number > self.high:
      return f"is above {self.high}"
    if self.below and number == self.high:
      return f"is not below {self.high}"
    return None


Whole = Annotated[int, Bound()]
Natural = Annotated[int, Bound(0)]
Count = Annotated[int, Bound(1)]
Seed = Annotated[int, Bound(0, 2**32 - 1)]
Finite = Annotated[float, Bound(-math.inf, math.inf)]
NonNegative = Annotated[float, Bound(0, math.inf)]
Positive = Annotated[float, Bound(0, math.inf, above=True)]
Share = Annotated[float, Bound(0, 1)]
PositiveShare = Annotated[float, Bound(0, 1, above=True)]
Decay = Annotated[float, Bound(0, 1, below=True)]
Colour = tuple[Finite, Finite, Finite]
Spread = tuple[Positive, Positive, Positive]


def refuse_unknown(name: str, known: Collection[str]) -> NoReturn:
  """Raises a `ConfigError` for a key, with what was probably meant."""
  near = difflib.get_close_matches(name, known, n=1)
  hint = (
    f"did you mean {near[0]!r}?"
    if near
    else f"known keys: {', '.join(sorted(known))}"
  )
  raise ConfigError(f"config: unknown key {name!r}; {hint}")


_READ_AS = "read_as"


def read_as(type_of: Callable[[Mapping[str, Any]], type]) -> dict[str, Any]:
  """Metadata of a field whose dataclass follows from the fields beside it."""
  return {_READ_AS: type_of}


def read(cls: type, raw: Any, path: str) -> Any:
  """Reads a mapping into a dataclass; `path` names it in errors.

  Raises:
    ConfigError: an unknown key, a wrong type, a value outside its choices or
      bounds.
  """
  if not isinstance(raw, Mapping):
    raise ConfigError(
      f"config: {path or 'the config'} must be a table of keys, got {raw!r}"
    )
  hints = typing.get_type_hints(cls, include_extras=True)
  values = {}
  for key, value in raw.items():
    name = f"{path}.{key}" if path else key
    if key not in hints:
      prefix = f"{path}." if path else ""
      refuse_unknown(name, [prefix + known for known in hints])
    if _READ_AS not in cls.__dataclass_fields__[key].metadata:
      values[key] = _value(hints[key], value, name)
  defaults = {f.name: f.default for f in dataclasses.fields(cls)}
  for field in dataclasses.fields(cls):
    if type_of := field.metadata.get(_READ_AS):
      name = f"{path}.{field.name}" if path else field.name
      of = type_of(defaults | values)
      values[field.name] = read(of, raw.get(field.name, {}), name)
  return cls(**values)


def _value(hint: Any, value: Any, name: str) -> Any:
  if dataclasses.is_dataclass(hint):
    return read(hint, value, name)
  origin = typing.get_origin(hint)
  if origin is Annotated:
    of, bound, *remedy = typing.get_args(hint)
    number = _value(of, value, name)
    if wrong := bound.refusal(number):
      raise ConfigError(
        f"config: {name} = {value!r} {'; '.join([wrong, *remedy])}"
      )
    return number
  if origin is Literal:
    choices = typing.get_args(hint)
    if not isinstance(value, str) or value not in choices:
      raise ConfigError(
        f"config: {name} = {value!r} is not one of"
        f" {', '.join(map(repr, choices))}"
      )
    return value
  if origin in (tuple, types.UnionType):  # a union is of tuples
    if not isinstance(value, (list, tuple)):
      raise ConfigError(f"config: {name} must be a list, got {value!r}")
    kinds = typing.get_args(hint) if origin is types.UnionType else (hint,)
    of_length = {len(args): args for args in map(typing.get_args, kinds)}
    args = of_length.get(len(value))
    if Ellipsis in (first := next(iter(of_length.values()))):
      args = first[:1] * len(value)
    if args is None:
      lengths = " or ".join(map(str, of_length))
      raise ConfigError(
        f"config: {name} must have {lengths} entries, got {value!r}"
      )
    entries = enumerate(zip(args, value, strict=True))
    return tuple(_value(of, v, f"{name}[{i}]") for i, (of, v) in entries)
  if hint is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value) if abs(value) < 2**128 else math.inf
  if not isinstance(value, hint) or (
    isinstance(value, bool) and hint is not bool
  ):
    raise ConfigError(f"config: {name} must be {hint.__name__}, got {value!r}")
  return value
