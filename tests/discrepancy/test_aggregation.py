"""The test over many kernels: its definition in NumPy, its level, its power."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import cdist, pdist

from divjax import discrepancy, kernels
from divjax.core.distance_quantiles import two_quantiles_of_distances
from divjax.core.types import Status
from divjax.discrepancy.relabelled_samples import pooled_samples, relabellings

KEY = jax.random.key(0)
SEVERAL = (
    kernels.Gaussian(bandwidth=0.5),
    kernels.Gaussian(bandwidth=2.0),
    kernels.Laplace(bandwidth=1.5),
)


def squared_mmds(matrix, labels):
    weights = [np.where(in_x, 1 / in_x.sum(), -1 / (~in_x).sum()) for in_x in labels]
    return np.array([w @ matrix @ w for w in weights])


def test_the_definition():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(12, 2)), rng.normal(size=(9, 2)) + 0.4
    test = discrepancy.aggregated_mmd_test(KEY, x, y, kernels=SEVERAL, num_permutations=50)
    distances = cdist(*[np.concatenate([x, y])] * 2)
    matrices = [
        np.exp(-(distances**2) / (2 * 0.5**2)),
        np.exp(-(distances**2) / (2 * 2.0**2)),
        np.exp(-distances / 1.5),
    ]
    samples = pooled_samples(SEVERAL[0], x, y, None, None)
    labels = np.asarray(relabellings(KEY, samples, 50).in_x)
    values = np.array([squared_mmds(matrix, labels) for matrix in matrices])
    mean, deviation = values.mean(axis=1, keepdims=True), values.std(axis=1, keepdims=True)
    expected = np.max((values - mean) / deviation, axis=0)
    np.testing.assert_allclose(test.statistic, expected[0], rtol=1e-4)
    np.testing.assert_allclose(test.null, expected[1:], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(
        test.p_value, np.mean(np.array(expected) >= expected[0] - 1e-5), rtol=1e-6
    )


def test_the_level_is_exact():
    num = 1000

    def p_value(key):
        x_key, y_key, key = jax.random.split(key, 3)
        x, y = jax.random.normal(x_key, (8, 2)), jax.random.normal(y_key, (6, 2))
        return discrepancy.aggregated_mmd_test(key, x, y, num_permutations=19).p_value

    p_values = np.asarray(jax.jit(jax.vmap(p_value))(jax.random.split(KEY, num)))
    for level in (0.05, 0.1):
        share = np.mean(p_values <= level + 1e-6)
        assert abs(share - level) < 3 * np.sqrt(level * (1 - level) / num)


def test_the_quantiles_of_distances():
    rng = np.random.default_rng(1)
    for rows in (rng.normal(size=(80, 2)), rng.normal(size=(60, 12)) + 5):
        found = two_quantiles_of_distances(jnp.asarray(rows), (0.05, 0.95))
        expected = np.quantile(pdist(rows), (0.05, 0.95), method="inverted_cdf")
        np.testing.assert_allclose(found, expected, rtol=2e-3)


@pytest.mark.parametrize(("scale", "far"), [(1.0, 1e9), (1e-20, 1.0), (1e20, 1e21)])
def test_one_row_far_away_leaves_the_quantiles_of_distances(scale, far):
    rows = np.float32(scale * np.random.default_rng(3).normal(size=(200, 2)))
    rows[0] = far  # pyright: ignore[reportIndexIssue]
    found = two_quantiles_of_distances(jnp.asarray(rows, jnp.float32), (0.05, 0.95))
    expected = np.quantile(pdist(np.float64(rows)), (0.05, 0.95), method="inverted_cdf")
    np.testing.assert_allclose(found, expected, rtol=2e-3)


@pytest.mark.parametrize("scale", [1e-15, 1e-20, 1e-30])
def test_many_rows_far_smaller_than_the_others(scale):
    rows = np.random.default_rng(4).normal(size=(200, 2)).astype(np.float32)
    rows[:120] *= np.float32(scale)
    found = two_quantiles_of_distances(jnp.asarray(rows), (0.05, 0.95))
    expected = np.quantile(pdist(np.float64(rows)), (0.05, 0.95), method="inverted_cdf")
    np.testing.assert_allclose(found, expected, rtol=2e-3)


def test_data_with_copies():
    """Distances of zero are no bandwidth; equal rows are no difference."""
    rng = np.random.default_rng(2)
    x, y = rng.integers(0, 2, (2, 40, 1)).astype(float)
    assert 0.02 < discrepancy.aggregated_mmd_test(KEY, x, y).p_value <= 1
    assert discrepancy.aggregated_mmd_test(KEY, x, 1 - 0 * y).p_value == 0.001
    assert discrepancy.aggregated_mmd_test(KEY, np.ones((9, 2)), np.ones((5, 2))).p_value == 1


def test_what_is_not_finite_or_refused():
    x, y = np.zeros((5, 2)), np.ones((4, 2))
    with pytest.raises(ValueError, match="kernels must be a sequence of at least one kernel; got"):
        discrepancy.aggregated_mmd_test(KEY, x, y, kernels=[])
    with pytest.raises(ValueError, match="kernels must be a kernel"):
        discrepancy.aggregated_mmd_test(KEY, x, y, kernels=[np.dot])
    with pytest.raises(ValueError, match="x must have at least two rows"):
        discrepancy.aggregated_mmd_test(KEY, x[:1], y)
    y[1, 1] = np.nan
    test = discrepancy.aggregated_mmd_test(KEY, x, y)
    assert np.isnan(test.p_value)
    assert test.status == Status.NOT_FINITE


def test_no_bandwidth_fits_all_differences():
    """A difference of scale 1/5 of the spread escapes the median bandwidth, but not all of them."""
    phase = jax.random.uniform(KEY, (2, 400))
    wave = jnp.where(phase[1] < 0.5, jnp.floor(5 * phase[0]) / 5, phase[0])
    x, y = jax.random.uniform(jax.random.key(1), (400, 1)), wave[:, None]
    assert discrepancy.mmd_test(KEY, x, y, kernel=kernels.Gaussian(bandwidth=0.5)).p_value > 0.05
    assert discrepancy.aggregated_mmd_test(KEY, x, y).p_value < 0.01
