"""One typing error, ties, and what has no density: the right number, or none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from divjax import information as info
from divjax import kernels
from divjax.information import density, dimension

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(1000, 1))
Y = 0.9 * X + 0.19**0.5 * RNG.normal(size=(1000, 1))
TRUTH = -0.5 * np.log(1 - 0.81)


@pytest.mark.parametrize("cell", [1e3, -9999.0, 999999.0])
@pytest.mark.parametrize("method", [info.KSG(), info.MixedNeighbors()])
def test_a_typing_error_moves_information_by_its_share(cell, method):
    x = X.copy()
    x[0] = cell
    found = info.mutual_information(x, Y, method=method)
    assert abs(found.value - TRUTH) < 3 * found.std_error
    assert abs(found.value - info.mutual_information(X, Y, method=method).value) < 0.02


def test_rows_of_one_level_are_each_others_neighbours():
    """With a binary condition the local permutations are those within its groups."""
    rng = np.random.default_rng(1)
    z = (np.arange(200) % 2)[:, None].astype(float)
    x = rng.normal(size=(200, 1))
    y = 0.5 * x + 0.75**0.5 * rng.normal(size=(200, 1))
    test = lambda y: info.conditional_independence_test(
        KEY, x, y, z, method=info.Gaussian(), num_permutations=99
    )
    dependent = test(y)
    assert dependent.p_value == np.float32(0.01)
    # The null's mean is that of independent normal variables, near 1/(2n).
    assert abs(dependent.null.mean()) < 0.01


def test_where_there_is_no_density():
    rng = np.random.default_rng(2)
    flat = rng.normal(size=(300, 2))
    flat[:, 1] = 3
    line = flat.copy()
    line[:, 1] = 2 * line[:, 0]
    copies = np.repeat(rng.normal(size=(100, 2)), 3, axis=0)
    for x in (flat, line, copies):
        assert jnp.isnan(info.renyi_entropy(x, 2.0).value)
        assert jnp.isnan(info.tsallis_entropy(x, 0.7).value)
    assert jnp.isfinite(info.renyi_entropy(rng.normal(size=(300, 2)), 2.0).value)


def test_an_order_beside_one_is_not_a_number():
    x = np.random.default_rng(3).normal(size=(200, 2))
    with jax.enable_x64(False):
        assert jnp.isnan(info.renyi_entropy(x, 1 + 1e-6).value)


def test_no_dimension_is_negative():
    """A row at 10⁶ is the length of every tree that it is in."""
    u = np.random.default_rng(4).normal(size=(300, 3))
    u[0] = 1e6
    found = dimension.persistent_homology(KEY, u)
    assert found.value > 0 or (jnp.isnan(found.std_error) and not found.diagnostics.finite)


def test_a_factor_of_a_bandwidth_matrix_is_refused():
    x = np.random.default_rng(5).normal(size=(30, 2))
    factor = np.array([[1.0, 0.0], [0.5, 1.0]])
    with pytest.raises(ValueError, match="bandwidth must be symmetric"):
        density.log_density(x[:2], x, bandwidth=factor)
    traced = jax.jit(lambda h: density.log_density(x[:2], x, bandwidth=h))
    assert jnp.isnan(traced(jnp.asarray(factor))).all()
    squares = ((np.linalg.solve(factor, (x[:2, None] - x).reshape(-1, 2).T)) ** 2).sum(0)
    direct = np.log(np.exp(-squares.reshape(2, -1) / 2).mean(1) / (2 * np.pi))
    np.testing.assert_allclose(traced(jnp.asarray(factor @ factor.T)), direct, rtol=1e-5)


@pytest.mark.parametrize("far", [1e3, 1e4, 1e6])
def test_an_unbiased_correlation_beside_a_far_row_is_right_or_not_a_number(far):
    """By U-centred matrices in double precision."""
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(40, 2)), rng.normal(size=(40, 2))
    b[:, 0] += a[:, 0]
    a[0] = far

    def centered(matrix):
        n = len(matrix)
        np.fill_diagonal(matrix, 0)
        means = matrix.sum(0) / (n - 2)
        result = matrix - means - means[:, None] + matrix.sum() / ((n - 1) * (n - 2))
        np.fill_diagonal(result, 0)
        return result

    def correlation(of):
        one, two = centered(of(a)), centered(of(b))
        return np.sum(one * two) / np.sqrt(np.sum(one**2) * np.sum(two**2))

    distances = lambda z: np.linalg.norm(z[:, None] - z, axis=2)
    products = lambda z: (z - z.mean(0)) @ (z - z.mean(0)).T
    for found, of in (
        (info.distance_correlation(a, b, debias=True), distances),
        (info.cka(a, b, debias=True), products),
    ):
        assert jnp.isnan(found) or abs(found - correlation(of)) < 0.01
    # Something is said of moderate ones, and a constant variable is zero by definition.
    if far == 1e3:
        assert jnp.isfinite(info.distance_correlation(a, b, debias=True))
    assert info.distance_correlation(np.ones((40, 2)), b, debias=True) == 0


def test_factors_of_a_rank_need_a_positive_definite_kernel():
    with pytest.raises(ValueError, match="kernel_y must be positive definite for factors"):
        info.hsic_test(KEY, X[:50], Y[:50], kernel_y=kernels.Energy(), rank=5)
