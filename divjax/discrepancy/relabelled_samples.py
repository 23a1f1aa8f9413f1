"""Two pooled samples and random relabellings of their rows, for permutation tests."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from divjax.core.keys import own_key
from divjax.core.labels import pool_labels
from divjax.core.numerics import at_least_single, in_units_of, nan_unless
from divjax.core.pairwise import common_center, resolved_distances, rows_per_block
from divjax.core.pytrees import pytree, static
from divjax.core.samples import Numbers
from divjax.discrepancy.quadratic_forms import Tile, TwoValued
from divjax.inference.permutation import check_groups, label_permutation
from divjax.kernels.pooled import two_samples
from divjax.kernels.protocols import GramKernel, is_radial

__all__ = [
    "PooledSamples",
    "Relabellings",
    "at_least_two_rows",
    "in_own_unit",
    "kernel_matrices",
    "pooled_rows",
    "pooled_samples",
    "relabellings",
    "rounding_of_forms",
    "with_sizes",
]


@pytree
class PooledSamples:
    """The rows of two samples, those of x first, and the labels that restrict their exchange.

    Attributes:
        rows: in at least single precision; NaN where not finite.
        strata: the strata within which rows are exchanged, None for no restriction.
        groups: the groups that are exchanged as one, None if each row is one.
        num_x: how many of the rows are those of x.
    """

    rows: Float[Array, "rows d"]
    strata: Array | None
    groups: Array | None
    num_x: int = static()


# Sums of n² kernel values are off by this multiple of epsilon, relative to those of their sizes.
_ROUNDING_OF_FORMS = 2

Labels = Sequence[Any] | None


def pooled_samples(
    kernel: GramKernel, x: Numbers, y: Numbers, strata: Labels, groups: Labels
) -> PooledSamples:
    """Both samples, checked and pooled, about a common centre for a radial kernel.

    Raises:
        ValueError: if `kernel` is not a kernel, a sample is not a matrix of numbers or has fewer
            than two rows, their numbers of features differ, or the labels do not fit.
    """
    x, y, *_ = two_samples(kernel, x, y)
    at_least_two_rows(x=x, y=y)
    n, m = x.shape[0], y.shape[0]
    of_stratum = None if strata is None else pool_labels("strata", strata, n, m)
    of_group = None if groups is None else pool_labels("groups", groups, n, m)
    check_groups(of_group, n)
    rows = pooled_rows(x, y, centered=is_radial(kernel))
    return PooledSamples(rows, of_stratum, of_group, n)


def at_least_two_rows(**samples: Array) -> None:
    """Raise `ValueError` for a sample of one row, which has no distances of its own."""
    for name, rows in samples.items():
        if rows.shape[0] < 2:
            raise ValueError(
                f"{name} must have at least two rows to be tested: a single one tells nothing of "
                f"the spread; got shape {rows.shape}."
            )


@functools.partial(jax.jit, static_argnames="centered")
def pooled_rows(*samples: Float[Array, "_ d"], centered: bool) -> Float[Array, "rows d"]:
    """The rows of all samples in at least single precision, about their centre if it may be.

    Infinite coordinates become NaN: between two of them there is no distance.
    """
    rows = jnp.concatenate(samples)
    rows = rows.astype(at_least_single(rows.dtype))
    rows = nan_unless(jnp.isfinite(rows), rows)
    return rows - common_center(rows) if centered else rows


def in_own_unit(rows: Float[Array, "rows d"]) -> tuple[Float[Array, "rows d"], Float[Array, ""]]:
    """Rows in units of their largest coordinate, whose squares do not underflow, and the unit."""
    return in_units_of(jax.lax.stop_gradient(jnp.max(jnp.abs(rows))), rows)


class Relabellings(NamedTuple):
    """The given labels and random ones, first the given.

    Attributes:
        in_x: which rows are those of x.
        num_x: their number, which varies only if groups of different sizes are exchanged.
        valid: whether the groups allow an exchange.
    """

    in_x: Bool[Array, "p rows"]
    num_x: Float[Array, " p"]
    valid: Bool[Array, ""]

    @property
    def num_y(self) -> Float[Array, " p"]:
        """The number of the other rows."""
        return self.in_x.shape[1] - self.num_x

    @property
    def contrasts(self) -> TwoValued:
        """1/n for rows of x and −1/m for rows of y: wᵀKw is the squared MMD."""
        return TwoValued(self.in_x, 1 / self.num_x, -1 / self.num_y)


def relabellings(
    key: Key[Array, ""], samples: PooledSamples, num_permutations: int
) -> Relabellings:
    """The labels as they are, and as many random ones."""
    num_rows = samples.rows.shape[0]
    shuffle, valid = label_permutation(samples.strata, samples.groups, samples.num_x, num_rows)
    # A key for each, so that the labels do not depend on how many are drawn at a time.
    keys = jax.random.split(own_key(key), num_permutations)
    # As many permutations at a time as fit a block.
    at_a_time = min(num_permutations, rows_per_block(num_permutations, num_rows))
    permuted = jax.lax.map(shuffle, keys, batch_size=at_a_time)
    # The observed labels come first: rows of x precede those of y.
    labels = jnp.concatenate([jnp.arange(num_rows)[None] < samples.num_x, permuted])
    num_x = jnp.sum(labels, axis=1).astype(samples.rows.dtype)
    return Relabellings(labels, num_x, jnp.asarray(valid))


def with_sizes(labels: Relabellings) -> TwoValued:
    """The contrasts, and after them the sizes of the first one's entries.

    The form of the sizes is the sum of |w_i w_j| K_ij, to which rounding is relative.
    """
    contrasts = labels.contrasts
    sizes = TwoValued(labels.in_x[:1], contrasts.high[:1], -contrasts.low[:1])
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), contrasts, sizes)


def rounding_of_forms(forms: Float[Array, "... p"]) -> Float[Array, "..."]:
    """The rounding error of the forms of `with_sizes`, for a kernel of one sign."""
    return _ROUNDING_OF_FORMS * jnp.finfo(forms.dtype).eps * jnp.abs(forms[..., -1])


def kernel_matrices(tile: Tile) -> Callable[[GramKernel], Float[Array, "r c"]]:
    """`kernel -> matrix` of a tile's points, with the distances computed once for all kernels."""
    rows, columns, same = tile
    # A kernel that is not radial does not use them, and XLA then removes their computation.
    squared = resolved_distances(rows, columns, same)

    def matrix(kernel: GramKernel) -> Float[Array, "r c"]:
        values = kernel.radial(squared)[0] if is_radial(kernel) else kernel(rows, columns)
        return values.astype(rows.dtype)

    return matrix
