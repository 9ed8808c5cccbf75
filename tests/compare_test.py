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
