"""KL between fitted Gaussians: its bias, its error, and nearly dependent features."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import scipy.special
import scipy.stats

from divjax.fdiv import gaussian
from tests.fdiv.test_gaussian import normal

# Many programs, each run a few times: what takes time is LLVM.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


def samples(seed, count, n, m, d):
    rng = np.random.default_rng(seed)
    p, q = normal(5, d), normal(6, d)
    draw = lambda x, size: (
        rng.normal(size=(count, size, d)) @ np.linalg.cholesky(x.covariance).T + np.asarray(x.mean)
    )
    return p, q, draw(p, n), draw(q, m)


def test_the_corrected_plug_in_is_unbiased():
    p, q, x, y = samples(0, 20000, 12, 9, 2)
    estimate = jit(jax.vmap(gaussian.plug_in_kl))(x, y)
    error = estimate.value.std() / np.sqrt(20000)
    assert abs(estimate.value.mean() - gaussian.kl(p, q)) < 4.5 * error
    # The bias of the raw one is what its formula says, by far more than noise.
    raw = jit(jax.vmap(lambda x, y: gaussian.plug_in_kl(x, y, debias=False)))(x, y).value
    n, m, d = 12, 9, 2
    inflation = (m - 1) / (m - d - 2)
    (mean_p, a), (mean_q, b) = p, q
    trace = np.trace(np.linalg.solve(b, a))
    square = (mean_p - mean_q) @ np.linalg.solve(b, mean_p - mean_q)
    log_bias = lambda nu: sum(scipy.special.digamma((nu - np.arange(d)) / 2)) + d * np.log(2 / nu)
    bias = (inflation - 1) * (trace + square) + inflation * (trace / n + d / m)
    bias = (bias + log_bias(m - 1) - log_bias(n - 1)) / 2
    assert bias > 20 * raw.std() / np.sqrt(20000)
    assert abs(raw.mean() - gaussian.kl(p, q) - bias) < 4.5 * raw.std() / np.sqrt(20000)


@pytest.mark.parametrize("equal", [False, True])
def test_standard_errors_are_the_spread(equal):
    _, _, x, y = samples(1, 2000, 300, 200, 3)
    if equal:
        y = samples(2, 2000, 200, 10, 3)[2]  # from the same distribution
    estimate = jit(jax.vmap(gaussian.plug_in_kl))(x, y)
    # The spread of 2000 values is known to 1.6 % if they are Gaussian, less well where p = q.
    error, spread = np.sqrt(np.mean(estimate.std_error**2)), estimate.value.std()
    np.testing.assert_allclose(error, spread * (np.sqrt(2) if equal else 1), rtol=0.1)
    if equal:
        np.testing.assert_allclose(spread, np.sqrt(18) / 2 * (1 / 300 + 1 / 200), rtol=0.1)


@pytest.mark.parametrize("column", ["constant", "two constants", "copy", "sum"])
def test_a_singular_sample_has_no_plug_in(column):
    """Of a degenerate Gaussian KL is 0, infinite or that of fewer features, and rounding
    decides."""
    x, y = jax.random.normal(jax.random.key(0), (2, 900, 2))
    added = {
        "constant": lambda z, c: jnp.full(900, 0.1),
        "two constants": lambda z, c: jnp.full(900, c),
        "copy": lambda z, c: z[:, 0],
        "sum": lambda z, c: 3 * z[:, 0] - z[:, 1],
    }[column]
    x, y = (jnp.column_stack([z, added(z, c)]) for z, c in ((x, 0.1), (y, 0.2)))
    found = jax.jit(gaussian.plug_in_kl)(x, y)
    assert jnp.isnan(found.value)
    assert jnp.isnan(found.std_error)


def test_an_offset_in_double_precision_is_no_loss_to_the_plug_in():
    x, y = (np.float64(s[0]) for s in samples(3, 1, 300, 200, 3)[2:])
    with jax.enable_x64(False):
        plain, far = (gaussian.plug_in_kl(x + c, y + c) for c in (0, 123456789.0))
    assert plain.value.dtype == jnp.float32
    np.testing.assert_allclose(far.value, plain.value, rtol=1e-4)
    np.testing.assert_allclose(far.std_error, plain.std_error, rtol=1e-4)


@pytest.mark.parametrize("rho", [0.01, 0.002])
@pytest.mark.parametrize("unit", [1.0, 3.0, 1e8])
def test_a_plug_in_of_nearly_dependent_features_is_that_of_independent_ones(rho, unit):
    """An invertible linear map of all rows changes nothing; float32 holds its images."""
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(60, 2)), rng.normal(size=(80, 2))
    near = lambda z: (unit * np.stack([z[:, 0], z[:, 0] + rho * z[:, 1]], 1)).astype(np.float32)
    covariances = np.cov(x.T), np.cov(y.T)
    inverses, apart = [np.linalg.inv(c) for c in covariances], x.mean(0) - y.mean(0)
    logs = np.log(np.linalg.det(covariances[1]) / np.linalg.det(covariances[0]))
    expected = (np.sum(inverses[1] * covariances[0]) + apart @ inverses[1] @ apart - 2 + logs) / 2
    with jax.enable_x64(False):
        estimate = gaussian.plug_in_kl(near(x), near(y), debias=False)
        slope = jax.grad(lambda x: gaussian.plug_in_kl(x, near(y), debias=False).value)(
            jnp.asarray(near(x))
        )
    np.testing.assert_allclose(estimate.value, expected, rtol=2e-3)
    # ∂KL/∂x_i = [(C_q⁻¹ − C_p⁻¹)(x_i − m_p)/(n − 1) + C_q⁻¹(m_p − m_q)/n] in the given coordinates.
    gradient = (x - x.mean(0)) @ (inverses[1] - inverses[0]) / 59 + inverses[1] @ apart / 60
    # In the images' coordinates z₂ = (w₂ − w₁)/ρ.
    gradient = np.stack([gradient[:, 0] - gradient[:, 1] / rho, gradient[:, 1] / rho], 1) / unit
    np.testing.assert_allclose(slope, gradient, atol=2e-3 * np.abs(gradient).max())
