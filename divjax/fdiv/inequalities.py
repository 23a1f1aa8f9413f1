"""Sharp inequalities between divergences: bounds on one that follow from another.

All are theorems for any pair p, q, in nats, with TV = ½∫|p − q| and squared Hellinger distance
1 − ∫√(pq).
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from divjax.core.arguments import Leaf, as_leaves
from divjax.core.checks import check_at_least
from divjax.core.numerics import nan_unless, safe_sqrt
from divjax.core.samples import as_arrays
from divjax.core.types import Interval
from divjax.fdiv.special import (
    entropy_deficit,
    log1p_over,
    log_mixture,
    nan_where_nan,
)

__all__ = [
    "auc_upper_bound_from_tv",
    "js_bounds_from_tv",
    "js_lower_bound_from_error",
    "kl_lower_bound_from_cross_entropy",
    "kl_lower_bound_from_js",
    "kl_lower_bound_from_tv",
    "tv_bounds_from_hellinger",
    "tv_bounds_of_product",
    "tv_lower_bound_from_auc",
    "tv_upper_bound_from_kl",
]

_LOG_2 = math.log(2)


def _between(low: float, high: float, **values: ArrayLike) -> Leaf:
    """The value as an argument of a compiled function.

    Raises `ValueError` for a Python number outside [low, high].
    """
    ((name, value),) = values.items()
    if isinstance(value, (int, float)) and not low <= value <= high:
        raise ValueError(f"{name} must be a number in [{low:g}, {high:g}]; got {value}.")
    return as_leaves(**values)[0]


_LARGEST_EXCESS = 0.02


def _clamped(low: float, high: float, value: ArrayLike) -> Array:
    """The value as an array, NaN outside of [low, high].

    Values just outside, from sums of rounded numbers, are moved to the end of the range.
    """
    (value,) = as_arrays(value=value)
    # Half precision has so few digits that 64 units in the last place are no rounding error.
    rounding = min(64 * float(jnp.finfo(value.dtype).eps), _LARGEST_EXCESS)
    value = nan_unless((value >= low - rounding) & (value <= high + rounding), value)
    # Not `clip`, whose derivative at the ends is a half.
    return jnp.where(value < low, low, jnp.where(value > high, high, value))


def _log_gap(y: Array) -> tuple[Array, Array]:
    """The logarithm of g and its derivative, g(y) = ½[(1 + e^{−y}) log(1 + e^{−y}) + y e^{−y}]."""
    x = jnp.exp(-y)
    # g = ½ e^{−y} (terms + y) keeps an underflowing e^{−y} out of the logarithm.
    terms = log1p_over(jnp.ones_like(y), x) + jnp.log1p(x)
    return jnp.log((terms + y) / 2) - y, -jax.nn.softplus(y) / (terms + y)


@jax.custom_jvp
def _kl_from_gap(gap: Array) -> Array:
    # log g is concave and decreasing: the first step of Newton's iteration overshoots the root, and
    # the others descend to it.
    target = jnp.log(gap)

    def step(_, y):
        value, slope = _log_gap(y)
        return y - (value - target) / slope

    return jax.lax.fori_loop(0, 10, step, jnp.zeros_like(gap))


@_kl_from_gap.defjvp
def _(primals, tangents):
    y = _kl_from_gap(*primals)
    return y, -tangents[0] * (2 * jnp.exp(y) / jax.nn.softplus(y))


@jax.custom_jvp
def _kl_from_js(js: Array) -> Array:
    # JS(y) = log 2 − g(y), written without that difference, is concave and increasing: Newton's
    # iteration ascends to the root from its start below it.
    def step(_, y):
        log_mean = log_mixture(-y, 0.5)
        decay = jnp.exp(-y)
        value = -((1 + decay) * log_mean + y * decay + jnp.expm1(-y) * _LOG_2) / 2
        return y - (value - js) * (2 / (decay * jax.nn.softplus(y)))

    return jax.lax.fori_loop(0, 7, step, js * (2 / _LOG_2))


@_kl_from_js.defjvp
def _(primals, tangents):
    y = _kl_from_js(*primals)
    return y, tangents[0] * (2 * jnp.exp(y) / jax.nn.softplus(y))


def kl_lower_bound_from_js(js: ArrayLike) -> Array:
    """The largest lower bound on KL(p‖q), and on KL(q‖p), that Jensen–Shannon implies.

    The root y of log 2 − JS = g(y) = ½[(1 + e^{−y}) log(1 + e^{−y}) + y e^{−y}], attained by
    Bernoulli(1) as p and Bernoulli(e^{−y}) as q. It is increasing and convex in JS, with the slope
    2/log 2 at 0: a lower bound on JS, such as log 2 minus a classifier's balanced cross-entropy,
    gives one on KL.

    Args:
        js: JS in nats, of any shape. In float32, log 2 − JS has fewer than two digits left beyond a
            KL of 16: give that difference to `kl_lower_bound_from_cross_entropy` instead.

    Returns:
        The bound in nats: 0 for JS ≤ 0, +∞ for JS ≥ log 2. Its derivative is the implicit one.

    Raises:
        ValueError: if `js` does not hold real numbers.

    Example:
        >>> float(kl_lower_bound_from_js(0.5 * jnp.log(2.0)))
        1.2248

    References:
        Dorent et al. 2025, arXiv 2510.20644; Harremoës, Vajda 2011, the joint range.
    """
    return _kl_lower_bound_from_js(*as_leaves(js=js))


@jax.jit
def _kl_lower_bound_from_js(js: ArrayLike) -> Array:
    (js,) = as_arrays(js=js)
    small, large = (js > 0) & (js < _LOG_2 / 2), (js >= _LOG_2 / 2) & (js < _LOG_2)
    # JS itself is accurate if it is small, and the gap log 2 − JS if it is large. Each branch gets
    # a harmless argument outside of its range.
    near = _kl_from_js(jnp.where(small, js, 0.1))
    far = _kl_from_gap(_LOG_2 - jnp.where(large, js, 0.5))
    outside = jnp.where(js <= 0, 0, jnp.where(jnp.isnan(js), js, jnp.inf))
    return jnp.where(small, near, jnp.where(large, far, outside))


def kl_lower_bound_from_cross_entropy(cross_entropy: ArrayLike) -> Array:
    """The bound `kl_lower_bound_from_js` at log 2 minus a balanced classifier's cross-entropy.

    That difference is a lower bound on JS, and the bound increases in JS.

    Args:
        cross_entropy: the cross-entropy in nats, of any shape.

    Returns:
        The bound in nats: 0 for a cross-entropy ≥ log 2, +∞ for one ≤ 0.

    Raises:
        ValueError: if `cross_entropy` does not hold real numbers.

    Example:
        >>> float(kl_lower_bound_from_cross_entropy(1e-20))
        49.2761

    References:
        Dorent et al. 2025, arXiv 2510.20644.
    """
    return _kl_lower_bound_from_cross_entropy(*as_leaves(cross_entropy=cross_entropy))


@jax.jit
def _kl_lower_bound_from_cross_entropy(cross_entropy: ArrayLike) -> Array:
    (gap,) = as_arrays(cross_entropy=cross_entropy)
    inside = (gap > 0) & (gap < _LOG_2)
    bound = _kl_from_gap(jnp.where(inside, gap, 0.5))
    # From log 2 on the bound is zero. At 0, or numbers that round to it, JS is log 2.
    outside = jnp.where(gap <= 0, jnp.inf, jnp.where(jnp.isnan(gap), gap, 0))
    return jnp.where(inside, bound, outside)


def kl_lower_bound_from_tv(tv: ArrayLike) -> Array:
    """KL ≥ max(2 TV², −log(1 − TV²)): Pinsker's bound, and Bretagnolle and Huber's near TV = 1.

    Args:
        tv: the total variation in [0, 1] or a lower bound on it, of any shape.

    Returns:
        The bound on KL in either direction, in nats.

    Raises:
        ValueError: if `tv` is a Python number outside [0, 1].

    Example:
        >>> float(kl_lower_bound_from_tv(0.5)), float(kl_lower_bound_from_tv(0.99))
        (0.5, 3.9170)

    References:
        Csiszár 1967; Bretagnolle, Huber 1979.
    """
    return _kl_lower_bound_from_tv(_between(0, 1, tv=tv))


@jax.jit
def _kl_lower_bound_from_tv(tv: ArrayLike) -> Array:
    tv = _clamped(0, 1, tv)
    # The logarithms of the factors of 1 − TV² = (1 − TV)(1 + TV) suffer no cancellation.
    return jnp.maximum(2 * tv * tv, -jnp.log1p(-tv) - jnp.log1p(tv))


def tv_upper_bound_from_kl(kl: ArrayLike) -> Array:
    """TV ≤ min(√(KL/2), √(1 − e^{−KL})): Pinsker's bound, and Bretagnolle and Huber's beyond 1.59.

    Args:
        kl: KL(p‖q) ≥ 0 or KL(q‖p) in nats, or an upper bound on it, of any shape.

    Returns:
        The bound, below 1. Its derivative at 0, which is infinite, is taken as 0.

    Raises:
        ValueError: if `kl` is a negative Python number.

    Example:
        >>> float(tv_upper_bound_from_kl(0.5)), float(tv_upper_bound_from_kl(4.0))
        (0.5, 0.9908)

    References:
        Csiszár 1967; Bretagnolle, Huber 1979.
    """
    return _tv_upper_bound_from_kl(_between(0, math.inf, kl=kl))


@jax.jit
def _tv_upper_bound_from_kl(kl: ArrayLike) -> Array:
    kl = _clamped(0, math.inf, kl)
    return safe_sqrt(jnp.minimum(kl / 2, -jnp.expm1(-kl)))


def js_bounds_from_tv(tv: ArrayLike) -> Interval:
    """Sandwich log 2 − h((1 − TV)/2) ≤ JS ≤ TV log 2, with h the binary entropy in nats.

    The lower bound is attained by Bernoulli(s) and Bernoulli(1 − s), the upper bound if p = q or
    one of them is 0 at every point.

    Args:
        tv: the total variation in [0, 1], of any shape.

    Raises:
        ValueError: if `tv` is a Python number outside [0, 1].

    Example:
        >>> [round(float(bound), 4) for bound in js_bounds_from_tv(0.5)]
        [0.1308, 0.3466]

    References:
        Lin 1991, theorem 3: the upper bound. Cover, Thomas 2006, theorem 2.10.1 (Fano): the lower.
    """
    return _js_bounds_from_tv(_between(0, 1, tv=tv))


@jax.jit
def _js_bounds_from_tv(tv: ArrayLike) -> Interval:
    tv = _clamped(0, 1, tv)
    return Interval(entropy_deficit(tv * tv), tv * _LOG_2)


def js_lower_bound_from_error(error: ArrayLike) -> Array:
    """JS ≥ log 2 − h(e) for any classifier of p against q with balanced error e (Fano).

    Args:
        error: e = ½ P(p taken for q) + ½ P(q taken for p) in [0, 1], of any shape.

    Returns:
        The bound in nats.

    Raises:
        ValueError: if `error` is a Python number outside [0, 1].

    Example:
        >>> float(js_lower_bound_from_error(0.25)), float(js_lower_bound_from_error(0.0))
        (0.1308, 0.6931)

    References:
        Cover, Thomas 2006, theorem 2.10.1.
    """
    return _js_lower_bound_from_error(_between(0, 1, error=error))


@jax.jit
def _js_lower_bound_from_error(error: ArrayLike) -> Array:
    error = _clamped(0, 1, error)
    return entropy_deficit(jnp.square(1 - 2 * error))


def tv_bounds_from_hellinger(squared_hellinger: ArrayLike) -> Interval:
    """H² ≤ TV ≤ √(H² (2 − H²)) with H² = 1 − ∫√(pq) (Le Cam).

    Args:
        squared_hellinger: H² in [0, 1], of any shape.

    Returns:
        Both bounds. The upper one's derivative at 0, which is infinite, is taken as 0.

    Raises:
        ValueError: if `squared_hellinger` is a Python number outside [0, 1].

    Example:
        >>> [round(float(bound), 4) for bound in tv_bounds_from_hellinger(0.2)]
        [0.2, 0.6]

    References:
        Le Cam 1986; Tsybakov 2009, lemma 2.3.
    """
    return _tv_bounds_from_hellinger(_between(0, 1, squared_hellinger=squared_hellinger))


@jax.jit
def _tv_bounds_from_hellinger(squared: ArrayLike) -> Interval:
    squared = _clamped(0, 1, squared)
    return Interval(squared, safe_sqrt(squared * (2 - squared)))


def tv_bounds_of_product(tv: ArrayLike, num_samples: ArrayLike) -> Interval:
    """max(TV, 1 − (1 − TV²)^{m/2}) ≤ TV(p^m, q^m) ≤ 1 − (1 − TV)^m, for m independent samples.

    The lower bound is TV ≥ H² (Le Cam) for the product, of which 1 − H² = (∫√(pq))^m is at most
    (1 − TV²)^{m/2}. The upper bound is attained if p = q or one of them is 0 at every point.

    Args:
        tv: the total variation of p and q in [0, 1], of any shape.
        num_samples: m, the number of samples packed into one.

    Raises:
        ValueError: if `tv` is a Python number outside [0, 1], or concrete `num_samples` are not at
            least 1. Traced `num_samples` that are not give NaN.

    Example:
        >>> [round(float(bound), 4) for bound in tv_bounds_of_product(0.2, 4)]
        [0.2, 0.5904]

    References:
        Lin, Khetan, Fanti, Oh 2018 (PacGAN): the upper bound. Tsybakov 2009, lemma 2.3: the lower.
    """
    tv = _between(0, 1, tv=tv)
    (num_samples,) = as_leaves(num_samples=num_samples)
    check_at_least(1, num_samples=num_samples)
    return _tv_bounds_of_product(tv, num_samples)


@jax.jit
def _tv_bounds_of_product(tv: ArrayLike, num_samples: ArrayLike) -> Interval:
    tv = _clamped(0, 1, tv)
    num_samples = jnp.asarray(num_samples, tv.dtype)
    num_samples = nan_unless(num_samples >= 1, num_samples)
    lower = jnp.maximum(tv, _one_minus_power(tv * tv, num_samples / 2))
    return Interval(lower, _one_minus_power(tv, num_samples))


def _one_minus_power(x: Array, exponent: ArrayLike) -> Array:
    """1 − (1 − x)^exponent on [0, 1], accurate for small x and with a finite derivative at 1."""
    small = x < 0.5
    # The unused branch gets a harmless argument, as its derivative would otherwise be NaN.
    near, far = jnp.where(small, x, 0), jnp.where(small, 1, 1 - x)
    positive = far > 0
    power = jnp.where(positive, jnp.power(jnp.where(positive, far, 1), exponent), 0 * far)
    power = nan_where_nan(power, exponent)
    return jnp.where(small, -jnp.expm1(exponent * jnp.log1p(-near)), 1 - power)


def auc_upper_bound_from_tv(tv: ArrayLike) -> Array:
    """AUC ≤ ½ + TV − TV²/2 for any score that discriminates p from q.

    The ROC curve is at most TV above the diagonal, and at most 1.

    Args:
        tv: the total variation in [0, 1] or an upper bound on it, of any shape.

    Raises:
        ValueError: if `tv` is a Python number outside [0, 1].

    Example:
        >>> float(auc_upper_bound_from_tv(0.5))
        0.875
    """
    return _auc_upper_bound_from_tv(_between(0, 1, tv=tv))


@jax.jit
def _auc_upper_bound_from_tv(tv: ArrayLike) -> Array:
    tv = _clamped(0, 1, tv)
    return 0.5 + tv * (1 - tv / 2)


def tv_lower_bound_from_auc(auc: ArrayLike) -> Array:
    """TV ≥ 1 − √(2 (1 − AUC)), the inverse of `auc_upper_bound_from_tv`.

    Args:
        auc: the area under the ROC curve in [0, 1], of any shape. Below ½ it is replaced by
            1 − AUC, that of the reversed score.

    Returns:
        The bound. Its derivative at AUC = 1, which is infinite, is taken as 0.

    Raises:
        ValueError: if `auc` is a Python number outside [0, 1].

    Example:
        >>> float(tv_lower_bound_from_auc(0.875)), float(tv_lower_bound_from_auc(0.125))
        (0.5, 0.5)
    """
    return _tv_lower_bound_from_auc(_between(0, 1, auc=auc))


@jax.jit
def _tv_lower_bound_from_auc(auc: ArrayLike) -> Array:
    auc = _clamped(0, 1, auc)
    # With m = 2 (1 − AUC) the bound is 1 − √m = (1 − m)/(1 + √m), without cancellation near m = 1.
    miss = 2 * jnp.minimum(auc, 1 - auc)
    return jnp.where(miss == 0, 1, (1 - miss) / (1 + safe_sqrt(miss)))
