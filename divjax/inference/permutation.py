"""Permutation tests of whether a statistic is larger than for exchangeable samples.

Under the null hypothesis, that all rows are exchangeable, the observed statistic and those of N
relabelled samples are exchangeable too, so that p = (1 + #{null ≥ observed})/(1 + N) is at most α
with a probability of at most α, at every sample size.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key

from divjax.core.arguments import vector_leaves
from divjax.core.checks import check_count, check_key, check_scalar_output
from divjax.core.conversion import native, without_mask
from divjax.core.keys import own_key
from divjax.core.labels import number_labels, number_pairs, pool_labels
from divjax.core.numerics import at_least_single
from divjax.core.pytrees import as_traced
from divjax.core.representable import is_below_range
from divjax.core.rounding import LARGEST_CONVERSION_ROUNDING, rounding_and_spread
from divjax.core.samples import (
    Numbers,
    as_numbers,
    centered_samples,
    owned,
)
from divjax.core.sharding import gathered
from divjax.core.types import Status
from divjax.fdiv.special import as_singles
from divjax.inference.hypothesis import TestResult, compared_with_null
from divjax.inference.rank import keep_order, midranks, relative_to_threshold

__all__ = [
    "check_groups",
    "label_permutation",
    "permutation_test",
    "row_permutation",
    "score_permutation_test",
]

KINDS = ("mean", "auc", "accuracy")
# How often the rows are reordered to see how the statistic rounds.
_REORDERINGS = 16


def _check_counts(num_permutations: int, batch_size: int | None) -> None:
    check_count(1, num_permutations=num_permutations)
    if batch_size is not None:
        check_count(1, batch_size=batch_size)


def _permutation(
    key: Key[Array, ""], size: int, strata: Int[Array, " size"] | None
) -> Int[Array, " size"]:
    """A uniformly random order of the rows, among those that keep each row in its stratum."""
    order = jax.random.permutation(key, size)
    if strata is None:
        return order
    # The places of each stratum in turn, and its rows in random order.
    places, rows = jnp.argsort(strata, stable=True), order[jnp.argsort(strata[order], stable=True)]
    return jnp.zeros_like(order).at[places].set(rows)


class _Groups(NamedTuple):
    """Groups of rows that are exchanged as one: one entry per row, unused entries last.

    Attributes:
        of_row: the group of each row.
        in_x: whether a group's rows are rows of x.
        size: the number of rows of a group that count, 0 for an unused entry.
        stratum: the stratum of each group.
        valid: whether every group lies in one sample and in one stratum.
    """

    of_row: Int[Array, " rows"]
    in_x: Bool[Array, " rows"]
    size: Int[Array, " rows"]
    stratum: Int[Array, " rows"]
    valid: Bool[Array, ""]


def _collect_groups(
    groups: Array, strata: Array | None, num_x: int, counts: Array | None = None
) -> _Groups:
    rows = groups.shape[0]
    counts = jnp.ones(rows, bool) if counts is None else counts
    # The size is static, so that groups can be counted under jit: as many entries as rows.
    of_row = jnp.unique(groups, size=rows, return_inverse=True)[1]
    row_in_x = jnp.arange(rows) < num_x
    row_stratum = jnp.zeros(rows, of_row.dtype) if strata is None else number_labels(strata)
    # If the rows of a group agree, its largest label is that of all, which is tested below.
    largest = lambda values: (
        jnp.zeros(rows, of_row.dtype)
        .at[of_row]
        .max(jnp.where(counts, values.astype(of_row.dtype), 0))
    )
    in_x, stratum = largest(row_in_x) > 0, largest(row_stratum)
    # A group with rows of both samples or of several strata cannot be exchanged as one.
    same = (row_in_x == in_x[of_row]) & (row_stratum == stratum[of_row])
    size = jnp.zeros(rows, of_row.dtype).at[of_row].add(counts.astype(of_row.dtype))
    return _Groups(of_row, in_x, size, stratum, (same | ~counts).all())


def check_groups(groups: Array | None, num_x: int) -> None:
    """Raise `ValueError` for concrete groups with rows in both samples."""
    if groups is None or isinstance(groups, Tracer):
        return
    of_x, of_y = np.asarray(groups[:num_x]), np.asarray(groups[num_x:])
    if np.isin(of_x, of_y).any():
        raise ValueError(
            "groups must lie in one sample each to be exchanged; got a group with rows in both. "
            "inference.score_permutation_test and permutation_test exchange the rows within each "
            "group if it is given as strata=."
        )


def permutation_test(
    key: Key[Array, ""],
    statistic: Callable[[Array, Array], Float[Numbers, ""]],
    x: Array,
    y: Array,
    *,
    num_permutations: int = 999,
    batch_size: int | None = None,
    strata: tuple[Int[Numbers, " n"], Int[Numbers, " m"]] | None = None,
    groups: tuple[Int[Numbers, " n"], Int[Numbers, " m"]] | None = None,
) -> TestResult:
    """An exact two-sample permutation test, for any statistic and any sample sizes.

    Rows are exchanged between the samples and the statistic is recomputed. A statistic that learns
    (a classifier's accuracy) must be refitted too, so learning is part of the function. For given
    scores `score_permutation_test` is much faster.

    Args:
        key: a typed key.
        statistic: `(x, y) -> scalar`, larger the more the samples differ.
        x: rows of the first sample, of shape (n, …): an array, a list or a frame of numbers.
        y: rows of the second, of shape (m, …).
        num_permutations: N, at least 1/α − 1 for a level α.
        batch_size: the number of permutations at a time under vmap, one by default. Each takes
            the memory of a copy of the data and of the statistic.
        strata: labels of the rows of x and of y (sites, batches, days). Rows are exchanged, and
            need be exchangeable, only within their stratum.
        groups: labels of the rows of x and of y (subjects, documents), each in only one of the
            samples. Rows of a group depend on each other and are exchanged as one. Only groups of
            one size trade places, since a statistic takes samples of given sizes. If sizes differ a
            lot, `score_permutation_test` exchanges them all.

    Returns:
        A `TestResult`. Its p-value is (1 + #{null ≥ statistic})/(1 + N), at least 1/(1 + N): ties,
        up to rounding (rows are reordered within the samples to see how the statistic rounds),
        count as ≥, and so does a NaN in `null`. It is NaN if the statistic is, or if the statistic
        is infinite and an entry of `null` is not finite, as infinite data may then be the cause; an
        infinite statistic among finite ones (a divergence of disjoint supports) is valid. It has
        the standard error √(p(1 − p)/N) over keys, and is one if no rows can trade places, as with
        groups of different sizes in x and y. The rows are not centred, and the status reports if
        NumPy's numbers lose a thousandth of their spread in the conversion to JAX's dtype.

    Raises:
        ValueError: if there are no rows, rows of x and y differ in shape, the statistic is not a
            function or not a floating-point scalar, or a count is not positive.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> x, y = jax.random.normal(jax.random.key(0), (2, 40, 3))
        >>> difference = lambda x, y: jnp.sum((x.mean(0) - y.mean(0)) ** 2)
        >>> test = permutation_test(jax.random.key(1), difference, x + 1, y, num_permutations=99)
        >>> float(test.p_value)
        0.01

    References:
        Phipson, Smyth 2010: the 1 + in p. Hemerik, Goeman 2018, theorem 2: exactness for random
        permutations.
    """
    check_key(key)
    _check_counts(num_permutations, batch_size)
    (x, x_rounded), (y, y_rounded) = _as_rows("x", x), _as_rows("y", y)
    if jnp.shape(x)[1:] != jnp.shape(y)[1:]:
        raise ValueError(
            f"x and y must have rows of the same shape; got {jnp.shape(x)[1:]} and "
            f"{jnp.shape(y)[1:]}."
        )
    check_scalar_output("statistic", statistic, x, y)
    n, m = len(x), len(y)
    of_stratum = None if strata is None else pool_labels("strata", strata, n, m)
    of_group = None if groups is None else pool_labels("groups", groups, n, m)
    check_groups(of_group, n)
    # A permuted sample has rows of both, hence one dtype for all.
    dtype = jnp.result_type(x, y)
    # Traced at each call: a user's statistic may refer to something that has changed since.
    like_x, like_y = jax.ShapeDtypeStruct(x.shape, dtype), jax.ShapeDtypeStruct(y.shape, dtype)
    traced = as_traced(statistic, like_x, like_y)
    counts = {"num_permutations": num_permutations, "batch_size": batch_size}
    test = _permute(key, traced, x, y, of_stratum, of_group, **counts)
    if not (x_rounded or y_rounded):
        return test
    return _flagged(test)


@functools.partial(jax.jit, static_argnames=("num_permutations", "batch_size"))
def _permute(
    key: Key[Array, ""],
    statistic: Callable[[Array, Array], Float[Array, ""]],
    x: Array,
    y: Array,
    of_stratum: Array | None,
    of_group: Array | None,
    *,
    num_permutations: int,
    batch_size: int | None,
) -> TestResult:
    """`permutation_test` after its checks."""
    num_x, pooled = len(x), jnp.concatenate([x, y])
    shuffle, valid = row_permutation(of_stratum, of_group, num_x, pooled.shape[0])

    def permuted(key: Key[Array, ""]) -> Array:
        rows = pooled[shuffle(key)]
        return statistic(rows[:num_x], rows[num_x:])

    own = own_key(key)
    # The keys of a split are those folded with its indices: the next one is another.
    keys, reorder_key = (
        jax.random.split(own, num_permutations),
        jax.random.fold_in(own, num_permutations),
    )
    # One relabelling after the other, or a batch of them: memory is bounded.
    found = jax.lax.map(permuted, keys, batch_size=batch_size)
    (null,) = as_singles(found)

    # A relabelling that changes nothing may round differently. Within the tolerance it is a tie,
    # which counts against the observed statistic. How differently shows when the rows are reordered
    # within their samples: by far more than the statistic's own precision if it is a small
    # difference of large numbers.
    def reordered(key: Key[Array, ""] | None) -> Array:
        return statistic(*(_shuffled(sample, key) for sample in (pooled[:num_x], pooled[num_x:])))

    (observed,) = as_singles(reordered(None))
    (others,) = as_singles(
        jax.lax.map(reordered, jax.random.split(reorder_key, _REORDERINGS), batch_size=batch_size)
    )
    # Reorderings differ by rounding alone, and the largest of a few is not the largest of all.
    measured = 4 * jnp.max(jnp.nan_to_num(jnp.abs(others - observed), posinf=0.0))
    # Where the order of rows matters it says nothing: a hundredth of the spread is harmless.
    spread = jnp.nan_to_num(jnp.std(null, where=jnp.isfinite(null)))
    relative = max(100 * jnp.finfo(null.dtype).eps, 2 * jnp.finfo(found.dtype).eps)
    tolerance = jnp.maximum(relative * jnp.abs(observed), jnp.minimum(measured, 0.01 * spread))
    return compared_with_null(observed, null, tolerance, valid)


def _shuffled(sample: Array, key: Key[Array, ""] | None) -> Array:
    return sample if key is None else sample[jax.random.permutation(key, len(sample))]


def _as_rows(name: str, sample: Numbers) -> tuple[Array, bool]:
    """A sample with a leading axis of rows, and whether its conversion rounded it too much.

    They are not centred, since a statistic may depend on their location.
    """
    if hasattr(sample, "columns"):
        sample = as_numbers(name, sample)
    elif not isinstance(sample, jax.Array):
        sample = native(owned(np.asarray(without_mask(sample))))
        # JAX has no extended precision.
        sample = sample.astype(float) if sample.dtype == np.longdouble else sample
        if sample.dtype.kind not in "fiub" and not jnp.issubdtype(sample.dtype, jnp.floating):
            raise ValueError(
                f"{name} must hold real numbers; got entries of type {sample.dtype.name}. "
                "Convert it first, such as numpy.asarray(values, float)."
            )
    if sample.ndim == 0 or sample.size == 0:
        raise ValueError(f"{name} must have at least one row; got shape {sample.shape}.")
    rows = gathered(jnp.asarray(sample))
    # A statistic sums over rows, which half precision cannot.
    if jnp.issubdtype(rows.dtype, jnp.floating):
        rows = rows.astype(at_least_single(rows.dtype))
    return rows, isinstance(sample, np.ndarray) and _is_rounded(sample, np.asarray(rows))


def _is_rounded(given: np.ndarray, rows: np.ndarray) -> bool:
    """Whether finite numbers are off by more than a share of their spread."""
    rounding, spread = rounding_and_spread(given, rows)
    return bool(rounding > LARGEST_CONVERSION_ROUNDING * spread)


def row_permutation(
    strata: Array | None, groups: Array | None, num_x: int, num_rows: int
) -> tuple[Callable[[Key[Array, ""]], Int[Array, " rows"]], Bool[ArrayLike, ""]]:
    """`key -> order` of all rows, uniform among those that the labels allow, if they allow any."""
    if groups is None:
        return lambda key: _permutation(key, num_rows, strata), True
    found = _collect_groups(groups, strata, num_x)
    # Groups of one stratum and one size trade places.
    alike = number_pairs(found.stratum, found.size)
    # The rows of each group in sequence, the index of its first, and each row's place in its group.
    by_group = jnp.argsort(found.of_row, stable=True)
    first = jnp.cumsum(found.size) - found.size
    place = jnp.zeros_like(first).at[by_group].set(jnp.arange(num_rows, dtype=first.dtype))
    place = place - first[found.of_row]

    def order(key: Key[Array, ""]) -> Int[Array, " rows"]:
        # Each group's places are taken by the rows of another of its size, in their sequence.
        source = _permutation(key, num_rows, alike)[found.of_row]
        return by_group[first[source] + place]

    return order, found.valid


def label_permutation(
    strata: Array | None,
    groups: Array | None,
    num_x: int,
    num_rows: int,
    counted: Bool[Array, " rows"] | None = None,
) -> tuple[Callable[[Key[Array, ""]], Bool[Array, " rows"]], Bool[ArrayLike, ""]]:
    """`key -> which rows are those of x` after a permutation, and whether the groups allow any.

    For statistics of samples of any sizes: x keeps its number of groups, whatever their sizes.
    """
    if groups is None:
        in_x = jnp.arange(num_rows) < num_x
        return lambda key: in_x.at[_permutation(key, num_rows, strata)].set(in_x), True
    found = _collect_groups(groups, strata, num_x, counted)
    # Unused entries are a stratum of their own, so that x keeps its number of groups with rows.
    of_groups = jnp.where(found.size > 0, found.stratum, num_rows)
    shuffle = lambda key: found.in_x[_permutation(key, num_rows, of_groups)][found.of_row]
    return shuffle, found.valid


def score_permutation_test(
    key: Key[Array, ""],
    x: Float[Numbers, " n"],
    y: Float[Numbers, " m"],
    kind: str = "auc",
    *,
    num_permutations: int = 999,
    batch_size: int | None = None,
    strata: tuple[Int[Numbers, " n"], Int[Numbers, " m"]] | None = None,
    groups: tuple[Int[Numbers, " n"], Int[Numbers, " m"]] | None = None,
    masks: tuple[Bool[Numbers, " n"], Bool[Numbers, " m"]] | None = None,
) -> TestResult:
    """A one-sided test, by permuted labels, of whether the scores of x exceed those of y.

    The statistic is a sum over x of a function of the pooled scores, computed once. Each
    permutation then costs little more than its own draw.

    It is exact for scores that are a fixed function of the rows, or one learned on other data, but
    not for cross-fitted scores: relabelling the rows of one fold would have changed the function
    that scored the other folds. In that case `permutation_test` with the whole fit as its statistic
    is exact, as is a test on the scores of one held-out fold.

    Args:
        key: a typed key.
        x: scores of samples of p, high where p is denser than q (logits, log ratios).
        y: scores of samples of q.
        kind: "mean", the difference of the means, "auc", P(X > Y) + ½ P(X = Y), the Mann–Whitney
            test, or "accuracy", the balanced accuracy of the scores' signs, zeros counting half.
        num_permutations: N, at least 1/α − 1 for a level α.
        batch_size: the number of permutations at a time under vmap, one by default.
        strata: labels of the rows of x and of y: rows are exchanged within a stratum only.
        groups: labels of the rows of x and of y, each in only one of the samples. Rows of a group
            (a subject, a document) depend on each other and are exchanged as one. A relabelled
            x then has as many groups as x, whatever their sizes.
        masks: which rows of x and of y count. They must not depend on the scores.

    Returns:
        A `TestResult`, its statistics on the scale of the kind. Its status reports if scores differ
        by less than the dtype's smallest numbers, which a difference of means cannot see.

    Raises:
        ValueError: if the scores are not vectors, the kind is not one of the three, or a count is
            not positive.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> x, y = jax.random.normal(jax.random.key(0), (2, 50))
        >>> test = score_permutation_test(jax.random.key(1), x + 1.5, y)
        >>> float(test.p_value)
        0.001

    References:
        Mann, Whitney 1947; Lopez-Paz, Oquab 2017, the classifier two-sample test.
    """
    check_key(key)
    if kind not in KINDS:
        raise ValueError(f'kind must be "mean", "auc" or "accuracy"; got {kind!r}.')
    # Checked before ranks or differences replace the scores, for messages about those given.
    vector_leaves(x=x, y=y)
    # Differences, order or signs, whichever the statistic uses, are taken before NumPy's numbers
    # are rounded.
    lost = False
    if kind == "auc":
        x, y = keep_order(x=x, y=y)
    else:
        x, y = as_numbers("x", x, exact=True), as_numbers("y", y, exact=True)
        if kind == "mean":
            lost = is_below_range(x, y)
            _, column_x, column_y = centered_samples(x=x[:, None], y=y[:, None])
            x, y = column_x[:, 0], column_y[:, 0]
        else:
            x = relative_to_threshold(x, np.zeros(()))[0]
            y = relative_to_threshold(y, np.zeros(()))[0]
    x, y = vector_leaves(x=x, y=y)
    _check_counts(num_permutations, batch_size)
    n, m = len(x), len(y)
    of_stratum = None if strata is None else pool_labels("strata", strata, n, m)
    of_group = None if groups is None else pool_labels("groups", groups, n, m)
    counts = None if masks is None else pool_labels("masks", masks, n, m)
    if counts is not None and counts.dtype != bool:
        raise ValueError("masks must hold booleans.")
    check_groups(of_group, n)
    test = _permute_labels(
        key, x, y, of_stratum, of_group, counts, kind, num_permutations, batch_size
    )
    return _flagged(test) if lost else test


def _flagged(test: TestResult) -> TestResult:
    """The result of an exact test of numbers that differ from those that were given."""
    status = jnp.maximum(test.status, Status.FLOATING_POINT_RESOLUTION)
    return dataclasses.replace(test, status=status)


def _centered_terms(
    pooled: Float[Array, " rows"],
    counted: Bool[Array, " rows"],
    num_rows: Float[Array, ""],
    kind: str,
) -> tuple[Float[Array, " rows"], float]:
    """The terms c of the statistic `center` + (1/n + 1/m) Σ_{i of x} c_i, and `center`.

    The terms have mean zero: the rounding of their small sum does not hide ties.
    """
    if kind == "mean":
        values, center = pooled, 0.0
    elif kind == "auc":
        # AUC = (R − n(n + 1)/2)/(nm) with the ranks' sum R.
        values, center = midranks(pooled) / num_rows, 0.5
    else:
        # The accuracy is ½ + ¼ (the mean sign over x − the mean sign over y).
        values, center = jnp.sign(pooled) / 4, 0.5
    mean = jnp.sum(jnp.where(counted, values, 0)) / num_rows
    values = jnp.where(counted, values - mean, 0)
    # One NaN makes every term and statistic NaN.
    missing = jnp.isnan(jnp.where(counted, pooled, 0)).any()
    return jnp.where(missing, jnp.nan, values), center


@functools.partial(jax.jit, static_argnames=("kind", "num_permutations", "batch_size"))
def _permute_labels(
    key: Key[Array, ""],
    x: Float[Array, " n"],
    y: Float[Array, " m"],
    strata: Array | None,
    groups: Array | None,
    counts: Bool[Array, " rows"] | None,
    kind: str,
    num_permutations: int,
    batch_size: int | None,
) -> TestResult:
    n, m = len(x), len(y)
    pooled = jnp.concatenate(as_singles(x, y))
    counted = jnp.ones(n + m, bool) if counts is None else counts
    # Rows that do not count stay in their places, rank last as NaN does, also after infinite
    # scores, and contribute zero.
    if counts is not None:
        pooled = jnp.where(counted, pooled, jnp.nan)
        if groups is None:
            strata = jnp.zeros(n + m, int) if strata is None else number_labels(strata)
            strata = jnp.where(counted, strata, n + m)

    num_rows = jnp.sum(counted).astype(pooled.dtype)
    values, center = _centered_terms(pooled, counted, num_rows, kind)
    in_x = jnp.arange(n + m) < n
    shuffle, valid = label_permutation(strata, groups, n, n + m, counted)

    def statistic(in_x: Bool[Array, " rows"]) -> Array:
        # Exchanging groups of different sizes changes the sizes of the samples.
        num_x = jnp.sum(in_x & counted).astype(values.dtype)
        return (1 / num_x + 1 / (num_rows - num_x)) * jnp.sum(jnp.where(in_x, values, 0))

    keys = jax.random.split(own_key(key), num_permutations)
    null = jax.lax.map(lambda key: statistic(shuffle(key)), keys, batch_size=batch_size)
    # The rounding of a sum of all values.
    num_x = jnp.sum(in_x & counted).astype(values.dtype)
    unit = 1 / num_x + 1 / (num_rows - num_x)
    tolerance = 8 * jnp.finfo(values.dtype).eps * jnp.sum(jnp.abs(values)) * unit
    test = compared_with_null(statistic(in_x), null, tolerance, valid)
    # The centre is added last, as the rounding of sums with it would break ties.
    return dataclasses.replace(test, statistic=center + test.statistic, null=center + test.null)
