"""A question with its images: how it is put to a model, and at what budget."""

import dataclasses
import numbers
import os
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from PIL import Image

from gaze_jax import config as config_lib
from gaze_jax import types
from gaze_jax.api import turns
from gaze_jax.data import images as images_lib
from gaze_jax.data import messages
from gaze_jax.data import packing
from gaze_jax.data import prompts
from gaze_jax.data import tokenizer as tokenizer_lib
from gaze_jax.data import units as units_lib
from gaze_jax.data import video as video_lib
from gaze_jax.decode import context as context_lib
from gaze_jax.decode import trace
from gaze_jax.layout import budgets
from gaze_jax.layout import row as row_lib
from gaze_jax.layout import tiles

Picture = images_lib.Picture
_ONE = (str, os.PathLike, bytes, Image.Image)  # and no list of pictures
# A file, or its frames; an array of them is uint8 [frames, height, width, 3].
Video = str | os.PathLike | Sequence[Picture] | np.ndarray

_ALL = 2**30  # a K above any number of regions
_KINDS = {prompts.IMAGE: messages.IMAGE, prompts.VIDEO: messages.VIDEO}
_SHOWN = 768  # pixels a side of what pictures of the gaze are made from


# What a model sees of an image or video, and what a person is shown of it.
_Seen = tuple[units_lib.Seen, tuple[trace.View, ...]]


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
    talk: the conversation with it.
    before: the context that it is read after; None for none.
  """

  batch: types.Batch
  views: tuple[trace.View, ...]
  regions: tuple[int, ...]
  talk: messages.Conversation
  before: context_lib.Context | None


def check(ask: Ask) -> None:
  """Refuses numbers that make no sense, before any work is done.

  Raises:
    AskError: naming the number.
  """
  if not ask.question.strip():
    raise turns.AskError("the question is empty")
  for name in ("top_k", "share", "max_tokens", "frames"):
    number, whole = getattr(ask, name), name != "share"
    kind = numbers.Integral if whole else numbers.Real
    if number is not None and (
      not isinstance(number, kind) or isinstance(number, bool)
    ):
      what = "a whole number" if whole else "a number"
      raise turns.AskError(f"{name} = {number!r}: give {what}")
  if ask.max_tokens < 1:
    raise turns.AskError(f"max_tokens = {ask.max_tokens}: ask for at least 1")
  if ask.top_k is not None and ask.share is not None:
    raise turns.AskError("give top_k or share, not both")
  if ask.top_k is not None and ask.top_k < 0:
    raise turns.AskError(f"top_k = {ask.top_k}: give 0 or more regions")
  if ask.share is not None and not 0 <= ask.share <= 1:
    raise turns.AskError(f"share = {ask.share}: give a share from 0 to 1")
  if ask.system is not None and ask.after is not None:
    raise turns.AskError(
      "a system text begins a conversation, and this one has begun: give it to"
      " the first question, or to Model.encode"
    )
  if any(not s for s in ask.stop):
    raise turns.AskError("a stop string is empty")


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
  """The beginning of a row that questions about images share.

  Raises:
    AskError: the chat template puts images behind a question.
  """
  seen = _see(config, images, videos, frames)
  kinds = [messages.IMAGE] * len(images) + [messages.VIDEO] * len(videos)
  shown = messages.Message(messages.USER, _shown(kinds, seen))
  talk = (*_system(system), shown)
  flat = tokenizer.chat.before_question(talk)
  places = [i for i, x in enumerate(flat) if isinstance(x, messages.Place)]
  if len(places) < len(seen):
    raise turns.AskError(
      "the chat template puts images behind the question, so they can't be read"
      " before it: give them with the question"
    )
  flat = flat[: places[-1] + 1] if places else flat
  return _prepared(
    config, flat, dict(zip(messages.places(talk), seen, strict=True)), talk
  )


def prepare(
  ask: Ask, config: config_lib.Config, tokenizer: tokenizer_lib.Tokenizer
) -> Prepared:
  """One question as the next turn of its context.

  The whole conversation is rendered, as the chat template has it now. What the
  context holds of it stays; text from where the two differ is read anew.

  Raises:
    AskError: more or fewer `<image>` or `<video>` than images and videos, or
      the template writes otherwise what stands before an image.
    images.ImageError: an image can't be used.
    video.VideoError: a video can't be used.
  """
  after, talk = ask.after, ask.after.talk if ask.after else ()
  if after and after.length and not talk:
    raise turns.AskError(
      "the context holds a prompt and no conversation, so a question can't"
      " follow it"
    )
  message = messages.marked(_marked(ask), _KINDS)
  kinds = [part.kind for part in message.parts if part.kind != messages.TEXT]
  given = {
    messages.IMAGE: _see(config, ask.images, (), ask.frames),
    messages.VIDEO: _see(config, (), ask.videos, ask.frames),
  }
  seen = [given[kind].pop(0) for kind in kinds]
  shown = iter(_shown(kinds, seen))
  parts = [p if p.kind == messages.TEXT else next(shown) for p in message.parts]
  first = 0
  if talk and talk[-1].role == messages.USER:  # images that were read already
    parts, first = [*talk[-1].parts, *parts], len(talk[-1].parts)
    talk = talk[:-1]
  message = messages.Message(messages.USER, tuple(parts))
  talk = (*_system(ask.system), *talk, message)
  new = [p for p in messages.places(talk[-1:]) if p.part >= first]
  new = [messages.Place(len(talk) - 1, p.part) for p in new]
  flat = tokenizer.chat.ask(talk)
  before, flat = turns.go_on(after, flat, talk, set(new))
  news = dict(zip(new, seen, strict=True))
  return _prepared(config, flat, news, talk, before)


def _system(text: str | None) -> messages.Conversation:
  return () if text is None else (messages.plain(messages.SYSTEM, text),)


def _shown(
  kinds: Sequence[str], seen: Sequence[_Seen]
) -> tuple[messages.Part, ...]:
  """Parts of a message, which know how many units they became."""
  return tuple(
    messages.Part(kind, units=len(one.units))
    for kind, (one, _) in zip(kinds, seen, strict=True)
  )


def _marked(ask: Ask) -> str:
  """The question with a mark for each image and video."""
  question = ask.question
  missing = ""
  given = {prompts.IMAGE: len(ask.images), prompts.VIDEO: len(ask.videos)}
  for mark, count in given.items():
    written = question.count(mark)
    if not written:
      missing += mark * count
    elif written != count:
      raise turns.AskError(
        f"the question names {written} {mark}, and {count} are given: give one"
        " for each, in order, or leave the marks out"
      )
  return missing + question


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
      raise turns.AskError(
        f"{name}: {type(some).__name__}; give a list of them"
      )
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
    raise turns.AskError(
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
    raise turns.AskError(
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
    regions = row_lib.region_map(unit.rows, unit.columns, model.gaze.region)
    if unit.feed is not None:  # newlines end the rows of tiles
      first = unit.feed.reshape(unit.tokens, -1)[: regions.size, 0]
      newline = first.reshape(regions.shape) == row_lib.NEWLINE
      regions = regions[:, ~newline.all(axis=0)]
    small = Image.fromarray(picture)
    small.thumbnail((_SHOWN, _SHOWN))
    out.append(trace.View(np.asarray(small), regions))
  return tuple(out)


def _prepared(
  config: config_lib.Config,
  flat: messages.Flat,
  new: Mapping[messages.Place, _Seen],
  talk: messages.Conversation,
  before: context_lib.Context | None = None,
) -> Prepared:
  """What a context reads: ids, and the images at their places among them."""
  seen = [new[x] for x in flat if isinstance(x, messages.Place)]
  parts = packing.parts_of(flat, [s.units for s, _ in seen])
  model = config.model
  request = prompts.Prompt(
    tuple(parts), units_lib.join([s.pixels for s, _ in seen], model)
  )
  region = model.gaze.region
  counts = [
    tiles.pages(u.rows, u.columns, u.tail, region)[0]
    for s, _ in seen
    for u in s.units
  ]
  starts = np.cumsum([0, *counts])
  views = [view for _, shown in seen for view in shown]
  return Prepared(
    batch=prompts.batch([request], model),
    views=tuple(
      trace.View(v.picture, v.regions + start)
      for v, start in zip(views, starts, strict=False)
    ),
    regions=tuple(counts),
    talk=talk,
    before=before,
  )
