"""Arrays sharded over the devices of a mesh, and rows that its devices share."""

import contextlib
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from divjax.core.padding import pad_rows

__all__ = [
    "gathered",
    "map_over_devices",
    "mesh_in_use",
    "on_host",
    "placed",
    "shared_rows",
    "without_mesh",
]


def without_mesh() -> contextlib.AbstractContextManager[Any]:
    """A context in which no mesh is in use: each device has work of its own, as in a sweep.

    Example:
        >>> with jax.set_mesh(jax.make_mesh((8,), ("rows",), axis_types=(AxisType.Auto,))):
        ...     with without_mesh():
        ...         mesh_in_use() is None
        True
    """
    return jax.sharding.use_abstract_mesh(AbstractMesh((), ()))


def gathered(array: Array) -> Array:
    """An array sharded over Explicit axes of a mesh, on each of its devices; others unchanged.

    Under Explicit axes, `jax.make_mesh`'s default, each operation must say how its result is
    sharded: differences of all pairs of rows, sorts and gathers raise. What is on each device is
    sharded in only one way. Under Auto axes the compiler decides, and arrays stay distributed.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.ones(3)
        >>> gathered(x) is x
        True
    """
    # The type knows the mesh of Explicit axes, also of a traced array.
    sharding = jax.typeof(array).sharding
    explicit = AxisType.Explicit in (sharding.mesh.axis_types or ())
    if not explicit or all(axes is None for axes in sharding.spec):
        return array
    return jax.sharding.reshard(array, NamedSharding(sharding.mesh, PartitionSpec()))


def mesh_in_use() -> AbstractMesh | None:
    """The mesh of `jax.set_mesh` whose devices share pairs of rows, None if there is none.

    Its axes are Auto. Explicit ones cannot be closed over by `jax.shard_map`, and Manual ones are
    those of a `shard_map` that is under way, whose devices are at work already.

    Example:
        >>> mesh_in_use() is None
        True
    """
    mesh = jax.sharding.get_abstract_mesh()
    shares = mesh.size > 1 and set(mesh.axis_types) == {AxisType.Auto}
    return mesh if shares else None


def map_over_devices(
    function: Callable[..., PyTree[Array]], mesh: AbstractMesh, *rows: Array
) -> PyTree[Array]:
    """`function(*rows)` where each device of the mesh has an equal share of the rows.

    Args:
        function: maps arrays with a common leading axis to a pytree of arrays with that axis, row
            by row. What else it refers to is on each device.
        mesh: has Auto axes.
        *rows: arrays with leading axis n, padded with rows of zeros to a multiple of the devices.
    """
    n = rows[0].shape[0]
    size = math.ceil(n / mesh.size)
    spec = PartitionSpec(mesh.axis_names)

    def shares(row: Array) -> Array:
        split = row.reshape(mesh.size, size, *row.shape[1:])
        return jax.lax.with_sharding_constraint(split, spec)

    # A lane is a device. `jax.shard_map` would do, but its function cannot be differentiated if
    # what it refers to is sharded as well: a zero tangent is typed by the mesh outside.
    on_lanes = jax.vmap(function, spmd_axis_name=mesh.axis_names)
    padded = [pad_rows(row, mesh.size * size) for row in rows]
    lanes = on_lanes(*map(shares, padded))
    lanes = jax.lax.with_sharding_constraint(lanes, spec)
    return jax.tree.map(lambda out: out.reshape(mesh.size * size, *out.shape[2:])[:n], lanes)


def shared_rows(rows: PyTree[Array]) -> PyTree[Array]:
    """The arrays, divided by rows among the devices of the mesh in use if the rows divide evenly.

    The compiler then divides what it computes from each row, such as a network's loss.
    """
    mesh = mesh_in_use()
    if mesh is None:
        return rows
    spec = PartitionSpec(mesh.axis_names)

    def share(leaf: Array) -> Array:
        divides = leaf.ndim > 0 and leaf.shape[0] % mesh.size == 0
        return jax.lax.with_sharding_constraint(leaf, spec) if divides else leaf

    return jax.tree.map(share, rows)


def placed(leaf: Any, sharding: NamedSharding | None) -> Array:
    """An array that every process has, on the devices of all of them."""
    if sharding is None or sharding.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = placed(jax.random.key_data(leaf), sharding)
        return jax.random.wrap_key_data(data, impl=str(jax.random.key_impl(leaf)))
    array = np.asarray(leaf)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def on_host(leaf: Array) -> np.ndarray:
    """An array of any sharding as NumPy's, whole, on every process."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        from jax.experimental import multihost_utils

        leaf = multihost_utils.process_allgather(leaf, tiled=True)
    return np.asarray(leaf)
