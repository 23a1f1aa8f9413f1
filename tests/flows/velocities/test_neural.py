"""The learned score against scores known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from divjax import flows, problems
from divjax.core.networks import MLP
from divjax.core.training import fit

KEY = jax.random.key(0)


def refine(velocity, x, weights, num_steps):
    """The score after `num_steps` steps of a flow that stands still."""
    gradients = jnp.zeros((1, *x.shape), x.dtype)

    def body(state, key):
        _, repulsion, state = velocity(key, x, weights, gradients, state)
        return state, repulsion

    keys = jax.random.split(jax.random.key(2), num_steps)
    return -jax.jit(lambda: jax.lax.scan(body, velocity.init(jax.random.key(1), x), keys)[1][-1])()


def relative_error(found, truth):
    return float(jnp.linalg.norm(found - truth) / jnp.linalg.norm(truth))


def uniform(n):
    return jnp.full(n, 1 / n)


def test_the_reference_alone_is_exact_for_gaussians():
    """Far from the origin and correlated: a wrong reference term would show."""
    root = jnp.array([[2.0, 0.0], [1.5, 0.5]])
    x = 3 + jax.random.normal(KEY, (4000, 2)) @ root.T
    velocity = flows.NeuralScore(num_init_steps=0, num_fit_steps=0)
    found = refine(velocity, x, uniform(4000), 1)
    truth = -(x - 3) @ jnp.linalg.inv(root @ root.T)
    assert relative_error(found, truth) < 0.05  # the sample's own moments, O(n^-½)


@pytest.mark.parametrize("far", [30.0, 3000.0, 1e15])
@pytest.mark.parametrize("num_steps", [0, 5])
def test_a_stray_particle_leaves_the_others_their_score(num_steps, far):
    """That of N(0, I) has slope −1; a winsorised stray adds 25/500 to the variance, no more."""
    x = jax.random.normal(KEY, (500, 2)).at[0, 0].set(far)
    velocity = flows.NeuralScore(num_init_steps=0, num_fit_steps=num_steps)
    found = refine(velocity, x, uniform(500), 4)
    slope = np.polyfit(x[1:, 0], found[1:, 0], 1)[0]
    assert -1.12 < slope < -0.85
    # Its own pulls it back no more than any particle's at the limit, so that a drift can.
    assert -8 < found[0, 0] < -3


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["dual", "sliced", "denoising"])
def test_the_score_of_a_mixture_is_learned(loss):
    target = problems.GaussianMixture(
        jnp.array([0.5, 0.5]), jnp.array([[-2.0, 0.0], [2.0, 0.0]]), jnp.array(0.5)
    )
    x = target.sample(KEY, 1000)
    truth = jax.vmap(target.score)(x)
    reference = flows.NeuralScore(num_init_steps=0, num_fit_steps=0)
    before = relative_error(refine(reference, x, uniform(1000), 1), truth)
    after = relative_error(refine(flows.NeuralScore(loss=loss), x, uniform(1000), 150), truth)
    # The noise of .2 standard deviations alone smooths an error of about a quarter in.
    assert after < 0.45 < before


def test_massless_particles_are_as_if_absent():
    x = jax.random.normal(KEY, (50, 2))
    outlier = jnp.concatenate([x, jnp.array([[40.0, 0.0]])])
    velocity = flows.NeuralScore(num_init_steps=0, num_fit_steps=0)
    alone = refine(velocity, x, uniform(50), 1)
    beside = refine(velocity, outlier, jnp.append(uniform(50), 0.0), 1)
    np.testing.assert_allclose(beside[:50], alone, rtol=2e-3, atol=1e-3)


def test_a_flow_reaches_a_gaussian():
    mean, variances = jnp.array([1.0, -1.0]), jnp.array([0.5, 2.0])
    log_prob = lambda z: -0.5 * jnp.sum((z - mean) ** 2 / variances)
    result = jax.jit(
        lambda: flows.Flow(
            (flows.KL(log_prob),), velocity=flows.NeuralScore(), optimizer=optax.sgd(0.05)
        ).run(KEY, jax.random.normal(KEY, (200, 2)), num_steps=200, record_every=200)
    )()
    np.testing.assert_allclose(result.particles.mean(0), mean, atol=0.1)
    # The noise shrinks variances by about its square, .04, relative to them.
    np.testing.assert_allclose(result.particles.var(0), variances, rtol=0.25)


def test_a_network_of_the_users_own():
    velocity = flows.NeuralScore(network=small, num_init_steps=3)
    x = jax.random.normal(KEY, (20, 3))
    assert jnp.isfinite(refine(velocity, x, uniform(20), 2)).all()


def small(in_features, rngs):
    return MLP(in_features, (8,), 1, rngs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"loss": "mine"}, "loss must be one of dual, sliced, denoising; got 'mine'"),
        ({"noise": 0.0}, "noise must be a positive number"),
        ({"num_fit_steps": -1}, "num_fit_steps must be an integer of at least 0; got -1"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        flows.NeuralScore(**arguments)


def test_fit_is_the_loop_and_continues():
    loss = lambda key, x: jnp.sum((x - jax.random.normal(key, (3,))) ** 2)
    optimizer = optax.adam(0.1)
    first = fit(KEY, loss, jnp.zeros(3), optimizer, num_steps=4)
    x, state = jnp.zeros(3), optimizer.init(jnp.zeros(3))
    for key in jax.random.split(KEY, 4):
        updates, state = optimizer.update(jax.grad(loss, 1)(key, x), state, x)
        x = optax.apply_updates(x, updates)
    np.testing.assert_allclose(first.params, x, rtol=1e-6)
    assert first.finite
    assert int(first.optimizer_state[0].count) == 4
    more = fit(
        KEY, loss, first.params, optimizer, num_steps=2, optimizer_state=first.optimizer_state
    )
    assert int(more.optimizer_state[0].count) == 6


def test_fit_flags_losses_that_are_not_finite():
    assert not fit(
        KEY, lambda key, x: jnp.log(x), -jnp.ones(()), optax.sgd(0.1), num_steps=2
    ).finite


def test_traced_numbers_out_of_range_have_no_score():
    x, weights, still = jax.random.normal(KEY, (20, 2)), uniform(20), jnp.zeros((1, 20, 2))

    @jax.jit
    def score(noise, learning_rate):
        options = dict(hidden=(4,), num_init_steps=0, num_fit_steps=2)
        velocity = flows.NeuralScore(noise=noise, learning_rate=learning_rate, **options)
        return velocity(KEY, x, weights, still, velocity.init(KEY, x))[1]

    assert jnp.isfinite(score(0.2, 1e-3)).all()
    assert jnp.isnan(score(-0.2, 1e-3)).all()
    assert jnp.isnan(score(0.2, -1e-3)).all()
