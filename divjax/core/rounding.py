"""Whether rounding leaves the differences between numbers that an answer depends on."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

__all__ = ["LARGEST_ROUNDING", "is_rounded_away"]

# The largest rounding that is accepted, as a share of a spread, a width or a distance.
LARGEST_ROUNDING = 1e-2


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
