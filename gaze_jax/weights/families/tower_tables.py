"""Names of the weights of vision towers, family by family.

What a line means is said in `keys`; the tokens are added by `vision.rules`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

Raw = Mapping[str, Any]
Table = Mapping[str, tuple[str, str]]  # ours -> torch name, pattern

# Of a block of CLIP and SigLIP, and of one of DINOv2.
_CLIP_BLOCK: Table = {
  "norm1/scale": ("layer_norm1.weight", ""),
  "norm1/bias": ("layer_norm1.bias", ""),
  "attention/query/kernel": ("self_attn.q_proj.weight", "(h d) f -> f h d"),
  "attention/query/bias": ("self_attn.q_proj.bias", "(h d) -> h d"),
  "attention/key/kernel": ("self_attn.k_proj.weight", "(h d) f -> f h d"),
  "attention/key/bias": ("self_attn.k_proj.bias", "(h d) -> h d"),
  "attention/value/kernel": ("self_attn.v_proj.weight", "(h d) f -> f h d"),
  "attention/value/bias": ("self_attn.v_proj.bias", "(h d) -> h d"),
  "attention/out/kernel": ("self_attn.out_proj.weight", "f (h d) -> h d f"),
  "attention/out/bias": ("self_attn.out_proj.bias", ""),
  "norm2/scale": ("layer_norm2.weight", ""),
  "norm2/bias": ("layer_norm2.bias", ""),
  "mlp/up/kernel": ("mlp.fc1.weight", "m f -> f m"),
  "mlp/up/bias": ("mlp.fc1.bias", ""),
  "mlp/down/kernel": ("mlp.fc2.weight", "f m -> m f"),
  "mlp/down/bias": ("mlp.fc2.bias", ""),
}
_DINO_NAMES = {
  "layer_norm1": "norm1",
  "layer_norm2": "norm2",
  "self_attn.q_proj": "attention.attention.query",
  "self_attn.k_proj": "attention.attention.key",
  "self_attn.v_proj": "attention.attention.value",
  "self_attn.out_proj": "attention.output.dense",
}


def _dino_block() -> Table:
  table = {}
  for ours, (name, pattern) in _CLIP_BLOCK.items():
    module, leaf = name.rsplit(".", 1)
    table[ours] = (f"{_DINO_NAMES.get(module, module)}.{leaf}", pattern)
  scales = {f"scale{i}": (f"layer_scale{i}.lambda1", "") for i in (1, 2)}
  return table | scales


_PATCH = "embeddings.patch_embedding"
CONV = "f c h w -> (h w c) f"
_SIGLIP: Table = {
  "patch/kernel": (f"{_PATCH}.weight", CONV),
  "patch/bias": (f"{_PATCH}.bias", ""),
  "positions": ("embeddings.position_embedding.weight", ""),
}
_CLIP: Table = {
  "patch/kernel": (f"{_PATCH}.weight", CONV),
  "class_token": ("embeddings.class_embedding", ""),
  "positions": ("embeddings.position_embedding.weight", ""),
  "pre_norm/scale": ("pre_layrnorm.weight", ""),  # spelt so
  "pre_norm/bias": ("pre_layrnorm.bias", ""),
}
_DINO: Table = {
  "patch/kernel": ("embeddings.patch_embeddings.projection.weight", CONV),
  "patch/bias": ("embeddings.patch_embeddings.projection.bias", ""),
  "class_token": ("embeddings.cls_token", "1 1 f -> f"),
  "positions": ("embeddings.position_embeddings", "1 x f -> x f"),
}


@dataclasses.dataclass(frozen=True)
class Family:
  """A model_type of transformers.

  Attributes:
    architecture: the class that reads such a checkpoint.
    defaults: what transformers fills in for a key that a config leaves out.
    flags: what it makes of a `VisionConfig`.
    table: weights outside the blocks.
    layers: name of the stack of blocks.
    block: weights of a block.
    norm: name of the closing norm.
    unused: regexes of weights that no config of ours computes with.
  """

  architecture: str
  defaults: Raw
  flags: Mapping[str, bool]
  table: Table
  layers: str
  block: Table
  norm: str
  unused: tuple[str, ...]


_SIZES = dict(
  hidden_size=768,
  intermediate_size=3072,
  num_hidden_layers=12,
  num_attention_heads=12,
  image_size=224,
)
_PLAIN = dict(
  class_token=False, patch_bias=True, pre_norm=False, layer_scale=False
)
FAMILIES = {
  "siglip_vision_model": Family(
    "SiglipVisionModel",
    _SIZES
    | dict(patch_size=16, hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-6),
    _PLAIN,
    _SIGLIP,
    "encoder.layers",
    _CLIP_BLOCK,
    "post_layernorm",
    (r"head\..+",),
  ),
  "siglip2_vision_model": Family(
    "Siglip2VisionModel",
    _SIZES
    | dict(patch_size=16, hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-6)
    | dict(num_patches=256),
    _PLAIN,
    _SIGLIP | {"patch/kernel": (f"{_PATCH}.weight", "f x -> x f")},
    "encoder.layers",
    _CLIP_BLOCK,
    "post_layernorm",
    (r"head\..+",),
  ),
  "clip_vision_model": Family(
    "CLIPVisionModel",
    _SIZES | dict(patch_size=32, hidden_act="quick_gelu", layer_norm_eps=1e-5),
    _PLAIN | dict(class_token=True, patch_bias=False, pre_norm=True),
    _CLIP,
    "encoder.layers",
    _CLIP_BLOCK,
    "post_layernorm",
    (),
  ),
  "dinov2": Family(
    "Dinov2Model",
    _SIZES
    | dict(patch_size=14, hidden_act="gelu", layer_norm_eps=1e-6, mlp_ratio=4),
    _PLAIN | dict(class_token=True, layer_scale=True),
    _DINO,
    "encoder.layer",
    _dino_block(),
    "layernorm",
    (r"embeddings\.mask_token",),
  ),
}
# A whole model, and its vision half where that does not say its model_type.
WHOLE = {
  "siglip": "siglip_vision_model",
  "siglip2": "siglip2_vision_model",
  "clip": "clip_vision_model",
}
