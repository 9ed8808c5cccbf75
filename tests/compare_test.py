import jax.numpy as jnp
import numpy as np
import pytest

import compare


@pytest.mark.parametrize(
  "got, want",
  [
    ([5.00004, 0.00004], [5, 0]),  # 0.8 of the bar, near 0 as well
    ([-5.00004, 1], [-5, 1]),
    ([1, np.nan, np.inf, -np.inf], [1, np.nan, np.inf, -np.inf]),
    ([0, 0], [0, 0]),
    ([], []),
    (3, 3),
  ],
)
def test_what_is_close(got, want):
  compare.close(np.float64(got), np.float64(want))


@pytest.mark.parametrize(
  "got, want, says",
  [
    ([5.00006, 1], [5, 1], r"the array: 1 of 2 .* 5; most at \(0,\): 5.00006"),
    ([5, 1.00006], [5, 1], r"\(1,\): 1.00006, not 1 "),
    ([0, 1e-9], [0, 0], "largest value, 0; most at"),
    ([1, np.nan], [1, 2], "nan, not 2"),
    ([np.nan, 1], [np.nan, 2], "1, not 2"),
    ([1, 2], [1, np.nan], "2, not nan"),
    ([1, np.inf], [1, 2], "inf, not 2"),
    ([1, np.inf], [1, -np.inf], "inf, not -inf"),
    ([1, 1e9], [1, np.inf], "not inf"),
    ([1, np.nan], [1, np.inf], "nan, not inf"),
    ([1.1, np.inf], [1, np.inf], "1 of 2 .* 1.1, not 1"),
    ([1, 1], [[1, 1]], r"\(2,\) is not \(1, 2\)"),
    (1, [1, 1], r"\(\) is not \(2,\)"),
  ],
)
def test_what_is_not(got, want, says):
  with pytest.raises(AssertionError, match=says):
    compare.close(np.float64(got), np.float64(want))


def test_each_array_of_a_tree_has_its_own_bar():
  big, small = np.float32([1000.0]), np.float32([1e-3])
  want = {"big": big, "small": small, "none": None}
  compare.close(want | {"big": big * (1 + 5e-6)}, want)
  with pytest.raises(AssertionError, match=r"\['small'\]: .* 0.001;"):
    compare.close(want | {"small": small + 1e-6}, want)


def test_all_that_is_off_is_named():
  want = {"a": np.ones(2), "b": np.ones(1), "c": np.ones(1)}
  with pytest.raises(AssertionError, match=r"\['a'\]: 2 of 2(.|\n)*\['c'\]: 1"):
    compare.close({"a": np.zeros(2), "b": np.ones(1), "c": np.zeros(1)}, want)


def test_a_bias_of_keys_is_held_to_the_size_of_the_others():
  bias = lambda key: {
    "layer": {
      "query": {"bias": np.ones((2, 1))},
      "key": {"bias": np.full((1, 1), key), "weight": np.ones(1)},
      "value": {"bias": np.ones((1, 1))},
    },
    "up": {"bias": np.ones(1)},
  }
  got, want = bias(1e-7), bias(-1e-8)
  with pytest.raises(AssertionError, match="'key'"):
    compare.close(got, want)
  compare.close(compare.joined(got), compare.joined(want))
  with pytest.raises(AssertionError, match=r"\['bias'\]: 1 of 4"):
    compare.close(compare.joined(bias(1e-3)), compare.joined(want))
  assert "bias" in got["layer"]["key"]  # as it was


def test_trees_have_the_same_arrays():
  with pytest.raises(AssertionError, match="is not PyTreeDef"):
    compare.close({"a": np.ones(2)}, {"a": np.ones(2), "b": np.ones(2)})
  with pytest.raises(AssertionError, match="is not PyTreeDef"):
    compare.close([np.ones(2)], np.ones(2))


def test_bfloat16_against_float32():
  exact = np.linspace(1, 2, 100, dtype=np.float32)
  rounded = jnp.asarray(exact, jnp.bfloat16)
  compare.close(rounded, exact, tolerance=2**-8)
  with pytest.raises(AssertionError):
    compare.close(rounded, exact)


def test_a_choice_that_hangs_on_the_last_bit_is_none():
  compare.decided([[-5, 1, 2], [3, 2.999, 0]])
  with pytest.raises(AssertionError, match="leads by 0.0004, less than 0.0005"):
    compare.decided([[-5, 1, 2], [3, 2.9996, 0]])
