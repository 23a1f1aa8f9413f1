"""What each synthesizer keeps of a table and what it loses."""

import math

import numpy as np
import pandas as pd
import pytest

from experiments import synthesizers


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(0)
    x = rng.normal(size=4000)
    return pd.DataFrame(
        {
            "x": x,
            "y": np.exp(0.8 * x + 0.6 * rng.normal(size=4000)),  # normal correlation 0.8
            "count": rng.poisson(30, size=4000),
            "gap": np.where(x < -0.5, np.nan, rng.normal(size=4000)),
            "kind": np.where(x > 0, "b", np.where(x > -1, "a", "c")),
            "code": pd.Categorical(rng.choice([3, 5], size=4000, p=[0.2, 0.8])),
            "day": pd.to_datetime("2020-01-01") + pd.to_timedelta(rng.integers(99, size=4000), "D"),
        }
    )


@pytest.mark.parametrize("name", synthesizers.SYNTHESIZERS)
def test_types_and_size_are_those_asked_for(table, name):
    made = synthesizers.SYNTHESIZERS[name](np.random.default_rng(1), table, 3000)
    assert list(made.columns) == list(table.columns)
    assert (made.dtypes == table.dtypes).all()
    assert made.shape == (3000, 7)
    again = synthesizers.SYNTHESIZERS[name](np.random.default_rng(1), table, 3000)
    pd.testing.assert_frame_equal(made, again)


@pytest.mark.parametrize("name", synthesizers.SYNTHESIZERS)
def test_marginals_are_kept(table, name):
    """Quantiles, shares of levels and of missing values, to five standard errors."""
    made = synthesizers.SYNTHESIZERS[name](np.random.default_rng(2), table, 20_000)
    error = math.sqrt(0.25 / 20_000)
    for column in ("x", "y", "count", "gap"):
        median = table[column].median()
        share = ((made[column] < median).mean(), (table[column] < median).mean())
        slack = 0.02 if name == "noisy bootstrap" else 5 * error
        assert share[0] == pytest.approx(share[1], abs=slack)
    assert made["gap"].isna().mean() == pytest.approx(table["gap"].isna().mean(), abs=5 * error)
    for column in ("kind", "code"):
        shares = [part[column].value_counts(normalize=True) for part in (made, table)]
        for level in shares[1].index:
            assert shares[0][level] == pytest.approx(shares[1][level], abs=5 * error)


def spearman(table, one, other):
    return table[one].rank().corr(table[other].rank())


def test_dependence_is_lost_kept_or_nearly_kept(table):
    """Spearman's correlation of a normal pair is 6/π asin(ρ/2)."""

    def made(name):
        return synthesizers.SYNTHESIZERS[name](np.random.default_rng(3), table, 20_000)

    expected = 6 / math.pi * math.asin(0.4)
    assert spearman(table, "x", "y") == pytest.approx(expected, abs=0.03)
    assert abs(spearman(made("independent marginals"), "x", "y")) < 5 / math.sqrt(20_000)
    shrunk = 6 / math.pi * math.asin(0.98 * 0.8 / 2)
    assert spearman(made("gaussian copula"), "x", "y") == pytest.approx(shrunk, abs=0.03)
    assert spearman(made("noisy bootstrap"), "x", "y") == pytest.approx(expected, abs=0.05)


def test_values_come_from_the_table_except_for_noise(table):
    for name in ("independent marginals", "gaussian copula"):
        made = synthesizers.SYNTHESIZERS[name](np.random.default_rng(4), table, 500)
        for column in table:
            assert made[column].dropna().isin(table[column]).all()
    noisy = synthesizers.noisy_bootstrap(np.random.default_rng(4), table, 500)
    assert not noisy["x"].isin(table["x"]).any()
    assert (noisy["count"] % 1 == 0).all()


def test_noise_has_the_size_asked_for():
    """Two clusters far apart: what is left around them is the noise, .1 of the column's spread."""
    ends = pd.DataFrame({"x": np.where(np.arange(2000) % 2, 50.0, -50.0) + np.linspace(0, 1, 2000)})
    spread = float(ends["x"].std())
    made = synthesizers.noisy_bootstrap(np.random.default_rng(0), ends, 20_000)
    around = np.where(made["x"] > 0, made["x"] - 50.5, made["x"] + 49.5)
    assert around.std() == pytest.approx(0.1 * spread, rel=0.03)
    flags = pd.DataFrame({"flag": [0] * 100 + [1] * 100})
    exact = synthesizers.noisy_bootstrap(np.random.default_rng(0), flags, 20_000, flip=1.0)
    assert exact["flag"].mean() == pytest.approx(0.5, abs=0.02)


def test_halves_share_no_row():
    table = pd.DataFrame({"x": np.arange(101)})
    one, other = synthesizers.halves(np.random.default_rng(0), table)
    assert len(one) == len(other) == 50
    assert not set(one["x"]) & set(other["x"])
    assert list(one.index) == list(range(50))


def test_a_constant_column_and_one_that_mixes_types_survive():
    table = pd.DataFrame({"x": [1.0] * 30, "mixed": ["a", 1, None] * 10})
    for make in synthesizers.SYNTHESIZERS.values():
        made = make(np.random.default_rng(0), table, 40)
        assert len(made) == 40
        assert made["mixed"].map(str).isin(["a", "1", "None", "nan"]).all()
