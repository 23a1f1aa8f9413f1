"""The learned f-divergence to samples: its field, its flow, its state."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from divjax import fdiv, flows
from divjax.ratio.heads import Linear, Network

KEY = jax.random.key(0)
SMALL = Network(hidden=(16,), learning_rate=1e-2, batch_size=256)


def uniform(n):
    return jnp.full(n, 1 / n)


class Quadratic(nnx.Module):
    """A critic that can be the exact log ratio of two Gaussians, and nothing else."""

    def __init__(self, d, rngs):
        self.linear = nnx.Linear(2 * d, 1, kernel_init=nnx.initializers.zeros, rngs=rngs)

    def __call__(self, x):
        return self.linear(jnp.concatenate([x, x**2], axis=1))


EXACT = Network(network=Quadratic, learning_rate=2e-2, weight_decay=0.0, batch_size=1024)


@pytest.fixture(scope="module")
def samples():
    return jax.random.normal(jax.random.key(1), (1000, 1))


@pytest.fixture(scope="module")
def particles():
    return jax.random.normal(KEY, (1000, 1)) - 1


@jax.jit
def evaluate(objective, x, weights, state):
    return objective(jax.random.key(3), x, weights, state)[0]


@jax.jit
def initialise(objective, x):
    return objective.init(jax.random.key(2), x)


@jax.jit
def init_and_evaluate(objective, x, weights):
    return evaluate(objective, x, weights, objective.init(jax.random.key(2), x))


def variation(objective, x, weights=None):
    return init_and_evaluate(objective, x, uniform(len(x)) if weights is None else weights)


@pytest.fixture(scope="module")
def fitted(samples, particles):
    """The state of a fitted objective, the same for all generators."""
    objective = flows.FDivergence(samples, ratio=EXACT, noise=0.0, num_init_steps=600)
    return initialise(objective, particles)


@pytest.mark.parametrize(
    ("generator", "h"),
    [
        (fdiv.ReverseKL(), lambda r: np.ones_like(r)),
        (fdiv.KL(), lambda r: r),
        (fdiv.JensenShannon(), lambda r: r / (1 + r) / 2),
        (fdiv.SquaredHellinger(), lambda r: np.sqrt(r) / 4),
        (2 * fdiv.ReverseKL(), lambda r: 2 * np.ones_like(r)),
    ],
    ids=["reverse", "forward", "js", "hellinger", "combination"],
)
def test_the_field_is_that_of_the_exact_ratio(samples, particles, fitted, generator, h):
    """−h(r) ∇log r for p = N(0, 1) and particles of N(−1, 1): log r = x + ½, slope 1."""
    x = particles
    objective = flows.FDivergence(samples, generator, EXACT, noise=0.0, num_fit_steps=0)
    found = evaluate(objective, x, uniform(1000), fitted)
    expected = -h(np.exp(np.asarray(x) + 0.5))
    error = np.linalg.norm(found.gradient - expected) / np.linalg.norm(expected)
    assert error < 0.25
    assert found.potential.shape == (1000,)
    assert found.gradient.shape == x.shape


def test_values_and_potentials(samples, particles, fitted):
    """KL(q‖p) = ½, and its variation −1 − log p/q up to a constant."""
    x = particles
    objective = flows.FDivergence(samples, fdiv.ReverseKL(), EXACT, noise=0.0, num_fit_steps=0)
    found = evaluate(objective, x, uniform(1000), fitted)
    assert abs(found.value - 0.5) < 0.15
    centered = found.potential - found.potential.mean()
    expected = -(x[:, 0] + 0.5) + (x[:, 0] + 0.5).mean()
    np.testing.assert_allclose(centered, expected, atol=0.6)


@pytest.mark.parametrize("wrong", [9999.0, -1e30])
def test_one_wrong_row_among_the_samples(samples, particles, wrong):
    """KL(q‖p) = ½ and slope 1, as without it: a typing error is a thousandth of the mass."""
    options = dict(ratio=EXACT, noise=0.0)
    objective = flows.FDivergence(samples.at[0].set(wrong), num_init_steps=600, **options)
    state = initialise(objective, particles)
    found = evaluate(
        flows.FDivergence(objective.samples, num_fit_steps=0, **options),
        particles,
        uniform(1000),
        state,
    )
    assert abs(found.value - 0.5) < 0.15
    assert np.linalg.norm(found.gradient + 1) / np.sqrt(1000) < 0.25


def test_a_stray_particle_returns(samples, particles):
    """It is pulled towards the samples, and leaves the others their field."""
    options = dict(ratio=EXACT, noise=0.0)
    x = particles.at[0].set(-300.0)
    state = initialise(flows.FDivergence(samples, num_init_steps=600, **options), x)
    objective = flows.FDivergence(samples, num_fit_steps=0, **options)
    gradient = evaluate(objective, x, uniform(1000), state).gradient
    assert np.linalg.norm(gradient[1:] + 1) / np.sqrt(1000) < 0.25
    assert gradient[0] < 0


def test_weights_are_the_particles(samples, particles):
    """N(−1, 1) weighted to N(0, 1) is at its target: no field remains, and the value is 0."""
    x = particles
    weights = jax.nn.softmax(x[:, 0])
    objective = flows.FDivergence(
        samples, fdiv.ReverseKL(), EXACT, noise=0.0, num_init_steps=0, num_fit_steps=600
    )
    weighted, even = variation(objective, x, weights), variation(objective, x)
    assert abs(weights @ weighted.gradient[:, 0]) < 0.3 < abs(even.gradient.mean())


def run(key, particles, objective, num_steps, rate):
    return flows.Flow(
        (objective,),
        velocity=flows.Langevin(),
        aggregator=flows.MinNorm(),
        optimizer=optax.sgd(rate),
    ).run(key, particles, num_steps=num_steps)


def test_means_decay_as_those_of_gaussians_do(samples):
    """The flow of KL(q‖p) moves a Gaussian's mean by −m: Euler steps of η leave m (1 − η)^k.

    Langevin adds its noise for the entropy, of which this objective has none.
    """
    x = jax.random.normal(KEY, (500, 1)) * 0.8 - 1.5
    objective = flows.FDivergence(samples, fdiv.ReverseKL(), EXACT, noise=0.0, num_fit_steps=20)
    result = jax.jit(lambda: run(KEY, x, objective, 30, 0.05))()
    start, end = float(x.mean() - samples.mean()), float(result.particles.mean() - samples.mean())
    np.testing.assert_allclose(end / start, 0.95**30, atol=0.08)
    # Variances obey s' = −s + 1/s; from .8² they rise towards 1.
    variance = 0.8**2
    for _ in range(30):
        variance *= (1 + 0.05 * (1 / variance - 1)) ** 2
    np.testing.assert_allclose(result.particles.var(), variance, rtol=0.25)
    values = np.asarray(result.history.values)[:, 0]
    assert values[-5:].mean() < 0.3 * values[:5].mean()


@pytest.mark.slow
def test_particles_reach_samples(samples):
    """From N(−3, 1) to N(0, 1) by an MLP and Adam: mean and deviation within errors of both."""
    x = jax.random.normal(KEY, (500, 1)) - 3
    objective = flows.FDivergence(samples, fdiv.ReverseKL(), SMALL, num_fit_steps=10)
    result = jax.jit(
        lambda: flows.Flow((objective,), velocity=flows.Langevin(), optimizer=optax.adam(3e-2)).run(
            KEY, x, num_steps=300
        )
    )()
    assert abs(result.particles.mean() - samples.mean()) < 4 * np.sqrt(1 / 500)
    assert abs(result.particles.std() - samples.std()) < 0.2
    assert result.history.values[-20:].mean() < 0.1 * result.history.values[:5].mean()


GENERATORS = (
    fdiv.KL(),
    fdiv.ReverseKL(),
    fdiv.JensenShannon(),
    fdiv.SquaredHellinger(),
    fdiv.ChiSquared(),
    fdiv.NeymanChiSquared(),
    fdiv.Jeffreys(),
    fdiv.Alpha(0.3),
    fdiv.SkewKL(),
    fdiv.SoftenedReverseKL(),
)


@pytest.mark.exhaustive
def test_every_generator_is_finite(samples):
    """Particles near, far, coincident and constant in a feature."""
    x = jax.random.normal(KEY, (40, 1))
    placements = (x, x + 30, jnp.zeros((40, 1)))
    fast = Network(hidden=(4,), batch_size=32)

    def all_of(x):
        objective = flows.FDivergence(samples, ratio=fast, num_init_steps=50, num_fit_steps=2)
        state = objective.init(KEY, x)
        found = []
        for generator in GENERATORS:
            one = flows.FDivergence(samples, generator, fast, num_fit_steps=0)
            found.append(one(KEY, x, uniform(40), state)[0])
        return found

    for found in jax.jit(lambda xs: [all_of(x) for x in xs])(placements):
        for one in found:
            assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(one))


def test_a_generator_that_moves_nothing_is_refused():
    """½|r − 1| has slopes of ±½ alone, so that F's first variation has no gradient off p = q."""
    with pytest.raises(ValueError, match="generator must have a slope"):
        flows.FDivergence(jnp.zeros((3, 1)), fdiv.TotalVariation())


def test_a_ratio_that_is_no_network_is_named():
    with pytest.raises(ValueError, match="ratio must"):
        flows.FDivergence(jnp.zeros((3, 1)), ratio=Linear()).init(KEY, jnp.ones((3, 1)))


def test_particles_may_be_a_pytree_and_any_dtype(samples):
    with jax.enable_x64(True):
        x = jax.random.normal(KEY, (30, 2), jnp.float64)
        tree = {"a": x[:, 0], "b": x[:, 1:]}
        target = jax.tree.map(lambda leaf: leaf + 1, tree)
        options = dict(ratio=Network(hidden=(4,)), num_init_steps=5, num_fit_steps=0)
        found = variation(flows.FDivergence(target, **options), tree, uniform(30))
        plain = variation(flows.FDivergence(x + 1, **options), x)
        assert found.gradient["b"].shape == (30, 1)
        assert found.gradient["a"].dtype == jnp.float64
        np.testing.assert_allclose(found.gradient["a"], plain.gradient[:, 0], rtol=1e-8)


def test_the_state_is_carried_and_refined(samples):
    x = jax.random.normal(KEY, (100, 1)) - 2
    slow = Network(hidden=(16,), learning_rate=3e-3, batch_size=256)
    objective = flows.FDivergence(samples, ratio=slow, num_init_steps=0, num_fit_steps=10)
    state = objective.init(KEY, x)
    step = jax.jit(lambda key, state: objective(key, x, uniform(100), state))
    values = []
    for key in jax.random.split(KEY, 20):
        found, state = step(key, state)
        values.append(float(found.value))
    # The network goes on learning: from 0 to KL(q‖p) = 2.
    assert values[0] < 1 < values[-1] < 3
    again = jax.jit(lambda: objective(KEY, x, uniform(100), objective.init(KEY, x))[0].value)
    assert again() == again()


def test_bad_arguments(samples):
    for make in (
        lambda: flows.FDivergence(samples, noise=-0.1),
        lambda: flows.FDivergence(samples, num_fit_steps=-1),
    ):
        with pytest.raises(ValueError, match=r"must not be negative|at least 0"):
            make()
    for other in (jnp.zeros((5, 2)), jnp.zeros((5, 1), jnp.float16)):
        with pytest.raises(ValueError, match="got"):
            flows.FDivergence(samples).init(KEY, other)
    with pytest.raises(ValueError, match="samples"):
        flows.FDivergence(samples[:0]).init(KEY, jnp.zeros((5, 1)))
