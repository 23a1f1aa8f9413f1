"""The network against XLA's own convolutions and pooling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from experiments import lenet


def reference(particle, images, sizes, pooled):
    """The textbook network, its dense layer reading channels before places."""

    def convolve(layer, x, size):
        filters = layer["kernel"].reshape(size, size, x.shape[-1], -1)
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x, filters, (1, 1), "VALID", None, None, numbers)

    def pool(x):
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")

    dense = lambda layer, x: x @ layer["kernel"] + layer["bias"]
    x = pool(convolve(particle["conv1"], images[..., None], sizes[0]))
    x = convolve(particle["conv2"], jax.nn.relu(x + particle["conv1"]["bias"]), sizes[1])
    x = jax.nn.relu((pool(x) if pooled else x) + particle["conv2"]["bias"])
    x = jax.nn.relu(dense(particle["dense"], jnp.moveaxis(x, -1, 1).reshape(len(images), -1)))
    return jnp.stack([dense(particle["heads"][task], x) for task in (0, 1)], axis=1)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("canvas", "num_weights"), [(36, 31910), (12, None)])
def test_logits_and_their_gradient_are_the_textbook_networks(canvas, num_weights):
    first, second, pooled = lenet.ARCHITECTURES[canvas]
    keys = jax.random.split(jax.random.key(0), 3)
    particle = lenet.init_particle(keys[0], canvas)
    particle = jax.tree.map(lambda leaf: leaf + 0.01, particle)  # biases start at zero
    images = jax.random.uniform(keys[1], (3, canvas, canvas))
    direction = jax.random.normal(keys[2], (3, 2, 10))
    plain = lambda p: reference(p, images, (first, second), pooled)
    value, pull_back = jax.vjp(lambda p: lenet.logits(p, images), particle)
    expected, expected_pull_back = jax.vjp(plain, particle)
    np.testing.assert_allclose(value, expected, atol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4),
        pull_back(direction)[0],
        expected_pull_back(direction)[0],
    )
    if num_weights is not None:  # as published: 30 890 of the encoder, 510 of each head
        assert sum(leaf.size for leaf in jax.tree.leaves(particle)) == num_weights


def test_heads_are_not_shared():
    shared = lenet.is_shared(lenet.init_particle(jax.random.key(0), 12))
    assert not any(jax.tree.leaves(shared["heads"]))
    assert all(jax.tree.leaves({name: shared[name] for name in ("conv1", "conv2", "dense")}))
