"""Packs a sample into a row, as the chat template writes it.

A scene with two questions, and a conversation of two turns, in our format:

  <bos> [image] <user> q1 <assistant> a1 <eos> <user> q2 <assistant> a2 <eos>
  trunk -------|branch 1 --------------------|branch 2 ---------------------
  <bos> [image] <user> q1 <assistant> a1 <eos> <user> q2 <assistant> a2 <eos>
  trunk ---------------------------------------------------------------------

With ChatML an image stands within the user's turn, as in LLaVA-OneVision, and
the questions about it share what precedes it:

  trunk   <|im_start|>system ... <|im_end|> <|im_start|>user [image]
  branch  question <|im_end|> <|im_start|>assistant answer <|im_end|>

The trunk and a branch are together what the template writes for that question
alone. Answers and what ends them are scored; nothing else is.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from typing import TypeVar

import numpy as np

from gaze_jax import config as config_lib
from gaze_jax.data import messages
from gaze_jax.data import samples
from gaze_jax.data import tokenizer as tokenizer_lib
from gaze_jax.data import units as units_lib
from gaze_jax.layout import row as row_lib
from gaze_jax.layout import tiles

T = TypeVar("T")
Part = row_lib.Text | row_lib.Unit
Units = Sequence[row_lib.Unit]  # what one image or video becomes


def pack(
  sample: samples.Sample,
  tokenizer: tokenizer_lib.Tokenizer,
  shape: row_lib.RowShape,
  media: Sequence[Units],
) -> dict[str, np.ndarray]:
  """Lays one sample out as a row.

  Args:
    sample: the sample.
    tokenizer: the tokenizer.
    shape: the static shape of a row.
    media: the units that each of its images and videos becomes, in reading
      order (`in_reading_order`).

  Returns:
    As `row_lib.lay_out`.

  Raises:
    layout.LayoutError: the sample does not fit the row.
    samples.DataError: as `parts`.
  """
  return row_lib.lay_out(parts(sample, tokenizer, media), shape)


def parts(
  sample: samples.Sample,
  tokenizer: tokenizer_lib.Tokenizer,
  media: Sequence[Units],
) -> list[Part]:
  """What `pack` lays out, in reading order.

  Raises:
    samples.DataError: its turns have more or fewer marks than images and
      videos, or the chat template does not take it.
  """
  if sample.conversation:
    return _conversation_parts(sample, tokenizer, media)
  videos = len(sample.videos)
  shown = (messages.IMAGE,) * (len(media) - videos)
  shown += (messages.VIDEO,) * videos
  lessons = [
    tokenizer.chat.lesson(shown, q.text, q.answer) for q in sample.questions
  ]
  shared = shared_length(tokenizer, lessons, shown)
  return _trunk_and_branches(lessons, media, shared)


def parts_of(flat: messages.Flat, images: Iterable[Units]) -> list[Part]:
  """Ids with places as text and units, both in reading order."""
  images, out = iter(images), []
  for text, run in itertools.groupby(flat, lambda x: isinstance(x, int)):
    if text:
      out.append(row_lib.Text(list(run)))
    else:
      out += itertools.chain(*(next(images) for _ in run))
  return out


def shared_length(
  tokenizer: tokenizer_lib.Tokenizer,
  lessons: Sequence[messages.Lesson],
  shown: tuple[str, ...],
) -> int:
  """How many first items are the trunk of questions about media of some kinds.

  It ends with the last of these, and what the template writes to set that off.

  Raises:
    samples.DataError: the template writes the question before an image.
  """
  chat = tokenizer.chat
  opening = chat.opening(shown)
  most = messages.common_prefix([opening, *(lesson.flat for lesson in lessons)])
  places = [i for i, x in enumerate(opening) if isinstance(x, messages.Place)]
  if not places:
    return most
  stop = places[-1] + 1
  if most < stop:
    raise samples.DataError(
      "the chat template puts images behind the question, so questions can't"
      " share them: give each its own conversation"
    )
  while stop < most and opening[stop] not in chat.control_ids:
    stop += 1
  return stop


def longest_branch(
  tokenizer: tokenizer_lib.Tokenizer,
  shown: tuple[str, ...],
  questions: Sequence[str],
  answers: Sequence[str],
) -> np.ndarray:
  """Slots of a question's branch at most, and those of its answer, int64 [2].

  Args:
    tokenizer: the tokenizer.
    shown: kinds of the media before the question.
    questions: all that may be asked.
    answers: all that may be said.
  """
  longest = lambda texts: max(texts, key=lambda t: len(tokenizer.encode(t)))
  shared = shared_length(tokenizer, (), shown)
  lesson = tokenizer.chat.lesson(shown, longest(questions), longest(answers))
  (span,) = lesson.spans
  more = int(span.end >= 0)
  return np.array(
    [len(lesson.flat) - shared + more, span.stop - span.start + more]
  )


def pictures(sample: samples.Sample) -> tuple[np.ndarray, ...]:
  """Images and frames of a sample, in the order of their units."""
  images = [(image,) for image in sample.images]
  media = in_reading_order(sample, images, sample.videos)
  return tuple(itertools.chain(*media))


def without_pixels(sample: samples.Sample) -> samples.Sample:
  """A sample without its images, and with as many frames, of no pixels."""
  videos = tuple(samples.no_frames(len(frames)) for frames in sample.videos)
  return dataclasses.replace(sample, images=(), videos=videos)


def units_of(
  sample: samples.Sample,
  images: Sequence[tiles.Size],
  videos: Sequence[Sequence[tiles.Size]],
  model: config_lib.ModelConfig,
) -> list[Units]:
  """The units of a sample's images and videos, in reading order.

  Args:
    sample: without its pictures, or with them.
    images: height and width of each.
    videos: those of the frames of each.
    model: that reads it.

  Raises:
    samples.DataError: as `in_reading_order`.
  """
  return in_reading_order(
    sample,
    units_lib.of_sizes(images, model, images_per_turn(sample)),
    [units_lib.of_frames(frames, model) for frames in videos],
  )


def images_per_turn(sample: samples.Sample) -> tuple[int, ...] | None:
  """How many images each turn of a conversation brings; None without turns."""
  if not sample.conversation:
    return None
  questions = (turn.question for turn in sample.conversation)
  return tuple(text.count(tokenizer_lib.IMAGE) for text in questions)


def kinds(sample: samples.Sample) -> list[str]:
  """What the marks of a conversation stand for, in reading order."""
  return [
    part.kind
    for turn in sample.conversation
    for part in messages.marked(turn.question).parts
    if part.kind != messages.TEXT
  ]


def in_reading_order(
  sample: samples.Sample, images: Sequence[T], videos: Sequence[T]
) -> list[T]:
  """Something of each image and video, in the order in which they are shown.

  Raises:
    samples.DataError: the marks of a conversation are more or fewer.
  """
  if not sample.conversation:
    return [*images, *videos]
  shown = kinds(sample)
  of = {messages.IMAGE: iter(images), messages.VIDEO: iter(videos)}
  for kind, its in ((messages.IMAGE, images), (messages.VIDEO, videos)):
    if (marks := shown.count(kind)) != len(its):
      raise samples.DataError(
        f"the turns have {marks} <{kind}> for {len(its)} {kind}s"
      )
  return [next(of[kind]) for kind in shown]


def conversation_of(sample: samples.Sample) -> messages.Conversation:
  """The turns of a sample, in which marks stand for images and videos."""
  out = [*messages.system(sample.system)]
  for turn in sample.conversation:
    out.append(messages.marked(turn.question))
    out.append(messages.plain(messages.ASSISTANT, turn.answer))
  return tuple(out)


def _conversation_parts(
  sample: samples.Sample,
  tokenizer: tokenizer_lib.Tokenizer,
  media: Sequence[Units],
) -> list[Part]:
  """Turns that see each other: one trunk, or a branch each.

  Some templates write earlier turns otherwise than the last (without what was
  thought, say), so that no row holds all turns as they are asked. Then each
  turn is a branch, with all that precedes it.
  """
  talk = conversation_of(sample)
  if (marks := len(kinds(sample))) != len(media):
    raise samples.DataError(
      f"the turns have {marks} <image> or <video> for {len(media)} of them"
    )
  chat = tokenizer.chat
  if lesson := chat.learn(talk):
    return _lesson_parts(lesson, media)
  ends = [i + 1 for i, m in enumerate(talk) if m.role == messages.ASSISTANT]
  lessons = [chat.learn(talk[:end], last=True) for end in ends]
  shared = messages.common_prefix([lesson.flat for lesson in lessons])
  shared = min(
    shared, lessons[0].spans[0].start - 1
  )  # no answer begins a branch
  if any(isinstance(x, messages.Place) for x in lessons[-1].flat[shared:]):
    raise samples.DataError(
      "an image of a later turn, and a chat template that writes earlier turns"
      " anew: such a conversation can't be one row"
    )
  return _trunk_and_branches(lessons, media, shared)


def _trunk_and_branches(
  lessons: Sequence[messages.Lesson], images: Sequence[Units], shared: int
) -> list[Part]:
  """The items that the lessons share, then the rest of each as a branch."""
  out = parts_of(lessons[0].flat[:shared], images)
  for i, lesson in enumerate(lessons):
    out += _lesson_parts(lesson, images, shared, branch=i + 1, question=i)
  return out


def _lesson_parts(
  lesson: messages.Lesson,
  images: Sequence[Units],
  start: int = 0,
  *,
  branch: int = 0,
  question: int = 0,
) -> list[Part]:
  """A lesson from item `start` on; its answers number on from `question`."""
  out, flat = [], lesson.flat
  before = sum(isinstance(x, messages.Place) for x in flat[:start])
  images = iter(images[before:])

  def add(stop: int, answered: int) -> None:
    nonlocal start
    for part in parts_of(flat[start:stop], images):
      if isinstance(part, row_lib.Text):
        part = row_lib.Text(part.ids, branch, answered)
      out.append(part)
    start = stop

  for number, span in enumerate(lesson.spans, question):
    add(span.start, -1)
    add(span.stop, number)
    if span.end >= 0:
      out.append(row_lib.Text([span.end], branch, number))
  add(len(flat), -1)
  return out
