"""Figures of `monge_maps`, drawn from its saved arrays."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from divjax import plot

__all__ = ["draw_benchmark", "draw_gaussians", "draw_planar"]


def draw_lines(axis: Axes, lines: dict[str, dict[int, list[float]]]) -> None:
    """L2-UVP by dimension, a value a run, of each of a few methods."""
    for index, (name, values) in enumerate(lines.items()):
        found = np.array(list(values.values())).T
        marker = "os^Dvx*"[index % 7]
        plot.curves(found, steps=np.array(list(values)), label=name, ax=axis, marker=marker)
    every = sorted({dimension for values in lines.values() for dimension in values})
    axis.set(xscale="log", yscale="log", xlabel="dimension", ylabel="L2-UVP, %")
    axis.set_xticks(every, [str(dimension) for dimension in every])
    axis.minorticks_off()
    axis.set_title("mean over seeds, band ± one standard error")


def draw_benchmark(results: dict[tuple[str, int], list[dict]]) -> Figure:
    """L2-UVP by dimension, a line a method."""
    lines: dict[str, dict[int, list[float]]] = {}
    for (name, dimension), runs in results.items():
        lines.setdefault(name, {})[dimension] = [float(run["uvp"]) for run in runs]
    with plot.style():
        figure, axis = plt.subplots(figsize=(7, 5.5))
        draw_lines(axis, lines)
        figure.legend(loc="outside lower center", ncols=2, handlelength=4)
    return figure


def draw_gaussians(results: dict[int, list[dict]]) -> Figure:
    """L2-UVP by dimension."""
    fields = {"linear map": "gaussian first", "gap, Gaussian start": "gaussian uvp"}
    fields |= {"gap, no start": "identity uvp"}
    lines = {
        label: {d: [float(run[field]) for run in runs] for d, runs in results.items()}
        for label, field in fields.items()
    }
    with plot.style():
        figure, axis = plt.subplots(figsize=(7, 5))
        draw_lines(axis, lines)
        axis.axhline(1, color="0.5", linestyle="-", linewidth=0.8, label="1 %")
        figure.legend(loc="outside lower center", ncols=2, handlelength=4)
    return figure


def draw_planar(results: dict[tuple[str, bool], dict]) -> Figure:
    """Where rows go, with and without the gap."""
    with plot.style():
        figure = plt.figure(figsize=(8.5, 9))
        for place, ((name, with_gap), run) in enumerate(results.items(), 1):
            options = {"projection": "3d"} if name == "sphere" else {}
            axis: Any = figure.add_subplot(2, 2, place, **options)
            axis.scatter(*run["y"].T, s=8, marker="s", color="C1", alpha=0.5, label="target")
            axis.scatter(*run["images"].T, s=8, marker="x", color="C4", label="images")
            some = run["x"][:80], run["images"][:80]
            if name == "sphere":
                for start, end in zip(*some, strict=True):
                    axis.plot(*np.stack([start, end]).T, lw=0.5, ls="-", color="0.4")
                axis.set(xticks=[-1, 0, 1], yticks=[-1, 0, 1], zticks=[-1, 0, 1])
                axis.set_zlabel("third coordinate")
                # Smaller: the layout leaves no room for the third axis's label.
                axis.set_box_aspect(None, zoom=0.75)
            else:
                plot.displacements(*some, ax=axis, color="0.3")
            axis.set(xlabel="first coordinate", ylabel="second coordinate")
            axis.scatter(*run["x"].T, s=8, color="C0", label="source")
            kind = "with the gap" if with_gap else "without the gap"
            axis.set_title(f"{name}, fitted {kind}\nMonge gap {float(run['gap']):.3f}")
        lines = axis.get_legend_handles_labels()
        figure.legend(*lines, loc="outside lower center", ncols=3, markerscale=2)
    return figure
