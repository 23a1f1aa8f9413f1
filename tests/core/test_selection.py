"""The smallest entries of rows, beside NumPy's sort."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from divjax.core.selection import smallest_in_columns, smallest_in_rows

# With the last two shapes, groups of columns are searched; the number of columns of one is prime.
SHAPES = [(3, 1, 1), (5, 40, 4), (6, 400, 3), (4, 1009, 7)]


@pytest.mark.parametrize(("n", "m", "count"), SHAPES)
def test_smallest_entries_and_their_columns(n, m, count):
    values = np.random.default_rng(0).normal(size=(n, m)).astype(np.float32)
    found, columns = jax.jit(smallest_in_rows, static_argnums=1)(values, count)
    np.testing.assert_array_equal(found, np.sort(values, axis=1)[:, :count])
    np.testing.assert_array_equal(columns, np.argsort(values, axis=1)[:, :count])


@pytest.mark.parametrize("m", [40, 1000])
def test_ties_infinities_and_nan(m):
    rng = np.random.default_rng(1)
    tied = rng.integers(0, 3, m).astype(np.float32)
    # One number in each second place, or two numbers among infinities: NaN must hide none of them.
    gaps = np.where(np.arange(m) % 2, np.nan, rng.normal(size=m)).astype(np.float32)
    rare = np.full(m, np.inf, np.float32)
    rare[[3, m - 1]] = 2.0, -1.0
    values = np.stack([tied, gaps, rare])
    found, columns = smallest_in_rows(jnp.asarray(values), 4)
    # NumPy sorts NaN behind infinity.
    np.testing.assert_array_equal(found, np.sort(values, axis=1)[:, :4])
    np.testing.assert_array_equal(np.take_along_axis(values, np.asarray(columns), axis=1), found)
    assert all(len(set(row)) == 4 for row in columns.tolist())


def test_derivatives_reach_the_entries_alone():
    values = jax.random.normal(jax.random.key(0), (2, 1000))
    derivative = jax.grad(lambda values: jnp.sum(smallest_in_rows(values, 2)[0]))(values)
    expected = np.zeros((2, 1000))
    np.put_along_axis(expected, np.argsort(values, axis=1)[:, :2], 1.0, axis=1)
    np.testing.assert_array_equal(derivative, expected)


def test_ties_in_the_order_of_the_columns():
    values = np.random.default_rng(2).integers(0, 3, (4, 1000)).astype(np.float32)
    _, columns = smallest_in_rows(jnp.asarray(values), 6, ties_in_order=True)
    np.testing.assert_array_equal(columns, np.argsort(values, axis=1, kind="stable")[:, :6])


@pytest.mark.parametrize(("n", "m", "count"), SHAPES)
def test_smallest_entries_of_columns_and_their_rows(n, m, count):
    values = np.random.default_rng(0).exponential(size=(m, n)).astype(np.float32)
    found = jax.jit(smallest_in_columns, static_argnums=1)(jnp.asarray(values), count)
    assert bool(found.certain.all())
    np.testing.assert_array_equal(found.values, np.sort(values, axis=0)[:count])
    np.testing.assert_array_equal(found.rows, np.argsort(values, axis=0)[:count])


@pytest.mark.parametrize("m", [30, 1000])
def test_equal_entries_of_columns(m):
    """Entries that are equal, infinite, or equal but for their last bits."""
    rng = np.random.default_rng(3)
    tied = rng.integers(0, 3, m) / 3
    rare = np.full(m, np.inf)
    rare[[3, m - 1]] = 2.0, 0.0
    close = 1 + rng.permutation(m) * 2.0**-23
    values = np.stack([tied, rare, close], axis=1).astype(np.float32)
    found = smallest_in_columns(jnp.asarray(values), 4)
    known = np.sort(values, axis=0)[:4]
    assert found.certain.tolist() == [True, True, False]
    np.testing.assert_array_equal(found.values[:, :2], known[:, :2])
    np.testing.assert_array_equal(
        np.take_along_axis(values, np.asarray(found.rows), axis=0)[:, :2], known[:, :2]
    )
    assert all(len(set(column)) == 4 for column in found.rows.T.tolist())
