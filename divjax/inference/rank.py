"""AUC and accuracy of scores that discriminate between two samples, with standard errors."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float, Int, Shaped

from divjax.core.arguments import Leaf, as_leaves, as_optional_leaf, vector_leaves
from divjax.core.checks import check_probability, check_scalar, check_weights
from divjax.core.numerics import nan_unless, safe_sqrt
from divjax.core.samples import Numbers, Unrounded, as_numbers, loses_digits
from divjax.core.simplex import effective_sample_size, mass_of_distinct_pairs
from divjax.core.types import Estimate, Interval
from divjax.fdiv.special import as_singles
from divjax.inference.intervals import logit_interval

__all__ = ["accuracy", "auc", "midranks", "share_in_order"]


class _Scores(NamedTuple):
    """Scores of two samples and their weights, None if they are equal."""

    x: Leaf
    y: Leaf
    a: Leaf | None
    b: Leaf | None


def _checked(x: Numbers, y: Numbers, a: Numbers | None, b: Numbers | None) -> _Scores:
    """All as arguments of a compiled function."""
    scores = vector_leaves(x=x, y=y)
    # Equal weights stay None, for which a separate program is compiled.
    weights = []
    for name, weight, of, sample in zip("ab", (a, b), "xy", scores, strict=True):
        leaf = as_optional_leaf(**{name: weight})
        if leaf is not None:
            if jnp.shape(leaf) != sample.shape:
                raise ValueError(
                    f"{name} must have the shape of {of}, {sample.shape}; got {jnp.shape(leaf)}."
                )
            check_weights(name, leaf)
        weights.append(leaf)
    return _Scores(*scores, *weights)


def _weighted(scores: _Scores) -> tuple[Array, Array, Array, Array]:
    """Scores, with NaN replaced at weight zero, and weights that sum to one, NaN if invalid."""
    numbers, weights = [], []
    for sample, weight in ((scores.x, scores.a), (scores.y, scores.b)):
        weight = jnp.ones_like(sample) if weight is None else weight
        # Rows of weight zero are padding. NaN would pass through a weight of zero.
        numbers.append(jnp.where((weight == 0) & jnp.isnan(sample), 0, sample))
        weights.append(weight)
    x, y, a, b = as_singles(*numbers, *weights)
    return x, y, _normalized(a), _normalized(b)


def keep_order(**scores: Numbers) -> tuple[Unrounded, ...]:
    """The scores, or their ranks if rounding to JAX's dtype would create ties.

    Ranks replace NumPy's float64 (which includes lists and series of numbers) and large integers.
    They are places among the pooled distinct scores, NaN for NaN.

    Example:
        >>> [places.tolist() for places in keep_order(x=[1e9, 1e9 + 1], y=[1e9 - 1])]
        [[1.0, 2.0], [0.0]]
    """
    if _are_traced_integers(*scores.values()):
        return _integer_ranks(*scores.values())
    numbers = [as_numbers(name, array, exact=True) for name, array in scores.items()]
    if any(isinstance(array, Tracer) for array in numbers) or not loses_digits(*numbers):
        return tuple(numbers)
    # Ranks are sufficient for a quantity that depends on the order alone.
    pooled = np.concatenate([np.ravel(array) for array in numbers])
    # Equal numbers have equal places, and float32 holds every integer up to 2²⁴.
    places = np.unique(pooled, return_inverse=True)[1].reshape(-1)
    # `np.unique` ranks NaN above all numbers.
    places = np.where(np.isnan(pooled), np.nan, places)
    ends = np.cumsum([array.size for array in numbers])[:-1]
    parts = np.split(places, ends)
    return tuple(part.reshape(array.shape) for part, array in zip(parts, numbers, strict=True))


def _are_traced_integers(*scores: Numbers) -> bool:
    integers = all(
        isinstance(part, jax.Array) and jnp.issubdtype(part.dtype, jnp.integer) for part in scores
    )
    return integers and any(isinstance(part, Tracer) for part in scores)


def _integer_ranks(*scores: Int[Array, "..."]) -> tuple[Array, ...]:
    """The number of pooled scores below each, as rounding of JAX's integers would create ties."""
    pooled = jnp.sort(jnp.concatenate([jnp.ravel(part) for part in scores]))
    return tuple(jnp.searchsorted(pooled, part).astype(float) for part in scores)


def _normalized(weights: Float[Array, " n"]) -> Float[Array, " n"]:
    """Weights that sum to one, NaN if one of them is negative or not finite, or all are zero."""
    total = jnp.sum(weights)
    valid = (weights >= 0).all() & jnp.isfinite(total) & (total > 0)
    return nan_unless(valid, weights / jnp.where(valid, total, 1))


def _share_below(x: Float[Array, " n"], y: Float[Array, " m"], b: Float[Array, " m"]) -> Array:
    """For each x the weight of the y below it, plus half of that of the y equal to it."""
    order = jnp.argsort(y)
    sorted_y = y[order]
    # below[i] is the weight of the i smallest y, where i is an index that a search returns.
    below = jnp.concatenate([jnp.zeros_like(b[:1]), jnp.cumsum(b[order])])
    left = jnp.searchsorted(sorted_y, x, side="left")
    right = jnp.searchsorted(sorted_y, x, side="right")
    return (below[left] + below[right]) / 2


def _mean_and_variance(values: Array, weights: Array) -> tuple[Array, Array]:
    """The weighted mean and an estimate of its variance, unbiased for equal weights."""
    mean = jnp.sum(weights * values)
    squared = jnp.square(weights)
    # Σw²(v − v̄)²/(1 − Σw²), which is s²/n for equal weights.
    variance = jnp.sum(squared * jnp.square(values - mean)) / mass_of_distinct_pairs(weights)
    return mean, variance


def _share_estimate(
    value: Array, std_error: Array, a: Array, b: Array, confidence_level: ArrayLike
) -> Estimate:
    """An estimate of a share of pairs, whose sample size is that of both samples together."""
    sizes = effective_sample_size(a), effective_sample_size(b)
    lower, upper = logit_interval(value, std_error, confidence_level)
    # Without a wrong pair the standard error is zero, which is no certainty: of a share A of right
    # pairs, n that have no row in common are all right with probability Aⁿ.
    certain = 1 - 64 * jnp.finfo(value.dtype).eps
    least = (0.5 - jnp.asarray(confidence_level, value.dtype) / 2) ** (1 / jnp.minimum(*sizes))
    lower = jnp.where(value > certain, jnp.minimum(lower, least), lower)
    upper = jnp.where(value < 1 - certain, jnp.maximum(upper, 1 - least), upper)
    return Estimate(value, std_error, Interval(lower, upper), sizes[0] + sizes[1], ())


def auc(
    x: Float[Numbers, " n"],
    y: Float[Numbers, " m"],
    a: Float[Numbers, " n"] | None = None,
    b: Float[Numbers, " m"] | None = None,
    *,
    confidence_level: ArrayLike = 0.95,
) -> Estimate:
    """The area under the ROC curve, P(X > Y) + ½ P(X = Y), with DeLong's standard error.

    With the placements F(x_i), the share of y below x_i, and G(y_j), the share of x above y_j (ties
    count half in both), the AUC is the mean of either, and its variance is estimated by
    var F(x_i)/n + var G(y_j)/m. Time O((n + m) log(n + m)), without an n × m matrix.

    Args:
        x: scores of samples of p, high where p is denser than q.
        y: scores of samples of q.
        a: non-negative weights of x, of any sum, uniform by default. Rows of weight zero are
            absent, in the standard error too.
        b: non-negative weights of y, likewise.
        confidence_level: the level 1 − α of the interval, which is computed on the logit scale.

    Returns:
        The AUC and its standard error. The latter is NaN if a sample has only one row of non-zero
        weight, and both are NaN if a score is. Perfectly separated scores have a standard error of
        zero, and an interval from (α/2)^(1/n) on, for n rows of the smaller sample. Differentiable
        in the weights, piecewise constant in the scores.

    Raises:
        ValueError: if an argument is empty or not a vector, or weights have another shape, are
            negative or all zero. Invalid traced weights make the result NaN.

    Example:
        >>> import jax.numpy as jnp
        >>> auc(jnp.array([0.2, 1.0, 3.0]), jnp.array([0.2, 0.1])).value.tolist()  # (½ + 5)/6
        0.9167

    References:
        Mann, Whitney 1947; DeLong, DeLong, Clarke-Pearson 1988, eq. 4–7.
    """
    check_probability(confidence_level=confidence_level)
    # The AUC depends on the order alone, which must survive the rounding to JAX's dtype.
    x, y = keep_order(x=x, y=y)
    scores = _checked(x, y, a, b)
    return _auc(scores, *as_leaves(confidence_level=confidence_level))


@jax.jit
def _auc(scores: _Scores, confidence_level: ArrayLike) -> Estimate:
    x, y, a, b = _weighted(scores)
    # The AUC is the mean of either sample's placements, and its variance has a part from each.
    value, variance_x = _mean_and_variance(_share_below(x, y, b), a)
    _, variance_y = _mean_and_variance(_share_below(y, x, a), b)
    value = jnp.where(jnp.isnan(x).any() | jnp.isnan(y).any(), jnp.nan, value)
    # Zero times the value makes the error NaN if the value is.
    return _share_estimate(
        value, safe_sqrt(variance_x + variance_y) + 0 * value, a, b, confidence_level
    )


def accuracy(
    x: Float[Numbers, " n"],
    y: Float[Numbers, " m"],
    a: Float[Numbers, " n"] | None = None,
    b: Float[Numbers, " m"] | None = None,
    *,
    threshold: ArrayLike = 0.0,
    confidence_level: ArrayLike = 0.95,
) -> Estimate:
    """The balanced accuracy ½ P(X > t) + ½ P(Y < t) of a threshold t, with its binomial error.

    Both samples weigh one half, as log ratios ignore their sizes. The variance is ¼ (s²/n + r²/m)
    with the samples' variances s² and r² of the scores' marks: 1 if correct, ½ if equal to t, and 0
    otherwise. Without ties s²/n is α(1 − α)/(n − 1) for a share α of correct scores. Twice the
    balanced accuracy minus one is a lower bound on the total variation, in expectation.

    Args:
        x: scores of samples of p, high where p is denser than q.
        y: scores of samples of q.
        a: non-negative weights of x, of any sum, uniform by default.
        b: non-negative weights of y, likewise.
        threshold: t, which is 0 for log ratios and logits.
        confidence_level: the level of the interval, which is computed on the logit scale.

    Returns:
        The accuracy and its standard error. The latter is NaN if a sample has only one row of
        non-zero weight, and both are NaN if a score is. The interval of scores without an error is
        that of `auc`.

    Raises:
        ValueError: if an argument is empty or not a vector, or weights have another shape, are
            negative or all zero. Invalid traced weights make the result NaN.

    Example:
        >>> import jax.numpy as jnp
        >>> accuracy(jnp.array([0.2, 1.0, -3.0, 2.0]), jnp.array([-0.2, 0.1])).value.tolist()
        0.625
    """
    check_probability(confidence_level=confidence_level)
    check_scalar(threshold=threshold)
    # Scores that float32 would round to the threshold have a definite side in NumPy's precision.
    threshold = as_numbers("threshold", threshold, exact=True)
    x, threshold_x = relative_to_threshold(as_numbers("x", x, exact=True), threshold)
    y, threshold_y = relative_to_threshold(as_numbers("y", y, exact=True), threshold)
    scores = _checked(x, y, a, b)
    return _accuracy(
        scores, threshold_x, threshold_y, *as_leaves(confidence_level=confidence_level)
    )


def relative_to_threshold(scores: Unrounded, threshold: Unrounded) -> tuple[Unrounded, Leaf]:
    """The signs of NumPy's scores − threshold, taken before rounding, and threshold 0.

    JAX's scores, and scores with a traced threshold, are returned unchanged with the threshold.
    """
    if isinstance(scores, jax.Array) or isinstance(threshold, Tracer):
        return scores, as_leaves(threshold=threshold)[0]
    return np.sign(scores - np.asarray(threshold)).astype(float), 0.0


@jax.jit
def _accuracy(
    scores: _Scores, threshold_x: ArrayLike, threshold_y: ArrayLike, confidence_level: ArrayLike
) -> Estimate:
    x, y, a, b = _weighted(scores)
    # 1, ½ or 0: a score at the threshold is half right.
    right_x, right_y = (1 + jnp.sign(x - threshold_x)) / 2, (1 - jnp.sign(y - threshold_y)) / 2
    share_x, variance_x = _mean_and_variance(right_x, a)
    share_y, variance_y = _mean_and_variance(right_y, b)
    # Half the sum of two independent shares.
    std_error = safe_sqrt(variance_x + variance_y) / 2
    return _share_estimate((share_x + share_y) / 2, std_error, a, b, confidence_level)


def midranks(values: Shaped[Array | np.ndarray, " n"]) -> Float[Array, " n"]:
    """Ranks from 1 to n, with the mean rank for equal values. NaN sorts last, and has no rank: NaN.

    Example:
        >>> import jax.numpy as jnp
        >>> midranks(jnp.array([3.0, 1.0, 3.0])).tolist()
        [2.5, 1.0, 2.5]
    """
    (values,) = keep_order(values=values)
    return _midranks(*vector_leaves(values=values))


@jax.jit
def _midranks(values: Float[Array, " n"]) -> Float[Array, " n"]:
    (values,) = as_singles(values)
    ranked = ~jnp.isnan(values)
    ordered = jnp.sort(values)
    # Equal values take the ranks left + 1, …, right, whose mean is (left + right + 1)/2.
    left = jnp.searchsorted(ordered, values, side="left")
    right = jnp.searchsorted(ordered, values, side="right")
    return nan_unless(ranked, (left + right + 1).astype(values.dtype) / 2)


def share_in_order(x: np.ndarray, y: np.ndarray) -> float:
    """The share of pairs of NumPy's numbers with x above y, equal ones counting half: their AUC.

    Example:
        >>> share_in_order(np.array([1.0, 3.0]), np.array([1.0, 2.0]))
        0.625
    """
    ordered = np.sort(y)
    # Equal ones are counted above by one search and not by the other: half in the mean.
    below, above = (np.searchsorted(ordered, x, side).mean() for side in ("left", "right"))
    return float(below + above) / (2 * len(y))
