"""Cells far away from all others: typing errors, and numbers that stand for missing values."""

import numpy as np
import pandas as pd

from divjax.tables.reading import number_columns
from divjax.tables.values import numbers_alike

__all__ = ["far_cells", "suspected_gaps"]

# The share of a table's rows from which on a far value is frequent.
LEAST_FREQUENT = 0.01


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
    for column in number_columns(x, y):
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


def suspected_gaps(
    x: pd.DataFrame, y: pd.DataFrame, *, names: tuple[str, str] = ("x", "y")
) -> list[str]:
    """Notes of a number that one table has often, beyond all others, where the other has gaps.

    Args:
        x: one table, as read.
        y: the other.
        names: of the tables.

    Example:
        >>> import numpy as np, pandas as pd
        >>> x, y = (pd.DataFrame({"age": np.linspace(20, 60, 50)}) for _ in range(2))
        >>> x.loc[:4, "age"], y.loc[:4, "age"] = np.nan, -999
        >>> suspected_gaps(x, y)
        ['age: -999 in 10.0% of the rows of y and never in x, where gaps are: --missing -999?']
    """
    notes = []
    for column in number_columns(x, y):
        values = [table[column].to_numpy(float, na_value=np.nan) for table in (x, y)]
        for own, other in ((0, 1), (1, 0)):
            known = values[own][np.isfinite(values[own])]
            gaps = np.isnan(values[other]).mean()
            # Gaps in both tables are written alike.
            if not len(known) or gaps < LEAST_FREQUENT or np.isnan(values[own]).any():
                continue
            # Such codes, −999 or 99, are chosen to lie beyond all values.
            for end in {known.min(), known.max()}:
                share = np.mean(values[own] == end)
                if share < LEAST_FREQUENT or (values[other] == end).any():
                    continue
                notes.append(
                    f"{column}: {end:g} in {share:.1%} of the rows of {names[own]} and never in "
                    f"{names[other]}, where gaps are: --missing {end:g}?"
                )
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
