"""The Gaussian map of samples: moments, shrinkage, weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.covariance

from divjax import Normal, ot
from divjax.ot.gaussian import (
    gaussian_map,
)
from divjax.ot.maps.gaussian_samples import gaussian_map_from_samples, ledoit_wolf
from tests.ot.test_gaussian import normal

D = 3


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


def test_the_map_of_samples_finds_an_affine_one_and_fits_moments_otherwise():
    """Of y = A x + b the moments are exact, and a definite A is the optimal map itself."""
    rng = np.random.default_rng(0)
    x, matrix = rng.normal(size=(50, D)) ** 3, normal(1)[1]
    found = gaussian_map_from_samples(jnp.asarray(x), x @ matrix + 2)
    np.testing.assert_allclose(found(x), x @ matrix + 2, rtol=1e-8)
    turn = np.linalg.qr(rng.normal(size=(D, D)))[0]
    y = x[::-1] @ turn + 1
    images = gaussian_map_from_samples(jnp.asarray(x), y)(x)
    np.testing.assert_allclose(images.mean(0), y.mean(0), rtol=1e-9)
    np.testing.assert_allclose(np.cov(images.T), np.cov(y.T), rtol=1e-8)


def test_bad_samples_raise():
    x = jnp.ones((5, 2))
    with pytest.raises(ValueError, match="x must have at least 2 rows"):
        gaussian_map_from_samples(x[:1], x)
    with pytest.raises(ValueError, match="same number of features"):
        gaussian_map_from_samples(x, x[:, :1])


def test_shrinkage_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(60, 20)) * np.linspace(0.5, 2, 20)
    _, expected = sklearn.covariance.ledoit_wolf(rows)
    np.testing.assert_allclose(ledoit_wolf(jnp.asarray(rows)), expected, rtol=1e-8)
    # A weight is a repetition, but for the variance of the covariance.
    weights = np.full(60, 1 / 60)
    np.testing.assert_allclose(ledoit_wolf(jnp.asarray(rows), weights), expected, rtol=1e-8)
    assert ledoit_wolf(jnp.ones((5, 2))) == 0


def test_shrinkage_makes_a_map_of_few_rows_useful():
    """60 rows in 64 dimensions: the error over the variance of the images."""
    d, n = 64, 60
    rng = np.random.default_rng(0)
    scale = np.linspace(0.5, 2, d)
    x, y, z = rng.normal(size=(n, d)), rng.normal(size=(n, d)) * scale, rng.normal(size=(500, d))
    error = lambda found: np.mean(np.sum((found(z) - z * scale) ** 2, 1)) / np.sum(scale**2)
    assert error(gaussian_map_from_samples(x, y)) > 1
    assert error(gaussian_map_from_samples(x, y, shrinkage="ledoit-wolf")) < 0.25
    # Of many rows next to nothing is shrunk.
    x, y = rng.normal(size=(20_000, 2)), rng.normal(size=(20_000, 2)) * scale[[0, -1]]
    plain, shrunk = (gaussian_map_from_samples(x, y, shrinkage=s) for s in (0.0, "ledoit-wolf"))
    np.testing.assert_allclose(plain.matrix, shrunk.matrix, atol=0.01)
    # A traced share out of range is none.
    run = jax.jit(lambda s: gaussian_map_from_samples(x[:9], y[:9], shrinkage=s).matrix)
    assert jnp.isnan(run(-0.1)).all()
    assert jnp.isfinite(run(0.1)).all()


def test_weights_of_samples_are_repetitions_and_offsets_keep_the_signal():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(40, D)), rng.normal(size=(50, D)) * 2 + 1
    a = np.r_[np.full(10, 3.0), np.ones(20), np.zeros(10)]
    padded = np.where(a[:, None] > 0, x, np.nan)
    repeated = np.concatenate([x[:10]] * 3 + [x[10:30]])
    found = gaussian_map_from_samples(padded, y, a)
    mean, cov = repeated.mean(0), np.cov(repeated.T, bias=True) / (1 - np.sum((a / 50) ** 2))
    expected = gaussian_map((mean, cov), (y.mean(0), np.cov(y.T)))
    np.testing.assert_allclose(found.matrix, expected.matrix, rtol=1e-8)
    np.testing.assert_allclose(found(x[:3]), expected(x[:3]), rtol=1e-8)
    plain = gaussian_map_from_samples(x, y)
    images = np.asarray(plain(x))
    with jax.enable_x64(False):
        far = gaussian_map_from_samples(1e6 + x, y - 1e6)
        np.testing.assert_allclose(far.matrix, plain.matrix, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(far(1e6 + x) + 1e6, images, atol=0.1)


@pytest.mark.parametrize("tiny", [1e-3, 1e-5, 1e-7, 1e-12])
def test_the_map_of_samples_of_which_one_has_almost_all_weight(tiny):
    """Var x = Σ w (x − x̄)²/Σ_{i≠j} w_i w_j, in float64."""
    with jax.enable_x64(False):
        x, weights = np.arange(4.0)[:, None], np.array([1, tiny, tiny, tiny])
        shares = weights / weights.sum()
        pairs = sum(shares[i] * shares[j] for i in range(4) for j in range(4) if i != j)
        variance = shares @ (x[:, 0] - shares @ x[:, 0]) ** 2 / pairs
        expected = 2 * np.sqrt((5 / 3) / variance)
        found = gaussian_map_from_samples(x, 2 * x + 5, weights).matrix
        np.testing.assert_allclose(found, [[expected]], rtol=1e-4)


@pytest.mark.parametrize("ratio", [1e2, 3e3, 1e4])
def test_a_feature_of_small_scale_is_mapped_too(ratio):
    """The images have the covariance of y, however unlike the features of x are."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(500, 2)) * [ratio, 1], rng.normal(size=(500, 2))
    with jax.enable_x64(False):
        images = np.asarray(ot.gaussian_map_from_samples(x, y)(x))
    np.testing.assert_allclose(np.cov(images.T), np.cov(y.T), atol=2e-3)


@pytest.mark.parametrize("ratio", [1e2, 1e3, 3e3, 1e4, 1e6])
def test_maps_between_unlike_scales_are_right_or_none(ratio):
    """Diagonal matrices as full ones: the map is √(t/s), and the slope 1 − √(t/s)."""
    with jax.enable_x64(False):
        zero, s = jnp.zeros(2), jnp.diag(jnp.array([ratio**2, 1.0]))
        for t in (4 * jnp.eye(2), s, jnp.diag(jnp.array([1.0, ratio**2]))):
            expected = np.sqrt(np.diag(t) / np.diag(s))
            matrix = ot.gaussian_map(Normal(zero, s), Normal(zero, t)).matrix
            q = Normal(zero, t)
            slope = jax.grad(lambda s: ot.gaussian_wasserstein(Normal(zero, s), q))(s)  # noqa: B023
            for found, truth in ((matrix, expected), (slope, 1 - expected)):
                if not jnp.isnan(found).all():
                    np.testing.assert_allclose(np.diag(found), truth, rtol=2e-3, atol=1e-5)


def test_a_missing_shrinkage_is_named():
    with pytest.raises(ValueError, match="shrinkage must be one real number; got None"):
        ot.gaussian_map_from_samples(jnp.eye(2), jnp.eye(2), shrinkage=None)
