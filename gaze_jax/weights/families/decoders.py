"""Decoders: Qwen2, Qwen2.5, Qwen3 and Llama (SmolLM2).

One table serves all of them: they differ in a bias on query, key and value
(Qwen2), in a norm on queries and keys (Qwen3) and in a tied head. All use
half-split RoPE, as `ops/rope.py` does, so nothing is permuted.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from gaze_jax import config as config_lib
from gaze_jax.weights import errors
from gaze_jax.weights import tables

# What transformers fills in for a key that a config leaves out.
_DEFAULTS: dict[str, dict[str, Any]] = {
  "llama": dict(vocab_size=32000, intermediate_size=11008),
  "qwen2": dict(
    vocab_size=151936, intermediate_size=22016, num_key_value_heads=32
  ),
  "qwen3": dict(
    vocab_size=151936,
    intermediate_size=22016,
    num_key_value_heads=32,
    head_dim=128,
  ),
}
_SHARED = dict(hidden_size=4096, num_hidden_layers=32, num_attention_heads=32)
MODEL_TYPES = tuple(_DEFAULTS)

NAMINGS: Mapping[str, tables.Naming] = {
  "causal LM": {"text": "model", "head": "lm_head"},
  "bare decoder": {"text": "", "head": "lm_head"},
}
# Buffers that old versions saved, by token; they follow from the config.
DROPPED: dict[str, Sequence[str]] = {
  "text": (r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",)
}

_LAYER = {
  "attention_norm/scale": ("input_layernorm.weight", ""),
  "query/weight": ("self_attn.q_proj.weight", "(h d) e -> e h d"),
  "key/weight": ("self_attn.k_proj.weight", "(h d) e -> e h d"),
  "value/weight": ("self_attn.v_proj.weight", "(h d) e -> e h d"),
  "out/weight": ("self_attn.o_proj.weight", "e (h d) -> h d e"),
  "mlp_norm/scale": ("post_attention_layernorm.weight", ""),
  "mlp/gate/weight": ("mlp.gate_proj.weight", "m e -> e m"),
  "mlp/up/weight": ("mlp.up_proj.weight", "m e -> e m"),
  "mlp/down/weight": ("mlp.down_proj.weight", "e m -> m e"),
}
_BIAS = {
  "query/bias": ("self_attn.q_proj.bias", "(h d) -> h d"),
  "key/bias": ("self_attn.k_proj.bias", "(h d) -> h d"),
  "value/bias": ("self_attn.v_proj.bias", "(h d) -> h d"),
}
_QK_NORM = {
  "query_norm/scale": ("self_attn.q_norm.weight", ""),
  "key_norm/scale": ("self_attn.k_norm.weight", ""),
}


def config(
  raw: Mapping[str, Any], *, nested: bool = False
) -> config_lib.DecoderConfig:
  """Reads the config.json of a decoder.

  Args:
    raw: the parsed JSON, or its text_config.
    nested: whether it is part of a larger config; only then may it leave out
      its sizes, for which transformers' defaults are taken.

  Raises:
    ConversionError: a size is missing, or something is asked for that our
      decoder does not compute; names the key.
  """
  kind = raw.get("model_type")
  if kind not in MODEL_TYPES:
    raise errors.ConversionError(
      f"config.json: model_type = {kind!r} is no decoder that is known here;"
      f" known are {', '.join(MODEL_TYPES)}"
    )
  _refuse_unknown_math(raw, kind)
  given = {k: v for k, v in raw.items() if v is not None}
  required = (*_SHARED, "vocab_size", "intermediate_size")
  missing = [k for k in required if k not in given]
  if missing and not nested:
    raise errors.ConversionError(
      f"config.json lacks {', '.join(missing)}; a {kind} model has no size"
      " without"
    )
  value = _SHARED | _DEFAULTS[kind] | given
  heads = value["num_attention_heads"]
  return config_lib.DecoderConfig(
    vocab_size=value["vocab_size"],
    width=value["hidden_size"],
    depth=value["num_hidden_layers"],
    query_heads=heads,
    kv_heads=value.get("num_key_value_heads", heads),
    head_dim=value.get("head_dim", value["hidden_size"] // heads),
    mlp_dim=value["intermediate_size"],
    rope_theta=_rope_theta(value),
    norm_eps=float(value.get("rms_norm_eps", 1e-6)),
    qk_norm=kind == "qwen3",
    qkv_bias=kind == "qwen2",
    tied=bool(value.get("tie_word_embeddings", False)),
  )


def to_hf(c: config_lib.DecoderConfig) -> dict[str, Any]:
  """The config.json that transformers reads this decoder with.

  Raises:
    ConversionError: no family of transformers computes this decoder.
  """
  if c.embedding_scale != 1:
    raise errors.ConversionError(
      f"model.decoder.embedding_scale = {c.embedding_scale}: no family of"
      " transformers that is known here scales its embeddings"
    )
  if c.qk_norm and c.qkv_bias:
    raise errors.ConversionError(
      "model.decoder: no family has both qk_norm and qkv_bias"
    )
  kind, architecture = "llama", "LlamaForCausalLM"
  if c.qk_norm:
    kind, architecture = "qwen3", "Qwen3ForCausalLM"
  if c.qkv_bias:
    kind, architecture = "qwen2", "Qwen2ForCausalLM"
  return dict(
    architectures=[architecture],
    model_type=kind,
    vocab_size=c.vocab_size,
    hidden_size=c.width,
    num_hidden_layers=c.depth,
    num_attention_heads=c.query_heads,
    num_key_value_heads=c.kv_heads,
    head_dim=c.head_dim,
    intermediate_size=c.mlp_dim,
    hidden_act="silu",
    rms_norm_eps=c.norm_eps,
    rope_theta=c.rope_theta,  # transformers 4
    rope_parameters=dict(rope_type="default", rope_theta=c.rope_theta),
    tie_word_embeddings=c.tied,
  )


def rules(c: config_lib.DecoderConfig) -> list[tables.Rule]:
  """The table of this decoder; tokens "text" and "head"."""
  layer = dict(_LAYER)
  if c.qkv_bias:
    layer |= _BIAS
  if c.qk_norm:
    layer |= _QK_NORM
  table = [
    tables.Rule("embedding", "text.embed_tokens.weight"),
    tables.Rule("final_norm/scale", "text.norm.weight"),
  ]
  if not c.tied:
    table.append(tables.Rule("head/weight", "head.weight", "v e -> e v"))
  return table + [
    tables.Rule(f"layers/{leaf}", f"text.layers.{{i}}.{name}", pattern)
    for leaf, (name, pattern) in layer.items()
  ]


def _rope_theta(value: Mapping[str, Any]) -> float:
  """Of transformers 4 (rope_theta) or 5 (rope_parameters)."""
  parameters = value.get("rope_parameters") or {}
  return float(parameters.get("rope_theta", value.get("rope_theta", 10_000.0)))


def _refuse_unknown_math(raw: Mapping[str, Any], kind: str) -> None:
  """Everything that a config may ask for and our decoder does not compute."""
  ropes = [raw.get("rope_scaling") or {}, raw.get("rope_parameters") or {}]
  kinds = {r.get("rope_type", r.get("type", "default")) for r in ropes}
  layers = {*(raw.get("layer_types") or ()), "full_attention"}
  values = dict(
    hidden_act=(raw.get("hidden_act", "silu"), ["silu"]),
    use_sliding_window=(bool(raw.get("use_sliding_window")), [False]),
    attention_bias=(bool(raw.get("attention_bias")), [False]),
    mlp_bias=(bool(raw.get("mlp_bias")), [False]),
    partial_rotary_factor=(raw.get("partial_rotary_factor") or 1.0, [1.0]),
    rope_type=(sorted(kinds), [["default"]]),
    layer_types=(sorted(layers), [["full_attention"]]),
    quantization_config=(raw.get("quantization_config"), [None]),
  )
  errors.refuse_unknown(f"{kind} model", values)
