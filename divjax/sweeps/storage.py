"""The folder of a sweep: its description, and its finished cells, whole or not at all."""

import functools
import hashlib
import json
import os
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr  # pyright: ignore[reportPrivateImportUsage]

from divjax.sweeps.cells import Cells
from divjax.sweeps.grid import Choices, Dimension
from divjax.sweeps.schedule import Chunk

__all__ = ["Storage", "describe"]

_DESCRIPTION = "sweep.json"
# The choice, the first cell, that after the last, and a checksum of the file.
_CHUNK = re.compile(r"cells-(\d+)-(\d+)-\d+(?:-([0-9a-f]{8}))?\.nc")
# Addresses in a program's text, as of callbacks, differ from process to process.
_ADDRESS = re.compile(r"0x[0-9a-f]+")
_NUMBERS = (jax.Array, np.ndarray, np.generic, bool, int, float, complex)


def describe(
    dimensions: Sequence[Dimension], keys: jax.Array, programs: Sequence[Cells]
) -> dict[str, Any]:
    """A sweep as text: its grid, its key, and the operations and data of its function.

    Two functions with the same operations on the same arrays are one, whatever they are called.
    """
    # Operations as JAX prints them, and the arrays they refer to.
    operations = hashlib.sha256()
    for cells in programs:
        operations.update(_ADDRESS.sub("", str(cells.code.jaxpr)).encode())
        for held in (*cells.inputs.constants, *_referred_to(cells.code.jaxpr)):
            array = jax.random.key_data(held) if _is_key(held) else np.asarray(held)
            operations.update(f"{array.dtype}{array.shape}".encode())
            operations.update(np.ascontiguousarray(array).tobytes())
    return {
        "grid": {
            dimension.name: {
                name: [str(label) for label in held.labels]
                if isinstance(held, Choices)
                else held.tolist()
                for name, held in dimension.values.items()
            }
            for dimension in dimensions
        },
        "num_seeds": len(keys),
        # The first seed's key stands for the sweep's: those of the others follow from the same one.
        "key": np.asarray(jax.random.key_data(keys[:1])).ravel().tolist(),
        "function": operations.hexdigest(),
    }


def _is_key(held: Any) -> bool:
    return isinstance(held, jax.Array) and jax.numpy.issubdtype(held.dtype, jax.dtypes.prng_key)


def _referred_to(jaxpr: Any) -> Iterator[Any]:
    """The arrays and numbers that inner programs and callbacks refer to, in order.

    The text of a jaxpr shows only the shapes of the arrays of inner programs, and nothing of what
    is behind a callback to the host.
    """
    for value in _inner_programs(jaxpr):
        yield from getattr(value, "consts", ())
    for program in _inner_programs(jaxpr):
        for eqn in getattr(program, "jaxpr", program).eqns:
            if "callback" in eqn.primitive.name:
                yield from _behind(eqn.params, {})


def _inner_programs(value: Any) -> Iterator[Any]:
    """A jaxpr and those in the parameters of its operations."""
    if isinstance(value, (Jaxpr, ClosedJaxpr)):
        yield value
        for eqn in getattr(value, "jaxpr", value).eqns:
            yield from _inner_programs(list(eqn.params.values()))
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _inner_programs(part)


def _behind(value: Any, seen: dict[int, Any]) -> Iterator[Any]:
    """The parts that determine a callback's results: code, closure, defaults and globals."""
    if isinstance(value, _NUMBERS):
        yield value
        return
    if id(value) in seen:
        return
    # Held, so that no other object takes its place in memory, and with it its number.
    seen[id(value)] = value
    if isinstance(value, Mapping):
        for name in sorted(value, key=str):
            yield from _behind(value[name], seen)
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _behind(part, seen)
    elif isinstance(value, functools.partial):
        yield from _behind([value.func, value.args, value.keywords], seen)
    elif isinstance(value, CodeType):
        # The operations and constants, without file names and line numbers.
        yield np.frombuffer(value.co_code, np.uint8)
        yield _as_bytes(value.co_names)
        for constant in value.co_consts:
            if isinstance(constant, (CodeType, *_NUMBERS, tuple)):
                yield from _behind(constant, seen)
            elif isinstance(constant, str):
                yield _as_bytes(constant)
    elif isinstance(value, FunctionType):
        yield from _behind(value.__code__, seen)
        yield from _behind([_contents(cell) for cell in value.__closure__ or ()], seen)
        yield from _behind([value.__defaults__, value.__kwdefaults__], seen)
        # Numbers and functions beside it: what is kept in others' modules, or in dictionaries, may
        # differ from process to process.
        for name in value.__code__.co_names:
            held = value.__globals__.get(name)
            own = isinstance(held, FunctionType) and held.__module__ == value.__module__
            if own or isinstance(held, _NUMBERS):
                yield from _behind(held, seen)
    elif callable(value) and not isinstance(value, type):
        # A method, or an object that is called.
        slots = [name for name in getattr(value, "__slots__", ()) if name != "__weakref__"]
        names = (*slots, *getattr(value, "__dict__", ()), "__self__", "__func__")
        yield from _behind([getattr(value, name, None) for name in names], seen)


def _as_bytes(text: object) -> np.ndarray:
    return np.frombuffer(repr(text).encode(), np.uint8)


def _contents(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # empty so far
        return None


class Storage:
    """The files of one sweep in a folder.

    Each chunk of finished cells is a NetCDF file, written under another name and renamed, so that a
    process that is killed leaves whole files. A checksum in the name shows damage. Two processes
    that run the same sweep in one folder write equal numbers.
    """

    def __init__(self, path: str | Path, description: dict[str, Any]):
        """Open the folder, or make it.

        Raises:
            ValueError: if it holds another sweep or anything else, by the name of what differs.
        """
        self.folder = Path(path)
        # A folder with other files is refused: they are not the sweep's to touch.
        description_file = self.folder / _DESCRIPTION
        if description_file.exists():
            _check_same(description_file, description)
            return
        if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise ValueError(f"path must be a new or an empty folder, or a sweep's; got {path}.")
        self.folder.mkdir(parents=True, exist_ok=True)
        _replace(description_file, lambda file: file.write_text(json.dumps(description, indent=1)))

    def finished(self, choice: int) -> list[Chunk]:
        """The chunks of cells that were written, of one static choice."""
        return [
            (start, self._read(file))
            for file in sorted(self.folder.iterdir())
            for number, start in [_numbers(file)]
            if number == choice
        ]

    def write(self, choice: int, chunk: Chunk) -> None:
        """Write a chunk of one static choice."""
        import xarray

        # The cells of a file are in its name, so that no index can disagree with the files.
        start, arrays = chunk
        stop = start + len(arrays[0])
        dataset = xarray.Dataset(
            {
                f"leaf_{i}": (
                    ["cell", *(f"leaf_{i}_{axis}" for axis in range(1, array.ndim))],
                    array,
                )
                for i, array in enumerate(arrays)
            }
        )
        _replace(
            self.folder / f"cells-{choice}-{start}-{stop}.nc",
            lambda file: dataset.to_netcdf(file, engine="h5netcdf"),
            checksum=True,
        )

    def _read(self, file: Path) -> list[np.ndarray]:
        import xarray

        try:
            # HDF5 by itself reads a number of which a bit has changed.
            match = _CHUNK.fullmatch(file.name)
            if match is not None and match[3] not in (None, _checksum(file)):
                raise ValueError("its checksum is another")
            dataset = xarray.load_dataset(file, engine="h5netcdf")
            return [np.asarray(dataset[f"leaf_{i}"]) for i in range(len(dataset))]
        # An ImportError is passed on: the file is sound, and must not be removed.
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise ValueError(
                f"{file} cannot be read. Remove it, and its cells are computed again."
            ) from error


def _numbers(file: Path) -> tuple[int, int]:
    """The choice and the first cell of a chunk, of any other file −1."""
    match = _CHUNK.fullmatch(file.name)
    return (int(match[1]), int(match[2])) if match else (-1, -1)


def _check_same(file: Path, description: dict[str, Any]) -> None:
    """Raise `ValueError` by the name of what differs from a description in a file."""
    try:
        # A file that is no description gets an error that names it, as another sweep's does.
        held = json.loads(file.read_text())
        differing = [name for name in description if held[name] != description[name]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} cannot be read as the description of a sweep.") from error
    if not differing:
        return
    name = differing[0]
    if name == "function":
        raise ValueError(
            f"path must be another folder: {file.parent} holds a sweep of another function (its "
            "operations or the arrays it refers to differ, or JAX's version does)."
        )
    # What differs is shown, unless it is long.
    was, now = held[name], description[name]
    if name == "grid" and list(was) == list(now):
        differing = [part for part in was if was[part] != now[part]]
        raise ValueError(
            f"path must be another folder: {file.parent} holds a sweep of another grid, with other "
            f"values of {', '.join(differing)}."
        )
    if name == "grid":
        was, now = ", ".join(was), ", ".join(now)
    raise ValueError(
        f"path must be another folder: {file.parent} holds a sweep of another {name}, {was}; "
        f"got {now}."
    )


def _replace(file: Path, write: Any, *, checksum: bool = False) -> None:
    """Write a file whole or not at all, with its checksum in its name if asked for."""
    # In the same folder, since renaming is atomic within a file system alone.
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    write(temporary)
    if checksum:
        file = file.with_stem(f"{file.stem}-{_checksum(temporary)}")
    os.replace(temporary, file)


def _checksum(file: Path) -> str:
    return f"{zlib.crc32(file.read_bytes()):08x}"
