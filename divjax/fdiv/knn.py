"""Divergence and entropy from nearest-neighbour distances, without a model of the densities.

The distance from x to its j-th neighbour among n points is a local density estimate:
E log P(ball) = ψ(j) − ψ(n + 1), whatever the density.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import digamma
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from divjax.core.checks import check_full_precision, check_probability
from divjax.core.numerics import matmul, nan_unless
from divjax.core.pytrees import pytree
from divjax.core.samples import Numbers, centered_samples
from divjax.core.types import Estimate, normal_estimate, summary
from divjax.fdiv.neighbor_search import NearestPoints, nearest_points
from divjax.fdiv.support_dimension import Support, short_steps, support_from_steps

__all__ = ["NeighborDiagnostics", "knn_entropy", "knn_kl"]

# The share of rows with a coinciding neighbour that is attributed to chance (rounding to float32
# makes a few in one dimension).
_COPIES = 0.01


@pytree
class NeighborDiagnostics:
    """Diagnostics of an estimate from nearest neighbours.

    Attributes:
        log_ratios: log p(x_i)/q(x_i) for each x_i (for the entropy, −log p(x_i)), NaN if the row is
            left out.
        zero_distances: the number of x_i that coincide with one of their neighbours up to the k-th:
            copied or quantised rows. If they exceed one in a hundred they are left out of the
            value, which then does not estimate a divergence between densities.
        dimension: the dimension D of the set on which the samples lie: the number of features minus
            those that are constant, discrete, or a linear function of others.
        ties: the largest share of neighbours that agree in a feature, over the features that are
            not discrete throughout. For a continuous feature it is 0.
        beyond_log_n: whether the value, an estimate of KL(p‖q), exceeds the logarithm of the number
            of samples of q, as between samples of disjoint supports, for which the truth is
            infinite. The estimate then rests on distances from rows of p to an edge of q, where
            nothing tells how thin its density is. False for the entropy.
        finite: whether every log-ratio is finite, and the interval is defined.
    """

    log_ratios: Float[Array, " n"]
    zero_distances: Int[Array, ""]
    dimension: Int[Array, ""]
    ties: Float[Array, ""]
    beyond_log_n: Bool[Array, ""]
    finite: Bool[Array, ""]

    __repr__ = summary


class _LogVolumes(NamedTuple):
    """The sums D Σ_j w_j log(distance to the j-th neighbour), their sensitivities and validity.

    Attributes:
        values: the sum for each x.
        plain: the sum for each x with equal weights.
        influence: for each neighbour, the increase of Σ_i values_i if it is left out.
        valid: whether all distances of non-zero weight are positive and finite.
        zero: whether a distance up to the k-th is zero.
    """

    values: Float[Array, " n"]
    plain: Float[Array, " n"]
    influence: Float[Array, " m"]
    valid: Bool[Array, " n"]
    zero: Bool[Array, " n"]


def _log_volumes(
    neighbors: NearestPoints,
    size: int,
    weights: Float[Array, " k"],
    dimension: Float[Array, ""],
    used: np.ndarray,
) -> _LogVolumes:
    """The sums over `neighbors` among `size` points, one neighbour more than weights."""
    k = weights.shape[0]
    logs = dimension * neighbors.log_distances
    # If the neighbour of rank r is left out, the (j + 1)-th neighbour takes rank j for each j ≥ r.
    # The neighbour after the last weight's is needed for this alone.
    steps = logs[:, 1:] - logs[:, :-1]
    from_rank = jnp.tril(jnp.broadcast_to(weights[:, None], (k, k)))
    # Influences enter the standard error alone, which is not differentiated.
    rises = jax.lax.stop_gradient(matmul(steps, from_rank))
    return _LogVolumes(
        values=jnp.sum(weights * logs[:, :-1], axis=1),
        plain=jnp.mean(logs[:, :-1], axis=1),
        influence=jnp.zeros(size, logs.dtype).at[neighbors.index[:, :-1]].add(rises),
        # Ranks of weight zero need no distance.
        valid=jnp.all(neighbors.usable[:, used], axis=1),
        zero=jnp.any(neighbors.zero[:, :-1], axis=1),
    )


def _neighbor_weights(k: int, exponents: list[float]) -> np.ndarray:
    """The smallest w "k" with Σ_j w_j = 1 and Σ_j w_j Γ(j + e)/Γ(j) = 0 for each exponent e.

    A term of the bias of log distance to the j-th neighbour is proportional to that ratio, the
    expectation of (P(ball) n)^e. Without exponents all weight is on the k-th neighbour.
    """
    if not exponents:
        return np.eye(k)[-1]
    powers = [
        [math.exp(math.lgamma(j + e) - math.lgamma(j)) for j in range(1, k + 1)]
        for e in [0.0, *exponents]
    ]
    rows = np.array(powers)
    # Ratios of Gamma functions grow with e: rows of one size keep the equations well conditioned.
    rows /= rows.mean(axis=1, keepdims=True)
    # Least squares gives the solution of minimum norm.
    return np.linalg.lstsq(rows, np.eye(len(rows))[0], rcond=None)[0]


def _weights_by_dimension(k: int, d: int, bias_order: int, extra: int) -> np.ndarray:
    """The weights "d k" for each dimension D up to d, with exponents 2l/(D + extra), l ≤ L."""
    orders = range(1, bias_order + 1)
    return np.stack(
        [_neighbor_weights(k, [2 * l / (D + extra) for l in orders]) for D in range(1, d + 1)]
    )


def _mean(values: Float[Array, " n"], valid: Bool[Array, " n"]) -> Float[Array, ""]:
    """The mean of the valid values, 0 if there are no valid ones."""
    count = jnp.sum(valid.astype(values.dtype))
    return jnp.sum(jnp.where(valid, values, 0)) / jnp.maximum(count, 1)


def _estimate(
    log_ratios: Float[Array, " n"],
    plain: Float[Array, " n"],
    pseudo_values: tuple[Float[Array, "..."], ...],
    valid: Bool[Array, " n"],
    zero: Bool[Array, " n"],
    support: Support,
    confidence_level: ArrayLike,
    largest: float = math.inf,
) -> Estimate:
    """The mean of the valid log-ratios, with errors from the jackknife and the bias correction."""
    few = math.floor(_COPIES * valid.shape[0])
    copied = jnp.sum(zero) > few
    # Coinciding rows are left out if they are too many for chance: densities have no copies.
    valid = valid & ~(copied & zero)
    used = jnp.sum(valid)
    value = nan_unless(used > 0, _mean(log_ratios, valid))

    # The correction estimates how large the bias was, not how much of it is left.
    correction = jax.lax.stop_gradient(_mean(log_ratios, valid) - _mean(plain, valid))
    variance = sum(jnp.var(values, ddof=1) / values.shape[0] for values in pseudo_values)
    variance = jax.lax.stop_gradient(variance) + jnp.square(correction / 2)
    finite = (valid.shape[0] - used <= few) & ~copied & support.known & jnp.isfinite(value)
    std_error = nan_unless(finite, jnp.sqrt(variance))
    diagnostics = NeighborDiagnostics(
        jnp.where(valid, log_ratios, jnp.nan),
        jnp.sum(zero),
        support.dimension,
        support.ties,
        value > largest,
        finite,
    )
    return normal_estimate(value, std_error, used, diagnostics, confidence_level)


def _check_neighbors(k: int, bias_order: int, **sizes: int) -> None:
    available = min(sizes.values())
    names = " and ".join(sizes)
    if available < 1:
        raise ValueError(f"{names} must have more rows: a row's neighbours are other rows.")
    # The jackknife leaves out one neighbour, and the next one takes its place.
    if not isinstance(k, int) or not 1 <= k <= available:
        raise ValueError(
            f"k must be an integer from 1 to {available}, one less than there are neighbours in "
            f"{names}; got {k}."
        )
    # The k weights sum to one and solve one equation for each order.
    if not isinstance(bias_order, int) or not 0 <= bias_order < k:
        raise ValueError(f"bias_order must be an integer from 0 to k − 1; got {bias_order}.")


@jax.custom_jvp
def _refuse_derivative(x: Float[Array, "n 1"]) -> Float[Array, "n 1"]:
    return x


@_refuse_derivative.defjvp
def _(primals, tangents):
    raise ValueError(
        "knn_kl has no useful derivative in one dimension: the derivative of a log distance is its "
        "reciprocal, of either sign, whose noise grows with the number of samples. Differentiate "
        "ot.wasserstein_1d, a kernel discrepancy, or a variational bound of divjax.ratio instead."
    )


def knn_kl(
    x: Float[Numbers, "n d"],
    y: Float[Numbers, "m d"],
    k: int = 10,
    *,
    bias_order: int = 1,
    confidence_level: ArrayLike = 0.95,
) -> Estimate:
    """KL(p‖q) between densities from samples of both, by distances to nearest neighbours.

    (D/n) Σ_i Σ_j w_j log(ν_j(i) / ρ_j(i)) + log(m / (n − 1)), where ρ_j(i) is the distance from x_i
    to its j-th neighbour among the other x, ν_j(i) that to its j-th neighbour in y, and D the
    dimension of the set on which the samples lie, d for densities.

    The bias of each rank comes from the change of the densities within a ball, above all in their
    tails, where it falls like (j/m)^(2/(D + 2)). The weights w, over the ranks 1 … k, sum to one
    and cancel terms of the bias of orders 2l/(D + 2), l = 1 … `bias_order`. With `bias_order=0` all
    weight is on the k-th neighbour: the estimator of Wang, Kulkarni and Verdú, whose bias between
    Gaussians, n = 2000, is two to three times its standard error in one to three dimensions (and
    −25 % of one nat in ten dimensions with 5 000 points each).

    The value may be negative and is never clipped. It is invariant to a common shift, rotation or
    scale, not to the units of single columns. Constant columns, and copies or sums of others, have
    no effect. A discrete column enters through the frequencies of its levels.

    Time O(n (n + m) d), memory O((n + m) d + n k) plus one block of the budget of
    `divjax.core.pairwise`. Differentiable in x and y if neighbours are distinct, but not in one
    dimension: the noise of the derivative is of order n^(1/d − 1/2), which grows for d = 1, stays
    constant for d = 2 and falls beyond.

    Args:
        x: samples of p.
        y: samples of q.
        k: the number of neighbours, a static integer, 1 ≤ k ≤ min(n − 2, m − 1).
        bias_order: L, static, below k and best small: 1, or 2 with k of 20 or more.
        confidence_level: the level of the confidence interval.

    Returns:
        An `Estimate` in nats, whose value is the mean of the log-ratios, with
        `NeighborDiagnostics`. The effective sample size is their number. The variance is the
        jackknife's over both samples, exact for leaving out each point in turn and conservative
        (Efron–Stein). The square of half the change that the weights make, against equal ones, is
        added to it for the remaining bias. With `bias_order=0` the interval covers variance alone.

        The standard error and the interval are NaN if they are unknown: more than one row in a
        hundred coincides with a neighbour (copied rows, in one sample or between both, which are
        left out of the value), or a column is neither continuous nor discrete at the neighbours'
        distance. The value is NaN, too, if the samples lie on sets of different dimension or on
        separate sets (the true divergence is then infinite), or hold a value that is not finite.
        Disjoint supports of full dimension have a finite value: see `diagnostics.beyond_log_n`.

    Raises:
        ValueError: if x or y is empty or not a matrix, their numbers of features differ, k or
            bias_order is out of range, or the estimate is differentiated in one dimension.

    Example:
        >>> import jax
        >>> x, y = jax.random.normal(jax.random.key(0), (2, 1000, 1))
        >>> estimate = knn_kl(x + 1.0, y)  # KL = ½
        >>> bool(abs(estimate.value - 0.5) < 3 * estimate.std_error)
        True

    References:
        Wang, Kulkarni, Verdú 2009: the estimator. Zhao, Lai 2020, theorem 2: the bias's order for
        densities with tails. Noshad, Moon, Sekeh, Hero 2017; Berrett, Samworth, Yuan 2019: weights
        that cancel the bias. Efron, Stein 1981: the jackknife's variance is not too small on
        average.
    """
    _, x, y = centered_samples(x=x, y=y)
    check_full_precision("x", x)
    _check_neighbors(k, bias_order, x=x.shape[0] - 2, y=y.shape[0] - 1)
    check_probability(confidence_level=confidence_level)
    return _knn_kl(x, y, confidence_level, k=k, bias_order=bias_order)


@functools.partial(jax.jit, static_argnames=("k", "bias_order"))
def _knn_kl(
    x: Float[Array, "n d"],
    y: Float[Array, "m d"],
    confidence_level: ArrayLike,
    *,
    k: int,
    bias_order: int,
) -> Estimate:
    """`knn_kl` after its checks."""
    (n, d), m = x.shape, y.shape[0]
    if d == 1:
        x, y = _refuse_derivative(x), _refuse_derivative(y)
    near_x, near_y = nearest_points(x, None, k + 1), nearest_points(x, y, k + 1)
    # The steps to the k-th neighbours determine which features vary at that scale, and in how many
    # directions.
    to_x, to_y = x[near_x.index[:, k - 1]] - x, y[near_y.index[:, k - 1]] - x
    support = support_from_steps(to_x, to_y, others=(short_steps(y),))

    table = _weights_by_dimension(k, d, bias_order, extra=2)
    weights = jnp.asarray(table, x.dtype)[support.dimension - 1]
    # A neighbour of weight zero in every dimension may be unusable.
    used = np.flatnonzero(np.any(table != 0, axis=0))
    dimension = support.dimension.astype(x.dtype)
    among_x = _log_volumes(near_x, n, weights, dimension, used)
    among_y = _log_volumes(near_y, m, weights, dimension, used)

    # NaN if the samples differ in their discrete features or in dimension: distances then compare
    # unlike volumes.
    constant = math.log(m / (n - 1)) + nan_unless(
        support.same & jnp.isfinite(x).all() & jnp.isfinite(y).all(), jnp.zeros((), x.dtype)
    )
    log_ratios = among_y.values - among_x.values + constant
    plain = among_y.plain - among_x.plain + constant if bias_order else log_ratios
    valid, zero = among_x.valid & among_y.valid, among_x.zero | among_y.zero
    # Leaving out x_i removes its own term and lowers those of which it is a neighbour.
    from_x = jnp.where(valid, log_ratios, _mean(log_ratios, valid)) + among_x.influence
    # Sums over the n terms: as pseudo-values of m rows they scale by m/n.
    from_y = among_y.influence * (m / n)
    return _estimate(
        log_ratios,
        plain,
        (from_x, from_y),
        valid,
        zero,
        support,
        confidence_level,
        largest=math.log(m),
    )


def knn_entropy(
    x: Float[Numbers, "n d"], k: int = 5, *, bias_order: int = 0, confidence_level: ArrayLike = 0.95
) -> Estimate:
    """The differential entropy −∫ p log p from samples, by distances to k-th neighbours.

    (d/n) Σ_i log ρ_k(i) + log V_d + ψ(n) − ψ(k), where V_d is the unit ball's volume. With
    `bias_order` L ≥ 1 the logarithm is a weighted sum over the neighbours 1 … k, whose weights
    cancel the first L terms of the bias, of orders n^(−2l/d).

    Args:
        x: samples of p.
        k: the rank of the neighbour, a static integer, 1 ≤ k ≤ n − 2.
        bias_order: the number of terms of the bias to cancel, static, below k.
        confidence_level: the level of the confidence interval.

    Returns:
        An `Estimate` in nats, whose value is the mean of the log-ratios, with
        `NeighborDiagnostics`. The effective sample size is their number. The value is −∞ if the
        samples lie on a set of lower dimension (a column is constant, discrete, or a linear
        function of others). The standard error is the jackknife's over the sample, exact for
        leaving out each point in turn and conservative (Efron–Stein). Half of the change that the
        weights make, against equal ones, is added to it in quadrature. Without `bias_order` it
        covers variance alone, and not the bias, which dominates from about five dimensions on. NaN
        as for `knn_kl`.

    Raises:
        ValueError: if x is empty or not a matrix, or k or bias_order is out of range.

    Example:
        >>> import jax
        >>> x = jax.random.uniform(jax.random.key(0), (1000, 1))
        >>> estimate = knn_entropy(x)  # the uniform density's is 0
        >>> bool(abs(estimate.value) < 3 * estimate.std_error)
        True

    References:
        Kozachenko, Leonenko 1987: k = 1. Berrett, Samworth, Yuan 2019: the weights.
    """
    _, x = centered_samples(x=x)
    check_full_precision("x", x)
    _check_neighbors(k, bias_order, x=x.shape[0] - 2)
    check_probability(confidence_level=confidence_level)
    return _knn_entropy(x, confidence_level, k=k, bias_order=bias_order)


@functools.partial(jax.jit, static_argnames=("k", "bias_order"))
def _knn_entropy(
    x: Float[Array, "n d"], confidence_level: ArrayLike, *, k: int, bias_order: int
) -> Estimate:
    """`knn_entropy` after its checks."""
    n, d = x.shape
    near = nearest_points(x, None, k + 1)
    support = support_from_steps(x[near.index[:, k - 1]] - x)
    weights = _neighbor_weights(k, [2 * l / d for l in range(1, bias_order + 1)])
    used = np.flatnonzero(weights)
    among = _log_volumes(near, n, jnp.asarray(weights, x.dtype), jnp.asarray(d, x.dtype), used)
    log_volume = 0.5 * d * math.log(math.pi) - math.lgamma(0.5 * d + 1)
    # E log P(ball) = ψ(j) − ψ(n) for the j-th among n − 1 others, whatever the density.
    ranks = digamma(jnp.arange(1, k + 1, dtype=x.dtype))
    constant = log_volume + digamma(jnp.asarray(n, x.dtype))
    constant = constant + nan_unless(jnp.isfinite(x).all(), jnp.zeros((), x.dtype))
    # On a set of lower dimension there is no density, and the entropy is −∞.
    constant = constant + jnp.where(support.flat, -jnp.inf, 0)
    log_ratios = among.values + constant - ranks @ jnp.asarray(weights, x.dtype)
    plain = among.plain + constant - jnp.mean(ranks) if bias_order else log_ratios
    # A row without a log ratio takes the mean, so that only its influence on others counts.
    own = jnp.where(among.valid, log_ratios, _mean(log_ratios, among.valid))
    pseudo_values = (own - among.influence,)
    return _estimate(
        log_ratios, plain, pseudo_values, among.valid, among.zero, support, confidence_level
    )
