"""Transport maps by a network, fitted to the target distribution at the least cost.

A map T from the distribution of x to that of y need not be the cheapest one. Here T minimises

    S_ε(T(x), y) / c̄  +  λ M(T) / c̄  +  w E ‖J − Jᵀ‖² / d,

the Sinkhorn divergence between images and targets, the Monge gap, which is zero only for optimal
maps, and optionally a penalty that keeps the Jacobian J symmetric, like that of a gradient. The
first two are in units of the mean cost c̄ within the samples, which does not depend on the distance
between them.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, Key, PyTree

from divjax.core.checks import (
    check_callable,
    check_choice,
    check_count,
    check_flag,
    check_matrix,
    check_nonnegative,
    check_number,
    check_positive,
    check_scalar,
    check_shape,
    check_weights,
    check_widths,
)
from divjax.core.differentiation import refuse_derivatives
from divjax.core.keys import own_key
from divjax.core.networks import BuildMLP, Network, init_network
from divjax.core.pytrees import pytree, static
from divjax.core.samples import Numbers, as_numbers, check_distinguishable
from divjax.core.standardize import Standardizer, mean_and_scale, robust_standardizer
from divjax.core.training import adam_with_cosine, fit
from divjax.core.types import status_of
from divjax.ot.costs import SqEuclidean
from divjax.ot.entropic.options import Sinkhorn, check_solver, check_solver_type
from divjax.ot.given_costs import checked_cost, grad_conjugate
from divjax.ot.maps.gap import KINDS
from divjax.ot.maps.map_objective import MapObjective
from divjax.ot.maps.map_training import MapTrainer, held_out
from divjax.ot.maps.network_map import MapFit
from divjax.ot.maps.starts import STARTS, initial_maps, nearest
from divjax.ot.protocols import DisplacementCost
from divjax.ot.scales import mean_cost_within, winsorised, winsorised_mean
from divjax.ot.weighted_samples import (
    Origins,
    WeightedSamples,
    normalised,
    split,
    squares_are_unresolved,
    uniform_weights,
    weighted_samples,
)

__all__ = ["MongeMap"]

# The limit on rows of each side that determine the output's unit.
_FEW = 1024

_NO_DERIVATIVE = (
    "a fitted map cannot be differentiated in its method's numbers: the derivative would pass "
    "through all training steps. Compare fits at several values instead."
)


@pytree
class MongeMap:
    """The cheapest map from the distribution of x to that of y, as a network.

    T minimises S_ε(T(x), y)/c̄ + λ M(T)/c̄ + w E‖J − Jᵀ‖²/d over minibatches: the debiased Sinkhorn
    divergence, λ times the Monge gap, w times the asymmetry of the Jacobian. c̄ is the mean cost
    within the samples, ½ E c(X, X′) + ½ E c(Y, Y′) with costs beyond ten times the median cut,
    so that neither a shift of one sample nor a few outliers change it. The network is added to an
    initial map in closed form. The parameters with the least objective on held-out rows are
    returned, with those of the initial map among the candidates.

    With b rows the divergence is biased: its self terms contain the zero distances of rows to
    themselves. It is minimised by a map with too little spread, which in many dimensions is far
    from the optimal one, and held-out rows do not reveal this bias. `independent_batches` takes the
    self term between two batches, OT(T(x), T(x′)), as in the energy distance. Its derivative at the
    exact map is zero in expectation for every b, at the price of another Sinkhorn problem per step
    and of more noise.

    A structured map is T = id − ∇h*∘F for a cost h(x − y) with h strictly convex. The network is
    added to the initial map's F: for the optimal map F is the gradient of a potential.

    A step solves four Sinkhorn problems of b × b, two of which belong to the Monge gap. With self
    terms of one batch it solves three, and a fourth if the gap has its own ε. `fit` is jitted.
    Gradients of the fit are stopped; the map is differentiable in its points and its own arrays.

    Attributes:
        cost: a symmetric cost of `divjax.ot`, or a function of two points.
        epsilon: ε > 0 of the divergence, as a share of c̄.
        gap_epsilon: ε of the Monge gap, a share of c̄ too, None for the same.
        gap_weight: λ ≥ 0.
        symmetry_weight: w ≥ 0, or None to omit the term. It requires a structured map or the
            squared Euclidean cost, as for other costs an optimal map's J is not symmetric. J is
            the Jacobian of F, or of an unstructured T, without a unit by the network's scales, and
            the term is estimated with one random direction per row.
        gap_kind: the kind of Monge gap, "debiased", "entropic" or "primal", as in `monge_gap`; None
            for a map that only fits.
        start: "identity"; "gaussian", the optimal map between Gaussians with the samples' moments
            (under the squared Euclidean cost), with outliers cut at ten standard deviations and
            covariances shrunk after Ledoit and Wolf; "entropic", that of `EntropicMap`, which
            stores the training rows, with ε selected by the held-out rows; or "auto", which
            compares all that the cost allows and takes the one whose images of held-out rows are
            nearest to held-out y in energy distance.
        structured: whether T = id − ∇h*∘F.
        independent_batches: whether the divergence's self terms are between two batches without a
            row in common. Those of the gap, whose samples are paired, never are.
        hidden: widths of the default network, a perceptron.
        network: `(in_features, rngs) -> nnx.Module`, from rows "b d" (with a context "b d+c") to
            "b d", compiled in as by `jax.jit`. Its initial output should be zero.
        learning_rate: Adam's initial rate, with a cosine schedule that ends at a hundredth of it.
        num_steps: optimizer steps, rounded up to a multiple of `num_checks`.
        batch_size: rows of x, and of y, per step; fewer if there are fewer, at most half of the
            rows of x if batches are independent.
        num_checks: the number of evaluations on held-out rows, at most one per step.
        solver: the options for each Sinkhorn problem of the objective, without `record_errors`, as
            the fit holds no errors. An entropic start has those of `EntropicMap`.

    Raises:
        ValueError: if a name is unknown, a number out of range, or the cost lacks the ∇h* that the
            structure or the entropic start requires.

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

    cost: Callable[..., Array] = SqEuclidean()
    epsilon: ArrayLike = 0.05
    gap_epsilon: ArrayLike | None = None
    gap_weight: ArrayLike = 1.0
    symmetry_weight: ArrayLike | None = None
    gap_kind: str | None = static(default="debiased")
    start: str = static(default="auto")
    structured: bool = static(default=False)
    independent_batches: bool = static(default=True)
    hidden: tuple[int, ...] = static(default=(64, 64, 64))
    network: Network | None = static(default=None)
    learning_rate: ArrayLike = 1e-3
    num_steps: int = static(default=2000)
    batch_size: int = static(default=512)
    num_checks: int = static(default=20)
    solver: Sinkhorn = Sinkhorn(tolerance=1e-2, max_iterations=200)

    def __post_init__(self):
        check_callable(cost=self.cost)
        check_choice((None, *KINDS), gap_kind=self.gap_kind)
        check_choice(STARTS, start=self.start)
        check_flag(structured=self.structured, independent_batches=self.independent_batches)
        if self.network is not None:
            check_callable(network=self.network)
        check_widths(hidden=self.hidden)
        check_positive(epsilon=self.epsilon, gap_epsilon=self.gap_epsilon)
        check_positive(learning_rate=self.learning_rate)
        check_solver_type(self.solver)
        check_nonnegative(gap_weight=self.gap_weight, symmetry_weight=self.symmetry_weight)
        counts = {"num_steps": self.num_steps, "num_checks": self.num_checks}
        check_count(1, **counts, batch_size=self.batch_size)
        # Both require ∇h*: without one this raises.
        if self.structured or self.start == "entropic":
            grad_conjugate(self.cost)
        # For other costs an optimal map has no symmetric Jacobian.
        squared = isinstance(self.cost, SqEuclidean)
        if self.symmetry_weight is not None and not (self.structured or squared):
            raise ValueError(
                "symmetry_weight needs structured=True or the squared Euclidean cost; got the cost "
                f"{type(self.cost).__name__}."
            )

    def fit(
        self,
        key: Key[Array, ""],
        x: Float[Numbers, "n d"] | Float[Numbers, "g n d"],
        y: Float[Numbers, "m d"] | Float[Numbers, "g m d"],
        context: Float[Numbers, "g c"] | None = None,
        *,
        a: Float[Numbers, " n"] | Float[Numbers, "g n"] | None = None,
        b: Float[Numbers, " m"] | Float[Numbers, "g m"] | None = None,
        optimizer: optax.GradientTransformation | None = None,
    ) -> MapFit:
        """Fit the map, or with a context g maps that share one network.

        A fifth of the rows of each side, at most 1024, is held out. With a context each step takes
        one of the g problems, and the start and c̄ are those of all rows together.

        Args:
            key: the key for the split, the network and the batches.
            x: samples of the source distribution.
            y: samples of the target distribution, unpaired with x.
            context: one vector per problem, which is appended to the network's input rows, in units
                of its features' standard deviations without outliers. Values far from all others
                are compressed by an increasing function.
            a: weights of x, non-negative, with any sum, uniform by default. Batches draw rows in
                proportion to them. Rows of weight zero are padding.
            b: weights of y.
            optimizer: replaces Adam with the cosine schedule.

        Returns:
            The map, a function of rows.

        Raises:
            ValueError: if shapes do not fit or a sample has fewer than three rows, or if the fit is
                differentiated with respect to a numeric attribute of the method.
        """
        key = own_key(key)
        check_number(epsilon=self.epsilon, gap_weight=self.gap_weight)
        check_number(learning_rate=self.learning_rate)
        check_solver(self.solver, records=False, result="a MapFit")
        check_scalar(gap_epsilon=self.gap_epsilon, symmetry_weight=self.symmetry_weight)
        # Under the squared distance a shift of either sample only shifts the map. The identity is
        # that of the given coordinates.
        apart = isinstance(self.cost, SqEuclidean) and self.start != "identity"
        if not isinstance(self.cost, DisplacementCost):
            x, y = _at_their_positions(x, a, "x", "a"), _at_their_positions(y, b, "y", "b")
        samples, origins = _problems(x, y, a, b, context, apart=apart)
        # Arrays in a function's closure become leaves, which may be traced.
        cost = checked_cost(self.cost, samples.x)
        method = refuse_derivatives(dataclasses.replace(self, cost=cost), _NO_DERIVATIVE)
        found = method._fit(key, samples, context, optimizer=optimizer)
        # The fit is relative to the origins, which the map subtracts and adds.
        return dataclasses.replace(found, origins=origins)

    @functools.partial(jax.jit, static_argnames="optimizer")
    def _fit(
        self,
        key: Key[Array, ""],
        samples: WeightedSamples,
        context: Float[Array, "g c"] | None,
        *,
        optimizer: optax.GradientTransformation | None,
    ) -> MapFit:
        """`fit` after its checks, relative to the samples' origins."""
        split_key, init_key, jitter_key, held_out_key, fit_key = jax.random.split(key, 5)
        train, held = jax.vmap(split, (None, 0))(split_key, samples)

        # The unit of costs, the start, and the network in units of the samples.
        pooled = _pooled(train)
        mean_cost = mean_cost_within(self.cost, *pooled)
        # Held-out rows select the start, and later the parameters.
        starts = initial_maps(self.start, self.cost, self.epsilon, pooled, _pooled(held))
        start = nearest(starts, held)
        map_fit = self._map(init_key, start, mean_cost, pooled, context)
        params = map_fit.params
        if self.structured and not isinstance(self.cost, SqEuclidean):
            # At F = 0 the slope of ∇h* may be infinite, which would rule out any step.
            params = _jittered(jitter_key, params)
        # The start is not trained: its images are computed once.
        held_images = jax.lax.map(start, held.x)
        trainer = MapTrainer(
            objective=self._objective(mean_cost),
            map_fit=map_fit,
            train=train,
            images=jax.lax.map(start, train.x),
            context=context,
            held=held_out(held, held_images, context, self.independent_batches),
            held_out_key=held_out_key,
            # Two batches with rows in common would not be independent.
            num_batches=2 if self.independent_batches and train.x.shape[1] > 1 else 1,
            batch_size=self.batch_size,
        )
        # These terms do not depend on the map: they are solved once, rather than at every check.
        constants = trainer.constants()
        trained = fit(
            fit_key,
            trainer.loss,
            params,
            optimizer or adam_with_cosine(self.learning_rate, self.num_steps, train.x.dtype),
            num_steps=self.num_steps,
            validate=lambda params: trainer.objective.value(trainer.validate(params, constants)),
            num_checks=self.num_checks,
        )
        # The best check's parameters, possibly those of the start.
        terms = trainer.validate(trained.params, constants)
        finite = trained.finite & jnp.isfinite(terms.divergence) & jnp.isfinite(terms.gap)
        # A divergence has no scale that tells a bad fit from a good one: laws are tested instead.
        missed = trainer.misfit(trained.params, held, held_images)
        return dataclasses.replace(
            map_fit,
            params=trained.params,
            losses=trained.losses,
            validation=trained.validation,
            divergence=terms.divergence,
            gap=terms.gap,
            misfit=missed,
            status=status_of(
                converged=terms.converged & (missed <= 1),
                resolved=~squares_are_unresolved(pooled.x, pooled.y),
                finite=finite,
                valid=self._valid(optimizer),
            ),
        )

    def _valid(self, optimizer: optax.GradientTransformation | None) -> Array:
        """Whether traced numbers are in range."""
        positive = [self.epsilon, self.gap_epsilon]
        # A given optimizer has its own learning rate.
        if optimizer is None:
            positive.append(self.learning_rate)
        ranges = [jnp.asarray(number) > 0 for number in positive if number is not None]
        weights = self.gap_weight, self.symmetry_weight
        ranges += [jnp.asarray(weight) >= 0 for weight in weights if weight is not None]
        return jnp.stack(ranges).all() & self.solver.valid

    def _map(
        self,
        key: Key[Array, ""],
        start: Callable[[Array], Array],
        mean_cost: Array,
        pooled: WeightedSamples,
        context: Float[Array, "g c"] | None,
    ) -> MapFit:
        """The initial map, with its network in units of the samples."""
        x = pooled.x
        d = x.shape[1]
        build = BuildMLP(self.hidden, d) if self.network is None else self.network
        # The network takes inputs of size one, and its output is in units of the start's error.
        standard = _standard(x, pooled.a, context)
        limits = jnp.asarray(standard.lower)[d:], jnp.asarray(standard.upper)[d:]
        return MapFit(
            params=init_network(build, key, standard.mean.shape[0], x.dtype),
            start=start,
            center=standard.mean,
            input_scale=standard.scale,
            context_limits=None if context is None else limits,
            output_scale=self._output_scale(start, pooled),
            mean_cost=mean_cost,
            cost=self.cost,
            build=build,
            num_features=d,
            structured=self.structured,
        )

    def _output_scale(self, start: Callable[[Array], Array], pooled: WeightedSamples) -> Array:
        """The distance between the start's images and y, row by row, as ∇h if structured."""
        x, y, a, b = pooled
        rows = min(x.shape[0], y.shape[0], _FEW)
        # The rows are unpaired, which suffices for a scale; a pair's weight is the product of the
        # rows' weights.
        apart = start(x[:rows]) - y[:rows]
        if self.structured:
            # The network adds to F, which is a ∇h of displacements.
            apart = jax.vmap(jax.grad(self.cost.h))(apart)
        weights = jnp.ones(rows, x.dtype)
        for given in (a, b):
            weights = weights if given is None else weights * given[:rows]
        # Distances are cut at ten medians, so that outliers do not set the unit.
        size = jnp.sqrt(winsorised_mean(jnp.mean(apart**2, axis=1), weights / jnp.sum(weights)))
        return jnp.where(size > 0, size, 1)

    def _objective(self, mean_cost: Array) -> MapObjective:
        """The objective in units of the cost, or 1 if samples are constant or not finite."""
        # ε and the gap are in units of the mean cost, which coincident samples do not have.
        has_unit = (mean_cost > 0) & jnp.isfinite(mean_cost)
        mean_cost = jnp.where(has_unit, mean_cost, 1)
        gap_epsilon = None if self.gap_epsilon is None else mean_cost * self.gap_epsilon
        return MapObjective(
            cost=self.cost,
            unit=mean_cost,
            epsilon=mean_cost * self.epsilon,
            gap_epsilon=gap_epsilon,
            gap_weight=self.gap_weight,
            symmetry_weight=self.symmetry_weight,
            gap_kind=self.gap_kind,
            solver=self.solver,
        )


def _at_their_positions(
    rows: Numbers, weights: Numbers | None, of_rows: str, of_weights: str
) -> Array:
    """Rows in JAX's dtype, not centred, for a cost that may depend on positions."""
    given = as_numbers(of_rows, rows)
    if given.ndim > 1:
        weights = None if weights is None else as_numbers(of_weights, weights).ravel()
        check_distinguishable(of_rows, given.reshape(-1, given.shape[-1]), weights)
    return jnp.asarray(given)


def _problems(
    x: Numbers,
    y: Numbers,
    a: Numbers | None,
    b: Numbers | None,
    context: Float[Array, "g c"] | None,
    *,
    apart: bool,
) -> tuple[WeightedSamples, Origins]:
    """The samples "g n d" of g problems, with weights "g n", with g = 1 without a context."""
    if context is None:
        samples, origins = weighted_samples(x, y, a, b, apart=apart, least=3)
        # A single problem has the leading axis, too.
        return jax.tree.map(lambda v: v[None], samples), origins
    check_shape("context", context, "g", "c")
    check_matrix(context=context)
    g = context.shape[0]
    for name, rows in (("x", x), ("y", y)):
        check_shape(name, rows, g, "n", "d")
        if rows.shape[1] < 3:
            raise ValueError(f"{name} must have at least 3 rows; got {rows.shape[1]}.")
    for name, rows, weights in (("a", x, a), ("b", y, b)):
        if weights is not None:
            check_shape(name, weights, g, rows.shape[1])
            check_weights(name, weights)
    # All problems share one dtype and one origin, as they share the network.
    flat = lambda v: None if v is None else v.reshape(-1, *v.shape[2:])
    samples, origins = weighted_samples(*(flat(v) for v in (x, y, a, b)), apart=apart)
    samples = jax.tree.map(lambda v: v.reshape(g, -1, *v.shape[1:]), samples)
    # Within a problem weights sum to one: its share of the total mass has no effect.
    of_problems = lambda w: None if w is None else jax.vmap(normalised)(w)
    return samples._replace(a=of_problems(samples.a), b=of_problems(samples.b)), origins


def _pooled(samples: WeightedSamples) -> WeightedSamples:
    """The rows of all problems, interleaved so that every stretch has equally many of each."""
    flat = lambda v: jnp.swapaxes(v, 0, 1).reshape(-1, *v.shape[2:])
    pooled = jax.tree.map(flat, samples)
    return pooled._replace(a=normalised(pooled.a), b=normalised(pooled.b))


def _standard(
    x: Float[Array, "n d"], weights: Float[Array, " n"] | None, context: Float[Array, "g c"] | None
) -> Standardizer:
    """Centre and scale of the network's input, from rows without outliers."""
    weights = uniform_weights(x) if weights is None else weights
    x = winsorised(x, weights)
    center, scale = mean_and_scale(x, weights)
    # A constant feature has scale 1 in any unit.
    spread = jnp.sqrt(jnp.mean(weights @ (x - center) ** 2))
    scale = jnp.full_like(scale, jnp.where(spread > 0, spread, 1))
    limit = jnp.full_like(scale, jnp.inf)
    standard = Standardizer(center, scale, -limit, limit)
    if context is None:
        return standard
    # Each feature of the context has its own unit, unlike the features of rows, which the cost
    # compares.
    context = context.astype(x.dtype)
    own = robust_standardizer((context, uniform_weights(context)), keep_tails=True)
    return Standardizer(*map(jnp.append, standard, own))


def _jittered(key: Key[Array, ""], params: PyTree[Array]) -> PyTree[Array]:
    """The parameters with a little noise."""
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    # Enough for F to differ from zero, and small relative to a perceptron's usual weights.
    noisy = [
        leaf + 0.01 * jax.random.normal(key, leaf.shape, leaf.dtype)
        for key, leaf in zip(keys, leaves, strict=True)
    ]
    return structure.unflatten(noisy)
