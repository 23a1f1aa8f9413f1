"""How a Gaussian model fitted to samples generalises, in large dimension.

The model N(0, Σ̂) with the sample covariance of n rows in d features, as n and d grow at a fixed
load α = n/d. Its bulk, the spectrum by the Marchenko–Pastur law, memorises the samples until n ≫ d:
it is far from the truth (`bulk_distance`), and farther from the model of other samples
(`model_distance`). A direction of large variance is found from a sharp load on
(`eigenvector_overlap`).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from divjax.core.arguments import as_leaves
from divjax.core.checks import check_positive_values
from divjax.core.numerics import at_least_single, nan_unless
from divjax.core.samples import Numbers, as_arrays

__all__ = ["bulk_distance", "eigenvector_overlap", "model_distance"]

# The trapezoidal rule in s, for integrals over shares m = 1/(1 + exp(−π sinh s)) in (0, 1): nodes
# crowd at both ends, where integrands have branch points, so that those just beyond 1 do no harm.
_GRID = np.linspace(-2.7, 2.7, 80)
_SHARES, _OTHER_SHARES = (1 / (1 + np.exp(sign * np.pi * np.sinh(_GRID))) for sign in (-1, 1))
_WEIGHTS = (_GRID[1] - _GRID[0]) * np.pi * np.cosh(_GRID) * (_SHARES * _OTHER_SHARES) ** 1.5


def _wide_positive(**numbers: Numbers) -> tuple[np.dtype, list[Array]]:
    """The result's dtype, and the numbers in at least single precision, NaN if not positive."""
    arrays = as_arrays(**numbers)
    wide = [array.astype(at_least_single(array.dtype)) for array in arrays]
    return arrays[0].dtype, [nan_unless((z > 0) & jnp.isfinite(z), z) for z in wide]


def _mean_squared_distance(one: Float[Array, "..."], other: Float[Array, "..."]) -> Array:
    """W₂²/d of two models whose ratios d/n are given, zero for the truth."""
    # E √λ = 2/π ∫ √((1 − m)(1 − c m)(1 − c′ m)/m) dm up to the first zero, 1/C, of the three
    # factors. In units of C it is C^(−½) times that of 1 and the other two coefficients, which are
    # at most one. These are in ascending order; a tie is no corner, as either order has the same
    # derivative.
    coefficients = jnp.broadcast_arrays(one, other, jnp.ones((), one.dtype))
    first, second, largest = jnp.sort(jnp.stack(coefficients), axis=0)
    first, second = (each[..., None] / largest[..., None] for each in (first, second))
    shares, others, weights = (
        jnp.asarray(numbers, one.dtype) for numbers in (_SHARES, _OTHER_SHARES, _WEIGHTS)
    )
    # 1 − √u as (1 − u)/(1 + √u): nothing cancels at large loads.
    factors = (1 - first + first * others) * (1 - second + second * others)
    excess = (first + second - first * second * shares) / (1 + jnp.sqrt(factors))
    distance = 4 / np.pi * jnp.sum(weights * excess, axis=-1)
    scale = jax.lax.rsqrt(largest)
    return 2 * (1 - scale) + scale * distance


def bulk_distance(load: Float[Numbers, "..."]) -> Float[Array, "..."]:
    """W₂²(N(0, Σ̂), N(0, I))/d of the sample covariance Σ̂ in large dimension.

    2 − 2 E √λ for eigenvalues λ of the Marchenko–Pastur law with ratio d/n: the mean eigenvalue is
    one, and for Gaussians with commuting covariances the cost is Σ (√λ − 1)². It falls from 2 at
    load 0 to d/(4n) at large loads. A few directions of larger variance change it by O(1/d).

    Args:
        load: n/d, positive, of any shape.

    Returns:
        The squared Wasserstein distance per dimension, differentiable; NaN for a traced load that
        is not positive.

    Raises:
        ValueError: if a known load is not positive.

    Example:
        >>> round(float(bulk_distance(1.0)), 4)  # 2 − 16/(3π)
        0.3023

    References:
        Marchenko, Pastur 1967.
    """
    (load,) = as_leaves(load=load)
    check_positive_values(load=load)
    return _bulk_distance(load)


@jax.jit
def _bulk_distance(load: Numbers) -> Array:
    dtype, (load,) = _wide_positive(load=load)
    return _mean_squared_distance(1 / load, jnp.zeros_like(load)).astype(dtype)


def model_distance(
    load: Float[Numbers, "..."], other_load: Float[Numbers, "..."]
) -> Float[Array, "..."]:
    """W₂²(N(0, Σ̂), N(0, Σ̂′))/d of the sample covariances of independent samples.

    2 − 2 E √λ for eigenvalues λ of Σ̂^½ Σ̂′ Σ̂^½ in large dimension, the free multiplicative
    convolution of two Marchenko–Pastur laws. With its S-transform 1/((1 + c z)(1 + c′ z)),
    E √λ = 2/π ∫ √((1 − m)(1 − c m)(1 − c′ m)/m) dm for the ratios c = d/n and c′ = d/n′, from 0 to
    the first zero of a factor; d/(2n) for equal loads of at least one. It tends to `bulk_distance`
    as the other load grows, and is the sum of both models' distances from the truth at large loads:
    the models memorise independent samples.

    Args:
        load: n/d of one sample, positive, of any shape.
        other_load: n′/d of the other, positive, of a shape to be broadcast against it.

    Returns:
        The squared Wasserstein distance per dimension, differentiable; NaN for traced loads that
        are not positive.

    Raises:
        ValueError: if a known load is not positive.

    Example:
        >>> round(float(model_distance(1.0, 1.0)), 4)  # 2 − 2 · 3/4
        0.5

    References:
        Voiculescu 1987: the convolution. Dowson, Landau 1982, equation 16: the distance.
    """
    load, other_load = as_leaves(load=load, other_load=other_load)
    check_positive_values(load=load, other_load=other_load)
    return _model_distance(load, other_load)


@jax.jit
def _model_distance(load: Numbers, other_load: Numbers) -> Array:
    dtype, (load, other_load) = _wide_positive(load=load, other_load=other_load)
    return _mean_squared_distance(1 / load, 1 / other_load).astype(dtype)


def eigenvector_overlap(
    spike: Float[Numbers, "..."], load: Float[Numbers, "..."]
) -> Float[Array, "..."]:
    """⟨û, u⟩² of a sample covariance's first eigenvector and the direction of largest variance.

    (1 − 1/(αθ²))/(1 + 1/(αθ)) for a covariance I + θ uuᵀ and load α = n/d, and zero below the load
    1/θ², at which the transition of Baik, Ben Arous and Péché makes the direction visible.

    Args:
        spike: θ, positive, the excess variance along u.
        load: n/d, positive, of a shape to be broadcast against it.

    Returns:
        The squared overlap, differentiable except at the transition; NaN for traced numbers that
        are not positive.

    Raises:
        ValueError: if a known number is not positive.

    Example:
        >>> round(float(eigenvector_overlap(3.0, 1.0)), 4)
        0.6667

    References:
        Baik, Ben Arous, Péché 2005: the threshold. Paul 2007, "Asymptotics of sample eigenstructure
        for a large dimensional spiked covariance model": the overlap.
    """
    spike, load = as_leaves(spike=spike, load=load)
    check_positive_values(spike=spike, load=load)
    return _eigenvector_overlap(spike, load)


@jax.jit
def _eigenvector_overlap(spike: Numbers, load: Numbers) -> Array:
    dtype, (spike, load) = _wide_positive(spike=spike, load=load)
    signal = load * spike
    overlap = (1 - 1 / (signal * spike)) / (1 + 1 / signal)
    # Not a plain zero: an invalid load stays NaN.
    return jnp.where(signal * spike <= 1, 0 * signal, overlap).astype(dtype)
