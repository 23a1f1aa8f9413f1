"""Verdicts on tables whose difference is known, and what is refused."""

import json

import numpy as np
import pandas as pd
import pytest
from threadpoolctl import threadpool_limits

from divjax.tables import compare_tables
from divjax.tables.column_tests import adjust_by_holm, column_table
from divjax.tables.encoding import encode
from divjax.tables.verdict import detectable_auc

NUM_ROWS = 800


@pytest.fixture(autouse=True)
def one_thread():
    with threadpool_limits(1, "openmp"):
        yield


def table(seed, num_rows=NUM_ROWS, dependence=0.9):
    """Two dependent numbers, a third one, a category and a number with gaps."""
    rng = np.random.default_rng(seed)
    age, income, size = rng.normal(size=(3, num_rows))
    rest = np.sqrt(1 - dependence**2)
    return pd.DataFrame(
        {
            "age": 40 + 10 * age,
            "income": np.exp(dependence * age + rest * income),
            "size": size,
            "city": rng.choice(["a", "b", "c"], num_rows, p=[0.5, 0.3, 0.2]),
            "gaps": np.where(rng.random(num_rows) < 0.2, np.nan, rng.normal(size=num_rows)),
        }
    )


@pytest.fixture(scope="module")
def same():
    with threadpool_limits(1, "openmp"):
        return compare_tables(table(0), table(1), quick=True)


def test_one_distribution_is_not_called_different(same):
    verdict = same.verdict
    assert verdict.different is False
    assert verdict.sentence.startswith("No difference found (p = ")
    assert f"{detectable_auc((NUM_ROWS, NUM_ROWS), 0.05):.3f}" in verdict.sentence
    assert verdict.columns == ()
    assert not same.columns["significant"].any()
    assert same.js.interval.lower == 0
    assert abs(same.auc.value - 0.5) < 4 * same.auc.std_error
    assert len(repr(same).splitlines()) <= 3


def test_a_shifted_column_is_named_first():
    changed = table(1)
    changed["size"] += 0.8
    found = compare_tables(table(0), changed, quick=True)
    assert found.verdict.different
    assert found.verdict.columns[0] == found.columns["column"][0] == "size"
    assert "size" in found.verdict.sentence
    assert found.columns["significant"].tolist() == [True, False, False, False, False]
    # JS of two normals .8 apart is .106 bits, by quadrature.
    assert abs(found.columns["js"][0] - 0.106) < 4 * found.columns["error"][0]
    assert found.js.interval.lower < 0.106 < found.js.interval.upper


@pytest.mark.parametrize("num_rows", [120, 300])
def test_tables_differ_at_least_as_much_as_one_of_their_columns(num_rows):
    """Fifty cities a table, none in both: one bit, though trees see no level of so few rows."""
    rng = np.random.default_rng(0)
    cities = rng.integers(50, size=(2, num_rows)) + np.array([[0], [50]])
    frames = [pd.DataFrame({"city": [f"c{k}" for k in own], "z": own % 3}) for own in cities]
    found = compare_tables(frames[0], frames[1], quick=True)
    assert found.verdict.different
    assert found.verdict.columns == ("city",)
    low, high = found.verdict.js_interval
    assert 0.2 < low < found.verdict.js < high == 1
    assert float(found.kl.interval[1]) == np.inf


def test_a_dependence_that_is_broken_is_found_and_named():
    found = compare_tables(table(0), table(1, dependence=0.0), quick=True)
    assert found.verdict.different
    assert not found.columns["significant"].any()
    assert set(found.verdict.columns) == {"age", "income"}
    assert "No column differs alone: the dependences among " in found.verdict.sentence


def test_all_columns_shuffled_is_a_difference_of_dependences():
    rng, real = np.random.default_rng(0), table(0)
    shuffled = table(1).apply(lambda column: rng.permutation(column))
    found = compare_tables(real, shuffled, quick=True)
    assert found.verdict.different
    assert not found.columns["significant"].any()
    assert {"age", "income"} <= set(found.verdict.columns)


def test_one_bad_cell_is_noted_and_changes_no_verdict():
    typed = table(1)
    typed.loc[17, "age"] = 4e7
    found = compare_tables(table(0), typed, quick=True)
    assert found.verdict.different is False
    assert "age: row 17 of synthetic (counted from 0) holds 4e+07, far from all others" in (
        found.notes
    )


def test_copies_are_counted_against_what_chance_makes():
    real, copied = table(0), table(1)
    copied.iloc[:50] = real.iloc[100:150]
    found = compare_tables(real, copied, quick=True)
    expected = "50 of the 800 rows of synthetic are rows of real; 0 would be, were they drawn like"
    assert any(note.startswith(expected) for note in found.notes)


def test_missing_values_that_are_more_are_a_difference_of_their_column():
    changed = table(1)
    changed.loc[::4, "gaps"] = np.nan
    found = compare_tables(table(0), changed, quick=True)
    assert found.verdict.different
    assert found.verdict.columns == ("gaps",)


def test_a_lattice_in_one_table_is_a_difference_of_its_column():
    changed = table(1)
    changed["size"] = changed["size"].round(1)
    found = compare_tables(table(0), changed, quick=True)
    assert found.verdict.columns == ("size",)
    assert found.columns["js"][0] > 0.5
    assert any("have a value that repeats in synthetic" in note for note in found.notes)


def test_with_few_rows_it_cannot_be_told():
    found = compare_tables(table(0, 15), table(1), quick=True)
    assert found.verdict.different is None
    assert "at least 20 rows, and one holds 15" in found.verdict.sentence
    content = json.loads(found.to_json())
    assert content["verdict"]["js"] is None
    assert content["verdict"]["different"] is None
    assert "Cannot tell" in found.to_text()
    assert "nan" not in found.to_text()
    assert "Cannot tell" in found.to_html()


def test_many_rows_are_thinned_and_it_is_said():
    found = compare_tables(table(0, 1600), table(1), max_rows=800, quick=True)
    assert found.num_rows == (800, 800)
    assert "800 of the 1600 rows of real (50.0%) drawn at random" in found.notes


def test_columns_are_dropped_or_read_as_asked():
    rng = np.random.default_rng(0)

    def columns():
        return pd.DataFrame(
            {
                "id": np.arange(NUM_ROWS),
                "subject": np.arange(NUM_ROWS) // 2,
                "code": rng.integers(1000, 1030, NUM_ROWS),
                "grade": rng.integers(1, 6, NUM_ROWS).astype(str),
                "x": np.where(rng.random(NUM_ROWS) < 0.1, -999, rng.normal(size=NUM_ROWS)),
                "day": [f"{day:02}011999" for day in rng.integers(1, 31, NUM_ROWS)],
            }
        )

    options = {"drop": "id", "ids": "subject", "as_category": ["code"], "as_number": ["grade"]}
    options |= {"missing": -999, "date_format": "%d%m%Y"}
    found = compare_tables(columns(), columns(), quick=True, **options)
    assert set(found.columns["column"]) == {"code", "grade", "x", "day"}
    assert found.left_out == {"id": "as asked", "subject": "an identifier"}
    assert found.tables[0]["grade"].dtype == float
    assert found.tables[0]["x"].isna().mean() > 0.05
    assert found.tables[0]["day"].max() == pd.Timestamp("1999-01-30", tz="UTC")
    notes = "\n".join(found.notes)
    assert f"subject: {NUM_ROWS} of {NUM_ROWS} rows of real share it with another row" in notes
    assert f"subject: {NUM_ROWS // 2} of {NUM_ROWS // 2} identifiers are in both tables" in notes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"drop": ["nothing"]}, r"drop must name columns of either table; got \['nothing'\]"),
        ({"as_category": ["no"]}, r"as_category must name columns of both tables; got \['no'\]"),
        ({"as_number": ["no"]}, r"as_number must name columns of both tables; got \['no'\]"),
        ({"drop": ["age"], "as_number": ["age"]}, "drop and as_number must name different columns"),
        ({"ids": ["no"]}, r"ids must name columns of both tables; got \['no'\]"),
        ({"date_format": "dd.mm.yy"}, "date_format must be a format of strptime"),
        ({"level": 1.5}, "level"),
        ({"max_rows": 3}, "max_rows"),
        ({"names": ("a", "a")}, "names must be two different texts"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        compare_tables(table(0), table(1), **options)


def test_other_tables_than_frames_are_refused():
    with pytest.raises(ValueError, match="synthetic must be a pandas DataFrame; got ndarray"):
        compare_tables(table(0), np.zeros((5, 2)))
    with pytest.raises(ValueError, match="real must name its columns uniquely"):
        compare_tables(pd.DataFrame(np.zeros((5, 2)), columns=["a", "a"]), table(0))


def test_columns_of_every_kind_are_taken():
    """Dates, booleans, gaps, infinities, huge and tiny numbers, amounts; without a warning."""

    def every(seed):
        rng = np.random.default_rng(seed)
        days = pd.to_timedelta(rng.integers(0, 1000, NUM_ROWS), unit="D")
        gone, numbers = rng.random(NUM_ROWS) < 0.1, rng.normal(size=NUM_ROWS)
        return pd.DataFrame(
            {
                "date": pd.Timestamp("2020-01-01") + days,
                "flag": rng.random(NUM_ROWS) < 0.3,
                "empty": [None] * NUM_ROWS,
                "constant": 1,
                5: numbers,
                "integer": pd.array(
                    np.where(gone, None, rng.integers(0, 500, NUM_ROWS)), dtype="Int64"
                ),
                "category": pd.Categorical(rng.choice(list("xyz"), NUM_ROWS)),
                "infinite": np.where(gone, np.inf, rng.normal(size=NUM_ROWS)),
                "tiny": 1e-300 * rng.normal(size=NUM_ROWS),
                "huge": 1e300 * rng.normal(size=NUM_ROWS),
                "amount": [f"€ {v:.2f}".replace(".", ",") for v in 1000 * rng.random(NUM_ROWS)],
            },
            index=[f"row {k}" for k in range(NUM_ROWS)],
        )

    found = compare_tables(every(0), every(1), quick=True, as_number=["flag"])
    assert found.verdict.different is False
    assert set(found.left_out) == {"empty", "constant"}
    assert {"5", "date", "amount"} <= set(found.columns["column"])
    assert "date" in found.to_html()


def test_two_rows_are_few_and_no_error():
    pair = [pd.DataFrame({"a": [1.0, other], "b": ["x", "y"]}) for other in (2.0, 3.0)]
    assert compare_tables(*pair).verdict.different is None


def test_json_begins_with_the_verdict_and_holds_numbers(same):
    content = json.loads(same.to_json())
    assert next(iter(content)) == "verdict"
    keys = {"different", "sentence", "p_value", "level", "js", "js_interval", "columns"}
    assert set(content["verdict"]) == keys
    for name in ("js", "kl", "auc"):
        assert isinstance(content[name]["value"], float)
        assert len(content[name]["interval"]) == 2
    assert set(content["columns"][0]) == {"column", "js", "error", "p_value", "significant"}
    assert len(content["columns"]) == 5
    assert content["num_rows"] == [NUM_ROWS, NUM_ROWS]


def test_html_is_one_small_file(same):
    page = same.to_html()
    assert page.startswith("<!DOCTYPE html>")
    assert len(page.encode()) < 1_000_000
    assert "http" not in page
    assert page.count("data:image/png;base64,") == 4
    assert "0.5 is guessing" in page  # the legend


def test_names_are_escaped_in_html():
    odd = table(0).rename(columns={"age": "<b>$age$"})
    other = table(1).rename(columns={"age": "<b>$age$"})
    # Between two dollar signs there would be mathematics, which this name is not.
    page = compare_tables(odd, other, quick=True, names=("<i>", "$a_$")).to_html()
    assert "<b>$" not in page
    assert "<i>" not in page


def test_text_and_csv_hold_the_columns(same):
    text = same.to_text()
    assert text.startswith(same.verdict.sentence)
    assert "- AUC: How often a classifier tells a row of one table from a row of the other" in text
    lines = same.to_csv().splitlines()
    assert lines[0] == "column,js,error,p_value,significant"
    assert len(lines) == 6


def test_holm_as_by_hand():
    """.01·4, then .02·3, .03·2 and .04·1, none smaller than the one before."""
    np.testing.assert_allclose(adjust_by_holm([0.04, 0.01, 0.03, 0.02]), [0.06, 0.04, 0.06, 0.06])


def test_column_tests_keep_their_level():
    """Of 100 pairs of one distribution at most 5 % have a significant column, within 3 errors."""
    alarms = 0
    for seed in range(100):
        encoded = encode(table(2 * seed, 150), table(2 * seed + 1, 150), repeats=True)
        columns = column_table(np.random.default_rng(seed), encoded, 0.05)
        alarms += columns["significant"].any()
    assert alarms <= 100 * 0.05 + 3 * np.sqrt(100 * 0.05 * 0.95)


@pytest.mark.slow
def test_random_halves_are_rarely_called_different():
    """At most 5 of 100 are expected; more than 5 + 3 standard errors are not."""
    alarms = 0
    for seed in range(100):
        whole = table(seed, 300)
        rows = np.random.default_rng(seed + 1000).permutation(300)
        pair = whole.iloc[rows[:150]], whole.iloc[rows[150:]]
        alarms += compare_tables(*pair, seed=seed, quick=True).verdict.different is True
    assert alarms <= 5 + 3 * np.sqrt(100 * 0.05 * 0.95)
