"""Estimates of intrinsic dimension: on sets of known dimension, digits and word vectors.

    python -m experiments.intrinsic_dimension            # --quick for a small one

Sets of known dimension, rotated at random into 50 features: uniform cubes and spheres of dimension
2, 5 and 10, and the Swiss roll. MNIST: all digits, each digit, and with normal noise on every
pixel. Word vectors: PPMI–SVD of Shakespeare, speeches, film reviews (`experiments.word_vectors`).
Beside the last two a normal distribution with their mean and covariance: what an estimate says of
the linear structure alone.

Estimators of `information.dimension`: `two_nn`; `maximum_likelihood` with 20 and 5 neighbours; the
median over rows of `local`; `persistent_homology`, from minimum spanning trees. Those of
scikit-dimension that define the same numbers run on the same rows where it is installed.

Means ± standard errors are over draws; of images and words over disjoint subsets, and where only
one fits in, the standard error that the estimate states.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

from divjax import plot
from divjax.information import dimension
from experiments import common, data, word_vectors

AMBIENT = 50
PRINCIPAL = (10, 30, 100)
"""Numbers of singular vectors of words."""
KINDS = (*map(str, PRINCIPAL), "directions", "normal")
"""Of word vectors: with so many features; of length one; normal ones of the same covariance."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a run depends on."""

    manifolds: tuple[str, ...] = (
        *("cube 2", "cube 5", "cube 10", "sphere 2", "sphere 5", "sphere 10", "Swiss roll"),
    )
    sizes: tuple[int, ...] = (500, 1000, 2000, 5000)
    class_size: int = 5000
    """Rows of each digit, and of noisy ones."""
    classes: tuple[int, ...] = tuple(range(10))
    noises: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2)
    """Standard deviations of noise on pixels between 0 and 1."""
    vocabulary: int = 10_000
    """Words with vectors; none if 0."""
    window: int = 5
    repetitions: int = 10
    peer_repetitions: int = 2
    seed: int = 0
    quick: bool = False
    """Two sets, small digits, no words: does everything run?"""

    def __post_init__(self):
        unknown = set(self.manifolds) - set(MANIFOLDS)
        if unknown or not self.manifolds:
            known = ", ".join(MANIFOLDS)
            raise SystemExit(f"manifolds must be among {known}; got {sorted(unknown)}.")
        numbers = ("sizes", "class_size", "noises", "window", "repetitions", "peer_repetitions")
        common.check_positive(**{name: getattr(self, name) for name in numbers})
        if self.quick:
            small = {"manifolds": ("cube 2", "Swiss roll"), "sizes": (150,), "class_size": 150}
            small |= {"classes": (0, 1), "noises": (), "vocabulary": 0}
            small |= {"repetitions": 2, "peer_repetitions": 1}
            for name, value in small.items():
                object.__setattr__(self, name, value)


# The sets: draws of n rows.


def cube(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    """Uniform on [0, 1]^d."""
    return rng.uniform(size=(n, d))


def sphere(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    """Uniform on the sphere of dimension d, in d + 1 features."""
    rows = rng.normal(size=(n, d + 1))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def swiss_roll(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    """A rolled-up strip, angles from 1.5π to 4.5π and a height of 21."""
    angle = 1.5 * np.pi * (1 + 2 * rng.uniform(size=n))
    return np.stack(
        [angle * np.cos(angle), 21 * rng.uniform(size=n), angle * np.sin(angle)], axis=1
    )


MANIFOLDS: dict[str, tuple[Callable[..., np.ndarray], int]] = {
    **{f"cube {d}": (cube, d) for d in (2, 5, 10)},
    **{f"sphere {d}": (sphere, d) for d in (2, 5, 10)},
    "Swiss roll": (swiss_roll, 2),
}


def embedded(rng: np.random.Generator, rows: np.ndarray) -> np.ndarray:
    """Rows in a random subspace of the ambient features."""
    basis, _ = np.linalg.qr(rng.normal(size=(AMBIENT, rows.shape[1])))
    return rows @ basis.T


@functools.cache
def images(quick: bool) -> tuple[np.ndarray, np.ndarray]:
    """MNIST as rows of numbers between 0 and 1, and its classes; quick, scikit-learn's digits."""
    if quick:
        digits: Any = load_digits()
        return digits.data / 16, digits.target
    found = data.load_images("mnist")
    return found.images.reshape(len(found.labels), -1) / np.float32(255), found.labels


@functools.cache
def words(vocabulary: int, window: int, seed: int) -> np.ndarray:
    """Vectors of words, of the largest number of singular vectors."""
    return word_vectors.word_vectors(vocabulary, PRINCIPAL[-1], window, seed)


def normal_like(rng: np.random.Generator, rows: np.ndarray) -> np.ndarray:
    """Normal rows with the mean and covariance of others."""
    mean = rows.mean(axis=0)
    _, s, axes = np.linalg.svd((rows - mean).astype(float), full_matrices=False)
    drawn = rng.normal(size=(len(rows), len(s)))
    return mean + drawn * (s / math.sqrt(len(rows))) @ axes


def all_rows(name: str, settings: Settings) -> np.ndarray:
    """The rows of a set that is given, such as `digits`, `digit 3`, `digits + 0.1`, `words 30`."""
    rng = np.random.default_rng([settings.seed, 1])
    kind, _, of = name.partition(" ")
    if kind in ("digits", "digit"):
        rows, labels = images(settings.quick)
        if kind == "digit":
            return rows[labels == int(of)]
        if of.startswith("+"):
            return rows + float(of[2:]) * rng.normal(size=rows.shape).astype(np.float32)
        return normal_like(rng, rows[:20_000]) if of == "normal" else rows
    rows = words(settings.vocabulary, settings.window, settings.seed)
    if of == "normal":
        return normal_like(rng, rows)
    if of == "directions":
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return rows[:, : int(of)]


def draws(name: str, n: int, settings: Settings) -> np.ndarray:
    """Independent draws of a manifold, or disjoint subsets of rows that are given: "r n d"."""
    rng = np.random.default_rng([settings.seed, n])
    if name in MANIFOLDS:
        draw, d = MANIFOLDS[name]
        drawn = [embedded(rng, draw(rng, n, d)) for _ in range(settings.repetitions)]
        return np.stack(drawn).astype(np.float32)
    rows = all_rows(name, settings)
    count = min(settings.repetitions, len(rows) // n)
    order = rng.permutation(len(rows))[: count * n]
    return rows[order].reshape(count, n, -1).astype(np.float32)


# The estimators: value and standard error.


def _of(estimate: Any) -> tuple[jax.Array, jax.Array]:
    return estimate.value, estimate.std_error


def _local(key: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jnp.nanmedian(dimension.local(x, k=20)), jnp.full((), jnp.nan)


ESTIMATORS: dict[str, Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]] = {
    "TwoNN": lambda key, x: _of(dimension.two_nn(x)),
    "likelihood, k = 20": lambda key, x: _of(dimension.maximum_likelihood(x, k=20)),
    "likelihood, k = 5": lambda key, x: _of(dimension.maximum_likelihood(x, k=5)),
    "local, k = 20": _local,
    "spanning trees": lambda key, x: _of(dimension.persistent_homology(key, x)),
}


def peers() -> dict[str, Callable[[np.ndarray], float]]:
    """Estimators of scikit-dimension by the names of ours, if it is installed."""
    try:
        from skdim import id as skdim  # pyright: ignore[reportMissingImports]
    except ImportError:
        print("scikit-dimension is not installed: it is left out.")
        return {}

    def trees(x: np.ndarray) -> float:
        sizes = {"range_type": "num", "n_range_min": 50, "n_range_max": min(512, len(x) // 2)}
        options = sizes | {"nsteps": 12, "subsamples": 24, "random_state": 0}
        return float(skdim.PH(**options).fit(x).dimension_)

    return {
        "TwoNN": lambda x: float(skdim.TwoNN().fit(x).dimension_),
        "likelihood, k = 20": lambda x: float(skdim.MLE().fit(x, n_neighbors=20).dimension_),
        "spanning trees": trees,
    }


@functools.cache
def program(estimator: str, draws: int, n: int, d: int) -> Callable[..., Any]:
    """An estimator for all draws, one after the other, compiled."""
    estimate = ESTIMATORS[estimator]
    all_draws = jax.jit(lambda keys, rows: jax.lax.map(lambda pair: estimate(*pair), (keys, rows)))
    keys = jax.random.split(jax.random.key(0), draws)
    return all_draws.lower(keys, jnp.zeros((draws, n, d))).compile()


def evaluate(settings: Settings, name: str, n: int) -> dict[str, np.ndarray]:
    """All estimates of a set, with their standard errors and the seconds an estimate."""
    rows = draws(name, n, settings)
    keys = jax.random.split(jax.random.key(settings.seed), len(rows))
    found: dict[str, np.ndarray] = {}
    for estimator in ESTIMATORS:
        compiled = program(estimator, *rows.shape)
        start = time.perf_counter()
        values, errors = map(np.asarray, compiled(keys, rows))
        found[f"{estimator} seconds"] = np.array((time.perf_counter() - start) / len(rows))
        found |= {estimator: values, f"{estimator} error": errors}
    for estimator, estimate in peers().items() if name in MANIFOLDS else ():
        # Spanning trees take it a minute for ten draws.
        some = rows[: 1 if estimator == "spanning trees" else settings.peer_repetitions]
        start = time.perf_counter()
        values = np.array([estimate(np.asarray(each, float)) for each in some])
        found[f"{estimator} peer seconds"] = np.array((time.perf_counter() - start) / len(some))
        found[f"{estimator} peer"] = values
    return found


def cells(settings: Settings) -> list[tuple[str, int]]:
    """Sets and sizes."""
    found = [(name, n) for name in settings.manifolds for n in settings.sizes]
    found += [("digits", n) for n in settings.sizes]
    variants = ["digits normal", *(f"digits + {noise:g}" for noise in settings.noises)]
    found += [(name, settings.class_size) for name in variants]
    found += [(f"digit {c}", settings.class_size) for c in settings.classes]
    if settings.vocabulary:
        found += [(f"words {PRINCIPAL[-1]}", n) for n in settings.sizes]
        found += [(f"words {kind}", settings.sizes[-1]) for kind in KINDS]
    return list(dict.fromkeys(found))


# Tables and figure.

Results = dict[tuple[str, int], dict[str, np.ndarray]]


def value_and_error(arrays: dict[str, np.ndarray], estimator: str) -> tuple[float, float]:
    """The mean over draws and its standard error, or a single draw's own."""
    mean, error = common.mean_and_error(arrays[estimator])
    if len(arrays[estimator]) == 1:
        error = arrays[f"{estimator} error"][0]
    return float(mean), float(error)


def value_rows(results: Results) -> list[dict[str, Any]]:
    """The truth where it is known, and each estimate with its standard error."""
    table = []
    for (name, n), arrays in results.items():
        truth = str(MANIFOLDS[name][1]) if name in MANIFOLDS else "–"
        row: dict[str, Any] = {"rows": name, "n": n, "truth": truth}
        for estimator in ESTIMATORS:
            mean, error = value_and_error(arrays, estimator)
            row[estimator] = f"{mean:.2f}" + (f" ± {error:.2f}" if math.isfinite(error) else "")
        table.append(row)
    return table


def peer_rows(results: Results) -> list[dict[str, Any]]:
    """Milliseconds an estimate, ours and scikit-dimension's, medians over manifolds; differences.

    The difference is the largest one of the same rows in per cent; spanning trees draw theirs.
    """
    table = []
    for n in sorted({n for name, n in results if name in MANIFOLDS}):
        of_size = [arrays for (name, m), arrays in results.items() if m == n and name in MANIFOLDS]
        for estimator in ESTIMATORS:
            with_peer = [arrays for arrays in of_size if f"{estimator} peer" in arrays]
            ours = 1000 * np.median([arrays[f"{estimator} seconds"] for arrays in of_size])
            row = {"n": n, "estimator": estimator, "ms": f"{ours:.3g}"}
            row |= {"scikit-dimension, ms": "–", "ratio": "–", "difference": "–"}
            if with_peer:
                theirs = 1000 * np.median([a[f"{estimator} peer seconds"] for a in with_peer])
                gaps = [
                    np.abs(a[estimator][: len(a[f"{estimator} peer"])] / a[f"{estimator} peer"] - 1)
                    for a in with_peer
                ]
                row["scikit-dimension, ms"] = f"{theirs:.3g}"
                row["ratio"] = f"{theirs / ours:.2g}"
                row["difference"] = f"{100 * np.max(gaps):.2g} %"
            table.append(row)
    return table


def _panel(axis: Axes, at: Any, found: list[dict[str, np.ndarray]], **look: Any) -> None:
    """Every estimator's means with their errors."""
    # The median of local estimates is next to the likelihood of the same neighbours.
    shown = [estimator for estimator in ESTIMATORS if not estimator.startswith("local")]
    for number, estimator in enumerate(shown):
        mean, error = np.array([value_and_error(arrays, estimator) for arrays in found]).T
        marker = "os^D"[number]
        bars = np.nan_to_num(error)
        axis.errorbar(at, mean, yerr=bars, marker=marker, ms=4, label=estimator, **look)


def draw(results: Results, settings: Settings) -> Figure:
    """A panel a manifold by the rows; then digits and words."""
    panels = [*settings.manifolds, "digits", "noise", "classes"]
    panels += [f"words {PRINCIPAL[-1]}", "kinds"] if settings.vocabulary else []
    columns = 4
    lines = -(-len(panels) // columns)
    with plot.style():
        figure, axes = plt.subplots(
            lines, columns, figsize=(3.3 * columns, 2.9 * lines), squeeze=False
        )
        for axis in axes.ravel()[len(panels) :]:
            axis.set_visible(False)
        for axis, name in zip(axes.ravel(), panels, strict=False):
            if name == "classes":
                names = [f"digit {c}" for c in settings.classes]
                found = [results[of, settings.class_size] for of in names]
                _panel(axis, settings.classes, found, linestyle="none")
                axis.set_xticks(settings.classes)
                axis.set(title=f"each digit, n = {settings.class_size}", xlabel="digit")
            elif name == "noise":
                found = [results["digits", settings.sizes[-1]]]
                names = [f"digits + {noise:g}" for noise in settings.noises]
                found += [results[noisy, settings.class_size] for noisy in names]
                _panel(axis, [0.0, *settings.noises], found)
                axis.set(title="noisy digits", xlabel="deviation of the noise")
            elif name == "kinds":
                names = [f"words {kind}" for kind in KINDS]
                found = [results[of, settings.sizes[-1]] for of in names]
                _panel(axis, range(len(KINDS)), found, linestyle="none")
                axis.set_xticks(range(len(KINDS)), KINDS, rotation=30)
                axis.set(title=f"words, n = {settings.sizes[-1]}")
            else:
                _panel(axis, settings.sizes, [results[name, n] for n in settings.sizes])
                axis.set_xscale("log")
                axis.set_xticks(settings.sizes, [str(n) for n in settings.sizes])
                axis.minorticks_off()
                axis.set(title=name, xlabel="rows")
                if name in MANIFOLDS:
                    axis.axhline(MANIFOLDS[name][1], color="black", linestyle=":", linewidth=1)
        for axis in axes[:, 0]:
            axis.set_ylabel("dimension")
        handles = axes[0, 0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower center", ncols=4)
    return figure


def main(settings: Settings, output: Path | None = None, overwrite: bool = False) -> None:
    """Estimate the dimension of all sets, print it with times, draw it."""
    with common.open_run("intrinsic_dimension", settings, output, overwrite) as run:
        results: Results = run.stages(
            "sets", cells(settings), functools.partial(evaluate, settings)
        )
        print("\nDimensions, mean ± standard error:\n")
        print(run.save_table("values", value_rows(results)))
        print("\nMilliseconds an estimate after compilation, 50 features:\n")
        print(run.save_table("time", peer_rows(results)))
        run.save_figure("dimensions", draw(results, settings))


if __name__ == "__main__":
    tyro.cli(main, config=(tyro.conf.OmitArgPrefixes,))
