"""The differential entropy from the distances to nearest neighbours."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import digamma
from jaxtyping import Array, ArrayLike, Float

from divjax.core.checks import check_count, check_full_precision
from divjax.core.numerics import nan_unless
from divjax.core.pytrees import pytree, static
from divjax.core.sharding import in_auto_axes
from divjax.core.types import Estimate
from divjax.fdiv.neighbor_estimates import (
    check_neighbors,
    estimate_of_terms,
    influences,
    log_volumes,
    rank_weights,
    used_rows,
)
from divjax.fdiv.neighbor_search import nearest_points
from divjax.fdiv.support_dimension import steps_to_points, support_from_steps

__all__ = ["KozachenkoLeonenko", "neighbor_entropy"]


@pytree
class KozachenkoLeonenko:
    """The entropy by k-th neighbours, for `entropy`.

    (d/n) Σ_i log ρ_k(i) + log V_d + ψ(n) − ψ(k), where ρ_k(i) is the distance from x_i to its k-th
    neighbour among the other rows, and V_d the unit ball's volume. With `bias_order` L ≥ 1 the
    logarithm is a weighted sum over the neighbours 1 … k, whose weights cancel the first L terms of
    the bias, of orders n^(−2l/d).

    The value is −∞ if the samples lie on a set of lower dimension (a column is constant, discrete,
    or a linear function of others). The standard error is the jackknife's over the sample, exact
    for leaving out each point in turn and conservative (Efron–Stein). Half of the change that the
    weights make, against equal ones, is added to it in quadrature. Without `bias_order` it covers
    variance alone, and not the bias, which dominates from about five dimensions on. NaN as for
    `divjax.fdiv.knn_kl`.

    Time O(n² d), or less by cells in few dimensions; memory O(n (d + k)) plus one block of the
    budget of `divjax.core.pairwise`. Differentiable if neighbours are distinct.

    Attributes:
        k: the rank of the neighbour, static, 1 ≤ k ≤ n − 2.
        bias_order: the number of terms of the bias to cancel, static, below k.

    Example:
        >>> import jax
        >>> from divjax import information
        >>> x = jax.random.uniform(jax.random.key(0), (1000, 1))
        >>> estimate = information.entropy(x, method=KozachenkoLeonenko(k=5))
        >>> bool(abs(estimate.value) < 3 * estimate.std_error)  # the uniform density's is 0
        True

    References:
        Kozachenko, Leonenko 1987: k = 1. Berrett, Samworth, Yuan 2019: the weights.
    """

    k: int = static(default=5)
    bias_order: int = static(default=0)

    def __post_init__(self):
        check_count(1, k=self.k)
        check_count(0, bias_order=self.bias_order)

    def entropy(self, x: Float[Array, "n d"], confidence_level: ArrayLike) -> Estimate:
        """The estimate, with `divjax.fdiv.NeighborDiagnostics`."""
        check_full_precision("x", x)
        check_neighbors(self.k, self.bias_order, x=x.shape[0] - 2)
        return neighbor_entropy(x, confidence_level, k=self.k, bias_order=self.bias_order)


@functools.partial(jax.jit, static_argnames=("k", "bias_order"))
@in_auto_axes
def neighbor_entropy(
    x: Float[Array, "n d"], confidence_level: ArrayLike, *, k: int, bias_order: int
) -> Estimate:
    """The estimate of `KozachenkoLeonenko`, with `divjax.fdiv.NeighborDiagnostics`."""
    n, d = x.shape
    # One neighbour more, which takes the place of one that the jackknife leaves out.
    near = nearest_points(x, None, k + 1)
    support = support_from_steps(steps_to_points(x, x, near.index[:, k - 1]))
    weights = rank_weights(k, [2 * l / d for l in range(1, bias_order + 1)])
    used = np.flatnonzero(weights)
    among = log_volumes(near, jnp.asarray(weights, x.dtype), jnp.asarray(d, x.dtype), used)
    log_volume = 0.5 * d * math.log(math.pi) - math.lgamma(0.5 * d + 1)
    # E log P(ball) = ψ(j) − ψ(n) for the j-th among n − 1 others, whatever the density.
    ranks = digamma(jnp.arange(1, k + 1, dtype=x.dtype))
    constant = log_volume + digamma(jnp.asarray(n, x.dtype))
    constant = constant + nan_unless(jnp.isfinite(x).all(), jnp.zeros((), x.dtype))
    # On a set of lower dimension there is no density, and the entropy is −∞.
    constant = constant + jnp.where(support.flat, -jnp.inf, 0)
    log_ratios = among.values + constant - ranks @ jnp.asarray(weights, x.dtype)
    plain = among.plain + constant - jnp.mean(ranks) if bias_order else log_ratios
    rows = used_rows(among.valid, among.zero)
    # A row without a log ratio takes the mean, so that only its influence on others counts.
    own = jnp.where(rows.valid, log_ratios, rows.mean(log_ratios))
    variance = jnp.var(own - influences(near, among.rises, n), ddof=1) / n
    return estimate_of_terms(log_ratios, plain, variance, rows, support, confidence_level)
