"""The columns' own divergence, against closed forms and quadrature."""

import numpy as np
import pytest
from scipy import integrate, stats

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
