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
    samples, weights = (p, q), (weights_p, weights_q)
    keys = jax.random.split(key, num_repeats)
    orders = jax.vmap(lambda k: _shuffle(k, weights))(keys)
    frozen = jax.lax.stop_gradient((samples, weights))

    def split(orders, fold):
        """The indices and masses of the rows that test, train and validate, of p and of q."""
        each = (
            _split(order, weight, fold, num_folds, validation_share)
            for order, weight in zip(orders, frozen[1], strict=True)
        )
        return zip(*each, strict=True)

    def fit_member(task):
        key, orders, fold = task
        _, *parts = split(orders, fold)
        train, validation = (
            Rows(*(x[index] for x, index in zip(frozen[0], indices, strict=True)), *masses)
            for indices, masses in (zip(*part, strict=True) for part in parts)
        )
        member = _standardizer(train, tie_counts)
        data = Fold(_standardize(member, train, True), _standardize(member, validation, False))
        params = head.fit(jax.random.fold_in(key, 1), data)
        losses = [
            cross_entropy(head(params, rows.p), head(params, rows.q), *rows.weights)
            for rows in data
        ]
        return member._replace(params=params), losses

    folds = jnp.arange(num_folds)
    tasks = jax.vmap(
        lambda key, orders: jax.vmap(lambda fold: (jax.random.fold_in(key, fold), orders, fold))(
            folds
        )
    )(keys, orders)
    tasks = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), tasks)
    size = (p.shape[0] + q.shape[0]) * (p.shape[1] + 64)
    together = max(1, _BUDGET // size)
    if together >= num_repeats * num_folds:
        members, losses = jax.vmap(fit_member)(tasks)
    else:
        members, losses = jax.lax.map(fit_member, tasks, batch_size=together)
    members, losses = jax.tree.map(
        lambda leaf: leaf.reshape(num_repeats, num_folds, *leaf.shape[1:]), (members, losses)
    )

    def out_of_fold(members, orders):
        """Each row's log ratio by the member that has not seen it, calibrated by other folds."""
        fold_of = [_fold_of(*args, num_folds) for args in zip(orders, weights, strict=True)]

        def test(member, fold):
            """The fold's log ratios at their rows, zero at the others."""
            found = []
            for x, (index, mass) in zip(samples, next(split(orders, fold)), strict=True):
                u = jnp.where(mass > 0, head(member.params, _features(member, x[index])), 0)
                found.append(jnp.zeros(x.shape[0], u.dtype).at[index].add(u))
            return found

        raw = [jnp.sum(u, axis=0) for u in jax.vmap(test)(members, folds)]
        fixed = jax.lax.stop_gradient(raw)

        def calibrate(fold):
            """The calibration by the other folds, and the cross-entropy of this one."""
            own, others = zip(
                *(
                    (
                        _normalize(jnp.where(of == fold, w, 0)),
                        _normalize(jnp.where(of == fold, 0, w)),
                    )
                    for of, w in zip(fold_of, frozen[1], strict=True)
                ),
                strict=True,
            )
            return _calibrate(*fixed, *others, calibration), cross_entropy(*fixed, *own)

        calibrations, losses = jax.vmap(calibrate)(folds)
        out = []
        for u, of in zip(raw, fold_of, strict=True):
            intercept, slope = calibrations[of].T
            out.append(jnp.where(of >= 0, intercept + slope * u, 0))
        held_out = [HeldOut(u, of) for u, of in zip(fixed, fold_of, strict=True)]
        return calibrations, losses, out, held_out

    calibrations, test, out, held_out = jax.vmap(out_of_fold)(members, orders)
    members = jax.lax.stop_gradient(members._replace(calibration=calibrations))
    u_p, u_q = (jnp.mean(u, axis=0) for u in out)
    held_out = jax.tree.map(lambda leaf: leaf[0], held_out)
    return CrossFit(members, u_p, u_q, *held_out, *losses, test)


def ensemble_log_ratio(members: Member, head: Head, x: Float[Array, "b d"]) -> Float[Array, " b"]:
    """The mean of all members' calibrated log ratios."""

    def one(member):
        u = head(member.params, _features(member, x))
        return member.calibration[0] + member.calibration[1] * u

    return jnp.mean(jax.vmap(jax.vmap(one))(members), axis=(0, 1))


def _shuffle(
    key: Key[Array, ""], weights: tuple[Float[Array, " n"], ...]
) -> tuple[Int[Array, " n"], ...]:
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
    """The rows that test, train and validate: indices, and weights that sum to one.

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


def _standardize(member: Member, rows: Rows, trained: bool) -> Rows:
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
