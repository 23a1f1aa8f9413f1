"""Light Schrödinger bridges: known plans, single cells between two days, and a swiss roll.

    python -m experiments.schrodinger_bridge            # an hour; --quick for a small one

`plans` (as in Gushchin et al. 2023, arXiv 2306.10161, and table 2 of Korotin et al. 2024): pairs
whose entropic plan is known. Instances are our own: P0 = N(0, I), and P1 by the plan of five
components with r_k on the sphere of radius 5 and S_k with random axes and eigenvalues from
U(0.3, 0.7). cBW²-UVP is 100 E_x BW²(π̂(·|x), π(·|x)) / Var P1, both plans' moments in closed form.
The model's class contains the truth, as it does in the paper's benchmark.

`cells` (table 3): single-cell data of days 2 and 4 predict day 3, days 3 and 7 predict day 4, in 50
and 100 principal components. The day between is not looked at before the end: the data are scaled
by the mean standard deviation of the two days given (the paper's code takes all three). The energy
distance is that of the paper's code, E‖X − Y‖ − ½ E‖X − X′‖ − ½ E‖Y − Y′‖ without pairs of a row
with itself, half of what others call by the name, in the unit of the data as they come.

`roll`: a Gaussian becomes a swiss roll for three ε.
"""

import dataclasses
import functools
import itertools
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import tyro
from matplotlib.figure import Figure

from divjax import Normal, discrepancy, plot
from divjax.ot.bridges.light_bridge import LightSchrodingerBridge
from divjax.ot.bridges.schrodinger import SchrodingerBridge
from divjax.ot.gaussian import gaussian_wasserstein
from experiments import common, data

PAPER_PLANS = {
    0.1: {2: 0.03, 16: 0.08, 64: 0.28, 128: 0.60},
    1.0: {2: 0.05, 16: 0.09, 64: 0.24, 128: 0.62},
    10.0: {2: 0.07, 16: 0.11, 64: 0.21, 128: 0.37},
}
PAPER_CELLS = {50: "2.31 ± 0.27", 100: "2.16 ± 0.26"}
# From day to day, and the day between.
DAYS = ((2, 4, 3), (3, 7, 4))


STUDIES = ("roll", "cells", "plans")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a run depends on."""

    studies: tuple[str, ...] = STUDIES
    dimensions: tuple[int, ...] = (2, 16, 64, 128)
    epsilons: tuple[float, ...] = (0.1, 1.0, 10.0)
    num_rows: int = 1_280_000
    """Of each end of a known plan: what ten thousand batches of 128 see."""
    instances: tuple[int, ...] = (0,)
    num_components: int = 5
    num_steps: int = 12
    num_starts: int = 1
    """Fits of a known plan, of which the one with the least objective counts."""
    num_tests: int = 1000
    """Starts at which plans are compared."""
    components: tuple[int, ...] = (50, 100)
    cell_potentials: int = 10
    cell_epsilon: float = 0.1
    cell_steps: int = 40
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    roll_epsilons: tuple[float, ...] = (0.002, 0.01, 0.1)
    roll_potentials: int = 100
    quick: bool = False
    """Two small dimensions of 20 000 rows, two seeds: does everything run?"""

    def __post_init__(self):
        unknown = set(self.studies) - set(STUDIES)
        if unknown or not self.studies:
            raise SystemExit(f"studies must be among {', '.join(STUDIES)}; got {sorted(unknown)}.")
        common.check_seeds(self.seeds)
        common.check_seeds(self.instances, "instances")
        numbers = ("dimensions", "epsilons", "num_rows", "num_components", "num_steps")
        numbers += ("num_starts", "num_tests", "components", "cell_potentials", "cell_epsilon")
        numbers += ("cell_steps", "roll_epsilons", "roll_potentials")
        common.check_positive(**{name: getattr(self, name) for name in numbers})
        if self.quick:
            small = {"dimensions": self.dimensions[:2], "num_rows": 20_000, "num_tests": 50}
            small |= {"seeds": self.seeds[:2], "components": self.components[:1]}
            small |= {"cell_steps": 5, "roll_potentials": 20, "epsilons": self.epsilons[:2]}
            for name, value in small.items():
                object.__setattr__(self, name, value)


def known_bridge(key: jax.Array, dimension: int, epsilon: float) -> SchrodingerBridge:
    """An instance: five components with random axes."""
    mean_key, axes_key, value_key = jax.random.split(key, 3)
    means = jax.random.normal(mean_key, (5, dimension))
    means = 5 * means / jnp.linalg.norm(means, axis=1, keepdims=True)
    axes = jnp.linalg.qr(jax.random.normal(axes_key, (5, dimension, dimension)))[0]
    values = jax.random.uniform(value_key, (5, dimension), minval=0.3, maxval=0.7)
    scales = jnp.einsum("kij,kj,klj->kil", axes, values, axes)
    return SchrodingerBridge(epsilon, jnp.zeros(5), means, scales)


def conditional_uvp(found: Any, truth: Any, x: jax.Array, variance: jax.Array) -> jax.Array:
    """100 BW²(π̂(·|x), π(·|x)) / Var P1 for each row of x."""

    def plan_at(bridge: Any, row: jax.Array) -> Normal:
        means, covariances = bridge.conditional_plan(row[None]).moments()
        return Normal(means[0], covariances[0])

    distances = jax.lax.map(
        lambda row: gaussian_wasserstein(plan_at(found, row), plan_at(truth, row)), x
    )
    return 100 * distances / variance


def timed(function: Any, *arguments: Any) -> tuple[Any, float, float]:
    """The result of a function, and seconds that compiling and running it took."""
    start = time.perf_counter()
    compiled = jax.jit(function).lower(*arguments).compile()
    compiling = time.perf_counter() - start
    start = time.perf_counter()
    result = jax.block_until_ready(compiled(*arguments))
    return result, compiling, time.perf_counter() - start


def known_plan(settings: Settings, dimension: int, epsilon: float, seed: int) -> dict[str, Any]:
    """One instance: how far the learned plan is from the true one."""
    keys = jax.random.split(jax.random.key(seed), 6)
    truth = known_bridge(keys[0], dimension, epsilon)
    normal = jax.jit(lambda key, n: jax.random.normal(key, (n, dimension)), static_argnums=1)
    x0 = normal(keys[1], settings.num_rows)
    x1 = jax.jit(truth.sample)(keys[3], normal(keys[2], settings.num_rows))
    method = LightSchrodingerBridge(
        settings.num_components, epsilon, "full", num_steps=settings.num_steps
    )
    starts = [jax.random.fold_in(keys[4], start) for start in range(settings.num_starts)]
    fits = [timed(method.fit, key, x0, x1) for key in starts]
    found, _, _ = min(fits, key=lambda fit: float(fit[0].losses[-1]))
    seconds = sum(seconds for _, _, seconds in fits)
    variance = jnp.sum(jnp.var(x1, axis=0))
    tests = normal(keys[5], settings.num_tests)
    uvp = jax.jit(conditional_uvp)(found, truth, tests, variance)
    return {"uvp": uvp, "fit_seconds": seconds, "finite": found.finite, "losses": found.losses}


def energy_distance(x: jax.Array, y: jax.Array) -> jax.Array:
    """E‖X − Y‖ − ½ E‖X − X′‖ − ½ E‖Y − Y′‖, unbiased: half of the library's."""
    return discrepancy.energy_distance(x, y, debias=True) / 2


def cells(settings: Settings, components: int, days: tuple[int, int, int]) -> dict[str, Any]:
    """The energy distance of the predicted day, a number a seed."""
    x0, x1, between = (jnp.asarray(data.load_cells(components, day)) for day in days)
    scale = jnp.mean(jnp.std(jnp.concatenate([x0, x1]), axis=0))
    method = LightSchrodingerBridge(
        settings.cell_potentials, settings.cell_epsilon, num_steps=settings.cell_steps
    )
    keys = jax.vmap(jax.random.key)(jnp.asarray(settings.seeds))
    # One fit alone is what is timed; the seeds then run side by side.
    _, compiling, seconds = timed(method.fit, keys[0], x0 / scale, x1 / scale)
    time_between = (days[2] - days[0]) / (days[1] - days[0])

    def predict(key: jax.Array) -> tuple[Any, Any, Any, Any]:
        fit_key, sample_key = jax.random.split(key)
        bridge = method.fit(fit_key, x0 / scale, x1 / scale)
        states = bridge.sample_at(sample_key, x0 / scale, time_between)
        return scale * states, bridge.losses, bridge.imbalance, bridge.finite

    predicted, losses, imbalance, finite = jax.jit(jax.vmap(predict))(keys)
    distances = jax.jit(lambda p: jax.lax.map(lambda x: energy_distance(x, between), p))(predicted)
    # What either end alone, without a bridge, is from the day between.
    ends = [jax.jit(energy_distance)(x, between) for x in (x0, x1)]
    return {
        "distances": distances,
        "losses": losses,
        "imbalance": imbalance,
        "finite": finite,
        "ends": jnp.stack(ends),
        "fit_seconds": seconds,
        "compile_seconds": compiling,
    }


def swiss_roll(key: jax.Array, num_rows: int) -> jax.Array:
    """Rows of a swiss roll in the plane, of about unit size."""
    angle_key, noise_key = jax.random.split(key)
    angle = 1.5 * jnp.pi * (1 + 2 * jax.random.uniform(angle_key, (num_rows,)))
    points = jnp.stack([angle * jnp.cos(angle), angle * jnp.sin(angle)], axis=1)
    return (points + 0.8 * jax.random.normal(noise_key, points.shape)) / 7.5


def roll(settings: Settings, epsilon: float) -> dict[str, Any]:
    """Paths, ends and their distance from fresh rows."""
    keys = jax.random.split(jax.random.key(0), 7)
    num_rows = 2_000 if settings.quick else 10_000
    x0, start = (jax.random.normal(key, (num_rows, 2)) for key in keys[:2])
    x1, fresh = (swiss_roll(key, num_rows) for key in keys[2:4])
    method = LightSchrodingerBridge(settings.roll_potentials, epsilon, num_steps=100)
    bridge, _, seconds = timed(method.fit, keys[4], x0, x1)
    ends = jax.jit(bridge.sample)(keys[5], start)
    distance = jax.jit(energy_distance)
    path = jax.jit(bridge.sde, static_argnums=2)(keys[6], start[:10], 200)
    return {
        "ends": ends[:3000],
        "path": path,
        "distance": distance(ends, fresh),
        "floor": distance(x1, fresh),
        "losses": bridge.losses,
        "finite": bridge.finite,
        "fit_seconds": seconds,
    }


def plan_rows(results: dict[tuple[float, int], list[dict]]) -> list[dict]:
    """cBW²-UVP in per cent beside the paper's; the error is over starts, and over instances."""
    rows = []
    for (epsilon, dimension), runs in results.items():
        values = [float(run["uvp"].mean()) for run in runs]
        error = np.mean([run["uvp"].std() / len(run["uvp"]) ** 0.5 for run in runs])
        error = max(float(error), float(common.mean_and_error(values)[1]))
        rows.append(
            {
                "epsilon": epsilon,
                "D": dimension,
                "cBW²-UVP %": f"{np.mean(values):.3f} ± {error:.3f}",
                "paper": PAPER_PLANS.get(epsilon, {}).get(dimension, float("nan")),
                "finite": common.finite_cell([run["finite"] for run in runs]),
                "fit s": f"{np.mean([run['fit_seconds'] for run in runs]):.1f}",
            }
        )
    return rows


def cell_rows(results: dict[tuple[int, tuple[int, int, int]], dict]) -> list[dict]:
    """Energy distances, mean ± standard deviation over seeds, beside the paper's."""
    rows = []
    for (components, (first, last, between)), run in results.items():
        values = run["distances"]
        rows.append(
            {
                "PCs": components,
                "days": f"{first}, {last} → {between}",
                "energy distance": f"{values.mean():.3f} ± {values.std(ddof=1):.3f}"
                if len(values) > 1
                else f"{values[0]:.3f}",
                "of the ends": ", ".join(f"{end:.2f}" for end in run["ends"]),
                "paper": PAPER_CELLS.get(components, ""),
                "finite": common.finite_cell(run["finite"]),
                "fit s": f"{float(run['fit_seconds']):.2f}",
                "compile s": f"{float(run['compile_seconds']):.1f}",
            }
        )
    return rows


def draw_roll(results: dict[float, dict]) -> Figure:
    """Ends and a few paths, a panel an ε."""
    columns = len(results)
    with plot.style():
        figure, axes = plt.subplots(
            1, columns, figsize=(max(6, 4 * columns), 5), sharex=True, sharey=True, squeeze=False
        )
        # One view for all ε.
        rows = np.concatenate(
            [run[x].reshape(-1, 2) for run in results.values() for x in ("ends", "path")]
        )
        reach = 1.05 * np.max(np.abs(rows), initial=0.1, where=np.isfinite(rows))
        limits = (-reach, reach, -reach, reach)
        for axis, (epsilon, run) in zip(axes[0], results.items(), strict=True):
            ends = {"s": 3, "color": "C1", "label": "samples of the ends"}
            plot.particles(run["ends"], ax=axis, limits=limits, **ends)
            for path in run["path"].swapaxes(0, 1):
                axis.plot(*path.T, lw=1, ls="-", color="C0", zorder=4)
            axis.lines[-1].set_label(f"{run['path'].shape[1]} paths")
            starts = {"s": 30, "marker": "^", "color": "black", "label": "their starts"}
            axis.scatter(*run["path"][0].T, zorder=5, **starts)
            axis.set(title=f"ε = {epsilon:g}", xlabel="first coordinate")
        axes[0, 0].set_ylabel("second coordinate")
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def run_roll(run: common.Run, settings: Settings) -> None:
    """The swiss roll's table and figure."""
    rolls = {
        epsilon: run.stage(f"roll {epsilon}", functools.partial(roll, settings, epsilon))
        for epsilon in settings.roll_epsilons
    }
    run.save_figure("roll", draw_roll(rolls))
    rows = [
        {
            "epsilon": epsilon,
            "bridge": f"{float(found['distance']):.4f}",
            "training rows": f"{float(found['floor']):.4f}",
            "finite": common.finite_cell(found["finite"]),
            "fit s": f"{float(found['fit_seconds']):.1f}",
        }
        for epsilon, found in rolls.items()
    ]
    print("\nSwiss roll, energy distance to fresh rows:\n")
    print(run.save_table("roll", rows))


def run_cells(run: common.Run, settings: Settings) -> None:
    """The cells' table, where the data are."""
    tasks = [(components, days) for components in settings.components for days in DAYS]
    try:
        found = {
            task: run.stage(f"cells {task[0]} {task[1]}", functools.partial(cells, settings, *task))
            for task in tasks
        }
    except FileNotFoundError as error:
        print(f"\nleft out: {error}")
        return
    print("\nSingle cells, energy distance to the day between, over seeds:\n")
    print(run.save_table("cells", cell_rows(found)))


def run_plans(run: common.Run, settings: Settings) -> None:
    """The table of known plans."""
    found: dict[tuple[float, int], list[dict]] = {}
    tasks = itertools.product(settings.dimensions, settings.epsilons, settings.instances)
    for task in common.progress(list(tasks), "known plans"):
        name = "plan {} {} {}".format(*task)
        one = run.stage(name, functools.partial(known_plan, settings, *task))
        found.setdefault((task[1], task[0]), []).append(one)
    print("\nKnown plans:\n")
    print(run.save_table("plans", plan_rows(found)))


def main(settings: Settings, output: Path | None = None, overwrite: bool = False) -> None:
    """Run the studies, print their tables, draw the roll."""
    studies = {"roll": run_roll, "cells": run_cells, "plans": run_plans}
    with common.open_run("schrodinger_bridge", settings, output, overwrite) as run:
        for study in [study for study in studies if study in settings.studies]:
            studies[study](run, settings)


if __name__ == "__main__":
    tyro.cli(main, config=(tyro.conf.OmitArgPrefixes,))
