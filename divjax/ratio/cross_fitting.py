"""Cross-fitting: the one frame around every head.

Each repeat splits the rows into folds at random. For each fold a head is fitted to the other rows,
standardised on its training rows and stopped or chosen by its validation rows, and is then
evaluated on the fold, which it has not seen. All folds and repeats are fitted under one `vmap`.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from divjax.core.checks import check_shape
from divjax.core.standardize import mean_and_scale
from divjax.ratio.logistic import newton_logistic
from divjax.ratio.types import Fold, Head, Rows, cross_entropy, num_rows

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
    validation_share: float,
    calibration: str,
    tie_counts: bool,
) -> CrossFit:
    """Fit a head out of fold; log ratios are differentiable in the rows, the heads held fixed."""
    keys = jax.random.split(key, num_repeats)
    orders = jax.vmap(lambda key: _shuffle(key, weights_p, weights_q))(keys)
    fixed_p, fixed_q, *fixed_weights = jax.lax.stop_gradient((p, q, weights_p, weights_q))

    def split(orders, fold):
        """The parts of the rows that test, train and validate."""
        each = (
            _split(order, weights, fold, num_folds, validation_share)
            for order, weights in zip(orders, fixed_weights, strict=True)
        )
        return [_Part(p, q, a, b) for (p, a), (q, b) in zip(*each, strict=True)]

    def fit_member(task):
        key, orders, fold = task
        _, train, validation = (part.of(fixed_p, fixed_q) for part in split(orders, fold))
        member = _standardizer(train, tie_counts)
        data = Fold(
            _standardize(member, train, trained=True),
            _standardize(member, validation, trained=False),
        )
        params = head.fit(jax.random.fold_in(key, fold), data)
        check_shape("the log ratio by head", head(params, data.train.p), data.train.p.shape[0])
        losses = [
            cross_entropy(head(params, rows.p), head(params, rows.q), *rows.weights)
            for rows in data
        ]
        return member._replace(params=params), losses

    repeat, fold = jnp.divmod(jnp.arange(num_repeats * num_folds), num_folds)
    tasks = keys[repeat], tuple(order[repeat] for order in orders), fold
    size = (p.shape[0] + q.shape[0]) * (p.shape[1] + 64)
    together = max(1, _BUDGET // size)
    if together >= num_repeats * num_folds:
        members, losses = jax.vmap(fit_member)(tasks)
    else:
        members, losses = jax.lax.map(fit_member, tasks, batch_size=together)
    members, (train, validation) = jax.tree.map(
        lambda leaf: leaf.reshape(num_repeats, num_folds, *leaf.shape[1:]), (members, losses)
    )

    def out_of_fold(members, orders):
        """Each row's log ratio by the member that has not seen it, calibrated by other folds."""

        def test(member, fold):
            """The fold's log ratios at their rows, zero at the others, and its cross-entropy."""
            part = split(orders, fold)[0]
            u_p, u_q = (head(member.params, _features(member, x)) for x in part.of(p, q)[:2])
            spread = (
                jnp.zeros(x.shape[0], u.dtype).at[index].add(jnp.where(weights > 0, u, 0))
                for x, index, weights, u in (
                    (p, part.p, part.weights_p, u_p),
                    (q, part.q, part.weights_q, u_q),
                )
            )
            return tuple(spread), cross_entropy(u_p, u_q, part.weights_p, part.weights_q)

        folds = jnp.arange(num_folds)
        each, losses = jax.vmap(test)(members, folds)
        raw = [jnp.sum(u, axis=0) for u in each]
        fixed = jax.lax.stop_gradient(raw)
        fold_of = [
            _fold_of(order, weights, num_folds)
            for order, weights in zip(orders, fixed_weights, strict=True)
        ]

        def calibrate(fold):
            others_p, others_q = (
                _normalize(jnp.where(of == fold, 0, weights))
                for of, weights in zip(fold_of, fixed_weights, strict=True)
            )
            return _calibrate(fixed[0], fixed[1], others_p, others_q, calibration)

        calibrations = jax.vmap(calibrate)(folds)

        def calibrated(u, of):
            intercept, slope = calibrations[of].T
            return jnp.where(of >= 0, intercept + slope * u, 0)

        out = [calibrated(u, of) for u, of in zip(raw, fold_of, strict=True)]
        held_out = [HeldOut(u, of) for u, of in zip(fixed, fold_of, strict=True)]
        return calibrations, losses, out, held_out

    calibrations, test, out, held_out = jax.vmap(out_of_fold)(members, orders)
    members = jax.lax.stop_gradient(members._replace(calibration=calibrations))
    u_p, u_q = (jnp.mean(u, axis=0) for u in out)
    held_out_p, held_out_q = jax.tree.map(lambda leaf: leaf[0], held_out)
    return CrossFit(
        members, u_p, u_q, held_out_p, held_out_q, train, validation, jax.lax.stop_gradient(test)
    )


def ensemble_log_ratio(members: Member, head: Head, x: Float[Array, "b d"]) -> Float[Array, " b"]:
    """The mean of all members' calibrated log ratios."""

    def one(member):
        u = head(member.params, _features(member, x))
        return member.calibration[0] + member.calibration[1] * u

    return jnp.mean(jax.vmap(jax.vmap(one))(members), axis=(0, 1))


class _Part(NamedTuple):
    """Which rows of p and of q play a part, and their weights, which sum to one."""

    p: Int[Array, " a"]
    q: Int[Array, " b"]
    weights_p: Float[Array, " a"]
    weights_q: Float[Array, " b"]

    def of(self, p: Float[Array, "n d"], q: Float[Array, "m d"]) -> Rows:
        return Rows(p[self.p], q[self.q], self.weights_p, self.weights_q)


def _shuffle(key: Key[Array, ""], *weights: Float[Array, " n"]) -> tuple[Int[Array, " n"], ...]:
    """The rows of each sample in random order, those without weight last."""
    keys = jax.random.split(key, len(weights))
    return tuple(
        jnp.argsort(jnp.where(w > 0, jax.random.uniform(k, w.shape), 2.0))
        for k, w in zip(keys, weights, strict=True)
    )


def _fold_of(
    order: Int[Array, " n"], weights: Float[Array, " n"], num_folds: int
) -> Int[Array, " n"]:
    """The fold that tests each row: equal parts of the order; −1 for rows without weight."""
    n = order.shape[0]
    rank = jnp.zeros(n, order.dtype).at[order].set(jnp.arange(n, dtype=order.dtype))
    used = jnp.sum(weights > 0)
    return jnp.where(weights > 0, (2 * rank + 1) * num_folds // (2 * used), -1)


def _split(
    order: Int[Array, " n"],
    weights: Float[Array, " n"],
    fold: Int[Array, ""],
    num_folds: int,
    validation_share: float,
) -> list[tuple[Int[Array, " size"], Float[Array, " size"]]]:
    """The rows of one sample that test, train and validate: indices and weights.

    In the random order the validation rows follow the fold, and the training rows follow them. A
    part's shape is what it has if all rows have weight; its first row fills it, without weight.
    """
    n, rest = order.shape[0], 1 - 1 / num_folds
    used = jnp.sum(weights > 0)
    # The ranks of which `_fold_of` says so.
    start, stop = ((2 * k * used + num_folds - 1) // (2 * num_folds) for k in (fold, fold + 1))
    others = used - (stop - start)
    # A row at least to either part, however small or large the share.
    held = jnp.clip(jnp.round(validation_share * others).astype(others.dtype), 1, others - 1)

    def part(first, count, share):
        size = min(n, math.ceil(share * n) + 2)
        offset = jnp.arange(size)
        index = order[(first + jnp.where(offset < count, offset, 0)) % used]
        return index, _normalize(jnp.where(offset < count, weights[index], 0))

    return [
        part(start, stop - start, 1 / num_folds),
        part(stop + held, others - held, rest * (1 - validation_share)),
        part(stop, held, rest * validation_share),
    ]


def _normalize(weights: Float[Array, " n"]) -> Float[Array, " n"]:
    total = jnp.sum(weights)
    return weights / jnp.where(total > 0, total, 1)


def _standardizer(train: Rows, tie_counts: bool) -> Member:
    """A member whose inputs' mean and scale are those of the training rows, both samples alike."""
    x, weights = jnp.concatenate(train[:2]), jnp.concatenate(train.weights) / 2
    values = None
    if tie_counts:
        values = jnp.sort(jnp.where(weights > 0, x.T, jnp.inf), axis=1)
    member = Member(jnp.zeros((), x.dtype), jnp.ones((), x.dtype), values, (), jnp.zeros(2))
    mean, scale = mean_and_scale(_features(member, x, trained=True), weights)
    return member._replace(mean=mean, scale=scale)


def _standardize(member: Member, rows: Rows, *, trained: bool) -> Rows:
    p, q = (_features(member, x, trained) for x in rows[:2])
    return rows._replace(p=p, q=q)


def _features(member: Member, x: Float[Array, "b d"], trained: bool = False) -> Float[Array, "b p"]:
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
