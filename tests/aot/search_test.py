"""The search with a compiler that is made up, and the arithmetic by hand."""

import dataclasses

import pytest

from gaze_jax import config as config_lib
from gaze_jax.aot import arithmetic
from gaze_jax.aot import check
from gaze_jax.aot import search
from gaze_jax.aot import topology
from gaze_jax.parallel import mesh as mesh_lib


def _config(**changes):
  raw = dict(
    model=dict(
      vision=dict(
        image_size=28,
        width=16,
        depth=3,
        heads=2,
        mlp_dim=32,
        class_token=False,
        layer_scale=False,
        position_grid=2,
        hidden_state=2,
        frozen=False,
      ),
      decoder=dict(
        vocab_size=64,
        width=32,
        depth=2,
        query_heads=4,
        kv_heads=2,
        head_dim=8,
        mlp_dim=64,
        dtype="bfloat16",
      ),
      gaze=dict(context_tokens=0),
    ),
    data=dict(sequence_length=32, answer_slots=16),
    train=dict(batch_size=16),
  )
  for path, value in changes.items():
    at = raw
    *parts, last = path.split("__")
    for part in parts:
      at = at.setdefault(part, {})
    at[last] = value
  return config_lib.from_config_dict(raw)


@dataclasses.dataclass(frozen=True)
class _Report:
  fits: bool
  config: config_lib.Config


def _find(config, fits, limit=10**9, devices=8):
  compiled = lambda changed: _Report(fits(changed), changed)
  return search.find(config, devices, limit, compiled)


def test_what_fits_is_left_alone():
  config = _config()
  (report,) = _find(config, lambda changed: True)
  assert report.config == config
  assert search.difference(config, report.config) == ""


def test_remat_then_accumulation():
  """Cheapest first; nothing is tried after the first that fits."""
  config = _config()
  small = lambda changed: changed.train.accumulation == 2
  tried = [report.config for report in _find(config, small)]
  assert [
    (c.model.decoder.remat, c.model.vision.remat, c.train.accumulation)
    for c in tried
  ] == [
    ("none", "none", 1),
    ("dots", "none", 1),
    ("attention", "none", 1),
    ("full", "none", 1),
    ("full", "full", 1),
    ("none", "none", 2),
  ]
  flags = search.difference(config, tried[-1])
  assert flags == "--config.train.accumulation=2"


def test_parameters_are_cut_further_where_they_do_not_fit():
  """Of 26 KB of parameters 16 bytes for each: not all of it on a device."""
  config = _config(parallel__data=8)
  held = search._fixed_bytes(config, 8)
  (report,) = _find(config, lambda changed: True, limit=held - 1)
  assert report.config.parallel.fsdp == 8 and report.config.parallel.data == -1
  assert search._fixed_bytes(report.config, 8) < held / 4
  flags = search.difference(config, report.config)
  assert flags == "--config.parallel.data=-1 --config.parallel.fsdp=8"
  assert _find(config, lambda changed: True, limit=1000) == []


def test_a_config_that_lies_on_no_mesh():
  with pytest.raises(mesh_lib.MeshError, match="train.batch_size = 9 can't"):
    _find(_config(train__batch_size=9), lambda changed: True)


def test_nothing_fits():
  reports = _find(_config(), lambda changed: False)
  assert len(reports) > 6 and not reports[-1].fits
  # 16 rows on 8 devices are micro-batches of one row each, at the least.
  assert {r.config.train.accumulation for r in reports} == {1, 2}
  config = _config(train__batch_size=24)
  reports = _find(config, lambda changed: False, devices=1)
  assert {r.config.train.accumulation for r in reports} == {1, 2, 4, 8}


def test_arithmetic_by_hand():
  config = _config(
    parallel__fsdp=2,
    train__accumulation=2,
    model__decoder__remat="attention",
  )
  sizes = mesh_lib.axis_sizes(config.parallel, 8)
  one = arithmetic.estimate(config, dict.fromkeys(sizes, 1))
  # Each of 2 layers: query, key, value, out; gate, up, down; 2 norms of the
  # width, 2 of the heads. And the table, and the last norm.
  layer = 32 * 8 * (4 + 2 + 2 + 4) + 3 * 32 * 64 + 2 * 32 + 2 * 8
  decoder = 2 * layer + 64 * 32 + 32
  # Each of 2 blocks: 4 products of attention and 2 of the MLP with biases, 2
  # norms. Patches of 14 x 14 x 3, and positions of 2 x 2.
  block = 4 * 16 * 16 + 4 * 16 + 2 * 16 * 32 + 32 + 16 + 4 * 16
  tower = 2 * block + 14 * 14 * 3 * 16 + 16 + 4 * 16
  projector = 16 * 32 + 32 + 32 * 32 + 32
  count = decoder + tower + projector
  assert one["parameters"] == 4 * count
  assert 0 <= one["optimizer"] - 8 * count <= 64  # and counters of steps
  assert one["gradients"] == 2 * 4 * count
  # Cut: all but norms of heads, which have no axis of the model's width, and
  # biases of hidden units and heads: of the tower, and the projector's first.
  cut = arithmetic.estimate(config, sizes)
  whole = 2 * (2 * 8) + 2 * (3 * 16 + 32) + 32
  assert cut["parameters"] == 4 * ((count - whole) // 2 + whole)
  # 16 rows, 2 micro-batches, 8 devices: one row of 32 slots. Layers keep their
  # input, query, key, value, attention, out; one layer is at work.
  attention = 2 * (4 + 2) * 8 + 32
  layers = 32 * 2 * 2 * (32 + attention)
  work = 32 * 2 * 2 * (32 + attention + 2 * 64)
  head = 16 * (12 * 64 + 2 * 32 * 2)
  tokens = 4 * 4  # 2 x 2 patches in float32
  pictures = tokens * 2 * (8 * 16 + 32 + 2 * 4 * 2)
  assert cut["activations"] == layers + work + head + pictures


def test_gpus_are_arithmetic(capsys):
  config = _config(parallel__fsdp=2)
  said = []
  found = check.check(config, "gpu:8x80GB", log=said.append)
  (train,) = found["programs"].values()
  sizes = mesh_lib.axis_sizes(config.parallel, 8)
  estimate = arithmetic.estimate(config, sizes)
  assert found["fits"] and train["hbm_bytes"] == sum(estimate.values())
  assert train["hbm_limit_bytes"] == 72_000_000_000
  assert train["flops"] == train["model_flops"] > 0
  assert train["collectives"] is None and found["libtpu"] is None
  assert "no compiler for GPUs" in said[0] and "activations" in said[1]


@pytest.mark.parametrize(
  "message, needed, limit",
  [
    (
      "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required"
      " for HLO temporaries (16.00T) exceeds available HBM (15.75G).",
      16 * 2**40,
      int(15.75 * 2**30),
    ),
    (
      "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory"
      " in memory space hbm. Used 20.5G of 15.75G hbm. Exceeded by 4.75G.",
      int(20.5 * 2**30),
      int(15.75 * 2**30),
    ),
  ],
)
def test_what_an_exhausted_compiler_says(message, needed, limit):
  found = topology.exhausted(RuntimeError(message))
  assert found == topology.Exhausted(needed, limit)
  assert topology.exhausted(RuntimeError("INTERNAL: 1.0G of 2.0G")) is None
