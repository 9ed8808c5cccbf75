"""What a preprocessor_config.json says of the pixels that a tower is fed."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from gaze_jax import config as config_lib
from gaze_jax.convert import errors

Raw = Mapping[str, Any]

_FILE = "preprocessor_config.json"
_HALF = (0.5, 0.5, 0.5)
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# What a family was trained with.
_TRAINED = {
  "siglip_vision_model": (_HALF, _HALF),
  "siglip2_vision_model": (_HALF, _HALF),
  "clip_vision_model": (_CLIP_MEAN, _CLIP_STD),
  "dinov2": _IMAGENET,
}
# The processor of a family, for a file that does not name one.
_OF_FAMILY = {
  "siglip_vision_model": "SiglipImageProcessor",
  "siglip2_vision_model": "Siglip2ImageProcessor",
  "clip_vision_model": "CLIPImageProcessor",
  "dinov2": "BitImageProcessor",
}
_BILINEAR, _BICUBIC = 2, 3  # of PIL.Image.Resampling
_RESAMPLE = {_BILINEAR: "bilinear", _BICUBIC: "bicubic"}
_CLIP_DEFAULTS = dict(
  image_mean=_CLIP_MEAN,
  image_std=_CLIP_STD,
  size={"shortest_edge": 224},
  crop_size={"height": 224, "width": 224},
  do_center_crop=True,
  resample=_BICUBIC,
)
# Processor -> what transformers fills in for a key that the file leaves out.
_DEFAULTS: Mapping[str, dict[str, Any]] = {
  "SiglipImageProcessor": dict(
    image_mean=_HALF,
    image_std=_HALF,
    size={"height": 224, "width": 224},
    resample=_BICUBIC,
  ),
  "Siglip2ImageProcessor": dict(
    image_mean=_HALF,
    image_std=_HALF,
    patch_size=16,
    max_num_patches=256,
    resample=_BILINEAR,
  ),
  "CLIPImageProcessor": _CLIP_DEFAULTS,
  "BitImageProcessor": _CLIP_DEFAULTS,
  "LlavaImageProcessor": _CLIP_DEFAULTS,
  # Its pinpoints and padding belong to the tiles (convert/llava.py).
  "LlavaOnevisionImageProcessor": dict(
    image_mean=_CLIP_MEAN,
    image_std=_CLIP_STD,
    size={"height": 384, "width": 384},
    resample=_BICUBIC,
    do_pad=False,
  ),
}
_TILED = ("LlavaOnevisionImageProcessor",)
_KNOWN = dict(do_resize=True, do_rescale=True, do_normalize=True, do_pad=False)


def read(
  c: config_lib.VisionConfig, model_type: str, preprocessor: Raw | None
) -> config_lib.VisionConfig:
  """A tower's config with its preprocessing.

  Args:
    c: the tower; `image_size` is that of its position table.
    model_type: of the tower.
    preprocessor: the parsed file; None takes what the family was trained with.

  Raises:
    ConversionError: it asks for pixels that we don't make; names the key.
  """
  if preprocessor is None:
    mean, std = _TRAINED[model_type]
    resize = "crop" if model_type == "clip_vision_model" else "square"
    resample = "bilinear" if c.max_patches else "bicubic"
    return dataclasses.replace(
      c, mean=mean, std=std, resize=resize, resample=resample
    )
  name, value = _with_defaults(preprocessor, model_type)
  _refuse_unknown_math(name, value)
  c = dataclasses.replace(
    c,
    mean=_three(value, "image_mean"),
    std=_three(value, "image_std"),
    resample=_resample(value),
  )
  if c.max_patches:
    return _naflex(c, name, value)
  return dataclasses.replace(c, **_size(name, value))


def write(c: config_lib.VisionConfig) -> dict[str, Any]:
  """The preprocessor_config.json that transformers makes our pixels with."""
  out = dict(
    do_convert_rgb=True,
    do_normalize=True,
    do_rescale=True,
    do_resize=True,
    image_mean=list(c.mean),
    image_std=list(c.std),
    resample={name: number for number, name in _RESAMPLE.items()}[c.resample],
    rescale_factor=1 / 255,
  )
  side = {"height": c.image_size, "width": c.image_size}
  if c.max_patches:
    return out | dict(
      image_processor_type="Siglip2ImageProcessor",
      patch_size=c.patch_size,
      max_num_patches=c.max_patches,
    )
  if c.resize == "crop":
    return out | dict(
      image_processor_type="CLIPImageProcessor",
      size={"shortest_edge": c.shorter_side or c.image_size},
      do_center_crop=True,
      crop_size=side,
    )
  return out | dict(image_processor_type="SiglipImageProcessor", size=side)


def square(value: Any, name: str) -> int:
  """The side of a square that is written as a number, a list or a table.

  Raises:
    ConversionError: it is none.
  """
  sides = value
  if isinstance(value, Mapping):
    sides = [value.get("height"), value.get("width")]
  if not isinstance(sides, Sequence):
    sides = [sides, sides]
  one = sides[0] if len(sides) == 2 and sides[0] == sides[1] else None
  if not isinstance(one, int) or isinstance(one, bool) or one < 1:
    raise errors.ConversionError(
      f"{name} = {value!r} is no square of whole pixels, and only squares are"
      " computed here"
    )
  return one


def _with_defaults(raw: Raw, model_type: str) -> tuple[str, dict[str, Any]]:
  given = {k: v for k, v in raw.items() if v is not None}
  name = given.get("image_processor_type", given.get("feature_extractor_type"))
  name = name or _OF_FAMILY[model_type]
  name = name.removesuffix("Fast").removesuffix("Pil")
  name = name.replace("FeatureExtractor", "ImageProcessor")
  if name not in _DEFAULTS:
    raise errors.ConversionError(
      f"{_FILE}: image_processor_type = {name!r} is not known here; known are"
      f" {', '.join(_DEFAULTS)}"
    )
  return name, _DEFAULTS[name] | given


def _refuse_unknown_math(name: str, value: Raw) -> None:
  for key, known in _KNOWN.items():
    if key == "do_pad" and name in _TILED:
      continue
    if (got := value.get(key, known)) != known:
      raise errors.ConversionError(
        f"{_FILE}: {key} = {got!r} is not computed here, {known} is; change it,"
        " or train with what we compute"
      )
  factor = value.get("rescale_factor", 1 / 255)
  if abs(factor * 255 - 1) > 1e-6:
    raise errors.ConversionError(
      f"{_FILE}: rescale_factor = {factor} is not computed here, 1/255 is;"
      " fold it into image_mean and image_std"
    )


def _resample(value: Raw) -> str:
  if (got := value["resample"]) not in _RESAMPLE:
    names = ", ".join(f"{n} ({name})" for n, name in _RESAMPLE.items())
    raise errors.ConversionError(
      f"{_FILE}: resample = {got} is not computed here, {names} are; change it"
      " if the difference is acceptable"
    )
  return _RESAMPLE[got]


def _three(value: Raw, key: str) -> tuple[float, ...]:
  numbers = value[key]
  if isinstance(numbers, int | float):
    numbers = [numbers] * 3
  if len(numbers) != 3:
    raise errors.ConversionError(
      f"{_FILE}: {key} = {numbers!r} must have three numbers, one a channel"
    )
  return tuple(map(float, numbers))


def _naflex(
  c: config_lib.VisionConfig, name: str, value: Raw
) -> config_lib.VisionConfig:
  if name != "Siglip2ImageProcessor":
    raise errors.ConversionError(
      f"{_FILE}: image_processor_type = {name!r} makes no patches, which this"
      " tower reads; take the file of its own checkpoint"
    )
  if value["patch_size"] != c.patch_size:
    raise errors.ConversionError(
      f"{_FILE}: patch_size = {value['patch_size']} is not that of config.json,"
      f" {c.patch_size}"
    )
  return dataclasses.replace(c, max_patches=value["max_num_patches"])


def _size(name: str, value: Raw) -> dict[str, Any]:
  """How a picture is fitted, and to which side, as fields of a config."""
  if "size" not in value:
    raise errors.ConversionError(
      f"{_FILE}: image_processor_type = {name!r} makes patches, and this tower"
      " reads squares; take the file of its own checkpoint"
    )
  size = value["size"]
  crop = None
  if value.get("do_center_crop"):
    crop = square(value.get("crop_size"), f"{_FILE}: crop_size")
  if isinstance(size, int) and "shortest_edge" in _DEFAULTS[name]["size"]:
    size = {"shortest_edge": size}  # as old files say it
  edge = size.get("shortest_edge") if isinstance(size, Mapping) else None
  side = square(size if edge is None else edge, f"{_FILE}: size")
  if edge is None and crop in (None, side):
    return dict(resize="square", image_size=side)
  if edge is not None and crop is not None and crop <= edge:
    shorter = 0 if crop == edge else edge
    return dict(resize="crop", image_size=crop, shorter_side=shorter)
  raise errors.ConversionError(
    f"{_FILE}: size = {value['size']} with crop_size = {crop or 'none'} is not"
    " computed here; a square without do_center_crop is, or a shortest_edge"
    " with a crop_size that is no larger"
  )
