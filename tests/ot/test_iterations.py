"""Iterations where they are hard: small ε, far points, wild over-relaxation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from divjax import ot

CASES = {
    "cloud": (0.01, 2),
    "small": (0.002, 2),
    "many features": (0.01, 16),
}


def clouds(d, n=64):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(n, d)), 0.5 + 1.2 * rng.normal(size=(n, d))
    return jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)


def solve(over_relaxation, tolerance=1e-4, **options):
    options = dict(max_iterations=20_000) | options
    solver = ot.Sinkhorn(tolerance, over_relaxation=over_relaxation, **options)
    return jax.jit(lambda x, y, e: ot.sinkhorn(x, y, epsilon=e, solver=solver))


PLAIN, ADAPTIVE = solve(1.0), solve(None)


@pytest.mark.parametrize("name", CASES)
def test_over_relaxation_saves_iterations_and_finds_the_same(name):
    share, d = CASES[name]
    x, y = clouds(d)
    epsilon = share * float(jnp.mean(ot.cost_matrix(ot.SqEuclidean(), x, y)))
    plain, adaptive = PLAIN(x, y, epsilon), ADAPTIVE(x, y, epsilon)
    assert plain.converged
    assert adaptive.converged
    assert adaptive.num_iterations < 1.1 * plain.num_iterations + 20
    np.testing.assert_allclose(adaptive.value, plain.value, rtol=1e-4)


def test_over_relaxation_waits_while_potentials_travel():
    """Few points and an ε far below their distances: the error stays, then falls at once."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(12, 3)), 0.5 + 1.2 * rng.normal(size=(9, 3))
    a, b = (jax.nn.softmax(jnp.asarray(rng.normal(size=n), jnp.float32)) for n in (12, 9))
    points = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)
    epsilon = 1e-3 * float(jnp.mean(ot.cost_matrix(ot.SqEuclidean(), *points)))
    plain, adaptive = (
        ot.sinkhorn(
            *points,
            a,
            b,
            epsilon=epsilon,
            solver=ot.Sinkhorn(max_iterations=20_000, over_relaxation=omega),
        )
        for omega in (1.0, None)
    )
    assert plain.converged
    assert adaptive.converged
    assert adaptive.num_iterations < 1.3 * plain.num_iterations


def test_a_wild_omega_is_never_a_wrong_answer():
    x, y = clouds(2)
    result = solve(1.99, max_iterations=200)(x, y, 0.005)
    assert bool(result.converged) == bool(result.error <= 1e-4)
    rows, columns = result.marginals()
    error = jnp.sum(jnp.abs(rows - 1 / 64)) + jnp.sum(jnp.abs(columns - 1 / 64))
    np.testing.assert_allclose(result.error, error, rtol=2e-2, atol=1e-5)


@pytest.mark.parametrize("block_size", [None, 20])
def test_points_so_far_apart_that_every_exponential_vanishes(block_size):
    """C/ε is about 25 000, with two clusters that mix within themselves alone."""
    x = jnp.array([[0.0], [1.0], [1000.0], [1001.0]])
    result = ot.sinkhorn(
        x, x + 5000, epsilon=1e3, solver=ot.Sinkhorn(block_size=block_size, tolerance=1e-3)
    )
    assert result.converged
    # Each cluster's plan is uniform: 5000² + ½ on average, and KL(P‖a⊗b) = log 2.
    np.testing.assert_allclose(result.value, 5000.0**2 + 0.5 + 1e3 * np.log(2), rtol=1e-6)
    expected = np.array([5000.5, 5000.5, 6000.5, 6000.5])[:, None]
    np.testing.assert_allclose(result.transport(x), expected, atol=0.5)


def test_annealing_saves_iterations_at_small_epsilon():
    x, y = clouds(2)
    epsilon = 0.002 * float(jnp.mean(ot.cost_matrix(ot.SqEuclidean(), x, y)))
    annealed = solve(None, tolerance=1e-3, annealing=ot.Annealing())(x, y, epsilon)
    cold = solve(None, tolerance=1e-3)(x, y, epsilon)
    assert annealed.converged
    assert annealed.num_iterations < cold.num_iterations
