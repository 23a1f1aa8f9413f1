"""The members of an ensemble: heads fitted to one part of the rows, with their inputs and outputs.

A head's inputs are the features, standardised by its training rows, and the counts of their ties.
Its log ratio is calibrated.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from divjax.core.standardize import (
    Standardizer,
    mean_and_scale,
    robust_standardizer,
)
from divjax.ratio.protocols import Head, Rows, is_parametric

__all__ = ["Member", "ensemble_log_ratio", "head_inputs", "standardized_rows", "unfitted_member"]


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


def ensemble_log_ratio(members: Member, head: Head, x: Float[Array, "b d"]) -> Float[Array, " b"]:
    """The mean of all members' calibrated log ratios, at any rows."""

    def one(member):
        u = head(member.params, head_inputs(member, head, x, extrapolate=True))
        return member.calibration[0] + member.calibration[1] * u

    return jnp.mean(jax.vmap(jax.vmap(one))(members), axis=(0, 1))


def unfitted_member(train: Rows, head: Head, count_duplicates: bool) -> Member:
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


def standardized_rows(member: Member, head: Head, rows: Rows, *, trained: bool) -> Rows:
    """The rows of both samples as inputs of the head."""
    x = head_inputs(member, head, rows.x, trained=trained)
    return rows._replace(x=x, y=head_inputs(member, head, rows.y, trained=trained))


def head_inputs(
    member: Member,
    head: Head,
    x: Float[Array, "b d"],
    *,
    trained: bool = False,
    extrapolate: bool = False,
) -> Float[Array, "b p"]:
    """The inputs of a head: standardised features, robust to any single row.

    A parametric head gets affine features: clipped to the limits for the samples' own rows,
    unclipped with `extrapolate`. Any other head gets features that are compressed beyond the
    limits.
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
