"""Kernel matrices reduced by blocks of rows, and weighted means of a kernel over all pairs."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Bool, Float, PyTree

from divjax.core.numerics import matmul, nan_unless
from divjax.core.pair_reductions import SUM, Reduction, reduce_pairs
from divjax.core.pairwise import (
    DIFFERENCES_UP_TO,
    common_center,
    map_row_blocks,
    resolved_distances,
)
from divjax.core.samples import Numbers
from divjax.core.sharding import in_auto_axes
from divjax.core.simplex import mass_of_distinct_pairs
from divjax.kernels.pooled import (
    TwoSamples,
    as_measure,
    as_measures,
    living_part,
    resolved_at,
    resolved_at_rows,
    two_samples,
)
from divjax.kernels.protocols import GramKernel, Kernel, is_radial, log_values
from divjax.kernels.sums import kernel_sums

__all__ = [
    "about_origin",
    "block_values",
    "kernel_mean",
    "map_kernel_rows",
    "mean_of_pairs",
    "own_mean",
]


def map_kernel_rows(
    function: Callable[..., PyTree[Array]],
    kernel: GramKernel,
    x: Float[Array, "n d"],
    y: Float[Array, "m d"] | None,
    *rows: Array,
    columns: tuple[Array, ...] = (),
    reduction: Reduction | None = None,
    used: Bool[Array, " m"] | None = None,
    logarithm: bool = False,
) -> PyTree[Array]:
    """A function of the kernel matrix that acts on its rows, by blocks of rows if it is large.

    Args:
        function: `(values "b m", own "b m", *rows, *columns)` to a pytree of arrays of leading axis
            b. `own` marks the pairs of a row with itself, and is None between two samples.
        kernel: a kernel whose bandwidth is a number.
        x: the points of the rows.
        y: the points of the columns, or None for x itself.
        *rows: further arrays with leading axis n, of which each block gets its rows.
        columns: arrays with leading axis m.
        reduction: what makes one result of those of several blocks of columns, which devices of a
            mesh then hold one at a time. Without it the columns are never divided.
        used: which columns count. Others may be far away.
        logarithm: whether the values are log k.

    Returns:
        The pytree, with leading axis n.
    """
    alone = y is None
    points, others = about_origin(kernel, x, x if y is None else y, used)

    def of_columns(others: Float[Array, "c d"], column: Array, *columns: Array) -> Callable:
        def block(points: Float[Array, "b d"], index: Array, *rows: Array) -> PyTree[Array]:
            own = index[:, None] == column if alone else None
            values = block_values(kernel, points, others, own, logarithm)
            return function(values, own, *rows, *columns)

        return block

    # By its index a row finds the pair with itself in any block of columns.
    all_rows = points, jnp.arange(x.shape[0]), *rows
    all_columns = others, jnp.arange(others.shape[0]), *columns
    if reduction is None:
        return map_row_blocks(of_columns(*all_columns), others.shape[0], *all_rows)
    return reduce_pairs(of_columns, reduction, all_rows, all_columns)


def about_origin(
    kernel: GramKernel,
    x: Float[Array, "n d"],
    columns: Float[Array, "m d"],
    used: Bool[Array, " m"] | None,
) -> tuple[Float[Array, "n d"], Float[Array, "m d"]]:
    """Both near zero if distances are by products, whose rounding grows with their size there."""
    if not is_radial(kernel) or x.shape[1] <= DIFFERENCES_UP_TO:
        return x, columns
    center = common_center(columns, used)
    return x - center, columns - center


def block_values(
    kernel: GramKernel,
    points: Float[Array, "b d"],
    columns: Float[Array, "m d"],
    own: Bool[Array, "b m"] | None,
    logarithm: bool,
) -> Float[Array, "b m"]:
    """Values of a kernel, or their logarithms, between points about one origin.

    `own` marks pairs of a point with itself, whose distance is zero.
    """
    if not is_radial(kernel):
        values = kernel(points, columns)
        return (jnp.log(values) if logarithm else values).astype(points.dtype)
    # Infinite coordinates have neither distances nor kernel values.
    points, columns = (nan_unless(jnp.isfinite(rows), rows) for rows in (points, columns))
    squared = resolved_distances(points, columns, own)
    values = log_values(kernel, squared) if logarithm else kernel.radial(squared)[0]
    return values.astype(points.dtype)


def _sum_by_rows(
    kernel: GramKernel,
    x: Float[Array, "n d"],
    y: Float[Array, "m d"] | None,
    a: Float[Array, " n"],
    b: Float[Array, " m"] | None,
    with_own: bool,
) -> Float[Array, ""]:
    """Σ_i Σ_j a_i b_j k(x_i, y_j); for y = None of x with itself, without i = j unless asked."""
    weights = a if b is None else b

    def block(values: Array, own: Array | None, share: Array, weights: Array) -> Float[Array, " b"]:
        if own is not None and not with_own:
            values = jnp.where(own, 0, values)
        return share * matmul(values, weights)

    options: Any = {"columns": (weights,), "reduction": SUM, "used": weights != 0}
    return jnp.sum(map_kernel_rows(block, kernel, x, y, a, **options))


@functools.partial(jax.custom_jvp, nondiff_argnums=(5,))
def _radial_sum(
    kernel: Kernel,
    x: Float[Array, "n d"],
    y: Float[Array, "m d"] | None,
    a: Float[Array, " n"],
    b: Float[Array, " m"] | None,
    with_own: bool,
) -> Float[Array, ""]:
    """`_sum_by_rows`, with first derivatives in closed form.

    With ∇_x k = ψ · (x − y) that in x_i is a_i Σ_j b_j ψ_ij (x_i − y_j), which `kernel_sums` has.
    """
    return _sum_by_rows(kernel, x, y, a, b, with_own)


# Symbolic zeros: only arguments that are differentiated cost a pass over the pairs.
@functools.partial(_radial_sum.defjvp, symbolic_zeros=True)
def _(with_own: bool, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Array, Array]:
    (kernel, x, y, a, b), (of_kernel, dx, dy, da, db) = primals, tangents

    def side(points, others, share, coefficients, d_points, d_share) -> tuple[Array, Array]:
        """The sum, and its change with the points of one side and their shares."""
        # One column for the sums of k, and for those of its gradient the same, or none if points
        # are constants.
        columns = coefficients[:, None]
        moves = not isinstance(d_points, SymbolicZero)
        sums, slopes = kernel_sums(kernel, points, others, columns, columns[:, : int(moves)])
        sums = sums[:, 0].astype(points.dtype)
        # `kernel_sums` has each point with itself. Its slope there multiplies x − x = 0, so that
        # only the value is subtracted.
        if others is None and not with_own:
            sums = sums - share * kernel.radial(jnp.zeros((1, 1), x.dtype))[0][0, 0]
        change = jnp.zeros((), x.dtype)
        if moves:
            change += jnp.sum(share[:, None] * slopes[:, 0].astype(x.dtype) * d_points)
        if not isinstance(d_share, SymbolicZero):
            # At full precision: an accelerator's default would leave three digits.
            change += jnp.dot(d_share, sums, precision="highest")
        return jnp.dot(share, sums, precision="highest"), change

    if y is None:
        # The sum is symmetric: the other side changes it by as much.
        value, change = side(x, None, a, a, dx, da)
        change = 2 * change
    else:
        value, change = side(x, y, a, b, dx, da)
        # The second side takes a pass over the pairs of its own, and is often fixed data.
        if not (isinstance(dy, SymbolicZero) and isinstance(db, SymbolicZero)):
            change += side(y, x, b, a, dy, db)[1]
    return value, change + _change_with(kernel, of_kernel, x, y, a, b, with_own)


def _change_with(kernel: Kernel, tangent: Any, *args: Any) -> Float[Array, ""]:
    """The derivative in the kernel's hyper-parameters, zero at no cost if they are constants."""
    leaves, structure = jax.tree.flatten(kernel)
    changes = structure.flatten_up_to(tangent)
    # The other leaves stay constants of the sum, and are not differentiated.
    moving = [i for i, change in enumerate(changes) if not isinstance(change, SymbolicZero)]
    if not moving:
        return jnp.zeros((), args[0].dtype)

    def of_moving(values: list[Array]) -> Float[Array, ""]:
        replaced = list(leaves)
        for i, value in zip(moving, values, strict=True):
            replaced[i] = value
        return _sum_by_rows(structure.unflatten(replaced), *args)

    # By the sum itself: kernels have slopes in closed form, but no derivatives in hyper-parameters.
    primals, tangents = [leaves[i] for i in moving], [changes[i] for i in moving]
    return jax.jvp(of_moving, (primals,), (tangents,))[1]


def mean_of_pairs(
    kernel: GramKernel,
    x: Float[Array, "n d"],
    y: Float[Array, "m d"],
    a: Float[Array, " n"],
    b: Float[Array, " m"],
) -> Float[Array, ""]:
    """Σ_i Σ_j a_i b_j k(x_i, y_j), for a kernel whose bandwidth is a number."""
    total = _radial_sum if is_radial(kernel) else _sum_by_rows
    return total(kernel, x, y, a, b, True)


def own_mean(
    kernel: GramKernel, x: Float[Array, "n d"], a: Float[Array, " n"], *, debias: bool
) -> Float[Array, ""]:
    """Σ_ij a_i a_j k(x_i, x_j) for weights of sum one; `debias` leaves out the pairs i = j.

    The others have the mass 1 − Σ_i a_i², by which their sum is then divided.
    """
    total = _radial_sum if is_radial(kernel) else _sum_by_rows
    value = total(kernel, x, None, a, None, not debias)
    return value / mass_of_distinct_pairs(a) if debias else value


def kernel_mean(
    kernel: GramKernel,
    x: Float[Numbers, "n d"],
    y: Float[Numbers, "m d"] | None = None,
    a: Float[Numbers, " n"] | None = None,
    b: Float[Numbers, " m"] | None = None,
    *,
    debias: bool = False,
) -> Float[Array, ""]:
    """The mean of a kernel over all pairs, Σ_i Σ_j a_i b_j k(x_i, y_j), the part of discrepancies.

    With y it estimates E k(X, Y) without bias. Without y it is the mean over the pairs of one
    sample: with the pairs i = j the V-statistic Σ_ij a_i a_j k(x_i, x_j), or with `debias` the
    U-statistic Σ_{i≠j} a_i a_j k(x_i, x_j)/(1 − Σ_i a_i²), an unbiased estimate of E k(X, X′).

    First derivatives of a radial kernel's mean in points and weights are in closed form, and cost
    as much as one evaluation for each sample that is differentiated. Derivatives of every order
    exist. Those at coincident points are finite.

    Time O(n m d), memory one block of the budget of `divjax.core.pairwise`.

    Args:
        kernel: a kernel of `divjax.kernels`, or one's own. A bandwidth rule is evaluated at the
            rows of both samples that have weight.
        x: points.
        y: other points, or None for x itself.
        a: weights of x, non-negative, with any sum, uniform by default. Rows of weight zero are
            padding.
        b: weights of y.
        debias: whether to leave out the pairs i = j of one sample.

    Returns:
        The mean, NaN for a point with weight that is not finite, or for a U-statistic of one row
        with all of the weight.

    Raises:
        ValueError: if a sample is empty or not a matrix, the numbers of features differ, weights do
            not fit, `kernel` is not a kernel, or `debias` is set for a single row.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.kernels import Energy
        >>> x = jnp.array([[0.0], [3.0]])
        >>> -float(kernel_mean(Energy(), x)), -float(kernel_mean(Energy(), x, debias=True))
        (1.5, 3.0)

    References:
        Hoeffding 1948, section 3: U-statistics.
    """
    if y is None and b is not None:
        raise ValueError("b must be None without y; got weights.")
    alone = y is None
    # A sample by itself passes the checks of two, as both of them.
    samples = two_samples(kernel, x, x if alone else y, a, a if alone else b, debias=debias)
    return _kernel_mean(kernel, samples, debias=debias, alone=alone)


@functools.partial(jax.jit, static_argnames=("debias", "alone"))
@in_auto_axes
def _kernel_mean(
    kernel: GramKernel, samples: TwoSamples, *, debias: bool, alone: bool
) -> Float[Array, ""]:
    """`kernel_mean` after its checks; `alone` for the first sample by itself."""
    if alone:
        kernel = resolved_at_rows(kernel, living_part(samples.x, samples.a))
        value = own_mean(kernel, *as_measure(kernel, samples.x, samples.a), debias=debias)
    else:
        kernel = resolved_at(kernel, samples)
        value = mean_of_pairs(kernel, *as_measures(kernel, samples))
    return value.astype(samples.dtype)
