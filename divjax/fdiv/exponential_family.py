"""Divergences within an exponential family, from its log-partition function alone.

A family p_η(x) = h(x) exp(⟨η, T(x)⟩ − A(η)) is given by the convex A: KL is its Bregman divergence,
Rényi's and Bhattacharyya's divergences are its Jensen gaps. A may be any JAX function, so a family
that is not in the table below needs one line.
"""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln
from jaxtyping import Array, ArrayLike, Bool, Float

from divjax.core.checks import check_nonnegative, check_scalar_output
from divjax.core.numerics import nan_unless
from divjax.core.pytrees import pytree, static
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

_Natural = Float[Array, " d"]

LogPartition: TypeAlias = Callable[[_Natural], Float[Array, ""]]


def _checked(
    log_partition: LogPartition, eta_p: _Natural, eta_q: _Natural
) -> tuple[_Natural, _Natural]:
    """The natural parameters as floating-point vectors of one length."""
    if jnp.shape(eta_p) != jnp.shape(eta_q) or jnp.ndim(eta_p) != 1:
        raise ValueError(
            "eta_p and eta_q must be vectors of one length; "
            f"got shapes {jnp.shape(eta_p)} and {jnp.shape(eta_q)}."
        )
    eta_p, eta_q = as_floats(eta_p, eta_q)
    check_scalar_output("log_partition", log_partition, eta_p)
    return eta_p, eta_q


def _within(log_partition: LogPartition, *etas: _Natural) -> Bool[Array, ""]:
    """Whether the parameters are in the family, outside of which A is +∞ (or nan)."""
    return jnp.all(jnp.stack([jnp.isfinite(log_partition(eta)) for eta in etas]))


def kl(log_partition: LogPartition, eta_p: _Natural, eta_q: _Natural) -> Float[Array, ""]:
    """KL(p‖q) = A(η_q) − A(η_p) − ⟨η_q − η_p, ∇A(η_p)⟩: the Bregman divergence of A, q first.

    A difference of values of A: its rounding error is that of A, so near η_p = η_q float64 keeps
    digits that float32 loses.

    Args:
        log_partition: the family's A, a convex function "d" -> "" (a `Family`, or one's own).
        eta_p: natural parameters "d" of p.
        eta_q: natural parameters "d" of q; vmap for batches.

    Returns:
        The divergence in nats; +inf where A(η_q) is, nan where A(η_p) is not finite.

    Raises:
        ValueError: if the parameters are not vectors of one length, or A is no scalar.

    Example:
        >>> p, q = POISSON.natural(2.0), POISSON.natural(1.0)
        >>> round(float(kl(POISSON, p, q)), 4)  # 1 − 2 + 2 log 2
        0.3863

    References:
        Banerjee, Merugu, Dhillon, Ghosh 2005, section 4: Bregman divergences and families.
    """
    eta_p, eta_q = _checked(log_partition, eta_p, eta_q)
    at_p, slope = jax.jvp(log_partition, (eta_p,), (eta_q - eta_p,))
    return nan_unless(jnp.isfinite(at_p), log_partition(eta_q) - at_p - slope)


def jeffreys(log_partition: LogPartition, eta_p: _Natural, eta_q: _Natural) -> Float[Array, ""]:
    """Jeffreys' divergence KL(p‖q) + KL(q‖p) = ⟨η_p − η_q, ∇A(η_p) − ∇A(η_q)⟩.

    Args:
        log_partition: the family's A, a convex function "d" -> "".
        eta_p: natural parameters "d" of p.
        eta_q: natural parameters "d" of q; vmap for batches.

    Returns:
        The divergence in nats, the sum of both directions (not their mean); nan where A is not
        finite at both.

    Raises:
        ValueError: if the parameters are not vectors of one length, or A is no scalar.

    Example:
        >>> p, q = POISSON.natural(2.0), POISSON.natural(1.0)
        >>> round(float(jeffreys(POISSON, p, q)), 4)  # (2 − 1) log 2
        0.6931
    """
    eta_p, eta_q = _checked(log_partition, eta_p, eta_q)
    gradient = jax.grad(log_partition)
    value = jnp.dot(eta_p - eta_q, gradient(eta_p) - gradient(eta_q))
    return nan_unless(_within(log_partition, eta_p, eta_q), value)


def _jensen_gap(
    log_partition: LogPartition, eta_p: _Natural, eta_q: _Natural, share: ArrayLike
) -> Float[Array, ""]:
    """α A(η_p) + (1 − α) A(η_q) − A(αη_p + (1 − α)η_q) = −log ∫ p^α q^(1−α)."""
    ends = jnp.asarray(share * log_partition(eta_p) + (1 - share) * log_partition(eta_q))
    return ends - log_partition(jnp.asarray(share * eta_p + (1 - share) * eta_q))


def bhattacharyya(
    log_partition: LogPartition, eta_p: _Natural, eta_q: _Natural
) -> Float[Array, ""]:
    """The Bhattacharyya distance −log ∫ √(pq) = ½A(η_p) + ½A(η_q) − A(½η_p + ½η_q).

    The squared Hellinger distance 1 − ∫ √(pq) is −expm1 of its negative.

    Args:
        log_partition: the family's A, a convex function "d" -> "".
        eta_p: natural parameters "d" of p.
        eta_q: natural parameters "d" of q; vmap for batches.

    Returns:
        The distance in nats; nan where A is not finite at both.

    Raises:
        ValueError: if the parameters are not vectors of one length, or A is no scalar.

    Example:
        >>> p, q = POISSON.natural(4.0), POISSON.natural(1.0)
        >>> round(float(bhattacharyya(POISSON, p, q)), 4)  # ½ (√4 − √1)²
        0.5

    References:
        Nielsen, Boltz 2011: Jensen gaps of A.
    """
    eta_p, eta_q = _checked(log_partition, eta_p, eta_q)
    value = _jensen_gap(log_partition, eta_p, eta_q, 0.5)
    return nan_unless(_within(log_partition, eta_p, eta_q), value)


def renyi(
    log_partition: LogPartition, eta_p: _Natural, eta_q: _Natural, alpha: ArrayLike
) -> Float[Array, ""]:
    """Rényi's divergence log ∫ p^α q^(1−α) / (α − 1), a Jensen gap of A divided by 1 − α.

    At α = 1 it is KL(p‖q), and smooth in α there: near it, where the quotient cancels, the gap is
    an integral of slopes of A along the line from η_p towards η_q.

    Args:
        log_partition: the family's A, a convex function "d" -> "".
        eta_p: natural parameters "d" of p.
        eta_q: natural parameters "d" of q; vmap for batches.
        alpha: the order α ≥ 0; nan for a negative array. Of order 0 the divergence is 0, as all
            members of a family have one support.

    Returns:
        The divergence in nats; nan where A is not finite at both. For α > 1 it is +inf where
        αη_p + (1 − α)η_q leaves the family, provided that A is +inf outside of its domain, as that
        of a `Family` is.

    Raises:
        ValueError: if alpha is a negative Python number, the parameters are not vectors of one
            length, or A is no scalar.

    Example:
        >>> p, q = POISSON.natural(4.0), POISSON.natural(1.0)
        >>> round(float(renyi(POISSON, p, q, alpha=0.5)), 4)  # twice Bhattacharyya's
        1.0

    References:
        Van Erven, Harremoës 2014, definition 2.
    """
    check_nonnegative(alpha=alpha)
    eta_p, eta_q = _checked(log_partition, eta_p, eta_q)
    order = jnp.asarray(alpha, eta_p.dtype)
    order = nan_unless(order >= 0, order)
    near = jnp.abs(order - 1) < _NEAR_ONE
    apart = jnp.where(near, 0.5, order)
    quotient = _jensen_gap(log_partition, eta_p, eta_q, apart) / (1 - apart)
    slopes = _slope_gap(log_partition, eta_p, eta_q, jnp.where(near, 1 - order, 0))
    return nan_unless(
        _within(log_partition, eta_p, eta_q) & (order >= 0), jnp.where(near, slopes, quotient)
    )


# Within this of order 1 four Gauss–Legendre nodes integrate slopes of A to rounding: they are of
# order eight in the distance from 1.
_NEAR_ONE = 0.05
_NODES, _NODE_WEIGHTS = np.polynomial.legendre.leggauss(4)


def _slope_gap(
    log_partition: LogPartition, eta_p: _Natural, eta_q: _Natural, step: Array
) -> Float[Array, ""]:
    """A(η_q) − A(η_p) − ∫₀¹ ⟨∇A(η_p + t·step·δ), δ⟩ dt with δ = η_q − η_p: Rényi's at α = 1 − step.

    KL at step 0. +∞ where the line's end is outside of the family.
    """
    towards_q = eta_q - eta_p

    def slope(share: Array) -> Array:
        return jax.jvp(log_partition, (eta_p + share * step * towards_q,), (towards_q,))[1]

    shares = jnp.asarray((_NODES + 1) / 2, eta_p.dtype)
    mean = jnp.asarray(_NODE_WEIGHTS / 2, eta_p.dtype) @ jax.vmap(slope)(shares)
    value = log_partition(eta_q) - log_partition(eta_p) - mean
    end = log_partition(eta_p + step * towards_q)
    return jnp.where(end == jnp.inf, jnp.inf, value)


@pytree
class Family:
    """A named exponential family; itself callable as its log-partition function.

    Attributes:
        natural: ordinary parameters -> natural parameters "d"; vmap for batches.
        log_partition: A on its domain.
        signs: the domain: +1, −1 or 0 for each natural parameter (or one for all) that must be
            positive, negative, or is any real number. A is +inf elsewhere.

    Example:
        >>> EXPONENTIAL.natural(2.0).tolist()  # by rate
        [-2.0]
    """

    natural: Callable[..., _Natural] = static()
    log_partition: LogPartition = static()
    signs: tuple[int, ...] = static()

    def __call__(self, eta: _Natural) -> Float[Array, ""]:
        """A(η); +inf, with gradient zero, outside of the domain."""
        signs = jnp.broadcast_to(jnp.asarray(self.signs, eta.dtype), eta.shape)
        inside = ~jnp.any((signs != 0) & (signs * eta <= 0))
        # Replaced by a point of the domain (the signs are one) before A sees it, or gradients there
        # are nan.
        return jnp.where(inside, self.log_partition(jnp.where(inside, eta, signs)), jnp.inf)


def _vector(*parameters: ArrayLike) -> _Natural:
    dtype = jnp.result_type(float, *parameters)
    return jnp.stack([jnp.asarray(parameter, dtype) for parameter in parameters])


def _log_beta(eta: _Natural) -> Float[Array, ""]:
    return jnp.sum(gammaln(eta)) - gammaln(jnp.sum(eta))


BERNOULLI = Family(  # by its probability of a one
    lambda probability: _vector(jnp.log(probability) - jnp.log1p(-probability)),
    lambda eta: jax.nn.softplus(eta[0]),
    signs=(0,),
)
POISSON = Family(  # by its rate
    lambda rate: _vector(jnp.log(rate)), lambda eta: jnp.exp(eta[0]), signs=(0,)
)
EXPONENTIAL = Family(  # by its rate
    lambda rate: _vector(jnp.negative(rate)), lambda eta: -jnp.log(-eta[0]), signs=(-1,)
)
GAMMA = Family(  # by shape and rate
    lambda shape, rate: _vector(shape, jnp.negative(rate)),
    lambda eta: gammaln(eta[0]) - eta[0] * jnp.log(-eta[1]),
    signs=(1, -1),
)
BETA = Family(lambda a, b: _vector(a, b), _log_beta, signs=(1,))  # by its two shapes
DIRICHLET = Family(jnp.asarray, _log_beta, signs=(1,))  # by its concentrations, a vector
NORMAL = Family(  # by mean and standard deviation
    lambda mean, scale: _vector(jnp.divide(mean, jnp.square(scale)), -0.5 / jnp.square(scale)),
    lambda eta: -0.25 * eta[0] ** 2 / eta[1] - 0.5 * jnp.log(-2 * eta[1]),
    signs=(0, -1),
)
