"""Weighted sums of a kernel and of its gradient, as velocities and discrepancies need them."""

import functools

import jax.numpy as jnp
from jaxtyping import Array, Float

from divjax.core.checks import check_matrix, check_same_features
from divjax.core.pairwise import pair_distances_by_rows
from divjax.kernels.radial import Kernel

__all__ = ["kernel_sums"]


# The gradient sums are differences of larger numbers, which faster formats would round away.
_matmul = functools.partial(jnp.matmul, precision="highest")


def kernel_sums(
    kernel: Kernel,
    x: Float[Array, "n d"],
    y: Float[Array, "m d"] | None,
    values: Float[Array, "m c"],
    gradient_weights: Float[Array, "m g"],
) -> tuple[Float[Array, "n c"], Float[Array, "n g d"]]:
    """Σ_j k(x_i, y_j) values_j and Σ_j weights_j ∇_{x_i} k(x_i, y_j), together.

    With ∇_x k = ψ · (x − y) the gradient sums are x_i (ψ C)_i − (ψ [C∘y])_i: products of an n × m
    matrix with narrow ones, never n × m × d. For a kernel whose slope is a multiple of its value
    (Gaussian) one matrix product does everything. Large n × m goes by blocks of rows. The distances
    are those of `squared_distances`, with its rounding where there are more than 8 features.

    Args:
        kernel: a kernel whose bandwidth is a number.
        x: where to evaluate.
        y: the other points, or None for x itself.
        values: weights of the kernel, a column a sum.
        gradient_weights: weights C of the gradient, a column a sum.

    Returns:
        The sums "n c" and the gradient sums "n g d".

    Raises:
        ValueError: if x or y is not a non-empty matrix, or their numbers of features differ.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.kernels import Gaussian
        >>> x, one = jnp.array([[0.0], [1.0]]), jnp.ones((2, 1))
        >>> sums, gradients = kernel_sums(Gaussian(bandwidth=1.0), x, None, one, one)
        >>> sums[:, 0].round(3).tolist(), gradients[:, 0, 0].round(3).tolist()
        ([1.607, 1.607], [0.607, -0.607])
    """
    check_matrix(x=x)
    if y is not None:
        check_matrix(y=y)
        check_same_features(x, y)
    center = jnp.mean(x if y is None else y, axis=0)
    x, y = x - center, None if y is None else y - center
    others = x if y is None else y
    (m, g), d = gradient_weights.shape, x.shape[1]
    moments = (gradient_weights[:, :, None] * others[:, None, :]).reshape(m, g * d)
    slopes = jnp.concatenate([gradient_weights, moments], axis=1)

    if kernel.log_slope is not None:
        operand = jnp.concatenate([values, slopes], axis=1)
        product = pair_distances_by_rows(
            x, y, lambda squared: _matmul(kernel.radial(squared)[0], operand)
        )
        sums, sloped = product[:, : values.shape[1]], product[:, values.shape[1] :]
        sloped = sloped * kernel.log_slope
    else:

        def contract(squared: Float[Array, "b m"]) -> tuple[Array, Array]:
            value, slope = kernel.radial(squared)
            return _matmul(value, values), _matmul(slope, slopes)

        sums, sloped = pair_distances_by_rows(x, y, contract)

    total, moment = sloped[:, :g], sloped[:, g:].reshape(x.shape[0], g, d)
    return sums, x[:, None, :] * total[:, :, None] - moment
