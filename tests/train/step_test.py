"""The compiled step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.extend import core

import compare
from gaze_jax import types
from gaze_jax.data import pipeline
from gaze_jax.layout import row as row_lib
from gaze_jax.train import checkpoint
from gaze_jax.train import losses
from gaze_jax.train import optimizer
from gaze_jax.train import param_groups
from gaze_jax.train import state as state_lib
from gaze_jax.train import step as step_lib


class Run:
  """A state and a compiled step of the tiny model, on made-up features."""

  def __init__(self, config):
    self.config = config
    chain = optimizer.make(config.train)
    self.regions = row_lib.row_shape(config).regions
    self.new = lambda: state_lib.create(config, chain)
    self.step = step_lib.make(config, chain)
    rng = np.random.default_rng(0)
    features = rng.normal(size=(config.data.samples, 25, 16))
    features = features.astype(np.float32)
    self.batches = pipeline.make_iterator(config, features=features)

  def budget(self, k):
    return np.full(self.config.train.batch_size, k, np.int32)


@pytest.fixture(scope="module")
def run(tiny_config):
  out = Run(tiny_config())
  yield out
  out.batches.close()


def test_k_changes_recompile_nothing(run):
  state = run.new()
  for k in (9, 4, 1, 0, 20):
    batch = next(run.batches)["batch"]
    budget = run.budget(k)
    budget[0] = 3  # and rows need not agree
    state, values = run.step(state, batch, budget, {})
    assert np.isfinite(values["loss"])
  assert run.step._cache_size() == 1  # over all tests of this module, too
  assert int(state.step) == 5


def test_metrics_of_the_first_step(run):
  batch = next(run.batches)["batch"]
  _, values = run.step(run.new(), batch, run.budget(run.regions), {})
  values = {k: float(v) for k, v in values.items()}
  assert values.keys() == {
    *("loss", "accuracy", "grad_norm", "k", "tokens"),
    *("visual_kv_fraction", "unique_visual_kv_fraction", "visual_kv_saved"),
  }
  # An untrained model knows nothing: about log V.
  assert abs(values["loss"] - np.log(2048)) < 0.3
  assert values["k"] == 9
  # Dense: 25 visual and 2 context entries over 25 visible ones.
  np.testing.assert_allclose(values["visual_kv_fraction"], 27 / 25, rtol=1e-6)
  np.testing.assert_allclose(
    values["unique_visual_kv_fraction"], 27 / 25, rtol=1e-6
  )
  assert values["visual_kv_saved"] == 0  # context tokens are no cost of gaze's
  assert values["tokens"] == (np.asarray(batch.layout.role) != 0).sum()


def test_unique_is_at_least_per_head(run):
  state = run.new()
  for k in range(1, 9):
    batch = next(run.batches)["batch"]
    state, values = run.step(state, batch, run.budget(k), {})
    head, unique = (
      float(values[n])
      for n in ("visual_kv_fraction", "unique_visual_kv_fraction")
    )
    assert head <= unique <= min(2 * head, 27 / 25) + 1e-6


def test_no_budget_reads_the_context_tokens_alone(run):
  batch = next(run.batches)["batch"]
  _, values = run.step(run.new(), batch, run.budget(0), {})
  np.testing.assert_allclose(values["visual_kv_fraction"], 2 / 25, rtol=1e-6)
  # Each text slot after the image would have read 25 entries in each layer.
  role, order = batch.layout.role, np.arange(batch.layout.role.shape[1])
  image = np.where(role == types.Role.VISUAL, order, 0).max(1, keepdims=True)
  slots = (role == types.Role.TEXT) & (order > image)
  assert values["visual_kv_saved"] == 2 * 25 * slots.sum()


def test_loss_falls_on_one_batch(run):
  state, batch = run.new(), next(run.batches)["batch"]
  losses = []
  for _ in range(6):
    state, values = run.step(state, batch, run.budget(4), {})
    losses.append(float(values["loss"]))
  assert losses[-1] < losses[1] - 0.005  # the first step's rate is 0


def test_state_is_donated(run):
  state = run.new()
  leaf = jax.tree.leaves(state.params)[0]
  run.step(state, next(run.batches)["batch"], run.budget(4), {})
  assert leaf.is_deleted()


def test_a_frozen_tower_is_no_part_of_the_state(run):
  assert "vision" not in run.new().params


def _batch(config):
  """The first batch of a run, features of a frozen tower made up."""
  features = None
  if config.train.features == "cached":
    rng = np.random.default_rng(0)
    features = rng.normal(size=(config.data.samples, 25, 16)).astype("f")
  batches = pipeline.make_iterator(config, features=features)
  batch = next(batches)["batch"]
  batches.close()
  return batch


@pytest.mark.nightly
def test_micro_batches_add_up_to_the_batch(tiny_config):
  """Every number of a step, and the gradient: one step of plain descent."""
  results, start = [], None
  for accumulation in (1, 4):
    config = tiny_config(
      train__accumulation=accumulation,
      train__batch_size=8,
      train__z_loss=0.1,
      train__features="none",
      data__questions=4,
      model__vision__frozen=False,
      model__gaze__gradient="kl",
      model__gaze__dense_layers=(0,),
    )
    batch = _batch(config)
    _, scored = losses.targets(batch)
    assert len(set(np.asarray(scored.sum(1)).tolist())) > 1  # rows that differ
    plain = optax.sgd(1e3)  # what is left is the gradient, much enlarged
    start = start or jax.device_get(state_lib.create(config, plain))
    budget = np.arange(1, 9, dtype=np.int32)
    step = step_lib.make(config, plain)
    results.append(jax.device_get(step(start, batch, budget, {})))
  (whole, numbers), (parts, added) = results
  assert numbers.keys() == added.keys() > {"z_loss", "router_loss"}
  compare.close(added, numbers)
  compare.close(compare.joined(parts.params), compare.joined(whole.params))
  before, after = (
    param_groups.flat(x.params)["vision.patch.kernel"] for x in (start, whole)
  )
  assert (before != after).any()  # the tower is one of those that train


def test_the_loss_by_hand(tiny_config):
  """Means of sums, each with its weight."""
  arrays = lambda **x: jax.tree.map(jnp.array, x)
  sums = arrays(loss=6.0, accuracy=1.0, z_loss=30.0, router_loss=8.0)
  counts = arrays(loss=3.0, accuracy=3.0, z_loss=3.0, router_loss=4.0)
  loss = lambda **o: step_lib._loss(tiny_config(**o), sums, counts)
  kl = dict(model__gaze__gradient="kl", model__gaze__gradient_weight=5.0)
  assert loss() == 2
  assert loss(train__z_loss=0.5) == 2 + 0.5 * 10
  assert loss(train__z_loss=0.5, **kl) == 2 + 0.5 * 10 + 5 * 2


def test_a_micro_batch_is_every_nth_row():
  """The sum of their largest rows: of 0 2, 1 3; not of 0 1, 2 3."""
  rows = dict(x=jnp.arange(4.0), none=None)
  add_up = lambda n: float(step_lib._add_up(lambda b: b["x"].max(), rows, n))
  assert [add_up(n) for n in (1, 2, 4)] == [3, 2 + 3, 0 + 1 + 2 + 3]


def _dots(jaxpr, outer=""):
  """(operand dtypes, whether it has batch axes, scope) of all products."""
  for eqn in jaxpr.eqns:
    scope = f"{outer}/{eqn.source_info.name_stack}"
    if eqn.primitive.name == "dot_general":
      _, (batch, _) = eqn.params["dimension_numbers"]
      dtypes = {str(x.aval.dtype) for x in eqn.invars}
      yield dtypes, bool(batch), scope
    for inner in core.jaxprs_in_params(eqn.params):
      yield from _dots(inner, scope)


def test_bfloat16_products_between_float32_states(tiny_config):
  config = tiny_config(
    train__features="none",
    train__accumulation=2,
    train__ema=0.9,
    model__vision__frozen=False,
    model__vision__dtype="bfloat16",
    model__vision__remat="full",
    model__decoder__dtype="bfloat16",
    model__decoder__remat="attention",
  )
  chain = optimizer.make(config.train)
  step = step_lib.make(config, chain)
  state = jax.eval_shape(lambda: state_lib._new(config, chain, {}))
  arguments = state, _batch(config), np.full(4, 2, np.int32), {}
  new, values = jax.eval_shape(step, *arguments)
  floats = [x for x in jax.tree.leaves((new, values)) if x.dtype != jnp.int32]
  assert {str(x.dtype) for x in floats} == {"float32"}
  # Products with weights, forward and backward, in the tower and the decoder;
  # positions of the tower are resized, and context tokens are made and put in
  # their slots, in float32.
  of_weights = [
    (dtypes, scope)
    for dtypes, batched, scope in _dots(jax.make_jaxpr(step)(*arguments).jaxpr)
    if not batched and "projector" not in scope and "/context" not in scope
  ]
  assert len(of_weights) > 40
  for dtypes, scope in of_weights:
    assert dtypes == {"bfloat16"}, (dtypes, scope)


@pytest.mark.nightly
def test_frozen_by_path(tiny_config, tmp_path):
  """LLaVA's first stage, by groups, with a moving mean; and what is saved."""
  first = (
    (r"projector\.(context|linear_.*)", 1.0),
    (r"projector\.(?!context|linear_).*|decoder\..*", 0.0),
  )
  config = tiny_config(
    train__groups=first,
    train__ema=0.75,
    train__warmup_steps=0,
    model__projector__positions="row_column",
  )
  chain = optimizer.make(config.train)
  state = state_lib.create(config, chain)
  batch, step = _batch(config), step_lib.make(config, chain)
  saw = [param_groups.flat(jax.device_get(state.params))]
  for _ in range(2):
    state, _ = step(state, batch, np.full(4, 9, np.int32), {})
    saw.append(param_groups.flat(jax.device_get(state.params)))
  start, one, two = saw
  trains = {k for k in start if k.startswith(("projector.con", "projector.l"))}
  assert trains == param_groups.flat(state.ema).keys()
  moments = sum(x.size for x in jax.tree.leaves(state.opt_state) if x.ndim)
  assert moments == 2 * sum(start[path].size for path in trains)
  saved = checkpoint.Writer(tmp_path, config.train)
  saved.save(checkpoint.Position(2), state, config)
  again, _ = saved.restore(state, config)
  read = param_groups.flat(saved.params())
  saved.close()
  for path, x in start.items():
    if path not in trains:
      for other in (one[path], two[path], read[path]):
        np.testing.assert_array_equal(other, x, err_msg=path)
      continue
    assert (one[path] != x).any(), path
    mean = 0.75 * (0.75 * x + 0.25 * one[path]) + 0.25 * two[path]
    compare.close(read[path], mean)
  jax.tree.map(np.testing.assert_array_equal, again.ema, state.ema)
