"""The kernel estimate of a log-density, blockwise and without underflow."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float

from divjax.core.checks import check_positive, check_positive_values, check_provides
from divjax.core.linalg import cholesky, solve_triangular
from divjax.core.normal import check_symmetric, symmetric_or_nan
from divjax.core.numerics import (
    at_least_single,
    matmul,
    nan_entries_unless,
    nan_unless,
    quotient,
    safe_log,
)
from divjax.core.pair_reductions import LOG_SUM, reduce_centered_pairs
from divjax.core.pairwise import common_center
from divjax.core.pytrees import as_pytree
from divjax.core.samples import Numbers, as_numbers, as_weights, centered_samples
from divjax.core.simplex import are_weights, with_finite_padding
from divjax.information.density.bandwidth_rules import Scott
from divjax.information.density.smoothing_kernels import GAUSSIAN, SmoothingKernel

__all__ = ["log_density"]

_SCOTT = Scott()

# Distances are computed again by differences if rounding may change a log-kernel by more than this.
_TOLERATED = 1e-3


def check_smoothing_kernel(kernel: object) -> None:
    """Raise `ValueError` for an object that is not a smoothing kernel."""
    provided = ("log_profile", "log_normalization", "variance", "log_roughness")
    hint = "a smoothing kernel such as density.GaussianKernel()"
    check_provides("kernel", kernel, provided, hint)


def log_density(
    z: Float[Numbers, "k d"],
    x: Float[Numbers, "n d"],
    weights: Float[Numbers, " n"] | None = None,
    *,
    bandwidth: ArrayLike | Callable[..., Any] = _SCOTT,
    kernel: SmoothingKernel = GAUSSIAN,
) -> Float[Array, " k"]:
    """The kernel estimate of log p at points z from samples x of p.

    log p̂(z) = log Σ_i w_i |H|^(−½) K(H^(−½)(z − x_i)), with weights w that sum to one. It is a
    smoothed density: E p̂ = p ∗ K_H, with a bias of order h² and a variance of order 1/(n h^d). At a
    point x_i itself the term of x_i is included.

    Computed as a log-sum-exp: far from all samples the logarithm stays finite for a Gaussian
    kernel. In more than 8 features distances are products of matrices, computed again by
    differences where rounding would change a log-kernel by more than 10⁻³.

    Time O(k n d), memory O((k + n) d) plus one block of the budget of `divjax.core.pairwise`.
    Differentiable in z (the score of p̂), x, the weights, and a bandwidth that is given; one that a
    rule chooses is constant.

    Args:
        z: the points at which to evaluate.
        x: samples of p.
        weights: the samples' weights, non-negative, with any sum, uniform by default. Rows of
            weight zero are padding.
        bandwidth: h > 0, in the unit of x: one number, or one per feature, or the kernel's
            covariance matrix H (h² for one feature); or a rule such as `Scott()`,
            `Silverman()`, or any function `(x, weights, kernel)` that returns one of these.
        kernel: the smoothing kernel.

    Returns:
        The log-density at each z, in nats, −∞ out of the support. NaN at a z that is not finite,
        and everywhere if a sample of nonzero weight is not, or if the bandwidth is not positive (a
        rule's for a constant feature or a single sample).

    Raises:
        ValueError: if z or x is empty or not a matrix, their numbers of features differ, weights do
            not fit, or the bandwidth is a known number that is not positive or of another shape.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> x = jax.random.normal(jax.random.key(0), (2000, 1))
        >>> log_p = log_density(jnp.array([[0.0], [1.0]]), x)
        >>> bool(abs(log_p[0] - log_p[1] - 0.5) < 0.1)  # of the normal density
        True
        >>> score = jax.grad(lambda z: log_density(z[None], x)[0])(jnp.array([1.0]))
        >>> bool(abs(score[0] + 1) < 0.2)
        True

    References:
        Rosenblatt 1956; Parzen 1962; Wand, Jones 1995, equation 4.1: the bandwidth matrix.
    """
    check_smoothing_kernel(kernel)
    check_positive(bandwidth=bandwidth)
    _, z, x = centered_samples({"x": weights}, z=z, x=x)
    if weights is not None:
        weights = as_weights("weights", weights, x.shape[0], x.dtype)
    # A function that is not a pytree is structure.
    rule = as_pytree(bandwidth) if callable(bandwidth) else _as_bandwidth(bandwidth, x)
    return _log_density(z, x, weights, rule, kernel)


def _as_bandwidth(bandwidth: Any, x: Float[Array, "n d"]) -> Float[Array, "..."]:
    """The given bandwidth, of a shape that fits, in the dtype of x."""
    given = as_numbers("bandwidth", bandwidth)
    d = x.shape[1]
    if given.shape not in ((), (d,), (d, d)):
        raise ValueError(
            f"bandwidth must be a number, one per feature, or a matrix, of shape (), ({d},) or "
            f"({d}, {d}); got shape {given.shape}."
        )
    if given.ndim < 2:
        check_positive_values(bandwidth=given)
    else:
        # A factor of the matrix, such as Cholesky's, is not the matrix.
        check_symmetric("bandwidth", given)
    return jnp.asarray(given, x.dtype)


@jax.jit
def _log_density(
    z: Float[Array, "k d"],
    x: Float[Array, "n d"],
    weights: Float[Array, " n"] | None,
    bandwidth: Any,
    kernel: SmoothingKernel,
) -> Float[Array, " k"]:
    """`log_density` after its checks."""
    dtype, wide = x.dtype, at_least_single(x.dtype)
    z, x = z.astype(wide), x.astype(wide)
    weights = None if weights is None else weights.astype(wide)
    if callable(bandwidth):
        bandwidth = jax.lax.stop_gradient(_as_bandwidth(bandwidth(x, weights, kernel), x))
    else:
        bandwidth = bandwidth.astype(wide)
    used = jnp.ones(x.shape[0], bool) if weights is None else weights != 0
    finite = jnp.all(jnp.isfinite(x), axis=1)
    valid = jnp.all(finite | ~used)
    if weights is not None:
        valid = valid & are_weights(weights)
    x = with_finite_padding(x, weights)

    # Differences alone matter: about the samples' centre, and in units of the bandwidth.
    center = common_center(x, used)
    log_det, x = _in_bandwidths(x - center, bandwidth)
    z = _in_bandwidths(z - center, bandwidth)[1]
    # A sample without weight stays where it is, for the derivative in its weight, unless its
    # distances would overflow.
    in_range = jnp.sum(jnp.square(x), axis=1, keepdims=True) < jnp.finfo(wide).max / 16
    x = jnp.where(used[:, None] | in_range, x, 0)

    logs = _log_sums(z, x, weights, used, kernel)
    total = float(x.shape[0]) if weights is None else jnp.sum(weights)
    constant = kernel.log_normalization(x.shape[1]) - log_det - jnp.log(total)
    # A point that is not finite has no density; an infinite one is no limit, as weights may vanish.
    logs = nan_entries_unless(jnp.all(jnp.isfinite(z), axis=1), logs)
    return (logs + nan_unless(valid, constant)).astype(dtype)


def _in_bandwidths(
    rows: Float[Array, "n d"], bandwidth: Float[Array, "..."]
) -> tuple[Float[Array, ""], Float[Array, "n d"]]:
    """The logarithm of |H|^½, and H^(−½) times each row; both NaN unless H is positive."""
    if bandwidth.ndim == 2:
        # L⁻¹ in place of H^(−½): ‖L⁻¹u‖² is uᵀH⁻¹u, and a radial kernel depends on nothing else.
        factor = cholesky(symmetric_or_nan(bandwidth))
        log_det = jnp.sum(jnp.log(jnp.diagonal(factor)))
        return log_det, solve_triangular(factor, rows.T).T
    bandwidth = nan_unless(bandwidth > 0, bandwidth)
    log_det = jnp.sum(jnp.broadcast_to(jnp.log(bandwidth), rows.shape[1:]))
    return log_det, quotient(rows, bandwidth)


def _log_sums(
    z: Float[Array, "k d"],
    x: Float[Array, "n d"],
    weights: Float[Array, " n"] | None,
    used: Bool[Array, " n"],
    kernel: SmoothingKernel,
) -> Float[Array, " k"]:
    """The logarithm of Σ_i w_i exp(log-profile) for each z, with weights of one by default."""
    masses = jnp.ones(x.shape[0], x.dtype) if weights is None else weights
    largest = 0.5 * jnp.log(jnp.finfo(x.dtype).max)

    def log_sum(
        kernel: SmoothingKernel, used: Array, masses: Array, squared: Float[Array, "b n"]
    ) -> Array:
        logs = kernel.log_profile(squared)
        top = jnp.max(jnp.where(used, jax.lax.stop_gradient(logs), -jnp.inf), axis=1, keepdims=True)
        top = jnp.where(jnp.isfinite(top), top, 0)
        # Samples without weight may be nearer than all others: their terms must not overflow.
        terms = jnp.exp(jnp.where(used, logs - top, jnp.minimum(logs - top, largest)))
        return safe_log(matmul(terms, masses)) + top[:, 0]

    def of_columns(_: Array, used: Array, masses: Array) -> tuple[Any, Any]:
        given = kernel, used, masses
        fixed = jax.lax.stop_gradient(given)
        return (
            lambda _, squared: log_sum(*given, squared),
            lambda _, squared: log_sum(*fixed, squared),
        )

    squares = [jnp.max(jnp.sum(jnp.square(jax.lax.stop_gradient(rows)), axis=1)) for rows in (x, z)]
    # Products round |x|² + |z|², which in units of the bandwidth is an error of the log-kernel
    # itself.
    rounding = jnp.finfo(x.dtype).eps * (squares[0] + squares[1])
    return reduce_centered_pairs(
        z, x, of_columns, LOG_SUM, used, masses, same=False, needed=rounding > _TOLERATED
    )
