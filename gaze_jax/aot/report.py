"""A compiled program as numbers, as a paragraph, in the README's table."""

import dataclasses
import math
import time
from collections.abc import Sequence
from typing import Any

import jax

from gaze_jax import config as config_lib
from gaze_jax.aot import arithmetic
from gaze_jax.aot import collectives as collectives_lib
from gaze_jax.aot import jaxprs
from gaze_jax.aot import topology as topology_lib
from gaze_jax.aot import workloads
from gaze_jax.kernels import target
from gaze_jax.parallel import rules

_HEADER = (
  "recipe", "mesh", "rows", "micro-batches", "remat (decoder, tower)",
  "HBM a chip", "of", "TFLOP a chip", "sent a chip", "compiled in",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Report:
  """One program on one topology; bytes and FLOPs are of one device.

  Attributes:
    program: its name.
    command: what runs it.
    mesh: sizes of the axes.
    rows: of its batch, on all devices.
    fits: whether it compiles within the memory.
    hbm_bytes: that it needs: arguments and what else stays on the device,
      results that take no argument's place, temporaries and code; as far as the
      compiler says where it does not fit.
    hbm_limit_bytes: that the compiler lets it have.
    hbm: parts of it: "parameters", "optimizer", "batch", "cache", "padding" of
      these in memory, "activations" that a training step keeps for its
      backward pass (`jaxprs.activations`; as if sharded by rows and slots
      alone), and "temporaries": gradients, what is at work, results and code.
    flops: of matrix products, loops turned and remat run again
      (`jaxprs.flops`).
    model_flops: of a training step, of the model alone (train/flops.py).
    least_seconds: that it takes by the vendor's figures: of FLOPs, or of
      reading its weights, whichever takes longer; None of unknown devices,
      and of programs that do next to nothing of either.
    collectives: count and bytes by kind; see `collectives.Total`.
    unread: lines of the program that may be collectives and are not counted.
    compile_seconds: of XLA, without tracing.
    trace_seconds: of Python, until then.
    settings: what of the config it was compiled with.
    changes: flags that make it of the config that was asked for; "" for none.
  """

  program: str
  command: str
  mesh: dict[str, int]
  rows: int
  fits: bool
  hbm_bytes: int
  hbm_limit_bytes: int
  hbm: dict[str, int]
  flops: float
  model_flops: float | None
  least_seconds: float | None = None
  collectives: dict[str, collectives_lib.Total] | None = None
  unread: tuple[str, ...] = ()
  compile_seconds: float = 0.0
  trace_seconds: float = 0.0
  settings: dict[str, Any] = dataclasses.field(default_factory=dict)
  changes: str = ""


def compiled(workload: workloads.Workload, limit: int) -> Report:
  """Compiles a workload.

  Args:
    workload: what.
    limit: bytes of HBM, from `topology.hbm_limit`; a lower one than the
      compiler's own is held to as well.
  """
  mesh = workload.mesh
  start = time.perf_counter()
  with jax.set_mesh(mesh), target.tracing_for("tpu"):
    traced = workload.function.trace(*workload.arguments, **workload.options)
    lowered = traced.lower(lowering_platforms=("tpu",))
  traced_at = time.perf_counter()
  hbm = workload.bytes_by_part()
  model_flops, chosen = None, {}
  if workload.name == "train":
    model_flops = arithmetic.model_flops(workload.config) / mesh.size
    chosen = settings(workload.config)
  report = Report(
    program=workload.name,
    command=workload.command,
    mesh=dict(mesh.shape),
    rows=workload.rows,
    fits=False,
    hbm_bytes=sum(hbm.values()),
    hbm_limit_bytes=limit,
    hbm=hbm,
    flops=jaxprs.flops(traced.jaxpr.jaxpr) / mesh.size,
    model_flops=model_flops,
    trace_seconds=traced_at - start,
    settings=chosen,
  )
  try:
    executable = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    executable, exhausted = None, topology_lib.exhausted(error)
    if exhausted is None:
      raise
  seconds = time.perf_counter() - traced_at
  report = dataclasses.replace(report, compile_seconds=seconds)
  if executable is None:
    needed = max(exhausted.needed, report.hbm_bytes)
    return dataclasses.replace(report, hbm_bytes=needed)
  ways = rules.ways("batch", report.mesh) * rules.ways("slots", report.mesh)
  kept = jaxprs.activations(traced.jaxpr.jaxpr) // ways
  taken = _taken(lowered, executable)
  report = _measured(report, executable, kept, sum(taken))
  weights = len(jax.tree.leaves(workload.arguments[0]))
  read = sum(taken[:weights]) if workload.weights else 0
  device = mesh.devices.flat[0].device_kind
  loops = lambda line: workload.one_turn and " while(" in line
  return dataclasses.replace(
    report,
    least_seconds=_least(report, read, device),
    unread=tuple(line for line in report.unread if not loops(line)),
  )


def _taken(lowered: Any, executable: Any) -> list[int]:
  """Bytes on a device of each argument; 0 of those that nothing reads."""
  flat = lowered.in_tree.flatten_up_to
  return [
    0
    if place is None
    else math.prod(place.shard_shape(x.shape)) * x.dtype.itemsize
    for x, place in zip(
      flat(lowered.args_info), flat(executable.input_shardings), strict=True
    )
  ]


def _least(report: Report, read: int, device: str) -> float | None:
  if device not in topology_lib.PEAKS:
    return None
  flops, bandwidth = topology_lib.PEAKS[device]
  least = max(report.flops / flops, read / bandwidth)
  return least if least > 1e-6 else None  # it is bound by something else


def _measured(report: Report, executable: Any, kept: int, taken: int) -> Report:
  """Adds what the compiler's analysis and the program's text have."""
  memory = executable.memory_analysis()
  padding = memory.argument_size_in_bytes - taken
  temporaries = (
    memory.temp_size_in_bytes
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes
    + memory.generated_code_size_in_bytes
  )
  total = sum(report.hbm.values()) + padding + temporaries
  devices = math.prod(report.mesh.values())
  sent, unread = collectives_lib.read(executable.as_text(), devices)
  return dataclasses.replace(
    report,
    fits=total <= report.hbm_limit_bytes,
    hbm_bytes=total,
    hbm=dict(
      report.hbm,
      padding=padding,
      activations=kept,
      temporaries=temporaries - kept,
    ),
    collectives=sent,
    unread=tuple(unread),
  )


def settings(config: config_lib.Config) -> dict[str, Any]:
  """What decides how much memory a training step takes."""
  return dict(
    accumulation=config.train.accumulation,
    remat=config.model.decoder.remat,
    vision_remat=config.model.vision.remat,
  )


def text(report: Report) -> str:
  """A paragraph for people."""
  limit = report.hbm_limit_bytes
  lines = [
    f"{report.program} ({report.command}):"
    f" {'fits' if report.fits else 'DOES NOT FIT'},"
    f" {gb(report.hbm_bytes)} of {gb(limit)} a device"
    f" ({100 * report.hbm_bytes / limit:.0f} %);"
    f" {_mesh(report.mesh) or 'one device'}, {report.rows} rows"
    + "".join(f", {k} {v}" for k, v in report.settings.items())
  ]
  parts = ", ".join(f"{name} {gb(n)}" for name, n in report.hbm.items())
  lines.append(f"  memory     {parts}")
  model, least = report.model_flops, report.least_seconds
  lines.append(
    f"  arithmetic {report.flops / 1e12:.2f} TFLOP a device"
    + (f", {model / 1e12:.2f} of them the model's own" if model else "")
    + (f"; {1e3 * least:.2f} ms at least" if least else "")
  )
  for kind, of in (report.collectives or {}).items():
    lines.append(f"  {kind:18s} {of.count:5d} a step, {gb(of.bytes)} sent")
  if report.unread:
    lines.append(
      f"  NOT COUNTED: {len(report.unread)} lines of the compiled program are"
      f" not understood (--json has them), such as {report.unread[0][:100]}"
    )
  if report.compile_seconds:
    lines.append(
      f"  compiled in {report.compile_seconds:.1f} s, traced in"
      f" {report.trace_seconds:.1f} s"
    )
  return "\n".join(lines)


def gb(n: int | float) -> str:
  """Bytes, for people: in 10**9."""
  return f"{n / 1e9:.2f} GB"


def markdown(found: dict[str, Any]) -> str:
  """Two tables: training steps by recipe, and what reads and answers prompts.

  Args:
    found: what `check.recipes` returns.
  """
  training, serving = [], []
  for name, one in found["recipes"].items():
    for program, report in one["programs"].items():
      mesh, rows, *rest = _cells(report)
      if program == "train":
        s = report["settings"]
        remat = f"{s['remat']}, {s['vision_remat']}"
        settings_ = [str(s["accumulation"]), remat]
        training.append([f"`{name}`", mesh, rows, *settings_, *rest])
      else:
        model, _, slice_ = name.split("-", 2)
        least = report["least_seconds"]
        least = f"{_three_digits(1e3 * least)} ms" if least else "-"
        of = [f"{model} {slice_}", program, report["command"]]
        serving.append([*of, mesh, rows, *rest[:2], least, *rest[2:]])
  head = ["model", "program", "run by", *_HEADER[1:3], *_HEADER[5:7]]
  head += ["takes at least", *_HEADER[7:]]
  return f"{_table(_HEADER, training)}\n{_table(head, serving)}"


def _cells(report: dict[str, Any]) -> list[str]:
  """What both tables have of a report."""
  sent = report["collectives"]
  return [
    _mesh(report["mesh"]),
    str(report["rows"]),
    f"{report['hbm_bytes'] / 1e9:.1f} GB",
    f"{report['hbm_limit_bytes'] / 1e9:.1f} GB",
    _three_digits(report["flops"] / 1e12),
    "-"
    if sent is None
    else f"{_three_digits(sum(c['bytes'] for c in sent.values()) / 1e9)} GB",
    "arithmetic" if sent is None else f"{report['compile_seconds']:.0f} s",
  ]


def _mesh(sizes: dict[str, int]) -> str:
  return " x ".join(f"{axis} {n}" for axis, n in sizes.items() if n > 1)


def _three_digits(x: float) -> str:
  """And no power of ten."""
  return f"{float(f'{x:.3g}'):,g}"


def _table(header: Sequence[str], rows: list[list[str]]) -> str:
  lines = [header, ["---"] * len(header), *rows]
  return "".join(f"| {' | '.join(line)} |\n" for line in lines)
