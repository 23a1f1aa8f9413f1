"""Floats sorted by integers, beside NumPy's sort."""

import jax.numpy as jnp
import numpy as np

from divjax.core.ordering import ascending_order, order_keys


def test_the_order_is_that_of_a_stable_sort():
    """With ties, zeros of either sign, the smallest numbers, infinities and NaN of either sign."""
    rng = np.random.default_rng(0)
    values = np.round(rng.normal(size=60), 1).astype(np.float32)
    special = [np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0, 1.2e-38, -1.2e-38, 3e38, -3e38]
    values = rng.permutation(np.concatenate([values, np.array(special, np.float32)]))
    table = np.stack([values, values[::-1]])
    # NumPy too sorts NaN behind infinity, and takes zeros of either sign for equal.
    np.testing.assert_array_equal(
        ascending_order(jnp.asarray(table)), np.argsort(table, kind="stable")
    )
    np.testing.assert_array_equal(
        ascending_order(jnp.asarray(table).T, axis=0), np.argsort(table, kind="stable").T
    )


def test_keys_are_equal_where_values_are():
    values = np.array([0.0, -0.0, 1.0, -1.0, 1.2e-38], np.float32)
    keys = np.asarray(order_keys(jnp.asarray(values)))
    np.testing.assert_array_equal(keys[:, None] == keys, values[:, None] == values)
