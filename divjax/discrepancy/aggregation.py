"""An exact two-sample test over many kernels and bandwidths at once."""

import functools
from collections.abc import Callable, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from divjax.core.checks import check_count, check_key
from divjax.core.distance_quantiles import two_quantiles_of_distances
from divjax.core.numerics import matmul
from divjax.core.pairwise import map_row_blocks
from divjax.core.samples import Numbers
from divjax.discrepancy.quadratic_forms import Contraction, Tile, quadratic_forms
from divjax.discrepancy.relabelled_samples import (
    PooledSamples,
    Relabellings,
    kernel_matrices,
    pooled_samples,
    relabellings,
)
from divjax.inference.hypothesis import TestResult, compared_with_null
from divjax.kernels.pooled import resolved_at_rows
from divjax.kernels.protocols import GramKernel, check_gram_kernel, is_radial
from divjax.kernels.radial import Gaussian, Laplace

__all__ = ["aggregated_mmd_test"]

# The default grid: ten bandwidths, from half the quantile of the pooled distances at the first of
# these levels to twice that at the second.
_NUM_BANDWIDTHS, _LEVELS = 10, (0.05, 0.95)
# And never further apart than this ratio: the lower quantile of data with many copies is zero.
_LARGEST_RATIO = 1000
# Normalised statistics are sums of terms of which the absolute ones sum to at most four.
_ROUNDING = 8


def aggregated_mmd_test(
    key: Key[Array, ""],
    x: Float[Numbers, "n d"],
    y: Float[Numbers, "m d"],
    *,
    kernels: Sequence[GramKernel] | None = None,
    num_permutations: int = 999,
    strata: tuple[Int[Numbers, " n"], Int[Numbers, " m"]] | None = None,
    groups: tuple[Int[Numbers, " n"], Int[Numbers, " m"]] | None = None,
) -> TestResult:
    """An exact permutation test of p = q by the squared MMDs of many kernels, softly maximised.

    With M_k the U-statistic of MMD² under the kernel k, and N_k = Σ_{i≠j} k(z_i, z_j)²/(N(N − 1))
    over the N pooled rows, which no relabelling changes, the statistic is

        (1/λ) log mean_k exp(λ M_k/√N_k),   λ = √(n(n − 1)),

    with n the size of the smaller sample. The same function of every relabelling is the null, so
    that the test is exact without splitting the data or correcting for the number of kernels: what
    the maximum gains by chance, it gains for the relabelled samples as well. It loses little power
    against the best of the kernels, whichever that is.

    Args:
        key: a typed key.
        x: samples of p, at least two.
        y: samples of q, at least two.
        kernels: the kernels, by default Gaussian and Laplace kernels at ten bandwidths each, evenly
            spaced from half the 5 % quantile of the distances among the pooled rows to twice the
            95 % quantile. Bandwidth rules are evaluated at the pooled rows.
        num_permutations: the number of relabellings, at least 1/α − 1 for a level α.
        strata: labels of the rows of x and of y: rows are exchanged within a stratum only.
        groups: labels of the rows of x and of y, each in only one of the samples, whose rows are
            exchanged as one.

    Returns:
        A `TestResult`. Its p-value is (1 + #{null ≥ statistic})/(1 + number of permutations), where
        ties up to rounding count as ≥. Time and memory are those of `mmd_test` for each kernel; the
        distances are computed once.

    Raises:
        ValueError: as `mmd_test`, and if there is no kernel.

    Example:
        >>> import jax
        >>> x, y = jax.random.normal(jax.random.key(0), (2, 80, 2))
        >>> test = aggregated_mmd_test(jax.random.key(1), x, 1.6 * y, num_permutations=199)
        >>> float(test.p_value)
        0.005

    References:
        Biggs, Schrab, Gretton 2023, eq. 3 and theorem 1: MMD-FUSE, whose second family of kernels
        is here the Laplace kernel of Euclidean distances.
    """
    check_key(key)
    check_count(1, num_permutations=num_permutations)
    given = (Gaussian(),) if kernels is None else kernels
    if not isinstance(given, (list, tuple)) or not given:
        raise ValueError(f"kernels must be a sequence of at least one kernel; got {kernels!r}.")
    for kernel in given:
        check_gram_kernel(kernel, "kernels")
    # One kernel that depends on where the points are keeps all of them there.
    decides = next((kernel for kernel in given if not is_radial(kernel)), given[0])
    samples = pooled_samples(decides, x, y, strata, groups)
    return _fused_test(key, samples, None if kernels is None else tuple(given), num_permutations)


# Kernels that differ in their numbers alone, stacked to one pytree, and an index of each, without
# which there would be nothing to loop over for a kernel without numbers.
_Family: TypeAlias = tuple[GramKernel, Int[Array, " members"]]


def _default_families(rows: Float[Array, "rows d"]) -> list[_Family]:
    """Gaussian and Laplace kernels, each at all bandwidths of the grid."""
    low, high = two_quantiles_of_distances(jax.lax.stop_gradient(rows), _LEVELS)
    low, high = low / 2, 2 * high
    bandwidths = jnp.linspace(jnp.maximum(low, high / _LARGEST_RATIO), high, _NUM_BANDWIDTHS)
    # Rows that all coincide are alike to every kernel.
    bandwidths = jnp.where(high == 0, 1, bandwidths)
    index = jnp.arange(_NUM_BANDWIDTHS)
    return [(Gaussian(bandwidth=bandwidths), index), (Laplace(bandwidth=bandwidths), index)]


def _families(kernels: tuple[GramKernel, ...], rows: Float[Array, "rows d"]) -> list[_Family]:
    """The kernels, with bandwidth rules evaluated at the rows."""
    alike: dict[object, list[GramKernel]] = {}
    for kernel in (resolved_at_rows(kernel, rows) for kernel in kernels):
        leaves, structure = jax.tree.flatten(kernel)
        shapes = tuple((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)
        alike.setdefault((structure, shapes), []).append(kernel)
    stack = lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves])
    return [(jax.tree.map(stack, *one), jnp.arange(len(one))) for one in alike.values()]


def _for_each_kernel(
    families: Sequence[_Family], function: Callable[[GramKernel], PyTree[Array]]
) -> PyTree[Array]:
    """`function(kernel)` for all kernels of all families, in one loop a family."""
    found = [jax.lax.map(lambda member: function(member[0]), family) for family in families]
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *found)


@functools.partial(jax.jit, static_argnames="num_permutations")
def _fused_test(
    key: Key[Array, ""],
    samples: PooledSamples,
    kernels: tuple[GramKernel, ...] | None,
    num_permutations: int,
) -> TestResult:
    rows, num_rows = samples.rows, samples.rows.shape[0]
    families = _default_families(rows) if kernels is None else _families(kernels, rows)
    labels = relabellings(key, samples, num_permutations)
    sums, squares = _row_sums(families, rows)
    statistics = _unbiased(families, rows, labels, sums)
    size = jnp.sqrt(jnp.sum(squares, axis=1) / (num_rows * (num_rows - 1.0)))[:, None]
    # A kernel that is zero for all pairs sees nothing.
    statistics = jnp.where(size == 0, 0, statistics / jnp.where(size == 0, 1, size))
    smaller = min(samples.num_x, num_rows - samples.num_x)
    sharpness = (smaller * (smaller - 1)) ** 0.5
    fused = logsumexp(sharpness * statistics, axis=0, b=1 / statistics.shape[0]) / sharpness
    tolerance = jnp.asarray(_ROUNDING * jnp.finfo(fused.dtype).eps, fused.dtype)
    return compared_with_null(fused[0], fused[1:], tolerance, labels.valid)


def _row_sums(
    families: Sequence[_Family], points: Float[Array, "rows d"]
) -> tuple[Float[Array, "kernels rows"], Float[Array, "kernels rows"]]:
    """Σ_{j≠i} k(z_i, z_j) and the same of squares, for every kernel."""
    index = jnp.arange(points.shape[0])

    def block(rows: Float[Array, "b d"], place: Int[Array, " b"]) -> tuple[Array, Array]:
        same = place[:, None] == index
        matrix_of = kernel_matrices(Tile(rows, points, same))

        def sums(kernel: GramKernel) -> tuple[Array, Array]:
            matrix = jnp.where(same, 0, matrix_of(kernel))
            return jnp.sum(matrix, axis=1), jnp.sum(matrix**2, axis=1)

        return jax.tree.map(jnp.transpose, _for_each_kernel(families, sums))

    found = map_row_blocks(block, points.shape[0], points, index)
    return jax.tree.map(jnp.transpose, found)


def _unbiased(
    families: Sequence[_Family],
    rows: Float[Array, "rows d"],
    labels: Relabellings,
    sums: Float[Array, "kernels rows"],
) -> Float[Array, "kernels p"]:
    """The U-statistic of MMD² for every kernel and relabelling.

    It is the form q = wᵀK₀w, with the diagonal left out, plus what the means over n² and m² pairs
    lack of those over n(n − 1) and m(m − 1). These follow from q, w and the matrix's row sums.
    """

    def form(tile: Tile, contract: Contraction) -> Float[Array, "kernels p"]:
        matrix_of = kernel_matrices(tile)
        without_self = lambda kernel: jnp.where(tile.same, 0, matrix_of(kernel))
        return _for_each_kernel(families, lambda kernel: contract(without_self(kernel)))

    contrasts = labels.contrasts
    q = quadratic_forms(form, rows, contrasts)

    def linear(in_x: Bool[Array, "b rows"], high: Array, low: Array) -> Float[Array, "b kernels"]:
        return matmul(jnp.where(in_x, high[:, None], low[:, None]), sums.T)

    # 1ᵀK₀w and 1ᵀK₀1.
    tilt, total = (
        map_row_blocks(linear, rows.shape[0], *contrasts).T,
        jnp.sum(sums, axis=1)[:, None],
    )
    n, m = labels.num_x, labels.num_y
    # The indicator of x is (w + 1/m)/(1/n + 1/m), that of y is (1/n − w)/(1/n + 1/m).
    unit = (1 / n + 1 / m) ** 2
    within_x = (q + 2 * tilt / m + total / m**2) / unit
    within_y = (q - 2 * tilt / n + total / n**2) / unit
    # A group of one row may be all of a relabelled sample: there are no pairs to add.
    lacking = lambda within, size: jnp.where(size > 1, within / (size**2 * (size - 1)), 0)
    return q + lacking(within_x, n) + lacking(within_y, m)
