"""Rényi's divergence of discrete distributions: its sum, its limits, and what underflows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from divjax.fdiv import categorical
from divjax.fdiv.categorical import Logits
from tests.fdiv.test_categorical import random_pair


def test_renyi_is_its_sum_and_its_limits():
    p, q = random_pair()
    p[0, 1] = q[0, 1] = p[1, 2] = 0
    p, q = p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True)
    with jax.enable_x64(True):
        renyi = jax.jit(jax.vmap(lambda a: categorical.renyi(p, q, a)))
        orders = np.array([0.25, 0.9, 1.1, 3.0, 40.0])
        column, safe = orders[:, None, None], lambda a: np.where(a > 0, a, 1)
        terms = np.where((p > 0) & (q > 0), safe(p) ** column * safe(q) ** (1 - column), 0)
        integrals = np.log(terms.sum(-1))
        np.testing.assert_allclose(renyi(orders), integrals / (orders - 1)[:, None], rtol=1e-10)
        at_zero, at_one, near_one = renyi(np.array([0.0, 1.0, 1 + 1e-9]))
        np.testing.assert_allclose(at_zero, -np.log(np.where(p > 0, q, 0).sum(-1)), atol=1e-15)
        np.testing.assert_allclose(at_one, scipy.special.rel_entr(p, q).sum(-1), rtol=1e-12)
        np.testing.assert_allclose(near_one, at_one, rtol=1e-7)
        reverse = jax.jit(jax.vmap(lambda a: categorical.renyi(q, p, a)))(orders)
        assert np.isinf(reverse[2:, 1]).all()  # p excludes a class of q's
        assert np.isfinite(np.asarray(reverse)[:2]).all()
        slope = jax.jit(jax.grad(lambda a: categorical.renyi(p[2], q[2], a)))(1.0)
        log_ratio = np.log(p[2] / q[2])
        variance = p[2] @ log_ratio**2 - (p[2] @ log_ratio) ** 2
        np.testing.assert_allclose(slope, variance / 2, rtol=1e-10)
    far = Logits(jnp.array([300.0, 0.0])), Logits(jnp.array([0.0, 300.0]))
    np.testing.assert_allclose(categorical.renyi(*far, 2.0), 300, rtol=1e-6)
    disjoint = jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])
    for order in (0, 0.5, 1, 2):
        assert categorical.renyi(*disjoint, order) == jnp.inf


@pytest.mark.parametrize(
    ("of_p", "of_q", "order"),
    [(-88.0, -263.4, 1.5), (-89.0, -177.0, 2.0), (-100.0, -199.0, 2.0), (-87.0, -520.5, 1.2)],
)
def test_renyi_where_a_probability_underflows(of_p, of_q, order):
    """log(1 + p^α q^{1−α})/(α − 1), and its slope in the logit of p."""
    logits = lambda z: categorical.Logits(jnp.stack([jnp.float32(0), z]))
    value = lambda z: categorical.renyi(logits(z), logits(jnp.float32(of_q)), order)
    exponent = order * of_p + (1 - order) * of_q
    expected = np.logaddexp(0, exponent) / (order - 1)
    np.testing.assert_allclose(value(jnp.float32(of_p)), expected, rtol=1e-4)
    slope = order / (order - 1) / (1 + np.exp(-exponent))
    np.testing.assert_allclose(jax.grad(value)(jnp.float32(of_p)), slope, rtol=1e-4)
    assert categorical.renyi(logits(jnp.float32(-200)), logits(jnp.float32(-300)), order) < 1e-6
