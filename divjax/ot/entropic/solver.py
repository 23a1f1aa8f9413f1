"""Entropic optimal transport between two weighted samples, or from a cost matrix."""

import functools
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from divjax.core.checks import (
    check_count,
    check_positive,
    check_scalar,
    check_shape,
)
from divjax.core.numerics import if_needed, nan_unless
from divjax.core.types import status_of
from divjax.ot.costs import SqEuclidean
from divjax.ot.entropic.derivatives import (
    envelope_value,
    gauge,
    mass_price,
    rows_potential,
    weightless,
    with_implicit_derivatives,
)
from divjax.ot.entropic.formulation import Formulation, formulate
from divjax.ot.entropic.loop import iterate
from divjax.ot.entropic.precision import (
    cost_error,
    costs_are_lost,
    refined_where_large,
    sampled_error,
)
from divjax.ot.entropic.problem import PointPairs, Problem, has_lone_row
from divjax.ot.entropic.result import SinkhornResult
from divjax.ot.entropic.schedules import Annealing, Relative

__all__ = ["sinkhorn", "solve", "start_of"]

# The largest L1 error, as a share of the mass, with which a fixed number of iterations converges.
FIXED_TOLERANCE = 1e-3
# With rounding, the error may be this multiple of the tolerance, plus this share of the mass: the
# errors of single precision at a tight tolerance are not a failure of the iterations.
ROUNDING_MARGIN, ROUNDING_FLOOR = 2, 5e-5


def sinkhorn(
    x: Float[Array, "n d"] | None,
    y: Float[Array, "m d"] | None,
    a: Float[Array, " n"] | None = None,
    b: Float[Array, " m"] | None = None,
    *,
    epsilon: ArrayLike | Relative,
    cost: Callable[..., Array] | Float[Array, "n m"] = SqEuclidean(),
    max_iterations: int = 2000,
    tolerance: ArrayLike | None = 1e-3,
    marginal_penalty: ArrayLike | tuple[ArrayLike | None, ArrayLike | None] | None = None,
    init: tuple[Float[Array, " n"], Float[Array, " m"]] | None = None,
    annealing: Annealing | None = None,
    over_relaxation: ArrayLike | None = None,
    block_size: int | None = None,
    record_errors: bool = False,
) -> SinkhornResult:
    """Entropic optimal transport, min_P ⟨P, C⟩ + ε KL(P‖a⊗b), balanced or unbalanced.

    P ranges over plans with P1 = a and Pᵀ1 = b. With `marginal_penalty` it ranges over all P ≥ 0,
    and ρ_a KL(P1‖a) + ρ_b KL(Pᵀ1‖b) is added. KL(p‖q) = Σ p log(p/q) − Σ p + Σ q.

    Iterations are over-relaxed matrix–vector products with the kernel at the current potentials.
    They return to the log domain if numbers leave their range. Under `jax.vmap` every problem
    iterates until the slowest has converged: a fixed count, or on a CPU `jax.lax.map`, is faster.
    Memory is 2 n m numbers when dense, O(n + m) when blockwise.

    Args:
        x: samples, or None with a cost matrix.
        y: samples, or None with a cost matrix.
        a: weights of x, non-negative; by default uniform with b's total mass (1 without b). Rows of
            weight zero are padding.
        b: weights of y, in a balanced problem with the same sum as a.
        epsilon: ε > 0, in units of the cost, or `Relative` to the costs.
        cost: a cost of `divjax.ot` or of ott-jax, any function of two points, or a matrix of costs.
            An infinite cost forbids a pair. A row with only such costs stays unmatched if its
            marginal is relaxed. Otherwise there is no plan: the value is infinite, and flagged by
            `Status.NOT_FINITE`. If rows have finite costs, but together too few columns, the
            iterations do not converge.
        max_iterations: the largest number of iterations.
        tolerance: stop at an L1 error of the marginals, of both together, of tolerance × mass; None
            for exactly `max_iterations` iterations.
        marginal_penalty: ρ > 0, in units of the cost, of both marginals; or (ρ_a, ρ_b). None or
            infinity for an exact marginal.
        init: potentials (f, g) to start from, such as those of a similar problem. Ignored if they
            are not finite, or so large that they are rounded by more than ε.
        annealing: solve along a decreasing sequence of ε first, which helps if ε is far below the
            mean cost.
        over_relaxation: a fixed ω in (0, 2), 1 for plain iterations; None for an adaptive ω, which
            returns to plain iterations if the error grows.
        block_size: rows of costs in memory at a time, for both sides (n and m, or more, for all).
            By default all if there are at most 2²⁵ costs (2²⁸ on an accelerator).
        record_errors: whether the result holds the error after every iteration.

    Returns:
        A `SinkhornResult`, the value first.

    Raises:
        ValueError: for wrong shapes, empty samples, and, if their values are known at trace time,
            negative or non-finite weights, weights of unequal sums, and numbers out of range. NaN
            in a row with weight gives NaN and `Status.NOT_FINITE`; traced numbers out of range give
            NaN and `Status.INVALID_INPUT`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> x = jnp.array([[0.0], [1.0]])
        >>> result = sinkhorn(x, x + 2, epsilon=0.05)
        >>> float(result.value), bool(result.converged)  # 4 and ε times KL(P‖a⊗b) = log 2
        (4.034, True)
        >>> result.transport(x).round(2).ravel().tolist()
        [2.0, 3.0]
        >>> jax.grad(lambda y: sinkhorn(x, y, epsilon=0.05).value)(x + 2).ravel().tolist()
        [2.0, 2.0]

    References:
        Cuturi 2013, algorithm 1. Schmitzer 2019, section 3: absorption. Thibault, Chizat, Dossal,
        Papadakis 2021, section 3: over-relaxation. Chizat, Peyré, Schmitzer, Vialard 2018:
        unbalanced. Séjourné, Vialard, Peyré 2022, section 3: updates that are translation
        invariant.
    """
    formulation = formulate(x, y, a, b, epsilon, cost, marginal_penalty, block_size)
    return solve(
        formulation,
        start_of(formulation, init),
        max_iterations=max_iterations,
        tolerance=tolerance,
        annealing=annealing,
        over_relaxation=over_relaxation,
        record_errors=record_errors,
    )


def solve(
    formulation: Formulation,
    init: tuple[Array, Array] | None = None,
    *,
    max_iterations: int,
    tolerance: ArrayLike | None,
    annealing: Annealing | None = None,
    over_relaxation: ArrayLike | None = None,
    symmetric: bool = False,
    record_errors: bool = False,
) -> SinkhornResult:
    """The result of a problem, with tolerance a share of the mass, and `init` of centred points."""
    check_count(1, max_iterations=max_iterations)
    check_scalar(tolerance=tolerance, over_relaxation=over_relaxation)
    check_positive(tolerance=tolerance, over_relaxation=over_relaxation)
    if annealing is not None:
        if not isinstance(annealing, Annealing):
            raise ValueError(f"annealing must be an `Annealing`; got {annealing!r}.")
        check_scalar(start=annealing.start, decay=annealing.decay)
    if isinstance(over_relaxation, (int, float)) and not over_relaxation < 2:
        raise ValueError(f"over_relaxation must be a number in (0, 2); got {over_relaxation}.")
    return _solve(
        formulation,
        init,
        tolerance,
        annealing,
        over_relaxation,
        max_iterations=max_iterations,
        symmetric=symmetric,
        record_errors=record_errors,
    )


@functools.partial(jax.jit, static_argnames=("max_iterations", "symmetric", "record_errors"))
def _solve(
    formulation: Formulation,
    init: tuple[Array, Array] | None,
    tolerance: ArrayLike | None,
    annealing: Annealing | None,
    over_relaxation: ArrayLike | None,
    *,
    max_iterations: int,
    symmetric: bool,
    record_errors: bool,
) -> SinkhornResult:
    """`solve` after its checks."""
    problem = formulation.problem
    # Tolerances are shares of this mass. With relaxed marginals the two sums may differ.
    mass = (jnp.sum(problem.a) + jnp.sum(problem.b)) / 2

    # 1. Iterate, with stopped gradients.
    solution = iterate(
        problem,
        init,
        max_iterations=max_iterations,
        tolerance=None if tolerance is None else mass * jnp.asarray(tolerance, mass.dtype),
        annealing=annealing,
        over_relaxation=over_relaxation,
        symmetric=symmetric,
        record_errors=record_errors,
    )
    # At a large ε the iterations' logarithms of almost one have lost the potentials' last digits,
    # and so would the value.
    f, g, excess = refined_where_large(problem, solution.f, solution.g, solution.excess)
    # Balanced potentials are unique up to a constant, which the iterations leave arbitrary.
    f, g = jax.lax.stop_gradient(gauge(problem, f, g))

    # 2. The value, by the envelope theorem, and the potentials, by the implicit function theorem.
    centered_value = envelope_value(problem, f, g, excess) + formulation.unmatched
    # Adds zero, to correct derivatives in weights that are zero.
    centered_value += _weightless(formulation, f, g)
    centered_f, centered_g = _normalized(formulation, *with_implicit_derivatives(problem, f, g))
    if problem.infinite:
        centered_value = _infinite_without_a_plan(problem, centered_value)

    # 3. Validity of traced arguments, and rounding. The iteration error excludes the rounding error
    # of the stored potentials and costs.
    valid = formulation.valid
    if annealing is not None:
        valid &= annealing.valid
    if over_relaxation is not None:
        omega = jnp.asarray(over_relaxation)
        valid &= (omega > 0) & (omega < 2)
    if tolerance is not None:
        valid &= jnp.asarray(tolerance) > 0
    numbers = centered_value, centered_f, centered_g
    centered_value, centered_f, centered_g = (nan_unless(valid, number) for number in numbers)
    f_rows, g_rows = _at_all_rows(formulation, centered_f, centered_g)
    value = centered_value + formulation.shift_cost
    enough = mass * (FIXED_TOLERANCE if tolerance is None else jnp.asarray(tolerance, mass.dtype))
    bound = ROUNDING_MARGIN * enough + ROUNDING_FLOOR * mass
    sampled = sampled_error(problem, f, g, symmetric=symmetric)
    moved = cost_error(problem, f, g)
    done = solution.error <= enough
    # An error of the stored potentials is due to rounding only if the iteration error is small.
    resolved = (moved <= bound) & ((sampled <= bound) | ~done)
    if not symmetric:  # a sample may be far closer to itself than to the other
        resolved &= ~costs_are_lost(problem)
    status = status_of(converged=done, resolved=resolved, finite=jnp.isfinite(value), valid=valid)
    return SinkhornResult(
        value=value,
        f=f_rows,
        g=g_rows,
        error=jnp.maximum(solution.error, sampled),
        num_iterations=solution.num_iterations,
        status=status,
        errors=solution.errors,
        formulation=formulation,
        centered_f=centered_f,
        centered_g=centered_g,
        centered_value=centered_value,
    )


def _infinite_without_a_plan(problem: Problem, value: Array) -> Array:
    """+∞ in place of NaN if a row or a column with mass has only infinite costs."""
    # Tested only if the value is not finite.
    problem, given = jax.lax.stop_gradient((problem, value))
    lone = if_needed(jnp.isnan(given), lambda _: has_lone_row(problem), jnp.array(False))
    return jnp.where(lone, jnp.inf, value)


def _normalized(formulation: Formulation, f: Array, g: Array) -> tuple[Array, Array]:
    """Balanced centred potentials, shifted so that the final ones have ⟨a, f⟩ = ⟨b, g⟩."""
    if formulation.slope is None:
        return gauge(formulation.problem, f, g)
    # The normalisation is of the final potentials, which include the linear terms α and β; the
    # constant shifts the centred ones equally.
    pairs = cast(PointPairs, formulation.problem.pairs)
    full_f = f + formulation.linear_terms(pairs.x)
    full_g = g + formulation.transposed.linear_terms(pairs.y)
    a, b = formulation.problem.a, formulation.problem.b
    shift = (a @ full_f - b @ full_g) / (jnp.sum(a) + jnp.sum(b))
    return f - shift, g + shift


def _at_all_rows(formulation: Formulation, f: Array, g: Array) -> tuple[Array, Array]:
    """The final potentials, also at rows of weight zero."""
    problem = formulation.problem
    rows_f, rows_g = f, g
    # A replaced row still has its copy's potential, and is evaluated at its own point. Uniform
    # weights are never zero, and skip this.
    if formulation.may_replace_rows:
        rows_f = rows_potential(problem, formulation.rows, f, g)
    if formulation.transposed.may_replace_rows:
        rows_g = rows_potential(problem.transposed, formulation.columns, g, f)
    return formulation.restored(rows_f, rows_g)


def _weightless(formulation: Formulation, f: Array, g: Array) -> Array | float:
    """Zero, with derivatives that correct those of the value in weights that are zero."""
    total: Array | float = 0.0
    for side, u, v in ((formulation, f, g), (formulation.transposed, g, f)):
        if not side.may_replace_rows:
            continue
        problem = side.problem
        # The value's derivative in a weight is the price of mass at its row. For a replaced row the
        # problem gives the price at the copy; the difference is added here.
        price = lambda potential, problem=problem: mass_price(
            potential, problem.penalties[0], problem.damping[0]
        )
        own = rows_potential(problem, side.rows, u, v) + side.linear_terms(side.rows)
        copied = u
        if isinstance(problem.pairs, PointPairs):
            copied = u + side.linear_terms(problem.pairs.x)
        total += weightless(side.a, price(own) - price(copied))
    return total


def start_of(formulation: Formulation, init: Any) -> tuple[Array, Array] | None:
    """The initial potentials, checked, for centred points."""
    problem = formulation.problem
    n, m = problem.pairs.shape
    if init is None:
        return None
    if not isinstance(init, tuple) or len(init) != 2:
        raise ValueError(f"init must be a pair of potentials (f, g); got {type(init).__name__}.")
    f, g = init
    check_shape("init[0]", f, n)
    check_shape("init[1]", g, m)
    f, g = jnp.asarray(f, problem.a.dtype), jnp.asarray(g, problem.b.dtype)
    # The given potentials are for the original points, the problem is one of centred points.
    f, g = formulation.reduced(f, g)
    # Potentials of rows of weight zero have no effect, and may hold any value.
    f = jnp.where(problem.a > 0, f, f[jnp.argmax(problem.a)])
    g = jnp.where(problem.b > 0, g, g[jnp.argmax(problem.b)])
    return gauge(problem, f, g)
