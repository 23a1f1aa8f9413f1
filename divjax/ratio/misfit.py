"""Tests of underfitted log ratios on held-out rows, by the gain of probes of another shape."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from divjax.core import linalg
from divjax.core.numerics import matmul
from divjax.core.pairwise import map_row_blocks, squared_distances
from divjax.core.selection import rounded_up, smallest_in_rows
from divjax.core.training import random_rows

__all__ = ["Misfit", "misfit"]

# Random cosines at each of these length scales, in standard deviations of a feature times √d.
_NUM_COSINES, _LENGTH_SCALES = 32, (0.1, 0.3, 1.0)
# The precision of the prior on each of the probe's coefficients, in rows.
_RIDGE = 30.0
# Neighbours of a row besides ties, the rows of a sample that are searched for them, and the largest
# residual in deviations.
_NUM_NEIGHBORS, _MAX_ROWS, _LARGEST_RESIDUAL = 4, 2048, 4.0
# Candidate shares of a Newton step, selected on the fitted rows.
_LENGTHS = (1.0, 0.3, 0.1, 0.03, 0.0)


class Misfit(NamedTuple):
    """The detected excess of the log ratio's balanced cross-entropy over its minimum.

    Attributes:
        gain: a lower bound in expectation on the excess, in nats, negative if none is detected.
        std_error: the standard error of the gain, with the models taken as given.
    """

    gain: Float[Array, ""]
    std_error: Float[Array, ""]

    def exceeds(self, excess: ArrayLike) -> Array:
        """Whether the gain is above a known excess by more than three standard errors."""
        return self.gain - excess > 3 * self.std_error


class _Scored(NamedTuple):
    """The rows of both samples with their labels and log ratios u.

    Attributes:
        x: the features.
        sign: the label, 1 for rows of p and −1 for those of q.
        log_ratio: u, 0 for rows of weight zero.
        weight: the weights, summing to one half for either sample.
        fold: the fold of each row, −1 for rows of weight zero.
        group: the group of each row, within which rows depend on each other.
    """

    x: Float[Array, "n d"]
    sign: Float[Array, " n"]
    log_ratio: Float[Array, " n"]
    weight: Float[Array, " n"]
    fold: Int[Array, " n"]
    group: Int[Array, " n"]

    @property
    def wrong(self) -> Float[Array, " n"]:
        """The probability of the other label."""
        return jax.nn.sigmoid(-self.sign * self.log_ratio)


def misfit(
    features: Sequence[Float[Array, "n d"]],
    log_ratios: Sequence[Float[Array, " n"]],
    weights: Sequence[Float[Array, " n"]],
    folds: Sequence[Int[Array, " n"]],
    num_folds: int,
    groups: Int[Array, " rows"] | None = None,
) -> Misfit:
    """The excess cross-entropy detected by the more significant of two probes.

    The residual of a row, its label minus the classifier's probability, has mean zero given the
    features if the log ratio is right. One probe fits smooth functions to the residuals, the other
    tests whether those of neighbours agree. Either sees the error of estimation as well, which the
    heads that contain log p/q have: compare the gain with that excess by `Misfit.exceeds`.

    Args:
        features: standardised features of both samples.
        log_ratios: out-of-fold log ratios of both samples.
        weights: weights of both samples, each summing to one.
        folds: the fold of each row, −1 for rows of weight zero.
        num_folds: the number of folds.
        groups: the number of each row's group, over both samples, if rows depend on each other.
    """
    sizes = [len(u) for u in log_ratios]
    groups = jnp.arange(sum(sizes)) if groups is None else groups
    signs = [jnp.full(len(u), sign, u.dtype) for u, sign in zip(log_ratios, (1, -1), strict=True)]
    parts = zip(
        features,
        signs,
        log_ratios,
        weights,
        folds,
        jnp.split(groups, np.cumsum(sizes)[:-1]),
        strict=True,
    )
    # Padding may hold NaN: features and log ratios of rows of weight zero are zeroed.
    samples = [
        _Scored(
            jnp.where((weight > 0)[:, None], x, 0),
            sign,
            jnp.where(weight > 0, u, 0),
            # Either sample has half of the pooled mass.
            weight / 2,
            fold,
            group,
        )
        for x, sign, u, weight, fold, group in parts
    ]
    pooled = lambda samples: jax.tree.map(lambda *parts: jnp.concatenate(parts), *samples)
    smooth = _gain_of_cosines(pooled(samples), num_folds)
    local = _agreement_of_neighbors(pooled([_subsample(sample) for sample in samples]), sum(sizes))
    # Selects the larger ratio of gain to standard error, without a division by an error of zero.
    more_sure = local.gain * smooth.std_error > smooth.gain * local.std_error
    return jax.tree.map(lambda *gains: jnp.where(more_sure, *gains), local, smooth)


def _gain_of_cosines(rows: _Scored, num_folds: int) -> Misfit:
    """Fit the residuals of all folds except one by random cosines, and score them on that fold.

    The probe is one Newton step from the log ratio u towards the ridge logistic regression on
    cosines φ, c = (Φᵀ W Φ + ridge)⁻¹ Φᵀ residual.
    """
    x, sign, u, weight, fold, group = rows
    phi = jnp.where((weight > 0)[:, None], _cosines(x), 0)
    wrong = rows.wrong
    # Minus the first derivative of the balanced cross-entropy in u, and its second one.
    residual, curvature = weight * sign * wrong, weight * wrong * (1 - wrong)
    # Σw² is the share of a single row: hence the precision of the prior is in rows.
    ridge = _RIDGE * jnp.eye(phi.shape[1], dtype=phi.dtype) * jnp.sum(weight**2)

    def losses_at(mask, u):
        return jnp.where(mask, weight * jax.nn.softplus(-sign * u), 0)

    def gains(k):
        others = fold != k
        fitted = jnp.where(others, curvature, 0)
        hessian = jnp.matmul(phi.T * fitted, phi, precision="highest")
        step = linalg.solve(hessian + ridge, phi.T @ jnp.where(others, residual, 0))
        # A full step overshoots where u is confidently wrong, and its curvature vanishes.
        change = phi @ step
        lengths = jnp.asarray(_LENGTHS, u.dtype)
        losses = jax.lax.map(
            lambda length: jnp.sum(losses_at(others, u + length * change)), lengths
        )
        moved = u + lengths[jnp.argmin(losses)] * change
        # Only rows that the fit has not used show a gain without bias.
        return jnp.where(others, 0, jax.nn.softplus(-sign * u) - jax.nn.softplus(-sign * moved))

    # Each row has a gain in its own fold alone.
    each = jnp.sum(jax.lax.map(gains, jnp.arange(num_folds)), axis=0)
    means = [2 * jnp.sum(jnp.where(own, weight * each, 0)) for own in (sign > 0, sign < 0)]
    # The samples were drawn separately, hence each is centred at its own mean.
    deviations = weight * (each - jnp.where(sign > 0, *means))
    return Misfit((means[0] + means[1]) / 2, _error_of_sum(deviations, group, len(u)))


def _error_of_sum(
    terms: Float[Array, " n"], group: Int[Array, " n"], num_groups: int
) -> Float[Array, ""]:
    """The standard error of a sum of terms of mean zero, independent between groups."""
    return jnp.linalg.norm(jax.ops.segment_sum(terms, group, num_groups))


def _agreement_of_neighbors(rows: _Scored, num_groups: int) -> Misfit:
    """½ E[e(z) e(z′)] over neighbours z, z′ in one fold; e is the standardised residual.

    A log ratio with error δ(z) has residuals of mean δ·c, where c is their variance, and an excess
    cross-entropy of ½ E[c δ²] to second order. Rows of one fold are independent given the model
    that scores them, except within a group. Hence the product of two residuals estimates the
    product of their means, which is the square for rows near each other, and averages to zero for
    others.
    """
    x, sign, u, weight, fold, group = rows
    # Without the limit a confidently wrong row would count as much as hundreds.
    residual = jnp.where(
        weight > 0, sign * jnp.minimum(jnp.exp(-sign * u / 2), _LARGEST_RESIDUAL), 0
    )
    count = min(_NUM_NEIGHBORS, x.shape[0] - 1)

    def mean_of_neighbors(z, of_group, of_fold):
        squares = squared_distances(z, x)
        # Given the model, rows are independent within a fold, except for those of one group.
        excluded = (fold != of_fold[:, None]) | (group == of_group[:, None]) | (weight <= 0)
        squares = jnp.where(excluded, jnp.inf, squares)
        nearest, _ = smallest_in_rows(squares, count)
        # With fewer rows than that the farthest is infinitely far. Ties are neighbours all or none:
        # in the order of the rows those of p would come first.
        near = jnp.isfinite(squares) & (squares <= rounded_up(nearest[:, -1:]))
        terms = jnp.stack([weight, weight * residual], axis=1)
        total, of_residuals = matmul(near.astype(weight.dtype), terms).T
        return of_residuals / jnp.where(total > 0, total, 1)

    neighbors = map_row_blocks(mean_of_neighbors, len(u), x, group, fold)
    terms = weight * residual * neighbors / 2
    # Most pairs are counted twice, once from each row.
    return Misfit(jnp.sum(terms), jnp.sqrt(2) * _error_of_sum(terms, group, num_groups))


def _subsample(rows: _Scored) -> _Scored:
    """At most `_MAX_ROWS` rows of positive weight, the same for all samples of this size."""
    if rows.x.shape[0] <= _MAX_ROWS:
        return rows
    chosen = random_rows(jax.random.key(0), rows.weight, _MAX_ROWS)
    rows = jax.tree.map(lambda leaf: leaf[chosen], rows)
    total = jnp.sum(rows.weight)
    # Renormalised: the weights of either sample sum to one half.
    return rows._replace(weight=rows.weight / jnp.where(total > 0, 2 * total, 1))


def _cosines(x: Float[Array, "n d"]) -> Float[Array, "n m"]:
    """A constant and random cosines, the same for all samples with this number of features."""
    d = x.shape[1]
    rng = np.random.default_rng(0)
    scales = np.repeat(_LENGTH_SCALES, _NUM_COSINES) * np.sqrt(d)
    frequencies = rng.normal(size=(d, scales.size)) / scales
    phases = rng.uniform(0, 2 * np.pi, scales.size)
    waves = jnp.cos(x @ jnp.asarray(frequencies, x.dtype) + jnp.asarray(phases, x.dtype))
    return jnp.concatenate([jnp.ones_like(x[:, :1]), waves], axis=1)
