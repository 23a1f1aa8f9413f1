"""The faults are what they say; tools are called alike; a tiny run writes its tables and figure."""

import numpy as np
import pandas as pd
import pytest

from experiments import table_peers as job
from experiments import table_tools

COLUMNS = job.Columns("age", "hours", ("work", "own"), "weight", 10.0, "income")


def whole_table(num_rows=3000):
    rng = np.random.default_rng(0)
    age = rng.integers(20, 70, num_rows)
    return pd.DataFrame(
        {
            "age": age,
            "hours": age + rng.integers(0, 5, num_rows),
            "weight": rng.integers(0, 1000, num_rows),
            "work": rng.choice(["own", "paid", "none"], num_rows, p=[0.05, 0.6, 0.35]),
            "income": rng.choice(["high", "low"], num_rows),
        }
    ).astype({"work": "category", "income": "category"})


@pytest.fixture(autouse=True)
def small_tables(monkeypatch):
    monkeypatch.setattr(job, "COLUMNS", {"adult": COLUMNS})
    monkeypatch.setattr(job, "whole_table", lambda name: whole_table())


def halves(fault):
    real, half = job.pair("adult", "none", 1000, 1)
    faulty = job.pair("adult", fault, 1000, 1)[1]
    assert len(real) == len(half) == len(faulty) == 1000
    assert list(faulty) == list(half)
    return real, half, faulty


def test_halves_share_no_row():
    real, half, _ = halves("shift")
    rows = [set(map(tuple, table[["age", "hours", "weight"]].to_numpy())) for table in (real, half)]
    whole = whole_table()[["age", "hours", "weight"]].duplicated().sum()
    assert len(rows[0] & rows[1]) <= whole


@pytest.mark.parametrize("fault", ["shift", "rounded", "gaps", "flipped labels"])
def test_a_fault_is_in_its_own_column(fault):
    _, half, faulty = halves(fault)
    own = job.FAULTS[fault][1](COLUMNS)
    changed = [
        name
        for name in half
        if not half[name].equals(
            faulty[name].astype(half[name].dtype) if faulty[name].notna().all() else faulty[name]
        )
    ]
    assert changed == [own]


def test_how_large_the_faults_are():
    _, half, faulty = halves("shift")
    assert ((faulty["age"] - half["age"]) == round(0.2 * half["age"].std())).all()
    _, half, faulty = halves("gaps")
    assert abs(faulty["age"].isna().mean() - 0.1) < 4 * np.sqrt(0.09 / 1000)
    _, half, faulty = halves("flipped labels")
    flipped = (faulty["income"] != half["income"]).mean()
    assert abs(flipped - 0.05) < 4 * np.sqrt(0.0475 / 1000)
    _, half, faulty = halves("rounded")
    assert (faulty["weight"] % 10 == 0).all()
    assert (faulty["weight"] - half["weight"]).abs().max() <= 5
    _, _, faulty = halves("lost level")
    assert "own" not in set(faulty["work"])
    _, half, faulty = halves("bad cell")
    assert (faulty != half).to_numpy().sum() == 1
    assert faulty["age"].max() == 999_999


def test_broken_dependences_keep_each_column():
    _, half, faulty = halves("dependence")
    assert abs(np.corrcoef(half["age"], half["hours"])[0, 1]) > 0.9
    assert abs(np.corrcoef(faulty["age"], faulty["hours"])[0, 1]) < 0.2
    assert faulty.drop(columns="hours").equals(half.drop(columns="hours"))
    for fault in ("dependence", "all dependences"):
        _, half, faulty = halves(fault)
        for name in half:
            assert (
                half[name]
                .value_counts()
                .sort_index()
                .equals(faulty[name].value_counts().sort_index())
            )


def test_copies_are_rows_of_the_other_half():
    real, half, faulty = halves("copies")
    keys = lambda table: set(map(tuple, table.astype(str).to_numpy()))
    shared = [
        sum(row in keys(real) for row in map(tuple, t.astype(str).to_numpy()))
        for t in (half, faulty)
    ]
    assert 45 <= shared[1] - shared[0] <= 50


def test_tools_find_a_large_shift_and_name_it():
    real, half = job.pair("adult", "none", 1000, 1)
    moved = half.assign(age=half["age"] + 20)
    found = table_tools.TOOLS["SciPy, each column"][1](real, moved, 0.05, 0)
    assert found.alarm
    assert found.column == "age"
    assert not table_tools.TOOLS["SciPy, each column"][1](real, half, 0.05, 0).alarm
    assert table_tools.TOOLS["boosted trees (scikit-learn)"][1](real, moved, 0.05, 0).alarm


def test_a_score_is_found_beyond_its_own_null():
    null = {"score": np.arange(100.0)}
    results = {
        ("tool", "adult", "none"): null,
        ("tool", "adult", "shift"): {"score": np.array([94.0, 95.5, 200.0])},
    }
    assert job._beyond_null(results, "tool", "shift", 0.05) == {"adult": 2}


def test_unknown_tools_and_tables_are_refused():
    with pytest.raises(SystemExit, match="tools must be among divjax, SciPy"):
        job.Settings(tables=("adult",), tools=("nothing",))
    with pytest.raises(SystemExit, match="tables must be among adult"):
        job.Settings(tables=("nothing",))


@pytest.mark.slow
def test_a_tiny_run_writes_its_tables_and_figure(tmp_path, monkeypatch):
    settings = job.Settings(tables=("adult",), quick=True)
    # The library's own comparison is tested elsewhere.
    own = {name: table_tools.TOOLS[name] for name in list(table_tools.TOOLS)[1:3]}
    monkeypatch.setattr(table_tools, "TOOLS", own)
    job.main(settings, tmp_path / "run")
    for name in ("false_alarms.md", "verdicts.md", "calibrated.md", "figures/found.png"):
        assert (tmp_path / "run" / name).exists()
    assert "boosted trees" in (tmp_path / "run" / "verdicts.md").read_text()
