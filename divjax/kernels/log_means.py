"""Logarithms of weighted means of a kernel, finite for points so far apart that it underflows."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from divjax.core.numerics import safe_log
from divjax.core.pair_reductions import LOG_SUM
from divjax.core.simplex import mass_of_distinct_pairs
from divjax.kernels.means import map_kernel_rows, mean_of_pairs, own_mean
from divjax.kernels.protocols import GramKernel, is_radial

__all__ = ["log_mean_of_pairs", "log_own_mean", "log_sum"]


def log_sum(logs: Float[Array, "... m"], weights: Float[Array, " m"]) -> Float[Array, "..."]:
    """Log Σ_j w_j exp(l_j) along the last axis, −∞ if all terms are zero, with derivative zero.

    Its derivative in a weight of zero is exp(l_j)/Σ, up to a bound near the dtype's range.

    Example:
        >>> float(log_sum(jnp.array([-1000.0, -1000.0, 0.0]), jnp.array([0.5, 0.5, 0.0])))
        -1000.0
    """
    # In units of the largest term. Terms of weight zero may exceed it, and must not overflow.
    largest = jnp.max(jnp.where(weights == 0, -jnp.inf, logs), axis=-1, keepdims=True)
    largest = jax.lax.stop_gradient(jnp.where(jnp.isneginf(largest), 0, largest))
    terms = weights * bounded_exp(logs - largest)
    return safe_log(jnp.sum(terms, axis=-1)) + largest[..., 0]


def bounded_exp(logs: Float[Array, "..."]) -> Float[Array, "..."]:
    """exp, at most the root of the dtype's range: terms of weight zero must not overflow.

    Derivatives in such a weight divide by a sum that may be small.

    Example:
        >>> bounded_exp(jnp.array([0.0, 1000.0])) < 1e20
        Array([ True,  True], dtype=bool)
    """
    bound = 0.5 * jnp.log(float(jnp.finfo(logs.dtype).max)).astype(logs.dtype)
    return jnp.exp(jnp.minimum(logs, bound))


def _log_sum_of_pairs(
    kernel: GramKernel,
    x: Float[Array, "n d"],
    y: Float[Array, "m d"] | None,
    a: Float[Array, " n"],
    b: Float[Array, " m"],
    with_own: bool,
) -> Float[Array, ""]:
    def row(logs: Float[Array, "b m"], own: Array | None, b: Array) -> Float[Array, " b"]:
        if own is not None and not with_own:
            logs = jnp.where(own, -jnp.inf, logs)
        return log_sum(logs, b)

    # Each row's sum is in units of its own largest term, so that far rows keep finite logarithms.
    options: Any = {"columns": (b,), "reduction": LOG_SUM, "used": b != 0, "logarithm": True}
    return log_sum(map_kernel_rows(row, kernel, x, y, **options), a)


def log_mean_of_pairs(
    kernel: GramKernel,
    x: Float[Array, "n d"],
    y: Float[Array, "m d"],
    a: Float[Array, " n"],
    b: Float[Array, " m"],
) -> Float[Array, ""]:
    """The logarithm of `mean_of_pairs`; NaN if that is negative."""
    # A kernel of inner products may be negative at single pairs.
    if not is_radial(kernel):
        return safe_log(mean_of_pairs(kernel, x, y, a, b))
    return _log_sum_of_pairs(kernel, x, y, a, b, True)


def log_own_mean(
    kernel: GramKernel, x: Float[Array, "n d"], a: Float[Array, " n"], *, debias: bool
) -> Float[Array, ""]:
    """The logarithm of `own_mean`; NaN if that is negative."""
    if not is_radial(kernel):
        return safe_log(own_mean(kernel, x, a, debias=debias))
    value = _log_sum_of_pairs(kernel, x, None, a, a, not debias)
    return value - jnp.log(mass_of_distinct_pairs(a)) if debias else value
