"""Elementary functions that are correct at the edge of their domain, and branchless choices.

The guard `where(x > 0, f(x), 0)` turns NaN and values out of range into zero. These functions
propagate both as NaN, take the limit at zero, and have finite derivatives there.
"""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Bool, Float

from divjax.core.checks import check_base

__all__ = [
    "at_least_single",
    "if_needed",
    "in_base",
    "in_units_of",
    "inf_if_nan",
    "matmul",
    "nan_entries_unless",
    "nan_unless",
    "norm_and_direction",
    "root_of_sum",
    "safe_log",
    "safe_power",
    "safe_sqrt",
    "xlogy",
]

T = TypeVar("T")

# Distances and log-densities suffer cancellation: TF32 or bfloat16 products, an accelerator's
# default, would leave three digits.
matmul = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


def at_least_single(dtype: DTypeLike) -> np.dtype:
    """The dtype, float32 for half precision, in which sums over many rows overflow or saturate.

    Example:
        >>> at_least_single(jnp.float16).name, at_least_single(jnp.float64).name
        ('float32', 'float64')
    """
    # Not by promotion, which is refused for float64 and float32 in JAX's strict mode.
    dtype = np.dtype(dtype)
    wide = jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits >= 32
    return dtype if wide else np.dtype(np.float32)


def nan_unless(condition: ArrayLike, value: ArrayLike) -> Array:
    """The value if the condition holds, otherwise NaN, as for invalid traced arguments.

    The derivative is NaN, too. That of a `where` would be zero, which says that nothing is to be
    gained rather than that nothing is known.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> nan_unless(jnp.array([True, False]), 1.0).tolist()
        [1.0, nan]
        >>> float(jax.grad(lambda x: nan_unless(False, x))(1.0))
        nan
    """
    return jnp.multiply(value, jnp.where(condition, 1.0, jnp.nan))


def nan_entries_unless(condition: Bool[Array, "..."], values: Float[Array, "..."]) -> Array:
    """The entries of a batch for which the condition holds, otherwise NaN.

    Unlike that of `nan_unless` the derivative at the others is zero: they may be padding, which a
    caller masks, and must not make the derivatives of the batch NaN.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> keep = jnp.array([True, False])
        >>> jax.grad(lambda x: nan_entries_unless(keep, x)[0])(jnp.ones(2)).tolist()
        [1.0, 0.0]
    """
    return jnp.where(condition, values, jnp.nan)


def inf_if_nan(loss: Float[Array, ""]) -> Float[Array, ""]:
    """The loss, infinite if it is NaN: infinity is never the smallest of several.

    Comparisons with NaN are always False, so that NaN might be kept as the best.

    Example:
        >>> import jax.numpy as jnp
        >>> float(inf_if_nan(jnp.array(jnp.nan)))
        inf
    """
    return jnp.where(jnp.isnan(loss), jnp.inf, loss)


def safe_sqrt(x: Array) -> Array:
    """√x with derivative 0 at 0, and NaN for NaN and negative numbers.

    For distances at coincident points, and deviations that vanish.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> safe_sqrt(jnp.array([4.0, 0.0, -1.0])).tolist()
        [2.0, 0.0, nan]
        >>> float(jax.grad(safe_sqrt)(0.0))
        0.0
    """
    # Only zero is replaced, so that NaN and negative numbers reach the root. Subnormal numbers are
    # zero if the processor flushes them.
    is_zero = x == 0
    return jnp.where(is_zero, 0, jnp.sqrt(jnp.where(is_zero, 1, x)))


@jax.custom_jvp
def quotient(x: ArrayLike, y: ArrayLike) -> Array:
    """x/y with derivatives at any scale: JAX divides by y², which may leave the dtype's range.

    Example:
        >>> import jax
        >>> jax.grad(quotient, 1)(3e20, 1e20) * 1e20, jax.grad(jax.lax.div, 1)(3e20, 1e20)
        (Array(-3., dtype=float32, weak_type=True), Array(-0., dtype=float32, weak_type=True))
    """
    return x / y  # pyright: ignore[reportReturnType, reportOperatorIssue]


@quotient.defjvp
def _(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    (x, y), (dx, dy) = primals, tangents
    ratio = quotient(x, y)
    return ratio, quotient(dx, y) - ratio * quotient(dy, y)


@jax.jit
def norm_and_direction(v: Float[Array, "... d"]) -> tuple[Float[Array, "... 1"], Array]:
    """‖v‖ along the last axis and v/‖v‖, at any scale; a zero vector has a direction of zeros.

    The squares are of the entries in units of the largest, and neither over- nor underflow.

    Example:
        >>> import jax.numpy as jnp
        >>> norm, direction = norm_and_direction(jnp.array([3e-30, 4e-30]))
        >>> float(norm[0] * 1e30), direction.round(3).tolist()
        (5.0, [0.6, 0.8])
    """
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(v), axis=-1, keepdims=True))
    scaled, unit = in_units_of(largest, v)
    norm = safe_sqrt(jnp.sum(jnp.square(scaled), axis=-1, keepdims=True))
    return unit * norm, scaled / jnp.where(norm == 0, 1, norm)


def root_of_sum(x: Array, squared: Array) -> Array:
    """(x² + squared)^½ for x ≥ 0 and squared ≥ 0, even if x² is out of the dtype's range.

    Example:
        >>> import jax.numpy as jnp
        >>> float(root_of_sum(jnp.array(3e30), jnp.array(0.0)) / 3e30)
        1.0
    """
    unit = jax.lax.stop_gradient(jnp.maximum(x, jnp.sqrt(squared)))
    unit = jnp.where((unit > 0) & jnp.isfinite(unit), unit, 1)
    return unit * safe_sqrt((x / unit) ** 2 + squared / unit / unit)


def safe_power(base: Array, exponent: ArrayLike) -> Array:
    """base^exponent for base ≥ 0, derivatives 0 at base 0, and NaN for NaN and negative bases.

    NaN as an exponent gives NaN at every base, also at 1.

    0^exponent is 0 for a positive exponent, 1 for exponent 0 and infinite for a negative one.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> safe_power(jnp.array([4.0, 0.0, -1.0]), 1.5).tolist()
        [8.0, 0.0, nan]
        >>> float(jax.grad(safe_power)(0.0, 0.5))
        0.0
    """
    base = jnp.asarray(base)
    # In the dtype of integers an exponent of ½ would be 0.
    base = base if jnp.issubdtype(base.dtype, jnp.inexact) else base.astype(float)
    exponent = jnp.asarray(exponent, base.dtype)
    is_zero = base == 0
    # `**` has values at negative bases for integer exponents, and 1 for NaN to the power of 0.
    power = jnp.where(base >= 0, jnp.where(is_zero, 1, base) ** exponent, jnp.nan)
    at_zero = jnp.where(exponent > 0, 0, jnp.where(exponent == 0, 1, jnp.inf)).astype(power.dtype)
    power = jnp.where(is_zero, jax.lax.stop_gradient(at_zero), power)
    # As it has 1 for 1 to the power of NaN.
    return nan_unless(~jnp.isnan(exponent), power)


def safe_log(x: Array) -> Array:
    """The logarithm, −∞ at 0 with derivative 0 there, and NaN for NaN and negative numbers.

    For logarithms of weights, whose derivative is only needed at nonzero weights.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> safe_log(jnp.array([1.0, 0.0, -1.0])).tolist()
        [0.0, -inf, nan]
        >>> float(jax.grad(safe_log)(0.0))
        0.0
    """
    # Both branches of a `where` are differentiated: log 0 must not arise in the one not taken.
    is_zero = x == 0
    return jnp.where(is_zero, -jnp.inf, jnp.log(jnp.where(is_zero, 1, x)))


def xlogy(x: Array, y: Array) -> Array:
    """The product x log y, 0 if x is 0 for any y, even NaN, with finite derivatives there.

    Example:
        >>> import jax.numpy as jnp
        >>> xlogy(jnp.array([0.0, 0.0, 2.0]), jnp.array([0.0, jnp.nan, 1.0])).tolist()
        [0.0, 0.0, 0.0]
    """
    # In derivatives zero times −∞ or NaN would be NaN, hence y is replaced too.
    is_zero = x == 0
    return jnp.where(is_zero, 0, x * safe_log(jnp.where(is_zero, 1, y)))


def if_needed(condition: Bool[Array, ""], function: Callable[[T], T], operand: T) -> T:
    """`function(operand)` if the condition holds, otherwise the operand.

    A loop of at most one step. Under `vmap`, `lax.cond` evaluates both sides in every lane. This
    evaluates the function only if the condition holds in some lane. Not differentiable in reverse
    mode.

    Example:
        >>> import jax.numpy as jnp
        >>> float(if_needed(jnp.array(True), lambda x: x + 1, jnp.array(1.0)))
        2.0
    """
    # The second component is the condition, which one step makes False.
    result, _ = jax.lax.while_loop(
        lambda carry: carry[1],
        lambda carry: (function(carry[0]), jnp.array(False)),
        (operand, condition),
    )
    return result


def in_base(value: Array, base: ArrayLike | None) -> Array:
    """Nats in units of log(base), or unchanged; NaN for a traced base that is not in (1, ∞).

    Raises:
        ValueError: if a concrete base is out of this range or not a number.

    Example:
        >>> import jax.numpy as jnp
        >>> float(in_base(jnp.log(8.0), 2))
        3.0
    """
    check_base(base)
    if base is None:
        return value
    base = jnp.asarray(base, value.dtype)
    return value / jnp.log(nan_unless((base > 1) & (base < jnp.inf), base))


def in_units_of(
    size: Float[Array, "..."], x: Float[Array, "..."]
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """The numbers in units of the power of two at or below `size`, and that unit.

    By two products: division becomes a product with the reciprocal, which for a size above 8.5e37
    is subnormal in float32 and flushed to zero.

    Example:
        >>> import jax.numpy as jnp
        >>> scaled, unit = in_units_of(jnp.array(3e38), jnp.array([3e38, -1.5e38]))
        >>> scaled.round(2).tolist(), float(unit) == 2.0**127
        ([1.76, -0.88], True)
    """
    # frexp has mantissas in [½, 1), hence the −1 for the power at or below.
    exponent = jnp.frexp(size)[1] - 1
    half = exponent // 2
    one = jnp.ones_like(size)
    scaled = x * jnp.ldexp(one, -half) * jnp.ldexp(one, half - exponent)
    return scaled, jnp.ldexp(one, half) * jnp.ldexp(one, exponent - half)
