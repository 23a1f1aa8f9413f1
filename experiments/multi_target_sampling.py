"""Sampling towards several targets at once: the two toys of MWGraD and A-MWGraD, every velocity.

    python -m experiments.multi_target_sampling            # minutes; --quick for a small one

`two_component` (A-MWGraD, arXiv 2601.19220, section 4.1) measures how fast the combined gradient
vanishes: four two-component targets, 50 particles from N(0, I), bandwidth 1, step sizes .001, .005
and .01, plain gradient descent against acceleration as published, semi-implicit, and with restart.

`three_component` (the toy in the code of MWGraD, arXiv 2505.18765) starts 50 particles far out, 5
N(0, I) clipped to ±10, uses Adam at .03 and the median bandwidth, and asks where the particles end
and what the objectives' weights do on the way.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from divjax import discrepancy, flows, kernels, plot, problems
from experiments import common


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a run depends on."""

    num_particles: int = 50
    num_steps: int = 1000
    """Steps on the two-component toy; the three-component one takes half as many more."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    step_sizes: tuple[float, ...] = (0.001, 0.005, 0.01)
    bandwidth: float = 1.0
    learning_rate: float = 3e-2
    """Adam's, on the three-component toy."""
    step_size: float = 3e-2
    """The accelerated scheme's, and gradient descent's for Langevin, on the three-component toy."""

    velocities: tuple[str, ...] = ("SVGD", "Blob", "GFSD", "neural", "Langevin")
    quick: bool = False
    """30 steps of at most two seeds, one step size and two velocities: does everything run?"""

    def __post_init__(self):
        unknown = set(self.velocities) - set(VELOCITIES)
        if unknown or not self.velocities:
            raise SystemExit(
                f"velocities must be among {', '.join(VELOCITIES)}; got {sorted(unknown)}."
            )
        common.check_seeds(self.seeds)
        numbers = ("num_particles", "step_sizes", "bandwidth", "learning_rate", "step_size")
        common.check_positive(**{name: getattr(self, name) for name in numbers})
        if self.num_steps < 2:
            raise SystemExit(f"num_steps must be at least 2; got {self.num_steps}.")
        if self.quick:
            small = {"num_steps": 30, "seeds": self.seeds[:2], "step_sizes": self.step_sizes[-1:]}
            for name, value in {**small, "velocities": self.velocities[::4]}.items():
                object.__setattr__(self, name, value)


# The estimators compared; all see the same kernel.
VELOCITIES: dict[str, Callable[[kernels.Kernel], Any]] = {
    "SVGD": flows.SVGD,
    "Blob": flows.Blob,
    "GFSD": flows.GFSD,
    "neural": lambda kernel: flows.NeuralScore(),
    "Langevin": lambda kernel: flows.Langevin(),
}


def explicit_momentum(step_size: jax.Array | float) -> optax.GradientTransformation:
    """A-MWGraD as published: x moves with the old momentum, x ← x + √η v; then v is updated."""

    def init(params):
        return optax.tree.zeros_like(params), jnp.ones((), jnp.int32)

    def update(updates, state, params=None):
        del params
        momentum, n = state
        root = jnp.sqrt(step_size)
        step = jax.tree.map(lambda v: root * v, momentum)
        momentum = jax.tree.map(lambda v, g: (n - 1) / (n + 2) * v - root * g, momentum, updates)
        return step, (momentum, n + 1)

    return optax.GradientTransformation(init, update)


SCHEMES: dict[str, Callable[[Any], optax.GradientTransformation]] = {
    "MWGraD": optax.sgd,
    "A-MWGraD, published": explicit_momentum,
    "A-MWGraD, no restart": lambda step_size: flows.accelerated(step_size, restart=False),
    "A-MWGraD": flows.accelerated,
}


# A scheme has one look in all figures.
LINES: dict[str, dict[str, Any]] = {
    "MWGraD": {"color": "C0", "linestyle": "-"},
    "A-MWGraD, published": {"color": "C1", "linestyle": "--"},
    "A-MWGraD, no restart": {"color": "C2", "linestyle": ":"},
    "A-MWGraD": {"color": "C6", "linestyle": (0, (8, 3))},
}


def keys(settings: Settings) -> jax.Array:
    """A key a seed."""
    return jax.vmap(jax.random.key)(jnp.asarray(settings.seeds))


def objectives(targets: tuple[problems.GaussianMixture, ...]) -> tuple[flows.KL, ...]:
    """One divergence a target."""
    return tuple(flows.KL(target.log_prob) for target in targets)


def two_component(settings: Settings, velocity: Any, scheme: Callable) -> dict[str, jax.Array]:
    """Gradient norms, weights and final particles, (step size, seed, …): one compilation."""
    targets = objectives(problems.two_component_targets())

    def run(step_size: jax.Array, key: jax.Array) -> dict[str, jax.Array]:
        start, noise = jax.random.split(key)
        result = flows.Flow(targets, velocity=velocity, optimizer=scheme(step_size)).run(
            noise,
            jax.random.normal(start, (settings.num_particles, 2)),
            num_steps=settings.num_steps + 1,
        )
        return {
            "squared_norm": result.history.squared_norm,
            "weights": result.history.weights,
            "particles": result.particles,
            "finite": result.finite,
        }

    over_seeds = jax.vmap(run, in_axes=(None, 0))
    return jax.jit(jax.vmap(over_seeds, in_axes=(0, None)))(
        jnp.asarray(settings.step_sizes), keys(settings)
    )


def three_component(
    settings: Settings, velocity: Any, optimizer: optax.GradientTransformation
) -> dict[str, jax.Array]:
    """Snapshots, energies, weights and gradient norms, a row a seed."""
    targets = objectives(problems.three_component_targets())
    third = settings.num_steps // 2

    def run(key: jax.Array) -> dict[str, jax.Array]:
        start, noise = jax.random.split(key)
        particles = jnp.clip(5 * jax.random.normal(start, (settings.num_particles, 2)), -10, 10)
        result = flows.Flow(targets, velocity=velocity, optimizer=optimizer).run(
            noise, particles, num_steps=3 * third + 1, observe=lambda state: state.particles
        )
        history = result.history
        stein = jnp.stack(
            [
                discrepancy.kernel_stein(
                    result.particles,
                    log_prob=target.log_prob,
                    kernel=kernels.InverseMultiquadric(bandwidth=1.0),
                )
                for target in problems.three_component_targets()
            ]
        )
        return {
            "snapshots": history.observed[::third],
            "values": history.values,
            "weights": history.weights,
            "squared_norm": history.squared_norm,
            "stein": stein,
            "finite": result.finite,
        }

    return jax.jit(jax.vmap(run))(keys(settings))


def draw_norms(axis: Axes, names: Sequence[str], found: Sequence[np.ndarray]) -> None:
    """Norms of a few schemes, "seeds num_steps" each, on an axis of their logarithms.

    Seeds differ by factors: a band around their mean would end below zero.
    """
    for name, norms in zip(names, found, strict=True):
        with np.errstate(divide="ignore"):
            plot.curves(np.log10(norms), label=name, ax=axis, linewidth=1.4, **LINES[name])
    # Four of them overlap, and must not hide the lines.
    for band in axis.collections:
        band.set_alpha(0.12)
    axis.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda exponent, _: power_of_ten(exponent)))


def power_of_ten(exponent: float) -> str:
    """10 to an exponent: as a power if that is a whole number, as a number within a decade.

    Example:
        >>> power_of_ten(-2.0), power_of_ten(-0.5)
        ('$10^{-2}$', '0.32')
    """
    whole = round(exponent)
    return f"$10^{{{whole}}}$" if abs(exponent - whole) < 1e-6 else f"{10**exponent:.2g}"


def finish_panels(figure: Figure, axes: np.ndarray, quantity: str, title: str, ncols: int) -> None:
    """The labels, common legend and title of panels of a quantity by steps."""
    for axis in axes[-1]:
        axis.set_xlabel("step")
    for axis in axes[:, 0]:
        axis.set_ylabel(quantity)
    lines = axes[0, 0].get_legend_handles_labels()
    figure.legend(*lines, loc="outside lower center", ncols=ncols, handlelength=3.5)
    figure.suptitle(title)


def finish_norms(figure: Figure, axes: np.ndarray, title: str) -> None:
    """As `finish_panels`, of norms with their bands."""
    band = "geometric mean over seeds, band ± one standard error of the logarithm"
    finish_panels(figure, axes, "mean ‖Σ w v‖²", f"{title}:\n{band}", ncols=2)


def draw_restart(curves: dict[str, dict[str, np.ndarray]], settings: Settings) -> Figure:
    """The gradient norm of all schemes, a panel a velocity: why momentum must be restarted."""
    names = [name for name in ("SVGD", "Blob", "GFSD") if name in settings.velocities]
    columns = max(1, len(names))
    with plot.style():
        figure, axes = plt.subplots(
            1, columns, figsize=(max(7, 3.6 * columns), 5.6), sharey=True, squeeze=False
        )
        for axis, name in zip(axes[0], names, strict=False):
            found = [curves[f"{name} / {scheme}"]["squared_norm"][-1] for scheme in SCHEMES]
            draw_norms(axis, list(SCHEMES), found)
            axis.set_title(name)
        rate = settings.step_sizes[-1]
        finish_norms(figure, axes, f"Four two-component targets, step size {rate:g}")
    return figure


def draw_squared_norms(curves: dict[str, dict[str, np.ndarray]], settings: Settings) -> Figure:
    """Gradient norms of plain and accelerated flows, a panel a velocity and step size."""
    schemes = ("MWGraD", "A-MWGraD")
    shape = (len(settings.step_sizes), len(settings.velocities))
    size = (max(7, 2.6 * shape[1]), 1.8 + 2.2 * shape[0])
    with plot.style():
        figure, axes = plt.subplots(*shape, figsize=size, sharex=True, sharey="col", squeeze=False)
        for row, step_size in enumerate(settings.step_sizes):
            for column, name in enumerate(settings.velocities):
                found = [curves[f"{name} / {scheme}"]["squared_norm"][row] for scheme in schemes]
                draw_norms(axes[row, column], schemes, found)
                axes[row, column].set_title(f"{name}, η = {step_size:g}")
        finish_norms(figure, axes, "Four two-component targets, step size η")
    return figure


def draw_snapshots(ends: dict[str, dict[str, np.ndarray]], settings: Settings) -> Figure:
    """Particles of the first seed over the targets' geometric mean, a row a method."""
    targets = problems.three_component_targets()

    def log_mean(x: jax.Array) -> jax.Array:
        return jnp.mean(jnp.stack([target.log_prob(x) for target in targets]))

    # What one target has and the others have not is no mode of the mean.
    own = np.stack([target.means[0] for target in targets])
    columns = next(iter(ends.values()))["snapshots"].shape[1]
    size = (2.4 * columns, 1.2 + 2.2 * len(ends))
    limits = (-7.0, 7.0, -7.0, 7.0)
    label = "particles of the first seed; those beyond ±7 are not shown"
    with plot.style():
        figure, axes = plt.subplots(len(ends), columns, figsize=size, squeeze=False)
        for row, (name, arrays) in enumerate(ends.items()):
            for column, axis in enumerate(axes[row]):
                x = arrays["snapshots"][0, column]
                plot.particles(x, log_mean, ax=axis, limits=limits, alpha=0.7, label=label)
                axis.scatter(*own.T, marker="x", color="C4", s=40, label="mode of one target alone")
                axis.set(xticks=[-4, 0, 4], yticks=[-4, 0, 4])
                axis.label_outer()
            axes[row, 0].set_ylabel(name)
        for column, axis in enumerate(axes[0]):
            axis.set_title(f"step {column * (settings.num_steps // 2)}")
        figure.supxlabel("first coordinate")
        figure.supylabel("second coordinate")
        points, _ = axes[0, 0].get_legend_handles_labels()
        heights = "$e^{-2}$, $e^{-1/2}$ and $e^{-1/8}$ of its maximum"
        contour = Line2D([], [], color="0.6", linestyle="-", linewidth=1)
        contour.set_label(f"geometric mean of the targets' densities, at {heights}")
        figure.legend(handles=[contour, *points], loc="outside upper center")
    return figure


def draw_weights(ends: dict[str, dict[str, np.ndarray]]) -> Figure:
    """The four objectives' weights over time, first seed, in the mean over short windows.

    Weights that jump from step to step would fill the panels.
    """
    columns = len(ends) // 2
    num_steps = next(iter(ends.values()))["weights"].shape[1]
    window = max(1, num_steps // 30)
    middles = np.arange(num_steps // window) * window + (window - 1) / 2
    with plot.style():
        figure, axes = plt.subplots(
            2, columns, figsize=(max(7, 3 * columns), 5.4), sharex=True, sharey=True, squeeze=False
        )
        for axis, (name, arrays) in zip(axes.T.ravel(), ends.items(), strict=True):
            weights = arrays["weights"][0, : len(middles) * window]
            means = weights.reshape(len(middles), window, -1).mean(1)
            for k, marker in enumerate("os^x"):
                line = {"label": f"target {k + 1}", "marker": marker, "markevery": (2 * k, 8)}
                plot.curves(means[:, k], steps=middles, ax=axis, **line)
            axis.axhline(0.25, color="0.5", linestyle="-", linewidth=0.8)
            axis.set(title=name, ylim=(-0.03, 1.03))
        span = f"means over {window} steps" if window > 1 else "every step"
        title = f"Four three-component targets, first seed, {span}; the line is at ¼"
        finish_panels(figure, axes, "weight", title, ncols=4)
    return figure


def restart_rows(curves: dict[str, dict[str, np.ndarray]], settings: Settings) -> list[dict]:
    """The worst seed's gradient norm at four times."""
    times = [0, settings.num_steps // 10, settings.num_steps // 2, settings.num_steps]
    rows = []
    for name, arrays in curves.items():
        velocity, scheme = name.split(" / ")
        for row, step_size in enumerate(settings.step_sizes):
            worst = arrays["squared_norm"][row].max(0)
            rows.append(
                {"velocity": velocity, "scheme": scheme, "step size": step_size}
                | {f"step {time}": f"{worst[time]:.1e}" for time in times}
                | {"finite": common.finite_cell(arrays["finite"][row])}
            )
    return rows


def end_rows(ends: dict[str, dict[str, np.ndarray]]) -> list[dict]:
    """Where the three-component flows end, mean ± standard error over seeds."""
    rows = []
    for name, arrays in ends.items():
        final = arrays["snapshots"][:, -1]
        inside = np.abs(final) < 3
        rows.append(
            {
                "method": name,
                "mean −log π": common.with_error(arrays["values"][:, -1].mean(-1), 3),
                "mean KSD²": common.with_error(arrays["stein"].mean(-1), 3),
                "median ‖Σ w v‖²": f"{np.median(arrays['squared_norm'][:, -1]):.1e}",
                "std x": common.with_error(final[..., 0].std(1)),
                "std y": common.with_error(final[..., 1].std(1)),
                "off the shared modes": common.with_error(1 - inside.all(-1).mean(1)),
                "mean abs(w − ¼)": f"{np.abs(arrays['weights'] - 0.25).mean():.3f}",
                "finite": common.finite_cell(arrays["finite"]),
            }
        )
    return rows


def main(settings: Settings, output: Path | None = None, overwrite: bool = False) -> None:
    """Run both toys, print their tables, draw their figures."""
    with common.open_run("multi_target_sampling", settings, output, overwrite) as run:
        fixed, median = kernels.Gaussian(bandwidth=settings.bandwidth), kernels.Gaussian()
        curves = {}
        for name in common.progress(settings.velocities, "two components"):
            velocity = VELOCITIES[name](fixed)
            for scheme, optimizer in SCHEMES.items():
                if name == "Langevin" and scheme not in ("MWGraD", "A-MWGraD"):
                    continue  # the published scheme would give it no noise at all
                label = f"{name} / {scheme}"
                curves[label] = run.stage(
                    f"two {label}",
                    lambda velocity=velocity, optimizer=optimizer: two_component(
                        settings, velocity, optimizer
                    ),
                )
        ends = {}
        for name in common.progress(settings.velocities, "three components"):
            velocity = VELOCITIES[name](median)
            # Langevin's temperature is right for gradient descent alone; A-MWGraD-Langevin is
            # shown for what it is.
            plain = optax.sgd if name == "Langevin" else optax.adam
            rate = settings.step_size if name == "Langevin" else settings.learning_rate
            for label, optimizer in (
                (f"MWGraD-{name}", plain(rate)),
                (f"A-MWGraD-{name}", flows.accelerated(settings.step_size)),
            ):
                ends[label] = run.stage(
                    f"three {label}",
                    lambda velocity=velocity, optimizer=optimizer: three_component(
                        settings, velocity, optimizer
                    ),
                )
        print("\nMean ‖Σ w v‖² on the two-component toy, worst seed:\n")
        print(run.save_table("two_component", restart_rows(curves, settings)))
        print("\nThe three-component toy, mean ± standard error over seeds:\n")
        print(run.save_table("three_component", end_rows(ends)))
        run.save_figure("restart", draw_restart(curves, settings))
        run.save_figure("gradient_norms", draw_squared_norms(curves, settings))
        run.save_figure("snapshots", draw_snapshots(ends, settings))
        run.save_figure("weights", draw_weights(ends))


if __name__ == "__main__":
    tyro.cli(main, config=(tyro.conf.OmitArgPrefixes,))
