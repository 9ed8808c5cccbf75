"""Whole models: LLaVA-OneVision and LLaVA, in all layouts of their names.

A LLaVA is a vision tower, a two-layer projector and a decoder. OneVision splits
an image into tiles (`tiling`) and has a learned newline. A config.json comes
nested, as transformers writes it, or flat, as LLaVA's own code does: the
decoder's keys at the top, what is multimodal begins with `mm_`, and the tower
is only named. `_nested` makes the latter into the former.

What is read here is a dense model; it becomes one with gaze that reads every
region (ratio 1, no context tokens) and computes the same, until it is asked to
read less.
"""

import contextlib
import dataclasses
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from gaze_jax import config as config_lib
from gaze_jax import json_file
from gaze_jax.weights import errors
from gaze_jax.weights import tables
from gaze_jax.weights.families import decoders
from gaze_jax.weights.families import image_processors
from gaze_jax.weights.families import towers

Raw = Mapping[str, Any]

FLAT_TYPES = ("llava_llama", "llava_qwen")
MODEL_TYPES = ("llava_onevision", "llava", *FLAT_TYPES)

# llava-hf's files are B; transformers 5 writes B' and holds D in memory; C was
# written for a while.
NAMINGS: Mapping[str, tables.Naming] = {
  "A (LLaVA-NeXT)": {
    "text": "model",
    "head": "lm_head",
    "vision": "model.vision_tower.vision_tower.vision_model",
    "projector.linear_1": "model.mm_projector.0",
    "projector.linear_2": "model.mm_projector.2",
    "newline": "model.image_newline",
  },
  "B (llava-hf)": {
    "text": "language_model.model",
    "head": "language_model.lm_head",
    "vision": "vision_tower.vision_model",
    "projector": "multi_modal_projector",
    "newline": "image_newline",
  },
  "B' (transformers 5)": {
    "text": "language_model.model",
    "head": "language_model.lm_head",
    "vision": "vision_tower",
    "projector": "multi_modal_projector",
    "newline": "image_newline",
  },
  "C (transformers 4.52)": {
    "text": "model.language_model",
    "head": "lm_head",
    "vision": "model.vision_tower.vision_model",
    "projector": "model.multi_modal_projector",
    "newline": "model.image_newline",
  },
  "D (transformers 5 in memory)": {
    "text": "model.language_model",
    "head": "lm_head",
    "vision": "model.vision_tower",
    "projector": "model.multi_modal_projector",
    "newline": "model.image_newline",
  },
}

# Two towers that everybody uses; transformers fills in most of them, too.
_SO400M = dict(
  hidden_size=1152,
  intermediate_size=4304,
  num_hidden_layers=27,
  num_attention_heads=16,
  image_size=384,
  patch_size=14,
)
_CLIP_LARGE = dict(
  hidden_size=1024,
  intermediate_size=4096,
  num_hidden_layers=24,
  num_attention_heads=16,
  image_size=336,
  patch_size=14,
)
_SIZES = (384, 768, 1152, 1536, 1920, 2304)
# What transformers fills in for a key that a config leaves out.
_DEFAULTS: Mapping[str, dict[str, Any]] = {
  "llava_onevision": dict(
    vision_type="siglip_vision_model",
    text_type="qwen2",
    image_grid_pinpoints=[[h, w] for h in _SIZES for w in _SIZES],
    vision_aspect_ratio="anyres_max_9",
    vision_feature_layer=-1,
    vision_feature_select_strategy="full",
    vision_config=_SO400M | dict(num_hidden_layers=26),
  ),
  "llava": dict(
    vision_type="clip_vision_model",
    text_type="llama",
    vision_feature_layer=-2,
    vision_feature_select_strategy="default",
    vision_config=_CLIP_LARGE,
  ),
}
# The image processor of a file that does not name one.
_PROCESSORS = {
  "llava_onevision": "LlavaOnevisionImageProcessor",
  "llava": "LlavaImageProcessor",
}
_SHARED = dict(projector_hidden_act="gelu", multimodal_projector_bias=True)

# Of flat configs: the towers that are known by name.
_TOWERS: Mapping[str, dict[str, Any]] = {
  "google/siglip-so400m-patch14-384": _SO400M
  | dict(model_type="siglip_vision_model"),
  "openai/clip-vit-large-patch14-336": _CLIP_LARGE
  | dict(model_type="clip_vision_model"),
}
# Class of LLaVA's code -> model_type of its decoder.
_FLAT_DECODERS = {
  "LlavaQwenForCausalLM": "qwen2",
  "LlavaLlamaForCausalLM": "llama",
}
# Classes of decoders alone: some rename the whole, to tune it as text.
_PLAIN = (None, "Qwen2ForCausalLM", "LlamaForCausalLM")
# Key -> what its absence means, and what is computed here.
_Known = Mapping[str, tuple[Any, tuple[Any, ...]]]
_KNOWN: _Known = {
  "mm_projector_type": ("linear", ("mlp2x_gelu",)),
  "mm_resampler_type": (None, (None,)),
  "mm_use_im_start_end": (False, (False,)),
  "mm_vision_select_feature": ("patch", ("patch",)),
}
_KNOWN_TILED: _Known = {
  "mm_patch_merge_type": ("flat", ("spatial_unpad",)),
  "mm_newline_position": ("one_token", ("one_token",)),
  "mm_spatial_pool_mode": ("bilinear", ("bilinear",)),
  "mm_spatial_pool_stride": (2, (2, None)),
}


def config(raw: Raw, preprocessor: Raw | None = None) -> config_lib.ModelConfig:
  """Reads the config.json of a whole model.

  Args:
    raw: the parsed JSON, nested or flat.
    preprocessor: the parsed image processor; None when there is none.

  Raises:
    ConversionError: it is no family that is known, or asks for something that
      we don't compute; names the key, its value and what to do.
  """
  value = _filled(raw)
  inner = value["vision_config"]
  if preprocessor is not None and not is_flat(raw):
    kind = _PROCESSORS[value["model_type"]]
    preprocessor = image_processors.with_type(preprocessor, kind)
  tower = towers.config(inner, preprocessor)
  _refuse_unknown_math(value, tower)
  sized = towers.config(inner)
  if tower.image_size != sized.image_size:
    raise image_processors.PixelsError(
      f"squares of {tower.image_size} pixels, and config.json has image_size ="
      f" {sized.image_size}; set one to the other"
    )
  top = bool(raw.get("tie_word_embeddings"))
  decoder = decoders.config(value["text_config"], nested=True)
  return config_lib.ModelConfig(
    vision=dataclasses.replace(
      tower, hidden_state=value["vision_feature_layer"], final_norm=False
    ),
    tiling=_tiling(value, preprocessor or {}, tower),
    decoder=dataclasses.replace(decoder, tied=top or decoder.tied),
    gaze=config_lib.GazeConfig(context_tokens=0, budget="ratio", ratio=1.0),
  )


def vision_type(raw: Raw) -> str:
  """model_type of the vision tower of a whole model."""
  return towers.tower(_filled(raw)["vision_config"])[0]


def rules(model: config_lib.ModelConfig) -> list[tables.Rule]:
  """The table of the projector; tokens "projector" and "newline"."""
  table = []
  for name in ("linear_1", "linear_2"):
    weight, bias = (f"projector.{name}.{leaf}" for leaf in ("weight", "bias"))
    table.append(tables.Rule(f"{name}/kernel", weight, "o i -> i o"))
    table.append(tables.Rule(f"{name}/bias", bias))
  if model.tiling.kind == "anyres":
    table.append(tables.Rule("newline", "newline"))
  return table


def to_hf(model: config_lib.ModelConfig) -> dict[str, Any]:
  """The config.json that transformers reads a whole model of ours with.

  The last id of the vocabulary, which is padding in Qwen's, stands for an
  image's tokens in a prompt, and the one before for a video's.

  Raises:
    ConversionError: no family of transformers computes this model.
  """
  _refuse_unknown_parts(model)
  last = model.decoder.vocab_size - 1
  out = dict(
    architectures=["LlavaForConditionalGeneration"],
    model_type="llava",
    vision_config=towers.to_hf(model.vision),
    text_config=decoders.to_hf(model.decoder),
    image_token_index=last,
    image_seq_length=model.vision.tokens,
    projector_hidden_act="gelu",
    multimodal_projector_bias=True,
    vision_feature_layer=-1,
    vision_feature_select_strategy=_strategy(model.vision),
    tie_word_embeddings=model.decoder.tied,
  )
  if model.tiling.kind == "none":
    return out
  del out["image_seq_length"]
  return out | dict(
    architectures=["LlavaOnevisionForConditionalGeneration"],
    model_type="llava_onevision",
    video_token_index=last - 1,
    image_grid_pinpoints=[list(p) for p in model.tiling.pinpoints],
    vision_aspect_ratio=f"anyres_max_{model.tiling.max_tiles}",
  )


def preprocessor_to_hf(model: config_lib.ModelConfig) -> dict[str, Any]:
  """The preprocessor_config.json of a whole model of ours."""
  out = image_processors.write(model.vision)
  if model.tiling.kind == "none":
    return out
  return out | dict(
    image_processor_type="LlavaOnevisionImageProcessor",
    image_grid_pinpoints=[list(p) for p in model.tiling.pinpoints],
    do_pad=True,
  )


def _filled(raw: Raw) -> dict[str, Any]:
  """A nested config with what transformers fills in."""
  raw = _nested(raw) if is_flat(raw) else raw
  kind = raw.get("model_type")
  if kind not in _DEFAULTS:
    raise errors.ConversionError(
      f"config.json: model_type = {kind!r} is no whole model that is known"
      f" here; known are {', '.join(MODEL_TYPES)}"
    )
  defaults = _DEFAULTS[kind]
  given = {k: v for k, v in raw.items() if v is not None}
  tower = given.get("vision_config") or defaults["vision_config"]
  decoder = given.get("text_config") or {}
  nested = dict(
    vision_config={"model_type": defaults["vision_type"]} | dict(tower),
    text_config={"model_type": defaults["text_type"]} | dict(decoder),
  )
  return _SHARED | defaults | given | nested


def _refuse_unknown_math(value: Raw, tower: config_lib.VisionConfig) -> None:
  kind = value["model_type"]
  known = dict(
    projector_hidden_act="gelu",
    multimodal_projector_bias=True,
    vision_feature_select_strategy=_strategy(tower),
    quantization_config=None,
  )
  values = {k: (value.get(k), [one]) for k, one in known.items()}
  errors.refuse_unknown(f"{kind} model", values)
  layer = value["vision_feature_layer"]
  if (
    not isinstance(layer, int)
    or not -tower.depth <= layer + 1 <= tower.depth + 1
  ):
    raise errors.ConversionError(
      f"config.json: vision_feature_layer = {layer!r} is not computed here, one"
      f" layer of the tower's {tower.depth} is; take a checkpoint with one"
    )
  if tower.max_patches:
    raise errors.ConversionError(
      f"config.json: a {kind} model with a NaFlex tower is not computed here;"
      " take one of a fixed resolution"
    )


def _strategy(tower: config_lib.VisionConfig) -> str:
  """Of the features that LLaVA takes: "default" leaves the class token out."""
  return "default" if tower.class_token else "full"


def _tiling(
  value: Raw, preprocessor: Raw, tower: config_lib.VisionConfig
) -> config_lib.TilingConfig:
  if value["model_type"] == "llava":
    return config_lib.TilingConfig()
  scheme = value["vision_aspect_ratio"]
  if not (found := re.fullmatch(r"anyres_max_([1-9]\d*)", str(scheme))):
    raise errors.ConversionError(
      f"config.json: vision_aspect_ratio = {scheme!r} is not computed here,"
      " 'anyres_max_9' and other numbers are; set it to one of these"
    )
  pinpoints = [list(p) for p in value["image_grid_pinpoints"]]
  other = preprocessor.get("image_grid_pinpoints") or pinpoints
  if [list(p) for p in other] != pinpoints:
    raise image_processors.PixelsError(
      "image_grid_pinpoints are not those of config.json; set one to the other"
    )
  side = tower.image_size
  whole = lambda n: isinstance(n, int) and n > 0 and n % side == 0
  if bad := [p for p in pinpoints if len(p) != 2 or not all(map(whole, p))]:
    raise errors.ConversionError(
      f"config.json: image_grid_pinpoints has {bad[0]}, which is no pair of"
      f" multiples of image_size = {side}; leave it out"
    )
  if not pinpoints:
    raise errors.ConversionError(
      "config.json: image_grid_pinpoints is empty; name at least one size"
    )
  return config_lib.TilingConfig(
    kind="anyres",
    pinpoints=tuple((h, w) for h, w in pinpoints),
    max_tiles=int(found[1]),
  )


def _refuse_unknown_parts(model: config_lib.ModelConfig) -> None:
  """What ours may have and no LLaVA of transformers has."""
  projector, width = model.projector, model.decoder.width
  known = dict(input_norm=False, positions="none", output_scale=1.0)
  wrong = [
    f"projector.{key} = {getattr(projector, key)!r}"
    for key, value in known.items()
    if getattr(projector, key, value) != value
  ]
  if projector.hidden not in (0, width):
    wrong.append(f"projector.hidden = {projector.hidden}")
  if model.vision.final_norm:
    wrong.append("vision.final_norm = True")
  if model.vision.max_patches:
    wrong.append(f"vision.max_patches = {model.vision.max_patches}")
  if wrong:
    raise errors.ConversionError(
      f"model: no LLaVA of transformers has {', '.join(wrong)}; such a model"
      " can't be exported"
    )


def is_flat(raw: Raw) -> bool:
  """Whether a config.json is of LLaVA's own code."""
  return bool(raw.get("mm_vision_tower"))


def _nested(raw: Raw) -> dict[str, Any]:
  """The config.json that transformers would have for the same model.

  Raises:
    ConversionError: its tower is not known, or it asks for something that we
      don't compute; names the key, its value and what to do.
  """
  _refuse_flat(raw, _KNOWN)
  architecture = (raw.get("architectures") or [None])[0]
  decoder = _FLAT_DECODERS.get(architecture)
  if architecture in _PLAIN:
    kind = str(raw.get("model_type")).removeprefix("llava_")
    decoder = dict(qwen="qwen2", qwen2="qwen2", llama="llama").get(kind)
  if not decoder:
    raise errors.ConversionError(
      f"config.json: architectures = [{architecture!r}] is no LLaVA that is"
      f" known here; known are {', '.join(_FLAT_DECODERS)}"
    )
  tower = _named_tower(str(raw["mm_vision_tower"]))
  siglip = tower["model_type"].startswith("siglip")
  layer = raw.get("mm_vision_select_layer", -2)
  if siglip:
    # LLaVA drops a SigLIP's last layer, and takes what is then the last.
    tower = tower | dict(num_hidden_layers=tower["num_hidden_layers"] - 1)
    layer = -1
  text = dict(raw) | dict(model_type=decoder)
  out = dict(
    model_type="llava",
    vision_config=tower,
    text_config=text,
    vision_feature_layer=layer,
    vision_feature_select_strategy="full" if siglip else "default",
    tie_word_embeddings=raw.get("tie_word_embeddings"),
    image_token_index=raw.get("image_token_index"),
    quantization_config=raw.get("quantization_config"),
  )
  scheme = raw.get("image_aspect_ratio")
  if scheme in (None, "square"):
    return out
  if not str(scheme).startswith("anyres"):
    raise errors.ConversionError(
      f"config.json: image_aspect_ratio = {scheme!r} is not computed here,"
      " 'anyres_max_9' and 'square' (LLaVA-1.5 in transformers: the middle of"
      " the picture) are; set it to one of these"
    )
  _refuse_flat(raw, _KNOWN_TILED)
  return out | dict(
    model_type="llava_onevision",
    vision_aspect_ratio=scheme,
    image_grid_pinpoints=_pinpoints(raw, tower["image_size"]),
  )


def _refuse_flat(raw: Raw, known: _Known) -> None:
  values = {k: (raw.get(k, absent), ok) for k, (absent, ok) in known.items()}
  errors.refuse_unknown("LLaVA", values)


def _named_tower(name: str) -> dict[str, Any]:
  """The config of a tower: by name, or in a directory of that name."""
  if name in _TOWERS:
    return dict(_TOWERS[name])
  with contextlib.suppress(errors.ConversionError, AttributeError, KeyError):
    file = pathlib.Path(name) / "config.json"
    raw = json_file.read(file, errors.ConversionError)
    raw = raw.get("vision_config", raw)
    return dict(raw) | dict(
      model_type=raw.get("model_type", "clip_vision_model"),
      num_hidden_layers=raw["num_hidden_layers"],
    )
  raise errors.ConversionError(
    f"config.json: mm_vision_tower = {name!r} is not known here, and no"
    " directory of that name has its config.json; known are"
    f" {', '.join(_TOWERS)}, so download the tower and set mm_vision_tower to"
    " its directory"
  )


def _pinpoints(raw: Raw, side: int) -> Any:
  """A list of sizes, or such a range of tiles as "(1x1),...,(6x6)"."""
  points = raw.get("image_grid_pinpoints")
  if not isinstance(points, str):
    return points
  tiles = [tuple(map(int, t)) for t in re.findall(r"\((\d+)x(\d+)\)", points)]
  if not tiles:
    raise errors.ConversionError(
      f"config.json: image_grid_pinpoints = {points!r} can't be read; write a"
      " list of [height, width] in pixels"
    )
  (top, left), (bottom, right) = tiles[0], tiles[-1]
  return [
    [side * h, side * w]
    for h in range(top, bottom + 1)
    for w in range(left, right + 1)
  ]
