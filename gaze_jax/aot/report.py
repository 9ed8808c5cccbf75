"""What the TPU compiler says of a program: memory, FLOPs, communication."""

import dataclasses
import math
import time
from typing import Any

import jax

from gaze_jax import config as config_lib
from gaze_jax.aot import activations
from gaze_jax.aot import arithmetic
from gaze_jax.aot import collectives as collectives_lib
from gaze_jax.aot import flops
from gaze_jax.aot import hlo
from gaze_jax.aot import programs
from gaze_jax.aot import topology as topology_lib
from gaze_jax.kernels import target
from gaze_jax.parallel import rules


@dataclasses.dataclass(frozen=True)
class Report:
  """One program on one topology; bytes and FLOPs are of one device.

  Attributes:
    program: its name.
    mesh: sizes of the axes.
    rows: of its batch, on all devices.
    fits: whether it compiles within the memory.
    hbm_bytes: that it needs: arguments, results that take no argument's place,
      temporaries and code; as far as the compiler says where it does not fit.
    hbm_limit_bytes: that the compiler lets it have.
    hbm: parts of it: what the arguments hold ("parameters", "optimizer",
      "batch", "cache"), "padding" of these in memory, "activations" that a
      training step keeps for its backward pass (aot/activations.py; as if cut
      by rows and slots alone), and "temporaries": gradients, what is at work,
      results and code.
    flops: of matrix products, loops turned and remat run again (aot/flops.py).
    model_flops: of a training step, of the model alone (train/flops.py).
    flops_once: the compiler's count: no kernels, the body of each loop once.
    bytes_accessed: `bytes_accessed_once` times what counting loops in the
      program's text makes of it.
    bytes_accessed_once: the compiler's count, the body of each loop once.
    collectives: count and bytes by kind; see `collectives.Total`.
    compile_seconds: of XLA, without tracing.
    trace_seconds: of Python, until then.
    largest: the collectives that move most.
    settings: what of the config it was compiled with.
    changes: flags that make it of the config that was asked for; "" for none.
  """

  program: str
  mesh: dict[str, int]
  rows: int
  fits: bool
  hbm_bytes: int
  hbm_limit_bytes: int
  hbm: dict[str, int]
  flops: float
  model_flops: float | None
  flops_once: float | None = None
  bytes_accessed: float | None = None
  bytes_accessed_once: float | None = None
  collectives: dict[str, collectives_lib.Total] | None = None
  compile_seconds: float = 0.0
  trace_seconds: float = 0.0
  largest: tuple[collectives_lib.Collective, ...] = ()
  settings: dict[str, Any] = dataclasses.field(default_factory=dict)
  changes: str = ""


def compiled(program: programs.Program, limit: int) -> Report:
  """Compiles a program.

  Args:
    program: what.
    limit: bytes of HBM, from `topology.hbm_limit`; a lower one than the
      compiler's own is held to as well.
  """
  devices = program.mesh.size
  start = time.perf_counter()
  with jax.set_mesh(program.mesh), target.tracing_for("tpu"):
    traced = program.function.trace(*program.arguments)
    lowered = traced.lower(lowering_platforms=("tpu",))
  traced_at = time.perf_counter()
  held = program.held()
  report = Report(
    program=program.name,
    mesh=dict(program.mesh.shape),
    rows=program.rows,
    fits=False,
    hbm_bytes=sum(held.values()),
    hbm_limit_bytes=limit,
    hbm=held,
    flops=flops.of_jaxpr(traced.jaxpr.jaxpr) / devices,
    model_flops=_model_flops(program, devices),
    trace_seconds=traced_at - start,
    settings=settings(program.config) if program.name == "train" else {},
  )
  try:
    executable = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    exhausted = topology_lib.exhausted(error)
    if exhausted is None:
      raise
    seconds = time.perf_counter() - traced_at
    return dataclasses.replace(
      report,
      hbm_bytes=max(exhausted.needed, report.hbm_bytes),
      compile_seconds=seconds,
    )
  seconds = time.perf_counter() - traced_at
  report = dataclasses.replace(report, compile_seconds=seconds)
  sizes = dict(program.mesh.shape)
  ways = rules.ways("batch", sizes) * rules.ways("slots", sizes)
  kept = activations.of_jaxpr(traced.jaxpr.jaxpr) // ways
  return _measured(report, executable, kept)


def _measured(report: Report, executable: Any, kept: int) -> Report:
  memory, held = executable.memory_analysis(), report.hbm
  arguments = memory.argument_size_in_bytes
  temporaries = (
    memory.temp_size_in_bytes
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes
    + memory.generated_code_size_in_bytes
  )
  total = arguments + temporaries
  module = hlo.Module(executable.as_text())
  found = collectives_lib.read(module, math.prod(report.mesh.values()))
  cost = executable.cost_analysis()
  once = cost["bytes accessed"]
  loops = module.bytes_accessed() / module.bytes_accessed(loops=False)
  return dataclasses.replace(
    report,
    fits=total <= report.hbm_limit_bytes,
    hbm_bytes=total,
    hbm=dict(
      held,
      padding=arguments - sum(held.values()),
      activations=kept,
      temporaries=temporaries - kept,
    ),
    flops_once=cost["flops"],
    bytes_accessed=once * loops,
    bytes_accessed_once=once,
    collectives=collectives_lib.totals(found),
    largest=tuple(found[:10]),
  )


def _model_flops(program: programs.Program, devices: int) -> float | None:
  if program.name != "train":
    return None
  return arithmetic.model_flops(program.config) / devices


def settings(config: config_lib.Config) -> dict[str, Any]:
  """What decides how a training step lies in memory."""
  return dict(
    accumulation=config.train.accumulation,
    remat=config.model.decoder.remat,
    vision_remat=config.model.vision.remat,
  )


def text(report: Report) -> str:
  """A paragraph for people."""
  mesh = " x ".join(f"{k} {n}" for k, n in report.mesh.items() if n > 1)
  limit = report.hbm_limit_bytes
  lines = [
    f"{report.program}: {'fits' if report.fits else 'DOES NOT FIT'},"
    f" {gb(report.hbm_bytes)} of {gb(limit)} a device"
    f" ({100 * report.hbm_bytes / limit:.0f} %); {mesh or 'one device'},"
    f" {report.rows} rows"
    + "".join(f", {k} {v}" for k, v in report.settings.items())
  ]
  parts = ", ".join(f"{name} {gb(n)}" for name, n in report.hbm.items())
  lines.append(f"  memory     {parts}")
  model = report.model_flops
  lines.append(
    f"  arithmetic {report.flops / 1e12:.2f} TFLOP a device"
    + (f", {model / 1e12:.2f} of them the model's own" if model else "")
    + (f"; {gb(moved)} accessed" if (moved := report.bytes_accessed) else "")
  )
  for kind, of in (report.collectives or {}).items():
    lines.append(f"  {kind:18s} {of.count:5d} a step, {gb(of.bytes)} sent")
  if report.compile_seconds:
    lines.append(
      f"  compiled in {report.compile_seconds:.1f} s, traced in"
      f" {report.trace_seconds:.1f} s"
    )
  return "\n".join(lines)


def gb(n: int | float) -> str:
  """Bytes, for people: in 10**9."""
  return f"{n / 1e9:.2f} GB"
