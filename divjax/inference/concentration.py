"""Confidence bounds on means of bounded values that hold at every sample size.

No normal approximation is used: the probability that a bound is wrong is at most 1 − confidence for
any distribution on the interval, however skewed, even for samples of two values.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Bool, Float

from divjax.core.arguments import Leaf, as_leaves, vector_leaves
from divjax.core.checks import check_below, check_probability
from divjax.core.numerics import at_least_single, safe_sqrt
from divjax.core.samples import Numbers, Unrounded, as_arrays, owned

__all__ = [
    "LARGEST_STAKE",
    "Bounded",
    "betting_lower_bound",
    "betting_upper_bound",
    "empirical_bernstein_lower_bound",
    "empirical_bernstein_upper_bound",
    "sum_of_means_lower_bound",
]

# The largest share of the capital staked on one value (Waudby-Smith and Ramdas, c).
LARGEST_STAKE = 0.75

# The largest rounding of an interval's ends, as a share of its width.
_LARGEST_SLACK = 0.05


class Bounded(NamedTuple):
    """Independent draws of one distribution on a known interval.

    Attributes:
        values: the draws, of shape (n,).
        lower: the least possible value, known in advance rather than learned from the sample.
        upper: the largest possible value.
        mask: which rows count, of shape (n,), all by default. It must not depend on the values.
    """

    values: Float[Numbers, " n"]
    lower: ArrayLike
    upper: ArrayLike
    mask: Bool[Numbers, " n"] | None = None


class _Moments(NamedTuple):
    """Moments of one sample: the number of rows that count, their mean and their variance.

    Mean and variance are of (X − lower)/width, so that squares of small widths do not underflow.
    """

    size: Array
    mean: Array
    variance: Array
    width: Array
    lower: Array
    legal: Array


class _Draws(NamedTuple):
    """A sample as an argument of a compiled function.

    Attributes:
        values: the draws, relative to the origin.
        lower: the lower ends, relative to the origin.
        upper: the upper ends, relative to the origin.
        mask: which rows count, None if all do.
        origin: the end of the interval from which the bound starts, if the values are NumPy's and
            may lie far from zero. It is zero otherwise.
    """

    values: Leaf
    lower: Leaf
    upper: Leaf
    mask: Unrounded | None
    origin: float


def _checked(sample: Bounded, confidence_level: ArrayLike, *, upper_bound: bool) -> _Draws:
    """The draws of a sample, after checks of its interval and mask."""
    mask = sample.mask
    (values,) = vector_leaves(values=sample.values)
    shape = jnp.shape(values)
    if mask is not None:
        mask = mask if isinstance(mask, jax.Array) else owned(np.asarray(mask))
        if mask.shape != shape or not jnp.issubdtype(mask.dtype, jnp.bool_):
            raise ValueError(
                f"mask must be booleans of shape {shape}; got {mask.dtype} of shape {mask.shape}."
            )
    lower, upper = as_leaves(lower=sample.lower, upper=sample.upper)
    if not {np.shape(lower), np.shape(upper)} <= {(), shape}:
        raise ValueError(
            f"lower and upper must be numbers or of shape {shape}; got shapes {np.shape(lower)} "
            f"and {np.shape(upper)}."
        )
    check_below(lower, upper, True if mask is None else mask)
    check_probability(confidence_level=confidence_level)
    origin = 0.0
    # NumPy's numbers are moved to the end of their interval in float64, before float32 rounds them.
    if not any(isinstance(number, jax.Array) for number in (values, lower, upper)):
        ends = np.asarray(upper if upper_bound else lower)
        # Ends of rows that do not count are arbitrary.
        if ends.ndim and mask is not None and not isinstance(mask, Tracer):
            ends = ends[np.asarray(mask)]
        finite = ends[np.isfinite(ends)]
        if finite.size:
            origin = float(np.max(finite) if upper_bound else np.min(finite))
    if origin:
        values, lower, upper = values - origin, lower - origin, upper - origin
    return _Draws(values, lower, upper, mask, origin)


class _Sample(NamedTuple):
    """Draws as arrays relative to their origin, with rows that do not count at the lower end."""

    origin: Float[Array, ""] | float
    values: Float[Numbers, " n"]
    lower: Array
    upper: Array
    mask: Float[Array, " n"]


def _arrays(draws: _Draws, *, upper_bound: bool) -> _Sample:
    """The draws, or those of −X, whose lower bound is minus the upper one of X."""
    values, lower, upper = as_arrays(values=draws.values, lower=draws.lower, upper=draws.upper)
    # Half precision holds the values, but neither their sums nor their place in the interval.
    work = at_least_single(values.dtype)
    values, lower, upper = values.astype(work), lower.astype(work), upper.astype(work)
    origin = draws.origin
    if upper_bound:
        values, lower, upper, origin = -values, -upper, -lower, -origin
    valid = jnp.ones(values.shape, bool) if draws.mask is None else draws.mask
    # The ends of rows that do not count are ignored.
    some = jnp.any(valid)
    if lower.ndim:
        least = jnp.min(lower, where=valid, initial=jnp.inf)
        lower = jnp.where(valid | ~some, lower, least)
    if upper.ndim:
        greatest = jnp.max(upper, where=valid, initial=-jnp.inf)
        upper = jnp.where(valid | ~some, upper, greatest)
    return _Sample(origin, jnp.where(valid, values, lower), lower, upper, valid.astype(work))


def _legal(sample: _Sample) -> Bool[Array, ""]:
    """Whether all values lie in the interval, up to the rounding of its ends, false for NaN.

    Also false if that rounding, or the origin's, is too large a share of the width.
    """
    origin, values, lower, upper, _ = sample
    unit = 8 * jnp.finfo(values.dtype).eps
    slack = unit * jnp.maximum(jnp.abs(lower), jnp.abs(upper))
    largest = jnp.maximum(jnp.max(slack), unit * jnp.abs(origin))
    resolved = largest <= _LARGEST_SLACK * (jnp.max(upper) - jnp.min(lower))
    return resolved & jnp.all((values >= lower - slack) & (values <= upper + slack))


def _moments(sample: _Sample) -> _Moments:
    _, values, lower, upper, mask = sample
    # Values with ends of their own all lie between the outermost ends.
    lower, upper = jnp.min(lower), jnp.max(upper)
    width, size = upper - lower, jnp.sum(mask)
    # In units of the interval, as the square of a small width may underflow.
    shares = (values - lower) / jnp.where(width > 0, width, 1)
    mean = jnp.sum(mask * shares) / jnp.maximum(size, 1)
    variance = jnp.sum(mask * jnp.square(shares - mean)) / jnp.maximum(size - 1, 1)
    return _Moments(size, mean, variance, width, lower, _legal(sample))


def _at(origin: Float[Array, ""] | float, bound: Array, least: Array) -> Array:
    """The lower bound plus its origin, rounded downwards, but not below the lower end."""
    moved = origin + bound
    known = jax.lax.stop_gradient(moved)  # Some versions of JAX cannot differentiate nextafter.
    rounding = jnp.nextafter(known, -jnp.inf) - known
    return jnp.where(origin == 0, bound, jnp.maximum(moved + rounding, origin + least))


def sum_of_means_lower_bound(
    *samples: Bounded, confidence_level: ArrayLike = 0.95
) -> Float[Array, ""]:
    """A lower confidence bound on Σ_k E[X_k] from one sample of each distribution.

    With sample means X̄_k, unbiased variances V_k, sizes n_k, widths R_k and L = log(2/δ),

        Σ X̄_k − √(2LW + L²a) − L√a − cL/3,
        W = Σ V_k/n_k,   a = max R_k²/(n_k(n_k − 1)),   c = max R_k/n_k,   δ = 1 − confidence.

    Only two events of probability δ/2 each can make the bound fail. In one, Σ X̄_k exceeds its
    expectation by √(2LE[W]) + cL/3 (Bennett's inequality for the independent terms X_ki/n_k).
    The other concerns W, which is self-bounding: replacing one value lowers it by at most
    R_k²/n_k², and the squares of these decreases sum to at most aW, so that E[W] − W > t has a
    probability below exp(−t²/(2aE[W])), hence √E[W] ≤ √(L a/2) + √(W + L a/2). All samples share
    the two events: δ is not split between them, and the deviations of different samples partly
    cancel.

    For one sample it is never below theorem 4 of Maurer and Pontil, whose last term is
    7RL/(3(n − 1)), against 4RL/(3n) here if the variance dominates.

    Args:
        *samples: one `Bounded` per distribution, independent of each other, of any sizes.
        confidence_level: the least probability that the bound holds.

    Returns:
        The bound, at least Σ lower_k, to which it is equal if a sample has fewer than two rows. It
        is NaN if a value that counts is NaN or outside of its interval, an interval is lost in the
        rounding of its ends, or a traced confidence lies outside of (0, 1).

    Raises:
        ValueError: if there is no sample, a shape does not fit, a Python number for the confidence
            is not in (0, 1), or concrete ends of an interval are not in order.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> x, y = jax.random.uniform(jax.random.key(0), (2, 1000))
        >>> bound = sum_of_means_lower_bound(Bounded(x, 0.0, 1.0), Bounded(2 * y[:500], 0.0, 2.0))
        >>> 1.35 < float(bound) < 1.5  # the truth is ½ + 1
        True

    References:
        Maurer, Pontil 2009, theorems 4, 7 and 10; Maurer 2006, theorem 13, self-bounding functions;
        Boucheron, Lugosi, Massart 2013, theorem 2.9, Bennett's inequality.
    """
    if not samples:
        raise ValueError("samples must hold at least one Bounded; got none.")
    for sample in samples:
        if not isinstance(sample, Bounded):
            raise ValueError(
                f"samples must be of Bounded(values, lower, upper); got {type(sample).__name__}."
            )
    # The sum's origin is the sum of the samples' origins, as bounds add.
    draws = tuple(_checked(sample, confidence_level, upper_bound=False) for sample in samples)
    return _sum_of_means(draws, _origin(draws), *as_leaves(confidence_level=confidence_level))


def _origin(draws: tuple[_Draws, ...]) -> float:
    """The origin of the sum, added up in Python's precision."""
    return sum(draw.origin for draw in draws)


@functools.partial(jax.jit, static_argnames="upper_bound")
def _sum_of_means(
    draws: tuple[_Draws, ...],
    origin: Float[Array, ""] | float,
    confidence_level: ArrayLike,
    *,
    upper_bound: bool = False,
) -> Float[Array, ""]:
    """`sum_of_means_lower_bound` after its checks, or the upper bound."""
    moments = [_moments(_arrays(draw, upper_bound=upper_bound)) for draw in draws]
    confidence_level = jnp.asarray(confidence_level, moments[0].mean.dtype)
    # L = log(2/δ): two events share the error probability.
    log_term = math.log(2) - jnp.log1p(-confidence_level)
    # In units of the widest interval.
    unit = jnp.stack([m.width for m in moments]).max()
    widths = [m.width / jnp.where(unit > 0, unit, 1) for m in moments]
    sizes = [jnp.maximum(m.size, 1) for m in moments]
    each = list(zip(moments, widths, sizes, strict=True))
    # W, a and c of the docstring.
    spread = sum(width**2 * m.variance / size for m, width, size in each)
    a = jnp.stack([w**2 / jnp.maximum(m.size * (m.size - 1), 1) for m, w, _ in each]).max()
    c = jnp.stack([width / size for _, width, size in each]).max()
    # No root of zero: if the values are constant a is still positive, so derivatives are finite.
    radius = safe_sqrt(2 * log_term * spread + log_term**2 * a) + log_term * (safe_sqrt(a) + c / 3)
    least = jnp.sum(jnp.stack([m.lower for m in moments]))
    excess = jnp.sum(jnp.stack([width * m.mean for m, width, _ in each])) - radius
    # A single row has no variance, so only the lower ends are certain.
    enough = jnp.stack([m.size > 1 for m in moments]).all()
    bound = least + unit * jnp.where(enough, jnp.maximum(excess, 0), 0)
    bound = _at(-origin if upper_bound else origin, bound, least)
    legal = (
        jnp.stack([m.legal for m in moments]).all()
        & (confidence_level > 0)
        & (confidence_level < 1)
    )
    bound = jnp.where(legal, bound, jnp.nan)
    return -bound if upper_bound else bound


def empirical_bernstein_lower_bound(
    values: Float[Numbers, " n"],
    lower: ArrayLike,
    upper: ArrayLike,
    *,
    confidence_level: ArrayLike = 0.95,
    mask: Bool[Numbers, " n"] | None = None,
) -> Float[Array, ""]:
    """A lower confidence bound on the mean of values in [lower, upper], from mean and variance.

    It is `sum_of_means_lower_bound` of one sample: X̄ − √(2LV/n) − O(L/n) with
    L = log(2/(1 − confidence)). The sample's variance V replaces the interval's width of
    Hoeffding's bound.

    Args:
        values: independent draws of one distribution.
        lower: the least possible value.
        upper: the largest possible value.
        confidence_level: the least probability that the bound holds.
        mask: which rows count. It must not depend on the values.

    Returns:
        The bound, at least `lower`, or NaN if a value that counts is outside of the interval.

    Raises:
        ValueError: as for `sum_of_means_lower_bound`.

    Example:
        >>> import jax
        >>> values = jax.random.uniform(jax.random.key(0), (1000,))
        >>> 0.44 < float(empirical_bernstein_lower_bound(values, 0.0, 1.0)) < 0.5
        True

    References:
        Maurer, Pontil 2009, theorem 4, with smaller constants.
    """
    return sum_of_means_lower_bound(
        Bounded(values, lower, upper, mask), confidence_level=confidence_level
    )


def empirical_bernstein_upper_bound(
    values: Float[Numbers, " n"],
    lower: ArrayLike,
    upper: ArrayLike,
    *,
    confidence_level: ArrayLike = 0.95,
    mask: Bool[Numbers, " n"] | None = None,
) -> Float[Array, ""]:
    """An upper confidence bound on the mean: minus the lower bound of −values.

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
        >>> 0.5 < float(empirical_bernstein_upper_bound(values, 0.0, 1.0)) < 0.56
        True
    """
    draws = _checked(Bounded(values, lower, upper, mask), confidence_level, upper_bound=True)
    return _sum_of_means(
        (draws,), draws.origin, *as_leaves(confidence_level=confidence_level), upper_bound=True
    )


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
        The bound, at least the least `lower`. It is NaN if a value that counts is outside of its
        interval, an interval is lost in the rounding of its ends, or a traced confidence is outside
        of (0, 1). Its derivative is that of the m which solves max_t K_t(m) = 1/δ.

    Raises:
        ValueError: as for `sum_of_means_lower_bound`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> values = jax.random.bernoulli(jax.random.key(0), 0.1, (100,)).astype(float)
        >>> bounds = betting_lower_bound, empirical_bernstein_lower_bound
        >>> [float(bound(1 - values, 0.0, 1.0)) for bound in bounds]  # the truth is 0.9
        [0.838, 0.802]

    References:
        Waudby-Smith, Ramdas 2024, theorem 3 and section 4.3: the capital, and λ for a fixed n.
    """
    draws = _checked(Bounded(values, lower, upper, mask), confidence_level, upper_bound=False)
    return _betting(draws, *as_leaves(confidence_level=confidence_level))


@functools.partial(jax.jit, static_argnames="upper_bound")
def _betting(
    draws: _Draws, confidence_level: ArrayLike, *, upper_bound: bool = False
) -> Float[Array, ""]:
    """`betting_lower_bound` after its checks, or the upper bound."""
    sample = _arrays(draws, upper_bound=upper_bound)
    origin, x, lower, upper, rows = sample
    confidence_level = jnp.asarray(confidence_level, x.dtype)
    legal = _legal(sample) & (confidence_level > 0) & (confidence_level < 1)
    # One unit for all values, even if their own ends lie within the outermost.
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
    bound = jnp.where(legal, _at(origin, least + width * root, least), jnp.nan)
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
    draws = _checked(Bounded(values, lower, upper, mask), confidence_level, upper_bound=True)
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
    # A value at its lower end loses at most `LARGEST_STAKE`, and nothing if m is below that end.
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
