"""A flow: four nouns, held together by `init`, `fields`, `step` and `run`."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, Key, PyTree

from divjax.core.checks import check_shape, key_first
from divjax.core.programs import Programs
from divjax.core.pytrees import num_particles, ravel_particles
from divjax.flows.aggregators import MinNorm
from divjax.flows.fields import check_objective_weights, combine
from divjax.flows.mass import FisherRao, weighted_sum
from divjax.flows.protocols import Aggregator, Fields, Objective, Velocity
from divjax.flows.scan import record, report_progress, run_in_chunks
from divjax.flows.state import FlowResult, FlowState, History, StepInfo
from divjax.flows.step import (
    Evaluation,
    any_moved,
    featurise,
    first_variations,
    initial_keys,
    keep_if_finite,
    shared_columns,
    step_keys,
    step_masses,
)
from divjax.flows.validation import (
    check_aggregator,
    check_continues,
    check_number_of_objectives,
    check_objectives,
    check_optimizer_and_mass,
    check_run,
    check_velocity,
    checked_particles,
)
from divjax.flows.velocities.langevin import diffused

__all__ = ["Flow"]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Flow:
    """Moves particles so that K functionals of their distribution decrease jointly.

    Each step computes the K velocity fields v_k = −∇(δF_k/δq), weighs them with the aggregator, and
    moves the particles along Σ_k w_k v_k with the optimizer. With `MinNorm` the combined field is
    the minimum-norm element of their convex hull: along it no objective increases to first order,
    and it vanishes exactly at Pareto stationary distributions. That holds as far as the fields are
    the negative Wasserstein gradients themselves (GFSD, Blob, GFSF, NeuralScore: up to their
    estimate of the score). SVGD's fields are smoothed by the kernel, and an energy may increase a
    little along their minimum-norm combination. Langevin's lack the entropy.

    A flow holds its compiled programs: a second call of a method with equal shapes (and numbers of
    steps) compiles nothing. As under `jax.jit`, values that the objectives, features and `observe`
    refer to are those of the first call. Inside a caller's own `jit`, `vmap` or `grad` a flow is
    part of the caller's program. A flow is no pytree. To sweep a number inside a velocity, a kernel
    or an optimizer, make the flow within the mapped function.

    Attributes:
        objectives: K ≥ 1 objectives.
        velocity: the estimator of fields from particles: `SVGD`, `Blob`, `NeuralScore`, ….
        aggregator: the rule that weighs the K fields.
        optimizer: an optax transformation. It is given −Σ_k w_k v_k as the gradient of the
            particles.
        features: maps `(key, particle)` to a vector that the kernel compares instead of the
            particle itself (function-space kernels). Gets the objectives' key. The entropy is then
            that of the features' distribution, and its field is pulled back to the particles. With
            `SVGD`, whose repulsion is not the gradient of an entropy, this is an approximation: the
            exact one would pull each term back at the other particle.
        shared: for particles with leaves that belong to one objective alone (a task's own head), a
            pytree of booleans like the particles. The aggregator compares and weighs only leaves
            marked True. On the other leaves the field is the sum of all drifts, of which only the
            leaf's own objective has a nonzero one, plus Σ_k w_k τ_k times the repulsion.
        mass: the Fisher–Rao step on the particles' masses, or None for equal masses.

    Raises:
        ValueError: if an attribute has the wrong type, or `features` are given to a velocity that
            has no kernel or network.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from divjax import flows, kernels
        >>> left, right = (lambda x: -jnp.sum((x + 2) ** 2)), (lambda x: -jnp.sum((x - 2) ** 2))
        >>> flow = flows.Flow(
        ...     (flows.KL(left), flows.KL(right)),
        ...     velocity=flows.SVGD(kernels.Gaussian(bandwidth=1.0)), optimizer=optax.sgd(0.1))
        >>> flow
        Flow(objectives=(KL, KL), velocity=SVGD, aggregator=MinNorm)
        >>> particles = jax.random.normal(jax.random.key(1), (20, 2))
        >>> result = flow.run(jax.random.key(0), particles, num_steps=50)
        >>> result.history.weights.shape, bool(result.finite)
        ((50, 2), True)

    References:
        MWGraD, arXiv 2505.18765; A-MWGraD, arXiv 2601.19220, for the accelerated form.
    """

    objectives: Sequence[Objective]
    _: dataclasses.KW_ONLY
    velocity: Velocity
    aggregator: Aggregator = MinNorm()
    optimizer: optax.GradientTransformation
    features: Callable[..., Array] | None = None
    shared: PyTree[bool] | None = None
    mass: FisherRao | None = None
    _programs: Programs = dataclasses.field(init=False, default_factory=Programs)

    def __post_init__(self):
        check_objectives(self.objectives)
        object.__setattr__(self, "objectives", tuple(self.objectives))
        check_velocity(self.velocity, self.features)
        check_aggregator(self.aggregator)
        check_optimizer_and_mass(self.optimizer, self.mass)

    def __repr__(self) -> str:
        objectives = ", ".join(type(objective).__name__ for objective in self.objectives)
        parts = f"velocity={type(self.velocity).__name__}, "
        parts += f"aggregator={type(self.aggregator).__name__}"
        return f"Flow(objectives=({objectives}), {parts})"

    @key_first
    def init(self, key: Key[Array, ""], particles: PyTree[Array]) -> FlowState:
        """The state before the first step.

        Args:
            key: a typed key.
            particles: as `run`.

        Returns:
            The initial state for `step`.

        Raises:
            ValueError: as `run`.
        """
        return self._programs.call("init", self._init, key, checked_particles(particles))

    @key_first
    def fields(self, key: Key[Array, ""], state: FlowState) -> Fields:
        """The K velocity fields of the next step, without taking it.

        Their `velocities` are the input of `squared_norm`, `pareto_residual` and `gram`.

        Args:
            key: the run's key.
            state: a state of this flow.

        Returns:
            The `Fields` at the state's particles, also at leaves that are not shared.

        Raises:
            ValueError: if the flow does not fit the state, or a value that objectives or the
                velocity return has a wrong shape.

        Example:
            >>> import jax, jax.numpy as jnp, optax
            >>> from divjax import flows, kernels
            >>> key, x = jax.random.key(0), jnp.array([[1.0], [-1.0]])
            >>> flow = flows.Flow(
            ...     (flows.Potential(lambda z: jnp.sum(z**2)),),
            ...     velocity=flows.GFSD(kernels.Gaussian(1.0)), optimizer=optax.sgd(0.1))
            >>> flow.fields(key, flow.init(key, x)).velocities.ravel().tolist()
            [-2.0, 2.0]
        """
        fields = lambda key, state: self._evaluate(key, state).fields
        return self._programs.call("fields", fields, key, state)

    @key_first
    def step(self, key: Key[Array, ""], state: FlowState) -> tuple[FlowState, StepInfo]:
        """One step: velocity fields, weights over them, optimizer, noise, masses.

        Args:
            key: the run's key, into which the step's number is folded here.
            state: from `init` or the previous step.

        Returns:
            The next state, and the `StepInfo` of the current one.

        Raises:
            ValueError: as `fields`, and if the aggregator's weights have a wrong shape.
        """
        return self._programs.call("step", self._step, key, state)

    @key_first
    def run(
        self,
        key: Key[Array, ""],
        particles: PyTree[Array] | FlowState,
        *,
        num_steps: int,
        record_every: int = 1,
        observe: Callable[[FlowState], PyTree[Array]] | None = None,
        tolerance: ArrayLike | None = None,
        progress: bool | Callable[[History], object] = False,
    ) -> FlowResult:
        """Take many steps and record them, as a `lax.scan` over `step`.

        Args:
            key: a typed key. Step s uses `fold_in(key, s)`, so a run continued from its state with
                the same key equals one longer run.
            particles: an array (n, d), or a list or frame of numbers; a pytree whose leaves share a
                leading axis n (objectives then take one such particle as a pytree); or the `state`
                of an earlier result, to continue it. Particles of weight zero do not move and may
                hold any value.
            num_steps: the number of steps; with a tolerance, the maximum.
            record_every: steps 0, r, 2r, … are recorded.
            observe: maps the state to anything to be recorded in the history (`lambda s:
                s.particles`). A new function is a new program: define it once.
            tolerance: stop when the combined field's norm, the root of `history.squared_norm`, is
                at or below it. That step is not taken, and the history's later entries repeat the
                last one. None takes all steps.
            progress: True for a bar (by tqdm) with the rate, the time left, and the last values and
                norm; or a function that gets the `History` of each of about twenty chunks. The
                result is that of one run.

        Returns:
            A `FlowResult`.

        Raises:
            ValueError: if the particles, `shared`, or a value that features, an objective, the
                velocity or the aggregator returns has a wrong shape or type, or a number is out of
                range, or `progress` is asked for under `jit`, `vmap` or `grad`. Non-finite values,
                and a traced tolerance out of range, are flagged in the result.
            ImportError: if `progress` is True and tqdm is not installed.
        """
        check_run(num_steps, record_every, observe, tolerance)
        # With progress, the same run in chunks, of which each continues the one before.
        if progress is not False:
            chunk = lambda state, length: self.run(
                key,
                state,
                num_steps=length,
                record_every=record_every,
                observe=observe,
                tolerance=tolerance,
            )
            with report_progress(progress, num_steps) as report:
                start = particles if isinstance(particles, FlowState) else self.init(key, particles)
                return run_in_chunks(chunk, start, num_steps, record_every, report)
        if not isinstance(particles, FlowState):
            particles = checked_particles(particles)
        # Numbers of steps select the operations, as static arguments. The tolerance does not.
        static = int(num_steps), int(record_every), observe
        run = functools.partial(self._run, *static)
        return self._programs.call(("run", *static), run, key, particles, tolerance)

    def _init(self, key: Key[Array, ""], particles: PyTree[Array]) -> FlowState:
        n = num_particles(particles)
        if self.shared is not None:
            shared_columns(self.shared, particles)
        # Objectives and features share a key, as in every step: they draw the same minibatch.
        objective_key, velocity_key, aggregator_key = initial_keys(key)
        # Velocity and masses compare features, so their bandwidths are initialised from those.
        x, _ = featurise(self.features, objective_key, particles)
        return FlowState(
            particles=particles,
            particle_weights=jnp.full(n, 1 / n, ravel_particles(particles)[0].dtype),
            objectives=tuple(o.init(objective_key, particles) for o in self.objectives),
            velocity=self.velocity.init(velocity_key, x),
            aggregator=self.aggregator.init(aggregator_key, len(self.objectives)),
            optimizer=self.optimizer.init(particles),
            mass=() if self.mass is None else self.mass.init(x),
            step=jnp.zeros((), jnp.int32),
            finite=jnp.ones((), bool),
            resolved=jnp.ones((), bool),
        )

    def _start(self, key: Key[Array, ""], particles: PyTree[Array] | FlowState) -> FlowState:
        """The given state if this flow can continue it, otherwise the particles' initial state."""
        if not isinstance(particles, FlowState):
            return self._init(key, particles)
        # The fresh state is needed for its structure alone, so nothing is computed.
        check_continues(particles, jax.eval_shape(self._init, key, particles.particles))
        return particles

    def _run(
        self,
        num_steps: int,
        record_every: int,
        observe: Callable[[FlowState], PyTree[Array]] | None,
        key: Key[Array, ""],
        particles: PyTree[Array] | FlowState,
        tolerance: ArrayLike | None,
    ) -> FlowResult:
        return record(
            lambda state: self._step(key, state),
            self._start(key, particles),
            num_steps=num_steps,
            record_every=record_every,
            observe=observe,
            tolerance=tolerance,
        )

    def _evaluate(self, key: Key[Array, ""], state: FlowState) -> Evaluation:
        """The fields at a state's particles, with all that a step needs of them."""
        check_number_of_objectives(state, len(self.objectives))
        # Keys depend on the run's key and the step's number alone: these are the next step's.
        objective_key, velocity_key, _ = step_keys(key, state.step)
        particles, masses = state.particles, state.particle_weights
        variations, objective_states = first_variations(self.objectives, objective_key, state)
        gradients = variations.gradient

        # One call serves all K objectives: drifts "k n d", and one repulsion "n p" over the
        # features.
        x, pull_back = featurise(self.features, objective_key, particles)
        drift, repulsion, velocity_state = self.velocity(
            velocity_key, x, masses, gradients, state.velocity
        )
        check_shape("velocity's drift", drift, *gradients.shape)
        check_shape("velocity's repulsion", repulsion, *x.shape)
        repulsion = pull_back(repulsion)

        dtype = ravel_particles(particles)[0].dtype
        entropies = jnp.stack([jnp.asarray(o.entropy, dtype) for o in self.objectives])
        velocities = drift + entropies[:, None, None] * repulsion
        return Evaluation(
            fields=Fields(velocities, masses, variations.value, variations.potential),
            variations=variations,
            entropies=entropies,
            drift=drift,
            repulsion=repulsion,
            features=x,
            objectives=objective_states,
            velocity=velocity_state,
        )

    def _step(self, key: Key[Array, ""], state: FlowState) -> tuple[FlowState, StepInfo]:
        evaluation = self._evaluate(key, state)
        masses, values = state.particle_weights, evaluation.variations.value
        direction, weights, aggregator_state = self._direction(evaluation, state)
        # Σ_k w_k τ_k, one number or one per particle.
        entropy = jnp.dot(evaluation.entropies, weights)

        # The optimizer moves the particles, and the masses follow the potentials before the move,
        # so that one evaluation serves both halves of the splitting.
        updates, optimizer_state = self._updates(key, state, direction, entropy)
        moved = optax.apply_updates(state.particles, updates)
        later_masses, mass_state = step_masses(self.mass, evaluation, state, weights, entropy)
        proposed = FlowState(
            particles=moved,
            particle_weights=later_masses,
            objectives=evaluation.objectives,
            velocity=evaluation.velocity,
            aggregator=aggregator_state,
            optimizer=optimizer_state,
            mass=mass_state,
            step=state.step,
            finite=state.finite & jnp.isfinite(values).all(),
            resolved=any_moved(state.particles, moved, updates),
        )
        # Σ_i a_i ‖v(x_i)‖² at the particles and masses before the step.
        norm = weighted_sum(masses, jnp.sum(direction**2, axis=1))
        return keep_if_finite(proposed, state), StepInfo(values, weights, norm)

    def _direction(
        self, evaluation: Evaluation, state: FlowState
    ) -> tuple[Float[Array, "n d"], Float[Array, "k ..."], PyTree]:
        """The combined field, the weights that combine it, and the aggregator's next state."""
        fields, masses = evaluation.fields, state.particle_weights
        mask = None if self.shared is None else shared_columns(self.shared, state.particles)
        # Leaves of one objective alone would change the fields' inner products, although no
        # objectives compete there.
        compared = fields.velocities if mask is None else jnp.where(mask, fields.velocities, 0)
        weights, aggregator_state = self.aggregator(
            fields._replace(velocities=compared), state.aggregator
        )
        check_objective_weights("aggregator's weights", weights, *compared.shape[:2])
        direction = combine(weights, fields.velocities)
        if mask is not None:
            # An objective's own leaves get no gradient from the others, hence there is no
            # trade-off.
            entropy = jnp.dot(evaluation.entropies, weights)[..., None]
            own = evaluation.drift.sum(0) + entropy * evaluation.repulsion
            direction = jnp.where(mask, direction, own)
        # Zero-weight particles do not move: they may hold any value, which must not reach the
        # optimizer's sums over all particles. A hyper-parameter given as an array of a wider type
        # must not change the particles' dtype.
        direction = jnp.where((masses == 0)[:, None], 0, direction)
        dtype = ravel_particles(state.particles)[0].dtype
        return direction.astype(dtype), weights, aggregator_state

    def _updates(
        self,
        key: Key[Array, ""],
        state: FlowState,
        direction: Float[Array, "n d"],
        entropy: Float[Array, "..."],
    ) -> tuple[PyTree[Array], optax.OptState]:
        """The optimizer's updates of the particles, with noise if the velocity diffuses."""
        # optax descends, so that its gradient is the negative of the direction.
        descent = ravel_particles(state.particles)[1](-direction)
        respond = lambda gradient: self.optimizer.update(gradient, state.optimizer, state.particles)
        # Under strict promotion optax's own powers of the step's number would raise.
        with jax.numpy_dtype_promotion("standard"):
            updates, optimizer_state = respond(descent)
            if self.velocity.diffuses:
                _, _, noise_key = step_keys(key, state.step)
                first = lambda gradient: respond(gradient)[0]
                updates = diffused(noise_key, updates, descent, first, entropy)
        # Noise, momentum and weight decay would move particles of weight zero too.
        lost = state.particle_weights == 0
        still = lambda update: jnp.where(lost.reshape(-1, *(1,) * (update.ndim - 1)), 0, update)
        return jax.tree.map(still, updates), optimizer_state
