"""Heads in closed form: the constant zero, and two fitted Gaussians."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Key, PyTree

from divjax.core import linalg
from divjax.core.checks import check_nonnegative
from divjax.core.numerics import matmul, nan_unless
from divjax.core.pytrees import for_each, pytree
from divjax.core.samples import Numbers
from divjax.core.simplex import mass_of_distinct_pairs
from divjax.ratio.protocols import Fold, checked, every, validation_loss

__all__ = ["GaussianDiscriminant", "Zero"]


# Standard deviations below this many units in the last place are rounding.
_RESOLVED_ULPS = 4


@pytree
class Zero:
    """The constant log ratio 0: p and q are the same."""

    parametric = True

    def fit(self, key: Key[Array, ""], fold: Fold) -> tuple[()]:
        """An empty tuple, as there are no parameters."""
        return ()

    def __call__(self, params: tuple[()], z: Float[Numbers, "b d"]) -> Float[Array, " b"]:
        """Zeros, with NaN for rows that hold NaN."""
        return nan_unless(~jnp.isnan(z).any(axis=1), jnp.zeros_like(z[:, 0]))


@pytree
class GaussianDiscriminant:
    """The log ratio of two fitted Gaussians (quadratic discriminant analysis), in closed form.

    It is correct only for Gaussians. For these it is efficient, even if the samples do not overlap
    and no classifier can be fitted. Correlations are shrunk towards zero.

    Features come in units of both samples' common spread. One sample's standard deviations are at
    least four times the rounding of its largest value, and of 1, in these units: 5 · 10⁻⁷ in
    float32. Narrower ones cannot be told from a constant, at which log p/q is infinite; there a
    feature's part of KL is too small, about 14 nats. Away from a constant of q it is the square of
    a distance in these units, a number such as 10¹² in place of infinity, with an interval that
    does not know of it: `diagnostics.beyond_log_n` tells.

    Attributes:
        shrinkage: shrinkage intensities in [0, 1], 1 for zero correlation. Several form a grid, the
            best selected on the validation rows.

    References:
        Schäfer, Strimmer 2005: shrinkage towards the diagonal of unequal variances.
    """

    shrinkage: ArrayLike | tuple[float, ...] = (0.0, 0.1, 1.0)

    parametric = True

    def __post_init__(self):
        check_nonnegative(shrinkage=self.shrinkage)
        if isinstance(self.shrinkage, (int, float)) and self.shrinkage > 1:
            raise ValueError(f"shrinkage must lie in [0, 1]; got {self.shrinkage}.")

    def fit(self, key: Key[Array, ""], fold: Fold) -> PyTree[Array]:
        """Both Gaussians' means "2 d" and inverse Cholesky factors "2 d d", those of p first."""
        fold, valid = checked(self, fold)
        x, y, a, b = fold.train
        grid = jnp.ravel(jnp.asarray(self.shrinkage, x.dtype))

        def one(shrinkage):
            gaussians = for_each(
                lambda x, weights: _gaussian(x, weights, shrinkage), [(x, a), (y, b)]
            )
            params = jax.tree.map(lambda *parts: jnp.stack(parts), *gaussians)
            return params, validation_loss(self, params, fold)

        # The whole grid at once.
        params, losses = jax.vmap(one)(grid)
        return jax.tree.map(lambda leaf: nan_unless(valid, leaf[jnp.argmin(losses)]), params)

    def in_range(self) -> Bool[Array, ""]:
        """Whether all intensities lie in [0, 1]."""
        return every(lambda number: (number >= 0) & (number <= 1), self.shrinkage)

    def __call__(self, params: PyTree[Array], z: Float[Numbers, "b d"]) -> Float[Array, " b"]:
        """The difference of the Gaussian log-densities."""

        def log_density(mean, whitener):
            white = jnp.matmul(z - mean, whitener.T, precision="highest")
            # log det C = −2 Σ log W_ii. The constant with 2π cancels in the difference.
            return jnp.sum(jnp.log(jnp.diag(whitener))) - jnp.sum(white**2, axis=1) / 2

        of_p, of_q = jax.vmap(log_density)(*params)
        return of_p - of_q


def _gaussian(
    x: Float[Array, "n d"], weights: Float[Array, " n"], shrinkage: Float[Array, ""]
) -> tuple[Float[Array, " d"], Float[Array, "d d"]]:
    """The mean, and the lower-triangular W with W C Wᵀ = I for the shrunk covariance C."""
    d, dtype = x.shape[1], x.dtype
    # Padding may hold NaN, which a weight of zero does not remove.
    x = jnp.where(weights[:, None] > 0, x, 0)
    mean = matmul(weights, x)
    centered = jnp.sqrt(weights)[:, None] * (x - mean)
    # Estimating the mean reduces the variance by the share Σw², 1/n for equal weights.
    centered = centered / jnp.sqrt(jnp.maximum(mass_of_distinct_pairs(weights), 0.5))
    variance = jnp.sum(centered**2, axis=0)
    # A feature that is constant in one sample alone separates the samples perfectly. Its variance
    # is that of rounding, which keeps the log ratio finite.
    largest = jnp.maximum(jnp.max(jnp.abs(x), axis=0), 1)
    floored = jnp.maximum(variance, jnp.square(_RESOLVED_ULPS * jnp.finfo(dtype).eps * largest))
    scale = jnp.sqrt(floored)
    # Correlations are shrunk rather than covariances, as features may differ in variance. The
    # diagonal is 1 for features below the floor too.
    standardized = centered / scale
    diagonal = shrinkage + (1 - shrinkage) * (1 - variance / floored)
    # It keeps linearly dependent features apart by the square of this ridge.
    ridge = 10 * d * jnp.finfo(dtype).eps

    def correlation(basis: Float[Array, "d d"]) -> Float[Array, "d d"]:
        rows = standardized @ basis.T
        shrunk = (1 - shrinkage) * (rows.T @ rows) + (basis * diagonal) @ basis.T
        return shrunk + ridge * jnp.eye(d, dtype=dtype)

    # C = S L Lᵀ S with S = diag(scale), so that W = L⁻¹ S⁻¹.
    factor = linalg.cholesky_of_rows(correlation, jnp.eye(d, dtype=dtype))
    whitener = linalg.solve_triangular(factor, jnp.diag(1 / scale))
    return mean, whitener
