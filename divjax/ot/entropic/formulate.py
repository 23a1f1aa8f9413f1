"""From samples, weights and costs to the problem that is solved, and back.

Three properties of the given problem would harm accuracy. They are removed here, and their effect
is restored in closed form:

    offsets         costs h(x − y) are of centred points. For a quadratic h and exact marginals each
                    sample is centred by its own mean: with δ the difference of the means,
                    c(x, y) = h(x' − y') + α(x') + β(y'), and α and β go into the potentials.
    weight zero     rows of weight zero are padding. They are replaced by a copy of a row with
                    weight, and their potentials are evaluated at the rows themselves.
    infinite costs  a row whose costs are all infinite stays unmatched if its marginal is relaxed:
                    here it has weight zero, and its cost is added separately.
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
from divjax.core.pytrees import pytree, static
from divjax.core.samples import (
    Center,
    Numbers,
    as_samples,
    as_weights,
    centered_samples,
    check_distinguishable,
)
from divjax.core.simplex import largest_mass_difference
from divjax.ot import given_costs
from divjax.ot.entropic.formulation import Formulation, ShiftedCenter
from divjax.ot.entropic.problem import MatrixPairs, PointPairs, Problem
from divjax.ot.entropic.schedules import Relative, resolved_epsilon
from divjax.ot.protocols import DisplacementCost, MatrixCost

__all__ = [
    "CheckedPoints",
    "center_alone",
    "check_points",
    "check_self",
    "formulate",
    "formulate_points",
]

# Pairs up to which the matrices of costs and of the plan are materialised: in float32 128 MiB each
# on a CPU, 1 GiB on an accelerator.
DENSE_PAIRS_CPU = 2**25
DENSE_PAIRS_ACCELERATOR = 2**28
# Pairs per block otherwise.
BLOCK_PAIRS_CPU = 2**20
BLOCK_PAIRS_ACCELERATOR = 2**26

# ρ, or (ρ_a, ρ_b), None for an exact marginal: as given, and as arrays.
_Penalty = ArrayLike | tuple[ArrayLike | None, ArrayLike | None] | None
_Pair = tuple[Array | None, Array | None]


@pytree
class CheckedPoints:
    """A problem's checked arguments in one dtype, for two samples or one with itself.

    Attributes:
        samples: x and y, or one sample, less `points`.
        weights: their weights, None for uniform ones.
        points: subtracted in NumPy's precision: one per sample for a quadratic cost and exact
            marginals, otherwise one for both, or None if costs depend on positions.
        epsilon: ε, possibly relative to the costs.
        cost: a pytree with leaves of the dtype.
        penalties: ρ of both marginals.
        block_size: rows of costs in memory, or None.
        vanishing: whether weights of x, and of y, may be zero.
    """

    samples: tuple[Array, ...]
    weights: tuple[Array | None, ...]
    points: tuple[Center, ...] | None
    epsilon: ArrayLike | Relative
    cost: Callable[..., Array]
    penalties: _Pair
    block_size: int | None = static()
    vanishing: tuple[bool, bool] = static()


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
    if not (hasattr(cost, "shape") or isinstance(cost, (list, tuple))):
        return formulate_points(
            check_points(x, y, a, b, epsilon, cost, marginal_penalty, block_size)
        )
    check_epsilon(epsilon)
    if x is not None or y is not None:
        raise ValueError("x and y must be None if cost is a matrix; got samples.")
    # A list has no shape before it is converted.
    if not isinstance(cost, (list, tuple)) and (len(cost.shape) != 2 or 0 in cost.shape):
        raise ValueError(
            f"cost must be a non-empty matrix of shape (n, m); got shape {cost.shape}."
        )
    (cost,) = as_samples(cost=cost)
    penalties = _penalties(marginal_penalty, cost.dtype)
    n, m = cost.shape
    a, b, vanishing = _weights(a, b, n, m, cost.dtype, penalties)
    a, b = _with_uniform((a, b), (n, m), cost.dtype)
    return _of_matrix(cost, a, b, epsilon, penalties, block_size, vanishing)


def check_points(
    x: Numbers,
    y: Numbers,
    a: Numbers | None,
    b: Numbers | None,
    epsilon: ArrayLike | Relative,
    cost: Callable[..., Array],
    marginal_penalty: _Penalty,
    block_size: int | None,
) -> CheckedPoints:
    """The arguments of a problem of two samples, checked. Only here is NumPy's precision known."""
    check_epsilon(epsilon)
    cost = given_costs.as_cost(cost)
    check_callable(cost=cost)
    typed_x, typed_y = as_samples(x=x, y=y)
    dtype = typed_x.dtype
    penalties = _penalties(marginal_penalty, dtype)
    a, b, vanishing = _weights(a, b, len(typed_x), len(typed_y), dtype, penalties)
    # Read before the cost's leaves become arrays, which are traced under `jit`.
    quadratic = given_costs.is_quadratic(cost)
    cost = _typed_cost(cost, typed_x)
    if not isinstance(cost, DisplacementCost):
        # Other costs depend on absolute positions.
        check_distinguishable("x", x, a)
        check_distinguishable("y", y, b)
        x, y, points = typed_x, typed_y, None
    elif penalties == (None, None) and quadratic:
        # Centring each sample by itself minimises the costs. The change is linear in x' and y':
        # constant for exact marginals, but not for relaxed ones.
        (point_x, x), (point_y, y) = _centered(x, a, dtype), _centered(y, b, dtype)
        points = point_x, point_y
    else:
        point, x, y = centered_samples({"x": a, "y": b}, x=x, y=y)
        points = (point,)
    numbers = (x, y), (a, b), points, epsilon, cost, penalties
    return CheckedPoints(*numbers, block_size=block_size, vanishing=vanishing)


def check_self(
    x: Numbers,
    a: Numbers | None,
    epsilon: ArrayLike | Relative,
    cost: Callable[..., Array],
    block_size: int | None,
) -> CheckedPoints:
    """The arguments of a balanced problem of a sample with itself, checked."""
    check_epsilon(epsilon)
    cost = given_costs.as_cost(cost)
    check_callable(cost=cost)
    (typed,) = as_samples(x=x)
    a, _, (vanishing, _) = _weights(a, None, len(typed), len(typed), typed.dtype, (None, None))
    cost = _typed_cost(cost, typed)
    points, sample = center_alone(x, a, cost, typed.dtype)
    numbers = (sample,), (a,), points, epsilon, cost, (None, None)
    return CheckedPoints(*numbers, block_size=block_size, vanishing=(vanishing, vanishing))


def center_alone(
    x: Numbers, a: Array | None, cost: Callable[..., Array], dtype: DTypeLike
) -> tuple[tuple[Center] | None, Array]:
    """The point subtracted from a sample, None if costs depend on positions, and the result."""
    if not isinstance(cost, DisplacementCost):
        check_distinguishable("x", x, a)
        (typed,) = as_samples(x=x)
        return None, typed.astype(dtype)
    # Both sides have the same mean: linear terms vanish for every cost and penalty.
    point, x = _centered(x, a, dtype)
    return (point,), x


def _centered(x: Numbers, a: Array | None, dtype: DTypeLike) -> tuple[Center, Array]:
    """A point to subtract in NumPy's precision, and the sample less that point."""
    point, x = centered_samples({"x": a}, x=x)
    return point, x if x.dtype == dtype else x.astype(dtype)


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
def formulate_points(given: CheckedPoints) -> Formulation:
    """The problem of two samples, or of one with itself.

    Compiled as a whole: separate operations take longer than many a problem's iterations.
    """
    # Both sides of a self problem remain one array.
    own = len(given.samples) == 1
    x, y = given.samples * 2 if own else given.samples
    weights = given.weights * 2 if own else given.weights
    a, b = _with_uniform(weights, (len(x), len(y)), x.dtype)
    cost, penalties, vanishing = given.cost, given.penalties, given.vanishing
    x, y, centers = _centered_by_means(x, y, a, b, given.points, vanishing, own)
    slope = offset = None
    if centers is not None and given.points is not None and len(given.points) == 2:
        # With stopped centres δ is constant, and c(x, y) − h(x' − y') is linear in x' and y'. The
        # cost's own numbers have derivatives.
        shift = jax.lax.stop_gradient(centers[0].difference(centers[1]))
        offset, slope = jax.value_and_grad(cost.h)(shift)
    # Costs of the library are finite. A function may forbid pairs, which requires a pass to detect.
    a_matched, b_matched = a, b
    if not isinstance(cost, MatrixCost) and penalties != (None, None):
        a_matched, b_matched = _matched_by(cost, x, y, a, b, penalties, given.block_size)
    replaced = vanishing[0] or a_matched is not a, vanishing[1] or b_matched is not b
    row_of, column_of = _representatives(replaced, a_matched, b_matched)
    # A row of weight zero may be NaN, which multiplication by zero would not remove from sums.
    solved_x = x if row_of is None else jnp.where((a_matched > 0)[:, None], x, x[row_of])
    solved_y = y if column_of is None else jnp.where((b_matched > 0)[:, None], y, y[column_of])
    pairs = PointPairs(solved_x, solved_x if own else solved_y, cost)
    sides = a_matched, b_matched, given.epsilon, penalties, given.block_size
    problem = _problem(pairs, *sides, not isinstance(cost, MatrixCost))
    rows = _with_finite(x, a, row_of)
    columns = _with_finite(y, b, column_of)
    return _formulation(problem, a, b, rows, columns, centers, slope, offset, replaced)


def _centered_by_means(
    x: Float[Array, "n d"],
    y: Float[Array, "m d"],
    a: Array,
    b: Array,
    points: tuple[Center, ...] | None,
    vanishing: tuple[bool, bool],
    own: bool,
) -> tuple[Array, Array, tuple[ShiftedCenter, ShiftedCenter] | None]:
    """The samples relative to their means, or to the midpoint of these, and the centres.

    The centres do not affect results: their effect is zero, or is added back in closed form. Their
    gradient is therefore stopped.
    """
    # Costs that depend on positions allow no shift.
    if points is None:
        return x, y, None
    mean_x = jax.lax.stop_gradient(_weighted_mean(x, a, vanishing[0]))
    if own:
        center = ShiftedCenter(points[0], mean_x)
        x = x - mean_x
        return x, x, (center, center)
    mean_y = jax.lax.stop_gradient(_weighted_mean(y, b, vanishing[1]))
    # About one centre the displacements must not change: both samples move by one point.
    if len(points) == 1:
        middle = (mean_x + mean_y) / 2
        center = ShiftedCenter(points[0], middle)
        return x - middle, y - middle, (center, center)
    centers = ShiftedCenter(points[0], mean_x), ShiftedCenter(points[1], mean_y)
    return x - mean_x, y - mean_y, centers


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
    """The rows, with those of weight zero replaced if NaN, or infinite unless that is allowed."""
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
    """The weights, zero for rows without a finite cost if their marginal is relaxed."""
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

    return jax.tree.map(typed, given_costs.checked_cost(cost, x))


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
    a: Numbers | None, b: Numbers | None, n: int, m: int, dtype: DTypeLike, penalties: _Pair
) -> tuple[Array | None, Array | None, tuple[bool, bool]]:
    """The given weights, checked, and whether any may be zero."""
    a = None if a is None else as_weights("a", a, n, dtype)
    b = None if b is None else as_weights("b", b, m, dtype)
    concrete = [w for w in (a, b) if w is not None and not isinstance(w, Tracer)]
    # Only exact marginals need equal masses.
    if penalties == (None, None) and len(concrete) == 2:
        # Summed in double precision, as sums of many float32 weights differ by their rounding.
        sums = [float(np.asarray(w, np.float64).sum()) for w in concrete]
        if abs(sums[0] - sums[1]) > largest_mass_difference(dtype) * max(sums):
            raise ValueError(f"a and b must have the same sum; got {sums[0]} and {sums[1]}.")
    return a, b, (_may_vanish(a), _may_vanish(b))


def _with_uniform(
    weights: tuple[Array | None, ...], sizes: tuple[int, ...], dtype: DTypeLike
) -> tuple[Array, Array]:
    """Both weights, by default uniform with the other's mass, so that a balanced plan exists."""
    a, b = weights
    given = a if a is not None else b
    mass = jnp.ones((), dtype) if given is None else jnp.sum(given)
    n, m = sizes
    uniform = lambda size: jnp.full(size, mass / size, dtype)
    return uniform(n) if a is None else a, uniform(m) if b is None else b


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
