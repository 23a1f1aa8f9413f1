"""Shared bins of two samples, and the points or the weight in each.

Numbers in NumPy's float64 are compared with edges in two parts, a rounded one and its remainder.
"""

import functools
import math
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from divjax.core.arguments import Leaf, as_optional_leaf
from divjax.core.checks import check_count, check_matrix
from divjax.core.numerics import at_least_single, nan_unless
from divjax.core.rounding import is_rounded_away
from divjax.core.samples import (
    Center,
    Numbers,
    Unrounded,
    as_numbers,
    centered_samples,
    dtype_in_jax,
    loses_digits,
    two_parts,
)

__all__ = [
    "Parts",
    "as_bounds",
    "as_columns",
    "as_mass",
    "check_bins",
    "counts",
    "edges",
    "edges_of_columns",
    "in_parts",
    "mass_in_bins",
]

# The largest number of rows whose weights are summed before they are added to others'.
_BLOCK_ROWS = 512

# A number in the dtype of the samples, and its rounding error.
_TwoParts: TypeAlias = tuple[Array, Array]


def as_columns(**samples: Numbers) -> dict[str, Unrounded]:
    """Samples by their names, a vector as a matrix of one column."""
    numbers = {name: as_numbers(name, sample, exact=True) for name, sample in samples.items()}
    return {
        name: sample[:, None] if sample.ndim == 1 else sample for name, sample in numbers.items()
    }


def edges(
    x: Float[Numbers, " n *d"],
    y: Float[Numbers, " m *d"],
    *,
    num_bins: int = 20,
    spacing: str = "quantile",
) -> Float[Array, "*d edges"]:
    """The edges of bins that hold both samples, for each column.

    Args:
        x: samples, a vector or a matrix.
        y: samples with the same number of columns.
        num_bins: the number of bins, a static integer.
        spacing: "quantile" for bins of equally many rows of both samples pooled, which one far
            value does not move. Ties make some of them empty, which is harmless without smoothing.
            "uniform" for bins of equal width between the extremes, of which one far value leaves a
            single bin for all others.

    Returns:
        Ascending edges "bins+1" of one column, "d edges" of several. They are NaN for a column
        with a value that is not finite, or so far from zero, in NumPy's float64, that the edges'
        dtype cannot resolve its width (`divergence` can).

    Raises:
        ValueError: if shapes do not fit, num_bins is not a positive integer, or the spacing is
            neither.

    Example:
        >>> import jax.numpy as jnp
        >>> edges(jnp.array([0.0, 1.0]), jnp.array([4.0]), num_bins=2).tolist()
        [0.0, 1.0, 4.0]
    """
    check_bins(num_bins, spacing)
    columns = as_columns(x=x, y=y)
    center, *samples = centered_samples(**columns)
    options = {"num_bins": num_bins, "spacing": spacing, "is_vector": np.ndim(x) == 1}
    return _joint_edges(center, samples, _extremes(**columns), **options)


def _extremes(x: Unrounded, y: Unrounded) -> tuple[_TwoParts, _TwoParts] | None:
    """The extremes of each column with their rounding errors, None if no number is rounded."""
    if not loses_digits(x, y):
        return None
    dtype = jnp.result_type(dtype_in_jax(x), dtype_in_jax(y))
    known = [columns for columns in (x, y) if isinstance(columns, np.ndarray)]
    # Only NumPy's numbers have digits that the edges' dtype lacks.
    least = functools.reduce(np.minimum, [columns.min(axis=0) for columns in known])
    greatest = functools.reduce(np.maximum, [columns.max(axis=0) for columns in known])
    return two_parts(least, dtype), two_parts(greatest, dtype)


def check_bins(num_bins: int, spacing: str) -> None:
    """Raise `ValueError` for a number of bins that is not positive, or an unknown spacing."""
    check_count(1, num_bins=num_bins)
    if spacing not in ("uniform", "quantile"):
        raise ValueError(f'spacing must be "uniform" or "quantile"; got {spacing!r}.')


@functools.partial(jax.jit, static_argnames=("num_bins", "spacing", "is_vector"))
def _joint_edges(
    center: Center,
    samples: list[Float[Array, "_ d"]],
    extremes: tuple[_TwoParts, _TwoParts] | None,
    *,
    num_bins: int,
    spacing: str,
    is_vector: bool,
) -> Float[Array, "*d edges"]:
    """`edges` after its checks."""
    columns = jnp.concatenate(samples)
    centered = edges_of_columns(columns, jnp.ones(columns.shape[0], bool), num_bins, spacing)
    result = center.add(centered.T).T
    # Columns whose centre is so large that the edges' dtype cannot resolve their width.
    width = centered[:, -1:] - centered[:, :1]
    lost = is_rounded_away(jnp.abs(result - centered), width).any(axis=1)
    result = nan_unless(~lost[:, None] | (width == 0), result)
    # NumPy's extremes may lie beyond their rounding. The bins then begin or end one number farther.
    for side, (high, low), outwards in zip((0, -1), extremes or (), (-1, 1), strict=False):
        beyond = (outwards * (high - result[:, side]) > 0) | (
            (high == result[:, side]) & (outwards * low > 0)
        )
        farther = jnp.nextafter(result[:, side], jnp.asarray(outwards * jnp.inf, result.dtype))
        result = result.at[:, side].set(jnp.where(beyond, farther, result[:, side]))
    return result[0] if is_vector else result


def edges_of_columns(
    columns: Float[Array, "n d"], used: Bool[Array, " n"], num_bins: int, spacing: str
) -> Float[Array, "d edges"]:
    """The edges of bins that hold the used rows."""
    finite = jnp.all(jnp.isfinite(columns) | ~used[:, None], axis=0)
    # NaN marks unused rows. NaN in other rows is detected by `finite`.
    columns = jnp.where(used[:, None], columns, jnp.nan)
    if spacing == "uniform":
        ends = jnp.nanmin(columns, axis=0), jnp.nanmax(columns, axis=0)
        result = jnp.linspace(*ends, num_bins + 1, axis=-1)
    else:
        result = _quantiles(columns, jnp.sum(used), num_bins).T
    # Interpolation between equal values may decrease by a rounding.
    return nan_unless(finite[:, None], jax.lax.cummax(result, axis=1))


def _quantiles(
    columns: Float[Array, "n d"], num_rows: Int[Array, ""], num_bins: int
) -> Float[Array, "edges d"]:
    """The quantiles k/bins of the columns' first `num_rows` values in order, NaN last."""
    ordered = jnp.sort(columns, axis=0)
    # k (rows − 1)/bins in integers: a quantile that is a row's value is that value exactly. With
    # rows − 1 = whole · bins + rest no product leaves the range of JAX's integers.
    whole, rest = (num_rows - 1) // num_bins, (num_rows - 1) % num_bins
    k = jnp.arange(num_bins + 1, dtype=rest.dtype)
    below = k * whole + (k * rest) // num_bins
    share = ((k * rest) % num_bins).astype(columns.dtype)[:, None] / num_bins
    low, high = ordered[below], ordered[jnp.minimum(below + 1, columns.shape[0] - 1)]
    # The row above the last one may be NaN.
    return jnp.where(share > 0, low + share * (high - low), low)


def counts(
    x: Float[Numbers, " n *d"],
    edges: Float[Numbers, "*d edges"],
    weights: Float[Numbers, " n"] | None = None,
) -> Float[Array, "*d bins"]:
    """The number of points of each column in each bin, or their weight.

    Bins hold their left edge, the last also its right one. Points outside of all bins are not
    counted, and NaN in a column makes its counts NaN, unless its weight is zero. Points are counted
    in integers, and weights summed by blocks of rows, so that large counts do not saturate.

    Args:
        x: samples, a vector or a matrix.
        edges: ascending edges, "bins+1" for a vector and "d edges" for a matrix. The outermost may
            be infinite. Compared with the samples in NumPy's precision if both are NumPy's.
        weights: non-negative weights, one per sample, differentiable. All one by default. Traced
            weights that are negative make all counts NaN, as do traced edges that do not ascend.

    Returns:
        Counts "bins" or "d bins" of the dtype of x, at least float32.

    Raises:
        ValueError: if shapes do not fit, a concrete weight is negative, or concrete edges do not
            ascend.

    Example:
        >>> import jax.numpy as jnp
        >>> counts(jnp.array([0.0, 1.0, 4.0]), jnp.array([0.0, 2.0, 4.0])).tolist()
        [2.0, 1.0]
    """
    columns = as_columns(x=x)["x"]
    bounds = as_bounds("edges", edges, np.ndim(x), columns)
    mass = as_mass("weights", weights, columns.shape[0])
    parts = in_parts(columns, bounds)
    high = parts[0][0] if isinstance(parts[0], tuple) else parts[0]
    check_matrix(x=high)
    dtype = at_least_single(high.dtype)
    return _counts_of_columns(*parts, mass, dtype=dtype, is_vector=np.ndim(x) == 1)


def as_bounds(name: str, edges: Numbers, ndim: int, columns: Unrounded) -> Unrounded:
    """Edges as a matrix, one row per column: concrete ones must ascend, or hold NaN."""
    given = as_numbers(name, edges, exact=True)
    bounds = given[None] if ndim == 1 else given
    if bounds.ndim != 2 or bounds.shape[0] != columns.shape[1] or bounds.shape[1] < 2:
        shape = columns.shape[:1] if ndim == 1 else columns.shape
        raise ValueError(
            f"{name} must have shape (bins + 1,) for a vector and (features, bins + 1) for a "
            f"matrix; got shape {given.shape} for samples of shape {shape}."
        )
    if not isinstance(bounds, Tracer):
        # NumPy's numbers may be more precise than float64, hence compared as they are.
        numbers = bounds if isinstance(bounds, np.ndarray) else np.asarray(bounds, np.float64)
        with np.errstate(invalid="ignore"):  # of infinite ends
            ascending = _ascend(numbers, float(jnp.finfo(dtype_in_jax(bounds)).eps)).all(axis=1)
        inner = np.isfinite(numbers[:, 1:-1]).all(axis=1)
        # Edges that hold NaN pass: their counts will be NaN.
        if not (np.isnan(numbers).any(axis=1) | (ascending & inner)).all():
            raise ValueError(
                f"{name} must ascend, and be finite but for the outermost; they do not."
            )
    return bounds


def as_mass(name: str, weights: Numbers | None, num_rows: int) -> Leaf:
    """Weights as an argument of a compiled function, None if each row counts once."""
    mass = as_optional_leaf(**{name: weights})
    if mass is None:
        return None
    if jnp.shape(mass) != (num_rows,):
        raise ValueError(f"{name} must have shape ({num_rows},); got shape {jnp.shape(mass)}.")
    if not isinstance(mass, Tracer) and (np.asarray(mass) < 0).any():
        raise ValueError(f"{name} must not be negative; got {np.asarray(mass).min()}.")
    return mass


Parts: TypeAlias = tuple[Array | _TwoParts, Array | _TwoParts]


def in_parts(columns: Unrounded, bounds: Unrounded) -> Parts:
    """Points and edges in a form that compares like the numbers that were given.

    If both are NumPy's, they are their places in order. Otherwise NumPy's are split in two parts.
    JAX's are unchanged.
    """
    dtype = jnp.result_type(dtype_in_jax(columns), dtype_in_jax(bounds))
    if isinstance(columns, np.ndarray) and isinstance(bounds, np.ndarray):
        each = zip(columns.T, bounds, strict=True)
        points, ends = zip(*(_places(column, edges) for column, edges in each), strict=True)
        return jnp.asarray(np.stack(points, axis=1), dtype), jnp.asarray(np.stack(ends), dtype)
    split = lambda part: two_parts(part, dtype) if isinstance(part, np.ndarray) else part
    return split(columns), split(bounds)


def _places(column: np.ndarray, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The places of points among the edges: even for those on an edge, odd between two."""
    # Edges may descend by a rounding, which a search must not see.
    edges = np.maximum.accumulate(edges)
    num_below = np.searchsorted(edges, column, side="right")
    on_edge = (num_below > 0) & (edges[np.maximum(num_below - 1, 0)] == column)
    places = np.where(np.isnan(column), np.nan, 2 * num_below - 1 - on_edge)
    return places, np.where(np.isnan(edges), np.nan, 2.0 * np.arange(edges.size))


@functools.partial(jax.jit, static_argnames=("dtype", "is_vector"))
def _counts_of_columns(
    columns: Array | _TwoParts,
    bounds: Array | _TwoParts,
    mass: Array | None,
    *,
    dtype: DTypeLike,
    is_vector: bool,
) -> Float[Array, "*d bins"]:
    """`counts` after its checks."""
    result = mass_in_bins(columns, bounds, mass, dtype)
    return result[0] if is_vector else result


def mass_in_bins(
    columns: Array | _TwoParts, bounds: Array | _TwoParts, mass: Array | None, dtype: DTypeLike
) -> Float[Array, "d bins"]:
    """The sums of the rows' mass in the bins of each column."""
    common = jnp.result_type(*jax.tree.leaves((columns, bounds)))
    split = lambda part: part if isinstance(part, tuple) else two_parts(part, common)
    high, low = split(columns)
    n = high.shape[0]
    # Integers count exactly beyond 2²⁴ rows.
    mass = jnp.ones(n, jnp.int32) if mass is None else jnp.asarray(mass, dtype)
    return _count_columns((high.T, low.T), split(bounds), mass, dtype)


def _count_columns(
    columns: _TwoParts, bounds: _TwoParts, mass: Array, dtype: DTypeLike
) -> Float[Array, "d bins"]:
    n, num_bins = columns[0].shape[1], bounds[0].shape[1] - 1
    # A float added to many rounds, and to 2²⁴ ones is lost. Sums of blocks, added up, are accurate.
    block_rows = min(_BLOCK_ROWS, max(1, math.isqrt(n)))
    block = jnp.arange(n) // block_rows

    def count(column: _TwoParts, bounds: _TwoParts) -> Array:
        below = _num_at_or_below(bounds, column)
        outside = (below == 0) | _less((bounds[0][-1], bounds[1][-1]), column)
        # A point on the last edge belongs to the last bin.
        index = jnp.clip(below - 1, 0, num_bins - 1)
        sums = jnp.zeros((n // block_rows + 1, num_bins), mass.dtype)
        # Points outside have a clipped index, and add no mass there.
        sums = sums.at[block, index].add(jnp.where(outside, 0, mass))
        # A NaN lies in no bin and would otherwise go unnoticed.
        missing = jnp.any(jnp.isnan(column[0]) & (mass != 0)) | jnp.isnan(bounds[0]).any()
        ascending = _ascend(bounds[0], float(jnp.finfo(bounds[0].dtype).eps)).all()
        valid = ~missing & ascending & jnp.isfinite(bounds[0][1:-1]).all() & jnp.all(mass >= 0)
        return nan_unless(valid, sums.sum(axis=0, dtype=mass.dtype).astype(dtype))

    return jax.vmap(count)(columns, bounds)


def _ascend(numbers: Unrounded, eps: float) -> Unrounded:
    """Whether each number is at least the one before it, up to a few roundings."""
    before, after = numbers[..., :-1], numbers[..., 1:]
    return (after >= before) | (after >= before - 8 * eps * abs(before))


def _less(a: _TwoParts, b: _TwoParts) -> Bool[Array, "..."]:
    """Whether a < b, for numbers split into a rounded part and its remainder."""
    return (a[0] < b[0]) | ((a[0] == b[0]) & (a[1] < b[1]))


def _num_at_or_below(bounds: _TwoParts, points: _TwoParts) -> Int[Array, " n"]:
    """The number of ascending bounds at or below each point, by bisection."""
    size = bounds[0].shape[0]

    def halve(_, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        first, last = ends
        # A finished bisection may end at `size`, which is no bound's index.
        middle = jnp.minimum((first + last) // 2, size - 1)
        at_middle = bounds[0][middle], bounds[1][middle]
        # A finished bisection does not move. NaN is above no bound.
        reached = (first < last) & ~_less(points, at_middle) & ~jnp.isnan(points[0])
        return jnp.where(reached, middle + 1, first), jnp.where(reached, last, middle)

    start = jnp.zeros(points[0].shape, int), jnp.full(points[0].shape, size)
    # There are size + 1 possible counts: as many halvings as `size` has bits leave one of them.
    return jax.lax.fori_loop(0, size.bit_length(), halve, start)[0]
