"""A fitted pair, the columns' own divergence, and the command on two csv files."""

import jax
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from divjax import ratio
from experiments import table_comparison, tabular_validation
from experiments.tabular_validation import Settings


def test_a_fitted_mixture_comes_close_with_more_samples():
    few, many = (tabular_validation.fitted(0, count) for count in (10, 2000))
    assert few.kl > 0.3
    assert 0 < many.kl < 0.02


@pytest.fixture(scope="module")
def found():
    """`age` on a lattice in the real table alone, `kind` shifted, the rest the same."""
    rng = np.random.default_rng(0)
    age = rng.normal(size=(2, 600))

    def table(age, share):
        kind = np.where(rng.random(600) < share, "a", "b")
        return pd.DataFrame({"age": age, "kind": kind, "noise": rng.normal(size=600)})

    pair = table(np.round(age[0], 1), 0.5), table(age[1], 0.8)
    estimator = ratio.ClassifierRatio(head="quadratic", num_folds=2)
    return table_comparison.compare(
        jax.random.key(0), *pair, estimator=estimator, max_rows=600, seed=1
    )


@pytest.mark.exhaustive
def test_the_lattice_is_found_and_only_its_view_sees_it(found):
    assert list(found["views"]) == list(table_comparison.VIEWS)
    smooth, counted, blurred = found["js"]
    assert counted > 0.8
    assert smooth < 0.2
    assert blurred < 0.2
    assert dict(zip(found["columns"], found["lattice_js"] > 0.8, strict=True)) == {
        "age": True,
        "kind": False,
        "noise": False,
    }
    assert (found["certified_js"] <= found["js"]).all()
    assert (found["p_value"][:2] <= 0.01).all()
    own = dict(zip(found["columns"], found["column_js"], strict=True))
    assert own["kind"] > 0.04 > 0.02 > own["noise"]


@pytest.mark.exhaustive
def test_no_number_is_reported_bare(found):
    rows = table_comparison.view_rows("pair", found)
    assert [row["lattices"] for row in rows] == ["age"] * 3
    for row in rows:
        assert "[" in row["JS bits"]
        assert "[" in row["KL nats"]
        assert float(row["lattice JS ≥"]) > 0.8
    columns = table_comparison.column_rows("pair", found)
    assert [row["column"] for row in columns] == ["age", "kind", "noise"]
    assert columns[0]["on the lattice, real / synthetic"].endswith("/ 0.0%")
    plt.close(table_comparison.draw("pair", found))


@pytest.mark.exhaustive
def test_the_headline_names_what_it_does_not_see():
    """400 codes a side, none in common, beside a column of noise; an identifier; an own column."""
    rng = np.random.default_rng(0)

    def table(letter):
        return pd.DataFrame(
            {
                "code": [f"{letter}{c}" for c in rng.integers(400, size=1500)],
                "id": [f"{letter}-{n}" for n in range(1500)],
                "noise": rng.normal(size=1500),
                letter: 1,
            }
        )

    found = table_comparison.compare(
        jax.random.key(0),
        table("u"),
        table("v"),
        estimator=ratio.ClassifierRatio(head="linear", num_folds=2),
        max_rows=1500,
    )
    assert dict(zip(found["columns"], found["column_js"] > 0.6, strict=True)) == {
        "code": True,
        "noise": False,
    }
    assert dict(zip(found["columns"], found["lattice_js"] > 0.8, strict=True))["code"]
    for row in table_comparison.view_rows("pair", found):
        assert row["lattices"] == "code"
        assert row["largest column JS"].endswith("(code)")
        for name in ("id (3000 different", "u (only in real)", "v (only in synthetic)"):
            assert name in row["left out"]


def write(path, text):
    path.write_text(text)
    return path


def csv_rows(rng, rows, kinds):
    lines = ["name,x,kind,flag,same"]
    for index in range(rows):
        x = "?" if index % 9 == 0 else f"{rng.normal():.4f}"
        kind = kinds[rng.integers(len(kinds))]
        lines.append(f"person {rng.integers(10**9)},{x},{kind},{int(rng.random() < 0.5)},7")
    return lines


@pytest.fixture
def files(tmp_path):
    """Missing values, a level of one file alone, a constant column, unequal columns, names."""
    rng = np.random.default_rng(0)
    real = csv_rows(rng, 60, ["red", "green"])
    synthetic = csv_rows(rng, 50, ["red", "blue"])
    synthetic = [f"{line},{n if n else 'extra'}" for n, line in enumerate(synthetic)]
    return (
        write(tmp_path / "real.csv", "\n".join(real)),
        write(tmp_path / "made.csv", "\n".join(synthetic)),
    )


def run(folder, real, synthetic, **options):
    settings = Settings(real=real, synthetic=synthetic, quick=True, **options)
    tabular_validation.main(settings, folder / "run")


@pytest.mark.exhaustive
def test_two_csv_files_are_compared(tmp_path, files, capsys):
    run(tmp_path, *files)
    shown = capsys.readouterr().out
    assert "60 and 50 rows, 3 columns" in shown
    for note in (
        "only in synthetic, not compared: extra",
        "name: 110 different values, free text or an identifier, dropped",
        "not compared: extra (only in synthetic), name (110 different values",
        "same: constant (7), dropped",
        "kind: 1 level never occurs in real: blue",
        "kind: 1 levels never occur in synthetic: green",
    ):
        assert note in shown
    folder = tmp_path / "run"
    table = pd.read_csv(folder / "comparison.csv")
    assert table["view"].tolist() == ["as they are", "repeats counted"]
    assert (table["lattices"] == "none").all()
    columns = pd.read_csv(folder / "columns.csv")
    assert set(columns["column"]) == {"x", "kind", "flag"}
    assert columns["column"][0] == "kind"
    assert (folder / "figures" / "comparison.png").stat().st_size > 10_000


def test_files_that_cannot_be_compared_are_refused(tmp_path, files):
    real, made = files
    header = real.read_text().splitlines()[:1]
    one_row = write(tmp_path / "one.csv", "\n".join([*header, "ann,1.0,red,1,7"]))
    with pytest.raises(SystemExit, match="synthetic must hold at least two rows; got 1"):
        run(tmp_path, real, one_row)
    five = write(tmp_path / "five.csv", "\n".join(made.read_text().splitlines()[:6]))
    with pytest.raises(SystemExit, match=r"synthetic must hold at least 10 rows; got 5"):
        run(tmp_path / "a", real, five)
    other = write(tmp_path / "other.csv", "a,b\n1,2\n3,4")
    with pytest.raises(SystemExit, match="must have a column in common"):
        run(tmp_path / "b", real, other)
    twice = write(tmp_path / "twice.csv", "a,b,a\n1,2,3")
    with pytest.raises(SystemExit, match=r"twice\.csv must name its columns differently; twice: a"):
        run(tmp_path / "b2", real, twice)
    empty = write(tmp_path / "empty.csv", "")
    with pytest.raises(SystemExit, match=r"empty\.csv is not a csv file with a header"):
        run(tmp_path / "c", real, empty)
    with pytest.raises(SystemExit, match=r"there is no file .*missing\.csv"):
        run(tmp_path / "d", real, tmp_path / "missing.csv")


def test_settings_that_make_no_sense_are_refused(tmp_path):
    with pytest.raises(SystemExit, match="give both --real and --synthetic"):
        Settings(real=tmp_path)
    with pytest.raises(SystemExit, match=r"studies must be among .*'dice'"):
        Settings(studies=("dice",))
    with pytest.raises(SystemExit, match=r"tables must be among ctgan, vae, adult.*'iris'"):
        Settings(tables=("iris",))


@pytest.mark.exhaustive
def test_a_study_compares_estimates_with_truth(tmp_path):
    settings = Settings(studies=("imbalance",), seeds=(0,), quick=True)
    tabular_validation.main(settings, tmp_path / "run")
    (row,) = pd.read_csv(tmp_path / "run" / "imbalance.csv").to_dict("records")
    assert row["rows"] == "500 / 250"
    assert row["paper JS"] == 0.289
    assert 0 < row["mean abs error JS"] < 0.3
    assert row["certified JS"] <= row["true JS"]
