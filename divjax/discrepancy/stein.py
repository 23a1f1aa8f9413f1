"""The kernel Stein discrepancy: how far a sample is from a density known up to a constant."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from divjax.core.checks import (
    check_callable,
    check_count,
    check_flag,
    check_provides,
    check_scalar_output,
)
from divjax.core.numerics import at_least_single, matmul, nan_unless
from divjax.core.pairwise import (
    about_common_center,
    common_center,
    differences_product,
    living_rows,
    map_row_blocks,
    resolved_distances,
)
from divjax.core.samples import Numbers, as_samples, as_weights, centered_samples
from divjax.core.simplex import mass_of_distinct_pairs, shares_of, with_finite_padding
from divjax.core.types import Estimate, normal_estimate
from divjax.kernels.pooled import resolved_at_rows
from divjax.kernels.protocols import Kernel, check_kernel
from divjax.kernels.radial import InverseMultiquadric

__all__ = [
    "SteinPoints",
    "check_stein_kernel",
    "kernel_stein",
    "kernel_stein_blocks",
    "stein_matrix",
    "stein_points",
    "stein_potentials",
]

# log π of a point, or its gradient there.
Density = Callable[..., Array]


# Rows of weight zero that are so many times farther off than all others are replaced.
_REACH = 8


class SteinPoints(NamedTuple):
    """Points about an origin, as `resolved_distances` takes them, and the target's scores there.

    Attributes:
        x: the points.
        scores: s(x) = ∇ log π(x).
    """

    x: Float[Array, "n d"]
    scores: Float[Array, "n d"]


def stein_points(x: Float[Array, "n d"], scores: Float[Array, "n d"]) -> SteinPoints:
    """The points with their scores, in at least single precision, about their centre if need be."""
    dtype = at_least_single(x.dtype)
    (points,) = about_common_center(x.astype(dtype))
    return SteinPoints(points, scores.astype(dtype))


def check_stein_kernel(kernel: object) -> None:
    """Raise `ValueError` for a kernel without a mixed second derivative at coincident points."""
    check_kernel(kernel)
    hint = "twice differentiable where points coincide: Gaussian, Matern or InverseMultiquadric"
    check_provides("kernel", kernel, ("stein_trace",), hint)


def kernel_stein(
    x: Float[Numbers, "n d"],
    *,
    log_prob: Density | None = None,
    score: Density | None = None,
    weights: Float[Numbers, " n"] | None = None,
    kernel: Kernel = InverseMultiquadric(),
    debias: bool = False,
) -> Float[Array, ""]:
    """The squared kernel Stein discrepancy of a weighted sample to a density π.

    KSD² = Σ_ij a_i a_j u(x_i, x_j) with, for s = ∇ log π and ∇_x k = ψ · (x − y),

        u(x, y) = k s(x)·s(y) + ψ (x − y)·[s(y) − s(x)] + Σ_l ∂²k/∂x_l∂y_l.

    Needs π up to a constant only. The default V-statistic is exact for the empirical measure, hence
    never negative up to rounding, and biased upwards by O(1/n) as an estimate for the distribution
    that the sample is drawn from. Without the terms i = j, divided by 1 − Σ_i a_i², it is the
    U-statistic, unbiased for independent rows and possibly negative. O(n²) time, by blocks of rows:
    the n × n matrix is never stored. `kernel_stein_blocks` takes O(n).

    Args:
        x: the sample. Kernel values use its differences, in float64 for NumPy's float64 before JAX
            rounds them. The scores are evaluated at the rounded points.
        log_prob: takes one point, of shape (d,), and returns log π up to a constant.
        score: takes one point and returns s, of shape (d,), in place of `log_prob`.
        weights: the rows' weights, non-negative, with any sum; equal by default. Rows of weight
            zero may hold anything.
        kernel: `kernels.Gaussian`, `InverseMultiquadric`, `Matern` of smoothness 1.5 or 2.5, or
            another with `stein_trace`. A bandwidth rule is evaluated at x.
        debias: whether to leave out the terms i = j.

    Returns:
        KSD², not its root. NaN if log π is not finite at a row with weight: outside of its support
        a density has no score.

    Raises:
        ValueError: if x is not a matrix, not exactly one of `log_prob` and `score` is given, the
            one does not return a scalar or the other a vector like x_i, the kernel has no mixed
            second derivative at coincident points, `debias` is set for a single row, or concrete
            weights are invalid. Invalid traced ones give NaN.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.kernels import Gaussian
        >>> at_the_mode = jnp.zeros((1, 2))  # s = 0 there: the trace d/σ² remains
        >>> normal = lambda x: -0.5 * jnp.sum(x**2)
        >>> float(kernel_stein(at_the_mode, log_prob=normal, kernel=Gaussian(bandwidth=1.0)))
        2.0
        >>> float(kernel_stein(at_the_mode, score=jnp.negative, kernel=Gaussian(bandwidth=1.0)))
        2.0

    References:
        Liu, Lee, Jordan 2016, theorem 3.6; Chwialkowski, Strathmann, Gretton 2016, theorem 2.1;
        Gorham, Mackey 2017, for the inverse multiquadric kernel.
    """
    check_flag(debias=debias)
    check_stein_kernel(kernel)
    # Centred rows keep distances accurate. Scores need the points themselves.
    _, centered = centered_samples({"x": weights}, x=x)
    (x,) = as_samples(x=x)
    n = x.shape[0]
    if debias and n == 1:
        raise ValueError("x must have at least two rows to be unbiased; got 1.")
    dtype = at_least_single(x.dtype)
    a = jnp.full(n, 1 / n, dtype) if weights is None else as_weights("weights", weights, n, dtype)
    # Rows of weight zero may hold any value: others replace them, at weight zero.
    points, centered = _in_place_of_padding(a, x, centered)
    scores = with_finite_padding(scores_at(points, log_prob, score), a)
    resolved = resolved_at_rows(kernel, centered)
    return _kernel_stein(centered, scores, a, resolved, debias).astype(x.dtype)


@jax.jit
def _in_place_of_padding(
    weights: Float[Array, " n"], x: Float[Array, "n d"], centered: Float[Array, "n d"]
) -> tuple[Float[Array, "n d"], Float[Array, "n d"]]:
    """The rows and the centred ones, with others in place of those of weight zero far from all.

    A row of weight zero near the others stays: the derivative in its weight is its own.
    """
    used = weights != 0
    sizes = jnp.max(jnp.abs(centered - common_center(centered, used)), axis=1)
    # False for NaN.
    near = sizes <= _REACH * jnp.max(jnp.where(used, sizes, 0))
    keep = (used | near)[:, None]
    replaced = [jnp.where(keep, rows, living_rows(rows, weights)) for rows in (x, centered)]
    return replaced[0], replaced[1]


def scores_at(
    x: Float[Array, "n d"], log_prob: Density | None, score: Density | None
) -> Float[Array, "n d"]:
    """The target's scores at each row, NaN where log π is not finite.

    Outside the support log π is −∞, a constant: its derivative is zero, and no score.

    Raises:
        ValueError: unless exactly one of both functions is given, and `log_prob` returns a scalar,
            or `score` a vector like a row.
    """
    if log_prob is not None and score is None:
        check_scalar_output("log_prob", log_prob, x[0])
        # The value comes with the gradient, and shows where there is no density.
        log_densities, scores = jax.vmap(jax.value_and_grad(log_prob))(x)
        return nan_unless(jnp.isfinite(log_densities)[:, None], scores)
    if score is None or log_prob is not None:
        given = "neither" if score is None else "both"
        raise ValueError(f"log_prob or score must be given, one of them; got {given}.")
    check_callable(score=score)
    shape = jax.eval_shape(score, x[0]).shape
    if shape != x.shape[1:]:
        raise ValueError(f"score must return a vector of shape {x.shape[1:]}; got shape {shape}.")
    return jax.vmap(score)(x)


def stein_matrix(
    kernel: Kernel, rows: SteinPoints, columns: SteinPoints, same: Bool[Array, "r c"]
) -> Float[Array, "r c"]:
    """U at all pairs of rows and columns; `same` marks the pairs of a point with itself."""
    squared = resolved_distances(rows.x, columns.x, same)
    value, slope = kernel.radial(squared)
    # (x − y)·[s(y) − s(x)] by products of matrices: no array of n × m × d.
    turn = -differences_product(rows.x, columns.x, rows.scores, columns.scores, same)
    products = matmul(rows.scores, columns.scores.T)
    trace = kernel.stein_trace(squared, rows.x.shape[1])  # pyright: ignore[reportAttributeAccessIssue]
    return value * products + slope * turn + trace


def stein_potentials(
    kernel: Kernel,
    rows: SteinPoints,
    points: SteinPoints,
    weights: Float[Array, " n"],
    *,
    debias: bool = False,
) -> Float[Array, " n"]:
    """Σ_j a_j u(x_i, x_j) for each row, where row i is point i; without j = i to debias."""
    index = jnp.arange(points.x.shape[0])

    def block(place: Int[Array, " b"], *rows: Array) -> Float[Array, " b"]:
        same = place[:, None] == index
        stein = stein_matrix(kernel, SteinPoints(*rows), points, same)
        if debias:
            stein = jnp.where(same, 0, stein)
        return matmul(stein, weights)

    return map_row_blocks(block, index.shape[0], index, *rows)


@functools.partial(jax.jit, static_argnames="debias")
def _kernel_stein(
    x: Float[Array, "n d"],
    scores: Float[Array, "n d"],
    weights: Float[Array, " n"],
    kernel: Kernel,
    debias: bool,
) -> Float[Array, ""]:
    a = shares_of(weights)
    points = stein_points(x, scores)
    total = jnp.sum(a * stein_potentials(kernel, points, points, a, debias=debias))
    # The remaining masses of the U-statistic sum to Σ_{i≠j} a_i a_j = 1 − Σ_i a_i².
    return total / mass_of_distinct_pairs(a) if debias else total


def kernel_stein_blocks(
    x: Float[Numbers, "n d"],
    *,
    log_prob: Density | None = None,
    score: Density | None = None,
    kernel: Kernel = InverseMultiquadric(),
    block_size: int = 2,
    confidence_level: ArrayLike = 0.95,
) -> Estimate:
    """An unbiased estimate of the squared kernel Stein discrepancy in linear time.

    Consecutive rows form n/B blocks of B. The estimate is the mean of the blocks' U-statistics,
    which are independent for independent rows: their spread gives the standard error. With B = 2
    it is the linear estimate. A larger block costs B times as many pairs, and lowers the variance.
    Rows that fill no block are left out.

    Args:
        x: a sample, in random order.
        log_prob: takes one point and returns log π up to a constant.
        score: takes one point and returns ∇ log π, in place of `log_prob`.
        kernel: as for `kernel_stein`.
        block_size: B, at least 2.
        confidence_level: of the interval.

    Returns:
        An `Estimate` of KSD² for the distribution that the rows are drawn from, its effective
        sample size the number of blocks. Unbiased for a kernel whose bandwidth is a number; a rule
        is evaluated at all rows. NaN if log π is not finite at a row. Memory O(n B).

    Raises:
        ValueError: as `kernel_stein`, and if there are fewer than two blocks.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> x = jax.random.normal(jax.random.key(0), (1000, 2))
        >>> normal = lambda z: -0.5 * jnp.sum(z**2)
        >>> estimate = kernel_stein_blocks(x, log_prob=normal, block_size=20)
        >>> bool(jnp.abs(estimate.value) < 3 * estimate.std_error)  # zero, as x is from the target
        True

    References:
        Liu, Lee, Jordan 2016, section 4 and eq. 17 (linear); Zaremba, Gretton, Blaschko 2013:
        blocks.
    """
    check_count(2, block_size=block_size)
    check_stein_kernel(kernel)
    _, centered = centered_samples(x=x)
    (x,) = as_samples(x=x)
    # The rows after the last whole block are left out: blocks of one size have one variance.
    num_blocks = x.shape[0] // block_size
    if num_blocks < 2:
        raise ValueError(
            f"x must have two blocks of {block_size} rows at least for a standard error; "
            f"got {x.shape[0]} rows."
        )
    resolved = resolved_at_rows(kernel, centered)
    scores = scores_at(x, log_prob, score)
    value, std_error = _of_blocks(centered, scores, resolved, num_blocks, block_size)
    value, std_error = value.astype(x.dtype), std_error.astype(x.dtype)
    return normal_estimate(value, std_error, num_blocks, confidence_level=confidence_level)


@functools.partial(jax.jit, static_argnames=("num_blocks", "size"))
def _of_blocks(
    x: Float[Array, "n d"],
    scores: Float[Array, "n d"],
    kernel: Kernel,
    num_blocks: int,
    size: int,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    points = stein_points(x, scores)
    # "num_blocks size d": consecutive rows, which are independent of those of other blocks.
    blocks = (leaf[: num_blocks * size].reshape(num_blocks, size, -1) for leaf in points)
    same = jnp.eye(size, dtype=bool)

    def unbiased(x: Float[Array, "s d"], scores: Float[Array, "s d"]) -> Float[Array, ""]:
        block = SteinPoints(x, scores)
        stein = stein_matrix(kernel, block, block, same)
        return jnp.sum(jnp.where(same, 0, stein)) / (size * (size - 1))

    found = map_row_blocks(jax.vmap(unbiased), size * size, *blocks)
    return jnp.mean(found), jnp.std(found, ddof=1) / math.sqrt(num_blocks)
