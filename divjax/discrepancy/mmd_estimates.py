"""The population's MMD² with a standard error: by all pairs, and by blocks of rows."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from divjax.core.checks import check_count, check_probability
from divjax.core.numerics import at_least_single, matmul, nan_unless
from divjax.core.pairwise import map_row_blocks
from divjax.core.samples import Numbers
from divjax.core.types import Estimate, normal_estimate
from divjax.discrepancy.kernel_means import squared_discrepancy
from divjax.kernels.bandwidth import MedianDistance
from divjax.kernels.contrasts import contrast_at
from divjax.kernels.means import map_kernel_rows
from divjax.kernels.pooled import TwoMeasures, TwoSamples, as_measures, two_samples
from divjax.kernels.protocols import GramKernel
from divjax.kernels.radial import Gaussian

__all__ = ["mmd_block", "mmd_estimate"]

# Fewer rows than this leave no degree of freedom to a doubly centred matrix without its diagonal.
_FEWEST_ROWS = 4


def mmd_estimate(
    x: Float[Numbers, "n d"],
    y: Float[Numbers, "m d"],
    *,
    kernel: GramKernel = Gaussian(MedianDistance()),
    confidence_level: ArrayLike = 0.95,
) -> Estimate:
    """The population's MMD² by the U-statistic of all pairs, with its standard error.

    The value is `mmd(…, debias=True)`. By Hoeffding's decomposition its variance is exactly

        4 var w(X)/n + 4 var w(Y)/m + 2 E k̃_x²/(n(n − 1)) + 2 E k̃_y²/(m(m − 1)) + 4 E k̃_xy²/(nm),

    with the witness w and the kernel k̃ that is centred in both arguments. Each term is estimated
    without bias, and of the sum of the first two the positive part is taken. If p = q these vanish
    and the others remain, of order 1/n². That positive part then makes the standard error about a
    fifth too large. The U-statistic is nearly normal if p differs from q. If p = q it is a mixture
    of χ² variables, skewed to the right, and the interval is no test: use a permutation test.

    Two passes over the pairs, time O((n + m)² d), memory one block of the budget of
    `divjax.core.pairwise`.

    Args:
        x: independent samples of p, at least 4.
        y: independent samples of q, at least 4.
        kernel: a kernel of `divjax.kernels`, or one's own. A bandwidth rule is evaluated at both
            samples together, and the standard error is that at a fixed bandwidth.
        confidence_level: the level of the confidence interval.

    Returns:
        An `Estimate`. Its effective sample size is nm/(n + m). The standard error has no
        derivative. NaN for a row that is not finite.

    Raises:
        ValueError: if a sample has fewer than 4 rows or is not a matrix, the numbers of features
            differ, `kernel` is not a kernel, or the level is not in (0, 1).

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from divjax.kernels import Gaussian
        >>> x, y = jax.random.normal(jax.random.key(0), (2, 500, 1))
        >>> estimate = mmd_estimate(x, y + 1, kernel=Gaussian(1.0))
        >>> exact = 2 * (1 - jnp.exp(-1 / 6)) / jnp.sqrt(3.0)  # between these Gaussians
        >>> bool(abs(estimate.value - exact) < 3 * estimate.std_error)
        True

    References:
        Hoeffding 1948, eq. 5.13. Bounliphone, Belilovsky, Blaschko, Antonoglou, Gretton 2016,
        eq. 5: the first two terms. Sutherland, Deka 2019: all terms, unbiased.
    """
    samples = two_samples(kernel, x, y)
    for name, rows in (("x", samples.x), ("y", samples.y)):
        if rows.shape[0] < _FEWEST_ROWS:
            raise ValueError(
                f"{name} must have at least {_FEWEST_ROWS} rows for a standard error; "
                f"got {rows.shape[0]}."
            )
    check_probability(confidence_level=confidence_level)
    return _mmd_estimate(kernel, samples, confidence_level)


@jax.jit
def _mmd_estimate(kernel: GramKernel, samples: TwoSamples, confidence_level: ArrayLike) -> Estimate:
    """`mmd_estimate` after its checks."""
    kernel = contrast_at(kernel, samples)
    x, y, *_ = as_measures(kernel, samples)
    points, n, m = jnp.concatenate([x, y]), x.shape[0], y.shape[0]
    # The sample of each row, as columns of indicators.
    groups = jax.nn.one_hot((jnp.arange(n + m) >= n).astype(int), 2, dtype=x.dtype)
    others = lambda values, own: matmul(jnp.where(own, 0, values), groups)
    # Row sums of one pass over the pooled rows: their means make the value, their spread the
    # variance's first terms.
    sums = _Sums(map_kernel_rows(others, kernel, points, None), n, m)
    # Only the value is differentiated: a standard error's derivative would take further passes.
    squares = jax.lax.stop_gradient(_centred_squares(kernel, points, groups, sums))
    variance = jax.lax.stop_gradient(_variance(sums, squares))
    value = sums.mean_xx + sums.mean_yy - 2 * sums.mean_xy
    level = jnp.asarray(confidence_level, x.dtype)
    # A variance of σ² (1/n + 1/m), as of a difference of means, is that of nm/(n + m) rows.
    estimate = normal_estimate(value, jnp.sqrt(variance), n * m / (n + m), (), level)
    return jax.tree.map(lambda leaf: leaf.astype(samples.dtype), estimate)


def _product(n: int, m: int) -> float:
    """The number of pairs, which may exceed the integers of 32 bits."""
    return float(n * m)


class _Sums(NamedTuple):
    """The sums of each row of the kernel matrix of both samples, without the pairs i = j.

    Attributes:
        of_rows: over the columns of x, and over those of y.
        n: the number of rows of x.
        m: the number of rows of y.
    """

    of_rows: Float[Array, "k 2"]
    n: int
    m: int

    @property
    def mean_xx(self) -> Float[Array, ""]:
        """The mean over distinct pairs of x."""
        return jnp.sum(self.of_rows[: self.n, 0]) / _product(self.n, self.n - 1)

    @property
    def mean_yy(self) -> Float[Array, ""]:
        """The mean over distinct pairs of y."""
        return jnp.sum(self.of_rows[self.n :, 1]) / _product(self.m, self.m - 1)

    @property
    def mean_xy(self) -> Float[Array, ""]:
        """The mean over pairs between x and y."""
        return jnp.sum(self.of_rows[: self.n, 1]) / _product(self.n, self.m)


def _centred_squares(
    kernel: GramKernel,
    points: Float[Array, "k d"],
    groups: Float[Array, "k 2"],
    sums: _Sums,
) -> Float[Array, "2 2"]:
    """Unbiased estimates of E k̃², of the kernel centred in both arguments, for pairs of samples.

    Within a sample, without its diagonal, the matrix is U-centred (Székely and Rizzo); between two
    samples it is doubly centred. This takes a second pass: for a wide kernel the sum of squares
    less that of the squared means would cancel.
    """
    n, m = sums.n, sums.m
    # The part of row i that is subtracted from k_ij, by the sample of the column. The matrix of all
    # rows is symmetric: columns have the same parts.
    within, dtype = groups > 0, points.dtype
    sizes = jnp.where(within, jnp.array([n - 2, m - 2], dtype), jnp.array([n, m], dtype))
    of_rows = sums.of_rows / sizes
    # U-centring adds the total over (n − 1)(n − 2): the mean over n (n − 1) pairs times n/(n − 2).
    constants = jnp.array([[n / (n - 2), 1.0], [1.0, m / (m - 2)]], dtype) * jnp.stack(
        [jnp.stack([sums.mean_xx, sums.mean_xy]), jnp.stack([sums.mean_xy, sums.mean_yy])]
    )
    # Column j's part by the sample of the row, less the constant of both.
    of_columns = of_rows.T - matmul(constants, groups.T)

    def squares(
        values: Array, own: Array, row: Float[Array, "b 2"], group: Float[Array, "b 2"]
    ) -> Float[Array, "b 2"]:
        rest = values - matmul(row, groups.T) - matmul(group, of_columns)
        return matmul(jnp.where(own, 0, jnp.square(rest)), groups)

    by_rows = map_kernel_rows(squares, kernel, points, None, of_rows, groups)
    between = _product(n - 1, m - 1)
    # The number of pairs less the constraints of centring, over which the mean of squares is
    # unbiased: n (n − 3) within a sample, (n − 1)(m − 1) between two.
    freedom = jnp.array([[_product(n, n - 3), between], [between, _product(m, m - 3)]], dtype)
    return matmul(groups.T, by_rows) / freedom


def _variance(sums: _Sums, squares: Float[Array, "2 2"]) -> Float[Array, ""]:
    """The variance of the U-statistic, by the terms of Hoeffding's decomposition."""
    n, m, of_rows = sums.n, sums.m, sums.of_rows
    (of_xx, of_xy), (_, of_yy) = squares
    # The witness at each row, up to a constant. Divided by n − 2, as the row's own part is in the
    # mean of the n − 1 others; its noise adds the terms that are subtracted.
    at_x = of_rows[:n, 0] / (n - 2) - of_rows[:n, 1] / m
    at_y = of_rows[n:, 1] / (m - 2) - of_rows[n:, 0] / n
    first_x = jnp.var(at_x, ddof=1) - of_xx / (n - 2) - of_xy / m
    first_y = jnp.var(at_y, ddof=1) - of_yy / (m - 2) - of_xy / n
    first = jnp.maximum(4 * first_x / n + 4 * first_y / m, 0)
    second = 2 * of_xx / _product(n, n - 1) + 2 * of_yy / _product(m, m - 1)
    return first + second + 4 * of_xy / _product(n, m)


def mmd_block(
    x: Float[Numbers, "n d"],
    y: Float[Numbers, "m d"],
    *,
    kernel: GramKernel = Gaussian(MedianDistance()),
    block_size: int | None = None,
    confidence_level: ArrayLike = 0.95,
) -> Estimate:
    """The population's MMD² by the mean of U-statistics of blocks of rows, in less than n² time.

    Blocks are independent, so the mean is unbiased, nearly normal even if p = q, and its standard
    error is that of a mean. The variance is about n/B times that of all pairs for blocks of B rows
    if p = q. With B = 2 time is linear, as in the estimator of Gretton et al. (lemma 14), which
    leaves out the pairs of rows of one index between the samples; they are independent too, and are
    used here. B = √n makes blocks as many as they are large.

    Args:
        x: independent samples of p, in random order.
        y: independent samples of q, in random order.
        kernel: a kernel of `divjax.kernels`, or one's own. A bandwidth rule is evaluated at both
            samples together, in O((n + m)²) time for `MedianDistance` and O(n + m) for `Mean`.
        block_size: B, a static integer of at least 2, ⌊√min(n, m)⌋ by default. Rows beyond the last
            whole block are left out.
        confidence_level: the level of the confidence interval.

    Returns:
        An `Estimate`, whose effective sample size is the number of blocks. NaN for a row that is
        not finite.

    Raises:
        ValueError: if a sample is empty or not a matrix, the numbers of features differ, there are
            fewer than two blocks, `kernel` is not a kernel, or the level is not in (0, 1).

    Example:
        >>> import jax
        >>> from divjax.kernels import Gaussian
        >>> x, y = jax.random.normal(jax.random.key(0), (2, 400, 1))
        >>> estimate = mmd_block(x, y + 1, kernel=Gaussian(1.0))
        >>> bool(estimate.interval.lower > 0), float(estimate.effective_sample_size)
        (True, 20.0)

    References:
        Zaremba, Gretton, Blaschko 2013, section 3. Gretton, Borgwardt, Rasch, Schölkopf, Smola
        2012, lemma 14.
    """
    samples = two_samples(kernel, x, y)
    rows = min(samples.x.shape[0], samples.y.shape[0])
    if block_size is None:
        block_size = max(2, math.isqrt(rows))
    check_count(2, block_size=block_size)
    if rows < 2 * block_size:
        raise ValueError(
            f"block_size must leave two blocks of the {rows} rows for a standard error; "
            f"got {block_size}."
        )
    check_probability(confidence_level=confidence_level)
    return _mmd_block(kernel, samples, confidence_level, block_size=block_size)


@functools.partial(jax.jit, static_argnames="block_size")
def _mmd_block(
    kernel: GramKernel, samples: TwoSamples, confidence_level: ArrayLike, *, block_size: int
) -> Estimate:
    """`mmd_block` after its checks."""
    kernel = contrast_at(kernel, samples)
    x, y, *_ = as_measures(kernel, samples)
    count = min(x.shape[0], y.shape[0]) // block_size
    share = jnp.full(block_size, 1 / block_size, x.dtype)

    def of_block(x: Float[Array, "b d"], y: Float[Array, "b d"]) -> Float[Array, ""]:
        return squared_discrepancy(kernel, TwoMeasures(x, y, share, share), debias=True)

    # "count block_size d": consecutive rows, of which x and y have as many.
    blocks = (
        rows[: count * block_size].reshape(count, block_size, rows.shape[1]) for rows in (x, y)
    )
    # A block takes three matrices: within x, within y and between them.
    values = map_row_blocks(jax.vmap(of_block), 3 * block_size**2, *blocks)
    std_error = jax.lax.stop_gradient(jnp.std(values, ddof=1)) / math.sqrt(count)
    level = jnp.asarray(confidence_level, at_least_single(x.dtype))
    # Rows beyond the last block do not count, but a number that is not finite there is reported.
    finite = jnp.isfinite(x).all() & jnp.isfinite(y).all()
    value = nan_unless(finite, jnp.mean(values))
    estimate = normal_estimate(value, std_error, count, (), level)
    return jax.tree.map(lambda leaf: leaf.astype(samples.dtype), estimate)
