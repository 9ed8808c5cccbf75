"""Items to requests, answers to predictions."""

import collections
import dataclasses
import functools
import itertools
import time
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from gaze_jax import api
from gaze_jax import errors
from gaze_jax.api import answer as answer_lib
from gaze_jax.api import request as request_lib
from gaze_jax.data import messages
from gaze_jax.data import skipped
from gaze_jax.data import video as video_lib
from gaze_jax.runtime import processes
from gaze_jax.tasks import media
from gaze_jax.tasks import subtitles
from gaze_jax.tasks import task as task_lib
from gaze_jax.tasks.predictions import Prediction

# Items of a cluster whose picture is read once, at least; and the share of the
# memory for keys and values that such contexts may take.
_LEAST_GROUP, _SHARE = 2, 4


@dataclasses.dataclass(frozen=True)
class Options:
  """How a model is asked, whatever the task.

  Attributes:
    top_k: as in `api.Request`.
    share: likewise.
    frames: of a video.
    batch_size: rows that are decoded together.
    regions: as in `api.Request`; those of an item are drawn by its name.
    blind: no picture and no video is shown.
  """

  top_k: int | None = None
  share: float | None = None
  frames: int = 32
  batch_size: int = 8
  regions: str = "scores"
  blind: bool = False


@dataclasses.dataclass(frozen=True)
class Shown:
  """What an item shows: pictures, or frames with their numbers and times."""

  images: tuple[np.ndarray, ...] = ()
  frames: tuple[np.ndarray, ...] = ()
  numbers: tuple[int, ...] = ()
  seconds: tuple[float, ...] = ()


def ask(
  model: Any,
  task: task_lib.Task,
  items: Iterable[task_lib.Item],
  options: Options,
) -> Iterator[Prediction]:
  """Asks a model; yields a prediction of each item as it is complete.

  What can't be asked, for a picture that can't be read or a prompt that is too
  long, has a prediction with an error.

  Args:
    model: an `api.Model`.
    task: of the items.
    items: that are asked.
    options: how.
  """
  asking = _Asking(model, task, options)
  began = time.perf_counter()
  answers = model.generate_as_completed(
    asking.requests(items),
    batch_size=options.batch_size,
    on_error=asking.refuse,
  )
  for number, answer in answers:
    yield from asking.failed()
    now = time.perf_counter()
    yield asking.prediction(number, answer, now - began)
    began = now
  yield from asking.failed()


class _Asking:
  """Requests in the making, and which item each answer is about."""

  def __init__(self, model: Any, task: task_lib.Task, options: Options):
    self._model, self._task, self._options = model, task, options
    self._open: dict[int, tuple[task_lib.Item, tuple[int, ...]]] = {}
    self._failed: collections.deque[Prediction] = collections.deque()
    # What the items of a cluster show, and the context that has read it.
    self._read: tuple[tuple[np.ndarray, ...], api.Context] | None
    self._read, self._shares = None, True
    limit = model.config.data.max_pixels
    self._clip = functools.lru_cache(maxsize=1)(
      lambda path: read_video(path, options.frames, limit)
    )

  def requests(
    self, items: Iterable[task_lib.Item]
  ) -> Iterator[request_lib.Request]:
    """What can be asked; the rest has failed."""
    number = 0
    for _, group in itertools.groupby(items, lambda item: item.cluster):
      self._read, some = None, list(group)
      for item in some:
        request, why = None, ""
        try:
          request, frames = self._request(item, len(some))
        except (skipped.SkipError, errors.GazeError) as error:
          why = _reason(error)
        _agree(item, why)
        if request is None:
          self._fail(item, why)
          continue
        self._open[number] = item, frames
        number += 1
        yield request

  def refuse(self, number: int, error: errors.GazeError) -> None:
    """Takes the request of a number as one that can't be asked."""
    self._fail(self._open.pop(number)[0], _reason(error))

  def failed(self) -> Iterator[Prediction]:
    """Predictions of what could not be asked since the last call."""
    while self._failed:
      yield self._failed.popleft()

  def prediction(
    self, number: int, answer: answer_lib.Answer, seconds: float
  ) -> Prediction:
    """The answer to the request of a number, as a prediction."""
    item, frames = self._open.pop(number)
    context = answer.context
    own = context.context_tokens(self._model.config.model.gaze)
    return Prediction(
      id=item.id,
      place=item.place,
      prompt=answer.question,
      text=answer.text,
      tokens=len(answer.tokens),
      per_query_head=answer.entries[0] + own,
      unique_per_kv_head=answer.entries[1] + own,
      dense=context.visual_tokens,
      frames=frames,
      seconds=seconds,
    )

  def _fail(self, item: task_lib.Item, why: str) -> None:
    prompt = task_lib.prompt_of(self._task, item)
    self._failed.append(
      Prediction(id=item.id, place=item.place, prompt=prompt, error=why)
    )

  def _request(
    self, item: task_lib.Item, group: int
  ) -> tuple[request_lib.Request, tuple[int, ...]]:
    """A request for an item, one of so many that may show the same."""
    shown, fields = self._shown(item), item.fields
    if item.subtitles:
      said = subtitles.at(item.subtitles, shown.seconds)
      fields = fields | {"subtitles": said}
    question = self._task.prompt(fields)
    marks = sum(question.count(mark) for mark in messages.MARKED)
    if marks and marks != len(item.images):
      raise skipped.SkipError(
        "literal mark", f"its text has {marks} of <image> or <video>"
      )
    if self._options.blind:
      for mark in messages.MARKED:
        question = question.replace(mark, "")
    read = None if marks else self._read_once(shown, group)
    request = request_lib.Request(
      question,
      after=read,
      images=() if read else shown.images,
      videos=[shown.frames] if shown.frames and not read else (),
      top_k=self._options.top_k,
      share=self._options.share,
      regions=self._options.regions,
      seed=zlib.crc32(item.id.encode("utf-8", "replace")),
      system=None if read else self._task.system,
      begins=self._task.begins,
      max_tokens=self._task.max_tokens,
    )
    return request, shown.numbers

  def _read_once(self, shown: Shown, group: int) -> api.Context | None:
    """What several items show, read once for all of them; None if not so."""
    pixels = (*shown.images, *shown.frames)
    if not self._shares or group < _LEAST_GROUP or not pixels:
      return None
    if self._read is not None:
      before, context = self._read
      same = len(before) == len(pixels) and all(
        map(np.array_equal, before, pixels)
      )
      return context if same else None
    try:
      context = self._model.encode(
        images=shown.images,
        videos=[shown.frames] if shown.frames else (),
        system=self._task.system,
      )
    except request_lib.RequestError:  # the template has pictures elsewhere
      self._shares = False
      return None
    # Of requests that are taken ahead, each group holds one.
    held = 2 * self._options.batch_size // group + 2
    if held * context.nbytes > self._model.most_cache_bytes // _SHARE:
      self._shares = False
      return None
    self._read = pixels, context
    return context

  def _shown(self, item: task_lib.Item) -> Shown:
    limit = self._model.config.data.max_pixels
    if self._options.blind and not item.subtitles:
      return Shown()
    if item.video is None:
      return Shown(
        images=tuple(media.picture(one, limit) for one in item.images)
      )
    shown = self._clip(item.video.source())
    return Shown(seconds=shown.seconds) if self._options.blind else shown


def _reason(error: Exception) -> str:
  return skipped.one_line(f"{getattr(error, 'reason', 'refused')}: {error}")


def _agree(item: task_lib.Item, why: str) -> None:
  """Sees that all processes can ask an item, or none.

  Raises:
    errors.GazeError: this one and process 0 differ.
  """
  first = processes.share(why) or ""
  if bool(first) != bool(why):
    raise errors.GazeError(
      f"item {item.id!r}: {why or 'it is read here'}, and on process 0"
      f" {first or 'it is read'}: all hosts must have the same files"
    )


def read_video(path: str, count: int, max_pixels: int) -> Shown:
  """Frames `linspace(0, N - 1, count)` of a video's N, each once."""
  found: dict[str, tuple] = {}

  def choose(times: Any, second: float) -> list[int]:
    places = np.linspace(0, len(times) - 1, count).astype(int)
    numbers = sorted(set(places.tolist()))
    found["numbers"] = tuple(numbers)
    found["seconds"] = tuple((times[i] - times[0]) / second for i in numbers)
    return numbers

  frames = video_lib.chosen(path, choose, max_pixels)
  return Shown(frames=tuple(frames), **found)
