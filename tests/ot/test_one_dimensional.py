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

from divjax.core.types import Status
from divjax.ot.one_dimensional import transport_1d, wasserstein_1d
from divjax.ot.sliced import max_sliced_wasserstein, projected_wasserstein, sliced_wasserstein
from divjax.ot.unbalanced_line import unbalanced_1d

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
        (lambda x: wasserstein_1d(x, np.array(["a"])), "y must hold real numbers"),
        (lambda x: transport_1d(x, x, p=float("inf")), "p must be a finite number"),
        (lambda x: sliced_wasserstein(KEY, x[None], x[None], p=float("inf")), "p must be a finite"),
        (
            lambda x: sliced_wasserstein(KEY, x[None], x[None], directions=jnp.eye(7)),
            "key must be None if directions are given",
        ),
        (
            lambda x: projected_wasserstein(jnp.eye(6), x[None], x[None]),
            "directions and x must have the same number of features",
        ),
        (lambda x: unbalanced_1d(x, x, marginal_penalty=-1.0), "marginal_penalty must be positive"),
        (lambda x: unbalanced_1d(x, x, marginal_penalty=(1.0, None)), "one or two numbers"),
        (lambda x: wasserstein_1d(x, x, p=0.5), "p must be a finite number of at least 1"),
        (lambda x: wasserstein_1d(x, x, x[:2]), r"a must have shape \(7,\)"),
        (lambda x: wasserstein_1d(x, x, b=-jnp.ones(7)), "b must be finite and non-negative"),
        (lambda x: sliced_wasserstein(KEY, x, x), "x must be a matrix"),
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


@pytest.mark.parametrize("p", [1, 1.5, 2, 3, np.float32(2.0), jnp.float32(1.0), float("inf")])
def test_rows_that_are_not_a_number_give_none(p):
    x, y, a, _ = samples()
    bad = x.copy()
    bad[2] = np.nan
    run = jax.jit(functools.partial(wasserstein_1d, p=p))
    for args in ((bad, y), (y, bad), (bad, x), (bad, y, a)):
        assert jnp.isnan(run(*args))
    assert not jnp.isfinite(run(np.where(np.isnan(bad), np.inf, x), y))
    np.testing.assert_array_equal(run(np.zeros(3), np.array([-0.0, 0.0, 5e-324])), 0)
    # Without weight they count for nothing.
    a = a * ~np.isnan(bad)
    expected = run(np.delete(x, 2), y, np.delete(a, 2))
    for padding in (np.nan, np.inf, -1e200, 1e8):
        np.testing.assert_allclose(run(np.where(np.isnan(bad), padding, x), y, a), expected)


def test_traced_orders_that_are_not_a_number_give_none():
    run = jax.jit(lambda p: wasserstein_1d(jnp.arange(3.0), jnp.arange(3.0), p=p))
    assert jnp.isnan(run(jnp.nan))
    assert run(1.5) == 0


def test_padding_far_away_changes_nothing_in_single_precision():
    """Sums are rounded, in another order: a far row of weight zero must get nothing of that."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 1000, D)).astype(np.float32)
    a = rng.dirichlet(np.ones(1000)).astype(np.float32)
    a[10:200] = 0
    far = x.copy()
    far[10:200] = rng.choice([-123456789.0, 123456789.0, 1e30, np.nan], (190, D))
    few = jax.jit(functools.partial(max_sliced_wasserstein, num_starts=2, num_steps=5))
    np.testing.assert_allclose(few(KEY, far, y, a).value, few(KEY, x, y, a).value, rtol=2e-3)
    np.testing.assert_allclose(sliced(KEY, y, far, None, a), sliced(KEY, y, x, None, a), rtol=2e-3)
    gradient = jax.jit(jax.value_and_grad(lambda x: sliced(KEY, x, y, a)))
    (expected, plain), (value, slope) = gradient(jnp.asarray(x)), gradient(jnp.asarray(far))
    np.testing.assert_allclose(value, expected, rtol=2e-3)
    np.testing.assert_allclose(slope, plain, rtol=0.05, atol=1e-5)
    np.testing.assert_allclose(cost(far[:, 0], y[:, 0], a), cost(x[:, 0], y[:, 0], a), rtol=2e-3)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_ties_have_a_zero_derivative_at_order_one(dtype):
    x = jnp.array([1.0, 1.0, 2.0], dtype)
    slope = jax.grad(lambda x, y: wasserstein_1d(x, y, p=1))
    np.testing.assert_array_equal(slope(x, x), 0)
    np.testing.assert_allclose(slope(x, x.at[2].add(1)), [0, 0, -1 / 3], rtol=1e-6)
    rows = jnp.stack([x, x], axis=1)
    run = jax.grad(lambda x: sliced_wasserstein(KEY, x, rows, p=1, num_projections=4))
    np.testing.assert_array_equal(run(rows), 0)


def test_half_precision_sums_many_rows():
    """70 000 does not exist in float16: levels and sums are in single precision."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=70_000).astype(np.float16), rng.normal(size=60_000).astype(np.float16)
    found = wasserstein_1d(x, y + np.float16(1))
    assert found.dtype == jnp.float16
    expected = ot.wasserstein_1d(x.astype(float), (y + np.float16(1)).astype(float), p=2)
    np.testing.assert_allclose(found, expected, rtol=2e-3)
    half = jnp.asarray(samples(d=D)[0], jnp.bfloat16)
    assert sliced_wasserstein(KEY, half, half + 1).dtype == jnp.bfloat16


def test_the_largest_distance_matches_an_assignment():
    """The difference of NumPy's quantile functions."""
    x, y, a, b = samples(8)
    run = jax.jit(functools.partial(wasserstein_1d, p=float("inf")))
    np.testing.assert_allclose(run(x, x[::-1] + 2), 2, rtol=1e-12)
    x_order, y_order = np.argsort(x), np.argsort(y)
    x_levels, y_levels = np.cumsum(a[x_order]), np.cumsum(b[y_order])
    levels = np.sort(np.concatenate([[0], x_levels, y_levels]))
    middles = (levels[1:] + levels[:-1])[np.diff(levels) > 1e-12] / 2
    quantile = lambda z, order, steps: z[order[np.searchsorted(steps, middles)]]
    apart = quantile(x, x_order, x_levels) - quantile(y, y_order, y_levels)
    np.testing.assert_allclose(run(x, y, a, b), np.abs(apart).max(), rtol=1e-12)
    # Levels that coincide up to rounding, .1 + .2 and .3, leave no mass between.
    far = run(
        jnp.array([0.0, 9.0]),
        jnp.array([0.0, 0.5, 9.5]),
        jnp.array([0.3, 0.7]),
        jnp.array([0.1, 0.2, 0.7]),
    )
    np.testing.assert_allclose(far, 0.5)
    slope = jax.grad(lambda x: run(x, y))(jnp.asarray(x))
    np.testing.assert_allclose(jnp.sum(jnp.abs(slope)), 1, rtol=1e-12)


def test_roots_are_distances():
    x, y, a, b = samples()
    for p in (1, 1.5, 2, jnp.float32(3.0)):
        root = wasserstein_1d(x, y, a, b, p=p, root=True)
        expected = programme(x, y, a, b, float(p)) ** (1 / float(p))
        np.testing.assert_allclose(root, expected, rtol=1e-6)
    rows = np.stack([x, x**2], axis=1)
    value = sliced_wasserstein(KEY, rows, rows + 1)
    np.testing.assert_allclose(sliced_wasserstein(KEY, rows, rows + 1, root=True) ** 2, value)
    found = max_sliced_wasserstein(KEY, rows, rows + 1, root=True)
    np.testing.assert_allclose(found.value, np.sqrt(2), rtol=1e-6)
    np.testing.assert_allclose(found.values.max(), found.value)
    slope = jax.grad(lambda x: wasserstein_1d(x, x, root=True))(jnp.asarray(x))
    np.testing.assert_array_equal(slope, 0)


def test_a_map_on_the_line_is_the_optimal_one():
    """From a normal to its exponential, at new points."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=2000), np.exp(rng.normal(size=3000))
    z = np.linspace(-1.5, 1.5, 31)
    # A quantile's standard error, √(u(1 − u)/n)/density, of both samples.
    density = scipy.stats.norm.pdf(z)
    level = scipy.stats.norm.cdf(z)
    error = np.exp(z) * np.sqrt(level * (1 - level) * (1 / 2000 + 1 / 3000)) / density
    np.testing.assert_array_less(np.abs(transport_1d(x, y).transport(z) - np.exp(z)), 4 * error)


def test_bad_data_on_the_line_is_flagged():
    x = jnp.arange(4.0)
    run = jax.jit(lambda x, a: transport_1d(x, x + 1, a).status)
    assert run(x.at[1].set(jnp.nan), x + 1) == Status.NOT_FINITE
    assert run(x, x - 1) == Status.INVALID_INPUT
    assert run(x, x) == Status.CONVERGED


def test_numpy_values_keep_their_signal_at_an_offset():
    rng = np.random.default_rng(0)
    x, y, rows = rng.normal(size=50), rng.normal(size=60) + 1, rng.normal(size=(40, D))
    expected = programme(x, y, np.full(50, 1 / 50), np.full(60, 1 / 60), 2)
    with jax.enable_x64(False):
        found = transport_1d(123456789.0 + x, 123456789.0 + y)
        np.testing.assert_allclose(found.value, expected, rtol=1e-5)
        np.testing.assert_allclose(
            wasserstein_1d(123456789.0 + x, 123456789.0 + y), expected, rtol=1e-5
        )
        shifted = sliced_wasserstein(KEY, 123456789.0 + rows, 123456789.0 + 2 * rows)
        np.testing.assert_allclose(shifted, sliced_wasserstein(KEY, rows, 2 * rows), rtol=1e-4)
        near = found.transport(123456789.0 + np.array([0.0, 1.0])) - np.float32(123456789.0)
        assert jnp.all(jnp.abs(near) <= 8)
        found = unbalanced_1d(123456789.0 + x, 123456789.0 + y, marginal_penalty=1e4)
        np.testing.assert_allclose(found.value, expected, rtol=1e-2)


def test_lists_and_integers_are_numbers():
    assert wasserstein_1d([0, 1], np.array([3])) == 6.5
    assert sliced_wasserstein(None, [[0, 0]], [[3, 0]], directions=[[1, 0]]) == 9


@pytest.mark.parametrize("weight", [0.0, np.inf, np.nan, -1.0])
def test_one_row_with_a_weight_that_is_none(weight):
    x, y, a = jnp.array([0.7]), jnp.array([2.9, 0.1]), jnp.array([weight])
    assert jnp.isnan(jax.jit(wasserstein_1d)(x, y, a))
    assert jnp.isnan(jax.jit(lambda a: transport_1d(x, y, a).value)(a))
    assert jnp.isnan(jax.jit(lambda a: sliced_wasserstein(KEY, x[:, None], y[:, None], a))(a))
    relaxed = jax.jit(lambda a: unbalanced_1d(x, y, a, marginal_penalty=1.0).value)
    assert jnp.isnan(relaxed(a))


def test_weights_that_single_precision_lacks_are_refused():
    for tiny in (np.array([1e-60]), np.array([1e300]), jnp.float32([1e-40])):
        with pytest.raises(ValueError, match="a must"):
            wasserstein_1d(jnp.float32([0.7]), jnp.float32([2.9, 0.1]), tiny)


@pytest.mark.parametrize("p", [np.float32(np.inf), jnp.array(jnp.inf)])
def test_an_infinite_order_is_a_python_number_or_nan(p):
    x = jnp.array([0.0, 1.0])
    np.testing.assert_allclose(wasserstein_1d(x, x + 0.5, p=float("inf")), 0.5)
    assert jnp.isnan(wasserstein_1d(x, x + 0.5, p=p))
    assert jnp.isnan(transport_1d(x, x + 0.5, p=p).value)
    assert jnp.isnan(unbalanced_1d(x, x + 0.5, p=p, marginal_penalty=1.0).value)


def test_the_derivative_in_a_weight_of_zero_is_one_sided():
    """Against the values at small weights, which are found anew."""
    x, y, b = jnp.array([0.0, 1.0, 3.0]), jnp.array([0.2, 2.0]), jnp.array([0.6, 0.4])

    def value(last):
        a = jnp.array([0.5, 0.5, 0.0]).at[2].set(last)
        return unbalanced_1d(x, y, a, b, marginal_penalty=1.0, tolerance=1e-6).value

    difference = (value(0.02) - value(0.0)) / 0.02
    np.testing.assert_allclose(jax.grad(value)(0.0), difference, rtol=0.05)


@pytest.mark.parametrize("side", [0, 1])
def test_samples_too_far_apart_to_keep_their_order_are_refused(side):
    """Only their plans: the cost has the digits of the distance."""
    samples = [np.array([0.1, 0.7, 0.3, 0.9]), np.array([0.2, 0.4, 0.6, 0.8])]
    samples[side] = samples[side] + 123456789.1
    with jax.enable_x64(False):
        for solve in (transport_1d, lambda x, y: unbalanced_1d(x, y, marginal_penalty=1.0)):
            with pytest.raises(ValueError, match=r"^[xy] must differ in float32 too"):
                solve(*samples)
        np.testing.assert_allclose(wasserstein_1d(*samples), 123456789.1**2, rtol=1e-6)
        # A constant sample has no order, and an outlier does not take that of the others.
        assert transport_1d(samples[side][:1], samples[1 - side]).converged
        outlier = np.append(samples[1 - side], 1e9)
        assert transport_1d(outlier, samples[1 - side]).converged
