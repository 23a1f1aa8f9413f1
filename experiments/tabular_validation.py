"""Validating tables by divergences: known truths, real tables, and any two csv files.

    python -m experiments.tabular_validation                                  # --quick for a try
    python -m experiments.tabular_validation --real a.csv --synthetic b.csv   # two of your own

Known truths are the use cases of Apellániz et al. (arXiv 2405.07822): Gaussians in ten dimensions
(1), mixtures in two (2), a mixture against one fitted to few of its samples (3), the chasm of two
Gaussians moved apart, and (of its successor, arXiv 2606.16411) samples of unequal sizes. Theirs are
trained on M rows a class, stopped on L and tested on another L; ours are cross-fitted on the same
M + 2L. Real tables are the paper's own pairs, and four public ones against what three simple
synthesizers make of one half, compared with the other half, and one half against the other.
"""

import dataclasses
import functools
import hashlib
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import tyro
from jax.nn import softplus
from matplotlib.figure import Figure
from sklearn.mixture import GaussianMixture as FittedMixture

from divjax import plot, problems, ratio
from experiments import common, data, synthesizers
from experiments.table_comparison import (
    column_rows,
    compare,
    draw,
    measurements,
    view_rows,
)

STUDIES = ("gaussians", "mixtures", "fitted", "chasm", "imbalance", "tables")

# KL in nats and JS in bits as published: the authors' stored results, mean ± 1.96 standard errors
# of five seeds whose Gaussians are not ours; corrected estimates for the imbalance.
PAPER_SIZES = ((20, 20), (20, 2000), (200, 200), (200, 2000), (2000, 20), (2000, 200), (2000, 2000))
PAPER: dict[str, list[tuple[str, str]]] = {
    "gaussians": [
        ("0.802 ± 0.152", "0.213 ± 0.078"),
        ("0.665 ± 0.084", "0.209 ± 0.028"),
        ("1.099 ± 0.228", "0.294 ± 0.049"),
        ("0.955 ± 0.101", "0.267 ± 0.038"),
        ("0.833 ± 0.229", "0.218 ± 0.111"),
        ("0.978 ± 0.185", "0.290 ± 0.049"),
        ("1.060 ± 0.200", "0.293 ± 0.050"),
    ],
    "mixtures": [
        ("1.832 ± 0.912", "0.371 ± 0.078"),
        ("1.512 ± 0.381", "0.331 ± 0.039"),
        ("2.686 ± 0.294", "0.374 ± 0.020"),
        ("3.037 ± 0.517", "0.412 ± 0.009"),
        ("2.771 ± 0.751", "0.474 ± 0.096"),
        ("2.628 ± 0.357", "0.412 ± 0.019"),
        ("2.913 ± 0.129", "0.420 ± 0.013"),
    ],
    "fitted": [("2.246", "0.215"), ("0.066", "0.030"), ("0.049", "0.002"), ("0.022", "0.003")],
    "chasm": [
        (f"{kl:.4g}", "") for kl in (0.122, 0.719, 1.868, 4.396, 6.48, 8.81, 17.3, 12.0, 15.6, 15.5)
    ],
    "imbalance": [("", "0.268"), ("", "0.289"), ("", "0.297")],
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a run depends on."""

    real: Path | None = None
    """A csv file, to be compared with `synthetic` in place of all studies."""
    synthetic: Path | None = None
    categorical: tuple[str, ...] = ()
    """Columns of numbers in the csv files that are categories, such as codes."""
    drop: tuple[str, ...] = ()
    """Columns of the csv files to leave out, such as identifiers."""
    studies: tuple[str, ...] = STUDIES
    tables: tuple[str, ...] = (*data.PAIRS, *data.TABLES)
    """Of the study of that name."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    head: str = "auto"
    max_rows: int = 5000
    """Rows of each real table, drawn at random."""
    quick: bool = False
    """Two seeds, linear heads, small samples, a case a study, two tables: does everything run?"""

    def __post_init__(self):
        if (self.real is None) != (self.synthetic is None):
            raise SystemExit("give both --real and --synthetic, or neither.")
        unknown = set(self.studies) - set(STUDIES)
        if unknown or not self.studies:
            raise SystemExit(f"studies must be among {', '.join(STUDIES)}; got {sorted(unknown)}.")
        if unknown := set(self.tables) - {*data.PAIRS, *data.TABLES}:
            known = ", ".join((*data.PAIRS, *data.TABLES))
            raise SystemExit(f"tables must be among {known}; got {sorted(unknown)}.")
        common.check_seeds(self.seeds)
        common.check_positive(max_rows=self.max_rows)
        if self.quick:
            small = {"tables": self.tables[1:3], "seeds": self.seeds[:2]}
            for name, value in {**small, "head": "linear", "max_rows": 500}.items():
                object.__setattr__(self, name, value)

    @property
    def estimator(self) -> ratio.ClassifierRatio:
        """The estimator of all studies."""
        return ratio.ClassifierRatio(head=self.head)


def fitted(seed: int, num_rows: int) -> problems.Task:
    """Use case 3: a mixture and the one fitted to few of its samples by maximum likelihood."""

    def fit(samples):
        model: Any = FittedMixture(2, random_state=seed).fit(np.asarray(samples))
        law = model.weights_, model.means_, model.covariances_
        return problems.GaussianMixture(*(jnp.asarray(a, jnp.float32) for a in law))

    return problems.fitted_mixture(jax.random.key(1000 + seed), num_rows, fit)


@dataclasses.dataclass(frozen=True)
class Case:
    """One row of a study: the task of a seed, rows of p and q, and the published KL and JS."""

    name: str
    task: Callable[[int], problems.Task]
    rows: tuple[int, int]
    paper: tuple[str, str]


def cases(settings: Settings, study: str) -> list[Case]:
    """All of a study; of a quick run one, with a quarter of the rows."""
    if study in ("gaussians", "mixtures"):
        make = {
            "gaussians": problems.random_gaussians,
            "mixtures": lambda _: problems.mixture_pair(),
        }
        found = [(f"M = {m}, L = {l}", make[study], m + 2 * l, m + 2 * l) for m, l in PAPER_SIZES]
    elif study == "fitted":
        found = [
            (f"fitted to {n}", functools.partial(fitted, num_rows=n), 6000, 6000)
            for n in (10, 50, 100, 150)
        ]
    elif study == "chasm":
        shifts = np.linspace(0, 4, 20)[1::2]
        found = [(f"a = {a:.2f}", lambda _, a=a: problems.chasm(a), 2400, 2400) for a in shifts]
    else:
        found = [
            (f"n_q/n_p = {share:g}", problems.random_gaussians, 2000, round(2000 * share))
            for share in (0.1, 0.5, 1.0)
        ]
    every = list(zip(found, PAPER[study], strict=True))
    chosen = every[len(every) // 2 :][:1] if settings.quick else every
    part = 4 if settings.quick else 1
    return [Case(name, task, (n // part, m // part), paper) for (name, task, n, m), paper in chosen]


def measure(estimator: Any, seed: int, task: problems.Task, rows: tuple[int, int]) -> dict:
    """The truth, what the exact log ratio gives on the same rows, and the estimates of one pair.

    KL is in nats, JS in bits.
    """
    sample_key, fit_key, test_key = jax.random.split(jax.random.key(seed), 3)
    p, q = task.sample(sample_key, *rows)
    start = time.perf_counter()
    fit = jax.block_until_ready(estimator.fit(fit_key, p, q))
    seconds = {"fit_seconds": time.perf_counter() - start}
    u_p, u_q = task.log_ratio(p), task.log_ratio(q)
    exact = {
        "true_kl": task.kl,
        "true_js": task.js / math.log(2),
        "exact_kl": jnp.mean(u_p),
        "exact_js": 1 - (jnp.mean(softplus(-u_p)) + jnp.mean(softplus(u_q))) / math.log(4),
    }
    return exact | measurements(test_key, fit) | seconds


def truth_row(label: str, case: Case, found: list[dict]) -> dict:
    """Estimate beside truth; errors are seed by seed, since the truth changes with the seed.

    Beside them the error by the exact log ratio: that of sampling alone.
    """
    stack = {name: np.stack([one[name] for one in found]) for name in found[0]}

    def covered(kind):
        low, high = stack[f"{kind}_interval"].T
        return f"{np.sum((low <= stack[f'true_{kind}']) & (stack[f'true_{kind}'] <= high))}"

    row: dict[str, Any] = {"case": label, "rows": f"{case.rows[0]} / {case.rows[1]}"}
    for kind, digits, published in (("kl", 3, case.paper[0]), ("js", 4, case.paper[1])):
        error = np.abs(stack[kind] - stack[f"true_{kind}"])
        exact = np.abs(stack[f"exact_{kind}"] - stack[f"true_{kind}"])
        certified = stack[f"certified_{kind}"]
        row |= {
            f"true {kind.upper()}": f"{stack[f'true_{kind}'].mean():.{digits}f}",
            f"{kind.upper()}": common.with_error(stack[kind], digits),
            f"mean abs error {kind.upper()}": f"{error.mean():.{digits}f}",
            f"by the exact ratio, {kind.upper()}": f"{exact.mean():.{digits}f}",
            f"covered {kind.upper()}": f"{covered(kind)} of {len(found)}",
            f"certified {kind.upper()}": f"{np.maximum(certified, 0).mean():.{digits}f}",
            f"paper {kind.upper()}": published,
        }
    return row | {"seconds a fit": f"{np.median(stack['fit_seconds']):.1f}"}


def draw_chasm(curves: dict[str, list[list[dict]]], paper: list[float]) -> Figure:
    """Estimates of KL and lower bounds, as shares of the true one: mean over seeds."""
    with plot.style():
        figure, axis = plt.subplots(figsize=(7, 5))
        axis.axhline(1, color="0.4", linestyle="-", linewidth=1, label="truth")
        for index, (name, found) in enumerate(curves.items()):
            true = np.array([np.mean([one["true_kl"] for one in seeds]) for seeds in found])
            for kind in ("kl", "certified_kl"):
                values = np.array([[float(one[kind]) for one in seeds] for seeds in found])
                # A bound below zero says no more than zero does.
                values = np.maximum(values, 0) if kind == "certified_kl" else values
                label = name if kind == "kl" else f"{name}, certified"
                # Bounds of two estimators may agree: a wide open marker is seen around another one.
                open_ring = {"marker": "o", "markersize": 10, "markerfacecolor": "none"}
                marker = open_ring if index == 0 else {"marker": "s", "markersize": 4}
                plot.curves(values.T / true, steps=true, label=label, ax=axis, **marker)
            if index == 0:
                axis.plot(true, np.array(paper) / true, marker="x", label="paper")
        axis.set(xscale="log", xlabel="true KL, nats", ylim=(-0.05, None))
        axis.set(ylabel="estimate or bound / true KL")
        axis.set_title("The chasm: mean over seeds, band ± one standard error")
        figure.legend(loc="outside lower center", ncols=2, handlelength=4)
    return figure


def run_known_truths(run: common.Run, settings: Settings) -> None:
    """Tables of the studies whose truth is known, and the chasm's curve."""
    for study in [study for study in STUDIES[:-1] if study in settings.studies]:
        estimators: dict[str, Any] = {"classifier": settings.estimator}
        if study == "chasm":
            network = None if settings.quick else ratio.heads.Network()
            estimators["telescoping"] = ratio.TelescopingRatio(
                ratio.heads.Telescoping(network=network)
            )
        if study == "imbalance" and not settings.quick:
            repeated = dataclasses.replace(settings.estimator, num_repeats=5)
            estimators["classifier, 5 repeats"] = repeated
        rows, curves, paper = [], {name: [] for name in estimators}, []
        for case in common.progress(cases(settings, study), study):
            for name, estimator in estimators.items():
                found = [
                    run.stage(
                        f"{study} {case.name} {name} {seed}",
                        functools.partial(measure, estimator, seed, case.task(seed), case.rows),
                    )
                    for seed in settings.seeds
                ]
                label = case.name if len(estimators) == 1 else f"{case.name}, {name}"
                rows.append(truth_row(label, case, found))
                curves[name].append(found)
            paper.append(case.paper[0])
        print(f"\n{study}: KL in nats, JS in bits, mean ± standard error over seeds\n")
        print(run.save_table(study, rows))
        if study == "chasm":
            run.save_figure("chasm", draw_chasm(curves, [float(value) for value in paper]))


def table_pairs(settings: Settings) -> Iterator[tuple[str, pd.DataFrame, pd.DataFrame, str]]:
    """Name, real and synthetic table, published numbers; what is missing is named and left out."""
    published = {
        "ctgan": "JS 0.1336 ± 0.0007, KL 0.319 ± 0.019",
        "vae": "JS −0.0036 ± 0.0019, KL 0.0028 ± 0.0028",
    }
    for pair in [name for name in settings.tables if name in data.PAIRS]:
        try:
            yield f"adult, {pair}", *data.load_pair(pair), published[pair]
        except FileNotFoundError as error:
            print(f"left out: {error}", flush=True)
    for name in [name for name in settings.tables if name in data.TABLES]:
        try:
            table = data.load_table(name)
        except FileNotFoundError as error:
            print(f"left out: {error}", flush=True)
            continue
        rng = np.random.default_rng(settings.seeds[0])
        train, rest = synthesizers.halves(rng, table)
        yield f"{name}, its other half", rest, train, ""
        for kind, make in synthesizers.SYNTHESIZERS.items():
            yield f"{name}, {kind}", rest, make(rng, train, len(rest)), ""


def run_tables(run: common.Run, settings: Settings) -> None:
    """One comparison a pair of tables: a table of all, a table and a figure each."""
    views, columns = [], []
    for name, real, synthetic, paper in table_pairs(settings):
        found = run.stage(
            f"table {name}",
            lambda real=real, synthetic=synthetic: compare(
                jax.random.key(settings.seeds[0]),
                real,
                synthetic,
                estimator=settings.estimator,
                max_rows=settings.max_rows,
                seed=settings.seeds[0],
            ),
        )
        print(f"{name}: {found['seconds']:.0f} s; " + "; ".join(found["notes"]), flush=True)
        views += [row | {"paper": paper} for row in view_rows(name, found)]
        columns += column_rows(name, found)
        run.save_figure(name.replace(", ", "_").replace(" ", "_"), draw(name, found))
    if views:
        print("\nReal tables, 95 % intervals and bounds\n")
        print(run.save_table("tables", views))
        run.save_table("table_columns", columns)


def read_csv(path: Path) -> pd.DataFrame:
    """A csv file with a header; `?` and the usual words are missing values."""
    try:
        names = pd.read_csv(path, header=None, nrows=1, skipinitialspace=True).loc[0]
        if names.duplicated().any():
            twice = ", ".join(sorted({str(name) for name in names[names.duplicated()]}))
            raise SystemExit(f"{path} must name its columns differently; twice: {twice}.")
        return pd.read_csv(path, na_values=["?"], skipinitialspace=True, low_memory=False)
    except FileNotFoundError as error:
        raise SystemExit(f"there is no file {path}.") from error
    except UnicodeDecodeError as error:
        raise SystemExit(f"{path} must be text in UTF-8: {error}") from error
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise SystemExit(f"{path} is not a csv file with a header: {error}") from error


def run_files(run: common.Run, settings: Settings, real: Path, synthetic: Path) -> None:
    """Compare two csv files."""
    pair = [read_csv(path) for path in (real, synthetic)]
    content = "".join(hashlib.md5(path.read_bytes()).hexdigest() for path in (real, synthetic))

    def compute() -> dict[str, np.ndarray]:
        try:
            return compare(
                jax.random.key(settings.seeds[0]),
                *pair,
                estimator=settings.estimator,
                max_rows=settings.max_rows,
                seed=settings.seeds[0],
                categorical=settings.categorical,
                ignored=settings.drop,
            )
        except ValueError as error:
            raise SystemExit(f"{real} and {synthetic} cannot be compared: {error}") from error

    found = run.stage(f"files {content}", compute)
    name = f"{real.name} and {synthetic.name}"
    n, m = found["num_rows"]
    print(f"\n{name}: {n} and {m} rows, {len(found['columns'])} columns", flush=True)
    if found["left_out"].size:
        print(f"  not compared: {', '.join(found['left_out'])}")
    for note in found["notes"]:
        print(f"  {note}")
    print("\n" + run.save_table("comparison", view_rows(name, found)))
    print("\n" + run.save_table("columns", column_rows(name, found)))
    run.save_figure("comparison", draw(name, found))


def main(settings: Settings, output: Path | None = None, overwrite: bool = False) -> None:
    """Run the studies, or compare two csv files."""
    if settings.real is not None and settings.synthetic is not None:
        name = f"tabular_validation-{settings.real.stem}-{settings.synthetic.stem}"
        with common.open_run(name, settings, output, overwrite) as run:
            run_files(run, settings, settings.real, settings.synthetic)
        return
    with common.open_run("tabular_validation", settings, output, overwrite) as run:
        run_known_truths(run, settings)
        if "tables" in settings.studies:
            run_tables(run, settings)


if __name__ == "__main__":
    tyro.cli(main, config=(tyro.conf.OmitArgPrefixes,))
