"""Information projections against maximum likelihood in SciPy, and their risk by repetitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from divjax import information
from divjax.fdiv import exponential_family as families


def test_normal_and_poisson_have_the_samples_moments():
    x = np.random.default_rng(0).normal(3, 2, size=50)
    with jax.enable_x64(True):
        normal = information.information_projection(families.NORMAL, np.stack([x, x**2], 1))
    expected = [x.mean() / x.var(), -1 / (2 * x.var())]
    np.testing.assert_allclose(normal.check().value, expected, rtol=1e-8)
    counts = np.random.default_rng(1).poisson(2.5, size=40).astype(float)
    weights = np.random.default_rng(2).uniform(size=40)
    poisson = information.information_projection(families.POISSON, counts[:, None], weights)
    mean = np.average(counts, weights=weights)
    np.testing.assert_allclose(poisson.check().value, [np.log(mean)], rtol=1e-5)


def test_gamma_is_scipys_maximum_of_the_likelihood():
    x = np.random.default_rng(3).gamma(2.5, 1 / 1.7, size=80)
    shape, _, scale = scipy.stats.gamma.fit(x, floc=0)
    expected = np.asarray(families.GAMMA.natural(shape, 1 / scale))
    # The statistics of the natural parameters, by the derivative of the density's logarithm.
    with jax.enable_x64(True):
        statistics = np.stack([np.log(x), x], 1)
        found = information.information_projection(families.GAMMA, statistics).check()
    sign = np.sign(found.value) * np.sign(expected)
    np.testing.assert_allclose(found.value, expected * sign, rtol=1e-4)
    assert (sign > 0).all()


def test_the_risk_is_that_of_repetitions():
    """KL of the projection from the estimate, for Poisson models of overdispersed counts."""
    mean, n = 4.0, 200
    counts = np.random.default_rng(4).negative_binomial(4, 0.5, size=(3000, n)).astype(np.float32)
    project = lambda x: information.information_projection(families.POISSON, x[:, None])
    found = jax.jit(jax.vmap(project))(counts)
    assert bool(found.converged.all())
    eta = np.asarray(found.value, float)[:, 0]
    kl = mean * (np.log(mean) - eta) - mean + np.exp(eta)
    # The variance is twice the mean, and the risk twice 1/(2n).
    assert abs(kl.mean() - 1 / n) < 3 * kl.std() / np.sqrt(3000) + 2 / n**2
    np.testing.assert_allclose(np.mean(found.risk), 1 / n, rtol=0.03)


def test_the_risk_of_a_family_that_is_right_is_half_a_parameter_per_sample():
    x = np.random.default_rng(5).normal(size=4000)
    found = information.information_projection(families.NORMAL, np.stack([x, x**2], 1))
    np.testing.assert_allclose(float(found.risk) * 2 * 4000, 2, rtol=0.1)


def test_own_functions_and_derivatives():
    """The family of three categories, and the derivative of what A refers to."""
    counts = np.array([[1.0, 0], [1, 0], [0, 1], [0, 0], [0, 0]])

    def project(statistics, log_base):
        log_partition = lambda eta: jax.nn.logsumexp(jnp.append(eta, 0.0) + log_base)
        return information.information_projection(log_partition, statistics).value

    with jax.enable_x64(True):
        base = jnp.zeros(3)
        value = project(counts, base)
        np.testing.assert_allclose(value, np.log([1.0, 0.5]), atol=1e-6)
        # p ∝ exp(η + base): a base of the first category lowers its η by as much.
        slopes = jax.jacobian(project, argnums=1)(counts, base)
    np.testing.assert_allclose(slopes, [[-1, 0, 1], [0, -1, 1]], atol=1e-6)


def test_no_solution_is_flagged():
    zeros = information.information_projection(families.POISSON, np.zeros((5, 1)))
    assert not bool(zeros.converged)
    twice = np.random.default_rng(6).normal(size=(20, 1)) @ np.ones((1, 2))
    dependent = information.information_projection(
        lambda eta: jnp.square(eta.sum()) / 2, twice.astype(np.float32)
    )
    assert not bool(dependent.converged)


def test_inputs():
    with pytest.raises(ValueError, match="start must have shape"):
        information.information_projection(families.POISSON, np.ones((3, 1)), start=[0.0, 1.0])
    with pytest.raises(ValueError, match="tolerance must be a positive number"):
        information.information_projection(families.POISSON, np.ones((3, 1)), tolerance=0.0)
    with pytest.raises(ValueError, match="must hold the 2 natural parameters"):
        information.information_projection(families.NORMAL, np.ones((3, 3)))
