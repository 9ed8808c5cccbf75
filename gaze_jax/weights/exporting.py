"""The way out: our format to a checkpoint that transformers loads."""

import dataclasses
import functools
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from gaze_jax.weights import hf
from gaze_jax.weights import store
from gaze_jax.weights import tables
from gaze_jax.weights import writer as writer_lib
from gaze_jax.weights.families import decoders
from gaze_jax.weights.families import image_processors
from gaze_jax.weights.families import llava
from gaze_jax.weights.families import registry
from gaze_jax.weights.families import towers


def write(
  stored: store.Stored, to: pathlib.Path | None, *, dtype: str | None = None
) -> None:
  """Writes weights of ours as a checkpoint that transformers loads.

  What came from such a checkpoint goes back bitwise, under its own names.
  Context tokens, which transformers has no name for, go to a file of their own
  beside the model, where `hf.open_checkpoint` finds them again.

  Args:
    stored: the weights.
    to: a directory that does not exist yet, or is empty; None checks
      everything and writes nothing.
    dtype: "float32", "bfloat16" or "float16"; as stored by default.

  Raises:
    ConversionError: no family of transformers computes this model; nothing is
      left at `to`.
  """
  model, kept = stored.config.model, stored.files.get("config.json")
  if kept:
    raw, family, described = hf.read_configs(kept.parent)
    # A newline that a run without tiles has dropped would be missing there.
    for part in (*stored.parts, "tiling"):
      hf.refuse_other(kept.parent, described, model, part)
  else:
    raw = _config(stored)
    family = registry.find(raw)
    described = family.model(raw, None)
  naming = family.namings[stored.naming or family.written]
  out, new = _tensors(stored, raw, naming)
  if to is None:
    return
  out += stored.unused if kept else ()
  if dtype:
    out = [dataclasses.replace(leaf, dtype=np.dtype(dtype)) for leaf in out]
  out += () if kept else _filler(stored, raw, naming)
  # The pictures of a joined model are its own, not those of its tower.
  names = hf.FILES if kept else hf.TEXTS
  changed = {k: dtype for k in ("dtype", "torch_dtype") if dtype and k in raw}
  if model.gaze != described.gaze:
    changed[hf.GAZE_KEY] = hf.gaze_to_json(model.gaze)
  with writer_lib.destination(to) as directory:
    store.write_leaves(directory, out)
    files = {k: v for k, v in stored.files.items() if k in names}
    store.write_files(directory, files)
    if new:
      store.write_leaves(directory / hf.GAZE_FILE, new)
    if changed or not kept:
      store.write_json(directory / "config.json", raw | changed)
    if "vision" in stored.parts and not image_processors.find(directory):
      pictures = directory / image_processors.ALONE
      store.write_json(pictures, llava.preprocessor_to_hf(model))


def _tensors(
  stored: store.Stored, raw: Mapping[str, Any], naming: tables.Naming
) -> tuple[list[store.Leaf], list[store.Leaf]]:
  """Tensors of transformers, unread, and leaves that it has no name for."""
  out, new = [], {leaf.path: leaf for leaf in stored.leaves}
  for entry in hf.bind(stored.config.model, stored.parts, raw, naming):
    leaf = new.pop(entry.path)
    out += _tensors_of(entry, leaf)
    if entry.path == hf.EMBEDDING and (alias := stored.alias):
      out += _tensors_of(dataclasses.replace(entry, tensors=(alias,)), leaf)
  return out, list(new.values())


def _tensors_of(entry: tables.Entry, leaf: store.Leaf) -> Iterator[store.Leaf]:
  """The tensors that one leaf becomes, unread."""
  back = entry.back()

  def tensor(i: int, index: tables.Index) -> np.ndarray:
    if not entry.stacked:
      return back.read(index, lambda _, part: leaf.read(part))
    layer = slice(i, i + 1)
    return back.read(index, lambda _, part: leaf.read((layer, *part))[0])

  for i, name in enumerate(entry.tensors):
    read = functools.partial(tensor, i)
    yield store.Leaf((name,), back.shape, leaf.dtype, read)


def _config(stored: store.Stored) -> dict[str, Any]:
  """The config.json of a model that came from no single checkpoint."""
  model = stored.config.model
  if "projector" in stored.parts:
    return llava.to_hf(model)
  if "decoder" in stored.parts:
    return decoders.to_hf(model.decoder)
  return towers.to_hf(model.vision)


def _filler(
  stored: store.Stored, raw: Mapping[str, Any], naming: tables.Naming
) -> list[store.Leaf]:
  """Weights that transformers wants and nothing depends on."""
  if "vision" not in stored.parts:
    return []
  tower = stored.config.model.vision
  found = towers.filler(tower, registry.vision_type(raw))
  return store.from_params(
    {tables.in_naming(name, naming): value for name, value in found.items()}
  )
