"""Distance covariance and distance correlation of paired samples."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from divjax.core.checks import check_scalar
from divjax.core.numerics import in_units_of
from divjax.core.samples import Numbers
from divjax.core.simplex import in_units_of_largest
from divjax.information.centered_products import (
    CenteredSums,
    centered_product,
    correlation,
    square_or_nan,
)
from divjax.information.line_sums import line_sums, line_variance_sums
from divjax.information.pair_sums import Variable, distances, pair_sums
from divjax.information.paired_rows import (
    PairedRows,
    check_debias,
    masses_of,
    paired_rows,
    usable_rows,
)

__all__ = [
    "LINE_FROM",
    "check_exponent",
    "compiled_for_exponent",
    "distance_correlation",
    "distance_correlation_of",
    "distance_covariance",
    "distance_sums",
    "least_square",
    "scaled_rows",
]

T = TypeVar("T")

# From this many rows on, pairs of numbers are summed by sorting. Fewer are as fast pair by pair.
LINE_FROM = 1024

# A squared distance variance counts as zero up to the square of this many roundings of distances.
_ULPS = 16


def distance_covariance(
    x: Float[Numbers, "n d"],
    y: Float[Numbers, "n e"],
    weights: Float[Numbers, " n"] | None = None,
    *,
    exponent: ArrayLike = 1.0,
    debias: bool = False,
) -> Float[Array, ""]:
    """The squared distance covariance dCov² of paired rows: zero in the population if independent.

    dCov² = Σ_ij w_i w_j A_ij B_ij, where A is the matrix of distances ‖x_i − x_j‖ less its row and
    column means plus its mean, and B that of y. In the population it is
    E‖X − X′‖‖Y − Y′‖ − 2 E‖X − X′‖‖Y − Y″‖ + E‖X − X′‖ E‖Y − Y′‖, which is zero only if X and Y are
    independent. It is `hsic` with the energy kernel.

    The V-statistic is not negative; for independent variables its mean is about
    E‖X − X′‖ E‖Y − Y′‖/n. With `debias` it is the U-statistic Σ_{i≠j} Ã_ij B̃_ij / (n (n − 3)) of
    U-centred matrices, unbiased and mostly negative for independent variables. Of weighted rows Ã
    is the part of the distances that is orthogonal to all g_i + g_j under the masses of pairs
    i ≠ j, and the sum is divided so that it is unbiased for given weights; NaN if fewer than four
    rows have weight, or one has half of all.

    For one feature each and exponent 1, time is O(n log n) and memory O(n). Otherwise time is
    O(n² (d + e)) and memory O(n (d + e)) plus blocks of the budget of `divjax.core.pairwise`, where
    n = 50 000 needs less than 1 GB. Differentiable; at coincident points the derivative of a
    distance is zero, on the line that of one order.

    Args:
        x: rows of the first variable.
        y: rows of the second, of the same number.
        weights: weights of the pairs, non-negative, with any sum, uniform by default. Rows of
            weight zero may hold anything.
        exponent: α in (0, 2), for ‖x − y‖^α.
        debias: whether to return the unbiased statistic.

    Returns:
        dCov², in the product of both units, each to the power α. NaN if a row with weight is not
        finite.

    Raises:
        ValueError: if x or y is empty or not a matrix, their numbers of rows differ, weights do not
            fit, the exponent is out of range, or fewer than four rows are to be debiased.

    Example:
        >>> import jax
        >>> x, y = jax.random.normal(jax.random.key(0), (2, 500, 1))
        >>> square = x**2  # uncorrelated with x, and dependent on it
        >>> independent = float(distance_covariance(x, y, debias=True))
        >>> float(distance_covariance(x, square, debias=True)) > 20 * abs(independent)
        True

    References:
        Székely, Rizzo, Bakirov 2007, definition 4. Székely, Rizzo 2014, definition 2: U-centring.
        Huo, Székely 2016; Chaudhuri, Hu 2019: sorting.
    """
    rows, dtype = _arguments(x, y, weights, exponent, debias)
    return _covariance(rows, exponent=exponent, debias=debias).astype(dtype)


def distance_correlation(
    x: Float[Numbers, "n d"],
    y: Float[Numbers, "n e"],
    weights: Float[Numbers, " n"] | None = None,
    *,
    exponent: ArrayLike = 1.0,
    debias: bool = False,
) -> Float[Array, ""]:
    """The squared distance correlation dCor² = dCov²(x, y) / (dCov²(x, x) dCov²(y, y))^½.

    In [0, 1], and one if y is x up to a shift, a factor and a rotation. With `debias` it is the
    bias-corrected one, of unbiased distance covariances, which may be negative. The remaining bias
    is that of a ratio. Time, memory and derivatives are those of `distance_covariance`.

    Args:
        x: rows of the first variable.
        y: rows of the second, of the same number.
        weights: weights of the pairs, non-negative, with any sum, uniform by default. Rows of
            weight zero may hold anything.
        exponent: α in (0, 2), for ‖x − y‖^α.
        debias: whether to return the bias-corrected one.

    Returns:
        dCor². Zero by definition if x or y is constant. NaN if a row with weight is not finite.

    Raises:
        ValueError: as `distance_covariance`.

    Example:
        >>> import jax
        >>> x, noise = jax.random.normal(jax.random.key(0), (2, 500, 1))
        >>> round(float(distance_correlation(x, 3 - 2 * x)), 4)
        1.0
        >>> abs(float(distance_correlation(x, noise, debias=True))) < 0.02
        True

    References:
        Székely, Rizzo, Bakirov 2007, definition 5. Székely, Rizzo 2013: the bias-corrected one.
    """
    rows, dtype = _arguments(x, y, weights, exponent, debias)
    return distance_correlation_of(rows, exponent=exponent, debias=debias).astype(dtype)


def _arguments(
    x: Numbers, y: Numbers, weights: Numbers | None, exponent: ArrayLike, debias: bool
) -> tuple[PairedRows, jnp.dtype]:
    check_exponent(exponent)
    rows, dtype = paired_rows(weights, x=x, y=y)
    check_debias(rows.variables[0].shape[0], debias)
    return rows, dtype


def check_exponent(exponent: ArrayLike) -> None:
    """Raise `ValueError` unless the exponent is one number, and in (0, 2) if a Python number."""
    check_scalar(exponent=exponent)
    # At 2 it is a squared covariance, which is zero for uncorrelated variables that are dependent.
    if isinstance(exponent, (int, float)) and not 0 < exponent < 2:
        raise ValueError(f"exponent must be a number in (0, 2); got {exponent}.")


def compiled_for_exponent(*static: str) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """Compile a `function(…, exponent)`: a Python number selects a program, an array is a leaf.

    Args:
        *static: the names of further static arguments.
    """

    def decorate(function: Callable[..., T]) -> Callable[..., T]:
        # Distances themselves have a root, and on the line sums by sorting.
        of_number = jax.jit(function, static_argnames=("exponent", *static))
        of_array = jax.jit(function, static_argnames=static)

        @functools.wraps(function)
        def call(*args: Any, exponent: ArrayLike, **options: Any) -> T:
            known = isinstance(exponent, (int, float))
            return (of_number if known else of_array)(*args, exponent=exponent, **options)

        return call

    return decorate


def scaled_rows(rows: PairedRows) -> tuple[list[Array], list[Array], Float[Array, " n"]]:
    """Each variable about its centre in units of its largest deviation, these units, the masses.

    Products of distances then neither over- nor underflow.
    """
    n, dtype = rows.variables[0].shape[0], rows.variables[0].dtype
    masses = masses_of(rows.weights, n, dtype)
    usable = [usable_rows(values, rows.weights) for values in rows.variables]
    scaled = [in_units_of(largest, values) for values, largest in usable]
    return [values for values, _ in scaled], [unit for _, unit in scaled], masses


def least_square(mean: Float[Array, ""]) -> Float[Array, ""]:
    """The largest ⟨A, A⟩ that the rounding of a constant matrix of this mean may leave."""
    return jax.lax.stop_gradient(jnp.square(_ULPS * jnp.finfo(mean.dtype).eps * mean))


def distance_sums(
    rows: PairedRows,
    pairs: Sequence[tuple[int, int]],
    exponent: ArrayLike,
    *,
    debias: bool,
) -> tuple[list[CenteredSums], list[Array], Float[Array, " n"]]:
    """The sums for each pair of variables in units of theirs, these units, and the masses."""
    variables, units, masses = scaled_rows(rows)
    numbers = all(values.shape[1] == 1 for values in variables)
    plain = isinstance(exponent, (int, float)) and exponent == 1
    # Sums by sorting exist for |x − y| itself, on the line, and are faster for many rows.
    if not (numbers and plain and masses.shape[0] >= LINE_FROM):
        function = distances(exponent)
        given = [Variable(values, function) for values in variables]
        sums = pair_sums(given, masses, pairs, diagonal=not debias).products
        return list(sums), units, masses
    # Not the masses: sums of ones are exact, while those of 1/n all err to one side.
    weights = jnp.ones_like(masses) if rows.weights is None else in_units_of_largest(rows.weights)
    columns = [values[:, 0] for values in variables]
    sums = [
        # Products of a variable's distances with themselves are squares, without absolute values.
        line_variance_sums(columns[i], weights)
        if i == j
        else line_sums(columns[i], columns[j], weights)
        for i, j in pairs
    ]
    return sums, units, masses


@compiled_for_exponent("debias")
def _covariance(rows: PairedRows, *, exponent: ArrayLike, debias: bool) -> Float[Array, ""]:
    """`distance_covariance` after its checks."""
    (sums,), units, masses = distance_sums(rows, [(0, 1)], exponent, debias=debias)
    # ‖x − y‖^α scales with the α-th power of each unit.
    value = centered_product(sums, masses, debias=debias)
    for unit in units:
        value = value * unit ** jnp.asarray(exponent, unit.dtype)
    return value


@compiled_for_exponent("debias")
def distance_correlation_of(
    rows: PairedRows, *, exponent: ArrayLike, debias: bool
) -> Float[Array, ""]:
    """`distance_correlation` after its checks."""
    # A ratio, in which the units cancel.
    pairs = [(0, 1), (0, 0), (1, 1)]
    sums, _, masses = distance_sums(rows, pairs, exponent, debias=debias)
    product = centered_product(sums[0], masses, debias=debias)
    least = [least_square(jnp.dot(masses, one.first)) for one in sums[1:]]
    squares = [
        square_or_nan(one, masses, low, debias=debias)
        for one, low in zip(sums[1:], least, strict=True)
    ]
    return correlation(product, (squares[0], squares[1]), (least[0], least[1]))
