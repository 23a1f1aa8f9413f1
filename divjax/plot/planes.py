"""Points of the plane: particles over densities, couplings, displacements, their animation."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from divjax.core.checks import check_count
from divjax.core.samples import Numbers, as_numbers
from divjax.plot.look import axis_of, pyplot

if TYPE_CHECKING:
    from matplotlib.animation import FuncAnimation
    from matplotlib.axes import Axes


__all__ = ["animation", "coupling", "displacements", "particles"]


def particles(
    x: Float[Numbers, "n 2"],
    log_prob: Callable[[Array], Array] | None = None,
    *,
    ax: "Axes | None" = None,
    limits: tuple[float, float, float, float] | None = None,
    **points: Any,
) -> "Axes":
    """Particles in the plane, over the contours of a density.

    Args:
        x: the particles; those that are not finite are left out.
        log_prob: the log density of one point, up to a constant, or None for points alone. Contours
            are where the density is e^−2, e^−½ and e^−⅛ of its maximum on the figure: at 2, 1 and ½
            standard deviations of a Gaussian.
        ax: the axis.
        limits: left, right, bottom and top; by default the particles' own, widened by a quarter.
        **points: passed to matplotlib's `scatter`.

    Returns:
        The axis, with equal scales.

    Raises:
        ValueError: if the particles are not in the plane, or none is finite and there are no
            limits.
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
    rows, axis = _in_plane("x", x), axis_of(ax)
    if limits is None:
        low, high = _ends("x", rows)
        # Equal particles have no range of their own.
        margin = np.where(high > low, (high - low) / 4, 1e-6 + 1e-3 * np.abs(high))
        (left, bottom), (right, top) = low - margin, high + margin
    else:
        left, right, bottom, top = limits
    if log_prob is not None:
        across, up = np.meshgrid(np.linspace(left, right, 120), np.linspace(bottom, top, 120))
        nodes = jnp.asarray(np.stack([across.ravel(), up.ravel()], axis=1))
        heights = np.asarray(jax.vmap(log_prob)(nodes)).reshape(across.shape)
        # Relative to the highest point of the figure, whatever the density's constant.
        known = heights[np.isfinite(heights)]
        if known.size:
            # For a normal density two, one and half of a standard deviation from its mode.
            levels = known.max() + np.array([-2.0, -0.5, -0.125])
            axis.contour(across, up, heights, levels, colors="0.6", linewidths=1, linestyles="-")
    axis.scatter(rows[:, 0], rows[:, 1], **{"s": 14, "zorder": 3, **points})
    axis.set(xlim=(left, right), ylim=(bottom, top), aspect=1.0)
    return axis


def coupling(
    x: Float[Numbers, "n 2"],
    y: Float[Numbers, "m 2"],
    plan: Float[Numbers, "n m"],
    *,
    most: int = 500,
    ax: "Axes | None" = None,
    **lines: Any,
) -> "Axes":
    """Two samples in the plane and the pairs that a plan couples, darker for more mass.

    Args:
        x: the points that mass leaves.
        y: the points that it reaches.
        plan: how much moves from each to each.
        most: how many pairs are drawn, those of the most mass.
        ax: the axis.
        **lines: passed to matplotlib's `LineCollection`.

    Returns:
        The axis, with equal scales.

    Raises:
        ValueError: if the points are not in the plane, the plan is not "n m" or not finite, or
            `most` is negative.
        ImportError: if matplotlib is not installed.

    Example:
        >>> import jax, matplotlib.pyplot as plt
        >>> from divjax import ot, plot
        >>> x, y = jax.random.normal(jax.random.key(0), (2, 10, 2))
        >>> ax = plot.coupling(x, y + 3, ot.exact(x, y + 3).plan)
        >>> len(ax.collections[0].get_segments())
        10
        >>> plt.close("all")
    """
    starts, ends = _in_plane("x", x), _in_plane("y", y)
    masses = np.asarray(as_numbers("plan", plan), float)
    check_count(0, most=most)
    if masses.shape != (len(starts), len(ends)) or not np.isfinite(masses).all():
        raise ValueError(
            f"plan must be of shape ({len(starts)}, {len(ends)}), without NaN or infinity; got "
            f"shape {masses.shape}."
        )
    from matplotlib.collections import LineCollection

    # Pairs in the order of their mass: the heaviest lie on top.
    order = np.argsort(masses, axis=None, kind="stable")[max(0, masses.size - most) :]
    pairs = [np.unravel_index(place, masses.shape) for place in order if masses.flat[place] > 0]
    segments = [(starts[i], ends[j]) for i, j in pairs]
    largest = max(masses.max(), np.finfo(float).tiny)
    # Matplotlib takes one opacity per line, and refuses an empty list.
    opacity = [0.05 + 0.75 * masses[pair] / largest for pair in pairs] or None
    axis = axis_of(ax)
    axis.add_collection(LineCollection(segments, colors="0.3", alpha=opacity, **lines))
    axis.scatter(starts[:, 0], starts[:, 1], s=14, marker="o", zorder=3, label="x")
    axis.scatter(ends[:, 0], ends[:, 1], s=18, marker="^", zorder=3, label="y")
    axis.set_aspect(1.0)
    return axis


def displacements(
    x: Float[Numbers, "n 2"],
    moved: Float[Numbers, "n 2"],
    *,
    ax: "Axes | None" = None,
    **arrows: Any,
) -> "Axes":
    """Arrows from points of the plane to where a map takes them.

    Args:
        x: the points.
        moved: their images.
        ax: the axis.
        **arrows: passed to matplotlib's `quiver`.

    Returns:
        The axis, with equal scales.

    Raises:
        ValueError: if the points or images are not in the plane, or not equally many.
        ImportError: if matplotlib is not installed.

    Example:
        >>> import jax, matplotlib.pyplot as plt
        >>> from divjax import plot
        >>> x = jax.random.normal(jax.random.key(0), (10, 2))
        >>> ax = plot.displacements(x, x + 1)
        >>> plt.close("all")
    """
    starts, ends = _in_plane("x", x), _in_plane("moved", moved)
    if len(starts) != len(ends):
        raise ValueError(f"moved must hold an image of each x; got {len(ends)} of {len(starts)}.")
    axis, change = axis_of(ax), ends - starts
    # In the units of the axes: an arrow ends at the image.
    units = {"angles": "xy", "scale_units": "xy", "scale": 1.0, "width": 0.003, "alpha": 0.7}
    axis.quiver(*starts.T, *change.T, **{**units, **arrows})
    # Quivers do not count for the limits of an axis; their ends must be visible.
    axis.update_datalim(np.concatenate([starts, ends]))
    axis.autoscale_view()
    axis.set_aspect(1.0)
    return axis


def animation(
    history: Float[Numbers, "frames n 2"],
    log_prob: Callable[[Array], Array] | None = None,
    *,
    steps: Sequence[int] | None = None,
    seconds: float = 5.0,
    limits: tuple[float, float, float, float] | None = None,
    **points: Any,
) -> "FuncAnimation":
    """Particles in the plane as they move, over the contours of a density.

    Args:
        history: the particles of each frame, such as what `observe=` of a flow has recorded; those
            that are not finite are left out.
        log_prob: as in `particles`.
        steps: the step of each frame, shown above it; by default its number.
        seconds: how long it takes.
        limits: the ends of both axes, as in `particles`; by default those of all particles at any
            time.
        **points: passed to `particles`.

    Returns:
        An animation of matplotlib: `.save("flow.gif")` writes it, `.to_jshtml()` shows it in a
        notebook.

    Raises:
        ValueError: if the history is not "frames n 2", no particle is ever finite, or there are not
            as many steps.
        ImportError: if matplotlib is not installed.

    Example:
        >>> import matplotlib.pyplot as plt, numpy as np
        >>> from divjax import plot
        >>> movie = plot.animation(np.random.default_rng(0).normal(size=(3, 20, 2)))
        >>> movie._draw_was_started = True  # it is neither shown nor saved here
        >>> plt.close("all")
    """
    frames = np.asarray(as_numbers("history", history), float)
    if frames.ndim != 3 or frames.shape[2] != 2 or not frames.size:
        raise ValueError(f"history must be of shape (frames, n, 2); got {frames.shape}.")
    steps = range(len(frames)) if steps is None else steps
    if len(steps) != len(frames):
        raise ValueError(f"steps must be one a frame; got {len(steps)} for {len(frames)}.")
    plt = pyplot()
    from matplotlib.animation import FuncAnimation

    if limits is None:
        # One view for all frames.
        low, high = _ends("history", frames.reshape(-1, 2))
        margin = np.maximum((high - low) / 10, 1e-6)
        limits = (low[0] - margin[0], high[0] + margin[0], low[1] - margin[1], high[1] + margin[1])
    figure, axis = plt.subplots(figsize=(5, 5))
    particles(frames[0], log_prob, ax=axis, limits=limits, **points)
    # The points are drawn last, after any contours.
    moving = axis.collections[-1]
    title = axis.set_title(f"step {steps[0]}")

    def show(frame: int) -> tuple[Any, Any]:
        moving.set_offsets(frames[frame])
        title.set_text(f"step {steps[frame]}")
        return moving, title

    # Matplotlib counts in milliseconds.
    interval = max(1.0, 1000 * seconds / len(frames))
    return FuncAnimation(figure, show, frames=len(frames), interval=interval)


def _ends(name: str, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The least and the largest coordinates of the points that are finite."""
    known = rows[np.isfinite(rows).all(axis=1)]
    if not len(known):
        raise ValueError(f"{name} must hold a point that is finite; got none.")
    return known.min(axis=0), known.max(axis=0)


def _in_plane(name: str, points: Any) -> np.ndarray:
    rows = np.asarray(as_numbers(name, points), float)
    if rows.ndim != 2 or rows.shape[1] != 2 or not len(rows):
        raise ValueError(f"{name} must be points of the plane, of shape (n, 2); got {rows.shape}.")
    return rows
