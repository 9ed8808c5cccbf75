"""Whether a video file is truncated: whether a part of it ends past its end.

Seconds and frame counts of a header may be wrong or missing: a last frame is
held, times begin late, a stream was recorded. The size in bytes that a part of
a file gives is right in a complete file. ffmpeg marks a frame of which a part
is missing; here is what it does not notice.
"""

import io
import pathlib

from gaze_jax.data import png

_SEGMENT = 0x18538067  # the element of a Matroska file that holds all others
_GIF_HEAD = 13
_GIF_EXTENSION, _GIF_IMAGE = b"\x21", b"\x2c"


def is_truncated(path: pathlib.Path, kind: str) -> bool:
  """Whether a part of a file ends past the file's end.

  Args:
    path: the file.
    kind: ffmpeg's first name for its format, or Pillow's; most formats are not
      checked here.
  """
  end_of = dict(matroska=_matroska_end, GIF=_gif_end, PNG=_png_end).get(kind)
  if end_of is None:
    return False
  with open(path, "rb") as file:
    return end_of(file) > path.stat().st_size


def _matroska_end(file: io.BufferedIOBase) -> int:
  """Where the segment ends; 0 if its size is not known, as of a live stream."""
  while True:
    kind, size = _ebml_number(file, is_id=True), _ebml_number(file)
    if kind is None or size is None:
      return 0
    if kind == _SEGMENT:
      return file.tell() + size
    file.seek(size, io.SEEK_CUR)


def _ebml_number(file: io.BufferedIOBase, *, is_id: bool = False) -> int | None:
  """The next number of EBML; None for one that is unknown, or missing.

  Args:
    file: at its first byte.
    is_id: an id keeps the marker of its length, a size does not.
  """
  if not (first := file.read(1)) or not first[0]:
    return None
  length = 9 - first[0].bit_length()
  value = int.from_bytes(first + file.read(length - 1), "big")
  if is_id:
    return value
  most = (1 << 7 * length) - 1
  return None if value & most == most else value & most


def _png_end(file: io.BufferedIOBase) -> int:
  """Where the last chunk ends, or the missing IEND would."""
  kind, end = b"", 0
  for kind, _, end in png.chunks(file):  # noqa: B007
    pass
  return end + 12 * (kind != b"IEND")


def _gif_end(file: io.BufferedIOBase) -> int:
  """Where the last block ends; the trailer may be missing."""
  head = file.read(_GIF_HEAD)
  file.seek(_colour_table_bytes(head[10:11]), io.SEEK_CUR)
  while (block := file.read(1)) in (_GIF_EXTENSION, _GIF_IMAGE):
    if block == _GIF_EXTENSION:
      file.seek(1, io.SEEK_CUR)
    else:
      head = file.read(9)
      file.seek(_colour_table_bytes(head[8:]) + 1, io.SEEK_CUR)
    while size := file.read(1):
      file.seek(size[0], io.SEEK_CUR)
      if not size[0]:
        break
    else:
      return file.tell() + 1  # a block of no bytes ends a run of them
  return file.tell()


def _colour_table_bytes(flags: bytes) -> int:
  """Bytes of a colour table."""
  return 3 << (flags[0] & 7) + 1 if flags and flags[0] & 0x80 else 0
