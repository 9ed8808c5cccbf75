"""What stands where a file was expected: why it can't be read, and the remedy.

The same mistakes are made with files of every kind: a download that kept a web
page or a pointer, a file still packed, an address where a path belongs. Readers
of files ask here before they report what their own format lacks.
"""

import os
import re

HEAD = 64  # bytes of a file that tell what it is

AGAIN = "download or copy it again"
_UNPACK = "unpack it first"
_EXPORT = "prepare it with launch/prepare.py, or write its rows as JSON"
# First bytes, and what a file is that begins with them.
_KINDS = {
  b"version https://git-lfs": (
    "a pointer of Git LFS, not the file: run `git lfs pull` there"
  ),
  b"\x1f\x8b": f"packed by gzip: {_UNPACK}",
  b"\x28\xb5\x2f\xfd": f"packed by zstd: {_UNPACK}",
  b"\xfd7zXZ\0": f"packed by xz: {_UNPACK}",
  b"BZh": f"packed by bzip2: {_UNPACK}",
  b"7z\xbc\xaf": f"a 7z archive: {_UNPACK}",
  b"Rar!": f"a RAR archive: {_UNPACK}",
  b"PK\x03\x04": f"a zip archive: {_UNPACK}",
  b"PAR1": f"a Parquet table: {_EXPORT}",
  b"ARROW1": f"an Arrow table: {_EXPORT}",
  b"SQLite format 3": f"an SQLite database: {_EXPORT}",
}
_PAGE = re.compile(rb"\s*<(!doctype html|html|head|body)\b", re.IGNORECASE)
_ADDRESS = re.compile(r"[a-z][a-z0-9+]+:/", re.IGNORECASE)
_LONGEST = 200  # characters of a name in an error


def kind(head: bytes) -> str:
  """What a file is that holds something else, and what to do; "" if unknown.

  Args:
    head: its first `HEAD` bytes.
  """
  if head in (b"", bytes(HEAD)):
    return f"the file is empty; {AGAIN}"
  if _PAGE.match(head.removeprefix(b"\xef\xbb\xbf")):
    return f"a web page, not the file; {AGAIN}, by the address of the file"
  found = (what for start, what in _KINDS.items() if head.startswith(start))
  return next(found, "")


def is_address(name: str) -> bool:
  """Whether a name is an address, such as https://x.org/y or s3://x/y."""
  return bool(_ADDRESS.match(name))


def no_file(path: str | os.PathLike, folder: str = "") -> str:
  """Why a path leads to no file, and what to do.

  Args:
    path: what somebody gave for a file.
    folder: what it is relative to.
  """
  name = str(path)
  if name.startswith("data:"):
    return "a file written out, not the name of a file: give its bytes"
  if is_address(name):
    return "an address, and only files are read: download it first"
  if os.path.isdir(os.path.join(folder, name)):
    return "a folder, and a file is needed"
  return "no such file"


def short(name: str | os.PathLike) -> str:
  """A name as errors show it: shortened, where no file has one as long."""
  name = str(name)
  return name if len(name) <= _LONGEST else f"{name[:_LONGEST]} ..."
