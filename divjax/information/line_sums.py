"""Sums over all pairs of |x_i − x_j| |y_i − y_j| on the line, in O(n log n), by sorting.

The rows are sorted by x and divided in half again and again. A row of a right half is met by all
rows of its left half, whose x are smaller: their differences in x need no absolute value, and those
in y are sums over the rows that precede, or follow, in the order of y. All levels together meet
every pair once. Each level keeps the order of y within its parts, and so takes a few cumulative
sums of n numbers, all of one sign.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Shaped

from divjax.core.numerics import matmul
from divjax.core.pairwise import map_row_blocks
from divjax.information.centered_products import CenteredSums

__all__ = ["line_sums", "line_variance_sums"]

# Parts of at most this many rows are not divided: their pairs are computed one by one. Cumulative
# sums are products of so many numbers with a triangle of ones.
_CHUNK = 64


class _Rows(NamedTuple):
    """Rows in the order of y within each part; a part is an interval of places in the order of x.

    Attributes:
        place: the place of a row in the order of x.
        x: the first variable.
        y: the second.
        weight: w, zero for padding.
        mean: the row mean of |y_i − y_j|.
    """

    place: Int[Array, " n"]
    x: Float[Array, " n"]
    y: Float[Array, " n"]
    weight: Float[Array, " n"]
    mean: Float[Array, " n"]


def line_sums(
    x: Float[Array, " n"], y: Float[Array, " n"], weights: Float[Array, " n"]
) -> CenteredSums:
    """The sums that give the centred product of |x_i − x_j| and |y_i − y_j|, in O(n log n).

    Weights of any sum, the largest near one: sums of ones are exact, while those of 1/n are not,
    and all err to one side.

    Example:
        >>> x, y, w = jnp.array([0.0, 1.0, 3.0]), jnp.array([0.0, 2.0, 1.0]), jnp.full(3, 1 / 3)
        >>> a, b = jnp.abs(x[:, None] - x), jnp.abs(y[:, None] - y)
        >>> expected = w @ ((a * b) @ w - (a @ w) * (b @ w))
        >>> bool(jnp.allclose(line_sums(x, y, w).within, expected))
        True
    """
    n = x.shape[0]
    # 2^depth chunks of at most `_CHUNK` rows, to which all rows are halved, level by level.
    depth = max(0, (-(-n // _CHUNK) - 1).bit_length())
    chunk = -(-n >> depth)
    by_x, by_y = jnp.argsort(x), jnp.argsort(y)
    left, right = _distances_to_sides(x[by_x], weights[by_x])
    below, above = _distances_to_sides(y[by_y], weights[by_y])
    whole = jnp.sum(weights)
    means = (below + above) / whole

    # In the order of y. Padding comes last in both orders, and has no weight.
    places = jnp.zeros_like(by_x).at[by_x].set(jnp.arange(n, dtype=by_x.dtype))[by_y]
    padding = (0, (chunk << depth) - n)
    rows = _Rows(
        jnp.concatenate([places, jnp.arange(n, chunk << depth, dtype=places.dtype)]),
        jnp.concatenate([x[by_y], jnp.full(padding[1], jnp.max(x))]),
        jnp.pad(y[by_y], padding, mode="edge"),
        jnp.pad(weights[by_y], padding),
        jnp.pad(means, padding),
    )

    # Σ_i w_i Σ_j w_j (x_i − x_j) (|y_i − y_j| − b_i.) over the rows j left of i, level by level in
    # one loop, whose body is computed again in reverse mode.
    chunks = 1 << jnp.arange(depth, 0, -1, dtype=places.dtype)
    level = jax.checkpoint(lambda rows, chunks: _meet_left_halves(rows, chunk, chunks))
    rows, met = jax.lax.scan(level, rows, chunks)
    total = 2 * (jnp.sum(met) + _meet_within(rows, chunk))
    # a_i. has the distances to both sides. Those to the left less those to the right have mean
    # zero, so that the mean of b_i. may be subtracted here.
    first = ((left + right) / whole)[places]
    skewed, mass = ((left - right) / whole)[places], weights[by_y] / whole
    deviation = means - jnp.dot(mass, means, precision="highest")
    within = total / whole / whole + jnp.dot(mass, skewed * deviation, precision="highest")
    back = jnp.zeros_like(by_y).at[by_y].set(jnp.arange(n, dtype=by_y.dtype))
    return CenteredSums(within, first[back], means[back])


def line_variance_sums(x: Float[Array, " n"], weights: Float[Array, " n"]) -> CenteredSums:
    """As `line_sums` of x and itself, whose products are squares: Σ_j w_j (x_i − x_j)²."""
    order, whole = jnp.argsort(x), jnp.sum(weights)
    left, right = _distances_to_sides(x[order], weights[order])
    means = jnp.zeros_like(x).at[order].set((left + right) / whole)
    masses = weights / whole
    deviations = x - jnp.dot(masses, x, precision="highest")
    variance = jnp.dot(masses, deviations**2, precision="highest")
    # Σ_j w_j (x_i − x_j)² = (x_i − x̄)² + var x, without a sum over pairs.
    products = deviations**2 + variance
    within = jnp.dot(masses, products - means**2, precision="highest")
    return CenteredSums(within, means, means)


def _distances_to_sides(
    x: Float[Array, " n"], weights: Float[Array, " n"]
) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """Σ_j w_j (x_i − x_j) over the sorted rows before row i, and Σ_j w_j (x_j − x_i) after it."""
    gaps = jnp.diff(x, prepend=x[:1])
    # Each step adds its gap times the weight that lies behind: sums of non-negative numbers.
    before = gaps * _sums_before(weights)
    before = _sums_before(before) + before
    gaps = jnp.diff(x, append=x[-1:])[::-1]
    after = gaps * _sums_before(weights[::-1])
    return before, (_sums_before(after) + after)[::-1]


def _sums_before(values: Shaped[Array, "*k n"]) -> Shaped[Array, "*k n"]:
    """The sums of all entries before each: of chunks by products, and of the chunks' totals."""
    n = values.shape[-1]
    size = min(n, _CHUNK)
    padded = jnp.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, -n % size)])
    chunks = padded.reshape(*values.shape[:-1], -1, size)
    within = matmul(chunks, jnp.triu(jnp.ones((size, size), values.dtype), 1))
    if chunks.shape[-2] > 1:
        within = within + _sums_before(jnp.sum(chunks, axis=-1))[..., None]
    return within.reshape(*values.shape[:-1], -1)[..., :n]


def _meet_left_halves(
    rows: _Rows, chunk: int, chunks: Int[Array, ""]
) -> tuple[_Rows, Float[Array, ""]]:
    """The rows by halves of parts of so many chunks, and the sum over the rows of right halves."""
    place, x, y, weight, mean = rows
    index = jnp.arange(place.size, dtype=place.dtype)
    size = chunk * chunks
    start = index - index % size
    in_left = place % size < size // 2
    # The last row of each left half is where differences in x are taken from.
    edge = jnp.zeros_like(x).at[place].set(x, unique_indices=True)[start + size // 2 - 1]
    left_weight = jnp.where(in_left, weight, 0)
    left_moment = jnp.where(in_left, weight * (edge - x), 0)
    ahead = jnp.where(in_left, 0, x - edge)

    # Σ_j w_j |y_i − y_j| and Σ_j w_j (edge − x_j) |y_i − y_j| over rows j of the left half: each
    # gap in y times what lies below it, or above.
    to_left = jnp.stack([left_weight, left_moment])
    gaps = jnp.where(index == start, 0, jnp.diff(y, prepend=y[:1]))
    lower, upper = _sums_in_parts(to_left, chunk, chunks)
    below = gaps * lower
    # The gap above a row is the next row's own.
    above = jnp.roll(gaps, -1) * upper
    of_weight, of_moment = (
        below
        + _sums_in_parts(below, chunk, chunks)[0]
        + above
        + _sums_in_parts(above, chunk, chunks)[1]
    )

    # (x_i − x_j) is (x_i − edge) + (edge − x_j).
    whole_weight, whole_moment = lower + to_left + upper
    distance = ahead * whole_weight + whole_moment
    met = jnp.where(in_left, 0, ahead * of_weight + of_moment - distance * mean)
    total = jnp.sum(weight * met)

    # A stable partition: the rows of the left half first, in the order in which they are.
    rank = _count_before(in_left, chunk, place.dtype) - start // 2
    target = start + jnp.where(in_left, rank, size // 2 + index - start - rank)
    source = jnp.zeros_like(target).at[target].set(index, unique_indices=True)
    return _Rows(*(values[source] for values in rows)), total


def _sums_in_parts(
    values: Float[Array, "k n"], chunk: int, chunks: Int[Array, ""]
) -> tuple[Float[Array, "k n"], Float[Array, "k n"]]:
    """The sums of the entries before each, and after it, in its part of so many chunks."""
    by_chunks = values.reshape(values.shape[0], -1, chunk)
    triangle = jnp.triu(jnp.ones((chunk, chunk), values.dtype), 1)
    totals = jnp.sum(by_chunks, axis=2)
    earlier = _totals_before(totals, chunks)
    # From the other end, as all parts are of one size.
    later = _totals_before(totals[:, ::-1], chunks)[:, ::-1]
    add = lambda ones, others: (matmul(by_chunks, ones) + others[:, :, None]).reshape(values.shape)
    return add(triangle, earlier), add(triangle.T, later)


def _totals_before(totals: Float[Array, "k m"], chunks: Int[Array, ""]) -> Float[Array, "k m"]:
    """The sums of the totals before each in its part of so many.

    By doubling, so that no sum leaves its part: an outlier elsewhere would round it away.
    """
    m = totals.shape[1]
    position = jnp.arange(m) % chunks.astype(int)

    def double(sums: Array, step: Array) -> tuple[Array, None]:
        return sums + jnp.where(position >= step, jnp.roll(sums, step, axis=1), 0), None

    steps = 1 << jnp.arange((m - 1).bit_length())
    sums = jax.lax.scan(double, totals, steps)[0]
    return jnp.where(position > 0, jnp.roll(sums, 1, axis=1), 0)


def _count_before(marked: Bool[Array, " n"], chunk: int, dtype: DTypeLike) -> Int[Array, " n"]:
    """How many marked entries come before each; floating-point counts are exact within chunks."""
    by_chunks = marked.reshape(-1, chunk).astype(jnp.float32)
    within = matmul(by_chunks, jnp.triu(jnp.ones((chunk, chunk), jnp.float32), 1))
    totals = jnp.sum(by_chunks, axis=1).astype(dtype)
    return (within.astype(dtype) + _sums_before(totals)[:, None]).ravel()


def _meet_within(rows: _Rows, chunk: int) -> Float[Array, ""]:
    """The sum over all pairs of rows in the same chunk, pair by pair."""

    def of_chunks(place: Array, x: Array, y: Array, weight: Array, mean: Array) -> Array:
        is_left = place[:, None, :] < place[:, :, None]
        step = jnp.where(is_left, x[:, :, None] - x[:, None, :], 0) * weight[:, None, :]
        apart = jnp.abs(y[:, :, None] - y[:, None, :])
        return jnp.sum(weight * jnp.sum(step * (apart - mean[:, :, None]), axis=2), axis=1)

    chunks = [values.reshape(-1, chunk) for values in rows]
    return jnp.sum(map_row_blocks(of_chunks, chunk * chunk, *chunks))
