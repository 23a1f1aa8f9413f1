"""Kernel estimates of a density: their regimes in large dimension, and rules for bandwidths.

    python -m experiments.density_regimes            # --quick for a small one

Regimes. n = exp(α d) samples of N(0, I), a Gaussian kernel of bandwidth h, evaluated at new samples
z, with h from .35 to 3 times h_G. Three numbers beside their limits for large d at fixed α:

- KL(p‖p̂)/d and the root mean square of (log p̂ − log p)/d. Both tend to `kl_per_dimension`.
- The standard deviation of log p̂(z) over samples. By the central limit theorem it is that of the
  mean of n kernels relative to its expectation; below h_CLT that grows exponentially in d, and the
  measured one does not follow.
- Σ w_i², with w_i the share of sample i in p̂(z): 1/n if all are equal, 1 if one sample is all. It
  tends to 1 − (h/h_G)² below h_G and to 0 above, as in the random energy model (Mézard, Parisi,
  Sourlas, Toulouse, Virasoro 1984).

Rules. Densities of known entropy in 1 to 10 dimensions: N(0, I), two Gaussians of different widths,
Student's t with 3 degrees of freedom. The excess of the mean of −log p̂ over that of −log p at new
samples, an unbiased estimate of KL(p‖p̂), by `Scott`, `Silverman`, `LeastSquaresCrossValidation`,
`LikelihoodCrossValidation`, and the best of a grid of multiples of Scott's for these very draws
("best"). `knn_log_density` is no density: its excess may be negative, and is no KL.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import scipy.stats
import tyro
from jax.scipy.stats import norm
from jax.scipy.stats import t as student
from matplotlib.figure import Figure

from divjax import plot
from divjax.information import density
from experiments import common


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a run depends on."""

    alphas: tuple[float, ...] = (0.1, 0.2, 0.3, 0.5)
    """log n/d."""
    samples: tuple[int, ...] = (400, 2000, 8000)
    """About n; d is the integer nearest to log n/α, and n = exp(α d)."""
    points: int = 200
    """New samples z, the same for all repetitions."""
    densities: tuple[str, ...] = ("normal", "two widths", "Student")
    dimensions: tuple[int, ...] = (1, 2, 5, 10)
    sizes: tuple[int, ...] = (200, 1000)
    """Samples for the rules."""
    held_out: int = 2000
    repetitions: int = 20
    seed: int = 0
    quick: bool = False
    """One α, one density, a few samples: does everything run?"""

    def __post_init__(self):
        unknown = set(self.densities) - set(DENSITIES)
        if unknown or not self.densities:
            known = ", ".join(DENSITIES)
            raise SystemExit(f"densities must be among {known}; got {sorted(unknown)}.")
        numbers = ("alphas", "samples", "points", "dimensions", "sizes", "held_out", "repetitions")
        common.check_positive(**{name: getattr(self, name) for name in numbers})
        if self.quick:
            small = {"alphas": (0.3,), "samples": (150,), "points": 20, "repetitions": 3}
            small |= {"densities": ("normal",), "dimensions": (2,), "sizes": (50,), "held_out": 100}
            for name, value in small.items():
                object.__setattr__(self, name, value)


# Regimes in large dimension.

# Bandwidths in units of h_G, a constant factor apart: a kernel's square is one of h/√2, which is on
# the grid too.
STEPS_OF_ROOT_TWO = 4
GRID = 2.0 ** (np.arange(-16, 14) / (2 * STEPS_OF_ROOT_TWO))


def log_normal(z: jax.Array, variance: Any = 1.0) -> jax.Array:
    """The log-density of N(0, variance · I) at rows."""
    return jnp.sum(norm.logpdf(z, scale=jnp.sqrt(variance)), axis=-1)


@functools.partial(jax.jit, static_argnames=("n", "d", "points", "repetitions"))
def log_estimates(
    key: jax.Array, bandwidths: jax.Array, *, n: int, d: int, points: int, repetitions: int
) -> tuple[jax.Array, jax.Array]:
    """The points z, and log p̂ there: repetitions, bandwidths, points."""
    z_key, key = jax.random.split(key)
    z = jax.random.normal(z_key, (points, d))

    def one(key: jax.Array) -> jax.Array:
        x = jax.random.normal(key, (n, d))
        return jax.lax.map(lambda h: density.log_density(z, x, bandwidth=h), bandwidths)

    return z, jax.lax.map(one, jax.random.split(key, repetitions))


def regime(alpha: float, n: int, d: int, settings: Settings) -> dict[str, np.ndarray]:
    """Errors, fluctuations and shares of the estimate, by repetitions and bandwidths."""
    h_condensed = float(density.condensation_bandwidth(alpha))
    key = jax.random.fold_in(jax.random.key(settings.seed), d)
    h = h_condensed * GRID
    options = {"points": settings.points, "repetitions": settings.repetitions}
    z, logs = log_estimates(key, jnp.asarray(h, jnp.float32), n=n, d=d, **options)
    z, logs = np.asarray(z, float), np.asarray(logs, float)
    errors = logs - np.asarray(log_normal(jnp.asarray(z)))
    # log Σ K_i, without the constants: Σ w_i² = Σ K_i² / (Σ K_i)², and K_i² is a kernel of h/√2.
    sums = logs + math.log(n) + d * np.log(h)[:, None] + 0.5 * d * math.log(2 * math.pi)
    shares = np.exp(sums[:, :-STEPS_OF_ROOT_TWO] - 2 * sums[:, STEPS_OF_ROOT_TWO:])
    kept = slice(STEPS_OF_ROOT_TWO, None)
    # E K and E K² at z are normal densities: the relative variance of a mean of n kernels.
    squares = np.sum(z**2, axis=1)
    h2 = h[kept, None] ** 2
    log_ratio = d * (np.log(1 + h2) - 0.5 * np.log(h2 * (2 + h2)))
    log_ratio = log_ratio + squares / (1 + h2) - squares / (2 + h2)
    # The median over z is that of a typical point.
    by_limit = np.median(np.sqrt(np.expm1(log_ratio) / n), axis=1)
    return {
        "h": h[kept],
        "KL": -errors[:, kept].mean(axis=2) / d,
        "error": np.sqrt((errors[:, kept] ** 2).mean(axis=2)) / d,
        "deviation": np.median(logs[:, kept].std(axis=0, ddof=1), axis=1),
        "central limit": by_limit,
        "share": shares.mean(axis=2),
    }


def best_bandwidth(h: np.ndarray, kl: np.ndarray) -> np.ndarray:
    """In each row, where a parabola in log h through the three least values is least."""
    at = np.clip(kl.argmin(axis=1), 1, len(h) - 2)
    low, middle, high = (kl[np.arange(len(kl)), at + step] for step in (-1, 0, 1))
    moved = 0.5 * (low - high) / (low - 2 * middle + high)
    return h[at] * (h[1] / h[0]) ** moved


# Rules for the bandwidth.


@dataclasses.dataclass(frozen=True)
class Density:
    """How to draw rows, and their log-density."""

    draw: Callable[[jax.Array, int, int], jax.Array]
    log_density: Callable[[jax.Array], jax.Array]
    entropy: Callable[[int], float]
    """In closed form; NaN where there is none."""


WIDE = 3.0


def _two_widths(key: jax.Array, n: int, d: int) -> jax.Array:
    """Half of N(0, I), half around 4 on all axes with a third of the deviation."""
    first, second = jax.random.split(key)
    narrow = jax.random.bernoulli(first, 0.5, (n, 1))
    rows = jax.random.normal(second, (n, d))
    return jnp.where(narrow, 4 + rows / WIDE, rows)


def _log_two_widths(z: jax.Array) -> jax.Array:
    return jnp.logaddexp(log_normal(z), log_normal(z - 4, WIDE**-2)) - math.log(2)


DEGREES = 3.0


def _student(key: jax.Array, n: int, d: int) -> jax.Array:
    """Independent coordinates."""
    return jax.random.t(key, DEGREES, (n, d))


def _student_entropy(d: int) -> float:
    return d * float(scipy.stats.t(DEGREES).entropy())


DENSITIES: dict[str, Density] = {
    "normal": Density(
        lambda key, n, d: jax.random.normal(key, (n, d)),
        log_normal,
        lambda d: 0.5 * d * math.log(2 * math.pi * math.e),
    ),
    "two widths": Density(_two_widths, _log_two_widths, lambda d: math.nan),
    "Student": Density(
        _student, lambda z: jnp.sum(student.logpdf(z, DEGREES), axis=1), _student_entropy
    ),
}

RULES: dict[str, Any] = {
    "Scott": density.Scott(),
    "Silverman": density.Silverman(),
    "least squares": density.LeastSquaresCrossValidation(),
    "likelihood": density.LikelihoodCrossValidation(),
}
MULTIPLES = 2.0 ** (np.arange(-12, 9) / 4)
NEIGHBORS = (3, 10)


def draws(name: str, n: int, d: int, settings: Settings) -> tuple[jax.Array, jax.Array]:
    """Samples x and new ones z of a density, for every repetition."""
    keys = jax.random.split(jax.random.key(settings.seed))
    pairs = zip(keys, (n, settings.held_out), strict=True)
    of = DENSITIES[name]
    x, z = (of.draw(key, settings.repetitions * each, d) for key, each in pairs)
    return x.reshape(-1, n, d), z.reshape(-1, settings.held_out, d)


@functools.partial(jax.jit, static_argnames="name")
def excesses(x: jax.Array, z: jax.Array, *, name: str) -> dict[str, jax.Array]:
    """The mean of log p − log p̂ at new samples, and that of −log p, for every repetition."""

    def one(pair: tuple[jax.Array, jax.Array]) -> dict[str, jax.Array]:
        x, z = pair
        log_p = DENSITIES[name].log_density(z)
        excess = lambda log_q: jnp.mean(log_p - log_q)
        found = {"entropy": -jnp.mean(log_p)}
        for rule_name, rule in RULES.items():
            h = rule(x)
            found[rule_name] = excess(density.log_density(z, x, bandwidth=h))
            found[f"{rule_name} / Scott"] = (h / density.Scott()(x))[0]
        multiples = jnp.asarray(MULTIPLES, x.dtype)
        scott = density.Scott()(x)
        on_grid = lambda c: excess(density.log_density(z, x, bandwidth=c * scott))
        grid = jax.lax.map(on_grid, multiples)
        found["best"] = jnp.min(grid)
        found["best / Scott"] = multiples[jnp.argmin(grid)]
        for k in NEIGHBORS:
            found[f"kNN, k = {k}"] = excess(density.knn_log_density(z, x, k=k))
        return found

    return jax.lax.map(one, (x, z))


METHODS = (*RULES, "best", *(f"kNN, k = {k}" for k in NEIGHBORS))


# Tables and figures.

Regimes = dict[tuple[float, int, int], dict[str, np.ndarray]]
Rules = dict[tuple[str, int, int], dict[str, np.ndarray]]


def sizes_of(settings: Settings) -> list[tuple[float, int, int]]:
    """α, n and d of every regime."""
    pairs = itertools.product(settings.alphas, settings.samples)
    dimensions = [(alpha, round(math.log(n) / alpha)) for alpha, n in pairs]
    return [(alpha, round(math.exp(alpha * d)), d) for alpha, d in dimensions]


def _interpolated(arrays: dict[str, np.ndarray], name: str, h: float) -> np.ndarray:
    """Each repetition's value at a bandwidth between those of the grid."""
    grid = np.log(arrays["h"])
    return np.array([np.interp(math.log(h), grid, row) for row in arrays[name]])


def bandwidth_rows(results: Regimes) -> list[dict[str, Any]]:
    """The three bandwidths by theory, and the measured one of least KL."""
    table = []
    for (alpha, n, d), arrays in results.items():
        table.append(
            {
                "α": f"{alpha:g}",
                "d": d,
                "n": n,
                "h_CLT": f"{float(density.central_limit_bandwidth(alpha)):.4f}",
                "h_G": f"{float(density.condensation_bandwidth(alpha)):.4f}",
                "h_KL": f"{float(density.kl_optimal_bandwidth(alpha)):.4f}",
                "best h, measured": common.with_error(best_bandwidth(arrays["h"], arrays["KL"]), 3),
                "least KL/d": common.with_error(arrays["KL"].min(axis=1), 4),
                "limit": f"{float(density.kl_per_dimension(limit_of(alpha), alpha)):.4f}",
            }
        )
    return table


def limit_of(alpha: float) -> float:
    """The bandwidth of least KL in the limit."""
    return float(density.kl_optimal_bandwidth(alpha))


def error_rows(results: Regimes) -> list[dict[str, Any]]:
    """KL/d and the share at h_KL, h_G and h_CLT, and the central limit theorem's deviation."""
    table = []
    for (alpha, n, d), arrays in results.items():
        row: dict[str, Any] = {"α": f"{alpha:g}", "d": d, "n": n}
        h_condensed = float(density.condensation_bandwidth(alpha))
        places = {"h_KL": limit_of(alpha), "h_G": h_condensed, "h_CLT": 2**0.5 * h_condensed}
        for place, h in places.items():
            row[f"KL/d at {place}"] = common.with_error(_interpolated(arrays, "KL", h), 4)
            row[f"{place}, limit"] = f"{float(density.kl_per_dimension(h, alpha)):.4f}"
        grid = np.log(arrays["h"])
        for name in ("deviation", "central limit"):
            at = np.interp(math.log(2 * h_condensed), grid, np.log(arrays[name]))
            row[f"{name}, 2 h_G"] = f"{math.exp(at):.3f}"
        half = limit_of(alpha)
        row["share at h_KL"] = common.with_error(_interpolated(arrays, "share", half), 3)
        row["share, limit"] = f"{1 - (half / h_condensed) ** 2:.3f}"
        table.append(row)
    return table


def _finite_cell(values: np.ndarray) -> str:
    """Mean ± standard error of those that are finite, and how many these are if not all."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return "none finite"
    missing = f" ({finite.size} of {values.size})" if finite.size < values.size else ""
    return common.with_error(finite, 3) + missing


def rule_rows(results: Rules) -> list[dict[str, Any]]:
    """The entropy, and the excess of each method, mean ± standard error over repetitions."""
    table = []
    for (name, n, d), arrays in results.items():
        exact = DENSITIES[name].entropy(d)
        row: dict[str, Any] = {"density": name, "d": d, "n": n}
        row["entropy"] = f"{arrays['entropy'].mean() if math.isnan(exact) else exact:.3f}"
        for method in METHODS:
            row[method] = _finite_cell(arrays[method])
        table.append(row)
    return table


def multiple_rows(results: Rules) -> list[dict[str, Any]]:
    """Bandwidths in units of Scott's: the median over repetitions and its quartiles."""
    table = []
    for (name, n, d), arrays in results.items():
        row: dict[str, Any] = {"density": name, "d": d, "n": n}
        for method in ("least squares", "likelihood", "best"):
            quartiles = np.nanquantile(arrays[f"{method} / Scott"], [0.25, 0.5, 0.75])
            low, middle, high = quartiles
            row[method] = f"{middle:.2f} ({low:.2f}, {high:.2f})"
        table.append(row)
    return table


def draw_regimes(results: Regimes) -> Figure:
    """A row an α: KL/d, deviations, shares against h/h_G, with the limits as lines."""
    alphas = sorted({alpha for alpha, _, _ in results})
    h = np.geomspace(0.45, 2.3, 200)
    with plot.style():
        figure, axes = plt.subplots(
            len(alphas), 3, figsize=(12, 2.7 * len(alphas) + 0.8), squeeze=False, sharex=True
        )
        for (of_errors, of_spread, of_shares), alpha in zip(axes, alphas, strict=True):
            h_condensed = float(density.condensation_bandwidth(alpha))
            limit = np.asarray(density.kl_per_dimension(h * h_condensed, alpha))
            of_errors.plot(h, limit, "k-", label="limit", linewidth=1.4)
            of_shares.plot(h, np.maximum(1 - h**2, 0), "k-", linewidth=1.4)
            cells = [key for key in results if key[0] == alpha]
            for number, key in enumerate(cells):
                arrays, marker = results[key], "os^Dv"[number % 5]
                color = plt.rcParams["axes.prop_cycle"].by_key()["color"][number]
                look = {"color": color, "marker": marker, "markersize": 3.5, "linewidth": 0.8}
                at = arrays["h"] / h_condensed
                label = f"d = {key[2]}, n = {key[1]}"
                mean, error = common.mean_and_error(arrays["KL"])
                of_errors.errorbar(at, mean, yerr=error, linestyle=":", label=label, **look)
                of_spread.plot(at, arrays["deviation"], linestyle=":", **look)
                of_spread.plot(at, arrays["central limit"], "-", color=color, linewidth=1.2)
                mean, error = common.mean_and_error(arrays["share"])
                of_shares.errorbar(at, mean, yerr=error, linestyle=":", **look)
            best = limit_of(alpha) / h_condensed
            for axis in (of_errors, of_spread, of_shares):
                for place, dashes in ((best, "-."), (1, "--"), (2**0.5, ":")):
                    axis.axvline(place, color="gray", linestyle=dashes, linewidth=1)
            top = 1.1 * float(limit[-1])
            of_errors.set(ylabel=f"α = {alpha:g}\nKL/d, nats", ylim=(0, top), xlim=(0.45, 2.3))
            of_spread.set(yscale="log", ylim=(0.02, 8), ylabel="deviation of log p̂")
            of_shares.set(ylim=(-0.02, 1.02), ylabel="Σ w²")
            of_errors.legend(fontsize="x-small")
        titles = ("error", "points measured, lines by central limit", "share of few samples")
        for axis, title in zip(axes[0], titles, strict=True):
            axis.set_title(title)
        for axis in axes[-1]:
            axis.set_xlabel("h/h_G (−· h_KL, −− h_G, ·· h_CLT)")
    return figure


def draw_rules(results: Rules) -> Figure:
    """A panel a density, at the largest size: the excess of each method by dimension."""
    largest = max(n for _, n, _ in results)
    names = list(dict.fromkeys(name for name, _, _ in results))
    with plot.style():
        figure, axes = plt.subplots(
            1, len(names), figsize=(4.2 * len(names), 4.2), squeeze=False, sharey=True
        )
        for axis, name in zip(axes[0], names, strict=True):
            dimensions = [d for of, n, d in results if (of, n) == (name, largest)]
            for number, method in enumerate(METHODS):
                values = [results[name, largest, d][method] for d in dimensions]
                kept = [each[np.isfinite(each)] for each in values]
                mean, error = np.array([common.mean_and_error(each) for each in kept]).T
                at = np.arange(len(dimensions)) + 0.03 * (number - 3)
                marker = "osD^vPX"[number % 7]
                axis.errorbar(at, mean, yerr=error, marker=marker, markersize=4, label=method)
            axis.set_xticks(range(len(dimensions)), [str(d) for d in dimensions])
            axis.axhline(0, color="black", linewidth=0.8)
            axis.set_yscale("symlog", linthresh=0.1)
            axis.set_ylim(-0.15, 20)
            axis.set(title=f"{name}, n = {largest}", xlabel="dimension")
        axes[0, 0].set_ylabel("excess over the entropy, nats")
        handles = axes[0, 0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower center", ncols=4)
    return figure


def main(settings: Settings, output: Path | None = None, overwrite: bool = False) -> None:
    """Measure the regimes and the rules, print them beside their limits, draw both."""
    with common.open_run("density_regimes", settings, output, overwrite) as run:
        regimes: Regimes = run.stages(
            "regimes", sizes_of(settings), lambda alpha, n, d: regime(alpha, n, d, settings)
        )
        rules: Rules = run.stages(
            "rules",
            itertools.product(settings.densities, settings.sizes, settings.dimensions),
            lambda name, n, d: excesses(*draws(name, n, d, settings), name=name),
        )
        print("\nBandwidths for n = exp(α d), and the best one by measured KL:\n")
        print(run.save_table("bandwidths", bandwidth_rows(regimes)))
        print("\nErrors at the three bandwidths, beside their limits:\n")
        print(run.save_table("errors", error_rows(regimes)))
        print("\nExcess over the entropy in nats, mean ± standard error over repetitions:\n")
        print(run.save_table("rules", rule_rows(rules)))
        print("\nBandwidths in units of Scott's, median and quartiles:\n")
        print(run.save_table("multiples", multiple_rows(rules)))
        run.save_figure("regimes", draw_regimes(regimes))
        run.save_figure("rules", draw_rules(rules))


if __name__ == "__main__":
    tyro.cli(main, config=(tyro.conf.OmitArgPrefixes,))
