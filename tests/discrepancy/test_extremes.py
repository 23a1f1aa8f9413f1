"""Far clusters, padding, directions of any length: the numbers of double precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import cdist

from divjax import discrepancy, flows, kernels

KEY = jax.random.key(0)


def exact_precision_recall(x, y, k):
    radius = lambda rows: np.sort(cdist(rows, rows), axis=1)[:, k]
    to_y = cdist(x, y)
    in_x, in_y = to_y <= radius(x)[:, None], to_y <= radius(y)
    return in_x.any(0).mean(), in_y.any(1).mean(), in_x.sum() / (k * len(y)), in_x.any(1).mean()


@pytest.mark.parametrize(("d", "apart"), [(12, 1e4), (12, 1e5), (9, 1e4), (3, 1e5)])
def test_precision_and_recall_of_far_clusters(d, apart):
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(60, d)).astype(np.float32) for _ in range(2))
    x[:30, 0] += apart
    y[:30, 0] += apart
    found = discrepancy.precision_recall(jnp.asarray(x), jnp.asarray(y))
    expected = exact_precision_recall(np.float64(x), np.float64(y), 3)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("near", [0.0, 1e-24, 1e-4])
@pytest.mark.parametrize("most", [0.6, 0.3])
def test_precision_and_recall_of_a_tight_cluster(near, most):
    """Most rows, or fewer, 10²⁴ times nearer to each other than the rest, or in one place."""
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(2, 50, 3))
    for rows in (x, y):
        rows[: int(most * 50)] *= near
    x, y = (1e8 * rows.astype(np.float32) for rows in (x, y))
    expected = exact_precision_recall(np.float64(x), np.float64(y), 3)
    for unit in (1e-18, 1.0, 1e20):
        scaled = (jnp.asarray(rows * np.float32(unit)) for rows in (x, y))
        np.testing.assert_allclose(discrepancy.precision_recall(*scaled), expected, atol=1e-6)


def test_precision_and_recall_beyond_the_range():
    """One far row is as far from all others; of several the order is lost, and flagged."""
    x, y = 1e-6 * np.random.default_rng(4).normal(size=(2, 50, 3)).astype(np.float32)
    x[0] = 2e38
    found = discrepancy.precision_recall(jnp.asarray(x), jnp.asarray(y))
    expected = exact_precision_recall(np.float64(x), np.float64(y), 3)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    x[1] = -1e37
    assert np.isnan(discrepancy.precision_recall(jnp.asarray(x), jnp.asarray(y))).all()


def test_a_zero_weight_has_a_derivative_of_its_own():
    x = np.random.default_rng(1).normal(size=(6, 2))
    x[5] = 3

    def stein(weights):
        score = lambda point: -point
        return discrepancy.kernel_stein(
            x, score=score, weights=weights, kernel=kernels.Gaussian(1.0)
        )

    with jax.enable_x64(True):
        weights = jnp.array([1.0, 1, 1, 1, 1, 0])
        slope = jax.grad(stein)(weights)[5]
        step = 1e-5
        above = stein(weights.at[5].set(2 * step))
        middle, below = stein(weights.at[5].set(step)), stein(weights)
        # Weights are not negative: the one-sided difference of second order.
        difference = (-3 * below + 4 * middle - above) / (2 * step)
        np.testing.assert_allclose(slope, difference, rtol=1e-4)


@pytest.mark.parametrize("far", [1e20, 1e30, 3e38, -3e38, np.inf, np.nan])
def test_padding_of_any_size(far):
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(2, 12, 3)).astype(np.float32)
    a = np.ones(12)
    a[4] = 0
    padded = x.copy()
    padded[4] = far
    for measure in (
        discrepancy.energy_distance,
        lambda x, y, a: discrepancy.cauchy_schwarz(x, y, a, kernel=kernels.Matern(1.0)),
        lambda x, y, a: discrepancy.mmd(x, y, a, kernel=kernels.Energy()),
        lambda x, y, a: discrepancy.witness(y, x, y, a, kernel=kernels.Energy())[0],
        lambda x, y, a: discrepancy.sliced_energy_distance(KEY, x, y, a, num_projections=4),
    ):
        np.testing.assert_allclose(measure(padded, y, a), measure(x, y, a), rtol=1e-4)


def energy_on_line(x, y):
    mean = lambda u, v: np.abs(u[:, None] - v).mean()
    return 2 * mean(x, y) - mean(x, x) - mean(y, y)


@pytest.mark.parametrize("offset", [0.0, 2020.0, 1e6, 1e30])
def test_a_constant_feature_far_from_zero_changes_nothing(offset):
    """Beside others of a ten-millionth of it, or less: the formulas leave the constant one out."""
    rng = np.random.default_rng(5)
    small = np.float32(1e-7 * min(offset, 1e7)) if offset else np.float32(1)
    x, y = (small * rng.normal(size=(n, 2)).astype(np.float32) for n in (40, 15))
    y += small
    u, v = x.astype(float) / small, y.astype(float) / small
    beside = lambda rows: np.append(rows, np.full((len(rows), 1), np.float32(offset)), axis=1)
    x, y = jnp.asarray(beside(x)), jnp.asarray(beside(y))
    near = lambda found, expected: np.testing.assert_allclose(found, expected, rtol=1e-4)

    # The covariances' roots by eigenvalues of their product, which are those of the square.
    one, other = np.cov(u.T), np.cov(v.T)
    roots = np.sqrt(np.linalg.eigvals(one @ other)).sum()
    frechet = np.square(u.mean(0) - v.mean(0)).sum() + np.trace(one) + np.trace(other) - 2 * roots
    near(discrepancy.frechet_distance(x, y) / small**2, frechet)
    energy = 2 * cdist(u, v).mean() - cdist(u, u).mean() - cdist(v, v).mean()
    near(discrepancy.energy_distance(x, y) / small, energy)
    near(discrepancy.precision_recall(x, y), exact_precision_recall(u, v, 3))

    directions = rng.normal(size=(8, 3)).astype(np.float32)
    rates = directions[:, :2].astype(float)
    characteristic = lambda rows: np.exp(1j * rows @ rates.T).mean(0)
    gaps = np.abs(characteristic(u) - characteristic(v)) ** 2
    frequencies = directions / small
    found = discrepancy.characteristic_function_distance(None, x, y, frequencies=frequencies)
    near(found, gaps.mean())
    # The mean over directions is proportional to that along lines, with E|θ_1| = 1/2 in space.
    lengths = np.linalg.norm(directions.astype(float), axis=1)
    along = [energy_on_line(u @ rate, v @ rate) for rate in rates] / lengths
    found = discrepancy.sliced_energy_distance(None, x, y, directions=directions)
    near(found / small, 2 * np.mean(along))


@pytest.mark.parametrize("offset", [2020.0, 1e7])
def test_a_constant_feature_far_from_zero_leaves_a_bandwidth(offset):
    """By the median distance of the others, which is below the rounding of the constant one."""
    rng = np.random.default_rng(6)
    x, y = (np.full((n, 2), offset, np.float32) for n in (20, 30))
    x[:, 1], y[:, 1] = rng.normal(size=20), rng.normal(size=30) + 1
    x[:, 1] *= 1e-7 * offset
    y[:, 1] *= 1e-7 * offset
    rows = np.concatenate([x, y])[:, 1:].astype(float)
    squares = cdist(rows, rows) ** 2
    median = np.quantile(squares[np.triu_indices(50, 1)], 0.5, method="inverted_cdf")
    values, signs = np.exp(-squares / (2 * median)), np.repeat([1 / 20, -1 / 30], [20, 30])
    found = discrepancy.mmd(jnp.asarray(x), jnp.asarray(y))
    np.testing.assert_allclose(found, signs @ values @ signs, rtol=1e-2)


def test_directions_may_have_any_length():
    rng = np.random.default_rng(3)
    x, y, u = rng.normal(size=(3, 20, 3))
    u /= np.linalg.norm(u, axis=1, keepdims=True)
    along = lambda directions: discrepancy.sliced_energy_distance(None, x, y, directions=directions)
    np.testing.assert_allclose(along(5 * u), along(u), rtol=1e-5)
    assert jnp.isnan(along(np.zeros((2, 3))))


@pytest.mark.parametrize("container", [np.asarray, lambda rows: rows.tolist(), jnp.asarray])
def test_a_function_of_positions_sees_them(container):
    """Whatever holds the samples: the moments of a polynomial kernel depend on where they are."""
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(20, 2)) + 3, rng.normal(size=(30, 2)) + 5
    function = lambda x, y, a, b: discrepancy.mmd(x, y, a, b, kernel=kernels.Polynomial(2))
    objective = flows.Discrepancy(container(y), function)
    particles = jnp.asarray(x)
    state = objective.init(KEY, particles)
    found = objective(KEY, particles, jnp.full(20, 1 / 20), state)[0].value
    direct = lambda u, v: np.mean((u @ v.T + 1) ** 2)
    np.testing.assert_allclose(found, direct(x, x) + direct(y, y) - 2 * direct(x, y), rtol=1e-4)


@pytest.mark.parametrize("d", [2, 12])
def test_stein_of_clusters_that_are_far_apart(d):
    """Terms x·s of 10⁶ cancel in those of pairs within a cluster, which are all that counts."""
    apart = 1e6 if d == 2 else 1e4
    x = np.random.default_rng(3).normal(size=(40, d)).astype(np.float32)
    x[:20, 0] += np.float32(apart)
    score = lambda z: jnp.stack([-z[0] + apart * (z[0] > apart / 2), *(-z[1:])])
    rows = x.astype(np.float64)
    scores = -rows
    scores[:20, 0] += apart
    bandwidth = d**0.5
    difference = rows[:, None] - rows
    scaled = (difference**2).sum(-1) / bandwidth**2
    turn = (difference * (scores - scores[:, None])).sum(-1) / bandwidth**2
    products = scores @ scores.T - turn + (d - scaled) / bandwidth**2
    exact = (np.exp(-scaled / 2) * products).mean()
    kernel = kernels.Gaussian(bandwidth)
    found = discrepancy.kernel_stein(jnp.asarray(x), score=score, kernel=kernel)
    np.testing.assert_allclose(found, exact, rtol=1e-3 if d == 2 else 2e-2)
    goodness = discrepancy.kernel_stein_test(
        KEY, jnp.asarray(x), score=score, kernel=kernel, num_resamples=9
    )
    np.testing.assert_allclose(goodness.statistic, exact, rtol=1e-3 if d == 2 else 2e-2)
