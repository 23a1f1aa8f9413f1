"""The optimal map between the Gaussians of two samples, with shrinkage for few rows.

The eigenvalues of a sample covariance of n rows in d dimensions spread far more than the true ones
unless n is far above d, which makes the optimal map, built from inverse roots, useless. A convex
combination with a multiple of the identity corrects this.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from divjax.core.checks import check_number, check_unit_interval
from divjax.core.normal import Normal
from divjax.core.numerics import in_units_of, matmul, nan_unless
from divjax.core.samples import Numbers
from divjax.core.simplex import mass_of_distinct_pairs
from divjax.ot.gaussian import AffineMap, gaussian_map
from divjax.ot.scales import winsorised
from divjax.ot.weighted_samples import (
    Origins,
    WeightedSamples,
    uniform_weights,
    weighted_samples,
)

__all__ = ["gaussian_map_from_samples", "gaussian_start", "ledoit_wolf", "weighted_moments"]


def gaussian_map_from_samples(
    x: Float[Numbers, "n d"],
    y: Float[Numbers, "m d"],
    a: Float[Numbers, " n"] | None = None,
    b: Float[Numbers, " m"] | None = None,
    *,
    shrinkage: ArrayLike | str = 0.0,
) -> AffineMap:
    """The optimal map between the Gaussians with the samples' means and covariances.

    It is optimal between distributions that are affine images of each other, such as Gaussians.
    Between other distributions it is the affine map that gives x the mean and the covariance of y.
    Covariances are unbiased, divided by 1 − Σ w². Weights are reliabilities, not counts: integer
    weights differ from repeated rows by a factor of 1 + O(1/n).

    Shrinkage α replaces a covariance S by (1 − α) S + α (tr S/d) I. "ledoit-wolf" takes for each
    sample the α that minimises the expected squared error, estimated from the sample. It is of the
    order of d/n: negligible for many rows, and near one if d is above n.

    Args:
        x: samples of the source distribution.
        y: samples of the target distribution, unpaired with x.
        a: weights of x, non-negative, with any sum, uniform by default.
        b: weights of y.
        shrinkage: α in [0, 1], or "ledoit-wolf".

    Returns:
        The map, a function of rows; its gradients in samples and weights are stopped.

    Raises:
        ValueError: if shapes do not fit, a sample has fewer than two rows, or the shrinkage is out
            of range. A traced shrinkage out of range gives NaN.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.array([[-1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
        >>> gaussian_map_from_samples(x, 2 * x + 3)(x[:2]).round(3).tolist()
        [[1.0, 3.0], [5.0, 3.0]]

    References:
        Flamary, Lounici, Ferrari 2019, section 2: how fast it converges. Ledoit, Wolf 2004, section
        3.3: the shrinkage.
    """
    if isinstance(shrinkage, str):
        if shrinkage != "ledoit-wolf":
            raise ValueError(
                f'shrinkage must be a number in [0, 1] or "ledoit-wolf"; got {shrinkage!r}.'
            )
    else:
        check_number(shrinkage=shrinkage)
        check_unit_interval(shrinkage=shrinkage)
    # Each sample about its own median: the map depends on their shift in a known way.
    samples, origins = weighted_samples(x, y, a, b, apart=True)
    return _map_between(samples, origins, None if isinstance(shrinkage, str) else shrinkage)


@jax.jit
def _map_between(
    samples: WeightedSamples, origins: Origins, shrinkage: ArrayLike | None
) -> AffineMap:
    """The map of checked samples, by Ledoit and Wolf's shrinkage for None."""
    x, y, a, b = samples
    # Scaled by the size of each sample: fourth powers of small or large numbers leave their range.
    x, unit_p = in_units_of(jnp.max(jnp.abs(x)), x)
    y, unit_q = in_units_of(jnp.max(jnp.abs(y)), y)
    p, q = _fitted(x, a, shrinkage), _fitted(y, b, shrinkage)
    # A maps deviations in the unit of x to deviations in the unit of y.
    matrix = gaussian_map(p, q).matrix * (unit_q / unit_p)
    # In two parts, as a single number would round a mean far from zero.
    source = origins.source.moved(p.mean * unit_p)
    target = origins.target.moved(q.mean * unit_q)
    return AffineMap(matrix, source.high, target.high, (source.low, target.low))


def gaussian_start(samples: WeightedSamples) -> AffineMap:
    """The initial map of a learned one: outliers winsorised, covariances shrunk."""
    x, y, a, b = samples
    return gaussian_map_from_samples(
        winsorised(x, a), winsorised(y, b), a, b, shrinkage="ledoit-wolf"
    )


def _fitted(
    rows: Float[Array, "n d"], weights: Float[Array, " n"] | None, shrinkage: ArrayLike | None
) -> Normal:
    """The Gaussian with the sample's mean, and its covariance after the shrinkage."""
    mean, covariance = weighted_moments(rows, weights)
    if shrinkage is None:
        alpha = ledoit_wolf(rows, weights)
    else:
        alpha = jnp.asarray(shrinkage, rows.dtype)
        # A traced number out of range cannot raise, and makes the covariance NaN.
        alpha = nan_unless((alpha >= 0) & (alpha <= 1), alpha)
    d = rows.shape[1]
    # The multiple of the identity with the covariance's trace, which shrinkage preserves.
    level = jnp.trace(covariance) / d
    identity = jnp.eye(d, dtype=rows.dtype)
    return Normal(mean, (1 - alpha) * covariance + alpha * level * identity)


def weighted_moments(
    rows: Float[Array, "n d"], weights: Float[Array, " n"] | None = None
) -> Normal:
    """The mean and the unbiased covariance, Σ w_i (x_i − x̄)(x_i − x̄)ᵀ / (1 − Σ w_i²).

    Args:
        rows: samples.
        weights: non-negative, with sum one, uniform by default.
    """
    weights = uniform_weights(rows) if weights is None else weights
    mean = weights @ rows
    # Σ w x xᵀ − x̄ x̄ᵀ would suffer cancellation if the mean is far from zero.
    centered = rows - mean
    covariance = matmul((weights[:, None] * centered).T, centered)
    return Normal(mean, covariance / mass_of_distinct_pairs(weights))


def ledoit_wolf(
    rows: Float[Array, "n d"], weights: Float[Array, " n"] | None = None
) -> Float[Array, ""]:
    """The α for which (1 − α) S + α (tr S/d) I is nearest to the true covariance on average.

    α = min(β, δ)/δ with δ = ‖S − (tr S/d) I‖² and β = Σ w_i² ‖x_i x_iᵀ − S‖², the variance of S,
    for centred rows x_i, zero if δ is zero.

    Args:
        rows: samples.
        weights: non-negative, with sum one, uniform by default.
    """
    weights = uniform_weights(rows) if weights is None else weights
    # S without the bias correction, as in the paper.
    centered = rows - weights @ rows
    covariance = matmul((weights[:, None] * centered).T, centered)
    d = rows.shape[1]
    level = jnp.trace(covariance) / d
    distance = jnp.sum((covariance - level * jnp.eye(d, dtype=rows.dtype)) ** 2)
    # Σ w_i² ‖x_i x_iᵀ − S‖², with the terms |x_i|⁴ − 2 x_iᵀ S x_i + ‖S‖².
    fourth = jnp.sum(centered**2, axis=1) ** 2
    cross = jnp.sum(matmul(centered, covariance) * centered, axis=1)
    variance = jnp.sum(weights**2 * (fourth - 2 * cross + jnp.sum(covariance**2)))
    # At most one, for the multiple of the identity alone.
    share = jnp.minimum(variance, distance) / jnp.where(distance == 0, 1, distance)
    return jnp.where(distance == 0, 0 * distance, share)
