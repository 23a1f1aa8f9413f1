# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Comparing two tables
#
# A generator has produced a synthetic table. Has it the distribution of the real one, and if not,
# where does it differ? We make tables whose divergence is known, so that every answer can be
# checked: one that is right, and one in which each column is right by itself but a dependence is
# broken. `compare_tables` needs `pip install "divjax[tables]"`.

# %%
import os

# The trees' threads wait for each other at every split: for small tables one is faster than more,
# most of all where another program uses the processor.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import json
import pathlib
import time

import jax
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from divjax import plot, problems, ratio, tables

folder = pathlib.Path("figures")
folder.mkdir(exist_ok=True)

# %% [markdown]
# ## 1. Tables with a known answer
#
# Income depends on age, with correlation ρ = 0.8 between the logarithm of income and age; all
# other columns depend on age alone. A generator that draws income independently of age has every
# column right, and is wrong by exactly the divergence of a correlated pair of Gaussians from an
# independent one:
#
# $$\mathrm{KL} = -\tfrac12 \log(1 - \rho^2),$$
#
# and Jensen–Shannon by quadrature. Everything else in the joint density cancels in the ratio.

# %%
CORRELATION = 0.8


def draw(seed, correlation, num_rows=1500):
    rng = np.random.default_rng(seed)
    z, noise = rng.normal(size=(2, num_rows))
    of_income = correlation * z + np.sqrt(1 - correlation**2) * noise
    older = rng.random(num_rows) < 1 / (1 + np.exp(-z))
    visits = rng.poisson(2, num_rows).astype(float)
    visits[rng.random(num_rows) < 0.1] = np.nan
    days = rng.integers(0, 1000, num_rows)
    return pd.DataFrame(
        {
            "age": (45 + 12 * z).round(1),
            "income": np.exp(10.3 + 0.6 * of_income).round(2),
            "region": np.where(older, "north", rng.choice(["east", "south", "west"], num_rows)),
            "joined": pd.Timestamp("2021-01-01") + pd.to_timedelta(days, unit="D"),
            "visits": visits,
        }
    )


real = draw(0, CORRELATION)
faithful = draw(1, CORRELATION)  # other rows of the same distribution
broken = draw(2, 0.0)  # each column as before, income independent of age
print(real.head(4).to_string())

truth_kl = -np.log(1 - CORRELATION**2) / 2
truth_js = problems.correlated_gaussians(2, truth_kl).js / np.log(2)
print(f"truth of the broken table: KL {truth_kl:.3f} nats, Jensen–Shannon {truth_js:.3f} bits")

# %% [markdown]
# ## 2. The verdict
#
# Rows of a half of the tables are told apart by boosted trees that were fitted to the other half,
# and each column is tested by itself. Equal distributions are called different with a probability
# of at most `level`, for all tests together. No difference found is a statement about the size of
# the tables: the sentence tells what would have been found.

# %%
begin = time.perf_counter()
same = tables.compare_tables(real, faithful, names=("real", "faithful"), quick=True)
different = tables.compare_tables(real, broken, names=("real", "broken"), quick=True)
print(f"two comparisons: {time.perf_counter() - begin:.1f} s")
print(same.verdict, different.verdict, sep="\n\n")
assert same.verdict.different is False
assert different.verdict.different is True

# %% [markdown]
# The numbers behind it have errors and intervals, and the truth is in them. `certified_js` is a
# bound that holds for any two tables with 95 % confidence. It is lower, as it assumes nothing of
# the classifier.

# %%
js, kl = different.js, different.kl
print(different.to_text())
assert js.interval.lower < truth_js < js.interval.upper
assert kl.interval.lower < truth_kl < kl.interval.upper
assert 0 < different.certified_js < truth_js
assert same.js.interval.lower <= 0.01  # here the truth is zero

# %% [markdown]
# ## 3. Where the difference lies
#
# No column differs by itself: the divergence of each is within its error of zero. What the
# classifier loses when one column is shuffled names those that differ *together*, age and income.

# %%
print(different.columns.round(4).to_string(index=False))
assert not different.columns.significant.any()
assert set(different.verdict.columns) == {"age", "income"}
with plot.style():
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4))
    columns = different.columns
    plot.contributions(columns.column, columns.js, columns.error, ax=left)
    left.axvline(0, color="0.4", linewidth=1)
    left.axvline(truth_js, linestyle="--", label="whole tables, truth")
    left.set(xlabel="Jensen–Shannon of the column alone, bits", xlim=(-0.03, 0.23))
    left.legend(loc="lower center")
    names = list(different.importance)
    plot.contributions(names, [different.importance[name] for name in names], ax=right)
    right.set(xlabel="AUC that the classifier loses without the column")
    left.set_title("each column by itself")
    right.set_title("needed by the classifier")
figure.savefig(folder / "tables_columns.png")

# %% [markdown]
# The out-of-fold scores are log ratios of single rows. The rows that give the broken table away
# are those of young people with high incomes and old ones with low incomes.

# %%
scores = different.scores[1]
with plot.style():
    figure, axis = plt.subplots(figsize=(6.4, 4.2))
    bound = np.abs(scores).max()
    colors = {"c": scores, "cmap": "PuOr", "vmin": -bound, "vmax": bound}
    dots = {"s": 14, "edgecolors": "0.5", "linewidths": 0.3}
    drawn = axis.scatter(broken.age, broken.income, **colors, **dots)
    axis.set(yscale="log", xlabel="age, years", ylabel="income, euros a year")
    axis.set_title("rows of the broken table")
    figure.colorbar(drawn, label="log real/broken, nats")
figure.savefig(folder / "tables_rows.png")

# The exact log ratio of a row, from the two densities.
z, w = (broken.age - 45) / 12, (np.log(broken.income) - 10.3) / 0.6
rest = 1 - CORRELATION**2
exact = -np.log(rest) / 2 + w**2 / 2 - (w - CORRELATION * z) ** 2 / (2 * rest)
agreement = np.corrcoef(exact.clip(-4, 4), scores.clip(-4, 4))[0, 1]
print(f"correlation with the exact log ratios: {agreement:.2f}")
assert agreement > 0.8

# %% [markdown]
# ## 4. For other programs, and for other people
#
# `to_json` begins with the verdict, `to_csv` is the table of columns, and `to_html` one page with
# its figures within it. The command is the same comparison:
# `divjax compare real.csv broken.csv --html report.html --fail-on different`.

# %%
content = json.loads(different.to_json())
print({name: content["verdict"][name] for name in ("different", "p_value", "js", "columns")})
assert content["verdict"]["different"]
assert content["num_rows"] == [1500, 1500]
report = folder / "tables_report.html"
report.write_text(different.to_html(), encoding="utf-8")
print(report, f"{report.stat().st_size / 1e3:.0f} kB")
assert "<img" in report.read_text(encoding="utf-8")

# %% [markdown]
# Both also hold notes, on what a divergence alone would not explain. They come from functions that
# can be called by themselves. Here a generator does not round ages, and has learned 300 rows of the
# real table by heart.

# %%
careless = faithful.copy()
careless["age"] += np.random.default_rng(3).uniform(-0.05, 0.05, len(careless))
careless.iloc[:300] = real.iloc[:300]
names = ("real", "careless")
notes = tables.encode(real, careless, names=names).notes
print(*notes, *tables.lattices(real, careless, names=names), sep="\n")
assert any(note.startswith("300 of the 1500 rows of careless are rows of real") for note in notes)
assert [found.column for found in tables.lattices(real, careless, names=names)] == ["age"]

# %% [markdown]
# ## 5. A classifier of your own
#
# `ratio.SklearnRatio` cross-fits anything with `fit` and `predict_proba`; frames are passed on as
# they are, with categories and gaps. A classifier that cannot see the difference estimates too
# little: the logistic regression has no product of age and income. Its estimate is a lower bound
# of the truth in expectation, and not the truth. The test is exact with any classifier.

# %%
pair = [table.astype({"region": "category", "joined": "int64"}) for table in (real, broken)]
trees = HistGradientBoostingClassifier(
    categorical_features="from_dtype", max_iter=60, learning_rate=0.05, random_state=0
)
of_text = make_column_transformer((OneHotEncoder(), ["region"]), remainder="passthrough")
linear = make_pipeline(of_text, SimpleImputer(), StandardScaler(), LogisticRegression())

estimates = {}
for name, classifier in {"boosted trees": trees, "logistic regression": linear}.items():
    fit = ratio.SklearnRatio(classifier).fit(jax.random.key(0), *pair)
    estimates[name] = fit.js(base=2)
    p_value = fit.two_sample_test(jax.random.key(1)).p_value
    print(f"{name}: Jensen–Shannon {estimates[name].value:.3f} bits, p = {float(p_value):.3f}")
print(f"truth: {truth_js:.3f} bits")
assert estimates["boosted trees"].interval.lower < truth_js < estimates["boosted trees"].interval[1]
assert estimates["boosted trees"].value > truth_js / 2
assert estimates["logistic regression"].value < truth_js / 10
