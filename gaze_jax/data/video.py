"""Frames of a video file, evenly spaced in time."""

import bisect
import contextlib
import dataclasses
import math
import numbers
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import av
import numpy as np

from gaze_jax import errors
from gaze_jax import foreign
from gaze_jax.data import animation
from gaze_jax.data import images
from gaze_jax.data import truncation

# The formats that are opened. A playlist (hls, concat) could name any file or
# address, and ffmpeg reads even a text as the picture of a terminal.
_FORMATS = "mov,mp4,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg"
# Those with a reliable index of key frames.
_INDEXED = ("mov", "matroska")
# AVI has no times; those that ffmpeg computes are a frame off where frames are
# reordered. So frames are counted by decoding once more.
_UNTIMED = ("avi",)
# Limits on the work for one file: packets to list (8 hours with sound), and
# pixels to decode (6 hours at 1920 x 1080 and 25 a second).
_MOST_PACKETS, _MOST_PIXELS = 2**21, 2**40
_USUAL_RATE = 25  # frames a second, of a file that says nothing


@dataclasses.dataclass(frozen=True)
class Sampling:
  """Which frames are taken of a video: those in the middle of equal parts.

  The parts are of its time, so that a frame that is held is taken once for all
  parts that it fills. At a constant rate they are of its n frames as well:
  numbers (2 i + 1) n // (2 parts). A clip of fewer frames than parts gives all.

  Attributes:
    frames: parts, at least 1; with `fps` that many at most.
    fps: parts a second, rounded, and one at least; 0 for `frames` parts of a
      video of any length.
  """

  frames: int
  fps: float = 0.0

  def parts(self, count: int, seconds: float) -> int:
    """How many frames are taken of a video of so many, at a constant rate."""
    parts = self.frames
    if self.fps:
      parts = min(parts, max(math.floor(self.fps * seconds + 0.5), 1))
    return min(parts, count)

  def choose(self, times: Sequence[int], second: float) -> list[int]:
    """Numbers of the frames to take, of frames at some times.

    Args:
      times: ascending, of any unit.
      second: how many of the unit it has.
    """
    end = end_of(times)
    seconds = (end - times[0]) / second
    return centres(times, end, self.parts(len(times), seconds))


@dataclasses.dataclass(frozen=True)
class Facts:
  """A video as it is shown: frames, their size in pixels, and its length."""

  height: int
  width: int
  frames: int
  milliseconds: int


class VideoError(errors.GazeError):
  """A video that can't be read; the message names the file and the reason."""


class _SeekError(Exception):
  """The file ended before a frame, or a seek did not lead to it."""


def read(
  path: str | os.PathLike, frames: int | Sampling, max_pixels: int
) -> list[np.ndarray]:
  """Decodes some frames of a video.

  The file is listed without decoding it, then decoded from key frame to key
  frame, where the format has an index of them, and from its start elsewhere.
  Only the chosen frames are held. Rotation by quarters, as phones note it, is
  applied, and transparency laid over white; mirroring and the shape of pixels
  are not.

  Frames are counted; a header's number and duration are not believed. A file is
  truncated where a part of it, a frame or what holds frames, has fewer bytes
  than its own size says.

  Args:
    path: MP4, MOV, MKV, WebM, AVI, MPEG, FLV, WMV, OGG, or animated GIF, PNG,
      WebP or AVIF.
    frames: which; a number is that of a `Sampling`.
    max_pixels: of a frame; a larger one is refused before it is decoded.

  Returns:
    uint8 [height, width, 3] each, RGB, in the order they are shown.

  Raises:
    VideoError: the file is missing, no video, truncated or broken, its frames
      are too large, it is longer than some hours, or `frames` is below 1.
  """
  name = foreign.short(path)
  if not isinstance(frames, Sampling):
    if not isinstance(frames, numbers.Integral) or frames < 1:
      raise VideoError(
        f"{name}: {frames!r} frames are asked for: ask for a whole number, 1 or"
        " more"
      )
    frames = Sampling(int(frames))
  return chosen(path, frames.choose, max_pixels)


def facts(path: str | os.PathLike, max_pixels: int) -> Facts:
  """What a video is, found by decoding the frame in its middle.

  Args:
    path: as for `read`.
    max_pixels: as for `read`.

  Raises:
    VideoError: as `read`.
  """
  found = []

  def choose(times: Sequence[int], second: float) -> list[int]:
    milliseconds = round(1000 * (end_of(times) - times[0]) / second)
    found[:] = len(times), milliseconds
    return Sampling(1).choose(times, second)

  (frame,) = chosen(path, choose, max_pixels)
  return Facts(*frame.shape[:2], *found)


def chosen(
  path: str | os.PathLike,
  choose: Callable[[Sequence[int], float], list[int]],
  max_pixels: int,
) -> list[np.ndarray]:
  """Decodes the frames that are chosen by their times.

  Args:
    path: as for `read`.
    choose: as `Sampling.choose`: numbers of frames, ascending, each once.
    max_pixels: as for `read`.

  Returns:
    As `read`.

  Raises:
    VideoError: as `read`.
  """
  name = foreign.short(path)
  if not os.path.isfile(path):
    raise VideoError(f"{name}: {foreign.no_file(path)}")
  file = pathlib.Path(path)
  try:
    if kind := animation.kind_of(file):
      return animation.read(file, kind, choose, max_pixels)
    return _read(file, choose, max_pixels, name)
  except VideoError:
    raise
  except images.ImageError as error:
    raise VideoError(str(error)) from None
  except Exception as error:  # ffmpeg's errors are many, and of many kinds
    raise VideoError(
      f"{name}: broken video ({type(error).__name__}: {error})"
    ) from None


@contextlib.contextmanager
def as_file(content: bytes) -> Iterator[str]:
  """A path under which the bytes of a video can be read."""
  with tempfile.NamedTemporaryFile(prefix="gaze_jax_", suffix=".video") as file:
    file.write(content)
    file.flush()
    yield file.name


def centres(times: Sequence[int], end: int, parts: int) -> list[int]:
  """Numbers of the frames that are shown in the middle of equal parts of time.

  All of them when there are no more than `parts`.

  Args:
    times: of the frames, ascending, of any unit.
    end: of the last one.
    parts: how many.
  """
  if len(times) <= parts:
    return list(range(len(times)))
  begin = times[0]
  middles = [
    begin + (2 * i + 1) * (end - begin) // (2 * parts) for i in range(parts)
  ]
  shown = [bisect.bisect_right(times, at) - 1 for at in middles]
  return sorted(set(shown))


def end_of(times: Sequence[int]) -> int:
  """When the last frame ends: it is held as long as the others on average."""
  steps = len(times) - 1
  return times[-1] + (round((times[-1] - times[0]) / steps) if steps else 1)


def _read(
  file: pathlib.Path,
  choose: Callable[[Sequence[int], float], list[int]],
  max_pixels: int,
  name: str,
) -> list[np.ndarray]:
  """As `read`, of a file that is there."""

  @contextlib.contextmanager
  def start():
    with _open(file, name) as container:
      yield container, _stream(container, max_pixels, name)

  def decode(times, second, keys):
    wanted = [times[i] for i in choose(times, second)]
    timed = not isinstance(times, range)
    with start() as (container, stream):
      chosen = _frames_at(container, stream, wanted, timed, keys)
      return [_rgb(frame, max_pixels, name) for frame in chosen]

  with start() as (container, stream):
    kind = container.format.name.split(",")[0]
    if truncation.is_truncated(file, kind):
      raise VideoError(f"{name}: truncated: a part of it is missing")
    times, keys = _list_frames(container, stream, name)
    second = float(1 / stream.time_base) if stream.time_base else 1.0
    rate = float(stream.average_rate or _USUAL_RATE)
  if kind not in _UNTIMED and None not in times:
    for seekable in [sorted(keys), ()] if kind in _INDEXED else [()]:
      with contextlib.suppress(_SeekError):
        return decode(sorted(times), second, seekable)
  with start() as (container, stream):
    if not (count := sum(1 for _ in container.decode(stream))):
      raise VideoError(f"{name}: no frame in it that can be decoded")
  return decode(range(count), rate, ())


def _open(file: pathlib.Path, name: str) -> Any:
  options = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}
  try:
    # An absolute path, so that no part of it is read as a protocol.
    return av.open(str(file.resolve()), options=options)
  except av.FFmpegError as error:
    with open(file, "rb") as opened:
      if what := foreign.kind(opened.read(foreign.HEAD)):
        raise VideoError(f"{name}: {what}") from None
    raise VideoError(
      f"{name}: not a video, or a truncated one ({error.strerror}); these can"
      f" be read: {_FORMATS.replace(',', ', ')}, gif, png, webp, avif"
    ) from None


def _stream(container: Any, max_pixels: int, name: str) -> Any:
  """The stream of pictures, once its size is known to be in bounds."""
  cover = av.stream.Disposition.attached_pic
  streams = [s for s in container.streams.video if not s.disposition & cover]
  if not streams:
    raise VideoError(f"{name}: no video in it, only sound or other data")
  _check_size(streams[0].width, streams[0].height, max_pixels, name)
  # Frames may grow later on: the decoder, which counts whole blocks, has a
  # limit of its own.
  limit = 2 * max_pixels + 2**16
  streams[0].codec_context.options = {"max_pixels": str(limit)}
  streams[0].thread_type = "AUTO"
  return streams[0]


def _check_size(width: int, height: int, max_pixels: int, name: str) -> None:
  if width * height > max_pixels:
    raise VideoError(
      f"{name}: frames of {width} x {height} = {width * height} pixels, the"
      f" limit is {max_pixels} (data.max_pixels)"
    )


def _list_frames(
  container: Any, stream: Any, name: str
) -> tuple[list[int | None], list[int]]:
  """Times of the frames and of the key frames, as stored; nothing is decoded.

  A time is None where the file has none, or its times start over.
  """
  times, keys, before = [], [], -math.inf
  for i, packet in enumerate(container.demux()):
    if i == _MOST_PACKETS:
      raise VideoError(f"{name}: longer than the hours that are read: cut it")
    if not packet.size:
      continue
    # A broadcast has gaps: there, only what is chosen must be whole.
    if packet.is_corrupt and container.format.name != "mpegts":
      raise VideoError(f"{name}: truncated or broken video")
    if packet.stream is not stream or packet.is_discard:
      continue
    now = before if packet.dts is None else packet.dts
    times.append(packet.pts if now >= before else None)
    before = now
    if packet.is_keyframe:
      keys.append(packet.pts)
  if not times:
    raise VideoError(f"{name}: no frame in it")
  if len(times) * stream.width * stream.height > _MOST_PIXELS:
    raise VideoError(
      f"{name}: {len(times)} frames of {stream.width} x {stream.height} pixels"
      " are too much to decode: cut it"
    )
  return times, keys


def _frames_at(
  container: Any,
  stream: Any,
  wanted: Sequence[int],
  timed: bool,
  keys: Sequence[int],
) -> Iterator[Any]:
  """The frames shown at some times, or the next ones where there are none.

  Args:
    container: at its start.
    stream: of the container.
    wanted: times, ascending; or numbers of frames.
    timed: whether `wanted` are times.
    keys: times of the key frames that may be sought; () for none.

  Raises:
    _SeekError: it ended, or a seek failed or led past a frame.
  """
  decoded, at = enumerate(container.decode(stream)), -math.inf
  for time in wanted:
    key = keys[max(bisect.bisect_right(keys, time) - 1, 0)] if keys else at
    if has_sought := at < key <= time:
      try:
        container.seek(key, stream=stream)
      except av.FFmpegError:
        raise _SeekError from None
      decoded = enumerate(container.decode(stream))
    for number, frame in decoded:
      at = frame.pts if timed else number
      if at is not None and at >= time:
        break
      has_sought = False
    else:
      raise _SeekError
    if has_sought and at > time:
      raise _SeekError
    yield frame


def _rgb(frame: Any, max_pixels: int, name: str) -> np.ndarray:
  """uint8 [height, width, 3], upright."""
  _check_size(frame.width, frame.height, max_pixels, name)
  if frame.is_corrupt:
    raise VideoError(f"{name}: truncated or broken video")
  if any(part.is_alpha for part in frame.format.components):
    rgba = frame.to_ndarray(format="rgba").astype(np.uint16)
    colour, alpha = rgba[..., :3], rgba[..., 3:]
    array = (colour * alpha + 255 * (255 - alpha) + 127) // 255
    array = array.astype(np.uint8)
  else:
    array = frame.to_ndarray(format="rgb24")
  return np.ascontiguousarray(np.rot90(array, round(frame.rotation / 90)))
