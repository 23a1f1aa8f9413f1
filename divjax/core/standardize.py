"""Each feature's location and scale, and a standardisation that is robust to single rows.

`mean_and_scale` are the moments. `robust_standardizer` gives those of winsorised samples, and the
limits beyond which a `Standardizer` compresses a feature (or clips it).
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from divjax.core.ordering import ascending_order
from divjax.core.pytrees import for_each

__all__ = ["Standardizer", "mean_and_scale", "robust_standardizer"]

# Limits lie this many spreads from the median: one row in two million of a Gaussian lies beyond.
LIMIT = 5.0

# Quantiles from which the spread of a tail is computed. The interquartile range alone is robust to
# a quarter of bad rows. The outer levels follow skewed and heavy tails, and are robust to one in a
# hundred.
QUARTILE = (0.25,)
TAIL = (0.25, 0.1, 0.03, 0.01)

# A feature's rare values determine its spread if at least this share of the rows has them.
RARE = 0.01

# Fewer rows than this have no limits.
FEW_ROWS = 4

# Quantiles are computed from at most this many rows, evenly spread over all.
QUANTILE_ROWS = 8192


def mean_and_scale(
    x: Float[Array, "n d"], weights: Float[Array, " n"]
) -> tuple[Float[Array, " d"], Float[Array, " d"]]:
    """Each feature's weighted mean and standard deviation, 1 if that is 0 up to rounding.

    Args:
        x: rows, of which those of weight zero may hold any value.
        weights: weights of any sum, not all zero.

    Returns:
        The mean and the scale, with which (x − mean)/scale is exactly 0 for a constant feature.

    Example:
        >>> import jax.numpy as jnp
        >>> mean, scale = mean_and_scale(jnp.array([[0.1, 1.0], [0.1, 3.0]]), jnp.array([0.5, 0.5]))
        >>> mean.tolist(), scale.tolist()
        ([0.1, 2.0], [1.0, 1.0])
    """
    used = (weights > 0)[:, None]
    share = weights / jnp.sum(weights)
    # Deviations from a value of the feature itself, and in units of the largest: constant features
    # are exactly so, and squares are neither too large nor too small.
    origin = jnp.max(jnp.where(used, x, -jnp.inf), axis=0)
    deviation = jnp.where(used, x - origin, 0)
    shift = share @ deviation
    # Zero once more: rows of weight zero are at −shift now, which must not determine the unit.
    deviation = jnp.where(used, deviation - shift, 0)
    unit = jnp.max(jnp.abs(deviation), axis=0)
    unit = jnp.where(unit > 0, unit, 1)
    scale = unit * jnp.sqrt(share @ (deviation / unit) ** 2)
    mean = origin + shift
    # A spread of a few units in the last place of the mean is the rounding of a constant feature.
    return mean, jnp.where(scale > 4 * jnp.finfo(x.dtype).eps * jnp.abs(mean), scale, 1)


class Standardizer(NamedTuple):
    """Features in units of their spread, z = (x − mean)/scale, robust to outliers.

    Between the limits all three maps agree: there an affine-invariant model (linear, quadratic,
    Gaussian) is the same as without limits. An infinite or NaN value becomes NaN.

    Attributes:
        mean: the mean of each feature.
        scale: the scale of each feature, positive.
        lower: the lower limit of z.
        upper: the upper limit of z.
    """

    mean: Float[Array, " d"]
    scale: Float[Array, " d"]
    lower: Float[ArrayLike, " d"]
    upper: Float[ArrayLike, " d"]

    def affine(self, x: Float[Array, "b d"]) -> Float[Array, "b d"]:
        """The unbounded z."""
        largest = jnp.finfo(x.dtype).max
        z = jnp.clip((x - self.mean) / self.scale, -largest, largest)
        return jnp.where(jnp.isfinite(x), z, jnp.nan)

    def clip(self, x: Float[Array, "b d"]) -> Float[Array, "b d"]:
        """The winsorised z, clipped to the limits."""
        return jnp.clip(self.affine(x), self.lower, self.upper)

    def squash(self, x: Float[Array, "b d"]) -> Float[Array, "b d"]:
        """The z, beyond a limit replaced by limit ± log(1 + log(1 + distance)).

        Strictly increasing with a continuous derivative, so f-divergences and mutual information
        are those of x. Every float32 is within five units of a limit, and values with a relative
        difference of a thousandth stay distinct.
        """
        z = self.affine(x)
        beyond = lambda distance: jnp.log1p(jnp.log1p(jnp.maximum(distance, 0)))
        inside = jnp.clip(z, self.lower, self.upper)
        return inside + beyond(z - self.upper) - beyond(self.lower - z)


def robust_standardizer(
    *samples: tuple[Float[Array, "_ d"], Float[Array, " _"]], keep_tails: bool = False
) -> Standardizer:
    """The standardizer of samples of equal total weight, robust to a few of their rows.

    Each sample has limits of its own, five spreads from its median, and is winsorised there. The
    standardizer uses `mean_and_scale` of all winsorised samples together, the plain moments if
    there are no outliers. The spread is a Gaussian's with the same interquartile range, at least
    the median deviation of the rows that deviate at all, so zero-inflated and binary features have
    one too. A standardizer's limits enclose those of all samples: a sample much wider than, or far
    from, the other is not an outlier.

    Args:
        samples: pairs of rows and weights; rows of weight zero may hold any value.
        keep_tails: whether the limits follow the samples' outer quantiles too, to 1 % on either
            side. Then skewed distributions lie inside, and the limits are robust to 1 % of bad rows
            instead of 25 %.

    Returns:
        The standardizer, at which gradients are stopped. O(d n log n) up to 8192 rows; for larger
        samples, quantiles are those of an evenly spaced subset of that size.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> x, y = jax.random.normal(jax.random.key(0), (2, 500, 1))
        >>> even = jnp.full(500, 1 / 500)
        >>> standardizer = robust_standardizer((x.at[0].set(999999.0), even), (y + 1, even))
        >>> abs(float(standardizer.mean[0]) - 0.5) < 0.1  # of N(0, 1) and N(1, 1) together
        True
        >>> float(standardizer.squash(jnp.array([[999999.0]]))[0, 0]) < 10
        True

    References:
        Tukey 1977: fences from quartiles. Dixon 1960: winsorised means.
    """
    samples = jax.lax.stop_gradient(samples)
    levels = TAIL if keep_tails else QUARTILE
    quantiles = for_each(lambda x, weights: _quantiles(x, weights, levels), samples)

    # A feature that is constant up to a few rows in every sample has the spread of those few.
    widths = jnp.stack([jnp.maximum(each.below, each.above) for each in quantiles])
    nowhere = (widths == 0).all(axis=0)
    rare = LIMIT * jnp.max(jnp.stack([each.rare for each in quantiles]), axis=0)
    limits = [
        (
            each.median - jnp.where(nowhere, rare, each.below),
            each.median + jnp.where(nowhere, rare, each.above),
        )
        for each in quantiles
    ]

    # Each sample is clipped at its own limits and has the same share of the common moments.
    rows = [jnp.clip(x, *own) for (x, _), own in zip(samples, limits, strict=True)]
    shares = [weights / jnp.sum(weights) / len(samples) for _, weights in samples]
    mean, scale = mean_and_scale(jnp.concatenate(rows), jnp.concatenate(shares))
    # The widest limits: one sample's bulk may lie beyond the other's.
    lower = jnp.min(jnp.stack([low for low, _ in limits]), axis=0)
    upper = jnp.max(jnp.stack([high for _, high in limits]), axis=0)
    return Standardizer(mean, scale, (lower - mean) / scale, (upper - mean) / scale)


class _Quantiles(NamedTuple):
    """A sample's median, the distances of its limits from it, and its rare values' deviation."""

    median: Float[Array, " d"]
    below: Float[Array, " d"]
    above: Float[Array, " d"]
    rare: Float[Array, " d"]


def _quantiles(
    x: Float[Array, "n d"], weights: Float[Array, " n"], levels: Sequence[float]
) -> _Quantiles:
    if x.shape[0] > QUANTILE_ROWS:
        # Evenly spread over the rows of nonzero weight.
        by_use = jnp.argsort(weights <= 0, stable=True)
        share = jnp.arange(QUANTILE_ROWS, dtype=x.dtype) / QUANTILE_ROWS
        num_used = jnp.sum(weights > 0).astype(x.dtype)
        index = by_use[(share * num_used).astype(by_use.dtype)]
        x, weights = x[index], weights[index]
    used, dtype = weights > 0, x.dtype
    # More than one row lies beyond a quantile, however small the sample.
    least = 1.5 * jnp.sum(weights**2) / jnp.sum(weights) ** 2
    beyond = jnp.minimum(jnp.maximum(jnp.asarray(levels, dtype), least), 0.25)
    gaussian = -jax.scipy.special.ndtri(beyond)[:, None]

    half = jnp.full(1, 0.5, dtype)

    def of_feature(column):
        every = jnp.concatenate([half, beyond, 1 - beyond])
        median, *tails = _weighted_quantiles(column, weights, every)
        low, high = jnp.stack(tails).reshape(2, -1)
        deviation = jnp.abs(column - median)
        deviates = jnp.where(deviation > 0, weights, 0)
        share = jnp.sum(deviates) / jnp.sum(weights)
        rare = _weighted_quantiles(deviation, deviates, half)[0]
        return low, median, high, jnp.where(share > 0, rare, 0), share

    # Zero-weight rows are replaced by a row of nonzero weight: their values may not be finite.
    column = jnp.where(used[:, None], x, x[jnp.argmax(used)])
    low, median, high, rare, share = jax.vmap(of_feature, 1, -1)(column)
    floor = jnp.where(share >= jnp.maximum(least, RARE), rare, 0)
    # Half of the interquartile range on both sides: one side alone may be a tie.
    below, above = (median - low) / gaussian, (high - median) / gaussian
    floor = jnp.maximum(floor, (below[0] + above[0]) / 2)
    # The quartiles of so few rows cannot indicate an outlier.
    few = least * FEW_ROWS > 1.5

    def limit(spreads: Float[Array, "k d"]) -> Float[Array, " d"]:
        """The distance from the median beyond which a row is an outlier."""
        return jnp.where(few, jnp.inf, LIMIT * jnp.maximum(jnp.max(spreads, axis=0), floor))

    return _Quantiles(median, limit(below), limit(above), rare)


def _weighted_quantiles(
    values: Float[Array, " n"], weights: Float[Array, " n"], levels: Float[Array, " k"]
) -> Float[Array, " k"]:
    """The least values such that at least these shares of the weight do not exceed them."""
    order = ascending_order(values)
    mass = jnp.cumsum(weights[order])
    # A share that is met exactly is met whichever way the sums are rounded.
    rounding = 8 * jnp.finfo(mass.dtype).eps
    index = jnp.searchsorted(mass, (levels - rounding) * mass[-1])
    return values[order][jnp.minimum(index, values.shape[0] - 1)]
