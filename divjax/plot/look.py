"""The look of figures, and the axis that is drawn on."""

import contextlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes


__all__ = ["axis_of", "pyplot", "style"]

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


def pyplot() -> Any:
    """Matplotlib's pyplot.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    try:
        import matplotlib.pyplot
    except ImportError as error:
        raise ImportError(
            "divjax.plot draws with matplotlib, which is not installed: install divjax[plot]."
        ) from error
    return matplotlib.pyplot


def axis_of(ax: "Axes | None") -> "Axes":
    """The given axis, or else the current one."""
    return pyplot().gca() if ax is None else ax


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
    plt = pyplot()
    # Added, not multiplied: the k-th line has the k-th colour and the k-th dashes.
    # As many dashes as colours, which a sum of cycles requires.
    cycle = plt.cycler(color=_COLORS) + plt.cycler(linestyle=_LINES)
    return plt.rc_context({**_STYLE, "axes.prop_cycle": cycle})
