"""A convex potential whose gradient is a map, and the search for its conjugate's gradient.

The conjugate f*(y) = max_x ⟨x, y⟩ − f(x) has the gradient x̂(y), the point of the maximum, which is
computed by descent from a network's guess.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int, PyTree

from divjax.core.checks import check_matrix, check_shape
from divjax.core.networks import Network, apply_network
from divjax.core.pytrees import pytree, static
from divjax.core.samples import Numbers, as_numbers
from divjax.core.types import Outcome, Status
from divjax.ot.weighted_samples import Origins

__all__ = ["DualFit"]

# The fraction of the decrease predicted by the slope that an inner step must achieve.
_ARMIJO = 0.1

# Rows x, φ and its gradients there, and the sizes of the next step.
_Descent = tuple[Array, Array, Array, Array]


@pytree
class DualFit(Outcome):
    """A convex potential f, its gradient for a map, and its conjugate's for the inverse.

    f(x) = ⟨E Y + s b, x − m⟩ + ½ |L (x − m)|² + s² g((x − m)/s) with g convex.

    Attributes:
        params: L, b and the parameters of g, and those of the network that predicts x̂(y).
        source: m, the mean of x.
        target: the mean of y.
        scale: s.
        inverse_matrix: A⁻¹ of the Gaussian map's A.
        build: builds g.
        build_start: builds the network that predicts x̂(y).
        num_search_steps: search steps for x̂ in evaluation.
        losses: the dual objective V of each step's batch, relative to the means, like `validation`.
        validation: V of the held-out rows, before the first step and at each check.
        squared_distance: E|X|² + E|Y|² − 2V of the held-out rows, including the means' distance.
        residual: ‖∇f(x̂(y)) − y‖ over ‖y − E Y‖, root mean squares over held-out rows. If it is not
            small, the search for x̂ failed, V is too small, and the map is unreliable.
        misfit: the largest distance, over the features, between the distribution functions of
            images of held-out rows and of held-out targets, as a share of Kolmogorov and Smirnov's
            critical value at 10⁻³ (for independent samples of their effective sizes, with
            Bonferroni's correction). Shifts by a twentieth of a standard deviation do not count.
        status: `Status.CONVERGED` unless the fit is not finite or has failed: a residual above a
            tenth, a misfit above one, or a squared distance below that of the means by more than
            a tenth of the variances, which is worse than the best translation.
        origins: the origins of all fields, one per space, to float64's precision.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from divjax.ot import ICNNDual
        >>> x, y = jax.random.normal(jax.random.key(0), (2, 500, 2))
        >>> method = ICNNDual(num_steps=5, batch_size=64, hidden=(8,))
        >>> found = jax.jit(method.fit)(jax.random.key(1), x, 2 * y + 3)
        >>> found(jnp.zeros((1, 2))).round(0).tolist()
        [[3.0, 3.0]]
        >>> found.inverse(found(x)).shape
        (500, 2)
    """

    params: PyTree[Array]
    source: Float[Array, " d"]
    target: Float[Array, " d"]
    scale: Float[Array, ""]
    inverse_matrix: Float[Array, "d d"]
    build: Network = static()
    build_start: Network = static()
    num_search_steps: int = static()
    losses: Float[Array, " steps"] | None = None
    validation: Float[Array, " checks"] | None = None
    squared_distance: Float[Array, ""] | None = None
    residual: Float[Array, ""] | None = None
    misfit: Float[Array, ""] | None = None
    status: Int[ArrayLike, ""] = int(Status.CONVERGED)
    origins: Origins | None = None

    def potential(self, z: Float[Numbers, "k d"]) -> Float[Array, " k"]:
        """The potential at the rows of z, up to a constant."""
        return self._potential(self._relative(z, "source"))

    @jax.jit
    @jax.default_matmul_precision("highest")
    def _potential(self, z: Float[Array, "k d"]) -> Float[Array, " k"]:
        centered = z - self.source
        return self.value(self.params, centered) + centered @ self.target

    def __call__(self, z: Float[Numbers, "k d"]) -> Float[Array, "k d"]:
        """T(z) = ∇f(z)."""
        return self._image(self._relative(z, "source"))

    @jax.jit
    @jax.default_matmul_precision("highest")
    def _image(self, z: Float[Array, "k d"]) -> Float[Array, "k d"]:
        images = self.gradient(self.params, z - self.source) + self.target
        return images if self.origins is None else self.origins.target.add(images)

    def inverse(self, y: Float[Numbers, "k d"]) -> Float[Array, "k d"]:
        """The inverse map ∇f*(y) = x̂(y), with stopped gradients."""
        return self._inverse(self._relative(y, "target"))

    @jax.jit
    @jax.default_matmul_precision("highest")
    def _inverse(self, y: Float[Array, "k d"]) -> Float[Array, "k d"]:
        points = self.search(self.params, y - self.target, self.num_search_steps) + self.source
        return points if self.origins is None else self.origins.source.add(points)

    def _relative(self, z: Numbers, side: str) -> Float[Array, "k d"]:
        """Points of one side, checked, relative to its origin."""
        points = as_numbers("z", z, exact=self.origins is not None)
        check_shape("z", points, "k", self.source.shape[0])
        check_matrix(z=points)
        return points if self.origins is None else getattr(self.origins, side).subtract(points)

    def value(self, params: PyTree[Array], centered: Float[Array, "k d"]) -> Float[Array, " k"]:
        """The potential less ⟨mean of y, ·⟩, with these parameters, at centred rows."""
        # The network's input is of size one in any unit of the samples. s² g(z/s) is convex as g
        # is, and its gradient has the unit of the rows.
        output = apply_network(self.build, params["convex"], centered / self.scale)
        check_shape("the network's output", output, centered.shape[0], 1)
        quadratic = jnp.sum((centered @ params["factor"].T) ** 2, axis=1) / 2
        linear = self.scale * (centered @ params["linear"])
        return linear + quadratic + self.scale**2 * output[:, 0]

    def gradient(self, params: PyTree[Array], centered: Float[Array, "k d"]) -> Float[Array, "k d"]:
        """∇f less the mean of y."""
        return jax.grad(lambda rows: jnp.sum(self.value(params, rows)))(centered)

    def guess(self, params: PyTree[Array], y: Float[Numbers, "k d"]) -> Float[Array, "k d"]:
        """The initial x̂(y): the Gaussian map's inverse plus a network."""
        # Between Gaussians x̂ is A⁻¹y, and the network has nothing to learn.
        white = y @ self.inverse_matrix
        correction = apply_network(self.build_start, params["start"], white / self.scale)
        return white + self.scale * correction

    def search(
        self, params: PyTree[Array], y: Float[Numbers, "k d"], num_steps: int
    ) -> Float[Array, "k d"]:
        """x̂(y), the minimum of φ(x) = f(x) − ⟨x, y⟩, for each row, all relative to the means.

        Steps follow A⁻¹∇φ with the Barzilai–Borwein length (Barzilai, Borwein 1988). A step that
        does not lower φ enough is rejected, and a third of it is tried next.
        """
        # By the envelope theorem V needs no derivative of x̂.
        params, y = jax.lax.stop_gradient((params, y))

        def evaluate(x: Array) -> tuple[Array, Array]:
            # Rows do not mix: one pullback of ones gives the gradient of each.
            value, pullback = jax.vjp(lambda x: self.value(params, x), x)
            return value - jnp.sum(x * y, axis=1), pullback(jnp.ones_like(value))[0] - y

        def step(_: Int[Array, ""], carry: _Descent) -> _Descent:
            x, value, gradient, size = carry
            # A is the Hessian between Gaussians, for which one step of size one is exact.
            direction = gradient @ self.inverse_matrix
            slope = jnp.sum(gradient * direction, axis=1)
            moved = x - size[:, None] * direction
            new_value, new_gradient = evaluate(moved)
            # Armijo's condition, with a margin for φ's rounding, which dominates near the minimum.
            enough = new_value <= value - _ARMIJO * size * slope + rounding * jnp.abs(value)
            change = jnp.sum(direction * (gradient - new_gradient), axis=1)
            # ⟨s, A s⟩/⟨s, Δ∇φ⟩ for s = −size · A⁻¹∇φ, within bounds.
            longer = jnp.where(change > 0, slope / jnp.where(change > 0, change, 1), 2) * size
            longer = jnp.clip(longer, 0.1 * size, 10 * size)
            choose = lambda one, two: jnp.where(enough[:, None], one, two)
            x, gradient = choose(moved, x), choose(new_gradient, gradient)
            value = jnp.where(enough, new_value, value)
            return x, value, gradient, jnp.where(enough, longer, size / 3)

        rounding = 4 * jnp.finfo(y.dtype).eps
        first = self.guess(params, y)
        # The network may be wrong away from its data; the Gaussian map's inverse is never far off.
        plain = y @ self.inverse_matrix
        values = [evaluate(x)[0] for x in (first, plain)]
        x = jnp.where((values[0] <= values[1])[:, None], first, plain)
        x, *_ = jax.lax.fori_loop(0, num_steps, step, (x, *evaluate(x), jnp.ones_like(y[:, 0])))
        return x
