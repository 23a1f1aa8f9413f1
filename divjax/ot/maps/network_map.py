"""A transport map that is the sum of an initial map and a network."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int, PyTree

from divjax.core.checks import check_matrix, check_shape
from divjax.core.networks import Network, apply_network
from divjax.core.pytrees import pytree, static
from divjax.core.samples import Numbers, as_numbers
from divjax.core.standardize import Standardizer
from divjax.core.types import Outcome, Status
from divjax.ot.weighted_samples import Origins

__all__ = ["MapFit"]


@pytree
class MapFit(Outcome):
    """A transport map, a function of rows, also of new ones.

    Attributes:
        params: the parameters of the network.
        start: the initial map, itself a function of rows.
        center: the centre subtracted from the network's input.
        input_scale: the scale of the network's input: one number for all features of the rows, as
            the cost compares them in their units, and one per feature of the context.
        context_limits: the least and the largest values of the context's features in their units;
            beyond, they are compressed. None for no limits.
        output_scale: the unit of the network's output.
        mean_cost: c̄, the mean cost within the samples, the unit of ε, losses and validation.
        cost: the cost.
        build: builds the network.
        num_features: d.
        structured: whether the network's output is a ∇h rather than a displacement.
        losses: the objective of each step's batch, without the terms independent of the map.
        validation: the objective of the held-out rows, before the first step and at each check.
        divergence: S of the held-out rows, in units of the cost.
        gap: the Monge gap of the held-out rows, likewise, zero if it was not part of the objective.
        misfit: the largest distance, over features and problems, between the distribution functions
            of images of held-out rows and of held-out targets, as a share of Kolmogorov and
            Smirnov's critical value at 10⁻³ (for independent samples of their effective sizes, with
            Bonferroni's correction). Shifts by a twentieth of a standard deviation do not count.
        status: `Status.CONVERGED` if the Sinkhorn problems of the held-out rows met the tolerance,
            losses, parameters, divergence and gap are finite, and the misfit is at most one.
        origins: points that the rows of both sides, and the start's, are relative to; None for
            zero. Under the squared distance each is its sample's median, unless the start is the
            identity. Otherwise they are zero, or differ from it for float64 from NumPy.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> x = jax.random.normal(jax.random.key(0), (100, 2))
        >>> from divjax.ot import MongeMap
        >>> method = MongeMap(start="gaussian", num_steps=5, batch_size=32, hidden=(8,))
        >>> found = jax.jit(method.fit)(jax.random.key(1), x, 2 * x + 3)
        >>> found(jnp.zeros((1, 2))).round(0).tolist()
        [[3.0, 3.0]]
    """

    params: PyTree[Array]
    start: Callable[..., Array]
    center: Float[Array, " d+c"]
    input_scale: Float[Array, " d+c"]
    output_scale: Float[Array, ""]
    mean_cost: Float[Array, ""]
    cost: Callable[..., Array]
    build: Network = static()
    num_features: int = static()
    structured: bool = static(default=False)
    losses: Float[Array, " steps"] | None = None
    validation: Float[Array, " checks"] | None = None
    divergence: Float[Array, ""] | None = None
    gap: Float[Array, ""] | None = None
    misfit: Float[Array, ""] | None = None
    status: Int[ArrayLike, ""] = int(Status.CONVERGED)
    origins: Origins | None = None
    context_limits: tuple[Float[Array, " c"], Float[Array, " c"]] | None = None

    def __call__(
        self,
        z: Float[Numbers, "k d"],
        context: Float[Numbers, " c"] | Float[Numbers, "k c"] | None = None,
    ) -> Float[Array, "k d"]:
        """T(z).

        Args:
            z: points, one per row.
            context: for a map fitted with one, a vector for all rows, or one for each.

        Raises:
            ValueError: if shapes do not fit, or a context is missing or unexpected.
        """
        z = self._relative(z)
        # The network's inputs are the points' features and the context's.
        features = self.center.shape[0] - self.num_features
        if context is not None:
            rows = z.shape[:1] if jnp.ndim(context) == 2 else ()
            check_shape("context", context, *rows, features)
            context = jnp.broadcast_to(context, (z.shape[0], features))
        elif features:
            raise ValueError(f"context must have {features} features; got none.")
        return self._images(z, context)

    def initial_images(self, z: Float[Numbers, "k d"]) -> Float[Array, "k d"]:
        """The images of points under the initial map.

        Args:
            z: points, one per row.
        """
        images = self.start(self._relative(z))
        return images if self.origins is None else self.origins.target.add(images)

    def _relative(self, z: Numbers) -> Float[Array, "k d"]:
        """Points relative to the source's origin, float64 from NumPy centred before rounding."""
        points = as_numbers("z", z, exact=self.origins is not None)
        check_shape("z", points, "k", self.num_features)
        z = points if self.origins is None else self.origins.source.subtract(points)
        check_matrix(z=z)
        return z

    @jax.jit
    def _images(
        self, z: Float[Array, "k d"], context: Float[Array, "k c"] | None
    ) -> Float[Array, "k d"]:
        # Images are relative to the target's origin, as the rows were to the source's.
        images = self.image(self.params, z, self.start(z), context)
        return images if self.origins is None else self.origins.target.add(images)

    def image(
        self,
        params: PyTree[Array],
        z: Float[Numbers, "k d"],
        initial: Float[Numbers, "k d"],
        context: Float[Numbers, "k c"] | None,
    ) -> Float[Array, "k d"]:
        """T(z) with these parameters, given the start's images."""
        change = self.change(params, z, context)
        if not self.structured:
            return initial + change
        # The start's F is ∇h of its displacement, as ∇h* is the inverse of ∇h.
        gradient = jax.vmap(jax.grad(self.cost.h))(z - initial)
        return z - self.cost.grad_conjugate(gradient + change)

    def change(
        self, params: PyTree[Array], z: Float[Numbers, "k d"], context: Float[Numbers, "k c"] | None
    ) -> Float[Array, "k d"]:
        """The network's contribution, in its unit."""
        d = self.num_features
        # The network's inputs and outputs have size one in any unit of the samples.
        inputs = (z - self.center[:d]) / self.input_scale[:d]
        if context is not None:
            limit = jnp.full_like(self.center[d:], jnp.inf)
            limits = (-limit, limit) if self.context_limits is None else self.context_limits
            standardizer = Standardizer(self.center[d:], self.input_scale[d:], *limits)
            squashed = standardizer.squash(context.astype(z.dtype))
            inputs = jnp.concatenate([inputs, squashed], axis=1)
        output = apply_network(self.build, params, inputs)
        check_shape("the network's output", output, *z.shape)
        return self.output_scale * output
