"""Shape and value checks at trace time, with one-sentence errors that name the argument."""

import functools
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from typing import ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike

from divjax.core.rounding import LARGEST_ROUNDING

P = ParamSpec("P")
T = TypeVar("T")

__all__ = [
    "check_arguments",
    "check_at_least",
    "check_base",
    "check_below",
    "check_callable",
    "check_choice",
    "check_count",
    "check_flag",
    "check_full_precision",
    "check_key",
    "check_matrix",
    "check_no_negatives",
    "check_nonnegative",
    "check_nonnegative_values",
    "check_number",
    "check_order",
    "check_positive",
    "check_positive_finite",
    "check_positive_values",
    "check_probability",
    "check_provides",
    "check_same_features",
    "check_scalar",
    "check_scalar_output",
    "check_shape",
    "check_simplex",
    "check_unit_interval",
    "check_weights",
    "check_widths",
    "key_first",
    "known_number",
]


def _numbers(values: dict[str, object]) -> Iterator[tuple[str, int | float]]:
    """The Python numbers among values and in sequences of them, with their names."""
    for name, value in values.items():
        for entry in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(entry, (int, float)):
                yield name, entry


def check_positive(**values: object) -> None:
    """Raise `ValueError` for a Python number that is not positive, but pass arrays and tracers.

    Every entry of a sequence is checked.

    Example:
        >>> check_positive(bandwidth=1.0, epsilon=(0.1, 1.0))
    """
    for name, value in _numbers(values):
        # Negated, so that NaN is refused too.
        if not value > 0:
            raise ValueError(f"{name} must be a positive number; got {value}.")


def check_positive_finite(**values: object) -> None:
    """Raise `ValueError` for a Python number that is not positive and finite, as `check_positive`.

    Example:
        >>> check_positive_finite(learning_rate=0.1, floor=(1e-6, 1e-3))
    """
    check_positive(**values)
    for name, value in _numbers(values):
        if value == math.inf:
            raise ValueError(f"{name} must be finite; got {value}.")


def check_positive_values(**values: object) -> None:
    """Raise `ValueError` for concrete numbers or arrays that are not positive; tracers pass.

    To be called when a hyper-parameter is used. JAX may replace a stored one by a gradient.
    """
    for name, value in values.items():
        # A sequence may hold traced numbers.
        traced = any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(value))
        if not traced and not (np.asarray(value) > 0).all():
            raise ValueError(f"{name} must be positive; got {value}.")


def check_nonnegative_values(**values: object) -> None:
    """Raise `ValueError` for concrete numbers or arrays that are negative or NaN; tracers pass."""
    for name, value in values.items():
        if not isinstance(value, Tracer) and not (np.asarray(value) >= 0).all():
            raise ValueError(f"{name} must not be negative; got {value}.")


def check_no_negatives(**values: object) -> None:
    """Raise `ValueError` for concrete numbers or arrays with a negative entry; NaN passes."""
    for name, value in values.items():
        if not isinstance(value, Tracer) and (np.asarray(value) < 0).any():
            raise ValueError(f"{name} must not be negative; got {_described(value)}.")


def check_at_least(least: float, **values: object) -> None:
    """Raise `ValueError` for concrete numbers or arrays with an entry below `least`, or NaN."""
    for name, value in values.items():
        if not isinstance(value, Tracer) and not (np.asarray(value) >= least).all():
            raise ValueError(f"{name} must be at least {least:g}; got {_described(value)}.")


def check_below(lower: ArrayLike, upper: ArrayLike, rows: ArrayLike = True) -> None:
    """Raise `ValueError` for concrete interval ends, in the given rows, that are not in order."""
    if any(isinstance(value, Tracer) for value in (lower, upper, rows)):
        return
    if not ((np.asarray(lower) < np.asarray(upper)) | ~np.asarray(rows)).all():
        raise ValueError(
            f"lower must be below upper; got {_described(lower)} and {_described(upper)}."
        )


def check_nonnegative(**values: object) -> None:
    """Raise `ValueError` for a Python number that is negative, but pass arrays and tracers."""
    for name, value in _numbers(values):
        if not value >= 0:
            raise ValueError(f"{name} must not be negative; got {value}.")


def check_scalar(**values: ArrayLike | None) -> None:
    """Raise `ValueError` unless each value is one real number; None passes.

    To be called when a hyper-parameter is used. A stored one may be an array of several values.

    Example:
        >>> check_scalar(tolerance=1e-3, epsilon=jnp.array(0.1), bandwidth=None)
    """
    for name, value in values.items():
        if value is None or isinstance(value, (int, float)):
            continue
        # By dtype rather than by conversion: tracers have a dtype, text and lists do not.
        dtype = getattr(value, "dtype", None)
        real = dtype is not None and (
            jnp.issubdtype(dtype, jnp.floating)
            or jnp.issubdtype(dtype, jnp.integer)
            or jnp.issubdtype(dtype, jnp.bool_)
        )
        if not real or jnp.ndim(value):
            raise ValueError(f"{name} must be one real number; got {_described(value)}.")


def check_number(**values: ArrayLike | None) -> None:
    """Raise `ValueError` unless each value is one real number; None is not."""
    for name, value in values.items():
        if value is None:
            raise ValueError(f"{name} must be one real number; got None.")
    check_scalar(**values)


def check_flag(**values: object) -> None:
    """Raise `ValueError` unless each value is True or False."""
    for name, value in values.items():
        if not isinstance(value, bool):
            raise ValueError(f"{name} must be True or False; got {value!r}.")


def known_number(
    name: str, value: ArrayLike | None, least: float = -math.inf, *, above: bool = False
) -> float:
    """Convert a finite number in range to a Python float, or raise `ValueError`.

    Args:
        name: the argument's name in messages.
        value: a concrete number of Python, NumPy or JAX.
        least: the smallest value allowed.
        above: whether `least` itself is out of range.

    Example:
        >>> known_number("scale", jnp.array(0.5), 0, above=True)
        0.5
    """
    # A tracer cannot become a Python float, and JAX's own error would not name the argument.
    if value is None or isinstance(value, Tracer):
        raise ValueError(f"{name} must be a concrete number; got {_described(value)}.")
    # Before the conversion, which would also accept text.
    check_scalar(**{name: value})
    number = float(np.asarray(value))
    # NaN is not below `least`, hence the separate test for finite numbers.
    if not math.isfinite(number) or number < least or (above and number == least):
        least_of_all = (
            "" if least == -math.inf else f" {'above' if above else 'of at least'} {least}"
        )
        raise ValueError(f"{name} must be a finite number{least_of_all}; got {number}.")
    return number


def check_count(least: int, **values: object) -> None:
    """Raise `ValueError` unless each value is an integer of at least `least`.

    Example:
        >>> check_count(2, num_folds=5)
    """
    for name, value in values.items():
        # In Python True is an integer, the number one.
        whole = isinstance(value, (int, np.integer))
        if not whole or isinstance(value, bool) or value < least:
            raise ValueError(f"{name} must be an integer of at least {least}; got {value!r}.")


def check_probability(**values: ArrayLike | None) -> None:
    """Raise `ValueError` unless each value is one number, and in (0, 1) if a Python number."""
    check_scalar(**values)
    for name, value in values.items():
        # An array's value may be unknown while tracing, so that only Python numbers are tested.
        if not isinstance(value, (int, float)):
            continue
        if not 0 < value < 1:
            raise ValueError(f"{name} must be a number in (0, 1); got {value}.")
        # A level such as 1 − 10⁻⁷ is another in float32, with another distance from 1 and quantile.
        rounded = np.asarray(value, jax.dtypes.canonicalize_dtype(float))
        if not abs(float(rounded) - value) <= LARGEST_ROUNDING * min(value, 1 - value):
            raise ValueError(f"{name} must not round to {rounded} in {rounded.dtype}; got {value}.")


def check_order(p: ArrayLike, *, above_one: bool = False) -> None:
    """Raise `ValueError` for a Python number as order that is not finite or below 1."""
    if isinstance(p, (int, float)) and not (1 <= p < float("inf") and (p > 1 or not above_one)):
        range_of_p = "above 1" if above_one else "of at least 1"
        raise ValueError(f"p must be a finite number {range_of_p}; got {p}.")


def check_base(base: ArrayLike | None) -> None:
    """Raise `ValueError` for a concrete base of a logarithm that is not a number in (1, ∞)."""
    if base is None or isinstance(base, Tracer):
        return
    number = np.asarray(base)
    real = number.dtype == bool or jnp.issubdtype(number.dtype, np.number)
    if number.ndim or not real or not 1 < number < np.inf:
        raise ValueError(
            f"base must be a number above 1, or None for nats; got {_described(base)}."
        )
    # A base near 1 has another logarithm in float32.
    rounded = number.astype(jax.dtypes.canonicalize_dtype(float))
    if not abs(float(rounded) - float(number)) <= LARGEST_ROUNDING * (float(number) - 1):
        raise ValueError(f"base must not round to {rounded} in {rounded.dtype}; got {number}.")


def check_unit_interval(**values: object) -> None:
    """Raise `ValueError` for concrete numbers outside of [0, 1]; tracers pass."""
    for name, value in values.items():
        if not isinstance(value, Tracer):
            numbers = np.asarray(value)
            if not ((numbers >= 0) & (numbers <= 1)).all():
                raise ValueError(f"{name} must be in [0, 1]; got {numbers.tolist()}.")


def check_widths(**values: object) -> None:
    """Raise `ValueError` unless each value is a sequence of positive integers."""
    for name, widths in values.items():
        if not isinstance(widths, (tuple, list)):
            raise ValueError(f"{name} must be a tuple of widths; got {widths!r}.")
        for width in widths:
            check_count(1, **{name: width})


def check_weights(name: str, weights: ArrayLike) -> None:
    """Raise `ValueError` for concrete weights that are negative, not finite, or all zero."""
    if isinstance(weights, Tracer):
        return
    # In float64, in which a sum of large weights of half precision is not infinite.
    values = np.asarray(weights, np.float64)
    # An empty array has no least and largest weight for the message below.
    if not values.size:
        raise ValueError(f"{name} must not be empty; got shape {values.shape}.")
    if not (np.isfinite(values).all() and (values >= 0).all() and values.sum() > 0):
        raise ValueError(
            f"{name} must be finite and non-negative, not all zero; got values from "
            f"{values.min()} to {values.max()}."
        )


def check_simplex(name: str, weights: ArrayLike | Sequence[ArrayLike]) -> None:
    """Raise `ValueError` for concrete numbers that are negative or do not sum to one."""
    # A sequence may hold both tracers and numbers, and is concrete only if all of them are.
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(weights)):
        return
    values = np.asarray(weights, np.float64)
    if not ((values >= 0).all() and abs(values.sum() - 1) <= 1e-5):
        raise ValueError(f"{name} must be non-negative and sum to one; got {values.tolist()}.")


def check_callable(**functions: object) -> None:
    """Raise `ValueError` unless each value is callable."""
    for name, function in functions.items():
        if not callable(function):
            raise ValueError(f"{name} must be a function; got {type(function).__name__}.")


def check_choice(choices: tuple[object, ...], **values: object) -> None:
    """Raise `ValueError` for a value that is not one of the choices.

    Example:
        >>> check_choice(("diagonal", "full"), covariance="full")
    """
    for name, value in values.items():
        if value not in choices:
            known = ", ".join(map(str, choices))
            raise ValueError(f"{name} must be one of {known}; got {value!r}.")


def check_key(key: object) -> None:
    """Raise `ValueError` for anything but one typed key."""
    # A legacy key is an array of integers, and a batch of keys has a shape.
    dtype, shape = getattr(key, "dtype", None), getattr(key, "shape", ())
    if dtype is None or not jnp.issubdtype(dtype, jax.dtypes.prng_key) or shape:
        got = repr(key) if dtype is None else f"{type(key).__name__} of shape {shape}"
        raise ValueError(f"key must be one typed key, such as jax.random.key(0); got {got}.")


def key_first(function: Callable[P, T]) -> Callable[P, T]:
    """The function or method, with an error for a forgotten key instead of a missing argument.

    Example:
        >>> @key_first
        ... def draw(key, shape): ...
        >>> draw((3, 2))
        Traceback (most recent call last):
        ValueError: key must be one typed key, such as jax.random.key(0); got (3, 2).
    """
    # A method's key comes after the object.
    position = int(next(iter(inspect.signature(function).parameters)) == "self")

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> T:
        if len(args) > position:
            check_key(args[position])
        return function(*args, **kwargs)

    return checked


def _described(value: object) -> str:
    """Numbers and text by value, an array by its shape: messages never contain data."""
    # Only one number is printed by value. A tracer has no value, and an array may be large or
    # private.
    if (
        isinstance(value, (jax.Array, np.ndarray, np.generic))
        and not isinstance(value, Tracer)
        and not value.shape
        and jnp.issubdtype(value.dtype, np.number)
    ):
        return f"{np.asarray(value).item():.6g}"
    dtype, shape = getattr(value, "dtype", None), getattr(value, "shape", None)
    if dtype is not None and shape is not None:
        return f"an array {dtype}{list(shape)}"
    if isinstance(value, (str, int, float, type(None))):
        return repr(value)
    return type(value).__name__


def check_provides(name: str, value: object, attributes: tuple[str, ...], hint: str) -> None:
    """Raise `ValueError` for an object without these attributes, or for a class in its place."""
    if isinstance(value, type):
        raise ValueError(f"{name} must be an instance; got the class {value.__name__} itself.")
    missing = [attribute for attribute in attributes if not provides(value, attribute)]
    if missing:
        without = ", ".join(missing)
        raise ValueError(f"{name} must be {hint}; got {_described(value)}, without {without}.")


def provides(value: object, attribute: str) -> bool:
    """Whether an object has an attribute; a property is not evaluated, unlike by `hasattr`.

    Fields of a method may be placeholders of JAX, of which nothing can be computed.
    """
    nothing = object()
    declared = inspect.getattr_static(value, attribute, nothing) is not nothing
    return declared or hasattr(value, attribute)


def check_arguments(name: str, function: Callable[..., object], *arguments: str) -> None:
    """Raise `ValueError` unless the function can be called with these positional arguments.

    Example:
        >>> check_arguments("log_prob", lambda x: 0.0, "particle")
    """
    check_callable(**{name: function})
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # compiled functions may have none
        return
    try:
        # The names are bound in place of the arguments: nothing is called.
        signature.bind(*arguments)
    except TypeError:
        called = ", ".join(arguments)
        raise ValueError(f"{name} must take ({called}); it takes {signature}.") from None


def check_full_precision(name: str, array: Array | np.ndarray) -> None:
    """Raise `ValueError` for half precision, for which there are no matrix factorisations."""
    if jnp.finfo(array.dtype).bits < 32:
        raise ValueError(f"{name} must be float32 or float64 here; got {array.dtype}.")


def _check_array(name: str, array: object) -> None:
    if not isinstance(array, (int, float)) and not hasattr(array, "dtype"):
        raise ValueError(f"{name} must be an array; got {type(array).__name__}.")


def check_matrix(**arrays: ArrayLike) -> None:
    """Raise `ValueError` unless each array is a non-empty real matrix, one row per sample."""
    for name, array in arrays.items():
        _check_array(name, array)
        if jnp.ndim(array) != 2 or 0 in jnp.shape(array):
            raise ValueError(
                f"{name} must be a non-empty matrix of shape (samples, features); "
                f"got shape {jnp.shape(array)}."
            )
        if not jnp.issubdtype(jnp.result_type(array), jnp.floating):
            raise ValueError(f"{name} must be floating-point; got {jnp.result_type(array)}.")


def check_shape(name: str, array: ArrayLike, *sizes: int | str) -> None:
    """Raise `ValueError` unless the array has this shape; a name matches any size.

    Example:
        >>> check_shape("velocities", jnp.zeros((2, 5, 3)), "k", 5, "d")
    """
    _check_array(name, array)
    shape = jnp.shape(array)
    fits = len(shape) == len(sizes) and all(
        isinstance(size, str) or size == actual for size, actual in zip(sizes, shape, strict=True)
    )
    if not fits:
        expected = ", ".join(str(size) for size in sizes) + ("," if len(sizes) == 1 else "")
        raise ValueError(f"{name} must have shape ({expected}); got shape {shape}.")


def check_same_features(
    x: Array | np.ndarray, y: Array | np.ndarray, names: tuple[str, str] = ("x", "y")
) -> None:
    """Raise `ValueError` unless two sample matrices have the same number of columns."""
    if x.shape[1] != y.shape[1]:
        raise ValueError(
            f"{names[0]} and {names[1]} must have the same number of features; "
            f"got {x.shape[1]} and {y.shape[1]}."
        )


def check_scalar_output(name: str, function: Callable[..., object], *args: object) -> None:
    """Raise `ValueError` unless `function(*args)` is a real scalar, without computing it."""
    check_callable(**{name: function})
    # Traced abstractly, as user functions may be expensive. The output may be any pytree.
    output = jax.eval_shape(function, *args)
    if not hasattr(output, "shape") or output.shape != ():
        shape = getattr(output, "shape", jax.tree.map(jnp.shape, output))
        raise ValueError(f"{name} must return a scalar; got shape {shape}.")
    if not jnp.issubdtype(output.dtype, jnp.floating):
        raise ValueError(f"{name} must return a real floating-point number; got {output.dtype}.")
