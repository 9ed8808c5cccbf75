"""Who may ask: the Host, the Origin and the key of a request."""

import dataclasses
import hmac
import ipaddress
import pathlib
from collections.abc import Collection

from starlette import datastructures

from gaze_jax import errors
from gaze_jax.serve import failure

_LEAST_KEY = 16  # characters of a key


@dataclasses.dataclass(frozen=True)
class Guard:
  """What is asked of every request.

  Attributes:
    key: that clients send; None for none.
    hosts: names by which the server may be called, beside addresses and
      localhost. A page that has turned a name of its own to this machine
      (DNS rebinding) sends that name.
    free: paths that need no key.
  """

  key: str | None
  hosts: Collection[str]
  free: Collection[str]

  def check(self, path: str, headers: datastructures.Headers) -> None:
    """Refuses a request.

    Raises:
      failure.Failure: 401 or 403.
    """
    host = headers.get("host", "")
    if not self._known(host):
      raise failure.Failure(
        403,
        "this Host is not served; name it in --allowed_hosts",
        code="host_not_allowed",
      )
    origin = headers.get("origin")
    if origin is not None and origin.partition("://")[2] != host:
      raise failure.Failure(
        403,
        "pages of another origin may not ask here",
        code="origin_not_allowed",
      )
    if self.key is not None and path not in self.free:
      sent = headers.get("authorization", "").encode()
      if not hmac.compare_digest(sent, f"Bearer {self.key}".encode()):
        raise failure.Failure(
          401,
          "the API key is missing or another: send Authorization: Bearer KEY",
          code="invalid_api_key",
          headers={"WWW-Authenticate": "Bearer"},
        )

  def _known(self, host: str) -> bool:
    name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
    if name.lower() in ("localhost", *self.hosts):
      return True
    return is_address(name.removeprefix("[").removesuffix("]"))


def is_address(name: str) -> bool:
  """Whether a host is given by its address."""
  try:
    ipaddress.ip_address(name)
  except ValueError:
    return False
  return True


def is_loopback(host: str) -> bool:
  """Whether nobody but this machine can call a host."""
  return host == "localhost" or (
    is_address(host) and ipaddress.ip_address(host).is_loopback
  )


def read_key(path: str | None, host: str) -> str | None:
  """The key that clients are to send.

  Args:
    path: of the file that has it; None for none.
    host: where the server is to listen.

  Raises:
    errors.GazeError: there is none where one is needed, or it is too short.
  """
  if path is None:
    if is_loopback(host):
      return None
    raise errors.GazeError(
      f"--host={host}: others than this machine can call it, so a key is"
      " needed: write one into a file, and give it as --api_key_file"
    )
  file = pathlib.Path(path)
  if not file.is_file():
    raise errors.GazeError(f"--api_key_file={path}: there is no such file")
  key = file.read_text(encoding="utf-8", errors="replace").strip()
  if len(key) < _LEAST_KEY or not key.isascii() or len(key.split()) != 1:
    raise errors.GazeError(
      f"--api_key_file={path}: a key is one line of {_LEAST_KEY} or more ASCII"
      " characters without spaces, such as openssl rand -hex 24 writes"
    )
  return key
