"""Langevin dynamics: the stationary variance, and noise by the optimizer's own step sizes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

from divjax import flows

KEY = jax.random.key(0)


def test_langevin_has_the_right_temperature():
    """x ← (1 − η/s²)x + √(2η) ξ is autoregressive; its stationary variance is s² / (1 −
    η/(2s²))."""
    step_size, variance, n = 0.2, 0.7, 20_000
    target = flows.KL(lambda z: -0.5 * jnp.sum(z**2) / variance)
    flow = flows.Flow((target,), velocity=flows.Langevin(), optimizer=optax.sgd(step_size))
    result = flow.run(KEY, jnp.zeros((n, 1)), num_steps=100)
    expected = variance / (1 - step_size / (2 * variance))
    standard_error = expected * np.sqrt(2 / n)
    assert abs(result.particles.var() - expected) < 4 * standard_error
    assert abs(result.particles.mean()) < 4 * np.sqrt(expected / n)


def test_langevin_follows_schedules_and_rates_a_leaf():
    """Noise of variance 2ητ with each leaf's own η, and none for an objective without entropy."""
    optimizer = optax.partition(
        {"slow": optax.sgd(1e-3), "fast": optax.sgd(lambda count: 0.1 / (1 + count))},
        {"a": "slow", "b": "fast"},
    )
    particles = {"a": jnp.zeros(5000), "b": jnp.zeros(5000)}
    flat = lambda p: 0.0 * (p["a"] + p["b"])
    options = dict(velocity=flows.Langevin(), optimizer=optimizer)
    move = jax.jit(
        lambda objective: flows.Flow((objective,), **options).run(KEY, particles, num_steps=2)
    )
    potential = flows.Potential(flat)
    for objective, scale in (
        (flows.KL(flat), 1.0),
        (dataclasses.replace(potential, entropy=jnp.array(0.0)), 0.0),
        (dataclasses.replace(potential, entropy=jnp.array(0.25)), 0.5),
    ):
        moved = jax.tree.map(np.asarray, move(objective).particles)
        for leaf, variance in (("a", 2 * 2e-3), ("b", 2 * 0.15)):
            expected = scale**2 * variance
            assert abs(moved[leaf].var() - expected) <= 4 * expected * np.sqrt(2 / 5000)


def test_each_particle_has_noise_of_its_own_weights():
    """Weights by particle: τ_i = Σ_k w_ki τ_k is 1 for the first half and 0 for the others."""

    class Split:
        def init(self, key, num_objectives):
            return ()

        def __call__(self, fields, state):
            first = (jnp.arange(fields.masses.size) < fields.masses.size // 2).astype(float)
            return jnp.stack([first, 1 - first]), state

    flat = lambda p: 0.0 * jnp.sum(p["a"])
    objectives = (flows.KL(flat), flows.Potential(flat))
    options = dict(velocity=flows.Langevin(), optimizer=optax.sgd(0.1), aggregator=Split())
    particles = {"a": jnp.zeros((8000, 2))}
    moved = flows.Flow(objectives, **options).run(KEY, particles, num_steps=1).particles["a"]
    variance = np.asarray(moved[:4000]).var()
    assert abs(variance - 2 * 0.1) <= 4 * 0.2 * np.sqrt(2 / 8000)
    np.testing.assert_array_equal(moved[4000:], 0)
