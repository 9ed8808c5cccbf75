"""PNG files reduced to the chunks that matter, for Pillow to read.

Pillow refuses an image for a broken text or profile although its pixels are
sound, and sees EXIF behind the pixels only once it has decoded them.
"""

import io
from collections.abc import Collection, Iterator

MAGIC = b"\x89PNG\r\n\x1a\n"
# Kinds of chunks that are kept for the size, the pixels, the frames, the EXIF.
SIZE = (b"IHDR", b"IEND")
PIXELS = (*SIZE, b"PLTE", b"tRNS", b"IDAT")
FRAMES = (*PIXELS, b"acTL", b"fcTL", b"fdAT")
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
EXIF = (*SIZE, *_TEXTS, b"eXIf")

_END = b"\0\0\0\0IEND\xaeB`\x82"
# Keys of the texts that may hold the orientation.
_ORIENTATION_KEYS = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")


def chunks(file: io.BufferedIOBase) -> Iterator[tuple[bytes, int, int]]:
  """Kind, begin and end of each chunk; the last may end past the file's end.

  Args:
    file: begins with `MAGIC`.
  """
  end, kind = len(MAGIC), b""
  while kind != b"IEND":
    file.seek(begin := end)
    if len(head := file.read(8)) < 8:
      return
    kind, end = head[4:], begin + 12 + int.from_bytes(head[:4], "big")
    yield kind, begin, end


def keep(file: io.BufferedIOBase, kinds: Collection[bytes]) -> io.BytesIO:
  """A PNG of the chunks of some kinds; the others are not read.

  Args:
    file: begins with `MAGIC`.
    kinds: one of the collections above.
  """
  out = io.BytesIO()
  out.write(MAGIC)
  kind = b""
  for kind, begin, end in chunks(file):
    if kind not in kinds:
      continue
    file.seek(begin)
    head = file.read(8 + len(_ORIENTATION_KEYS[0]))[: end - begin]
    if kind not in _TEXTS or head[8:].startswith(_ORIENTATION_KEYS):
      file.seek(begin)
      out.write(file.read(end - begin))
  if b"IDAT" not in kinds and kind != b"IEND":  # truncated behind its header
    out.write(_END)
  out.seek(0)
  return out
