"""The way out: our format to a checkpoint that transformers loads."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from gaze_jax import config as config_lib
from gaze_jax.weights import errors
from gaze_jax.weights import hf
from gaze_jax.weights import json_file
from gaze_jax.weights import store
from gaze_jax.weights import tables
from gaze_jax.weights import tensors
from gaze_jax.weights import writer as writer_lib
from gaze_jax.weights.families import decoders
from gaze_jax.weights.families import image_processors
from gaze_jax.weights.families import llava
from gaze_jax.weights.families import registry
from gaze_jax.weights.families import towers


def to_hf(
  source: pathlib.Path, to: pathlib.Path | None, *, dtype: str | None = None
) -> None:
  """Writes a directory of ours as a checkpoint that transformers loads.

  Args:
    source: a directory of `convert.to_ours` or `convert.assemble`.
    to: as in `write`.
    dtype: likewise.

  Raises:
    ConversionError: as in `write`; or it is no such directory.
  """
  if not store.is_stored(source):
    raise errors.ConversionError(
      f"{source}: not a directory of ours nor a workdir of launch/train.py;"
      " make one with --to, from a checkpoint of transformers"
    )
  write(store.open_stored(source), to, dtype=dtype)


def write(
  stored: store.Stored, to: pathlib.Path | None, *, dtype: str | None = None
) -> None:
  """Writes weights of ours as a checkpoint that transformers loads.

  What came from such a checkpoint goes back bitwise, under its own names.
  Context tokens, which transformers has no name for, go to a file of their own
  beside the model, where `convert.to_ours` finds them again.

  Args:
    stored: the weights.
    to: a directory that does not exist yet, or is empty; None checks
      everything and writes nothing.
    dtype: "float32", "bfloat16" or "float16"; as stored by default.

  Raises:
    ConversionError: no family of transformers computes this model; nothing is
      left at `to`.
  """
  model, origin = stored.config.model, stored.origin
  files = stored.directory / store.SOURCE
  kept = (files / "config.json").exists()
  raw = json_file.read(files / "config.json") if kept else _config(stored)
  family = registry.find(raw)
  layout = family.layouts[origin.layout or family.written]
  described = _described(files, stored) if kept else family.model(raw, None)
  by_path = {leaf.path: leaf for leaf in stored.leaves}
  out = []
  for entry in hf.bind(model, stored.parts, raw, layout):
    leaf = by_path.pop(entry.path)
    out += _torch_leaves(entry, leaf, dtype)
    if entry.path == hf.EMBEDDING and origin.alias:
      head = dataclasses.replace(entry, sources=(origin.alias,))
      out += _torch_leaves(head, leaf, dtype)
  new = list(by_path.values())
  if to is None:
    return
  with writer_lib.destination(to) as directory:
    rest = _unused(stored, dtype) if kept else _filler(stored, raw, layout)
    store.write_leaves(directory, out + rest)
    # The pictures of a joined model are its own, not those of its tower.
    hf.keep_files(files, directory, hf.FILES if kept else hf.TEXTS)
    changed = {k: dtype for k in ("dtype", "torch_dtype") if dtype and k in raw}
    if new:
      store.write_leaves(directory / hf.GAZE_FILE, new)
    if model.gaze != described.gaze:
      changed[hf.GAZE_KEY] = hf.gaze_to_json(model.gaze)
    if changed or not kept:
      _write_json(directory / "config.json", raw | changed)
    if "vision" in stored.parts and not image_processors.find(directory):
      pictures = directory / image_processors.ALONE
      _write_json(pictures, llava.preprocessor_to_hf(model))


def _described(
  files: pathlib.Path, stored: store.Stored
) -> config_lib.ModelConfig:
  """The model of the kept config.json, which must still be this one.

  Raises:
    ConversionError: naming each field that differs.
  """
  _, _, found = hf.read_configs(files)
  # A newline that a run without tiles has dropped would be missing there.
  for part in (*stored.parts, "tiling"):
    hf.refuse_other(files, found, stored.config.model, part)
  return found


def _torch_leaves(
  entry: tables.Entry, leaf: store.Leaf, dtype: str | None
) -> Iterator[store.Leaf]:
  """The tensors that one leaf goes out as, unread."""
  back = entry.back()

  def tensor(i: int, index: tables.Index) -> np.ndarray:
    if not entry.stacked:
      return back.read(index, lambda _, part: leaf.part(part))
    layer = slice(i, i + 1)
    return back.read(index, lambda _, part: leaf.part((layer, *part))[0])

  for i, name in enumerate(entry.sources):
    yield store.Leaf(
      (name,),
      back.shape,
      np.dtype(dtype) if dtype else leaf.dtype,
      functools.partial(tensor, i),
    )


def _unused(stored: store.Stored, dtype: str | None) -> list[store.Leaf]:
  """What the source had and nothing here computes with."""
  path = stored.directory / store.UNUSED
  kept = store.leaves_of(tensors.Source(path)) if path.exists() else []
  if not dtype:
    return kept
  return [dataclasses.replace(leaf, dtype=np.dtype(dtype)) for leaf in kept]


def _config(stored: store.Stored) -> dict[str, Any]:
  """The config.json of a model that came from no single checkpoint."""
  model = stored.config.model
  if "projector" in stored.parts:
    return llava.to_hf(model)
  if "decoder" in stored.parts:
    return decoders.to_hf(model.decoder)
  return towers.to_hf(model.vision, llava.vision_kind(model.vision))


def _filler(
  stored: store.Stored, raw: Mapping[str, Any], layout: Mapping[str, str]
) -> list[store.Leaf]:
  """Weights that transformers wants and nothing depends on."""
  if "vision" not in stored.parts:
    return []
  tower = stored.config.model.vision
  found = towers.filler(tower, registry.vision_type(raw))
  return store.from_params(
    {tables.in_layout(name, layout): value for name, value in found.items()}
  )


def _write_json(path: pathlib.Path, value: Mapping[str, Any]) -> None:
  path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
