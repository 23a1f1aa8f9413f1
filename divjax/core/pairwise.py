"""Reductions over all pairs of two samples: never n × m × d, dense if small, otherwise blockwise.

A block of rows is as large as fits a CPU's cache (or fills an accelerator), so that blockwise is
not slower than dense, and memory grows only with n + m.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from divjax.core.checks import check_matrix, check_same_features
from divjax.core.differentiation import with_slopes_of
from divjax.core.numerics import at_least_single, if_needed, matmul
from divjax.core.padding import pad_rows
from divjax.core.sharding import (
    map_over_devices,
    mesh_in_use,
)

__all__ = [
    "about_common_center",
    "coincidence_distances",
    "common_center",
    "differences_product",
    "living_rows",
    "map_row_blocks",
    "near_distance",
    "resolved_distances",
    "spread_places",
    "squared_distances",
]

# Entries of an n × m matrix that are materialised at a time. 2²⁰ floats fit a CPU's cache. An
# accelerator needs few, large blocks, and 2²⁶ float32 entries are 256 MiB.
BLOCK_ENTRIES_CPU = 2**20
BLOCK_ENTRIES_ACCELERATOR = 2**26

# Up to this many features squared distances are sums of squared differences, which is as fast as a
# matrix product and does not cancel. Beyond it they are |x|² + |y|² − 2⟨x, y⟩ of centred points,
# and computed again by differences, a few features per pass, if a pair has suffered cancellation.
DIFFERENCES_UP_TO = 8
_FEATURES_A_PASS = 8

# A squared distance below this multiple of epsilon times the points' own squares has fewer than
# three correct digits. Half precision, which has no more than that, requires only two.
LOST_ULPS, _LOST_AT_MOST = 1024, 2**-6

# How many rows are sorted for a centre, which must not be among a minority far away: if a tenth of
# the rows are, 32 of 63 are with a probability below 10⁻¹⁵.
_ROWS_OF_CENTER = 63
_GOLDEN_SECTION = (math.sqrt(5) - 1) / 2

# Coordinates that differ by at most this multiple of epsilon, relative to their size, are equal: a
# few units in the last place, the rounding error of particles that follow the same dynamics.
_COINCIDENT_ULPS = 4


def common_center(
    x: Float[Array, "n d"], used: Bool[Array, " n"] | None = None
) -> Float[Array, " d"]:
    """Each feature's lower median over the rows that are used: one array wherever it is subtracted.

    Rows near the centre keep their digits when it is subtracted. One row far from all others moves
    a mean far from them, and a median hardly. It is an entry of the rows, so that of equal rows it
    is that row exactly. Of more than 63 rows, 63 spread over them are taken, at a cost that does
    not grow with the number of rows.

    Without the barrier XLA may compute the centre once in every fusion that subtracts it, each in
    its own way. Centred computations are invariant to translations, hence gradients are stopped at
    the centre.

    Args:
        x: rows.
        used: which rows count, by default all. The others may hold any value.

    Returns:
        The centre, NaN in a feature that is not finite in all rows used.

    Example:
        >>> import jax.numpy as jnp
        >>> rows = jnp.array([[0.1], [0.1], [1e30], [jnp.nan]])
        >>> (rows - common_center(rows, jnp.array([True, True, True, False])))[:2, 0].tolist()
        [0.0, 0.0]
    """
    x = jax.lax.stop_gradient(x)
    n, finite = x.shape[0], jnp.isfinite(x)
    if used is not None:
        finite, count = finite | ~used[:, None], jnp.sum(used)
    if n <= _ROWS_OF_CENTER:
        # Rows that are not used are sorted to the end, beyond the middle of the others.
        rows = x if used is None else jnp.where(used[:, None], x, jnp.inf)
        middle = (n - 1) // 2 if used is None else jnp.maximum(count - 1, 0) // 2
    else:
        # The median of an even spread of rows is as good a centre, and sorts few of many.
        middle = (_ROWS_OF_CENTER - 1) // 2
        if used is None:
            rows = x[spread_places(n, _ROWS_OF_CENTER)]
        else:
            # Indices of the rows used come first.
            order = jnp.argsort(~used, stable=True)
            wide = at_least_single(x.dtype)
            places = jnp.asarray(_spread_shares(_ROWS_OF_CENTER), wide) * count.astype(wide)
            rows = x[order[jnp.clip(places.astype(int), 0, jnp.maximum(count - 1, 0))]]
    center = jax.lax.sort(rows, dimension=0, is_stable=False)[middle]
    return jax.lax.optimization_barrier(jnp.where(finite.all(axis=0), center, jnp.nan))


def spread_places(n: int, most: int) -> np.ndarray | slice:
    """The places of at most so many of n rows, spread over all of them, in order.

    Example:
        >>> np.arange(10)[spread_places(10, most=3)].tolist()
        [3, 5, 9]
        >>> np.arange(3)[spread_places(3, most=10)].tolist()
        [0, 1, 2]
    """
    return slice(None) if n <= most else np.floor(np.sort(_spread_shares(most)) * n).astype(int)


def _spread_shares(count: int) -> np.ndarray:
    """Numbers spread over [0, 1), the places of rows taken from many.

    Multiples of the golden section: no period of the rows is shared by those taken.
    """
    return np.mod((np.arange(count) + 0.5) * _GOLDEN_SECTION, 1)


def near_distance(x: Float[Array, "n d"]) -> Float[Array, ""]:
    """The median distance of 63 of the rows to the nearest other, in its largest coordinate.

    A scale of differences within clusters, to which the distances between them add nothing. Equal
    rows do not count; if all are equal it is infinite.

    Example:
        >>> import jax.numpy as jnp
        >>> float(near_distance(jnp.array([[0.0], [1.0], [1e9], [1e9 + 1024]])))
        1.0
    """
    x = x[spread_places(len(x), _ROWS_OF_CENTER)]
    # The difference is not held: its maximum is one pass.
    apart = jnp.max(jnp.abs(x[:, None] - x), axis=2)
    nearest = jnp.min(jnp.where(apart > 0, apart, jnp.inf), axis=1)
    return jnp.sort(nearest)[(len(x) - 1) // 2]


def living_rows(x: Float[Array, "n d"], weights: Float[Array, " n"]) -> Float[Array, "n d"]:
    """The rows, with those of weight zero replaced by rows of nonzero weight, each in turn.

    For statistics that ignore weights, such as bandwidths: rows of weight zero may hold any value.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.array([[1.0], [jnp.nan], [2.0]])
        >>> living_rows(x, jnp.array([0.5, 0.0, 0.5]))[:, 0].tolist()
        [1.0, 1.0, 2.0]
    """
    alive = weights > 0
    # Indices of weighted rows first. The j-th zero-weight row takes the j-th of them, modulo their
    # number.
    order = jnp.argsort(~alive, stable=True)
    substitutes = order[(jnp.cumsum(~alive) - 1) % jnp.maximum(jnp.sum(alive), 1)]
    return x[jnp.where(alive, jnp.arange(x.shape[0]), substitutes)]


def squared_distances(
    x: Float[Array, "n d"], y: Float[Array, "m d"] | None = None
) -> Float[Array, "n m"]:
    """All squared Euclidean distances ‖x_i − y_j‖².

    Args:
        x: samples.
        y: samples, or None for x itself, with a diagonal of exactly zero.

    Returns:
        The matrix of squared distances, non-negative, exact to rounding of itself or, with more
        than 8 features, to three digits at least: distances within clusters that lie far apart stay
        accurate. Points nearer than the root of the smallest number (10⁻¹⁹ in float32) are at
        distance zero.

    Raises:
        ValueError: if an argument is empty or not a matrix, or the numbers of features differ.

    Example:
        >>> import jax.numpy as jnp
        >>> squared_distances(jnp.array([[0.0, 0.0], [3.0, 4.0]])).tolist()
        [[0.0, 25.0], [25.0, 0.0]]
    """
    check_matrix(x=x)
    if y is None:
        # Products would leave rounding errors on the diagonal, whose root is far from zero.
        (x,), rows = about_common_center(x), jnp.arange(x.shape[0])
        return resolved_distances(x, x, rows[:, None] == rows)
    check_matrix(y=y)
    check_same_features(x, y)
    y, x = about_common_center(y, x)
    return resolved_distances(x, y)


def about_common_center(y: Float[Array, "m d"], *others: Float[Array, "_ d"]) -> tuple[Array, ...]:
    """All samples relative to the centre of the first, if they are to be multiplied.

    Differences, used for few features, are exact without centring.
    """
    if y.shape[1] <= DIFFERENCES_UP_TO:
        return y, *others
    center = common_center(y)
    return tuple(rows - center for rows in (y, *others))


def centered_distances(
    x: Float[Array, "n d"], y: Float[Array, "m d"], same: Bool[Array, "n m"] | None = None
) -> Float[Array, "n m"]:
    """Squared distances of rows about a common origin near them, zero where `same` holds.

    With more than 8 features they are exact to rounding of the rows' squares: see `is_lost`.
    """
    if x.shape[1] <= DIFFERENCES_UP_TO:
        # A sum of n × m terms, one for each feature, which the compiler fuses.
        squares = (jnp.square(x[:, i, None] - y[:, i]) for i in range(x.shape[1]))
        return functools.reduce(jnp.add, squares)
    distances = jnp.maximum(_products(x, y), 0)
    return distances if same is None else jnp.where(same, 0, distances)


def _products(x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Float[Array, "n m"]:
    """Squared distances by a matrix product, which rounding may make negative."""
    return _norms(x, y) - 2 * matmul(x, y.T)


def _norms(x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Float[Array, "n m"]:
    """Each pair's |x|² + |y|², the scale of a product's rounding error."""
    return jnp.sum(x**2, axis=1)[:, None] + jnp.sum(y**2, axis=1)


def is_lost(
    distances: Float[Array, "n m"],
    x: Float[Array, "n d"],
    y: Float[Array, "m d"],
    same: Bool[Array, "n m"] | None,
) -> Bool[Array, ""]:
    """Whether a distance by products, of distinct points, is mostly rounding error."""
    if x.shape[1] <= DIFFERENCES_UP_TO:
        return jnp.array(False)
    # The product's rounding error is about ε (|x|² + |y|²): distances near it are inaccurate.
    threshold = min(LOST_ULPS * float(jnp.finfo(x.dtype).eps), _LOST_AT_MOST)
    lost = distances < threshold * _norms(x, y)
    return jnp.any(lost if same is None else lost & ~same)


def distances_by_differences(x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Float[Array, "n m"]:
    """Squared distances by differences, each exact to rounding of itself."""
    return _products_by_differences(x, y, x, y)


def _products_by_differences(
    x: Float[Array, "n d"],
    y: Float[Array, "m d"],
    u: Float[Array, "n d"],
    v: Float[Array, "m d"],
) -> Float[Array, "n m"]:
    # The last pass is padded with features that are zero in both, which add nothing.
    padding = -x.shape[1] % _FEATURES_A_PASS
    by_passes = lambda rows: jnp.pad(rows, ((0, 0), (0, padding))).T.reshape(
        -1, _FEATURES_A_PASS, rows.shape[0]
    )

    def add(total: Array, columns: tuple[Array, ...]) -> tuple[Array, None]:
        # Several features a pass: each pass reads and writes the n × m sums once.
        products = (
            (x[:, None] - y) * (u[:, None] - v) for x, y, u, v in zip(*columns, strict=True)
        )
        return total + functools.reduce(jnp.add, products), None

    start = jnp.zeros((x.shape[0], y.shape[0]), x.dtype)
    return jax.lax.scan(add, start, tuple(map(by_passes, (x, y, u, v))))[0]


def differences_product(
    x: Float[Array, "n d"],
    y: Float[Array, "m d"],
    u: Float[Array, "n d"],
    v: Float[Array, "m d"],
    same: Bool[Array, "n m"],
) -> Float[Array, "n m"]:
    """(x_i − y_j)·(u_i − v_j) for vectors u and v of the rows, to the precision of distances.

    Rows as for `resolved_distances`: of more than 8 features near an origin, about which products
    are taken, and differences if these have lost a distance.
    """
    if x.shape[1] <= DIFFERENCES_UP_TO:
        terms = ((x[:, i, None] - y[:, i]) * (u[:, i, None] - v[:, i]) for i in range(x.shape[1]))
        return functools.reduce(jnp.add, terms)
    # Multiplied out, it takes products of matrices alone.
    own_x, own_y = jnp.sum(x * u, axis=1), jnp.sum(y * v, axis=1)
    products = own_x[:, None] + own_y - matmul(x, v.T) - matmul(u, y.T)
    held, fixed_x, fixed_y, fixed_u, fixed_v = jax.lax.stop_gradient((products, x, y, u, v))
    # They cancel for points that are nearer to each other than to the origin.
    lost = is_lost(_products(fixed_x, fixed_y), fixed_x, fixed_y, same)
    again = lambda _: _products_by_differences(fixed_x, fixed_y, fixed_u, fixed_v)
    return with_slopes_of(products, if_needed(lost, again, held))


def resolved_distances(
    x: Float[Array, "n d"], y: Float[Array, "m d"], same: Bool[Array, "n m"] | None = None
) -> Float[Array, "n m"]:
    """As `centered_distances`, by differences if products have lost a distance to cancellation."""
    if x.shape[1] <= DIFFERENCES_UP_TO:
        return centered_distances(x, y, same)
    products = _products(x, y)
    # `if_needed` has no reverse mode: values are chosen among constants, and the derivatives are
    # those of the products.
    held, fixed_x, fixed_y = jax.lax.stop_gradient((products, x, y))
    lost = is_lost(held, fixed_x, fixed_y, same)
    again = lambda _: distances_by_differences(fixed_x, fixed_y)
    distances = with_slopes_of(products, if_needed(lost, again, jnp.maximum(held, 0)))
    return distances if same is None else jnp.where(same, 0, distances)


def block_budget() -> int:
    """The numbers that a block holds at most."""
    cpu = jax.default_backend() == "cpu"
    return BLOCK_ENTRIES_CPU if cpu else BLOCK_ENTRIES_ACCELERATOR


def rows_per_block(num_rows: int, num_columns: int) -> int:
    """Rows per block, so that blocks are of equal size and within the budget."""
    budget = block_budget()
    # On a CPU a matrix slightly over the budget is still faster dense than split.
    if num_rows * num_columns <= 1.5 * budget:
        return num_rows
    num_blocks = math.ceil(num_rows / max(1, budget // num_columns))
    return math.ceil(num_rows / num_blocks)


def map_row_blocks(
    function: Callable[..., PyTree[Array]],
    num_columns: int,
    *rows: Array,
    block_rows: int | None = None,
) -> PyTree[Array]:
    """`function(*rows)`, evaluated blockwise if the n × m intermediate would be large.

    The devices of a mesh that is in use (`jax.set_mesh`, Auto axes) have equal shares of the rows:
    each computes n/devices × m of the pairs, blockwise again if they are many.

    Args:
        function: maps arrays with a common leading axis to a pytree of arrays with that leading
            axis, with an intermediate of `num_columns` entries per row.
        num_columns: m.
        *rows: arrays with leading axis n. Blocks are padded with zeros, and their outputs are
            dropped.
        block_rows: rows per block, by default the most that fit the budget.

    Returns:
        The pytree for all rows. In reverse mode each block is recomputed, so that no n × m array is
        kept for the backward pass.
    """
    mesh = mesh_in_use()
    if mesh is not None and rows[0].shape[0] >= mesh.size:
        share = lambda *rows: _map_blocks(function, num_columns, *rows, block_rows=block_rows)
        return map_over_devices(share, mesh, *rows)
    return _map_blocks(function, num_columns, *rows, block_rows=block_rows)


def _map_blocks(
    function: Callable[..., PyTree[Array]], num_columns: int, *rows: Array, block_rows: int | None
) -> PyTree[Array]:
    """As `map_row_blocks`, on one device."""
    n = rows[0].shape[0]
    size = rows_per_block(n, num_columns) if block_rows is None else min(block_rows, n)
    # A single block is not recomputed in the backward pass, as that would save no memory.
    if size == n:
        return function(*rows)
    # `lax.map` takes blocks of one size, so the last is padded.
    num_blocks = math.ceil(n / size)
    blocks = tuple(
        pad_rows(row, num_blocks * size).reshape(num_blocks, size, *row.shape[1:]) for row in rows
    )
    # Without the checkpoint the backward pass would keep every block's b × m intermediate.
    results = jax.lax.map(jax.checkpoint(lambda block: function(*block)), blocks)
    return jax.tree.map(lambda out: out.reshape(num_blocks * size, *out.shape[2:])[:n], results)


def coincidence_distances(x: Float[Array, "n d"], eps: float) -> Float[Array, " d"]:
    """The largest difference of each coordinate between two rows of x that coincide.

    Equal particles that follow the same dynamics end up a few units in the last place apart. It is
    4 eps s with s the median over rows of |x_ik|, in each feature k by itself: features have units
    and offsets of their own, and one far from zero says nothing about the rounding of another. Of
    more than 63 rows, 63 spread over them are taken.

    Args:
        x: rows.
        eps: the epsilon of the dtype in which they were given.

    Example:
        >>> import jax.numpy as jnp
        >>> rounding = coincidence_distances(jnp.array([[1e7, 0.1], [1e7, 0.2]]), 1e-7)
        >>> bool(rounding[0] > 1), bool(rounding[1] < 1e-7)
        (True, True)
    """
    x = x[spread_places(len(x), _ROWS_OF_CENTER)]
    return _COINCIDENT_ULPS * eps * jnp.median(jnp.abs(x), axis=0)
