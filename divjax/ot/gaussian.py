"""Transport between Gaussians in closed form: the distance, the map, and the barycenter.

A Gaussian is a `divjax.Normal`, or any pair of a mean "d" and a covariance: "d" for the variances
of a diagonal one, "d d" for a full one, which may be singular. An eigenvalue counts as zero if its
size is at most d machine epsilons of the largest; a more negative one makes the result NaN. Maps
and derivatives are NaN if rounding hides a direction in which both have variance, as for features
whose standard deviations differ by more than about 10³ in float32: scale them, or use float64. A
full covariance must be symmetric, up to 3e-4 in units of the features' standard deviations.
Otherwise a concrete one raises, and a traced one makes the result NaN.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float, Int

from divjax.core.checks import (
    check_count,
    check_full_precision,
    check_scalar,
)
from divjax.core.normal import (
    Normal,
    full_covariance,
    normal_pair,
    stacked_normals,
    symmetric_or_nan,
)
from divjax.core.numerics import matmul, safe_sqrt
from divjax.core.pytrees import pytree
from divjax.core.samples import (
    Center,
    Numbers,
    Unrounded,
    as_weights,
    centered_samples,
    two_parts,
)
from divjax.core.simplex import are_weights, shares_of
from divjax.core.types import Outcome, status_of, summary
from divjax.ot.covariances import squared_bures, stretch, transport_matrix

__all__ = [
    "AffineMap",
    "GaussianBarycenter",
    "gaussian_barycenter",
    "gaussian_map",
    "gaussian_wasserstein",
]


class GaussianPair(NamedTuple):
    """Two Gaussians in one dtype, with covariances of one kind, and means relative to a centre.

    Attributes:
        p: the first Gaussian, with its mean relative to a point common to both.
        q: the second Gaussian, likewise.
        means: the means themselves, each to float64's precision.
    """

    p: Normal
    q: Normal
    means: tuple[Center, Center]

    @property
    def squared_shift(self) -> Float[Array, ""]:
        """|m_p − m_q|²."""
        return jnp.sum((self.p.mean - self.q.mean) ** 2)

    def map_by(self, matrix: Array) -> "AffineMap":
        """The map from p to q with this matrix."""
        source, target = self.means
        return AffineMap(matrix, source.high, target.high, (source.low, target.low))


def paired_gaussians(p: Any, q: Any) -> GaussianPair:
    """The arguments as floating-point arrays, with float64 means from NumPy centred first."""
    p, q = normal_pair(p, q)
    dtype = jnp.result_type(float, *p, *q)
    # A full covariance need not commute with a diagonal one, so the closed form for variances does
    # not apply.
    if jnp.ndim(p.covariance) != jnp.ndim(q.covariance):
        p = p._replace(covariance=full_covariance(p))
        q = q._replace(covariance=full_covariance(q))
    # The distance depends only on the means' difference: a common offset of float64 is removed
    # before rounding.
    _, mean_p, mean_q = centered_samples(p=p.mean[None], q=q.mean[None])
    # A map takes points relative to one mean to points relative to the other. Far apart, both means
    # would be rounded about a common point.
    means = Center(*two_parts(p.mean, dtype)), Center(*two_parts(q.mean, dtype))
    return GaussianPair(
        Normal(mean_p[0].astype(dtype), _covariance_as(dtype, p.covariance)),
        Normal(mean_q[0].astype(dtype), _covariance_as(dtype, q.covariance)),
        means,
    )


def _covariance_as(dtype: DTypeLike, covariance: Unrounded) -> Array:
    """The covariance in this dtype, NaN if it is traced and not symmetric."""
    covariance = jnp.asarray(covariance, dtype)
    return covariance if covariance.ndim == 1 else symmetric_or_nan(covariance)


@jax.default_matmul_precision("highest")
def gaussian_wasserstein(p: Normal, q: Normal) -> Float[Array, ""]:
    """The squared 2-Wasserstein distance ‖m_p − m_q‖² + tr S + tr T − 2 tr (S^½ T S^½)^½.

    The second part is the squared Bures distance of the covariances S and T, computed as a sum of
    squares. The sum is the least squared distance between any two measures with these moments.

    Its gradient in S is I − A with the optimal map's matrix A = T^½ (T^½ S T^½)^{+½} T^½, and
    likewise in T. At a singular S the pseudo-inverse makes that finite, and the derivative exact
    along every path of covariances with constant rank, as when differentiating through a factor L
    of S = L Lᵀ. It omits the slope −∞ towards a higher rank, in directions in which T has variance
    and S has zero.

    Args:
        p: m_p "d", and S by its variances "d" or as a matrix "d d", possibly singular.
        q: m_q and T, likewise.

    Returns:
        The squared distance, in squared units of the space, NaN if a covariance is indefinite.

    Raises:
        ValueError: if the shapes do not fit, a covariance is not symmetric, or a full one is in
            half precision.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from divjax import Normal
        >>> line = Normal(jnp.zeros(2), jnp.array([[4.0, 0.0], [0.0, 0.0]]))
        >>> q = Normal(jnp.ones(2), jnp.ones(2))
        >>> float(gaussian_wasserstein(line, q))  # 2 + (2 − 1)² + 1²
        4.0
        >>> jax.grad(gaussian_wasserstein)(line, q).covariance.tolist()
        [[0.5, 0.0], [0.0, 1.0]]

    References:
        Dowson, Landau 1982, eq. 16. Takatsu 2011, proposition 2.2: the map.
    """
    pair = paired_gaussians(p, q)
    return pair.squared_shift + squared_bures(pair.p.covariance, pair.q.covariance)


@pytree
class AffineMap:
    """The map x ↦ target + A (x − source).

    Attributes:
        matrix: A, symmetric, or its diagonal "d" if A is diagonal.
        source: the mean of the source.
        target: the mean of the target.
        means_low: the rounding errors of the means, for float64 from NumPy far from zero.
    """

    matrix: Float[Array, " d"] | Float[Array, "d d"]
    source: Float[Array, " d"]
    target: Float[Array, " d"]
    means_low: tuple[Float[Array, " d"], Float[Array, " d"]] | None = None

    def __repr__(self) -> str:
        return summary(self)

    def __call__(self, x: Float[Numbers, "... d"]) -> Float[Array, "... d"]:
        """The images of the rows of x."""
        if jnp.shape(x)[-1:] != self.source.shape:
            raise ValueError(f"x must have {self.source.size} features; got shape {jnp.shape(x)}.")
        if self.means_low is None:
            return self.target + self._linear(x - self.source)
        # Float64 points from NumPy are centred before rounding.
        source, target = map(Center, (self.source, self.target), self.means_low)
        rows = x if hasattr(x, "dtype") else np.asarray(x)
        centered = source.subtract(rows.reshape(-1, self.source.size))
        return target.add(self._linear(centered)).reshape(rows.shape)

    def _linear(self, centered: Float[Array, "... d"]) -> Float[Array, "... d"]:
        if self.matrix.ndim == 1:
            return centered * self.matrix
        return matmul(centered, self.matrix)


@jax.default_matmul_precision("highest")
def gaussian_map(p: Normal, q: Normal) -> AffineMap:
    """The optimal map between Gaussians, x ↦ m_q + A (x − m_p), A = T^½ (T^½ S T^½)^{−½} T^½.

    For S of full rank A is the unique semi-definite matrix with A S A = T. The map is the gradient
    of a convex function, as Brenier's theorem requires. For singular S the pseudo-inverse is used.
    If T has variance in a direction in which S has zero, no map exists, and A S A is the part of T
    that can be reached.

    Args:
        p: m_p "d", and S by its variances "d" or as a matrix "d d".
        q: m_q and T, likewise.

    Returns:
        The map, a function of rows.

    Raises:
        ValueError: if the shapes do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax import Normal
        >>> p, q = Normal(jnp.zeros(2), jnp.ones(2)), Normal(jnp.ones(2), jnp.array([4.0, 9.0]))
        >>> to_q = gaussian_map(p, q)
        >>> to_q(jnp.array([[1.0, 1.0]])).tolist()
        [[3.0, 4.0]]

    References:
        Takatsu 2011, proposition 2.2.
    """
    pair = paired_gaussians(p, q)
    s, t = pair.p.covariance, pair.q.covariance
    return pair.map_by(stretch(s, t) if s.ndim == 1 else transport_matrix(s, t))


def _unless_padding(weight: Float[Array, ""], value: Array) -> Array:
    """The mean or covariance, replaced by zero if it has weight zero and is not finite."""
    return jnp.where((weight == 0) & ~jnp.isfinite(value).all(), 0, value)


@pytree
class GaussianBarycenter(Outcome):
    """The Gaussian with the least weighted sum of squared distances to the given ones.

    Attributes:
        mean: its mean, the weighted mean of means.
        covariance: its covariance, full or diagonal as the given ones.
        residual: ‖Σ_k w_k A_k − I‖ / √d, with the maps A_k to the given ones: zero at the
            barycenter.
        num_steps: the number of fixed-point steps taken.
        status: `Status.CONVERGED` if the residual is within the tolerance, and all numbers finite.
    """

    mean: Float[Array, " d"]
    covariance: Float[Array, " d"] | Float[Array, "d d"]
    residual: Float[Array, ""]
    num_steps: Int[Array, ""]
    status: Int[Array, ""]


@jax.default_matmul_precision("highest")
def gaussian_barycenter(
    normals: Normal | Sequence[Normal],
    weights: Float[Numbers, " k"] | None = None,
    *,
    num_steps: int = 32,
    tolerance: ArrayLike = 1e-4,
) -> GaussianBarycenter:
    """The 2-Wasserstein barycenter of Gaussians, by the fixed point S ← A S A, A = Σ_k w_k A_k.

    A_k is the matrix of the optimal map from S to the k-th covariance. Each step lowers the sum of
    squared distances, and if one covariance has full rank the fixed point is the barycenter. If all
    are diagonal (or commute) it has a closed form, the weighted mean of standard deviations.

    The number of steps is fixed, so the function can be vmapped and differentiated (through the
    steps, whose derivatives converge with them).

    Args:
        normals: the Gaussians, one `Normal` of means "k d" and covariances "k d" or "k d d", or a
            list of `Normal`s. If one of a list has a full covariance, so has the barycenter.
        weights: non-negative, with any sum, uniform by default.
        num_steps: fixed-point steps, of which a dozen suffice for well-conditioned covariances.
        tolerance: the largest residual that counts as converged.

    Returns:
        A `GaussianBarycenter`. If all covariances are singular its residual may stay above zero.

    Raises:
        ValueError: if the shapes do not fit, a covariance is not symmetric, or weights are negative
            or zero throughout. Traced weights out of range give NaN.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax import Normal
        >>> p = Normal(jnp.array([0.0, 0.0]), jnp.array([[1.0, 0.0], [0.0, 4.0]]))
        >>> q = Normal(jnp.array([2.0, 0.0]), jnp.array([[9.0, 0.0], [0.0, 4.0]]))
        >>> found = gaussian_barycenter([p, q])
        >>> found.mean.tolist(), found.covariance.round(3).tolist(), bool(found.converged)
        ([1.0, 0.0], [[4.0, 0.0], [0.0, 4.0]], True)

    References:
        Álvarez-Esteban, del Barrio, Cuesta-Albertos, Matrán 2016, eq. 19 and theorem 4.2.
    """
    means, covariances = stacked_normals("normals", normals)
    check_count(1, num_steps=num_steps)
    check_scalar(tolerance=tolerance)
    k = means.shape[0]
    if weights is None:
        weights = jnp.ones(k)
    # One dtype for all, so that NumPy's float64 does not widen JAX's arrays.
    dtype = jnp.result_type(float, means, covariances)
    means, covariances = jnp.asarray(means, dtype), jnp.asarray(covariances, dtype)
    weights = as_weights("weights", weights, k, dtype)
    if covariances.ndim == 3:
        # Factorisations do not support half precision, which variances alone allow.
        check_full_precision("a full covariance", covariances)
        # A traced matrix has passed no check of its symmetry.
        covariances = symmetric_or_nan(covariances)
    return _barycenter(means, covariances, weights, tolerance, num_steps)


@functools.partial(jax.jit, static_argnames="num_steps")
def _barycenter(
    means: Float[Array, "k d"],
    covariances: Float[Array, "k d"] | Float[Array, "k d d"],
    weights: Float[Array, " k"],
    tolerance: ArrayLike,
    num_steps: int,
) -> GaussianBarycenter:
    """The barycenter of symmetric covariances, with weights of any sum."""
    d, dtype = means.shape[1], means.dtype
    valid, weights = are_weights(weights), shares_of(weights)
    # Gaussians of weight zero are padding.
    without_padding = jax.vmap(_unless_padding)
    means, covariances = without_padding(weights, means), without_padding(weights, covariances)

    if covariances.ndim == 2:
        # Diagonal covariances commute: the weighted mean of the deviations is the fixed point,
        # without steps.
        mean_stretch = lambda s: weights @ jax.vmap(lambda t: stretch(s, t))(covariances)
        s = (weights @ safe_sqrt(covariances)) ** 2
        # A variance that is zero in all covariances has no map, and needs no map.
        residual = jnp.linalg.norm(jnp.where(s > 0, mean_stretch(s) - 1, 0)) / d**0.5
        steps = 0
    else:

        def maps(s: Float[Array, "d d"]) -> Float[Array, "d d"]:
            each = jax.vmap(lambda t: transport_matrix(s, t))(covariances)
            return jnp.tensordot(weights, each, 1)

        def step(s: Float[Array, "d d"], _: None) -> tuple[Float[Array, "d d"], None]:
            # A product is symmetric only up to rounding, and the next step takes a covariance.
            mean_map = maps(s)
            s = mean_map @ s @ mean_map
            return (s + s.T) / 2, None

        # The mean covariance has full rank if one with weight does, as the fixed point requires.
        s, _ = jax.lax.scan(step, jnp.tensordot(weights, covariances, 1), length=num_steps)
        residual = jnp.linalg.norm(maps(s) - jnp.eye(d, dtype=dtype)) / d**0.5
        steps = num_steps
    # The residual is diagnostic, so its gradient is stopped.
    residual = jax.lax.stop_gradient(residual)
    mean = weights @ means
    finite = jnp.isfinite(mean).all() & jnp.isfinite(s).all()
    close = residual <= jnp.asarray(tolerance, dtype)
    status = status_of(converged=close, finite=finite, valid=valid)
    return GaussianBarycenter(mean, s, residual, jnp.asarray(steps), status)
