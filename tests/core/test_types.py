"""Statuses, and results that print short."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from divjax.core.types import Status, check_status, normal_estimate, normal_interval, status_of


def test_gravest_status():
    assert int(status_of(converged=True)) == Status.CONVERGED
    assert int(status_of(converged=False)) == Status.MAX_ITERATIONS
    one = status_of(converged=False, resolved=False, finite=False, valid=False)
    assert int(one) == Status.INVALID_INPUT
    many = jax.vmap(lambda c: status_of(converged=c))(jnp.array([True, False]))
    assert many.tolist() == [Status.CONVERGED, Status.MAX_ITERATIONS]


def test_check():
    check_status(status_of(converged=True))
    jax.jit(lambda c: check_status(status_of(converged=c)))(False)
    with pytest.raises(RuntimeError, match="NOT_FINITE"):
        check_status(np.array([0, 3]))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_intervals_in_half_precision(dtype):
    """Of the level that half precision holds, SciPy's quantile."""
    value, error, level = dtype(1), dtype(0.5), dtype(0.9)
    quantile = scipy.stats.norm.ppf((1 + float(level)) / 2)
    for confidence in (level, float(level)):
        found = normal_interval(value, error, confidence)
        assert found.lower.dtype == found.upper.dtype == dtype
        expected = 1 - quantile / 2, 1 + quantile / 2
        np.testing.assert_allclose(np.float64(found), expected, rtol=4 * jnp.finfo(dtype).eps)
    assert jnp.isnan(normal_interval(value, error, dtype(-1)).lower)


def test_estimate_prints_in_a_line():
    estimate = normal_estimate(jnp.float32(0.5), jnp.float32(0.1), 100)
    assert float(estimate) == 0.5
    assert str(estimate) == "Estimate(0.5 ± 0.1, interval [0.304, 0.696])"
    many = jax.vmap(lambda v: normal_estimate(v, v, 1))(jnp.ones(1000))
    assert len(repr(many)) < 250
