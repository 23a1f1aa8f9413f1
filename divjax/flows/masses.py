"""Weighted particles, of which those without weight may hold anything."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from divjax.core.numerics import matmul

__all__ = ["drop_dead", "weighted_sum"]


def drop_dead(weights: Float[Array, " n"], rows: Float[Array, "n ..."]) -> Float[Array, "n ..."]:
    """The rows, with zeros for what is not finite in rows of weight zero.

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
    """Σ_i a_i values_i; values without weight do not count, whatever they are."""
    return matmul(weights, drop_dead(weights, values))
