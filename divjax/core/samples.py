"""Numeric inputs as floating-point arrays, with a large offset subtracted in double precision.

Arrays, NumPy arrays, lists and pandas frames of numbers are samples. Integers and booleans become
floating-point numbers. Vectors and other arrays have the same types, or are series. NumPy's float64
loses its signal in the conversion to float32 if the samples lie far from zero, and so do integers
in the conversion to float64: such samples are centred first.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float

from divjax.core.checks import check_matrix, check_same_features, check_shape, check_weights
from divjax.core.compensated import exact_product, exact_sum
from divjax.core.conversion import (
    CONVERT_FIRST,
    Numbers,
    Unrounded,
    check_columns,
    is_beyond_double,
    plain_array,
)
from divjax.core.pytrees import pytree
from divjax.core.rounding import LARGEST_CONVERSION_ROUNDING, rounding_and_spread
from divjax.core.sharding import gathered

T = TypeVar("T")

__all__ = [
    "Center",
    "Numbers",
    "Unrounded",
    "as_arrays",
    "as_numbers",
    "as_samples",
    "as_vectors",
    "as_weights",
    "centered_samples",
    "check_distinguishable",
    "dtype_in_jax",
    "loses_digits",
    "owned",
    "two_parts",
    "without_offset",
]


def owned(array: T) -> T:
    """The array, copied if it is NumPy's.

    JAX may read NumPy's memory after the call has returned, when its owner has written to it.
    """
    return array.copy() if isinstance(array, np.ndarray) else array


def as_numbers(name: str, values: Numbers, *, exact: bool = False) -> Unrounded:
    """A JAX array unchanged, anything else as a NumPy array, floating-point and of any shape.

    Integers of JAX that its default float would round become NumPy's, unless they are traced.

    Args:
        name: the argument's name in messages.
        values: an array, list, frame or series of numbers, or a number.
        exact: whether integers that float64 would merge become NumPy's extended precision.

    Raises:
        ValueError: if they are not real numbers. The message explains how to convert them.

    Example:
        >>> as_numbers("log_p", [1, 2])
        array([1., 2.])
    """
    array = gathered(values) if isinstance(values, jax.Array) else owned(plain_array(name, values))
    # In NumPy large integers can lose an offset before they are rounded to JAX's default float.
    if _rounds(array):
        array = np.asarray(array)
    dtype = array.dtype
    if _is_extended(array) or jnp.issubdtype(dtype, jnp.floating):
        return array if exact or not _is_extended(array) else array.astype(float)
    if not (jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(dtype, jnp.bool_)):
        raise ValueError(f"{name} must hold real numbers; got {dtype}.{CONVERT_FIRST}")
    # Integers beyond 2⁵³ stay exact until an offset has been subtracted.
    return array.astype(np.longdouble if exact and is_beyond_double(array) else float)


def as_arrays(**arrays: Numbers) -> tuple[Array, ...]:
    """Numbers of any shape as floating-point arrays of one dtype, not widened by Python numbers.

    Args:
        **arrays: any inputs of `as_samples`, series or numbers, by their names in messages.

    Raises:
        ValueError: if one does not hold real numbers.

    Example:
        >>> log_p, scale = as_arrays(log_p=jnp.zeros(3, jnp.float16), scale=2)
        >>> scale.dtype.name
        'float16'
    """
    # Python numbers are weakly typed, and so do not widen the arrays' common dtype.
    numbers = {
        name: values if isinstance(values, (int, float)) else as_numbers(name, values)
        for name, values in arrays.items()
    }
    dtype = jnp.result_type(float, *numbers.values())
    return tuple(jnp.asarray(values, dtype) for values in numbers.values())


def as_vectors(**vectors: Numbers) -> tuple[Array, ...]:
    """`as_arrays` of non-empty vectors.

    Raises:
        ValueError: unless each is a non-empty vector of real numbers.

    Example:
        >>> [values.tolist() for values in as_vectors(scores_x=[1, 2], scores_y=np.ones(1))]
        [[1.0, 2.0], [1.0]]
    """
    converted = as_arrays(**vectors)
    for name, values in zip(vectors, converted, strict=True):
        if values.ndim != 1 or not values.size:
            raise ValueError(f"{name} must be a non-empty vector; got shape {values.shape}.")
    return converted


def as_weights(name: str, weights: Numbers, num_rows: int, dtype: DTypeLike) -> Float[Array, " n"]:
    """Weights of rows in their dtype. Traced ones are returned unchecked: see `are_weights`.

    Raises:
        ValueError: for another number of them, and for known ones that are negative, not finite,
            all zero, or all out of the dtype's range.

    Example:
        >>> as_weights("a", [1, 3], 2, jnp.float32).tolist()
        [1.0, 3.0]
    """
    weights = as_numbers(name, weights)
    check_shape(name, weights, num_rows)
    check_weights(name, weights)
    # Rows of integers have fractional weights too, in JAX's default precision.
    dtype = jax.dtypes.canonicalize_dtype(dtype if jnp.issubdtype(dtype, jnp.floating) else float)
    # Weights that all vanish or overflow in the dtype would give 0/0 or ∞/∞ when normalised.
    if not isinstance(weights, Tracer):
        largest, held = float(np.asarray(weights, np.float64).max()), jnp.finfo(dtype)
        # Half precision is computed in single precision, which has its smallest numbers.
        least = held.tiny if held.bits >= 32 else held.smallest_subnormal
        if not float(least) <= largest <= float(held.max):
            raise ValueError(f"{name} must be within the range of {dtype}; got up to {largest:g}.")
    return jnp.asarray(weights, dtype)


def as_samples(**samples: Numbers) -> tuple[Array, ...]:
    """The samples of one call as floating-point matrices of one dtype, in the order given.

    Args:
        **samples: JAX or NumPy arrays, nested lists, or pandas frames, each of shape (samples,
            features), by their names in messages.

    Returns:
        Arrays of their common dtype. Integers and booleans count as the default float.

    Raises:
        ValueError: if one is empty or not a matrix of real numbers (the message explains how to
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
    """A point of the samples' space, in float64's precision by two numbers per feature.

    Attributes:
        high: the point, rounded to the samples' dtype.
        low: the rounding error.

    Example:
        >>> x = np.array([[1e8 + 0.25], [1e8 + 0.75]])  # float32 cannot tell these two
        >>> center, centered = centered_samples(x=x)
        >>> (centered[1] - centered[0]).tolist(), center.subtract(x).tolist() == centered.tolist()
        ([0.5], True)
    """

    high: Float[Array, " d"]
    low: Float[Array, " d"]

    def subtract(self, x: Numbers) -> Float[Array, "n d"]:
        """The points relative to the centre, without loss for NumPy's float64."""
        (x,) = _checked({"x": x}).values()
        if x.shape[1] != self.high.shape[-1]:
            raise ValueError(f"x must have {self.high.shape[-1]} features; got {x.shape[1]}.")
        dtype = jnp.result_type(dtype_in_jax(x), self.high)
        # NumPy's precision exceeds that of the dtype: the difference is taken in extended
        # precision, and only then rounded.
        if _is_wider(x, dtype) and not isinstance(self.high, Tracer):
            high, low = np.asarray(self.high, np.longdouble), np.asarray(self.low, np.longdouble)
            with np.errstate(invalid="ignore", over="ignore"):
                return jnp.asarray(((x - high) - low).astype(dtype))
        # In the dtype: near the centre the high parts' difference is exact, and the low parts
        # correct it.
        high, low = two_parts(x, dtype)
        return (high - self.high) + (low - self.low)

    def moved(self, by: Float[Array, " d"]) -> "Center":
        """The centre moved by a vector, with the rounding error in its low part."""
        # The low part compensates the rounding error of the sum.
        high = self.high + by
        return Center(high, self.low + (by - (high - self.high)))

    def towards(self, other: "Center", share: ArrayLike) -> "Center":
        """The point at a share of the way to another centre, as precise as both.

        Example:
            >>> one = Center(jnp.array([1e8]), jnp.array([0.5]))
            >>> middle = one.towards(Center(jnp.array([1e8]), jnp.array([1.5])), 0.5)
            >>> middle.high.tolist(), middle.low.tolist()
            ([100000000.0], [1.0])
        """
        share, share_low = two_parts(as_numbers("share", share), self.high.dtype)
        # Each rounded number is followed by what its rounding has lost.
        step, lost = exact_sum(other.high, -self.high)
        lost += other.low - self.low
        moved, error = exact_product(share, step)
        high, rounding = exact_sum(self.high, moved)
        return Center(high, self.low + (rounding + error + share_low * step + share * lost))

    def add(self, x: Float[Array, "n d"]) -> Float[Array, "n d"]:
        """The points with the centre added back, rounded to their dtype."""
        return (x + self.low) + self.high


def centered_samples(
    weights: dict[str, Numbers] | None = None, **samples: Numbers
) -> tuple[Any, ...]:
    """One centre for all samples, and the samples relative to it.

    The centre is the median of each feature, over all samples, if NumPy float64 (such as a list or
    a frame of numbers) would be rounded to float32, or integers beyond 2⁵³ to either. Otherwise it
    is zero, since centring gains nothing.

    Args:
        weights: the samples' weights, by their names. Rows of weight zero may hold any value.
        **samples: as for `as_samples`.

    Returns:
        The `Center`, then the samples' arrays of one dtype in the order given.

    Raises:
        ValueError: as `as_samples`.

    Example:
        >>> center, x, y = centered_samples(x=np.array([[1e8 + 1.0]]), y=np.array([[1e8 + 3.0]]))
        >>> (y - x).tolist()
        [[2.0]]
    """
    checked = _checked(samples)
    dtype = _common_dtype(checked)
    # Only samples that would lose precision determine the center: the others gain nothing.
    double = [
        _rows_with_weight(sample, (weights or {}).get(name))
        for name, sample in checked.items()
        if _is_wider(sample, dtype)
    ]
    num_features = next(iter(checked.values())).shape[1]
    if not double:
        # NumPy's zeros are made in no time; JAX's, outside of a program, would be much of a call's.
        zero: Any = np.zeros(num_features, dtype)
        return Center(zero, zero), *(_rounded(sample, dtype) for sample in checked.values())
    point = np.zeros(num_features, np.longdouble if any(map(_is_extended, double)) else float)
    rows = np.concatenate(double)
    # A median is robust to outliers. A feature without a finite value has no centre.
    finite = np.where(np.isfinite(rows), rows, np.nan)
    some = np.isfinite(rows).any(axis=0)
    point[some] = np.nanmedian(finite[:, some], axis=0)
    center = Center(*two_parts(point, dtype))
    # With a centre of zero, samples are returned unchanged, bit for bit.
    if not point.any():
        return center, *(_rounded(sample, dtype) for sample in checked.values())
    return center, *(center.subtract(sample) for sample in checked.values())


def loses_digits(*arrays: Unrounded) -> bool:
    """Whether the common dtype would reduce the precision of any of NumPy's numbers.

    Example:
        >>> loses_digits(np.ones(2)), loses_digits(jnp.ones(2))
        (True, False)
    """
    dtype = jnp.result_type(*map(dtype_in_jax, arrays))
    return any(_is_wider(array, dtype) for array in arrays)


def check_distinguishable(name: str, rows: Numbers, weights: Numbers | None = None) -> None:
    """Raise `ValueError` for NumPy's rows whose differences JAX's dtype would round away.

    For rows that are not centred, since functions of them may depend on their location. Rows of
    weight zero may be anywhere.

    Example:
        >>> check_distinguishable("particles", [[1e8], [1e8 + 1]])
        Traceback (most recent call last):
        ValueError: particles must differ in float32 too; subtract their offset, or enable float64.
    """
    given = as_numbers(name, rows)
    # JAX's arrays were rounded before, if at all: nothing more is lost here.
    if isinstance(given, jax.Array) or not given.ndim:
        return
    given, dtype = _rows_with_weight(given, weights), dtype_in_jax(given)
    if not given.size:
        return
    with np.errstate(over="ignore"):
        rounding, spread = rounding_and_spread(given, given.astype(dtype), axis=0)
    # A column of equal numbers has no differences to lose.
    if ((spread > 0) & (rounding > LARGEST_CONVERSION_ROUNDING * spread)).any():
        raise ValueError(
            f"{name} must differ in {dtype} too; subtract their offset, or enable float64."
        )


def first_row(array: np.ndarray) -> np.ndarray:
    """One entry along all axes but the last."""
    return array.reshape(-1, *array.shape[-1:])[0]


def without_offset(
    point: Callable[[np.ndarray], np.ndarray] = first_row, **arrays: Numbers
) -> tuple[Unrounded, ...]:
    """Numbers of which only differences matter, less a common point that JAX would round away.

    Args:
        point: a function of the first array whose precision in NumPy exceeds the common dtype's,
            in float64. It returns the point to subtract from all, to be broadcast against them, by
            default its first row. Non-finite entries are not subtracted.
        **arrays: any inputs of `as_numbers`, by their names in messages.

    Returns:
        The arrays in the order given, unchanged if no precision is at stake.

    Example:
        >>> (logits,) = without_offset(np.max, logits=[1e9, 1e9 + 0.5])
        >>> logits.tolist()
        [0.0, 0.5]
    """
    numbers = {name: as_numbers(name, array, exact=True) for name, array in arrays.items()}
    dtype = _common_dtype(numbers)
    # The point comes from the first array with precision to lose, and is subtracted from all
    # arrays, so that differences between them stay.
    wide = next((array for array in numbers.values() if _is_wider(array, dtype)), None)
    if wide is None:
        return tuple(numbers.values())
    with np.errstate(invalid="ignore", over="ignore"):
        known = point(wide)
        # A number of the dtype, so that it is subtracted from JAX's arrays without rounding too.
        known = np.asarray(known).astype(dtype).astype(wide.dtype)
        known = np.where(np.isfinite(known), known, 0)
        return tuple(_less(array, known, dtype) for array in numbers.values())


def _less(array: Unrounded, point: np.ndarray, dtype: np.dtype) -> Unrounded:
    if isinstance(array, jax.Array):
        # Half precision, beside numbers that are not, would round the difference.
        return array.astype(dtype) - jnp.asarray(point.astype(float), dtype)
    return (array - point).astype(float)


def _rows_with_weight(sample: np.ndarray, weights: Numbers) -> np.ndarray:
    """The rows of nonzero weight if the weights are known. Weights are validated later."""
    if weights is None or isinstance(weights, Tracer):
        return sample
    # Invalid weights are reported by their own check, with the argument's name.
    weights = np.asarray(weights)
    if weights.shape != sample.shape[:1] or weights.dtype.kind not in "fiub":
        return sample
    return sample[weights > 0]


def two_parts(x: Unrounded, dtype: DTypeLike) -> tuple[Array, Array]:
    """The numbers rounded to the dtype, and the rounding error of NumPy's float64.

    Compared lexicographically they order numbers that are equal in the dtype.

    Example:
        >>> high, low = two_parts(np.array([1e9 + 0.5, 1e9 + 1.5]), jnp.float32)
        >>> high.tolist(), low.tolist()
        ([1000000000.0, 1000000000.0], [0.5, 1.5])
    """
    if not _is_wider(x, dtype):
        high = _rounded(x, dtype)
        return high, jnp.zeros_like(high)
    with np.errstate(invalid="ignore", over="ignore"):
        # The remainder is exact, as its digits are among those of x. Beyond the dtype's range it is
        # zero.
        rounded = x.astype(dtype)
        rest = np.where(np.isfinite(rounded), x - rounded.astype(x.dtype), 0)
    return jnp.asarray(rounded), _rounded(rest, dtype)


def _rounded(x: Unrounded, dtype: DTypeLike) -> Array:
    """As an array of JAX, which has no extended precision."""
    if isinstance(x, jax.Array) and x.dtype == dtype and not jax.typeof(x).weak_type:
        return x
    return jnp.asarray(x.astype(dtype) if _is_extended(x) else x, dtype)


def _is_extended(x: Unrounded) -> bool:
    """Whether these were integers that float64 would merge."""
    return isinstance(x, np.ndarray) and x.dtype == np.longdouble and x.dtype != np.float64


def _is_wider(x: Unrounded, dtype: DTypeLike) -> bool:
    """Whether the dtype would reduce the precision of NumPy's numbers."""
    double = isinstance(x, np.ndarray) and x.dtype == np.float64 and jnp.finfo(dtype).bits < 64
    return double or _is_extended(x)


def _checked(samples: dict[str, Numbers]) -> dict[str, Unrounded]:
    """Each sample as an array of real numbers, matrices with the same number of features."""
    check_columns(samples)
    # Exactly, as the samples may be centred before they are rounded to JAX's dtype.
    converted = {name: as_numbers(name, sample, exact=True) for name, sample in samples.items()}
    for name, sample in converted.items():
        if sample.ndim == 1 and sample.size:
            raise ValueError(
                f"{name} must be a matrix of shape (samples, features); got shape {sample.shape}. "
                f"Samples of one feature are {name}[:, None]."
            )
        # JAX's dtype rules, which the check applies, lack extended precision.
        check_matrix(**{name: sample.astype(float) if _is_extended(sample) else sample})
    (first, one), *others = converted.items()
    for name, other in others:
        check_same_features(one, other, (first, name))
    return converted


def _common_dtype(samples: dict[str, Unrounded]) -> np.dtype:
    return jnp.result_type(*(dtype_in_jax(sample) for sample in samples.values()))


def dtype_in_jax(sample: Unrounded) -> np.dtype:
    """Its dtype in JAX: float64 only if that is enabled."""
    dtype = np.dtype(float) if _is_extended(sample) else sample.dtype
    return jax.dtypes.canonicalize_dtype(dtype)


def _rounds(array: Unrounded) -> bool:
    """Whether these are known integers of JAX that its default float may round."""
    if isinstance(array, np.ndarray) or not jnp.issubdtype(array.dtype, jnp.integer):
        return False
    digits = jnp.finfo(jax.dtypes.canonicalize_dtype(float)).nmant
    held = 8 * array.dtype.itemsize <= digits
    # An array spread over several processes cannot be read into NumPy by one of them.
    return not (held or isinstance(array, Tracer)) and array.is_fully_addressable
