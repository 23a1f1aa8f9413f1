"""From samples, weights and costs to the problem that is solved, and back.

Three properties of the given problem would harm accuracy. They are removed here, and their effect
is restored in closed form:

    offsets         costs h(x − y) are of centred points. For a quadratic h and exact marginals each
                    sample is centred by its own mean: with δ the difference of the means,
                    c(x, y) = h(x' − y') + α(x') + β(y'), and α and β go into the potentials.
    weight zero     rows of weight zero are padding. They are replaced by a copy of a row with
                    weight, and their potentials are evaluated at the rows themselves.
    infinite costs  a row with relaxed marginal and infinite costs only stays unmatched: it has
                    weight zero here, and a separate cost.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Bool, Float

from divjax.core.checks import (
    check_callable,
    check_count,
    check_positive_values,
    check_scalar,
)
from divjax.core.samples import Numbers, as_samples, as_weights, centered_samples
from divjax.ot import costs
from divjax.ot.entropic.formulation import Formulation, ShiftedCenter
from divjax.ot.entropic.problem import MatrixPairs, PointPairs, Problem
from divjax.ot.entropic.schedules import Relative, resolved_epsilon

__all__ = ["check_epsilon", "formulate", "formulate_self"]

# Pairs up to which the matrices of costs and of the plan are materialised: 128 MiB each in float32.
DENSE_PAIRS_CPU = 2**25
DENSE_PAIRS_ACCELERATOR = 2**28
# Pairs per block otherwise.
BLOCK_PAIRS_CPU = 2**20
BLOCK_PAIRS_ACCELERATOR = 2**26

# ρ, or (ρ_a, ρ_b), None for an exact marginal: as given, and as arrays.
_Penalty = ArrayLike | tuple[ArrayLike | None, ArrayLike | None] | None
_Pair = tuple[Array | None, Array | None]


def formulate(
    x: Numbers,
    y: Numbers,
    a: Numbers | None,
    b: Numbers | None,
    epsilon: ArrayLike | Relative,
    cost: Callable[..., Array] | Numbers,
    marginal_penalty: _Penalty,
    block_size: int | None,
) -> Formulation:
    """The problem of two samples or of a cost matrix, checked, in one dtype."""
    check_epsilon(epsilon)
    if hasattr(cost, "shape") or isinstance(cost, (list, tuple)):
        if x is not None or y is not None:
            raise ValueError("x and y must be None where cost is a matrix.")
        if not isinstance(cost, (list, tuple)) and (len(cost.shape) != 2 or 0 in cost.shape):
            raise ValueError(
                f"cost must be a non-empty matrix of shape (n, m); got shape {cost.shape}."
            )
        (cost,) = as_samples(cost=cost)
        penalties = _penalties(marginal_penalty, cost.dtype)
        # Only exact marginals need equal masses.
        n, m = cost.shape
        a, b, vanishing = _weights(a, b, n, m, cost.dtype, penalties == (None, None))
        return _of_matrix(cost, a, b, epsilon, penalties, block_size, vanishing)
    cost = costs.as_cost(cost)
    check_callable(cost=cost)
    # These give dtype and sizes; NumPy's double precision is still needed below.
    typed_x, typed_y = as_samples(x=x, y=y)
    dtype = typed_x.dtype
    penalties = _penalties(marginal_penalty, dtype)
    sizes = len(typed_x), len(typed_y)
    a, b, vanishing = _weights(a, b, *sizes, dtype, penalties == (None, None))
    # Read before the cost's leaves become arrays, which are traced under `jit`.
    quadratic = getattr(cost, "quadratic", False)
    cost = _typed_cost(cost, typed_x)
    if not getattr(cost, "translation_invariant", False):
        # Other costs depend on absolute positions.
        sides = typed_x, typed_y, a, b
        return _of_points(*sides, epsilon, cost, penalties, block_size, vanishing, None, None)
    # The samples share a centre, unless linear terms can absorb the difference.
    shift = None
    if penalties == (None, None) and quadratic:
        # This minimises the costs. The change is linear in x' and y': constant for exact marginals,
        # but not for relaxed ones.
        x, center_x = _centered_sample(x, a, dtype, vanishing[0])
        y, center_y = _centered_sample(y, b, dtype, vanishing[1])
        shift = center_x.difference(center_y)
    else:
        point, x, y = centered_samples({"x": a, "y": b}, x=x, y=y)
        means = _weighted_mean(x, a, vanishing[0]), _weighted_mean(y, b, vanishing[1])
        # The midpoint of the means. A translation of both samples changes no cost, so its gradient
        # is stopped.
        mean = jax.lax.stop_gradient((means[0] + means[1]) / 2)
        center_x = center_y = ShiftedCenter(point, mean)
        x, y = x - mean, y - mean
    sides, centers = (x, y, a, b), (center_x, center_y)
    return _of_points(*sides, epsilon, cost, penalties, block_size, vanishing, centers, shift)


def formulate_self(
    x: Float[Array, "n d"],
    a: Numbers | None,
    epsilon: ArrayLike | Relative,
    cost: Callable[..., Array],
    penalty: _Penalty,
    block_size: int | None,
    vanishing: bool | None = None,
) -> Formulation:
    """The problem of a sample with itself, both sides one array, with ε already checked.

    `vanishing` overrides the test for weights of zero.
    """
    cost = costs.as_cost(cost)
    check_callable(cost=cost)
    (typed,) = as_samples(x=x)
    penalties = _penalties(penalty, typed.dtype)
    a, _, seen = _weights(a, a, len(typed), len(typed), typed.dtype, False)
    vanishing = seen[0] if vanishing is None else vanishing
    cost, centers = _typed_cost(cost, typed), None
    if getattr(cost, "translation_invariant", False):
        # Both sides have the same mean: linear terms vanish for every cost and penalty.
        typed, center = _centered_sample(x, a, typed.dtype, vanishing)
        centers = center, center
    sides, both = (typed, typed, a, a), (vanishing, vanishing)
    return _of_points(*sides, epsilon, cost, penalties, block_size, both, centers, None)


def _centered_sample(
    x: Numbers, a: Array, dtype: DTypeLike, vanishing: bool
) -> tuple[Array, ShiftedCenter]:
    """A sample relative to its own weighted mean."""
    point, x = centered_samples({"x": a}, x=x)
    x = x.astype(dtype)
    # The mean is added back in closed form, so results do not depend on it and its gradient is
    # stopped.
    mean = jax.lax.stop_gradient(_weighted_mean(x, a, vanishing))
    return x - mean, ShiftedCenter(point, mean)


def check_epsilon(epsilon: ArrayLike | Relative) -> None:
    """Raise `ValueError` unless ε is `Relative` or one number, positive if concrete."""
    if isinstance(epsilon, Relative):
        return
    numeric = isinstance(epsilon, (int, float)) or hasattr(epsilon, "dtype")
    if numeric:
        numeric = not jnp.issubdtype(jnp.result_type(epsilon), jnp.complexfloating)
    if not numeric or jnp.ndim(epsilon) != 0:
        raise ValueError(f"epsilon must be a positive number; got {epsilon!r}.")
    check_positive_values(epsilon=epsilon)


def _of_matrix(
    matrix: Float[Array, "n m"],
    a: Array,
    b: Array,
    epsilon: ArrayLike | Relative,
    penalties: _Pair,
    block_size: int | None,
    vanishing: tuple[bool, bool],
) -> Formulation:
    """The problem of a given matrix of costs."""
    # Finding rows and columns without finite costs takes a pass over the matrix.
    a_matched, b_matched, infinite = a, b, False
    if isinstance(matrix, Tracer) or np.isinf(np.asarray(matrix)).any():
        infinite = True
        finite = matrix != jnp.inf  # NaN counts as a cost, so that it reaches the value
        a_matched = _matched(a, jnp.any(finite & (b > 0), axis=1), penalties[0])
        b_matched = _matched(b, jnp.any(finite & (a > 0)[:, None], axis=0), penalties[1])
    # Rows and columns without weight are replaced by the heaviest: all of them in the matrix that
    # is solved, only the non-finite ones in the matrices for potentials.
    replaced = vanishing[0] or a_matched is not a, vanishing[1] or b_matched is not b
    row_of, column_of = _representatives(replaced, a_matched, b_matched)
    solved, rows, columns = matrix, matrix, matrix.T
    if column_of is not None:
        rows = jnp.where(b_matched > 0, matrix, matrix[:, column_of, None])
        solved = rows
    if row_of is not None:
        columns = jnp.where(a_matched > 0, matrix.T, matrix[row_of][:, None])
        solved = jnp.where((a_matched > 0)[:, None], solved, solved[row_of])
    # Potentials are evaluated at the original rows if these are finite.
    rows = _with_finite(rows, a, row_of, infinite)
    columns = _with_finite(columns, b, column_of, infinite)
    sides = a_matched, b_matched, epsilon, penalties, block_size
    problem = _problem(MatrixPairs(solved), *sides, infinite)
    return _formulation(problem, a, b, rows, columns, None, None, None, replaced)


@jax.jit
def _slope_and_value(
    cost: costs.SqEuclidean, shift: Float[Array, " d"]
) -> tuple[Float[Array, " d"], Float[Array, ""]]:
    """∇h and h at the shift, constants to differentiation."""
    # One program: operation by operation, the derivative takes longer than the iterations.
    value, slope = jax.value_and_grad(cost.h)(shift)
    return jax.lax.stop_gradient((slope, value))


def _of_points(
    x: Float[Array, "n d"],
    y: Float[Array, "m d"],
    a: Array,
    b: Array,
    epsilon: ArrayLike | Relative,
    cost: Callable[..., Array],
    penalties: _Pair,
    block_size: int | None,
    vanishing: tuple[bool, bool],
    centers: tuple[ShiftedCenter, ShiftedCenter] | None,
    shift: Array | None,
) -> Formulation:
    """The problem of two centred samples, where x and y may be the same array.

    `shift` is the difference of the centres if each sample has its own.
    """
    # Both sides of a self problem remain one array.
    own = x is y and a is b
    slope = offset = None
    if shift is not None:
        # With stopped centres δ is constant, and c(x, y) − h(x' − y') is linear in x' and y'.
        slope, offset = _slope_and_value(cost, shift)
    # Costs of the library are finite. A function may forbid pairs, which requires a pass to detect.
    a_matched, b_matched = a, b
    if not hasattr(cost, "matrix") and penalties != (None, None):
        a_matched, b_matched = _matched_by(cost, x, y, a, b, penalties, block_size)
    replaced = vanishing[0] or a_matched is not a, vanishing[1] or b_matched is not b
    row_of, column_of = _representatives(replaced, a_matched, b_matched)
    # A row of weight zero may be NaN, which multiplication by zero would not remove from sums.
    solved_x = x if row_of is None else jnp.where((a_matched > 0)[:, None], x, x[row_of])
    solved_y = y if column_of is None else jnp.where((b_matched > 0)[:, None], y, y[column_of])
    pairs = PointPairs(solved_x, solved_x if own else solved_y, cost)
    sides = a_matched, b_matched, epsilon, penalties, block_size
    problem = _problem(pairs, *sides, not hasattr(cost, "matrix"))
    rows = _with_finite(x, a, row_of)
    columns = _with_finite(y, b, column_of)
    return _formulation(problem, a, b, rows, columns, centers, slope, offset, replaced)


def _problem(
    pairs: PointPairs | MatrixPairs,
    a: Array,
    b: Array,
    epsilon: ArrayLike | Relative,
    penalties: _Pair,
    block_size: int | None,
    infinite: bool,
) -> Problem:
    """The problem, with ε from the costs if it is relative to them."""
    rows = _block_rows(*pairs.shape, block_size)
    # A relative ε is computed from the costs of the same problem, with 1 as a placeholder.
    one = jnp.ones((), a.dtype)
    if isinstance(epsilon, Relative):
        epsilon = resolved_epsilon(epsilon, Problem(pairs, a, b, one, penalties, rows))
    return Problem(pairs, a, b, jnp.asarray(epsilon, a.dtype), penalties, rows, infinite)


def _formulation(
    problem: Problem,
    a: Array,
    b: Array,
    rows: Array,
    columns: Array,
    centers: tuple[ShiftedCenter, ShiftedCenter] | None,
    slope: Array | None,
    offset: Array | None,
    replaced: tuple[bool, bool],
) -> Formulation:
    """Adds the cost of unmatched mass, and whether traced numbers are in range."""
    unmatched = jnp.zeros((), a.dtype)
    sides = (a, problem.a, problem.penalties[0]), (b, problem.b, problem.penalties[1])
    for weights, matched, penalty in sides:
        if penalty is not None and matched is not weights:
            # A row that sends no mass costs ρ KL(0‖a_i) = ρ a_i.
            mass = jnp.sum(weights - matched)
            # An infinite penalty on zero mass is zero.
            unmatched += jnp.where((mass == 0) & jnp.isinf(penalty), 0, penalty) * mass
    if problem.a is not a or problem.b is not b:
        # ε KL(P‖a⊗b) includes the mass of a⊗b that is missing from the smaller problem.
        products = jnp.sum(a) * jnp.sum(b) - jnp.sum(problem.a) * jnp.sum(problem.b)
        unmatched += problem.epsilon * products
    # Traced arguments cannot be validated eagerly: the solver's result is NaN if they are invalid.
    valid = (problem.epsilon > 0) & jnp.all(a >= 0) & jnp.all(b >= 0)
    valid &= (jnp.sum(a) > 0) & (jnp.sum(b) > 0)
    for penalty in problem.penalties:
        valid = valid if penalty is None else valid & (jnp.asarray(penalty) > 0)
    terms = centers, slope, offset, unmatched, valid
    return Formulation(problem, a, b, rows, columns, *terms, replaced)


def _may_vanish(weights: Array | None) -> bool:
    """Whether a weight may be zero: if one is, or if they are traced. Uniform ones are positive."""
    if weights is None:
        return False
    return isinstance(weights, Tracer) or not bool((np.asarray(weights) > 0).all())


def _representatives(
    replaced: tuple[bool, bool], a: Array, b: Array
) -> tuple[Array | None, Array | None]:
    """The indices of the heaviest row and column, which replace padding, None without padding."""
    row = jnp.argmax(a) if replaced[0] else None
    column = jnp.argmax(b) if replaced[1] else None
    return row, column


def _with_finite(rows: Array, weights: Array, heaviest: Array | None, infinite: bool = False):
    """The rows, with non-finite ones of weight zero replaced, except infinite costs if allowed."""
    if heaviest is None:
        return rows
    sound = ~jnp.isnan(rows) if infinite else jnp.isfinite(rows)
    # A row with weight is kept unconditionally, so that its NaN reaches the value.
    keep = (weights > 0) | jnp.all(sound, axis=1)
    return jnp.where(keep[:, None], rows, rows[heaviest])


def _weighted_mean(x: Float[Array, "n d"], weights: Array, vanishing: bool) -> Float[Array, " d"]:
    """The weighted mean, ignoring rows of weight zero."""
    total = jnp.sum(weights)
    share = weights / jnp.where(total > 0, total, 1)
    if vanishing:
        # A row of weight zero may be NaN, and so would be its product with zero.
        x = jnp.where((weights > 0)[:, None], x, 0)
    return jnp.sum(share[:, None] * x, axis=0)


def _matched(weights: Array, connected: Bool[Array, " n"], penalty: Array | None) -> Array:
    """Weights with zeros for rows that have no finite cost and a relaxed marginal."""
    return weights if penalty is None else jnp.where(connected, weights, 0)


def _matched_by(
    cost: Callable[..., Array],
    x: Array,
    y: Array,
    a: Array,
    b: Array,
    penalties: _Pair,
    block_size: int | None,
) -> tuple[Array, Array]:
    """`_matched` of both sides for a function of two points."""
    rows = _block_rows(x.shape[0], y.shape[0], block_size)
    one = jnp.ones((), a.dtype)
    # A pass over blocks of costs that only tests for infinity: ε is not used, and gradients are
    # stopped.
    pairs = jax.lax.stop_gradient(PointPairs(x, y, cost))
    problem = Problem(pairs, a, b, one, penalties, rows)

    def connected(problem: Problem) -> Array:
        return problem.map_rows(lambda c: jnp.any((c != jnp.inf) & (problem.b > 0), axis=1))

    a_matched = _matched(a, connected(problem), penalties[0])
    return a_matched, _matched(b, connected(problem.transposed), penalties[1])


def _typed_cost(cost: Callable[..., Array], x: Float[Array, "n d"]) -> Callable[..., Array]:
    """A cost as a pytree whose floating-point leaves have the points' dtype."""

    def typed(leaf: ArrayLike) -> ArrayLike:
        floating = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
        return jnp.asarray(leaf, x.dtype) if floating else leaf

    return jax.tree.map(typed, costs.checked_cost(cost, x[0]))


def _penalties(marginal_penalty: _Penalty, dtype: DTypeLike) -> _Pair:
    """(ρ_a, ρ_b), None for an exact marginal."""
    pair = marginal_penalty if isinstance(marginal_penalty, tuple) else (marginal_penalty,) * 2
    if len(pair) != 2:
        raise ValueError(f"marginal_penalty must be one or two numbers; got {len(pair)}.")
    for penalty in pair:
        if penalty is not None:
            check_scalar(marginal_penalty=penalty)
            check_positive_values(marginal_penalty=penalty)
    # A traced ρ may be infinite too, which cannot be tested at trace time: it stays a number.
    exact = lambda rho: rho is None or (not isinstance(rho, Tracer) and bool(np.isinf(rho)))
    return tuple(None if exact(rho) else jnp.asarray(rho, dtype) for rho in pair)  # pyright: ignore


def _weights(
    a: Numbers | None, b: Numbers | None, n: int, m: int, dtype: DTypeLike, balanced: bool
) -> tuple[Array, Array, tuple[bool, bool]]:
    """Both weights, by default uniform with the other's mass, and whether any may be zero."""
    a = None if a is None else as_weights("a", a, n, dtype)
    b = None if b is None else as_weights("b", b, m, dtype)
    concrete = [w for w in (a, b) if w is not None and not isinstance(w, Tracer)]
    if balanced and len(concrete) == 2:
        # Summed in double precision, as sums of many float32 weights differ by their rounding.
        sums = [float(np.asarray(w, np.float64).sum()) for w in concrete]
        rounding = float(jnp.finfo(dtype).eps)
        if abs(sums[0] - sums[1]) > max(1e-4, 4 * rounding) * max(sums):
            raise ValueError(f"a and b must have the same sum; got {sums[0]} and {sums[1]}.")
    # Uniform weights take the mass of the given side, so that a balanced problem has a plan.
    given = a if a is not None else b
    mass = jnp.ones((), dtype) if given is None else jnp.sum(given)
    uniform = lambda size: jnp.full(size, mass / size, dtype)
    vanishing = _may_vanish(a), _may_vanish(b)
    return uniform(n) if a is None else a, uniform(m) if b is None else b, vanishing


def _block_rows(n: int, m: int, block_size: int | None) -> int:
    """Rows per block, all of them if they fit."""
    if block_size is not None:
        check_count(1, block_size=block_size)
        return block_size
    cpu = jax.default_backend() == "cpu"
    if n * m <= (DENSE_PAIRS_CPU if cpu else DENSE_PAIRS_ACCELERATOR):
        return max(n, m)
    block = BLOCK_PAIRS_CPU if cpu else BLOCK_PAIRS_ACCELERATOR
    return max(1, block // max(n, m))
