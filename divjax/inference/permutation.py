"""Permutation tests: is a statistic larger than if the two samples were one?

Under the null hypothesis, that all rows are exchangeable, the observed statistic and N of
relabelled samples are exchangeable too, so that p = (1 + #{null ≥ observed})/(1 + N) is at most α
with a probability of at most α, at every sample size.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from divjax.core.checks import check_count, check_key, check_scalar_output
from divjax.fdiv.special import as_floats
from divjax.inference.rank import check_scores, midranks

__all__ = ["PermutationTest", "permutation_test", "score_permutation_test"]

KINDS = ("mean", "auc", "accuracy")


class PermutationTest(NamedTuple):
    """A statistic and how it compares with those of relabelled samples.

    Attributes:
        statistic: the observed one.
        p_value: (1 + #{null ≥ statistic})/(1 + N), at least 1/(1 + N); ties, up to rounding, count
            as ≥, and so does what is not a number.
        null: the statistic of each permutation.
    """

    statistic: Float[Array, ""]
    p_value: Float[Array, ""]
    null: Float[Array, " num_permutations"]


def _check_counts(num_permutations: int, batch_size: int | None) -> None:
    check_count(1, num_permutations=num_permutations)
    if batch_size is not None:
        check_count(1, batch_size=batch_size)


def _permutation(
    key: Key[Array, ""], size: int, blocks: Int[Array, " size"] | None
) -> Int[Array, " size"]:
    """A uniformly random order of the rows, among those that move none into another block."""
    order = jax.random.permutation(key, size)
    if blocks is None:
        return order
    # The places of each block in turn, and its rows in random order.
    places, rows = jnp.argsort(blocks, stable=True), order[jnp.argsort(blocks[order], stable=True)]
    return jnp.zeros_like(order).at[places].set(rows)


def _pooled_blocks(
    blocks: tuple[Array, Array] | None, size_x: int, size_y: int, name: str = "blocks"
) -> Array | None:
    if blocks is None:
        return None
    if len(blocks) != 2 or [jnp.shape(b) for b in blocks] != [(size_x,), (size_y,)]:
        raise ValueError(
            f"{name} must be two vectors, of shapes ({size_x},) and ({size_y},); "
            f"got {[jnp.shape(b) for b in blocks]}."
        )
    return jnp.concatenate([jnp.asarray(b) for b in blocks])


def _test(observed: Array, null: Array, tolerance: Array) -> PermutationTest:
    below = jnp.sum(null < observed - tolerance)  # never true of NaN
    size = null.shape[0]
    return PermutationTest(observed, (1 + size - below).astype(null.dtype) / (1 + size), null)


def permutation_test(
    key: Key[Array, ""],
    statistic: Callable[[Array, Array], Float[Array, ""]],
    x: Array,
    y: Array,
    *,
    num_permutations: int = 999,
    batch_size: int | None = None,
    blocks: tuple[Int[Array, " n"], Int[Array, " m"]] | None = None,
) -> PermutationTest:
    """A two-sample permutation test with any statistic: exact, whatever it is and the sample sizes.

    Rows are exchanged between the samples and the statistic computed anew. A statistic that learns
    (a classifier's accuracy) must learn anew too, so it is part of the function; where scores are
    given, `score_permutation_test` is much faster.

    Args:
        key: a typed key.
        statistic: `(x, y) -> scalar`, larger the more the samples differ.
        x: rows of the first sample, of shape (n, …).
        y: rows of the second, of shape (m, …).
        num_permutations: N. A level α takes at least 1/α − 1.
        batch_size: permutations at a time, by vmap; one by one by default. Memory is that of so
            many copies of the data and of the statistic.
        blocks: labels of the rows of x and of y (sites, batches, days): rows are exchanged within
            their block only, for rows that are exchangeable only there.

    Returns:
        A `PermutationTest`. Its p-value has the standard error √(p(1 − p)/N) over keys.

    Raises:
        ValueError: if there are no rows, rows of x and y differ in shape, the statistic is no
            function or no floating-point scalar, or a count is not positive.

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
    for name, sample in (("x", x), ("y", y)):
        if jnp.ndim(sample) == 0 or jnp.size(sample) == 0:
            raise ValueError(f"{name} must have at least one row; got shape {jnp.shape(sample)}.")
    if jnp.shape(x)[1:] != jnp.shape(y)[1:]:
        raise ValueError(
            f"x and y must have rows of the same shape; got {jnp.shape(x)[1:]} and "
            f"{jnp.shape(y)[1:]}."
        )
    check_scalar_output("statistic", statistic, x, y)
    n, m = len(x), len(y)
    pooled, labels = jnp.concatenate([x, y]), _pooled_blocks(blocks, n, m)

    def permuted(key: Key[Array, ""]) -> Array:
        rows = pooled[_permutation(key, n + m, labels)]
        return statistic(rows[:n], rows[n:])

    keys = jax.random.split(key, num_permutations)
    (null,) = as_floats(jax.lax.map(permuted, keys, batch_size=batch_size))
    observed = jnp.asarray(statistic(pooled[:n], pooled[n:]), null.dtype)
    return _test(observed, null, 100 * jnp.finfo(null.dtype).eps * jnp.abs(observed))


def score_permutation_test(
    key: Key[Array, ""],
    scores_x: Float[Array, " n"],
    scores_y: Float[Array, " m"],
    kind: str = "auc",
    *,
    num_permutations: int = 999,
    batch_size: int | None = None,
    blocks: tuple[Int[Array, " n"], Int[Array, " m"]] | None = None,
    masks: tuple[Bool[Array, " n"], Bool[Array, " m"]] | None = None,
) -> PermutationTest:
    """Are the scores of x larger than those of y? A one-sided test that only permutes labels.

    The statistic is a sum over x of a function of the pooled scores, computed once: each
    permutation then costs no more than its own draw. Compiles itself.

    It is exact for scores that are a fixed function of the rows, or one learned on other data. It
    is not for cross-fitted scores: relabelling the rows of one fold would have changed the function
    that scored the other folds. `permutation_test` with the whole fit as its statistic is exact
    then, as is a test on the scores of one held-out fold.

    Args:
        key: a typed key.
        scores_x: scores of samples of p, which are high where p is likely (logits, log ratios).
        scores_y: scores of samples of q.
        kind: "mean", the difference of the means; "auc", P(X > Y) + ½ P(X = Y), the Mann–Whitney
            test; or "accuracy", the balanced accuracy of the scores' signs, zeros counting half.
        num_permutations: N. A level α takes at least 1/α − 1.
        batch_size: permutations at a time, by vmap; one by one by default.
        blocks: labels of the rows of x and of y: labels are permuted within a block only.
        masks: which rows of x and of y count; they must not depend on the scores.

    Returns:
        A `PermutationTest`, its statistics on the scale of the kind.

    Raises:
        ValueError: if the scores are not vectors, the kind is none of the three, or a count is not
            positive.

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
    check_scores(scores_x=scores_x, scores_y=scores_y)
    _check_counts(num_permutations, batch_size)
    if kind not in KINDS:
        raise ValueError(f'kind must be "mean", "auc" or "accuracy"; got {kind!r}.')
    n, m = len(scores_x), len(scores_y)
    labels, counts = _pooled_blocks(blocks, n, m), _pooled_blocks(masks, n, m, "masks")
    return _permute_labels(
        key, scores_x, scores_y, labels, counts, kind, num_permutations, batch_size
    )


@functools.partial(jax.jit, static_argnames=("kind", "num_permutations", "batch_size"))
def _permute_labels(
    key: Any,
    scores_x: Any,
    scores_y: Any,
    labels: Any,
    counts: Any,
    kind: str,
    num_permutations: int,
    batch_size: int | None,
) -> PermutationTest:
    n, m = len(scores_x), len(scores_y)
    pooled = jnp.concatenate(as_floats(scores_x, scores_y))
    num_x, num_y = n, m
    if counts is not None:
        # Rows that do not count stay in their places, behind all others, with nothing to add.
        pooled = jnp.where(counts, pooled, jnp.inf)
        labels = counts if labels is None else jnp.where(counts, labels, jnp.max(labels) + 1)
        num_x, num_y = (jnp.sum(part).astype(pooled.dtype) for part in (counts[:n], counts[n:]))
    # Statistic = center + (1/n + 1/m) Σ_{i of x} c_i, with c of mean zero: a small sum, whose
    # rounding does not hide ties.
    if kind == "mean":
        values, center = pooled, 0.0
    elif kind == "auc":
        # AUC = (R − n(n + 1)/2)/(nm) with the ranks' sum R.
        values, center = midranks(pooled) / (num_x + num_y), 0.5
    else:
        values, center = jnp.sign(pooled) / 4, 0.5
    scale = 1 / num_x + 1 / num_y
    if counts is None:
        values = scale * (values - jnp.mean(values))
    else:
        mean = jnp.sum(jnp.where(counts, values, 0)) / (num_x + num_y)
        values = jnp.where(counts, scale * (values - mean), 0)
    values = jnp.where(jnp.isnan(pooled).any(), jnp.nan, values)

    def of(rows: Int[Array, " n"]) -> Array:
        return jnp.sum(values[rows])

    keys = jax.random.split(key, num_permutations)
    null = jax.lax.map(
        lambda key: of(_permutation(key, n + m, labels)[:n]), keys, batch_size=batch_size
    )
    tolerance = 8 * jnp.finfo(values.dtype).eps * jnp.sum(jnp.abs(values))
    test = _test(of(jnp.arange(n)), null, tolerance)
    return test._replace(statistic=center + test.statistic, null=center + test.null)
