"""Transport maps: shapes in the plane, Gaussians and benchmark pairs with known maps, and proteins.

    python -m experiments.monge_maps            # an hour and more; --quick for a small one

`planar`: moons to an s-curve, and a cap of the sphere to a ring around it under the geodesic cost.
For the sphere the reference is the exact assignment of the rows.

`gaussians`: two Gaussians with random means and axes and variances between ¼ and 4, for which the
optimal map is known. L2-UVP is 100 E|T̂(x) − T(x)|² / Var T(x) over fresh rows.

`benchmark`: the Wasserstein-2 benchmark pairs of Korotin et al. 2021, by L2-UVP and by the cosine
of T̂ − id and T − id. What is chosen (ε of entropic maps, when to stop) is chosen by held-out rows'
Sinkhorn divergence; the exact map is used for the table alone. Uscidda, Cuturi 2023 show the same
pairs in a figure without numbers: the Monge gap from a Gaussian start is near 10 % in every
dimension, others near 100 % at d = 256.

`proteins` (Sachs et al. 2005): eleven proteins in single cells, logarithms, carried from the
control to each of seven perturbations, 420 rows of each to fit and 280 to test.
"""

import dataclasses
import functools
import itertools
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

from divjax import ot
from experiments import common, transport_data

STUDIES = ("planar", "gaussians", "benchmark", "proteins")

BENCHMARK_METHODS = (
    "linear",
    "entropic",
    "ICNN dual",
    "MLP",
    "Monge gap",
    "debiased gap",
    "debiased gap, entropic start",
)
PROTEIN_METHODS = (
    "identity",
    "mean shift",
    "Gaussian",
    "entropic",
    "MLP",
    "debiased gap",
    "family",
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a run depends on."""

    studies: tuple[str, ...] = STUDIES
    seeds: tuple[int, ...] = (0, 1, 2)
    num_tests: int = 4096
    gaussian_dimensions: tuple[int, ...] = (2, 4, 8, 16, 32, 64, 128, 256)
    gaussian_seeds: tuple[int, ...] = (0, 1)
    gaussian_rows: int = 16_384
    gaussian_steps: int = 200
    dimensions: tuple[int, ...] = transport_data.DIMENSIONS
    methods: tuple[str, ...] = BENCHMARK_METHODS
    num_rows: int = 13_312
    """Of each law, of which 1024 choose; the entropic map alone takes 4096 and 1024."""
    epsilon: float = 0.01
    batch_size: int = 512
    num_steps: int = 500
    width: int = 128
    dual_steps: int = 1000
    protein_seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    protein_steps: int = 500
    planar_rows: int = 2000
    planar_steps: int = 1000
    quick: bool = False
    """Two small dimensions of some hundred rows, one seed: does everything run?"""

    def __post_init__(self):
        unknown = set(self.studies) - set(STUDIES)
        if unknown or not self.studies:
            raise SystemExit(f"studies must be among {', '.join(STUDIES)}; got {sorted(unknown)}.")
        unknown = set(self.methods) - set(BENCHMARK_METHODS)
        if unknown:
            known = ", ".join(BENCHMARK_METHODS)
            raise SystemExit(f"methods must be among {known}; got {sorted(unknown)}.")
        if self.quick:
            small = {"seeds": self.seeds[:1], "num_tests": 200, "num_rows": 400, "num_steps": 20}
            small |= {"gaussian_dimensions": self.gaussian_dimensions[:2], "gaussian_rows": 400}
            small |= {"gaussian_seeds": self.gaussian_seeds[:1], "gaussian_steps": 20}
            small |= {"dimensions": self.dimensions[:1], "batch_size": 64, "width": 16}
            small |= {"dual_steps": 20, "protein_seeds": self.protein_seeds[:1]}
            small |= {"protein_steps": 20, "planar_rows": 200, "planar_steps": 20}
            for name, value in small.items():
                object.__setattr__(self, name, value)


# Its leaves are arguments: settings that differ in numbers alone are compiled once.
fit = jax.jit(lambda method, key, x, y: method.fit(key, x, y))
fit_family = jax.jit(lambda method, key, x, y, context: method.fit(key, x, y, context))


def timed(function: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """The result, and seconds with compilation."""
    start = time.perf_counter()
    result = jax.block_until_ready(function(*arguments))
    return result, time.perf_counter() - start


def uvp_and_cosine(
    images: jax.Array, x: jax.Array, truth: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """100 E|T̂ − T|²/Var T, and the cosine of T̂ − id and T − id."""
    error = jnp.mean(jnp.sum((images - truth) ** 2, axis=1))
    found, wanted = (images - x).ravel(), (truth - x).ravel()
    norms = jnp.linalg.norm(found) * jnp.linalg.norm(wanted)
    cosine = found @ wanted / jnp.where(norms > 0, norms, 1)
    return 100 * error / jnp.sum(jnp.var(truth, axis=0)), cosine


def gaussian_fit(x: jax.Array, y: jax.Array) -> ot.AffineMap:
    """The optimal map between the Gaussians with the samples' moments."""
    moments = ((jnp.mean(z, axis=0), jnp.cov(z, rowvar=False)) for z in (x, y))
    return ot.gaussian_map(*next(moments), *next(moments))


def gaussian_pair(key: jax.Array, dimension: int) -> tuple[Any, Any]:
    """Means and factors of two Gaussians."""

    def one(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        mean_key, axes_key, value_key = jax.random.split(key, 3)
        mean = jax.random.normal(mean_key, (dimension,))
        axes = jnp.linalg.qr(jax.random.normal(axes_key, (dimension, dimension)))[0]
        deviations = 2 ** jax.random.uniform(value_key, (dimension,), minval=-1, maxval=1)
        return mean, (axes * deviations) @ axes.T

    first, second = jax.random.split(key)
    return one(first), one(second)


def gaussians(settings: Settings, dimension: int, seed: int) -> dict[str, Any]:
    """L2-UVP of the start and of the fitted map."""
    keys = jax.random.split(jax.random.key(seed), 5)
    (mean_x, factor_x), (mean_y, factor_y) = gaussian_pair(keys[0], dimension)
    normal = lambda key, n: jax.random.normal(key, (n, dimension))
    x = mean_x + normal(keys[1], settings.gaussian_rows) @ factor_x
    y = mean_y + normal(keys[2], settings.gaussian_rows) @ factor_y
    tests = mean_x + normal(keys[3], settings.num_tests) @ factor_x
    truth = ot.gaussian_map(mean_x, factor_x @ factor_x, mean_y, factor_y @ factor_y)(tests)
    result = {}
    for start in ("gaussian", "identity"):
        method = ot.MongeMap(
            start=start,
            num_steps=settings.gaussian_steps,
            batch_size=settings.batch_size,
            hidden=(settings.width, settings.width),
        )
        found, seconds = timed(fit, method, keys[4], x, y)
        uvp, _ = uvp_and_cosine(found(tests), tests, truth)
        first, _ = uvp_and_cosine(found.start(tests), tests, truth)
        result |= {f"{start} uvp": uvp, f"{start} first": first, f"{start} fit_seconds": seconds}
        result |= {f"{start} finite": found.finite, f"{start} validation": found.validation}
    return result


def benchmark_method(settings: Settings, name: str) -> Any:
    """A row's method."""
    if name == "ICNN dual":
        return ot.ICNNDual(num_steps=settings.dual_steps, batch_size=min(256, settings.batch_size))
    options: dict[str, Any] = {
        "epsilon": settings.epsilon,
        "num_steps": settings.num_steps,
        "batch_size": settings.batch_size,
        "hidden": (settings.width,) * 3,
    }
    if name == "MLP":
        return ot.MongeMap(gap=None, **options)
    if name == "Monge gap":  # the paper's
        return ot.MongeMap(gap="entropic", start="gaussian", **options)
    start = "entropic" if name.endswith("entropic start") else "gaussian"
    return ot.MongeMap(start=start, **options)


def benchmark(settings: Settings, dimension: int, name: str, seed: int) -> dict[str, Any]:
    """One map's L2-UVP and cosine, and where it started."""
    pair = transport_data.load_benchmark(dimension)
    sample = jax.jit(pair.sample, static_argnums=1)
    image = jax.jit(pair.map)
    keys = jax.random.split(jax.random.key(seed), 4)
    x, y = sample(keys[0], settings.num_rows), image(sample(keys[1], settings.num_rows))
    tests = sample(keys[2], settings.num_tests)
    truth = image(tests)
    result: dict[str, Any] = {}
    if name == "linear":
        found, seconds = timed(jax.jit(gaussian_fit), x, y)
        images = found(tests)
    elif name == "entropic":
        # No step is taken: what is left is the start, of 4096 rows, its ε chosen by 1024.
        rows = min(5120, settings.num_rows)
        method = ot.MongeMap(start="entropic", epsilon=settings.epsilon, num_steps=1, num_checks=1)
        found, seconds = timed(fit, method, keys[3], x[:rows], y[:rows])
        images = found.start(tests)
    else:
        found, seconds = timed(fit, benchmark_method(settings, name), keys[3], x, y)
        images = jax.jit(lambda found, z: found(z))(found, tests)
        result = {"losses": found.losses, "validation": found.validation, "finite": found.finite}
        if isinstance(found, ot.MapFit):
            started = jax.jit(lambda found, z: found.start(z))(found, tests)
            result["first"] = uvp_and_cosine(started, tests, truth)[0]
            result |= {"divergence": found.divergence, "gap": found.gap}
            result["converged"] = found.converged
        else:
            result |= {"residual": found.residual, "squared_distance": found.squared_distance}
    uvp, cosine = uvp_and_cosine(images, tests, truth)
    return result | {"uvp": uvp, "cosine": cosine, "fit_seconds": seconds}


def gaussian_rows(results: dict[int, list[dict]]) -> list[dict]:
    """L2-UVP in per cent, mean ± standard error over seeds."""
    rows = []
    for dimension, runs in results.items():
        row: dict[str, Any] = {"d": dimension}
        for title, field in (
            ("linear map", "gaussian first"),
            ("gap, Gaussian start", "gaussian uvp"),
            ("identity", "identity first"),
            ("gap, no start", "identity uvp"),
        ):
            row[title] = common.with_error([run[field] for run in runs], 2)
        row["fit s"] = f"{np.mean([run['gaussian fit_seconds'] for run in runs]):.0f}"
        rows.append(row)
    return rows


def benchmark_rows(
    results: dict[tuple[str, int], list[dict]], field: str, digits: int
) -> list[dict]:
    """A row a method and a column a dimension, mean ± standard error over seeds."""
    methods = list(dict.fromkeys(name for name, _ in results))
    dimensions = list(dict.fromkeys(dimension for _, dimension in results))
    return [
        {"method": name}
        | {
            f"d = {dimension}": common.with_error(
                [run[field] for run in results[name, dimension]], digits
            )
            for dimension in dimensions
        }
        for name in methods
    ]


def draw_benchmark(results: dict[tuple[str, int], list[dict]]) -> Figure:
    """L2-UVP by dimension, a line a method."""
    figure, axis = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for name in dict.fromkeys(name for name, _ in results):
        dimensions = [dimension for other, dimension in results if other == name]
        values = [
            common.mean_and_error([run["uvp"] for run in results[name, d]]) for d in dimensions
        ]
        means, errors = zip(*values, strict=True)
        axis.errorbar(dimensions, means, errors, marker="o", capsize=3, label=name)
    axis.set(xscale="log", yscale="log", xlabel="dimension", ylabel="L2-UVP, %")
    axis.set_xticks(
        sorted({d for _, d in results}), [str(d) for d in sorted({d for _, d in results})]
    )
    axis.minorticks_off()
    axis.legend(fontsize=8)
    return figure


def draw_gaussians(results: dict[int, list[dict]]) -> Figure:
    """L2-UVP by dimension."""
    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    lines = {"linear map": "gaussian first", "gap, Gaussian start": "gaussian uvp"}
    lines |= {"gap, no start": "identity uvp"}
    for label, field in lines.items():
        means = [np.mean([run[field] for run in runs]) for runs in results.values()]
        axis.plot(list(results), means, marker="o", label=label)
    axis.axhline(1, color="grey", lw=0.8, ls=":")
    axis.set(xscale="log", yscale="log", xlabel="dimension", ylabel="L2-UVP, %")
    axis.set_xticks(list(results), [str(d) for d in results])
    axis.minorticks_off()
    axis.legend(fontsize=8)
    return figure


def run_gaussians(run: common.Run, settings: Settings) -> None:
    """The table and the figure of Gaussians."""
    found: dict[int, list[dict]] = {}
    tasks = itertools.product(settings.gaussian_dimensions, settings.gaussian_seeds)
    for task in common.progress(list(tasks), "Gaussians"):
        name = "gaussians {} {}".format(*task)
        one = run.stage(name, functools.partial(gaussians, settings, *task))
        found.setdefault(task[0], []).append(one)
    run.save_figure("gaussians", draw_gaussians(found))
    print("\nGaussians, L2-UVP in %:\n")
    print(run.save_table("gaussians", gaussian_rows(found)))


def run_benchmark(run: common.Run, settings: Settings) -> None:
    """The tables and the figure of the benchmark pairs, where the data are."""
    found: dict[tuple[str, int], list[dict]] = {}
    # All seeds of a program one after the other: it is compiled once.
    tasks = itertools.product(settings.dimensions, settings.methods, settings.seeds)
    try:
        for task in common.progress(list(tasks), "benchmark"):
            name = "benchmark {} {} {}".format(*task)
            one = run.stage(name, functools.partial(benchmark, settings, *task))
            found.setdefault((task[1], task[0]), []).append(one)
    except FileNotFoundError as error:
        print(f"\nleft out: {error}")
        return
    run.save_figure("benchmark", draw_benchmark(found))
    for field, title, digits in (
        ("uvp", "L2-UVP in %", 1),
        ("cosine", "cosine", 3),
        ("fit_seconds", "seconds, the first with compilation", 0),
    ):
        print(f"\nBenchmark pairs, {title}:\n")
        print(run.save_table(f"benchmark_{field}", benchmark_rows(found, field, digits)))


def main(settings: Settings, output: Path | None = None, overwrite: bool = False) -> None:
    """Run the studies, print their tables, draw their figures."""
    studies = {"gaussians": run_gaussians, "benchmark": run_benchmark}
    with common.open_run("monge_maps", settings, output, overwrite) as run:
        for study in [study for study in studies if study in settings.studies]:
            studies[study](run, settings)


if __name__ == "__main__":
    tyro.cli(main, config=(tyro.conf.OmitArgPrefixes,))
