"""Discrete distributions in several forms, converted to log-probabilities.

Each form is converted to log-probabilities here, in one place, and divergences are functions of
these. A form is checked before NumPy's numbers are rounded to JAX's dtype, and becomes an argument
of one compiled function.
"""

import functools
from collections.abc import Callable, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from divjax.core.arguments import Leaf, as_leaves, as_optional_leaf
from divjax.core.checks import (
    check_base,
    check_count,
    check_nonnegative,
    check_positive,
    check_scalar,
)
from divjax.core.labels import as_indices
from divjax.core.numerics import at_least_single, in_base, nan_entries_unless, nan_unless
from divjax.core.pytrees import pytree, static
from divjax.core.samples import Numbers, Unrounded, as_numbers, owned

__all__ = [
    "Distribution",
    "Given",
    "Labels",
    "LogProbs",
    "Logits",
    "Weights",
    "check_alike",
    "checked_distribution",
    "evaluate",
    "have_classes",
    "log_probs",
    "log_probs_of",
    "present_classes",
    "sum_over_classes",
]


@pytree
class Logits:
    """A categorical distribution by its logits, p = softmax(values / temperature).

    Attributes:
        values: logits "... c", in which −inf excludes a class.
        temperature: the divisor of the logits. The factor T² of a distillation loss is up to the
            caller.
        mask: which classes exist, broadcast against `values` (all by default). Others, such as a
            padded vocabulary, are excluded and the rest is renormalised.

    Raises:
        ValueError: if the temperature is a Python number that is not positive. An array that is not
            positive makes every result NaN.

    Example:
        >>> import jax.numpy as jnp
        >>> padded = Logits(jnp.array([0.0, 0.0, 9.0]), mask=jnp.array([True, True, False]))
        >>> jnp.exp(log_probs(padded)).tolist()
        [0.5, 0.5, 0.0]
    """

    values: Float[Numbers, "*batch c"]
    temperature: ArrayLike = 1.0
    mask: Bool[Numbers, "*#batch c"] | None = None

    def __post_init__(self):
        check_positive(temperature=self.temperature)


@pytree
class Weights:
    """A categorical distribution by weights that are normalised: counts, or measures of any mass.

    p_i = (values_i + smoothing) / Σ_j (values_j + smoothing), over the classes that exist.

    Attributes:
        values: non-negative numbers "... c".
        smoothing: the amount added to each class that exists: 1 is Laplace's rule, ½ Jeffreys'
            prior. It keeps the KL to an empirical distribution finite.
        mask: which classes exist, broadcast against `values` (all by default).

    Raises:
        ValueError: if the smoothing is a negative Python number. A negative array makes every
            result NaN.

    Example:
        >>> import jax.numpy as jnp
        >>> jnp.exp(log_probs(Weights(jnp.array([3, 0]), smoothing=1.0))).tolist()
        [0.8, 0.2]
    """

    values: Numbers
    smoothing: ArrayLike = 0.0
    mask: Bool[Numbers, "*#batch c"] | None = None

    def __post_init__(self):
        check_nonnegative(smoothing=self.smoothing)


@pytree
class Labels:
    """Categorical distributions with all mass on one class each, given by its index.

    Attributes:
        values: integers "..." from 0 to num_classes − 1. Other integers stand for a distribution
            without any class, whose divergences are NaN.
        num_classes: the number of classes c, static.

    Raises:
        ValueError: if num_classes is not a positive integer.

    Example:
        >>> from divjax.fdiv.categorical import cross_entropy
        >>> import jax.numpy as jnp
        >>> q = jnp.array([[0.25, 0.75], [0.5, 0.5]])
        >>> cross_entropy(Labels(jnp.array([0, 1]), 2), q, base=2).tolist()
        [2.0, 1.0]
    """

    values: Int[Numbers, "*batch"]
    num_classes: int = static()

    def __post_init__(self):
        check_count(1, num_classes=self.num_classes)


Distribution: TypeAlias = ArrayLike | Logits | Weights | Labels

LogProbs = Float[Array, "*#batch c"]


def log_probs(distribution: Distribution, *, axis: int = -1) -> LogProbs:
    """The log-probabilities of a distribution, −inf for a class that it excludes.

    Args:
        distribution: probabilities that sum to one, `Logits`, `Weights` (normalised), or `Labels`.
            JAX's numbers below the smallest normal one (1e-38 in float32) count as zero.
        axis: the axis of classes.

    Returns:
        Log-probabilities of the same shape, all −inf where no class exists. Gradients are finite,
        and zero with respect to excluded classes. Traced probabilities that are negative or do not
        sum to one give NaN.

    Raises:
        ValueError: if there is no axis of classes, this axis is empty, or concrete probabilities
            are negative or do not sum to one.

    Example:
        >>> import jax.numpy as jnp
        >>> log_probs(jnp.array([1.0, 0.0])).tolist()
        [0.0, -inf]
    """
    return evaluate(_itself, {"distribution": distribution}, axis, None, per_class=True)


@pytree
class _Probabilities:
    """Probabilities, with a flag that is true if they were verified to sum to one."""

    values: Numbers
    known: bool = static()


Given: TypeAlias = _Probabilities | Logits | Weights | Labels


def checked_distribution(name: str, distribution: Distribution, axis: int) -> Given:
    """The distribution as an argument of a compiled function."""
    if isinstance(distribution, Labels):
        return Labels(as_indices(name, distribution.values), distribution.num_classes)
    is_array = not isinstance(distribution, (Logits, Weights))
    values = as_numbers(name, distribution if is_array else distribution.values)
    if not isinstance(axis, (int, np.integer)) or isinstance(axis, bool):
        raise ValueError(f"axis must be an integer; got {axis!r}.")
    if not -values.ndim <= axis < values.ndim or values.shape[axis] == 0:
        raise ValueError(
            f"{name} must have a non-empty axis {axis} of classes; got shape {values.shape}."
        )
    if is_array:
        # Only concrete arrays can be verified to be probabilities here.
        known = _are_probabilities(name, values, axis)
        # Numbers that JAX's dtype would round to zero are kept by their logarithms.
        return _as_logits(values, None, axis) or _Probabilities(values, known=known)
    mask = _mask(name, distribution.mask, values.shape)
    if isinstance(distribution, Logits):
        check_scalar(temperature=distribution.temperature)
        (temperature,) = as_leaves(temperature=distribution.temperature)
        # The shift leaves the softmax unchanged, and small differences of large logits stay
        # accurate.
        return Logits(_shifted(values, mask, axis), temperature, mask)
    check_scalar(smoothing=distribution.smoothing)
    (smoothing,) = as_leaves(smoothing=distribution.smoothing)
    # What is added to the weights cannot be added to their logarithms.
    unsmoothed = isinstance(smoothing, float) and smoothing == 0
    return (unsmoothed and _as_logits(values, mask, axis)) or Weights(values, smoothing, mask)


def evaluate(
    function: Callable[..., Array],
    distributions: dict[str, Distribution],
    axis: int,
    base: ArrayLike | None,
    *parameters: Leaf,
    per_class: bool = False,
) -> Array:
    """`function(*log_probs, *parameters)` as one compiled function, after checking the arguments.

    Args:
        function: a function of log-probabilities with the classes last, defined in this package.
        distributions: the distributions by the names used in error messages.
        axis: the axis of classes.
        base: the base of the logarithm.
        *parameters: further array arguments of `function`.
        per_class: whether the value keeps the axis of classes.
    """
    check_base(base)
    given = tuple(checked_distribution(name, each, axis) for name, each in distributions.items())
    base = as_optional_leaf(base=base)
    return _computed(function, given, parameters, base, axis=axis, per_class=per_class)


@functools.partial(jax.jit, static_argnames=("function", "axis", "per_class"))
def _computed(
    function: Callable[..., Array],
    given: tuple[Given, ...],
    parameters: tuple[Leaf, ...],
    base: ArrayLike | None,
    *,
    axis: int,
    per_class: bool,
) -> Array:
    value = in_base(function(*_aligned(given, axis), *parameters), base)
    return jnp.moveaxis(value, -1, axis) if per_class else value


def _itself(log_p: LogProbs) -> LogProbs:
    return log_p


def log_probs_of(given: Given, axis: int) -> LogProbs:
    """`log_probs` with the classes on the last axis."""
    if isinstance(given, Labels):
        return _label_log_probs(given)
    values = jnp.moveaxis(jnp.asarray(given.values), axis, -1)
    exists, valid = jnp.ones(values.shape, bool), True
    if isinstance(given, _Probabilities):
        # Traced arrays could not be checked before.
        valid = given.known or _sum_to_one(values)
    elif given.mask is not None:
        mask = jnp.broadcast_to(jnp.asarray(given.mask).astype(bool), jnp.shape(given.values))
        exists = jnp.moveaxis(mask, axis, -1)
    if isinstance(given, Logits):
        exists = exists & (values != -jnp.inf)
        # Excluded entries are replaced before any arithmetic, to avoid 0 · inf in the gradient.
        temperature = jnp.asarray(given.temperature, values.dtype)
        logits = jnp.where(exists, values, 0) / nan_unless(temperature > 0, temperature)
    else:
        if isinstance(given, Weights):
            smoothing = jnp.asarray(given.smoothing, values.dtype)
            # Traced numbers cannot raise: negative ones become NaN.
            values = nan_unless(values >= 0, values) + nan_unless(smoothing >= 0, smoothing)
        exists = exists & (values != 0)
        logits = jnp.log(jnp.where(exists, values, 1))
    # If no class exists the sum runs over all of them, to avoid log 0.
    summed = exists | ~jnp.any(exists, axis=-1, keepdims=True)
    # Shifted first: the sum's logarithm is then small, and so is its rounding.
    top = jnp.max(logits, axis=-1, keepdims=True, where=summed, initial=-jnp.inf)
    shifted = jnp.where(exists, logits - jax.lax.stop_gradient(top), 0)
    total = jnp.sum(jnp.exp(shifted), axis=-1, keepdims=True, where=summed)
    return nan_unless(valid, jnp.where(exists, shifted - jnp.log(total), -jnp.inf))


def _mask(name: str, mask: ArrayLike | None, shape: tuple[int, ...]) -> Unrounded | None:
    """The mask of existing classes, to be broadcast to the values' shape, or None for all."""
    if mask is None:
        return None
    mask = mask if isinstance(mask, jax.Array) else owned(np.asarray(mask))
    # The mask may broadcast to the distribution, which must not broadcast to the mask.
    try:
        fits = np.broadcast_shapes(mask.shape, shape) == shape and mask.dtype.kind in "biuf"
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"the mask of {name} must hold booleans of a shape that broadcasts to {shape}; "
            f"got {mask.dtype} of shape {mask.shape}."
        )
    return mask


def _shifted(logits: Unrounded, mask: Unrounded | None, axis: int) -> Unrounded:
    """Logits minus their maximum, before NumPy's float64 is rounded to float32."""
    if not isinstance(logits, np.ndarray) or isinstance(mask, jax.Array):
        return logits
    # Excluded classes and infinite entries must not decide the shift.
    counted = np.isfinite(logits)
    if mask is not None:
        counted = counted & mask.astype(bool)
    top = np.max(logits, axis=axis, keepdims=True, where=counted, initial=-np.inf)
    return logits - np.where(np.isfinite(top), top, 0)


def _as_logits(values: Unrounded, mask: Unrounded | None, axis: int) -> Logits | None:
    """Logits of NumPy's weights if JAX's dtype would round a small one to zero, otherwise None."""
    if not isinstance(values, np.ndarray) or not is_below_normal(values) or (values < 0).any():
        return None
    with np.errstate(divide="ignore"):
        return Logits(_shifted(np.log(values), mask, axis), 1.0, mask)


def is_below_normal(values: ArrayLike) -> bool:
    """Whether JAX's dtype would round one of NumPy's positive numbers to zero."""
    if not isinstance(values, np.ndarray):
        return False
    smallest = jnp.finfo(jax.dtypes.canonicalize_dtype(values.dtype)).tiny
    return bool(((values > 0) & (values < smallest)).any())


def _are_probabilities(name: str, values: Unrounded, axis: int) -> bool:
    """Whether concrete values are probabilities: `ValueError` if not, False for traced values.

    NaN entries pass and make the result NaN.
    """
    if isinstance(values, Tracer):
        return False
    # In float64, so that the sum's own rounding is negligible beside that of the entries.
    numbers = np.asarray(values, np.float64)
    sums = numbers.sum(axis=axis)
    # Comparisons with NaN are false, so that NaN passes.
    wrong = (np.abs(sums - 1) > _tolerance(values)) | (numbers < 0).any(axis=axis)
    if wrong.any():
        raise ValueError(
            f"{name} must be non-negative probabilities that sum to one; got a sum of "
            f"{sums[wrong].ravel()[0]:.6g}. Give counts or other weights as "
            "categorical.Weights(values), logits as categorical.Logits(values)."
        )
    return True


def _sum_to_one(values: LogProbs) -> Bool[Array, "*batch 1"]:
    """Which rows are probabilities."""
    # Half precision would round the sum of many classes.
    sums = jnp.sum(values, axis=-1, keepdims=True, dtype=at_least_single(values.dtype))
    near = jnp.abs(sums - 1) <= _tolerance(values)
    return near & jnp.all(values >= 0, axis=-1, keepdims=True)


def _tolerance(values: Unrounded) -> float:
    """The tolerance on sums to one, for rounded published tables and for half precision."""
    dtype = jax.dtypes.canonicalize_dtype(values.dtype)
    return max(1e-4, float(jnp.finfo(dtype).eps) ** 0.5)


def _label_log_probs(labels: Labels) -> LogProbs:
    # An index out of range equals no class, while indexing by it would wrap around or clip.
    indices, classes = jnp.asarray(labels.values), jnp.arange(labels.num_classes)
    return jnp.where(indices[..., None].astype(classes.dtype) == classes, 0.0, -jnp.inf)


def _aligned(given: Sequence[Given], axis: int) -> tuple[LogProbs, ...]:
    """Log-probabilities with the classes last, once their shapes fit."""
    logs = tuple(log_probs_of(each, axis) for each in given)
    # Labels have no dtype of their own.
    floats = [log for log, each in zip(logs, given, strict=True) if not isinstance(each, Labels)]
    dtype = jnp.result_type(*(floats or logs))
    logs = tuple(log.astype(dtype) for log in logs)
    check_alike(logs)
    return logs


def check_alike(logs: Sequence[Array | jax.ShapeDtypeStruct]) -> None:
    """Raise `ValueError` unless the numbers of classes agree and the other axes broadcast."""
    shapes = [log.shape for log in logs]
    try:
        jnp.broadcast_shapes(*shapes)
    except ValueError:
        shapes_fit = False
    else:
        # Broadcasting would also repeat a single class, hence the separate test of the last axis.
        shapes_fit = len({shape[-1] for shape in shapes}) == 1
    if not shapes_fit:
        raise ValueError(
            "distributions must have the same number of classes and other axes that broadcast; "
            f"got shapes {', '.join(map(str, shapes))}."
        )


def present_classes(log_p: LogProbs) -> tuple[Bool[Array, "*batch c"], LogProbs, LogProbs]:
    """A mask of the classes (true at NaN), safe log-probabilities, and probabilities."""
    exists = log_p != -jnp.inf
    # Replaced before any arithmetic, as 0 · ∞ would make gradients NaN.
    safe = jnp.where(exists, log_p, 0)
    return exists, safe, jnp.where(exists, jnp.exp(safe), 0)


def sum_over_classes(terms: Float[Array, "*batch c"], *logs: LogProbs) -> Float[Array, "*batch"]:
    """The sum over classes, or NaN where one of the distributions has no class."""
    return nan_entries_unless(have_classes(*logs), terms.sum(-1))


def have_classes(*logs: LogProbs) -> Bool[Array, "*batch"]:
    """Whether each distribution has at least one class."""
    exists = [jnp.any(log != -jnp.inf, axis=-1) for log in logs]
    return jnp.all(jnp.stack(jnp.broadcast_arrays(*exists)), axis=0)
