"""An exact two-sample test over many kernels and bandwidths at once."""

import functools
from collections.abc import Callable, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from divjax.core.checks import check_count, check_key
from divjax.core.distance_quantiles import two_quantiles_of_distances
from divjax.core.samples import Numbers
from divjax.discrepancy.quadratic_forms import Contraction, Tile, quadratic_forms
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
from divjax.kernels.contrasts import contrast_at_rows
from divjax.kernels.protocols import GramKernel, check_gram_kernel, is_radial
from divjax.kernels.radial import Gaussian, Laplace

__all__ = ["aggregated_mmd_test"]

# The default grid: ten bandwidths, from half the quantile of the pooled distances at the first of
# these levels to twice that at the second.
_NUM_BANDWIDTHS, _LEVELS = 10, (0.05, 0.95)
# And never further apart than this ratio: the lower quantile of data with many copies is zero.
_LARGEST_RATIO = 1000


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
    """An exact permutation test of p = q by the squared MMDs of many kernels, the largest of them.

    With M_k the V-statistic of MMD² under the kernel k, as in `mmd_test`, and its mean and standard
    deviation over the observed labels and all relabellings, the statistic is

        max_k (M_k − mean M_k)/deviation M_k.

    All of it treats the observed labels as one of the relabellings: under p = q they are
    exchangeable, and the test is exact without splitting the data or correcting for the number of
    kernels: the maximum is as large by chance for the relabelled samples. It loses little power
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
        A `TestResult`, its statistics in standard deviations. Its p-value is
        (1 + #{null ≥ statistic})/(1 + number of permutations), where ties up to rounding count as
        ≥. Time is that of `mmd_test` for each kernel, with the distances computed once.

    Raises:
        ValueError: as `mmd_test`, and if there is no kernel.

    Example:
        >>> import jax
        >>> x, y = jax.random.normal(jax.random.key(0), (2, 80, 2))
        >>> test = aggregated_mmd_test(jax.random.key(1), x, 1.6 * y, num_permutations=199)
        >>> float(test.p_value)
        0.005

    References:
        Schrab, Kim, Albert, Laurent, Guedj, Gretton 2023, section 3: one test of many bandwidths by
        one set of relabellings, there by the ranks of each kernel's statistic. Biggs, Schrab,
        Gretton 2023, section 4: a soft maximum, and the grid of bandwidths.
    """
    check_key(key)
    check_count(1, num_permutations=num_permutations)
    # The default kernels depend on the samples. For the checks any Gaussian stands for them.
    given = (Gaussian(),) if kernels is None else kernels
    if not isinstance(given, (list, tuple)) or not given:
        raise ValueError(f"kernels must be a sequence of at least one kernel; got {kernels!r}.")
    for kernel in given:
        check_gram_kernel(kernel, "kernels")
    # One kernel that depends on where the points are keeps all of them there.
    decides = next((kernel for kernel in given if not is_radial(kernel)), given[0])
    samples = pooled_samples(decides, x, y, strata, groups)
    return _largest_of_many(
        key, samples, None if kernels is None else tuple(given), num_permutations
    )


# Kernels that differ in their numbers alone, stacked to one pytree, and an index of each, without
# which there would be nothing to loop over for a kernel without numbers.
_Family: TypeAlias = tuple[GramKernel, Int[Array, " _"]]


def _default_families(rows: Float[Array, "rows d"]) -> list[_Family]:
    """Gaussian and Laplace kernels, each at all bandwidths of the grid."""
    low, high = two_quantiles_of_distances(jax.lax.stop_gradient(rows), _LEVELS)
    low, high = low / 2, 2 * high
    bandwidths = jnp.linspace(jnp.maximum(low, high / _LARGEST_RATIO), high, _NUM_BANDWIDTHS)
    # Rows that all coincide are alike to every kernel.
    bandwidths = jnp.where(high == 0, 1, bandwidths)
    # Contrasts are made for all bandwidths at once: a kernel wide for the rows is taken less its
    # peak.
    index = jnp.arange(_NUM_BANDWIDTHS)
    contrasts = jax.vmap(lambda kernel: contrast_at_rows(kernel, rows))
    families = Gaussian(bandwidth=bandwidths), Laplace(bandwidth=bandwidths)
    return [(contrasts(family), index) for family in families]


def _families(kernels: tuple[GramKernel, ...], rows: Float[Array, "rows d"]) -> list[_Family]:
    """The kernels, with bandwidth rules evaluated at the rows."""
    alike: dict[object, list[GramKernel]] = {}
    for kernel in (contrast_at_rows(kernel, rows) for kernel in kernels):
        # Kernels that differ in numbers alone share one loop, whose body is compiled once.
        leaves, structure = jax.tree.flatten(kernel)
        shapes = tuple((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)
        alike.setdefault((structure, shapes), []).append(kernel)
    stack = lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves])
    return [(jax.tree.map(stack, *one), jnp.arange(len(one))) for one in alike.values()]


def _for_each_kernel(
    families: Sequence[_Family], function: Callable[[GramKernel], PyTree[Array]]
) -> PyTree[Array]:
    """`function(kernel)` for all kernels of all families, in one loop a family."""
    # One kernel at a time: the matrices of all would multiply the memory of a tile.
    found = [jax.lax.map(lambda member: function(member[0]), family) for family in families]
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *found)


@functools.partial(jax.jit, static_argnames="num_permutations")
def _largest_of_many(
    key: Key[Array, ""],
    samples: PooledSamples,
    kernels: tuple[GramKernel, ...] | None,
    num_permutations: int,
) -> TestResult:
    # The default kernels' bandwidths are in the rows' unit, whichever that is.
    rows = in_own_unit(samples.rows)[0] if kernels is None else samples.rows
    families = _default_families(rows) if kernels is None else _families(kernels, rows)
    labels = relabellings(key, samples, num_permutations)
    vectors = with_sizes(labels)

    def form(tile: Tile, contract: Contraction) -> Float[Array, "kernels p"]:
        matrix_of = kernel_matrices(tile)
        return _for_each_kernel(families, lambda kernel: contract(matrix_of(kernel)))

    # The last vector holds sizes, which bound the rounding of the other forms.
    forms = quadratic_forms(form, rows, vectors)
    statistics, rounding = forms[:, :-1], rounding_of_forms(forms)
    # Moments over the observed labels and all relabellings alike: leaving out the former would
    # break their exchangeability, and with it the level.
    mean = jnp.mean(statistics, axis=1, keepdims=True)
    deviation = jnp.std(statistics, axis=1, keepdims=True)
    # A kernel whose statistics differ by rounding alone has no information: it contributes zeros.
    blind = deviation <= rounding[:, None]
    unit = jnp.where(blind, 1, deviation)
    standardised = jnp.where(blind, 0, (statistics - mean) / unit)
    # By its index: the derivative of a maximum compares it with entries that a compiler may have
    # rounded differently a second time.
    which = jnp.argmax(standardised, axis=0, keepdims=True)
    largest = jnp.take_along_axis(standardised, which, axis=0)[0]
    # A maximum is off by no more than the entry that is off the most.
    tolerance = jnp.max(jnp.where(blind[:, 0], 0, rounding / unit[:, 0]))
    # If every kernel is blind, all statistics are zero: the status reports it if rounding may be
    # why.
    hidden = jnp.all(blind[:, 0]) & jnp.any(rounding > 0)
    return compared_with_null(largest[0], largest[1:], tolerance, labels.valid, resolved=~hidden)
