"""Transport objectives against couplings that are known, and where their flows end."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from divjax import flows

KEY = jax.random.key(0)


def evaluate(objective, x, weights=None):
    weights = jnp.full(len(x), 1 / len(x), x.dtype) if weights is None else weights
    return objective(KEY, x, weights, objective.init(KEY, x))[0]


def test_on_the_line_slices_are_the_sorted_coupling():
    x, y = jax.random.normal(KEY, (2, 9, 1))
    variation = evaluate(flows.SlicedWasserstein(y, num_projections=3), x)
    order = np.argsort(x[:, 0])
    gap = np.empty(9)
    gap[order] = np.asarray(x)[order, 0] - np.sort(np.asarray(y)[:, 0])
    np.testing.assert_allclose(variation.value, np.mean(gap**2), rtol=1e-5)
    np.testing.assert_allclose(variation.gradient[:, 0], 2 * gap, rtol=1e-4, atol=1e-6)


def test_the_slices_of_a_shift():
    """SW₂²(x, x + s) = |s|²/d, with gradient −2s/d in the mean over directions."""
    d, shift = 5, jnp.array([1.0, -2.0, 0.0, 0.5, 1.5])
    x = jax.random.normal(KEY, (6, d))
    objective = flows.SlicedWasserstein(x + shift, num_projections=4000)
    variation = evaluate(objective, x)
    # The variance of (θᵀu)² is 2(d − 1)/(d²(d + 2)) |u|⁴, and that of θθᵀs has entries below |s|²/d.
    size = float(shift @ shift)
    error = np.sqrt(2 * (d - 1) / (d**2 * (d + 2)) / 4000) * size
    assert abs(variation.value - size / d) < 4 * error
    error = 2 * np.sqrt(size / d / 4000)
    np.testing.assert_allclose(variation.gradient, np.tile(-2 * shift / d, (6, 1)), atol=4 * error)


def test_particles_without_weight_stay():
    x, y = jax.random.normal(KEY, (2, 4, 2))
    variation = evaluate(flows.SlicedWasserstein(y), x, jnp.array([0.5, 0.0, 0.25, 0.25]))
    assert jnp.isfinite(variation.potential).all()
    np.testing.assert_array_equal(variation.gradient[1], 0)
    assert (variation.gradient[0] != 0).all()


def test_a_flow_of_slices_ends_at_the_samples():
    y = jax.random.normal(KEY, (40, 2)) @ jnp.array([[1.0, 0.8], [0.0, 0.3]]) + 3
    x = jax.random.normal(jax.random.key(1), (40, 2))
    result = flows.run(
        KEY,
        x,
        (flows.SlicedWasserstein(y, num_projections=32),),
        velocity=flows.Blob(),  # without entropy the plain gradient
        optimizer=optax.sgd(0.5),
        num_steps=300,
    )
    nearest = jnp.linalg.norm(result.particles[:, None] - y, axis=-1).min(axis=0)
    assert nearest.max() < 0.1


def test_what_is_refused():
    with pytest.raises(ValueError, match="num_projections"):
        flows.SlicedWasserstein(jnp.zeros((3, 2)), num_projections=0)
    with pytest.raises(ValueError, match="p must be a finite number of at least one"):
        evaluate(flows.SlicedWasserstein(jnp.zeros((3, 2)), p=0.5), jnp.zeros((3, 2)))
    with pytest.raises(ValueError, match="samples and particles"):
        evaluate(flows.SlicedWasserstein(jnp.zeros((3, 2))), jnp.zeros((3, 1)))
