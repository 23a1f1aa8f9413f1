"""Rows that occur more than once, within a table and in both: copies must not be learned by heart.

A classifier that has seen a row with one label gives its copy in the other table that label too,
and errs for certain: by copies alone, equal tables seem to be told apart.
"""

import numpy as np
import pandas as pd

from divjax.tables.values import values_alike

__all__ = ["copied_groups", "equal_rows", "first_of_copies", "repetition_notes"]

# Rows of which no larger share repeats within a table are taken as unique there.
MOST_REPEATED = 0.1


def equal_rows(x: pd.DataFrame, y: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """An integer for each row of two tables, the same for rows that are equal in all columns."""
    codes = [np.concatenate(values_alike(x[column], y[column])) for column in x.columns]
    rows = [row.tobytes() for row in np.stack(codes, axis=1)]
    labels = pd.factorize(np.array(rows, object))[0]
    return labels[: len(x)], labels[len(x) :]


def copied_groups(rows: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray] | None:
    """Groups of rows that folds must not divide, None if there are no copies.

    Where rows hardly repeat within one of the tables, a row of both is a copy. Where they repeat in
    both, as with few levels, equal rows are what a classifier learns from.

    Args:
        rows: as `equal_rows` gives them.
    """
    repeated = min(np.mean(np.bincount(own)[own] > 1) for own in rows)
    return rows if repeated <= MOST_REPEATED and np.isin(*rows).any() else None


def first_of_copies(rows: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Of the pooled rows the first of each group of copies; all rows if there are no copies."""
    pooled = np.concatenate(rows)
    if copied_groups(rows) is None:
        return np.ones(len(pooled), bool)
    first = np.zeros(len(pooled), bool)
    first[np.unique(pooled, return_index=True)[1]] = True
    return first


def repetition_notes(rows: tuple[np.ndarray, np.ndarray], names: tuple[str, str]) -> list[str]:
    """Notes of rows that repeat in all columns, within a table and from one to the other."""
    notes = []
    for own, name in zip(rows, names, strict=True):
        if repeated := len(own) - len(np.unique(own)):
            notes.append(f"{repeated} of the {len(own)} rows of {name} repeat an earlier one")
    if copied := int(np.isin(rows[1], rows[0]).sum()):
        # A row of x, too, is as likely to be found among the others of x.
        among_own = np.mean(np.bincount(rows[0])[rows[0]] > 1)
        notes.append(
            f"{copied} of the {len(rows[1])} rows of {names[1]} are rows of {names[0]}; "
            f"{len(rows[1]) * among_own:.0f} would be, were they drawn like rows of {names[0]}"
        )
    return notes
