"""A free port that stays free until it is taken."""

import contextlib
import socket
from collections.abc import Iterator


@contextlib.contextmanager
def hold() -> Iterator[str]:
  """An address on loopback, such as 127.0.0.1:40123, kept for one server.

  Within the context the system gives the port to nobody who asks for any free
  one. A server that asks for this very port gets it, as gRPC's do by
  SO_REUSEPORT, which the system grants to the same user only.
  """
  with socket.socket() as held:
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    held.bind(("127.0.0.1", 0))
    yield f"127.0.0.1:{held.getsockname()[1]}"
