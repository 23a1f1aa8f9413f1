"""What neighbourhoods that are not small do to an estimate: coordinates, a correction, a bound.

The k-th neighbour's distance is a scale below which the joint density is not seen. An estimate of
information is that of the variables smoothed at this scale, and usually too small. Three remedies
are here. `normal_scores` are coordinates without heavy tails. `smoothing_loss` is what a normal
distribution of the same correlations loses by the smoothing, in closed form. What remains is
bounded by `extended_interval`: the estimate is extrapolated to neighbourhoods of no extent, and
compared with that of the variables' distances from their centres, a function of them.
"""

from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri
from jaxtyping import Array, ArrayLike, Float

from divjax.core.linalg import eigh
from divjax.core.numerics import matmul
from divjax.core.ordering import order_keys
from divjax.core.types import Interval, normal_interval
from divjax.information.entropy_sums import EntropySum

__all__ = [
    "center_distances",
    "extended_interval",
    "extrapolation_factor",
    "normal_scores",
    "smoothing_loss",
    "smoothing_loss_influence",
]


def normal_scores(x: Float[Array, "n d"]) -> Float[Array, "n d"]:
    """Φ⁻¹((rank − ½)/n) of each feature's values; equal values share a mean rank.

    A strictly increasing map of a feature changes no information, and no score.

    Example:
        >>> normal_scores(jnp.array([[1.0], [9.0], [8.0], [8.0]]))[:, 0].round(3).tolist()
        [-1.15, 1.15, 0.0, 0.0]

    References:
        van der Waerden 1952.
    """
    n = x.shape[0]

    def of_feature(values: Float[Array, " n"]) -> Float[Array, " n"]:
        keys = order_keys(values)
        ordered = jnp.sort(keys)
        below = jnp.searchsorted(ordered, keys, side="left")
        above = n - jnp.searchsorted(ordered, keys, side="right")
        # By the nearer end: 1 − 1/(2n) would be rounded, and upper scores would coincide.
        smaller = jnp.minimum(below, above).astype(x.dtype)
        equal = (n - below - above).astype(x.dtype)
        return jnp.sign(below - above).astype(x.dtype) * -ndtri((smaller + equal / 2) / n)

    return jax.vmap(of_feature, 1, 1)(x)


def smoothing_loss(
    variables: Sequence[Float[Array, "n _"]], measure: EntropySum, radii: Float[Array, " n"]
) -> Float[Array, " n"]:
    """What a normal distribution loses of the measure by smoothing over cubes, for each radius.

    A cube of half-width ρ has the variances s² = ρ²/3. Smoothing the normal distribution with the
    sample's correlations C lowers its log density on average by

        KL(N(0, C)‖N(0, C + s²I)) = ½ Σ_j [log(1 + s²/λ_j) − s²/(λ_j + s²)],

    λ_j the eigenvalues of C. The loss of a measure is the sum of its groups' losses with signs,
    less its expectation for independent features, whose sample correlations have mean square 1/n.

    Args:
        variables: features of mean zero and variance one, or constant zero.
        measure: the groups and signs.
        radii: ρ for each row.
    """
    x, correlation = _correlation(variables)
    n, squares = len(x), jnp.square(radii) / 3
    # The second derivative of a loss in the eigenvalue, at one: two features of correlation r have
    # the eigenvalues 1 ± r, and lose this times r² more than independent ones.
    curvature = (1 - (1 + squares) ** -2 - 2 * squares * (1 + squares) ** -3) / 2
    loss = jnp.zeros_like(radii)
    for sign, members, eigenvalues, _ in _spectra(variables, measure, correlation):
        d = len(members)
        ratio = squares[:, None] / eigenvalues
        own = jnp.sum(jnp.log1p(ratio) - ratio / (1 + ratio), axis=1) / 2
        loss = loss - sign * (own - d * (d - 1) / (2 * n) * curvature)
    return loss


def smoothing_loss_influence(
    variables: Sequence[Float[Array, "n _"]], measure: EntropySum, radii: Float[Array, " n"]
) -> Float[Array, " n"]:
    """Each row's influence on the mean of `smoothing_loss` by way of the correlations.

    All rows' losses are functions of one matrix C of correlations, and err with it in one
    direction. If the share of row i grows by ε/n, and features keep the variance one, the mean
    grows to first order by ε/n times

        z_iᵀ G z_i − Σ_j (G C)_jj z_ij²,  G = ∂(mean loss)/∂C,

    the influence of normal scores z of jointly normal variables, whose correlations are efficient.
    G has the eigenvectors of each group's C, and the eigenvalues ½ E s⁴/(λ_j (λ_j + s²)²), with
    signs. The mean of the influence over rows is zero.

    Args:
        variables: features of mean zero and variance one, or constant zero.
        measure: the groups and signs.
        radii: ρ for each row.

    References:
        Klaassen, Wellner 1997: normal scores are efficient for a normal copula.
    """
    x, correlation = _correlation(variables)
    squares = jnp.square(radii)[:, None] / 3
    slope = jnp.zeros_like(correlation)
    for sign, members, eigenvalues, vectors in _spectra(variables, measure, correlation):
        slopes = jnp.square(squares) / (eigenvalues * jnp.square(eigenvalues + squares))
        own = matmul(vectors * (sign * jnp.mean(slopes, axis=0) / 2), vectors.T)
        slope = slope.at[members[:, None], members].add(own)
    return jnp.sum(matmul(x, slope) * x, axis=1) - matmul(x**2, jnp.sum(slope * correlation, 1))


def _correlation(
    variables: Sequence[Float[Array, "n _"]],
) -> tuple[Float[Array, "n d"], Float[Array, "d d"]]:
    """The features of all variables, and their correlations."""
    x = jnp.concatenate(variables, axis=1)
    # A constant feature is independent of the others, of any variance.
    constant = jnp.diag(jnp.all(x == 0, axis=0).astype(x.dtype))
    return x, matmul(x.T, x) / x.shape[0] + constant


def _spectra(
    variables: Sequence[Float[Array, "n _"]], measure: EntropySum, correlation: Float[Array, "d d"]
) -> Iterator[tuple[int, np.ndarray, Float[Array, " m"], Float[Array, "m m"]]]:
    """For each group its sign, its features, and the eigenvalues and vectors of their matrix."""
    ends = np.cumsum([0, *(variable.shape[1] for variable in variables)])
    # Smaller eigenvalues are rounding.
    least = 8 * len(correlation) * jnp.finfo(correlation.dtype).eps
    for group, sign in zip(measure.groups, measure.signs, strict=True):
        members = np.concatenate([np.arange(ends[i], ends[i + 1]) for i in group])
        eigenvalues, vectors = eigh(correlation[members][:, members])
        yield sign, members, jnp.maximum(eigenvalues, least), vectors


def center_distances(
    variables: Sequence[Float[Array, "n _"]], measure: EntropySum
) -> tuple[Float[Array, "n 1"], ...] | None:
    """Each variable's distance from zero, or itself if it has one feature.

    Functions of the variables have at most their mutual information or total correlation. None for
    other measures, and with one feature each, where there is nothing to be gained.
    """
    *alone, _ = measure.groups
    total = all(len(group) == 1 for group in alone) and measure.signs == (1,) * len(alone) + (-1,)
    if not total or all(variable.shape[1] == 1 for variable in variables):
        return None
    size = lambda v: jnp.linalg.norm(v, axis=1, keepdims=True)
    return tuple(v if v.shape[1] == 1 else size(v) for v in variables)


def extrapolation_factor(k: int, larger: int, num_features: int) -> float:
    """The bias at k neighbours as a multiple of what it grows by to a larger number of them.

    For a bias in proportion to the extent (k/n)^(1/d) of a neighbourhood, as at the edges of a
    support, 1/((k′/k)^(1/d) − 1). For a smooth density it is in proportion to a square of it, and
    this is an upper bound. Zero if k cannot be increased.

    Example:
        >>> round(extrapolation_factor(3, 6, 2), 3)
        2.414
    """
    return 1 / ((larger / k) ** (1 / num_features) - 1) if larger > k else 0.0


def extended_interval(
    value: Float[Array, ""],
    std_error: Float[Array, ""],
    bias: Float[Array, ""],
    of_function: tuple[Float[Array, ""], Float[Array, ""]] | None,
    confidence_level: ArrayLike,
) -> Interval:
    """The normal interval, extended by a bias, and up to the interval of a function's information.

    Args:
        value: the estimate.
        std_error: its standard error.
        bias: what is to be added to the value to extrapolate it, of either sign.
        of_function: the information of a function of the variables, and its standard error.
        confidence_level: the level of both intervals.
    """
    lower, upper = normal_interval(value, std_error, confidence_level)
    lower, upper = lower + jnp.minimum(bias, 0), upper + jnp.maximum(bias, 0)
    if of_function is not None:
        upper = jnp.maximum(upper, normal_interval(*of_function, confidence_level).upper)
    return Interval(lower, upper)
