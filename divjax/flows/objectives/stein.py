"""The kernel Stein discrepancy to a density as an objective."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from divjax.core.pairwise import DIFFERENCES_UP_TO, common_center, living_rows
from divjax.core.pytrees import as_pytree, pytree, ravel_particles
from divjax.core.samples import Numbers
from divjax.discrepancy.stein import (
    SteinPoints,
    check_stein_kernel,
    scores_at,
    stein_potentials,
)
from divjax.flows.mass import weighted_sum
from divjax.flows.objectives.targets import weighted_particles
from divjax.flows.protocols import Variation
from divjax.kernels.protocols import Kernel

__all__ = ["KernelStein"]


@pytree
class KernelStein:
    """Half the squared kernel Stein discrepancy to a density, F(q) = ½ KSD²(q, π), no entropy.

    KSD²(q, π) = E u(x, x′) for x, x′ ~ q, with the u of `discrepancy.kernel_stein`, which is twice
    the value of F here, as MMD² is of `MMD`. The first variation is ∫ u(·, x) dq(x). Unlike KL it
    is a functional of particles, which can be minimised by any optimizer, by momentum or to a
    tolerance; unlike `MMD` it needs no samples of π, only its score. Particles that start far from
    all of π's mass may stop between modes, where the scores cancel.

    Attributes:
        log_prob: log π up to a constant, twice differentiable. Takes one particle, of shape (d,) or
            a pytree, and returns a scalar.
        kernel: as for `discrepancy.kernel_stein`. A bandwidth rule is evaluated once, on the first
            particles, so that F stays one functional along the flow.

    Raises:
        ValueError: if the kernel has no mixed second derivative at coincident points, or, in a
            flow, `log_prob` does not return a scalar.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from divjax import discrepancy, flows, kernels
        >>> normal = lambda x: -0.5 * jnp.sum(x**2)
        >>> kernel = kernels.InverseMultiquadric(bandwidth=1.0)
        >>> flow = flows.Flow((KernelStein(normal, kernel),), velocity=flows.Langevin(),
        ...                   optimizer=optax.adam(0.05))
        >>> start = 2 + jax.random.normal(jax.random.key(0), (30, 2))
        >>> result = flow.run(jax.random.key(1), start, num_steps=200)
        >>> stein = lambda x: discrepancy.kernel_stein(x, log_prob=normal, kernel=kernel)
        >>> bool(stein(result.particles) < 0.02 * stein(start))
        True

    References:
        Korba, Aubin-Frankowski, Majewski, Ablin 2021, eq. 8 and 9: KSD descent.
    """

    log_prob: Callable[..., Array]
    kernel: Kernel

    entropy = 0.0

    def __post_init__(self):
        check_stein_kernel(self.kernel)
        object.__setattr__(self, "log_prob", as_pytree(self.log_prob))

    def init(self, key: Key[Array, ""], particles: PyTree[Array]) -> Kernel:
        """The kernel with its bandwidth, constant along a flow."""
        x, _ = ravel_particles(particles)
        return self.kernel.resolve(x, self.kernel.init(x))[0]

    def __call__(
        self,
        key: Key[Array, ""],
        particles: PyTree[Array],
        weights: Float[Numbers, " n"],
        state: Kernel,
    ) -> tuple[Variation, Kernel]:
        """The variation of ½ KSD²."""
        particles, weights = weighted_particles(particles, weights)
        x, unravel = ravel_particles(particles)
        # Particles are rows here, and pytrees to the density.
        of_row = lambda row: self.log_prob(jax.tree.map(lambda leaf: leaf[0], unravel(row[None])))
        # Kernel values depend on differences alone, and products of many features need an origin.
        living = living_rows(x, weights)
        center = common_center(living) if x.shape[1] > DIFFERENCES_UP_TO else jnp.zeros_like(x[0])
        points = lambda x: SteinPoints(x - center, scores_at(x, of_row, None))
        # Particles of weight zero may hold any value: others replace them as sources, not where the
        # potential is evaluated.
        sources = points(living)

        # A row's potential depends on that row alone, so the pull-back of ones holds all rows'
        # gradients: in x alone, while the sources stay where they are.
        def potential(x: Float[Array, "n d"]) -> Float[Array, " n"]:
            return stein_potentials(state, points(x), sources, weights)

        potentials, pullback = jax.vjp(potential, x)
        (gradient,) = pullback(jnp.ones_like(potentials))
        value = 0.5 * weighted_sum(weights, potentials)
        return Variation(value, potentials, unravel(gradient)), state
