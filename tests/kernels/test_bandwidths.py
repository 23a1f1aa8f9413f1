"""Bandwidth rules against their formulas, in double precision by NumPy and SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.spatial.distance
from scipy.spatial.distance import pdist

from divjax import kernels
from tests.kernels.test_kernels import points


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


def test_rules_are_their_formulas():
    x = points(40)
    squared, n = pdist(x) ** 2, 40
    bandwidth = lambda rule: rule(jnp.asarray(x), rule.init(jnp.asarray(x)))[0]
    median = np.quantile(squared, 0.5, method="inverted_cdf")
    tolerance = 1e-3  # the rule's 2e-3 in σ² is half of it in σ
    np.testing.assert_allclose(
        bandwidth(kernels.Median()), np.sqrt(median / (2 * np.log(n + 1))), rtol=tolerance
    )
    np.testing.assert_allclose(
        bandwidth(kernels.Mean()), np.sqrt(squared.mean() / (2 * np.log(n + 1))), rtol=1e-6
    )
    scales = bandwidth(kernels.MultiScale(scales=(0.5, 3.0), rule=kernels.Mean()))
    np.testing.assert_allclose(scales, np.array([0.5, 3.0]) * bandwidth(kernels.Mean()), rtol=1e-12)
    every = bandwidth(kernels.MultiScale((1.0, 2.0, 4.0), kernels.MultiScale((0.5, 3.0))))
    products = np.outer([1.0, 2.0, 4.0], [0.5, 3.0]).ravel()
    np.testing.assert_allclose(every, products * bandwidth(kernels.Median()), rtol=1e-6)


def test_a_warm_median_follows_moving_particles():
    rule, x = kernels.Median(), points(60)
    state, follow = jax.jit(rule.init)(x), jax.jit(rule)
    for step in range(30):
        moved = x * (1 + 0.05 * step) + np.sin(step) * points(60, seed=9)
        bandwidth, state = follow(moved, state)
        median = np.quantile(pdist(moved) ** 2, 0.5, method="inverted_cdf")
        np.testing.assert_allclose(bandwidth, np.sqrt(median / (2 * np.log(61))), rtol=1.01e-3)


@pytest.mark.parametrize("rule", [kernels.Median(), kernels.Mean(), kernels.MultiScale()])
@pytest.mark.parametrize("x", [np.ones((5, 2)), np.zeros((1, 2))])
def test_coincident_and_single_particles_get_a_bandwidth(rule, x):
    bandwidth, _ = rule(jnp.asarray(x), rule.init(jnp.asarray(x)))
    assert jnp.all(jnp.isfinite(bandwidth) & (bandwidth > 0))


def test_bandwidths_are_constants_to_differentiation():
    rule, x = kernels.Median(), jnp.asarray(points(8))
    gradient = jax.grad(lambda x: rule(x, rule.init(x))[0])(x)
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("rule", [kernels.Mean(), kernels.Median()])
def test_a_bandwidth_of_particles_that_are_not_numbers_is_none(rule):
    x = jnp.array([[jnp.nan], [0.0], [1.0]])
    assert jnp.isnan(rule(x, rule.init(x))[0])


RULES = {"Mean": kernels.Mean(), "Median": kernels.Median()}
each_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
bandwidth_at = jax.jit(lambda rule, x: rule(x, rule.init(x))[0])


@each_rule
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.float32, jnp.float64])
@pytest.mark.parametrize("d", [2, 12])
def test_particles_equal_up_to_rounding_have_bandwidth_one(rule, dtype, d):
    """No mean of equal numbers is exact in general, and a step's rounding differs from row to
    row."""
    row = np.random.default_rng(0).normal(size=(1, d))
    equal = jnp.asarray(np.repeat(2.5 * row, 50, axis=0), dtype)
    assert bandwidth_at(rule, equal) == 1
    one_ulp = jnp.where(jnp.arange(50)[:, None] % 3 == 0, jnp.nextafter(equal, 9 * equal), equal)
    assert bandwidth_at(rule, one_ulp) == 1


@pytest.mark.parametrize("offset", [1e7, 2020.0])
@pytest.mark.parametrize("others", [0, 5])
def test_a_feature_far_from_zero_does_not_hide_the_others(offset, others):
    """Its rounding exceeds all differences of another feature: a year beside a small number."""
    x = np.full((50, 2), offset, np.float32)
    x[:others, 0] *= 2
    x[:, 1] = 1e-7 * offset * points(50, 1)[:, 0]
    squares = pdist(x.astype(float)) ** 2
    median = np.quantile(squares, 0.5, method="inverted_cdf")
    expected = {"Mean": np.mean(squares), "Median": median}
    for name, rule in RULES.items():
        found = bandwidth_at(rule, jnp.asarray(x)) ** 2 * 2 * np.log(51)
        np.testing.assert_allclose(found, expected[name], rtol=2e-3, err_msg=name)


@each_rule
@pytest.mark.parametrize("scale", [1e-30, 1e-19, 1e19, 1e38])
def test_bandwidths_keep_units_whose_squares_are_out_of_range(rule, scale):
    x = np.random.default_rng(0).uniform(-1, 1, size=(30, 3)).astype(np.float32)
    found = bandwidth_at(rule, jnp.asarray(x * np.float32(scale), jnp.float32))
    np.testing.assert_allclose(found / scale, bandwidth_at(rule, jnp.asarray(x)), rtol=2e-3)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("n", [256, 257, 400])
def test_half_precision_counts_all_pairs(dtype, n):
    """n(n − 1) exceeds the largest float16 from 257 rows on."""
    x = jnp.asarray(points(n), dtype)
    median = np.quantile(pdist(np.asarray(x, np.float64)) ** 2, 0.5, method="inverted_cdf")
    expected = np.sqrt(median / (2 * np.log(n + 1)))
    found = kernels.Median()(x, kernels.Median().init(x))[0]
    assert found.dtype == dtype
    np.testing.assert_allclose(float(found), expected, rtol=2 * float(jnp.finfo(dtype).eps))


@pytest.mark.parametrize("d", [2, 12])
def test_where_half_of_the_pairs_coincide_the_mean_takes_over(d):
    """Far from the origin, and by products of many features, equal rows are not at distance 0."""
    rng = np.random.default_rng(1)
    x = np.concatenate([np.repeat(rng.normal(size=(1, d)), 30, axis=0), rng.normal(size=(6, d))])
    x = jnp.asarray(x + 7.3, jnp.float32)
    found = bandwidth_at(kernels.Median(), x)
    np.testing.assert_allclose(found, bandwidth_at(kernels.Mean(), x), rtol=1e-5)


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_the_median_of_clusters_far_apart(share):
    x = np.float32(np.random.default_rng(0).normal(size=(100, 16)))
    x[: int(100 * share)] += 1e5  # pyright: ignore[reportIndexIssue]
    rule = kernels.Median()
    single = jnp.asarray(x, jnp.float32)
    squared = np.quantile(pdist(np.float64(x)) ** 2, 0.5, method="inverted_cdf")
    expected = np.sqrt(squared / (2 * np.log(101)))
    np.testing.assert_allclose(rule(single, rule.init(single))[0], expected, rtol=1.1e-3)


@pytest.mark.parametrize("tolerance", [np.nan, np.inf, np.float32(np.nan), 0.0, -1.0, (0.1,), "1"])
def test_a_median_to_no_accuracy_is_none(tolerance):
    with pytest.raises(ValueError, match=r"^tolerance must be"):
        kernels.Median(tolerance)


@pytest.mark.parametrize("n", [30, 300])
def test_the_median_distance_does_not_shrink_with_the_rows(n):
    """The lower median of all pairs' distances, by SciPy."""
    x = np.random.default_rng(n).normal(size=(n, 3))
    distances = np.sort(scipy.spatial.distance.pdist(x))
    lower = distances[(len(distances) - 1) // 2]
    rule = kernels.MedianDistance()
    np.testing.assert_allclose(rule(x, rule.init(x))[0], lower, rtol=2e-3)
    # All rows in one place have no scale: that of a kernel without one.
    same = np.ones((n, 3))
    assert rule(same, rule.init(same))[0] == 1


@pytest.mark.parametrize("scale", [1e-15, 1e-19, 1e-20, 1e-22, 1e-30])
@pytest.mark.parametrize("share", [0.45, 0.6, 0.75, "all sizes"])
def test_many_rows_far_smaller_than_the_others(share, scale):
    """None of their scales decides the median but the pairs: by SciPy in double precision."""
    x = np.random.default_rng(6).uniform(size=(200, 1))
    if share == "all sizes":
        x = np.exp(3 * np.log(scale) / 2 * x)
    else:
        x[: int(200 * share)] *= scale
    x = np.float32(x)
    distances = scipy.spatial.distance.pdist(np.float64(x))
    expected = np.quantile(distances, 0.5, method="inverted_cdf")
    found = bandwidth_at(kernels.MedianDistance(), jnp.asarray(x))
    np.testing.assert_allclose(found, expected, rtol=2e-3)
    # Units do not matter.
    large = bandwidth_at(kernels.MedianDistance(), jnp.asarray(x * np.float32(2.0**60)))
    np.testing.assert_allclose(large, found * 2.0**60, rtol=2e-3)


@pytest.mark.parametrize("d", [1, 2, 12])
@pytest.mark.parametrize(("scale", "far"), [(1.0, -9999999.0), (1.0, 9.97e36), (1e-3, 9999.0)])
def test_one_row_far_away_moves_the_median_by_its_share_of_the_pairs(d, scale, far):
    """Sentinels of missing values: the median by SciPy."""
    x = np.float32(scale * np.random.default_rng(d).normal(size=(200, d)))
    x[0, 0] = far  # pyright: ignore[reportIndexIssue]
    distances = scipy.spatial.distance.pdist(np.float64(x))
    expected = np.quantile(distances, 0.5, method="inverted_cdf")
    found = bandwidth_at(kernels.MedianDistance(), jnp.asarray(x))
    np.testing.assert_allclose(found, expected, rtol=2e-3)
    found = bandwidth_at(kernels.Median(), jnp.asarray(x))
    np.testing.assert_allclose(found, expected / np.sqrt(2 * np.log(201)), rtol=2e-3)
