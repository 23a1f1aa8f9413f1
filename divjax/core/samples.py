"""What researchers hold, as floating-point matrices; a large offset leaves in double precision.

Arrays, NumPy arrays, lists and pandas frames of numbers are samples; integers and booleans become
floating-point numbers. NumPy's float64 loses its signal on the way to float32 if the samples lie
far from zero, and so do integers on the way to float64: such samples are centred first.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from divjax.core.checks import check_matrix, check_same_features
from divjax.core.pytrees import pytree

__all__ = ["Center", "as_samples", "centered_samples"]


def as_samples(**samples: Any) -> tuple[Array, ...]:
    """The samples of one call as floating-point matrices of one dtype, in the order given.

    Args:
        **samples: by the names that messages shall use: JAX or NumPy arrays, nested lists, or
            pandas frames, each of shape (samples, features).

    Returns:
        Arrays of their common dtype; integers and booleans count as the default float.

    Raises:
        ValueError: if one is not a non-empty matrix of real numbers (the message says how to
            convert it), or the numbers of features differ.

    Example:
        >>> x, y = as_samples(x=[[1, 2], [3, 4]], y=jnp.zeros((5, 2)))
        >>> x.dtype.name, x.shape, y.shape
        ('float32', (2, 2), (5, 2))
    """
    checked = _checked(samples)
    dtype = _common_dtype(checked)
    return tuple(_rounded(sample, dtype) for sample in checked.values())


@pytree
class Center:
    """A point of the samples' space, kept to float64's precision by two numbers a feature.

    Attributes:
        high: the point, rounded to the samples' dtype.
        low: what the rounding left over.

    Example:
        >>> x = np.array([[1e8 + 0.25], [1e8 + 0.75]])  # float32 cannot tell these two
        >>> center, centered = centered_samples(x=x)
        >>> (centered[1] - centered[0]).tolist(), center.subtract(x).tolist() == centered.tolist()
        ([0.5], True)
    """

    high: Float[Array, " d"]
    low: Float[Array, " d"]

    def subtract(self, x: Any) -> Float[Array, "n d"]:
        """The points relative to the centre; NumPy's float64 without loss."""
        (x,) = _checked({"x": x}).values()
        if x.shape[1] != self.high.shape[-1]:
            raise ValueError(f"x must have {self.high.shape[-1]} features; got {x.shape[1]}.")
        dtype = jnp.result_type(_dtype_of(x), self.high)
        if _is_extended(x) and not isinstance(self.high, Tracer):
            high, low = (np.asarray(part, np.longdouble) for part in (self.high, self.low))
            return jnp.asarray(((x - high) - low).astype(dtype))
        high, low = _split(x, dtype)
        return (high - self.high) + (low - self.low)

    def add(self, x: Float[Array, "n d"]) -> Float[Array, "n d"]:
        """Points relative to the centre, where they belong; rounded to their dtype."""
        return (x + self.low) + self.high


def centered_samples(weights: dict[str, Any] | None = None, **samples: Any) -> tuple[Any, ...]:
    """One centre for all samples, and the samples relative to it.

    The centre is the median of each feature, over all samples, where NumPy float64 (a list or a
    frame of numbers is) would be rounded to float32, or integers beyond 2⁵³ to either; otherwise it
    is zero, since nothing can be gained.

    Args:
        weights: of samples, by their names: rows of weight zero may hold anything.
        **samples: as for `as_samples`.

    Returns:
        The `Center`, then the samples' arrays of one dtype in the order given.

    Raises:
        ValueError: as `as_samples` does.

    Example:
        >>> center, x, y = centered_samples(x=np.array([[1e8 + 1.0]]), y=np.array([[1e8 + 3.0]]))
        >>> (y - x).tolist()
        [[2.0]]
    """
    checked = _checked(samples)
    dtype = _common_dtype(checked)
    double = [
        _rows_with_weight(sample, (weights or {}).get(name))
        for name, sample in checked.items()
        if _is_wider(sample, dtype)
    ]
    num_features = next(iter(checked.values())).shape[1]
    point = np.zeros(num_features, np.longdouble if any(map(_is_extended, double)) else float)
    if double:
        rows = np.concatenate(double)
        finite = np.where(np.isfinite(rows), rows, np.nan)
        some = np.isfinite(rows).any(axis=0)
        point[some] = np.nanmedian(finite[:, some], axis=0)
    center = Center(*_split(point, dtype))
    if not point.any():
        return center, *(_rounded(sample, dtype) for sample in checked.values())
    return center, *(center.subtract(sample) for sample in checked.values())


def _rows_with_weight(sample: np.ndarray, weights: Any) -> np.ndarray:
    """The rows that count, where the weights are known."""
    if weights is None or isinstance(weights, Tracer):
        return sample
    return sample[np.asarray(weights) > 0]


def _split(x: Any, dtype: Any) -> tuple[Array, Array]:
    """The numbers rounded to the dtype, and what the rounding left over."""
    high = _rounded(x, dtype)
    if not _is_wider(x, dtype):
        return high, jnp.zeros_like(high)
    rounded = x.astype(dtype)
    with np.errstate(invalid="ignore"):
        rest = np.where(np.isfinite(rounded), x - rounded.astype(x.dtype), 0)
    return high, _rounded(rest, dtype)


def _rounded(x: Any, dtype: Any) -> Array:
    """As an array of JAX, which knows no extended precision."""
    return jnp.asarray(x.astype(dtype) if _is_extended(x) else x, dtype)


def _is_extended(x: Any) -> bool:
    """Whether these were integers that float64 would merge."""
    return isinstance(x, np.ndarray) and x.dtype == np.longdouble and x.dtype != np.float64


def _is_wider(x: Any, dtype: Any) -> bool:
    """Whether the dtype would lose digits that NumPy holds."""
    double = isinstance(x, np.ndarray) and x.dtype == np.float64 and jnp.finfo(dtype).bits < 64
    return double or _is_extended(x)


def _checked(samples: dict[str, Any]) -> dict[str, Any]:
    """Each sample as an array of real numbers, matrices of equally many features."""
    converted = {name: _as_numbers(name, sample) for name, sample in samples.items()}
    for name, sample in converted.items():
        if sample.ndim == 1 and sample.size:
            raise ValueError(
                f"{name} must be a matrix of shape (samples, features); got shape {sample.shape}. "
                f"Samples of one feature are {name}[:, None]."
            )
        check_matrix(**{name: sample.astype(float) if _is_extended(sample) else sample})
    (first, one), *others = converted.items()
    for name, other in others:
        check_same_features(one, other, (first, name))
    return converted


def _common_dtype(samples: dict[str, Any]) -> Any:
    return jnp.result_type(*(_dtype_of(sample) for sample in samples.values()))


def _dtype_of(sample: Any) -> Any:
    """Its dtype in JAX: float64 only where that is enabled."""
    dtype = np.dtype(float) if _is_extended(sample) else sample.dtype
    return jax.dtypes.canonicalize_dtype(dtype)


def _as_numbers(name: str, sample: Any) -> Any:
    """A JAX array, or a NumPy array of what is none; floating-point."""
    array = sample if isinstance(sample, jax.Array) else _as_numpy(name, sample)
    dtype = array.dtype
    if _is_extended(array) or jnp.issubdtype(dtype, jnp.floating):
        return array
    if not (jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(dtype, jnp.bool_)):
        raise ValueError(f"{name} must hold real numbers; got {dtype}.{_CONVERT}")
    return array.astype(np.longdouble if _is_beyond_double(array) else float)


def _is_beyond_double(array: Any) -> bool:
    """Whether NumPy integers are so large that float64 would merge some."""
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "iu" or not array.size:
        return False
    return int(array.max()) > 2**53 or int(array.min()) < -(2**53)


_CONVERT = " Convert it first, such as numpy.asarray(values, float)."


def _as_numpy(name: str, sample: Any) -> np.ndarray:
    if hasattr(sample, "columns") and hasattr(sample, "to_numpy"):
        return _frame_as_numpy(name, sample)
    if hasattr(sample, "toarray"):
        raise ValueError(f"{name} must be dense; got a sparse matrix. Pass {name}.toarray().")
    try:
        array = np.asarray(sample)
    except ValueError:  # NumPy's own message for rows of different lengths
        raise ValueError(f"{name} must have rows of equal lengths.") from None
    if array.dtype.kind in "OUSM" or array.dtype.kind == "m":
        kind = type(sample).__name__ if array.ndim == 0 else f"entries of type {array.dtype.name}"
        raise ValueError(f"{name} must hold real numbers; got {kind}.{_CONVERT}")
    return array


# pandas' names of numeric columns, whoever stores them.
_NUMERIC = re.compile(r"(u?int\d+|float\d*|double|halffloat|bool(ean)?)(\[.*\])?")


def _frame_as_numpy(name: str, frame: Any) -> np.ndarray:
    """A frame's numbers; missing ones are NaN."""
    others = [
        str(column)
        for column, dtype in zip(frame.columns, list(frame.dtypes), strict=True)
        if not _NUMERIC.fullmatch(str(dtype).lower())
    ]
    if others:
        raise ValueError(
            f"{name} must hold numbers in all columns; these do not: {', '.join(others)}. "
            "Encode or drop them."
        )
    columns = [frame[column].to_numpy() for column in frame.columns]
    if any(map(_is_beyond_double, columns)):
        whole = lambda column: column.dtype.kind in "iu"
        return np.stack(
            [
                (column if whole(column) else _frame_as_numpy(name, frame[[label]])[:, 0]).astype(
                    np.longdouble
                )
                for label, column in zip(frame.columns, columns, strict=True)
            ],
            axis=1,
        )
    try:
        return frame.to_numpy(dtype=float, na_value=np.nan)
    except TypeError:  # a frame of another library
        return np.asarray(frame.to_numpy(), float)
