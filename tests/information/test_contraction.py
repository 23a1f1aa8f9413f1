"""Contraction coefficients against brute force and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from divjax.information import contraction

CHANNEL = np.random.default_rng(0).dirichlet(np.ones(5), size=4)
INPUT = np.array([0.1, 0.2, 0.3, 0.4])


def test_total_variation_is_the_largest_between_rows():
    pairs = [np.abs(a - b).sum() / 2 for a in CHANNEL for b in CHANNEL]
    np.testing.assert_allclose(contraction.total_variation(CHANNEL), max(pairs), rtol=1e-6)


def test_chi_squared_is_the_largest_ratio_over_inputs():
    """By the second singular value in NumPy, and no input contracts less."""
    output = INPUT @ CHANNEL
    singular = np.linalg.svd(np.sqrt(INPUT)[:, None] * CHANNEL / np.sqrt(output))[1]
    with jax.enable_x64(True):
        found = float(contraction.chi_squared(CHANNEL, INPUT))
    np.testing.assert_allclose(found, singular[1] ** 2, rtol=1e-10)
    q = np.random.default_rng(1).dirichlet(np.ones(4), size=20_000)
    chi = lambda one, other: np.sum((one - other) ** 2 / other, axis=1)
    ratios = chi(q @ CHANNEL, output) / chi(q, INPUT)
    assert 0.95 * found < ratios.max() < found + 1e-12


def test_no_divergence_contracts_less_than_the_total_variation():
    p, q = np.random.default_rng(2).dirichlet(np.ones(4), size=(2, 5000))
    kl = lambda a, b: np.sum(scipy.special.rel_entr(a, b), axis=1)
    largest = (kl(p @ CHANNEL, q @ CHANNEL) / kl(p, q)).max()
    assert 0.2 * float(contraction.total_variation(CHANNEL)) < largest
    assert largest < float(contraction.total_variation(CHANNEL))


@pytest.mark.parametrize("delta", [0.0, 0.1, 0.5, 0.8])
def test_binary_symmetric_is_chi_squared_of_its_matrix(delta):
    flip = np.array([[1 - delta, delta], [delta, 1 - delta]])
    expected = contraction.chi_squared(flip, np.array([0.5, 0.5]))
    np.testing.assert_allclose(contraction.binary_symmetric(delta), expected, atol=1e-6)


@pytest.mark.parametrize("rate", [0.3, 0.7])
def test_dropout_is_the_total_variation_of_its_matrix(rate):
    """Two bits, each kept or replaced by a third symbol: four inputs and nine outputs."""
    of_bit = np.array([[1 - rate, 0, rate], [0, 1 - rate, rate]])
    expected = contraction.total_variation(np.kron(of_bit, of_bit))
    np.testing.assert_allclose(contraction.dropout(rate, 2), expected, rtol=1e-5)


def test_gaussian_noise_is_the_total_variation_of_two_normal_densities():
    grid = np.linspace(-12, 15, 20_001)
    one, two = (scipy.stats.norm.pdf(grid, mean, 1.3) for mean in (0, 3))
    expected = np.trapezoid(np.abs(one - two), grid) / 2
    np.testing.assert_allclose(contraction.gaussian_noise(3.0, 1.3), expected, rtol=1e-5)


def test_inputs():
    with pytest.raises(ValueError, match="channel must have rows of probabilities"):
        contraction.total_variation(2 * CHANNEL)
    with pytest.raises(ValueError, match="input_probabilities must have shape"):
        contraction.chi_squared(CHANNEL, INPUT[:3])
    with pytest.raises(ValueError, match="input_probabilities must be non-negative and sum"):
        contraction.chi_squared(CHANNEL, 2 * INPUT)
    with pytest.raises(ValueError, match=r"rate must be in \[0, 1\]"):
        contraction.dropout(1.5)
    with pytest.raises(ValueError, match=r"flip must be in \[0, 1\]"):
        contraction.binary_symmetric(-0.1)
    with pytest.raises(ValueError, match="scale must be positive"):
        contraction.gaussian_noise(1.0, 0.0)
    assert np.isnan(jax.jit(contraction.total_variation)(jnp.asarray(2 * CHANNEL)))
    assert np.isnan(jax.jit(contraction.chi_squared)(CHANNEL, 2 * INPUT))
