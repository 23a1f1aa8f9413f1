"""How far the image of a fitted map is from its target, feature by feature, on held-out rows."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from divjax.core.numerics import nan_unless
from divjax.ot.scales import winsorised
from divjax.ot.weighted_samples import WeightedSamples, mean_over_rows, uniform_weights

__all__ = ["misfit"]

# The level of the test, and shifts that do not count: of a feature's own spread, and of the largest
# one. An image has no atoms where a target has, and distribution functions jump there.
_LEVEL, _OWN_SHARE, _COMMON_SHARE = 1e-3, 0.05, 1e-3


def misfit(
    images: Float[Array, "n d"], held: WeightedSamples, num_problems: int = 1
) -> Float[Array, ""]:
    """The largest distance between features' distribution functions, over its critical value.

    The distance is sup_t of F(t) − G(t + δ) and of G(t − δ) − F(t), that of Kolmogorov and Smirnov
    beyond shifts by δ.

    Args:
        images: the images of the held-out rows of x.
        held: the held-out rows.
        num_problems: the number of problems that are tested at once.
    """
    d = images.shape[1]
    a = uniform_weights(images) if held.a is None else held.a
    b = uniform_weights(held.y) if held.b is None else held.b
    # Outliers do not set the shifts.
    usual = winsorised(held.y, b)
    spread = jnp.sqrt(mean_over_rows((usual - mean_over_rows(usual, b)) ** 2, b))
    shifts = _OWN_SHARE * spread + _COMMON_SHARE * jnp.max(spread)

    def distance(image: Array, target: Array, shift: Array) -> Array:
        above = _largest_excess(image, a, target - shift, b)
        return jnp.maximum(above, _largest_excess(target + shift, b, image, a))

    distances = jax.vmap(distance, (1, 1, 0))(images, held.y, shifts)
    # P(D > c √(1/n + 1/m)) ≈ 2 exp(−2c²), with effective sizes for weights.
    level = _LEVEL / (d * num_problems)
    critical = jnp.sqrt(math.log(2 / level) / 2 * (jnp.sum(a**2) + jnp.sum(b**2)))
    # NaN sorts last, and would count like a large number.
    return nan_unless(jnp.isfinite(images).all(), jnp.max(distances) / critical)


def _largest_excess(
    x: Float[Array, " n"], a: Float[Array, " n"], y: Float[Array, " m"], b: Float[Array, " m"]
) -> Float[Array, ""]:
    """The supremum of the first distribution function less the second, at least 0."""
    values = jnp.concatenate([x, y])
    order = jnp.argsort(values)
    gap = jnp.cumsum(jnp.concatenate([a, -b])[order])
    # Among equal values only the last has their total mass.
    last = jnp.append(values[order][1:] > values[order][:-1], True)
    return jnp.max(jnp.where(last, gap, 0))
