"""Weak scaling of a training step, from compiled programs.

python benchmarks/scaling.py [--json=FILE] [--plot=FILE.png]
    [--chips=8,16,32,64,128,256] [--effort=-1]

The step of configs/cambrian_4b.py, one row of 2,048 slots a chip, is compiled
for v5e slices of 8 to 256 chips: fsdp cuts the parameters over up to 32 chips,
and data copies them to more. What a chip sends is counted in the program, loops
turned, by kind of collective (`gaze_jax/aot/collectives.py`).

What bounds a step: its arithmetic at 197 TFLOP/s, or what it sends at 200 GB/s,
the four links of a chip one way (Google: 400 GB/s in both directions). Both are
what the hardware could do at best, when they overlap, the longer one counts; a
collective over one dimension of the torus has half of the links.
"""

import dataclasses
import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax
from absl import flags

from benchmarks import chart
from gaze_jax import cli
from gaze_jax import config as config_lib
from gaze_jax import errors
from gaze_jax.aot import programs
from gaze_jax.aot import report as report_lib
from gaze_jax.aot import topology as topology_lib
from gaze_jax.parallel import mesh as mesh_lib

_SLICES = {
  8: "v5e:2x4",
  16: "v5e:4x4",
  32: "v5e:4x8",
  64: "v5e:8x8",
  128: "v5e:8x16",
  256: "v5e:16x16",
}
_FSDP = 32  # at most
_FLOPS, _BYTES = 197e12, 200e9  # a second, of a chip
_CONFIG = pathlib.Path(__file__).parent.parent / "configs/cambrian_4b.py"

_CHIPS = flags.DEFINE_list("chips", list(map(str, _SLICES)), "slices' sizes")
_JSON = flags.DEFINE_string("json", None, "a file for the rows")
_PLOT = flags.DEFINE_string("plot", None, "a picture of bytes over chips")
_EFFORT = flags.DEFINE_float("effort", -1.0, "as of launch/aot_check.py", -1, 0)


def main() -> None:
  topology_lib.prepare(_EFFORT.value)
  chips = cli.whole_numbers(_CHIPS)
  for n in chips:
    if n not in _SLICES:
      known = ", ".join(map(str, _SLICES))
      raise errors.GazeError(f"--chips={n}: there are slices of {known}")
  rows = []
  for n in chips:
    rows.append(_row(n))
    print(_text(rows[-1]), flush=True)
  if _JSON.value:
    result = dict(jax=jax.__version__, effort=_EFFORT.value, rows=rows)
    text = json.dumps(result, indent=1) + "\n"
    pathlib.Path(_JSON.value).write_text(text)
  if _PLOT.value:
    chart.draw(
      "sent by a chip in a step of cambrian_4b, one row a chip, v5e",
      _lines(rows),
      unit="GB",
      over="chips",
    ).save(_PLOT.value)


def _row(chips: int) -> dict:
  """One slice: what is compiled for it, and what bounds it."""
  config = cli.read_file(str(_CONFIG))
  parallel = config_lib.ParallelConfig(fsdp=min(chips, _FSDP))
  train = dataclasses.replace(config.train, batch_size=chips)
  config = dataclasses.replace(config, parallel=parallel, train=train)
  slice_ = topology_lib.describe(_SLICES[chips])
  mesh = mesh_lib.make_mesh(parallel, slice_.devices)
  limit = topology_lib.hbm_limit(slice_)
  report = report_lib.compiled(programs.train(config, mesh), limit)
  if not report.fits:
    raise errors.GazeError(
      f"{chips} chips: {report_lib.gb(report.hbm_bytes)} of"
      f" {report_lib.gb(limit)} do not fit"
    )
  sent = sum(one.bytes for one in report.collectives.values())
  return dict(
    dataclasses.asdict(report),
    chips=chips,
    sent=sent,
    seconds_of_arithmetic=report.flops / _FLOPS,
    seconds_of_sending=sent / _BYTES,
  )


def _text(row: dict) -> str:
  kinds = row["collectives"].items()
  return (
    f"{row['chips']:4d} chips: {row['sent'] / 1e9:6.2f} GB sent a chip ("
    + ", ".join(f"{kind} {of['bytes'] / 1e9:.2f}" for kind, of in kinds)
    + f"), {1e3 * row['seconds_of_sending']:.0f} ms at the least;"
    f" {row['flops'] / 1e12:.1f} TFLOP,"
    f" {1e3 * row['seconds_of_arithmetic']:.0f} ms;"
    f" {row['hbm_bytes'] / 1e9:.1f} GB of HBM;"
    f" compiled in {row['compile_seconds']:.0f} s"
  )


def _lines(rows: list[dict]) -> dict[str, list[tuple[float, float]]]:
  """All together, and the kinds that are more than 0.1 GB somewhere."""
  lines = {"all": [(row["chips"], row["sent"] / 1e9) for row in rows]}
  kinds = sorted({kind for row in rows for kind in row["collectives"]})
  for kind in kinds:
    of = [
      (row["chips"], row["collectives"][kind]["bytes"] / 1e9)
      for row in rows
      if kind in row["collectives"]
    ]
    if max(y for _, y in of) > 0.1:
      lines[kind] = [(x, max(y, 0.01)) for x, y in of]
  return lines


if __name__ == "__main__":
  cli.main(main)
