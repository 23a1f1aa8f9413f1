"""Two tables as two matrices: one encoding of mixed columns, the same for both.

    encoded = tables.encode(real, synthetic)
    encoded.p, encoded.q, encoded.columns, encoded.groups, encoded.notes

The encoding looks at the pooled rows and never at which table a row is of, so it cannot make equal
distributions differ; swapping the tables swaps the matrices. Nor can it lift a classifier's
held-out score beyond what the distributions allow: for independent rows, the others say nothing of
a row's table that its own values do not. What is merged or dropped can only make different
distributions look closer, and is said in `notes`.

- **Columns** in both tables are compared; the others are named. No common column is an error.
- **Numbers** stay what they are, less their pooled median (in float64, so that float32 keeps the
  digits that vary). A missing or infinite value becomes the median, 0, and a second column says so.
  Values within 1e-8 of the column's range are the same: two files may round differently.
- **Repeats**, where asked for: a number is joined by log(1 + how many other rows of both tables
  hold exactly its value). A smooth classifier cannot see a lattice; with it, it can.
- **Numbers with few values** (at most `few_values` distinct ones, each ten times on average) are
  categories: codes, grades and counts, whose distribution need not follow their order.
- **Categories** (text, booleans, pandas categories) get an indicator column a level, except for the
  most frequent one, whose rows are zero in all: no column is a function of the others. A level that
  one table lacks is a column that is zero there. Missing is a level. Beyond `max_levels` the rarest
  are merged into one.
- **Free text and identifiers**, where the kept levels that repeat cover less than half of the rows,
  are dropped. Numbers that identify rows cannot be told from measurements: drop them yourself.
- **Dates**, and text that is ISO dates throughout, are numbers of days.
- **A number in one table and text in the other**: categories, with a note.
- **Constant columns**: dropped if the constant is the same in both, kept if it is not, or if only
  one of them is constant, for that is a difference.
"""

import math
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from pandas.api import types as dtypes

from divjax.fdiv.inequalities import js_bounds_from_tv

__all__ = ["Encoded", "Lattice", "dequantize", "encode", "few_distinct", "lattices"]

MISSING, OTHER = "(missing)", "(other)"


class Encoded(NamedTuple):
    """Two tables as matrices of the same columns."""

    p: np.ndarray  # "n d", float64
    q: np.ndarray  # "m d"
    columns: tuple[str, ...]  # a name an encoded column
    groups: dict[str, slice]  # the encoded columns of each original one
    notes: tuple[str, ...]  # what was merged, dropped or noticed


def encode(
    p: pd.DataFrame,
    q: pd.DataFrame,
    *,
    categorical: Collection[str] = (),
    max_levels: int = 32,
    few_values: int = 20,
    repeats: bool = False,
    names: tuple[str, str] = ("p", "q"),
) -> Encoded:
    """Encode two tables alike; how is said at the head of this file.

    Args:
        p: one table.
        q: the other; its columns may be in another order.
        categorical: columns of numbers that are categories though they have many values.
        max_levels: of a category; the rarest beyond are merged.
        few_values: a column of so few distinct numbers is one of categories.
        repeats: whether numbers are joined by how often they repeat.
        names: of the tables, in notes and errors.

    Raises:
        ValueError: if a table has fewer than two rows or a column's name twice, no column is
            common, or none is left.
    """
    for table, name in zip((p, q), names, strict=True):
        if len(table) < 2:
            raise ValueError(f"{name} must hold at least two rows; got {len(table)}.")
        if not table.columns.is_unique:
            twice = table.columns[table.columns.duplicated()].tolist()
            raise ValueError(f"{name} must name its columns uniquely; got twice: {twice}.")
    common = [column for column in p.columns if column in set(q.columns)]
    if not common:
        shown = " and ".join(str(list(map(str, table.columns[:5]))) for table in (p, q))
        raise ValueError(f"{names[0]} and {names[1]} must have a column in common; got {shown}.")
    if unknown := sorted(set(categorical) - set(common)):
        raise ValueError(f"categorical must name columns of both tables; got {unknown}.")
    notes = [
        f"only in {name}, not compared: {', '.join(map(str, alone))}"
        for table, name in zip((p, q), names, strict=True)
        if (alone := [column for column in table.columns if column not in common])
    ]
    blocks, columns, groups = [], [], {}
    for column in common:
        block, labels, said = _encode_column(
            p[column], q[column], column in categorical, max_levels, few_values, repeats, names
        )
        notes += [f"{column}: {note}" for note in said]
        if labels:
            groups[str(column)] = slice(len(columns), len(columns) + len(labels))
            columns += [f"{column}{label}" for label in labels]
            blocks.append(block)
    if not blocks:
        raise ValueError("no column is left to compare: " + "; ".join(notes) + ".")
    pooled = np.concatenate(blocks, axis=1)
    encoded = pooled[: len(p)], pooled[len(p) :]
    notes += _repetitions(*encoded, names)
    return Encoded(*encoded, tuple(columns), groups, tuple(notes))


def few_distinct(column: Any, few_values: int = 20) -> bool:
    """Whether so few distinct numbers are there that they are categories."""
    return column.nunique() <= max(1, min(few_values, len(column) / 10))


class Lattice(NamedTuple):
    """A column whose repeated values in one table are mostly not those of the other.

    The shares are of rows whose value another row of table `of` holds. Their difference is a lower
    bound on the total variation between the tables, up to sampling error, which `js_bits`, the
    Jensen–Shannon divergence that it implies, allows for (a column, about 95 % confidence).
    """

    column: str
    of: str
    share_p: float
    share_q: float
    js_bits: float


def lattices(
    p: pd.DataFrame,
    q: pd.DataFrame,
    *,
    least_js_bits: float = 0.05,
    names: tuple[str, str] = ("p", "q"),
) -> list[Lattice]:
    """Columns of numbers that a lattice alone tells apart: smooth classifiers cannot see it.

    Args:
        p: one table.
        q: the other.
        least_js_bits: columns with a smaller bound are not returned.
        names: of the tables.

    References:
        `divjax.fdiv.js_bounds_from_tv`, for what a total variation implies.
    """
    found = []
    for name in [name for name in p.columns if name in set(q.columns)]:
        columns: tuple[Any, Any] = p[name], q[name]
        if {_kind(column) for column in columns} != {"number"}:
            continue
        pooled = _merge(np.concatenate([_numbers(column, "number") for column in columns]))
        values = [x[np.isfinite(x)] for x in np.split(pooled, [len(columns[0])])]
        if not all(len(x) for x in values):
            continue
        bounds = []
        for own in (0, 1):
            shares = [
                float(np.mean(_count(x, values[own]) > int(k == own))) for k, x in enumerate(values)
            ]
            variances = [s * (1 - s) / len(x) for s, x in zip(shares, values, strict=True)]
            least_tv = max(0.0, abs(shares[0] - shares[1]) - 1.960 * math.sqrt(sum(variances)))
            js_bits = float(js_bounds_from_tv(least_tv).lower) / math.log(2)
            bounds.append(
                (
                    js_bits,
                    shares[own],
                    Lattice(str(name), names[own], shares[0], shares[1], js_bits),
                )
            )
        bound = max(bounds)[-1]
        if bound.js_bits >= least_js_bits:
            found.append(bound)
    return found


def dequantize(
    rng: np.random.Generator, p: pd.DataFrame, q: pd.DataFrame, columns: Sequence[str]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Blur columns of both tables by the same uniform noise, as wide as the lattice's usual step.

    What is left is the difference other than that of the lattice: the same noise on both can only
    make them more alike. The step is the larger of the two tables' median gaps between neighbouring
    distinct values.
    """
    p, q = p.copy(), q.copy()
    for name in columns:
        values: list[Any] = [table[name].dropna().unique() for table in (p, q)]
        step = max(
            np.median(np.diff(np.sort(np.asarray(distinct, float))))
            for distinct in values
            if len(distinct) > 1
        )
        for table in (p, q):
            table[name] = table[name] + step * rng.uniform(-0.5, 0.5, len(table))
    return p, q


def _encode_column(
    p: Any,
    q: Any,
    categorical: bool,
    max_levels: int,
    few_values: int,
    repeats: bool,
    names: tuple[str, str],
) -> tuple[np.ndarray, list[str], list[str]]:
    """The encoded columns of one of the tables', their labels, and notes; no labels: dropped."""
    kinds = [_kind(column) for column in (p, q)]
    known = [kind for kind in kinds if kind != "empty"]
    absent_shares = [column.isna().mean() for column in (p, q)]
    notes = []
    if any(absent_shares):
        each = (f"{share:.1%} of {name}" for share, name in zip(absent_shares, names, strict=True))
        notes.append("missing: " + ", ".join(each))
    if len(set(known)) > 1:
        notes.append(f"{kinds[0]} in {names[0]}, {kinds[1]} in {names[1]}: compared as categories")
        categorical = True
    kind = known[0] if known else "empty"
    nothing = np.empty((len(p) + len(q), 0))
    if kind in ("number", "date") and not categorical:
        values = np.concatenate([_numbers(column, kind) for column in (p, q)])
        infinite = np.isinf(values)
        if infinite.any():
            notes.append(f"{infinite.sum()} infinite values taken as missing")
        values = _merge(np.where(infinite, np.nan, values))
        if not few_distinct(pd.Series(values), few_values if kind == "number" else 1):
            missing = np.isnan(values)
            block, labels = [np.where(missing, 0, values - np.nanmedian(values))], [""]
            if missing.any():
                block.append(missing.astype(float))
                labels.append(f" {MISSING}")
            count = _count(values, values[~missing]) - 1
            if repeats and (count[~missing] > 0).any():
                block.append(np.log1p(np.where(missing, 0, count)))
                labels.append(" (repeats)")
            return np.stack(block, axis=1), labels, notes
        p, q = pd.Series(values[: len(p)]), pd.Series(values[len(p) :])
    levels: Any = pd.concat([_levels(p), _levels(q)], ignore_index=True)
    # Each table weighs the same, whatever its size; ties are decided by name.
    counts = levels.value_counts()
    shares = [part.value_counts(normalize=True) for part in (levels[: len(p)], levels[len(p) :])]
    share = shares[0].add(shares[1], fill_value=0) / 2
    order = sorted(share.index, key=lambda level: (-share[level], level))
    if len(order) == 1:
        return nothing, [], [*notes, f"constant ({order[0]}), dropped"]
    kept = order if len(order) <= max_levels else order[: max_levels - 1]
    covered = sum(share[level] for level in kept if counts[level] > 1)
    if covered < 0.5:
        what = f"{len(order)} different values, free text or an identifier"
        return nothing, [], [*notes, f"{what}, dropped"]
    if len(kept) < len(order):
        rare = 1 - sum(share[level] for level in kept)
        merged = f"the {len(order) - len(kept)} rarest of {len(order)} levels"
        notes.append(f"{merged} ({rare:.1%} of the rows) merged into {OTHER}")
        levels = levels.where(levels.isin(kept), OTHER)
        kept = [*kept, OTHER]
    for part, name in ((levels[: len(p)], names[0]), (levels[len(p) :], names[1])):
        if absent := [level for level in kept if not (part == level).any()]:
            shown = ", ".join(absent[:5]) + (", …" if len(absent) > 5 else "")
            notes.append(f"{len(absent)} levels never occur in {name}: {shown}")
    block = np.stack([(levels == level).to_numpy(float) for level in kept[1:]], axis=1)
    return block, [f"={level}" for level in kept[1:]], notes


def _kind(column: Any) -> str:
    """`number`, `date`, `text`, or `empty` where every value is missing."""
    column = column.infer_objects()
    if column.isna().all():
        return "empty"
    if dtypes.is_numeric_dtype(column):
        return "number"
    if dtypes.is_datetime64_any_dtype(column):
        return "date"
    if dtypes.is_string_dtype(column):
        if column.str.len().min() < len("20250131"):
            return "text"
        try:
            pd.to_datetime(column.dropna(), format="ISO8601", utc=True)
        except (ValueError, TypeError):
            return "text"
        return "date"
    return "text"


def _numbers(column: Any, kind: str) -> np.ndarray:
    """Float64, a date as days since 1970; missing is nan."""
    if kind == "date":
        dates: Any = pd.to_datetime(column, format="ISO8601", utc=True)
        return ((dates - pd.Timestamp(0, tz="UTC")) / pd.Timedelta(days=1)).to_numpy(float)
    return column.infer_objects().to_numpy(float, na_value=np.nan)


def _merge(values: np.ndarray) -> np.ndarray:
    """Values that differ by rounding made equal, to the smallest of them."""
    finite = np.isfinite(values)
    if not finite.any():
        return values
    distinct, place = np.unique(values[finite], return_inverse=True)
    first = np.diff(distinct, prepend=-np.inf) > 1e-8 * (distinct[-1] - distinct[0])
    merged = values.copy()
    merged[finite] = distinct[first][np.cumsum(first) - 1][place]
    return merged


def _levels(column: Any) -> Any:
    """Values as text; the same for 1, 1.0 and true, so that two tables' codes agree."""

    def text(value):
        if isinstance(value, (bool, int, float, np.bool_, np.number)) and np.isfinite(value):
            return str(int(value)) if float(value).is_integer() else str(float(value))
        return str(value).strip()

    distinct = {value: text(value) for value in column.dropna().unique()}
    return column.astype(object).map(distinct).astype(object).where(column.notna(), MISSING)


def _count(values: np.ndarray, among: np.ndarray) -> np.ndarray:
    """How many of the others each value equals."""
    ordered = np.sort(among)
    return np.searchsorted(ordered, values, "right") - np.searchsorted(ordered, values, "left")


def _repetitions(p: np.ndarray, q: np.ndarray, names: tuple[str, str]) -> list[str]:
    """Notes of rows that repeat, within a table and from one to the other."""
    rows = [[row.tobytes() for row in np.ascontiguousarray(x + 0.0)] for x in (p, q)]
    notes = []
    for x, name in zip(rows, names, strict=True):
        if repeated := len(x) - len(set(x)):
            notes.append(f"{repeated} of the {len(x)} rows of {name} repeat an earlier one")
    if copied := sum(map(set(rows[0]).__contains__, rows[1])):
        notes.append(f"{copied} of the {len(rows[1])} rows of {names[1]} are rows of {names[0]}")
    return notes
