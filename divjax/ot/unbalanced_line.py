"""Unbalanced transport on the line: mass may be created and destroyed, at a price.

The dual is a concave function of potentials with f ⊕ g ≤ c. Linearised at (f, g), it is balanced
transport between a e^{−f/ρ_a} and b e^{−g/ρ_b}, which has an exact solution on the line. This gives
a Frank–Wolfe method, whose gap bounds the error from both sides.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float, Int

from divjax.core.checks import (
    check_count,
    check_order,
    check_positive,
    check_positive_values,
    check_scalar,
)
from divjax.core.numerics import at_least_single, nan_unless
from divjax.core.pytrees import pytree
from divjax.core.samples import Numbers
from divjax.core.types import Outcome, status_of
from divjax.ot.quantile_coupling import (
    Line,
    Staircase,
    as_values,
    compiled_for_order,
    distance_power,
    is_valid,
    line_potentials,
    staircase,
    working_arrays,
)

__all__ = ["UnbalancedLineResult", "unbalanced_1d"]

# Bisections for a step's length.
_BISECTIONS = 24


class _Potentials(NamedTuple):
    f: Float[Array, " n"]
    g: Float[Array, " m"]


@pytree
class UnbalancedLineResult(Outcome):
    """The value, the potentials and the plan of an unbalanced problem on the line.

    Attributes:
        value: the dual objective, a lower bound on the problem's value.
        gap: the plan's own objective less the value, an upper bound on the value's error.
        f: the potential of x; the plan's first marginal is a exp(−f/ρ_a).
        g: the potential of y.
        rows: the indices into x of the plan's entries, from left to right.
        columns: the indices into y of the plan's entries.
        masses: the masses of the plan's entries, some possibly zero.
        num_iterations: the steps taken.
        status: `Status.CONVERGED` if the gap is at most tolerance × value.
    """

    value: Float[Array, ""]
    gap: Float[Array, ""]
    f: Float[Array, " n"]
    g: Float[Array, " m"]
    rows: Int[Array, " k"]
    columns: Int[Array, " k"]
    masses: Float[Array, " k"]
    num_iterations: Int[Array, ""]
    status: Int[Array, ""]

    @jax.jit
    def plan(self) -> Float[Array, "n m"]:
        """The plan as a matrix, n × m numbers of which at most n + m − 1 are not zero."""
        empty = jnp.zeros((self.f.shape[0], self.g.shape[0]), self.masses.dtype)
        return empty.at[self.rows, self.columns].add(self.masses)


def unbalanced_1d(
    x: Float[Numbers, " n"],
    y: Float[Numbers, " m"],
    a: Float[Numbers, " n"] | None = None,
    b: Float[Numbers, " m"] | None = None,
    *,
    marginal_penalty: ArrayLike | tuple[ArrayLike, ArrayLike],
    p: ArrayLike = 2,
    max_iterations: int = 2000,
    tolerance: ArrayLike = 1e-3,
) -> UnbalancedLineResult:
    """Unbalanced transport on the line, min_P ⟨P, C⟩ + ρ_a KL(P1‖a) + ρ_b KL(Pᵀ1‖b).

    C_ij = |x_i − y_j|^p, and KL(p‖q) = Σ p log(p/q) − Σ p + Σ q: `sinkhorn` with the same penalty
    and ε → 0. The method takes Frank–Wolfe steps on the dual with exact line searches. After each
    step both potentials are shifted to the best constant, which makes the masses of the linear
    problem equal.

    The value is differentiable in samples, weights and penalties, by the envelope theorem; the
    gradients of other fields are stopped. Time is O((n + m) log(n + m)) per step, memory O(n + m).

    Args:
        x: samples of p, with integers taken as floats.
        y: samples of q.
        a: weights of x, non-negative, not normalised, 1/n each by default.
        b: weights of y.
        marginal_penalty: ρ > 0, in units of the cost, of both marginals, or (ρ_a, ρ_b).
        p: the order, finite and at least 1.
        max_iterations: the largest number of steps.
        tolerance: the gap that counts as converged, as a share of the value.

    Returns:
        An `UnbalancedLineResult`, the value first.

    Raises:
        ValueError: as `wasserstein_1d`, or if a penalty or the tolerance is not positive. If they
            are traced and out of range, the value is NaN.

    Example:
        >>> import jax.numpy as jnp
        >>> found = unbalanced_1d(jnp.array([0.0]), jnp.array([1.0]), marginal_penalty=1.0)
        >>> float(found.value), found.plan().tolist()  # 2 ρ (1 − e^{−c/2ρ}), e^{−c/2ρ}
        (0.787, [[0.607]])

    References:
        Séjourné, Vialard, Peyré 2022, section 5 and proposition 5: the translation, algorithm 3.
    """
    check_order(p)
    check_count(1, max_iterations=max_iterations)
    check_scalar(tolerance=tolerance, p=p)
    check_positive(tolerance=tolerance)
    # Both marginals are relaxed here: without a penalty there is no dual of this form.
    pair = marginal_penalty if isinstance(marginal_penalty, tuple) else (marginal_penalty,) * 2
    if len(pair) != 2 or any(rho is None for rho in pair):
        raise ValueError(f"marginal_penalty must be one or two numbers; got {marginal_penalty!r}.")
    for penalty in pair:
        check_scalar(marginal_penalty=penalty)
        check_positive_values(marginal_penalty=penalty)
    line, penalties, dtype = _problem(x, y, a, b, pair)
    settings = {"max_iterations": max_iterations, "dtype": dtype}
    return _unbalanced(line, penalties, tolerance, p=p, **settings)


@compiled_for_order("max_iterations", "dtype")
def _unbalanced(
    line: Line,
    penalties: tuple[Array, Array],
    tolerance: ArrayLike,
    *,
    p: ArrayLike,
    max_iterations: int,
    dtype: DTypeLike,
) -> UnbalancedLineResult:
    """`unbalanced_1d` after its checks."""
    positive = (penalties[0] > 0) & (penalties[1] > 0)
    valid = is_valid(line, p) & positive & (jnp.asarray(tolerance) > 0)

    # In increasing order, so that the linear problems' own sorting is trivial.
    fixed, fixed_penalties = jax.lax.stop_gradient((line, penalties))
    orders = jnp.argsort(fixed.x), jnp.argsort(fixed.y)
    ordered = _reordered(fixed, *orders)
    found, path, gap, steps = _frank_wolfe(
        ordered, fixed_penalties, jax.lax.stop_gradient(p), max_iterations, tolerance
    )
    rows, columns = orders[0][path.rows], orders[1][path.columns]
    # In the original order of the rows, like the path.
    f = jnp.zeros_like(fixed.x).at[orders[0]].set(found.f)
    g = jnp.zeros_like(fixed.y).at[orders[1]].set(found.g)

    # The envelope theorem: potentials are fixed in the dual, and the plan in the change of costs.
    costs = distance_power(line.x[rows] - line.y[columns], p)
    moved = jnp.where(path.masses > 0, path.masses * (costs - jax.lax.stop_gradient(costs)), 0)
    value = _dual(_Potentials(f, g), line, penalties) + jnp.sum(moved)
    value = nan_unless(valid, value)
    close = gap <= tolerance * jnp.abs(value)
    status = status_of(converged=close, finite=jnp.isfinite(value), valid=valid)
    value, gap = value.astype(dtype), gap.astype(dtype)
    f, g, masses = f.astype(dtype), g.astype(dtype), path.masses.astype(dtype)
    return UnbalancedLineResult(value, gap, f, g, rows, columns, masses, steps, status)


def _problem(
    x: Numbers, y: Numbers, a: Numbers | None, b: Numbers | None, pair: tuple[ArrayLike, ArrayLike]
) -> tuple[Line, tuple[Array, Array], jnp.dtype]:
    """The samples with weights, the penalties, and the dtype of the result."""
    _, (x, y) = as_values({"x": a, "y": b}, x=x, y=y)
    dtype = jnp.result_type(x, y)
    work = at_least_single(dtype)
    # Weights are not normalised here, so uniform ones need a mass: one on each side.
    uniform = lambda z: jnp.full(z.shape[0], 1 / z.shape[0], work)
    line = working_arrays(x, y, uniform(x) if a is None else a, uniform(y) if b is None else b)
    penalties = jnp.asarray(pair[0], work), jnp.asarray(pair[1], work)
    return Line(*line), penalties, dtype


def _reordered(line: Line, x_order: Array, y_order: Array) -> Line:
    a, b = line.a, line.b
    assert a is not None
    assert b is not None
    return Line(line.x[x_order], line.y[y_order], a[x_order], b[y_order])


def _dual(potentials: _Potentials, line: Line, penalties: tuple[Array, Array]) -> Array:
    """ρ_a ⟨a, 1 − e^{−f/ρ_a}⟩ + ρ_b ⟨b, 1 − e^{−g/ρ_b}⟩."""
    sides = zip((line.a, line.b), potentials, penalties, strict=True)
    return sum(rho * jnp.sum(_weighted(w, -jnp.expm1(-f / rho))) for w, f, rho in sides)  # pyright: ignore


def _weighted(weights: Array, values: Array) -> Array:
    """Products in which a weight of zero counts as zero, with its derivative if that is finite."""
    lost = (weights == 0) & ~jnp.isfinite(values)
    return weights * jnp.where(lost, 0, values)


def _frank_wolfe(
    line: Line,
    penalties: tuple[Array, Array],
    p: ArrayLike,
    max_iterations: int,
    tolerance: ArrayLike,
) -> tuple[_Potentials, Staircase, Array, Array]:
    """Potentials, the plan of the last linear problem, its gap, and the number of steps."""
    rho_a, rho_b = penalties
    assert line.a is not None
    assert line.b is not None
    log_a, log_b = jnp.log(line.a), jnp.log(line.b)  # −∞ without weight
    # ρ_a times this is the factor in the best shift, as in `optimal_shift`.
    share = rho_b / (rho_a + rho_b)

    def log_masses(potentials: _Potentials) -> tuple[Array, Array]:
        # The potential of a row of weight zero may be infinite.
        of_x = jnp.where(line.a == 0, -jnp.inf, log_a - potentials.f / rho_a)
        return of_x, jnp.where(line.b == 0, -jnp.inf, log_b - potentials.g / rho_b)

    def translated(potentials: _Potentials) -> _Potentials:
        """Potentials with the best constant, at which both marginals have the same mass."""
        log_x, log_y = log_masses(potentials)
        shift = rho_a * share * (jax.nn.logsumexp(log_x) - jax.nn.logsumexp(log_y))
        return _Potentials(potentials.f + shift, potentials.g - shift)

    def linear_problem(potentials: _Potentials) -> tuple[_Potentials, Staircase, Array]:
        """The best vertex for the dual's slope, its plan, and the predicted gain."""
        # The dual's slopes are a e^{−f/ρ_a} and b e^{−g/ρ_b}. The best feasible potentials for them
        # are those of balanced transport between the two.
        logs = log_masses(potentials)
        marginals = [jnp.exp(of_rows) for of_rows in logs]
        # In shares: all masses may be too small for the dtype.
        balanced = Line(line.x, line.y, *(jax.nn.softmax(of_rows) for of_rows in logs))
        path = staircase(balanced)
        vertex = _Potentials(*line_potentials(balanced, path, p))
        # A staircase has mass one. Both marginals have equal mass, as potentials are translated.
        path = path._replace(masses=path.masses * jnp.sum(marginals[0]))
        # ⟨slope, vertex − potentials⟩, which bounds the gain of a concave function.
        gain = sum(
            jnp.sum(_weighted(w, new - old))
            for w, new, old in zip(marginals, vertex, potentials, strict=True)
        )
        return vertex, path, jnp.asarray(gain)

    def step_length(potentials: _Potentials, direction: _Potentials) -> Array:
        """The step in [0, 1] that maximises the dual at its best constants."""

        def rises(length: Array) -> Array:
            moved = jax.tree.map(lambda z, d: z + length * d, potentials, direction)
            # At the best constant both marginals have the same mass, and the slope in the constant
            # is zero. The sign of the slope is then that of the direction's two means under the
            # normalised marginals.
            log_x, log_y = log_masses(moved)
            of_x = _weighted(jax.nn.softmax(log_x), direction.f)
            of_y = _weighted(jax.nn.softmax(log_y), direction.g)
            return jnp.sum(of_x) + jnp.sum(of_y) > 0

        def halve(_: Int[Array, ""], bracket: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = bracket
            # The dual is concave: its slope along the direction decreases, with at most one zero.
            middle = (low + high) / 2
            up = rises(middle)
            return jnp.where(up, middle, low), jnp.where(up, high, middle)

        one = jnp.ones((), rho_a.dtype)
        low, high = jax.lax.fori_loop(0, _BISECTIONS, halve, (0 * one, one))
        return jnp.where(rises(one), one, (low + high) / 2)

    def unfinished(carry: tuple) -> Array:
        potentials, _, _, gap, steps = carry
        enough = gap <= tolerance * jnp.abs(_dual(potentials, line, penalties))
        return ~enough & jnp.isfinite(gap) & (steps < max_iterations)

    def step(carry: tuple) -> tuple:
        potentials, vertex, _, _, steps = carry
        direction = jax.tree.map(jnp.subtract, vertex, potentials)
        length = step_length(potentials, direction)
        moved = jax.tree.map(lambda z, d: z + length * d, potentials, direction)
        moved = translated(moved)
        return moved, *linear_problem(moved), steps + 1

    # From zero, until the predicted gain, which bounds the distance to the maximum, is small.
    start = translated(_Potentials(jnp.zeros_like(line.x), jnp.zeros_like(line.y)))
    carry = start, *linear_problem(start), jnp.zeros((), jnp.int32)
    potentials, _, path, gap, steps = jax.lax.while_loop(unfinished, step, carry)
    return potentials, path, jnp.maximum(gap, 0), steps
