"""The optimal map as the gradient of a convex function, found by the dual problem.

For the squared Euclidean cost the optimal map is ∇f for the convex f that minimises

    V(f) = E f(X) + E f*(Y),    f*(y) = max_x ⟨x, y⟩ − f(x),

and E|X − T(X)|² = E|X|² + E|Y|² − 2 min V. Where the maximum is at x̂(y), the derivative of f*(y)
in the parameters of f is that of −f(x̂): x̂ is found, not learned, so that V is minimised and no
game is played. A network learns where to start looking.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Bool, Float, Key, PyTree

from divjax.core import linalg
from divjax.core.checks import (
    check_callable,
    check_count,
    check_key,
    check_matrix,
    check_positive,
    check_shape,
    check_widths,
)
from divjax.core.networks import BuildICNN, BuildMLP, Network, apply_network, init_network
from divjax.core.pytrees import pytree, static
from divjax.core.training import adam_with_cosine, fit, hold_out, row_batch, training_samples
from divjax.ot.gaussian import gaussian_map_from_samples

__all__ = ["DualFit", "ICNNDual"]

# What an inner step must reach of the decrease that its slope promises.
_ARMIJO = 0.1


@pytree
class DualFit:
    """A convex potential f, its gradient for a map, and its conjugate's for the inverse.

    f(x) = ⟨b, x⟩ + ½ |L (x − m)|² + s² g((x − m)/s) with g convex.

    Attributes:
        params: L, b and g's; and those of the network that x̂(y) is started at.
        source: m, the mean of x.
        target: the mean of y.
        scale: s.
        inverse_matrix: A⁻¹ of the Gaussian map's A.
        build: builds g.
        build_start: builds the other.
        num_search_steps: of the search for x̂, where it is to be exact.
        losses: the dual objective V of each step's batch.
        validation: V of the held-out rows, before the first step and at each check.
        squared_distance: E|X|² + E|Y|² − 2V of the held-out rows.
        residual: ‖∇f(x̂(y)) − y‖ over ‖y − E Y‖, roots of mean squares over held-out rows; what is
            not small says that x̂ was not found there, V too small, and the map not to be trusted.
        finite: whether all of the fit is.

    Example:
        >>> import jax, jax.numpy as jnp
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
    finite: Bool[Array, ""] | bool = True

    @jax.default_matmul_precision("highest")
    def potential(self, z: Float[Array, "k d"]) -> Float[Array, " k"]:
        """The potential at the rows of z, up to a constant."""
        self._check(z)
        return self.value(self.params, z - self.source)

    @jax.default_matmul_precision("highest")
    def __call__(self, z: Float[Array, "k d"]) -> Float[Array, "k d"]:
        """T(z) = ∇f(z)."""
        self._check(z)
        return self.gradient(self.params, z - self.source)

    @jax.default_matmul_precision("highest")
    def inverse(self, y: Float[Array, "k d"]) -> Float[Array, "k d"]:
        """The inverse map ∇f*(y) = x̂(y), a constant to differentiation."""
        self._check(y)
        return self.search(self.params, y, self.num_search_steps) + self.source

    def _check(self, z: Any) -> None:
        check_matrix(z=z)
        check_shape("z", z, "k", self.source.shape[0])

    def value(self, params: PyTree[Array], centered: Float[Array, "k d"]) -> Float[Array, " k"]:
        """The potential with these parameters, of rows less the mean."""
        output = apply_network(self.build, params["convex"], centered / self.scale)
        check_shape("the network's output", output, centered.shape[0], 1)
        quadratic = jnp.sum((centered @ params["factor"].T) ** 2, axis=1) / 2
        return centered @ params["linear"] + quadratic + self.scale**2 * output[:, 0]

    def gradient(self, params: PyTree[Array], centered: Float[Array, "k d"]) -> Float[Array, "k d"]:
        """∇f."""
        return jax.grad(lambda rows: jnp.sum(self.value(params, rows)))(centered)

    def guess(self, params: PyTree[Array], y: Float[Array, "k d"]) -> Float[Array, "k d"]:
        """Where x̂(y) − m is looked for first: by the Gaussian map's inverse, and a network."""
        white = (y - self.target) @ self.inverse_matrix
        correction = apply_network(self.build_start, params["start"], white / self.scale)
        return white + self.scale * correction

    def search(
        self, params: PyTree[Array], y: Float[Array, "k d"], num_steps: int
    ) -> Float[Array, "k d"]:
        """x̂(y) − m: the least of φ(x) = f(x) − ⟨x, y⟩, each row by itself.

        Steps along A⁻¹∇φ, as long as the last one's curvature asks for (Barzilai, Borwein 1988);
        one that does not lower φ enough is not taken, and a third of it is tried next.
        """
        params, y = jax.lax.stop_gradient((params, y))

        def evaluate(x: Array) -> tuple[Array, Array]:
            value, pullback = jax.vjp(lambda x: self.value(params, x), x)
            return value - jnp.sum(x * y, axis=1), pullback(jnp.ones_like(value))[0] - y

        def step(_, carry: Any) -> Any:
            x, value, gradient, size = carry
            direction = gradient @ self.inverse_matrix
            slope = jnp.sum(gradient * direction, axis=1)
            moved = x - size[:, None] * direction
            new_value, new_gradient = evaluate(moved)
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
        # The network may be wrong where it has not been; the Gaussian map's inverse is not far off.
        plain = (y - self.target) @ self.inverse_matrix
        values = [evaluate(x)[0] for x in (first, plain)]
        x = jnp.where((values[0] <= values[1])[:, None], first, plain)
        x, *_ = jax.lax.fori_loop(0, num_steps, step, (x, *evaluate(x), jnp.ones_like(y[:, 0])))
        return x


@pytree
class ICNNDual:
    """The optimal map for the squared Euclidean cost as the gradient of an input-convex network.

    What is minimised over convex f is E f(X) + E f*(Y), by minibatches. f is a quadratic that
    starts at the optimal one between the samples' Gaussians, plus an input-convex network that
    starts small. The conjugate is found by `num_inner_steps` steps from a guess that a network
    learns along the way; in evaluation by four times as many.

    A step costs `num_inner_steps` + 5 gradients of f at a batch; memory is that of one.

    Attributes:
        hidden: widths of the default network.
        network: `(in_features, rngs) -> nnx.Module`, from rows "b d" to "b 1", convex in them.
        start_hidden: widths of the perceptron that guesses x̂(y).
        learning_rate: Adam's, the first of a cosine schedule that ends at a hundredth of it.
        num_steps: optimizer steps, rounded up to a multiple of `num_checks`.
        num_inner_steps: of the search for x̂.
        batch_size: rows of x, and of y, a step; fewer where there are fewer.
        num_checks: how often the held-out rows are consulted; at most once a step.

    Raises:
        ValueError: if a number is out of range.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> x, y = jax.random.normal(jax.random.key(0), (2, 1000, 1))
        >>> method = ICNNDual(num_steps=20, hidden=(8,))
        >>> found = jax.jit(method.fit)(jax.random.key(1), x, 3 * y)
        >>> bool(abs(found.squared_distance - 4) < 0.8), bool(found.residual < 0.1)  # (3 − 1)²
        (True, True)

    References:
        Makkuva, Taghvaei, Oh, Lee 2020, eq. 6: the dual with input-convex networks. Amos 2023,
        section 3: the exact conjugate, and learning where to start it.
    """

    hidden: tuple[int, ...] = static(default=(64, 64))
    network: Network | None = static(default=None)
    start_hidden: tuple[int, ...] = static(default=(64, 64))
    learning_rate: ArrayLike = 3e-2
    num_steps: int = static(default=2000)
    num_inner_steps: int = static(default=16)
    batch_size: int = static(default=256)
    num_checks: int = static(default=20)

    def __post_init__(self):
        if self.network is not None:
            check_callable(network=self.network)
        check_widths(hidden=self.hidden, start_hidden=self.start_hidden)
        check_positive(learning_rate=self.learning_rate)
        counts = {"num_steps": self.num_steps, "num_inner_steps": self.num_inner_steps}
        check_count(1, **counts, batch_size=self.batch_size, num_checks=self.num_checks)

    @jax.default_matmul_precision("highest")
    def fit(
        self,
        key: Key[Array, ""],
        x: Float[Array, "n d"],
        y: Float[Array, "m d"],
        *,
        optimizer: optax.GradientTransformation | None = None,
    ) -> DualFit:
        """Fit f; the map is its gradient.

        A fifth of the rows of each side, at most 1024, is held out.

        Args:
            key: for the split, the networks and the batches.
            x: samples of the law that is carried.
            y: samples of the law it is carried to, in no relation to the rows of x.
            optimizer: in place of Adam with the cosine schedule.

        Returns:
            The fit, a constant to differentiation in the samples. It compiles as a whole: jit it.

        Raises:
            ValueError: if shapes do not fit or a sample has fewer than two rows.
        """
        check_key(key)
        x, y = training_samples(x, y)
        split_key, convex_key, start_key, fit_key = jax.random.split(key, 4)
        (x, x_held), (y, y_held) = (
            hold_out(k, rows) for k, rows in zip(jax.random.split(split_key), (x, y), strict=True)
        )
        dual, params = self._start(convex_key, start_key, x, y)
        size = min(self.batch_size, x.shape[0], y.shape[0])

        def objective(params: Any, x: Array, y: Array, num_steps: int) -> tuple[Array, Array]:
            """V, by whose derivative f moves; and x̂ − m."""
            found = jax.lax.stop_gradient(dual.search(params, y, num_steps))
            # ⟨m, y⟩ does not depend on the parameters; with it V is the dual objective itself.
            inner = jnp.sum((found + dual.source) * y, axis=1)
            conjugate = inner - dual.value(params, found)
            return jnp.mean(dual.value(params, x - dual.source)) + jnp.mean(conjugate), found

        def loss(key: Key[Array, ""], params: Any) -> Float[Array, ""]:
            i, j = (
                row_batch(k, len(rows), size)
                for k, rows in zip(jax.random.split(key), (x, y), strict=True)
            )
            value, found = objective(params, x[i], y[j], self.num_inner_steps)
            missed = jnp.mean(((dual.guess(params, y[j]) - found) / dual.scale) ** 2)
            # Of the second term only the guess has a derivative, and V none in it.
            return value + missed - jax.lax.stop_gradient(missed)

        validate = lambda params: objective(params, x_held, y_held, dual.num_search_steps)[0]
        trained = fit(
            fit_key,
            loss,
            params,
            optimizer or adam_with_cosine(self.learning_rate, self.num_steps, x.dtype),
            num_steps=self.num_steps,
            validate=validate,
            num_checks=self.num_checks,
        )
        params = trained.params
        value, found = objective(params, x_held, y_held, dual.num_search_steps)
        squares = sum(jnp.mean(jnp.sum(rows**2, axis=1)) for rows in (x_held, y_held))
        root = lambda rows: jnp.sqrt(jnp.mean(rows**2))
        residual = root(dual.gradient(params, found) - y_held) / root(y_held - dual.target)
        return dataclasses.replace(
            dual,
            params=params,
            losses=trained.losses,
            validation=trained.validation,
            squared_distance=squares - 2 * value,
            residual=residual,
            finite=trained.finite & jnp.isfinite(value) & jnp.isfinite(residual),
        )

    def _start(
        self, convex_key: Key[Array, ""], start_key: Key[Array, ""], x: Array, y: Array
    ) -> tuple[DualFit, PyTree[Array]]:
        """The fit before it starts: at the optimal quadratic between the Gaussians."""
        d, dtype = x.shape[1], x.dtype
        source, target = jnp.mean(x, axis=0), jnp.mean(y, axis=0)
        values, vectors = linalg.eigh(gaussian_map_from_samples(x, y).matrix)
        # What the samples do not vary in has no A; f is kept strictly convex there.
        values = jnp.maximum(values, 1e-3 * jnp.max(values) + jnp.finfo(dtype).tiny)
        spread = jnp.sqrt(jnp.mean((x - source) ** 2))
        build = BuildICNN(self.hidden) if self.network is None else self.network
        params = {
            "linear": target,
            "factor": (vectors * jnp.sqrt(values)) @ vectors.T,
            "convex": init_network(build, convex_key, d, dtype),
            "start": init_network(BuildMLP(self.start_hidden, d), start_key, d, dtype),
        }
        dual = DualFit(
            params=params,
            source=source,
            target=target,
            scale=jnp.where(spread > 0, spread, 1),
            inverse_matrix=(vectors / values) @ vectors.T,
            build=build,
            build_start=BuildMLP(self.start_hidden, d),
            num_search_steps=4 * self.num_inner_steps,
        )
        return dual, params
