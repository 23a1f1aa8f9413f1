"""Fitted Gaussians in large dimension against SciPy's special functions and simulation."""

import jax
import numpy as np
import pytest
import scipy.integrate
import scipy.special

from divjax.information import linear_memorization


def mean_root(load):
    """E √λ of the Marchenko–Pastur law with ratio c = 1/load: ₂F₁(−½, ½; 2; c) for c ≤ 1."""
    c = 1 / load
    moment = lambda c: scipy.special.hyp2f1(-0.5, 0.5, 2, c)
    return moment(c) if c <= 1 else c**-0.5 * moment(1 / c)


def test_bulk_distance_is_a_hypergeometric_function():
    loads = np.array([0.01, 0.1, 0.5, 0.9, 1.0, 1.1, 2.0, 20.0, 1e4])
    expected = [2 - 2 * mean_root(load) for load in loads]
    with jax.enable_x64(True):
        found = linear_memorization.bulk_distance(loads)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-10)
    np.testing.assert_allclose(linear_memorization.bulk_distance(loads), expected, rtol=2e-5)
    np.testing.assert_allclose(linear_memorization.bulk_distance(1e4), 1 / 4e4, rtol=1e-3)


@pytest.mark.parametrize("load", [0.5, 2.0])
def test_simulation(load):
    """d = 300 with a spike of 3: the corrections are of order 1/d for the bulk."""
    d, spike = 300, 3.0
    n = int(load * d)
    bulk, overlap = [], []
    for seed in range(8):
        x = np.random.default_rng(seed).normal(size=(n, d))
        eigenvalues = np.maximum(np.linalg.eigvalsh(x.T @ x / n), 0)
        bulk.append(np.mean((np.sqrt(eigenvalues) - 1) ** 2))
        x[:, 0] *= np.sqrt(1 + spike)
        overlap.append(np.linalg.eigh(x.T @ x / n)[1][0, -1] ** 2)
    expected = linear_memorization.bulk_distance(load)
    np.testing.assert_allclose(np.mean(bulk), expected, rtol=0.01)
    expected = linear_memorization.eigenvector_overlap(spike, load)
    assert abs(np.mean(overlap) - expected) < 3 * np.std(overlap, ddof=1) / np.sqrt(8) + 10 / d


def test_the_transition():
    """At load 1/θ²: below it nothing is visible."""
    overlap = linear_memorization.eigenvector_overlap(3.0, np.array([0.05, 1 / 9, 0.2, 5.0, 1e6]))
    assert overlap[0] == 0
    assert not np.signbit(overlap[0])
    assert abs(overlap[1]) < 1e-6
    np.testing.assert_allclose(overlap[2], (1 - 5 / 9) / (1 + 5 / 3), rtol=1e-5)
    np.testing.assert_allclose(overlap[3], 0.917, atol=1e-3)
    np.testing.assert_allclose(overlap[4], 1, rtol=1e-5)


def test_inputs():
    with pytest.raises(ValueError, match="load must be positive"):
        linear_memorization.bulk_distance(0.0)
    with pytest.raises(ValueError, match="spike must be positive"):
        linear_memorization.eigenvector_overlap(-1.0, 1.0)
    with pytest.raises(ValueError, match="other_load must be positive"):
        linear_memorization.model_distance(1.0, -1.0)
    assert np.isnan(jax.jit(linear_memorization.bulk_distance)(-1.0))
    assert np.isnan(jax.jit(linear_memorization.model_distance)(1.0, -1.0))


def of_two_models(load, other_load):
    """Quadrature of the S-transforms' integral, by SciPy."""
    c, other = 1 / load, 1 / other_load
    root = lambda m: np.sqrt(max((1 - m) * (1 - c * m) * (1 - other * m), 0))
    end = min(1, load, other_load)
    value, _ = scipy.integrate.quad(root, 0, end, weight="alg", wvar=(-0.5, 0), epsabs=1e-12)
    return 2 - 4 / np.pi * value


def test_model_distance_is_an_integral():
    pairs = [
        (0.05, 0.05),
        (0.1, 3.0),
        (0.99, 1.02),
        (1.0, 1.0),
        (0.7, 0.7),
        (5.0, 2.0),
        (50.0, 9.0),
    ]
    expected = [of_two_models(*pair) for pair in pairs]
    loads = np.array(pairs).T
    with jax.enable_x64(True):
        found = linear_memorization.model_distance(*loads)
        np.testing.assert_allclose(found, linear_memorization.model_distance(*loads[::-1]))
    np.testing.assert_allclose(found, expected, rtol=1e-7)
    np.testing.assert_allclose(linear_memorization.model_distance(*loads), expected, rtol=1e-5)
    equal = np.array([1.0, 2.0, 7.0, 300.0])
    found = linear_memorization.model_distance(equal, equal)
    np.testing.assert_allclose(found, 1 / (2 * equal), rtol=1e-5)


def test_models_of_many_rows_have_independent_errors():
    one, other = linear_memorization.bulk_distance(np.array([1e4, 3e3]))
    both = linear_memorization.model_distance(1e4, 3e3)
    np.testing.assert_allclose(both, one + other, rtol=1e-3)
    one, both = (
        linear_memorization.bulk_distance(0.4),
        linear_memorization.model_distance(0.4, 1e7),
    )
    np.testing.assert_allclose(both, one, rtol=1e-6)


@pytest.mark.parametrize("loads", [(0.1, 0.1), (1.0, 1.0), (0.5, 3.0)])
def test_two_models_in_simulation(loads):
    """tr (Σ̂^½ Σ̂′ Σ̂^½)^½ is the sum of the singular values of X X′ᵀ/√(n n′)."""
    d, distances = 200, []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        x, y = (rng.normal(size=(int(load * d), d)) / np.sqrt(int(load * d)) for load in loads)
        cross = np.linalg.svd(x @ y.T, compute_uv=False).sum()
        distances.append((np.sum(x**2) + np.sum(y**2) - 2 * cross) / d)
    expected = linear_memorization.model_distance(*loads)
    error = np.std(distances, ddof=1) / np.sqrt(len(distances))
    assert abs(np.mean(distances) - expected) < 4 * error + 2 / d
    # Memory: another sample's model is farther away than the truth.
    assert np.mean(distances) > 1.02 * max(linear_memorization.bulk_distance(np.array(loads)))


def test_derivatives_at_equal_numbers_of_rows_and_features():
    """The ratio of the larger to the smaller of n and d has a corner there, the distance none."""
    with jax.enable_x64(True):
        slope = jax.grad(linear_memorization.bulk_distance)(1.0)
        low, high = np.asarray(linear_memorization.bulk_distance(np.array([0.999, 1.001])))
    np.testing.assert_allclose(slope, (high - low) / 0.002, rtol=1e-3)
