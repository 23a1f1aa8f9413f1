"""Density ratios as non-negative combinations of Gaussian kernels: the model and its centres.

`LeastSquares` and `KLIEP` are heads for cross-fitting: `fit(key, fold)` learns from the
weighted rows of a fold, and calling the head gives log p/q. They differ in their objective and in
the selection of the bandwidth. This module holds the parts in common.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key

from divjax.core.checks import (
    check_key,
    check_matrix,
    check_positive_finite,
    check_same_features,
    check_scalar,
)
from divjax.core.numerics import nan_unless
from divjax.core.pairwise import map_row_blocks, squared_distances
from divjax.ratio.protocols import Rows

__all__ = ["KernelRatio", "median_distance"]

_stop = jax.lax.stop_gradient


class KernelRatio(NamedTuple):
    """A fitted model: r(z) = Σ_l exp(log_weights_l − ‖z − c_l‖²/(2σ²)).

    Attributes:
        centers: c_l, rows of p.
        log_weights: the log weights, −∞ for unused centres.
        bandwidth: the selected σ.
        log_cap: the logarithm of the effective number of training rows of q, 1/Σ_j b_j² in its
            weights b. A sample of that size cannot resolve larger ratios.
        gap: an upper bound, in nats, on the distance of the training objective from its optimum,
            zero if it is solved in closed form.
    """

    centers: Float[Array, "l d"]
    log_weights: Float[Array, " l"]
    bandwidth: Float[Array, ""]
    log_cap: Float[Array, ""]
    gap: Float[Array, ""]


class Basis(NamedTuple):
    """Centres, and the squared distances of the training rows to them."""

    centers: Float[Array, "l d"]
    active: Bool[Array, " l"]
    squared_p: Float[Array, "n l"]
    squared_q: Float[Array, "m l"]
    bandwidths: Float[Array, " g"]


def median_distance(x: Float[Array, "n d"], weights: Float[Array, " n"]) -> Float[Array, ""]:
    """The median distance between two independent draws from weighted rows.

    The lower median, by bisection on ‖x_i − x_j‖² rather than by sorting, to 2⁻⁴⁰ of the largest.
    Rows of weight zero are ignored, and a weight is equivalent to that many equal rows. If at least
    half of the pairs coincide it is the root mean square distance instead, and 1 if all do.
    Gradients are stopped. Memory O(n²).

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.array([[0.0], [1.0], [2.0], [100.0]])
        >>> round(float(median_distance(x, jnp.array([0.25, 0.5, 0.25, 0.0]))), 4)
        1.0
    """
    x, weights = _stop(x), _stop(weights)
    squared = squared_distances(jnp.where(weights[:, None] > 0, x, 0))
    total = jnp.sum(weights)

    def share(matrix: Float[Array, "n n"]) -> Float[Array, ""]:
        # The mean of the matrix over two independent draws of rows, wᵀMw/(Σw)².
        return jnp.dot(weights, jnp.matmul(matrix, weights, precision="highest")) / total**2

    def halve(_: Int[Array, ""], bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = 0.5 * (low + high)
        enough = share((squared <= middle).astype(x.dtype)) >= 0.5
        return jnp.where(enough, low, middle), jnp.where(enough, middle, high)

    # Rows of weight zero must not widen the bracket, which determines the precision.
    both = (weights[:, None] > 0) & (weights > 0)
    largest = jnp.max(jnp.where(both, squared, 0))
    low, high = jax.lax.fori_loop(0, 40, halve, (jnp.zeros_like(largest), largest))
    # The lower end stays at 0 if half of the pairs coincide. The mean square is used instead.
    chosen = jnp.where(low > 0, high, share(squared))
    return jnp.where(chosen > 0, jnp.sqrt(jnp.where(chosen > 0, chosen, 1)), 1)


def check_grid(**grids: object) -> None:
    """Raise `ValueError` for an empty sequence, or Python numbers not positive and finite."""
    check_positive_finite(**grids)
    for name, values in grids.items():
        if isinstance(values, (tuple, list)) and not values:
            raise ValueError(f"{name} must hold at least one number; got {values!r}.")


def grid(values: ArrayLike | Sequence[ArrayLike], dtype: DTypeLike) -> Float[Array, " g"]:
    """A number, or several to choose from, as a vector."""
    if isinstance(values, (tuple, list)):
        return jnp.stack([jnp.asarray(value, dtype) for value in values])
    return jnp.atleast_1d(jnp.asarray(values, dtype))


def draw_basis(
    key: Key[Array, ""], rows: Rows, num_centers: int, bandwidth: ArrayLike | Sequence[ArrayLike]
) -> Basis:
    """Centres drawn without replacement from the training rows of p, in proportion to their weight.

    The largest values of log w_i + Gumbel noise are such a draw. Rows of weight zero come last, and
    are inactive centres if there are too few others.
    """
    check_key(key)
    x, y, a, _ = rows
    # The choice of rows is discrete, and has no derivative in the weights.
    weights = _stop(a)
    size = min(num_centers, x.shape[0])
    noise = jax.random.gumbel(key, weights.shape, weights.dtype)
    index = jax.lax.top_k(jnp.log(weights) + noise, size)[1]
    active = weights[index] > 0
    centers = x[index]
    # Bandwidths are given in this unit, so that they do not depend on the features' scale.
    unit = median_distance(centers, active.astype(x.dtype))
    bandwidths = grid(bandwidth, x.dtype)
    return Basis(
        centers,
        active,
        squared_distances(x, centers),
        squared_distances(y, centers),
        bandwidths * unit,
    )


def log_cap(weights: Float[Array, " m"]) -> Float[Array, ""]:
    """The largest log ratio: the logarithm of the effective number of rows of these weights."""
    return -jnp.log(jnp.sum(jnp.square(weights)))


def log_ratio(
    params: KernelRatio, z: Float[Array, "b d"], floor: ArrayLike, relative: ArrayLike = 0.0
) -> Float[Array, " b"]:
    """The log ratio log p/q of a model of r_α = p / (αp + (1−α)q): r = (1−α) r_α / (1 − α r_α)."""
    check_matrix(z=z)
    check_same_features(z, params.centers, ("z", "centers"))
    check_scalar(floor=floor, relative=relative)
    alpha = jnp.asarray(relative, z.dtype)
    alpha = nan_unless((alpha >= 0) & (alpha < 1), alpha)
    log_floor = jnp.log(jnp.asarray(floor, z.dtype))

    def evaluate(rows: Float[Array, "b d"]) -> Float[Array, " b"]:
        scaled = squared_distances(rows, params.centers) * (-0.5 / jnp.square(params.bandwidth))
        terms = params.log_weights + scaled
        # The floor is a term like the others and keeps the sum positive where all kernels vanish.
        floors = jnp.broadcast_to(log_floor, (rows.shape[0], 1))
        return jax.nn.logsumexp(jnp.concatenate([terms, floors], axis=1), axis=1)

    log_relative = map_row_blocks(evaluate, params.centers.shape[0], z)
    # r ≤ exp(log_cap) means r_α ≤ 1 / (α + (1−α) exp(−log_cap)), which is below 1/α.
    highest = -jnp.log(alpha + (1 - alpha) * jnp.exp(-params.log_cap))
    log_relative = jnp.minimum(log_relative, highest)
    # The formula of the docstring in logarithms. The cap keeps α r_α below one.
    return jnp.log1p(-alpha) + log_relative - jnp.log1p(-alpha * jnp.exp(log_relative))
