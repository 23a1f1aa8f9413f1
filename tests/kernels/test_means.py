"""Weighted means of a kernel against double loops, and their derivatives against differences."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import cdist

from divjax import kernels, pytree
from divjax.core import pairwise
from divjax.kernels import kernel_mean

RNG = np.random.default_rng(0)
N, M = 9, 7
A, B = RNG.uniform(size=N), RNG.uniform(size=M)
SHARE_A, SHARE_B = A / A.sum(), B / B.sum()
SIGMA = 0.9


@pytree
class Plain:
    """A user's radial kernel with no more than what is documented."""

    scale: float = 1.3
    positive_definite = True
    log_slope = None

    def init(self, x):
        return ()

    def resolve(self, x, state):
        return self, state

    def radial(self, squared):
        value = 1 / (1 + squared / self.scale**2)
        return value, -2 / self.scale**2 * value**2

    def __call__(self, x, y=None):
        x_, y_ = x[:, None], (x if y is None else y)[None]
        return self.radial(jnp.sum((x_ - y_) ** 2, -1))[0]


@pytree
class Cosine:
    """A user's kernel that is a matrix and no more."""

    def init(self, x):
        return ()

    def resolve(self, x, state):
        return self, state

    def __call__(self, x, y=None):
        unit = lambda z: z / jnp.linalg.norm(z, axis=1, keepdims=True)
        return unit(x) @ unit(x if y is None else y).T


def _inner(x, y):
    return x @ y.T


def _cosine(x, y):
    return _inner(x, y) / np.linalg.norm(x, axis=1)[:, None] / np.linalg.norm(y, axis=1)


CASES = {
    "Gaussian": (
        kernels.Gaussian(SIGMA),
        lambda x, y: np.exp(-cdist(x, y, "sqeuclidean") / (2 * SIGMA**2)),
    ),
    "Energy": (kernels.Energy(), lambda x, y: -cdist(x, y)),
    "Matern(1.5)": (
        kernels.Matern(SIGMA, 1.5),
        lambda x, y: (1 + 3**0.5 * cdist(x, y) / SIGMA) * np.exp(-(3**0.5) * cdist(x, y) / SIGMA),
    ),
    "Polynomial": (
        kernels.Polynomial(3, 0.5, 0.7),
        lambda x, y: (0.7 * _inner(x, y) + 0.5) ** 3,
    ),
    "one's own, radial": (Plain(), lambda x, y: 1 / (1 + cdist(x, y, "sqeuclidean") / 1.69)),
    "one's own, a matrix": (Cosine(), _cosine),
}
every = pytest.mark.parametrize("name", CASES)
# One kernel of each kind; the others by the exhaustive tests.
QUICK = "Gaussian", "one's own, a matrix"
one_of_each_kind = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.exhaustive] * (n not in QUICK)) for n in CASES]
)


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


def points(d):
    """With a pair that coincides, within and between the samples."""
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(N, d)), rng.normal(size=(M, d)) + 0.5
    x[3], y[2] = x[1], x[1]
    return x, y


@every
@pytest.mark.parametrize("d", [2, pytest.param(11, marks=pytest.mark.exhaustive)])
def test_means_are_double_sums(name, d):
    kernel, formula = CASES[name]
    x, y = points(d)
    own, cross = formula(x, x), formula(x, y)
    np.testing.assert_allclose(
        kernel_mean(kernel, x, y, A, B), SHARE_A @ cross @ SHARE_B, rtol=1e-10
    )
    np.testing.assert_allclose(kernel_mean(kernel, x, None, A), SHARE_A @ own @ SHARE_A, rtol=1e-10)
    off = own - np.diag(np.diag(own))
    unbiased = SHARE_A @ off @ SHARE_A / (1 - (SHARE_A**2).sum())
    np.testing.assert_allclose(kernel_mean(kernel, x, None, A, debias=True), unbiased, rtol=1e-10)


@one_of_each_kind
def test_derivatives_are_differences(name):
    """First ones in points and weights of both samples, second ones in points.

    No two points coincide here: there Energy and Matérn have no second derivative.
    """
    kernel, _ = CASES[name]
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(N, 3)), rng.normal(size=(M, 3))

    def value(x, y, a, b):
        within = kernel_mean(kernel, x, None, a, debias=True)
        return within - 2 * kernel_mean(kernel, x, y, a, b)

    arguments = tuple(map(jnp.asarray, (x, y, A, B)))
    steps = [jnp.asarray(rng.normal(size=z.shape) * 0.1) for z in arguments]
    step = 1e-4
    ends = [
        tuple(z + s * dz for z, dz in zip(arguments, steps, strict=True)) for s in (step, -step)
    ]
    gradient = jax.jit(jax.grad(value, (0, 1, 2, 3)))
    slope = sum(jnp.sum(g * dz) for g, dz in zip(gradient(*arguments), steps, strict=True))
    difference = (value(*ends[0]) - value(*ends[1])) / (2 * step)
    np.testing.assert_allclose(slope, difference, rtol=1e-6)
    # Forwards over backwards.
    curvature = jax.jit(lambda *z: jax.jvp(gradient, z, tuple(steps))[1])(*arguments)
    above, below = gradient(*ends[0]), gradient(*ends[1])
    for found, high, low in zip(curvature, above, below, strict=True):
        np.testing.assert_allclose(found, (high - low) / (2 * step), rtol=1e-5, atol=1e-7)


def test_derivatives_in_hyper_parameters_are_differences():
    x, y = points(3)
    for make in (
        lambda s: kernels.Matern(jnp.stack([s, 2 * s])),
        lambda s: kernels.InverseMultiquadric(1, s),
        lambda s: kernels.Polynomial(2, s, s),
    ):
        value = lambda s, make=make: kernel_mean(make(s), x, y, A) - kernel_mean(make(s), x)
        slope = jax.grad(value)(0.9)
        np.testing.assert_allclose(slope, (value(0.9 + 1e-5) - value(0.9 - 1e-5)) / 2e-5, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "d"),
    [
        ("Gaussian", 11),
        ("Polynomial", 2),
        pytest.param("Gaussian", 2, marks=pytest.mark.exhaustive),
        pytest.param("Energy", 11, marks=pytest.mark.exhaustive),
    ],
)
def test_blocks_change_nothing(monkeypatch, name, d):
    kernel, _ = CASES[name]
    rng = np.random.default_rng(3)
    x, y = jnp.asarray(rng.normal(size=(50, d))), jnp.asarray(rng.normal(size=(31, d)))

    def value(x):
        return kernel_mean(kernel, x, debias=True) - kernel_mean(kernel, x, y)

    whole, slope = jax.value_and_grad(value)(x)
    monkeypatch.setattr(pairwise, "BLOCK_ENTRIES_CPU", 200)
    jax.clear_caches()
    in_blocks, by_blocks = jax.value_and_grad(value)(x)
    jax.clear_caches()
    np.testing.assert_allclose(in_blocks, whole, rtol=1e-10)
    np.testing.assert_allclose(by_blocks, slope, rtol=1e-8, atol=1e-12)


def test_u_statistics_keep_small_means():
    """The pairs of a row with itself are left out, not subtracted."""
    x = jnp.asarray([[0.0], [6.0], [20.0]], jnp.float32)
    found = kernel_mean(kernels.Gaussian(1.0), x, debias=True)
    np.testing.assert_allclose(found, np.exp(-18) / 3, rtol=1e-5)


def test_half_precision_is_summed_in_single():
    x = jnp.ones((300, 2), jnp.float16)
    value = kernel_mean(kernels.Energy(), x, jnp.zeros((300, 2), jnp.float16))
    assert value.dtype == jnp.float16
    np.testing.assert_allclose(float(value), -(2**0.5), rtol=1e-3)


@pytest.mark.parametrize("unit", [1e-30, 1e38])
def test_weights_have_any_unit(unit):
    """Also one in which their sum overflows."""
    x, y = points(2)
    with jax.enable_x64(False):
        kernel = kernels.Gaussian(SIGMA)
        found = kernel_mean(kernel, x, y, A * unit, B * unit)
        np.testing.assert_allclose(found, kernel_mean(kernel, x, y, A, B), rtol=1e-5)


def test_one_bandwidth_for_both_samples():
    x, y = points(2)
    pooled = kernels.Gaussian(kernels.Median()).at(np.concatenate([x, y]))
    resolved: Any = kernels.resolved_kernel(kernels.Gaussian(), x, y)
    np.testing.assert_allclose(resolved.bandwidth, pooled.bandwidth, rtol=1e-6)
    # Rows without weight do not count; the rule sees others in their places.
    far = np.concatenate([x, [[1e6, 1e6]]])
    weights = np.append(np.ones(N), 0)
    with_copy = kernels.Gaussian(kernels.Median()).at(np.concatenate([x, x[:1], y]))
    found: Any = kernels.resolved_kernel(kernels.Gaussian(), far, y, weights)
    np.testing.assert_allclose(found.bandwidth, with_copy.bandwidth, rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: kernel_mean(lambda u, v: 0.0, x), "kernel must be a kernel such as"),
        (lambda x: kernel_mean(kernels.Gaussian, x), "got the class Gaussian itself"),
        (lambda x: kernel_mean(kernels.Energy(), x[:1], debias=True), "x must have at least two"),
        (lambda x: kernel_mean(kernels.Energy(), x, None, None, A), "b must be None without y"),
        (lambda x: kernel_mean(kernels.Energy(), x, x[:, :1]), "same number of features"),
        (lambda x: kernel_mean(kernels.Energy(), x[:, 0]), r"x\[:, None\]"),
        (lambda x: kernels.Polynomial(0), "degree must be an integer of at least 1"),
        (lambda x: kernels.Polynomial(2, -1.0), "offset must"),
        (lambda x: kernels.Polynomial(2, 1.0, 0.0), "scale must"),
        (lambda x: kernels.Matern(1.0, 2.0), "smoothness must be one of 0.5, 1.5, 2.5"),
        (
            lambda x: kernels.kernel_sums(kernels.Polynomial(), x, None, x, x),
            "kernel must be a radial kernel such as kernels.Gaussian",
        ),
        (
            lambda x: kernels.Matern(1.0, 0.5).stein_trace(jnp.ones((1, 1)), 2),
            "kernel must have mixed second derivatives",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(jnp.asarray(points(2)[0]))


def test_a_polynomial_kernel_refuses_an_offset_that_rounding_would_lose():
    with jax.enable_x64(False), pytest.raises(ValueError, match="x must differ in float32"):
        kernel_mean(kernels.Polynomial(), points(2)[0] + 1e9)
