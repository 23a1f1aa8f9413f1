"""How many points lie within given distances of each point, coordinate by coordinate.

In one feature by bisection of the sorted values, in two by a wavelet matrix, O(n log n) both. With
more features by comparison of pairs, in cells or blocks. Counts are exact: a pair is within a
distance if the rounded difference of its values is.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from divjax.core.ordering import ascending_order
from divjax.core.pairwise import map_row_blocks
from divjax.fdiv.cell_search import cells_pay, reduce_near_pairs

__all__ = ["counts_within"]

# About how many points are within the distance, by which the cells to look at are chosen.
_EXPECTED = 32


def counts_within(points: Float[Array, "n d"], radii: Float[Array, "n d"]) -> Int[Array, " n"]:
    """How many other points differ in each coordinate by at most a radius of the point.

    Args:
        points: finite.
        radii: one for each point and coordinate. Nothing is within a negative one.

    Example:
        >>> points = jnp.array([[0.0], [1.0], [3.0]])
        >>> counts_within(points, jnp.array([[1.0], [0.5], [3.0]])).tolist()
        [1, 0, 2]
    """
    points, radii = jax.lax.stop_gradient((points, radii))
    d = points.shape[1]
    if d == 1:
        ranges = _rank_ranges(points[:, 0], radii[:, 0])
        found = ranges.stop - ranges.start
    elif d == 2:
        found = _counts_in_rectangles(points, radii)
    else:
        found = _counts_of_pairs(points, radii)
    # Less the point itself.
    return found.astype(jnp.int32) - jnp.all(radii >= 0, axis=1).astype(jnp.int32)


class _Ranges(NamedTuple):
    """The ranks of the values within the radius of each value.

    Attributes:
        order: the indices of the sorted values.
        start: the first rank.
        stop: the one after the last.
    """

    order: Int[Array, " n"]
    start: Int[Array, " n"]
    stop: Int[Array, " n"]


def _rank_ranges(values: Float[Array, " n"], radii: Float[Array, " n"]) -> _Ranges:
    n = values.shape[0]
    order = ascending_order(values)
    ordered = values[order]

    def first(holds: Callable[[Array], Bool[Array, " n"]]) -> Int[Array, " n"]:
        """For each value the first rank where `holds`, which stays true from there on."""

        def halve(_: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = ends
            middle = (low + high) // 2
            true = (middle >= n) | holds(ordered[jnp.minimum(middle, n - 1)])
            return jnp.where(true, low, middle + 1), jnp.where(true, middle, high)

        ends = jnp.zeros(n, jnp.int32), jnp.full(n, n, jnp.int32)
        return jax.lax.fori_loop(0, n.bit_length() + 1, halve, ends)[0]

    # Rounded differences from a value are monotone along the sorted values. The bounds value ±
    # radius would be rounded in another way, and miss or add the point that defines the radius.
    start = first(lambda other: (other >= values) | (values - other <= radii))
    stop = first(lambda other: (other >= values) & (other - values > radii))
    return _Ranges(order, start, stop)


def _counts_in_rectangles(
    points: Float[Array, "n 2"], radii: Float[Array, "n 2"]
) -> Int[Array, " n"]:
    first, second = (_rank_ranges(points[:, i], radii[:, i]) for i in range(2))
    n = points.shape[0]
    rank = jnp.zeros(n, jnp.int32).at[second.order].set(jnp.arange(n, dtype=jnp.int32))
    # The ranks in the second coordinate, in the order of the first.
    below = _counts_below(rank[first.order], first.start, first.stop)
    return jnp.where(first.stop > first.start, below(second.stop) - below(second.start), 0)


def _counts_below(sequence: Int[Array, " n"], start: Int[Array, " q"], stop: Int[Array, " q"]):
    """`bound -> ` how many of the entries from `start` to before `stop` are below the bound.

    A wavelet matrix (Claude, Navarro, Ordóñez 2015): the sequence is partitioned by the bits of its
    entries from the highest on, and ranges of places are followed through the partitions.
    """
    n = sequence.shape[0]
    # Bounds may be n itself.
    num_bits = n.bit_length()
    shifts = jnp.arange(num_bits - 1, -1, -1, dtype=jnp.int32)

    def partition(sequence: Int[Array, " n"], shift: Int[Array, ""]):
        zero = (sequence >> shift) & 1 == 0
        zeros = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(zero, dtype=jnp.int32)])
        ones = jnp.arange(n, dtype=jnp.int32) - zeros[:-1]
        place = jnp.where(zero, zeros[:-1], zeros[-1] + ones)
        return jnp.zeros_like(sequence).at[place].set(sequence, unique_indices=True), zeros

    zeros_by_bit = jax.lax.scan(partition, sequence, shifts)[1]

    def below(bound: Int[Array, " q"]) -> Int[Array, " q"]:
        def follow(carry, level):
            start, stop, found = carry
            zeros, shift = level
            one = (bound >> shift) & 1 == 1
            zero_start, zero_stop = zeros[start], zeros[stop]
            # Entries with a zero where the bound has a one are below it.
            found = found + jnp.where(one, zero_stop - zero_start, 0)
            start = jnp.where(one, zeros[-1] + start - zero_start, zero_start)
            stop = jnp.where(one, zeros[-1] + stop - zero_stop, zero_stop)
            return (start, stop, found), None

        carry = start, stop, jnp.zeros_like(start)
        return jax.lax.scan(follow, carry, (zeros_by_bit, shifts))[0][2]

    return below


def _counts_of_pairs(points: Float[Array, "n d"], radii: Float[Array, "n d"]) -> Int[Array, " n"]:
    n, d = points.shape

    def count(rows, index, columns, column_index, radii):
        inside = (jnp.abs(rows[:, i, None] - columns[:, i]) <= radii[:, i, None] for i in range(d))
        inside = functools.reduce(jnp.logical_and, inside)
        # Points at distance zero count, and may be in a cell at distance zero that is not near.
        reach = jnp.maximum(jnp.max(radii, axis=1), jnp.finfo(radii.dtype).tiny)
        return jnp.sum(inside, axis=1, dtype=jnp.int32), reach

    if cells_pay(n, d, _EXPECTED):
        return reduce_near_pairs(count, _EXPECTED, points, None, radii)
    of_rows = lambda rows, radii: count(rows, None, points, None, radii)[0]
    return map_row_blocks(of_rows, n, points, radii)
