"""Two tables as two matrices: one encoding of mixed columns, the same for both.

    encoded = encode(real, synthetic)
    encoded.x, encoded.y, encoded.columns, encoded.groups, encoded.notes

The encoding depends on the pooled rows and never on the table a row is of, so it cannot make equal
distributions differ; swapping the tables swaps the matrices. Nor can it raise a classifier's
held-out score beyond the limit that the distributions set: for independent rows, the others have no
information on a row's table beyond its own values. Merging and dropping can only make different
distributions look closer, and is reported in `notes`.

- **Columns** in both tables are compared; the others are named. No common column is an error.
- **Text that is numbers or dates** is read as such: see `divjax.tables.reading`.
- **Numbers** stay what they are, less their pooled median (in float64, so that float32 keeps the
  digits that vary; integers that float64 would merge are centred as integers first). A missing or
  infinite value becomes the median, 0, and a second column says so. Values that differ by rounding
  alone are the same, see `merge_rounded`: two files may round differently. A column of single
  precision in one table is rounded to it in the other.
- **Repeats**, where asked for: a number is joined by log(1 + how many other rows of both tables
  hold exactly its value). A smooth classifier cannot see a lattice; with it, it can.
- **Numbers with few values** (at most `few_values` distinct ones, each ten times on average) are
  categories: codes, grades and counts, whose distribution need not follow their order.
- **Categories** (text, booleans, pandas categories) get an indicator column a level, except for the
  most frequent one, whose rows are zero in all: no column is a function of the others. A level that
  one table lacks is a column that is zero there. Missing is a level. Beyond `max_levels` the rarest
  share `num_buckets` indicators, by a hash of their names: `own_levels` of
  `divjax.tables.lattices` finds what that hides.
- **Free text and identifiers**, where in both tables less than half of the rows have a value that
  another row of the table has too, are left out. Numbers that identify rows cannot be told from
  measurements: name them in `ignored`.
- **Dates** are numbers of days, durations seconds, complex numbers two columns.
- **A number in one table and text in the other**: categories, with a note.
- **Constant columns**: left out if the constant is the same in both, kept if it is not, or if only
  one of them is constant, for that is a difference.

Columns that are left out are listed by name: a headline over all columns must name them.
"""

import itertools
import zlib
from collections import Counter
from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from pandas.api import types as dtypes

from divjax.tables.reading import few_distinct, kind_of, read_alike

__all__ = [
    "Encoded",
    "encode",
    "equal_counts",
    "merge_rounded",
    "numbers_alike",
    "values_alike",
]

MISSING, OTHER = "(missing)", "(other)"
# A value and its roundings in two tables are at most so many neighbours.
MOST_ROUNDED = 8
# How far the others are, in units of the width of these.
LEAST_APART = 1000


class Encoded(NamedTuple):
    """Two tables as matrices of the same columns."""

    x: np.ndarray  # "n d", float64
    y: np.ndarray  # "m d"
    columns: tuple[str, ...]  # a name an encoded column
    groups: dict[str, slice]  # the encoded columns of each original one
    notes: tuple[str, ...]  # what was merged, left out or noticed
    left_out: dict[str, str]  # columns of either table that are not compared, and why
    tables: tuple[pd.DataFrame, pd.DataFrame]  # the columns that are, as they were read


def encode(
    x: pd.DataFrame,
    y: pd.DataFrame,
    *,
    categorical: Collection[str] = (),
    numerical: Collection[str] = (),
    ignored: Collection[str] = (),
    max_levels: int = 32,
    num_buckets: int = 32,
    few_values: int = 20,
    date_format: str | None = None,
    repeats: bool = False,
    names: tuple[str, str] = ("x", "y"),
) -> Encoded:
    """Encode two tables alike, by the rules at the head of this file.

    Args:
        x: one table.
        y: the other; its columns may be in another order.
        categorical: columns of numbers that are categories though they have many values.
        numerical: columns of numbers that stay numbers though they have few values.
        ignored: columns that are not compared, such as those that identify rows.
        max_levels: of a category; the rarest beyond share indicators.
        num_buckets: how many they share, at most.
        few_values: a column of so few distinct numbers is one of categories.
        date_format: how dates are written, as for `read_alike`.
        repeats: whether numbers are joined by how often they repeat.
        names: of the tables, in notes and errors.

    Raises:
        ValueError: if a table has fewer than two rows or a column's name twice, no column is
            common, or none is left.
    """
    # Tables that cannot be compared are refused before anything is read.
    for table, name in zip((x, y), names, strict=True):
        if len(table) < 2:
            raise ValueError(f"{name} must hold at least two rows; got {len(table)}.")
        if not table.columns.is_unique:
            twice = table.columns[table.columns.duplicated()].tolist()
            raise ValueError(f"{name} must name its columns uniquely; got twice: {twice}.")
    common = [column for column in x.columns if column in set(y.columns)]
    if not common:
        shown = " and ".join(str(list(map(str, table.columns[:5]))) for table in (x, y))
        raise ValueError(f"{names[0]} and {names[1]} must have a column in common; got {shown}.")
    if unknown := sorted(set(categorical) - set(common)):
        raise ValueError(f"categorical must name columns of both tables; got {unknown}.")
    # Columns of one table alone are named: a headline is not about them.
    left_out = {
        str(column): f"only in {name}"
        for table, name in zip((x, y), names, strict=True)
        for column in table.columns
        if column not in common
    }
    notes = [
        f"only in {name}, not compared: {', '.join(alone)}"
        for name in names
        if (alone := [column for column, why in left_out.items() if why == f"only in {name}"])
    ]
    # Text that holds numbers or dates is read in both tables at once, in the same way.
    tables: list[Any] = [x[common], y[common]]
    read = read_alike(
        *tables,
        categorical=categorical,
        few_values=few_values,
        names=names,
        date_format=date_format,
    )
    notes += read.notes
    # Each column becomes one block of numbers over the pooled rows, those of x first.
    blocks, columns, groups = [], [], {}
    for column in read.x.columns:
        if column in ignored:
            left_out[str(column)] = "as asked"
            continue
        block, labels, said, dropped = _encode_column(
            read.x[column],
            read.y[column],
            column in categorical,
            max_levels,
            num_buckets,
            1 if column in numerical else few_values,
            repeats,
            names,
        )
        notes += [f"{column}: {note}" for note in said]
        # A column that is left out leaves no block, but its reason.
        if dropped:
            left_out[str(column)] = dropped
        else:
            groups[str(column)] = slice(len(columns), len(columns) + len(labels))
            columns += [f"{column}{label}" for label in labels]
            blocks.append(block)
    if not blocks:
        raise ValueError("no column is left to compare: " + "; ".join(notes) + ".")
    pooled = np.concatenate(blocks, axis=1)
    encoded = pooled[: len(x)], pooled[len(x) :]
    compared: list[Any] = [table.rename(columns=str)[list(groups)] for table in (read.x, read.y)]
    notes += _repetitions(read.x, read.y, names)
    return Encoded(
        *encoded, tuple(columns), groups, tuple(notes), left_out, (compared[0], compared[1])
    )


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
        levels: Any = pd.concat([_levels(x), _levels(y)], ignore_index=True)
        codes = pd.factorize(levels)[0]
    return codes[: len(x)], codes[len(x) :]


def _encode_column(
    x: Any,
    y: Any,
    categorical: bool,
    max_levels: int,
    num_buckets: int,
    few_values: int,
    repeats: bool,
    names: tuple[str, str],
) -> tuple[np.ndarray, list[str], list[str], str]:
    """The encoded columns of one of the tables', their labels, notes, and why it is left out."""
    # A column that is empty in one table is of the kind that it is in the other.
    kinds = [kind_of(column) for column in (x, y)]
    known = [kind for kind in kinds if kind != "empty"]
    absent_shares = [column.isna().mean() for column in (x, y)]
    notes = []
    # How much is missing is a finding by itself.
    if any(absent_shares):
        each = (f"{share:.1%} of {name}" for share, name in zip(absent_shares, names, strict=True))
        notes.append("missing: " + ", ".join(each))
    # A number in one table and text in the other can only be compared by their spelling.
    if len(set(known)) > 1:
        notes.append(f"{kinds[0]} in {names[0]}, {kinds[1]} in {names[1]}: compared as categories")
        categorical = True
    kind = known[0] if known else "empty"
    if kind in ("number", "date") and not categorical:
        values = np.concatenate(numbers_alike(x, y, kind))
        notes += _precision_note(x, y, names)
        # Infinity has no place on a scale of finite numbers.
        infinite = np.isinf(values)
        if infinite.any():
            notes.append(f"{infinite.sum()} infinite values taken as missing")
        given = np.where(infinite, np.nan, values)
        values = merge_rounded(given)
        if count := len(np.unique(given)) - len(np.unique(values)):
            notes.append(f"{count} numbers differ from others by rounding alone: taken as equal")
        # A few numbers that repeat are codes, whose order need not mean anything.
        few = few_distinct(pd.Series(values), few_values if kind == "number" else 1)
        if not few:
            return *_encode_numbers(values, repeats), notes, ""
        count = len(np.unique(values[~np.isnan(values)]))
        if count > 2 and not any(dtypes.is_bool_dtype(column) for column in (x, y)):
            notes.append(f"{count} different numbers: compared as categories")
        # Values that differ by rounding are one level, too.
        if _places_of_large_integers(x, y) is None:
            x, y = pd.Series(values[: len(x)]), pd.Series(values[len(x) :])
    levels = pd.concat([_levels(x), _levels(y)], ignore_index=True)
    block, labels, said, dropped = _encode_levels(levels, len(x), max_levels, num_buckets, names)
    return block, labels, notes + said, dropped


def _encode_numbers(values: np.ndarray, repeats: bool) -> tuple[np.ndarray, list[str]]:
    """Pooled numbers, whether they are missing, and how often they repeat."""
    # A gap is the median, and a column of its own marks the gaps.
    missing = np.isnan(values)
    block, labels = [np.where(missing, 0, values - np.nanmedian(values))], [""]
    if missing.any():
        block.append(missing.astype(float))
        labels.append(f" {MISSING}")
    # A smooth classifier cannot detect a lattice, but can use how often values repeat.
    count = equal_counts(values, values[~missing]) - 1
    if repeats and (count[~missing] > 0).any():
        block.append(np.log1p(np.where(missing, 0, count)))
        labels.append(" (repeats)")
    return np.stack(block, axis=1), labels


def _encode_levels(
    levels: Any, n: int, max_levels: int, num_buckets: int, names: tuple[str, str]
) -> tuple[np.ndarray, list[str], list[str], str]:
    """Indicators of pooled levels, the first n rows being those of x."""
    parts, nothing = (levels[:n], levels[n:]), np.empty((len(levels), 0))
    # Each table weighs the same, whatever its size; ties are decided by name.
    counts = [part.value_counts() for part in parts]
    shares = [count / count.sum() for count in counts]
    share = shares[0].add(shares[1], fill_value=0) / 2
    order = sorted(share.index, key=lambda level: (-share[level], level))
    # A level that all rows have distinguishes none of them.
    if len(order) == 1:
        why = f"constant ({order[0]})"
        return nothing, [], [f"{why}, dropped"], why
    # Values that hardly repeat, in either table, are identifiers or prose: each would be a level.
    if len(order) > max_levels:
        repeated = [own[count > 1].sum() for own, count in zip(shares, counts, strict=True)]
        if max(repeated) < 0.5:
            why = f"{len(order)} different values, free text or an identifier"
            return nothing, [], [f"{why}, dropped"], why
    kept, notes = order, []
    if len(order) > max_levels:
        # By a hash of the name: neither the tables' order nor their sizes can matter.
        rare = order[max_levels - 1 :]
        hashed = {level: zlib.crc32(level.encode()) % num_buckets for level in rare}
        buckets = {level: f"{OTHER} {bucket}" for level, bucket in hashed.items()}
        covered = sum(share[level] for level in rare)
        notes.append(
            f"the {len(rare)} rarest of {len(order)} levels ({covered:.1%} of the rows) share "
            f"{len(set(hashed.values()))} indicators"
        )
        levels = levels.map(lambda level: buckets.get(level, level))
        kept = [*order[: max_levels - 1], *sorted(set(buckets.values()))]
    # Levels that one table lacks are named: they may be the whole difference.
    for count, name in zip(counts, names, strict=True):
        if absent := [level for level in order if level not in count.index]:
            shown = ", ".join(absent[:5]) + (", …" if len(absent) > 5 else "")
            notes.append(f"{len(absent)} levels never occur in {name}: {shown}")
            if len(order) > max_levels:
                covered = 2 * sum(share[level] for level in absent)
                notes.append(f"{covered:.1%} of the rows of the other table have a level of those")
    # The most frequent level has no indicator of its own: all of them are zero there.
    block = np.stack([(levels == level).to_numpy(float) for level in kept[1:]], axis=1)
    return block, [f"={level}" for level in kept[1:]], notes, ""


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


def _precisions(x: Any, y: Any) -> list[np.dtype]:
    """The types of those columns that hold less than double precision."""
    types = [getattr(column.dtype, "numpy_dtype", column.dtype) for column in (x, y)]
    return [
        dtype
        for dtype in types
        if isinstance(dtype, np.dtype) and dtype.kind == "f" and dtype.itemsize < 8
    ]


def _precision_note(x: Any, y: Any, names: tuple[str, str]) -> list[str]:
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


def _levels(column: Any) -> Any:
    """Values as text; the same for 1, 1.0 and true, so that two tables' codes agree."""

    def text(value):
        real = (bool, int, float, np.bool_, np.integer, np.floating)
        if isinstance(value, real) and np.isfinite(value):
            return str(int(value)) if float(value).is_integer() else str(float(value))
        return str(value).strip()

    # Each distinct value is converted once, however many rows have it.
    distinct = {value: text(value) for value in column.dropna().unique()}
    return column.astype(object).map(distinct).astype(object).where(column.notna(), MISSING)


def equal_counts(values: np.ndarray, among: np.ndarray) -> np.ndarray:
    """How many of the others each value equals."""
    ordered = np.sort(among)
    return np.searchsorted(ordered, values, "right") - np.searchsorted(ordered, values, "left")


def _repetitions(x: pd.DataFrame, y: pd.DataFrame, names: tuple[str, str]) -> list[str]:
    """Notes of rows that repeat in all columns, within a table and from one to the other."""
    # As integers, rows that are equal up to rounding and spelling are equal bytes.
    codes = [values_alike(x[column], y[column]) for column in x.columns]
    rows = [
        [row.tobytes() for row in np.stack(table, axis=1)] for table in zip(*codes, strict=True)
    ]
    notes = []
    for own, name in zip(rows, names, strict=True):
        if repeated := len(own) - len(set(own)):
            notes.append(f"{repeated} of the {len(own)} rows of {name} repeat an earlier one")
    if copied := sum(map(set(rows[0]).__contains__, rows[1])):
        # A row of x, too, is as likely to be found among the others of x.
        counts = Counter(rows[0])
        expected = (
            len(rows[1]) * sum(count for count in counts.values() if count > 1) / len(rows[0])
        )
        notes.append(
            f"{copied} of the {len(rows[1])} rows of {names[1]} are rows of {names[0]}; "
            f"{expected:.0f} would be, were they drawn like rows of {names[0]}"
        )
    return notes
