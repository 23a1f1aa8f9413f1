"""Columns whose repeated values one table has alone: on a lattice, or levels of its own."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from divjax.fdiv.inequalities import js_bounds_from_tv
from divjax.tables.reading import kind_of, number_columns
from divjax.tables.values import equal_counts, merge_rounded, numbers_alike, values_alike

__all__ = ["Lattice", "dequantize", "lattices", "own_levels"]


class Lattice(NamedTuple):
    """A column whose repeated values in one table are mostly not those of the other.

    Numbers on a lattice, or the levels of a category that one table has to itself.

    The shares are of rows whose value another row of table `of` holds. Their difference is a lower
    bound on the total variation between the tables, up to sampling error, which `js_bits`, the
    Jensen–Shannon divergence that it implies, allows for (a column, about 95 % confidence).
    """

    column: str
    of: str
    share_x: float
    share_y: float
    js_bits: float


def lattices(
    x: pd.DataFrame,
    y: pd.DataFrame,
    *,
    least_js_bits: float = 0.05,
    names: tuple[str, str] = ("x", "y"),
) -> list[Lattice]:
    """Columns of numbers that differ by a lattice, which a smooth classifier does not detect.

    Args:
        x: one table.
        y: the other.
        least_js_bits: columns with a smaller bound are not returned.
        names: of the tables.

    References:
        `divjax.fdiv.inequalities.js_bounds_from_tv`, for what a total variation implies.
    """
    found = []
    # Only numbers lie on a lattice; levels of categories are compared by themselves.
    for name in number_columns(x, y):
        columns: tuple[Any, Any] = x[name], y[name]
        # Values that two files round differently are the same value.
        pooled = merge_rounded(np.concatenate(numbers_alike(*columns, "number")))
        values = [part[np.isfinite(part)] for part in np.split(pooled, [len(columns[0])])]
        if not all(map(len, values)):
            continue
        found.append(_repeated_apart(str(name), values, names))
    return [lattice for lattice in found if lattice.js_bits >= least_js_bits]


def own_levels(
    x: pd.DataFrame,
    y: pd.DataFrame,
    *,
    max_levels: int = 32,
    least_js_bits: float = 0.05,
    names: tuple[str, str] = ("x", "y"),
) -> list[Lattice]:
    """Columns of so many levels that indicators share them, and that the tables do not share.

    Args:
        x: one table.
        y: the other.
        max_levels: of an encoded category; columns with more are looked at.
        least_js_bits: columns with a smaller bound are not returned.
        names: of the tables.
    """
    found = []
    for name in [name for name in x.columns if name in set(y.columns)]:
        # If indicators stand for single levels, the classifier uses them.
        if "text" in {kind_of(x[name]), kind_of(y[name])}:
            codes = values_alike(x[name], y[name])
            if len(np.unique(np.concatenate(codes))) > max_levels:
                found.append(_repeated_apart(str(name), list(codes), names))
    return [lattice for lattice in found if lattice.js_bits >= least_js_bits]


def _repeated_apart(column: str, values: list[np.ndarray], names: tuple[str, str]) -> Lattice:
    """The larger of the bounds by values that repeat in the one table and in the other."""
    # A share is a probability under either table: their difference is at most the total variation.
    bounds = []
    for own in (0, 1):
        # A row is among those of its own table, and must find another one there.
        shares = [
            float(np.mean(equal_counts(part, values[own]) > int(k == own)))
            for k, part in enumerate(values)
        ]
        variances = [s * (1 - s) / len(part) for s, part in zip(shares, values, strict=True)]
        # Less its sampling error: a bound, and no estimate.
        least_tv = max(0.0, abs(shares[0] - shares[1]) - 1.960 * math.sqrt(sum(variances)))
        js_bits = float(js_bounds_from_tv(least_tv).lower) / math.log(2)
        lattice = Lattice(column, names[own], shares[0], shares[1], js_bits)
        bounds.append((js_bits, shares[own], lattice))
    return max(bounds)[-1]


def dequantize(
    rng: np.random.Generator, x: pd.DataFrame, y: pd.DataFrame, columns: Sequence[str]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Blur columns of both tables by the same uniform noise, as wide as the lattice's usual step.

    The differences that remain are not the lattice's: the same noise on both can only make them
    more alike. The step is the larger of the two tables' median gaps between neighbouring distinct
    values.
    """
    x, y = x.copy(), y.copy()
    for name in columns:
        # Integers that float64 would merge are blurred less their common offset.
        values = numbers_alike(x[name], y[name], "number")
        # Noise as wide as a step fills the gaps of the lattice, and moves nothing by more.
        distinct = [np.unique(own[~np.isnan(own)]) for own in values]
        # A single value in both has no step, and stays.
        step = max((np.median(np.diff(own)) for own in distinct if len(own) > 1), default=0.0)
        for table, own in zip((x, y), values, strict=True):
            table[name] = own + step * rng.uniform(-0.5, 0.5, len(table))
    return x, y
