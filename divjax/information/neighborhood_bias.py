"""What neighbourhoods that are not small do to an estimate: coordinates, a correction, a bound.

The k-th neighbour's distance is a scale below which the joint density is not seen. An estimate of
information is that of the variables smoothed at this scale, and usually too small. Three remedies
are here. `normal_scores` are coordinates without heavy tails. `smoothing_loss` is what a normal
distribution of the same correlations loses by the smoothing, in closed form. What remains is
bounded by `extended_interval`: the estimate is extrapolated to neighbourhoods of no extent, and
compared with that of the variables' distances from their centres, a function of them.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Bool, Float, Int
from scipy.special import digamma, ndtr

from divjax.core.linalg import eigh
from divjax.core.numerics import matmul
from divjax.core.ordering import order_keys
from divjax.core.types import Interval, normal_interval
from divjax.information.entropy_sums import EntropySum

__all__ = [
    "SmoothingLoss",
    "center_distances",
    "extended_interval",
    "largest_resolved",
    "normal_scores",
    "normal_variance",
    "smoothing_loss",
]

# They converge from above, quadratically once the slope is positive.
_NEWTON_STEPS = 8
_LEAST_SLOPE = 1e-3


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
    # Scores of the lower half by twice the mean rank, in one array: computed for each feature,
    # equal ranks could be rounded differently, and distances that are equal would not be.
    scores = ndtri(jnp.arange(n + 1, dtype=x.dtype) / (2 * n))

    def of_feature(values: Float[Array, " n"]) -> Float[Array, " n"]:
        keys = order_keys(values)
        ordered = jnp.sort(keys)
        below = jnp.searchsorted(ordered, keys, side="left")
        above = n - jnp.searchsorted(ordered, keys, side="right")
        # By the nearer end: 1 − 1/(2n) would be rounded, and upper scores would coincide.
        twice = 2 * jnp.minimum(below, above) + (n - below - above)
        # The share is at most one half, whose score is not positive: the side gives the sign.
        return jnp.where(below < above, scores[twice], jnp.where(below > above, -scores[twice], 0))

    return jax.vmap(of_feature, 1, 1)(x)


class SmoothingLoss(NamedTuple):
    """What smoothing loses by the Gaussian reference, and how well the rows know it.

    Attributes:
        values: the loss for each row; zero where the correlations are not resolved.
        influence: each row's on the mean of the values, by way of the correlations.
        resolved: whether there are more rows than features that vary, and no feature of one
            variable is a linear function of the others'.
        misfit: by how much the mean loss is larger than with each row's own density.
        information: of the reference itself, −∞ where it is not resolved.
    """

    values: Float[Array, " n"]
    influence: Float[Array, " n"]
    misfit: Float[Array, ""]
    resolved: Bool[Array, ""]
    information: Float[Array, ""]


def smoothing_loss(
    variables: Sequence[Float[Array, "n _"]], measure: EntropySum, squares: Float[Array, " n"]
) -> SmoothingLoss:
    """What a normal distribution loses of the measure by smoothing, for each variance t.

    Smoothing lowers the log density of a normal distribution with the correlations C by

        L = KL(N(0, C)‖N(0, C + t I)) = ½ [g(t) − g(0) − t g′(t)],  g(t) = log det(C + t I),

    and the loss of a measure is the sum of its groups' losses with signs. The eigenvalues λ_j of
    sample correlations are too unequal: with d features and m = n − 1, the mean of their log
    determinant is too small by d²/2m, and more where d is near m. Girko's estimate,

        g(t) = Σ_j log(λ_j + τ) + (m − d) log φ + m (1 − φ),
        φ = 1 − (1/m) Σ_j λ_j/(λ_j + τ),  τ = t φ,  t g′(t) = Σ_j τ/(λ_j + τ),

    is consistent as d and n grow together. It is the law of Marchenko and Pastur, solved for C. The
    next term of its expectation for real rows is ½ log τ′(t), and is subtracted. For independent
    variables the loss is then zero on average, however many features they have, and however these
    are correlated among themselves.

    Eigenvalues of zero, of constant and repeated features, add the same to a group and to its part
    that has the feature, and do not count. If they do not cancel (more features than rows, or one
    variable a linear function of another) the reference is not known.

    All rows' losses are functions of one matrix, and err with it in one direction. If the share of
    row i grows by ε/n, and features keep the variance one, the mean loss grows to first order by
    ε/n times its influence

        z_iᵀ G z_i − Σ_j (G C)_jj z_ij²,  G = ∂(mean loss)/∂C,

    that of normal scores z of jointly normal variables, whose correlations are efficient. G has the
    eigenvectors of each group's C and, since g is stationary in φ, the eigenvalues
    ½ E[τ/(λ_j (λ_j + τ)) − t τ′/(λ_j + τ)²], with signs, the smaller term ½ log τ′ left aside. The
    mean influence is zero.

    L is an expectation over normal rows, whatever the row. With the row's own log densities, and
    v_ij² its square along the axis of λ_j, it is less by

        ½ Σ_j (v_ij²/λ_j − 1) τ/(λ_j + τ),

    whose mean is the misfit: half the covariance of these squares and shares, as v_ij² is λ_j on
    average. Cubes are wide where the density is low, and there smoothing raises it. For normal
    variables the loss without the misfit leaves less bias. Where their scores are not normal it may
    leave more, as along a narrow band, and is a measure of how little the reference can tell.

    Args:
        variables: features of mean zero and variance one, or constant zero.
        measure: the groups and signs.
        squares: t for each row, `normal_variance` of the half-width of its cube.

    References:
        Marchenko, Pastur 1967. Girko 1990: estimates of functions of C. Bai, Silverstein 2004,
        theorem 1.1: the mean's next term. Klaassen, Wellner 1997:
        normal scores are efficient for a normal copula.
    """
    x = jnp.concatenate(variables, axis=1)
    n, ends = len(x), np.cumsum([0, *(variable.shape[1] for variable in variables)])
    correlation = matmul(x.T, x) / n
    # Smaller eigenvalues are rounding.
    least = 8 * len(correlation) * jnp.finfo(x.dtype).eps
    loss, slope = jnp.zeros_like(squares), jnp.zeros_like(correlation)
    most = balance = jnp.zeros((), jnp.int32)
    information = misfit = jnp.zeros((), x.dtype)
    for group, sign in zip(measure.groups, measure.signs, strict=True):
        members = np.concatenate([np.arange(ends[i], ends[i + 1]) for i in group])
        eigenvalues, vectors = eigh(correlation[members][:, members])
        positive = eigenvalues > least
        own, slopes, shares = _loss_of_group(eigenvalues, positive, n - 1, squares)
        loss = loss - sign * own
        along = jnp.square(matmul(x[:, members], vectors))
        along = jnp.where(positive, along / jnp.where(positive, eigenvalues, 1) - 1, 0)
        misfit = misfit - sign * jnp.sum(jnp.mean(along * shares, axis=0)) / 2
        # The gradient of a function of eigenvalues has the matrix's eigenvectors. The loss enters
        # with −sign, and the slopes with −2, which makes sign/2.
        of_group = matmul(vectors * (sign * jnp.mean(slopes, axis=0) / 2), vectors.T)
        slope = slope.at[members[:, None], members].add(of_group)
        rank = jnp.sum(positive, dtype=jnp.int32)
        most, balance = jnp.maximum(most, rank), balance + sign * rank
        information = information + sign * _log_determinant(eigenvalues, positive, n - 1) / 2
    resolved = (balance == 0) & (most < n - 1)
    # The second term is for the features' variances, which scaling restores to one.
    influence = jnp.sum(matmul(x, slope) * x, axis=1)
    influence = influence - matmul(x**2, jnp.sum(slope * correlation, axis=1))
    return SmoothingLoss(
        jnp.where(resolved, loss, 0),
        jnp.where(resolved, influence, 0),
        jnp.where(resolved, misfit, 0),
        resolved,
        jnp.where(resolved, information, -jnp.inf),
    )


def normal_variance(radii: Float[Array, " n"]) -> Float[Array, " n"]:
    """The variance t of the normal smoothing that leaves as much information as a cube.

    Of a pair of normal variables with a small correlation r the masses of squares show
    r² (a² − b²/2), where a = E[z g(z)], b = E[g(z)²], and g(z) = E[Z | |Z − z| < ρ]. A normal
    smoothing has g(z) = s z with s = 1/(1 + t), and shows r² (s² − s⁴/2). For small ρ it is
    ρ²/3, the cube's own variance, and at ρ = 2 larger by 39 %. Fitted to small correlations, it is
    within 3 % of the information of pairs with r = .9.
    """
    radius, share = _variances_of_cubes()
    share = jnp.interp(radii, jnp.asarray(radius, radii.dtype), jnp.asarray(share, radii.dtype))
    return share * jnp.square(radii) / 3


@functools.cache
def _variances_of_cubes() -> tuple[np.ndarray, np.ndarray]:
    """Radii, and `normal_variance` as a share of ρ²/3."""
    # Of negative z alone, as all means are even: near one Φ has no digits left for a difference.
    z = np.linspace(-9, -0.01, 900) + 0.005
    density = np.exp(-(z**2) / 2)
    mean = lambda values: values @ density / density.sum()
    radii, shares = np.linspace(0, 6, 61), [1.0]
    for radius in radii[1:]:
        mass = ndtr(z + radius) - ndtr(z - radius)
        edges = np.exp(-((z - radius) ** 2) / 2) - np.exp(-((z + radius) ** 2) / 2)
        center = edges / (mass * math.sqrt(2 * math.pi))
        shown = mean(z * center) ** 2 - mean(center**2) ** 2 / 2
        # s² − s⁴/2 = shown, without cancellation.
        slope = np.sqrt(2 * shown / (1 + np.sqrt(1 - 2 * shown)))
        shares.append((1 / slope - 1) / (radius**2 / 3))
    return radii, np.array(shares)


def _left(positive: Bool[Array, " d"], dof: int, dtype: DTypeLike) -> Float[Array, ""]:
    """The rest m − d; where none is left the loss is not resolved, and any number will do."""
    return jnp.maximum(dof - jnp.sum(positive), 1).astype(dtype)


def _log_determinant(
    eigenvalues: Float[Array, " d"], positive: Bool[Array, " d"], dof: int
) -> Float[Array, ""]:
    """g(0) less ½ log τ′(0), where φ = τ′ = 1 − d/m; up to d, which cancels in a measure."""
    left = _left(positive, dof, eigenvalues.dtype)
    logs = jnp.sum(jnp.where(positive, jnp.log(jnp.where(positive, eigenvalues, 1)), 0))
    return logs + (left - 0.5) * jnp.log(left / dof)


def _loss_of_group(
    eigenvalues: Float[Array, " d"],
    positive: Bool[Array, " d"],
    dof: int,
    squares: Float[Array, " n"],
) -> tuple[Float[Array, " n"], Float[Array, "n d"], Float[Array, "n d"]]:
    """L for each t, −2 times its derivatives in the positive eigenvalues, and τ/(λ + τ)."""
    # Any number that can be divided by: each term of these eigenvalues is zero by `positive` below.
    eigenvalues = jnp.where(positive, eigenvalues, 1)
    left = _left(positive, dof, squares.dtype)
    over = lambda tau: jnp.where(positive, 1 / (eigenvalues + tau[:, None]), 0)

    # τ − t φ(τ) is convex and not negative at τ = t: Newton's steps decrease to the root.
    def step(_: Int[Array, ""], tau: Float[Array, " n"]) -> Float[Array, " n"]:
        inverse = over(tau)
        phi = (left + tau * jnp.sum(inverse, axis=1)) / dof
        slope = squares * jnp.sum(eigenvalues * jnp.square(inverse), axis=1) / dof
        return tau - (tau - squares * phi) / jnp.maximum(1 - slope, _LEAST_SLOPE)

    tau = jax.lax.fori_loop(0, _NEWTON_STEPS, step, squares)
    inverse = over(tau)
    smoothed = tau[:, None] * inverse
    # φ as a sum of positive terms: 1 − (1/m) Σ λ/(λ + τ) would cancel where d is near m.
    phi = (left + jnp.sum(smoothed, axis=1)) / dof
    logs = jnp.where(positive, jnp.log1p(tau[:, None] / eigenvalues), 0)
    # One Σ τ/(λ + τ) is t g′(t), the other what m (1 − φ) has lost of its value d at t = 0.
    loss = (jnp.sum(logs - 2 * smoothed, axis=1) + left * jnp.log(phi * dof / left)) / 2
    # τ′ = φ/(1 − t ∂φ/∂τ), and t ∂ log τ′/∂t likewise by the second derivative.
    slope = squares * jnp.sum(eigenvalues * jnp.square(inverse), axis=1) / dof
    growth = 1 / jnp.maximum(1 - slope, _LEAST_SLOPE)
    bend = -2 * squares * tau * jnp.sum(eigenvalues * inverse**3, axis=1) / dof
    change = growth * (2 * slope + growth * bend)
    loss = loss + (change - jnp.log(phi * growth * dof / left)) / 4
    return loss, smoothed * (1 / eigenvalues - growth[:, None] * inverse), smoothed


def center_distances(
    variables: Sequence[Float[Array, "n _"]], measure: EntropySum
) -> tuple[Float[Array, "n 1"], ...] | None:
    """Each variable's distance from zero, or itself if it has one feature.

    Functions of the variables have at most their mutual information or total correlation. None for
    other measures, and with one feature each, where there is nothing to be gained.
    """
    if not _is_total(measure) or all(variable.shape[1] == 1 for variable in variables):
        return None
    size = lambda v: jnp.linalg.norm(v, axis=1, keepdims=True)
    return tuple(v if v.shape[1] == 1 else size(v) for v in variables)


def _is_total(measure: EntropySum) -> bool:
    """Whether it is a total correlation, of which mutual information is that of two variables."""
    *alone, _ = measure.groups
    return all(len(group) == 1 for group in alone) and measure.signs == (1,) * len(alone) + (-1,)


def largest_resolved(measure: EntropySum, k: int, n: int) -> float:
    """The most that k neighbours among n rows can show of the measure: ψ(n) − ψ(k).

    A total correlation of m variables is m − 1 mutual informations, each with this limit. An
    interaction is the difference of two, and this the limit of its size.

    Example:
        >>> from divjax.information.entropy_sums import MUTUAL
        >>> round(largest_resolved(MUTUAL, 3, 500), 2)
        5.29
    """
    times = len(measure.groups) - 2 if _is_total(measure) else 1
    return times * float(digamma(n) - digamma(k))


def extended_interval(
    value: Float[Array, ""],
    std_error: Float[Array, ""],
    bias: Float[Array, ""],
    misfit: Float[Array, ""],
    of_function: tuple[Float[Array, ""], Float[Array, ""]] | None,
    of_reference: Float[Array, ""],
    confidence_level: ArrayLike,
    *,
    least: float,
    largest: Float[Array, ""],
    resolved: Bool[Array, ""],
) -> Interval:
    """The normal interval, extended by biases, and up to those of a function and of the reference.

    Args:
        value: the estimate.
        std_error: its standard error.
        bias: what is to be added to the value to extrapolate it, of either sign.
        misfit: of the reference, as in `SmoothingLoss`. If it is positive the reference corrects
            too much by its own measure, and the interval is longer downwards. Of either sign it
            shows that the scores may not be normal, and neighbourhoods usually see too little of
            what is not: the interval is longer upwards by its size. Of this and the bias the larger
            one counts.
        of_function: the information of a function of the variables, and its standard error.
        of_reference: the information of the normal distribution with the same correlations, or −∞.
            That of other distributions is larger if each variable is jointly normal. In many
            features the neighbours see little of it.
        confidence_level: the level of all intervals.
        least: these extend the interval down to this at most, the measure's own bound.
        largest: what an estimate can be. An interval that would extend beyond it has no upper end:
            the truth may be anywhere above what neighbours can show.
        resolved: whether the estimate has an upper limit at all.
    """
    lower, upper = normal_interval(value, std_error, confidence_level)
    # In many features neighbourhoods hardly shrink with k, and extrapolation multiplies noise.
    down, up = jnp.maximum(-bias, misfit), jnp.maximum(bias, jnp.abs(misfit))
    lower = jnp.minimum(lower, jnp.maximum(lower - jnp.maximum(down, 0), least))
    upper = upper + up
    resolved = resolved & ~(upper >= largest)
    if of_function is not None:
        upper = jnp.maximum(upper, normal_interval(*of_function, confidence_level).upper)
    upper = jnp.maximum(upper, normal_interval(of_reference, std_error, confidence_level).upper)
    # NaN stays: there is no interval where the method is not suitable.
    return Interval(lower, jnp.where(resolved | jnp.isnan(upper), upper, jnp.inf))
