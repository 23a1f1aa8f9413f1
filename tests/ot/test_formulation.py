"""Offsets, rows of weight zero and infinite costs: right numbers, or a flag."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import ot as pot
import pandas as pd
import pytest
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from divjax import flows, ot
from divjax.core.types import Status

RNG = np.random.default_rng(0)
X = RNG.normal(size=(20, 2)).astype(np.float32)
Y = RNG.normal(size=(15, 2)).astype(np.float32) + 1
HALF = np.where(np.arange(20) < 10, 0.1, 0).astype(np.float32)
JUNK = [1e8, 1e9, np.nan, np.inf]


@functools.cache
def compiled(**settings):
    settings = {"solver": ot.Sinkhorn(tolerance=1e-5)} | settings
    return jax.jit(lambda x, y, a, b, e: ot.sinkhorn(x, y, a, b, epsilon=e, **settings))


def pot_plan(x, y, a, b, epsilon):
    costs = cdist(np.asarray(x, np.float64), np.asarray(y, np.float64), "sqeuclidean")
    plan = pot.sinkhorn(
        a, b, costs, epsilon, method="sinkhorn_log", stopThr=1e-12, numItermax=10_000
    )
    return plan, costs


# Rows of weight zero.


@pytest.mark.parametrize("junk", JUNK)
@pytest.mark.parametrize("penalty", [None, 2.0])
def test_rows_of_weight_zero_may_hold_anything(junk, penalty):
    x = X.copy()
    x[10:] = junk
    uniform = np.full(15, 1 / 15, np.float32)
    solve = compiled(marginal_penalty=penalty)
    alone = solve(X[:10], Y, HALF[:10], uniform, 0.3)
    for arguments in ((x, Y, HALF, uniform), (Y, x, uniform, HALF)):
        found = solve(*arguments, 0.3)
        assert found.converged
        np.testing.assert_allclose(found.value, alone.value, rtol=1e-5)
    np.testing.assert_allclose(solve(x, Y, HALF, uniform, 0.3).f[:10], alone.f, atol=1e-4)


@pytest.mark.parametrize("junk", JUNK)
def test_gradients_do_not_see_rows_of_weight_zero(junk):
    x, uniform = X.copy(), np.full(15, 1 / 15, np.float32)
    x[10:] = junk
    value = lambda x, y, a, b: (
        ot.sinkhorn(x, y, a, b, epsilon=0.3, solver=ot.Sinkhorn(tolerance=1e-5)).value
    )
    gradient = jax.jit(jax.grad(value, (0, 1, 2)))
    found, alone = gradient(x, Y, HALF, uniform), gradient(X[:10], Y, HALF[:10], uniform)
    np.testing.assert_allclose(found[0][:10], alone[0], atol=1e-5)
    assert (found[0][10:] == 0).all()
    np.testing.assert_allclose(found[1], alone[1], atol=1e-5)
    np.testing.assert_allclose(found[2][:10], alone[2], atol=1e-4)
    assert jnp.isfinite(found[2]).all()


def test_the_derivative_in_a_weight_of_zero_is_that_of_its_own_row():
    """The value's slope as mass moves to a row that had none, from POT's values."""
    with jax.enable_x64(True):
        uniform, a = np.full(15, 1 / 15), np.where(HALF > 0, 0.1, 0)
        value = jax.jit(
            lambda a: ot.sinkhorn(X, Y, a, epsilon=0.3, solver=ot.Sinkhorn(tolerance=1e-12)).value
        )
        slope = jax.grad(value)(jnp.asarray(a))

    def truth(a):
        a, x = a[a > 0], X[a > 0]
        plan, costs = pot_plan(x, Y, a, uniform, 0.3)
        used = plan > 0
        product = (a[:, None] * uniform)[used]
        return np.sum(plan * costs) + 0.3 * np.sum(plan[used] * np.log(plan[used] / product))

    moved = a.copy()
    moved[12], moved[0] = 1e-4, a[0] - 1e-4
    difference = (truth(moved) - truth(a)) / 1e-4
    np.testing.assert_allclose(slope[12] - slope[0], difference, rtol=5e-3)


@pytest.mark.parametrize(
    "junk", [1e8, *[pytest.param(j, marks=pytest.mark.exhaustive) for j in JUNK[1:]]]
)
def test_divergence_gap_and_flow_do_not_see_them_either(junk):
    x = X.copy()
    x[10:] = junk
    divergence = jax.jit(lambda x, a: ot.sinkhorn_divergence(x, Y, a, epsilon=0.3))
    found, alone = divergence(x, HALF), divergence(X[:10], HALF[:10])
    assert found.converged
    np.testing.assert_allclose(found.value, alone.value, rtol=1e-4)
    gap = jax.jit(lambda x, a: ot.monge_gap(x, jnp.cos(x), a, epsilon=0.3).value)
    np.testing.assert_allclose(gap(x, HALF), gap(X[:10], HALF[:10]), rtol=1e-3, atol=1e-5)
    objective = flows.SinkhornDivergence(jnp.asarray(Y), epsilon=0.3)
    step = jax.jit(
        lambda x, a: objective(jax.random.key(0), x, a, objective.init(jax.random.key(0), x))[0]
    )
    moving, expected = step(x, HALF), step(X[:10], HALF[:10])
    np.testing.assert_allclose(moving.value, expected.value, rtol=1e-4)
    np.testing.assert_allclose(moving.gradient[:10], expected.gradient, atol=1e-3)


# NaN and infinity in rows that have weight.


@pytest.mark.parametrize(
    "cost", [ot.SqEuclidean(), ot.Euclidean(), ot.PNorm(1.5), ot.PNormPower(1.5), ot.Cosine()]
)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_in_a_row_that_counts_is_flagged(cost, value):
    x = X[:6].copy()
    x[1, 1] = value
    found = jax.jit(
        lambda x: ot.sinkhorn(x, Y, epsilon=0.3, cost=cost, solver=ot.Sinkhorn(max_iterations=20))
    )(x)
    assert jnp.isnan(found.value)
    assert found.status == Status.NOT_FINITE
    both = ot.sinkhorn_divergence(
        x, Y, epsilon=0.3, cost=cost, solver=ot.Sinkhorn(max_iterations=20)
    )
    assert not both.converged


# Infinite costs.


def test_a_row_of_infinite_cost_may_go_unmatched_or_have_no_mass():
    """Unmatched it costs ρ a_i, and KL(P‖a⊗b) its share of the product measure."""
    costs = cdist(X[:6], Y[:5], "sqeuclidean").astype(np.float32)
    costs[2], a, b = np.inf, np.full(6, 1 / 6, np.float32), np.full(5, 1 / 5, np.float32)
    solve = lambda costs, a, **options: ot.sinkhorn(
        None, None, a, b, epsilon=0.5, cost=costs, solver=ot.Sinkhorn(tolerance=1e-6), **options
    )
    kept = np.arange(6) != 2
    relaxed = solve(costs, a, marginal_penalty=2.0)
    rest = solve(costs[kept], a[kept], marginal_penalty=2.0)
    assert relaxed.converged
    np.testing.assert_allclose(relaxed.value, rest.value + (2.0 + 0.5) / 6, rtol=1e-5)
    assert (relaxed.plan()[2] == 0).all()
    slope = jax.jit(
        jax.grad(
            lambda e: (
                ot.sinkhorn(None, None, a, b, epsilon=e, cost=costs, marginal_penalty=2.0).value
            )
        )
    )(0.5)
    assert jnp.isfinite(slope)
    massless = np.where(kept, a * 6 / 5, 0).astype(np.float32)
    exactly = solve(costs, massless)
    assert exactly.converged
    np.testing.assert_allclose(exactly.value, solve(costs[kept], massless[kept]).value, rtol=1e-5)


@pytest.mark.parametrize("kind", ["matrix", "blocks", "function"])
def test_where_a_row_has_nowhere_to_go_the_value_is_infinite(kind):
    """There is no plan; and with NaN among the costs no value either."""

    def cost(x, y):
        forbidden = (x[0] == 2) | ((x[0] == 4) & (y[0] == 1))
        return jnp.where(forbidden, jnp.inf, (x[0] - y[0]) ** 2)

    x, y = jnp.arange(6.0)[:, None], jnp.arange(5.0)[:, None]
    solver = ot.Sinkhorn(max_iterations=30, block_size=2 if kind == "blocks" else None)
    options = {"epsilon": 0.5, "solver": solver}

    def solve(x, y, **more):
        if kind == "function":
            return ot.sinkhorn(x, y, cost=cost, **options, **more)
        return ot.sinkhorn(None, None, cost=ot.cost_matrix(cost, x, y), **options, **more)

    for found in (jax.jit(solve)(x, y), solve(x, y, marginal_penalty=(None, 2.0))):
        assert jnp.isposinf(found.value)
        assert found.status == Status.NOT_FINITE
    assert jnp.isposinf(ot.exact(x, y, cost=cost).value)
    assert jnp.isfinite(solve(x, y, marginal_penalty=(2.0, None)).value)
    assert jnp.isfinite(solve(x[:2], y).value)
    spoilt = solve(x.at[0].set(jnp.nan), y)
    assert jnp.isnan(spoilt.value)
    assert spoilt.status == Status.NOT_FINITE


def test_an_infinite_penalty_that_is_traced_is_an_exact_marginal_of_a_matrix():
    costs = jnp.asarray(cdist(X[:6], Y[:5], "sqeuclidean"), jnp.float32)
    value = jax.jit(
        lambda costs, penalty: (
            ot.sinkhorn(None, None, epsilon=0.5, cost=costs, marginal_penalty=penalty).value
        )
    )
    expected = ot.sinkhorn(None, None, epsilon=0.5, cost=costs).value
    np.testing.assert_allclose(value(costs, jnp.inf), expected, rtol=1e-4)
    assert jnp.isposinf(value(costs.at[2].set(jnp.inf), jnp.inf))


@pytest.mark.parametrize("hold", [np.asarray, jnp.asarray, np.ndarray.tolist, pd.DataFrame])
def test_a_matrix_of_whole_costs_is_one_of_floats(hold):
    """SciPy's assignment, and the entropic value of floats."""
    costs = np.random.default_rng(3).integers(0, 9, size=(6, 6))
    partner = linear_sum_assignment(costs)
    exact = ot.exact(None, None, cost=hold(costs))
    np.testing.assert_allclose(exact.value, costs[partner].mean(), rtol=1e-6)
    found, floats = (
        ot.sinkhorn(None, None, epsilon=0.5, cost=c) for c in (hold(costs), np.float32(costs))
    )
    assert found.value == floats.value
    assert found.f.dtype == jnp.float32


def test_what_is_no_matrix_of_costs_is_refused():
    for costs in (np.arange(3), np.ones((2, 2), complex), np.ones((0, 2)), [[1, 2], [3]]):
        with pytest.raises(ValueError, match=r"^cost must"):
            ot.sinkhorn(None, None, epsilon=0.5, cost=costs)


def test_forbidden_pairs_have_no_mass_and_the_rest_is_pots_plan():
    costs = cdist(X[:6], Y[:6], "sqeuclidean")
    forbidden = (np.arange(6)[:, None] + np.arange(6)) % 3 == 0
    uniform = np.full(6, 1 / 6)
    expected = pot.sinkhorn(
        uniform, uniform, np.where(forbidden, 1e4, costs), 0.5, method="sinkhorn_log", stopThr=1e-12
    )
    matrix = jnp.asarray(np.where(forbidden, np.inf, costs), jnp.float32)
    found = ot.sinkhorn(None, None, epsilon=0.5, cost=matrix, solver=ot.Sinkhorn(tolerance=1e-6))
    np.testing.assert_allclose(found.plan(), expected, atol=1e-5)
    paid = np.sum(np.where(forbidden, 0, expected * costs))
    np.testing.assert_allclose(found.transport_cost, paid, rtol=1e-4)


# Offsets.


@pytest.mark.parametrize("d", [2, 16])
@pytest.mark.parametrize("cost", [ot.SqEuclidean(), ot.EuclideanPower(2.0), ot.PNormPower(2.0)])
def test_a_shift_of_one_side_changes_the_plan_of_no_quadratic_cost(d, cost):
    u, w = RNG.normal(size=(2, 64, d)).astype(np.float32)
    factor = 1.0 if isinstance(cost, ot.SqEuclidean) else 0.5
    solve = jax.jit(lambda u: ot.sinkhorn(u, w, epsilon=3.0 * factor, cost=cost))
    here, there = solve(u), solve(u + np.float32(1e5))
    assert there.converged
    assert np.abs(here.plan() - there.plan()).sum() < 0.1  # of points rounded to 1/128
    squared = np.sum((u.mean(0, dtype=float) + 1e5 - w.mean(0, dtype=float)) ** 2)
    np.testing.assert_allclose(there.value, factor * squared, rtol=1e-6)
    moved = there.transport(jnp.asarray(u + np.float32(1e5)))
    np.testing.assert_allclose(moved, here.transport(jnp.asarray(u)), atol=0.05)


@pytest.mark.parametrize("shift", [1e6, 123456789.0])
def test_samples_far_apart_have_the_plan_of_centred_ones_and_its_derivatives(shift):
    x, w = RNG.normal(size=(2, 30, 2))
    y = w + shift
    solve = lambda x, y: ot.sinkhorn(x, y, epsilon=0.5, solver=ot.Sinkhorn(tolerance=1e-6)).plan()
    x = jnp.asarray(x, jnp.float32)
    here, there = (jax.jvp(lambda x: solve(x, z), (x,), (jnp.sin(x),)) for z in (w, y))  # noqa: B023
    np.testing.assert_allclose(there[0], here[0], atol=1e-6)
    np.testing.assert_allclose(there[1], here[1], atol=1e-5)
    assert np.abs(here[1]).max() > 1e-3


@pytest.mark.parametrize("options", [{"marginal_penalty": 1e13}, {"cost": ot.Euclidean()}])
def test_what_a_shift_cannot_be_taken_out_of_is_flagged(options):
    u, w = RNG.normal(size=(2, 64, 16)).astype(np.float32)
    found = jax.jit(lambda u: ot.sinkhorn(u, w, epsilon=0.1, **options))(u + np.float32(1e5))
    # Rounding may even carry the potentials out of range.
    assert found.status in (Status.FLOATING_POINT_RESOLUTION, Status.NOT_FINITE)


def test_gradients_of_a_shifted_problem_are_those_of_double_precision():
    args = RNG.normal(size=(2, 12, 10))
    value = lambda x, y: (
        ot.sinkhorn(
            x, y, epsilon=1.0, solver=ot.Sinkhorn(tolerance=1e-6, max_iterations=3000)
        ).value
    )
    potentials = lambda x, y: jnp.sum(
        jnp.sin(jnp.arange(12.0))
        * ot.sinkhorn(x, y, epsilon=1.0, solver=ot.Sinkhorn(tolerance=1e-6, max_iterations=3000)).f
    )
    for function in (value, potentials):
        gradient = jax.jit(jax.grad(function, (0, 1)))
        single = gradient(jnp.asarray(args[0] + 32, jnp.float32), jnp.asarray(args[1], jnp.float32))
        with jax.enable_x64(True):
            double = gradient(jnp.asarray(args[0] + 32), jnp.asarray(args[1]))
        for one, two in zip(single, double, strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-4 * np.abs(two).max())


@pytest.mark.parametrize("cost", [ot.SqEuclidean(), ot.Euclidean()])
def test_numpy_in_double_precision_keeps_its_digits_at_an_offset(cost):
    x, y = RNG.normal(size=(2, 30, 3))
    here = ot.sinkhorn(x, y, epsilon=0.3, cost=cost)
    there = ot.sinkhorn(x + 123456789.0, y + 123456789.0, epsilon=0.3, cost=cost)
    np.testing.assert_allclose(there.value, here.value, rtol=1e-4)
    np.testing.assert_allclose(there.potential(x + 123456789.0), here.potential(x), atol=1e-3)
    divergence = [
        ot.sinkhorn_divergence(x + s, y + s, epsilon=0.3, cost=cost).value
        for s in (0.0, 123456789.0)
    ]
    np.testing.assert_allclose(*divergence, rtol=1e-3)
    gaps = [ot.monge_gap(x + s, y + s, epsilon=0.3, cost=cost).value for s in (0, 123456789.0)]
    np.testing.assert_allclose(*gaps, rtol=1e-3)
