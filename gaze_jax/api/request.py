"""A question, and how it is to be answered."""

import dataclasses
import numbers
from collections.abc import Sequence

import numpy as np

from gaze_jax import config as config_lib
from gaze_jax import errors
from gaze_jax.api import media
from gaze_jax.data import images as images_lib
from gaze_jax.data import messages
from gaze_jax.decode import context as context_lib
from gaze_jax.layout import budgets

_REGIONS = ("scores", "random")
_ALL = 2**30  # a K above any number of regions


class RequestError(errors.GazeError):
  """A question that can't be asked; the message says what to change."""


@dataclasses.dataclass(frozen=True)
class Request:
  """One question, and how it is to be answered.

  Attributes:
    question: its text. Where `<image>` is written, one of `images` stands, and
      a video where `<video>` is; what is written nowhere comes first.
    after: what was read before: images of `Model.encode_image`, or the context
      of an earlier answer; None to begin.
    talk: the whole conversation in place of the question and of what was read
      before, as messages; images and videos are those of its parts, in order.
      It may begin with a system text, and ends with what the user says.
    system: takes the place of the chat format's own system text at the start
      of a conversation; None to leave that as it is.
    images: pictures that the question brings along.
    videos: files, or the frames of each.
    frames: how many frames are taken of a video file.
    top_k: K regions, or with a budget per unit K for each; None for the budget
      that was trained. A K above all regions reads them all, and 0 reads
      context tokens alone.
    share: the share of the regions to read, 0 to 1, in place of `top_k`.
    regions: "scores" reads those that score highest; "random" as many that
      are drawn for each query head, the same at every token: a control.
    begins: what the answer begins with, as if the model had said so; it goes
      on from there, and its text is what follows.
    max_tokens: at most so many tokens.
    stop: strings that end the answer where they appear; they are cut off.
    temperature: 0 is greedy; this and the next three as in `sampling.make`.
    top_p: share of probability to sample from.
    sample_top_k: likeliest tokens to sample from; 0 for all.
    seed: of the row, and of its random regions; the same seed gives the same
      answer.
  """

  question: str
  after: context_lib.Context | None = None
  talk: messages.Conversation = ()
  system: str | None = None
  images: Sequence[images_lib.Picture] = ()
  videos: Sequence[media.Video] = ()
  frames: int = 8
  top_k: int | None = None
  share: float | None = None
  regions: str = "scores"
  begins: str = ""
  max_tokens: int = 64
  stop: Sequence[str] = ()
  temperature: float = 0.0
  top_p: float = 1.0
  sample_top_k: int = 0
  seed: int = 0

  @property
  def asked(self) -> str:
    """The text of the question, wherever it was given."""
    parts = self.talk[-1].parts if self.talk else ()
    said = (part.text for part in parts if part.kind in messages.TEXTS)
    return self.question or "".join(said)

  def check(self) -> None:
    """Refuses numbers that make no sense, before any work is done.

    Raises:
      RequestError: naming the number.
    """
    if self.talk:
      self._check_talk()
    elif not self.question.strip():
      raise RequestError("the question is empty")
    for name in ("top_k", "share", "max_tokens", "frames"):
      number, whole = getattr(self, name), name != "share"
      kind = numbers.Integral if whole else numbers.Real
      if number is not None and (
        not isinstance(number, kind) or isinstance(number, bool)
      ):
        what = "a whole number" if whole else "a number"
        raise RequestError(f"{name} = {number!r}: give {what}")
    if self.max_tokens < 1:
      raise RequestError(f"max_tokens = {self.max_tokens}: ask for at least 1")
    if self.top_k is not None and self.share is not None:
      raise RequestError("give top_k or share, not both")
    if self.top_k is not None and self.top_k < 0:
      raise RequestError(f"top_k = {self.top_k}: give 0 or more regions")
    if self.share is not None and not 0 <= self.share <= 1:
      raise RequestError(f"share = {self.share}: give a share from 0 to 1")
    if self.system is not None and self.after is not None:
      raise RequestError(
        "a system text begins a conversation, and this one has begun: give it"
        " to the first question, or to Model.encode"
      )
    if self.regions not in _REGIONS:
      raise RequestError(
        f"regions = {self.regions!r}: give {' or '.join(_REGIONS)}"
      )
    if any(not s for s in self.stop):
      raise RequestError("a stop string is empty")

  def _check_talk(self) -> None:
    if self.question or self.after is not None or self.system is not None:
      raise RequestError(
        "talk is the whole conversation: give no question, no context and no"
        " system text beside it"
      )
    if self.talk[-1].role != messages.USER:
      raise RequestError(
        "talk ends with what the user says, and here it does not"
      )
    kinds = [part.kind for message in self.talk for part in message.parts]
    given = {messages.IMAGE: self.images, messages.VIDEO: self.videos}
    for kind, some in given.items():
      if kinds.count(kind) != len(some):
        raise RequestError(
          f"talk shows {kinds.count(kind)} {kind}s, and {len(some)} are given:"
          " give one for each, in order"
        )

  def override(
    self, config: config_lib.Config, regions: int
  ) -> np.ndarray | None:
    """Scores in place of the model's, float32 [Q, R], if they are random.

    Args:
      config: of the model.
      regions: R, of the whole row.
    """
    if self.regions == "scores":
      return None
    heads = config.model.decoder.query_heads
    return budgets.random_scores(self.seed, heads, regions)

  def budget(self, config: config_lib.Config, regions: Sequence[int]) -> int:
    """K, in the unit of `model.gaze.budget`.

    Args:
      config: of the model.
      regions: of each unit of the whole row, in reading order.
    """
    gaze = config.model.gaze
    if self.top_k is not None:
      return budgets.of_count(gaze, min(self.top_k, _ALL), regions)
    if self.share is not None:
      return budgets.of_share(gaze, self.share, regions)
    return budgets.of_config(config)[1]
