"""A csv file as a data frame: its delimiter, its encoding and its columns' types are found out."""

import csv
import io
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

__all__ = ["read_table"]

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
# Codes that numbers would destroy: leading zeros, more digits than float64 holds.
_CODES = re.compile(r"0\d+|[+-]?\d{17,}")
_SAMPLED_LINES = 50


def read_table(path: str | Path) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Read a csv file with a header.

    Fields are separated by commas, semicolons, tabs or bars, whichever separates the lines most
    consistently. The encoding is UTF-8, UTF-16 with its mark, or else Windows-1252: Latin-1 with €
    and quotation marks. `?` and the usual words are missing values. Columns whose values are all
    numbers are numbers; digits that are codes, and everything else, are text: `read_alike` reads
    it. A first column without a name that counts the rows is left out.

    Args:
        path: of the file.

    Returns:
        The table, and notes on how it was read. Its `attrs["delimiter"]` is what separates
        fields: beside semicolons, commas in numbers are more often decimal ones.

    Raises:
        ValueError: if the file is empty or no text, a line has more fields than the header, or the
            header has a name twice.
        OSError: if the file cannot be read.
    """
    name, content = Path(path).name, Path(path).read_bytes()
    text, notes = _decode(name, content)
    if not text.strip():
        raise ValueError(f"{name} must hold a header and rows; it is empty.")
    delimiter = _find_delimiter(text)
    if delimiter != ",":
        notes.append(f"{name}: fields are separated by {DELIMITERS[delimiter]}")
    # Names are those of the file: pandas would rename the second of two.
    header = [field.strip() for field in next(_rows(text, delimiter))]
    if twice := sorted({field for field in header if field and header.count(field) > 1}):
        raise ValueError(f"{name} must name its columns uniquely; got twice: {twice}.")
    table: Any = _parse(name, text, delimiter)
    table.columns = [field or f"column {place}" for place, field in enumerate(header, 1)]
    table = table.apply(_typed)
    if not header[0] and _counts_rows(table.iloc[:, 0]):
        table = table.iloc[:, 1:]
        notes.append(f"{name}: the first column has no name and counts the rows: left out")
    # Semicolons hint at decimal commas, when the text is read as numbers.
    table.attrs["delimiter"] = delimiter
    return table, tuple(notes)


def _decode(name: str, content: bytes) -> tuple[str, list[str]]:
    # Spreadsheets write a mark of the encoding first.
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16"), [f"{name}: read as UTF-16"]
    # A workbook or an archive would be a table of its bytes.
    if b"\0" in content or content.startswith(b"\x1f\x8b"):
        raise ValueError(
            f"{name} must be text with a header and rows; it is binary, or UTF-16 without its mark."
        )
    # Windows writes € and quotation marks by bytes that Latin-1 has no letters for.
    windows = [f"{name}: not UTF-8, read as Windows-1252"]
    for encoding, notes in (("utf-8-sig", []), ("cp1252", windows)):
        try:
            return content.decode(encoding), notes
        except UnicodeDecodeError:
            continue
    return content.decode("latin-1"), [f"{name}: not UTF-8, read as Latin-1"]


def _rows(text: str, delimiter: str) -> Iterator[list[str]]:
    """The fields of each line, without blank lines, which pandas passes over too."""
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    return (row for row in rows if len(row) > 1 or "".join(row).strip())


def _find_delimiter(text: str) -> str:
    """The one by which most of the first lines have as many fields as the header, then the most."""
    # The first lines are enough, and large files are read once.
    start = "".join(io.StringIO(text, newline="").readlines()[:_SAMPLED_LINES])

    def quality(delimiter: str) -> tuple[float, int]:
        try:
            lengths = list(map(len, _rows(start, delimiter)))
        except csv.Error:
            return 0.0, 0
        if not lengths or lengths[0] < 2:
            return 0.0, 0
        return sum(length == lengths[0] for length in lengths) / len(lengths), lengths[0]

    # The first of equals: a file of one column has commas.
    return max(DELIMITERS, key=quality)


def _parse(name: str, text: str, delimiter: str) -> pd.DataFrame:
    """All fields as text, missing ones as NaN."""
    options: dict[str, Any] = {"dtype": str, "na_values": ["?"], "skipinitialspace": True}
    try:
        with warnings.catch_warnings():
            # Without an index column pandas warns of longer lines, and cuts them.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            return pd.read_csv(io.StringIO(text), sep=delimiter, index_col=False, **options)
    except (pd.errors.ParserError, pd.errors.ParserWarning, pd.errors.EmptyDataError) as error:
        raise ValueError(
            f"{name} must have lines of as many fields as its header has; {error}"
        ) from error


def _typed(column: Any) -> Any:
    """Numbers where all values are numbers and none is a code."""
    # Codes stay text: as numbers they would lose their zeros or digits.
    texts = column.dropna().str.strip()
    if len(texts) == 0 or texts.str.fullmatch(_CODES).any():
        return column
    numbers: Any = pd.to_numeric(texts, errors="coerce")
    return column if numbers.isna().any() else numbers.reindex(column.index)


def _counts_rows(column: Any) -> bool:
    if not pd.api.types.is_numeric_dtype(column) or not len(column):
        return False
    count = np.arange(len(column))
    return any((column == count + start).all() for start in (0, 1))
