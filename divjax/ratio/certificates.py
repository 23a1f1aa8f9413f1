"""Lower confidence bounds on the Jensen–Shannon divergence that hold for any distributions.

For any function u, ½E_p[log 2 − log(1 + e^{−u})] + ½E_q[log 2 − log(1 + e^u)] ≤ JS(p, q). Held-out
rows, in pairs of one row of p and one of q (several rows of the larger sample are averaged),
therefore give bounded terms whose conditional mean given the past is at most JS. Betting against a
mean of at most m refutes every m that is too small. Two kinds of bets share the error probability
δ = 1 − confidence:

- **by folds**: the model fitted to the other folds bets on each fold's pairs, at δ/(2K) per fold;
- **in sequence**, at δ/2: a model fitted to the first half of the folds bets on the later folds,
  except the last one, which is left to its own model, fitted to all earlier rows. The capital runs
  through more than half of all pairs. The capitals of the other folds must not be multiplied, since
  their models have been fitted to each other's rows.

The scale and the clip of each model's log ratios are chosen on its validation rows, which neither
train the model nor are bet on.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from divjax.core.checks import check_scalar
from divjax.core.numerics import nan_unless
from divjax.inference.betting import LARGEST_STAKE, betting_lower_bound
from divjax.ratio.protocols import num_rows

__all__ = ["HeldOut", "SequentialScores", "js_lower_bound", "num_first_folds"]

# Scale factors and clips of a log ratio, chosen on the validation rows. A factor below 1 lowers the
# terms' mean to second order and their standard deviation to first.
_SLOPES = (0.5, 0.7, 0.85, 1.0)
_CLIPS = (0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


class HeldOut(NamedTuple):
    """The held-out log ratios of one split, before calibration.

    Attributes:
        log_ratio: the log ratio of each row, by the head that was not fitted to it.
        fold: the fold of each row, −1 for rows of weight zero.
        rank: the position of each row in the random order that is cut into folds.
    """

    log_ratio: Float[Array, " n"]
    fold: Int[Array, " n"]
    rank: Int[Array, " n"]


class SequentialScores(NamedTuple):
    """The first split's scores that certificates need in addition to the held-out log ratios.

    Attributes:
        first_p: log ratios of the samples of p by the model fitted to the first folds alone; with
            fewer than three folds, by the last fold's own model.
        first_q: log ratios of the samples of q by that model.
        validation_p: log ratios of each fold's model at its validation rows of p, followed by those
            of the first folds' model.
        validation_q: log ratios at the validation rows of q, likewise.
        weights_p: weights of the validation rows of p, summing to one for each model.
        weights_q: weights of the validation rows of q, likewise.
    """

    first_p: Float[Array, " n"]
    first_q: Float[Array, " m"]
    validation_p: Float[Array, "models a"]
    validation_q: Float[Array, "models b"]
    weights_p: Float[Array, "models a"]
    weights_q: Float[Array, "models b"]


class _Transform(NamedTuple):
    """The scale and the clip of each model's log ratios."""

    slope: Float[Array, " models"]
    clip: Float[Array, " models"]

    def gain(self, u: Float[Array, "..."], model: Int[Array, "..."]) -> Float[Array, "..."]:
        """Log 2 − log(1 + e^{−u}) for the log ratios u of these models."""
        return _gain(self.slope[model] * u, self.clip[model])


def num_first_folds(num_folds: int) -> int:
    """The number of folds that train the first model of the sequence; 0 if it is not used."""
    return num_folds // 2 if num_folds > 2 else 0


def js_lower_bound(
    held_out: tuple[HeldOut, HeldOut],
    scores: SequentialScores,
    num_folds: int,
    confidence_level: ArrayLike,
    clip: float | None = None,
) -> Float[Array, ""]:
    """The larger of the two bounds, by folds and in sequence; NaN if a log ratio is NaN.

    Args:
        held_out: the first split's rows of p and of q.
        scores: the further scores of the same split.
        num_folds: K.
        confidence_level: the minimum coverage probability of the bound.
        clip: the largest absolute log ratio, chosen on the validation rows by default.
    """
    check_scalar(confidence_level=confidence_level, clip=clip)
    dtype = held_out[0].log_ratio.dtype
    confidence_level = jnp.asarray(confidence_level, dtype)
    delta = nan_unless((confidence_level > 0) & (confidence_level < 1), 1 - confidence_level)
    first = num_first_folds(num_folds)
    # A union bound: half of δ is for the sequence, the other half is shared by the folds. Two folds
    # have no sequence and use all of δ.
    share = 2 if first else 1
    by_fold_delta = delta / (share * num_folds)

    pairing = _pairing(held_out, num_folds)
    # Entries beyond a fold's own number of pairs are padding, "folds size".
    mask = jnp.arange(pairing.size) < pairing.pairs[:, None]

    # The best scale and clip for each model, chosen on its validation rows.
    num_pairs, deltas = pairing.pairs, jnp.full(num_folds, by_fold_delta)
    if first:
        # The last entry is the model of the first folds, which bets on all pairs of the later ones.
        num_pairs = jnp.append(num_pairs, jnp.sum(num_pairs[first:]))
        deltas = jnp.append(deltas, delta / 2)
    transform = _best_transform(scores, num_pairs, -jnp.log(deltas), clip)

    folds = jnp.arange(num_folds)
    scores_p, scores_q = held_out[0].log_ratio, held_out[1].log_ratio
    by_fold = _pair_values(pairing, held_out, transform, scores_p, scores_q, folds)
    # The clip bounds the terms. Its limits are fixed before the betting rows are used.
    lower, upper = _gain(-transform.clip, jnp.inf), _gain(transform.clip, jnp.inf)

    def bet(values, lower, upper, mask):
        return betting_lower_bound(
            values, lower, upper, confidence_level=1 - by_fold_delta, mask=mask
        )

    # The bounds of all folds hold simultaneously, hence so does the largest of them.
    bound = jnp.max(jax.vmap(bet)(by_fold, lower[:num_folds], upper[:num_folds], mask))
    if first:
        # The last fold's own model has been fitted to all earlier rows.
        model_of = jnp.where(folds == num_folds - 1, folds, num_folds)
        values = _pair_values(
            pairing, held_out, transform, scores.first_p, scores.first_q, model_of
        )
        values = values.at[-1].set(by_fold[-1])
        # A value is bounded by the clip of the model that bets on it.
        in_sequence = betting_lower_bound(
            values[first:].ravel(),
            jnp.repeat(lower[model_of[first:]], pairing.size),
            jnp.repeat(upper[model_of[first:]], pairing.size),
            confidence_level=1 - delta / 2,
            mask=mask[first:].ravel(),
        )
        bound = jnp.maximum(bound, in_sequence)
    # JS is never negative: 0 is a bound at any confidence. NaN is propagated.
    return jnp.maximum(bound, 0)


def _gain(u: ArrayLike, clip: ArrayLike) -> Array:
    """The decrease of a row's loss below log 2, at the clipped log ratio u."""
    return math.log(2) - jax.nn.softplus(-jnp.clip(u, jnp.negative(clip), clip))


class _Pairing(NamedTuple):
    """Each fold's held-out rows in pairs; each pair has one row of the smaller sample there.

    Attributes:
        pairs: the number of pairs of each fold.
        slot_p: the pair that each row of p belongs to.
        slot_q: the pair that each row of q belongs to.
        size: a static bound on the number of pairs of a fold.
    """

    pairs: Int[Array, " folds"]
    slot_p: Int[Array, " n"]
    slot_q: Int[Array, " m"]
    size: int


def _pairing(held_out: tuple[HeldOut, HeldOut], num_folds: int) -> _Pairing:
    """The pairs of the held-out rows. The larger sample's rows are dealt to the pairs in turn."""
    part_p, part_q = held_out
    count_p, count_q = _counts(part_p.fold, num_folds), _counts(part_q.fold, num_folds)
    pairs = jnp.minimum(count_p, count_q)
    # A fold's share of the smaller sample, with room for rounding.
    size = min(-(-part.fold.shape[0] // num_folds) for part in held_out) + 1
    return _Pairing(pairs, _slots(part_p, count_p, pairs), _slots(part_q, count_q, pairs), size)


def _pair_values(
    pairing: _Pairing,
    held_out: tuple[HeldOut, HeldOut],
    transform: _Transform,
    u_p: Float[Array, " n"],
    u_q: Float[Array, " m"],
    model_of: Int[Array, " folds"],
) -> Float[Array, "folds size"]:
    """Each fold's pairs of gains, where `model_of` maps a fold to its model."""
    part_p, part_q = held_out
    shape = pairing.pairs.shape[0], pairing.size
    # The value of a pair is ½ gain(u_p) + ½ gain(−u_q), whose mean is at most JS for any u.
    gains_p = transform.gain(u_p, model_of[part_p.fold])
    gains_q = transform.gain(-u_q, model_of[part_q.fold])
    means_p = _pair_means(gains_p, part_p.fold, pairing.slot_p, shape)
    means_q = _pair_means(gains_q, part_q.fold, pairing.slot_q, shape)
    return (means_p + means_q) / 2


def _counts(fold: Int[Array, " n"], num_folds: int) -> Int[Array, " folds"]:
    """The number of rows in each fold."""
    return (
        jnp.zeros(num_folds, fold.dtype).at[_fold_or_sentinel(fold, num_folds)].add(1, mode="drop")
    )


def _fold_or_sentinel(fold: Int[Array, " n"], num_folds: int) -> Int[Array, " n"]:
    """The fold of each row, out of range for rows without one."""
    return jnp.where(fold >= 0, fold, num_folds)


def _slots(
    part: HeldOut, count: Int[Array, " folds"], pairs: Int[Array, " folds"]
) -> Int[Array, " n"]:
    """The pair of its fold that each row belongs to, cyclically for the larger sample."""
    # The ranks of a fold are consecutive: relative to its start they count from 0.
    start = jnp.cumsum(count) - count
    return (part.rank - start[part.fold]) % jnp.maximum(pairs[part.fold], 1)


def _pair_means(
    gains: Float[Array, " n"],
    fold: Int[Array, " n"],
    slot: Int[Array, " n"],
    shape: tuple[int, int],
) -> Float[Array, "folds size"]:
    """The mean gain over each pair's rows of one sample."""
    place = _fold_or_sentinel(fold, shape[0]), slot
    empty = jnp.zeros(shape, gains.dtype)
    total = empty.at[place].add(gains, mode="drop")
    count = empty.at[place].add(1.0, mode="drop")
    return total / jnp.maximum(count, 1)


def _best_transform(
    scores: SequentialScores,
    num_pairs: Int[Array, " models"],
    log_term: Float[Array, " models"],
    clip: float | None,
) -> _Transform:
    """For each model the slope and the clip of the largest bound predicted from validation rows.

    A stake of λ on n pairs of mean μ and variance v refutes up to about μ − L/(nλ) − λv/2 with
    L = log(1/δ). The best λ = √(2L/(nv)) is limited by the largest possible loss, μ − lower.
    """
    dtype = scores.first_p.dtype
    slope_grid, clip_grid = np.meshgrid(_SLOPES, _CLIPS if clip is None else (clip,))
    slopes, clips = jnp.asarray(slope_grid.ravel(), dtype), jnp.asarray(clip_grid.ravel(), dtype)

    def predicted(u_p, u_q, a, b, n, log_term, slope, clip):
        mean, variance = jnp.zeros((), dtype), jnp.zeros((), dtype)
        for u, weights in ((u_p, a), (-u_q, b)):
            # Padding may hold NaN, which a weight of zero does not remove.
            gains = jnp.where(weights > 0, _gain(slope * u, clip), 0)
            own = jnp.dot(weights, gains)
            # The rows of a pair are independent: half the sum of two gains has a quarter of the sum
            # of their variances.
            mean += own / 2
            variance += jnp.dot(weights, (gains - own) ** 2) / 4
        # A few rows underestimate the variance of gains that are nearly constant.
        variance = jnp.maximum(variance, 1e-4)
        # The stake of the docstring, up to the largest that a value at the lower end allows.
        most = LARGEST_STAKE / (mean - _gain(-clip, jnp.inf))
        stake = jnp.minimum(jnp.sqrt(2 * log_term / (n * variance)), most)
        return mean - log_term / (n * stake) - stake * variance / 2

    # The grid is the inner axis and models are the outer one: "models grid".
    over_grid = jax.vmap(predicted, (None,) * 6 + (0, 0))
    bounds = jax.vmap(over_grid, (0,) * 6 + (None, None))(
        *scores[2:], jnp.maximum(num_pairs, 1).astype(dtype), log_term, slopes, clips
    )
    best = jnp.argmax(bounds, axis=1)
    # With too few validation rows for a choice, the usual setting is taken.
    few = jax.vmap(num_rows)(scores.weights_p, scores.weights_q) < 20
    usual = int(np.argmin(np.abs(slope_grid - 0.85) + np.abs(clip_grid - 1.5)))
    best = jnp.where(few, usual, best)
    return _Transform(slopes[best], clips[best])
