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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import tyro
from matplotlib.figure import Figure

from divjax import flows, kernels, problems
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
                flows.kernel_stein_discrepancy(
                    result.particles, target.log_prob, kernels.InverseMultiquadric(bandwidth=1.0)
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


def draw_restart(curves: dict[str, dict[str, np.ndarray]], settings: Settings) -> Figure:
    """The gradient norm of all schemes, a panel a velocity: why momentum must be restarted."""
    names = [name for name in ("SVGD", "Blob", "GFSD") if name in settings.velocities]
    figure, axes = plt.subplots(
        1,
        max(1, len(names)),
        figsize=(1 + 4 * max(1, len(names)), 4),
        layout="constrained",
        sharey=True,
        squeeze=False,
    )
    axes = axes[0]
    for axis, name in zip(axes, names, strict=False):
        for color, scheme in enumerate(SCHEMES):
            norms = curves[f"{name} / {scheme}"]["squared_norm"][-1]
            steps = np.arange(norms.shape[1])
            axis.fill_between(steps, norms.min(0), norms.max(0), color=f"C{color}", alpha=0.2, lw=0)
            axis.plot(steps, np.median(norms, axis=0), color=f"C{color}", label=scheme)
        axis.set(yscale="log", title=name, xlabel="step")
    axes[0].set_ylabel("mean ‖Σ w v‖²")
    axes[0].legend(fontsize=8)
    figure.suptitle(
        f"Four two-component targets, step size {settings.step_sizes[-1]:g}: "
        "median and range over seeds"
    )
    return figure


def draw_squared_norms(curves: dict[str, dict[str, np.ndarray]], settings: Settings) -> Figure:
    """Gradient norms of plain and accelerated flows, a panel a velocity and step size."""
    names = settings.velocities
    shape = (len(settings.step_sizes), len(names))
    figure, axes = plt.subplots(
        *shape,
        figsize=(3 * shape[1], 2.4 * shape[0]),
        layout="constrained",
        sharex=True,
        squeeze=False,
    )
    for row, step_size in enumerate(settings.step_sizes):
        for column, name in enumerate(names):
            axis = axes[row, column]
            for color, scheme in enumerate(("MWGraD", "A-MWGraD")):
                norms = curves[f"{name} / {scheme}"]["squared_norm"][row]
                steps = np.arange(norms.shape[1])
                axis.fill_between(
                    steps, norms.min(0), norms.max(0), color=f"C{color}", alpha=0.2, lw=0
                )
                axis.plot(steps, np.median(norms, axis=0), color=f"C{color}", label=scheme)
            axis.set(yscale="log", title=f"{name}, step size {step_size:g}")
    axes[0, 0].legend(fontsize=8)
    for axis in axes[-1]:
        axis.set_xlabel("step")
    for axis in axes[:, 0]:
        axis.set_ylabel("mean ‖Σ w v‖²")
    return figure


def draw_snapshots(ends: dict[str, dict[str, np.ndarray]], settings: Settings) -> Figure:
    """Particles of the first seed over the targets' mean log-density, a row a method."""
    side = np.linspace(-7, 7, 150)
    grid = np.stack(np.meshgrid(side, side), axis=-1)
    log_probs = [
        jax.vmap(jax.vmap(target.log_prob))(jnp.asarray(grid))
        for target in problems.three_component_targets()
    ]
    density = np.exp(np.mean(log_probs, axis=0))
    columns = next(iter(ends.values()))["snapshots"].shape[1]
    figure, axes = plt.subplots(
        len(ends),
        columns,
        figsize=(2.2 * columns, 2.2 * len(ends)),
        layout="constrained",
        squeeze=False,
    )
    for row, (name, arrays) in enumerate(ends.items()):
        for column in range(columns):
            axis = axes[row, column]
            axis.contourf(grid[..., 0], grid[..., 1], density, levels=10, cmap="Blues")
            axis.scatter(*arrays["snapshots"][0, column].T, s=6, color="black")
            axis.set(xlim=(-7, 7), ylim=(-7, 7), xticks=[], yticks=[])
            if row == 0:
                axis.set_title(f"step {column * (settings.num_steps // 2)}")
        axes[row, 0].set_ylabel(name, fontsize=8)
    return figure


def draw_weights(ends: dict[str, dict[str, np.ndarray]]) -> Figure:
    """The four objectives' weights over time, first seed."""
    columns = len(ends) // 2
    figure, axes = plt.subplots(
        2,
        columns,
        figsize=(3 * columns, 4.5),
        layout="constrained",
        sharey=True,
        squeeze=False,
    )
    for axis, (name, arrays) in zip(axes.T.ravel(), ends.items(), strict=True):
        axis.plot(arrays["weights"][0], lw=1)
        axis.axhline(0.25, color="gray", ls=":", lw=1)
        axis.set_title(name, fontsize=9)
    for axis in axes[-1]:
        axis.set_xlabel("step")
    axes[0, 0].legend([f"target {k + 1}" for k in range(4)], fontsize=7)
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
