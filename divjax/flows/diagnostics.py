"""How far a flow has come: the combined velocity, Stein discrepancy, weights, hypervolume."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from divjax.core.checks import check_matrix, check_scalar_output, check_shape
from divjax.core.pairwise import squared_distances
from divjax.core.simplex import min_norm_weights
from divjax.flows.aggregators import gram
from divjax.kernels.radial import Gaussian, InverseMultiquadric

__all__ = [
    "grad_norm",
    "hypervolume",
    "kernel_stein_discrepancy",
    "pareto_residual",
]


def _uniform(x: Array, axis: int = 0) -> Float[Array, " n"]:
    n = x.shape[axis]
    return jnp.full(n, 1 / n, x.dtype)


def grad_norm(
    velocities: Float[Array, "k n d"],
    objective_weights: Float[Array, " k"],
    weights: Float[Array, " n"] | None = None,
) -> Float[Array, ""]:
    """The *squared* norm of the combined velocity in L²(q), Σ_i a_i ‖Σ_k w_k v_k(x_i)‖².

    Args:
        velocities: the K fields, such as `flows.fields(...).velocities`.
        objective_weights: w.
        weights: the particles' masses a, equal by default.

    Example:
        >>> import jax.numpy as jnp
        >>> fields = jnp.array([[[2.0, 0.0]], [[0.0, 2.0]]])
        >>> float(grad_norm(fields, jnp.array([0.5, 0.5])))
        2.0
    """
    check_shape("velocities", velocities, "k", "n", "d")
    check_shape("objective_weights", objective_weights, velocities.shape[0])
    weights = _uniform(velocities, 1) if weights is None else weights
    check_shape("weights", weights, velocities.shape[1])
    combined = jnp.tensordot(objective_weights, velocities, 1, precision="highest")
    return jnp.sum(weights * jnp.sum(combined**2, axis=1))


def pareto_residual(
    velocities: Float[Array, "k n d"], weights: Float[Array, " n"] | None = None
) -> Float[Array, ""]:
    """Min over the simplex of Σ_i a_i ‖Σ_k w_k v_k(x_i)‖²: zero just at Pareto stationarity.

    Whatever weights a flow used, this is what the best ones would have left. The fields are what
    `flows.fields(...).velocities` gives.

    Example:
        >>> import jax.numpy as jnp
        >>> fields = jnp.array([[[2.0, 0.0]], [[-1.0, 0.0]]])
        >>> float(pareto_residual(fields))
        0.0
    """
    weights = _uniform(velocities, 1) if weights is None else weights
    # From the fields rather than from wᵀQw, whose digits cancel where the residual is small.
    return grad_norm(velocities, min_norm_weights(gram(velocities, weights)), weights)


def kernel_stein_discrepancy(
    particles: Float[Array, "n d"],
    log_prob: Callable[..., Array],
    kernel: Gaussian | InverseMultiquadric,
    weights: Float[Array, " n"] | None = None,
    unbiased: bool = False,
) -> Float[Array, ""]:
    """The squared kernel Stein discrepancy of weighted particles to a density.

    KSD² = Σ_ij a_i a_j u(x_i, x_j) with, for s = ∇ log π and ∇_x k = ψ · (x − y),

        u(x, y) = k s(x)·s(y) + ψ (x − y)·[s(y) − s(x)] + Σ_l ∂²k/∂x_l∂y_l.

    Needs π up to a constant only. As it stands, the V-statistic, it is exact for the empirical
    measure, hence never negative up to rounding, and biased upwards by O(1/n) as an estimate for
    the distribution the particles are drawn from. Without the terms i = j, divided by 1 − Σ_i a_i²,
    it is unbiased for independent particles, the U-statistic, and may be negative. O(n²) memory.

    Args:
        particles: samples.
        log_prob: takes one particle and returns log π up to a constant.
        kernel: `Gaussian` or `InverseMultiquadric`; a bandwidth rule is evaluated at the particles.
        weights: the particles' masses, summing to one; equal by default.
        unbiased: whether to leave out the terms i = j.

    Returns:
        KSD², not its root.

    Raises:
        ValueError: if `particles` is no matrix, `log_prob` no scalar, the kernel one without the
            mixed second derivative at coincident points, or a single particle is to be unbiased.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.kernels import Gaussian
        >>> at_the_mode = jnp.zeros((1, 2))  # s = 0 there: what is left is the trace, d/σ²
        >>> normal = lambda x: -0.5 * jnp.sum(x**2)
        >>> float(kernel_stein_discrepancy(at_the_mode, normal, Gaussian(bandwidth=1.0)))
        2.0

    References:
        Liu, Lee, Jordan 2016; Chwialkowski, Strathmann, Gretton 2016; Gorham, Mackey 2017, for the
        inverse multiquadric kernel.
    """
    check_matrix(particles=particles)
    check_scalar_output("log_prob", log_prob, particles[0])
    if not isinstance(kernel, (Gaussian, InverseMultiquadric)):
        raise ValueError(
            "kernel must be twice differentiable where points coincide: Gaussian or "
            f"InverseMultiquadric; got {type(kernel).__name__}."
        )
    if unbiased and particles.shape[0] == 1:
        raise ValueError("particles must be at least two to be unbiased; got 1.")
    weights = _uniform(particles) if weights is None else weights
    check_shape("weights", weights, particles.shape[0])
    kernel, _ = kernel.resolve(particles, kernel.init(particles))
    scores = jax.vmap(jax.grad(log_prob))(particles)
    squared = squared_distances(particles)
    value, slope = kernel.radial(squared)
    centered = particles - jnp.mean(particles, axis=0)
    along = jnp.sum(centered * scores, axis=1)
    cross = jnp.matmul(centered, scores.T, precision="highest")  # x_i · s_j
    turn = cross + cross.T - along[:, None] - along  # (x_i − x_j)·(s_j − s_i)
    products = jnp.matmul(scores, scores.T, precision="highest")
    stein = value * products + slope * turn + kernel.stein_trace(squared, scores.shape[1])
    masses = weights[:, None] * weights
    if unbiased:
        masses = jnp.fill_diagonal(masses, 0, inplace=False)
        masses = masses / (1 - jnp.sum(weights**2))
    return jnp.sum(masses * stein)


def hypervolume(points: Float[Array, "n k"], reference: Float[Array, " k"]) -> Float[Array, ""]:
    """The volume that points dominate below a reference, for K ≤ 4 objectives to be minimised.

    The measure of ∪_i {z : points_i ≤ z ≤ reference}. Exact, by slicing along the last objective:
    O(n^(K−1) log n) time. Points that do not dominate the reference add nothing.

    Args:
        points: objective values, a row a point.
        reference: what is dominated by everything of interest.

    Raises:
        ValueError: if there are no points, K is 0 or above 4, or the shapes do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> float(hypervolume(jnp.array([[0.0, 1.0], [1.0, 0.0]]), jnp.array([2.0, 2.0])))
        3.0

    References:
        Zitzler, Thiele 1998, section 3.
    """
    points, reference = jnp.asarray(points), jnp.asarray(reference)
    if points.ndim != 2 or points.shape[0] == 0 or reference.shape != points.shape[1:]:
        raise ValueError(
            "points and reference must have shapes (n, k), n > 0, and (k,); "
            f"got {points.shape} and {reference.shape}."
        )
    if not 1 <= points.shape[1] <= 4:
        raise ValueError(f"points must have 1 to 4 objectives; got {points.shape[1]}.")
    return _dominated(jnp.minimum(points, reference), reference)


def _dominated(points: Float[Array, "n k"], reference: Float[Array, " k"]) -> Float[Array, ""]:
    if points.shape[1] == 1:
        return reference[0] - jnp.min(points)
    # Between two consecutive heights the slice is that of the points below, one dimension fewer.
    points = points[jnp.argsort(points[:, -1])]
    heights = jnp.append(points[1:, -1], reference[-1]) - points[:, -1]
    if points.shape[1] == 2:
        return jnp.sum(heights * (reference[0] - jax.lax.cummin(points[:, 0])))
    index = jnp.arange(points.shape[0])

    def slice_volume(last: Array) -> Float[Array, ""]:
        present = jnp.where((index <= last)[:, None], points[:, :-1], reference[:-1])
        return _dominated(present, reference[:-1])

    return jnp.sum(heights * jax.lax.map(slice_volume, index))
