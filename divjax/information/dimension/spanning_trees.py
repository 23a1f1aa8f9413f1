"""Intrinsic dimension from the growth of minimum spanning trees.

The total length of the minimum spanning tree of n points grows like n^(1 − 1/d) on a set of
dimension d. The edges' lengths are the lifetimes of connected components as balls around the points
grow, the persistent homology of degree zero.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, Key

from divjax.core.checks import check_count, check_full_precision, check_probability, key_first
from divjax.core.keys import own_key
from divjax.core.numerics import in_units_of, nan_unless, safe_log, safe_sqrt
from divjax.core.pairwise import living_rows, squared_distances
from divjax.core.samples import Numbers, as_weights, centered_samples
from divjax.core.simplex import are_weights, effective_sample_size
from divjax.core.types import Estimate
from divjax.information.dimension.neighbor_distances import dimension_estimate

__all__ = ["persistent_homology"]


def _tree_parents(squared: Float[Array, "p p"], size: Int[Array, ""]) -> Int[Array, " p"]:
    """The minimum spanning tree of the first `size` points, by Prim's algorithm in O(size · p).

    The edges are from each point but the first to its parent. Points beyond `size` are their own.
    """
    places = jnp.arange(squared.shape[0])
    outside = places >= size

    def grow(_: Int[Array, ""], tree: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        nearest, parents, done = tree
        # The point nearest to the tree joins it; the others may now be nearer.
        joining = jnp.argmin(jnp.where(done, jnp.inf, nearest))
        done = done | (places == joining)
        row = squared[joining]
        nearer = ~done & (row < nearest)
        return jnp.where(nearer, row, nearest), jnp.where(nearer, joining, parents), done

    # Points beyond the size have joined from the start, as parents of themselves.
    start = squared[0], jnp.where(outside, places, 0), outside | (places == 0)
    return jax.lax.fori_loop(1, size, grow, start)[1]


@key_first
def persistent_homology(
    key: Key[Array, ""],
    x: Float[Numbers, "n d"],
    weights: Float[Numbers, " n"] | None = None,
    *,
    min_points: int = 50,
    max_points: int | None = None,
    num_sizes: int = 12,
    num_subsamples: int = 24,
    confidence_level: ArrayLike = 0.95,
) -> Estimate:
    """Intrinsic dimension from the lengths of minimum spanning trees of subsamples.

    The length E(m) of the minimum spanning tree of m rows grows like m^(1 − 1/d). The slope s of
    log E(m) against log m, by least squares over `num_sizes` sizes from `min_points` to
    `max_points` at equal steps, gives d = 1/(1 − s). Each of `num_subsamples` random orders of the
    rows provides one slope, from its first m rows for each size m, and s is their mean. With
    weights the rows of an order are drawn one after the other, each in proportion to the weights of
    those that are left.

    The tree depends on all scales between its edges and the whole set: the estimate is less
    sensitive to noise than one from nearest neighbours. In a cube, n = 2000, it is 2 % too small at
    d = 2, 10 % at d = 5 and 16 % at d = 10.

    Time O(num_sizes · num_subsamples · max_points² d), memory O(num_subsamples · max_points²).
    Differentiable in x almost everywhere: the trees are constant, and their lengths are not.

    Args:
        key: the key for the subsamples.
        x: samples.
        weights: their weights, non-negative, with any sum, uniform by default. Rows of weight zero
            may hold anything, and are never drawn. No derivative passes through the draws.
        min_points: the smallest size, static, at least 2.
        max_points: the largest size, static, below the number of rows n. By default 512, or half of
            the rows if that is less.
        num_sizes: the number of sizes, static, at least 2.
        num_subsamples: the number of random orders, static, at least 2.
        confidence_level: the level of the confidence interval.

    Returns:
        An `Estimate` with `DimensionDiagnostics`. With σ² the variance of the slopes over random
        orders, and f = max_points/n, that of their mean over samples too is at most σ² (f/(1 − f) +
        1/num_subsamples): Hoeffding's bound on a U-statistic, and the variance of random orders. Of
        weighted rows n is the effective sample size. The standard error is therefore conservative,
        two to four times too large on cubes, and the interval does not cover the bias. They are NaN
        if more than one in a hundred edges has length zero (rows coincide). The value is NaN if a
        row with weight is not finite, all rows coincide, or no more than `max_points` have weight.

    Raises:
        ValueError: if x is not a matrix, weights do not fit, a count is out of range, or the sizes
            do not fit in n.

    Example:
        >>> import jax
        >>> x = jax.random.uniform(jax.random.key(0), (400, 2))
        >>> estimate = persistent_homology(jax.random.key(1), x)
        >>> bool(abs(estimate.value - 2) < 0.3)
        True

    References:
        Steele 1988: the growth. Birdal, Lou, Guibas, Şimşekli 2021, section 4: the slope. Hoeffding
        1948, theorem 5.2: the bound.
    """
    key = own_key(key)
    _, x = centered_samples({"x": weights}, x=x)
    check_full_precision("x", x)
    if weights is not None:
        weights = as_weights("weights", weights, len(x), x.dtype)
    check_count(2, min_points=min_points, num_sizes=num_sizes, num_subsamples=num_subsamples)
    check_probability(confidence_level=confidence_level)
    n = x.shape[0]
    # Larger subsamples share most of their rows, and their spread says less about the error.
    largest = min(512, n // 2) if max_points is None else max_points
    # Sizes are whole numbers, and each occurs once.
    least = min_points + num_sizes - 1
    if max_points is None and largest < least:
        raise ValueError(
            f"x must have at least {2 * least} rows, for {num_sizes} sizes from {min_points} to "
            f"half of the rows; got {n}. Pass max_points, or a smaller min_points."
        )
    check_count(least, max_points=largest)
    if largest >= n:
        raise ValueError(f"max_points must be below the number of rows, {n}; got {largest}.")
    sizes = tuple(np.linspace(min_points, largest, num_sizes).round().astype(int).tolist())
    options = {"sizes": sizes, "num_subsamples": num_subsamples}
    return _persistent_homology(key, x, weights, confidence_level, **options)


@functools.partial(jax.jit, static_argnames=("sizes", "num_subsamples"))
def _persistent_homology(
    key: Key[Array, ""],
    x: Float[Array, "n d"],
    weights: Float[Array, " n"] | None,
    confidence_level: ArrayLike,
    *,
    sizes: tuple[int, ...],
    num_subsamples: int,
) -> Estimate:
    """`persistent_homology` after its checks."""
    n, dtype, enough = x.shape[0], x.dtype, True
    size = jnp.asarray(n, dtype)
    if weights is not None:
        x = living_rows(x, weights)
        enough = are_weights(weights) & (jnp.sum(weights > 0) > sizes[-1])
        size = jax.lax.stop_gradient(effective_sample_size(weights))
    # The slope does not depend on the unit: in that of the largest coordinate squares are in range.
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x)))
    x, _ = in_units_of(jnp.where(jnp.isfinite(largest) & (largest > 0), largest, 1), x)
    keys = jax.random.split(key, num_subsamples)
    orders = jax.vmap(lambda key: _random_order(key, n, weights)[: sizes[-1]])(keys)
    points = x[orders]
    squared = jax.vmap(squared_distances)(jax.lax.stop_gradient(points))

    # Size after size, all subsamples together: the loop over a tree's points has one length.
    trees = jax.lax.map(
        lambda size: jax.vmap(_tree_parents, in_axes=(0, None))(squared, size),
        jnp.asarray(sizes, orders.dtype),
    )

    def edge_lengths(points: Float[Array, "p d"], parents: Int[Array, " p"]) -> Float[Array, " p"]:
        return safe_sqrt(jnp.sum(jnp.square(points - points[parents]), axis=1))

    # One size at a time, so that differences of all points need memory for one tree each.
    of_size = lambda parents: jnp.sum(jax.vmap(edge_lengths)(points, parents), axis=1)
    lengths = jax.lax.map(of_size, trees)
    logs = jnp.log(jnp.asarray(sizes, dtype))
    deviations = logs - jnp.mean(logs)
    slopes = deviations @ jnp.log(lengths) / jnp.sum(jnp.square(deviations))
    slope = jnp.mean(slopes)
    value = nan_unless(jnp.isfinite(x).all() & enough, 1 / (1 - slope))

    share = sizes[-1] / size
    # Of unequal weights the effective number of rows may be below a subsample's: then all is NaN.
    share = nan_unless(share < 1, share)
    # The factor m/(n − m) of the jackknife that leaves n − m rows out, and the mean's own error.
    factor = jnp.sqrt(share / (1 - share) + 1 / num_subsamples)
    # The derivative of 1/(1 − s) is its square.
    std_error = jnp.square(value) * jnp.std(slopes, ddof=1) * factor
    # The first point is the root, from which no edge leads to a parent.
    edges = jax.vmap(edge_lengths)(points, trees[-1])[:, 1:]
    coincident = jnp.mean((edges == 0).astype(dtype))
    return dimension_estimate(value, std_error, size, coincident, confidence_level)


def _random_order(
    key: Key[Array, ""], n: int, weights: Float[Array, " n"] | None
) -> Int[Array, " n"]:
    """The rows in random order; with weights each next one in proportion to those left."""
    if weights is None:
        return jax.random.permutation(key, n)
    # The largest of logarithms plus Gumbel noise is a draw in proportion to the weights.
    logs = safe_log(jax.lax.stop_gradient(weights))
    return jnp.argsort(-(logs + jax.random.gumbel(key, (n,), logs.dtype)))
