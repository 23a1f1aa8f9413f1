"""What public functions hand to the programs that they compile.

A public function is a door and a computation. The door is plain Python: it refuses what cannot be,
and sees NumPy's numbers before JAX rounds them. The computation, compiled as one program, turns
them into arrays: outside of it each conversion would be a program of its own.
"""

from typing import Any

from divjax.core.samples import as_numbers

__all__ = ["as_leaves"]


def as_leaves(**numbers: Any) -> tuple[Any, ...]:
    """Numbers as arguments of a compiled function, in which `as_arrays` makes arrays of them.

    Args:
        **numbers: by the names that messages shall use: what `as_arrays` takes, or None.

    Returns:
        JAX arrays and None as they are, Python's numbers as its floats (traced, with a weak type),
        NumPy arrays of anything else, floating-point.

    Raises:
        ValueError: if one does not hold real numbers.

    Example:
        >>> as_leaves(log_p=[1, 2], scale=2, base=None)
        (array([1., 2.]), 2.0, None)
    """
    return tuple(_as_leaf(name, value) for name, value in numbers.items())


def _as_leaf(name: str, value: Any) -> Any:
    if value is None:
        return None
    return float(value) if isinstance(value, (int, float)) else as_numbers(name, value)
