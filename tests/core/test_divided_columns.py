"""Pairs of samples that are divided by rows and columns among the devices of a mesh."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from divjax import discrepancy, fdiv, flows, kernels, ot, sharding
from divjax.core import pairwise
from divjax.core.pair_reductions import LARGEST, LOG_SUM, SMALLEST, SUM, reduce_pairs
from divjax.core.sharding import fold_blocks, in_auto_axes, mesh_in_use
from divjax.fdiv.neighbor_search import nearest_points

# Shapes of this file's own: programs of equal shapes with other blocks may be compiled already.
X = jax.random.normal(jax.random.key(0), (80, 2))
Y = 1.5 * X[:72][::-1] + 1
WIDE = jax.random.normal(jax.random.key(1), (80, 12))


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of so few numbers that the columns of a test are several, the last one shorter."""
    monkeypatch.setattr(pairwise, "BLOCK_ENTRIES_CPU", 80)


def over(kind, *arrays):
    mesh = jax.make_mesh((8,), ("rows",), axis_types=(kind,))
    by_rows = NamedSharding(mesh, PartitionSpec("rows"))
    return mesh, [jax.device_put(array, by_rows) for array in arrays]


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("n", [40, 41])
def test_blocks_are_folded_in_any_division(n, size):
    """Rows that divide among eight devices and that do not, with and without a shorter block."""
    rows = np.arange(2.0 * n).reshape(n, 2).astype(np.float32)
    function = lambda block: (jnp.sum(block, axis=0), block[:, 0] ** 2)
    with jax.set_mesh(sharding.mesh()):
        fold = jax.jit(lambda rows: fold_blocks(function, jnp.add, jnp.zeros(2), rows, size))
        total, squares = fold(rows)
    np.testing.assert_allclose(total, rows.sum(axis=0), rtol=1e-6)
    np.testing.assert_array_equal(squares, rows[:, 0] ** 2)


REDUCTIONS = {
    "sum": (SUM, lambda table: jnp.sum(table, axis=1), lambda table: table.sum(axis=1)),
    "smallest": (SMALLEST, lambda table: jnp.min(table, axis=1), lambda table: table.min(axis=1)),
    "largest": (LARGEST, lambda table: jnp.max(table, axis=1), lambda table: table.max(axis=1)),
    "log_sum": (
        LOG_SUM,
        lambda table: jax.nn.logsumexp(table, axis=1),
        lambda table: np.log(np.exp(table).sum(axis=1)),
    ),
}


@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions_of_divided_columns(small_blocks, name):
    """Against NumPy."""
    reduction, reduce, expected = REDUCTIONS[name]
    # A share of 67 columns, of which no number of blocks is even.
    columns = np.resize(np.asarray(Y[:, 0]), 8 * 67)
    of_columns = lambda y: lambda x: reduce(jnp.sin(3 * x[:, None]) * y)
    mesh, (x, y) = over(AxisType.Auto, X[:, 0], columns)
    with jax.set_mesh(mesh):
        found = jax.jit(lambda x, y: reduce_pairs(of_columns, reduction, (x,), (y,)))(x, y)
    table = np.sin(3 * np.asarray(X[:, :1], float)) * columns.astype(float)
    np.testing.assert_allclose(found, expected(table), rtol=2e-5, atol=1e-5)


WEIGHTS = jnp.arange(80) / 3160  # the first is zero
SHORT = ot.Sinkhorn(max_iterations=20, tolerance=None)
FUNCTIONS = {
    "kernel": lambda x, y: kernels.kernel_sums(kernels.Gaussian(1.0), x, y, y, y[:, :1])[1],
    "mmd": lambda x, y: discrepancy.mmd(x, y, kernel=kernels.Laplace(1.0)),
    "sinkhorn": lambda x, y: ot.sinkhorn(x, y, epsilon=1.0, solver=SHORT).value,
    "weights": lambda x, y: ot.sinkhorn(x, y, a=WEIGHTS, epsilon=1.0, solver=SHORT).value,
    "knn": lambda x, y: fdiv.knn_kl(x, y).value,
}


def value_and_derivatives(function):
    """The value, its gradient and a directional derivative, as one program."""
    total = lambda x, y: jnp.sum(function(x, y) ** 2)

    def both(x, y):
        forward = jax.jvp(function, (x, y), (jnp.cos(x), jnp.sin(y)))
        return *forward, jax.grad(total, (0, 1))(x, y)

    return jax.jit(both)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.exhaustive) for name in FUNCTIONS]
)
def test_divided_columns_give_the_numbers_of_one_device(small_blocks, name, kind):
    """Values and derivatives of both modes, with few features and with many."""
    for x, y in ((X, Y), (WIDE, WIDE[:72] + 0.3)):
        expected = value_and_derivatives(FUNCTIONS[name])(x, y)
        mesh, samples = over(kind, x, y)
        with jax.set_mesh(mesh):
            shared = value_and_derivatives(FUNCTIONS[name])(*samples)
        for one, other in zip(*map(jax.tree.leaves, (expected, shared)), strict=True):
            size = float(jnp.max(jnp.abs(one)))
            np.testing.assert_allclose(sharding.gather(other), one, atol=2e-4 * size)


TWO_ROWS = ot.Sinkhorn(max_iterations=2, block_size=2)


@pytest.mark.parametrize(
    "function",
    [
        FUNCTIONS["kernel"],
        pytest.param(
            lambda x, y: ot.sinkhorn(x, y, epsilon=1.0, solver=TWO_ROWS).value,
            marks=pytest.mark.exhaustive,
        ),
        pytest.param(lambda x, y: nearest_points(x, y, 3), marks=pytest.mark.exhaustive),
        pytest.param(
            lambda x, y: jax.grad(lambda x, y: jnp.sum(FUNCTIONS["kernel"](x, y)), (0, 1))(x, y),
            marks=pytest.mark.exhaustive,
        ),
    ],
    ids=["kernel", "sinkhorn", "knn", "gradient"],
)
def test_no_device_holds_a_sample(monkeypatch, function):
    """The largest array of a device's program is smaller than a sample by a large factor."""
    monkeypatch.setattr(pairwise, "BLOCK_ENTRIES_CPU", 2**14)
    n, d = 16_000, 16
    mesh = sharding.mesh()
    by_rows = NamedSharding(mesh, PartitionSpec("rows"))
    sample = jax.ShapeDtypeStruct((n, d), jnp.float32, sharding=by_rows)
    with jax.set_mesh(mesh):
        compiled = jax.jit(lambda x, y: function(x, y)).lower(sample, sample).compile()
    shapes = re.findall(r"\[([\d,]+)\]", compiled.as_text())
    sizes = [np.prod([int(size) for size in shape.split(",")]) for shape in shapes]
    assert n * d / 8 <= max(sizes) < n * d / 2


def test_explicit_axes_are_auto_within():
    """Where the devices share work, and results are whole on each of them."""
    mesh, (x,) = over(AxisType.Explicit, X)
    of_devices = in_auto_axes(lambda x, scale: scale * jnp.sort(x, axis=0) * mesh_in_use().size)
    with jax.set_mesh(mesh):
        assert mesh_in_use() is None
        found = jax.jit(lambda x: of_devices(x, 2.0))(x)
    np.testing.assert_array_equal(found, 16 * np.sort(X, axis=0))
    assert found.sharding.is_fully_replicated


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_a_flow_of_divided_particles(small_blocks, kind):
    """Two steps, with a bandwidth that is a quantile of distances."""
    flow = flows.Flow(
        [flows.KL(lambda z: -jnp.sum(z**2) / 2), flows.MMD(Y, kernels.Energy())],
        velocity=flows.SVGD(kernels.Gaussian(kernels.Median())),
        optimizer=optax.sgd(0.1),
    )
    expected = flow.run(jax.random.key(2), X, num_steps=2).particles
    mesh, (particles,) = over(kind, X)
    with jax.set_mesh(mesh):
        found = flow.run(jax.random.key(2), particles, num_steps=2).particles
    np.testing.assert_allclose(sharding.gather(found), expected, rtol=1e-4, atol=1e-5)
