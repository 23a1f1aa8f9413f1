"""Kernels that are densities: radial, with integral one in any dimension.

Those of `divjax.kernels` compare points, are 1 at coincident ones and bring their bandwidth with
them. These smooth a density, and have a bandwidth per feature or a matrix.
"""

import math
from typing import Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Float

from divjax.core.numerics import nan_unless, safe_log
from divjax.core.pytrees import pytree

__all__ = ["BiweightKernel", "EpanechnikovKernel", "GaussianKernel", "SmoothingKernel"]

_Block = Float[Array, "n m"]


@runtime_checkable
class SmoothingKernel(Protocol):
    """A density K(u) of points in units of the bandwidth, a function of ‖u‖²."""

    def log_profile(self, squared: _Block) -> _Block:
        """Log K at squared distances, up to a constant, −∞ out of the support."""
        ...

    def log_normalization(self, dim: int) -> float:
        """The constant for which K has integral one in this dimension."""
        ...

    def variance(self, dim: int) -> float:
        """∫ u₁² K(u) du, the variance of each coordinate."""
        ...

    def log_roughness(self, dim: int) -> float:
        """The logarithm of ∫ K(u)² du."""
        ...


@pytree
class GaussianKernel:
    """The standard normal density, K(u) = (2π)^(−d/2) exp(−‖u‖²/2).

    Example:
        >>> import jax.numpy as jnp
        >>> kernel = GaussianKernel()
        >>> value = kernel.log_profile(jnp.zeros((1, 1))) + kernel.log_normalization(1)
        >>> round(float(jnp.exp(value[0, 0])), 4)
        0.3989
    """

    def log_profile(self, squared: _Block) -> _Block:
        """−‖u‖²/2."""
        return -0.5 * squared

    def log_normalization(self, dim: int) -> float:
        """−(d/2) log 2π."""
        return -0.5 * dim * math.log(2 * math.pi)

    def variance(self, dim: int) -> float:
        """1."""
        return 1.0

    def log_roughness(self, dim: int) -> float:
        """−(d/2) log 4π, as K∗K is the normal density of variance 2 at zero."""
        return -0.5 * dim * math.log(4 * math.pi)


GAUSSIAN = GaussianKernel()


def log_ball_volume(dim: int) -> float:
    """The logarithm of the unit ball's volume, π^(d/2)/Γ(d/2 + 1).

    Example:
        >>> math.exp(log_ball_volume(3))  # 4π/3
        4.18879
    """
    return 0.5 * dim * math.log(math.pi) - math.lgamma(0.5 * dim + 1)


def _log_integral(power: int, dim: int) -> float:
    """The logarithm of ∫ (1 − ‖u‖²)^power du over the unit ball, a Beta integral in ‖u‖²."""
    # By logarithms, as Γ(d/2) overflows in some hundreds of dimensions.
    half = 0.5 * dim
    ratio = math.lgamma(half + 1) + math.lgamma(power + 1) - math.lgamma(half + power + 1)
    return log_ball_volume(dim) + ratio


class _Compact:
    """K(u) ∝ (1 − ‖u‖²)^power within the unit ball, and zero beyond it."""

    power: int

    def log_profile(self, squared: _Block) -> _Block:
        """The power times log(1 − ‖u‖²), −∞ from the unit sphere on."""
        # A distance of NaN stays NaN, and an infinite one is beyond the support.
        height = jnp.where(squared < 1, 1 - squared, 0)
        return self.power * safe_log(nan_unless(~jnp.isnan(squared), height))

    def log_normalization(self, dim: int) -> float:
        """Minus the logarithm of the integral of (1 − ‖u‖²)^power."""
        return -_log_integral(self.power, dim)

    def variance(self, dim: int) -> float:
        """1/(d + 2 power + 2): ‖u‖² has the distribution Beta(d/2, power + 1)."""
        return 1 / (dim + 2 * self.power + 2)

    def log_roughness(self, dim: int) -> float:
        """The logarithm of the integral of K²."""
        # K² has twice the power, and K's constant squared.
        return _log_integral(2 * self.power, dim) - 2 * _log_integral(self.power, dim)


@pytree
class EpanechnikovKernel(_Compact):
    """K(u) ∝ 1 − ‖u‖² for ‖u‖ < 1, of the least mean integrated squared error asymptotically.

    A density estimated with it is zero, and its logarithm −∞ with gradient zero, at points farther
    than a bandwidth from all samples.

    Example:
        >>> import jax.numpy as jnp
        >>> kernel = EpanechnikovKernel()
        >>> value = kernel.log_profile(jnp.zeros((1, 1))) + kernel.log_normalization(1)
        >>> round(float(jnp.exp(value[0, 0])), 4)
        0.75

    References:
        Epanechnikov 1969; Silverman 1986, equation 4.4: in several dimensions.
    """

    power = 1


@pytree
class BiweightKernel(_Compact):
    """K(u) ∝ (1 − ‖u‖²)² for ‖u‖ < 1: compact, and with a continuous derivative.

    Example:
        >>> import jax.numpy as jnp
        >>> kernel = BiweightKernel()
        >>> value = kernel.log_profile(jnp.zeros((1, 1))) + kernel.log_normalization(1)
        >>> round(float(jnp.exp(value[0, 0])), 4)  # 15/16
        0.9375

    References:
        Silverman 1986, equation 4.5.
    """

    power = 2
