"""Sweeps as heatmaps."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from divjax.core.checks import check_choice
from divjax.plot.look import axis_of, pyplot

if TYPE_CHECKING:
    import xarray
    from matplotlib.axes import Axes


__all__ = ["heatmap"]

# More settings than these have no label each.
MOST_LABELLED = 12


def heatmap(
    dataset: "xarray.Dataset",
    variable: str,
    *,
    x: str | None = None,
    y: str | None = None,
    scale: str = "linear",
    ax: "Axes | None" = None,
) -> "Axes":
    """The mean over seeds of a variable of a sweep, over two hyper-parameters.

    Cells whose mean is not finite, or not positive where colours are logarithmic, are left out, and
    hatched. Cells end halfway between settings, on a logarithmic axis at their geometric mean.

    Args:
        dataset: of `sweep`, selected or averaged such that two dimensions and `seed` are left.
        variable: the variable that is shown.
        x: the dimension along the horizontal axis, by default the second one of the variable.
        y: the other one, along the vertical axis.
        scale: of the colours, "linear" or "log".
        ax: the axis.

    Returns:
        The axis. Numbers lie in ascending order, on a logarithmic axis if they are evenly spaced in
        their logarithms, and side by side, each with its label, if a few are spaced unevenly.
        Choices have their labels too.

    Raises:
        ValueError: if the variable does not have two dimensions beside `seed`, or `x` and `y` are
            not these, or `scale` is unknown or "log" where no mean is positive.
        ImportError: if matplotlib is not installed.

    Example:
        >>> import jax, matplotlib.pyplot as plt
        >>> from divjax import plot, sweep
        >>> fn = lambda key, rate, width: rate * width * jax.random.uniform(key)
        >>> grid = {"rate": [0.01, 0.1, 1.0], "width": [1.0, 2.0]}
        >>> ax = plot.heatmap(sweep(jax.random.key(0), fn, grid, progress=False), "value")
        >>> ax.get_xlabel(), ax.get_ylabel(), ax.get_yscale()
        ('width', 'rate', 'log')
        >>> plt.close("all")
    """
    plt = pyplot()
    from matplotlib.ticker import LogLocator

    check_choice(("linear", "log"), scale=scale)
    if variable not in getattr(dataset, "data_vars", ()):
        known = ", ".join(map(str, getattr(dataset, "data_vars", ())))
        raise ValueError(f"variable must be one of the dataset, {known}; got {variable!r}.")
    # Seeds are averaged; a failed one leaves no mean, and no colour.
    values = dataset[variable]
    values = values.mean("seed", skipna=False) if "seed" in values.dims else values
    if len(values.dims) != 2:
        raise ValueError(
            f"variable must have two dimensions beside seed; {variable} has {values.dims}: select "
            "one setting of the others by .sel, or average over them."
        )
    # The last dimension is horizontal, as in a printed matrix.
    x = str(values.dims[1]) if x is None and y != values.dims[1] else x or str(values.dims[0])
    y = next(str(name) for name in values.dims if name != x) if y is None else y
    if {x, y} != set(values.dims):
        raise ValueError(f"x and y must be {' and '.join(map(str, values.dims))}; got {x} and {y}.")

    values = values.transpose(y, x)
    # Numbers lie where they belong, choices next to each other.
    places = [_places(values, name) for name in (x, y)]
    values = values.isel({name: place.order for name, place in zip((x, y), places, strict=True)})
    shown = np.ma.masked_invalid(values.values)
    if scale == "log":
        shown = np.ma.masked_where(~(shown.filled(0) > 0), shown)
        if shown.mask.all():
            raise ValueError('scale must be "linear" where no mean is positive; got "log".')
    axis, norm = axis_of(ax), "log" if scale == "log" else None
    mesh = axis.pcolormesh(*(place.edges for place in places), shown, norm=norm)
    axis.set_facecolor("0.85")
    # Missing cells must not look like values.
    if np.ma.getmaskarray(shown).any():
        axis.patch.set(hatch="///", edgecolor="0.6")
    axis.grid(visible=False)
    for name, place, set_of in zip((x, y), places, ("x", "y"), strict=True):
        axis.set(**{f"{set_of}label": name.replace("_", " ")})
        if place.kind == "log":
            axis.set(**{f"{set_of}scale": "log"})
        if place.labels is not None:
            # Of a logarithmic axis, minor ticks would stand between the settings.
            getattr(axis, f"{set_of}axis").set_ticks(place.centers, place.labels)
            getattr(axis, f"{set_of}axis").set_ticks([], minor=True)
    label = variable.replace("_", " ")
    label = f"{label}, mean over seeds" if "seed" in dataset.sizes else label
    bar = plt.colorbar(mesh, ax=axis, label=label)
    if scale == "log":
        # Less than a factor of ten has one power of ten, or none.
        bar.ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        bar.ax.yaxis.set_major_formatter("{x:.3g}")
        bar.ax.yaxis.set_ticks([], minor=True)
    return axis


class _Places(NamedTuple):
    """Where the settings of a dimension lie on an axis.

    Attributes:
        order: of the settings along the axis.
        centers: where they lie.
        edges: of their cells, one more than settings.
        kind: of the axis: "numbers" or "log".
        labels: at the centres; None where the axis has marks of its own.
    """

    order: np.ndarray
    centers: np.ndarray
    edges: np.ndarray
    kind: str
    labels: list[str] | None


def _places(values: "xarray.DataArray", name: str) -> _Places:
    held, labelled = values[name].values, name in values.coords
    numbers = labelled and held.dtype.kind in "fiu" and np.isfinite(held).all()
    order = np.argsort(held, kind="stable") if numbers else np.arange(len(held))
    few = labelled and (not numbers or len(held) <= MOST_LABELLED)
    labels = [f"{one:.3g}" if numbers else str(one) for one in held[order]] if few else None
    if numbers and len(held) > 1 and len(np.unique(held)) == len(held):
        # In float64, where neither the sum of two integers nor the mean of two halves overflows.
        ordered = held[order].astype(float)
        # Evenly spaced by factors, and over more than one of two.
        wide = len(held) > 2 and ordered[0] > 0 and ordered[-1] >= 2 * ordered[0]
        if wide and _evenly_spaced(np.log(ordered)):
            return _Places(order, ordered, np.exp(_edges(np.log(ordered))), "log", labels)
        if not few or _evenly_spaced(ordered):
            return _Places(order, ordered, _edges(ordered), "numbers", labels)
    # Choices are counted, and so are numbers that have no intervals of their own around them, or
    # few of very different widths.
    centers = np.arange(len(held))
    return _Places(order, centers, np.arange(len(held) + 1) - 0.5, "numbers", labels)


def _evenly_spaced(ordered: np.ndarray) -> bool:
    # Settings such as 0, 0.33, 0.67, 1 are evenly spaced but for their rounding.
    steps = np.diff(ordered)
    return bool(np.ptp(steps) < 0.05 * steps.max())


def _edges(centers: np.ndarray) -> np.ndarray:
    """The middles between neighbours, and as far beyond the first and the last one."""
    # Each cell reaches halfway to the next setting, so that its colour is that of the nearest one.
    middles = (centers[1:] + centers[:-1]) / 2
    ends = 2 * centers[[0, -1]] - middles[[0, -1]]
    return np.concatenate([ends[:1], middles, ends[1:]])
