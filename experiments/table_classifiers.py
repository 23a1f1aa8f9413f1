"""Trees, networks and both together, on pairs of tables: which classifier `compare_tables` needs.

    python -m experiments.table_classifiers           # --quick for a small one

The AUC of out-of-fold scores, five folds: of scikit-learn's boosted trees on the tables as they
are; of the networks of `ratio.ClassifierRatio` on encoded rows; of `tables.trees`, the trees with
products of columns that `compare_tables` uses; of a stack of these trees and the networks, a
logistic regression on both scores that is fitted to the rows of the other folds. A classifier is as
good as the better one alone where its AUC is not more than .01 below it.

Pairs are Adult and what two published generators make of it, what three simple synthesizers make of
four tables, beside the half that they have not seen, and halves with the faults of
`experiments.table_peers` that change a distribution.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd
import tyro
from scipy.stats import rankdata
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict
from threadpoolctl import threadpool_limits

from divjax import ratio
from divjax.tables import encode
from divjax.tables.classifier import tree_features
from divjax.tables.trees import PairedTrees
from experiments import common, data, synthesizers, table_peers

NUM_FOLDS = 5
FAULTS = ("none", "shift", "dependence", "rounded", "gaps")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a run depends on."""

    tables: tuple[str, ...] = tuple(data.TABLES)
    pairs: tuple[str, ...] = tuple(data.PAIRS)
    rows: int = 2000
    """Of each table, drawn at random."""
    seed: int = 0
    quick: bool = False
    """One synthesizer of one table, few rows: does everything run?"""

    def __post_init__(self):
        for name, known in (("tables", data.TABLES), ("pairs", data.PAIRS)):
            if unknown := set(getattr(self, name)) - set(known):
                raise SystemExit(
                    f"{name} must be among {', '.join(known)}; got {', '.join(sorted(unknown))}."
                )
        common.check_positive(rows=self.rows)
        if self.quick:
            for name, value in {"tables": self.tables[:1], "pairs": (), "rows": 200}.items():
                object.__setattr__(self, name, value)


Frames = tuple[pd.DataFrame, pd.DataFrame]


def _drawn(pair: Frames, rows: int, seed: int) -> Frames:
    first, second = (
        table.sample(min(rows, len(table)), random_state=seed).reset_index(drop=True)
        for table in pair
    )
    return first, second


def _synthesized(name: str, kind: str, rows: int, seed: int) -> Frames:
    rng = np.random.default_rng(seed)
    train, rest = synthesizers.halves(rng, data.load_table(name))
    return _drawn((rest, synthesizers.SYNTHESIZERS[kind](rng, train, rows)), rows, seed)


def cases(settings: Settings) -> dict[str, Callable[[], Frames]]:
    """The pairs of tables by name, each made when it is asked for."""
    rows, seed = settings.rows, settings.seed
    found: dict[str, Callable[[], Frames]] = {
        f"adult, {name}": lambda name=name: _drawn(data.load_pair(name), rows, seed)
        for name in settings.pairs
    }
    kinds = list(synthesizers.SYNTHESIZERS)[:1] if settings.quick else synthesizers.SYNTHESIZERS
    for name in settings.tables:
        for kind in kinds:
            found[f"{name}, {kind}"] = functools.partial(_synthesized, name, kind, rows, seed)
    faults = () if settings.quick else FAULTS
    for name in table_peers.COLUMNS:
        for fault in faults if name in settings.tables else ():
            found[f"{name}, {fault}"] = functools.partial(table_peers.pair, name, fault, rows, seed)
    return found


def evaluate(pair: Frames, seed: int) -> dict[str, Any]:
    """Out-of-fold scores of every classifier, and the seconds that each one took."""
    real, synthetic = pair
    of_real = np.arange(len(real) + len(synthetic)) < len(real)
    key = jax.random.key(seed)
    encoded = encode(real, synthetic, repeats=True)
    features = tree_features(encoded)
    found: dict[str, Any] = {"of_real": of_real}

    def measured(name: str, score: Callable[[], Any]) -> None:
        start = time.perf_counter()
        found[name] = np.asarray(score())
        found[f"{name} seconds"] = time.perf_counter() - start

    def of_fit(estimator: Any, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        fit = estimator.fit(key, x, y)
        return np.concatenate([fit.log_ratio_p, fit.log_ratio_q])

    measured("trees", lambda: _tree_scores(*encoded.tables, seed))
    measured("networks", lambda: of_fit(ratio.ClassifierRatio(), encoded.x, encoded.y))
    paired = ratio.SklearnRatio(PairedTrees(features.values, features.categories, seed), NUM_FOLDS)
    measured("trees with products", lambda: of_fit(paired, features.x, features.y))
    both = np.stack([found["trees with products"], found["networks"]], axis=1)
    measured("stack", lambda: _stacked(both, of_real, seed))
    found["stack seconds"] += found["networks seconds"] + found["trees with products seconds"]
    return found


def _tree_scores(real: pd.DataFrame, synthetic: pd.DataFrame, seed: int) -> np.ndarray:
    """Boosted trees on the columns as they were read, with dates as numbers."""
    rows = pd.concat([real, synthetic], ignore_index=True)
    for name in rows:
        if pd.api.types.is_datetime64_any_dtype(rows[name]):
            rows[name] = rows[name].astype("int64")
        elif not pd.api.types.is_numeric_dtype(rows[name]):
            # Codes, of which the trees take 255 at most.
            codes = pd.factorize(rows[name], sort=True)[0]
            rows[name] = pd.Series(codes).where(codes < 250, 250).astype("category")
    of_real = np.arange(len(rows)) < len(real)
    order = np.random.default_rng(seed).permutation(len(rows))
    trees = HistGradientBoostingClassifier(categorical_features="from_dtype", random_state=seed)
    scores = np.empty(len(rows))
    # Threads of so few rows wait for each other where other work is done.
    with threadpool_limits(1, "openmp"):
        probabilities: Any = cross_val_predict(
            trees, rows.iloc[order], of_real[order], cv=NUM_FOLDS, method="predict_proba"
        )
    scores[order] = probabilities[:, 1]
    return scores


def _stacked(scores: np.ndarray, of_real: np.ndarray, seed: int) -> np.ndarray:
    """A logistic regression on out-of-fold scores, itself out of fold."""
    order = np.random.default_rng(seed).permutation(len(scores))
    found = np.empty(len(scores))
    probabilities: Any = cross_val_predict(
        LogisticRegression(), scores[order], of_real[order], cv=NUM_FOLDS, method="predict_proba"
    )
    found[order] = probabilities[:, 1]
    return found


CLASSIFIERS = ("trees", "networks", "trees with products", "stack")


def _auc(scores: np.ndarray, of_real: np.ndarray) -> float:
    n, m = of_real.sum(), (~of_real).sum()
    return float((rankdata(scores)[of_real].sum() - n * (n + 1) / 2) / (n * m))


def auc_rows(results: dict[str, dict[str, np.ndarray]]) -> list[dict[str, Any]]:
    """The AUC of each classifier on each pair, and by how much the last two miss the best alone."""
    rows = []
    for name, arrays in results.items():
        aucs = {one: _auc(arrays[one], arrays["of_real"]) for one in CLASSIFIERS}
        best = max(aucs["trees"], aucs["networks"])
        row: dict[str, Any] = {"pair": name} | {one: f"{auc:.3f}" for one, auc in aucs.items()}
        for one in CLASSIFIERS[2:]:
            row[f"{one} − better alone"] = f"{aucs[one] - best:+.3f}"
        rows.append(row)
    return rows


def time_rows(results: dict[str, dict[str, np.ndarray]]) -> list[dict[str, Any]]:
    """The median over pairs of the seconds of each classifier, compilation included."""
    medians = {
        one: np.median([float(arrays[f"{one} seconds"]) for arrays in results.values()])
        for one in CLASSIFIERS
    }
    return [{one: f"{seconds:.1f}" for one, seconds in medians.items()}]


def main(settings: Settings, output: Path | None = None, overwrite: bool = False) -> None:
    """Score all pairs by all classifiers; print AUCs and seconds."""
    with common.open_run("table_classifiers", settings, output, overwrite) as run:
        made = cases(settings)
        found = run.stages(
            "pairs", [(name,) for name in made], lambda name: evaluate(made[name](), settings.seed)
        )
        results = {name: arrays for (name,), arrays in found.items()}
        print("\nAUC of out-of-fold scores\n")
        print(run.save_table("auc", auc_rows(results)))
        print("\nSeconds a pair, the median\n")
        print(run.save_table("time", time_rows(results)))


if __name__ == "__main__":
    tyro.cli(main, config=(tyro.conf.OmitArgPrefixes,))
