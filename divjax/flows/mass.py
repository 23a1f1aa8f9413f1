"""Masses of particles: their checks, sums over them, and the Fisher–Rao step that moves mass.

Particles of mass zero may hold any value, also NaN.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float, PyTree

from divjax.core.checks import check_positive, check_positive_values, check_scalar, check_shape
from divjax.core.numerics import matmul, nan_unless
from divjax.core.pairwise import living_rows
from divjax.core.pytrees import pytree
from divjax.core.samples import (
    Numbers,
    as_numbers,
    as_samples,
    as_vectors,
    as_weights,
    check_distinguishable,
    without_offset,
)
from divjax.core.simplex import are_weights, sum_to_one, sum_tolerance, with_finite_padding
from divjax.kernels.protocols import Kernel, check_smoother
from divjax.kernels.sums import kernel_sums

__all__ = [
    "FisherRao",
    "checked_masses",
    "checked_step",
    "masses_or_equal",
    "weighted_sum",
]


def checked_masses(weights: Numbers, n: int, dtype: DTypeLike) -> Float[Array, " n"]:
    """The masses of n particles in their dtype; NaN if they are traced and invalid.

    Raises:
        ValueError: for another shape, and for concrete weights that are negative, not finite, or do
            not sum to one within a thousandth (0.4% in float16, 3% in bfloat16).

    Example:
        >>> checked_masses(jnp.array([0.5, 0.5]), 2, jnp.float32).tolist()
        [0.5, 0.5]
    """
    given = as_numbers("weights", weights)
    masses = as_weights("weights", given, n, dtype)
    # Weights may have been rounded by their own dtype, by that of the particles, or by both.
    tolerance = max(sum_tolerance(n, held) for held in (given.dtype, masses.dtype))
    # Traced weights cannot be validated eagerly. Half precision would round their sum itself.
    if isinstance(given, Tracer):
        return nan_unless(are_weights(masses) & sum_to_one(masses, tolerance), masses)
    total = np.asarray(given, float).sum()
    if abs(total - 1) > tolerance:
        raise ValueError(f"weights must sum to one; they sum to {total:.6g}.")
    return masses


def masses_or_equal(weights: Numbers | None, x: Array, axis: int = 0) -> Float[Array, " n"]:
    """`checked_masses` of the particles along an axis, or equal ones if None are given."""
    n, dtype = x.shape[axis], x.dtype
    return checked_masses(jnp.full(n, 1 / n, dtype) if weights is None else weights, n, dtype)


def checked_step(
    x: Numbers, weights: Numbers, gradients: Array
) -> tuple[Float[Array, "n p"], Float[Array, " n"], Float[Array, "k n d"]]:
    """The arguments of a velocity: features, masses and gradients as floating-point arrays.

    Raises:
        ValueError: if the features are not a matrix of numbers, the gradients do not fit these
            particles, or as `checked_masses`.
    """
    check_distinguishable("x", x)
    (x,) = as_samples(x=x)
    check_shape("gradients", gradients, "k", x.shape[0], "d")
    gradients = jnp.asarray(as_numbers("gradients", gradients))
    masses = checked_masses(weights, x.shape[0], x.dtype)
    return with_finite_padding(x, masses), masses, gradients


def weighted_sum(weights: Float[Array, " n"], values: Float[Array, "n ..."]) -> Float[Array, "..."]:
    """Σ_i a_i values_i; values of weight zero do not count, even if they are not finite."""
    return matmul(weights, with_finite_padding(values, weights))


@pytree
class FisherRao:
    """Birth and death in continuous form: the Fisher–Rao step on the particles' masses.

    Transport moves particles but cannot move mass between separated modes. The Fisher–Rao flow
    ȧ_i = −a_i (U_i − Σ_j a_j U_j) does: mass grows where the combined first variation

        U_i = Σ_k w_k [δE_k/δq(x_i) + τ_k log ρ(x_i)],   ρ(x) = Σ_j a_j k(x, x_j),

    is below its mean, and shrinks elsewhere. One step multiplies a_i by exp(−η U_i) and normalises.
    Together with the transport step this is a splitting of the Wasserstein–Fisher–Rao flow. Weights
    may degenerate: watch `effective_sample_size(result.particle_weights)`.

    Attributes:
        step_size: η > 0.
        kernel: a positive kernel of `divjax.kernels`, for the density ρ.

    Raises:
        ValueError: if `step_size` is a Python number that is not positive, or the kernel is not
            positive definite.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.kernels import Gaussian
        >>> step = FisherRao(step_size=1.0, kernel=Gaussian(bandwidth=1.0))
        >>> x, weights = jnp.array([[0.0], [9.0]]), jnp.full(2, 0.5)
        >>> potential = jnp.array([0.0, jnp.log(3.0)])  # the second particle's density is a third
        >>> weights, _ = step(x, weights, potential, 0.0, ())
        >>> weights.round(3).tolist()
        [0.75, 0.25]

    References:
        Lu, Lu, Nolen 2019, eq. 1.4: birth–death and Langevin; Zhang et al. 2022 (DPVI), the
        continuous adjustment of weights.
    """

    step_size: ArrayLike
    kernel: Kernel

    def __post_init__(self):
        check_positive(step_size=self.step_size)
        check_smoother(self.kernel)

    def init(self, x: Float[Numbers, "n p"]) -> PyTree:
        """The bandwidth rule's state."""
        return self.kernel.init(x)

    def __call__(
        self,
        x: Float[Numbers, "n p"],
        weights: Float[Numbers, " n"],
        potential: Float[Numbers, " n"],
        entropy: ArrayLike | Float[Numbers, " n"],
        state: PyTree,
    ) -> tuple[Float[Array, " n"], PyTree]:
        """The masses after one step, and the next state.

        Args:
            x: the particles, or their features.
            weights: the current masses.
            potential: Σ_k w_k δE_k/δq(x_i).
            entropy: Σ_k w_k τ_k, one number or one per particle.
            state: from `init` or the previous step.
        """
        check_scalar(step_size=self.step_size)
        check_positive_values(step_size=self.step_size)
        check_distinguishable("x", x)
        (x,) = as_samples(x=x)
        weights = checked_masses(weights, x.shape[0], x.dtype)
        x = with_finite_padding(x, weights)
        check_shape("potential", potential, x.shape[0])
        potential = _without_constant(potential, weights)
        # Bandwidth rules ignore weights, so weighted particles replace the zero-weight ones.
        kernel, state = self.kernel.resolve(living_rows(x, weights), state)
        # ρ(x_i) = Σ_j a_j k(x_i, x_j). With zero columns the gradient sums cost nothing.
        mass = weights[:, None]
        density, _ = kernel_sums(kernel, x, None, mass, mass[:, :0])
        # A zero-weight particle stays so. Far from all others it has density 0 as well.
        alive = weights != 0
        log_of_alive = lambda values: jnp.log(jnp.where(alive, values, 1))
        variation = with_finite_padding(potential, weights) + entropy * log_of_alive(density[:, 0])
        # a_i exp(−η U_i), normalised. The softmax cannot overflow.
        step_size = nan_unless(jnp.asarray(self.step_size) > 0, self.step_size)
        logits = jnp.where(alive, log_of_alive(weights) - step_size * variation, -jnp.inf)
        return jax.nn.softmax(logits), state


def _without_constant(potential: Numbers, weights: Float[Array, " n"]) -> Float[Array, " n"]:
    """The potential minus a constant, which cancels in the masses but would add rounding errors."""
    known = not isinstance(weights, Tracer)
    alive = np.asarray(weights) != 0 if known else np.ones(weights.shape, bool)

    def largest(values: np.ndarray) -> np.ndarray:
        return np.max(values, where=alive & np.isfinite(values), initial=-np.inf)

    return as_vectors(potential=without_offset(largest, potential=potential)[0])[0]
