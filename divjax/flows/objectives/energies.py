"""Energies in closed form: of a density, of a potential, of an interaction."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Key, PyTree

from divjax.core.checks import (
    check_arguments,
    check_callable,
    check_flag,
    check_nonnegative,
    check_scalar,
    check_scalar_output,
)
from divjax.core.numerics import nan_unless
from divjax.core.pytrees import as_pytree, pytree, ravel_particles, static
from divjax.core.samples import Numbers
from divjax.flows.mass import weighted_sum
from divjax.flows.objectives.targets import as_particles, weighted_particles
from divjax.flows.protocols import Variation
from divjax.kernels.protocols import Kernel, check_kernel
from divjax.kernels.sums import kernel_sums

__all__ = ["KL", "Interaction", "Potential", "as_function"]


def _expected_energy(
    name: str,
    function: Callable[..., Array],
    stochastic: bool,
    key: Key[Array, ""],
    particles: PyTree[Array],
    weights: Float[Array, " n"],
) -> Variation:
    """The variation of E(q) = E_q[function(x)], whose first variation is the function itself."""
    arguments = ("key", "particle") if stochastic else ("particle",)
    check_arguments(name, function, *arguments)

    def energy(key, particle):
        return function(key, particle) if stochastic else function(particle)

    particles, weights = weighted_particles(particles, weights)
    # Checked for one particle: an error from within `vmap` would not name the argument.
    particle = jax.tree.map(lambda leaf: leaf[0], particles)
    check_scalar_output(name, energy, key, particle)
    # E is linear in q, so δE/δq is the function itself. All particles share the key: with a
    # separate minibatch for each particle, E would not be a functional of q.
    potential, gradient = jax.vmap(jax.value_and_grad(energy, argnums=1), (None, 0))(key, particles)
    return Variation(weighted_sum(weights, potential), potential, gradient)


def as_function(name: str, function: Callable[..., Array]) -> Callable[..., Array]:
    """A callable as a pytree. JAX's placeholders pass: a bare object, None, an axis."""
    if type(function) not in (object, type(None), bool, int):
        check_callable(**{name: function})
    return as_pytree(function)


@pytree
class KL:
    """The Kullback–Leibler divergence KL(q‖π) to a density known up to a constant.

    F(q) = ∫ q log q − E_q[log π(x)]: the energy is E_q[−log π], and the entropy's weight is 1. The
    value recorded along a flow is this energy, the part that particles determine without a density
    estimate. It differs from KL(q‖π) by the negative entropy of q and by log Z.

    Attributes:
        log_prob: log π up to a constant. Takes one particle, of shape (d,) or a pytree, and returns
            a scalar; `(key, particle) -> scalar` if `stochastic`. The arrays of a bound method
            (`mixture.log_prob`) are leaves.
        stochastic: whether `log_prob` draws a minibatch from a key. All objectives of a step get
            the same key, hence the same draw if they draw alike.

    Raises:
        ValueError: if `log_prob` is not a function, or, in a flow, does not take a particle or
            return a real scalar.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> objective = KL(lambda x: -0.5 * jnp.sum(x**2))
        >>> x = jnp.array([[1.0, 0.0], [0.0, 3.0]])
        >>> variation, _ = objective(jax.random.key(0), x, jnp.full(2, 0.5), ())
        >>> variation.gradient.tolist(), float(variation.value)
        ([[1.0, 0.0], [0.0, 3.0]], 2.5)

    References:
        Jordan, Kinderlehrer, Otto 1998, eq. 5: the Wasserstein gradient of F.
    """

    log_prob: Callable[..., Array]
    stochastic: bool = static(default=False)

    def __post_init__(self):
        check_flag(stochastic=self.stochastic)
        object.__setattr__(self, "log_prob", as_function("log_prob", self.log_prob))

    entropy = 1.0

    def init(self, key: Key[Array, ""], particles: PyTree[Array]) -> tuple[()]:
        """The empty state."""
        return ()

    def __call__(
        self,
        key: Key[Array, ""],
        particles: PyTree[Array],
        weights: Float[Numbers, " n"],
        state: PyTree,
    ) -> tuple[Variation, PyTree]:
        """The variation of E_q[−log π]."""
        # Value, potential and gradient are linear in the energy, hence all change sign.
        log_prob = _expected_energy(
            "log_prob", self.log_prob, self.stochastic, key, particles, weights
        )
        return jax.tree.map(jnp.negative, log_prob), state


@pytree
class Potential:
    """A potential energy, or a loss: F(q) = E_q[energy(x)], with no entropy.

    Attributes:
        energy: takes one particle, of shape (d,) or a pytree, and returns a scalar;
            `(key, particle) -> scalar` if `stochastic`.
        stochastic: whether `energy` draws a minibatch from a key.
        entropy: τ ≥ 0 adds τ ∫ q log q, tempering the flow. τ = 0 (the default) optimizes each
            particle, τ = 1 samples from exp(−energy).

    Raises:
        ValueError: if `energy` is not a function, or, in a flow, does not take a particle or return
            a real scalar, or if `entropy` is a negative Python number. A negative traced one makes
            the variation NaN.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> objective = Potential(lambda x: jnp.sum(x**2))
        >>> variation, _ = objective(jax.random.key(0), jnp.ones((1, 2)), jnp.ones(1), ())
        >>> variation.gradient.tolist()
        [[2.0, 2.0]]

    References:
        Santambrogio 2017, section 4.3: potential energies in Wasserstein space.
    """

    energy: Callable[..., Array]
    stochastic: bool = static(default=False)
    entropy: ArrayLike = 0.0

    def __post_init__(self):
        check_flag(stochastic=self.stochastic)
        object.__setattr__(self, "energy", as_function("energy", self.energy))
        check_nonnegative(entropy=self.entropy)

    def init(self, key: Key[Array, ""], particles: PyTree[Array]) -> tuple[()]:
        """The empty state."""
        return ()

    def __call__(
        self,
        key: Key[Array, ""],
        particles: PyTree[Array],
        weights: Float[Numbers, " n"],
        state: PyTree,
    ) -> tuple[Variation, PyTree]:
        """The variation of E_q[energy]."""
        variation = _expected_energy(
            "energy", self.energy, self.stochastic, key, particles, weights
        )
        # Python numbers are checked when the objective is made, traced ones give NaN.
        if isinstance(self.entropy, (int, float)):
            return variation, state
        check_scalar(entropy=self.entropy)
        valid = jnp.asarray(self.entropy) >= 0
        return jax.tree.map(lambda leaf: nan_unless(valid, leaf), variation), state


@pytree
class Interaction:
    """The interaction energy F(q) = ½ ∬ k(x, y) dq(x) dq(y), with no entropy.

    Minimising it with a positive definite kernel spreads particles out. Its first variation is
    ∫ k(x, y) dq(y). Memory is O(n²) up to the budget of `divjax.core.pairwise`, blocked beyond it.

    Attributes:
        kernel: a kernel of `divjax.kernels`. A bandwidth rule is evaluated once, at the first
            particles, so that F stays one functional along the flow.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from divjax.kernels import Gaussian
        >>> objective = Interaction(Gaussian(bandwidth=1.0))
        >>> x = jnp.array([[0.0], [1.0]])
        >>> state = objective.init(jax.random.key(0), x)
        >>> variation, _ = objective(jax.random.key(0), x, jnp.full(2, 0.5), state)
        >>> variation.gradient[:, 0].round(3).tolist()  # ±½ exp(−½): descending it moves them apart
        [0.303, -0.303]

    References:
        Ambrosio, Gigli, Savaré 2008, section 9.3.
    """

    kernel: Kernel

    entropy = 0.0

    def __post_init__(self):
        check_kernel(self.kernel)

    def init(self, key: Key[Array, ""], particles: PyTree[Array]) -> Kernel:
        """The resolved kernel."""
        # The state is the kernel: with a bandwidth that follows the particles, F would change.
        x, _ = ravel_particles(as_particles(particles))
        return self.kernel.resolve(x, self.kernel.init(x))[0]

    def __call__(
        self,
        key: Key[Array, ""],
        particles: PyTree[Array],
        weights: Float[Numbers, " n"],
        state: PyTree,
    ) -> tuple[Variation, PyTree]:
        """The variation of ½ ∬ k dq dq."""
        particles, weights = weighted_particles(particles, weights)
        x, unravel = ravel_particles(particles)
        # Σ_j a_j k(x_i, x_j) and its gradient in x_i. By the symmetry of k the factor ½ cancels.
        mass = weights[:, None]
        potential, gradient = kernel_sums(state, x, None, mass, mass)
        potential = potential[:, 0]
        # E(q) = ½ Σ_ij a_i a_j k(x_i, x_j), half of the mean of its first variation.
        value = 0.5 * weighted_sum(weights, potential)
        return Variation(value, potential, unravel(gradient[:, 0])), state
