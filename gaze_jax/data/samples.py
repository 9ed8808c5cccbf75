"""What every source yields: samples of images with questions or turns."""

import dataclasses
import typing

import numpy as np

from gaze_jax import errors


class DataError(errors.GazeError):
  """Data that can't be used; the message names the file and the reason."""


@dataclasses.dataclass(frozen=True)
class Question:
  """A question about the images of a sample, with its one right answer.

  Attributes:
    text: the question.
    answer: the answer.
    kind: what it is counted as in reports; "caption" for one whose answer
      describes the whole image.
    about: which of the sample's `things` must be looked at to answer it.
  """

  text: str
  answer: str
  kind: str
  about: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Thing:
  """A named thing in the first image of a sample, or in its video.

  Attributes:
    name: its name.
    place: where it is, in words ("top left").
    mask: bool [h, w], the pixels that show it and that nothing covers; of a
      video [frames, h, w].
  """

  name: str
  place: str
  mask: np.ndarray


@dataclasses.dataclass(frozen=True)
class Turn:
  """A turn; each `<image>` or `<video>` in the question stands for one."""

  question: str
  answer: str


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
  """One sample: images and videos with questions, or with a conversation.

  Attributes:
    images: uint8 [h, w, 3] each; none in a text-only sample.
    videos: the frames of each, likewise; questions are asked after all images,
      then all videos.
    questions: asked apart from each other, a branch each.
    things: the named things of it, for routing accuracy.
    conversation: turns that see each other; either this or `questions`.
    system: the system text of a conversation; None for that of the chat format.
  """

  images: tuple[np.ndarray, ...]
  questions: tuple[Question, ...] = ()
  things: tuple[Thing, ...] = ()
  conversation: tuple[Turn, ...] = ()
  system: str | None = None
  videos: tuple[tuple[np.ndarray, ...], ...] = ()

  @property
  def kinds(self) -> tuple[str, ...]:
    """Kind of each question, or of each turn of a conversation: "chat"."""
    asked = tuple(question.kind for question in self.questions)
    return asked or ("chat",) * len(self.conversation)


def no_frames(count: int) -> tuple[np.ndarray, ...]:
  """So many frames of a video, of no pixels."""
  return (np.zeros((0, 0, 3), np.uint8),) * count


def generator(*key: int) -> np.random.Generator:
  """A random generator that is a pure function of a key of whole numbers."""
  return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


@typing.runtime_checkable
class Source(typing.Protocol):
  """Random access to samples.

  `sample` is a pure function of its arguments, so that training can resume at
  any step. `canvas` gives the pictures alone, images and frames in the order of
  their units, the same in every epoch: a feature cache encodes them. `text` is
  `sample` without the cost of pictures: `images` and `things` may be empty, and
  of a video as many frames are needed, which may be empty arrays.
  `fingerprint` is a line that changes with anything that decides the decoded
  images. `content` identifies the samples by named numbers and hashes, among
  them how many there are (`samples`).
  """

  def __len__(self) -> int: ...

  def sample(self, index: int, epoch: int = 0) -> Sample: ...

  def text(self, index: int, epoch: int = 0) -> Sample: ...

  def canvas(self, index: int) -> tuple[np.ndarray, ...]: ...

  def fingerprint(self) -> str: ...

  def content(self) -> dict[str, int | str]: ...
