"""Sliced transport against POT, dense grids of directions and closed forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import ot
import pytest
import scipy.stats

from divjax.core.keys import own_key
from divjax.ot.one_dimensional import wasserstein_1d
from divjax.ot.sliced import max_sliced_wasserstein, projected_wasserstein, sliced_wasserstein
from tests.ot.test_one_dimensional import cost, highest, programme, samples, sliced

N, M, D = 7, 5, 3
KEY = jax.random.key(0)


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("p", [1, 2])
def test_sliced_is_the_mean_over_the_sphere(p):
    """A shift: E|θᵀδ|^p is |δ|²/d for p = 2, and |δ|/2 in three dimensions for p = 1."""
    x = samples(d=D)[0]
    shift = np.array([1.0, -2.0, 2.0])
    function = jax.jit(functools.partial(sliced_wasserstein, p=p, num_projections=4000))
    expected = {1: 3 / 2, 2: 3.0}[p]
    # |θ₁| is uniform on (0, 1) in three dimensions.
    variance = {1: 9 / 12, 2: 81 * (1 / 5 - 1 / 9)}[p]
    np.testing.assert_allclose(
        function(KEY, x, x + shift), expected, atol=4 * np.sqrt(variance / 4000)
    )


def test_sliced_matches_pot_along_the_same_directions():
    x, y, a, b = samples(d=D)
    directions = jax.random.normal(own_key(KEY), (50, D))
    directions = np.asarray(directions / jnp.linalg.norm(directions, axis=1, keepdims=True))
    theirs = ot.sliced_wasserstein_distance(x, y, a, b, projections=directions.T) ** 2
    np.testing.assert_allclose(sliced(KEY, x, y, a, b), theirs, rtol=1e-10)


def test_in_one_dimension_slices_are_the_line():
    x, y, a, b = samples()
    for value in (
        sliced(KEY, x[:, None], y[:, None], a, b),
        highest(KEY, x[:, None], y[:, None], a, b).value,
    ):
        np.testing.assert_allclose(value, cost(x, y, a, b), rtol=1e-12)


def test_max_sliced_matches_a_dense_grid_in_the_plane():
    x, y, a, b = samples(5, d=2)
    found = highest(KEY, x, y, a, b)
    angles = np.linspace(0, np.pi, 20001)
    grid = np.stack([np.cos(angles), np.sin(angles)])
    best = np.max(jax.jit(jax.vmap(lambda t: wasserstein_1d(x @ t, y @ t, a, b)))(grid.T))
    np.testing.assert_allclose(found.value, best, rtol=1e-7)
    assert found.values.shape == (8,)
    np.testing.assert_allclose(np.max(found.values), found.value, rtol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(found.direction), 1, rtol=1e-12)


def test_max_sliced_of_scaled_samples_is_an_eigenvalue():
    """From x to Bx with B ⪰ I commuting sorting: along a top axis of B, (b − 1)² θᵀ C θ."""
    x = np.concatenate([np.eye(D), -np.eye(D)])
    found = highest(KEY, x, x * np.array([1.0, 1.5, 4.0]))
    # Each coordinate axis carries two points of six: (b − 1)² · 2/6.
    np.testing.assert_allclose(found.value, 9 / 3, rtol=1e-6)
    np.testing.assert_allclose(np.abs(found.direction), [0, 0, 1], atol=1e-3)


def test_max_sliced_gradients_are_differences():
    x, y, a, b = samples(6, d=D)
    cost_at = lambda x, a: max_sliced_wasserstein(KEY, x, y, a, b, num_steps=60).value
    value, gradient = jax.jit(cost_at), jax.jit(jax.grad(cost_at, argnums=(0, 1)))
    rng = np.random.default_rng(0)
    dx, da = rng.normal(size=x.shape), rng.normal(size=a.shape)
    of_x, of_a = gradient(x, a)
    step = 1e-5
    differences = (value(x + step * dx, a) - value(x - step * dx, a)) / (2 * step)
    np.testing.assert_allclose(np.sum(of_x * dx), differences, rtol=1e-4)
    differences = (value(x, a + step * da) - value(x, a - step * da)) / (2 * step)
    np.testing.assert_allclose(of_a @ da, differences, rtol=1e-4)


def test_offsets_are_taken_off_before_projecting():
    x, y, a, b = (jnp.asarray(v, jnp.float32) for v in samples(d=D))
    for function in (sliced, lambda *args: highest(*args).value):
        far = function(KEY, x + 1024, y + 1024, a, b)
        np.testing.assert_allclose(far, function(KEY, x, y, a, b), rtol=2e-3)
        assert far.dtype == jnp.float32


def test_directions_of_ones_own_match_pot_and_weigh():
    x, y, a, b = samples(d=D)
    directions = np.random.default_rng(1).normal(size=(6, D))
    each = projected_wasserstein(directions, x, y, a, b, p=1.5)
    expected = [programme(x @ t, y @ t, a, b, 1.5) for t in directions]
    np.testing.assert_allclose(each, expected, rtol=1e-10)
    weights = np.arange(6.0)
    run = functools.partial(sliced_wasserstein, None, x, y, a, b, p=1.5, directions=directions)
    np.testing.assert_allclose(run(), np.mean(expected), rtol=1e-10)
    np.testing.assert_allclose(
        run(direction_weights=weights), np.average(expected, weights=weights), rtol=1e-10
    )
    assert jnp.isnan(jax.jit(lambda w: run(direction_weights=w))(-weights))


@pytest.mark.parametrize(("p", "scale"), [(3, 1e-8), (3, 1e8), (4, 1e-6), (4, 1e8)])
def test_the_ascent_does_not_depend_on_the_unit(p, scale):
    """Of the same starts, in units in which the square of a slope leaves float32's range."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(200, 4))
    y = generator.normal(size=(200, 4)) * [1, 1, 1, 3] @ scipy.stats.ortho_group.rvs(4, 1, 0)
    best = lambda unit: (
        max_sliced_wasserstein(
            KEY, jnp.asarray(x * unit, jnp.float32), jnp.asarray(y * unit, jnp.float32), p=p
        ).value
    )
    np.testing.assert_allclose(best(scale) / scale**p, best(1.0), rtol=1e-3)
