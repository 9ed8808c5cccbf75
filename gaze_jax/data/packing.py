"""Samples to rows: the chat format, and packing to a static shape.

A scene with two questions, and a conversation of two turns:

  <bos> [image] <user> q1 <assistant> a1 <eos> <user> q2 <assistant> a2 <eos>
  trunk -------|branch 1 --------------------|branch 2 ---------------------
  <bos> [image] <user> q1 <assistant> a1 <eos> <user> q2 <assistant> a2 <eos>
  trunk ---------------------------------------------------------------------

Answers and their <eos> are scored; nothing else is.
"""

from collections.abc import Sequence

import numpy as np

from gaze_jax import config as config_lib
from gaze_jax import layout
from gaze_jax.data import questions
from gaze_jax.data import samples
from gaze_jax.data import tokenizer as tokenizer_lib

Part = layout.Text | layout.Unit


def turn(
  tokenizer: tokenizer_lib.Tokenizer,
  question: str,
  answer: str | None = None,
  *,
  unit: layout.Unit | None = None,
  branch: int = 0,
  number: int = -1,
) -> list[Part]:
  """The chat format of one question, in this one place.

  Args:
    tokenizer: the tokenizer.
    question: its text. Where `unit` is given, each `<image>` in it stands for
      an image; those at its start go before <user>.
    answer: what is to be said; None when it is to be generated.
    unit: the grid of an image, when the question brings its images along.
    branch: branch that the turn belongs to; 0 is the trunk.
    number: number of the question within the row, for scoring.

  Returns:
    `<user> question <assistant>`, and `answer <eos>` unless it is None.
  """
  parts: list[Part] = []
  read = [tokenizer.user]
  pieces = question.split(tokenizer_lib.IMAGE) if unit else [question]
  for i, piece in enumerate(pieces):
    if i:
      if read != [tokenizer.user]:
        parts.append(layout.Text(read, branch))
        read = []
      parts.append(unit)
    # The line break that sets an image off is not part of the text.
    read = read + tokenizer.encode(piece.strip() if unit else piece)
  parts.append(layout.Text([*read, tokenizer.assistant], branch))
  if answer is not None:
    said = [*tokenizer.encode(answer), tokenizer.eos]
    parts.append(layout.Text(said, branch, number))
  return parts


def prompt(
  tokenizer: tokenizer_lib.Tokenizer,
  question: str,
  units: Sequence[layout.Unit] = (),
) -> list[Part]:
  """The row that asks one question about images: what a request is."""
  start = [layout.Text([tokenizer.bos]), *units]
  return [*start, *turn(tokenizer, question)]


def pack(
  sample: samples.Sample,
  tokenizer: tokenizer_lib.Tokenizer,
  shape: layout.RowShape,
  unit: layout.Unit,
  *,
  images: int | None = None,
) -> dict[str, np.ndarray]:
  """Lays one sample out as a row.

  Args:
    sample: the sample.
    tokenizer: the tokenizer.
    shape: the static shape of a row.
    unit: grid of each image, in visual tokens.
    images: how many images it has, when `sample.images` were left out.

  Returns:
    As `layout.lay_out`.

  Raises:
    layout.LayoutError: the sample does not fit the row.
  """
  parts: list[Part] = [layout.Text([tokenizer.bos])]
  if sample.conversation:
    for i, t in enumerate(sample.conversation):
      parts += turn(tokenizer, t.question, t.answer, unit=unit, number=i)
  else:
    count = len(sample.images) if images is None else images
    parts += [unit] * count
    for i, q in enumerate(sample.questions):
      parts += turn(tokenizer, q.text, q.answer, branch=i + 1, number=i)
  return layout.lay_out(parts, shape)


def empty(shape: layout.RowShape) -> dict[str, np.ndarray]:
  """A row of PAD alone, which fills up a last batch."""
  return layout.lay_out((), shape)


def kinds_of(sample: samples.Sample, width: int) -> np.ndarray:
  """Kind of each question as a number into `samples.KINDS`, int8 [width].

  -1 where there is no question; turns of a conversation are "chat".
  """
  names = [q.kind for q in sample.questions] or ["chat"] * len(
    sample.conversation
  )
  out = np.full(width, -1, np.int8)
  out[: len(names)] = [samples.KINDS.index(n) for n in names]
  return out


def check_scenes_fit(
  config: config_lib.Config, tokenizer: tokenizer_lib.Tokenizer
) -> None:
  """Refuses a row shape that the longest EmojiScenes row would not fit.

  Raises:
    config_lib.ConfigError: naming the field and the value that suffices.
  """
  longest = answers = 0
  for asked, said in questions.wordings().values():
    prompts = max(len(tokenizer.encode(q)) for q in asked) + 2
    answer = max(len(tokenizer.encode(a)) for a in said) + 1
    longest, answers = max(longest, prompts + answer), max(answers, answer)
  data, tokens = config.data, config.model.vision.tokens
  image = tokens + config.model.gaze.context_tokens
  slots = 1 + image + data.questions * longest
  if slots > data.sequence_length:
    raise config_lib.ConfigError(
      f"config: data.sequence_length = {data.sequence_length} is too short for"
      f" {data.questions} questions on an image of {tokens} tokens: {slots} is"
      " enough"
    )
  if data.questions * answers > data.answer_slots:
    raise config_lib.ConfigError(
      f"config: data.answer_slots = {data.answer_slots} is too few for"
      f" {data.questions} questions: {data.questions * answers} are enough"
    )
