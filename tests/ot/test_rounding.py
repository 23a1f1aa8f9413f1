"""Single precision where ε is far from the costs: right numbers, or a flag."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import cdist
from scipy.special import logsumexp

from divjax import ot

RNG = np.random.default_rng(0)
X = RNG.normal(size=(30, 3)).astype(np.float32)
Y = RNG.normal(size=(25, 3)).astype(np.float32) + 1
sinkhorn = jax.jit(lambda x, y, epsilon: ot.sinkhorn(x, y, epsilon=epsilon))


def reference(x, y, a, b, epsilon, rho=np.inf):
    """The primal value in double precision, of potentials by log-sum-exp in NumPy."""
    costs = cdist(np.asarray(x, np.float64), np.asarray(y, np.float64), "sqeuclidean")
    kappa, f, g = 1 / (1 + epsilon / rho), np.zeros(len(a)), np.zeros(len(b))
    for _ in range(3000):
        g = -kappa * epsilon * logsumexp((f[:, None] - costs) / epsilon, 0, b=a[:, None])
        f = -kappa * epsilon * logsumexp((g - costs) / epsilon, 1, b=b)
    ratio = np.exp((f[:, None] + g - costs) / epsilon)
    plan = a[:, None] * b * ratio
    kl = lambda p, log_ratio, q: np.sum(p * log_ratio) - p.sum() + q.sum()
    value = np.sum(plan * costs) + epsilon * kl(plan, np.log(ratio), a[:, None] * b)
    if np.isfinite(rho):
        for sums, weights in ((plan.sum(1), a), (plan.sum(0), b)):
            value += rho * kl(sums, np.log(sums / weights), weights)
    return value


def uniform(n):
    return np.full(n, 1 / n)


@pytest.mark.parametrize("epsilon", [1e3, 1e5, 1e7])
def test_values_at_large_epsilon_are_those_of_double_precision(epsilon):
    """Rounded as potentials are, they would be off by ε/10⁷."""
    result, weights = sinkhorn(X, Y, epsilon), (uniform(30), uniform(25))
    np.testing.assert_allclose(result.value, reference(X, Y, *weights, epsilon), rtol=2e-6)
    assert result.converged
    relaxed = jax.jit(lambda epsilon: ot.sinkhorn(X, Y, epsilon=epsilon, marginal_penalty=3.0))
    truth = reference(X, Y, *weights, epsilon, rho=3.0)
    np.testing.assert_allclose(relaxed(epsilon).value, truth, rtol=2e-5)
    # For ε → ∞ the divergence is the squared distance of the means.
    divergence = ot.sinkhorn_divergence(X, Y, epsilon=epsilon).value
    means = np.sum((X.mean(0) - Y.mean(0)) ** 2)
    np.testing.assert_allclose(divergence, means, rtol=1e-3)


def test_masses_other_than_one_at_large_epsilon():
    a, b = np.full(30, 0.1), np.full(25, 3 / 25)
    value = jax.jit(lambda x, y, a, b: ot.sinkhorn(x, y, a, b, epsilon=1000.0).value)
    found = value(X, Y, *(w.astype(np.float32) for w in (a, b)))
    truth = reference(X, Y, a, b, 1000.0)
    # ε m (m − 1 − log m) is 2700 of it; the costs' part is kept to some 1e-7 of that.
    np.testing.assert_allclose(found, truth, rtol=3e-6)


def test_an_epsilon_beyond_all_digits_is_flagged():
    assert not sinkhorn(X, Y, 1e20).converged
    assert sinkhorn(X[:1], X[:1], 1e20).converged  # no costs, nothing to lose


@pytest.mark.parametrize(("d", "offset"), [(16, 100.0), (16, 1e3), (2, 1e3), (16, 1e4)])
def test_a_plan_that_rounding_has_spoiled_is_flagged(d, offset):
    """Costs of offset² · d, which are not known to be quadratic, and ε = ½: the marginals tell."""
    x, y = RNG.normal(size=(2, 100, d)).astype(np.float32)
    own = lambda x, y: jnp.sum((x - y) ** 2)
    result = jax.jit(lambda x, y: ot.sinkhorn(x, y, epsilon=0.5, cost=own))(
        x, y + np.float32(offset)
    )
    missed = np.abs(np.asarray(result.plan(), np.float64).sum(1) - 0.01).sum()
    assert missed > 4e-3
    assert not result.converged
    assert result.error > 1e-3


def test_an_offset_of_both_sides_is_taken_out():
    offset = np.float32(1000)
    result = sinkhorn(X + offset, Y + offset, 0.5)
    np.testing.assert_allclose(result.value, sinkhorn(X, Y, 0.5).value, rtol=1e-4)
    assert result.converged


def test_half_precision_at_small_epsilon_is_flagged():
    x, y = jnp.asarray(X, jnp.bfloat16), jnp.asarray(Y, jnp.bfloat16)
    assert not sinkhorn(x, y, jnp.asarray(0.05, jnp.bfloat16)).converged


@pytest.mark.parametrize("penalty", [None, 1.0])
def test_warm_starts_of_any_size_lead_to_the_value_or_to_a_flag(penalty):
    solve = jax.jit(
        lambda init: ot.sinkhorn(X, Y, epsilon=1.0, init=init, marginal_penalty=penalty)
    )
    value = reference(X, Y, uniform(30), uniform(25), 1.0, rho=penalty or np.inf)
    constant = jnp.full(30, 1e8), jnp.full(25, -1e8)
    rough = jnp.asarray(1e8 * RNG.normal(size=30), jnp.float32), jnp.zeros(25)
    for init in (constant, rough, (constant[0], -3 * constant[1])):
        result = solve(init)
        close = abs(result.value - value) < 1e-3 * value
        assert close or not result.converged
    if penalty is None:
        np.testing.assert_allclose(solve(constant).value, value, rtol=1e-4)


def test_a_sample_that_has_all_but_collapsed_is_no_failure():
    """Its costs to itself are lost in ε u², and play no part in the divergence."""
    result = ot.sinkhorn_divergence(X, 1e-7 * Y, epsilon=0.3)
    to_itself = reference(X, X, uniform(30), uniform(30), 0.3)
    expected = np.mean(np.sum(X.astype(np.float64) ** 2, axis=1)) - to_itself / 2
    np.testing.assert_allclose(result.value, expected, rtol=1e-4)
    assert result.converged
