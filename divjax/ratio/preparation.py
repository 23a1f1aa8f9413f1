"""The preparation of samples for cross-fitting: padding, validity, ties, packs and weights."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from divjax.core.labels import number_labels
from divjax.core.numerics import nan_unless
from divjax.core.padding import pad_rows
from divjax.core.programs import jit_by_size
from divjax.ratio.diagnostics import Ties, ties
from divjax.ratio.protocols import Rows

__all__ = ["pad_samples", "prepare"]


@functools.partial(jit_by_size, static_argnames=("num_p", "num_q"))
def pad_samples(
    rows: tuple[Array, Array, Array, Array], groups: Array | None, num_p: int, num_q: int
) -> tuple[tuple[Array, Array, Array, Array], Array | None]:
    """Rows of weight zero appended to both samples, with group labels of existing groups."""
    x, y, a, b = rows
    padded = pad_rows(x, num_p), pad_rows(y, num_q), pad_rows(a, num_p), pad_rows(b, num_q)
    if groups is not None:
        of_samples = jnp.split(groups, [len(rows[0])])
        parts = [pad_rows(x, size) for x, size in zip(of_samples, (num_p, num_q), strict=True)]
        groups = jnp.concatenate(parts)
    return padded, groups


class _Prepared(NamedTuple):
    """The samples to cross-fit, and the diagnostics that need no fit.

    Attributes:
        key: the key for splits and heads.
        rows: single rows or packs, NaN if a sample is invalid, with weights that sum to one.
        groups: the number of each row's group, over both samples, or None.
        of_samples: the same for each sample.
        ties: duplicates among the rows.
    """

    key: Key[Array, ""]
    rows: Rows
    groups: Int[Array, " rows"] | None
    of_samples: tuple[Int[Array, " n"], Int[Array, " m"]] | None
    ties: Ties


@functools.partial(jit_by_size, static_argnames=("num_folds", "pack_size"))
def prepare(
    key: Key[Array, ""],
    x: Float[Array, "n d"],
    y: Float[Array, "m d"],
    a: Float[Array, " n"],
    b: Float[Array, " m"],
    groups: Array | None,
    *,
    num_folds: int,
    pack_size: int,
) -> _Prepared:
    """Both samples with weights that sum to one, in packs if there are any, and their ties."""
    pack_key, fit_key = jax.random.split(key)
    of_samples = None
    if groups is not None:
        # Consecutive numbers from 0, which index arrays of groups.
        groups = number_labels(groups)
        of_samples = groups[: x.shape[0]], groups[x.shape[0] :]
    groups_p, groups_q = (None, None) if of_samples is None else of_samples
    # Each sample needs two units per fold: rows, packs of rows, or groups.
    least = 2 * num_folds
    enough_p = _num_units(a, groups_p, pack_size) >= least
    enough_q = _num_units(b, groups_q, pack_size) >= least
    # Invalid samples are NaN from here on, and so are all their estimates.
    x, y = _valid_sample(x, a, enough_p), _valid_sample(y, b, enough_q)
    # Ties are counted for single rows: packs of rows hardly ever repeat.
    repeated = ties(x, y, a, b)
    # Weights of at most one, so that the products of a pack cannot overflow.
    a, b = a / jnp.max(a), b / jnp.max(b)
    # From here on a row is the unit that is classified: a single row or a pack.
    if pack_size > 1:
        pack_p, pack_q = jax.random.split(pack_key)
        x, a = _pack(pack_p, x, a, pack_size)
        y, b = _pack(pack_q, y, b, pack_size)
    # Normalisation to sums of one gives both samples equal weight at any sizes.
    rows = Rows(x, y, a / jnp.sum(a), b / jnp.sum(b))
    return _Prepared(fit_key, rows, groups, of_samples, repeated)


def _valid_sample(
    x: Float[Array, "n d"], weights: Float[Array, " n"], enough: Bool[Array, ""]
) -> Float[Array, "n d"]:
    """The sample, with padding (rows of weight zero) set to 0, and NaN throughout if it is invalid.

    It is invalid if it is too small, if a weight is negative, or if a row of positive weight holds
    NaN or infinity: members not fitted to that row would report a finite number.
    """
    # Padding has arbitrary content and is zeroed before the check.
    x = jnp.where(weights[:, None] > 0, x, 0)
    return nan_unless(enough & (weights >= 0).all() & jnp.isfinite(x).all(), x)


def _num_units(
    weights: Float[Array, " n"], groups: Int[Array, " n"] | None, pack_size: int
) -> Int[Array, ""]:
    """The number of rows, packs of rows or groups of positive weight."""
    return jnp.sum(weights > 0) // pack_size if groups is None else _num_groups(groups, weights)


def _num_groups(groups: Int[Array, " n"], weights: Float[Array, " n"]) -> Int[Array, ""]:
    """The number of groups with a row of positive weight."""
    # Rows of weight zero share the label −1, which is not counted.
    used = jnp.where(weights > 0, groups, -1)
    return jnp.sum(jnp.unique(used, size=used.shape[0] + 1, fill_value=-1) >= 0)


def _pack(
    key: Key[Array, ""], x: Float[Array, "n d"], weights: Float[Array, " n"], size: int
) -> tuple[Float[Array, "packs size*d"], Float[Array, " packs"]]:
    """Rows in random tuples, those of weight zero last; an incomplete last tuple is dropped."""
    used = weights > 0
    # Uniform numbers are below 1: rows of weight zero come last, and are packed with each other.
    order = jnp.argsort(jnp.where(used, jax.random.uniform(key, used.shape), 2.0))
    packs = x.shape[0] // size
    order = order[: packs * size].reshape(packs, size)
    # Independent rows: the importance weight of a tuple is the product of its rows' weights.
    return x[order].reshape(packs, -1), jnp.prod(weights[order], axis=1)
