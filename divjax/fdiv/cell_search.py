"""Pairs of points near each other, by cells of a partition, in less than n × m operations.

Points are sorted by one feature into slabs, and each slab by a second feature into cells of equal
size (sort–tile–recursive packing). The rows of a cell look at the columns of the few cells whose
bounding boxes are nearest. The distance to the first box that is left out certifies the result: a
row that reaches beyond it looks at all columns. What is returned is exact for every input.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from divjax.core.ordering import ascending_order
from divjax.core.pairwise import map_row_blocks
from divjax.core.selection import smallest_in_rows
from divjax.core.sharding import mesh_in_use

__all__ = ["cells_pay", "coordinate_distances", "reduce_near_pairs"]

# Points per cell by the number of features; with more than two, cells extend through the others.
# Measured at 10 000 points: smaller cells look at fewer pairs, in shorter vectors.
_CELL_SIZES = {1: 8, 2: 32, 3: 32}
_LARGEST_CELL_SIZE = 48
# Boxes are compared pairwise: their number is bounded.
_MAX_CELLS = 8192
# Fewer columns are searched whole, and so are more features, whose neighbourhoods are too wide.
_LEAST_COLUMNS = 1500
_MOST_FEATURES = 6
# Rows that look at all columns at a time.
_ROWS_AGAIN = 128


def coordinate_distances(
    x: Float[Array, "b d"], y: Float[Array, "c d"], euclidean: bool
) -> Float[Array, "b c"]:
    """Squared Euclidean distances, or the largest differences of a coordinate."""
    differences = (jnp.abs(x[:, i, None] - y[:, i]) for i in range(x.shape[1]))
    if euclidean:
        return functools.reduce(jnp.add, map(jnp.square, differences))
    return functools.reduce(jnp.maximum, differences)


def _cell_size(num_rows: int, d: int) -> int:
    return max(_CELL_SIZES.get(d, _LARGEST_CELL_SIZE), math.ceil(num_rows / _MAX_CELLS))


def _num_candidates(num_columns: int, d: int, count: int) -> int:
    """How many cells contain the neighbours of nearly all rows, for densities without far tails."""
    directions = min(d, 2)
    side = (_cell_size(num_columns, d) / num_columns) ** (1 / directions)
    # A ball of `count` points, in units of the samples' extent, plus a cell on either side.
    ball = (count / num_columns) ** (1 / d)
    return math.ceil(1.5 * (ball / side + 2) ** directions) + 2


def cells_pay(num_columns: int, d: int, count: int) -> bool:
    """Whether the search by cells is the faster one: many columns, few features, one device."""
    if num_columns < _LEAST_COLUMNS or d > _MOST_FEATURES or mesh_in_use() is not None:
        return False
    looked_at = _num_candidates(num_columns, d, count) * _cell_size(num_columns, d)
    return 3 * looked_at < num_columns


class _Partition(NamedTuple):
    """Cells of equal size. Where the size does not divide the number of rows, some rows come twice.

    Attributes:
        index: the rows of each cell.
        first: whether this is the row's first place.
        lower: the least of each feature in a cell.
        upper: the largest.
    """

    index: Int[Array, "cells size"]
    first: Bool[Array, "cells size"]
    lower: Float[Array, "cells d"]
    upper: Float[Array, "cells d"]


def _partition(z: Float[Array, "n d"]) -> _Partition:
    n, d = z.shape
    size = _cell_size(n, d)
    slabs = math.ceil(math.sqrt(n / size)) if d > 1 else 1
    per_slab = math.ceil(n / (slabs * size))
    places = slabs * per_slab * size
    # Repeated rows are spread evenly, so that no cell consists of them.
    spread = np.arange(places) * n // places
    first = jnp.asarray(np.diff(spread, prepend=-1) > 0)
    index = ascending_order(z[:, 0])[spread]
    if d > 1:
        in_slab = lambda values: values.reshape(slabs, per_slab * size)
        order = ascending_order(in_slab(z[index, 1]), axis=1)
        index, first = (
            jnp.take_along_axis(in_slab(values), order, axis=1) for values in (index, first)
        )
    # In an arbitrary order: along a line of cells distances fall towards a cell, and a search for
    # the smallest would replace its candidates at every step.
    shuffled = np.random.default_rng(0).permutation(slabs * per_slab)
    index, first = index.reshape(-1, size)[shuffled], first.reshape(-1, size)[shuffled]
    points = z[index]
    return _Partition(index, first, jnp.min(points, axis=1), jnp.max(points, axis=1))


def _box_distances(rows: _Partition, columns: _Partition, euclidean: bool) -> Callable[..., Array]:
    """`(lower, upper) -> "b cells"`: at most the distances between points of any two cells."""

    def distances(lower: Float[Array, "b d"], upper: Float[Array, "b d"]) -> Float[Array, "b c"]:
        # Either one interval begins beyond the end of the other, or they overlap at distance zero.
        gaps = (
            jnp.maximum(
                jnp.maximum(
                    columns.lower[:, i] - upper[:, i, None],
                    lower[:, i, None] - columns.upper[:, i],
                ),
                0,
            )
            for i in range(lower.shape[1])
        )
        if euclidean:
            return functools.reduce(jnp.add, map(jnp.square, gaps))
        return functools.reduce(jnp.maximum, gaps)

    return distances


def reduce_near_pairs(
    reduce: Callable[..., tuple[PyTree[Array], Float[Array, " b"]]],
    count: int,
    x: Float[Array, "n d"],
    y: Float[Array, "m d"] | None = None,
    *arrays: Array,
    euclidean: bool = False,
) -> PyTree[Array]:
    """What `reduce` makes of each row of x and the columns near it, exact for every input.

    Args:
        reduce: `(rows "b d", row_index "b", columns "c d", column_index "c", *arrays "b ...")
            -> (output, reach "b")`. The output must not depend on columns beyond the
            reach, nor on which columns are at the reach. Some are infinite, and to be ignored.
        count: about how many columns a row reaches.
        x: rows, finite.
        y: columns, finite, by default x.
        *arrays: further arguments of `reduce`, one entry per row.
        euclidean: whether distances are squared Euclidean, rather than the largest difference of a
            coordinate.
    """
    rows = _partition(x)
    columns = rows if y is None else _partition(y)
    y = x if y is None else y
    num_cells, d = columns.lower.shape
    num_near = min(_num_candidates(y.shape[0], d, count), num_cells)
    looked_at = num_near * columns.index.shape[1]
    distances = _box_distances(rows, columns, euclidean)

    def nearest_cells(lower: Float[Array, "b d"], upper: Float[Array, "b d"]):
        # top_k of float64 is slow: the bound is lowered by the rounding to float32.
        found = distances(lower, upper).astype(jnp.float32)
        if num_near == num_cells:
            near = jnp.broadcast_to(jnp.arange(num_cells), found.shape)
            return near, jnp.full(len(found), jnp.inf, x.dtype)
        smallest, near = smallest_in_rows(found, num_near + 1)
        return near[:, :-1], (smallest[:, -1] * (1 - 1e-6)).astype(x.dtype)

    near, bound = map_row_blocks(nearest_cells, num_cells, rows.lower, rows.upper)
    # Rows that stand in two places are looked at once.
    usable = jnp.where(columns.first[..., None], y[columns.index], jnp.inf)

    def in_cell(row_index: Int[Array, " size"], near: Int[Array, " near"]):
        column_index = columns.index[near].reshape(looked_at)
        candidates = usable[near].reshape(looked_at, d)
        given = (array[row_index] for array in arrays)
        return reduce(x[row_index], row_index, candidates, column_index, *given)

    by_cell = map_row_blocks(jax.vmap(in_cell), rows.index.shape[1] * looked_at, rows.index, near)
    # From places back to rows; second places are out of range and dropped.
    n = x.shape[0]
    place = jnp.where(rows.first, rows.index, n).ravel()

    def to_rows(values: Array) -> Array:
        flat = values.reshape(-1, *values.shape[2:])
        return jnp.zeros((n, *flat.shape[1:]), flat.dtype).at[place].set(flat, mode="drop")

    output, reach = jax.tree.map(to_rows, by_cell)
    bounds = to_rows(jnp.broadcast_to(bound[:, None], rows.index.shape))
    # Negated, so that NaN counts as beyond the bound.
    again = ~(reach <= bounds)
    return _looked_at_all(reduce, again, output, x, y, *arrays)


def _looked_at_all(
    reduce: Callable[..., Any],
    again: Bool[Array, " n"],
    output: PyTree[Array],
    x: Float[Array, "n d"],
    y: Float[Array, "m d"],
    *arrays: Array,
) -> PyTree[Array]:
    """The output, replaced where `again` holds by what `reduce` makes of all columns."""
    n = x.shape[0]
    # The rows in question come first, and are taken a few at a time until there are no more.
    order = jnp.argsort(~again, stable=True)
    order = jnp.pad(order, (0, -n % _ROWS_AGAIN), constant_values=n)
    remaining = jnp.sum(again)

    def step(carry: tuple[Array, PyTree[Array]]) -> tuple[Array, PyTree[Array]]:
        start, output = carry
        place = jax.lax.dynamic_slice(order, (start,), (_ROWS_AGAIN,))
        index = jnp.minimum(place, n - 1)
        given = (array[index] for array in arrays)
        found, _ = reduce(x[index], index, y, jnp.arange(y.shape[0]), *given)
        put = lambda old, new: old.at[place].set(new, mode="drop")
        return start + _ROWS_AGAIN, jax.tree.map(put, output, found)

    start = jnp.zeros((), remaining.dtype)
    # No step if no row is in question, as for most samples.
    return jax.lax.while_loop(lambda carry: carry[0] < remaining, step, (start, output))[1]
