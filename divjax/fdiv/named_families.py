"""Exponential families by name: their natural parameters and their log-partition functions."""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax.scipy.special import gammaln
from jaxtyping import Array, ArrayLike, Float

from divjax.core.numerics import nan_unless, quotient
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
    "Natural",
]

Natural = Float[Array, " d"]

LogPartition: TypeAlias = Callable[[Natural], Float[Array, ""]]


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

    natural: Callable[..., Natural] = static()
    log_partition: LogPartition = static()
    signs: tuple[int, ...] = static()

    @jax.jit
    def __call__(self, eta: Natural) -> Float[Array, ""]:
        """The value A(η), +inf (with gradient zero) outside of the domain."""
        if len(self.signs) not in (1, eta.shape[-1]):
            raise ValueError(
                f"eta must hold the {len(self.signs)} natural parameters of the family; "
                f"got shape {eta.shape}."
            )
        signs = jnp.broadcast_to(jnp.asarray(self.signs, eta.dtype), eta.shape)
        inside = ~jnp.any((signs != 0) & (signs * eta <= 0))
        # Invalid parameters are replaced by a point of the domain (the signs are one) before A is
        # evaluated, to avoid NaN gradients.
        return jnp.where(inside, self.log_partition(jnp.where(inside, eta, signs)), jnp.inf)


def _vector(*parameters: ArrayLike) -> Natural:
    dtype = jnp.result_type(float, *parameters)
    return jnp.stack([jnp.asarray(parameter, dtype) for parameter in parameters])


# Stirling's series for log Γ, exact to float64 rounding from this argument on.
_STIRLING = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156)
_STIRLING_FROM = 12


@jax.custom_jvp
def _log(x: Array) -> Array:
    """The logarithm, with the derivatives of `quotient`."""
    return jnp.log(x)


@_log.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    return _log(x), quotient(dx, x)


def _log_beta(eta: Natural) -> Float[Array, ""]:
    """Σ log Γ(η_i) − log Γ(Σ η_i), as Σ_{i>1} log B(η_1 + … + η_{i−1}, η_i)."""
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

    # Both remainders are small for large arguments, and so is their rounding.
    difference = remainder(b) - remainder(a + b)
    # log Γ(x) = (x − ½) log x − x + ½ log 2π + remainder(x), at b minus at a + b.
    return a - (b - 0.5) * jnp.log1p(quotient(a, b)) - a * _log(a + b) + difference


def _of_normal(mean: ArrayLike, scale: ArrayLike) -> Natural:
    """The natural parameters, NaN for a scale that is not positive, or squared out of range."""
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
    lambda eta: -0.25 * eta[0] * quotient(eta[0], eta[1]) - 0.5 * _log(-2 * eta[1]),
    signs=(0, -1),
)
