"""Figures of `monge_maps`, drawn from its saved arrays."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from experiments import common

__all__ = ["draw_benchmark", "draw_gaussians", "draw_planar"]


def draw_benchmark(results: dict[tuple[str, int], list[dict]]) -> Figure:
    """L2-UVP by dimension, a line a method."""
    figure, axis = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for name in dict.fromkeys(name for name, _ in results):
        dimensions = [dimension for other, dimension in results if other == name]
        values = [
            common.mean_and_error([run["uvp"] for run in results[name, d]]) for d in dimensions
        ]
        means, errors = zip(*values, strict=True)
        axis.errorbar(dimensions, means, errors, marker="o", capsize=3, label=name)
    axis.set(xscale="log", yscale="log", xlabel="dimension", ylabel="L2-UVP, %")
    axis.set_xticks(
        sorted({d for _, d in results}), [str(d) for d in sorted({d for _, d in results})]
    )
    axis.minorticks_off()
    axis.legend(fontsize=8)
    return figure


def draw_gaussians(results: dict[int, list[dict]]) -> Figure:
    """L2-UVP by dimension."""
    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    lines = {"linear map": "gaussian first", "gap, Gaussian start": "gaussian uvp"}
    lines |= {"gap, no start": "identity uvp"}
    for label, field in lines.items():
        means = [np.mean([run[field] for run in runs]) for runs in results.values()]
        axis.plot(list(results), means, marker="o", label=label)
    axis.axhline(1, color="grey", lw=0.8, ls=":")
    axis.set(xscale="log", yscale="log", xlabel="dimension", ylabel="L2-UVP, %")
    axis.set_xticks(list(results), [str(d) for d in results])
    axis.minorticks_off()
    axis.legend(fontsize=8)
    return figure


def draw_planar(results: dict[tuple[str, bool], dict]) -> Figure:
    """Where rows go, with and without the gap."""
    figure = plt.figure(figsize=(8, 8), layout="constrained")
    for place, ((name, with_gap), run) in enumerate(results.items(), 1):
        options = {"projection": "3d"} if name == "sphere" else {}
        axis: Any = figure.add_subplot(2, 2, place, **options)
        axis.scatter(*run["y"].T, s=2, color="C1", label="target")
        axis.scatter(*run["images"].T, s=2, color="C2", label="images")
        for start, end in zip(run["x"][:80], run["images"][:80], strict=True):
            axis.plot(*np.stack([start, end]).T, lw=0.5, color="grey")
        axis.scatter(*run["x"].T, s=2, color="C0", label="source")
        kind = "with the gap" if with_gap else "without"
        axis.set_title(f"{name}, {kind}: gap {float(run['gap']):.3f}", fontsize=10)
        if name == "moons":
            axis.set(aspect="equal", xticks=[], yticks=[])
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncol=3)
    return figure
