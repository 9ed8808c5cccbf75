"""How much a client may ask for."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Limits:
  """Of a request, and of requests together.

  Attributes:
    body_bytes: of a request's body.
    images: pictures and videos of a conversation.
    pixels: of all its pictures and the frames taken of its videos.
    frames: taken of a video.
    tokens: of an answer.
    waiting: requests that may wait, beside those that have a row.
    seconds: that a request may take, from its head to the end of the answer.
  """

  body_bytes: int = 32 * 2**20
  images: int = 16
  pixels: int = 2**26
  frames: int = 32
  tokens: int = 1024
  waiting: int = 64
  seconds: int | float = 300

  @property
  def default_tokens(self) -> int:
    """Of an answer, where a request doesn't say."""
    return min(256, self.tokens)
