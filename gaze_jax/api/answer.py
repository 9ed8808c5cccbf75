"""Answers: what was said, what it cost, and where the model looked."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from PIL import Image

from gaze_jax import config as config_lib
from gaze_jax import errors
from gaze_jax.data import tokenizer as tokenizer_lib
from gaze_jax.decode import accounting as accounting_lib
from gaze_jax.decode import context as context_lib
from gaze_jax.decode import engine
from gaze_jax.decode import programs
from gaze_jax.decode import trace
from gaze_jax.models import mllm
from gaze_jax.view import overlay
from gaze_jax.view import viewer


@dataclasses.dataclass(frozen=True)
class Answer:
  """A complete answer.

  Attributes:
    question: what was asked.
    text: what was said, without a stop string.
    reason: why it ended: "stop" (the model's own end), "stop string",
      "length" (max_tokens), or "interrupted".
    tokens: ids, the one that ended it included.
    context: everything read and said, to go on from.
    budget: K, in the unit of `model.gaze.budget`.
    said: what the engine counted.
    model: what answered.
  """

  question: str
  text: str
  reason: str
  tokens: tuple[int, ...]
  context: context_lib.Context
  budget: int
  said: engine.Said = dataclasses.field(repr=False)
  model: "Asked" = dataclasses.field(repr=False)

  def accounting(self) -> accounting_lib.Accounting:
    """The four figures of METHOD.md section 8; times steps to tell the last."""
    return accounting_lib.account(
      self.model.params,
      self.model.config.model,
      self.said,
      budget=self.budget,
    )

  def words(
    self,
    *,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
  ) -> list[trace.Word]:
    """Where each word looked; see `trace.words`.

    Raises:
      errors.GazeError: the answer was not traced.
    """
    if not self.said.steps:
      raise errors.GazeError(
        "where this answer looked was not recorded: ask with trace=True"
      )
    pieces = self.model.tokenizer.pieces([s.token for s in self.said.steps])
    return trace.words(self.said.steps, pieces, layers=layers, heads=heads)

  def picture(self, **which: Any) -> Image.Image:
    """The views once a word, with the regions read; `which` as in `words`."""
    return overlay.draw(
      self.context.views, self.words(**which), title=self._title
    )

  def animation(self, **which: Any) -> list[Image.Image]:
    """A frame a word, for `overlay.save_animation`; `which` likewise."""
    return overlay.animate(
      self.context.views, self.words(**which), title=self.question
    )

  def page(self, account: accounting_lib.Accounting) -> str:
    """The viewer: one HTML page that needs nothing else."""
    context = self.context
    words = self.words()
    read = [s.chosen.sum(-1).mean() for s in self.said.steps]
    return viewer.render(
      context.views,
      words,
      question=self.question,
      answer=self.text,
      budget=viewer.Budget(
        top_k=float(sum(read) / len(read)),
        regions=len(context.sizes),
        visual_kv=account.visual_kv_fraction,
        unique=account.unique_visual_kv_fraction,
      ),
      accounting=account.rows(),
      noun="image" if len(context.views) < 3 else "frame",
    )

  def as_dict(self, account: accounting_lib.Accounting) -> dict[str, Any]:
    """What was asked, said and paid, fit for JSON."""
    return dict(
      question=self.question,
      answer=self.text,
      reason=self.reason,
      tokens=len(self.tokens),
      budget=self.budget,
      regions=len(self.context.sizes),
      accounting=account.as_dict(),
      programs_compiled=programs.compiled(),
    )

  @property
  def _title(self) -> str:
    return f"{self.question}  {self.text}"


@dataclasses.dataclass(frozen=True)
class Asked:
  """The parts of a model that an answer needs."""

  config: config_lib.Config
  params: mllm.Params
  tokenizer: tokenizer_lib.Tokenizer


class Text:
  """The text of an answer as its tokens come, and where it ends.

  Args:
    tokenizer: to decode with.
    stop: strings that end it.

  Attributes:
    count: tokens that belong to the answer so far, its end included.
    stopped: whether a stop string has come.
  """

  def __init__(self, tokenizer: tokenizer_lib.Tokenizer, stop: Sequence[str]):
    self._spelling, self._ends = tokenizer.detokenizer(), tokenizer.ends
    self._stop = tuple(stop)
    self._longest = max(map(len, stop), default=0)
    self._whole = ""  # what no further token changes
    self.count = 0
    self.stopped = False

  def read(self, tokens: Sequence[int]) -> None:
    """Takes all tokens so far; those of an earlier call are not read again."""
    for token in tokens[self.count :]:
      if self.stopped:
        return
      self.count += 1
      # A stop string may have begun before what is new.
      start = max(0, len(self._whole) - self._longest + 1)
      if token not in self._ends:
        self._whole += self._spelling.add(token) or ""
      if self._stop:
        self._look(start)

  @property
  def text(self) -> str:
    """What the answer says if it ends here."""
    return self._whole if self.stopped else self._whole + self._spelling.rest

  @property
  def sure(self) -> str:
    """The text that no further token can take back."""
    if self.stopped:
      return self._whole
    held = 0  # what may be the beginning of a stop string
    for stop in self._stop:
      for n in range(1, len(stop)):
        if self._whole.endswith(stop[:n]):
          held = max(held, n)
    return self._whole[: len(self._whole) - held]

  def _look(self, start: int) -> None:
    """Ends the text where a stop string begins, if one does from there on.

    What is not a whole character yet is no U+FFFD that somebody asked for.
    """
    text = self.text
    within = lambda stop: self._whole if "\ufffd" in stop else text
    found = [at for s in self._stop if (at := within(s).find(s, start)) >= 0]
    if found:
      self._whole, self.stopped = text[: min(found)], True


def finish(
  asked: Asked,
  question: str,
  row: int,
  decoding: engine.Decoding,
  text: Text,
  budget: int,
) -> Answer:
  """The answer of one row, as far as it was said."""
  said = decoding.said(row, text.count)
  last = said.tokens[-1] if said.tokens else None
  if text.stopped:
    reason = "stop string"
  elif last in asked.tokenizer.ends:
    reason = "stop"
  else:
    reason = "length" if decoding.ended(row) else "interrupted"
  context = said.context
  if reason == "stop":  # the next turn finds it ended as the template ends it
    context = dataclasses.replace(context, pending=(asked.tokenizer.eos,))
  answer = asked.tokenizer.answer(said.tokens, text.text)
  return Answer(
    question=question,
    text=text.text,
    reason=reason,
    tokens=said.tokens,
    context=dataclasses.replace(context, talk=(*context.talk, answer)),
    budget=budget,
    said=said,
    model=asked,
  )


class Stream:
  """An answer being said; iterate over it for its text, piece by piece.

  Attributes:
    answer: what was said so far; after the last piece, all of it.
  """

  def __init__(
    self,
    asked: Asked,
    question: str,
    decoding: engine.Decoding,
    stop: Sequence[str],
    budget: int,
  ):
    self._asked, self._question = asked, question
    self._decoding, self._budget = decoding, budget
    self._text = Text(asked.tokenizer, stop)
    self._told, self._ends = 0, False

  def __iter__(self) -> Iterator[str]:
    """Pieces of whole characters that together are the answer's text."""
    while True:
      self._text.read(self._decoding.tokens(0))
      if self._text.stopped:
        self._decoding.end(0)
      over = self._decoding.done or self._ends
      sure = self._text.text if over else self._text.sure
      if len(sure) > self._told:
        piece, self._told = sure[self._told :], len(sure)
        yield piece
      if over or self._ends:
        return
      self._decoding.step()

  def stop(self) -> None:
    """Says no more after the token that is being made."""
    self._ends = True

  @property
  def answer(self) -> Answer:
    return finish(
      self._asked,
      self._question,
      0,
      self._decoding,
      self._text,
      self._budget,
    )
