"""Converts a random checkpoint of Qwen2.5-7B's shape: memory, time, bandwidth.

python benchmarks/convert.py [--layers=28] [--shrink=1] [--export]
    [--folder=/tmp] [--json=FILE]

A sharded bfloat16 checkpoint with its config.json is made in a new directory
below --folder (15.2 GB; as much again for the result, and everything is deleted
at the end). Then come, each with the source dropped from the page cache: a
plain sequential copy of the same bytes, and launch/convert.py in a process of
its own; with --export, also the way back. Of that process are shown

  peak       VmHWM: the most that was resident, with libraries and mapped files
  anonymous  the largest RssAnon of a sample every 20 ms: heap alone
  read, written   rchar, wchar of /proc/self/io: bytes of its calls, so mapped
             files don't count

It exits with 1 if a peak is above the bound: twice the largest tensor + 1 GB.
"""

import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

import numpy as np
from absl import flags

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks import random_checkpoint
from gaze_jax import cli
from gaze_jax import errors

ROOT = pathlib.Path(__file__).resolve().parent.parent

_LAYERS = flags.DEFINE_integer("layers", 28, "of the decoder", 1)
_SHRINK = flags.DEFINE_enum(
  "shrink", "1", ["1", "2", "4"], "divides heads, widths and vocabulary"
)
_EXPORT = flags.DEFINE_bool("export", False, "also time the way back")
_FOLDER = flags.DEFINE_string("folder", tempfile.gettempdir(), "where to write")
_JSON = cli.define_file("json", "a file for the rows")

_SAMPLE = 0.02  # seconds
_BLOCK = 2**24  # bytes of a read of the plain copy


@dataclasses.dataclass(frozen=True)
class Row:
  """What one way of moving the checkpoint took.

  Attributes:
    what: its name.
    seconds: from start to end of the process, everything on the disk.
    bytes: of weights that were moved.
    read: bytes of its read calls.
    written: bytes of its write calls.
    peak: bytes, VmHWM; 0 if not measured.
    anonymous: bytes, the largest RssAnon seen; 0 if not measured.
  """

  what: str
  seconds: float
  bytes: int
  read: int
  written: int
  peak: int = 0
  anonymous: int = 0

  @property
  def bandwidth(self) -> float:
    """Bytes of weights a second, read and written once."""
    return self.bytes / self.seconds


def main() -> None:
  folder = pathlib.Path(_FOLDER.value)
  if not folder.is_dir():
    raise errors.GazeError(f"--folder={folder}: no such directory")
  config = random_checkpoint.qwen(_LAYERS.value, int(_SHRINK.value))
  specs = random_checkpoint.shapes(config)
  total = sum(2 * int(np.prod(shape)) for shape in specs.values())
  needed, free = 2 * total + 2**30, shutil.disk_usage(folder).free
  if free < needed:
    raise errors.GazeError(
      f"--folder={folder}: {needed / 1e9:.0f} GB are needed, {free / 1e9:.0f}"
      " GB are free; choose another or fewer --layers"
    )
  work = pathlib.Path(tempfile.mkdtemp(prefix="gaze_convert_", dir=folder))
  try:
    rows = _measure(work, config, specs, total)
  finally:
    shutil.rmtree(work)
  largest = max(2 * int(np.prod(shape)) for shape in specs.values())
  bound = 2 * largest + 10**9
  _show(rows, total, largest, bound)
  if _JSON.value:
    table = {
      "layers": _LAYERS.value,
      "bytes": total,
      "largest_tensor": largest,
      "bound": bound,
      "rows": [
        dataclasses.asdict(r) | {"bandwidth": r.bandwidth} for r in rows
      ],
    }
    pathlib.Path(_JSON.value).write_text(json.dumps(table, indent=2) + "\n")
  if max(row.peak for row in rows) > bound:
    raise errors.GazeError("a peak is above the bound")


def _measure(
  work: pathlib.Path,
  config: dict[str, object],
  specs: dict[str, tuple[int, ...]],
  total: int,
) -> list[Row]:
  source, copied, ours = work / "source", work / "copy", work / "ours"
  random_checkpoint.make(source, config, specs)
  _drop_cache(source)
  rows = [_copy(source, copied, total)]
  shutil.rmtree(copied)
  _drop_cache(source)
  command = [f"--from={source}", f"--to={ours}"]
  rows.append(_run("convert", command, total))
  if _EXPORT.value:
    shutil.rmtree(source)
    _drop_cache(ours)
    command = [f"--from={ours}", f"--export={work / 'back'}"]
    rows.append(_run("export", command, total))
  return rows


def _drop_cache(folder: pathlib.Path) -> None:
  """Files that were flushed leave the page cache, so reading is reading."""
  for file in folder.rglob("*.safetensors"):
    handle = os.open(file, os.O_RDONLY)
    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(handle)


def _copy(source: pathlib.Path, to: pathlib.Path, total: int) -> Row:
  """A copy by reads and writes of 16 MB, flushed; no reflink, no sendfile."""
  start, moved = time.perf_counter(), 0
  to.mkdir()
  buffer = memoryview(bytearray(_BLOCK))
  for file in sorted(source.iterdir()):
    with (
      file.open("rb", buffering=0) as reader,
      (to / file.name).open("wb", buffering=0) as writer,
    ):
      while got := reader.readinto(buffer):
        moved += writer.write(buffer[:got])
      os.fsync(writer.fileno())
  return Row("copy", time.perf_counter() - start, total, moved, moved)


def _run(what: str, arguments: list[str], total: int) -> Row:
  """launch/convert.py, watched from outside."""
  start = time.perf_counter()
  child = subprocess.Popen(
    [sys.executable, "launch/convert.py", *arguments],
    cwd=ROOT,
    env=os.environ | {"JAX_PLATFORMS": "cpu"},
  )
  most: dict[str, int] = {}
  try:
    while child.poll() is None:
      for key, value in _counters(child.pid).items():
        most[key] = max(most.get(key, 0), value)
      time.sleep(_SAMPLE)
  finally:
    child.kill()
    child.wait()
  if child.returncode:
    raise errors.GazeError(f"launch/convert.py exited with {child.returncode}")
  return Row(
    what,
    time.perf_counter() - start,
    total,
    most.get("rchar", 0),
    most.get("wchar", 0),
    most.get("VmHWM", 0),
    most.get("RssAnon", 0),
  )


def _counters(pid: int) -> dict[str, int]:
  """Numbers of /proc, in bytes; none if the process has just ended."""
  out = {}
  try:
    for name in ("status", "io"):
      for line in pathlib.Path(f"/proc/{pid}/{name}").read_text().splitlines():
        key, _, value = line.partition(":")
        if key in ("VmHWM", "RssAnon", "rchar", "wchar"):
          unit = 1024 if value.endswith("kB") else 1
          out[key] = int(value.split()[0]) * unit
  except (OSError, ValueError, IndexError):
    return {}
  return out


def _show(rows: list[Row], total: int, largest: int, bound: int) -> None:
  gb = lambda n: f"{n / 1e9:9.2f}"
  print(
    f"{_LAYERS.value} layers, {total / 1e9:.2f} GB of bfloat16, largest tensor"
    f" {largest / 1e9:.2f} GB, bound {bound / 1e9:.2f} GB"
  )
  print("           seconds     GB/s     read  written     peak anonymous  GB")
  for row in rows:
    memory = gb(row.peak) + gb(row.anonymous) if row.peak else ""
    print(
      f"{row.what:9}{row.seconds:9.1f}{gb(row.bandwidth)}{gb(row.read)}"
      f"{gb(row.written)}{memory}"
    )


if __name__ == "__main__":
  cli.main(main)
