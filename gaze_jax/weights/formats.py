"""The formats of files that hold tensors, safetensors and torch.save.

A file is listed by its header; then any part of a tensor can be read.
safetensors files are read here and not by the library of that name, whose
mapped pages count as memory of the process, whose `pread` backend reads a whole
tensor for every slice (0.8.0), and which does not name what a truncated file
lacks. Files of torch.save are read by torch, and never by pickle alone.
"""

import dataclasses
import io
import math
import pathlib
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from gaze_jax import foreign
from gaze_jax import json_file
from gaze_jax.weights import errors

Spans = Sequence[tuple[int, int]]  # (start, stop) of each axis

# What weights may be. Everything else is listed, and never read.
WEIGHTS = tuple(np.dtype(t) for t in (ml_dtypes.bfloat16, "f2", "f4"))
# The format's names of dtypes.
CODES = {
  "BOOL": np.dtype("bool"),
  "BF16": np.dtype(ml_dtypes.bfloat16),
  "F4": np.dtype(ml_dtypes.float4_e2m1fn),
  "F6_E2M3": np.dtype(ml_dtypes.float6_e2m3fn),
  "F6_E3M2": np.dtype(ml_dtypes.float6_e3m2fn),
  "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
  "F8_E4M3FNUZ": np.dtype(ml_dtypes.float8_e4m3fnuz),
  "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
  "F8_E5M2FNUZ": np.dtype(ml_dtypes.float8_e5m2fnuz),
  "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
  "C64": np.dtype("c8"),
  **{f"F{8 * n}": np.dtype(f"f{n}") for n in (2, 4, 8)},
  **{f"I{8 * n}": np.dtype(f"i{n}") for n in (1, 2, 4, 8)},
  **{f"U{8 * n}": np.dtype(f"u{n}") for n in (1, 2, 4, 8)},
}
_PACKED_BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}

_LONGEST_HEADER = 100_000_000  # the format's limit
_BLOCK = 2**24  # bytes of the buffer for rows of which a part is wanted
_GAP = 4096  # reading so many bytes costs no more than a call to skip them
_MAPPED = 2**28  # bytes of a mapped file that may count as ours


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A tensor of a checkpoint, as its file lists it.

  Attributes:
    name: in the file.
    shape: of the array.
    dtype: one of numpy's or ml_dtypes'.
    file: that holds it.
    bytes: it takes there.
    offset: of its first byte in a safetensors file.
  """

  name: str
  shape: tuple[int, ...]
  dtype: np.dtype
  file: pathlib.Path
  bytes: int
  offset: int = 0


def spans(shape: Sequence[int], index: Sequence[slice]) -> Spans:
  """(start, stop) of each axis; axes without a slice are whole.

  Raises:
    ValueError: a slice has a step.
  """
  if len(index) > len(shape) or any(s.step not in (None, 1) for s in index):
    raise ValueError(f"{index} is no part of {shape}: give slices, no steps")
  index = (*index, *(slice(None),) * (len(shape) - len(index)))
  ranges = [s.indices(n) for s, n in zip(index, shape, strict=True)]
  return [(start, max(start, stop)) for start, stop, _ in ranges]


def row_blocks(shape: Sequence[int], limit: int) -> Iterator[slice]:
  """Slices of the leading axis, each of at most `limit` elements or one row."""
  step = max(1, limit // max(1, math.prod(shape[1:])))
  for start in range(0, shape[0], step):
    yield slice(start, min(start + step, shape[0]))


def list_safetensors(path: pathlib.Path) -> dict[str, Tensor]:
  """What a safetensors file holds, by name; only its header is read.

  Raises:
    ConversionError: the file is truncated, or is none of that format.
    OSError: it can't be read.
  """
  size = path.stat().st_size
  header, start = _read_header(path, size)
  header.pop("__metadata__", None)
  tensors = {k: _listed(path, k, v, start) for k, v in header.items()}
  end = start
  for tensor in sorted(tensors.values(), key=lambda t: (t.offset, t.bytes)):
    if tensor.offset != end:
      what = "overlaps with another" if tensor.offset < end else "has a gap"
      raise errors.ConversionError(
        f"{path}: {tensor.name} {what} before it in the file; {foreign.AGAIN}"
      )
    end += tensor.bytes
  if size < end:
    lost = min(t.name for t in tensors.values() if t.offset + t.bytes > size)
    raise errors.ConversionError(
      f"{path}: the file is truncated: {end:,} bytes expected, {size:,} found;"
      f" {lost} is not whole; {foreign.AGAIN}"
    )
  if size > end:
    raise errors.ConversionError(
      f"{path}: {end:,} bytes expected, {size:,} found: the rest belongs to no"
      f" tensor; {foreign.AGAIN}"
    )
  return tensors


def _read_header(path: pathlib.Path, size: int) -> tuple[dict[str, Any], int]:
  """The header, and where the tensors start."""
  with path.open("rb") as file:
    head = file.read(foreign.HEAD)
    file.seek(9)
    length = int.from_bytes(head[:8], "little")
    fits = length <= min(size - 8, _LONGEST_HEADER)
    if not fits or head[8:9] != b"{":
      raise errors.ConversionError(f"{path}: {_foreign(head, size, length)}")
    raw = b"{" + file.read(length - 1)
  try:
    header = json_file.parse(json_file.decode(raw), json_file.unique)
  except json_file.NotJsonError as error:
    raise errors.ConversionError(
      f"{path}: the safetensors header is no JSON ({error}); {foreign.AGAIN}"
    ) from None
  return header, 8 + length


def _foreign(head: bytes, size: int, length: int) -> str:
  """What a file without a safetensors header is, and what to do."""
  if (
    head.startswith(b"PK\x03\x04")
    or head[:1] == b"\x80"
    and head[1:2] < b"\x06"
  ):
    return (
      "a pickle (torch.save), not safetensors; if you trust where it comes"
      " from, name it .bin: it is then read with weights_only"
    )
  if what := foreign.kind(head):
    return what
  if size < 8 or length <= _LONGEST_HEADER and length > size - 8:
    want = f"{length + 8:,}" if size >= 8 else "at least 8"
    return (
      f"the safetensors header is truncated: {want} bytes expected, {size:,}"
      f" found; {foreign.AGAIN}"
    )
  if length > _LONGEST_HEADER:
    return (
      f"no safetensors file: its first 8 bytes give a header of {length:,}"
      f" bytes, the limit is {_LONGEST_HEADER:,}; {foreign.AGAIN}"
    )
  return f"the safetensors header is garbage; {foreign.AGAIN}"


def _listed(path: pathlib.Path, name: str, entry: Any, start: int) -> Tensor:
  """The tensor that an entry of a header describes."""
  try:
    code, shape = entry["dtype"], tuple(entry["shape"])
    first, last = entry["data_offsets"]
    sound = all(type(n) is int and n >= 0 for n in (*shape, first, last))
  except (TypeError, KeyError, ValueError):
    sound = False
  if not sound:
    raise errors.ConversionError(
      f"{path}: the header's entry of {name} is garbage: {entry!r:.100}; "
      + foreign.AGAIN
    )
  if code not in CODES:
    raise errors.ConversionError(
      f"{path}: {name} has the unknown dtype {code}; save it as BF16, F16 or"
      " F32"
    )
  dtype = CODES[code]
  bits = _PACKED_BITS.get(code, dtype.itemsize * 8)
  if (last - first) * 8 != math.prod(shape) * bits:
    raise errors.ConversionError(
      f"{path}: {name} is {code} {list(shape)} and has {last - first:,} bytes;"
      f" {foreign.AGAIN}"
    )
  return Tensor(name, shape, dtype, path, last - first, start + first)


def read_safetensors(tensor: Tensor, part: Spans) -> np.ndarray:
  """A part of a tensor; other parts are not read, but for gaps of a page.

  Raises:
    ConversionError: the file has become shorter.
    OSError: it can't be read.
  """
  out = np.empty([stop - start for start, stop in part], tensor.dtype)
  with tensor.file.open("rb", buffering=0) as file:
    _fill(file, out, tensor.offset, tensor.shape, part)
  return out


def _fill(
  file: io.FileIO,
  out: np.ndarray,
  offset: int,
  shape: Sequence[int],
  part: Spans,
) -> None:
  """Fills `out` with a part of the array of `shape` at `offset`."""
  if not out.size:
    return
  inner = math.prod(shape[1:])
  row = inner * out.itemsize
  offset += part[0][0] * row if part else 0
  wanted = math.prod(out.shape[1:])
  if wanted == inner:  # one run of bytes
    _read_into(file, out, offset)
  elif (inner - wanted) * out.itemsize <= _GAP and row <= _BLOCK:
    rest = tuple(slice(*p) for p in part[1:])
    for rows in row_blocks((len(out), *shape[1:]), _BLOCK // out.itemsize):
      buffer = np.empty((rows.stop - rows.start, *shape[1:]), out.dtype)
      _read_into(file, buffer, offset + rows.start * row)
      out[rows] = buffer[:, *rest]
  else:
    for i, each in enumerate(out):
      _fill(file, each, offset + i * row, shape[1:], part[1:])


def _read_into(file: io.FileIO, out: np.ndarray, offset: int) -> None:
  view = memoryview(out.reshape(-1).view(np.uint8))
  file.seek(offset)
  while view:  # a call gives at most 2 GiB
    if not (got := file.readinto(view)):
      raise errors.ConversionError(
        f"{file.name}: the file became shorter while it was read;"
        f" {foreign.AGAIN}"
      )
    view = view[got:]


class TorchFile:
  """A file of torch.save: a dict of tensors by name, mapped by torch.

  Pages of the mapping that were read count as memory of the process, so the
  file is mapped anew after every 256 MB.

  Attributes:
    tensors: what is in it, by name.

  Raises:
    ConversionError: torch is not installed, refuses the file, or finds
      something else than tensors in it.
    OSError: it can't be read.
  """

  def __init__(self, path: pathlib.Path):
    self._path = path
    self._state: Mapping[str, Any] | None = None
    self._touched = 0
    self.tensors = {
      name: _listed_torch(path, name, value)
      for name, value in self._mapped().items()
    }

  def read(self, tensor: Tensor, part: Spans) -> np.ndarray:
    """A part of a tensor, copied out of the mapping block by block."""
    out = np.empty([stop - start for start, stop in part], tensor.dtype)
    if not out.shape:
      out[...] = self._array(tensor)
    elif out.size:
      start, rest = part[0][0], tuple(slice(*p) for p in part[1:])
      shape = (len(out), *tensor.shape[1:])
      for rows in row_blocks(shape, _MAPPED // 4 // out.itemsize):
        here = slice(start + rows.start, start + rows.stop)
        out[rows] = self._array(tensor)[here, *rest]
        self._touched += (rows.stop - rows.start) * (
          tensor.bytes // tensor.shape[0]
        )
        if self._touched >= _MAPPED:  # the mapping is given back
          self._state, self._touched = None, 0
    return out

  def _mapped(self) -> Mapping[str, Any]:
    if self._state is None:
      self._state = _load(self._path)
    return self._state

  def _array(self, tensor: Tensor) -> np.ndarray:
    value = self._mapped()[tensor.name].detach()
    if tensor.dtype == ml_dtypes.bfloat16:  # which torch does not hand out
      whole = value.view(_torch(self._path).int16).numpy()
      return whole.view(tensor.dtype)
    return value.numpy()


def _torch(path: pathlib.Path) -> Any:
  try:
    import torch  # an option: only the files of torch.save need it
  except ImportError:
    raise errors.ConversionError(
      f"{path}: torch reads this file and is not installed: convert on a"
      " machine with torch, or run: pip install torch"
    ) from None
  return torch


def _load(path: pathlib.Path) -> Mapping[str, Any]:
  """The state dict of a file of torch.save; no code in it is run."""
  with path.open("rb") as file:
    head = file.read(foreign.HEAD)
  if not head.startswith(b"PK\x03\x04"):
    if what := foreign.kind(head):
      raise errors.ConversionError(f"{path}: {what}; nothing in it was run")
    raise errors.ConversionError(
      f"{path}: not a zip of torch.save; nothing in it was run;"
      f" {foreign.AGAIN}, or save it with safetensors or today's torch.save"
      " where it comes from"
    )
  if not zipfile.is_zipfile(path):  # its table of contents is at the end
    raise errors.ConversionError(
      f"{path}: the zip is truncated; {foreign.AGAIN}"
    )
  torch = _torch(path)
  try:
    state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
  except OSError:
    raise
  except Exception as error:  # a broken pickle raises anything
    # Torch's own text is not passed on: it suggests weights_only=False.
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    why = f"it asks for {found[1]}" if found else type(error).__name__
    raise errors.ConversionError(
      f"{path}: more than tensors, or broken; nothing in it was run ({why});"
      f" {foreign.AGAIN}, or save the state dict with safetensors where it"
      " comes from"
    ) from None
  if not isinstance(state, Mapping) or not all(
    isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in state.items()
  ):
    found = f"keys {list(state)[:4]}" if isinstance(state, Mapping) else ""
    raise errors.ConversionError(
      f"{path}: not a dict of tensors by name ({type(state).__name__} {found});"
      " save model.state_dict() alone"
    )
  return state


def _listed_torch(path: pathlib.Path, name: str, value: Any) -> Tensor:
  kind = str(value.dtype).removeprefix("torch.")
  dtype = getattr(ml_dtypes, kind, None) or getattr(np, kind, None)
  if dtype is None or value.device.type != "cpu" or value.is_sparse:
    raise errors.ConversionError(
      f"{path}: {name} is no plain tensor ({kind}, {value.layout},"
      f" {value.device}); save it as bfloat16, float16 or float32"
    )
  shape = tuple(value.shape)
  dtype = np.dtype(dtype)
  return Tensor(name, shape, dtype, path, math.prod(shape) * dtype.itemsize)
