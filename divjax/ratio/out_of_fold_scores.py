"""The scores of a fitted ratio: out-of-fold log ratios with weights, folds and losses.

They are padded with rows of weight zero, so that samples of similar size share compiled programs.
"""

import dataclasses
import functools
from typing import NamedTuple, Self

import jax
from jaxtyping import Array, Float, Int

from divjax.core.padding import pad_rows, padded_size
from divjax.core.programs import is_traced, jit_by_size
from divjax.core.pytrees import pytree, static
from divjax.core.samples import Center
from divjax.ratio.certificates import HeldOut, SequentialScores
from divjax.ratio.diagnostics import Ties
from divjax.ratio.members import Member
from divjax.ratio.misfit import Misfit
from divjax.ratio.protocols import Head

__all__ = ["OutOfFoldScores"]


@pytree
class OutOfFoldScores:
    """The fields of a `RatioFit`, whose estimates depend on the scores of its rows alone."""

    log_ratio_p: Float[Array, " n"]
    log_ratio_q: Float[Array, " m"]
    weights_p: Float[Array, " n"]
    weights_q: Float[Array, " m"]
    held_out_p: HeldOut
    held_out_q: HeldOut
    sequential: SequentialScores
    train: Float[Array, "repeats folds"]
    validation: Float[Array, "repeats folds"]
    test: Float[Array, "repeats folds"]
    misfit: Misfit
    ties: Ties
    head: Head | None
    members: Member | None
    groups: tuple[Int[Array, " n"], Int[Array, " m"]] | None = None
    center: Center | None = None
    pack_size: int = static(default=1)

    def scores(self) -> Self:
        """The fit without its models, padded with rows of weight zero to a `padded_size`.

        Fits of all heads, and of samples of similar size, then share one compiled program.
        """
        # Without these the structure of the pytree, and hence the compiled program, does not depend
        # on the head.
        fit = dataclasses.replace(self, head=None, members=None, center=None)
        if fit.log_ratio_p.ndim > 1 or is_traced(fit):
            return fit
        return fit.resized(padded_size(len(fit.log_ratio_p)), padded_size(len(fit.log_ratio_q)))

    def resized(self, num_p: int, num_q: int) -> Self:
        """The fit with these numbers of rows: the first ones, or all of them and padding."""
        # One program for all fields, whose rows are in the same order.
        of_p, of_q = _resize(_rows_of_samples(self), (num_p, num_q))
        return dataclasses.replace(
            self,
            log_ratio_p=of_p.log_ratio,
            log_ratio_q=of_q.log_ratio,
            weights_p=of_p.weights,
            weights_q=of_q.weights,
            held_out_p=of_p.held_out,
            held_out_q=of_q.held_out,
            sequential=self.sequential._replace(first_p=of_p.first, first_q=of_q.first),
            groups=None if self.groups is None else (of_p.group, of_q.group),
        )


class _SampleRows(NamedTuple):
    """The fields of a fit that have one entry per row of one sample."""

    log_ratio: Float[Array, " n"]
    weights: Float[Array, " n"]
    held_out: HeldOut
    first: Float[Array, " n"]
    group: Int[Array, " n"] | None


# A row of weight zero, in no fold.
_PADDING = _SampleRows(0, 0, HeldOut(0, -1, 0), 0, 0)  # pyright: ignore[reportArgumentType]


def _rows_of_samples(fit: OutOfFoldScores) -> tuple[_SampleRows, _SampleRows]:
    group_p, group_q = (None, None) if fit.groups is None else fit.groups
    first_p, first_q = fit.sequential[:2]
    return (
        _SampleRows(fit.log_ratio_p, fit.weights_p, fit.held_out_p, first_p, group_p),
        _SampleRows(fit.log_ratio_q, fit.weights_q, fit.held_out_q, first_q, group_q),
    )


@functools.partial(jit_by_size, static_argnames="sizes")
def _resize(
    samples: tuple[_SampleRows, _SampleRows], sizes: tuple[int, int]
) -> tuple[_SampleRows, ...]:
    def resized(rows: _SampleRows, size: int) -> _SampleRows:
        # The padding must have the structure of the rows, whose groups may be None.
        padding = _PADDING if rows.group is not None else _PADDING._replace(group=None)
        return jax.tree.map(lambda leaf, fill: pad_rows(leaf, size, fill), rows, padding)

    return tuple(resized(rows, size) for rows, size in zip(samples, sizes, strict=True))
