"""Matrices of transport between centred Gaussians: roots, Bures distances, and maps.

With covariances S and T, and factors S = L Lᵀ and T = K Kᵀ, all follow from the singular value
decomposition Lᵀ K = U Σ Vᵀ: the fidelity tr (S^½ T S^½)^½ = tr Σ, the squared distance
‖L U − K V‖², and the map A = K V Σ⁺ Vᵀ Kᵀ, for which A S A = T if S has full rank.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from divjax.core import linalg
from divjax.core.numerics import nan_unless, safe_sqrt

__all__ = [
    "matrix_root",
    "singular_fidelities",
    "squared_bures",
    "stretch",
    "transport_matrix",
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
def transport_matrix(s: Float[Array, "d d"], t: Float[Array, "d d"]) -> Float[Array, "d d"]:
    """A = T^½ (T^½ S T^½)^{+½} T^½, the matrix of the optimal map from S to T.

    NaN if rounding hides a direction in which both have variance.
    """
    # K V Σ⁺ Vᵀ Kᵀ of the module's docstring.
    _, factor, fidelities, resolved = _aligned(s, t)
    inverse = jnp.where(fidelities == 0, 0, 1 / jnp.where(fidelities == 0, 1, fidelities))
    return nan_unless(resolved, (factor * inverse) @ _transpose(factor))


@transport_matrix.defjvp
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
    return transport_matrix(*primals), nan_unless(resolved, jax.jvp(by_roots, primals, tangents)[1])


@jax.custom_jvp
def _squared_bures(s: Float[Array, "d d"], t: Float[Array, "d d"]) -> Float[Array, ""]:
    """The squared Bures distance as a sum of squares, which is accurate for small distances."""
    s_factor, t_factor, *_ = _aligned(s, t)
    return jnp.sum((s_factor - t_factor) ** 2)


@_squared_bures.defjvp
def _(primals, tangents):
    (s, t), (ds, dt) = primals, tangents
    # The gradient in S is I − A, and in T likewise with the inverse map.
    change = jnp.trace(ds) - jnp.sum(transport_matrix(s, t) * ds)
    change += jnp.trace(dt) - jnp.sum(transport_matrix(t, s) * dt)
    return _squared_bures(s, t), change


def stretch(s: Array, t: Array) -> Array:
    """√(t/s), zero if s or t is: `transport_matrix` of variances."""
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
    change = (1 - stretch(s, t)) * ds + (1 - stretch(t, s)) * dt
    return _squared_difference(s, t), change


@jax.jit
def squared_bures(s: Array, t: Array) -> Float[Array, ""]:
    """The squared Bures distance of two covariances of one kind, variances or matrices."""
    return jnp.sum(_squared_difference(s, t)) if s.ndim == 1 else _squared_bures(s, t)
