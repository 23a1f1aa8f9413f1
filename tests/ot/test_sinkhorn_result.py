"""What a result offers: its plan's cost and entropy, pairs, both directions, errors, schedules."""

import jax
import jax.numpy as jnp
import numpy as np
import ot as pot
import pytest
from scipy.spatial.distance import cdist

from divjax import ot
from divjax.core.types import Status

RNG = np.random.default_rng(0)
X = RNG.normal(size=(30, 2)).astype(np.float32)
Y = (0.5 + 1.2 * RNG.normal(size=(20, 2))).astype(np.float32)
A, B = RNG.dirichlet(np.ones(30)).astype(np.float32), RNG.dirichlet(np.ones(20)).astype(np.float32)
COSTS = cdist(X.astype(float), Y.astype(float), "sqeuclidean")
PLAN = pot.sinkhorn(
    A.astype(float),
    B / B.sum(dtype=float) * A.sum(dtype=float),
    COSTS,
    0.5,
    method="sinkhorn_log",
    stopThr=1e-12,
)


SETTINGS = ("epsilon", "cost", "marginal_penalty")


def solve(**settings):
    """Both the problem's settings and the solver's options."""
    options = {"tolerance": 1e-5, "max_iterations": 5000}
    options |= {name: value for name, value in settings.items() if name not in SETTINGS}
    problem = {"epsilon": 0.5} | {k: v for k, v in settings.items() if k in SETTINGS}
    problem["solver"] = ot.Sinkhorn(**options)
    return jax.jit(lambda x, y, a, b: ot.sinkhorn(x, y, a, b, **problem))


@pytest.mark.parametrize("block_size", [None, 7])
def test_cost_and_entropy_of_the_plan(block_size):
    result = solve(block_size=block_size)(X, Y, A, B)
    np.testing.assert_allclose(result.transport_cost, np.sum(PLAN * COSTS), rtol=1e-4)
    np.testing.assert_allclose(result.plan_entropy, -np.sum(PLAN * np.log(PLAN)), rtol=1e-4)
    shifted = solve(block_size=block_size)(X + np.float32(10), Y, A, B)
    costs = cdist(X.astype(float) + 10, Y.astype(float), "sqeuclidean")
    np.testing.assert_allclose(shifted.transport_cost, np.sum(PLAN * costs), rtol=1e-4)


def test_entropy_of_a_plan_with_masses_other_than_one_and_zeros():
    a = np.where(np.arange(30) < 5, 0, A).astype(np.float32)
    result = solve(marginal_penalty=1.0)(X, Y, a, 3 * B)
    plan = np.asarray(result.plan(), np.float64)
    used = plan[plan > 0]
    np.testing.assert_allclose(result.plan_entropy, -np.sum(used * np.log(used)), rtol=1e-4)


def test_the_transposed_result_is_the_other_direction():
    result, back = solve()(X, Y, A, B), solve()(Y, X, B, A)
    z = jnp.asarray(Y[:5] + 0.1)
    np.testing.assert_allclose(result.transposed.transport(z), back.transport(z), atol=1e-3)
    np.testing.assert_allclose(result.transposed.potential(z), back.potential(z), atol=1e-3)
    np.testing.assert_allclose(result.transposed.potential(Y), result.g, atol=1e-3)
    np.testing.assert_allclose(result.transposed.plan(), result.plan().T, rtol=1e-6)
    expected = (PLAN.T @ X) / PLAN.sum(0)[:, None]
    np.testing.assert_allclose(result.transposed.transport(Y), expected, atol=1e-3)
    cubic = solve(cost=ot.EuclideanPower(3.0))
    one, two = cubic(X, Y + 5, A, B).transposed, cubic(Y + 5, X, B, A)
    np.testing.assert_allclose(one.transport(z + 5), two.transport(z + 5), atol=1e-2)


@pytest.mark.parametrize("block_size", [None, 7])
def test_pairs_have_the_plans_frequencies(block_size):
    n = 20_000
    sample = lambda r: r.sample_pairs(jax.random.key(0), n)
    i, j = jax.jit(sample)(solve(block_size=block_size)(X, Y, A, B))
    counts = np.zeros((30, 20))
    np.add.at(counts, (np.asarray(i), np.asarray(j)), 1)
    expected = PLAN / PLAN.sum()
    error = np.sqrt(n * expected * (1 - expected)) + 1
    assert np.max(np.abs(counts - n * expected) / error) < 5
    costs = COSTS[np.asarray(i), np.asarray(j)]
    truth = np.sum(expected * COSTS)
    assert abs(costs.mean() - truth) < 4 * costs.std() / np.sqrt(n)


def test_rows_without_weight_are_never_sampled():
    a = np.where(np.arange(30) % 2 == 0, A, 0).astype(np.float32)
    i, _ = solve()(X, Y, a, B / B.sum() * a.sum()).sample_pairs(jax.random.key(1), 1000)
    assert (np.asarray(i) % 2 == 0).all()


def test_assignment_is_the_largest_entry():
    result = solve()(X, Y, A, B)
    np.testing.assert_array_equal(result.assignment(), np.argmax(PLAN, axis=1))
    np.testing.assert_array_equal(result.transposed.assignment(), np.argmax(PLAN, axis=0))


def test_errors_are_those_after_each_iteration():
    result = ot.sinkhorn(
        X, Y, A, B, epsilon=0.5, solver=ot.Sinkhorn(tolerance=1e-4, record_errors=True)
    )
    count = int(result.num_iterations)
    assert result.errors.shape == (2000,)
    assert jnp.isfinite(result.errors[:count]).all()
    assert jnp.isnan(result.errors[count:]).all()
    assert result.errors[count - 1] <= 1e-4 < result.errors[count - 2]
    # The plain iterations in NumPy.
    plain = ot.sinkhorn(
        X,
        Y,
        A,
        B,
        epsilon=0.5,
        init=(jnp.zeros(30), jnp.zeros(20)),
        solver=ot.Sinkhorn(
            tolerance=None, max_iterations=12, over_relaxation=1.0, record_errors=True
        ),
    )
    a, b, kernel = A.astype(float), B.astype(float), np.exp(-COSTS / 0.5)
    u, expected = np.ones(30), []
    for _ in range(12):
        v = 1 / (kernel.T @ (a * u))
        u = 1 / (kernel @ (b * v))
        plan = (a * u)[:, None] * kernel * (b * v)
        expected.append(np.abs(plan.sum(1) - a).sum() + np.abs(plan.sum(0) - b).sum())
    np.testing.assert_allclose(plain.errors, expected, rtol=1e-2, atol=2e-6)
    assert ot.sinkhorn(X, Y, A, B, epsilon=0.5).errors is None


@pytest.mark.parametrize("of", ["mean", "std", "median"])
def test_a_relative_epsilon_is_a_share_of_the_costs(of):
    x, y = X - X.mean(0), Y - Y.mean(0)  # the means are equal: nothing is centred away
    costs = cdist(x.astype(float), y.astype(float), "sqeuclidean")
    expected = 0.1 * getattr(np, of)(costs)
    found = ot.sinkhorn(x, y, epsilon=ot.Relative(0.1, of=of)).problem.epsilon
    np.testing.assert_allclose(found, expected, rtol=2e-3)
    far = ot.sinkhorn(x + np.float32(100), y, epsilon=ot.Relative(0.1, of=of))
    np.testing.assert_allclose(far.problem.epsilon, expected, rtol=2e-3)
    junk = np.concatenate([x, np.full((3, 2), np.nan, np.float32)])
    weights = np.where(np.arange(33) < 30, 1 / 30, 0).astype(np.float32)
    padded = ot.sinkhorn(junk, y, weights, epsilon=ot.Relative(0.1, of=of))
    np.testing.assert_allclose(padded.problem.epsilon, expected, rtol=2e-3)


def test_a_relative_epsilon_of_points_that_coincide_has_no_value():
    result = ot.sinkhorn(jnp.zeros((3, 2)), jnp.zeros((4, 2)), epsilon=ot.Relative(0.1))
    assert result.status == Status.INVALID_INPUT
    with pytest.raises(ValueError, match="of must be one of std, median, mean"):
        ot.Relative(of="max")
    with pytest.raises(ValueError, match="share must be a positive number"):
        ot.Relative(-1.0)


def test_annealing_starts_at_the_largest_cost():
    """Twelve random problems with ε at 1e-4 of the largest cost, most of which fail when cold."""
    cold, annealed = 0, 0
    solve = jax.jit(
        lambda x, y, e: [
            ot.sinkhorn(
                x, y, epsilon=e, solver=ot.Sinkhorn(1e-2, annealing, max_iterations=1000)
            ).converged
            for annealing in (None, ot.Annealing())
        ]
    )
    for seed in range(6):
        x, y = np.random.default_rng(seed).uniform(size=(2, 40, 2)).astype(np.float32)
        one, two = solve(x, y, 2e-4)
        cold, annealed = cold + int(one), annealed + int(two)
    assert annealed > cold
    assert annealed >= 5


def test_results_print_in_a_line_and_check_themselves():
    result = ot.sinkhorn(X, Y, epsilon=0.5)
    assert repr(result).count("\n") == 0
    assert "CONVERGED" in repr(result)
    assert result.check() is result
    with pytest.raises(RuntimeError, match="the run ended before it met its tolerance"):
        ot.sinkhorn(X, Y, epsilon=0.01, solver=ot.Sinkhorn(max_iterations=1)).check()


def test_over_relaxation_and_tolerance_have_no_gradient():
    value = lambda omega, tolerance: (
        ot.sinkhorn(
            X, Y, epsilon=0.5, solver=ot.Sinkhorn(over_relaxation=omega, tolerance=tolerance)
        ).value
    )
    assert jax.grad(value, (0, 1))(1.2, 1e-3) == (0, 0)
    bad = jax.jit(
        lambda omega: ot.sinkhorn(X, Y, epsilon=0.5, solver=ot.Sinkhorn(over_relaxation=omega))
    )(2.5)
    assert bad.status == Status.INVALID_INPUT


def test_strict_promotion_is_respected():
    with jax.numpy_dtype_promotion("strict"):
        x, y = jnp.asarray(X), jnp.asarray(Y)
        for settings in (
            {},
            {"solver": ot.Sinkhorn(annealing=ot.Annealing())},
            {"marginal_penalty": 1.0},
        ):
            assert ot.sinkhorn(x, y, epsilon=0.5, **settings).converged
        divergence = lambda x: ot.sinkhorn_divergence(x, y, epsilon=0.5).value
        assert jnp.isfinite(jax.grad(divergence)(x)).all()


def test_the_plan_of_little_mass():
    mass = 1e-25
    weights = np.full(30, mass / 30)
    plan = ot.sinkhorn(X, X + 1, weights, weights, epsilon=1.0).plan()
    np.testing.assert_allclose(np.sum(plan) / mass, 1, rtol=1e-3)


@pytest.mark.parametrize("padding", ["between", "before", "after"])
def test_padding_of_many_rows_does_not_change_the_median_cost(padding):
    """More rows than the rule reads, most of them without weight."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 256, 2))
    x, y = x - x.mean(0), y - y.mean(0)  # the means are equal: nothing is centred away
    costs = cdist(x, y, "sqeuclidean")
    most = np.zeros((768, 2))
    if padding == "between":
        rows, weights = np.zeros((1024, 2)), np.zeros(1024)
        rows[3::4], weights[3::4] = x, 1 / 256
    else:
        order = slice(None, None, 1 if padding == "after" else -1)
        rows = np.concatenate([x, most][order])
        weights = np.concatenate([np.full(256, 1 / 256), np.zeros(768)][order])
    result = ot.sinkhorn(rows, y, weights, epsilon=ot.Relative(20.0, of="median"))
    np.testing.assert_allclose(result.problem.epsilon, 20 * np.median(costs), rtol=1e-3)
    swapped = ot.sinkhorn(y, rows, None, weights, epsilon=ot.Relative(20.0, of="median"))
    np.testing.assert_allclose(swapped.problem.epsilon, 20 * np.median(costs), rtol=1e-3)


def test_padding_does_not_hide_costs_that_are_unresolved():
    """Checks of a few rows are of rows with weight."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(50, 2)), rng.normal(size=(60, 2)) + 1
    rows, weights = np.zeros((6400, 2)), np.zeros(6400)
    rows[1::128], weights[1::128] = x, 1 / 50
    for epsilon in (1e-6, 1.0, 1e14):
        padded = ot.sinkhorn(rows, y, weights, epsilon=epsilon)
        assert padded.status == ot.sinkhorn(x, y, epsilon=epsilon).status
