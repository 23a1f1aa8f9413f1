"""Means and scales against NumPy, and at the edges of what floats hold."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from divjax.core.standardize import mean_and_scale


@pytest.mark.parametrize(("unit", "offset"), [(1.0, 0.0), (1e-30, 0.0), (1e30, 0.0), (1.0, 3000.0)])
def test_weighted_moments_are_numpys(unit, offset):
    rng = np.random.default_rng(0)
    x = np.float32(rng.normal(size=(50, 3)) * unit + offset)
    weights = np.float32(rng.uniform(size=50) * (np.arange(50) % 3 > 0))
    filled = np.where(weights[:, None] > 0, x, np.nan)
    mean, scale = jax.jit(mean_and_scale)(filled, weights)
    used = x.astype(np.float64)[weights > 0]
    expected = np.average(used, axis=0, weights=weights[weights > 0])
    variance = np.average((used - expected) ** 2, axis=0, weights=weights[weights > 0])
    np.testing.assert_allclose(mean, expected, rtol=1e-5, atol=1e-5 * unit)
    np.testing.assert_allclose(scale, np.sqrt(variance), rtol=1e-4)


@pytest.mark.parametrize("value", [0.1, -7.0, 1e-38, 1e37])
def test_a_constant_is_exactly_its_mean(value):
    x = jnp.full((997, 1), value)
    mean, scale = jax.jit(mean_and_scale)(x, jnp.full(997, 1 / 997))
    assert mean[0] == x[0, 0]
    assert scale[0] == 1


def test_what_is_not_a_number_shows():
    for bad in (jnp.nan, jnp.inf):
        mean, _ = mean_and_scale(jnp.array([[1.0], [bad]]), jnp.ones(2))
        assert not jnp.isfinite(mean[0])
