"""Samples to rows: conversations as the chat template writes them.

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

import itertools
from collections.abc import Iterable, Sequence

import numpy as np

from gaze_jax.data import messages
from gaze_jax.data import samples
from gaze_jax.data import tokenizer as tokenizer_lib
from gaze_jax.layout import row as row_lib

Part = row_lib.Text | row_lib.Unit
Units = Sequence[row_lib.Unit]  # what one image becomes


def turn(
  tokenizer: tokenizer_lib.Tokenizer,
  question: str,
  answer: str | None = None,
  *,
  images: int = 0,
  branch: int = 0,
  number: int = -1,
) -> list[Part]:
  """One question, from where its conversation differs from others.

  Args:
    tokenizer: the tokenizer.
    question: its text; `<image>` in it is text.
    answer: what is to be said; None when it is to be generated.
    images: how many stand before it, in the trunk.
    branch: branch that it belongs to; 0 is the trunk.
    number: number of the question within the row, for scoring.

  Returns:
    The question and what precedes its answer, and the answer with what ends
    it unless it is None.
  """
  chat = tokenizer.chat
  if answer is None:
    flat = chat.ask((messages.question(question, images),))
    lesson = messages.Lesson(flat, ())
  else:
    lesson = chat.lesson(images, question, answer)
  cut = shared_items(tokenizer, [lesson], images)
  return _laid(lesson, [()] * images, cut, branch, number)


def prompt(
  tokenizer: tokenizer_lib.Tokenizer,
  question: str,
  images: Sequence[Units] = (),
  *,
  system: str | None = None,
) -> list[Part]:
  """The row that asks one question about images: what a request is.

  Its ids are those of the model's chat template.

  Args:
    tokenizer: the tokenizer.
    question: its text; `<image>` in it is text.
    images: the units that each becomes.
    system: in the place of the template's own system text.

  Raises:
    samples.DataError: the template does not take it.
  """
  talk = (*messages.system(system), messages.question(question, len(images)))
  return parts_of(tokenizer.chat.ask(talk), images)


def trunk(
  tokenizer: tokenizer_lib.Tokenizer, images: Sequence[Units]
) -> list[Part]:
  """What all questions about images share."""
  flat = tokenizer.chat.opening(len(images))
  return parts_of(flat[: shared_items(tokenizer, (), len(images))], images)


def parts_of(flat: messages.Flat, images: Iterable[Units]) -> list[Part]:
  """Ids with places as text and units, both in reading order."""
  images, out = iter(images), []
  for text, run in itertools.groupby(flat, lambda x: isinstance(x, int)):
    if text:
      out.append(row_lib.Text(list(run)))
    else:
      out += itertools.chain(*(next(images) for _ in run))
  return out


def pack(
  sample: samples.Sample,
  tokenizer: tokenizer_lib.Tokenizer,
  shape: row_lib.RowShape,
  images: Sequence[Units],
) -> dict[str, np.ndarray]:
  """Lays one sample out as a row.

  Args:
    sample: the sample.
    tokenizer: the tokenizer.
    shape: the static shape of a row.
    images: the units that each of its images becomes (`units.of_sizes`).

  Returns:
    As `row_lib.lay_out`.

  Raises:
    layout.LayoutError: the sample does not fit the row.
    samples.DataError: as `parts`.
  """
  return row_lib.lay_out(parts(sample, tokenizer, images), shape)


def parts(
  sample: samples.Sample,
  tokenizer: tokenizer_lib.Tokenizer,
  images: Sequence[Sequence[row_lib.Unit]],
) -> list[Part]:
  """What `pack` lays out, in reading order.

  Raises:
    samples.DataError: its turns have more or fewer `<image>` than images, or
      the chat template does not take it.
  """
  if sample.conversation:
    return _conversation(sample, tokenizer, images)
  lessons = [
    tokenizer.chat.lesson(len(images), q.text, q.answer)
    for q in sample.questions
  ]
  cut = shared_items(tokenizer, lessons, len(images))
  return _branches(lessons, images, cut)


def _conversation(
  sample: samples.Sample,
  tokenizer: tokenizer_lib.Tokenizer,
  images: Sequence[Units],
) -> list[Part]:
  """Turns that see each other: one trunk, or a branch each.

  A template that writes earlier turns otherwise than later ones (without what
  was thought, say) has no one row of them: each turn is a branch, with all that
  it is asked after.
  """
  talk = talk_of(sample)
  marks = sum(p.kind != messages.TEXT for m in talk for p in m.parts)
  if marks != len(images):
    raise samples.DataError(
      f"the turns have {marks} <image> for {len(images)} images"
    )
  chat = tokenizer.chat
  if lesson := chat.learn(talk):
    return _laid(lesson, images, 0, 0, 0)
  ends = [i + 1 for i, m in enumerate(talk) if m.role == messages.ASSISTANT]
  lessons = [chat.learn(talk[:end], last=True) for end in ends]
  cut = messages.common_prefix([lesson.flat for lesson in lessons])
  cut = min(cut, lessons[0].spans[0].start - 1)  # no answer begins a branch
  if any(isinstance(x, messages.Place) for x in lessons[-1].flat[cut:]):
    raise samples.DataError(
      "an image of a later turn, and a chat template that writes earlier turns"
      " anew: such a conversation is no row"
    )
  return _branches(lessons, images, cut)


def talk_of(sample: samples.Sample) -> messages.Conversation:
  """The conversation of a sample; `<image>` in a question is an image."""
  out = []
  if sample.system is not None:
    out.append(messages.plain(messages.SYSTEM, sample.system))
  for t in sample.conversation:
    out.append(messages.marked(t.question))
    out.append(messages.plain(messages.ASSISTANT, t.answer))
  return tuple(out)


def _branches(
  lessons: Sequence[messages.Lesson], images: Sequence[Units], cut: int
) -> list[Part]:
  out = parts_of(lessons[0].flat[:cut], images)
  for i, lesson in enumerate(lessons):
    out += _laid(lesson, images, cut, i + 1, i)
  return out


def _laid(
  lesson: messages.Lesson,
  images: Sequence[Units],
  cut: int,
  branch: int,
  number: int,
) -> list[Part]:
  """A lesson past its first `cut` items, its answers numbered."""
  out, start, flat = [], cut, lesson.flat
  before = sum(isinstance(x, messages.Place) for x in flat[:cut])
  images = iter(images[before:])

  def add(stop: int, question: int) -> None:
    for part in parts_of(flat[start:stop], images):
      if isinstance(part, row_lib.Text):
        part = row_lib.Text(part.ids, branch, question)
      out.append(part)

  for i, span in enumerate(lesson.spans):
    add(span.start, -1)
    start = span.start
    add(span.stop, number + i)
    start = span.stop
    if span.end >= 0:
      out.append(row_lib.Text([span.end], branch, number + i))
  add(len(flat), -1)
  return out


def shared_items(
  tokenizer: tokenizer_lib.Tokenizer,
  lessons: Sequence[messages.Lesson],
  images: int,
) -> int:
  """How many items questions about so many images share, as a trunk.

  It ends with the last image, and what sets that off.
  """
  chat = tokenizer.chat
  opening = chat.opening(images)
  most = messages.common_prefix([opening, *(lesson.flat for lesson in lessons)])
  seen = [i for i, x in enumerate(opening) if isinstance(x, messages.Place)]
  if not seen:
    return most
  stop = seen[-1] + 1
  if most < stop:
    raise samples.DataError(
      "the chat template puts images behind the question, so questions can't"
      " share them: give each its own conversation"
    )
  while stop < most and opening[stop] not in chat.control_ids:
    stop += 1
  return stop


def together(sample: samples.Sample) -> tuple[int, ...] | None:
  """How many images each turn of a conversation brings; None without turns."""
  if not sample.conversation:
    return None
  said = (turn.question for turn in sample.conversation)
  return tuple(text.count(tokenizer_lib.IMAGE) for text in said)


def empty(shape: row_lib.RowShape) -> dict[str, np.ndarray]:
  """A row of PAD alone, which fills up a last batch."""
  return row_lib.lay_out((), shape)
