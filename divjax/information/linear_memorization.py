"""How a Gaussian model fitted to samples generalises, in large dimension.

The model N(0, Σ̂) with the sample covariance of n rows in d features, as n and d grow at a fixed
load α = n/d. Its bulk, the spectrum by the Marchenko–Pastur law, memorises the samples until n ≫ d;
a direction of large variance is found from a sharp load on.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from divjax.core.arguments import as_leaves
from divjax.core.checks import check_positive_values
from divjax.core.numerics import at_least_single, nan_unless
from divjax.core.samples import Numbers, as_arrays

__all__ = ["bulk_distance", "eigenvector_overlap"]

# Nodes and weights on (0, π), exact for polynomials; the integrand is analytic there.
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(64)


def _wide_positive(**numbers: Numbers) -> tuple[np.dtype, list[Array]]:
    """The result's dtype, and the numbers in at least single precision, NaN if not positive."""
    arrays = as_arrays(**numbers)
    wide = [array.astype(at_least_single(array.dtype)) for array in arrays]
    return arrays[0].dtype, [nan_unless((z > 0) & jnp.isfinite(z), z) for z in wide]


def bulk_distance(load: Float[Numbers, "..."]) -> Float[Array, "..."]:
    """W₂²(N(0, Σ̂), N(0, I))/d of the sample covariance Σ̂ in large dimension.

    2 − 2 E √λ for eigenvalues λ of the Marchenko–Pastur law with ratio d/n: the mean eigenvalue is
    one, and for Gaussians with commuting covariances the cost is Σ (√λ − 1)². It falls from 2 at
    load 0 to d/(4n) at large loads.

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
    # The nonzero eigenvalues of XᵀX and XXᵀ are the same: for a ratio c > 1 by that of 1/c < 1.
    ratio = jnp.minimum(load, 1 / load)[..., None]
    angle = jnp.asarray((_NODES + 1) * np.pi / 2, load.dtype)
    weights = jnp.asarray(_WEIGHTS * np.pi / 2, load.dtype)
    # λ = 1 + c + 2 √c cos φ. With (1 − λ)²/(1 + √λ)² = (√λ − 1)² nothing cancels at large loads.
    root = jnp.sqrt(ratio)
    eigenvalue = jnp.square(1 - root) + 4 * root * jnp.square(jnp.cos(angle / 2))
    density = 2 / np.pi * jnp.square(jnp.sin(angle)) / eigenvalue
    excess = (ratio + 2 * root * jnp.cos(angle)) / (1 + jnp.sqrt(eigenvalue))
    squares = jnp.sum(weights * density * jnp.square(excess), axis=-1)
    # squares = 2 − 2 E √λ at ratio c ≤ 1, and E √λ is c^(−½) times that of 1/c beyond.
    few = 2 - 2 * jnp.sqrt(jnp.minimum(load, 1)) * (1 - squares / 2)
    return jnp.where(load >= 1, squares, few).astype(dtype)


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
        Baik, Ben Arous, Péché 2005; Paul 2007, theorem 4.
    """
    spike, load = as_leaves(spike=spike, load=load)
    check_positive_values(spike=spike, load=load)
    return _eigenvector_overlap(spike, load)


@jax.jit
def _eigenvector_overlap(spike: Numbers, load: Numbers) -> Array:
    dtype, (spike, load) = _wide_positive(spike=spike, load=load)
    signal = load * spike
    overlap = (1 - 1 / (signal * spike)) / (1 + 1 / signal)
    return jnp.where(signal * spike <= 1, 0 * overlap, overlap).astype(dtype)
