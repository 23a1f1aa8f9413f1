"""The sweep itself: a function at every setting and seed, as a labelled dataset."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Key

from divjax.core.checks import check_callable, check_count, check_flag
from divjax.core.keys import own_key
from divjax.core.progress import progress_bar
from divjax.core.sharding import without_mesh
from divjax.sweeps.cells import Cells
from divjax.sweeps.compilation import compile_cells
from divjax.sweeps.dataset import Results
from divjax.sweeps.grid import Dimension, Grid, as_dimensions
from divjax.sweeps.schedule import missing_cells, run_cells
from divjax.sweeps.storage import Storage, describe

if TYPE_CHECKING:
    import xarray

__all__ = ["sweep"]


def sweep(
    key: Key[Array, ""],
    fn: Callable[..., Any],
    grid: Grid,
    *,
    num_seeds: int = 5,
    batch_size: int | None = None,
    mesh: Mesh | None = None,
    path: str | Path | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    progress: bool = True,
) -> "xarray.Dataset":
    """Evaluate a function at every setting of a grid and every seed, as a labelled dataset.

    The function is traced and compiled once for all numbers of the grid, and once more for each of
    its choices. On a CPU one cell runs after another, in as many threads as there are processors;
    on an accelerator batches of cells run side by side.

    Args:
        key: of the seeds. Seed s has the same key at all settings, so that these are compared on
            equal draws, and more seeds leave the first ones as they are: it is
            `fold_in(fold_in(key, 0xD1F7A5), s)`, which no split of `key` repeats.
        fn: called as `fn(key, **hyperparameters)`, with traced scalars; returns any pytree of
            arrays. Estimates, results and dictionaries become variables named by their fields and
            keys: `{"kl": estimate}` becomes `kl`, `kl_std_error`, `kl_interval_lower`, … A sole
            array is `value`. Keys that it returns are left out.
        grid: the values of each hyper-parameter by name, whose product is taken. Values are a
            vector of numbers; a range, `log_uniform(low, high, num)` or `uniform`; or choices,
            which stay values of Python: texts, booleans, objects, a dictionary of them by their
            labels, or numbers in `choices([…])`. Under a name of the dimension's own, `zipped(…)`
            and `sobol(num, …)` change several hyper-parameters together.
        num_seeds: how many keys each setting gets.
        batch_size: the cells of a chunk, which ends, and is written, as one. By default as many as
            take a second on a CPU, and as many as fill half of an accelerator's memory.
        mesh: devices that share each batch of cells, whatever the names of their axes. By default
            those of `jax.set_mesh`, and without one the default device alone.
        path: a folder in which each chunk is written as it ends. The same call resumes there after
            an interruption. Of several processes the first one writes, and all must see the folder.
        dims: names of the axes of array results, by variable. By default the names in annotations
            of result classes, or `<variable>_0`, `<variable>_1`, …
        progress: whether to draw a bar.

    Returns:
        A dataset with the grid's dimensions and `seed`. Values that are not finite are kept, and
        the variable `finite` is False where a cell has one. Half precision becomes float32.
        `.mean("seed")`, `.sel(epsilon=0.1)` and `.to_dataframe()` are xarray's; see `summarize` and
        `best`.

    Raises:
        ValueError: if the key, the grid or another argument is invalid; `fn` does not take the
            hyper-parameters, uses a traced number as one of Python, or returns arrays of other
            shapes for other choices; or `path` holds another sweep.
        ImportError: if xarray, h5netcdf (for `path`) or tqdm (for `progress`) is not installed; the
            extra `divjax[sweeps]` has them.

    The same cell gives the same number to the last bit however a CPU's cells are chunked or a sweep
    was interrupted. In batches of another size, or on other devices, numbers differ by the rounding
    of each operation, which training amplifies.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from divjax import ot, sweep, sweeps
        >>> def cost(key, epsilon, shift):
        ...     x, y = jax.random.normal(key, (2, 50, 2))
        ...     return ot.sinkhorn(x, y + shift, epsilon=epsilon)
        >>> grid = {"epsilon": sweeps.log_uniform(0.1, 1.0, num=3), "shift": [0.0, 1.0]}
        >>> result = sweep(jax.random.key(0), lambda key, **setting: cost(key, **setting).value,
        ...                grid, num_seeds=2, progress=False)
        >>> dict(result.sizes)
        {'epsilon': 3, 'shift': 2, 'seed': 2}
        >>> bool(result.finite.all())
        True
    """
    _require("xarray", *(["h5netcdf", "h5py"] if path is not None else []))
    keys, dimensions = _check(key, fn, grid, num_seeds, batch_size, mesh, progress)
    # `jax.set_mesh` says the same as the argument.
    if mesh is None and not jax.sharding.get_abstract_mesh().empty:
        mesh = jax.sharding.get_mesh()
    # Choices are compiled one by one; numbers are arguments of one program.
    static = [dimension for dimension in dimensions if dimension.is_static]
    dynamic = [dimension for dimension in dimensions if not dimension.is_static]

    # Every choice is traced before anything runs, so that no mistake shows after hours. A cell is
    # the work of one device.
    with without_mesh():
        programs = [
            Cells(fn, keys, [dimension.values for dimension in dynamic], setting)
            for setting in _settings(static)
        ]
    results = Results([cells.results for cells in programs], dimensions, num_seeds, dims or {})
    if path is not None and jax.process_count() > 1:
        from jax.experimental import multihost_utils

        # Every process must find all files that the first one wrote in an earlier call, hence miss
        # the same cells.
        multihost_utils.sync_global_devices("divjax.sweep")
    storage = None if path is None else _open(path, describe(dimensions, keys, programs))

    # Cells in the folder are done, whatever the chunks that they were written in.
    total = sum(cells.num_cells for cells in programs)
    with progress_bar(progress, total, "cell") as bar:
        for choice, cells in enumerate(programs):
            finished = [] if storage is None else storage.finished(choice)
            for chunk in finished:
                results.add(choice, chunk)
            done = [(start, start + len(arrays[0])) for start, arrays in finished]
            gaps = missing_cells(cells.num_cells, done)
            bar.update(cells.num_cells - sum(stop - start for start, stop in gaps))
            if not gaps:
                continue
            program = compile_cells(cells, batch_size, mesh)
            for chunk in run_cells(program, gaps, batch_size):
                results.add(choice, chunk)
                # Every process has the results, and one of them writes.
                if storage is not None and jax.process_index() == 0:
                    storage.write(choice, chunk)
                bar.update(len(chunk[1][0]))
    return results.dataset()


def _check(
    key: Any, fn: Any, grid: Any, num_seeds: Any, batch_size: Any, mesh: Any, progress: Any
) -> tuple[Key[Array, " num_seeds"], tuple[Dimension, ...]]:
    """The seeds' keys and the grid's dimensions; raises `ValueError` for invalid arguments."""
    own = own_key(key)
    check_callable(fn=fn)
    dimensions = as_dimensions(grid)
    check_count(1, num_seeds=num_seeds)
    if batch_size is not None:
        check_count(1, batch_size=batch_size)
    check_flag(progress=progress)
    if not (mesh is None or isinstance(mesh, Mesh)):
        raise ValueError(f"mesh must be a jax.sharding.Mesh; got {type(mesh).__name__}.")
    # A misspelt hyper-parameter is an error of the call, not of a trace.
    names = [name for dimension in dimensions for name in dimension.values]
    try:
        inspect.signature(fn).bind(key, **dict.fromkeys(names))
    except TypeError as error:
        raise ValueError(
            f"fn must take a key and the hyper-parameters {', '.join(names) or '(none)'} by name: "
            f"{error}."
        ) from error
    # A seed's key does not depend on how many seeds there are: a sweep of more has the same first
    # ones.
    return jax.vmap(lambda seed: jax.random.fold_in(own, seed))(jnp.arange(num_seeds)), dimensions


def _open(path: str | Path, description: dict[str, Any]) -> Storage:
    """The folder, which the first of several processes makes before the others look."""
    if jax.process_count() == 1:
        return Storage(path, description)
    from jax.experimental import multihost_utils

    try:
        if jax.process_index() == 0:
            return Storage(path, description)
    finally:
        # Reached by all, also where the first one raises.
        multihost_utils.sync_global_devices("the folder of a sweep")
    return Storage(path, description)


def _require(*libraries: str) -> None:
    for library in libraries:
        try:
            __import__(library)
        except ImportError as error:
            raise ImportError(
                f"sweep needs {library}, which is not installed: install divjax[sweeps]."
            ) from error


def _settings(static: Sequence[Dimension]) -> Iterator[dict[str, Any]]:
    """The choices in row-major order of their dimensions."""
    for places in product(*(range(dimension.size) for dimension in static)):
        yield {
            name: value
            for dimension, place in zip(static, places, strict=True)
            for name, value in dimension.setting(place).items()
        }
