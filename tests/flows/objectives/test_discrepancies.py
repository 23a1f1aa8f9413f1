"""Functions of two samples as objectives, against the objective that has a formula."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from divjax import discrepancy, flows, kernels

KEY = jax.random.key(0)
KERNEL = kernels.Gaussian(0.9)


def _mmd(x, y, a, b):
    return discrepancy.mmd(x, y, a, b, kernel=KERNEL)


def _sliced(key, x, y, a, b):
    return discrepancy.sliced_energy_distance(key, x, y, a, b, num_projections=64)


def particles():
    rng = np.random.default_rng(0)
    return (
        jnp.asarray(rng.normal(size=(12, 2))),
        rng.normal(size=(9, 2)) + 1,
        rng.dirichlet(np.ones(12)),
    )


def test_half_of_mmd_is_the_objective_with_the_formula():
    with jax.enable_x64(True):
        x, y, weights = particles()
        one = flows.Discrepancy(y, _mmd)
        two = flows.MMD(y, KERNEL)
        (found, _), (expected, _) = (
            objective(KEY, x, weights, objective.init(KEY, x)) for objective in (one, two)
        )
        np.testing.assert_allclose(found.value, 2 * expected.value, rtol=1e-10)
        np.testing.assert_allclose(found.gradient, 2 * expected.gradient, rtol=1e-8, atol=1e-12)
        # The potential is up to a constant: the function normalises the masses.
        gap = found.potential - 2 * expected.potential
        np.testing.assert_allclose(gap, gap[0], rtol=1e-9)


def test_a_flow_decreases_it():
    x, y, _ = particles()
    x, y = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)
    flow = flows.Flow(
        [flows.Discrepancy(y, _sliced, stochastic=True)],
        velocity=flows.SVGD(kernels.Gaussian(1.0)),
        optimizer=optax.sgd(0.3),
    )
    moved = flow.run(KEY, x, num_steps=60).particles
    before, after = (discrepancy.energy_distance(z, y) for z in (x, moved))
    assert after < 0.2 * before


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x, y: jnp.sum(x), "function must take"),
        (lambda x, y, a, b: x[:, 0], "function must return a scalar"),
        ("mmd", "function must"),
    ],
)
def test_bad_input_is_named(function, message):
    x, y, weights = particles()
    with pytest.raises(ValueError, match=message):
        flows.Discrepancy(y, function)(KEY, x, weights, ())
