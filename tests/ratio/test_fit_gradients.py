"""Derivatives of a fit's divergences and log ratios in the samples."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
