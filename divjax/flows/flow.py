"""Running a flow: `init`, `step` (`fields`, weigh, move), and `run`, a scan that records."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from divjax.core.checks import (
    check_arguments,
    check_count,
    check_key,
    check_provides,
    check_shape,
    key_first,
)
from divjax.core.pytrees import num_particles, ravel_particles, select
from divjax.flows.aggregators import MinNorm
from divjax.flows.mass import drop_dead, weighted_sum
from divjax.flows.objectives.targets import as_particles
from divjax.flows.optimizers import ParticleWeights
from divjax.flows.state import Fields, FlowResult, FlowState, History, StepInfo
from divjax.flows.types import Aggregator, Objective, Velocity

__all__ = ["fields", "init", "run", "step"]

# Steps fold their number into the key. Initialisation folds a number that no step reaches.
_INIT = 2**32 - 1


def _check_inputs(
    key: Key[Array, ""],
    particles: PyTree[Array],
    objectives: Sequence[Objective],
    velocity: Velocity,
    aggregator: Aggregator,
    optimizer: optax.GradientTransformation,
) -> None:
    # The nouns: the most frequent mistake is to pass a class in place of its instance.
    check_key(key)
    method = ("init", "__call__")
    check_provides("velocity", velocity, method, "a velocity such as flows.SVGD()")
    check_provides("aggregator", aggregator, method, "an aggregator such as flows.MinNorm()")
    # Attributes alone do not show that a call fits: another signature would fail inside the scan.
    check_arguments("velocity", velocity, "key", "x", "weights", "gradients", "state")
    check_arguments("aggregator", aggregator, "key", "velocities", "weights", "state")
    hint = "an optax transformation such as optax.adam(0.1)"
    check_provides("optimizer", optimizer, ("init", "update"), hint)
    if not isinstance(objectives, Sequence):
        raise ValueError(
            "objectives must be a sequence of objectives, such as (flows.KL(log_prob),); "
            f"got {type(objectives).__name__}."
        )
    if len(objectives) == 0:
        raise ValueError("objectives must hold at least one objective; got none.")
    for index, objective in enumerate(objectives):
        hint = "an objective such as flows.KL(log_prob)"
        check_provides(f"objectives[{index}]", objective, ("entropy", *method), hint)
        check_arguments(f"objectives[{index}].init", objective.init, "key", "particles")
        arguments = ("key", "particles", "weights", "state")
        check_arguments(f"objectives[{index}]", objective, *arguments)
    # The particles: one array has rows, anything else is a pytree whose leaves share an axis.
    if hasattr(particles, "shape") and len(particles.shape) != 2:
        raise ValueError(
            "particles given as one array must have shape (n, d); "
            f"got shape {particles.shape}. Particles of one feature are particles[:, None]; put "
            "other shapes in a pytree, such as a dictionary."
        )
    num_particles(particles)
    if hasattr(particles, "shape"):
        return
    for leaf in jax.tree.leaves(particles):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise ValueError(f"particles must be floating-point; got {jnp.result_type(leaf)}.")


def _check_continues(state: FlowState, fresh: FlowState) -> None:
    """Raise `ValueError` unless the state has the structure that the arguments would start with."""
    if len(state.objectives) != len(fresh.objectives):
        raise ValueError(
            f"objectives must be {len(state.objectives)}, as in the state that is continued; "
            f"got {len(fresh.objectives)}."
        )
    # A scan's carry keeps its structure. With other settings it would fail there, without naming
    # the part that differs.
    for name in FlowState._fields:
        if jax.tree.structure(getattr(state, name)) != jax.tree.structure(getattr(fresh, name)):
            raise ValueError(f"{name} must be as in the run whose state is continued.")


def _featurise(
    features: Callable[..., Array] | None, key: Key[Array, ""], particles: PyTree[Array]
) -> tuple[Float[Array, "n p"], Callable[[Float[Array, "n p"]], Float[Array, "n d"]]]:
    """The kernel's inputs, and the pull-back of a covector field there to the particles."""
    if features is None:
        return ravel_particles(particles)[0], lambda field: field
    # Scores of features become scores of particles by the chain rule,
    # ∇_z log q(φ(z)) = Jᵀ∇log q(φ). All particles share the key, hence the features' minibatch.
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
    # Flags are raveled like particles, so that columns correspond. All rows are equal.
    filled = jax.tree.map(lambda leaf, flag: jnp.full(leaf.shape, flag), particles, shared)
    return ravel_particles(filled)[0][0].astype(bool)


@key_first
def init(
    key: Key[Array, ""],
    particles: PyTree[Array],
    objectives: Sequence[Objective],
    *,
    velocity: Velocity,
    aggregator: Aggregator = MinNorm(),
    optimizer: optax.GradientTransformation,
    features: Callable[..., Array] | None = None,
    reaction: ParticleWeights | None = None,
) -> FlowState:
    """The state of a flow before its first step.

    Args: as `run`, which also checks `shared` and the values that objectives and aggregator return.

    Returns:
        The initial state for `step`.

    Raises:
        ValueError: as `run`.
    """
    particles = as_particles(particles)
    _check_inputs(key, particles, objectives, velocity, aggregator, optimizer)
    n = num_particles(particles)
    # Objectives and features share a key, as in every step: they draw the same minibatch.
    objective_key, velocity_key = jax.random.split(jax.random.fold_in(key, _INIT))
    # Velocity and reaction compare features, so their bandwidths are initialised from those.
    x, _ = _featurise(features, objective_key, particles)
    return FlowState(
        particles=particles,
        particle_weights=jnp.full(n, 1 / n, ravel_particles(particles)[0].dtype),
        objectives=tuple(objective.init(objective_key, particles) for objective in objectives),
        velocity=velocity.init(velocity_key, x),
        aggregator=aggregator.init(len(objectives)),
        optimizer=optimizer.init(particles),
        reaction=() if reaction is None else reaction.init(x),
        step=jnp.zeros((), jnp.int32),
        finite=jnp.ones((), bool),
        resolved=jnp.ones((), bool),
    )


def _split_keys(key: Key[Array, ""], step: Int[Array, ""]) -> Key[Array, "4"]:
    """A step's keys: for the objectives and features, the velocity, the aggregator, the noise."""
    return jax.random.split(jax.random.fold_in(key, step), 4)


@key_first
def fields(
    key: Key[Array, ""],
    state: FlowState,
    objectives: Sequence[Objective],
    *,
    velocity: Velocity,
    features: Callable[..., Array] | None = None,
) -> Fields:
    """The K velocity fields of the next step, without taking it.

    Their `velocities` are the input of `squared_norm`, `pareto_residual` and `gram`.

    Args: as `run`; `key` is the run's key.

    Returns:
        The `Fields` at the state's particles.

    Raises:
        ValueError: if objectives do not fit the state, or a value that they or the velocity return
            has a wrong shape.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from divjax import flows, kernels
        >>> key, x = jax.random.key(0), jnp.array([[1.0], [-1.0]])
        >>> settings = dict(velocity=flows.GFSD(kernels.Gaussian(bandwidth=1.0)))
        >>> objectives = (flows.Potential(lambda z: jnp.sum(z**2)),)
        >>> state = flows.init(key, x, objectives, optimizer=optax.sgd(0.1), **settings)
        >>> flows.fields(key, state, objectives, **settings).velocities.ravel().tolist()
        [-2.0, 2.0]
    """
    if len(objectives) != len(state.objectives):
        raise ValueError(
            f"objectives must be {len(state.objectives)}, as in the state; got {len(objectives)}."
        )
    # Keys depend on the run's key and the step's number alone: these are the next step's fields.
    objective_key, velocity_key, *_ = _split_keys(key, state.step)
    particles, masses = state.particles, state.particle_weights
    flat, _ = ravel_particles(particles)

    # Each energy's first variation. Stochastic objectives share the key, hence the minibatch.
    variations, objective_states = [], []
    for index, (objective, carried) in enumerate(zip(objectives, state.objectives, strict=True)):
        variation, carried = objective(objective_key, particles, masses, carried)
        gradient, _ = ravel_particles(variation.gradient)
        check_shape(f"objectives[{index}]'s value", variation.value)
        check_shape(f"objectives[{index}]'s potential", variation.potential, flat.shape[0])
        check_shape(f"objectives[{index}]'s gradient", gradient, *flat.shape)
        variations.append(variation._replace(gradient=gradient))
        objective_states.append(carried)
    gradients = jnp.stack([v.gradient for v in variations])

    # One call serves all K objectives: drifts "k n d", and one repulsion "n p" over the features.
    if features is not None and getattr(velocity, "diffuses", False):
        raise ValueError(
            f"features serve kernels and networks; {type(velocity).__name__} has neither."
        )
    x, pull_back = _featurise(features, objective_key, particles)
    drift, repulsion, velocity_state = velocity(velocity_key, x, masses, gradients, state.velocity)
    check_shape("velocity's drift", drift, *gradients.shape)
    check_shape("velocity's repulsion", repulsion, *x.shape)
    return Fields(
        values=jnp.stack([v.value for v in variations]),
        potentials=jnp.stack([v.potential for v in variations]),
        entropies=jnp.stack([jnp.asarray(o.entropy, flat.dtype) for o in objectives]),
        drift=drift,
        repulsion=pull_back(repulsion),
        features=x,
        objectives=tuple(objective_states),
        velocity=velocity_state,
    )


@key_first
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
    reaction: ParticleWeights | None = None,
) -> tuple[FlowState, StepInfo]:
    """One step: velocity fields, weights over them, optimizer, noise, masses.

    Args: as `run`; `key` is the run's key, into which the step's number is folded here.

    Returns:
        The next state, and the `StepInfo` of the current one.
    """
    _, _, aggregator_key, noise_key = _split_keys(key, state.step)
    particles, masses = state.particles, state.particle_weights
    flat, unravel = ravel_particles(particles)
    found = fields(key, state, objectives, velocity=velocity, features=features)
    velocities = found.velocities

    # Leaves of one objective alone would change the fields' inner products, although no objectives
    # compete there.
    mask = None if shared is None else _shared_mask(shared, particles)
    compared = velocities if mask is None else jnp.where(mask, velocities, 0)
    weights, aggregator_state = aggregator(aggregator_key, compared, masses, state.aggregator)
    check_shape("aggregator's weights", weights, len(objectives))
    entropy = jnp.dot(weights, found.entropies)
    # If the fields nearly cancel, their sum must stay accurate.
    direction = jnp.tensordot(weights, velocities, 1, precision="highest")
    if mask is not None:
        # An objective's own leaves get no gradient from the others, hence there is no trade-off.
        direction = jnp.where(mask, direction, found.drift.sum(0) + entropy * found.repulsion)
    # A hyper-parameter given as an array of a wider type must not change the particles' dtype.
    # Zero-weight particles do not move: they may hold any value, which must not reach the
    # optimizer's sums over all particles.
    direction = jnp.where((masses == 0)[:, None], 0, direction).astype(flat.dtype)

    descent = unravel(-direction)
    # Under strict promotion optax's own powers of the step's number would raise.
    with jax.numpy_dtype_promotion("standard"):
        updates, optimizer_state = optimizer.update(descent, state.optimizer, particles)
        if getattr(velocity, "diffuses", False):
            updates = _diffuse(noise_key, updates, descent, optimizer, state, entropy)
    # Masses follow the potentials before the move, so that one evaluation serves both halves of the
    # splitting.
    reaction_state = state.reaction
    if reaction is not None:
        # A zero-weight particle's potential may be infinite, and an objective's weight of zero
        # would make it NaN.
        potential = jnp.dot(weights, drop_dead(masses, found.potentials.T).T)
        masses, reaction_state = reaction(
            found.features, masses, potential, entropy, state.reaction
        )
        masses = masses.astype(state.particle_weights.dtype)
    moved = optax.apply_updates(particles, updates)
    taken = FlowState(
        particles=moved,
        particle_weights=masses,
        objectives=found.objectives,
        velocity=found.velocity,
        aggregator=aggregator_state,
        optimizer=optimizer_state,
        reaction=reaction_state,
        step=state.step,
        finite=state.finite & jnp.isfinite(found.values).all(),
        resolved=_any_moved(particles, moved, updates),
    )
    # A non-finite step would spoil the state for good: it is flagged and not taken. Zero-weight
    # particles may hold any value.
    living = drop_dead(state.particle_weights, ravel_particles(moved)[0])
    sound = jnp.isfinite(living).all() & jnp.isfinite(masses).all()
    kept = select(sound, taken, state)
    # Σ_i a_i ‖v(x_i)‖² at the particles and masses before the step.
    norm = weighted_sum(state.particle_weights, jnp.sum(direction**2, axis=1))
    # The step's number always advances, so the next step draws other random numbers.
    return (
        kept._replace(step=state.step + 1, finite=taken.finite & sound),
        StepInfo(found.values, weights, norm),
    )


def _any_moved(
    before: PyTree[Array], after: PyTree[Array], updates: PyTree[Array]
) -> Bool[Array, ""]:
    """Whether a particle moved, or all updates are zero."""
    pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    # NaN entries, of zero-weight particles, do not count as moved.
    moved = jnp.stack([jnp.any((one != other) & (one == one)) for one, other in pairs])
    # Updates that are exactly zero are stationary, not lost to rounding.
    still = jnp.stack([jnp.all(update == 0) for update in jax.tree.leaves(updates)])
    return moved.any() | still.all()


def _diffuse(
    key: Key[Array, ""],
    updates: PyTree[Array],
    descent: PyTree[Array],
    optimizer: optax.GradientTransformation,
    state: FlowState,
    entropy: Float[Array, ""],
) -> PyTree[Array]:
    """Updates plus noise √(2τP) ξ, P the optimizer's own step size, coordinate by coordinate."""
    # The tangent of ones gives the row sums of −P: its diagonal, if the optimizer acts on each
    # coordinate alone.
    _, response = jax.jvp(
        lambda gradient: optimizer.update(gradient, state.optimizer, state.particles)[0],
        (descent,),
        (jax.tree.map(jnp.ones_like, descent),),
    )
    keys = optax.tree.split_key_like(key, updates)
    # An update that increases with the gradient has no step size: no noise there, instead of NaN.
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


@key_first
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
    reaction: ParticleWeights | None = None,
    observe: Callable[[FlowState], Any] | None = None,
) -> FlowResult:
    """Move particles so that K functionals of their distribution decrease jointly.

    Each step computes the K velocity fields v_k = −∇(δF_k/δq), weighs them with the aggregator, and
    moves the particles along Σ_k w_k v_k with the optimizer. With `MinNorm` the combined field is
    the minimum-norm element of their convex hull: along it no objective increases to first order,
    and it vanishes exactly at Pareto stationary distributions. That holds as far as the fields are
    the Wasserstein gradients themselves (GFSD, Blob, GFSF, NeuralScore: up to their estimate of the
    score). SVGD's fields are smoothed by the kernel, and an energy may increase a little along
    their minimum-norm combination. Langevin's lack the entropy.

    It is a `lax.scan` over `step` and compiles nothing itself. Wrap it in `jax.jit`, and in
    `jax.vmap` over keys or over any number inside velocity, kernel or optimizer to sweep them in
    one compilation.

    Args:
        key: a typed key. Step s uses `fold_in(key, s)`, so a run continued from its state with the
            same key is the longer run.
        particles: an array (n, d), or a list or frame of numbers; a pytree whose leaves share a
            leading axis n (objectives then take one such particle as a pytree); or the `state` of
            an earlier result, to continue it. Particles of weight zero do not move and may hold any
            value.
        objectives: K ≥ 1 objectives.
        velocity: the estimator of fields from particles: `SVGD`, `Blob`, `NeuralScore`, ….
        aggregator: the rule that weighs the K fields.
        optimizer: an optax transformation. It is given −Σ_k w_k v_k as the gradient of the
            particles.
        num_steps: the number of steps.
        record_every: steps 0, r, 2r, … are recorded.
        features: maps `(key, particle)` to a vector that the kernel compares instead of the
            particle itself (function-space kernels). Gets the objectives' key. The entropy is then
            that of the features' distribution, and its field is pulled back to the particles. With
            `SVGD`, whose repulsion is not the gradient of an entropy, this is an approximation: the
            exact one would pull each term back at the other particle.
        shared: for particles with leaves that belong to one objective alone (a task's own head), a
            pytree of booleans like the particles. The aggregator compares and weighs only leaves
            marked True. The others follow the sum of all drifts, of which just their own
            objective's is not zero there, and Σ_k w_k τ_k times the repulsion.
        reaction: the Fisher–Rao step on the particles' masses, or None for equal masses.
        observe: maps the state to anything to be recorded in the history (`lambda s:
            s.particles`).

    Returns:
        A `FlowResult`.

    Raises:
        ValueError: if particles, objectives, features, shared, or a value that an objective, the
            velocity or the aggregator returns has a wrong shape or type, or `num_steps` or
            `record_every` is out of range. Non-finite values are flagged in the result.

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
    check_count(0, num_steps=num_steps)
    check_count(1, record_every=record_every)

    def start(particles: PyTree[Array]) -> FlowState:
        return init(
            key,
            particles,
            objectives,
            velocity=velocity,
            aggregator=aggregator,
            optimizer=optimizer,
            features=features,
            reaction=reaction,
        )

    # A state can only be continued by a flow of the same structure; anything else starts a new one.
    if isinstance(particles, FlowState):
        state = particles
        # The fresh state is needed for its structure alone, so nothing is computed.
        _check_continues(state, jax.eval_shape(start, state.particles))
    else:
        state = start(particles)

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
            reaction=reaction,
        )

    # The history holds a stretch's first step: only recorded steps cost memory and `observe`.
    def record(length: int):
        def body(state: FlowState, _: None) -> tuple[FlowState, History]:
            # Before the step: an entry belongs to the state at which its fields were computed.
            observed = None if observe is None else observe(state)
            later, info = advance(state)
            if length > 1:
                later = jax.lax.fori_loop(1, length, lambda _, s: advance(s)[0], later)
            return later, History(state.step, *info, observed)

        return body

    # Whole stretches are one scan. The rest is a shorter one, as a scan's steps are all alike.
    whole, rest = divmod(num_steps, record_every)
    state, history = jax.lax.scan(record(record_every), state, length=whole)
    if rest:
        state, tail = jax.lax.scan(record(rest), state, length=1)
        history = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), history, tail)
    return FlowResult(state.particles, state.particle_weights, state.finite, history, state)
