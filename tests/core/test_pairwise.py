"""Pairwise reductions against SciPy, and blocked against dense."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist, pdist

from divjax import kernels
from divjax.core import distance_quantiles, pairwise

jit_median = jax.jit(distance_quantiles.median_distance, static_argnames="tolerance")


def lower_median(x):
    """The ⌈P/2⌉-th smallest of the P distances, by sorting."""
    return np.quantile(pdist(np.asarray(x, np.float64)), 0.5, method="inverted_cdf")


@pytest.mark.parametrize("d", [1, 3, 20])
def test_squared_distances_are_scipys(d):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(9, d)) + 100, rng.normal(size=(5, d)) + 100
    # An offset of 100 costs three digits unless the points are centred first.
    ours = pairwise.squared_distances(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32))
    np.testing.assert_allclose(ours, cdist(x, y) ** 2, rtol=2e-4)
    with jax.enable_x64(True):
        ours = pairwise.squared_distances(jnp.asarray(x))
        np.testing.assert_allclose(ours, cdist(x, x) ** 2, atol=1e-10)
        np.testing.assert_array_equal(np.diagonal(ours), 0)


@pytest.mark.parametrize("d", [2, 12])
def test_counts_are_numpys(d):
    x = np.random.default_rng(1).normal(size=(300, d)).astype(np.float32)
    thresholds = np.quantile(pdist(x) ** 2, [0.1, 0.4, 0.6, 0.99]).astype(np.float32) * 1.0001
    fractions = jax.jit(distance_quantiles.fractions_below)(jnp.asarray(x), tuple(thresholds))
    expected = [(pdist(x.astype(np.float64)) ** 2 < t).mean() for t in thresholds]
    np.testing.assert_allclose(fractions, expected, atol=2e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([1e-6, 0.3, 1.0, 1.02, 50.0, 1e8]))
def test_the_median_is_within_tolerance_whatever_the_guess(seed, factor):
    x = np.random.default_rng(seed).standard_cauchy(size=(40, 2)).astype(np.float32)
    expected = lower_median(x)
    found = jit_median(jnp.asarray(x), jnp.float32(expected * factor), tolerance=1e-3)
    np.testing.assert_allclose(found, expected, rtol=1e-3)


@pytest.mark.parametrize(
    "x",
    [
        np.array([[0.0], [3.0]]),
        np.repeat(np.array([[0.0], [1.0], [5.0]]), 7, axis=0),
        np.concatenate([np.zeros((12, 1)), 1e3 * np.ones((13, 1))]),
        np.arange(30.0)[:, None],
        np.linspace(0, 1, 40)[:, None] ** 8,
        1e-12 * np.random.default_rng(0).normal(size=(20, 3)),
        1e12 * np.random.default_rng(0).normal(size=(20, 3)),
    ],
    ids=["two", "ties", "clusters", "lattice", "skewed", "tiny", "huge"],
)
def test_the_median_of_awkward_data(x):
    found = jit_median(jnp.asarray(x, jnp.float32), jnp.float32(1.0), tolerance=1e-3)
    np.testing.assert_allclose(found, lower_median(x.astype(np.float32)), rtol=1.1e-3)


@pytest.mark.parametrize("n", [255, 256, 400, 2000])
@pytest.mark.parametrize("d", [9, 50])
def test_the_median_of_many_features_and_rows_that_do_not_fill_blocks(n, d):
    x = np.random.default_rng(n + d).normal(size=(n, d)).astype(np.float32)
    found = jit_median(jnp.asarray(x), jnp.float32(1.0), tolerance=1e-3)
    np.testing.assert_allclose(found, lower_median(x), rtol=1.1e-3)


def test_the_median_is_zero_where_half_the_pairs_coincide():
    x = jnp.concatenate([jnp.zeros((30, 2)), jnp.ones((5, 2))])
    assert jit_median(x, jnp.float32(1.0), tolerance=1e-3) == 0


@pytest.mark.parametrize("n", [20, 200])
def test_the_centre_of_rows_that_count_in_strict_mode(n):
    x = np.random.default_rng(0).normal(size=(n, 3)).astype(np.float32)
    used = np.arange(n) % 3 > 0
    x[~used] = 1e9
    with jax.numpy_dtype_promotion("strict"):
        center = pairwise.common_center(jnp.asarray(x), jnp.asarray(used))
    low, high = np.quantile(x[used], [0.25, 0.75], axis=0)
    assert ((low < center) & (center < high)).all()


def test_the_median_stops_on_values_that_are_not_finite():
    x = jnp.array([[0.0], [jnp.nan], [1.0]])
    assert not jit_median(x, jnp.float32(1.0), tolerance=1e-3) > 0


@pytest.mark.parametrize(
    "kernel", [kernels.Gaussian(bandwidth=0.7), kernels.Laplace(bandwidth=0.7)]
)
@pytest.mark.parametrize("d", [2, 10])
def test_blocks_change_nothing(monkeypatch, kernel, d):
    rng = np.random.default_rng(2)
    x, values = rng.normal(size=(23, d)), rng.normal(size=(23, 3))

    def total(x):
        sums, gradients = kernels.kernel_sums(
            kernel, x, None, jnp.asarray(values), jnp.asarray(values)
        )
        return jnp.sum(sums**2) + jnp.sum(gradients**2), (sums, gradients)

    with jax.enable_x64(True):
        x = jnp.asarray(x)
        dense, dense_gradient = jax.value_and_grad(total, has_aux=True)(x)
        monkeypatch.setattr(pairwise, "BLOCK_ENTRIES_CPU", 23 * 4)
        blocked, blocked_gradient = jax.value_and_grad(total, has_aux=True)(x)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), dense, blocked)
        np.testing.assert_allclose(dense_gradient, blocked_gradient, rtol=1e-9)


def test_blocks_do_not_hold_the_matrix():
    """The compiled step's temporary memory stays far under n² floats (a gigabyte here)."""
    n = 16_384
    step = jax.jit(
        lambda x: kernels.kernel_sums(kernels.Gaussian(bandwidth=1.0), x, None, x, x[:, :1])
    )
    memory = step.lower(jnp.zeros((n, 2))).compile().memory_analysis()
    assert memory.temp_size_in_bytes < n * n * 4 / 20


def test_more_pairs_than_32_bits_count():
    """100 000 particles have 10¹⁰ pairs; tracing alone shows whether that number fits."""
    x = jax.ShapeDtypeStruct((100_000, 10), jnp.float32)
    rule = kernels.Median()
    bandwidth, _ = jax.eval_shape(lambda x: rule(x, rule.init(x)), x)
    assert bandwidth.shape == ()


def test_bad_samples_are_named():
    with pytest.raises(ValueError, match=r"x must be a non-empty matrix .* got shape \(3,\)"):
        pairwise.squared_distances(jnp.zeros(3))
    with pytest.raises(ValueError, match="same number of features; got 2 and 3"):
        pairwise.squared_distances(jnp.zeros((4, 2)), jnp.zeros((4, 3)))
