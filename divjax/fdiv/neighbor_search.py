"""The nearest points among many, and their exact distances.

Neighbours are searched in blocks of rows, never n × m at once, and with few features in the cells
nearby. Their distances are then recomputed
from the points, exact to rounding and differentiable: no derivative passes through the search.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from divjax.core.numerics import if_needed
from divjax.core.pair_reductions import SUM, Reduction, pair_distances_by_rows, reduce_pairs
from divjax.core.pairwise import DIFFERENCES_UP_TO, living_rows, spread_places
from divjax.core.selection import smallest_in_rows
from divjax.fdiv.cell_search import cells_pay, coordinate_distances, reduce_near_pairs

__all__ = ["NearestPoints", "beyond", "nearest_living_points", "nearest_points"]

# Extra candidates per row: the search compares rounded distances, and the exact ones may order the
# last few differently.
_SPARE = 4

# How many rows are sorted for the unit of a search.
_ROWS_OF_UNIT = 4095


class NearestPoints(NamedTuple):
    """The nearest points, in order.

    Attributes:
        log_distances: the log distance to each point, 0 if it is not usable.
        usable: whether the distance is positive and finite.
        zero: whether it is zero.
        index: the indices of the points.
    """

    log_distances: Float[Array, "n count"]
    usable: Bool[Array, "n count"]
    zero: Bool[Array, "n count"]
    index: Int[Array, "n count"]


def nearest_points(
    x: Float[Array, "n d"], y: Float[Array, "m d"] | None, count: int
) -> NearestPoints:
    """The nearest points to each x among y, or among the other x for y = None."""
    own = y is None
    # Behind a barrier: samples that are computed in the same program could be computed anew for
    # every use, with other roundings, and a coincident point would not be at distance zero.
    if own:
        x = columns = jax.lax.optimization_barrier(x)
    else:
        x, columns = jax.lax.optimization_barrier((x, y))
        y = columns
    candidates = min(count + own + _SPARE, columns.shape[0])

    def nearest(squared: Float[Array, "b m"]) -> Int[Array, "b candidates"]:
        # float32 ranks suffice for candidates, and a top_k of float64 is 100 times slower. In units
        # of the row's smallest positive one distances are in its range, where squares are not.
        if squared.dtype != jnp.float32:
            smallest = jnp.min(jnp.where(squared > 0, squared, jnp.inf), axis=1, keepdims=True)
            squared = jnp.sqrt(squared / jnp.where(jnp.isfinite(smallest), smallest, 1))
        some = min(candidates, squared.shape[1])
        return smallest_in_rows(squared.astype(jnp.float32), some)[1]

    def ordered(found: tuple[Array, ...], _: Array, index: Array, own_index: Array):
        logs, usable, zero = found
        if own:
            is_own = index == own_index[:, None].astype(index.dtype)
            usable, zero = usable & ~is_own, zero & ~is_own
        # Coinciding points come first. The row itself and points without a distance come last.
        keys = jnp.where(usable, logs, jnp.where(zero, -jnp.inf, jnp.inf))
        order = jnp.argsort(jax.lax.stop_gradient(keys), axis=1)[:, :count]
        ordered = (jnp.where(usable, logs, 0), usable, zero, index)
        return NearestPoints(*(jnp.take_along_axis(leaf, order, axis=1) for leaf in ordered))

    searched_x, searched_y = _search_units(x, y)
    if cells_pay(columns.shape[0], x.shape[1], candidates):
        index = _search_by_cells(searched_x, searched_y, nearest, count + own, candidates)
    else:
        of_block = functools.partial(_nearest_in_block, nearest, candidates)
        index = pair_distances_by_rows(searched_x, searched_y, of_block, _merged(candidates))[1]

    measure = lambda index: _measured(x, columns, index, ordered)
    found = measure(index)
    lost = _is_lost(searched_x, searched_y, jax.lax.stop_gradient(found), x)
    # Of the points themselves: in the search's unit some may be infinite.
    own_x, own_y = jax.lax.stop_gradient((x, y))
    again = lambda _: _search_by_differences(own_x, own_y, nearest, candidates)
    return measure(if_needed(lost, again, index))


def nearest_living_points(
    x: Float[Array, "n d"], weights: Float[Array, " n"] | None, count: int
) -> NearestPoints:
    """The nearest points to each x among the other x with weight; all of them for None.

    Rows without weight, which may hold anything, have neighbours that are not usable, and so do
    rows beyond the number of those with weight.
    """
    if weights is None:
        return nearest_points(x, None, count)
    alive = weights > 0
    living = living_rows(x, weights)
    near = nearest_points(jnp.where(alive[:, None], living, beyond(living)), None, count)
    apart = alive[:, None] & alive[near.index]
    return near._replace(usable=near.usable & apart, zero=near.zero & apart)


def beyond(*samples: Float[Array, "_ d"]) -> Float[Array, " d"]:
    """A point that is farther from each row of the samples than all others are.

    Example:
        >>> bool(jnp.all(beyond(jnp.array([[0.0], [1.0]])) >= 3))
        True
    """
    rows = jax.lax.stop_gradient(jnp.concatenate(samples))
    low, high = jnp.min(rows, axis=0), jnp.max(rows, axis=0)
    return high + 2 * jnp.max(high - low) + jnp.max(jnp.abs(rows)) * jnp.finfo(rows.dtype).eps * 8


def _nearest_in_block(
    nearest: Callable[[Float[Array, "b m"]], Int[Array, "b c"]],
    candidates: int,
    distances: Float[Array, "b m"],
    column: Int[Array, " m"],
) -> tuple[Float[Array, "b c"], Int[Array, "b c"]]:
    """The distances and indices of a block's candidates, NaN and −1 where there are fewer."""
    place = nearest(distances)
    found = jnp.take_along_axis(distances, place, axis=1), column[place].astype(place.dtype)
    missing = (0, 0), (0, candidates - place.shape[1])
    values, index = (
        jnp.pad(leaf, missing, constant_values=fill)
        for leaf, fill in zip(found, (jnp.nan, -1), strict=True)
    )
    return values, index


def _merged(candidates: int) -> Reduction:
    """The candidates among those of two blocks; NaN comes last, and the index −1 is no column's."""

    def combine(left: tuple[Array, Array], right: tuple[Array, Array]) -> tuple[Array, Array]:
        both = tuple(jnp.concatenate(pair, axis=1) for pair in zip(left, right, strict=True))
        values, index = jax.lax.sort(both, dimension=1, num_keys=1)
        return values[:, :candidates], index[:, :candidates]

    return Reduction(combine, (math.nan, -1))


def _measured(
    x: Float[Array, "n d"],
    columns: Float[Array, "m d"],
    index: Int[Array, "n c"],
    finish: Callable[..., NearestPoints],
) -> NearestPoints:
    """What is made of log distances to the columns of these indices.

    `finish` gets them, 0 unless they are usable, which are, and which distances are zero; then the
    rows, the indices and the rows' own.
    """
    m = columns.shape[0]

    def of_columns(columns: Float[Array, "b d"], column: Int[Array, " b"]):
        whole = columns.shape[0] == m

        def of_rows(row: Float[Array, "b d"], index: Int[Array, "b c"], _: Array):
            # Within a block of the columns, indices are in ascending order.
            place = index if whole else jnp.searchsorted(column, index.astype(column.dtype))
            place = jnp.minimum(place, columns.shape[0] - 1)
            here = index >= 0 if whole else column[place] == index
            difference = row[:, None] - columns[place]
            # In units of the largest coordinate: squares neither overflow nor vanish.
            unit = jax.lax.stop_gradient(jnp.max(jnp.abs(difference), axis=-1))
            usable = here & (unit > 0) & (unit < jnp.inf)
            unit = jnp.where(usable, unit, 1)
            squares = jnp.sum(jnp.square(difference / unit[..., None]), axis=-1)
            logs = jnp.log(unit) + 0.5 * jnp.log(jnp.where(usable, squares, 1))
            return logs, usable, here & jnp.all(difference == 0, axis=-1)

        return of_rows

    entries = index.shape[1] * x.shape[1]
    rows, all_columns = (x, index, jnp.arange(x.shape[0])), (columns, jnp.arange(m))
    return reduce_pairs(of_columns, SUM, rows, all_columns, entries=entries, finish=finish)


def _search_units(
    x: Float[Array, "n d"], y: Float[Array, "m d"] | None
) -> tuple[Float[Array, "n d"], Float[Array, "m d"] | None]:
    """The samples with gradients stopped, in units of their typical extent.

    Division by a power of two is exact. Squares of ordinary distances then neither overflow nor
    underflow, whatever the units and however far single points are.
    """
    samples = jax.lax.stop_gradient((x,) if y is None else (x, y))
    # Rows that are not finite have no distances, and must not set the unit of those of others.
    known = [jnp.where(jnp.isfinite(sample), sample, jnp.nan) for sample in samples]
    # Medians: one outlier must not set the unit in which all others are compared. Those of some
    # rows, as many rows would have to be sorted.
    some = lambda rows: rows[spread_places(len(rows), _ROWS_OF_UNIT)]
    center = jnp.nanmedian(some(known[0]), axis=0)
    extents = [jnp.max(jnp.abs(sample - center), axis=1) for sample in known]
    typical = jnp.nanmax(jnp.stack([jnp.nanmedian(some(extent)) for extent in extents]))
    largest = jnp.nanmax(jnp.stack([jnp.nanmax(extent) for extent in extents]))
    # More than half of the rows may coincide, and all may have no distance.
    typical = jnp.where(typical > 0, typical, jnp.where(largest > 0, largest, 1))
    # A power of two, so that scaling rounds nothing, whose inverse is in range.
    limit = jnp.finfo(typical.dtype).maxexp - 8
    exponent = jnp.clip(jnp.frexp(typical)[1], -limit, limit)
    factor = jnp.ldexp(jnp.ones_like(typical), -exponent)
    scaled = [sample * factor for sample in samples]
    return scaled[0], None if y is None else scaled[1]


def _search_by_cells(
    x: Float[Array, "n d"],
    y: Float[Array, "m d"] | None,
    nearest: Callable[[Float[Array, "b m"]], Int[Array, "b c"]],
    needed: int,
    candidates: int,
) -> Int[Array, "n c"]:
    """The candidates among the points of the cells nearby: `needed` of them exact to rounding."""

    def search(rows, index, columns, column_index):
        squared = coordinate_distances(rows, columns, euclidean=True)
        place = nearest(squared)
        last = jnp.take_along_axis(squared, place[:, needed - 1 : needed], axis=1)
        return column_index[place], last[:, 0] * (1 + 1e-6)

    return reduce_near_pairs(search, candidates, x, y, euclidean=True)


def _is_lost(
    x: Float[Array, "n d"],
    y: Float[Array, "m d"] | None,
    found: NearestPoints,
    original: Float[Array, "n d"],
) -> Bool[Array, ""]:
    """Whether a distance that was found is within the rounding of the squares searched."""
    columns, limits = x if y is None else y, jnp.finfo(x.dtype)
    # The unit of the search, as the ratio of the largest coordinates before and after scaling.
    size = lambda z: jnp.max(jnp.where(jnp.isfinite(x), jnp.abs(z), 0))
    unit = size(original) / size(x)
    usable, last = found.usable[:, -1], found.log_distances[:, -1]
    # Squares of differences leave the range: nearer points look coincident, and farther ones
    # equally far, as those of a minority do if most rows are near the centre.
    squares = 2 * (last - jnp.log(unit))
    within = (squares >= math.log(limits.tiny / limits.eps)) & (squares < math.log(limits.max) - 1)
    outside = usable & ~within
    if x.shape[1] <= DIFFERENCES_UP_TO:
        return jnp.any(outside)
    # Products of matrices have the rounding of the points' norms.
    center = jnp.mean(columns, axis=0)
    norms = jnp.sum(jnp.square(x - center), axis=1)
    norms = norms + jnp.max(jnp.sum(jnp.square(columns - center), axis=1))
    squared = jnp.square(jnp.exp(jnp.where(usable, last, -jnp.inf)) / unit)
    # Negated, so that NaN counts as lost.
    return jnp.any(outside | ~(squared > 64 * limits.eps * norms))


def _search_by_differences(
    x: Float[Array, "n d"], y: Float[Array, "m d"] | None, nearest, candidates: int
) -> Int[Array, "n c"]:
    """The candidates by distances whose squares are in units of the largest difference.

    Slower than products, but exact to rounding for points that are arbitrarily near each other, or
    far.
    """
    columns = x if y is None else y

    # Feature by feature: a block of all differences would be d times as large.
    def block(
        columns: Float[Array, "m d"], column: Int[Array, " m"], rows: Float[Array, "b d"]
    ) -> tuple[Array, Array]:
        def add(
            so_far: tuple[Array, Array], pair: tuple[Array, Array]
        ) -> tuple[tuple[Array, Array], None]:
            (largest, total), (row, column) = so_far, pair
            difference = jnp.abs(row[:, None] - column)
            # Squares are in units of the largest difference so far, which may grow: none leaves
            # the dtype's range.
            unit = jnp.maximum(largest, difference)
            divisor = jnp.where(unit > 0, unit, 1)
            total = total * jnp.square(largest / divisor) + jnp.square(difference / divisor)
            return (unit, total), None

        start = jnp.zeros((rows.shape[0], columns.shape[0]), rows.dtype)
        largest, total = jax.lax.scan(add, (start, start), (rows.T, columns.T))[0]
        return _nearest_in_block(nearest, candidates, largest * jnp.sqrt(total), column)

    of_columns = lambda *columns: functools.partial(block, *columns)
    all_columns = columns, jnp.arange(columns.shape[0])
    return reduce_pairs(of_columns, _merged(candidates), (x,), all_columns)[1]
