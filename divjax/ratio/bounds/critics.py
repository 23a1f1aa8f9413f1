"""Critics: learned log ratios, and the false pairs that train them for mutual information."""

import dataclasses
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, ArrayLike, Float, Int, Key, PyTree

from divjax.core.checks import check_count, check_key
from divjax.core.networks import MLP, Network, apply_network, init_network
from divjax.core.pytrees import pytree, static
from divjax.core.samples import Center, Numbers, Unrounded, as_numbers, as_samples
from divjax.core.standardize import Standardizer
from divjax.core.types import summary

__all__ = ["Critic", "derangement", "split_scores"]


@pytree
class Critic:
    """A learned estimate of the log ratio log p/q, for rows z; for pairs z = [x, y].

    Attributes:
        params: parameters of the network, or of the encoders of x and of y.
        shift: the location subtracted from each column of z.
        scale: the divisor of each shifted column.
        network: "joint" for a perceptron on z, "separable" for T = ⟨g(x), h(y)⟩, or a function that
            builds a network on z.
        hidden: widths of the perceptron, or of both encoders.
        x_features: the number of columns of z that are x.
        lower: lower limits of the standardised columns, beyond which values are compressed.
        upper: upper limits, likewise. See `Standardizer.squash`.
        center: the centre subtracted from z first, to the precision of NumPy's float64.
    """

    params: PyTree[Array]
    shift: Float[Array, " d"]
    scale: Float[Array, " d"]
    network: str | Network = static()
    hidden: tuple[int, ...] = static()
    x_features: int = static()
    lower: Float[ArrayLike, "..."] = -jnp.inf
    upper: Float[ArrayLike, "..."] = jnp.inf
    center: Center | None = None

    __repr__ = summary

    def _standard(self, z: Float[ArrayLike, "b d"]) -> Float[Array, "b d"]:
        # The centre is subtracted before NumPy's float64 becomes float32.
        z = as_samples(z=z)[0] if self.center is None else self.center.subtract(z)
        return Standardizer(self.shift, self.scale, self.lower, self.upper).squash(z)

    def _encoder(self, in_features: int, rngs: nnx.Rngs) -> nnx.Module:
        encoder = MLP(in_features, self.hidden, self.hidden[-1], rngs)
        # T = ⟨g, h⟩ starts at zero through g alone. With both at zero it would have no gradient.
        encoder.head = nnx.Linear(self.hidden[-1], self.hidden[-1], rngs=rngs)
        return encoder

    def _zero_encoder(self, in_features: int, rngs: nnx.Rngs) -> nnx.Module:
        return MLP(in_features, self.hidden, self.hidden[-1], rngs)

    def _mlp(self, in_features: int, rngs: nnx.Rngs) -> nnx.Module:
        return MLP(in_features, self.hidden, 1, rngs)

    @property
    def _joint(self) -> Network:
        return self._mlp if self.network == "joint" else cast(Network, self.network)

    def init(self, key: Key[Array, ""]) -> "Critic":
        """A copy with fresh parameters."""
        dtype, features = self.shift.dtype, self.shift.shape[0]
        if self.network != "separable":
            return self.replace(init_network(self._joint, key, features, dtype))
        keys = jax.random.split(key)
        of_x = init_network(self._zero_encoder, keys[0], self.x_features, dtype)
        of_y = init_network(self._encoder, keys[1], features - self.x_features, dtype)
        return self.replace((of_x, of_y))

    def replace(self, params: PyTree[Array]) -> "Critic":
        """A copy with these parameters."""
        return dataclasses.replace(self, params=params)

    def __call__(self, z: Float[Numbers, "b d"]) -> Float[Array, " b"]:
        """The log ratio at each row."""
        standard = self._standard(z)
        if self.network == "separable":
            return jnp.sum(jnp.multiply(*self._encode(standard)), axis=1)
        return apply_network(self._joint, self.params, standard).reshape(standard.shape[0])

    def _encode(self, z: Array) -> tuple[Array, Array]:
        x, y = z[:, : self.x_features], z[:, self.x_features :]
        of_x = apply_network(self._zero_encoder, self.params[0], x)
        return of_x, apply_network(self._encoder, self.params[1], y)

    def at_pairs(
        self, z: Float[Numbers, "b d"], num_negatives: int
    ) -> tuple[Float[Array, " b"], Float[Array, "b k"]]:
        """The log ratio at pairs, and at each x with the y of each of the k following rows.

        Rows follow each other cyclically, so that each of the k shifts is a derangement.
        """
        rows = jnp.arange(z.shape[0])[:, None]
        following = (rows + jnp.arange(1, num_negatives + 1)) % z.shape[0]
        # All b² scores are one matrix product, from which the required ones are selected.
        if self.network == "separable":
            g, h = self._encode(self._standard(z))
            scores = g @ h.T
            return jnp.diagonal(scores), jnp.take_along_axis(scores, following, axis=1)
        # A joint network evaluates the b true pairs and the b·k false ones as one batch.
        x = jnp.broadcast_to(rows, following.shape)
        mixed = jnp.concatenate([z[x, : self.x_features], z[following, self.x_features :]], axis=-1)
        everything = self(jnp.concatenate([z, mixed.reshape(-1, z.shape[1])]))
        return everything[: z.shape[0]], everything[z.shape[0] :].reshape(following.shape)


def split_scores(
    scores: Float[Numbers, "b b"],
) -> tuple[Unrounded, Unrounded]:
    """Critic values at true pairs and at false ones, from the matrix T(x_i, y_j).

    Args:
        scores: critic values, one row per x and one column per y, with pair i on the diagonal.

    Returns:
        The diagonal "b", and the rest of each row "b b-1"; NumPy's arrays of NumPy's scores, whose
        digits the bounds use.

    Raises:
        ValueError: if `scores` is not a square matrix of at least two rows of real numbers.

    Example:
        >>> u_p, u_q = split_scores(jnp.array([[5.0, 1.0], [2.0, 6.0]]))
        >>> u_p.tolist(), u_q.tolist()
        ([5.0, 6.0], [[1.0], [2.0]])
    """
    # NumPy's scores stay NumPy's: a constant that float32 cannot hold cancels in the bounds.
    scores = as_numbers("scores", scores)
    if scores.ndim != 2 or scores.shape[0] != scores.shape[1] or scores.shape[0] < 2:
        raise ValueError(
            f"scores must be a square matrix of at least two rows; got shape {scores.shape}."
        )
    library: Any = jnp if isinstance(scores, jax.Array) else np
    rows = library.arange(scores.shape[0])
    # Column i + j modulo b for j = 1, …, b − 1 leaves out the diagonal of row i alone.
    columns = (rows[:, None] + rows[None, 1:]) % scores.shape[0]
    return library.diagonal(scores), library.take_along_axis(scores, columns, axis=1)


def derangement(key: Key[Array, ""], n: int) -> Int[Array, " n"]:
    """A uniformly random cycle through all of 0, …, n − 1: a permutation without fixed points.

    Pairing x_i with y_σ(i) turns true pairs into pairs from the product of the marginals. A random
    permutation would keep one true pair on average, which limits the critic.

    Args:
        key: one typed key.
        n: the length, at least 2.

    Returns:
        σ, with σ(i) ≠ i for every i, as are σ², …, σ^{n−1}.

    Raises:
        ValueError: if the key is invalid, or n is not an integer of at least 2.

    Example:
        >>> sigma = derangement(jax.random.key(0), 5)
        >>> bool((sigma != jnp.arange(5)).all()), sorted(sigma.tolist())
        (True, [0, 1, 2, 3, 4])

    References:
        Letizia, Novello, Tonello 2024: derangements against permutations.
    """
    check_key(key)
    check_count(2, n=n)
    order = jax.random.permutation(key, n)
    # Each element is mapped to its successor in a random cycle, never to itself for n ≥ 2.
    return jnp.zeros_like(order).at[order].set(jnp.roll(order, -1))
