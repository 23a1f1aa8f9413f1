"""Tests of independence: exact p-values, levels, power, formulas."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from divjax import kernels
from divjax.core.types import Status
from divjax.information import distance_covariance_test, hsic, hsic_test
from divjax.information.low_rank_kernels import low_rank_factor
from divjax.information.pair_sums import kernel_variable

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
OPTIONS = {"kernel_x": kernels.Gaussian(1.0), "kernel_y": kernels.Gaussian(1.0)}


def gaussian(x):
    return np.exp(-((x[:, None] - x) ** 2).sum(axis=2) / 2)


def distances(x):
    return np.linalg.norm(x[:, None] - x, axis=2)


def center(k):
    return k - k.mean(axis=0) - k.mean(axis=1)[:, None] + k.mean()


def exact_p(k, l):
    """The share of all n! orders whose statistic is as large."""
    k, l = center(k), center(l)
    orders = [list(order) for order in itertools.permutations(range(len(k)))]
    values = np.array([(k * l[order][:, order]).mean() for order in orders])
    return (values >= values[0] - 1e-12).mean(), values[0]


@pytest.mark.parametrize("test", ["hsic", "low rank", "distance"])
def test_the_p_value_is_that_of_all_orders(test):
    """Within the Monte Carlo error of 999 of the 720, with ties among them."""
    x = np.array([0.0, 0.0, 1.0, 2.0, 3.0, 3.0])[:, None]
    y = np.array([0.0, 1.0, 1.0, 1.5, 4.0, 2.0])[:, None]
    if test == "distance":
        truth, statistic = exact_p(distances(x), distances(y))
        found = distance_covariance_test(KEY, x, y)
    else:
        truth, statistic = exact_p(gaussian(x), gaussian(y))
        found = hsic_test(KEY, x, y, rank=6 if test == "low rank" else None, **OPTIONS)
    np.testing.assert_allclose(found.statistic, statistic, rtol=1e-4)
    standard_error = np.sqrt(truth * (1 - truth) / 999)
    assert abs(float(found.p_value) - truth) < 3 * standard_error + 1e-3


TESTS = {
    "hsic": lambda key, x, y: hsic_test(key, x, y, num_permutations=19),
    "rank": lambda key, x, y: hsic_test(key, x, y, num_permutations=19, rank=4),
    "distance": lambda key, x, y: distance_covariance_test(key, x, y, num_permutations=19),
}


def p_values(test, repetitions, n=12):
    def once(key):
        x_key, y_key, own = jax.random.split(key, 3)
        x = jnp.round(jax.random.normal(x_key, (n, 1)), 1)
        return TESTS[test](own, x, jax.random.normal(y_key, (n, 1))).p_value

    keys = jax.random.split(jax.random.key(7), repetitions)
    return np.asarray(jax.jit(lambda keys: jax.lax.map(once, keys, batch_size=50))(keys))


def assert_exact(values):
    """P(p ≤ k/20) = k/20 for continuous statistics."""
    for level in (0.05, 0.1, 0.5):
        standard_error = np.sqrt(level * (1 - level) / len(values))
        assert abs((values <= level + 1e-6).mean() - level) < 3 * standard_error


@pytest.mark.parametrize("test", ["hsic", "distance"])
def test_the_level_is_exact(test):
    assert_exact(p_values(test, 200))


@pytest.mark.exhaustive
@pytest.mark.parametrize("test", TESTS)
def test_the_level_is_exact_in_a_thousand_repetitions(test):
    assert_exact(p_values(test, 1000, n=30))


def test_the_factor_is_that_of_the_matrix_and_follows_its_rows():
    x = RNG.normal(size=(40, 2)).astype(np.float32)
    variable = lambda x: kernel_variable(kernels.Gaussian(1.0), jnp.asarray(x), None)
    factor = low_rank_factor(variable(x), 12)
    rest = gaussian(x) - np.asarray(factor, float) @ np.asarray(factor, float).T
    # Positive semidefinite, and not much larger than the best approximation of this rank.
    assert np.linalg.eigvalsh(rest).min() > -1e-5
    best = np.linalg.eigvalsh(gaussian(x))[:-12].sum()
    assert best - 1e-5 < np.trace(rest) < 3 * best
    order = RNG.permutation(40)
    np.testing.assert_allclose(low_rank_factor(variable(x[order]), 12), factor[order], atol=1e-5)


@pytest.mark.exhaustive
def test_the_statistic_of_low_rank_is_within_its_bound():
    x = RNG.normal(size=(60, 2))
    y = x[:, :1] + RNG.normal(size=(60, 1))
    truth = float(hsic(x, y, **OPTIONS))
    for rank in (5, 20):
        found = hsic_test(KEY, x, y, rank=rank, num_permutations=1, **OPTIONS).statistic
        errors = []
        for v in (x, y):
            variable = kernel_variable(kernels.Gaussian(1.0), jnp.asarray(v, jnp.float32), None)
            factor = np.asarray(low_rank_factor(variable, rank), float)
            errors.append(1 - (factor**2).sum() / 60)
        assert -1e-6 < truth - float(found) < sum(errors) + 1e-6
    np.testing.assert_allclose(found, truth, rtol=1e-2)


def gretton(k, l):
    """Gretton et al. 2008, equations 6 to 9, as in the authors' code but for the variance.

    Its estimate there is the mean square of the entries of both centred matrices' product; here it
    is, as in their theorem 4, the product of both mean squares.
    """
    n = len(k)
    off = ~np.eye(n, dtype=bool)
    statistic = (center(k) * center(l)).mean()
    mean = (1 + k[off].mean() * l[off].mean() - k[off].mean() - l[off].mean()) / n
    squares = (center(k)[off] ** 2).mean() * (center(l)[off] ** 2).mean()
    variance = 2 * (n - 4) * (n - 5) / (n * (n - 1) * (n - 2) * (n - 3)) * squares
    return scipy.stats.gamma.sf(statistic, mean**2 / variance, scale=variance / mean)


def test_the_gamma_distribution():
    x = RNG.normal(size=(50, 1))
    for y in (RNG.normal(size=(50, 1)), x + RNG.normal(size=(50, 1))):
        found = hsic_test(None, x, y, null="gamma", **OPTIONS)
        np.testing.assert_allclose(found.p_value, gretton(gaussian(x), gaussian(y)), rtol=1e-3)
        assert found.null.shape == (0,)
        assert found.converged


@pytest.mark.exhaustive
def test_the_gamma_distribution_has_nearly_the_level():
    z = jax.random.normal(jax.random.key(1), (300, 2, 60, 1))
    test = jax.jit(jax.vmap(lambda z: hsic_test(None, z[0], z[1], null="gamma", **OPTIONS).p_value))
    rate = (np.asarray(test(z)) < 0.1).mean()
    assert abs(rate - 0.1) < 3 * np.sqrt(0.09 / 300)


def test_the_gamma_distribution_says_where_hardly_a_row_varies():
    """An indicator of one row has a statistic of its own, far from gamma."""
    y = np.random.default_rng(0).normal(size=(60, 1))
    test = lambda x, y: hsic_test(None, x, y, null="gamma")
    for rows, suitable in ((1, False), (2, False), (10, True)):
        x = (np.arange(60) < rows).astype(float)[:, None]
        assert test(x, y).converged == test(y, x).converged == suitable
    assert not test(x, x * (np.arange(60) < 1)[:, None]).converged
    assert test(0 * x, y).converged


def test_the_chi_squared_distribution():
    """hyppo 0.5.2's fast distance correlation test."""
    rng = np.random.default_rng(42)
    x = rng.normal(size=(30, 2))
    y = np.sin(x[:, :1]) + rng.normal(size=(30, 1)) / 2
    with jax.enable_x64(True):
        found = distance_covariance_test(None, x[:, :1], y, null="chi_squared")
    np.testing.assert_allclose(found.statistic, 0.6944532473313991, rtol=1e-9)
    np.testing.assert_allclose(found.p_value, 2.9734760555784715e-06, rtol=1e-6)


@pytest.mark.exhaustive
def test_the_chi_squared_distribution_has_at_most_the_level():
    z = jax.random.normal(jax.random.key(2), (300, 2, 50, 1))
    test = lambda z: distance_covariance_test(None, z[0], z[1], null="chi_squared").p_value
    rate = (np.asarray(jax.jit(jax.vmap(test))(z)) < 0.05).mean()
    assert rate < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 300)


def test_dependence_is_found():
    """Uncorrelated, of 20 rows."""
    x = np.linspace(-1, 1, 20)[:, None]
    for test in every_test(x, x**2 + 0.1 * RNG.normal(size=(20, 1))):
        assert float(test.p_value) <= 0.101


def every_test(x, y):
    """Of (20, 1) rows each, so that each is compiled once."""
    options = {"num_permutations": 9}
    return (
        hsic_test(KEY, x, y, **options),
        hsic_test(KEY, x, y, rank=3, **options),
        hsic_test(None, x, y, null="gamma"),
        distance_covariance_test(KEY, x, y, **options),
        distance_covariance_test(None, x, y, null="chi_squared"),
    )


@pytest.mark.exhaustive
def test_sorting_gives_the_same_test():
    """From 1024 rows on; a second column of zeros leaves only the matrices."""
    x = RNG.normal(size=(1100, 1))
    y = 0.05 * x + RNG.normal(size=(1100, 1))
    options = {"num_permutations": 9}
    sorting = distance_covariance_test(KEY, x, y, **options)
    matrices = distance_covariance_test(KEY, np.hstack([x, 0 * x]), y, **options)
    np.testing.assert_allclose(sorting.null, matrices.null, rtol=1e-3)
    assert float(sorting.p_value) == float(matrices.p_value)


@pytest.mark.exhaustive
def test_a_large_matrix_is_computed_again(monkeypatch):
    monkeypatch.setattr("divjax.information.independence_tests._HELD_ROWS", 10)
    x = RNG.normal(size=(31, 1))
    y = x + RNG.normal(size=(31, 1))
    blocks = hsic_test(KEY, x, y, num_permutations=9, **OPTIONS)
    monkeypatch.undo()
    jax.clear_caches()
    held = hsic_test(KEY, x, y, num_permutations=9, **OPTIONS)
    np.testing.assert_allclose(blocks.null, held.null, rtol=1e-4)


def test_strata_and_groups():
    """Two sites that differ in both variables, which are independent within each."""
    rng = np.random.default_rng(3)
    site = np.repeat([0, 1], 30)
    x, y = rng.normal(size=(2, 60, 1)) + 4 * site[:, None]
    within = distance_covariance_test(KEY, x, y, num_permutations=99, strata=site)
    assert float(within.p_value) > 0.1
    # Without the sites it would be found: the statistic is beyond any of independent pairs.
    assert float(within.statistic) > 0.5
    # Each subject measured ten times: the rows are no 100 independent pairs.
    subject = np.repeat(np.arange(10), 10)
    x, y = (np.repeat(rng.normal(size=10), 10)[:, None] for _ in range(2))
    subjects = distance_covariance_test(KEY, x, y, num_permutations=99, groups=subject)
    truth, _ = _subject_p(x[::10], y[::10])
    assert abs(float(subjects.p_value) - truth) < 3 * np.sqrt(truth * (1 - truth) / 99) + 0.01


def _subject_p(x, y):
    """By 2000 random orders of the subjects."""
    k, l = center(distances(x)), center(distances(y))
    orders = [RNG.permutation(len(x)) for _ in range(2000)]
    values = np.array([(k * l[order][:, order]).mean() for order in orders])
    return (values >= (k * l).mean() - 1e-12).mean(), values


def test_a_missing_number_is_no_evidence():
    x, y = RNG.normal(size=(2, 20, 1))
    x[3] = np.nan
    for test in every_test(x, y):
        assert np.isnan(test.p_value)
        assert test.status == Status.NOT_FINITE


def test_nothing_speaks_against_a_constant():
    x, constant = RNG.normal(size=(20, 1)), np.full((20, 1), 0.3)
    *tests, bounded = every_test(x, constant)
    for test in tests:
        assert float(test.p_value) == 1
    np.testing.assert_allclose(bounded.p_value, scipy.stats.chi2.sf(1, 1), rtol=1e-5)


def test_what_does_not_fit_is_refused():
    x, y = RNG.normal(size=(2, 20, 1))
    with pytest.raises(ValueError, match="null must be one of permutations, gamma"):
        hsic_test(KEY, x, y, null="normal")
    with pytest.raises(ValueError, match="at least 6 rows for this test; got 5"):
        hsic_test(None, x[:5], y[:5], null="gamma")
    with pytest.raises(ValueError, match="strata need permutations"):
        distance_covariance_test(None, x, y, null="chi_squared", strata=np.zeros(20, int))
    with pytest.raises(ValueError, match=r"strata must be a vector of shape \(20,\)"):
        hsic_test(KEY, x, y, strata=np.zeros(3, int))
    with pytest.raises(ValueError, match="key must be one typed key"):
        hsic_test(None, x, y)
    with pytest.raises(ValueError, match="rank must be an integer"):
        hsic_test(KEY, x, y, rank=0)


def test_ties_of_two_values_on_the_line():
    """Of few ones among many zeros: the hypergeometric distribution of joint ones."""
    n, ones, others, joint = 2000, 5, 900, 1
    rows = jnp.arange(n)[:, None]
    x, y = rows < ones, (rows >= ones - joint) & (rows < ones - joint + others)
    num_permutations = 199
    found = distance_covariance_test(
        jax.random.key(0), x * 1.0, y * 1.0, num_permutations=num_permutations
    )
    counts = np.arange(ones + 1)
    excess = np.abs(counts - ones * others / n)
    exact = scipy.stats.hypergeom(n, others, ones).pmf(counts)[excess >= excess[joint]].sum()
    assert abs(found.p_value - exact) < 3 * np.sqrt(exact * (1 - exact) / num_permutations)
