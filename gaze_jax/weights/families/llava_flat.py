"""The flat config.json of LLaVA's own code, as transformers would nest it.

The decoder's keys are at the top, and what is multimodal begins with `mm_`.
The tower is only named: the geometry of two that everybody uses is known here,
and any other is read from a directory of that name.
"""

import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from gaze_jax.weights import errors

Raw = Mapping[str, Any]

MODEL_TYPES = ("llava_llama", "llava_qwen")

# Class of LLaVA's code -> model_type of its decoder.
_DECODERS = {
  "LlavaQwenForCausalLM": "qwen2",
  "LlavaLlamaForCausalLM": "llama",
}
_PLAIN = (None, "Qwen2ForCausalLM", "LlamaForCausalLM")
_TYPES = {
  "llava_qwen": "qwen2",
  "llava_llama": "llama",
  "qwen2": "qwen2",
  "llama": "llama",
}
_TOWERS: Mapping[str, dict[str, Any]] = {
  "google/siglip-so400m-patch14-384": dict(
    model_type="siglip_vision_model",
    hidden_size=1152,
    intermediate_size=4304,
    num_hidden_layers=27,
    num_attention_heads=16,
    image_size=384,
    patch_size=14,
  ),
  "openai/clip-vit-large-patch14-336": dict(
    model_type="clip_vision_model",
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=24,
    num_attention_heads=16,
    image_size=336,
    patch_size=14,
  ),
}
# Key -> what its absence means, and what is computed here.
_KNOWN: Mapping[str, tuple[Any, tuple[Any, ...]]] = {
  "mm_projector_type": ("linear", ("mlp2x_gelu",)),
  "mm_resampler_type": (None, (None,)),
  "mm_use_im_start_end": (False, (False,)),
  "mm_vision_select_feature": ("patch", ("patch",)),
}
_KNOWN_TILED: Mapping[str, tuple[Any, tuple[Any, ...]]] = {
  "mm_patch_merge_type": ("flat", ("spatial_unpad",)),
  "mm_newline_position": ("one_token", ("one_token",)),
  "mm_spatial_pool_mode": ("bilinear", ("bilinear",)),
  "mm_spatial_pool_stride": (2, (2, None)),
}


def is_flat(raw: Raw) -> bool:
  """Whether a config.json is of LLaVA's own code."""
  return bool(raw.get("mm_vision_tower"))


def nested(raw: Raw) -> dict[str, Any]:
  """The config.json that transformers would have for the same model.

  Raises:
    ConversionError: its tower is not known, or it asks for something that we
      don't compute; names the key, its value and what to do.
  """
  _refuse(raw, _KNOWN)
  architecture = (raw.get("architectures") or [None])[0]
  decoder = _DECODERS.get(architecture)
  if architecture in _PLAIN:  # as it is renamed to be tuned
    decoder = _TYPES.get(raw.get("model_type"))
  if not decoder:
    raise errors.ConversionError(
      f"config.json: architectures = [{architecture!r}] is no LLaVA that is"
      f" known here; known are {', '.join(_DECODERS)}"
    )
  tower = _tower(str(raw["mm_vision_tower"]))
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
  _refuse(raw, _KNOWN_TILED)
  return out | dict(
    model_type="llava_onevision",
    vision_aspect_ratio=scheme,
    image_grid_pinpoints=_pinpoints(raw, tower["image_size"]),
  )


def _refuse(raw: Raw, known: Mapping[str, tuple[Any, tuple[Any, ...]]]) -> None:
  for key, (absent, values) in known.items():
    if (got := raw.get(key, absent)) not in values:
      raise errors.ConversionError(
        f"config.json: {key} = {got!r} of this LLaVA is not computed here,"
        f" {values[0]!r} is; take a checkpoint with it"
      )


def _tower(name: str) -> dict[str, Any]:
  """The config of a tower: by name, or in a directory of that name."""
  if name in _TOWERS:
    return dict(_TOWERS[name])
  file = pathlib.Path(name) / "config.json"
  try:
    raw = json.loads(file.read_bytes())
    raw = raw.get("vision_config", raw)
    return dict(raw) | dict(
      model_type=raw.get("model_type", "clip_vision_model"),
      num_hidden_layers=raw["num_hidden_layers"],
    )
  except (OSError, ValueError, KeyError, AttributeError, RecursionError):
    raise errors.ConversionError(
      f"config.json: mm_vision_tower = {name!r} is not known here, and no"
      " directory of that name has its config.json; known are"
      f" {', '.join(_TOWERS)}, so download the tower and set mm_vision_tower to"
      " its directory"
    ) from None


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
