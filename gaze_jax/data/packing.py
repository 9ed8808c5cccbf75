"""Samples to rows: the chat format, and packing to a static shape.

A scene with two questions, and a conversation of two turns, in our format:

  <bos> [image] <user> q1 <assistant> a1 <eos> <user> q2 <assistant> a2 <eos>
  trunk -------|branch 1 --------------------|branch 2 ---------------------
  <bos> [image] <user> q1 <assistant> a1 <eos> <user> q2 <assistant> a2 <eos>
  trunk ---------------------------------------------------------------------

With ChatML an image stands within the user's turn, as in LLaVA-OneVision, and
the questions about it share what precedes it:

  trunk   <|im_start|>system ... <|im_end|> <|im_start|>user [image]
  branch  question <|im_end|> <|im_start|>assistant answer <|im_end|>

Answers and what ends them are scored; nothing else is.
"""

import itertools
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
  images: Sequence[Sequence[layout.Unit]] | None = None,
  branch: int = 0,
  number: int = -1,
) -> list[Part]:
  """The chat format of one question, in this one place.

  Args:
    tokenizer: the tokenizer.
    question: its text. Where `images` are given, each `<image>` in it stands
      for one; those at its start come before what precedes a question.
    answer: what is to be said; None when it is to be generated.
    images: the units that each becomes, when the question brings its images
      along; there may be none of them.
    branch: branch that the turn belongs to; 0 is the trunk.
    number: number of the question within the row, for scoring. A later one of
      the trunk (above 0) goes on from the answer before it.

  Returns:
    The question and what precedes its answer, and the answer with what ends
    it unless it is None.

  Raises:
    samples.DataError: there are more or fewer `<image>` than images.
  """
  chat, brings = tokenizer.chat, images is not None
  texts = question.split(tokenizer_lib.IMAGE) if brings else [question]
  images = images or ()
  if len(texts) - 1 != len(images):
    raise samples.DataError(
      f"a turn has {len(texts) - 1} <image> for {len(images)} images"
    )
  # The line break that sets an image off is not part of the text.
  pieces = [tokenizer.encode(t.strip() if brings else t) for t in texts]
  parts: list[Part] = []
  if number > 0 and not branch and chat.again:
    parts.append(layout.Text(chat.again))
  leading = next((i for i, p in enumerate(pieces) if p), len(pieces) - 1)
  parts += itertools.chain(*images[:leading])
  read = [*(chat.imaged if leading else ()), *chat.before, *pieces[leading]]
  rest = zip(images[leading:], pieces[leading + 1 :], strict=True)
  for image, piece in rest:
    if read:
      parts.append(layout.Text(read, branch))
    parts += image
    read = piece
  parts.append(layout.Text([*read, *chat.between], branch))
  if answer is not None:
    said = [*tokenizer.encode(answer), *chat.after]
    parts.append(layout.Text(said, branch, number))
  return parts


def _trunk(
  tokenizer: tokenizer_lib.Tokenizer,
  units: Sequence[layout.Unit],
  system: str | None = None,
) -> list[Part]:
  """What all questions of a row share."""
  chat = tokenizer.chat
  parts = [layout.Text(tokenizer.start(system)), *units]
  return [*parts, layout.Text(chat.imaged)] if units else parts


def prompt(
  tokenizer: tokenizer_lib.Tokenizer,
  question: str,
  units: Sequence[layout.Unit] = (),
  *,
  system: str | None = None,
) -> list[Part]:
  """The row that asks one question about images: what a request is.

  Its ids are those of the model's chat template. (But for white space that a
  text begins with: a template's line break before it may merge with it.)

  Args:
    tokenizer: the tokenizer.
    question: its text.
    units: of its images.
    system: in the place of the default system turn, as in `Tokenizer.start`.

  Raises:
    samples.DataError: `system` is given, and the chat format has none.
  """
  return [*_trunk(tokenizer, units, system), *turn(tokenizer, question)]


def pack(
  sample: samples.Sample,
  tokenizer: tokenizer_lib.Tokenizer,
  shape: layout.RowShape,
  images: Sequence[Sequence[layout.Unit]],
) -> dict[str, np.ndarray]:
  """Lays one sample out as a row.

  Args:
    sample: the sample.
    tokenizer: the tokenizer.
    shape: the static shape of a row.
    images: the units that each of its images becomes (`units.of_sizes`).

  Returns:
    As `layout.lay_out`.

  Raises:
    layout.LayoutError: the sample does not fit the row.
    samples.DataError: as `parts`.
  """
  return layout.lay_out(parts(sample, tokenizer, images), shape)


def parts(
  sample: samples.Sample,
  tokenizer: tokenizer_lib.Tokenizer,
  images: Sequence[Sequence[layout.Unit]],
) -> list[Part]:
  """What `pack` lays out, in reading order.

  Raises:
    samples.DataError: its turns have more or fewer `<image>` than images, or
      the chat format has no system turn for its system text.
  """
  if sample.conversation:
    out, left = _trunk(tokenizer, (), sample.system), list(images)
    for i, t in enumerate(sample.conversation):
      count = t.question.count(tokenizer_lib.IMAGE)
      mine, left = left[:count], left[count:]
      out += turn(tokenizer, t.question, t.answer, images=mine, number=i)
    if left:
      raise samples.DataError(f"{len(left)} images that no <image> stands for")
    return out
  out = _trunk(tokenizer, list(itertools.chain(*images)))
  for i, q in enumerate(sample.questions):
    out += turn(tokenizer, q.text, q.answer, branch=i + 1, number=i)
  return out


def together(sample: samples.Sample) -> tuple[int, ...] | None:
  """How many images each turn of a conversation brings; None without turns."""
  if not sample.conversation:
    return None
  said = (turn.question for turn in sample.conversation)
  return tuple(text.count(tokenizer_lib.IMAGE) for text in said)


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
  chat, data = tokenizer.chat, config.data
  around = len(chat.before) + len(chat.between)
  count = lambda texts: max(len(tokenizer.encode(text)) for text in texts)
  sizes = {}  # of a kind of question: its slots, and those of its answer
  for kind, (asked, said) in questions.wordings().items():
    answer = count(said) + len(chat.after)
    sizes[kind] = (count(asked) + around + answer, answer)
  longest, answers = np.max(list(sizes.values()), axis=0).tolist()
  totals = data.questions * np.array([longest, answers])
  if data.captions:
    answer = count(questions.longest_captions()) + len(chat.after)
    caption = count([questions.CAPTION]) + around + answer
    totals += [caption - longest, answer - answers]
  tokens = config.model.vision.tokens
  image = tokens + config.model.gaze.context_tokens
  slots = len(chat.start) + len(chat.imaged) + image + int(totals[0])
  if slots > data.sequence_length:
    raise config_lib.ConfigError(
      f"config: data.sequence_length = {data.sequence_length} is too short for"
      f" {data.questions} questions on an image of {tokens} tokens: {slots} is"
      " enough"
    )
  if totals[1] > data.answer_slots:
    raise config_lib.ConfigError(
      f"config: data.answer_slots = {data.answer_slots} is too few for"
      f" {data.questions} questions: {totals[1]} are enough"
    )
