"""Compiles every kernel for TPUs, on a machine that has none.

python benchmarks/tpu.py [--topologies=v5e:2x2,tpu7x:2x2x1] [--json=FILE]
    [--quick] [--programs=decode,attend_pages]

The real TPU compiler (the libtpu package) compiles ahead of time for devices
that are only described. At the head shapes of Qwen3-4B (32/8) and Qwen2.5-7B
(28/4), for 576 to 65,536 visual tokens in regions of 6 x 6:

  decode          one step of one layer of a stacked cache, `ops.gaze.decode`:
    dense         attention to all pages, in place
    gather        XLA's gather of the chosen pages
    kernel        `kernels.attend_pages_tpu`
  prompt          128 tokens of text at once, likewise
  attend_pages    the decode kernel alone
  attend_regions  rows of text, forward and backward
  attend_visual   rows of visual tokens, forward and backward
  parallel        all of a training step's attention, `ops.gaze.parallel`

A tenth of the regions is chosen. `temp` is the HBM that the compiler allocates
beside arguments and results. `moved` is what an XLA form accesses by the
compiler's own count, in on-chip memory too, where v5e, v6e and 7x put copies
that fit. A decode kernel's is counted here: its page fetches; every other
argument but the cache (of a padded cache the padding, too) and its results;
the descriptors. `ideal` is what no form can do without: keys and values of the
tokens of each KV head's chosen regions (for dense: of all), once; the
descriptors; the query and the output.

Exits with 1 if a program does not compile, a decode kernel moves more than 1.1
times the ideal, or a kernel's temporaries could hold a tenth of the regions
that it reads.
"""

import concurrent.futures
import dataclasses
import functools
import json
import os
import pathlib
import sys
import time
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax
from absl import flags

from benchmarks import tpu_programs
from gaze_jax import cli
from gaze_jax import errors
from gaze_jax.aot import topology as topology_lib
from gaze_jax.kernels import target

_TOPOLOGIES = ("v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1")
_MOST_MOVED = 1.1
_TEMP_SHARE = 0.1
# And what does not grow with the pages, which v5p alone keeps outside the core:
# up to 192 KB of the compiler's own (libtpu 0.0.50; 135 KB of 0.0.42); in a
# step also the scores and lists of each query head (709 KB at 576 tokens), and
# for a chunk of a prompt its queries and outputs too (4.7 MB).
_ANYHOW = dict(attend_pages=192 * 2**10, decode=768 * 2**10, prompt=5 * 2**20)
_HEADER = (
  "tokens    dtype heads  program         form    choice         temp"
  "        moved        ideal   ratio seconds"
)

_WANTED = flags.DEFINE_list("topologies", list(_TOPOLOGIES), "to compile for")
_NAMES = flags.DEFINE_list("programs", list(tpu_programs.NAMES), "to compile")
_JSON = cli.define_file("json", "a file for the rows")
_QUICK = flags.DEFINE_bool("quick", False, "a subset, in a minute or two")


@dataclasses.dataclass(frozen=True)
class Row:
  """What the compiler said; None where it does not apply, or it failed."""

  topology: str
  visual_tokens: int
  dtype: str
  heads: str
  program: str
  form: str
  choice: str
  temp_bytes: int | None = None
  moved_bytes: int | None = None
  ideal_bytes: int | None = None
  ratio: float | None = None
  seconds: float | None = None
  failure: str | None = None


def main() -> None:
  topology_lib.prepare()
  for name in _NAMES.value:
    if name not in tpu_programs.NAMES:
      known = ", ".join(tpu_programs.NAMES)
      raise errors.GazeError(f"--programs={name}: the programs are {known}")
  devices = {
    name: topology_lib.devices(name, "--topologies")[0]
    for name in _WANTED.value
  }
  start = time.perf_counter()
  rows = []
  for name, device in devices.items():
    print(f"\n{name}, {device.device_kind}\n{_HEADER}")
    programs = tpu_programs.programs(_NAMES.value, _QUICK.value)
    compiled = functools.partial(_compiled, topology=name, device=device)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
      for row in pool.map(compiled, programs):
        rows.append(row)
        print(_text(row), flush=True)
  seconds = time.perf_counter() - start
  print(f"\n{len(rows)} programs in {seconds:.0f} s")
  if _JSON.value:
    result = dict(jax=jax.__version__, seconds=seconds)
    result["rows"] = [dataclasses.asdict(row) for row in rows]
    pathlib.Path(_JSON.value).write_text(json.dumps(result, indent=1) + "\n")
    print(f"wrote {_JSON.value}")
  failed = [row for row in rows if row.failure]
  if failed:
    first = failed[0]
    raise errors.GazeError(
      f"{len(failed)} of {len(rows)} programs failed, first {first.program}"
      f" ({first.form}) for {first.topology}: {first.failure}"
    )


def _compiled(program: tpu_programs.Program, topology: str, device: Any) -> Row:
  case = program.case
  row = Row(
    topology=topology,
    visual_tokens=case.tokens,
    dtype=case.dtype,
    heads=f"{case.q}/{case.h}",
    program=program.name,
    form=program.form,
    choice=program.choice,
  )
  start = time.perf_counter()
  on_device = jax.sharding.SingleDeviceSharding(device)
  place = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=on_device)
  try:
    with target.tracing_for("tpu"):
      function, arguments = program.make()
      lowered = jax.jit(function).lower(*jax.tree.map(place, arguments))
    compiled = lowered.compile()
  # Whatever a compiler raises: the rest is compiled all the same.
  except Exception as error:
    return dataclasses.replace(
      row, failure=f"{type(error).__name__}: {_line(error)}"
    )
  seconds = time.perf_counter() - start
  return _checked(program, dataclasses.replace(row, seconds=seconds), compiled)


def _checked(program: tpu_programs.Program, row: Row, compiled: Any) -> Row:
  case, choice = program.case, program.choice
  memory = compiled.memory_analysis()
  temp, moved, failures = memory.temp_size_in_bytes, None, []
  if program.name == "attend_pages":
    moved = case.moved(choice, memory)
  elif program.form != "kernel":
    moved = int(compiled.cost_analysis()["bytes accessed"])
  decoding = program.name in ("decode", "attend_pages")
  ideal = case.ideal(choice) if decoding else None
  ratio = moved / ideal if moved else None
  if program.form == "kernel" and moved and ratio > _MOST_MOVED:
    failures.append(f"moves {ratio:.2f} times the ideal")
  if program.form == "kernel" and program.name in _ANYHOW:
    most = int(_TEMP_SHARE * case.chosen_bytes(choice)) + _ANYHOW[program.name]
    if temp >= most:
      failures.append(f"{temp} bytes of temporaries, {most} is the limit")
  return dataclasses.replace(
    row,
    temp_bytes=temp,
    moved_bytes=moved,
    ideal_bytes=ideal,
    ratio=ratio,
    failure="; ".join(failures) or None,
  )


def _text(row: Row) -> str:
  whole = lambda n: f"{'-' if n is None else f'{n:,}':>12s}"
  ratio = "-" if row.ratio is None else f"{row.ratio:.3f}"
  seconds = "-" if row.seconds is None else f"{row.seconds:.1f}"
  return (
    f"{row.visual_tokens:6d} {row.dtype:>8s} {row.heads:5s}"
    f"  {row.program:14s}  {row.form:6s}  {row.choice:10s} "
    f" {whole(row.temp_bytes)} {whole(row.moved_bytes)}"
    f" {whole(row.ideal_bytes)} {ratio:>7s} {seconds:>7s}"
    + (f"  FAILED: {row.failure}" if row.failure else "")
  )


def _line(error: Exception) -> str:
  return " ".join(str(error).split())[:300]


if __name__ == "__main__":
  cli.main(main)
