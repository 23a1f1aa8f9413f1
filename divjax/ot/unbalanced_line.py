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
        ValueError: as `transport_1d`, or if a penalty or the tolerance is not positive. If they are
            traced and out of range, the value is NaN.

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
    dual = _Dual(ordered, fixed_penalties, jax.lax.stop_gradient(p))
    found, path, gap, steps = _frank_wolfe(dual, max_iterations, tolerance)
    rows, columns = orders[0][path.rows], orders[1][path.columns]
    # In the original order of the rows, like the path.
    f = jnp.zeros_like(fixed.x).at[orders[0]].set(found.f)
    g = jnp.zeros_like(fixed.y).at[orders[1]].set(found.g)

    # The envelope theorem: potentials are fixed in the dual, and the plan in the change of costs.
    costs = distance_power(line.x[rows] - line.y[columns], p)
    moved = jnp.where(path.masses > 0, path.masses * (costs - jax.lax.stop_gradient(costs)), 0)
    value = _Dual(line, penalties, p).value(_Potentials(f, g)) + jnp.sum(moved)
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
    _, (x, y) = as_values({"x": a, "y": b}, ordered=True, x=x, y=y)
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


def _weighted(weights: Array, values: Array) -> Array:
    """Products in which a weight of zero counts as zero, with its derivative if that is finite."""
    lost = (weights == 0) & ~jnp.isfinite(values)
    return weights * jnp.where(lost, 0, values)


class _Dual(NamedTuple):
    """The dual D(f, g) = ρ_a ⟨a, 1 − e^{−f/ρ_a}⟩ + ρ_b ⟨b, 1 − e^{−g/ρ_b}⟩ of weighted samples."""

    line: Line
    penalties: tuple[Array, Array]
    p: ArrayLike

    def value(self, potentials: _Potentials) -> Array:
        """D(f, g)."""
        sides = zip((self.line.a, self.line.b), potentials, self.penalties, strict=True)
        return sum(rho * jnp.sum(_weighted(w, -jnp.expm1(-f / rho))) for w, f, rho in sides)  # pyright: ignore

    def log_slopes(self, potentials: _Potentials) -> tuple[Array, Array]:
        """The logarithms of D's slopes a e^{−f/ρ_a} and b e^{−g/ρ_b}, the marginals at (f, g)."""
        a, b = self.line.a, self.line.b
        assert a is not None
        assert b is not None
        # The potential of a row of weight zero may be infinite.
        of_f = jnp.where(a == 0, -jnp.inf, jnp.log(a) - potentials.f / self.penalties[0])
        of_g = jnp.where(b == 0, -jnp.inf, jnp.log(b) - potentials.g / self.penalties[1])
        return of_f, of_g

    def translated(self, potentials: _Potentials) -> _Potentials:
        """Potentials with the best constant, at which both marginals have the same mass."""
        of_f, of_g = self.log_slopes(potentials)
        rho_a, rho_b = self.penalties
        # ρ_a ρ_b/(ρ_a + ρ_b), in which no product overflows, as in `optimal_shift`.
        scale = rho_a * (rho_b / (rho_a + rho_b))
        shift = scale * (jax.nn.logsumexp(of_f) - jax.nn.logsumexp(of_g))
        return _Potentials(potentials.f + shift, potentials.g - shift)

    def linear_problem(self, potentials: _Potentials) -> tuple[_Potentials, Staircase, Array]:
        """The best vertex for the slopes at translated potentials, its plan, and the gain.

        The gain ⟨slopes, vertex − potentials⟩ is at least that of any other potentials, since D is
        concave.
        """
        # The vertex holds the potentials of balanced transport between the slopes, here in shares:
        # all masses may be too small for the dtype.
        logs = self.log_slopes(potentials)
        balanced = Line(self.line.x, self.line.y, *(jax.nn.softmax(of_side) for of_side in logs))
        path = staircase(balanced)
        vertex = _Potentials(*line_potentials(balanced, path, self.p))
        # A staircase has mass one. Both marginals have equal mass, as potentials are translated.
        slopes = [jnp.exp(of_side) for of_side in logs]
        path = path._replace(masses=path.masses * jnp.sum(slopes[0]))
        gain = sum(
            jnp.sum(_weighted(slope, new - old))
            for slope, new, old in zip(slopes, vertex, potentials, strict=True)
        )
        return vertex, path, jnp.asarray(gain)

    def step_length(self, potentials: _Potentials, direction: _Potentials) -> Array:
        """The step in [0, 1] that maximises D along a direction, at its best constants."""

        def rises(length: Array) -> Array:
            # At the best constant both marginals have the same mass, and the slope in the constant
            # is zero. The sign of the slope is then that of the direction's two means under the
            # normalised marginals.
            of_f, of_g = self.log_slopes(_moved(potentials, direction, length))
            change = jnp.sum(_weighted(jax.nn.softmax(of_f), direction.f))
            return change + jnp.sum(_weighted(jax.nn.softmax(of_g), direction.g)) > 0

        def halve(_: Int[Array, ""], bracket: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = bracket
            # D is concave: its slope along the direction decreases, with at most one zero.
            middle = (low + high) / 2
            up = rises(middle)
            return jnp.where(up, middle, low), jnp.where(up, high, middle)

        one = jnp.ones((), self.line.x.dtype)
        low, high = jax.lax.fori_loop(0, _BISECTIONS, halve, (0 * one, one))
        return jnp.where(rises(one), one, (low + high) / 2)


def _moved(potentials: _Potentials, direction: _Potentials, length: Array) -> _Potentials:
    """A point on the segment from potentials along a direction."""
    return jax.tree.map(lambda z, d: z + length * d, potentials, direction)


def _frank_wolfe(
    dual: _Dual, max_iterations: int, tolerance: ArrayLike
) -> tuple[_Potentials, Staircase, Array, Array]:
    """Potentials, the plan of the last linear problem, its gap, and the number of steps."""

    def unfinished(carry: tuple) -> Array:
        potentials, _, _, gap, steps = carry
        enough = gap <= tolerance * jnp.abs(dual.value(potentials))
        # A gap of NaN meets no tolerance, and further steps would not repair it.
        return ~enough & jnp.isfinite(gap) & (steps < max_iterations)

    def step(carry: tuple) -> tuple:
        potentials, vertex, _, _, steps = carry
        direction = jax.tree.map(jnp.subtract, vertex, potentials)
        length = dual.step_length(potentials, direction)
        moved = dual.translated(_moved(potentials, direction, length))
        return moved, *dual.linear_problem(moved), steps + 1

    # From zero, until the predicted gain, which bounds the distance to the maximum, is small.
    start = dual.translated(_Potentials(jnp.zeros_like(dual.line.x), jnp.zeros_like(dual.line.y)))
    carry = start, *dual.linear_problem(start), jnp.zeros((), jnp.int32)
    potentials, _, path, gap, steps = jax.lax.while_loop(unfinished, step, carry)
    # At the maximum rounding may make the gain slightly negative.
    return potentials, path, jnp.maximum(gap, 0), steps
