"""The four nouns of a multi-objective Wasserstein flow, as protocols.

A flow minimises K functionals F_k(q) = E_k(q) + τ_k ∫ q log q over distributions q, represented by
weighted particles Σ_i a_i δ_{x_i}. An *objective* defines E_k and τ_k. A *velocity* turns the K
energy gradients into K velocity fields, supplying the entropy's part. An *aggregator* weighs the K
fields. An *optimizer* (any optax transformation) takes the step.
"""

from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import Array, ArrayLike, Float, Key, PyTree

from divjax.core.types import summary

__all__ = ["Aggregator", "Fields", "Objective", "Variation", "Velocity"]


class Variation(NamedTuple):
    """An energy E(q) and its first variation δE/δq, evaluated at the particles.

    Attributes:
        value: E(q), a scalar.
        potential: δE/δq(x_i), one number per particle, up to a constant common to all of them.
        gradient: ∇δE/δq(x_i), the Wasserstein gradient, with the structure of the particles. It is
            the gradient of the potential at each particle, and not `jax.grad` of the value, which
            has each particle's mass as a factor, 1/n of it.
    """

    value: Float[Array, ""]
    potential: Float[Array, " n"]
    gradient: PyTree[Float[Array, "n ..."]]


@runtime_checkable
class Objective(Protocol):
    """A functional F(q) = E(q) + τ ∫ q log q of the particles' distribution.

    All objectives of a step receive the same key, so stochastic ones draw a common minibatch.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from divjax import flows, kernels
        >>> class Radius:  # E(q) = ½(E|x|² − 1)², δE/δq(x) = (E|x|² − 1) |x|²
        ...     entropy = 0.0
        ...
        ...     def init(self, key, particles):
        ...         return ()
        ...
        ...     def __call__(self, key, particles, weights, state):
        ...         squared = jnp.sum(particles**2, axis=1)
        ...         excess = weights @ squared - 1
        ...         gradient = 2 * excess * particles
        ...         return flows.Variation(excess**2 / 2, excess * squared, gradient), state
        >>> flow = flows.Flow([Radius()], velocity=flows.GFSD(kernels.Gaussian(1.0)),
        ...                   optimizer=optax.sgd(0.1))
        >>> start = jax.random.normal(jax.random.key(0), (20, 2))
        >>> particles = flow.run(jax.random.key(1), start, num_steps=100).particles
        >>> round(float(jnp.mean(jnp.sum(particles**2, axis=1))), 3)
        1.0
    """

    @property
    def entropy(self) -> ArrayLike:
        """τ, the weight of the negative entropy: 1 for a KL divergence, 0 for a pure energy."""
        ...

    def init(self, key: Key[Array, ""], particles: PyTree[Array]) -> PyTree:
        """The state carried from step to step (such as a critic), `()` if there is none."""
        ...

    def __call__(
        self,
        key: Key[Array, ""],
        particles: PyTree[Array],
        weights: Float[Array, " n"],
        state: PyTree,
    ) -> tuple[Variation, PyTree]:
        """The energy's first variation at the particles, and the next state."""
        ...


@runtime_checkable
class Velocity(Protocol):
    """Maps energy gradients to velocity fields, and estimates the entropy's own field.

    The field of objective k is `drift[k] + τ_k · repulsion`: one repulsion, one kernel matrix and
    one bandwidth serve all K objectives.
    """

    @property
    def diffuses(self) -> bool:
        """Whether noise takes the entropy's part, as in `Langevin`.

        The repulsion is then zero, and a step adds √(2τP) ξ after the optimizer, P its step size.
        """
        ...

    def init(self, key: Key[Array, ""], x: Float[Array, "n p"]) -> PyTree:
        """The state carried from step to step (a bandwidth, a network), `()` if there is none."""
        ...

    def __call__(
        self,
        key: Key[Array, ""],
        x: Float[Array, "n p"],
        weights: Float[Array, " n"],
        gradients: Float[Array, "k n d"],
        state: PyTree,
    ) -> tuple[Float[Array, "k n d"], Float[Array, "n p"], PyTree]:
        """The K drifts, the repulsion, and the next state.

        Args:
            key: for velocities that draw random numbers.
            x: the kernel's inputs: the particles as rows, or their features (then p ≠ d).
            weights: the particles' weights, summing to one.
            gradients: the K energy gradients at the particles.
            state: from `init` or the previous step.
        """
        ...


class Fields(NamedTuple):
    """The K velocity fields at the particles, with the values that aggregators may weigh them by.

    A flow fills in all four. An aggregator that depends on the fields alone, as all in this package
    do, can be called with the first two.

    Attributes:
        velocities: the fields v_k(x_i), raveled particles as rows. An aggregator gets them with
            zeros at the leaves that are not shared.
        masses: the particles' masses a_i, summing to one.
        values: the K energies E_k(q).
        potentials: their first variations δE_k/δq(x_i), each up to a constant.
    """

    velocities: Float[Array, "k n d"]
    masses: Float[Array, " n"]
    values: Float[Array, " k"] | None = None
    potentials: Float[Array, "k n"] | None = None

    __repr__ = summary


@runtime_checkable
class Aggregator(Protocol):
    """Weights over the K velocity fields."""

    def init(self, key: Key[Array, ""], num_objectives: int) -> PyTree:
        """The state carried from step to step, `()` if there is none.

        The key is for aggregators that draw random numbers, which then keep one in their state.
        """
        ...

    def __call__(
        self, fields: Fields, state: PyTree
    ) -> tuple[Float[Array, " k"] | Float[Array, "k n"], PyTree]:
        """The K weights, or K for each particle, and the next state."""
        ...
