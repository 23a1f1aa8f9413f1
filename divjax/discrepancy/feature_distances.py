"""How generated features compare with real ones: the Fréchet distance, precision and recall."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from divjax.core.checks import check_full_precision
from divjax.core.numerics import at_least_single, in_units_of, matmul, nan_unless
from divjax.core.pairwise import (
    about_common_center,
    common_center,
    map_row_blocks,
    near_distance,
    resolved_distances,
)
from divjax.core.samples import Numbers, centered_samples
from divjax.core.selection import smallest_in_rows
from divjax.core.simplex import mass_of_distinct_pairs
from divjax.core.types import summary
from divjax.kernels.pooled import TwoSamples, about_center, as_measures, two_samples
from divjax.kernels.radial import Energy
from divjax.ot.covariances import squared_bures

__all__ = ["PrecisionRecall", "frechet_distance", "precision_recall"]

# The rounding error of a squared distance, relative to it, in units of the dtype's epsilon.
_ROUNDING_ULPS = 8


def frechet_distance(
    x: Float[Numbers, "n d"],
    y: Float[Numbers, "m d"],
    a: Float[Numbers, " n"] | None = None,
    b: Float[Numbers, " m"] | None = None,
) -> Float[Array, ""]:
    """The squared 2-Wasserstein distance of Gaussians with the samples' moments.

    ‖m_x − m_y‖² + tr S_x + tr S_y − 2 tr (S_x^½ S_y S_x^½)^½ with means m and unbiased covariances
    S. Of an image network's features it is the Fréchet inception distance. It compares two moments
    only: zero does not mean p = q. Computed as a sum of squares, without the cancellation of the
    traces; covariances may be singular, as for fewer rows than features.

    As an estimate for the distributions it is biased upwards, by about (tr S_x/n + tr S_y/m) for
    the means and another term of order d/n for the covariances, which is not small until n is many
    times d: compare numbers of equal n and m alone, or use `mmd` with `kernels.Polynomial` and
    `debias`, which is unbiased. `ot.gaussian_wasserstein` takes moments themselves.

    Time O((n + m) d² + d³), memory O((n + m) d + d²). Its derivative in a singular covariance is
    along paths of constant rank.

    Args:
        x: samples of p, at least 2.
        y: samples of q, at least 2.
        a: weights of x, non-negative, with any sum, uniform by default. Rows of weight zero are
            padding.
        b: weights of y.

    Returns:
        The squared distance, in squared units of the features. NaN for a row with weight that is
        not finite, or for one row with all of the weight.

    Raises:
        ValueError: if a sample has a single row or is not a matrix, the numbers of features differ,
            weights do not fit, or the samples are in half precision.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> x = jax.random.normal(jax.random.key(0), (1000, 2))
        >>> float(frechet_distance(x, 2 * x + jnp.array([3.0, 0.0])))  # 3² + 1² + 1²
        11.1

    References:
        Dowson, Landau 1982, eq. 16. Heusel, Ramsauer, Unterthiner, Nessler, Hochreiter 2017, eq. 6.
        Chong, Forsyth 2020: the bias.
    """
    # A kernel of differences, so that samples are centred; `debias` requires the two rows of a
    # covariance.
    samples = two_samples(Energy(), x, y, a, b, debias=True)
    check_full_precision("x and y", samples.x)
    return _frechet_distance(samples)


@jax.jit
def _frechet_distance(samples: TwoSamples) -> Float[Array, ""]:
    """`frechet_distance` after its checks."""
    x, y, a, b = about_center(as_measures(Energy(), samples))
    (mean_x, covariance_x), (mean_y, covariance_y) = _moments(x, a), _moments(y, b)
    shift = jnp.sum(jnp.square(mean_x - mean_y))
    return shift + squared_bures(covariance_x, covariance_y)


def _moments(
    x: Float[Array, "n d"], share: Float[Array, " n"]
) -> tuple[Float[Array, " d"], Float[Array, "d d"]]:
    """The mean and the unbiased covariance, for shares of sum one."""
    mean = matmul(share, x)
    centered = x - mean
    # For n equal shares the divisor is (n − 1)/n, which makes the covariance the usual unbiased
    # one.
    scatter = matmul((share[:, None] * centered).T, centered)
    return mean, scatter / mass_of_distinct_pairs(share)


class PrecisionRecall(NamedTuple):
    """How far two samples cover each other, by balls around their points.

    Attributes:
        precision: the share of y within a ball of x: how many generated points are realistic.
        recall: the share of x within a ball of y: how many real points are covered.
        density: the mean number of balls of x that hold a point of y, divided by k. One, in
            expectation, if p = q, and possibly larger. Unlike precision it does not depend on
            single outliers of x, whose balls are large.
        coverage: the share of balls of x that hold a point of y. Unlike recall it does not depend
            on outliers of y.
    """

    precision: Float[Array, ""]
    recall: Float[Array, ""]
    density: Float[Array, ""]
    coverage: Float[Array, ""]

    __repr__ = summary


def precision_recall(
    x: Float[Numbers, "n d"], y: Float[Numbers, "m d"], *, k: int = 3
) -> PrecisionRecall:
    """Precision and recall of generated samples y for real ones x, with density and coverage.

    The support of a sample is taken as the union of balls around its points, each reaching to the
    k-th nearest other point. Precision is the share of y in the balls of x, recall the share of x
    in the balls of y. If p = q the expected coverage is 1 − Π_{i<k} (n − 1 − i)/(n + m − 1 − i),
    whatever the distribution, and depends on k alone for large n = m: 1 − 2^(−k).

    The numbers depend on the scales of features. They are constant between jumps, and their
    derivative is zero: for a loss use `mmd` or a `witness`. Time O((n + m)² d), memory one block of
    the budget of `divjax.core.pairwise`.

    Args:
        x: real samples, of p.
        y: generated samples, of q.
        k: the rank of the neighbour that a ball reaches, static, 1 ≤ k ≤ min(n, m) − 1.

    Returns:
        A `PrecisionRecall`, NaN throughout for a row that is not finite, or if distances differ by
        more than squares in the dtype can hold, a factor of 10³⁰ in single precision. Points at the
        distance of a ball's radius are within it, so that duplicates count.

    Raises:
        ValueError: if a sample is empty or not a matrix, the numbers of features differ, or k is
            not an integer in its range.

    Example:
        >>> import jax.numpy as jnp
        >>> x, y = jnp.array([[0.0], [1.0], [5.0]]), jnp.array([[0.5], [1.5], [20.0]])
        >>> found = precision_recall(x, y, k=1)
        >>> found.precision.round(2).item(), found.recall.round(2).item()
        (0.67, 1.0)

    References:
        Kynkäänniemi, Karras, Laine, Lehtinen, Aila 2019, eq. 1 and 2: precision and recall. Naeem,
        Oh, Uh, Choi, Yoo 2020, eq. 3 and 4, lemma 3: density and coverage.
    """
    _, x, y = centered_samples(x=x, y=y)
    most = min(x.shape[0], y.shape[0]) - 1
    if most < 1:
        raise ValueError("x and y must have at least two rows, as neighbours are other rows.")
    if not isinstance(k, int) or isinstance(k, bool) or not 1 <= k <= most:
        raise ValueError(f"k must be an integer from 1 to {most}; got {k!r}.")
    return _precision_recall(x, y, k=k)


@functools.partial(jax.jit, static_argnames="k")
def _precision_recall(x: Float[Array, "n d"], y: Float[Array, "m d"], *, k: int) -> PrecisionRecall:
    """`precision_recall` after its checks."""
    dtype, work = x.dtype, at_least_single(x.dtype)
    # Counts have no derivative.
    x, y, known = _in_range_of_squares(*jax.lax.stop_gradient((x.astype(work), y.astype(work))))
    # The nearest point of all is the row itself: the k-th neighbour is number k + 1. Points at the
    # radius are within a ball, however their distance is rounded.
    slack = 1 + _ROUNDING_ULPS * float(jnp.finfo(work).eps)
    to_kth = lambda squared: smallest_in_rows(squared, k + 1)[0][:, k] * slack
    radius_x, radius_y = (_reduced_distances(rows, None, to_kth) for rows in (x, y))

    def from_x(squared: Float[Array, "b m"]) -> tuple[Array, Array]:
        return jnp.any(squared <= radius_y, axis=1), jnp.min(squared, axis=1)

    def from_y(squared: Float[Array, "b n"]) -> Float[Array, " b"]:
        return jnp.sum(squared <= radius_x, axis=1).astype(work)

    # Two passes, as a block of rows has all of its columns: radii of y are compared along the rows
    # of x, and those of x along the rows of y.
    recalled, nearest = _reduced_distances(x, y, from_x)
    balls = _reduced_distances(y, x, from_y)
    shares = (
        jnp.mean(balls > 0, dtype=work),
        jnp.mean(recalled, dtype=work),
        jnp.mean(balls) / k,
        jnp.mean(nearest <= radius_x, dtype=work),
    )
    return PrecisionRecall(*(nan_unless(known, share).astype(dtype) for share in shares))


def _in_range_of_squares(
    x: Float[Array, "n d"], y: Float[Array, "m d"]
) -> tuple[Float[Array, "n d"], Float[Array, "m d"], Bool[Array, ""]]:
    """Both samples in a unit in which squared distances neither over- nor underflow, if there is.

    In single precision distances may then differ by a factor of 10³⁶. If rows near each other are
    nearer than that allows, the unit is theirs, and rows far away are infinitely far. For a single
    one that is right, as it is equally far from all others up to rounding. The last output is
    whether the distances are right.
    """
    rows = jnp.concatenate([x, y])
    center, limits = common_center(rows), jnp.finfo(rows.dtype)
    # Halves, as a difference may exceed the range.
    sizes = jnp.max(jnp.abs(rows / 2 - center / 2), axis=1)
    size, near = jnp.max(sizes), near_distance(rows)
    # Differences are below 8 in units of `size`, and squares are sums of d of theirs.
    exponent = (limits.maxexp - 8 - math.ceil(math.log2(rows.shape[1]))) // 2
    # Some rows are nearer to each other than the typical ones: by the dtype's digits at most.
    most = exponent - limits.minexp // 2 - limits.nmant
    lost = jnp.isfinite(near) & (jnp.frexp(size)[1] - jnp.frexp(near)[1] > most)
    unit, factor = jnp.where(lost, near, size), jnp.where(lost, 1, 2.0**exponent)
    # A feature far from zero would overflow in the unit. There the difference is exact.
    origin = jnp.where(jnp.abs(center) / 8 > size, center, 0)
    largest = 2.0 ** (limits.maxexp - 2)
    scaled = lambda part: jnp.clip(in_units_of(unit, part)[0] * factor, -largest, largest)
    num_far = jnp.sum(scaled(sizes) > 2.0**exponent)
    # Comparisons with NaN are false, and would count as points outside of all balls.
    finite = jnp.isfinite(rows).all()
    return scaled(x - origin), scaled(y - origin), finite & ~(lost & (num_far > 1))


def _reduced_distances(
    x: Float[Array, "n d"],
    y: Float[Array, "m d"] | None,
    reduce: Callable[[Float[Array, "b m"]], Any],
) -> Any:
    """A function of each row's squared distances, which are exact also between far clusters."""
    alone = y is None
    points, columns = about_common_center(x, x if y is None else y)

    def block(rows: Float[Array, "b d"], index: Int[Array, " b"]) -> Any:
        own = index[:, None] == jnp.arange(columns.shape[0]) if alone else None
        return reduce(resolved_distances(rows, columns, own))

    return map_row_blocks(block, columns.shape[0], points, jnp.arange(x.shape[0]))
