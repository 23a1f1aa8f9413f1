"""Entropic transport between Gaussians against couplings, Sinkhorn on a grid and its limits."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.stats

from divjax import Normal
from divjax.ot.entropic.options import Sinkhorn
from divjax.ot.entropic.solver import sinkhorn
from divjax.ot.gaussian import (
    gaussian_wasserstein,
)
from divjax.ot.gaussian_entropic import gaussian_entropic
from tests.ot.test_gaussian import normal

D = 3
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
distance = jit(gaussian_wasserstein)


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("epsilon", [0.05, 1.0, 30.0])
@pytest.mark.parametrize("diagonal", [True, False])
def test_entropic_transport_is_the_best_gaussian_coupling(diagonal, epsilon):
    """Over all cross covariances K: tr S + tr T − 2 tr K and −½ log det of the joint, by SciPy."""
    (mean, s), (other, t) = normal(0), normal(1)
    if diagonal:
        s, t = np.diag(np.diag(s)), np.diag(np.diag(t))
    found = gaussian_entropic((mean, s), (other, t), epsilon=epsilon)

    def objective(flat):
        cross = flat.reshape(D, D)
        joint = np.block([[s, cross], [cross.T, t]])
        sign, log_det = np.linalg.slogdet(joint)
        if sign <= 0 or np.linalg.eigvalsh(joint)[0] <= 0:
            return np.inf
        kl = (np.linalg.slogdet(s)[1] + np.linalg.slogdet(t)[1] - log_det) / 2
        cost = np.trace(s + t) - 2 * np.trace(cross) + np.sum((mean - other) ** 2)
        return cost + epsilon * kl

    slope = np.asarray(found.transport.matrix)
    cross = s @ slope
    np.testing.assert_allclose(objective(cross.ravel()), found.value, rtol=1e-9)
    best = scipy.optimize.minimize(objective, cross.ravel(), method="Nelder-Mead")
    assert best.fun >= found.value - 1e-9
    np.testing.assert_allclose(found.covariance, t - slope @ s @ slope, atol=1e-10)
    if diagonal:
        few = gaussian_entropic((mean, np.diag(s)), (other, np.diag(t)), epsilon=epsilon)
        np.testing.assert_allclose(few.value, found.value, rtol=1e-10)
        np.testing.assert_allclose(np.diag(few.transport.matrix), slope, atol=1e-10)


def test_entropic_transport_is_what_sinkhorn_finds_on_a_grid():
    """In one dimension, by the densities at 400 points."""
    z = np.linspace(-8, 8, 400)[:, None]
    weights = lambda mean, sd: scipy.stats.norm.pdf(z[:, 0], mean, sd)
    a, b = (w / w.sum() for w in (weights(0.5, 1.0), weights(-0.7, 1.5)))
    options = dict(epsilon=1.3, solver=Sinkhorn(tolerance=1e-9, max_iterations=5000))
    plan = jax.jit(lambda: sinkhorn(z, z, a, b, **options))()
    one = lambda value: np.array([value])
    p, q = Normal(one(0.5), one(1.0)), Normal(one(-0.7), one(2.25))
    found = gaussian_entropic(p, q, epsilon=1.3)
    np.testing.assert_allclose(found.value, plan.value, rtol=1e-5)
    rows = np.array([[-1.0], [0.2], [2.0]])
    np.testing.assert_allclose(found.transport(rows), plan.transport(rows), atol=1e-4)
    own = [jax.jit(lambda w: sinkhorn(z, z, w, w, **options).value)(w) for w in (a, b)]
    debiased = gaussian_entropic(p, q, epsilon=1.3, debias=True)
    np.testing.assert_allclose(debiased.value, plan.value - sum(own) / 2, rtol=1e-4)


def test_entropic_transport_has_its_limits_and_derivatives():
    (mean, s), (other, t) = normal(0), normal(1)
    run = jax.jit(lambda s, t, e: gaussian_entropic((mean, s), (other, t), epsilon=e).value)
    np.testing.assert_allclose(run(s, t, 1e-9), distance((mean, s), (other, t)), rtol=1e-6)
    independent = np.trace(s + t) + np.sum((mean - other) ** 2)
    np.testing.assert_allclose(run(s, t, 1e9), independent, rtol=1e-6)
    slopes = jax.jit(jax.grad(run, argnums=(0, 1, 2)))(s, t, 0.4)
    rng = np.random.default_rng(0)
    changes = [(c + c.T) / 2 for c in rng.normal(size=(2, D, D))] + [0.3]
    for at, slope in enumerate(slopes):
        moved = lambda h, at=at: run(
            *(v + h * changes[i] if i == at else v for i, v in enumerate((s, t, 0.4)))
        )
        difference = (moved(1e-5) - moved(-1e-5)) / 2e-5
        np.testing.assert_allclose(np.sum(slope * changes[at]), difference, rtol=1e-6)
    # Singular covariances and equal ones, in single precision too.
    for dtype in (jnp.float32, jnp.float64):
        flat = jnp.asarray(np.diag([1.0, 0, 0]), dtype)
        value, slope = jax.value_and_grad(run)(flat, flat, jnp.asarray(0.5, dtype))
        assert jnp.isfinite(value)
        assert jnp.isfinite(slope).all()
    assert jnp.isnan(run(s, t, -1.0))


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("epsilon", [2e19, 1e37])
def test_entropic_transport_at_a_large_epsilon_is_between_independent_draws(epsilon, full):
    """The limit |m_p − m_q|² + tr S + tr T; debiased |m_p − m_q|². ε² is not a float32."""
    matrix = jnp.diag if full else jnp.asarray
    single = lambda *numbers: jnp.array(numbers, jnp.float32)
    p = Normal(single(0, 0), matrix(single(1.0, 3.0)))
    q = Normal(single(1, 1), matrix(single(2.0, 0.5)))
    with jax.enable_x64(False):
        value = gaussian_entropic(p, q, epsilon=epsilon).value
        debiased = gaussian_entropic(p, q, epsilon=epsilon, debias=True).value
    np.testing.assert_allclose(value, 8.5, rtol=1e-5)
    np.testing.assert_allclose(debiased, 2.0, rtol=1e-5)


@pytest.mark.parametrize("unit", [1e20, 1e-20, 1e30])
def test_entropic_transport_does_not_depend_on_the_unit(unit):
    """Value and covariance are squares of lengths, the map and dV/dε are not."""
    with jax.enable_x64(False):

        def entropic(unit, epsilon):
            p = Normal(jnp.zeros(2), jnp.float32(unit) * jnp.array([1.0, 2.0]))
            q = Normal(jnp.zeros(2), jnp.float32(unit) * jnp.array([[2.0, 0.3], [0.3, 1.0]]))
            found = gaussian_entropic(p, q, epsilon=jnp.float32(unit) * epsilon)
            return found.value / unit, (found.covariance / unit, found.transport.matrix)

        slopes = jax.value_and_grad(entropic, 1, has_aux=True)
        (value, parts), slope = slopes(unit, 1.5)
        (expected, expected_parts), expected_slope = slopes(1.0, 1.5)
        np.testing.assert_allclose([value, slope], [expected, expected_slope], rtol=1e-5)
        chex.assert_trees_all_close(parts, expected_parts, rtol=1e-5, atol=1e-6)
