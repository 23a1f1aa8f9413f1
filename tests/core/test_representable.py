"""Numbers that a dtype holds, and those that it does not."""

import jax
import numpy as np
import pytest

from divjax.core.representable import check_held


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([2**40, 1]), "integers within int32; got up to 1099511627776"),
        (np.array([1e300, 1.0]), "within the range of float32"),
        (np.array([1e8, 1e8 + 1]), "must differ in float32 too"),
        (np.array([[0.0, 1e8], [1.0, 1e8 + 1]]), "must differ in float32 too"),
        (np.array([1e-50, 3e-50]), "must differ in float32 too"),
    ],
)
def test_numbers_that_the_dtype_does_not_hold(array, message):
    with jax.enable_x64(False), pytest.raises(ValueError, match=message):
        check_held("array", array)
    with jax.enable_x64(True):
        check_held("array", array)
