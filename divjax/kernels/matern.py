"""The Matérn kernels of half-integer smoothness, polynomials times an exponential."""

import math

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float, Key

from divjax.core.checks import check_choice, check_positive
from divjax.core.numerics import quotient, safe_sqrt
from divjax.core.pytrees import pytree, static
from divjax.fdiv.special import exp_remainder
from divjax.kernels.radial import WithBandwidth, distance_and_reciprocal

__all__ = ["Matern"]

_Block = Float[Array, "n m"]


@pytree
class Matern(WithBandwidth):
    """The Matérn kernel of smoothness ½, 3/2 or 5/2, between the Laplace and the Gaussian kernel.

    With s = √(2ν) r/σ for r = ‖x − y‖ and the smoothness ν, k(x, y) = e^(−s) times

        1 for ν = ½ (the Laplace kernel),   1 + s for ν = 3/2,   1 + s + s²/3 for ν = 5/2.

    The functions of its space form the Sobolev space of order ν + d/2: they have ν derivatives more
    than the d/2 beyond which functions are continuous. For ν = ½ the gradient at coincident points
    is taken as zero. For ν of 3/2 and 5/2 the mixed second derivatives exist there, which Stein
    discrepancies need.

    Attributes:
        bandwidth: σ: a number, a vector of scales (k is then the mean over them), or a rule. In
            float32 from 10⁻¹⁵ to 10¹⁹, since distances are squared, and otherwise k is NaN.
        smoothness: ν, 0.5, 1.5 or 2.5, static.

    Raises:
        ValueError: if the bandwidth is a Python number that is not positive, or for another
            smoothness.

    Example:
        >>> import jax.numpy as jnp
        >>> Matern(bandwidth=1.0, smoothness=1.5)(jnp.array([[0.0], [2.0]])).round(3).tolist()
        [[1.0, 0.14], [0.14, 1.0]]

    References:
        Rasmussen, Williams 2006, eq. 4.16 and 4.17.
    """

    smoothness: float = static(default=2.5)

    def __post_init__(self):
        check_positive(bandwidth=self.bandwidth)
        check_choice((0.5, 1.5, 2.5), smoothness=self.smoothness)

    def _rate(self, sigma: ArrayLike) -> ArrayLike:
        """The rate c = √(2ν)/σ, with which s = c r."""
        return math.sqrt(2 * self.smoothness) * quotient(1.0, sigma)

    def _beyond_one(self, s: _Block) -> _Block:
        """The polynomial k e^s, less 1."""
        if self.smoothness == 0.5:
            return jnp.zeros_like(s)
        return s if self.smoothness == 1.5 else s + s * s / 3

    def _radial(self, squared: _Block, sigma: ArrayLike) -> tuple[_Block, _Block]:
        # ∇_x k = (c/r) κ′(s) (x − y), where κ′ = −e^(−s), −s e^(−s) and −s (1 + s) e^(−s)/3.
        distance, reciprocal = distance_and_reciprocal(squared)
        rate = self._rate(sigma)
        s = distance * rate
        decay = jnp.exp(-s)
        # Where the exponential is zero, the polynomial must not be infinite.
        s = jnp.minimum(s, float(jnp.finfo(s.dtype).maxexp))
        value = (1 + self._beyond_one(s)) * decay
        if self.smoothness == 0.5:
            return value, -decay * reciprocal * rate
        shape = jnp.ones_like(s) if self.smoothness == 1.5 else (1 + s) / 3
        return value, -shape * decay * jnp.square(rate)

    def _log_radial(self, squared: _Block, sigma: ArrayLike) -> _Block:
        s = safe_sqrt(squared) * self._rate(sigma)
        if self.smoothness == 0.5:
            return -s
        # For small s the logarithm of the polynomial 1 + t is nearly s. Written as t − s, which is
        # known, less t − log(1 + t), a remainder of the exponential, nothing cancels.
        near = jnp.minimum(s, 1)
        excess = jnp.zeros_like(s) if self.smoothness == 1.5 else near * near / 3
        below = excess - exp_remainder(jnp.log1p(self._beyond_one(near)))
        return jnp.where(s < 1, below, jnp.log1p(self._beyond_one(s)) - s)

    def _spectral_width(
        self, key: Key[Array, ""], shape: tuple[int, ...], dtype: DTypeLike
    ) -> Float[Array, " k"]:
        # Frequencies have Student's distribution with 2ν degrees of freedom. A χ² variable of 2ν
        # is twice one of the Gamma distribution of shape ν.
        gamma = jax.random.gamma(key, self.smoothness, shape, dtype)
        return jnp.sqrt(self.smoothness / gamma)

    def stein_trace(self, squared: _Block, dim: int) -> _Block:
        """Σ_i ∂²k/∂x_i∂y_i = c² e^(−s) (d − s), or c² e^(−s) (d (1 + s) − s²)/3 for ν = 5/2."""
        # For ν = ½ the trace has a term (d − 1) c/r, which is infinite where points coincide.
        if self.smoothness == 0.5:
            raise ValueError(
                "kernel must have mixed second derivatives where points coincide; got Matern of "
                "smoothness 0.5. Those of smoothness 1.5 and 2.5 have."
            )

        def trace(sigma: ArrayLike) -> _Block:
            rate = self._rate(sigma)
            s = safe_sqrt(squared) * rate
            factor = dim - s if self.smoothness == 1.5 else (dim * (1 + s) - s * s) / 3
            return factor * jnp.exp(-s) * jnp.square(rate)

        return self._mean_over_scales(trace, squared.dtype)
