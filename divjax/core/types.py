"""What every estimator returns."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.scipy.special import ndtri
from jaxtyping import Array, ArrayLike, Float

from divjax.core.checks import check_probability

__all__ = ["Estimate", "Interval", "normal_estimate", "normal_interval", "normal_quantile"]


class Interval(NamedTuple):
    """A confidence interval."""

    lower: Float[Array, "..."]
    upper: Float[Array, "..."]


class Estimate(NamedTuple):
    """An estimated number, how far it may be off, and what speaks against it.

    Attributes:
        value: the estimate, never clipped to where the truth must lie.
        std_error: its standard error.
        interval: the confidence interval, at the level that was asked for.
        effective_sample_size: of how many equally weighted samples it is worth; the estimator says
            of which.
        diagnostics: a NamedTuple of the estimator's own, or `()`.
    """

    value: Float[Array, ""]
    std_error: Float[Array, ""]
    interval: Interval
    effective_sample_size: Float[Array, ""]
    diagnostics: Any


def normal_quantile(level: ArrayLike, dtype: Any) -> Array:
    """The z for which a normal variable lies in ±z with probability `level`."""
    check_probability(level=level)
    # The lower quantile's negative: (1 + level)/2 would round to one long before the level does.
    return -ndtri((1 - jnp.asarray(level, dtype)) / 2)


def normal_interval(
    value: Float[ArrayLike, "..."], std_error: Float[ArrayLike, "..."], level: ArrayLike = 0.95
) -> Interval:
    """The two-sided interval value ± z · std_error, z the normal quantile of (1 + level)/2.

    Args:
        value: the estimate, of any shape.
        std_error: its standard error.
        level: the probability that the interval is to cover the truth.

    Returns:
        The interval.

    Raises:
        ValueError: if the level is a Python number outside of (0, 1).

    Example:
        >>> [float(end) for end in normal_interval(1.0, 0.1)]
        [0.804, 1.196]
    """
    dtype = jnp.result_type(value, std_error)
    dtype = dtype if jnp.issubdtype(dtype, jnp.floating) else jnp.result_type(dtype, float)
    value, std_error = jnp.asarray(value, dtype), jnp.asarray(std_error, dtype)
    margin = normal_quantile(level, value.dtype) * std_error
    return Interval(value - margin, value + margin)


def normal_estimate(
    value: Float[Array, ""],
    std_error: Float[Array, ""],
    effective_sample_size: ArrayLike,
    diagnostics: Any = (),
    level: ArrayLike = 0.95,
) -> Estimate:
    """An estimate with the interval of one that is nearly normal."""
    size = jnp.asarray(effective_sample_size, value.dtype)
    interval = normal_interval(value, std_error, level)
    return Estimate(value, std_error, interval, size, diagnostics)
