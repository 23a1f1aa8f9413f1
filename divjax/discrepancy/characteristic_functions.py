"""Distances of empirical characteristic functions at random frequencies."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from divjax.core.checks import check_count, check_provides, check_same_features
from divjax.core.keys import own_key
from divjax.core.numerics import at_least_single, matmul
from divjax.core.pairwise import map_row_blocks
from divjax.core.samples import Numbers, as_samples
from divjax.core.simplex import mass_of_distinct_pairs
from divjax.kernels.bandwidth import MedianDistance
from divjax.kernels.pooled import (
    TwoSamples,
    about_center,
    as_measures,
    pooled_rows,
    two_samples,
)
from divjax.kernels.protocols import SpectralKernel
from divjax.kernels.radial import Gaussian

__all__ = ["characteristic_function_distance"]


def characteristic_function_distance(
    key: Key[Array, ""] | None,
    x: Float[Numbers, "n d"],
    y: Float[Numbers, "m d"],
    a: Float[Numbers, " n"] | None = None,
    b: Float[Numbers, " m"] | None = None,
    *,
    kernel: SpectralKernel = Gaussian(MedianDistance()),
    num_frequencies: int = 512,
    frequencies: Float[Numbers, "k d"] | None = None,
    debias: bool = False,
) -> Float[Array, ""]:
    """The mean of |φ_x(ω) − φ_y(ω)|² over random frequencies: MMD² by random features.

    φ_x(ω) = Σ_i a_i exp(i ω·x_i) is the empirical characteristic function. With frequencies drawn
    from a kernel's spectral distribution, k(x, y) = E cos(ω·(x − y)) by Bochner's theorem, so that
    the expectation over the draw is `mmd` of the same samples with that kernel: for a Gaussian
    kernel frequencies are N(0, I/σ²), for a Matérn one of smoothness ν they have Student's
    distribution with 2ν degrees of freedom. The standard error over keys is of order
    1/√num_frequencies. Like MMD² it is biased upwards as an estimate for the distributions; with
    `debias` each |φ|² is corrected for the pairs i = j, and the expectation is the U-statistic.

    Time O(L (n + m) d) for L frequencies, memory one block of the budget of
    `divjax.core.pairwise`. Differentiable in samples, weights, bandwidth and frequencies.

    Args:
        key: the key for the frequencies, None if `frequencies` are given.
        x: samples of p.
        y: samples of q.
        a: weights of x, non-negative, with any sum, uniform by default. Rows of weight zero are
            padding.
        b: weights of y.
        kernel: the kernel whose spectral distribution frequencies have: Gaussian, Laplace, Matérn
            or inverse multiquadric. A bandwidth rule is evaluated at both samples together.
        num_frequencies: L, the number of frequencies drawn.
        frequencies: ω, one per row, in place of drawn ones; the kernel then has no effect.
        debias: whether to leave out the pairs i = j.

    Returns:
        The mean over frequencies, without a unit. NaN for a row with weight that is not finite.

    Raises:
        ValueError: if a sample is empty or not a matrix, the numbers of features differ, weights do
            not fit, the kernel has no spectral distribution, `debias` is set for a single row, or
            `num_frequencies` is not positive.

    Example:
        >>> import jax
        >>> from divjax.discrepancy import mmd
        >>> from divjax.kernels import Gaussian
        >>> x, y = jax.random.normal(jax.random.key(0), (2, 100, 2))
        >>> kernel, key = Gaussian(1.0), jax.random.key(1)
        >>> value = characteristic_function_distance(key, x, y + 1, kernel=kernel)
        >>> bool(abs(value / mmd(x, y + 1, kernel=kernel) - 1) < 0.2)
        True

    References:
        Rahimi, Recht 2007: random features. Chwialkowski, Ramdas, Sejdinovic, Gretton 2015.
        Ansari, Scarlett, Soh 2020, eq. 5.
    """
    samples = two_samples(kernel, x, y, a, b, debias=debias)
    needed = ("frequencies",)
    check_provides("kernel", kernel, needed, "a kernel with a spectral distribution, as Gaussian()")
    d = samples.x.shape[1]
    if frequencies is not None:
        if key is not None:
            raise ValueError("key must be None if frequencies are given; got a key.")
        (frequencies,) = as_samples(frequencies=frequencies)
        check_same_features(frequencies, samples.x, ("frequencies", "x"))
        return _mean_gap(samples, frequencies, debias=debias)
    key = own_key(key)
    check_count(1, num_frequencies=num_frequencies)
    return _drawn(key, kernel, samples, shape=(num_frequencies, d), debias=debias)


@functools.partial(jax.jit, static_argnames=("shape", "debias"))
def _drawn(
    key: Key[Array, ""],
    kernel: SpectralKernel,
    samples: TwoSamples,
    *,
    shape: tuple[int, int],
    debias: bool,
) -> Float[Array, ""]:
    """`characteristic_function_distance` at drawn frequencies, after its checks."""
    rows = jax.lax.stop_gradient(pooled_rows(samples))
    resolved, _ = kernel.resolve(rows, kernel.init(rows))
    # Derivatives in a bandwidth that is a number pass through the draws, which are scaled by it.
    drawn = resolved.frequencies(key, shape, at_least_single(samples.dtype))
    return _mean_gap(samples, drawn, debias=debias)


@functools.partial(jax.jit, static_argnames="debias")
def _mean_gap(
    samples: TwoSamples, frequencies: Float[Array, "k d"], *, debias: bool
) -> Float[Array, ""]:
    # Moduli are those about any origin, and phases are exact to rounding of themselves.
    x, y, a, b = about_center(as_measures(Gaussian(), samples))

    def characteristic(
        frequencies: Float[Array, "b d"], rows: Float[Array, "n d"], share: Float[Array, " n"]
    ) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
        phases = matmul(frequencies, rows.T)
        return matmul(jnp.cos(phases), share), matmul(jnp.sin(phases), share)

    def gap(block: Float[Array, "b d"]) -> Float[Array, " b"]:
        (cos_x, sin_x), (cos_y, sin_y) = characteristic(block, x, a), characteristic(block, y, b)
        # The difference is squared after it is taken: |φ_x|² + |φ_y|² less the cross term would
        # cancel.
        squared = jnp.square(cos_x - cos_y) + jnp.square(sin_x - sin_y)
        if not debias:
            return squared
        # |φ|² has the share Σ a² of pairs i = j, and the others are to have the mass one.
        for cos, sin, share in ((cos_x, sin_x, a), (cos_y, sin_y, b)):
            # (|φ|² − s)/(1 − s) − |φ|² = (|φ|² − 1) s/(1 − s), with s = Σ a².
            missing = jnp.square(cos) + jnp.square(sin) - 1
            squared += missing * jnp.sum(jnp.square(share)) / mass_of_distinct_pairs(share)
        return squared

    gaps = map_row_blocks(gap, x.shape[0] + y.shape[0], frequencies.astype(x.dtype))
    return jnp.mean(gaps).astype(samples.dtype)
