"""A checkpoint of transformers, opened as weights of ours.

config.json is read, and every tensor's name and shape held to the tables; no
tensor is read until a leaf is. Whatever does not fit ends in one error that
lists all of it, against the naming of tensors that came nearest.
"""

import dataclasses
import functools
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from gaze_jax import config as config_lib
from gaze_jax import data_config
from gaze_jax import errors as errors_lib
from gaze_jax import fields
from gaze_jax import json_file
from gaze_jax import schema as schema_lib
from gaze_jax.layout import tiles
from gaze_jax.weights import diagnosis
from gaze_jax.weights import errors
from gaze_jax.weights import store
from gaze_jax.weights import tables
from gaze_jax.weights import tensors
from gaze_jax.weights.families import image_processors
from gaze_jax.weights.families import registry

_HEAD = "head.weight"
EMBEDDING = ("decoder", "embedding")
# Context tokens in a directory of transformers, and their options in its
# config.json: ours, and ignored by it.
GAZE_FILE, GAZE_KEY = "gaze.safetensors", "gaze"
# Files of a checkpoint that are kept as they are.
GENERATION = "generation_config.json"
PICTURES = (
  image_processors.ALONE,
  image_processors.NESTED,
  image_processors.VIDEO,
)
TEXTS = (
  GENERATION,
  "tokenizer.json",
  "tokenizer_config.json",
  "tokenizer.model",
  "special_tokens_map.json",
  "added_tokens.json",
  "vocab.json",
  "merges.txt",
  "chat_template.jinja",
  "chat_template.json",
  "chat_templates",
)
FILES = ("config.json", *PICTURES, *TEXTS)
# Leaves that no checkpoint of transformers has, by part.
_NEW = dict(decoder=(), vision=(), projector=("context",))
# What may differ in two configs of one architecture.
_FREE = {
  *("weights", "frozen", "scan", "remat", "dtype"),
  *("embedding_std", "position_std", "context_std"),
}
# A config of a model and the parts of it that there are -> None, or an error.
Fits = Callable[[config_lib.ModelConfig, Sequence[str]], None]
_TEXT_SLOTS = 1024  # room for text in a row, beside one picture
_ROWS = 4096  # rows of the head that are compared at a time


@dataclasses.dataclass(frozen=True)
class _Fit:
  """What one naming makes of the tensors of a checkpoint.

  Attributes:
    naming: its name.
    entries: every leaf, with the tensors that it is made of.
    problems: what is missing, unexpected or misshapen.
    unused: tensors that nothing here computes with.
    alias: name of a head that repeats the tied embedding; "" for none.
  """

  naming: str
  entries: list[tables.Entry]
  problems: list[str]
  unused: set[str]
  alias: str


def open_checkpoint(
  directory: pathlib.Path,
  *,
  dtype: str | None = None,
  adapt: Callable[
    [config_lib.ModelConfig], config_lib.ModelConfig
  ] = lambda m: m,
  fits: Fits = lambda model, parts: None,
) -> store.Stored:
  """Opens a checkpoint directory of transformers.

  Args:
    directory: where it is.
    dtype: "float32", "bfloat16" or "float16"; as in the checkpoint by default.
    adapt: changes how it is run (another hidden state, another picture size)
      before its tensors are held to the tables.
    fits: raises an error of its own for a model that can't be used, before a
      tensor is read.

  Raises:
    ConversionError: there is none, it is broken, its family is not known, its
      tensors do not fit (one message with all that is missing, unexpected or
      misshapen), or those of one leaf have several dtypes and none was asked
      for.
  """
  source = tensors.Tensors(directory)
  diagnosis.refuse_partial(directory, list(source.listed))
  raw, family, model = read_configs(directory)
  model = adapt(model)
  fits(model, family.parts)
  fits = [_fit(n, raw, family, model, source) for n in family.namings]
  best = min(fits, key=lambda fit: len(fit.problems))
  if best.problems:
    raise errors.ConversionError(
      diagnosis.explain(
        directory,
        raw,
        model,
        best.naming,
        best.entries,
        best.problems,
        source.listed.keys(),
      )
    )
  _check_alias(directory, best, source)
  _warn_of_others(directory, model)
  leaves = [_leaf(directory, e, source, dtype) for e in best.entries]
  if "projector" in family.parts:
    leaves += _context(directory, model)
  return store.Stored(
    config_for(model),
    leaves,
    naming=best.naming,
    alias=best.alias,
    unused=[x for x in store.leaves_of(source) if x.name in best.unused],
    files=files_of(directory, FILES),
  )


def _fit(
  name: str,
  raw: Mapping[str, Any],
  family: registry.Family,
  model: config_lib.ModelConfig,
  source: tensors.Tensors,
) -> _Fit:
  naming, found = family.namings[name], source.listed
  entries = bind(model, family.parts, raw, naming)
  wanted = tables.wanted(entries)
  unused = _pattern(family.unused(model, raw), naming)
  dropped = _pattern(family.dropped, naming)
  head = tables.in_naming(_HEAD, naming) if "head" in naming else ""
  alias = head if head in found and head not in wanted else ""
  problems = tables.differences(
    wanted,
    {key: tensor.shape for key, tensor in found.items()},
    lambda key: key == alias or dropped.fullmatch(key) or unused.fullmatch(key),
  )
  rest = {key for key in found.keys() - wanted.keys() if unused.fullmatch(key)}
  return _Fit(name, entries, problems, rest, alias)


def _pattern(patterns: registry.Patterns, naming: tables.Naming) -> re.Pattern:
  """One regex of the names in a file; it matches nothing if there are none."""
  each = []
  for token, names in patterns.items():
    under = naming[token] if token else ""
    prefix = re.escape(f"{under}." if under else "")
    each += [f"{prefix}(?:{name})" for name in names]
  return re.compile("|".join(each) or r"(?!)")


def _leaf(
  directory: pathlib.Path,
  entry: tables.Entry,
  source: tensors.Tensors,
  dtype: str | None,
) -> store.Leaf:
  found = {source.listed[name].dtype for name in entry.tensors}
  if len(found) > 1 and not dtype:
    names = ", ".join(sorted(d.name for d in found))
    raise errors.ConversionError(
      f"{directory}: the layers of {'/'.join(entry.path)} are {names};"
      " choose one with --dtype"
    )
  kind = np.dtype(dtype) if dtype else found.pop()
  read = functools.partial(entry.read, read=source.read)
  return store.Leaf(entry.path, entry.shape, kind, read)


def _context(
  directory: pathlib.Path, model: config_lib.ModelConfig
) -> list[store.Leaf]:
  """Context tokens, which `exporting.write` put beside; there may be none."""
  beside, count = directory / GAZE_FILE, model.gaze.context_tokens
  if not beside.exists() and not count:
    return []
  if not beside.exists():
    raise errors.ConversionError(
      f"{beside}: no such file, and config.json has {GAZE_KEY} ="
      f" {{context_tokens: {count}, ...}}; copy it from where the checkpoint"
      " was written"
    )
  found = store.leaves_of(tensors.Tensors(beside))
  want = {"projector/context": (count, model.decoder.width)} if count else {}
  got = {leaf.name: leaf.shape for leaf in found}
  if problems := tables.differences(want, got):
    raise errors.ConversionError(
      f"{beside}: not the context tokens of this model: {'; '.join(problems)}"
    )
  return found


def _check_alias(
  directory: pathlib.Path, fit: _Fit, source: tensors.Tensors
) -> None:
  """A head beside a tied embedding must repeat it, or one of them is lost."""
  if not fit.alias:
    return
  (name,) = next(e.tensors for e in fit.entries if e.path == EMBEDDING)
  rows, width = source.listed[name].shape
  same = source.listed[fit.alias].shape == (rows, width)
  for start in range(0, rows if same else 0, _ROWS):
    part = (slice(start, min(start + _ROWS, rows)), slice(0, width))
    both = [source.read(n, part) for n in (name, fit.alias)]
    same = same and np.array_equal(*both, equal_nan=True)
  if not same:
    raise errors.ConversionError(
      f"{directory}: tie_word_embeddings is true, and {fit.alias} differs from"
      f" {name}; set tie_word_embeddings to false if it is a head of its own"
    )


def _warn_of_others(
  directory: pathlib.Path, model: config_lib.ModelConfig
) -> None:
  """Warns of files beside the weights that change nothing here."""
  if model.tiling.kind == "anyres":  # which is asked about videos
    for line in image_processors.other_for_videos(directory, model.vision):
      logging.warning(
        "%s: %s; frames are shown to the model as pictures are", directory, line
      )
  if beside := diagnosis.adapters(p.name for p in directory.iterdir()):
    logging.warning(
      "%s: the adapter %s is beside the weights and is not applied; merge it"
      " into them if it belongs to the model",
      directory,
      beside[0],
    )


def read_configs(
  directory: pathlib.Path,
) -> tuple[dict[str, Any], registry.Family, config_lib.ModelConfig]:
  """config.json, and the family and the architecture that it names.

  Raises:
    ConversionError: it is missing, or asks for what is not computed here.
  """
  raw = json_file.read(directory / "config.json", errors.ConversionError)
  family = registry.find(raw)
  found = image_processors.find(directory) if "vision" in family.parts else None
  file, preprocessor = found or ("", None)
  try:
    model = family.model(raw, preprocessor)
    if GAZE_KEY in raw:
      gaze = _gaze(directory / "config.json", raw[GAZE_KEY])
      model = dataclasses.replace(model, gaze=gaze)
    config_lib.from_config_dict(config_lib.to_dict(config_for(model)))
  except image_processors.PixelsError as error:
    where = directory / (file or "config.json")
    raise errors.ConversionError(f"{where}: {error}") from None
  except errors.ConversionError:
    raise
  except errors_lib.GazeError as error:
    raise errors.ConversionError(f"{directory}/config.json: {error}") from None
  except (TypeError, ValueError, LookupError, ArithmeticError) as error:
    raise errors.ConversionError(
      f"{directory}/config.json: a value is of a kind that it can't be: {error}"
      f"{_quoted(raw)}"
    ) from None
  return raw, family, model


def _quoted(raw: dict[str, Any]) -> str:
  """The remedy for numbers that stand as texts; "" where there are none."""
  tables = [raw, *(x for x in raw.values() if isinstance(x, dict))]
  texts = [(k, x) for t in tables for k, x in t.items() if isinstance(x, str)]
  found = [f"{k} = {x!r}" for k, x in texts if re.fullmatch(r"\d+\.?\d*", x)]
  return f"; take the quotes from {', '.join(found)}" if found else ""


def gaze_to_json(gaze: config_lib.GazeConfig) -> dict[str, Any]:
  """What stands under `GAZE_KEY` in a config.json."""
  return schema_lib.stamp("gaze") | config_lib.to_dict(gaze)


def _gaze(where: pathlib.Path, value: Any) -> config_lib.GazeConfig:
  if isinstance(value, Mapping):
    schema_lib.read(value, f"{where}: {GAZE_KEY}", "gaze")
    value = {k: v for k, v in value.items() if k != schema_lib.KEY}
  return fields.read(config_lib.GazeConfig, value, GAZE_KEY)


def config_for(model: config_lib.ModelConfig) -> config_lib.Config:
  """A whole config around a converted model, with rows that an image fits."""
  units = 2 if model.tiling.kind == "anyres" else 1
  slots = units * (tiles.largest_unit(model) + model.gaze.context_tokens)
  data = data_config.DataConfig(
    max_units=units, sequence_length=slots + _TEXT_SLOTS
  )
  return config_lib.Config(model=model, data=data)


def refuse_other(
  where: pathlib.Path,
  found: config_lib.ModelConfig,
  wanted: config_lib.ModelConfig,
  part: str,
) -> None:
  """Refuses a part of another architecture.

  Raises:
    ConversionError: names every field that differs.
  """
  there, here = (dataclasses.asdict(getattr(m, part)) for m in (found, wanted))
  differ = [
    f"model.{part}.{name} is {value!r} there and {here[name]!r} in the config"
    for name, value in there.items()
    if name not in _FREE and value != here[name]
  ]
  if differ:
    raise errors.ConversionError(
      f"{where}: another architecture: {'; '.join(differ)}"
    )


def files_of(
  directory: pathlib.Path, names: Iterable[str]
) -> dict[str, pathlib.Path]:
  """Those of these files and folders that a directory has, by name."""
  paths = {name: directory / name for name in names}
  return {name: path for name, path in paths.items() if path.exists()}


def bind(
  model: config_lib.ModelConfig,
  parts: Iterable[str],
  raw: Mapping[str, Any],
  naming: tables.Naming,
) -> list[tables.Entry]:
  """Every leaf that a checkpoint of this model, with these names, fills."""
  shapes = registry.shapes(model)
  entries = []
  for part in parts:
    table = registry.rules(model, part, raw)
    leaves = {k: v for k, v in shapes[part].items() if k not in _NEW[part]}
    entries += tables.bind(table, part, leaves, naming)
  return entries
