"""Tests of one column at a time: its values, its missing values, and how often values repeat."""

import functools
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from divjax.tables.columns import frequencies_js, univariate_js
from divjax.tables.encoding import Encoded
from divjax.tables.values import values_alike

__all__ = ["adjust_by_holm", "column_table", "is_number"]

# Levels expected less often than this in a table are one level for the χ² test.
LEAST_EXPECTED = 5
# The largest product of two samples' sizes for which the distribution of their distance is exact.
MOST_EXACT = 10**7
# The columns have half of a level: larger p-values of χ² may stay approximate.
LARGEST_LEVEL = 0.5
# Permutations at most, and how many of them above χ² are enough.
MOST_DRAWS, ENOUGH_ABOVE = 100_000, 20
# Counts of levels that are drawn at most.
MOST_COUNTS = 10_000_000


def is_number(encoded: Encoded, column: str) -> bool:
    """Whether a column was encoded as a number, and not as indicators of levels."""
    return encoded.columns[encoded.groups[column].start] == column


def column_table(rng: np.random.Generator, encoded: Encoded, level: float) -> pd.DataFrame:
    """Each column's own divergence and whether it differs alone, the most different first.

    Numbers are compared by the Kolmogorov–Smirnov test, and so is how often they repeat: a lattice
    in one table shows there. Levels, and missing values, are compared by χ², or by Fisher's exact
    test if there are two. P-values that could be significant are valid in small samples.
    The labels of the rows are exchangeable if the tables have one distribution, whatever the pooled
    values, so that counts over both tables may be tested like values.

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
    num_folds = min(5, len(encoded.x), len(encoded.y))
    if not is_number(encoded, column):
        x, y = encoded.tables
        # A category by all of its levels, of which the encoding merges the rarest.
        return frequencies_js(rng, *values_alike(x[column], y[column]), num_folds=num_folds)
    values, repeats = _values_and_repeats(encoded, column)
    measure = functools.partial(univariate_js, rng, num_folds=num_folds)
    found = [measure(encoded.x[:, values], encoded.y[:, values])]
    if repeats:
        found.append(measure(encoded.x[:, repeats], encoded.y[:, repeats]))
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
        x, y = (table[column] for table in encoded.tables)
        found = _level_tests(*values_alike(x, y))
        missing = [part.isna().to_numpy(int) for part in (x, y)]
    else:
        # Missing values are tested by themselves: cells may get lost without a change of the
        # others.
        at, repeats = _values_and_repeats(encoded, column)
        # A column without gaps has no indicator of them, and the sum over none is zero.
        missing = [rows[:, at].T[1:].sum(axis=0).astype(int) for rows in encoded[:2]]
        values = [rows[gone == 0, at[0]] for rows, gone in zip(encoded[:2], missing, strict=True)]
        found = [_kolmogorov_smirnov(*values)] if all(map(len, values)) else []
        if repeats:
            found.append(_kolmogorov_smirnov(*(rows[:, repeats[0]] for rows in encoded[:2])))
    if any(part.any() for part in missing):
        found.append(_level_test(*missing))
    return found


def _kolmogorov_smirnov(x: np.ndarray, y: np.ndarray) -> float:
    # The limiting distribution is wrong for few rows, and the exact one takes seconds for very
    # many.
    exact = len(x) * len(y) <= MOST_EXACT
    with warnings.catch_warnings():
        # A p-value of one that is rounded to more is found by the limiting distribution instead.
        warnings.filterwarnings("ignore", "ks_2samp: Exact calculation", RuntimeWarning)
        test: Any = stats.ks_2samp(x, y, method="exact" if exact else "asymp")
    return float(test.pvalue)


def _counts(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The counts of levels "2 levels", the most frequent ones first."""
    size = 1 + max(x.max(), y.max())
    counts = np.stack([np.bincount(part, minlength=size) for part in (x, y)])
    counts = counts[:, counts.sum(axis=0) > 0]
    return counts[:, np.argsort(-counts.sum(axis=0), kind="stable")]


def _level_tests(x: np.ndarray, y: np.ndarray) -> list[float]:
    """The p-value of the levels' test, and that of all rare levels, if it has merged some.

    Each table may have rare levels of its own, which look alike once they are merged.
    """
    counts, p_value = _counts(x, y), _level_test(x, y)
    if counts.shape[1] <= 2 or _join_rare(counts).shape == counts.shape:
        return [p_value]
    # One is a valid p-value, too, where the first says enough.
    return [p_value, 1.0 if p_value < 1 / MOST_DRAWS else _permutation_p_value(counts)]


def _level_test(x: np.ndarray, y: np.ndarray) -> float:
    """The p-value of equal frequencies of levels; those expected too rarely are merged."""
    counts = _counts(x, y)
    if counts.shape[1] > 2:
        counts = _join_rare(counts)
    if counts.shape[1] < 2:
        return 1.0
    if counts.shape[1] == 2:
        return _fisher(counts)
    test: Any = stats.chi2_contingency(counts)
    # The χ² distribution is a limit for large counts, with too light a tail if one table is much
    # smaller. Only p-values that might be significant are made exact.
    if test.pvalue > LARGEST_LEVEL:
        return float(test.pvalue)
    return _valid_p_value(counts, float(test.pvalue))


def _join_rare(counts: np.ndarray) -> np.ndarray:
    """Counts "2 levels", those of levels that are expected too rarely in either table added up."""
    share = counts.sum(axis=1).min() / counts.sum()
    rare = counts.sum(axis=0) * share < LEAST_EXPECTED
    if not rare.any():
        return counts
    pooled, others = counts[:, ~rare], counts[:, rare].sum(axis=1, keepdims=True)
    # Still too few: they join the rarest of the frequent levels.
    if others.sum() * share < LEAST_EXPECTED and pooled.shape[1]:
        pooled[:, -1:] += others
        return pooled
    return np.concatenate([pooled, others], axis=1)


def _fisher(counts: np.ndarray) -> float:
    test: Any = stats.fisher_exact(counts)
    return float(test.pvalue)


def _valid_p_value(counts: np.ndarray, approximate: float) -> float:
    """A p-value of counts "2 levels" that is valid for any number of rows.

    The smaller one of two, by Bonferroni's inequality: that of permuted labels has nine tenths of
    the level, but cannot be very small, and Fisher's of each level against all others has one.
    """
    # A larger value than the smaller one is valid, too, and takes less time.
    if approximate > 0.01:
        return min(1.0, _permutation_p_value(counts) / 0.9)
    others = counts.sum(axis=1, keepdims=True) - counts
    each = [_fisher(np.stack(pair, axis=1)) for pair in zip(counts.T, others.T, strict=True)]
    by_levels = 10 * len(each) * min(each)
    if by_levels < 1 / MOST_DRAWS:
        return by_levels
    return min(1.0, by_levels, _permutation_p_value(counts) / 0.9)


def _permutation_p_value(counts: np.ndarray) -> float:
    """The p-value of χ² by permuted labels, of which no more are drawn once enough are above.

    References:
        Besag, Clifford 1991, Sequential Monte Carlo p-values.
    """
    # Given the levels of all rows, those of one table are a draw without replacement. The same
    # tables always get the same p-value, in either order.
    own = counts[np.argmin(counts.sum(axis=1))]
    rng, totals, size = np.random.default_rng(0), counts.sum(axis=0), int(own.sum())
    expected = totals * (size / totals.sum())
    # With both margins given, χ² is in proportion to this.
    distance = lambda counts: ((counts - expected) ** 2 / totals).sum(axis=-1)
    # Ties up to rounding count as above, which can only raise the p-value.
    least = distance(own) * (1 - 1e-9)
    above = draws = 0
    # Of many levels fewer draws, whose p-value is not as small.
    most = min(MOST_DRAWS, max(1000, MOST_COUNTS // counts.shape[1]))
    while draws < most:
        drawn = rng.multivariate_hypergeometric(totals, size, size=1000)
        places = np.flatnonzero(distance(drawn) >= least)
        if above + len(places) >= ENOUGH_ABOVE:
            # Besag and Clifford's sequential p-value: h over the number of draws up to the h-th
            # above.
            return float(ENOUGH_ABOVE / (draws + places[ENOUGH_ABOVE - above - 1] + 1))
        above, draws = above + len(places), draws + len(drawn)
    return (above + 1) / (draws + 1)
