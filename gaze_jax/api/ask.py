"""A question with its images: how it is put to a model, and at what budget."""

import dataclasses
import itertools
import numbers
import os
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image

from gaze_jax import budgets
from gaze_jax import config as config_lib
from gaze_jax import errors
from gaze_jax import layout
from gaze_jax import tiling
from gaze_jax import types
from gaze_jax.data import images as images_lib
from gaze_jax.data import packing
from gaze_jax.data import requests
from gaze_jax.data import tokenizer as tokenizer_lib
from gaze_jax.data import units as units_lib
from gaze_jax.data import video as video_lib
from gaze_jax.decode import context as context_lib
from gaze_jax.decode import trace

Picture = images_lib.Picture
_ONE = (str, os.PathLike, bytes, Image.Image)  # and no list of pictures
# A file, or its frames; an array of them is uint8 [frames, height, width, 3].
Video = str | os.PathLike | Sequence[Picture] | np.ndarray

_ALL = 2**30  # a K above any number of regions
_SHOWN = 768  # pixels a side of what pictures of the gaze are made from


class AskError(errors.GazeError):
  """A question that can't be asked; the message says what to change."""


@dataclasses.dataclass(frozen=True)
class Ask:
  """One question, and how it is to be answered.

  Attributes:
    question: its text. Where `<image>` is written, one of `images` stands, and
      a video where `<video>` is; what is written nowhere comes first.
    after: what was read before: images of `Model.encode_image`, or the context
      of an earlier answer; None to begin.
    system: takes the place of the chat format's own system text at the start
      of a conversation; None to leave that as it is.
    images: pictures that the question brings along.
    videos: files, or the frames of each.
    frames: how many frames are taken of a video file.
    top_k: K regions, or with a budget per unit K for each; None for the budget
      that was trained. A K above all regions reads them all, and 0 reads
      context tokens alone.
    share: the share of the regions to read, 0 to 1, in place of `top_k`.
    max_tokens: at most so many tokens.
    stop: strings that end the answer where they appear; they are cut off.
    temperature: 0 is greedy.
    top_p: as in `sampling.make`, as are the next two.
    sample_top_k: likeliest tokens to sample from; 0 for all.
    seed: of the row; the same seed says the same.
  """

  question: str
  after: context_lib.Context | None = None
  system: str | None = None
  images: Sequence[Picture] = ()
  videos: Sequence[Video] = ()
  frames: int = 8
  top_k: int | None = None
  share: float | None = None
  max_tokens: int = 64
  stop: Sequence[str] = ()
  temperature: float = 0.0
  top_p: float = 1.0
  sample_top_k: int = 0
  seed: int = 0


@dataclasses.dataclass(frozen=True)
class Prepared:
  """What a context reads next.

  Attributes:
    batch: `Batch` of one row.
    views: what its units show, in the batch's own numbers of regions.
    regions: of each unit, how many it has.
  """

  batch: types.Batch
  views: tuple[trace.View, ...]
  regions: tuple[int, ...]


def check(ask: Ask) -> None:
  """Refuses numbers that make no sense, before any work is done.

  Raises:
    AskError: naming the number.
  """
  if not ask.question.strip():
    raise AskError("the question is empty")
  for name in ("top_k", "share", "max_tokens", "frames"):
    number, whole = getattr(ask, name), name != "share"
    kind = numbers.Integral if whole else numbers.Real
    if number is not None and (
      not isinstance(number, kind) or isinstance(number, bool)
    ):
      what = "a whole number" if whole else "a number"
      raise AskError(f"{name} = {number!r}: give {what}")
  if ask.max_tokens < 1:
    raise AskError(f"max_tokens = {ask.max_tokens}: ask for at least 1")
  if ask.top_k is not None and ask.share is not None:
    raise AskError("give top_k or share, not both")
  if ask.top_k is not None and ask.top_k < 0:
    raise AskError(f"top_k = {ask.top_k}: give 0 or more regions")
  if ask.share is not None and not 0 <= ask.share <= 1:
    raise AskError(f"share = {ask.share}: give a share from 0 to 1")
  if ask.system is not None and ask.after is not None:
    raise AskError(
      "a system text begins a conversation, and this one has begun: give it to"
      " the first question, or to Model.encode"
    )
  if any(not s for s in ask.stop):
    raise AskError("a stop string is empty")


def budget(ask: Ask, config: config_lib.Config, regions: Sequence[int]) -> int:
  """K of a question, in the unit of `model.gaze.budget`.

  Args:
    ask: for `top_k` or `share`.
    config: of the model.
    regions: of each unit of the whole row, in reading order.
  """
  gaze = config.model.gaze
  if ask.top_k is not None:
    return budgets.of_count(gaze, min(ask.top_k, _ALL), regions)
  if ask.share is not None:
    return budgets.of_share(gaze, ask.share, regions)
  return budgets.of_config(config)[1]


def prepare_units(
  config: config_lib.Config,
  tokenizer: tokenizer_lib.Tokenizer,
  images: Sequence[Picture],
  videos: Sequence[Video],
  frames: int,
  system: str | None = None,
) -> Prepared:
  """The beginning of a row that questions about images share."""
  seen = _see(config, images, videos, frames)
  parts = [layout.Text(tokenizer.start(system))]
  parts += itertools.chain(*(s.units for s, _ in seen))
  return _prepared(config, parts, seen)


def prepare(
  ask: Ask, config: config_lib.Config, tokenizer: tokenizer_lib.Tokenizer
) -> Prepared:
  """One question as the next turn of its context.

  Raises:
    AskError: more or fewer `<image>` or `<video>` than images and videos.
    images.ImageError: an image can't be used.
    video.VideoError: a video can't be used.
  """
  chat, after = tokenizer.chat, ask.after
  question = _marked(ask)
  images, videos = (
    _see(config, some, more, ask.frames)
    for some, more in ((ask.images, ()), ((), ask.videos))
  )
  seen, groups = [], []
  for mark in _marks(question):
    one = (images if mark == requests.IMAGE else videos).pop(0)
    seen.append(one)
    groups.append(one[0].units)
  question = question.replace(requests.VIDEO, tokenizer_lib.IMAGE)
  parts: list[layout.Text | layout.Unit] = []
  turns = 0
  if after is None:
    parts.append(layout.Text(tokenizer.start(ask.system)))
  elif after.turns:
    turns = after.turns
    said = after.pending[-1:] == chat.after[:1]
    parts.append(layout.Text(chat.after[1:] if said else chat.after))
  elif after.units:  # they stand before the question, and were read already
    question, groups = tokenizer_lib.IMAGE + question, [(), *groups]
  parts += packing.turn(tokenizer, question, images=groups, number=turns)
  return _prepared(config, [p for p in parts if _any(p)], seen)


def _any(part: layout.Text | layout.Unit) -> bool:
  return isinstance(part, layout.Unit) or bool(len(part.ids))


def _marked(ask: Ask) -> str:
  """The question with a mark for each image and video."""
  question = ask.question
  missing = ""
  given = {requests.IMAGE: len(ask.images), requests.VIDEO: len(ask.videos)}
  for mark, count in given.items():
    written = question.count(mark)
    if not written:
      missing += mark * count
    elif written != count:
      raise AskError(
        f"the question names {written} {mark}, and {count} are given: give one"
        " for each, in order, or leave the marks out"
      )
  return missing + question


def _marks(question: str) -> list[str]:
  out, at = [], 0
  while True:
    found = [
      (place, mark)
      for mark in (requests.IMAGE, requests.VIDEO)
      if (place := question.find(mark, at)) >= 0
    ]
    if not found:
      return out
    at, mark = min(found)
    at += len(mark)
    out.append(mark)


# What a model sees of an image or video, and what a person is shown of it.
_Seen = tuple[units_lib.Seen, tuple[trace.View, ...]]


def _see(
  config: config_lib.Config,
  images: Sequence[Picture],
  videos: Sequence[Video],
  frames: int,
) -> list[_Seen]:
  """Images, then videos."""
  limit, model = config.data.max_pixels, config.model
  for name, some in dict(images=images, videos=videos).items():
    if isinstance(some, _ONE):
      raise AskError(f"{name}: {type(some).__name__}; give a list of them")
  arrays = [
    _array(picture, limit, f"image {i}") for i, picture in enumerate(images, 1)
  ]
  out = []
  for array, seen in zip(
    arrays, units_lib.of_images(arrays, model), strict=True
  ):
    alone = len(arrays) == 1
    out.append((seen, _views([array] * len(seen.units), seen, model, alone)))
  for i, video in enumerate(videos, 1):
    shots = _shots(video, frames, limit, f"video {i}")
    seen = units_lib.of_video(shots, model)
    out.append((seen, _views(shots, seen, model, True)))
  return out


def _array(
  picture: Picture, max_pixels: int, name: str = "image"
) -> np.ndarray:
  """uint8 [height, width, 3] of a picture; `name` is what errors call it."""
  if not isinstance(picture, Picture):
    raise AskError(
      f"{name}: {type(picture).__name__}; give a file, its bytes, an image of"
      " PIL, or a numpy array of uint8 [height, width, 3]"
    )
  return images_lib.decode(picture, max_pixels, name)


def _shots(
  video: Video, frames: int, max_pixels: int, name: str
) -> list[np.ndarray]:
  """Frames of a video, as `_array` gives them."""
  if isinstance(video, (str, os.PathLike)):
    return video_lib.read(video, frames, max_pixels)
  if isinstance(video, _ONE) or not isinstance(video, Iterable):
    raise AskError(
      f"{name}: {type(video).__name__}; give a file, or a list of frames"
    )
  return [
    _array(frame, max_pixels, f"{name}, frame {i}")
    for i, frame in enumerate(video, 1)
  ]


def _views(
  pictures: Sequence[np.ndarray],
  seen: units_lib.Seen,
  model: config_lib.ModelConfig,
  whole: bool,
) -> tuple[trace.View, ...]:
  """What each unit shows: the picture, or the square that was made of it."""
  vision, out = model.vision, []
  tiled = model.tiling.kind == "anyres"
  for number, (picture, unit) in enumerate(
    zip(pictures, seen.units, strict=True)
  ):
    if vision.resize == "crop" or (tiled and not whole):
      square = seen.pixels[number] * np.array(vision.std) + vision.mean
      picture = (255 * square).round().clip(0, 255).astype(np.uint8)
    regions = layout.region_map(unit.rows, unit.columns, model.gaze.region)
    if unit.feed is not None:  # newlines end the rows of tiles
      first = unit.feed.reshape(unit.tokens, -1)[: regions.size, 0]
      newline = first.reshape(regions.shape) == layout.NEWLINE
      regions = regions[:, ~newline.all(axis=0)]
    small = Image.fromarray(picture)
    small.thumbnail((_SHOWN, _SHOWN))
    out.append(trace.View(np.asarray(small), regions))
  return tuple(out)


def _prepared(
  config: config_lib.Config,
  parts: Sequence[layout.Text | layout.Unit],
  seen: Sequence[_Seen],
) -> Prepared:
  model = config.model
  request = requests.Request(
    tuple(parts), units_lib.join([s.pixels for s, _ in seen], model)
  )
  region = model.gaze.region
  counts = [
    tiling.pages(u.rows, u.columns, u.tail, region)[0]
    for s, _ in seen
    for u in s.units
  ]
  starts = np.cumsum([0, *counts])
  views = [view for _, shown in seen for view in shown]
  return Prepared(
    batch=requests.batch([request], model),
    views=tuple(
      trace.View(v.picture, v.regions + start)
      for v, start in zip(views, starts, strict=False)
    ),
    regions=tuple(counts),
  )
