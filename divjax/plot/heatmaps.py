"""Sweeps as heatmaps."""

from typing import TYPE_CHECKING

import numpy as np

from divjax.core.checks import check_choice
from divjax.plot.look import axis_of, pyplot

if TYPE_CHECKING:
    import xarray
    from matplotlib.axes import Axes


__all__ = ["heatmap"]


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

    Cells whose mean is not finite are left out, and hatched.

    Args:
        dataset: of `sweep`, selected or averaged such that two dimensions and `seed` are left.
        variable: what is shown.
        x: the dimension along the horizontal axis, by default the second one of the variable.
        y: the other one, along the vertical axis.
        scale: of the colours, "linear" or "log".
        ax: the axis.

    Returns:
        The axis. An axis of numbers that are evenly spaced in their logarithms is logarithmic, and
        one of choices has their labels.

    Raises:
        ValueError: if the variable does not have two dimensions beside `seed`, or `x` and `y` are
            not these, or `scale` is unknown.
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
    check_choice(("linear", "log"), scale=scale)
    if variable not in getattr(dataset, "data_vars", ()):
        raise ValueError(f"variable must be one of the dataset; got {variable!r}.")
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
    axis, shown = axis_of(ax), np.ma.masked_invalid(values.values)
    # Numbers lie where they belong, choices next to each other.
    places = [_places(values, name) for name in (x, y)]
    norm = "log" if scale == "log" else None
    mesh = axis.pcolormesh(*(place for place, _ in places), shown, shading="nearest", norm=norm)
    axis.set_facecolor("0.85")
    # What is missing must not look like a value.
    if np.ma.getmaskarray(shown).any():
        axis.patch.set(hatch="///", edgecolor="0.6")
    axis.grid(visible=False)
    for name, (place, kind), set_of in zip((x, y), places, ("x", "y"), strict=True):
        axis.set(**{f"{set_of}label": name.replace("_", " ")})
        if kind == "log":
            axis.set(**{f"{set_of}scale": "log"})
        elif kind == "labels":
            axis.set(**{f"{set_of}ticks": place, f"{set_of}ticklabels": values[name].values})
    label = variable.replace("_", " ")
    label = f"{label}, mean over seeds" if "seed" in dataset.sizes else label
    plt.colorbar(mesh, ax=axis, label=label)
    return axis


def _places(values: "xarray.DataArray", name: str) -> tuple[np.ndarray, str]:
    """Where the settings of a dimension lie on an axis, and of which kind the axis is."""
    # A dimension without labels is counted.
    held = values[name].values
    if name not in values.coords or held.dtype.kind not in "fiu":
        return np.arange(len(held)), "labels" if name in values.coords else "numbers"
    # Evenly spaced by factors, and over more than one of two.
    if len(held) > 2 and (held > 0).all():
        steps, ends = np.diff(np.log(held)), held[-1] / held[0]
        if np.ptp(steps) < 0.05 * abs(steps).max() and not 0.5 < ends < 2:
            return held, "log"
    return held, "numbers"
