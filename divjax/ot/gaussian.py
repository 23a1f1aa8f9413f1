"""Transport between Gaussians in closed form: the distance, the map, and the barycenter.

A Gaussian is a `divjax.Normal`, or any pair of a mean "d" and a covariance: "d" for the variances
of a diagonal one, "d d" for a full one, which may be singular. An eigenvalue counts as zero if its
size is at most d machine epsilons of the largest; a more negative one makes the result NaN. Maps
and derivatives are NaN if rounding hides a direction in which both have variance, as for features
whose standard deviations differ by more than about 10³ in float32: scale them, or use float64. A
full covariance must be symmetric, up to 3e-4 in units of the features' standard deviations.
Otherwise a concrete one raises, and a traced one makes the result NaN.

With covariances S and T, and factors S = L Lᵀ and T = K Kᵀ, all results follow from the singular
value decomposition Lᵀ K = U Σ Vᵀ: the fidelity tr (S^½ T S^½)^½ = tr Σ, the squared distance
‖L U − K V‖², and the map A = K V Σ⁺ Vᵀ Kᵀ, for which A S A = T if S has full rank.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from divjax.core import linalg
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
from divjax.core.numerics import matmul, nan_unless, safe_sqrt
from divjax.core.pytrees import pytree
from divjax.core.samples import Center, Numbers, Unrounded, as_weights, centered_samples
from divjax.core.types import Outcome, status_of, summary

__all__ = [
    "AffineMap",
    "GaussianBarycenter",
    "gaussian_barycenter",
    "gaussian_map",
    "gaussian_wasserstein",
]


def _transpose(matrix: Float[Array, "d e"]) -> Float[Array, "e d"]:
    return jnp.swapaxes(matrix, -1, -2)


def _eigenvalues_and_vectors(matrix: Float[Array, "d d"]) -> tuple[Array, Array]:
    """The eigendecomposition, with rounding near zero removed, nan for an indefinite matrix."""
    values, vectors = linalg.eigh((matrix + _transpose(matrix)) / 2)
    # The sign of an eigenvalue within rounding of zero is meaningless. With a more negative one the
    # matrix is indefinite, and has no root.
    rounding = values.size * jnp.finfo(matrix.dtype).eps * jnp.max(jnp.abs(values))
    values = jnp.where(jnp.abs(values) <= rounding, 0, values)
    return jnp.where(values < 0, jnp.nan, values), vectors


# The derivative rules of the next three functions use only these three, so derivatives of every
# order exist. The derivatives of an eigendecomposition have poles at equal eigenvalues.


@jax.custom_jvp
def _lyapunov(root: Float[Array, "d d"], right: Float[Array, "d d"]) -> Float[Array, "d d"]:
    """The Y with X Y + Y X = C for a semi-definite X, zero where X vanishes on both sides."""
    values, vectors = _eigenvalues_and_vectors(root)
    # In X's eigenbasis the equation is (λ_i + λ_j) Y_ij = C_ij. Sums of eigenvalues have no pole
    # at equal ones, unlike differences.
    sums = values[:, None] + values
    rotated = _transpose(vectors) @ right @ vectors
    solution = jnp.where(sums == 0, 0, rotated / jnp.where(sums == 0, 1, sums))
    return vectors @ solution @ _transpose(vectors)


@_lyapunov.defjvp
def _(primals, tangents):
    (root, right), (d_root, d_right) = primals, tangents
    # X dY + dY X = dC − dX Y − Y dX, the equation differentiated.
    solution = _lyapunov(root, right)
    return solution, _lyapunov(root, d_right - d_root @ solution - solution @ d_root)


@jax.custom_jvp
def matrix_root(matrix: Float[Array, "d d"]) -> Float[Array, "d d"]:
    """The semi-definite square root, differentiated along paths of constant rank."""
    values, vectors = _eigenvalues_and_vectors(matrix)
    return (vectors * jnp.sqrt(values)) @ _transpose(vectors)


@matrix_root.defjvp
def _(primals, tangents):
    # X² = M gives X dX + dX X = dM.
    root = matrix_root(*primals)
    return root, _lyapunov(root, *tangents)


@jax.custom_jvp
def _pseudo_inverse(matrix: Float[Array, "d d"]) -> Float[Array, "d d"]:
    """The pseudo-inverse of a semi-definite matrix, differentiated along paths of constant rank."""
    values, vectors = _eigenvalues_and_vectors(matrix)
    inverse = jnp.where(values == 0, 0, 1 / jnp.where(values == 0, 1, values))
    return (vectors * inverse) @ _transpose(vectors)


@_pseudo_inverse.defjvp
def _(primals, tangents):
    (matrix,), (change,) = primals, tangents
    # −M⁺ dM M⁺ is the part within M's range. The rest rotates the range, and contains the projector
    # I − M M⁺ onto its complement.
    inverse = _pseudo_inverse(matrix)
    outside = jnp.eye(matrix.shape[0], dtype=matrix.dtype) - matrix @ inverse
    across = inverse @ inverse @ change @ outside
    return inverse, across + _transpose(across) - inverse @ change @ inverse


def _factor(matrix: Float[Array, "d d"]) -> tuple[Array, Bool[Array, ""]]:
    """A factor L with matrix = L Lᵀ, and whether its rank is full."""
    # By the correlations: features of small variance count as much as those of a large one.
    variances = jnp.diagonal(matrix)
    variances = jnp.where(variances > 0, variances, jnp.max(jnp.abs(variances)))
    scale = jnp.sqrt(jnp.where(variances > 0, variances, 1))
    correlations = matrix / scale[:, None] / scale
    values, vectors = linalg.eigh((correlations + _transpose(correlations)) / 2)
    # Negative values are rounding up to that of the matrix itself, which is relative to its largest
    # variance.
    rounding = values.size * jnp.finfo(matrix.dtype).eps * jnp.max(jnp.abs(values))
    indefinite = values < -rounding * (jnp.max(scale) / jnp.min(scale)) ** 2
    values = nan_unless(~indefinite, jnp.where(values <= rounding, 0, values))
    return scale[:, None] * vectors * jnp.sqrt(values), jnp.all(values > 0)


def _aligned(
    s: Float[Array, "d d"], t: Float[Array, "d d"]
) -> tuple[Array, Array, Array, Bool[Array, ""]]:
    """L U, K V and Σ, with singular values that are zero up to rounding exactly so.

    Also whether Σ is resolved: none is zero if both matrices have full rank.
    """
    (s_factor, s_full), (t_factor, t_full) = _factor(s), _factor(t)
    # L U and K V are the factors of S and T that are nearest to each other. The absolute error of a
    # singular value is relative to the size of the factors.
    left, fidelities, right = linalg.svd(_transpose(s_factor) @ t_factor)
    scale = jnp.linalg.norm(s_factor) * jnp.linalg.norm(t_factor)
    rounding = fidelities.size * jnp.finfo(s.dtype).eps * scale
    fidelities = jnp.where(fidelities <= rounding, 0, fidelities)
    resolved = ~(s_full & t_full & (fidelities == 0).any())
    return s_factor @ left, t_factor @ _transpose(right), fidelities, resolved


def singular_fidelities(s: Float[Array, "d d"], t: Float[Array, "d d"]) -> Float[Array, " d"]:
    """The singular values of S^½ T^½, whose sum is the fidelity."""
    return _aligned(s, t)[2]


@jax.custom_jvp
def _transport(s: Float[Array, "d d"], t: Float[Array, "d d"]) -> Float[Array, "d d"]:
    """A = T^½ (T^½ S T^½)^{+½} T^½, the matrix of the optimal map from S to T.

    NaN if rounding hides a direction in which both have variance.
    """
    # K V Σ⁺ Vᵀ Kᵀ of the module's docstring.
    _, factor, fidelities, resolved = _aligned(s, t)
    inverse = jnp.where(fidelities == 0, 0, 1 / jnp.where(fidelities == 0, 1, fidelities))
    return nan_unless(resolved, (factor * inverse) @ _transpose(factor))


@_transport.defjvp
def _(primals, tangents):
    # The singular value decomposition has no derivative at equal singular values. The same matrix
    # from roots has one, by rules that are closed under differentiation.
    def by_roots(s: Array, t: Array) -> Array:
        root = matrix_root(t)
        return root @ _pseudo_inverse(matrix_root(root @ s @ root)) @ root

    # Roots have less range than the factors of the map, and may lose one of its directions.
    root = matrix_root(primals[1])
    rank = jnp.sum(_eigenvalues_and_vectors(root @ primals[0] @ root)[0] > 0)
    resolved = rank == jnp.sum(_aligned(*primals)[2] > 0)
    return _transport(*primals), nan_unless(resolved, jax.jvp(by_roots, primals, tangents)[1])


@jax.custom_jvp
def _squared_bures(s: Float[Array, "d d"], t: Float[Array, "d d"]) -> Float[Array, ""]:
    """The squared Bures distance as a sum of squares, which is accurate for small distances."""
    s_factor, t_factor, *_ = _aligned(s, t)
    return jnp.sum((s_factor - t_factor) ** 2)


@_squared_bures.defjvp
def _(primals, tangents):
    (s, t), (ds, dt) = primals, tangents
    # The gradient in S is I − A, and in T likewise with the inverse map.
    change = jnp.trace(ds) - jnp.sum(_transport(s, t) * ds)
    change += jnp.trace(dt) - jnp.sum(_transport(t, s) * dt)
    return _squared_bures(s, t), change


def _stretch(s: Array, t: Array) -> Array:
    """√(t/s), zero if s or t is: `_transport` of variances."""
    s_root, t_root = safe_sqrt(s), safe_sqrt(t)
    # 0 · √t rather than 0, so that NaN variances propagate.
    is_zero = s_root == 0
    return jnp.where(is_zero, 0 * t_root, t_root / jnp.where(is_zero, 1, s_root))


@jax.custom_jvp
def _squared_difference(s: Array, t: Array) -> Array:
    """(√s − √t)²: `_squared_bures` of variances."""
    return (safe_sqrt(s) - safe_sqrt(t)) ** 2


@_squared_difference.defjvp
def _(primals, tangents):
    (s, t), (ds, dt) = primals, tangents
    # As for the squared Bures distance: 1 − √(t/s), with a quotient of zero at s = 0, where the
    # true slope is −∞.
    change = (1 - _stretch(s, t)) * ds + (1 - _stretch(t, s)) * dt
    return _squared_difference(s, t), change


def squared_bures(s: Array, t: Array) -> Float[Array, ""]:
    """The squared Bures distance of two covariances of one kind, variances or matrices."""
    return jnp.sum(_squared_difference(s, t)) if s.ndim == 1 else _squared_bures(s, t)


class GaussianPair(NamedTuple):
    """Two Gaussians in one dtype, with covariances of one kind, and means relative to a centre."""

    p: Normal
    q: Normal
    center: Center

    @property
    def squared_shift(self) -> Float[Array, ""]:
        """|m_p − m_q|²."""
        return jnp.sum((self.p.mean - self.q.mean) ** 2)

    def map_by(self, matrix: Array) -> "AffineMap":
        """The map from p to q with this matrix."""
        source, target = self.center.moved(self.p.mean), self.center.moved(self.q.mean)
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
    center, mean_p, mean_q = centered_samples(p=p.mean[None], q=q.mean[None])
    return GaussianPair(
        Normal(mean_p[0].astype(dtype), _covariance_as(dtype, p.covariance)),
        Normal(mean_q[0].astype(dtype), _covariance_as(dtype, q.covariance)),
        center,
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
    return pair.map_by(_stretch(s, t) if s.ndim == 1 else _transport(s, t))


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
        check_full_precision("a full covariance", covariances)
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
    valid = (jnp.min(weights) >= 0) & (jnp.sum(weights) > 0)
    weights = nan_unless(valid, weights) / jnp.sum(weights)
    # Gaussians of weight zero are padding.
    without_padding = jax.vmap(_unless_padding)
    means, covariances = without_padding(weights, means), without_padding(weights, covariances)

    if covariances.ndim == 2:
        # Diagonal covariances commute: the weighted mean of the deviations is the fixed point,
        # without steps.
        stretch = lambda s: weights @ jax.vmap(lambda t: _stretch(s, t))(covariances)
        s = (weights @ safe_sqrt(covariances)) ** 2
        # A variance that is zero in all covariances has no map, and needs no map.
        residual = jnp.linalg.norm(jnp.where(s > 0, stretch(s) - 1, 0)) / d**0.5
        steps = 0
    else:

        def maps(s: Float[Array, "d d"]) -> Float[Array, "d d"]:
            each = jax.vmap(lambda t: _transport(s, t))(covariances)
            return jnp.tensordot(weights, each, 1)

        def step(s: Float[Array, "d d"], _: None) -> tuple[Float[Array, "d d"], None]:
            # A product is symmetric only up to rounding, and the next step takes a covariance.
            mean_map = maps(s)
            s = mean_map @ s @ mean_map
            return (s + _transpose(s)) / 2, None

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
