"""Differences of samples under kernels that hardly vary, against formulas in float64."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import divjax
from divjax import discrepancy, information, kernels
from divjax.core.types import Status
from divjax.kernels.inner_product import CenteredPolynomial

N = 40


def _gaussian(x, y, sigma):
    squared = ((x[:, None] - y[None]) ** 2).sum(-1)
    return np.expm1(-squared / (2 * sigma**2))


def _cubic(x, y):
    return (x @ y.T + 1.0) ** 3


def _mmd(kernel, x, y):
    return kernel(x, x).mean() + kernel(y, y).mean() - 2 * kernel(x, y).mean()


def _hsic(kernel, x, y):
    n = len(x)
    centering = np.eye(n) - 1 / n
    first, second = (centering @ kernel(v, v) @ centering for v in (x, y))
    return (first * second).sum() / n**2


WIDE = kernels.Gaussian(1e5), functools.partial(_gaussian, sigma=1e5), 0.0
FAR = kernels.Polynomial(), _cubic, 1e4


def _samples(offset):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, N, 2)).astype(np.float32)
    # The rows that JAX holds, so that both formulas have the same.
    x, y = x + np.float32(offset), y * np.float32(1.5) + np.float32(offset)
    return jnp.asarray(x), jnp.asarray(y)


@pytest.mark.parametrize("smoothness", [1.5, 2.5])
def test_a_wide_matern_kernel_below_its_peak(smoothness):
    """k − 1 = −s²/2 + s³/3 − s⁴/8 + O(s⁵) for ν = 3/2, and −s²/6 + s⁴/24 + O(s⁵) for ν = 5/2."""
    r = np.array([0.0, 1e-3, 1.0, 30.0], np.float32)
    found = kernels.Matern(1e4, smoothness).below_peak(jnp.asarray(r**2)[None])[0]
    s = math.sqrt(2 * smoothness) * r.astype(float) / 1e4
    exact = -(s**2) / 2 + s**3 / 3 - s**4 / 8 if smoothness == 1.5 else -(s**2) / 6 + s**4 / 24
    np.testing.assert_allclose(found, exact, rtol=2e-6)


@pytest.mark.parametrize(("kernel", "formula", "offset"), [WIDE, FAR])
def test_mmd(kernel, formula, offset):
    """The MMD is far below the kernel's rounding, and has most of its digits."""
    x, y = _samples(offset)
    exact = _mmd(formula, *(np.asarray(v, float) for v in (x, y)))
    np.testing.assert_allclose(discrepancy.mmd(x, y, kernel=kernel), exact, rtol=2e-3)
    found = jax.value_and_grad(lambda x: discrepancy.mmd(x, y, kernel=kernel))(x)
    np.testing.assert_allclose(found[0], exact, rtol=2e-3)
    assert discrepancy.mmd(x, x, kernel=kernel) <= 1e-4 * exact


@pytest.mark.parametrize(("kernel", "formula", "offset"), [WIDE, FAR])
def test_hsic(kernel, formula, offset):
    """HSIC of dependent variables is far below the kernels' rounding."""
    x, y = _samples(offset)
    y = x + (y - x) / 2
    exact = _hsic(formula, *(np.asarray(v, float) for v in (x, y)))
    options = {"kernel_x": kernel, "kernel_y": kernel}
    np.testing.assert_allclose(information.hsic(x, y, **options) / exact, 1, rtol=2e-3)
    test = information.hsic_test(jax.random.key(0), x, y, **options, num_permutations=99)
    assert test.converged
    assert test.p_value == 0.01


@pytest.mark.parametrize(("kernel", "formula", "offset"), [WIDE, FAR])
def test_permutations(kernel, formula, offset):
    """A shift of two standard deviations is found although the kernel rounds to one number."""
    x, y = _samples(offset)
    for test in (
        discrepancy.mmd_test(jax.random.key(0), x, y + 2, kernel=kernel, num_permutations=99),
        discrepancy.aggregated_mmd_test(
            jax.random.key(0), x, y + 2, kernels=[kernel], num_permutations=99
        ),
    ):
        assert test.converged
        assert test.p_value == 0.01
    nearer = discrepancy.relative_mmd_test(x, y + 2, 1.0 * x[::-1], kernel=kernel)
    assert nearer.converged
    assert nearer.p_value < 0.01


@divjax.pytree
class _Matrix:
    """A kernel of one's own, whose values are one up to rounding."""

    def init(self, x):
        return ()

    def resolve(self, x, state):
        return self, state

    def __call__(self, x, y=None):
        y = x if y is None else y
        return jnp.exp(-jnp.sum((x[:, None] - y[None]) ** 2, -1) / 1e8)


def test_flag():
    """Rounding that exceeds the statistic is reported: p = 1 would say that all is well."""
    (x, y), key, kernel = _samples(0.0), jax.random.key(0), _Matrix()
    unresolved = Status.FLOATING_POINT_RESOLUTION
    options = {"num_permutations": 99}
    assert discrepancy.mmd_test(key, x, y, kernel=kernel, **options).status == unresolved
    many = discrepancy.aggregated_mmd_test(key, x, y, kernels=[kernel], **options)
    assert many.status == unresolved
    both = {"kernel_x": kernel, "kernel_y": kernel}
    assert information.hsic_test(key, x, y, **both, **options).status == unresolved


def test_equal_rows():
    """Rows that are all equal are alike, and that is no matter of rounding."""
    x = jnp.full((6, 2), 1e4 + 0.1)
    for kernel in (WIDE[0], FAR[0]):
        test = discrepancy.mmd_test(jax.random.key(0), x, x, kernel=kernel, num_permutations=9)
        assert test.converged
        assert test.p_value == 1
        assert test.statistic == 0


RADIAL = [
    kernels.Gaussian(1e4),
    kernels.Gaussian(jnp.array([1e4, 3e4])),
    kernels.Laplace(1e8),
    kernels.InverseMultiquadric(1e4),
    kernels.Matern(1e3, smoothness=1.5),
    kernels.Matern(1e3, smoothness=2.5),
]


@pytest.mark.parametrize("kernel", RADIAL, ids=lambda k: type(k).__name__)
def test_below_peak(kernel):
    """κ(r) − κ(0) in float32 is that of float64, where κ itself rounds to one."""
    squared = np.array([[0.0, 0.3, 2.0, 9.0]])
    found = kernel.below_peak(jnp.asarray(squared, jnp.float32))
    with jax.enable_x64(True):
        exact = kernel.radial(jnp.asarray(squared))[0] - 1
    np.testing.assert_allclose(found, exact, rtol=1e-3)


def test_centred_polynomial():
    """All degrees equal the four terms, in exact arithmetic."""
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(2, 4, 3)) + 3
    z = np.array([3.0, 2.0, 1.0])
    for degree in (1, 2, 3, 5):
        kernel = kernels.Polynomial(degree=degree, offset=0.5, scale=0.2)
        k = lambda u, v, degree=degree: (0.2 * u @ v.T + 0.5) ** degree
        exact = k(x, y) - k(x, z[None]) - k(z[None], y) + k(z[None], z[None])
        found = kernel.about(jnp.asarray(z, jnp.float32))
        assert isinstance(found, CenteredPolynomial)
        found = found(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32))
        np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-4 * np.abs(exact).max())
