"""The solver's options: one object, accepted by all that solve a Sinkhorn problem."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ott.solvers.linear import sinkhorn as ott_sinkhorn

from divjax import flows, ot
from divjax.core.types import Status
from tests.contract.promises import COMPILED

KEY = jax.random.key(0)
X, Y = jax.random.normal(KEY, (2, 60, 2))
SMALL = {"start": "identity", "hidden": (2,), "num_steps": 1, "num_checks": 1}


def variation(solver):
    objective = flows.SinkhornDivergence(Y, epsilon=0.5, solver=solver)
    return objective(KEY, X, jnp.full(60, 1 / 60), objective.init(KEY, X))[0]


# All callables with a `solver`, and those of them whose results hold no errors.
CALLS = {
    "sinkhorn": lambda solver: ot.sinkhorn(X, Y, epsilon=0.5, solver=solver),
    "divergence": lambda solver: ot.sinkhorn_divergence(X, Y, epsilon=0.5, solver=solver),
    "gap": lambda solver: ot.monge_gap(X, Y, epsilon=0.5, solver=solver),
    "entropic": lambda solver: ot.EntropicMap(epsilons=(0.5,), solver=solver).fit(KEY, X, Y),
    "monge": lambda solver: ot.MongeMap(**SMALL, solver=solver).fit(KEY, X, Y),
    "flow": variation,
}
WITHOUT_ERRORS = ("gap", "monge", "flow")


def test_numbers_are_leaves():
    solver = ot.Sinkhorn(1e-2, ot.Annealing(5.0, 0.5), 1.5, max_iterations=7)
    assert jax.tree.leaves(solver) == [1e-2, 5.0, 0.5, 1.5]
    assert jax.tree.leaves(ot.Sinkhorn()) == [1e-3]
    doubled = jax.tree.map(lambda leaf: 2 * leaf, ot.Sinkhorn(max_iterations=7))
    assert doubled.tolerance == 2e-3
    assert doubled.max_iterations == 7


@pytest.mark.parametrize("name", ["tolerance", "over_relaxation"])
def test_vmap_over_a_number_is_a_loop(name):
    values = jnp.array([1e-1, 1e-3]) if name == "tolerance" else jnp.array([1.0, 1.4])
    solve = jax.jit(lambda v: ot.sinkhorn(X, Y, epsilon=0.1, solver=ot.Sinkhorn(**{name: v})))
    together = jax.vmap(solve)(values)
    apart = [solve(v) for v in values]
    np.testing.assert_allclose(together.value, [one.value for one in apart], rtol=1e-6)
    counts = [int(one.num_iterations) for one in apart]
    assert together.num_iterations.tolist() == counts
    assert counts[0] != counts[1]


def test_stacked_solvers_are_solvers():
    solvers = jax.tree.map(lambda *v: jnp.stack(v), ot.Sinkhorn(1e-1), ot.Sinkhorn(1e-3))
    solve = lambda solver: ot.sinkhorn(X, Y, epsilon=0.1, solver=solver).num_iterations
    found = jax.vmap(solve)(solvers)
    assert found[0] < found[1]
    with pytest.raises(ValueError, match="tolerance must be one real number"):
        solve(solvers)


def test_another_number_compiles_nothing():
    solve = lambda *options: ot.sinkhorn(X, Y, epsilon=0.3, solver=ot.Sinkhorn(*options)).value
    solve(1e-2, ot.Annealing(4.0, 0.5), 1.2)
    COMPILED.clear()
    one, two = solve(1e-4, ot.Annealing(5.0, 0.6), 1.3), solve(1e-4, ot.Annealing(5.0, 0.6), 1.3)
    assert not COMPILED
    assert one == two


@pytest.mark.parametrize(
    "call",
    [pytest.param(c, marks=[pytest.mark.exhaustive] * (c in ("flow", "monge"))) for c in CALLS],
)
def test_one_solver_serves_all(call):
    """A solver that stops after one iteration is noticed, one with every option accepted."""
    every = ot.Sinkhorn(1e-2, ot.Annealing(), 1.2, max_iterations=500, block_size=6)
    found = CALLS[call](every), CALLS[call](ot.Sinkhorn(1e-12, max_iterations=1))
    if call == "flow":
        assert jnp.isfinite(found[0].value)
        assert jnp.isnan(found[1].value)
    else:
        assert found[0].converged
        assert found[1].status == Status.MAX_ITERATIONS


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("solver", "got"),
    [
        (ot.Sinkhorn, "the class Sinkhorn itself"),
        ({"tolerance": 1e-3}, "got dict"),
        (None, "got NoneType"),
        (ott_sinkhorn.Sinkhorn(), "got ott's Sinkhorn"),
    ],
)
def test_other_objects_are_refused(call, solver, got):
    with pytest.raises(ValueError, match=r"solver must be an `ot.Sinkhorn`, such as .*" + got):
        CALLS[call](solver)


@pytest.mark.parametrize("call", CALLS)
def test_errors_are_recorded_or_refused(call):
    solver = ot.Sinkhorn(record_errors=True, max_iterations=50)
    if call in WITHOUT_ERRORS:
        with pytest.raises(ValueError, match="solver must have record_errors=False"):
            CALLS[call](solver)
        return
    found = CALLS[call](solver)
    results = {"divergence": "xx", "entropic": "results"}
    result = getattr(found, results[call]) if call in results else found
    assert jnp.isfinite(result.errors).sum() == result.num_iterations.sum()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(max_iterations=0), "max_iterations must be an integer of at least 1"),
        (dict(max_iterations=1.5), "max_iterations must be an integer of at least 1"),
        (dict(tolerance=0.0), "tolerance must be a positive number"),
        (dict(over_relaxation=2.0), r"over_relaxation must be a number in \(0, 2\)"),
        (dict(over_relaxation=0.0), "over_relaxation must be a positive number"),
        (dict(block_size=0), "block_size must be an integer of at least 1"),
        (dict(annealing=3), "annealing must be an `Annealing`"),
        (dict(record_errors=1), "record_errors must be True or False"),
    ],
)
def test_options_out_of_range_raise(options, message):
    with pytest.raises(ValueError, match=message):
        ot.Sinkhorn(**options)


@pytest.mark.parametrize(
    "option", [("tolerance", -1.0), ("tolerance", jnp.nan), ("over_relaxation", 2.0)]
)
@pytest.mark.parametrize(
    "call",
    [
        "sinkhorn",
        "divergence",
        "gap",
        "entropic",
        pytest.param("monge", marks=pytest.mark.exhaustive),
    ],
)
def test_traced_options_out_of_range_are_flagged(call, option):
    name, value = option
    found = jax.jit(lambda v: CALLS[call](ot.Sinkhorn(**{name: v}, max_iterations=5)))(value)
    assert found.status >= Status.NOT_FINITE
