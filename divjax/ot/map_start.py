"""What transport maps by a network share: rows to hold out, batches, and maps to start from."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from divjax.core.pytrees import pytree
from divjax.core.standardize import mean_and_scale
from divjax.ot.costs import cost_matrix
from divjax.ot.divergence import sinkhorn_divergence
from divjax.ot.gaussian import gaussian_map
from divjax.ot.sinkhorn import SinkhornResult, sinkhorn

__all__ = [
    "SCALE_ROWS",
    "STARTS",
    "Entropic",
    "Identity",
    "hold_out",
    "input_standard",
    "row_batch",
    "start_map",
    "thinned",
]

STARTS = ("identity", "gaussian", "entropic")

# Rows of each side that the mean cost, and each entropic map of the start, are from at most.
SCALE_ROWS, _ENTROPIC_ROWS = 1024, 4096
# A fifth of the rows is held out, at most as many.
_HELD_OUT_ROWS = 1024
# The entropic start's ε, as shares of the mean cost.
_ENTROPIC_EPSILONS = (0.005, 0.01, 0.02, 0.05, 0.1)


@pytree
class Identity:
    """T(z) = z."""

    def __call__(self, z: Float[Array, "k d"]) -> Float[Array, "k d"]:
        """The images of the rows of z."""
        return z


@pytree
class Entropic:
    """The mean of the entropic maps of several problems, which are stacked."""

    results: SinkhornResult

    def __call__(self, z: Float[Array, "k d"]) -> Float[Array, "k d"]:
        """The images of the rows of z."""
        return jnp.mean(jax.lax.map(lambda result: result.transport(z), self.results), axis=0)


def start_map(
    kind: str,
    cost: Any,
    epsilon: Array,
    train: Sequence[Array],
    held_out: Sequence[Array],
    settings: dict[str, Any],
) -> Any:
    """The map in closed form of this kind, a function of rows.

    Args:
        kind: one of `STARTS`.
        cost: the cost.
        epsilon: of the divergence by which the entropic map's ε is chosen.
        train: rows of both laws.
        held_out: rows of both to choose by.
        settings: of that divergence.
    """
    if kind == "identity":
        return Identity()
    if kind == "gaussian":
        moments = ((jnp.mean(z, axis=0), jnp.cov(z, rowvar=False)) for z in train)
        (mean_x, cov_x), (mean_y, cov_y) = moments
        d = mean_x.shape[0]
        return gaussian_map(mean_x, cov_x.reshape(d, d), mean_y, cov_y.reshape(d, d))
    tests = [thinned(rows, _HELD_OUT_ROWS) for rows in held_out]
    count = -(-min(len(rows) for rows in train) // _ENTROPIC_ROWS)
    sizes = [min(len(rows) // count, _ENTROPIC_ROWS) for rows in train]
    blocks = tuple(
        rows[: count * size].reshape(count, size, -1)
        for rows, size in zip(train, sizes, strict=True)
    )
    options: Any = {"cost": cost, "max_iterations": 300, "tolerance": 1e-2}

    def solved(x: Array, y: Array, epsilon: Array) -> SinkhornResult:
        return sinkhorn(x, y, epsilon=epsilon, **options)

    def score(own: Array) -> Array:
        images = solved(blocks[0][0], blocks[1][0], own).transport(tests[0])
        return sinkhorn_divergence(images, tests[1], epsilon=epsilon, **settings)

    mean_cost = jnp.mean(cost_matrix(cost, *(thinned(z, SCALE_ROWS) for z in train)))
    epsilons = mean_cost * jnp.asarray(_ENTROPIC_EPSILONS, mean_cost.dtype)
    values = jax.lax.map(score, epsilons)
    best = epsilons[jnp.argmin(jnp.where(jnp.isfinite(values), values, jnp.inf))]
    return Entropic(jax.lax.map(lambda block: solved(block[0], block[1], best), blocks))


def hold_out(key: Key[Array, ""], rows: Float[Array, "n d"]) -> tuple[Array, Array]:
    """Rows in random order: those to train on, and those to hold out."""
    rows = rows[jax.random.permutation(key, rows.shape[0])]
    size = max(1, min(_HELD_OUT_ROWS, rows.shape[0] // 5))
    return rows[size:], rows[:size]


def thinned(rows: Float[Array, "n d"], most: int) -> Float[Array, "k d"]:
    """At most so many rows, evenly spread over all problems'."""
    n = rows.shape[0]
    return rows if n <= most else rows[jnp.asarray([i * n // most for i in range(most)])]


def row_batch(key: Key[Array, ""], num_rows: int, size: int) -> Array:
    """Distinct rows, each equally likely: one of each stretch of a circle, which is in no order."""
    start_key, within_key = jax.random.split(key)
    stretches = jnp.asarray([i * num_rows // size for i in range(size)])
    within = jax.random.randint(within_key, (size,), 0, num_rows // size)
    return (jax.random.randint(start_key, (), 0, num_rows) + stretches + within) % num_rows


def input_standard(x: Float[Array, "n d"], context: Any) -> tuple[Array, Array]:
    """Centre and scale of the network's input."""
    center = jnp.mean(x, axis=0)
    # One for all: the cost compares features in their units, and gradients stay gradients.
    spread = jnp.sqrt(jnp.mean((x - center) ** 2))
    scale = jnp.full_like(center, jnp.where(spread > 0, spread, 1))
    if context is None:
        return center, scale
    context = context.astype(x.dtype)
    own = mean_and_scale(context, jnp.ones_like(context[:, 0]))
    return jnp.concatenate([center, own[0]]), jnp.concatenate([scale, own[1]])
