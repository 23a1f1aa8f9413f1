"""Labels of rows: groups, strata, masks."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.core import Tracer
from jaxtyping import Array, Int

from divjax.core.samples import Numbers, Unrounded, as_numbers, owned

__all__ = [
    "as_indices",
    "concrete_labels",
    "number_labels",
    "number_pairs",
    "pool_labels",
    "row_labels",
]


def as_indices(name: str, indices: Numbers) -> Unrounded:
    """Indices of classes, as arrays of integers.

    Those beyond the range of JAX's integers, which would wrap around, become -1, which is no class.

    Args:
        name: the argument's name, for the message.
        indices: integers of any shape.

    Raises:
        ValueError: if they are not integers.

    Example:
        >>> as_indices("labels", [2, 2**32 + 1]).tolist()
        [2, -1]
    """
    if not isinstance(indices, jax.Array):
        as_numbers(name, indices)  # raises if they are not numbers
        # A masked label is missing: it is no class.
        if isinstance(indices, np.ma.MaskedArray) and indices.dtype.kind in "iu":
            indices = np.ma.filled(indices.astype(np.int64), -1)
        indices = owned(np.asarray(indices))
    if not jnp.issubdtype(indices.dtype, jnp.integer):
        raise ValueError(f"{name} must be integers; got {indices.dtype}.")
    if isinstance(indices, jax.Array):
        return indices
    # A conversion would wrap 2³² + 1 to 1, which may be another class.
    held = np.iinfo(jax.dtypes.canonicalize_dtype(int))
    inside = (indices >= 0) & (indices <= held.max)
    return np.where(inside, indices.astype(held.dtype), held.dtype.type(-1))


def pool_labels(name: str, labels: Sequence[npt.ArrayLike], size_x: int, size_y: int) -> Array:
    """Labels of all rows of two samples, those of x first. Concrete ones are numbered.

    Args:
        name: the argument's name, for the message.
        labels: a pair of vectors: integers, booleans or, unless traced, text.
        size_x: the number of rows of x.
        size_y: the number of rows of y.

    Raises:
        ValueError: if they are not two vectors of these sizes, or a label is NaN or None.

    Example:
        >>> pool_labels("groups", (["b", "a"], ["c"]), 2, 1).tolist()
        [1, 0, 2]
    """
    _check_pair(name, labels, size_x, size_y)
    # Traced labels cannot be sorted in NumPy. They must already be numbers within JAX's range.
    if any(isinstance(part, Tracer) for part in labels):
        return jnp.concatenate([_held(name, part) for part in labels])
    return jnp.asarray(_pooled(name, labels))


def row_labels(name: str, labels: npt.ArrayLike, size: int) -> Array:
    """Labels of the rows of one sample. Concrete ones are numbered.

    Raises:
        ValueError: if they are not a vector of this size, or a label is NaN or None.

    Example:
        >>> row_labels("strata", ["b", "a", "b"], 3).tolist()
        [1, 0, 1]
    """
    if np.shape(labels) != (size,):
        raise ValueError(f"{name} must be a vector of shape ({size},); got {np.shape(labels)}.")
    held = labels if isinstance(labels, Tracer) else _pooled(name, [np.asarray(labels)])
    return jnp.asarray(held)


def concrete_labels(
    name: str, labels: Sequence[npt.ArrayLike], size_x: int, size_y: int
) -> tuple[np.ndarray, np.ndarray]:
    """Labels that select operations, numbered from 0, of the rows of x and of y.

    Raises:
        ValueError: as `pool_labels`, and if a label is traced.

    Example:
        >>> concrete_labels("folds", (["b", "a"], ["b"]), 2, 1)
        (array([1, 0]), array([1]))
    """
    if any(isinstance(part, Tracer) for part in labels):
        raise ValueError(f"{name} must be known when a program is compiled; got traced ones.")
    _check_pair(name, labels, size_x, size_y)
    numbers = np.unique(_pooled(name, labels), return_inverse=True)[1]
    return numbers[:size_x], numbers[size_x:]


def _check_pair(name: str, labels: Any, size_x: int, size_y: int) -> None:
    pair = isinstance(labels, (list, tuple)) and len(labels) == 2
    shapes = [np.shape(part) for part in labels] if pair else None
    if shapes != [(size_x,), (size_y,)]:
        got = shapes or f"one {type(labels).__name__}"
        raise ValueError(
            f"{name} must be two vectors, of shapes ({size_x},) and ({size_y},); got {got}."
        )


def _pooled(name: str, labels: Sequence[npt.ArrayLike]) -> np.ndarray:
    """Concrete labels of all rows, numbered by their order unless they are a mask."""
    pooled = _concatenated([np.asarray(part) for part in labels])
    masked = np.concatenate([np.ma.getmaskarray(part) for part in labels])
    missing = masked | (pooled != pooled)  # NaN alone is unequal to itself
    if pooled.dtype == object:
        missing |= np.array([label is None for label in pooled])
    if missing.any():
        raise ValueError(f"{name} must name every row; got labels that are NaN or None.")
    # Text has no dtype in JAX, and integers beyond int32 would wrap: both are numbered by their
    # order. Booleans stay masks.
    return pooled if pooled.dtype == bool else np.unique(pooled, return_inverse=True)[1]


def _concatenated(parts: list[np.ndarray]) -> np.ndarray:
    """Vectors as one. Numbers of different dtypes are compared exactly, as numbers of Python."""
    numbers = all(part.dtype.kind in "iuf" for part in parts)
    if numbers and len({part.dtype for part in parts}) > 1:
        # NumPy would make float64 of both, which merges large integers.
        parts = [part.astype(object) for part in parts]
    return np.concatenate(parts)


def _held(name: str, labels: npt.ArrayLike) -> Array:
    """Labels used together with traced ones, which cannot be numbered with them."""
    if not isinstance(labels, jax.Array) and (as_indices(name, labels) != labels).any():
        raise ValueError(f"{name} must be labels that JAX's integers hold where some are traced.")
    return jnp.asarray(labels)


def number_labels(labels: Array) -> Int[Array, " rows"]:
    """Labels as integers from 0, equal if the labels are equal.

    Example:
        >>> number_labels(jnp.array([7, 3, 7])).tolist()
        [1, 0, 1]
    """
    return jnp.unique(labels, size=labels.shape[0], return_inverse=True)[1].reshape(-1)


def number_pairs(first: Int[Array, " rows"], second: Int[Array, " rows"]) -> Int[Array, " rows"]:
    """Pairs of labels as integers from 0, equal if both labels are equal.

    Example:
        >>> number_pairs(jnp.array([1, 0, 1]), jnp.array([2, 2, 2])).tolist()
        [1, 0, 1]
    """
    # Sorted and counted: a product of two labels may leave the range of JAX's integers.
    order = jnp.lexsort((second, first))
    changes = (jnp.diff(first[order]) != 0) | (jnp.diff(second[order]) != 0)
    numbers = jnp.concatenate([jnp.zeros_like(order[:1]), jnp.cumsum(changes).astype(order.dtype)])
    return jnp.zeros_like(order).at[order].set(numbers)
