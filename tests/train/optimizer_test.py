"""The optimizer: what it does, not how it is tuned."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gaze_jax import config as config_lib
from gaze_jax.train import optimizer

TRAIN = config_lib.TrainConfig(
  steps=100, warmup_steps=10, learning_rate=0.5, final_learning_rate=0.1
)


def test_learning_rate_by_hand():
  rate = optimizer.learning_rate(TRAIN)
  assert rate(0) == 0.0
  np.testing.assert_allclose(rate(5), 0.25, rtol=1e-6)
  np.testing.assert_allclose(rate(10), 0.5, rtol=1e-6)
  # Half way down the cosine: the mean of 0.5 and 0.05.
  np.testing.assert_allclose(rate(55), 0.275, rtol=1e-5)
  np.testing.assert_allclose(rate(100), 0.05, rtol=1e-5)


def test_other_schedules_by_hand():
  rates = lambda kind: optimizer.learning_rate(
    dataclasses.replace(TRAIN, schedule=kind)
  )
  # Up to 0.5 in ten steps; then to 0.05 in 90, or held.
  linear, constant = rates("linear"), rates("constant")
  at = [0, 5, 10, 55, 100, 120]
  expected = [0, 0.25, 0.5, 0.275, 0.05, 0.05]
  np.testing.assert_allclose([linear(s) for s in at], expected, rtol=1e-6)
  np.testing.assert_allclose(
    [constant(s) for s in at], [0, 0.25, 0.5, 0.5, 0.5, 0.5], rtol=1e-6
  )
  at_once = dataclasses.replace(TRAIN, schedule="constant", warmup_steps=0)
  assert optimizer.learning_rate(at_once)(0) == 0.5


def test_warm_up_longer_than_the_run():
  rate = optimizer.learning_rate(config_lib.TrainConfig(steps=2))
  assert np.isfinite([rate(s) for s in range(3)]).all()


def minimise(config, steps=200):
  """Steps towards 1 from 0 in a matrix and a norm's scale."""
  params = {"kernel": jnp.zeros((4, 4)), "scale": jnp.zeros(4)}
  chain = optimizer.make(config)

  @jax.jit
  def step(params, state):
    loss = lambda p: sum(((x - 1) ** 2).sum() for x in p.values())
    updates, state = chain.update(jax.grad(loss)(params), state, params)
    return optax.apply_updates(params, updates), state

  state = chain.init(params)
  for _ in range(steps):
    params, state = step(params, state)
  return params


def test_it_minimises():
  config = config_lib.TrainConfig(
    steps=200, warmup_steps=5, learning_rate=0.05, weight_decay=0.0
  )
  for name, value in minimise(config).items():
    np.testing.assert_allclose(value, 1.0, atol=0.02, err_msg=name)


def test_an_enormous_gradient_is_clipped():
  chain = optimizer.make(TRAIN)
  params = {"kernel": jnp.ones((4, 4))}
  state = chain.init(params)
  for size in (1e18, 1.0):
    grads = {"kernel": jnp.full((4, 4), size)}
    updates, state = chain.update(grads, state, params)
  assert np.isfinite(updates["kernel"]).all()


def test_only_matrices_decay():
  config = config_lib.TrainConfig(
    steps=50, warmup_steps=1, learning_rate=0.01, weight_decay=1.0
  )
  chain = optimizer.make(config)
  names = ("kernel", "scale", "bias", "embedding", "context", "rows")
  params = {"layer": {name: jnp.ones((3, 3)) for name in names}}
  state = chain.init(params)
  zero = jax.tree.map(jnp.zeros_like, params)
  for _ in range(5):
    updates, state = chain.update(zero, state, params)
    params = optax.apply_updates(params, updates)
  after = params["layer"]
  assert (np.asarray(after.pop("kernel")) < 1).all()
  for name, value in after.items():
    np.testing.assert_array_equal(value, 1.0, err_msg=name)


def test_muon_takes_each_matrix_of_each_layer_and_adam_the_rest():
  """Muon's update has equal singular values; Adam's first one equal entries."""
  config = config_lib.TrainConfig(
    optimizer="muon",
    warmup_steps=0,
    learning_rate=0.5,
    adam_share=0.1,
    weight_decay=0.0,
    clip_norm=1e9,
  )
  shapes = {
    "query": (2, 12, 3, 4),  # layers, embed, heads, head_dim
    "out": (2, 3, 4, 12),  # layers, heads, head_dim, embed
    "gate": (2, 12, 12),
    "linear_1": (12, 12),
  }
  rng = np.random.default_rng(0)
  # Layers with gradients a thousand times apart: no matrix sees another's.
  grads = {k: {"weight": rng.normal(size=s)} for k, s in shapes.items()}
  for name in ("query", "out", "gate"):
    grads[name]["weight"][1] *= 1e3
  grads["norm"] = {"scale": rng.normal(size=12)}
  grads["top"] = {"embedding": rng.normal(size=(7, 12))}
  grads = jax.tree.map(jnp.float32, grads)
  chain = optimizer.make(config)
  updates, _ = chain.update(grads, chain.init(grads), grads)
  for name in shapes:
    update = np.asarray(updates[name]["weight"]).reshape(-1, 12, 12)
    for matrix in update:
      # Newton-Schulz brings every singular value into about 0.7 .. 1.2.
      singular = np.linalg.svd(matrix, compute_uv=False) / 0.5
      assert 0.5 < singular.min() and singular.max() < 1.5, name
  # Adam with Nesterov momentum, b1 = 0.9, first step: 0.9 * 0.1 / (1 - 0.81)
  # of the gradient's sign from the momentum, 1 from the gradient itself.
  first = 0.5 * 0.1 * (0.09 / 0.19 + 1)
  for leaf in (updates["norm"]["scale"], updates["top"]["embedding"]):
    np.testing.assert_allclose(np.abs(leaf), first, rtol=1e-4)
