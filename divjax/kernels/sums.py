"""Weighted sums of a kernel and of its gradient, for velocities and discrepancies."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from divjax.core.checks import check_shape
from divjax.core.differentiation import with_slopes_of
from divjax.core.numerics import if_needed, matmul
from divjax.core.pair_reductions import SUM, reduce_centered_pairs
from divjax.core.pairwise import (
    DIFFERENCES_UP_TO,
    centered_distances,
    common_center,
    near_distance,
)
from divjax.core.samples import Numbers, as_numbers
from divjax.core.sharding import in_auto_axes
from divjax.kernels.protocols import Kernel, check_kernel
from divjax.kernels.radial import as_points

__all__ = ["kernel_sums"]

# The tolerated relative change of a kernel by the rounding of its distances.
_TOLERATED = 1e-3
# The tolerated rounding of points, as a share of the distances at which a kernel changes. Where two
# samples are alike their sums of gradients nearly cancel, and leave ten times that.
_TOLERATED_OF_POINTS = 1e-4
# The relative change of a kernel from 0 to a distance that is not small beside its scale.
_CHANGED = 1e-2


def kernel_sums(
    kernel: Kernel,
    x: Float[Numbers, "n d"],
    y: Float[Numbers, "m d"] | None,
    values: Float[Numbers, "m c"],
    gradient_weights: Float[Numbers, "m g"],
) -> tuple[Float[Array, "n c"], Float[Array, "n g d"]]:
    """Σ_j k(x_i, y_j) values_j and Σ_j weights_j ∇_{x_i} k(x_i, y_j), together.

    With ∇_x k = ψ · (x − y) the gradient sums are x_i (ψ C)_i − (ψ [C∘y])_i: products of an n × m
    matrix with narrow ones, never n × m × d. For a kernel whose slope is a multiple of its value
    (Gaussian) one matrix product computes both. Large n × m is computed blockwise.

    If clusters lie so far apart that products lose the differences within them, sums that have lost
    them are computed again, feature by feature: with up to 8 features, for which distances are
    exact, the gradient sums. Derivatives of the sums still use the products.

    Points y_j whose values and gradient weights are all zero are ignored and may hold anything.

    Args:
        kernel: a kernel whose bandwidth is a number.
        x: the evaluation points.
        y: the other points, or None for x itself.
        values: weights of the kernel, one column per sum.
        gradient_weights: weights C of the gradient, one column per sum.

    Returns:
        The sums "n c" and the gradient sums "n g d".

    Raises:
        ValueError: if the kernel is not radial, x or y is empty or not a matrix, their numbers of
            features differ, or the values and gradient weights do not have one row per y_j.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.kernels import Gaussian
        >>> x, one = jnp.array([[0.0], [1.0]]), jnp.ones((2, 1))
        >>> sums, gradients = kernel_sums(Gaussian(bandwidth=1.0), x, None, one, one)
        >>> sums[:, 0].round(3).tolist(), gradients[:, 0, 0].round(3).tolist()
        ([1.607, 1.607], [0.607, -0.607])
    """
    check_kernel(kernel)
    x, y = as_points(x, y)
    sources = x if y is None else y
    values = jnp.asarray(as_numbers("values", values))
    gradient_weights = jnp.asarray(as_numbers("gradient_weights", gradient_weights))
    check_shape("values", values, sources.shape[0], "c")
    check_shape("gradient_weights", gradient_weights, sources.shape[0], "g")
    # Sums and moments are taken about the centre of the points that count. An ignored point stays
    # where it is (derivatives in its coefficients are correct), unless its distances would
    # overflow.
    used = jnp.any(values != 0, axis=1) | jnp.any(gradient_weights != 0, axis=1)
    center = common_center(sources, used)
    x, others = x - center, sources - center
    # ‖x − y‖² is at most twice the sum of both squares: a sixteenth of the range leaves it finite.
    in_range = jnp.sum(others**2, axis=1, keepdims=True) < jnp.finfo(x.dtype).max / 16
    others = jnp.where(used[:, None] | in_range, others, 0)
    return _sums(kernel, x, others, values, gradient_weights, used, same=y is None)


@functools.partial(jax.jit, static_argnames="same")
@in_auto_axes
def _sums(
    kernel: Kernel,
    x: Float[Array, "n d"],
    others: Float[Array, "m d"],
    values: Float[Array, "m c"],
    gradient_weights: Float[Array, "m g"],
    used: Bool[Array, " m"],
    *,
    same: bool,
) -> tuple[Float[Array, "n c"], Float[Array, "n g d"]]:
    """`kernel_sums` of points about a common centre."""
    g, d = gradient_weights.shape[1], x.shape[1]
    # Ignored points are zeroed: one far away would trigger a needless second pass.
    constant, counted = jax.lax.stop_gradient((kernel, jnp.where(used[:, None], others, 0)))
    if d > DIFFERENCES_UP_TO:
        needed = _is_changed_by_rounding(constant, counted)
    else:
        needed = _is_lost_in_moments(constant, counted)

    def of_columns(others: Array, values: Array, gradient_weights: Array) -> tuple[Any, Any]:
        # The columns that ψ is multiplied by: C "m g", and the moments C∘y "m gd".
        moments = (gradient_weights[:, :, None] * others[:, None, :]).reshape(len(others), g * d)
        slopes = jnp.concatenate([gradient_weights, moments], axis=1)

        def contract(
            rows: Float[Array, "b d"], squared: Float[Array, "b m"]
        ) -> tuple[Array, Array]:
            value, slope = kernel.radial(squared)
            # If ψ = λk for one number λ, values and slopes share the matrix, hence one product.
            if kernel.log_slope is None:
                sums, sloped = matmul(value, values), matmul(slope, slopes)
            else:
                product = matmul(value, jnp.concatenate([values, slopes], axis=1))
                sums, sloped = product[:, : values.shape[1]], product[:, values.shape[1] :]
                sloped = sloped * kernel.log_slope
            # x_i (ψC)_i − (ψ[C∘y])_i, of shape "b g d".
            total, moment = sloped[:, :g], sloped[:, g:].reshape(rows.shape[0], g, d)
            gradients = rows[:, None, :] * total[:, :, None] - moment
            if d > DIFFERENCES_UP_TO or not g:
                return sums, gradients
            held, points = jax.lax.stop_gradient((gradients, rows))
            # Distances again: closed over by the loop, the first ones would stay in memory.
            resolved = lambda _: again(points, centered_distances(points, fixed[-1]))[1]
            return sums, with_slopes_of(gradients, if_needed(needed, resolved, held))

        # The second computation gives values only, and must close over no value with derivatives.
        fixed = jax.lax.stop_gradient((kernel, values, gradient_weights, others))

        def again(rows: Float[Array, "b d"], squared: Float[Array, "b m"]) -> tuple[Array, Array]:
            """The sums by differences x − y, where products have lost the distances to rounding."""
            kernel, values, gradient_weights, others = fixed
            value, slope = kernel.radial(squared)
            of_feature = lambda column: matmul(
                slope * (column[0][:, None] - column[1]), gradient_weights
            )
            # Differences of one feature at a time, "b m": never times d.
            gradients = jax.lax.map(of_feature, (rows.T, others.T))
            return matmul(value, values), jnp.moveaxis(gradients, 0, 2)

        return contract, again

    return reduce_centered_pairs(
        x, others, of_columns, SUM, values, gradient_weights, same=same, needed=needed
    )


def _is_changed_by_rounding(kernel: Kernel, sources: Float[Array, "m d"]) -> Bool[Array, ""]:
    """Whether the rounding of |x|² + |y|² changes a kernel's values or slopes by too much.

    They are compared at coincident points, where the change is largest. For a kernel that is
    singular there it is always too large.
    """
    # Rounding puts coincident points at about this squared distance. The change is from 0 to
    # there (columns), in values and slopes (rows).
    rounding = 4 * jnp.finfo(sources.dtype).eps * jnp.max(jnp.sum(sources**2, axis=1))
    ends = jnp.stack([jnp.zeros_like(rounding), rounding])[None]
    of_ends = jnp.concatenate(kernel.radial(ends))
    change = jnp.abs(of_ends[:, 1] - of_ends[:, 0])
    return jnp.any(change > _TOLERATED * jnp.abs(of_ends[:, 0]))


def _is_lost_in_moments(kernel: Kernel, sources: Float[Array, "m d"]) -> Bool[Array, ""]:
    """Whether the differences of near points are lost in x_i (ψC)_i − (ψ[C∘y])_i.

    Its rounding error is ε|y| in units of a difference, which is to be small beside the kernel's
    scale. Distances, and kernels less a part, have the points' own.
    """
    rounding = jnp.finfo(sources.dtype).eps * jnp.max(jnp.abs(sources)) / _TOLERATED_OF_POINTS
    if not kernel.positive_definite:
        return rounding > near_distance(sources)
    ends = jnp.stack([jnp.zeros_like(rounding), jnp.square(rounding)])[None]
    here, there = kernel.radial(ends)[0][0]
    return jnp.abs(there - here) > _CHANGED * jnp.abs(here)
