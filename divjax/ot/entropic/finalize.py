"""From the last iterate to the result: value, potentials, their derivatives, and the status.

Iterations ignore derivatives, centring, rows of weight zero, and whether traced arguments are in
range. The steps here add them, in this order:

    stored potentials    made accurate at a large ε, normalised, with stopped gradients
    value, potentials    functions of the problem, by the envelope and the implicit function theorem
    validity             NaN if a traced argument is out of range
    the given problem    potentials of all rows and the value, with the terms that centring removed
    status               the iterations' error against the tolerance, and the effect of rounding
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from divjax.core.numerics import if_needed, nan_unless
from divjax.core.types import status_of
from divjax.ot.entropic.derivatives import (
    envelope_value,
    mass_price,
    normalized_potentials,
    rows_potential,
    weightless,
    with_implicit_derivatives,
)
from divjax.ot.entropic.formulation import Formulation
from divjax.ot.entropic.loop import Solution
from divjax.ot.entropic.options import Sinkhorn
from divjax.ot.entropic.precision import (
    cost_error,
    costs_are_unresolved,
    refined_at_large_epsilon,
    sampled_error,
)
from divjax.ot.entropic.problem import PointPairs, Problem, has_lone_row
from divjax.ot.entropic.result import SinkhornResult

__all__ = ["finalize"]

# Without a tolerance, the largest L1 error that counts as converged, as a share of the mass.
FIXED_TOLERANCE = 1e-3
# Rounding may leave an error of this multiple of the tolerance plus this share of the mass: at a
# tight tolerance, the errors of single precision are no failure of the iterations.
ROUNDING_MARGIN, ROUNDING_FLOOR = 2, 5e-5


class _Stored(NamedTuple):
    """The solved problem's potentials, constants for differentiation, and ΣP − Σa Σb."""

    f: Float[Array, " n"]
    g: Float[Array, " m"]
    mass_defect: Float[Array, ""]


def finalize(
    formulation: Formulation, solver: Sinkhorn, solution: Solution, *, symmetric: bool
) -> SinkhornResult:
    """The result of a problem whose iterations have ended."""
    stored = _stored_potentials(formulation.problem, solution)
    value = _value(formulation, stored)
    f, g = _potentials(formulation, stored)
    # Before anything is derived from them, so that no number of the result hides an invalid
    # argument.
    valid = formulation.valid & solver.valid
    value, f, g = nan_unless(valid, value), nan_unless(valid, f), nan_unless(valid, g)
    f_rows, g_rows = _at_all_rows(formulation, f, g)
    full_value = value + formulation.shift_cost
    rounding = sampled_error(formulation.problem, stored.f, stored.g, symmetric=symmetric)
    converged, resolved = _accuracy(formulation.problem, solver, solution, stored, rounding)
    if not symmetric:
        # Costs within one sample may be far below those between two: if they are unresolved, they
        # do not matter in the divergence either.
        resolved &= ~costs_are_unresolved(formulation.problem)
    return SinkhornResult(
        value=full_value,
        f=f_rows,
        g=g_rows,
        error=jnp.maximum(solution.error, rounding),
        num_iterations=solution.num_iterations,
        status=status_of(
            converged=converged, resolved=resolved, finite=jnp.isfinite(full_value), valid=valid
        ),
        errors=solution.errors,
        formulation=formulation,
        centered_f=f,
        centered_g=g,
        centered_value=value,
    )


def _stored_potentials(problem: Problem, solution: Solution) -> _Stored:
    """The last potentials, accurate even at a large ε, normalised, with stopped gradients."""
    # At a large ε the iterations' logarithms of almost one have lost the potentials' last digits,
    # and so would the value.
    f, g, mass_defect = refined_at_large_epsilon(
        problem, solution.f, solution.g, solution.mass_defect
    )
    # Balanced potentials are unique up to a constant, which the iterations leave arbitrary. It is
    # fixed after the refinement, which changes it.
    f, g = jax.lax.stop_gradient(normalized_potentials(problem, f, g))
    return _Stored(f, g, mass_defect)


def _value(formulation: Formulation, stored: _Stored) -> Float[Array, ""]:
    """The centred problem's value, whose derivatives are those of the optimum."""
    problem = formulation.problem
    value = envelope_value(problem, *stored) + formulation.unmatched
    # Adds zero, to correct derivatives in weights that are zero.
    value += _weightless(formulation, stored.f, stored.g)
    return _infinite_without_a_plan(problem, value) if problem.infinite else value


def _potentials(formulation: Formulation, stored: _Stored) -> tuple[Array, Array]:
    """The centred problem's potentials, as functions of the problem, normalised."""
    f, g = with_implicit_derivatives(formulation.problem, stored.f, stored.g)
    # Normalised again, as this constant has derivatives, unlike that of the stored ones.
    return normalized_potentials(formulation.problem, f, g)


def _accuracy(
    problem: Problem,
    solver: Sinkhorn,
    solution: Solution,
    stored: _Stored,
    rounding: Float[Array, ""],
) -> tuple[Bool[Array, ""], Bool[Array, ""]]:
    """Whether the iterations met the tolerance, and whether rounding leaves the plan within it.

    The iteration error excludes the rounding error of the stored potentials and costs.
    """
    share = FIXED_TOLERANCE if solver.tolerance is None else solver.tolerance
    enough = problem.mass * jnp.asarray(share, problem.mass.dtype)
    bound = ROUNDING_MARGIN * enough + ROUNDING_FLOOR * problem.mass
    converged = solution.error <= enough
    by_costs = cost_error(problem, stored.f, stored.g)
    # An error of the stored potentials is due to rounding only if the iteration error is small.
    return converged, (by_costs <= bound) & ((rounding <= bound) | ~converged)


def _infinite_without_a_plan(problem: Problem, value: Array) -> Array:
    """+∞ in place of NaN if a row or a column with mass has only infinite costs."""
    # Tested only if the value is not finite.
    problem, given = jax.lax.stop_gradient((problem, value))
    lone = if_needed(jnp.isnan(given), lambda _: has_lone_row(problem), jnp.array(False))
    return jnp.where(lone, jnp.inf, value)


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
