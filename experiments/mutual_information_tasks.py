"""Estimates of mutual information on tasks of known value: bias, spread, coverage, time.

    python -m experiments.mutual_information_tasks            # --quick for a small one

The tasks are those of Czyż, Grabowski, Vogt, Beerenwinkel, Marx 2023 ("Beyond normal"), rebuilt
from their definitions in `divjax.problems`: jointly normal variables, maps of them that change no
information, Student's t, a uniform variable with uniform noise. Every estimator sees the same
draws, `repetitions` of each task and size.

Estimators: `information.mutual_information` by its default, `KSG` with a Gaussian copula as
reference, by Kraskov's `KSG` (algorithms 1 and 2) and by `Gaussian`. Beside them, where they are
installed and where they take the variables: scikit-learn's `mutual_info_regression` (one feature
each), ennemi (one feature each) and infomeasure, all with three neighbours.

An estimate is a mean over repetitions with its standard error. Coverage is the share of 90 %
intervals that hold the truth: what is known of a single estimate, bias included.
"""

import dataclasses
import functools
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import tyro
from jax.scipy.special import ndtr, ndtri
from matplotlib.figure import Figure
from sklearn.feature_selection import mutual_info_regression

from divjax import information, plot, problems
from experiments import common


def _half_cube(z: jax.Array) -> jax.Array:
    return z * jnp.sqrt(jnp.abs(z))


def _undo_half_cube(z: jax.Array) -> jax.Array:
    return jnp.sign(z) * jnp.abs(z) ** (2 / 3)


TASKS: dict[str, Callable[[], problems.Task]] = {
    "normal 1 × 1": problems.binormal,
    "uniform margins": lambda: problems.binormal().transformed(ndtr, ndtri),
    "half-cube": lambda: problems.binormal().transformed(_half_cube, _undo_half_cube),
    "normal 2 × 2, dense": lambda: problems.dense_gaussian(2, 2),
    "normal 3 × 3, dense": lambda: problems.dense_gaussian(3, 3),
    "normal 5 × 5, dense": lambda: problems.dense_gaussian(5, 5),
    "normal 3 × 3, two pairs": lambda: problems.two_pairs(3, 3),
    "normal 5 × 5, two pairs": lambda: problems.two_pairs(5, 5),
    "Student 1 × 1, ν = 1": lambda: problems.student_t(1, 1, 1.0),
    "Student 2 × 2, ν = 2": lambda: problems.student_t(2, 2, 2.0),
    "Student 3 × 3, ν = 3": lambda: problems.student_t(3, 3, 3.0),
    "Student 5 × 5, ν = 2": lambda: problems.student_t(5, 5, 2.0),
    "uniform noise .1": lambda: problems.additive_uniform(0.1),
    "uniform noise .75": lambda: problems.additive_uniform(0.75),
}

METHODS: dict[str, Any] = {
    "KSG, copula": information.KSG(reference="gaussian_copula"),
    "KSG": information.KSG(),
    "KSG, algorithm 2": information.KSG(algorithm=2),
    "Gaussian": information.Gaussian(),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a run depends on."""

    tasks: tuple[str, ...] = tuple(TASKS)
    sizes: tuple[int, ...] = (1000, 10_000)
    repetitions: int = 20
    confidence_level: float = 0.9
    seed: int = 0
    quick: bool = False
    """Two tasks, 200 rows, four repetitions: does everything run?"""

    def __post_init__(self):
        unknown = set(self.tasks) - set(TASKS)
        if unknown or not self.tasks:
            raise SystemExit(f"tasks must be among {', '.join(TASKS)}; got {sorted(unknown)}.")
        if not 0 < self.confidence_level < 1:
            raise SystemExit(f"confidence_level must be in (0, 1); got {self.confidence_level}.")
        common.check_positive(sizes=self.sizes, repetitions=self.repetitions)
        if self.quick:
            small = {"tasks": (self.tasks[0], self.tasks[-1]), "sizes": (200,), "repetitions": 4}
            for name, value in small.items():
                object.__setattr__(self, name, value)


def peers() -> dict[str, Callable[[np.ndarray, np.ndarray], float | None]]:
    """Estimates of other packages that are installed; None where they do not take the variables."""

    def of_scikit_learn(x: np.ndarray, y: np.ndarray) -> float | None:
        if x.shape[1] > 1 or y.shape[1] > 1:
            return None
        return float(mutual_info_regression(x, y[:, 0], n_neighbors=3)[0])

    found: dict[str, Callable[[np.ndarray, np.ndarray], float | None]] = {
        "scikit-learn": of_scikit_learn
    }
    try:
        import ennemi  # pyright: ignore[reportMissingImports]

        def of_ennemi(x: np.ndarray, y: np.ndarray) -> float | None:
            if x.shape[1] > 1 or y.shape[1] > 1:
                return None
            return float(np.squeeze(ennemi.estimate_mi(y[:, 0], x[:, 0], k=3)))

        found["ennemi"] = of_ennemi
    except ImportError:
        print("ennemi is not installed: left out.")
    try:
        import infomeasure  # pyright: ignore[reportMissingImports]

        found["infomeasure"] = lambda x, y: float(
            infomeasure.mutual_information(x, y, approach="ksg", k=3)
        )
    except ImportError:
        print("infomeasure is not installed: left out.")
    return found


def evaluate(settings: Settings, name: str, n: int) -> dict[str, np.ndarray]:
    """Values, interval ends and seconds of all estimators, for all repetitions of a task."""
    task = TASKS[name]()
    keys = jax.random.split(jax.random.key(settings.seed), settings.repetitions)
    x, y = jax.jit(lambda keys: jax.lax.map(lambda key: task.sample_pairs(key, n), keys))(keys)
    found: dict[str, np.ndarray] = {"truth": np.array(task.kl)}
    level = settings.confidence_level
    for method_name, method in METHODS.items():

        def one(pair: tuple[jax.Array, jax.Array], method: Any = method) -> tuple[jax.Array, ...]:
            estimate = information.mutual_information(*pair, method=method, confidence_level=level)
            return estimate.value, *estimate.interval

        compiled = jax.jit(functools.partial(jax.lax.map, one)).lower((x, y)).compile()
        start = time.perf_counter()
        values, low, high = map(np.asarray, compiled((x, y)))
        seconds = (time.perf_counter() - start) / settings.repetitions
        found |= {method_name: values, f"{method_name} low": low, f"{method_name} high": high}
        found[f"{method_name} seconds"] = np.array(seconds)
    for peer, estimate in peers().items():
        values, start = [], time.perf_counter()
        for pair in zip(np.asarray(x, float), np.asarray(y, float), strict=True):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                value = estimate(*pair)
            if value is None:
                break
            values.append(value)
        if values:
            found[peer] = np.array(values)
            found[f"{peer} seconds"] = np.array((time.perf_counter() - start) / len(values))
    return found


Results = dict[tuple[str, int], dict[str, np.ndarray]]


def names_of(results: Results) -> list[str]:
    """All estimators, in the order in which they first occur."""
    names = {}
    for arrays in results.values():
        names |= dict.fromkeys(
            key.removesuffix(" seconds") for key in arrays if key.endswith(" seconds")
        )
    return list(names)


def value_rows(results: Results) -> list[dict[str, Any]]:
    """The truth, and each estimator's mean ± its standard error over repetitions."""
    table = []
    for (task, n), arrays in results.items():
        row: dict[str, Any] = {"task": task, "n": n, "truth": f"{float(arrays['truth']):.3f}"}
        for name in names_of(results):
            row[name] = common.with_error(arrays[name], 3) if name in arrays else "–"
        table.append(row)
    return table


def held(arrays: dict[str, np.ndarray], name: str) -> float:
    """The share of intervals that hold the truth."""
    low, high = arrays[f"{name} low"], arrays[f"{name} high"]
    return float(((low <= arrays["truth"]) & (arrays["truth"] <= high)).mean())


def coverage_rows(results: Results) -> list[dict[str, Any]]:
    """The share of intervals that hold the truth, in per cent, and its mean over the tasks."""
    table = []
    for n in sorted({n for _, n in results}):
        of_size = {task: arrays for (task, size), arrays in results.items() if size == n}
        for task, arrays in of_size.items():
            shares = {name: f"{100 * held(arrays, name):.0f}" for name in METHODS}
            table.append({"task": task, "n": n, **shares})
        means = {name: np.mean([held(a, name) for a in of_size.values()]) for name in METHODS}
        shares = {name: f"{100 * mean:.0f}" for name, mean in means.items()}
        table.append({"task": "all", "n": n, **shares})
    return table


def summary_rows(results: Results) -> list[dict[str, Any]]:
    """For each size and estimator: the mean absolute error, an interval's width, and seconds.

    Errors over the tasks that all estimators take, and over all that this one takes.
    """
    table = []
    names = names_of(results)
    for n in sorted({n for _, n in results}):
        of_size = [arrays for (_, size), arrays in results.items() if size == n]
        shared = [arrays for arrays in of_size if all(name in arrays for name in names)]
        for name in names:
            own = [arrays for arrays in of_size if name in arrays]
            error = lambda some, name=name: (
                np.mean([np.abs(a[name] - a["truth"]).mean() for a in some]) if some else math.nan
            )
            seconds = np.median([float(arrays[f"{name} seconds"]) for arrays in own])
            widths = [a[f"{name} high"] - a[f"{name} low"] for a in own if name in METHODS]
            table.append(
                {
                    "n": n,
                    "estimator": name,
                    "tasks": len(own),
                    "error, its tasks": f"{error(own):.4f}",
                    "error, shared tasks": f"{error(shared):.4f}",
                    "interval's width": f"{np.mean(widths):.3f}" if widths else "–",
                    "ms": f"{1000 * seconds:.3g}",
                }
            )
    return table


def draw(results: Results) -> Figure:
    """The error of each estimator on each task, at the largest size."""
    largest = max(n for _, n in results)
    tasks = [task for task, n in results if n == largest]
    names = names_of(results)
    with plot.style():
        figure, axis = plt.subplots(figsize=(9, 0.42 * len(tasks) + 2))
        places = np.arange(len(tasks))
        for number, name in enumerate(names):
            mean, error, at = [], [], []
            for place, task in zip(places, tasks, strict=True):
                arrays = results[task, largest]
                if name in arrays:
                    gap = arrays[name] - arrays["truth"]
                    mean.append(gap.mean())
                    error.append(gap.std())
                    at.append(place + 0.1 * (number - len(names) / 2))
            axis.errorbar(mean, at, xerr=error, fmt="osD^vPX*"[number % 8], ms=4, lw=1, label=name)
        axis.axvline(0, color="black", linestyle=":", linewidth=1)
        axis.set_yticks(places, tasks)
        axis.invert_yaxis()
        axis.set(xlabel=f"estimate less truth, nats (mean ± standard deviation), n = {largest}")
        axis.legend(loc="upper left", bbox_to_anchor=(1.01, 1))
    return figure


def main(settings: Settings, output: Path | None = None, overwrite: bool = False) -> None:
    """Estimate on all tasks, print values, coverage and errors, draw the errors."""
    with common.open_run("mutual_information_tasks", settings, output, overwrite) as run:
        cells = [(task, n) for n in settings.sizes for task in settings.tasks]
        results: Results = run.stages("tasks", cells, functools.partial(evaluate, settings))
        print("\nMutual information in nats, mean ± standard error over repetitions:\n")
        print(run.save_table("values", value_rows(results)))
        print(f"\nIntervals of {settings.confidence_level:.0%} that hold the truth, in per cent:\n")
        print(run.save_table("coverage", coverage_rows(results)))
        print("\nMean absolute error in nats, and milliseconds an estimate after compilation:\n")
        print(run.save_table("summary", summary_rows(results)))
        run.save_figure("errors", draw(results))


if __name__ == "__main__":
    tyro.cli(main, config=(tyro.conf.OmitArgPrefixes,))
