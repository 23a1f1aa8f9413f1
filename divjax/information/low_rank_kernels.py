"""Kernel matrices as products of narrow factors, by pivoted Cholesky decomposition."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from divjax.core.numerics import matmul
from divjax.information.pair_sums import Variable, own_values

__all__ = ["low_rank_factor"]


def low_rank_factor(variable: Variable, rank: int) -> Float[Array, "n r"]:
    """Φ with ΦΦᵀ ≈ K: K restricted to the span of its columns at `rank` pivots.

    Each pivot is the row whose diagonal entry is approximated worst. K − ΦΦᵀ is positive
    semidefinite, and its trace, the sum of these errors, falls about as fast as the sum of the
    eigenvalues beyond the rank. Time O(n rank (rank + d)), memory O(n rank).

    The factor of permuted rows is the permuted factor. For that the rows are ordered by a fixed
    direction first: the first of several worst ones would depend on their order.

    Example:
        >>> from divjax.information.pair_sums import kernel_variable
        >>> from divjax.kernels import Gaussian
        >>> x = jnp.linspace(0, 1, 50)[:, None]
        >>> factor = low_rank_factor(kernel_variable(Gaussian(bandwidth=1.0), x, None), 6)
        >>> bool(jnp.abs(factor @ factor.T - Gaussian(bandwidth=1.0)(x)).max() < 1e-5)
        True
    """
    rows, function = variable
    n, d = rows.shape
    rank = min(rank, n)
    direction = jax.random.normal(jax.random.key(0), (d,), rows.dtype)
    order = jnp.argsort(matmul(rows, direction))
    rows = rows[order]
    diagonal = own_values(Variable(rows, function))
    # Below this the rest is the rounding of the subtracted columns.
    least = 4 * jnp.finfo(rows.dtype).eps * jnp.max(diagonal)

    def add_column(step: Array, held: tuple[Array, Array]) -> tuple[Array, Array]:
        factor, rest = held
        pivot = jnp.argmax(rest)
        same = jnp.arange(n)[:, None] == pivot
        column = function(rows, rows[pivot][None], same)[:, 0] - matmul(factor, factor[pivot])
        worst = rest[pivot]
        complete = worst <= least  # false for NaN
        column = jnp.where(complete, 0, column / jnp.sqrt(jnp.where(complete, 1, worst)))
        # Exactly zero at the pivot, where rounding might leave it the worst again.
        rest = jnp.where(same[:, 0], 0, jnp.maximum(rest - column**2, 0))
        return factor.at[:, step].set(column), rest

    start = jnp.zeros((n, rank), rows.dtype), diagonal
    factor, _ = jax.lax.fori_loop(0, rank, add_column, start)
    return jnp.zeros_like(factor).at[order].set(factor)
