"""What stands around cuDNN's attention, with XLA in its place, and the choice.

Without a GPU JAX can't even trace cuDNN: what it computes is compared by
`launch/device_check.py`, on one.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging

import compare
from gaze_jax import config as config_lib
from gaze_jax import types
from gaze_jax.kernels import attend_visual
from gaze_jax.kernels import attend_visual_gpu
from gaze_jax.kernels import backends
from gaze_jax.kernels import target
from gaze_jax.layout import row as row_lib
from gaze_jax.ops import gaze
from gaze_jax.ops import routing
from gaze_jax.ops.parallel import inputs as inputs_lib

FIRST = (row_lib.Text([1, 2]), row_lib.Unit(2, 3), row_lib.Text([3, 4]))
BRANCHED = (
  row_lib.Unit(3, 3),
  row_lib.Text([1], 1),
  row_lib.Text([2, 3], 2),
)


def _layout(shape):
  """Three segments beside one, and beside none."""
  lay_out = lambda *parts: row_lib.lay_out(parts, shape)
  rows = [
    row_lib.lay_out_together([FIRST, BRANCHED, FIRST], shape),
    lay_out(*BRANCHED),
    lay_out(),
  ]
  return row_lib.make_batch(rows, np.zeros(())).layout


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_value_and_gradient(heads, small_shape, dtype):
  layout = _layout(small_shape)
  assert layout.segment.max(axis=1).tolist() == [2, 0, -1]
  trunk = (layout.role != types.Role.PAD) & (layout.branch == 0)
  b, s = layout.role.shape
  h, weight = heads(b, s), heads(b, s, seed=1).q * trunk[..., None, None]

  @functools.partial(jax.jit, static_argnums=0)
  @functools.partial(jax.value_and_grad, argnums=1, has_aux=True)
  def run(attend, qkv):
    out = attend(*qkv, layout)
    return (out * weight).sum(), out.astype(jnp.float32)

  interpreted = functools.partial(
    attend_visual_gpu.attend_visual, interpret=True
  )
  qkv = [jnp.asarray(x, dtype) for x in (h.q, h.k, h.v)]
  (_, got), gradient = run(interpreted, qkv)
  exact = [x.astype(jnp.float32) for x in qkv]
  (_, want), wanted = run(attend_visual.attend_visual, exact)
  tolerance = 1e-5 if dtype == "float32" else 2**-6
  compare.close(got[trunk], want[trunk], tolerance)
  compare.close(gradient, wanted, tolerance)
  assert not np.asarray(got)[~trunk].any()


@pytest.fixture
def logged(monkeypatch):
  """(level, message) of what is logged, as if nothing had been logged yet."""
  out = []
  monkeypatch.setattr(logging, "log", lambda *x: out.append(x))
  monkeypatch.setattr(backends, "_logged", set())
  return out


def _taken(dtype="bfloat16", dim=64, platform="gpu", **options):
  """The form that serves whole rows of this kind."""
  taken = []

  def parallel(q, k, layout, region_slots):
    config = config_lib.GazeConfig(**options)
    plan = routing.plan(layout, region_slots, config)
    budget = jnp.ones(1, jnp.int32)
    inputs = inputs_lib.Inputs(q, k, k, None, budget, plan, config, True, None)
    taken.append(gaze._rows_form(inputs))
    return q

  of = jax.ShapeDtypeStruct
  ints = of((1, 64), jnp.int32)
  with target.tracing_for(platform):
    jax.eval_shape(
      parallel,
      of((1, 64, 4, dim), dtype),
      of((1, 64, 2, dim), dtype),
      types.Layout(*[ints] * 6),
      of((1, 2, 9), jnp.int32),
    )
  return taken[0]


def test_what_a_gpu_takes(logged):
  for _ in range(2):
    assert _taken() is attend_visual_gpu
  assert _taken(dtype="float16") is attend_visual_gpu
  assert _taken(gradient="kl", dim=128) is attend_visual_gpu
  message = "model.gaze.implementation: auto takes 'cudnn'"
  assert [(level, text[: len(message)]) for level, text in logged] == [
    (logging.INFO, message)
  ]
  assert "segments of a row in turns" in logged[0][1]


@pytest.mark.parametrize(
  "options, says",
  [
    (dict(dtype="float32"), "dtype float32 is neither bfloat16 nor float16"),
    (dict(dim=136), "head dim 136 is no multiple of 8 up to 128"),
    (dict(dim=36), "head dim 36 is no multiple of 8"),
  ],
)
def test_what_it_takes_otherwise_is_a_warning(logged, options, says):
  assert _taken(**options) is None
  ((level, text),) = logged
  start = "model.gaze.implementation: auto takes 'chunked': "
  assert level == logging.WARNING and text.startswith(start + says)
  with pytest.raises(backends.ImplementationError, match=says):
    _taken(**options, implementation="cudnn")


def test_who_does_not_take_it(logged):
  assert _taken(platform="cpu") is None
  assert _taken(visual_attention="own_unit") is None
  assert _taken(platform="tpu").NAME == "pallas"
  with pytest.raises(backends.ImplementationError, match="is for 'gpu'"):
    _taken(platform="cpu", implementation="cudnn")
  assert all(level == logging.INFO for level, _ in logged)


def test_without_cudnn_it_says_so():
  assert "cuDNN" in attend_visual_gpu._refused(64, jnp.dtype("bfloat16"))
