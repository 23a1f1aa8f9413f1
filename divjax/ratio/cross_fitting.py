"""Cross-fitting: the wrapper around every head.

Each repeat splits the rows into folds at random. For each fold a head is fitted to the other rows,
with standardisation on its training rows and early stopping or model selection on its validation
rows, and is then evaluated on the held-out fold. All folds and repeats are fitted under one `vmap`.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from divjax.core.programs import jit_by_size
from divjax.core.pytrees import for_each
from divjax.ratio.calibration import apply_calibrations, calibrate_folds
from divjax.ratio.certificates import HeldOut, SequentialScores, num_first_folds
from divjax.ratio.members import Member, head_inputs, standardized_rows, unfitted_member
from divjax.ratio.misfit import Misfit, misfit
from divjax.ratio.protocols import (
    Fold,
    Head,
    Rows,
    checked,
    cross_entropy,
    log_ratios,
)
from divjax.ratio.splits import CrossFitting, Places, parts_of, shuffle

__all__ = ["CrossFit", "cross_fit"]

# Fits run simultaneously while their inputs together hold no more numbers than this.
_BUDGET = 2**26


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


def cross_fit(
    key: Key[Array, ""],
    rows: Rows,
    head: Head,
    plan: CrossFitting,
    groups: Int[Array, " rows"] | None = None,
) -> CrossFit:
    """Fit a head out of fold; log ratios are differentiable in the rows with the heads held fixed.

    Rows of one group, numbered over both samples, share a fold and a role. Only the programs that
    fit and score depend on the head: all heads share those before and after them.
    """
    keys, splits = _make_splits(key, rows.weights, groups, plan=plan)
    # Without derivatives: at a head's optimum the divergence does not depend on it to first order.
    models = _fit(keys, jax.lax.stop_gradient(rows), splits, head, plan=plan)
    fitted, scores = _score(rows, models, splits, head, plan=plan)
    calibrated = _calibrate_and_probe(scores, rows.weights, groups, plan=plan)
    return CrossFit(
        # Heads are trained before their calibrations, which are fitted to their scores.
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


@functools.partial(jit_by_size, static_argnames="plan")
def _make_splits(
    key: Key[Array, ""],
    weights: tuple[Array, Array],
    groups: Int[Array, " rows"] | None,
    *,
    plan: CrossFitting,
) -> tuple[Key[Array, " repeats"], tuple[Places, Places]]:
    """A key for each repeat, and its random order of the rows."""
    keys = jax.random.split(key, plan.num_repeats)
    weights = jax.lax.stop_gradient(weights)
    return keys, jax.vmap(lambda key: shuffle(key, weights, groups))(keys)


class _Models(NamedTuple):
    """The models of all tasks, in their order.

    Attributes:
        members: the heads.
        train: the training rows' balanced cross-entropy.
        validation: the validation rows' balanced cross-entropy.
        log_ratios: the log ratios of the validation rows of p and of q.
        weights: the weights of these rows.
    """

    members: Member
    train: Float[Array, " tasks"]
    validation: Float[Array, " tasks"]
    log_ratios: tuple[Float[Array, "tasks i"], Float[Array, "tasks j"]]
    weights: tuple[Float[Array, "tasks i"], Float[Array, "tasks j"]]


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


# Most of the entries are the models' parameters.
@functools.partial(jit_by_size, static_argnames="plan", most=2**16)
def _score(
    rows: Rows,
    models: _Models,
    splits: tuple[Places, Places],
    head: Head,
    *,
    plan: CrossFitting,
) -> tuple[_Fitted, _Scores]:
    """The members of all repeats and folds, and their scores of the rows that each did not see."""
    fixed = jax.lax.stop_gradient(rows)
    num_repeats, num_folds = plan.num_repeats, plan.num_folds

    def by_fold(leaf):
        # The extra model is not a member of the ensemble.
        return leaf[: num_repeats * num_folds].reshape(num_repeats, num_folds, *leaf.shape[1:])

    members = jax.tree.map(by_fold, models.members)
    # Scores are differentiable in the rows, hence `rows` and not `fixed`.
    score = lambda members, split: _score_held_out(rows, members, split, head, plan)
    log_ratios_of_rows, held_out, test = jax.vmap(score)(members, splits)
    last = jax.tree.map(lambda leaf: leaf[-1], models.members)
    # Only the scores of rows held out from this model are used.
    first_scores = log_ratios(head, last.params, *(head_inputs(last, head, x) for x in fixed[:2]))
    # The first split's models, in the order of their folds, followed by the extra one.
    extra = [-1] if num_first_folds(num_folds) else []
    first_split = np.append(np.arange(num_folds), extra).astype(int)
    of_validation = (leaf[first_split] for leaf in (*models.log_ratios, *models.weights))
    sequential = SequentialScores(*first_scores, *of_validation)
    # For tests of the fit any member's standardisation will do.
    member = jax.tree.map(lambda leaf: leaf[0, 0], members)
    inputs = head_inputs(member, head, fixed.x), head_inputs(member, head, fixed.y)
    losses = by_fold(models.train), by_fold(models.validation), test
    fitted, inputs = jax.lax.stop_gradient((_Fitted(members, sequential, *losses), inputs))
    return fitted, _Scores(log_ratios_of_rows, held_out, inputs)


class _Calibrated(NamedTuple):
    """Calibrations "repeats folds 2", calibrated log ratios, the first split, and the misfit."""

    calibrations: Float[Array, "repeats folds 2"]
    log_ratios: list[Float[Array, " _"]]
    first: list[HeldOut]
    misfit: Misfit


@functools.partial(jit_by_size, static_argnames="plan")
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
    calibrate = lambda held_out: calibrate_folds(held_out, weights, plan)
    calibrations = jax.vmap(calibrate)(held_out)
    # Every split scores each row once. The mean over splits reduces the variance of the fits.
    log_ratios = for_each(
        lambda u, fold: jnp.mean(jax.vmap(apply_calibrations)(u, fold, calibrations), axis=0),
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
    split: tuple[Places, Places]
    stream: Int[Array, ""]
    tested: tuple[Int[Array, ""], Int[Array, ""]]


def _tasks(
    keys: Key[Array, " repeats"], splits: tuple[Places, Places], plan: CrossFitting
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
        # The tasks of one repeat share its split.
        jax.tree.map(lambda leaf: leaf[repeat], splits),
        jnp.asarray(fold),
        (jnp.asarray(tested[0]), jnp.asarray(tested[1])),
    )


def _fit_member(task: _Task, rows: Rows, head: Head, plan: CrossFitting) -> _Models:
    """The member, its training and validation losses, and its scores of the validation rows."""
    # Standardised by the training rows alone: held-out rows must have no influence.
    _, train, validation = parts_of(task.split, rows, task.tested, plan)
    train, validation = train.of(rows.x, rows.y), validation.of(rows.x, rows.y)
    member = unfitted_member(train, head, plan.count_duplicates)
    # Checked here, so that the scores below are of the rows that the head itself scores, and are
    # compiled once for both.
    data, _ = checked(
        head,
        Fold(
            standardized_rows(member, head, train, trained=True),
            standardized_rows(member, head, validation, trained=False),
        ),
    )
    params = head.fit(jax.random.fold_in(task.key, task.stream), data)
    # The gap between these losses and those of the tested rows measures overfitting. A row counts
    # among its own neighbours, as it does for other heads: of averages over k rows the gap is then
    # twice the excess or more, and leave-one-out losses would have no gap.
    train, validation = data
    train_p, train_q = log_ratios(head, params, train.x, train.y)
    held_p, held_q = log_ratios(head, params, validation.x, validation.y)
    return _Models(
        member._replace(params=params),
        train=cross_entropy(train_p, train_q, *train.weights),
        validation=cross_entropy(held_p, held_q, *validation.weights),
        log_ratios=(held_p, held_q),
        weights=validation.weights,
    )


@functools.partial(jax.jit, static_argnames="plan")
def _fit(
    keys: Key[Array, " repeats"],
    rows: Rows,
    splits: tuple[Places, Places],
    head: Head,
    *,
    plan: CrossFitting,
) -> _Models:
    """The heads of all repeats and folds, and one of the first split's first folds alone."""
    tasks = _tasks(keys, splits, plan)
    fit_member = lambda task: _fit_member(task, rows, head, plan)
    # All simultaneously if memory allows: vmapped fits share their loops.
    size = (rows.x.shape[0] + rows.y.shape[0]) * (rows.x.shape[1] + 64)
    together = max(1, _BUDGET // size)
    if together >= len(tasks.stream):
        return jax.vmap(fit_member)(tasks)
    return jax.lax.map(fit_member, tasks, batch_size=together)


def _score_held_out(
    rows: Rows,
    members: Member,
    split: tuple[Places, Places],
    head: Head,
    plan: CrossFitting,
) -> tuple[list[Array], list[HeldOut], Array]:
    """Each row's held-out log ratio in one repeat, before calibration.

    Returns the log ratios, differentiable in the rows; the same as `HeldOut`, with stopped
    gradients; and each fold's loss.
    """

    def test(member, fold):
        """The fold's log ratios in place, zero at all other rows, and its cross-entropy."""
        part = parts_of(split, rows, (fold, fold + 1), plan)[0]
        p, q, *weights = part.of(*rows[:2])
        u_p, u_q = log_ratios(head, member.params, *(head_inputs(member, head, x) for x in (p, q)))
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
