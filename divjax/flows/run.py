"""Running a flow: `init`, `step`, and `run`, a scan over `step` that records what happened."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from divjax.core.pytrees import num_particles, ravel_particles
from divjax.flows.aggregators import MinNorm
from divjax.flows.dynamics import ParticleWeights
from divjax.flows.types import Aggregator, Objective, Velocity

__all__ = ["FlowResult", "FlowState", "History", "StepInfo", "init", "run", "step"]

# Steps fold their number into the key; initialisation folds a number that no step reaches.
_INIT = 2**32 - 1


class FlowState(NamedTuple):
    """Everything a flow carries from one step to the next; a pytree of arrays.

    Attributes:
        particles: as given to `init`.
        particle_weights: the particles' masses, summing to one.
        objectives: a state for each objective.
        velocity: the velocity's state (a bandwidth, a network).
        aggregator: the aggregator's state.
        optimizer: the optax state.
        reaction: the state of `particle_weights`.
        step: the number of steps taken.
        finite: whether every objective value and every update so far was finite.
    """

    particles: PyTree[Array]
    particle_weights: Float[Array, " n"]
    objectives: tuple[Any, ...]
    velocity: Any
    aggregator: Any
    optimizer: optax.OptState
    reaction: Any
    step: Int[Array, ""]
    finite: Bool[Array, ""]


class StepInfo(NamedTuple):
    """What a step saw at the particles it started from.

    Attributes:
        values: the K energies E_k(q).
        weights: the K objective weights.
        grad_norm: Σ_i a_i ‖v(x_i)‖² of the field v that moves the particles, Σ_k w_k v_k (and on
            leaves that are not shared the objectives' own); zero at a Pareto stationary
            distribution.
    """

    values: Float[Array, " k"]
    weights: Float[Array, " k"]
    grad_norm: Float[Array, ""]


class History(NamedTuple):
    """`StepInfo` at the recorded steps, stacked; entry t is the state after `step[t]` steps."""

    step: Int[Array, " t"]
    values: Float[Array, "t k"]
    weights: Float[Array, "t k"]
    grad_norm: Float[Array, " t"]
    observed: Any


class FlowResult(NamedTuple):
    """Where a flow ended, whether it can be trusted, and how it got there.

    Attributes:
        particles: the final particles.
        particle_weights: their masses, equal unless the run was given `particle_weights`.
        finite: False if any value or update was not finite; the particles are then those of the
            last step whose update was finite.
        history: the recorded steps.
        state: the complete final state; hand it to `run` to continue.
    """

    particles: PyTree[Array]
    particle_weights: Float[Array, " n"]
    finite: Bool[Array, ""]
    history: History
    state: FlowState


def _check_inputs(particles: PyTree[Array], objectives: Sequence[Objective]) -> None:
    if not isinstance(objectives, Sequence):
        raise ValueError(
            "objectives must be a sequence of objectives, such as (flows.KL(log_prob),); "
            f"got {type(objectives).__name__}."
        )
    if len(objectives) == 0:
        raise ValueError("objectives must hold at least one objective; got none.")
    for index, objective in enumerate(objectives):
        if not isinstance(objective, Objective):
            raise ValueError(
                f"objectives[{index}] is not an objective: it needs `entropy`, `init` and "
                f"`__call__`; got {type(objective).__name__}."
            )
    if hasattr(particles, "shape") and len(particles.shape) != 2:
        raise ValueError(
            "particles given as one array must have shape (n, d); "
            f"got shape {particles.shape}. Put other shapes in a pytree, such as a dictionary."
        )
    num_particles(particles)
    for leaf in jax.tree.leaves(particles):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise ValueError(f"particles must be floating-point; got {jnp.result_type(leaf)}.")


def _featurise(
    features: Callable[..., Array] | None, key: Key[Array, ""], particles: PyTree[Array]
) -> tuple[Float[Array, "n p"], Callable[[Float[Array, "n p"]], Float[Array, "n d"]]]:
    """What the kernel compares, and the pull-back of a covector field there to the particles."""
    if features is None:
        return ravel_particles(particles)[0], lambda field: field
    x, pull_back = jax.vjp(lambda p: jax.vmap(features, (None, 0))(key, p), particles)
    if x.ndim != 2:
        raise ValueError(
            "features must map (key, particle) to a vector; "
            f"got an array of shape {x.shape[1:]} for a particle."
        )
    return x, lambda field: ravel_particles(pull_back(field)[0])[0]


def _shared_mask(shared: PyTree[bool], particles: PyTree[Array]) -> Bool[Array, " d"]:
    """Which columns of the raveled particles belong to shared leaves."""
    if jax.tree.structure(shared) != jax.tree.structure(particles):
        raise ValueError(
            "shared must have the structure of particles, a boolean a leaf; "
            f"got {jax.tree.structure(shared)} for {jax.tree.structure(particles)}."
        )
    filled = jax.tree.map(lambda leaf, flag: jnp.full(leaf.shape, flag), particles, shared)
    return ravel_particles(filled)[0][0].astype(bool)


def init(
    key: Key[Array, ""],
    particles: PyTree[Array],
    objectives: Sequence[Objective],
    *,
    velocity: Velocity,
    aggregator: Aggregator = MinNorm(),
    optimizer: optax.GradientTransformation,
    features: Callable[..., Array] | None = None,
    particle_weights: ParticleWeights | None = None,
) -> FlowState:
    """The state of a flow before its first step, all arguments checked.

    Args: as `run`.

    Returns:
        The state to hand to `step`.

    Raises:
        ValueError: as `run`.
    """
    _check_inputs(particles, objectives)
    particles = jax.tree.map(jnp.asarray, particles)
    n = num_particles(particles)
    objective_key, velocity_key = jax.random.split(jax.random.fold_in(key, _INIT))
    x, _ = _featurise(features, objective_key, particles)
    return FlowState(
        particles=particles,
        particle_weights=jnp.full(n, 1 / n, ravel_particles(particles)[0].dtype),
        objectives=tuple(objective.init(objective_key, particles) for objective in objectives),
        velocity=velocity.init(velocity_key, x),
        aggregator=aggregator.init(len(objectives)),
        optimizer=optimizer.init(particles),
        reaction=() if particle_weights is None else particle_weights.init(x),
        step=jnp.zeros((), jnp.int32),
        finite=jnp.ones((), bool),
    )


def step(
    key: Key[Array, ""],
    state: FlowState,
    objectives: Sequence[Objective],
    *,
    velocity: Velocity,
    aggregator: Aggregator = MinNorm(),
    optimizer: optax.GradientTransformation,
    features: Callable[..., Array] | None = None,
    shared: PyTree[bool] | None = None,
    particle_weights: ParticleWeights | None = None,
) -> tuple[FlowState, StepInfo]:
    """One step: energies' gradients, velocities, weights over them, optimizer, noise, masses.

    Args: as `run`; `key` is the run's key, into which the step's number is folded here.

    Returns:
        The next state, and what was seen at the current one.
    """
    objective_key, velocity_key, aggregator_key, noise_key = jax.random.split(
        jax.random.fold_in(key, state.step), 4
    )
    particles, masses = state.particles, state.particle_weights
    flat, unravel = ravel_particles(particles)

    variations, objective_states = [], []
    for index, (objective, carried) in enumerate(zip(objectives, state.objectives, strict=True)):
        variation, carried = objective(objective_key, particles, masses, carried)
        if jnp.shape(variation.value) != ():
            raise ValueError(
                f"objectives[{index}] must return a scalar value; "
                f"got shape {jnp.shape(variation.value)}."
            )
        variations.append(variation)
        objective_states.append(carried)
    gradients = jnp.stack([ravel_particles(v.gradient)[0] for v in variations])
    values = jnp.stack([v.value for v in variations])
    entropies = jnp.stack([jnp.asarray(o.entropy, flat.dtype) for o in objectives])

    x, pull_back = _featurise(features, objective_key, particles)
    drift, repulsion, velocity_state = velocity(velocity_key, x, masses, gradients, state.velocity)
    repulsion = pull_back(repulsion)
    fields = drift + entropies[:, None, None] * repulsion

    mask = None if shared is None else _shared_mask(shared, particles)
    compared = fields if mask is None else jnp.where(mask, fields, 0)
    weights, aggregator_state = aggregator(aggregator_key, compared, masses, state.aggregator)
    if weights.shape != (len(objectives),):
        raise ValueError(
            f"aggregator must return {len(objectives)} weights, one an objective; "
            f"got shape {weights.shape}."
        )
    entropy = jnp.dot(weights, entropies)
    # Where the fields nearly cancel, their sum must keep its digits.
    direction = jnp.tensordot(weights, fields, 1, precision="highest")
    if mask is not None:
        # An objective's own leaves get no gradient from the others: there is nothing to trade off.
        direction = jnp.where(mask, direction, drift.sum(0) + entropy * repulsion)
    # A hyper-parameter given as an array of a wider type must not change the particles'.
    direction = direction.astype(flat.dtype)

    descent = unravel(-direction)
    updates, optimizer_state = optimizer.update(descent, state.optimizer, particles)
    if getattr(velocity, "diffuses", False):
        updates = _diffuse(noise_key, updates, descent, optimizer, state, entropy)
    moves = jnp.isfinite(ravel_particles(updates)[0]).all()
    moved = jax.tree.map(
        lambda new, old: jnp.where(moves, new, old),
        optax.apply_updates(particles, updates),
        particles,
    )
    reaction_state = state.reaction
    if particle_weights is not None:
        potential = jnp.dot(weights, jnp.stack([v.potential for v in variations]))
        masses, reaction_state = particle_weights(x, masses, potential, entropy, state.reaction)
        masses = masses.astype(state.particle_weights.dtype)

    next_state = FlowState(
        particles=moved,
        particle_weights=masses,
        objectives=tuple(objective_states),
        velocity=velocity_state,
        aggregator=aggregator_state,
        optimizer=optimizer_state,
        reaction=reaction_state,
        step=state.step + 1,
        finite=state.finite & moves & jnp.isfinite(values).all() & jnp.isfinite(masses).all(),
    )
    norm = jnp.dot(state.particle_weights, jnp.sum(direction**2, axis=1))
    return next_state, StepInfo(values, weights, norm)


def _diffuse(
    key: Key[Array, ""],
    updates: PyTree[Array],
    descent: PyTree[Array],
    optimizer: optax.GradientTransformation,
    state: FlowState,
    entropy: Float[Array, ""],
) -> PyTree[Array]:
    """Updates plus noise √(2τP) ξ, P the optimizer's own step size, coordinate by coordinate."""
    _, response = jax.jvp(
        lambda gradient: optimizer.update(gradient, state.optimizer, state.particles)[0],
        (descent,),
        (jax.tree.map(jnp.ones_like, descent),),
    )
    keys = optax.tree.split_key_like(key, updates)
    return jax.tree.map(
        lambda update, slope, k: (
            update
            + jnp.sqrt(2 * entropy * jnp.maximum(-slope, 0))
            * jax.random.normal(k, update.shape, update.dtype)
        ),
        updates,
        response,
        keys,
    )


def run(
    key: Key[Array, ""],
    particles: PyTree[Array] | FlowState,
    objectives: Sequence[Objective],
    *,
    velocity: Velocity,
    aggregator: Aggregator = MinNorm(),
    optimizer: optax.GradientTransformation,
    num_steps: int,
    record_every: int = 1,
    features: Callable[..., Array] | None = None,
    shared: PyTree[bool] | None = None,
    particle_weights: ParticleWeights | None = None,
    observe: Callable[[FlowState], Any] | None = None,
) -> FlowResult:
    """Move particles so that K functionals of their distribution fall together.

    Each step computes the K velocity fields v_k = −∇(δF_k/δq), weighs them with the aggregator, and
    moves the particles along Σ_k w_k v_k with the optimizer. With `MinNorm` the combined field is
    the shortest in their convex hull: no objective rises to first order, and it vanishes just at
    Pareto stationary distributions.

    It is a `lax.scan` over `step` and compiles nothing itself: wrap it in `jax.jit`, and in
    `jax.vmap` over keys or over any number inside velocity, kernel or optimizer to sweep them in
    one compilation.

    Args:
        key: a typed key. Step s uses `fold_in(key, s)`, so a run continued from its state with the
            same key is the longer run.
        particles: an array (n, d); a pytree whose leaves share a leading axis n (objectives then
            take one such particle as a pytree); or the `state` of an earlier result, to continue
            it.
        objectives: K ≥ 1 objectives.
        velocity: how fields are estimated from particles: `SVGD`, `Blob`, `NeuralScore`, ….
        aggregator: how the K fields are weighed.
        optimizer: an optax transformation; it is given −Σ_k w_k v_k as the gradient of the
            particles.
        num_steps: the number of steps.
        record_every: steps 0, r, 2r, … are recorded.
        features: maps `(key, particle)` to a vector that the kernel compares instead of the
            particle itself (function-space kernels); the repulsion is pulled back through it. Gets
            the objectives' key.
        shared: for particles with leaves that belong to one objective alone (a task's own head): a
            pytree of booleans like the particles. The aggregator compares and weighs only leaves
            marked True; the others follow the sum of all drifts, of which just their own
            objective's is not zero there, and Σ_k w_k τ_k times the repulsion.
        particle_weights: the Fisher–Rao step on the particles' masses, or None for equal masses.
        observe: maps the state to anything worth recording beside the history (`lambda s:
            s.particles`).

    Returns:
        A `FlowResult`.

    Raises:
        ValueError: if particles, objectives, the aggregator's weights, features or shared have a
            wrong shape or type, or `num_steps` or `record_every` is out of range. Values that are
            not finite are flagged in the result.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from divjax import flows, kernels
        >>> left, right = (lambda x: -jnp.sum((x + 2) ** 2)), (lambda x: -jnp.sum((x - 2) ** 2))
        >>> result = flows.run(
        ...     jax.random.key(0), jax.random.normal(jax.random.key(1), (20, 2)),
        ...     (flows.KL(left), flows.KL(right)),
        ...     velocity=flows.SVGD(kernels.Gaussian(bandwidth=1.0)),
        ...     optimizer=optax.sgd(0.1), num_steps=50)
        >>> result.history.weights.shape, bool(result.finite)
        ((50, 2), True)

    References:
        MWGraD, arXiv 2505.18765; A-MWGraD, arXiv 2601.19220, for the accelerated form.
    """
    if num_steps < 0:
        raise ValueError(f"num_steps must not be negative; got {num_steps}.")
    if record_every < 1:
        raise ValueError(f"record_every must be at least 1; got {record_every}.")
    if isinstance(particles, FlowState):
        _check_inputs(particles.particles, objectives)
        state = particles
    else:
        state = init(
            key,
            particles,
            objectives,
            velocity=velocity,
            aggregator=aggregator,
            optimizer=optimizer,
            features=features,
            particle_weights=particle_weights,
        )

    def advance(state: FlowState) -> tuple[FlowState, StepInfo]:
        return step(
            key,
            state,
            objectives,
            velocity=velocity,
            aggregator=aggregator,
            optimizer=optimizer,
            features=features,
            shared=shared,
            particle_weights=particle_weights,
        )

    def record(length: int):
        def body(state: FlowState, _: None) -> tuple[FlowState, History]:
            observed = None if observe is None else observe(state)
            later, info = advance(state)
            if length > 1:
                later = jax.lax.fori_loop(1, length, lambda _, s: advance(s)[0], later)
            return later, History(state.step, *info, observed)

        return body

    whole, rest = divmod(num_steps, record_every)
    state, history = jax.lax.scan(record(record_every), state, length=whole)
    if rest:
        state, tail = jax.lax.scan(record(rest), state, length=1)
        history = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), history, tail)
    return FlowResult(state.particles, state.particle_weights, state.finite, history, state)
