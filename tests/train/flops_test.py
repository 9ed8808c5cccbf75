"""Model FLOPs against XLA's own count, and what is logged of them."""

import dataclasses

import flax.linen as nn
import jax
import numpy as np
import pytest

from gaze_jax import config as config_lib
from gaze_jax.data import pipeline
from gaze_jax.models import mllm
from gaze_jax.train import flops
from gaze_jax.train import losses


@pytest.fixture(scope="module")
def wide(tiny_config):
  """Config, shapes, batch of a model whose products dwarf everything else.

  The layers are unrolled, as XLA counts the body of a loop once. Attention is
  the oracle, which computes every pair of slots.
  """
  config = tiny_config(
    model__vision__frozen=False,
    model__vision__width=256,
    model__vision__mlp_dim=1024,
    model__decoder__width=256,
    model__decoder__mlp_dim=1024,
    model__decoder__head_dim=64,
    model__decoder__scan=False,
    model__gaze__region=(5, 5, 1),
    model__gaze__implementation="masked",
    train__features="none",
    train__batch_size=2,
  )
  batches = pipeline.make_iterator(config)
  batch = next(batches)["batch"]
  batches.close()
  make = lambda: nn.meta.unbox(mllm.init(config.model, jax.random.key(0)))
  return config, jax.eval_shape(make), batch


def _loss(config, batch):
  target, scored = losses.targets(batch)

  def loss(trains, frozen):
    out = mllm.apply(trains | frozen, config.model, batch, np.array([1, 1]))
    return losses.next_token(out.logits, target, scored)

  return loss


def _pairs_of_slots(config, count):
  """What XLA counts beside: the pairs above the diagonal."""
  rows, slots = config.train.batch_size, config.data.sequence_length
  above = slots**2 - slots * (slots + 1) // 2
  return config.model.decoder.depth * rows * above * count.entry


def test_forward_is_what_xla_counts(wide):
  config, params, batch = wide
  count = flops.count(config, params, {})
  compiled = jax.jit(_loss(config, batch)).lower({}, params).compile()
  want = compiled.cost_analysis()["flops"]
  got = count.model + _pairs_of_slots(config, count)
  # The rest is norms, softmax, rotations and the choice of regions.
  assert 0.98 < got / want < 1


@pytest.mark.parametrize(
  "trains",
  [("vision", "projector", "decoder"), ("projector",), ("decoder",)],
  ids="+".join,
)
def test_a_step_is_what_xla_counts(wide, trains):
  """Backward, too: nothing is counted for what needs no gradient."""
  config, params, batch = wide
  mine = {name: part for name, part in params.items() if name in trains}
  frozen = {k: part for k, part in params.items() if k not in mine}
  count = flops.count(config, frozen, mine)
  gradient = jax.jit(jax.value_and_grad(_loss(config, batch)))
  want = gradient.lower(mine, frozen).cost_analysis()["flops"]
  got = count.model + _pairs_of_slots(config, count)
  assert 0.98 < got / want < 1


def test_groups_that_are_frozen_cost_less(wide):
  config, params, _ = wide
  count = lambda *groups: flops.count(
    dataclasses.replace(
      config, train=dataclasses.replace(config.train, groups=groups)
    ),
    {},
    params,
  )
  parts = lambda names: {k: x for k, x in params.items() if k in names}
  first = count((r"projector\..*", 1.0), (r"(vision|decoder)\..*", 0.0))
  assert first == flops.count(
    config, parts(("vision", "decoder")), parts(("projector",))
  )
  tail = count((r"decoder\.final_norm.*", 1.0), (r"(?!.*final_norm).*", 0.0))
  forward = flops.count(config, params, {})
  # The head alone sees a gradient, and its table does not train.
  c = config.model.decoder
  slots = config.train.batch_size * config.data.answer_slots
  assert tail.model - forward.model == 2 * slots * c.vocab_size * c.width
  assert tail.entry == forward.entry == 4 * c.query_heads * c.head_dim


def test_what_is_logged_by_hand():
  count = flops.Count(model=8e12, entry=2e6)
  logged = flops.speed(count, 100.0, saved=1e6, seconds=0.5)
  # (8 - 2) TFLOP in half a second of 100 TFLOP/s.
  assert logged == dict(model_tflops=8.0, gaze_saved_tflops=2.0, mfu=0.12)
  assert "mfu" not in flops.speed(count, None, saved=1e6, seconds=0.5)


@pytest.mark.parametrize(
  "kind, tflops",
  [
    ("TPU v4", 275.0),
    ("TPU v5 lite", 197.0),
    ("TPU v5p", 459.0),
    ("TPU v5", 459.0),
    ("TPU v6 lite", 918.0),
    ("TPU7x", 1153.5),
    ("NVIDIA A100-SXM4-80GB", 312.0),
    ("NVIDIA H100 80GB HBM3", 989.0),
    ("cpu", None),
  ],
)
def test_peak_of_devices(monkeypatch, kind, tflops):
  device = type("Device", (), dict(device_kind=kind))()
  monkeypatch.setattr(jax, "devices", lambda: [device] * 4)
  monkeypatch.setattr(jax, "device_count", lambda: 4)
  train = config_lib.TrainConfig()
  assert flops.peak(train) == (tflops and 4 * tflops)
  given = dataclasses.replace(train, peak_tflops=10.0)
  assert flops.peak(given) == 40.0
