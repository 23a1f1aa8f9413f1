"""Each feature's mean and scale, exact where it is constant."""

import jax.numpy as jnp
from jaxtyping import Array, Float

__all__ = ["mean_and_scale"]


def mean_and_scale(
    x: Float[Array, "n d"], weights: Float[Array, " n"]
) -> tuple[Float[Array, " d"], Float[Array, " d"]]:
    """Each feature's weighted mean and standard deviation; 1 where that is 0 up to rounding.

    Args:
        x: rows; those without weight may hold anything.
        weights: of any sum, not all zero.

    Returns:
        The mean and the scale, with which (x − mean)/scale is exactly 0 for a constant feature.

    Example:
        >>> import jax.numpy as jnp
        >>> mean, scale = mean_and_scale(jnp.array([[0.1, 1.0], [0.1, 3.0]]), jnp.array([0.5, 0.5]))
        >>> mean.tolist(), scale.tolist()
        ([0.1, 2.0], [1.0, 1.0])
    """
    used = (weights > 0)[:, None]
    share = weights / jnp.sum(weights)
    # Deviations from a value of the feature itself, and in units of the largest: what is constant
    # is so exactly, and squares are neither too large nor too small.
    origin = jnp.max(jnp.where(used, x, -jnp.inf), axis=0)
    deviation = jnp.where(used, x - origin, 0)
    shift = share @ deviation
    deviation = jnp.where(used, deviation - shift, 0)
    unit = jnp.max(jnp.abs(deviation), axis=0)
    unit = jnp.where(unit > 0, unit, 1)
    scale = unit * jnp.sqrt(share @ (deviation / unit) ** 2)
    mean = origin + shift
    return mean, jnp.where(scale > 4 * jnp.finfo(x.dtype).eps * jnp.abs(mean), scale, 1)
