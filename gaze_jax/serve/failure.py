"""What a client is told that went wrong, as the OpenAI API tells it."""

from typing import Any

from gaze_jax import errors

_TYPES = {
  401: "authentication_error",
  403: "permission_error",
  429: "rate_limit_error",
}


class Failure(errors.GazeError):
  """An error of one request.

  Args:
    status: of HTTP.
    message: for people; it names no path of the server.
    param: path of the field in the body, or None.
    code: for programs, one of docs/serve.md.
    headers: of the response.
  """

  def __init__(
    self,
    status: int,
    message: str,
    *,
    code: str,
    param: str | None = None,
    headers: dict[str, str] | None = None,
  ):
    super().__init__(message)
    self.status, self.message, self.headers = status, message, headers
    self.param, self.code = param, code

  def body(self) -> dict[str, Any]:
    """The standard error body."""
    other = "server_error" if self.status >= 500 else "invalid_request_error"
    return dict(
      error=dict(
        message=self.message,
        type=_TYPES.get(self.status, other),
        param=self.param,
        code=self.code,
      )
    )


def of_field(path: str, message: str, code: str = "invalid_value") -> Failure:
  """A field of the body that can't be taken, named by its path."""
  return Failure(400, f"{path}: {message}", code=code, param=path)
