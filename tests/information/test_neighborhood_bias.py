"""Normal scores, what smoothing loses, and intervals that know of a bias."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from divjax import information, problems
from divjax.information.entropy_sums import MUTUAL
from divjax.information.neighborhood_bias import (
    normal_scores,
    smoothing_loss,
    smoothing_loss_influence,
)

REFERRED = information.KSG(reference="gaussian_copula")


def test_normal_scores_are_those_of_midranks():
    rng = np.random.default_rng(0)
    x = np.round(rng.normal(size=(50, 2)), 1)
    with jax.enable_x64(True):
        scores = normal_scores(jnp.asarray(x))
    known = stats.norm.ppf((stats.rankdata(x, axis=0) - 0.5) / len(x))
    np.testing.assert_allclose(scores, known, rtol=1e-10, atol=1e-12)


def _loss(covariance, square):
    """KL(N(0, C)‖N(0, C + s²I)) from its definition."""
    wide = covariance + square * np.eye(len(covariance))
    logs = np.linalg.slogdet(wide)[1] - np.linalg.slogdet(covariance)[1]
    return (logs + np.trace(np.linalg.solve(wide, covariance)) - len(covariance)) / 2


def test_a_smoothing_loss_is_a_divergence_of_normal_distributions():
    """Less n⁻¹ times its growth with r² for each pair of features from x and y."""
    rng = np.random.default_rng(1)
    z = rng.normal(size=(200, 5)) @ rng.normal(size=(5, 5))
    z = (z - z.mean(0)) / z.std(0)
    radii, c = np.array([0.0, 0.3, 1.5]), np.corrcoef(z.T)
    with jax.enable_x64(True):
        variables = jnp.asarray(z[:, :2]), jnp.asarray(z[:, 2:])
        found = smoothing_loss(variables, MUTUAL, jnp.asarray(radii))
    small, known = 1e-3, []
    pair = np.array([[1, small], [small, 1]])
    for square in radii**2 / 3:
        growth = (_loss(pair, square) - _loss(np.eye(2), square)) / small**2
        whole = _loss(c, square) - _loss(c[:2, :2], square) - _loss(c[2:, 2:], square)
        known.append(whole - 2 * 3 / len(z) * growth)
    np.testing.assert_allclose(found, known, atol=1e-6)


def test_influence_is_the_derivative_of_the_loss_in_a_share():
    """Of one row after the other, by differences, with correlations for products."""
    rng = np.random.default_rng(2)
    z = rng.normal(size=(12, 3)) @ rng.normal(size=(3, 3))
    z = (z - z.mean(0)) / z.std(0)
    radii = rng.uniform(0.2, 1.5, 12)

    def loss(shares):
        products = (z.T * shares) @ z
        scale = np.sqrt(np.diag(products))
        c = products / scale / scale[:, None]
        parts = lambda square: (
            _loss(c, square) - _loss(c[:2, :2], square) - _loss(c[2:, 2:], square)
        )
        return np.mean([parts(square) for square in radii**2 / 3])

    step, known = 1e-4, []
    for i in range(12):
        change = step * (np.arange(12) == i)
        # Shares need not sum to one: the loss is a function of correlations.
        known.append((loss(1 / 12 + change) - loss(1 / 12 - change)) / (2 * step))
    with jax.enable_x64(True):
        variables = jnp.asarray(z[:, :2]), jnp.asarray(z[:, 2:])
        found = smoothing_loss_influence(variables, MUTUAL, jnp.asarray(radii))
    np.testing.assert_allclose(found, known, atol=1e-6)
    assert abs(np.mean(np.asarray(found))) < 1e-12


def test_independent_features_lose_nothing_on_average():
    """Without the expectation's subtraction the mean would be .09, thirty standard errors."""

    @jax.jit
    def loss(key):
        z = jax.random.normal(key, (60, 8))
        z = (z - z.mean(0)) / z.std(0)
        return smoothing_loss((z[:, :4], z[:, 4:]), MUTUAL, jnp.ones(1))[0]

    found = np.array([loss(key) for key in jax.random.split(jax.random.key(0), 200)])
    assert abs(found.mean()) < 4 * found.std() / np.sqrt(len(found)) + 0.005


def test_a_gaussian_reference_removes_the_bias_of_many_features():
    task = problems.two_pairs(3, 3)
    x, y = task.sample_pairs(jax.random.key(0), 600)
    referred = information.mutual_information(x, y)
    plain = information.mutual_information(x, y, method=information.KSG())
    assert abs(referred.value - task.kl) < 3 * referred.std_error
    assert plain.value < task.kl - 3 * plain.std_error
    # Its interval knows that: the value falls with the number of neighbours.
    assert plain.diagnostics.larger_neighborhoods < plain.value
    assert plain.interval.lower < task.kl < plain.interval.upper
    # The default is on ranks.
    mapped = information.mutual_information(jnp.exp(x), y**3).value
    np.testing.assert_allclose(mapped, referred.value, atol=1e-5)


def test_distances_from_the_centre_bound_the_information():
    """Those of Student's t have all of it; the neighbours in ten features see half."""
    task = problems.student_t(5, 5, 2.0)
    x, y = task.sample_pairs(jax.random.key(1), 600)
    found = information.mutual_information(x, y)
    assert found.value < 0.7 * task.kl
    assert abs(found.diagnostics.center_distances - task.kl) < 3 * found.std_error
    assert found.interval.lower < task.kl < found.interval.upper
    # One feature each has no such bound.
    one = information.mutual_information(x[:, :1], y[:, :1])
    assert jnp.isnan(one.diagnostics.center_distances)


def test_an_unknown_reference_is_refused():
    with pytest.raises(ValueError, match="reference must be"):
        information.KSG(reference="copula")
    with pytest.raises(ValueError, match="algorithm 2"):
        information.KSG(algorithm=2, reference="gaussian_copula")


@pytest.mark.exhaustive
@pytest.mark.parametrize("method", [REFERRED, information.KSG(), information.MixedNeighbors()])
def test_intervals_cover_where_neighbours_are_biased(method):
    """90 % intervals, on average over tasks of strong dependence, heavy tails and edges."""
    tasks = (
        problems.binormal(),
        problems.two_pairs(3, 3),
        problems.student_t(1, 1, 1.0),
        problems.student_t(2, 2, 2.0),
        problems.student_t(5, 5, 2.0),
        problems.additive_uniform(0.1),
    )
    shares = []
    for task in tasks:

        @jax.jit
        def covers(key, task=task):
            x, y = task.sample_pairs(key, 1000)
            ends = information.mutual_information(
                x, y, method=method, confidence_level=0.9
            ).interval
            return (ends.lower <= task.kl) & (task.kl <= ends.upper)

        shares.append(jax.lax.map(covers, jax.random.split(jax.random.key(2), 20)).mean())
    assert np.mean(shares) >= 0.85
