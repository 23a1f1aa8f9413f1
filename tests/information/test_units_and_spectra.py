"""Two scales, single wrong cells, units beyond float32's range, and spectra up to rounding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.feature_selection import mutual_info_regression

from divjax import information as info
from divjax import kernels
from divjax.information import density, dimension

KEY = jax.random.key(0)
METHODS = [info.KSG(), info.KSG(algorithm=2), info.MixedNeighbors()]
RNG = np.random.default_rng(0)
X = RNG.normal(size=(400, 1))
Y = X + RNG.normal(size=(400, 1))


@pytest.mark.parametrize("method", METHODS)
def test_information_at_two_scales(method):
    """Against scikit-learn, in units of the plain standard deviation."""
    rng = np.random.default_rng(0)
    x = np.where(rng.random((1000, 1)) < 0.4, 1.0, 1e-4) * rng.normal(size=(1000, 1))
    y = x + 0.3 * rng.normal(size=(1000, 1))
    (known,) = mutual_info_regression(x, y[:, 0], random_state=0)
    found = info.mutual_information(x, y, method=method)
    assert abs(found.value - known) < 2 * found.std_error


@pytest.mark.parametrize("cell", [-9999.0, 1e6, 1e30])
def test_a_typing_error_among_zeros_or_indicators(cell):
    """More than half of the rows are equal: no interquartile range."""
    rng = np.random.default_rng(0)
    some = rng.random((1000, 1))
    zeros = np.where(some < 0.6, 0, rng.normal(size=(1000, 1)))
    ones, rare = (some < 0.2).astype(float), (some < 0.02).astype(float)
    noise = rng.normal(size=(1000, 1))
    for x, y in ((zeros, zeros + 0.3 * noise), (ones, 2 * ones + noise), (rare, 3 * rare + noise)):
        wrong = x.copy()
        wrong[0] = cell
        method = info.MixedNeighbors()
        clean = info.mutual_information(x, y, method=method)
        found = info.mutual_information(wrong, y, method=method)
        assert abs(found.value - clean.value) < 0.02


def test_levels_stay_apart_beside_a_typing_error():
    """A binary condition and a true hypothesis: permutations within the levels."""
    rng = np.random.default_rng(1)
    z = (rng.random((200, 1)) < 0.5).astype(float)
    x, y = 5 * z + rng.normal(size=(200, 1)), 5 * z + rng.normal(size=(200, 1))
    z[0] = 1e6
    test = info.conditional_independence_test(
        KEY, x, y, z, method=info.Gaussian(), num_permutations=39
    )
    assert test.p_value > 0.05


def test_levels_of_few_rows_are_permuted_within():
    """Sixty levels of three rows, a true hypothesis: the p-values' mean is ½, 1/√12 each."""
    p_values = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        z = np.repeat(np.arange(60.0), 3)[:, None]
        x, y = (3 * z + rng.normal(size=(180, 1)) for _ in range(2))
        x, y = x % 7, y % 7
        found = info.conditional_independence_test(
            jax.random.key(seed), x, y, z, method=info.Gaussian(), num_permutations=39
        )
        p_values.append(float(found.p_value))
    assert abs(np.mean(p_values) - 0.5) < 3 / np.sqrt(12 * len(p_values))


@pytest.mark.parametrize("unit", [1e-42, 1e-39, 3e37, 1e45])
@pytest.mark.parametrize("method", [info.KSG(), info.Gaussian()])
def test_information_has_no_unit(unit, method):
    """A power of two near it: then nothing is rounded."""
    unit = 2.0 ** np.round(np.log2(unit))
    with jax.enable_x64(False):
        one = info.mutual_information(X, Y, method=method).value
        np.testing.assert_allclose(
            info.mutual_information(X * unit, Y, method=method).value, one, rtol=1e-5
        )


def test_rows_that_float32_merges_are_not_constant():
    x = X[:30] * 1e-42
    y = Y[:30]
    with jax.enable_x64(False):
        for found in (
            info.distance_correlation(x, y),
            info.cka(x, y),
            info.hsic(x, y),
            info.distance_covariance_test(KEY, x, y, num_permutations=9).p_value,
            info.hsic_test(KEY, x, y, num_permutations=9).p_value,
            info.matrix_renyi_entropy(x),
            info.matrix_renyi_mutual_information(x, y),
        ):
            assert jnp.isnan(found)
        # A constant variable is one.
        assert info.distance_correlation(np.full((30, 1), 1e-42), y) == 0


def test_an_infinite_column_has_no_information():
    column = np.full((400, 1), np.inf)
    for x in (column, np.hstack([X, column])):
        found = info.mutual_information(x, Y, method=info.Gaussian())
        assert jnp.isnan(found.value)
        assert jnp.isnan(found.std_error)


@pytest.mark.parametrize("unit", [1e-20, 1.0, 1e18])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_row_that_is_not_finite_does_not_change_others(unit, bad):
    rows = (np.random.default_rng(0).normal(size=(400, 2)) * unit).astype(np.float32)
    queries = rows[:50] + np.float32(unit / 2)
    clean = density.knn_log_density(queries, rows)
    wrong = queries.copy()
    wrong[7, 0] = bad
    found = density.knn_log_density(wrong, rows)
    others = np.arange(50) != 7
    np.testing.assert_allclose(found[others], clean[others], rtol=1e-6)
    with_bad = rows.copy()
    with_bad[7, 0] = bad
    assert abs(jnp.nanmean(dimension.local(with_bad)) - jnp.nanmean(dimension.local(rows))) < 0.02


def test_a_coincident_point_of_the_same_program_has_infinite_density():
    @jax.jit
    def infinite(key):
        first, second = jax.random.split(key)
        x, z = jax.random.normal(first, (1000, 1)), jax.random.normal(second, (2000, 1))
        return density.knn_log_density(z, x, k=1), (z == x.T).any(axis=1)

    for seed in range(12):
        found, coincides = infinite(jax.random.key(seed))
        assert (jnp.isposinf(found) == coincides).all()
        assert not jnp.isnan(found).any()


@pytest.mark.parametrize("order", [0.1, 0.2, 0.5, 1.0, 2.0])
def test_two_kinds_of_rows_have_one_bit_at_every_order(order):
    x = np.repeat([[0.0], [50.0]], 50, axis=0)
    with jax.enable_x64(False):
        found = info.matrix_renyi_entropy(x, order=order, kernel=kernels.Gaussian(1.0), base=2)
    np.testing.assert_allclose(found, 1, atol=1e-4)


def test_separate_clusters_have_their_bits_at_every_time():
    clusters = np.repeat([[0.0], [100.0], [200.0], [300.0]], 30, axis=0)
    with jax.enable_x64(False):
        for time in (1e2, 1e8):
            np.testing.assert_allclose(
                info.diffusion_spectral_entropy(clusters, time=time), 2, atol=1e-4
            )


def test_one_ratio_has_no_standard_error():
    found = dimension.two_nn(np.random.default_rng(0).normal(size=(10, 2)), discard=0.85)
    assert jnp.isfinite(found.value)
    assert jnp.isnan(found.std_error)


@pytest.mark.parametrize("row", [[1.5, -0.5], [0.5, 0.4]])
def test_a_model_of_no_probabilities_is_refused(row):
    model = np.array([[0.5, 0.5], row])
    of = lambda model: density.nearest_neighbor_distribution(
        X[:2], X[2:8], np.arange(6) % 2, 2, k=3, model=model
    )
    with pytest.raises(ValueError, match="model must have rows of probabilities"):
        of(model)
    found = jax.jit(of)(jnp.asarray(model))
    assert jnp.isfinite(found[0]).all()
    assert jnp.isnan(found[1]).all()


def test_messages_name_what_was_given():
    with pytest.raises(ValueError, match="x must have at least 122 rows"):
        dimension.persistent_homology(KEY, np.zeros((120, 2)))
    for size in (-1, 0, 2.5):
        with pytest.raises(ValueError, match="batch_size must be an integer of at least 1"):
            info.mutual_information_screening(X, Y, batch_size=size)
        with pytest.raises(ValueError, match="batch_size must be an integer of at least 1"):
            info.conditional_independence_test(KEY, X, Y, Y, batch_size=size)
