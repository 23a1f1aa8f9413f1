"""Kernels of differences of samples, without the parts that cancel in them.

A kernel k(x, y) − f(x) − f(y) has the same maximum mean discrepancy as k, whatever f is, since both
samples have mass one, and so has every statistic of doubly centred matrices. If k hardly varies, as
with a bandwidth far beyond the data, or a polynomial kernel far from its origin, rounding of k
exceeds such a statistic, and rounding of the difference from a suitable f does not.
"""

from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from divjax.core.checks import provides
from divjax.core.pairwise import common_center, squared_distances
from divjax.core.pytrees import pytree
from divjax.kernels.pooled import TwoSamples, pooled_rows, resolved_at_rows
from divjax.kernels.protocols import GramKernel, Kernel, is_radial

__all__ = [
    "MovableKernel",
    "PeakedKernel",
    "contrast_at",
    "contrast_at_rows",
    "less_constant",
]

_Block = Float[Array, "n m"]


@runtime_checkable
class PeakedKernel(Kernel, Protocol):
    """A radial kernel with its values less that at distance zero, computed without cancellation."""

    def below_peak(self, squared: _Block) -> _Block:
        """κ(r) − κ(0) at squared distances."""
        ...


@runtime_checkable
class MovableKernel(GramKernel, Protocol):
    """A kernel with k(x, y) − k(x, z) − k(z, y) + k(z, z), computed without cancellation."""

    def about(self, origin: Float[Array, " d"]) -> GramKernel:
        """That kernel for the point z."""
        ...


@pytree
class _Contrast:
    """A radial kernel, less its value at distance zero if `flat` is one rather than zero.

    Attributes:
        kernel: the kernel.
        flat: a number, as the choice may be traced.
    """

    kernel: Kernel
    flat: Float[Array, ""]

    # The difference is not positive, and the slope is not a multiple of it.
    positive_definite = False
    log_slope = None

    def init(self, x: Float[Array, "n d"]) -> tuple[()]:
        """The empty state."""
        return ()

    def resolve(
        self, x: Float[Array, "n d"], state: PyTree[Array]
    ) -> tuple["_Contrast", PyTree[Array]]:
        """The kernel itself."""
        return self, state

    def radial(self, squared: _Block) -> tuple[_Block, _Block]:
        """Values and slopes."""
        # The slope stays as it is, since a constant is subtracted.
        value, slope = self.kernel.radial(squared)
        # One of them is computed, except under vmap.
        below = lambda: _below_peak(self.kernel, squared).astype(value.dtype)
        return jax.lax.cond(self.flat > 0, below, lambda: value), slope

    def __call__(self, x: Float[Array, "n d"], y: Float[Array, "m d"] | None = None) -> _Block:
        """The kernel matrix."""
        return self.radial(squared_distances(x, y))[0]


def _below_peak(kernel: Kernel, squared: _Block) -> _Block:
    if provides(kernel, "below_peak"):
        return kernel.below_peak(squared)  # pyright: ignore[reportAttributeAccessIssue]
    return kernel.radial(squared)[0] - kernel.radial(jnp.zeros((1, 1), squared.dtype))[0]


def contrast_at(kernel: GramKernel, samples: TwoSamples, *, debias: bool = False) -> GramKernel:
    """`contrast_at_rows` for the rows of both samples that have weight.

    Without the pairs i = j, a function of x_i alone cancels only if weights are equal.
    """
    weighted = samples.a is not None or samples.b is not None
    return contrast_at_rows(kernel, pooled_rows(samples), constant=debias and weighted)


def contrast_at_rows(
    kernel: GramKernel, rows: Float[Array, "n d"], *, constant: bool = False
) -> GramKernel:
    """The kernel with its rule evaluated at the rows, less the parts that cancel in differences.

    Without derivatives in the rows. A radial kernel is left as it is if it is narrow for them: then
    its values are small beside that at distance zero, and the difference would lose them. With
    `constant` only a number is subtracted.
    """
    kernel, rows = resolved_at_rows(kernel, rows), jax.lax.stop_gradient(rows)
    center = common_center(rows)
    if not is_radial(kernel):
        moved = provides(kernel, "about") and not constant
        return kernel.about(center) if moved else kernel  # pyright: ignore[reportAttributeAccessIssue]
    # A kernel such as −‖x − y‖ has no peak.
    if not kernel.positive_definite:
        return kernel
    # The median: one row far from all others does not make a kernel narrow for the rest.
    squares = jnp.sum(jnp.square(rows - center), axis=1, keepdims=True)
    typical = 2 * common_center(jnp.minimum(squares, jnp.finfo(rows.dtype).max))[0]
    ends = jax.lax.stop_gradient(kernel).radial(jnp.stack([jnp.zeros_like(typical), typical])[None])
    # Wide if it still exceeds half of its peak at that distance: most of every value is then the
    # constant that cancels.
    peak, value = ends[0][0]
    return _Contrast(kernel, (value > peak / 2).astype(rows.dtype))


def less_constant(kernel: Kernel, rows: Float[Array, "n d"]) -> tuple[GramKernel, Float[Array, ""]]:
    """The kernel with its rule evaluated at the rows, less a number, and that number.

    For statistics of means of k in units of a number near all of them: the number is the value at
    distance zero if the kernel is wide for the rows, and otherwise zero.
    """
    contrast = contrast_at_rows(kernel, rows, constant=True)
    if not isinstance(contrast, _Contrast):
        return contrast, jnp.zeros((), rows.dtype)
    peak = contrast.kernel.radial(jnp.zeros((1, 1), rows.dtype))[0][0, 0]
    return contrast, jnp.where(contrast.flat > 0, peak, 0).astype(rows.dtype)
