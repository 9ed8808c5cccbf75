"""One thread that owns the model and answers everybody's jobs.

The other side is an event loop: it passes jobs in through a queue and gets
updates of them, which nobody waits for here. So a client who is slow to read,
or leaves, holds up no other.

  event loop    submit, cancel -> commands      updates -> Ticket, one a client
  this thread   commands -> Scheduler.admit, Scheduler.turn -> updates
"""

import asyncio
import dataclasses
import itertools
import queue
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gaze_jax.api import answer as answer_lib
from gaze_jax.api import model as model_lib
from gaze_jax.decode import scheduler as scheduler_lib
from gaze_jax.serve import trace

# Tokens of a turn at most, and the seconds that it is to take: while somebody
# reads along, and otherwise.
_MOST_STEPS = 32
_STREAMED_SECONDS, _SECONDS = 0.1, 0.5


@dataclasses.dataclass(frozen=True)
class Update:
  """What is new of an answer.

  Attributes:
    text: that no later token takes back.
    tokens: of the answer so far.
    pieces: what each new token adds to the text; none unless it is traced.
    chosen: bool [T, N, Q, R], what each of them read; None likewise.
    result: of the whole answer, with the last update.
    reason: why it ended, "stop" or "length"; likewise.
    reused: slots of the prompt that were read for another request.
    error: of the server; there will be no more.
  """

  text: str = ""
  tokens: int = 0
  pieces: Sequence[str | None] = ()
  chosen: np.ndarray | None = None
  result: scheduler_lib.Result | None = None
  reason: str | None = None
  reused: int = 0
  error: bool = False


class Ticket:
  """A job of the engine; iterate over it for its updates.

  Args:
    job: what is to be done.
    stop: strings that end the answer.
    streams: whether somebody reads along.
  """

  def __init__(
    self, job: scheduler_lib.Job, stop: Sequence[str], *, streams: bool
  ):
    self.job, self.stop, self.streams = job, tuple(stop), streams
    self.number = -1
    self.updates: asyncio.Queue[Update] = asyncio.Queue()
    self._loop = asyncio.get_running_loop()

  def tell(self, update: Update) -> None:
    """Passes an update on; called by the engine's thread."""
    try:
      self._loop.call_soon_threadsafe(self.updates.put_nowait, update)
    except RuntimeError:  # the loop is closed: nobody is there to be told
      return


class _Open:
  """What the engine's thread knows of a ticket."""

  def __init__(self, ticket: Ticket, model: model_lib.Model):
    self.ticket, self._model = ticket, model
    self._text = answer_lib.AnswerText(model.tokenizer, ticket.stop)
    self._pieces = trace.Pieces(model.tokenizer)
    self._given, self.told, self._reused = 0, 0, 0

  def stopped(self, ids: Sequence[int]) -> bool:
    """`scheduler.Job.stopped`."""
    self._text.read(ids)
    return self._text.stopped

  def admitted(self, reused: int) -> None:
    """Its prompt was read, but for so many slots that had been before."""
    self._reused = reused

  def read(self, event: scheduler_lib.Event) -> Update:
    """What is new, for the client."""
    text, result = self._text, event.result
    text.read(event.tokens)
    certain = text.text if result else text.certain
    piece, self._given = certain[self._given :], len(certain)
    new, self.told = event.tokens[self.told : text.count], text.count
    pieces, chosen = (), None
    if event.chosen is not None:
      pieces = self._pieces.add(new, last=result is not None)
      chosen = event.chosen[: len(new)]
    return Update(
      text=piece,
      tokens=text.count,
      pieces=pieces,
      chosen=chosen,
      result=result,
      reason=self._reason(event.tokens) if result else None,
      reused=self._reused,
    )

  def _reason(self, ids: Sequence[int]) -> str:
    ends = self._model.tokenizer.ends
    ended = self._text.stopped or ids[self._text.count - 1] in ends
    return "stop" if ended else "length"


class Engine:
  """Answers jobs in a thread of its own, from `start` to `end`.

  Args:
    model: the model, which nobody else runs meanwhile.
    rows: that are decoded together.
    kept_bytes: of `model.most_cache_bytes`, what pictures that were read may
      take; None for half.
    log: is told what went wrong inside.

  Attributes:
    waiting: jobs without a row.
    live: jobs with one.
    nbytes: as `scheduler.Scheduler.nbytes`.
  """

  def __init__(
    self,
    model: model_lib.Model,
    *,
    rows: int,
    log: Callable[[str], None],
    kept_bytes: int | None = None,
  ):
    self.model, self._rows, self._log = model, rows, log
    whole = model.most_cache_bytes
    self._kept_bytes = whole // 2 if kept_bytes is None else kept_bytes
    self._cache_bytes = whole - self._kept_bytes
    self.waiting, self.live, self.nbytes = 0, 0, (0, 0)
    self._commands: queue.SimpleQueue[Any] = queue.SimpleQueue()
    self._open: dict[int, _Open] = {}
    self._numbers = itertools.count()
    self._ending = False
    self._step_seconds = 0.0  # of a token of all rows, as last measured
    with model.on_mesh():
      self._scheduler = self._new_scheduler()
    self._thread = threading.Thread(
      target=self._run, name="engine", daemon=True
    )

  def start(self) -> None:
    """Begins to answer."""
    self._thread.start()

  def end(self) -> None:
    """Waits until what is open is answered; nothing is taken any more."""
    self._commands.put(self._end)
    self._thread.join()

  @property
  def alive(self) -> bool:
    """Whether it answers."""
    return self._thread.is_alive()

  def check(self, job: scheduler_lib.Job) -> None:
    """As `scheduler.Scheduler.check`."""
    with self.model.on_mesh():
      self._scheduler.check(job)

  def submit(self, ticket: Ticket) -> None:
    """Lets a job wait for a row; `check` lets it pass."""
    ticket.number = next(self._numbers)
    self._commands.put(lambda: self._submit(ticket))

  def cancel(self, ticket: Ticket) -> None:
    """Forgets a job; its row is free after this turn."""
    self._commands.put(lambda: self._cancel(ticket.number))

  # ---- all that follows is of the engine's thread

  def _new_scheduler(self) -> scheduler_lib.Scheduler:
    return scheduler_lib.Scheduler(
      self.model.params,
      self.model.config.model,
      rows=self._rows,
      cache_bytes=self._cache_bytes,
      kept_bytes=self._kept_bytes,
      stop=self.model.tokenizer.ends,
    )

  def _run(self) -> None:
    with self.model.on_mesh():
      while True:
        self._obey(wait=not self._open)
        if self._ending and not self._open:
          return
        try:
          self._work()
        except Exception:  # the next request may do better
          self._log(traceback.format_exc())
          self._fail()

  def _obey(self, *, wait: bool) -> None:
    """Does what was asked for meanwhile."""
    while not (self._ending and wait):
      try:
        self._commands.get(block=wait)()
      except queue.Empty:
        return
      wait = False

  def _end(self) -> None:
    self._ending = True

  def _submit(self, ticket: Ticket) -> None:
    opened = _Open(ticket, self.model)
    self._open[ticket.number] = opened
    job = dataclasses.replace(ticket.job, stopped=opened.stopped)
    self._scheduler.submit(ticket.number, job)
    self._measure()

  def _cancel(self, number: int) -> None:
    if self._open.pop(number, None):
      self._scheduler.cancel(number)
      self._measure()

  def _work(self) -> None:
    """Reads prompts that there is a row for; then a turn."""
    streams = any(one.ticket.streams for one in self._open.values())
    while read := self._scheduler.admit():
      for number, reused in read.items():
        self._open[number].admitted(reused)
      self._measure()
      if streams and self._scheduler.live > len(read):
        break  # who reads along waits for one prompt at a time
      self._obey(wait=False)
    steps, start = self._steps(streams), time.perf_counter()
    events = list(self._scheduler.turn(steps))
    told = [self._tell(event) for event in events]
    self._step_seconds = (time.perf_counter() - start) / max(told, default=1)
    self._measure()

  def _steps(self, streams: bool) -> int:
    """Tokens of the next turn."""
    seconds = _STREAMED_SECONDS if streams else _SECONDS
    if not self._step_seconds:
      return 1
    return min(max(int(seconds / self._step_seconds), 1), _MOST_STEPS)

  def _tell(self, event: scheduler_lib.Event) -> int:
    """Passes on what a turn did; how many tokens it was, at least 1."""
    one = self._open[event.number]
    before, update = one.told, one.read(event)
    one.ticket.tell(update)
    if event.result:
      del self._open[event.number]
    return max(update.tokens - before, 1)

  def _measure(self) -> None:
    self.waiting, self.live = self._scheduler.waiting, self._scheduler.live
    self.nbytes = self._scheduler.nbytes

  def _fail(self) -> None:
    """Ends all that is open, and begins anew: arrays may be gone."""
    for one in self._open.values():
      one.ticket.tell(Update(error=True))
    self._open.clear()
    self._scheduler = self._new_scheduler()
    self._measure()
