"""How often two-sample tests find a difference: on shifts, scales, blobs, images and a table.

    python -m experiments.two_sample_power            # --quick for a small one

Every test sees the same draws, `repetitions` pairs of samples of each problem and size, at one
level. Without a difference a test should reject as often as the level says; with one, as often as
it can.

`null`: both N(0, I). `shift`: one feature's mean moves by .5. `scale`: one feature's deviation is
1.5. `blobs`: nine Gaussians on a grid in the plane, round in p and stretched along the diagonal in
q (Gretton et al. 2012): the difference is much smaller than the distances of the rows. `digits`:
scikit-learn's 8 × 8 digits, of which q lacks the class 8. `fashion`: Fashion-MNIST, averaged to 7 ×
7 pixels, of which q lacks the shirts. `adult`: six columns of numbers of Adult, `age` shuffled in
q: no column differs alone.

The tests: `mmd_test` with the median distance as its bandwidth, `energy_test` and
`aggregated_mmd_test` of `divjax.discrepancy`; `ratio.ClassifierRatio` with random Fourier features,
on held-out rows. Beside them Kolmogorov–Smirnov tests of every column (SciPy, adjusted after
Bonferroni), and hyppo's MMD and energy tests where hyppo is installed, as its users call them: by a
χ² approximation from 21 rows on.
"""

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
import scipy.stats
import tyro
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

from divjax import discrepancy, plot, ratio
from experiments import common, data

Samples = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a run depends on."""

    sizes: tuple[int, ...] = (50, 100, 200, 400)
    """Rows of each sample."""
    dimensions: tuple[int, ...] = (2, 10, 50)
    """Features of `null`, `shift` and `scale`."""
    problems: tuple[str, ...] = ("null", "shift", "scale", "blobs", "digits", "fashion", "adult")
    level: float = 0.05
    num_permutations: int = 199
    repetitions: int = 200
    peer_repetitions: int = 100
    """Of the tests that run in Python, one pair of samples after the other."""
    seed: int = 0
    quick: bool = False
    """Two problems, one size, ten repetitions: does everything run?"""

    def __post_init__(self):
        unknown = set(self.problems) - set(PROBLEMS)
        if unknown or not self.problems:
            known = ", ".join(PROBLEMS)
            raise SystemExit(f"problems must be among {known}; got {sorted(unknown)}.")
        if not 0 < self.level < 1:
            raise SystemExit(f"level must be between 0 and 1; got {self.level}.")
        numbers = ("sizes", "dimensions", "num_permutations", "repetitions", "peer_repetitions")
        common.check_positive(**{name: getattr(self, name) for name in numbers})
        if self.quick:
            small = {"sizes": self.sizes[:1], "dimensions": self.dimensions[:1]}
            small |= {"problems": ("null", "blobs"), "repetitions": 10, "peer_repetitions": 5}
            small |= {"num_permutations": 99}
            for name, value in small.items():
                object.__setattr__(self, name, value)


# The problems: draws of n rows of each sample.


def shifted(rng: np.random.Generator, n: int, d: int, shift: float, scale: float) -> Samples:
    """Standard normal rows, and others whose first feature is moved and stretched."""
    x, y = rng.normal(size=(2, n, d))
    y[:, 0] = shift + scale * y[:, 0]
    return x, y


def blobs(rng: np.random.Generator, n: int, d: int) -> Samples:
    """A grid of Gaussians ten deviations apart, in q with a correlation of .8 within each."""
    centers = 10.0 * rng.integers(0, 3, size=(2, n, 2))
    x, y = rng.normal(size=(2, n, 2))
    y[:, 1] = 0.8 * y[:, 0] + 0.6 * y[:, 1]
    return centers[0] + x, centers[1] + y


@functools.cache
def images(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Images as rows of numbers between 0 and 1, and their classes."""
    if name == "digits":
        digits: Any = load_digits()
        return digits.data / 16, digits.target
    found = data.load_images("fashion_mnist")
    blocks = found.images.reshape(-1, 7, 4, 7, 4).mean(axis=(2, 4))
    return blocks.reshape(len(blocks), -1) / 255, found.labels


def without_a_class(rng: np.random.Generator, n: int, d: int, name: str, lost: int) -> Samples:
    """Images of all classes, and others of all but one."""
    rows, labels = images(name)
    # No image is in both samples.
    order = rng.permutation(len(rows))
    x, rest = order[:n], order[n:]
    y = rest[labels[rest] != lost][:n]
    return rows[x], rows[y]


@functools.cache
def adult() -> np.ndarray:
    """Numbers of Adult: standardised, the capital ones on a logarithmic scale."""
    table = data.load_table("adult").select_dtypes("number").astype(float)
    gains = ["capital-gain", "capital-loss"]
    table[gains] = np.log1p(table[gains])
    rows = table.to_numpy()
    return (rows - rows.mean(0)) / rows.std(0)


def shuffled_column(rng: np.random.Generator, n: int, d: int) -> Samples:
    """Rows of Adult, and other rows with one column shuffled among them."""
    rows = adult()[rng.choice(len(adult()), 2 * n, replace=False)]
    x, y = rows[:n], rows[n:].copy()
    y[:, 0] = rng.permutation(y[:, 0])
    return x, y


PROBLEMS: dict[str, Callable[[np.random.Generator, int, int], Samples]] = {
    "null": functools.partial(shifted, shift=0.0, scale=1.0),
    "shift": functools.partial(shifted, shift=0.5, scale=1.0),
    "scale": functools.partial(shifted, shift=0.0, scale=1.5),
    "blobs": blobs,
    "digits": functools.partial(without_a_class, name="digits", lost=8),
    "fashion": functools.partial(without_a_class, name="fashion", lost=6),
    "adult": shuffled_column,
}
# Of these the dimension is a setting.
OF_ANY_DIMENSION = ("null", "shift", "scale")


# The tests: p-values of all repetitions at once.


def _by_classifier(key: jax.Array, x: jax.Array, y: jax.Array, num_permutations: int) -> jax.Array:
    fit_key, test_key = jax.random.split(key)
    fit = ratio.ClassifierRatio(head="fourier", num_folds=2).fit(fit_key, x, y)
    return fit.two_sample_test(test_key, num_permutations=num_permutations).p_value


def _by(test: Callable[..., Any]) -> Callable[..., jax.Array]:
    return lambda key, x, y, count: test(key, x, y, num_permutations=count).p_value


COMPILED: dict[str, Callable[..., jax.Array]] = {
    "MMD": _by(discrepancy.mmd_test),
    "energy": _by(discrepancy.energy_test),
    "aggregated MMD": _by(discrepancy.aggregated_mmd_test),
    "classifier": _by_classifier,
}


def _kolmogorov_smirnov(x: np.ndarray, y: np.ndarray) -> float:
    tests: list[Any] = [scipy.stats.ks_2samp(*pair) for pair in zip(x.T, y.T, strict=True)]
    p_values = [test.pvalue for test in tests]
    return min(1.0, len(p_values) * min(p_values))


def peers() -> dict[str, Callable[[np.ndarray, np.ndarray], float]]:
    """The p-values of other packages that are installed."""
    found: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
        "KS of columns (SciPy)": _kolmogorov_smirnov
    }
    try:
        from hyppo.ksample import MMD, Energy  # pyright: ignore[reportMissingImports]
    except ImportError:
        print("hyppo is not installed: its tests are left out.")
        return found
    for name, test in (("MMD (hyppo)", MMD()), ("energy (hyppo)", Energy())):
        found[name] = lambda x, y, test=test: float(test.test(x, y)[1])
    return found


def evaluate(settings: Settings, problem: str, n: int, d: int) -> dict[str, np.ndarray]:
    """The p-values of every test, and the seconds that each pair of samples took it."""
    # One stream of draws for all tests, another for each problem and size.
    rng = np.random.default_rng([settings.seed, list(PROBLEMS).index(problem), n, d])
    pairs = [PROBLEMS[problem](rng, n, d) for _ in range(settings.repetitions)]
    x, y = (np.stack(side).astype(np.float32) for side in zip(*pairs, strict=True))
    keys = jax.random.split(jax.random.key(settings.seed), settings.repetitions)
    found: dict[str, np.ndarray] = {}
    for name, test in COMPILED.items():
        one = lambda inputs, test=test: test(*inputs, settings.num_permutations)
        program = jax.jit(lambda *inputs, one=one: jax.lax.map(one, inputs))
        compiled = program.lower(keys, x, y).compile()
        start = time.perf_counter()
        found[name] = np.asarray(compiled(keys, jnp.asarray(x), jnp.asarray(y)))
        found[f"{name} seconds"] = np.array((time.perf_counter() - start) / len(keys))
    for name, test in peers().items():
        some = pairs[: settings.peer_repetitions]
        start = time.perf_counter()
        found[name] = np.array([test(*pair) for pair in some])
        found[f"{name} seconds"] = np.array((time.perf_counter() - start) / len(some))
    return found


def cells(settings: Settings) -> list[tuple[str, int, int]]:
    """Problems, sizes and dimensions; 0 for a problem that has its own."""
    return [
        (problem, n, d)
        for problem in settings.problems
        for d in (settings.dimensions if problem in OF_ANY_DIMENSION else (0,))
        for n in settings.sizes
    ]


def power_rows(
    results: dict[tuple[str, int, int], dict[str, np.ndarray]], level: float
) -> list[dict[str, Any]]:
    """How often each test rejects, in per cent, ± a standard error."""
    table = []
    for (problem, n, d), arrays in results.items():
        row: dict[str, Any] = {"problem": f"{problem}, d = {d}" if d else problem, "n": n}
        for name in [name for name in arrays if not name.endswith("seconds")]:
            rejected = arrays[name] <= level
            error = np.sqrt(rejected.mean() * (1 - rejected.mean()) / len(rejected))
            row[name] = f"{100 * rejected.mean():.0f} ± {100 * error:.0f}"
        table.append(row)
    return table


def time_rows(results: dict[tuple[str, int, int], dict[str, np.ndarray]]) -> list[dict[str, Any]]:
    """Milliseconds a test, after compilation, by the number of rows: the median over problems."""
    sizes = sorted({n for _, n, _ in results})
    table = []
    for n in sizes:
        of_size = [arrays for (_, size, _), arrays in results.items() if size == n]
        names = [name for name in of_size[0] if name.endswith(" seconds")]
        row: dict[str, Any] = {"n": n}
        for name in names:
            median = np.median([float(arrays[name]) for arrays in of_size])
            row[name.removesuffix(" seconds")] = f"{1000 * median:.2g}"
        table.append(row)
    return table


def draw(results: dict[tuple[str, int, int], dict[str, np.ndarray]], settings: Settings) -> Figure:
    """A panel a problem, at its largest dimension: the power of each test by the rows."""
    largest = {problem: d for problem, _, d in results}
    with plot.style():
        columns = min(4, len(largest))
        lines = -(-len(largest) // columns)
        figure, axes = plt.subplots(
            lines, columns, figsize=(3.4 * columns, 3 * lines), squeeze=False, sharey=True
        )
        for axis in axes.ravel()[len(largest) :]:
            axis.set_visible(False)
        for axis, (problem, d) in zip(axes.ravel(), largest.items(), strict=False):
            names = [
                name
                for name in results[problem, settings.sizes[0], d]
                if not name.endswith("seconds")
            ]
            for number, name in enumerate(names):
                power = [
                    (results[problem, n, d][name] <= settings.level).mean() for n in settings.sizes
                ]
                marker = "osD^vPX*"[number % 8]
                axis.plot(settings.sizes, power, marker=marker, markersize=4, label=name)
            axis.axhline(settings.level, color="black", linestyle=":", linewidth=1)
            axis.set(
                title=f"{problem}, d = {d}" if d else problem, xscale="log", ylim=(-0.02, 1.02)
            )
            axis.set_xticks(settings.sizes, [str(n) for n in settings.sizes])
            axis.minorticks_off()
        for axis in axes[-1]:
            axis.set_xlabel("rows of each sample")
        for axis in axes[:, 0]:
            axis.set_ylabel("share rejected")
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def main(settings: Settings, output: Path | None = None, overwrite: bool = False) -> None:
    """Run all tests on all problems, print their power and their time, draw the power."""
    with common.open_run("two_sample_power", settings, output, overwrite) as run:
        results = run.stages("power", cells(settings), functools.partial(evaluate, settings))
        print(f"\nRejected at {settings.level:g}, in per cent ± one standard error:\n")
        print(run.save_table("power", power_rows(results, settings.level)))
        print("\nMilliseconds a test:\n")
        print(run.save_table("time", time_rows(results)))
        run.save_figure("power", draw(results, settings))


if __name__ == "__main__":
    tyro.cli(main, config=(tyro.conf.OmitArgPrefixes,))
