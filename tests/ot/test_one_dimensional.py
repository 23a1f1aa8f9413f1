"""Transport on the line against SciPy, POT, linear programming and theorems."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import ot
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from divjax.ot.one_dimensional import max_sliced_wasserstein, sliced_wasserstein, wasserstein_1d

N, M, D = 7, 5, 3
cost = jax.jit(wasserstein_1d)
of_order = {p: jax.jit(functools.partial(wasserstein_1d, p=p)) for p in (1, 1.5, 2)}
sliced = jax.jit(functools.partial(sliced_wasserstein, num_projections=50))
highest = jax.jit(functools.partial(max_sliced_wasserstein, num_starts=8, num_steps=60))
KEY = jax.random.key(0)


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


def samples(seed=0, ties=False, d=None):
    rng = np.random.default_rng(seed)
    shape = lambda n: n if d is None else (n, d)
    x, y = rng.normal(size=shape(N)), rng.normal(size=shape(M)) + 0.5
    if ties:
        x, y = np.round(x), np.round(y)
    return x, y, rng.dirichlet(np.ones(N)), rng.dirichlet(np.ones(M))


def programme(x, y, a, b, p):
    """The cost by the transport simplex."""
    return ot.emd2(a, b, np.abs(x[:, None] - y) ** p)


@pytest.mark.parametrize("p", of_order)
@pytest.mark.parametrize("ties", [False, True])
def test_the_cost_matches_linear_programming(p, ties):
    for seed in range(10):
        x, y, a, b = samples(seed, ties)
        np.testing.assert_allclose(
            of_order[p](x, y, 3 * a, b), programme(x, y, a, b, p), atol=1e-12
        )
        uniform = np.full(N, 1 / N), np.full(M, 1 / M)
        np.testing.assert_allclose(
            of_order[p](x, y), programme(x, y, *uniform, p), rtol=1e-12, atol=1e-14
        )


def test_order_one_matches_scipy_and_order_two_pot():
    x, y, a, b = samples(3)
    np.testing.assert_allclose(
        of_order[1](x, y, a, b), scipy.stats.wasserstein_distance(x, y, a, b), rtol=1e-12
    )
    np.testing.assert_allclose(cost(x, y, a, b), ot.wasserstein_1d(x, y, a, b, p=2), rtol=1e-12)


values = st.lists(st.integers(-3, 3), min_size=N, max_size=N)


@settings(max_examples=40, deadline=None)
@given(values, values, values)
def test_equally_many_samples_with_ties_are_a_metric(x, y, z):
    x, y, z = (np.asarray(v, float) for v in (x, y, z))
    distance = lambda u, v: np.sqrt(cost(u, v))
    assert cost(x, x) == 0
    np.testing.assert_allclose(cost(x, y), cost(y, x), atol=1e-14)
    assert distance(x, z) <= distance(x, y) + distance(y, z) + 1e-12
    # The same measures, with a weight for each of the distinct values.
    counted = lambda v: np.unique(v, return_counts=True)
    (u, a), (w, b) = counted(x), counted(y)
    padded = lambda v: np.append(v, np.full(N - len(v), 0.0))
    np.testing.assert_allclose(
        cost(padded(u), padded(w), padded(a), padded(b)), cost(x, y), rtol=1e-12, atol=1e-14
    )


def test_quantiles_of_normals_give_their_closed_form():
    """W₂² = (μ − ν)² + (σ − τ)², up to the quantiles' discretisation."""
    levels = (np.arange(4000) + 0.5) / 4000
    quantiles = scipy.stats.norm.ppf(levels)
    value = wasserstein_1d(1 + 2 * quantiles, quantiles)
    np.testing.assert_allclose(value, 2, rtol=2e-3)


@pytest.mark.parametrize("p", of_order)
def test_gradients_are_differences_of_linear_programming(p):
    x, y, a, b = samples(1)
    gradient = jax.jit(jax.grad(functools.partial(wasserstein_1d, p=p), argnums=(0, 1, 2, 3)))
    slopes = gradient(x, y, a, b)
    rng = np.random.default_rng(2)
    step = 1e-6
    for position, (argument, slope) in enumerate(zip((x, y, a, b), slopes, strict=True)):
        direction = rng.normal(size=argument.shape)
        if position > 1:
            direction -= direction.mean()
        moved = [
            [v + s * step * direction if i == position else v for i, v in enumerate((x, y, a, b))]
            for s in (1, -1)
        ]
        above, below = (programme(*arguments, p) for arguments in moved)
        np.testing.assert_allclose(slope @ direction, (above - below) / (2 * step), rtol=1e-6)
    # Weights in any unit: along themselves nothing changes.
    np.testing.assert_allclose(slopes[2] @ a, 0, atol=1e-14)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_gradients_are_finite_at_equality_zero_weights_and_extremes(dtype):
    total = lambda x, y, a, p: wasserstein_1d(x, y, a, p=p)
    gradient = jax.jit(jax.grad(total, argnums=(0, 1, 2, 3)))
    x, weights = jnp.array([1.0, 1.0, 2.0], dtype), jnp.array([0.0, 0.0, 1.0], dtype)
    for y, order in ((x, 1.0), (x, 1.5), (x + 1e6, 3.0), (x * 1e-20, 2.0)):
        slopes = gradient(x, y, weights, order)
        assert all(jnp.isfinite(slope).all() for slope in slopes)
        assert slopes[0].dtype == dtype
        assert total(x, y, weights, 1.5).dtype == dtype
    np.testing.assert_array_equal(gradient(x, x, jnp.ones(3, dtype), 1.5)[0], 0)


def test_float32_weights_of_many_rows_lose_no_mass():
    """A cumulative sum in single precision may pass one; the last value must get the rest."""
    n = 20001
    weights = jnp.full(n, 0.1, jnp.float32)
    x = jnp.linspace(0, 1, n, dtype=jnp.float32)
    np.testing.assert_allclose(wasserstein_1d(x, x[: n - 1] + 1, weights), 1, rtol=1e-4)


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
    directions = jax.random.normal(KEY, (50, D))
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


def test_equal_samples_are_at_distance_zero_with_zero_gradients():
    x = jnp.asarray(samples(d=D)[0])
    for function in (sliced, lambda *args: highest(*args).value):
        value, slope = jax.value_and_grad(function, argnums=1)(KEY, x, x)
        assert value == 0
        np.testing.assert_array_equal(slope, 0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: wasserstein_1d(x[:, None], x), r"x must have shape \(n,\)"),
        (lambda x: wasserstein_1d(x[:0], x), "x must not be empty"),
        (lambda x: wasserstein_1d(x, jnp.arange(3)), "y must be floating-point"),
        (lambda x: wasserstein_1d(x, x, p=0.5), "p must be a finite number of at least 1"),
        (lambda x: wasserstein_1d(x, x, x[:2]), r"a must have shape \(7,\)"),
        (lambda x: wasserstein_1d(x, x, b=-jnp.ones(7)), "b must be finite and non-negative"),
        (lambda x: sliced_wasserstein(KEY, x, x), "x must be a non-empty matrix"),
        (lambda x: sliced_wasserstein(KEY, x[None], x[None, :2]), "same number of features"),
        (lambda x: sliced_wasserstein(0, x[None], x[None]), "key must be one typed key"),
        (
            lambda x: sliced_wasserstein(KEY, x[None], x[None], num_projections=0),
            "num_projections must be an integer of at least 1",
        ),
        (
            lambda x: max_sliced_wasserstein(KEY, x[None], x[None], num_starts=0),
            "num_starts must be an integer of at least 1",
        ),
    ],
)
def test_bad_input_raises(call, message):
    with pytest.raises(ValueError, match=message):
        call(jnp.asarray(samples()[0]))


def test_traced_numbers_out_of_range_have_no_cost():
    x, weights = jnp.arange(4.0), jnp.full(4, 0.25)
    cost = jax.jit(lambda w, p: wasserstein_1d(x, x + 1, w, p=p))
    assert cost(weights, 1.0) == 1
    assert jnp.isnan(cost(weights, 0.5))
    assert jnp.isnan(cost(weights.at[1].set(-0.1), 2.0))
