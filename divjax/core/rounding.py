"""Whether rounding leaves the differences between numbers that an answer depends on."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

__all__ = [
    "LARGEST_CONVERSION_ROUNDING",
    "LARGEST_ROUNDING",
    "is_rounded_away",
    "rounding_and_spread",
]

# The largest rounding that is accepted, as a share of a spread, a width or a distance.
LARGEST_ROUNDING = 1e-2

# The largest rounding of NumPy's numbers in JAX's dtype, as a share of their spread.
LARGEST_CONVERSION_ROUNDING = 1e-3


def is_rounded_away(
    size: Float[Array, "*#s"], spread: Float[Array, "*#s"], share: float = LARGEST_ROUNDING
) -> Bool[Array, "*s"]:
    """Whether numbers of this size are rounded by more than a share of their spread.

    Example:
        >>> spread = jnp.ones(2, jnp.float32)
        >>> is_rounded_away(jnp.array([1e4, 1e6], jnp.float32), spread).tolist()
        [False, True]
    """
    return jnp.finfo(size.dtype).eps * size > share * spread


def rounding_and_spread(
    given: np.ndarray, rounded: np.ndarray, axis: int | None = None
) -> tuple[np.ndarray | np.floating, np.ndarray | np.floating]:
    """The largest rounding of finite numbers, and their range, of all or along an axis.

    Numbers below the smallest normal one of the dtype, which XLA may compute with as zero, are
    rounded to zero; half precision is computed with in single precision, which holds its numbers.

    Example:
        >>> exact = np.array([1e8, 1e8 + 1])
        >>> [float(number) for number in rounding_and_spread(exact, exact.astype(np.float32))]
        [1.0, 1.0]
    """
    finite = np.isfinite(given) & np.isfinite(rounded)
    # Numbers that are not finite are flagged elsewhere. Without others there is no spread.
    exact = np.where(finite, given, 0).astype(float)
    held = np.where(finite, rounded, 0).astype(float)
    if rounded.dtype in (np.float32, np.float64):
        held = np.where(np.abs(held) < np.finfo(rounded.dtype).tiny, 0, held)
    rounding = np.abs(exact - held).max(axis=axis)
    largest = np.where(finite, exact, -np.inf).max(axis=axis)
    smallest = np.where(finite, exact, np.inf).min(axis=axis)
    return rounding, np.maximum(largest - smallest, 0)
