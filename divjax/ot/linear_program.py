"""Exact optimal transport in any dimension, as a linear program solved by POT or SciPy.

The program is solved on the host, in double precision, through a callback. An assignment solves it
if both sides have equally many rows of equal weight. Otherwise POT's network simplex is used if POT
is installed, and SciPy's HiGHS if it is not, or if costs are infinite.
"""

import importlib
import importlib.util
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy  # its parts are loaded where they are used
from jaxtyping import Array, Float, Int

from divjax.core.numerics import nan_unless
from divjax.core.programs import is_traced
from divjax.core.pytrees import pytree
from divjax.core.samples import Numbers
from divjax.core.sharding import on_host, shared_by_all
from divjax.core.simplex import largest_mass_difference
from divjax.core.types import Outcome, Status
from divjax.ot.costs import SqEuclidean
from divjax.ot.entropic.derivatives import normalized_potentials
from divjax.ot.entropic.formulate import formulate
from divjax.ot.entropic.formulation import Formulation
from divjax.ot.entropic.problem import PointPairs, Problem
from divjax.ot.weighted_samples import squares_are_unresolved

__all__ = ["ExactResult", "exact"]

# Weights that differ by less, relative to their mean, are equal: the rounding of float32 sums.
_EQUAL = 1e-6
_MAX_PIVOTS = 10_000_000
# HiGHS's smallest tolerances, for masses and costs of size one.
_TOLERANCES = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}
# Its plan is refined until no plan is cheaper by more than the first share of the cost, and flagged
# if another may be cheaper by more than the second.
_REFINED_EXCESS, _LARGEST_EXCESS, _MAX_REFINEMENTS = 1e-9, 1e-6, 8
# Reduced costs are cut at this multiple of the excess: cheaper plans barely use such pairs.
_LARGEST = 1e7


@pytree
class ExactResult(Outcome):
    """The value of optimal transport, an optimal plan and optimal potentials.

    Only the value is differentiable. Plan and potentials need not be unique, and their derivatives
    are zero.

    Attributes:
        value: min_P ⟨P, C⟩, infinite if every plan uses a pair of infinite cost.
        plan: an optimal plan, possibly one of several.
        f: the potential of x, f_i + g_j ≤ C_ij with equality where P_ij > 0, and ⟨a, f⟩ = ⟨b, g⟩.
        g: the potential of y.
        status: how the linear program ended.
    """

    value: Float[Array, ""]
    plan: Float[Array, "n m"]
    f: Float[Array, " n"]
    g: Float[Array, " m"]
    status: Int[Array, ""]


def exact(
    x: Float[Numbers, "n d"] | None,
    y: Float[Numbers, "m d"] | None,
    a: Float[Numbers, " n"] | None = None,
    b: Float[Numbers, " m"] | None = None,
    *,
    cost: Callable[..., Array] | Float[Numbers, "n m"] = SqEuclidean(),
) -> ExactResult:
    """Optimal transport without regularisation, min_P ⟨P, C⟩ over P ≥ 0 with P1 = a and Pᵀ1 = b.

    It can be jitted, and under `vmap` solves problems sequentially. Gradients follow from the
    envelope theorem: Σ_ij P_ij ∂C_ij in points and the cost's parameters, f and g in the weights.
    They are exact if plan and potentials are unique, which is almost everywhere.

    Memory is O(n m). A hundred rows take milliseconds, a thousand less than a second with POT or
    equal weights, and a minute otherwise.

    Args:
        x: samples, or None with a cost matrix.
        y: samples, or None with a cost matrix.
        a: weights of x, non-negative; uniform by default, of b's total mass (1 without b). Rows of
            weight zero are padding.
        b: weights of y, of the same sum as a.
        cost: a cost of `divjax.ot`, any function of two points, or a matrix of costs; an infinite
            cost forbids a pair.

    Returns:
        An `ExactResult`, the value first.

    Raises:
        ValueError: as `sinkhorn` does.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> x = jnp.array([[0.0], [1.0], [5.0]])
        >>> result = exact(x, x[::-1] + 1)
        >>> float(result.value), bool(result.converged)
        (1.0, True)
        >>> jax.grad(lambda y: exact(x, y).value)(x + 1).ravel().round(3).tolist()  # 2/3 each
        [0.667, 0.667, 0.667]

    References:
        Peyré, Cuturi 2019, proposition 2.4: duality. Bonneel et al. 2011: the network simplex.
    """
    # ε is not used: the formulation centres points, and replaces rows without weight by copies.
    formulation = formulate(x, y, a, b, 1.0, cost, None, None)
    problem = formulation.problem
    costs = problem.pairs.block(problem.pairs.rows)

    # Gradients through the program are stopped; its value is differentiated at the optimum.
    arguments = jax.lax.stop_gradient((costs, problem.a, problem.b))
    plan, f, g, status = _solve(*arguments)
    f, g = jax.lax.stop_gradient(normalized_potentials(problem, f, g))
    f, g = _at_all_rows(formulation, problem, f, g)
    # Pairs without mass are excluded twice: an infinite cost times zero is NaN, and so would be its
    # derivative.
    paid = jnp.sum(jnp.where(plan > 0, plan * jnp.where(plan > 0, costs, 0), 0))
    price = lambda weights, potential: (
        jnp.where(jnp.isfinite(potential), potential, 0)
        @ (weights - jax.lax.stop_gradient(weights))
    )
    value = paid + price(formulation.a, f) + price(formulation.b, g) + formulation.shift_cost

    # An infeasible program has an infinite value, invalid input a NaN.
    invalid_costs = jnp.any(jnp.isnan(arguments[0]) | (arguments[0] == -jnp.inf))
    infeasible = (status == Status.NOT_FINITE) & ~invalid_costs
    value = jnp.where(infeasible, jnp.inf, value)
    solved = (status == Status.CONVERGED) | infeasible
    valid = formulation.valid
    value = nan_unless(valid & solved, value)
    # The program is solved exactly, except for the rounding of the costs.
    if isinstance(problem.pairs, PointPairs):
        lost = squares_are_unresolved(problem.pairs.x, problem.pairs.y)
        lost = jnp.where(lost, Status.FLOATING_POINT_RESOLUTION, Status.CONVERGED)
        status = jnp.maximum(status, lost)
    status = jnp.where(valid, status, Status.INVALID_INPUT)
    f, g = jax.lax.stop_gradient(formulation.restored(f, g))
    return ExactResult(value, plan, f, g, status)


def _at_all_rows(
    formulation: Formulation, problem: Problem, f: Array, g: Array
) -> tuple[Array, Array]:
    """Potentials extended by the c-transform to rows of weight zero."""

    def transform(problem: Problem, rows: Array, own: Array, other: Array) -> Array:
        # A column without weight constrains no potential.
        costs = jnp.where(problem.b > 0, problem.pairs.block(rows) - other, jnp.inf)
        return jnp.where(problem.a > 0, own, jnp.min(costs, axis=1))

    rows, columns = jax.lax.stop_gradient((formulation.rows, formulation.columns))
    problem = jax.lax.stop_gradient(problem)
    full_f, full_g = f, g
    # Only replaced rows lack a potential of their own.
    if formulation.may_replace_rows:
        full_f = transform(problem, rows, f, g)
    if formulation.transposed.may_replace_rows:
        full_g = transform(problem.transposed, columns, g, f)
    return full_f, full_g


def _solve(costs: Array, a: Array, b: Array) -> tuple[Array, Array, Array, Array]:
    """Plan, potentials and status."""
    if is_traced(costs, a, b):
        return _solve_by_callback(costs, a, b)
    # An eager call is on the host already, and may have arrays on several devices, of which no
    # callback gets more than those of its own.
    dtype = costs.dtype
    wide = (on_host(array).astype(np.float64) for array in (costs, a, b))
    *parts, status = solve_program(*wide, same_mass=largest_mass_difference(dtype))
    plan, f, g = (jnp.asarray(part, dtype) for part in parts)
    return plan, f, g, jnp.asarray(status, jnp.int32)


@jax.jit
def _solve_by_callback(costs: Array, a: Array, b: Array) -> tuple[Array, Array, Array, Array]:
    """`_solve` in a program: one device calls back, with all of the arrays."""
    (n, m), dtype = costs.shape, costs.dtype
    shapes = (n, m), (n,), (m,)
    # JAX rounds what enters and leaves a callback to the default float of the thread that runs it,
    # where `jax.enable_x64` need not hold. Doubles pass as pairs of integers.
    as_bits = dtype == jnp.float64
    stored = lambda shape: (
        jax.ShapeDtypeStruct((*shape, 2), jnp.uint32)
        if as_bits
        else jax.ShapeDtypeStruct(shape, dtype)
    )
    outputs = *map(stored, shapes), jax.ShapeDtypeStruct((), jnp.int32)
    arrays = costs, a, b
    if as_bits:
        arrays = tuple(jax.lax.bitcast_convert_type(array, jnp.uint32) for array in arrays)

    # In double precision on the host, whatever the arrays' dtype.
    def solve(*arrays: Array) -> tuple[np.ndarray, ...]:
        given = [np.ascontiguousarray(array) for array in arrays]
        if as_bits:
            given = [array.view(np.float64)[..., 0] for array in given]
        wide = (np.asarray(array, np.float64) for array in given)
        found = solve_program(*wide, same_mass=largest_mass_difference(dtype))
        parts = [np.ascontiguousarray(part, dtype) for part in found[:3]]
        if as_bits:
            parts = [part[..., None].view(np.uint32) for part in parts]
        return *parts, np.asarray(found.status, np.int32)

    *parts, status = jax.pure_callback(solve, outputs, *arrays, vmap_method="sequential")
    if as_bits:
        parts = [jax.lax.bitcast_convert_type(part, dtype) for part in parts]
    plan, f, g = parts
    # What one device has from a callback is given to all.
    return shared_by_all((plan, f, g, status))


class Program(NamedTuple):
    """A solved program: an optimal plan, optimal potentials, and a status."""

    plan: np.ndarray
    f: np.ndarray
    g: np.ndarray
    status: Status


def solve_program(
    costs: np.ndarray, a: np.ndarray, b: np.ndarray, same_mass: float = 1e-4
) -> Program:
    """An optimal plan and potentials in NumPy, for any units of costs and masses.

    No plan exists if the masses differ by more than the share `same_mass`.
    """
    mass_a, mass_b = a.sum(), b.sum()
    finite = np.isfinite(costs)
    # A cost of +∞ forbids a pair, while −∞ and NaN have no meaning.
    if not (np.isfinite(mass_a) and np.isfinite(mass_b)) or (costs[~finite] != np.inf).any():
        return _no_plan(costs, Status.NOT_FINITE)
    if min(a.min(), b.min()) < 0 or not mass_a > 0:
        return _no_plan(costs, Status.INVALID_INPUT)
    if not abs(mass_a - mass_b) <= same_mass * mass_a:
        return _no_plan(costs, Status.INVALID_INPUT)
    if not finite[a > 0].any():
        return _no_plan(costs, Status.NOT_FINITE)
    # Solvers have absolute tolerances: costs are scaled to size one, and so is the mass. The scale
    # ignores rows without mass and a few large costs, which forbid pairs.
    sizes = np.abs(costs[finite & (a[:, None] > 0) & (b > 0)])
    unit = np.median(sizes[sizes > 0]) if sizes.any() else 1.0
    found = _solve_scaled(costs / unit, a / mass_a, b / mass_b)
    return Program(found.plan * mass_a, found.f * unit, found.g * unit, found.status)


def _solve_scaled(costs: np.ndarray, a: np.ndarray, b: np.ndarray) -> Program:
    """Choose the solver for the program."""
    if not np.isfinite(costs).all():
        return _by_highs(costs, a, b)
    equal = len(a) == len(b) and max(np.ptp(a), np.ptp(b)) <= _EQUAL / len(a)
    if equal:
        return _by_assignment(costs, 1.0)
    if importlib.util.find_spec("ot"):
        return _by_network_simplex(costs, a, b)
    return _by_highs(costs, a, b)


def _no_plan(costs: np.ndarray, status: Status) -> Program:
    n, m = costs.shape
    return Program(np.full((n, m), np.nan), np.full(n, np.nan), np.full(m, np.nan), status)


def _by_assignment(costs: np.ndarray, mass: float) -> Program:
    """Equal weights: a permutation, and potentials as lengths of shortest paths.

    f_i − f_k ≤ C_{i σ(k)} − C_{k σ(k)} states that g_{σ(k)} = C_{k σ(k)} − f_k is feasible. It has
    a solution because no cycle of exchanges lowers the cost of an optimal assignment.
    """
    n = len(costs)
    _, partner = scipy.optimize.linear_sum_assignment(costs)
    rows = np.arange(n)
    matched = costs[rows, partner]
    # The edge from k to i has the length C_{i σ(k)} − C_{k σ(k)}, and f is the length of the
    # shortest path to a row. Without negative cycles n rounds suffice for n rows.
    lengths = costs[:, partner] - matched
    f = np.zeros(n)
    for _ in range(n):  # Bellman, Ford
        shorter = np.minimum(f, (lengths + f).min(axis=1))
        if (shorter == f).all():
            break
        f = shorter
    g = np.empty(n)
    # Equality on pairs with mass.
    g[partner] = matched - f
    plan = np.zeros((n, n))
    plan[rows, partner] = mass / n
    return Program(plan, f, g, Status.CONVERGED)


def _by_network_simplex(costs: np.ndarray, a: np.ndarray, b: np.ndarray) -> Program:
    """POT's solver, repeated if the largest costs' rounding hides a cheaper plan."""
    found = _network_simplex(costs, a, b)
    if found.status != Status.CONVERGED or _excess(costs, a, b, found)[0] <= _LARGEST_EXCESS:
        return found
    return _refined(_network_simplex, costs, a, b)


def _network_simplex(costs: np.ndarray, a: np.ndarray, b: np.ndarray) -> Program:
    """One call of POT's solver."""
    pot = importlib.import_module("ot")
    plan, log = pot.lp.emd(a, b, costs, numItermax=_MAX_PIVOTS, log=True, check_marginals=False)
    solved = log["result_code"] == 1
    return Program(plan, log["u"], log["v"], Status.CONVERGED if solved else Status.MAX_ITERATIONS)


def _by_highs(costs: np.ndarray, a: np.ndarray, b: np.ndarray) -> Program:
    """SciPy's HiGHS, whose tolerances are absolute."""
    return _refined(_highs, costs, a, b)


def _refined(
    solve: Callable[[np.ndarray, np.ndarray, np.ndarray], Program],
    costs: np.ndarray,
    a: np.ndarray,
    b: np.ndarray,
) -> Program:
    """A solver's program, repeated on the reduced costs until its absolute error is small enough.

    If no reduced cost C − f − g is negative, no plan is cheaper. Solvers tolerate small negative
    ones, which may be large relative to the smallest costs that matter, such as those within
    distant clusters, or beside costs that are to forbid pairs. The program with reduced costs has
    the same plans. In units of what was tolerated it is solved again, and its potentials are added
    as corrections.
    """
    potentials, unit, excess = np.zeros(sum(costs.shape)), 1.0, np.inf
    for _ in range(_MAX_REFINEMENTS):
        reduced = _reduced(costs, potentials) / unit
        found = solve(np.where(np.isfinite(costs), np.minimum(reduced, _LARGEST), costs), a, b)
        if found.status != Status.CONVERGED:
            break
        potentials = potentials + unit * np.append(found.f, found.g)
        found = found._replace(f=potentials[: len(a)], g=potentials[len(a) :])
        share, unit = _excess(costs, a, b, found)
        # A repetition may also be worse: the best program so far is kept.
        if share < excess or np.isinf(excess):
            excess, best = share, found
        if excess <= _REFINED_EXCESS or unit == 0:
            return best
    if np.isinf(excess):
        return found
    status = Status.CONVERGED if excess <= _LARGEST_EXCESS else Status.FLOATING_POINT_RESOLUTION
    return best._replace(status=status)


def _excess(costs: np.ndarray, a: np.ndarray, b: np.ndarray, found: Program) -> tuple[float, float]:
    """By how much another plan may be cheaper at most, as a share of the cost and by itself.

    No plan is cheaper by more than the reduced costs that are paid, and the most negative one times
    the mass. Potentials of rows without mass do not count.
    """
    reduced, paid = _reduced(costs, np.append(found.f, found.g)), found.plan > 0
    least = reduced[a > 0][:, b > 0].min()
    excess = found.plan[paid] @ reduced[paid] + max(-least, 0)
    size = found.plan[paid] @ np.abs(costs[paid])
    return float(excess / size if size > 0 else excess), float(excess)


def _reduced(costs: np.ndarray, potentials: np.ndarray) -> np.ndarray:
    """C − f − g."""
    return costs - potentials[: len(costs), None] - potentials[len(costs) :]


def _highs(costs: np.ndarray, a: np.ndarray, b: np.ndarray) -> Program:
    """One call of the solver, with the pairs of finite cost as variables."""
    n, m = costs.shape
    # Pairs of infinite cost have no variable. Every other pair is in one row constraint and one
    # column constraint.
    rows, columns = np.nonzero(np.isfinite(costs))
    pairs, ones = np.arange(len(rows)), np.ones(len(rows))
    marginals = scipy.sparse.vstack(
        [
            scipy.sparse.csr_array((ones, (rows, pairs)), shape=(n, len(rows))),
            scipy.sparse.csr_array((ones, (columns, pairs)), shape=(m, len(rows))),
        ]
    )
    found = scipy.optimize.linprog(
        costs[rows, columns],
        A_eq=marginals,
        b_eq=np.concatenate([a, b]),
        method="highs-ds",
        options=_TOLERANCES,
    )
    if found.status == 2:  # infeasible
        return _no_plan(costs, Status.NOT_FINITE)
    if found.status != 0:
        return _no_plan(costs, Status.MAX_ITERATIONS)
    plan = np.zeros((n, m))
    plan[rows, columns] = found.x
    # The constraints' multipliers, rows first.
    potentials = found.eqlin.marginals
    return Program(plan, potentials[:n], potentials[n:], Status.CONVERGED)
