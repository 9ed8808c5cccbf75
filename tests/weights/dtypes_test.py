"""In which dtype weights are held, by hand."""

import logging
import pathlib

import ml_dtypes
import numpy as np
import pytest

from gaze_jax import config as config_lib
from gaze_jax import errors
from gaze_jax.weights import dtypes
from gaze_jax.weights import store

F32, F16 = np.dtype(np.float32), np.dtype(np.float16)
BF16 = np.dtype(ml_dtypes.bfloat16)


@pytest.mark.parametrize(
  "stored, asked, matrix",
  [
    (F32, None, F32),
    (BF16, None, BF16),
    (F16, None, F32),  # exact
    (F32, "bfloat16", BF16),
    (BF16, "float32", F32),
    (F16, "bfloat16", BF16),
  ],
)
def test_matrices_are_held_so_and_the_rest_in_float32(stored, asked, matrix):
  for path in (
    ("decoder", "embedding"),
    ("decoder", "layers", "query", "weight"),
    ("decoder", "head", "weight"),
    ("projector", "linear_1", "kernel"),
    ("vision", "blocks", "mlp", "up", "kernel"),
  ):
    assert dtypes.held(path, stored, asked) == matrix
  for path in (
    ("decoder", "final_norm", "scale"),
    ("decoder", "layers", "query", "bias"),
    ("projector", "context"),
    ("vision", "positions"),
  ):
    assert dtypes.held(path, stored, asked) == F32


def config(decoder):
  return config_lib.from_config_dict(
    dict(model=dict(decoder=dict(dtype=decoder)))
  )


@pytest.mark.parametrize(
  "says, decoder, vision, asked, computes",
  [
    ("float32", F32, F32, None, ("float32", "float32")),
    ("float32", BF16, BF16, None, ("bfloat16", "bfloat16")),
    ("float32", BF16, F32, None, ("bfloat16", "float32")),
    # Trained in bfloat16 with float32 masters: it answers so.
    ("bfloat16", F32, F32, None, ("bfloat16", "float32")),
    ("bfloat16", F32, F32, "float32", ("float32", "float32")),
    ("float32", F32, F32, "bfloat16", ("bfloat16", "bfloat16")),
  ],
)
def test_the_computation_follows(says, decoder, vision, asked, computes):
  found = {
    ("decoder", "embedding"): decoder,
    ("decoder", "final_norm", "scale"): F32,
    ("vision", "patch", "kernel"): vision,
    ("vision", "positions"): F32,
  }
  found = {path: dtypes.held(path, x, asked) for path, x in found.items()}
  model = dtypes.computed(config(says), found, asked).model
  assert (model.decoder.dtype, model.vision.dtype) == computes


def test_one_wide_matrix_is_no_narrow_part():
  found = {("decoder", "embedding"): F32, ("decoder", "head", "weight"): BF16}
  model = dtypes.computed(config("float32"), found).model
  assert model.decoder.dtype == "float32"


def test_what_no_model_is_held_in_is_refused():
  with pytest.raises(errors.GazeError, match="'float16': give 'float32' or"):
    dtypes.check("float16")


def test_float16_is_logged_where_it_grows(caplog):
  leaf = store.Leaf(("decoder", "embedding"), (2,), F16, lambda i: None)
  with caplog.at_level(logging.WARNING, "absl"):
    dtypes.log_widened(pathlib.Path("x"), [leaf], "bfloat16")
    assert not caplog.records
    dtypes.log_widened(pathlib.Path("x"), [leaf, leaf], None)
  assert [r.getMessage() for r in caplog.records] == [
    "x: float16 weights are held as float32; dtype = 'bfloat16' halves them"
  ]
