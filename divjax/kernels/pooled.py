"""Two samples for one kernel: rows, shares, and one bandwidth for all of their pairs."""

from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from divjax.core.checks import check_flag
from divjax.core.numerics import at_least_single
from divjax.core.pairwise import common_center, living_rows
from divjax.core.samples import (
    Numbers,
    as_samples,
    as_weights,
    centered_samples,
    check_distinguishable,
)
from divjax.core.simplex import shares_of, with_finite_padding
from divjax.kernels.protocols import GramKernel, check_gram_kernel, is_radial

K = TypeVar("K", bound=GramKernel)

__all__ = [
    "TwoMeasures",
    "TwoSamples",
    "about_center",
    "as_measure",
    "as_measures",
    "living_part",
    "pooled_rows",
    "resolved_at",
    "resolved_at_rows",
    "resolved_kernel",
    "two_samples",
]

# Rows of weight zero that are farther off than this multiple of the others' extent are moved, for
# kernels whose values there may overflow.
_REACH = 8


class TwoSamples(NamedTuple):
    """The rows of two samples in one dtype, and their weights, None if they are equal."""

    x: Float[Array, "n d"]
    y: Float[Array, "m d"]
    a: Float[Array, " n"] | None = None
    b: Float[Array, " m"] | None = None

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the rows, in which results are returned."""
        return self.x.dtype


class TwoMeasures(NamedTuple):
    """Two samples in at least single precision, with masses of sum one."""

    x: Float[Array, "n d"]
    y: Float[Array, "m d"]
    a: Float[Array, " n"]
    b: Float[Array, " m"]


def two_samples(
    kernel: GramKernel,
    x: Numbers,
    y: Numbers,
    a: Numbers | None = None,
    b: Numbers | None = None,
    *,
    debias: bool = False,
) -> TwoSamples:
    """The arguments of a discrepancy, checked and converted, before any computation.

    Samples are centred for a radial kernel, which depends on differences alone, and for no other.

    Raises:
        ValueError: for an object that is not a kernel, invalid samples or weights, rows that must
            not be rounded for a kernel that is not radial, and a single row with `debias`.
    """
    check_gram_kernel(kernel)
    check_flag(debias=debias)
    if is_radial(kernel):
        _, x, y = centered_samples({"x": a, "y": b}, x=x, y=y)
    else:
        # A kernel that depends on the rows' location gets them as they are: differences that
        # rounding destroys cannot be restored by centring.
        for name, rows, weights in (("x", x, a), ("y", y, b)):
            check_distinguishable(name, rows, weights)
        x, y = as_samples(x=x, y=y)
    # A single row has no pairs i ≠ j.
    for name, rows in (("x", x), ("y", y)) if debias else ():
        if rows.shape[0] < 2:
            raise ValueError(f"{name} must have at least two rows to be unbiased; got 1.")
    # Weights are summed, for which half precision has too few digits.
    work = at_least_single(x.dtype)
    a = None if a is None else as_weights("a", a, x.shape[0], work)
    b = None if b is None else as_weights("b", b, y.shape[0], work)
    return TwoSamples(x, y, a, b)


def as_measures(kernel: GramKernel, samples: TwoSamples) -> TwoMeasures:
    """The rows in at least single precision, and weights that sum to one.

    Weights are NaN if they are traced and out of range. Rows of weight zero that are not finite are
    replaced. For a kernel that is not radial, whose values may overflow, so are those farther off
    than 8 times the extent of the others.
    """
    x, a = as_measure(kernel, samples.x, samples.a)
    y, b = as_measure(kernel, samples.y, samples.b)
    return TwoMeasures(x, y, a, b)


def as_measure(
    kernel: GramKernel, rows: Float[Array, "n d"], weights: Float[Array, " n"] | None
) -> tuple[Float[Array, "n d"], Float[Array, " n"]]:
    """The rows of one sample and their weights, as `as_measures`."""
    work = at_least_single(rows.dtype)
    rows = rows.astype(work)
    if weights is None:
        return rows, jnp.full(rows.shape[0], 1 / rows.shape[0], work)
    # Zero times a kernel value of NaN is NaN: rows of weight zero must have finite values.
    used, rows = weights != 0, with_finite_padding(rows, weights)
    if not is_radial(kernel):
        rows = _within_reach(rows, used)
    return rows, shares_of(weights)


def about_center(measures: TwoMeasures) -> TwoMeasures:
    """Both samples less a row near those of x, for moments and projections.

    They do not depend on a common offset, but the rounding of a mean, and of a product of matrices,
    is relative to it. One feature far from zero would decide all of them.
    """
    x, y, a, b = measures
    center = common_center(x, a != 0)
    return TwoMeasures(x - center, y - center, a, b)


def _within_reach(rows: Float[Array, "n d"], used: Bool[Array, " n"]) -> Float[Array, "n d"]:
    """The rows, with unused ones that are far from the others moved to the origin."""
    sizes = jnp.max(jnp.abs(rows), axis=1)
    # By size and not by distance: a kernel of inner products overflows far from the origin.
    reach = _REACH * jnp.max(jnp.where(used, sizes, 0))
    return jnp.where((used | (sizes <= reach))[:, None], rows, 0)


def resolved_at(kernel: GramKernel, samples: TwoSamples) -> GramKernel:
    """The kernel with its rule evaluated at the pooled rows that have weight, without derivatives.

    One bandwidth for all terms of a discrepancy: a rule that is evaluated for each term would
    compare the values of different kernels.
    """
    return resolved_at_rows(kernel, pooled_rows(samples))


def pooled_rows(samples: TwoSamples) -> Float[Array, "k d"]:
    """The rows of both samples that have weight, at which bandwidth rules are evaluated."""
    return jnp.concatenate([living_part(samples.x, samples.a), living_part(samples.y, samples.b)])


def resolved_at_rows(kernel: GramKernel, rows: Float[Array, "n d"]) -> GramKernel:
    """The kernel with its rule evaluated at these rows, without derivatives."""
    fixed = jax.lax.stop_gradient(rows)
    return kernel.resolve(fixed, kernel.init(fixed))[0]


def living_part(
    rows: Float[Array, "n d"], weights: Float[Array, " n"] | None
) -> Float[Array, "n d"]:
    """The rows in at least single precision, those of weight zero replaced by others."""
    living = rows if weights is None else living_rows(rows, weights)
    return living.astype(at_least_single(rows.dtype))


_resolved = jax.jit(resolved_at)


def resolved_kernel(
    kernel: K,
    x: Float[Numbers, "n d"],
    y: Float[Numbers, "m d"],
    a: Float[Numbers, " n"] | None = None,
    b: Float[Numbers, " m"] | None = None,
) -> K:
    """The kernel whose bandwidth is its rule's value at both samples together.

    This is the kernel of every discrepancy of two samples: a rule that is evaluated at each term
    would compare the values of different kernels. A kernel without a rule is returned as it is.

    Args:
        kernel: a kernel of `divjax.kernels`, or one's own.
        x: samples of p.
        y: samples of q.
        a: weights of x. Only rows of nonzero weight count, each as much as any other.
        b: weights of y.

    Returns:
        The kernel, whose bandwidth is a constant to differentiation.

    Raises:
        ValueError: if the kernel, a sample or weights are invalid.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.kernels import Gaussian, Mean
        >>> x, y = jnp.array([[0.0], [1.0]]), jnp.array([[2.0]])
        >>> kernel = resolved_kernel(Gaussian(Mean()), x, y)
        >>> round(float(kernel.bandwidth**2 * 2 * jnp.log(4.0)), 4)  # of all three points
        2.0

    References:
        Gretton, Borgwardt, Rasch, Schölkopf, Smola 2012, section 8: the median of pooled distances.
    """
    resolved: Any = _resolved(kernel, two_samples(kernel, x, y, a, b))
    return resolved
