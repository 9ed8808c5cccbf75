"""The way in: a checkpoint of transformers, or two of them, to our format.

The destination gets its name at the end, when all is there. One piece of one
tensor is read and written at a time.
"""

import collections
import dataclasses
import functools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from gaze_jax import config as config_lib
from gaze_jax.models import mllm
from gaze_jax.weights import errors
from gaze_jax.weights import hf
from gaze_jax.weights import store
from gaze_jax.weights import tables
from gaze_jax.weights import tensors
from gaze_jax.weights import writer as writer_lib
from gaze_jax.weights.families import image_processors

# How a tower is looked through, which its checkpoint does not decide, and what
# it is shown, which its image processor does.
_VIEW = ("hidden_state", "final_norm", "image_size")
_PIXELS = ("resize", "shorter_side", "resample", "mean", "std")


def to_ours(
  source: pathlib.Path, to: pathlib.Path | None, *, dtype: str | None = None
) -> None:
  """Converts a checkpoint of transformers.

  Args:
    source: its directory.
    to: a directory that does not exist yet, or is empty; None checks
      everything but the values, and writes nothing.
    dtype: "float32", "bfloat16" or "float16"; as in the source by default.

  Raises:
    ConversionError: it does not fit (see `hf.open_checkpoint`), or a value
      does not fit the dtype; nothing is left at `to`.
  """
  checkpoint = hf.open_checkpoint(source)
  origin = store.Origin(checkpoint.layout, checkpoint.alias)
  parts = leaves(checkpoint, dtype)
  if to is None:
    return
  with writer_lib.destination(to) as directory:
    store.write(directory, hf.config_for(checkpoint.model), parts, origin)
    kept = directory / store.SOURCE
    hf.keep_files(source, kept, hf.FILES)
    _keep_unused(checkpoint, directory)


def assemble(
  text_source: pathlib.Path,
  vision_source: pathlib.Path,
  model: config_lib.ModelConfig,
  to: pathlib.Path | None,
  *,
  dtype: str | None = None,
) -> None:
  """Makes a multimodal model of a decoder and a vision tower.

  The projector and the context tokens are new, from seed 0.

  Args:
    text_source: a checkpoint of transformers with a decoder.
    vision_source: one with a vision tower.
    model: the whole; its decoder and tower must be those two.
    to: as in `to_ours`.
    dtype: as in `to_ours`; new parameters are float32 by default.

  Raises:
    ConversionError: a checkpoint is not of the model's architecture; names
      every field that differs.
    ConfigError: the model makes no sense.
  """
  config = config_lib.from_config_dict(config_lib.to_dict(hf.config_for(model)))
  said = image_processors.find(vision_source)
  fields = _VIEW if said else _VIEW + _PIXELS
  view = functools.partial(_with_view, wanted=model, fields=fields)
  decoder = hf.open_checkpoint(text_source)
  tower = hf.open_checkpoint(vision_source, view)
  parts = []
  for checkpoint, part in ((decoder, "decoder"), (tower, "vision")):
    if part not in checkpoint.parts:
      raise errors.ConversionError(
        f"{checkpoint.directory}: a {checkpoint.raw['model_type']} checkpoint"
        f" has no {part}"
      )
    hf.refuse_other(checkpoint.directory, checkpoint.model, model, part)
    parts += [p for p in leaves(checkpoint, dtype) if p.path[0] == part]
  parts += _new(model, dtype or "float32")
  if to is None:
    return
  with writer_lib.destination(to) as directory:
    store.write(directory, config, parts)
    kept = directory / store.SOURCE
    hf.keep_files(text_source, kept, hf.TEXTS)
    _keep_ends(decoder.raw, kept)


def leaves(c: hf.Checkpoint, dtype: str | None = None) -> list[store.Leaf]:
  """Every leaf of a converted checkpoint, unread.

  Args:
    c: the checkpoint.
    dtype: as in `to_ours`.

  Raises:
    ConversionError: the tensors of one leaf have several dtypes and none was
      asked for.
  """
  out = []
  for entry in c.entries:
    found = {c.source.tensors[s].dtype for s in entry.sources}
    if len(found) > 1 and not dtype:
      names = ", ".join(sorted(d.name for d in found))
      raise errors.ConversionError(
        f"{c.directory}: the layers of {'/'.join(entry.path)} are {names};"
        " choose one with --dtype"
      )
    kind = np.dtype(dtype) if dtype else found.pop()
    part = functools.partial(entry.read, read=c.source.read)
    out.append(store.Leaf(entry.path, entry.shape, kind, part))
  return out + (_context(c) if "projector" in c.parts else [])


def _context(c: hf.Checkpoint) -> list[store.Leaf]:
  """Context tokens, which `export.write` put beside; a model may have none."""
  beside, count = c.directory / hf.GAZE_FILE, c.model.gaze.context_tokens
  if not beside.exists() and not count:
    return []
  if not beside.exists():
    raise errors.ConversionError(
      f"{beside}: no such file, and config.json has {hf.GAZE_KEY} ="
      f" {{context_tokens: {count}, ...}}; copy it from where the checkpoint"
      " was written"
    )
  found = store.leaves_of(tensors.Source(beside))
  want = {"projector/context": (count, c.model.decoder.width)} if count else {}
  got = {leaf.name: leaf.shape for leaf in found}
  if problems := tables.differences(want, got):
    raise errors.ConversionError(
      f"{beside}: not the context tokens of this model: {'; '.join(problems)}"
    )
  return found


def _new(model: config_lib.ModelConfig, dtype: Any) -> list[store.Leaf]:
  """New leaves of the projector, from seed 0."""

  @jax.jit  # what is not returned is not computed
  def init():
    return nn.meta.unbox(mllm.init(model, jax.random.key(0)))["projector"]

  cast = jax.tree.map(lambda x: np.asarray(x).astype(dtype), init())
  return store.from_params({"projector": cast})


def _with_view(
  model: config_lib.ModelConfig,
  wanted: config_lib.ModelConfig,
  fields: Sequence[str],
) -> config_lib.ModelConfig:
  """A tower, looked through as another config wants it."""
  view = {name: getattr(wanted.vision, name) for name in fields}
  tower = dataclasses.replace(model.vision, **view)
  return dataclasses.replace(model, vision=tower)


def _keep_ends(raw: Mapping[str, Any], kept: pathlib.Path) -> None:
  """Writes the ids that end an answer where config.json alone says them."""
  ends = raw.get("eos_token_id")
  file = kept / hf.GENERATION
  if ends is not None and not file.exists():
    kept.mkdir(exist_ok=True)
    text = json.dumps({"eos_token_id": ends})
    file.write_text(text + "\n", encoding="utf-8")


def _keep_unused(c: hf.Checkpoint, directory: pathlib.Path) -> None:
  """Copies what nothing here computes with, under its own names."""
  unused = set(c.unused)
  kept = [leaf for leaf in store.leaves_of(c.source) if leaf.name in unused]
  if kept:
    store.write_leaves(directory / store.UNUSED, kept)


def inspect(directory: pathlib.Path) -> str:
  """What a directory holds, for people; reads no tensor.

  Raises:
    ConversionError: it holds no checkpoint, of transformers or ours.
  """
  if store.is_stored(directory):
    stored = store.open_stored(directory)
    what, model, parts = "ours", stored.config.model, stored.parts
    used, rest = stored.leaves, ()
  else:
    c = hf.open_checkpoint(directory)
    what = f"transformers, {c.raw['model_type']}, layout of names {c.layout}"
    model, parts, rest = c.model, c.parts, c.unused
    used = [t for name, t in c.source.tensors.items() if name not in rest]
  kinds = collections.Counter(t.dtype.name for t in used)
  size = sum(t.bytes for t in used)
  return "\n".join(
    [
      f"{directory}: {what}",
      f"tensors: {', '.join(f'{n} {kind}' for kind, n in kinds.items())}"
      f", {size / 1e9:.3f} GB",
      *([f"kept but not computed with: {len(rest)}"] if rest else []),
      *(f"{part}: {getattr(model, part)}" for part in parts),
    ]
  )
