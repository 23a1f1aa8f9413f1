"""Samples of bounded values, as arguments of the confidence bounds on their means.

Intervals and masks are checked. An end of the interval is subtracted from NumPy's values in
float64, before float32 rounds them.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Bool, Float

from divjax.core.arguments import Leaf, as_leaves, vector_leaves
from divjax.core.checks import check_below, check_probability
from divjax.core.numerics import at_least_single
from divjax.core.samples import Numbers, Unrounded, as_arrays, owned

__all__ = [
    "Bounded",
    "Draws",
    "SampleArrays",
    "add_origin",
    "checked_draws",
    "is_legal",
    "sample_arrays",
]

# The largest rounding of an interval's ends, as a share of its width.
_LARGEST_SLACK = 0.05


class Bounded(NamedTuple):
    """Independent draws of one distribution on a known interval.

    Attributes:
        values: the draws, of shape (n,).
        lower: the least possible value, known in advance rather than learned from the sample.
        upper: the largest possible value.
        mask: which rows count, of shape (n,), all by default. It must not depend on the values.
    """

    values: Float[Numbers, " n"]
    lower: ArrayLike
    upper: ArrayLike
    mask: Bool[Numbers, " n"] | None = None


class Draws(NamedTuple):
    """A sample as an argument of a compiled function.

    Attributes:
        values: the draws, relative to the origin.
        lower: the lower ends, relative to the origin.
        upper: the upper ends, relative to the origin.
        mask: which rows count, None if all do.
        origin: the number that was subtracted: for NumPy's and Python's numbers the least finite
            lower end, or for an upper bound the largest finite upper end, and otherwise zero.
    """

    values: Leaf
    lower: Leaf
    upper: Leaf
    mask: Unrounded | None
    origin: float


def checked_draws(sample: Bounded, confidence_level: ArrayLike, *, upper_bound: bool) -> Draws:
    """The draws of a sample, after checks of its interval and mask."""
    mask = sample.mask
    (values,) = vector_leaves(values=sample.values)
    shape = jnp.shape(values)
    if mask is not None:
        mask = mask if isinstance(mask, jax.Array) else owned(np.asarray(mask))
        if mask.shape != shape or not jnp.issubdtype(mask.dtype, jnp.bool_):
            raise ValueError(
                f"mask must be booleans of shape {shape}; got {mask.dtype} of shape {mask.shape}."
            )
    lower, upper = as_leaves(lower=sample.lower, upper=sample.upper)
    if not {np.shape(lower), np.shape(upper)} <= {(), shape}:
        raise ValueError(
            f"lower and upper must be numbers or of shape {shape}; got shapes {np.shape(lower)} "
            f"and {np.shape(upper)}."
        )
    check_below(lower, upper, True if mask is None else mask)
    check_probability(confidence_level=confidence_level)
    origin = 0.0
    # An end of the interval is subtracted from NumPy's numbers in float64, before they are rounded.
    if not any(isinstance(number, jax.Array) for number in (values, lower, upper)):
        ends = np.asarray(upper if upper_bound else lower)
        # Ends of rows that do not count are arbitrary.
        if ends.ndim and mask is not None and not isinstance(mask, Tracer):
            ends = ends[np.asarray(mask)]
        finite = ends[np.isfinite(ends)]
        if finite.size:
            origin = float(np.max(finite) if upper_bound else np.min(finite))
    if origin:
        # NumPy would round the difference, and the origin, to the half precision of an array.
        values, lower, upper = (
            number.astype(at_least_single(number.dtype)) - origin
            if isinstance(number, np.ndarray)
            else number - origin
            for number in (values, lower, upper)
        )
    return Draws(values, lower, upper, mask, origin)


class SampleArrays(NamedTuple):
    """Draws as arrays relative to their origin, with rows that do not count at the lower end."""

    origin: Float[Array, ""] | float
    values: Float[Numbers, " n"]
    lower: Array
    upper: Array
    mask: Float[Array, " n"]


def sample_arrays(draws: Draws, *, upper_bound: bool) -> SampleArrays:
    """The draws, or those of −X, whose lower bound is minus the upper one of X."""
    values, lower, upper = as_arrays(values=draws.values, lower=draws.lower, upper=draws.upper)
    # Half precision holds the values, but neither their sums nor their place in the interval.
    work = at_least_single(values.dtype)
    values, lower, upper = values.astype(work), lower.astype(work), upper.astype(work)
    origin = draws.origin
    if upper_bound:
        values, lower, upper, origin = -values, -upper, -lower, -origin
    valid = jnp.ones(values.shape, bool) if draws.mask is None else draws.mask
    # The ends of rows that do not count are ignored.
    some = jnp.any(valid)
    if lower.ndim:
        least = jnp.min(lower, where=valid, initial=jnp.inf)
        lower = jnp.where(valid | ~some, lower, least)
    if upper.ndim:
        greatest = jnp.max(upper, where=valid, initial=-jnp.inf)
        upper = jnp.where(valid | ~some, upper, greatest)
    return SampleArrays(origin, jnp.where(valid, values, lower), lower, upper, valid.astype(work))


def is_legal(sample: SampleArrays) -> Bool[Array, ""]:
    """Whether all values lie in the interval, up to the rounding of its ends, false for NaN.

    Also false if that rounding, or the origin's, is too large a share of the width.
    """
    origin, values, lower, upper, _ = sample
    unit = 8 * jnp.finfo(values.dtype).eps
    slack = unit * jnp.maximum(jnp.abs(lower), jnp.abs(upper))
    largest = jnp.maximum(jnp.max(slack), unit * jnp.abs(origin))
    resolved = largest <= _LARGEST_SLACK * (jnp.max(upper) - jnp.min(lower))
    return resolved & jnp.all((values >= lower - slack) & (values <= upper + slack))


def add_origin(origin: Float[Array, ""] | float, bound: Array, least: Array) -> Array:
    """The lower bound plus its origin, rounded downwards, but not below the lower end."""
    moved = origin + bound
    known = jax.lax.stop_gradient(moved)  # Some versions of JAX cannot differentiate nextafter.
    rounding = jnp.nextafter(known, -jnp.inf) - known
    return jnp.where(origin == 0, bound, jnp.maximum(moved + rounding, origin + least))
