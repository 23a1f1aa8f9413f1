"""A test of whether a sample comes from a density known up to a constant."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Key

from divjax.core.checks import check_count, check_key, check_probability
from divjax.core.keys import own_key
from divjax.core.numerics import at_least_single, nan_unless
from divjax.core.samples import Numbers, as_samples, centered_samples
from divjax.discrepancy.quadratic_forms import TwoValued, quadratic_forms
from divjax.discrepancy.relabelled_samples import at_least_two_rows
from divjax.discrepancy.stein import (
    Density,
    check_stein_kernel,
    scores_at,
    stein_matrix,
    stein_points,
)
from divjax.inference.hypothesis import TestResult, compared_with_null
from divjax.kernels.pooled import resolved_at_rows
from divjax.kernels.protocols import Kernel
from divjax.kernels.radial import InverseMultiquadric

__all__ = ["kernel_stein_test"]

# Sums of n² terms are off by this multiple of epsilon, relative to the sum.
_ROUNDING_OF_FORMS = 8


def kernel_stein_test(
    key: Key[Array, ""],
    x: Float[Numbers, "n d"],
    *,
    log_prob: Density | None = None,
    score: Density | None = None,
    kernel: Kernel = InverseMultiquadric(),
    flip_probability: ArrayLike = 0.5,
    num_resamples: int = 999,
) -> TestResult:
    """A wild bootstrap test of whether a sample comes from a density π.

    The statistic is KSD² = Σ_ij u(x_i, x_j)/n², the V-statistic of `kernel_stein`. If x comes from
    π, then E u(x, ·) = 0, and Σ_ij W_i W_j u(x_i, x_j)/n² has the same limit for random signs W.
    All resamples are one product with the matrix of u. Under a Markov chain's draws the signs
    follow a chain as well, which changes sign at each row with a small probability.

    The level is right in the limit of large n, not exactly as a permutation test's. The signs leave
    the terms i = j as they are.

    Args:
        key: a typed key.
        x: the sample, at least two rows; in the order of the chain if they depend on each other.
        log_prob: takes one point and returns log π up to a constant.
        score: takes one point and returns ∇ log π, in place of `log_prob`.
        kernel: as for `kernel_stein`. A bandwidth rule is evaluated at x.
        flip_probability: the probability with which the sign changes from a row to the next: ½, for
            independent signs, if the rows are independent. For a chain 0.1/k after thinning to
            every k-th draw is a common choice, smaller the longer its memory.
        num_resamples: N, at least 1/α − 1 for a level α.

    Returns:
        A `TestResult`, not finite if log π is not at a row. Time O(n² (d + N)), by tiles of the
        matrix; memory n N bytes and a tile.

    Raises:
        ValueError: as `kernel_stein`, for a single row, and if the probability is not in (0, 1) or
            the count is not positive.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> x = jax.random.normal(jax.random.key(0), (100, 2))
        >>> normal = lambda z: -0.5 * jnp.sum(z**2)
        >>> key = jax.random.key(1)
        >>> float(kernel_stein_test(key, x + 0.5, log_prob=normal).p_value)
        0.001
        >>> bool(kernel_stein_test(key, x, log_prob=normal).p_value > 0.1)
        True

    References:
        Chwialkowski, Strathmann, Gretton 2016, section 2.3 and eq. 4–6. Leucht, Neumann 2013: the
        bootstrap of degenerate V-statistics.
    """
    check_key(key)
    check_count(1, num_resamples=num_resamples)
    check_probability(flip_probability=flip_probability)
    check_stein_kernel(kernel)
    # Centred rows keep distances accurate. Scores need the points themselves.
    _, centered = centered_samples(x=x)
    (x,) = as_samples(x=x)
    at_least_two_rows(x=x)
    scores = scores_at(x, log_prob, score)
    resolved = resolved_at_rows(kernel, centered)
    return _wild_bootstrap(key, centered, scores, resolved, flip_probability, num_resamples)


@functools.partial(jax.jit, static_argnames="num_resamples")
def _wild_bootstrap(
    key: Key[Array, ""],
    x: Float[Array, "n d"],
    scores: Float[Array, "n d"],
    kernel: Kernel,
    flip_probability: ArrayLike,
    num_resamples: int,
) -> TestResult:
    n, dtype = x.shape[0], at_least_single(x.dtype)
    points = stein_points(x, scores)
    probability = jnp.asarray(flip_probability, dtype)
    # A flip at the first row changes all signs, hence no product of two.
    flips = jax.random.bernoulli(own_key(key), probability, (num_resamples, n))
    # The first vector is of ones only: its form is the statistic.
    positive = jnp.cumsum(flips, axis=1) % 2 == 0
    labels = jnp.concatenate([jnp.ones((1, n), bool), positive])
    share = jnp.full(num_resamples + 1, 1 / n, dtype)
    form = lambda tile, contract: contract(stein_matrix(kernel, tile.rows, tile.columns, tile.same))
    forms = quadratic_forms(form, points, TwoValued(labels, share, -share))
    forms = nan_unless((probability > 0) & (probability < 1), forms)
    tolerance = _ROUNDING_OF_FORMS * jnp.finfo(dtype).eps * jnp.abs(forms[0])
    return compared_with_null(forms[0], forms[1:], tolerance)
