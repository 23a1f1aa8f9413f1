"""What may be wrong with a density ratio estimated from samples."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from divjax.core.numerics import nan_unless
from divjax.core.samples import as_weights, centered_samples
from divjax.core.simplex import are_weights
from divjax.core.types import summary

__all__ = ["Diagnostics", "Ties", "ties"]


class Ties(NamedTuple):
    """Exact repetitions, which no density has.

    Attributes:
        duplicates_p: the share of p's rows that another row of p equals.
        duplicates_q: the share of q's rows that another row of q equals.
        shared_p: the share of p's rows that a row of q equals: copies, if q is a model of p.
        shared_q: the share of q's rows that a row of p equals.
        lattice: for each feature, by how much the share of one sample's rows whose value its other
            rows hold exceeds the share of the other sample's rows that hold such a value. For
            independent samples a lower bound, up to sampling error, on the total variation: near 1
            where one sample's values are quantised and the other's are not, or otherwise.
        copied: for each feature, by how much one sample's values are those of the other's rows more
            often than the other's own values repeat. Of independent samples that is no more than
            what the total variation allows; near 1 where values are unique within each sample and
            taken from one to the other, as by copied rows or a shared identifier. Copies say
            nothing about quantised values: `lattice` is 0 for a sample and itself.
    """

    duplicates_p: Float[Array, ""]
    duplicates_q: Float[Array, ""]
    shared_p: Float[Array, ""]
    shared_q: Float[Array, ""]
    lattice: Float[Array, " d"]
    copied: Float[Array, " d"]

    __repr__ = summary


class Diagnostics(NamedTuple):
    """What may be wrong with a fitted ratio, by its out-of-fold log ratios.

    Attributes:
        mean_ratio: E_q[p/q], which is 1 for the true ratio.
        effective_sample_size: how many samples of q, weighted by the ratio, stand for p:
            (Σr)²/Σr². Where it is small, what weighs by the ratio rests on few samples.
        cross_entropy: the balanced cross-entropy in nats; log 2 less it is a lower bound on JS in
            expectation.
        generalization_gap: what it exceeds the training rows' by, before calibration: a large one
            says that the heads have learned their rows by heart.
        max_log_ratio: the largest absolute log ratio.
        beyond_log_n: whether the estimated KL(p‖q) exceeds the logarithm of the number of samples
            of q: the number then rests on the model's shape. No lower bound of high confidence that
            holds for all distributions exceeds that logarithm by much (McAllester, Stratos 2020).
        ties: exact repetitions.
        too_simple: whether held-out rows show that the log ratio misses something, by more than
            three standard errors: random cosines fitted to the residuals of other folds lower the
            cross-entropy, or the residuals of neighbours agree. The estimate is then too low, for
            Jensen–Shannon by the gain at least.
        finite: whether every log ratio is finite.
    """

    mean_ratio: Float[Array, ""]
    effective_sample_size: Float[Array, ""]
    cross_entropy: Float[Array, ""]
    generalization_gap: Float[Array, ""]
    max_log_ratio: Float[Array, ""]
    beyond_log_n: Bool[Array, ""]
    ties: Ties
    too_simple: Bool[Array, ""]
    finite: Bool[Array, ""]

    __repr__ = summary


def ties(
    x: Float[Array, "n d"],
    y: Float[Array, "m d"],
    a: Float[Array, " n"] | None = None,
    b: Float[Array, " m"] | None = None,
) -> Ties:
    """How often values repeat, within and between two samples, in O(d n log n).

    Args:
        x: samples of p.
        y: samples of q.
        a: weights of x; a row without weight does not count.
        b: weights of y.

    Returns:
        A `Ties`.

    Raises:
        ValueError: if a sample is not a matrix of numbers, the features differ, or given weights
            are of another length, negative, not finite or zero throughout. Traced ones give NaN.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> x, y = jax.random.normal(jax.random.key(0), (2, 500, 2))
        >>> x = x.at[:, 0].set(jnp.round(x[:, 0], 1))  # one feature on a lattice
        >>> ties(x, y).lattice.round(1).tolist()
        [1.0, 0.0]
    """
    # Distinct float64 numbers far from zero are not ties.
    _, p, q = centered_samples(x=x, y=y)
    dtype = p.dtype
    used_p, known_p = _used("a", a, p.shape[0])
    used_q, known_q = _used("b", b, q.shape[0])

    # NaN equals nothing, and so would go for a value of a density.
    not_nan_p = ~jnp.isnan(p).any(axis=0, where=used_p[:, None])
    not_nan_q = ~jnp.isnan(q).any(axis=0, where=used_q[:, None])
    valid = not_nan_p & not_nan_q & known_p & known_q

    of_features = lambda column: _shares_of_column(column, used_p, used_q)
    each = jax.vmap(of_features, in_axes=1)(jnp.concatenate([p, q]))
    each = _Shares(*(part.astype(dtype) for part in each))
    # How much more often each sample holds its own values than the other one does.
    more = jnp.stack([each.of_p_in_p - each.of_q_in_p, each.of_q_in_q - each.of_p_in_q])
    more = nan_unless(valid, more)
    lattice, copied = (jnp.max(jnp.maximum(sign * more, 0), axis=0) for sign in (1, -1))
    rows = _shares_of_rows(p, q, used_p, used_q)
    shares = (nan_unless(valid.all(), part.astype(dtype)) for part in rows)
    return Ties(*shares, lattice=lattice, copied=copied)


def _used(name: str, weights: Any, size: int) -> tuple[Bool[Array, " n"], Bool[Array, ""]]:
    """Which rows have a weight, and whether the weights are some."""
    if weights is None:
        return jnp.ones(size, bool), jnp.ones((), bool)
    weights = as_weights(name, weights, size, float)
    return weights > 0, are_weights(weights)


class _Shares(NamedTuple):
    """Of the used rows of one sample, the shares that equal another one of either sample."""

    of_p_in_p: Float[Array, ""]
    of_q_in_q: Float[Array, ""]
    of_p_in_q: Float[Array, ""]
    of_q_in_p: Float[Array, ""]


def _shares_of_column(
    column: Float[Array, " n+m"], used_p: Bool[Array, " n"], used_q: Bool[Array, " m"]
) -> _Shares:
    """Of equal values."""
    used = jnp.concatenate([used_p, used_q])
    order = jnp.lexsort((column, ~used))
    values = column[order]
    return _shares(values[1:] == values[:-1], order, used_p, used_q)


def _shares_of_rows(
    p: Float[Array, "n d"],
    q: Float[Array, "m d"],
    used_p: Bool[Array, " n"],
    used_q: Bool[Array, " m"],
) -> _Shares:
    """Of equal rows: next to each other once sorted by a hash of their bits, compared exactly."""
    x, used = jnp.concatenate([p, q]), jnp.concatenate([used_p, used_q])
    bits = jax.lax.bitcast_convert_type(x + 0.0, jnp.uint32).reshape(x.shape[0], -1)  # −0 is 0
    odd = np.random.default_rng(0).integers(0, 2**31, bits.shape[1], np.uint32) * 2 + 1
    code = jnp.sum(bits * jnp.asarray(odd), axis=1, dtype=jnp.uint32)
    order = jnp.argsort(code // 2 + jnp.where(used, jnp.uint32(0), jnp.uint32(2**31)))
    x = x[order]
    return _shares((x[1:] == x[:-1]).all(axis=1), order, used_p, used_q)


def _shares(
    same: Bool[Array, " n+m-1"],
    order: Int[Array, " n+m"],
    used_p: Bool[Array, " n"],
    used_q: Bool[Array, " m"],
) -> _Shares:
    """The shares, from which of the rows in order equal the one before."""
    own = jnp.zeros((2, order.size), bool).at[0, : used_p.size].set(used_p)
    own = own.at[1, used_p.size :].set(used_q)[:, order]
    used = own.any(axis=0)
    group = jnp.cumsum(jnp.append(False, ~(same & used[1:] & used[:-1])))
    counts = jnp.zeros(own.shape, int).at[:, group].add(own.astype(int))[:, group]

    def share(of: int, among: int, least: int) -> Float[Array, ""]:
        return jnp.sum(own[of] & (counts[among] >= least)) / jnp.sum(own[of])

    return _Shares(share(0, 0, 2), share(1, 1, 2), share(0, 1, 1), share(1, 0, 1))
