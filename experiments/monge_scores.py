"""Scores of the maps of `monge_maps`, and tables of them with standard errors over seeds."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import linear_sum_assignment

from divjax import ot
from divjax.core.pairwise import squared_distances
from experiments import common

__all__ = [
    "benchmark_table",
    "exact_gap",
    "gaussian_table",
    "protein_scores",
    "protein_table",
    "uvp_and_cosine",
]


def uvp_and_cosine(
    images: jax.Array, x: jax.Array, truth: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """100 E|T̂ − T|²/Var T, and the cosine of T̂ − id and T − id."""
    error = jnp.mean(jnp.sum((images - truth) ** 2, axis=1))
    found, wanted = (images - x).ravel(), (truth - x).ravel()
    norms = jnp.linalg.norm(found) * jnp.linalg.norm(wanted)
    cosine = found @ wanted / jnp.where(norms > 0, norms, 1)
    return 100 * error / jnp.sum(jnp.var(truth, axis=0)), cosine


def exact_gap(cost: Any, x: jax.Array, images: jax.Array) -> tuple[float, float]:
    """What the map pays, and how much more than the best assignment of the same rows."""
    costs = np.asarray(ot.cost_matrix(cost, x, images), np.float64)
    rows, columns = linear_sum_assignment(costs)
    paid = float(np.trace(costs) / len(costs))
    return paid, paid - float(costs[rows, columns].mean())


@jax.jit
def protein_scores(images: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Sinkhorn divergence, MMD, and the markers' mean one-dimensional distance, in log units."""
    epsilon = 0.05 * jnp.mean(ot.cost_matrix(ot.SqEuclidean(), y, y))
    divergence = ot.sinkhorn_divergence(images, y, epsilon=epsilon).value
    width = jnp.median(squared_distances(y))
    kernel = lambda a, b: jnp.mean(jnp.exp(-squared_distances(a, b) / width))
    mmd = kernel(images, images) + kernel(y, y) - 2 * kernel(images, y)
    markers = jax.vmap(lambda a, b: ot.wasserstein_1d(a, b, p=1.0), in_axes=1)(images, y)
    return divergence, jnp.sqrt(jnp.maximum(mmd, 0)), jnp.mean(markers)


def over_seeds(values: Any, digits: int, finite: Any = (True,)) -> str:
    """Mean ± standard error, of one seed its value alone; and how many fits are not finite."""
    cell = common.with_error(values, digits) if len(values) > 1 else f"{values[0]:.{digits}f}"
    return cell if np.all(finite) else f"{cell} (finite: {common.finite_cell(finite)})"


def gaussian_table(results: dict[int, list[dict]]) -> list[dict]:
    """L2-UVP in per cent, mean ± standard error over seeds."""
    rows = []
    for dimension, runs in results.items():
        row: dict[str, Any] = {"d": dimension}
        for title, field in (
            ("linear map", "gaussian first"),
            ("gap, Gaussian start", "gaussian uvp"),
            ("identity", "identity first"),
            ("gap, no start", "identity uvp"),
        ):
            # The linear map and the identity, where the fits start, are always finite.
            name, what = field.split()
            finite = [run[f"{name} finite"] for run in runs] if what == "uvp" else (True,)
            row[title] = over_seeds([float(run[field]) for run in runs], 2, finite)
        row["fit s"] = f"{np.mean([run['gaussian fit_seconds'] for run in runs]):.0f}"
        rows.append(row)
    return rows


def benchmark_table(
    results: dict[tuple[str, int], list[dict]], field: str, digits: int
) -> list[dict]:
    """A row a method and a column a dimension; for L2-UVP also what entropic starts have."""
    dimensions = list(dict.fromkeys(dimension for _, dimension in results))
    rows = []
    for name in dict.fromkeys(name for name, _ in results):
        titles = {name: field}
        if field == "uvp" and name.endswith("entropic start"):
            titles[f"… before the first step of {name.split(',')[0]}"] = "first"
        for title, of in titles.items():
            columns = {
                f"d = {d}": over_seeds(
                    [float(run[of]) for run in results[name, d]],
                    digits,
                    [run.get("finite", True) for run in results[name, d]],
                )
                for d in dimensions
            }
            rows.append({"method": title} | columns)
    return rows


def protein_table(results: dict[str, list[dict]]) -> list[dict]:
    """Means over perturbations, ± standard error over splits."""
    rows = []
    for name, runs in results.items():
        row = {"map": name}
        for title, field in (
            ("Sinkhorn divergence", "divergence"),
            ("MMD", "mmd"),
            ("per marker", "markers"),
        ):
            row[title] = over_seeds([float(run[field].mean()) for run in runs], 3)
        row["fit s"] = f"{np.mean([run['fit_seconds'] for run in runs]):.1f}"
        rows.append(row)
    return rows
