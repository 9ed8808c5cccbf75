"""The check of a device: runs it, prints the tables, returns the rows."""

import dataclasses
import os
import time
from typing import Any

import jax

from gaze_jax import errors
from gaze_jax.device import cases
from gaze_jax.device import check
from gaze_jax.device import times

PARTS = ("choice", *cases.NAMES, "times")


def run(parts: list[str]) -> dict[str, Any]:
  """Checks the default device; prints each row as it is found.

  Args:
    parts: of PARTS.

  Returns:
    What --json writes: `device`, `platform`, `jax`, `seconds`, `failed` (how
    many rows), `rows` (`check.Row`) and `times` (`times.Row`).

  Raises:
    GazeError: there is no such part.
  """
  for part in parts:
    if part not in PARTS:
      raise errors.GazeError(f"--only={part}: the parts are {', '.join(PARTS)}")
  start = time.perf_counter()
  platform, kind = jax.default_backend(), jax.devices()[0].device_kind
  print(f"{kind} ({platform}), JAX {jax.__version__}")
  size, precisions = cases.FULL, check.PRECISIONS
  if platform == "cpu":
    print("No accelerator: kernels are interpreted, at small sizes.")
    size, precisions = cases.SMALL, precisions[:1]  # a CPU knows but one
  rows = _checks(parts, size, precisions, platform)
  taken = _times(platform, kind) if "times" in parts else []
  failed = sum(row.failure is not None for row in (*rows, *taken))
  seconds = time.perf_counter() - start
  print(f"\n{failed} of {len(rows) + len(taken)} rows failed, {seconds:.0f} s")
  return dict(
    device=kind,
    platform=platform,
    jax=jax.__version__,
    seconds=seconds,
    failed=failed,
    rows=[dataclasses.asdict(row) for row in rows],
    times=[dataclasses.asdict(row) for row in taken],
  )


def _checks(
  parts: list[str],
  size: cases.Size,
  precisions: tuple[str, ...],
  platform: str,
) -> list[check.Row]:
  # One interpreter of kernels at a time: they share what they simulate.
  threads = 1 if platform == "cpu" else os.cpu_count()
  rows = []

  def tell(row: check.Row) -> None:
    rows.append(row)
    print(check.text(row), flush=True)

  print(f"\n{check.HEADER}")
  if "choice" in parts:
    for row in check.choices(size, precisions, threads):
      tell(row)
  operations = cases.operations(parts, size, platform)
  for row in check.compare(operations, precisions, threads):
    tell(row)
  return rows


def _times(platform: str, kind: str) -> list[times.Row]:
  rows = []
  print(f"\nbfloat16, a tenth of the regions chosen\n{times.HEADER}")
  if kind not in times.BANDWIDTH:
    print(f"(no bound: the bandwidth of {kind!r} is not in the table)")
  for row in times.measure(platform, kind):
    rows.append(row)
    print(times.text(row), flush=True)
  return rows
