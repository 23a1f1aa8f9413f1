"""Any differentiable discrepancy of two weighted samples as an objective."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from divjax.core.checks import check_arguments, check_flag, check_scalar_output
from divjax.core.numerics import nan_unless
from divjax.core.pytrees import pytree, ravel_particles, static
from divjax.core.samples import Numbers
from divjax.flows.objectives.energies import as_function
from divjax.flows.objectives.targets import (
    as_table,
    flagged,
    target_rows,
    weighted_particles,
)
from divjax.flows.protocols import Variation

__all__ = ["Discrepancy"]


@pytree
class Discrepancy:
    """A discrepancy to samples by a function of two, F(q) = D(q, p), with no entropy.

    The function's derivatives are the first variation: δF/δq(x_i) is that in the mass a_i, up to a
    constant, and its gradient is ∂D/∂x_i divided by a_i. Any function of `divjax.discrepancy` is
    one, and `ot.wasserstein_1d` of a projection, a divergence between fitted Gaussians, or one's
    own. `flows.MMD` has the same variation as half of `discrepancy.mmd`, in one pass instead of a
    derivative, and moves particles of weight zero, which stay where they are here.

    Attributes:
        samples: draws y from p, of shape (m, d) (an array, a list or a frame of numbers), or a
            pytree like the particles. NumPy's float64 is taken, like the particles, relative to a
            point near it. If the particles' dtype cannot distinguish the samples, the value is NaN.
        function: `(x, y, a, b) -> scalar`, of particles x "n d", samples y "m d" and their masses,
            both of sum one, differentiable in x and a; `(key, x, y, a, b)` if `stochastic`. A
            bandwidth rule within it is evaluated at each step, and F then changes from step to
            step: give `kernels.resolved_kernel(…)`, or a number.
        stochastic: whether the function draws, as `sliced_energy_distance` does. All objectives of
            a step get the same key.

    Raises:
        ValueError: if the function is none, or, in a flow, does not take these arguments or return
            a real scalar, the samples are no matrix of numbers, or samples and particles differ in
            their number of features.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from divjax.discrepancy import energy_distance
        >>> objective = Discrepancy(jnp.zeros((1, 1)), energy_distance)
        >>> x = jnp.array([[2.0], [3.0]])
        >>> state = objective.init(jax.random.key(0), x)
        >>> variation, _ = objective(jax.random.key(0), x, jnp.full(2, 0.5), state)
        >>> float(variation.value), variation.gradient[:, 0].tolist()  # 2 · 2.5 − ½
        (4.5, [3.0, 1.0])

    References:
        Ambrosio, Gigli, Savaré 2008, section 10.4: Wasserstein gradients of functionals.
    """

    samples: PyTree[Array]
    function: Callable[..., Array]
    stochastic: bool = static(default=False)

    entropy = 0.0

    def __post_init__(self):
        check_flag(stochastic=self.stochastic)
        object.__setattr__(self, "samples", as_table("samples", self.samples))
        object.__setattr__(self, "function", as_function("function", self.function))

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
        """The variation of D."""
        names = ("key", "x", "y", "a", "b") if self.stochastic else ("x", "y", "a", "b")
        check_arguments("function", self.function, *names)
        particles, weights = weighted_particles(particles, weights)
        _, unravel = ravel_particles(particles)
        rows = target_rows(self.samples, particles, centered=False)
        uniform = jnp.full(rows.y.shape[0], 1 / rows.y.shape[0], rows.y.dtype)

        def value_of(x: Float[Array, "n d"], weights: Float[Array, " n"]) -> Float[Array, ""]:
            of_samples = (x, rows.y, weights, uniform)
            return (
                self.function(key, *of_samples) if self.stochastic else self.function(*of_samples)
            )

        check_scalar_output("function", value_of, rows.x, weights)
        value, (slope, potential) = jax.value_and_grad(value_of, (0, 1))(rows.x, weights)
        # ∂F/∂x_i = a_i ∇δF/δq(x_i): without the mass this is the Wasserstein gradient.
        gradient = slope / jnp.where(weights > 0, weights, 1)[:, None]
        # Some derivatives are finite where the value is not a number.
        gradient = nan_unless(~jnp.isnan(value), gradient)
        return flagged(Variation(value, potential, unravel(gradient)), rows), state
