"""Transport maps: shapes in the plane, Gaussians and benchmark pairs with known maps, and proteins.

    python -m experiments.monge_maps            # an hour and more; --quick for a small one

`planar`: moons to an s-curve under the squared distance, and a cap of the sphere to a band around
it under the geodesic one. The gap of fresh rows is exact, by assignment.

`gaussians`: two Gaussians with random means and axes and variances between ¼ and 4, for which the
optimal map is known. L2-UVP is 100 E|T̂(x) − T(x)|² / Var T(x) over fresh rows.

`benchmark`: the Wasserstein-2 benchmark pairs of Korotin et al. 2021, by L2-UVP and by the cosine
of T̂ − id and T − id. Within a run, what is chosen (ε of entropic maps, when to stop) is chosen by
held-out rows. Settings were chosen on seed 10: those of the dual by its held-out objective, which
tells maps apart; blocks of entropic maps, the ε tried, batches and learning rates of networks by
the exact map, as the divergence of held-out rows does not. Weights of the gap and of the asymmetry
are those of Uscidda, Cuturi 2023 up to d = 64. They show the same pairs in a figure without
numbers: the Monge gap from a Gaussian start is near 10 % in every dimension, others near 100 % at
d = 256.

`proteins` (Sachs et al. 2005): eleven proteins in single cells, logarithms, carried from the
control to each of seven perturbations, 420 rows of each to fit (a fifth of them to choose) and 280
to test, another split a seed. `family` is one network for all seven, told which by its context. The
floor is the distance of the perturbation's own rows to fit from those to test.
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
import numpy as np
import tyro
from sklearn.datasets import make_moons, make_s_curve

from divjax import Normal, ot
from experiments import common, monge_figures, transport_data
from experiments.monge_scores import (
    benchmark_table,
    exact_gap,
    gaussian_table,
    protein_scores,
    protein_table,
    uvp_and_cosine,
)

STUDIES = ("planar", "gaussians", "benchmark", "proteins")

BENCHMARK_METHODS = (
    "linear",
    "entropic",
    "ICNN dual",
    "MLP",
    "MLP, entropic start",
    "Monge gap",
    "debiased gap",
    "debiased gap, entropic start",
    "defaults",
)
PROTEIN_METHODS = (
    "identity",
    "mean shift",
    "Gaussian",
    "entropic",
    "MLP",
    "debiased gap",
    "family",
    "floor",
)
PROTEIN_ROWS, PROTEIN_TESTS = 420, 280


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
    """Of each law, of which 1024 choose."""
    epsilon: float = 0.01
    symmetry_weight: float = 0.01
    batch_size: int = 1024
    num_steps: int = 4000
    learning_rate: float = 5e-3
    started_steps: int = 300
    started_learning_rate: float = 1e-4
    """Of networks that are added to a start that is nearly right."""
    width: int = 128
    dual_steps: int = 3000
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
        for name in ("seeds", "gaussian_seeds", "protein_seeds"):
            common.check_seeds(getattr(self, name), name)
        numbers = ("num_tests", "gaussian_dimensions", "gaussian_rows", "gaussian_steps")
        numbers += ("dimensions", "num_rows", "epsilon", "batch_size", "num_steps", "width")
        numbers += (
            "learning_rate",
            "started_steps",
            "started_learning_rate",
            "dual_steps",
            "protein_steps",
        )
        numbers += ("planar_rows", "planar_steps")
        common.check_positive(**{name: getattr(self, name) for name in numbers})
        if self.quick:
            small = {"seeds": self.seeds[:1], "num_tests": 200, "num_rows": 400, "num_steps": 20}
            small |= {"started_steps": 20}
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
    truth = ot.gaussian_map(
        Normal(mean_x, factor_x @ factor_x), Normal(mean_y, factor_y @ factor_y)
    )(tests)
    result = {}
    rates = {"gaussian": settings.started_learning_rate, "identity": settings.learning_rate}
    for start, learning_rate in rates.items():
        method = ot.MongeMap(
            start=start,
            learning_rate=learning_rate,
            num_steps=settings.gaussian_steps,
            batch_size=min(512, settings.batch_size),
            hidden=(settings.width, settings.width),
        )
        found, seconds = timed(fit, method, keys[4], x, y)
        uvp, _ = uvp_and_cosine(found(tests), tests, truth)
        first, _ = uvp_and_cosine(found.initial_images(tests), tests, truth)
        result |= {f"{start} uvp": uvp, f"{start} first": first, f"{start} fit_seconds": seconds}
        result |= {f"{start} finite": found.finite, f"{start} validation": found.validation}
    return result


def benchmark_method(settings: Settings, name: str) -> Any:
    """A row's method."""
    if name == "ICNN dual":
        return ot.ICNNDual(num_steps=settings.dual_steps, batch_size=min(256, settings.batch_size))
    if name == "defaults":
        return ot.MongeMap()
    options: dict[str, Any] = {
        "epsilon": settings.epsilon,
        "num_steps": settings.num_steps,
        "batch_size": settings.batch_size,
        "hidden": (settings.width,) * 3,
        "learning_rate": settings.learning_rate,
    }
    if name.endswith("entropic start"):
        options |= {"start": "entropic", "num_steps": settings.started_steps}
        options |= {"learning_rate": settings.started_learning_rate}
    if name.startswith("MLP"):
        options = {"start": "identity"} | options
        return ot.MongeMap(gap_kind=None, **options)
    # The paper's gap is the entropic one.
    kind = "entropic" if name == "Monge gap" else "debiased"
    options = {"start": "gaussian", "symmetry_weight": settings.symmetry_weight} | options
    return ot.MongeMap(gap_kind=kind, **options)


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
        found, seconds = timed(jax.jit(ot.gaussian_map_from_samples), x, y)
        images = found(tests)
    elif name == "entropic":
        method = ot.EntropicMap(score_epsilon=settings.epsilon)
        found, seconds = timed(fit, method, keys[3], x, y)
        images = found(tests)
    else:
        found, seconds = timed(fit, benchmark_method(settings, name), keys[3], x, y)
        images = jax.jit(lambda found, z: found(z))(found, tests)
        result = {"losses": found.losses, "validation": found.validation, "finite": found.finite}
        if isinstance(found, ot.MapFit):
            started = jax.jit(lambda found, z: found.initial_images(z))(found, tests)
            result["first"] = uvp_and_cosine(started, tests, truth)[0]
            result |= {"divergence": found.divergence, "gap": found.gap}
            result["converged"] = found.converged
        else:
            result |= {"residual": found.residual, "squared_distance": found.squared_distance}
    uvp, cosine = uvp_and_cosine(images, tests, truth)
    return result | {"uvp": uvp, "cosine": cosine, "fit_seconds": seconds}


def planar_pair(name: str, num_rows: int, seed: int) -> tuple[jax.Array, jax.Array]:
    """Rows of both laws."""
    if name == "moons":
        moons, _ = make_moons(num_rows, noise=0.05, random_state=seed)
        curve, _ = make_s_curve(num_rows, noise=0.05, random_state=seed + 1)
        return jnp.asarray(moons, jnp.float32), jnp.asarray(curve[:, [0, 2]], jnp.float32)
    cap_key, turn_key, height_key = jax.random.split(jax.random.key(seed), 3)
    pole = jnp.array([0.0, 0.0, 1.0])
    cap = pole + 0.3 * jax.random.normal(cap_key, (num_rows, 3))
    turn = 2 * jnp.pi * jax.random.uniform(turn_key, (num_rows,))
    height = 0.1 * jax.random.normal(height_key, (num_rows,))
    band = jnp.stack([jnp.cos(turn), jnp.sin(turn), height], axis=1)
    return on_sphere(cap), on_sphere(band)


def on_sphere(x: jax.Array) -> jax.Array:
    """Directions of rows."""
    return x / jnp.linalg.norm(x, axis=1, keepdims=True)


def planar(settings: Settings, name: str, with_gap: bool) -> dict[str, Any]:
    """A map, its exact gap and its divergence of fresh rows."""
    cost: Any = ot.SqEuclidean() if name == "moons" else ot.SphereGeodesic()
    x, y = planar_pair(name, settings.planar_rows, 0)
    fresh = planar_pair(name, min(1000, settings.planar_rows), 10)
    method = ot.MongeMap(
        cost,
        epsilon=0.02,
        gap_kind="debiased" if with_gap else None,
        start="identity",
        num_steps=settings.planar_steps,
        batch_size=min(256, settings.batch_size),
        learning_rate=3e-3,
    )
    found, seconds = timed(fit, method, jax.random.key(0), x, y)
    images = found(fresh[0])
    images = images if name == "moons" else on_sphere(images)
    epsilon = 0.02 * found.mean_cost
    divergence = ot.sinkhorn_divergence(images, fresh[1], epsilon=epsilon, cost=cost)
    paid, gap = exact_gap(cost, fresh[0], images)
    result = {"x": fresh[0], "y": fresh[1], "images": images, "paid": paid, "gap": gap}
    result |= {"divergence": divergence.value, "converged": divergence.converged}
    return result | {"fit_seconds": seconds, "finite": found.finite}


def protein_split(seed: int) -> tuple[jax.Array, jax.Array]:
    """Rows to fit "condition n d" and to test, the control first."""
    tables = transport_data.load_proteins()
    rng = np.random.default_rng(seed)
    chosen = [tables[0], *(tables[index - 1] for index in transport_data.PERTURBATIONS)]
    count = PROTEIN_ROWS + PROTEIN_TESTS
    rows = np.stack([rng.permutation(table.to_numpy())[:count] for table in chosen])
    rows = jnp.asarray(rows, jnp.float32)
    return rows[:, :PROTEIN_ROWS], rows[:, PROTEIN_ROWS:]


def protein_maps(settings: Settings, seed: int, name: str) -> jax.Array:
    """The control's test rows, carried to each perturbation; "condition n d"."""
    train, test = protein_split(seed)
    x, ys, z = train[0], train[1:], test[0]
    options: dict[str, Any] = {
        "num_steps": settings.protein_steps,
        "batch_size": min(256, settings.batch_size),
    }
    keys = jax.random.split(jax.random.key(seed), len(ys))
    if name == "floor":
        return ys
    if name == "identity":
        return jnp.broadcast_to(z, (len(ys), *z.shape))
    if name == "mean shift":
        return z + (jnp.mean(ys, axis=1) - jnp.mean(x, axis=0))[:, None]
    if name == "Gaussian":
        return jnp.stack([ot.gaussian_map_from_samples(x, y)(z) for y in ys])
    if name == "family":
        method = ot.MongeMap(start="identity", **options | {"num_steps": 4 * options["num_steps"]})
        context = jnp.eye(len(ys))
        family = jnp.broadcast_to(x, (len(ys), *x.shape))
        found = fit_family(method, keys[0], family, ys, context)
        return jnp.stack([found(z, own) for own in context])
    if name == "entropic":
        method = ot.EntropicMap()
    elif name == "MLP":
        method = ot.MongeMap(start="identity", gap_kind=None, **options)
    else:
        method = ot.MongeMap(start="gaussian", **options)
    return jnp.stack([fit(method, k, x, y)(z) for k, y in zip(keys, ys, strict=True)])


def proteins(settings: Settings, seed: int, name: str) -> dict[str, Any]:
    """The scores of each perturbation."""
    images, seconds = timed(protein_maps, settings, seed, name)
    _, test = protein_split(seed)
    scores = [protein_scores(*pair) for pair in zip(images, test[1:], strict=True)]
    divergence, mmd, markers = (jnp.stack(values) for values in zip(*scores, strict=True))
    return {"divergence": divergence, "mmd": mmd, "markers": markers, "fit_seconds": seconds}


def run_planar(run: common.Run, settings: Settings) -> None:
    """The table and the figure of shapes."""
    tasks: Any = itertools.product(("moons", "sphere"), (False, True))
    found = {
        task: run.stage("planar {} {}".format(*task), functools.partial(planar, settings, *task))
        for task in tasks
    }
    run.save_figure("planar", monge_figures.draw_planar(found))
    rows = [
        {
            "pair": name,
            "map": "debiased gap" if with_gap else "MLP",
            "Sinkhorn divergence": f"{float(one['divergence']):.4f}",
            "paid": f"{float(one['paid']):.3f}",
            "exact gap": f"{float(one['gap']):.4f}",
            "finite": common.finite_cell(one["finite"]),
            "fit s": f"{float(one['fit_seconds']):.0f}",
        }
        for (name, with_gap), one in found.items()
    ]
    print("\nShapes, fresh rows:\n")
    print(run.save_table("planar", rows))


def run_proteins(run: common.Run, settings: Settings) -> None:
    """The table of proteins, where the data are."""
    found: dict[str, list[dict]] = {}
    tasks = itertools.product(settings.protein_seeds, PROTEIN_METHODS)
    try:
        for task in common.progress(list(tasks), "proteins"):
            one = run.stage(
                "proteins {} {}".format(*task), functools.partial(proteins, settings, *task)
            )
            found.setdefault(task[1], []).append(one)
    except FileNotFoundError as error:
        print(f"\nleft out: {error}")
        return
    print("\nProteins, control to seven perturbations, test rows:\n")
    print(run.save_table("proteins", protein_table(found)))


def run_gaussians(run: common.Run, settings: Settings) -> None:
    """The table and the figure of Gaussians."""
    found: dict[int, list[dict]] = {}
    tasks = itertools.product(settings.gaussian_dimensions, settings.gaussian_seeds)
    for task in common.progress(list(tasks), "Gaussians"):
        name = "gaussians {} {}".format(*task)
        one = run.stage(name, functools.partial(gaussians, settings, *task))
        found.setdefault(task[0], []).append(one)
    run.save_figure("gaussians", monge_figures.draw_gaussians(found))
    print("\nGaussians, L2-UVP in %:\n")
    print(run.save_table("gaussians", gaussian_table(found)))


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
    run.save_figure("benchmark", monge_figures.draw_benchmark(found))
    for field, title, digits in (
        ("uvp", "L2-UVP in %", 1),
        ("cosine", "cosine", 3),
        ("fit_seconds", "seconds, the first with compilation", 0),
    ):
        print(f"\nBenchmark pairs, {title}:\n")
        print(run.save_table(f"benchmark_{field}", benchmark_table(found, field, digits)))


def main(settings: Settings, output: Path | None = None, overwrite: bool = False) -> None:
    """Run the studies, print their tables, draw their figures."""
    studies = {
        "planar": run_planar,
        "gaussians": run_gaussians,
        "benchmark": run_benchmark,
        "proteins": run_proteins,
    }
    with common.open_run("monge_maps", settings, output, overwrite) as run:
        for study in [study for study in studies if study in settings.studies]:
            studies[study](run, settings)


if __name__ == "__main__":
    tyro.cli(main, config=(tyro.conf.OmitArgPrefixes,))
