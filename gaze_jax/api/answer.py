"""Answers: their text, what they cost, and where the model looked."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from PIL import Image

from gaze_jax import errors
from gaze_jax.api import request as request_lib
from gaze_jax.data import messages
from gaze_jax.data import tokenizer as tokenizer_lib
from gaze_jax.decode import accounting as accounting_lib
from gaze_jax.decode import context as context_lib
from gaze_jax.decode import engine
from gaze_jax.decode import programs
from gaze_jax.decode import scheduler
from gaze_jax.view import overlay
from gaze_jax.view import viewer
from gaze_jax.view import words as words_lib


@dataclasses.dataclass(frozen=True)
class Answer:
  """A complete answer.

  Attributes:
    question: what was asked.
    text: the answer, without a stop string.
    reason: why it ended: "stop" (the model's own end), "stop string",
      "length" (max_tokens), or "interrupted".
    tokens: ids, the one that ended it included.
    context: everything read and generated, to ask again from; without keys and
      values after `generate_many`.
    budget: K, in the unit of `model.gaze.budget`.
    entries: visual entries that a token's queries read, as
      `engine.Decoding.entries`.
    steps: where each token looked; none unless it was traced.
    model: the `Model` that answered.
  """

  question: str
  text: str
  reason: str
  tokens: tuple[int, ...]
  context: context_lib.Context
  budget: int
  entries: tuple[float, float]
  steps: tuple[engine.Step, ...] = dataclasses.field(repr=False)
  model: Any = dataclasses.field(repr=False)

  def accounting(self) -> accounting_lib.Accounting:
    """The four figures of docs/method.md, section 8.

    Times steps to tell the last.

    Raises:
      errors.GazeError: the answer is of `generate_many`.
    """
    if self.context.cache is None:
      raise errors.GazeError(
        "what generate_many read is not kept, and a step of it can't be timed:"
        " ask with generate"
      )
    with self.model.on_mesh():
      return accounting_lib.account(
        self.model.params,
        self.model.config.model,
        self.context,
        self.entries,
        budget=self.budget,
      )

  def words(
    self,
    *,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
  ) -> list[words_lib.Word]:
    """Where each word looked; see `words.words`.

    Raises:
      errors.GazeError: the answer was not traced.
    """
    if not self.steps:
      raise errors.GazeError(
        "where this answer looked was not recorded: ask with trace=True"
      )
    pieces = self.model.tokenizer.pieces([s.token for s in self.steps])
    return words_lib.words(self.steps, pieces, layers=layers, heads=heads)

  def picture(self, **which: Any) -> Image.Image:
    """The views once a word, with the regions read; `which` as in `words`."""
    return overlay.draw(
      self.context.views,
      self.words(**which),
      title=f"{self.question}  {self.text}",
    )

  def animation(self, **which: Any) -> list[Image.Image]:
    """A frame a word, for `overlay.save_animation`; `which` likewise."""
    return overlay.animate(
      self.context.views, self.words(**which), title=self.question
    )

  def page(self, account: accounting_lib.Accounting) -> str:
    """The viewer: one HTML page that needs nothing else."""
    context, words = self.context, self.words()
    read = [s.chosen.sum(-1).mean() for s in self.steps]
    return viewer.render(
      context.views,
      words,
      question=self.question,
      answer=self.text,
      budget=dict(
        top_k=float(sum(read) / len(read)),
        regions=len(context.sizes),
        visual_kv=account.visual_kv_fraction,
        unique=account.unique_visual_kv_fraction,
      ),
      accounting=account.figures(),
      noun="image" if len(context.views) < 3 else "frame",
    )

  def as_dict(self, account: accounting_lib.Accounting) -> dict[str, Any]:
    """Question, answer and cost, fit for JSON."""
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


class AnswerText:
  """The text of an answer as its tokens come, and where it ends.

  Args:
    tokenizer: to decode with.
    stop: strings that end it.

  Attributes:
    count: tokens that belong to the answer so far, its end included.
    stopped: whether a stop string has come.
  """

  def __init__(self, tokenizer: tokenizer_lib.Tokenizer, stop: Sequence[str]):
    self._detokenizer, self._ends = tokenizer.detokenizer(), tokenizer.ends
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
        self._whole += self._detokenizer.add(token) or ""
      if self._stop:
        self._find_stop(start)

  @property
  def text(self) -> str:
    """All of it, if it ends here."""
    rest = "" if self.stopped else self._detokenizer.rest
    return self._whole + rest

  @property
  def certain(self) -> str:
    """The text that no further token can take back."""
    if self.stopped:
      return self._whole
    held = 0  # what may be the beginning of a stop string
    for stop in self._stop:
      for n in range(1, len(stop)):
        if self._whole.endswith(stop[:n]):
          held = max(held, n)
    return self._whole[: len(self._whole) - held]

  def _find_stop(self, start: int) -> None:
    """Ends the text where a stop string begins, if one does from there on.

    What is not a whole character yet is no U+FFFD that somebody asked for.
    """
    text = self.text
    within = lambda stop: self._whole if "\ufffd" in stop else text
    found = [at for s in self._stop if (at := within(s).find(s, start)) >= 0]
    if found:
      self._whole, self.stopped = text[: min(found)], True


def finish(
  model: Any,
  request: request_lib.Request,
  text: AnswerText,
  result: scheduler.Result,
  context: context_lib.Context,
  *,
  budget: int,
  ended: bool = True,
  steps: Sequence[engine.Step] = (),
) -> Answer:
  """An answer, as far as it was generated.

  Args:
    model: that gave it.
    request: what was asked.
    text: of it, which has read its tokens.
    result: its tokens, and the entries that they read.
    context: everything read and generated.
    budget: K that it was given with.
    ended: whether it is complete.
    steps: where each token looked.
  """
  tokenizer, tokens = model.tokenizer, tuple(result.tokens[: text.count])
  if text.stopped:
    reason = "stop string"
  elif tokens and tokens[-1] in tokenizer.ends:
    reason = "stop"
  else:
    reason = "length" if ended else "interrupted"
  if reason == "stop":  # the next turn finds it ended as the template ends it
    context = dataclasses.replace(context, pending=(tokenizer.eos,))
  message = tokenizer.answer(tokens, text.text)
  if request.begins:
    begins = messages.Part(messages.TEXT, request.begins)
    message = message._replace(parts=(begins, *message.parts))
  return Answer(
    question=request.asked,
    text=text.text,
    reason=reason,
    tokens=tokens,
    context=dataclasses.replace(context, talk=(*context.talk, message)),
    budget=budget,
    entries=result.entries,
    steps=tuple(steps[: len(tokens)]),
    model=model,
  )


def of_row(
  model: Any,
  request: request_lib.Request,
  decoding: engine.Decoding,
  row: int,
  text: AnswerText,
) -> Answer:
  """`finish` of a row that is decoded."""
  tokens = tuple(decoding.tokens(row))
  with model.on_mesh():
    context = decoding.context(row, text.count)
  return finish(
    model,
    request,
    text,
    scheduler.Result(tokens, decoding.entries(row)),
    context,
    budget=decoding.budget(row),
    ended=decoding.ended(row),
    steps=decoding.steps(row),
  )


class Stream:
  """An answer in the making; iterate over it for its text, piece by piece.

  Attributes:
    answer: the answer so far; after the last piece, all of it.
  """

  def __init__(
    self, model: Any, request: request_lib.Request, decoding: engine.Decoding
  ):
    self._model, self._request, self._decoding = model, request, decoding
    self._text = AnswerText(model.tokenizer, request.stop)
    self._given, self._stopped = 0, False

  def __iter__(self) -> Iterator[str]:
    """Pieces of whole characters that together are the answer's text."""
    while True:
      self._text.read(self._decoding.tokens(0))
      if self._text.stopped:
        with self._model.on_mesh():
          self._decoding.end(0)
      over = self._decoding.done or self._stopped
      certain = self._text.text if over else self._text.certain
      if len(certain) > self._given:
        piece, self._given = certain[self._given :], len(certain)
        yield piece
      if over or self._stopped:
        return
      with self._model.on_mesh():
        self._decoding.step()

  def stop(self) -> None:
    """Ends the answer after the token that is being made."""
    self._stopped = True

  @property
  def answer(self) -> Answer:
    return of_row(self._model, self._request, self._decoding, 0, self._text)
