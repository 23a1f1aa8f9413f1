"""Langevin dynamics: noise after the optimizer in place of an estimate of the score."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key, PyTree

from divjax.core.checks import check_matrix
from divjax.core.pytrees import pytree
from divjax.core.samples import Numbers
from divjax.flows.mass import checked_step

__all__ = ["Langevin", "diffused"]


@pytree
class Langevin:
    """Langevin dynamics: noise of the right temperature replaces the entropy's field.

    dX = −Σ_k w_k ∇E_k(X) dt + √(2 Σ_k w_k τ_k) dB. The velocity is the drift alone. A flow's step
    adds the noise √(2 τ P) ξ *after* the optimizer, where P = −∂update/∂gradient is the step size
    that the optimizer applies to each coordinate (the learning rate of gradient descent, including
    schedules and per-leaf rates). Noise passed through an adaptive optimizer would have another
    temperature.

    Exact, up to discretisation, if the optimizer's update is −P g with a diagonal P that does not
    depend on the current g: gradient descent, with any schedule and per-leaf rates. With any other
    optimizer (momentum, `accelerated`, RMSProp, Adam, clipping, signs) particles still descend and
    diffuse, but the temperature is wrong, in either direction, and the result is not a sample of
    the target. Weights of objectives are computed from the energies' gradients alone, since the
    score of q is never estimated.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> x, weights = jnp.zeros((1, 2)), jnp.ones(1)
        >>> drift, repulsion, _ = Langevin()(jax.random.key(0), x, weights, jnp.ones((1, 1, 2)), ())
        >>> drift.tolist(), repulsion.tolist()
        ([[[-1.0, -1.0]]], [[0.0, 0.0]])

    References:
        Roberts, Tweedie 1996, eq. 2.
    """

    diffuses = True

    def init(self, key: Key[Array, ""], x: Float[Numbers, "n p"]) -> tuple[()]:
        """The empty state; checks the particles."""
        check_matrix(x=x)
        return ()

    def __call__(
        self,
        key: Key[Array, ""],
        x: Float[Numbers, "n p"],
        weights: Float[Numbers, " n"],
        gradients: Float[Numbers, "k n d"],
        state: PyTree,
    ) -> tuple[Float[Array, "k n d"], Float[Array, "n p"], PyTree]:
        """The drifts −g and a repulsion of zero."""
        x, weights, gradients = checked_step(x, weights, gradients)
        return -gradients, jnp.zeros_like(x), state


def diffused(
    key: Key[Array, ""],
    updates: PyTree[Array],
    descent: PyTree[Array],
    respond: Callable[[PyTree[Array]], PyTree[Array]],
    entropy: Float[Array, ""] | Float[Array, " n"],
) -> PyTree[Array]:
    """Updates plus noise √(2τP) ξ, P the optimizer's own step size, coordinate by coordinate.

    Args:
        key: for ξ.
        updates: the optimizer's updates of the particles.
        descent: the gradient that they respond to.
        respond: the updates as a function of the gradient.
        entropy: τ, one number or one per particle.
    """
    # The tangent of ones gives the row sums of −P: its diagonal, if the optimizer acts on each
    # coordinate alone.
    _, response = jax.jvp(respond, (descent,), (jax.tree.map(jnp.ones_like, descent),))

    def diffuse(update: Array, slope: Array, key: Key[Array, ""]) -> Array:
        # A particle's own entropy holds for all its coordinates.
        tau = entropy if entropy.ndim == 0 else entropy.reshape(-1, *[1] * (update.ndim - 1))
        # An update that increases with the gradient has no step size: no noise there, instead of
        # NaN.
        scale = jnp.sqrt(2 * tau * jnp.maximum(-slope, 0))
        return update + scale * jax.random.normal(key, update.shape, update.dtype)

    return jax.tree.map(diffuse, updates, response, optax.tree.split_key_like(key, updates))
