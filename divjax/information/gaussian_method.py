"""Information of jointly normal variables, from the determinants of their covariances."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import digamma, polygamma
from jaxtyping import Array, ArrayLike, Bool, Float

from divjax.core.checks import check_full_precision
from divjax.core.linalg import cholesky, solve_triangular
from divjax.core.numerics import matmul, nan_unless
from divjax.core.pytrees import pytree
from divjax.core.standardize import mean_and_scale
from divjax.core.types import Estimate, normal_estimate
from divjax.information.entropy_sums import EntropySum

__all__ = ["Gaussian"]


@pytree
class Gaussian:
    """Information of jointly normal variables: I = ½ log(det S_x det S_y/det S), unbiased.

    S is the sample covariance, with ν = n − 1 degrees of freedom. The expectation of log det S in d
    features exceeds that of the true covariance by Σ_i ψ((ν − i + 1)/2) − d log(ν/2), i = 1 … d,
    which is subtracted: for normal variables the estimate is exactly unbiased, at every n. For
    other variables it estimates the information that their correlations reveal, which is at most
    the information for normal marginals.

    The variance is the sample variance of the log-determinants' influence functions, which is right
    for any distribution, plus that for independent normal variables, Σ ψ′/4, which is exact and
    remains where the former vanishes. The interval is a normal one.

    Differentiable. Constant features carry no information. The value is infinite if a feature is a
    linear function of those of other variables, up to rounding, and NaN if it is one of those of
    its own. Time O(n d²), memory O(n d).

    Raises:
        ValueError: if there are not at least two more rows than features.

    Example:
        >>> from divjax.information import mutual_information
        >>> x, noise = jax.random.normal(jax.random.key(0), (2, 1000, 1))
        >>> estimate = mutual_information(x, x + noise, method=Gaussian())  # I = ½ log 2
        >>> bool(abs(estimate.value - 0.3466) < 3 * estimate.std_error)
        True

    References:
        Goodman 1963, "The distribution of the determinant of a complex Wishart distributed matrix":
        the determinant, here of a real matrix, as a product of χ² variables, and so the expectation
        of its logarithm. Magri, Whittingstall, Singh, Logothetis, Panzeri 2009: the correction in
        informations. Wilks 1932, "Certain generalizations in the analysis of variance": the
        distribution under independence.
    """

    def estimate(
        self,
        variables: tuple[Float[Array, "n _"], ...],
        measure: EntropySum,
        confidence_level: ArrayLike,
    ) -> Estimate:
        """The sum of entropies of a normal distribution with the sample covariance."""
        for variable in variables:
            check_full_precision("a variable", variable)
        n, d = variables[0].shape[0], sum(variable.shape[1] for variable in variables)
        if n < d + 2:
            raise ValueError(
                f"there must be at least two more rows than features; got {n} rows and {d}."
            )
        x = jnp.concatenate(variables, axis=1)
        # The measure does not depend on units and origins, and neither do its derivatives.
        fixed = jax.lax.stop_gradient(x)
        mean, scale = mean_and_scale(fixed, jnp.ones(n, x.dtype))
        x = (x - mean) / scale
        x = x - jnp.mean(x, axis=0)
        varies = jnp.any(fixed != fixed[0], axis=0)
        members = _members(variables, measure) & varies
        # Any divisor of the covariance serves, as does log(ν/2): each multiplies the number of
        # features, whose signed sum over the groups is zero.
        factors = _factors(matmul(x.T, x) / n, members)
        signs = jnp.asarray(measure.signs, x.dtype)
        # The squares of L's diagonal are each feature's variance given those before it; its own is
        # one.
        variances = jnp.square(jnp.diagonal(factors, axis1=1, axis2=2))

        # Entropies are ½ log det S, up to terms that cancel.
        sizes = jnp.sum(members, axis=1)
        expected, spread = _log_determinant_moments(n - 1, d, x.dtype)
        entropies = 0.5 * (jnp.sum(jnp.log(variances), axis=1) - expected[sizes])
        value = matmul(signs, entropies)
        # A row's influence on ½ log det S is ½ (xᵀS⁻¹x − d), in which xᵀS⁻¹x is the squared length
        # of L⁻¹x.
        given = jnp.where(members[:, :, None], x.T, 0)
        squares = jnp.square(solve_triangular(factors, given))
        terms = 0.5 * matmul(signs, jnp.sum(squares, axis=1))
        # For independent normal variables the influence functions cancel, and the variance of the
        # log-determinants, ψ′, remains.
        variance = jnp.var(terms, ddof=1) / n + 0.25 * jnp.abs(matmul(signs, spread[sizes]))

        # Negated, so that NaN counts as singular.
        regular = jnp.all(variances > 8 * d * jnp.finfo(x.dtype).eps, axis=1)
        # A column of infinities alone does not vary, and its entries would be left out.
        finite = jnp.isfinite(fixed).all()
        infinite = finite & regular[:-1].all() & ~regular[-1]
        usable = finite & regular.all()
        std_error = nan_unless(usable, jnp.sqrt(jax.lax.stop_gradient(variance)))
        value = nan_unless(usable, value)
        value = jnp.where(infinite, -measure.signs[-1] * jnp.inf, value)
        return normal_estimate(value, std_error, n, (), confidence_level)


def _members(
    variables: tuple[Float[Array, "n _"], ...], measure: EntropySum
) -> Bool[Array, "groups d"]:
    """Which features are in each group."""
    owner = np.repeat(np.arange(len(variables)), [v.shape[1] for v in variables])
    return jnp.asarray(np.stack([np.isin(owner, group) for group in measure.groups]))


def _factors(
    covariance: Float[Array, "d d"], members: Bool[Array, "groups d"]
) -> Float[Array, "groups d d"]:
    """The Cholesky factor of each group's covariance, with the identity in other features."""
    both = members[:, :, None] & members[:, None]
    identity = jnp.eye(covariance.shape[0], dtype=covariance.dtype)
    return cholesky(jnp.where(both, covariance, identity))


def _log_determinant_moments(
    freedom: int, d: int, dtype: np.dtype
) -> tuple[Float[Array, " sizes"], Float[Array, " sizes"]]:
    """Σ_i ψ((ν − i + 1)/2) and Σ_i ψ′((ν − i + 1)/2), i = 1 … size, for the sizes 0 … d."""
    halves = (freedom - jnp.arange(d, dtype=dtype)) / 2
    sums = lambda values: jnp.concatenate([jnp.zeros(1, dtype), jnp.cumsum(values)])
    return sums(digamma(halves)), sums(polygamma(1, halves))
