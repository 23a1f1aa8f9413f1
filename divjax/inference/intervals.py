"""Confidence intervals of estimates that are nearly normal, directly or after a logit."""

import jax
import jax.numpy as jnp
from jaxtyping import ArrayLike, Float

from divjax.core.arguments import as_leaves
from divjax.core.checks import check_no_negatives, check_positive_values, check_probability
from divjax.core.numerics import nan_unless
from divjax.core.samples import Numbers, as_arrays
from divjax.core.types import Interval, normal_interval, normal_quantile

__all__ = ["logit_interval", "normal_interval"]


def logit_interval(
    value: Float[Numbers, "..."],
    std_error: Float[Numbers, "..."],
    confidence_level: ArrayLike = 0.95,
    *,
    upper: ArrayLike = 1.0,
) -> Interval:
    """An interval inside of (0, upper): the normal one of log(v/(upper − v)), mapped back.

    By the delta method the logit has the standard error std_error · upper/(v (upper − v)). Suited
    to shares, the AUC, and the Jensen–Shannon divergence with upper = log 2.

    Args:
        value: the estimate v, of any shape.
        std_error: its standard error.
        confidence_level: the intended probability that the interval covers the truth.
        upper: the largest possible value. The least is 0.

    Returns:
        The interval's ends. For v at or beyond 0 or `upper`, which has no logit, they are those of
        the normal interval, clipped to the range.

    Raises:
        ValueError: if the level is not one number, or a Python number outside of (0, 1), or a
            concrete standard error is negative, or a concrete `upper` not positive. Invalid traced
            arguments make the interval NaN.

    Example:
        >>> [round(float(end), 3) for end in logit_interval(0.98, 0.015)]
        [0.916, 0.995]

    References:
        Pepe 2003, section 5.2.5, for the AUC.
    """
    leaves = as_leaves(value=value, std_error=std_error, upper=upper)
    check_positive_values(upper=leaves[2])
    check_no_negatives(std_error=leaves[1])
    check_probability(confidence_level=confidence_level)
    return _logit_interval(*leaves, *as_leaves(confidence_level=confidence_level))


@jax.jit
def _logit_interval(
    value: ArrayLike, std_error: ArrayLike, upper: ArrayLike, confidence_level: ArrayLike
) -> Interval:
    value, std_error, upper = as_arrays(value=value, std_error=std_error, upper=upper)
    plain = normal_interval(value, std_error, confidence_level)
    upper = nan_unless(upper > 0, upper)
    # Only values inside have a logit. The ends get the plain interval, clipped to the range.
    inside = (value > 0) & (value < upper)
    v = jnp.where(inside, value, upper / 2)
    margin = normal_quantile(confidence_level, value.dtype) * std_error * upper / (v * (upper - v))
    odds = v / (upper - v)
    # upper · sigmoid(log odds ± margin), each by the exponential that cannot overflow.
    shrink = jnp.exp(-margin)
    low, high = upper * odds * shrink / (1 + odds * shrink), upper * odds / (odds + shrink)
    lower, higher = jnp.clip(plain.lower, 0, upper), jnp.clip(plain.upper, 0, upper)
    # NaN in the plain interval stays NaN.
    ordered = plain.lower <= plain.upper
    low, high = nan_unless(ordered, low), nan_unless(ordered, high)
    lower, higher = nan_unless(upper > 0, lower), nan_unless(upper > 0, higher)
    return Interval(jnp.where(inside, low, lower), jnp.where(inside, high, higher))
