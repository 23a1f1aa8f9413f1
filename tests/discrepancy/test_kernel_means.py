"""MMD and its witness against double loops, closed forms and theorems."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import cdist

from divjax import discrepancy, flows, kernels

KEY = jax.random.key(0)


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


def samples(n=30, m=20, d=3, seed=0):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, d)), 1.3 * rng.normal(size=(m, d)) + 0.5
    return x, y, rng.uniform(size=n), rng.uniform(size=m)


def by_loop(k, x, y, a, b, unbiased):
    """The definition, pair by pair."""
    a, b = a / a.sum(), b / b.sum()
    total = 0.0
    for z, w in ((x, a), (y, b)):
        pairs = [(i, j) for i in range(len(z)) for j in range(len(z)) if not unbiased or i != j]
        mass = sum(w[i] * w[j] for i, j in pairs)
        total += sum(w[i] * w[j] * k(z[i], z[j]) for i, j in pairs) / mass
    cross = sum(a[i] * b[j] * k(x[i], y[j]) for i in range(len(x)) for j in range(len(y)))
    return total - 2 * cross


@pytest.mark.parametrize("debias", [False, True])
def test_mmd_is_the_double_loop(debias):
    x, y, a, b = samples()
    gaussian = lambda u, v: np.exp(-np.sum((u - v) ** 2) / (2 * 0.8**2))
    cubic = lambda u, v: (u @ v / 3 + 1) ** 3
    for kernel, k in (
        (kernels.Gaussian(0.8), gaussian),
        (kernels.Polynomial(3, 1.0, 1 / 3), cubic),
    ):
        found = discrepancy.mmd(x, y, a, b, kernel=kernel, debias=debias)
        np.testing.assert_allclose(found, by_loop(k, x, y, a, b, debias), rtol=1e-10)
        even = by_loop(k, x, y, np.ones(30), np.ones(20), debias)
        found = discrepancy.mmd(x, y, kernel=kernel, debias=debias)
        np.testing.assert_allclose(found, even, rtol=1e-10)


def gaussian_mmd(d, shift, variance, sigma):
    """Between N(0, I) and N(shift·1, variance·I): means of a Gaussian kernel are Gaussian."""
    mean = lambda v, gap: (
        (sigma**2 / (sigma**2 + v)) ** (d / 2) * np.exp(-d * gap**2 / (2 * (sigma**2 + v)))
    )
    return mean(2.0, 0.0) + mean(2 * variance, 0.0) - 2 * mean(1 + variance, shift)


def test_u_statistics_are_unbiased_for_gaussians():
    draws = jax.random.normal(KEY, (400, 2, 40, 2))
    x, y = draws[:, 0], 1.2 * draws[:, 1] + 0.4
    for kernel in (0.7, 2.0):
        u = jax.vmap(
            lambda x, y, s=kernel: discrepancy.mmd(x, y, kernel=kernels.Gaussian(s), debias=True)
        )(x, y)
        truth = gaussian_mmd(2, 0.4, 1.44, kernel)
        assert abs(u.mean() - truth) < 3 * u.std() / 20
        # The V-statistic is larger by the mean of κ(0) − k over pairs within each sample.
        v = jax.vmap(lambda x, y, s=kernel: discrepancy.mmd(x, y, kernel=kernels.Gaussian(s)))(x, y)
        within = [(kernel**2 / (kernel**2 + 2 * var)) for var in (1.0, 1.44)]
        bias = sum((1 - mean) / 40 for mean in within)
        assert abs(v.mean() - truth - bias) < 3 * v.std() / 20
        assert v.mean() - truth > 5 * v.std() / 20


def test_gradients_of_minibatches_are_unbiased():
    """The mean over all pairs of minibatches of a U-statistic's gradient is the whole's."""
    x, y, *_ = samples(4, 4, 2)
    kernel = kernels.Gaussian(1.0)
    scale = jnp.asarray(1.1)
    loss = lambda s, x, y: discrepancy.mmd(s * x, jnp.asarray(y), kernel=kernel, debias=True)
    slope = jax.jit(jax.grad(loss))
    pairs = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    parts = [slope(scale, x[list(i)], y[list(j)]) for i in pairs for j in pairs]
    np.testing.assert_allclose(np.mean(parts), slope(scale, x, y), rtol=1e-10)


def test_the_witness_integrates_to_mmd():
    x, y, a, b = samples()
    kernel = kernels.Matern(1.2, 1.5)
    at = lambda z: discrepancy.witness(z, x, y, a, b, kernel=kernel)
    gap = at(x) @ (a / a.sum()) - at(y) @ (b / b.sum())
    np.testing.assert_allclose(gap, discrepancy.mmd(x, y, a, b, kernel=kernel), rtol=1e-10)
    # By its definition, and with its gradient.
    s = np.sqrt(3) * cdist(y, np.concatenate([x, y])) / 1.2
    signed = np.concatenate([a / a.sum(), -b / b.sum()])
    np.testing.assert_allclose(at(y), (1 + s) * np.exp(-s) @ signed, rtol=1e-9, atol=1e-12)


def test_the_witness_of_a_kernel_without_a_distance():
    """Σ_i a_i (1 + z·x_i)² − Σ_j b_j (1 + z·y_j)², constants included."""
    x, y, a, b = samples()
    z = np.concatenate([x[:3], y[:3] + 2])
    square = lambda rows: (1 + z @ rows.T) ** 2
    found = discrepancy.witness(z, x, y, a, b, kernel=kernels.Polynomial(degree=2, offset=1.0))
    expected = square(x) @ (a / a.sum()) - square(y) @ (b / b.sum())
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_flows_move_along_half_of_it():
    """`flows.MMD` is ½ MMD², whose gradient is the witness's."""
    x, y, a, _ = samples()
    a = a / a.sum()
    kernel, particles = kernels.Gaussian(0.9), jnp.asarray(x)

    @jax.jit
    def variation(particles):
        objective = flows.MMD(jnp.asarray(y), kernel)
        state = objective.init(KEY, particles)
        return objective(KEY, particles, jnp.asarray(a), state)[0]

    @jax.jit
    def at(z):
        values = discrepancy.witness(
            z, jnp.asarray(x), jnp.asarray(y), jnp.asarray(a), kernel=kernel
        )
        return jnp.sum(values), values

    found = variation(particles)
    np.testing.assert_allclose(found.value, discrepancy.mmd(x, y, a, kernel=kernel) / 2, rtol=1e-10)
    slopes, values = jax.grad(at, has_aux=True)(particles)
    np.testing.assert_allclose(found.potential, values, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.gradient, slopes, rtol=1e-7, atol=1e-10)


def test_one_bandwidth_serves_all_terms():
    x, y, a, b = samples()
    kernel = kernels.Gaussian(kernels.MedianDistance()).at(np.concatenate([x, y]))
    found = discrepancy.mmd(x, y, a, b)
    np.testing.assert_allclose(found, discrepancy.mmd(x, y, a, b, kernel=kernel), rtol=1e-6)
    # It is a constant to differentiation.
    by_rule = lambda x: discrepancy.mmd(x, jnp.asarray(y))
    fixed = lambda x: discrepancy.mmd(x, jnp.asarray(y), kernel=kernels.Gaussian(sigma))
    sigma = kernel.at(x).bandwidth
    slopes = [jax.jit(jax.grad(value))(jnp.asarray(x)) for value in (by_rule, fixed)]
    np.testing.assert_allclose(*slopes, rtol=1e-5, atol=1e-12)


def test_samples_far_from_zero_are_centred():
    x, y, *_ = samples()
    near = discrepancy.mmd(x, y, kernel=kernels.Gaussian(1.0))
    with jax.enable_x64(False):
        far = discrepancy.mmd(x + 123456789.1, y + 123456789.1, kernel=kernels.Gaussian(1.0))
    np.testing.assert_allclose(far, near, rtol=1e-4)


def test_equal_samples_have_none():
    x, *_ = samples()
    for kernel in (kernels.Gaussian(), kernels.Energy(), kernels.Polynomial()):
        value, slope = jax.value_and_grad(
            lambda z, k=kernel: discrepancy.mmd(z, jnp.asarray(x), kernel=k)
        )(jnp.asarray(x))
        np.testing.assert_allclose(value, 0, atol=1e-9)
        np.testing.assert_allclose(slope, 0, atol=1e-9)


@pytest.mark.parametrize("rows", [(1, 1), (3, 1), (40, 7)])
@pytest.mark.parametrize("narrow", [1.0, 4.0])
def test_the_witness_far_from_both_samples(rows, narrow):
    """Where the kernel is small, though most of the rows have no distance from each other."""
    n, m = rows
    x, y = np.zeros((n, 2)), np.full((m, 2), 6.0)
    z = np.array([[0.0, 6.5], [7.0, -0.5], [-5.0, 0.0], [0.5, 0.0]])
    between = lambda rows: np.exp(-np.square(z - rows[0]).sum(1) * narrow / 2)
    found = discrepancy.witness(z, x, y, kernel=kernels.Gaussian(narrow**-0.5))
    np.testing.assert_allclose(found, between(x) - between(y), rtol=1e-4)
