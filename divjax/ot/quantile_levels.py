"""The levels at which two quantile functions jump, merged, and the masses between them.

A mass is the difference of two cumulative shares, which rounding may make larger than the mass
itself. Levels of uniform weights are compared as integers here, and others in twice the digits of
the dtype.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from divjax.core.compensated import cumulative_sums, ratios

__all__ = ["MergedLevels", "has_certain_mass", "merged_by_weights", "merged_evenly"]


class MergedLevels(NamedTuple):
    """For each interval of the merged levels, the ranks of its rows in either sample, and its mass.

    Intervals between levels that coincide have mass zero.
    """

    of_x: Int[Array, " k"]
    of_y: Int[Array, " k"]
    masses: Float[Array, " k"]


def merged_evenly(n: int, m: int, dtype: DTypeLike) -> MergedLevels:
    """The levels i/n and j/m, exactly, without sorting."""
    # Integers of 32 bits may overflow in products. Their differences are right nevertheless, as all
    # that are used are below 2³¹ and arithmetic is modulo 2³².
    i = jnp.arange(1, n, dtype=jnp.int32)
    # The number of levels j/m < i/n is ⌊(i m − 1)/n⌋, found up to rounding, then corrected.
    before = (i.astype(dtype) * (m / n)).astype(jnp.int32)
    before = before + (i * m - 1 - before * n) // n
    jumps_of_x = jnp.zeros(n + m - 2, jnp.int32).at[i - 1 + before].set(1)
    of_x = jnp.append(jnp.int32(0), jnp.cumsum(jumps_of_x, dtype=jnp.int32))
    of_y = jnp.arange(n + m - 1, dtype=jnp.int32) - of_x
    # In units of 1/(n m), the row of x begins `later` than the row of y, and they are m and n long.
    later = of_x * m - of_y * n
    units = jnp.minimum(later + m, n) - jnp.maximum(later, 0)
    return MergedLevels(of_x, of_y, units.astype(dtype) / float(n * m))


def merged_by_weights(
    a: Float[Array, " n"] | None,
    b: Float[Array, " m"] | None,
    n: int,
    m: int,
    dtype: DTypeLike,
) -> MergedLevels:
    """The levels of rows in increasing order with these weights, None being uniform ones."""
    x_levels, x_shares = _levels_and_shares(a, n, dtype)
    y_levels, y_shares = _levels_and_shares(b, m, dtype)
    high, low = (jnp.concatenate(parts) for parts in zip(x_levels, y_levels, strict=True))
    keys = jax.lax.stop_gradient((high, low))
    *_, order = jax.lax.sort((*keys, jnp.arange(high.size)), num_keys=2)
    # At each level one of the two quantile functions jumps to its next value. Counting the jumps
    # replaces a search, and rounding of a level cannot lead beyond the last value.
    is_of_x = order < n - 1
    of_x = jnp.append(0, jnp.cumsum(is_of_x))
    of_y = jnp.arange(n + m - 1) - of_x
    zero, one = jnp.zeros(1, dtype), jnp.ones(1, dtype)
    widths = jnp.diff(high[order], prepend=zero, append=one)
    widths = widths + jnp.diff(low[order], prepend=zero, append=zero)
    # Between two successive levels of one sample lies a whole row, whose share is not rounded.
    masses, whole = widths, jnp.array(False)
    for is_of_side, shares in ((is_of_x, x_shares[of_x]), (~is_of_x, y_shares[of_y])):
        is_row = jnp.append(True, is_of_side) & jnp.append(is_of_side, True)
        masses, whole = jnp.where(is_row, shares, masses), whole | is_row
    # Rows of weight zero have no mass, even if rounding has divided them between two columns, and
    # neither have intervals between equal levels, which a compiler may divide in two ways; its
    # derivative is kept.
    least = jnp.where(whole, 0, 16 * float(jnp.finfo(dtype).eps) ** 2)
    dead = (x_shares == 0)[of_x] | (y_shares == 0)[of_y] | (masses < least)
    masses = masses - jax.lax.stop_gradient(jnp.where(dead, masses, 0))
    return MergedLevels(of_x, of_y, masses)


def _levels_and_shares(
    weights: Float[Array, " n"] | None, size: int, dtype: DTypeLike
) -> tuple[tuple[Array, Array], Array]:
    """The quantile function's jumps strictly inside of (0, 1), as pairs, and the rows' shares."""
    if weights is None:
        ranks = jnp.arange(1, size + 1)
        high = ranks.astype(dtype)
        low = (ranks - high.astype(ranks.dtype)).astype(dtype)
        weights = jnp.ones(size, dtype)
    else:
        # Equal weights count as None: they are ones then, with exact sums.
        unit = jnp.where(_are_even(weights), jnp.max(weights), 1)
        weights = weights / jax.lax.stop_gradient(unit)
        high, low = cumulative_sums(weights)
    return ratios((high[:-1], low[:-1]), (high[-1], low[-1])), weights / high[-1]


def _are_even(weights: Float[Array, " n"]) -> Bool[Array, ""]:
    """Whether all weights are equal, except zeros."""
    return jnp.all((weights == 0) | (weights == jnp.max(weights)))


def has_certain_mass(
    masses: Float[Array, " k"], *weights_of_rows: tuple[Float[Array, " _"], Int[Array, " k"]]
) -> Bool[Array, " k"]:
    """Whether an interval has mass for all weights that are rounded to those given.

    The levels .1 + .2 and .3 coincide but for rounding. An interval between two such levels that
    holds less than half of both its rows may be due to rounding alone.

    Args:
        masses: the masses, in increasing order of the levels.
        *weights_of_rows: for each sample its weights, and each interval's row.
    """
    level = jnp.cumsum(masses)
    # An error of relative size ε in each weight moves a level u by at most 2 ε u (1 − u).
    rounding = 4 * jnp.finfo(masses.dtype).eps * level * (1 - level)
    even, largest = jnp.array(True), jnp.zeros_like(masses)
    for weights, rows in weights_of_rows:
        # Uniform weights have exact levels.
        even &= _are_even(weights)
        share = weights[rows] / jnp.sum(weights)
        largest = jnp.maximum(largest, masses / jnp.where(share > 0, share, jnp.inf))
    return (masses > 0) & (even | (masses > rounding) | (largest >= 0.5))
