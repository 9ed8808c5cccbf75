"""Pictures and videos of a request, decoded within its limits."""

from collections.abc import Sequence

import numpy as np

from gaze_jax.data import images
from gaze_jax.data import messages
from gaze_jax.data import video as video_lib
from gaze_jax.serve import chat_request
from gaze_jax.serve import failure

# Frames of a video's file: of one with few key frames all are decoded.
_MOST_IN_FILE = 20_000

# A picture, or the frames that were taken of a video: uint8 [h, w, 3] each.
Decoded = np.ndarray | list[np.ndarray]


def decode(
  media: Sequence[chat_request.Medium],
  *,
  pixels: int,
  each: int,
  sampling: video_lib.Sampling,
) -> list[Decoded]:
  """Decodes media, one for one.

  Args:
    media: as they were sent.
    pixels: of all of them together at most.
    each: of a picture or a frame at most.
    sampling: which frames are taken of a video.

  Raises:
    failure.Failure: one can't be read, or is too large; names its field.
  """
  out: list[Decoded] = []
  for medium in media:
    one, most = [], min(pixels, each)
    try:
      if medium.kind == messages.IMAGE:
        out.append(images.decode(medium.content, most, "the picture"))
        one = [out[-1]]
      else:
        one = _frames(medium.content, most, sampling)
        out.append(one)
    except (images.ImageError, video_lib.VideoError) as error:
      reason = str(error).removesuffix(" (data.max_pixels)")
      raise failure.of_field(
        medium.path, reason, f"invalid_{medium.kind}"
      ) from None
    pixels -= sum(x.shape[0] * x.shape[1] for x in one)
  return out


def _frames(
  content: bytes, most: int, sampling: video_lib.Sampling
) -> list[np.ndarray]:
  """Frames of a video; no error has the name of the file that it is put in."""

  def choose(times: Sequence[int], second: float) -> list[int]:
    if len(times) > _MOST_IN_FILE:
      raise video_lib.VideoError(
        f"the video has {len(times)} frames, the limit is {_MOST_IN_FILE}:"
        " cut it"
      )
    return sampling.choose(times, second)

  with video_lib.as_file(content) as path:
    try:
      return video_lib.chosen(path, choose, most // sampling.frames)
    except video_lib.VideoError as error:
      message = str(error).replace(path, "the video")
      raise video_lib.VideoError(message) from None
