"""The dimension of the set on which samples lie, from steps between neighbours.

The volume of a ball grows like r^D, where D is the dimension of the set on which the samples lie:
the number of features, minus those that are constant or discrete (neighbours share their value) and
those that depend linearly on others.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from divjax.core.linalg import eigh
from divjax.core.numerics import matmul
from divjax.core.pairwise import spread_places
from divjax.core.sharding import shared_by_all

__all__ = ["ROWS_OF_SUPPORT", "Support", "short_steps", "steps_to_points", "support_from_steps"]

# How many rows, spread over all, show on which set a sample lies. The steps from all of them would
# be as large as a sample, and points from everywhere would be gathered on each device for them.
ROWS_OF_SUPPORT = 2**14

# A feature is continuous if at most this share of neighbours agree in it, and discrete if at least
# one minus this share do.
_TIES = 0.05


class Support(NamedTuple):
    """The set on which the samples lie, as inferred from neighbours.

    Attributes:
        dimension: D, at least 1.
        ties: the largest share of neighbours that agree in a feature that is not discrete.
        known: whether every feature is either continuous or discrete.
        same: whether D is the same for all sets that are compared, and for all of them together.
        flat: whether D is below the number of features.
    """

    dimension: Int[Array, ""]
    ties: Float[Array, ""]
    known: Bool[Array, ""]
    same: Bool[Array, ""]
    flat: Bool[Array, ""]


def steps_to_points(
    x: Float[Array, "n d"], points: Float[Array, "m d"], index: Int[Array, " n"]
) -> Float[Array, "some d"]:
    """The steps from some rows to their points, at most `ROWS_OF_SUPPORT` of them."""
    some = spread_places(len(x), ROWS_OF_SUPPORT)
    # Few indices on each device: it contributes those points that it holds.
    return points[shared_by_all(index[some])] - x[some]


def short_steps(y: Float[Array, "m d"]) -> Float[Array, "some d"]:
    """A step from some rows to the nearest of eight others: within a cluster, if clusters exist.

    Copies are passed over: a step of zero has no direction.
    """
    y = y[spread_places(len(y), ROWS_OF_SUPPORT)]
    steps = jnp.stack([jnp.roll(y, shift, axis=0) - y for shift in range(1, min(9, len(y)))])
    sizes = jnp.max(jnp.abs(steps), axis=2)
    shortest = jnp.argmin(jnp.where(sizes > 0, sizes, jnp.inf), axis=0)
    return jnp.take_along_axis(steps, shortest[None, :, None], axis=0)[0]


def support_from_steps(
    *steps: Float[Array, "_ d"],
    others: tuple[Float[Array, "_ d"], ...] = (),
    num_rows: Int[Array, ""] | None = None,
) -> Support:
    """The support from steps to nearest neighbours.

    `others` are steps within samples whose nearest neighbours are not known. `num_rows` is the
    number of different rows in the smallest sample, if rows are repeated to keep a shape.
    """
    steps, others = jax.lax.stop_gradient((steps, others))
    d, dtype = steps[0].shape[1], steps[0].dtype

    # A feature in which neighbours agree has no extent at their distance: a ball contains only one
    # of its levels, and the shares of levels enter through the counts.
    agree = jnp.stack([jnp.mean((step == 0).astype(dtype), axis=0) for step in steps])
    discrete_in_each = agree >= 1 - _TIES
    discrete = jnp.all(discrete_in_each, axis=0)
    same = jnp.all(discrete_in_each == discrete)
    ties = jnp.max(jnp.where(discrete, 0, agree))

    # Features that depend on others: the rank of the steps' second moments. Coordinates are in
    # units of the feature's median, and each step is scaled to a largest coordinate of one, so that
    # no far row decides the rank.
    dimension = jnp.sum(~discrete)
    if min(step.shape[0] for step in (*steps, *others)) >= 2 * d > 2:
        medians = [jnp.median(jnp.abs(step), axis=0) for step in steps]
        unit = jnp.max(jnp.stack(medians), axis=0)
        factor = jnp.where(discrete | (unit == 0), 0, 1 / jnp.where(unit > 0, unit, 1))

        def moments(step: Float[Array, "_ d"]) -> Float[Array, "d d"]:
            step = step * factor
            largest = jnp.max(jnp.abs(step), axis=1, keepdims=True)
            step = step / jnp.where(largest > 0, largest, 1)
            return matmul(step.T, step) / step.shape[0]

        each = jnp.stack([moments(step) for step in (*steps, *others)])
        # In each sample and in all of them: if ranks differ, so do the supports.
        spectra = eigh(jnp.concatenate([each, jnp.sum(each, axis=0, keepdims=True)]))[0]
        floor = 30 * d * jnp.finfo(dtype).eps * spectra[:, -1:]
        ranks = jnp.sum(spectra > floor, axis=1)
        # Fewer different rows determine no rank, however often they are repeated.
        enough = jnp.array(True) if num_rows is None else num_rows >= 2 * d
        dimension = jnp.where(enough, ranks[-1], dimension)
        same = same & (jnp.all(ranks == dimension) | ~enough)
    same = same & (dimension > 0)
    return Support(jnp.maximum(dimension, 1), ties, ties <= _TIES, same, dimension < d)
