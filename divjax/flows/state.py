"""The state of a flow, the record of its steps, and the result of a run."""

import dataclasses
from typing import NamedTuple

import optax
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, PyTree

from divjax.core.pytrees import pytree
from divjax.core.types import Outcome, summary

__all__ = ["FlowResult", "FlowState", "History", "StepInfo"]


class FlowState(NamedTuple):
    """The state that a flow carries from one step to the next, a pytree of arrays.

    Attributes:
        particles: the particles, as given to `init`.
        particle_weights: the particles' masses, summing to one.
        objectives: the states of the objectives, one each.
        velocity: the velocity's state (a bandwidth, a network).
        aggregator: the aggregator's state.
        optimizer: the optax state.
        mass: the state of the step on the masses.
        step: the number of steps, including those not taken because a value was not finite.
        finite: whether every objective value and every step so far was finite.
        resolved: whether the last step moved a particle: nonzero updates may be too small for the
            particles' dtype.
    """

    particles: PyTree[Array]
    particle_weights: Float[Array, " n"]
    objectives: tuple[PyTree, ...]
    velocity: PyTree
    aggregator: PyTree
    optimizer: optax.OptState
    mass: PyTree
    step: Int[Array, ""]
    finite: Bool[Array, ""]
    resolved: Bool[Array, ""]

    def __repr__(self) -> str:
        step = "traced" if isinstance(self.step, Tracer) else self.step
        return f"FlowState(step={step})"


class StepInfo(NamedTuple):
    """The values and weights of a step at the particles that it started from.

    Attributes:
        values: the K energies E_k(q).
        weights: the K objective weights, or K for each particle.
        squared_norm: the *squared* norm Σ_i a_i ‖v(x_i)‖² of the field v that moves the particles,
            Σ_k w_k v_k (and the objectives' own field on leaves that are not shared). Zero if the
            estimated field vanishes, hence a measure of convergence. It is not comparable between
            velocities: SVGD's field is smoothed, Langevin's lacks the entropy.
    """

    values: Float[Array, " k"]
    weights: Float[Array, " k"] | Float[Array, "k n"]
    squared_norm: Float[Array, ""]

    __repr__ = summary


class History(NamedTuple):
    """`StepInfo` at the recorded steps, stacked.

    Entry t, and the output of `observe`, belong to the state after `step[t]` steps, before the next
    one. The state after all steps is therefore not recorded, except by a run that continues it.
    After a stop at the tolerance, the remaining entries repeat the last recorded one.
    """

    step: Int[Array, " t"]
    values: Float[Array, "t k"]
    weights: Float[Array, "t k"] | Float[Array, "t k n"]
    squared_norm: Float[Array, " t"]
    observed: PyTree

    __repr__ = summary


@pytree
class FlowResult(Outcome):
    """The final state of a flow, its history, and whether both can be trusted.

    `finite` is False if an energy, update or mass was not finite, or a traced tolerance is invalid.
    A step that would have made particles or masses non-finite was not taken: they are as before it,
    with all states.

    Attributes:
        particles: the final particles.
        particle_weights: their masses, equal unless the flow has a `mass` step.
        history: the recorded steps.
        state: the complete final state, from which `Flow.run` can continue.
        status: a `Status`. INVALID_INPUT for a traced tolerance that is negative or NaN, NOT_FINITE
            if a number was not finite, FLOATING_POINT_RESOLUTION if the last step's updates were
            too small to move any particle. Otherwise, with a tolerance CONVERGED if it was reached
            and MAX_ITERATIONS if not, and without one CONVERGED: all steps were taken, whatever the
            distance from stationarity (see `history.squared_norm` and `pareto_residual`).
    """

    particles: PyTree[Array]
    particle_weights: Float[Array, " n"]
    history: History
    state: FlowState
    status: Int[Array, ""]

    def __repr__(self) -> str:
        # The state prints itself, in a few characters instead of all its fields.
        fields = summary(dataclasses.replace(self, state=()))  # pyright: ignore[reportArgumentType]
        return fields.replace("state=()", f"state={self.state}")
