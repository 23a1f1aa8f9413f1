"""Columns of durations, periods, complex numbers, booleans and lists in types to compare.

The same way in two tables, and said in notes. Text that is numbers or dates is that of
`divjax.tables.reading`.
"""

from typing import Any

import numpy as np
import pandas as pd
from pandas.api import types as dtypes
from pandas.api.types import is_hashable

__all__ = ["comparable_types"]


def comparable_types(
    x: Any, y: Any, names: tuple[str, str]
) -> tuple[list[Any], dict[str, list[Any]], list[str]]:
    """A column of two tables, further columns by the suffixes of their names, and notes.

    Durations become seconds, periods the dates that they start at, and complex numbers their real
    parts, with the imaginary ones as a column of their own. Lists, arrays and dictionaries become
    text. The texts true and false become
    booleans where the other table has these, or another spelling, or zeros and ones alone.

    Args:
        x: the column of one table.
        y: that of the other.
        names: of the tables, in notes.
    """
    pair, companions, notes = [x.infer_objects(), y.infer_objects()], {}, []
    # What cannot be hashed cannot be counted.
    if any(part.dtype == object and not part.map(is_hashable).all() for part in pair):
        notes.append("lists or the like, compared by how they are written")
        pair = [part.astype(object).map(str, na_action="ignore") for part in pair]
    if any(map(dtypes.is_timedelta64_dtype, pair)):
        notes.append("durations, compared in seconds")
        pair = [
            part.dt.total_seconds() if dtypes.is_timedelta64_dtype(part) else part for part in pair
        ]
    if any(isinstance(part.dtype, pd.PeriodDtype) for part in pair):
        notes.append("periods, compared by the dates that they start at")
        pair = [
            part.dt.to_timestamp() if isinstance(part.dtype, pd.PeriodDtype) else part
            for part in pair
        ]
    # Complex numbers beside text can only be compared with it by their spelling. A column without
    # values has no type of its own.
    numbers = all(dtypes.is_numeric_dtype(part) or part.isna().all() for part in pair)
    if numbers and any(map(dtypes.is_complex_dtype, pair)):
        notes.append("complex, compared by real and imaginary parts")
        given = [part.to_numpy(complex, na_value=complex(np.nan, np.nan)) for part in pair]
        pair = [pd.Series(z.real, part.index) for z, part in zip(given, pair, strict=True)]
        companions[" (imaginary)"] = [
            pd.Series(z.imag, part.index) for z, part in zip(given, pair, strict=True)
        ]
    return _booleans_alike(pair, names, notes), companions, notes


def _booleans_alike(pair: list[Any], names: tuple[str, str], notes: list[str]) -> list[Any]:
    """Truth values in one type where one table writes them as text; notes are added to."""
    found = [_truth_values(part) for part in pair]
    truths = [values for values in found if values is not None]
    # Zeros and ones are numbers, unless the other table spells truth values out.
    if len(truths) == 1 and any(isinstance(text, str) for text in truths[0]):
        digits = [
            _digits(part) if values is None else values
            for part, values in zip(pair, found, strict=True)
        ]
        truths = [values for values in digits if values is not None]
    if len(truths) < len(pair):
        return pair
    # Text with one spelling for each truth value is the same in both tables already.
    merged = {text: value for values in truths for text, value in values.items()}
    if all(isinstance(text, str) for text in merged) and len(merged) == len(set(merged.values())):
        return pair
    for values, name in zip(truths, names, strict=True):
        if not all(isinstance(value, (bool, np.bool_)) for value in values):
            spelled = any(str(value).strip().lower() in ("true", "false") for value in values)
            kind = "text" if spelled else "zeros and ones"
            notes.append(f"{kind} read as booleans in {name}")
    return [
        part.astype(object).map(values).astype("boolean")
        for part, values in zip(pair, truths, strict=True)
    ]


def _truth_values(column: Any) -> dict[Any, bool] | None:
    """The truth value of each value of a column, None if one has none."""
    found = {}
    for value in column.dropna().unique():
        text = str(value).strip().lower()
        if not isinstance(value, (str, bool, np.bool_)) or text not in ("true", "false"):
            return None
        found[value] = text == "true"
    return found


def _digits(column: Any) -> dict[Any, bool] | None:
    """The truth value of each zero and one of a column, None if it has other values."""
    found = {}
    for value in column.dropna().unique():
        try:
            number = float(value)
        except (TypeError, ValueError):
            return None
        if number not in (0, 1):
            return None
        found[value] = number == 1
    return found or None
