"""Maps in closed form, or nearly so, that a network is added to."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from divjax.core.pytrees import pytree
from divjax.ot.divergence import sinkhorn_divergence
from divjax.ot.gaussian import AffineMap, gaussian_map
from divjax.ot.sinkhorn import SinkhornResult, sinkhorn

__all__ = ["STARTS", "EntropicMap", "IdentityMap", "entropic_start", "gaussian_start", "thinned"]

STARTS = ("identity", "gaussian", "entropic")

# Rows of each entropic map, and of the held-out sample that chooses among them.
_ROWS, _TEST_ROWS = 4096, 1024
# The ε that are tried, as shares of the mean cost.
_EPSILONS = (0.005, 0.01, 0.02, 0.05, 0.1)


@pytree
class IdentityMap:
    """T(z) = z."""

    def __call__(self, z: Float[Array, "k d"]) -> Float[Array, "k d"]:
        """The rows themselves."""
        return z


@pytree
class EntropicMap:
    """The mean of the entropic maps of several problems, which are stacked."""

    results: SinkhornResult

    def __call__(self, z: Float[Array, "k d"]) -> Float[Array, "k d"]:
        """The mean of the images."""
        return jnp.mean(jax.lax.map(lambda result: result.transport(z), self.results), axis=0)


def gaussian_start(x: Float[Array, "n d"], y: Float[Array, "m d"]) -> AffineMap:
    """The optimal map between the Gaussians with the samples' moments."""
    (mean_x, cov_x), (mean_y, cov_y) = (
        (jnp.mean(z, axis=0), jnp.cov(z, rowvar=False).reshape(z.shape[1], -1)) for z in (x, y)
    )
    return gaussian_map(mean_x, cov_x, mean_y, cov_y)


def entropic_start(
    train: tuple[Float[Array, "n d"], Float[Array, "m d"]],
    held_out: tuple[Float[Array, "k d"], Float[Array, "l d"]],
    *,
    cost: Any,
    mean_cost: Float[Array, ""],
    epsilon: Float[Array, ""],
) -> EntropicMap:
    """The mean of entropic maps, one of each block of the training rows.

    Their ε, a share of the mean cost, is that with the least Sinkhorn divergence, at `epsilon`,
    between held-out images and targets.
    """
    tests = tuple(thinned(rows, _TEST_ROWS) for rows in held_out)
    count = -(-min(map(len, train)) // _ROWS)
    sizes = [min(len(rows) // count, _ROWS) for rows in train]
    blocks = tuple(
        rows[: count * size].reshape(count, size, -1)
        for rows, size in zip(train, sizes, strict=True)
    )
    options: Any = {"cost": cost, "tolerance": 1e-2}

    def solved(x: Array, y: Array, epsilon: Array) -> SinkhornResult:
        return sinkhorn(x, y, epsilon=epsilon, max_iterations=300, **options)

    def score(candidate: Array) -> Array:
        images = solved(blocks[0][0], blocks[1][0], candidate).transport(tests[0])
        return sinkhorn_divergence(images, tests[1], epsilon=epsilon, max_iterations=200, **options)

    candidates = mean_cost * jnp.asarray(_EPSILONS, mean_cost.dtype)
    scores = jax.lax.map(score, candidates)
    best = candidates[jnp.argmin(jnp.where(jnp.isfinite(scores), scores, jnp.inf))]
    return EntropicMap(jax.lax.map(lambda block: solved(block[0], block[1], best), blocks))


def thinned(rows: Float[Array, "n d"], most: int) -> Float[Array, "k d"]:
    """At most so many rows, evenly spread over all."""
    n = rows.shape[0]
    return rows if n <= most else rows[jnp.asarray([i * n // most for i in range(most)])]
