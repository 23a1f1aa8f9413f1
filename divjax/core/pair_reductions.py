"""Reductions over the pairs of two samples, whose columns several devices receive block by block.

A reduction that can be made of those of blocks of columns, such as a sum, says so by a `Reduction`.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from divjax.core.differentiation import with_slopes_of
from divjax.core.numerics import if_needed, safe_log
from divjax.core.pairwise import (
    DIFFERENCES_UP_TO,
    about_common_center,
    block_budget,
    centered_distances,
    distances_by_differences,
    is_lost,
    map_row_blocks,
)
from divjax.core.sharding import even_size, fold_blocks, mesh_in_use, shared_by_all, shared_rows

__all__ = [
    "LARGEST",
    "LOG_SUM",
    "SMALLEST",
    "SUM",
    "Reduction",
    "pair_distances_by_rows",
    "reduce_centered_pairs",
    "reduce_pairs",
]


class Reduction(NamedTuple):
    """How reductions over blocks of columns become the reduction over all columns.

    Attributes:
        combine: two pytrees of arrays to one, row by row; associative and commutative.
        identity: the entries of a pytree that leaves any other unchanged, as a prefix of it.
    """

    combine: Callable[[PyTree[Array], PyTree[Array]], PyTree[Array]]
    identity: PyTree[float]


def _leafwise(combine: Callable[[Array, Array], Array], identity: float) -> Reduction:
    return Reduction(lambda left, right: jax.tree.map(combine, left, right), identity)


def _log_add(left: Array, right: Array) -> Array:
    """The log of eˡ + eʳ, −∞ with derivatives of zero if both terms are zero."""
    top = jax.lax.stop_gradient(jnp.maximum(left, right))
    # The difference of two infinities of one sign would be NaN.
    top = jnp.where(jnp.isfinite(top), top, 0)
    return top + safe_log(jnp.exp(left - top) + jnp.exp(right - top))


SUM = _leafwise(jnp.add, 0)
SMALLEST = _leafwise(jnp.minimum, math.inf)
LARGEST = _leafwise(jnp.maximum, -math.inf)
LOG_SUM = _leafwise(_log_add, -math.inf)


def reduce_pairs(
    of_columns: Callable[..., Callable[..., PyTree[Array]]],
    reduction: Reduction,
    rows: tuple[Array, ...],
    columns: tuple[Array, ...],
    *,
    block_rows: int | None = None,
    entries: int | None = None,
    finish: Callable[..., PyTree[Array]] = lambda found, *_: found,
) -> PyTree[Array]:
    """`of_columns(*columns)(*rows)`, by blocks of rows, and on several devices of columns too.

    The devices of a mesh that is in use have equal shares of the rows and of the columns. Each
    reduces the pairs of its rows with one block of columns after another, which all receive: it
    holds its shares and a block, whatever the number of rows and columns. Columns within the budget
    of a block of pairs are one block, and so are those of one device, which has them anyway.

    Args:
        of_columns: maps a block of the columns to a function of a block of rows, as for
            `map_row_blocks`, which reduces the pairs of both.
        reduction: what makes one reduction of those of several blocks of columns.
        rows: arrays with leading axis n.
        columns: arrays with leading axis m. A block of them need not be an interval: indices, if
            they are needed, are a column of their own.
        block_rows: rows per block of all columns, by default the most that fit the budget.
        entries: the numbers that a block holds for a row, by default one for each column.
        finish: what is made of the reduction, a function of it and of the rows.

    Returns:
        The pytree for all rows.
    """
    m = columns[0].shape[0]
    num_blocks, size = _blocks_of_columns(columns)
    if block_rows is not None:
        # Fewer columns at a time leave room for more rows.
        block_rows = min(block_rows * num_blocks, rows[0].shape[0])

    def of_block(
        *block: Array, finish: Callable[..., PyTree[Array]] = lambda found, *_: found
    ) -> PyTree[Array]:
        width, reduce = block[0].shape[0] if entries is None else entries, of_columns(*block)
        of_rows = lambda *rows: finish(reduce(*rows), *rows)
        return map_row_blocks(of_rows, width, *rows, block_rows=block_rows)

    if num_blocks == 1:
        # Gathered here once, rather than by every block of rows.
        return of_block(*shared_by_all(columns), finish=finish)
    of_size = lambda column: jax.ShapeDtypeStruct(
        (m // num_blocks, *column.shape[1:]), column.dtype
    )
    # The loop starts at the reduction's identity, of the shapes that a block of columns gives.
    shapes = jax.eval_shape(of_block, *map(of_size, columns))
    fill = lambda value, part: jax.tree.map(lambda leaf: jnp.full_like(leaf, value), part)
    start = shared_rows(jax.tree.map(fill, reduction.identity, shapes))
    step = lambda block: (of_block(*block), ())
    found, _ = fold_blocks(step, reduction.combine, start, columns, size)
    leaves, structure = jax.tree.flatten(found)
    # `finish` is not linear, in general, and takes the reduction over all columns.
    last = lambda *given: finish(structure.unflatten(given[: len(leaves)]), *given[len(leaves) :])
    return map_row_blocks(last, 1, *leaves, *rows)


def _blocks_of_columns(columns: tuple[Array, ...]) -> tuple[int, int]:
    """In how many blocks devices receive the columns, and of how many from each device."""
    mesh, m = mesh_in_use(), columns[0].shape[0]
    # Equal shares need as many columns as a multiple of the number of devices.
    if mesh is None or m % mesh.size:
        return 1, m
    share, numbers = m // mesh.size, sum(column.size for column in columns)
    size = even_size(share, share // math.ceil(numbers / block_budget()))
    return math.ceil(share / size), size


def pair_distances_by_rows(
    x: Float[Array, "n d"],
    y: Float[Array, "m d"] | None,
    reduce: Callable[[Float[Array, "b c"], Int[Array, " c"]], PyTree[Array]],
    reduction: Reduction,
    block_rows: int | None = None,
) -> PyTree[Array]:
    """`reduce(squared_distances(x, y), arange(m))`, for a `reduce` that acts on rows, by blocks.

    It gets the distances to a block of columns, and their indices.
    """
    same = y is None
    if y is None:
        (x,) = about_common_center(x)
        y = x
    else:
        y, x = about_common_center(y, x)
    of_columns = lambda _, index: (lambda _, squared: reduce(squared, index), None)
    index = jnp.arange(y.shape[0])
    return reduce_centered_pairs(
        x, y, of_columns, reduction, index, same=same, block_rows=block_rows
    )


_OfDistances = Callable[[Float[Array, "b d"], Float[Array, "b c"]], Any]


def reduce_centered_pairs(
    x: Float[Array, "n d"],
    y: Float[Array, "m d"],
    of_columns: Callable[..., tuple[_OfDistances, _OfDistances | None]],
    reduction: Reduction,
    *columns: Array,
    same: bool,
    needed: Bool[Array, ""] | bool = True,
    block_rows: int | None = None,
) -> PyTree[Array]:
    """As `pair_distances_by_rows`, for rows that are centred already.

    Args:
        x: rows.
        y: rows about the same origin.
        of_columns: maps a block of y and of the columns to two functions of a block of rows and its
            squared distances. The second is the same computation as the first for exact distances,
            and replaces its values if products have lost a distance to cancellation; derivatives
            remain those of the first at the rounded distances. It closes over values without
            derivatives, or is None: then distances are not recomputed.
        reduction: of several blocks of columns.
        *columns: arrays with leading axis m.
        same: whether x_i is y_i, at distance exactly zero.
        needed: whether to look for inaccurate distances, which takes a pass over the pairs.
        block_rows: rows per block.
    """

    def of_block(y: Float[Array, "c d"], column: Array, *columns: Array) -> Callable[..., Any]:
        reduce, again = of_columns(y, *columns)
        return functools.partial(of_rows, y, column, reduce, again)

    def of_rows(
        y: Float[Array, "c d"],
        column: Array,
        reduce: _OfDistances,
        again: _OfDistances | None,
        rows: Float[Array, "b d"],
        index: Array,
    ) -> PyTree[Array]:
        # A function, to avoid storing a mask of all pairs.
        diagonal = lambda: index[:, None] == column if same else None
        result = reduce(rows, centered_distances(rows, y, diagonal()))
        if again is None or y.shape[1] <= DIFFERENCES_UP_TO:
            return result
        # `if_needed` has no reverse mode: values are chosen among constants, and the derivatives
        # are those of `result`.
        fixed, fixed_y, plain = jax.lax.stop_gradient((rows, y, result))

        def by_differences(_: PyTree[Array]) -> PyTree[Array]:
            mask, distances = diagonal(), distances_by_differences(fixed, fixed_y)
            return again(fixed, distances if mask is None else jnp.where(mask, 0, distances))

        def if_lost(plain: PyTree[Array]) -> PyTree[Array]:
            # Computed again, only if they are checked: closed over by the loop, they would stay in
            # memory.
            products = centered_distances(fixed, fixed_y)
            return if_needed(is_lost(products, fixed, fixed_y, diagonal()), by_differences, plain)

        return with_slopes_of(result, if_needed(jnp.asarray(needed), if_lost, plain))

    rows, y_columns = (x, jnp.arange(x.shape[0])), (y, jnp.arange(y.shape[0]), *columns)
    return reduce_pairs(of_block, reduction, rows, y_columns, block_rows=block_rows)
