"""Tests of whether two variables are independent, by HSIC and by distance covariance."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.scipy.special import gammaincc
from jaxtyping import Array, Bool, Float, Int, Key

from divjax.core.checks import check_choice, check_count
from divjax.core.keys import own_key
from divjax.core.labels import row_labels
from divjax.core.numerics import matmul
from divjax.core.pairwise import map_row_blocks, rows_per_block
from divjax.core.samples import Numbers
from divjax.core.types import status_of
from divjax.inference.hypothesis import TestResult, compared_with_null
from divjax.inference.permutation import row_permutation
from divjax.information.centered_products import centered_product
from divjax.information.distance_dependence import (
    LINE_FROM,
    distance_correlation_of,
    least_square,
    scaled_rows,
)
from divjax.information.kernel_dependence import kernel_arguments
from divjax.information.line_sums import line_sums
from divjax.information.low_rank_kernels import low_rank_factor
from divjax.information.pair_sums import (
    Variable,
    distances,
    kernel_variable,
    own_values,
    pair_sums,
)
from divjax.information.paired_rows import PairedRows, masses_of, paired_rows
from divjax.kernels.bandwidth import MedianDistance
from divjax.kernels.protocols import GramKernel, is_radial
from divjax.kernels.radial import Gaussian

__all__ = ["distance_covariance_test", "hsic_test"]

# Two matrices of at most so many rows are held: a permutation then gathers from one of them. Larger
# ones are computed again for each permutation, by blocks.
_HELD_ROWS = 4096

# The gamma distribution needs so many rows, in effect, that vary in both variables. With fewer a
# level of .01 is exceeded twice and more: measured for indicators of 1 to 20 among 50 and 200 rows,
# beside each other and beside a normal variable.
_LEAST_VARYING = 3

# A mean of n² products is off by this multiple of epsilon, relative to its bound by Cauchy–Schwarz.
# Sums of n terms by narrow factors are off by less than one epsilon.
_ROUNDING = 16
# Twice the rounding error of sums by sorting, relative to their sizes: of a tie either may be off.
_LINE_ROUNDING = 2

Labels = Int[Array, " n"] | None
Statistic = Callable[[Int[Array, " n"]], Float[Array, ""]]


def hsic_test(
    key: Key[Array, ""] | None,
    x: Float[Numbers, "n d"],
    y: Float[Numbers, "n e"],
    *,
    kernel_x: GramKernel = Gaussian(MedianDistance()),
    kernel_y: GramKernel = Gaussian(MedianDistance()),
    null: str = "permutations",
    num_permutations: int = 999,
    rank: int | None = None,
    strata: Int[Numbers, " n"] | None = None,
    groups: Int[Numbers, " n"] | None = None,
) -> TestResult:
    """A test of independence by the Hilbert–Schmidt independence criterion, `hsic`.

    By default an exact permutation test, at every sample size: for independent variables, and rows
    that are exchangeable, the statistic of the pairs and those of x with permuted rows of y are
    exchangeable. The kernels' rules are evaluated once, as permutations do not change them.

    A permutation costs O(n²): a gather from the matrix of y, or for n > 4096, where the matrices
    would not be held, one more computation of both. With `rank` r it costs O(n r²): with narrow
    factors K ≈ ΦΦᵀ and L ≈ ΨΨᵀ, which cost O(n r²) once, the statistic is ‖ΦᵀHΨ‖²_F/n². It is the
    HSIC of kernels restricted to the span of r of their columns, smaller by at most δ_x + δ_y for
    kernels of at most one, where δ is the mean error of the diagonal, the sum of the eigenvalues of
    K/n beyond about the r-th. The test stays exact, since factors of permuted rows are permuted
    factors; it hardly loses power if the errors are below 1/n. The more features and the smaller
    the bandwidth, the larger r must be: 50 suffice for a Gaussian kernel of one feature.

    With `null="gamma"` there are no permutations: the p-value is that of a gamma distribution with
    the first two moments of HSIC of independent variables, an approximation for large n without a
    guarantee of its level. It does not hold where hardly any row varies in both variables, as with
    an indicator of one row; the status is then `MAX_ITERATIONS`. Time O(n²), memory O(n).

    Args:
        key: a typed key; not used, and may be None, without permutations.
        x: rows of the first variable, at least two, or six for the gamma distribution.
        y: rows of the second, of the same number.
        kernel_x: the kernel of x.
        kernel_y: the kernel of y.
        null: "permutations" or "gamma".
        num_permutations: N, at least 1/α − 1 for a level α.
        rank: the largest rank of the factors, None for the whole matrices.
        strata: labels of the rows (sites, batches, days). Rows of y are permuted, and need be
            exchangeable, only within their stratum: a test of independence given the stratum.
        groups: labels of the rows (subjects, documents). Rows of a group depend on each other, and
            those of y are permuted as one, with other groups of their size.

    Returns:
        A `TestResult`, whose statistic is the V-statistic of `hsic`, of the factors' kernels with
        `rank`. Its p-value is
        (1 + #{null ≥ statistic})/(1 + N), where ties up to rounding count as ≥; it is one if no
        rows can trade places.

    Raises:
        ValueError: as `hsic`, for too few rows, labels that do not fit, an argument out of range,
            or a rank for a kernel that is not positive definite, such as `kernels.Energy`.

    Example:
        >>> import jax
        >>> x, y = jax.random.normal(jax.random.key(0), (2, 200, 1))
        >>> key = jax.random.key(1)
        >>> float(hsic_test(key, x, x**2 + y).p_value), bool(hsic_test(key, x, y).p_value > 0.1)
        (0.001, True)
        >>> float(hsic_test(key, x, x**2 + y, rank=20).p_value)
        0.001

    References:
        Gretton, Fukumizu, Teo, Song, Schölkopf, Smola 2007: the test, and eq. 9 for the gamma
        distribution. Fine, Scheinberg 2001: pivoted Cholesky decomposition of kernels.
    """
    kernels = kernel_x, kernel_y
    check_choice(("permutations", "gamma"), null=null)
    rows, _ = kernel_arguments(x, y, None, kernels)
    n = len(rows.variables[0])
    if rank is not None:
        check_count(1, rank=rank)
        for name, kernel in zip(("kernel_x", "kernel_y"), kernels, strict=True):
            # A kernel that is positive definite only for masses of sum zero has no such factor.
            if is_radial(kernel) and not kernel.positive_definite:
                raise ValueError(
                    f"{name} must be positive definite for factors of a rank; got "
                    f"{type(kernel).__name__}."
                )
    if null == "gamma":
        # The variance under independence has the factor (n − 4)(n − 5).
        _check_rows(n, 6)
        _refuse_labels(strata, groups)
        return _gamma_test(rows, kernels)
    _check_rows(n, 2)
    check_count(1, num_permutations=num_permutations)
    labels = _labels(strata, groups, n)
    return _hsic_permutations(
        own_key(key), rows, kernels, *labels, num_permutations=num_permutations, rank=rank
    )


def distance_covariance_test(
    key: Key[Array, ""] | None,
    x: Float[Numbers, "n d"],
    y: Float[Numbers, "n e"],
    *,
    null: str = "permutations",
    num_permutations: int = 999,
    strata: Int[Numbers, " n"] | None = None,
    groups: Int[Numbers, " n"] | None = None,
) -> TestResult:
    """A test of independence by distance covariance, `distance_covariance`.

    By default an exact permutation test, as `hsic_test`, and consistent against every dependence of
    variables with finite means. A permutation costs O(n²), or for one feature each, from n = 1024
    on, O(n log n).

    With `null="chi_squared"` there are no permutations: p = P(χ²_1 − 1 ≥ n C) with C the
    bias-corrected distance correlation. For large n, and levels of at most .05, it is valid, as the
    distribution of χ²_1 − 1 dominates the tail of n C for independent variables; it is
    conservative, the less so the fewer dimensions. The time is that of one `distance_correlation`:
    n = 10⁶ takes seconds for one feature each.

    Args:
        key: a typed key; not used, and may be None, without permutations.
        x: rows of the first variable, at least two, or four for the χ² distribution.
        y: rows of the second, of the same number.
        null: "permutations" or "chi_squared".
        num_permutations: N, at least 1/α − 1 for a level α.
        strata: labels of the rows (sites, batches, days). Rows of y are permuted, and need be
            exchangeable, only within their stratum: a test of independence given the stratum.
        groups: labels of the rows (subjects, documents). Rows of a group depend on each other, and
            those of y are permuted as one, with other groups of their size.

    Returns:
        A `TestResult`, whose statistic is dCov², or C. Its p-value is
        (1 + #{null ≥ statistic})/(1 + N), where ties up to rounding count as ≥; it is one if no
        rows can trade places.

    Raises:
        ValueError: as `distance_covariance`, for too few rows, labels that do not fit, or an
            argument out of range.

    Example:
        >>> import jax
        >>> x, y = jax.random.normal(jax.random.key(0), (2, 100, 2))
        >>> key = jax.random.key(1)
        >>> float(distance_covariance_test(key, x, x**2 + y / 2).p_value)
        0.001
        >>> bool(distance_covariance_test(key, x, y).p_value > 0.1)
        True
        >>> bool(distance_covariance_test(None, x, x + y, null="chi_squared").p_value < 1e-3)
        True

    References:
        Székely, Rizzo, Bakirov 2007, section 3. Shen, Panda, Vogelstein 2022: the χ² distribution.
    """
    check_choice(("permutations", "chi_squared"), null=null)
    rows, _ = paired_rows(None, x=x, y=y)
    n = len(rows.variables[0])
    if null == "chi_squared":
        # An unbiased product of centred matrices takes four rows.
        _check_rows(n, 4)
        _refuse_labels(strata, groups)
        return _chi_squared_test(rows)
    _check_rows(n, 2)
    check_count(1, num_permutations=num_permutations)
    labels = _labels(strata, groups, n)
    return _distance_permutations(own_key(key), rows, *labels, num_permutations=num_permutations)


def _check_rows(num_rows: int, least: int) -> None:
    if num_rows < least:
        raise ValueError(f"x and y must have at least {least} rows for this test; got {num_rows}.")


def _refuse_labels(strata: Numbers | None, groups: Numbers | None) -> None:
    for name, labels in (("strata", strata), ("groups", groups)):
        if labels is not None:
            raise ValueError(f"{name} need permutations; a formula is for independent rows.")


def _labels(strata: Numbers | None, groups: Numbers | None, n: int) -> tuple[Labels, Labels]:
    given = ("strata", strata), ("groups", groups)
    found = [None if labels is None else row_labels(name, labels, n) for name, labels in given]
    return found[0], found[1]


def _compared(
    key: Key[Array, ""],
    statistic: Statistic,
    tolerance: Float[Array, ""],
    strata: Labels,
    groups: Labels,
    num_rows: int,
    num_permutations: int,
    entries: int,
) -> TestResult:
    """The test by a statistic of the order of y's rows.

    Args:
        key: for the permutations.
        statistic: of an order of rows.
        tolerance: up to which two statistics are a tie.
        strata: labels, or None.
        groups: labels, or None.
        num_rows: n.
        num_permutations: N.
        entries: the numbers that one evaluation holds.
    """
    shuffle, valid = row_permutation(strata, groups, num_rows, num_rows)
    keys = jax.random.split(key, num_permutations)
    # As many permutations at a time as fit a block.
    at_a_time = min(num_permutations, rows_per_block(num_permutations, entries))
    permuted = lambda key: statistic(shuffle(key))
    null = jax.lax.map(permuted, keys, batch_size=at_a_time)
    return compared_with_null(statistic(jnp.arange(num_rows)), null, tolerance, valid)


def _of_matrices(variables: tuple[Variable, Variable]) -> tuple[Statistic, Float[Array, ""], int]:
    """The mean product of two centred matrices, its rounding, and the numbers it holds."""
    n = variables[0].rows.shape[0]
    masses = masses_of(None, n, variables[0].rows.dtype)
    eps = jnp.finfo(masses.dtype).eps

    def tolerance(raw: Sequence[Array], sizes: Sequence[Array]) -> Float[Array, ""]:
        # Entries are rounded before they are centred, and their products after.
        of_entries = raw[0] * sizes[1] + sizes[0] * raw[1]
        return eps * (of_entries + _ROUNDING * sizes[0] * sizes[1])

    if n > _HELD_ROWS:
        sums = pair_sums(variables, masses, [(0, 0), (1, 1)], diagonal=True)
        raw = tuple(jnp.abs(jnp.dot(masses, means)) for means in sums.means)
        sizes = tuple(
            jnp.sqrt(centered_product(one, masses, debias=False)) for one in sums.products
        )

        def by_blocks(order: Int[Array, " n"]) -> Float[Array, ""]:
            moved = variables[1]._replace(rows=variables[1].rows[order])
            found = pair_sums((variables[0], moved), masses, [(0, 1)], diagonal=True)
            return centered_product(found.products[0], masses, debias=False)

        return by_blocks, tolerance(raw, sizes), n * n

    given = [_matrix(variable) for variable in variables]
    first, second = map(_centered, given)

    def by_gathers(order: Int[Array, " n"]) -> Float[Array, ""]:
        # Each row's sum by a product, as one long sum of n² numbers would be rounded more.
        # Centring commutes with the order of the rows: a permuted matrix is centred already.
        moved = second[order][:, order]
        return jnp.mean(jnp.einsum("ij,ij->i", first, moved, precision="highest")) / n

    raw = _size(given[0]), _size(given[1])
    return by_gathers, tolerance(raw, (_size(first), _size(second))), n * n


def _matrix(variable: Variable) -> Float[Array, "n n"]:
    n = variable.rows.shape[0]
    of_rows = lambda rows, index: variable.function(
        rows, variable.rows, index[:, None] == jnp.arange(n)
    )
    return map_row_blocks(of_rows, n, variable.rows, jnp.arange(n))


def _centered(matrix: Float[Array, "n n"]) -> Float[Array, "n n"]:
    # The second means are of what the first have left, so that the total mean is subtracted once.
    matrix = matrix - jnp.mean(matrix, axis=0)
    return matrix - jnp.mean(matrix, axis=1, keepdims=True)


def _size(matrix: Float[Array, "n m"]) -> Float[Array, ""]:
    """The root of the mean square of n² entries."""
    return jnp.sqrt(jnp.sum(jnp.mean(matrix**2, axis=0))) / jnp.sqrt(float(matrix.shape[0]))


def _variables(
    kernels: tuple[GramKernel, GramKernel],
    x: Float[Array, "n d"],
    y: Float[Array, "n e"],
    *,
    centered: bool,
) -> tuple[Variable, Variable]:
    first = kernel_variable(kernels[0], x, None, centered=centered)
    return first, kernel_variable(kernels[1], y, None, centered=centered)


@functools.partial(jax.jit, static_argnames=("num_permutations", "rank"))
def _hsic_permutations(
    key: Key[Array, ""],
    rows: PairedRows,
    kernels: tuple[GramKernel, GramKernel],
    strata: Labels,
    groups: Labels,
    *,
    num_permutations: int,
    rank: int | None,
) -> TestResult:
    """`hsic_test` by permutations, after its checks."""
    x, y = rows.variables
    # A factor is one of the kernel itself: less a part of it, it would not be positive definite.
    variables = _variables(kernels, x, y, centered=rank is None)
    n = len(x)
    if rank is None:
        statistic, tolerance, entries = _of_matrices(variables)
    else:
        factors = [low_rank_factor(variable, rank) for variable in variables]
        first, second = (factor - jnp.mean(factor, axis=0) for factor in factors)

        # tr(KHLH)/n² is ‖ΦᵀHΨ‖²_F/n², from an r × r matrix for each permutation.
        statistic = lambda order: jnp.sum((matmul(first.T, second[order]) / n) ** 2)
        # tr(ΦΦᵀΨΨᵀ) is at most the product of the norms of ΦᵀΦ and ΨᵀΨ.
        norms = [jnp.linalg.norm(matmul(factor.T, factor) / n) for factor in (first, second)]
        tolerance = jnp.finfo(x.dtype).eps * norms[0] * norms[1]
        entries = second.size
    return _compared(key, statistic, tolerance, strata, groups, n, num_permutations, entries)


@functools.partial(jax.jit, static_argnames="num_permutations")
def _distance_permutations(
    key: Key[Array, ""],
    rows: PairedRows,
    strata: Labels,
    groups: Labels,
    *,
    num_permutations: int,
) -> TestResult:
    """`distance_covariance_test` by permutations, after its checks."""
    (x, y), units, masses = scaled_rows(rows)
    n = len(x)

    def on_the_line(order: Int[Array, " n"]) -> Float[Array, ""]:
        sums = line_sums(x[:, 0], y[order, 0], jnp.ones_like(masses))
        return centered_product(sums, masses, debias=False)

    if x.shape[1] > 1 or y.shape[1] > 1 or n < LINE_FROM:
        function = distances(1.0)
        statistic, tolerance, entries = _of_matrices((Variable(x, function), Variable(y, function)))
    else:
        # Row means do not depend on the pairing, so that one tolerance serves all permutations.
        sums = line_sums(x[:, 0], y[:, 0], jnp.ones_like(masses))
        # The distances are rounded, and the products of their rows' deviations, which exceed them
        # for a variable of few values other than one.
        size = jnp.mean(sums.first) * jnp.mean(sums.second)
        size += jnp.std(sums.first) * jnp.std(sums.second)
        tolerance = _LINE_ROUNDING * jnp.finfo(x.dtype).eps * size
        statistic, entries = on_the_line, 16 * n
    test = _compared(key, statistic, tolerance, strata, groups, n, num_permutations, entries)
    in_units = lambda value: value * units[0] * units[1]
    return dataclasses.replace(test, statistic=in_units(test.statistic), null=in_units(test.null))


def _by_formula(
    statistic: Float[Array, ""], p_value: Float[Array, ""], converged: Bool[Array, ""] | bool = True
) -> TestResult:
    finite = jnp.isfinite(p_value) & jnp.isfinite(statistic)
    status = status_of(converged=converged, finite=finite)
    return TestResult(statistic, p_value, jnp.zeros(0, p_value.dtype), status)


@jax.jit
def _gamma_test(rows: PairedRows, kernels: tuple[GramKernel, GramKernel]) -> TestResult:
    """`hsic_test` by the gamma distribution, after its checks."""
    x, y = rows.variables
    variables = _variables(kernels, x, y, centered=True)
    n, masses = len(x), masses_of(None, len(x), x.dtype)
    sums = pair_sums(variables, masses, [(0, 1), (0, 0), (1, 1)], diagonal=True)
    statistic, *squares = [centered_product(one, masses, debias=False) for one in sums.products]

    variances, spreads, shares, constant = [], [], [], jnp.zeros((), bool)
    for variable, means, square in zip(variables, sums.means, squares, strict=True):
        own, total = own_values(variable), jnp.mean(means)
        # The mean square of the centred matrix off its diagonal estimates E k̃(X, X′)².
        diagonal = own - 2 * means + total
        variances.append((n * square - jnp.mean(diagonal**2)) / (n - 1))
        # The share of rows, in effect, that vary: all if their feature vectors are equally long.
        shares.append(jnp.mean(diagonal) ** 2 / jnp.mean(diagonal**2))
        # E k(X, X) − E k(X, X′), without bias.
        spreads.append((jnp.mean(own) - total) * n / (n - 1))
        constant = constant | (square <= least_square(total))
    # Moments of HSIC for independent variables, to leading order in 1/n.
    mean = spreads[0] * spreads[1] / n
    choices = n * (n - 1.0) * (n - 2.0) * (n - 3.0)
    variance = 2 * (n - 4) * (n - 5) / choices * variances[0] * variances[1]
    # A constant is independent of every variable: p = 1.
    safe = lambda value: jnp.where(constant, 1, value)
    mean, variance = safe(mean), safe(variance)
    # The gamma distribution of this mean and variance has shape mean²/variance and scale
    # variance/mean.
    tail = gammaincc(mean**2 / variance, jnp.maximum(statistic, 0) * mean / variance)
    # A limit theorem for as many rows as vary in both: of one, the statistic has two values.
    enough = constant | (n * shares[0] * shares[1] >= _LEAST_VARYING)
    return _by_formula(statistic, jnp.where(constant, 1, tail), converged=enough)


@jax.jit
def _chi_squared_test(rows: PairedRows) -> TestResult:
    """`distance_covariance_test` by the χ² distribution, after its checks."""
    correlation = distance_correlation_of(rows, exponent=1.0, debias=True)
    shifted = len(rows.variables[0]) * correlation + 1
    # P(χ²_1 ≥ z) is one for negative z.
    tail = gammaincc(jnp.full_like(shifted, 0.5), jnp.maximum(shifted, 0) / 2)
    return _by_formula(correlation, jnp.where(jnp.isnan(shifted), shifted, tail))
