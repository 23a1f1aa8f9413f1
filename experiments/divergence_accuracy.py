"""How accurate every estimator of a divergence from samples is, on tasks with known answers.

    python -m experiments.divergence_accuracy            # hours on two cores; --quick for a try

`tasks`: each estimator on each task at N = 1000 and 10 000 samples a side over seeds: bias, spread,
how often its nominal 90 % interval covers the truth, and seconds (compiled, one at a time; of all
read-outs of one critic together). The tasks are the Gaussian and mixture use cases of arXiv
2405.07822, Gaussian shifts, scales and correlations of known KL, and mutual-information tasks with
heavy tails and bounded noise, seen as p = joint against q = product of the marginals.

`correlated`: correlated Gaussians of growing dimension, KL up to 80 nats, at N = 100 000
(telescoping ratio estimation, Rhodes et al. 2020, figure 3): a single network, a single Gaussian
discriminant, which is told the family, and bridges, whose validation rows weigh a linear against a
Gaussian start, with a network trained on top.

`bridges`: whether bridges learn. Correlated Gaussians in 20 dimensions at N = 10 000 by logistic
regression on all squares and products, whose fit knows nothing of Gaussians: once for p against q,
and once a bridge.

An estimator never sees the truth; the networks' default learning rate was chosen on like tasks at
other seeds.
"""

import collections
import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import tyro
from matplotlib.figure import Figure

from divjax import Estimate, fdiv, plot, problems, ratio
from divjax.ratio import heads
from experiments import common

STUDIES = ("tasks", "correlated", "bridges")

LEVEL = 0.9
BITS = 1 / np.log(2)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a run depends on."""

    studies: tuple[str, ...] = STUDIES
    sizes: tuple[int, ...] = (1000, 10000)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    tasks: tuple[str, ...] = ()
    """Names of tasks; all by default."""
    methods: tuple[str, ...] = ()
    """Names of methods; all by default."""
    dims: tuple[int, ...] = (40, 80, 160, 320)
    """Of `correlated`; the KL is a quarter of it."""
    distances: tuple[float, ...] = (5.0, 10.0, 20.0)
    """KL of `bridges`."""
    bridges_size: int = 10_000
    correlated_size: int = 100_000
    quick: bool = False
    """Two tasks, three methods, 300 samples and two seeds: does everything run?"""

    def __post_init__(self):
        for name, known in (("studies", STUDIES), ("tasks", TASKS), ("methods", METHODS)):
            chosen = getattr(self, name) or tuple(known)
            unknown = set(chosen) - set(known)
            if unknown:
                raise SystemExit(f"{name} must be among {', '.join(known)}; got {sorted(unknown)}.")
            object.__setattr__(self, name, chosen)
        common.check_seeds(self.seeds)
        numbers = ("sizes", "dims", "distances", "bridges_size", "correlated_size")
        common.check_positive(**{name: getattr(self, name) for name in numbers})
        if self.quick:
            small = {"sizes": (300,), "seeds": self.seeds[:2], "tasks": self.tasks[:2]}
            small |= {"methods": ("neighbors", "gaussian", "linear")}
            small |= {"dims": (4,), "correlated_size": 1000}
            small |= {"distances": (5.0,), "bridges_size": 500}
            for name, value in small.items():
                object.__setattr__(self, name, value)


# A task may change with the seed, as the first use case does.
TASKS: dict[str, Callable[[int], problems.Task]] = {
    "use case 1": problems.random_gaussians,
    "use case 2": lambda seed: problems.mixture_pair(),
    "shift d=1": lambda seed: problems.gaussian_shift(1, 0.5),
    "shift d=10": lambda seed: problems.gaussian_shift(10, 1.0),
    "shift d=50": lambda seed: problems.gaussian_shift(50, 2.0),
    "correlated d=10": lambda seed: problems.correlated_gaussians(10, 2.0),
    "correlated d=20": lambda seed: problems.correlated_gaussians(20, 5.0),
    "correlated d=40": lambda seed: problems.correlated_gaussians(40, 10.0),
    "scale .1": lambda seed: problems.gaussian_scale(1, 0.1),
    "scale .001": lambda seed: problems.gaussian_scale(1, 0.001),
    "MI Student 2x2, 2 df": lambda seed: problems.student_t(2, 2, 2.0),
    "MI uniform noise .1": lambda seed: problems.additive_uniform(0.1),
    "MI dense 5x5": lambda seed: problems.dense_gaussian(5, 5),
}


Estimates = dict[str, dict[str, Any]]


def _numbers(estimate: Estimate) -> tuple[Any, ...]:
    """The value, its standard error and the interval."""
    return estimate.value, estimate.std_error, estimate.interval


def _of_fit(name: str, method: Any) -> Callable[..., Estimates]:
    def estimate(key, p, q):
        fit = method.fit(key, p, q)
        return {
            name: {
                "kl": _numbers(fit.kl(confidence_level=LEVEL)),
                "js": _numbers(fit.js(confidence_level=LEVEL)),
            }
        }

    return estimate


def _neighbors(key, p, q) -> Estimates:
    estimate = functools.partial(fdiv.knn_kl, bias_order=0, confidence_level=LEVEL)
    return {f"kNN (k = {k})": {"kl": _numbers(estimate(p, q, k))} for k in (1, 5)}


def _gaussian(key, p, q) -> Estimates:
    estimate = fdiv.gaussian.plug_in_kl(p, q, confidence_level=LEVEL)
    return {"Gaussian plug-in": {"kl": _numbers(estimate)}}


def _critic(key, p, q) -> Estimates:
    """One critic, trained by Jensen–Shannon, and three bounds on KL read out of it."""
    fit = ratio.DivergenceBound(batch_size=256, hidden=(32, 32)).fit(key, p, q)
    read_outs = {"DV": "dv", "NWJ": "nwj", "Ξ(JS)": "kl_from_js"}
    return {name: {"kl": _numbers(fit.estimate(kind, LEVEL))} for name, kind in read_outs.items()}


# Each method gives one estimator, or several that share their work.
METHODS: dict[str, Callable[..., Estimates]] = {
    "neighbors": _neighbors,
    "gaussian": _gaussian,
    "linear": _of_fit("linear", ratio.ClassifierRatio("linear")),
    "network": _of_fit("network", ratio.ClassifierRatio("mlp")),
    "classifier": _of_fit("classifier (auto)", ratio.ClassifierRatio()),
    "telescoping": _of_fit(
        "telescoping",
        ratio.TelescopingRatio(heads.Telescoping(4, network=heads.Network(num_steps=300))),
    ),
    "least_squares": _of_fit("uLSIF", ratio.LeastSquaresRatio()),
    "kliep": _of_fit("KLIEP", ratio.KLIEPRatio()),
    "critic": _critic,
}


@functools.lru_cache(maxsize=len(METHODS))
def compiled(method: str, size: int, dim: int) -> Callable[..., Estimates]:
    """The method, compiled once for all tasks of one shape."""
    key = jax.eval_shape(jax.random.key, 0)
    samples = jax.ShapeDtypeStruct((size, dim), jnp.float32)
    return jax.jit(METHODS[method]).lower(key, samples, samples).compile()


def evaluate(settings: Settings, task: str, size: int, method: str) -> dict[str, np.ndarray]:
    """For each estimator of the method value, error and interval over seeds, "seeds 4"; seconds."""
    found: dict[str, list] = collections.defaultdict(list)
    for seed in settings.seeds:
        key = jax.random.key(seed)
        p, q = TASKS[task](seed).sample(jax.random.fold_in(key, 1), size)
        estimate = compiled(method, *p.shape)
        start = time.perf_counter()
        estimates = jax.block_until_ready(estimate(key, p, q))
        found["seconds_each"].append(time.perf_counter() - start)
        for name, read_outs in estimates.items():
            for divergence, (value, error, interval) in read_outs.items():
                numbers = [float(x) for x in (value, error, *interval)]
                found[f"{name}, {divergence}"].append(numbers)
    return {key: np.asarray(value) for key, value in found.items()}


def by_estimator(results: dict[tuple[str, int, str], dict]) -> dict[tuple[str, int, str], dict]:
    """The methods' results by estimator, `{(task, size, estimator): {kl, js, each}}`."""
    table: dict[tuple[str, int, str], dict] = {}
    for (task, size, _), arrays in results.items():
        for label, values in arrays.items():
            name, _, divergence = label.rpartition(", ")
            if divergence in ("kl", "js"):
                row = table.setdefault((task, size, name), {"seconds_each": arrays["seconds_each"]})
                row[divergence] = values
    return table


def summarize(values: np.ndarray | None, truth: np.ndarray, unit: float = 1.0) -> dict[str, str]:
    """Mean, bias ± its standard error, spread, mean standard error, and coverage.

    Without values, of a divergence that the method does not estimate, dashes; values that are not
    finite are shown as what they are.
    """
    if values is None:
        return dict.fromkeys(("mean", "bias", "spread", "std_error", "covers"), "–")
    values, truth = values * unit, truth * unit
    error = values[:, 0] - truth
    covers = np.sum((values[:, 2] <= truth) & (truth <= values[:, 3]))
    spread = error.std(ddof=1) if len(error) > 1 else 0.0
    return {
        "mean": f"{values[:, 0].mean():.3f}",
        "bias": f"{error.mean():+.3f} ± {spread / np.sqrt(len(error)):.3f}",
        "spread": f"{spread:.3f}",
        "std_error": f"{values[:, 1].mean():.3f}",
        "covers": f"{covers}/{len(error)}",
    }


def rows(results: dict[tuple[str, int, str], dict], settings: Settings) -> list[dict[str, Any]]:
    """A row for each task, size and estimator."""
    table = []
    for (task, size, name), arrays in results.items():
        known = [TASKS[task](seed) for seed in settings.seeds]
        kl = summarize(arrays["kl"], np.array([t.kl for t in known]))
        js = summarize(arrays.get("js"), np.array([t.js for t in known]), BITS)
        table.append(
            {"task": task, "N": size, "estimator": name}
            | {"KL": f"{np.mean([t.kl for t in known]):.3f}"}
            | {f"KL {key}": value for key, value in kl.items()}
            | {"JS bits": f"{np.mean([t.js for t in known]) * BITS:.3f}"}
            | {f"JS {key}": js[key] for key in ("mean", "bias", "covers")}
            | {"seconds": f"{np.median(arrays['seconds_each']):.2f}"}
        )
    return table


def short_rows(results: dict[tuple[str, int, str], dict], settings: Settings) -> list[dict]:
    """KL, mean ± spread: a row for each task and size, a column for each estimator."""
    table = []
    for task in settings.tasks:
        truth = np.mean([TASKS[task](seed).kl for seed in settings.seeds])
        for size in settings.sizes:
            row: dict[str, Any] = {"task": task, "N": size, "KL": f"{truth:.3f}"}
            for (of_task, of_size, name), arrays in results.items():
                if (of_task, of_size) == (task, size):
                    values = arrays["kl"][:, 0]
                    spread = f" ± {values.std(ddof=1):.2f}" if len(values) > 1 else ""
                    row[name] = f"{values.mean():.2f}{spread}"
            table.append(row)
    return table


def correlated_methods() -> dict[str, Any]:
    """What `correlated` compares."""
    start = heads.Average((heads.Linear(5.0), heads.GaussianDiscriminant(0.0)))
    bridges = heads.Telescoping(4, start=start, network=heads.Network(num_steps=300))
    return {
        "network": ratio.ClassifierRatio("mlp", num_folds=2),
        "Gaussian discriminant": ratio.ClassifierRatio("gaussian", num_folds=2),
        "telescoping": ratio.TelescopingRatio(bridges, num_folds=2),
    }


def bridges_methods(kl: float) -> dict[str, Any]:
    """What `bridges` compares; a bridge for 1.25 nats."""
    bridges = heads.Telescoping(round(kl / 1.25), start=heads.Quadratic(), network=None)
    return {
        "quadratic": ratio.ClassifierRatio(heads.Quadratic(), num_folds=2),
        "quadratic bridges": ratio.TelescopingRatio(bridges, num_folds=2),
    }


def correlated(size: int, dim: int, kl: float, method: Any, seed: int) -> dict[str, Any]:
    """KL by one method at one dimension, and by the exact log ratio on the same rows."""
    task = problems.correlated_gaussians(dim, kl)
    key = jax.random.key(seed)
    p, q = task.sample(jax.random.fold_in(key, 1), size)
    start = time.perf_counter()
    fit = method.fit(key, p, q)
    value, error, interval = _numbers(jax.block_until_ready(fit.kl(confidence_level=LEVEL)))
    seconds = time.perf_counter() - start
    exact = float(jnp.mean(task.log_ratio(p)))
    return {"kl": [float(x) for x in (value, error, *interval)], "exact": exact, "fit": seconds}


def correlated_rows(results: dict[tuple[int, float, str], list[dict]]) -> list[dict]:
    """A row for each dimension, KL and method: the mean over seeds, its error, the worst seed's."""
    table = []
    for (dim, truth, name), found in results.items():
        kl = np.array([np.asarray(one["kl"]) for one in found])
        relative = 100 * (kl[:, 0] / truth - 1)
        table.append(
            {"d": dim, "KL": f"{truth:g}", "estimator": name}
            | {"mean ± standard error": common.with_error(kl[:, 0], 2)}
            | {"error": f"{relative.mean():+.1f} %"}
            | {"largest of a seed": f"{np.abs(relative).max():.1f} %"}
            | {"by the exact ratio": f"{np.mean([one['exact'] for one in found]):.2f}"}
            | {"covered": f"{np.sum((kl[:, 2] <= truth) & (truth <= kl[:, 3]))} of {len(found)}"}
            | {"seconds, median": f"{np.median([one['fit'] for one in found]):.0f}"}
        )
    return table


def draw(results: dict[tuple[str, int, str], dict], settings: Settings) -> Figure:
    """A panel a task: each estimator's error in KL over seeds, relative to the truth."""
    columns = 3
    lines = -(-len(settings.tasks) // columns)
    estimators = list(dict.fromkeys(name for _, _, name in results))
    places = np.arange(len(estimators))
    with plot.style():
        figure, axes = plt.subplots(
            lines,
            columns,
            figsize=(13, 1.5 + lines * (0.6 + 0.25 * len(estimators))),
            sharex=True,
            sharey=True,
            squeeze=False,
        )
        for axis, task in zip(axes.ravel(), settings.tasks, strict=False):
            truth = np.array([TASKS[task](seed).kl for seed in settings.seeds])
            axis.axvline(0, color="black", linestyle="-", linewidth=0.8)
            for offset, size in enumerate(settings.sizes):
                errors = np.stack(
                    [results[task, size, name]["kl"][:, 0] / truth - 1 for name in estimators]
                )
                y = places + 0.3 * offset - 0.15
                look = {"color": f"C{4 * offset % 7}", "linestyle": "none"}
                points = {"marker": "osd^v"[offset % 5], "alpha": 0.4, "markersize": 4}
                shown = np.clip(errors, -0.8, 0.8).ravel()
                label = f"N = {size}, a seed"
                axis.plot(shown, np.repeat(y, len(truth)), **points, **look, label=label)
                bar = {"marker": "|", "markersize": 11, "markeredgewidth": 2.5}
                means = np.clip(errors.mean(1), -0.8, 0.8)
                axis.plot(means, y, **bar, **look, label=f"N = {size}, mean over seeds")
            axis.set(title=f"{task}, KL {truth.mean():.2f} nats", xlim=(-0.85, 0.85))
            axis.set_yticks(places, estimators)
        axes[0, 0].set_ylim(len(estimators) - 0.5, -0.5)
        for axis in axes.ravel()[len(settings.tasks) :]:
            axis.set_axis_off()
        # The lowest panel of each column, where the last line is not full.
        for axis in axes.ravel()[: len(settings.tasks)][-columns:]:
            axis.set_xlabel("relative error of KL")
            axis.tick_params(labelbottom=True)
        figure.suptitle("Errors cut off at ±0.8")
        entries = axes[0, 0].get_legend_handles_labels()
        figure.legend(*entries, loc="outside lower center", ncols=2)
    return figure


def run_tasks(run: common.Run, settings: Settings) -> None:
    """Tables and figure of every estimator on every task."""
    cells = [
        (task, size, method)
        for size in settings.sizes
        for task in settings.tasks
        for method in settings.methods
    ]
    results = by_estimator(run.stages("tasks", cells, functools.partial(evaluate, settings)))
    print(run.save_table("kl", short_rows(results, settings)))
    run.save_table("all", rows(results, settings))
    run.save_figure("errors", draw(results, settings))


def run_correlated(run: common.Run, settings: Settings, study: str) -> None:
    """The tables of correlated Gaussians: of growing dimension, or of growing distance."""
    if study == "correlated":
        size = settings.correlated_size
        cases = [(dim, dim / 4, correlated_methods()) for dim in settings.dims]
    else:
        size, dim = settings.bridges_size, 4 if settings.quick else 20
        cases = [(dim, kl, bridges_methods(kl)) for kl in settings.distances]
    results = {
        (dim, kl, name): [
            run.stage(
                f"{study} {dim} {kl:g} {name} {seed}",
                functools.partial(correlated, size, dim, kl, method, seed),
            )
            for seed in settings.seeds
        ]
        for dim, kl, methods in cases
        for name, method in methods.items()
    }
    print(run.save_table(study, correlated_rows(results)))


def main(settings: Settings, output: Path | None = None, overwrite: bool = False) -> None:
    """Evaluate every estimator on every task, print the tables, draw the figure."""
    with common.open_run("divergence_accuracy", settings, output, overwrite) as run:
        if "tasks" in settings.studies:
            run_tasks(run, settings)
        for study in [study for study in STUDIES[1:] if study in settings.studies]:
            run_correlated(run, settings, study)


if __name__ == "__main__":
    tyro.cli(main, config=(tyro.conf.OmitArgPrefixes,))
