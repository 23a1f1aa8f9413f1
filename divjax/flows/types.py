"""The four nouns of a multi-objective Wasserstein flow, as protocols.

A flow minimises K functionals F_k(q) = E_k(q) + τ_k ∫ q log q over distributions q, represented by
weighted particles Σ_i a_i δ_{x_i}. An *objective* defines E_k and τ_k. A *velocity* turns the K
energy gradients into K velocity fields, supplying the entropy's part. An *aggregator* weighs the K
fields. An *optimizer* (any optax transformation) takes the step.
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Array, ArrayLike, Float, Key, PyTree

__all__ = ["Aggregator", "Objective", "Variation", "Velocity"]


class Variation(NamedTuple):
    """An energy E(q) and its first variation δE/δq, evaluated at the particles.

    Attributes:
        value: E(q), a scalar.
        potential: δE/δq(x_i), one number per particle, up to a constant common to all of them.
        gradient: ∇δE/δq(x_i), the Wasserstein gradient, with the structure of the particles.
    """

    value: Float[Array, ""]
    potential: Float[Array, " n"]
    gradient: PyTree[Float[Array, "n ..."]]


@runtime_checkable
class Objective(Protocol):
    """A functional F(q) = E(q) + τ ∫ q log q of the particles' distribution.

    All objectives of a step receive the same key, so stochastic ones draw a common minibatch.
    """

    @property
    def entropy(self) -> ArrayLike:
        """τ, the weight of the negative entropy: 1 for a KL divergence, 0 for a pure energy."""
        ...

    def init(self, key: Key[Array, ""], particles: PyTree[Array]) -> Any:
        """The state carried from step to step (such as a critic), `()` if there is none."""
        ...

    def __call__(
        self, key: Key[Array, ""], particles: PyTree[Array], weights: Float[Array, " n"], state: Any
    ) -> tuple[Variation, Any]:
        """The energy's first variation at the particles, and the next state."""
        ...


class Velocity(Protocol):
    """Maps energy gradients to velocity fields, and estimates the entropy's own field.

    The field of objective k is `drift[k] + τ_k · repulsion`: one repulsion, one kernel matrix and
    one bandwidth serve all K objectives. A velocity may instead leave the entropy to noise, as
    `Langevin` does: with the attribute `diffuses = True` its repulsion is zero, and a step adds
    √(2τP) ξ after the optimizer.
    """

    def init(self, key: Key[Array, ""], x: Float[Array, "n p"]) -> Any:
        """The state carried from step to step (a bandwidth, a network), `()` if there is none."""
        ...

    def __call__(
        self,
        key: Key[Array, ""],
        x: Float[Array, "n p"],
        weights: Float[Array, " n"],
        gradients: Float[Array, "k n d"],
        state: Any,
    ) -> tuple[Float[Array, "k n d"], Float[Array, "n p"], Any]:
        """The K drifts, the repulsion, and the next state.

        Args:
            key: for velocities that draw random numbers.
            x: the kernel's inputs: the particles as rows, or their features (then p ≠ d).
            weights: the particles' weights, summing to one.
            gradients: the K energy gradients at the particles.
            state: from `init` or the previous step.
        """
        ...


class Aggregator(Protocol):
    """Weights over the K velocity fields."""

    def init(self, num_objectives: int) -> Any:
        """The state carried from step to step, `()` if there is none."""
        ...

    def __call__(
        self,
        key: Key[Array, ""],
        velocities: Float[Array, "k n d"],
        weights: Float[Array, " n"],
        state: Any,
    ) -> tuple[Float[Array, " k"], Any]:
        """The K weights, and the next state. `weights` are the particles', summing to one."""
        ...
