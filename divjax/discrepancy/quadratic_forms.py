"""Quadratic forms of a kernel matrix in many vectors at once, tile by tile.

A test by relabelling needs wᵀKw for one vector w a relabelling. All of them are one product of the
kernel matrix K with the matrix of these vectors. A symmetric K is computed in square tiles, those
above the diagonal once for both sides, and each tile multiplies all vectors before the next one is
computed.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from divjax.core.numerics import matmul
from divjax.core.padding import pad_rows
from divjax.core.pairwise import map_row_blocks, rows_per_block

__all__ = ["Tile", "TwoValued", "quadratic_forms"]


class TwoValued(NamedTuple):
    """Vectors with two values each: w_pi is high_p where the label holds, and low_p elsewhere.

    A label takes a byte in memory, a number four.
    """

    labels: Bool[Array, "p n"]
    high: Float[Array, " p"]
    low: Float[Array, " p"]


class Tile(NamedTuple):
    """Two sets of rows, of which a tile of the kernel matrix is computed.

    Attributes:
        rows: a pytree of arrays with one entry per row of the tile.
        columns: the same for its columns.
        same: whether a row and a column are the same point.
    """

    rows: PyTree[Array]
    columns: PyTree[Array]
    same: Bool[Array, "r c"]


# A tile of the kernel matrix to its share of the forms.
Contraction = Callable[[Float[Array, "r c"]], Float[Array, " p"]]


def quadratic_forms(
    function: Callable[[Tile, Contraction], Float[Array, "... p"]],
    points: PyTree[Array],
    vectors: TwoValued,
) -> Float[Array, "... p"]:
    """Σ_ij w_pi w_pj K_ij for every vector w_p, of a symmetric matrix K.

    Args:
        function: computes a tile of K and returns its contraction, or those of several matrices,
            stacked.
        points: a pytree of arrays with one entry per row of K.
        vectors: the vectors.

    Returns:
        The forms. Time n²/2 kernel values and n² products per vector; memory one byte per entry of
        the vectors, and a tile. The devices of a mesh that is in use share the tiles.

    Example:
        >>> x = jnp.array([1.0, 2.0, 3.0])
        >>> outer = lambda tile, contract: contract(tile.rows[:, None] * tile.columns)
        >>> vectors = TwoValued(jnp.array([[True, True, False]]), jnp.ones(1), -jnp.ones(1))
        >>> quadratic_forms(outer, x, vectors).tolist()  # (1 + 2 − 3)²
        [0.0]
    """
    labels, high, low = vectors
    n = labels.shape[1]
    # A square of as many entries as a block of rows, and tiles of nearly equal size.
    num_tiles = math.ceil(n / math.isqrt(n * rows_per_block(n, n)))
    size = math.ceil(n / num_tiles)
    points = jax.tree.map(
        lambda leaf: pad_rows(leaf, num_tiles * size).reshape(num_tiles, size, *leaf.shape[1:]),
        points,
    )
    # Padding is neither high nor low: its entries are zero.
    padding = ((0, 0), (0, num_tiles * size - n))
    labels = jnp.pad(labels, padding).reshape(-1, num_tiles, size)
    index = jnp.arange(num_tiles * size).reshape(num_tiles, size)

    def entries(number: Int[Array, ""]) -> Float[Array, "p s"]:
        values = jnp.where(labels[:, number], high[:, None], low[:, None])
        return jnp.where(index[number] < n, values, 0)

    def of_pair(row: Int[Array, ""], column: Int[Array, ""]) -> Float[Array, "... p"]:
        left, right = entries(row), entries(column)
        # A tile off the diagonal stands for its mirror image, too.
        times = jnp.where(row == column, 1, 2).astype(high.dtype)
        contract = lambda tile: times * jnp.sum(matmul(left, tile) * right, axis=1)
        at = lambda number: jax.tree.map(lambda leaf: leaf[number], points)
        same = index[row][:, None] == index[column]
        return function(Tile(at(row), at(column), same), contract)

    # A loop around one tile would only be compiled in vain.
    if num_tiles == 1:
        return of_pair(jnp.array(0), jnp.array(0))

    def of_row(row: Int[Array, " 1"]) -> Float[Array, "1 ... p"]:
        """The tiles of a row from the diagonal on, summed one after the other."""
        like = jax.eval_shape(of_pair, row[0], row[0])
        add = lambda column, total: total + of_pair(row[0], column)
        return jax.lax.fori_loop(row[0], num_tiles, add, jnp.zeros(like.shape, like.dtype))[None]

    # One row of tiles at a time, as rows further down have fewer tiles: each is a loop of its own.
    rows = map_row_blocks(of_row, size * size, jnp.arange(num_tiles), block_rows=1)
    return jnp.sum(rows, axis=0)
