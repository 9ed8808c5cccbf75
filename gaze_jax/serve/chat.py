"""POST /v1/chat/completions: from a body to an answer, while somebody waits."""

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

from starlette import requests
from starlette import responses
from starlette import types

from gaze_jax import errors
from gaze_jax.api import request as request_lib
from gaze_jax.data import messages
from gaze_jax.data import samples
from gaze_jax.data import video as video_lib
from gaze_jax.decode import context as context_lib
from gaze_jax.decode import scheduler as scheduler_lib
from gaze_jax.serve import answers
from gaze_jax.serve import chat_request
from gaze_jax.serve import engine as engine_lib
from gaze_jax.serve import failure
from gaze_jax.serve import limits as limits_lib
from gaze_jax.serve import metrics as metrics_lib
from gaze_jax.serve import pictures
from gaze_jax.serve import trace

# Bodies that are read and pictures that are decoded at a time; beside the
# engine's thread, which needs a core more than they do.
_THREADS = 2
_LAST_WORD_SECONDS = 1
_SSE = {"Content-Type": "text/event-stream", "Cache-Control": "no-store"}


class _GoneError(Exception):
  """The client left before the answer was complete."""


class Chat:
  """The ASGI application of the path.

  Args:
    engine: that answers.
    name: of the model.
    limits: of requests.
    metrics: that count.
    rows: that the engine decodes together.
  """

  def __init__(
    self,
    engine: engine_lib.Engine,
    name: str,
    limits: limits_lib.Limits,
    metrics: metrics_lib.Metrics,
    rows: int,
  ):
    self._engine, self._name, self._limits = engine, name, limits
    self._metrics, self._most_open = metrics, rows + limits.waiting
    self._open = 0
    self._workers = concurrent.futures.ThreadPoolExecutor(_THREADS, "prepare")
    self.ending = False

  def close(self) -> None:
    """Lets the workers end."""
    self._workers.shutdown()

  async def __call__(
    self, scope: types.Scope, receive: types.Receive, send: types.Send
  ) -> None:
    request = requests.Request(scope, receive)
    exchange = _Exchange(send, scope.setdefault("state", {}))
    self._check_open(request)
    self._open += 1
    try:
      async with asyncio.timeout(self._limits.seconds):
        body = await self._body(request)
        await _while_there(receive, self._answer(body, exchange))
    except TimeoutError:
      most = self._limits.seconds
      await exchange.fail(
        failure.Failure(
          504, f"the request took longer than {most:g} s", code="timeout"
        )
      )
    except failure.Failure as error:
      await exchange.fail(error)
    except _GoneError:
      scope["state"]["failed"] = "client left"
    finally:
      self._open -= 1

  def _check_open(self, request: requests.Request) -> None:
    """Refuses what is not read any more, or is none of ours."""
    if self.ending:
      raise failure.Failure(
        503, "the server was told to end", code="shutting_down"
      )
    if self._open >= self._most_open:
      raise failure.Failure(
        429,
        f"{self._open} requests are open, and no more are taken; try again",
        code="queue_full",
        headers={"Retry-After": "1"},
      )
    kind = request.headers.get("content-type", "").partition(";")[0].strip()
    if kind.lower() != "application/json":
      raise failure.Failure(
        415,
        "send the body as Content-Type: application/json",
        code="unsupported_media_type",
      )

  async def _body(self, request: requests.Request) -> bytes:
    most, out = self._limits.body_bytes, bytearray()
    said = request.headers.get("content-length", "0")
    too_large = failure.Failure(
      413,
      f"the body is larger than {most:,} bytes: send smaller pictures",
      code="request_too_large",
    )
    if said.isdecimal() and int(said[:20]) > most:
      raise too_large
    try:
      async for chunk in request.stream():
        if len(out) + len(chunk) > most:
          raise too_large
        out += chunk
    except requests.ClientDisconnect:
      raise _GoneError from None
    return bytes(out)

  async def _answer(self, body: bytes, exchange: "_Exchange") -> None:
    loop = asyncio.get_running_loop()
    prepare = lambda: self._prepare(body)
    asked, job, geometry = await loop.run_in_executor(self._workers, prepare)
    writer = answers.Writer(
      asked, job, self._engine.model.config.model, geometry
    )
    # Its arrays are the engine's from here on.
    ticket = engine_lib.Ticket(job, asked.stop, streams=asked.stream)
    self._engine.submit(ticket)
    updates = self._updates(ticket, writer, exchange)
    async with contextlib.aclosing(updates):
      if asked.stream:
        await self._stream(updates, writer, exchange)
      else:
        every = [update async for update in updates]
        text = "".join(update.text for update in every)
        await exchange.reply(writer.whole(text, every))

  async def _stream(
    self,
    updates: AsyncIterator[engine_lib.Update],
    writer: answers.Writer,
    exchange: "_Exchange",
  ) -> None:
    async for update in updates:
      chunk = writer.chunk(update)
      if not exchange.began:
        chunk = writer.first_chunk() + chunk
      if update.result:
        chunk += writer.last_chunks(update)
      if chunk:
        await exchange.write(chunk)
    await exchange.end()

  async def _updates(
    self,
    ticket: engine_lib.Ticket,
    writer: answers.Writer,
    exchange: "_Exchange",
  ) -> AsyncIterator[engine_lib.Update]:
    """Of an answer to its end; who leaves before lets its row go."""
    update = None
    try:
      while update is None or update.result is None:
        update = await ticket.updates.get()
        if update.error:
          raise failure.Failure(
            500, "the server failed at this request", code="internal_error"
          )
        if exchange.first is None:
          exchange.first = time.perf_counter() - exchange.start
          self._metrics.first_token.observe(exchange.first)
        yield update
    finally:
      if update is None or update.result is None:
        self._engine.cancel(ticket)
      if update is not None:
        self._count(update, writer, exchange)

  def _count(
    self,
    update: engine_lib.Update,
    writer: answers.Writer,
    exchange: "_Exchange",
  ) -> None:
    numbers = self._metrics
    exchange.tokens = writer.prompt_tokens, update.reused, update.tokens
    numbers.prompt_tokens.inc(writer.prompt_tokens)
    numbers.cached_tokens.inc(update.reused)
    numbers.answer_tokens.inc(update.tokens)
    numbers.seconds.observe(time.perf_counter() - exchange.start)
    if update.result:
      read = update.result.entries[0]
      saved = max(writer.job.after.visual_tokens - read, 0)
      numbers.entries_read.inc(read * update.tokens)
      numbers.entries_saved.inc(saved * update.tokens)

  def _prepare(
    self, body: bytes
  ) -> tuple[chat_request.Asked, scheduler_lib.Job, dict[str, Any] | None]:
    """What is asked, the job, and the geometry of a trace; in a worker."""
    asked = chat_request.read(body, self._limits)
    if asked.model != self._name:
      raise failure.Failure(
        404,
        f"model: there is no such one; here is {self._name!r}",
        code="model_not_found",
        param="model",
      )
    model, gaze = self._engine.model, asked.gaze or chat_request.Gaze()
    data = model.config.data
    shown = pictures.decode(
      asked.media,
      pixels=self._limits.pixels,
      each=data.max_pixels,
      sampling=video_lib.Sampling(
        min(gaze.frames, self._limits.frames), data.fps
      ),
    )
    of = lambda kind: [
      one
      for medium, one in zip(asked.media, shown, strict=True)
      if medium.kind == kind
    ]
    seed = secrets.randbits(32) if asked.seed is None else asked.seed
    request = request_lib.Request(
      "",
      talk=asked.talk,
      images=of(messages.IMAGE),
      videos=of(messages.VIDEO),
      top_k=gaze.top_k,
      share=gaze.share,
      regions=gaze.regions,
      max_tokens=asked.max_tokens,
      stop=asked.stop,
      temperature=asked.temperature,
      top_p=asked.top_p,
      seed=seed,
    )
    job = self._job(request, gaze.trace)
    geometry = None
    if gaze.trace:
      geometry = trace.geometry(job.after, shown, model.config.model)
    return asked, _without_views(job), geometry

  def _job(
    self, request: request_lib.Request, traced: bool
  ) -> scheduler_lib.Job:
    """The job of a request that can be answered."""
    model = self._engine.model
    try:
      with model.on_mesh():
        job = model.prepare(request, in_parts=True, trace=traced)
        self._engine.check(job)
    except context_lib.LimitError as error:
      raise failure.of_field(
        "messages", str(error), "context_length_exceeded"
      ) from None
    except samples.DataError as error:  # it begins with a path
      reason = str(error).removeprefix(f"{model.tokenizer.chat.name}: ")
      raise failure.of_field("messages", reason) from None
    except errors.GazeError as error:
      raise failure.of_field("messages", str(error)) from None
    return job


def _without_views(job: scheduler_lib.Job) -> scheduler_lib.Job:
  """A job without pictures for people, as many jobs may wait."""
  bare = lambda context: dataclasses.replace(context, views=(), talk=())
  prompt = job.prompt._replace(context=bare(job.prompt.context))
  openings = [one._replace(before=bare(one.before)) for one in job.openings]
  return dataclasses.replace(
    job, after=bare(job.after), prompt=prompt, openings=tuple(openings)
  )


@dataclasses.dataclass
class _Exchange:
  """The response to one request, and what the log tells of it.

  Attributes:
    send: of ASGI.
    state: of the request's scope; the log reads this exchange there.
    start: when it came, by `time.perf_counter`.
    began: whether chunks were written.
    first: seconds until the first token; None before.
    tokens: of the prompt, those kept from another, and of the answer.
  """

  send: types.Send
  state: dict[str, Any]
  start: float = dataclasses.field(default_factory=time.perf_counter)
  began: bool = False
  first: float | None = None
  tokens: tuple[int, int, int] | None = None

  def __post_init__(self):
    self.state["exchange"] = self

  async def reply(self, data: dict[str, Any]) -> None:
    """The whole response."""
    await responses.JSONResponse(data)(
      dict(type="http"), _nothing_more, self.send
    )

  async def write(self, chunk: bytes) -> None:
    """A part of a streamed one."""
    if not self.began:
      self.began = True
      response = responses.Response(headers=_SSE)
      headers = [x for x in response.raw_headers if x[0] != b"content-length"]
      await self.send(
        dict(type="http.response.start", status=200, headers=headers)
      )
    await self.send(dict(type="http.response.body", body=chunk, more_body=True))

  async def end(self) -> None:
    """Nothing follows in a streamed one."""
    await self.send(dict(type="http.response.body", body=b""))

  async def fail(self, error: failure.Failure) -> None:
    """An error; within a streamed one it is the last event."""
    if not self.began:
      raise error
    self.state["failed"] = error.code
    # Who does not read is not waited for.
    with contextlib.suppress(TimeoutError):
      async with asyncio.timeout(_LAST_WORD_SECONDS):
        await self.write(answers.event(error.body()))
        await self.end()


async def _nothing_more() -> types.Message:
  return dict(type="http.disconnect")


async def _while_there(receive: types.Receive, work: Any) -> None:
  """Does a work, and stops it when the client leaves.

  Args:
    receive: of ASGI, after the body.
    work: a coroutine.

  Raises:
    _GoneError: the client left.
  """

  async def gone() -> None:
    while (await receive())["type"] != "http.disconnect":
      pass

  working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone())
  try:
    await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
    if not working.done():
      working.cancel()
      await asyncio.wait({working})
    if working.cancelled():
      raise _GoneError
    working.result()
  finally:
    for task in (working, leaving):
      task.cancel()
