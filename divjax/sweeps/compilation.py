"""Compiled programs of cells: one after another on a CPU, in batches on other devices or meshes."""

import dataclasses
import functools
import math
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from divjax.core.programs import jax_settings
from divjax.core.pytrees import Code
from divjax.core.sharding import on_host, placed
from divjax.sweeps.cells import Cells, Inputs, evaluate

__all__ = ["Program", "compile_cells"]

# The most bytes of results that a program of single cells holds at once.
_BUFFER_BYTES = 2**26
# A batch is compiled to find the memory it takes. Beyond this many cells devices are busy anyway.
_LARGEST_BATCH = 1024
# The share of a device's memory that a batch may take, and the bytes if its memory is unknown.
_MEMORY_SHARE, _DEFAULT_BYTES = 0.5, 2**30
# Sweeps of so many functions are kept compiled.
_MOST_PROGRAMS = 64


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program of some cells.

    Attributes:
        run: from the first cell's number and how many cells, at most `capacity`, to the results of
            each leaf, stacked.
        capacity: the most cells of one call.
        any_count: whether fewer cells take less time.
    """

    run: Callable[[int, int], list[np.ndarray]]
    capacity: int
    any_count: bool


def compile_cells(cells: Cells, batch_size: int | None, mesh: Mesh | None) -> Program:
    """The program of a sweep's cells; nothing is compiled again for the same operations and shapes.

    Args:
        cells: of the sweep.
        batch_size: how many cells are a batch, or None for what memory holds.
        mesh: of devices that share each batch, or None for the default device.
    """
    if mesh is not None:
        return _batched(cells, batch_size, mesh, mesh.local_devices[0])
    (device,) = jnp.zeros(()).devices()
    if device.platform == "cpu":
        return _single(cells, device)
    return _batched(cells, batch_size, None, device)


def _single(cells: Cells, device: Any) -> Program:
    """One cell after another, any number of them in a call; compiled like a single cell."""
    leaves = tuple(jax.tree.leaves(cells.results))
    sizes = [math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves]
    # Results are in memory until a call ends: it has as many cells as the buffer holds.
    capacity = max(1, min(cells.num_cells, _BUFFER_BYTES // max(1, sum(sizes))))
    compiled = _compile_single(
        cells.code, _shapes(cells.inputs), leaves, capacity, (device, jax_settings())
    )

    def run(start: int, count: int) -> list[np.ndarray]:
        outputs = compiled(cells.inputs, np.int32(start), np.int32(count))
        return [_for_a_file(leaf)[:count] for leaf in outputs]

    return Program(run, capacity, any_count=True)


@functools.lru_cache(maxsize=_MOST_PROGRAMS)
def _compile_single(
    code: Code, inputs: "_Shapes", leaves: tuple[Any, ...], capacity: int, context: Hashable
) -> Any:
    """The program of cells one after another, for these operations, shapes, device and settings."""

    def run(inputs: Inputs, start: Int[Array, ""], count: Int[Array, ""]) -> list[Array]:
        def body(i: Int[Array, ""], buffers: list[Array]) -> list[Array]:
            outputs = evaluate(code, inputs, start + i)
            return [buffer.at[i].set(new) for buffer, new in zip(buffers, outputs, strict=True)]

        buffers = [jnp.zeros((capacity, *leaf.shape), leaf.dtype) for leaf in leaves]
        # The count is traced: chunks of any size are one program.
        return jax.lax.fori_loop(0, count, body, buffers)

    return jax.jit(run).lower(inputs.tree(), np.int32(0), np.int32(0)).compile()


def _batched(cells: Cells, batch_size: int | None, mesh: Mesh | None, device: Any) -> Program:
    """Cells side by side, as one batch or sharded over the devices of a mesh."""
    num_devices, replicated, spread = 1, None, None
    if mesh is not None:
        num_devices = mesh.size
        replicated = NamedSharding(mesh, PartitionSpec())
        spread = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    # Hyper-parameters and data are on each device, so that cells need no communication.
    inputs = jax.tree.map(lambda leaf: placed(leaf, replicated), cells.inputs)
    context = device, jax_settings()
    compile_for = functools.partial(
        _compile_batch, cells.code, _shapes(inputs, replicated), mesh, spread, context
    )

    # Each device takes the same number of cells.
    largest = min(cells.num_cells, _LARGEST_BATCH * num_devices)
    width = _multiple(batch_size or largest, num_devices)
    compiled = compile_for(width)
    # A batch that takes too much memory is compiled once more, smaller in proportion.
    excess = _memory(compiled) / _budget(device)
    if batch_size is None and excess > 1:
        width = _multiple(max(1, int(width / excess)), num_devices)
        compiled = compile_for(width)

    def run(start: int, count: int) -> list[np.ndarray]:
        # The last batch is filled up with its last cell.
        numbers = np.minimum(start + np.arange(width), start + count - 1).astype(np.int32)
        outputs = compiled(inputs, placed(numbers, spread))
        return [_for_a_file(leaf)[:count] for leaf in outputs]

    return Program(run, width, any_count=False)


@functools.lru_cache(maxsize=_MOST_PROGRAMS)
def _compile_batch(
    code: Code,
    inputs: "_Shapes",
    mesh: Mesh | None,
    spread: NamedSharding | None,
    context: tuple[Any, Hashable],
    width: int,
) -> Any:
    """The program of a batch of cells, for these operations, shapes, devices and settings."""

    def run(inputs: Inputs, numbers: Int[Array, " batch"]) -> list[Array]:
        cell = functools.partial(evaluate, code, inputs)
        # A CPU gains nothing from lanes, whose loops run until the slowest of them stops.
        if context[0].platform == "cpu":
            return jax.lax.map(cell, numbers)
        return jax.vmap(cell)(numbers)

    if mesh is not None:
        every, lanes = PartitionSpec(), PartitionSpec(mesh.axis_names)
        run = jax.shard_map(
            run, mesh=mesh, in_specs=(every, lanes), out_specs=lanes, check_vma=False
        )
    # Compiled ahead of its first call, so that the memory it takes is known before it runs.
    numbers = jax.ShapeDtypeStruct((width,), np.int32, sharding=spread)
    return jax.jit(run).lower(inputs.tree(), numbers).compile()


@dataclasses.dataclass(frozen=True)
class _Shapes:
    """The shapes of a pytree of arrays, to be compared."""

    structure: Any
    leaves: tuple[jax.ShapeDtypeStruct, ...]

    def tree(self) -> Any:
        return jax.tree.unflatten(self.structure, self.leaves)


def _shapes(inputs: Inputs, sharding: NamedSharding | None = None) -> _Shapes:
    leaves, structure = jax.tree.flatten(inputs)
    shapes = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding) for leaf in leaves]
    return _Shapes(structure, tuple(shapes))


def _multiple(size: int, unit: int) -> int:
    return math.ceil(size / unit) * unit


def _memory(compiled: Any) -> int:
    """The bytes that a program takes on a device beside its arguments, 0 if they are unknown."""
    # A smaller batch saves temporaries and results, while the arguments stay.
    analysis = compiled.memory_analysis()
    if analysis is None:
        return 0
    return analysis.temp_size_in_bytes + analysis.output_size_in_bytes


def _budget(device: Any) -> float:
    statistics = device.memory_stats() or {}
    limit, used = statistics.get("bytes_limit"), statistics.get("bytes_in_use", 0)
    return _MEMORY_SHARE * (limit - used) if limit else _DEFAULT_BYTES


def _for_a_file(leaf: Array) -> np.ndarray:
    """A result as a NumPy array; half precision as float32, the shortest float of NetCDF."""
    array = on_host(leaf)
    half = jnp.issubdtype(array.dtype, jnp.floating) and array.dtype.itemsize < 4
    return array.astype(np.float32) if half else array
