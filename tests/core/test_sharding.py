"""Arrays over Explicit axes of a mesh, `jax.make_mesh`'s default, and meshes that share pairs."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from divjax import fdiv, flows, inference, information, kernels, ot, ratio, sharding, sweep
from divjax.core.pairwise import map_row_blocks
from divjax.core.sharding import gathered

KEY = jax.random.key(1)
NUMBERS = np.arange(3.0, dtype=np.float32)
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


BLOCKS = ot.Sinkhorn(block_size=4)
# More features than are compared by differences.
WIDE = jax.random.normal(jax.random.key(2), (40, 12))


def log_ratios(head, x, y):
    return ratio.ClassifierRatio(head, num_folds=2).fit(KEY, x, y).log_ratio(y)


@pytest.mark.parametrize(
    "function",
    [
        lambda x, y: ot.sinkhorn(x, y, epsilon=1.0, solver=BLOCKS).transport(x),
        lambda x, y: jax.grad(
            lambda x: ot.sinkhorn_divergence(x, y, epsilon=1.0, solver=BLOCKS).value
        )(x),
        lambda x, y: jax.grad(lambda x: fdiv.knn_kl(x, y).value)(x),
        lambda x, y: fdiv.knn_kl(jnp.tile(x, (1, 6)) + WIDE[:17], WIDE).value,
        lambda x, y: FLOW.run(KEY, x, num_steps=2).particles,
        lambda x, y: log_ratios(ratio.heads.Network((4,), num_steps=3), x, y),
        pytest.param(
            lambda x, y: log_ratios(ratio.heads.Neighbors((3,)), x, y),
            marks=pytest.mark.exhaustive,
        ),
    ],
    ids=["transport", "divergence", "knn", "knn_wide", "flow", "network", "neighbors"],
)
def test_a_mesh_in_use_gives_the_numbers_of_one_device(function):
    """Seventeen rows on eight devices: shares of three, the last two of padding alone."""
    x, y = jnp.concatenate([X, X[:1] + 1]), Y
    expected = jax.jit(function)(x, y)
    with jax.set_mesh(sharding.mesh()):
        shared = jax.jit(function)(x, y)
    np.testing.assert_allclose(shared, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("n", [3, 8, 13])
def test_rows_that_do_not_divide(n):
    """Fewer rows than devices, as many, and more, against a sum in NumPy."""
    x, y = np.asarray(X[:n]), np.asarray(Y)
    sums = lambda rows: jnp.sum(rows[:, None] * y, axis=(1, 2))
    with jax.set_mesh(sharding.mesh()):
        found = map_row_blocks(sums, len(y), jnp.asarray(x), block_rows=2)
    np.testing.assert_allclose(found, np.einsum("id,jd->i", x, y), rtol=1e-5)


def compiled_over_a_mesh(function, shape):
    """The program for two samples divided by rows, and how many numbers each delivery has."""
    mesh = sharding.mesh()
    by_rows = NamedSharding(mesh, PartitionSpec("rows"))
    sample = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=by_rows)
    with jax.set_mesh(mesh):
        compiled = jax.jit(function).lower(sample, sample).compile()
    kinds = "all-gather|all-to-all|all-reduce|collective-permute"
    results = re.findall(rf" = (.*?) (?:{kinds})\(", compiled.as_text())
    shapes = [shape for result in results for shape in re.findall(r"\w\[([\d,]*)\]", result)]
    return compiled, [math.prod(int(size) for size in shape.split(",") if size) for shape in shapes]


@pytest.mark.parametrize(
    "function",
    [
        lambda x, y: ot.sinkhorn(x, y, epsilon=1.0, solver=ot.Sinkhorn(max_iterations=2)).value,
        lambda x, y: fdiv.knn_kl(x, y).value,
        lambda x, y: kernels.kernel_sums(kernels.Gaussian(1.0), x, y, y, y)[0],
    ],
    ids=["sinkhorn", "knn", "kernel"],
)
def test_no_device_holds_or_receives_pairs(function):
    """What is communicated is of the size of the samples, and the pairs stay in blocks."""
    n = 20_000
    compiled, sizes = compiled_over_a_mesh(function, (n, 3))
    assert sizes
    assert max(sizes) <= 40 * n
    # A device's eighth of the pairs is 200 MB.
    assert compiled.memory_analysis().temp_size_in_bytes < 30 * 2**20


@pytest.mark.parametrize(
    "estimate",
    [
        fdiv.knn_kl,
        pytest.param(lambda x, y: fdiv.knn_renyi(x, y, alpha=0.5), marks=pytest.mark.exhaustive),
        pytest.param(information.cross_entropy, marks=pytest.mark.exhaustive),
        pytest.param(lambda x, y: information.entropy(x), marks=pytest.mark.exhaustive),
    ],
    ids=["knn_kl", "knn_renyi", "cross_entropy", "entropy"],
)
def test_estimates_from_neighbors_gather_no_sample(estimate):
    """Neither for the search nor for what is asked of the neighbours afterwards."""
    n, d = 200_000, 16
    _, sizes = compiled_over_a_mesh(lambda x, y: estimate(x, y).value, (n, d))
    assert sizes
    assert max(sizes) < n * d / 2


@pytest.mark.parametrize(
    "function",
    [
        lambda key, scale: scale * jax.random.normal(key),
        lambda key, scale: scale * jnp.sum(NUMBERS),
        lambda key, scale: ot.sinkhorn(X, Y, epsilon=scale, solver=BLOCKS).value,
    ],
)
def test_a_mesh_in_use_is_that_of_a_sweep(function):
    pytest.importorskip("xarray")
    grid, options = {"scale": [0.5, 1.0]}, {"num_seeds": 1, "progress": False}
    alone = sweep(KEY, function, grid, **options)
    with jax.set_mesh(sharding.mesh()):
        shared = sweep(KEY, function, grid, **options)
    np.testing.assert_allclose(shared.value, alone.value, rtol=1e-5)


def test_a_sweep_over_data_on_several_devices_is_refused():
    pytest.importorskip("xarray")
    x = over_devices(X, AxisType.Auto)
    with pytest.raises(ValueError, match=r"one device; got one of shape \(16, 2\) on 8"):
        sweep(KEY, lambda key, scale: scale * jnp.sum(x), {"scale": [1.0]}, progress=False)


def test_arrays_are_sharded_by_rows_and_gathered_again():
    mesh = sharding.mesh()
    x, scale = sharding.shard((np.asarray(X), 2.0), mesh)
    assert x.sharding.shard_shape(x.shape) == (2, 2)
    assert scale.sharding.is_fully_replicated
    np.testing.assert_array_equal(sharding.gather(x), X)


def test_what_cannot_be_sharded_is_refused_by_name():
    with pytest.raises(ValueError, match=r"arrays\['x'\] must have a number of rows that is"):
        sharding.shard({"x": np.zeros((9, 2))}, sharding.mesh())
    # Rounded on the way to the devices, samples far from zero would lose what they differ in.
    with pytest.raises(ValueError, match=r"arrays\[0\] must differ in float32 too"):
        sharding.shard((1e8 + np.arange(8.0), np.zeros(8)), sharding.mesh())
    with pytest.raises(ValueError, match="arrays must hold integers within int32"):
        sharding.shard(np.arange(8) + 2**40, sharding.mesh())
    assert sharding.shard([[1.0, 2.0]] * 8, sharding.mesh()).shape == (8, 2)
    with pytest.raises(ValueError, match="devices must hold at least one device; got none"):
        sharding.mesh([])
