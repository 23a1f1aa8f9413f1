"""Joint and concatenated distance covariance."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from divjax.information import (
    concatenated_distance_covariance,
    distance_covariance,
    joint_distance_covariance,
)

RNG = np.random.default_rng(0)
X, Y, Z = RNG.normal(size=(3, 10, 1))
Y = np.hstack([Y, X**2])
Z = Z + X * Y[:, :1]
WEIGHTS = RNG.uniform(0.3, 1, size=10)


def negative_centered(x, w):
    a = np.linalg.norm(x[:, None] - x, axis=2)
    return (a @ w)[:, None] + a @ w - a - w @ a @ w


def negative_u_centered(x):
    a = np.linalg.norm(x[:, None] - x, axis=2)
    n, rows = len(a), a.sum(axis=1)
    u = rows[:, None] / (n - 2) + rows / (n - 2) - a - a.sum() / ((n - 1) * (n - 2))
    np.fill_diagonal(u, 0)
    return u


@pytest.mark.parametrize("offset", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["even", "weighted"])
def test_the_v_statistic(offset, weights):
    w = np.full(10, 0.1) if weights is None else weights / weights.sum()
    product = np.prod([negative_centered(v, w) + offset for v in (X, Y, Z)], axis=0)
    truth = w @ product @ w - offset**3
    found = joint_distance_covariance([X, Y, Z], weights, offset=offset)
    np.testing.assert_allclose(found, truth, rtol=2e-5)


@pytest.mark.parametrize("offset", [0.5, 1.0])
def test_the_bias_corrected_one(offset):
    """Σ_{kl} Π (U + c)/(n (n − 3)) − c^K n/(n − 3), where the diagonal of U is zero."""
    n = len(X)
    product = np.prod([negative_u_centered(v) + offset for v in (X, Y, Z)], axis=0)
    truth = product.sum() / (n * (n - 3)) - offset**3 * n / (n - 3)
    found = joint_distance_covariance([X, Y, Z], offset=offset, debias=True)
    np.testing.assert_allclose(found, truth, rtol=2e-5)


def test_it_is_the_sum_over_sets_of_variables():
    """Of c^(K − |S|) times the mean of the product of the centred distances of S."""
    w, c = np.full(10, 0.1), 0.7
    centered = [negative_centered(v, w) for v in (X, Y, Z)]
    sets = [s for k in (2, 3) for s in itertools.combinations(range(3), k)]
    truth = sum(c ** (3 - len(s)) * np.prod([centered[k] for k in s], axis=0).mean() for s in sets)
    np.testing.assert_allclose(joint_distance_covariance([X, Y, Z], offset=c), truth, rtol=2e-5)


def test_of_two_variables_it_is_the_distance_covariance():
    for debias in (False, True):
        np.testing.assert_allclose(
            joint_distance_covariance([X, Y], WEIGHTS, offset=3.0, debias=debias),
            distance_covariance(X, Y, WEIGHTS, debias=debias),
            rtol=2e-5,
        )


def test_attributes_whose_combination_alone_matters():
    """An XOR: the full table of two binary attributes, each row as often as any other."""
    table = np.tile(np.array([[0.0, 0], [0, 1], [1, 0], [1, 1]]), (25, 1))
    a, b = table[:, :1], table[:, 1:]
    xor = np.abs(a - b)
    biased = concatenated_distance_covariance(xor, [a, b], debias=False)
    # In the table each attribute is independent of the prediction exactly.
    np.testing.assert_allclose(biased.parts, 0, atol=1e-7)
    assert float(biased.value) > 0.01
    np.testing.assert_allclose(biased.interaction, biased.value, rtol=1e-5)
    # By hand: distances of the prediction and of both attributes over the table.
    distance = lambda v: np.linalg.norm(v[:4, None] - v[:4], axis=2)
    one, both = distance(xor), distance(np.hstack([a, b]))
    center = lambda m: m - m.mean(0) - m.mean(1)[:, None] + m.mean()
    np.testing.assert_allclose(biased.value, (center(one) * center(both)).mean(), rtol=1e-5)
    # Without bias: the parts are nearly zero, and the interaction is not.
    found = concatenated_distance_covariance(xor, [a, b])
    assert float(found.interaction) > 10 * np.abs(found.parts).max()


def test_the_parts_are_distance_covariances():
    found = concatenated_distance_covariance(Z, [X, Y], WEIGHTS)
    parts = [float(distance_covariance(Z, v, WEIGHTS, debias=True)) for v in (X, Y)]
    np.testing.assert_allclose(found.parts, parts, rtol=1e-4, atol=1e-7)
    together = float(distance_covariance(Z, np.hstack([X, Y]), WEIGHTS, debias=True))
    np.testing.assert_allclose(found.value, together, rtol=1e-4)
    np.testing.assert_allclose(found.interaction, together - sum(parts), rtol=1e-3)
    assert "AttributeDependence(value=" in repr(found)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="variables must be a list or tuple of at least two"):
        joint_distance_covariance([X])
    with pytest.raises(ValueError, match=r"variables\[0\] and variables\[2\] must have the same"):
        joint_distance_covariance([X, Y, Z[:4]])
    with pytest.raises(ValueError, match="offset must not be negative"):
        joint_distance_covariance([X, Y], offset=-1.0)
    with pytest.raises(ValueError, match="attributes must be a list or tuple"):
        concatenated_distance_covariance(X, Y)
    assert np.isnan(joint_distance_covariance([X, Y, Z], offset=jnp.array(-1.0)))


def test_a_model_is_trained_to_be_independent_of_both_attributes():
    """Descent on the value lowers it, through the gradient."""
    key = jax.random.key(0)
    a, b = jax.random.bernoulli(key, 0.5, (2, 60, 1)).astype(jnp.float32)
    scores = jnp.abs(a - b) + 0.1 * jax.random.normal(key, (60, 1))
    value = lambda s: concatenated_distance_covariance(s, [a, b], debias=False).value
    slope = jax.grad(value)(scores)
    # Along the negative gradient by a small step, to first order.
    step = 1e-2 / jnp.linalg.norm(slope)
    change = float(value(scores - step * slope) - value(scores))
    np.testing.assert_allclose(change, -1e-2 * float(jnp.linalg.norm(slope)), rtol=0.1)
