"""Divergences of Gram matrices against determinants and traces in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from divjax import information


def kl_by_hand(gram, other):
    logs = np.linalg.slogdet(other)[1] - np.linalg.slogdet(gram)[1]
    return (np.trace(np.linalg.solve(other, gram)) - len(gram) + logs) / 2


def gaussian_gram(gram, module=np):
    variances = module.diagonal(gram)
    return module.exp(gram - (variances[:, None] + variances) / 2)


def inner_products(seed, n, d):
    x = np.random.default_rng(seed).normal(size=(n, d))
    return x @ x.T / d


def test_the_definition_with_and_without_jitter():
    gram, other = inner_products(0, 6, 9), inner_products(1, 6, 9)
    noise = 0.3 * np.mean(np.diag(other)) * np.eye(6)
    with jax.enable_x64(True):
        plain = information.gram_kl(gram, other)
        jittered = information.gram_kl(gram, other, jitter=0.3)
    np.testing.assert_allclose(plain, kl_by_hand(gram, other), rtol=1e-9)
    np.testing.assert_allclose(jittered, kl_by_hand(gram + noise, other + noise), rtol=1e-9)
    np.testing.assert_allclose(information.gram_kl(3 * gram, 3 * other), plain, rtol=1e-3)
    assert 0 <= information.gram_kl(gram, gram) < 1e-10


def test_matrices_that_are_nearly_singular():
    """Of a smooth kernel at 40 points in a line: rank about ten in double precision."""
    line = np.linspace(0, 1, 40)[:, None]
    squared = (line - line.T) ** 2
    gram, other = np.exp(-2 * squared), np.exp(-squared)
    noise = 1e-3 * np.eye(40)
    expected = kl_by_hand(gram + noise, other + noise)
    np.testing.assert_allclose(information.gram_kl(gram, other, jitter=1e-3), expected, rtol=1e-2)
    slope = jax.grad(lambda jitter: information.gram_kl(gram, other, jitter=jitter))(1e-3)
    assert np.isfinite(slope)
    assert slope < 0


def test_singular_and_indefinite_matrices_are_flagged():
    one, singular = jnp.eye(2), jnp.diag(jnp.array([1.0, 0.0]))
    assert information.gram_kl(singular, one) == jnp.inf
    assert information.gram_kl(one, singular) == jnp.inf
    assert jnp.isnan(information.gram_kl(singular, singular))
    assert jnp.isnan(information.gram_kl(jnp.diag(jnp.array([1.0, -1.0])), one))
    assert jnp.isfinite(information.gram_kl(singular, singular, jitter=0.1))


def test_a_deep_kernel_s_layers():
    grams = [inner_products(seed, 5, 8) for seed in range(3)]
    widths = np.array([0.5, 2.0])
    kernel = lambda gram: gaussian_gram(gram, jnp)
    expected = [kl_by_hand(grams[i + 1], gaussian_gram(grams[i])) for i in range(2)]
    with jax.enable_x64(True):
        value = information.deep_kernel_divergence(grams, kernel, widths=widths)
        infinite = [np.eye(5), np.diag([1.0, 1, 1, 1, 0])]
        without = information.deep_kernel_divergence(infinite, kernel, widths=0.0)
    np.testing.assert_allclose(value, widths @ expected, rtol=1e-9)
    assert float(without) == 0


def test_inputs():
    with pytest.raises(ValueError, match="gram must be square"):
        information.gram_kl(np.ones((2, 3)), np.ones((2, 3)))
    with pytest.raises(ValueError, match="kernel_gram must be symmetric"):
        information.gram_kl(np.eye(2), np.array([[1.0, 0.5], [0.0, 1.0]]))
    with pytest.raises(ValueError, match="at least two"):
        information.deep_kernel_divergence([np.eye(2)], lambda gram: gram)
    with pytest.raises(ValueError, match="widths must be one number, or 1"):
        information.deep_kernel_divergence(np.ones((2, 1, 1)), lambda gram: gram, widths=[1.0, 1.0])
    with pytest.raises(ValueError, match="must return a matrix of shape"):
        information.deep_kernel_divergence(np.ones((2, 1, 1)), jnp.trace)
