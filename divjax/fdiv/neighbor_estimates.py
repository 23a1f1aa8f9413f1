"""What estimates from nearest neighbours share: ranks' weights, log-volumes, ties and errors."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from divjax.core.numerics import matmul, nan_unless
from divjax.core.pairwise import spread_places
from divjax.core.pytrees import pytree
from divjax.core.sharding import shared_by_all
from divjax.core.types import Estimate, normal_estimate, summary
from divjax.fdiv.neighbor_search import NearestPoints
from divjax.fdiv.support_dimension import ROWS_OF_SUPPORT, Support

__all__ = [
    "LogVolumes",
    "NeighborDiagnostics",
    "UsedRows",
    "check_neighbors",
    "estimate_of_terms",
    "estimate_with_diagnostics",
    "extrapolation_factor",
    "influences",
    "log_volumes",
    "rank_weights",
    "rank_weights_by_dimension",
    "unless_repeated",
    "used_rows",
]

# The share of rows with a coinciding neighbour that is attributed to chance (rounding to float32
# makes a few in one dimension).
_COPIES = 0.01


@pytree
class NeighborDiagnostics:
    """Diagnostics of an estimate from nearest neighbours.

    Attributes:
        log_ratios: log p(x_i)/q(x_i) for each x_i (for the entropy, −log p(x_i), for the
            cross-entropy −log q(x_i)), NaN if the row is left out.
        zero_distances: the number of x_i that coincide with one of their neighbours up to the k-th:
            copied or quantised rows. If they exceed one in a hundred they are left out of the
            value, which then does not estimate a divergence between densities.
        dimension: the dimension D of the set on which the samples lie: the number of features minus
            those that are constant, discrete, or a linear function of others. Of larger samples
            16 384 rows, spread over all, show it.
        ties: the largest share of neighbours that agree in a feature, over the features that are
            not discrete throughout. For a continuous feature it is 0.
        beyond_log_n: whether the value, an estimate of a divergence of p from q, exceeds the
            logarithm of the number of samples of q, as between samples of disjoint supports, for
            which the truth is infinite. The estimate then rests on distances from rows of p to an
            edge of q, where nothing tells how thin its density is. False for entropies.
        finite: whether every log-ratio is finite, neither sample holds copies, and the interval is
            defined.
    """

    log_ratios: Float[Array, " n"]
    zero_distances: Int[Array, ""]
    dimension: Int[Array, ""]
    ties: Float[Array, ""]
    beyond_log_n: Bool[Array, ""]
    finite: Bool[Array, ""]

    __repr__ = summary


class LogVolumes(NamedTuple):
    """The sums D Σ_j w_j log(distance to the j-th neighbour), their sensitivities and validity.

    Attributes:
        values: the sum for each x.
        plain: the sum for each x with equal weights.
        rises: for each of its k neighbours, the increase of the sum if that one is left out.
        valid: whether all distances of non-zero weight are positive and finite.
        zero: whether a distance up to the k-th is zero.
    """

    values: Float[Array, " n"]
    plain: Float[Array, " n"]
    rises: Float[Array, "n k"]
    valid: Bool[Array, " n"]
    zero: Bool[Array, " n"]


def log_volumes(
    neighbors: NearestPoints,
    weights: Float[Array, " k"],
    dimension: Float[Array, ""],
    used: np.ndarray,
) -> LogVolumes:
    """The sums over `neighbors`, one neighbour more than weights, of which `used` are not zero."""
    k = weights.shape[0]
    logs = dimension * neighbors.log_distances
    # If the neighbour of rank r is left out, the (j + 1)-th neighbour takes rank j for each j ≥ r.
    # The neighbour after the last weight's is needed for this alone.
    steps = logs[:, 1:] - logs[:, :-1]
    from_rank = jnp.tril(jnp.broadcast_to(weights[:, None], (k, k)))
    return LogVolumes(
        values=jnp.sum(weights * logs[:, :-1], axis=1),
        plain=jnp.mean(logs[:, :-1], axis=1),
        # These enter the standard error alone, which is not differentiated.
        rises=jax.lax.stop_gradient(matmul(steps, from_rank)),
        # Ranks of weight zero need no distance.
        valid=jnp.all(neighbors.usable[:, used], axis=1),
        zero=jnp.any(neighbors.zero[:, :-1], axis=1),
    )


def influences(
    neighbors: NearestPoints, rises: Float[Array, "n k"], size: int
) -> Float[Array, " m"]:
    """For each of `size` points, the sum of the rises of all rows whose neighbour it is."""
    return jnp.zeros(size, rises.dtype).at[neighbors.index[:, : rises.shape[1]]].add(rises)


def rank_weights(k: int, exponents: list[float]) -> np.ndarray:
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


def rank_weights_by_dimension(k: int, d: int, bias_order: int, extra: int) -> np.ndarray:
    """The weights "d k" for each dimension D up to d, with exponents 2l/(D + extra), l ≤ L."""
    orders = range(1, bias_order + 1)
    return np.stack(
        [rank_weights(k, [2 * l / (D + extra) for l in orders]) for D in range(1, d + 1)]
    )


def extrapolation_factor(k: int, larger: int, num_features: Float[Array, ""]) -> Float[Array, ""]:
    """The bias at k neighbours as a multiple of what it grows by to a larger number of them.

    For a bias in proportion to the extent (k/n)^(1/d) of a neighbourhood, as at the edges of a
    support, 1/((k′/k)^(1/d) − 1), with d the number of features that vary. For a smooth density it
    is in proportion to a square of it, and this is an upper bound. Zero if k cannot be increased.

    Example:
        >>> round(float(extrapolation_factor(3, 6, jnp.float32(2))), 3)
        2.414
    """
    if larger <= k:
        return jnp.zeros_like(num_features)
    return 1 / jnp.expm1(math.log(larger / k) / jnp.maximum(num_features, 1))


class UsedRows(NamedTuple):
    """The rows whose terms count.

    Attributes:
        valid: whether a row counts.
        masses: the rows' masses, None if they are equal.
        num_zero: the number of rows that coincide with a neighbour.
        regular: whether hardly any row is left out, and copies are no more than chance makes.
    """

    valid: Bool[Array, " n"]
    masses: Float[Array, " n"] | None
    num_zero: Int[Array, ""]
    regular: Bool[Array, ""]

    def mean(self, values: Float[Array, " n"]) -> Float[Array, ""]:
        """The mean over the rows that count, 0 if there are none."""
        shares = self.valid if self.masses is None else jnp.where(self.valid, self.masses, 0)
        shares = shares.astype(values.dtype)
        total = jnp.sum(shares)
        terms = shares * jnp.where(self.valid, values, 0)
        return jnp.sum(terms) / jnp.where(total > 0, total, 1)

    @property
    def effective_sample_size(self) -> Float[Array, ""] | Int[Array, ""]:
        """Their number, for masses the equivalent number of equal ones."""
        if self.masses is None:
            return jnp.sum(self.valid)
        shares = jnp.where(self.valid, self.masses, 0)
        return jnp.sum(shares) ** 2 / jnp.sum(shares**2)


def used_rows(
    valid: Bool[Array, " n"], zero: Bool[Array, " n"], masses: Float[Array, " n"] | None = None
) -> UsedRows:
    """The valid rows, without those that coincide with a neighbour if they are not by chance.

    Densities have no copies.
    """
    counted = jnp.ones(valid.shape, bool) if masses is None else masses > 0
    valid, zero = valid & counted, zero & counted
    # In counts for equal rows: shares of them would be rounded.
    share = lambda rows: jnp.sum(rows) if masses is None else jnp.sum(jnp.where(rows, masses, 0))
    most = math.floor(_COPIES * valid.shape[0]) if masses is None else _COPIES
    copied = share(zero) > most
    valid = valid & ~(copied & zero)
    regular = ~copied & (share(counted & ~valid) <= most)
    return UsedRows(valid, masses, jnp.sum(zero), regular)


def unless_repeated(
    rows: UsedRows, neighbors: NearestPoints, points: Float[Array, "m d"], k: int
) -> UsedRows:
    """The rows, irregular if many of the k nearest points coincide with each other.

    Copied points are as far from a row as each other: no distance is zero, and yet a ball holds
    several of them at once, whose number is then no estimate of the density.
    """
    some, ranks = spread_places(len(neighbors.index), ROWS_OF_SUPPORT), slice(max(k, 2))
    index = shared_by_all(neighbors.index[some, ranks])
    usable = neighbors.usable[some, ranks]
    masses = None if rows.masses is None else rows.masses[some]
    counted = rows._replace(valid=rows.valid[some], masses=masses)

    # Feature by feature: all neighbours' features at once would be n × k × d numbers.
    def agree(same: Bool[Array, "n j"], feature: Array) -> tuple[Bool[Array, "n j"], None]:
        values = feature[index]
        return same & (values[:, 1:] == values[:, :-1]), None

    features = jax.lax.stop_gradient(points).T
    copied, _ = jax.lax.scan(agree, usable[:, 1:] & usable[:, :-1], features)
    share = counted.mean(jnp.mean(copied.astype(points.dtype), axis=1))
    return rows._replace(regular=rows.regular & (share <= _COPIES))


def estimate_of_terms(
    terms: Float[Array, " n"],
    plain: Float[Array, " n"],
    variance: Float[Array, ""],
    rows: UsedRows,
    support: Support,
    confidence_level: ArrayLike,
    largest: float = math.inf,
) -> Estimate:
    """The mean of the rows' terms, with errors from the jackknife and the bias correction.

    `plain` are the terms with equal weights of the ranks. A value above `largest` is flagged.
    """
    mean = rows.mean(terms)
    value = nan_unless(jnp.any(rows.valid), mean)
    # The correction estimates how large the bias was, not how much of it is left.
    correction = jax.lax.stop_gradient(mean - rows.mean(plain))
    variance = jax.lax.stop_gradient(variance) + jnp.square(correction / 2)
    return estimate_with_diagnostics(
        value, variance, terms, rows, support, confidence_level, largest
    )


def estimate_with_diagnostics(
    value: Float[Array, ""],
    variance: Float[Array, ""],
    terms: Float[Array, " n"],
    rows: UsedRows,
    support: Support,
    confidence_level: ArrayLike,
    largest: float = math.inf,
) -> Estimate:
    """The value with its `NeighborDiagnostics`; without an interval if that is not known."""
    # Of copies, or on a set of unknown dimension, the value may be of use, but not its error.
    finite = rows.regular & support.known & jnp.isfinite(value)
    std_error = nan_unless(finite, jnp.sqrt(variance))
    diagnostics = NeighborDiagnostics(
        jnp.where(rows.valid, terms, jnp.nan),
        rows.num_zero,
        support.dimension,
        support.ties,
        value > largest,
        finite,
    )
    size = rows.effective_sample_size
    return normal_estimate(value, std_error, size, diagnostics, confidence_level)


def check_neighbors(k: int, bias_order: int, **sizes: int) -> None:
    """Raise `ValueError` unless k is from 1 to the least size, and `bias_order` below k."""
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
