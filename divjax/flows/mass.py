"""Weighted particles, of which those of weight zero may hold any value."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, PyTree

from divjax.core.checks import check_shape
from divjax.core.numerics import matmul, nan_unless
from divjax.core.pytrees import num_particles
from divjax.core.samples import as_numbers, as_samples, as_weights, owned
from divjax.core.simplex import are_weights, sum_to_one, sum_tolerance

__all__ = ["checked_masses", "checked_step", "drop_dead", "masses_of", "weighted_sum"]


def checked_masses(weights: Any, n: int, dtype: Any) -> Float[Array, " n"]:
    """The masses of n particles in their dtype; NaN if they are traced and invalid.

    Raises:
        ValueError: for another shape, and for known weights that are negative, not finite, or do
            not sum to one within a thousandth (0.4% in float16, 3% in bfloat16).

    Example:
        >>> checked_masses(jnp.array([0.5, 0.5]), 2, jnp.float32).tolist()
        [0.5, 0.5]
    """
    given = as_numbers("weights", weights)
    masses = as_weights("weights", given, n, dtype)
    # Weights may have been rounded by their own dtype, by that of the particles, or by both.
    tolerance = max(sum_tolerance(n, held) for held in (given.dtype, masses.dtype))
    # Traced weights cannot be validated eagerly. Half precision would round their sum itself.
    if isinstance(given, Tracer):
        return nan_unless(are_weights(masses) & sum_to_one(masses, tolerance), masses)
    total = np.asarray(given, float).sum()
    if abs(total - 1) > tolerance:
        raise ValueError(f"weights must sum to one; they sum to {total:.6g}.")
    return masses


def masses_of(particles: PyTree[Array], weights: Any) -> Float[Array, " n"]:
    """`checked_masses` of particles that are a pytree of floating-point arrays."""
    dtype = jnp.result_type(*jax.tree.leaves(particles))
    return checked_masses(weights, num_particles(particles), dtype)


def checked_step(
    x: Any, weights: Any, gradients: Any
) -> tuple[Float[Array, "n p"], Float[Array, " n"], Float[Array, "k n d"]]:
    """The arguments of a velocity: features, masses and gradients as floating-point arrays.

    Raises:
        ValueError: if the features are not a matrix of numbers, the gradients do not fit these
            particles, or as `checked_masses`.
    """
    (x,) = as_samples(x=x)
    check_shape("gradients", gradients, "k", x.shape[0], "d")
    gradients = jnp.asarray(owned(gradients))
    # A user's integer gradients, such as zeros, follow the features' dtype.
    if not jnp.issubdtype(gradients.dtype, jnp.floating):
        gradients = gradients.astype(x.dtype)
    return x, checked_masses(weights, x.shape[0], x.dtype), gradients


def drop_dead(weights: Float[Array, " n"], rows: Float[Array, "n ..."]) -> Float[Array, "n ..."]:
    """The rows, with non-finite entries of zero-weight rows replaced by zero.

    Sums weighted by `weights` then never multiply 0 by infinity, while their derivatives in the
    weights stay those of the rows, also at weight zero.

    Example:
        >>> import jax.numpy as jnp
        >>> drop_dead(jnp.array([1.0, 0.0, 0.0]), jnp.array([jnp.nan, jnp.inf, 3.0])).tolist()
        [nan, 0.0, 3.0]
    """
    alive = (weights != 0).reshape(-1, *[1] * (rows.ndim - 1))
    return jnp.where(alive | jnp.isfinite(rows), rows, 0)


def weighted_sum(weights: Float[Array, " n"], values: Float[Array, "n ..."]) -> Float[Array, "..."]:
    """Σ_i a_i values_i; values of weight zero do not count, even if they are not finite."""
    return matmul(weights, drop_dead(weights, values))
