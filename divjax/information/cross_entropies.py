"""The cross-entropy of a density relative to another, from samples of both."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import digamma
from jaxtyping import Array, ArrayLike, Float

from divjax.core.checks import check_full_precision, check_probability
from divjax.core.numerics import nan_unless, safe_log
from divjax.core.pairwise import living_rows
from divjax.core.samples import Numbers, as_weights, centered_samples
from divjax.core.types import Estimate
from divjax.fdiv.neighbor_estimates import (
    check_neighbors,
    estimate_of_terms,
    influences,
    log_volumes,
    rank_weights_by_dimension,
    unless_repeated,
    used_rows,
)
from divjax.fdiv.neighbor_search import NearestPoints, beyond, nearest_points
from divjax.fdiv.support_dimension import short_steps, steps_to_points, support_from_steps
from divjax.information.paired_rows import masses_of

__all__ = ["cross_entropy"]

# A sum of squared shares is exact up to this multiple of epsilon.
_ROUNDING = 16


def cross_entropy(
    x: Float[Numbers, "n d"],
    y: Float[Numbers, "m d"],
    a: Float[Numbers, " n"] | None = None,
    b: Float[Numbers, " m"] | None = None,
    *,
    k: int = 10,
    bias_order: int = 1,
    confidence_level: ArrayLike = 0.95,
) -> Estimate:
    """The cross-entropy −∫ p log q of two densities from samples, by k-th neighbours.

    (d/n) Σ_i Σ_j w_j [log ν_j(i) − ψ(j)/d] + log V_d + ψ(m + 1), where ν_j(i) is the distance from
    x_i to its j-th neighbour in y, and V_d the unit ball's volume: the expectation of log Q(ball)
    is ψ(j) − ψ(m + 1), whatever the density q. The weights w over the ranks 1 … k sum to one and
    cancel terms of the bias of orders m^(−2l/(d + 2)), l = 1 … `bias_order`, as for `knn_kl`. With
    `bias_order=0` all weight is on the k-th neighbour, and the bias for Gaussians in two dimensions
    is about the standard error, n = 400.

    It is H(p) + KL(p‖q), and depends on the unit as `entropy` does. With `bias_order=0` and one k
    the difference to `entropy` is `divjax.fdiv.knn_kl`, up to the constant
    ψ(m + 1) − ψ(n) − log(m/(n − 1)): zero for m = n − 1, otherwise about 1/(2m) − 1/(2n). With a
    `bias_order` it is not: entropies have other weights, for a bias of another order.

    Weights of y are the mass in a ball: log(k/m) is replaced by the logarithm of the share of the k
    neighbours. This is exact where weights hardly vary within a ball, as importance weights of
    smooth densities, and has a bias of about a half k-th of their relative variance there.

    Time O(n m d), or less by cells in few dimensions; memory O((n + m) d + n k), with weights of y
    O((n + m) d + n k²), plus one block of the budget of `divjax.core.pairwise`. Differentiable in
    rows and weights. In one dimension the derivative is mostly noise, as for `knn_kl`.

    Args:
        x: samples of p.
        y: samples of q.
        a: weights of x, non-negative, with any sum, uniform by default. Rows of weight zero may
            hold anything.
        b: weights of y, likewise.
        k: the number of neighbours, static, 1 ≤ k ≤ m − 1.
        bias_order: the number of terms of the bias to cancel, static, below k.
        confidence_level: the level of the confidence interval.

    Returns:
        An `Estimate` in nats, the mean of −log q(x_i), which are the `log_ratios` of its
        `divjax.fdiv.NeighborDiagnostics`. The standard error is the jackknife's over both samples,
        conservative (Efron–Stein). Half of the change that the weights of the ranks make, against
        equal ones, is added to it in quadrature, which covers the bias up to about five features;
        not where p has its mass in the tails of q, of which y says little.

        −∞ if both samples lie on one set of lower dimension, where q has no density (a column is
        constant, discrete, or a linear function of others). NaN if they lie on different sets, or a
        row with weight is not finite. The interval is NaN if more than one x in a hundred coincides
        with one of its neighbours, and is left out of the value, if as large a share of successive
        neighbours coincide with each other (copies within y), if a column is neither continuous nor
        discrete at the neighbours' distance, or if the effective number of rows of y, 1/Σ b² for
        weights that sum to one, is below k.

    Raises:
        ValueError: if x or y is empty or not a matrix, their numbers of features differ, weights do
            not fit, or k or bias_order is out of range.

    Example:
        >>> import jax
        >>> x, y = jax.random.normal(jax.random.key(0), (2, 1000, 1))
        >>> estimate = cross_entropy(x + 1, y)  # ½ log 2πe + ½
        >>> bool(abs(estimate.value - 1.9189) < 3 * estimate.std_error)
        True

    References:
        Leonenko, Pronzato, Savani 2008: the estimator. Wang, Kulkarni, Verdú 2009: in the
        divergence. Zhao, Lai 2020: the bias's order.
    """
    _, x, y = centered_samples({"x": a, "y": b}, x=x, y=y)
    check_full_precision("x", x)
    check_neighbors(k, bias_order, y=y.shape[0] - 1)
    check_probability(confidence_level=confidence_level)
    a = None if a is None else as_weights("a", a, x.shape[0], x.dtype)
    b = None if b is None else as_weights("b", b, y.shape[0], x.dtype)
    return _cross_entropy(x, y, a, b, confidence_level, k=k, bias_order=bias_order)


@functools.partial(jax.jit, static_argnames=("k", "bias_order"))
def _cross_entropy(
    x: Float[Array, "n d"],
    y: Float[Array, "m d"],
    a: Float[Array, " n"] | None,
    b: Float[Array, " m"] | None,
    confidence_level: ArrayLike,
    *,
    k: int,
    bias_order: int,
) -> Estimate:
    """`cross_entropy` after its checks."""
    (n, d), m = x.shape, y.shape[0]
    masses_x, masses_y = masses_of(a, n, x.dtype), masses_of(b, m, x.dtype)
    if a is not None:
        x = living_rows(x, a)
    living = y
    if b is not None:
        living = living_rows(y, b)
        # Rows of y without weight are found after all others.
        y = jnp.where(b[:, None] > 0, living, beyond(x, living))
    near = nearest_points(x, y, k + 1)
    if b is not None:
        # They are found where there are fewer rows with weight than neighbours.
        near = near._replace(usable=near.usable & (b > 0)[near.index])
    # The steps to the neighbours, and those within y, determine the dimension.
    steps = steps_to_points(x, y, near.index[:, k - 1])
    num_x = n if a is None else jnp.sum(a > 0)
    num_y = m if b is None else jnp.sum(b > 0)
    support = support_from_steps(
        steps, others=(short_steps(living),), num_rows=jnp.minimum(num_x, num_y)
    )

    # Those of the highest dimension: on a set of a lower one the value is −∞.
    weights = rank_weights_by_dimension(k, d, bias_order, extra=2)[-1]
    used = np.flatnonzero(weights)
    weights = jnp.asarray(weights, x.dtype)
    volumes = log_volumes(near, weights, jnp.asarray(d, x.dtype), used)
    # E log Q(ball) = ψ(j) − ψ(m + 1) for the j-th of m neighbours, whatever the density.
    ranks = digamma(jnp.arange(1, k + 1, dtype=x.dtype))
    log_volume = 0.5 * d * math.log(math.pi) - math.lgamma(0.5 * d + 1)
    constant = log_volume + digamma(jnp.asarray(num_y + 1, x.dtype))
    finite = jnp.isfinite(x).all() & jnp.isfinite(living).all()
    constant = constant + nan_unless(finite & support.same & (num_y > k), jnp.zeros((), x.dtype))
    # On a set of lower dimension there is no density, and its logarithm is infinite.
    constant = constant + jnp.where(support.flat, -jnp.inf, 0)
    terms = volumes.values + constant - weights @ ranks
    plain = volumes.plain + constant - jnp.mean(ranks)
    rises = volumes.rises
    if b is not None:
        shares = _log_shares(near, masses_y, jnp.asarray(num_y, x.dtype))
        terms, plain = terms - shares @ weights, plain - jnp.mean(shares, axis=1)
        rises = rises + _rises_of_shares(near, masses_y, weights)

    rows = used_rows(volumes.valid, volumes.zero, None if a is None else masses_x)
    rows = unless_repeated(rows, near, y, k)
    # Mass on fewer rows than neighbours is a share of the whole, and shares tell no density.
    spread = jnp.sum(jnp.square(masses_y)) * k <= 1 + _ROUNDING * jnp.finfo(x.dtype).eps
    rows = rows._replace(regular=rows.regular & spread)

    # To leave out x_i removes its term, to leave out y_j moves the terms whose neighbour it was,
    # and with weights raises the shares of all others.
    of_x = masses_x * jnp.where(rows.valid, terms - rows.mean(terms), 0)
    of_y = influences(near, masses_x[:, None] * rises, m)
    if b is not None:
        # Without y_j every other share is divided by 1 − w_j.
        of_y = of_y + jnp.log1p(-jnp.minimum(masses_y, 0.5))
    variance = _sum_of_squares(of_x, masses_x) + _sum_of_squares(of_y, masses_y)
    plain = plain if bias_order else terms
    return estimate_of_terms(terms, plain, variance, rows, support, confidence_level)


def _log_shares(
    near: NearestPoints, masses: Float[Array, " m"], num_rows: Float[Array, ""]
) -> Float[Array, "n k"]:
    """The log share of the first j neighbours, in units of j rows of equal mass, j = 1 … k."""
    sums = jnp.cumsum(masses[near.index[:, :-1]], axis=1)
    return safe_log(sums * num_rows / jnp.arange(1, sums.shape[1] + 1, dtype=sums.dtype))


def _rises_of_shares(
    near: NearestPoints, masses: Float[Array, " m"], weights: Float[Array, " k"]
) -> Float[Array, "n k"]:
    """The increase of −Σ_j w_j log share_j if the neighbour of each rank is left out."""
    of_ranks = masses[near.index]
    sums = jnp.cumsum(of_ranks, axis=1)
    # With the neighbour of rank r ≤ j left out, the j first are the old j + 1 without it.
    without = sums[:, 1:, None] - of_ranks[:, None, :-1]
    k = weights.shape[0]
    later = jnp.tril(jnp.ones((k, k), bool)) & (without > 0)
    change = safe_log(sums[:, :-1, None]) - safe_log(jnp.where(later, without, 1))
    return jax.lax.stop_gradient(jnp.einsum("j,njr->nr", weights, jnp.where(later, change, 0)))


def _sum_of_squares(changes: Float[Array, " n"], masses: Float[Array, " n"]) -> Float[Array, ""]:
    """The jackknife's variance from the changes of a value if each row with mass is left out."""
    counted = (masses > 0).astype(changes.dtype)
    count = jnp.sum(counted)
    mean = jnp.sum(counted * changes) / jnp.maximum(count, 1)
    squares = jnp.sum(counted * jnp.square(changes - mean))
    return squares * count / jnp.maximum(count - 1, 1)
