"""Lists, frames, series and masked arrays of numbers as arrays of NumPy or JAX.

Frames and series become floating-point, a frame in extended precision if float64 would merge its
integers. Missing and masked numbers become NaN. Text, dates and sparse matrices are refused.
"""

import re
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

__all__ = [
    "CONVERT_FIRST",
    "Numbers",
    "Unrounded",
    "check_columns",
    "is_beyond_double",
    "native",
    "plain_array",
    "without_mask",
]

# Anything that `as_numbers` takes: an array of JAX or NumPy, a number, nested lists of numbers, a
# frame or a series. pandas is not a dependency, so the last two have no type here.
Numbers: TypeAlias = Any

# An array of JAX or, not yet rounded to one of JAX's dtypes, of NumPy. The union of both could not
# be passed as an `Array`.
Unrounded: TypeAlias = Any

CONVERT_FIRST = " Convert it first, such as numpy.asarray(values, float)."

# pandas' names of numeric columns, for every storage backend.
_NUMERIC = re.compile(r"(u?int\d+|float\d*|double|halffloat|bool(ean)?)(\[.*\])?")


def plain_array(name: str, sample: Numbers) -> Unrounded:
    """An input of any kind as an array, in the machine's byte order."""
    if _is_frame(sample):
        return _frame_as_numpy(name, sample)
    if hasattr(sample, "dtype") and hasattr(sample, "to_numpy"):
        return _series_as_numpy(name, sample)
    if hasattr(sample, "toarray"):
        raise ValueError(f"{name} must be dense; got a sparse matrix. Pass {name}.toarray().")
    sample = without_mask(sample)
    parts = jax.tree.leaves(sample) if isinstance(sample, (list, tuple)) else ()
    # Traced numbers cannot be in a NumPy array.
    of_arrays = any(isinstance(part, jax.Array) for part in parts)
    try:
        array = jnp.asarray(sample) if of_arrays else np.asarray(sample)
    except (TypeError, ValueError):  # raised for rows of different lengths
        raise ValueError(f"{name} must have rows of equal lengths.") from None
    if array.dtype.kind in "OUSM" or array.dtype.kind == "m":
        kind = type(sample).__name__ if array.ndim == 0 else f"entries of type {array.dtype.name}"
        raise ValueError(f"{name} must hold real numbers; got {kind}.{CONVERT_FIRST}")
    return native(array)


def without_mask(sample: Any) -> Any:
    """A masked array, or a list of them, as a plain one, and anything else as it is.

    What is masked is missing, as in a frame: NaN, in an array of objects if it is not of numbers.
    NumPy's own conversions would keep what lies beneath the mask.

    Example:
        >>> without_mask(np.ma.masked_equal([1, 999], 999)).tolist()
        [1.0, nan]
    """
    parts = jax.tree.leaves(sample) if isinstance(sample, (list, tuple)) else ()
    if any(isinstance(part, np.ma.MaskedArray) for part in parts):
        sample = np.ma.array(sample)
    if not isinstance(sample, np.ma.MaskedArray):
        return sample
    if not np.ma.is_masked(sample):
        return sample.data
    return np.ma.filled(sample.astype(float if sample.dtype.kind in "fiub" else object), np.nan)


def _is_frame(sample: object) -> bool:
    """Whether it is a frame, recognised by its attributes, without importing its library."""
    return hasattr(sample, "columns") and hasattr(sample, "to_numpy")


def check_columns(samples: dict[str, Numbers]) -> None:
    """Raise `ValueError` for frames of the same columns in another order."""
    columns = {name: list(s.columns) for name, s in samples.items() if _is_frame(s)}
    if len(columns) < 2:
        return
    (first, of_first), *others = columns.items()
    for name, of_other in others:
        # Features are compared by position: columns of other names may be meant.
        if of_other != of_first and set(of_other) == set(of_first):
            raise ValueError(
                f"{name} must have its columns in the order of {first}; got {of_other} and "
                f"{of_first}. Reorder them: {name}[{first}.columns]."
            )


def native(array: Unrounded) -> Unrounded:
    """The array, NumPy's in the machine's byte order, which JAX requires."""
    if isinstance(array, np.ndarray) and not array.dtype.isnative:
        return array.astype(array.dtype.newbyteorder("="))
    return array


def is_beyond_double(array: Unrounded) -> bool:
    """Whether NumPy integers are so large that float64 would merge some."""
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "iu" or not array.size:
        return False
    return int(array.max()) > 2**53 or int(array.min()) < -(2**53)


def _frame_as_numpy(name: str, frame: Numbers) -> np.ndarray:
    """A frame's numbers, with NaN for missing ones."""
    # By name and in lower case, as storage backends spell the same dtype differently.
    others = [
        str(column)
        for column, dtype in zip(frame.columns, list(frame.dtypes), strict=True)
        if not _NUMERIC.fullmatch(getattr(dtype, "name", str(dtype)).lower())
    ]
    if others:
        raise ValueError(
            f"{name} must hold numbers in all columns; these do not: {', '.join(others)}. "
            "Encode or drop them."
        )
    # Columns of integers stay apart from the others: a common float64 would merge large ones.
    columns = [frame[column].to_numpy() for column in frame.columns]
    if any(map(is_beyond_double, columns)):
        whole = lambda column: column.dtype.kind in "iu"
        # Extended precision holds both kinds.
        return np.stack(
            [
                (column if whole(column) else _frame_as_numpy(name, frame[[label]])[:, 0]).astype(
                    np.longdouble
                )
                for label, column in zip(frame.columns, columns, strict=True)
            ],
            axis=1,
        )
    return _to_numpy(frame)


def _series_as_numpy(name: str, series: Numbers) -> np.ndarray:
    """A series' numbers, with NaN for missing ones."""
    if not _NUMERIC.fullmatch(getattr(series.dtype, "name", str(series.dtype)).lower()):
        raise ValueError(
            f"{name} must hold real numbers; got a series of {series.dtype}.{CONVERT_FIRST}"
        )
    return _to_numpy(series)


def _to_numpy(table: Numbers) -> np.ndarray:
    try:
        return table.to_numpy(dtype=float, na_value=np.nan)
    except TypeError:  # a table of another library than pandas
        return np.asarray(table.to_numpy(), float)
