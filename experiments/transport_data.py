"""Pairs of laws to be carried onto each other: known maps, planar shapes, and treated cells.

`load_benchmark`: the Wasserstein-2 benchmark pairs of Korotin et al. 2021, `Mix3toMix10`, whose
optimal map is known: a mixture of three Gaussians, carried by the gradient of a convex function.
`load_proteins`: the amounts of eleven proteins in single cells under nine conditions (Sachs et al.
2005). Files are looked for as in `experiments.data`, and never downloaded.
"""

import io
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Array, Float, Key

from experiments import data

DIMENSIONS = (2, 4, 16, 64, 128)
# Rows of the conditions, one after the other; the first is the control.
CONDITION_ROWS = (853, 902, 911, 723, 810, 799, 848, 913, 707)
PERTURBATIONS = (3, 4, 5, 6, 7, 8, 9)


class BenchmarkPair(NamedTuple):
    """A mixture of Gaussians and the gradient of a convex function.

    With v = v₁ + v₂, two networks convex in their input, the map is s (∇v(x) + shift).

    Attributes:
        centers: of the mixture's components.
        maps: their factors, already times their scale.
        potentials: the numbers of v₁ and v₂.
        strong_convexity: of each of them.
        shift: added to the gradient.
        scale: s.
    """

    centers: Float[Array, "k d"]
    maps: Float[Array, "k d d"]
    potentials: tuple[dict[str, Array], dict[str, Array]]
    strong_convexity: Float[Array, ""]
    shift: Float[Array, " d"]
    scale: Float[Array, ""]

    def sample(self, key: Key[Array, ""], num_rows: int) -> Float[Array, "n d"]:
        """Rows of the law that is carried; their images are rows of the other."""
        choice_key, noise_key = jax.random.split(key)
        k, d = self.centers.shape
        chosen = jax.random.randint(choice_key, (num_rows,), 0, k)
        noise = jax.random.normal(noise_key, (num_rows, d))
        each = jnp.einsum("kij,nj->kni", self.maps, noise) + self.centers[:, None]
        return each[chosen, jnp.arange(num_rows)]

    def map(self, x: Float[Array, "n d"]) -> Float[Array, "n d"]:
        """The optimal map, for the squared Euclidean cost."""

        def potential(x: Float[Array, " d"]) -> Float[Array, ""]:
            convex = sum(_convex(numbers, x) for numbers in self.potentials)
            return convex + self.strong_convexity * jnp.sum(x**2)  # one half for each

        return self.scale * (jax.vmap(jax.grad(potential))(x) + self.shift)


def _convex(numbers: dict[str, Array], x: Float[Array, " d"]) -> Float[Array, ""]:
    """A network convex in x: quadratic layers, and celu between non-negative weights."""

    def quadratic(layer: int) -> Float[Array, " width"]:
        factors = numbers[f"quadratic_layers.{layer}.quadratic_decomposed"]
        squares = jnp.einsum("i,iro->ro", x, factors) ** 2
        linear = numbers[f"quadratic_layers.{layer}.weight"] @ x
        return jnp.sum(squares, axis=0) + linear + numbers[f"quadratic_layers.{layer}.bias"]

    hidden = quadratic(0)
    for layer in (1, 2):
        weights = numbers[f"convex_layers.{layer - 1}.weight"]
        hidden = jax.nn.celu(weights @ hidden + quadratic(layer))
    return numbers["final_layer.weight"][0] @ hidden


def load_benchmark(dimension: int) -> BenchmarkPair:
    """A benchmark pair.

    Args:
        dimension: 2, 4, 16, 64 or 128.

    Raises:
        ValueError: if there is no such pair.
        FileNotFoundError: if its file is not under `DIVJAX_DATA_DIR`.
    """
    if dimension not in DIMENSIONS:
        known = ", ".join(map(str, DIMENSIONS))
        raise ValueError(f"dimension must be one of {known}; got {dimension!r}.")
    with np.load(io.BytesIO(data.fetch(f"w2_benchmark/mix3tomix10_{dimension}.npz"))) as stored:
        numbers = {name: jnp.asarray(stored[name], jnp.float32) for name in stored.files}
    potentials = tuple(
        {name[3:]: values for name, values in numbers.items() if name.startswith(prefix)}
        for prefix in ("v1/", "v2/")
    )
    factors = numbers["maps"] * numbers["std"]
    others = (numbers[name] for name in ("strong_convexity", "shift", "scale"))
    return BenchmarkPair(numbers["centers"], factors, potentials, *others)  # pyright: ignore


def load_proteins() -> list[pd.DataFrame]:
    """Logarithms of eleven proteins' amounts in single cells, a table a condition, control first.

    Raises:
        FileNotFoundError: if the file is not under `DIVJAX_DATA_DIR`.
    """
    table = pd.read_csv(io.BytesIO(data.fetch("sachs/cyto_full_data.csv")))
    if len(table) != sum(CONDITION_ROWS):
        raise ValueError(f"expected {sum(CONDITION_ROWS)} rows of proteins; got {len(table)}.")
    ends = np.cumsum(CONDITION_ROWS)
    logs = pd.DataFrame(np.log(table.to_numpy()), columns=table.columns)
    return [logs.iloc[end - n : end] for n, end in zip(CONDITION_ROWS, ends, strict=True)]
