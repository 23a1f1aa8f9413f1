"""The cells of a sweep: one trace of a function, to be evaluated at many settings and seeds."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun  # pyright: ignore[reportPrivateImportUsage]
from jaxtyping import Array, Int, Key, PyTree

from divjax.core.pytrees import Code

__all__ = ["Cells", "Inputs", "evaluate"]

# Raised by JAX where a function needs a number in Python that is traced.
_NEEDS_PYTHON = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.TracerBoolConversionError,
)


class Inputs(NamedTuple):
    """The arrays of a sweep: what distinguishes two sweeps of the same operations.

    Attributes:
        constants: the arrays that the function refers to.
        keys: of the seeds.
        tables: the hyper-parameters along each dimension, by name.
    """

    constants: list[Array]
    keys: Key[Array, " num_seeds"]
    tables: list[dict[str, Array]]


class Cells:
    """A function at all settings and seeds of a grid, traced once.

    Cell number i is seed i mod num_seeds of setting i // num_seeds, and settings are in row-major
    order of the dimensions. The results of a cell depend on its number alone.

    Attributes:
        code: the function's operations.
        inputs: the arrays they work on.
        results: the shapes of the function's results, without keys.
        num_cells: the number of settings times that of seeds.
    """

    code: Code
    inputs: Inputs
    results: PyTree[jax.ShapeDtypeStruct]
    num_cells: int

    def __init__(
        self,
        fn: Callable[..., Any],
        keys: Key[Array, " num_seeds"],
        dimensions: Sequence[Mapping[str, Any]],
        static: Mapping[str, Any],
    ):
        """Trace the function.

        Args:
            fn: of a key and the hyper-parameters, by their names.
            keys: of the seeds.
            dimensions: the values of the hyper-parameters along each dimension.
            static: the hyper-parameters that are the same in all cells, as Python values.

        Raises:
            ValueError: if the function uses a traced number as a value of Python, or returns
                anything but arrays, or no array.
        """
        # With JAX's default dtypes, as a number of Python would be.
        tables = [
            {name: jnp.asarray(column) for name, column in values.items()} for values in dimensions
        ]
        # Hyper-parameters are weakly typed, as Python's numbers are: they leave dtypes alone.
        numbers = {
            name: jax.ShapeDtypeStruct((), column.dtype, weak_type=True)
            for table in tables
            for name, column in table.items()
        }
        # One trace serves all cells, whatever the program that evaluates them.
        example = jax.ShapeDtypeStruct((), keys.dtype)
        try:
            closed, self.results = jax.make_jaxpr(
                lambda key, values: _results(fn(key, **values, **static)), return_shape=True
            )(example, numbers)
        except _NEEDS_PYTHON as error:
            raise ValueError(
                "fn must take traced numbers, but it uses one as a value of Python. For those "
                f"among {', '.join(numbers) or 'its arguments'} that select operations (counts, "
                "widths, flags), give choices([...]) in the grid."
            ) from error
        if not jax.tree.leaves(self.results):
            raise ValueError("fn must return at least one array; got none.")
        # A sweep is not differentiated: the rules for that, new in every trace, do not matter.
        self.code = Code(closed.jaxpr, derivatives=False)
        constants = [_as_input(constant) for constant in closed.consts]
        self.inputs = Inputs(constants, keys, tables)
        sizes = [len(next(iter(table.values()))) for table in tables]
        self.num_cells = math.prod(sizes) * len(keys)


def _as_input(constant: Any) -> Array:
    """An array that a function refers to, for the program of a cell, which is on one device."""
    array = constant if isinstance(constant, jax.Array) else jnp.asarray(constant)
    # Whole on each device, as NumPy's arrays are under a mesh: one of them will do.
    if array.is_fully_replicated:
        return array.addressable_data(0)
    if len(array.sharding.device_set) > 1:
        raise ValueError(
            f"fn must refer to arrays on one device; got one of shape {array.shape} on "
            f"{len(array.sharding.device_set)}. divjax.sharding.gather makes it whole."
        )
    return array


def _results(returned: PyTree) -> PyTree[Array]:
    """A function's results, without keys, such as those in the state of a run."""

    def result(leaf: Any) -> Array | None:
        if not isinstance(leaf, (jax.Array, np.ndarray, np.generic, bool, int, float, complex)):
            raise ValueError(f"fn must return a pytree of arrays; got a {type(leaf).__name__}.")
        array = jnp.asarray(leaf)
        # A key is no number that a dataset or a file could hold.
        return None if jnp.issubdtype(array.dtype, jax.dtypes.prng_key) else array

    return jax.tree.map(result, returned)


def evaluate(code: Code, inputs: Inputs, number: Int[Array, ""]) -> list[Array]:
    """The results of the cell of this number, leaf by leaf."""
    constants, keys, tables = inputs
    # A cell's number is its place in the grid, seeds innermost.
    setting, seed = number // len(keys), number % len(keys)
    sizes = tuple(len(next(iter(table.values()))) for table in tables)
    places = jnp.unravel_index(setting, sizes) if sizes else ()
    values = {
        name: column[place]
        for table, place in zip(tables, places, strict=True)
        for name, column in table.items()
    }
    function = jaxpr_as_fun(ClosedJaxpr(code.jaxpr, constants))
    return function(*jax.tree.leaves((keys[seed], values)))
