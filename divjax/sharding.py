"""Many devices and many hosts, on JAX's own meshes.

A mesh that is in use (`jax.set_mesh`) shares one problem among its devices. Each computes the pairs
of its own rows (kernels, Sinkhorn's half-steps, nearest neighbours, quantiles of distances),
blockwise if they are many, and the gradients of its own rows of a network's batch. In these
reductions a device holds its share of both samples, and receives the rows of the other sample block
after block; no device holds a sample or all n × m pairs. Results are those of one device up to
rounding, and derivatives too.

No call changes, under `jax.jit`, `jax.grad` and `jax.vmap` or without them. A `sweep` puts whole
cells on devices instead, those of `sweep(mesh=…)` or of the mesh in use.

Example:
    >>> import jax
    >>> from divjax import ot, sharding
    >>> x, y = jax.random.normal(jax.random.key(0), (2, 64, 2))
    >>> with jax.set_mesh(sharding.mesh()):
    ...     value = ot.sinkhorn_divergence(x, y + 1, epsilon=0.5).value
    >>> bool(abs(value - ot.sinkhorn_divergence(x, y + 1, epsilon=0.5).value) < 1e-4)
    True
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from divjax.core.representable import check_held
from divjax.core.sharding import on_host, placed

__all__ = ["gather", "mesh", "shard"]


def mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of one axis, `rows`, for `jax.set_mesh`.

    The axis is of type Auto, so that the compiler chooses how intermediate arrays are divided.
    `jax.make_mesh` makes Explicit axes unless it is told otherwise. Arrays over those are gathered,
    n × d numbers on each device, and the pairs are shared as under Auto axes.

    Args:
        devices: which devices, by default all of all processes.

    Example:
        >>> import jax
        >>> mesh().size == jax.device_count()
        True
    """
    devices = jax.devices() if devices is None else list(devices)
    if not devices:
        raise ValueError("devices must hold at least one device; got none.")
    return jax.make_mesh((len(devices),), ("rows",), axis_types=(AxisType.Auto,), devices=devices)


def shard(arrays: PyTree, mesh: Mesh) -> PyTree:
    """Arrays with an equal share of their rows on each device of a mesh.

    With this, samples that are too large for one device can be made and moved in parts. Functions
    of the package take sharded and other arrays alike, and give the same numbers.

    Args:
        arrays: a pytree of arrays, the same on every process. A list of numbers, nested or not, is
            an array. Scalars are put on each device.
        mesh: whose devices take the rows.

    Raises:
        ValueError: if the number of rows is not a multiple of that of devices (rows of weight zero
            may fill it up), or if JAX's dtype does not hold NumPy's numbers. A function of the
            package subtracts an offset before it rounds; an array on devices is rounded already.

    Example:
        >>> import jax.numpy as jnp
        >>> devices = mesh()
        >>> rows = shard(jnp.zeros((2 * devices.size, 3)), devices)
        >>> rows.sharding.shard_shape(rows.shape)
        (2, 3)
    """

    def put(path: Any, leaf: Any) -> jax.Array:
        array = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
        check_held("arrays" + jax.tree_util.keystr(path), array)
        if array.ndim and array.shape[0] % mesh.size:
            name = "arrays" + jax.tree_util.keystr(path)
            raise ValueError(
                f"{name} must have a number of rows that is a multiple of the {mesh.size} devices; "
                f"got {array.shape[0]}. Rows of weight zero may fill it up."
            )
        spec = PartitionSpec(mesh.axis_names) if array.ndim else PartitionSpec()
        return placed(array, NamedSharding(mesh, spec))

    return jax.tree_util.tree_map_with_path(put, arrays, is_leaf=_is_list_of_numbers)


def _is_list_of_numbers(node: Any) -> bool:
    """Whether a list holds numbers of Python alone: samples, as everywhere in the package."""
    leaves = jax.tree.leaves(node) if isinstance(node, list) else []
    return bool(leaves) and all(isinstance(leaf, (bool, int, float)) for leaf in leaves)


def gather(arrays: PyTree) -> PyTree:
    """Arrays of any sharding as NumPy's, whole, on every process.

    Example:
        >>> import jax.numpy as jnp
        >>> gather(shard(jnp.arange(3.0), mesh(jax.devices()[:1])))
        array([0., 1., 2.], dtype=float32)
    """
    return jax.tree.map(on_host, arrays)
