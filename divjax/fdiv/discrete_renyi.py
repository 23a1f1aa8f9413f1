"""Rényi's divergence between discrete distributions, smooth through order 1."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from divjax.core.arguments import as_leaves
from divjax.core.checks import check_scalar
from divjax.core.numerics import nan_entries_unless, nan_unless
from divjax.fdiv.distributions import (
    Distribution,
    LogProbs,
    evaluate,
    have_classes,
    present_classes,
)
from divjax.fdiv.special import log1p_over, power_remainder

__all__ = ["renyi"]


def renyi(
    p: Distribution,
    q: Distribution,
    alpha: ArrayLike,
    *,
    axis: int = -1,
    base: ArrayLike | None = None,
) -> Float[Array, "*batch"]:
    """The Rényi divergence log(Σ_i p_i^α q_i^{1−α})/(α − 1), smooth in α with KL(p‖q) at α = 1.

    At order 0 it is −log q(p > 0), which depends on the supports alone.

    Args:
        p: probabilities that sum to one, `Logits`, `Weights` or `Labels`.
        q: likewise. The axes other than that of classes broadcast.
        alpha: the order α ≥ 0, a finite scalar.
        axis: the axis of classes, the same in both.
        base: the base of the logarithm: 2 for bits, nats by default.

    Returns:
        The divergence, without the axis of classes: +inf where the supports are disjoint, and for
        α ≥ 1 where q excludes a class that p does not. NaN for a negative array α.

    Raises:
        ValueError: if alpha is a Python number that is negative or infinite, the base is not a
            number above 1, or shapes do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> p, q = jnp.array([1.0, 0.0]), jnp.array([0.25, 0.75])
        >>> [round(float(renyi(p, q, order, base=2)), 4) for order in (0, 1, 2)]
        [2.0, 2.0, 2.0]

    References:
        Van Erven, Harremoës 2014, definition 2 and theorem 4 (order 0).
    """
    check_scalar(alpha=alpha)
    if isinstance(alpha, (int, float)) and not 0 <= alpha < math.inf:
        raise ValueError(f"alpha must be a finite number of at least 0; got {alpha}.")
    return evaluate(_renyi, {"p": p, "q": q}, axis, base, *as_leaves(alpha=alpha))


# p counts as underflowing unless log p exceeds that of the smallest normal number by this.
_UNDERFLOW_MARGIN = 7.0


def _renyi(log_p: LogProbs, log_q: LogProbs, alpha: ArrayLike) -> Float[Array, "*batch"]:
    order = jnp.asarray(alpha, log_p.dtype)
    order = nan_unless((order >= 0) & (order < jnp.inf), order)
    in_p, safe_p, p_values = present_classes(log_p)
    in_q, safe_q, q_values = present_classes(log_q)
    # In classes that a distribution excludes −∞ − (−∞) would be NaN.
    both = in_p & in_q
    log_ratio = jnp.where(both, safe_p - safe_q, 0)

    # Σ p^α q^{1−α}, to which a class of only one distribution contributes no term.
    powers = jnp.where(both, safe_q + order * log_ratio, -jnp.inf)
    far = _log_sum_exp(powers) / jnp.where(order == 1, 1, order - 1)
    # If the integral is near one its logarithm cancels. It is then computed from Σ q f_α(p/q), a
    # sum of non-negative terms with f_α of `fdiv.Alpha`. Each is evaluated at the smaller of p/q
    # and q/p, as q f_α(p/q) = p f_{1−α}(q/p).
    use_near = (order > 0) & ((order == 1) | (jnp.abs(far * (order - 1)) < 1))
    # Where p underflows and p > q, p f_{1−α}(q/p) is p^α q^{1−α}/(α(α − 1)) up to terms that
    # underflow too. For α > 1 the power itself need not underflow.
    least = math.log(float(jnp.finfo(log_p.dtype).tiny)) + _UNDERFLOW_MARGIN
    lost = both & (log_ratio > 0) & (safe_p < least)
    above_one = jnp.where(order > 1, order, 2)
    alone = jnp.exp(jnp.where(lost & use_near[..., None] & (order > 1), powers, -jnp.inf))
    near_ratio = jnp.where(use_near[..., None] & ~lost, log_ratio, 0)
    falls = near_ratio <= 0
    smaller = jnp.where(falls, near_ratio, -near_ratio)
    remainder = power_remainder(smaller, jnp.where(falls, order, 1 - order))
    terms = jnp.where(both & ~lost, jnp.where(falls, q_values, p_values) * remainder, 0)
    terms = terms + alone / (above_one * (above_one - 1))
    # q f_α(0) = q/α in classes that p excludes, p f_{1−α}(0) = p/(1 − α) in those that q excludes.
    terms = terms + jnp.where(in_q & ~in_p, q_values / jnp.where(order == 0, 1, order), 0)
    terms = terms + jnp.where(in_p & ~in_q, p_values / jnp.where(order < 1, 1 - order, 1), 0)
    # log(1 + α(α − 1) D_α)/(α − 1), which is smooth through α = 1.
    near = log1p_over(order * terms.sum(-1), order - 1)
    value = jnp.where(use_near, near, far)

    # The divergence is infinite for α ≥ 1 if q excludes a class that p does not, and at any order
    # if the supports are disjoint.
    infinite = (order >= 1) & jnp.any(in_p & ~in_q, axis=-1)
    value = jnp.where(infinite | ~jnp.any(both, axis=-1), jnp.inf, value)
    # The comparisons above are false for NaN, which must propagate.
    value = jnp.where(jnp.isnan(order) | jnp.isnan(log_p + log_q).any(-1), jnp.nan, value)
    return nan_entries_unless(have_classes(log_p, log_q), value)


def _log_sum_exp(x: LogProbs) -> Float[Array, "*batch"]:
    """Log-sum-exp over the last axis: −inf, with zero derivatives, if all entries are −inf."""
    exists = jnp.any(x != -jnp.inf, axis=-1)
    return jnp.where(
        exists, jax.nn.logsumexp(jnp.where(exists[..., None], x, 0), axis=-1), -jnp.inf
    )
