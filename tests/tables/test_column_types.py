"""Types without numbers of their own, and truth values in whatever way they are written."""

import numpy as np
import pandas as pd
import pytest

from divjax import tables


def frame(**columns):
    return pd.DataFrame(columns)


@pytest.mark.parametrize(
    ("values", "same", "step", "note"),
    [
        (pd.to_timedelta([1, 2, None], unit="h"), pd.to_timedelta([60, 120, None], unit="min"),
         3600, "durations, compared in seconds"),
        (pd.PeriodIndex(["2020-01", "2020-02", None], freq="M"),
         ["2020-01-01", "2020-02-01", None], 31,
         "periods, compared by the dates that they start at"),
        ([1 + 2j, 3 - 4j, None], [1 + 2j, 3 - 4j, None], 2,
         "complex, compared by real and imaginary parts"),
    ],
)  # fmt: skip
def test_durations_periods_and_complex_numbers_are_compared(values, same, step, note):
    encoded = tables.encode(frame(x=values), frame(x=same))
    assert not encoded.left_out
    np.testing.assert_array_equal(encoded.x, encoded.y)
    assert encoded.x[1, 0] - encoded.x[0, 0] == step
    assert f"x: {note}" in encoded.notes


@pytest.mark.parametrize("of", [lambda k: [k, 1], lambda k: {"k": k}, lambda k: np.array([k])])
def test_lists_and_the_like_are_compared_by_how_they_are_written(of):
    rows = [of(k % 2) for k in range(40)]
    encoded = tables.encode(frame(x=rows), frame(x=[*rows[:20], *[None] * 20]))
    assert encoded.columns == (f"x={of(0)}", f"x={of(1)}", "x=(missing)")[-2:]
    np.testing.assert_array_equal(encoded.x[:, 0], [k % 2 for k in range(40)])
    assert encoded.y[:, 1].sum() == 20
    assert "x: lists or the like, compared by how they are written" in encoded.notes


def test_imaginary_parts_are_a_column():
    encoded = tables.encode(frame(x=[1 + 2j, 3 - 4j]), frame(x=[1, 2]))
    np.testing.assert_array_equal(encoded.x, [[-0.5, 2], [1.5, -4]])  # the medians are 1.5 and 0
    np.testing.assert_array_equal(encoded.y, [[-0.5, 0], [0.5, 0]])
    assert encoded.columns == ("x", "x (imaginary)")
    beside_text = tables.encode(frame(x=[1 + 2j, 1 + 3j] * 20), frame(x=["1", "2"] * 20))
    assert set(beside_text.columns) == {"x=(1+3j)", "x=1", "x=2"}


@pytest.mark.parametrize(
    "other",
    [
        ["True", "False", None] * 20,
        [" TRUE", "FALSE", None] * 20,
        pd.Categorical(["true", "false", None] * 20),
        pd.array([True, False, None] * 20, "boolean"),
    ],
)
def test_truth_values_are_the_same_in_any_spelling(other):
    for own in ([True, False, None] * 20, [True, False, True] * 20, ["true", "false", None] * 20):
        for options in ({}, {"categorical": ("x",)}):
            encoded = tables.encode(frame(x=own), frame(x=other), **options)
            assert not any(
                "never occur" in note and "missing" not in note for note in encoded.notes
            )
            codes = tables.values_alike(*(table["x"] for table in encoded.tables))
            np.testing.assert_array_equal(codes[0][:2], codes[1][:2])


@pytest.mark.parametrize("digits", [[0, 1], [0.0, 1.0, None], ["0", "1"], [1, 1]])
@pytest.mark.parametrize("texts", [["True", "False"], ["true", " FALSE", None], [True, "False"]])
def test_zeros_and_ones_beside_truth_values_in_text_are_these(digits, texts):
    for pair in ((digits, texts), (texts, digits)):
        encoded = tables.encode(*(frame(x=values * 20) for values in pair))
        codes = tables.values_alike(*(table["x"] for table in encoded.tables))
        truths = [
            [str(value).strip().lower() in ("true", "1", "1.0") for value in values[:2]]
            for values in pair
        ]
        assert (codes[0][:2, None] == codes[1][:2]).tolist() == [
            [one == other for other in truths[1]] for one in truths[0]
        ]
        assert any("zeros and ones read as booleans" in note for note in encoded.notes)


def test_zeros_and_ones_alone_are_numbers():
    encoded = tables.encode(frame(x=[0, 1, 1] * 20), frame(x=[1, 0, 0] * 20))
    assert not any("booleans" in note for note in encoded.notes)
