"""Derivatives of optimal potentials and of the value, of every order and in both modes.

The value's first derivative is the partial derivative of the dual objective at the optimum: no
derivative of the potentials enters. Potentials are differentiated by the implicit function theorem.
The rule for the value calls the rule for potentials, so that Hessians are correct although a
gradient requires no linear solve.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from divjax.core.numerics import if_needed, in_units_of
from divjax.ot.entropic.problem import (
    Problem,
    conjugate,
    dual_objective,
    log_tilted_mass,
    soft_minimum,
    soft_transform,
)

__all__ = [
    "envelope_value",
    "mass_price",
    "normalized_potentials",
    "rows_potential",
    "weightless",
    "with_implicit_derivatives",
]


def normalized_potentials(
    problem: Problem, f: Float[Array, " n"], g: Float[Array, " m"]
) -> tuple[Float[Array, " n"], Float[Array, " m"]]:
    """Potentials, if unique only up to a constant, with ⟨a, f⟩ = ⟨b, g⟩."""
    if problem.has_free_constant is False:
        return f, g
    a, b = problem.a, problem.b
    shift = (a @ f - b @ g) / (jnp.sum(a) + jnp.sum(b))
    shift = jnp.where(problem.has_free_constant, shift, 0)
    return f - shift, g + shift


@jax.custom_jvp
def with_implicit_derivatives(
    problem: Problem, f: Float[Array, " n"], g: Float[Array, " m"]
) -> tuple[Float[Array, " n"], Float[Array, " m"]]:
    """The optimal potentials f and g, as functions of the problem.

    With T_a, T_b the soft transforms, f = T_a(g) and g = T_b(f) hold at the optimum. So
    df = R − κ_a Q dg and dg = S − κ_b Q̃ df, where R and S are the transforms' derivatives with
    respect to the problem, and Q, Q̃ the plan with its rows, and its columns, summing to one.
    """
    return f, g


@with_implicit_derivatives.defjvp
def _implicit_jvp(
    primals: tuple[Problem, Array, Array], tangents: tuple[Problem, Array, Array]
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    problem, f, g = primals
    f, g = with_implicit_derivatives(problem, f, g)  # for derivatives of this derivative
    # R, S and the change of the masses' ratio are partial derivatives in the problem: potentials
    # are held fixed.
    _, row_change = jax.jvp(lambda p: soft_transform(p, f, g), (problem,), (tangents[0],))
    _, column_change = jax.jvp(
        lambda p: soft_transform(p.transposed, g, f), (problem,), (tangents[0],)
    )
    _, mass_change = jax.jvp(lambda p: _log_mass_ratio(p, f, g), (problem,), (tangents[0],))
    return (f, g), _solve(problem, f, g, row_change, column_change, mass_change)


def _log_mass_ratio(problem: Problem, f: Array, g: Array) -> Float[Array, ""]:
    """log(⟨a, exp(−f/ρ_a)⟩ / ⟨b, exp(−g/ρ_b)⟩), zero at the optimum: both are the plan's mass."""
    rows = log_tilted_mass(problem.a, f, problem.penalties[0])
    return rows - log_tilted_mass(problem.b, g, problem.penalties[1])


def _solve(
    problem: Problem,
    f: Float[Array, " n"],
    g: Float[Array, " m"],
    row_change: Float[Array, " n"],
    column_change: Float[Array, " m"],
    mass_change: Float[Array, ""],
) -> tuple[Float[Array, " n"], Float[Array, " m"]]:
    """The pair (df, dg) with df + κ_a Q dg = R and dg + κ_b Q̃ df = S.

    Eliminating df and multiplying by the column masses q = Pᵀ1 gives the symmetric system
    (diag q − κ_a κ_b Pᵀ diag(P1)⁻¹ P) dg = q (S − κ_b Q̃ R). Its matrix maps constants to
    (1 − κ_a κ_b) q, and vectors of q-mean zero to vectors that sum to zero. If ρ ≫ ε, rounding
    would destroy the constant in dg. A term that is q on constants and zero on vectors of q-mean
    zero is therefore added. It changes only that constant, which `_constant` recomputes from the
    masses. Rows and columns of weight zero are excluded: their df and dg follow from the others'.
    """
    a, b = problem.a, problem.b
    # The plan is never formed: P1 = a · rows, and Pᵀ1 = b · columns = mass.
    (kappa_a, kappa_b), (right, left) = problem.damping, problem.products(f, g)
    rows, columns = right(b), left(a)
    mass = b * columns
    average = lambda dg: right(b * dg) / rows
    gather = lambda df: left(a * df)

    def matvec(dg):
        # Constants go to (1 − κ_a κ_b) q, almost zero if ρ ≫ ε: the second term keeps the matrix
        # away from singular.
        result = mass * dg - kappa_a * kappa_b * b * gather(average(dg))
        return result + mass * ((mass @ dg) / jnp.sum(mass))

    # q (S − κ_b Q̃ R), in which q Q̃ is Pᵀ.
    target = mass * column_change - kappa_b * b * gather(row_change)
    # 1/q, the diagonal preconditioner. Zeros keep columns without mass out of all search
    # directions. The solution does not depend on it, so its gradient is stopped.
    weight = jnp.where(mass > 0, 1 / jnp.where(mass > 0, mass, 1), 0)
    weight = jax.lax.stop_gradient(weight)
    # The solution is differentiated by another solve; the loop of conjugate gradients has no
    # reverse mode.
    dg = jax.lax.custom_linear_solve(
        matvec,
        target,
        lambda apply, vector: _conjugate_gradients(apply, vector, weight),
        symmetric=True,
    )
    # The constant, which the added term changed, is recomputed from the masses.
    dg = dg - (mass @ dg) / jnp.sum(mass)
    df = row_change - kappa_a * average(dg)
    constant = _constant(problem, f, g, df, dg, mass_change)
    df, dg = df - kappa_a * constant, dg + constant
    # The second equation once more, for columns without mass, which the solve excluded.
    return df, column_change - kappa_b * gather(df) / columns


def _constant(
    problem: Problem, f: Array, g: Array, df: Array, dg: Array, mass_change: Array
) -> Float[Array, ""]:
    """The c for which (df − κ_a c, dg + c) keep both relaxed marginals' masses equal.

    With r the logarithm of their ratio, ∂r + ⟨∂r/∂f, df − κ_a c⟩ + ⟨∂r/∂g, dg + c⟩ = 0, where the
    slopes sum to −1/ρ_a and 1/ρ_b. Zero if both marginals are exact.
    """
    slopes = jax.grad(lambda f, g: _log_mass_ratio(problem, f, g), (0, 1))(f, g)
    row_inverse, column_inverse = problem.inverse_penalties
    total = problem.damping[0] * row_inverse + column_inverse
    # The equation is solved for c. With both marginals exact there is no slope, and c is zero.
    change = mass_change + slopes[0] @ df + slopes[1] @ dg
    return jnp.where(total > 0, -change / jnp.where(total > 0, total, 1), 0)


def _conjugate_gradients(
    apply: Callable[[Array], Array], target: Float[Array, " m"], weight: Float[Array, " m"]
) -> Float[Array, " m"]:
    """Conjugate gradients with a diagonal preconditioner, always finite, stopped at rounding."""
    eps = jnp.finfo(target.dtype).eps
    # The solution is linear in the target, whose squares would leave the dtype's range in other
    # units: a target may be a user's small cotangent.
    target, unit = in_units_of(jnp.max(jnp.abs(target)), target)
    # In exact arithmetic as many steps as unknowns suffice.
    max_steps = min(10 * target.shape[0] + 20, 3000)

    def body(state):
        x, residual, direction, energy, _, step = state
        image = apply(direction)
        curvature = direction @ image
        # Rounding may make a singular matrix indefinite: the last iterate is kept then.
        sound = curvature > 0
        alpha = jnp.where(sound, energy / jnp.where(sound, curvature, 1), 0)
        x, residual = x + alpha * direction, residual - alpha * image
        after = residual @ (weight * residual)
        # Once the residual vanishes exactly, the ratio would be 0/0.
        beta = after / jnp.where(energy > 0, energy, 1)
        return x, residual, weight * residual + beta * direction, after, sound, step + 1

    # Squared norms of the preconditioned residual, with a target of a few roundings.
    energy = target @ (weight * target)
    goal = energy * (4 * eps) ** 2

    def unfinished(state):
        return (state[3] > goal) & state[4] & (state[5] < max_steps)

    start = jnp.zeros_like(target), target, weight * target, energy, jnp.array(True), 0
    return unit * jax.lax.while_loop(unfinished, body, start)[0]


@jax.custom_jvp
def envelope_value(
    problem: Problem, f: Float[Array, " n"], g: Float[Array, " m"], mass_defect: Float[Array, ""]
) -> Float[Array, ""]:
    """The problem's value at its optimal potentials, as a function of the problem alone."""
    return dual_objective(problem, f, g, mass_defect)


@envelope_value.defjvp
def _envelope_jvp(
    primals: tuple[Problem, Array, Array, Array], tangents: tuple[Problem, Array, Array, Array]
) -> tuple[Array, Array]:
    problem, f, g, _ = primals
    f, g = normalized_potentials(problem, *with_implicit_derivatives(problem, f, g))
    # The partial derivative at fixed potentials, which have their own rule: this makes second
    # derivatives correct.
    _, change = jax.jvp(lambda p: dual_objective(p, f, g), (problem,), (tangents[0],))
    return envelope_value(*primals), change


@jax.custom_jvp
def rows_potential(
    problem: Problem, rows: Array, f: Float[Array, " n"], g: Float[Array, " m"]
) -> Float[Array, " n"]:
    """f, and for rows of weight zero the soft transform of g at the original row."""
    evaluate = lambda f: jnp.where(problem.a > 0, f, soft_minimum(problem, rows, g))
    return if_needed(jnp.any(problem.a == 0), evaluate, f)


@rows_potential.defjvp
def _rows_potential_jvp(
    primals: tuple[Problem, Array, Array, Array], tangents: tuple[Problem, Array, Array, Array]
) -> tuple[Array, Array]:
    # Without `if_needed`, whose loop has no reverse mode.
    def evaluate(problem: Problem, rows: Array, f: Array, g: Array) -> Array:
        other = soft_minimum(problem, rows, g)
        return jnp.where(problem.a > 0, f, jnp.where(jnp.isfinite(other), other, 0))

    return rows_potential(*primals), jax.jvp(evaluate, primals, tangents)[1]


@jax.custom_jvp
def weightless(weights: Float[Array, " n"], difference: Float[Array, " n"]) -> Float[Array, ""]:
    """Zero, with `difference` as its derivative in weights that are zero.

    It corrects the value's derivative in the weight of a replaced row to that of the row itself.
    """
    return jnp.zeros((), weights.dtype)


@weightless.defjvp
def _weightless_jvp(
    primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    weights, difference = primals
    change = jnp.where(weights == 0, tangents[0], 0)
    return weightless(*primals), change @ jnp.where(jnp.isfinite(difference), difference, 0)


def mass_price(
    potential: Float[Array, " n"], penalty: ArrayLike | None, kappa: Float[Array, ""]
) -> Float[Array, " n"]:
    """The value's change per unit of mass, up to a constant: f, or (ρ + ε)(1 − exp(−f/ρ))."""
    return conjugate(potential, penalty) / kappa
