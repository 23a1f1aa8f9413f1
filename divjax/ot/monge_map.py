"""Transport maps by a network: an image that fits, and no more paid for it than need be.

A map T that carries the law of x to that of y need not be the cheapest one. Here T minimises

    S_ε(T(x), y) / c̄  +  λ M(T) / c̄  +  w E ‖J − Jᵀ‖² / d,

the Sinkhorn divergence between where rows arrive and where they should, the Monge gap, which is
zero for optimal maps alone, and, where asked for, what keeps the Jacobian J symmetric as that of a
gradient is. The first two are in units of the mean cost c̄ between x and y.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, Key, PyTree

from divjax.core.checks import (
    check_callable,
    check_choice,
    check_count,
    check_key,
    check_matrix,
    check_nonnegative,
    check_positive,
    check_shape,
    check_widths,
)
from divjax.core.networks import BuildMLP, Network, init_network
from divjax.core.pytrees import pytree, static
from divjax.core.standardize import mean_and_scale
from divjax.core.training import (
    adam_with_cosine,
    fit,
    hold_out,
    row_batch,
    thinned,
    training_samples,
)
from divjax.ot.costs import SqEuclidean, checked_cost, cost_matrix, grad_conjugate
from divjax.ot.entropic_map import EntropicMap
from divjax.ot.gaussian import gaussian_map_from_samples
from divjax.ot.map_objective import MapBatch, MapObjective, MapTerms
from divjax.ot.monge_gap import KINDS
from divjax.ot.network_map import IdentityMap, MapFit

__all__ = ["MongeMap"]

_STARTS = ("identity", "gaussian", "entropic")

# Rows of each side that the mean cost and the output's unit are from, at most.
_FEW = 1024


@pytree
class MongeMap:
    """The map from the law of x to that of y that costs least, as a network.

    T minimises S_ε(T(x), y)/c̄ + λ M(T)/c̄ + w E‖J − Jᵀ‖²/d over minibatches: the debiased Sinkhorn
    divergence, λ times the Monge gap, w times the asymmetry of the Jacobian; c̄ is the mean cost
    between x and y. The network is added to a start in closed form; the parameters kept are those
    of the check with the least objective on held-out rows, and the start itself is one of them.

    With b rows the divergence is biased: its self terms hold the zero distances of rows to
    themselves, so that it is least at a map with too little spread, in many dimensions far from the
    exact one; held-out rows do not show it. `independent_batches` takes the self term between two
    batches, OT(T(x), T(x′)), as the energy distance does. Its derivative at the exact map is zero
    in expectation whatever b, at the price of another Sinkhorn problem a step and of more noise.

    Structured, T = id − ∇h*∘F for a cost h(x − y) with h strictly convex, and the network is added
    to the start's F: for the optimal map F is the gradient of a potential.

    A step solves four Sinkhorn problems of b × b, two of which the Monge gap adds; with self terms
    of one batch three, and a fourth where the gap's ε is another. It compiles as a whole: jit it.
    The fit is a constant to differentiation; the map is differentiable in its points and its own
    arrays.

    Attributes:
        cost: a symmetric cost of `divjax.ot`, or a function of two points.
        epsilon: ε > 0 of the divergence, as a share of the mean cost c̄ between x and y.
        gap_epsilon: that of the Monge gap, a share of c̄ too; None for the same.
        gap_weight: λ ≥ 0.
        symmetry_weight: w ≥ 0, or None for no such term. It takes a structured map, or the squared
            Euclidean cost: of other costs no optimal map's J is symmetric. J is that of F in its
            unit, estimated with one random direction a row.
        gap_kind: the kind of Monge gap, "debiased", "entropic" or "primal", as in `monge_gap`; None
            for a map that only fits.
        start: "identity"; "gaussian", the optimal map between the Gaussians with the samples'
            moments (under the squared Euclidean cost); or "entropic", that of `EntropicMap`, with
            its ε chosen by the held-out rows.
        structured: whether T = id − ∇h*∘F.
        independent_batches: whether the divergence's self terms are of two batches without a row
            in common; the gap's never are, whose samples are paired.
        hidden: widths of the default network, a perceptron.
        network: `(in_features, rngs) -> nnx.Module`, from rows "b d" (with a context "b d+c") to
            "b d". Its output had better start at zero.
        learning_rate: Adam's, the first of a cosine schedule that ends at a hundredth of it.
        num_steps: optimizer steps, rounded up to a multiple of `num_checks`.
        batch_size: rows of x, and of y, a step; fewer where there are fewer, at most half of the
            rows of x if batches are independent.
        num_checks: how often the held-out rows are consulted; at most once a step.
        max_iterations: of each of Sinkhorn's problems.
        tolerance: of each of Sinkhorn's problems.

    Raises:
        ValueError: if a name is unknown, a number out of range, or the cost has no ∇h* that the
            structure or the entropic start need.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> x, y = jax.random.normal(jax.random.key(0), (2, 1000, 2))
        >>> method = MongeMap(start="gaussian", num_steps=20, batch_size=128)
        >>> found = jax.jit(method.fit)(jax.random.key(1), x, 2 * y + 1)
        >>> found(jnp.array([[0.0, 0.0], [1.0, 0.0]])).round(0).tolist()
        [[1.0, 1.0], [3.0, 1.0]]

    References:
        Uscidda, Cuturi 2023, eq. 10: the objective, section 4.2: structured maps, 4.3: the
        Jacobian. Bunne, Krause, Cuturi 2022, section 3: Gaussian starts.
    """

    cost: Any = SqEuclidean()
    epsilon: ArrayLike = 0.05
    gap_epsilon: ArrayLike | None = None
    gap_weight: ArrayLike = 1.0
    symmetry_weight: ArrayLike | None = None
    gap_kind: str | None = static(default="debiased")
    start: str = static(default="identity")
    structured: bool = static(default=False)
    independent_batches: bool = static(default=True)
    hidden: tuple[int, ...] = static(default=(64, 64, 64))
    network: Network | None = static(default=None)
    learning_rate: ArrayLike = 1e-3
    num_steps: int = static(default=2000)
    batch_size: int = static(default=512)
    num_checks: int = static(default=20)
    max_iterations: int = static(default=200)
    tolerance: ArrayLike = 1e-2

    def __post_init__(self):
        check_callable(cost=self.cost)
        check_choice((None, *KINDS), gap_kind=self.gap_kind)
        check_choice(_STARTS, start=self.start)
        if self.network is not None:
            check_callable(network=self.network)
        check_widths(hidden=self.hidden)
        check_positive(epsilon=self.epsilon, gap_epsilon=self.gap_epsilon)
        check_positive(learning_rate=self.learning_rate, tolerance=self.tolerance)
        check_nonnegative(gap_weight=self.gap_weight, symmetry_weight=self.symmetry_weight)
        counts = {"num_steps": self.num_steps, "num_checks": self.num_checks}
        counts |= {"batch_size": self.batch_size, "max_iterations": self.max_iterations}
        check_count(1, **counts)
        if self.structured or self.start == "entropic":
            grad_conjugate(self.cost)
        squared = isinstance(self.cost, SqEuclidean)
        if self.symmetry_weight is not None and not (self.structured or squared):
            raise ValueError(
                "symmetry_weight needs structured=True or the squared Euclidean cost; got the cost "
                f"{type(self.cost).__name__}."
            )

    def fit(
        self,
        key: Key[Array, ""],
        x: Float[Array, "n d"] | Float[Array, "g n d"],
        y: Float[Array, "m d"] | Float[Array, "g m d"],
        context: Float[Array, "g c"] | None = None,
        *,
        optimizer: optax.GradientTransformation | None = None,
    ) -> MapFit:
        """Fit the map, or with a context g maps that share one network.

        A fifth of the rows of each side, at most 1024, is held out. With a context each step takes
        one of the g problems, and the start and c̄ are those of all rows together.

        Args:
            key: for the split, the network and the batches.
            x: samples of the law that is carried.
            y: samples of the law it is carried to, in no relation to the rows of x.
            context: a vector for each problem, which the network gets beside each row.
            optimizer: in place of Adam with the cosine schedule.

        Returns:
            The map, a function of rows.

        Raises:
            ValueError: if shapes do not fit or a sample has fewer than two rows.
        """
        check_key(key)
        x, y = _problems(x, y, context)
        method = dataclasses.replace(self, cost=checked_cost(self.cost, x[0, 0]))
        return method._fit(key, x, y, context, optimizer)

    def _fit(
        self,
        key: Key[Array, ""],
        x: Float[Array, "g n d"],
        y: Float[Array, "g m d"],
        context: Float[Array, "g c"] | None,
        optimizer: optax.GradientTransformation | None,
    ) -> MapFit:
        split_key, init_key, jitter_key, held_out_key, fit_key = jax.random.split(key, 5)
        (x, held_x), (y, held_y) = (
            jax.vmap(hold_out, (None, 0))(k, rows)
            for k, rows in zip(jax.random.split(split_key), (x, y), strict=True)
        )
        mean_cost = jnp.mean(cost_matrix(self.cost, *(thinned(_pooled(z), _FEW) for z in (x, y))))
        start = self._start((_pooled(x), _pooled(y)), (_pooled(held_x), _pooled(held_y)))
        map_fit = self._map(init_key, start, mean_cost, _pooled(x), _pooled(y), context)
        objective = self._objective(mean_cost)
        params = map_fit.params
        if self.structured and not isinstance(self.cost, SqEuclidean):
            # At F = 0 the slope of ∇h* may be infinite, with which no step would be taken.
            params = _jittered(jitter_key, params)
        images, held_images = (jax.lax.map(start, rows) for rows in (x, held_x))
        # Two batches with rows in common would not be independent.
        batches = 2 if self.independent_batches and x.shape[1] > 1 else 1
        size = min(self.batch_size, x.shape[1] // batches, y.shape[1])

        def loss(key: Key[Array, ""], params: PyTree[Array]) -> Float[Array, ""]:
            which_key, x_key, y_key, direction_key = jax.random.split(key, 4)
            which = jax.random.randint(which_key, (), 0, x.shape[0])
            rows = row_batch(x_key, x.shape[1], batches * size).reshape(batches, size)
            carried = [(x[which, each], images[which, each]) for each in rows]
            batch = MapBatch(
                x=carried[0][0],
                started=carried[0][1],
                y=y[which, row_batch(y_key, y.shape[1], size)],
                context=None if context is None else context[which],
                other=carried[1] if batches == 2 else None,
            )
            return objective.value(objective.terms(direction_key, map_fit, params, batch))

        def held_out(problem: Any) -> tuple[MapBatch, Any]:
            x, images, y, own = problem
            if not self.independent_batches:
                return MapBatch(x, images, y, own), None
            first, second = slice(len(x) - len(x) // 2), slice(len(x) // 2, None)
            other = y[len(y) // 2 :]
            y = y[: len(y) - len(y) // 2]
            return MapBatch(x[first], images[first], y, own, (x[second], images[second])), other

        problems = held_x, held_images, held_y, context

        def constant(problem: Any) -> MapTerms:
            batch, other = held_out(problem)
            return objective.constants(batch.x, batch.y, other)

        constants = jax.lax.map(constant, problems)

        def evaluate(params: PyTree[Array]) -> MapTerms:
            """The terms of held-out rows, means over problems."""

            def one(problem: Any) -> MapTerms:
                batch, _ = held_out(problem)
                return objective.terms(held_out_key, map_fit, params, batch)

            terms = jax.lax.map(one, problems)
            means = jax.tree.map(lambda one, two: jnp.mean(one + two), terms, constants)
            return means._replace(converged=jnp.all(terms.converged & constants.converged))

        trained = fit(
            fit_key,
            loss,
            params,
            optimizer or adam_with_cosine(self.learning_rate, self.num_steps, x.dtype),
            num_steps=self.num_steps,
            validate=lambda params: objective.value(evaluate(params)),
            num_checks=self.num_checks,
        )
        terms = evaluate(trained.params)
        finite = jnp.isfinite(terms.divergence) & jnp.isfinite(terms.gap)
        return dataclasses.replace(
            map_fit,
            params=trained.params,
            losses=trained.losses,
            validation=trained.validation,
            divergence=terms.divergence,
            gap=terms.gap,
            converged=terms.converged,
            finite=trained.finite & finite,
        )

    def _start(self, train: Any, held_out: Any) -> Any:
        """The map that the network is added to."""
        if self.start == "identity":
            return IdentityMap()
        if self.start == "gaussian":
            return gaussian_map_from_samples(*train)
        return EntropicMap(self.cost, score_epsilon=self.epsilon).fit_split(train, held_out)

    def _map(
        self, key: Key[Array, ""], start: Any, mean_cost: Array, x: Array, y: Array, context: Any
    ) -> MapFit:
        """The map before the first step, its network in units of the samples."""
        d = x.shape[1]
        build = BuildMLP(self.hidden, d) if self.network is None else self.network
        center, input_scale = _standard(x, context)
        return MapFit(
            params=init_network(build, key, center.shape[0], x.dtype),
            start=start,
            center=center,
            input_scale=input_scale,
            output_scale=self._output_scale(start, x, y),
            mean_cost=mean_cost,
            cost=self.cost,
            build=build,
            num_features=d,
            structured=self.structured,
        )

    def _output_scale(self, start: Any, x: Array, y: Array) -> Array:
        """How far the start's images and y are apart, row by row; as ∇h if structured."""
        rows = min(x.shape[0], y.shape[0], _FEW)
        apart = start(x[:rows]) - y[:rows]
        if self.structured:
            apart = jax.vmap(jax.grad(self.cost.h))(apart)
        size = jnp.sqrt(jnp.mean(apart**2))
        return jnp.where(size > 0, size, 1)

    def _objective(self, mean_cost: Array) -> MapObjective:
        """Its numbers in units of the cost."""
        gap_epsilon = None if self.gap_epsilon is None else mean_cost * self.gap_epsilon
        return MapObjective(
            cost=self.cost,
            unit=mean_cost,
            epsilon=mean_cost * self.epsilon,
            gap_epsilon=gap_epsilon,
            gap_weight=self.gap_weight,
            symmetry_weight=self.symmetry_weight,
            gap_kind=self.gap_kind,
            max_iterations=self.max_iterations,
            tolerance=self.tolerance,
        )


def _problems(x: Any, y: Any, context: Any) -> tuple[Array, Array]:
    """The samples "g n d" of g problems; one problem without a context."""
    if context is None:
        x, y = training_samples(x, y)
        return x[None], y[None]
    check_shape("context", context, "g", "c")
    check_matrix(context=context)
    for name, rows in (("x", x), ("y", y)):
        check_shape(name, rows, context.shape[0], "n", "d")
    return jax.vmap(training_samples)(x, y)


def _pooled(rows: Float[Array, "g n d"]) -> Float[Array, "gn d"]:
    """The rows of all problems, so that every stretch of them has as many of each."""
    return jnp.swapaxes(rows, 0, 1).reshape(-1, rows.shape[2])


def _standard(x: Float[Array, "n d"], context: Any) -> tuple[Array, Array]:
    """Centre and scale of the network's input."""
    center, scale = mean_and_scale(x, jnp.ones_like(x[:, 0]))
    # A constant feature's scale is 1 whatever the unit.
    spread = jnp.sqrt(jnp.mean((x - center) ** 2))
    scale = jnp.full_like(scale, jnp.where(spread > 0, spread, 1))
    if context is None:
        return center, scale
    context = context.astype(x.dtype)
    own = mean_and_scale(context, jnp.ones_like(context[:, 0]))
    return jnp.concatenate([center, own[0]]), jnp.concatenate([scale, own[1]])


def _jittered(key: Key[Array, ""], params: PyTree[Array]) -> PyTree[Array]:
    """The parameters with a little noise."""
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    noisy = [
        leaf + 0.01 * jax.random.normal(key, leaf.shape, leaf.dtype)
        for key, leaf in zip(keys, leaves, strict=True)
    ]
    return structure.unflatten(noisy)
