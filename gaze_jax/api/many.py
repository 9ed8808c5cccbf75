"""Answers to any number of requests, by continuous batching."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import tqdm

from gaze_jax import errors
from gaze_jax.api import answer as answer_lib
from gaze_jax.api import request as request_lib
from gaze_jax.decode import programs
from gaze_jax.decode import scheduler as scheduler_lib

OnError = Callable[[int, errors.GazeError], None]


def in_order(
  model: Any,
  requests: Iterable[request_lib.Request],
  batch_size: int,
  progress: bool,
) -> Iterator[answer_lib.Answer]:
  """`Model.generate_many`."""
  ready: dict[int, answer_lib.Answer] = {}
  given = 0
  for number, answer in as_completed(
    model, requests, batch_size, progress, None
  ):
    ready[number] = answer
    while given in ready:
      yield ready.pop(given)
      given += 1


def as_completed(
  model: Any,
  requests: Iterable[request_lib.Request],
  batch_size: int,
  progress: bool,
  on_error: OnError | None,
) -> Iterator[tuple[int, answer_lib.Answer]]:
  """`Model.generate_as_completed`."""
  if batch_size < 1:
    raise request_lib.RequestError(
      f"batch_size = {batch_size}: give at least 1"
    )
  with model.on_mesh():
    scheduler = scheduler_lib.Scheduler(
      model.params,
      model.config.model,
      rows=batch_size,
      cache_bytes=model.most_cache_bytes,
      stop=model.tokenizer.ends,
    )
  jobs = _Jobs(model, requests, scheduler, on_error)
  results = scheduler.run(jobs)
  total = len(requests) if hasattr(requests, "__len__") else None
  bar = tqdm.tqdm(total=total, desc="answers", disable=not progress)
  with bar:
    while True:
      # Not around a yield: who iterates has a mesh of their own.
      with model.on_mesh():
        done = next(results, None)
      if done is None:
        break
      answered = jobs.answer(*done)
      bar.set_postfix(programs=programs.compiled())
      bar.update()
      yield answered
  if jobs.error:
    raise jobs.error


class _Jobs:
  """Requests as jobs, and results as answers."""

  def __init__(
    self,
    model: Any,
    requests: Iterable[request_lib.Request],
    scheduler: scheduler_lib.Scheduler,
    on_error: OnError | None,
  ):
    self._model, self._requests = model, requests
    self._scheduler, self._on_error = scheduler, on_error
    self._open: dict[int, Any] = {}  # what is being answered, by its job
    self.error: errors.GazeError | None = None

  def __iter__(self) -> Iterator[scheduler_lib.Job]:
    """Ends at the first request that can't be asked, which `error` tells.

    With `on_error` those are passed over.
    """
    taken = 0  # jobs, which the scheduler counts as well
    for number, request in enumerate(self._requests):
      text = answer_lib.AnswerText(self._model.tokenizer, request.stop)

      def stopped(ids, text=text):
        text.read(ids)
        return text.stopped

      try:
        job = self._model.prepare(request)
        self._scheduler.check(job)
      except errors.GazeError as error:
        if self._on_error is None:
          self.error = type(error)(f"request {number}: {error}")
          return
        self._on_error(number, error)
        continue
      # What it showed is in the job, and need not be held twice.
      request = dataclasses.replace(request, images=(), videos=())
      self._open[taken] = number, request, job, text
      taken += 1
      yield dataclasses.replace(job, stopped=stopped)

  def answer(
    self, job_number: int, result: scheduler_lib.Result
  ) -> tuple[int, answer_lib.Answer]:
    """The answer of a job, and the number of its request."""
    number, request, job, text = self._open.pop(job_number)
    text.read(result.tokens)
    context = dataclasses.replace(job.after, cache=None)
    return number, answer_lib.finish(
      *(self._model, request, text, result, context), budget=job.prompt.budget
    )
