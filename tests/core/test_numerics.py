"""Elementary functions at the edge of their domain, values and derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from divjax.core.numerics import (
    if_needed,
    in_base,
    nan_entries_unless,
    nan_unless,
    safe_log,
    safe_power,
    safe_sqrt,
    xlogy,
)

EDGES = np.array([np.nan, np.inf, 0.0, -0.0, -1.0, -np.inf, 4.0, 1e-30])


def assert_edges(function, expected):
    np.testing.assert_allclose(function(EDGES), expected, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(function)(EDGES), expected, rtol=1e-6)


def test_sqrt():
    nan = np.nan
    assert_edges(lambda x: safe_sqrt(jnp.asarray(x)), [nan, np.inf, 0, 0, nan, nan, 2, 1e-15])


def test_log():
    nan, inf = np.nan, np.inf
    expected = [nan, inf, -inf, -inf, nan, nan, np.log(4), np.log(1e-30)]
    assert_edges(lambda x: safe_log(jnp.asarray(x)), expected)


@pytest.mark.parametrize(
    ("exponent", "expected"),
    [
        (0.5, [np.nan, np.inf, 0, 0, np.nan, np.nan, 2, 1e-15]),
        (2.0, [np.nan, np.inf, 0, 0, np.nan, np.nan, 16, 0]),
        (0.0, [np.nan, 1, 1, 1, np.nan, np.nan, 1, 1]),
        (-0.5, [np.nan, 0, np.inf, np.inf, np.nan, np.nan, 0.5, 1e15]),
        (np.nan, [np.nan] * 8),
    ],
)
def test_power(exponent, expected):
    assert_edges(lambda x: safe_power(x, exponent), expected)


@pytest.mark.parametrize("function", [safe_sqrt, safe_log, lambda x: safe_power(x, 0.7)])
def test_derivative_at_zero(function):
    assert jax.grad(function)(0.0) == 0
    assert jax.jacfwd(jax.grad(function))(0.0) == 0


def test_derivatives_elsewhere():
    np.testing.assert_allclose(jax.grad(safe_sqrt)(4.0), 0.25)
    np.testing.assert_allclose(jax.grad(safe_power)(4.0, 1.5), 3.0)
    np.testing.assert_allclose(jax.grad(safe_power, 1)(4.0, 1.5), 8 * np.log(4), rtol=1e-6)


def test_xlogy():
    x = jnp.array([0.0, 0.0, 2.0, 2.0])
    y = jnp.array([0.0, jnp.nan, 0.0, jnp.e])
    np.testing.assert_allclose(xlogy(x, y), [0, 0, -np.inf, 2])
    assert jnp.isfinite(jax.grad(xlogy, 1)(0.0, 0.0))


def test_if_needed():
    function = jax.vmap(lambda condition, x: if_needed(condition, jnp.square, x))
    result = function(jnp.array([True, False]), jnp.array([3.0, 3.0]))
    assert result.tolist() == [9, 3]


BAD_BASES = [1.0, 0.5, 0.0, -2.0, np.inf, np.nan]


@pytest.mark.parametrize("base", BAD_BASES)
def test_a_base_out_of_range(base):
    """Refused whatever holds it, and NaN where it is traced."""
    for held in (base, np.float32(base), np.array(base), jnp.asarray(base)):
        with pytest.raises(ValueError, match="base must be a number above 1"):
            in_base(jnp.ones(()), held)
    assert jnp.isnan(jax.jit(in_base)(jnp.ones(()), base))


@pytest.mark.parametrize("base", [True, "2", [2, 3], jnp.array([2.0]), 2j, (), np.str_("2")])
def test_a_base_that_is_no_number(base):
    with pytest.raises(ValueError, match="base must be a number above 1"):
        in_base(jnp.ones(()), base)


def test_bases():
    for base in (2, 2.0, np.float32(2), np.array(2), jnp.asarray(2), jnp.float16(2)):
        np.testing.assert_allclose(in_base(jnp.log(8.0), base), 3, rtol=1e-6)
    np.testing.assert_allclose(
        jax.grad(in_base, 1)(jnp.ones(()), 4.0), -0.25 / np.log(4) ** 2, rtol=1e-6
    )


def test_double_precision_in_strict_mode():
    """float64 and float32 have no common dtype there."""
    from divjax import fdiv, inference, ratio

    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        x = jax.random.normal(jax.random.key(0), (60, 2))
        y = jax.random.normal(jax.random.key(1), (50, 2)) + 1
        bounded = inference.Bounded(jnp.tanh(x[:, 0]), -1.0, 1.0)
        found = (
            ratio.bounds.donsker_varadhan(x[:, 0], y[:, 0]),
            fdiv.knn_kl(x, y).value,
            fdiv.histogram.divergence(fdiv.categorical.kl, x, y, smoothing=1.0),
            inference.auc(x[:, 0], y[:, 0]).value,
            inference.sum_of_means_lower_bound(bounded),
        )
    assert all(jnp.isfinite(number).all() for number in found)


def test_bases_that_float32_would_change_are_refused():
    with pytest.raises(ValueError, match="base must not round to"):
        in_base(jnp.ones(()), 1.0000001)


def test_a_derivative_of_no_answer_is_none_but_padding_of_a_batch_has_none_to_give():
    """As of one number that is NaN, and of entries that a caller masks."""
    assert jnp.isnan(jax.grad(lambda x: nan_unless(x < 0, 2 * x))(1.0))
    keep = jnp.array([True, False])
    masked = lambda x: jnp.sum(jnp.where(keep, nan_entries_unless(keep, x * x[0]), 0))
    np.testing.assert_array_equal(jax.grad(masked)(jnp.array([3.0, 5.0])), [6.0, 0.0])
