"""Derivatives of a fit's divergences and log ratios in the samples."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats

from divjax import fdiv
from divjax.ratio import ClassifierRatio
from tests.ratio.test_fit import gaussians

KEY = jax.random.key(1)


@pytest.fixture(scope="module")
def fitted():
    """Unit Gaussians one apart, of unequal sample sizes."""
    return ClassifierRatio(head="linear").fit(KEY, *gaussians(0, 3000, 2000))


def test_gradient_of_the_exact_ratio(fitted):
    """u = x − ½: the field is 1/n on samples of p and −∇r/m = −e^u/m on those of q."""
    p, q = gaussians(0, 3000, 2000)

    def value(p, q):
        exact = dataclasses.replace(fitted, log_ratio_p=p[:, 0] - 0.5, log_ratio_q=q[:, 0] - 0.5)
        return exact.kl().value

    at_p, at_q = jax.grad(value, (0, 1))(p, q)
    np.testing.assert_allclose(at_p, np.full((3000, 1), 1 / 3000), rtol=1e-4)
    np.testing.assert_allclose(at_q, -np.exp(np.asarray(q) - 0.5) / 2000, rtol=1e-4)


def test_gradient_of_a_fitted_ratio():
    """Up to the slopes' errors; and along a common shift of p it is dKL/dμ = μ.

    The slope in a fold is s·t/s', where s, s' and t are slopes fitted to 4/5 of 4/5 of the rows or
    more: of the fold's own model, of those of the others, and of what calibrates the latter.
    """
    n = 2000
    p, q = gaussians(5, n, n)
    method = ClassifierRatio(head="linear")
    value, (at_p, at_q) = jax.jit(
        jax.value_and_grad(lambda p, q: method.fit(KEY, p, q).kl().value, (0, 1))
    )(p, q)
    std_error = np.sqrt(3 * 4 / (0.64 * n))
    np.testing.assert_allclose(at_p * n, 1, atol=4 * std_error)
    exact = np.exp(np.asarray(q) - 0.5)
    # An error δ of the slope makes this 2|δ| on average.
    assert np.abs(np.asarray(at_q) * n + exact).mean() < 4 * std_error
    assert abs(at_p.sum() - 1) < 0.2
    assert abs(at_q.sum() + 1) < 0.25
    assert abs(value - 0.5) < 0.1


@jax.jit
@functools.partial(jax.jacrev, argnums=(0, 1), has_aux=True)
def across(p, q):
    """KL, a Rényi divergence and the reverse KL of one fit."""
    fit = ClassifierRatio(head="gaussian", num_folds=2).fit(KEY, p, q)
    generators = fdiv.KL(), fdiv.Renyi(3.0), fdiv.ReverseKL()
    values = jnp.stack([fit.divergence(generator).value for generator in generators])
    return values, values


@pytest.mark.parametrize("shift", [10.0, 16.0])
def test_gradients_across_a_chasm(shift):
    """KL 50 and 128: where e^u and even its mean overflow, dKL/dμ = μ, dR_α/dμ = αμ in float32."""
    (at_p, at_q), values = jax.tree.map(np.asarray, across(*gaussians(6, 1000, 1000, shift=shift)))
    np.testing.assert_allclose(at_p[:2].sum(axis=(1, 2)), [shift, 3 * shift], rtol=0.25)
    np.testing.assert_allclose(at_q[2].sum(), -shift, rtol=0.25)
    np.testing.assert_allclose(values[2], shift**2 / 2, rtol=0.25)


def test_log_ratio_is_differentiable(fitted):
    x = jnp.array([[0.5], [-1.0], [3.0]])
    value = lambda x: fitted.log_ratio(x).sum()
    slopes = jax.grad(value)(x)
    np.testing.assert_allclose(slopes, 1, atol=0.15)
    np.testing.assert_allclose(fitted.log_ratio(x), x[:, 0] - 0.5, atol=0.3)
    difference = fitted.log_ratio(x + 0.5) - fitted.log_ratio(x - 0.5)
    np.testing.assert_allclose(difference, slopes[:, 0], rtol=1e-3)


TILTED = {"kl": (1, -1), "reverse_kl": (1, -1), "renyi": (0.5, -0.5), "js": (None, None)}


@pytest.mark.parametrize("name", TILTED)
@pytest.mark.parametrize("side", [0, 1])
def test_gradients_in_weights_are_those_of_the_divergence(name, side):
    """Weights e^{tz} shift a unit Gaussian by t: KL is (1 + t)²/2 or (1 − t)²/2, Rényi half of it.

    Jensen–Shannon's slope is a finite difference of quadrature. The standard error is that of the
    sum of w_i z_i φ(u_i), at most .09 in these cases.
    """
    n = 2000
    p, q = gaussians(5, n, n)
    method = ClassifierRatio(head="linear", num_folds=2)
    generator = {
        "kl": fdiv.KL(),
        "reverse_kl": fdiv.ReverseKL(),
        "renyi": fdiv.Renyi(0.5),
        "js": fdiv.JensenShannon(),
    }[name]

    def value(t):
        weights = [jnp.ones(n), jnp.ones(n)]
        weights[side] = jnp.exp(t * (p, q)[side][:, 0])
        return method.fit(KEY, p, q, *weights).divergence(generator).value

    if name == "js":
        z = np.linspace(-10, 12, 100_001)
        at = lambda t: _jensen_shannon(z, *((1 + t, 0) if side == 0 else (1, t)))
        expected = (at(1e-4) - at(-1e-4)) / 2e-4
    else:
        expected = TILTED[name][side]
    found = jax.jit(jax.grad(value))(0.0)
    np.testing.assert_allclose(found, expected, atol=0.25 * abs(expected))


def _jensen_shannon(z, mean_p, mean_q):
    densities = [scipy.stats.norm.pdf(z, mean) for mean in (mean_p, mean_q)]
    middle = sum(densities) / 2
    terms = sum(scipy.special.rel_entr(density, middle) for density in densities) / 2
    return scipy.integrate.trapezoid(terms, z)


def test_errors_and_diagnostics_have_no_derivatives():
    p, q = gaussians(5, 60, 50)
    method = ClassifierRatio(head="linear", num_folds=2)

    def numbers(a):
        estimate = method.fit(KEY, p, q, a).kl()
        return estimate.value, estimate.std_error, estimate.interval.lower

    value, *others = jax.jit(jax.jacrev(numbers))(jnp.ones(60))
    assert (value != 0).any()
    assert all((other == 0).all() for other in others)
