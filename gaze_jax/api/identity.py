"""What tells a model from others: its config, and every bit of its weights."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from gaze_jax.api import model as model_lib
from gaze_jax.parallel import shard

# Fields of a config that change no number beyond the order of sums.
_FREE = ("implementation", "decode_implementation", "chunk")


def of(model: model_lib.Model) -> str:
  """64 hexadecimal digits; called on the model's mesh, by every process."""
  config = _chosen(model.config.model)
  digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
  for name, leaf in sorted(_tensors(model.params), key=lambda pair: pair[0]):
    digest.update(name.encode())
    bits = int(shard.to_host(_bits(leaf)))
    digest.update(bits.to_bytes(4, "little"))
  return digest.hexdigest()


def _chosen(config: Any) -> dict[str, Any]:
  """The fields of a config that are no default and change numbers.

  A default stands for what was there before its field: so a context outlives a
  new option.
  """
  out = {}
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    if value != field.default and field.name not in _FREE:
      deeper = dataclasses.is_dataclass(value)
      out[field.name] = _chosen(value) if deeper else value
  return out


def _tensors(params: Any) -> Iterator[tuple[str, jax.Array]]:
  """Tensors by name; each layer's, be they stacked or apart."""
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    layered = name.startswith("decoder/layers/")
    if layered and not isinstance(path[-1], jax.tree_util.SequenceKey):
      yield from ((f"{name}/{i}", leaf[i]) for i in range(len(leaf)))
    elif layered:
      yield name, leaf.T  # as `decoder.split` leaves it
    else:
      yield name, leaf


@jax.jit
def _bits(x: jax.Array) -> jax.Array:
  """uint32, a sum of all bits that no order of the sum changes."""
  words = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
  place = jax.lax.iota(jnp.uint32, x.size) * jnp.uint32(2654435761) | 1
  return (words.reshape(-1) * place).sum(dtype=jnp.uint32)
