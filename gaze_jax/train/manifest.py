"""A list of a checkpoint's files with their sizes and checksums.

It is written into a step's directory before that gets its name, so a step that
has one is finished, and whoever reads the step can tell that it is whole.
"""

import concurrent.futures
import dataclasses
import json
import os
import zlib
from collections.abc import Sequence
from typing import Any

from gaze_jax import schema
from gaze_jax import storage
from gaze_jax import whole_file

NAME = "manifest.json"
_BLOCK = 4 * 2**20
_THREADS = 4  # a crc32 takes 4 GB a second, a disk may be faster


class DamagedError(Exception):
  """A directory is no whole checkpoint; the message is the reason."""


@dataclasses.dataclass(frozen=True)
class Manifest:
  """What is known of a step without reading it.

  Attributes:
    step: its number.
    loss: mean training loss of the steps since the save before; None if there
      were none.
    files: size in bytes and crc32 by name, relative to the step's directory.
  """

  step: int
  loss: float | None
  files: dict[str, tuple[int, int]]


def write(directory: storage.Path, step: int, loss: float | None) -> None:
  """Writes the manifest of all files in subdirectories, and syncs them all.

  Files of the directory itself are left out: orbax still writes two there, of
  which no reader here takes anything.

  Raises:
    OSError: something can't be read or written.
  """
  folders = sorted(p for p in directory.iterdir() if p.is_dir())
  sums = {
    file.relative_to(directory).as_posix(): _sum(file, sync=True)
    for folder in folders
    for file in storage.files(folder)
  }
  content = schema.stamp("checkpoint") | dict(step=step, loss=loss, files=sums)
  text = json.dumps(content, sort_keys=True)
  text = f"{text}\n{zlib.crc32(text.encode()):08x}\n"
  if storage.is_remote(directory):
    whole_file.write(directory / NAME, text)
    return
  partial = directory / f"{NAME}.partial"
  with partial.open("w", encoding="utf-8") as file:
    file.write(text)
    file.flush()
    os.fsync(file.fileno())
  os.replace(partial, directory / NAME)


def read(directory: storage.Path) -> Manifest:
  """The manifest of a step's directory.

  Raises:
    DamagedError: it is not there, damaged, or of another step.
    schema.SchemaError: the directory is of a form that is not read here.
  """
  try:
    text = (directory / NAME).read_text(encoding="utf-8")
  except (FileNotFoundError, NotADirectoryError):
    raise DamagedError(
      f"no {NAME}, so not a finished checkpoint of gaze_jax"
    ) from None
  except (OSError, UnicodeDecodeError) as error:
    raise DamagedError(f"{NAME}: {error}") from None
  content, _, checksum = text.partition("\n")
  if checksum != f"{zlib.crc32(content.encode()):08x}\n":
    raise DamagedError(f"{NAME} is damaged")
  values: dict[str, Any] = json.loads(content)
  schema.read(values, f"step {directory.name}", "checkpoint")
  if str(values["step"]) != directory.name:
    raise DamagedError(f"holds step {values['step']}")
  files = {name: tuple(facts) for name, facts in values["files"].items()}
  return Manifest(values["step"], values["loss"], files)


def check(directory: storage.Path, parts: Sequence[str]) -> None:
  """Reads the files of some subdirectories and compares them.

  Raises:
    DamagedError: naming the first file that is not as it was written.
    schema.SchemaError: as `read`.
  """
  files = read(directory).files
  names = [name for name in files if name.split("/")[0] in parts]
  missing = set(parts) - {name.split("/")[0] for name in names}
  if missing:
    raise DamagedError(f"has no {', '.join(sorted(missing))}")
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    reasons = pool.map(lambda n: _wrong(directory / n, *files[n]), names)
    for name, reason in zip(names, reasons, strict=True):
      if reason:
        pool.shutdown(cancel_futures=True)
        raise DamagedError(f"{name} {reason}")


def _wrong(file: storage.Path, size: int, crc: int) -> str | None:
  """What is wrong with a file; its size first, which costs no reading."""
  try:
    if (now := storage.size(file)) != size:
      return f"has {now} bytes instead of {size}"
    return None if _sum(file)[1] == crc else "has another checksum"
  except FileNotFoundError:
    return "is missing"
  except OSError as error:
    return f"can't be read: {error.strerror}"


def _sum(file: storage.Path, *, sync: bool = False) -> tuple[int, int]:
  """Size and crc32."""
  size = crc = 0
  block = bytearray(_BLOCK)
  with storage.open_bytes(file) as stream:
    if sync and not storage.is_remote(file):
      os.fsync(stream.fileno())
    while count := stream.readinto(block):
      crc = zlib.crc32(memoryview(block)[:count], crc)
      size += count
  return size, crc
