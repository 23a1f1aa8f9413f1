"""Permutation tests by kernels, against the enumeration of all relabellings and known levels."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import cdist
from scipy.stats import energy_distance, hypergeom

from divjax import discrepancy, kernels
from divjax.core.types import Status
from divjax.discrepancy import two_sample_tests
from divjax.discrepancy.quadratic_forms import TwoValued, quadratic_forms

KEY = jax.random.key(0)
GAUSSIAN = kernels.Gaussian(bandwidth=1.5)


def gram(rows, name):
    distances = cdist(rows, rows)
    return -distances if name == "energy" else np.exp(-(distances**2) / (2 * 1.5**2))


TESTS = {
    "mmd": lambda key, x, y, **options: discrepancy.mmd_test(key, x, y, kernel=GAUSSIAN, **options),
    "energy": discrepancy.energy_test,
}


def squared_mmd(matrix, of_x):
    of_y = np.setdiff1d(np.arange(len(matrix)), of_x)
    mean = lambda rows, columns: matrix[np.ix_(rows, columns)].mean()
    return mean(of_x, of_x) + mean(of_y, of_y) - 2 * mean(of_x, of_y)


@pytest.mark.parametrize("d", [1, 2, 12])
@pytest.mark.parametrize("name", TESTS)
def test_the_enumeration_of_all_relabellings(name, d):
    """The statistic, every one of the null's, and the p-value, by the definition in NumPy."""
    rng = np.random.default_rng(d)
    x, y = rng.normal(size=(4, d)), rng.normal(size=(5, d)) + 1.2 / d**0.5
    matrix = gram(np.concatenate([x, y]), name)
    every = [squared_mmd(matrix, of_x) for of_x in itertools.combinations(range(9), 4)]
    observed = every[0]
    exact = np.mean(np.array(every) >= observed - 1e-9)
    num = 4000
    test = TESTS[name](KEY, x, y, num_permutations=num)
    np.testing.assert_allclose(test.statistic, observed, rtol=1e-4)
    nearest = np.abs(np.asarray(test.null)[:, None] - np.array(every)).min(axis=1)
    assert nearest.max() < 1e-5
    # Every relabelling is drawn, each as often as the others.
    np.testing.assert_allclose(
        np.mean(test.null), np.mean(every), atol=5 * np.std(every) / num**0.5
    )
    assert abs(test.p_value - exact) < 4 * np.sqrt(exact * (1 - exact) / num) + 1 / num


@pytest.mark.parametrize("name", TESTS)
def test_the_level_is_exact(name):
    """With 19 permutations p is at most .05 or .1 in just these shares of repetitions."""
    num = 1000

    def p_value(key):
        x_key, y_key, key = jax.random.split(key, 3)
        x, y = jax.random.normal(x_key, (6, 2)), jax.random.normal(y_key, (9, 2))
        return TESTS[name](key, x, y, num_permutations=19).p_value

    p_values = np.asarray(jax.jit(jax.vmap(p_value))(jax.random.split(KEY, num)))
    for level in (0.05, 0.1):
        share = np.mean(p_values <= level + 1e-6)
        assert abs(share - level) < 3 * np.sqrt(level * (1 - level) / num)


def test_the_energy_distance_on_a_line():
    """By sorting as by pairs, and SciPy's, of which it is the square."""
    rng = np.random.default_rng(1)
    x, y = rng.integers(0, 9, (30, 1)).astype(float), rng.normal(size=(20, 1)) + 4
    test = discrepancy.energy_test(KEY, x, y)
    np.testing.assert_allclose(test.statistic, energy_distance(x[:, 0], y[:, 0]) ** 2, rtol=1e-5)
    by_pairs = discrepancy.mmd_test(KEY, x, y, kernel=kernels.Energy())
    np.testing.assert_allclose(test.null, by_pairs.null, atol=1e-5)
    np.testing.assert_allclose(test.p_value, by_pairs.p_value, atol=1e-6)


@pytest.mark.parametrize("d", [3, 12])
def test_a_matrix_in_tiles(d, monkeypatch):
    """More rows than a tile takes, against NumPy's product."""
    monkeypatch.setattr("divjax.core.pairwise.BLOCK_ENTRIES_CPU", 400)
    rng = np.random.default_rng(2)
    points = rng.normal(size=(53, d))
    labels = rng.random((7, 53)) < 0.4
    vectors = np.where(labels, 0.5, -0.25)
    found = quadratic_forms(
        lambda tile, contract: contract(
            GAUSSIAN.radial(jnp.sum((tile.rows[:, None] - tile.columns) ** 2, axis=2))[0]
        ),
        jnp.asarray(points, jnp.float32),
        TwoValued(jnp.asarray(labels), jnp.full(7, 0.5), jnp.full(7, -0.25)),
    )
    expected = np.einsum("pi,ij,pj->p", vectors, gram(points, "mmd"), vectors)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_ties_count_against_the_statistic():
    """Of two values 0 and 1, in the same numbers in both samples, nothing is ever smaller."""
    x = np.tile([[0.0], [1.0]], (100, 1))
    for name, test in TESTS.items():
        assert test(KEY, x, x[:160]).p_value == 1, name
        # And of equal rows.
        assert test(KEY, np.full((7, 2), 0.1), np.full((3, 2), 0.1)).p_value == 1, name


def test_the_statistic_is_the_discrepancy():
    """With the bandwidth of the pooled rows; also for a kernel that depends on where they are."""
    x, y = jax.random.normal(KEY, (9, 2)) + 3, jax.random.normal(KEY, (7, 2)) + 2
    for kernel in (kernels.Gaussian(), kernels.Polynomial(degree=2)):
        test = discrepancy.mmd_test(KEY, x, y, kernel=kernel, num_permutations=19)
        expected = discrepancy.mmd(x, y, kernel=kernel)
        np.testing.assert_allclose(test.statistic, expected, rtol=1e-4)
    energy = discrepancy.energy_test(KEY, x, y, num_permutations=19)
    np.testing.assert_allclose(energy.statistic, discrepancy.energy_distance(x, y), rtol=1e-4)


def test_strata_and_groups():
    """Rows trade places within their stratum, and groups as one."""
    rng = np.random.default_rng(4)
    matrix = lambda x, y: gram(np.concatenate([x, y]), "mmd")
    x, y = rng.normal(size=(3, 2)), rng.normal(size=(3, 2))
    strata = ([0, 0, 1], [0, 1, 1])
    test = discrepancy.mmd_test(KEY, x, y, kernel=GAUSSIAN, strata=strata)
    # Two of the rows 0, 1, 3 and one of the rows 2, 4, 5 are those of x.
    allowed = [
        squared_mmd(matrix(x, y), [*pair, one])
        for pair in itertools.combinations([0, 1, 3], 2)
        for one in (2, 4, 5)
    ]
    apart = np.abs(np.asarray(test.null)[:, None] - np.array(allowed))
    assert apart.min(axis=1).max() < 1e-6
    assert apart.min(axis=0).max() < 1e-6
    # Groups of one, two and three rows: x has one of the three groups.
    groups = ([7, 7, 7], [8, 9, 9])
    test = discrepancy.mmd_test(KEY, x, y, kernel=GAUSSIAN, groups=groups)
    allowed = [squared_mmd(matrix(x, y), of_x) for of_x in ([0, 1, 2], [3], [4, 5])]
    apart = np.abs(np.asarray(test.null)[:, None] - np.array(allowed))
    assert apart.min(axis=1).max() < 1e-6
    assert apart.min(axis=0).max() < 1e-6


@pytest.mark.parametrize("d", [1, 2])
@pytest.mark.parametrize("name", TESTS)
def test_what_is_not_finite_has_no_p_value(name, d):
    x, y = np.zeros((5, d)), np.ones((4, d))
    for value in (np.nan, np.inf, -np.inf):
        y[2, 0] = value
        test = TESTS[name](KEY, x, y, num_permutations=9)
        assert np.isnan(test.p_value)
        assert test.status == Status.NOT_FINITE


def test_what_is_refused():
    x, y = np.zeros((5, 2)), np.ones((4, 2))
    for test in TESTS.values():
        with pytest.raises(ValueError, match=r"x must have at least two rows"):
            test(KEY, x[:1], y)
        with pytest.raises(ValueError, match=r"y must have at least two rows"):
            test(KEY, x, y[:1])
        with pytest.raises(ValueError, match=r"same number of features; got 2 and 1"):
            test(KEY, x, y[:, :1])
        with pytest.raises(ValueError, match=r"num_permutations must be an integer of at least 1"):
            test(KEY, x, y, num_permutations=0)
        with pytest.raises(ValueError, match=r"key must be one typed key"):
            test(0, x, y)
        with pytest.raises(ValueError, match=r"a group with rows in both"):
            test(KEY, x, y, groups=(np.zeros(5, int), np.zeros(4, int)))
    with pytest.raises(ValueError, match=r"kernel must be a kernel"):
        discrepancy.mmd_test(KEY, x, y, kernel=lambda x, y: x @ y.T)


def test_doubles_far_from_zero():
    """NumPy's float64 is centred before it is rounded: the same p-value at an offset of 10⁸."""
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(12, 3)), rng.normal(size=(9, 3)) + 1
    for test in TESTS.values():
        near, far = test(KEY, x, y), test(KEY, x + 1e8, y + 1e8)
        np.testing.assert_allclose(far.statistic, near.statistic, rtol=1e-4)
        assert far.p_value == near.p_value


@pytest.mark.parametrize(("sizes", "ones"), [((200, 100), (3, 3)), ((90, 270), (2, 4))])
def test_differences_of_opposite_sign_are_a_tie(sizes, ones):
    """Of two values: the hypergeometric distribution of how many ones are in x."""
    x, y = (jnp.arange(n)[:, None] < k for n, k in zip(sizes, ones, strict=True))
    num_permutations, total, rows = 999, sum(ones), sum(sizes)
    found = discrepancy.energy_test(KEY, x * 1.0, y * 1.0, num_permutations=num_permutations)
    in_x = np.arange(total + 1)
    difference = np.abs(in_x * rows - total * sizes[0])
    as_far = difference >= difference[ones[0]]
    exact = hypergeom(rows, total, sizes[0]).pmf(in_x)[as_far].sum()
    assert abs(found.p_value - exact) <= 1e-6 + 3 * np.sqrt(
        exact * abs(1 - exact) / num_permutations
    )


def test_a_difference_of_products_beyond_the_integers():
    """Of counts of half a million rows, whose products exceed 32 bits."""
    rng = np.random.default_rng(0)
    n, m = 300_001, 200_003
    of_x, of_y = rng.integers(0, n, 20), rng.integers(0, m, 20)
    close = np.arange(1, 21) * 10_000
    of_x, of_y = np.append(of_x, close), np.append(of_y, close * m // n)
    as_float = lambda size: jnp.array([[float(size)]], jnp.float32)
    found = two_sample_tests._difference_of_products(
        jnp.asarray(of_x)[None], as_float(m), jnp.asarray(of_y)[None], as_float(n)
    )
    np.testing.assert_allclose(found[0], of_x * m - of_y * n, rtol=3e-7)
