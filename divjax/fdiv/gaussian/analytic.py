"""KL, Rényi's, Bhattacharyya's and Hellinger's divergences between Gaussians in closed form.

The Jensen–Shannon divergence has none, and is bounded by two of them.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from divjax.core.arguments import as_leaves
from divjax.core.checks import check_nonnegative, check_scalar
from divjax.core.normal import Normal
from divjax.core.numerics import nan_unless
from divjax.core.types import Interval
from divjax.fdiv.gaussian.whitening import Whitened, as_arguments, whiten
from divjax.fdiv.special import entropy_deficit, exp_remainder, log1p_over, log_mixture

__all__ = ["bhattacharyya", "js_bounds", "kl", "renyi", "squared_hellinger", "whitened_kl"]


@jax.jit
@jax.default_matmul_precision("highest")
def _kl_between(p: Normal, q: Normal) -> Float[Array, ""]:
    return whitened_kl(whiten(p, q))


def whitened_kl(whitened: Whitened) -> Float[Array, ""]:
    """½ [Σ_i (M_ii² − 1 − log M_ii²) + Σ_{i>j} M_ij² + |z|²], no term of it negative."""
    terms = jnp.sum(exp_remainder(whitened.log_variances)) + jnp.sum(whitened.shift**2)
    if whitened.factor.ndim == 2:
        terms = terms + jnp.sum(jnp.tril(whitened.factor, -1) ** 2)
    return whitened.finish(terms / 2)


def kl(p: Normal, q: Normal) -> Float[Array, ""]:
    """KL(p‖q) = ½ [tr(C_q⁻¹ C_p) − d + log(det C_q/det C_p) + (m_p − m_q)ᵀ C_q⁻¹ (m_p − m_q)].

    Computed as ½ [Σ_i (M_ii² − 1 − log M_ii²) + Σ_{i>j} M_ij² + |z|²], a sum of non-negative terms,
    so that small divergences are accurate and never negative. Here M = L_q⁻¹ L_p and
    z = L_q⁻¹ (m_p − m_q), with Cholesky factors L of the covariances.

    Args:
        p: mean "d", and covariance "d" or "d d".
        q: mean and covariance of the same dimension.

    Returns:
        The divergence in nats, +∞ if one covariance is singular.

    Raises:
        ValueError: if the shapes do not fit, or a concrete covariance is not symmetric.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax import Normal
        >>> p, q = Normal(jnp.ones(2), jnp.ones(2)), Normal(jnp.zeros(2), 2 * jnp.eye(2))
        >>> float(kl(p, q))  # ½ (2·½ − 2 + 2 log 2 + 1)
        0.6931

    References:
        Kullback 1959, chapter 9.
    """
    return _kl_between(*as_arguments(p, q))


def renyi(p: Normal, q: Normal, alpha: ArrayLike) -> Float[Array, ""]:
    """The Rényi divergence, ½ α δᵀ C⁻¹ δ − log(det C/(det C_p^{1−α} det C_q^α))/(2(α − 1)).

    Here δ = m_p − m_q and C = αC_q + (1 − α)C_p. Smooth in α, with KL(p‖q) at α = 1.

    Args:
        p: mean "d", and covariance "d" or "d d".
        q: mean and covariance of the same dimension.
        alpha: the order α ≥ 0. A negative array gives NaN.

    Returns:
        The divergence in nats, +∞ if C is not positive definite, which is possible for α > 1, or if
        one covariance is singular. Otherwise 0 for α = 0, as both have mass everywhere.

    Raises:
        ValueError: if the shapes do not fit, a concrete covariance is not symmetric, or alpha is a
            negative Python number.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax import Normal
        >>> p, q = (Normal(mean * jnp.ones(1), jnp.ones(1)) for mean in (2.0, 0.0))
        >>> float(renyi(p, q, 0.5)), float(renyi(p, q, 1.0))
        (1.0, 2.0)

    References:
        Gil, Alajaji, Linder 2013, table 2.
    """
    check_scalar(alpha=alpha)
    check_nonnegative(alpha=alpha)
    return _renyi_between(*as_arguments(p, q), *as_leaves(alpha=alpha))


@jax.jit
@jax.default_matmul_precision("highest")
def _renyi_between(p: Normal, q: Normal, alpha: ArrayLike) -> Float[Array, ""]:
    return _renyi(whiten(p, q), alpha)


def _renyi(whitened: Whitened, alpha: ArrayLike) -> Float[Array, ""]:
    factor, shift = whitened.factor, whitened.shift
    alpha = jnp.asarray(alpha, factor.dtype)
    alpha = nan_unless(alpha >= 0, alpha)
    complement = 1 - alpha
    # In q's coordinates C = I + cX with c = 1 − α and X = M Mᵀ − I. Eliminating a row of I + cX
    # leaves another matrix of this form, so that log det(I + cX)/c needs no division by c.
    if factor.ndim == 1:
        excess = jnp.expm1(whitened.log_variances)
        (logs, squares), definite = _pivot(excess, shift, complement)
        logs, squares, definite = jnp.sum(logs), jnp.sum(squares), jnp.all(definite)
        # The determinants enter as log det(I + cX)/c − log det(I + X).
        determinants = logs - jnp.sum(whitened.log_variances)
    else:
        excess = factor @ factor.T - jnp.eye(shift.size, dtype=factor.dtype)
        far = jnp.max(jnp.abs(excess)) > _NEAR
        logs, squares, deficit, definite = _eliminated(excess, shift, complement, ~far)
        determinants = jnp.where(far, logs - jnp.sum(whitened.log_variances), deficit)
    # Unless C is positive definite the integral of p^α q^{1−α} diverges.
    value = (determinants + alpha * squares) / 2
    return whitened.finish(nan_unless(alpha >= 0, jnp.where(definite, value, jnp.inf)))


# The largest size of X at which log det(I + cX)/c and log det(I + X) nearly agree, so that their
# difference is summed pivot by pivot.
_NEAR = 0.1


def _eliminated(
    excess: Float[Array, "d d"], shift: Float[Array, " d"], complement: Array, near: Array
) -> tuple[Array, Array, Array, Array]:
    """Log det(I + cX)/c, zᵀ(I + cX)⁻¹z, log det(I + cX)/c − log det(I + X), whether I + cX > 0.

    The third, of second order in X, is for small X alone. The difference between the parts
    eliminated from I + X and from I + cX is carried along, so that X's rounding, of first order,
    cancels.
    """
    size = shift.size
    zero = jnp.zeros((), excess.dtype)

    def eliminate(row: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        excess, own, gap, shift, logs, squares, deficit, definite = carry
        (log, square), positive = _pivot(excess[row, row], shift[row], complement)
        # After a pivot that is not positive, later values are meaningless and must not become NaN.
        pivot = jnp.where(positive, 1 + complement * excess[row, row], 1)
        own_excess = jnp.where(near, own[row, row], 0)
        later = jnp.arange(size) > row
        column = jnp.where(later & positive, excess[:, row], 0)
        own_column = jnp.where(later & near, own[:, row], 0)
        # With pivot 1 + cx and column v below it, the remaining matrix is I + c(X − (c/pivot) vvᵀ).
        taken = complement / pivot * jnp.outer(column, column)
        own_taken = jnp.outer(own_column, own_column) / (1 + own_excess)
        # The difference of first order is in `gap`, and is left out of both logarithms.
        curvature = (log - excess[row, row]) - (jnp.log1p(own_excess) - own_excess)
        return (
            excess - taken,
            own - own_taken,
            gap - (taken - own_taken),
            shift - complement / pivot * column * shift[row],
            logs + log,
            squares + square,
            deficit + curvature + gap[row, row],
            definite & positive,
        )

    carry = (excess, excess, jnp.zeros_like(excess), shift, zero, zero, zero, jnp.array(True))
    _, _, _, _, logs, squares, deficit, definite = jax.lax.fori_loop(0, size, eliminate, carry)
    return logs, squares, deficit, definite


def _pivot(excess: Array, shift: Array, complement: Array) -> tuple[tuple[Array, Array], Array]:
    """log(1 + cx)/c and z²/(1 + cx) at a pivot, and whether the pivot is positive."""
    positive = 1 + complement * excess > 0
    safe = jnp.where(positive, excess, 0)
    return (log1p_over(safe, complement), shift**2 / (1 + complement * safe)), positive


def bhattacharyya(p: Normal, q: Normal) -> Float[Array, ""]:
    """The Bhattacharyya distance −log ∫√(pq), half of the Rényi divergence of order ½.

    Args:
        p: mean "d", and covariance "d" or "d d".
        q: mean and covariance of the same dimension.

    Returns:
        The distance in nats.

    Raises:
        ValueError: if the shapes do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax import Normal
        >>> p, q = (Normal(mean * jnp.ones(1), jnp.ones(1)) for mean in (2.0, 0.0))
        >>> float(bhattacharyya(p, q))
        0.5

    References:
        Kailath 1967.
    """
    return _bhattacharyya(*as_arguments(p, q))


@jax.jit
@jax.default_matmul_precision("highest")
def _bhattacharyya(p: Normal, q: Normal) -> Float[Array, ""]:
    return _renyi(whiten(p, q), 0.5) / 2


def squared_hellinger(p: Normal, q: Normal) -> Float[Array, ""]:
    """The squared Hellinger distance 1 − ∫√(pq) = ½ ∫(√p − √q)², at most 1.

    Args:
        p: mean "d", and covariance "d" or "d d".
        q: mean and covariance of the same dimension.

    Raises:
        ValueError: if the shapes do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax import Normal
        >>> p, q = (Normal(mean * jnp.ones(1), jnp.ones(1)) for mean in (2.0, 0.0))
        >>> float(squared_hellinger(p, q))  # 1 − e^{−½}
        0.3935
    """
    return _squared_hellinger(*as_arguments(p, q))


@jax.jit
def _squared_hellinger(p: Normal, q: Normal) -> Float[Array, ""]:
    return -jnp.expm1(-_bhattacharyya(p, q))


def js_bounds(p: Normal, q: Normal) -> Interval:
    """Bounds on the Jensen–Shannon divergence, which has no closed form between Gaussians.

    With the coefficient B = ∫√(pq) and h the binary entropy in nats,

        (1 − B) log 2 ≤ JS ≤ min(log 2 − h(½ − ½√(1 − B²)),
                                 ½ log(2/(1 + e^{−KL(p‖q)})) + ½ log(2/(1 + e^{−KL(q‖p)}))).

    Let η be the posterior probability of p under equal priors. Its binary entropy, as a function of
    s = 2√(η(1 − η)), is convex and at most s log 2, and the mean of s is B. This gives the lower
    and the first upper bound, the best that B implies.
    Jensen's inequality on log(½ + ½ e^{−u}), convex in the log ratio u, gives the second. Both are
    below log 2, and the second is below a quarter of Jeffreys' divergence.

    Args:
        p: mean "d", and covariance "d" or "d d".
        q: mean and covariance of the same dimension.

    Returns:
        Both bounds in nats.

    Raises:
        ValueError: if the shapes do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax import Normal
        >>> p, q = (Normal(mean * jnp.ones(1), jnp.ones(1)) for mean in (2.0, 0.0))
        >>> [round(float(bound), 3) for bound in js_bounds(p, q)]  # JS is 0.337
        [0.273, 0.363]

    References:
        Lin 1991, theorems 2 and 8; Crooks 2008, Jensen's inequality.
    """
    return _js_bounds(*as_arguments(p, q))


@jax.jit
def _js_bounds(p: Normal, q: Normal) -> Interval:
    distance = _bhattacharyya(p, q)
    divergences = jnp.stack([_kl_between(p, q), _kl_between(q, p)])
    # 1 − B² by expm1, which is accurate if p and q are close.
    of_coefficient = entropy_deficit(-jnp.expm1(-2 * jnp.maximum(distance, 0)))
    # ½ log(2/(1 + e^{−KL})) of both directions, as −½ log(½ + ½ e^{−KL}).
    of_divergences = -jnp.mean(log_mixture(-divergences, 0.5))
    return Interval(
        -jnp.expm1(-distance) * jnp.log(jnp.asarray(2, distance.dtype)),
        jnp.minimum(of_coefficient, of_divergences),
    )
