"""MOO-SVGD and MT-SGD, which weigh the tasks' gradients where MWGraD weighs velocities."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from divjax import flows, kernels
from divjax.core.pytrees import ravel_particles
from experiments.lenet import is_shared


@dataclasses.dataclass(frozen=True)
class Scalarized:
    """Several objectives made one before the velocity sees them, as MOO-SVGD and MT-SGD do.

    MWGraD weighs velocities, after the kernel; the two earlier methods weigh the tasks' gradients.
    MOO-SVGD (Liu, Tong, Liu 2021, algorithm 1) finds min-norm weights for every particle alone.
    MT-SGD (Phan et al. 2022, eq. 6) finds one set for all, in the kernel's norm: Q_kj = Σ_il k(x_i,
    x_l) ⟨g_k(x_i), g_j(x_l)⟩ / n². Heads follow their own task.
    """

    objectives: tuple[flows.Potential, ...]
    features: Any
    per_particle: bool

    @property
    def entropy(self) -> Any:
        """The repulsion's strength."""
        return self.objectives[0].entropy

    def init(self, key: Key[Array, ""], particles: PyTree[Array]) -> tuple[()]:
        """No state."""
        return ()

    def __call__(
        self, key: Key[Array, ""], particles: PyTree[Array], weights: Float[Array, " n"], state: Any
    ) -> tuple[flows.Variation, Any]:
        """The variation of the weighted sum."""
        parts = [objective(key, particles, weights, ())[0] for objective in self.objectives]
        shared = is_shared(jax.tree.map(lambda leaf: leaf[0], particles))
        encoder = [
            jax.tree.map(lambda g, flag: g if flag else jnp.zeros_like(g), part.gradient, shared)
            for part in parts
        ]
        gradients = jnp.stack([ravel_particles(gradient)[0] for gradient in encoder])
        if self.per_particle:
            gram = jnp.einsum("kid,jid->ikj", gradients, gradients)
            mixture = jax.vmap(flows.min_norm_weights)(gram).T
        else:
            z = jax.vmap(self.features, (None, 0))(key, particles)
            matrix = kernels.Gaussian()(z)
            gram = jnp.einsum("il,kid,jld->kj", matrix, gradients, gradients)
            mixture = flows.min_norm_weights(gram)[:, None] * jnp.ones(weights.shape[0])

        def combine(flag: bool, *leaves: Array) -> Array:
            shape = (-1,) + (1,) * (leaves[0].ndim - 1)
            weighed = [
                (w.reshape(shape) if flag else 1) * leaf
                for w, leaf in zip(mixture, leaves, strict=True)
            ]
            return functools.reduce(jnp.add, weighed)

        gradient = jax.tree.map(combine, shared, *(part.gradient for part in parts))
        potential = jnp.sum(mixture * jnp.stack([part.potential for part in parts]), axis=0)
        return flows.Variation(jnp.dot(weights, potential), potential, gradient), state
