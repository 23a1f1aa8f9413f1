"""The regimes of a kernel estimate in large dimension.

For n samples of N(0, I_d) and a Gaussian kernel of bandwidth h, with α = log n/d fixed as d grows.
The sum over samples at a new sample is then a partition function of the random energy model, with
its phases: above `central_limit_bandwidth` it is nearly normal, below it the sum fluctuates without
a central limit theorem, and below `condensation_bandwidth` it is made up of a few samples nearby.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from divjax.core.arguments import as_leaves
from divjax.core.checks import check_positive_values
from divjax.core.numerics import at_least_single, nan_unless
from divjax.core.samples import Numbers, as_arrays

__all__ = [
    "central_limit_bandwidth",
    "condensation_bandwidth",
    "kl_optimal_bandwidth",
    "kl_per_dimension",
]

_NUM_NEWTON_STEPS = 25


def _excess(log_precision: Array) -> Array:
    """½ log(1 + λ) − λ/(2(1 + λ)²), increasing and convex in log λ."""
    share = jax.nn.sigmoid(log_precision)
    return 0.5 * jax.nn.softplus(log_precision) - 0.5 * share * jax.nn.sigmoid(-log_precision)


def _excess_slope(log_precision: Array) -> Array:
    """The derivative in log λ, with s = λ/(1 + λ): s² (3 − 2s)/2."""
    share = jax.nn.sigmoid(log_precision)
    return jnp.square(share) * (3 - 2 * share) / 2


@jax.custom_jvp
def _log_precision(alpha: Float[Array, "..."]) -> Float[Array, "..."]:
    """The log λ at which the excess is α, λ = 1/h² at the condensation."""
    # By Newton's method, which from any point above the root of a convex, increasing function falls
    # monotonically to it, and from below gets above it in one step. The excess is 3λ²/4 for small
    # λ, and for large λ at least ½ log λ − ⅛.
    start = jnp.minimum(2 * alpha + 0.25, 0.5 * jnp.log(4 * alpha / 3) + 1)
    step = lambda _, t: t - (_excess(t) - alpha) / _excess_slope(t)
    return jax.lax.fori_loop(0, _NUM_NEWTON_STEPS, step, start)


@_log_precision.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    # By the implicit function theorem for excess(t) = α, not through Newton's steps.
    root = _log_precision(*primals)
    return root, tangents[0] / _excess_slope(root)


def _optimal_squared(log_precision: Array) -> Array:
    """1/(1 + λ) + 1/(1 + λ)²."""
    share = jax.nn.sigmoid(-log_precision)
    return share + jnp.square(share)


def _load(alpha: Numbers) -> Array:
    """α in at least single precision, NaN unless it is positive."""
    (alpha,) = as_arrays(alpha=alpha)
    alpha = alpha.astype(at_least_single(alpha.dtype))
    return nan_unless((alpha > 0) & jnp.isfinite(alpha), alpha)


def condensation_bandwidth(alpha: Float[Numbers, "..."]) -> Float[Array, "..."]:
    """h_G, below which the kernel estimate in large dimension is a sum of few samples.

    α = ½ log(1 + 1/h²) − h²/(2(1 + h²)²) for α = log n/d, samples of N(0, I_d) and a Gaussian
    kernel. Extreme values decide the estimate below h_G, as in the glass phase of the random energy
    model.

    Args:
        alpha: log n/d, positive, of any shape.

    Returns:
        h_G, in units of the standard deviation, differentiable; NaN for a traced α that is not
        positive.

    Raises:
        ValueError: if a known α is not positive.

    Example:
        >>> condensation_bandwidth(0.1).round(4).item()
        1.3708

    References:
        Biroli, Mézard 2024.
    """
    (alpha,) = as_leaves(alpha=alpha)
    check_positive_values(alpha=alpha)
    return _condensation_bandwidth(alpha)


@jax.jit
def _condensation_bandwidth(alpha: Numbers) -> Array:
    load = _load(alpha)
    return jnp.exp(-0.5 * _log_precision(load)).astype(as_arrays(alpha=alpha)[0].dtype)


def central_limit_bandwidth(alpha: Float[Numbers, "..."]) -> Float[Array, "..."]:
    """h_CLT, above which the kernel estimate in large dimension is nearly normal around its mean.

    α = ½ log(1 + 2/h²) − h²/(2 + h²)² for α = log n/d, samples of N(0, I_d) and a Gaussian kernel.
    The variance of the sum is that of one of the samples' terms, whose square is a kernel of
    bandwidth h/√2: h_CLT = √2 h_G.

    Args:
        alpha: log n/d, positive, of any shape.

    Returns:
        h_CLT, in units of the standard deviation, differentiable; NaN for a traced α that is not
        positive.

    Raises:
        ValueError: if a known α is not positive.

    Example:
        >>> central_limit_bandwidth(0.1).round(4).item()
        1.9386

    References:
        Biroli, Mézard 2024.
    """
    return condensation_bandwidth(alpha) * 2**0.5


def kl_optimal_bandwidth(alpha: Float[Numbers, "..."]) -> Float[Array, "..."]:
    """The bandwidth that minimises KL(p‖p̂) in large dimension.

    h² = 1/(1 + λ) + 1/(1 + λ)² with λ = 1/h_G², for α = log n/d, samples of N(0, I_d) and a
    Gaussian kernel. It is below `condensation_bandwidth` at every α: the best estimate is one of
    few samples.

    Args:
        alpha: log n/d, positive, of any shape.

    Returns:
        h, in units of the standard deviation, differentiable; NaN for a traced α that is not
        positive.

    Raises:
        ValueError: if a known α is not positive.

    Example:
        >>> kl_optimal_bandwidth(0.1).round(4).item()
        1.0386

    References:
        Biroli, Mézard 2024.
    """
    (alpha,) = as_leaves(alpha=alpha)
    check_positive_values(alpha=alpha)
    return _kl_optimal_bandwidth(alpha)


@jax.jit
def _kl_optimal_bandwidth(alpha: Numbers) -> Array:
    squared = _optimal_squared(_log_precision(_load(alpha)))
    return jnp.sqrt(squared).astype(as_arrays(alpha=alpha)[0].dtype)


def kl_per_dimension(
    bandwidth: Float[Numbers, "..."], alpha: Float[Numbers, "..."]
) -> Float[Array, "..."]:
    """KL(p‖p̂)/d of the kernel estimate in large dimension, as a function of its bandwidth h.

    ½ log(1 + h²) + 1/(2(1 + h²)) − ½ above `condensation_bandwidth`, where the estimate is its
    mean; α + log h + h₀²/(2h²) − ½ below, with h₀ the `kl_optimal_bandwidth`. For α = log n/d,
    samples of N(0, I_d) and a Gaussian kernel. Below `central_limit_bandwidth` corrections for
    finite d are large.

    Args:
        bandwidth: h, positive, in units of the standard deviation, of any shape.
        alpha: log n/d, positive, of a shape to be broadcast against it.

    Returns:
        The divergence per dimension in nats, differentiable; NaN for traced numbers that are not
        positive.

    Raises:
        ValueError: if a known number is not positive.

    Example:
        >>> best = kl_optimal_bandwidth(0.3)
        >>> kl_per_dimension(best, 0.3).round(4).item()
        0.0561

    References:
        Biroli, Mézard 2024.
    """
    bandwidth, alpha = as_leaves(bandwidth=bandwidth, alpha=alpha)
    check_positive_values(bandwidth=bandwidth, alpha=alpha)
    return _kl_per_dimension(bandwidth, alpha)


@jax.jit
def _kl_per_dimension(bandwidth: Numbers, alpha: Numbers) -> Array:
    bandwidth, alpha = as_arrays(bandwidth=bandwidth, alpha=alpha)
    dtype, alpha = alpha.dtype, _load(alpha)
    bandwidth = bandwidth.astype(alpha.dtype)
    bandwidth = nan_unless((bandwidth > 0) & jnp.isfinite(bandwidth), bandwidth)
    log_precision, squared = _log_precision(alpha), jnp.square(bandwidth)
    of_mean = 0.5 * jnp.log1p(squared) + 0.5 / (1 + squared) - 0.5
    condensed = alpha + jnp.log(bandwidth) + _optimal_squared(log_precision) / (2 * squared) - 0.5
    # 1/h² < λ is h > h_G. Both functions are equal there, and so are their slopes.
    above = -2 * jnp.log(bandwidth) < log_precision
    return jnp.where(above, of_mean, condensed).astype(dtype)
