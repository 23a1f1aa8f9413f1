"""Divergences within an exponential family, from its log-partition function alone.

A family p_η(x) = h(x) exp(⟨η, T(x)⟩ − A(η)) is given by the convex function A: KL is its Bregman
divergence, and Rényi's and Bhattacharyya's divergences are its Jensen gaps. A may be any JAX
function, so a family that is missing from `named_families` needs one line.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float

from divjax.core.arguments import as_leaves
from divjax.core.checks import check_nonnegative, check_scalar, check_scalar_output
from divjax.core.numerics import nan_unless
from divjax.core.pytrees import as_traced
from divjax.fdiv.gap_quadrature import (
    ROUNDINGS,
    RULES,
    Line,
    gap_by_curvature,
    more_accurate,
    slope_gap,
)
from divjax.fdiv.named_families import (
    BERNOULLI,
    BETA,
    DIRICHLET,
    EXPONENTIAL,
    GAMMA,
    NORMAL,
    POISSON,
    Family,
    LogPartition,
    Natural,
)
from divjax.fdiv.special import as_floats

__all__ = [
    "BERNOULLI",
    "BETA",
    "DIRICHLET",
    "EXPONENTIAL",
    "GAMMA",
    "NORMAL",
    "POISSON",
    "Family",
    "LogPartition",
    "bhattacharyya",
    "jeffreys",
    "kl",
    "renyi",
]


def _checked(
    log_partition: LogPartition, eta_p: Natural, eta_q: Natural
) -> tuple[LogPartition, Natural, Natural]:
    """All as arguments of a compiled function, with parameters of the same length."""
    etas = as_leaves(eta_p=eta_p, eta_q=eta_q)
    shapes = [jnp.shape(eta) for eta in etas]
    if shapes[0] != shapes[1] or len(shapes[0]) != 1:
        raise ValueError(
            "eta_p and eta_q must be vectors of the same length; "
            f"got shapes {shapes[0]} and {shapes[1]}."
        )
    # Derivatives are taken in the parameters, hence floats even if integers are given.
    eta = jax.ShapeDtypeStruct(shapes[0], jnp.result_type(float, *etas))
    check_scalar_output("log_partition", log_partition, eta)
    # A `Family` is static. Any other function may refer to something that has changed.
    if jax.tree_util.all_leaves([log_partition]):
        log_partition = as_traced(log_partition, eta)
    return log_partition, *etas


def _within(log_partition: LogPartition, *etas: Natural) -> Bool[Array, ""]:
    """Whether the parameters are in the family, outside of which A is +∞ (or NaN)."""
    return jnp.all(jnp.stack([jnp.isfinite(log_partition(eta)) for eta in etas]))


def kl(log_partition: LogPartition, eta_p: Natural, eta_q: Natural) -> Float[Array, ""]:
    """KL(p‖q) = A(η_q) − A(η_p) − ⟨η_q − η_p, ∇A(η_p)⟩: the Bregman divergence of A, q first.

    The difference suffers cancellation for close or large parameters. KL is then computed as an
    integral of second derivatives of A between them, all of one sign.

    Args:
        log_partition: the family's A, a convex function "d" -> "" (a `Family` or any other).
        eta_p: natural parameters "d" of p.
        eta_q: natural parameters "d" of q. Use vmap for batches.

    Returns:
        The divergence in nats: +inf if A(η_q) is, NaN if A(η_p) is not finite, the result would be
        negative (A is not convex), or fewer than two digits are accurate (in which case float64 or
        centred data help).

    Raises:
        ValueError: if the parameters are not vectors of the same length, or A is not a scalar.

    Example:
        >>> p, q = POISSON.natural(2.0), POISSON.natural(1.0)
        >>> round(float(kl(POISSON, p, q)), 4)  # 1 − 2 + 2 log 2
        0.3863

    References:
        Banerjee, Merugu, Dhillon, Ghosh 2005, section 4: Bregman divergences and families.
    """
    return _kl(*_checked(log_partition, eta_p, eta_q))


@jax.jit
def _kl(log_partition: LogPartition, eta_p: Natural, eta_q: Natural) -> Float[Array, ""]:
    eta_p, eta_q = as_floats(eta_p, eta_q)
    line = Line(log_partition, eta_p, eta_q - eta_p)
    at_p, slope = jax.jvp(log_partition, (eta_p,), (eta_q - eta_p,))
    at_q = log_partition(eta_q)
    # The direct formula rounds like its parts: A at both ends, and the slope between them.
    rounding = jnp.sum(line.roundings(0, 1)) + jnp.abs(slope)
    value = more_accurate((at_q - at_p - slope, rounding), gap_by_curvature(line, 1.0))
    # At parameters outside of the family A is +∞, and so is the divergence.
    value = jnp.where(at_q == jnp.inf, jnp.inf, value)
    return nan_unless(jnp.isfinite(at_p), value)


def jeffreys(log_partition: LogPartition, eta_p: Natural, eta_q: Natural) -> Float[Array, ""]:
    """Jeffreys' divergence KL(p‖q) + KL(q‖p) = ⟨η_p − η_q, ∇A(η_p) − ∇A(η_q)⟩.

    Args:
        log_partition: the family's A, a convex function "d" -> "".
        eta_p: natural parameters "d" of p.
        eta_q: natural parameters "d" of q. Use vmap for batches.

    Returns:
        The divergence in nats, the sum of both directions (not their mean), or NaN if A is not
        finite at both or fewer than two digits are accurate.

    Raises:
        ValueError: if the parameters are not vectors of the same length, or A is not a scalar.

    Example:
        >>> p, q = POISSON.natural(2.0), POISSON.natural(1.0)
        >>> round(float(jeffreys(POISSON, p, q)), 4)  # (2 − 1) log 2
        0.6931
    """
    return _jeffreys(*_checked(log_partition, eta_p, eta_q))


@jax.jit
def _jeffreys(log_partition: LogPartition, eta_p: Natural, eta_q: Natural) -> Float[Array, ""]:
    eta_p, eta_q = as_floats(eta_p, eta_q)
    gradient = jax.grad(log_partition)
    at_p, at_q = gradient(eta_p), gradient(eta_q)
    towards_q = eta_q - eta_p
    # The rounding of the direct formula: each product rounds in proportion to its size.
    rounding = jnp.dot(jnp.abs(towards_q), jnp.abs(at_p) + jnp.abs(at_q))
    # ∇A(η_q) − ∇A(η_p) is ∇²A integrated along the line.
    line = Line(log_partition, eta_p, towards_q)
    zero, one = jnp.zeros_like(rounding), jnp.ones_like(rounding)
    integral = line.integral((zero, one, lambda u: u, jnp.ones_like))
    # Near p = q the direct formula cancels, and the integral does not.
    value = more_accurate((jnp.dot(towards_q, at_q - at_p), rounding), integral)
    return nan_unless(_within(log_partition, eta_p, eta_q), value)


def _jensen_gap(
    log_partition: LogPartition, eta_p: Natural, eta_q: Natural, share: ArrayLike
) -> Float[Array, ""]:
    """α A(η_p) + (1 − α) A(η_q) − A(αη_p + (1 − α)η_q) = −log ∫ p^α q^(1−α)."""
    ends = jnp.asarray(share * log_partition(eta_p) + (1 - share) * log_partition(eta_q))
    return ends - log_partition(jnp.asarray(share * eta_p + (1 - share) * eta_q))


def bhattacharyya(log_partition: LogPartition, eta_p: Natural, eta_q: Natural) -> Float[Array, ""]:
    """The Bhattacharyya distance −log ∫ √(pq) = ½A(η_p) + ½A(η_q) − A(½η_p + ½η_q).

    The squared Hellinger distance 1 − ∫ √(pq) is −expm1 of its negative.

    Args:
        log_partition: the family's A, a convex function "d" -> "".
        eta_p: natural parameters "d" of p.
        eta_q: natural parameters "d" of q. Use vmap for batches.

    Returns:
        The distance in nats, or NaN if A is not finite at both or fewer than two digits are
        accurate.

    Raises:
        ValueError: if the parameters are not vectors of the same length, or A is not a scalar.

    Example:
        >>> p, q = POISSON.natural(4.0), POISSON.natural(1.0)
        >>> round(float(bhattacharyya(POISSON, p, q)), 4)  # ½ (√4 − √1)²
        0.5

    References:
        Nielsen, Boltz 2011: Jensen gaps of A.
    """
    return _bhattacharyya(*_checked(log_partition, eta_p, eta_q))


@jax.jit
def _bhattacharyya(log_partition: LogPartition, eta_p: Natural, eta_q: Natural) -> Float[Array, ""]:
    eta_p, eta_q = as_floats(eta_p, eta_q)
    line = Line(log_partition, eta_p, eta_q - eta_p)
    # Twice the distance, A(η_p) + A(η_q) − 2 A(½η_p + ½η_q), is Rényi's divergence of order ½.
    at_p, at_q, between = line.roundings(0, 1, 0.5)
    rounding = at_p + at_q + 2 * between
    direct = 2 * _jensen_gap(log_partition, eta_p, eta_q, 0.5), rounding
    value = more_accurate(direct, gap_by_curvature(line, 0.5)) / 2
    return nan_unless(_within(log_partition, eta_p, eta_q), value)


def renyi(
    log_partition: LogPartition, eta_p: Natural, eta_q: Natural, alpha: ArrayLike
) -> Float[Array, ""]:
    """Rényi's divergence log ∫ p^α q^(1−α) / (α − 1), a Jensen gap of A divided by 1 − α.

    At α = 1 it is KL(p‖q), and it is smooth in α there. Near α = 1, where the quotient cancels, it
    is computed from an integral of slopes of A along the line from η_p towards η_q. If this cancels
    too, it is computed from integrals of second derivatives.

    Args:
        log_partition: the family's A, a convex function "d" -> "".
        eta_p: natural parameters "d" of p.
        eta_q: natural parameters "d" of q. Use vmap for batches.
        alpha: the order α ≥ 0. A negative array gives NaN. At order 0 the divergence is 0, as all
            members of a family have one support.

    Returns:
        The divergence in nats, or NaN if A is not finite at both or fewer than two digits are
        accurate. For α > 1 it is +inf if αη_p + (1 − α)η_q leaves the family, provided that A is
        +inf outside of its domain, as for a `Family`.

    Raises:
        ValueError: if alpha is a negative Python number, the parameters are not vectors of the same
            length, or A is not a scalar.

    Example:
        >>> p, q = POISSON.natural(4.0), POISSON.natural(1.0)
        >>> round(float(renyi(POISSON, p, q, alpha=0.5)), 4)  # twice Bhattacharyya's
        1.0

    References:
        Van Erven, Harremoës 2014, definition 2.
    """
    check_scalar(alpha=alpha)
    check_nonnegative(alpha=alpha)
    return _renyi(*_checked(log_partition, eta_p, eta_q), *as_leaves(alpha=alpha))


@jax.jit
def _renyi(
    log_partition: LogPartition, eta_p: Natural, eta_q: Natural, alpha: ArrayLike
) -> Float[Array, ""]:
    eta_p, eta_q = as_floats(eta_p, eta_q)
    order = jnp.asarray(alpha, eta_p.dtype)
    order = nan_unless(order >= 0, order)
    line = Line(log_partition, eta_p, eta_q - eta_p)
    at_p, at_q, between = line.roundings(0, 1, 1 - order)
    epsilon = ROUNDINGS * jnp.finfo(eta_p.dtype).eps

    # The gap and its divisor vanish together at order 1, where the divisor magnifies the rounding
    # of A. Averages of slopes have no divisor, but an error of quadrature where A bends.
    divisor = jnp.abs(1 - order)
    magnified = (at_p * order + at_q + between) / jnp.clip(divisor, epsilon, 1)
    fixed = Line(*jax.lax.stop_gradient(line))
    fixed_step = jax.lax.stop_gradient(1 - order)
    fine = fixed.mean_slope(fixed_step, RULES[0])
    coarse = fixed.mean_slope(fixed_step, RULES[1])
    averaged = at_p + at_q + between + jnp.abs(fine) + jnp.abs(fine - coarse) / epsilon
    # Decided before the values are computed, so that the derivatives of the other form do not
    # count. They overflow at order 1.
    by_slopes = (divisor < epsilon) | (averaged < magnified)
    apart = jnp.where(by_slopes, 0.5, order)
    quotient = _jensen_gap(log_partition, eta_p, eta_q, apart) / (1 - apart)
    slopes = slope_gap(line, eta_q, jnp.where(by_slopes, 1 - order, 0))
    direct = jnp.where(by_slopes, slopes, quotient)

    rounding = jnp.where(by_slopes, averaged, magnified)
    value = more_accurate((direct, rounding), gap_by_curvature(line, order))
    value = jnp.where(direct == jnp.inf, jnp.inf, value)
    return nan_unless(_within(log_partition, eta_p, eta_q) & (order >= 0), value)
