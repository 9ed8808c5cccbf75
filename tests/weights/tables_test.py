"""Tables: patterns both ways, lazily read parts, strict binding."""

import types

import numpy as np
import pytest

from gaze_jax.weights import errors
from gaze_jax.weights import tables

NAMING = {"text": "model", "head": "lm_head", "text.norm": "other"}


def leaf(*shape):
  return types.SimpleNamespace(shape=shape)


def entry(pattern, shape, *, stacked=False, sizes=()):
  name = "text.{i}.w" if stacked else "text.w"
  rule = tables.Rule("w", name, pattern, sizes)
  return tables.bind([rule], "decoder", {"w": leaf(*shape)}, NAMING)[0]


def test_heads_by_hand():
  one = entry("(h d) e -> e h d", (2, 3, 2))  # e = 2, h = 3, d = 2
  assert one.tensor_shape == (6, 2)
  assert one.tensors == ("model.w",)
  torch = np.arange(12).reshape(6, 2)  # row h * 2 + d
  ours = one.read((slice(None),) * 3, lambda _, i: torch[i])
  assert ours[0].tolist() == [[0, 2], [4, 6], [8, 10]]
  assert ours[1].tolist() == [[1, 3], [5, 7], [9, 11]]
  back = one.back().read((slice(None),) * 2, lambda _, i: ours[i])
  assert back.tolist() == torch.tolist()


PATTERNS = [
  ("", (4, 6), ()),
  ("o i -> i o", (4, 6), ()),
  ("(h d) e -> e h d", (6, 4, 2), ()),
  ("(h d) -> h d", (4, 2), ()),
  ("e (h d) -> h d e", (4, 2, 6), ()),
  ("1 1 f -> f", (6,), ()),
  ("1 n f -> n f", (4, 6), ()),
  ("f c y x -> (y x c) f", (12, 5), (("c", 3), ("y", 2), ("x", 2))),
]


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("pattern, shape, sizes", PATTERNS)
def test_every_part_is_that_of_the_whole(pattern, shape, sizes, stacked):
  layers = 3 if stacked else 1
  full = (layers, *shape) if stacked else shape
  one = entry(pattern, full, stacked=stacked, sizes=sizes)
  rng = np.random.default_rng(0)
  files = {s: rng.normal(size=one.tensor_shape) for s in one.tensors}
  asked = []

  def read(name, index):
    part = files[name][index]
    asked.append(part.size)
    return part

  whole = one.read((slice(None),) * len(full), read)
  assert whole.shape == full
  layers_of = list(whole) if stacked else [whole]
  for ours, name in zip(layers_of, one.tensors, strict=True):
    back = one.back()
    assert back.shape == one.tensor_shape
    rows = slice(back.shape[0] // 2, back.shape[0])
    for index in (slice(None), rows):
      full_index = (index, *(slice(None),) * (len(back.shape) - 1))
      again = back.read(full_index, lambda _, i, ours=ours: ours[i])
      np.testing.assert_array_equal(again, files[name][index])
  for axis, size in enumerate(full):
    index = [slice(None)] * len(full)
    index[axis] = slice(size // 2, size)
    part = one.read(tuple(index), read)
    np.testing.assert_array_equal(part, whole[tuple(index)])


@pytest.mark.parametrize("axis, wanted", [(0, 24), (1, 24), (2, 48)])
def test_a_part_reads_no_more_than_it_needs(axis, wanted):
  one = entry("(h d) e -> e h d", (6, 4, 2))
  torch = np.arange(48).reshape(8, 6)
  index = [slice(0, n) for n in (6, 4, 2)]
  index[axis] = slice(0, (6, 4, 2)[axis] // 2)
  asked = []

  def read(_, i):
    asked.append(torch[i].size)
    return torch[i]

  one.read(tuple(index), read)
  assert asked == [wanted]  # within a head, d is read whole


def test_the_longest_token_is_replaced():
  assert tables.in_naming("text.layers.{i}.a", NAMING) == "model.layers.{i}.a"
  assert tables.in_naming("text.norm.weight", NAMING) == "other.weight"
  assert tables.in_naming("head.weight", NAMING) == "lm_head.weight"
  assert tables.in_naming("text.a", {"text": ""}) == "a"
  with pytest.raises(errors.ConversionError, match="vision"):
    tables.in_naming("vision.a", NAMING)


@pytest.mark.parametrize(
  "rules, says",
  [
    ([("w", "text.w")], "no rule fills b/c"),
    ([("w", "text.w"), ("w", "text.v"), ("b/c", "text.b")], "filled twice"),
    ([("w", "text.w"), ("b/c", "text.b"), ("z", "text.z")], "no parameter"),
  ],
)
def test_a_table_must_cover_the_model_exactly(rules, says):
  shapes = {"w": leaf(2), "b": {"c": leaf(3)}}
  with pytest.raises(errors.ConversionError, match=says):
    tables.bind([tables.Rule(*r) for r in rules], "decoder", shapes, NAMING)
