"""The server as an ASGI application: its paths, and what stands before them."""

import contextlib
import time
import traceback
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette import applications
from starlette import datastructures
from starlette import exceptions
from starlette import requests
from starlette import responses
from starlette import routing
from starlette import types

from gaze_jax.api import model as model_lib
from gaze_jax.layout import budgets
from gaze_jax.serve import chat as chat_lib
from gaze_jax.serve import engine as engine_lib
from gaze_jax.serve import failure
from gaze_jax.serve import guard as guard_lib
from gaze_jax.serve import limits as limits_lib
from gaze_jax.serve import metrics as metrics_lib
from gaze_jax.serve import page

_LEFT = 499  # who left before anything was sent; as nginx writes it
_HEADERS = {
  "Content-Security-Policy": page.POLICY,
  "X-Content-Type-Options": "nosniff",
  "Referrer-Policy": "no-referrer",
  "Cache-Control": "no-cache",
}


class Server:
  """A model that is served.

  Args:
    model: the model.
    log: is told a line for each request, and what went wrong inside.
    name: what clients call the model.
    rows: that are decoded together.
    kept_bytes: as in `engine.Engine`.
    limits: of requests.
    key: that clients must send; None for none.
    hosts: as in `guard.Guard`.

  Attributes:
    engine: that answers.
    app: for an ASGI server; its lifespan starts and ends the engine.
  """

  def __init__(
    self,
    model: model_lib.Model,
    log: Callable[[str], None],
    *,
    name: str = "gaze",
    rows: int = 8,
    kept_bytes: int | None = None,
    limits: limits_lib.Limits = limits_lib.Limits(),  # noqa: B008
    key: str | None = None,
    hosts: tuple[str, ...] = (),
  ):
    self._model, self._log, self._name = model, log, name
    self._limits, self._created = limits, int(time.time())
    self._page = page.read()
    self._guard = guard_lib.Guard(key, hosts, ("/health", *self._page))
    self.engine = engine_lib.Engine(
      model, rows=rows, log=log, kept_bytes=kept_bytes
    )
    self._metrics = metrics_lib.Metrics(self.engine)
    self._chat = chat_lib.Chat(self.engine, name, limits, self._metrics, rows)
    routed = applications.Starlette(
      routes=self._routes(),
      exception_handlers={
        failure.Failure: _failed,
        exceptions.HTTPException: _refused,
        Exception: _broken,
      },
      lifespan=self._lifespan,
    )
    self.app = _Front(routed, self._guard, self._metrics, log)

  def stop(self) -> None:
    """Takes no further request; those that run are finished."""
    self._chat.ending = True

  def _routes(self) -> list[routing.Route]:
    get = lambda path, endpoint: routing.Route(path, endpoint)
    files = [get(path, self._file) for path in self._page]
    return [
      routing.Route("/v1/chat/completions", self._chat, methods=["POST"]),
      get("/v1/models", self._models),
      get("/v1/models/{name}", self._one_model),
      get("/health", self._health),
      get("/metrics", self._numbers),
      *files,
    ]

  @contextlib.asynccontextmanager
  async def _lifespan(self, app: Any) -> AsyncIterator[None]:
    del app
    self.engine.start()
    yield
    self._chat.close()
    self.engine.end()

  async def _file(self, request: requests.Request) -> responses.Response:
    file = self._page[request.url.path]
    return responses.Response(
      file.content, media_type=file.media_type, headers=_HEADERS
    )

  async def _models(self, request: requests.Request) -> responses.Response:
    del request
    return responses.JSONResponse(dict(object="list", data=[self._about()]))

  async def _one_model(self, request: requests.Request) -> responses.Response:
    if request.path_params["name"] != self._name:
      raise failure.Failure(
        404,
        f"model: there is no such one; here is {self._name!r}",
        code="model_not_found",
        param="model",
      )
    return responses.JSONResponse(self._about())

  async def _health(self, request: requests.Request) -> responses.Response:
    del request
    if self._chat.ending:
      return responses.JSONResponse(dict(status="ending"), 503)
    if not self.engine.alive:
      return responses.JSONResponse(dict(status="failed"), 503)
    return responses.JSONResponse(dict(status="ok"))

  async def _numbers(self, request: requests.Request) -> responses.Response:
    del request
    return responses.Response(
      self._metrics.text(), media_type="text/plain; version=0.0.4"
    )

  def _about(self) -> dict[str, Any]:
    """The model, as `/v1/models` has it."""
    config, limits = self._model.config, self._limits
    gaze, decoder = config.model.gaze, config.model.decoder
    largest, trained = budgets.of_config(config)
    return dict(
      id=self._name,
      object="model",
      created=self._created,
      owned_by="gaze_jax",
      gaze=dict(
        sees={"vision", "projector"} <= self._model.params.keys(),
        layers=decoder.depth,
        heads=decoder.query_heads,
        kv_heads=decoder.kv_heads,
        context_tokens=gaze.context_tokens,
        region=list(gaze.region),
        granularity=gaze.granularity,
        budget=dict(unit=gaze.budget, trained=trained, largest=largest),
        regions=["scores", "random"],
        limits=dict(
          body_bytes=limits.body_bytes,
          images=limits.images,
          pixels=min(limits.pixels, config.data.max_pixels),
          frames=limits.frames,
          tokens=limits.tokens,
          default_tokens=limits.default_tokens,
        ),
      ),
    )


class _Front:
  """Checks every request before its path is looked at, counts and logs it."""

  def __init__(
    self,
    app: types.ASGIApp,
    guard: guard_lib.Guard,
    metrics: metrics_lib.Metrics,
    log: Callable[[str], None],
  ):
    self._app, self._guard, self._metrics = app, guard, metrics
    self._log = log

  async def __call__(
    self, scope: types.Scope, receive: types.Receive, send: types.Send
  ) -> None:
    if scope["type"] != "http":
      await self._app(scope, receive, send)
      return
    start, status = time.perf_counter(), _LEFT

    async def sent(message: types.Message) -> None:
      nonlocal status
      if message["type"] == "http.response.start":
        status = message["status"]
      await send(message)

    scope["state"] = {}  # of this request
    try:
      headers = datastructures.Headers(scope=scope)
      self._guard.check(scope["path"], headers)
      await self._app(scope, receive, sent)
    except failure.Failure as error:
      scope["state"]["failed"] = error.code
      await _answer(error)(scope, receive, sent)
    except Exception:  # the client was told by `_broken`
      self._log(traceback.format_exc())
    finally:
      self._metrics.requests.labels(str(status)).inc()
      self._log(_line(scope, status, time.perf_counter() - start))


def _line(scope: types.Scope, status: int, seconds: float) -> str:
  """What the log says of a request: nothing of what was asked."""
  out = f"{scope['method']} {scope['path'][:80]!a} {status} {seconds:.3f} s"
  exchange = scope["state"].get("exchange")
  if exchange is not None and exchange.tokens:
    prompt, cached, answer = exchange.tokens
    out += f" prompt {prompt} (cached {cached}) answer {answer}"
  if exchange is not None and exchange.first is not None:
    out += f" first {exchange.first:.3f} s"
  if failed := scope["state"].get("failed"):
    out += f" {failed}"
  return out


def _answer(error: failure.Failure) -> responses.Response:
  return responses.JSONResponse(error.body(), error.status, error.headers)


async def _failed(
  request: requests.Request, error: Exception
) -> responses.Response:
  request.scope["state"]["failed"] = error.code
  return _answer(error)


async def _refused(
  request: requests.Request, error: Exception
) -> responses.Response:
  """What the router refuses: paths and methods."""
  del request
  status = error.status_code
  code = {404: "not_found", 405: "method_not_allowed"}.get(status, "refused")
  message = str(error.detail).lower()
  return _answer(
    failure.Failure(status, message, code=code, headers=error.headers)
  )


async def _broken(
  request: requests.Request, error: Exception
) -> responses.Response:
  """A fault of ours, which is raised anew for the log."""
  del request, error
  return _answer(
    failure.Failure(500, "the server failed", code="internal_error")
  )
