"""Diagnostics of a density ratio estimated from samples."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped, UInt32

from divjax.core.numerics import at_least_single, nan_unless
from divjax.core.programs import is_traced
from divjax.core.pytrees import pytree
from divjax.core.samples import (
    Numbers,
    as_numbers,
    as_samples,
    as_weights,
    dtype_in_jax,
    loses_digits,
)
from divjax.core.simplex import are_weights
from divjax.core.types import summary

__all__ = ["Diagnostics", "Ties", "ties"]


@pytree
class Ties:
    """Exact duplicates, which have probability zero under a density.

    Attributes:
        duplicates_p: the share of p's rows that equal another row of p.
        duplicates_q: the share of q's rows that equal another row of q.
        shared_p: the share of p's rows that equal a row of q: copies, if q is a model of p.
        shared_q: the share of q's rows that equal a row of p.
        lattice: for each feature, the share of one sample's rows whose value another of its rows
            has, minus the share of the other sample's rows with a value of the first; the larger of
            both directions, at least 0. For independent samples it is a lower bound, up to sampling
            error, on the total variation: near 1 if one sample is quantised and the other is not,
            or differently.
        copied: for each feature, the excess of the share of one sample's rows whose value occurs in
            the other sample over the share of the other's own values that repeat. For independent
            samples it is bounded by the total variation. It is near 1 if values are unique within
            each sample and taken from one to the other, as by copied rows or a shared identifier.
            Copies are no evidence of quantised values: `lattice` is 0 for a sample and itself.
    """

    duplicates_p: Float[Array, ""]
    duplicates_q: Float[Array, ""]
    shared_p: Float[Array, ""]
    shared_q: Float[Array, ""]
    lattice: Float[Array, " d"]
    copied: Float[Array, " d"]

    __repr__ = summary


@pytree
class Diagnostics:
    """Diagnostics of a fitted ratio, from its out-of-fold log ratios.

    Attributes:
        mean_ratio: E_q[p/q], which is 1 for the true ratio.
        effective_sample_size: the effective number of samples of q, weighted by the ratio to p:
            (Σr)²/Σr². If it is small, weighted means rest on few samples.
        cross_entropy: the balanced cross-entropy in nats. Log 2 minus it is a lower bound on JS in
            expectation.
        generalization_gap: the excess of the cross-entropy over that of the training rows, before
            calibration. A large gap indicates overfitting.
        max_log_ratio: the largest absolute log ratio.
        beyond_log_n: whether the estimated KL(p‖q) exceeds the logarithm of the number of samples
            of q. The estimate then rests on the model's shape. No lower bound of high confidence
            that holds for all distributions exceeds that logarithm by much (McAllester, Stratos
            2020).
        ties: exact duplicates.
        too_simple: whether held-out rows show an underfitted log ratio, by more than three standard
            errors: random cosines fitted to the residuals of other folds lower the cross-entropy,
            or the residuals of neighbours agree, by more than three quarters of the generalization
            gap, which the error of estimation explains. The estimate is then too low, for
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
    x: Float[Numbers, "n d"],
    y: Float[Numbers, "m d"],
    a: Float[Numbers, " n"] | None = None,
    b: Float[Numbers, " m"] | None = None,
) -> Ties:
    """Shares of duplicate values, within and between two samples, in O(d n log n).

    Values are compared in their stored precision: NumPy's float64 and its integers before JAX
    rounds them, and those of two samples in the coarser precision of both. Subnormal numbers count
    as zero.

    Args:
        x: samples of p.
        y: samples of q.
        a: weights of x. Rows of weight zero are ignored.
        b: weights of y.

    Returns:
        A `Ties`.

    Raises:
        ValueError: if a sample is not a matrix of numbers, the features differ, or given weights
            are of another length, negative, not finite or all zero. For such traced weights the
            result is NaN.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> x, y = jax.random.normal(jax.random.key(0), (2, 500, 2))
        >>> x = x.at[:, 0].set(jnp.round(x[:, 0], 1))  # one feature on a lattice
        >>> ties(x, y).lattice.round(1).tolist()
        [1.0, 0.0]
    """
    given = x, y
    x, y = as_samples(x=x, y=y)
    used_p, valid_p = _used("a", a, x.shape[0])
    used_q, valid_q = _used("b", b, y.shape[0])
    # Lattices are detected in the stored precision, copies in the precision common to both samples.
    ranks, alike = _ranks(*given), _rounded_alike(x, y, given)
    return _ties(x, y, ranks, alike, (used_p, used_q), valid_p & valid_q)


@jax.jit
def _ties(
    x: Float[Array, "n d"],
    y: Float[Array, "m d"],
    ranks: tuple["_Ranks", "_Ranks"],
    alike: tuple[Array, Array] | None,
    used: tuple[Bool[Array, " n"], Bool[Array, " m"]],
    weights_valid: Bool[Array, ""],
) -> Ties:
    """`ties` after its checks, as one program: by itself each operation would be one."""
    used_p, used_q = used
    # NaN is unequal to every value, and so would pass for a value of a density.
    not_nan_p = ~jnp.isnan(x).any(axis=0, where=used_p[:, None])
    not_nan_q = ~jnp.isnan(y).any(axis=0, where=used_q[:, None])
    valid = not_nan_p & not_nan_q & weights_valid
    exact, common = _shares_as_held(x, y, *ranks, alike, used_p, used_q)
    lattice, _ = _excess(exact.columns, valid)
    _, copied = _excess(common.columns, valid)
    shares = [nan_unless(valid.all(), part.astype(x.dtype)) for part in exact.rows]
    return Ties(*shares, lattice=lattice.astype(x.dtype), copied=copied.astype(x.dtype))


def _used(
    name: str, weights: Numbers | None, size: int
) -> tuple[Bool[Array, " n"], Bool[Array, ""]]:
    """Which rows have positive weight, and whether the weights are valid."""
    if weights is None:
        return jnp.ones(size, bool), jnp.ones((), bool)
    weights = as_weights(name, weights, size, float)
    return weights > 0, are_weights(weights)


class _Shares(NamedTuple):
    """The shares of one sample's used rows that equal another used row, by pair of samples."""

    of_p_in_p: Float[Array, ""]
    of_q_in_q: Float[Array, ""]
    of_p_in_q: Float[Array, ""]
    of_q_in_p: Float[Array, ""]


class _Found(NamedTuple):
    """The shares of duplicates for each feature, and for whole rows."""

    columns: _Shares
    rows: _Shares


def _excess(shares: _Shares, valid: Bool[Array, " d"]) -> tuple[Float[Array, " d"], ...]:
    """The excess of the samples' own duplicates over shared values, and the reverse excess."""
    own = jnp.stack([shares.of_p_in_p, shares.of_q_in_q])
    others = jnp.stack([shares.of_q_in_p, shares.of_p_in_q])
    more = nan_unless(valid, own - others)
    return jnp.max(jnp.maximum(more, 0), axis=0), jnp.max(jnp.maximum(-more, 0), axis=0)


_Ranks = Int[np.ndarray | Array, "rows d"] | None


def _rounded_alike(
    x: Array, y: Array, given: tuple[Numbers, Numbers]
) -> tuple[Array, Array] | None:
    """Both samples in the coarser precision, if one is in half precision and the other is not."""
    dtypes = [
        dtype_in_jax(as_numbers(name, sample))
        for name, sample in zip(("x", "y"), given, strict=True)
    ]
    # At one precision neither sample has digits that the other lacks.
    if dtypes[0] == dtypes[1]:
        return None
    for dtype in dtypes:
        if jnp.finfo(dtype).bits < 32:
            # There and back: values are rounded, and the samples keep one dtype for comparison.
            x, y = (sample.astype(dtype).astype(sample.dtype) for sample in (x, y))
    return x, y


def _ranks(x: Numbers, y: Numbers) -> tuple[_Ranks, _Ranks]:
    """Ranks of each feature's values, for samples that NumPy stores with more digits than JAX."""
    # Traced integers of JAX cannot become NumPy's, and are compared as they are.
    if is_traced(x, y) and all(_are_wide_integers(sample) for sample in (x, y)):
        return (x, y) if x.dtype == y.dtype else (None, None)
    stored = [as_numbers(name, sample, exact=True) for name, sample in (("x", x), ("y", y))]
    wide = [loses_digits(sample) for sample in stored]
    # JAX's dtype represents every digit: values can be compared directly.
    if not any(wide):
        return None, None
    # Equal values get equal ranks in one numbering of both samples. JAX represents ranks exactly.
    rows = np.concatenate([sample for sample, has in zip(stored, wide, strict=True) if has])
    ranks = np.stack([np.unique(column, return_inverse=True)[1] for column in rows.T], axis=1)
    ranks = ranks.astype(np.int32)
    if all(wide):
        return ranks[: len(stored[0])], ranks[len(stored[0]) :]
    return (ranks, None) if wide[0] else (None, ranks)


def _are_wide_integers(sample: Numbers) -> bool:
    """Whether these are integers of JAX that float32 may round."""
    is_integer = isinstance(sample, jax.Array) and jnp.issubdtype(sample.dtype, jnp.integer)
    return is_integer and sample.dtype.itemsize >= 4


def _shares_as_held(
    x: Float[Array, "n d"],
    y: Float[Array, "m d"],
    ranks_p: _Ranks,
    ranks_q: _Ranks,
    alike: tuple[Array, Array] | None,
    used_p: Bool[Array, " n"],
    used_q: Bool[Array, " m"],
) -> tuple[_Found, _Found]:
    """Shares of equal values in the stored precision, and in the coarser one of both samples.

    The two agree unless the precisions differ. A sample's own duplicates are then counted in its
    own precision, and shared values in the coarser one.
    """
    common = _found(*(alike or (x, y)), used_p, used_q)
    if ranks_p is None and ranks_q is None:
        return _with_own(common, _found(x, y, used_p, used_q), "pq") if alike else common, common
    # A sample without ranks is replaced by zeros, whose shares are not used below.
    exact = _found(_or_zeros(ranks_p, x), _or_zeros(ranks_q, y), used_p, used_q)
    if ranks_p is not None and ranks_q is not None:
        return exact, exact
    return _with_own(common, exact, "p" if ranks_q is None else "q"), common


def _with_own(common: _Found, exact: _Found, samples: str) -> _Found:
    """The common shares, with the own duplicates of these samples from the exact ones."""
    own = [f"of_{sample}_in_{sample}" for sample in samples]
    mixed = [
        shares._replace(**{name: getattr(others, name) for name in own})
        for shares, others in zip(common, exact, strict=True)
    ]
    return _Found(*mixed)


def _or_zeros(ranks: _Ranks, x: Float[Array, "n d"]) -> Int[Array, "n d"]:
    return jnp.zeros(x.shape, jnp.int32) if ranks is None else jnp.asarray(ranks)


def _found(x: Array, y: Array, used_p: Bool[Array, " n"], used_q: Bool[Array, " m"]) -> _Found:
    of_features = lambda column: _shares_of_column(column, used_p, used_q)
    columns = jax.vmap(of_features, in_axes=1)(jnp.concatenate([x, y]))
    return _Found(columns, _shares_of_rows(x, y, used_p, used_q))


def _shares_of_column(
    column: Shaped[Array, " rows"], used_p: Bool[Array, " n"], used_q: Bool[Array, " m"]
) -> _Shares:
    """The shares of equal values of one feature."""
    used = jnp.concatenate([used_p, used_q])
    # Used rows come first, with equal values next to each other.
    order = jnp.lexsort((column, ~used))
    values = column[order]
    return _shares(values[1:] == values[:-1], order, used_p, used_q)


def _shares_of_rows(
    x: Float[Array, "n d"],
    y: Float[Array, "m d"],
    used_p: Bool[Array, " n"],
    used_q: Bool[Array, " m"],
) -> _Shares:
    """The shares of equal rows, made adjacent by sorting hashes of their bits, compared exactly."""
    rows, used = jnp.concatenate([x, y]), jnp.concatenate([used_p, used_q])
    if not jnp.issubdtype(rows.dtype, jnp.integer):
        rows = rows.astype(at_least_single(rows.dtype))
        # −0 and 0 are equal and have different bits. Compilers drop an added zero.
        rows = jnp.where(rows == 0, 0, rows)
    bits = jax.lax.bitcast_convert_type(rows, jnp.uint32).reshape(rows.shape[0], -1)
    # Different rows of equal hashes could lie between equal ones. Two hashes of 32 bits make that
    # unlikely for any number of rows. Unused rows come last.
    order = jnp.lexsort((_hash(bits, 0), _hash(bits, 1), ~used))
    rows = rows[order]
    return _shares((rows[1:] == rows[:-1]).all(axis=1), order, used_p, used_q)


def _hash(bits: UInt32[Array, "rows words"], seed: int) -> UInt32[Array, " rows"]:
    """A hash of each row.

    Words are mixed before they are added up. Numbers of few digits differ in their highest bits
    alone, of which a linear function modulo 2³² would keep little.

    References:
        Appleby's MurmurHash3, the finalizer of 32 bits.
    """
    constants = np.random.default_rng(seed).integers(0, 2**32, bits.shape[1], np.uint32)
    words = bits ^ jnp.asarray(constants)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        words = (words ^ (words >> shift)) * jnp.uint32(factor)
    # The constants also make a word's contribution depend on its position.
    mixed = (words ^ (words >> 16)) * jnp.asarray(constants | np.uint32(1))
    return jnp.sum(mixed, axis=1, dtype=jnp.uint32)


def _shares(
    same: Bool[Array, " neighbors"],
    order: Int[Array, " rows"],
    used_p: Bool[Array, " n"],
    used_q: Bool[Array, " m"],
) -> _Shares:
    """The shares of duplicates, given whether each ordered row equals the one before."""
    # Masks of the used rows of p and of q, in order: "2 n+m".
    own = jnp.zeros((2, order.size), bool).at[0, : used_p.size].set(used_p)
    own = own.at[1, used_p.size :].set(used_q)[:, order]
    used = own.any(axis=0)
    # A group is a run of equal used rows. An unused row is a group of its own.
    group = jnp.cumsum(jnp.append(False, ~(same & used[1:] & used[:-1])))
    counts = jnp.zeros(own.shape, int).at[:, group].add(own.astype(int))[:, group]

    def share(of: int, among: int, least: int) -> Float[Array, ""]:
        # A row is counted in its own sample, for which `least` is therefore 2.
        return jnp.sum(own[of] & (counts[among] >= least)) / jnp.sum(own[of])

    return _Shares(share(0, 0, 2), share(1, 1, 2), share(0, 1, 1), share(1, 0, 1))
