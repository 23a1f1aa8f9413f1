"""Whether JAX's dtype holds NumPy's numbers: integers exactly, floats beside their spread."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from divjax.core.numerics import at_least_single
from divjax.core.programs import is_traced
from divjax.core.rounding import LARGEST_CONVERSION_ROUNDING
from divjax.core.samples import (
    Numbers,
    Unrounded,
    as_numbers,
    check_distinguishable,
    dtype_in_jax,
)

__all__ = ["check_held", "features_within_range", "is_below_range", "nan_if_lost"]


def check_held(name: str, array: Unrounded) -> None:
    """Raise `ValueError` for NumPy's numbers that JAX's dtype does not hold.

    Integers must be held exactly, and the rounding of floats be small beside their spread.

    Example:
        >>> check_held("ids", np.array([2**40]))
        Traceback (most recent call last):
        ValueError: ids must hold integers within int32; got up to 1099511627776. Enable 64 bits.
    """
    if isinstance(array, jax.Array) or not array.size:
        return
    dtype = jax.dtypes.canonicalize_dtype(array.dtype)
    if array.dtype.kind in "iu":
        if not np.array_equal(array.astype(dtype), array):
            largest = array[np.argmax(np.abs(array.astype(float)))] if array.ndim else array
            raise ValueError(
                f"{name} must hold integers within {dtype}; got up to {largest}. Enable 64 bits."
            )
    elif array.dtype.kind == "f" and array.dtype != dtype:
        with np.errstate(over="ignore"):
            rounded = array.astype(dtype)
        if not np.array_equal(np.isinf(rounded), np.isinf(array)):
            raise ValueError(f"{name} must hold numbers within the range of {dtype}.")
        check_distinguishable(name, np.atleast_1d(array))


def features_within_range(array: Unrounded) -> Unrounded:
    """NumPy's matrix, features beyond the range of JAX's dtype in units of a power of two.

    For functions that do not depend on the features' units. Others are unchanged.

    Example:
        >>> features_within_range(np.array([[1e-50, 1.0], [-3e-50, 2.0]])).round(3).tolist()
        [[0.468, 1.0], [-1.403, 2.0]]
    """
    if isinstance(array, jax.Array) or array.ndim != 2 or not array.size:
        return array
    known = np.where(np.isfinite(array), array, np.nan)
    with np.errstate(invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a feature without a finite value
        spread = np.nanmax(known, axis=0) / 2 - np.nanmin(known, axis=0) / 2
    exponent = np.frexp(np.nan_to_num(spread))[1]
    # Far from the ends, so that squares of a few of them are not lost either.
    beyond = np.abs(exponent) > jnp.finfo(dtype_in_jax(array)).maxexp // 2
    return np.ldexp(array, np.where(beyond, -exponent, 0))


def is_below_range(*arrays: Unrounded) -> bool:
    """Whether known numbers differ by less than JAX's dtype can hold, as raw likelihoods may."""
    if is_traced(arrays):
        return False
    dtype = at_least_single(jnp.result_type(*map(dtype_in_jax, arrays)))
    pooled = np.concatenate([np.asarray(part, np.float64) for part in arrays])
    limits, known = jnp.finfo(dtype), pooled[np.isfinite(pooled)]
    spread = np.ptp(known) if known.size else 0.0
    return bool(0 < spread < float(limits.tiny) / LARGEST_CONVERSION_ROUNDING)


def nan_if_lost(name: str, given: Numbers, rounded: Array) -> Array:
    """The rounded rows; NaN if NumPy's differ by less than the dtype holds.

    They would pass for copies of one row. JAX's arrays were rounded before, if at all.

    Example:
        >>> nan_if_lost("x", [[1e-50], [3e-50]], jnp.zeros((2, 1))).tolist()
        [[nan], [nan]]
    """
    numbers = as_numbers(name, given)
    lost = isinstance(numbers, np.ndarray) and is_below_range(numbers)
    return jnp.full_like(rounded, jnp.nan) if lost else rounded
