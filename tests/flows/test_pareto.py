"""The combined field's norm and the dominated volume against sums, minimisers and Monte Carlo."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from divjax import flows


def test_squared_norm_and_pareto_residual_are_the_sums():
    rng = np.random.default_rng(0)
    v, w = rng.normal(size=(3, 6, 2)) + 1, np.array([0.2, 0.3, 0.5])
    a = rng.uniform(size=6)
    a /= a.sum()
    norm = lambda w: sum(a[i] * np.sum((w @ v[:, i]) ** 2) for i in range(6))
    np.testing.assert_allclose(
        flows.squared_norm(jnp.asarray(v), jnp.asarray(w), jnp.asarray(a)), norm(w), rtol=1e-5
    )
    best = minimize(
        norm,
        np.full(3, 1 / 3),
        bounds=[(0, 1)] * 3,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
        options={"ftol": 1e-14},
    ).fun
    residual = flows.pareto_residual(jnp.asarray(v), jnp.asarray(a))
    np.testing.assert_allclose(residual, best, rtol=1e-4)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_hypervolume_is_monte_carlos(k):
    rng = np.random.default_rng(k)
    points, reference = rng.uniform(size=(7, k)), np.full(k, 0.9)
    volume = flows.hypervolume(jnp.asarray(points), jnp.asarray(reference))
    z = rng.uniform(high=0.9, size=(200_000, k))
    dominated = np.zeros(len(z), bool)
    for point in points:
        dominated |= (z >= point).all(1)
    expected, scale = dominated.mean(), 0.9**k
    error = scale * np.sqrt(expected * (1 - expected) / len(z))
    assert abs(volume - scale * expected) <= 4 * error + 1e-6
    order = rng.permutation(7)
    np.testing.assert_allclose(
        flows.hypervolume(jnp.asarray(points[order]), jnp.asarray(reference)), volume, rtol=1e-5
    )


@pytest.mark.parametrize("k", [2, 3, 4])
def test_hypervolume_is_inclusion_and_exclusion(k):
    """The boxes below the reference meet in the box of their largest corner; ties included."""
    rng = np.random.default_rng(10 + k)
    points = np.round(rng.uniform(high=1.3, size=(6, k)), 1)
    points = np.concatenate([points, points[:1]])
    corners = (
        (len(chosen), np.max(points[list(chosen)], axis=0))
        for size in range(1, 8)
        for chosen in itertools.combinations(range(7), size)
    )
    volume = sum((-1) ** (size + 1) * np.prod(np.maximum(1 - c, 0)) for size, c in corners)
    with jax.enable_x64(True):
        found = jax.jit(flows.hypervolume)(jnp.asarray(points), jnp.ones(k))
        np.testing.assert_allclose(found, volume, rtol=1e-12)


def test_hypervolume_ignores_points_beyond_the_reference():
    inside = jnp.array([[0.5, 0.5, 0.5]])
    with_outside = jnp.concatenate([inside, jnp.array([[0.1, 0.1, 2.0]])])
    for points in (inside, with_outside):
        assert flows.hypervolume(points, jnp.ones(3)) == pytest.approx(0.125)


def test_a_small_residual_keeps_its_digits():
    """Fields (±1, ε) combine to (0, ε), whose square is lost in the rounding of 1."""
    fields = jnp.array([[[1.0, 1e-5]], [[-1.0, 1e-5]]])
    np.testing.assert_allclose(flows.pareto_residual(fields), 1e-10, rtol=1e-3)


def test_lists_are_fields_and_weights():
    fields = [[[2.0, 0.0]], [[-1.0, 0.0]]]
    assert flows.pareto_residual(fields) == 0
    assert flows.squared_norm(fields, [0, 1], [1]) == 1
    assert flows.squared_norm(np.array(fields, int), np.array([1, 0])) == 4
    assert flows.effective_sample_size([0.5, 0.5]) == 2


@pytest.mark.parametrize(
    "fields", [np.zeros((2, 0)), np.zeros((2, 0, 1)), np.ones(2), jnp.ones(2) * 1j, "text"], ids=str
)
def test_what_is_no_field_is_named(fields):
    for function in (flows.pareto_residual, lambda v: flows.squared_norm(v, [1.0])):
        with pytest.raises(ValueError, match=r"^velocities must"):
            function(fields)


def test_the_norm_with_weights_for_each_particle():
    rng = np.random.default_rng(4)
    v, w, a = rng.normal(size=(3, 6, 2)), rng.uniform(size=(3, 6)), rng.dirichlet(np.ones(6))
    expected = sum(a[i] * np.sum((w[:, i] @ v[:, i]) ** 2) for i in range(6))
    np.testing.assert_allclose(flows.squared_norm(v, w, a), expected, rtol=1e-5)
    with pytest.raises(
        ValueError, match=r"must have shape \(3,\), or \(3, 6\) with weights for each"
    ):
        flows.squared_norm(v, w[:, :5], a)
