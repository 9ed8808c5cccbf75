"""The tensors of a checkpoint: of one file, or of shards with their index.

Opening one reads headers alone; everything that can be wrong with the files is
found then and is one error, so that no conversion starts that can't end.
"""

import contextlib
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from gaze_jax import json_file
from gaze_jax.weights import diagnosis
from gaze_jax.weights import errors
from gaze_jax.weights import formats
from gaze_jax.weights import writer

# Whole file and shards of each format, in the order in which they are taken.
_FORMATS = (
  (writer.SINGLE, "*.safetensors"),
  ("pytorch_model.bin", "pytorch_model*.bin"),
)
_PICKLES = (".bin", ".pth", ".pt")
# Last parts of names that only quantised checkpoints have.
_QUANTISED = {
  *("weight_scale", "weight_scale_inv", "weight_scale_2", "input_scale"),
  *("weight_packed", "weight_zero_point", "qweight", "qzeros", "g_idx"),
  *("absmax", "quant_map", "SCB"),
}
_SHOWN = 4  # names in a message


class Tensors:
  """The tensors in the files of a checkpoint, of which any part can be read.

  Reading holds no file open and maps none (but those of torch.save), so memory
  is that of the parts asked for.

  Attributes:
    path: what was opened.
    listed: everything in it, by name. Buffers that are no weights, such as
      int64 positions, are listed; `read` refuses them.

  Raises:
    ConversionError: there are no weights, they are quantised, or the files
      are not whole; the message names file, tensor and remedy.
  """

  def __init__(self, path: pathlib.Path | str):
    self.path = pathlib.Path(path)
    self._torch: dict[pathlib.Path, formats.TorchFile] = {}
    paths, index = _find(self.path)
    with _readable(self.path):
      held = {file: self._list(file) for file in paths}
    self.listed: Mapping[str, formats.Tensor] = _merge(self.path, held, index)
    _refuse_quantised(self.path, self.listed)

  def read(self, name: str, index: Sequence[slice] = ()) -> np.ndarray:
    """A part of a tensor, and no other part of it, in its dtype.

    Args:
      name: a key of `listed`.
      index: a slice for each axis, without steps; axes left out are whole.

    Returns:
      A contiguous array of its own.

    Raises:
      ConversionError: there is no such tensor, it is not bfloat16, float16 or
        float32, or its file can't be read any more.
    """
    if name not in self.listed:
      raise errors.ConversionError(f"{self.path}: there is no tensor {name}")
    tensor = self.listed[name]
    if tensor.dtype not in formats.WEIGHTS:
      raise errors.ConversionError(
        f"{tensor.file}: {name} is {tensor.dtype.name}, and weights are"
        " bfloat16, float16 or float32; save it as one of them"
      )
    part = formats.spans(tensor.shape, index)
    with _readable(tensor.file):
      if tensor.file in self._torch:
        return self._torch[tensor.file].read(tensor, part)
      return formats.read_safetensors(tensor, part)

  def _list(self, file: pathlib.Path) -> dict[str, formats.Tensor]:
    if file.suffix not in _PICKLES:
      return formats.list_safetensors(file)
    self._torch[file] = formats.TorchFile(file)
    return self._torch[file].tensors


@contextlib.contextmanager
def _readable(path: pathlib.Path) -> Iterator[None]:
  try:
    yield
  except OSError as error:
    raise errors.ConversionError(
      f"{error.filename or path}: can't be read: {error.strerror or error}"
    ) from None


def _find(
  path: pathlib.Path,
) -> tuple[list[pathlib.Path], dict[str, str] | None]:
  """The files of a checkpoint, and which of them its index gives a tensor."""
  if path.is_file():
    if path.name.endswith(".index.json"):
      return _indexed(path)
    if path.suffix == ".safetensors" or path.suffix in _PICKLES:
      return [path], None
    raise errors.ConversionError(
      f"{path}: not a file of weights (.safetensors, {', '.join(_PICKLES)});"
      " give the directory of a checkpoint"
    )
  if not path.is_dir():
    what = "neither a file nor a directory" if path.exists() else "not there"
    raise errors.ConversionError(
      f"{path}: {what}; give the directory of a checkpoint"
    )
  with _readable(path):
    names = sorted(
      file.name
      for file in path.iterdir()
      if file.is_file() and not diagnosis.is_no_model(file.name)
    )
  for single, pattern in _FORMATS:
    if (index := f"{single}.index.json") in names:
      paths, table = _indexed(path / index)
      if single in names and path / single not in paths:
        raise errors.ConversionError(
          f"{path}: {single} and {index} are two checkpoints; delete the one"
          " that is stale"
        )
      return paths, table
    if single in names:
      return [path / single], None
    if shards := [n for n in names if pathlib.PurePath(n).match(pattern)]:
      _refuse_gaps(path, shards)
      return [path / shard for shard in shards], None
  pickles = [n for n in names if n.endswith(_PICKLES)]
  if len(pickles) == 1:
    return [path / pickles[0]], None
  if pickles:
    raise errors.ConversionError(
      f"{path}: {_some(pickles)}: which one holds the weights? Give that file"
    )
  with _readable(path):
    diagnosis.refuse_files(path)
  raise errors.ConversionError(
    f"{path}: no weights in this directory ({writer.SINGLE}, its shards, or"
    " pytorch_model.bin); give the directory of a checkpoint"
  )


def _indexed(path: pathlib.Path) -> tuple[list[pathlib.Path], dict[str, str]]:
  """Files that an index names, and the index: tensor -> name of a file."""
  remedy = "download it again"
  with _readable(path):
    data = path.read_bytes()
  try:
    table = json_file.parse(json_file.decode(data), json_file.unique)
  except json_file.NotJsonError as error:
    raise errors.ConversionError(
      f"{path}: the index is no JSON ({error}); {remedy}"
    ) from None
  index = table.get("weight_map") if isinstance(table, dict) else None
  if not (
    isinstance(index, dict)
    and index
    and all(isinstance(file, str) and file for file in index.values())
  ):
    raise errors.ConversionError(
      f"{path}: the index has no weight_map from tensors to files; {remedy}"
    )
  names = sorted(set(index.values()))
  for name in names:
    if name == ".." or re.search(r"[/\\\0]", name):
      raise errors.ConversionError(
        f"{path}: the index names {name!r}, a path outside its directory, which"
        " no sound index does; do not trust this checkpoint"
      )
    if pathlib.PurePath(name).suffix not in (".safetensors", *_PICKLES):
      raise errors.ConversionError(
        f"{path}: the index names {name}, which is no file of weights; {remedy}"
      )
  missing = [name for name in names if not (path.parent / name).is_file()]
  if missing:
    raise errors.ConversionError(
      f"{path.parent}: {_some(missing)} of {path.name} missing; download"
      f" the {len(missing)} of {len(names)} shards"
    )
  return [path.parent / name for name in names], index


def _refuse_gaps(folder: pathlib.Path, names: Sequence[str]) -> None:
  """Shards without an index must at least be all that their names count."""
  for name in names:
    if found := re.fullmatch(r"(.*)-\d+-of-(\d+)(\.\w+)", name):
      stem, count, suffix = found.groups()
      every = (f"-{i:0{len(count)}d}-of-" for i in range(1, int(count) + 1))
      missing = [f"{stem}{i}{count}{suffix}" for i in every]
      missing = [n for n in missing if n not in names]
      if missing:
        raise errors.ConversionError(
          f"{folder}: {_some(missing)} missing beside {name}; download the"
          f" {len(missing)} of {int(count)} shards"
        )


def _merge(
  path: pathlib.Path,
  held: Mapping[pathlib.Path, Mapping[str, formats.Tensor]],
  index: Mapping[str, str] | None,
) -> dict[str, formats.Tensor]:
  """The tensors of all files, which must be where the index has them."""
  merged: dict[str, formats.Tensor] = {}
  twice, lost, unnamed = [], [], []
  for file, tensors in held.items():
    for name, tensor in tensors.items():
      if name in merged:
        twice.append(f"{name} (in {merged[name].file.name} and {file.name})")
      elif index is not None and name not in index:
        unnamed.append(f"{name} (in {file.name})")
      merged[name] = tensor
  for name, file in (index or {}).items():
    if name not in held[next(f for f in held if f.name == file)]:
      real = (
        f"it is in {merged[name].file.name}" if name in merged else "absent"
      )
      lost.append(f"{name} (said to be in {file}, {real})")
  problems = [
    f"{label}: {_some(names)}"
    for label, names in (
      ("tensors in two files", twice),
      ("tensors that are not where the index says", lost),
      ("tensors that the index does not name", unnamed),
    )
    if names
  ]
  if problems:
    raise errors.ConversionError(
      f"{path}: {'; '.join(problems)}; shards and index are of different"
      " checkpoints: download all of them again"
    )
  return merged


def _refuse_quantised(
  path: pathlib.Path, tensors: Mapping[str, formats.Tensor]
) -> None:
  """Weights that are numbers only together with their scales are refused."""
  found = [
    f"{name} ({t.dtype.name})"
    for name, t in tensors.items()
    if (t.dtype.itemsize == 1 and t.dtype.kind != "b")  # int8, float8, packed
    or name.rpartition(".")[2] in _QUANTISED
  ]
  folder = path if path.is_dir() else path.parent
  with contextlib.suppress(errors.ConversionError):
    config = json_file.read(folder / "config.json", errors.ConversionError)
    if config.get("quantization_config"):
      found.append("quantization_config in config.json")
  if found:
    raise errors.ConversionError(
      f"{path}: the weights are quantised: {_some(found)}; dequantise the"
      " checkpoint first, and save it as bfloat16, float16 or float32"
    )


def _some(names: Sequence[str]) -> str:
  rest = len(names) - _SHOWN
  return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
