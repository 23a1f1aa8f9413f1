"""LeNet with a shared encoder and a head a task; convolutions are products of patches."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key, PyTree

# Kernel sizes and pooling: the published network for 36 × 36, and its likeness for 12 × 12.
ARCHITECTURES = {36: (9, 5, True), 12: (3, 3, False)}


def patches(x: Float[Array, "b h w c"], size: int) -> Float[Array, "b i j p"]:
    """All size × size windows, flattened.

    A convolution is then one matrix product. For the first layer it is one product for all
    particles, since they share the images; XLA's convolution would be a grouped one, several times
    slower on a CPU.
    """
    height, width = x.shape[1] - size + 1, x.shape[2] - size + 1
    windows = [x[:, i : i + height, j : j + width] for i in range(size) for j in range(size)]
    return jnp.concatenate(windows, axis=-1)


def pool(x: Float[Array, "b h w c"]) -> Float[Array, "b i j c"]:
    """2 × 2 maximum by slices, whose gradient is cheap; reduce_window's is not."""
    x = jnp.maximum(x[:, 0::2], x[:, 1::2])
    return jnp.maximum(x[:, :, 0::2], x[:, :, 1::2])


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
        x = nnx.relu(pool(self.conv1(patches(images[..., None], self.sizes[0]))))
        x = self.conv2(patches(x, self.sizes[1]))
        x = nnx.relu(pool(x) if self.pooled else x)
        x = nnx.relu(self.dense(x.reshape(x.shape[0], -1)))
        return jnp.stack([head(x) for head in self.heads], axis=1)


def init_particle(key: Key[Array, ""], canvas: int) -> PyTree[Array]:
    """One network's parameters, as a dictionary of arrays."""
    return nnx.to_pure_dict(nnx.state(LeNet(canvas, 2, 10, nnx.Rngs(key)), nnx.Param))


def logits(particle: PyTree[Array], images: Float[Array, "b h w"]) -> Float[Array, "b task class"]:
    """The network with these parameters, on a batch."""
    model = nnx.eval_shape(lambda: LeNet(images.shape[1], 2, 10, nnx.Rngs(0)))
    graph, state = nnx.split(model, nnx.Param)
    nnx.replace_by_pure_dict(state, particle)
    return nnx.merge(graph, state)(images)


def is_shared(particle: PyTree[Array]) -> PyTree[bool]:
    """True for the encoder's leaves, False for the heads'."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[0].key != "heads", particle)
