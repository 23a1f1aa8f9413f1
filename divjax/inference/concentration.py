"""Confidence bounds on means by Bennett's and Bernstein's inequalities, at every sample size.

No normal approximation is used: the probability that a bound is wrong is at most 1 − confidence for
any distribution on the interval, however skewed, even for samples of two values.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float

from divjax.core.arguments import as_leaves
from divjax.core.numerics import nan_unless, safe_sqrt
from divjax.core.samples import Numbers
from divjax.inference.bounded_samples import (
    Bounded,
    Draws,
    SampleArrays,
    add_origin,
    checked_draws,
    is_legal,
    sample_arrays,
)

__all__ = [
    "empirical_bernstein_lower_bound",
    "empirical_bernstein_upper_bound",
    "sum_of_means_lower_bound",
]


class _Moments(NamedTuple):
    """Moments of one sample: the number of rows that count, their mean and their variance.

    Mean and variance are of (X − lower)/width, so that squares of small widths do not underflow.
    """

    size: Array
    mean: Array
    variance: Array
    width: Array
    lower: Array
    legal: Array


def _moments(sample: SampleArrays) -> _Moments:
    _, values, lower, upper, mask = sample
    # Values with ends of their own all lie between the outermost ends.
    lower, upper = jnp.min(lower), jnp.max(upper)
    width, size = upper - lower, jnp.sum(mask)
    # In units of the interval, as the square of a small width may underflow.
    shares = (values - lower) / jnp.where(width > 0, width, 1)
    mean = jnp.sum(mask * shares) / jnp.maximum(size, 1)
    variance = jnp.sum(mask * jnp.square(shares - mean)) / jnp.maximum(size - 1, 1)
    return _Moments(size, mean, variance, width, lower, is_legal(sample))


def sum_of_means_lower_bound(
    *samples: Bounded, confidence_level: ArrayLike = 0.95
) -> Float[Array, ""]:
    """A lower confidence bound on Σ_k E[X_k] from one sample of each distribution.

    With sample means X̄_k, unbiased variances V_k, sizes n_k, widths R_k and L = log(2/δ),

        Σ X̄_k − √(2LW + L²a) − L√a − cL/3,
        W = Σ V_k/n_k,   a = max R_k²/(n_k(n_k − 1)),   c = max R_k/n_k,   δ = 1 − confidence.

    Only two events of probability δ/2 each can make the bound fail. In one, Σ X̄_k exceeds its
    expectation by √(2LE[W]) + cL/3 (Bennett's inequality for the independent terms X_ki/n_k).
    The other concerns W, which is self-bounding: replacing one value lowers it by at most
    R_k²/n_k², and the squares of these decreases sum to at most aW, so that E[W] − W > t has a
    probability below exp(−t²/(2aE[W])), hence √E[W] ≤ √(L a/2) + √(W + L a/2). All samples share
    the two events: δ is not split between them, and the deviations of different samples partly
    cancel.

    For one sample it is never below theorem 4 of Maurer and Pontil, whose last term is
    7RL/(3(n − 1)), against 4RL/(3n) here if the variance dominates.

    Args:
        *samples: one `Bounded` per distribution, independent of each other, of any sizes.
        confidence_level: the least probability that the bound holds.

    Returns:
        The bound, at least Σ lower_k, to which it is equal if a sample has fewer than two rows. It
        is NaN if a value that counts is NaN or outside of its interval, the rounding of an
        interval's ends is too large a share of its width, or a traced confidence lies outside of
        (0, 1).

    Raises:
        ValueError: if there is no sample, a shape does not fit, a Python number for the confidence
            is not in (0, 1), or concrete ends of an interval are not in order.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> x, y = jax.random.uniform(jax.random.key(0), (2, 1000))
        >>> bound = sum_of_means_lower_bound(Bounded(x, 0.0, 1.0), Bounded(2 * y[:500], 0.0, 2.0))
        >>> 1.35 < float(bound) < 1.5  # the truth is ½ + 1
        True

    References:
        Maurer, Pontil 2009, theorems 4, 7 and 10; Maurer 2006, theorem 13, self-bounding functions;
        Boucheron, Lugosi, Massart 2013, theorem 2.9, Bennett's inequality.
    """
    if not samples:
        raise ValueError("samples must hold at least one Bounded; got none.")
    for sample in samples:
        if not isinstance(sample, Bounded):
            raise ValueError(
                f"samples must be Bounded(values, lower, upper); got {type(sample).__name__}."
            )
    # The sum's origin is the sum of the samples' origins, as bounds add.
    draws = tuple(checked_draws(sample, confidence_level, upper_bound=False) for sample in samples)
    return _sum_of_means(draws, _origin(draws), *as_leaves(confidence_level=confidence_level))


def _origin(draws: tuple[Draws, ...]) -> float:
    """The origin of the sum, added up in Python's precision."""
    return sum(draw.origin for draw in draws)


@functools.partial(jax.jit, static_argnames="upper_bound")
def _sum_of_means(
    draws: tuple[Draws, ...],
    origin: Float[Array, ""] | float,
    confidence_level: ArrayLike,
    *,
    upper_bound: bool = False,
) -> Float[Array, ""]:
    """`sum_of_means_lower_bound` after its checks, or the upper bound."""
    moments = [_moments(sample_arrays(draw, upper_bound=upper_bound)) for draw in draws]
    confidence_level = jnp.asarray(confidence_level, moments[0].mean.dtype)
    # L = log(2/δ): two events share the error probability.
    log_term = math.log(2) - jnp.log1p(-confidence_level)
    # In units of the widest interval.
    unit = jnp.stack([m.width for m in moments]).max()
    widths = [m.width / jnp.where(unit > 0, unit, 1) for m in moments]
    sizes = [jnp.maximum(m.size, 1) for m in moments]
    each = list(zip(moments, widths, sizes, strict=True))
    # W, a and c of the docstring.
    spread = sum(width**2 * m.variance / size for m, width, size in each)
    a = jnp.stack([w**2 / jnp.maximum(m.size * (m.size - 1), 1) for m, w, _ in each]).max()
    c = jnp.stack([width / size for _, width, size in each]).max()
    # As a > 0, the root's argument is positive even for constant values, and derivatives finite.
    radius = safe_sqrt(2 * log_term * spread + log_term**2 * a) + log_term * (safe_sqrt(a) + c / 3)
    least = jnp.sum(jnp.stack([m.lower for m in moments]))
    excess = jnp.sum(jnp.stack([width * m.mean for m, width, _ in each])) - radius
    # A single row has no variance, so only the lower ends are certain.
    enough = jnp.stack([m.size > 1 for m in moments]).all()
    bound = least + unit * jnp.where(enough, jnp.maximum(excess, 0), 0)
    bound = add_origin(-origin if upper_bound else origin, bound, least)
    legal = (
        jnp.stack([m.legal for m in moments]).all()
        & (confidence_level > 0)
        & (confidence_level < 1)
    )
    bound = nan_unless(legal, bound)
    return -bound if upper_bound else bound


def empirical_bernstein_lower_bound(
    values: Float[Numbers, " n"],
    lower: ArrayLike,
    upper: ArrayLike,
    *,
    confidence_level: ArrayLike = 0.95,
    mask: Bool[Numbers, " n"] | None = None,
) -> Float[Array, ""]:
    """A lower confidence bound on the mean of values in [lower, upper], from mean and variance.

    It is `sum_of_means_lower_bound` of one sample: X̄ − √(2LV/n) − O(L/n) with
    L = log(2/(1 − confidence)). The sample's variance V replaces the interval's width of
    Hoeffding's bound.

    Args:
        values: independent draws of one distribution.
        lower: the least possible value.
        upper: the largest possible value.
        confidence_level: the least probability that the bound holds.
        mask: which rows count. It must not depend on the values.

    Returns:
        The bound, at least `lower`, or NaN if a value that counts is outside of the interval.

    Raises:
        ValueError: as for `sum_of_means_lower_bound`.

    Example:
        >>> import jax
        >>> values = jax.random.uniform(jax.random.key(0), (1000,))
        >>> 0.44 < float(empirical_bernstein_lower_bound(values, 0.0, 1.0)) < 0.5
        True

    References:
        Maurer, Pontil 2009, theorem 4, with smaller constants.
    """
    return sum_of_means_lower_bound(
        Bounded(values, lower, upper, mask), confidence_level=confidence_level
    )


def empirical_bernstein_upper_bound(
    values: Float[Numbers, " n"],
    lower: ArrayLike,
    upper: ArrayLike,
    *,
    confidence_level: ArrayLike = 0.95,
    mask: Bool[Numbers, " n"] | None = None,
) -> Float[Array, ""]:
    """An upper confidence bound on the mean: minus the lower bound of −values.

    Args:
        values: independent draws of one distribution.
        lower: the least possible value.
        upper: the largest possible value.
        confidence_level: the least probability that the bound holds.
        mask: which rows count. It must not depend on the values.

    Returns:
        The bound, at most `upper`, or NaN if a value that counts is outside of the interval.

    Raises:
        ValueError: as for `sum_of_means_lower_bound`.

    Example:
        >>> import jax
        >>> values = jax.random.uniform(jax.random.key(0), (1000,))
        >>> 0.5 < float(empirical_bernstein_upper_bound(values, 0.0, 1.0)) < 0.56
        True
    """
    draws = checked_draws(Bounded(values, lower, upper, mask), confidence_level, upper_bound=True)
    return _sum_of_means(
        (draws,), draws.origin, *as_leaves(confidence_level=confidence_level), upper_bound=True
    )
