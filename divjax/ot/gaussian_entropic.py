"""Entropic transport between Gaussians in closed form.

For the cost |x − y|² and the penalty ε KL(P‖p ⊗ q), the optimal plan between N(m_p, S) and
N(m_q, T) is a Gaussian. The mean of y given x is affine, with the slope G ⪰ 0 that solves

    G S G + (ε/2) G = T,    G = K (ε/4 I + (ε²/16 I + K S K)^½)⁻¹ K,    K = T^½,

and with σ_i the singular values of S^½ T^½ and e_i = (4 σ_i² + ε²/4)^½ − ε/2 the value is

    |m_p − m_q|² + tr S + tr T − Σ_i e_i + (ε/2) Σ_i log(1 + e_i/ε).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from divjax.core import linalg
from divjax.core.checks import check_flag, check_positive_values, check_scalar
from divjax.core.normal import Normal
from divjax.core.numerics import in_units_of, nan_unless, root_of_sum, safe_sqrt
from divjax.core.pytrees import pytree
from divjax.core.types import summary
from divjax.ot.covariances import matrix_root, singular_fidelities, squared_bures
from divjax.ot.gaussian import AffineMap, paired_gaussians

__all__ = ["GaussianEntropicResult", "gaussian_entropic"]


@pytree
class GaussianEntropicResult:
    """The value and the plan of entropic transport between two Gaussians.

    Attributes:
        value: min ⟨P, C⟩ + ε KL(P‖p ⊗ q), or with `debias` the Sinkhorn divergence.
        transport: the entropic map x ↦ E[y | x] of rows, the gradient of a convex function. Its
            images have less spread than those of the optimal map.
        covariance: the covariance of y given x, (ε/2) G, the same for all x.
    """

    value: Float[Array, ""]
    transport: AffineMap
    covariance: Float[Array, " d"] | Float[Array, "d d"]

    def __repr__(self) -> str:
        return summary(self)


def _slope(s: Array, t: Array, epsilon: Array) -> Array:
    """G, elementwise for variances."""
    if s.ndim == 1:
        return t / (epsilon / 4 + root_of_sum(epsilon / 4, s * t))
    # G as in the module's docstring: the inverted matrix is at least ε/2, also for singular S or T.
    identity = jnp.eye(s.shape[0], dtype=s.dtype)
    factor = matrix_root(t)
    # In units in which ε² cannot overflow.
    inner = factor @ s @ factor
    unit = jax.lax.stop_gradient(jnp.maximum(epsilon, jnp.sqrt(jnp.max(jnp.abs(inner)))))
    middle = unit * matrix_root((epsilon / unit) ** 2 / 16 * identity + inner / unit / unit)
    return factor @ linalg.solve(epsilon / 4 * identity + middle, factor)


def _excess(s: Array, t: Array, epsilon: Array) -> tuple[Array, Array]:
    """The σ_i and the e_i = 4 σ_i²/((4 σ_i² + ε²/4)^½ + ε/2), without cancellation."""
    sigma = safe_sqrt(s) * safe_sqrt(t) if s.ndim == 1 else singular_fidelities(s, t)
    half = epsilon / 2
    return sigma, 2 * sigma * (2 * sigma / (root_of_sum(half, 4 * sigma**2) + half))


@jax.custom_jvp
def _covariance_part(s: Array, t: Array, epsilon: Array) -> Float[Array, ""]:
    """The sum tr S + tr T − Σ e_i + (ε/2) Σ log(1 + e_i/ε), by non-negative terms.

    The squared Bures distance tr S + tr T − 2 Σ σ_i is computed as a sum of squares.
    """
    sigma, excess = _excess(s, t, epsilon)
    total = 2 * sigma + root_of_sum(epsilon / 2, 4 * sigma**2) + epsilon / 2
    # (2 σ + ε/2)² − (4 σ² + ε²/4) = 2 σ ε turns a difference of roots, which cancels for small ε,
    # into a quotient.
    gain = 2 * sigma * (epsilon / total)  # 2 σ − e
    entropy = epsilon / 2 * jnp.log1p(excess / epsilon)
    return squared_bures(s, t) + jnp.sum(gain + entropy)


@_covariance_part.defjvp
def _(primals, tangents):
    """The envelope rule: I − G in S, from the potential x·(I − G)x, and KL(P‖p ⊗ q) in ε."""
    (s, t, epsilon), (ds, dt, d_epsilon) = primals, tangents
    one = jnp.ones_like(s) if s.ndim == 1 else jnp.eye(s.shape[0], dtype=s.dtype)
    # The value's derivative in ε is the divergence that it multiplies.
    change = jnp.sum((one - _slope(s, t, epsilon)) * ds)
    change += jnp.sum((one - _slope(t, s, epsilon)) * dt)
    change += d_epsilon * _information(s, t, epsilon)
    return _covariance_part(s, t, epsilon), change


def _information(s: Array, t: Array, epsilon: Array) -> Float[Array, ""]:
    """KL(P‖p ⊗ q) = ½ Σ log(1 + e_i/ε) = ½ log det(I + (2/ε) S^½ G S^½), with all derivatives."""
    slope = _slope(s, t, epsilon)
    if s.ndim == 1:
        return jnp.sum(jnp.log1p(2 / epsilon * slope * s)) / 2
    identity = jnp.eye(s.shape[0], dtype=s.dtype)
    # By a determinant: singular values have no derivative where two are equal.
    root = matrix_root(s)
    factor = linalg.cholesky(identity + 2 / epsilon * root @ slope @ root)
    return jnp.sum(jnp.log(jnp.diagonal(factor)))


@jax.default_matmul_precision("highest")
def gaussian_entropic(
    p: Normal, q: Normal, *, epsilon: ArrayLike, debias: bool = False
) -> GaussianEntropicResult:
    """Entropic transport between Gaussians, min ⟨P, C⟩ + ε KL(P‖p ⊗ q) with C = |x − y|², exact.

    The limit of `sinkhorn` with the squared Euclidean cost and the same ε for many samples. The
    value grows with ε from the squared 2-Wasserstein distance to the mean cost between independent
    draws, |m_p − m_q|² + tr S + tr T. Debiased it is the Sinkhorn divergence, OT(p, q) less half of
    OT(p, p) and of OT(q, q), zero between equal Gaussians.

    Differentiable in all arguments, also at singular covariances: the gradient in S is I − G.

    Args:
        p: m_p "d", and S by its variances "d" or as a matrix "d d", possibly singular.
        q: m_q and T, likewise.
        epsilon: ε > 0, in units of the cost.
        debias: whether the value is the Sinkhorn divergence; the plan is always that of OT(p, q).

    Returns:
        A `GaussianEntropicResult`, the value first, NaN if a covariance is indefinite, or ε is
        traced and not positive.

    Raises:
        ValueError: if the shapes do not fit, a covariance is not symmetric, or ε is not positive.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax import Normal
        >>> p, q = Normal(jnp.zeros(1), jnp.ones(1)), Normal(jnp.ones(1), jnp.ones(1))
        >>> found = gaussian_entropic(p, q, epsilon=1.0)
        >>> float(found.value), found.transport(jnp.array([[2.0]])).round(3).tolist()
        (1.909, [[2.562]])

    References:
        Janati, Muzellec, Peyré, Cuturi 2020, theorem 1 and proposition 2, with ε = 2σ².
    """
    check_flag(debias=debias)
    check_scalar(epsilon=epsilon)
    check_positive_values(epsilon=epsilon)
    pair = paired_gaussians(p, q)
    s, t = pair.p.covariance, pair.q.covariance
    epsilon = jnp.asarray(epsilon, s.dtype)
    # Traced arguments cannot be validated eagerly.
    epsilon = nan_unless(epsilon > 0, epsilon)
    # All three are squares of lengths: in units of the largest their products stay in range.
    largest = jnp.maximum(jnp.max(jnp.abs(s)), jnp.max(jnp.abs(t)))
    largest = jax.lax.stop_gradient(jnp.maximum(largest, epsilon))
    (s, unit), (t, _), (epsilon, _) = (in_units_of(largest, z) for z in (s, t, epsilon))
    value = _covariance_part(s, t, epsilon)
    if debias:
        value -= (_covariance_part(s, s, epsilon) + _covariance_part(t, t, epsilon)) / 2
    slope = _slope(s, t, epsilon)
    # The squared distance of the means adds to OT(p, q); in the self terms it is zero.
    value = unit * value + pair.squared_shift
    return GaussianEntropicResult(value, pair.map_by(slope), unit * (epsilon / 2 * slope))
