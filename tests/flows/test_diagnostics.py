"""Diagnostics of particles against brute force, Monte Carlo and known values."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest

from divjax import discrepancy, flows, kernels, problems

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (16, 2))
PAIR = tuple(flows.KL(target.log_prob) for target in problems.two_component_targets()[:2])


def normal(x):
    return -0.5 * jnp.sum(x**2)


def test_effective_sample_size():
    assert flows.effective_sample_size(jnp.full(7, 1 / 7)) == pytest.approx(7)
    assert flows.effective_sample_size(jnp.array([0.0, 3.0, 0.0])) == pytest.approx(1)
    weights = jnp.array([0.5, 0.25, 0.25])
    assert flows.effective_sample_size(weights) == pytest.approx(1 / 0.375)
    assert flows.effective_sample_size(1e-30 * weights) == pytest.approx(1 / 0.375)


def test_bad_shapes_are_named():
    with pytest.raises(ValueError, match="1 to 4 objectives; got 5"):
        flows.hypervolume(jnp.zeros((2, 5)), jnp.ones(5))
    with pytest.raises(ValueError, match="must have shapes"):
        flows.hypervolume(jnp.zeros((2, 3)), jnp.ones(2))
    with pytest.raises(ValueError, match="n > 0"):
        flows.hypervolume(jnp.zeros((0, 3)), jnp.ones(3))


def test_wrong_shapes_are_refused_by_name():
    fields, x = jnp.ones((2, 4, 1)), jnp.ones((4, 1))
    with pytest.raises(ValueError, match=r"objective_weights must have shape \(2,\)"):
        flows.squared_norm(fields, jnp.ones(3) / 3)
    with pytest.raises(ValueError, match=r"weights must have shape \(4,\); got shape \(4, 1\)"):
        flows.squared_norm(fields, jnp.ones(2) / 2, x / 4)


def test_the_count_of_particles_with_masses_that_are_none_is_negative():
    x = jnp.array([[0.0], [1.0], [1.0]])
    count = jax.jit(flows.distinct_particles)
    assert count(x, jnp.array([0.5, 0.25, 0.25])) == 2
    for masses in ([np.nan, 1, 0], [np.inf, 1, 0], [-1, 1, 1], [0, 0, 0], [1, 1, 1]):
        assert count(x, jnp.array(masses, float)) == -1
        with pytest.raises(ValueError, match=r"^weights must"):
            flows.distinct_particles(x, np.array(masses, float))
    # Masses whose float32 is zero are some.
    assert flows.distinct_particles(x, np.array([1.0, 1e-60, 0])) == 2


@pytest.mark.parametrize("offset", [1e7, 3e7, 1e10])
def test_the_spread_of_doubles_far_away(offset):
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(6, 2)) + offset, 2 * rng.normal(size=(6, 2)) + offset
    masses = np.array([0, 0.1, 0.2, 0.3, 0.1, 0.3])
    variance = lambda x, a: a @ np.sum((x - a @ x) ** 2, axis=1)
    scale = np.sqrt(variance(y, np.full(6, 1 / 6)))
    expected = np.sqrt(variance(x, np.full(6, 1 / 6))) / scale
    np.testing.assert_allclose(flows.relative_spread(x, y), expected, rtol=1e-5)
    frames = [pd.DataFrame(rows) for rows in (x, y)]
    np.testing.assert_allclose(flows.relative_spread(*frames), expected, rtol=1e-5)
    # Each is relative to its own mean, however far they are apart.
    near = jnp.asarray(y - offset, jnp.float32)
    np.testing.assert_allclose(flows.relative_spread(x, near), expected, rtol=1e-5)
    weighted = np.sqrt(variance(x, masses)) / scale
    x[0] = np.nan
    np.testing.assert_allclose(flows.relative_spread(x, y, masses), weighted, rtol=1e-5)
    # Particles of JAX lie on a grid there.
    assert np.isnan(flows.relative_spread(jnp.full((6, 2), 8 * offset), y + 7 * offset))


def test_diagnostics_are_recorded_on_request():
    """Against NumPy, at the particles before each step."""
    y = 3 * np.random.default_rng(0).normal(size=(50, 2))
    log_prob = lambda z: -0.5 * jnp.sum(z**2)
    x = X.at[3].set(X[0]).at[7].set(X[0])
    observe = flows.Diagnostics(samples=y, log_prob=log_prob)
    flow = flows.Flow(PAIR, velocity=flows.SVGD(), optimizer=optax.adam(0.05))
    result = flow.run(KEY, x, num_steps=2, observe=observe)
    seen = result.history.observed
    assert seen.distinct[0] == 14
    variance = lambda z: np.asarray(z).var(axis=0).sum()
    np.testing.assert_allclose(seen.spread[0], np.sqrt(variance(x) / variance(y)), rtol=1e-5)
    kernel = kernels.InverseMultiquadric(bandwidth=1.0)
    expected = discrepancy.kernel_stein(x, log_prob=log_prob, kernel=kernel)
    np.testing.assert_allclose(seen.stein_discrepancy[0], expected, rtol=1e-5)
    nothing = flow.run(KEY, x, num_steps=1, observe=flows.Diagnostics()).history.observed
    assert nothing.spread is None
    assert nothing.stein_discrepancy is None


def test_diagnostics_take_pytrees():
    log_prob = lambda p: -0.5 * (p["a"] ** 2 + jnp.sum(p["b"] ** 2))
    split = lambda z: {"a": z[:, 0], "b": z[:, 1:]}
    observe = flows.Diagnostics(samples=split(2 * X), log_prob=log_prob)
    flow = flows.Flow((flows.KL(log_prob),), velocity=flows.SVGD(), optimizer=optax.sgd(0.05))
    seen = flow.run(KEY, split(X), num_steps=1, observe=observe).history.observed
    np.testing.assert_allclose(seen.spread, 0.5, rtol=1e-5)


@pytest.mark.parametrize("d", [1, 12])
def test_distinct_particles_are_counted_up_to_rounding(d):
    x = np.random.default_rng(1).normal(size=(9, d)).astype(np.float32) + 5
    x[4] = np.nextafter(x[2], np.float32(9))
    x[5] = x[2]
    weights = np.full(9, 1 / 9).astype(np.float32)
    count = jax.jit(flows.distinct_particles)
    assert count(jnp.asarray(x), jnp.asarray(weights)) == 7
    weights[0], weights[1] = 0, 2 / 9
    x[0] = np.nan
    assert count(jnp.asarray(x), jnp.asarray(weights)) == 6
    # Not what is merely near: a thousandth of the spread.
    x[5] = x[2] + 1e-3
    assert count(jnp.asarray(x), jnp.asarray(weights)) == 7


def test_particles_that_differ_in_a_small_coordinate_are_distinct():
    """The rounding of the other one, near 10⁷, is larger than their differences."""
    assert flows.distinct_particles(jnp.array([[1e7, 0.0], [1e7, 0.5], [1e7, 1.0]])) == 3


def test_a_particle_that_is_no_number_has_no_count():
    x = jnp.arange(8.0).reshape(4, 2).at[1, 0].set(jnp.nan)
    assert flows.distinct_particles(x) == -1
    # Unless its mass is zero.
    assert flows.distinct_particles(x, jnp.array([0.5, 0.0, 0.25, 0.25])) == 3
