"""A test of which of two samples is nearer to a third."""

import functools

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtr
from jaxtyping import Array, Float

from divjax.core.numerics import matmul, nan_unless
from divjax.core.samples import Numbers, as_samples, centered_samples, check_distinguishable
from divjax.core.types import status_of
from divjax.discrepancy.relabelled_samples import at_least_two_rows, pooled_rows
from divjax.inference.hypothesis import TestResult
from divjax.kernels.bandwidth import MedianDistance
from divjax.kernels.contrasts import contrast_at_rows
from divjax.kernels.means import map_kernel_rows
from divjax.kernels.protocols import GramKernel, check_gram_kernel, is_radial
from divjax.kernels.radial import Gaussian

__all__ = ["relative_mmd_test"]

# A difference of means over n² pairs below this multiple of epsilon is rounding.
_ROUNDING = 4


def relative_mmd_test(
    x: Float[Numbers, "n d"],
    y: Float[Numbers, "m d"],
    z: Float[Numbers, "l d"],
    *,
    kernel: GramKernel = Gaussian(MedianDistance()),
) -> TestResult:
    """A test of whether samples y are nearer to x than samples z are, against that z are nearer.

    The hypothesis is MMD²(p, q) ≤ MMD²(p, r) for x ~ p, y ~ q, z ~ r, such as data and the samples
    of two models. A small p-value is evidence that z is nearer; exchange y and z for the contrary.
    The difference of both U-statistics, in which the terms among x cancel,

        D = E k(y, y′) − E k(z, z′) − 2 E [k(x, y) − k(x, z)],

    is asymptotically normal. With μ_y(·) the mean of k(·, y) over y, and so on, its variance is

        4 Var[μ_y(x) − μ_z(x)]/n + 4 Var[μ_y(y) − μ_x(y)]/m + 4 Var[μ_z(z) − μ_x(z)]/l,

    estimated by the samples' variances. The p-value is Φ(−D/σ).

    The level is right in the limit of large samples. It needs p ≠ q or p ≠ r: if all three are one
    distribution the limit is not normal, and the test rejects less often than its level.

    Args:
        x: the reference, at least two rows.
        y: samples of the first model, at least two.
        z: samples of the second, at least two. All three are independent of each other.
        kernel: a kernel. Its bandwidth rule, if any, is evaluated at all rows together.

    Returns:
        A `TestResult`, its statistic D/σ, with an empty `null`. NaN if no difference can be
        resolved, as among equal rows. Time O((n + m + l)²), memory a block of it.

    Raises:
        ValueError: if a sample is not a matrix of numbers or has a single row, or the numbers of
            features differ.

    Example:
        >>> import jax
        >>> x, y, z = jax.random.normal(jax.random.key(0), (3, 200, 2))
        >>> bool(relative_mmd_test(x, y + 1, z + 0.3).p_value < 0.001)
        True

    References:
        Bounliphone, Belilovsky, Blaschko, Antonoglou, Gretton 2016, eq. 8–10: both statistics'
        joint distribution, of which this is the difference, for samples of any sizes.
    """
    check_gram_kernel(kernel)
    radial = is_radial(kernel)
    # Only a kernel of differences is the same for centred samples.
    if radial:
        _, x, y, z = centered_samples(x=x, y=y, z=z)
    else:
        for name, rows in (("x", x), ("y", y), ("z", z)):
            check_distinguishable(name, rows)
        x, y, z = as_samples(x=x, y=y, z=z)
    at_least_two_rows(x=x, y=y, z=z)
    rows = pooled_rows(x, y, z, centered=radial)
    return _compare(rows, kernel, (x.shape[0], y.shape[0], z.shape[0]))


@functools.partial(jax.jit, static_argnames="sizes")
def _compare(
    rows: Float[Array, "rows d"], kernel: GramKernel, sizes: tuple[int, int, int]
) -> TestResult:
    n, m, l = sizes
    ends = n, n + m
    # The sums of the kernel over x, over y and over z, at every row.
    kernel = contrast_at_rows(kernel, rows)
    of_sample = jnp.repeat(jnp.arange(3), jnp.array(sizes), total_repeat_length=sum(sizes))
    members = jax.nn.one_hot(of_sample, 3, dtype=rows.dtype)
    without_self = lambda values, own: matmul(jnp.where(own, 0, values), members)
    sums = map_kernel_rows(without_self, kernel, rows, None)
    at_x, at_y, at_z = jnp.split(sums, ends)
    apart = at_x[:, 1] / m - at_x[:, 2] / l
    within_y, within_z = at_y[:, 1] / (m - 1), at_z[:, 2] / (l - 1)
    difference = jnp.mean(within_y) - jnp.mean(within_z) - 2 * jnp.mean(apart)
    # Half of each row's first-order influence on D (Hájek's projection), up to its sign: hence the
    # factor 4 of the variance.
    influences = apart, within_y - at_y[:, 0] / n, within_z - at_z[:, 0] / n
    variance = sum(4 * jnp.var(part, ddof=1) / part.shape[0] for part in influences)
    deviation = jnp.sqrt(variance)
    # Influences that are equal up to rounding, of rows that coincide or are all far apart for the
    # kernel, leave no deviation to divide by.
    scale = jnp.mean(jnp.abs(within_y)) + jnp.mean(jnp.abs(within_z))
    resolved = deviation > _ROUNDING * jnp.finfo(rows.dtype).eps * scale
    statistic = difference / deviation
    finite = jnp.isfinite(difference)
    p_value = nan_unless(resolved & finite, ndtr(-statistic))
    status = status_of(converged=True, resolved=resolved, finite=finite)
    statistic = nan_unless(resolved & finite, statistic)
    # The null distribution is the normal limit: no statistics are drawn from it.
    return TestResult(statistic, p_value, jnp.zeros(0, rows.dtype), status)
