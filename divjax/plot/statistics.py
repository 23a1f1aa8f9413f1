"""Numbers over seeds and repetitions: curves, fronts, contributions, calibration."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from divjax.core.checks import check_count
from divjax.core.conversion import without_mask
from divjax.core.samples import Numbers, as_numbers
from divjax.plot.look import axis_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes


__all__ = ["contributions", "coverage", "curves", "front", "reliability"]


def curves(
    values: Float[Numbers, "seeds num_steps"],
    *,
    steps: Float[Numbers, " num_steps"] | None = None,
    label: str | None = None,
    ax: "Axes | None" = None,
    **line: Any,
) -> "Axes":
    """The mean over seeds of a curve, with a band of one standard error on each side.

    Args:
        values: one row a seed; a single curve has no band. A step at which one is not finite is a
            gap: a mean over the other seeds would hide that this one has failed. A step between
            gaps is a dot, with its error.
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
    values = np.asarray(as_numbers("values", values), float)
    if values.ndim not in (1, 2) or not values.size:
        raise ValueError(
            f"values must be a curve, or one row of it for each seed; got shape {values.shape}."
        )
    # A single curve has no spread to be shown.
    rows = np.atleast_2d(np.where(np.isfinite(values), values, np.nan))
    # Where one seed is not finite there is no mean: the curve has a gap.
    at = np.arange(rows.shape[1]) if steps is None else np.asarray(without_mask(steps))
    mean, axis = rows.mean(axis=0), axis_of(ax)
    (drawn,) = axis.plot(at, mean, label=label, **line)
    color, error = drawn.get_color(), None
    if len(rows) > 1:
        # Of the mean over seeds, not of a single seed.
        error = rows.std(axis=0, ddof=1) / np.sqrt(len(rows))
        axis.fill_between(at, mean - error, mean + error, color=color, alpha=0.2, linewidth=0)
    # A line through one step has no length.
    known = np.pad(np.isfinite(mean), 1)
    lone = known[1:-1] & ~known[:-2] & ~known[2:]
    if lone.any():
        margin = None if error is None else error[lone]
        axis.errorbar(at[lone], mean[lone], margin, color=color, fmt="o")
    return axis


def front(
    values: Float[Numbers, "n 2"],
    *,
    label: str | None = None,
    ax: "Axes | None" = None,
    **points: Any,
) -> "Axes":
    """Points of two objectives, to be minimised, with the staircase of those not dominated.

    Args:
        values: the two objectives of each point. Where one is not finite, the point is left out.
        label: of the points in a legend, with the number of points that were left out.
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
    values = np.asarray(as_numbers("values", values), float)
    if values.ndim != 2 or values.shape[1] != 2 or not len(values):
        raise ValueError(f"values must be pairs, of shape (n, 2); got {values.shape}.")
    # A point that failed in one objective is not on the front by the other one.
    finite = np.isfinite(values).all(axis=1)
    if label is not None and not finite.all():
        label = f"{label} ({(~finite).sum()} not finite, left out)"
    axis = axis_of(ax)
    # Of all points, since colours and sizes may be given for each; gaps are not drawn.
    shown = np.where(finite[:, None], values, np.nan)
    drawn = axis.scatter(shown[:, 0], shown[:, 1], label=label, **{"s": 18, "zorder": 3, **points})
    # From left to right, the lower of equal first values first: each point below all before it.
    ordered = values[finite]
    ordered = ordered[np.lexsort((ordered[:, 1], ordered[:, 0]))]
    before = np.minimum.accumulate(np.concatenate([[np.inf], ordered[:, 1]]))[:-1]
    best = ordered[ordered[:, 1] < before]
    # The staircase has its points' colour, which the axis's cycle has chosen.
    color = drawn.get_facecolor()[0]
    # Steps, and no straight lines: between two points nothing was reached.
    axis.plot(best[:, 0], best[:, 1], color=color, linestyle="-", drawstyle="steps-post")
    return axis


def contributions(
    names: Sequence[str],
    values: Float[Numbers, " k"],
    errors: Float[Numbers, " k"] | None = None,
    *,
    most: int = 12,
    ax: "Axes | None" = None,
    **bars: Any,
) -> "Axes":
    """Contributions to a difference: bars from the largest down, with their standard errors.

    Args:
        names: of the contributions.
        values: their sizes; those that are not finite have no bar, and NaN comes last.
        errors: their standard errors.
        most: how many are shown; the title has the number of all.
        ax: the axis.
        **bars: passed to matplotlib's `barh`.

    Returns:
        The axis.

    Raises:
        ValueError: if names, values and errors are not equally many, or `most` is negative.
        ImportError: if matplotlib is not installed.

    Example:
        >>> import matplotlib.pyplot as plt
        >>> from divjax import plot
        >>> ax = plot.contributions(["age", "income"], [0.1, 0.4])
        >>> [label.get_text() for label in ax.get_yticklabels()]
        ['income', 'age']
        >>> plt.close("all")
    """
    values = np.asarray(as_numbers("values", values), float)
    errors = None if errors is None else np.asarray(as_numbers("errors", errors), float)
    check_count(0, most=most)
    if values.shape != (len(names),) or (errors is not None and errors.shape != values.shape):
        raise ValueError(
            f"names, values and errors must be equally many; got {len(names)} names and values of "
            f"shape {values.shape}."
        )
    # The largest first; a title counts those that are not shown.
    order = np.argsort(-values, kind="stable")[:most]
    axis, places = axis_of(ax), np.arange(len(order))
    # Errors belong to the values in the order that is drawn.
    margin = None if errors is None else errors[order]
    lengths = np.where(np.isfinite(values), values, np.nan)[order]
    axis.barh(places, lengths, xerr=margin, **{"height": 0.7, **bars})
    axis.set_yticks(places, [str(names[i]) for i in order])
    axis.invert_yaxis()
    axis.grid(visible=False, axis="y")
    if len(order) < len(names):
        axis.set_title(f"the {len(order)} largest of {len(names)}")
    return axis


def reliability(
    probabilities: Float[Numbers, " n"],
    outcomes: Float[Numbers, " n"],
    *,
    num_bins: int = 10,
    label: str | None = None,
    ax: "Axes | None" = None,
    **line: Any,
) -> "Axes":
    """How often predicted events have happened, against their predicted probability.

    Bins hold equally many predictions, up to equal ones, which are in one bin. A bar is one
    standard error on each side. A calibrated forecast lies on the diagonal.

    Args:
        probabilities: the predictions.
        outcomes: 1 where the event has happened, 0 where not.
        num_bins: at most, fewer where many predictions are equal.
        label: of the points in a legend.
        ax: the axis.
        **line: passed to matplotlib's `errorbar`.

    Returns:
        The axis.

    Raises:
        ValueError: if there are fewer predictions than bins, not as many outcomes, or one is not in
            [0, 1].
        ImportError: if matplotlib is not installed.

    Example:
        >>> import matplotlib.pyplot as plt, numpy as np
        >>> from divjax import plot
        >>> rng = np.random.default_rng(0)
        >>> p = rng.random(500)
        >>> ax = plot.reliability(p, rng.random(500) < p)
        >>> plt.close("all")
    """
    check_count(1, num_bins=num_bins)
    p = np.asarray(as_numbers("probabilities", probabilities), float)
    happened = np.asarray(as_numbers("outcomes", outcomes), float)
    if p.ndim != 1 or p.shape != happened.shape or len(p) < num_bins:
        raise ValueError(
            f"probabilities and outcomes must be equally many, at least {num_bins}; got shapes "
            f"{p.shape} and {happened.shape}."
        )
    if not ((p >= 0) & (p <= 1) & (happened >= 0) & (happened <= 1)).all():
        raise ValueError("probabilities and outcomes must be in [0, 1].")
    # By the middle of the ranks of equal predictions, so that the order of rows does not matter.
    _, distinct, counts = np.unique(p, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - counts / 2
    of_row = (middle * num_bins / len(p)).astype(int)[distinct]
    bins = [np.flatnonzero(of_row == place) for place in np.unique(of_row)]
    predicted = np.array([p[rows].mean() for rows in bins])
    share = np.array([happened[rows].mean() for rows in bins])
    error = np.array([happened[rows].std() / np.sqrt(len(rows)) for rows in bins])
    axis = axis_of(ax)
    axis.plot([0, 1], [0, 1], color="0.6", linestyle="-", linewidth=1)
    axis.errorbar(predicted, share, error, label=label, **{"marker": "o", "capsize": 2, **line})
    axis.set(xlabel="predicted probability", ylabel="share that happened")
    axis.set(xlim=(0, 1), ylim=(0, 1), aspect=1.0)
    return axis


def coverage(
    levels: Float[Numbers, " k"],
    covered: Float[Numbers, "repetitions k"],
    *,
    label: str | None = None,
    ax: "Axes | None" = None,
    **line: Any,
) -> "Axes":
    """How often intervals have held the truth, against their nominal level.

    Args:
        levels: the nominal levels.
        covered: whether each repetition's interval of each level has held the truth.
        label: of the points in a legend.
        ax: the axis.
        **line: passed to matplotlib's `errorbar`.

    Returns:
        The axis: points below the diagonal are intervals that are too narrow; bars are one standard
        error on each side.

    Raises:
        ValueError: if `covered` has no row, or not a column a level, or an entry or level is not in
            [0, 1].
        ImportError: if matplotlib is not installed.

    Example:
        >>> import matplotlib.pyplot as plt, numpy as np
        >>> from divjax import plot
        >>> levels = np.array([0.5, 0.8, 0.95])
        >>> ax = plot.coverage(levels, np.random.default_rng(0).random((200, 1)) < levels)
        >>> plt.close("all")
    """
    nominal = np.asarray(as_numbers("levels", levels), float)
    held = np.asarray(as_numbers("covered", covered), float)
    if nominal.ndim != 1 or held.ndim != 2 or held.shape[1:] != nominal.shape or not len(held):
        raise ValueError(
            f"covered must have a row a repetition and a column for each of {nominal.size} levels; "
            f"got shape {held.shape}."
        )
    # NaN is refused: whether an interval that is NaN counts as a failure is the caller's choice.
    if not all(((part >= 0) & (part <= 1)).all() for part in (nominal, held)):
        raise ValueError("levels and covered must be in [0, 1].")
    share = held.mean(axis=0)
    # The error of a binomial share at the nominal level: at the observed share it would be zero if
    # all intervals cover.
    error = np.sqrt(nominal * (1 - nominal) / len(held))
    axis = axis_of(ax)
    ends = [min(nominal.min(), share.min()) - 0.02, 1.0]
    axis.plot(ends, ends, color="0.6", linestyle="-", linewidth=1)
    axis.errorbar(nominal, share, error, label=label, **{"marker": "o", "capsize": 2, **line})
    axis.set(xlabel="nominal level", ylabel="share of intervals that hold the truth")
    return axis
