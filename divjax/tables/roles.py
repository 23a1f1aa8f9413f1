"""The roles that a caller gives columns: identifiers, codes, numbers, and values for missing ones.

`compare_tables` takes these as `drop`, `ids`, `as_category`, `as_number` and `missing`.
"""

import difflib
import itertools
import math
from collections.abc import Collection
from typing import Any

import numpy as np
import pandas as pd
from pandas.api import types as dtypes

from divjax.tables.reading import kind_of, number_columns, read_alike

__all__ = [
    "as_missing",
    "as_numbers",
    "check_columns",
    "identifier_notes",
    "suspected_identifiers",
]

# Fewer whole numbers than these may well be different by chance.
LEAST_COUNTED = 50


def check_columns(pair: tuple[Any, Any], **roles: Collection[str]) -> None:
    """Refuse names that no column has, or that are asked for twice over.

    Args:
        pair: the tables.
        **roles: the names of the columns of each role. Columns of one table alone may be left out,
            by `drop`, but not given another role.
    """
    columns = [set(table.columns) for table in pair]
    both, either = columns[0] & columns[1], columns[0] | columns[1]
    for role, given in roles.items():
        known = either if role == "drop" else both
        if unknown := [name for name in given if name not in known]:
            of = "either table" if role == "drop" else "both tables"
            # Most often a name is misspelt.
            close = [difflib.get_close_matches(name, known, 1, 0.7) for name in unknown]
            meant = [names[0] for names in close if names]
            raise ValueError(
                f"{role} must name columns of {of}; got {unknown}, not among {sorted(known)}."
                + (f" Is {' and '.join(meant)} meant?" if meant else "")
            )
    # One column cannot have two roles.
    for one, other in itertools.combinations(roles, 2):
        if twice := sorted(set(roles[one]) & set(roles[other])):
            raise ValueError(f"{one} and {other} must name different columns; got {twice} in both.")


def as_missing(
    pair: tuple[Any, Any], values: Collection[Any], names: tuple[str, str]
) -> tuple[tuple[Any, Any], list[str]]:
    """Both tables with cells of these values empty, and notes of how many there were.

    A value is compared with numbers as a number, with dates as a date, and with text as text, so
    that `-999` is found in a column of floats and in one of text.
    """
    if not values:
        return pair, []
    emptied, notes = [], []
    found = dict.fromkeys(values, 0)
    for table in pair:
        new = table.copy()
        for column in table.columns:
            for value in values:
                is_value = _equals(table[column], value)
                if is_value.any():
                    found[value] += int(is_value.sum())
                    new[column] = new[column].mask(is_value)
        emptied.append(new)
    for value, count in found.items():
        # A value that is nowhere is most likely misspelt.
        where = f"in {count} cells" if count else f"in no cell of {names[0]} and {names[1]}"
        notes.append(f"“{value}” taken as missing, {where}")
    return (emptied[0], emptied[1]), notes


def _equals(column: Any, value: Any) -> np.ndarray:
    """Where a column has a value, in whatever form it is held."""
    if dtypes.is_datetime64_any_dtype(column):
        # A value that is not a date becomes NaT, which equals no cell.
        moment = pd.to_datetime(str(value), errors="coerce", utc=True)
        return (pd.to_datetime(column, utc=True) == moment).to_numpy()
    if dtypes.is_numeric_dtype(column) and not dtypes.is_bool_dtype(column):
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        return (column == number).to_numpy(bool, na_value=False)
    # Categories and booleans are compared by how they are written.
    text = column.astype(object).where(column.notna(), None).map(str, na_action="ignore")
    return (text.str.strip() == str(value).strip()).to_numpy(bool, na_value=False)


def as_numbers(
    pair: tuple[Any, Any],
    columns: Collection[str],
    names: tuple[str, str],
    date_format: str | None = None,
) -> tuple[tuple[Any, Any], list[str]]:
    """Text in these columns read as numbers; other text is missing."""
    # Read alike in both tables, like any other text.
    if not columns:
        return pair, []
    tables = (table[list(columns)] for table in pair)
    read = read_alike(*tables, few_values=1, names=names, date_format=date_format)
    notes, made = list(read.notes), []
    for table, own, name in zip(pair, (read.x, read.y), names, strict=True):
        own = own.copy()
        for column in columns:
            if kind_of(own[column]) != "date":
                given: Any = own[column]
                numbers: Any = pd.to_numeric(given, errors="coerce")
                if not numbers.notna().any():
                    raise ValueError(
                        f"as_number must name columns of numbers; got {column!r}, in which no "
                        f"value of {name} is one."
                    )
                if lost := int((numbers.isna() & given.notna()).sum()):
                    notes.append(f"{column}: {lost} values in {name} are no numbers: missing")
                own[column] = numbers.astype(float)
        made.append(table.assign(**{str(column): own[column] for column in own}))
    return (made[0], made[1]), notes


def suspected_identifiers(pair: tuple[Any, Any]) -> list[str]:
    """Notes of whole numbers that count the rows of both tables, as far as can be seen."""
    notes = []
    for column in number_columns(*pair):
        values = [table[column].to_numpy(float, na_value=np.nan) for table in pair]
        # Each value once, without wide gaps: a count rather than a measurement.
        counts = [
            np.isfinite(own).all()
            and len(np.unique(own)) == len(own)
            and np.equal(own, np.floor(own)).all()
            and np.ptp(own) < 10 * len(own)
            for own in values
        ]
        if all(counts) and min(map(len, values)) >= LEAST_COUNTED:
            notes.append(
                f"{column}: whole numbers of which none occurs twice in a table: if they identify "
                f"rows, name the column in ids (--id {column})"
            )
    return notes


def identifier_notes(
    pair: tuple[Any, Any], ids: Collection[str], names: tuple[str, str]
) -> list[str]:
    """Notes on identifiers, which are not compared: repeated ones, and those in both tables."""
    notes = []
    for column in ids:
        known = [table[column].dropna().astype(str).str.strip() for table in pair]
        for one, name in zip(known, names, strict=True):
            # Tests count rows, which are fewer observations than they seem.
            if repeated := int(one.duplicated(keep=False).sum()):
                notes.append(
                    f"{column}: {repeated} of {len(one)} rows of {name} share it with another row: "
                    "p-values and intervals take rows as independent"
                )
        # A row's own identifier in a synthetic table may tell whom it was made from.
        if shared := len(set(known[0]) & set(known[1])):
            of = min(part.nunique() for part in known)
            notes.append(f"{column}: {shared} of {of} identifiers are in both tables")
    return notes
