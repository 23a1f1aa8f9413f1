"""Results of estimators and solvers: estimates, intervals, the status of a run, short printing."""

import dataclasses
import enum
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.scipy.special import ndtri
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PyTree

from divjax.core.checks import check_no_negatives, check_probability
from divjax.core.numerics import at_least_single, nan_unless
from divjax.core.pytrees import pytree
from divjax.core.samples import Numbers, as_arrays

__all__ = [
    "Estimate",
    "Interval",
    "Outcome",
    "Status",
    "check_status",
    "normal_estimate",
    "normal_interval",
    "normal_quantile",
    "status_of",
    "summary",
]


class Status(enum.IntEnum):
    """How a run ended. Results hold it as an integer array, since it may be traced.

    Example:
        >>> Status(1).sentence
        'the run ended before it met its tolerance or passed its checks'
    """

    CONVERGED = 0
    MAX_ITERATIONS = 1
    FLOATING_POINT_RESOLUTION = 2
    NOT_FINITE = 3
    INVALID_INPUT = 4

    @property
    def sentence(self) -> str:
        """The status in words."""
        return _SENTENCES[self]


_SENTENCES = {
    Status.CONVERGED: "the run converged",
    Status.MAX_ITERATIONS: "the run ended before it met its tolerance or passed its checks",
    Status.FLOATING_POINT_RESOLUTION: (
        "the result is limited by floating-point resolution: centre or scale the input, "
        "or use float64"
    ),
    Status.NOT_FINITE: "a value that counts is NaN or infinite, in the input or on the way",
    Status.INVALID_INPUT: "an argument that was traced is out of its range",
}


def status_of(
    *,
    converged: Bool[ArrayLike, ""],
    resolved: Bool[ArrayLike, ""] = True,
    finite: Bool[ArrayLike, ""] = True,
    valid: Bool[ArrayLike, ""] = True,
) -> Int[Array, ""]:
    """The most severe status that applies.

    Args:
        converged: whether the tolerance was met.
        resolved: whether floating-point resolution allows the requested accuracy.
        finite: whether all values that count are finite.
        valid: whether all arguments are in range.

    Example:
        >>> int(status_of(converged=False, finite=False)) == Status.NOT_FINITE
        True
    """
    # From the least to the most severe: each overrides those before it.
    status = jnp.where(converged, Status.CONVERGED, Status.MAX_ITERATIONS)
    status = jnp.where(resolved, status, Status.FLOATING_POINT_RESOLUTION)
    status = jnp.where(finite, status, Status.NOT_FINITE)
    return jnp.where(valid, status, Status.INVALID_INPUT).astype(jnp.int32)


def check_status(status: Int[ArrayLike, "..."]) -> None:
    """Raise `RuntimeError` with the sentence of the most severe status that is not `CONVERGED`.

    Traced statuses pass.

    Example:
        >>> check_status(Status.CONVERGED)
    """
    if isinstance(status, Tracer):
        return
    # Statuses are numbered by severity, so the maximum is the most severe of a batch.
    most_severe = Status(int(np.max(np.asarray(status))))
    if most_severe != Status.CONVERGED:
        raise RuntimeError(f"{most_severe.sentence} ({most_severe.name}).")


class Outcome:
    """The interface of all results with a `status`, a base of frozen dataclass pytrees."""

    status: Int[ArrayLike, "..."]

    @property
    def converged(self) -> Bool[Array, "..."]:
        """Whether the status is `Status.CONVERGED`."""
        return jnp.asarray(self.status) == Status.CONVERGED

    @property
    def finite(self) -> Bool[Array, "..."]:
        """Whether all arguments were valid and all numbers that count are finite."""
        return jnp.asarray(self.status) < Status.NOT_FINITE

    def check(self) -> Self:
        """The result itself; raises `RuntimeError` with the status's sentence unless it converged.

        Traced results pass.
        """
        check_status(self.status)
        return self

    def __repr__(self) -> str:
        return summary(self)


def summary(self: Any) -> str:
    """A result in a line or two, with arrays by shape, for use as `__repr__`.

    Example:
        >>> import jax.numpy as jnp
        >>> class Result(NamedTuple):
        ...     value: Array
        ...     potential: Array
        ...     __repr__ = summary
        >>> Result(jnp.float32(0.5), jnp.zeros((3, 2)))
        Result(value=0.5, potential=float32[3,2])
    """
    if dataclasses.is_dataclass(self):
        names = [field.name for field in dataclasses.fields(self)]
    else:
        # Results are frozen dataclasses or named tuples.
        names = list(self._fields)
    shown = ", ".join(f"{name}={_short(name, getattr(self, name))}" for name in names)
    return f"{type(self).__name__}({shown})"


def _short(name: str, value: object) -> str:
    """One field: a number, an array's dtype and shape, or the number of leaves."""
    dtype, shape = getattr(value, "dtype", None), getattr(value, "shape", None)
    if dtype is not None and shape is not None:
        # Arrays are never printed, and tracers have no value to print.
        if shape or isinstance(value, (Tracer, jax.ShapeDtypeStruct)):
            return f"{dtype}[{','.join(map(str, shape))}]"
        # A status is held as an integer, since arrays cannot hold names.
        if name == "status":
            return Status(np.asarray(value).item()).name
        return f"{np.asarray(value).item():.6g}" if dtype.kind == "f" else str(value)
    if isinstance(value, (bool, int, float, str, type(None))):
        return repr(value)
    if type(value).__repr__ is summary or (isinstance(value, tuple) and not value):
        return repr(value)
    # JAX counts an object that is no pytree as one leaf, which is not an array.
    if jax.tree_util.all_leaves([value]):
        return type(value).__name__
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return summary(value)
    return f"{type(value).__name__} of {len(jax.tree.leaves(value))} arrays"


class Interval(NamedTuple):
    """A confidence interval, or a lower and an upper bound on one quantity."""

    lower: Float[Array, "..."]
    upper: Float[Array, "..."]

    __repr__ = summary


@pytree
class Estimate:
    """An estimated number, its uncertainty, and diagnostics.

    Attributes:
        value: the estimate, never clipped to the range of the true value.
        std_error: its standard error.
        interval: the confidence interval, at the requested level.
        effective_sample_size: the equivalent number of equally weighted samples; see the estimator
            for which samples.
        diagnostics: the estimator's own, or `()`.
    """

    value: Float[Array, ""]
    std_error: Float[Array, ""]
    interval: Interval
    effective_sample_size: Float[Array, ""]
    diagnostics: PyTree

    def __float__(self) -> float:
        return float(self.value)

    def __repr__(self) -> str:
        ends = self.value, self.std_error, *self.interval
        # Under `vmap` or `jit` there is no single number, or none yet.
        if any(isinstance(end, Tracer) or jnp.ndim(end) for end in ends):
            return summary(self)
        low, high = float(self.interval.lower), float(self.interval.upper)
        value, std_error = float(self.value), float(self.std_error)
        return f"Estimate({value:.4g} ± {std_error:.2g}, interval [{low:.4g}, {high:.4g}])"


def normal_quantile(confidence_level: ArrayLike, dtype: DTypeLike) -> Array:
    """The z such that a normal variable lies in ±z with this probability, NaN outside of (0, 1)."""
    check_probability(confidence_level=confidence_level)
    # The quantile function does not support half precision.
    level = jnp.asarray(confidence_level, at_least_single(dtype))
    # The lower quantile's negative: (1 + level)/2 would round to one long before the level does.
    quantile = -ndtri((1 - level) / 2)
    return nan_unless((level > 0) & (level < 1), quantile).astype(dtype)


def normal_interval(
    value: Float[Numbers, "..."],
    std_error: Float[Numbers, "..."],
    confidence_level: ArrayLike = 0.95,
) -> Interval:
    """The two-sided interval value ± z · std_error, z the normal quantile of (1 + level)/2.

    Args:
        value: the estimate, of any shape.
        std_error: its standard error.
        confidence_level: the nominal probability that the interval covers the true value.

    Returns:
        The interval.

    Raises:
        ValueError: if the level is not one number, or a Python number outside of (0, 1), or a
            concrete standard error is negative. Such traced ones make the interval NaN.

    Example:
        >>> [float(end) for end in normal_interval(1.0, 0.1)]
        [0.804, 1.196]
    """
    # Concrete arguments are validated eagerly. Traced ones become NaN in `_normal_interval`.
    value, std_error = as_arrays(value=value, std_error=std_error)
    check_no_negatives(std_error=std_error)
    check_probability(confidence_level=confidence_level)
    return _normal_interval(value, std_error, confidence_level)


@jax.jit
def _normal_interval(value: Array, std_error: Array, confidence_level: ArrayLike) -> Interval:
    margin = normal_quantile(confidence_level, value.dtype) * nan_unless(std_error >= 0, std_error)
    return Interval(value - margin, value + margin)


def normal_estimate(
    value: Float[Array, ""],
    std_error: Float[Array, ""],
    effective_sample_size: ArrayLike,
    diagnostics: PyTree = (),
    confidence_level: ArrayLike = 0.95,
) -> Estimate:
    """An estimate with the interval of a nearly normal one."""
    # Numbers of rows are integers, and all numbers of an estimate have its dtype.
    size = jnp.asarray(effective_sample_size, value.dtype)
    interval = normal_interval(value, std_error, confidence_level)
    return Estimate(value, std_error, interval, size, diagnostics)
