"""A checkpoint of transformers of Qwen2.5-7B's shape, with random weights."""

import functools
import json
import pathlib
from collections.abc import Iterator

import ml_dtypes
import numpy as np

from gaze_jax.weights import writer as writer_lib

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_RANDOM = 2**25  # elements that are drawn; tensors are made of windows of them


def qwen(layers: int, shrink: int = 1) -> dict[str, object]:
  """config.json of Qwen2.5-7B, with fewer layers or heads."""
  return {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "hidden_act": "silu",
    "hidden_size": 3584 // shrink,
    "initializer_range": 0.02,
    "intermediate_size": 18944 // shrink,
    "max_position_embeddings": 32768,
    "max_window_layers": layers,
    "model_type": "qwen2",
    "num_attention_heads": 28 // shrink,
    "num_hidden_layers": layers,
    "num_key_value_heads": 4 // shrink,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 131072,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 152064 // shrink,
  }


def shapes(config: dict[str, object]) -> dict[str, tuple[int, ...]]:
  """Names and shapes of the tensors, in the order of transformers."""
  d, f, v = (
    config[k] for k in ("hidden_size", "intermediate_size", "vocab_size")
  )
  kv = d // config["num_attention_heads"] * config["num_key_value_heads"]
  layer = {
    "self_attn.q_proj.weight": (d, d),
    "self_attn.q_proj.bias": (d,),
    "self_attn.k_proj.weight": (kv, d),
    "self_attn.k_proj.bias": (kv,),
    "self_attn.v_proj.weight": (kv, d),
    "self_attn.v_proj.bias": (kv,),
    "self_attn.o_proj.weight": (d, d),
    "mlp.gate_proj.weight": (f, d),
    "mlp.up_proj.weight": (f, d),
    "mlp.down_proj.weight": (d, f),
    "input_layernorm.weight": (d,),
    "post_attention_layernorm.weight": (d,),
  }
  return {
    "model.embed_tokens.weight": (v, d),
    **{
      f"model.layers.{i}.{name}": shape
      for i in range(config["num_hidden_layers"])
      for name, shape in layer.items()
    },
    "model.norm.weight": (d,),
    "lm_head.weight": (v, d),
  }


def make(
  folder: pathlib.Path,
  config: dict[str, object],
  specs: dict[str, tuple[int, ...]],
  *,
  shard_bytes: int = 5 * 10**9,
) -> None:
  """Writes the checkpoint: normal values, drawn once and used in windows."""
  rng = np.random.default_rng(0)
  drawn = (rng.standard_normal(_RANDOM, np.float32) * 0.02).astype(_BFLOAT16)
  with writer_lib.destination(folder) as work:
    (work / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    windows = functools.partial(_windows, drawn, rng=rng)
    tensors = [
      writer_lib.Pieces(
        name, shape, _BFLOAT16, functools.partial(windows, int(np.prod(shape)))
      )
      for name, shape in specs.items()
    ]
    writer_lib.write(work, tensors, shard_bytes=shard_bytes)


def _windows(
  drawn: np.ndarray, size: int, rng: np.random.Generator
) -> Iterator[np.ndarray]:
  while size:
    start = int(rng.integers(_RANDOM // 2))
    piece = drawn[start : start + min(size, _RANDOM // 2)]
    size -= len(piece)
    yield piece
