"""Vision encoders: SigLIP, SigLIP2 (both kinds), CLIP and DINOv2.

SigLIP2 of a fixed resolution is a SigLIP by name and by weights; only NaFlex
has a model_type of its own. A tower may stand alone or be the vision half of a
whole CLIP or SigLIP, whose other half is kept aside.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from gaze_jax import config as config_lib
from gaze_jax.weights import errors
from gaze_jax.weights import tables
from gaze_jax.weights.families import image_processors
from gaze_jax.weights.families import tower_tables

Raw = Mapping[str, Any]

# Layout of names -> token -> prefix. transformers 5 saves a tower alone without
# a prefix; the hub's are older, and whole models have one in either.
LAYOUTS: Mapping[str, Mapping[str, str]] = {
  "vision_model": {"vision": "vision_model"},
  "bare tower": {"vision": ""},
  "dinov2": {"vision": "dinov2"},  # below a classifier
}

MODEL_TYPES = (*tower_tables.FAMILIES, *tower_tables.WHOLE)

_ACTIVATIONS = {
  "gelu": "gelu",
  "gelu_pytorch_tanh": "gelu_tanh",
  "gelu_new": "gelu_tanh",  # the same formula, written out
  "quick_gelu": "quick_gelu",
}

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
  if kind in tower_tables.WHOLE:
    inner = raw.get("vision_config") or {}
    raw, kind = inner, inner.get("model_type", tower_tables.WHOLE[kind])
  if kind not in tower_tables.FAMILIES:
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
  family = tower_tables.FAMILIES[kind]
  given = {k: v for k, v in raw.items() if v is not None}
  value = family.defaults | given
  _refuse_unknown_math(whole | value if whole is not raw else value)
  patch = image_processors.square(
    value["patch_size"], "config.json: patch_size"
  )
  if kind == "siglip2_vision_model":
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
    max_patches=grid**2 if kind == "siglip2_vision_model" else 0,
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
  side = ("h", c.patch_size), ("w", c.patch_size), ("c", 3)
  table = [
    tables.Rule(
      ours,
      f"vision.{name}",
      pattern,
      side if pattern == tower_tables.CONV else (),
    )
    for ours, (name, pattern) in family.table.items()
  ]
  if c.layers_used:
    table += [
      tables.Rule(
        f"blocks/{ours}", f"vision.{family.layers}.{{i}}.{name}", pattern
      )
      for ours, (name, pattern) in family.block.items()
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


def dropped() -> list[str]:
  """Regexes of buffers below "vision", which follow from the config."""
  return [r"embeddings\.position_ids"]


def model_type_of(c: config_lib.VisionConfig) -> str:
  """The model_type that can hold a tower which came from no checkpoint.

  Raises:
    ConversionError: none can.
  """
  for kind, family in tower_tables.FAMILIES.items():
    naflex = kind == "siglip2_vision_model"
    if not _misfits(c, family) and bool(c.max_patches) == naflex:
      return kind
  names = sorted({n for f in tower_tables.FAMILIES.values() for n in f.flags})
  told = ", ".join(f"{n} = {getattr(c, n)}" for n in (*names, "max_patches"))
  raise errors.ConversionError(
    f"model.vision: no family of transformers has a tower with {told}; known"
    f" are {', '.join(tower_tables.FAMILIES)}"
  )


def to_hf(
  c: config_lib.VisionConfig, model_type: str | None = None
) -> dict[str, Any]:
  """The config that transformers reads a tower of ours with.

  It has the layers that we run and no pooling head, so its features are those
  of its last layer.

  Args:
    c: the tower.
    model_type: of what is written; None for one that can hold it.

  Raises:
    ConversionError: this family does not compute such a tower.
  """
  kind = _kind(model_type or model_type_of(c))
  family = _family(c, kind)
  names = {ours: theirs for theirs, ours in reversed(_ACTIVATIONS.items())}
  out = dict(
    architectures=[family.architecture],
    model_type=kind,
    hidden_size=c.width,
    num_hidden_layers=c.layers_used,
    num_attention_heads=c.heads,
    num_channels=3,
    patch_size=c.patch_size,
    hidden_act=names[c.activation],
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
  if kind == "siglip2_vision_model":
    return out | dict(num_patches=c.position_grid**2, vision_use_head=False)
  # The size that the table is for, which the pictures may not have.
  side = c.image_size
  if side // c.patch_size != c.position_grid:
    side = c.position_grid * c.patch_size
  if kind == "siglip_vision_model":
    out |= dict(vision_use_head=False)
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


def _family(c: config_lib.VisionConfig, model_type: str) -> tower_tables.Family:
  """The family, if it can hold such a tower."""
  kind = _kind(model_type)
  family = tower_tables.FAMILIES[kind]
  naflex = kind == "siglip2_vision_model"
  wrong = [f"{name} = {getattr(c, name)}" for name in _misfits(c, family)]
  if bool(c.max_patches) != naflex:
    wrong.append(f"max_patches = {c.max_patches}")
  if wrong:
    raise errors.ConversionError(
      f"model.vision: a checkpoint of {kind} has no tower with"
      f" {', '.join(wrong)}; take the family that has"
    )
  return family


def _misfits(
  c: config_lib.VisionConfig, family: tower_tables.Family
) -> list[str]:
  return [n for n, wanted in family.flags.items() if getattr(c, n) != wanted]


def _refuse_unknown_math(value: Raw) -> None:
  for key, known in _KNOWN.items():
    if (got := value.get(key, known)) != known:
      raise errors.ConversionError(
        f"config.json: {key} = {got!r} of this vision tower is not computed"
        f" here, {known!r} is; take a checkpoint without it"
      )
  width, heads = value["hidden_size"], value["num_attention_heads"]
  if width % heads or value.get("head_dim", width // heads) * heads != width:
    raise errors.ConversionError(
      f"config.json: hidden_size = {width} is not num_attention_heads ="
      f" {heads} times the size of a head"
    )
  if (act := value["hidden_act"]) not in _ACTIVATIONS:
    raise errors.ConversionError(
      f"config.json: hidden_act = {act!r} of this vision tower is not computed"
      f" here; {', '.join(_ACTIVATIONS)} are"
    )
