"""What a ratio model is: a head that is fitted to one fold and evaluated anywhere."""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from divjax.core.simplex import effective_sample_size

__all__ = ["Fold", "Head", "cross_entropy", "num_rows"]


class Fold(NamedTuple):
    """Samples of p and q, standardised, and the parts they play in one fit.

    All rows are there in every fold; weights say who trains and who validates, so that all folds
    have one shape and train under one `vmap`. Each vector of weights sums to one, which makes both
    samples weigh the same however many rows they have.

    Attributes:
        p: samples of p.
        q: samples of q.
        train_p: the training rows' weights, zero elsewhere.
        train_q: the same for q.
        validation_p: the validation rows' weights, zero elsewhere.
        validation_q: the same for q.
    """

    p: Float[Array, "n d"]
    q: Float[Array, "m d"]
    train_p: Float[Array, " n"]
    train_q: Float[Array, " m"]
    validation_p: Float[Array, " n"]
    validation_q: Float[Array, " m"]


@runtime_checkable
class Head(Protocol):
    """A model of the log ratio u(z) = log p(z)/q(z): a pytree that vmaps over folds."""

    def fit(self, key: Key[Array, ""], fold: Fold) -> PyTree[Array]:
        """The fitted parameters, of the same structure and shapes for every fold."""
        ...

    def __call__(self, params: Any, z: Float[Array, "b d"]) -> Float[Array, " b"]:
        """The log ratio at each row."""
        ...


def cross_entropy(
    log_ratio_p: Float[Array, " n"],
    log_ratio_q: Float[Array, "..."],
    weights_p: Float[Array, " n"] | None = None,
    weights_q: Float[Array, "..."] | None = None,
) -> Float[Array, ""]:
    """The balanced cross-entropy ½E_p[log(1 + e^{−u})] + ½E_q[log(1 + e^u)], in nats.

    Its least value over all u is log 2 − JS(p, q), at the log ratio. It keeps its digits near 0,
    where JS is near log 2. Weights sum to one; uniform by default.
    """

    def mean(losses, weights):
        return jnp.mean(losses) if weights is None else jnp.sum(weights * losses)

    under_p = mean(jax.nn.softplus(-log_ratio_p), weights_p)
    return (under_p + mean(jax.nn.softplus(log_ratio_q), weights_q)) / 2


def num_rows(*weights: Float[Array, " n"]) -> Float[Array, ""]:
    """How many equally weighted rows these samples together are worth."""
    return jnp.sum(jnp.stack([effective_sample_size(weight) for weight in weights]))
