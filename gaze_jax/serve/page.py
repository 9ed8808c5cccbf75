"""The page's own files, as they are served: read once, by the paths below."""

import dataclasses
import pathlib
from collections.abc import Mapping

_FOLDER = pathlib.Path(__file__).parent
# Path: the file.
FILES: Mapping[str, pathlib.Path] = {
  "/": _FOLDER / "page.html",
}
_TYPES = {
  ".html": "text/html; charset=utf-8",
  ".css": "text/css; charset=utf-8",
  ".js": "text/javascript; charset=utf-8",
  ".svg": "image/svg+xml",
}
# Nothing but what is served here, and what the page itself makes.
POLICY = (
  "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"
  " img-src 'self' data: blob:; media-src data: blob:; base-uri 'none';"
  " form-action 'none'; frame-ancestors 'none'"
)


@dataclasses.dataclass(frozen=True)
class File:
  """A file of the page."""

  content: bytes
  media_type: str


def read() -> dict[str, File]:
  """All of them, by their paths."""
  return {
    path: File(file.read_bytes(), _TYPES[file.suffix])
    for path, file in FILES.items()
  }
