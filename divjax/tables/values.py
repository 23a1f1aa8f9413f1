"""Values of a column in two tables: which are equal, whatever form they are held in."""

import itertools
from typing import Any

import numpy as np
import pandas as pd
from pandas.api import types as dtypes

from divjax.tables.reading import kind_of

__all__ = [
    "MISSING",
    "as_levels",
    "equal_counts",
    "held_as_integers",
    "merge_rounded",
    "numbers_alike",
    "precision_note",
    "values_alike",
]

MISSING = "(missing)"
# A value and its roundings in two tables are at most so many neighbours.
MOST_ROUNDED = 8
# How far the others are, in units of the width of these.
LEAST_APART = 1000


def values_alike(x: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
    """A column of two tables as integers that are equal where the values are.

    Numbers that differ by rounding are equal, and so are 1, 1.0 and the text 1.
    """
    # Numbers and dates are compared as numbers, up to rounding; everything else as text.
    kinds = {kind_of(column) for column in (x, y)} - {"empty"}
    if kinds and kinds <= {"number", "date"} and len(kinds) == 1:
        values = merge_rounded(np.concatenate(numbers_alike(x, y, *kinds)))
        _, codes = np.unique(values, return_inverse=True)
    else:
        levels: Any = pd.concat([as_levels(x), as_levels(y)], ignore_index=True)
        codes = pd.factorize(levels)[0]
    return codes[: len(x)], codes[len(x) :]


def as_levels(column: Any) -> Any:
    """Values as text; the same for 1, 1.0 and true, so that two tables' codes agree."""

    def text(value):
        real = (bool, int, float, np.bool_, np.integer, np.floating)
        if isinstance(value, real) and np.isfinite(value):
            return str(int(value)) if float(value).is_integer() else str(float(value))
        return str(value).strip()

    # Each distinct value is converted once, however many rows have it.
    distinct = {value: text(value) for value in column.dropna().unique()}
    return column.astype(object).map(distinct).astype(object).where(column.notna(), MISSING)


def numbers_alike(x: Any, y: Any, kind: str) -> list[np.ndarray]:
    """A column of two tables as float64, in which different integers stay different.

    Integers beyond 2⁵³ are less the offset that both tables have, and, where they still reach
    farther, with their largest gaps shortened. Numbers that one table holds in single or half
    precision are rounded to it in both.
    """
    # Integers are placed before they become float64, which would merge neighbours beyond 2⁵³.
    place = _places_of_large_integers(x, y) if kind == "number" else None
    if place is None:
        pair = [_numbers(column, kind) for column in (x, y)]
        # Otherwise the rounding of one table alone would distinguish its rows.
        coarsest = min(_precisions(x, y), key=lambda dtype: dtype.itemsize, default=None)
        return pair if coarsest is None else [_rounded(values, coarsest) for values in pair]
    return [
        np.array([np.nan if pd.isna(value) else float(place[int(value)]) for value in column])
        for column in (x, y)
    ]


def _numbers(column: Any, kind: str) -> np.ndarray:
    """Float64, a date as days since 1970; missing is nan."""
    if kind == "date":
        dates: Any = pd.to_datetime(column, format="ISO8601", utc=True)
        # In the dates' own unit: a difference of nanoseconds cannot be longer than 292 years.
        times = dates.dt.tz_localize(None).to_numpy()
        unit: Any = np.datetime_data(times.dtype)[0]
        day = np.timedelta64(1, "D") / np.timedelta64(1, unit)
        return np.where(np.isnat(times), np.nan, times.astype(np.int64) / day)
    return column.infer_objects().to_numpy(float, na_value=np.nan)


def held_as_integers(x: Any, y: Any) -> bool:
    """Whether a column holds integers that float64 would merge."""
    return _places_of_large_integers(x, y) is not None


def _places_of_large_integers(x: Any, y: Any) -> dict[int, int] | None:
    """Where integers are put that float64 would merge; None if it holds them all."""
    # Only integers can be too large for float64 and yet differ by one.
    values: set[int] = set()
    for column in (x, y):
        if not dtypes.is_integer_dtype(column):
            return None
        values |= set(map(int, column.dropna().unique()))
    if max(map(abs, values), default=0) <= 2**53:
        return None
    # Less the smallest, with gaps so short that their sum is held too.
    ordered = sorted(values)
    longest = 2**53 // len(ordered)
    gaps = (min(high - low, longest) for low, high in itertools.pairwise(ordered))
    if ordered[-1] - ordered[0] <= 2**53:
        return {value: value - ordered[0] for value in ordered}
    return dict(zip(ordered, itertools.accumulate(gaps, initial=0), strict=True))


def _precisions(x: Any, y: Any) -> list[np.dtype]:
    """The types of those columns that hold less than double precision."""
    types = [getattr(column.dtype, "numpy_dtype", column.dtype) for column in (x, y)]
    return [
        dtype
        for dtype in types
        if isinstance(dtype, np.dtype) and dtype.kind == "f" and dtype.itemsize < 8
    ]


def precision_note(x: Any, y: Any, names: tuple[str, str]) -> list[str]:
    """That one table's numbers were rounded, to the precision of the other."""
    coarsest = min(_precisions(x, y), key=lambda dtype: dtype.itemsize, default=None)
    own = [
        name
        for name, column in zip(names, (x, y), strict=True)
        if coarsest in _precisions(column, column)
    ]
    return [f"compared in {coarsest}, in which {own[0]} holds it"] if len(own) == 1 else []


def _rounded(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The values rounded, except for those out of the type's range."""
    with np.errstate(over="ignore"):
        rounded = values.astype(dtype).astype(float)
    return np.where(np.isinf(rounded), values, rounded)


def merge_rounded(values: np.ndarray) -> np.ndarray:
    """Values that differ by rounding alone made equal, to the smallest of them.

    Neighbours are, if they are within 1e-10 of their own size, as of ten digits against sixteen,
    and within 1e-8 of the range of most values, so that an offset does not count as size. So are
    those within float64's rounding of their own size, and those within that of the usual size
    around zero, where sums have cancelled. A chain of more than a few such neighbours, or one that
    others are not far from, is a fine scale rather than rounding, and stays.
    """
    finite = np.isfinite(values)
    if not finite.any():
        return values
    # Sorted, values that differ by rounding are neighbours.
    distinct, place = np.unique(values[finite], return_inverse=True)
    # Of most distinct values: one typing error must not make the others equal.
    span, eps = np.subtract(*np.quantile(distinct, [0.95, 0.05])), np.finfo(float).eps
    size = np.abs(distinct)
    near = np.maximum(np.minimum(1e-10 * size, 1e-8 * span), 4 * eps * size)
    gaps = np.diff(distinct, prepend=-np.inf)
    first = gaps > near
    if (size == 0).any():
        first[np.flatnonzero(size <= eps * np.median(size))[1:]] = False
    # Each chain's number of values, its width, and how far the next values are.
    starts, chain = np.flatnonzero(first), np.cumsum(first) - 1
    count = np.diff(starts, append=len(distinct))
    width = distinct[starts + count - 1] - distinct[starts]
    apart = np.minimum(gaps[starts], np.append(gaps[starts[1:]], np.inf))
    first |= ((count > MOST_ROUNDED) | (apart < LEAST_APART * width))[chain]
    merged = values.copy()
    merged[finite] = distinct[first][np.cumsum(first) - 1][place]
    return merged


def equal_counts(values: np.ndarray, among: np.ndarray) -> np.ndarray:
    """How many of the others each value equals."""
    ordered = np.sort(among)
    return np.searchsorted(ordered, values, "right") - np.searchsorted(ordered, values, "left")
