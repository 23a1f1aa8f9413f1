"""How much a channel contracts divergences: the constants of strong data-processing inequalities.

For a channel W and a divergence D_f, η_f = sup D_f(PW‖QW)/D_f(P‖Q) over distributions of the
input, so that information decays by that factor: I(U; Y) ≤ η_KL I(U; X) for U → X → Y. If f has a
positive second derivative at 1, η_f lies between that of χ² and that of the total variation, and
the coefficient of KL is that of χ².
"""

import functools

import jax
import jax.numpy as jnp
from jax.scipy.special import erf
from jaxtyping import Array, Float

from divjax.core.arguments import as_leaves
from divjax.core.checks import (
    check_count,
    check_full_precision,
    check_positive_values,
    check_shape,
    check_simplex,
    check_unit_interval,
)
from divjax.core.numerics import at_least_single, matmul, nan_unless, safe_sqrt
from divjax.core.samples import Numbers, as_arrays, as_numbers, as_samples
from divjax.core.simplex import are_distributions, check_distributions, sum_to_one
from divjax.information.spectral_functions import spectral_function

__all__ = ["binary_symmetric", "chi_squared", "dropout", "gaussian_noise", "total_variation"]


def _as_channel(channel: Numbers) -> Float[Array, "k m"]:
    """Rows that are distributions; known ones are checked."""
    (channel,) = as_samples(channel=channel)
    check_full_precision("channel", channel)
    check_distributions("channel", channel, channel.dtype)
    return channel


def total_variation(channel: Float[Numbers, "k m"]) -> Float[Array, ""]:
    """Dobrushin's coefficient of a finite channel, the largest total variation between its rows.

    max_{i,j} ½ Σ_y |W(y | i) − W(y | j)|: the contraction coefficient η_TV of the total variation,
    and an upper bound on that of every f-divergence.

    Time O(k² m), memory O(k m). Differentiable where the largest is attained by one pair.

    Args:
        channel: W, the distribution of the output for each input, by rows.

    Returns:
        The coefficient in [0, 1], 0 if the output is independent of the input. NaN if traced rows
        are not distributions.

    Raises:
        ValueError: if the channel is not a matrix, or known rows are not distributions.

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(total_variation(jnp.array([[0.9, 0.1], [0.2, 0.8]]))), 4)
        0.7

    References:
        Dobrushin 1956; Raginsky 2016, "Strong data processing inequalities and Φ-Sobolev
        inequalities for discrete channels": the bound.
    """
    return _total_variation(_as_channel(channel))


@jax.jit
def _total_variation(channel: Float[Array, "k m"]) -> Float[Array, ""]:
    # One row against all others at a time: never k × k × m.
    farthest = lambda row: jnp.max(jnp.sum(jnp.abs(channel - row), axis=1))
    # The checkpoint keeps reverse mode from storing the differences of all rows.
    largest = jnp.max(jax.lax.map(jax.checkpoint(farthest), channel)) / 2
    return nan_unless(are_distributions(channel).all(), largest)


def chi_squared(
    channel: Float[Numbers, "k m"], input_probabilities: Float[Numbers, " k"]
) -> Float[Array, ""]:
    """The contraction coefficient of χ² at one distribution of a finite channel's input.

    sup_Q χ²(QW‖PW)/χ²(Q‖P) at a fixed P, which is the squared maximal correlation of input and
    output, the second largest eigenvalue of B Bᵀ for B = diag(P)^½ W diag(PW)^(−½). The supremum
    over P is the coefficient of KL. At one P that of KL may be larger.

    Time O(k² m + k³), memory O(k (k + m)). Differentiable where the eigenvalue is simple.

    Args:
        channel: W, the distribution of the output for each input, by rows.
        input_probabilities: P, which sum to one.

    Returns:
        The coefficient in [0, 1]. NaN if traced probabilities are not distributions.

    Raises:
        ValueError: if the shapes do not fit, or known probabilities are not distributions.

    Example:
        >>> import jax.numpy as jnp
        >>> flip = jnp.array([[0.9, 0.1], [0.1, 0.9]])
        >>> round(float(chi_squared(flip, jnp.array([0.5, 0.5]))), 4)  # (1 − 0.2)²
        0.64

    References:
        Rényi 1959: maximal correlation. Choi, Ruskai, Seneta 1994, "Equivalence of certain entropy
        contraction coefficients"; Raginsky 2016, "Strong data processing inequalities and Φ-Sobolev
        inequalities for discrete channels".
    """
    channel = _as_channel(channel)
    given = as_numbers("input_probabilities", input_probabilities)
    check_shape("input_probabilities", given, channel.shape[0])
    check_simplex("input_probabilities", given)
    return _chi_squared(channel, jnp.asarray(given, channel.dtype))


@jax.jit
def _chi_squared(channel: Float[Array, "k m"], p: Float[Array, " k"]) -> Float[Array, ""]:
    output = matmul(p, channel)
    # An output that never occurs has a column of zeros.
    inverse = jnp.where(output > 0, jax.lax.rsqrt(jnp.where(output > 0, output, 1)), 0)
    # The largest singular value is one, of the roots of both distributions.
    rest = safe_sqrt(p)[:, None] * (channel - output) * inverse
    largest = spectral_function(jnp.max, matmul(rest, rest.T))
    # Traced probabilities cannot be refused: those out of range give NaN.
    valid = are_distributions(channel).all() & sum_to_one(p) & jnp.all(p >= 0)
    return nan_unless(valid, jnp.maximum(largest, 0))


def _rate(number: Numbers) -> Array:
    """A traced probability, NaN if it is not in [0, 1]."""
    (number,) = as_arrays(rate=number)
    return nan_unless((number >= 0) & (number <= 1), number)


def dropout(rate: Float[Numbers, "..."], num_features: int = 1) -> Float[Array, "..."]:
    """The contraction coefficient 1 − rate^d of dropping each of d features independently.

    The same for the total variation, KL and every f-divergence: with probability rate^d nothing of
    the input is left, and otherwise inputs may differ in what is. The erasure channel for d = 1.

    Args:
        rate: the probability that a feature is dropped, of any shape.
        num_features: d, static.

    Returns:
        The coefficient. NaN for a traced rate out of [0, 1].

    Raises:
        ValueError: if a known rate is out of [0, 1], or `num_features` is not a positive integer.

    Example:
        >>> float(dropout(0.5, 3))
        0.875

    References:
        Polyanskiy, Wu 2017, "Strong data-processing inequalities for channels and Bayesian
        networks": erasures.
    """
    check_count(1, num_features=num_features)
    (rate,) = as_leaves(rate=rate)
    check_unit_interval(rate=rate)
    return _dropout(rate, num_features=num_features)


@functools.partial(jax.jit, static_argnames="num_features")
def _dropout(rate: Numbers, *, num_features: int) -> Array:
    return 1 - _rate(rate) ** num_features


def binary_symmetric(flip: Float[Numbers, "..."]) -> Float[Array, "..."]:
    """The contraction coefficient (1 − 2δ)² of KL for bits that are flipped with probability δ.

    It is that of χ² too; the total variation's is |1 − 2δ|.

    Args:
        flip: δ, of any shape.

    Returns:
        The coefficient. NaN for a traced δ out of [0, 1].

    Raises:
        ValueError: if a known δ is out of [0, 1].

    Example:
        >>> round(float(binary_symmetric(0.1)), 4)
        0.64

    References:
        Ahlswede, Gács 1976.
    """
    (flip,) = as_leaves(flip=flip)
    check_unit_interval(flip=flip)
    return _binary_symmetric(flip)


@jax.jit
def _binary_symmetric(flip: Numbers) -> Array:
    return jnp.square(1 - 2 * _rate(flip))


def gaussian_noise(
    diameter: Float[Numbers, "..."], scale: Float[Numbers, "..."] = 1.0
) -> Float[Array, "..."]:
    """The contraction coefficient of the total variation for additive Gaussian noise.

    erf(D/(2√2 σ)) = 2Φ(D/(2σ)) − 1 for inputs in a set of diameter D, in any dimension, and noise
    N(0, σ² I): the total variation between the outputs of the two inputs farthest apart. An upper
    bound for KL and every f-divergence. Without a bound on the inputs there is no contraction.

    Args:
        diameter: D, positive, of any shape.
        scale: σ, positive, in the same unit.

    Returns:
        The coefficient. NaN for traced numbers that are not positive.

    Raises:
        ValueError: if a known number is not positive.

    Example:
        >>> round(float(gaussian_noise(2.0)), 4)  # P(|N(0, 1)| < 1)
        0.6827

    References:
        Polyanskiy, Wu 2016, "Dissipation of information in channels with input constraints".
    """
    diameter, scale = as_leaves(diameter=diameter, scale=scale)
    check_positive_values(diameter=diameter, scale=scale)
    return _gaussian_noise(diameter, scale)


@jax.jit
def _gaussian_noise(diameter: Numbers, scale: Numbers) -> Array:
    diameter, scale = as_arrays(diameter=diameter, scale=scale)
    valid = (diameter > 0) & (scale > 0) & jnp.isfinite(diameter) & jnp.isfinite(scale)
    wide = at_least_single(diameter.dtype)
    # Half precision would round the argument of erf.
    ratio = diameter.astype(wide) / (scale.astype(wide) * 8**0.5)
    return nan_unless(valid, erf(ratio).astype(diameter.dtype))
