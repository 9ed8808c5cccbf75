"""What an image processor of transformers does to pixels, by its JSON.

What it asks for is done, or refused by name; a key that its class does not know
is ignored there too.
"""

import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from gaze_jax import config as config_lib
from gaze_jax import json_file
from gaze_jax.weights import errors

Raw = Mapping[str, Any]

# Of the whole processor, in transformers 5, and of its image processor alone.
NESTED, ALONE = "processor_config.json", "preprocessor_config.json"
VIDEO = "video_preprocessor_config.json"  # of its video processor alone
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
  # Its pinpoints and padding belong to the tiles (weights/families/llava.py).
  "LlavaOnevisionImageProcessor": dict(
    image_mean=_CLIP_MEAN,
    image_std=_CLIP_STD,
    size={"height": 384, "width": 384},
    resample=_BICUBIC,
    do_pad=False,
  ),
}
_TILED = ("LlavaOnevisionImageProcessor",)
# Transparency is laid over white and grey made RGB in any case, so
# do_convert_rgb changes nothing.
_KNOWN = dict(do_resize=True, do_pad=False, use_square_size=False)
# What folds into mean and std, but for the padding between tiles.
_AFFINE = dict(do_rescale=True, rescale_factor=1 / 255, do_normalize=True)


class PixelsError(errors.ConversionError):
  """An image processor that makes other pixels than ours; names the key."""


def find(directory: pathlib.Path) -> tuple[str, dict[str, Any]] | None:
  """The image processor of a checkpoint: its file, and its JSON there.

  As in transformers that of processor_config.json goes first, where it is
  there; None where neither file has one.

  Raises:
    ConversionError: a file can't be read.
  """
  inner = _read(directory / NESTED).get("image_processor")
  if isinstance(inner, dict):
    return NESTED, inner
  if inner is not None:
    raise errors.ConversionError(
      f"{directory / NESTED}: image_processor is not a JSON object"
    )
  if (directory / ALONE).exists():
    return ALONE, _read(directory / ALONE)
  return None


def _read(file: pathlib.Path) -> dict[str, Any]:
  return json_file.read(file, errors.ConversionError) if file.exists() else {}


def read(
  c: config_lib.VisionConfig, model_type: str, preprocessor: Raw | None
) -> config_lib.VisionConfig:
  """A tower's config with its preprocessing.

  Args:
    c: the tower; `image_size` is that of its position table.
    model_type: of the tower.
    preprocessor: as `find` gives it; None takes what the family was trained
      with.

  Raises:
    PixelsError: it asks for pixels that we don't make; names the key.
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
  mean, std = _mean_and_std(name, value)
  c = dataclasses.replace(c, mean=mean, std=std, resample=_resample(value))
  if c.max_patches:
    return _naflex(c, name, value)
  return dataclasses.replace(c, **_size(name, value))


def other_for_videos(
  directory: pathlib.Path, c: config_lib.VisionConfig
) -> list[str]:
  """What a video processor asks for that frames don't get here.

  They are fitted and normalised as pictures are; each difference is a line.

  Raises:
    ConversionError: a file can't be read.
  """
  raw = _read(directory / NESTED).get("video_processor")
  if raw is None:
    raw = _read(directory / VIDEO)
  if not raw or not isinstance(raw, dict):
    return []
  keys = ("image_mean", "image_std", "resample", "size", *_AFFINE)
  given = {k: raw[k] for k in keys if raw.get(k) is not None}
  tiled = {"image_processor_type": _TILED[0]}
  try:
    frames = read(c, "siglip_vision_model", write(c) | tiled | given)
  except PixelsError as error:
    return [str(error)]
  return [
    f"{name} = {getattr(frames, name)} for a video, {getattr(c, name)} for a"
    " picture"
    for name in ("image_size", "resample", "mean", "std")
    if getattr(frames, name) != getattr(c, name)
  ]


def with_type(preprocessor: Raw, name: str) -> dict[str, Any]:
  """An image processor of this class, if it does not name its own."""
  named = _name(preprocessor)
  return dict(preprocessor) | ({} if named else {"image_processor_type": name})


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
    PixelsError: it is none.
  """
  sides = value
  if isinstance(value, Mapping):
    other = value.keys() - {"height", "width"}
    sides = None if other else [value.get("height"), value.get("width")]
  if not isinstance(sides, Sequence):
    sides = [sides, sides]
  one = sides[0] if len(sides) == 2 and sides[0] == sides[1] else None
  if not isinstance(one, int) or isinstance(one, bool) or one < 1:
    raise PixelsError(
      f"{name} = {value!r} is no square of whole pixels, and only squares are"
      " computed here"
    )
  return one


def _name(raw: Raw) -> Any:
  return raw.get("image_processor_type") or raw.get("feature_extractor_type")


def _with_defaults(raw: Raw, model_type: str) -> tuple[str, dict[str, Any]]:
  given = {k: v for k, v in raw.items() if v is not None}
  name = str(_name(raw) or _OF_FAMILY[model_type])
  name = name.removesuffix("Fast").removesuffix("Pil")
  name = name.replace("FeatureExtractor", "ImageProcessor")
  if name not in _DEFAULTS:
    raise PixelsError(
      f"image_processor_type = {name!r} is not known here; known are"
      f" {', '.join(_DEFAULTS)}"
    )
  return name, _DEFAULTS[name] | given


def _refuse_unknown_math(name: str, value: Raw) -> None:
  known = _KNOWN
  if name in _TILED:  # whose padding evens a batch, and changes no pixel
    known = {k: v for k, v in _KNOWN.items() if k != "do_pad"} | _AFFINE
  for key, wanted in known.items():
    got = value.get(key, wanted)
    close = _number(got) and math.isclose(got, wanted, rel_tol=1e-6)
    if got != wanted and not close:
      raise PixelsError(
        f"{key} = {got!r} is not computed here, {wanted} is; change it, or"
        " train with what we compute"
      )


def _mean_and_std(
  name: str, value: Raw
) -> tuple[tuple[float, ...], tuple[float, ...]]:
  """Of pixels from 0 to 1; another scale, or none, folds into them."""
  scale = 1 / 255
  if not value.get("do_rescale", True):
    scale = 1.0
  elif name not in _TILED and "rescale_factor" in value:
    scale = value["rescale_factor"]
  if not _number(scale) or scale <= 0:
    raise PixelsError(f"rescale_factor = {scale!r} is no number above 0")
  mean, std = (0.0,) * 3, (1.0,) * 3
  if value.get("do_normalize", True):
    mean, std = _three(value, "image_mean"), _three(value, "image_std")
  if min(std) <= 0:
    raise PixelsError(f"image_std = {value['image_std']!r} is not above 0")
  if math.isclose(scale, 1 / 255, rel_tol=1e-6):
    return mean, std
  fold = lambda numbers: tuple(x / (255 * scale) for x in numbers)
  return fold(mean), fold(std)


def _number(value: Any) -> bool:
  plain = isinstance(value, int | float) and not isinstance(value, bool)
  return plain and math.isfinite(value)


def _resample(value: Raw) -> str:
  got = value["resample"]
  if not _number(got) or got not in _RESAMPLE:
    names = ", ".join(f"{n} ({name})" for n, name in _RESAMPLE.items())
    raise PixelsError(
      f"resample = {got!r} is not computed here, {names} are; change it"
      " if the difference is acceptable"
    )
  return _RESAMPLE[got]


def _three(value: Raw, key: str) -> tuple[float, ...]:
  given = numbers = value[key]
  if _number(numbers):
    numbers = [numbers] * 3
  if (
    not isinstance(numbers, list | tuple)
    or len(numbers) != 3
    or not all(map(_number, numbers))
  ):
    raise PixelsError(
      f"{key} = {given!r} must have three numbers, one a channel"
    )
  return tuple(map(float, numbers))


def _naflex(
  c: config_lib.VisionConfig, name: str, value: Raw
) -> config_lib.VisionConfig:
  if name != "Siglip2ImageProcessor":
    raise PixelsError(
      f"image_processor_type = {name!r} makes no patches, which this"
      " tower reads; take the file of its own checkpoint"
    )
  if value["patch_size"] != c.patch_size:
    raise PixelsError(
      f"patch_size = {value['patch_size']} is not that of config.json,"
      f" {c.patch_size}"
    )
  return dataclasses.replace(c, max_patches=value["max_num_patches"])


def _size(name: str, value: Raw) -> dict[str, Any]:
  """How a picture is fitted, and to which side, as fields of a config."""
  if "size" not in value:
    raise PixelsError(
      f"image_processor_type = {name!r} makes patches, and this tower"
      " reads squares; take the file of its own checkpoint"
    )
  size, crop = value["size"], None
  if value.get("do_center_crop"):
    crop = square(value.get("crop_size"), "crop_size")
  if isinstance(size, int):
    size = {"shortest_edge": size}  # as old files have it
  if isinstance(size, Mapping):
    size = {k: v for k, v in size.items() if v is not None}
  edge = None
  if isinstance(size, Mapping) and set(size) == {"shortest_edge"}:
    edge = square(size["shortest_edge"], "size: shortest_edge")
  side = edge or square(size, "size")
  if name in _TILED:  # the base picture and the tiles, all of them squares
    tile = value.get("crop_size")
    if square(side if tile is None else tile, "crop_size") == side:
      return dict(resize="square", image_size=side)
  elif edge is None and crop in (None, side):
    return dict(resize="square", image_size=side)
  elif edge is not None and crop is not None and crop <= edge:
    shorter = 0 if crop == edge else edge
    return dict(resize="crop", image_size=crop, shorter_side=shorter)
  raise PixelsError(
    f"size = {value['size']} with crop_size = {crop or 'none'} is not computed"
    " here; a square without do_center_crop is, or a shortest_edge with a"
    " crop_size that is no larger"
  )
