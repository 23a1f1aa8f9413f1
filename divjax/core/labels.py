"""Labels of rows: groups, strata, masks."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Int

__all__ = ["number_labels", "pool_labels"]


def pool_labels(name: str, labels: Any, size_x: int, size_y: int) -> Array:
    """Labels of all rows of two samples, those of x first; concrete ones of any kind are numbered.

    Args:
        name: of the argument, for the message.
        labels: a pair of vectors: integers, booleans or, unless traced, text.
        size_x: the number of rows of x.
        size_y: the number of rows of y.

    Raises:
        ValueError: if they are not two vectors of these sizes, or a label is NaN or None.

    Example:
        >>> pool_labels("groups", (["b", "a"], ["c"]), 2, 1).tolist()
        [1, 0, 2]
    """
    pair = isinstance(labels, (list, tuple)) and len(labels) == 2
    shapes = [np.shape(part) for part in labels] if pair else None
    if shapes != [(size_x,), (size_y,)]:
        got = shapes or f"one {type(labels).__name__}"
        raise ValueError(
            f"{name} must be two vectors, of shapes ({size_x},) and ({size_y},); got {got}."
        )
    if any(isinstance(part, Tracer) for part in labels):
        return jnp.concatenate([jnp.asarray(part) for part in labels])
    pooled = np.concatenate([np.asarray(part) for part in labels])
    missing = pooled != pooled  # NaN alone
    if pooled.dtype == object:
        missing |= np.array([label is None for label in pooled])
    if missing.any():
        raise ValueError(f"{name} must name every row; got labels that are NaN or None.")
    numbered = pooled if pooled.dtype == bool else np.unique(pooled, return_inverse=True)[1]
    return jnp.asarray(numbered)


def number_labels(labels: Array) -> Int[Array, " rows"]:
    """Labels as integers from 0, equal where the labels are.

    Example:
        >>> number_labels(jnp.array([7, 3, 7])).tolist()
        [1, 0, 1]
    """
    return jnp.unique(labels, size=labels.shape[0], return_inverse=True)[1].reshape(-1)
