"""Whether held-out rows show a log ratio to be too simple: does a probe of other shape gain?"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from divjax.core import linalg
from divjax.core.pairwise import map_row_blocks, squared_distances

__all__ = ["Misfit", "misfit"]

# Random cosines at each of these length scales, in standard deviations of a feature times √d.
_NUM_COSINES, _LENGTH_SCALES = 32, (0.1, 0.3, 1.0)
# The precision of the prior on each of the probe's coefficients, in rows.
_RIDGE = 30.0
# Neighbours of a row, the rows of a sample among which they are sought, and the largest residual
# in deviations.
_NUM_NEIGHBORS, _MAX_ROWS, _LARGEST_RESIDUAL = 4, 2048, 4.0
# Shares of a Newton step, of which the fitted rows choose.
_LENGTHS = (1.0, 0.3, 0.1, 0.03, 0.0)


class Misfit(NamedTuple):
    """By how much the log ratio's balanced cross-entropy exceeds the least one, as far as seen.

    Attributes:
        gain: in nats; a lower bound in expectation on the excess, negative where nothing is seen.
        std_error: of the gain, the models taken as given.
    """

    gain: Float[Array, ""]
    std_error: Float[Array, ""]

    @property
    def significant(self) -> Array:
        """Whether the gain exceeds three standard errors."""
        return self.gain > 3 * self.std_error


class _Scored(NamedTuple):
    """The rows of both samples with what their log ratio u says of their label.

    Attributes:
        x: the features.
        sign: 1 for rows of p, −1 for those of q.
        log_ratio: u, 0 for rows without weight.
        weight: of either sample one half.
        fold: each row's; −1 for rows without weight.
        group: which rows depend on each other; each row its own where none do.
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
    groups: Int[Array, " n+m"] | None = None,
) -> Misfit:
    """The excess cross-entropy seen by whichever of two probes sees it more surely.

    The residual of a row, its label less the classifier's probability, has mean zero given the
    features if the log ratio is right. One probe fits smooth functions to the residuals, the other
    asks whether those of neighbours agree.

    Args:
        features: of both samples, standardised.
        log_ratios: out of fold.
        weights: each sample's sum to one.
        folds: each row's; −1 for rows without weight.
        num_folds: how many.
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
    # Padding may hold NaN: features and log ratios of rows without weight are zeroed.
    samples = [
        _Scored(
            jnp.where((weight > 0)[:, None], x, 0),
            sign,
            jnp.where(weight > 0, u, 0),
            weight / 2,
            fold,
            group,
        )
        for x, sign, u, weight, fold, group in parts
    ]
    pooled = lambda samples: jax.tree.map(lambda *parts: jnp.concatenate(parts), *samples)
    smooth = _gain_of_cosines(pooled(samples), num_folds)
    local = _agreement_of_neighbors(pooled([_some_rows(sample) for sample in samples]), sum(sizes))
    # The larger ratio of gain to standard error, without a division by an error of zero.
    more_sure = local.gain * smooth.std_error > smooth.gain * local.std_error
    return jax.tree.map(lambda *gains: jnp.where(more_sure, *gains), local, smooth)


def _gain_of_cosines(rows: _Scored, num_folds: int) -> Misfit:
    """Fit the residuals of all folds but one by random cosines, and score them on that one.

    The probe is one of Newton's steps from the log ratio u towards the ridge logistic regression on
    cosines φ, c = (Φᵀ W Φ + ridge)⁻¹ Φᵀ residual.
    """
    x, sign, u, weight, fold, group = rows
    phi = jnp.where((weight > 0)[:, None], _cosines(x), 0)
    wrong = rows.wrong
    # Minus the first derivative of the balanced cross-entropy in u, and its second one.
    residual, curvature = weight * sign * wrong, weight * wrong * (1 - wrong)
    # Σw² is the share of a single row: so the precision of the prior is in rows.
    ridge = _RIDGE * jnp.eye(phi.shape[1], dtype=phi.dtype) * jnp.sum(weight**2)

    def losses_at(rows, u):
        return jnp.where(rows, weight * jax.nn.softplus(-sign * u), 0)

    def gains(k):
        others = fold != k
        fitted = jnp.where(others, curvature, 0)
        hessian = jnp.matmul(phi.T * fitted, phi, precision="highest")
        step = linalg.solve(hessian + ridge, phi.T @ jnp.where(others, residual, 0))
        # A full step overshoots where u is surely wrong, and its curvature vanishes.
        change = phi @ step
        lengths = jnp.asarray(_LENGTHS, u.dtype)
        losses = jax.lax.map(
            lambda length: jnp.sum(losses_at(others, u + length * change)), lengths
        )
        moved = u + lengths[jnp.argmin(losses)] * change
        return jnp.where(others, 0, jax.nn.softplus(-sign * u) - jax.nn.softplus(-sign * moved))

    # Each row has a gain in its own fold alone.
    each = jnp.sum(jax.lax.map(gains, jnp.arange(num_folds)), axis=0)
    means = [2 * jnp.sum(jnp.where(own, weight * each, 0)) for own in (sign > 0, sign < 0)]
    # The samples were drawn separately, so that each is centred at its own mean.
    deviations = weight * (each - jnp.where(sign > 0, *means))
    return Misfit((means[0] + means[1]) / 2, _error_of_sum(deviations, group, len(u)))


def _error_of_sum(
    terms: Float[Array, " n"], group: Int[Array, " n"], num_groups: int
) -> Float[Array, ""]:
    """Of terms of mean zero, which are independent from group to group."""
    return jnp.linalg.norm(jax.ops.segment_sum(terms, group, num_groups))


def _agreement_of_neighbors(rows: _Scored, num_groups: int) -> Misfit:
    """½ E[e(z) e(z′)] over neighbours z, z′ in one fold; e is the residual over its deviation.

    A log ratio off by δ(z) has residuals of mean δ·c, where c is their variance, and an excess
    cross-entropy of ½ E[c δ²] to second order. Rows of one fold are independent given the model
    that scores them, but within a group: the product of two residuals estimates that of their
    means, which is the square where the rows are near each other, and averages to nothing where
    they are not.
    """
    x, sign, u, weight, fold, group = rows
    # A row that is surely wrong would count for hundreds.
    residual = jnp.where(
        weight > 0, sign * jnp.minimum(jnp.exp(-sign * u / 2), _LARGEST_RESIDUAL), 0
    )
    count = min(_NUM_NEIGHBORS, x.shape[0] - 1)

    def mean_of_neighbors(z, of_group, of_fold):
        squares = squared_distances(z, x)
        # Given the model, rows are independent within a fold, except for those of one group.
        strangers = (fold != of_fold[:, None]) | (group == of_group[:, None]) | (weight <= 0)
        nearest, which = jax.lax.top_k(-jnp.where(strangers, jnp.inf, squares), count)
        mass = jnp.where(jnp.isfinite(nearest), weight[which], 0)
        total = jnp.sum(mass, axis=1)
        return jnp.sum(mass * residual[which], axis=1) / jnp.where(total > 0, total, 1)

    neighbors = map_row_blocks(mean_of_neighbors, len(u), x, group, fold)
    terms = weight * residual * neighbors / 2
    # Most pairs stand here twice, once from either end.
    return Misfit(jnp.sum(terms), jnp.sqrt(2) * _error_of_sum(terms, group, num_groups))


def _some_rows(rows: _Scored) -> _Scored:
    """At most `_MAX_ROWS` of those with weight, the same for all samples of this size."""
    if rows.x.shape[0] <= _MAX_ROWS:
        return rows
    order = jax.random.uniform(jax.random.key(0), rows.weight.shape)
    chosen = jax.lax.top_k(jnp.where(rows.weight > 0, order, -1), _MAX_ROWS)[1]
    rows = jax.tree.map(lambda leaf: leaf[chosen], rows)
    total = jnp.sum(rows.weight)
    # The weights of either sample sum to one half again.
    return rows._replace(weight=rows.weight / jnp.where(total > 0, 2 * total, 1))


def _cosines(x: Float[Array, "n d"]) -> Float[Array, "n m"]:
    """A constant and random cosines; the same for all samples of as many features."""
    d = x.shape[1]
    rng = np.random.default_rng(0)
    scales = np.repeat(_LENGTH_SCALES, _NUM_COSINES) * np.sqrt(d)
    frequencies = rng.normal(size=(d, scales.size)) / scales
    phases = rng.uniform(0, 2 * np.pi, scales.size)
    waves = jnp.cos(x @ jnp.asarray(frequencies, x.dtype) + jnp.asarray(phases, x.dtype))
    return jnp.concatenate([jnp.ones_like(x[:, :1]), waves], axis=1)
