"""Random splits of both samples: folds, and the test, training and validation rows of each member.

In a random order of a sample's rows, or of its groups of rows, each fold is an equal contiguous
part.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from divjax.core.pytrees import for_each
from divjax.ratio.protocols import Rows

__all__ = ["CrossFitting", "Places", "normalize_weights", "parts_of", "shuffle"]


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


class _Part(NamedTuple):
    """Indices of the rows of x and of y in one role, and their weights, which sum to one."""

    x: Int[Array, " i"]
    y: Int[Array, " j"]
    a: Float[Array, " i"]
    b: Float[Array, " j"]

    def of(self, x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Rows:
        return Rows(x[self.x], y[self.y], self.a, self.b)


class Places(NamedTuple):
    """The random order of one sample's rows, of which each fold is an equal contiguous part.

    Attributes:
        order: row indices in this order, those of weight zero last; None for groups, whose rows
            share a place.
        rank: each row's place.
        count: the number of places, for groups those of the row's kind (see `shuffle`).
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


def shuffle(
    key: Key[Array, ""], weights: tuple[Array, Array], groups: Int[Array, " rows"] | None
) -> tuple[Places, Places]:
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
    row_kind = jnp.where(used, jnp.where(jnp.arange(size) < n, 1, 2), 0)
    of_p = jnp.zeros(size, bool).at[groups].max(row_kind == 1)
    of_q = jnp.zeros(size, bool).at[groups].max(row_kind == 2)
    # 1 and 2 for groups of one sample alone, 3 for those of both, 0 for unused numbers.
    kind = jnp.where(of_p, 1, 0) + jnp.where(of_q, 2, 0)
    # Kind by kind in random order, entries without rows first.
    order = jnp.lexsort((jax.random.uniform(key, (size,)), kind))
    place = jnp.zeros(size, order.dtype).at[order].set(jnp.arange(size, dtype=order.dtype))
    counts = jnp.zeros(4, order.dtype).at[kind].add(1)
    # Places are counted from 0 within each kind, and a row takes the place of its group.
    rank = place - (jnp.cumsum(counts) - counts)[kind]
    rank, count = rank[groups], counts[kind][groups]
    return Places(None, rank[:n], count[:n]), Places(None, rank[n:], count[n:])


def _shuffle_rows(key: Key[Array, ""], weights: Float[Array, " n"]) -> Places:
    order = jnp.argsort(jnp.where(weights > 0, jax.random.uniform(key, weights.shape), 2.0))
    n = order.shape[0]
    rank = jnp.zeros(n, order.dtype).at[order].set(jnp.arange(n, dtype=order.dtype))
    return Places(order, rank, jnp.full(n, jnp.sum(weights > 0), order.dtype))


def parts_of(
    split: tuple[Places, Places],
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
    places: Places,
    weights: Float[Array, " n"],
    tested: tuple[Int[Array, ""], Int[Array, ""]],
    plan: CrossFitting,
) -> list[tuple[Int[Array, " size"], Float[Array, " size"]]]:
    """The test, training and validation rows of one sample: indices and weights.

    In the random order the tested folds, from the first of `tested` up to but excluding its second,
    are followed by the validation rows and these by the training rows. If several folds are tested,
    at most as many test rows as one fold has are returned, without groups.
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
    num_validation = jnp.clip(share, 1, others - 1)
    num_validation = jnp.maximum(num_validation, 0)

    if places.order is None:
        # All rows in each part: the sizes of groups are known only at run time.
        after = (places.rank - start) % jnp.maximum(used, 1)
        # Ranks relative to the end of the tested part, cyclically: tested rows are negative.
        outside = after - (stop - start)
        masks = outside < 0, outside >= num_validation, (outside >= 0) & (outside < num_validation)
        return [(jnp.arange(n), normalize_weights(jnp.where(mask, weights, 0))) for mask in masks]

    # Without groups each part is contiguous in the order, of a size that is known up to rounding:
    # gathered rows take less time and memory than masks of all of them.
    order, rest = places.order, 1 - 1 / num_folds

    def part(first, count, share):
        # The size for a sample without zero weights. The first row, at weight zero, is the padding.
        size = min(n, math.ceil(share * n) + 2)
        offset = jnp.arange(size)
        index = order[(first + jnp.where(offset < count, offset, 0)) % used]
        return index, normalize_weights(jnp.where(offset < count, weights[index], 0))

    return [
        part(start, stop - start, 1 / num_folds),
        part(stop + num_validation, others - num_validation, rest * (1 - validation_share)),
        part(stop, num_validation, rest * validation_share),
    ]


def normalize_weights(weights: Float[Array, " n"]) -> Float[Array, " n"]:
    """The weights divided by their sum; zeros stay zero."""
    total = jnp.sum(weights)
    return weights / jnp.where(total > 0, total, 1)
