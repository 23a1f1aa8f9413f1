"""Contrastive lower bounds on KL: InfoNCE, and its interpolation with NWJ.

Each sample of p is compared with k samples of q, at which the critic's values are one row of a
matrix, or one vector for all. InfoNCE is tight at T = log p/q for k → ∞.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from divjax.core.checks import check_number, check_shape
from divjax.core.numerics import nan_unless
from divjax.core.samples import Numbers, as_numbers, without_offset
from divjax.fdiv.special import log_mixture
from divjax.ratio.bounds.variational import bounded_values, critic_values

__all__ = ["info_nce", "interpolated_nce"]


def _rows(u_p: Array, u_q: Array) -> Array:
    """One row of values at samples of q per value at p; a vector is broadcast to all rows."""
    u_p, u_q = critic_values(u_p, u_q)
    return jnp.broadcast_to(u_q, (u_p.shape[0], u_q.shape[-1]))


def _less_row_maxima(u_p: Numbers, u_q: Numbers) -> tuple[Array, Array]:
    """Critic values minus row maxima, in NumPy's float64 to keep differences lost in float32."""
    if critic_values(u_p, u_q)[1].ndim == 1:  # one row for all
        return critic_values(*without_offset(np.max, u_p=u_p, u_q=u_q))
    # InfoNCE is invariant under a constant added to all values of one row.
    column = as_numbers("u_p", u_p, exact=True)[:, None]
    maxima = functools.partial(np.max, axis=1, keepdims=True)
    column, u_q = without_offset(maxima, u_p=column, u_q=u_q)
    return critic_values(column[:, 0], u_q)


def info_nce(u_p: Float[Numbers, " n"], u_q: Float[Numbers, "..."]) -> Float[Array, ""]:
    """KL(p‖q) ≥ E[T(z) − log((e^{T(z)} + Σ_j e^{T(z_j)})/(k+1))], z ~ p and k samples z_j ~ q.

    It is the log-likelihood of identifying the sample of p among k + 1, plus log(k + 1), which it
    never exceeds. Its variance is small and its bias downwards: it is a lower bound in expectation,
    for any n and k.

    Args:
        u_p: critic values at samples of p.
        u_q: one row of k critic values at samples of q per value of u_p, or one vector for all.

    Returns:
        The value in nats. For pairs, it is invariant under a function of the row's own variable (of
        x, in `split_scores`) added to T. Memory is n·k.

    Raises:
        ValueError: if the values are empty, not real, or not of these shapes.

    Example:
        >>> from divjax.ratio.bounds.critics import split_scores
        >>> u_p, u_q = split_scores(1e3 * jnp.eye(4))
        >>> float(info_nce(u_p, u_q)), float(jnp.log(4.0))
        (1.3863, 1.3863)

    References:
        van den Oord, Li, Vinyals 2018, eq. 4; Poole et al. 2019, section 2.3.
    """
    return _info_nce(*_less_row_maxima(u_p, u_q))


@jax.jit
def _info_nce(u_p: Float[Array, " n"], u_q: Array) -> Float[Array, ""]:
    """`info_nce` after its checks."""
    # The sample of p is one of k + 1 candidates, in the first column.
    rows = jnp.concatenate([u_p[:, None], _rows(u_p, u_q)], axis=1)
    return jnp.mean(u_p - jax.nn.logsumexp(rows, axis=1)) + math.log(rows.shape[1])


def interpolated_nce(
    u_p: Float[Numbers, " n"],
    u_q: Float[Numbers, "..."],
    alpha: ArrayLike = 0.5,
    log_baseline: ArrayLike = 0.0,
) -> Float[Array, ""]:
    """Between NWJ (α = 0) and InfoNCE (α = 1): I_α = 1 + E[log e^T/a] − E[e^T/a], a lower bound.

    a = α m + (1 − α) e^b, with m the mean of e^T over k samples: for the first term the one of p
    and k − 1 of q (each of the k left out in turn), for the second all k of q. A larger α reduces
    the variance, and lowers the upper limit of about log(k/α) from ∞ to log k. Values are clipped
    to ±35 (±284 in float64), which preserves the bound.

    Args:
        u_p: critic values at samples of p.
        u_q: one row of k critic values at samples of q per value of u_p, or one vector for all.
        alpha: α in [0, 1].
        log_baseline: b, one number or one per row, learned or not.

    Returns:
        The value in nats, unbiased as an estimate of the bound. Memory is n·k.

    Raises:
        ValueError: if the values are empty, not real, or not of these shapes, or alpha is a
            Python number outside of [0, 1].

    Example:
        >>> from divjax.ratio.bounds import nwj
        >>> u_p, u_q = jnp.array([2.0, 2.0]), jnp.zeros((2, 3))
        >>> float(interpolated_nce(u_p, u_q, alpha=0.0)), float(nwj(u_p, u_q))
        (2.0, 2.0)

    References:
        Poole et al. 2019, section 2.4.
    """
    if isinstance(alpha, (int, float)) and not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be a number in [0, 1]; got {alpha}.")
    check_number(alpha=alpha)
    u_p, u_q = critic_values(u_p, u_q)
    if jnp.ndim(log_baseline):
        check_shape("log_baseline", log_baseline, *u_p.shape)
    return _interpolated_nce(u_p, u_q, alpha, log_baseline)


@jax.jit
def _interpolated_nce(
    u_p: Float[Array, " n"], u_q: Array, alpha: ArrayLike, log_baseline: ArrayLike
) -> Float[Array, ""]:
    """`interpolated_nce` after its checks."""
    alpha = jnp.asarray(alpha, u_p.dtype)
    alpha = nan_unless((alpha >= 0) & (alpha <= 1), alpha)
    u_q = _rows(u_p, u_q)
    u_p, u_q = bounded_values(u_p, u_q)
    baseline = jnp.broadcast_to(jnp.asarray(log_baseline, u_p.dtype), u_p.shape)[:, None]
    log_k = math.log(u_q.shape[1])
    # Sums without one term from both sides of it, as a difference would cancel.
    before = jax.lax.cumlogsumexp(jnp.concatenate([u_p[:, None], u_q[:, :-1]], axis=1), axis=1)
    after = jax.lax.cumlogsumexp(u_q[:, 1:], axis=1, reverse=True)
    after = jnp.pad(after, ((0, 0), (0, 1)), constant_values=-jnp.inf)
    with_p = jnp.logaddexp(before, after) - log_k
    # The logarithm of m over all k samples of q, for the second term.
    integrand_q = jax.nn.logsumexp(u_q, axis=1, keepdims=True) - log_k
    # log a = log(α m + (1 − α) e^b), taken relative to the baseline so that nothing overflows.
    log_denominator = lambda mean: log_mixture(mean - baseline, alpha) + baseline
    # The mean over the k samples, each left out in turn.
    joint = jnp.mean(u_p[:, None] - log_denominator(with_p))
    return 1 + joint - jnp.mean(jnp.exp(integrand_q - log_denominator(integrand_q)))
