"""How close lower bounds on mutual information come: the staircase, and how tight Ξ(JS) can be.

    python -m experiments.js_kl_bound            # minutes; --quick for a small one

The staircase of "Connecting Jensen-Shannon and Kullback-Leibler divergences" (arXiv 2510.20644):
pairs of d = 5 columns whose mutual information rises by steps, 2, 4, 6, 8, 10 nats, while a critic
trains on fresh batches of 64. Marginals: `gauss`; `cubic` (y³), `half-cube` (x√|x| of both) and
`asinh` (of both), which change no information; `student`, the same pairs over a common √(χ²/ν); and
`uniform`, x ~ U(0, 1) and x plus noise U(−ε, ε).

Five critics are trained for each, by JS, DV, NWJ, MINE and InfoNCE, and read on fresh batches, at
all the pairs of a batch: Ξ(JS), GAN-DIME and SMILE read the one trained by JS; KL-DIME reads NWJ's.

`tightness` compares Ξ(JS), of the best critic there is, with the mutual information of two labels
among k that are equal with probability α + (1 − α)/k: exact sums.

Where this differs from the paper: by default the critics see `num_negatives` false pairs for each
true one instead of all 63, InfoNCE's critic is separable, layers are narrower and levels shorter
(`--hidden 256 256 --num-negatives 63 --steps-per-level 4000 --joint-infonce` for the paper's).
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import scipy.special
import tyro
from flax import nnx
from matplotlib.figure import Figure

from divjax import plot
from divjax.fdiv import kl_lower_bound_from_cross_entropy
from divjax.ratio import MutualInformationBound
from divjax.ratio.bounds import MINE
from divjax.ratio.bounds.named_bounds import as_bound
from experiments import common


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a run depends on."""

    variants: tuple[str, ...] = ("gauss", "cubic", "half-cube", "asinh", "student", "uniform")
    levels: tuple[float, ...] = (2.0, 4.0, 6.0, 8.0, 10.0)
    """Mutual information, in nats."""
    num_features: int = 5
    """Columns of x, and of y."""
    degrees: int = 5
    """Degrees of freedom of `student`."""
    batch_size: int = 64
    steps_per_level: int = 2000
    num_negatives: int = 4
    """False pairs for each true one in a training batch; all are read."""
    hidden: tuple[int, ...] = (128, 128)
    learning_rate: float = 5e-4
    seeds: tuple[int, ...] = (0, 1)
    readings_per_level: int = 40
    joint_infonce: bool = False
    """InfoNCE by a joint critic at all pairs, as in the paper, instead of a separable one."""
    quick: bool = False
    """Two levels of 60 steps, one seed, two variants: does everything run?"""

    def __post_init__(self):
        unknown = set(self.variants) - set(VARIANTS)
        if unknown or not self.variants:
            raise SystemExit(
                f"variants must be among {', '.join(VARIANTS)}; got {sorted(unknown)}."
            )
        common.check_seeds(self.seeds)
        numbers = ("levels", "num_features", "degrees", "steps_per_level", "num_negatives")
        numbers += ("hidden", "learning_rate", "readings_per_level")
        common.check_positive(**{name: getattr(self, name) for name in numbers})
        if not 1 <= self.num_negatives < self.batch_size:
            raise SystemExit(
                f"num_negatives must be below batch_size; got {self.num_negatives} and "
                f"{self.batch_size}."
            )
        if "student" in self.variants:
            _student_correlation(self, min(self.levels))
        if self.quick:
            small = {"levels": self.levels[:2], "steps_per_level": 60, "readings_per_level": 6}
            small |= {"hidden": (16,), "seeds": self.seeds[:1], "variants": self.variants[::4]}
            for name, value in small.items():
                object.__setattr__(self, name, value)
        if self.steps_per_level % self.readings_per_level:
            raise SystemExit("readings_per_level must divide steps_per_level.")


def student_excess(num_features: int, degrees: int) -> float:
    """What a common scale adds to the information of Gaussian x and y: independent of ρ.

    I = h(x) + h(y) − h(x, y), by the entropy of the multivariate t distribution.
    """

    def terms(d: int) -> float:
        half = (degrees + d) / 2
        return half * scipy.special.digamma(half) - scipy.special.gammaln(half)

    return float(2 * terms(num_features) - terms(2 * num_features) - terms(0))


def uniform_noise(information: float) -> float:
    """The ε for which I(x; x + n) of x ~ U(0, 1), n ~ U(−ε, ε) is this many nats.

    I = ε − log 2ε for ε ≤ ½, 1/(4ε) beyond.
    """
    if information < 0.5:
        return 1 / (4 * information)
    return float(-scipy.special.lambertw(-np.exp(-information) / 2).real)


def correlation(settings: Settings, information: float) -> float:
    """The ρ of each column that gives this information."""
    return float(np.sqrt(-np.expm1(-2 * information / settings.num_features)))


# What a level's parameter is, and how columns are made of (key, parameter, shape, settings).
def _gauss(key: jax.Array, rho: Any, settings: Settings) -> tuple[jax.Array, jax.Array]:
    x, noise = jax.random.normal(key, (2, settings.batch_size, settings.num_features))
    return x, rho * x + jnp.sqrt(1 - rho**2) * noise


def _half_cube(x: jax.Array) -> jax.Array:
    return x * jnp.sqrt(jnp.abs(x))


def _student(key: jax.Array, rho: Any, settings: Settings) -> tuple[jax.Array, jax.Array]:
    pair_key, scale_key = jax.random.split(key)
    x, y = _gauss(pair_key, rho, settings)
    normals = jax.random.normal(scale_key, (settings.batch_size, settings.degrees))
    scale = jax.lax.rsqrt(jnp.mean(normals**2, axis=1, keepdims=True))
    return x * scale, y * scale


def _uniform(key: jax.Array, epsilon: Any, settings: Settings) -> tuple[jax.Array, jax.Array]:
    x, noise = jax.random.uniform(key, (2, settings.batch_size, settings.num_features))
    return x, x + epsilon * (2 * noise - 1)


def _of_gauss(of_x: Callable, of_y: Callable) -> Callable:
    def sample(key: jax.Array, rho: Any, settings: Settings) -> tuple[jax.Array, jax.Array]:
        x, y = _gauss(key, rho, settings)
        return of_x(x), of_y(y)

    return sample


def _student_correlation(settings: Settings, information: float) -> float:
    excess = student_excess(settings.num_features, settings.degrees)
    if information < excess:
        raise SystemExit(f"student: a level must be at least {excess:.2f}; got {information}.")
    return correlation(settings, information - excess)


VARIANTS: dict[str, tuple[Callable[[Settings, float], float], Callable]] = {
    "gauss": (correlation, _gauss),
    "cubic": (correlation, _of_gauss(lambda x: x, lambda y: y**3)),
    "half-cube": (correlation, _of_gauss(_half_cube, _half_cube)),
    "asinh": (correlation, _of_gauss(jnp.arcsinh, jnp.arcsinh)),
    "student": (_student_correlation, _student),
    "uniform": (lambda s, information: uniform_noise(information / s.num_features), _uniform),
}

TRAIN: dict[str, Any] = {"JS": "js", "DV": "dv", "NWJ": "nwj", "MINE": MINE(), "InfoNCE": "infonce"}

# Estimators: by which bound the critic is trained, and by which it is read.
ESTIMATORS: dict[str, tuple[str, str]] = {
    "Ξ(JS)": ("JS", "kl_from_js"),
    "GAN-DIME": ("JS", "log_ratio"),
    "SMILE": ("JS", "smile"),
    "DV": ("DV", "dv"),
    "MINE": ("MINE", "dv"),
    "NWJ": ("NWJ", "nwj"),
    "KL-DIME": ("NWJ", "log_ratio"),
    "InfoNCE": ("InfoNCE", "infonce"),
}


class ReLU(nnx.Module):
    """The papers' critic: a perceptron with rectified units."""

    def __init__(self, hidden: tuple[int, ...], in_features: int, rngs: nnx.Rngs):
        widths = zip((in_features, *hidden), (*hidden, 1), strict=True)
        self.layers = nnx.List([nnx.Linear(a, b, rngs=rngs) for a, b in widths])

    def __call__(self, x: jax.Array) -> jax.Array:
        """A value for each row."""
        for layer in self.layers[:-1]:
            x = nnx.relu(layer(x))
        return self.layers[-1](x)


def staircase(settings: Settings, variant: str, train: str) -> dict[str, jax.Array]:
    """Readings "seeds levels readings" of all estimators that read the critic trained by `train`.

    One program: all levels and readings in two scans, all seeds vmapped.
    """
    parameter, sample = VARIANTS[variant]
    network = functools.partial(ReLU, settings.hidden)
    separable = train == "InfoNCE" and not settings.joint_infonce
    all_pairs = settings.batch_size - 1
    bound = MutualInformationBound(
        TRAIN[train],
        network="separable" if separable else network,
        # A separable critic's last width is also that of its inner product.
        hidden=(*settings.hidden[:-1], max(8, settings.hidden[-1] // 4)),
        learning_rate=settings.learning_rate,
        batch_size=settings.batch_size,
        num_negatives=all_pairs if train == "InfoNCE" else settings.num_negatives,
        num_steps=settings.steps_per_level // settings.readings_per_level,
        num_checks=1,
        num_groups=1,
    )
    read_outs = {name: read for name, (by, read) in ESTIMATORS.items() if by == train}

    def run(key: jax.Array) -> dict[str, jax.Array]:
        def batch(key: jax.Array, level: Any) -> tuple[jax.Array, jax.Array]:
            return sample(key, level, settings)

        def reading(training, key, level):
            train_key, read_key = jax.random.split(key)
            fit = bound.stream(train_key, lambda k: batch(k, level), training)
            pairs = jnp.concatenate(batch(read_key, level), axis=1)
            u_p, u_q = fit.critic.at_pairs(pairs, all_pairs)
            values = {name: as_bound(read)(u_p, u_q) for name, read in read_outs.items()}
            return fit.training, values | {"finite": fit.finite}

        def one_level(training, inputs):
            key, level = inputs
            keys = jax.random.split(key, settings.readings_per_level)
            return jax.lax.scan(lambda carry, key: reading(carry, key, level), training, keys)

        levels = jnp.asarray([parameter(settings, level) for level in settings.levels])
        start_key, key = jax.random.split(key)
        start = bound.init(start_key, lambda k: batch(k, levels[0]))
        keys = jax.random.split(key, len(settings.levels))
        return jax.lax.scan(one_level, start, (keys, levels))[1]

    keys = jax.vmap(jax.random.key)(jnp.asarray(settings.seeds))
    return jax.jit(jax.vmap(run))(keys)


def tightness(sizes: tuple[int, ...] = (2, 50, 500), points: int = 201) -> dict[str, np.ndarray]:
    """I and Ξ(I_JS) of labels that are equal with probability α + (1 − α)/k, a row each k.

    Their density ratio takes one value where they are equal and another where not: the sums over
    k² cells are those over two.
    """
    alpha = np.linspace(0, 1, points)
    k = np.asarray(sizes, float)[:, None]
    p = np.stack([alpha + (1 - alpha) / k, (1 - alpha) * (1 - 1 / k)])
    q = np.broadcast_to(np.stack([1 / k, 1 - 1 / k]), p.shape)
    information = np.sum(scipy.special.rel_entr(p, q), axis=0)
    # The balanced cross-entropy of the best critic, log 2 − JS without a difference.
    gap = -0.5 * np.sum(scipy.special.rel_entr(p, p + q) + scipy.special.rel_entr(q, p + q), axis=0)
    with jax.enable_x64(True):
        bound = np.asarray(kl_lower_bound_from_cross_entropy(jnp.asarray(gap)))
    return {"alpha": alpha, "sizes": np.asarray(sizes), "information": information, "bound": bound}


def estimates(arrays: dict[str, dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The readings "seeds levels readings" of all estimators."""
    return {name: arrays[train][name] for name, (train, _) in ESTIMATORS.items()}


def rows(
    curves: dict[str, dict[str, np.ndarray]],
    finite: dict[str, dict[str, np.ndarray]],
    settings: Settings,
) -> list[dict]:
    """Mean ± standard deviation of the readings of the last quarter of each level, all seeds.

    And whether each seed's critic, by variant and training, stayed finite.
    """
    last = max(1, settings.readings_per_level // 4)
    table = []
    for variant, readings in curves.items():
        for name, values in readings.items():
            row = {"variant": variant, "estimator": name}
            for column, level in enumerate(settings.levels):
                end = values[:, column, -last:]
                row[f"I = {level:g}"] = f"{end.mean():.2f} ± {end.std():.2f}"
            of_critic = finite[variant][ESTIMATORS[name][0]]
            row["finite"] = common.finite_cell(of_critic.all(axis=(1, 2)))
            table.append(row)
    return table


def draw_staircase(readings: dict[str, np.ndarray], variant: str, settings: Settings) -> Figure:
    """A panel an estimator: its readings, and the truth."""
    per_reading = settings.steps_per_level // settings.readings_per_level
    steps = per_reading * (1 + np.arange(len(settings.levels) * settings.readings_per_level))
    truth = np.repeat(settings.levels, settings.readings_per_level)
    thin = {"linewidth": 1.2, "linestyle": "-"}
    with plot.style():
        figure, axes = plt.subplots(2, 4, figsize=(13, 6.5), sharex=True, sharey=True)
        for axis, (name, values) in zip(axes.ravel(), readings.items(), strict=False):
            flat = values.reshape(values.shape[0], -1)
            plot.curves(flat, steps=steps, label="estimate", ax=axis, color="C0", **thin)
            axis.step(steps, truth, color="black", label="truth", where="pre", ls="--", lw=1.4)
            if name == "InfoNCE":
                limit = {"color": "C4", "linestyle": ":", "label": "log of the batch size"}
                axis.axhline(np.log(settings.batch_size), **limit)
            axis.set(title=name, ylim=(-1, max(settings.levels) + 3))
        for axis in axes[-1]:
            axis.set_xlabel("step")
        for axis in axes[:, 0]:
            axis.set_ylabel("information, nats")
        axes[0, 0].locator_params(axis="x", nbins=4)
        # The last panel, of InfoNCE, has every line.
        entries = axes[-1, -1].get_legend_handles_labels()
        figure.legend(*entries, loc="outside lower center", ncols=3)
        seeds = len(settings.seeds)
        span = f"mean over {seeds} seeds, band ± one standard error" if seeds > 1 else "one seed"
        figure.suptitle(f"{variant}: {span}")
    return figure


def draw_tightness(arrays: dict[str, np.ndarray]) -> Figure:
    """Ξ(I_JS) beside I, a panel a size."""
    sizes = arrays["sizes"]
    with plot.style():
        figure, axes = plt.subplots(1, len(sizes), figsize=(4 * len(sizes), 4))
        for axis, size, truth, bound in zip(
            axes, sizes, arrays["information"], arrays["bound"], strict=True
        ):
            plot.curves(truth, steps=arrays["alpha"], label="I", ax=axis)
            plot.curves(bound, steps=arrays["alpha"], label="Ξ(I_JS)", ax=axis)
            axis.set(title=f"k = {size}", xlabel="α")
        axes[0].set_ylabel("information, nats")
        axes[0].legend()
    return figure


def tightness_rows(arrays: dict[str, np.ndarray]) -> list[dict]:
    """I and Ξ at a few α, and the largest gap."""
    table = []
    for size, truth, bound in zip(
        arrays["sizes"], arrays["information"], arrays["bound"], strict=True
    ):
        row: dict[str, Any] = {"k": int(size)}
        for alpha in (0.1, 0.25, 0.5, 0.75, 0.9, 1.0):
            at = int(np.argmin(np.abs(arrays["alpha"] - alpha)))
            row[f"α = {alpha:g}"] = f"{bound[at]:.3f} of {truth[at]:.3f}"
        table.append(row | {"largest gap": float(np.max(truth - bound))})
    return table


def main(settings: Settings, output: Path | None = None, overwrite: bool = False) -> None:
    """Run the staircases and the exact study, print their tables, draw their figures."""
    with common.open_run("js_kl_bound", settings, output, overwrite) as run:
        exact = run.stage("tightness", tightness)
        curves, finite, seconds = {}, {}, 0.0
        for variant in settings.variants:
            arrays = {}
            for train in common.progress(TRAIN, variant):
                arrays[train] = run.stage(
                    f"{variant} {train}",
                    lambda variant=variant, train=train: staircase(settings, variant, train),
                )
                seconds += float(arrays[train]["seconds"])
            curves[variant] = estimates(arrays)
            finite[variant] = {train: array["finite"] for train, array in arrays.items()}
        print("\nΞ(I_JS) of I, exact:\n")
        print(run.save_table("tightness", tightness_rows(exact)))
        print("\nReadings at the end of each level, mean ± standard deviation, in nats:\n")
        print(run.save_table("staircase", rows(curves, finite, settings)))
        print(f"\n{seconds:.0f} seconds of training", flush=True)
        run.save_figure("tightness", draw_tightness(exact))
        for variant, readings in curves.items():
            run.save_figure(f"staircase_{variant}", draw_staircase(readings, variant, settings))


if __name__ == "__main__":
    tyro.cli(main, config=(tyro.conf.OmitArgPrefixes,))
