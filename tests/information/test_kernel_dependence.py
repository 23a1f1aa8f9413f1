"""HSIC, CKA and Cauchy–Schwarz mutual information: definitions and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from divjax import kernels
from divjax.information import (
    cauchy_schwarz_mutual_information,
    cka,
    distance_covariance,
    hsic,
)

RNG = np.random.default_rng(0)
N = 12
X, Y = RNG.normal(size=(N, 2)), RNG.normal(size=(N, 1))
Y = Y + X[:, :1] ** 2
WEIGHTS = RNG.uniform(0.3, 1, size=N)
SIGMA_X, SIGMA_Y = 0.8, 1.3
OPTIONS = {"kernel_x": kernels.Gaussian(SIGMA_X), "kernel_y": kernels.Gaussian(SIGMA_Y)}


def gaussian(x, sigma):
    return np.exp(-((x[:, None] - x) ** 2).sum(axis=2) / (2 * sigma**2))


K, L = gaussian(X, SIGMA_X), gaussian(Y, SIGMA_Y)


def trace_form(k, l):
    """tr(KHLH)/n²."""
    n = len(k)
    h = np.eye(n) - 1 / n
    return np.trace(k @ h @ l @ h) / n**2


def song(k, l):
    """Song et al. 2012, theorem 2."""
    n = len(k)
    k, l = k - np.diag(np.diag(k)), l - np.diag(np.diag(l))
    total = np.trace(k @ l) + k.sum() * l.sum() / ((n - 1) * (n - 2))
    return (total - 2 / (n - 2) * (k @ l).sum()) / (n * (n - 3))


@pytest.mark.parametrize(("debias", "definition"), [(False, trace_form), (True, song)])
def test_hsic_is_its_definition(debias, definition):
    np.testing.assert_allclose(hsic(X, Y, debias=debias, **OPTIONS), definition(K, L), rtol=2e-5)
    # A kernel of inner products is not centred.
    polynomial = kernels.Polynomial(degree=2)
    found = hsic(X, Y, kernel_x=polynomial, kernel_y=OPTIONS["kernel_y"], debias=debias)
    np.testing.assert_allclose(found, definition((X @ X.T + 1) ** 2, L), rtol=2e-5)


def test_weights():
    w = WEIGHTS / WEIGHTS.sum()
    center = lambda k: k - (k @ w)[:, None] - k @ w + w @ k @ w
    truth = w @ (center(K) * center(L)) @ w
    np.testing.assert_allclose(hsic(X, Y, WEIGHTS, **OPTIONS), truth, rtol=2e-5)


def test_energy_kernels_give_distance_covariance():
    options = {"kernel_x": kernels.Energy(), "kernel_y": kernels.Energy()}
    for debias in (False, True):
        np.testing.assert_allclose(
            hsic(X, Y, WEIGHTS, debias=debias, **options),
            distance_covariance(X, Y, WEIGHTS, debias=debias),
            rtol=2e-5,
        )


def normal_hsic(rho, sigma_x, sigma_y):
    """Of a bivariate normal: each term is E exp(−½ zᵀAz) = det(I + AC)^(−½), z ~ N(0, C).

    C is the covariance of (X − X′, Y − Y′), of (X − X′, Y − Y″), and of independent differences.
    """
    a = np.diag([sigma_x**-2, sigma_y**-2])
    term = lambda cross: np.linalg.det(np.eye(2) + a @ [[2, cross], [cross, 2]]) ** -0.5
    return term(2 * rho) - 2 * term(rho) + term(0)


@pytest.mark.parametrize("rho", [0.0, 0.7])
def test_normal_variables(rho):
    z = jax.random.normal(jax.random.key(0), (200, 60, 2))
    y = rho * z[..., 0] + np.sqrt(1 - rho**2) * z[..., 1]
    statistic = jax.jit(jax.vmap(lambda x, y: hsic(x, y, debias=True, **OPTIONS)))
    values = np.asarray(statistic(z[..., :1], y[..., None]), float)
    standard_error = values.std(ddof=1) / np.sqrt(len(values))
    assert abs(values.mean() - normal_hsic(rho, SIGMA_X, SIGMA_Y)) < 3 * standard_error


@pytest.mark.exhaustive
def test_each_variable_has_its_own_bandwidth():
    rule = kernels.Gaussian(kernels.MedianDistance())
    fixed = {"kernel_x": rule.at(X), "kernel_y": rule.at(Y)}
    np.testing.assert_allclose(hsic(X, Y), hsic(X, Y, **fixed), rtol=1e-3)  # the rule's


def test_wide_kernels_keep_their_digits():
    """With k = 1 − δ, HSIC is of order δ², below the rounding of k² itself."""
    wide = {"kernel_x": kernels.Gaussian(1e3), "kernel_y": kernels.Gaussian(1e3)}
    with jax.enable_x64(True):
        truth = trace_form(gaussian(X, 1e3), gaussian(Y, 1e3))
        np.testing.assert_allclose(hsic(X, Y, **wide), truth, rtol=1e-6)


def test_linear_cka_is_its_formula():
    x, y = X - X.mean(axis=0), Y - Y.mean(axis=0)
    norm = np.linalg.norm
    truth = norm(y.T @ x) ** 2 / norm(x.T @ x) / norm(y.T @ y)
    np.testing.assert_allclose(cka(X, Y), truth, rtol=2e-5)
    # Invariant to a rotation, a factor and a shift.
    rotation = np.linalg.qr(RNG.normal(size=(2, 2)))[0]
    np.testing.assert_allclose(cka(X, 3 * X @ rotation - 1), 1, rtol=1e-5)


@pytest.mark.parametrize("features", [3, 40], ids=["by features", "by rows"])
def test_unbiased_linear_cka(features):
    x = RNG.normal(size=(N, features))
    y = RNG.normal(size=(N, features)) + x
    kx, ky = x @ x.T, y @ y.T
    for debias, definition in ((False, trace_form), (True, song)):
        truth = definition(kx, ky) / np.sqrt(definition(kx, kx) * definition(ky, ky))
        np.testing.assert_allclose(cka(x, y, debias=debias), truth, rtol=1e-4)


@pytest.mark.exhaustive
def test_weighted_linear_cka_by_features_and_by_rows():
    """Columns of zeros change nothing but the way of computation."""
    padded = np.hstack([X, np.zeros((N, 2 * N))])
    for debias in (False, True):
        np.testing.assert_allclose(
            cka(X, Y, WEIGHTS, debias=debias), cka(padded, Y, WEIGHTS, debias=debias), rtol=1e-4
        )


def test_kernel_cka():
    truth = trace_form(K, L) / np.sqrt(trace_form(K, K) * trace_form(L, L))
    np.testing.assert_allclose(cka(X, Y, **OPTIONS), truth, rtol=2e-5)


def test_hyppo_has_the_same_alignment():
    """Numbers of hyppo 0.5.2's `Hsic` with γ = ½: the biased one there is the root."""
    rng = np.random.default_rng(42)
    x = rng.normal(size=(30, 2))
    y = np.sin(x[:, :1]) + rng.normal(size=(30, 1)) / 2
    unit = {"kernel_x": kernels.Gaussian(1.0), "kernel_y": kernels.Gaussian(1.0)}
    with jax.enable_x64(True):
        np.testing.assert_allclose(cka(x, y, **unit) ** 0.5, 0.6775312915580024, rtol=1e-9)
        np.testing.assert_allclose(cka(x, y, debias=True, **unit), 0.41197785367803624, rtol=1e-9)


def test_the_alignment_with_a_constant_is_zero():
    constant = np.full((N, 1), 0.1)
    for debias in (False, True):
        assert float(cka(X, constant, debias=debias)) == 0
        assert float(cka(X, constant, debias=debias, **OPTIONS)) == 0


def cauchy_schwarz(k, l):
    terms = (k * l).mean(), k.mean() * l.mean(), (k @ l).sum() / len(k) ** 3
    return np.log(terms[0]) + np.log(terms[1]) - 2 * np.log(terms[2])


def test_cauchy_schwarz_mutual_information():
    truth = cauchy_schwarz(K, L)
    np.testing.assert_allclose(cauchy_schwarz_mutual_information(X, Y, **OPTIONS), truth, rtol=2e-5)
    bits = cauchy_schwarz_mutual_information(X, Y, base=2, **OPTIONS)
    np.testing.assert_allclose(bits, truth / np.log(2), rtol=2e-5)
    share = cauchy_schwarz_mutual_information(X, Y, normalized=True, **OPTIONS)
    truth /= np.sqrt(cauchy_schwarz(K, K) * cauchy_schwarz(L, L))
    np.testing.assert_allclose(share, truth, rtol=2e-5)


def test_independent_in_the_sample_itself():
    """On the product of two samples the joint distribution is the product of its marginals."""
    x, y = (v.reshape(-1, 1) for v in np.meshgrid(X[:6, 0], Y[:5, 0]))
    assert abs(float(cauchy_schwarz_mutual_information(x, y, **OPTIONS))) < 1e-7
    assert abs(float(hsic(x, y, **OPTIONS))) < 1e-8


def test_memory_stays_below_a_gigabyte():
    rows = jax.ShapeDtypeStruct((50_000, 2), jnp.float32)
    value = jax.jit(jax.value_and_grad(lambda x, y: hsic(x, y, **OPTIONS)))
    memory = value.lower(rows, rows).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 2**29


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="kernel_x must be a kernel"):
        hsic(X, Y, kernel_x=lambda x, y: 0.0)
    with pytest.raises(ValueError, match="kernel_y must be positive"):
        cauchy_schwarz_mutual_information(X, Y, kernel_y=kernels.Energy())
    with pytest.raises(ValueError, match="at least 4 rows to debias"):
        cka(X[:3], Y[:3], debias=True)


@pytest.mark.parametrize("spread", [1e-3, 1e-6])
def test_kernels_far_wider_than_their_variables(spread):
    """By NumPy, in double precision, from k − 1: all values of k are one up to rounding."""
    rng = np.random.default_rng(5)
    u = np.float32(spread * rng.normal(size=(60, 1)))
    v = np.float32(u + 0.3 * spread * rng.normal(size=(60, 1)))

    def below(rows):
        rows = np.float64(rows)
        return np.expm1(-((rows - rows.T) ** 2) / 2)

    def divergence(a, b):
        """As log(1 + (J − τ²)/(1 + τ)²) with J of doubly centred matrices, τ of row means."""
        total = (1 + a.mean()) * (1 + b.mean())
        center = lambda k: k - k.mean(0) - k.mean(1)[:, None] + k.mean()
        joint = np.mean(center(a) * center(b)) / total
        tau = np.mean((a.mean(0) - a.mean()) * (b.mean(0) - b.mean())) / total
        return np.log1p((joint - tau**2) / (1 + tau) ** 2)

    a, b = below(u), below(v)
    one = {"kernel_x": kernels.Gaussian(1.0), "kernel_y": kernels.Gaussian(1.0)}
    arrays = jnp.asarray(u), jnp.asarray(v)
    found = cauchy_schwarz_mutual_information(*arrays, **one)
    np.testing.assert_allclose(found, divergence(a, b), rtol=1e-4)
    found = cauchy_schwarz_mutual_information(*arrays, normalized=True, **one)
    expected = divergence(a, b) / np.sqrt(divergence(a, a)) / np.sqrt(divergence(b, b))
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    constant = jnp.ones((60, 1))
    assert cauchy_schwarz_mutual_information(constant, arrays[1], normalized=True) == 0
