"""The Fréchet distance against SciPy's roots; precision and recall against loops and theorems."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from scipy.spatial.distance import cdist

from divjax import discrepancy


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


def samples(n=40, m=30, d=4, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)), rng.normal(size=(m, d)) @ rng.normal(size=(d, d)) + 0.5


def frechet_by_roots(x, y):
    """As it is usually computed, by the root of the product of covariances."""
    s, t = np.cov(x.T), np.cov(y.T)
    root = scipy.linalg.sqrtm(s @ t).real
    return np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(s + t - 2 * root)


def test_the_frechet_distance_is_scipys():
    x, y = samples()
    np.testing.assert_allclose(
        discrepancy.frechet_distance(x, y), frechet_by_roots(x, y), rtol=1e-9
    )


def test_whole_weights_are_repetitions():
    """Up to the covariance's denominator, which knows weights, not repetitions."""
    x, y = samples()
    counts = np.random.default_rng(1).integers(0, 3, size=len(x))
    repeated = np.repeat(x, counts, axis=0)
    found = discrepancy.frechet_distance(x, y, counts)
    share = counts / counts.sum()
    s = np.cov(repeated.T, ddof=0) / (1 - (share**2).sum())
    t = np.cov(y.T)
    shift = np.sum((repeated.mean(0) - y.mean(0)) ** 2)
    expected = shift + np.trace(s + t - 2 * scipy.linalg.sqrtm(s @ t).real)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_fewer_rows_than_features():
    x, y = samples(5, 6, 12)
    found, slope = jax.value_and_grad(discrepancy.frechet_distance)(jnp.asarray(x), jnp.asarray(y))
    s, t = np.cov(x.T), np.cov(y.T)
    # tr (S^½ T S^½)^½ by singular values, where roots of singular products are inaccurate.
    centred = [(z - z.mean(0)) / np.sqrt(len(z) - 1) for z in (x, y)]
    fidelity = np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False).sum()
    shift = np.sum((x.mean(0) - y.mean(0)) ** 2)
    np.testing.assert_allclose(found, shift + np.trace(s) + np.trace(t) - 2 * fidelity, rtol=1e-9)
    assert np.isfinite(slope).all()


def shares_by_loop(x, y, k):
    """The definitions, point by point."""
    radius = lambda z: np.sort(cdist(z, z), axis=1)[:, k]
    distances, of_x, of_y = cdist(x, y), radius(x), radius(y)
    in_x, in_y = distances <= of_x[:, None], distances <= of_y
    return (
        np.mean(in_x.any(axis=0)),
        np.mean(in_y.any(axis=1)),
        in_x.sum() / (k * len(y)),
        np.mean(in_x.any(axis=1)),
    )


@pytest.mark.parametrize("d", [2, 12])
@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_are_their_definitions(d, k):
    rng = np.random.default_rng(d)
    x, y = rng.normal(size=(40, d)), 0.7 * rng.normal(size=(30, d)) + 0.5
    found = discrepancy.precision_recall(x, y, k=k)
    np.testing.assert_allclose(tuple(found), shares_by_loop(x, y, k), rtol=1e-12)
    # Which sample is real matters.
    swapped = discrepancy.precision_recall(y, x, k=k)
    assert swapped.precision == found.recall
    assert 0 < found.recall < found.precision


def test_equal_distributions_have_the_expected_coverage():
    n, m, k = 60, 40, 3
    keys = jax.random.split(jax.random.key(0), 200)

    def coverage(key):
        points = jax.random.normal(key, (n + m, 2))
        found = discrepancy.precision_recall(points[:n], points[n:], k=k)
        return jnp.stack([found.coverage, found.density])

    found = np.asarray(jax.jit(jax.vmap(coverage))(keys))
    expected = 1 - math.prod((n - 1 - i) / (n + m - 1 - i) for i in range(k))
    error = found.std(axis=0) / len(keys) ** 0.5
    assert abs(found[:, 0].mean() - expected) < 3 * error[0]
    assert abs(found[:, 1].mean() - 1) < 3 * error[1]


def test_an_outlier_among_the_real_raises_precision_but_hardly_density():
    x, y = samples(100, 100, 2)
    y = y + 12
    plain = discrepancy.precision_recall(x, y, k=2)
    with_outlier = discrepancy.precision_recall(np.concatenate([x, [[25.0, 25.0]]]), y, k=2)
    assert plain.precision < 0.3
    assert with_outlier.precision > 0.9
    assert with_outlier.density - plain.density <= 0.5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: discrepancy.frechet_distance(x[:1], x), "x must have at least two rows"),
        (
            lambda x: discrepancy.frechet_distance(x.astype(jnp.float16), x.astype(jnp.float16)),
            "32",
        ),
        (lambda x: discrepancy.precision_recall(x, x, k=4), "k must be an integer from 1 to 3"),
        (lambda x: discrepancy.precision_recall(x, x, k=1.0), "k must be an integer from 1 to 3"),
        (lambda x: discrepancy.precision_recall(x[:1], x), "x and y must have at least two rows"),
        (lambda x: discrepancy.precision_recall(x, x[:, :1]), "same number of features"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(jnp.ones((4, 2)))
