"""A function's own random numbers."""

import jax
from jaxtyping import Array, Key

from divjax.core.checks import check_key

__all__ = ["own_key"]

# Beyond any count of folds, seeds and steps that a user folds into a key.
_OWN = 0xD1F7A5


def own_key(key: Key[Array, ""] | None) -> Key[Array, ""]:
    """The key, checked, for draws that the caller's own keys do not repeat.

    `jax.random.split(key)[i]` is `jax.random.fold_in(key, i)`. If a sample was drawn by the latter,
    and a fit of it splits the same key, then the numbers that drew the rows would also assign them
    to folds, and sort them.

    Raises:
        ValueError: if this is not one typed key.
    """
    check_key(key)
    return jax.random.fold_in(key, _OWN)  # pyright: ignore[reportArgumentType]
