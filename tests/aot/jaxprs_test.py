"""FLOPs and activations of traced programs, by hand."""

import jax
import jax.numpy as jnp

from gaze_jax.aot import jaxprs


def loop(x, turns):
  # The cosine is kept, or with remat what the sine is taken of.
  return jax.lax.scan(lambda c, _: (jnp.sin(c), None), x, length=turns)[0]


def kept(function):
  return jaxprs.activations(jax.make_jaxpr(function)(jnp.ones(4)).jaxpr)


def test_what_loops_keep_adds_up():
  loss = lambda x: loop(loop(x, 3), 5).sum()
  assert kept(loss) == 0  # nothing is run backwards
  assert (
    kept(jax.grad(loss)) == kept(jax.jit(jax.grad(loss))) == 4 * 4 * (3 + 5)
  )


def test_of_micro_batches_one_counts():
  step = jax.grad(lambda x: loop(x, 3).sum())
  parts = lambda x: jax.lax.scan(lambda c, _: (c + step(x), None), x, length=7)
  assert kept(parts) == 4 * 4 * 3


def test_of_branches_the_largest_counts():
  step = lambda turns: jax.grad(lambda x: loop(x, turns).sum())
  either = lambda x: jax.lax.cond(x[0] > 0, step(3), step(6), x)
  assert kept(either) == 4 * 4 * 6


def test_what_came_in_is_not_kept():
  w = jnp.ones((3, 4))
  run = lambda x: jax.lax.scan(lambda c, w: (c * w, None), x, w)[0].sum()
  assert kept(jax.grad(run)) == 0


def test_flops_count_each_turn_of_a_loop():
  """A product of [2, 3] by [3, 4] is 48; the dearest branch counts."""
  w, x = jnp.ones((3, 4)), jnp.ones((2, 3))
  count = lambda function: jaxprs.flops(jax.make_jaxpr(function)(x).jaxpr)
  assert count(lambda x: x @ w) == 48
  turn = lambda c, _: (c @ (w @ w.T), None)  # 72 for w @ w.T, and 36
  assert count(lambda x: jax.lax.scan(turn, x, length=5)[0]) == 5 * (72 + 36)
  either = lambda x: jax.lax.cond(
    x[0, 0] > 0, lambda x: x @ w, lambda x: x @ w + x @ w, x
  )
  assert count(either) == 2 * 48
