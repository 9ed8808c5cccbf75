"""Serves until it is told to end."""

import asyncio
import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator

import uvicorn

from gaze_jax import errors
from gaze_jax.serve import app as app_lib

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_BACKLOG = 2048


class _Uvicorn(uvicorn.Server):
  """uvicorn's server, which leaves signals to us.

  Its own handlers raise a signal anew once all is done, and the process would
  end by it instead of with 0.
  """

  @contextlib.contextmanager
  def capture_signals(self) -> Iterator[None]:
    yield


def run(
  server: app_lib.Server,
  host: str,
  port: int,
  ready: Callable[[str], None],
) -> None:
  """Serves; returns after SIGTERM or Ctrl-C, once what runs is finished.

  Args:
    server: what is served.
    host: where to listen.
    port: likewise; 0 for a free one.
    ready: is told the address.

  Raises:
    errors.GazeError: nothing can listen there.
  """
  listener = _listen(host, port)
  running = _Uvicorn(_config(server))

  def stop(number: int) -> None:
    del number
    running.force_exit = running.should_exit  # at the second signal
    running.should_exit = True
    server.stop()

  async def serve() -> None:
    for number in _SIGNALS:
      asyncio.get_running_loop().add_signal_handler(number, stop, number)
    name = f"[{host}]" if ":" in host else host
    ready(f"http://{name}:{listener.getsockname()[1]}")
    await running.serve(sockets=[listener])

  asyncio.run(serve())


@contextlib.contextmanager
def background(server: app_lib.Server) -> Iterator[str]:
  """Serves in a thread, on loopback; gives the address.

  At the end requests that run are finished.
  """
  listener = _listen("127.0.0.1", 0)
  running = uvicorn.Server(_config(server))
  thread = threading.Thread(
    target=running.run, kwargs=dict(sockets=[listener]), name="serve"
  )
  thread.start()
  try:
    # What is sent before it is ready waits in the listener's queue.
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
  finally:
    running.should_exit = True
    thread.join()


def _config(server: app_lib.Server) -> uvicorn.Config:
  return uvicorn.Config(
    server.app,
    lifespan="on",
    log_level="warning",
    access_log=False,
    server_header=False,
    proxy_headers=False,
    ws="none",
  )


def _listen(host: str, port: int) -> socket.socket:
  try:
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    return socket.create_server((host, port), family=family, backlog=_BACKLOG)
  except OSError as error:
    raise errors.GazeError(
      f"--host={host} --port={port}: {error.strerror}; name another"
    ) from None
