"""A config on a topology: every program compiled, and reported on."""

import dataclasses
import importlib.metadata
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import jax

from gaze_jax import config as config_lib
from gaze_jax.aot import answering
from gaze_jax.aot import arithmetic
from gaze_jax.aot import report as report_lib
from gaze_jax.aot import search
from gaze_jax.aot import topology as topology_lib
from gaze_jax.aot import workloads
from gaze_jax.parallel import mesh as mesh_lib

# Images of a prompt: 8 frames of a video, and 36.
IMAGES = (8, 36)
# What is compiled.
What = Literal["all", "train", "serve"]

_GPUS = re.compile(r"gpu:(\d+)x(\d+)GB")
# CUDA, NCCL and fragments of the allocator.
_GPU_SHARE = 0.9

Log = Callable[[str], None]


def check(
  config: config_lib.Config,
  topology: str,
  *,
  limit: int | None = None,
  what: What = "all",
  images: Sequence[int] = IMAGES,
  log: Log = print,
) -> dict[str, Any]:
  """Compiles training, evaluation and answers; for GPUs, estimates training.

  Args:
    config: of the run.
    topology: as libtpu knows it, such as "v5e:16x16", or "gpu:8x80GB".
    limit: bytes of HBM of a device; what the compiler allows by default.
    what: training, evaluation and answers, or both.
    images: of each prompt that is answered, at least 1.
    log: is given what there is to read, as it comes.

  Returns:
    What --json writes.

  Raises:
    topology_lib.TopologyError: no such topology.
    mesh_lib.MeshError: the model can't be laid out on it.
  """
  if found := _GPUS.fullmatch(topology):
    count, size = map(int, found.groups())
    limit = round(size * 1e9 * _GPU_SHARE)
    log(
      f"{topology}: there is no compiler for GPUs here; by arithmetic"
      f" (gaze_jax/aot/arithmetic.py), {100 * _GPU_SHARE:.0f} % of the memory"
    )
    estimate = lambda changed: _estimated(changed, count, limit)
    done = _search(config, count, limit, estimate, log)
    return _result(config, topology, "GPU", done)
  devices = topology_lib.devices(topology)
  kind = devices[0].device_kind
  limit = limit or topology_lib.hbm_limit(devices[0])
  log(
    f"{topology}: {len(devices)} x {kind}, {report_lib.gb(limit)} of HBM each"
  )

  def compiled(changed: config_lib.Config) -> report_lib.Report:
    mesh = mesh_lib.make_mesh(changed.parallel, devices)
    return report_lib.compiled(workloads.train(changed, mesh), limit)

  done = {}
  if what != "serve":
    done = _search(config, len(devices), limit, compiled, log)
    if not done:
      return _result(config, topology, kind, None)
  if what != "train":
    for one in _served(config, devices, images):
      done[one.name] = report_lib.compiled(one, limit)
      log(report_lib.text(done[one.name]))
  return _result(config, topology, kind, done)


def _served(
  config: config_lib.Config, devices: Sequence[Any], images: Sequence[int]
) -> Iterator[workloads.Workload]:
  """Evaluation, and of what answers prompts the largest of each kind."""
  mesh = workloads.serving(config.model, devices)
  for count in images:
    batch = answering.request(config.model, count)
    largest = {}
    for one in answering.of_request(config.model, mesh, batch):
      largest[one.function, one.command] = one  # the last is the largest
    tokens = count * config.model.vision.tokens
    for one in largest.values():
      yield dataclasses.replace(one, name=f"{tokens:,} tokens: {one.name}")
  yield workloads.evaluate(config, mesh)


def recipes(
  found: dict[str, tuple[config_lib.Config, str]],
  *,
  limit: int | None = None,
  what: What = "all",
  images: Sequence[int] = IMAGES,
  log: Log = print,
) -> dict[str, Any]:
  """Checks each recipe; what serves once for a model and a topology.

  Args:
    found: config and topology by name.
    limit: as in `check`.
    what: likewise.
    images: likewise.
    log: likewise.
  """
  done: dict[str, dict[str, Any]] = {}
  served = set()
  for name, (config, topology) in found.items():
    log(f"\n{name}")
    width = config.model.decoder.width  # stages share their prompts
    new = (width, topology) not in served
    if what == "serve" and not new:
      continue
    done[name] = check(
      config,
      topology,
      limit=limit,
      what=what if new else "train",
      images=images,
      log=log,
    )
    served.add((width, topology))
  return dict(fits=all(one["fits"] for one in done.values()), recipes=done)


def _search(
  config: config_lib.Config,
  devices: int,
  limit: int,
  report: Callable[[config_lib.Config], report_lib.Report],
  log: Log,
) -> dict[str, report_lib.Report]:
  """The training step that fits, or was tried last; none if none could."""

  def tried(changed: config_lib.Config) -> report_lib.Report:
    changes = search.difference(config, changed)
    if changes:
      log(f"with {changes}")
    one = dataclasses.replace(report(changed), changes=changes)
    log(report_lib.text(one))
    return one

  reports = search.find(config, devices, limit, tried)
  if not reports:
    log(
      "train: DOES NOT FIT: parameters, optimizer and gradients alone are too"
      " many, however they are sharded; take more devices"
    )
  elif not reports[-1].fits:
    log(
      "train: DOES NOT FIT with any remat and accumulation; take more devices,"
      " a smaller data.sequence_length or data.answer_slots, or parallel.tensor"
    )
  elif reports[-1].changes:
    log(f"train: to fit, add {reports[-1].changes}")
  return {one.program: one for one in reports[-1:]}


def _estimated(
  config: config_lib.Config, devices: int, limit: int
) -> report_lib.Report:
  sizes = mesh_lib.axis_sizes(config.parallel, devices)
  parts = arithmetic.estimate(config, sizes)
  flops = arithmetic.model_flops(config) / devices
  return report_lib.Report(
    program="train",
    command="launch/train.py",
    mesh=sizes,
    rows=config.train.batch_size,
    fits=sum(parts.values()) <= limit,
    hbm_bytes=sum(parts.values()),
    hbm_limit_bytes=limit,
    hbm=parts,
    flops=flops,
    model_flops=flops,
    settings=report_lib.settings(config),
  )


def _result(
  config: config_lib.Config,
  topology: str,
  kind: str,
  done: dict[str, report_lib.Report] | None,
) -> dict[str, Any]:
  """Of what was compiled; None of a training step that nothing makes fit."""
  return dict(
    topology=topology,
    device=kind,
    fits=done is not None and all(one.fits for one in done.values()),
    jax=jax.__version__,
    libtpu=None if kind == "GPU" else importlib.metadata.version("libtpu"),
    config=config_lib.to_dict(config),
    programs={n: dataclasses.asdict(one) for n, one in (done or {}).items()},
  )
