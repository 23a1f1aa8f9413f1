"""Divergences between discrete distributions, on the last axis and batched over leading axes.

A distribution is an array of probabilities, or `Logits`, or `Weights` (counts, smoothing, a mask),
and every function takes any of them for any argument: each turns into log-probabilities in one
place, and all that follows happens in log space.

0 log 0 = 0. A class that q excludes and p does not makes KL(p‖q) infinite, which is the truth;
gradients are finite even there (those of the finite terms). A distribution without any class has no
divergence: nan.
"""

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float

from divjax.core.checks import check_base, check_nonnegative, check_positive
from divjax.core.pairwise import map_row_blocks
from divjax.core.pytrees import pytree
from divjax.fdiv.special import exp_remainder

__all__ = [
    "Distribution",
    "Logits",
    "Weights",
    "cross_entropy",
    "entropy",
    "jensen_shannon",
    "kl",
    "kl_map",
    "log_probs",
    "pairwise",
    "reverse_kl",
    "skew_kl",
    "squared_hellinger",
    "total_variation",
]


@pytree
class Logits:
    """A categorical distribution by its logits, p = softmax(values / temperature).

    Attributes:
        values: logits "... c"; −inf excludes a class.
        temperature: divides the logits. Distillation's factor T² on the loss is the caller's.
        mask: which classes exist, broadcast against `values`; the others (a padded vocabulary) are
            excluded and the rest renormalised. All exist by default.

    Raises:
        ValueError: if the temperature is a Python number that is not positive.

    Example:
        >>> import jax.numpy as jnp
        >>> padded = Logits(jnp.array([0.0, 0.0, 9.0]), mask=jnp.array([True, True, False]))
        >>> jnp.exp(log_probs(padded)).tolist()
        [0.5, 0.5, 0.0]
    """

    values: Float[Array, "*batch c"]
    temperature: ArrayLike = 1.0
    mask: Bool[Array, "*#batch c"] | None = None

    def __post_init__(self):
        check_positive(temperature=self.temperature)


@pytree
class Weights:
    """A categorical distribution by weights that are normalised: probabilities or counts.

    p_i = (values_i + smoothing) / Σ_j (values_j + smoothing), over the classes that exist.

    Attributes:
        values: non-negative numbers "... c".
        smoothing: added to each class that exists: 1 is Laplace's rule, ½ Jeffreys' prior; keeps
            the KL to an empirical distribution finite.
        mask: which classes exist, broadcast against `values`; all by default.

    Raises:
        ValueError: if the smoothing is a negative Python number.

    Example:
        >>> import jax.numpy as jnp
        >>> jnp.exp(log_probs(Weights(jnp.array([3, 0]), smoothing=1.0))).tolist()
        [0.8, 0.2]
    """

    values: ArrayLike
    smoothing: ArrayLike = 0.0
    mask: Bool[Array, "*#batch c"] | None = None

    def __post_init__(self):
        check_nonnegative(smoothing=self.smoothing)


Distribution: TypeAlias = ArrayLike | Logits | Weights

_LogProbs = Float[Array, "*batch c"]


def log_probs(distribution: Distribution) -> _LogProbs:
    """The log-probabilities of a distribution, −inf for a class that it excludes.

    Args:
        distribution: probabilities (any non-negative weights, they are normalised) "... c",
            `Logits`, or `Weights`.

    Returns:
        Log-probabilities "... c", all −inf where no class exists. Gradients are finite, and zero
        with respect to what is excluded.

    Raises:
        ValueError: if there is no axis of classes, or it is empty.

    Example:
        >>> import jax.numpy as jnp
        >>> log_probs(jnp.array([1.0, 0.0])).tolist()
        [0.0, -inf]
    """
    if not isinstance(distribution, (Logits, Weights)):
        distribution = Weights(distribution)
    values = jnp.asarray(distribution.values)
    if values.ndim == 0 or values.shape[-1] == 0:
        raise ValueError(
            f"a distribution must have a non-empty last axis of classes; got shape {values.shape}."
        )
    if not jnp.issubdtype(values.dtype, jnp.floating):
        values = values.astype(jnp.result_type(float))
    if isinstance(distribution, Logits):
        exists = values != -jnp.inf
        if distribution.mask is not None:
            exists = exists & jnp.asarray(distribution.mask, bool)
        # What does not exist is replaced before any arithmetic, or 0 · inf enters the gradient.
        logits = jnp.where(exists, values, 0) / distribution.temperature
    else:
        values = values + distribution.smoothing
        exists = values != 0
        if distribution.mask is not None:
            exists = exists & jnp.asarray(distribution.mask, bool)
        logits = jnp.log(jnp.where(exists, values, 1))
    # Where nothing exists the sum runs over everything, lest it be log 0.
    summed = exists | ~jnp.any(exists, axis=-1, keepdims=True)
    # Shifted first: the sum's logarithm is then small, and so is its rounding.
    top = jnp.max(logits, axis=-1, keepdims=True, where=summed, initial=-jnp.inf)
    shifted = jnp.where(exists, logits - jax.lax.stop_gradient(top), 0)
    total = jnp.sum(jnp.exp(shifted), axis=-1, keepdims=True, where=summed)
    return jnp.where(exists, shifted - jnp.log(total), -jnp.inf)


def _aligned(*distributions: Distribution) -> tuple[_LogProbs, ...]:
    logs = tuple(log_probs(distribution) for distribution in distributions)
    shapes = [log.shape for log in logs]
    try:
        jnp.broadcast_shapes(*shapes)
    except ValueError:
        shapes_fit = False
    else:
        shapes_fit = len({shape[-1] for shape in shapes}) == 1
    if not shapes_fit:
        raise ValueError(
            "distributions must have the same number of classes and leading axes that broadcast; "
            f"got shapes {', '.join(map(str, shapes))}."
        )
    return logs


def _present(log_p: _LogProbs) -> tuple[Bool[Array, "*batch c"], _LogProbs, _LogProbs]:
    """Which classes exist (nan counts, so that it shows), safe log-probabilities, probabilities."""
    exists = log_p != -jnp.inf
    safe = jnp.where(exists, log_p, 0)
    return exists, safe, jnp.where(exists, jnp.exp(safe), 0)


def _total(terms: Float[Array, "*batch c"], *logs: _LogProbs) -> Float[Array, "*batch"]:
    """The sum over classes; nan where one of the distributions has none."""
    exists = [jnp.any(log != -jnp.inf, axis=-1) for log in logs]
    return jnp.where(
        jnp.all(jnp.stack(jnp.broadcast_arrays(*exists)), axis=0), terms.sum(-1), jnp.nan
    )


def _relative_entropy(log_p: _LogProbs, log_q: _LogProbs) -> Float[Array, "*batch"]:
    """KL as the sum of p log(p/q) − p + q, whose terms are at least zero.

    With p and q normalised it is the same sum, but rounding in log(p/q) enters it multiplied by
    q − p instead of p: near equality the result keeps its digits where Σ p log(p/q) has none.
    """
    in_p, safe_p, p = _present(log_p)
    in_q, safe_q, q = _present(log_q)
    t = safe_q - safe_p
    near = t <= 1  # beyond it exp(t) may overflow, and nothing cancels
    terms = jnp.where(near, p * exp_remainder(jnp.where(near, t, 0)), q - p - p * t)
    terms = jnp.where(in_p & in_q, terms, jnp.where(in_p, jnp.inf, q))
    return _total(terms, log_p, log_q)


def _log_mixture(weights: Float[Array, " k"], logs: tuple[_LogProbs, ...]) -> _LogProbs:
    """The logarithm of Σ_k w_k p_k, with finite gradients at zero weights and excluded classes."""
    stacked = jnp.stack(jnp.broadcast_arrays(*logs))
    top = jax.lax.stop_gradient(jnp.max(stacked, axis=0))
    top = jnp.where(top == -jnp.inf, 0, top)
    mass = jnp.tensordot(weights, jnp.exp(stacked - top), axes=1)
    return jnp.where(mass == 0, -jnp.inf, jnp.log(jnp.where(mass == 0, 1, mass)) + top)


def kl(p: Distribution, q: Distribution) -> Float[Array, "*batch"]:
    """The Kullback–Leibler divergence KL(p‖q) = Σ_i p_i log(p_i / q_i), in nats.

    Summed as Σ_i [p_i log(p_i/q_i) − p_i + q_i], so that it is at least zero and keeps its digits
    near p = q, in float32 too.

    Args:
        p: probabilities "... c", `Logits` or `Weights`.
        q: likewise; leading axes broadcast.

    Returns:
        "..."; +inf where q excludes a class that p does not.

    Raises:
        ValueError: if the numbers of classes differ or the leading axes do not broadcast.

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(kl(jnp.array([1.0, 0.0]), jnp.array([0.5, 0.5]))), 4)
        0.6931
        >>> teacher, student = jnp.array([2.0, 0.0]), jnp.array([1.0, 0.0])
        >>> loss = kl(Logits(teacher, temperature=2.0), Logits(student, temperature=2.0))

    References:
        Kullback, Leibler 1951.
    """
    return _relative_entropy(*_aligned(p, q))


def reverse_kl(p: Distribution, q: Distribution) -> Float[Array, "*batch"]:
    """The reverse divergence KL(q‖p), which seeks modes where `kl` covers them.

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(reverse_kl(jnp.array([0.5, 0.5]), jnp.array([1.0, 0.0]))), 4)
        0.6931
    """
    return kl(q, p)


def kl_map(p: Distribution, q: Distribution) -> Float[Array, "*batch c"]:
    """Where a divergence comes from: p_i log(p_i / q_i) for each class; they sum to KL(p‖q).

    Args:
        p: probabilities "... c", `Logits` or `Weights`.
        q: likewise; leading axes broadcast.

    Returns:
        "... c" in nats, negative where p_i < q_i, +inf where q_i = 0 < p_i.

    Raises:
        ValueError: if the numbers of classes differ or the leading axes do not broadcast.

    Example:
        >>> import jax.numpy as jnp
        >>> kl_map(jnp.array([0.5, 0.5, 0.0]), jnp.array([0.25, 0.5, 0.25])).round(4).tolist()
        [0.3466, 0.0, 0.0]
    """
    log_p, log_q = _aligned(p, q)
    in_p, safe_p, probabilities = _present(log_p)
    in_q, safe_q, _ = _present(log_q)
    terms = probabilities * (safe_p - safe_q)
    return jnp.where(in_p & in_q, terms, jnp.where(in_p, jnp.inf, 0))


def skew_kl(p: Distribution, q: Distribution, alpha: ArrayLike) -> Float[Array, "*batch"]:
    """The skew divergence KL(p ‖ αp + (1 − α)q), finite for α > 0 whatever the supports.

    At most −log α. α = 0 is `kl`; the other orientation is `skew_kl(q, p, alpha)`.

    Args:
        p: probabilities "... c", `Logits` or `Weights`.
        q: likewise; leading axes broadcast.
        alpha: the share of p in the mixture, in [0, 1): a scalar.

    Raises:
        ValueError: if alpha is a Python number outside [0, 1), or shapes do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(skew_kl(jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0]), alpha=0.1)), 4)
        2.3026

    References:
        Lee 1999, whose α is 1 − α here; Ko, Kim, Chen, Yun 2024, whose α is this one.
    """
    if isinstance(alpha, (int, float)) and not 0 <= alpha < 1:
        raise ValueError(f"alpha must lie in [0, 1); got {alpha}.")
    log_p, log_q = _aligned(p, q)
    share = jnp.asarray(alpha, jnp.result_type(log_p, log_q))
    return _relative_entropy(log_p, _log_mixture(jnp.stack([share, 1 - share]), (log_p, log_q)))


def jensen_shannon(
    *distributions: Distribution,
    weights: Float[ArrayLike, " k"] | None = None,
    base: ArrayLike | None = None,
) -> Float[Array, "*batch"]:
    """The Jensen–Shannon divergence of two or more distributions, Σ_k w_k KL(p_k ‖ Σ_j w_j p_j).

    It is the mutual information between a class and which distribution it was drawn from: finite
    whatever the supports, at most −Σ w_k log w_k (log 2 for two of equal weight). Its root is a
    metric for two of equal weight.

    Args:
        *distributions: K ≥ 2 of: probabilities "... c", `Logits`, `Weights`; leading axes
            broadcast.
        weights: non-negative mixture weights "k", normalised; equal by default.
        base: of the logarithm: 2 for bits; nats by default.

    Returns:
        "..." in nats, or in units of log(base).

    Raises:
        ValueError: if there are fewer than two, weights are not one each, the base is a Python
            number that is not above 1, or shapes do not fit.

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
    check_base(base)
    logs = _aligned(*distributions)
    count, dtype = len(logs), jnp.result_type(*logs)
    shares = jnp.ones(count, dtype) if weights is None else jnp.asarray(weights, dtype)
    if shares.shape != (count,):
        raise ValueError(f"weights must have shape ({count},); got shape {shares.shape}.")
    shares = shares / jnp.sum(shares)
    mixture = _log_mixture(shares, logs)
    divergences = jnp.stack(
        jnp.broadcast_arrays(*(_relative_entropy(log, mixture) for log in logs))
    )
    # A distribution of no weight may lie outside of the mixture's support: 0 · inf.
    column = shares.reshape(count, *(1,) * (divergences.ndim - 1))
    outside = (column == 0) & (divergences == jnp.inf)
    value = jnp.sum(column * jnp.where(outside, 0, divergences), axis=0)
    if base is None:
        return value
    return value / (math.log(base) if isinstance(base, (int, float)) else jnp.log(base))


def total_variation(p: Distribution, q: Distribution) -> Float[Array, "*batch"]:
    """The total variation distance ½ Σ_i |p_i − q_i|, in [0, 1].

    Not differentiable where p_i = q_i; that term's gradient is taken as zero.

    Example:
        >>> import jax.numpy as jnp
        >>> float(total_variation(jnp.array([1.0, 0.0]), jnp.array([0.5, 0.5])))
        0.5
    """
    log_p, log_q = _aligned(p, q)
    return _total(0.5 * jnp.abs(_present(log_p)[2] - _present(log_q)[2]), log_p, log_q)


def squared_hellinger(p: Distribution, q: Distribution) -> Float[Array, "*batch"]:
    """The squared Hellinger distance ½ Σ_i (√p_i − √q_i)² = 1 − Σ_i √(p_i q_i), in [0, 1].

    Example:
        >>> import jax.numpy as jnp
        >>> float(squared_hellinger(jnp.array([1.0, 0.0]), jnp.array([0.25, 0.75])))
        0.5
    """
    log_p, log_q = _aligned(p, q)
    difference = _present(0.5 * log_p)[2] - _present(0.5 * log_q)[2]
    return _total(0.5 * jnp.square(difference), log_p, log_q)


def cross_entropy(p: Distribution, q: Distribution) -> Float[Array, "*batch"]:
    """The cross-entropy −Σ_i p_i log q_i in nats; +inf where q excludes a class that p does not.

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(cross_entropy(jnp.array([1.0, 0.0]), jnp.array([0.25, 0.75]))), 4)
        1.3863
    """
    log_p, log_q = _aligned(p, q)
    in_p, _, probabilities = _present(log_p)
    in_q, safe_q, _ = _present(log_q)
    terms = jnp.where(in_p & in_q, -probabilities * safe_q, jnp.where(in_p, jnp.inf, 0))
    return _total(terms, log_p, log_q)


def entropy(p: Distribution) -> Float[Array, "*batch"]:
    """The Shannon entropy −Σ_i p_i log p_i in nats.

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(entropy(jnp.array([0.5, 0.5, 0.0]))), 4)
        0.6931
    """
    return cross_entropy(p, p)


def pairwise(
    divergence: Callable[[Any, Any], Float[Array, "*batch"]], ps: Distribution, qs: Distribution
) -> Float[Array, "n m"]:
    """The matrix of a divergence between all of one family and all of another.

    Args:
        divergence: any of this module's functions of two distributions.
        ps: n distributions "n c".
        qs: m distributions "m c".

    Returns:
        `divergence(ps[i], qs[j])`. Dense while n × m × c is small, by blocks of rows beyond.

    Raises:
        ValueError: if an argument is not a matrix, or the numbers of classes differ.

    Example:
        >>> import jax.numpy as jnp
        >>> pairwise(total_variation, jnp.eye(2), jnp.array([[0.5, 0.5]])).tolist()
        [[0.5], [0.5]]
    """
    log_ps, log_qs = log_probs(ps), log_probs(qs)
    for name, logs in {"ps": log_ps, "qs": log_qs}.items():
        if logs.ndim != 2:
            raise ValueError(f"{name} must hold distributions in rows; got shape {logs.shape}.")
    _aligned(ps, Logits(log_qs[0]))
    return map_row_blocks(
        lambda rows: divergence(Logits(rows[:, None]), Logits(log_qs)), log_qs.size, log_ps
    )
