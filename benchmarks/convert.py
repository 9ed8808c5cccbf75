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
import functools
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import ml_dtypes
import numpy as np
from absl import flags

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from gaze_jax import cli
from gaze_jax import errors
from gaze_jax.weights import writer as writer_lib

ROOT = pathlib.Path(__file__).resolve().parent.parent

_LAYERS = flags.DEFINE_integer("layers", 28, "of the decoder", 1)
_SHRINK = flags.DEFINE_enum(
  "shrink", "1", ["1", "2", "4"], "divides heads, widths and vocabulary"
)
_EXPORT = flags.DEFINE_bool("export", False, "also time the way back")
_FOLDER = flags.DEFINE_string("folder", tempfile.gettempdir(), "where to write")
_JSON = cli.define_file("json", "a file for the rows")

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_RANDOM = 2**25  # elements that are drawn; tensors are made of windows of them
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
  config = qwen(_LAYERS.value, int(_SHRINK.value))
  specs = shapes(config)
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
  make(source, config, specs)
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


def qwen(layers: int, shrink: int = 1) -> dict[str, object]:
  """config.json of Qwen2.5-7B, with fewer layers or heads."""
  return {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "hidden_act": "silu",
    "hidden_size": 3584 // shrink,
    "initializer_range": 0.02,
    "intermediate_size": 18944 // shrink,
    "max_position_embeddings": 32768,
    "max_window_layers": layers,
    "model_type": "qwen2",
    "num_attention_heads": 28 // shrink,
    "num_hidden_layers": layers,
    "num_key_value_heads": 4 // shrink,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 131072,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 152064 // shrink,
  }


def shapes(config: dict[str, object]) -> dict[str, tuple[int, ...]]:
  """Names and shapes of the tensors, in the order of transformers."""
  d, f, v = (
    config[k] for k in ("hidden_size", "intermediate_size", "vocab_size")
  )
  kv = d // config["num_attention_heads"] * config["num_key_value_heads"]
  layer = {
    "self_attn.q_proj.weight": (d, d),
    "self_attn.q_proj.bias": (d,),
    "self_attn.k_proj.weight": (kv, d),
    "self_attn.k_proj.bias": (kv,),
    "self_attn.v_proj.weight": (kv, d),
    "self_attn.v_proj.bias": (kv,),
    "self_attn.o_proj.weight": (d, d),
    "mlp.gate_proj.weight": (f, d),
    "mlp.up_proj.weight": (f, d),
    "mlp.down_proj.weight": (d, f),
    "input_layernorm.weight": (d,),
    "post_attention_layernorm.weight": (d,),
  }
  return {
    "model.embed_tokens.weight": (v, d),
    **{
      f"model.layers.{i}.{name}": shape
      for i in range(config["num_hidden_layers"])
      for name, shape in layer.items()
    },
    "model.norm.weight": (d,),
    "lm_head.weight": (v, d),
  }


def make(
  folder: pathlib.Path,
  config: dict[str, object],
  specs: dict[str, tuple[int, ...]],
) -> None:
  """Writes the checkpoint: normal values, drawn once and used in windows."""
  rng = np.random.default_rng(0)
  drawn = (rng.standard_normal(_RANDOM, np.float32) * 0.02).astype(_BFLOAT16)
  with writer_lib.destination(folder) as work:
    (work / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    windows = functools.partial(_windows, drawn, rng=rng)
    tensors = [
      writer_lib.Pieces(
        name, shape, _BFLOAT16, functools.partial(windows, int(np.prod(shape)))
      )
      for name, shape in specs.items()
    ]
    writer_lib.write(work, tensors)


def _windows(
  drawn: np.ndarray, size: int, rng: np.random.Generator
) -> Iterator[np.ndarray]:
  while size:
    start = int(rng.integers(_RANDOM // 2))
    piece = drawn[start : start + min(size, _RANDOM // 2)]
    size -= len(piece)
    yield piece


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
