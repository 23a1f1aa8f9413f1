"""Differential entropies from samples: Shannon's by several methods, Rényi's and Tsallis'."""

import functools
import math
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.scipy.special import gammaln, logsumexp
from jaxtyping import Array, ArrayLike, Bool, Float

from divjax.core.checks import (
    check_count,
    check_full_precision,
    check_number,
    check_probability,
    check_provides,
)
from divjax.core.numerics import nan_unless
from divjax.core.samples import Numbers, centered_samples
from divjax.core.types import Estimate, normal_estimate
from divjax.fdiv.neighbor_search import nearest_points
from divjax.information.neighbor_entropies import KozachenkoLeonenko, neighbor_entropy

__all__ = [
    "EntropyMethod",
    "entropy",
    "renyi_entropy",
    "tsallis_entropy",
]


@runtime_checkable
class EntropyMethod(Protocol):
    """How the differential entropy is estimated from a sample."""

    def entropy(self, x: Float[Array, "n d"], confidence_level: ArrayLike) -> Estimate:
        """The entropy of the density of the rows, in nats."""
        ...


def entropy(
    x: Float[Numbers, "n d"],
    *,
    method: EntropyMethod = KozachenkoLeonenko(),
    confidence_level: ArrayLike = 0.95,
) -> Estimate:
    """The differential entropy −∫ p log p of the density of samples, in nats.

    It depends on the unit: in units c times as large it is smaller by d log c. Differentiable.

    Args:
        x: samples of p.
        method: `KozachenkoLeonenko`, `Vasicek` or `Ebrahimi`, the latter two for one feature, or an
            `EntropyMethod` of your own.
        confidence_level: the level of the confidence interval.

    Returns:
        An `Estimate`, NaN if the samples are not finite. Its interval covers variance, and not the
        bias, which dominates from about five features on, and for spacings.

    Raises:
        ValueError: if x is empty or not a matrix, or has too few rows for the method.

    Example:
        >>> import jax
        >>> estimate = entropy(jax.random.normal(jax.random.key(0), (1000, 2)))
        >>> bool(abs(estimate.value - math.log(2 * math.pi * math.e)) < 3 * estimate.std_error)
        True

    References:
        Cover, Thomas 2006, chapter 8.
    """
    _, x = centered_samples(x=x)
    check_provides("method", method, ("entropy",), "such as information.KozachenkoLeonenko()")
    check_probability(confidence_level=confidence_level)
    return method.entropy(x, confidence_level)


# Units in the last place of one.
_NEAREST_ORDER = 1000


class _Moment(NamedTuple):
    """log ∫ p^α and the standard error of this logarithm.

    Attributes:
        log: the logarithm.
        std_error: its standard error.
        regular: whether all distances are positive and finite.
    """

    log: Float[Array, ""]
    std_error: Float[Array, ""]
    regular: Bool[Array, ""]


def _moment(x: Float[Array, "n d"], alpha: Float[Array, ""], k: int) -> _Moment:
    n, d = x.shape
    near = nearest_points(x, None, k + 1)
    # The k-th neighbour's ball has the mean power (p · volume)^(1 − α) of Γ(k + 1 − α)/Γ(k).
    log_volume = 0.5 * d * math.log(math.pi) - math.lgamma(0.5 * d + 1)
    # (n − 1) V_d by logarithms: in many dimensions powers of it leave the dtype's range.
    constant = math.log(n - 1) + log_volume
    powers = (1 - alpha) * (constant + d * near.log_distances[:, k - 1 :])
    correction = gammaln(jnp.asarray(k, x.dtype)) - gammaln(k + 1 - alpha)
    log = correction + logsumexp(powers[:, 0]) - math.log(n)

    # On a line in the plane, or where rows are copied, there is no density.
    shannon = neighbor_entropy(jax.lax.stop_gradient(x), 0.95, k=k, bias_order=0)
    support = shannon.diagnostics
    regular = jnp.all(near.usable[:, k - 1]) & jnp.isfinite(x).all()
    known = (support.dimension == d) & support.finite
    # Divided by 1 − α, rounding of the logarithm would be all of a value beside α = 1.
    known &= jnp.abs(alpha - 1) >= _NEAREST_ORDER * jnp.finfo(x.dtype).eps
    # The jackknife: without a neighbour the distance is that to the next one.
    following = jnp.where(near.usable[:, k], powers[:, 1], powers[:, 0])
    # In units of the mean, so that they are influences on its logarithm and do not overflow.
    relative = lambda power: jnp.exp(power + correction - log)
    own = relative(powers[:, 0])
    rise = relative(following) - own
    # Without row j the terms of all rows that have it among their k neighbours become those of the
    # next rank.
    influence = own.at[near.index[:, :k]].add(-rise[:, None])
    std_error = jnp.std(jax.lax.stop_gradient(influence), ddof=1) / math.sqrt(n)
    # Not `nan_unless`: rows that coincide have finite derivatives.
    log, std_error = (jnp.where(known, number, jnp.nan) for number in (log, std_error))
    return _Moment(nan_unless(regular, log), nan_unless(regular, std_error), regular & known)


def _arguments(
    x: Numbers, alpha: ArrayLike, k: int, confidence_level: ArrayLike
) -> tuple[Float[Array, "n d"], Float[Array, ""]]:
    _, x = centered_samples(x=x)
    check_full_precision("x", x)
    check_number(alpha=alpha)
    check_count(1, k=k)
    check_probability(confidence_level=confidence_level)
    if len(x) < k + 2:
        raise ValueError(f"x must have at least k + 2 = {k + 2} rows; got {len(x)}.")
    if isinstance(alpha, (int, float)) and not (0 < alpha < k + 1 and alpha != 1):
        raise ValueError(
            f"alpha must be positive, below k + 1 = {k + 1} and not 1, where it is `entropy`; "
            f"got {alpha}."
        )
    # A traced order cannot be refused. From k + 1 on Γ(k + 1 − α), the mean of a power, is
    # infinite.
    alpha = jnp.asarray(alpha, x.dtype)
    return x, nan_unless((alpha > 0) & (alpha < k + 1) & (alpha != 1), alpha)


def renyi_entropy(
    x: Float[Numbers, "n d"],
    alpha: ArrayLike,
    k: int = 5,
    *,
    confidence_level: ArrayLike = 0.95,
) -> Estimate:
    """Rényi's entropy log(∫ p^α)/(1 − α), by distances to k-th neighbours.

    ∫ p^α is estimated by (1/n) Σ_i Γ(k)/Γ(k + 1 − α) [(n − 1) V_d ρ_k(i)^d]^(1 − α), with ρ_k(i)
    the distance to the k-th neighbour and V_d the unit ball's volume. For α > 1 few rows in dense
    places count most, and the variance is finite only for k > 2 (α − 1). For α < 1 the tails count
    most, where neighbours are far and the value is too small: by 0.1 for Gaussians in two
    dimensions at α = 0.6, n = 2000.

    Differentiable in x and α. Time and memory as for `KozachenkoLeonenko`.

    Args:
        x: samples of p.
        alpha: the order, positive and not 1.
        k: the rank of the neighbour, static, above α − 1, at most n − 2.
        confidence_level: the level of the confidence interval.

    Returns:
        An `Estimate` in nats. Its standard error is the jackknife's, by the delta method, and
        covers variance alone. NaN if rows are copies, or x fills less than its d dimensions (no
        density), or α is within 10⁻⁴ of 1 (in float32), where it is `entropy`.

    Raises:
        ValueError: if x is empty or not a matrix, or alpha or k is out of range.

    Example:
        >>> import jax
        >>> x = 2 * jax.random.uniform(jax.random.key(0), (1000, 1))
        >>> estimate = renyi_entropy(x, 2.0)  # log 2 at every order
        >>> bool(abs(estimate.value - math.log(2)) < 3 * estimate.std_error)
        True

    References:
        Leonenko, Pronzato, Savani 2008, equation 2.6 and theorem 3.1.
    """
    x, alpha = _arguments(x, alpha, k, confidence_level)
    return _renyi_entropy(x, alpha, confidence_level, k=k)


@functools.partial(jax.jit, static_argnames="k")
def _renyi_entropy(
    x: Float[Array, "n d"], alpha: Float[Array, ""], confidence_level: ArrayLike, *, k: int
) -> Estimate:
    moment = _moment(x, alpha, k)
    std_error = moment.std_error / jax.lax.stop_gradient(jnp.abs(1 - alpha))
    value = moment.log / (1 - alpha)
    return normal_estimate(value, std_error, len(x), (), confidence_level)


def tsallis_entropy(
    x: Float[Numbers, "n d"],
    alpha: ArrayLike,
    k: int = 5,
    *,
    confidence_level: ArrayLike = 0.95,
) -> Estimate:
    """Tsallis' entropy (1 − ∫ p^α)/(α − 1), by distances to k-th neighbours.

    With the estimate of ∫ p^α of `renyi_entropy`, which has the details.

    Args:
        x: samples of p.
        alpha: the order, positive and not 1.
        k: the rank of the neighbour, static, above α − 1, at most n − 2.
        confidence_level: the level of the confidence interval.

    Returns:
        An `Estimate`, as `renyi_entropy`.

    Raises:
        ValueError: as `renyi_entropy`.

    Example:
        >>> import jax
        >>> x = 2 * jax.random.uniform(jax.random.key(0), (1000, 1))
        >>> estimate = tsallis_entropy(x, 2.0)  # 1 − ½
        >>> bool(abs(estimate.value - 0.5) < 3 * estimate.std_error)
        True

    References:
        Leonenko, Pronzato, Savani 2008, equation 2.7.
    """
    x, alpha = _arguments(x, alpha, k, confidence_level)
    return _tsallis_entropy(x, alpha, confidence_level, k=k)


@functools.partial(jax.jit, static_argnames="k")
def _tsallis_entropy(
    x: Float[Array, "n d"], alpha: Float[Array, ""], confidence_level: ArrayLike, *, k: int
) -> Estimate:
    moment = _moment(x, alpha, k)
    integral = jnp.exp(moment.log)
    # By the delta method: the integral's error is its logarithm's times the integral.
    scale = jax.lax.stop_gradient(integral / jnp.abs(1 - alpha))
    value = (1 - integral) / (alpha - 1)
    return normal_estimate(value, moment.std_error * scale, len(x), (), confidence_level)
