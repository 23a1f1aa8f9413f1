"""Cross-fitting: the one frame around every head.

Each repeat splits the rows into folds at random. For each fold a head is fitted to the other rows,
standardised on its training rows and stopped or chosen by its validation rows, and is then
evaluated on the fold, which it has not seen. All folds and repeats are fitted under one `vmap`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key, PyTree

from divjax.core.standardize import mean_and_scale
from divjax.ratio.logistic import newton_logistic
from divjax.ratio.types import Fold, Head, cross_entropy, num_rows

__all__ = ["CALIBRATIONS", "CrossFit", "HeldOut", "Member", "cross_fit", "ensemble_log_ratio"]

CALIBRATIONS = ("none", "temperature", "platt")

# The precision of the Gaussian prior around 0 and 1 on intercept and slope of a calibration, in
# rows: a log ratio is trusted to about a third unless the rows say otherwise.
CALIBRATION_PRIOR = 10.0

# Fits run side by side while their inputs together hold no more numbers than this.
_BUDGET = 2**26


class Member(NamedTuple):
    """One fitted head with what its inputs and its output go through.

    Attributes:
        mean: the training rows' mean of each feature.
        scale: their standard deviation, 1 where it is 0.
        values: each feature's training values, sorted and padded by infinity, if ties are counted.
        params: the head's.
        calibration: the intercept and the slope of the calibrated log ratio.
    """

    mean: Float[Array, " d"]
    scale: Float[Array, " d"]
    values: Float[Array, "d rows"] | None
    params: PyTree[Array]
    calibration: Float[Array, " 2"]


class HeldOut(NamedTuple):
    """One split's rows, each with what the head that has not seen it says, before calibration.

    Attributes:
        log_ratio: for each row.
        fold: the fold of each row; −1 for rows without weight.
    """

    log_ratio: Float[Array, " n"]
    fold: Int[Array, " n"]


class CrossFit(NamedTuple):
    """All members, with leading axes (repeat, fold), and what they say of the rows.

    Attributes:
        members: the fitted heads.
        log_ratio_p: out of fold, averaged over the repeats.
        log_ratio_q: the same for q.
        held_out_p: the first split's.
        held_out_q: the same for q.
        train: the training rows' balanced cross-entropy for each member.
        validation: the same for the validation rows.
        test: the same for the fold itself, before calibration.
    """

    members: Member
    log_ratio_p: Float[Array, " n"]
    log_ratio_q: Float[Array, " m"]
    held_out_p: HeldOut
    held_out_q: HeldOut
    train: Float[Array, "repeats folds"]
    validation: Float[Array, "repeats folds"]
    test: Float[Array, "repeats folds"]


def cross_fit(
    key: Key[Array, ""],
    p: Float[Array, "n d"],
    q: Float[Array, "m d"],
    weights_p: Float[Array, " n"],
    weights_q: Float[Array, " m"],
    head: Head,
    *,
    num_folds: int,
    num_repeats: int,
    validation_share: ArrayLike,
    calibration: str,
    tie_counts: bool,
) -> CrossFit:
    """Fit a head out of fold; log ratios are differentiable in the rows, the heads held fixed."""
    rows = {"p": (p, weights_p), "q": (q, weights_q)}
    keys = jax.random.split(key, num_repeats)
    places = jax.vmap(lambda k: _places(k, weights_p, weights_q))(keys)
    frozen = jax.lax.stop_gradient(rows)

    def fit_member(task):
        key, place_p, place_q, fold = task
        parts = {
            name: _parts(place, fold, num_folds, validation_share)
            for name, place in (("p", place_p), ("q", place_q))
        }

        def weigh(name, part):
            return _normalize(jnp.where(parts[name][part], frozen[name][1], 0))

        train_p, train_q = weigh("p", 1), weigh("q", 1)
        member = _standardizer(frozen["p"][0], frozen["q"][0], train_p, train_q, tie_counts)
        z_p = _features(member, frozen["p"][0], parts["p"][1])
        z_q = _features(member, frozen["q"][0], parts["q"][1])
        data = Fold(z_p, z_q, train_p, train_q, weigh("p", 2), weigh("q", 2))
        params = head.fit(jax.random.fold_in(key, 1), data)
        u_p, u_q = head(params, z_p), head(params, z_q)
        losses = [cross_entropy(u_p, u_q, weigh("p", part), weigh("q", part)) for part in (1, 2, 0)]
        return member._replace(params=params), losses

    repeats = jnp.repeat(jnp.arange(num_repeats), num_folds)
    tasks = (
        jax.vmap(jax.random.fold_in)(keys[repeats], jnp.tile(jnp.arange(num_folds), num_repeats)),
        places[0][repeats],
        places[1][repeats],
        jnp.tile(jnp.arange(num_folds), num_repeats),
    )
    size = (p.shape[0] + q.shape[0]) * (p.shape[1] + 64)
    together = max(1, _BUDGET // size)
    if together >= num_repeats * num_folds:
        members, losses = jax.vmap(fit_member)(tasks)
    else:
        members, losses = jax.lax.map(fit_member, tasks, batch_size=together)
    members, losses = jax.tree.map(
        lambda leaf: leaf.reshape(num_repeats, num_folds, *leaf.shape[1:]), (members, losses)
    )

    def out_of_fold(repeat_members, place_p, place_q):
        """Each row's log ratio by the member that has not seen it, calibrated by other folds."""
        in_fold = [
            _fold_of(place, num_folds) == jnp.arange(num_folds)[:, None]
            for place in (place_p, place_q)
        ]

        def raw(x, own):
            def one(member, own):
                z = _features(member, x, jnp.zeros(x.shape[0], bool))
                return jnp.where(own, head(member.params, z), 0)

            return jnp.sum(jax.vmap(one)(repeat_members, own), axis=0)

        raw_p, raw_q = raw(p, in_fold[0]), raw(q, in_fold[1])
        fixed_p, fixed_q = jax.lax.stop_gradient((raw_p, raw_q))
        calibrations = jax.vmap(
            lambda own_p, own_q: _calibrate(
                fixed_p,
                fixed_q,
                _normalize(jnp.where(own_p, 0, frozen["p"][1])),
                _normalize(jnp.where(own_q, 0, frozen["q"][1])),
                calibration,
            )
        )(*in_fold)

        def calibrated(own, u):
            return jnp.sum(jnp.where(own, calibrations[:, :1] + calibrations[:, 1:] * u, 0), axis=0)

        u_p, u_q = calibrated(in_fold[0], raw_p), calibrated(in_fold[1], raw_q)
        return calibrations, (u_p, u_q), (fixed_p, fixed_q)

    calibrations, out, raw = jax.vmap(out_of_fold)(members, *places)
    members = jax.lax.stop_gradient(members._replace(calibration=calibrations))
    u_p, u_q = (jnp.mean(u, axis=0) for u in out)
    held_out_p, held_out_q = (
        HeldOut(u[0], _fold_of(place[0], num_folds)) for u, place in zip(raw, places, strict=True)
    )
    return CrossFit(members, u_p, u_q, held_out_p, held_out_q, *losses)


def ensemble_log_ratio(members: Member, head: Head, x: Float[Array, "b d"]) -> Float[Array, " b"]:
    """The mean of all members' calibrated log ratios."""

    def one(member):
        u = head(member.params, _features(member, x, jnp.zeros(x.shape[0], bool)))
        return member.calibration[0] + member.calibration[1] * u

    return jnp.mean(jax.vmap(jax.vmap(one))(members), axis=(0, 1))


def _places(key: Key[Array, ""], *weights: Float[Array, " n"]) -> tuple[Float[Array, " n"], ...]:
    """For each row its place in [0, 1) in a random order of the rows with weight; others at −1."""

    def one(key, weights):
        used = weights > 0
        order = jnp.argsort(jnp.where(used, jax.random.uniform(key, weights.shape), 2.0))
        rank = jnp.zeros(weights.shape, int).at[order].set(jnp.arange(weights.shape[0]))
        return jnp.where(used, (rank + 0.5) / jnp.sum(used), -1)

    keys = jax.random.split(key, len(weights))
    return tuple(one(k, w) for k, w in zip(keys, weights, strict=True))


def _fold_of(place: Float[Array, " n"], num_folds: int) -> Int[Array, " n"]:
    return jnp.where(place >= 0, jnp.floor(place * num_folds), -1).astype(int)


def _parts(
    place: Float[Array, " n"], fold: Array, num_folds: int, validation_share: ArrayLike
) -> tuple[Bool[Array, " n"], Bool[Array, " n"], Bool[Array, " n"]]:
    """Who tests, trains, and validates: the validation rows follow the fold in the random order."""
    test = _fold_of(place, num_folds) == fold
    after = jnp.mod(place - (fold + 1) / num_folds, 1)
    # A row at least to either part, however small or large the share.
    rest, row = 1 - 1 / num_folds, 1 / jnp.sum(place >= 0).astype(place.dtype)
    share = jnp.maximum(jnp.minimum(validation_share * rest, rest - row), row)
    validation = ~test & (after < share) & (place >= 0)
    return test, (place >= 0) & ~test & ~validation, validation


def _normalize(weights: Float[Array, " n"]) -> Float[Array, " n"]:
    total = jnp.sum(weights)
    return weights / jnp.where(total > 0, total, 1)


def _standardizer(
    p: Float[Array, "n d"],
    q: Float[Array, "m d"],
    train_p: Float[Array, " n"],
    train_q: Float[Array, " m"],
    tie_counts: bool,
) -> Member:
    """A member whose inputs' mean and scale are those of the training rows, both samples alike."""
    x, weights = jnp.concatenate([p, q]), jnp.concatenate([train_p, train_q]) / 2
    values = None
    if tie_counts:
        values = jnp.sort(jnp.where(weights > 0, x.T, jnp.inf), axis=1)
    member = Member(jnp.zeros((), x.dtype), jnp.ones((), x.dtype), values, (), jnp.zeros(2))
    mean, scale = mean_and_scale(_features(member, x, weights > 0), weights)
    return member._replace(mean=mean, scale=scale)


def _features(
    member: Member, x: Float[Array, "b d"], trained: Bool[Array, " b"]
) -> Float[Array, "b p"]:
    """Standardised features: the inputs and, if asked for, log(1 + the number of their ties).

    Ties are the training rows with exactly this value, a training row itself not counted.
    """
    if member.values is not None:

        def count(values, column):
            sides = (jnp.searchsorted(values, column, side=side) for side in ("left", "right"))
            left, right = sides
            return right - left - trained

        counts = jax.vmap(count, in_axes=(0, 1), out_axes=1)(member.values, x)
        x = jnp.concatenate([x, jnp.log1p(counts.astype(x.dtype))], axis=1)
    return (x - member.mean) / member.scale


def _calibrate(
    u_p: Float[Array, " n"],
    u_q: Float[Array, " m"],
    weights_p: Float[Array, " n"],
    weights_q: Float[Array, " m"],
    kind: str,
) -> Float[Array, " 2"]:
    """The intercept a and slope b of the log ratio a + b·u that fits these rows best.

    The prior decides where the rows do not, as when p and q hardly overlap.
    """
    identity = jnp.array([0.0, 1.0], u_p.dtype)
    if kind == "none":
        return identity
    used = jnp.array([1.0 if kind == "platt" else 0.0, 1.0], u_p.dtype)
    phi_p, phi_q = (jnp.stack([jnp.ones_like(u), u], axis=1) * used for u in (u_p, u_q))
    weights = weights_p, weights_q
    penalty = jnp.full(2, CALIBRATION_PRIOR / num_rows(weights_p, weights_q), u_p.dtype)
    change = newton_logistic(phi_p, phi_q, *weights, penalty, u_p, u_q)
    return identity + jnp.where(jnp.isfinite(change).all(), change, 0)
