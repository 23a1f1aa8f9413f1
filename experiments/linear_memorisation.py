"""How far fitted Gaussians are from the truth and from each other, and when they find a direction.

    python -m experiments.linear_memorisation            # --quick for a small one

Two models N(0, Σ̂) and N(0, Σ̂′) with the second moments of independent samples, n rows each of
N(0, I + θ uuᵀ) in d features: the linear case of generative models that are trained on two halves
of a data set. At a load n/d each repetition measures

- the bulk: W₂² between the models, and of each from the truth, per dimension. A model that has
  memorised is nearer to the truth than to another model, which has memorised other rows;
- the latent direction: the squared overlap of the leading eigenvector of Σ̂ with u, and with that
  of Σ̂′.

The lines are those of `information.linear_memorization`, for n and d large at a fixed load:
`model_distance` and `bulk_distance` of the bulk, `eigenvector_overlap` of the direction. The
directions of two models differ from u independently: their squared overlap is the product of both
with u.

The same is measured on images, where the truth is not known: of two halves of n rows each of
Fashion-MNIST, averaged to 14 × 14 pixels, beside the rest of the images in place of the truth.
"""

import dataclasses
import functools
import itertools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from divjax import Normal, ot, plot
from divjax.information import linear_memorization
from experiments import common, data

# What a repetition measures.
MEASURES = ("model to model", "model to truth", "overlap with truth", "overlap of models")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a run depends on."""

    dimensions: tuple[int, ...] = (50, 200)
    loads: tuple[float, ...] = (0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 20.0)
    """n/d: rows of each sample by features."""
    spikes: tuple[float, ...] = (1.0, 3.0)
    """θ, the excess variance of the direction u."""
    repetitions: int = 20
    images: tuple[int, ...] = (49, 98, 196, 392, 980, 3920, 19_600)
    """Rows of each half of the images; none without the data."""
    image_repetitions: int = 5
    seed: int = 0
    quick: bool = False
    """Twenty features, one load, four repetitions, no images: does everything run?"""

    def __post_init__(self):
        numbers = ("dimensions", "loads", "spikes", "repetitions", "image_repetitions")
        common.check_positive(**{name: getattr(self, name) for name in numbers})
        if self.quick:
            small = {"dimensions": (20,), "loads": (2.0,), "spikes": (3.0,)}
            small |= {"repetitions": 4, "images": ()}
            for name, value in small.items():
                object.__setattr__(self, name, value)


def measure(
    x: jax.Array, y: jax.Array, truth: jax.Array, covariance_of: Any
) -> tuple[jax.Array, ...]:
    """The four measures, of the models of two samples beside a true covariance."""
    one, other = covariance_of(x), covariance_of(y)
    zero = jnp.zeros(len(truth))
    distance = lambda *pair: (
        ot.gaussian_wasserstein(*(Normal(zero, each) for each in pair)) / len(truth)
    )
    leading = [jnp.linalg.eigh(matrix)[1][:, -1] for matrix in (one, other, truth)]
    overlap = lambda u, v: jnp.square(jnp.dot(u, v, precision="highest"))
    return (
        distance(one, other),
        (distance(one, truth) + distance(other, truth)) / 2,
        (overlap(leading[0], leading[2]) + overlap(leading[1], leading[2])) / 2,
        overlap(leading[0], leading[1]),
    )


def _second_moments(x: jax.Array) -> jax.Array:
    """Those of rows whose mean is known to be zero."""
    return jnp.matmul(x.T, x, precision="highest") / len(x)


@functools.partial(jax.jit, static_argnames=("n", "d"))
def simulate(keys: jax.Array, spike: float, *, n: int, d: int) -> tuple[jax.Array, ...]:
    """The measures of every repetition, with the direction along the first axis."""
    deviations = jnp.ones(d).at[0].set(jnp.sqrt(1 + spike))
    truth = jnp.diag(jnp.square(deviations))

    def one(key: jax.Array) -> tuple[jax.Array, ...]:
        x, y = jax.random.normal(key, (2, n, d)) * deviations
        return measure(x, y, truth, _second_moments)

    return jax.lax.map(one, keys)


def images() -> np.ndarray:
    """Fashion-MNIST, averaged to 14 × 14 pixels between 0 and 1, a row each."""
    found = data.load_images("fashion_mnist").images
    blocks = found.reshape(-1, 14, 2, 14, 2).mean(axis=(2, 4))
    return (blocks.reshape(len(blocks), -1) / 255).astype(np.float32)


def of_images(rows: np.ndarray, n: int, settings: Settings) -> dict[str, np.ndarray]:
    """The measures on disjoint halves of n images; distances by the total variance of all."""
    found = []
    compiled = jax.jit(lambda x, y, truth: measure(x, y, truth, lambda x: jnp.cov(x.T)))
    for repetition in range(settings.image_repetitions):
        rng = np.random.default_rng([settings.seed, n, repetition])
        x, y, rest = np.split(rows[rng.permutation(len(rows))], [n, 2 * n])
        covariance = np.cov(rest.T.astype(float)).astype(np.float32)
        values = np.array(compiled(x, y, covariance), float)
        values[:2] *= len(covariance) / np.trace(covariance)
        found.append(values)
    return dict(zip(MEASURES, np.array(found).T, strict=True))


def theory(load: Any, spike: float) -> dict[str, np.ndarray]:
    """The measures in the limit."""
    overlap = np.asarray(linear_memorization.eigenvector_overlap(spike, load))
    limits = (
        linear_memorization.model_distance(load, load),
        linear_memorization.bulk_distance(load),
        overlap,
        overlap**2,
    )
    return dict(zip(MEASURES, map(np.asarray, limits), strict=True))


Results = dict[tuple[int, float, float], dict[str, np.ndarray]]


def distance_rows(results: Results, settings: Settings) -> list[dict[str, Any]]:
    """W₂²/d in the limit and by simulation, at the last of the spikes."""
    table = []
    for load in settings.loads:
        limit = theory(load, settings.spikes[-1])
        row: dict[str, Any] = {"n/d": f"{load:g}"}
        for name in MEASURES[:2]:
            row[f"{name}, limit"] = f"{limit[name]:.4f}"
            for d in settings.dimensions:
                values = results[d, load, settings.spikes[-1]][name]
                row[f"{name}, d = {d}"] = common.with_error(values, 4)
        table.append(row)
    return table


def overlap_rows(results: Results, settings: Settings) -> list[dict[str, Any]]:
    """The squared overlaps in the limit and by simulation."""
    table = []
    for spike, load in itertools.product(settings.spikes, settings.loads):
        limit = theory(load, spike)
        row: dict[str, Any] = {"θ": f"{spike:g}", "n/d": f"{load:g}"}
        for name in MEASURES[2:]:
            row[f"{name}, limit"] = f"{limit[name]:.3f}"
            for d in settings.dimensions:
                row[f"{name}, d = {d}"] = common.with_error(results[d, load, spike][name], 3)
        table.append(row)
    return table


def image_rows(results: dict[int, dict[str, np.ndarray]]) -> list[dict[str, Any]]:
    """The measures on images, distances as shares of the total variance."""
    return [
        {"rows of a half": n} | {name: common.with_error(found[name], 4) for name in MEASURES}
        for n, found in results.items()
    ]


def _points(axis: Axes, at: Any, values: list[np.ndarray], marker: str, color: str, label: str):
    """Means with their errors; circles are hollow, so that a square shows within."""
    hollow: dict[str, Any] = {"mfc": "white", "ms": 8} if marker == "o" else {"ms": 4.5}
    mean, error = np.array([common.mean_and_error(each) for each in values]).T
    axis.errorbar(at, mean, yerr=error, fmt=marker, color=color, lw=1, label=label, **hollow)


def draw(
    results: Results, of_halves: dict[int, dict[str, np.ndarray]], settings: Settings
) -> Figure:
    """Distances, and overlaps at each spike: lines in the limit, points of the simulation."""
    loads = np.geomspace(min(settings.loads) / 1.3, max(settings.loads) * 1.3, 200)
    colors, markers = ["#0072B2", "#D55E00"], "os^Dv"
    with plot.style():
        panels = 2 + bool(of_halves)
        figure, axes = plt.subplots(1, panels, figsize=(4.6 * panels, 4.2))
        for name, color in zip(MEASURES[:2], colors, strict=True):
            limit = theory(loads, settings.spikes[-1])[name]
            axes[0].plot(loads, limit, "-", color=color, label=f"{name}, limit")
            for d, marker in zip(settings.dimensions, markers, strict=False):
                found = [results[d, load, settings.spikes[-1]][name] for load in settings.loads]
                _points(axes[0], settings.loads, found, marker, color, f"{name}, d = {d}")
        axes[0].set(
            xscale="log", yscale="log", xlabel="load n/d", ylabel="W₂² per dimension", title="bulk"
        )
        for spike, color in zip(settings.spikes, colors, strict=False):
            limit = theory(loads, spike)[MEASURES[2]]
            axes[1].plot(loads, limit, "-", color=color, label=f"θ = {spike:g}, limit")
            for d, marker in zip(settings.dimensions, markers, strict=False):
                found = [results[d, load, spike][MEASURES[2]] for load in settings.loads]
                _points(axes[1], settings.loads, found, marker, color, f"θ = {spike:g}, d = {d}")
        axes[1].set(
            xscale="log", xlabel="load n/d", ylabel="squared overlap with u", title="direction"
        )
        if of_halves:
            at = [n / 196 for n in of_halves]
            for name, color, marker in zip(MEASURES[:2], colors, "os", strict=True):
                values = [found[name] for found in of_halves.values()]
                _points(axes[2], at, values, f"{marker}-", color, name)
            lost = [1 - found[MEASURES[3]] for found in of_halves.values()]
            _points(axes[2], at, lost, "^--", "black", "one less overlap of models")
            axes[2].set(
                xscale="log",
                yscale="log",
                xlabel="load n/d",
                ylabel="W₂² by total variance",
                title="Fashion-MNIST, d = 196",
            )
        for axis in axes:
            axis.legend(fontsize="small")
    return figure


def evaluate(settings: Settings, d: int, load: float, spike: float) -> dict[str, np.ndarray]:
    """The measures of every repetition at one load."""
    keys = jax.random.split(jax.random.key(settings.seed), settings.repetitions)
    measured = simulate(keys, spike, n=max(2, round(load * d)), d=d)
    return dict(zip(MEASURES, measured, strict=True))


def main(settings: Settings, output: Path | None = None, overwrite: bool = False) -> None:
    """Simulate at every load, print distances and overlaps beside their limits, draw them."""
    with common.open_run("linear_memorisation", settings, output, overwrite) as run:
        results: Results = run.stages(
            "loads",
            itertools.product(settings.dimensions, settings.loads, settings.spikes),
            functools.partial(evaluate, settings),
        )
        rows = functools.cache(images)
        halves = run.stages(
            "images", [(n,) for n in settings.images], lambda n: of_images(rows(), n, settings)
        )
        of_halves = {n: arrays for (n,), arrays in halves.items()}
        print(f"\nW₂²/d at θ = {settings.spikes[-1]:g}, mean ± standard error over repetitions:\n")
        print(run.save_table("distances", distance_rows(results, settings)))
        print("\nSquared overlaps:\n")
        print(run.save_table("overlaps", overlap_rows(results, settings)))
        if of_halves:
            print("\nTwo halves of Fashion-MNIST, W₂² by the total variance:\n")
            print(run.save_table("images", image_rows(of_halves)))
        run.save_figure("memorisation", draw(results, of_halves, settings))


if __name__ == "__main__":
    tyro.cli(main, config=(tyro.conf.OmitArgPrefixes,))
