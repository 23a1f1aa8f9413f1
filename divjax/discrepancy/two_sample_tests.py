"""Exact permutation tests of whether two samples have one distribution, by their kernel matrix."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from divjax.core.checks import check_count, check_key
from divjax.core.numerics import matmul
from divjax.core.pairwise import map_row_blocks
from divjax.core.samples import Numbers
from divjax.discrepancy.quadratic_forms import quadratic_forms
from divjax.discrepancy.relabelled_samples import (
    PooledSamples,
    in_own_unit,
    kernel_matrices,
    pooled_samples,
    relabellings,
    rounding_of_forms,
    with_sizes,
)
from divjax.inference.hypothesis import TestResult, compared_with_null
from divjax.kernels.bandwidth import MedianDistance
from divjax.kernels.contrasts import contrast_at_rows
from divjax.kernels.protocols import GramKernel
from divjax.kernels.radial import Energy, Gaussian

__all__ = ["energy_test", "mmd_test"]


def mmd_test(
    key: Key[Array, ""],
    x: Float[Numbers, "n d"],
    y: Float[Numbers, "m d"],
    *,
    kernel: GramKernel = Gaussian(MedianDistance()),
    num_permutations: int = 999,
    strata: tuple[Int[Numbers, " n"], Int[Numbers, " m"]] | None = None,
    groups: tuple[Int[Numbers, " n"], Int[Numbers, " m"]] | None = None,
) -> TestResult:
    """An exact permutation test of p = q by the squared maximum mean discrepancy.

    The statistic is the V-statistic of `mmd`: wᵀKw with w = 1/n for rows of x and −1/m for rows of
    y, and K the kernel matrix of the pooled rows. All N relabellings share one K, which multiplies
    the matrix of their vectors w. A bandwidth rule is evaluated once, at the pooled rows, on which
    the labels have no influence: under p = q the observed statistic and those of the relabelled
    samples are exchangeable, and the test is exact at every sample size.

    Consistent against every difference if the kernel is characteristic, as all of `divjax.kernels`
    with a bandwidth are; with `kernels.Polynomial` against differences of moments. How strong it is
    depends on the bandwidth: `aggregated_mmd_test` tries many.

    Time O((n + m)² (d + N)), the matrix computed by tiles: memory is (n + m) N bytes and a tile.

    Args:
        key: a typed key.
        x: samples of p, at least two.
        y: samples of q, at least two.
        kernel: a kernel. Its bandwidth rule, if any, is evaluated at the rows of x and y together.
        num_permutations: N, at least 1/α − 1 for a level α.
        strata: labels of the rows of x and of y (sites, batches, days). Rows are exchanged, and
            need be exchangeable, only within their stratum.
        groups: labels of the rows of x and of y (subjects, documents), each in only one of the
            samples. Rows of a group depend on each other and are exchanged as one. A relabelled x
            has as many groups as x, whatever their sizes.

    Returns:
        A `TestResult`, its statistics in the kernel's unit. Its p-value is
        (1 + #{null ≥ statistic})/(1 + N), where ties up to rounding count as ≥.

    Raises:
        ValueError: if a sample is not a matrix of numbers or has a single row, the numbers of
            features differ, the labels do not fit, or the count is not positive.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> x, y = jax.random.normal(jax.random.key(0), (2, 60, 3))
        >>> key = jax.random.key(1)
        >>> float(mmd_test(key, x, y + 1).p_value), bool(mmd_test(key, x, y).p_value > 0.1)
        (0.001, True)

    References:
        Gretton, Borgwardt, Rasch, Schölkopf, Smola 2012, eq. 5, section 2. Hemerik, Goeman 2018,
        theorem 2: exactness for random permutations.
    """
    check_key(key)
    check_count(1, num_permutations=num_permutations)
    samples = pooled_samples(kernel, x, y, strata, groups)
    return _kernel_test(key, samples, kernel, num_permutations)


def energy_test(
    key: Key[Array, ""],
    x: Float[Numbers, "n d"],
    y: Float[Numbers, "m d"],
    *,
    num_permutations: int = 999,
    strata: tuple[Int[Numbers, " n"], Int[Numbers, " m"]] | None = None,
    groups: tuple[Int[Numbers, " n"], Int[Numbers, " m"]] | None = None,
) -> TestResult:
    """An exact permutation test of p = q by the energy distance, which has no bandwidth to choose.

    The statistic is 2 E‖x − y‖ − E‖x − x′‖ − E‖y − y′‖ over all pairs of the two samples:
    `mmd_test` with the kernel −‖x − y‖, and consistent against every difference of distributions
    with a mean. With one feature it is 2 ∫ (F − G)², in time O((n + m) N) by sorting, once.

    Args:
        key: a typed key.
        x: samples of p, at least two.
        y: samples of q, at least two.
        num_permutations: N, at least 1/α − 1 for a level α.
        strata: labels of the rows of x and of y: rows are exchanged within a stratum only.
        groups: labels of the rows of x and of y, each in only one of the samples, whose rows are
            exchanged as one.

    Returns:
        A `TestResult`, its statistics in the samples' unit.

    Raises:
        ValueError: as `mmd_test`.

    Example:
        >>> import jax
        >>> x, y = jax.random.normal(jax.random.key(0), (2, 60, 3))
        >>> test = energy_test(jax.random.key(1), x, 2 * y)
        >>> float(test.p_value)
        0.001

    References:
        Székely, Rizzo 2013, eq. 6.1; Baringhaus, Franz 2004, the same statistic.
    """
    check_key(key)
    check_count(1, num_permutations=num_permutations)
    samples = pooled_samples(Energy(), x, y, strata, groups)
    if samples.rows.shape[1] == 1:
        return _line_test(key, samples, num_permutations)
    return _kernel_test(key, samples, Energy(), num_permutations)


@functools.partial(jax.jit, static_argnames="num_permutations")
def _kernel_test(
    key: Key[Array, ""], samples: PooledSamples, kernel: GramKernel, num_permutations: int
) -> TestResult:
    # Rows in units of their largest coordinate: the squares behind the energy kernel's distances
    # stay within the dtype's range.
    distances = isinstance(kernel, Energy)
    rows, unit = in_own_unit(samples.rows) if distances else (samples.rows, 1)
    kernel = contrast_at_rows(kernel, rows)
    labels = relabellings(key, samples, num_permutations)
    form = lambda tile, contract: contract(kernel_matrices(tile)(kernel))
    # The statistic first, and last the form of the sizes, by which rounding is measured.
    forms = unit * quadratic_forms(form, rows, with_sizes(labels))
    return compared_with_null(forms[0], forms[1:-1], rounding_of_forms(forms), labels.valid)


@functools.partial(jax.jit, static_argnames="num_permutations")
def _line_test(key: Key[Array, ""], samples: PooledSamples, num_permutations: int) -> TestResult:
    """The energy test of numbers on a line: 2 Σ_k (z_(k+1) − z_(k)) (F − G)²(z_(k))."""
    labels = relabellings(key, samples, num_permutations)
    rows = samples.rows[:, 0]
    # Relabelling moves no row: one sort serves all labels.
    order = jnp.argsort(rows)
    gaps, ranks = jnp.diff(rows[order]), jnp.arange(1, rows.shape[0])

    def energies(
        in_x: Bool[Array, "b rows"], num_x: Float[Array, " b"], num_y: Float[Array, " b"]
    ) -> Float[Array, " b"]:
        # Counts are exact. Their order among rows that coincide is irrelevant: the gap is zero.
        of_x = jnp.cumsum(in_x[:, order[:-1]], axis=1)
        of_y, num_x, num_y = ranks - of_x, num_x[:, None], num_y[:, None]
        # F − G is a difference of products of counts, over n m: differences of opposite sign then
        # have equal squares, a tie, which those of rounded shares need not have.
        difference = _difference_of_products(of_x, num_y, of_y, num_x)
        return 2 * matmul((difference / num_x / num_y) ** 2, gaps)

    forms = map_row_blocks(energies, rows.shape[0], labels.in_x, labels.num_x, labels.num_y)
    # All terms are of one sign: the error is that of a sum of as many.
    tolerance = jnp.finfo(forms.dtype).eps * len(rows) ** 0.5 * forms[0]
    return compared_with_null(forms[0], forms[1:], tolerance, labels.valid)


def _difference_of_products(
    a: Int[Array, "p k"], b: Float[Array, "p 1"], c: Int[Array, "p k"], d: Float[Array, "p 1"]
) -> Float[Array, "p k"]:
    """A b − c d of counts, to the rounding of itself rather than of either product.

    Integers wrap around: their difference is exact up to a multiple of 2³², which follows from that
    of the rounded products.
    """
    whole = lambda count: count.astype(jnp.int32)
    wrapped = (whole(a) * whole(b) - whole(c) * whole(d)).astype(b.dtype)
    rounded = a.astype(b.dtype) * b - c.astype(b.dtype) * d
    return wrapped + 2.0**32 * jnp.round((rounded - wrapped) / 2.0**32)
