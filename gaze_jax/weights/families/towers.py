"""Vision towers: SigLIP, SigLIP2 (both kinds), CLIP and DINOv2.

SigLIP2 of a fixed resolution is a SigLIP by name and by weights; only NaFlex
has a model_type of its own. A tower may stand alone or be the vision half of a
whole CLIP or SigLIP, whose other half is kept aside.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from gaze_jax import config as config_lib
from gaze_jax.weights import errors
from gaze_jax.weights import tables
from gaze_jax.weights.families import image_processors

Raw = Mapping[str, Any]

# transformers 5 saves a tower alone without a prefix; the hub's are older, and
# whole models have one in either.
NAMINGS: Mapping[str, tables.Naming] = {
  "vision_model": {"vision": "vision_model"},
  "bare tower": {"vision": ""},
  "dinov2": {"vision": "dinov2"},  # below a classifier
}

# Buffers below "vision", which follow from the config.
DROPPED = (r"embeddings\.position_ids",)

_ACTIVATIONS = {
  "gelu": "gelu",
  "gelu_pytorch_tanh": "gelu_tanh",
  "gelu_new": "gelu_tanh",  # the same formula, written out
  "quick_gelu": "quick_gelu",
}

Table = Mapping[str, tuple[str, str]]  # leaf -> tensor, pattern

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
  for leaf, (name, pattern) in _CLIP_BLOCK.items():
    module, end = name.rsplit(".", 1)
    table[leaf] = (f"{_DINO_NAMES.get(module, module)}.{end}", pattern)
  scales = {f"scale{i}": (f"layer_scale{i}.lambda1", "") for i in (1, 2)}
  return table | scales


_PATCH = "embeddings.patch_embedding"
_CONV = "f c h w -> (h w c) f"
_SIGLIP: Table = {
  "patch/kernel": (f"{_PATCH}.weight", _CONV),
  "patch/bias": (f"{_PATCH}.bias", ""),
  "positions": ("embeddings.position_embedding.weight", ""),
}
_CLIP: Table = {
  "patch/kernel": (f"{_PATCH}.weight", _CONV),
  "class_token": ("embeddings.class_embedding", ""),
  "positions": ("embeddings.position_embedding.weight", ""),
  "pre_norm/scale": ("pre_layrnorm.weight", ""),  # spelt so
  "pre_norm/bias": ("pre_layrnorm.bias", ""),
}
_DINO: Table = {
  "patch/kernel": ("embeddings.patch_embeddings.projection.weight", _CONV),
  "patch/bias": ("embeddings.patch_embeddings.projection.bias", ""),
  "class_token": ("embeddings.cls_token", "1 1 f -> f"),
  "positions": ("embeddings.position_embeddings", "1 x f -> x f"),
}


@dataclasses.dataclass(frozen=True)
class _Family:
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
    naflex: whether it reads patches of pictures of any aspect.
  """

  architecture: str
  defaults: Raw
  flags: Mapping[str, bool]
  table: Table
  layers: str
  block: Table
  norm: str
  unused: tuple[str, ...] = ()
  naflex: bool = False

  def misfits(self, c: config_lib.VisionConfig) -> list[str]:
    """What of a tower no checkpoint of this family can hold."""
    names = [n for n, wanted in self.flags.items() if getattr(c, n) != wanted]
    if bool(c.max_patches) != self.naflex:
      names.append("max_patches")
    return [f"{name} = {getattr(c, name)}" for name in names]


_DEFAULTS = dict(
  hidden_size=768,
  intermediate_size=3072,
  num_hidden_layers=12,
  num_attention_heads=12,
  image_size=224,
)
_PLAIN = dict(
  class_token=False, patch_bias=True, pre_norm=False, layer_scale=False
)
_SIGLIP_FAMILY = _Family(
  "SiglipVisionModel",
  _DEFAULTS
  | dict(patch_size=16, hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-6),
  _PLAIN,
  _SIGLIP,
  "encoder.layers",
  _CLIP_BLOCK,
  "post_layernorm",
  (r"head\..+",),
)
_FAMILIES = {
  "siglip_vision_model": _SIGLIP_FAMILY,
  "siglip2_vision_model": dataclasses.replace(
    _SIGLIP_FAMILY,
    architecture="Siglip2VisionModel",
    defaults=_SIGLIP_FAMILY.defaults | dict(num_patches=256),
    table=_SIGLIP | {"patch/kernel": (f"{_PATCH}.weight", "f x -> x f")},
    naflex=True,
  ),
  "clip_vision_model": _Family(
    "CLIPVisionModel",
    _DEFAULTS
    | dict(patch_size=32, hidden_act="quick_gelu", layer_norm_eps=1e-5),
    _PLAIN | dict(class_token=True, patch_bias=False, pre_norm=True),
    _CLIP,
    "encoder.layers",
    _CLIP_BLOCK,
    "post_layernorm",
  ),
  "dinov2": _Family(
    "Dinov2Model",
    _DEFAULTS
    | dict(patch_size=14, hidden_act="gelu", layer_norm_eps=1e-6, mlp_ratio=4),
    _PLAIN | dict(class_token=True, layer_scale=True),
    _DINO,
    "encoder.layer",
    _dino_block(),
    "layernorm",
    (r"embeddings\.mask_token",),
  ),
}
# A whole model, and its vision half where that has no model_type.
_WHOLE = {
  "siglip": "siglip_vision_model",
  "siglip2": "siglip2_vision_model",
  "clip": "clip_vision_model",
}
MODEL_TYPES = (*_FAMILIES, *_WHOLE)


# What a config may ask for and our encoder does not compute.
_KNOWN: Raw = {
  "num_channels": 3,
  "use_swiglu_ffn": False,
  "qkv_bias": True,
  "quantization_config": None,
}


def tower(raw: Raw) -> tuple[str, Raw]:
  """The vision tower's own model_type and config, of it alone or a whole model.

  Raises:
    ConversionError: it is no tower that is known; names all that are.
  """
  kind = raw.get("model_type")
  if kind in _WHOLE:
    inner = raw.get("vision_config") or {}
    raw, kind = inner, inner.get("model_type", _WHOLE[kind])
  if kind not in _FAMILIES:
    raise errors.ConversionError(
      f"config.json: model_type = {kind!r} is no vision tower that is known"
      f" here; known are {', '.join(MODEL_TYPES)}"
    )
  return kind, raw


def config(
  raw: Raw, preprocessor: Raw | None = None
) -> config_lib.VisionConfig:
  """Reads the config.json of a vision tower, or of a model with one.

  What it leaves out is what transformers fills in. The features are the last
  hidden state before the closing norm; a caller that wants others replaces
  `hidden_state` and `final_norm`.

  Args:
    raw: the parsed JSON, or the vision_config of another.
    preprocessor: the parsed image processor; without it, pictures of
      the tower's size, with the mean and std that its family was trained with.

  Raises:
    ConversionError: it is no tower that is known, or asks for something that
      we don't compute; names the key, its value and what to do.
  """
  whole = raw
  kind, raw = tower(raw)
  family = _FAMILIES[kind]
  given = {k: v for k, v in raw.items() if v is not None}
  value = family.defaults | given
  _refuse_unknown_math(whole | value if whole is not raw else value)
  patch = image_processors.square(
    value["patch_size"], "config.json: patch_size"
  )
  if family.naflex:
    grid = round(value["num_patches"] ** 0.5)
    if grid**2 != value["num_patches"]:
      raise errors.ConversionError(
        f"config.json: num_patches = {value['num_patches']} is no square; it is"
        " the size of a position table, such as 256"
      )
    side = grid * patch
  else:
    side = image_processors.square(
      value["image_size"], "config.json: image_size"
    )
    grid = side // patch
  width = value["hidden_size"]
  mlp = value["intermediate_size"]
  if kind == "dinov2":
    mlp = int(width * value["mlp_ratio"])
  read = config_lib.VisionConfig(
    image_size=side,
    patch_size=patch,
    width=width,
    depth=value["num_hidden_layers"],
    heads=value["num_attention_heads"],
    mlp_dim=mlp,
    activation=_ACTIVATIONS[value["hidden_act"]],
    norm_eps=float(value["layer_norm_eps"]),
    position_grid=grid,
    max_patches=grid**2 if family.naflex else 0,
    **family.flags,
  )
  return image_processors.read(read, kind, preprocessor)


def rules(c: config_lib.VisionConfig, model_type: str) -> list[tables.Rule]:
  """The table of a tower; token "vision".

  Args:
    c: its config.
    model_type: of the tower, or of the whole model that it is part of.

  Raises:
    ConversionError: such a checkpoint has no weights for this config.
  """
  family = _family(c, model_type)
  sizes = {_CONV: (("h", c.patch_size), ("w", c.patch_size), ("c", 3))}
  table = [
    tables.Rule(leaf, f"vision.{name}", pattern, sizes.get(pattern, ()))
    for leaf, (name, pattern) in family.table.items()
  ]
  if c.layers_used:
    layer = f"vision.{family.layers}.{{i}}"
    table += [
      tables.Rule(f"blocks/{leaf}", f"{layer}.{name}", pattern)
      for leaf, (name, pattern) in family.block.items()
    ]
  if c.final_norm:
    table += [
      tables.Rule("norm/scale", f"vision.{family.norm}.weight"),
      tables.Rule("norm/bias", f"vision.{family.norm}.bias"),
    ]
  return table


def unused(c: config_lib.VisionConfig, model_type: str) -> list[str]:
  """Regexes of names below "vision" that the forward does not compute with.

  These are a pooling head, a mask token, the closing norm if it is not applied
  and the layers past the hidden state.
  """
  family = _family(c, model_type)
  out = list(family.unused)
  if not c.final_norm:
    out.append(rf"{family.norm}\.(weight|bias)")
  if past := "|".join(map(str, range(c.layers_used, c.depth))):
    layers = family.layers.replace(".", r"\.")
    out.append(rf"{layers}\.({past})\..+")
  return out


def beside(model_type: str) -> list[str]:
  """Regexes of whole names beside the tower: of its other half, and heads."""
  if _kind(model_type) == "dinov2":
    return [r"classifier\.(weight|bias)"]
  return [
    r"text_model\..+",
    r"logit_(scale|bias)",
    r"(visual|text)_projection\.weight",
    r"classifier\.(weight|bias)",
  ]


def model_type_of(c: config_lib.VisionConfig) -> str:
  """The model_type that can hold a tower which came from no checkpoint.

  Raises:
    ConversionError: none can.
  """
  for kind, family in _FAMILIES.items():
    if not family.misfits(c):
      return kind
  names = sorted({n for f in _FAMILIES.values() for n in f.flags})
  values = ", ".join(f"{n} = {getattr(c, n)}" for n in (*names, "max_patches"))
  raise errors.ConversionError(
    f"model.vision: no family of transformers has a tower with {values}; known"
    f" are {', '.join(_FAMILIES)}"
  )


def to_hf(c: config_lib.VisionConfig) -> dict[str, Any]:
  """The config that transformers reads a tower of ours with.

  It has the layers that we run and no pooling head, so its features are those
  of its last layer.

  Raises:
    ConversionError: no family computes such a tower.
  """
  kind = model_type_of(c)
  family = _FAMILIES[kind]
  activations = {v: k for k, v in reversed(_ACTIVATIONS.items())}
  out = dict(
    architectures=[family.architecture],
    model_type=kind,
    hidden_size=c.width,
    num_hidden_layers=c.layers_used,
    num_attention_heads=c.heads,
    num_channels=3,
    patch_size=c.patch_size,
    hidden_act=activations[c.activation],
    layer_norm_eps=c.norm_eps,
  )
  if kind == "dinov2":
    ratio, rest = divmod(c.mlp_dim, c.width)
    if rest:
      raise errors.ConversionError(
        f"model.vision.mlp_dim = {c.mlp_dim}: dinov2 has a multiple of width ="
        f" {c.width}"
      )
    out |= dict(mlp_ratio=ratio, use_swiglu_ffn=False, use_mask_token=False)
  else:
    out |= dict(intermediate_size=c.mlp_dim)
  if "siglip" in kind:
    out |= dict(vision_use_head=False)
  if family.naflex:
    return out | dict(num_patches=c.position_grid**2)
  # The size that the table is for, which the pictures may not have.
  side = c.image_size
  if side // c.patch_size != c.position_grid:
    side = c.position_grid * c.patch_size
  return out | dict(image_size=side)


def filler(
  c: config_lib.VisionConfig, model_type: str
) -> dict[str, np.ndarray]:
  """Weights that `to_hf`'s module has and ours has not: name -> float32.

  Nothing of ours depends on them: an identity for a closing norm that is not
  applied. Without them transformers would draw them and warn.
  """
  norm = _family(c, model_type).norm
  if c.final_norm:
    return {}
  return {
    f"vision.{norm}.weight": np.ones(c.width, np.float32),
    f"vision.{norm}.bias": np.zeros(c.width, np.float32),
  }


def _kind(model_type: str) -> str:
  return tower({"model_type": model_type})[0]


def _family(c: config_lib.VisionConfig, model_type: str) -> _Family:
  """The family, if it can hold such a tower."""
  kind = _kind(model_type)
  if wrong := _FAMILIES[kind].misfits(c):
    raise errors.ConversionError(
      f"model.vision: a checkpoint of {kind} has no tower with"
      f" {', '.join(wrong)}; take the family that has"
    )
  return _FAMILIES[kind]


def _refuse_unknown_math(value: Raw) -> None:
  values = {k: (value.get(k, known), [known]) for k, known in _KNOWN.items()}
  errors.refuse_unknown("vision tower", values)
  width, heads = value["hidden_size"], value["num_attention_heads"]
  if width % heads or value.get("head_dim", width // heads) * heads != width:
    raise errors.ConversionError(
      f"config.json: hidden_size = {width} is not num_attention_heads ="
      f" {heads} times the size of a head"
    )
  activation = dict(hidden_act=(value["hidden_act"], list(_ACTIVATIONS)))
  errors.refuse_unknown("vision tower", activation)
