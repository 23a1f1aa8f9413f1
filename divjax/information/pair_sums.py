"""Row means of matrices of all pairs, and of their products, without the matrices.

Blocks of rows are computed, centred approximately, multiplied and summed. The approximation is the
row means over a few columns: it affects rounding alone, but that by orders of magnitude, as most of
a matrix of distances is its row and column means.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from divjax.core.numerics import matmul, nan_unless, safe_power, safe_sqrt
from divjax.core.pairwise import map_row_blocks, resolved_distances
from divjax.information.centered_products import CenteredSums
from divjax.information.paired_rows import usable_rows
from divjax.kernels.contrasts import contrast_at_rows
from divjax.kernels.pooled import as_measure, living_part, resolved_at_rows
from divjax.kernels.protocols import GramKernel, is_radial

__all__ = [
    "PairSums",
    "Variable",
    "distances",
    "inner_products",
    "kernel_variable",
    "own_values",
    "pair_sums",
]

# Columns over which row means are approximated: the residual is their standard error.
_COLUMNS = 256

# The function of pairs of rows whose values are a matrix: of a block of rows, all rows, and which
# of the pairs are a row and itself.
PairFunction: TypeAlias = Callable[
    [Float[Array, "b d"], Float[Array, "m d"], Bool[Array, "b m"] | None], Float[Array, "b m"]
]


class Variable(NamedTuple):
    """Rows, and a symmetric function of two of them."""

    rows: Float[Array, "n d"]
    function: PairFunction


def distances(exponent: ArrayLike, unit: ArrayLike = 1) -> PairFunction:
    """‖x − y‖^α, of rows that are given in a unit."""

    def values(rows: Array, points: Array, same: Array | None) -> Array:
        squared = resolved_distances(rows, points, same)
        # A root is cheaper than a power, and ‖x − y‖ is the usual case.
        if isinstance(exponent, (int, float)) and exponent == 1:
            return safe_sqrt(squared) * unit
        order = jnp.asarray(exponent, squared.dtype)
        # A traced exponent cannot be refused.
        order = nan_unless((order > 0) & (order < 2), order)
        power = safe_power(squared, order / 2)
        return power * jnp.asarray(unit, power.dtype) ** order

    return values


def kernel_variable(
    kernel: GramKernel,
    rows: Float[Array, "n d"],
    weights: Float[Array, " n"] | None,
    *,
    centered: bool = False,
) -> Variable:
    """Rows and a kernel, whose rule is evaluated at those with weight.

    If the matrix will be `centered` doubly, without a part that centring removes.
    """
    resolve = contrast_at_rows if centered else resolved_at_rows
    if not is_radial(kernel):
        # Rows without weight are kept near the others, where such a kernel does not overflow.
        rows, _ = as_measure(kernel, rows, weights)
        fixed = resolve(kernel, living_part(rows, weights))
        return Variable(rows, lambda rows, points, same: fixed(rows, points).astype(rows.dtype))
    rows, _ = usable_rows(rows, weights)
    radial = resolve(kernel, living_part(rows, weights))

    def values(rows: Array, points: Array, same: Array | None) -> Array:
        assert is_radial(radial)
        return radial.radial(resolved_distances(rows, points, same))[0].astype(rows.dtype)

    return Variable(rows, values)


def inner_products(rows: Array, points: Array, same: Array | None) -> Array:
    """⟨x, y⟩."""
    return matmul(rows, points.T)


def own_values(variable: Variable) -> Float[Array, " n"]:
    """The function of each row and itself, the diagonal of the matrix."""
    one = lambda row: variable.function(row[None], row[None], jnp.ones((1, 1), bool))[0, 0]
    return jax.vmap(one)(variable.rows)


class PairSums(NamedTuple):
    """The row means of each matrix, and the sums for centred products of pairs of them.

    Attributes:
        means: the row means of each variable's matrix.
        products: the sums for each pair of variables asked for.
    """

    means: tuple[Float[Array, " n"], ...]
    products: tuple[CenteredSums, ...]


def pair_sums(
    variables: Sequence[Variable],
    masses: Float[Array, " n"],
    pairs: Sequence[tuple[int, int]],
    *,
    diagonal: bool,
) -> PairSums:
    """Sums over all pairs of rows, in one pass over blocks of them.

    Args:
        variables: rows and functions of two of them.
        masses: the rows' masses, of sum one.
        pairs: the indices of the variables whose products are wanted.
        diagonal: whether the pairs of a row and itself count, and otherwise are zero.
    """
    rows = tuple(variable.rows for variable in variables)
    shifts = [jax.lax.stop_gradient(_approximate_offsets(one, masses)) for one in variables]
    n = masses.shape[0]

    def block(
        index: Int[Array, " b"], rows: tuple[Array, ...], own: tuple[Array, ...]
    ) -> tuple[list[Array], list[Array]]:
        same = index[:, None] == jnp.arange(n)
        matrices = []
        for variable, part, shift, shift_of_all in zip(variables, rows, own, shifts, strict=True):
            matrix = variable.function(part, variable.rows, same)
            # Less its approximate row and column parts a matrix is small, and so is its rounding.
            matrix = matrix - shift[:, None] - shift_of_all
            matrices.append(matrix if diagonal else jnp.where(same, 0, matrix))
        means = [matmul(matrix, masses) for matrix in matrices]
        return means, [matmul(matrices[i] * matrices[j], masses) for i, j in pairs]

    flat = lambda index, *parts: block(index, parts[: len(rows)], parts[len(rows) :])
    # The budget is for a matrix or two.
    width = n * max(1, len(rows) // 2)
    means, products = map_row_blocks(flat, width, jnp.arange(n), *rows, *shifts)
    # A part g_i + g_j of either matrix changes no centred product: those of the residuals serve.
    sums = [
        CenteredSums(
            jnp.dot(masses, product - means[i] * means[j], precision="highest"), means[i], means[j]
        )
        for (i, j), product in zip(pairs, products, strict=True)
    ]
    # The means of the subtracted approximation are added back, over all j or over j ≠ i.
    left_out = 0 if diagonal else masses
    restored = [
        mean + shift * (1 - left_out) + jnp.dot(masses, shift) - left_out * shift
        for mean, shift in zip(means, shifts, strict=True)
    ]
    return PairSums(tuple(restored), tuple(sums))


def _approximate_offsets(variable: Variable, masses: Float[Array, " n"]) -> Float[Array, " n"]:
    """The f that leaves small row means of a_ij − f_i − f_j, from a few columns, exact from all.

    Gradients are stopped, as nothing depends on f except rounding.
    """
    n = masses.shape[0]
    chosen = (jnp.arange(min(n, _COLUMNS)) * n) // min(n, _COLUMNS)
    points, shares = variable.rows[chosen], masses[chosen]
    total = jnp.sum(shares)
    # If none of them has mass any other constant serves.
    shares = shares / jnp.where(total > 0, total, 1)
    of_block = lambda rows: matmul(variable.function(rows, points, None), shares)
    means = map_row_blocks(of_block, len(chosen), variable.rows)
    return means - jnp.dot(shares, means[chosen], precision="highest") / 2
