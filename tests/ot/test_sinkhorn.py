"""The solver against ott-jax, POT and theorems; what it refuses; blocked against dense."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import ot as pot
import pytest
from ott.geometry import geometry
from ott.problems.linear import linear_problem
from ott.solvers.linear import sinkhorn as ott_sinkhorn
from scipy.spatial.distance import cdist

from divjax import ot
from divjax.core.types import Status


def problem(n=30, m=20, d=2, seed=0):
    """Points, and weights of which one of x's is zero."""
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, d)), 0.5 + 1.2 * rng.normal(size=(m, d))
    a, b = rng.uniform(0.5, 1.5, n), rng.uniform(0.5, 1.5, m)
    a[3] = 0
    return x, y, a / a.sum(), b / b.sum()


def arrays(values, dtype=jnp.float32):
    return tuple(jnp.asarray(value, dtype) for value in values)


@functools.cache
def compiled(marginal_penalty=None, **options):
    solver = ot.Sinkhorn(**options)
    return jax.jit(
        lambda x, y, a, b, e: ot.sinkhorn(
            x, y, a, b, epsilon=e, marginal_penalty=marginal_penalty, solver=solver
        )
    )


def ott_value(costs, a, b, epsilon):
    geom = geometry.Geometry(jnp.asarray(costs), epsilon=epsilon)
    solver = ott_sinkhorn.Sinkhorn(threshold=1e-9, max_iterations=20_000)
    result = solver(linear_problem.LinearProblem(geom, a, b))
    assert result.converged
    return result.reg_ot_cost


@pytest.mark.parametrize("share", [0.01, 0.1, 1.0, 10.0])
def test_values_match_ott(share):
    x, y, a, b = problem()
    costs = cdist(x, y, "sqeuclidean")
    with jax.enable_x64(True):
        # ott's zero weights are theirs to solve: without that point it is the same problem.
        keep = a > 0
        epsilon = share * costs.mean()
        expected = ott_value(costs[keep], jnp.asarray(a[keep]), jnp.asarray(b), epsilon)
    result = compiled(tolerance=1e-5, max_iterations=5000)(*arrays((x, y, a, b)), epsilon)
    assert result.converged
    np.testing.assert_allclose(result.value, expected, rtol=1e-5)


@pytest.mark.parametrize("penalty", [0.5, (2.0, None), (None, 0.1)])
def test_unbalanced_plans_match_pot_without_duality_gap(penalty):
    x, y, a, b = problem()
    a, b = a + 0.01, 1.3 * b
    epsilon, costs = 0.3, cdist(x, y, "sqeuclidean")
    rho = penalty if isinstance(penalty, tuple) else (penalty,) * 2
    with jax.enable_x64(True):
        settings = dict(tolerance=1e-11, max_iterations=5000, marginal_penalty=penalty)
        result = compiled(**settings)(*arrays((x, y, a, b), jnp.float64), epsilon)
        assert result.converged
        plan = np.asarray(result.plan())
    reg_m = tuple(np.inf if weight is None else weight for weight in rho)
    expected = pot.unbalanced.sinkhorn_unbalanced(
        a, b, costs, epsilon, reg_m, reg_type="kl", numItermax=20_000, stopThr=1e-14
    )
    np.testing.assert_allclose(plan, expected, rtol=1e-6, atol=1e-12)
    kl = lambda p, q: np.sum(p * np.log(p / q) - p + q)
    primal = np.sum(plan * costs) + epsilon * kl(plan, np.outer(a, b))
    for weight, marginal, target in zip(rho, (plan.sum(1), plan.sum(0)), (a, b), strict=True):
        primal += 0 if weight is None else weight * kl(marginal, target)
    np.testing.assert_allclose(result.value, primal, rtol=1e-8)


def test_the_exact_cost_is_reached_as_epsilon_falls():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(256, 2)), 0.5 + 1.2 * rng.normal(size=(256, 2))
    costs = cdist(x, y, "sqeuclidean")
    uniform = np.full(256, 1 / 256)
    exact = pot.emd2(uniform, uniform, costs)
    solve = compiled(tolerance=1e-3, max_iterations=5000, annealing=ot.Annealing())
    result = solve(*arrays((x, y, uniform, uniform)), 1e-3 * costs.mean())
    assert result.converged
    transport = float(jnp.sum(result.plan() * costs))
    np.testing.assert_allclose(transport, exact, rtol=1e-2)


@pytest.mark.parametrize("symmetric_cost", [ot.Euclidean(), ot.SphereGeodesic()])
def test_other_costs_and_given_matrices_agree(symmetric_cost):
    x, y, a, b = arrays(problem())
    matrix = ot.cost_matrix(symmetric_cost, x, y)
    by_matrix = ot.sinkhorn(None, None, a, b, epsilon=0.1, cost=matrix)
    by_points = ot.sinkhorn(x, y, a, b, epsilon=0.1, cost=symmetric_cost)
    np.testing.assert_allclose(by_matrix.value, by_points.value, rtol=1e-5)


def test_the_plan_has_the_marginals_the_error_says():
    x, y, a, b = problem()
    result = compiled(tolerance=1e-3, max_iterations=5000)(*arrays((x, y, a, b)), 0.1)
    plan = np.asarray(result.plan())
    rows, columns = result.marginals()
    np.testing.assert_allclose(rows, plan.sum(1), rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(columns, plan.sum(0), rtol=1e-5)
    error = np.abs(plan.sum(1) - a).sum() + np.abs(plan.sum(0) - b).sum()
    np.testing.assert_allclose(result.error, error, rtol=1e-2)
    assert error <= 1e-3
    values = jnp.asarray(y, jnp.float32)
    np.testing.assert_allclose(result.apply(values), plan @ y, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(
        result.apply(result.f, transpose=True), plan.T @ np.asarray(result.f), rtol=1e-3, atol=1e-6
    )
    np.testing.assert_allclose(a @ result.f, b @ result.g, rtol=1e-5)


def test_the_map_is_the_barycentric_projection():
    x, y, a, b = problem()
    result = compiled(tolerance=1e-6, max_iterations=5000)(*arrays((x, y, a, b)), 1.0)
    plan = np.asarray(result.plan())
    used = a > 0
    expected = (plan @ y)[used] / plan.sum(1)[used, None]
    np.testing.assert_allclose(
        result.transport(jnp.asarray(x, jnp.float32))[used], expected, rtol=1e-3, atol=1e-4
    )


def test_a_map_of_another_cost_moves_a_shifted_sample_by_the_shift():
    x = np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32)
    shift = jnp.array([1.0, -2.0])
    result = ot.sinkhorn(
        x,
        x + shift,
        epsilon=0.01,
        cost=ot.EuclideanPower(1.5),
        solver=ot.Sinkhorn(annealing=ot.Annealing(100.0)),
    )
    assert result.converged
    np.testing.assert_allclose(result.transport(jnp.asarray(x)), x + shift, atol=0.15)
    assert float(jnp.mean(jnp.abs(result.transport(jnp.asarray(x)) - x - shift))) < 0.03


@pytest.mark.parametrize("block_size", [7, 100])
@pytest.mark.parametrize("penalty", [None, 1.0])
def test_blocks_change_nothing(block_size, penalty):
    with jax.enable_x64(True):
        args = arrays(problem(), jnp.float64)
        settings = dict(epsilon=0.2, marginal_penalty=penalty)
        solvers = [
            ot.Sinkhorn(tolerance=1e-9, max_iterations=5000, block_size=size)
            for size in (None, block_size)
        ]
        functions = [
            lambda x, y, a, b, solver=solver: (
                ot.sinkhorn(x, y, a, b, solver=solver, **settings).value
            )
            for solver in solvers
        ]
        dense, blocked = (
            jax.jit(jax.value_and_grad(f, argnums=(0, 1, 2, 3)))(*args) for f in functions
        )
        jax.tree.map(lambda i, j: np.testing.assert_allclose(i, j, atol=1e-7), dense, blocked)


def test_blocks_do_not_hold_the_matrix():
    n = 16_384
    function = lambda x, y: (
        ot.sinkhorn(x, y, epsilon=1.0, solver=ot.Sinkhorn(max_iterations=5)).value
    )
    shape = jax.ShapeDtypeStruct((n, 2), jnp.float32)
    compiled = jax.jit(jax.value_and_grad(function, (0, 1))).lower(shape, shape).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < n * n * 4 / 20


def test_a_sweep_over_epsilon_is_a_loop():
    x, y, a, b = arrays(problem())
    epsilons = jnp.logspace(-1.5, 1, 6)
    value = lambda e: (
        ot.sinkhorn(
            x, y, a, b, epsilon=e, solver=ot.Sinkhorn(tolerance=1e-5, max_iterations=5000)
        ).value
    )
    swept = jax.jit(jax.vmap(value))(epsilons)
    solve = compiled(tolerance=1e-5, max_iterations=5000)
    expected = [solve(x, y, a, b, e).value for e in epsilons]
    np.testing.assert_allclose(swept, expected, rtol=1e-5)


def test_a_warm_start_is_there_at_once():
    x, y, a, b = arrays(problem())
    solve = jax.jit(
        lambda init: ot.sinkhorn(
            x, y, a, b, epsilon=0.2, init=init, solver=ot.Sinkhorn(tolerance=1e-4)
        )
    )
    cold = solve((jnp.zeros(30), jnp.zeros(20)))
    warm = solve((cold.f, cold.g))
    assert warm.converged
    assert warm.num_iterations <= 2 < cold.num_iterations


def test_a_shift_of_all_points_changes_nothing():
    args = arrays(problem())
    solve = compiled(tolerance=1e-5, max_iterations=5000)
    here, there = solve(*args, 0.3), solve(args[0] + 1000, args[1] + 1000, *args[2:], 0.3)
    np.testing.assert_allclose(here.value, there.value, rtol=1e-4)


def test_a_single_point_has_one_plan():
    result = ot.sinkhorn(jnp.zeros((1, 2)), jnp.array([[3.0, 4.0]]), epsilon=0.1)
    assert result.converged
    np.testing.assert_allclose(result.value, 25, rtol=1e-6)


def test_a_fixed_count_is_kept():
    args = arrays(problem())
    result = compiled(tolerance=None, max_iterations=37)(*args, 0.3)
    assert result.num_iterations == 37


def test_what_is_not_a_number_is_never_converged():
    x, y, a, b = arrays(problem())
    for settings in (
        {"tolerance": 1e-3, "max_iterations": 30},
        {"tolerance": None, "max_iterations": 30},
    ):
        assert not compiled(**settings)(x.at[0].set(jnp.nan), y, a, b, 0.3).converged
    solve = compiled(tolerance=1e-3, max_iterations=30)
    assert not solve(x, y, a, b, jnp.nan).converged
    assert not solve(x, y, 2 * a, b, 0.3).converged  # traced weights of unequal sums


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(epsilon=0.0), "epsilon must be positive; got 0.0"),
        (dict(epsilon=jnp.float32(-1)), "epsilon must be positive"),
        (dict(epsilon=jnp.ones(2)), "epsilon must be a positive number"),
        (dict(a=-jnp.ones(3)), "a must be finite and non-negative"),
        (dict(a=jnp.zeros(3)), "not all zero"),
        (dict(a=jnp.ones(4)), r"a must have shape \(3,\); got shape \(4,\)"),
        (dict(a=jnp.ones(3), b=jnp.ones(2)), "same sum; got 3.0 and 2.0"),
        (dict(x=jnp.zeros((0, 2))), "x must be a non-empty matrix"),
        (dict(y=jnp.zeros((2, 3))), "same number of features; got 2 and 3"),
        (dict(cost=jnp.zeros((3, 2))), "x and y must be None"),
        (dict(x=None, y=None, cost=jnp.zeros(3)), "cost must be a non-empty matrix"),
        (dict(x=None, y=None, cost=jnp.zeros((4, 2)), a=jnp.ones(3)), r"shape \(4,\)"),
        (dict(cost=ot.SqEuclidean), "got the class SqEuclidean itself"),
        (dict(solver=3), "solver must be an `ot.Sinkhorn`"),
        (dict(marginal_penalty=-1.0), "marginal_penalty must be positive"),
        (dict(init=(jnp.zeros(2), jnp.zeros(2))), r"init\[0\] must have shape \(3,\)"),
    ],
)
def test_bad_input_raises(change, message):
    settings = dict(x=jnp.ones((3, 2)), y=jnp.ones((2, 2)), epsilon=1.0) | change
    with pytest.raises(ValueError, match=message):
        ot.sinkhorn(**settings)


def test_a_schedule_falls():
    with pytest.raises(ValueError, match="decay must be a number in"):
        ot.Annealing(decay=1.0)


def test_a_map_takes_a_cost_whose_conjugate_is_known():
    x = jnp.ones((2, 2))
    with pytest.raises(ValueError, match=r"with a known ∇h\* .*; got Cosine"):
        ot.sinkhorn(x, x, epsilon=1.0, cost=ot.Cosine()).transport(x)


def test_a_traced_epsilon_that_is_not_positive_has_no_value():
    x, y = jax.random.normal(jax.random.key(0), (2, 6, 2))
    found = jax.jit(lambda epsilon: ot.sinkhorn(x, y, epsilon=epsilon))(-1.0)
    assert jnp.isnan(found.value)
    assert found.status == Status.INVALID_INPUT
    for number in (found.plan(), found.f, found.transport(x), found.transport_cost):
        assert jnp.isnan(number).all()


def test_traced_annealing_that_is_none_has_no_value():
    x, y = jax.random.normal(jax.random.key(0), (2, 6, 2))
    solve = jax.jit(
        lambda start, decay: ot.sinkhorn(
            x, y, epsilon=0.1, solver=ot.Sinkhorn(annealing=ot.Annealing(start, decay))
        )
    )
    assert jnp.isfinite(solve(10.0, 0.5).value)
    for start, decay in ((-1.0, 0.5), (jnp.nan, 0.5), (10.0, -0.5), (10.0, 1.0), (10.0, jnp.nan)):
        found = solve(start, decay)
        assert jnp.isnan(found.value)
        assert found.status == Status.INVALID_INPUT


def test_a_cost_is_what_it_computes():
    """Not who it is: of one function that refers to a name, the name's value at each call."""
    x, y = jax.random.normal(jax.random.key(0), (2, 5, 2))
    factor = 1.0
    cost = lambda x, y: factor * jnp.sum((x - y) ** 2)
    one = ot.sinkhorn(x, y, epsilon=1.0, cost=cost).transport_cost
    factor = 3.0
    three = ot.sinkhorn(x, y, epsilon=3.0, cost=cost).transport_cost
    np.testing.assert_allclose(three, 3 * one, rtol=1e-3)


def test_a_cost_that_closes_over_a_parameter_is_differentiable_in_it():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(6, 2)), rng.normal(size=(5, 2)) + 1

    def solve(power, **options):
        cost = lambda u, v: jnp.sum(jnp.abs(u - v) ** power)
        return ot.sinkhorn(x, y, epsilon=0.3, cost=cost, solver=ot.Sinkhorn(**options))

    with jax.enable_x64(True):
        tight = lambda power: solve(power, tolerance=1e-12, max_iterations=5000).value
        slope = (tight(1.5 + 1e-5) - tight(1.5 - 1e-5)) / 2e-5
        np.testing.assert_allclose(jax.jit(jax.grad(tight))(1.5), slope, rtol=1e-6)
        np.testing.assert_allclose(jax.jvp(tight, (1.5,), (1.0,))[1], slope, rtol=1e-6)
        by_blocks = jax.grad(lambda p: solve(p, block_size=2, tolerance=1e-12).value)(1.5)
        np.testing.assert_allclose(by_blocks, slope, rtol=1e-6)
        assert jnp.isfinite(jax.grad(lambda p: jnp.sum(solve(p).plan() ** 2))(1.5))


class Scaled:
    """No pytree: its method closes over what it holds."""

    def __init__(self, weights):
        self.weights = weights

    def cost(self, x, y):
        return jnp.sum(self.weights * (x - y) ** 2)


def test_a_method_of_a_plain_object_is_differentiable_in_what_it_holds():
    """By POT's plan: the value's derivative in w_k is Σ P_ij (x_ik − y_jk)²."""
    x, weights = np.arange(12.0).reshape(6, 2) / 10, np.array([1.0, 2.0])
    y, uniform = x[::-1] ** 2, np.full(6, 1 / 6)
    squares = (x[:, None] - y) ** 2
    plan = pot.sinkhorn(uniform, uniform, squares @ weights, 0.3, stopThr=1e-12)
    with jax.enable_x64(True):
        value = lambda w: (
            ot.sinkhorn(
                jnp.asarray(x),
                jnp.asarray(y),
                epsilon=0.3,
                cost=Scaled(w).cost,
                solver=ot.Sinkhorn(tolerance=1e-10),
            ).value
        )
        found = jax.grad(value)(jnp.asarray(weights))
    np.testing.assert_allclose(found, np.einsum("ij,ijk->k", plan, squares), rtol=1e-6)


def test_traced_orders_and_penalties_out_of_range_have_no_value():
    x = jnp.arange(12.0).reshape(6, 2)
    solve = lambda **options: ot.sinkhorn(x, x + 1, epsilon=1.0, **options)
    for cost, p in ((ot.PNorm, 0.5), (ot.PNormPower, 1.0), (ot.EuclideanPower, 0.5)):
        assert not jax.jit(lambda p, cost=cost: solve(cost=cost(p)).converged)(p)
        assert jax.jit(lambda p, cost=cost: solve(cost=cost(p)).converged)(1.5)
    penalized = jax.jit(lambda rho: solve(marginal_penalty=rho))
    assert jnp.isnan(penalized(-0.2).value)
    assert not penalized(-0.2).converged


def test_traced_weights_below_zero_have_no_value():
    x, weights = jnp.arange(12.0).reshape(6, 2), jnp.full(6, 1 / 6).at[0].set(-0.1)
    solve = jax.jit(lambda a, b: ot.sinkhorn(x, x + 1, a, b, epsilon=1.0))
    for a, b in ((weights, abs(weights)), (abs(weights), weights)):
        result = solve(a, b)
        assert jnp.isnan(result.value)
        assert not result.converged


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilon": None}, "epsilon must be a positive number"),
        ({"epsilon": 1j}, "epsilon must be a positive number"),
        ({"init": jnp.zeros(5)}, "init must be a pair of potentials"),
        ({"cost": lambda x, y: 3}, "cost must return a real floating-point number"),
        ({"cost": ot.SqEuclidean}, "cost must be an instance"),
    ],
)
def test_input_of_another_kind_raises(options, message):
    with pytest.raises(ValueError, match=message):
        ot.sinkhorn(jnp.zeros((5, 2)), jnp.ones((5, 2)), **({"epsilon": 1.0} | options))


def test_a_list_may_be_applied():
    assert ot.sinkhorn(jnp.zeros((3, 2)), jnp.ones((2, 2)), epsilon=1.0).apply([1.0, 2.0]).shape
