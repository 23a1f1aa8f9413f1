"""Entropies of samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from scipy.special import gamma

from divjax import information

DISTRIBUTIONS = {
    "uniform": scipy.stats.uniform(0, 3),
    "exponential": scipy.stats.expon(scale=2),
    "student": scipy.stats.t(4),
    "normal": scipy.stats.norm(5, 0.1),
}
METHODS = {
    "neighbours": information.KozachenkoLeonenko(),
    "vasicek": information.Vasicek(),
    "ebrahimi": information.Ebrahimi(),
}


@pytest.mark.parametrize("name", ["vasicek", "ebrahimi"])
@pytest.mark.parametrize("window", [None, 3])
def test_spacings_are_scipy_s(name, window):
    x = np.random.default_rng(0).gamma(3, size=(53, 1))
    method = type(METHODS[name])(window)
    with jax.enable_x64(True):
        value = information.entropy(x, method=method).value
    known = scipy.stats.differential_entropy(x[:, 0], method=name, window_length=window)
    np.testing.assert_allclose(value, known, rtol=1e-10)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_known_entropies(name):
    law = DISTRIBUTIONS[name]
    x = law.rvs((1200, 1), random_state=1)
    for method in METHODS.values():
        estimate = information.entropy(x, method=method)
        # Spacings have a bias of order m/n + 1/m.
        biased = 0.0 if method is METHODS["neighbours"] else 0.05
        assert abs(estimate.value - law.entropy()) < 3 * estimate.std_error + biased
        assert estimate.std_error < 0.07


def renyi(x, alpha, k):
    """log ∫ p^α/(1 − α) by all pairs of rows."""
    n, d = x.shape
    distances = np.sort(np.linalg.norm(x[:, None] - x, axis=2), axis=1)[:, k]
    ball = np.pi ** (d / 2) / gamma(d / 2 + 1) * distances**d
    integral = np.mean(gamma(k) / gamma(k + 1 - alpha) * ((n - 1) * ball) ** (1 - alpha))
    return integral, np.log(integral) / (1 - alpha)


@pytest.mark.parametrize("alpha", [0.5, 2.0])
def test_renyi_and_tsallis_are_their_definition(alpha):
    x = np.random.default_rng(0).normal(size=(40, 2))
    integral, exact = renyi(x, alpha, 3)
    with jax.enable_x64(True):
        value = information.renyi_entropy(x, alpha, 3).value
        tsallis = information.tsallis_entropy(x, alpha, 3).value
    np.testing.assert_allclose(value, exact, rtol=1e-9)
    np.testing.assert_allclose(tsallis, (1 - integral) / (alpha - 1), rtol=1e-9)


@pytest.mark.parametrize("alpha", [0.7, 2.0])
def test_renyi_of_an_exponential(alpha):
    """log(α)/(α − 1)."""
    x = np.random.default_rng(1).exponential(size=(1200, 1))
    estimate = information.renyi_entropy(x, alpha)
    assert abs(estimate.value - np.log(alpha) / (alpha - 1)) < 3 * estimate.std_error
    assert estimate.std_error < 0.1


def test_shannon_is_the_limit_at_order_one():
    x = np.random.default_rng(0).normal(size=(60, 2))
    with jax.enable_x64(True):
        value = information.renyi_entropy(x, 1 + 1e-6, 3).value
        shannon = information.entropy(x, method=information.KozachenkoLeonenko(3)).value
    # ψ(n − 1) or log(n − 1) enters: they differ by 1/(2n).
    np.testing.assert_allclose(value, shannon, atol=0.02)


def test_copies_and_bad_numbers():
    x = jnp.ones((20, 1)).at[:4, 0].set(jnp.arange(4.0))
    for method in (METHODS["vasicek"], METHODS["ebrahimi"]):
        estimate = information.entropy(x, method=method)
        assert estimate.value == -jnp.inf
        assert jnp.isnan(estimate.std_error)
    assert jnp.isnan(information.renyi_entropy(x, 2.0, 3).value)
    with pytest.raises(ValueError, match="not 1"):
        information.renyi_entropy(x, 1.0)
    with pytest.raises(ValueError, match=r"below k \+ 1 = 3"):
        information.renyi_entropy(x, 3.0, 2)
    with pytest.raises(ValueError, match="one feature"):
        information.entropy(jnp.ones((20, 2)), method=METHODS["vasicek"])
    with pytest.raises(ValueError, match="window"):
        information.entropy(x, method=information.Vasicek(10))


@pytest.mark.exhaustive
@pytest.mark.parametrize("alpha", [0.8, 2.0])
def test_intervals_cover(alpha):
    """90 % intervals, in 400 repetitions on exponential samples."""

    @jax.jit
    def covers(key):
        x = jax.random.exponential(key, (400, 1))
        ends = information.renyi_entropy(x, alpha, confidence_level=0.9).interval
        exact = np.log(alpha) / (alpha - 1)
        return (ends.lower <= exact) & (exact <= ends.upper)

    covered = jax.lax.map(covers, jax.random.split(jax.random.key(0), 400), batch_size=10)
    assert covered.mean() >= 0.85
