"""Two samples on the line coupled by their quantiles: the staircase, its cost and potentials.

The quantile functions of two samples are steps. Merged, their jumps divide (0, 1) into at most
n + m − 1 intervals, each with one row of x and one row of y: the optimal plan for every cost
|x − y|^p with p ≥ 1.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PyTree

from divjax.core.checks import check_scalar, check_shape
from divjax.core.numerics import at_least_single, nan_unless, safe_power, safe_sqrt
from divjax.core.samples import (
    Center,
    Numbers,
    as_numbers,
    as_weights,
    centered_samples,
    check_distinguishable,
)
from divjax.core.simplex import with_finite_padding
from divjax.ot.quantile_levels import has_certain_mass, merged_by_weights, merged_evenly

__all__ = [
    "Line",
    "Staircase",
    "as_values",
    "compiled_for_order",
    "distance_power",
    "given_weights",
    "is_infinite",
    "is_valid",
    "line_cost",
    "line_potentials",
    "rooted",
    "staircase",
    "working_arrays",
]

T = TypeVar("T")


class Line(NamedTuple):
    """Two samples on the line in one dtype, of at least single precision, and their weights."""

    x: Float[Array, " n"]
    y: Float[Array, " m"]
    a: Float[Array, " n"] | None
    b: Float[Array, " m"] | None


class Staircase(NamedTuple):
    """The row of x and the row of y in each interval of the merged quantile levels."""

    rows: Int[Array, " k"]
    columns: Int[Array, " k"]
    masses: Float[Array, " k"]


def as_values(
    weights: dict[str, Numbers] | None = None, *, ordered: bool = False, **samples: Numbers
) -> tuple[Center, list[Float[Array, " n"]]]:
    """Non-empty vectors of numbers as floating-point arrays, relative to a common centre.

    With `ordered` they must keep their order there, which two samples far apart may lose.
    """
    columns = {}
    for name, given in samples.items():
        # Exactly, as the centre is subtracted before numbers are rounded to JAX's dtype.
        vector = as_numbers(name, given, exact=True)
        check_shape(name, vector, "n")
        if 0 in vector.shape:
            raise ValueError(f"{name} must not be empty; got shape {vector.shape}.")
        # Centring takes matrices: a line is one feature.
        columns[name] = vector[:, None]
    center, *values = centered_samples(weights, **columns)
    for name, column in columns.items() if ordered else ():
        if isinstance(column, np.ndarray) and not isinstance(center.high, Tracer):
            apart = column - np.asarray(center.high, float) - np.asarray(center.low, float)
            check_distinguishable(name, apart, None if weights is None else weights[name])
    return center, [column[:, 0] for column in values]


def compiled_for_order(*static: str) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """Compile a `function(…, p)`: an array p is a leaf, a Python number selects its own program.

    Numbers are static so that 1, 2 and ∞ get closed forms. Pass an array to vary p.

    Args:
        *static: the names of further static arguments.
    """

    def decorate(function: Callable[..., T]) -> Callable[..., T]:
        # A Python number selects a closed form, hence a program of its own.
        of_number = jax.jit(function, static_argnames=("p", *static))
        of_array = jax.jit(function, static_argnames=static)

        @functools.wraps(function)
        def call(*args: PyTree, p: ArrayLike, **options: PyTree) -> T:
            compiled = of_number if isinstance(p, (int, float)) else of_array
            return compiled(*args, p=p, **options)

        return call

    return decorate


def is_infinite(p: ArrayLike) -> bool:
    """Whether the order is the Python number ∞."""
    return isinstance(p, (int, float)) and p == float("inf")


def given_weights(
    name: str, weights: Numbers | None, size: int, dtype: DTypeLike
) -> Float[Array, " n"] | None:
    """Weights, checked, in the samples' dtype."""
    if weights is None:
        return None
    return as_weights(name, weights, size, dtype)


def working_arrays(
    x: Float[Array, "n ..."], y: Float[Array, "m ..."], a: Numbers | None, b: Numbers | None
) -> tuple[Array, Array, Array | None, Array | None]:
    """Samples and weights in at least single precision, with finite numbers in padding."""
    work = at_least_single(jnp.result_type(x, y))
    a, b = given_weights("a", a, x.shape[0], work), given_weights("b", b, y.shape[0], work)
    return with_finite_padding(x.astype(work), a), with_finite_padding(y.astype(work), b), a, b


def staircase(line: Line) -> Staircase:
    """The optimal plan, with one entry per interval of quantile levels, in increasing order."""
    x, y, a, b = line
    x_order, y_order = jnp.argsort(x), jnp.argsort(y)
    if a is None and b is None:
        merged = merged_evenly(x.size, y.size, x.dtype)
    else:
        of_x, of_y = (None if w is None else w[o] for w, o in ((a, x_order), (b, y_order)))
        merged = merged_by_weights(of_x, of_y, x.size, y.size, x.dtype)
    return Staircase(x_order[merged.of_x], y_order[merged.of_y], merged.masses)


def distance_power(difference: Array, p: ArrayLike) -> Array:
    """|difference|^p with a zero derivative at zero, nan if the difference is nan."""
    if isinstance(p, (int, float)) and p == 2:
        return jnp.square(difference)
    # With its sign held fixed the derivative at zero is zero, and NaN propagates.
    distance = difference * jax.lax.stop_gradient(jnp.sign(difference))
    if isinstance(p, (int, float)) and p in (1, float("inf")):
        return distance
    return safe_power(distance, p)


def rooted(value: Float[Array, ""], p: ArrayLike) -> Float[Array, ""]:
    """W_p of W_p^p, with a zero derivative at zero."""
    if isinstance(p, (int, float)) and p in (1, float("inf")):
        return value
    if isinstance(p, (int, float)) and p == 2:
        return safe_sqrt(value)
    return safe_power(value, 1 / jnp.asarray(p, value.dtype))


def is_valid(line: Line, p: ArrayLike) -> Bool[Array, ""]:
    """Whether order and weights are in range, for traced values."""
    check_scalar(p=p)
    valid = jnp.asarray(p) >= 1
    # Only the Python number ∞ selects a formula of its own: an infinite array is out of range.
    if not is_infinite(p):
        valid &= jnp.isfinite(jnp.asarray(p))
    # Equal weights, which are None, are always valid.
    for weights in (line.a, line.b):
        if weights is not None:
            total = jnp.sum(weights)
            valid &= (jnp.min(weights) >= 0) & (total > 0) & jnp.isfinite(total)
    return valid


def line_cost(line: Line, p: ArrayLike) -> Float[Array, ""]:
    """W_p^p, or W_∞, nan if the order or a weight is out of range."""
    return nan_unless(is_valid(line, p), _cost_between_quantiles(line, p))


def _cost_between_quantiles(line: Line, p: ArrayLike) -> Float[Array, ""]:
    x, y, a, b = line
    if a is None and b is None and x.shape == y.shape:
        # Equal numbers of uniform weights need no merge: the k-th smallest values are paired.
        powers = distance_power(jnp.sort(x) - jnp.sort(y), p)
        return jnp.max(powers) if is_infinite(p) else jnp.mean(powers)
    rows, columns, masses = path = staircase(line)
    difference = x[rows] - y[columns]
    if is_infinite(p):
        uniform = lambda weights, z: jnp.ones_like(z) if weights is None else weights
        sides = (uniform(a, x), rows), (uniform(b, y), columns)
        certain = has_certain_mass(masses, *sides)
        return jnp.max(jnp.where(certain, distance_power(difference, p), 0))
    # Far rows of weight zero may have an infinite power, which times zero must be zero.
    lost = (masses == 0) & ~jnp.isfinite(distance_power(difference, p))
    powers = distance_power(jnp.where(lost, 0, difference), p)
    potentials = [jnp.where(jnp.isfinite(z), z, 0) for z in line_potentials(line, path, p)]
    # Rounding would give the entries of far rows of weight zero a mass in second derivatives.
    dead = jnp.zeros(masses.shape, bool)
    for weights, of_entries in ((a, rows), (b, columns)):
        dead |= False if weights is None else weights[of_entries] == 0
    masses = jnp.where(dead, 0, masses)
    shares = [None if w is None else w / jnp.sum(w) for w in (a, b)]
    return _total(masses, powers, shares, potentials)


@jax.custom_jvp
def _total(
    masses: Float[Array, " k"],
    powers: Float[Array, " k"],
    shares: list[Float[Array, " _"] | None],
    potentials: list[Float[Array, " _"]],
) -> Float[Array, ""]:
    """The cost of a path, whose derivatives in the shares of the weights are the potentials.

    Differentiated through the cumulative sums that give the masses, the cost of a far row of weight
    zero would round away the costs of all other rows.
    """
    return jnp.dot(masses, powers, precision="highest")


@_total.defjvp
def _(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    masses, _, _, potentials = primals
    _, of_powers, of_shares, _ = tangents
    change = jnp.dot(masses, of_powers, precision="highest")
    for slopes, of_share in zip(potentials, of_shares, strict=True):
        if of_share is not None:
            change = change + jnp.dot(of_share, slopes, precision="highest")
    return _total(*primals), change


def line_potentials(line: Line, path: Staircase, p: ArrayLike) -> tuple[Array, Array]:
    """Potentials with f ⊕ g ≤ c, equal to c on the path, and f = 0 where half the mass is reached.

    Those of rows of weight zero may overflow, and change no others.
    """
    rows, columns, _ = path
    # The path may lead through rows of weight zero from one that has weight to another.
    x, y = _with_padding_moved(line.x, line.a), _with_padding_moved(line.y, line.b)
    of_x, of_y = x[rows], y[columns]
    costs = distance_power(of_x - of_y, p)
    # From one entry of the path to the next, either the row or the column changes. Its potential
    # changes with the cost, so that f_i + g_j = c_ij on the whole path. Between equal rows the step
    # is zero, as rounding errors would accumulate over many of them.
    moved = (jnp.diff(of_x, prepend=of_x[:1]) != 0) | (jnp.diff(of_y, prepend=of_y[:1]) != 0)
    step = jnp.where(moved, jnp.diff(costs, prepend=costs[:1]), 0)
    row_moves = jnp.diff(rows, prepend=rows[:1]) != 0
    cumulated = jnp.cumsum(path.masses)
    middle = jnp.argmax(cumulated >= cumulated[-1] / 2)
    f = _summed_from(middle, jnp.where(row_moves, step, 0))
    g = costs[middle] + _summed_from(middle, jnp.where(row_moves, 0, step))
    # Along a row f is constant, so the order of writes does not matter.
    of_rows, of_columns = jnp.zeros_like(x).at[rows].set(f), jnp.zeros_like(y).at[columns].set(g)
    # The largest potential that is feasible at the entries of a row of weight zero.
    if line.a is not None:
        slack = distance_power(line.x[rows] - of_y, p) - g
        slack = jax.ops.segment_min(slack, rows, x.size)
        of_rows = jnp.where(line.a == 0, slack, of_rows)
    if line.b is not None:
        slack = distance_power(of_x - line.y[columns], p) - f
        slack = jax.ops.segment_min(slack, columns, y.size)
        of_columns = jnp.where(line.b == 0, slack, of_columns)
    return of_rows, of_columns


def _with_padding_moved(z: Float[Array, " n"], weights: Float[Array, " n"] | None) -> Array:
    """Positions, with each row of weight zero moved to the nearest row with weight before it.

    Before the first row with weight, it is moved to that one.
    """
    if weights is None:
        return z
    order = jnp.argsort(z)
    alive = weights[order] != 0
    before = jax.lax.cummax(jnp.where(alive, jnp.arange(z.size), -1))
    nearest = order[jnp.where(before < 0, jnp.argmax(alive), before)]
    return jnp.zeros_like(z).at[order].set(z[nearest])


def _summed_from(middle: Int[Array, ""], steps: Float[Array, " k"]) -> Float[Array, " k"]:
    """The sum of the steps between the middle entry and each other entry.

    A sum from one end would start at the outliers there, whose costs would round away all others.
    """
    after = jnp.arange(steps.size) > middle
    forwards = jnp.cumsum(jnp.where(after, steps, 0))
    # The step at an entry leads there from the one before it.
    backwards = jnp.append(jnp.where(after, 0, steps)[1:], 0)
    return forwards - jnp.cumsum(backwards[::-1])[::-1]
