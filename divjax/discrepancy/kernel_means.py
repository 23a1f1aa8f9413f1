"""The maximum mean discrepancy of two samples, and its witness function."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from divjax.core.checks import check_same_features
from divjax.core.differentiation import with_slopes_of
from divjax.core.numerics import at_least_single, in_units_of, matmul, nan_unless
from divjax.core.pairwise import common_center, near_distance
from divjax.core.rounding import is_rounded_away
from divjax.core.samples import Numbers, as_samples, centered_samples, check_distinguishable
from divjax.core.sharding import in_auto_axes
from divjax.core.simplex import with_finite_padding
from divjax.kernels.bandwidth import MedianDistance
from divjax.kernels.contrasts import contrast_at, less_constant
from divjax.kernels.means import map_kernel_rows, mean_of_pairs, own_mean
from divjax.kernels.pooled import (
    TwoMeasures,
    TwoSamples,
    as_measures,
    pooled_rows,
    resolved_at,
    two_samples,
)
from divjax.kernels.protocols import GramKernel, check_gram_kernel, is_radial
from divjax.kernels.radial import Energy, Gaussian

__all__ = ["mmd", "nan_if_lost", "squared_discrepancy", "witness"]


def squared_discrepancy(
    kernel: GramKernel, samples: TwoMeasures, *, debias: bool
) -> Float[Array, ""]:
    """E k(x, x′) + E k(y, y′) − 2 E k(x, y), for a kernel without a rule and shares of sum one."""
    # A distance scales with its points, so that their unit may be chosen. Other kernels have a
    # bandwidth in the unit of the rows.
    if isinstance(kernel, Energy):
        samples, unit = _in_own_unit(samples)
        return unit * _of_means(kernel, samples, debias=debias)
    return _of_means(kernel, samples, debias=debias)


def _in_own_unit(samples: TwoMeasures) -> tuple[TwoMeasures, Float[Array, ""]]:
    """Both samples in units of the largest deviation with weight from their centre, and the unit.

    Squares then neither over- nor underflow, and no digit is lost.
    """
    x, y, a, b = samples
    center = common_center(x, a != 0)
    sides = (x - center, a), (y - center, b)
    size = jnp.maximum(*(jnp.max(jnp.where(w[:, None] != 0, jnp.abs(z), 0)) for z, w in sides))
    size = jax.lax.stop_gradient(size)
    (x, unit), (y, _) = in_units_of(size, x), in_units_of(size, y)
    return TwoMeasures(with_finite_padding(x, a), with_finite_padding(y, b), a, b), unit


def nan_if_lost(value: Float[Array, ""], samples: TwoMeasures) -> Float[Array, ""]:
    """A difference of mean distances, NaN if those between clusters are rounded by as much.

    That is, if their rounding may be more than a hundredth of the value, and of the distances
    within a cluster. Between samples without clusters a value may be as small as their rounding.
    """
    x, y, a, b = jax.lax.stop_gradient(samples)
    rows, weights = jnp.concatenate([x, y]), jnp.concatenate([a, b])
    # Rows of weight zero may be anywhere.
    rows = jnp.where((weights > 0)[:, None], rows - common_center(rows, weights > 0), 0)
    # E‖X − c‖ + E‖Y − c‖, each in its largest coordinate: about the mean distance, never squared.
    size = jnp.sum(weights * jnp.max(jnp.abs(rows), axis=1))
    of_value = is_rounded_away(size, jnp.abs(jax.lax.stop_gradient(value)))
    is_lost = of_value & is_rounded_away(size, near_distance(rows))
    # Its derivatives are not lost: they are sums of directions.
    return with_slopes_of(value, nan_unless(~is_lost, jax.lax.stop_gradient(value)))


def _of_means(kernel: GramKernel, samples: TwoMeasures, *, debias: bool) -> Float[Array, ""]:
    x, y, a, b = samples
    within = own_mean(kernel, x, a, debias=debias) + own_mean(kernel, y, b, debias=debias)
    return within - 2 * mean_of_pairs(kernel, x, y, a, b)


def mmd(
    x: Float[Numbers, "n d"],
    y: Float[Numbers, "m d"],
    a: Float[Numbers, " n"] | None = None,
    b: Float[Numbers, " m"] | None = None,
    *,
    kernel: GramKernel = Gaussian(MedianDistance()),
    debias: bool = False,
) -> Float[Array, ""]:
    """The squared maximum mean discrepancy, MMD² = E k(X, X′) + E k(Y, Y′) − 2 E k(X, Y).

    It is the squared distance of the mean embeddings of both distributions in the kernel's Hilbert
    space, and the mean of the `witness` function over x less that over y. For a characteristic
    kernel (Gaussian, Laplace, Matérn, inverse multiquadric) it is zero only if p = q. With the
    kernel `kernels.Energy()` it is the `energy_distance`.

    The V-statistic of all pairs, Σ_ij a_i a_j k(x_i, x_j) + Σ_ij b_i b_j k(y_i, y_j)
    − 2 Σ_ij a_i b_j k(x_i, y_j), is exact for the two weighted samples and never negative up to
    rounding. As an estimate for their distributions its bias is positive,
    Σ_i a_i² E[k(X, X) − k(X, X′)] and the same for y, 1/n and 1/m times about one for a bounded
    kernel. With `debias` the pairs i = j are left out and the others divided by their mass
    1 − Σ_i a_i²: the U-statistic, unbiased and possibly negative. The mean of U-statistics over
    minibatches, and so its gradient, is unbiased for that of the whole distributions, and is the
    loss to train a generator with. `flows.MMD` is half of this number, whose Wasserstein gradient
    is that of the witness.

    A bandwidth rule is evaluated once, at the rows of both samples with weight, and gradients are
    stopped at its value. The default, the median distance, differs from one pair of samples to the
    next: give a number if values are to be compared.

    The parts of k that cancel are left out before they are rounded: a bandwidth far beyond the
    data, or a polynomial kernel far from its origin, costs no digits. For a kernel of one's own,
    whose values are rounded already, the error is about ε E|k|.

    Time O((n + m)² d), memory one block of the budget of `divjax.core.pairwise`. Derivatives of
    every order, finite at coincident points and at weights of zero.

    Args:
        x: samples of p.
        y: samples of q.
        a: weights of x, non-negative, with any sum, uniform by default. Rows of weight zero are
            padding.
        b: weights of y.
        kernel: a kernel of `divjax.kernels`, or one's own: a matrix of its values is enough.
        debias: whether to leave out the pairs i = j.

    Returns:
        MMD², not its root. NaN for a row with weight that is not finite, a traced number out of
        range, or a U-statistic of one row with all of the weight.

    Raises:
        ValueError: if a sample is empty or not a matrix, the numbers of features differ, weights do
            not fit, `kernel` is not a kernel, or `debias` is set for a single row.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from divjax.kernels import Gaussian
        >>> x, y = jax.random.normal(jax.random.key(0), (2, 500, 1))
        >>> value = mmd(x, y + 1, kernel=Gaussian(1.0), debias=True)
        >>> exact = 2 * (1 - jnp.exp(-1 / 6)) / jnp.sqrt(3.0)  # between these Gaussians
        >>> round(float(value), 2), round(float(exact), 2)
        (0.18, 0.18)

    References:
        Gretton, Borgwardt, Rasch, Schölkopf, Smola 2012, lemma 6, eq. 3 and 5. Bińkowski,
        Sutherland, Arbel, Gretton 2018, theorem 1: unbiased gradients.
    """
    samples = two_samples(kernel, x, y, a, b, debias=debias)
    return _mmd(kernel, samples, debias=debias)


@functools.partial(jax.jit, static_argnames="debias")
@in_auto_axes
def _mmd(kernel: GramKernel, samples: TwoSamples, *, debias: bool) -> Float[Array, ""]:
    """`mmd` after its checks."""
    # Less the parts that cancel in the difference of means, before they are rounded.
    kernel = contrast_at(kernel, samples, debias=debias)
    measures = as_measures(kernel, samples)
    value = squared_discrepancy(kernel, measures, debias=debias)
    if isinstance(kernel, Energy):
        value = nan_if_lost(value, measures)
    return value.astype(samples.dtype)


def witness(
    z: Float[Numbers, "k d"],
    x: Float[Numbers, "n d"],
    y: Float[Numbers, "m d"],
    a: Float[Numbers, " n"] | None = None,
    b: Float[Numbers, " m"] | None = None,
    *,
    kernel: GramKernel = Gaussian(MedianDistance()),
) -> Float[Array, " k"]:
    """Where two samples differ: Σ_i a_i k(z, x_i) − Σ_j b_j k(z, y_j), the witness of their MMD.

    Positive where p has more mass than q at the kernel's scale, negative where it has less. Among
    all functions of norm one in the kernel's space, the one proportional to it has the largest
    difference of means between the samples, which is MMD: the mean of the witness over x less that
    over y is MMD². Its gradient is the velocity field of the flow of ½ MMD².

    Time O(k (n + m) d), memory one block of the budget of `divjax.core.pairwise`.

    Args:
        z: the points at which to evaluate it.
        x: samples of p.
        y: samples of q.
        a: weights of x, non-negative, with any sum, uniform by default. Rows of weight zero are
            padding.
        b: weights of y.
        kernel: a kernel of `divjax.kernels`, or one's own. A bandwidth rule is evaluated at x and y
            together, without z.

    Returns:
        Its values, in units of the kernel, NaN at points that are not finite.

    Raises:
        ValueError: if an argument is empty or not a matrix, the numbers of features differ, weights
            do not fit, or `kernel` is not a kernel.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.kernels import Gaussian
        >>> x, y = jnp.array([[0.0], [4.0]]), jnp.array([[4.0], [9.0]])
        >>> witness(jnp.array([[0.0], [4.0], [9.0]]), x, y, kernel=Gaussian(0.5)).round(3).tolist()
        [0.5, 0.0, -0.5]

    References:
        Gretton, Borgwardt, Rasch, Schölkopf, Smola 2012, section 2.3.
    """
    samples = two_samples(kernel, x, y, a, b)
    check_gram_kernel(kernel)
    if is_radial(kernel):
        # One centre for the three of them.
        _, z, x, y = centered_samples({"x": a, "y": b}, z=z, x=x, y=y)
    else:
        check_distinguishable("z", z)
        z, x, y = as_samples(z=z, x=x, y=y)
    check_same_features(z, x, ("z", "x"))
    return _witness(kernel, z, samples._replace(x=x, y=y))


@jax.jit
@in_auto_axes
def _witness(kernel: GramKernel, z: Float[Array, "k d"], samples: TwoSamples) -> Float[Array, " k"]:
    """`witness` after its checks."""
    kernel = resolved_at(kernel, samples)
    x, y, a, b = as_measures(kernel, samples)
    points, signed = jnp.concatenate([x, y]), jnp.concatenate([a, -b])
    # One pass over both samples, for the difference of their means and the sum.
    columns = jnp.stack([signed, jnp.abs(signed)], axis=1)
    z = z.astype(at_least_single(z.dtype))

    def means(kernel: GramKernel) -> Float[Array, "k 2"]:
        return map_kernel_rows(
            lambda values, own: matmul(values, columns), kernel, z, points, used=signed != 0
        )

    if not is_radial(kernel):
        return means(kernel)[:, 0].astype(samples.dtype)
    # No more than a number is subtracted: any other part of k cancels in MMD, and here remains.
    contrast, constant = less_constant(kernel, pooled_rows(samples))
    found = means(contrast)
    # A kernel wide for most rows may be narrow between them and a point, where its values are far
    # below the constant: the difference has lost their digits.
    small = (constant > 0) & (found[:, 1] < -constant)
    plain = jax.lax.cond(jnp.any(small), lambda: means(kernel), lambda: found)
    return jnp.where(small, plain[:, 0], found[:, 0]).astype(samples.dtype)
