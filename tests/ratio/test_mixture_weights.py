"""The weights of KLIEP's mixture: sequential quadratic programming, any data, derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.spatial.distance import cdist
from scipy.special import logsumexp

from divjax.ratio.heads.kliep import maximize_mixture

solve_mixtures = jax.jit(maximize_mixture, static_argnums=2)


def objective(weights, likelihoods, masses):
    return masses @ np.log(likelihoods @ weights)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_mixture_weights_are_those_of_sequential_quadratic_programming(dtype):
    rng = np.random.default_rng(3)
    likelihoods, masses = rng.gamma(0.5, size=(30, 8)), rng.dirichlet(np.ones(30))
    reference = minimize(
        lambda w: -objective(w, likelihoods, masses),
        np.full(8, 1 / 8),
        jac=lambda w: -likelihoods.T @ (masses / (likelihoods @ w)),
        bounds=[(0, 1)] * 8,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    with jax.enable_x64(True):
        weights, gap = maximize_mixture(
            jnp.asarray(likelihoods, dtype), jnp.asarray(masses, dtype), 30
        )
    assert weights.dtype == gap.dtype == dtype
    gap = float(gap)
    reached = objective(np.asarray(weights, np.float64), likelihoods, masses)
    precision = 1e-5 if dtype == jnp.float32 else 1e-8
    assert abs(reached + reference.fun) < precision
    assert -reference.fun - reached <= gap + 1e-7
    assert gap < precision
    # Karush, Kuhn, Tucker: the gradient is one on the support and no larger off it.
    gradient = likelihoods.T @ (masses / (likelihoods @ np.asarray(weights, np.float64)))
    assert (gradient <= 1 + precision).all()
    used = np.asarray(weights) > 1e-2
    assert 0 < used.sum() < 8
    np.testing.assert_allclose(gradient[used], 1, atol=300 * precision)


@given(seed=st.integers(0, 2**31), spread=st.floats(0, 40), sparse=st.floats(0, 0.9), n=st.just(40))
@settings(max_examples=60, deadline=None)
def test_any_mixture_is_solved_in_single_precision(seed, spread, sparse, n):
    rng = np.random.default_rng(seed)
    logs = rng.normal(size=(n, 12)) * spread
    logs[rng.uniform(size=logs.shape) < sparse] = -np.inf
    logs[:, 0] = np.maximum(logs[:, 0], -spread)
    likelihoods = np.exp(logs - logs.max(axis=1, keepdims=True)).astype(np.float32)
    masses = (rng.dirichlet(np.ones(n)) * (rng.uniform(size=n) < 0.8)).astype(np.float32)
    weights, gap = solve_mixtures(likelihoods, masses / masses.sum(), 30)
    assert (weights >= 0).all()
    np.testing.assert_allclose(weights.sum(), 1, rtol=1e-5)
    assert gap < 1e-4


@pytest.mark.parametrize("sigma", [0.25, 0.65, 1.3])
def test_mixtures_of_many_overlapping_kernels_are_solved(sigma):
    rng = np.random.default_rng(0)
    for shift in (0.5, 2.0):
        p, q = rng.normal(size=(300, 1)), rng.normal(size=(300, 1)) + shift
        logs = -(cdist(p, p[:60]) ** 2) / (2 * sigma**2)
        logs -= logsumexp(-(cdist(q, p[:60]) ** 2) / (2 * sigma**2), axis=0)
        likelihoods = np.exp(logs - logs.max(axis=1, keepdims=True)).astype(np.float32)
        _, gap = solve_mixtures(likelihoods, np.full(300, 1 / 300, np.float32), 30)
        assert gap < 1e-4


def test_a_mass_of_the_mixture_is_as_good_as_repetition():
    rng = np.random.default_rng(4)
    likelihoods, counts = rng.gamma(0.5, size=(10, 4)), rng.integers(0, 4, size=10)
    repeated = np.repeat(likelihoods, counts, axis=0)
    with jax.enable_x64(True):
        one, _ = solve_mixtures(jnp.asarray(likelihoods), jnp.asarray(counts / counts.sum()), 30)
        two, _ = solve_mixtures(
            jnp.asarray(repeated), jnp.full(len(repeated), 1 / len(repeated)), 30
        )
    np.testing.assert_allclose(one, two, atol=1e-7)


def test_the_derivative_of_mixture_weights_equals_differences():
    rng = np.random.default_rng(5)
    with jax.enable_x64(True):
        likelihoods, masses = jnp.asarray(rng.gamma(0.5, size=(30, 8))), rng.dirichlet(np.ones(30))
        cost, direction = rng.normal(size=8), jnp.asarray(rng.normal(size=(30, 8)))
        value = jax.jit(lambda a, m: cost @ maximize_mixture(a, m)[0])
        masses, change = jnp.asarray(masses), jnp.asarray(rng.dirichlet(np.ones(30)))
        by_entry, by_mass = jax.jit(jax.grad(value, (0, 1)))(likelihoods, masses)
        step = 1e-5
        ahead, behind = (
            value(likelihoods + s * direction * likelihoods, masses) for s in (step, -step)
        )
        expected = jnp.sum(by_entry * direction * likelihoods)
        np.testing.assert_allclose((ahead - behind) / (2 * step), expected, rtol=1e-4)
        mixed = lambda s: (1 - s) * masses + s * change
        ahead, behind = value(likelihoods, mixed(step)), value(likelihoods, mixed(-step))
        expected = jnp.sum(by_mass * (change - masses))
        np.testing.assert_allclose((ahead - behind) / (2 * step), expected, rtol=1e-4)
