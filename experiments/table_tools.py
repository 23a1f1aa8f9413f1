"""What people compare two tables by today, each called as its documentation does, as one function.

    found = table_tools.installed()["SciPy, each column"](real, synthetic, level=0.05, seed=0)
    found.alarm, found.score, found.column

A tool that is not installed is left out by name. Categories of the tables are of pandas' type
`category`, everything else is a number.
"""

import contextlib
import importlib.util
import io
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.model_selection import cross_val_predict
from threadpoolctl import threadpool_limits

from divjax.tables import compare_tables

__all__ = ["Found", "Tool", "installed"]

# Some tools report their use by the network, which is neither wanted nor part of their time.
os.environ.update(DO_NOT_TRACK="1", NML_DISABLE_USAGE_LOGGING="1", DISABLE_DEEPCHECKS_ANALYTICS="1")


class Found(NamedTuple):
    """What a tool says of two tables.

    Attributes:
        alarm: whether it calls them different, None for a tool that gives no verdict.
        score: the larger, the more they differ to this tool.
        column: the one that it names first, empty for none.
        noted: whether it says, besides its verdict, that rows are copied or that a cell is wrong.
    """

    alarm: bool | None
    score: float
    column: str
    noted: bool = False


Tool = Callable[[pd.DataFrame, pd.DataFrame, float, int], Found]


def _divjax(real: pd.DataFrame, synthetic: pd.DataFrame, level: float, seed: int) -> Found:
    found = compare_tables(real, synthetic, level=level, seed=seed)
    verdict = found.verdict
    noted = any("are rows of" in note or "far from all others" in note for note in found.notes)
    return Found(verdict.different is True, -verdict.p_value, (*verdict.columns, "")[0], noted)


def _each_column(real: pd.DataFrame, synthetic: pd.DataFrame, level: float, seed: int) -> Found:
    """Kolmogorov–Smirnov tests of numbers and χ² tests of levels, after Bonferroni."""
    p_values = {}
    for name in real:
        x, y = real[name], synthetic[name]
        if _is_category(x):
            counts = pd.concat([x.value_counts(), y.value_counts()], axis=1).to_numpy()
            test: Any = stats.chi2_contingency(counts[counts.sum(axis=1) > 0])
        else:
            test = stats.ks_2samp(x.dropna(), y.dropna())
        p_values[name] = float(test.pvalue)
    first = min(p_values, key=lambda name: p_values[name])
    return Found(len(p_values) * p_values[first] <= level, -p_values[first], str(first))


def _trees(real: pd.DataFrame, synthetic: pd.DataFrame, level: float, seed: int) -> Found:
    """scikit-learn's boosted trees in five folds; a Mann–Whitney test of the out-of-fold scores."""
    rows = pd.concat([real, synthetic], ignore_index=True)
    of_real = np.arange(len(rows)) < len(real)
    trees = HistGradientBoostingClassifier(categorical_features="from_dtype", random_state=seed)
    order = np.random.default_rng(seed).permutation(len(rows))
    scores = np.empty(len(rows))
    # Threads of so few rows wait for each other where other work is done.
    with threadpool_limits(1, "openmp"):
        probabilities: Any = cross_val_predict(
            trees, rows.iloc[order], of_real[order], cv=5, method="predict_proba"
        )
    scores[order] = probabilities[:, 1]
    test: Any = stats.mannwhitneyu(scores[of_real], scores[~of_real], alternative="greater")
    return Found(bool(test.pvalue <= level), float(test.statistic), "")


def _sdmetrics(real: pd.DataFrame, synthetic: pd.DataFrame, level: float, seed: int) -> Found:
    """The quality report, a number without a verdict; the column of the least similar shape."""
    from sdmetrics.reports.single_table import QualityReport  # pyright: ignore

    kinds = {
        str(name): {"sdtype": "categorical" if _is_category(column) else "numerical"}
        for name, column in real.items()
    }
    report = QualityReport()
    # Categories of their own type are refused by its sums over levels.
    frames = [_with_text_categories(table) for table in (real, synthetic)]
    report.generate(*frames, {"columns": kinds}, verbose=False)
    shapes = report.get_details("Column Shapes").set_index("Column")["Score"]
    return Found(None, 1 - report.get_score(), str(shapes.idxmin()))


def _evidently(real: pd.DataFrame, synthetic: pd.DataFrame, level: float, seed: int) -> Found:
    """The preset of data drift; an alarm is any column that has drifted."""
    from evidently import DataDefinition, Dataset, Report  # pyright: ignore
    from evidently.presets import DataDriftPreset  # pyright: ignore

    categories = [str(name) for name in real if _is_category(real[name])]
    numbers = [str(name) for name in real if name not in categories]
    definition = DataDefinition(numerical_columns=numbers, categorical_columns=categories)
    frames = [_with_text_categories(table) for table in (real, synthetic)]
    sets = [Dataset.from_pandas(table, data_definition=definition) for table in frames]
    found = Report([DataDriftPreset()]).run(sets[1], sets[0]).dict()["metrics"]
    drifted = next(m["value"]["count"] for m in found if isinstance(m["value"], dict))
    # Distances, in multiples of the threshold; p-values, of few rows, the other way round.
    scores = {}
    for metric in found:
        if not isinstance(metric["value"], dict):
            config = metric["config"]
            ratio = float(metric["value"]) / config["threshold"]
            scores[config["column"]] = -ratio if "p_value" in config["method"] else ratio
    first = max(scores, key=lambda name: scores[name])
    return Found(drifted > 0, scores[first], first if drifted else "")


def _alibi_columns(real: pd.DataFrame, synthetic: pd.DataFrame, level: float, seed: int) -> Found:
    from alibi_detect.cd import TabularDrift  # pyright: ignore

    x, y, categories = _as_matrices(real, synthetic)
    detector = TabularDrift(x, p_val=level, categories_per_feature=dict.fromkeys(categories))
    found = detector.predict(y, drift_type="batch")["data"]
    first = int(np.nanargmin(found["p_val"]))
    return Found(bool(found["is_drift"]), -float(found["p_val"][first]), str(real.columns[first]))


def _alibi_classifier(
    real: pd.DataFrame, synthetic: pd.DataFrame, level: float, seed: int
) -> Found:
    """The classifier's drift with boosted trees, tested on a quarter of the rows, its default."""
    from alibi_detect.cd import ClassifierDrift  # pyright: ignore

    x, y, categories = _as_matrices(real, synthetic)
    options: dict[str, Any] = {"categorical_features": categories, "random_state": seed}
    trees = HistGradientBoostingClassifier(**options)
    detector = ClassifierDrift(x, trees, backend="sklearn", p_val=level, seed=seed)
    found = detector.predict(y)["data"]
    return Found(bool(found["is_drift"]), -float(found["p_val"]), "")


def _deepchecks(real: pd.DataFrame, synthetic: pd.DataFrame, level: float, seed: int) -> Found:
    """Its suite for two tables; an alarm is any of its conditions that fails."""
    from deepchecks.tabular import Dataset  # pyright: ignore
    from deepchecks.tabular.suites import train_test_validation  # pyright: ignore

    frames = [_with_text_categories(table) for table in (real, synthetic)]
    categories = [str(name) for name in real if _is_category(real[name])]
    sets = [Dataset(table, cat_features=categories) for table in frames]
    found = train_test_validation(random_state=seed).run(*sets, with_display=False)
    values = {result.check.name(): result.value for result in found.get_not_passed_checks()}
    values |= {result.check.name(): result.value for result in found.get_passed_checks()}
    columns = {name: value["Drift score"] for name, value in values["Feature Drift"].items()}
    first = max(columns, key=lambda name: columns[name])
    drift = values["Multivariate Drift"]["domain_classifier_drift_score"]
    return Found(not found.passed(), max(columns[first], drift), str(first))


def _nannyml_columns(real: pd.DataFrame, synthetic: pd.DataFrame, level: float, seed: int) -> Found:
    """Its calculator of drift for each column; an alarm is one in any of its ten chunks."""
    import nannyml  # pyright: ignore

    names = [str(name) for name in real]
    calculator = nannyml.UnivariateDriftCalculator(column_names=names)
    frame = calculator.fit(real).calculate(synthetic).filter(period="analysis").to_df()
    alerts, scores = {}, {}
    for name in names:
        part = frame[name].iloc[:, :]
        alerts[name] = part.xs("alert", axis=1, level=-1).to_numpy(bool).sum()
        value = part.xs("value", axis=1, level=-1).to_numpy(float)
        limit = part.xs("upper_threshold", axis=1, level=-1).to_numpy(float)
        scores[name] = float(np.nanmean(value / limit))
    first = max(names, key=lambda name: (alerts[name], scores[name]))
    return Found(alerts[first] > 0, max(scores.values()), first if alerts[first] else "")


def _nannyml_classifier(
    real: pd.DataFrame, synthetic: pd.DataFrame, level: float, seed: int
) -> Found:
    """Its classifier of domains on all rows at once; the default alarm is an AUC above .65."""
    import nannyml  # pyright: ignore

    calculator = nannyml.DomainClassifierCalculator(
        feature_column_names=[str(name) for name in real], chunk_number=1
    )
    frame = calculator.fit(real).calculate(synthetic).filter(period="analysis").to_df()
    auc = frame["domain_classifier_auroc"]
    return Found(bool(auc["alert"].any()), float(auc["value"].max()), "")


TOOLS: dict[str, tuple[str, Tool]] = {
    "divjax": ("divjax", _divjax),
    "SciPy, each column": ("scipy", _each_column),
    "boosted trees (scikit-learn)": ("sklearn", _trees),
    "SDMetrics": ("sdmetrics", _sdmetrics),
    "Evidently": ("evidently", _evidently),
    "alibi-detect, columns": ("alibi_detect", _alibi_columns),
    "alibi-detect, classifier": ("alibi_detect", _alibi_classifier),
    "deepchecks": ("deepchecks", _deepchecks),
    "NannyML, columns": ("nannyml", _nannyml_columns),
    "NannyML, classifier": ("nannyml", _nannyml_classifier),
}


def installed() -> dict[str, Tool]:
    """All tools that are installed; what is not is said."""
    found = {}
    for name, (package, tool) in TOOLS.items():
        if importlib.util.find_spec(package) is None:
            print(f"{package} is not installed: {name} is left out.", flush=True)
        else:
            found[name] = tool
    return found


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what the tools print, log and warn of."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            with contextlib.redirect_stderr(io.StringIO()):
                yield
    finally:
        logging.disable(logging.NOTSET)


def _is_category(column: Any) -> bool:
    return isinstance(column.dtype, pd.CategoricalDtype)


def _with_text_categories(table: pd.DataFrame) -> pd.DataFrame:
    """Categories as text, the type that such tools expect."""
    return table.astype({name: object for name in table if _is_category(table[name])})


def _as_matrices(
    real: pd.DataFrame, synthetic: pd.DataFrame
) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Both tables as numbers: gaps as the median, or as a level, and levels as codes."""
    columns, categories = [], []
    for index, name in enumerate(real):
        pooled = pd.concat([real[name], synthetic[name]], ignore_index=True)
        if _is_category(real[name]):
            categories.append(index)
            columns.append(pd.factorize(pooled.astype(object), use_na_sentinel=False)[0])
        else:
            columns.append(pooled.fillna(pooled.median()).to_numpy(float))
    rows = np.stack(columns, axis=1).astype(float)
    return rows[: len(real)], rows[len(real) :], categories
