"""LeNet with a shared encoder and a head a task, laid out so that a CPU trains several at once.

A convolution is one product with the patches, for all networks where they share the images; XLA's
convolution of several networks would be a grouped one, eight times slower on a CPU. The batch is
the last axis, so that taking patches and its gradient move whole rows.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key, PyTree

from divjax.core.networks import apply_network, init_network

# Kernel sizes and pooling: the published network for 36 × 36, and its likeness for 12 × 12.
ARCHITECTURES = {36: (9, 5, True), 12: (3, 3, False)}


def patches(x: Float[Array, "c h w b"], size: int, stride: int = 1) -> Float[Array, "p i j b"]:
    """All size × size windows, flattened with the channel last."""
    height, width = x.shape[1] - size + 1, x.shape[2] - size + 1
    places = [(i, j) for i in range(size) for j in range(size)]
    return jnp.concatenate(
        [x[:, i : i + height : stride, j : j + width : stride] for i, j in places]
    )


def linear(kernel: Float[Array, "c o"], x: Float[Array, "c ..."]) -> Float[Array, "o ..."]:
    """A product along the first axis."""
    return (kernel.T @ x.reshape(x.shape[0], -1)).reshape(-1, *x.shape[1:])


def linear_and_pool(
    kernel: Float[Array, "p o"], x: Float[Array, "c h w b"], size: int
) -> Float[Array, "o i j b"]:
    """A convolution and the 2 × 2 maximum of its outputs.

    The filter at the four places that a maximum compares is four filters one larger, moved by two:
    a quarter of the patches, four times the outputs, and no strided pooling to differentiate.
    """
    square = kernel.reshape(size, size, x.shape[0], -1)
    corners = [(a, b) for a in (0, 1) for b in (0, 1)]
    moved = [jnp.pad(square, ((a, 1 - a), (b, 1 - b), (0, 0), (0, 0))) for a, b in corners]
    filters = jnp.stack(moved, axis=3).reshape(x.shape[0] * (size + 1) ** 2, -1)
    outputs = linear(filters, patches(x, size + 1, stride=2))
    return functools.reduce(jnp.maximum, jnp.split(outputs, 4))


def add_bias(layer: nnx.Linear, x: Float[Array, "c h w b"]) -> Float[Array, "c h w b"]:
    """A number a channel."""
    assert layer.bias is not None
    return x + layer.bias[:, None, None, None]


class LeNet(nnx.Module):
    """Two convolutions, a dense layer of 50, and a linear head for each task."""

    def __init__(self, canvas: int, num_tasks: int, num_classes: int, rngs: nnx.Rngs):
        first, second, pooled = ARCHITECTURES[canvas]
        side = (canvas - first + 1) // 2 - second + 1
        side = side // 2 if pooled else side
        self.sizes, self.pooled = (first, second), pooled
        self.conv1 = nnx.Linear(first**2, 10, rngs=rngs)
        self.conv2 = nnx.Linear(10 * second**2, 20, rngs=rngs)
        self.dense = nnx.Linear(20 * side**2, 50, rngs=rngs)
        self.heads = nnx.List([nnx.Linear(50, num_classes, rngs=rngs) for _ in range(num_tasks)])

    def __call__(self, images: Float[Array, "b h w"]) -> Float[Array, "b task class"]:
        """Logits of every task."""
        first, second = self.sizes
        x = jnp.moveaxis(images, 0, -1)[None]
        x = linear_and_pool(self.conv1.kernel[...], x, first)
        x = nnx.relu(add_bias(self.conv1, x))
        if self.pooled:
            x = linear_and_pool(self.conv2.kernel[...], x, second)
        else:
            x = linear(self.conv2.kernel[...], patches(x, second))
        x = nnx.relu(add_bias(self.conv2, x))
        x = nnx.relu(self.dense(x.reshape(-1, x.shape[-1]).T))
        return jnp.stack([head(x) for head in self.heads], axis=1)


def _network(canvas: int, rngs: nnx.Rngs) -> LeNet:
    return LeNet(canvas, num_tasks=2, num_classes=10, rngs=rngs)


def init_particle(key: Key[Array, ""], canvas: int) -> PyTree[Array]:
    """One network's parameters, as a dictionary of arrays."""
    return init_network(_network, key, canvas, jnp.float32)


def logits(particle: PyTree[Array], images: Float[Array, "b h w"]) -> Float[Array, "b task class"]:
    """The network with these parameters, on a batch."""
    return apply_network(_network, particle, images)


def is_shared(particle: PyTree[Array]) -> PyTree[bool]:
    """True for the encoder's leaves, False for the heads'."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[0].key != "heads", particle)
