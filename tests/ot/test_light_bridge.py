"""Fits of the light Schrödinger bridge: known bridges, moments, weights, units and flags."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.linalg
import scipy.spatial
import scipy.special
import scipy.stats

from divjax.core.types import Status
from divjax.ot.bridges.light_bridge import LightSchrodingerBridge
from tests.ot.test_schrodinger import ends, fitted

KINDS = ("diagonal", "full")


KEY = jax.random.key(0)


kinds = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


def loss(b, x0, x1):
    return jnp.mean(b.log_normalizer(x0)) - jnp.mean(b.log_potential(x1))


@kinds
def test_a_fit_finds_the_bridge_that_made_the_samples(kind):
    truth, x0, x1, found = fitted(kind)
    mean, cov = truth.conditional_plan(x0[:200]).moments()
    other, found_cov = found.conditional_plan(x0[:200]).moments()
    total = jnp.sum(jnp.var(x1, axis=0))
    # Each of 3 (1 + d + d²) numbers is known to within its variance over n.
    assert jnp.mean(jnp.sum((mean - other) ** 2, axis=1)) < 4 * 21 / 4000 * total
    assert jnp.mean((cov - found_cov) ** 2) < 4 * 21 / 4000 * total**2
    assert found.finite
    assert found.imbalance < 1e-4
    assert found.losses.shape == (26,)


@kinds
def test_a_fit_is_a_stationary_point_of_the_objective(kind):
    """All of each sample is a batch here: the gradient, small against that at nearby values."""
    truth, x0, x1, found = fitted(kind)
    leaves = lambda b: (b.log_weights, b.means, b.scales)

    def objective(numbers):
        names = ("log_weights", "means", "scales")
        return loss(dataclasses.replace(found, **dict(zip(names, numbers, strict=True))), x0, x1)

    value, slopes = jax.jit(jax.value_and_grad(objective))(leaves(found))
    nudged = jax.tree.map(lambda v: 1.05 * v, leaves(found))
    nearby, steep = jax.jit(jax.value_and_grad(objective))(nudged)
    size = lambda tree: np.sqrt(sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(tree)))
    assert size(slopes) < 1e-2 * size(steep)
    assert value < nearby
    np.testing.assert_allclose(found.losses[-1], value, rtol=1e-3)
    # No other mixture of this size explains these samples better than by their noise, the truth
    # least of all; the objective there is relative to other origins.
    shifted = lambda b: (
        loss(b, x0, x1)
        + jnp.mean(jnp.dot(x0.mean(0) - b.origins[0], x1.mean(0) - b.origins[1]) * -1 / b.epsilon)
    )
    assert value <= shifted(truth) + 1e-3


@pytest.mark.parametrize("kind", ["diagonal", pytest.param("full", marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("wrong", [999999.0, -1e6])
def test_one_wrong_row_leaves_the_bridge(kind, side, wrong):
    """In either sample: the conditional laws are those without it, to a tenth of their spread."""
    _, *samples = ends(kind, n=1000)
    fit = jax.jit(LightSchrodingerBridge(3, 0.5, kind, num_steps=25).fit)
    plans = []
    for value in (samples[side][0], wrong):
        rows = list(samples)
        rows[side] = rows[side].at[0].set(value)
        found = fit(KEY, *rows)
        assert found.converged
        plans.append(found.conditional_plan(samples[0][1:200]).moments())
    (mean, covariance), (beside, _) = plans
    total = jnp.trace(covariance, axis1=1, axis2=2)
    error = jnp.sum((beside - mean) ** 2, axis=1)
    assert jnp.mean(error) < 0.01 * jnp.mean(total)


def test_the_law_at_time_one_is_the_targets():
    _, x0, x1, found = fitted("full")
    drawn = jax.jit(found.sample)(KEY, x0)
    for moment in (lambda z: z, lambda z: z**2):
        one, two = moment(drawn), moment(x1)
        error = np.sqrt((one.var(0) + two.var(0)) / 4000)
        np.testing.assert_array_less(np.abs(one.mean(0) - two.mean(0)), 4 * error)


def swiss_roll(key, n):
    angle_key, noise_key = jax.random.split(key)
    angle = 1.5 * jnp.pi * (1 + 2 * jax.random.uniform(angle_key, (n,)))
    points = jnp.stack([angle * jnp.cos(angle), angle * jnp.sin(angle)], axis=1)
    return (points + 0.8 * jax.random.normal(noise_key, points.shape)) / 7.5


def energy_distance(x, y):
    """Unbiased: of mean zero between samples of one law."""
    between = scipy.spatial.distance.cdist(x, y).mean()
    return (
        between
        - (scipy.spatial.distance.pdist(x).mean() + scipy.spatial.distance.pdist(y).mean()) / 2
    )


def test_components_do_not_fall_together_for_small_epsilon():
    """At ε = .002 shares are all or nothing: a start at this ε would lose its components."""
    n, keys = 1000, jax.random.split(jax.random.key(2), 25)
    x0, x1 = jax.random.normal(keys[0], (n, 2)), swiss_roll(keys[1], n)
    fitted = jax.jit(LightSchrodingerBridge(50, 0.002).fit)(keys[2], x0, x1)
    ends = fitted.sample(keys[3], x0)
    null = [
        energy_distance(*pair) for pair in itertools.pairwise(swiss_roll(k, n) for k in keys[4:])
    ]
    assert energy_distance(ends, x1) < 4 * np.std(null)
    assert fitted.imbalance < 1e-4


@kinds
def test_offsets_do_not_matter(kind):
    _, x0, x1 = ends(kind, n=200)
    method = LightSchrodingerBridge(2, 0.5, kind, num_steps=10)
    fit = jax.jit(method.fit)
    near, far = fit(KEY, x0, x1), fit(KEY, x0 + 1e3, x1 - 1e3)
    np.testing.assert_allclose(near.means, far.means, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(far.drift(x0 + 1e3, 0.0), near.drift(x0, 0.0) - 2e3, rtol=1e-9)


@kinds
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_legal_extremes_stay_finite_and_dtypes_are_kept(kind, dtype):
    rng = np.random.default_rng(8)
    fit = jax.jit(
        lambda epsilon, x0, x1: LightSchrodingerBridge(5, epsilon, kind, num_steps=6).fit(
            KEY, x0, x1
        )
    )
    x = jnp.asarray(rng.normal(size=(24, 2)), dtype)
    few = jnp.tile(x[:3], (8, 1))
    for epsilon in (1e-3, 1e3):
        for x0, x1 in (
            (x, few),
            (few, x),
            (x * jnp.array([1, 0], dtype), x),
            (x, x * 0),
            (x, 1e3 * x),
        ):
            found = fit(epsilon, x0, x1)
            assert found.finite
            assert found.means.dtype == found.losses.dtype == dtype
            drift = found.drift(x0, 0.5)
            assert jnp.isfinite(drift).all()
            assert drift.dtype == found.sample(KEY, x0).dtype == dtype


def test_epsilon_is_a_leaf():
    _, x0, x1 = ends("diagonal", n=100)
    run = lambda method: method.fit(KEY, x0, x1).scales
    method = LightSchrodingerBridge(2, 0.5, num_steps=5)
    many = jax.jit(jax.vmap(lambda e: run(dataclasses.replace(method, epsilon=e))))(
        jnp.array([0.1, 1.0])
    )
    alone = [jax.jit(run)(dataclasses.replace(method, epsilon=e)) for e in (0.1, 1.0)]
    np.testing.assert_allclose(many, alone, rtol=1e-8)
    assert len(jax.tree.leaves(method)) == 2


def test_the_ridge_is_a_share_of_each_features_variance():
    """A feature in other units: x · (1000, 1)."""
    _, x0, x1 = ends("diagonal", n=500)
    scale = jnp.array([1000.0, 1.0])
    method = LightSchrodingerBridge(2, 0.5, num_steps=20)
    found = jax.jit(method.fit)(KEY, x0 * scale, x1 * scale)
    drawn = jax.jit(found.sample)(KEY, x0 * scale)
    np.testing.assert_allclose(drawn.std(0), x1.std(0) * scale, rtol=0.15)


@kinds
def test_weights_are_repetitions_and_padding_counts_nothing(kind):
    _, x0, x1 = ends(kind, n=300)
    a = jnp.where(jnp.arange(300) < 100, 2.0, 1.0).at[200:].set(0.0)
    b = jnp.ones(300).at[:50].set(0.0)
    padded = x0.at[200:].set(jnp.nan), x1.at[:50].set(jnp.inf)
    repeated = jnp.concatenate([x0[:100], x0[:200]]), x1[50:]
    method = LightSchrodingerBridge(1, 0.5, kind, num_steps=10)
    found = jax.jit(method.fit)(KEY, *padded, a, b)
    expected = jax.jit(method.fit)(KEY, *repeated)
    assert found.converged
    np.testing.assert_allclose(found.scales, expected.scales, rtol=1e-4)
    np.testing.assert_allclose(found.means, expected.means, atol=1e-6)
    np.testing.assert_allclose(found.origins, expected.origins, rtol=1e-9)
    np.testing.assert_allclose(found.losses[-1], expected.losses[-1], rtol=1e-5)
    # With several components the law at time one is that of the weighted targets.
    many = jax.jit(LightSchrodingerBridge(3, 0.5, kind, num_steps=20).fit)(KEY, *padded, a, b)
    drawn = many.sample(KEY, jnp.concatenate([x0[:100], x0[:200]]))
    error = np.sqrt((x1[50:].var(0) + drawn.var(0)) / 200)
    np.testing.assert_array_less(np.abs(drawn.mean(0) - x1[50:].mean(0)), 4 * error)


def test_bad_data_is_flagged():
    _, x0, x1 = ends("diagonal", n=50)
    run = jax.jit(lambda x, e: LightSchrodingerBridge(2, e, num_steps=3).fit(KEY, x, x1).status)
    assert run(x0, 0.5) == Status.CONVERGED
    assert run(x0.at[3].set(jnp.nan), 0.5) == Status.NOT_FINITE
    assert run(x0, -0.5) == Status.INVALID_INPUT


def test_numpy_samples_keep_their_signal_at_an_offset():
    x0, x1 = (np.asarray(v) for v in ends("diagonal", n=200)[1:])
    with jax.enable_x64(False):
        method = LightSchrodingerBridge(2, 0.5, num_steps=10)
        near, far = method.fit(KEY, x0, x1), method.fit(KEY, 1e7 + x0, x1 - 1e7)
        np.testing.assert_allclose(near.means, far.means, rtol=1e-3, atol=1e-3)
        drift = far.drift(1e7 + x0, 0.0) + np.float32(2e7)
        # The drift itself is rounded to steps of 2, its spread is not lost before that.
        np.testing.assert_allclose(drift, near.drift(x0, 0.0), atol=4)
        np.testing.assert_allclose(
            far.log_normalizer(1e7 + x0), near.log_normalizer(x0), rtol=1e-3, atol=1e-2
        )


@pytest.mark.parametrize(
    "mode", [jax.jacfwd, pytest.param(jax.jacrev, marks=pytest.mark.exhaustive)]
)
def test_a_fit_is_differentiable_in_epsilon_and_the_ridge(mode):
    rng = np.random.default_rng(0)
    x0, x1 = jnp.asarray(rng.normal(size=(40, 2))), jnp.asarray(rng.normal(size=(30, 2)) + 1)

    @jax.jit
    def total(epsilon, ridge):
        found = LightSchrodingerBridge(2, epsilon, num_steps=8, ridge=ridge).fit(KEY, x0, x1)
        return found.log_potential(x1[:3]).sum() + found.losses[-1]

    slopes = mode(total, argnums=(0, 1))(0.3, 1e-3)
    steps = (
        (total(0.3 + 1e-5, 1e-3) - total(0.3 - 1e-5, 1e-3)) / 2e-5,
        (total(0.3, 1e-3 + 1e-7) - total(0.3, 1e-3 - 1e-7)) / 2e-7,
    )
    np.testing.assert_allclose(slopes, steps, rtol=1e-5)


@pytest.mark.parametrize("unit", [1e-8, 1e8])
def test_a_fit_does_not_depend_on_the_unit(unit):
    """Lengths in it and ε in its square: the same bridge."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(150, 2)).astype(np.float32)
    y = (2 * rng.normal(size=(150, 2)) + 3).astype(np.float32)

    def moved(unit):
        bridge = LightSchrodingerBridge(3, epsilon=0.5 * unit**2, num_steps=10)
        rows = np.float32(unit)
        found = bridge.fit(KEY, rows * x, rows * y)
        assert found.converged
        return found.sample(KEY, rows * x[:5]) / rows

    with jax.enable_x64(False):
        np.testing.assert_allclose(moved(unit), moved(1.0), rtol=1e-4)


def test_a_fit_to_few_rows_among_much_padding():
    """Many more rows than the start reads: blindly drawn ones would have no weight."""
    with jax.enable_x64(False):
        rng = np.random.default_rng(0)
        x, y = rng.normal(size=(4, 2)), rng.normal(3, 1, (40, 2))
        alone = LightSchrodingerBridge(1, 0.1).fit(jax.random.key(0), x, y)
        rows, weights = np.zeros((200_000, 2)), np.zeros(200_000)
        rows[:4], weights[:4] = x, 1
        padded = LightSchrodingerBridge(1, 0.1).fit(jax.random.key(0), rows, y, weights)
        assert padded.status == Status.CONVERGED
        np.testing.assert_allclose(padded.losses[-1], alone.losses[-1], rtol=1e-4)


@pytest.mark.parametrize("sizes", [(3, 1000), (1000, 3), (2, 1000)])
def test_one_component_is_the_gaussian_bridge_of_a_few_rows(sizes):
    """S C₀ S + ε S = C₁ of the rows' own variances, whose root is known in one dimension."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(sizes[0], 1)), rng.normal(size=(sizes[1], 1)) * 3 + 5
    found = LightSchrodingerBridge(1, 0.1, ridge=0.0).fit(jax.random.key(0), x, y)
    c0, c1 = x.var(), y.var()
    expected = (-0.1 + np.sqrt(0.01 + 4 * c0 * c1)) / (2 * c0)
    np.testing.assert_allclose(found.scales, [[expected]], rtol=1e-4)
    assert found.converged


def test_components_without_rows_enough_are_flagged():
    """Six rows that count for two components: neither has the four that its variances need."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(1000, 1)), rng.normal(size=(1000, 1)) * 3 + 5
    weights = np.full(1000, 1e-6)
    weights[:6] = 1
    assert LightSchrodingerBridge(2, 0.1).fit(jax.random.key(0), x, y, weights).status == (
        Status.MAX_ITERATIONS
    )
    assert LightSchrodingerBridge(2, 0.1).fit(jax.random.key(0), x, y).converged
