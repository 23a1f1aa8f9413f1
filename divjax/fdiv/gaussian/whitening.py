"""Two Gaussians in the coordinates where the second is standard.

All divergences are functions of M = L_q⁻¹ L_p and z = L_q⁻¹ (m_p − m_q), with Cholesky factors L of
the covariances.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from divjax.core.linalg import cholesky, eigh, solve_triangular
from divjax.core.normal import Normal, are_symmetric, normal_pair
from divjax.core.numerics import if_needed, nan_unless
from divjax.core.samples import two_parts

__all__ = ["Whitened", "as_arguments", "whiten"]


class Whitened(NamedTuple):
    """p in the coordinates where q is standard: the factor M of its covariance, its mean z.

    Attributes:
        factor: the factor M.
        shift: the shift z.
        valid: whether both are Gaussians, and it is decidable whether they are mutually singular.
        apart: whether they are mutually singular.
    """

    factor: Float[Array, " d"] | Float[Array, "d d"]
    shift: Float[Array, " d"]
    valid: Bool[Array, ""]
    apart: Bool[Array, ""]

    def finish(self, divergence: Float[Array, ""]) -> Float[Array, ""]:
        """The divergence, +∞ between mutually singular Gaussians, NaN for invalid ones."""
        return nan_unless(self.valid, jnp.where(self.apart, jnp.inf, divergence))

    @property
    def log_variances(self) -> Float[Array, " d"]:
        """2 log M_ii, whose sum is log det C_p − log det C_q."""
        factor = self.factor if self.factor.ndim == 1 else jnp.diagonal(self.factor)
        return 2 * jnp.log(factor)


class _Root(NamedTuple):
    """A covariance's Cholesky factor, or 1 (the identity) where it has none, with flags."""

    factor: Float[Array, " d"] | Float[Array, "d d"]
    valid: Bool[Array, ""]
    singular: Bool[Array, ""]


def _root(covariance: Float[Array, " d"] | Float[Array, "d d"]) -> _Root:
    finite = jnp.isfinite(covariance).all()
    if covariance.ndim == 1:
        # The root has no finite derivative at a variance of zero, which is reported as singular
        # instead.
        factor = jnp.sqrt(jnp.where(covariance > 0, covariance, 1))
        return _Root(factor, finite & jnp.all(covariance >= 0), jnp.any(covariance == 0))
    factor = cholesky(covariance)
    failed = ~jnp.isfinite(factor).all()
    # Cholesky's algorithm fails for singular and indefinite matrices alike.
    _, semidefinite = if_needed(
        failed & finite,
        lambda carry: (carry[0], _is_semidefinite(carry[0])),
        (jax.lax.stop_gradient(covariance), ~failed),
    )
    # With the identity for a failed factor all later values are finite, until `finish` decides.
    one = jnp.eye(covariance.shape[0], dtype=covariance.dtype)
    valid = finite & semidefinite & are_symmetric(covariance)
    return _Root(jnp.where(failed, one, factor), valid, failed)


def _correlation_scale(covariance: Float[Array, "d d"]) -> Float[Array, " d"]:
    """The features' standard deviations, 1 for a variance that is not positive."""
    variances = jax.lax.stop_gradient(jnp.diagonal(covariance))
    return jnp.sqrt(jnp.where(variances > 0, variances, 1))


def _is_semidefinite(covariance: Float[Array, "d d"]) -> Bool[Array, ""]:
    """Whether no eigenvalue of the correlations is negative, up to rounding."""
    scale = _correlation_scale(covariance)
    smallest = eigh(covariance / (scale[:, None] * scale))[0][0]
    return smallest >= -10 * scale.size * jnp.finfo(covariance.dtype).eps


def as_arguments(p: Any, q: Any) -> tuple[Normal, Normal]:
    """Both as arguments of a compiled function, NumPy's means in two parts."""
    p, q = normal_pair(p, q)
    p, q = _in_own_units(p, q)
    dtype = jnp.result_type(float, *p, *q)
    return _mean_in_parts(p, dtype), _mean_in_parts(q, dtype)


def _mean_in_parts(g: Normal, dtype: DTypeLike) -> Normal:
    """The Gaussian with NumPy's mean split into a rounded part and its remainder."""
    return g._replace(mean=two_parts(g.mean, dtype)) if isinstance(g.mean, np.ndarray) else g


def _in_own_units(p: Normal, q: Normal) -> tuple[Normal, Normal]:
    """Both rescaled by powers of two near a concrete covariance's standard deviations.

    Divergences do not change. NumPy's smallest variances may not be representable in JAX's dtype.
    """
    known = [g.covariance for g in (q, p) if isinstance(g.covariance, np.ndarray)]
    if not known:
        return p, q
    variances = known[0] if known[0].ndim == 1 else np.diagonal(known[0])
    usable = (variances > 0) & np.isfinite(variances)
    # A division by a power of two is exact.
    unit = 2.0 ** np.round(np.log2(np.where(usable, variances, 1).astype(float)) / 2)

    def rescaled(g: Normal) -> Normal:
        # In the array's own dtype, so that float64 of NumPy does not widen arrays of JAX.
        own = unit.astype(g.covariance.dtype)
        # One axis at a time, since the product of two scales may leave the dtype's range.
        covariance = g.covariance / own
        covariance = covariance / (own if covariance.ndim == 1 else own[:, None])
        return Normal(g.mean / unit.astype(g.mean.dtype), covariance)

    return rescaled(p), rescaled(q)


def whiten(p: Normal, q: Normal) -> Whitened:
    """Both in the coordinates where q is standard."""
    dtype = jnp.result_type(float, *jax.tree.leaves((p, q)))
    parts_of = lambda mean: mean if isinstance(mean, tuple) else two_parts(mean, dtype)
    (p_mean, p_rest), (q_mean, q_rest) = parts_of(p.mean), parts_of(q.mean)
    p_covariance, q_covariance = jnp.asarray(p.covariance, dtype), jnp.asarray(q.covariance, dtype)
    p_root, q_root = _root(p_covariance), _root(q_covariance)
    valid = p_root.valid & q_root.valid & jnp.isfinite(jnp.stack([p_mean, q_mean])).all()
    # A large offset shared by both means cancels in the first parts. Their rounding errors keep the
    # difference accurate.
    shift = (p_mean - q_mean) + (p_rest - q_rest)
    if p_covariance.ndim == q_covariance.ndim == 1:
        # Two features of variance zero agree if their means do.
        one_has_none = (p_covariance == 0) != (q_covariance == 0)
        both_have_none = (p_covariance == 0) & (q_covariance == 0)
        apart = jnp.any(one_has_none | (both_have_none & (shift != 0)))
        return Whitened(p_root.factor / q_root.factor, shift / q_root.factor, valid, apart)
    as_matrix = lambda factor: jnp.diag(factor) if factor.ndim == 1 else factor
    p_factor, q_factor = as_matrix(p_root.factor), as_matrix(q_root.factor)
    return Whitened(
        solve_triangular(q_factor, p_factor),
        solve_triangular(q_factor, shift),
        # Whether two singular Gaussians share their support is not decided here.
        valid & ~(p_root.singular & q_root.singular),
        p_root.singular | q_root.singular,
    )
