"""Whether a video file was cut short, by its own parts.

What a header says of seconds and frames may be wrong or missing: a last frame
is held, times begin late, a stream was recorded. But a part of a file names its
size in bytes, and that one can't be wrong of a file that is whole. ffmpeg marks
a frame of which a part is missing; here is what it does not notice.
"""

import io
import pathlib

from gaze_jax.data import png

_SEGMENT = 0x18538067  # the part of a Matroska file that holds the others
_GIF_HEAD = 13
_GIF_EXTENSION, _GIF_IMAGE = b"\x21", b"\x2c"


def is_cut(path: pathlib.Path, kind: str) -> bool:
  """Whether a part of a file reaches past its end.

  Args:
    path: the file.
    kind: ffmpeg's first name for its format, or Pillow's; of most there is
      nothing to find here.
  """
  walk = dict(matroska=_matroska, GIF=_gif, PNG=_png).get(kind)
  if walk is None:
    return False
  with open(path, "rb") as file:
    return walk(file) > path.stat().st_size


def _matroska(file: io.BufferedIOBase) -> int:
  """Where the segment ends; 0 if it does not say, as in a live stream."""
  while True:
    kind, size = _number(file, keep=True), _number(file)
    if kind is None or size is None:
      return 0
    if kind == _SEGMENT:
      return file.tell() + size
    file.seek(size, io.SEEK_CUR)


def _number(file: io.BufferedIOBase, *, keep: bool = False) -> int | None:
  """A number of EBML; None for one that is unknown, or not there.

  Args:
    file: where it begins.
    keep: its marker of length as well, which is a part of an id.
  """
  if not (first := file.read(1)) or not first[0]:
    return None
  length = 9 - first[0].bit_length()
  value = int.from_bytes(first + file.read(length - 1), "big")
  if keep:
    return value
  most = (1 << 7 * length) - 1
  return None if value & most == most else value & most


def _png(file: io.BufferedIOBase) -> int:
  """Where the last chunk ends, which must be the one that marks the end."""
  kind, end = b"", 0
  for kind, _, end in png.chunks(file):  # noqa: B007
    pass
  return end + 12 * (kind != b"IEND")


def _gif(file: io.BufferedIOBase) -> int:
  """Where the last block ends; one that marks the end may be missing."""
  head = file.read(_GIF_HEAD)
  file.seek(_colours(head[10:11]), io.SEEK_CUR)
  while (block := file.read(1)) in (_GIF_EXTENSION, _GIF_IMAGE):
    if block == _GIF_EXTENSION:
      file.seek(1, io.SEEK_CUR)
    else:
      head = file.read(9)
      file.seek(_colours(head[8:]) + 1, io.SEEK_CUR)
    while size := file.read(1):
      file.seek(size[0], io.SEEK_CUR)
      if not size[0]:
        break
    else:
      return file.tell() + 1  # a block of no bytes ends a run of them
  return file.tell()


def _colours(flags: bytes) -> int:
  """Bytes of a table of colours."""
  return 3 << (flags[0] & 7) + 1 if flags and flags[0] & 0x80 else 0
