"""The encoding of two tables, column by column, against matrices made by hand."""

import datetime
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from divjax import tables
from divjax.tables.values import numbers_alike


def frame(**columns):
    return pd.DataFrame(columns)


def repeated(values, times=20):
    return [value for value in values for _ in range(times)]


def test_numbers_are_centred_and_missing_ones_are_said_to_be():
    p, q = frame(x=[1.0, 2.0, np.nan]), frame(x=[4.0, np.inf, 10.0])
    encoded = tables.encode(p, q)
    assert encoded.columns == ("x", "x (missing)")
    np.testing.assert_array_equal(encoded.x, [[-2, 0], [-1, 0], [0, 1]])  # the median is 3
    np.testing.assert_array_equal(encoded.y, [[1, 0], [0, 1], [7, 0]])
    assert "x: missing: 33.3% of x, 0.0% of y" in encoded.notes
    assert "x: 1 infinite value taken as missing" in encoded.notes


def test_large_numbers_keep_the_digits_that_vary():
    offset = 1.7e9  # float32 tells no neighbours apart here
    p, q = frame(x=offset + np.arange(5.0)), frame(x=offset + np.arange(5.0, 10.0))
    encoded = tables.encode(p, q)
    np.testing.assert_array_equal(encoded.x[:, 0].astype(np.float32), np.arange(5) - 4.5)


def test_categories_are_indicators_of_all_levels_but_the_most_frequent():
    """`c` never occurs in x: a column that is zero there. Missing is a level."""
    p, q = frame(x=["a", "a", "b", None]), frame(x=["a", "c", "c", "b"])
    encoded = tables.encode(p, q)
    assert encoded.columns == ("x=b", "x=c", "x=(missing)")
    np.testing.assert_array_equal(encoded.x, [[0, 0, 0], [0, 0, 0], [1, 0, 0], [0, 0, 1]])
    np.testing.assert_array_equal(encoded.y, [[0, 0, 0], [0, 1, 0], [0, 1, 0], [1, 0, 0]])
    assert "x: 1 level never occurs in x: c" in encoded.notes
    assert "x: 1 level never occurs in y: (missing)" in encoded.notes
    assert "x: missing: 25.0% of x, 0.0% of y" in encoded.notes


def test_each_table_weighs_the_same_where_levels_are_ordered():
    """Level b is all of the small table, a 60 % of the large one: b is the more frequent."""
    p, q = frame(x=["b"] * 4), frame(x=["a"] * 60 + ["c"] * 40)
    assert tables.encode(p, q).columns == ("x=a", "x=c")


def test_few_distinct_numbers_are_categories():
    p, q = frame(x=repeated([0, 1, 2])), frame(x=repeated([0.0, 1.0, 1.0]))
    encoded = tables.encode(p, q)
    assert encoded.columns == ("x=0", "x=2")  # 1 is the most frequent
    np.testing.assert_array_equal(encoded.x[[0, 20, 40]], [[1, 0], [0, 0], [0, 1]])
    assert tables.encode(p, q, few_values=2).columns == ("x",)
    with_fraction = tables.encode(p, frame(x=repeated([0.0, 0.5, 1.0])))
    assert with_fraction.columns == ("x=1", "x=0.5", "x=2")
    few_rows = tables.encode(frame(x=[0, 1, 2]), frame(x=[0, 1, 1]))
    assert few_rows.columns == ("x",)
    assert "x: 3 different numbers: compared as categories" in encoded.notes


def test_numbers_can_be_declared_categories():
    p, q = frame(x=[10, 10, 30]), frame(x=[10, 30, 30])
    assert tables.encode(p, q).columns == ("x",)
    assert tables.encode(p, q, categorical=("x",)).columns == ("x=30",)
    with pytest.raises(ValueError, match=r"categorical must name columns of both tables.*'z'"):
        tables.encode(p, q, categorical=("z",))


def test_the_rarest_levels_share_indicators():
    values = repeated(["a"], 5) + repeated(["b"], 4) + ["c", "c", "d"]
    encoded = tables.encode(frame(x=values), frame(x=values), max_levels=3, num_buckets=1)
    assert encoded.columns == ("x=b", "x=(other) 0")
    np.testing.assert_array_equal(encoded.x.sum(axis=0), [4, 3])
    assert "x: the 2 rarest of 4 levels (25.0% of the rows) share 1 indicator" in encoded.notes


def test_free_text_and_identifiers_are_dropped_and_named():
    p = frame(x=[1.0, 2.0, 3.0], id=["u1", "u2", "u3"], text=["one", "one", "two"])
    q = frame(x=[1.5, 2.5, 3.5], id=["v1", "v2", "v3"], text=["one", "three", "four"])
    encoded = tables.encode(p, q, max_levels=2)
    assert set(encoded.groups) == {"x", "text"}  # two thirds of the rows of p repeat
    assert "id: 6 different values, free text or an identifier, dropped" in encoded.notes
    assert encoded.left_out == {"id": "6 different values, free text or an identifier"}
    many = [f"word {number}" for number in range(100)]
    p, q = frame(x=range(100), text=many), frame(x=range(100), text=many)
    assert set(tables.encode(p, q).groups) == {"x"}


def test_every_column_is_compared_or_named_as_left_out():
    p = frame(x=[1.0, 2, 3], same=[7, 7, 7], id=["a", "b", "c"], alone=[1, 2, 3])
    q = frame(x=[1.0, 2, 4], same=[7, 7, 7], id=["d", "e", "f"], extra=[1, 2, 3])
    encoded = tables.encode(p, q, ignored=("id",), names=("real", "made"))
    assert encoded.left_out == {
        "alone": "only in real",
        "extra": "only in made",
        "same": "constant (7)",
        "id": "as asked",
    }
    assert list(encoded.groups) == list(encoded.tables[0]) == ["x"]


def test_many_levels_are_all_compared():
    """400 codes a side, none in common: kept, and bounded by what repeats within a table."""
    rng = np.random.default_rng(0)
    codes = [rng.integers(400, size=1500) for _ in range(2)]
    p, q = (frame(x=[f"{letter}{c}" for c in own]) for letter, own in zip("uv", codes, strict=True))
    encoded = tables.encode(p, q)
    assert list(encoded.groups) == ["x"]
    assert not encoded.left_out
    assert encoded.x.shape == (1500, 31 + 32 - 1)
    assert (encoded.x.sum(axis=1) <= 1).all()
    (found,) = tables.own_levels(p, q)
    repeated = pd.Series(codes[0]).duplicated(keep=False).mean()
    assert (found.column, min(found.share_x, found.share_y)) == ("x", 0)
    assert max(found.share_x, found.share_y) >= repeated > 0.95
    assert found.js_bits > 0.8
    same = frame(x=[f"u{c}" for c in rng.integers(400, size=1500)])
    assert not tables.own_levels(p, same)
    assert not tables.own_levels(p, q, max_levels=800)


def test_constant_columns_are_dropped_only_if_they_agree():
    p = frame(same=[7, 7, 7], other=[1, 1, 1], one=["a", "a", "a"], empty=[None] * 3)
    q = frame(same=[7, 7, 7], other=[2, 2, 2], one=["a", "a", "b"], empty=[None] * 3)
    encoded = tables.encode(p, q)
    assert encoded.groups == {"other": slice(0, 1), "one": slice(1, 2)}
    np.testing.assert_array_equal(encoded.x[:, 0], [-0.5] * 3)
    np.testing.assert_array_equal(encoded.y[:, 0], [0.5] * 3)
    np.testing.assert_array_equal(encoded.y[:, 1], [0, 0, 1])
    assert "same: constant (7), dropped" in encoded.notes
    assert encoded.left_out == {"same": "constant (7)", "empty": "constant ((missing))"}
    assert "empty: constant ((missing)), dropped" in encoded.notes


def test_a_column_missing_altogether_in_one_table_is_a_difference():
    encoded = tables.encode(frame(x=[None, None, None]), frame(x=[1.0, 2.0, 3.0]))
    assert encoded.columns == ("x", "x (missing)")
    np.testing.assert_array_equal(encoded.x, [[0, 1]] * 3)
    np.testing.assert_array_equal(encoded.y, [[-1, 0], [0, 0], [1, 0]])


def test_common_columns_are_compared_and_the_others_named():
    p = frame(b=[1.0, 2.0], only_p=[0, 0], a=[3.0, 4.0])
    q = frame(a=[5.0, 6.0], b=[7.0, 9.0], only_q=[0, 0])
    encoded = tables.encode(p, q, names=("real", "made"))
    assert encoded.columns == ("b", "a")
    np.testing.assert_array_equal(encoded.y, [[2.5, 0.5], [4.5, 1.5]])  # medians 4.5 and 4.5
    assert "only in real, not compared: only_p" in encoded.notes
    assert "only in made, not compared: only_q" in encoded.notes
    with pytest.raises(ValueError, match="must have a column in common"):
        tables.encode(p[["only_p"]], q)


def test_columns_with_several_levels_are_named_by_all_of_them():
    columns = pd.MultiIndex.from_tuples([("size", "cm"), ("size", "inch")])
    rows = np.random.default_rng(0).normal(size=(2, 40, 2))
    pair = [pd.DataFrame(part, columns=columns) for part in rows]
    encoded = tables.encode(*pair)
    assert encoded.columns == ("('size', 'cm')", "('size', 'inch')")
    np.testing.assert_allclose(encoded.x[:, 1], rows[0, :, 1] - np.median(rows[:, :, 1]))
    assert list(encoded.tables[0]) == list(encoded.columns)
    # In `compare_tables` they may be left out by these names.
    found = tables.compare_tables(*(table.head(5) for table in pair), drop=["('size', 'cm')"])
    assert found.columns["column"].tolist() == ["('size', 'inch')"]


def test_numbers_against_text_are_categories():
    p, q = frame(x=repeated([1.0, 2.0], 3)), frame(x=repeated(["1", "two"], 3))
    encoded = tables.encode(p, q)
    assert encoded.columns == ("x=2", "x=two")  # 1 in both
    np.testing.assert_array_equal(encoded.x, [[0, 0]] * 3 + [[1, 0]] * 3)
    assert "x: number in x, text in y: compared as categories" in encoded.notes


def test_dates_are_days():
    days = ["2024-03-01", "2024-03-03", "2024-03-07"]
    expected = [[-2.0], [0.0], [4.0]]
    for column in (days, pd.to_datetime(days), [day.replace("-", "") for day in days]):
        encoded = tables.encode(frame(x=days), frame(x=column))
        np.testing.assert_array_equal(encoded.x, expected)
        np.testing.assert_array_equal(encoded.y, expected)


def test_codes_mean_the_same_in_whatever_type_they_come():
    p = frame(x=pd.Categorical([1, 2, 2, 1, 2]))
    for column in (["1", "2", "2", "1", "2"], pd.Categorical([1.0, 2.0, 2.0, 1.0, 2.0])):
        encoded = tables.encode(p, frame(x=column))
        assert encoded.columns == ("x=1",)
        np.testing.assert_array_equal(encoded.x, encoded.y)


def test_repeats_of_a_number_are_counted_over_both_tables():
    p, q = frame(x=[1.0, 1.0, 2.0, np.nan], y=[1.0, 2, 3, 4]), frame(x=[1.0, 3.0, 4.0], y=[5, 6, 7])
    encoded = tables.encode(p, q, repeats=True)
    assert encoded.columns == ("x", "x (missing)", "x (repeats)", "y")  # none in y
    np.testing.assert_allclose(np.expm1(encoded.x[:, 2]), [2, 2, 0, 0])
    np.testing.assert_allclose(np.expm1(encoded.y[:, 2]), [2, 0, 0])


def test_files_that_round_differently_agree():
    """Ten digits against sixteen: no lattice between them, and every row of one is in the other."""
    exact = np.repeat(np.sqrt(np.arange(1.0, 51.0)), 40)
    p, q = frame(x=exact), frame(x=np.round(exact, 10))
    assert (p["x"] != q["x"]).mean() > 0.5
    assert not tables.lattices(p, q)
    encoded = tables.encode(p, q, repeats=True)
    np.testing.assert_array_equal(encoded.x, encoded.y)
    np.testing.assert_allclose(np.expm1(encoded.x[:, 1]), 79)
    merged = len({*p["x"], *q["x"]}) - 50
    assert (
        f"x: {merged} numbers differ from others by rounding alone: taken as equal" in encoded.notes
    )
    # Of rows that differ in another column: values of copied rows repeat as a whole.
    first = frame(x=[0.0, 1e-7, 1.0], z=[0.1, 0.2, 0.3])
    apart = tables.encode(first, first.assign(z=first["z"] + 1), repeats=True)
    np.testing.assert_allclose(np.expm1(apart.x[:, 1]), 1)
    assert "x (repeats)" not in tables.encode(first, first, repeats=True).columns


def heavy(rng, scale):
    """Nine in ten are exponential of this scale, and one in ten is about 1e9."""
    return np.where(
        np.arange(400) % 10 == 0, 1e9 * (1 + rng.random(400)), scale * rng.exponential(size=400)
    )


@pytest.mark.parametrize(
    "draw",
    [
        heavy,
        lambda rng, scale: 1e9 + scale * rng.normal(size=400),
        lambda rng, scale: scale * rng.normal(size=400) + 1e9 * (np.arange(400) % 2),
        lambda rng, scale: 1e-12 * scale * rng.normal(size=400),
        lambda rng, scale: np.exp(12 * scale * rng.normal(size=400)),
    ],
)
def test_different_numbers_stay_apart_whatever_the_others_are(draw):
    """No two of 800 draws are equal, and the distributions are told apart as far as before."""
    rng = np.random.default_rng(0)
    p, q = draw(rng, 1), draw(rng, 5)
    encoded = tables.encode(frame(x=p), frame(x=q), repeats=True)
    assert encoded.columns == ("x",)
    assert not encoded.notes
    distances = [
        stats.ks_2samp(*pair).statistic for pair in ((p, q), (encoded.x[:, 0], encoded.y[:, 0]))
    ]
    assert distances[0] == pytest.approx(distances[1])


TENTHS = np.repeat(np.arange(-9.0, 90.0) / 10, 8)


@pytest.mark.parametrize(
    ("p", "q", "note"),
    [
        (TENTHS, TENTHS * 3 / 3, "differ from others by rounding alone: taken as equal"),
        (TENTHS, TENTHS + 5e-17, "differ from others by rounding alone: taken as equal"),
        (TENTHS.astype(np.float32), TENTHS, "x: compared in float32, in which x holds it"),
        (TENTHS, TENTHS.astype(np.float16), "x: compared in float16, in which y holds it"),
        (pd.array(TENTHS, "Float32"), TENTHS, "x: compared in float32, in which x holds it"),
        (1e6 + TENTHS, (1e6 + TENTHS).astype(np.float32), "x: compared in float32"),
        (np.arange(99).repeat(8), np.arange(99.0).repeat(8), ""),
    ],
)
def test_copies_of_another_precision_are_equal(p, q, note):
    encoded = tables.encode(frame(x=p), frame(x=q), repeats=True)
    np.testing.assert_array_equal(encoded.x, encoded.y)
    assert any(note in each for each in encoded.notes)
    assert not tables.lattices(frame(x=p), frame(x=q))
    codes = tables.values_alike(pd.Series(p), pd.Series(q))
    np.testing.assert_array_equal(*codes)


def test_repeated_rows_are_counted():
    p, q = frame(x=[1.0, 1.0, 2.0, 3.0]), frame(x=[3.0, 4.0, 3.0, 5.0, 3.0])
    notes = tables.encode(p, q).notes
    assert "1 of the 4 rows of x repeat an earlier one" in notes
    assert "2 of the 5 rows of y repeat an earlier one" in notes
    assert "3 of the 5 rows of y are rows of x; 2 would be, were they drawn like rows of x" in notes


def test_rows_are_copies_only_if_every_column_agrees():
    """Names, which are not compared, tell rows apart; so do columns that are left out as asked."""
    numbers = [n // 2 for n in range(40)]
    p = frame(x=numbers, name=[f"ann {n}" for n in range(40)], same=[1] * 40)
    q = frame(x=numbers, name=[f"bob {n}" for n in range(40)], same=[1] * 40)
    for options in ({}, {"ignored": ("name",)}):
        encoded = tables.encode(p, q, **options)
        assert "name" in encoded.left_out
        assert not any("are rows of" in note for note in encoded.notes)
    assert any(
        note.startswith("40 of the 40 rows of y are rows of x; 0 would be")
        for note in tables.encode(p, p[::-1]).notes
    )


def test_a_typing_error_does_not_make_other_values_equal():
    values = np.sqrt(np.arange(1.0, 101.0))
    typed = np.where(np.arange(100) == 3, 1e12, values)
    encoded = tables.encode(frame(x=typed), frame(x=values))
    assert len(np.unique(encoded.x)) == 100
    assert tables.values_alike(pd.Series(typed), pd.Series(values))[0].max() == 100


FAR = ["2020-01-01", "9999-12-31", "0001-01-01", None]


@pytest.mark.parametrize(
    "dates",
    [
        FAR,
        ["01/01/2020", "31/12/9999", "01/01/0001", None],
        np.array(FAR, "datetime64[us]"),
        np.array(FAR, "datetime64[s]"),
        [None if text is None else datetime.datetime.fromisoformat(text) for text in FAR],
        [None if text is None else datetime.date.fromisoformat(text) for text in FAR],
    ],
)
def test_dates_far_away_are_days_too(dates):
    """Python's calendar counts the days, of years that nanoseconds cannot reach."""
    days = [datetime.date.fromisoformat(text).toordinal() for text in FAR[:3]]
    for other in (dates, FAR, np.array(["2020-01-01"] * 4, "datetime64[ns]")):
        encoded = tables.encode(frame(x=dates), frame(x=other))
        assert encoded.columns == ("x", "x (missing)")
        first = encoded.x[:, 0]
        np.testing.assert_allclose(first[:3] - first[0], np.array(days) - days[0])


def test_values_are_alike_in_whatever_type_they_come():
    one, other = tables.values_alike(pd.Series([1, 2, 2.0]), pd.Series(["1", "2", "two"]))
    assert one.tolist() == [0, 1, 1]
    assert other.tolist() == [0, 1, 2]


def test_swapping_the_tables_swaps_the_matrices():
    rng = np.random.default_rng(0)

    def draw(count, levels):
        numbers = np.where(rng.random(count) < 0.1, np.nan, rng.normal(size=count))
        return frame(x=numbers, y=rng.choice(levels, count), z=rng.integers(5, size=count))

    p, q = draw(70, ["a", "b", "c"]), draw(40, ["b", "c", "d", "e"])
    one, other = tables.encode(p, q, max_levels=4), tables.encode(q, p, max_levels=4)
    assert one.columns == other.columns
    np.testing.assert_array_equal(one.x, other.y)
    np.testing.assert_array_equal(one.y, other.x)


@pytest.mark.parametrize("rows", [0, 1])
def test_tables_too_small_are_refused(rows):
    p, q = frame(x=[1.0, 2.0]), frame(x=[1.0] * rows)
    with pytest.raises(ValueError, match=f"synthetic must hold at least two rows; got {rows}"):
        tables.encode(p, q, names=("real", "synthetic"))


def test_nothing_to_compare_is_refused():
    with pytest.raises(ValueError, match=r"no column is left to compare: x: constant \(1\)"):
        tables.encode(frame(x=[1, 1]), frame(x=[1, 1, 1]))
    twice = pd.DataFrame([[1, 2], [3, 4]], columns=["x", "x"])
    with pytest.raises(ValueError, match=r"x must name its columns uniquely; got twice: \['x'\]"):
        tables.encode(twice, twice)


def entropy_bits(x):
    return -x * math.log2(x) - (1 - x) * math.log2(1 - x)


def test_a_lattice_is_found_and_bounded():
    """A quarter of q on p's lattice: TV ≥ 3/4 up to sampling, JS ≥ 1 − h(1/8) = 0.456 bits."""
    rng = np.random.default_rng(0)
    lattice = rng.integers(50, size=8000) / 10
    mixed = np.where(np.arange(8000) % 4 == 0, rng.permutation(lattice), rng.normal(size=8000))
    normal = rng.normal(size=(2, 8000))
    p = frame(x=lattice, same=normal[0], both=lattice, text=["a"] * 8000)
    q = frame(x=mixed, same=normal[1], both=rng.permutation(lattice), text=["b"] * 8000)
    for one, other, of in ((p, q, "x"), (q, p, "y")):
        (found,) = tables.lattices(one, other)
        assert (found.column, found.of) == ("x", of)
        assert max(found.share_x, found.share_y) == 1
        assert min(found.share_x, found.share_y) == 0.25
        error = math.sqrt(0.25 * 0.75 / 8000)
        expected = 1 - entropy_bits((1 - 0.75 + 1.960 * error) / 2)
        assert found.js_bits == pytest.approx(expected, abs=1e-5)
        assert found.js_bits < 1 - entropy_bits(1 / 8)


def test_equal_distributions_have_no_lattice_between_them():
    """However often values repeat: half of the rows, all of them, or none."""
    rng = np.random.default_rng(1)
    for draw in (
        lambda: rng.integers(3000, size=2000),
        lambda: rng.integers(20, size=2000),
        lambda: rng.normal(size=2000),
    ):
        assert not tables.lattices(frame(x=draw()), frame(x=draw()), least_js_bits=0.002)


def test_blurring_spreads_a_lattice_over_its_steps():
    rng = np.random.default_rng(0)
    p, q = frame(x=repeated([0.0, 2.0, 4.0, 7.0], 500)), frame(x=rng.normal(size=2000), y=1)
    one, other = tables.dequantize(rng, p, q, ["x"])
    assert p["x"].nunique() == 4  # not in place
    moved = (one["x"] - p["x"]).to_numpy()
    assert np.abs(moved).max() <= 1  # the step is 2
    assert np.abs(moved).mean() == pytest.approx(0.5, abs=0.03)
    assert (other["x"] - q["x"]).abs().mean() == pytest.approx(0.5, abs=0.03)
    assert (other["y"] == 1).all()


LARGE = {"signed": (2**62, np.int64), "unsigned": (2**63 + 5, np.uint64)}


@pytest.mark.parametrize("kind", LARGE)
def test_integers_that_float64_would_merge_stay_apart(kind):
    start, dtype = LARGE[kind]
    ids = [np.array([start + i for i in range(k, k + 40)], dtype) for k in (0, 40)]
    p, q = (frame(id=own) for own in ids)
    encoded = tables.encode(p, q)
    assert not encoded.left_out
    assert not encoded.notes  # no row repeats
    np.testing.assert_array_equal(encoded.x[:, 0], np.arange(40) - 39.5)
    np.testing.assert_array_equal(np.concatenate(tables.values_alike(p["id"], q["id"])), range(80))
    assert not tables.lattices(p, q)


def test_few_large_integers_are_categories_by_their_names():
    start = 2**62
    p, q = frame(x=repeated([start, start + 1])), frame(x=repeated([start + 1, start + 2]))
    encoded = tables.encode(p, q)
    assert encoded.columns == (f"x={start}", f"x={start + 2}")
    blurred, _ = tables.dequantize(np.random.default_rng(0), p, q, ["x"])
    assert len(blurred["x"].unique()) == 40


def test_large_integers_written_as_text_stay_apart(tmp_path):
    for name, first in (("p", 0), ("q", 40)):
        rows = "\n".join([*(str(2**62 + i) for i in range(first, first + 40)), "none"])
        (tmp_path / f"{name}.csv").write_text(f"id\n{rows}\n")
    p, q = (pd.read_csv(tmp_path / f"{name}.csv", keep_default_na=False) for name in "pq")
    read = tables.read_alike(p, q)
    codes = np.concatenate(tables.values_alike(read.x["id"], read.y["id"]))
    assert len(np.unique(codes)) == 81


def test_integers_beyond_float64_repeat_nowhere():
    """Beside small ones: what both tables have no common offset of is not rounded either."""
    x = pd.DataFrame({"id": np.arange(300)})
    y = pd.DataFrame({"id": 2**53 + np.arange(300)})
    for found in tables.lattices(x, y, least_js_bits=0.0):
        assert found.share_x == found.share_y == 0
    numbers = numbers_alike(x["id"], y["id"], "number")
    assert len(np.unique(np.concatenate(numbers))) == 600
    np.testing.assert_array_equal(np.diff(numbers[1]), 1)
