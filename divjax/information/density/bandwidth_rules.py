"""Bandwidths of a kernel estimate from the samples: for a normal density, or by cross-validation.

A rule is called with the samples, their weights and the kernel, and returns a bandwidth for each
feature. Gradients are stopped at bandwidths.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from divjax.core.checks import check_positive
from divjax.core.numerics import at_least_single, matmul, nan_unless, safe_log
from divjax.core.pairwise import centered_distances, common_center, living_rows, map_row_blocks
from divjax.core.pytrees import pytree
from divjax.core.samples import Numbers, as_weights, centered_samples
from divjax.core.simplex import mass_of_distinct_pairs, shares_of
from divjax.information.density.smoothing_kernels import GAUSSIAN, GaussianKernel, SmoothingKernel

__all__ = ["LeastSquaresCrossValidation", "LikelihoodCrossValidation", "Scott", "Silverman"]

# The scales of a cross-validation's first search, and the steps of the second one, each of which
# narrows the bracket around the minimum by the golden section.
_NUM_SCALES, _NUM_SECTIONS = 16, 14
_GOLDEN = (math.sqrt(5) - 1) / 2


def _arguments(
    x: Numbers, weights: Numbers | None
) -> tuple[Float[Array, "n d"], Float[Array, " n"]]:
    """The samples and their shares, without gradients."""
    _, x = centered_samples({"x": weights}, x=x)
    n, wide = x.shape[0], at_least_single(x.dtype)
    if weights is None:
        shares = jnp.full(n, 1 / n, wide)
    else:
        weights = as_weights("weights", weights, n, x.dtype).astype(wide)
        shares = shares_of(weights)
    return jax.lax.stop_gradient((x, shares))


def _normal_reference(
    x: Float[Array, "n d"],
    shares: Float[Array, " n"],
    kernel: SmoothingKernel,
    constant: float,
) -> Float[Array, " d"]:
    """σ_j (constant/n)^(1/(d + 4)) for a Gaussian kernel, at equal smoothing for others."""
    d = x.shape[1]
    x = living_rows(x.astype(shares.dtype), shares)
    deviations = x - common_center(x)
    mean = matmul(shares, deviations)
    distinct = mass_of_distinct_pairs(shares)
    variances = matmul(shares, jnp.square(deviations - mean)) / distinct
    # The equivalent number of equally weighted samples.
    size = 1 / jnp.sum(jnp.square(shares))
    # The h of least asymptotic error is ∝ (∫K²/(∫u₁²K)²)^(1/(d + 4)), which for the normal density
    # is (4π)^(−d/2).
    ratio = kernel.log_roughness(d) - 2 * math.log(kernel.variance(d))
    ratio = ratio + 0.5 * d * math.log(4 * math.pi)
    factor = jnp.exp((math.log(constant) + ratio - jnp.log(size)) / (d + 4))
    deviation = nan_unless(jnp.isfinite(variances) & (variances > 0), jnp.sqrt(variances))
    return deviation * factor


@pytree
class Scott:
    """Scott's rule, h_j = σ_j n^(−1/(d + 4)), with σ_j the standard deviation of feature j.

    `Silverman`'s with the constant set to one. With weights, n is their effective sample size. For
    another kernel than the Gaussian one h is multiplied by the ratio of the asymptotically optimal
    bandwidths. SciPy's `gaussian_kde` has the same factor, on the full covariance matrix.

    Returns NaN for a constant feature or a single sample. In the samples' unit.

    Example:
        >>> import jax.numpy as jnp
        >>> Scott()(jnp.array([[-1.0], [0.0], [1.0]])).round(4).item()  # 3^(−1/5)
        0.8027

    References:
        Scott 1992, equation 6.44.
    """

    def __call__(
        self,
        x: Float[Numbers, "n d"],
        weights: Float[Numbers, " n"] | None = None,
        kernel: SmoothingKernel = GAUSSIAN,
    ) -> Float[Array, " d"]:
        """The bandwidth of each feature."""
        return _reference(x, weights, kernel, 1.0)


@pytree
class Silverman:
    """Silverman's rule, h_j = σ_j (4/((d + 2) n))^(1/(d + 4)).

    It minimises the asymptotic mean integrated squared error for a normal density. Densities of
    several modes or heavy tails are smoothed too much. With weights, n is their effective sample
    size. For another kernel than the Gaussian one h is multiplied by the ratio of the
    asymptotically optimal bandwidths.

    Returns NaN for a constant feature or a single sample. In the samples' unit.

    Example:
        >>> import jax.numpy as jnp
        >>> Silverman()(jnp.array([[-1.0], [0.0], [1.0]])).round(4).item()  # (4/9)^(1/5)
        0.8503

    References:
        Silverman 1986, equations 4.14 and 4.15 and table 4.1: for each kernel.
    """

    def __call__(
        self,
        x: Float[Numbers, "n d"],
        weights: Float[Numbers, " n"] | None = None,
        kernel: SmoothingKernel = GAUSSIAN,
    ) -> Float[Array, " d"]:
        """The bandwidth of each feature."""
        return _reference(x, weights, kernel, None)


def _reference(
    x: Numbers, weights: Numbers | None, kernel: SmoothingKernel, constant: float | None
) -> Float[Array, " d"]:
    """The normal reference rule, by default with Silverman's constant."""
    x, shares = _arguments(x, weights)
    constant = 4 / (x.shape[1] + 2) if constant is None else constant
    return _compiled_reference(x, shares, kernel, constant=constant).astype(x.dtype)


_compiled_reference = jax.jit(_normal_reference, static_argnames="constant")


@pytree
class _CrossValidation:
    """A bandwidth c · h₀ whose factor c minimises a criterion, h₀ being Scott's.

    Attributes:
        smallest: the least c that is tried.
        largest: the largest c that is tried.
    """

    smallest: ArrayLike = 1e-2
    largest: ArrayLike = 4.0

    def __post_init__(self):
        check_positive(smallest=self.smallest, largest=self.largest)


@pytree
class LikelihoodCrossValidation(_CrossValidation):
    """The bandwidths c · h₀ that maximise the likelihood of each sample given the others.

    Σ_i w_i log p̂_{−i}(x_i), where p̂_{−i} leaves x_i out and h₀ is `Scott`'s. The expectation is
    −KL(p‖p̂) up to a constant: it minimises the Kullback–Leibler risk. One row far from all others
    asks for a large bandwidth, and copies of rows for one of zero.

    c is searched on a logarithmic grid, then by the golden section to about a thousandth: thirty
    passes over all pairs. In the samples' unit. NaN if the best c is an end of the range, as with
    copied rows, and where `Scott` is NaN.

    Attributes:
        smallest: the least c that is tried.
        largest: the largest c that is tried.

    Raises:
        ValueError: if an end is a Python number that is not positive.

    Example:
        >>> import jax
        >>> x = jax.random.normal(jax.random.key(0), (200, 2))
        >>> ratio = LikelihoodCrossValidation()(x) / Scott()(x)
        >>> bool((ratio > 0.5).all() & (ratio < 1.5).all())  # Scott's is best for normal samples
        True

    References:
        Duin 1976; Habbema, Hermans, van den Broek 1974.
    """

    def __call__(
        self,
        x: Float[Numbers, "n d"],
        weights: Float[Numbers, " n"] | None = None,
        kernel: SmoothingKernel = GAUSSIAN,
    ) -> Float[Array, " d"]:
        """The bandwidth of each feature."""
        given, shares = _arguments(x, weights)
        found = _search(given, shares, kernel, self.smallest, self.largest, of=_deviance)
        return found.astype(given.dtype)


@pytree
class LeastSquaresCrossValidation(_CrossValidation):
    """The bandwidths c · h₀ of least estimated squared error ∫ (p̂ − p)², for a Gaussian kernel.

    ∫ p̂² − 2 Σ_i w_i p̂_{−i}(x_i), where p̂_{−i} leaves x_i out and h₀ is `Scott`'s, is an unbiased
    estimate of ∫ (p̂ − p)² − ∫ p². Its minimum varies more than other rules'.

    c is searched on a logarithmic grid, then by the golden section to about a thousandth: thirty
    passes over all pairs. In the samples' unit. NaN if the best c is an end of the range, as with
    copied rows, and where `Scott` is NaN.

    Attributes:
        smallest: the least c that is tried.
        largest: the largest c that is tried.

    Raises:
        ValueError: if an end is a Python number that is not positive, or the kernel is not
            Gaussian.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> x = jax.random.normal(jax.random.key(0), (200, 1))
        >>> two_modes = x + 10 * (jnp.arange(200)[:, None] % 2)
        >>> rule = LeastSquaresCrossValidation()
        >>> bool(rule(two_modes)[0] < 0.5 * Scott()(two_modes)[0])
        True

    References:
        Rudemo 1982; Bowman 1984.
    """

    def __call__(
        self,
        x: Float[Numbers, "n d"],
        weights: Float[Numbers, " n"] | None = None,
        kernel: SmoothingKernel = GAUSSIAN,
    ) -> Float[Array, " d"]:
        """The bandwidth of each feature."""
        # The integral of the squared estimate needs the kernel's convolution with itself.
        if not isinstance(kernel, GaussianKernel):
            raise ValueError(
                "kernel must be density.GaussianKernel() for least squares; got "
                f"{type(kernel).__name__}. density.LikelihoodCrossValidation() takes any."
            )
        given, shares = _arguments(x, weights)
        found = _search(given, shares, kernel, self.smallest, self.largest, of=_squared_error)
        return found.astype(given.dtype)


def _without_itself(
    reduce: Callable[[Float[Array, "b n"], Array], Array], x: Float[Array, "n d"]
) -> Float[Array, " n"]:
    """`reduce(squared, index)` by blocks of rows, each at an infinite distance of itself."""

    def block(rows: Float[Array, "b d"], index: Array) -> Array:
        diagonal = index[:, None] == jnp.arange(x.shape[0])
        return reduce(jnp.where(diagonal, jnp.inf, centered_distances(rows, x)), index)

    return map_row_blocks(block, x.shape[0], x, jnp.arange(x.shape[0]))


def _deviance(
    x: Float[Array, "n d"],
    shares: Float[Array, " n"],
    kernel: SmoothingKernel,
    scale: Float[Array, ""],
) -> Float[Array, ""]:
    """−Σ_i w_i log Σ_{j≠i} w_j K((x_i − x_j)/c) + d log c, up to a constant."""
    log_shares = safe_log(shares)

    def log_sums(squared: Float[Array, "b n"], _: Array) -> Array:
        logs = kernel.log_profile(squared / jnp.square(scale)) + log_shares
        return jax.nn.logsumexp(logs, axis=1)

    logs = _without_itself(log_sums, x)
    # A sample without weight does not count, whatever its density.
    # The others' total 1 − w_i is left out too: it does not depend on the scale.
    expected = jnp.sum(jnp.where(shares > 0, shares * logs, 0))
    return x.shape[1] * jnp.log(scale) - expected


def _squared_error(
    x: Float[Array, "n d"],
    shares: Float[Array, " n"],
    kernel: SmoothingKernel,
    scale: Float[Array, ""],
) -> Float[Array, ""]:
    """∫ p̂² − 2 Σ_i w_i p̂_{−i}(x_i) for a Gaussian kernel, up to a factor."""
    half = 2 ** (-0.5 * x.shape[1])

    def sums(squared: Float[Array, "b n"], index: Array) -> Array:
        scaled = squared / jnp.square(scale)
        own = shares[index]
        # The kernel's convolution with itself is the normal density of variance 2. A sample's own
        # term, at distance zero, is part of the integral alone.
        integral = half * (own + matmul(jnp.exp(-scaled / 4), shares))
        # Without a sample the shares of the others are to sum to one again.
        left_out = matmul(jnp.exp(-scaled / 2), shares) / (1 - own)
        return integral - 2 * left_out

    of_rows = _without_itself(sums, x)
    return matmul(shares, of_rows) / scale ** x.shape[1]


@functools.partial(jax.jit, static_argnames="of")
def _search(
    x: Float[Array, "n d"],
    shares: Float[Array, " n"],
    kernel: SmoothingKernel,
    smallest: ArrayLike,
    largest: ArrayLike,
    *,
    of: Callable[..., Float[Array, ""]],
) -> Float[Array, " d"]:
    """The multiple of the reference bandwidths that minimises a criterion."""
    reference = _normal_reference(x, shares, kernel, 1.0)
    x = living_rows(x.astype(shares.dtype), shares)
    scaled = (x - common_center(x)) / reference
    low, high = (jnp.log(jnp.asarray(end, scaled.dtype)) for end in (smallest, largest))
    criterion = lambda log_scale: of(scaled, shares, kernel, jnp.exp(log_scale))

    # The criterion may have several minima: the golden section starts around the best of a grid.
    grid = jnp.linspace(low, high, _NUM_SCALES)
    values = jax.lax.map(criterion, grid)
    best = jnp.argmin(values)
    inside = (best > 0) & (best < _NUM_SCALES - 1)
    # At an end the result is NaN: the index must only be valid.
    best = jnp.clip(best, 1, _NUM_SCALES - 2)
    left, right = grid[best - 1], grid[best + 1]

    def narrow(_: Array, bracket: tuple[Array, ...]) -> tuple[Array, ...]:
        """Four points in order, the inner ones at the golden sections, and the values there."""
        left, one, two, right, value_one, value_two = bracket
        lower = value_one <= value_two
        left, right = jnp.where(lower, left, one), jnp.where(lower, two, right)
        # One inner point of the old bracket is one of the new: a single evaluation, a pass over all
        # pairs, a step.
        kept, value_kept = jnp.where(lower, one, two), jnp.where(lower, value_one, value_two)
        step = _GOLDEN * (right - left)
        tried = jnp.where(lower, right - step, left + step)
        value = criterion(tried)
        ordered = lambda a, b: (jnp.where(lower, a, b), jnp.where(lower, b, a))
        return left, *ordered(tried, kept), right, *ordered(value, value_kept)

    step = _GOLDEN * (right - left)
    inner = right - step, left + step
    start = (left, *inner, right, *(criterion(point) for point in inner))
    left, _, _, right, *_ = jax.lax.fori_loop(0, _NUM_SECTIONS, narrow, start)
    scale = nan_unless(inside & ~jnp.isnan(values).any(), jnp.exp((left + right) / 2))
    return scale * reference
