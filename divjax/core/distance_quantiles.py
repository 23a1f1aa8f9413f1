"""Fractions of pairs below a distance, and the median distance, by counts instead of sorting.

A row far from all others, such as a sentinel for a missing value, moves a quantile by its share of
the pairs. It therefore sets neither the unit of the others' distances nor what counts as zero.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float

from divjax.core.numerics import at_least_single, if_needed, in_units_of, nan_unless
from divjax.core.padding import pad_rows
from divjax.core.pair_reductions import SUM, reduce_pairs
from divjax.core.pairwise import (
    DIFFERENCES_UP_TO,
    LOST_ULPS,
    centered_distances,
    coincidence_distances,
    common_center,
    distances_by_differences,
    rows_per_block,
)
from divjax.core.sharding import in_auto_axes

__all__ = [
    "RowsInUnits",
    "fractions_below",
    "in_typical_units",
    "median_distance",
    "two_quantiles_of_distances",
]

# If half of the pairs coincide, half of the rows are at one place. Less than half are enough here:
# the centre, the median of some of the rows, may be at the second of two places.
_FEWEST_AT_CENTER = 0.25


class RowsInUnits(NamedTuple):
    """Rows about a common centre, in a unit of their own.

    Attributes:
        x: the rows, at least in single precision, those far from the others drawn nearer.
        unit: the unit, a power of two.
        coincident: the squared distance, in that unit, up to which rows coincide.
    """

    x: Float[Array, "n d"]
    unit: Float[Array, ""]
    coincident: Float[Array, ""]


def in_typical_units(x: Float[Array, "n d"], level: float = 0.5) -> RowsInUnits:
    """The rows in the unit of a quantile of their distances: a level's, the median's by default.

    Both rows of a share `level` of the pairs are within the √level-quantile of the deviations from
    the centre, so that the distances' quantile is at most twice that deviation (in the largest
    coordinate). Rows whose squares would overflow in its unit are drawn nearer on a logarithmic
    scale, coordinate by coordinate: they stay far from the others and from each other, and however
    many they are, the quantile is that of the rows as given. If the deviation is zero, the unit is
    the median deviation of the rows that are not at the centre. The rows are NaN if one of the
    numbers is not finite.

    Example:
        >>> rows, unit, _ = in_typical_units(jnp.array([[0.0], [1e-30], [3e-30], [-9999.0]]))
        >>> bool(0.4e-30 < unit < 3e-30), rows[3, 0] < -1e18
        (True, Array(True, dtype=bool))
    """
    # Gradients are stopped at quantiles. Squares would be out of half precision's range.
    wide = jax.lax.stop_gradient(x).astype(at_least_single(x.dtype))
    deviations = wide - common_center(wide)
    sizes = jnp.max(jnp.abs(deviations), axis=1)
    sizes, num_apart = jnp.sort(sizes), jnp.sum(sizes > 0)
    # k of n rows with k(k − 1) ≥ level · n(n − 1): pairs are of distinct rows.
    k = math.ceil(math.sqrt(level) * (len(x) - 0.5) + 0.5)
    of_others = jnp.where(num_apart > 0, sizes[len(x) - 1 - num_apart // 2], 1)
    typical = jnp.where(sizes[k - 1] > 0, sizes[k - 1], of_others)
    scaled, unit = in_units_of(typical, deviations)
    largest = float(jnp.finfo(wide.dtype).max)
    # The squared distance of opposite rows at this limit is half of the largest number.
    limit = math.sqrt(largest / (8 * x.shape[1]))
    # No number's logarithm in any unit is above twice that of the largest.
    near = limit / (1 + 2 * math.log(largest))
    # Of the numbers themselves, as those in units may overflow.
    log = lambda size: jnp.log(jnp.maximum(size, jnp.finfo(wide.dtype).tiny))
    beyond = jnp.maximum(log(jnp.abs(deviations)) - log(unit) - math.log(near), 0)
    rows = jnp.clip(scaled, -near, near) + jnp.sign(deviations) * near * beyond
    rows = nan_unless(jnp.all(jnp.isfinite(wide)), rows)
    # Rows coincide if they are equal up to rounding in the dtype in which they are given.
    rounding = coincidence_distances(wide, float(jnp.finfo(x.dtype).eps))
    # The squared distance of rows whose coordinates differ by at most `rounding` is at most the sum
    # of its squares, to which a constant feature adds nothing.
    varies = jnp.any(deviations != 0, axis=0)
    squared = jnp.sum(jnp.square(in_units_of(typical, jnp.where(varies, rounding, 0))[0]))
    # A difference in one feature may be less than the rounding of another, in which rows agree:
    # they coincide only if they do in all features.
    at_center = jnp.mean(jnp.all(jnp.abs(deviations) <= rounding, axis=1))
    coincident = jnp.where(at_center > _FEWEST_AT_CENTER, squared, 0)
    return RowsInUnits(rows, unit, coincident)


def fractions_below(
    x: Float[Array, "n d"], thresholds: Sequence[ArrayLike], *, by_differences: bool = False
) -> Float[Array, " t"]:
    """The fractions of pairs i ≠ j with ‖x_i − x_j‖² below 1 to 4 positive thresholds, in one pass.

    The rows are centred, as for `centered_distances`. By differences, distances are exact.

    The comparisons of an entry are packed into the bytes of one integer and summed over
    columns of at most 255 rows, so that a pass costs little more than one comparison.
    """
    n = x.shape[0]
    # A column of at most 255 rows cannot carry from one byte into the next.
    size = min(rows_per_block(n, n), 255)

    def counts(
        x: Float[Array, "c d"], column: Array, rows: Float[Array, "b d"], index: Array
    ) -> Array:
        diagonal = index[:, None] == column
        if by_differences:
            distances = jnp.where(diagonal, 0, distances_by_differences(rows, x))
        else:
            distances = centered_distances(rows, x, diagonal)
        real = (index < n)[:, None]  # no distance is below −1, so padding is not counted
        packed = sum(
            (distances < jnp.where(real, threshold, -1)).astype(jnp.uint32) << (8 * byte)
            for byte, threshold in enumerate(thresholds)
        )
        columns = jnp.sum(packed, axis=0, dtype=jnp.uint32)
        # The bytes are summed apart: a sum of packed columns would carry from one into the next.
        return jnp.stack(
            [jnp.sum((columns >> (8 * byte)) & 255) for byte in range(len(thresholds))]
        )

    # Blocks are the rows of this map, each with a matrix of its own.
    num_blocks = math.ceil(n / size)
    blocks = pad_rows(x, num_blocks * size).reshape(num_blocks, size, x.shape[1])
    index = jnp.arange(num_blocks * size).reshape(num_blocks, size)
    below = reduce_pairs(
        lambda *columns: jax.vmap(functools.partial(counts, *columns)),
        SUM,
        (blocks, index),
        (x, jnp.arange(n)),
        block_rows=1,
    )
    # A particle is at distance zero of itself, below every positive threshold. In half precision
    # neither the counts nor n(n − 1) would fit. The latter exceeds 32 bits, hence the float.
    pairs = jnp.sum(below.astype(at_least_single(x.dtype)), axis=0) - n
    return pairs / float(n * (n - 1))


@functools.partial(jax.jit, static_argnames="tolerance")
@in_auto_axes
def median_distance(
    x: Float[Array, "n d"], guess: Float[Array, ""], tolerance: float
) -> Float[Array, ""]:
    """The lower median of ‖x_i − x_j‖ over pairs i < j, without sorting them.

    Passes that count the pairs below four thresholds narrow a bracket around the median of the
    squares. With a guess within `tolerance` of the answer one pass is enough. The bracket's ends
    are verified by counts, so for any guess the relative error of the squares is at most
    `tolerance` (plus the rounding of float32 ranks beyond 2²⁴ pairs, and of `squared_distances`).
    Zero if at least half of the pairs coincide up to rounding of the rows.

    Args:
        x: at least two samples.
        guess: a positive number. A guess nearer the answer needs fewer passes.
        tolerance: the relative tolerance of the squared distance.
    """
    rows, unit, coincident = in_typical_units(x)
    squared_guess = jnp.square(in_units_of(unit, jnp.asarray(guess, rows.dtype))[0])
    median = _median(rows, squared_guess, tolerance, coincident, by_differences=False)
    # With few features the distances are sums of squared differences in either case.
    if x.shape[1] > DIFFERENCES_UP_TO:
        # Counts by products are correct unless the median is of the size of their rounding error.
        radius = jnp.max(jnp.sum(rows**2, axis=1))
        lost = median <= LOST_ULPS * jnp.finfo(rows.dtype).eps * 2 * radius
        again = lambda _: _median(rows, squared_guess, tolerance, coincident, by_differences=True)
        median = if_needed(lost, again, median)
    return jnp.sqrt(median) * unit


# To this width the search narrows the range of log ‖x_i − x_j‖².
_LOG_WIDTH = 4e-3


@functools.partial(jax.jit, static_argnames="levels")
@in_auto_axes
def two_quantiles_of_distances(
    x: Float[Array, "n d"], levels: tuple[float, float]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Two quantiles of ‖x_i − x_j‖ over pairs i < j to a thousandth, without sorting.

    Each pass over the pairs cuts a bracket into three on a logarithmic scale. Distances below the
    rounding of a deviation from the centre that is typical of the level count as that rounding.

    Example:
        >>> x = jnp.array([[0.0], [1.0], [3.0]])  # distances 1, 2 and 3
        >>> [round(float(distance), 2) for distance in two_quantiles_of_distances(x, (0.2, 0.9))]
        [1.0, 3.0]
    """
    # Each in units of its own: one may be far beyond the range of squares in the other's.
    units = [in_typical_units(x, level) for level in levels]
    rows, unit, _ = jax.tree.map(lambda *parts: jnp.stack(parts), *units)
    quantiles = jax.lax.map(lambda each: _quantile(*each), (rows, jnp.array(levels, rows.dtype)))
    first, second = quantiles * unit
    return first, second


def _quantile(rows: Float[Array, "n d"], level: Float[Array, ""]) -> Float[Array, ""]:
    """A quantile of the distances of rows about their centre."""
    # d² is at most 4 max‖x‖².
    highest = jnp.log(5 * jnp.max(jnp.sum(rows**2, axis=1)))
    finfo = jnp.finfo(rows.dtype)
    lowest = 2 * math.log(float(finfo.eps))
    num_passes = math.ceil(math.log((math.log(float(finfo.max)) - lowest) / _LOG_WIDTH, 3))

    def narrow(_: int, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        # A pass over the pairs counts at two levels, and leaves a third of the bracket.
        left, right = (2 * low + high) / 3, (low + 2 * high) / 3
        in_left, in_right = level <= fractions_below(rows, [jnp.exp(left), jnp.exp(right)])
        low = jnp.where(in_left, low, jnp.where(in_right, left, right))
        return low, jnp.where(in_left, left, jnp.where(in_right, right, high))

    start = jnp.asarray(lowest, rows.dtype), highest
    low, high = jax.lax.fori_loop(0, num_passes, narrow, start)
    # The bracket's middle, halved for the root of a square.
    return jnp.exp((low + high) / 4)


class _Bracket(NamedTuple):
    """An interval that holds the median, and the fractions of pairs below its ends."""

    low: Float[Array, ""]
    high: Float[Array, ""]
    below_low: Float[Array, ""]
    below_high: Float[Array, ""]


def _narrowed(
    bracket: _Bracket,
    centered: Float[Array, "n d"],
    thresholds: Sequence[Float[Array, ""]],
    *,
    by_differences: bool,
) -> _Bracket:
    """The bracket between the neighbouring thresholds."""
    low, high, below_low, below_high = bracket
    inside = tuple(jnp.clip(t, low, high) for t in thresholds)
    fractions = fractions_below(centered, inside, by_differences=by_differences)
    # The lower median is below a threshold if and only if at least half of the pairs are. Each
    # threshold moves the end on its own side, so counts verify both ends.
    for threshold, fraction in zip(inside, fractions, strict=True):
        rises = (fraction < 0.5) & (threshold > low)
        falls = (fraction >= 0.5) & (threshold < high)
        low, below_low = jnp.where(rises, threshold, low), jnp.where(rises, fraction, below_low)
        high, below_high = jnp.where(falls, threshold, high), jnp.where(falls, fraction, below_high)
    return _Bracket(low, high, below_low, below_high)


def _thresholds_within(bracket: _Bracket, half_width: float) -> Sequence[Float[Array, ""]]:
    """Two thresholds on either side of the likely median."""
    low, high, below_low, below_high = bracket
    # The point at which the fraction would reach a half if it rose evenly, and half-way points on
    # both sides in case it does not: every pass at least halves the bracket, on a logarithmic
    # scale.
    share = (0.5 - below_low) / jnp.maximum(below_high - below_low, jnp.finfo(low.dtype).eps)
    middle = jnp.sqrt(low) * jnp.sqrt(high)
    even = jnp.where(high < 4 * low, low + share * (high - low), middle)
    left, right = even * (1 - half_width * 0.9), even * (1 + half_width * 0.9)
    lower = jnp.sqrt(low) * jnp.sqrt(jnp.maximum(left, low))
    upper = jnp.sqrt(high) * jnp.sqrt(jnp.minimum(right, high))
    return lower, left, right, upper


def _median(
    centered: Float[Array, "n d"],
    guess: Float[Array, ""],
    tolerance: float,
    coincident: Float[Array, ""],
    *,
    by_differences: bool,
) -> Float[Array, ""]:
    """The median of squares, of centred rows and by one kind of distances."""
    half_width = tolerance / 2
    # d² is at most 4 max‖x‖². Up to `floor` rows coincide, whatever the largest deviation is.
    highest = 5 * jnp.max(jnp.sum(centered**2, axis=1))
    floor = jnp.maximum(coincident, jnp.finfo(centered.dtype).tiny)

    def unresolved(carry: tuple[_Bracket, int]) -> Bool[Array, ""]:
        bracket, passes = carry
        return (bracket.high > bracket.low * (1 + tolerance)) & (passes < 100)

    def body(carry: tuple[_Bracket, int]) -> tuple[_Bracket, int]:
        bracket, passes = carry
        thresholds = _thresholds_within(bracket, half_width)
        return _narrowed(bracket, centered, thresholds, by_differences=by_differences), passes + 1

    zero, one = jnp.zeros((), centered.dtype), jnp.ones((), centered.dtype)
    # The inner two enclose the guess within the tolerance: if it is right the loop ends at once.
    # The outer two catch a guess that is slightly off.
    factors = 1 - 16 * half_width, 1 - half_width * 0.9, 1 + half_width * 0.9, 1 + 16 * half_width
    start = _narrowed(
        _Bracket(floor, highest, zero, one),
        centered,
        [guess * factor for factor in factors],
        by_differences=by_differences,
    )
    (low, high, *_), _ = jax.lax.while_loop(unresolved, body, (start, 1))
    # A bracket that has shrunk onto the floor contains pairs that coincide up to rounding.
    return jnp.where(low > floor, (low + high) / 2, 0)
