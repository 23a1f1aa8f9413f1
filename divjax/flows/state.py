"""The state of a flow, the record of a step, and the result of a run."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, PyTree

from divjax.core.types import Outcome, Status, status_of, summary

__all__ = ["Fields", "FlowResult", "FlowState", "History", "StepInfo"]


class FlowState(NamedTuple):
    """The state that a flow carries from one step to the next, a pytree of arrays.

    Attributes:
        particles: the particles, as given to `init`.
        particle_weights: the particles' masses, summing to one.
        objectives: the states of the objectives, one each.
        velocity: the velocity's state (a bandwidth, a network).
        aggregator: the aggregator's state.
        optimizer: the optax state.
        reaction: the state of the step on the masses.
        step: the number of steps, including those not taken.
        finite: whether every objective value and every step so far was finite.
        resolved: whether the last step moved a particle: nonzero updates may be too small for the
            particles' dtype.
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
    resolved: Bool[Array, ""]

    def __repr__(self) -> str:
        step = "traced" if isinstance(self.step, Tracer) else self.step
        return f"FlowState(step={step})"


class StepInfo(NamedTuple):
    """The values and weights of a step at the particles that it started from.

    Attributes:
        values: the K energies E_k(q).
        weights: the K objective weights.
        squared_norm: the *squared* norm Σ_i a_i ‖v(x_i)‖² of the field v that moves the particles,
            Σ_k w_k v_k (and the objectives' own field on leaves that are not shared). Zero if the
            estimated field vanishes, hence a measure of convergence for one velocity, but no scale
            to compare two on: SVGD's field is smoothed, Langevin's lacks the entropy.
    """

    values: Float[Array, " k"]
    weights: Float[Array, " k"]
    squared_norm: Float[Array, ""]

    __repr__ = summary


class Fields(NamedTuple):
    """The K velocity fields at a state's particles, and their parts.

    Attributes:
        values: the K energies E_k(q).
        potentials: their first variations δE_k/δq(x_i).
        entropies: the entropies' weights τ_k.
        drift: the energies' part of each field.
        repulsion: the entropy's part, common to all up to the factor τ_k.
        features: the kernels' inputs, by default the particles themselves.
        objectives, velocity: the next states of both.
    """

    values: Float[Array, " k"]
    potentials: Float[Array, "k n"]
    entropies: Float[Array, " k"]
    drift: Float[Array, "k n d"]
    repulsion: Float[Array, "n d"]
    features: Float[Array, "n p"]
    objectives: tuple[Any, ...]
    velocity: Any

    __repr__ = summary

    @property
    def velocities(self) -> Float[Array, "k n d"]:
        """The K fields, drift plus τ_k times the repulsion."""
        return self.drift + self.entropies[:, None, None] * self.repulsion


class History(NamedTuple):
    """`StepInfo` at the recorded steps, stacked.

    Entry t, and the output of `observe`, belong to the state after `step[t]` steps, before the next
    one. The end of a run is thus not among them; `run` continued from it by one step records it.
    """

    step: Int[Array, " t"]
    values: Float[Array, "t k"]
    weights: Float[Array, "t k"]
    squared_norm: Float[Array, " t"]
    observed: Any

    __repr__ = summary


class FlowResult(NamedTuple):
    """The final state of a flow, whether it can be trusted, and its history.

    Attributes:
        particles: the final particles.
        particle_weights: their masses, equal unless the run was given a `reaction`.
        finite: False if any energy, update or mass was not finite. A step that would have made
            particles or masses non-finite was not taken: they are as before it, with all states.
        history: the recorded steps.
        state: the complete final state, from which `run` can continue.
    """

    particles: PyTree[Array]
    particle_weights: Float[Array, " n"]
    finite: Bool[Array, ""]
    history: History
    state: FlowState

    @property
    def status(self) -> Int[Array, ""]:
        """A `Status` of the steps, not of the flow's stationarity.

        NOT_FINITE unless `finite`, FLOATING_POINT_RESOLUTION if the last step's updates were too
        small to move any particle, otherwise CONVERGED: all steps were taken. For the distance from
        stationarity see `history.squared_norm` and `pareto_residual`.
        """
        return status_of(converged=True, resolved=self.state.resolved, finite=self.finite)

    check = Outcome.check

    def __repr__(self) -> str:
        # The state prints itself, in a few characters instead of all its fields.
        fields = summary(self._replace(state=())).removesuffix("state=())")
        # Under `vmap` each run has a status of its own, and no single name fits.
        several = isinstance(self.finite, Tracer) or jnp.ndim(self.finite)
        status = "" if several else f"{Status(int(self.status)).name}, "
        return fields.replace("(", f"({status}", 1) + f"state={self.state})"
