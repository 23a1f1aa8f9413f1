"""KL(p‖q) from log-probabilities of samples of p: values, and losses with the right gradient."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from divjax.core.arguments import as_leaves
from divjax.core.samples import Numbers, Unrounded, as_arrays, without_offset
from divjax.fdiv.special import exp_remainder

__all__ = ["sampled_kl", "sampled_kl_surrogate"]


def _checked(
    log_p: Float[ArrayLike, "..."], log_q: Float[ArrayLike, "..."], estimator: str
) -> tuple[Unrounded, ...]:
    if estimator not in ("k1", "k2", "k3"):
        raise ValueError(f'estimator must be "k1", "k2" or "k3"; got {estimator!r}.')
    shapes = [jnp.shape(leaf) for leaf in as_leaves(log_p=log_p, log_q=log_q)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"log_p and log_q must have the same shape; got {shapes[0]} and {shapes[1]}."
        )
    # Estimates depend on the difference of the two log-probabilities alone.
    return without_offset(lambda log: log, log_p=log_p, log_q=log_q)


def sampled_kl(
    log_p: Float[Numbers, "..."], log_q: Float[Numbers, "..."], estimator: str = "k3"
) -> Float[Array, "..."]:
    """KL(p‖q) from samples x ~ p: one estimate per sample, whose mean estimates the divergence.

    With r = q(x)/p(x):

    - "k1": −log r, unbiased, of either sign.
    - "k2": ½ (log r)², at least zero and biased, by third order in p − q.
    - "k3": (r − 1) − log r, unbiased if q has no mass outside of p's support, at least zero, and of
      low variance for p near q. r has heavy tails where q ≫ p.

    A *value*: do not differentiate it. For samples of the p that is being learned, the expected
    gradients with respect to p are 0 for k1, ∇KL(p‖q) for k2, and ∇KL(q‖p), the other direction,
    for k3. `sampled_kl_surrogate` has the right gradient for every estimator.

    Args:
        log_p: log-probabilities under p of its samples, of any shape.
        log_q: log-probabilities of the same samples under q.
        estimator: "k1", "k2" or "k3".

    Returns:
        Estimates in nats, one per sample: average them over samples, without padding.

    Raises:
        ValueError: if the estimator is not one of the three, or shapes differ.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.fdiv.categorical import kl
        >>> p, q = jnp.array([0.5, 0.5]), jnp.array([0.75, 0.25])
        >>> round(float(jnp.dot(p, sampled_kl(jnp.log(p), jnp.log(q)))), 4)  # all of p's samples
        0.1438
        >>> round(float(kl(p, q)), 4)
        0.1438

    References:
        Schulman 2020, Approximating KL divergence: k1, k2, k3.
    """
    return _sampled_kl(*_checked(log_p, log_q, estimator), estimator)


@functools.partial(jax.jit, static_argnames="estimator")
def _sampled_kl(log_p: ArrayLike, log_q: ArrayLike, estimator: str) -> Float[Array, "..."]:
    log_p, log_q = as_arrays(log_p=log_p, log_q=log_q)
    log_r = log_q - log_p
    if estimator == "k1":
        return -log_r
    # k3 as a function of log r: r − 1 − log r itself cancels near p = q.
    return 0.5 * jnp.square(log_r) if estimator == "k2" else exp_remainder(log_r)


def sampled_kl_surrogate(
    log_p: Float[Numbers, "..."], log_q: Float[Numbers, "..."], estimator: str = "k3"
) -> Float[Array, "..."]:
    """`sampled_kl` as a loss: the same value, with the unbiased gradient of KL(p‖q).

    For x ~ p, ∇_p KL(p‖q) = E[log(p/q) ∇log p] (the score-function gradient, which k2 also has) and
    ∇_q KL(p‖q) = −E[∇log q]. The value's own derivative is replaced by these two.

    Unbiased for samples drawn from the current p. If x is a sequence, give the log-probabilities of
    whole sequences: a loss of per-token estimates, summed over tokens, leaves out how a token
    changes the divergence of later tokens.

    Args:
        log_p: log-probabilities under p of its samples, of any shape.
        log_q: log-probabilities of the same samples under q.
        estimator: the estimator of the value: "k1", "k2" or "k3".

    Returns:
        Estimates in nats, one per sample: average them over samples.

    Raises:
        ValueError: if the estimator is not one of the three, or shapes differ.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> log_p, log_q = jnp.log(jnp.array([0.5, 0.25])), jnp.log(jnp.array([0.25, 0.25]))
        >>> gradient = jax.grad(lambda log_p: sampled_kl_surrogate(log_p, log_q).sum())(log_p)
        >>> gradient.round(4).tolist()  # log(p/q), the score's factor
        [0.6931, 0.0]

    References:
        Schulman 2020, Approximating KL divergence: the values. Williams 1992: the score function.
    """
    return _surrogate(*_checked(log_p, log_q, estimator), estimator)


@functools.partial(jax.jit, static_argnames="estimator")
def _surrogate(log_p: ArrayLike, log_q: ArrayLike, estimator: str) -> Float[Array, "..."]:
    log_p, log_q = as_arrays(log_p=log_p, log_q=log_q)
    stop = jax.lax.stop_gradient
    value = stop(_sampled_kl(log_p, log_q, estimator))
    # These terms are zero, and their derivatives are those above.
    score = stop(log_p - log_q) * (log_p - stop(log_p))
    return value + score - (log_q - stop(log_q))
