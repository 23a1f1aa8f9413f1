"""Sampling towards several targets at once: the two toys of MWGraD and A-MWGraD, every velocity.

    python -m experiments.multi_target_sampling            # minutes; --quick for seconds

`two_component` (A-MWGraD, arXiv 2601.19220, section 4.1) measures how fast the combined gradient
vanishes: four two-component targets, 50 particles from N(0, I), bandwidth 1, step sizes .001, .005 and
.01, plain gradient descent against acceleration as published, semi-implicit, and with restart.

`three_component` (the toy in the code of MWGraD, arXiv 2505.18765) starts 50 particles far out, 5 N(0, I)
clipped to ±10, uses Adam at .03 and the median bandwidth, and asks where the particles end and what the
objectives' weights do on the way.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import tyro

from divjax import flows, kernels, problems
from experiments import common


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a run depends on."""

    num_particles: int = 50
    num_steps: int = 1000
    """Steps on the two-component toy; the three-component one takes half as many more."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    step_sizes: tuple[float, ...] = (0.001, 0.005, 0.01)
    bandwidth: float = 1.0
    learning_rate: float = 3e-2
    """Adam's, on the three-component toy."""
    step_size: float = 3e-2
    """The accelerated scheme's, and gradient descent's for Langevin, on the three-component toy."""

    def quick(self) -> "Settings":
        """The same experiment in seconds."""
        return dataclasses.replace(self, num_steps=30, seeds=(0, 1), step_sizes=(0.01,))


def velocities(kernel: kernels.Kernel) -> dict[str, Any]:
    """The estimators compared; all see the same kernel."""
    return {
        "SVGD": flows.SVGD(kernel),
        "Blob": flows.Blob(kernel),
        "GFSD": flows.GFSD(kernel),
        "neural": flows.NeuralScore(),
        "Langevin": flows.Langevin(),
    }


def explicit_momentum(step_size: jax.Array | float) -> optax.GradientTransformation:
    """A-MWGraD as published: the position moves with the old momentum, x ← x + √η v, then v is updated."""

    def init(params):
        return optax.tree.zeros_like(params), jnp.ones((), jnp.int32)

    def update(updates, state, params=None):
        del params
        momentum, n = state
        root = jnp.sqrt(step_size)
        step = jax.tree.map(lambda v: root * v, momentum)
        momentum = jax.tree.map(lambda v, g: (n - 1) / (n + 2) * v - root * g, momentum, updates)
        return step, (momentum, n + 1)

    return optax.GradientTransformation(init, update)


SCHEMES: dict[str, Callable[[Any], optax.GradientTransformation]] = {
    "MWGraD": optax.sgd,
    "A-MWGraD, published": explicit_momentum,
    "A-MWGraD, no restart": lambda step_size: flows.accelerated(step_size, restart=False),
    "A-MWGraD": flows.accelerated,
}


def keys(settings: Settings) -> jax.Array:
    """A key a seed."""
    return jax.vmap(jax.random.key)(jnp.asarray(settings.seeds))


def objectives(targets: tuple[problems.GaussianMixture, ...]) -> tuple[flows.KL, ...]:
    """One divergence a target."""
    return tuple(flows.KL(target.log_prob) for target in targets)


def two_component(settings: Settings, velocity: Any, scheme: Callable) -> dict[str, jax.Array]:
    """Gradient norms, weights and final particles, (step size, seed, …): one compilation."""
    targets = objectives(problems.two_component_targets())

    def run(step_size: jax.Array, key: jax.Array) -> dict[str, jax.Array]:
        start, noise = jax.random.split(key)
        result = flows.run(
            noise,
            jax.random.normal(start, (settings.num_particles, 2)),
            targets,
            velocity=velocity,
            optimizer=scheme(step_size),
            num_steps=settings.num_steps + 1,
        )
        return {
            "grad_norm": result.history.grad_norm,
            "weights": result.history.weights,
            "particles": result.particles,
            "finite": result.finite,
        }

    over_seeds = jax.vmap(run, in_axes=(None, 0))
    return jax.jit(jax.vmap(over_seeds, in_axes=(0, None)))(
        jnp.asarray(settings.step_sizes), keys(settings)
    )


def three_component(
    settings: Settings, velocity: Any, optimizer: optax.GradientTransformation
) -> dict[str, jax.Array]:
    """Snapshots, energies, weights and gradient norms, a row a seed."""
    targets = objectives(problems.three_component_targets())
    length = settings.num_steps // 2

    def run(key: jax.Array) -> dict[str, jax.Array]:
        start, noise = jax.random.split(key)
        particles = 5 * jax.random.normal(start, (settings.num_particles, 2))
        state, parts = jnp.clip(particles, -10, 10), []
        for _ in range(3):
            result = flows.run(
                noise, state, targets, velocity=velocity, optimizer=optimizer, num_steps=length
            )
            state = result.state
            parts.append((result.history, result.particles))
        histories, snapshots = zip(*parts, strict=True)
        history = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *histories)
        return {
            "snapshots": jnp.stack([jnp.clip(particles, -10, 10), *snapshots]),
            "values": history.values,
            "weights": history.weights,
            "grad_norm": history.grad_norm,
            "finite": state.finite,
        }

    return jax.jit(jax.vmap(run))(keys(settings))
