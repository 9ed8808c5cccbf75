"""The mesh and the one table, without any device but one."""

import jax
import numpy as np
import pytest

from gaze_jax import config as config_lib
from gaze_jax.models import mllm
from gaze_jax.parallel import mesh as mesh_lib
from gaze_jax.parallel import rules
from gaze_jax.parallel import shard
from gaze_jax.train import optimizer
from gaze_jax.train import state as state_lib

P = jax.sharding.PartitionSpec
ONE = dict(data=1, fsdp=1, tensor=1, sequence=1)


def abstract(**sizes):
  sizes = ONE | sizes
  return jax.sharding.AbstractMesh(tuple(sizes.values()), tuple(sizes))


@pytest.mark.parametrize(
  "given, devices, found",
  [
    (dict(), 1, (1, 1, 1, 1)),
    (dict(), 8, (8, 1, 1, 1)),
    (dict(fsdp=2, tensor=2), 8, (2, 2, 2, 1)),
    (dict(data=1, fsdp=4, sequence=2), 8, (1, 4, 1, 2)),
  ],
)
def test_axes(given, devices, found):
  sizes = mesh_lib.axis_sizes(config_lib.ParallelConfig(**given), devices)
  assert tuple(sizes.values()) == found
  assert tuple(sizes) == mesh_lib.AXES


@pytest.mark.parametrize(
  "given, devices, says",
  [
    (dict(fsdp=3), 8, "3 does not divide 8"),
    (dict(data=2, fsdp=2), 8, "a mesh of 4 devices, and there are 8"),
    (dict(data=4, tensor=4), 8, "a mesh of 16 devices"),
  ],
)
def test_axes_that_do_not_fit(given, devices, says):
  with pytest.raises(mesh_lib.MeshError, match=says):
    mesh_lib.axis_sizes(config_lib.ParallelConfig(**given), devices)


def test_a_spec_by_hand():
  mesh = abstract(data=2, fsdp=4, tensor=2)
  got = rules.spec(("layers", "embed", "heads", "head_dim"), (3, 8, 4, 5), mesh)
  assert got == P(None, "fsdp", "tensor", None)
  got = rules.spec(("batch", "slots", None), (16, 7, 3), mesh)
  assert got == P(("data", "fsdp"), "sequence", None)


@pytest.mark.parametrize(
  "names, shape, says",
  [
    (("embed",), (8, 4), "has 2 axes, and 1 are named"),
    (("embed", "heads"), (8,), "has 1 axes, and 2 are named"),
    (("embed",), (6,), "'embed' of 6 can't be sharded fsdp 4 ways"),
    (("batch",), (4,), "'batch' of 4 can't be sharded data 2 x fsdp 4 ways"),
    (("width",), (8,), "no rule for the logical axis 'width'"),
  ],
)
def test_a_spec_that_cannot_be(names, shape, says):
  with pytest.raises(mesh_lib.MeshError, match=says):
    rules.spec(names, shape, abstract(data=2, fsdp=4))


def test_every_parameter_has_a_rule(tiny_config):
  """And an array of the state that belongs to none, or an unnamed one, none."""
  config = tiny_config(train__optimizer="muon")
  mesh = mesh_lib.one_device()
  shapes, names = mllm.abstract(config.model)
  places = rules.shardings(shapes, names, mesh)
  query = places["decoder"]["layers"]["query"]["weight"]
  assert query.spec == P(None, "fsdp", "tensor", None)
  state = state_lib.abstract(config, optimizer.make(config.train), mesh)
  moments = [
    leaf.sharding.spec
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state)
    if jax.tree_util.keystr(path).endswith("['query']['weight']")
  ]
  assert moments and set(moments) == {query.spec}
  assert state.step.sharding.spec == P()
  lost = {"decoder": {"new": jax.ShapeDtypeStruct((4,), np.float32)}}
  with pytest.raises(mesh_lib.MeshError, match="decoder.new has no logical"):
    rules.shardings(lost, names, mesh)
  with pytest.raises(
    mesh_lib.MeshError, match="mu.new of shape .1000. .* no p"
  ):
    big = {"mu": {"new": jax.ShapeDtypeStruct((1000,), np.float32)}}
    rules.of_state(places, big, mesh)


@pytest.mark.parametrize(
  "changes, sizes, says",
  [
    (dict(), dict(tensor=4), "kv_heads = 2 can't be sharded tensor 4 x"),
    (dict(), dict(tensor=8), "query_heads = 4 .* most that divides it is 4"),
    (
      dict(model__decoder__vocab_size=2049),
      dict(tensor=2),
      "vocab_size = 2049",
    ),
    (dict(), dict(data=8), "train.batch_size = 4 .* data 8 x fsdp 1"),
    (
      dict(train__accumulation=2),
      dict(data=4),
      "batch_size / train.accumulation = 4 / 2",
    ),
    (dict(), dict(fsdp=64), "model.vision.width = 16 .* is 16"),
    (dict(), dict(sequence=2, tensor=2), "kv_heads = 2 .* sequence 2"),
    (
      dict(model__gaze__granularity="layer"),
      dict(tensor=2),
      "parallel.tensor = 2 spreads .* granularity = 'kv_group'",
    ),
  ],
)
def test_what_does_not_divide_is_named(tiny_config, changes, sizes, says):
  with pytest.raises(mesh_lib.MeshError, match=says):
    rules.check(tiny_config(**changes), ONE | sizes)


def test_what_divides_passes(tiny_config):
  rules.check(tiny_config(), ONE | dict(data=2, fsdp=2, tensor=2))


def test_rows_of_one_process():
  mesh = mesh_lib.one_device()
  held = shard.local_rows(mesh, 6)
  np.testing.assert_array_equal(held, range(6))
  batch = np.arange(12).reshape(6, 2)
  np.testing.assert_array_equal(shard.put_rows(batch, held, 6, mesh), batch)
