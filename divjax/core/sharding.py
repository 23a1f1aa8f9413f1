"""Arrays sharded over the devices of a mesh, and rows that its devices share."""

import contextlib
import functools
import math
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from divjax.core.padding import pad_rows

P = ParamSpec("P")
T = TypeVar("T")

__all__ = [
    "even_size",
    "fold_blocks",
    "gathered",
    "in_auto_axes",
    "map_over_devices",
    "mesh_in_use",
    "on_host",
    "placed",
    "shared_by_all",
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
    sharded in only one way, until `in_auto_axes` divides the work. Under Auto axes the compiler
    decides, and arrays stay distributed.

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

    Its axes are Auto; see `in_auto_axes` for Explicit ones. Manual ones are those of a `shard_map`
    that is under way, whose devices are at work already.

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


def fold_blocks(
    function: Callable[[PyTree[Array]], tuple[T, PyTree[Array]]],
    combine: Callable[[T, T], T],
    start: T,
    rows: PyTree[Array],
    size: int,
) -> tuple[T, PyTree[Array]]:
    """Blocks of rows reduced one after another, each of which all devices of the mesh receive.

    Rows stay divided among the devices: beside its share a device holds one block. A block takes as
    many rows of every share, so that all devices send and receive equally, and is gathered by the
    step that uses it. The steps are those of a scan over shares, whose derivatives of both modes
    are JAX's own: a step is computed again in reverse mode, with its block gathered again, and what
    is kept for it are the shares alone. (Shares that travelled from device to device, as a carry of
    the scan, would be kept at every step: all rows on each device.)

    Args:
        function: of a block, to a part of what is reduced and a pytree of results with the block's
            leading axis. What else it refers to is on each device, or is divided by its caller.
        combine: two parts to one. Associative and commutative, as blocks are no intervals of rows.
        start: what leaves a part as it is when combined with it.
        rows: arrays with leading axis n.
        size: how many rows of each share are a block. Fewer may be left for the last.

    Returns:
        The parts combined, and the results in the order of the rows.

    Example:
        >>> import jax.numpy as jnp
        >>> total, squares = fold_blocks(
        ...     lambda x: (x.sum(), x**2), jnp.add, 0.0, jnp.arange(5.0), size=2
        ... )
        >>> float(total), squares.tolist()
        (10.0, [0.0, 1.0, 4.0, 9.0, 16.0])
    """
    mesh, n = mesh_in_use(), jax.tree.leaves(rows)[0].shape[0]
    # Rows that do not divide evenly are not divided among devices to begin with.
    num_shares = 1 if mesh is None or n % mesh.size else mesh.size
    num_blocks, left = divmod(n // num_shares, size)

    def constrained(array: Array, *spec: Any) -> Array:
        whole = mesh is None or num_shares == 1
        return array if whole else jax.lax.with_sharding_constraint(array, PartitionSpec(*spec))

    shared = () if mesh is None else (mesh.axis_names,)

    def shares(row: Array) -> Array:
        # Sizes are written out: rows may hold no numbers, by which −1 could not be found.
        own = row.shape[0] // num_shares
        return constrained(row.reshape(num_shares, own, *row.shape[1:]), *shared)

    def blocks(row: Array) -> Array:
        equal = row[:, : num_blocks * size]
        cut = equal.reshape(num_shares, num_blocks, size, *row.shape[2:])
        return constrained(jnp.moveaxis(cut, 1, 0), None, *shared)

    # The block is gathered within, so that reverse mode keeps shares, and combined outside, so that
    # it keeps nothing for a sum.
    @jax.checkpoint
    def of_block(block: PyTree[Array]) -> tuple[T, PyTree[Array]]:
        # Both constraints hold for derivatives as well, those of a share on its own device.
        gather = lambda share: constrained(constrained(share, *shared))
        merge = lambda share: gather(share).reshape(math.prod(share.shape[:2]), *share.shape[2:])
        return function(jax.tree.map(merge, block))

    def step(so_far: T, block: PyTree[Array]) -> tuple[T, PyTree[Array]]:
        part, results = of_block(block)
        return combine(so_far, part), jax.tree.map(shares, results)

    divided = jax.tree.map(shares, rows)
    total, results = jax.lax.scan(step, start, jax.tree.map(blocks, divided))
    # A share's results are in the order of its rows.
    join = lambda found: jnp.moveaxis(found, 0, 1).reshape(
        num_shares, num_blocks * size, *found.shape[3:]
    )
    results = jax.tree.map(join, results)
    if left:
        total, last = step(total, jax.tree.map(lambda row: row[:, num_blocks * size :], divided))
        append = lambda first, last: jnp.concatenate([first, last], axis=1)
        results = jax.tree.map(append, results, last)
    return total, jax.tree.map(lambda found: found.reshape(n, *found.shape[2:]), results)


def even_size(share: int, most: int) -> int:
    """How many rows of a share are a block: as many as may be, such that no block is shorter.

    If there is no such number above half of those that may be, these, and the last is shorter.

    Example:
        >>> even_size(share=1000, most=300), even_size(share=997, most=300)
        (250, 300)
    """
    most = max(1, min(most, share))
    return next((size for size in range(most, most // 2, -1) if share % size == 0), most)


def in_auto_axes(function: Callable[P, T]) -> Callable[P, T]:
    """The function, computed under Auto axes if those of the mesh in use are Explicit.

    Its arguments are cast on entry, where nothing moves, and its results are on each device. Within
    it the devices share pairs and batches as under a mesh of Auto axes.

    Args:
        function: takes and returns pytrees of arrays, and refers to no other array that is sharded
            over Explicit axes: under `jax.jit`, to no traced array.

    Example:
        >>> import jax.numpy as jnp
        >>> float(in_auto_axes(jnp.sum)(jnp.ones(3)))
        3.0
    """

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        if set(jax.sharding.get_abstract_mesh().axis_types or ()) != {AxisType.Explicit}:
            return function(*args, **kwargs)
        # `auto_axes` takes arrays alone: everything else is closed over, in its place.
        leaves, structure = jax.tree.flatten((args, kwargs))
        arrays = [leaf for leaf in leaves if isinstance(leaf, jax.Array)]
        any_function: Any = function

        def call(arrays: list[Array]) -> T:
            given = iter(arrays)
            filled = [next(given) if isinstance(leaf, jax.Array) else leaf for leaf in leaves]
            positional, named = structure.unflatten(filled)
            return any_function(*positional, **named)

        under_auto: Any = jax.sharding.auto_axes(call, out_sharding=PartitionSpec())
        return under_auto(arrays)

    return run


def shared_rows(rows: T) -> T:
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


def shared_by_all(arrays: T) -> T:
    """The arrays, whole on each device of the mesh in use."""
    if mesh_in_use() is None:
        return arrays
    return jax.lax.with_sharding_constraint(arrays, PartitionSpec())


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
