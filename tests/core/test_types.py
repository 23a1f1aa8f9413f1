"""Statuses, and results that print short."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from divjax.core.types import Status, check_status, normal_estimate, status_of


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


def test_estimate_prints_in_a_line():
    estimate = normal_estimate(jnp.float32(0.5), jnp.float32(0.1), 100)
    assert float(estimate) == 0.5
    assert str(estimate) == "Estimate(0.5 ± 0.1, interval [0.304, 0.696])"
    many = jax.vmap(lambda v: normal_estimate(v, v, 1))(jnp.ones(1000))
    assert len(repr(many)) < 250
