"""The entropic map of the squared Euclidean cost as a mean, accurate far from the samples."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from divjax.core.numerics import matmul, safe_log

__all__ = ["barycentric_images"]


def barycentric_images(
    z: Float[Array, "k d"],
    y: Float[Array, "m d"],
    g: Float[Array, " m"],
    b: Float[Array, " m"],
    epsilon: Float[Array, ""],
) -> Float[Array, "k d"]:
    """The means of y under the plan at z, with weights ∝ b_j exp((g_j − |z − y_j|²)/ε).

    Without the common term |z|², the exponents are (g_j − |y_j|² + 2 z·y_j)/ε. Far from the
    samples, |z|² would round away the differences between them, and with those the derivative.

    Args:
        z: points.
        y: targets.
        g: the potential of y.
        b: the weights of y, zero for rows to ignore.
        epsilon: ε.

    References:
        Pooladian, Niles-Weed 2021, eq. 8.
    """
    exponents = (g - jnp.sum(y**2, axis=1) + 2 * matmul(z, y.T)) / epsilon
    weights = jax.nn.softmax(exponents + safe_log(b), axis=1)
    return matmul(weights, y)
