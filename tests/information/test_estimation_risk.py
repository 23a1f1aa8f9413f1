"""The risk of fits against exact expectations, and the p–n criterion against errors in deciding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from scipy.special import digamma

from divjax import information
from divjax.fdiv import exponential_family as families


def normal_risk(n):
    """With log χ² and 1/χ² of n − 1 degrees of freedom, and a mean independent of them."""
    logs = digamma((n - 1) / 2) + np.log(2 / n)
    return (logs + (n + 1) / (n - 3) - 1) / 2


def exponential_risk(n):
    """Of log x̄ + 1/x̄ − 1, where n x̄ is Gamma(n)."""
    return digamma(n) - np.log(n) + n / (n - 1) - 1


def poisson_risk(n, rate=3.0):
    """By all sums of n counts but zero, which has probability e^(−n rate)."""
    sums = np.arange(1, int(n * rate + 40 * np.sqrt(n * rate)))
    means = sums / n
    kl = means - rate + rate * np.log(rate / means)
    return np.sum(scipy.stats.poisson.pmf(sums, n * rate) * kl)


EXACT = {
    "normal": (families.NORMAL, families.NORMAL.natural, (3.0, 0.5), normal_risk),
    "exponential": (families.EXPONENTIAL, families.EXPONENTIAL.natural, (2.0,), exponential_risk),
    "poisson": (families.POISSON, families.POISSON.natural, (3.0,), poisson_risk),
}


@pytest.mark.parametrize("name", EXACT)
def test_the_remainder_is_of_third_order(name):
    family, natural, parameters, exact = EXACT[name]
    with jax.enable_x64(True):
        eta = natural(*parameters)
        left = [
            exact(n) - float(information.projection_risk(family, eta, n)) for n in (40, 80, 160)
        ]
    # With n twice as large it falls by eight, and a wrong second order by four.
    ratios = np.array(left[:-1]) / left[1:]
    assert (np.abs(ratios - 8) < 1.5).all(), ratios


def test_the_criterion_of_normals():
    """At its n the exact risk is the one allowed, and fits are as hard to tell as demanded."""
    with jax.enable_x64(True):
        eta = families.NORMAL.natural(3.0, 2.0)
        found = float(information.p_n_criterion(families.NORMAL, eta, bayes_error=0.45))
    np.testing.assert_allclose(normal_risk(found), 2 * (1 - 2 * 0.45) ** 2, rtol=0.02)

    n, repeats = round(found), 2000
    x = np.random.default_rng(0).normal(3, 2, size=(repeats, n))
    grid = np.linspace(-15, 21, 1201)
    true = scipy.stats.norm(3, 2).pdf(grid)
    fits = scipy.stats.norm(x.mean(1)[:, None], x.std(1)[:, None]).pdf(grid)
    errors = np.minimum(true, fits).sum(axis=1) * (grid[1] - grid[0]) / 2
    assert 0.45 - 3 * errors.std() / np.sqrt(repeats) < errors.mean() < 0.47

    statistics = np.stack([x[0], x[0] ** 2], axis=1)
    projection = information.information_projection(families.NORMAL, statistics)
    # To first order: the samples' own moments are not those of a Gaussian exactly.
    np.testing.assert_allclose(projection.bayes_error, 0.45, atol=0.005)


def test_a_risk_out_of_reach_of_pinsker():
    """Four samples of large variance: Pinsker's bound would be below zero."""
    x = np.array([[0.0, 0.0], [0.0, 1.0], [0.0, 2.0], [1.0, 10.0]])
    found = information.information_projection(lambda eta: jnp.sum(jnp.square(eta)) / 2, x).check()
    # Half of the trace of the samples' covariance, a fourth for each sample.
    risk = np.var(x, axis=0).sum() / 8
    assert risk > 1.6
    np.testing.assert_allclose(found.bayes_error, (1 - np.sqrt(-np.expm1(-risk))) / 2, rtol=1e-4)


def test_inputs():
    with pytest.raises(ValueError, match="num_samples must be a positive"):
        information.projection_risk(families.POISSON, [1.0], 0)
    with pytest.raises(ValueError, match="bayes_error must be in"):
        information.p_n_criterion(families.POISSON, [1.0], bayes_error=0.5)
    with pytest.raises(ValueError, match="natural must be a non-empty vector"):
        information.projection_risk(families.POISSON, 1.0, 3)
