"""Single cells that lie far away from all others: typing errors, most often."""

import numpy as np
import pandas as pd

from divjax.tables.encoding import numbers_alike
from divjax.tables.reading import kind_of

__all__ = ["far_cells"]


def far_cells(
    x: pd.DataFrame,
    y: pd.DataFrame,
    *,
    deviations: float = 20.0,
    most: float = 0.001,
    names: tuple[str, str] = ("x", "y"),
) -> list[str]:
    """Notes of numbers that are far from the bulk of both tables, by row and column.

    Far from a table's bulk is farther from its median than so many robust standard deviations, the
    distance of its quartiles over 1.349. Where half of the values are the same there is no such
    scale, and no note. Values this far that are not rare are the distribution's tail.

    Args:
        x: one table, as read.
        y: the other.
        deviations: how far is far.
        most: the share of a table's rows that may be far; one always may.
        names: of the tables.

    Example:
        >>> import numpy as np, pandas as pd
        >>> x, y = (pd.DataFrame({"age": np.linspace(20, 60, 50)}) for _ in range(2))
        >>> y.loc[7, "age"] = 4e6
        >>> far_cells(x, y)
        ['age: row 7 of y (counted from 0) holds 4e+06, far from all others']
    """
    notes = []
    for column in [column for column in x.columns if column in set(y.columns)]:
        if {kind_of(table[column]) for table in (x, y)} != {"number"}:
            continue
        # As numbers in float64, less an offset that both have.
        pair = numbers_alike(x[column], y[column], "number")
        scales = [_median_and_deviation(values) for values in pair]
        if any(deviation == 0 for _, deviation in scales):
            continue
        for table, values, name in zip((x, y), pair, names, strict=True):
            # Far from both tables: a cell far from one alone may be the difference between them.
            away = np.isfinite(values)
            for median, deviation in scales:
                away &= np.abs(values - median) > deviations * deviation
            rows = np.flatnonzero(away)
            # Many far cells are a tail, not errors; three are shown.
            if 0 < len(rows) <= max(1, most * len(values)):
                notes += [_note(column, table, int(row), name) for row in rows[:3]]
    return notes


def _median_and_deviation(values: np.ndarray) -> tuple[float, float]:
    known = values[np.isfinite(values)]
    if not len(known):
        return 0.0, 0.0
    low, median, high = np.quantile(known, [0.25, 0.5, 0.75])
    return float(median), float(high - low) / 1.349


def _note(column: str, table: pd.DataFrame, row: int, name: str) -> str:
    value = float(table[column].iloc[row])
    return f"{column}: row {row} of {name} (counted from 0) holds {value:.6g}, far from all others"
