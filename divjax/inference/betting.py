"""Confidence bounds on means of bounded values by betting, which hold at every sample size.

The capital of a gambler who bets against a mean grows if that mean is wrong. A mean is refuted once
the capital reaches 1/δ, which for the true mean has probability at most δ.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float

from divjax.core.arguments import as_leaves
from divjax.core.samples import Numbers
from divjax.inference.bounded_samples import (
    Bounded,
    Draws,
    add_origin,
    checked_draws,
    is_legal,
    sample_arrays,
)

__all__ = ["LARGEST_STAKE", "betting_lower_bound", "betting_upper_bound"]

# The largest share of the capital staked on one value (Waudby-Smith and Ramdas, c).
LARGEST_STAKE = 0.75


def betting_lower_bound(
    values: Float[Numbers, " n"],
    lower: ArrayLike,
    upper: ArrayLike,
    *,
    confidence_level: ArrayLike = 0.95,
    mask: Bool[Numbers, " n"] | None = None,
) -> Float[Array, ""]:
    """A lower confidence bound on the mean of values in [lower, upper], by betting against it.

    For values on [0, 1], a gambler who bets that the mean exceeds m has the capital

        K_t(m) = Π_{i≤t} [1 + min(λ_i, c/m)(X_i − m)],   λ_i = √(2 log(1/δ)/(n σ̂²_{i−1})),

    with c = ¾ and the variance σ̂²_{i−1} of the values before the i-th (and of a prior value). If
    the mean is at most m this is a non-negative supermartingale started at 1, and reaches 1/δ with
    probability at most δ = 1 − confidence (Ville's inequality). The bound is the largest m at
    which it does. Every factor decreases in m, so a bisection finds it and returns the end at which
    1/δ was reached.

    It is usually tighter than the empirical Bernstein bound, by a lot in small samples and for
    skewed values, at the cost of several passes over the data. It depends on the values' order,
    which must not be chosen from the values.

    Args:
        values: independent draws of one distribution, or more generally values whose means, each
            given all earlier values, are at most the number that is bounded.
        lower: the least possible value, one number or one per value.
        upper: the largest possible value, likewise.
        confidence_level: the least probability that the bound holds.
        mask: which rows count. It must not depend on the values.

    Returns:
        The bound, at least min(lower). It is NaN if a value that counts is outside of its interval,
        the rounding of an interval's ends is too large a share of its width, or a traced confidence
        is outside of (0, 1). Its derivative is that of the m which solves max_t K_t(m) = 1/δ.

    Raises:
        ValueError: as for `sum_of_means_lower_bound`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from divjax.inference import empirical_bernstein_lower_bound
        >>> values = jax.random.bernoulli(jax.random.key(0), 0.1, (100,)).astype(float)
        >>> bounds = betting_lower_bound, empirical_bernstein_lower_bound
        >>> [float(bound(1 - values, 0.0, 1.0)) for bound in bounds]  # the truth is 0.9
        [0.838, 0.802]

    References:
        Waudby-Smith, Ramdas 2024, theorem 3 and section 4.3: the capital, and λ for a fixed n.
    """
    draws = checked_draws(Bounded(values, lower, upper, mask), confidence_level, upper_bound=False)
    return _betting(draws, *as_leaves(confidence_level=confidence_level))


@functools.partial(jax.jit, static_argnames="upper_bound")
def _betting(
    draws: Draws, confidence_level: ArrayLike, *, upper_bound: bool = False
) -> Float[Array, ""]:
    """`betting_lower_bound` after its checks, or the upper bound."""
    sample = sample_arrays(draws, upper_bound=upper_bound)
    origin, x, lower, upper, rows = sample
    confidence_level = jnp.asarray(confidence_level, x.dtype)
    legal = is_legal(sample) & (confidence_level > 0) & (confidence_level < 1)
    # All values are scaled by the outermost ends, even if their own ends lie within these.
    least = jnp.min(lower)
    width = jnp.max(upper) - least
    x, ends = jnp.clip((x - least) / width, 0, 1), (lower - least) / width
    # By Ville's inequality a mean is refuted once its capital reaches 1/δ.
    target = -jnp.log1p(-confidence_level)
    bets = _bets(x, rows, target)
    root = _largest_refuted(*jax.tree.map(jax.lax.stop_gradient, (x, ends, bets, rows, target)))
    # One Newton step from the solution, of length zero, has the solution's derivative.
    capital, slope = jax.value_and_grad(_log_capital)(root, x, ends, bets, rows)
    change = (capital - target) / jnp.where(root > 0, jax.lax.stop_gradient(slope), 1)
    root = root - jnp.where(root > 0, change - jax.lax.stop_gradient(change), 0)
    bound = jnp.where(legal, add_origin(origin, least + width * root, least), jnp.nan)
    return -bound if upper_bound else bound


def betting_upper_bound(
    values: Float[Numbers, " n"],
    lower: ArrayLike,
    upper: ArrayLike,
    *,
    confidence_level: ArrayLike = 0.95,
    mask: Bool[Numbers, " n"] | None = None,
) -> Float[Array, ""]:
    """An upper confidence bound on the mean by betting: minus the lower bound of −values.

    Args:
        values: independent draws of one distribution.
        lower: the least possible value.
        upper: the largest possible value.
        confidence_level: the least probability that the bound holds.
        mask: which rows count. It must not depend on the values.

    Returns:
        The bound, at most `upper`, or NaN if a value that counts is outside of the interval.

    Raises:
        ValueError: as for `sum_of_means_lower_bound`.

    Example:
        >>> import jax
        >>> values = jax.random.uniform(jax.random.key(0), (1000,))
        >>> 0.5 < float(betting_upper_bound(values, 0.0, 1.0)) < 0.56
        True
    """
    draws = checked_draws(Bounded(values, lower, upper, mask), confidence_level, upper_bound=True)
    return _betting(draws, *as_leaves(confidence_level=confidence_level), upper_bound=True)


def _bets(x: Float[Array, " n"], rows: Float[Array, " n"], target: Array) -> Float[Array, " n"]:
    """The bets √(2 log(1/δ)/(n σ̂²)), with σ̂² from the values before each, as validity requires."""
    size = jnp.cumsum(rows)
    # A prior value of ½ with variance ¼ makes the first bets finite.
    mean = (0.5 + jnp.cumsum(rows * x)) / (size + 1)
    squares = rows * jnp.square(x - mean)
    # Minus the value itself: if bets depended on it the capital would not be a supermartingale.
    earlier = 0.25 + jnp.cumsum(squares) - squares
    variance = earlier / (size - rows + 1)
    return jnp.sqrt(2 * target / (jnp.maximum(size[-1], 1) * variance))


def _log_capital(m: Array, x: Array, ends: Array, bets: Array, rows: Array) -> Array:
    """The logarithm of the largest capital reached by betting against a mean of at most m."""
    # A value at its lower end costs at most the share `LARGEST_STAKE` of the capital, and nothing
    # if m is below that end.
    loss = m - ends
    stakes = jnp.where(
        loss > 0, jnp.minimum(bets, LARGEST_STAKE / jnp.where(loss > 0, loss, 1)), bets
    )
    # Ville's inequality holds for the whole path, so the largest capital counts.
    return jnp.max(jnp.cumsum(rows * jnp.log1p(stakes * (x - m))))


def _largest_refuted(x: Array, ends: Array, bets: Array, rows: Array, target: Array) -> Array:
    """The largest m whose capital reached the target, up to rounding, or 0 if there is none."""
    start = (jnp.zeros_like(target), jnp.ones_like(target), x, ends, bets, rows, target)
    # One halving per bit of the mantissa. The lower end is 0, or its capital has reached the
    # target.
    return jax.lax.fori_loop(0, jnp.finfo(x.dtype).nmant + 2, _halve, start)[0]


def _halve(_, state: tuple[Array, ...]) -> tuple[Array, ...]:
    low, high, x, ends, bets, rows, target = state
    middle = (low + high) / 2
    reached = _log_capital(middle, x, ends, bets, rows) >= target
    return jnp.where(reached, middle, low), jnp.where(reached, high, middle), *state[2:]
