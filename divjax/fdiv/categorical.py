"""Divergences between discrete distributions, over one axis and batched over the others.

A distribution is an array of probabilities that sum to one, or `Logits`, `Weights` (counts or other
weights to normalise, smoothing, a mask) or `Labels` (class indices). Every function takes any of
them for any argument. All are converted to log-probabilities in one place, and all computations are
in log space.

0 log 0 = 0. KL(p‖q) is exactly infinite if q excludes a class that p does not. Gradients (those of
the finite terms) are finite even then. The divergence is NaN if a distribution has no class.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float, PyTree

from divjax.core.arguments import as_leaves, as_optional_leaf
from divjax.core.checks import check_scalar, check_shape, check_weights
from divjax.core.numerics import nan_entries_unless, nan_unless
from divjax.core.pairwise import map_row_blocks
from divjax.core.pytrees import TracedFunction, as_traced
from divjax.core.samples import Numbers, as_arrays
from divjax.core.simplex import shares_of
from divjax.fdiv.discrete_renyi import renyi
from divjax.fdiv.distributions import (
    Distribution,
    Given,
    Labels,
    Logits,
    LogProbs,
    Weights,
    check_alike,
    checked_distribution,
    evaluate,
    have_classes,
    is_below_normal,
    log_probs,
    log_probs_of,
    present_classes,
    sum_over_classes,
)
from divjax.fdiv.special import exp_remainder

__all__ = [
    "Distribution",
    "Labels",
    "Logits",
    "Weights",
    "cross_entropy",
    "entropy",
    "generalized_kl",
    "jensen_shannon",
    "kl",
    "kl_map",
    "log_probs",
    "pairwise",
    "renyi",
    "reverse_kl",
    "skew_kl",
    "squared_hellinger",
    "total_variation",
]


def _relative_entropy(log_p: LogProbs, log_q: LogProbs) -> Float[Array, "*batch"]:
    return sum_over_classes(_relative_entropy_terms(log_p, log_q), log_p, log_q)


def _relative_entropy_terms(log_p: LogProbs, log_q: LogProbs) -> Float[Array, "*batch c"]:
    """The terms p log(p/q) − p + q, at least zero, whose sum is KL.

    With p and q normalised it is the same sum, but rounding in log(p/q) is multiplied by q − p
    instead of p: near equality the result is accurate, whereas Σ p log(p/q) suffers cancellation.
    """
    in_p, safe_p, p = present_classes(log_p)
    in_q, safe_q, q = present_classes(log_q)
    # With t = log(q/p) a term is p (e^t − 1 − t), of second order in t: nothing cancels near p = q.
    t = safe_q - safe_p
    near = t <= 1  # beyond it exp(t) may overflow, and nothing cancels
    terms = jnp.where(near, p * exp_remainder(jnp.where(near, t, 0)), q - p - p * t)
    # A class that q alone excludes gives +∞. One that p excludes contributes its q.
    return jnp.where(in_p & in_q, terms, jnp.where(in_p, jnp.inf, q))


def _log_mixture(weights: Float[Array, " k"], logs: tuple[LogProbs, ...]) -> LogProbs:
    """The logarithm of Σ_k w_k p_k, with finite gradients at zero weights and excluded classes."""
    stacked = jnp.stack(jnp.broadcast_arrays(*logs))
    # In units of the largest term of non-zero weight: a term of weight zero, however much denser,
    # must not make the others underflow. Its weight times anything finite is zero.
    used = weights.reshape(-1, *(1,) * (stacked.ndim - 1)) != 0
    log_weights = jnp.log(jnp.where(used, weights.reshape(used.shape), 1))
    top = jnp.max(jnp.where(used, stacked + log_weights, -jnp.inf), axis=0)
    top = jax.lax.stop_gradient(jnp.where(top == -jnp.inf, 0, top))
    highest = 0.5 * math.log(jnp.finfo(stacked.dtype).max)
    scaled = jnp.exp(jnp.where(used, stacked - top, jnp.minimum(stacked - top, highest)))
    mass = jnp.tensordot(weights, scaled, axes=1)
    # A mass of zero is replaced before the logarithm, whose gradient would be NaN.
    return jnp.where(mass == 0, -jnp.inf, jnp.log(jnp.where(mass == 0, 1, mass)) + top)


def kl(
    p: Distribution, q: Distribution, *, axis: int = -1, base: ArrayLike | None = None
) -> Float[Array, "*batch"]:
    """The Kullback–Leibler divergence KL(p‖q) = Σ_i p_i log(p_i / q_i).

    Summed as Σ_i [p_i log(p_i/q_i) − p_i + q_i], so that it is at least zero and accurate near
    p = q, in float32 too.

    Args:
        p: probabilities that sum to one, `Logits`, `Weights` or `Labels`.
        q: likewise. The axes other than that of classes broadcast.
        axis: the axis of classes, the same in both.
        base: the base of the logarithm: 2 for bits, nats by default.

    Returns:
        The divergence, without the axis of classes. It is +inf where q excludes a class that p does
        not.

    Raises:
        ValueError: if the numbers of classes differ, the other axes do not broadcast, concrete
            probabilities do not sum to one, or the base is not a number above 1.

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(kl(jnp.array([1.0, 0.0]), jnp.array([0.5, 0.5]))), 4)
        0.6931
        >>> teacher, student = jnp.array([2.0, 0.0]), jnp.array([1.0, 0.0])
        >>> loss = kl(Logits(teacher, temperature=2.0), Logits(student, temperature=2.0))

    References:
        Kullback, Leibler 1951.
    """
    return evaluate(_relative_entropy, {"p": p, "q": q}, axis, base)


def generalized_kl(
    p: Float[Numbers, "..."], q: Float[Numbers, "..."], *, axis: int = -1
) -> Float[Array, "*batch"]:
    """KL between measures of any mass, Σ_i [p_i log(p_i/q_i) − p_i + q_i] ≥ 0, in nats.

    Zero only for p = q, and equal to `kl` if both have mass one. Unbalanced transport uses it to
    penalise marginals that do not match.

    Args:
        p: non-negative masses, not normalised.
        q: likewise. The other axes broadcast.
        axis: the axis of classes, the same in both.

    Returns:
        The divergence, without the axis of classes: +inf where q_i = 0 < p_i, NaN where a traced
        mass is negative.

    Raises:
        ValueError: if the numbers of classes differ, the other axes do not broadcast, or a concrete
            mass is negative.

    Example:
        >>> import jax.numpy as jnp
        >>> p, q = jnp.array([2.0, 0.0]), jnp.array([1.0, 1.0])
        >>> round(float(generalized_kl(p, q)), 4)  # 2 log 2 − 2 + 2
        1.3863

    References:
        Csiszár 1975: the I-divergence.
    """
    p, q = as_leaves(p=p, q=q)
    for name, mass in (("p", p), ("q", q)):
        if not isinstance(mass, Tracer) and (np.asarray(mass) < 0).any():
            raise ValueError(f"{name} must be non-negative; got {np.asarray(mass).min()}.")
        shape = jnp.shape(mass)
        if not -len(shape) <= axis < len(shape) or shape[axis] == 0:
            raise ValueError(
                f"{name} must have a non-empty axis {axis} of classes; got shape {shape}."
            )
    # NumPy's masses below the smallest number of JAX's dtype have logarithms in its range.
    are_logs = is_below_normal(p), is_below_normal(q)
    p, q = (_log_in_double(m) if small else m for m, small in zip((p, q), are_logs, strict=True))
    return _generalized_kl(p, q, axis=axis, are_logs=are_logs)


def _log_in_double(mass: ArrayLike) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(np.asarray(mass, np.float64))


@functools.partial(jax.jit, static_argnames=("axis", "are_logs"))
def _generalized_kl(
    p: ArrayLike, q: ArrayLike, *, axis: int, are_logs: tuple[bool, bool]
) -> Float[Array, "*batch"]:
    logs = []
    for mass, is_log in zip(as_arrays(p=p, q=q), are_logs, strict=True):
        mass = jnp.moveaxis(mass, axis, -1)
        # Zeros are replaced before the logarithm, or its gradient there would be NaN.
        log = jnp.where(mass == 0, -jnp.inf, jnp.log(jnp.where(mass == 0, 1, mass)))
        logs.append(mass if is_log else log)
    check_alike(logs)
    return _relative_entropy_terms(*logs).sum(-1)


def reverse_kl(
    p: Distribution, q: Distribution, *, axis: int = -1, base: ArrayLike | None = None
) -> Float[Array, "*batch"]:
    """The reverse divergence KL(q‖p), which seeks modes where `kl` covers them.

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(reverse_kl(jnp.array([0.5, 0.5]), jnp.array([1.0, 0.0]))), 4)
        0.6931
    """
    return evaluate(_relative_entropy, {"q": q, "p": p}, axis, base)


def kl_map(
    p: Distribution, q: Distribution, *, axis: int = -1, base: ArrayLike | None = None
) -> Float[Array, "*batch c"]:
    """The contribution p_i log(p_i / q_i) of each class to KL(p‖q), which is their sum.

    Args:
        p: probabilities that sum to one, `Logits`, `Weights` or `Labels`.
        q: likewise. The axes other than that of classes broadcast.
        axis: the axis of classes, the same in both.
        base: the base of the logarithm: 2 for bits, nats by default.

    Returns:
        The terms, negative where p_i < q_i, +inf where q_i = 0 < p_i.

    Raises:
        ValueError: if the numbers of classes differ, the other axes do not broadcast, or the base
            is not a number above 1.

    Example:
        >>> import jax.numpy as jnp
        >>> kl_map(jnp.array([0.5, 0.5, 0.0]), jnp.array([0.25, 0.5, 0.25])).round(4).tolist()
        [0.3466, 0.0, 0.0]
    """
    return evaluate(_kl_map, {"p": p, "q": q}, axis, base, per_class=True)


def _kl_map(log_p: LogProbs, log_q: LogProbs) -> Float[Array, "*batch c"]:
    in_p, safe_p, probabilities = present_classes(log_p)
    in_q, safe_q, _ = present_classes(log_q)
    terms = probabilities * (safe_p - safe_q)
    # 0 log 0 is 0, and a class that q alone excludes gives +∞.
    terms = jnp.where(in_p & in_q, terms, jnp.where(in_p, jnp.inf, 0))
    return nan_entries_unless(have_classes(log_p, log_q)[..., None], terms)


def skew_kl(
    p: Distribution,
    q: Distribution,
    alpha: ArrayLike,
    *,
    axis: int = -1,
    base: ArrayLike | None = None,
) -> Float[Array, "*batch"]:
    """The skew divergence KL(p ‖ αp + (1 − α)q), finite for α > 0 whatever the supports.

    At most −log α. At α = 0 it is `kl`. The other orientation is `skew_kl(q, p, alpha)`.

    Args:
        p: probabilities that sum to one, `Logits`, `Weights` or `Labels`.
        q: likewise. The axes other than that of classes broadcast.
        alpha: the share of p in the mixture, a scalar in [0, 1). An array outside of it gives NaN.
        axis: the axis of classes, the same in both.
        base: the base of the logarithm: 2 for bits, nats by default.

    Raises:
        ValueError: if alpha is a Python number outside [0, 1), or shapes do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(skew_kl(jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0]), alpha=0.1)), 4)
        2.3026

    References:
        Lee 1999, whose α is 1 − α here; Ko, Kim, Chen, Yun 2024, whose α is this one.
    """
    check_scalar(alpha=alpha)
    if isinstance(alpha, (int, float)) and not 0 <= alpha < 1:
        raise ValueError(f"alpha must lie in [0, 1); got {alpha}.")
    return evaluate(_skew_kl, {"p": p, "q": q}, axis, base, *as_leaves(alpha=alpha))


def _skew_kl(log_p: LogProbs, log_q: LogProbs, alpha: ArrayLike) -> Float[Array, "*batch"]:
    share = jnp.asarray(alpha, log_p.dtype)
    share = nan_unless((share >= 0) & (share < 1), share)
    mixture = _log_mixture(jnp.stack([share, 1 - share]), (log_p, log_q))
    value = _relative_entropy(log_p, mixture)
    return nan_entries_unless(have_classes(log_p, log_q), value)


def jensen_shannon(
    *distributions: Distribution,
    weights: Float[Numbers, " k"] | None = None,
    base: ArrayLike | None = None,
    axis: int = -1,
) -> Float[Array, "*batch"]:
    """The Jensen–Shannon divergence of two or more distributions, Σ_k w_k KL(p_k ‖ Σ_j w_j p_j).

    It is the mutual information between a class and the index of the distribution it was drawn
    from. Finite whatever the supports, at most −Σ w_k log w_k (log 2 for two of equal weight). Its
    square root is a metric for two of equal weight.

    Args:
        *distributions: K ≥ 2 distributions, each given as probabilities that sum to one, `Logits`,
            `Weights` or `Labels`. The axes other than that of classes broadcast.
        weights: non-negative mixture weights "k", normalised (equal by default). Traced weights
            that are negative or all zero give NaN.
        base: the base of the logarithm: 2 for bits, nats by default.
        axis: the axis of classes, the same in all.

    Returns:
        The divergence in nats, or in units of log(base), without the axis of classes.

    Raises:
        ValueError: if there are fewer than two distributions, the number of weights differs from
            theirs, the base is a Python number that is not above 1, or shapes do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> float(jensen_shannon(jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0]), base=2))
        1.0

    References:
        Lin 1991, eq. 5.1: K distributions with weights.
    """
    if len(distributions) < 2:
        raise ValueError(
            f"jensen_shannon takes two or more distributions; got {len(distributions)}."
        )
    shares = as_optional_leaf(weights=weights)
    if shares is not None:
        check_shape("weights", shares, len(distributions))
        check_weights("weights", shares)
    # Names for messages, as the distributions have no argument of their own.
    named = {f"distributions[{index}]": each for index, each in enumerate(distributions)}
    return evaluate(_jensen_shannon, named, axis, base, shares)


def _jensen_shannon(*logs_and_weights: PyTree[Array]) -> Float[Array, "*batch"]:
    *logs, weights = logs_and_weights
    count, dtype = len(logs), jnp.result_type(*logs)
    shares = jnp.ones(count, dtype) if weights is None else jnp.asarray(weights, dtype)
    shares = shares_of(shares)
    mixture = _log_mixture(shares, tuple(logs))
    divergences = jnp.stack(
        jnp.broadcast_arrays(*(_relative_entropy(log, mixture) for log in logs))
    )
    # A distribution of weight zero may lie outside of the mixture's support: 0 · inf.
    column = shares.reshape(count, *(1,) * (divergences.ndim - 1))
    outside = (column == 0) & (divergences == jnp.inf)
    return jnp.sum(column * jnp.where(outside, 0, divergences), axis=0)


def total_variation(p: Distribution, q: Distribution, *, axis: int = -1) -> Float[Array, "*batch"]:
    """The total variation distance ½ Σ_i |p_i − q_i|, in [0, 1].

    Not differentiable where p_i = q_i: the gradient of that term is taken as zero.

    Example:
        >>> import jax.numpy as jnp
        >>> float(total_variation(jnp.array([1.0, 0.0]), jnp.array([0.5, 0.5])))
        0.5
    """
    return evaluate(_total_variation, {"p": p, "q": q}, axis, None)


def _total_variation(log_p: LogProbs, log_q: LogProbs) -> Float[Array, "*batch"]:
    p, q = present_classes(log_p)[2], present_classes(log_q)[2]
    difference = p - q
    # The difference of the largest class is minus the sum of the others, which keep their digits
    # where it is near one and they are small.
    largest = jnp.argmax(jnp.maximum(p, q), axis=-1, keepdims=True)
    of_largest = jnp.arange(difference.shape[-1]) == largest
    others = jnp.where(of_largest, 0, difference)
    terms = jnp.where(of_largest, jnp.sum(others, axis=-1, keepdims=True), others)
    # A class that is NaN may be the largest one.
    terms = jnp.where(jnp.isnan(difference), difference, terms)
    return sum_over_classes(0.5 * jnp.abs(terms), log_p, log_q)


def squared_hellinger(
    p: Distribution, q: Distribution, *, axis: int = -1
) -> Float[Array, "*batch"]:
    """The squared Hellinger distance ½ Σ_i (√p_i − √q_i)² = 1 − Σ_i √(p_i q_i), in [0, 1].

    Example:
        >>> import jax.numpy as jnp
        >>> float(squared_hellinger(jnp.array([1.0, 0.0]), jnp.array([0.25, 0.75])))
        0.5
    """
    return evaluate(_squared_hellinger, {"p": p, "q": q}, axis, None)


def _squared_hellinger(log_p: LogProbs, log_q: LogProbs) -> Float[Array, "*batch"]:
    # √p is the exponential of ½ log p, whose derivative in log p is finite everywhere.
    difference = present_classes(0.5 * log_p)[2] - present_classes(0.5 * log_q)[2]
    return sum_over_classes(0.5 * jnp.square(difference), log_p, log_q)


def cross_entropy(
    p: Distribution, q: Distribution, *, axis: int = -1, base: ArrayLike | None = None
) -> Float[Array, "*batch"]:
    """The cross-entropy −Σ_i p_i log q_i, +inf where q excludes a class that p does not.

    In nats, or in units of log(base). For `Labels` it is the usual classification loss.

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(cross_entropy(jnp.array([1.0, 0.0]), jnp.array([0.25, 0.75]))), 4)
        1.3863
    """
    return evaluate(_cross_entropy, {"p": p, "q": q}, axis, base)


def _cross_entropy(log_p: LogProbs, log_q: LogProbs) -> Float[Array, "*batch"]:
    in_p, _, probabilities = present_classes(log_p)
    in_q, safe_q, _ = present_classes(log_q)
    # 0 log q is 0, even where q excludes the class as well.
    terms = jnp.where(in_p & in_q, -probabilities * safe_q, jnp.where(in_p, jnp.inf, 0))
    return sum_over_classes(terms, log_p, log_q)


def entropy(
    p: Distribution, *, axis: int = -1, base: ArrayLike | None = None
) -> Float[Array, "*batch"]:
    """The Shannon entropy −Σ_i p_i log p_i, in nats or in units of log(base).

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(entropy(jnp.array([0.5, 0.5, 0.0]))), 4)
        0.6931
    """
    return evaluate(_entropy, {"p": p}, axis, base)


def _entropy(log_p: LogProbs) -> Float[Array, "*batch"]:
    return _cross_entropy(log_p, log_p)


def pairwise(
    divergence: Callable[[Logits, Logits], Float[Numbers, "*batch"]],
    ps: Distribution,
    qs: Distribution,
) -> Float[Array, "n m"]:
    """The matrix of a divergence between each of n distributions and each of m others.

    Args:
        divergence: any function of two distributions in this module.
        ps: n distributions "n c".
        qs: m distributions "m c".

    Returns:
        `divergence(ps[i], qs[j])`. Materialised if n × m × c is small, computed by blocks of rows
        otherwise.

    Raises:
        ValueError: if an argument is not a matrix, or the numbers of classes differ.

    Example:
        >>> import jax.numpy as jnp
        >>> pairwise(total_variation, jnp.eye(2), jnp.array([[0.5, 0.5]])).tolist()
        [[0.5], [0.5]]
    """
    log_ps, log_qs = _families(
        checked_distribution("ps", ps, -1), checked_distribution("qs", qs, -1)
    )
    for name, logs in {"ps": log_ps, "qs": log_qs}.items():
        if logs.ndim != 2:
            raise ValueError(f"{name} must hold distributions in rows; got shape {logs.shape}.")
        if not logs.shape[0]:
            raise ValueError(f"{name} must hold at least one distribution; got shape {logs.shape}.")
    # One row of p against all of q: blocks of rows bound the memory.
    row = jax.ShapeDtypeStruct(log_ps.shape[1:], log_ps.dtype)
    check_alike([row, log_qs])
    # Log-probabilities are their own logits, so that any divergence takes them as they are.
    of_row = lambda log_p, log_qs: divergence(Logits(log_p), Logits(log_qs))
    return _by_rows(as_traced(of_row, row, log_qs), log_ps, log_qs)


@jax.jit
def _families(ps: Given, qs: Given) -> tuple[LogProbs, LogProbs]:
    return log_probs_of(ps, -1), log_probs_of(qs, -1)


@jax.jit
def _by_rows(
    of_row: TracedFunction, log_ps: Float[Array, "n c"], log_qs: Float[Array, "m c"]
) -> Float[Array, "n m"]:
    of_rows = jax.vmap(of_row, in_axes=(0, None))
    # Blocks of rows bound the memory of all n·m·c terms.
    return map_row_blocks(lambda rows: of_rows(rows, log_qs), log_qs.size, log_ps)
