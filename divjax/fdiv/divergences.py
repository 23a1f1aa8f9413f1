"""The divergences of the literature: the power family, mixtures, total variation, Rényi.

All divergences are in nats with p first. f is in the standard form f(1) = f'(1) = 0, and each
divergence's docstring states its scale.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from divjax.core.checks import check_nonnegative
from divjax.core.numerics import nan_unless
from divjax.core.pytrees import pytree, select
from divjax.core.samples import Numbers
from divjax.fdiv.generators import Generator, Mixture, check_share
from divjax.fdiv.integrands import Divergence, PlugIn, compiled, normalized, where_weighted
from divjax.fdiv.power_family import (
    KL,
    Alpha,
    ChiSquared,
    CressieRead,
    NeymanChiSquared,
    ReverseKL,
    SquaredHellinger,
    check_finite,
    integrand_share,
)
from divjax.fdiv.special import (
    as_floats,
    expm1_over,
    log1p_over,
    log_mixture,
    nan_where_nan,
    power_remainder,
    times_exp,
)

__all__ = [
    "KL",
    "Alpha",
    "ChiSquared",
    "CressieRead",
    "Jeffreys",
    "JensenShannon",
    "NeymanChiSquared",
    "Renyi",
    "ReverseKL",
    "SkewKL",
    "SoftenedReverseKL",
    "SquaredHellinger",
    "TotalVariation",
    "check_slope",
]


@compiled
@pytree
class Jeffreys(Generator):
    """Jeffreys' divergence KL(p‖q) + KL(q‖p), f(r) = (r − 1) log r.

    Example:
        >>> float(Jeffreys().integrand_p(1.5)), float(Jeffreys().integrand_q(1.5))
        (1.5, -1.5)

    References:
        Jeffreys 1946.
    """

    def f(self, u: ArrayLike) -> Array:
        """The value u (e^u − 1)."""
        return jnp.multiply(u, jnp.expm1(u))

    def derivative(self, u: ArrayLike) -> Array:
        """The critic log r + 1 − 1/r."""
        return jnp.subtract(u, jnp.expm1(jnp.negative(u)))

    def curvature(self, u: ArrayLike) -> Array:
        """1 + r."""
        return 1 + jnp.exp(u)

    def dual_integrand_q(self, u: ArrayLike) -> Array:
        """1 − r − log r."""
        return -jnp.expm1(u) - u

    def integrand_p(self, u: ArrayLike) -> Array:
        """The log ratio."""
        return as_floats(u)[0]

    def integrand_q(self, u: ArrayLike) -> Array:
        """Minus the log ratio."""
        return -as_floats(u)[0]


@compiled
@pytree
class TotalVariation(Generator):
    """The total variation ½ ∫|p − q|, f(r) = ½|r − 1|, at most 1.

    f' jumps by one at r = 1 and is taken as 0 there. r² f'' is taken as 0 everywhere.

    Example:
        >>> float(TotalVariation().integrand_p(0.3)), float(TotalVariation().integrand_q(0.3))
        (0.5, -0.5)

    References:
        Nowozin, Cseke, Tomioka 2016, table 6.
    """

    def f(self, u: ArrayLike) -> Array:
        """½|e^u − 1|."""
        difference = jnp.expm1(u)
        # With its sign held fixed the derivative at zero is zero, where that of `abs` is one.
        return difference * jax.lax.stop_gradient(jnp.sign(difference)) / 2

    def derivative(self, u: ArrayLike) -> Array:
        """½ sign(u)."""
        return jnp.sign(as_floats(u)[0]) / 2

    def curvature(self, u: ArrayLike) -> Array:
        """0."""
        (u,) = as_floats(u)
        return nan_where_nan(jnp.zeros_like(u), u)

    def dual_integrand_q(self, u: ArrayLike) -> Array:
        """−½ sign(u)."""
        return -self.derivative(u)

    def conjugate(self, t: ArrayLike) -> Array:
        """The identity on [−½, ½], −½ below."""
        (t,) = as_floats(t)
        return jnp.where(t > 0.5, jnp.inf, jnp.maximum(t, -0.5))


def check_slope(name: str, divergence: object) -> None:
    """Raise `ValueError` for the total variation, whose dual is constant where p ≠ q."""
    if isinstance(divergence, TotalVariation):
        raise ValueError(
            f"{name} must have a slope in the log ratio, by which a network learns and particles "
            "move. TotalVariation has none: take JensenShannon or SquaredHellinger."
        )


@compiled
@pytree
class JensenShannon(Generator):
    """The Jensen–Shannon divergence ½ KL(p‖m) + ½ KL(q‖m) with m = (p + q)/2, at most log 2 nats.

    f(r) = ½ r log r − ½ (1 + r) log((1 + r)/2), half of the generator of f-GAN and f-distill.

    Example:
        >>> js = JensenShannon()
        >>> float(js.integrand_p(jnp.inf)), float(js.integrand_q(-jnp.inf))
        (0.3466, 0.3466)

    References:
        Lin 1991.
    """

    def f(self, u: ArrayLike) -> Array:
        """The generator at r = e^u, as a sum of two non-negative values of that of KL."""
        log_mean = log_mixture(u, 0.5)
        # log(p/m) and log(q/m): JS = ½ E_m[f(p/m) + f(q/m)] with the f of KL. The factor m/q turns
        # it into a mean under q.
        log_p_over_m, log_q_over_m = -log_mixture(jnp.negative(u), 0.5), -log_mean
        halves = power_remainder(log_p_over_m, 1.0) + power_remainder(log_q_over_m, 1.0)
        return times_exp(halves / 2, log_mean)

    def derivative(self, u: ArrayLike) -> Array:
        """½ log(2r/(1 + r))."""
        return -log_mixture(jnp.negative(u), 0.5) / 2

    def curvature(self, u: ArrayLike) -> Array:
        """½ r/(1 + r)."""
        return jax.nn.sigmoid(as_floats(u)[0]) / 2

    def dual_integrand_q(self, u: ArrayLike) -> Array:
        """½ log(2/(1 + r))."""
        return -log_mixture(u, 0.5) / 2

    def conjugate(self, t: ArrayLike) -> Array:
        """−½ log(2 − e^{2t}), for t < ½ log 2."""
        (t,) = as_floats(t)
        inside = t < jnp.log(2.0) / 2
        value = -jnp.log1p(-jnp.expm1(2 * jnp.where(inside, t, 0))) / 2
        return nan_where_nan(jnp.where(inside, value, jnp.inf), t)


@pytree
class SkewKL(Mixture):
    """The skew divergence KL(p‖αp + (1 − α)q), at most −log α nats.

    α is the share of p in the second argument, so that α = 0 is KL(p‖q).

    Attributes:
        alpha: α in [0, 1).

    Raises:
        ValueError: if alpha is a Python number outside [0, 1).

    Example:
        >>> float(SkewKL(0.1).integrand_p(jnp.inf)), float(SkewKL(0.1).integrand_q(0.0))
        (2.3026, 0.0)

    References:
        Lee 2001, who writes α for our 1 − α; Ko et al. 2024, as here.
    """

    alpha: ArrayLike = 0.1

    generator = KL()

    def __post_init__(self):
        check_share(self.alpha)


@pytree
class SoftenedReverseKL(Mixture):
    """The softened reverse KL, 2 KL(m‖p) with m = (p + q)/2.

    f(r) = (1 + r) log((1 + r)/(2r)) + r − 1, with r² f''(r) = 1/(1 + r). This approaches the
    reverse KL's 1 where p has less mass than q, and bounds the variance where p has more. The scale
    is that of f-distill. Shannon's is twice it.

    Example:
        >>> float(SoftenedReverseKL().curvature(0.0)), float(SoftenedReverseKL().integrand_p(0.0))
        (0.5, 0.0)

    References:
        Shannon 2020, the divergence; Xu et al. 2025 (f-distill), the scale.
    """

    generator, alpha = 2 * ReverseKL(), 0.5


def _log_power(u: Array, exponent: Array) -> Array:
    """The logarithm of r^α under q: −∞ at a point without mass under p, even for α = 0."""
    empty = u == -jnp.inf
    return jnp.where(empty, -jnp.inf, exponent * jnp.where(empty, 0, u))


@compiled
@pytree
class Renyi(Divergence):
    """The Rényi divergence log(∫ p^α q^{1−α})/(α − 1) in nats, smooth in α with KL(p‖q) at α = 1.

    It is log(1 + α(α − 1) D_α)/(α − 1), a function of the mean of `Alpha`'s integrands. At α = 0 it
    is −log q(p > 0), which depends on the supports alone.

    Attributes:
        alpha: the order α ≥ 0. A negative array entry gives NaN.

    Raises:
        ValueError: if alpha is a Python number that is negative or not finite.

    Example:
        >>> import jax.numpy as jnp
        >>> u = jnp.array([300.0, 301.0])  # whose exponentials overflow
        >>> float(Renyi(2.0).plug_in(u, u).value), float(300 + jnp.log((1 + jnp.e) / 2))
        (300.620, 300.620)

    References:
        Rényi 1961; van Erven, Harremoës 2014.
    """

    alpha: ArrayLike

    def __post_init__(self):
        check_nonnegative(alpha=self.alpha)
        check_finite(alpha=self.alpha)

    @property
    def _order(self) -> float | Array:
        # Checked at the construction. Entries of arrays, which may be traced, become NaN.
        if isinstance(self.alpha, (int, float)):
            return self.alpha
        return nan_unless(jnp.greater_equal(self.alpha, 0), self.alpha)

    def integrand_p(self, u: ArrayLike) -> Array:
        """The integrand of `Alpha` under p."""
        return Alpha(self._order).integrand_p(u)

    def integrand_q(self, u: ArrayLike) -> Array:
        """The integrand of `Alpha` under q."""
        return Alpha(self._order).integrand_q(u)

    def dual_integrand_p(self, u: ArrayLike) -> Array:
        """The dual integrand of `Alpha` under p."""
        return Alpha(self._order).dual_integrand_p(u)

    def dual_integrand_q(self, u: ArrayLike) -> Array:
        """The dual integrand of `Alpha` under q."""
        return Alpha(self._order).dual_integrand_q(u)

    def curvature(self, u: ArrayLike) -> Array:
        """The curvature α r^α: near p = q the divergence is α D_α, whose r² f'' this is."""
        return jnp.multiply(self._order, Alpha(self._order).curvature(u))

    def transform(self, mean: ArrayLike) -> Array:
        """log(1 + α(α − 1)·mean)/(α − 1)."""
        return log1p_over(jnp.multiply(self._order, mean), jnp.subtract(self._order, 1))

    def plug_in(
        self,
        u_p: Float[Numbers, " n"],
        u_q: Float[Numbers, " m"],
        a: Float[Numbers, " n"] | None = None,
        b: Float[Numbers, " m"] | None = None,
    ) -> PlugIn:
        """The divergence and its influences, by log-sum-exp if the integral is far from one."""
        a, b = normalized("a", a, u_p), normalized("b", b, u_q)
        u_p, u_q = where_weighted(u_p, a), where_weighted(u_q, b)
        alpha, u_p, u_q = as_floats(self._order, u_p, u_q)
        order = alpha - 1
        powers = order * u_p, _log_power(u_q, alpha)
        weights, log_integral = self._log_integral(powers, (a, b))
        # At α = 0 the integral is the share of q's samples where p has mass. `Alpha`'s mean, the
        # reverse KL, is infinite if p has none at one of them.
        # Near one the logarithm of the integral would cancel. The mean of `Alpha`'s integrands does
        # not.
        near = (jnp.abs(log_integral) < 1) & (alpha > 0)
        # The unused branch gets log ratios of zero, so that neither its values nor its slopes
        # overflow.
        direct = super().plug_in(jnp.where(near, u_p, 0), jnp.where(near, u_q, 0), a, b)
        scale = 1 / jnp.where(near, 1, order)
        # The influences of log I are the shares of its terms, e^{x − log I}, here divided by α − 1.
        far = PlugIn(
            scale * log_integral,
            *(
                where_weighted(
                    scale * weight * jnp.exp(jnp.where(near | (weight == 0), 0, x - log_integral)),
                    own,
                )
                for weight, x, own in zip(weights, powers, (a, b), strict=True)
            ),
        )
        # A sample may have no share in the integral, in which its NaN would vanish.
        numbers = jax.tree.leaves((u_p, u_q, a, b))
        known = ~jnp.stack([jnp.isnan(leaf).any() for leaf in numbers]).any()
        chosen = select(near, direct, far)
        return jax.tree.map(lambda leaf: nan_unless(known, leaf), chosen)

    def sensitivities(
        self,
        u_p: Float[Numbers, " n"],
        u_q: Float[Numbers, " m"],
        a: Float[Numbers, " n"] | None = None,
        b: Float[Numbers, " m"] | None = None,
    ) -> tuple[Float[Array, " n"], Float[Array, " m"]]:
        """The derivatives α r^{α−1}/I and −α r^α/I, with the integral I by log-sum-exp."""
        alpha, u_p, u_q = as_floats(self._order, u_p, u_q)
        powers = (alpha - 1) * u_p, _log_power(u_q, alpha)
        _, log_integral = self._log_integral(powers, (a, b))
        of_term = lambda power: alpha * jnp.exp(power - log_integral)
        return of_term(powers[0]), -of_term(powers[1])

    def potentials(
        self,
        u_p: Float[Numbers, " n"],
        u_q: Float[Numbers, " m"],
        a: Float[Numbers, " n"] | None = None,
        b: Float[Numbers, " m"] | None = None,
    ) -> tuple[Float[Array, " n"], Float[Array, " m"]]:
        """α/(α − 1) r^{α−1}/I and −r^α/I up to constants, with the integral I by log-sum-exp."""
        alpha, u_p, u_q = as_floats(self._order, u_p, u_q)
        log_powers = (alpha - 1) * u_p, _log_power(u_q, alpha)
        _, log_integral = self._log_integral(log_powers, (a, b))
        # log I = (α − 1) R, with the divergence R, keeps the first smooth at α = 1.
        value = Renyi.plug_in(self, u_p, u_q, a, b).value
        return alpha * expm1_over(u_p - value, alpha - 1), -jnp.exp(log_powers[1] - log_integral)

    def _log_integral(
        self, powers: tuple[Array, Array], weights: tuple[Array | None, Array | None]
    ) -> tuple[Array, Array]:
        """The weights of the means under p and under q in ∫ p^α q^{1−α}, and its logarithm.

        The weights are those of `Alpha`'s integrands.
        """
        share_p = jnp.asarray(self._order, powers[0].dtype)
        share_p = share_p * integrand_share(share_p)
        shares = jnp.stack([share_p, 1 - share_p])
        # The integral is a mean under p and one under q, combined by the shares.
        logs = jnp.stack(
            [
                # A row of weight zero may hold any power, and zero times infinity would be NaN.
                jax.nn.logsumexp(x) - jnp.log(x.size)
                if w is None
                else jax.nn.logsumexp(jnp.where(w == 0, -jnp.inf, x), b=w)
                for x, w in zip(powers, weights, strict=True)
            ]
        )
        return shares, jax.nn.logsumexp(logs, b=shares)
