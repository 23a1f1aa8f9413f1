"""Maximal correlation against eigenproblems in NumPy and SciPy, classical CCA, and tables."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import divjax
from divjax import information, kernels


@divjax.pytree
class Indicator:
    """1 for rows that are equal."""

    def init(self, x):
        return ()

    def resolve(self, x, state):
        return self, state

    def __call__(self, x, y=None):
        y = x if y is None else y
        return jnp.all(x[:, None] == y, axis=2).astype(x.dtype)


def pairs(n, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 2))
    return x, np.column_stack([x[:, 0] ** 2, x[:, 1]]) + rng.normal(size=(n, 2))


def gaussian(x, bandwidth):
    return np.exp(-((x[:, None] - x) ** 2).sum(axis=2) / (2 * bandwidth**2))


def by_eigenvalues(k, l, weights, ridge):
    """The root of the largest eigenvalue of K(K + ε)⁻¹ L(L + ε)⁻¹."""
    masses = weights / weights.sum()
    root, products = np.sqrt(masses), []
    for matrix in (k, l):
        centering = np.eye(len(masses)) - masses
        centered = root[:, None] * (centering @ matrix @ centering.T) * root
        epsilon = ridge * np.trace(centered)
        products.append(np.linalg.solve(centered + epsilon * np.eye(len(masses)), centered))
    return np.sqrt(np.max(np.real(np.linalg.eigvals(products[0] @ products[1]))))


WEIGHTS = np.random.default_rng(2).uniform(0.5, 2, size=40)


@pytest.mark.parametrize(
    "ridge", [0.02, pytest.param(1e-6, marks=pytest.mark.exhaustive)], ids=["default", "small"]
)
def test_kernels(ridge):
    x, y = pairs(40)
    truth = by_eigenvalues(gaussian(x, 0.7), gaussian(y, 1.5), WEIGHTS, ridge)
    options = {"kernel_x": kernels.Gaussian(0.7), "kernel_y": kernels.Gaussian(1.5)}
    with jax.enable_x64(True):
        found = information.maximal_correlation(x, y, WEIGHTS, ridge=ridge, **options)
    np.testing.assert_allclose(found, truth, rtol=1e-8)


def linear(x, y, **options):
    return information.maximal_correlation(x, y, kernel_x=None, kernel_y=None, **options)


def test_linear_kernels():
    """The generalised eigenproblem with a ridge, and classical CCA by QR without."""
    x, y = pairs(40)
    x = x * [1.0, 30.0] + 5
    masses = WEIGHTS / WEIGHTS.sum()
    centered = [z - masses @ z for z in (x, y)]
    of_x, both, of_y = (
        (p * masses[:, None]).T @ q
        for p, q in (
            (centered[0], centered[0]),
            (centered[0], centered[1]),
            (centered[1], centered[1]),
        )
    )
    ridged = [c + 0.3 * np.trace(c) * np.eye(2) for c in (of_x, of_y)]
    zero = np.zeros((2, 2))
    values = scipy.linalg.eigh(
        np.block([[zero, both], [both.T, zero]]),
        scipy.linalg.block_diag(*ridged),
        eigvals_only=True,
    )
    bases = [np.linalg.qr(np.sqrt(masses)[:, None] * z)[0] for z in centered]
    canonical = np.linalg.svd(bases[0].T @ bases[1])[1][0]
    with jax.enable_x64(True):
        for ridge, truth in ((0.3, values[-1]), (1e-13, canonical)):
            found = linear(x, y, weights=WEIGHTS, ridge=ridge)
            np.testing.assert_allclose(found, truth, rtol=1e-9)
    np.testing.assert_allclose(linear(x, y, weights=WEIGHTS, ridge=3e-6), canonical, rtol=2e-3)


@pytest.mark.exhaustive
def test_categories():
    """The second singular value of p_ij/(p_i. p_.j)^½, by one-hot columns and by an indicator."""
    rng = np.random.default_rng(1)
    x = rng.integers(3, size=200)
    y = np.where(rng.random(200) < 0.5, x, rng.integers(4, size=200))
    table = np.zeros((3, 4))
    np.add.at(table, (x, y), 1 / 200)
    normalized = table / np.sqrt(table.sum(1)[:, None] * table.sum(0))
    truth = np.linalg.svd(normalized)[1][1]
    with jax.enable_x64(True):
        columns = linear(np.eye(3)[x], np.eye(4)[y], ridge=1e-12)
        given = information.maximal_correlation(
            x[:, None], y[:, None], kernel_x=Indicator(), kernel_y=Indicator(), ridge=1e-9
        )
    np.testing.assert_allclose(columns, truth, rtol=1e-8)
    np.testing.assert_allclose(given, truth, rtol=1e-6)


@pytest.mark.exhaustive
def test_gaussian_pairs():
    """|ρ| in the population; a fitted function of 400 rows has a few hundredths more or less."""
    draws = np.random.default_rng(0).normal(size=(8, 2, 400, 1))
    for rho in (0.0, 0.6, 0.95):
        x, y = draws[:, 0], rho * draws[:, 0] + np.sqrt(1 - rho**2) * draws[:, 1]
        found = [float(information.maximal_correlation(*pair)) for pair in zip(x, y, strict=True)]
        assert abs(np.mean(found) - rho) < (0.25 if rho == 0 else 0.06)


@pytest.mark.exhaustive
def test_all_columns_are_the_whole_matrix():
    x, y = pairs(40)
    options = {"kernel_x": kernels.Gaussian(0.7), "kernel_y": kernels.Matern(1.5)}
    with jax.enable_x64(True):
        whole = information.maximal_correlation(x, y, WEIGHTS, **options)
        factors = information.maximal_correlation(x, y, WEIGHTS, rank=40, **options)
        few = information.maximal_correlation(x, y, WEIGHTS, rank=20, **options)
    np.testing.assert_allclose(factors, whole, rtol=1e-7)
    np.testing.assert_allclose(few, whole, rtol=0.1)


@pytest.mark.exhaustive
def test_edges():
    x, y = pairs(40)
    assert information.maximal_correlation(x, np.ones((40, 1))) == 0
    assert linear(x, np.ones((40, 1))) == 0
    np.testing.assert_allclose(information.maximal_correlation(x, x, ridge=1e-4), 1, atol=1e-2)
    # Lost in the rounding of single precision, where noise would be correlated.
    assert jnp.isnan(information.maximal_correlation(x, y, ridge=1e-9))
    assert jnp.isnan(jax.jit(lambda r: information.maximal_correlation(x, y, ridge=r))(-1.0))
    for scale in (1e-6, 1e6):
        np.testing.assert_allclose(linear(scale * x, y), linear(x, y), rtol=1e-4)


def test_what_is_refused():
    x, y = pairs(6)
    with pytest.raises(ValueError, match="ridge"):
        information.maximal_correlation(x, y, ridge=0.0)
    with pytest.raises(ValueError, match="number of rows"):
        information.maximal_correlation(x, y[:5])
    with pytest.raises(ValueError, match="kernel_y must be positive definite"):
        information.maximal_correlation(x, y, kernel_y=kernels.Energy(), rank=3)
