"""The columns' own divergence, against closed forms and quadrature."""

import itertools

import numpy as np
import pytest
from scipy import integrate, special, stats

from divjax.tables.column_tests import _kolmogorov_smirnov, _level_test, _level_tests
from divjax.tables.columns import frequencies_js, univariate_js


def test_univariate_js_of_two_bernoullis():
    """Shares .2 and .6: JS = h(.4) − (h(.2) + h(.6))/2 = 0.1245 bits; no difference, no bits."""
    rng = np.random.default_rng(0)

    def h(x):
        return stats.entropy([x, 1 - x], base=2)

    p, q = (rng.random((2, 20_000, 1)) < np.array([0.2, 0.6])[:, None, None]).astype(float)
    value, error = univariate_js(rng, p, q)
    assert abs(value - (h(0.4) - (h(0.2) + h(0.6)) / 2)) < 4 * error
    assert 0.001 < error < 0.005


@pytest.mark.parametrize("encoded", [True, False])
def test_js_of_disjoint_levels_is_one_bit(encoded):
    """15 rare levels a side, as indicators and as numbers: less what half a row a level costs."""
    rng = np.random.default_rng(0)
    p, q = rng.integers(15, size=(2, 1500)) + np.array([[0], [15]])
    if encoded:
        p, q = (np.eye(30)[part][:, 1:] for part in (p, q))
    else:
        p, q = p[:, None], q[:, None]
    value, error = univariate_js(rng, p, q)
    assert 1 - np.log2(1 + 0.5 / 60) - 4 * error < value <= 1


def test_js_of_levels_known_by_their_frequencies():
    """A third of the rows in 200 levels of their own, the others in one level: ⅓ bit, less ..."""
    rng = np.random.default_rng(0)
    n = 20_000
    own = rng.integers(200, size=(2, n)) + np.array([[1], [201]])
    p, q = np.where(rng.random((2, n)) < 1 / 3, own, 0)
    value, error = frequencies_js(rng, p, q)
    assert abs(value - 1 / 3) < 4 * error + 0.01
    assert error < 0.01


def test_a_repeated_number_is_a_bin_of_its_own():
    """2 % of q are −9999: JS of shares 0 and .02 on that value is at least .0099 bits."""
    rng = np.random.default_rng(0)
    p, q = rng.normal(size=(2, 20_000, 1))
    q[rng.random(20_000) < 0.02] = -9999
    value, error = univariate_js(rng, p, q)
    m = (0.0 + 0.02) / 2
    h = lambda x: stats.entropy([x, 1 - x], base=2)
    assert abs(value - (h(m) - h(0.02) / 2)) < 4 * error
    zero = np.where(rng.random((2, 20_000, 1)) < 0.9, 0, 1 + rng.random((2, 20_000, 1)))
    value, error = univariate_js(rng, zero[0], -zero[1])
    assert abs(value - 0.1) < 4 * error + 0.01


def test_one_typing_error_moves_one_row():
    rng = np.random.default_rng(1)
    p, q = rng.normal(size=(2, 1000, 1)) + np.array([0, 1.0])[:, None, None]
    typed = p.copy()
    typed[0] = 1e9
    clean, wrong = (univariate_js(np.random.default_rng(0), each, q) for each in (p, typed))
    assert abs(wrong[0] - clean[0]) < 0.005


@pytest.mark.parametrize("count", [100, 300, 2000])
def test_univariate_js_of_one_distribution_is_zero_within_its_errors(count):
    rng = np.random.default_rng(count)
    pairs = rng.normal(size=(60, 2, count, 1))
    values, errors = np.array([univariate_js(rng, *pair) for pair in pairs]).T
    assert np.mean(np.abs(values) <= 2 * errors) > 0.9
    assert np.mean(values) < 0


def test_univariate_js_of_two_normals_a_shift_apart():
    rng = np.random.default_rng(1)

    def integrand(x):
        density, other = stats.norm.pdf(x), stats.norm.pdf(x - 1)
        return density * np.log2(2 * density / (density + other))

    truth = integrate.quad(integrand, -12, 13)[0]
    p, q = rng.normal(size=(2, 20_000, 1)) + np.array([0, 1.0])[:, None, None]
    value, error = univariate_js(rng, p, q)
    assert abs(value - truth) < 4 * error + 0.002  # bins lose a little


def rates(p_values, weights=None):
    """The probability of each p-value or a smaller one, where these are all that there are."""
    levels, place = np.unique(np.round(p_values, 12), return_inverse=True)
    shares = np.bincount(place, weights) / (len(place) if weights is None else np.sum(weights))
    return levels, np.cumsum(shares)


@pytest.mark.parametrize("sizes", [(3, 3), (4, 4), (10, 2), (2, 10)])
def test_numbers_of_few_rows_are_tested_exactly(sizes):
    """Over all ways to divide the ranks, no p-value is undercut more often than it says."""
    ranks = np.arange(float(sum(sizes)))
    splits = [list(rows) for rows in itertools.combinations(range(len(ranks)), sizes[0])]
    found = [_kolmogorov_smirnov(ranks[rows], np.delete(ranks, rows)) for rows in splits]
    levels, shares = rates(found)
    np.testing.assert_allclose(shares, levels)  # without ties the test is exact, too
    extreme = 2 / len(splits)  # all of the one table below the other
    assert levels[0] == pytest.approx(extreme)
    # Equal values can only make it more cautious.
    levels, shares = rates(
        [_kolmogorov_smirnov(ranks[r] // 2, np.delete(ranks, r) // 2) for r in splits]
    )
    assert (shares <= levels + 1e-9).all()


def test_numbers_of_twenty_rows_keep_the_level():
    rng = np.random.default_rng(0)
    first = rng.permuted(np.tile(np.arange(40) < 20, (20_000, 1)), axis=1)
    distances = np.abs(np.cumsum(np.where(first, 1, -1), axis=1)).max(axis=1)
    # A pair of each distance k/20: the second sample lies k places to the right.
    p_values = np.array(
        [
            1.0,
            *(_kolmogorov_smirnov(np.arange(20.0), np.arange(20) + k - 0.5) for k in range(1, 21)),
        ]
    )
    for level in (0.001, 0.01, 0.05):
        rate = np.mean(p_values[distances] <= level)
        assert rate <= level + 3 * np.sqrt(level / 20_000)
    assert p_values[20] == pytest.approx(2 / special.comb(40, 20))
    # No distance of five against five is smaller, though rounding makes its sum more than one.
    assert _kolmogorov_smirnov(np.arange(5.0), np.arange(5) + 0.1) == 1


@pytest.mark.parametrize(
    ("totals", "n"), [((3, 3), 3), ((6, 6), 10), ((40, 80_000), 20), ((500, 9500), 100)]
)
def test_two_levels_are_tested_exactly(totals, n):
    """Given the pooled counts, those of the smaller table are hypergeometric."""
    counts = np.arange(max(0, n - totals[1]), min(n, totals[0]) + 1)
    weights = stats.hypergeom.pmf(counts, sum(totals), totals[0], n)
    levels = lambda k: np.repeat([0, 1], k)
    found = [
        _level_test(levels([k, n - k]), levels([totals[0] - k, totals[1] - n + k])) for k in counts
    ]
    p_values, shares = rates(found, weights)
    assert (shares <= p_values + 1e-9).all()
    # It rejects where it can.
    assert shares[0] == pytest.approx(p_values[0], abs=1e-9)


def test_several_levels_in_a_small_table_keep_the_level():
    """Thirty rows against three thousand: χ² alone calls more than 2 of 1000 different at .001."""
    rng, totals = np.random.default_rng(0), np.array([530, 530, 1970])
    counts = rng.multivariate_hypergeometric(totals, 30, size=6000)
    counts, times = np.unique(counts, axis=0, return_counts=True)
    of_q = [np.repeat(np.arange(3), totals - own) for own in counts]
    found = np.array(
        [_level_test(np.repeat(np.arange(3), own), q) for own, q in zip(counts, of_q, strict=True)]
    )
    for level in (0.001, 0.01, 0.05):
        assert times[found <= level].sum() / 6000 <= level + 3 * np.sqrt(level / 6000)
    assert _level_test(np.repeat([0, 1, 2], [20, 5, 5]), of_q[0]) < 1e-5


def test_rare_levels_of_their_own_are_told_apart_and_keep_the_level():
    """Fifty levels a side, each expected once: none is frequent, and no two rows agree."""
    rng = np.random.default_rng(0)
    p, q = rng.integers(50, size=(2, 120)) + np.array([[0], [50]])
    assert min(_level_tests(p, q)) < 1e-4
    assert _level_tests(p % 2, q % 2) == [_level_test(p % 2, q % 2)]
    same = [_level_tests(*rng.integers(50, size=(2, 120)))[-1] for _ in range(300)]
    for level in (0.02, 0.1, 0.5):
        assert np.mean(np.array(same) <= level) < level + 3 * np.sqrt(level * (1 - level) / 300)
