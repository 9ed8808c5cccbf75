"""PNG files as Pillow reads them well: with the chunks alone that matter.

Pillow refuses a picture for its texts and profiles, however sound the pixels
are, and sees EXIF behind the pixels only once it has decoded them.
"""

import io
from collections.abc import Collection, Iterator

MAGIC = b"\x89PNG\r\n\x1a\n"
# What is kept: for the size, the pixels, the frames, and the EXIF.
SIZE = (b"IHDR", b"IEND")
PIXELS = (*SIZE, b"PLTE", b"tRNS", b"IDAT")
FRAMES = (*PIXELS, b"acTL", b"fcTL", b"fdAT")
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
EXIF = (*SIZE, *_TEXTS, b"eXIf")

_END = b"\0\0\0\0IEND\xaeB`\x82"
# The texts that say how a picture lies.
_KEYS = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")


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


def parts(file: io.BufferedIOBase, kinds: Collection[bytes]) -> io.BytesIO:
  """A PNG made of some chunks of one; what lies between is not read.

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
    head = file.read(8 + len(_KEYS[0]))[: end - begin]
    if kind not in _TEXTS or head[8:].startswith(_KEYS):
      file.seek(begin)
      out.write(file.read(end - begin))
  if b"IDAT" not in kinds and kind != b"IEND":  # cut off behind its header
    out.write(_END)
  out.seek(0)
  return out
