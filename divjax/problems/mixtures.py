"""Gaussian mixtures with exact densities, scores, moments and samplers, and two published toys."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Key

from divjax.core.arguments import as_leaves
from divjax.core.checks import (
    check_count,
    check_full_precision,
    check_key,
    check_positive,
    check_positive_values,
    check_simplex,
)
from divjax.core.linalg import cho_solve, cholesky
from divjax.core.normal import are_symmetric, check_symmetric
from divjax.core.numerics import at_least_single, nan_unless
from divjax.core.programs import is_traced
from divjax.core.pytrees import pytree
from divjax.core.rounding import LARGEST_ROUNDING
from divjax.core.samples import Numbers, as_arrays

__all__ = ["GaussianMixture", "three_component_targets", "two_component_targets"]


def check_draw(key: object, n: object) -> None:
    """Raise `ValueError` unless these are a key and a number of draws."""
    check_key(key)
    check_count(0, n=n)


def _largest_distance(dtype: DTypeLike) -> float:
    """The largest distance from the origin, in standard deviations, at which draws are resolved.

    Farther away, draws in this dtype are rounded to few distinct numbers.
    """
    return 2 * LARGEST_ROUNDING / float(jnp.finfo(jax.dtypes.canonicalize_dtype(dtype)).eps)


def is_resolved(means: Any, deviations: Any, module: Any = jnp) -> Any:
    """Whether draws around the means keep their differences.

    NaN, which is reported elsewhere, counts as kept.
    """
    # The limit is out of float16's range.
    means, deviations = module.asarray(means), module.asarray(deviations)
    dtype = jnp.result_type(means, deviations)
    wide = at_least_single(dtype)
    limits = _largest_distance(dtype) * deviations.astype(wide)
    return ~module.any(module.abs(means.astype(wide)) > limits)


def check_resolved(name: str, means: Any, deviations: Any) -> None:
    """Raise `ValueError` for Gaussians so far from the origin that float32 rounds their draws."""
    if not is_resolved(means, deviations, np):
        raise ValueError(
            f"{name} must lie within {_largest_distance(np.result_type(means, deviations)):.0e} "
            "standard deviations of the origin, as draws are rounded; subtract a common offset, or "
            "use a dtype of more digits."
        )


@pytree
class GaussianMixture:
    """The mixture Σ_c w_c N(μ_c, Σ_c).

    Attributes:
        weights: the weights of the components, non-negative, summing to one, of shape (c,).
        means: the means of the components, of shape (c, d).
        covariances: a scalar variance or a (d, d) matrix for all components, or one per component:
            (c,) variances or (c, d, d) matrices.

    Densities, draws and moments are NaN for matrices that are not positive definite, traced
    matrices that are not symmetric, traced variances that are not positive, and traced weights that
    are negative or do not sum to one. The same holds for traced means more than about 10⁵ standard
    deviations from the origin in float32, in which draws would be rounded.

    Raises:
        ValueError: on use, if the shapes do not fit, concrete means are that far from the origin,
            concrete weights are negative or do not sum to one, a concrete variance is not positive,
            a concrete matrix is not symmetric, matrices are in half precision, an argument does not
            hold real numbers, or the key or the number of draws is invalid.

    Example:
        >>> import jax.numpy as jnp
        >>> standard = GaussianMixture(jnp.ones(1), jnp.zeros((1, 2)), jnp.ones(()))
        >>> round(float(standard.log_prob(jnp.zeros(2))), 3)  # −log 2π
        -1.838
    """

    weights: Float[Numbers, " c"]
    means: Float[Numbers, "c d"]
    covariances: Numbers

    def _law(self) -> tuple[Float[Array, " c"], Float[Array, "c d"], Array]:
        """All three as arrays of one dtype after checks, weights NaN for invalid traced mixtures.

        Not checked on construction, as JAX also builds this pytree with gradients as its leaves.
        """
        given = {"weights": self.weights, "means": self.means, "covariances": self.covariances}
        leaves = dict(zip(given, as_leaves(**given), strict=True))
        weights, means = jnp.shape(leaves["weights"]), jnp.shape(leaves["means"])
        covariances = jnp.shape(leaves["covariances"])
        if len(means) != 2 or weights != means[:1]:
            raise ValueError(
                f"weights and means must have shapes (c,) and (c, d); got {weights} and {means}."
            )
        if covariances not in ((), weights, 2 * means[1:], (*means, means[-1])):
            raise ValueError(
                f"covariances must be a scalar, (c,), (d, d) or (c, d, d); got {covariances} for "
                f"means of shape {means}."
            )
        known = leaves["covariances"]
        check_positive(covariances=known)
        if len(covariances) < 2:
            check_positive_values(covariances=known)
        else:
            check_full_precision("covariances", known)
            check_symmetric("covariances", known)
        check_simplex("weights", leaves["weights"])
        if not is_traced(leaves):
            # A component of weight zero has no draws, and may lie anywhere.
            used = np.asarray(leaves["weights"])[:, None] > 0
            located = np.where(used, leaves["means"], 0)
            check_resolved("means", located, _deviations(leaves["covariances"], np))
        weights, means, covariances = as_arrays(**leaves)
        # Traced arguments cannot raise: the weights of an invalid mixture are NaN, and so is its
        # density.
        valid = jnp.all(weights >= 0) & (jnp.abs(jnp.sum(weights) - 1) <= 1e-3)
        if covariances.ndim < 2:
            valid = valid & jnp.all(covariances > 0)
        else:
            valid = valid & jnp.all(_are_definite(covariances))
        located = jnp.where(weights[:, None] > 0, means, 0)
        valid = valid & is_resolved(located, _deviations(covariances, jnp))
        return nan_unless(valid, weights), means, covariances

    def _terms(self, x: Float[Array, " d"]) -> tuple[Array, Array, Array]:
        """Numbers proportional to w_c N(x; μ_c, Σ_c), their unit's log, and Σ_c⁻¹ (x − μ_c)."""
        weights, means, covariances = self._law()
        x = jnp.asarray(as_leaves(x=x)[0])
        dim = means.shape[1]
        if x.shape != (dim,):
            raise ValueError(f"x must be one point of shape ({dim},); got shape {x.shape}.")
        offsets = x - means
        # Isotropic components need no factorisation.
        if covariances.ndim < 2:
            variances = jnp.broadcast_to(covariances, weights.shape)
            solved, log_det = offsets / variances[:, None], dim * jnp.log(variances)
        else:
            # By one factor the quadratic form and the determinant, without an inverse.
            factors = _factors(means, covariances)
            solved = cho_solve(factors, offsets[:, :, None])[:, :, 0]
            diagonals = jnp.diagonal(factors, axis1=-2, axis2=-1)
            log_det = 2 * jnp.sum(jnp.log(diagonals), axis=-1)
        squared = jnp.sum(offsets * solved, axis=-1)
        constant = dim * math.log(2 * math.pi)
        log_densities = -0.5 * (squared + log_det + constant)
        # log w_c is avoided, as it has no derivative at zero. An absent component may be far denser
        # than the unit, but its weight times anything finite is zero.
        unit = jax.lax.stop_gradient(jnp.max(jnp.where(weights > 0, log_densities, -jnp.inf)))
        # A point infinitely far from all components: ∞ − ∞ would be NaN.
        unit = jnp.where(jnp.isfinite(unit), unit, 0)
        highest = 0.5 * math.log(jnp.finfo(log_densities.dtype).max)
        return weights * jnp.exp(jnp.minimum(log_densities - unit, highest)), unit, solved

    def log_prob(self, x: Float[Numbers, " d"]) -> Float[Array, ""]:
        """The normalised log-density at one point."""
        terms, unit, _ = self._terms(x)
        return unit + jnp.log(jnp.sum(terms))

    def score(self, x: Float[Numbers, " d"]) -> Float[Array, " d"]:
        """∇ log density: the components' scores −Σ_c⁻¹ (x − μ_c), weighted by responsibility."""
        terms, _, solved = self._terms(x)
        # A sum rather than a product of matrices, which accelerators round to fewer digits.
        return -jnp.sum((terms / jnp.sum(terms))[:, None] * solved, axis=0)

    def sample(self, key: Key[Array, ""], n: int) -> Float[Array, "n d"]:
        """Independent draws."""
        check_draw(key, n)
        weights, means, covariances = self._law()
        component_key, noise_key = jax.random.split(key)
        components = jax.random.categorical(component_key, jnp.log(weights), shape=(n,))
        # The weights of an invalid mixture are NaN, and make its draws NaN.
        means = means + 0 * weights[:, None]
        noise = jax.random.normal(noise_key, (n, means.shape[1]), means.dtype)
        if covariances.ndim < 2:
            deviations = jnp.sqrt(jnp.broadcast_to(covariances, weights.shape))
            return means[components] + deviations[components, None] * noise
        # L ε of a standard normal ε has the covariance LLᵀ.
        spread = jnp.sum(_factors(means, covariances)[components] * noise[:, None, :], axis=2)
        return means[components] + spread

    def mean(self) -> Float[Array, " d"]:
        """Σ_c w_c μ_c."""
        weights, means, _ = self._law()
        return weights @ means

    def covariance(self) -> Float[Array, "d d"]:
        """Σ_c w_c [Σ_c + (μ_c − μ)(μ_c − μ)ᵀ]."""
        weights, means, covariances = self._law()
        offsets = means - weights @ means
        # The law of total covariance: between the components' means, and within the components.
        between = jnp.einsum("c,ci,cj->ij", weights, offsets, offsets)
        if covariances.ndim < 2:
            variance = jnp.dot(weights, jnp.broadcast_to(covariances, weights.shape))
            return between + variance * jnp.eye(between.shape[0], dtype=between.dtype)
        each = jnp.broadcast_to(covariances, (*means.shape, means.shape[1]))
        return between + jnp.tensordot(weights, each, 1)


def _deviations(covariances: Any, module: Any) -> Any:
    """The standard deviations of the features, to be broadcast against the means."""
    if jnp.ndim(covariances) < 2:
        return module.sqrt(module.asarray(covariances))[..., None]
    return module.sqrt(module.diagonal(covariances, axis1=-2, axis2=-1))


def _factors(means: Float[Array, "c d"], covariances: Array) -> Float[Array, "c d d"]:
    """The covariances' lower Cholesky factors."""
    return jnp.broadcast_to(cholesky(covariances), (*means.shape, means.shape[1]))


def _are_definite(matrices: Float[Array, "*c d d"]) -> Bool[Array, "*c"]:
    """Whether each is symmetric and positive definite."""
    matrices = jax.lax.stop_gradient(matrices)
    finite = jnp.isfinite(cholesky(matrices)).all(axis=(-2, -1))
    return are_symmetric(matrices) & finite


def two_component_targets() -> tuple[GaussianMixture, ...]:
    """Four targets .7 N(μ₁, I) + .3 N(μ₂, I), μ₁ in a corner of its own and μ₂ near the origin.

    Published setting: 50 particles from N(0, I), the Gaussian kernel of bandwidth 1, step sizes
    .001, .005 and .01, 1000 iterations, and the exact min-norm weights.

    `three_component_targets` is a different problem, though both are known as MWGraD's toy: it has
    three components per target, two of which the targets share, a variance of ½ and other weights.

    References:
        A-MWGraD, arXiv 2601.19220, section 4.1.
    """
    means = (
        ((4.0, -4.0), (0.1, 0.2)),
        ((-4.0, 4.0), (-0.1, 0.3)),
        ((-4.0, -4.0), (0.4, -0.4)),
        ((4.0, 4.0), (-0.2, 0.3)),
    )
    return tuple(
        GaussianMixture(jnp.array([0.7, 0.3]), jnp.array(pair), jnp.array(1.0)) for pair in means
    )


def three_component_targets(key: Key[Array, ""] | None = None) -> tuple[GaussianMixture, ...]:
    """Four targets .2 N(corner) + .7 N((−2, 0)) + .1 N((2, 0)), covariances ½ I, corners (±4, ±4).

    Published setting: 50 particles from N(0, 25 I) clipped to ±10, Adam with a learning rate of
    .03, 1501 iterations. All four share two modes and differ in the corner.

    The published code draws the jitter of some means twice and of others never, and holds the
    objectives' weights at ¼. Neither is part of the problem here.

    Args:
        key: if given, every mean is moved by .3 N(0, I), once.

    References:
        The toy in the code of MWGraD, arXiv 2505.18765.
    """
    corners = ((4.0, 4.0), (4.0, -4.0), (-4.0, 4.0), (-4.0, -4.0))
    means = jnp.array([(corner, (-2.0, 0.0), (2.0, 0.0)) for corner in corners])
    if key is not None:
        check_key(key)
        means = means + 0.3 * jax.random.normal(key, means.shape)
    weights = jnp.array([0.2, 0.7, 0.1])
    return tuple(GaussianMixture(weights, triple, jnp.array(0.5)) for triple in means)
