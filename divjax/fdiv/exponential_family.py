"""Divergences within an exponential family, from its log-partition function alone.

A family p_η(x) = h(x) exp(⟨η, T(x)⟩ − A(η)) is given by the convex function A: KL is its Bregman
divergence, and Rényi's and Bhattacharyya's divergences are its Jensen gaps. A may be any JAX
function, so a family that is missing from the table below needs one line.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln
from jaxtyping import Array, ArrayLike, Bool, Float

from divjax.core.arguments import as_leaves
from divjax.core.checks import check_nonnegative, check_scalar, check_scalar_output
from divjax.core.numerics import nan_unless
from divjax.core.pytrees import as_traced, pytree, static
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
) -> tuple[LogPartition, _Natural, _Natural]:
    """All as arguments of a compiled function, with parameters of one length."""
    etas = as_leaves(eta_p=eta_p, eta_q=eta_q)
    shapes = [jnp.shape(eta) for eta in etas]
    if shapes[0] != shapes[1] or len(shapes[0]) != 1:
        raise ValueError(
            "eta_p and eta_q must be vectors of one length; "
            f"got shapes {shapes[0]} and {shapes[1]}."
        )
    eta = jax.ShapeDtypeStruct(shapes[0], jnp.result_type(float, *etas))
    check_scalar_output("log_partition", log_partition, eta)
    # A `Family` is static. Any other function may refer to something that has changed.
    if jax.tree_util.all_leaves([log_partition]):
        log_partition = as_traced(log_partition, eta)
    return log_partition, *etas


def _within(log_partition: LogPartition, *etas: _Natural) -> Bool[Array, ""]:
    """Whether the parameters are in the family, outside of which A is +∞ (or nan)."""
    return jnp.all(jnp.stack([jnp.isfinite(log_partition(eta)) for eta in etas]))


def kl(log_partition: LogPartition, eta_p: _Natural, eta_q: _Natural) -> Float[Array, ""]:
    """KL(p‖q) = A(η_q) − A(η_p) − ⟨η_q − η_p, ∇A(η_p)⟩: the Bregman divergence of A, q first.

    The difference suffers cancellation for close or large parameters. It is then an integral of
    second derivatives of A between them, all of one sign.

    Args:
        log_partition: the family's A, a convex function "d" -> "" (a `Family` or any other).
        eta_p: natural parameters "d" of p.
        eta_q: natural parameters "d" of q. Use vmap for batches.

    Returns:
        The divergence in nats: +inf if A(η_q) is, nan if A(η_p) is not finite, the result would be
        negative (A is not convex), or fewer than two digits are accurate (in which case float64 or
        centred data help).

    Raises:
        ValueError: if the parameters are not vectors of one length, or A is not a scalar.

    Example:
        >>> p, q = POISSON.natural(2.0), POISSON.natural(1.0)
        >>> round(float(kl(POISSON, p, q)), 4)  # 1 − 2 + 2 log 2
        0.3863

    References:
        Banerjee, Merugu, Dhillon, Ghosh 2005, section 4: Bregman divergences and families.
    """
    return _kl(*_checked(log_partition, eta_p, eta_q))


@jax.jit
def _kl(log_partition: LogPartition, eta_p: _Natural, eta_q: _Natural) -> Float[Array, ""]:
    eta_p, eta_q = as_floats(eta_p, eta_q)
    line = _Line(log_partition, eta_p, eta_q - eta_p)
    at_p, slope = jax.jvp(log_partition, (eta_p,), (eta_q - eta_p,))
    at_q = log_partition(eta_q)
    # The direct formula rounds like its parts: A at both ends, and the slope between them.
    rounding = jnp.sum(line.roundings(0, 1)) + jnp.abs(slope)
    value = _sharper((at_q - at_p - slope, rounding), _gap_by_curvature(line, 1.0))
    # At parameters outside of the family A is +∞, and so is the divergence.
    value = jnp.where(at_q == jnp.inf, jnp.inf, value)
    return nan_unless(jnp.isfinite(at_p), value)


def jeffreys(log_partition: LogPartition, eta_p: _Natural, eta_q: _Natural) -> Float[Array, ""]:
    """Jeffreys' divergence KL(p‖q) + KL(q‖p) = ⟨η_p − η_q, ∇A(η_p) − ∇A(η_q)⟩.

    Args:
        log_partition: the family's A, a convex function "d" -> "".
        eta_p: natural parameters "d" of p.
        eta_q: natural parameters "d" of q. Use vmap for batches.

    Returns:
        The divergence in nats, the sum of both directions (not their mean), or nan if A is not
        finite at both or fewer than two digits are accurate.

    Raises:
        ValueError: if the parameters are not vectors of one length, or A is not a scalar.

    Example:
        >>> p, q = POISSON.natural(2.0), POISSON.natural(1.0)
        >>> round(float(jeffreys(POISSON, p, q)), 4)  # (2 − 1) log 2
        0.6931
    """
    return _jeffreys(*_checked(log_partition, eta_p, eta_q))


@jax.jit
def _jeffreys(log_partition: LogPartition, eta_p: _Natural, eta_q: _Natural) -> Float[Array, ""]:
    eta_p, eta_q = as_floats(eta_p, eta_q)
    gradient = jax.grad(log_partition)
    at_p, at_q = gradient(eta_p), gradient(eta_q)
    towards_q = eta_q - eta_p
    # The rounding of the direct formula: each product rounds in proportion to its size.
    rounding = jnp.dot(jnp.abs(towards_q), jnp.abs(at_p) + jnp.abs(at_q))
    # ∇A(η_q) − ∇A(η_p) is ∇²A integrated along the line.
    line = _Line(log_partition, eta_p, towards_q)
    zero, one = jnp.zeros_like(rounding), jnp.ones_like(rounding)
    integral = line.integral((zero, one, lambda u: u, jnp.ones_like))
    value = _sharper((jnp.dot(towards_q, at_q - at_p), rounding), integral)
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
        eta_q: natural parameters "d" of q. Use vmap for batches.

    Returns:
        The distance in nats, or nan if A is not finite at both or fewer than two digits are
        accurate.

    Raises:
        ValueError: if the parameters are not vectors of one length, or A is not a scalar.

    Example:
        >>> p, q = POISSON.natural(4.0), POISSON.natural(1.0)
        >>> round(float(bhattacharyya(POISSON, p, q)), 4)  # ½ (√4 − √1)²
        0.5

    References:
        Nielsen, Boltz 2011: Jensen gaps of A.
    """
    return _bhattacharyya(*_checked(log_partition, eta_p, eta_q))


@jax.jit
def _bhattacharyya(
    log_partition: LogPartition, eta_p: _Natural, eta_q: _Natural
) -> Float[Array, ""]:
    eta_p, eta_q = as_floats(eta_p, eta_q)
    line = _Line(log_partition, eta_p, eta_q - eta_p)
    # Twice the distance, A(η_p) + A(η_q) − 2 A(½η_p + ½η_q), is Rényi's divergence of order ½.
    at_p, at_q, between = line.roundings(0, 1, 0.5)
    rounding = at_p + at_q + 2 * between
    direct = 2 * _jensen_gap(log_partition, eta_p, eta_q, 0.5), rounding
    value = _sharper(direct, _gap_by_curvature(line, 0.5)) / 2
    return nan_unless(_within(log_partition, eta_p, eta_q), value)


def renyi(
    log_partition: LogPartition, eta_p: _Natural, eta_q: _Natural, alpha: ArrayLike
) -> Float[Array, ""]:
    """Rényi's divergence log ∫ p^α q^(1−α) / (α − 1), a Jensen gap of A divided by 1 − α.

    At α = 1 it is KL(p‖q), and it is smooth in α there. Near α = 1, where the quotient cancels, the
    gap is an integral of slopes of A along the line from η_p towards η_q. If this cancels too, it
    is an integral of second derivatives.

    Args:
        log_partition: the family's A, a convex function "d" -> "".
        eta_p: natural parameters "d" of p.
        eta_q: natural parameters "d" of q. Use vmap for batches.
        alpha: the order α ≥ 0. A negative array gives nan. At order 0 the divergence is 0, as all
            members of a family have one support.

    Returns:
        The divergence in nats, or nan if A is not finite at both or fewer than two digits are
        accurate. For α > 1 it is +inf if αη_p + (1 − α)η_q leaves the family, provided that A is
        +inf outside of its domain, as for a `Family`.

    Raises:
        ValueError: if alpha is a negative Python number, the parameters are not vectors of one
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
    log_partition: LogPartition, eta_p: _Natural, eta_q: _Natural, alpha: ArrayLike
) -> Float[Array, ""]:
    eta_p, eta_q = as_floats(eta_p, eta_q)
    order = jnp.asarray(alpha, eta_p.dtype)
    order = nan_unless(order >= 0, order)
    line = _Line(log_partition, eta_p, eta_q - eta_p)
    at_p, at_q, between = line.roundings(0, 1, 1 - order)
    epsilon = _ROUNDINGS * jnp.finfo(eta_p.dtype).eps

    # The gap and its divisor vanish together at order 1, where the divisor magnifies the rounding
    # of A. Averages of slopes have no divisor, but an error of quadrature where A bends.
    divisor = jnp.abs(1 - order)
    magnified = (at_p * order + at_q + between) / jnp.clip(divisor, epsilon, 1)
    fixed = _Line(*jax.lax.stop_gradient(line))
    fixed_step = jax.lax.stop_gradient(1 - order)
    fine = fixed.mean_slope(fixed_step, _RULES[0])
    coarse = fixed.mean_slope(fixed_step, _RULES[1])
    averaged = at_p + at_q + between + jnp.abs(fine) + jnp.abs(fine - coarse) / epsilon
    # Decided before the values are computed, so that the derivatives of the other form do not
    # count. They overflow at order 1.
    by_slopes = (divisor < epsilon) | (averaged < magnified)
    apart = jnp.where(by_slopes, 0.5, order)
    quotient = _jensen_gap(log_partition, eta_p, eta_q, apart) / (1 - apart)
    slopes = _slope_gap(line, eta_q, jnp.where(by_slopes, 1 - order, 0))
    direct = jnp.where(by_slopes, slopes, quotient)

    rounding = jnp.where(by_slopes, averaged, magnified)
    value = _sharper((direct, rounding), _gap_by_curvature(line, order))
    value = jnp.where(direct == jnp.inf, jnp.inf, value)
    return nan_unless(_within(log_partition, eta_p, eta_q) & (order >= 0), value)


def _slope_gap(line: "_Line", eta_q: _Natural, step: Array) -> Float[Array, ""]:
    """A(η_q) − A(η_p) − ∫₀¹ φ'(t·step) dt, Rényi's divergence at order 1 − step.

    This is KL at step 0, and +∞ if the end of the line is outside of the family.
    """
    rise = line.log_partition(eta_q) - line.log_partition(line.start)
    end = line.log_partition(line.point(step))
    return jnp.where(end == jnp.inf, jnp.inf, rise - line.mean_slope(step, _RULES[0]))


# Gauss–Legendre rules along the line, and a coarser one for the error.
_RULES = [np.polynomial.legendre.leggauss(count) for count in (16, 8)]
# The number of directions that differ from the line's in the signs of their coordinates.
_NUM_SIGNS = 16
# Rounding units per term of a sum, and the largest share of a value that they may reach.
_ROUNDINGS = 4
_LARGEST_ERROR = 0.01

_WithError: TypeAlias = tuple[Array, Array]


class _Line(NamedTuple):
    """A along a line through the parameters of p, φ(t) = A(η_p + tδ)."""

    log_partition: LogPartition
    start: _Natural
    direction: _Natural

    def point(self, t: ArrayLike) -> _Natural:
        return self.start + t * self.direction

    def mean_slope(self, end: Array, rule: tuple[np.ndarray, np.ndarray]) -> Float[Array, ""]:
        """The average of φ' from 0 to an end of the line, by a Gauss–Legendre rule."""
        roots, weights = rule
        shares = jnp.asarray((roots + 1) / 2, self.start.dtype)

        def slope(share: Array) -> Array:
            return jax.jvp(self.log_partition, (self.point(share * end),), (self.direction,))[1]

        return jnp.asarray(weights / 2, self.start.dtype) @ jax.vmap(slope)(shares)

    def curvature(self, t: Array, signs: _Natural) -> Float[Array, ""]:
        """φ''(t), or the second derivative of A in the direction with other signs."""
        direction = signs * self.direction

        def slope(eta: _Natural) -> Array:
            return jax.jvp(self.log_partition, (eta,), (direction,))[1]

        return jax.jvp(slope, (self.point(t),), (direction,))[1]

    def integral(self, *parts: tuple[Array, Array, Callable, Callable]) -> _WithError:
        """Σ ∫₀¹ weight(u) φ''(place(u)) du, and its error in units of epsilon.

        The places go up to 1. If ∫ φ'' over them is not the difference of the slopes φ' at their
        ends, the error is infinite: second derivatives underflow before slopes, since JAX's
        derivatives of a quotient contain the divisor to the power −2.

        Args:
            *parts: tuples of a place whose rounding is examined, the length between the places'
                ends, the places, and the weights.
        """
        dtype = self.start.dtype
        nodes, of_rule, shares = [], [], []
        for rule, (roots, weights) in enumerate(_RULES):
            u = jnp.asarray((roots + 1) / 2, dtype)
            mean = jnp.asarray(weights / 2, dtype)
            for _, length, place, weight in parts:
                nodes.append(place(u))
                shares.append(mean * jnp.stack([weight(u), jnp.broadcast_to(length, u.shape)]))
                of_rule += [rule] * len(roots)
        # Terms δ_i A_ij δ_j that cancel do not cancel with other signs: their mean is Σ δ_i² A_ii.
        signs = _signs(self.start)
        probed = jnp.stack([jnp.zeros((), dtype), jnp.ones((), dtype), *(p[0] for p in parts)])
        probes = jnp.tile(signs, (len(probed), 1))
        # All in one call, as the curvature takes long to compile.
        curvatures = jax.vmap(self.curvature)(
            jnp.concatenate([*nodes, jnp.repeat(probed, len(signs))]),
            jnp.concatenate([jnp.ones_like(signs, shape=(len(of_rule), signs.shape[1])), probes]),
        )
        count = len(of_rule)
        terms, all_of_it = jnp.concatenate(shares, axis=1) * curvatures[:count]
        # The error of the quadrature is the difference of the two rules.
        is_fine = np.array(of_rule) == 0
        fine, coarse = jnp.sum(terms[is_fine]), jnp.sum(terms[~is_fine])
        size = jnp.abs(curvatures[count:]).reshape(len(probed), len(signs)).mean(axis=1).max()
        epsilon = _ROUNDINGS * jnp.finfo(dtype).eps
        error = size + jnp.abs(fine - coarse) / epsilon
        # The integral of φ'' must be the change of φ'. Otherwise the nodes have missed a bend of A.
        rise = jnp.sum(all_of_it[is_fine])
        length = sum(length for _, length, _, _ in parts)
        change, rounding = self._change_of_slope(1 - length, 1)
        allowed = _LARGEST_ERROR * jnp.abs(change) + epsilon * (error + _ROUNDINGS * rounding)
        return fine, jnp.where(jnp.abs(rise - change) <= allowed, error, jnp.inf)

    def _change_of_slope(self, start: ArrayLike, end: ArrayLike) -> _WithError:
        """φ'(end) − φ'(start), and its error in units of epsilon."""
        places = jnp.stack([jnp.asarray(t, self.start.dtype) for t in (start, end)])
        gradients = jax.vmap(lambda t: jax.grad(self.log_partition)(self.point(t)))(places)
        before, after = gradients * self.direction
        return jnp.sum(after - before), jnp.sum(jnp.abs(before) + jnp.abs(after))

    def roundings(self, *places: ArrayLike) -> Float[Array, " places"]:
        """The errors of A at points of the line, computed together: each copy of A is compiled."""
        dtype = self.start.dtype
        return jax.vmap(self._rounding)(jnp.stack([jnp.asarray(t, dtype) for t in places]))

    def _rounding(self, t: Float[Array, ""]) -> Float[Array, ""]:
        """The error of A at a point of the line, in units of epsilon.

        The sum of its own rounding, that of its argument, and its noise at arguments a few
        roundings away, which exposes terms that cancel within A.
        """
        eta = jax.lax.stop_gradient(self.point(t))
        value, slope = jax.value_and_grad(self.log_partition)(eta)
        epsilon = jnp.finfo(eta.dtype).eps
        signs = _signs(eta)
        steps = jnp.arange(1, _NUM_SIGNS + 1, dtype=eta.dtype)[:, None] / 2
        # At parameters a few roundings away A differs from its tangent by noise alone.
        near = eta * (1 + steps * signs * epsilon)
        noise = jax.vmap(self.log_partition)(near) - value - (near - eta) @ slope
        scatter = jnp.max(jnp.abs(noise)) / epsilon
        return jnp.abs(value) + jnp.dot(jnp.abs(eta), jnp.abs(slope)) + scatter


def _signs(eta: _Natural) -> Float[Array, "signs d"]:
    signs = np.random.default_rng(0).choice([-1, 1], (_NUM_SIGNS, eta.shape[0]))
    return jnp.asarray(signs, eta.dtype)


def _gap_by_curvature(line: _Line, order: ArrayLike) -> _WithError:
    """Rényi's divergence as integrals of φ'' with weights that are not negative.

    With s = 1 − α: α/s ∫₀ˢ t φ''(t) dt + ∫ₛ¹ (1 − t) φ''(t) dt for α ≤ 1, KL at s = 0, and
    ∫₀¹ (1 − t) φ''(t) dt + 1/s ∫ₛ⁰ (s − t) φ''(t) dt for α > 1.
    """
    order = jnp.asarray(order, line.start.dtype)
    s = 1 - order
    share = jnp.where(s >= 0, order, 1)
    return line.integral(
        (s, jnp.abs(s), lambda u: s * u, lambda u: jnp.where(s >= 0, order * s * u, -s * (1 - u))),
        (s, share, lambda u: 1 - share * u, lambda u: share**2 * u),
    )


def _sharper(one: _WithError, other: _WithError) -> Float[Array, ""]:
    """The value whose error is smaller, nan if this leaves fewer than two digits.

    Errors are in units of epsilon, and zero may be off by a few epsilon. A value below zero gives
    nan, as A is then not convex.
    """
    (value_one, error_one), (value_other, error_other) = one, other
    first = (error_one <= error_other) | ~jnp.isfinite(value_other + error_other)
    value = jnp.where(first, value_one, value_other)
    error = jax.lax.stop_gradient(jnp.where(first, error_one, error_other))
    epsilon = _ROUNDINGS * jnp.finfo(value.dtype).eps
    # The absolute term is for values near zero, which have no relative accuracy.
    known = epsilon * error <= _LARGEST_ERROR * jnp.abs(value) + 10 * epsilon
    return nan_unless(known & (value >= -10 * epsilon), value)


@pytree
class Family:
    """A named exponential family, callable as its log-partition function.

    Attributes:
        natural: the map from ordinary to natural parameters "d". Use vmap for batches.
        log_partition: the function A on its domain.
        signs: the domain: +1 for each natural parameter that must be positive, −1 for negative, 0
            for any real number, or one sign for all. A is +inf elsewhere.

    Example:
        >>> EXPONENTIAL.natural(2.0).tolist()  # by rate
        [-2.0]
    """

    natural: Callable[..., _Natural] = static()
    log_partition: LogPartition = static()
    signs: tuple[int, ...] = static()

    @jax.jit
    def __call__(self, eta: _Natural) -> Float[Array, ""]:
        """The value A(η), +inf (with gradient zero) outside of the domain."""
        if len(self.signs) not in (1, eta.shape[-1]):
            raise ValueError(
                f"eta must hold the {len(self.signs)} natural parameters of the family; "
                f"got shape {eta.shape}."
            )
        signs = jnp.broadcast_to(jnp.asarray(self.signs, eta.dtype), eta.shape)
        inside = ~jnp.any((signs != 0) & (signs * eta <= 0))
        # Invalid parameters are replaced by a point of the domain (the signs are one) before A is
        # evaluated, to avoid nan gradients.
        return jnp.where(inside, self.log_partition(jnp.where(inside, eta, signs)), jnp.inf)


def _vector(*parameters: ArrayLike) -> _Natural:
    dtype = jnp.result_type(float, *parameters)
    return jnp.stack([jnp.asarray(parameter, dtype) for parameter in parameters])


# Stirling's series for log Γ, exact to float64 rounding from this argument on.
_STIRLING = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156)
_STIRLING_FROM = 12


@jax.custom_jvp
def _quotient(x: Array, y: Array) -> Array:
    """The quotient x/y with derivatives that underflow as late as possible: JAX's divide by y²."""
    return x / y


@_quotient.defjvp
def _(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    (x, y), (dx, dy) = primals, tangents
    ratio = _quotient(x, y)
    return ratio, _quotient(dx, y) - ratio * _quotient(dy, y)


@jax.custom_jvp
def _log(x: Array) -> Array:
    """The logarithm, with the derivatives of `_quotient`."""
    return jnp.log(x)


@_log.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    return _log(x), _quotient(dx, x)


def _log_beta(eta: _Natural) -> Float[Array, ""]:
    """Σ log Γ(η_i) − log Γ(Σ η_i), as a sum over i of Beta functions of η_i and those before it."""
    before, own = jnp.cumsum(eta)[:-1], eta[1:]
    # Not `minimum`, whose second derivatives at ties are wrong.
    a, b = jnp.where(own < before, own, before), jnp.where(own < before, before, own)
    large = b >= _STIRLING_FROM
    near, far = jnp.where(large, 1, b), jnp.where(large, b, _STIRLING_FROM)
    # In one call, as its derivatives take long to compile.
    of_a, of_b, of_sum = gammaln(jnp.stack([a, near, a + near]))
    return jnp.sum(of_a + jnp.where(large, _log_gamma_ratio(a, far), of_b - of_sum))


def _log_gamma_ratio(a: Array, b: Array) -> Array:
    """Log Γ(b)/Γ(a + b) for large b, where the difference of both logarithms absorbs a small a."""

    def remainder(x: Array) -> Array:
        inverse = 1 / x
        series = jnp.zeros_like(x)
        for coefficient in reversed(_STIRLING):
            series = series * inverse * inverse + coefficient
        return series * inverse

    difference = remainder(b) - remainder(a + b)
    # log Γ(x) = (x − ½) log x − x + ½ log 2π + remainder(x), at b minus at a + b.
    return a - (b - 0.5) * jnp.log1p(_quotient(a, b)) - a * _log(a + b) + difference


def _of_normal(mean: ArrayLike, scale: ArrayLike) -> _Natural:
    """The natural parameters, nan for a scale that is not positive, or squared out of range."""
    mean, scale = as_floats(mean, scale)
    square = jnp.square(scale)
    precision = 1 / square
    square = nan_unless((scale > 0) & (precision > 0) & (precision < jnp.inf), square)
    return _vector(mean / square, -0.5 / square)


BERNOULLI = Family(  # by its probability of a one
    jax.jit(lambda probability: _vector(jnp.log(probability) - jnp.log1p(-probability))),
    lambda eta: jax.nn.softplus(eta[0]),
    signs=(0,),
)
POISSON = Family(  # by its rate
    jax.jit(lambda rate: _vector(jnp.log(rate))), lambda eta: jnp.exp(eta[0]), signs=(0,)
)
EXPONENTIAL = Family(  # by its rate
    jax.jit(lambda rate: _vector(jnp.negative(rate))), lambda eta: -_log(-eta[0]), signs=(-1,)
)
GAMMA = Family(  # by shape and rate
    jax.jit(lambda shape, rate: _vector(shape, jnp.negative(rate))),
    lambda eta: gammaln(eta[0]) - eta[0] * _log(-eta[1]),
    signs=(1, -1),
)
BETA = Family(jax.jit(_vector), _log_beta, signs=(1,))  # by its two shapes
DIRICHLET = Family(jnp.asarray, _log_beta, signs=(1,))  # by its concentrations, a vector
NORMAL = Family(  # by mean and standard deviation
    jax.jit(_of_normal),
    lambda eta: -0.25 * eta[0] * _quotient(eta[0], eta[1]) - 0.5 * _log(-2 * eta[1]),
    signs=(0, -1),
)
