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
    check_count,
    check_full_precision,
    check_key,
    check_matrix,
    check_nonnegative,
    check_positive,
    check_same_features,
    check_shape,
    check_widths,
)
from divjax.core.networks import BuildMLP, Network, init_network
from divjax.core.pytrees import pytree, static
from divjax.core.standardize import mean_and_scale
from divjax.core.training import adam_with_cosine, fit, hold_out, row_batch
from divjax.ot.costs import SqEuclidean, conjugate_gradient, cost_matrix, paired_costs
from divjax.ot.divergence import self_transport
from divjax.ot.map_starts import STARTS, IdentityMap, entropic_start, gaussian_start, thinned
from divjax.ot.monge_gap import KINDS, monge_gap_from_samples
from divjax.ot.network_map import MapFit
from divjax.ot.sinkhorn import sinkhorn

__all__ = ["MongeMap"]

# Rows of each side that the mean cost and the output's unit are from at most.
_SCALE_ROWS = 1024


@pytree
class MongeMap:
    """The map from the law of x to that of y that costs least, as a network.

    T minimises S_ε(T(x), y)/c̄ + λ M(T)/c̄ + w E‖J − Jᵀ‖²/d over minibatches: the debiased Sinkhorn
    divergence, λ times the Monge gap, w times the asymmetry of the Jacobian; c̄ is the mean cost
    between x and y. The network is added to a start in closed form; the parameters kept are those
    of the check with the least objective on held-out rows, and the start itself is one of them.

    The divergence of b rows is biased, that of the held-out rows too: rows are far from each other,
    and at no distance from themselves, so that its least is at a map with too little spread, in
    many dimensions far from the exact one. `independent` takes OT(T(x), T(x′)) of two batches for
    the self term instead, as the energy distance has it: at the exact map its derivative is zero
    in expectation whatever b, for another Sinkhorn problem a step and more noise.

    Structured, T = id − ∇h*∘F for a cost h(x − y) with h strictly convex, and the network is added
    to the start's F: for the optimal map F is the gradient of a potential.

    A step solves three Sinkhorn problems of b × b, one of which the Monge gap adds (a fourth where
    its ε is another). It compiles as a whole: jit it. The fit is a constant to differentiation; the
    map is differentiable in its points and its own arrays.

    Attributes:
        cost: a symmetric cost of `divjax.ot`, or a function of two points.
        epsilon: ε > 0 of the divergence, as a share of the mean cost c̄ between x and y.
        gap_epsilon: that of the Monge gap, a share of c̄ too; None for the same.
        gap_weight: λ ≥ 0.
        symmetry_weight: w ≥ 0, or None for no such term. It takes a structured map, or the squared
            Euclidean cost: of other costs no optimal map's J is symmetric. J is that of F in its
            unit, estimated with one random direction a row.
        gap: the kind of Monge gap, "debiased", "entropic" or "primal"; None for a map that only
            fits.
        start: "identity"; "gaussian", the optimal map between the Gaussians with the samples'
            moments (under the squared Euclidean cost); or "entropic", the mean of entropic maps,
            one of each block of at most 4096 rows, with ε chosen by the held-out rows. As each is
            the gradient of a convex function (squared Euclidean cost), so is their mean.
        structured: whether T = id − ∇h*∘F.
        independent: whether the divergence's self terms are of two independent batches each; the
            gap's never are, whose samples are paired.
        hidden: widths of the default network, a perceptron.
        network: `(in_features, rngs) -> nnx.Module`, from rows "b d" (with a context "b d+c") to
            "b d". Its output had better start at zero.
        learning_rate: Adam's, the first of a cosine schedule that ends at a hundredth of it.
        num_steps: steps.
        batch_size: rows of x, and of y, a step; fewer where there are fewer.
        num_checks: how often the held-out rows are consulted.
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
    gap: str | None = static(default="debiased")
    start: str = static(default="identity")
    structured: bool = static(default=False)
    independent: bool = static(default=True)
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
        if self.gap not in (None, *KINDS):
            raise ValueError(f"gap must be None or one of {', '.join(KINDS)}; got {self.gap!r}.")
        if self.start not in STARTS:
            raise ValueError(f"start must be one of {', '.join(STARTS)}; got {self.start!r}.")
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
            conjugate_gradient(self.cost)
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
        x, y = _families(x, y, context)
        split_key, init_key, jitter_key, fit_key = jax.random.split(key, 4)
        keys = jax.random.split(split_key)
        parts = [jax.vmap(hold_out, (None, 0))(k, z) for k, z in zip(keys, (x, y), strict=True)]
        train, held_out = zip(*parts, strict=True)
        pooled = [rows.reshape(-1, rows.shape[2]) for rows in train]
        few = [thinned(rows, _SCALE_ROWS) for rows in pooled]
        mean_cost = jnp.mean(cost_matrix(self.cost, *few))
        start = self._start(
            pooled, [rows.reshape(-1, rows.shape[2]) for rows in held_out], mean_cost
        )
        d = x.shape[2]
        build = BuildMLP(self.hidden, d) if self.network is None else self.network
        center, input_scale = _standard(pooled[0], context)
        output_scale = self._output_scale(start, *pooled)
        map_fit = MapFit(
            init_network(build, init_key, center.shape[0], x.dtype),
            start,
            center,
            input_scale,
            output_scale,
            mean_cost,
            self.cost,
            build,
            d,
            self.structured,
        )
        params = map_fit.params
        if self.structured and not isinstance(self.cost, SqEuclidean):
            # At F = 0 the slope of ∇h* may be infinite, with which no step would be taken.
            params = _jittered(jitter_key, params)

        family = lambda rows: jax.lax.map(start, rows)
        (x, y), images = train, family(train[0])
        size = min(self.batch_size, x.shape[1], y.shape[1])

        def loss(key: Key[Array, ""], params: Any) -> Float[Array, ""]:
            which_key, x_key, y_key, direction_key = jax.random.split(key, 4)
            which = jax.random.randint(which_key, (), 0, x.shape[0])
            i, j = row_batch(x_key, x.shape[1], size), row_batch(y_key, y.shape[1], size)
            rows = x[which, i], images[which, i], y[which, j]
            own, other = None if context is None else context[which], None
            if self.independent:
                k = row_batch(jax.random.fold_in(x_key, 0), x.shape[1], size)
                other = x[which, k], images[which, k]
            divergence, gap, _ = self._terms(map_fit, params, *rows, own, other)
            asymmetry = self._asymmetry(map_fit, direction_key, params, rows[0], own)
            return self._objective(divergence, gap, asymmetry, mean_cost)

        held_images, direction_key = family(held_out[0]), jax.random.fold_in(fit_key, 0)
        constants = jax.lax.map(lambda rows: self._constants(rows[0], rows[1], mean_cost), held_out)

        def evaluate(params: Any) -> tuple[Array, Array, Array, Array]:
            def one(problem):
                x, images, y, own, constants = problem
                (x, other_x), (images, other), (y, _) = (
                    self._samples(rows) for rows in (x, images, y)
                )
                others = (other_x, other) if self.independent else None
                terms = self._terms(map_fit, params, x, images, y, own, others)
                divergence, gap = terms[0] + constants[0], terms[1] + constants[1]
                asymmetry = self._asymmetry(map_fit, direction_key, params, x, own)
                return divergence, gap, asymmetry, terms[2] & constants[2]

            problems = held_out[0], held_images, held_out[1], context, constants
            *terms, converged = jax.lax.map(one, problems)
            divergence, gap, asymmetry = (jnp.mean(term) for term in terms)
            return divergence, gap, asymmetry, jnp.all(converged)

        validate = lambda params: self._objective(*evaluate(params)[:3], mean_cost)
        trained = fit(
            fit_key,
            loss,
            params,
            optimizer or adam_with_cosine(self.learning_rate, self.num_steps, x.dtype),
            num_steps=self.num_steps,
            validate=validate,
            num_checks=self.num_checks,
        )
        divergence, gap, _, converged = evaluate(trained.params)
        return dataclasses.replace(
            map_fit,
            params=trained.params,
            losses=trained.losses,
            validation=trained.validation,
            divergence=divergence,
            gap=gap,
            converged=converged,
            finite=trained.finite & jnp.isfinite(divergence) & jnp.isfinite(gap),
        )

    def _solver(self) -> Any:
        return {
            "cost": self.cost,
            "max_iterations": self.max_iterations,
            "tolerance": self.tolerance,
        }

    def _start(self, train: Any, held_out: Any, mean_cost: Array) -> Any:
        """The map that the network is added to."""
        if self.start == "identity":
            return IdentityMap()
        if self.start == "gaussian":
            return gaussian_start(*train)
        epsilon = mean_cost * self.epsilon
        return entropic_start(train, held_out, cost=self.cost, mean_cost=mean_cost, epsilon=epsilon)

    def _output_scale(self, start: Any, x: Array, y: Array) -> Array:
        """How far the start's images and y are apart, row by row; as ∇h if structured."""
        rows = min(x.shape[0], y.shape[0], _SCALE_ROWS)
        apart = start(x[:rows]) - y[:rows]
        if self.structured:
            apart = jax.vmap(jax.grad(self.cost.h))(apart)
        size = jnp.sqrt(jnp.mean(apart**2))
        return jnp.where(size > 0, size, 1)

    def _terms(
        self,
        map_fit: MapFit,
        params: Any,
        x: Float[Array, "b d"],
        started: Float[Array, "b d"],
        y: Float[Array, "m d"],
        context: Any,
        other: tuple[Array, Array] | None = None,
    ) -> tuple[Array, Array, Array]:
        """S and M without what no map changes, x and y to themselves; whether all converged."""

        def carried(x: Array, started: Array) -> Array:
            each = None
            if context is not None:
                each = jnp.broadcast_to(context, (x.shape[0], *context.shape))
            return map_fit.image(params, x, started, each)

        images = carried(x, started)
        epsilon, gap_epsilon = self._epsilons(map_fit.mean_cost)
        settings: Any = self._solver()

        def solved(x: Array, y: Array, epsilon: Array) -> tuple[Array, Array]:
            result = sinkhorn(x, y, epsilon=epsilon, **settings)
            return result.value, result.converged

        own, own_converged = self._to_itself(images, epsilon)
        spread = own
        if other is not None:
            spread, converged = solved(images, carried(*other), epsilon)
            own_converged = own_converged & converged
        if self.gap is None:
            value, converged = solved(images, y, epsilon)
            return value - spread / 2, jnp.zeros_like(own), converged & own_converged
        if self.gap != "debiased":
            value, converged = solved(images, y, epsilon)
            options = settings | {"epsilon": gap_epsilon, "kind": self.gap}
            found = monge_gap_from_samples(x, images, **options)
            converged = converged & own_converged & found.converged
            return value - spread / 2, found.value, converged
        displacement = jnp.mean(paired_costs(self.cost, x, images))
        if x.shape == y.shape:
            # One program for both takes half as long to compile, and no longer to run.
            both = jnp.stack([images, x]), jnp.stack([y, images]), jnp.stack([epsilon, gap_epsilon])
            (value, transport), converged = jax.lax.map(lambda problem: solved(*problem), both)
        else:
            value, first = solved(images, y, epsilon)
            transport, second = solved(x, images, gap_epsilon)
            converged = first & second
        converged = jnp.all(converged) & own_converged
        divergence = value - spread / 2
        if self.gap_epsilon is not None:
            own, own_converged = self._to_itself(images, gap_epsilon)
            converged = converged & own_converged
        return divergence, displacement - transport + own / 2, converged

    def _constants(self, x: Array, y: Array, mean_cost: Array) -> tuple[Array, Array, Array]:
        """What `_terms` left out of S and of M, and whether that converged."""
        epsilon, gap_epsilon = self._epsilons(mean_cost)
        (x, _), (y, other) = self._samples(x), self._samples(y)
        if self.independent:
            result = sinkhorn(y, other, epsilon=epsilon, **self._solver())
            of_y, converged = result.value, result.converged
        else:
            of_y, converged = self._to_itself(y, epsilon)
        if self.gap != "debiased":
            return -of_y / 2, jnp.zeros_like(of_y), converged
        of_x, also = self._to_itself(x, gap_epsilon)
        return -of_y / 2, of_x / 2, converged & also

    def _samples(self, rows: Float[Array, "n d"]) -> tuple[Array, Array]:
        """The held-out rows and themselves; independent, either half of them."""
        if not self.independent:
            return rows, rows
        half = max(1, rows.shape[0] // 2)
        return rows[:half], rows[-half:]

    def _epsilons(self, mean_cost: Array) -> tuple[Array, Array]:
        """In units of the cost."""
        gap_epsilon = self.epsilon if self.gap_epsilon is None else self.gap_epsilon
        return mean_cost * self.epsilon, mean_cost * gap_epsilon

    def _to_itself(self, x: Float[Array, "b d"], epsilon: Array) -> tuple[Array, Array]:
        """OT(x, x), and whether it converged."""
        result = self_transport(x, epsilon=epsilon, **self._solver())
        return result.value, result.converged

    def _asymmetry(
        self, map_fit: MapFit, key: Key[Array, ""], params: Any, x: Array, context: Any
    ) -> Array:
        """E‖J − Jᵀ‖²/d, from one direction v of random signs a row: E_v |(J − Jᵀ) v|²."""
        if self.symmetry_weight is None:
            return jnp.zeros((), x.dtype)
        if context is not None:
            context = jnp.broadcast_to(context, (x.shape[0], *context.shape))
        field = lambda x: map_fit.change(params, x, context) * map_fit.input_scale[0]
        v = jax.random.rademacher(key, x.shape, x.dtype)
        _, forwards = jax.jvp(field, (x,), (v,))
        backwards = jax.vjp(field, x)[1](v)[0]
        return jnp.mean(((forwards - backwards) / map_fit.output_scale) ** 2)

    def _objective(self, divergence: Array, gap: Array, asymmetry: Array, unit: Array) -> Array:
        value = divergence if self.gap is None else divergence + self.gap_weight * gap
        value = value / unit
        return value if self.symmetry_weight is None else value + self.symmetry_weight * asymmetry


def _families(x: Any, y: Any, context: Any) -> tuple[Array, Array]:
    """The samples "g n d" of g problems, constants; one problem without a context."""
    if context is None:
        check_matrix(x=x, y=y)
        x, y = x[None], y[None]
    else:
        check_shape("context", context, "g", "c")
        check_matrix(context=context)
        for name, rows in (("x", x), ("y", y)):
            check_shape(name, rows, context.shape[0], "n", "d")
            check_matrix(**{name: rows[0]})
    check_same_features(x[0], y[0])
    for name, rows in (("x", x), ("y", y)):
        check_full_precision(name, rows)
        if rows.shape[1] < 2:
            raise ValueError(f"{name} must have at least 2 rows; got {rows.shape[1]}.")
    dtype = jnp.result_type(x, y)
    return tuple(jax.lax.stop_gradient(jnp.asarray(rows, dtype)) for rows in (x, y))  # pyright: ignore


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
