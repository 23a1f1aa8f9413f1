"""Small networks as pytrees of parameters, built from flax.nnx modules."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key, PyTree

from divjax.core.sharding import shared_rows

__all__ = [
    "ICNN",
    "MLP",
    "BuildICNN",
    "BuildMLP",
    "Network",
    "apply_network",
    "init_network",
]

Network = Callable[[int, nnx.Rngs], nnx.Module]


class MLP(nnx.Module):
    """A multilayer perceptron with smooth activations whose output starts at zero.

    Starting at zero, a critic is constant and a residual absent: the estimator begins at its
    reference. The activation is the swish, smooth enough for scores of scores.
    """

    def __init__(self, in_features: int, hidden: Sequence[int], out_features: int, rngs: nnx.Rngs):
        widths = [in_features, *hidden]
        self.layers = nnx.List([nnx.Linear(a, b, rngs=rngs) for a, b in itertools.pairwise(widths)])
        # Biases are zero by default, so a zero kernel makes the output zero.
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


class ICNN(nnx.Module):
    """An input-convex network, z ↦ ⟨w, h(z)⟩ with one output per row, small at the start.

    h₀ = σ(A₀ z + (B₀ z)² + b₀) and h_k = σ(W_k h_{k−1} + A_k z + (B_k z)² + b_k) with W_k, w ≥ 0
    and the softplus σ, which is convex and increasing. Hence each h_k is convex in z, and smooth.
    At initialisation it bends in all directions and places, for z of about unit size: from a smooth
    start training hardly ever creates bends.

    References:
        Amos, Xu, Kolter 2017, proposition 1. Korotin et al. 2019: quadratic inputs.
    """

    def __init__(self, in_features: int, hidden: Sequence[int], rngs: nnx.Rngs):
        # Divided by √d: entries have the same spread in any dimension. Biases of unit size place
        # the bends within the range of z.
        root = in_features**0.5
        steep, flat = nnx.initializers.normal(2.0 / root), nnx.initializers.normal(0.5 / root)
        bias = nnx.initializers.normal(1.0)
        self.skips = nnx.List(
            [
                nnx.Linear(in_features, width, kernel_init=steep, bias_init=bias, rngs=rngs)
                for width in hidden
            ]
        )
        # B_k has no bias of its own, as b_k is added outside of the square.
        self.squares = nnx.List(
            [
                nnx.Linear(in_features, width, kernel_init=flat, use_bias=False, rngs=rngs)
                for width in hidden
            ]
        )
        # W_k between hidden layers and w at the end, before they are made non-negative.
        pairs = [*itertools.pairwise(hidden), (hidden[-1], 1)]
        self.raw = nnx.List([nnx.Param(jax.random.normal(rngs.params(), pair)) for pair in pairs])
        # The softplus of −1 is about 0.3, so that the output is small at the start.
        self.level = nnx.Param(jnp.array(-1.0))

    def __call__(self, z: Float[Array, "b d"]) -> Float[Array, "b 1"]:
        """The output for each row."""
        # A_k z + (B_k z)² + b_k is convex in z.
        inputs = [a(z) + b(z) ** 2 for a, b in zip(self.skips, self.squares, strict=True)]
        hidden = nnx.softplus(inputs[0])
        # W_k ≥ 0 and an increasing convex σ keep each layer convex in z.
        for entry, raw in zip(inputs[1:], self.raw[:-1], strict=True):
            hidden = nnx.softplus(hidden @ _nonnegative(raw[...]) + entry)
        # w ≥ 0 and a positive factor keep the output convex.
        return nnx.softplus(self.level[...]) * (hidden @ _nonnegative(self.raw[-1][...]))


def _nonnegative(raw: Float[Array, "a b"]) -> Float[Array, "a b"]:
    # Positive terms do not cancel: without the mean, sums would grow with the width.
    return jax.nn.softplus(raw) / raw.shape[0]


@dataclasses.dataclass(frozen=True)
class BuildICNN:
    """The `Network` that builds an `ICNN`."""

    hidden: tuple[int, ...]

    def __call__(self, in_features: int, rngs: nnx.Rngs) -> ICNN:
        """The module."""
        return ICNN(in_features, self.hidden, rngs)


def init_network(
    network: Network, key: Key[Array, ""], in_features: int, dtype: DTypeLike
) -> PyTree[Array]:
    """The network's parameters, in the given dtype, as a pytree of arrays."""
    # `nnx` draws in float32. Half or double precision is converted after the draw.
    state = nnx.state(network(in_features, nnx.Rngs(key)), nnx.Param)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), nnx.to_pure_dict(state))


def apply_network(
    network: Network, params: PyTree[Array], x: Float[Array, "b d"]
) -> Float[Array, "b ..."]:
    """The network with these parameters, on a batch. Its structure is rebuilt while tracing.

    The devices of a mesh that is in use share the batch, in training as in evaluation.
    """
    # Only the structure: no parameters are drawn, so this seed is never used.
    model = nnx.eval_shape(lambda: network(x.shape[-1], nnx.Rngs(0)))
    graph, state = nnx.split(model, nnx.Param)
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graph, state)(shared_rows(x))
