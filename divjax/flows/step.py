"""The parts of a step: keys, first variations, features, shared leaves, masses, finiteness."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from divjax.core.checks import check_shape
from divjax.core.pytrees import ravel_particles, select
from divjax.core.simplex import with_finite_padding
from divjax.flows.fields import combine
from divjax.flows.mass import FisherRao
from divjax.flows.protocols import Fields, Objective, Variation
from divjax.flows.state import FlowState

__all__ = [
    "Evaluation",
    "any_moved",
    "featurise",
    "first_variations",
    "initial_keys",
    "keep_if_finite",
    "shared_columns",
    "step_keys",
    "step_masses",
]

# Steps fold their number into the key. Initialisation folds a number that no step reaches.
_INIT = 2**32 - 1


class Evaluation(NamedTuple):
    """The fields at a state's particles, their parts, and the states that follow.

    Attributes:
        fields: the fields, as `Flow.fields` returns them.
        variations: the energies' first variations, stacked.
        entropies: the entropies' weights τ_k.
        drift: the energies' part of each field.
        repulsion: the entropy's part, common to all up to the factor τ_k.
        features: the kernels' inputs, by default the particles themselves.
        objectives: the objectives' next states.
        velocity: the velocity's next state.
    """

    fields: Fields
    variations: Variation
    entropies: Float[Array, " k"]
    drift: Float[Array, "k n d"]
    repulsion: Float[Array, "n d"]
    features: Float[Array, "n p"]
    objectives: tuple[PyTree, ...]
    velocity: PyTree


def initial_keys(key: Key[Array, ""]) -> Key[Array, "3"]:
    """The keys of initialisation: objectives and features, the velocity, the aggregator."""
    return jax.random.split(jax.random.fold_in(key, _INIT), 3)


def step_keys(
    key: Key[Array, ""], step: Int[Array, ""]
) -> tuple[Key[Array, ""], Key[Array, ""], Key[Array, ""]]:
    """A step's keys: objectives and features, the velocity, the noise."""
    # The third key, once the aggregators', is unused. It is still split off, so that a seed gives
    # the same noise as before.
    objectives, velocity, _, noise = jax.random.split(jax.random.fold_in(key, step), 4)
    return objectives, velocity, noise


def featurise(
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


def shared_columns(shared: PyTree[bool], particles: PyTree[Array]) -> Bool[Array, " d"]:
    """Which columns of the raveled particles belong to shared leaves."""
    # Compared first, since `tree.map` below would fail without the argument's name.
    if jax.tree.structure(shared) != jax.tree.structure(particles):
        raise ValueError(
            "shared must have the structure of particles, with one boolean per leaf; "
            f"got {jax.tree.structure(shared)} for {jax.tree.structure(particles)}."
        )
    for flag in jax.tree.leaves(shared):
        if not isinstance(flag, (bool, np.bool_)):
            raise ValueError(f"shared must hold booleans; got {type(flag).__name__}.")
    # Flags are raveled like particles, so that columns correspond. All rows are equal.
    filled = jax.tree.map(lambda leaf, flag: jnp.full(leaf.shape, flag), particles, shared)
    return ravel_particles(filled)[0][0].astype(bool)


def first_variations(
    objectives: Sequence[Objective], key: Key[Array, ""], state: FlowState
) -> tuple[Variation, tuple[PyTree, ...]]:
    """The K energies' first variations, stacked and raveled, and the objectives' next states."""
    particles, masses = state.particles, state.particle_weights
    n, d = ravel_particles(particles)[0].shape
    variations, later = [], []
    # Stochastic objectives share the key, hence the minibatch.
    for index, (objective, carried) in enumerate(zip(objectives, state.objectives, strict=True)):
        returned = objective(key, particles, masses, carried)
        # A variation is a tuple itself.
        if isinstance(returned, Variation) or not (
            isinstance(returned, tuple)
            and len(returned) == 2
            and isinstance(returned[0], Variation)
        ):
            raise ValueError(
                f"objectives[{index}] must return a Variation and the next state; got "
                f"{type(returned).__name__}."
            )
        variation, carried = returned
        # An objective of the caller's own may return anything. Another shape would broadcast.
        check_shape(f"objectives[{index}]'s value", variation.value)
        check_shape(f"objectives[{index}]'s potential", variation.potential, n)
        if hasattr(variation.gradient, "shape"):
            # Before it is a matrix, as which a vector has a second axis.
            check_shape(f"objectives[{index}]'s gradient", variation.gradient, n, d)
        gradient, _ = ravel_particles(variation.gradient)
        check_shape(f"objectives[{index}]'s gradient", gradient, n, d)
        variations.append(variation._replace(gradient=gradient))
        later.append(carried)
    stacked = Variation(
        value=jnp.stack([v.value for v in variations]),
        potential=jnp.stack([v.potential for v in variations]),
        gradient=jnp.stack([v.gradient for v in variations]),
    )
    return stacked, tuple(later)


def step_masses(
    mass: FisherRao | None,
    evaluation: Evaluation,
    state: FlowState,
    weights: Float[Array, "k ..."],
    entropy: Float[Array, "..."],
) -> tuple[Float[Array, " n"], PyTree]:
    """The masses after the Fisher–Rao step, if there is one, and its next state."""
    masses = state.particle_weights
    if mass is None:
        return masses, state.mass
    # A zero-weight particle's potential may be infinite, and an objective's weight of zero would
    # make it NaN.
    potentials = with_finite_padding(evaluation.variations.potential.T, masses).T
    potential = combine(weights, potentials)
    later, mass_state = mass(evaluation.features, masses, potential, entropy, state.mass)
    return later.astype(masses.dtype), mass_state


def any_moved(
    before: PyTree[Array], after: PyTree[Array], updates: PyTree[Array]
) -> Bool[Array, ""]:
    """Whether a particle moved, or all updates are zero."""
    pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    # NaN entries, of zero-weight particles, do not count as moved.
    moved = jnp.stack([jnp.any((one != other) & (one == one)) for one, other in pairs])
    # Updates that are exactly zero are stationary, not lost to rounding.
    still = jnp.stack([jnp.all(update == 0) for update in jax.tree.leaves(updates)])
    return moved.any() | still.all()


def keep_if_finite(proposed: FlowState, before: FlowState) -> FlowState:
    """The proposed state, or the one before the step if its particles or masses are not finite.

    A non-finite step would spoil the state for good. It is flagged and not taken.
    """
    # Zero-weight particles may hold any value.
    living = with_finite_padding(ravel_particles(proposed.particles)[0], before.particle_weights)
    sound = jnp.isfinite(living).all() & jnp.isfinite(proposed.particle_weights).all()
    kept = select(sound, proposed, before)
    # The step's number always advances, so the next step draws other random numbers.
    return kept._replace(step=before.step + 1, finite=proposed.finite & sound)
