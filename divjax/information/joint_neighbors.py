"""The nearest neighbours in the largest difference of a coordinate, and features in like units."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from divjax.core.numerics import if_needed, in_units_of
from divjax.core.pairwise import map_row_blocks
from divjax.core.selection import smallest_in_columns, smallest_in_rows
from divjax.core.standardize import robust_standardizer
from divjax.fdiv.cell_search import cells_pay, coordinate_distances, reduce_near_pairs

__all__ = ["JointNeighbors", "in_like_units", "joint_neighbors"]

# Extra candidates: the search ranks distances that are rounded to float32.
_SPARE = 4
# So many neighbours are found by one minimum after the other, if they are among few points.
_MOST_BY_MINIMA = 32


class JointNeighbors(NamedTuple):
    """The nearest other points in order.

    Attributes:
        distances: the largest difference of a coordinate.
        index: the indices of the points.
    """

    distances: Float[Array, "n count"]
    index: Int[Array, "n count"]


def in_like_units(x: Float[Array, "n d"], *, repeated: bool = False) -> Float[Array, "n d"]:
    """Each feature in units of its standard deviation; zero if it is constant.

    With `repeated` that of its different values, if it is smaller: where one value in many rows is
    far from the others, they would all be near each other in its unit.

    That of the winsorised values, by the outer quantiles too: a typing error must not make all
    others of its feature coincide, nor may the narrow part of a mixture be taken for all of it.
    Values that are not finite are zero, and must be flagged elsewhere.
    """
    x = jnp.where(jnp.isfinite(x), x, 0)
    # Differences of larger numbers would overflow.
    root = 2.0 ** (jnp.finfo(x.dtype).maxexp // 2)
    x, _ = in_units_of(jnp.maximum(jnp.max(jnp.abs(x), axis=0), root) / root, x)
    weights = jnp.ones(x.shape[0], x.dtype)
    standardizer = robust_standardizer((x, weights), keep_tails=True)
    z = standardizer.affine(x)
    if repeated:

        def of_different(column: Float[Array, " n"]) -> tuple[Array, Array]:
            ordered = jnp.sort(column)
            first = jnp.append(True, ordered[1:] != ordered[:-1]).astype(x.dtype)
            narrow = robust_standardizer((ordered[:, None], first), keep_tails=True)
            return narrow.affine(column[:, None])[:, 0], narrow.scale[0]

        different, scale = jax.vmap(of_different, 1, -1)(x)
        z = jnp.where((scale > 0) & (scale < standardizer.scale), different, z)
    # Behind a barrier: computed anew for every use, with a rounding of its own, a distance would
    # not be that to the neighbour which defines it.
    return jax.lax.optimization_barrier(z)


def joint_neighbors(z: Float[Array, "n d"], count: int) -> JointNeighbors:
    """The `count` nearest other points to each point.

    Distances are exact: the rounded differences of coordinates, as `counts_within` compares them.
    Ties are in an arbitrary order. By cells where they are faster, otherwise by all pairs in
    blocks.
    """
    z = jax.lax.stop_gradient(z)
    n, d = z.shape
    # float32 is ranked as it is.
    candidates = min(count + _SPARE * (z.dtype != jnp.float32), n - 1)

    def nearest(rows, index, columns, column_index):
        distances = _distances(rows, columns)
        # A point is not its own neighbour; padding is infinitely far.
        distances = jnp.where(index[:, None] == column_index, jnp.inf, distances)
        # top_k of float64 is a hundred times slower.
        place = smallest_in_rows(distances.astype(jnp.float32), candidates)[1]
        found = jnp.take_along_axis(distances, place, axis=1)
        if found.dtype != jnp.float32:
            order = jnp.argsort(found, axis=1)
            found, place = (jnp.take_along_axis(of, order, axis=1) for of in (found, place))
        found, place = found[:, :count], place[:, :count]
        return JointNeighbors(found, column_index[place]), found[:, -1]

    def nearest_by_minima(rows, index, columns, column_index):
        distances = coordinate_distances(columns, rows, euclidean=False)
        distances = jnp.where(column_index[:, None] == index, jnp.inf, distances)
        found = smallest_in_columns(distances, count)
        neighbors = JointNeighbors(found.values.T, column_index[found.rows].T)
        if len(columns) == n:
            again = lambda _: nearest(rows, index, columns, column_index)[0]
            return if_needed(~found.certain.all(), again, neighbors), found.values[-1]
        # A row of which it is not certain is looked at again, with all columns.
        return neighbors, jnp.where(found.certain, found.values[-1], jnp.inf)

    few = count <= _MOST_BY_MINIMA and z.dtype == jnp.float32 and jax.default_backend() == "cpu"
    if cells_pay(n, d, candidates):
        return reduce_near_pairs(nearest_by_minima if few else nearest, candidates, z)
    everything = jnp.arange(n)
    of_rows = lambda rows, index: nearest(rows, index, z, everything)[0]
    return map_row_blocks(of_rows, n, z, everything)


def _distances(x: Float[Array, "b d"], y: Float[Array, "c d"]) -> Float[Array, "b c"]:
    if x.shape[1] <= 8:
        return coordinate_distances(x, y, euclidean=False)

    # Feature by feature: a block of all differences would be d times as large.
    def add(largest: Array, pair: tuple[Array, Array]) -> tuple[Array, None]:
        return jnp.maximum(largest, jnp.abs(pair[0][:, None] - pair[1])), None

    start = jnp.zeros((x.shape[0], y.shape[0]), x.dtype)
    return jax.lax.scan(add, start, (x.T, y.T))[0]
