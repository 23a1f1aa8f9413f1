"""The smallest entries of each row of a matrix, among many columns and divided among devices."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from divjax.core.sharding import mesh_in_use

__all__ = ["rounded_up", "smallest_in_rows"]

# With fewer columns than this for each entry that is wanted, they are searched at once.
_COLUMNS_PER_ENTRY = 32


def rounded_up(values: Float[Array, "..."]) -> Float[Array, "..."]:
    """Positive numbers and all that equal them up to rounding are at most this.

    Ties are counted by comparison with it: a distance that is computed twice, in two fusions of the
    compiler, may differ in its last place.

    Example:
        >>> import jax.numpy as jnp
        >>> bool(rounded_up(jnp.array(0.3)) >= jnp.array(0.1) + jnp.array(0.2))
        True
    """
    return values * (1 + 8 * float(jnp.finfo(values.dtype).eps))


def smallest_in_rows(values: Float[Array, "n m"], count: int) -> tuple[Array, Int[Array, "n k"]]:
    """Each row's `count` smallest values in ascending order, and their columns.

    Ties are in an arbitrary order: what depends on one of them must not. NaN comes last. Called
    within `map_row_blocks`, each device searches its own rows. (The compiler does not divide
    `top_k` among devices, and would gather all rows on each of them.) Elsewhere each device
    searches all rows.

    Example:
        >>> import jax.numpy as jnp
        >>> smallest_in_rows(jnp.array([[3.0, 1.0, 2.0]]), 2)[1].tolist()
        [[1, 2]]
    """
    mesh, spec = mesh_in_use(), PartitionSpec()
    many = values.shape[1] > _COLUMNS_PER_ENTRY * count
    search = lambda values: (_by_groups if many else _at_once)(values, count)
    if mesh is not None:
        # Within `map_over_devices` the lanes are divided, by its `spmd_axis_name`.
        search = jax.shard_map(search, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    return search(values)


def _at_once(values: Float[Array, "n m"], count: int) -> tuple[Array, Int[Array, "n k"]]:
    # Behind a barrier: merged with a slice of its results, top_k is compiled into a sort of rows.
    negative, columns = jax.lax.optimization_barrier(jax.lax.top_k(-values, count))
    return -negative, columns


def _by_groups(values: Float[Array, "n m"], count: int) -> tuple[Array, Int[Array, "n k"]]:
    """The same, from the groups of columns that have the smallest minima.

    The `count` smallest entries are in at most `count` groups, those with the smallest minima.
    `top_k` takes many times longer for an entry than a minimum does: with √(count · m) groups it
    sees 2 √(count · m) entries of a row in place of m.
    """
    num_columns = values.shape[1]
    typical = math.sqrt(count * num_columns)
    # A number of groups that divides that of the columns spares a copy of the values.
    nearby = range(int(typical / 1.5), int(1.5 * typical))
    num_groups = min(nearby, key=lambda groups: (-num_columns % groups, abs(groups - typical)))
    padded = jnp.pad(values, ((0, 0), (0, -num_columns % num_groups)), constant_values=jnp.inf)
    # Column j belongs to group j mod num_groups: minima are then over adjacent vectors.
    by_group = padded.reshape(len(values), -1, num_groups)
    # Comparisons with NaN do not hold, and it is nobody's minimum.
    smaller = lambda left, right: jax.lax.select(right < left, right, left)
    infinite = np.array(np.inf, values.dtype)
    minima = jax.lax.reduce(jax.lax.stop_gradient(by_group), infinite, smaller, (1,))
    _, groups = _at_once(minima, count)
    candidates = jax.vmap(lambda entries, groups: entries[:, groups])(by_group, groups)
    smallest, place = _at_once(candidates.reshape(len(values), -1), count)
    # Places are ordered by the row within a group, then by the group.
    group = jnp.take_along_axis(groups, place % count, axis=1)
    return smallest, (place // count) * num_groups + group
