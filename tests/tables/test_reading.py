"""Numbers and dates as spreadsheets write them, against values written by hand."""

import numpy as np
import pandas as pd
import pytest

from divjax import tables
from divjax.tables.reading import read_alike


def read(p, q, **options):
    found = read_alike(pd.DataFrame({"x": p}), pd.DataFrame({"x": q}), **options)
    return found.x, found.y, found.notes


def numbers(values, **options):
    """What a column says beside one of plain numbers."""
    return read(values, np.arange(30.0), **options)[0]["x"].tolist()


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (["1,234.50", "-2", "+3.5", ".5", "1e-3"], [1234.5, -2, 3.5, 0.5, 1e-3]),
        (["1.234,50", "-2,25", "7"], [1234.5, -2.25, 7]),
        (["1 234", "1\u202f234,5", "1'234'567"], [1234, 1234.5, 1234567]),
        (["12,34,567", "1,00,000"], [1234567, 100000]),
        (["$1,200", "-$3", "$-4.5", "(£12)", "−7 €", "8 USD"], [1200, -3, -4.5, -12, -7, 8]),
        (["45%", "4.5 %", "-1%"], [0.45, 0.045, -0.01]),
    ],
)
def test_numbers_are_read_as_they_are_meant(written, expected):
    np.testing.assert_allclose(numbers(written), expected, rtol=1e-12)


@pytest.mark.parametrize("words", [["A1", "B2", "C3"], ["1-2", "3-4"], ["1,2,3"], ["007", "012"]])
def test_codes_are_not_numbers(words):
    p, q, notes = read(words, words)
    assert p["x"].tolist() == q["x"].tolist() == words
    assert not notes


def test_a_thousand_is_what_its_own_table_shows_it_to_be():
    """1,234 is a thousand beside 1,234.5, and one beside 1,5; by the other table, where it is."""
    for column, other, expected in (
        (["1,234", "0.5"], ["1,234"], 1234),
        (["1,234", "0,5"], ["1,234"], 1.234),
        (["1,234"], ["1,5", "2,75"], 1.234),
        (["1,234"], ["1,234"], 1234),
        # No group of digits begins with a zero; a column that is typed says what is near it.
        (["0,512", "1,234"], ["0,512"], 0.512),
        (["-0,512"], [0.25, -1.0], -0.512),
        (["0.512"], ["0.512"], 0.512),
        (["1.234", "0.5"], ["0,5"], 1.234),
        (["1,234", "2,345"], [1.5, 2.5], 1.234),
        (["1,234", "2,345"], [1500.0, 2000.0], 1234),
        (["1.234", "2.345"], [1500, 2000], 1234),
    ):
        p, q, _ = read(column, other)
        assert p["x"].iloc[0] == expected
        if other == ["1,234"]:
            assert q["x"].iloc[0] == expected


def test_another_column_of_a_file_shows_how_its_numbers_are_written():
    """Four decimals are no group of three digits."""
    plain = pd.DataFrame({"x": ["1,234", "2,345"], "w": ["a", "b"]})
    for other in (plain, plain.assign(x=["3,456", "4,567"])):
        found = read_alike(plain.assign(w=["0,1234", "2,5"]), other.assign(w=["1", "2"]))
        assert found.x["x"].tolist() == [1.234, 2.345]
        assert found.y["x"].max() < 10


def test_semicolons_between_fields_speak_for_decimal_commas(tmp_path):
    (tmp_path / "p.csv").write_text("x;y\n1,234;a\n2,345;b\n")
    (tmp_path / "q.csv").write_text('x,y\n"3,456",a\n"4,567",b\n')
    p, q = (tables.read_table(tmp_path / f"{name}.csv")[0] for name in "pq")
    assert read_alike(p, q).x["x"].tolist() == [1.234, 2.345]
    assert read_alike(q, p).x["x"].tolist() == [3.456, 4.567]
    assert read_alike(q, q).x["x"].tolist() == [3456, 4567]


def test_the_tables_may_be_written_differently():
    p, q, notes = read(["$1,234.50", "$2.25"], ["1.234,50 $", "2,25 $"])
    assert p["x"].tolist() == q["x"].tolist() == [1234.5, 2.25]
    assert notes == (
        "x: text read as numbers in x",
        "x: text read as numbers with a decimal comma in y",
    )


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (["31/12/2024", "01/02/2023"], ["2024-12-31", "2023-02-01"]),
        (["31.12.2024", "1.2.2023"], ["2024-12-31", "2023-02-01"]),
        (["12/31/2024", "01/02/2023"], ["2024-12-31", "2023-01-02"]),
        (["2024/12/31", "2023/01/02"], ["2024-12-31", "2023-01-02"]),
        (["31/12/24", "01/02/23"], ["2024-12-31", "2023-02-01"]),
        (["31 Dec 2024", "2 Jan 2023"], ["2024-12-31", "2023-01-02"]),
        (["20241231", "2023-01-02 12:00"], ["2024-12-31", "2023-01-02T12:00"]),
        (["31/12/2024 06:30", "01/02/2023"], ["2024-12-31T06:30", "2023-02-01"]),
    ],
)
def test_dates_are_read_as_they_are_meant(written, expected):
    expected = pd.to_datetime(expected, format="ISO8601")
    p, q, _ = read(written, expected)
    np.testing.assert_array_equal(pd.to_datetime(p["x"]).dt.tz_localize(None), expected.to_numpy())
    assert (p["x"] == pd.to_datetime(q["x"], utc=True)).all()


@pytest.mark.parametrize("separator", ["/", ".", "-"])
def test_dates_are_named_as_they_are_written(separator):
    p, q = (separator.join(("31", "12", year)) for year in ("2024", "2023"))
    *_, notes = read([p], [q])
    named = separator.join(("dd", "mm", "yyyy"))
    assert notes == (f"x: text read as dates written {named}",)
    assert read([p], ["2023-12-31"])[2] == (
        f"x: text read as dates written {named} in x",
        "x: text read as dates written yyyy-mm-dd in y",
    )


def test_days_before_months_unless_the_other_table_says_otherwise():
    """1/2 is the first of February; beside a table with 12/31, the second of January."""
    alone, *_ = read(["01/02/2023"], ["03/04/2023"])
    beside, *_ = read(["01/02/2023"], ["12/31/2023"])
    assert str(alone["x"].iloc[0].date()) == "2023-02-01"
    assert str(beside["x"].iloc[0].date()) == "2023-01-02"


def test_one_bad_cell_is_missing_and_said_to_be():
    p, q, notes = read([*map(str, range(99)), "n.k."], np.arange(50))
    np.testing.assert_array_equal(p["x"], [*range(99), np.nan])
    assert list(p) == ["x"]
    assert q["x"].tolist() == list(range(50))
    assert "x: 1 of 100 values in x are no numbers and taken as missing: “n.k.”" in notes
    p, _, notes = read(["2024-03-01"] * 9 + ["soon"], ["2024-03-01"] * 9)
    assert p["x"].isna().tolist() == [False] * 9 + [True]
    assert "x: 1 of 10 values in x are no dates and taken as missing: “soon”" in notes


def test_words_are_told_from_each_other_and_from_empty_cells():
    """Half of p's words are another one in q: as missing values alone they would be the same."""
    many = [str(n) for n in range(200)]
    p, q, notes = read([*many, *["refused"] * 10, None], [*many, *["unknown"] * 10, None])
    np.testing.assert_array_equal(p["x"].isna(), q["x"].isna())
    assert (p["x (words)"] != q["x (words)"]).sum() == 10
    assert p["x (words)"].iloc[-1] == "(missing)"
    # Numbers share a label with the most frequent: not a function of what is missing.
    assert p["x (words)"].nunique() == 2
    assert "x: x (words) tells apart refused, unknown, (missing)" in notes


def test_few_numbers_with_words_are_categories():
    p, q, notes = read(["1", "2", "refused"] * 30, [1, 2.0, 2] * 30)
    assert p["x"].tolist()[:3] == [1, 2, "refused"]
    assert q["x"].tolist()[:3] == [1, 2, 2]
    assert notes == (
        "x: few different numbers with words among them (refused): compared as categories",
    )


def test_currencies_are_told_apart():
    p, q, _ = read(["$5", "$6", "7"], ["€5", "€6", "€7"])
    assert p["x"].tolist() == q["x"].tolist() == [5, 6, 7]
    assert p["x (currency)"].tolist() == ["$", "$", "(none)"]
    assert set(q["x (currency)"]) == {"€"}
    assert list(read(["$5", "$6"], ["$5", "$7"])[0]) == ["x"]


def test_more_words_than_numbers_are_text():
    p, q, notes = read(["1", "two", "three"], [1, 2, 3])
    assert p["x"].tolist() == ["1", "two", "three"]
    assert q["x"].tolist() == [1, 2, 3]
    assert not notes


@pytest.mark.parametrize(
    ("p", "options"),
    [
        (pd.Categorical(["1", "2"]), {}),
        ([True, False], {}),
        (["1", "2"], {"categorical": ("x",)}),
    ],
)
def test_what_is_declared_is_left_alone(p, options):
    found = read(p, ["1", "2"], **options)
    assert found[1]["x"].tolist() == ["1", "2"]


def test_reading_twice_changes_nothing():
    rng = np.random.default_rng(0)
    words = np.array(["a", "b", None], dtype=object)
    mixed = [
        f"{v:.3f}" if v > -1.5 else words[k]
        for v, k in zip(rng.normal(size=300), rng.integers(3, size=300), strict=True)
    ]
    once = read(mixed, mixed[::-1])
    twice = read_alike(once[0], once[1])
    pd.testing.assert_frame_equal(twice.x, once[0])
    pd.testing.assert_frame_equal(twice.y, once[1])
    assert not twice.notes


def test_columns_of_one_table_and_the_users_own_frames_stay():
    p, q = pd.DataFrame({"x": ["1", "2"], "a": ["3", "4"]}), pd.DataFrame({"x": ["5", "6"]})
    before = p.copy()
    found = read_alike(p, q)
    pd.testing.assert_frame_equal(p, before)
    assert found.x["a"].tolist() == ["3", "4"]
    assert found.x["x"].tolist() == [1, 2]
