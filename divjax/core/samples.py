"""What researchers hold, as floating-point matrices; a large offset leaves in double precision.

Arrays, NumPy arrays, lists and pandas frames of numbers are samples; integers and booleans become
floating-point numbers. NumPy's float64 loses its signal on the way to float32 if the samples lie
far from zero: such samples are centred first.
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
    return tuple(jnp.asarray(sample, dtype) for sample in checked.values())


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
        high, low = _split(x, jnp.result_type(_dtype_of(x), self.high))
        return (high - self.high) + (low - self.low)

    def add(self, x: Float[Array, "n d"]) -> Float[Array, "n d"]:
        """Points relative to the centre, where they belong; rounded to their dtype."""
        return (x + self.low) + self.high


def centered_samples(weights: dict[str, Any] | None = None, **samples: Any) -> tuple[Any, ...]:
    """One centre for all samples, and the samples relative to it.

    The centre is the median of each feature, over all samples, where NumPy float64 (a list or a
    frame of numbers is) would be rounded to float32; otherwise it is zero, since nothing can be
    gained.

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
        if isinstance(sample, np.ndarray) and sample.dtype == np.float64
    ]
    num_features = next(iter(checked.values())).shape[1]
    point = np.zeros(num_features)
    if double and jnp.finfo(dtype).bits < 64:
        rows = np.concatenate(double)
        finite = np.where(np.isfinite(rows), rows, np.nan)
        some = np.isfinite(rows).any(axis=0)
        point[some] = np.nanmedian(finite[:, some], axis=0)
    center = Center(*_split(point, dtype))
    if not point.any():
        return center, *(jnp.asarray(sample, dtype) for sample in checked.values())
    return center, *(center.subtract(sample) for sample in checked.values())


def _rows_with_weight(sample: np.ndarray, weights: Any) -> np.ndarray:
    """The rows that count, where the weights are known."""
    if weights is None or isinstance(weights, Tracer):
        return sample
    return sample[np.asarray(weights) > 0]


def _split(x: Any, dtype: Any) -> tuple[Array, Array]:
    """The numbers rounded to the dtype, and what the rounding left over."""
    high = jnp.asarray(x, dtype)
    if not isinstance(x, np.ndarray) or x.dtype != np.float64 or jnp.finfo(dtype).bits >= 64:
        return high, jnp.zeros_like(high)
    rounded = x.astype(dtype)
    with np.errstate(invalid="ignore"):
        rest = np.where(np.isfinite(rounded), x - rounded.astype(np.float64), 0)
    return high, jnp.asarray(rest, dtype)


def _checked(samples: dict[str, Any]) -> dict[str, Any]:
    """Each sample as an array of real numbers, matrices of equally many features."""
    converted = {name: _as_numbers(name, sample) for name, sample in samples.items()}
    for name, sample in converted.items():
        if sample.ndim == 1 and sample.size:
            raise ValueError(
                f"{name} must be a matrix of shape (samples, features); got shape {sample.shape}. "
                f"Samples of one feature are {name}[:, None]."
            )
        check_matrix(**{name: sample})
    (first, one), *others = converted.items()
    for name, other in others:
        check_same_features(one, other, (first, name))
    return converted


def _common_dtype(samples: dict[str, Any]) -> Any:
    return jnp.result_type(*(_dtype_of(sample) for sample in samples.values()))


def _dtype_of(sample: Any) -> Any:
    """Its dtype in JAX: float64 only where that is enabled."""
    return jax.dtypes.canonicalize_dtype(sample.dtype)


def _as_numbers(name: str, sample: Any) -> Any:
    """A JAX array, or a NumPy array of what is none; floating-point."""
    array = sample if isinstance(sample, jax.Array) else _as_numpy(name, sample)
    dtype = array.dtype
    if jnp.issubdtype(dtype, jnp.floating):
        return array
    if not (jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(dtype, jnp.bool_)):
        raise ValueError(f"{name} must hold real numbers; got {dtype}.{_CONVERT}")
    return array.astype(float)


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
    try:
        return frame.to_numpy(dtype=float, na_value=np.nan)
    except TypeError:  # a frame of another library
        return np.asarray(frame.to_numpy(), float)
