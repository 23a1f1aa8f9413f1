"""Checks of a flow's parts, particles and states, before anything is computed.

Having the attributes does not show that a call fits, so calls are checked by signature too: one
with other arguments would fail inside the scan.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, PyTree

from divjax.core.checks import (
    check_arguments,
    check_callable,
    check_count,
    check_nonnegative,
    check_nonnegative_values,
    check_provides,
    check_scalar,
)
from divjax.core.pytrees import num_particles
from divjax.core.samples import Numbers
from divjax.flows.mass import FisherRao
from divjax.flows.objectives.targets import as_particles
from divjax.flows.protocols import Aggregator, Objective, Velocity
from divjax.flows.state import FlowState

__all__ = [
    "check_aggregator",
    "check_continues",
    "check_number_of_objectives",
    "check_objectives",
    "check_optimizer_and_mass",
    "check_run",
    "check_velocity",
    "checked_particles",
]


def checked_particles(particles: Numbers | PyTree[Numbers]) -> PyTree[Array]:
    """Particles as JAX arrays of floating-point numbers.

    One array has rows, anything else is a pytree whose leaves share an axis.
    """
    particles = as_particles(particles)
    if hasattr(particles, "shape") and len(particles.shape) != 2:
        raise ValueError(
            "particles given as one array must have shape (n, d); "
            f"got shape {particles.shape}. Particles of one feature are particles[:, None]; put "
            "other shapes in a pytree, such as a dictionary."
        )
    # The leaves of a pytree share a leading axis, that of the particles.
    num_particles(particles)
    for leaf in jax.tree.leaves(particles):
        # Integers could not move by fractions of one.
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise ValueError(f"particles must be floating-point; got {jnp.result_type(leaf)}.")
    return particles


def check_objectives(objectives: Sequence[Objective]) -> None:
    """Raise `ValueError` unless these are objectives, at least one."""
    if not isinstance(objectives, Sequence):
        raise ValueError(
            "objectives must be a sequence of objectives, such as (flows.KL(log_prob),); "
            f"got {type(objectives).__name__}."
        )
    if len(objectives) == 0:
        raise ValueError("objectives must hold at least one objective; got none.")
    # Both methods are called inside a scan, where an error would not name the objective. This also
    # catches the most frequent mistake, a class in place of its instance.
    for index, objective in enumerate(objectives):
        name, hint = f"objectives[{index}]", "an objective such as flows.KL(log_prob)"
        check_provides(name, objective, ("entropy", "init", "__call__"), hint)
        check_arguments(f"{name}.init", objective.init, "key", "particles")
        check_arguments(name, objective, "key", "particles", "weights", "state")


def check_velocity(velocity: Velocity, features: Callable[..., Array] | None) -> None:
    """Raise `ValueError` unless this is a velocity, one that uses features if there are any."""
    hint = "a velocity such as flows.SVGD()"
    check_provides("velocity", velocity, ("diffuses", "init", "__call__"), hint)
    check_arguments("velocity.init", velocity.init, "key", "x")
    check_arguments("velocity", velocity, "key", "x", "weights", "gradients", "state")
    if features is None:
        return
    check_callable(features=features)
    # Noise in the features' space has no pull-back to the particles.
    if velocity.diffuses:
        raise ValueError(
            f"features must be None with {type(velocity).__name__}, which has no kernel or network."
        )


def check_aggregator(aggregator: Aggregator) -> None:
    """Raise `ValueError` unless this is an aggregator."""
    hint = "an aggregator such as flows.MinNorm()"
    check_provides("aggregator", aggregator, ("init", "__call__"), hint)
    check_arguments("aggregator.init", aggregator.init, "key", "num_objectives")
    check_arguments("aggregator", aggregator, "fields", "state")


def check_optimizer_and_mass(
    optimizer: optax.GradientTransformation, mass: FisherRao | None
) -> None:
    """Raise `ValueError` unless both have the methods that a step calls."""
    hint = "an optax transformation such as optax.adam(0.1)"
    check_provides("optimizer", optimizer, ("init", "update"), hint)
    if mass is not None:
        hint = "a step on the masses such as flows.FisherRao(0.1, kernel)"
        check_provides("mass", mass, ("init", "__call__"), hint)


def check_run(
    num_steps: int,
    record_every: int,
    observe: Callable[[FlowState], PyTree[Array]] | None,
    tolerance: ArrayLike | None,
) -> None:
    """Raise `ValueError` for an argument of a run that is out of range. A traced one passes."""
    # No steps at all are allowed: the result is then the start.
    check_count(0, num_steps=num_steps)
    check_count(1, record_every=record_every)
    if observe is not None:
        check_callable(observe=observe)
    if tolerance is not None:
        check_scalar(tolerance=tolerance)
        check_nonnegative(tolerance=tolerance)
        check_nonnegative_values(tolerance=tolerance)


def check_number_of_objectives(state: FlowState, num_objectives: int) -> None:
    """Raise `ValueError` unless the state has one state per objective."""
    if len(state.objectives) != num_objectives:
        raise ValueError(
            f"objectives must number {len(state.objectives)}, as in the state that is continued; "
            f"got {num_objectives}."
        )


def check_continues(state: FlowState, fresh: FlowState) -> None:
    """Raise `ValueError` unless the state has the structure that the flow would start with."""
    check_number_of_objectives(state, len(fresh.objectives))
    # A scan's carry keeps its structure. With other settings it would fail there, without naming
    # the part that differs.
    for name in FlowState._fields:
        if jax.tree.structure(getattr(state, name)) != jax.tree.structure(getattr(fresh, name)):
            raise ValueError(f"{name} must be as in the run whose state is continued.")
