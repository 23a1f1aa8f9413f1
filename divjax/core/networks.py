"""Small networks as pytrees of parameters, built from flax.nnx modules."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key, PyTree

__all__ = ["MLP", "BuildMLP", "Network", "apply_network", "init_network"]

Network = Callable[[int, nnx.Rngs], nnx.Module]


class MLP(nnx.Module):
    """A multilayer perceptron with smooth activations whose output starts at zero.

    Starting at zero, a critic is constant and a residual absent: the estimator begins at its
    reference. The activation is the swish, smooth enough for scores of scores.
    """

    def __init__(self, in_features: int, hidden: Sequence[int], out_features: int, rngs: nnx.Rngs):
        widths = [in_features, *hidden]
        self.layers = nnx.List([nnx.Linear(a, b, rngs=rngs) for a, b in itertools.pairwise(widths)])
        self.head = nnx.Linear(
            widths[-1], out_features, kernel_init=nnx.initializers.zeros, rngs=rngs
        )

    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... out"]:
        """The output for each row."""
        for layer in self.layers:
            x = nnx.swish(layer(x))
        return self.head(x)


@dataclasses.dataclass(frozen=True)
class BuildMLP:
    """The `Network` that builds an `MLP`: hashable, hence static."""

    hidden: tuple[int, ...]
    out_features: int = 1

    def __call__(self, in_features: int, rngs: nnx.Rngs) -> MLP:
        """The module."""
        return MLP(in_features, self.hidden, self.out_features, rngs)


def init_network(
    network: Network, key: Key[Array, ""], in_features: int, dtype: Any
) -> PyTree[Array]:
    """The network's parameters, in the given dtype, as a pytree of arrays."""
    state = nnx.state(network(in_features, nnx.Rngs(key)), nnx.Param)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), nnx.to_pure_dict(state))


def apply_network(
    network: Network, params: PyTree[Array], x: Float[Array, "b d"]
) -> Float[Array, "b ..."]:
    """The network with these parameters, on a batch. Its structure is rebuilt while tracing."""
    model = nnx.eval_shape(lambda: network(x.shape[-1], nnx.Rngs(0)))
    graph, state = nnx.split(model, nnx.Param)
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graph, state)(x)
