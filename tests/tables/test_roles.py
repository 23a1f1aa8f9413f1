"""What a caller knows of columns."""

import numpy as np
import pandas as pd
import pytest

from divjax.tables import compare_tables
from divjax.tables.reading import read_alike
from divjax.tables.roles import as_missing, suspected_identifiers

NAMES = ("one", "other")


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ([1.0, -999.0, 3.0], "-999"),
        ([1, -999, 3], -999),
        (["a", " n/a", "b"], "n/a"),
        (pd.Categorical(["a", "n/a", "b"]), "n/a"),
        (["1", "-999", "2"], -999),
        (pd.array([1, -999, None], dtype="Int64"), "-999"),
        (pd.to_datetime(["2020-01-01", "1900-01-01", "2020-01-02"]), "1900-01-01"),
    ],
)
def test_a_value_that_stands_for_a_missing_one(column, value):
    given = pd.DataFrame({"column": column})
    (one, other), notes = as_missing((given, given), [value], NAMES)
    assert one["column"].isna()[1]
    assert one["column"].isna().sum() == given["column"].isna().sum() + 1
    assert one.equals(other)
    assert notes == [f"“{value}” taken as missing, in 2 cells"]
    assert not given["column"].isna()[1]


def test_a_value_that_is_nowhere_is_said():
    given = pd.DataFrame({"number": [1.0, np.nan], "text": ["a", None], "truth": [True, False]})
    (one, _), notes = as_missing((given, given), ["n.a.", "99"], NAMES)
    assert one.equals(given)
    assert notes == [
        "“n.a.” taken as missing, in no cell of one and other",
        "“99” taken as missing, in no cell of one and other",
    ]


def test_dates_that_only_their_format_tells():
    """Digits alone are codes or numbers, and 03/04/05 has three readings."""
    x = pd.DataFrame({"day": ["01022003", "25122003"] * 20, "short": ["03/04/05"] * 40})
    plain = read_alike(x, x).x
    assert not pd.api.types.is_datetime64_any_dtype(plain["day"])
    told = read_alike(x, x, date_format="%d%m%Y").x
    assert told["day"][0] == pd.Timestamp("2003-02-01", tz="UTC")
    told = read_alike(x, x, date_format="%y/%m/%d").x
    assert told["short"][0] == pd.Timestamp("2003-04-05", tz="UTC")


def test_a_format_that_reads_no_column_is_refused():
    x = pd.DataFrame({"day": ["2020-01-01", "2020-01-02"] * 30, "size": np.arange(60.0) ** 2})
    with pytest.raises(ValueError, match=r"date_format must be .*'%d/%m/%Y' reads half of no"):
        compare_tables(x, x, date_format="%d/%m/%Y", quick=True)


def test_numbers_that_are_none_and_names_that_are_misspelt_are_refused():
    x = pd.DataFrame({"job": ["clerk", "nurse"] * 30, "size": np.arange(60.0) ** 2})
    with pytest.raises(ValueError, match="as_number must name columns of numbers; got 'job'"):
        compare_tables(x, x, as_number=["job"], quick=True)
    with pytest.raises(ValueError, match=r"got \['Size'\], .*\. Is size meant\?"):
        compare_tables(x, x, drop=["Size"], quick=True)


def test_whole_numbers_that_count_rows_may_be_identifiers():
    """Squares leave gaps, and measurements repeat: neither counts rows."""
    rng = np.random.default_rng(0)
    first = pd.DataFrame({"id": np.arange(60), "square": np.arange(60) ** 2 * 9})
    first["age"] = rng.integers(20, 70, 60)
    other = first.assign(id=rng.permutation(60) + 60)
    (note,) = suspected_identifiers((first, other))
    assert note.startswith("id: whole numbers of which none occurs twice")
    assert note.endswith("(--id id)")
    assert not suspected_identifiers((first[:20], other[:20]))


def test_a_column_whose_name_differs_by_case_is_named():
    x = pd.DataFrame({"size": np.arange(60.0) ** 2, "pay": np.sqrt(np.arange(60.0))})
    found = compare_tables(x, x.rename(columns={"pay": " Pay"}), quick=True)
    assert any(note.startswith("pay and  Pay, each in one of real and ") for note in found.notes)
