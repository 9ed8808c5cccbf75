"""Descriptors and pages, by hand."""

import jax.numpy as jnp
import numpy as np

from gaze_jax import config as config_lib
from gaze_jax.ops import regions

# Slots: text, regions 0 1 0 1, text.
REGION = np.array([[-1, 0, 1, 0, 1, -1]])
SLOTS = np.array([[[1, 3, -1], [2, 4, -1], [-1, -1, -1]]])
KEYS = np.arange(12, dtype=np.float32).reshape(1, 6, 1, 2)


def test_descriptor_is_the_mean_key():
  members = regions.one_hot(REGION, 3)
  got = regions.mean_keys(KEYS, members)
  np.testing.assert_allclose(got[0, 0], [[4, 5], [6, 7], [0, 0]])


def test_descriptors_are_float32_sums_of_bfloat16_keys():
  keys = jnp.ones((1, 300, 1, 1), jnp.bfloat16).at[0, 0].set(2.0)
  members = regions.one_hot(np.zeros((1, 300), int), 1)
  got = regions.mean_keys(keys, members)
  assert got.dtype == jnp.float32
  np.testing.assert_allclose(got.ravel(), [301 / 300], rtol=1e-6)


def test_pages_copy_each_token_to_its_place():
  got = regions.pages(KEYS, SLOTS)
  np.testing.assert_array_equal(got[0, 0, 0], [[2, 3], [6, 7], [0, 0]])
  np.testing.assert_array_equal(got[0, 0, 1], [[4, 5], [8, 9], [0, 0]])
  np.testing.assert_array_equal(got[0, 0, 2], 0)


def test_ends_and_segments():
  np.testing.assert_array_equal(regions.ends(SLOTS), [[4, 5, 0]])
  segment = np.array([[0, 3, 3, 3, 3, 0]])
  got = regions.of_first_token(segment, SLOTS)
  np.testing.assert_array_equal(got, [[3, 3, -1]])


def described(**config):
  got = regions.descriptors(
    KEYS, REGION, SLOTS, config_lib.GazeConfig(**config)
  )
  assert got.dtype == np.float32
  return np.asarray(got)[0, 0]


def test_descriptors_of_each_kind():
  np.testing.assert_allclose(described(), [[4, 5], [6, 7], [0, 0]])
  np.testing.assert_allclose(
    described(descriptor="minmax"),
    [[2, 3], [4, 5], [0, 0], [6, 7], [8, 9], [0, 0]],
  )
  np.testing.assert_allclose(
    described(descriptor="submean", sub_cells=2),
    [[2, 3], [4, 5], [0, 0], [6, 7], [8, 9], [0, 0]],
  )


def test_more_sub_cells_than_tokens_share_a_token():
  got = described(descriptor="submean", sub_cells=3).reshape(3, 3, 2)
  np.testing.assert_allclose(got[:, 0], [[2, 3], [2, 3], [6, 7]])


def test_many_regions_have_the_descriptors_of_few(monkeypatch):
  few = described()
  monkeypatch.setattr(regions, "FEW", 2)
  np.testing.assert_allclose(described(), few)
