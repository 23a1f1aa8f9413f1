"""Shape and value checks at trace time: what is wrong, in one sentence that names the argument."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

__all__ = [
    "check_matrix",
    "check_positive",
    "check_same_features",
    "check_scalar_output",
    "check_shape",
]


def check_positive(**values: Any) -> None:
    """Raise `ValueError` for a Python number that is not positive; arrays and tracers pass.

    Example:
        >>> check_positive(bandwidth=1.0, epsilon=0.1)
    """
    for name, value in values.items():
        if isinstance(value, (int, float)) and not value > 0:
            raise ValueError(f"{name} must be a positive number; got {value}.")


def check_matrix(**arrays: Any) -> None:
    """Raise `ValueError` unless each array is a non-empty matrix of real samples, a row each."""
    for name, array in arrays.items():
        if jnp.ndim(array) != 2 or 0 in jnp.shape(array):
            raise ValueError(
                f"{name} must be a non-empty matrix of shape (samples, features); "
                f"got shape {jnp.shape(array)}."
            )
        if not jnp.issubdtype(jnp.result_type(array), jnp.floating):
            raise ValueError(f"{name} must be floating-point; got {jnp.result_type(array)}.")


def check_shape(name: str, array: Any, *sizes: int | str) -> None:
    """Raise `ValueError` unless the array has this shape; a name stands for any size.

    Example:
        >>> check_shape("velocities", jnp.zeros((2, 5, 3)), "k", 5, "d")
    """
    shape = jnp.shape(array)
    fits = len(shape) == len(sizes) and all(
        isinstance(size, str) or size == actual for size, actual in zip(sizes, shape, strict=True)
    )
    if not fits:
        expected = ", ".join(str(size) for size in sizes) + ("," if len(sizes) == 1 else "")
        raise ValueError(f"{name} must have shape ({expected}); got shape {shape}.")


def check_same_features(x: Array, y: Array, names: tuple[str, str] = ("x", "y")) -> None:
    """Raise `ValueError` unless two sample matrices have equally many columns."""
    if x.shape[1] != y.shape[1]:
        raise ValueError(
            f"{names[0]} and {names[1]} must have the same number of features; "
            f"got {x.shape[1]} and {y.shape[1]}."
        )


def check_scalar_output(name: str, function: Any, *args: Any) -> None:
    """Raise `ValueError` unless `function(*args)` is a real scalar; nothing is computed."""
    output = jax.eval_shape(function, *args)
    if not hasattr(output, "shape") or output.shape != ():
        shape = getattr(output, "shape", jax.tree.map(jnp.shape, output))
        raise ValueError(f"{name} must return a scalar for a single particle; got shape {shape}.")
    if not jnp.issubdtype(output.dtype, jnp.floating):
        raise ValueError(f"{name} must return a real floating-point number; got {output.dtype}.")
