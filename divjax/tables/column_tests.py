"""Tests of one column at a time: its values, its missing values, and how often values repeat."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from divjax.tables.columns import frequencies_js, univariate_js
from divjax.tables.encoding import Encoded, values_alike

__all__ = ["adjust_by_holm", "column_table", "is_number"]

# Levels expected less often than this in a table are one level for the χ² test.
LEAST_EXPECTED = 5


def is_number(encoded: Encoded, column: str) -> bool:
    """Whether a column was encoded as a number, and not as indicators of levels."""
    return encoded.columns[encoded.groups[column].start] == column


def column_table(rng: np.random.Generator, encoded: Encoded, level: float) -> pd.DataFrame:
    """Each column's own divergence and whether it differs alone, the most different first.

    Numbers are compared by the Kolmogorov–Smirnov test, and so is how often they repeat: a lattice
    in one table shows there. Levels of categories and missing values are compared by χ². The labels
    of the rows are exchangeable if the tables have one distribution, whatever the pooled values, so
    that counts over both tables may be tested like values.

    Args:
        rng: of the folds of the divergences.
        encoded: the tables, with repeats.
        level: the probability that any column of equal distributions is called significant.

    Returns:
        A row a column: `column`, `js` in bits and its `error`, clipped to [0, 1], `p_value`, the
        smallest one of the column's tests by Holm's method over all tests of the table, and
        `significant`.
    """
    rows, tests = [], []
    for column in encoded.groups:
        # A column may be tested in several ways; Holm's method is over all of them together.
        value, error = _own_js(rng, encoded, column)
        rows.append({"column": column, "js": min(max(value, 0.0), 1.0), "error": error})
        tests += [_Test(column, p_value) for p_value in _p_values(encoded, column)]
    # A column's own p-value is that of its clearest test.
    adjusted = adjust_by_holm([test.p_value for test in tests])
    least = dict.fromkeys(encoded.groups, 1.0)
    for test, p_value in zip(tests, adjusted, strict=True):
        least[test.column] = min(least[test.column], float(p_value))
    table = pd.DataFrame(rows)
    table["p_value"] = [least[column] for column in table["column"]]
    table["significant"] = table["p_value"] <= level
    order = table.sort_values(
        ["significant", "js"], ascending=[False, False], kind="stable", ignore_index=True
    )
    return pd.DataFrame(order)


def adjust_by_holm(p_values: Sequence[float]) -> np.ndarray:
    """P-values that may each be compared with the level of all of them together.

    Example:
        >>> adjust_by_holm([0.01, 0.04, 0.03]).tolist()
        [0.03, 0.06, 0.06]

    References:
        Holm 1979.
    """
    # The smallest is multiplied by the number of tests, the next by one less, and so on.
    given = np.asarray(p_values, float)
    order = np.argsort(given, kind="stable")
    scaled = given[order] * np.arange(len(given), 0, -1)
    adjusted = np.empty(len(given))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(scaled))
    return adjusted


class _Test(NamedTuple):
    column: str
    p_value: float


def _own_js(rng: np.random.Generator, encoded: Encoded, column: str) -> tuple[float, float]:
    """The divergence of a column's values, or of how often they repeat if that is larger."""
    # No fold is empty, in the smallest tables either.
    num_folds = min(5, len(encoded.p), len(encoded.q))
    if not is_number(encoded, column):
        p, q = encoded.tables
        # A category by all of its levels, of which the encoding merges the rarest.
        return frequencies_js(rng, *values_alike(p[column], q[column]), num_folds=num_folds)
    values, repeats = _values_and_repeats(encoded, column)
    measure = functools.partial(univariate_js, rng, num_folds=num_folds)
    found = [measure(encoded.p[:, values], encoded.q[:, values])]
    if repeats:
        found.append(measure(encoded.p[:, repeats], encoded.q[:, repeats]))
    return max(found)


def _values_and_repeats(encoded: Encoded, column: str) -> tuple[list[int], list[int]]:
    """Where a number and whether it is missing are encoded, and how often it repeats, if it is."""
    group = encoded.groups[column]
    every = list(range(group.start, group.stop))
    if encoded.columns[group.stop - 1] == f"{column} (repeats)":
        return every[:-1], every[-1:]
    return every, []


def _p_values(encoded: Encoded, column: str) -> list[float]:
    """Of all tests of one column; values that are all missing are not tested."""
    if not is_number(encoded, column):
        p, q = (table[column] for table in encoded.tables)
        found = [_chi_squared(*values_alike(p, q))]
        missing = [part.isna().to_numpy(int) for part in (p, q)]
    else:
        at, repeats = _values_and_repeats(encoded, column)
        missing = [rows[:, at].T[1:].sum(axis=0).astype(int) for rows in encoded[:2]]
        values = [rows[gone == 0, at[0]] for rows, gone in zip(encoded[:2], missing, strict=True)]
        found = [_kolmogorov_smirnov(*values)] if all(map(len, values)) else []
        if repeats:
            found.append(_kolmogorov_smirnov(*(rows[:, repeats[0]] for rows in encoded[:2])))
    if any(part.any() for part in missing):
        found.append(_chi_squared(*missing))
    return found


def _kolmogorov_smirnov(p: np.ndarray, q: np.ndarray) -> float:
    # By its limiting law: the exact one takes minutes for large samples of unequal sizes.
    test: Any = stats.ks_2samp(p, q, method="asymp")
    return float(test.pvalue)


def _chi_squared(p: np.ndarray, q: np.ndarray) -> float:
    """Of codes from zero on; levels that are expected too rarely are one."""
    # A table of two rows of counts, the most frequent levels first.
    size = 1 + max(p.max(), q.max())
    counts = np.stack([np.bincount(part, minlength=size) for part in (p, q)]).astype(float)
    counts = counts[:, counts.sum(axis=0) > 0]
    # The law of χ² is a limit for large counts, which rare levels do not have.
    share = counts.sum(axis=1).min() / counts.sum()
    counts = counts[:, np.argsort(-counts.sum(axis=0), kind="stable")]
    rare = counts.sum(axis=0) * share < LEAST_EXPECTED
    pooled = counts[:, ~rare]
    if rare.any():
        others = counts[:, rare].sum(axis=1, keepdims=True)
        # Still too few: they join the rarest of the frequent levels.
        if others.sum() * share < LEAST_EXPECTED and pooled.shape[1]:
            pooled[:, -1:] += others
        else:
            pooled = np.concatenate([pooled, others], axis=1)
    if pooled.shape[1] < 2:
        return 1.0
    test: Any = stats.chi2_contingency(pooled)
    return float(test.pvalue)
