"""The parts of an encoder's divergence against closed forms of Gaussian codes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from divjax import information


def test_the_parts_of_gaussian_codes():
    """Codes A x + s ε of normal x, with q(z) = N(0, A Aᵀ + s² I), in repeated samples."""
    a, s, n = np.array([[1.0, 0.0], [0.8, 0.5]]), 0.6, 400
    x = np.random.default_rng(0).normal(size=(60, n, 2)).astype(np.float32)
    mean = jnp.asarray(x @ a.T, jnp.float32)
    decompose = jax.jit(jax.vmap(information.total_correlation_decomposition, in_axes=(0, 0, None)))
    found = decompose(jax.random.split(jax.random.key(0), 60), mean, jnp.full((n, 2), s))
    covariance = a @ a.T + s**2 * np.eye(2)
    variances = np.diag(covariance)
    log_det = np.linalg.slogdet(covariance)[1]
    expected = (
        (log_det - 4 * np.log(s)) / 2,
        (np.log(variances).sum() - log_det) / 2,
        (variances - 1 - np.log(variances)).sum() / 2,
    )
    parts = found.mutual_information, found.total_correlation, found.dimension_wise_kl
    for part, value in zip(parts, expected, strict=True):
        # The mixture of n encoders differs from the normal by a share of order 1/n.
        assert abs(np.mean(part) - value) < 3 * np.std(part) / np.sqrt(60) + 8 / n


def test_one_encoder_for_all_rows():
    mean = np.tile([[0.4, -0.9]], (1000, 1))
    found = information.total_correlation_decomposition(
        jax.random.key(0), mean, np.full((1000, 2), 0.7)
    )
    # Nothing about the rows, no dependence, and the divergence alone.
    assert abs(float(found.mutual_information)) < 1e-4
    assert abs(float(found.total_correlation)) < 1e-4
    kl = np.sum(0.7**2 + mean[0] ** 2 - 1 - 2 * np.log(0.7)) / 2
    terms = 2 * (1 + np.abs(mean[0]).max())  # a bound on the deviation of each term
    assert abs(float(found.dimension_wise_kl) - kl) < 3 * terms / np.sqrt(1000)


@pytest.mark.parametrize("scale", [1e-2, 1e-6, 1e-20])
def test_narrow_encoders_far_apart(scale):
    """Each code identifies its row, in each feature: the information is log n, d times in parts."""
    n, d = 64, 2
    mean = 100.0 * np.random.default_rng(0).permutation(d * n).reshape(n, d)
    found = information.total_correlation_decomposition(
        jax.random.key(0), mean, np.full((n, d), scale)
    )
    np.testing.assert_allclose(found.mutual_information, np.log(n), atol=1e-4)
    np.testing.assert_allclose(found.total_correlation, (d - 1) * np.log(n), atol=1e-4)
    kl = np.mean(np.sum(scale**2 + mean**2 - 1 - 2 * np.log(scale), axis=1)) / 2
    np.testing.assert_allclose(found.dimension_wise_kl, kl - d * np.log(n), rtol=1e-4)


def test_inputs():
    with pytest.raises(ValueError, match="scale must have shape"):
        information.total_correlation_decomposition(
            jax.random.key(0), np.ones((3, 2)), np.ones((4, 2))
        )
    with pytest.raises(ValueError, match="scale must not be negative"):
        information.total_correlation_decomposition(
            jax.random.key(0), np.ones((3, 2)), -np.ones((3, 2))
        )
    with pytest.raises(ValueError, match="key must be one typed key"):
        information.total_correlation_decomposition(np.ones((3, 2)), np.ones((3, 2)))
