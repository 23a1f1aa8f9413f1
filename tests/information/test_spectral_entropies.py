"""Entropies of spectra against eigenvalues in NumPy, closed forms and the authors' numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.spatial.distance

from divjax import information, kernels
from divjax.information.spectral_functions import renyi_of_spectrum


def rows(seed, n, d):
    return np.random.default_rng(seed).normal(size=(n, d))


def gram(x, sigma):
    return np.exp(-scipy.spatial.distance.cdist(x, x, "sqeuclidean") / (2 * sigma**2))


def renyi_by_hand(matrix, order):
    p = scipy.linalg.eigvalsh(matrix / np.trace(matrix))
    p = p[p > 1e-14]
    return -np.sum(p * np.log(p)) if order == 1 else np.log(np.sum(p**order)) / (1 - order)


def test_von_neumann_entropy_is_minus_the_trace_of_rho_log_rho():
    x = rows(0, 20, 5)
    matrix = x.T @ x
    rho = matrix / np.trace(matrix)
    expected = -np.trace(rho @ scipy.linalg.logm(rho))
    with jax.enable_x64(True):
        np.testing.assert_allclose(information.von_neumann_entropy(matrix), expected, rtol=1e-10)
        bits = information.von_neumann_entropy(matrix * 1e-200, base=2)
    np.testing.assert_allclose(bits, expected / np.log(2), rtol=1e-10)
    np.testing.assert_allclose(information.von_neumann_entropy(matrix), expected, rtol=1e-5)


def test_rank_one_has_no_entropy_and_no_infinite_gradient():
    x = jnp.asarray(rows(1, 1, 6), jnp.float32)
    entropy = lambda x: information.von_neumann_entropy(x.T @ x)
    value, gradient = jax.value_and_grad(entropy)(x)
    assert abs(float(value)) < 1e-5
    assert np.isfinite(gradient).all()


def test_the_gradient_is_that_of_the_spectrum_where_eigenvalues_repeat():
    """At Q diag(2, 2, 1, 1) Qᵀ along a symmetric direction, by differences."""
    q = scipy.linalg.qr(rows(2, 4, 4))[0]
    matrix = q @ np.diag([2.0, 2.0, 1.0, 1.0]) @ q.T
    direction = rows(3, 4, 4)
    direction += direction.T
    with jax.enable_x64(True):
        gradient = jax.grad(information.von_neumann_entropy)(jnp.asarray(matrix))
        step = 1e-5
        ends = [renyi_by_hand(matrix + s * step * direction, 1) for s in (1, -1)]
    slope = np.sum(np.asarray(gradient) * direction)
    np.testing.assert_allclose(slope, (ends[0] - ends[1]) / (2 * step), rtol=1e-6)
    # At the identity the entropy is largest.
    with jax.enable_x64(True):
        flat = jax.grad(information.von_neumann_entropy)(jnp.eye(5))
    np.testing.assert_allclose(flat, 0, atol=1e-12)


def test_what_is_no_density_matrix_is_flagged():
    for matrix in (
        np.diag([1.0, -0.5]),
        np.array([[1.0, 0.5], [0.0, 1.0]]),
        np.zeros((3, 3)),
        np.diag([1.0, np.nan]),
    ):
        assert np.isnan(information.von_neumann_entropy(matrix)), matrix
    with pytest.raises(ValueError, match="matrix must be square"):
        information.von_neumann_entropy(np.ones((2, 3)))


ORDERS = [0.3, 0.999, 0.99999, 1.0, 1.00001, 1.01, 1.4999, 2.0, 7.0, 60.0]


@pytest.mark.parametrize("order", ORDERS)
def test_matrix_renyi_entropy(order):
    """Around order 1, where the definition is 0/0, and far from it."""
    x = rows(4, 15, 3)
    expected = renyi_by_hand(gram(x, 1.2), order)
    with jax.enable_x64(True):
        found = information.matrix_renyi_entropy(x, order=order, kernel=kernels.Gaussian(1.2))
    rtol = 1e-10 if abs(order - 1) > 1e-4 or order == 1 else 1e-7  # the definition cancels
    np.testing.assert_allclose(found, expected, rtol=rtol)
    found = information.matrix_renyi_entropy(x, order=order, kernel=kernels.Gaussian(1.2))
    np.testing.assert_allclose(found, expected, rtol=1e-3 if order < 1 else 2e-5)


def test_the_derivative_in_the_order():
    """−Σ p (log p − mean)²/2 at order 1, and differences elsewhere."""
    p = np.array([0.5, 0.3, 0.15, 0.05])
    with jax.enable_x64(True):
        slope = jax.jit(jax.grad(lambda order: renyi_of_spectrum(jnp.asarray(p), order)))
        at_one = float(slope(1.0))
        mean = p @ np.log(p)
        np.testing.assert_allclose(at_one, -0.5 * p @ (np.log(p) - mean) ** 2, rtol=1e-9)
        of = lambda a: np.log(np.sum(p**a)) / (1 - a)
        for order in (0.2, 0.9, 1.3, 4.0):
            differences = (of(order + 1e-5) - of(order - 1e-5)) / 2e-5
            np.testing.assert_allclose(slope(order), differences, rtol=1e-6)


def test_matrix_renyi_mutual_information():
    x, y, order = rows(5, 15, 3), rows(6, 15, 2), 2.0
    a, b = gram(x, 1.2), gram(y, 0.8)
    entropy = lambda k: renyi_by_hand(k, order)
    expected = entropy(a) + entropy(b) - entropy(a * b)
    options = {"kernel_x": kernels.Gaussian(1.2), "kernel_y": kernels.Gaussian(0.8)}
    with jax.enable_x64(True):
        found = information.matrix_renyi_mutual_information(x, y, order=order, **options)
    np.testing.assert_allclose(found, expected, rtol=1e-10)


# The authors' code, on `RandomState(0).uniform(0, 1, (1000, 256))`, with σ = 10.
@pytest.mark.parametrize(("time", "expected"), [(1, 2.3081074), (2, 0.0049149)])
def test_diffusion_spectral_entropy_of_the_authors(time, expected):
    x = np.random.RandomState(0).uniform(0, 1, (1000, 256))
    with jax.enable_x64(True):
        exact = float(information.diffusion_spectral_entropy(x, time=time))
    assert abs(exact - expected) < 6e-8


# The authors' code on one sample of N(0, I_d) in 20 features, n = 500, σ = 1, in bits.
NORMAL = {1: 1.868, 2: 3.767, 4: 6.419, 8: 8.464, 16: 8.960}


@pytest.mark.exhaustive
@pytest.mark.parametrize("d", NORMAL)
def test_diffusion_spectral_entropy_grows_with_the_dimension(d):
    found = []
    for seed in range(8):
        x = np.zeros((500, 20))
        x[:, :d] = rows(seed, 500, d)
        found.append(float(information.diffusion_spectral_entropy(x, bandwidth=1.0)))
    error = np.std(found, ddof=1) * np.sqrt(1 + 1 / 8)
    assert abs(np.mean(found) - NORMAL[d]) < 3 * error


def diffusion_by_hand(x, sigma, time):
    g = gram(x, sigma)
    degrees = g.sum(axis=1)
    p = np.abs(scipy.linalg.eigvalsh(g / np.sqrt(np.outer(degrees, degrees)))) ** time
    p = p[p > 0] / p.sum()
    return -np.sum(p * np.log2(p))


@pytest.mark.parametrize("time", [0.5, 1.0, 3.0])
def test_diffusion_spectral_entropy_by_hand(time):
    x = rows(7, 25, 2)
    with jax.enable_x64(True):
        found = information.diffusion_spectral_entropy(x, bandwidth=0.4, time=time)
    expected = diffusion_by_hand(x, 0.4, time)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    single = information.diffusion_spectral_entropy(x, bandwidth=0.4, time=time)
    np.testing.assert_allclose(single, expected, rtol=1e-4)


def test_coincident_rows_have_one_entropy_and_finite_gradients():
    x = jnp.ones((6, 2))
    entropy = lambda x: information.diffusion_spectral_entropy(x, bandwidth=1.0, time=2.0)
    value, gradient = jax.value_and_grad(entropy)(x)
    assert abs(float(value)) < 1e-5
    assert np.isfinite(gradient).all()


def test_diffusion_spectral_mutual_information_is_the_difference_of_entropies():
    """By hand for each label, within three standard errors for the random subsets."""
    x = rows(8, 12, 2)
    labels = np.array(["a"] * 5 + ["b"] * 7)
    options = {"bandwidth": 0.5, "time": 2.0}
    with jax.enable_x64(True):
        found = information.diffusion_spectral_mutual_information(
            jax.random.key(0), x, labels, num_subsets=4000, **options
        )
    rng = np.random.default_rng(0)
    of = lambda index: diffusion_by_hand(x[index], 0.5, 2.0)
    random = {
        size: np.array([of(rng.permutation(12)[:size]) for _ in range(1000)]) for size in (5, 7)
    }
    expected = 5 / 12 * (random[5].mean() - of(np.arange(5)))
    expected += 7 / 12 * (random[7].mean() - of(np.arange(5, 12)))
    error = np.sqrt(sum((n / 12) ** 2 * random[n].var() for n in (5, 7)) * (1 / 1000 + 1 / 4000))
    assert abs(float(found) - expected) < 3 * error


def test_clusters_and_shuffled_labels():
    """Labels of separate blobs take away the entropy between them; random ones take nothing."""
    rng = np.random.default_rng(9)
    labels = np.repeat(np.arange(4), 20)
    x = 8 * np.eye(4)[labels] + rng.normal(size=(80, 4))
    of = lambda labels, key: float(
        information.diffusion_spectral_mutual_information(
            jax.random.key(key), x, labels, bandwidth=3.0, time=3.0
        )
    )
    assert of(labels, 0) > 1.2
    shuffled = [of(rng.permutation(labels), key) for key in range(12)]
    assert abs(np.mean(shuffled)) < 3 * np.std(shuffled, ddof=1) / np.sqrt(12)


def test_inputs():
    x, y = rows(10, 6, 2), rows(11, 5, 2)
    with pytest.raises(ValueError, match="kernel must be positive definite"):
        information.matrix_renyi_entropy(x, kernel=kernels.Energy())
    with pytest.raises(ValueError, match="the same number of rows, which are pairs; got 6 and 5"):
        information.matrix_renyi_mutual_information(x, y)
    with pytest.raises(ValueError, match="order must be a positive number"):
        information.matrix_renyi_entropy(x, order=0.0)
    with pytest.raises(ValueError, match="bandwidth must be a positive number"):
        information.diffusion_spectral_entropy(x, bandwidth=-1.0)
    with pytest.raises(ValueError, match=r"labels must have shape \(6,\)"):
        information.diffusion_spectral_mutual_information(jax.random.key(0), x, np.zeros(5, int))
    with pytest.raises(ValueError, match="labels must be known"):
        jax.jit(
            lambda labels: information.diffusion_spectral_mutual_information(
                jax.random.key(0), x, labels
            )
        )(np.zeros(6, int))
    with pytest.raises(ValueError, match="key must be one typed key"):
        information.diffusion_spectral_mutual_information(x, np.zeros(6, int))


@pytest.mark.parametrize("order", [0.6, 1.0, 2.0])
def test_weights_are_numbers_of_copies(order):
    """The spectrum of repeated rows has zeros more; a row without weight may hold anything."""
    x, y, counts = rows(20, 6, 2), rows(21, 6, 1), np.array([1, 3, 0, 2, 1, 1])
    copies = np.repeat(np.arange(6), counts)
    options = {"kernel_x": kernels.Gaussian(0.8), "kernel_y": kernels.Gaussian(1.2)}
    holes = np.where(counts[:, None] > 0, x, np.nan)
    with jax.enable_x64(True):
        weighted = information.matrix_renyi_entropy(
            holes, counts / 7, order=order, kernel=kernels.Gaussian(0.8)
        )
        both = information.matrix_renyi_mutual_information(holes, y, counts, order=order, **options)
        repeated = information.matrix_renyi_mutual_information(
            x[copies], y[copies], order=order, **options
        )
    expected = renyi_by_hand(gram(x[copies], 0.8), order)
    np.testing.assert_allclose(weighted, expected, rtol=1e-9)
    np.testing.assert_allclose(both, repeated, rtol=1e-9)


@pytest.mark.parametrize("time", [0.7, 2.0])
def test_diffusion_by_weights_is_that_of_copies(time):
    x, counts = rows(22, 6, 2), np.array([1, 3, 0, 2, 1, 1])
    copied = gram(x[np.repeat(np.arange(6), counts)], 0.9)
    degrees = np.sqrt(copied.sum(axis=1))
    values = scipy.linalg.eigvalsh(copied / degrees[:, None] / degrees)
    # Copies have eigenvalues of zero, by which a power below one magnifies rounding.
    q = np.where(values > 1e-12, np.abs(values) ** time, 0)
    q = q[q > 0] / q.sum()
    holes = np.where(counts[:, None] > 0, x, np.inf)
    with jax.enable_x64(True):
        found = information.diffusion_spectral_entropy(holes, counts / 8, bandwidth=0.9, time=time)
    np.testing.assert_allclose(found, -np.sum(q * np.log2(q)), rtol=1e-7)
