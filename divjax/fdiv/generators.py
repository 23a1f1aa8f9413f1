"""f-divergences by their generators, as functions of the log ratio u = log(p/q).

D_f(p‖q) = E_q[f(p/q)] with f convex. A multiple of r − 1 added to f changes no divergence. All
generators here are in the standard form f(1) = f'(1) = 0, so that f ≥ 0. Two facts are used
throughout:

- f(r) = r T + S with T = f'(r) and S = f(r) − r f'(r), hence D = E_p[T] + E_q[S]. A wrong ratio in
  T and S lowers this sum, to second order only (Nguyen, Wainwright, Jordan 2010).
- dT = e^{−u} h du and dS = −h du with h = r² f''(r): h determines the generator.

Most divergences are in the power family `Alpha`, h = c·r^α, or are members of it between p and the
mixture αp + (1 − α)q. Generators can also be added, scaled and reversed.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from divjax.core.checks import check_positive
from divjax.core.numerics import nan_unless
from divjax.core.pytrees import pytree
from divjax.fdiv.integrands import Divergence, PlugIn, compiled
from divjax.fdiv.special import as_floats, log_mixture, nan_where_nan, times_exp

__all__ = ["Combination", "Divergence", "Generator", "Mixed", "PlugIn", "Reversed"]


@compiled
class Generator(Divergence):
    """The generator of an f-divergence: a subclass needs only `f`, and autodiff gives the rest.

    It is a pytree whose methods are compiled as by `jax.jit`: numbers that may change are fields of
    it, and a global that `f` refers to is read once.

    Methods take u = log r of any shape, elementwise. Default methods clip |u| to 0.9 of the
    logarithm of the dtype's largest number, 80 in float32. By default r² f'' is the difference
    d²f/du² − df/du, with a rounding error relative to these, not to itself: override `curvature` if
    its values far below them matter. `g + h`, `c * g` and `g.reverse()` are generators too.

    Example:
        >>> from divjax import pytree
        >>> @pytree
        ... class ExponentialDivergence(Generator):
        ...     def f(self, u):
        ...         return jnp.exp(u) * u**2  # E_p[log² (p/q)], where it is convex
        >>> own = ExponentialDivergence()
        >>> float(own.derivative(1.0)), float(own.curvature(0.0)), float(own.conjugate(3.0))
        (3.0, 2.0, 5.4366)
    """

    def f(self, u: ArrayLike) -> Array:
        """The generator at r = e^u, with value and slope 0 at r = 1."""
        raise NotImplementedError

    def _slopes(self, u: ArrayLike) -> tuple[Array, Array, Array, Array]:
        """Clipped u, and f, df/du and d²f/du² at it."""
        (u,) = as_floats(u)
        limit = 0.9 * jnp.log(jnp.finfo(u.dtype).max)
        u, ones = jnp.clip(u, -limit, limit), jnp.ones_like(u)
        # Forward over forward: both derivatives of an elementwise function in one pass.
        slope = lambda v: jax.jvp(self.f, (v,), (ones,))
        (value, first), (_, second) = jax.jvp(slope, (u,), (ones,))
        return u, value, first, second

    def derivative(self, u: ArrayLike) -> Array:
        """The derivative f'(e^u)."""
        u, _, first, _ = self._slopes(u)
        return times_exp(first, -u)

    def curvature(self, u: ArrayLike) -> Array:
        """The curvature r² f''(r), which weights the squared error of a log ratio."""
        _, _, first, second = self._slopes(u)
        return second - first

    def second_derivative(self, u: ArrayLike) -> Array:
        """The second derivative f''(e^u)."""
        (u,) = as_floats(u)
        return times_exp(self.curvature(u), -2 * u)

    def dual_integrand_p(self, u: ArrayLike) -> Array:
        """The critic f'(r) of the variational bound E_p[T] − E_q[f*(T)]."""
        return self.derivative(u)

    def dual_integrand_q(self, u: ArrayLike) -> Array:
        """The contribution f(r) − r f'(r) = −f*(f'(r)) of the critic f'(r) under q."""
        _, value, first, _ = self._slopes(u)
        return value - first

    def integrand_p(self, u: ArrayLike) -> Array:
        """The integrand under p, by default the variational one."""
        return self.dual_integrand_p(u)

    def integrand_q(self, u: ArrayLike) -> Array:
        """The integrand under q, by default the variational one."""
        return self.dual_integrand_q(u)

    @property
    def conjugate_supremum(self) -> Array:
        """The slope f'(∞), beyond which f* is infinite."""
        return self.derivative(jnp.inf)

    def conjugate(self, t: ArrayLike) -> Array:
        """f*(t) = sup_r (rt − f(r)), +∞ beyond `conjugate_supremum`.

        By default the maximiser comes from bisection and one differentiable Newton step, so that
        first and second derivatives are exact.
        """
        (t,) = as_floats(t)
        infinity = jnp.full_like(t, jnp.inf)
        supremum = self.derivative(infinity)
        # 0 = f'(1) is in the domain of every f*.
        inside = jnp.where(t < supremum, t, 0)
        start = jax.lax.stop_gradient(_inverse_derivative(self, inside))
        # If f has a kink the maximiser stays at it, where the step would be long.
        excess, slope = inside - self.derivative(start), self.curvature(start)
        step = jnp.where(slope > 0, excess / jnp.where(slope > 0, slope, 1), 0)
        step = step * jnp.exp(start)
        tolerance = jnp.sqrt(jnp.finfo(t.dtype).eps) * (1 + jnp.abs(start))
        u = start + jnp.where(jnp.abs(step) < tolerance, step, 0)
        # r(t − f'(r)) − (f(r) − r f'(r)) = rt − f(r) at r = e^u, where the first term is small.
        value = times_exp(inside - self.derivative(u), u) - self.dual_integrand_q(u)
        # At t = f'(∞) the supremum is the limit of r f'(r) − f(r).
        edge = jnp.where(t == supremum, -self.dual_integrand_q(infinity), infinity)
        # Comparisons with NaN (in t, or in the supremum through a parameter) are false.
        return nan_where_nan(jnp.where(t < supremum, value, edge), t, supremum)

    def reverse(self) -> "Generator":
        """The generator of D(q‖p) as a divergence of p from q, r f(1/r)."""
        return Reversed(self)

    def __add__(self, other: "Generator") -> "Generator":
        if not isinstance(other, Divergence):
            return NotImplemented
        return Combination((self, other), (1.0, 1.0))

    def __mul__(self, factor: ArrayLike) -> "Generator":
        return Combination((self,), (factor,))

    __rmul__ = __mul__


def _inverse_derivative(generator: Generator, t: Array) -> Array:
    """The u with f'(e^u) = t, by bisection, clipped to the representable range."""
    # Derivatives come from the Newton step that follows. Those of the bisection, which only
    # compares, would be zero.
    generator, t = jax.lax.stop_gradient((generator, t))
    limit = jnp.full_like(t, 0.9 * jnp.log(jnp.finfo(t.dtype).max))

    def halve(_, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = (low + high) / 2
        below = generator.derivative(middle) < t
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    # 64 halvings of the range exhaust the digits of float64.
    low, high = jax.lax.fori_loop(0, 64, halve, (-limit, limit))
    return (low + high) / 2


@compiled
@pytree
class Combination(Generator):
    """A sum Σ c_i f_i of generators with positive factors, the result of `+` and `*`.

    Attributes:
        generators: the f_i.
        factors: the c_i.

    Raises:
        ValueError: if a factor is a Python number that is not positive.

    Example:
        >>> from divjax.fdiv import KL, ReverseKL
        >>> generator = 0.5 * KL() + 0.5 * ReverseKL()
        >>> float(generator.integrand_p(2.0)), float(generator.integrand_q(2.0))
        (1.0, -1.0)
    """

    generators: tuple[Generator, ...]
    factors: tuple[ArrayLike, ...]

    def __post_init__(self):
        if not self.generators or len(self.generators) != len(self.factors):
            raise ValueError(
                "generators and factors must have the same length of at least one; got "
                f"{len(self.generators)} and {len(self.factors)}."
            )
        for generator in self.generators:
            check_generator(generator)
        for factor in self.factors:
            check_positive(factor=factor)

    def _sum(self, method: str, u: ArrayLike) -> Array:
        terms = (getattr(generator, method)(u) for generator in self.generators)
        scaled = (jnp.multiply(c, term) for c, term in zip(self._factors, terms, strict=True))
        return functools.reduce(jnp.add, scaled)

    @property
    def _factors(self) -> tuple[ArrayLike, ...]:
        """The factors, NaN for array entries that are not positive."""
        return tuple(
            c if isinstance(c, (int, float)) else nan_unless(jnp.greater(c, 0), c)
            for c in self.factors
        )

    def f(self, u: ArrayLike) -> Array:
        """Σ c_i f_i(e^u)."""
        return self._sum("f", u)

    def derivative(self, u: ArrayLike) -> Array:
        """Σ c_i f_i'(e^u)."""
        return self._sum("derivative", u)

    def curvature(self, u: ArrayLike) -> Array:
        """Σ c_i h_i(u)."""
        return self._sum("curvature", u)

    def second_derivative(self, u: ArrayLike) -> Array:
        """Σ c_i f_i''(e^u)."""
        return self._sum("second_derivative", u)

    def dual_integrand_q(self, u: ArrayLike) -> Array:
        """Σ c_i (f_i − r f_i')."""
        return self._sum("dual_integrand_q", u)

    def integrand_p(self, u: ArrayLike) -> Array:
        """The sum of the integrands under p."""
        return self._sum("integrand_p", u)

    def integrand_q(self, u: ArrayLike) -> Array:
        """The sum of the integrands under q."""
        return self._sum("integrand_q", u)

    def conjugate(self, t: ArrayLike) -> Array:
        """The conjugate: c f*(t/c) for a single term, the general method for several terms."""
        pairs = list(zip(self.generators, self._factors, strict=True))
        # The conjugate of a sum is an infimal convolution, which has no closed form in general.
        if len(pairs) > 1:
            return super().conjugate(t)
        generator, factor = pairs[0]
        return jnp.multiply(factor, generator.conjugate(jnp.divide(t, factor)))


@compiled
@pytree
class Reversed(Generator):
    """The generator r f(1/r) of D(q‖p), both integrands exchanged and taken at −u.

    `f` and `curvature` are r times those of the generator at 1/r, and leave the dtype's range with
    these. The integrands, and hence divergences, do not.

    Attributes:
        generator: the generator f.

    Example:
        >>> from divjax.fdiv import KL, ReverseKL
        >>> float(Reversed(KL()).integrand_q(2.0)), float(ReverseKL().integrand_q(2.0))
        (-2.0, -2.0)
    """

    generator: Generator

    def __post_init__(self):
        check_generator(self.generator)

    def f(self, u: ArrayLike) -> Array:
        """The generator at 1/r, times r."""
        return times_exp(self.generator.f(jnp.negative(u)), jnp.asarray(u))

    def derivative(self, u: ArrayLike) -> Array:
        """f(1/r) − f'(1/r)/r."""
        return self.generator.dual_integrand_q(jnp.negative(u))

    def curvature(self, u: ArrayLike) -> Array:
        """The generator's curvature at −u, times r."""
        return times_exp(self.generator.curvature(jnp.negative(u)), jnp.asarray(u))

    def second_derivative(self, u: ArrayLike) -> Array:
        """The generator's curvature at −u, divided by r."""
        return times_exp(self.generator.curvature(jnp.negative(u)), jnp.negative(u))

    def dual_integrand_q(self, u: ArrayLike) -> Array:
        """f'(1/r)."""
        return self.generator.derivative(jnp.negative(u))

    def integrand_p(self, u: ArrayLike) -> Array:
        """The generator's integrand under q, at −u."""
        return self.generator.integrand_q(jnp.negative(u))

    def integrand_q(self, u: ArrayLike) -> Array:
        """The generator's integrand under p, at −u."""
        return self.generator.integrand_p(jnp.negative(u))


@compiled
class Mixture(Generator):
    """The divergence D_f(p‖m) with m = αp + (1 − α)q, in terms of v = log(p/m)."""

    generator: Generator
    alpha: ArrayLike

    @property
    def _share(self) -> float | Array:
        """The share α, NaN for array entries outside [0, 1)."""
        alpha = self.alpha
        if isinstance(alpha, (int, float)):
            return alpha
        return nan_unless((jnp.asarray(alpha) >= 0) & (jnp.asarray(alpha) < 1), alpha)

    def _log_ratio(self, u: ArrayLike) -> Array:
        # log(p/m) = −log(α + (1 − α) e^{−u}), which needs no e^u.
        return -log_mixture(jnp.negative(u), jnp.subtract(1, self._share), self._share)

    def f(self, u: ArrayLike) -> Array:
        """The generator at p/m, times αr + 1 − α."""
        return times_exp(self.generator.f(self._log_ratio(u)), log_mixture(u, self._share))

    def _plus_share(self, term: Array, integrand: Callable[[Array], Array], v: Array) -> Array:
        """The term plus α times an integrand under m at v, which at α = 0 may overflow."""
        # α > 0 keeps v below −log α. At α = 0 the argument is clipped, as 0 times an infinite value
        # or slope would be NaN.
        limit = 0.9 * jnp.log(jnp.finfo(v.dtype).max) / 2
        at = integrand(jnp.where(jnp.equal(self._share, 0), jnp.clip(v, -limit, limit), v))
        # If both are infinite their signs differ, and the limit is the term.
        largest = jnp.finfo(at.dtype).max
        clipped = jnp.clip(at, -largest, largest)
        return term + self._share * jnp.where(jnp.isinf(term), clipped, at)

    def derivative(self, u: ArrayLike) -> Array:
        """T(v) + α S(v)."""
        v = self._log_ratio(u)
        return self._plus_share(self.generator.derivative(v), self.generator.dual_integrand_q, v)

    def curvature(self, u: ArrayLike) -> Array:
        """The generator's curvature at v, times (1 − α)²/(αr + 1 − α)."""
        weight = jnp.square(jnp.subtract(1, self._share))
        at_ratio = self.generator.curvature(self._log_ratio(u))
        return weight * times_exp(at_ratio, -log_mixture(u, self._share))

    def second_derivative(self, u: ArrayLike) -> Array:
        """The generator's second derivative at p/m, times (1 − α)²/(αr + 1 − α)³."""
        weight = jnp.square(jnp.subtract(1, self._share))
        curvature = self.generator.second_derivative(self._log_ratio(u))
        return weight * times_exp(curvature, -3 * log_mixture(u, self._share))

    def dual_integrand_q(self, u: ArrayLike) -> Array:
        """(1 − α) S(v)."""
        return (1 - self._share) * self.generator.dual_integrand_q(self._log_ratio(u))

    def integrand_p(self, u: ArrayLike) -> Array:
        """The integrand under p, plus α times that under m."""
        v = self._log_ratio(u)
        return self._plus_share(self.generator.integrand_p(v), self.generator.integrand_q, v)

    def integrand_q(self, u: ArrayLike) -> Array:
        """The integrand under m times 1 − α."""
        return (1 - self._share) * self.generator.integrand_q(self._log_ratio(u))


@pytree
class Mixed(Mixture):
    """The divergence from a mixture, D_f(p‖αp + (1 − α)q), for any generator f.

    Attributes:
        generator: the generator f.
        alpha: the share α in [0, 1) of p in the second argument.

    Raises:
        ValueError: if alpha is a Python number outside [0, 1).

    Example:
        >>> from divjax.fdiv import ChiSquared
        >>> float(Mixed(ChiSquared(), 0.5).integrand_p(jnp.inf))  # p/m is at most 2
        1.0

    References:
        Yamada, Suzuki, Kanamori, Hachiya, Sugiyama 2013: relative divergences.
    """

    generator: Generator
    alpha: ArrayLike

    def __post_init__(self):
        check_generator(self.generator)
        check_share(self.alpha)


def check_generator(generator: object) -> None:
    """Raise `ValueError` for a class, or a divergence without a generator, such as Rényi's.

    JAX's placeholders, which are neither, pass.
    """
    if isinstance(generator, type):
        raise ValueError(
            f"generator must be an instance; got the class {generator.__name__} itself."
        )
    if isinstance(generator, Divergence) and not isinstance(generator, Generator):
        raise ValueError(
            f"generator must be that of an f-divergence; got {type(generator).__name__}."
        )


def check_share(alpha: ArrayLike) -> None:
    """Raise `ValueError` for a Python number outside [0, 1)."""
    if isinstance(alpha, (int, float)) and not 0 <= alpha < 1:
        raise ValueError(f"alpha must be a number in [0, 1); got {alpha}.")
