"""Labels of rows: equal where the user's are, whatever their dtypes."""

import jax
import numpy as np
import pytest

from divjax.core.labels import concrete_labels, pool_labels

LARGE = 2**61 + np.arange(4)


@pytest.mark.parametrize("dtype", [np.uint64, np.int64])
def test_large_integers_of_two_dtypes_are_told_apart(dtype):
    """NumPy would make float64 of both, whose neighbours there are 512 apart."""
    found = pool_labels("groups", (LARGE, (LARGE + 2).astype(dtype)), 4, 4)
    assert np.asarray(found).tolist() == [0, 1, 2, 3, 2, 3, 4, 5]


def test_equal_numbers_of_two_dtypes_are_equal():
    """As ids that became floats, in a frame's column that once held a gap."""
    x, y = np.array([3, 1, 2**53 + 1]), np.array([1.0, 3.0, 2.0**53])
    assert np.asarray(pool_labels("groups", (x, y), 3, 3)).tolist() == [1, 0, 3, 0, 1, 2]


def test_concrete_labels_stay_numbers_of_numpy_under_jit():
    def double(x):
        of_x, of_y = concrete_labels("folds", (["b", "a"], ["c"]), 2, 1)
        assert (of_x.tolist(), of_y.tolist()) == ([1, 0], [2])
        return 2 * x

    jax.jit(double)(1.0)
    with pytest.raises(ValueError, match="folds must be known when a program is compiled"):
        jax.jit(lambda f: concrete_labels("folds", (f, f), 2, 2)[0])(np.arange(2))
    with pytest.raises(ValueError, match="folds must be two vectors"):
        concrete_labels("folds", ([0, 1], [0]), 3, 1)
