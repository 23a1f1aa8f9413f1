"""Normal scores, what smoothing loses, and intervals that know of a bias."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, stats

from divjax import information, problems
from divjax.information.entropy_sums import MUTUAL
from divjax.information.neighborhood_bias import (
    extended_interval,
    normal_scores,
    normal_variance,
    smoothing_loss,
)

REFERRED = information.KSG(reference="gaussian_copula")


def test_normal_scores_are_those_of_midranks():
    rng = np.random.default_rng(0)
    x = np.round(rng.normal(size=(50, 2)), 1)
    with jax.enable_x64(True):
        scores = normal_scores(jnp.asarray(x))
    known = stats.norm.ppf((stats.rankdata(x, axis=0) - 0.5) / len(x))
    np.testing.assert_allclose(scores, known, rtol=1e-10, atol=1e-12)


def _log_determinant(eigenvalues, dof, t, order):
    """Girko's estimate of log det(C + t I), its equation solved by bisection."""
    d = len(eigenvalues)
    of = lambda tau: 1 - np.sum(eigenvalues / (eigenvalues + tau)) / dof
    tau = optimize.brentq(lambda tau: tau - t * of(tau), 0, t, xtol=1e-14) if t else 0.0
    found = np.sum(np.log(eigenvalues + tau)) + dof * (1 - of(tau))
    slope = np.sum(eigenvalues / (eigenvalues + tau) ** 2) / dof
    smaller = np.log(of(tau) / (1 - t * slope)) / 2
    return found + (dof - d) * np.log(of(tau)) - (smaller if order == 2 else 0)


def _loss(covariance, square, dof, order):
    """½ [g(t) − g(0) − t g′(t)], the derivative by differences."""
    g = lambda t: _log_determinant(np.linalg.eigvalsh(covariance), dof, t, order)
    slope = (g(square * (1 + 1e-4)) - g(square * (1 - 1e-4))) / 2e-4
    return (g(square) - g(0) - slope) / 2


def _loss_of_parts(c, square, dof, order):
    whole, *parts = (_loss(part, square, dof, order) for part in (c, c[:2, :2], c[2:, 2:]))
    return whole - sum(parts)


def _normal_loss(covariance, square):
    """KL(N(0, C)‖N(0, C + s²I)) from its definition."""
    wide = covariance + square * np.eye(len(covariance))
    logs = np.linalg.slogdet(wide)[1] - np.linalg.slogdet(covariance)[1]
    return (logs + np.trace(np.linalg.solve(wide, covariance)) - len(covariance)) / 2


def test_a_smoothing_loss_is_its_definition():
    rng = np.random.default_rng(1)
    z = rng.normal(size=(20, 5)) @ rng.normal(size=(5, 5))
    z = (z - z.mean(0)) / z.std(0)
    # A constant feature has no part in it.
    z = np.column_stack([z, np.zeros(20)])
    radii, c = np.tile([0.1, 0.3, 1.5, 4.0], 5), np.corrcoef(z[:, :5].T)
    with jax.enable_x64(True):
        variables = jnp.asarray(z[:, :2]), jnp.asarray(z[:, 2:])
        found = smoothing_loss(variables, MUTUAL, jnp.asarray(radii**2 / 3))
    known = [_loss_of_parts(c, square, 19, 2) for square in radii**2 / 3]
    np.testing.assert_allclose(found.values, known, atol=1e-6)
    assert found.resolved


def test_a_misfit_is_that_of_each_row_s_own_density():
    """The mean of log densities before and after smoothing, against its expectation."""
    rng = np.random.default_rng(8)
    z = rng.normal(size=(4000, 3)) @ rng.normal(size=(3, 3))
    z = (z - z.mean(0)) / z.std(0)
    c = np.corrcoef(z.T)
    # Wider where the density is lower, as neighbourhoods are.
    squares = 0.05 + 0.02 * np.sum(z**2, axis=1)

    def excess(part):
        """The loss by its expectation less that at the rows."""
        own, covariance = z[:, part], c[np.ix_(part, part)]

        def log_density(square):
            wide = covariance + np.multiply.outer(square, np.eye(len(part)))
            form = np.einsum("ni,nij,nj->n", own, np.linalg.inv(wide), own)
            return -(np.linalg.slogdet(wide)[1] + form) / 2

        lost = log_density(np.zeros(len(z))) - log_density(squares)
        return np.mean([_normal_loss(covariance, square) for square in squares] - lost)

    expected = excess([0, 1, 2]) - excess([0, 1]) - excess([2])
    with jax.enable_x64(True):
        variables = jnp.asarray(z[:, :2]), jnp.asarray(z[:, 2:])
        found = smoothing_loss(variables, MUTUAL, jnp.asarray(squares)).misfit
    assert abs(expected) > 0.01
    # Girko's shares are those of the true correlations up to d/n.
    np.testing.assert_allclose(found, expected, rtol=5e-3)


def test_intervals_reach_as_far_as_the_reference_does_not_fit():
    """Down, to zero at most, if the misfit is positive, and up anyway; the larger bias counts."""

    def ends(bias, misfit):
        interval = extended_interval(
            *map(jnp.array, (0.5, 0.0, bias, misfit)),
            None,
            jnp.array(-jnp.inf),
            0.9,
            least=0.0,
            largest=jnp.array(jnp.inf),
            resolved=jnp.array(True),
        )
        return tuple(map(float, interval))

    for bias, misfit, known in [
        (0.0, 0.25, (0.25, 0.75)),
        (0.0, -0.25, (0.5, 0.75)),
        (0.125, 0.25, (0.25, 0.75)),
        (0.25, 0.125, (0.375, 0.75)),
        (-0.25, 0.125, (0.25, 0.625)),
        (-1.0, 2.0, (0.0, 2.5)),
    ]:
        assert ends(bias, misfit) == known, (bias, misfit)


def test_influence_is_the_derivative_of_the_loss_in_a_share():
    """Of one row after the other, by differences, with correlations for products."""
    rng = np.random.default_rng(2)
    z = rng.normal(size=(12, 3)) @ rng.normal(size=(3, 3))
    z = (z - z.mean(0)) / z.std(0)
    radii = rng.uniform(0.2, 1.5, 12)

    def loss(shares):
        products = (z.T * shares) @ z
        scale = np.sqrt(np.diag(products))
        c = products / scale / scale[:, None]
        return np.mean([_loss_of_parts(c, square, 11, 1) for square in radii**2 / 3])

    step, known = 1e-4, []
    for i in range(12):
        change = step * (np.arange(12) == i)
        # Shares need not sum to one: the loss is a function of correlations.
        known.append((loss(1 / 12 + change) - loss(1 / 12 - change)) / (2 * step))
    with jax.enable_x64(True):
        variables = jnp.asarray(z[:, :2]), jnp.asarray(z[:, 2:])
        found = smoothing_loss(variables, MUTUAL, jnp.asarray(radii**2 / 3)).influence
    np.testing.assert_allclose(found, known, atol=1e-5)
    assert abs(np.mean(np.asarray(found))) < 1e-12


@pytest.mark.parametrize("radius", [0.3, 1.0, 2.0, 3.0])
def test_a_normal_smoothing_leaves_the_information_of_squares(radius):
    """Of a pair with correlation .2, by quadrature of E log P(x ± ρ, y ± ρ)/P(x ± ρ)P(y ± ρ)."""
    r, grid = 0.2, np.linspace(-6, 6, 241)
    x, noise = np.meshgrid(grid, grid)
    y, slope = r * x + np.sqrt(1 - r**2) * noise, np.sqrt(1 - r**2)
    weights = stats.norm.pdf(x) * stats.norm.pdf(noise)
    nodes, shares = np.polynomial.legendre.leggauss(24)
    within = lambda low, high: stats.norm.cdf(high) - stats.norm.cdf(low)
    inner = lambda u: within((y - radius - r * u) / slope, (y + radius - r * u) / slope)
    points = [x + radius * node for node in nodes]
    square = sum(
        radius * share * stats.norm.pdf(u) * inner(u)
        for u, share in zip(points, shares, strict=True)
    )
    sides = within(x - radius, x + radius) * within(y - radius, y + radius)
    shown = np.sum(weights * np.log(square / sides)) / np.sum(weights)
    variance = float(normal_variance(jnp.full(1, radius))[0])
    loss = _normal_loss(np.array([[1, r], [r, 1]]), variance) - 2 * _normal_loss(
        np.eye(1), variance
    )
    exact = -np.log(1 - r**2) / 2
    np.testing.assert_allclose(shown + loss, exact, rtol=0.02)


@pytest.mark.parametrize(
    ("size", "within", "across"),
    [
        (12, 0.0, 0.0),
        pytest.param(12, 0.8, 0.0, marks=pytest.mark.exhaustive),
        pytest.param(12, 0.0, 0.7, marks=pytest.mark.exhaustive),
    ],
)
def test_a_loss_is_the_population_s_however_many_features(size, within, across):
    """Of 40 rows of twice as many features; sample correlations would have .6 for zero."""
    n, d = 40, 2 * size
    block = (1 - within) * np.eye(size) + within
    covariance = np.block([[block, across * np.eye(size)], [across * np.eye(size), block]])
    known = _normal_loss(covariance, 1 / 3) - 2 * _normal_loss(block, 1 / 3)
    root = jnp.asarray(np.linalg.cholesky(covariance), jnp.float32)

    @jax.jit
    def loss(keys):
        def one(key):
            z = normal_scores(jax.random.normal(key, (n, d)) @ root.T)
            z = z / z.std(0)
            return smoothing_loss((z[:, :size], z[:, size:]), MUTUAL, jnp.full(1, 1 / 3)).values[0]

        return jax.lax.map(one, keys)

    found = np.asarray(loss(jax.random.split(jax.random.key(0), 200)))
    assert abs(found.mean() - known) < 4 * found.std() / np.sqrt(len(found)) + 0.02 * known


MEASURES = {
    "mutual": (information.mutual_information, 2),
    "conditional": (information.conditional_mutual_information, 3),
    "total": (information.total_correlation, 3),
    "interaction": (information.interaction_information, 3),
    "transfer": (information.transfer_entropy, 2),
}


@pytest.mark.parametrize(
    ("name", "n", "d"),
    [
        ("mutual", 50, 20),
        *(
            pytest.param(*case, marks=pytest.mark.exhaustive)
            for case in [
                ("mutual", 50, 30),
                ("mutual", 300, 64),
                ("conditional", 60, 12),
                ("total", 60, 12),
                ("interaction", 60, 12),
                ("transfer", 60, 12),
            ]
        ),
    ],
)
def test_independent_variables_of_many_features_have_no_information(name, n, d):
    function, count = MEASURES[name]

    @jax.jit
    def estimate(key):
        z = jax.random.normal(key, (count, n, d))
        found = function(*z)
        return found.value, *found.interval, found.diagnostics.resolved

    keys = jax.random.split(jax.random.key(3), 10)
    value, lower, upper, resolved = map(np.asarray, jax.lax.map(estimate, keys))
    assert abs(value.mean()) < 4 * value.std() / np.sqrt(10) + 0.05
    assert np.mean((lower <= 0) & (upper >= 0)) >= 0.8
    # As many features as rows determine no correlations, and so no upper limit. With fewer an
    # interval that is extrapolated in many dimensions may reach all that neighbours can show.
    assert count * d < n - 1 or not resolved.any()
    assert count * d > n / 3 or resolved.all()
    assert (np.isinf(upper) == ~resolved).all()


def test_constant_features_change_nothing_and_repeated_ones_little():
    rng = np.random.default_rng(4)
    x = rng.normal(size=(100, 3))
    y = 0.6 * x + 0.8 * rng.normal(size=(100, 3))
    plain = information.mutual_information(x, y)
    nothing = np.full((100, 5), 0.1)
    padded = information.mutual_information(np.hstack([x, nothing]), np.hstack([nothing, y]))
    np.testing.assert_allclose(padded.value, plain.value, atol=1e-5)
    np.testing.assert_allclose(padded.interval.lower, plain.interval.lower, atol=1e-4)
    assert padded.interval.upper < plain.interval.upper + 0.1
    twice = information.mutual_information(np.hstack([x, x]), np.hstack([y, y]))
    # Cubes smooth the mean of two copies less than one of them.
    assert abs(twice.value - plain.value) < plain.std_error
    assert twice.diagnostics.resolved


@pytest.mark.parametrize(
    "method",
    [REFERRED]
    + [
        pytest.param(method, marks=pytest.mark.exhaustive)
        for method in (
            information.KSG(),
            information.KSG(algorithm=2),
            information.MixedNeighbors(),
        )
    ],
)
def test_what_neighbours_do_not_resolve_has_no_upper_limit(method):
    """Functions of each other, and noise of less than the neighbours' distance.

    Only by ranks is an exponential as near a function as the identity: without them its estimate
    is lower, and the interval open all the same.
    """
    x, noise = np.random.default_rng(5).normal(size=(2, 200, 1))
    for y in (x, np.exp(x), x + 1e-4 * noise):
        found = information.mutual_information(x, y, method=method)
        assert not found.diagnostics.resolved
        assert found.interval.upper == np.inf
        assert found.interval.lower > 2.8
    # I = ½ log(1 + 100).
    found = information.mutual_information(x, x + 0.1 * noise, method=method)
    assert found.diagnostics.resolved
    assert found.interval.lower < np.log(101) / 2 < found.interval.upper < 4


@pytest.mark.exhaustive
def test_levels_that_determine_each_other_have_an_entropy():
    x = np.random.default_rng(6).integers(0, 5, size=(200, 1))
    found = information.mutual_information(x, x, method=information.MixedNeighbors())
    assert found.diagnostics.resolved
    assert abs(found.value - np.log(5)) < 3 * found.std_error + 0.02


def test_a_gaussian_reference_removes_the_bias_of_many_features():
    task = problems.two_pairs(3, 3)
    x, y = task.sample_pairs(jax.random.key(0), 600)
    referred = information.mutual_information(x, y)
    plain = information.mutual_information(x, y, method=information.KSG())
    assert abs(referred.value - task.kl) < 3 * referred.std_error
    assert plain.value < task.kl - 3 * plain.std_error
    # Its interval knows that: the value falls with the number of neighbours.
    assert plain.diagnostics.larger_neighborhoods < plain.value
    assert plain.interval.lower < task.kl < plain.interval.upper
    # The default is on ranks.
    mapped = information.mutual_information(jnp.exp(x), y**3).value
    np.testing.assert_allclose(mapped, referred.value, atol=1e-5)


@pytest.mark.exhaustive
def test_linear_dependence_of_twenty_features():
    """Each with one of the other variable, r = .6: I = 4.46, of which ρ²/3 leaves 12 % unseen."""
    rng = np.random.default_rng(7)
    x, noise = rng.normal(size=(2, 300, 20))
    found = information.mutual_information(x, 0.6 * x + 0.8 * noise)
    exact = -10 * np.log(1 - 0.36)
    assert abs(found.value - exact) < 0.08 * exact
    assert found.interval.lower < exact < found.interval.upper


def test_distances_from_the_centre_bound_the_information():
    """Those of Student's t have all of it; the neighbours in ten features see half."""
    task = problems.student_t(5, 5, 2.0)
    x, y = task.sample_pairs(jax.random.key(1), 600)
    found = information.mutual_information(x, y)
    assert found.value < 0.7 * task.kl
    assert abs(found.diagnostics.center_distances - task.kl) < 3 * found.std_error
    assert found.interval.lower < task.kl < found.interval.upper
    # One feature each has no such bound.
    one = information.mutual_information(x[:, :1], y[:, :1])
    assert jnp.isnan(one.diagnostics.center_distances)


def test_an_unknown_reference_is_refused():
    with pytest.raises(ValueError, match="reference must be"):
        information.KSG(reference="copula")
    with pytest.raises(ValueError, match="algorithm 2"):
        information.KSG(algorithm=2, reference="gaussian_copula")


@pytest.mark.exhaustive
@pytest.mark.parametrize("method", [REFERRED, information.KSG(), information.MixedNeighbors()])
def test_intervals_cover_where_neighbours_are_biased(method):
    """90 % intervals, on average over tasks of strong dependence, heavy tails and edges."""
    tasks = (
        problems.binormal(),
        problems.two_pairs(3, 3),
        problems.student_t(1, 1, 1.0),
        problems.student_t(2, 2, 2.0),
        problems.student_t(5, 5, 2.0),
        problems.additive_uniform(0.1),
    )
    shares = []
    for task in tasks:

        @jax.jit
        def covers(key, task=task):
            x, y = task.sample_pairs(key, 1000)
            ends = information.mutual_information(
                x, y, method=method, confidence_level=0.9
            ).interval
            return (ends.lower <= task.kl) & (task.kl <= ends.upper)

        shares.append(jax.lax.map(covers, jax.random.split(jax.random.key(2), 20)).mean())
    assert np.mean(shares) >= 0.85


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("task", "n", "repetitions"),
    [
        (problems.additive_uniform(0.1), 1000, 60),
        (problems.two_pairs(2, 2), 10_000, 40),
        (problems.two_pairs(3, 3), 10_000, 40),
    ],
    ids=["narrow band", "two pairs of four", "two pairs of six"],
)
def test_intervals_cover_where_the_reference_corrects_too_much_or_too_little(task, n, repetitions):
    """Each by itself, 90 % intervals; from extrapolation alone they cover 75 to 88 %."""

    @jax.jit
    def covers(key):
        ends = information.mutual_information(
            *task.sample_pairs(key, n), confidence_level=0.9
        ).interval
        return (ends.lower <= task.kl) & (task.kl <= ends.upper)

    found = jax.lax.map(covers, jax.random.split(jax.random.key(4), repetitions))
    assert found.mean() >= 0.9
