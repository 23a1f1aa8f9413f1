"""Text that is numbers or dates, read as such: the same way in two tables.

    read = read_alike(real, synthetic)
    read.x, read.y, read.notes

A column of text is read as numbers or dates where more than half of its values in each table are.
Spreadsheets write `1,234.50`, `1.234,50`, `1 234`, `(12)`, `$5`, `45 %` and `31/12/2024`, and one
cell among the numbers says `n.k.`. Which convention is meant is decided for each table by the one
that reads most of its values. Where several do, as of `1,234`, the table's other columns decide,
then the size of the other table's numbers, then how that one is written, then what separates the
fields of the files. What is not read is missing, and is said so. Where different words, or words
and empty cells, stand among the numbers, a column `<name> (words)` keeps them apart, so that
nothing that tells the tables apart gets lost; so does `<name> (currency)` for amounts in several
currencies.

Durations, periods, complex numbers and booleans are made comparable too, see
`divjax.tables.column_types`.

Left as text: columns that one table declares categorical or boolean; codes with leading zeros or
more digits than float64 holds; columns of few different numbers, if words are among them. Reading
twice changes nothing.
"""

import collections
import functools
import math
import re
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from pandas.api import types as dtypes

from divjax.tables.column_types import comparable_types

__all__ = ["Read", "few_distinct", "kind_of", "number_columns", "read_alike"]

# A word this frequent in one of the tables is distinguished from other words.
LEAST_SHARE = 0.01

_CURRENCY = r"[$€£¥₹₩₽₺₴₫₪฿]|USD|EUR|GBP|CHF|JPY|CNY|SEK|NOK|DKK|PLN|CZK|HUF|INR|BRL|AUD|CAD"
_SPACES = " '’\u00a0\u202f"


class Read(NamedTuple):
    """Two tables whose columns of numbers and dates are typed."""

    x: pd.DataFrame
    y: pd.DataFrame
    notes: tuple[str, ...]  # how columns were read, and what could not be


def read_alike(
    x: pd.DataFrame,
    y: pd.DataFrame,
    *,
    categorical: Collection[str] = (),
    few_values: int = 20,
    names: tuple[str, str] = ("x", "y"),
    date_format: str | None = None,
) -> Read:
    """Read the columns that two tables share; the others stay as they are.

    Args:
        x: one table.
        y: the other.
        categorical: columns whose text is left alone.
        few_values: a column of so few different numbers keeps the words among them.
        names: of the tables, in notes.
        date_format: how dates are written, as for `datetime.strptime`: a column that it reads more
            than half of, in both tables, is one of dates.
    """
    # The caller's frames stay as they are.
    x, y, notes = x.copy(), y.copy(), []
    commas = [_decimal_commas(table, categorical) for table in (x, y)]
    for column in [column for column in x.columns if column in set(y.columns)]:
        pair, companions, said = comparable_types(x[column], y[column], names)
        if said:
            notes += [f"{column}: {note}" for note in said]
            _assign(x, y, column, {"": pair, **companions})
        if column in categorical or not any(_is_text(part) for part in pair):
            continue
        found = _choose(pair, commas, date_format)
        if found is None:
            continue
        new, said = _replace(str(column), pair, found, few_values, names)
        _assign(x, y, column, new)
        notes += [f"{column}: {note}" for note in said]
    return Read(x, y, tuple(notes))


def _assign(x: pd.DataFrame, y: pd.DataFrame, column: Any, new: dict[str, list[Any]]) -> None:
    """Set a column of both tables, and its companions by the suffixes of their names."""
    for suffix, columns in new.items():
        # A companion never takes the place of a column that is there already.
        name = f"{column}{suffix}" if suffix else column
        while suffix and (name in x or name in y):
            name = f"{name}*"
        x[name], y[name] = columns


def few_distinct(column: Any, few_values: int = 20) -> bool:
    """Whether so few distinct numbers are there that they are categories."""
    return column.nunique() <= max(1, min(few_values, len(column) / 10))


def kind_of(column: Any) -> str:
    """`number`, `date`, `text`, or `empty` where every value is missing."""
    column = column.infer_objects()
    if column.isna().all():
        return "empty"
    if dtypes.is_numeric_dtype(column) and not dtypes.is_complex_dtype(column):
        return "number"
    return "date" if dtypes.is_datetime64_any_dtype(column) else "text"


def number_columns(x: Any, y: Any) -> list[str]:
    """The columns that hold numbers in both tables, in the order of the first."""
    return [
        name
        for name in x.columns
        if name in set(y.columns) and {kind_of(table[name]) for table in (x, y)} == {"number"}
    ]


class _Reading(NamedTuple):
    """One way to read texts.

    Attributes:
        name: completes "text read as …".
        kind: `number` or `date`.
        read: `[text] -> [(value, currency)]`, with a value that is missing where it is not read.
        comma: 1 with decimal commas, −1 with decimal points, 0 for dates.
    """

    name: str
    kind: str
    read: Callable[[list[str]], list[tuple[Any, str]]]
    comma: int = 0


class _Found(NamedTuple):
    """One table's reading: of each distinct text its value and its currency."""

    reading: _Reading
    values: dict[str, Any]
    currencies: dict[str, str]

    @property
    def name(self) -> str:
        """The reading's name, with the separator of most dates in place of its own."""
        written = re.search(r"\b[dmy]+([-/])[dm]+\1", self.reading.name)
        if written is None:
            return self.reading.name
        used = collections.Counter(re.findall(r"^\d+([-/.])", "\n".join(self.values), re.M))
        # Digits alone, as of 20241231, have none.
        return self.reading.name.replace(written[1], max(used, key=used.__getitem__, default="-"))


@functools.cache
def _number_pattern(decimal: str) -> re.Pattern[str]:
    group = re.escape("," if decimal == "." else ".")
    point = re.escape(decimal)
    # The first group has no leading zero: 0,512 is not a thousand of anything.
    digits = rf"(?:[1-9]\d{{0,2}}(?:[{group}{_SPACES}]\d{{2,3}})*[{group}{_SPACES}]\d{{3}}|\d+)"
    body = rf"(?:{digits}(?:{point}\d*)?|{point}\d+)(?:[eE][+-]?\d+)?"
    currency = rf"(?:{_CURRENCY})"
    return re.compile(
        rf"(?P<open>\()?\s*(?P<sign>[+\-−]?)\s*(?P<before>{currency})?\s*(?P<sign2>[+\-−]?)"
        rf"(?P<body>{body})\s*(?P<percent>%)?\s*(?P<after>{currency})?\s*(?(open)\))",
        re.IGNORECASE,
    )


def _read_numbers(texts: list[str], decimal: str) -> list[tuple[float, str]]:
    """Amounts and per cents as numbers; in parentheses, as bookkeepers write it, negative."""
    # With a decimal comma, points separate groups of digits, and the reverse.
    pattern, read = _number_pattern(decimal), []
    group = "," if decimal == "." else "."
    for text in texts:
        match = pattern.fullmatch(text)
        if match is None or (match["sign"] and match["sign2"]):
            read.append((np.nan, ""))
            continue
        # Groups are told from decimals by the convention that is tried.
        digits = re.sub(rf"[{re.escape(group)}{_SPACES}]", "", match["body"])
        value = float(digits.replace(decimal, "."))
        if bool(match["open"]) != ((match["sign"] or match["sign2"]) in ("-", "−")):
            value = -value
        currency = (match["before"] or match["after"] or "").upper()
        read.append((value / 100 if match["percent"] else value, currency))
    return read


def _read_dates(
    texts: list[str], formats: tuple[str, ...], least: int = len("1/1/2024")
) -> list[tuple[Any, str]]:
    """Dates in one of a few formats; shorter texts than `20250131` are numbers, not dates."""
    # The first format that reads a text decides; the formats of one reading do not overlap.
    series = pd.Series(texts, dtype=object)
    series = series.where(series.str.len() >= least)
    # Nanoseconds end in the year 2262, and “until further notice” is often written 9999-12-31.
    read = pd.Series(pd.NaT, index=series.index, dtype="datetime64[us, UTC]")
    for written in formats:
        parsed = pd.to_datetime(series, format=written, errors="coerce", utc=True)
        read = read.fillna(parsed.astype(read.dtype))
    return [(value, "") for value in read]


def _dates(name: str, *formats: str) -> _Reading:
    times = ("", " %H:%M", " %H:%M:%S")
    every = tuple(f"{f}{time}" for f in formats for time in times) if formats else ("ISO8601",)
    return _Reading(f"dates written {name}", "date", functools.partial(_read_dates, formats=every))


# If a table reads equally well in several ways, and nothing else decides, the first of them is
# taken.
_READINGS = {
    "date": (
        _dates("yyyy-mm-dd"),
        _dates("dd/mm/yyyy", "%d/%m/%Y", "%d.%m.%Y", "%d-%m-%Y"),
        _dates("mm/dd/yyyy", "%m/%d/%Y", "%m-%d-%Y"),
        _dates("yyyy/mm/dd", "%Y/%m/%d", "%Y.%m.%d"),
        _dates("dd/mm/yy", "%d/%m/%y", "%d.%m.%y", "%d-%m-%y"),
        _dates("mm/dd/yy", "%m/%d/%y", "%m-%d-%y"),
        _dates("with the month's name", "%d %b %Y", "%d %B %Y", "%b %d, %Y", "%B %d, %Y"),
    ),
    "number": (
        _Reading("numbers", "number", functools.partial(_read_numbers, decimal="."), -1),
        _Reading(
            "numbers with a decimal comma",
            "number",
            functools.partial(_read_numbers, decimal=","),
            1,
        ),
    ),
}


def _is_text(column: Any) -> bool:
    return kind_of(column) == "text" and not isinstance(column.dtype, pd.CategoricalDtype)


def _decimal_commas(table: pd.DataFrame, categorical: Collection[str]) -> tuple[float, int]:
    """The evidence that a table is written with decimal commas, negative for decimal points.

    How many more texts can only be read with a comma than only with a point, as a share of those
    that only one of them reads; and one for semicolons between fields, which stand there where
    commas are taken.
    """
    decided = np.zeros(2)
    for column in table.columns:
        if column in categorical or not _is_text(table[column]):
            continue
        texts = _texts(table[column]).value_counts()
        point, comma = (
            pd.notna([value for value, _ in reading.read([str(text) for text in texts.index])])
            for reading in _READINGS["number"]
        )
        # Prose with a few numbers in it is no evidence.
        if texts[point | comma].sum() > texts.sum() / 2:
            decided += [texts[point & ~comma].sum(), texts[comma & ~point].sum()]
    share = (decided[1] - decided[0]) / max(1, decided.sum())
    return float(share), int(table.attrs.get("delimiter") == ";")


def _choose(
    pair: list[Any], commas: list[tuple[float, int]], date_format: str | None
) -> list[_Found | None] | None:
    """How each table's text is read, None for a typed column; None where text remains text."""
    # A column that is typed in one table decides how the other one's text may be read.
    typed = {kind_of(part) for part in pair if not _is_text(part)} - {"empty"}
    if any(isinstance(part.dtype, pd.CategoricalDtype | pd.BooleanDtype) for part in pair):
        return None
    if any(dtypes.is_bool_dtype(part) for part in pair):
        return None
    counts = [_texts(part).value_counts() if _is_text(part) else None for part in pair]
    kinds = list(_READINGS.items())
    if date_format is not None:
        # A format that the caller gives comes before those that are tried.
        read = functools.partial(_read_dates, formats=(date_format,), least=1)
        kinds.insert(0, ("date", (_Reading(f"dates written {date_format}", "date", read),)))
    for kind, readings in kinds:
        if typed - {kind}:
            continue
        if kind == "number" and any(_are_codes(count) for count in counts if count is not None):
            continue
        found = _best(pair, counts, readings, commas)
        if found is not None:
            return found
    return None


def _texts(column: Any) -> Any:
    return column.dropna().astype(str).str.strip()


def _are_codes(counts: pd.Series) -> bool:
    """Whether leading zeros, or more digits than float64 holds, show that digits are codes."""
    padded = counts.index.astype(str).str.fullmatch(r"0\d+|[+-]?[1-9]\d{16,}")
    return bool(counts[padded].sum() > LEAST_SHARE * counts.sum())


def _best(
    pair: list[Any],
    counts: list[pd.Series | None],
    readings: tuple[_Reading, ...],
    commas: list[tuple[float, int]],
) -> list[_Found | None] | None:
    """For each table the reading of most of its values; ties are decided by both tables."""
    # Each convention is tried on each distinct text of each table.
    tried, shares = [], []
    for reading in readings:
        tried.append([])
        for count in counts:
            if count is None:
                tried[-1].append(None)
                continue
            texts = [str(text) for text in count.index]
            read = list(zip(texts, reading.read(texts), strict=True))
            values = {text: value for text, (value, _) in read if not pd.isna(value)}
            currencies = {text: currency for text, (_, currency) in read if currency}
            tried[-1].append(_Found(reading, values, currencies))
        shares.append(
            [
                0.0 if count is None else count[list(found.values)].sum() / count.sum()
                for count, found in zip(counts, tried[-1], strict=True)
            ]
        )
    chosen = []
    for table, count in enumerate(counts):
        # The table's own share first, then its other columns, then the other table: its size, how
        # it is written, its other columns. Last come the delimiters and the order of the readings.
        def evidence(k: int, table: int = table) -> tuple[float, ...]:
            own, other, comma = commas[table], commas[1 - table], readings[k].comma
            # In ascending order of these: what speaks for a reading enters with a minus sign.
            return (
                -shares[k][table],
                -comma * own[0],
                _distance(tried[k][table], pair[1 - table]),
                -sum(shares[k]),
                -comma * other[0],
                -comma * (own[1] + other[1]),
                k,
            )

        order = sorted(range(len(readings)), key=evidence)
        # Mostly words in one of the tables: the column stays text in both.
        if count is not None and shares[order[0]][table] <= 0.5:
            return None
        chosen.append(tried[order[0]][table])
    return chosen


def _distance(found: _Found | None, other: Any) -> float:
    """By how many factors of e a table's usual size differs from that of the other's numbers."""
    if found is None or found.reading.kind != "number" or kind_of(other) != "number":
        return 0.0
    sizes = [
        np.abs(np.asarray(values, float))
        for values in (list(found.values.values()), other.dropna().astype(float))
    ]
    sizes = [size[np.isfinite(size) & (size > 0)] for size in sizes]
    if not all(map(len, sizes)):
        return 0.0
    # A decimal comma taken for a separator of thousands is off by powers of ten, which medians
    # show.
    medians = [float(np.median(size)) for size in sizes]
    return abs(math.log(medians[0]) - math.log(medians[1]))


def _replace(
    column: str,
    pair: list[Any],
    found: list[_Found | None],
    few_values: int,
    names: tuple[str, str],
) -> tuple[dict[str, list[Any]], list[str]]:
    """The columns that take a column's place, by the suffixes of their names, and notes."""
    # Values, the words among them, and their currencies, table by table.
    kind = next(one.reading.kind for one in found if one is not None)
    values, words, currencies = [], [], []
    for part, one in zip(pair, found, strict=True):
        texts = part.astype(object).where(part.isna(), part.astype(str).str.strip())
        if one is None:
            values.append(_typed(part, kind))
            words.append(pd.Series(np.nan, index=part.index, dtype=object))
            currencies.append(pd.Series("(none)", index=part.index, dtype=object))
            continue
        values.append(_typed(texts.map(one.values), kind))
        words.append(texts.where(~texts.isin(one.values)).astype(object))
        found_there = [one.currencies.get(text, "(none)") for text in texts]
        currencies.append(pd.Series(found_there, index=part.index, dtype=object))
    # A word matters if one of the tables uses it often enough.
    shares: list[Any] = [part.value_counts() / max(1, len(part)) for part in words]
    every = sorted({*shares[0].index, *shares[1].index})
    # Few numbers are categories, and words are more of them.
    if kind == "number" and every and few_distinct(pd.concat(values), few_values):
        shown = ", ".join(every[:3]) + (", …" if len(every) > 3 else "")
        notes = [f"few different numbers with words among them ({shown}): compared as categories"]
        mixed = [
            number.astype(object).where(number.notna(), word)
            for number, word in zip(values, words, strict=True)
        ]
        return {"": mixed}, notes
    new, notes = {"": values}, _notes(found, words, kind, names)
    # Rare words count as empty cells; frequent words are told from those, and from each other.
    frequent = [w for w in every if max(share.get(w, 0) for share in shares) >= LEAST_SHARE]
    labels = [
        word.astype(object).where(word.isin(frequent), "(missing)").where(value.isna())
        for value, word in zip(values, words, strict=True)
    ]
    seen: Any = sum(
        part.value_counts(normalize=True).reindex([*frequent, "(missing)"], fill_value=0)
        for part in labels
    )
    if (seen > 0).sum() > 1:
        # Numbers share the label of the most frequent: "missing" is a column of its own already.
        new[" (words)"] = [part.fillna(seen.idxmax()) for part in labels]
        notes.append(f"{column} (words) tells apart {', '.join(seen[seen > 0].index)}")
    if len({c for part in currencies for c in part.unique()} - {"(none)"}) > 1:
        new[" (currency)"] = currencies
    return new, notes


def _typed(values: Any, kind: str) -> Any:
    if kind == "number":
        numbers: Any = pd.to_numeric(values)
        return numbers.astype(float)
    return pd.to_datetime(values, utc=True)


def _notes(
    found: list[_Found | None], words: list[pd.Series], kind: str, names: tuple[str, str]
) -> list[str]:
    """How each table was read, and how many of its values were not."""
    # A reading that both tables share needs no names.
    how = {name: one.name for name, one in zip(names, found, strict=True) if one}
    if len(set(how.values())) == 1 and len(how) == 2:
        notes = [f"text read as {next(iter(how.values()))}"]
    else:
        notes = [f"text read as {reading} in {name}" for name, reading in how.items()]
    for word, name in zip(words, names, strict=True):
        if count := word.notna().sum():
            common = word.value_counts()
            shown = ", ".join(f"“{text}”" for text in common.index[:3])
            more = ", …" if len(common) > 3 else ""
            notes.append(
                f"{count} of {len(word)} values in {name} are no {kind}s and taken as missing: "
                f"{shown}{more}"
            )
    return notes
