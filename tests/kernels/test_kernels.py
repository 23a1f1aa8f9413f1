"""Kernels against their formulas in SciPy and autodiff; rules against sorting."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import cdist, pdist

from divjax import kernels

SIGMA = 0.8
FORMULAS = {
    "Gaussian": (kernels.Gaussian(bandwidth=SIGMA), lambda r: np.exp(-(r**2) / (2 * SIGMA**2))),
    "Laplace": (kernels.Laplace(bandwidth=SIGMA), lambda r: np.exp(-r / SIGMA)),
    "InverseMultiquadric": (
        kernels.InverseMultiquadric(bandwidth=SIGMA, exponent=0.7),
        lambda r: (1 + r**2 / SIGMA**2) ** -0.7,
    ),
    "Energy": (kernels.Energy(), lambda r: -r),
    "two scales": (
        kernels.Gaussian(bandwidth=np.array([0.5, 2.0])),
        lambda r: (np.exp(-(r**2) / 0.5) + np.exp(-(r**2) / 8)) / 2,
    ),
}
every = pytest.mark.parametrize("name", FORMULAS)


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


def points(n, d=3, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d))


@every
def test_the_matrix_is_the_formula(name):
    kernel, formula = FORMULAS[name]
    x, y = points(6), points(4, seed=1)
    np.testing.assert_allclose(
        kernel(jnp.asarray(x), jnp.asarray(y)), formula(cdist(x, y)), rtol=1e-10
    )


@every
def test_matrices_are_positive_definite(name):
    matrix = np.asarray(FORMULAS[name][0](jnp.asarray(points(12))))
    if name == "Energy":  # conditionally: on weights that sum to zero
        center = np.eye(12) - 1 / 12
        matrix = center @ matrix @ center
    assert np.linalg.eigvalsh(matrix).min() > -1e-10


@every
def test_sums_are_einsum_and_autodiff(name):
    kernel, _ = FORMULAS[name]
    x, y = jnp.asarray(points(6)), jnp.asarray(points(4, seed=1))
    values, weights = jnp.asarray(points(4, 5, seed=2)), jnp.asarray(points(4, 2, seed=3))
    sums, gradients = kernels.kernel_sums(kernel, x, y, values, weights)
    np.testing.assert_allclose(sums, kernel(x, y) @ values, rtol=1e-10)
    pair = jax.grad(lambda a, b: kernel(a[None], b[None])[0, 0])
    each = jax.vmap(jax.vmap(pair, (None, 0)), (0, None))(x, y)
    np.testing.assert_allclose(
        gradients, jnp.einsum("jg,ijd->igd", weights, each), rtol=1e-8, atol=1e-12
    )


@every
def test_a_shift_of_all_points_changes_nothing(name):
    kernel, _ = FORMULAS[name]
    x, ones = jnp.asarray(points(6)), jnp.ones((6, 1))
    here = kernels.kernel_sums(kernel, x, None, ones, ones)
    there = kernels.kernel_sums(kernel, x + 1e4, None, ones, ones)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9), here, there)


@pytest.mark.parametrize("name", ["Gaussian", "InverseMultiquadric", "two scales"])
def test_stein_traces_are_mixed_second_derivatives(name):
    kernel, _ = FORMULAS[name]
    x, y = jnp.asarray(points(2))
    mixed = jax.jacfwd(jax.grad(lambda a, b: kernel(a[None], b[None])[0, 0]), argnums=1)
    trace = kernel.stein_trace(jnp.sum((x - y) ** 2), 3)
    np.testing.assert_allclose(trace, jnp.trace(mixed(x, y)), rtol=1e-9)


def test_rules_are_their_formulas():
    x = points(40)
    squared, n = pdist(x) ** 2, 40
    bandwidth = lambda rule: rule(jnp.asarray(x), rule.init(jnp.asarray(x)))[0]
    median = np.quantile(squared, 0.5, method="inverted_cdf")
    tolerance = 1e-3  # the rule's 2e-3 in σ² is half of it in σ
    np.testing.assert_allclose(
        bandwidth(kernels.Median()), np.sqrt(median / (2 * np.log(n + 1))), rtol=tolerance
    )
    np.testing.assert_allclose(
        bandwidth(kernels.Mean()), np.sqrt(squared.mean() / (2 * np.log(n + 1))), rtol=1e-6
    )
    scales = bandwidth(kernels.MultiScale(scales=(0.5, 3.0), rule=kernels.Mean()))
    np.testing.assert_allclose(scales, np.array([0.5, 3.0]) * bandwidth(kernels.Mean()), rtol=1e-12)


def test_a_warm_median_follows_moving_particles():
    rule, x = kernels.Median(), points(60)
    state, follow = jax.jit(rule.init)(x), jax.jit(rule)
    for step in range(30):
        moved = x * (1 + 0.05 * step) + np.sin(step) * points(60, seed=9)
        bandwidth, state = follow(moved, state)
        median = np.quantile(pdist(moved) ** 2, 0.5, method="inverted_cdf")
        np.testing.assert_allclose(bandwidth, np.sqrt(median / (2 * np.log(61))), rtol=1.01e-3)


@pytest.mark.parametrize("rule", [kernels.Median(), kernels.Mean(), kernels.MultiScale()])
@pytest.mark.parametrize("x", [np.ones((5, 2)), np.zeros((1, 2))])
def test_coincident_and_single_particles_get_a_bandwidth(rule, x):
    bandwidth, _ = rule(jnp.asarray(x), rule.init(jnp.asarray(x)))
    assert jnp.all(jnp.isfinite(bandwidth) & (bandwidth > 0))


def test_bandwidths_are_constants_to_differentiation():
    rule, x = kernels.Median(), jnp.asarray(points(8))
    gradient = jax.grad(lambda x: rule(x, rule.init(x))[0])(x)
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: kernels.Gaussian(bandwidth=0.0), "bandwidth must be a positive number; got 0.0"),
        (lambda: kernels.Laplace(bandwidth=-1), "bandwidth must be a positive number; got -1"),
        (lambda: kernels.InverseMultiquadric(bandwidth=1.0, exponent=0.0), "exponent must be"),
        (lambda: kernels.Median(tolerance=0.0), "tolerance must be"),
        (lambda: kernels.MultiScale(scales=(1.0, -1.0)), "scales must be"),
        (lambda: kernels.Gaussian().radial(jnp.ones((2, 2))), "bandwidth is a rule"),
        (lambda: kernels.Gaussian(bandwidth=1.0)(jnp.zeros(3)), "x must be a non-empty matrix"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("rule", [kernels.Mean(), kernels.Median()])
def test_a_bandwidth_of_particles_that_are_not_numbers_is_none(rule):
    x = jnp.array([[jnp.nan], [0.0], [1.0]])
    assert jnp.isnan(rule(x, rule.init(x))[0])


def test_integer_points_are_refused():
    """Bytes would wrap around: 20² is 144 modulo 256."""
    with pytest.raises(ValueError, match="x must be floating-point; got uint8"):
        kernels.Gaussian(bandwidth=1.0)(jnp.array([[0], [20]], jnp.uint8))
