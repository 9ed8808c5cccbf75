"""Contexts on disk: an image read once, for another day or another process.

context.json        what was read, by which model; sizes of the regions
model.safetensors   keys, values and descriptors
view-000.png        what each unit shows, and in context.json its regions
"""

import dataclasses
import json
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from PIL import Image

from gaze_jax import config as config_lib
from gaze_jax import errors
from gaze_jax import json_file
from gaze_jax import schema
from gaze_jax import types
from gaze_jax.api import identity
from gaze_jax.api import model as model_lib
from gaze_jax.data import images
from gaze_jax.data import messages
from gaze_jax.decode import context as context_lib
from gaze_jax.layout import tiles
from gaze_jax.models import cached
from gaze_jax.parallel import shard
from gaze_jax.view import words
from gaze_jax.weights import store
from gaze_jax.weights import tensors
from gaze_jax.weights import writer

_NAME = "context.json"
_COUNTS = ("length", "position", "sizes", "units", "pending", "ids")


def save_context(
  context: context_lib.Context,
  model: model_lib.Model,
  directory: str | os.PathLike,
) -> None:
  """Writes a context into a new directory, which appears when it is whole.

  Args:
    context: what to keep.
    model: the model that read it.
    directory: must not exist.

  Raises:
    errors.GazeError: it does, or can't be written.
  """
  if context.cache is None:
    raise errors.GazeError(
      "the context is of generate_many and holds no keys and values: keep one"
      " of encode_image or generate"
    )
  with model.on_mesh():  # every process has its part
    arrays, fingerprint = _arrays(context), identity.of(model)
  try:
    if jax.process_index() == 0:
      _write(context, arrays, fingerprint, directory)
  finally:  # for all of them it is there now, or is not
    if jax.process_count() > 1:
      multihost_utils.sync_global_devices("a context is kept")


def _write(
  context: context_lib.Context,
  arrays: dict[str, Any],
  fingerprint: str,
  directory: str | os.PathLike,
) -> None:
  with writer.destination(directory) as folder:
    store.write_leaves(folder, store.from_params(arrays))
    for number, view in enumerate(context.views):
      Image.fromarray(view.picture).save(folder / _view(number))
    about = {name: getattr(context, name) for name in _COUNTS}
    about |= schema.stamp("context") | dict(
      talk=context.talk,
      model=fingerprint,
      views=[view.regions.tolist() for view in context.views],
    )
    (folder / _NAME).write_text(json.dumps(about) + "\n", encoding="utf-8")


def load_context(
  directory: str | os.PathLike, model: model_lib.Model
) -> context_lib.Context:
  """Reads a context back: the same numbers, and so the same answers.

  Args:
    directory: from `save_context`.
    model: the model that read it.

  Raises:
    errors.GazeError: there is none, it is broken, another model's, or of a
      schema that is not read here.
  """
  folder = pathlib.Path(directory)
  if not (folder / _NAME).is_file():
    raise errors.GazeError(f"{folder}: no {_NAME} here; keep a context first")
  about = json_file.read(folder / _NAME, errors.GazeError)
  schema.read(about, folder / _NAME, "context")
  if absent := {"model", "views", "talk", *_COUNTS} - about.keys():
    raise errors.GazeError(
      f"{folder / _NAME}: has no {', '.join(sorted(absent))}; read the images"
      " again"
    )
  with model.on_mesh():
    fingerprint = identity.of(model)
  if about["model"] != fingerprint:
    raise errors.GazeError(
      f"{folder}: read by another model; its keys mean nothing to this one."
      " Load the model that kept it, or read the images again"
    )
  arrays = store.load(store.leaves_of(tensors.Tensors(folder)))
  views = tuple(
    words.View(
      images.decode(folder / _view(i), model.config.data.max_pixels),
      np.array(regions),
    )
    for i, regions in enumerate(about["views"])
  )
  counts = {
    name: tuple(value) if isinstance(value, list) else value
    for name, value in ((n, about[n]) for n in _COUNTS)
  }
  talk = tuple(
    messages.Message(role, tuple(messages.Part(*part) for part in parts))
    for role, parts in about["talk"]
  )
  context = context_lib.Context(
    _cache(arrays, counts), views=views, talk=talk, **counts
  )
  _check(context, model.config.model, folder)
  if model.mesh.size == 1:
    return context
  with model.on_mesh():
    # By the host, as the arrays are on one device of this process.
    cache = context_lib.of_one_row(jax.device_get(context.cache))
  return dataclasses.replace(context, cache=cache)


def _arrays(context: context_lib.Context) -> dict[str, Any]:
  """The first row of its cache, of which all are equal, on the host."""
  cache = shard.to_host(context_lib.one_row(context.cache, 0))
  visual = cache.visual
  unit = np.where(visual.valid, visual.unit, -1).astype(np.float32)
  out = dict(
    visual=dict(
      k=visual.k, v=visual.v, descriptors=visual.descriptors, unit=unit
    ),
    linear=dict(k=cache.k, v=cache.v),
  )
  if cache.choice is not None:
    out["frozen"] = dict(regions=cache.choice.astype(np.float32))
  return out


def _cache(arrays: dict[str, Any], counts: dict[str, Any]) -> Any:
  visual, linear = arrays["visual"], arrays["linear"]
  unit = visual["unit"].astype(jnp.int32)
  choice = arrays.get("frozen")
  return types.DecodeCache(
    visual=types.VisualCache(
      **(visual | dict(unit=unit, valid=unit >= 0)),
    ),
    k=linear["k"],
    v=linear["v"],
    length=jnp.full(1, counts["length"], jnp.int32),
    position=jnp.full(1, counts["position"], jnp.int32),
    choice=None if choice is None else choice["regions"] > 0,
  )


def _check(
  context: context_lib.Context,
  config: config_lib.ModelConfig,
  folder: pathlib.Path,
) -> None:
  """Refuses arrays of other shapes than the model's."""
  cache = context.cache
  like = jax.eval_shape(
    lambda: cached.empty(
      config,
      1,
      regions=cache.visual.valid.shape[1],
      region_length=tiles.largest_region(config),
      capacity=cache.k.shape[3],
    )
  )
  same = jax.tree.structure(like) == jax.tree.structure(cache) and all(
    a.shape == b.shape
    for a, b in zip(jax.tree.leaves(like), jax.tree.leaves(cache), strict=True)
  )
  if not same or len(context.sizes) > cache.visual.valid.shape[1]:
    raise errors.GazeError(
      f"{folder}: its arrays do not fit {_NAME}; read the images again"
    )


def _view(number: int) -> str:
  return f"view-{number:03d}.png"
