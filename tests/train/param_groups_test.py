"""Parameters by path: what trains, how fast, and what is refused."""

import jax
import numpy as np
import optax
import pytest

import compare
from gaze_jax import config as config_lib
from gaze_jax.train import optimizer
from gaze_jax.train import param_groups

PARAMS = dict(
  projector=dict(
    context=np.ones((2, 4), np.float32),
    linear_1=dict(
      kernel=np.ones((3, 4), np.float32), bias=np.ones(4, np.float32)
    ),
  ),
  decoder=dict(layers=dict(query=dict(weight=np.ones((2, 4, 1, 4), "f")))),
)
FIRST = (
  (r"projector\.context", 1.0),
  (r"projector\.linear_1\..*", 0.25),
  (r"decoder\..*", 0.0),
)


def train(groups_, **more):
  return config_lib.TrainConfig(
    groups=groups_, warmup_steps=0, steps=9, weight_decay=0.1, **more
  )


def test_split_and_merge():
  trains, held = param_groups.split(train(FIRST), PARAMS)
  assert param_groups.flat(trains).keys() == {
    *("projector.context", "projector.linear_1.kernel"),
    "projector.linear_1.bias",
  }
  assert param_groups.flat(held).keys() == {"decoder.layers.query.weight"}
  same = lambda a, b: np.testing.assert_array_equal(a, b)
  jax.tree.map(same, param_groups.merge(held, trains), PARAMS)
  everything, nothing = param_groups.split(train(()), PARAMS)
  jax.tree.map(same, everything, PARAMS)
  assert nothing == {}


@pytest.mark.parametrize(
  "changed, says",
  [
    (FIRST[:2], ["none matches decoder.layers.query.weight"]),
    (
      (*FIRST, (".*context", 1.0)),
      [r"'projector\\.context' and '.*context' match projector.context"],
    ),
    ((*FIRST, ("vision.*", 1.0)), ["'vision.*' matches nothing"]),
    # The whole path is matched, or not at all.
    (
      (("projector", 1.0), *FIRST[2:]),
      ["'projector' matches nothing", "none matches projector.context, p"],
    ),
    (((".*", 0.0),), ["nothing trains"]),
  ],
  ids=["missing", "twice", "nothing there", "part of a path", "all frozen"],
)
def test_every_parameter_is_in_one_group(changed, says):
  with pytest.raises(param_groups.GroupError) as error:
    param_groups.split(train(changed), PARAMS)
  assert "\n" not in str(error.value)
  for words in says:
    assert words in str(error.value)


@pytest.mark.few(1)
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_share_is_a_learning_rate_of_its_own(name):
  """Of an update's every part, decay too; and what is frozen has no state."""
  rng = np.random.default_rng(0)
  draw = lambda x: rng.normal(size=x.shape).astype(np.float32)
  trains, _ = param_groups.split(train(FIRST), PARAMS)
  grads = jax.tree.map(draw, trains)

  def first_update(config):
    chain = optimizer.make(config)
    state = chain.init(trains)
    return chain.update(grads, state, trains)

  whole, _ = first_update(train((), optimizer=name))
  got, state = first_update(train(FIRST, optimizer=name))
  for path, x in param_groups.flat(got).items():
    share = 0.25 if "linear_1" in path else 1.0
    compare.close(x, share * param_groups.flat(whole)[path])
  shapes = {np.shape(x) for x in jax.tree.leaves(state)}
  assert (2, 4) in shapes and (2, 4, 1, 4) not in shapes
  # A quarter of the rate from the start is the same.
  slow, _ = first_update(train((), optimizer=name, learning_rate=0.25e-3))
  linear = lambda update: update["projector"]["linear_1"]["kernel"]
  compare.close(linear(got), linear(slow))
  assert optax.tree.norm(got) > 0
