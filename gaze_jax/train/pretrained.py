"""Parts of the model whose parameters come from outside the run.

A frozen part is no part of the training state: it has no gradient, no
optimizer state and no place in a checkpoint. It is read from its source each
time, here. A part that trains may have a source too, for its first values.
A source is a directory of launch/convert.py or the weights of a package.
"""

import functools
import operator
import pathlib
from typing import Any

import flax.linen as nn
import jax

from gaze_jax import config as config_lib
from gaze_jax import errors
from gaze_jax import fingerprint as fingerprint_lib
from gaze_jax import plugins
from gaze_jax.data import tokenizer as tokenizer_lib
from gaze_jax.models import decoder
from gaze_jax.models import mllm
from gaze_jax.models import vision
from gaze_jax.parallel import mesh as mesh_lib
from gaze_jax.parallel import rules
from gaze_jax.parallel import shard
from gaze_jax.weights import dtypes
from gaze_jax.weights import hf
from gaze_jax.weights import store


def frozen_parts(config: config_lib.Config) -> tuple[str, ...]:
  """The frozen parts, among "vision" and "decoder"."""
  parts = dict(vision=config.model.vision, decoder=config.model.decoder)
  return tuple(name for name, part in parts.items() if part.frozen)


def load_frozen(
  config: config_lib.Config,
  *,
  pixels: bool = True,
  mesh: jax.sharding.Mesh | None = None,
  dtype: str | None = None,
) -> dict[str, dict[str, Any]]:
  """Parameters of the frozen parts, sharded over the mesh.

  Matrices of a decoder are stored in its dtype: nothing is ever added to
  them, and a step need not narrow them anew.

  Args:
    config: the run.
    pixels: False leaves the tower out, where batches hold its features.
    mesh: one device by default.
    dtype: of all matrices; by default that of the decoder, and float32.
  """
  out = {}
  for name in frozen_parts(config):
    if name == "vision" and not pixels:
      continue
    kind = dtype or _frozen_dtype(config, name)
    part = source(config, name, mesh, kind)
    out[name] = _fresh(config, name, mesh, kind) if part is None else part
  return out


def _frozen_dtype(config: config_lib.Config, name: str) -> str:
  return config.model.decoder.dtype if name == "decoder" else "float32"


def _held(part: dict[str, Any], dtype: str) -> dict[str, Any]:
  """A part whose matrices have a dtype."""

  def cast(path, x):
    return x.astype(dtypes.held([k.key for k in path], x.dtype, dtype))

  return jax.tree_util.tree_map_with_path(cast, part)


def abstract_frozen(
  config: config_lib.Config, mesh: mesh_lib.AnyMesh
) -> dict[str, dict[str, Any]]:
  """Shapes, dtypes and shardings of what `load_frozen` gives; no arrays."""
  shapes, _ = mllm.abstract(config.model)
  out = {name: shapes[name] for name in frozen_parts(config)}
  held = lambda name, x: _held(x, _frozen_dtype(config, name))
  out = {
    name: jax.eval_shape(functools.partial(held, name), part)
    for name, part in out.items()
  }
  place = lambda x, to: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=to)
  return {
    name: jax.tree.map(place, part, _places(config, mesh)[name])
    for name, part in out.items()
  }


def first_values(
  config: config_lib.Config, mesh: jax.sharding.Mesh | None = None
) -> dict[str, dict[str, Any]]:
  """First values of the parts that train and have a source.

  A projector may lack what its source has not: new context tokens.
  """
  parts = {
    name: source(config, name, mesh)
    for name in ("vision", "projector", "decoder")
    if name not in frozen_parts(config)
  }
  return {name: part for name, part in parts.items() if part is not None}


def source(
  config: config_lib.Config,
  name: str,
  mesh: jax.sharding.Mesh | None = None,
  dtype: str = "float32",
) -> dict[str, Any] | None:
  """A part from where the config says it comes from.

  Args:
    config: the run.
    name: of the part.
    mesh: what it is sharded over; one device by default.
    dtype: of its matrices.

  Returns:
    Nested dict of arrays; None for a part that is made anew.

  Raises:
    errors.GazeError: it is not installed, or does not fit the config.
  """
  places = _places(config, mesh)
  if config.train.init_from:
    directory = pathlib.Path(config.train.init_from)
    found = _converted(config, directory, name, places, dtype)
    if found is not None:
      return found
  part = getattr(config.model, name)
  if getattr(part, "weights", "random") == "random":
    return None
  found = plugins.weights(part.weights, f"model.{name}.weights").load(part)
  return jax.tree.map(shard.put, _held(found, dtype), places[name])


def _places(
  config: config_lib.Config, mesh: mesh_lib.AnyMesh | None
) -> dict[str, Any]:
  """A `NamedSharding` for each parameter of the model."""
  return rules.shardings(
    *mllm.abstract(config.model), mesh or mesh_lib.one_device()
  )


def fingerprint(config: config_lib.Config) -> list[str]:
  """What tells the weights of `train.init_from` from others, wherever they lie.

  4 MiB of each file are read.
  """
  if not config.train.init_from:
    return []
  files = sorted(pathlib.Path(config.train.init_from).glob("*.safetensors"))
  read = lambda file: fingerprint_lib.of_file(file, 64, 2**16)
  return [f"{file.name} {read(file)}" for file in files]


def _converted(
  config: config_lib.Config,
  directory: pathlib.Path,
  name: str,
  places: dict[str, Any],
  dtype: str,
) -> dict[str, Any] | None:
  """A part from a directory of launch/convert.py; None if it is not there."""
  stored = store.open_stored(directory)
  if name not in stored.parts:
    return None
  hf.refuse_other(directory, stored.config.model, config.model, name)
  leaves = [leaf for leaf in stored.leaves if leaf.path[0] == name]
  there, here = (
    c.gaze.context_tokens for c in (stored.config.model, config.model)
  )
  if name == "projector" and there and there != here:
    raise errors.GazeError(
      f"{directory}: {there} context tokens, and the config wants {here};"
      f" set model.gaze.context_tokens = {there}"
    )
  if name == "projector" and config.model.tiling.kind == "none":
    leaves = [leaf for leaf in leaves if leaf.path[1] != "newline"]
  at = lambda path: functools.reduce(operator.getitem, path, places)
  return store.load(dtypes.leaves(leaves, dtype), sharding=at)[name]


def tower(config: config_lib.Config) -> dict[str, Any]:
  """Parameters of the vision tower alone, as `load_frozen` has them."""
  found = source(config, "vision")
  return _fresh(config, "vision") if found is None else found


def _fresh(
  config: config_lib.Config,
  name: str,
  mesh: jax.sharding.Mesh | None = None,
  dtype: str = "float32",
) -> dict[str, Any]:
  """A part at random, always the same for a seed."""
  key = jax.random.key(config.train.seed)
  places = _places(config, mesh)[name]
  if name == "decoder":
    new = lambda key: decoder.init(config.model.decoder, key)
  else:
    c = config.model.vision
    vit, blank = vision.ViT(c), vision.blank(c, 1)
    new = lambda key: nn.meta.unbox(vit.init(key, blank)["params"])
  held = lambda key: _held(new(key), dtype)
  return jax.jit(held, out_shardings=places)(key)


def check_tokenizer(config: config_lib.Config) -> None:
  """Refuses a tokenizer that is not the one of `train.init_from`.

  Tokens may be added to it; those that it has keep their ids.

  Raises:
    errors.GazeError: naming the tokenizer that belongs to the weights, or the
      first token whose id differs.
  """
  named = config.data.tokenizer
  if not config.train.init_from or plugins.has_weights(named):
    return
  directory = pathlib.Path(config.train.init_from)
  stored = store.open_stored(directory)
  own = directory / store.SOURCE / "tokenizer.json"
  if "decoder" not in stored.parts:
    return
  if not named and (own.is_file() or stored.naming):
    raise errors.GazeError(
      "config: data.tokenizer is empty, which is the shipped tokenizer, and"
      f" the decoder in {directory} was trained with another: set"
      f" data.tokenizer = {str(own)!r}"
    )
  if not named or not own.is_file():
    return
  vocabulary = tokenizer_lib.read(pathlib.Path(named)).get_vocab()
  for token, i in sorted(
    tokenizer_lib.read(own).get_vocab().items(), key=lambda pair: pair[1]
  ):
    if vocabulary.get(token) != i:
      raise errors.GazeError(
        f"config: data.tokenizer = {named!r} is not that of the weights in"
        f" {directory}: {token!r} is id {vocabulary.get(token)} in it, and {i}"
        f" in theirs; set data.tokenizer = {str(own)!r}"
      )
