"""Cross-fitting: the wrapper around every head.

Each repeat splits the rows into folds at random. For each fold a head is fitted to the other rows,
with standardisation on its training rows and early stopping or model selection on its validation
rows, and is then evaluated on the held-out fold. All folds and repeats are fitted under one `vmap`.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from divjax.core.pytrees import for_each
from divjax.core.standardize import (
    Standardizer,
    mean_and_scale,
    robust_standardizer,
)
from divjax.ratio.certificates import HeldOut, SequentialScores, num_first_folds
from divjax.ratio.heads.logistic import newton_logistic
from divjax.ratio.misfit import Misfit, misfit
from divjax.ratio.protocols import (
    Fold,
    Head,
    Rows,
    cross_entropy,
    is_parametric,
    log_ratios,
    num_rows,
    training_log_ratios,
)

__all__ = [
    "CALIBRATIONS",
    "CrossFit",
    "CrossFitting",
    "HeldOut",
    "Member",
    "cross_fit",
    "ensemble_log_ratio",
]

CALIBRATIONS = ("none", "temperature", "platt")

# The precision of the Gaussian prior around 0 and 1 on intercept and slope of a calibration, in
# rows: a prior standard deviation of about a third.
CALIBRATION_PRIOR = 10.0

# Fits run simultaneously while their inputs together hold no more numbers than this.
_BUDGET = 2**26


class Member(NamedTuple):
    """One fitted head with the transforms of its inputs and of its output.

    Attributes:
        standardizer: each feature's location, scale and limits, from the training rows.
        values: each feature's training values, sorted and padded by infinity, if ties are counted.
        params: the head's parameters.
        calibration: the intercept and the slope of the calibrated log ratio.
    """

    standardizer: Standardizer
    values: Float[Array, "d rows"] | None
    params: PyTree[Array]
    calibration: Float[Array, " 2"]

    @property
    def mean(self) -> Float[Array, " d"]:
        """The training rows' mean of each feature, with outliers clipped to the limits."""
        return self.standardizer.mean

    @property
    def scale(self) -> Float[Array, " d"]:
        """The training rows' standard deviation of each feature, with 0 replaced by 1."""
        return self.standardizer.scale


class CrossFit(NamedTuple):
    """All members, with leading axes (repeat, fold), and their scores of the rows.

    Attributes:
        members: the fitted heads.
        log_ratio_p: out-of-fold log ratios of the samples of p, averaged over the repeats.
        log_ratio_q: out-of-fold log ratios of the samples of q, likewise.
        held_out_p: the first split's held-out log ratios of the samples of p.
        held_out_q: the first split's held-out log ratios of the samples of q.
        sequential: the first split's further scores, for certificates.
        train: the training rows' balanced cross-entropy for each member.
        validation: the validation rows' balanced cross-entropy.
        test: the balanced cross-entropy of the fold itself, before calibration.
        misfit: the gain of a probe over the log ratios.
    """

    members: Member
    log_ratio_p: Float[Array, " n"]
    log_ratio_q: Float[Array, " m"]
    held_out_p: HeldOut
    held_out_q: HeldOut
    sequential: SequentialScores
    train: Float[Array, "repeats folds"]
    validation: Float[Array, "repeats folds"]
    test: Float[Array, "repeats folds"]
    misfit: Misfit


class CrossFitting(NamedTuple):
    """The static settings of splits, calibration and features.

    Attributes:
        num_folds: K.
        num_repeats: the number of splits.
        validation_share: the share of the rows outside of a fold that are validation rows.
        calibration: one of `CALIBRATIONS`.
        count_duplicates: whether counts of ties are appended to the features.
    """

    num_folds: int
    num_repeats: int
    validation_share: float
    calibration: str
    count_duplicates: bool


def cross_fit(
    key: Key[Array, ""],
    rows: Rows,
    head: Head,
    plan: CrossFitting,
    groups: Int[Array, " rows"] | None = None,
) -> CrossFit:
    """Fit a head out of fold; log ratios are differentiable in the rows with the heads held fixed.

    Rows of one group, numbered over both samples, share a fold and a role. Only the program that
    fits and scores depends on the head: all heads share those before and after it.
    """
    keys, splits = _make_splits(key, rows.weights, groups, plan=plan)
    fitted, scores = _fit_and_score(keys, rows, splits, head, plan=plan)
    calibrated = _calibrate_and_probe(scores, rows.weights, groups, plan=plan)
    return CrossFit(
        members=fitted.members._replace(calibration=calibrated.calibrations),
        log_ratio_p=calibrated.log_ratios[0],
        log_ratio_q=calibrated.log_ratios[1],
        held_out_p=calibrated.first[0],
        held_out_q=calibrated.first[1],
        sequential=fitted.sequential,
        train=fitted.train,
        validation=fitted.validation,
        test=fitted.test,
        misfit=calibrated.misfit,
    )


@functools.partial(jax.jit, static_argnames="plan")
def _make_splits(
    key: Key[Array, ""],
    weights: tuple[Array, Array],
    groups: Int[Array, " rows"] | None,
    *,
    plan: CrossFitting,
) -> tuple[Key[Array, " repeats"], "tuple[_Places, _Places]"]:
    """A key for each repeat, and its random order of the rows."""
    keys = jax.random.split(key, plan.num_repeats)
    weights = jax.lax.stop_gradient(weights)
    return keys, jax.vmap(lambda key: _shuffle(key, weights, groups))(keys)


class _Fitted(NamedTuple):
    """The fields of `CrossFit` that are found before the calibration."""

    members: Member
    sequential: SequentialScores
    train: Float[Array, "repeats folds"]
    validation: Float[Array, "repeats folds"]
    test: Float[Array, "repeats folds"]


class _Scores(NamedTuple):
    """The scores of both samples, whose structure does not depend on the head.

    Attributes:
        log_ratios: out-of-fold log ratios, one row per repeat, differentiable.
        held_out: the same with stopped gradients.
        inputs: standardised features.
    """

    log_ratios: list[Float[Array, "repeats _"]]
    held_out: list[HeldOut]
    inputs: tuple[Float[Array, "n p"], Float[Array, "m p"]]


@functools.partial(jax.jit, static_argnames="plan")
def _fit_and_score(
    keys: Key[Array, " repeats"],
    rows: Rows,
    splits: "tuple[_Places, _Places]",
    head: Head,
    *,
    plan: CrossFitting,
) -> tuple[_Fitted, _Scores]:
    """The heads of all repeats and folds, and their scores of the rows that each did not see."""
    # The heads are fitted without derivatives: at their optimum the divergence does not depend on
    # them to first order.
    fixed = jax.lax.stop_gradient(rows)
    members, train, validation, sequential = _fit_members(keys, fixed, splits, head, plan)
    # Scores are differentiable in the rows, hence `rows` and not `fixed`.
    score = lambda members, split: _score_held_out(rows, members, split, head, plan)
    log_ratios, held_out, test = jax.vmap(score)(members, splits)
    # For tests of the fit any member's standardisation will do.
    member = jax.tree.map(lambda leaf: leaf[0, 0], members)
    inputs = _inputs(member, head, fixed.x), _inputs(member, head, fixed.y)
    fitted = _Fitted(members, sequential, train, validation, test)
    fitted, inputs = jax.lax.stop_gradient((fitted, inputs))
    return fitted, _Scores(log_ratios, held_out, inputs)


class _Calibrated(NamedTuple):
    """Calibrations "repeats folds 2", calibrated log ratios, the first split, and the misfit."""

    calibrations: Float[Array, "repeats folds 2"]
    log_ratios: list[Float[Array, " _"]]
    first: list[HeldOut]
    misfit: Misfit


@functools.partial(jax.jit, static_argnames="plan")
def _calibrate_and_probe(
    scores: _Scores,
    weights: tuple[Array, Array],
    groups: Int[Array, " rows"] | None,
    *,
    plan: CrossFitting,
) -> _Calibrated:
    """The scores calibrated out of fold, and what a probe gains over them."""
    weights, held_out = jax.lax.stop_gradient(weights), scores.held_out
    # Gradients are stopped in `HeldOut`, so that calibrations are constants like the heads.
    calibrate = lambda held_out: _calibrate_folds(held_out, weights, plan)
    calibrations = jax.vmap(calibrate)(held_out)
    # Every split scores each row once. The mean over splits reduces the variance of the fits.
    log_ratios = for_each(
        lambda u, fold: jnp.mean(jax.vmap(_calibrated)(u, fold, calibrations), axis=0),
        [(u, each.fold) for u, each in zip(scores.log_ratios, held_out, strict=True)],
    )
    # Tests and certificates use one split: given its models, the scores of a fold are independent.
    first = jax.tree.map(lambda leaf: leaf[0], held_out)
    found = misfit(
        scores.inputs,
        jax.lax.stop_gradient(tuple(log_ratios)),
        weights,
        tuple(each.fold for each in first),
        plan.num_folds,
        groups,
    )
    return _Calibrated(jax.lax.stop_gradient(calibrations), log_ratios, first, found)


class _Task(NamedTuple):
    """The fit of one member.

    Attributes:
        key: the key of its repeat.
        split: the places of the rows of both samples.
        stream: a number that makes its key from that of the repeat.
        tested: the first fold that it is tested on, and the one after the last.
    """

    key: Key[Array, ""]
    split: "tuple[_Places, _Places]"
    stream: Int[Array, ""]
    tested: tuple[Int[Array, ""], Int[Array, ""]]


def _tasks(
    keys: Key[Array, " repeats"], splits: "tuple[_Places, _Places]", plan: CrossFitting
) -> _Task:
    """One task per repeat and fold, followed by the task for the folds before the first tested."""
    num_folds = plan.num_folds
    repeat, fold = np.divmod(np.arange(plan.num_repeats * num_folds), num_folds)
    tested = np.stack([fold, fold + 1])
    first = num_first_folds(num_folds)
    if first:
        # The extra task tests all folds from `first` on, hence is fitted to the earlier ones alone.
        repeat, fold = np.append(repeat, 0), np.append(fold, num_folds)
        tested = np.append(tested, [[first], [num_folds]], axis=1)
    return _Task(
        keys[repeat],
        jax.tree.map(lambda leaf: leaf[repeat], splits),
        jnp.asarray(fold),
        (jnp.asarray(tested[0]), jnp.asarray(tested[1])),
    )


def _fit_member(
    task: _Task, rows: Rows, head: Head, plan: CrossFitting
) -> tuple[Member, list[Array], tuple[Array, ...]]:
    """The member, its training and validation losses, and its scores of the validation rows."""
    # Standardised by the training rows alone: held-out rows must have no influence.
    _, train, validation = _parts(task.split, rows, task.tested, plan)
    train, validation = train.of(rows.x, rows.y), validation.of(rows.x, rows.y)
    member = _standardizer(train, head, plan.count_duplicates)
    data = Fold(
        _standardize(member, head, train, trained=True),
        _standardize(member, head, validation, trained=False),
    )
    # An instance-based head scores its training rows leave-one-out. Otherwise the gap between
    # training and test would measure copying.
    params = head.fit(jax.random.fold_in(task.key, task.stream), data)
    # The gap between these losses and those of the tested rows measures overfitting.
    held = data.validation
    of_train = training_log_ratios(head, params, data.train)
    of_held = log_ratios(head, params, held.x, held.y)
    losses = [
        cross_entropy(u_p, u_q, *part.weights)
        for (u_p, u_q), part in ((of_train, data.train), (of_held, held))
    ]
    return member._replace(params=params), losses, (*of_held, *held.weights)


def _fit_members(
    keys: Key[Array, " repeats"],
    rows: Rows,
    splits: "tuple[_Places, _Places]",
    head: Head,
    plan: CrossFitting,
) -> tuple[Member, Array, Array, SequentialScores]:
    """The heads of all repeats and folds, with their training and validation losses.

    One more head is fitted to the first split's first folds alone. Only its scores are kept.
    """
    num_repeats, num_folds = plan.num_repeats, plan.num_folds

    tasks = _tasks(keys, splits, plan)
    fit_member = lambda task: _fit_member(task, rows, head, plan)
    # All simultaneously if memory allows: vmapped fits share their loops.
    size = (rows.x.shape[0] + rows.y.shape[0]) * (rows.x.shape[1] + 64)
    together = max(1, _BUDGET // size)
    if together >= len(tasks.stream):
        fitted = jax.vmap(fit_member)(tasks)
    else:
        fitted = jax.lax.map(fit_member, tasks, batch_size=together)

    def by_fold(leaf):
        # The extra task is not a member of the ensemble.
        return leaf[: num_repeats * num_folds].reshape(num_repeats, num_folds, *leaf.shape[1:])

    members, (train, validation) = jax.tree.map(by_fold, fitted[:2])
    last = jax.tree.map(lambda leaf: leaf[-1], fitted[0])
    # Only the scores of rows held out from this model are used.
    first_scores = log_ratios(head, last.params, *(_inputs(last, head, x) for x in rows[:2]))
    # The first split's models, in the order of their folds, followed by the extra one.
    extra = [-1] if num_first_folds(num_folds) else []
    models = np.append(np.arange(num_folds), extra).astype(int)
    sequential = SequentialScores(*first_scores, *(leaf[models] for leaf in fitted[2]))
    return members, train, validation, sequential


def _score_held_out(
    rows: Rows,
    members: Member,
    split: "tuple[_Places, _Places]",
    head: Head,
    plan: CrossFitting,
) -> tuple[list[Array], list[HeldOut], Array]:
    """Each row's held-out log ratio in one repeat, before calibration.

    Returned differentiable in the rows, then as `HeldOut` with stopped gradients, then each fold's
    loss.
    """

    def test(member, fold):
        """The fold's log ratios in place, zero at all other rows, and its cross-entropy."""
        part = _parts(split, rows, (fold, fold + 1), plan)[0]
        p, q, *weights = part.of(*rows[:2])
        u_p, u_q = log_ratios(head, member.params, *(_inputs(member, head, x) for x in (p, q)))
        # Scattered back to the order of the rows. Padding repeats the index of a row in use: `add`
        # leaves that row unchanged, `set` would not.
        spread = [
            jnp.zeros(x.shape[0], u.dtype).at[index].add(jnp.where(weight > 0, u, 0))
            for x, index, weight, u in (
                (rows.x, part.x, part.a, u_p),
                (rows.y, part.y, part.b, u_q),
            )
        ]
        return spread, cross_entropy(u_p, u_q, *weights)

    each, losses = jax.vmap(test)(members, jnp.arange(plan.num_folds))
    # A row of positive weight is tested by one member, so that the sum over folds is its log ratio.
    raw = [jnp.sum(u, axis=0) for u in each]
    folds = for_each(
        lambda places, weights: places.fold_of(weights, plan.num_folds),
        zip(split, rows.weights, strict=True),
    )
    held_out = [
        HeldOut(u, fold, places.rank)
        for u, fold, places in zip(jax.lax.stop_gradient(raw), folds, split, strict=True)
    ]
    return raw, held_out, losses


def _calibrate_folds(
    held_out: list[HeldOut], weights: tuple[Array, Array], plan: CrossFitting
) -> Float[Array, "folds 2"]:
    """Intercept and slope for each fold's log ratios, fitted to the rows of the other folds."""
    of_p, of_q = held_out
    a, b = weights

    def calibrate(fold):
        # The rows of the fold are excluded from its calibration, so that its log ratios remain out
        # of fold.
        others_p = _normalize(jnp.where(of_p.fold == fold, 0, a))
        others_q = _normalize(jnp.where(of_q.fold == fold, 0, b))
        return _calibrate(of_p.log_ratio, of_q.log_ratio, others_p, others_q, plan.calibration)

    return jax.vmap(calibrate)(jnp.arange(plan.num_folds))


def _calibrated(
    u: Float[Array, " n"], fold: Int[Array, " n"], calibrations: Float[Array, "folds 2"]
) -> Float[Array, " n"]:
    intercept, slope = calibrations[fold].T
    return jnp.where(fold >= 0, intercept + slope * u, 0)


def ensemble_log_ratio(members: Member, head: Head, x: Float[Array, "b d"]) -> Float[Array, " b"]:
    """The mean of all members' calibrated log ratios, at any rows."""

    def one(member):
        u = head(member.params, _inputs(member, head, x, extrapolate=True))
        return member.calibration[0] + member.calibration[1] * u

    return jnp.mean(jax.vmap(jax.vmap(one))(members), axis=(0, 1))


class _Part(NamedTuple):
    """Indices of the rows of x and of y in one role, and their weights, which sum to one."""

    x: Int[Array, " i"]
    y: Int[Array, " j"]
    a: Float[Array, " i"]
    b: Float[Array, " j"]

    def of(self, x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Rows:
        return Rows(x[self.x], y[self.y], self.a, self.b)


class _Places(NamedTuple):
    """The random order of one sample's rows, of which each fold is an equal contiguous part.

    Attributes:
        order: row indices in this order, those of weight zero last; None for groups, whose rows
            share a place.
        rank: each row's place.
        count: the number of places, for groups those of the row's kind (see `_shuffle`).
    """

    order: Int[Array, " n"] | None
    rank: Int[Array, " n"]
    count: Int[Array, " n"]

    def fold_of(self, weights: Float[Array, " n"], num_folds: int) -> Int[Array, " n"]:
        """The fold that tests each row; −1 for rows of weight zero."""
        # Place r has its centre at (r + ½)/count and so lies in fold ⌊K (r + ½)/count⌋. Integer
        # arithmetic avoids rounding into another fold.
        fold = (2 * self.rank + 1) * num_folds // (2 * jnp.maximum(self.count, 1))
        return jnp.where(weights > 0, fold, -1)


def _shuffle(
    key: Key[Array, ""], weights: tuple[Array, Array], groups: Int[Array, " rows"] | None
) -> tuple[_Places, _Places]:
    """Random places for the rows of both samples.

    Groups are of three kinds, with rows of p alone, of q alone, and of both. Each kind is
    distributed evenly over the folds, so that every fold has its share of both samples.
    """
    if groups is None:
        of_p, of_q = for_each(_shuffle_rows, zip(jax.random.split(key), weights, strict=True))
        return of_p, of_q
    n, size = weights[0].shape[0], groups.shape[0]
    used = jnp.concatenate(weights) > 0
    # 1 for rows of p, 2 for those of q, 0 for rows of weight zero.
    row_kind = jnp.where(jnp.arange(size) < n, 1, 2) * used
    of_p = jnp.zeros(size, bool).at[groups].max(row_kind == 1)
    of_q = jnp.zeros(size, bool).at[groups].max(row_kind == 2)
    # 1 and 2 for groups of one sample alone, 3 for those of both, 0 for unused numbers.
    kind = of_p + 2 * of_q
    # Kind by kind in random order, entries without rows first.
    order = jnp.lexsort((jax.random.uniform(key, (size,)), kind))
    place = jnp.zeros(size, order.dtype).at[order].set(jnp.arange(size, dtype=order.dtype))
    counts = jnp.zeros(4, order.dtype).at[kind].add(1)
    # Places are counted from 0 within each kind, and a row takes the place of its group.
    rank = place - (jnp.cumsum(counts) - counts)[kind]
    rank, count = rank[groups], counts[kind][groups]
    return _Places(None, rank[:n], count[:n]), _Places(None, rank[n:], count[n:])


def _shuffle_rows(key: Key[Array, ""], weights: Float[Array, " n"]) -> _Places:
    order = jnp.argsort(jnp.where(weights > 0, jax.random.uniform(key, weights.shape), 2.0))
    n = order.shape[0]
    rank = jnp.zeros(n, order.dtype).at[order].set(jnp.arange(n, dtype=order.dtype))
    return _Places(order, rank, jnp.full(n, jnp.sum(weights > 0), order.dtype))


def _parts(
    split: tuple[_Places, _Places],
    rows: Rows,
    tested: tuple[Int[Array, ""], Int[Array, ""]],
    plan: CrossFitting,
) -> list[_Part]:
    """The test, training and validation rows of both samples for one member; see `_split`."""
    of_p, of_q = for_each(
        lambda places, weights: _split(places, weights, tested, plan),
        zip(split, jax.lax.stop_gradient(rows.weights), strict=True),
    )
    return [_Part(p, q, a, b) for (p, a), (q, b) in zip(of_p, of_q, strict=True)]


def _split(
    places: _Places,
    weights: Float[Array, " n"],
    tested: tuple[Int[Array, ""], Int[Array, ""]],
    plan: CrossFitting,
) -> list[tuple[Int[Array, " size"], Float[Array, " size"]]]:
    """The test, training and validation rows of one sample: indices and weights.

    In the random order the tested folds, from the first of `tested` up to but excluding its second,
    are followed by the validation rows and these by the training rows. If several folds are tested,
    only the first rows are returned.
    """
    num_folds, validation_share = plan.num_folds, plan.validation_share
    n = weights.shape[0]
    # Without groups the count is the same for all rows.
    used = places.count if places.order is None else places.count[0]
    # The ranks that `fold_of` assigns to these folds.
    first_rank = lambda fold: (2 * fold * used + num_folds - 1) // (2 * num_folds)
    start, stop = first_rank(tested[0]), first_rank(tested[1])
    others = used - (stop - start)
    # At least one row for each part at any share.
    share = jnp.round(validation_share * others.astype(weights.dtype)).astype(others.dtype)
    held = jnp.clip(share, 1, others - 1)
    held = jnp.maximum(held, 0)

    if places.order is None:
        # All rows in each part: the sizes of groups are known only at run time.
        after = (places.rank - start) % jnp.maximum(used, 1)
        # Ranks relative to the end of the tested part, cyclically: tested rows are negative.
        outside = after - (stop - start)
        masks = outside < 0, outside >= held, (outside >= 0) & (outside < held)
        return [(jnp.arange(n), _normalize(jnp.where(mask, weights, 0))) for mask in masks]

    # Without groups each part is contiguous in the order, of a size that is known up to rounding:
    # gathered rows take less time and memory than masks of all of them.
    order, rest = places.order, 1 - 1 / num_folds

    def part(first, count, share):
        # The size for a sample without zero weights. The first row, at weight zero, is the padding.
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


def _standardizer(train: Rows, head: Head, count_duplicates: bool) -> Member:
    """A member whose inputs are standardised by the training rows of both samples together."""
    x, weights = jnp.concatenate(train[:2]), jnp.concatenate(train.weights)
    # Sorted, so that ties are counted by binary search. Rows of weight zero are padding after all
    # values.
    values = jnp.sort(jnp.where(weights > 0, x.T, jnp.inf), axis=1) if count_duplicates else None
    samples = zip(train[:2], train.weights, strict=True)
    standardizer = robust_standardizer(*samples, keep_tails=is_parametric(head))
    if values is not None:
        # Logarithms of counts have no outliers.
        counts = _features(values, x, trained=True)[:, x.shape[1] :]
        mean, scale = mean_and_scale(counts, weights)
        limit = jnp.full_like(mean, jnp.inf)
        of_counts = Standardizer(mean, scale, -limit, limit)
        standardizer = Standardizer(*map(jnp.append, standardizer, of_counts))
    return Member(standardizer, values, (), jnp.zeros(2, x.dtype))


def _standardize(member: Member, head: Head, rows: Rows, *, trained: bool) -> Rows:
    x = _inputs(member, head, rows.x, trained=trained)
    return rows._replace(x=x, y=_inputs(member, head, rows.y, trained=trained))


def _inputs(
    member: Member,
    head: Head,
    x: Float[Array, "b d"],
    *,
    trained: bool = False,
    extrapolate: bool = False,
) -> Float[Array, "b p"]:
    """The inputs of a head: standardised features, robust to any single row.

    For a parametric head the samples' rows are winsorised and, to extrapolate, any others are
    unchanged.
    """
    features = _features(member.values, x, trained)
    if not is_parametric(head):
        return member.standardizer.squash(features)
    return (member.standardizer.affine if extrapolate else member.standardizer.clip)(features)


def _features(
    values: Float[Array, "d rows"] | None, x: Float[Array, "b d"], trained: bool = False
) -> Float[Array, "b p"]:
    """The inputs and, given the training values, log(1 + the number of ties) of each input.

    Ties are the training rows with exactly this value, excluding the row itself.
    """
    if values is None:
        return x

    def count(own, column):
        left = jnp.searchsorted(own, column, side="left")
        right = jnp.searchsorted(own, column, side="right")
        # A training row is itself among its ties.
        return right - left - trained

    counts = jax.vmap(count, in_axes=(0, 1), out_axes=1)(values, x)
    return jnp.concatenate([x, jnp.log1p(counts.astype(x.dtype))], axis=1)


def _calibrate(
    u_p: Float[Array, " n"],
    u_q: Float[Array, " m"],
    a: Float[Array, " n"],
    b: Float[Array, " m"],
    kind: str,
) -> Float[Array, " 2"]:
    """The intercept a and slope b of the log ratio a + b·u that fits these rows best.

    The prior dominates if the rows are uninformative, as when p and q hardly overlap.
    """
    identity = jnp.array([0.0, 1.0], u_p.dtype)
    if kind == "none":
        return identity
    # A temperature has no intercept: its feature is zero, hence its coefficient stays zero.
    used = jnp.array([1.0 if kind == "platt" else 0.0, 1.0], u_p.dtype)
    features = lambda u: jnp.stack([jnp.ones_like(u), u], axis=1) * used
    phi_p, phi_q = features(u_p), features(u_q)
    weights = a, b
    penalty = jnp.full(2, CALIBRATION_PRIOR / num_rows(a, b), u_p.dtype)
    # With u as offset the unknowns are the change from the identity, which the prior keeps near
    # zero.
    change = newton_logistic(phi_p, phi_q, *weights, penalty, u_p, u_q)
    # For infinite log ratios Newton's method has no finite result, and they stay uncalibrated.
    return identity + jnp.where(jnp.isfinite(change).all(), change, 0)
