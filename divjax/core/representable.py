"""Whether JAX's dtype holds NumPy's numbers: integers exactly, floats beside their spread."""

import jax
import jax.numpy as jnp
import numpy as np

from divjax.core.numerics import at_least_single
from divjax.core.programs import is_traced
from divjax.core.rounding import LARGEST_CONVERSION_ROUNDING
from divjax.core.samples import Unrounded, check_distinguishable, dtype_in_jax

__all__ = ["check_held", "is_below_range"]


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


def is_below_range(*arrays: Unrounded) -> bool:
    """Whether known numbers differ by less than JAX's dtype can hold, as raw likelihoods may."""
    if is_traced(arrays):
        return False
    dtype = at_least_single(jnp.result_type(*map(dtype_in_jax, arrays)))
    pooled = np.concatenate([np.asarray(part, np.float64) for part in arrays])
    limits, known = jnp.finfo(dtype), pooled[np.isfinite(pooled)]
    spread = np.ptp(known) if known.size else 0.0
    return bool(0 < spread < float(limits.tiny) / LARGEST_CONVERSION_ROUNDING)
