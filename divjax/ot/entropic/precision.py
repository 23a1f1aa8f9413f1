"""Rounding errors of costs and potentials, for ε far below the costs or far above them.

A stored potential has a rounding error of its size times the unit roundoff u. Unless that error is
far below ε, the plan exp((f ⊕ g − C)/ε) of the stored potentials differs from the iterated one:
`sampled_error` measures this. The costs' own rounding changes P_ij by a share u C_ij/ε, which the
marginals do not reveal: `cost_error` adds it up.
If ε is far above the costs, the potential −ε log Σ_j b_j exp((g_j − C_ij)/ε), a logarithm of almost
one, has an error of ε u: `refined_at_large_epsilon` computes it from the sum's difference from one.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from divjax.core.numerics import if_needed
from divjax.core.pair_reductions import SUM
from divjax.core.training import spread_rows
from divjax.ot.entropic.problem import Problem

__all__ = ["cost_error", "costs_are_unresolved", "refined_at_large_epsilon", "sampled_error"]

# The number of sampled rows.
_ROWS = 64
# Above this multiple of the largest potential, ε is so large that logarithms are of almost one.
_LARGE = 30.0
# The error ε u² of the value from rounding of the weights' sums, as a share of the largest cost,
# from which costs fall below floating-point resolution.
_LOST = 1e-3


def sampled_error(
    problem: Problem, f: Float[Array, " n"], g: Float[Array, " m"], *, symmetric: bool = False
) -> Float[Array, ""]:
    """Σ |P1 − a exp(−f/ρ)| over both sides, from at most 64 rows and columns, evenly spread."""
    problem = jax.lax.stop_gradient(problem)
    rows = _sampled_row_error(problem, f, g)
    return rows if symmetric else rows + _sampled_row_error(problem.transposed, g, f)


def _sampled_row_error(problem: Problem, f: Array, g: Array) -> Float[Array, ""]:
    rows, costs = _some_rows(problem)
    # Not cut at the largest exponent, to expose errors.
    kernel = jnp.exp((f[rows, None] + g - costs) / problem.epsilon)
    sums = jnp.sum(jnp.where(problem.b > 0, kernel * problem.b, 0), axis=1)
    rho = problem.penalties[0]
    wanted = 1 if rho is None else jnp.exp(-f[rows] / rho)
    weights = problem.a[rows]
    off = jnp.sum(jnp.where(weights > 0, weights * jnp.abs(sums - wanted), 0))
    # The sampled rows represent all rows, by their share of the mass.
    share = jnp.sum(weights) / jnp.sum(problem.a)
    return off / jnp.where(share > 0, share, 1)


def cost_error(problem: Problem, f: Float[Array, " n"], g: Float[Array, " m"]) -> Float[Array, ""]:
    """The plan's possible L1 error u Σ_ij P_ij R_ij/ε from rounding of the costs, from 64 rows.

    R_ij is the size that a cost's rounding is relative to: the cost itself, or its summands.
    """
    problem = jax.lax.stop_gradient(problem)
    rows, costs = _some_rows(problem)
    kernel = jnp.exp((f[rows, None] + g - costs) / problem.epsilon)
    # An error of u R in a cost changes exp(−C/ε) by a share of u R/ε.
    relative_to = problem.pairs.rounding_scale(problem.pairs.rows[rows], costs)
    mass = problem.a[rows, None] * problem.b * kernel
    moved = jnp.sum(jnp.where(mass > 0, mass * relative_to, 0))
    # The sampled rows stand for all rows in proportion to their mass.
    share = jnp.sum(problem.a[rows]) / jnp.sum(problem.a)
    unit = jnp.finfo(costs.dtype).eps / 2
    return unit / problem.epsilon * moved / jnp.where(share > 0, share, 1)


def costs_are_unresolved(problem: Problem) -> Bool[Array, ""]:
    """Whether ε is so large that costs fall below the rounding of the weights' sums."""
    _, costs = _some_rows(jax.lax.stop_gradient(problem))
    costs = jnp.where(jnp.isinf(costs), 0, costs)
    largest, rounding = jnp.max(jnp.abs(costs)), problem.epsilon * jnp.finfo(costs.dtype).eps ** 2
    return (rounding > _LOST * largest) & (largest > 0)


def _some_rows(problem: Problem) -> tuple[Int[Array, " k"], Float[Array, "k m"]]:
    """The indices of some rows, evenly spread over those with mass, and their costs."""
    rows = spread_rows(problem.a, _ROWS)
    return rows, problem.pairs.block(problem.pairs.rows[rows])


def refined_at_large_epsilon(
    problem: Problem, f: Float[Array, " n"], g: Float[Array, " m"], mass_defect: Float[Array, ""]
) -> tuple[Float[Array, " n"], Float[Array, " m"], Float[Array, ""]]:
    """The potentials and ΣP − Σa Σb, if ε is large after one more iteration by expm1 and log1p.

    With t = (f ⊕ g − C)/ε + log Σb, the soft transform of g is κ (f − ε log1p Σ_j b_j (eᵗ − 1)/Σb).
    """
    problem = jax.lax.stop_gradient(problem)

    def sums(problem: Problem, f: Array, g: Array, shift: Array) -> Array:
        """Σ_j b_j (exp(t_ij) − 1), with the shift added to t."""

        def block(costs: Array, f: Array, g: Array, b: Array) -> Array:
            exponent = (f[:, None] + g - costs) / problem.epsilon + shift
            return jnp.sum(jnp.expm1(exponent) * b, axis=1)

        return problem.map_rows(block, f, columns=(g, problem.b), reduction=SUM)

    def transform(problem: Problem, f: Array, g: Array) -> Array:
        mass = jnp.sum(problem.b)
        shift = jnp.log(mass)
        logs = jnp.log1p(sums(problem, f, g, shift) / mass)
        return problem.damping[0] * (f - problem.epsilon * logs)

    def refined(stored: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        f, g, _ = stored
        # An ordinary iteration, with eᵗ − 1 in place of eᵗ throughout.
        g = transform(problem.transposed, g, f)
        f = transform(problem, f, g)
        # Without the shift the exponents are those of the plan, so that the sum is ΣP − Σa Σb.
        return f, g, problem.a @ sums(problem, f, g, jnp.zeros_like(problem.epsilon))

    # Exponentials are then near one, and their sums would round away the differences.
    large = problem.epsilon > _LARGE * jnp.maximum(jnp.max(jnp.abs(f)), jnp.max(jnp.abs(g)))
    return if_needed(large, refined, (f, g, mass_defect))
