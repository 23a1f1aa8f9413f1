"""The optimal map as the gradient of a convex function, found by the dual problem.

For the squared Euclidean cost the optimal map is ∇f for the convex f that minimises

    V(f) = E f(X) + E f*(Y),    f*(y) = max_x ⟨x, y⟩ − f(x),

and E|X − T(X)|² = E|X|² + E|Y|² − 2 min V. If the maximum is at x̂(y), the derivative of f*(y) in
the parameters of f is that of −f(x̂). x̂ is computed rather than learned, so V is minimised without
a min-max problem. A network learns its initial guess.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Bool, Float, Key, PyTree

from divjax.core import linalg
from divjax.core.checks import (
    check_callable,
    check_count,
    check_number,
    check_positive,
    check_widths,
)
from divjax.core.differentiation import refuse_derivatives, with_slopes_of
from divjax.core.keys import own_key
from divjax.core.networks import BuildICNN, BuildMLP, Network, init_network
from divjax.core.pytrees import pytree, static
from divjax.core.rounding import is_rounded_away
from divjax.core.samples import Numbers
from divjax.core.training import adam_with_cosine, fit
from divjax.core.types import status_of
from divjax.ot.maps.convex_potential import DualFit
from divjax.ot.maps.gaussian_samples import gaussian_start
from divjax.ot.maps.misfit import misfit
from divjax.ot.scales import winsorised
from divjax.ot.weighted_samples import (
    WeightedSamples,
    batch_of_rows,
    mean_over_rows,
    split,
    squares_are_unresolved,
    uniform_weights,
    weighted_samples,
)

__all__ = ["ICNNDual"]
# The largest residual of a successful search for x̂.
_LARGEST_RESIDUAL = 0.1
# The largest rounding of rows about the common origin, in spreads.
_LARGEST_ROUNDING = 0.3

_NO_DERIVATIVE = (
    "a fitted dual cannot be differentiated in its learning rate: the derivative would pass "
    "through all training steps. Compare fits at several values instead."
)


@pytree
class ICNNDual:
    """The optimal map for the squared Euclidean cost as the gradient of an input-convex network.

    E f(X) + E f*(Y) is minimised over convex f by minibatches. f is a quadratic, initially optimal
    between the samples' Gaussians, plus an input-convex network that is initially small. The
    conjugate takes `num_inner_steps` steps from a guess by a jointly trained network, and four
    times as many in evaluation. While fitting, outlying values of at most a hundredth of the mass
    per feature are cut at ten standard deviations from the median.

    A step costs `num_inner_steps` + 5 gradients of f on a batch, with the memory of one.

    Attributes:
        hidden: widths of the default network.
        network: `(in_features, rngs) -> nnx.Module`, from rows "b d" to "b 1", convex in them; it
            is compiled in, as by `jax.jit`.
        start_hidden: widths of the perceptron that guesses x̂(y).
        learning_rate: Adam's initial rate, with a cosine schedule that ends at a hundredth of it.
        num_steps: optimizer steps, rounded up to a multiple of `num_checks`.
        num_inner_steps: search steps for x̂.
        batch_size: rows of x, and of y, per step, fewer if there are fewer.
        num_checks: the number of evaluations on held-out rows, at most one per step.

    Raises:
        ValueError: if a number is out of range.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> x, y = jax.random.normal(jax.random.key(0), (2, 5000, 1))
        >>> method = ICNNDual(num_steps=20, hidden=(8,))
        >>> found = jax.jit(method.fit)(jax.random.key(1), x, 3 * y)
        >>> bool(abs(found.squared_distance - 4) < 1.2), bool(found.residual < 0.1)  # (3 − 1)²
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
        if not self.hidden:
            raise ValueError("hidden must hold at least one width; got none.")
        check_positive(learning_rate=self.learning_rate)
        counts = {"num_steps": self.num_steps, "num_inner_steps": self.num_inner_steps}
        check_count(1, **counts, batch_size=self.batch_size, num_checks=self.num_checks)

    def fit(
        self,
        key: Key[Array, ""],
        x: Float[Numbers, "n d"],
        y: Float[Numbers, "m d"],
        a: Float[Numbers, " n"] | None = None,
        b: Float[Numbers, " m"] | None = None,
        *,
        optimizer: optax.GradientTransformation | None = None,
    ) -> DualFit:
        """Fit f, whose gradient is the map.

        A fifth of the rows of each side, at most 1024, is held out.

        Args:
            key: the key for the split, the networks and the batches.
            x: samples of the source distribution.
            y: samples of the target distribution, unpaired with x.
            a: weights of x, non-negative, with any sum, uniform by default. Batches draw rows in
                proportion to them. Rows of weight zero are padding.
            b: weights of y.
            optimizer: replaces Adam with the cosine schedule.

        Returns:
            The fit, with stopped gradients in the samples.

        Raises:
            ValueError: if shapes do not fit or a sample has fewer than three rows, or if the fit is
                differentiated with respect to a numeric attribute of the method.
        """
        key = own_key(key)
        check_number(learning_rate=self.learning_rate)
        method = refuse_derivatives(self, _NO_DERIVATIVE)
        # The distance of the means is part of the dual, so both sides have the same origin.
        samples, origins = weighted_samples(x, y, a, b, least=3)
        found = method._fit(key, samples, optimizer=optimizer)
        return dataclasses.replace(found, origins=origins)

    @functools.partial(jax.jit, static_argnames="optimizer")
    @jax.default_matmul_precision("highest")
    def _fit(
        self,
        key: Key[Array, ""],
        samples: WeightedSamples,
        *,
        optimizer: optax.GradientTransformation | None,
    ) -> DualFit:
        """`fit` after its checks, relative to the samples' origins."""
        # 1. Split, centre and winsorise.
        split_key, convex_key, start_key, fit_key = jax.random.split(key, 4)
        train, held = split(split_key, samples)
        dual, params = self._start(convex_key, start_key, train)
        # Far from zero, the dual's terms would cancel up to rounding.
        centered = lambda rows: rows._replace(x=rows.x - dual.source, y=rows.y - dual.target)
        train, held = centered(train), centered(held)
        far = _are_rounded(dual.source, train.x) | _are_rounded(dual.target, train.y)
        # A single distant row would dominate both sums of the dual.
        x, y = _without_outliers(train)
        size = min(self.batch_size, x.shape[0], y.shape[0])

        # 2. The dual objective, and its loss on a batch.
        def objective(
            params: PyTree[Array], rows: WeightedSamples, num_steps: int
        ) -> tuple[Array, Array]:
            """V, which is differentiable in f's parameters, and x̂ at the rows of y."""
            # f*(y) = ⟨x̂, y⟩ − f(x̂), differentiated at a fixed x̂.
            found = jax.lax.stop_gradient(dual.search(params, rows.y, num_steps))
            conjugate = jnp.sum(found * rows.y, axis=1) - dual.value(params, found)
            potential = dual.value(params, rows.x)
            return mean_over_rows(potential, rows.a) + mean_over_rows(conjugate, rows.b), found

        def loss(key: Key[Array, ""], params: PyTree[Array]) -> Float[Array, ""]:
            x_key, y_key = jax.random.split(key)
            i = batch_of_rows(x_key, len(x), size, train.a)
            j = batch_of_rows(y_key, len(y), size, train.b)
            # Rows are drawn by their weights, and have equal weight in a batch.
            batch = WeightedSamples(x[i], y[j])
            value, found = objective(params, batch, self.num_inner_steps)
            missed = jnp.mean(((dual.guess(params, y[j]) - found) / dual.scale) ** 2)
            # V does not depend on the guess, and in the second term only the guess is
            # differentiated. Both are dimensionless, so that steps do not depend on the rows' unit.
            value = value / dual.scale / dual.scale
            return with_slopes_of(value + missed, value)

        # 3. Train. Checks winsorise as training does; reported numbers use the original rows.
        held_x, held_y = _without_outliers(held)
        checked = held._replace(x=held_x, y=held_y)
        validate = lambda params: objective(params, checked, dual.num_search_steps)[0]
        trained = fit(
            fit_key,
            loss,
            params,
            optimizer or adam_with_cosine(self.learning_rate, self.num_steps, x.dtype),
            num_steps=self.num_steps,
            validate=validate,
            num_checks=self.num_checks,
        )
        # 4. The distance and the diagnostics, on the held-out rows.
        params = trained.params
        value, found = objective(params, held, dual.num_search_steps)
        square = lambda rows, weights: mean_over_rows(jnp.sum(rows**2, axis=1), weights)
        centered_distance = square(held.x, held.a) + square(held.y, held.b) - 2 * value
        # E|X + s|² for X − Y relative to the means, whose distance is s.
        shift = dual.source - dual.target
        between = mean_over_rows(held.x, held.a) - mean_over_rows(held.y, held.b)
        squared_distance = centered_distance + shift @ (shift + 2 * between)
        # At a maximum ∇f(x̂) = y: the residual tests the search. The misfit tests the map, whose
        # image may be wrong although x̂ is correct.
        squared_residual = square(dual.gradient(params, found) - held.y, held.b)
        residual = jnp.sqrt(squared_residual / square(held.y, held.b))
        misfit_of_held = misfit(dual.gradient(params, held.x), held)
        finite = trained.finite & jnp.isfinite(value) & jnp.isfinite(residual)
        failed = (residual > _LARGEST_RESIDUAL) | (misfit_of_held > 1)
        # At a large shift both distances have rounding errors.
        rounding = 16 * jnp.finfo(x.dtype).eps
        failed |= squared_distance < (1 - rounding) * jnp.maximum(_least_distance(held, shift), 0)
        # A learning rate out of range leaves the initial parameters.
        valid = optimizer is not None or jnp.asarray(self.learning_rate) > 0
        return dataclasses.replace(
            dual,
            params=params,
            losses=dual.scale * (dual.scale * trained.losses),
            validation=trained.validation,
            squared_distance=squared_distance,
            residual=residual,
            misfit=misfit_of_held,
            status=status_of(
                converged=~failed,
                resolved=~(squares_are_unresolved(train.x, train.y) | far),
                finite=finite,
                valid=valid,
            ),
        )

    def _start(
        self, convex_key: Key[Array, ""], start_key: Key[Array, ""], train: WeightedSamples
    ) -> tuple[DualFit, PyTree[Array]]:
        """The initial fit: the optimal quadratic between the Gaussians."""
        x, dtype = train.x, train.x.dtype
        d = x.shape[1]
        gaussian = gaussian_start(train)
        values, vectors = linalg.eigh(gaussian.matrix)
        # A is undefined in directions without variance; f is kept strictly convex there.
        values = jnp.maximum(values, 1e-3 * jnp.max(values) + jnp.finfo(dtype).tiny)
        # Outliers do not set the network's unit.
        deviations = (winsorised(x, train.a) - gaussian.source) ** 2
        spread = jnp.sqrt(jnp.mean(mean_over_rows(deviations, train.a)))
        build = BuildICNN(self.hidden) if self.network is None else self.network
        # f starts at the quadratic whose gradient is the Gaussians' map: Hessian A, factor A^½.
        params = {
            "linear": jnp.zeros(d, dtype),
            "factor": (vectors * jnp.sqrt(values)) @ vectors.T,
            "convex": init_network(build, convex_key, d, dtype),
            "start": init_network(BuildMLP(self.start_hidden, d), start_key, d, dtype),
        }
        dual = DualFit(
            params=params,
            source=gaussian.source,
            target=gaussian.target,
            scale=jnp.where(spread > 0, spread, 1),
            inverse_matrix=(vectors / values) @ vectors.T,
            build=build,
            build_start=BuildMLP(self.start_hidden, d),
            num_search_steps=4 * self.num_inner_steps,
        )
        return dual, params


def _are_rounded(mean: Float[Array, " d"], centered: Float[Array, "n d"]) -> Bool[Array, ""]:
    """Whether the rounding of rows at this mean exceeds a share of their spread."""
    spread = jnp.sqrt(jnp.mean(centered**2))
    return is_rounded_away(jnp.max(jnp.abs(mean)), spread, _LARGEST_ROUNDING)


def _without_outliers(samples: WeightedSamples) -> tuple[Array, Array]:
    """Both sides' rows, with at most a hundredth of the mass winsorised."""
    x, y, a, b = samples
    return winsorised(x, a, share=0.99), winsorised(y, b, share=0.99)


def _least_distance(held: WeightedSamples, shift: Float[Array, " d"]) -> Float[Array, ""]:
    """The least credible squared distance: that of the means, less a margin for noise.

    The samples are relative to two points, the first of which is `shift` from the second.

    V of any convex f bounds the true one from above, so a fit below the best translation's value is
    worse than that translation. The margin is three standard errors of the means, plus a tenth of
    the samples' variances.
    """
    sides = (held.x, held.a), (held.y, held.b)
    means = [mean_over_rows(rows, weights) for rows, weights in sides]
    variances, noise = jnp.zeros((2,), held.x.dtype)
    for (rows, weights), mean in zip(sides, means, strict=True):
        weights = uniform_weights(rows) if weights is None else weights
        variance = mean_over_rows(jnp.sum((rows - mean) ** 2, axis=1), weights)
        # Σ w² is one over the effective size: the noise is the squared standard error of the
        # difference of means.
        variances, noise = variances + variance, noise + jnp.sum(weights**2) * variance
    gap = jnp.sqrt(jnp.sum((means[0] - means[1] + shift) ** 2))
    return jnp.maximum(gap - 3 * jnp.sqrt(noise), 0) ** 2 - 0.1 * variances
