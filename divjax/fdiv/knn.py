"""Divergence and entropy from nearest-neighbour distances, without a model of the densities.

The distance from x to its j-th neighbour among n points is a local density estimate:
E log P(ball) = ψ(j) − ψ(n + 1), whatever the density. Neighbours are searched in blocks of rows,
never n × m at once. Their distances are then recomputed from the points, exact to rounding and
differentiable: no derivative passes through the search.

The volume of a ball grows like r^D, where D is the dimension of the set on which the samples lie:
the number of features, minus those that are constant or discrete (neighbours share their value) and
those that depend linearly on others.
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
from divjax.core.linalg import eigh
from divjax.core.numerics import if_needed, matmul, nan_unless
from divjax.core.pairwise import map_row_blocks, pair_distances_by_rows
from divjax.core.pytrees import pytree
from divjax.core.samples import Numbers, centered_samples
from divjax.core.types import Estimate, normal_estimate, summary

__all__ = ["NeighborDiagnostics", "knn_entropy", "knn_kl"]

# Extra candidates per row: the search compares rounded distances, and the exact ones may order the
# last few differently.
_SPARE = 4

# The share of rows with a coinciding neighbour that is attributed to chance (rounding to float32
# makes a few in one dimension), and the share of neighbours that agree in a feature up to which it
# is continuous. Beyond one minus the latter the feature is discrete.
_COPIES, _TIES = 0.01, 0.05


@pytree
class NeighborDiagnostics:
    """Diagnostics of an estimate from nearest neighbours.

    Attributes:
        log_ratios: log p(x_i)/q(x_i) for each x_i (for the entropy, −log p(x_i)), nan if the row is
            left out.
        zero_distances: the number of x_i that coincide with one of their neighbours up to the k-th:
            copied or quantised rows. If they exceed one in a hundred they are left out of the
            value, which then does not estimate a divergence between densities.
        dimension: the dimension D of the set on which the samples lie: the number of features minus
            those that are constant, discrete, or a linear function of others.
        ties: the largest share of neighbours that agree in a feature, over the features that are
            not discrete throughout. For a continuous feature it is 0.
        finite: whether every log-ratio is finite, and the interval is defined.
    """

    log_ratios: Float[Array, " n"]
    zero_distances: Int[Array, ""]
    dimension: Int[Array, ""]
    ties: Float[Array, ""]
    finite: Bool[Array, ""]

    __repr__ = summary


class _Neighbors(NamedTuple):
    """The nearest points, in order.

    Attributes:
        log_distances: the log distance to each point, 0 if it is not usable.
        usable: whether the distance is positive and finite.
        zero: whether it is zero.
        index: the indices of the points.
    """

    log_distances: Float[Array, "n count"]
    usable: Bool[Array, "n count"]
    zero: Bool[Array, "n count"]
    index: Int[Array, "n count"]


def _neighbors(x: Float[Array, "n d"], y: Float[Array, "m d"] | None, count: int) -> _Neighbors:
    """The nearest points to each x among y, or among the other x for y = None."""
    columns = x if y is None else y
    own = y is None
    candidates = min(count + own + _SPARE, columns.shape[0])

    def nearest(squared: Float[Array, "b m"]) -> Int[Array, "b candidates"]:
        # float32 ranks suffice for candidates, and a top_k of float64 is 100 times slower. In units
        # of the row's smallest, to keep one far point from turning all the others' squares into
        # zeros.
        if squared.dtype != jnp.float32:
            smallest = jnp.min(jnp.where(squared > 0, squared, jnp.inf), axis=1, keepdims=True)
            squared = squared / jnp.where(jnp.isfinite(smallest), smallest, 1)
        return jax.lax.top_k(-squared.astype(jnp.float32), candidates)[1]

    def exact(row: Float[Array, "b d"], own_index: Int[Array, " b"], index: Int[Array, "b c"]):
        difference = row[:, None] - columns[index]
        # In units of the largest coordinate: squares neither overflow nor vanish.
        unit = jax.lax.stop_gradient(jnp.max(jnp.abs(difference), axis=-1))
        usable = (unit > 0) & (unit < jnp.inf)
        unit = jnp.where(usable, unit, 1)
        squared = jnp.sum(jnp.square(difference / unit[..., None]), axis=-1)
        logs = jnp.log(unit) + 0.5 * jnp.log(jnp.where(usable, squared, 1))
        zero = jnp.all(difference == 0, axis=-1)
        if own:
            is_own = index == own_index[:, None].astype(index.dtype)
            usable, zero = usable & ~is_own, zero & ~is_own
        # Coinciding points come first. The row itself and points without a distance come last.
        keys = jnp.where(usable, logs, jnp.where(zero, -jnp.inf, jnp.inf))
        order = jnp.argsort(jax.lax.stop_gradient(keys), axis=1)[:, :count]
        ordered = (jnp.where(usable, logs, 0), usable, zero, index)
        return _Neighbors(*(jnp.take_along_axis(leaf, order, axis=1) for leaf in ordered))

    searched_x, searched_y = _search_units(x, y)
    index = pair_distances_by_rows(searched_x, searched_y, nearest)
    measure = lambda index: map_row_blocks(
        exact, candidates * x.shape[1], x, jnp.arange(x.shape[0]), index
    )
    if x.shape[1] > _DIFFERENCES_UP_TO:
        # There the search uses products of matrices, whose rounding is that of the points' norms.
        found = jax.lax.stop_gradient(measure(index))
        lost = _is_lost(searched_x, searched_y, found, x)
        again = lambda _: _search_by_differences(searched_x, searched_y, nearest)
        index = if_needed(lost, again, index)
    return measure(index)


# The limit of `divjax.core.pairwise`.
_DIFFERENCES_UP_TO = 8


def _search_units(
    x: Float[Array, "n d"], y: Float[Array, "m d"] | None
) -> tuple[Float[Array, "n d"], Float[Array, "m d"] | None]:
    """The samples with gradients stopped, in units of their typical extent.

    Division by a power of two is exact. Squares of ordinary distances then neither overflow nor
    underflow, whatever the units and however far single points are.
    """
    samples = jax.lax.stop_gradient((x,) if y is None else (x, y))
    # Medians: one outlier must not set the unit in which all others are compared.
    center = jnp.median(samples[0], axis=0)
    extents = [jnp.max(jnp.abs(sample - center), axis=1) for sample in samples]
    typical = jnp.max(jnp.stack([jnp.median(extent) for extent in extents]))
    largest = jnp.max(jnp.stack([jnp.max(extent) for extent in extents]))
    # More than half of the rows may coincide.
    typical = jnp.where(typical > 0, typical, largest)
    # A power of two, so that scaling rounds nothing, whose inverse is in range.
    limit = jnp.finfo(typical.dtype).maxexp - 8
    exponent = jnp.clip(jnp.frexp(typical)[1], -limit, limit)
    factor = jnp.ldexp(jnp.ones_like(typical), -exponent)
    scaled = [sample * factor for sample in samples]
    return scaled[0], None if y is None else scaled[1]


def _is_lost(
    x: Float[Array, "n d"],
    y: Float[Array, "m d"] | None,
    found: _Neighbors,
    original: Float[Array, "n d"],
) -> Bool[Array, ""]:
    """Whether a distance that was found is within the rounding of the points' norms."""
    columns = x if y is None else y
    center = jnp.mean(columns, axis=0)
    norms = jnp.sum(jnp.square(x - center), axis=1)
    norms = norms + jnp.max(jnp.sum(jnp.square(columns - center), axis=1))
    # The units cancel in a ratio of extents.
    unit = jnp.max(jnp.abs(original)) / jnp.max(jnp.abs(x))
    last = jnp.where(found.usable[:, -1], found.log_distances[:, -1], -jnp.inf)
    squared = jnp.square(jnp.exp(last) / unit)
    # Negated, so that NaN counts as lost.
    return jnp.any(~(squared > 64 * jnp.finfo(x.dtype).eps * norms))


def _search_by_differences(
    x: Float[Array, "n d"], y: Float[Array, "m d"] | None, nearest
) -> Int[Array, "n c"]:
    """The candidates by sums of squared differences, slower than products but exact to rounding."""
    columns = x if y is None else y

    # Feature by feature: a block of all differences would be d times as large.
    def block(rows: Float[Array, "b d"]) -> Int[Array, "b c"]:
        def add(total: Array, pair: tuple[Array, Array]) -> tuple[Array, None]:
            row, column = pair
            return total + jnp.square(row[:, None] - column), None

        start = jnp.zeros((rows.shape[0], columns.shape[0]), rows.dtype)
        return nearest(jax.lax.scan(add, start, (rows.T, columns.T))[0])

    return map_row_blocks(block, columns.shape[0], x)


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
    neighbors: _Neighbors,
    size: int,
    weights: Float[Array, " k"],
    dimension: Float[Array, ""],
    used: np.ndarray,
) -> _LogVolumes:
    """The sums over `neighbors` among `size` points, one neighbour more than weights."""
    k = weights.shape[0]
    logs = dimension * neighbors.log_distances
    # Without the neighbour of rank r, the (j + 1)-th neighbour takes each rank j ≥ r. One more
    # neighbour than is used takes the place of the one that is left out.
    steps = logs[:, 1:] - logs[:, :-1]
    from_rank = jnp.tril(jnp.broadcast_to(weights[:, None], (k, k)))
    rises = jax.lax.stop_gradient(matmul(steps, from_rank))
    return _LogVolumes(
        values=jnp.sum(weights * logs[:, :-1], axis=1),
        plain=jnp.mean(logs[:, :-1], axis=1),
        influence=jnp.zeros(size, logs.dtype).at[neighbors.index[:, :-1]].add(rises),
        valid=jnp.all(neighbors.usable[:, used], axis=1),
        zero=jnp.any(neighbors.zero[:, :-1], axis=1),
    )


class _Support(NamedTuple):
    """The set on which the samples lie, as inferred from neighbours.

    Attributes:
        dimension: D, at least 1.
        ties: the largest share of neighbours that agree in a feature that is not discrete.
        known: whether every feature is either continuous or discrete.
        same: whether D is the same for all sets that are compared, and for all of them together.
        flat: whether D is below the number of features.
    """

    dimension: Int[Array, ""]
    ties: Float[Array, ""]
    known: Bool[Array, ""]
    same: Bool[Array, ""]
    flat: Bool[Array, ""]


def _short_steps(y: Float[Array, "m d"]) -> Float[Array, "m d"]:
    """A step from each row to the nearest of eight others: within a cluster, if clusters exist."""
    steps = jnp.stack([jnp.roll(y, shift, axis=0) - y for shift in range(1, min(9, len(y)))])
    shortest = jnp.argmin(jnp.max(jnp.abs(steps), axis=2), axis=0)
    return jnp.take_along_axis(steps, shortest[None, :, None], axis=0)[0]


def _support(*steps: Float[Array, "_ d"], others: tuple[Float[Array, "_ d"], ...] = ()) -> _Support:
    """The support from steps to neighbours, and others within a sample of unknown neighbours."""
    steps, others = jax.lax.stop_gradient((steps, others))
    d, dtype = steps[0].shape[1], steps[0].dtype

    # A feature in which neighbours agree has no extent at their distance: a ball contains only one
    # of its levels, and the shares of levels enter through the counts.
    agree = jnp.stack([jnp.mean((step == 0).astype(dtype), axis=0) for step in steps])
    discrete_in_each = agree >= 1 - _TIES
    discrete = jnp.all(discrete_in_each, axis=0)
    same = jnp.all(discrete_in_each == discrete)
    ties = jnp.max(jnp.where(discrete, 0, agree))

    # Features that depend on others: the rank of the steps' second moments. Steps have unit length,
    # in units of each feature's median, so that no far row decides the rank.
    dimension = jnp.sum(~discrete)
    if min(step.shape[0] for step in (*steps, *others)) >= 2 * d > 2:
        medians = [jnp.median(jnp.abs(step), axis=0) for step in steps]
        unit = jnp.max(jnp.stack(medians), axis=0)
        factor = jnp.where(discrete | (unit == 0), 0, 1 / jnp.where(unit > 0, unit, 1))

        def moments(step: Float[Array, "_ d"]) -> Float[Array, "d d"]:
            step = step * factor
            largest = jnp.max(jnp.abs(step), axis=1, keepdims=True)
            step = step / jnp.where(largest > 0, largest, 1)
            return matmul(step.T, step) / step.shape[0]

        each = jnp.stack([moments(step) for step in (*steps, *others)])
        # In each sample and in all of them: if ranks differ, so do the supports.
        spectra = eigh(jnp.concatenate([each, jnp.sum(each, axis=0, keepdims=True)]))[0]
        floor = 30 * d * jnp.finfo(dtype).eps * spectra[:, -1:]
        ranks = jnp.sum(spectra > floor, axis=1)
        dimension = ranks[-1]
        same = same & jnp.all(ranks == dimension)
    same = same & (dimension > 0)
    return _Support(jnp.maximum(dimension, 1), ties, ties <= _TIES, same, dimension < d)


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
    support: _Support,
    confidence_level: ArrayLike,
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
        finite,
    )
    return normal_estimate(value, std_error, used, diagnostics, confidence_level)


def _check_neighbors(k: int, bias_order: int, **sizes: int) -> None:
    available = min(sizes.values())
    names = " and ".join(sizes)
    if available < 1:
        raise ValueError(f"{names} must have more rows: a row's neighbours are other rows.")
    if not isinstance(k, int) or not 1 <= k <= available:
        raise ValueError(
            f"k must be an integer from 1 to {available}, one less than there are neighbours in "
            f"{names}; got {k}."
        )
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
        (Efron–Stein). Half of the change that the weights make, against equal ones, is added to it
        in quadrature for the remaining bias. With `bias_order=0` the interval covers variance
        alone.

        The standard error and the interval are nan if they are unknown: more than one row in a
        hundred coincides with a neighbour (copied rows, in one sample or between both, which are
        left out of the value), or a column is neither continuous nor discrete at the neighbours'
        distance. The value is nan, too, if the samples lie on sets of different dimension or on
        separate sets (the true divergence is then infinite), or hold a value that is not finite.

    Raises:
        ValueError: if x or y is not a non-empty matrix, their numbers of features differ, k or
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
    near_x, near_y = _neighbors(x, None, k + 1), _neighbors(x, y, k + 1)
    # The steps to the k-th neighbours determine which features vary at that scale, and in how many
    # directions.
    to_x, to_y = x[near_x.index[:, k - 1]] - x, y[near_y.index[:, k - 1]] - x
    support = _support(to_x, to_y, others=(_short_steps(y),))

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
    return _estimate(log_ratios, plain, (from_x, from_y), valid, zero, support, confidence_level)


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
        covers variance alone, and not the bias, which dominates from about five dimensions on. nan
        as for `knn_kl`.

    Raises:
        ValueError: if x is not a non-empty matrix, or k or bias_order is out of range.

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
    near = _neighbors(x, None, k + 1)
    support = _support(x[near.index[:, k - 1]] - x)
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
    own = jnp.where(among.valid, log_ratios, _mean(log_ratios, among.valid))
    pseudo_values = (own - among.influence,)
    return _estimate(
        log_ratios, plain, pseudo_values, among.valid, among.zero, support, confidence_level
    )
