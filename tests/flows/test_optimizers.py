"""Acceleration against its closed form and the published toy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from divjax import flows, kernels, problems


def iterate(optimizer, gradient, x, num_steps):
    def body(carry, _):
        x, state = carry
        updates, state = optimizer.update(gradient(x), state)
        x = optax.apply_updates(x, updates)
        return (x, state), x

    return jax.lax.scan(body, (x, optimizer.init(x)), length=num_steps)[1]


def test_strongly_convex_damping_solves_the_damped_oscillator():
    """ẍ + 2√β ẋ + x = 0 with β < 1 is underdamped: x(t) is known; the scheme's time step is √η."""
    beta, eta = 0.25, 1e-4
    with jax.enable_x64(True):
        path = iterate(
            flows.accelerated(eta, beta, restart=False), lambda x: x, jnp.array(1.0), 400
        )
        t = np.sqrt(eta) * np.arange(1, 401)
        rate, frequency = np.sqrt(beta), np.sqrt(1 - beta)
        exact = np.exp(-rate * t) * (
            np.cos(frequency * t) + rate / frequency * np.sin(frequency * t)
        )
        np.testing.assert_allclose(path, exact, atol=2 * np.sqrt(eta))


def test_convex_damping_solves_the_bessel_equation():
    """ẍ + (3/t) ẋ + x = 0 from rest is x(t) = 2 J₁(t)/t (Su, Boyd, Candès 2016, section 3.2)."""
    from scipy.special import j1

    eta = 1e-4
    with jax.enable_x64(True):
        path = iterate(flows.accelerated(eta, restart=False), lambda x: x, jnp.array(1.0), 800)
        t = np.sqrt(eta) * np.arange(1, 801)
        np.testing.assert_allclose(path, 2 * j1(t) / t, atol=2 * np.sqrt(eta))


def test_restart_follows_the_gradient_test():
    """By hand: on ½x² momentum restarts at the first step whose gradient opposes it."""
    eta, x, v, n = 0.3, 1.0, 0.0, 0
    expected = []
    for _ in range(12):
        if v * x > 0:
            v, n = 0.0, 0
        n += 1
        v = (n - 1) / (n + 2) * v - np.sqrt(eta) * x
        x = x + np.sqrt(eta) * v
        expected.append(x)
    path = iterate(flows.accelerated(eta), lambda x: x, jnp.array(1.0), 12)
    np.testing.assert_allclose(path, expected, rtol=1e-4, atol=1e-6)
    assert np.any(np.sign(expected) != np.sign(expected[0]))  # it did overshoot, hence restart


def test_step_size_may_be_a_schedule():
    schedule = optax.piecewise_constant_schedule(0.1, {3: 0.0})
    path = iterate(flows.accelerated(schedule), lambda x: x, jnp.array(1.0), 6)
    assert path[2] != path[1]
    np.testing.assert_array_equal(path[3:], path[2])


@pytest.mark.parametrize("arguments", [(0.0,), (-1.0,), (0.1, 0.0)])
def test_step_sizes_must_be_positive(arguments):
    with pytest.raises(ValueError, match="must be a positive number"):
        flows.accelerated(*arguments)


def toy_squared_norms(velocity, optimizer, num_steps=1001, num_seeds=5):
    """Gradient norms (seed, step) on the four two-component targets from N(0, I), bandwidth 1."""
    targets = tuple(flows.KL(t.log_prob) for t in problems.two_component_targets())

    def run(key):
        x = jax.random.normal(jax.random.fold_in(key, 1), (50, 2))
        flow = flows.Flow(targets, velocity=velocity, optimizer=optimizer)
        return flow.run(key, x, num_steps=num_steps).history.squared_norm

    return jax.jit(jax.vmap(run))(jax.vmap(jax.random.key)(jnp.arange(num_seeds)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("velocity", "eta", "plain", "fast"),
    [
        (flows.SVGD, 0.01, 2e-4, 1e-6),
        (flows.SVGD, 0.001, 1e-2, 1e-5),
        (flows.Blob, 0.01, 1e-3, 1e-5),
    ],
)
def test_acceleration_reaches_the_published_toys_bars(velocity, eta, plain, fast):
    velocity = velocity(kernels.Gaussian(bandwidth=1.0))
    assert toy_squared_norms(velocity, optax.sgd(eta))[:, -1].max() <= plain
    norms = toy_squared_norms(velocity, flows.accelerated(eta))
    assert norms[:, -1].max() <= fast
    # No rebound: once small the gradient norm stays small.
    assert norms[:, 700:].max() <= 10 * fast


@pytest.mark.parametrize("name", ["step_size", "strong_convexity"])
def test_numbers_of_acceleration_out_of_range(name):
    x = jnp.ones(2)

    def first_step(number):
        optimizer = flows.accelerated(**{"step_size": 0.1, name: number})
        return optimizer.update(x, optimizer.init(x))[0]

    for wrong in (-1.0, 0.0, np.nan):
        with pytest.raises(ValueError, match=f"{name} must be positive"):
            first_step(jnp.array(wrong))
        assert jnp.isnan(jax.jit(first_step)(wrong)).all()


def test_a_schedule_may_end_at_zero():
    optimizer = flows.accelerated(optax.linear_schedule(0.1, 0.0, 2))
    x = iterate(optimizer, lambda x: x, jnp.ones(2), 4)
    assert jnp.isfinite(x).all()
    np.testing.assert_array_equal(x[3], x[2])


@pytest.mark.parametrize("num_steps", [5, 7, 100])
def test_a_linear_schedule_ends_at_zero_up_to_rounding(num_steps):
    """Compiled, that of optax ends at −1.5e-10 after five steps, whose root is NaN."""
    schedule = optax.linear_schedule(0.01, 0.0, num_steps)
    optimizer = flows.accelerated(schedule)
    x = jnp.array([1.0])
    state = optimizer.init(x)._replace(count=jnp.int32(num_steps))
    step, _ = jax.jit(optimizer.update)(x, state)
    assert abs(step) < 1e-8
    below = flows.accelerated(optax.linear_schedule(0.01, -0.01, num_steps))
    assert jnp.isnan(jax.jit(below.update)(x, state)[0])
