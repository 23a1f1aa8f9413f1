"""Rows that are in both tables, and tables that do not overlap."""

import math

import numpy as np
import pandas as pd
import pytest

from divjax.tables import compare_tables, dequantize
from divjax.tables.copies import copied_groups, equal_rows


def table(seed, num_rows=400):
    rng = np.random.default_rng(seed)
    age = rng.normal(size=num_rows)
    return pd.DataFrame(
        {"age": age, "pay": age + rng.normal(size=num_rows), "job": rng.choice([*"abc"], num_rows)}
    )


def test_a_table_beside_itself_shows_no_difference():
    """A row and its copy have one score, whatever was learned: AUC is one half."""
    x = table(0)
    found = compare_tables(x, x.sample(frac=1, random_state=1), quick=True)
    assert found.verdict.different is False
    assert found.verdict.sentence.endswith("real and synthetic hold the same rows.")
    assert float(found.auc) == pytest.approx(0.5, abs=1e-6)
    assert float(found.js.interval[0]) == 0
    assert float(found.js.interval[1]) < 0.02
    assert not any("repeat" in note for note in found.notes)


def test_copied_rows_do_not_hide_the_others():
    """Half of y are copies of rows of p, half are of r, far from p: q = (p + r)/2 and
    JS = ½ log(4/3) + ¼ log(2/3) + ¼ log 2."""
    x, other = table(0), table(1)
    other["age"] += 8
    y = pd.concat([x.iloc[:200], other.iloc[200:]])
    found = compare_tables(x, y, quick=True)
    assert found.verdict.different
    assert found.verdict.columns[0] == "age"
    js = math.log2(4 / 3) / 2 + math.log2(2 / 3) / 4 + 1 / 4
    assert float(found.js.interval[0]) < js < float(found.js.interval[1])


def test_equal_rows_of_few_levels_are_no_copies():
    rng = np.random.default_rng(0)
    x, y = (
        pd.DataFrame({"a": rng.choice([*"ab"], 60), "b": rng.integers(3, size=60)}) for _ in "xy"
    )
    rows = equal_rows(x, y)
    assert copied_groups(rows) is None
    pairs = {label: set() for label in range(6)}
    for labels, frame in zip(rows, (x, y), strict=True):
        for label, row in zip(labels, frame.itertuples(index=False), strict=True):
            pairs[label].add(tuple(row))
    assert all(len(values) == 1 for values in pairs.values())
    unique = table(0), table(1)
    assert copied_groups(equal_rows(*unique)) is None
    assert copied_groups(equal_rows(unique[0], pd.concat([unique[1], unique[0][:1]]))) is not None


def test_tables_without_overlap_have_no_upper_limit():
    """Disjoint supports are one bit and infinitely far apart; 400 rows cannot know."""
    x, y = table(0), table(1)
    y["job"] = y["job"].str.upper()
    found = compare_tables(x, y, quick=True)
    low, high = map(float, found.js.interval)
    assert 0.9 < low < 0.99
    assert high == 1
    assert float(found.kl.interval[1]) == math.inf
    assert any(note.startswith("job: 3 levels differ by case alone: ") for note in found.notes)


def test_a_column_of_one_value_stays_where_it_is():
    x = pd.DataFrame({"a": [2.0, 2.0, 2.0]})
    for blurred in dequantize(np.random.default_rng(0), x, x, ["a"]):
        assert blurred.equals(x)
