"""Weak scaling of a training step, in the compiled program: 8 to 256 chips.

python benchmarks/scaling.py [--config=configs/cambrian_4b.py] [--json=FILE]
    [--plot=FILE.png] [--chips=8,16,32,64,128,256]

The same rows a chip on ever larger slices of v5e, each compiled by the TPU
compiler on a machine without one: what a chip sends in a step, by kind of
collective, and the arithmetic that it does. The time is a bound from the
vendor's figures, not a measurement: bytes sent over the chip's links, FLOPs
over its peak; whichever is larger bounds the step, if one hides the other.
"""

import dataclasses
import json
import pathlib
import sys
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from absl import flags

from benchmarks import chart
from gaze_jax import cli
from gaze_jax import config as config_lib
from gaze_jax import errors
from gaze_jax.aot import check
from gaze_jax.aot import topology as topology_lib

_TOPOLOGIES = {
  8: "v5e:2x4",
  16: "v5e:4x4",
  32: "v5e:4x8",
  64: "v5e:8x8",
  128: "v5e:8x16",
  256: "v5e:16x16",
}
_FSDP = 8  # the same for all, so that a chip holds the same part of the model
_ROWS = 1  # of a chip
# Of a v5e chip, from its data sheet: bfloat16, and 1,600 Gbit/s of links.
_PEAK_FLOPS, _LINK_BYTES = 197e12, 200e9

_CHIPS = flags.DEFINE_list("chips", [str(n) for n in _TOPOLOGIES], "slices")
_JSON = cli.define_file("json", "a file for the rows")
_PLOT = cli.define_file("plot", "a file for the plot")


def main() -> None:
  chips = cli.whole_numbers(_CHIPS)
  if unknown := set(chips) - _TOPOLOGIES.keys():
    raise errors.GazeError(
      f"--chips={min(unknown)}: one of {', '.join(map(str, _TOPOLOGIES))}"
    )
  config = cli.read_config()
  topology_lib.prepare("O0")
  print("chips  rows  sent a chip  all-gather  reduce-scatter  all-reduce")
  rows = []
  for n in chips:
    rows.append(row(n, config))
    print(text(rows[-1]), flush=True)
  if _JSON.value:
    found = json.dumps(dict(rows=rows), indent=1)
    pathlib.Path(_JSON.value).write_text(found + "\n")
  if _PLOT.value:
    plot(rows, pathlib.Path(_PLOT.value))


def row(chips: int, config: config_lib.Config) -> dict[str, Any]:
  """What a chip of a slice sends and computes in a step."""
  config = dataclasses.replace(
    config,
    train=dataclasses.replace(
      config.train, batch_size=chips * _ROWS, accumulation=1
    ),
    parallel=config_lib.ParallelConfig(fsdp=_FSDP),
  )
  found = check.check(
    config, _TOPOLOGIES[chips], serve=False, log=lambda line: None
  )
  if not found["fits"]:
    raise errors.GazeError(
      f"{chips} chips with {_ROWS} row each do not hold this model"
    )
  train = found["programs"]["train"]
  sent = {kind: c["bytes"] for kind, c in train["collectives"].items()}
  return dict(
    chips=chips,
    rows=chips * _ROWS,
    sent=sent,
    sent_bytes=sum(sent.values()),
    flops=train["flops"],
    link_milliseconds=1e3 * sum(sent.values()) / _LINK_BYTES,
    compute_milliseconds=1e3 * train["flops"] / _PEAK_FLOPS,
  )


def text(row: dict[str, Any]) -> str:
  """A line of the table."""
  kinds = ("all-gather", "reduce-scatter", "all-reduce")
  of = [f"{row['sent'].get(kind, 0) / 1e9:10.2f} GB" for kind in kinds]
  return (
    f"{row['chips']:5}  {row['rows']:4}  {row['sent_bytes'] / 1e9:8.2f} GB"
    f" {' '.join(of)}; links {row['link_milliseconds']:.0f} ms,"
    f" arithmetic {row['compute_milliseconds']:.0f} ms"
  )


def plot(rows: list[dict[str, Any]], path: pathlib.Path) -> None:
  """GB that a chip sends, by kind of collective, over chips."""
  kinds = sorted({kind for row in rows for kind in row["sent"]})
  of = lambda kind: [  # a MB or two is nothing
    (row["chips"], row["sent"][kind] / 1e9)
    for row in rows
    if row["sent"].get(kind, 0) > 1e7
  ]
  lines = {kind: of(kind) for kind in kinds}
  lines["all"] = [(row["chips"], row["sent_bytes"] / 1e9) for row in rows]
  title = "A training step, one row a chip: GB sent by a chip"
  picture = chart.draw(title, lines, across="v5e chips", unit="GB")
  picture.save(path)


if __name__ == "__main__":
  cli.main(main, config=True)
