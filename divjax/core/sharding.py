"""Arrays that are sharded over the devices of a mesh."""

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array

__all__ = ["gathered"]


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
