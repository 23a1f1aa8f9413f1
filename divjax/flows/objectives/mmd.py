"""The maximum mean discrepancy to samples as an objective."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from divjax.core.pytrees import pytree, ravel_particles
from divjax.core.samples import Numbers
from divjax.discrepancy.kernel_means import nan_if_lost
from divjax.flows.mass import weighted_sum
from divjax.flows.objectives.targets import (
    as_table,
    flagged,
    target_rows,
    weighted_particles,
)
from divjax.flows.protocols import Variation
from divjax.kernels.means import own_mean
from divjax.kernels.pooled import TwoMeasures
from divjax.kernels.protocols import Kernel, check_kernel
from divjax.kernels.radial import Energy
from divjax.kernels.sums import kernel_sums

__all__ = ["MMD"]


@pytree
class MMD:
    """Half the squared maximum mean discrepancy to samples, F(q) = ½ MMD²(q, p), with no entropy.

    ½ MMD²(q, p) = ½ E k(x, x′) − E k(x, y) + ½ E k(y, y′) for x, x′ ~ q and y, y′ ~ p, half of
    `discrepancy.mmd`, so that the first variation is the witness function itself,
    ∫ k(·, x) dq(x) − ∫ k(·, y) dp(y), which is `discrepancy.witness`. With `kernels.Energy()` F
    is half of `discrepancy.energy_distance`, E‖x−y‖ − ½E‖x−x′‖ − ½E‖y−y′‖, which needs no bandwidth
    and attracts particles from far away. The recorded value is the V-statistic (a biased estimate,
    at least zero up to rounding, exact for the two empirical measures).

    Attributes:
        samples: draws y from p, of shape (m, d) (an array, a list or a frame of numbers), or a
            pytree like the particles. NumPy's float64 is centred in float64. If the particles'
            dtype cannot distinguish the samples, the value is NaN. So it is for `kernels.Energy()`
            if distances between far clusters have lost it to rounding, as the energy distance.
        kernel: a kernel of `divjax.kernels`. A bandwidth rule is evaluated once, on the samples, so
            that F stays one functional along the flow.

    Raises:
        ValueError: if the kernel is invalid, the samples not a matrix of numbers, or samples and
            particles differ in their number of features.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from divjax.kernels import Energy
        >>> objective = MMD(jnp.zeros((1, 1)), Energy())
        >>> x = jnp.array([[2.0]])
        >>> state = objective.init(jax.random.key(0), x)
        >>> variation, _ = objective(jax.random.key(0), x, jnp.ones(1), state)
        >>> float(variation.value), float(variation.gradient[0, 0])
        (2.0, 1.0)

    References:
        Arbel, Korba, Salim, Gretton 2019, eq. 1–4: the MMD's Wasserstein gradient flow.
        Székely, Rizzo 2013, eq. 2.1: the energy distance.
    """

    samples: PyTree[Array]
    kernel: Kernel

    entropy = 0.0

    def __post_init__(self):
        object.__setattr__(self, "samples", as_table("samples", self.samples))
        check_kernel(self.kernel)

    def init(self, key: Key[Array, ""], particles: PyTree[Array]) -> tuple[Kernel, Array]:
        """The resolved kernel and the samples' self-term, both constant along a flow."""
        y = target_rows(self.samples, particles).y
        kernel, _ = self.kernel.resolve(y, self.kernel.init(y))
        # E k(y, y′) with the terms i = j, as in the V-statistic.
        uniform = jnp.full(y.shape[0], 1 / y.shape[0], y.dtype)
        return kernel, own_mean(kernel, y, uniform, debias=False)

    def __call__(
        self,
        key: Key[Array, ""],
        particles: PyTree[Array],
        weights: Float[Numbers, " n"],
        state: PyTree,
    ) -> tuple[Variation, PyTree]:
        """The variation of ½ MMD²."""
        kernel, self_term = state
        particles, weights = weighted_particles(particles, weights)
        _, unravel = ravel_particles(particles)
        # A common origin for both sides: the kernel depends on differences alone.
        rows = target_rows(self.samples, particles)
        x, y = rows.x, rows.y
        mass, uniform = weights[:, None], jnp.full((y.shape[0], 1), 1 / y.shape[0], y.dtype)
        # The witness "n", and its gradient "n d", which is the Wasserstein gradient of F.
        to_self, self_gradient = kernel_sums(kernel, x, None, mass, mass)
        to_samples, samples_gradient = kernel_sums(kernel, x, y, uniform, uniform)
        witness = (to_self - to_samples)[:, 0]
        # E k(x, x′) − 2 E k(x, y) + E k(y, y′): the witness has one of the two cross terms.
        value = 0.5 * (weighted_sum(weights, witness - to_samples[:, 0]) + self_term)
        # The gradient is not lost with it: it is a sum of directions.
        if isinstance(kernel, Energy):
            value = nan_if_lost(value, TwoMeasures(x, y, weights, uniform[:, 0]))
        gradient = unravel((self_gradient - samples_gradient)[:, 0])
        return flagged(Variation(value, witness, gradient), rows), state
