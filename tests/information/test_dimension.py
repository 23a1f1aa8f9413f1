"""Intrinsic dimension against brute force, known sets and repeated sampling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse.csgraph
import scipy.spatial.distance

from divjax.information import dimension


def cube(seed, n, d, features):
    """Uniform rows of a d-dimensional cube in more features."""
    x = np.zeros((n, features))
    x[:, :d] = np.random.default_rng(seed).uniform(size=(n, d))
    return x


def sorted_distances(x):
    distances = scipy.spatial.distance.cdist(x, x)
    np.fill_diagonal(distances, np.inf)
    return np.sort(distances, axis=1)


def two_nn_by_hand(x, discard):
    """The slope of −log(1 − i/n) against log μ_(i), through the origin."""
    nearest = sorted_distances(x)
    log_ratio = np.sort(np.log(nearest[:, 1] / nearest[:, 0]))[: int(len(x) * (1 - discard))]
    height = -np.log(1 - np.arange(1, len(log_ratio) + 1) / len(x))
    return np.linalg.lstsq(log_ratio[:, None], height, rcond=None)[0][0]


@pytest.mark.parametrize("discard", [0.1, 0.35])
def test_two_nn_is_the_least_squares_line(discard):
    x = cube(0, 60, 3, 12)
    with jax.enable_x64(True):
        estimate = dimension.two_nn(x, discard=discard)
    np.testing.assert_allclose(estimate.value, two_nn_by_hand(x, discard), rtol=1e-10)


def test_maximum_likelihood_averages_the_inverses_of_unbiased_local_estimates():
    x, k = cube(1, 60, 3, 12), 7
    nearest = sorted_distances(x)[:, :k]
    sums = np.log(nearest[:, -1:] / nearest[:, :-1]).sum(axis=1)
    with jax.enable_x64(True):
        estimate = dimension.maximum_likelihood(x, k=k)
        local = dimension.local(x, k=k)
    np.testing.assert_allclose(estimate.value, (k - 1) / sums.mean(), rtol=1e-10)
    np.testing.assert_allclose(local, (k - 2) / sums, rtol=1e-10)


def test_local_estimates_are_unbiased():
    """In the middle of a large cube: without its edges balls are full."""
    x, k = cube(2, 3000, 2, 2), 6
    inside = np.all((x > 0.1) & (x < 0.9), axis=1)
    local = np.asarray(dimension.local(x, k=k))[inside]
    # Rows that share their neighbours are not independent: k times fewer are.
    assert abs(local.mean() - 2) < 3 * local.std() * np.sqrt(k / len(local))
    assert abs(local.var() / (4 / (k - 3)) - 1) < 0.25


def test_persistent_homology_is_the_slope_of_scipys_trees():
    """All orders of the rows of a subsample of nearly all rows give nearly the same trees."""
    x = cube(3, 41, 2, 3)
    key = jax.random.key(0)
    with jax.enable_x64(True):
        options = {"min_points": 20, "max_points": 40, "num_sizes": 2, "num_subsamples": 400}
        estimate = dimension.persistent_homology(key, x, **options)
    rng = np.random.default_rng(0)

    def slope():
        rows = rng.permutation(41)
        length = lambda m: scipy.sparse.csgraph.minimum_spanning_tree(
            scipy.spatial.distance.cdist(x[rows[:m]], x[rows[:m]])
        ).sum()
        return np.log(length(40) / length(20)) / np.log(2)

    slopes = np.array([slope() for _ in range(400)])
    found = 1 - 1 / float(estimate.value)
    assert abs(found - slopes.mean()) < 3 * slopes.std() * np.sqrt(2 / 400)


def test_trees_are_scipys():
    from divjax.information.dimension.spanning_trees import _tree_parents

    x = np.random.default_rng(4).normal(size=(30, 4))
    distances = scipy.spatial.distance.cdist(x, x)
    parents = np.asarray(jax.jit(_tree_parents)(jnp.asarray(distances**2), 20))
    total = distances[np.arange(20), parents[:20]].sum()
    tree = scipy.sparse.csgraph.minimum_spanning_tree(distances[:20, :20])
    np.testing.assert_allclose(total, tree.sum(), rtol=1e-6)
    assert (parents[20:] == np.arange(20, 30)).all()


@pytest.mark.parametrize(
    ("estimator", "low", "high"),
    [
        (dimension.two_nn, 0.8, 1.3),
        (dimension.maximum_likelihood, 0.8, 1.45),
    ],
)
def test_standard_errors_are_the_spread_of_repetitions(estimator, low, high):
    many = jax.jit(jax.vmap(estimator))
    found = many(jnp.asarray(np.random.default_rng(5).uniform(size=(150, 200, 3)), jnp.float32))
    spread = np.std(found.value, ddof=1)  # its own relative error is 1/√300
    ratio = np.sqrt(np.mean(np.square(found.std_error))) / spread
    assert low < ratio < high, ratio


def test_standard_error_of_persistent_homology_is_not_too_small():
    options = {"min_points": 10, "max_points": 50, "num_sizes": 4, "num_subsamples": 8}
    estimate = lambda key, x: dimension.persistent_homology(key, x, **options)
    x = jnp.asarray(np.random.default_rng(6).normal(size=(150, 200, 2)), jnp.float32)
    found = jax.jit(jax.vmap(estimate))(jax.random.split(jax.random.key(1), 150), x)
    ratio = np.sqrt(np.mean(np.square(found.std_error))) / np.std(found.value, ddof=1)
    assert 0.9 < ratio < 4, ratio


# One run of other programs each: TwoNN of scikit-dimension, maximum likelihood with k = 20, and
# persistent homology as in GPTID, of uniform cubes in 50 features, n = 2000.
REFERENCE = {2: (1.974, 1.948, 1.951), 5: (4.663, 4.469, 4.585), 10: (8.405, 8.099, 8.633)}


@pytest.mark.exhaustive
@pytest.mark.parametrize("d", REFERENCE)
def test_reference_numbers(d):
    """Within three standard deviations of the difference of one run and the mean of ten."""
    rows = []
    for seed in range(10):
        x = cube(seed, 2000, d, 50)
        rows.append(
            [
                float(dimension.two_nn(x)),
                float(dimension.maximum_likelihood(x)),
                float(dimension.persistent_homology(jax.random.key(seed), x)),
            ]
        )
    found = np.array(rows)
    error = found.std(axis=0, ddof=1) * np.sqrt(1 + 1 / 10)
    assert (np.abs(found.mean(axis=0) - REFERENCE[d]) < 3 * error).all(), found.mean(axis=0)


ESTIMATORS = {
    "two_nn": dimension.two_nn,
    "maximum_likelihood": lambda x: dimension.maximum_likelihood(x, k=5),
    "persistent_homology": lambda x: dimension.persistent_homology(
        jax.random.key(0), x, min_points=10, max_points=40, num_sizes=3, num_subsamples=4
    ),
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_copied_rows_are_flagged(name):
    x = cube(7, 60, 2, 3)
    estimate = ESTIMATORS[name](x)
    assert np.isfinite(estimate.std_error)
    assert bool(estimate.diagnostics.finite)
    assert float(estimate.diagnostics.coincident) == 0
    x[30:] = x[:30]
    copied = ESTIMATORS[name](x)
    assert np.isnan(copied.std_error)
    assert np.isnan(copied.interval.lower)
    assert not bool(copied.diagnostics.finite)
    assert float(copied.diagnostics.coincident) > 0.2
    # All rows equal: there is no distance to go by.
    assert np.isnan(ESTIMATORS[name](np.ones((60, 3))).value)


def test_a_copied_row_has_no_local_dimension():
    x = cube(8, 30, 2, 2)
    x[3] = x[7]
    missing = np.isnan(dimension.local(x, k=5))
    assert np.flatnonzero(missing).tolist() == [3, 7]


@pytest.mark.parametrize("name", ESTIMATORS)
def test_units_and_an_offset_do_not_matter(name):
    x = cube(9, 60, 2, 3)
    plain = float(ESTIMATORS[name](x))
    for changed in (x * 1e-25, x * 1e25, x + 1e7):
        np.testing.assert_allclose(float(ESTIMATORS[name](changed)), plain, rtol=2e-4)


def test_weights_are_those_of_the_rows_in_each_sum():
    x, k = cube(11, 40, 2, 3), 5
    weights = np.random.default_rng(11).uniform(size=40)
    living = weights > 0.2
    shares = np.where(living, weights, 0) / weights[living].sum()
    nearest = np.full((40, 39), np.nan)
    nearest[living, : living.sum() - 1] = sorted_distances(x[living])[:, :-1]
    inverses = np.log(nearest[:, k - 1 : k] / nearest[:, : k - 1]).mean(axis=1)

    # The line through the origin, by weighted squares, of the ratios below the quantile.
    order = np.argsort(nearest[:, 1] / nearest[:, 0])[: living.sum()]
    below = np.cumsum(shares[order])
    kept = below <= 0.7
    u, v = np.log(nearest[order, 1] / nearest[order, 0])[kept], -np.log(1 - below[kept])
    slope = np.sum(shares[order][kept] * u * v) / np.sum(shares[order][kept] * u * u)

    filled = np.where(living[:, None], x, np.nan)
    with jax.enable_x64(True):
        likely = dimension.maximum_likelihood(filled, 7 * shares, k=k)
        line = dimension.two_nn(filled, shares, discard=0.3)
        equal = dimension.two_nn(x, np.full(40, 0.1))
        plain = dimension.two_nn(x)
    np.testing.assert_allclose(likely.value, 1 / np.nansum(shares * inverses), rtol=1e-10)
    np.testing.assert_allclose(line.value, slope, rtol=1e-10)
    np.testing.assert_allclose(likely.effective_sample_size, 1 / np.sum(shares**2), rtol=1e-10)
    for name in ("value", "std_error", "effective_sample_size"):
        np.testing.assert_allclose(getattr(equal, name), getattr(plain, name), rtol=1e-10)
    assert jnp.isnan(dimension.maximum_likelihood(x, np.r_[np.ones(5), np.zeros(35)], k=5).value)


def test_trees_have_no_rows_without_weight():
    """A square beside a line that has no weight: the trees are the square's alone."""
    x = cube(12, 400, 2, 2)
    x[200:] = np.nan
    options = {"min_points": 20, "max_points": 100, "num_sizes": 4, "num_subsamples": 40}
    weights = np.r_[np.ones(200), np.zeros(200)]
    part = dimension.persistent_homology(jax.random.key(0), x, weights, **options)
    alone = dimension.persistent_homology(jax.random.key(0), x[:200], **options)
    np.testing.assert_allclose(part.effective_sample_size, 200)
    # Two means of slopes over 40 random orders, whose spread is in the standard error.
    assert abs(part.value - alone.value) < 3 * np.hypot(part.std_error, alone.std_error) / 4
    np.testing.assert_allclose(part.std_error, alone.std_error, rtol=0.5)
    few = dimension.persistent_homology(
        jax.random.key(0), x, weights * (np.arange(400) < 100), **options
    )
    assert jnp.isnan(few.value)


@pytest.mark.exhaustive
def test_standard_errors_of_weighted_rows():
    """Importance weights of a density on a square: the spread of repetitions."""
    draws = np.random.default_rng(13).uniform(size=(60, 400, 2)).astype(np.float32)
    weights = (0.2 + draws[:, :, 0]) ** 2
    for function in (dimension.two_nn, lambda x, w: dimension.maximum_likelihood(x, w, k=8)):
        estimate = jax.jit(jax.vmap(function))(draws, weights)
        spread = np.std(estimate.value, ddof=1)
        assert 0.75 * spread < estimate.std_error.mean() < 1.4 * spread


def test_inputs():
    x = cube(10, 30, 2, 2)
    with pytest.raises(ValueError, match="x must have more than 2 rows"):
        dimension.two_nn(x[:2])
    with pytest.raises(ValueError, match="discard must be a number in"):
        dimension.two_nn(x, discard=1.0)
    with pytest.raises(ValueError, match="k must be an integer of at least 2"):
        dimension.maximum_likelihood(x, k=1)
    with pytest.raises(ValueError, match="k must be an integer of at least 3"):
        dimension.local(x, k=2)
    with pytest.raises(ValueError, match="x must have more than 30 rows"):
        dimension.maximum_likelihood(x, k=30)
    with pytest.raises(ValueError, match="max_points must be below the number of rows, 30"):
        dimension.persistent_homology(jax.random.key(0), x, min_points=5, max_points=30)
    with pytest.raises(ValueError, match="x must have at least 122 rows"):
        dimension.persistent_homology(jax.random.key(0), x)
    with pytest.raises(ValueError, match="key must be one typed key"):
        dimension.persistent_homology(x)
