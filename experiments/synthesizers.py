"""Three simple makers of synthetic tables: what they lose is known, so they are a yardstick.

    train, rest = synthesizers.halves(rng, table)
    synthetic = synthesizers.SYNTHESIZERS["gaussian copula"](rng, train, len(rest))

A synthetic table is made from one half and compared with the other: compared with the rows that it
was made from, a copy of them would look perfect.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
from pandas.api import types as dtypes
from scipy.special import ndtr, ndtri

from divjax.tables.reading import few_distinct

__all__ = [
    "SYNTHESIZERS",
    "gaussian_copula",
    "halves",
    "independent_marginals",
    "noisy_bootstrap",
]


def halves(rng: np.random.Generator, table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of a table in two random halves of equal size (an odd row is left out)."""
    order = rng.permutation(len(table))
    half = len(table) // 2
    first, second = (
        table.iloc[order[k * half : (k + 1) * half]].reset_index(drop=True) for k in (0, 1)
    )
    return first, second


def independent_marginals(
    rng: np.random.Generator, table: pd.DataFrame, num_rows: int
) -> pd.DataFrame:
    """Each column resampled alone: every marginal right, every dependence lost."""
    return pd.DataFrame(
        {
            name: column.iloc[rng.integers(len(column), size=num_rows)].to_numpy()
            for name, column in table.items()
        }
    ).astype(table.dtypes)


def gaussian_copula(
    rng: np.random.Generator, table: pd.DataFrame, num_rows: int, shrinkage: float = 0.02
) -> pd.DataFrame:
    """Marginals by empirical quantiles, dependence by the correlation of normal scores.

    Each value's score is Φ⁻¹ of its mid-rank (its tied rows share one); rows are drawn from a
    normal distribution with the scores' correlation and mapped back through the sorted column, so
    that only values of the table occur. Categories are taken in the order of their names and
    missing values before all others, a mass below the rest.

    Args:
        rng: the source of randomness.
        table: what to imitate.
        num_rows: of the synthetic table.
        shrinkage: the weight of the identity in the correlation, so that it is positive definite.
    """
    orders, scores = [], []
    for _, column in table.items():
        codes = _codes(column)
        order = np.argsort(codes, kind="stable")
        count = np.bincount(codes)
        middle = (np.cumsum(count) - count / 2) / len(codes)
        orders.append(order)
        scores.append(ndtri(middle[codes]))
    standard = np.stack(scores, axis=1)
    standard -= standard.mean(axis=0)
    spread = standard.std(axis=0)
    standard /= np.where(spread > 0, spread, 1)
    correlation = standard.T @ standard / len(table)
    np.fill_diagonal(correlation, 1)
    correlation = (1 - shrinkage) * correlation + shrinkage * np.eye(len(correlation))
    root = np.linalg.cholesky(correlation)
    uniform = ndtr(rng.normal(size=(num_rows, len(root))) @ root.T)
    places = np.minimum((uniform * len(table)).astype(int), len(table) - 1)
    return pd.DataFrame(
        {
            name: column.iloc[order[place]].to_numpy()
            for (name, column), order, place in zip(table.items(), orders, places.T, strict=True)
        }
    ).astype(table.dtypes)


def noisy_bootstrap(
    rng: np.random.Generator,
    table: pd.DataFrame,
    num_rows: int,
    jitter: float = 0.1,
    flip: float = 0.02,
) -> pd.DataFrame:
    """Rows drawn again, numbers moved a little, categories replaced now and then.

    Numbers move by normal noise; whole numbers stay whole, others leave the values that they are
    rounded to, which a lattice diagnostic must see. Missing stays missing.

    Args:
        rng: the source of randomness.
        table: what to imitate.
        num_rows: of the synthetic table.
        jitter: the noise's standard deviation as a share of the column's.
        flip: the probability that a category (or a number with few values) is drawn anew from its
            column.
    """
    rows = rng.integers(len(table), size=num_rows)
    made = {}
    for name, column in table.items():
        values = column.iloc[rows].to_numpy(copy=True)
        if dtypes.is_numeric_dtype(column) and not few_distinct(column):
            moved = values.astype(float) + jitter * column.std() * rng.normal(size=num_rows)
            whole = (column.dropna() % 1 == 0).all()
            made[name] = np.round(moved) if whole else moved
        else:
            anew = rng.random(num_rows) < flip
            values[anew] = column.iloc[rng.integers(len(column), size=anew.sum())].to_numpy()
            made[name] = values
    return pd.DataFrame(made).astype(table.dtypes)


def _codes(column: pd.Series) -> np.ndarray:
    """The rank of each value among the distinct ones, in order, missing first."""
    if not dtypes.is_numeric_dtype(column) and not dtypes.is_datetime64_any_dtype(column):
        column = column.astype(object).where(column.notna(), None).map(str, na_action="ignore")
    codes, _ = pd.factorize(column, sort=True)
    return np.unique(codes, return_inverse=True)[1]


SYNTHESIZERS: dict[str, Callable[[np.random.Generator, pd.DataFrame, int], pd.DataFrame]] = {
    "independent marginals": independent_marginals,
    "gaussian copula": gaussian_copula,
    "noisy bootstrap": noisy_bootstrap,
}
