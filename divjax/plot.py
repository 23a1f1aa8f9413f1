"""Figures of results: curves with bands, particles over densities, fronts, heatmaps, contributions.

Functions take results or arrays and an axis of matplotlib, draw on it, and return it; nothing is
shown or saved. Without an axis they draw on the current one, as pyplot does. `with plot.style():`
gives figures one look: readable at half size, in greyscale, and with any colour vision.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from divjax.core.checks import check_choice

if TYPE_CHECKING:
    import xarray
    from matplotlib.axes import Axes

__all__ = ["contributions", "curves", "front", "heatmap", "particles", "style"]

# Okabe and Ito's colours, told apart with any colour vision; neighbours differ in lightness.
_COLORS = ["#0072B2", "#E69F00", "#009E73", "#56B4E9", "#D55E00", "#CC79A7", "#000000"]
_LINES = ["-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)), (0, (8, 3))]
_STYLE = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": "medium",
    "axes.axisbelow": True,
    "figure.constrained_layout.use": True,
    "figure.dpi": 110,
    "font.size": 11,
    "grid.alpha": 0.3,
    "image.cmap": "cividis",
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "savefig.dpi": 160,
}


def _pyplot() -> Any:
    try:
        import matplotlib.pyplot
    except ImportError as error:
        raise ImportError(
            "divjax.plot draws with matplotlib, which is not installed: install divjax[plot]."
        ) from error
    return matplotlib.pyplot


def _axis(ax: "Axes | None") -> "Axes":
    return _pyplot().gca() if ax is None else ax


def style() -> contextlib.AbstractContextManager[Any]:
    """The look of divjax's figures, for those that are made within it.

    Lines differ in colour and in dashes, so that they are told apart in greyscale.

    Example:
        >>> import matplotlib.pyplot as plt
        >>> from divjax import plot
        >>> with plot.style():
        ...     figure, axis = plt.subplots()
        >>> plt.close(figure)
    """
    pyplot = _pyplot()
    # Added, not multiplied: the k-th line has the k-th colour and the k-th dashes.
    cycle = pyplot.cycler(color=_COLORS) + pyplot.cycler(linestyle=_LINES)
    return pyplot.rc_context({**_STYLE, "axes.prop_cycle": cycle})


def curves(
    values: Float[ArrayLike, "seeds num_steps"],
    *,
    steps: Float[ArrayLike, " num_steps"] | None = None,
    label: str | None = None,
    ax: "Axes | None" = None,
    **line: Any,
) -> "Axes":
    """The mean over seeds of a curve, with a band of one standard error on each side.

    Args:
        values: one row a seed; a single curve has no band.
        steps: where along the axis the values lie, 0, 1, … by default.
        label: of the curve in a legend; the band needs no entry of its own.
        ax: the axis.
        **line: passed to matplotlib's `plot`.

    Returns:
        The axis.

    Raises:
        ValueError: if the values are not one curve, or a row of them for each seed.
        ImportError: if matplotlib is not installed.

    Example:
        >>> import matplotlib.pyplot as plt, numpy as np
        >>> from divjax import plot
        >>> ax = plot.curves(np.random.default_rng(0).random((5, 20)), label="MinNorm")
        >>> len(ax.lines), len(ax.collections)
        (1, 1)
        >>> plt.close("all")
    """
    values = np.asarray(values, float)
    if values.ndim not in (1, 2) or not values.size:
        raise ValueError(
            f"values must be a curve, or one row of it for each seed; got shape {values.shape}."
        )
    # A single curve has no spread to be shown.
    rows = np.atleast_2d(values)
    at = np.arange(rows.shape[1]) if steps is None else np.asarray(steps)
    mean, axis = rows.mean(axis=0), _axis(ax)
    (drawn,) = axis.plot(at, mean, label=label, **line)
    if len(rows) > 1:
        # Of the mean over seeds, not of a single seed.
        error = rows.std(axis=0, ddof=1) / np.sqrt(len(rows))
        color = drawn.get_color()
        axis.fill_between(at, mean - error, mean + error, color=color, alpha=0.2, linewidth=0)
    return axis


def particles(
    x: Float[ArrayLike, "n 2"],
    log_prob: Callable[[Array], Array] | None = None,
    *,
    ax: "Axes | None" = None,
    limits: tuple[float, float, float, float] | None = None,
    **points: Any,
) -> "Axes":
    """Particles in the plane, over the contours of a density.

    Args:
        x: the particles.
        log_prob: the log density of one point, up to a constant, or None for points alone. Contours
            are where the density is e^−2, e^−½ and e^−⅛ of its maximum on the figure: at 2, 1 and ½
            standard deviations of a Gaussian.
        ax: the axis.
        limits: left, right, bottom and top; by default the particles' own, widened by a quarter.
        **points: passed to matplotlib's `scatter`.

    Returns:
        The axis, with equal scales.

    Raises:
        ValueError: if the particles are not in the plane.
        ImportError: if matplotlib is not installed.

    Example:
        >>> import jax, jax.numpy as jnp, matplotlib.pyplot as plt
        >>> from divjax import plot
        >>> x = jax.random.normal(jax.random.key(0), (50, 2))
        >>> ax = plot.particles(x, lambda x: -jnp.sum(x**2) / 2)
        >>> ax.get_aspect() == 1.0
        True
        >>> plt.close("all")
    """
    rows = np.asarray(x)
    if rows.ndim != 2 or rows.shape[1] != 2 or not len(rows):
        raise ValueError(f"x must be particles in the plane, of shape (n, 2); got {rows.shape}.")
    axis = _axis(ax)
    if limits is None:
        # Equal particles have no range of their own.
        low, high = rows.min(axis=0), rows.max(axis=0)
        margin = np.maximum((high - low) / 4, 1e-6 + 1e-3 * np.abs(high))
        (left, bottom), (right, top) = low - margin, high + margin
    else:
        left, right, bottom, top = limits
    if log_prob is not None:
        across, up = np.meshgrid(np.linspace(left, right, 120), np.linspace(bottom, top, 120))
        nodes = jnp.asarray(np.stack([across.ravel(), up.ravel()], axis=1))
        heights = np.asarray(jax.vmap(log_prob)(nodes)).reshape(across.shape)
        # Relative to the highest point of the figure, whatever the density's constant.
        levels = np.nanmax(heights) + np.array([-2.0, -0.5, -0.125])
        axis.contour(across, up, heights, levels, colors="0.6", linewidths=1, linestyles="-")
    axis.scatter(rows[:, 0], rows[:, 1], **{"s": 14, "zorder": 3, **points})
    axis.set(xlim=(left, right), ylim=(bottom, top), aspect=1.0)
    return axis


def front(
    values: Float[ArrayLike, "n 2"],
    *,
    label: str | None = None,
    ax: "Axes | None" = None,
    **points: Any,
) -> "Axes":
    """Points of two objectives, to be minimised, with the staircase of those not dominated.

    Args:
        values: the two objectives of each point.
        label: of the points in a legend.
        ax: the axis.
        **points: passed to matplotlib's `scatter`.

    Returns:
        The axis.

    Raises:
        ValueError: if the values are not pairs.
        ImportError: if matplotlib is not installed.

    Example:
        >>> import matplotlib.pyplot as plt, numpy as np
        >>> from divjax import plot
        >>> ax = plot.front(np.array([[0.0, 2.0], [1.0, 1.0], [2.0, 2.0], [3.0, 0.0]]))
        >>> ax.lines[0].get_xdata().tolist()  # the third point is dominated
        [0.0, 1.0, 3.0]
        >>> plt.close("all")
    """
    values = np.asarray(values, float)
    if values.ndim != 2 or values.shape[1] != 2 or not len(values):
        raise ValueError(f"values must be pairs, of shape (n, 2); got {values.shape}.")
    axis = _axis(ax)
    drawn = axis.scatter(
        values[:, 0], values[:, 1], label=label, **{"s": 18, "zorder": 3, **points}
    )
    # From left to right, each point that is lower than all before it.
    # Of points with the same first value the lower one comes first.
    ordered = values[np.lexsort((values[:, 1], values[:, 0]))]
    before = np.minimum.accumulate(np.concatenate([[np.inf], ordered[:-1, 1]]))
    best = ordered[ordered[:, 1] < before]
    color = drawn.get_facecolor()[0]
    # Steps, and no straight lines: between two points nothing was reached.
    axis.plot(best[:, 0], best[:, 1], color=color, linestyle="-", drawstyle="steps-post")
    return axis


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
    pyplot = _pyplot()
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
    axis, shown = _axis(ax), np.ma.masked_invalid(values.values)
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
    pyplot.colorbar(mesh, ax=axis, label=label)
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


def contributions(
    names: Sequence[str],
    values: Float[ArrayLike, " k"],
    errors: Float[ArrayLike, " k"] | None = None,
    *,
    most: int = 12,
    ax: "Axes | None" = None,
    **bars: Any,
) -> "Axes":
    """What drives a difference: bars from the largest down, with their standard errors.

    Args:
        names: of the contributions.
        values: their sizes.
        errors: their standard errors.
        most: how many are shown; the title says of how many.
        ax: the axis.
        **bars: passed to matplotlib's `barh`.

    Returns:
        The axis.

    Raises:
        ValueError: if names, values and errors are not equally many.
        ImportError: if matplotlib is not installed.

    Example:
        >>> import matplotlib.pyplot as plt
        >>> from divjax import plot
        >>> ax = plot.contributions(["age", "income"], [0.1, 0.4])
        >>> [label.get_text() for label in ax.get_yticklabels()]
        ['income', 'age']
        >>> plt.close("all")
    """
    values = np.asarray(values, float)
    errors = None if errors is None else np.asarray(errors, float)
    if values.shape != (len(names),) or (errors is not None and errors.shape != values.shape):
        raise ValueError(
            f"names, values and errors must be equally many; got {len(names)} names and values of "
            f"shape {values.shape}."
        )
    # The largest first, and a word about those that are not shown.
    order = np.argsort(-values, kind="stable")[:most]
    axis, places = _axis(ax), np.arange(len(order))
    # Errors belong to the values in the order that is drawn.
    margin = None if errors is None else errors[order]
    axis.barh(places, values[order], xerr=margin, **{"height": 0.7, **bars})
    axis.set_yticks(places, [str(names[i]) for i in order])
    axis.invert_yaxis()
    axis.grid(visible=False, axis="y")
    if len(order) < len(names):
        axis.set_title(f"the {len(order)} largest of {len(names)}")
    return axis
