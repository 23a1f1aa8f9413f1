"""Exact transport against POT and SciPy, by each of its solvers; gradients against differences."""

import jax
import jax.numpy as jnp
import numpy as np
import ot as pot
import pytest
import scipy.optimize
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from scipy.spatial.distance import cdist

from divjax import ot
from divjax.core.types import Status
from divjax.ot import linear_program as room

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(9, 3)), RNG.normal(size=(7, 3)) + 1
A, B = RNG.dirichlet(np.ones(9)), RNG.dirichlet(np.ones(7))
COSTS = cdist(X, Y, "sqeuclidean")

SOLVERS = {"network simplex": room._by_network_simplex, "HiGHS": room._by_highs}


def assert_optimal(costs, a, b, plan, f, g):
    """Feasible plan and potentials without a gap between them: linear programming's certificate."""
    assert plan.min() > -1e-12
    np.testing.assert_allclose(plan.sum(1), a, atol=1e-9)
    np.testing.assert_allclose(plan.sum(0), b, atol=1e-9)
    assert (f[:, None] + g - costs).max() < 1e-9
    np.testing.assert_allclose(f @ a + g @ b, np.sum(plan * costs), atol=1e-9)


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_is_optimal(name):
    program = SOLVERS[name](COSTS, A, B)
    assert program.status == Status.CONVERGED
    assert_optimal(COSTS, A, B, *program[:3])


@pytest.mark.parametrize("n", [1, 2, 30])
def test_equal_weights_are_an_assignment(n):
    costs = RNG.normal(size=(n, n)) ** 2
    program = room.solve_program(costs, np.full(n, 2 / n), np.full(n, 2 / n))
    assert_optimal(costs, np.full(n, 2 / n), np.full(n, 2 / n), *program[:3])
    assert (program.plan > 0).sum() == n


@pytest.mark.parametrize("cost", ["sqeuclidean", "euclidean"])
def test_values_match_pot(cost):
    ours = {"sqeuclidean": ot.SqEuclidean(), "euclidean": ot.Euclidean()}[cost]
    expected = pot.emd2(A, B, cdist(X, Y, cost))
    found = jax.jit(lambda x, y, a, b: ot.exact(x, y, a, b, cost=ours))(
        *(jnp.asarray(z, jnp.float32) for z in (X, Y, A, B))
    )
    assert found.converged
    np.testing.assert_allclose(found.value, expected, rtol=1e-5)
    np.testing.assert_allclose(A @ found.f + B @ found.g, expected, rtol=1e-5)
    np.testing.assert_allclose(A @ found.f, B @ found.g, rtol=1e-4)


def test_without_pot_it_is_highs(monkeypatch):
    monkeypatch.setattr(room.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(room, "_by_network_simplex", None)
    found = ot.exact(X, Y, A, B)
    np.testing.assert_allclose(found.value, pot.emd2(A, B, COSTS), rtol=1e-5)


def test_gradients_are_slopes():
    with jax.enable_x64(True):

        def value(x, y, logits, scale):
            a = jax.nn.softmax(logits)
            return ot.exact(
                x, y, a, jnp.asarray(B), cost=lambda u, v: scale * jnp.sum((u - v) ** 2)
            ).value

        arguments = jnp.asarray(X), jnp.asarray(Y), jnp.log(jnp.asarray(A)), jnp.asarray(1.3)
        function = jax.jit(jax.value_and_grad(value, (0, 1, 2, 3)))
        _, gradient = function(*arguments)
        for k, argument in enumerate(arguments):
            direction = RNG.normal(size=argument.shape)

            def at(step, k=k, direction=direction):
                moved = list(arguments)
                moved[k] = moved[k] + step * direction
                return function(*moved)[0]

            np.testing.assert_allclose(
                np.vdot(gradient[k], direction), (at(1e-6) - at(-1e-6)) / 2e-6, rtol=1e-6
            )
        tangent = jax.jvp(lambda x: value(x, *arguments[1:]), arguments[:1], (jnp.ones_like(X),))[1]
        np.testing.assert_allclose(tangent, jnp.sum(gradient[0]), rtol=1e-8)


def test_vmap_is_a_loop():
    x = RNG.normal(size=(3, 6, 2)).astype(np.float32)
    swept = jax.jit(jax.vmap(lambda x: ot.exact(x, x[::-1] * 2 + 1).value))(x)
    np.testing.assert_allclose(swept, [ot.exact(z, z[::-1] * 2 + 1).value for z in x], rtol=1e-6)


def test_far_and_weightless_rows_change_nothing():
    x, a = np.concatenate([X, np.full((2, 3), np.nan)]), np.concatenate([A, np.zeros(2)])
    found = ot.exact(x, Y, a, B)
    np.testing.assert_allclose(found.value, pot.emd2(A, B, COSTS), rtol=1e-5)
    assert jnp.isfinite(found.f).all()
    far = ot.exact(X + 123456789.0, Y, A, B)
    np.testing.assert_allclose(far.plan, found.plan[:9], atol=1e-6)


def test_forbidden_pairs():
    costs = COSTS.astype(np.float32)
    costs[:3, :3] = np.inf
    found = ot.exact(None, None, A, B, cost=jnp.asarray(costs))
    expected = pot.emd2(A, B, np.where(np.isinf(costs), 1e4, costs))
    np.testing.assert_allclose(found.value, expected, rtol=1e-5)
    costs[4] = np.inf
    none = ot.exact(None, None, A, B, cost=jnp.asarray(costs))
    assert jnp.isposinf(none.value)
    assert none.status == Status.NOT_FINITE


def test_invalid_input_is_flagged_or_refused():
    assert ot.exact(np.where(X > 1, np.nan, X), Y).status == Status.NOT_FINITE
    solve = jax.jit(lambda a: ot.exact(X, Y, a, jnp.asarray(B)))
    for weights in (2 * A, A - 0.2):
        found = solve(weights.astype(np.float32))
        assert found.status == Status.INVALID_INPUT
        assert jnp.isnan(found.value)
    with pytest.raises(ValueError, match="same sum"):
        ot.exact(X, Y, 2 * A, B)
    with pytest.raises(ValueError, match="same number of features"):
        ot.exact(X, Y[:, :2])
    with pytest.raises(RuntimeError, match="NaN or infinite"):
        ot.exact(X * np.nan, Y).check()


def test_assignments_match_scipys_cost():
    x, y = RNG.normal(size=(2, 50, 4)).astype(np.float32)
    costs = cdist(x, y, "sqeuclidean")
    rows, columns = scipy.optimize.linear_sum_assignment(costs)
    np.testing.assert_allclose(ot.exact(x, y).value, costs[rows, columns].mean(), rtol=1e-5)


def monotone_coupling_cost(x, y, a, b):
    """The squared cost between quantile functions, with weights that are multiples of 1/1024."""
    quantiles = [
        np.repeat(z[order], np.round(1024 * w[order]).astype(int))
        for z, w in ((x, a), (y, b))
        for order in [np.argsort(z)]
    ]
    return np.mean((quantiles[0] - quantiles[1]) ** 2)


@pytest.mark.parametrize("distance", [64, 4096, 2**20])
def test_costs_within_distant_clusters_are_not_below_the_solvers_tolerance(distance):
    """A forbidden pair that no optimal plan uses is a reason for SciPy's solver."""
    generator = np.random.default_rng(0)
    clusters = lambda: np.append(*(generator.integers(0, 64, (2, 8)) / 16 + [[0], [distance]]))
    masses = lambda: np.append(*(generator.multinomial(504, np.ones(8) / 8, 2) + 1)) / 1024
    x, y, a, b = clusters(), clusters(), masses(), masses()
    costs = (x[:, None] - y) ** 2
    costs[0, 8] = np.inf
    found = room.solve_program(costs, a, b)
    assert found.status == Status.CONVERGED
    expected = monotone_coupling_cost(x, y, a, b)
    np.testing.assert_allclose(np.sum(found.plan * np.where(found.plan > 0, costs, 0)), expected)
    np.testing.assert_allclose(a @ found.f + b @ found.g, expected, rtol=1e-6)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("forbidding", [1e9, 1e15, 1e20])
def test_a_large_cost_forbids_pairs_and_hides_no_others(name, forbidding, monkeypatch):
    """The optimum over the other pairs, as an infinite cost in SciPy's program has it."""
    if name == "HiGHS":
        monkeypatch.setattr(room.importlib.util, "find_spec", lambda name: None)
    generator = np.random.default_rng(0)
    n, m = 24, 16
    costs, rows = generator.random((n, m)), np.arange(n)
    large = generator.random((n, m)) < 0.7
    # One plan is allowed: row i to column i modulo m.
    large[rows, rows % m] = large[rows, (rows + 1) % m] = False
    a, b = np.full(n, 1 / n), np.bincount(rows % m) / n
    i, j = np.nonzero(~large)
    marginals = np.concatenate([i == rows[:, None], j == np.arange(m)[:, None]])
    expected = scipy.optimize.linprog(costs[i, j], A_eq=marginals, b_eq=np.append(a, b)).fun
    costs[large] = forbidding
    found = room.solve_program(costs, a, b)
    assert found.status == Status.CONVERGED
    np.testing.assert_allclose(np.sum(found.plan * costs), expected, rtol=1e-6)


def test_masses_equal_to_half_precision_are_equal():
    """Four roundings of float16, as `sinkhorn` allows: one rule for both."""
    x = jnp.array([[0.0], [1.0]], jnp.float16)
    a, b = jnp.array([0.5, 0.5], jnp.float16), jnp.array([0.5, 0.502], jnp.float16)
    assert 1e-3 < float(b.sum()) - 1 < 3e-3
    assert bool(ot.exact(x, x + 1, a, b).converged)


def test_only_the_value_has_derivatives():
    x = np.random.default_rng(0).normal(size=(4, 2))
    """Potentials at equal weights are not unique, and no derivative of one choice is right."""

    def numbers(x):
        found = ot.exact(x, x[::-1] * 2 + 1)
        return found.value, found.plan, found.f, found.g

    value, *others = jax.jacobian(numbers)(jnp.asarray(x))
    assert (value != 0).any()
    assert all((part == 0).all() for part in others)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_samples_on_several_devices(kind, compiled):
    """The host solves what eight devices hold, in a program too, with the mesh in use or not."""
    both = lambda x, y: (ot.exact(x, y).plan, jax.grad(lambda x: ot.exact(x, y).value)(x))
    x, y = jnp.asarray(X[:8]), jnp.asarray(X[:8] ** 2)
    plan, slope = both(x, y)
    mesh = jax.make_mesh((8,), ("rows",), axis_types=(kind,))
    by_rows = NamedSharding(mesh, PartitionSpec("rows"))
    divided = jax.device_put(x, by_rows), jax.device_put(y, by_rows)
    with jax.set_mesh(mesh):
        found = (jax.jit(both) if compiled else both)(*divided)
    np.testing.assert_allclose(found[0], plan, atol=1e-6)
    np.testing.assert_allclose(found[1], slope, atol=1e-5)
    if not compiled:
        np.testing.assert_allclose(ot.exact(*divided).plan, plan, atol=1e-6)
