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

import zlib
from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from pandas.api import types as dtypes

from divjax.tables.copies import equal_rows, first_of_copies, repetition_notes
from divjax.tables.reading import few_distinct, kind_of, read_alike
from divjax.tables.values import (
    MISSING,
    as_levels,
    equal_counts,
    held_as_integers,
    merge_rounded,
    numbers_alike,
    precision_note,
)

__all__ = ["Encoded", "encode", "named_by_text"]

OTHER = "(other)"


class Encoded(NamedTuple):
    """Two tables as matrices of the same columns."""

    x: np.ndarray  # "n d", float64
    y: np.ndarray  # "m d"
    columns: tuple[str, ...]  # a name an encoded column
    groups: dict[str, slice]  # the encoded columns of each original one
    notes: tuple[str, ...]  # what was merged, left out or noticed
    left_out: dict[str, str]  # columns of either table that are not compared, and why
    tables: tuple[pd.DataFrame, pd.DataFrame]  # the columns that are, as they were read
    rows: tuple[np.ndarray, np.ndarray]  # an integer a row, the same for rows equal in all columns


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
    # In all columns: rows are no copies that differ in one that is left out.
    rows = equal_rows(read.x, read.y)
    # Copies of rows repeat in every column: how often values do is counted without them.
    counted = None if not repeats else first_of_copies(rows)
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
            counted,
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
    compared: list[Any] = [named_by_text(table)[list(groups)] for table in (read.x, read.y)]
    notes += repetition_notes(rows, names)
    return Encoded(
        *encoded, tuple(columns), groups, tuple(notes), left_out, (compared[0], compared[1]), rows
    )


def named_by_text(table: pd.DataFrame) -> pd.DataFrame:
    """The table with columns named by text; of columns with several levels, by all of them."""
    # `rename` would take each level by itself.
    return table.set_axis(list(map(str, table.columns)), axis="columns")


def _encode_column(
    x: Any,
    y: Any,
    categorical: bool,
    max_levels: int,
    num_buckets: int,
    few_values: int,
    counted: np.ndarray | None,
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
        notes += precision_note(x, y, names)
        # Infinity has no place on a scale of finite numbers.
        infinite = np.isinf(values)
        if infinite.any():
            notes.append(f"{_counted(infinite.sum(), 'infinite value')} taken as missing")
        given = np.where(infinite, np.nan, values)
        values = merge_rounded(given)
        if count := len(np.unique(given)) - len(np.unique(values)):
            differing = _counted(count, "number", "differ")
            notes.append(f"{differing} from others by rounding alone: taken as equal")
        # A few numbers that repeat are codes, whose order need not mean anything.
        few = few_distinct(pd.Series(values), few_values if kind == "number" else 1)
        if not few:
            return *_encode_numbers(values, counted), notes, ""
        count = len(np.unique(values[~np.isnan(values)]))
        if count > 2 and not any(dtypes.is_bool_dtype(column) for column in (x, y)):
            notes.append(f"{count} different numbers: compared as categories")
        # Values that differ by rounding are one level, too.
        if not held_as_integers(x, y):
            x, y = pd.Series(values[: len(x)]), pd.Series(values[len(x) :])
    levels = pd.concat([as_levels(x), as_levels(y)], ignore_index=True)
    block, labels, said, dropped = _encode_levels(levels, len(x), max_levels, num_buckets, names)
    return block, labels, notes + said, dropped


def _encode_numbers(values: np.ndarray, counted: np.ndarray | None) -> tuple[np.ndarray, list[str]]:
    """Pooled numbers, whether they are missing, and how often they repeat among counted rows."""
    # A gap is the median, and a column of its own marks the gaps.
    missing = np.isnan(values)
    block, labels = [np.where(missing, 0, values - np.nanmedian(values))], [""]
    if missing.any():
        block.append(missing.astype(float))
        labels.append(f" {MISSING}")
    # A smooth classifier cannot detect a lattice, but can use how often values repeat.
    if counted is not None:
        count = equal_counts(values, values[counted & ~missing]) - 1
        if (count[~missing] > 0).any():
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
            f"{_counted(len(set(hashed.values())), 'indicator')}"
        )
        levels = levels.map(lambda level: buckets.get(level, level))
        kept = [*order[: max_levels - 1], *sorted(set(buckets.values()))]
    # Levels that one table lacks are named: they may be the whole difference.
    for count, name in zip(counts, names, strict=True):
        if absent := [level for level in order if level not in count.index]:
            shown = ", ".join(absent[:5]) + (", …" if len(absent) > 5 else "")
            absence = _counted(len(absent), "level", "never occur")
            notes.append(f"{absence} in {name}: {shown}")
            if len(order) > max_levels:
                covered = 2 * sum(share[level] for level in absent)
                notes.append(f"{covered:.1%} of the rows of the other table have a level of those")
    plain: dict[str, list[str]] = {}
    for level in order:
        plain.setdefault(level.casefold(), []).append(level)
    # Upper and lower case of one word are two levels, most often by mistake.
    if alike := [" and ".join(same) for same in plain.values() if len(same) > 1]:
        shown = ", ".join(alike[:3]) + (", …" if len(alike) > 3 else "")
        notes.append(f"{_counted(len(alike), 'level', 'differ')} by case alone: {shown}")
    # The most frequent level has no indicator of its own: all of them are zero there.
    block = np.stack([(levels == level).to_numpy(float) for level in kept[1:]], axis=1)
    return block, [f"={level}" for level in kept[1:]], notes, ""


def _counted(count: int, noun: str, verb: str = "") -> str:
    """A number of things, and what they do: one level occurs, two levels occur."""
    one = count == 1
    return f"{count} {noun}{'' if one else 's'} {verb}{'s' if one and verb else ''}".rstrip()
