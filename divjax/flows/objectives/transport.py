"""Transport objectives: distances to samples whose first variation is a Kantorovich potential."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Key, PyTree

from divjax.core.checks import (
    check_count,
    check_matrix,
    check_order,
    check_positive,
    check_same_features,
)
from divjax.core.numerics import nan_unless
from divjax.core.pairwise import common_center
from divjax.core.pytrees import pytree, ravel_particles, static
from divjax.core.samples import Numbers, as_samples
from divjax.flows.objectives.targets import (
    as_particles,
    as_table,
    flagged,
    target_rows,
    weighted_particles,
)
from divjax.flows.protocols import Variation
from divjax.ot.costs import SqEuclidean
from divjax.ot.entropic.divergence import SinkhornDivergenceResult, sinkhorn_divergence
from divjax.ot.entropic.options import Sinkhorn, check_solver, check_solver_type
from divjax.ot.sliced import sliced_wasserstein

__all__ = ["SinkhornDivergence", "SlicedWasserstein"]


@pytree
class SlicedWasserstein:
    """The sliced transport cost to samples, F(q) = SW_p^p(q, p), with no entropy.

    The mean over random directions θ of the cost on the line, W_p^p(θᵀq, θᵀp). The first variation
    is the mean of the directions' Kantorovich potentials, and for p = 2 its gradient at x is the
    mean of 2θ(θᵀx − T_θ(θᵀx)) with the monotone maps T_θ. Each step draws new directions, the same
    for all objectives of the step. A particle of weight zero does not move.

    Attributes:
        samples: draws from p, of shape (m, d) (an array, a list or a frame of numbers), or a pytree
            like the particles. NumPy's float64 is centred in float64. If the particles' dtype
            cannot distinguish the samples, the value is NaN.
        num_projections: the number of directions drawn per step.
        p: the order, at least 1.

    Raises:
        ValueError: if an attribute is out of range, or samples and particles differ in their number
            of features.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> objective = SlicedWasserstein(jnp.zeros((1, 1)))
        >>> x = jnp.array([[3.0]])
        >>> state = objective.init(jax.random.key(0), x)
        >>> variation, _ = objective(jax.random.key(0), x, jnp.ones(1), state)
        >>> float(variation.value), float(variation.gradient[0, 0])
        (9.0, 6.0)

    References:
        Bonneel, Rabin, Peyré, Pfister 2015, section 3.2: the gradient.
    """

    samples: PyTree[Array]
    num_projections: int = static(default=128)
    p: ArrayLike = 2.0

    entropy = 0.0

    def __post_init__(self):
        object.__setattr__(self, "samples", as_table("samples", self.samples))
        check_count(1, num_projections=self.num_projections)
        check_order(self.p)

    def init(self, key: Key[Array, ""], particles: PyTree[Array]) -> tuple[()]:
        """The empty state; checks the samples."""
        target_rows(self.samples, particles)
        return ()

    def __call__(
        self,
        key: Key[Array, ""],
        particles: PyTree[Array],
        weights: Float[Numbers, " n"],
        state: PyTree,
    ) -> tuple[Variation, PyTree]:
        """The variation of SW_p^p."""
        particles, weights = weighted_particles(particles, weights)
        _, unravel = ravel_particles(particles)
        rows = target_rows(self.samples, particles)
        x = _dead_within_reach(rows.x, rows.y, weights)

        # ∂F/∂a_i is the mean of the potentials at x_i, which is the first variation. The step's key
        # draws the directions, so all objectives of a step share them.
        def cost(x, weights):
            return sliced_wasserstein(
                key, x, rows.y, weights, p=self.p, num_projections=self.num_projections
            )

        value, (slope, potential) = jax.value_and_grad(cost, (0, 1))(x, weights)
        # ∂F/∂x_i = a_i ∇δF/δq(x_i): without the mass this is the Wasserstein gradient.
        gradient = slope / jnp.where(weights > 0, weights, 1)[:, None]
        # Some derivatives would be finite for an order out of range or NaN in the samples.
        is_number = ~(jnp.isnan(rows.y).any() | jnp.isnan(x).any())
        value = nan_unless(is_number, value)
        gradient = nan_unless(~jnp.isnan(value), gradient)
        return flagged(Variation(value, potential, unravel(gradient)), rows), state


def _dead_within_reach(
    x: Float[Array, "n d"], y: Float[Array, "m d"], weights: Float[Array, " n"]
) -> Float[Array, "n d"]:
    """The particles, with zero-weight ones that are far away or not finite moved to y's centre.

    They may hold any value, but the cumulative weights round near one, and the rounding error times
    a power of their distance would count.
    """
    center = common_center(y)
    alive = (weights != 0)[:, None]
    distance = jnp.abs(x - center)
    # Weighted particles and samples lie within the reach of the centre. The comparison is False for
    # NaN, which is replaced too.
    reach = jnp.max(jnp.where(alive, distance, 0)) + jnp.max(jnp.abs(y - center))
    return jnp.where(alive | (distance <= 8 * reach), x, center)


def _rows_of_samples(samples: PyTree[Array], particles: PyTree[Array]) -> Float[Array, "m d"]:
    is_array = hasattr(samples, "shape")
    y = as_samples(samples=samples)[0] if is_array else ravel_particles(samples)[0]
    check_same_features(y, ravel_particles(particles)[0], ("samples", "particles"))
    return y


@pytree
class SinkhornDivergence:
    """The Sinkhorn divergence to samples, F(q) = S_ε(q, p), with no entropy.

    S_ε(q, p) = OT_ε(q, p) − ½ OT_ε(q, q) − ½ OT_ε(p, p), zero if q = p. The first variation is
    f_{qp} − f_{qq}, the potential from q to p less that from q to itself. It is evaluated as a
    function, so that it has a gradient also at particles of weight zero. Each step starts from the
    last one's potentials.

    If a step's problems have not converged, its value is NaN, to avoid a silent failure. The
    gradient is that of the potentials found.

    Attributes:
        samples: draws from p, of shape (m, d), or a pytree like the particles.
        epsilon: ε > 0, in units of the cost.
        cost: a symmetric cost of `divjax.ot`, or a function of two points.
        solver: the options for each of the three problems of a step, without `record_errors`, as a
            variation holds no errors. Annealing would discard the last step's potentials.

    Raises:
        ValueError: if a number is out of range, or samples and particles differ in their number of
            features.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> objective = SinkhornDivergence(jnp.zeros((1, 1)), epsilon=0.1)
        >>> x = jnp.array([[3.0]])
        >>> state = objective.init(jax.random.key(0), x)
        >>> variation, _ = objective(jax.random.key(0), x, jnp.ones(1), state)
        >>> float(variation.value), float(variation.gradient[0, 0])
        (9.0, 6.0)

    References:
        Feydy et al. 2019, eq. 3 and proposition 2: the first variation.
    """

    samples: PyTree[Array]
    epsilon: ArrayLike
    cost: Any = SqEuclidean()
    solver: Sinkhorn = Sinkhorn()

    entropy = 0.0

    def __post_init__(self):
        object.__setattr__(self, "samples", as_table("samples", self.samples))
        check_positive(epsilon=self.epsilon)
        check_solver_type(self.solver)

    def init(self, key: Key[Array, ""], particles: PyTree[Array]) -> tuple[Array, ...]:
        """The potentials at the start."""
        particles = as_particles(particles)
        x, _ = ravel_particles(particles)
        check_matrix(particles=x)
        uniform = jnp.full(x.shape[0], 1 / x.shape[0], x.dtype)
        # Solved once from scratch, so that every step of the flow starts near its solution.
        return self._solve(particles, uniform, None).potentials

    def __call__(
        self,
        key: Key[Array, ""],
        particles: PyTree[Array],
        weights: Float[Numbers, " n"],
        state: PyTree,
    ) -> tuple[Variation, PyTree]:
        """The variation of S_ε."""
        particles, weights = weighted_particles(particles, weights)
        x, unravel = ravel_particles(particles)
        # A warm start: particles move little in a step, and so do the potentials.
        result = self._solve(particles, weights, state)

        # The solver's potentials are closed over, hence constants: the derivative is that of their
        # extension to any point, not one through the iterations. Each row's depends on that row
        # alone, so the gradient of the sum holds all rows' gradients.
        def first_variation(x):
            potential = result.xy.potential(x) - result.xx.potential(x)
            return jnp.sum(potential), potential

        gradient, potential = jax.grad(first_variation, has_aux=True)(x)
        # Potentials that have not converged give a wrong value, which must not pass as valid.
        value = nan_unless(result.converged, result.value)
        variation = Variation(value, potential, unravel(gradient))
        return flagged(variation, target_rows(self.samples, particles)), result.potentials

    def _solve(self, particles, weights, init) -> SinkhornDivergenceResult:
        # A `Variation` has no place for the errors that a solver may record.
        check_solver(self.solver, records=False, result="a Variation")
        x, _ = ravel_particles(particles)
        return sinkhorn_divergence(
            x,
            _rows_of_samples(self.samples, particles),
            weights,
            epsilon=self.epsilon,
            cost=self.cost,
            solver=self.solver,
            init=init,
        )
