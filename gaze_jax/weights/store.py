"""Our own directory of weights: what launch/convert.py writes.

  gaze.json            the config, the parts that are here, where they came from
  model*.safetensors   one tensor a leaf, named by its path, in our layout
  unused.safetensors   tensors of the source that nothing here computes with
  hf/                  config.json, tokenizer and the rest of the source, as is

`Stored` is what such a directory holds, unread; a checkpoint of transformers
and a run are opened as the same (weights/hf.py, train/runs.py), so that
one `save` writes, one `load` reads and one exporter exports them all. Every
device reads its own part of a leaf and no more.
"""

import dataclasses
import functools
import json
import math
import pathlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from flax import traverse_util

from gaze_jax import config as config_lib
from gaze_jax import json_file
from gaze_jax import schema as schema_lib
from gaze_jax.weights import errors
from gaze_jax.weights import formats
from gaze_jax.weights import tables
from gaze_jax.weights import tensors
from gaze_jax.weights import writer as writer_lib
from gaze_jax.weights.families import registry

NAME, UNUSED, SOURCE = "gaze.json", "unused.safetensors", "hf"
_SHOWN = 10**9  # bytes from which progress is shown
_BLOCK = 2**27  # elements that are read and written at a time
_CHECKED = 2**22  # and that are checked


@dataclasses.dataclass(frozen=True)
class Leaf:
  """An array of the parameters, unread.

  Attributes:
    path: where it belongs.
    shape: of the array.
    dtype: of the array on disk.
    read: gives a part, in any float dtype; its index has a slice for each axis.
  """

  path: tables.Path
  shape: tables.Shape
  dtype: np.dtype
  read: Callable[[tables.Index], np.ndarray]

  @property
  def name(self) -> str:
    return "/".join(self.path)

  @property
  def bytes(self) -> int:
    """On disk."""
    return math.prod(self.shape) * self.dtype.itemsize

  def layers(self) -> list["Leaf"]:
    """The layers of a stacked leaf, each a leaf of its own."""

    def read(layer: int, index: tables.Index) -> np.ndarray:
      return self.read((slice(layer, layer + 1), *index))[0]

    return [
      dataclasses.replace(
        self, shape=self.shape[1:], read=functools.partial(read, layer)
      )
      for layer in range(self.shape[0])
    ]

  def blocks(self) -> Iterator[np.ndarray]:
    """The leaf in pieces along its leading axes, in order, in its dtype.

    Raises:
      ConversionError: a finite value does not fit the dtype.
    """
    for index in _blocks(self.shape):
      block = self.read(index)
      with np.errstate(over="ignore"):  # refused in the next lines
        narrow = block.astype(self.dtype, copy=False)
      if self.dtype.itemsize < block.dtype.itemsize and not np.array_equal(
        np.isfinite(narrow), np.isfinite(block)
      ):
        raise errors.ConversionError(
          f"{self.name}: a value does not fit {self.dtype.name}; choose"
          " --dtype=bfloat16 or --dtype=float32"
        )
      yield narrow


@dataclasses.dataclass(frozen=True)
class Stored:
  """Weights, unread, and all that belongs to them.

  Attributes:
    config: the config that goes with them.
    leaves: every leaf of each part that is here.
    naming: of the tensors of the checkpoint of transformers that they came
      from, by its name; "" for none.
    alias: name of a head there that repeats the tied embedding; "" for none.
    unused: tensors of the source that nothing here computes with.
    files: what the source has beside its tensors, by name: a file or a folder
      to copy, or the text to write.
  """

  config: config_lib.Config
  leaves: Sequence[Leaf]
  naming: str = ""
  alias: str = ""
  unused: Sequence[Leaf] = ()
  files: Mapping[str, pathlib.Path | str] = dataclasses.field(
    default_factory=dict
  )

  @property
  def parts(self) -> tuple[str, ...]:
    """The keys of the parameters that are here."""
    return tuple(sorted({leaf.path[0] for leaf in self.leaves}))


def leaves_of(source: tensors.Tensors) -> list[Leaf]:
  """Tensors as leaves, unread; their names are paths joined by "/"."""
  return [
    Leaf(
      tuple(t.name.split("/")),
      t.shape,
      t.dtype,
      functools.partial(source.read, t.name),
    )
    for t in source.listed.values()
  ]


def is_stored(directory: pathlib.Path) -> bool:
  """Whether a directory is one of ours."""
  return (directory / NAME).is_file()


def open_stored(directory: pathlib.Path) -> Stored:
  """Opens a directory that `save` has written; reads no tensor.

  Raises:
    ConversionError: it is none, or its leaves are not those of its config;
      the message lists every difference.
    SchemaError: it is of a schema that is not known.
  """
  manifest = json_file.read(directory / NAME, errors.ConversionError)
  schema = schema_lib.read(manifest, directory / NAME, "model")
  if absent := {"config", "parts", "origin"} - manifest.keys():
    raise errors.ConversionError(
      f"{directory / NAME}: has no {', '.join(sorted(absent))}; convert the"
      " checkpoint again"
    )
  config = config_lib.of_saved(manifest["config"])
  parts = manifest["parts"]
  leaves = leaves_of(tensors.Tensors(directory))
  if schema < 2:
    leaves = [leaf for leaf in leaves if leaf.bytes]
  shapes = registry.shapes(config.model)
  shapes = {part: shapes[part] for part in shapes if part in parts}
  want = {
    name: tuple(leaf.shape)
    for name, leaf in traverse_util.flatten_dict(shapes, sep="/").items()
  }
  got = {leaf.name: leaf.shape for leaf in leaves}
  if problems := tables.differences(want, got):
    raise errors.ConversionError(
      f"{directory}: the weights do not fit {NAME}:\n  " + "\n  ".join(problems)
    )
  origin = manifest["origin"]
  unused, files = directory / UNUSED, directory / SOURCE
  return Stored(
    config,
    leaves,
    naming=origin.get("layout", ""),
    alias=origin.get("alias", ""),
    unused=leaves_of(tensors.Tensors(unused)) if unused.exists() else (),
    files={p.name: p for p in files.iterdir()} if files.is_dir() else {},
  )


def save(stored: Stored, to: pathlib.Path) -> None:
  """Writes weights in our format, one piece of one leaf at a time.

  Args:
    stored: the weights.
    to: a directory that does not exist yet, or is empty.

  Raises:
    ConversionError: a value does not fit its dtype, or `to` can't be made;
      nothing is left there.
  """
  with writer_lib.destination(to) as directory:
    write_leaves(directory, stored.leaves)
    manifest = schema_lib.stamp("model") | dict(
      config=config_lib.to_dict(stored.config),
      parts=stored.parts,
      origin=dict(layout=stored.naming, alias=stored.alias),
    )
    write_json(directory / NAME, manifest)
    if stored.unused:
      write_leaves(directory / UNUSED, stored.unused)
    if stored.files:
      (directory / SOURCE).mkdir()
      write_files(directory / SOURCE, stored.files)


def write_json(path: pathlib.Path, value: Mapping[str, Any]) -> None:
  path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def write_files(
  directory: pathlib.Path, files: Mapping[str, pathlib.Path | str]
) -> None:
  """Writes files as `Stored` has them."""
  for name, content in files.items():
    if isinstance(content, str):
      (directory / name).write_text(content, encoding="utf-8")
    elif content.is_dir():
      shutil.copytree(content, directory / name)
    else:
      shutil.copyfile(content, directory / name)


def write_leaves(path: pathlib.Path, leaves: Iterable[Leaf]) -> None:
  """Writes tensors into a directory, or into one safetensors file."""
  leaves = list(leaves)
  total = sum(leaf.bytes for leaf in leaves)
  bar = tqdm.tqdm(
    total=total,
    desc="writing",
    unit="B",
    unit_scale=True,
    mininterval=5,
    disable=True if total < _SHOWN else None,  # None: on a terminal alone
  )

  def blocks(leaf: Leaf) -> Iterator[np.ndarray]:
    for block in leaf.blocks():
      yield block
      bar.update(block.nbytes)

  pieces = [
    writer_lib.Pieces(x.name, x.shape, x.dtype, functools.partial(blocks, x))
    for x in leaves
  ]
  with bar:
    writer_lib.write(path, pieces)


def load(
  leaves: Iterable[Leaf],
  *,
  sharding: Callable[[tables.Path], jax.sharding.Sharding] | None = None,
  apart: Callable[[tables.Path], bool] = lambda path: False,
) -> dict[str, Any]:
  """Arrays on devices, in the dtype of each leaf.

  Each device's part is read by itself, in blocks that go straight to it: the
  host holds one block at a time beside what is on devices.

  Args:
    leaves: as `Stored` has them.
    sharding: path -> sharding; all on the first device by default.
    apart: path -> whether the layers of a leaf become arrays of their own,
      transposed, as in `models.decoder.split`; the sharding is then that of one
      of them.

  Returns:
    Nested dict of jax arrays, or tuples of them where layers are apart.

  Raises:
    ConversionError: a weight is NaN or infinite.
  """
  here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  place = sharding or (lambda path: here)

  def read(leaf: Leaf) -> Any:
    if apart(leaf.path):
      return tuple(_array(one, place(leaf.path)).T for one in leaf.layers())
    return _array(leaf, place(leaf.path))

  return traverse_util.unflatten_dict({x.path: read(x) for x in leaves})


def _array(leaf: Leaf, sharding: jax.sharding.Sharding) -> jax.Array:
  """A leaf on the devices of this process; copies of a part are read once."""
  parts, arrays = {}, []
  where = sharding.addressable_devices_indices_map(leaf.shape)
  for device, index in where.items():
    spans = tuple(formats.spans(leaf.shape, index))
    if spans in parts:
      arrays.append(jax.device_put(parts[spans], device))
    else:
      parts[spans] = _part(leaf, spans, device)
      arrays.append(parts[spans])
  return jax.make_array_from_single_device_arrays(leaf.shape, sharding, arrays)


def _part(leaf: Leaf, spans: formats.Spans, device: jax.Device) -> jax.Array:
  """A part of a leaf on a device."""

  def read(index: tables.Index) -> jax.Array:
    at = (
      slice(start + s.start, start + s.stop)
      for (start, _), s in zip(spans, index, strict=True)
    )
    block = _finite(leaf, tuple(at)).astype(leaf.dtype, copy=False)
    return jax.block_until_ready(jax.device_put(block, device))

  shape = tuple(stop - start for start, stop in spans)
  blocks = list(_blocks(shape))
  if len(blocks) == 1:
    return read(blocks[0])
  out = jnp.zeros(shape, leaf.dtype, device=device)
  for index in blocks:
    out = _write(out, read(index), tuple(s.start for s in index))
  return jax.block_until_ready(out)


@functools.partial(jax.jit, donate_argnums=0)
def _write(
  out: jax.Array, block: jax.Array, start: tuple[Any, ...]
) -> jax.Array:
  """A block put into an array, in place."""
  return jax.lax.dynamic_update_slice(out, block, start)


def _finite(leaf: Leaf, index: tables.Index) -> np.ndarray:
  """A part of a leaf, whose numbers are numbers."""
  array = leaf.read(index)
  for rows in formats.row_blocks(array.shape or (1,), _CHECKED):
    part = array[rows] if array.shape else array
    if part.dtype.itemsize == 2:  # numpy is slow to tell of these
      exponent = 0x7C00 if part.dtype == np.float16 else 0x7F80
      finite = (part.view(np.uint16) & exponent) != exponent
    else:
      finite = np.isfinite(part)
    if not finite.all():
      raise errors.ConversionError(
        f"{leaf.name}: {finite.size - finite.sum()} of its numbers are NaN or"
        " infinite, so every answer would be, too: download the weights again,"
        " or take an earlier checkpoint"
      )
  return array


def from_params(params: Mapping[str, Any]) -> list[Leaf]:
  """Leaves of parameters in memory."""
  return [
    Leaf(path, x.shape, np.dtype(x.dtype), lambda i, x=x: np.asarray(x[i]))
    for path, x in traverse_util.flatten_dict(params).items()
  ]


def _blocks(shape: tables.Shape) -> Iterator[tables.Index]:
  """Indices of pieces that follow each other in row-major order.

  A piece is at most `_BLOCK` elements, or one row of the first two axes.
  """
  if not shape:
    yield ()
    return
  full = tuple(slice(0, n) for n in shape)
  if math.prod(shape[1:]) > _BLOCK and len(shape) > 1:
    for i in range(shape[0]):
      for index in _blocks(shape[1:]):
        yield (slice(i, i + 1), *index)
    return
  for rows in formats.row_blocks(shape, _BLOCK):
    yield (rows, *full[1:])
