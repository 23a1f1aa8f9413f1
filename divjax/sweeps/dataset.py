"""The results of a sweep as they arrive, their dataset, and its summaries."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from divjax.core.checks import check_flag
from divjax.sweeps.grid import Dimension
from divjax.sweeps.naming import dimension_names, variable_names
from divjax.sweeps.schedule import Chunk

if TYPE_CHECKING:
    import pandas
    import xarray

__all__ = ["Results", "best", "summarize"]


class Results:
    """The results of all cells, by variable, choice and cell."""

    def __init__(
        self,
        results: Sequence[Any],
        dimensions: Sequence[Dimension],
        num_seeds: int,
        dims: Mapping[str, Sequence[str]],
    ):
        """Allocate the arrays.

        Args:
            results: the shapes of the function's results, a pytree for each choice.
            dimensions: of the grid.
            num_seeds: of each setting.
            dims: the caller's names of axes, by variable.

        Raises:
            ValueError: if a variable has two shapes, or a name is that of something else.
        """
        self._dimensions, self._num_seeds = dimensions, num_seeds
        taken = ["seed", "finite", *(dimension.name for dimension in dimensions)]
        taken += [name for dimension in dimensions for name in dimension.values]
        # Choices may return different variables, but a variable has one shape in all of them.
        shapes: dict[str, tuple[int, ...]] = {}
        dtypes: dict[str, np.dtype] = {}
        for result in results:
            for name, leaf in zip(variable_names(result), jax.tree.leaves(result), strict=True):
                if name in taken:
                    ours = name in ("seed", "finite")
                    whose = "which sweep adds itself" if ours else "which the dataset has already"
                    raise ValueError(
                        "fn must not name a result as a hyper-parameter, a dimension, seed or "
                        f"finite; got {name}, {whose}: rename it."
                    )
                if shapes.setdefault(name, leaf.shape) != leaf.shape:
                    raise ValueError(
                        f"fn must return {name} of one shape for all choices; got {shapes[name]} "
                        f"and {leaf.shape}."
                    )
                dtype = _stored(leaf.dtype)
                dtypes[name] = np.result_type(dtypes.get(name, dtype), dtype)

        # A variable's axes have the names that they have in the first choice with it.
        self._variables: list[list[str]] = []
        self._axes: dict[str, tuple[str, ...]] = {}
        for axes in dimension_names(results, dims, taken):
            for name, names in axes.items():
                self._axes.setdefault(name, names)
            self._variables.append(list(axes))

        # A variable that a choice does not return is NaN there.
        for name in shapes:
            if not all(name in variables for variables in self._variables):
                dtypes[name] = np.result_type(dtypes[name], np.float32)
        sizes = [dimension.size for dimension in dimensions if not dimension.is_static]
        cells = len(results), math.prod(sizes) * num_seeds
        self._arrays = {
            name: np.full(
                (*cells, *shape), np.nan if dtypes[name].kind in "fc" else 0, dtypes[name]
            )
            for name, shape in shapes.items()
        }
        self._finite = np.ones(cells, bool)

    def add(self, choice: int, chunk: Chunk) -> None:
        """Enter a chunk of cells of one choice."""
        start, arrays = chunk
        for name, array in zip(self._variables[choice], arrays, strict=True):
            place = slice(start, start + len(array))
            self._arrays[name][choice, place] = array
            # Integers are finite: only floats can mark a cell as failed.
            if array.dtype.kind in "fc":
                rows = array.reshape(len(array), -1)
                self._finite[choice, place] &= np.isfinite(rows).all(1)

    def dataset(self) -> "xarray.Dataset":
        """The dataset, with the grid's dimensions in their order, then seeds, then axes."""
        import xarray

        variables = {
            name: ([*self._names, *self._axes[name]], self._on_grid(array))
            for name, array in self._arrays.items()
        }
        # Labels are the user's own values, which `.sel` finds.
        coordinates = {
            name: (dimension.name, values)
            for dimension in self._dimensions
            for name, values in dimension.coordinates().items()
        }
        return xarray.Dataset(
            {**variables, "finite": (self._names, self._on_grid(self._finite))},
            {**coordinates, "seed": np.arange(self._num_seeds)},
        )

    @property
    def _names(self) -> list[str]:
        return [*(dimension.name for dimension in self._dimensions), "seed"]

    def _on_grid(self, array: np.ndarray) -> np.ndarray:
        """An array by choice and cell as one with an axis for each of the grid's dimensions."""
        rest = array.shape[2:]
        # Choices are the outer axes, other dimensions the inner ones, each in the grid's order.
        places = range(len(self._dimensions))
        order = sorted(places, key=lambda place: not self._dimensions[place].is_static)
        sizes = [self._dimensions[place].size for place in order]
        # Cells are in row-major order: choices, other settings, seeds.
        split = array.reshape(*sizes, self._num_seeds, *rest)
        axes = [order.index(place) for place in places]
        return split.transpose(*axes, *range(len(places), split.ndim))


def _stored(dtype: Any) -> np.dtype:
    """The dtype of results: half precision is held as float32, the shortest float of NetCDF."""
    half = jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize < 4
    return np.dtype(np.float32) if half else np.dtype(dtype)


def summarize(dataset: "xarray.Dataset") -> "pandas.DataFrame":
    """The mean over seeds of each number, with its standard error, one row a setting.

    The standard error is the seeds' standard deviation (of n − 1 degrees of freedom) divided by
    √n, NaN for one seed. It measures how far the mean over other seeds would be from this one; it
    is not the error that an estimate claims for itself.

    Args:
        dataset: of `sweep`. Variables with axes of their own are left out.

    Returns:
        A table whose rows are settings, and whose columns are pairs of a variable and `mean` or
        `std_error`. Means are NaN where a seed's value is: `finite` is the share of finite cells.

    Raises:
        ValueError: if the dataset has no dimension `seed`.

    Example:
        >>> import jax
        >>> from divjax import sweep, sweeps
        >>> result = sweep(jax.random.key(0), lambda key, scale: scale * jax.random.normal(key),
        ...                {"scale": [1.0, 2.0]}, num_seeds=3, progress=False)
        >>> list(sweeps.summarize(result)["value"].columns)
        ['mean', 'std_error']
    """
    import pandas
    import xarray

    _check_seeds(dataset)
    settings = [name for name in dataset.sizes if name in dataset.finite.dims and name != "seed"]
    num_seeds, columns = dataset.sizes["seed"], {}
    for name in dataset.data_vars:
        values = _in_double(dataset[name])
        if name == "finite" or set(values.dims) - {*settings, "seed"}:
            continue
        columns[name, "mean"] = values.mean("seed", skipna=False)
        # The spread of one seed is unknown, and not zero.
        freedom, known = (1, 1.0) if num_seeds > 1 else (0, math.nan)
        spread = known * values.std("seed", ddof=freedom, skipna=False)
        columns[name, "std_error"] = spread / math.sqrt(num_seeds)
    columns["finite", "share"] = dataset.finite.mean("seed")
    # A setting's labels are its row's, also where several change along one dimension.
    table = xarray.Dataset({str(i): column for i, column in enumerate(columns.values())})
    # A table has at least one row.
    frame = (table if settings else table.expand_dims(setting=1)).to_dataframe()
    labels = [name for name in frame.columns if name not in table.data_vars]
    frame = frame.set_index(labels, append=True) if labels else frame
    frame.columns = pandas.MultiIndex.from_tuples(columns)
    return frame


def best(dataset: "xarray.Dataset", metric: str, *, maximize: bool = False) -> "xarray.Dataset":
    """The setting whose mean over seeds is the smallest, with all of its seeds.

    The mean of the chosen setting is too good by the choice: report it on other seeds or data.

    Args:
        dataset: of `sweep`.
        metric: the variable to compare, without axes of its own.
        maximize: whether the largest mean is the best.

    Returns:
        The dataset at this setting: its hyper-parameters are coordinates, its dimension is `seed`.
        Settings with a value of the metric that is not finite are passed over.

    Raises:
        ValueError: if the metric is not a variable, has axes of its own, or is finite at no
            setting.

    Example:
        >>> import jax
        >>> from divjax import sweep, sweeps
        >>> result = sweep(jax.random.key(0), lambda key, x: (x - 1.0) ** 2, {"x": [0.0, 1.0, 3.0]},
        ...                progress=False)
        >>> float(sweeps.best(result, "value").x)
        1.0
    """
    _check_seeds(dataset)
    check_flag(maximize=maximize)
    if metric not in dataset.data_vars:
        known = ", ".join(map(str, dataset.data_vars))
        raise ValueError(f"metric must be a variable of the dataset, {known}; got {metric!r}.")
    values = dataset[metric]
    if set(values.dims) != set(dataset.finite.dims):
        raise ValueError(f"metric must be one number a cell; {metric} has axes {values.dims}.")
    means = _in_double(values).mean("seed", skipna=False)
    # A setting that failed for one seed is no candidate.
    means = means.where(np.isfinite(means))
    if not means.notnull().any():
        raise ValueError(f"metric must be finite at a setting; {metric} is at none.")
    # Without dimensions there is one setting.
    if not means.dims:
        return dataset
    place = means.argmax(...) if maximize else means.argmin(...)
    return dataset.isel(place)


def _in_double(values: "xarray.DataArray") -> "xarray.DataArray":
    """In double precision: a mean rounded in single may be as far off as seeds are apart."""
    return values.astype(np.result_type(values.dtype, np.float64))


def _check_seeds(dataset: Any) -> None:
    if "seed" not in getattr(dataset, "sizes", ()) or "finite" not in dataset:
        raise ValueError("dataset must be one that sweep returned, with its dimension seed.")
