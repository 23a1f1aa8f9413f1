"""Divergences from log-partition functions against quadrature, sums and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats

from divjax.fdiv import exponential_family as ef

# A family, two parameter settings, and SciPy's distribution of the same name (None: no density).
CASES = {
    "bernoulli": (ef.BERNOULLI, (0.2,), (0.7,), scipy.stats.bernoulli),
    "poisson": (ef.POISSON, (2.0,), (3.5,), scipy.stats.poisson),
    "exponential": (ef.EXPONENTIAL, (2.0,), (0.5,), lambda rate: scipy.stats.expon(scale=1 / rate)),
    "gamma": (ef.GAMMA, (2.5, 1.0), (4.0, 2.0), lambda a, b: scipy.stats.gamma(a, scale=1 / b)),
    "beta": (ef.BETA, (2.0, 3.0), (4.0, 1.5), scipy.stats.beta),
    "normal": (ef.NORMAL, (0.5, 1.0), (-1.0, 2.0), scipy.stats.norm),
}
ORDER = 0.7


def integral(name, function):
    """∫ function(log p, log q) over the support, by SciPy."""
    _, p, q, distribution = CASES[name]
    p, q = distribution(*p), distribution(*q)
    if hasattr(p, "logpmf"):
        x = np.arange(2 if name == "bernoulli" else 120)
        return function(p.logpmf(x), q.logpmf(x)).sum()
    low, high = p.support()
    return scipy.integrate.quad(
        lambda x: function(p.logpdf(x), q.logpdf(x)), low, high, epsabs=1e-12, limit=200
    )[0]


def evaluate(family):
    return jax.jit(
        lambda p, q, order: {
            "kl": ef.kl(family, family.natural(*p), family.natural(*q)),
            "jeffreys": ef.jeffreys(family, family.natural(*p), family.natural(*q)),
            "bhattacharyya": ef.bhattacharyya(family, family.natural(*p), family.natural(*q)),
            "renyi": ef.renyi(family, family.natural(*p), family.natural(*q), order),
        }
    )


@pytest.mark.parametrize("name", CASES)
def test_named_families_by_quadrature(name):
    family, p, q, _ = CASES[name]
    kl = integral(name, lambda p, q: np.exp(p) * (p - q))
    reverse = integral(name, lambda p, q: np.exp(q) * (q - p))
    affinity = integral(name, lambda p, q: np.exp((p + q) / 2))
    power = integral(name, lambda p, q: np.exp(ORDER * p + (1 - ORDER) * q))
    expected = {
        "kl": kl,
        "jeffreys": kl + reverse,
        "bhattacharyya": -np.log(affinity),
        "renyi": np.log(power) / (ORDER - 1),
    }
    with jax.enable_x64(True):
        divergences = evaluate(family)
        values = divergences(p, q, ORDER)
        for key, value in values.items():
            np.testing.assert_allclose(value, expected[key], rtol=1e-8, err_msg=key)
        single = divergences(*jax.tree.map(jnp.float32, (p, q, ORDER)))
        for key, value in single.items():
            assert value.dtype == jnp.float32
            np.testing.assert_allclose(value, expected[key], 2e-5, 2e-6, err_msg=key)
        # At order one Rényi's divergence is KL, and near it close to it.
        np.testing.assert_allclose(divergences(p, q, 1.0)["renyi"], kl, rtol=1e-8)
        np.testing.assert_allclose(divergences(p, q, 1 + 1e-6)["renyi"], kl, rtol=1e-5)


def test_dirichlet_closed_form():
    rng = np.random.default_rng(0)
    p, q = rng.uniform(0.3, 4, (2, 5))
    g, psi = scipy.special.gammaln, scipy.special.digamma
    expected = g(p.sum()) - g(p).sum() - g(q.sum()) + g(q).sum() + (p - q) @ (psi(p) - psi(p.sum()))
    with jax.enable_x64(True):
        family = ef.DIRICHLET
        value = ef.kl(family, family.natural(p), family.natural(q))
        np.testing.assert_allclose(value, expected, rtol=1e-12)


def test_a_log_partition_of_ones_own():
    """Multivariate Gaussians of identity covariance, A = ½‖η‖²: KL = ½‖η_p − η_q‖²."""
    eta_p, eta_q = jax.random.normal(jax.random.key(0), (2, 4))
    value = ef.kl(lambda eta: 0.5 * jnp.sum(eta**2), eta_p, eta_q)
    np.testing.assert_allclose(value, 0.5 * jnp.sum((eta_p - eta_q) ** 2), rtol=1e-5)


def test_derivatives_are_those_of_the_closed_form():
    """Poisson: KL = λ log(λ/μ) − λ + μ, so ∂/∂λ = log(λ/μ), ∂²/∂μ² = λ/μ²; a sweep is a vmap."""
    kl = lambda rate_p, rate_q: ef.kl(
        ef.POISSON, ef.POISSON.natural(rate_p), ef.POISSON.natural(rate_q)
    )
    with jax.enable_x64(True):
        np.testing.assert_allclose(jax.jit(jax.grad(kl))(2.0, 3.0), np.log(2 / 3), rtol=1e-12)
        second = jax.jit(jax.grad(jax.grad(kl, argnums=1), argnums=1))(2.0, 3.0)
        np.testing.assert_allclose(second, 2 / 9, rtol=1e-12)
        rates = np.array([0.5, 1.0, 4.0])
        swept = jax.jit(jax.vmap(kl, in_axes=(None, 0)))(2.0, rates)
        np.testing.assert_allclose(swept, 2 * np.log(2 / rates) - 2 + rates, rtol=1e-12)


def test_renyi_is_infinite_where_its_mixture_leaves_the_family():
    """N(0, 1) against N(0, ¼): the integral of p^α q^(1−α) diverges once α + 4(1 − α) ≤ 0."""
    p, q = ef.NORMAL.natural(0.0, 1.0), ef.NORMAL.natural(0.0, 0.5)

    @jax.jit
    def value(order):
        return jax.value_and_grad(lambda p: ef.renyi(ef.NORMAL, p, q, order))(p)

    for order, infinite in ((1.3, False), (1.4, True), (5.0, True)):
        divergence, gradient = value(order)
        assert jnp.isinf(divergence) == infinite
        assert jnp.isfinite(gradient).all()
    # ∫ p^α q^(1−α) = 2^(1−α) (α + 4(1 − α))^(−½)
    expected = (-0.3 * np.log(2) - 0.5 * np.log(1.3 - 1.2)) / 0.3
    np.testing.assert_allclose(value(1.3)[0], expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ef.kl(ef.POISSON, jnp.ones(1), jnp.ones(2)), r"one length; got shapes \(1,\)"),
        (lambda: ef.kl(ef.POISSON, jnp.ones(()), jnp.ones(())), "must be vectors"),
        (lambda: ef.kl(lambda eta: eta, jnp.ones(2), jnp.ones(2)), "log_partition must return"),
        (lambda: ef.renyi(ef.POISSON, jnp.ones(1), jnp.ones(1), 0.0), "alpha must be a positive"),
    ],
)
def test_errors_name_the_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call()
