"""The energy distance, by all pairs of rows, by sorting on the line, and along directions."""

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from divjax.core.checks import check_count, check_same_features
from divjax.core.keys import own_key
from divjax.core.numerics import matmul, norm_and_direction
from divjax.core.pairwise import map_row_blocks
from divjax.core.samples import Numbers, as_samples
from divjax.core.sharding import in_auto_axes
from divjax.discrepancy.energy_on_line import energy_distance_on_line
from divjax.discrepancy.kernel_means import nan_if_lost, squared_discrepancy
from divjax.kernels.pooled import TwoSamples, about_center, as_measures, two_samples
from divjax.kernels.radial import Energy

__all__ = ["energy_distance", "sliced_energy_distance"]


def energy_distance(
    x: Float[Numbers, "n d"],
    y: Float[Numbers, "m d"],
    a: Float[Numbers, " n"] | None = None,
    b: Float[Numbers, " m"] | None = None,
    *,
    debias: bool = False,
) -> Float[Array, ""]:
    """The energy distance 2 E‖X − Y‖ − E‖X − X′‖ − E‖Y − Y′‖, zero only if p = q.

    `mmd` with the kernel −‖x − y‖, without a bandwidth to choose. On the line it is 2 ∫ (F − G)²
    between the distribution functions. `scipy.stats.energy_distance` is its root.

    The V-statistic of all pairs is exact for the two weighted samples and never negative up to
    rounding; as an estimate for their distributions it is biased upwards by E‖X − X′‖ Σ_i a_i² and
    the same for y, hence by 1/n and 1/m times. With `debias` the means within the samples are over
    the pairs i ≠ j: the U-statistic, unbiased and possibly negative.

    One feature takes O((n + m) log(n + m)) time by sorting. More take O((n + m)² d), and memory of
    one block of the budget of `divjax.core.pairwise`: `sliced_energy_distance` estimates it by
    sorting. Derivatives are finite, and zero between coincident points.

    The value is a difference of mean distances, and its rounding error is relative to them, except
    on the line without `debias`. If clusters or outliers of both samples lie so much farther apart
    than their rows that it may be more than a hundredth of the value, from about 10⁵ times on in
    float32, the value is NaN: enable float64.

    Args:
        x: samples of p.
        y: samples of q.
        a: weights of x, non-negative, with any sum, uniform by default. Rows of weight zero are
            padding.
        b: weights of y.
        debias: whether to leave out the pairs i = j.

    Returns:
        The distance, in the samples' unit. NaN for a row with weight that is not a number, for a
        U-statistic of one row with all of the weight, or if it is lost to rounding.

    Raises:
        ValueError: if a sample is empty or not a matrix, the numbers of features differ, weights do
            not fit, or `debias` is set for a single row.

    Example:
        >>> import jax.numpy as jnp
        >>> x, y = jnp.array([[0.0], [1.0]]), jnp.array([[1.0]])
        >>> float(energy_distance(x, y))  # 2 · ½ − ½ − 0
        0.5
        >>> float(energy_distance(x, y + 10))
        20.5

    References:
        Székely, Rizzo 2013, eq. 2.1 and proposition 1.
    """
    samples = two_samples(Energy(), x, y, a, b, debias=debias)
    return _energy_distance(samples, debias=debias)


@functools.partial(jax.jit, static_argnames="debias")
@in_auto_axes
def _energy_distance(samples: TwoSamples, *, debias: bool) -> Float[Array, ""]:
    """`energy_distance` after its checks."""
    x, y, a, b = shared = as_measures(Energy(), samples)
    # On the line sorting takes O(n log n) in place of O(n²), and the V-statistic is a sum of
    # squares.
    if x.shape[1] == 1:
        value = energy_distance_on_line(x[:, 0], y[:, 0], a, b, debias=debias)
    else:
        value = squared_discrepancy(Energy(), shared, debias=debias)
    # The V-statistic on the line is no difference.
    if debias or x.shape[1] > 1:
        value = nan_if_lost(value, shared)
    return value.astype(samples.dtype)


def sliced_energy_distance(
    key: Key[Array, ""] | None,
    x: Float[Numbers, "n d"],
    y: Float[Numbers, "m d"],
    a: Float[Numbers, " n"] | None = None,
    b: Float[Numbers, " m"] | None = None,
    *,
    num_projections: int = 128,
    directions: Float[Numbers, "k d"] | None = None,
    debias: bool = False,
) -> Float[Array, ""]:
    """The energy distance by sorting along random directions, an unbiased estimate of it.

    E_θ |⟨θ, v⟩| = ‖v‖ Γ(d/2)/(√π Γ((d + 1)/2)) for θ uniform on the sphere. The mean over
    directions of the distances on the line, divided by that factor, is therefore unbiased for
    `energy_distance` of the same samples, not only another discrepancy. Its standard error over
    keys is of order 1/√num_projections. `ot.sliced_wasserstein` is likewise for transport, where
    no such factor exists.

    Time O(L (n + m)(d + log(n + m))) for L directions, memory O(n + m) or one block of the budget
    of `divjax.core.pairwise`. In reverse mode each block of directions is computed again.

    Args:
        key: the key for the directions, None if `directions` are given.
        x: samples of p.
        y: samples of q.
        a: weights of x, non-negative, with any sum, uniform by default. Rows of weight zero are
            padding.
        b: weights of y.
        num_projections: the number of directions drawn.
        directions: vectors of any length, one per row, whose directions θ take the place of drawn
            ones. NaN for one of length zero.
        debias: whether to leave out the pairs i = j.

    Returns:
        The distance, in the samples' unit, NaN as for `energy_distance`.

    Raises:
        ValueError: if a sample is empty or not a matrix, the numbers of features differ, weights do
            not fit, `debias` is set for a single row, or `num_projections` is not positive.

    Example:
        >>> import jax
        >>> x = jax.random.normal(jax.random.key(0), (200, 5))
        >>> sliced = sliced_energy_distance(jax.random.key(1), x, x + 1)
        >>> bool(abs(sliced / energy_distance(x, x + 1) - 1) < 0.3)
        True

    References:
        Székely, Rizzo 2013, section 3. Huang, Huo 2022: sums of distances by projections.
    """
    samples = two_samples(Energy(), x, y, a, b, debias=debias)
    d = samples.x.shape[1]
    if directions is None:
        key = own_key(key)
        check_count(1, num_projections=num_projections)
        # The direction of a standard normal vector is uniform on the sphere.
        directions = jax.random.normal(key, (num_projections, d), samples.dtype)
        directions = norm_and_direction(directions)[1]
    elif key is not None:
        raise ValueError("key must be None if directions are given; got a key.")
    else:
        (directions,) = as_samples(directions=directions)
        check_same_features(directions, samples.x, ("directions", "x"))
        length, units = norm_and_direction(directions)
        # A vector of length zero has no direction.
        directions = jnp.where(length > 0, units, jnp.nan)
    return _sliced(samples, directions, debias=debias)


@functools.partial(jax.jit, static_argnames="debias")
def _sliced(
    samples: TwoSamples, directions: Float[Array, "k d"], *, debias: bool
) -> Float[Array, ""]:
    """`sliced_energy_distance` after its checks."""
    x, y, a, b = about_center(as_measures(Energy(), samples))
    d = x.shape[1]

    def along(block: Float[Array, "b d"]) -> Float[Array, " b"]:
        lines = matmul(block, x.T), matmul(block, y.T)
        on_line = lambda u, v: energy_distance_on_line(u, v, a, b, debias=debias)
        return jax.vmap(on_line)(*lines)

    # A block of directions at a time: the projections of all would take L (n + m) numbers.
    distances = map_row_blocks(along, len(x) + len(y), directions.astype(x.dtype))
    # The reciprocal of E |θ_1|. By logarithms, as Γ((d + 1)/2) overflows from d = 343 on.
    factor = math.exp(math.lgamma((d + 1) / 2) - math.lgamma(d / 2)) * math.sqrt(math.pi)
    return (factor * jnp.mean(distances)).astype(samples.dtype)
