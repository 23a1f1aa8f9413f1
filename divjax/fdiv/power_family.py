"""The power family of f-divergences, r² f''(r) = c·r^α: KL, Hellinger, χ² and those between.

f is in the standard form f(1) = f'(1) = 0, and each divergence's docstring states its scale.
"""

import math
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from divjax.core.numerics import nan_unless
from divjax.core.pytrees import pytree
from divjax.fdiv.generators import Generator
from divjax.fdiv.integrands import compiled
from divjax.fdiv.special import as_floats, expm1_over, log1p_over, nan_where_nan, power_remainder

__all__ = [
    "KL",
    "Alpha",
    "ChiSquared",
    "CressieRead",
    "NeymanChiSquared",
    "ReverseKL",
    "SquaredHellinger",
    "check_finite",
    "integrand_share",
]


@compiled
class _Power(Generator):
    """c (r^α − 1 − α(r − 1))/(α(α − 1)), with h = c·r^α."""

    alpha: ArrayLike
    scale = 1.0

    @property
    def _order(self) -> ArrayLike:
        """α, NaN for array entries that are not finite."""
        if isinstance(self.alpha, (int, float)):
            return self.alpha
        return nan_unless(jnp.isfinite(self.alpha), self.alpha)

    def f(self, u: ArrayLike) -> Array:
        """The generator at r = e^u."""
        return self.scale * power_remainder(u, self._order)

    def derivative(self, u: ArrayLike) -> Array:
        """The critic c (r^{α−1} − 1)/(α − 1)."""
        return self.scale * expm1_over(u, self._order - 1)

    def _power(self, u: ArrayLike, exponent: ArrayLike) -> Array:
        x = jnp.multiply(u, exponent)
        # r⁰ is 1 even for infinite u, for which the product is NaN.
        return self.scale * jnp.exp(jnp.where(jnp.equal(exponent, 0) & jnp.isinf(u), 0, x))

    def curvature(self, u: ArrayLike) -> Array:
        """The curvature c r^α."""
        return self._power(u, self._order)

    def second_derivative(self, u: ArrayLike) -> Array:
        """The second derivative c r^{α−2}."""
        return self._power(u, self._order - 2)

    def dual_integrand_q(self, u: ArrayLike) -> Array:
        """The term c (1 − r^α)/α."""
        return -self.scale * expm1_over(u, self._order)

    def integrand_p(self, u: ArrayLike) -> Array:
        """f'(r)/α for α ≥ 1, zero for α ≤ 0, a smooth share of it between."""
        return _shared(self._order, self.derivative, u)

    def integrand_q(self, u: ArrayLike) -> Array:
        """(f − r f')/(1 − α) for α ≤ 0, zero for α ≥ 1, a smooth share of it between."""
        return _shared(1 - self._order, self.dual_integrand_q, u)

    def conjugate(self, t: ArrayLike) -> Array:
        """The conjugate c ((1 + (α−1)t/c)^{α/(α−1)} − 1)/α, smooth in α."""
        t, alpha = jnp.broadcast_arrays(*as_floats(jnp.divide(t, self.scale), self._order))
        inside = (alpha - 1) * t > -1
        # The maximiser r = e^u solves c (r^{α−1} − 1)/(α − 1) = t.
        u = log1p_over(jnp.where(inside, t, 0), alpha - 1)
        value = expm1_over(jnp.where(inside, u, jnp.where(alpha < 1, jnp.inf, -jnp.inf)), alpha)
        # Beyond f'(∞) = c/(1 − α) the supremum is infinite.
        value = jnp.where((alpha < 1) & ((1 - alpha) * t > 1), jnp.inf, value)
        return self.scale * nan_where_nan(value, t, alpha)


def integrand_share(alpha: Array) -> Array:
    """w(α)/α, with w rising from 0 at α ≤ 0 to 1 at α ≥ 1.

    As D = E_p[T]/α = E_q[S]/(1 − α) in the power family, D = w E_p[T]/α + (1 − w) E_q[S]/(1 − α)
    for any w. Whatever p and q, the variance of T under p is finite for ½ ≤ α < 1, and that of S
    under q for 0 < α ≤ ½. At α = ½ both have the same share. The quintic step that joins these
    keeps integrands continuously differentiable in α.
    """
    # The smoothstep w = 10α³ − 15α⁴ + 6α⁵, divided by α: two continuous derivatives at 0 and 1.
    step = alpha**2 * (6 * alpha**2 - 15 * alpha + 10)
    return jnp.where(alpha > 1, 1 / jnp.where(alpha > 1, alpha, 1), jnp.where(alpha < 0, 0, step))


def _shared(alpha: ArrayLike, integrand: Callable[[ArrayLike], Array], u: ArrayLike) -> Array:
    """The share of an integrand, not evaluated at u for a share of zero: it may overflow."""
    alpha, u = as_floats(alpha, u)
    share = integrand_share(alpha)
    used = share > 0
    value = jnp.where(used, share * integrand(jnp.where(used, u, 0)), 0)
    return nan_where_nan(value, u, alpha)


def check_finite(**values: object) -> None:
    """Raise `ValueError` for a Python number that is not finite."""
    for name, value in values.items():
        if isinstance(value, (int, float)) and not math.isfinite(value):
            raise ValueError(f"{name} must be finite; got {value}.")


@pytree
class Alpha(_Power):
    """The power (alpha) divergence D = (∫ p^α q^{1−α} − 1)/(α(α − 1)), smooth in α.

    KL(p‖q) at α = 1, KL(q‖p) at α = 0, 4 times the squared Hellinger distance at ½, half of
    ∫(p − q)²/q at 2. r² f''(r) = r^α, and Amari's parameter is 2α − 1. The integrands are under p
    for α ≥ 1, under q for α ≤ 0, and joined smoothly between.

    Attributes:
        alpha: any real number. An infinite array gives NaN.

    Raises:
        ValueError: if alpha is a Python number that is not finite.

    Example:
        >>> float(Alpha(2.0).f(0.5)), float((jnp.exp(0.5) - 1) ** 2 / 2)
        (0.2104, 0.2104)

    References:
        Liese, Vajda 2006; Amari 2009, for the family.
    """

    alpha: ArrayLike

    def __post_init__(self):
        check_finite(alpha=self.alpha)


@pytree
class CressieRead(_Power):
    """The power divergence of Cressie and Read, E_p[(p/q)^λ − 1]/(λ(λ + 1)): `Alpha(λ + 1)`.

    Their test statistic is 2n times this divergence, and they recommend λ = ⅔.

    Attributes:
        power: the power λ.

    Raises:
        ValueError: if the power is a Python number that is not finite.

    Example:
        >>> float(CressieRead(1.0).f(0.5)), float(Alpha(2.0).f(0.5))
        (0.2104, 0.2104)

    References:
        Cressie, Read 1984.
    """

    power: ArrayLike = 2 / 3

    def __post_init__(self):
        check_finite(power=self.power)

    @property
    def alpha(self) -> Array:
        """The order α = λ + 1 of `Alpha`."""
        return jnp.add(self.power, 1)


@pytree
class KL(_Power):
    """The Kullback–Leibler divergence KL(p‖q) = E_p[log(p/q)], f(r) = r log r − r + 1.

    Example:
        >>> float(KL().integrand_p(1.5)), float(KL().integrand_q(1.5)), float(KL().conjugate(1.0))
        (1.5, 0.0, 1.7183)

    References:
        Kullback, Leibler 1951.
    """

    alpha = 1.0


@pytree
class ReverseKL(_Power):
    """The reverse divergence KL(q‖p) = −E_q[log(p/q)], f(r) = r − 1 − log r.

    Example:
        >>> float(ReverseKL().integrand_p(1.5)), float(ReverseKL().integrand_q(1.5))
        (0.0, -1.5)

    References:
        Nowozin, Cseke, Tomioka 2016, table 1.
    """

    alpha = 0.0


@pytree
class SquaredHellinger(_Power):
    """The squared Hellinger distance 1 − ∫√(pq) = ½ ∫(√p − √q)², f(r) = ½(√r − 1)², at most 1.

    Example:
        >>> float(SquaredHellinger().f(jnp.log(4.0))), float(SquaredHellinger().f(-jnp.inf))
        (0.5, 0.5)

    References:
        Le Cam 1986.
    """

    alpha, scale = 0.5, 0.25


@pytree
class ChiSquared(_Power):
    """Pearson's χ²(p‖q) = ∫(p − q)²/q = E_p[p/q] − 1, f(r) = (r − 1)².

    Example:
        >>> float(ChiSquared().f(jnp.log(3.0))), float(ChiSquared().integrand_p(jnp.log(3.0)))
        (4.0, 2.0)

    References:
        Nowozin, Cseke, Tomioka 2016, table 6.
    """

    alpha, scale = 2.0, 2.0


@pytree
class NeymanChiSquared(_Power):
    """Neyman's χ²(q‖p) = ∫(p − q)²/p = E_q[q/p] − 1, f(r) = (r − 1)²/r.

    Example:
        >>> float(NeymanChiSquared().f(-jnp.log(3.0))), float(NeymanChiSquared().integrand_q(0.0))
        (1.3333, 0.0)

    References:
        Nowozin, Cseke, Tomioka 2016, table 6.
    """

    alpha, scale = -1.0, 2.0
