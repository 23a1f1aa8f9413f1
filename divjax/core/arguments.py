"""Arguments that public functions pass to the programs that they compile.

A public function is a plain Python front end and a computation. The front end validates arguments,
and receives NumPy's numbers before JAX rounds them. The computation, compiled as one program, turns
them into arrays: outside of it each conversion would be a program of its own.
"""

from typing import Any, TypeAlias

import jax.numpy as jnp

from divjax.core.samples import Numbers, as_numbers

__all__ = ["Leaf", "as_leaves", "as_optional_leaf", "vector_leaves"]

# An argument of a compiled function: an array of JAX or NumPy, or a Python number. The union of the
# three could not be passed as an `Array`.
Leaf: TypeAlias = Any


def as_leaves(**numbers: Numbers) -> tuple[Leaf, ...]:
    """Numbers as arguments of a compiled function, in which `as_arrays` makes arrays of them.

    Args:
        **numbers: any inputs of `as_arrays`, by the names used in error messages.

    Returns:
        JAX arrays unchanged, Python's numbers as floats (traced, with a weak type), anything else
        as floating-point NumPy arrays.

    Raises:
        ValueError: if one does not hold real numbers.

    Example:
        >>> as_leaves(log_p=[1, 2], scale=2)
        (array([1., 2.]), 2.0)
    """
    # An integer as a float: 2 and 2.0 are then one program.
    return tuple(
        float(value) if isinstance(value, (int, float)) else as_numbers(name, value)
        for name, value in numbers.items()
    )


def as_optional_leaf(**number: Numbers) -> Leaf:
    """The one number as a leaf, or None, which is no leaf, if it is not given.

    Example:
        >>> as_optional_leaf(base=2), as_optional_leaf(base=None)
        (2.0, None)
    """
    ((name, value),) = number.items()
    return None if value is None else as_leaves(**{name: value})[0]


def vector_leaves(**vectors: Numbers) -> tuple[Leaf, ...]:
    """`as_leaves` of non-empty vectors.

    Raises:
        ValueError: unless each is a non-empty vector of real numbers.

    Example:
        >>> vector_leaves(scores=[1, 2])
        (array([1., 2.]),)
    """
    leaves = as_leaves(**vectors)
    for name, leaf in zip(vectors, leaves, strict=True):
        if jnp.ndim(leaf) != 1 or not jnp.size(leaf):
            raise ValueError(f"{name} must be a non-empty vector; got shape {jnp.shape(leaf)}.")
    return leaves
