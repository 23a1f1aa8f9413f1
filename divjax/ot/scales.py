"""Units of samples and of their costs, invariant to a shift and robust to a few outliers."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import scipy  # its parts are loaded where they are used
from jaxtyping import Array, Float

from divjax.core.training import spread_rows
from divjax.ot.given_costs import paired_costs

__all__ = ["mean_cost_within", "weighted_quantile", "winsorised", "winsorised_mean"]

# The limits on rows of each sample, and on partners of each row.
_ROWS, _PARTNERS = 1024, 32
# Costs are cut at this multiple of their median.
_CUT = 10.0
# The largest deviation of a winsorised feature from its median, in normal standard deviations.
_FAR_DEVIATIONS = 10.0


def mean_cost_within(
    cost: Callable[..., Array],
    x: Float[Array, "n d"],
    y: Float[Array, "m d"],
    a: Float[Array, " n"] | None = None,
    b: Float[Array, " m"] | None = None,
) -> Float[Array, ""]:
    """½ E c(X, X′) + ½ E c(Y, Y′) of independent pairs, large costs cut.

    Under the squared Euclidean cost E c(X, X′) = 2 tr Cov X, so this is the mean cost between the
    samples with equal means: it excludes the squared shift, which is irrelevant to the choice of ε.
    Costs are cut at ten times a sample's median, so that a few outliers do not set the unit. Means
    are over at most 1024 rows of each sample and 32 partners of each row, evenly spread.

    Args:
        cost: a symmetric cost, zero between equal points.
        x: samples.
        y: samples.
        a: weights of x, uniform by default.
        b: weights of y.

    Returns:
        The mean, positive: for constant samples the mean cost between them, or 1 if that is zero
        too. It is NaN if a cost is.
    """
    (x, a), (y, b) = _some_rows(x, a), _some_rows(y, b)
    within = (_mean_of_pairs(cost, x, a) + _mean_of_pairs(cost, y, b)) / 2
    rows = min(len(x), len(y))
    pairs = a[:rows] * b[:rows]
    between = jnp.sum(pairs * paired_costs(cost, x[:rows], y[:rows])) / jnp.sum(pairs)
    between = jnp.where(between == 0, 1, between)
    return jnp.where(within == 0, between, within)


def _some_rows(rows: Array, weights: Array | None) -> tuple[Array, Array]:
    """At most `_ROWS` rows, evenly spread over those with weight, which come first."""
    weights = jnp.ones(len(rows), rows.dtype) if weights is None else weights
    chosen = spread_rows(weights, _ROWS)
    return rows[chosen], weights[chosen]


def _mean_of_pairs(
    cost: Callable[..., Array], rows: Float[Array, "n d"], weights: Float[Array, " n"]
) -> Float[Array, ""]:
    """The mean cost between a row and others, winsorised. Rows with weight come first."""
    n = len(rows)
    if n == 1:
        return jnp.zeros((), rows.dtype)
    # Row i is paired with row i + k, for strides k evenly spread over all, among those with weight.
    # Of few rows the same stride may come several times, and counts once.
    used = jnp.maximum(jnp.sum(weights != 0), 1)
    strides = 1 + jnp.arange(min(n - 1, _PARTNERS)) * (used - 1) // min(n - 1, _PARTNERS)
    is_new = ((jnp.diff(strides, prepend=0) != 0) & (strides < used)).astype(weights.dtype)

    def pairs(stride: tuple[Array, Array]) -> tuple[Array, Array]:
        step, counts = stride
        partners = (jnp.arange(n) + step) % used
        return paired_costs(cost, rows, rows[partners]), weights * weights[partners] * counts

    costs, products = jax.lax.map(pairs, (strides, is_new))
    shares = products.ravel()
    total = jnp.sum(shares)
    # A single row with weight has no partner.
    return winsorised_mean(costs.ravel(), shares / jnp.where(total > 0, total, 1))


def winsorised_mean(values: Float[Array, " n"], weights: Float[Array, " n"]) -> Float[Array, ""]:
    """The mean of non-negative numbers, those above ten medians counted as ten medians.

    Args:
        values: numbers.
        weights: weights with sum one.
    """
    # If the median is zero, no number is cut.
    median = weighted_quantile(values, weights, 0.5)
    cut = jnp.where(median > 0, _CUT * median, jnp.inf)
    return jnp.sum(jnp.where(weights == 0, 0, weights * jnp.minimum(values, cut)))


def weighted_quantile(
    values: Float[Array, " n"], weights: Float[Array, " n"], share: float
) -> Float[Array, ""]:
    """The least value at which the cumulative weight reaches the share.

    Args:
        values: numbers.
        weights: weights with sum one.
        share: between 0 and 1.
    """
    order = jnp.argsort(values)
    return values[order][jnp.argmax(jnp.cumsum(weights[order]) >= share)]


def winsorised(
    rows: Float[Array, "n d"], weights: Float[Array, " n"] | None = None, *, share: float = 0.9
) -> Float[Array, "n d"]:
    """The rows, with features far from their median moved to the largest deviation allowed.

    For normal features that is ten standard deviations, measured by a quantile of the deviations
    from the median. A feature for which that quantile is zero is unchanged.

    Args:
        rows: samples.
        weights: weights with sum one, uniform by default.
        share: the share of the quantile; values with more than 1 − share of the mass are not
            outliers.
    """
    # The quantile of |z| of a standard normal variable.
    deviations = float(scipy.stats.norm.ppf((1 + share) / 2))
    weights = jnp.full(len(rows), 1 / len(rows), rows.dtype) if weights is None else weights

    def clipped(feature: Float[Array, " n"]) -> Float[Array, " n"]:
        median = weighted_quantile(feature, weights, 0.5)
        quantile = weighted_quantile(jnp.abs(feature - median), weights, share)
        far = jnp.where(quantile > 0, _FAR_DEVIATIONS / deviations * quantile, jnp.inf)
        return jnp.clip(feature, median - far, median + far)

    return jax.vmap(clipped, 1, 1)(rows)
