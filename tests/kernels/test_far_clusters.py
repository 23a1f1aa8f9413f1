"""Gradients within clusters that lie far apart, beside double precision at the same points."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from divjax import discrepancy, flows, kernels


def exact_gradient(x, y):
    """Of the mean of exp(−|x − x′|²/2) over pairs, less twice that between x and y."""
    x, y = np.float64(x), np.float64(y)

    def pull(others):
        differences = x[:, None] - others
        return -(np.exp(-(differences**2).sum(-1) / 2)[..., None] * differences).mean(1)

    return 2 * (pull(x) - pull(y)) / len(x)


def clusters(d, apart):
    rng = np.random.default_rng(d)
    x, y = rng.normal(size=(2, 40, d))
    x[:20, 0] += apart
    y[:20, 0] += apart
    return x.astype(np.float32), (y + 0.5).astype(np.float32)


@pytest.mark.parametrize("apart", [1e4, 1e6, 1e7])
@pytest.mark.parametrize("d", [2, 12])
def test_gradients_within_far_clusters(d, apart):
    x, y = clusters(d, apart)
    expected = exact_gradient(x, y)
    kernel = kernels.Gaussian(1.0)
    slope = jax.grad(lambda x: discrepancy.mmd(x, y, kernel=kernel))(jnp.asarray(x))
    largest = abs(expected).max()
    np.testing.assert_allclose(slope, expected, atol=1e-4 * largest)
    flow = flows.MMD(jnp.asarray(y), kernel)
    shares = jnp.full(40, 1 / 40)
    variation, _ = flow(jax.random.key(0), x, shares, flow.init(jax.random.key(0), jnp.asarray(x)))
    np.testing.assert_allclose(variation.gradient, 20 * expected, atol=1e-4 * 20 * largest)


@pytest.mark.parametrize("far", [1e8, 1e10, 1e18])
@pytest.mark.parametrize("d", [2, 12])
def test_a_far_point_is_not_moved_by_itself(d, far):
    x, y = clusters(d, 0)
    x[7] = far
    slope = jax.grad(lambda x: discrepancy.mmd(x, y, kernel=kernels.Gaussian(1.0)))(jnp.asarray(x))
    expected = exact_gradient(x, y)
    np.testing.assert_allclose(slope, expected, atol=1e-4 * abs(expected).max())


@pytest.mark.parametrize("d", [2, 12])
def test_an_infinite_source_is_no_number(d):
    x, y = clusters(d, 0)
    y[3, 0] = np.inf
    one = jnp.ones((40, 1))
    sums = kernels.kernel_sums(kernels.Gaussian(1.0), x, y, one, one)
    assert all(jnp.isnan(part).all(axis=(0, 1)).any() for part in sums)
    without = kernels.kernel_sums(kernels.Gaussian(1.0), x, y, *[one.at[3].set(0)] * 2)
    assert all(jnp.isfinite(part).all() for part in without)
