"""Arrays sharded over a mesh with Explicit axes, `jax.make_mesh`'s default."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from divjax import fdiv, flows, inference, kernels, ot, ratio
from divjax.core.sharding import gathered

KEY = jax.random.key(1)
X = jax.random.normal(jax.random.key(0), (16, 2))
Y = 1.5 * X[::-1] + 1
FLOW = flows.Flow(
    [flows.KL(lambda z: -jnp.sum(z**2) / 2), flows.MMD(Y, kernels.Energy())],
    velocity=flows.SVGD(kernels.Gaussian(kernels.Median())),
    optimizer=optax.sgd(0.1),
)


def over_devices(x, kind=AxisType.Explicit):
    mesh = jax.make_mesh((8,), ("rows",), axis_types=(kind,))
    return jax.device_put(x, NamedSharding(mesh, PartitionSpec("rows")))


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    "function",
    [
        lambda x, y: ot.sinkhorn(x, y, epsilon=1.0).value,
        lambda x, y: ot.sliced_wasserstein(KEY, x, y),
        lambda x, y: ot.wasserstein_1d(x[:, 0], y[:, 0]),
        lambda x, y: fdiv.knn_kl(x, y).value,
        lambda x, y: kernels.Gaussian(1.0)(x, y),
        lambda x, y: FLOW.run(KEY, x, num_steps=2).particles,
        lambda x, y: inference.auc(x[:, 0], y[:, 0]).value,
        lambda x, y: (
            inference.permutation_test(
                KEY, lambda x, y: x.mean() - y.mean(), x, y, num_permutations=9
            ).null
        ),
        lambda x, y: ratio.ties(x, y).lattice,
    ],
    ids=["sinkhorn", "sliced", "line", "knn", "kernel", "flow", "auc", "permutations", "ties"],
)
def test_explicit_axes_give_the_numbers_of_one_device(function, compiled):
    own = jax.jit(function) if compiled else function
    np.testing.assert_allclose(
        own(over_devices(X), over_devices(Y)), function(X, Y), rtol=1e-4, atol=1e-5
    )


def test_gradients_within_the_context_of_the_mesh():
    """Without it JAX itself refuses the gradient of a sum."""
    cost = lambda x: ot.wasserstein_1d(x[:, 0], Y[:, 0])
    x = over_devices(X)
    with jax.set_mesh(jax.make_mesh((8,), ("rows",), axis_types=(AxisType.Explicit,))):
        np.testing.assert_allclose(jax.grad(cost)(x), jax.grad(cost)(X), rtol=1e-5)


def test_auto_axes_stay_distributed():
    x = over_devices(X, AxisType.Auto)
    assert gathered(x) is x
    assert gathered(over_devices(X)).sharding.is_fully_replicated
