"""Progress of several objectives: the norm of the combined field, and the dominated volume."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from divjax.core.samples import Numbers, Unrounded, as_arrays, as_numbers, without_offset
from divjax.core.simplex import min_norm_weights, with_finite_padding
from divjax.flows.fields import check_objective_weights, checked_fields, combine, unit_gram
from divjax.flows.mass import masses_or_equal, weighted_sum

__all__ = ["hypervolume", "pareto_residual", "squared_norm"]


def squared_norm(
    velocities: Float[Numbers, "k n d"],
    objective_weights: Float[Numbers, " k"] | Float[Numbers, "k n"],
    weights: Float[Numbers, " n"] | None = None,
) -> Float[Array, ""]:
    """The *squared* norm of the combined velocity in L²(q), Σ_i a_i ‖Σ_k w_k v_k(x_i)‖².

    Args:
        velocities: the K fields, such as `flow.fields(key, state).velocities`.
        objective_weights: w, one per field, or one per field and particle.
        weights: the particles' masses a, summing to one; equal by default.

    Raises:
        ValueError: if the shapes do not fit, an array does not hold real numbers, or concrete
            masses are invalid. Invalid traced ones give NaN.

    Example:
        >>> import jax.numpy as jnp
        >>> fields = jnp.array([[[2.0, 0.0]], [[0.0, 2.0]]])
        >>> float(squared_norm(fields, jnp.array([0.5, 0.5])))
        2.0
    """
    velocities, objective_weights = as_arrays(
        velocities=checked_fields(velocities), objective_weights=objective_weights
    )
    check_objective_weights("objective_weights", objective_weights, *velocities.shape[:2])
    weights = masses_or_equal(weights, velocities, axis=1)
    # Before they are combined, for derivatives in the objective weights.
    combined = combine(objective_weights, with_finite_padding(velocities, weights, axis=1))
    return weighted_sum(weights, jnp.sum(combined**2, axis=1))


def pareto_residual(
    velocities: Float[Numbers, "k n d"], weights: Float[Numbers, " n"] | None = None
) -> Float[Array, ""]:
    """Min over the simplex of Σ_i a_i ‖Σ_k w_k v_k(x_i)‖²: zero exactly at Pareto stationarity.

    The squared norm under the best weights, independent of those that a flow used. The fields are
    those of `flow.fields(key, state).velocities`.

    Raises:
        ValueError: as `squared_norm`.

    Example:
        >>> import jax.numpy as jnp
        >>> fields = jnp.array([[[2.0, 0.0]], [[-1.0, 0.0]]])
        >>> float(pareto_residual(fields))
        0.0
    """
    velocities = checked_fields(velocities)
    n = velocities.shape[1]
    masses: Unrounded = np.full(n, 1 / n) if weights is None else weights
    # From the fields rather than from wᵀQw, which suffers cancellation if the residual is small.
    return squared_norm(velocities, min_norm_weights(unit_gram(velocities, masses)), masses)


def hypervolume(points: Float[Numbers, "n k"], reference: Float[Numbers, " k"]) -> Float[Array, ""]:
    """The volume that points dominate below a reference, for K ≤ 4 objectives to be minimised.

    The measure of ∪_i {z : points_i ≤ z ≤ reference}. Exact, by slicing along the last objective:
    O(n^(K−1) log n) time. Points that do not dominate the reference add nothing.

    Args:
        points: objective values, one row per point.
        reference: a point that all points of interest dominate.

    Raises:
        ValueError: if there are no points, K is 0 or above 4, or the shapes do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> float(hypervolume(jnp.array([[0.0, 1.0], [1.0, 0.0]]), jnp.array([2.0, 2.0])))
        3.0

    References:
        Zitzler, Thiele 1998, section 3.
    """
    points, reference = as_numbers("points", points), as_numbers("reference", reference)
    if points.ndim != 2 or points.shape[0] == 0 or reference.shape != points.shape[1:]:
        raise ValueError(
            "points and reference must have shapes (n, k), n > 0, and (k,); "
            f"got {points.shape} and {reference.shape}."
        )
    if not 1 <= points.shape[1] <= 4:
        raise ValueError(f"points must have 1 to 4 objectives; got {points.shape[1]}.")
    # A volume is invariant to translations, and a point moved to the reference's level in one
    # coordinate dominates zero volume.
    points, reference = without_offset(points=points, reference=reference)
    points, reference = as_arrays(points=points, reference=reference)
    return _dominated(points, reference)


@jax.jit
def _dominated(points: Float[Array, "n k"], reference: Float[Array, " k"]) -> Float[Array, ""]:
    points = jnp.minimum(points, reference)
    if points.shape[1] == 1:
        return reference[0] - jnp.min(points)
    # Between two consecutive heights the slice is that of the points below, one dimension fewer.
    points = points[jnp.argsort(points[:, -1])]
    heights = jnp.append(points[1:, -1], reference[-1]) - points[:, -1]
    # A two-dimensional slice is a segment from the least first coordinate so far.
    if points.shape[1] == 2:
        return jnp.sum(heights * (reference[0] - jax.lax.cummin(points[:, 0])))
    index = jnp.arange(points.shape[0])

    def slice_volume(last: Array) -> Float[Array, ""]:
        # Points above the slice are moved to the reference, where they dominate zero volume, so
        # that shapes stay static.
        present = jnp.where((index <= last)[:, None], points[:, :-1], reference[:-1])
        return _dominated(present, reference[:-1])

    return jnp.sum(heights * jax.lax.map(slice_volume, index))
