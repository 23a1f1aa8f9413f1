"""Radial kernels k(x, y) = κ(‖x − y‖), with closed-form derivatives."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Self

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float, Key, PyTree

from divjax.core.checks import check_positive, check_positive_values, check_scalar
from divjax.core.numerics import (
    at_least_single,
    nan_entries_unless,
    nan_unless,
    quotient,
    safe_power,
    safe_sqrt,
)
from divjax.core.pairwise import squared_distances
from divjax.core.pytrees import pytree
from divjax.core.samples import Numbers, as_samples, centered_samples
from divjax.kernels.bandwidth import BandwidthRule, Median

__all__ = [
    "Energy",
    "Gaussian",
    "InverseMultiquadric",
    "Laplace",
    "WithBandwidth",
    "as_points",
    "distance_and_reciprocal",
]

_Block = Float[Array, "n m"]


def as_points(
    x: Numbers, y: Numbers | None
) -> tuple[Float[Array, "n d"], Float[Array, "m d"] | None]:
    """Both as floating-point matrices of one dtype, with NaN for infinite coordinates.

    Kernels depend only on differences: a common offset of NumPy's float64 is subtracted before
    rounding.
    """
    if y is None:
        return _nan_unless_finite(centered_samples(x=x)[1]), None
    x, y = map(_nan_unless_finite, centered_samples(x=x, y=y)[1:])
    return x, y


def _nan_unless_finite(x: Float[Array, "n d"]) -> Float[Array, "n d"]:
    """The points, with NaN for infinite coordinates.

    Between two infinite points a kernel has no limit, nor do its slopes at infinity. Distances by
    matrix products would be NaN or infinite, depending on the signs of the other points.
    """
    return nan_unless(jnp.isfinite(x), x)


@pytree
class WithBandwidth:
    """The common part of kernels with a length: a number, several, or a rule."""

    bandwidth: ArrayLike | BandwidthRule = dataclasses.field(default_factory=Median)

    positive_definite = True

    def __post_init__(self):
        check_positive(bandwidth=self.bandwidth)

    def init(self, x: Float[Numbers, "n d"]) -> PyTree[Array]:
        """The bandwidth rule's state."""
        # Only for its errors.
        as_samples(x=x)
        if self.bandwidth is None or isinstance(self.bandwidth, (str, type)):
            raise ValueError(
                "bandwidth must be a positive number or a rule such as kernels.Median(); "
                f"got {self.bandwidth!r}."
            )
        return self.bandwidth.init(x) if isinstance(self.bandwidth, BandwidthRule) else ()

    def resolve(self, x: Float[Numbers, "n d"], state: PyTree[Array]) -> tuple[Self, PyTree[Array]]:
        """The kernel with its bandwidth at x, and the rule's next state."""
        # Stored bandwidths may be JAX's placeholders, hence values are checked only here.
        if not isinstance(self.bandwidth, BandwidthRule):
            check_positive_values(bandwidth=self.bandwidth)
            return self, state
        bandwidth, state = self.bandwidth(x, state)
        return dataclasses.replace(self, bandwidth=bandwidth), state

    @property
    def log_slope(self) -> ArrayLike | None:
        """None: the slope is not a multiple of the value."""
        return None

    def radial(self, squared: _Block) -> tuple[_Block, _Block]:
        """Values and slopes, the mean over the scales."""
        return self._mean_over_scales(lambda sigma: self._radial(squared, sigma), squared.dtype)

    def log_radial(self, squared: _Block) -> _Block:
        """The logarithm of the mean over the scales: finite where k itself would underflow."""
        terms = self._over_scales(lambda sigma: self._log_radial(squared, sigma), squared.dtype)
        # By logarithms of sums: a mean of values that have underflowed would be zero.
        return functools.reduce(jnp.logaddexp, terms) - math.log(len(terms))

    def below_peak(self, squared: _Block) -> _Block:
        """The value less 1, which it is at distance zero: exact where k rounds to one."""
        drop = lambda sigma: jnp.expm1(self._log_radial(squared, sigma))
        return self._mean_over_scales(drop, squared.dtype)

    def frequencies(
        self, key: Key[Array, ""], shape: tuple[int, int], dtype: DTypeLike
    ) -> Float[Array, "k d"]:
        """Draws from the spectral distribution, for which k(x, y) = E cos(ω·(x − y)).

        Each kernel is a mixture of Gaussian ones, of random width. With several scales each
        frequency is of one of them, drawn with equal probability.
        """
        normal_key, width_key, scale_key = jax.random.split(key, 3)
        width = self._spectral_width(width_key, shape[:1], dtype)
        rates = jnp.stack(self._over_scales(lambda sigma: quotient(1.0, sigma), dtype))
        chosen = rates[jax.random.randint(scale_key, shape[:1], 0, rates.shape[0])]
        # Given its width, a frequency is N(0, (width/σ)² I), that of a Gaussian kernel.
        normal = jax.random.normal(normal_key, shape, dtype)
        return normal * (width * chosen.astype(dtype))[:, None]

    def _mean_over_scales(
        self, function: Callable[[ArrayLike], PyTree[Array]], dtype: DTypeLike
    ) -> PyTree[Array]:
        """The mean of `function(σ)` over the bandwidths σ."""
        terms = self._over_scales(function, dtype)
        if len(terms) == 1:
            return terms[0]
        return jax.tree.map(lambda *parts: sum(parts) / len(terms), *terms)

    def _over_scales(
        self, function: Callable[[ArrayLike], PyTree[Array]], dtype: DTypeLike
    ) -> list[PyTree[Array]]:
        """`function(σ)` for each of the bandwidths σ; NaN for a traced σ that is not positive.

        Also NaN if σ² overflows or ε σ² is subnormal, in at least single precision.
        """
        if isinstance(self.bandwidth, BandwidthRule):
            raise ValueError(
                "bandwidth is a rule: call `kernel.at(x)` for the kernel at its value."
            )
        # σ² must be finite, and ε σ² normal, so that squared distances down to ε σ² are too.
        limits = jnp.finfo(at_least_single(dtype))
        least, greatest = (float(limits.tiny / limits.eps) ** 0.5, float(limits.max) ** 0.5)

        def at(sigma: ArrayLike) -> PyTree[Array]:
            # The limits are out of float16's range, in which they would be zero and infinity.
            wide = jnp.asarray(sigma, limits.dtype)
            return function(nan_unless((wide >= least) & (wide <= greatest), sigma))

        if not isinstance(self.bandwidth, (list, tuple)) and jnp.ndim(self.bandwidth) == 0:
            return [at(self.bandwidth)]
        # Few scales, one after the other: all at once would take an array of scales × n × m.
        terms = [at(sigma) for sigma in jnp.ravel(jnp.asarray(self.bandwidth))]
        if not terms:
            raise ValueError("bandwidth must hold at least one number; got none.")
        return terms

    def at(self, x: Float[Numbers, "n d"]) -> Self:
        """The kernel whose bandwidth is the rule's value at x, itself if it has no rule.

        One kernel for all terms of a discrepancy:

        Example:
            >>> import jax.numpy as jnp
            >>> x, y = jnp.array([[0.0], [1.0]]), jnp.array([[5.0], [7.0]])
            >>> k = Gaussian().at(jnp.concatenate([x, y]))
            >>> mmd = k(x).mean() - 2 * k(x, y).mean() + k(y).mean()
        """
        return self.resolve(x, self.init(x))[0]

    def _radial(self, squared: _Block, sigma: ArrayLike) -> tuple[_Block, _Block]:
        raise NotImplementedError

    def _log_radial(self, squared: _Block, sigma: ArrayLike) -> _Block:
        raise NotImplementedError

    def _spectral_width(
        self, key: Key[Array, ""], shape: tuple[int, ...], dtype: DTypeLike
    ) -> Float[Array, " k"]:
        """σ times the standard deviation of a frequency, given which it is normal."""
        raise NotImplementedError

    def __call__(self, x: Float[Numbers, "n d"], y: Float[Numbers, "m d"] | None = None) -> _Block:
        """The kernel matrix; a rule is evaluated at x, which must then be the only sample."""
        x, y = as_points(x, y)
        # A rule evaluated at x and again at y would give two kernels, with incomparable values.
        if y is not None and isinstance(self.bandwidth, BandwidthRule):
            raise ValueError(
                "bandwidth is a rule, whose values at x and at y differ: fix it for all terms by "
                "kernel = kernel.at(x), and call that with x and y."
            )
        return self.at(x).radial(squared_distances(x, y))[0]


@pytree
class Gaussian(WithBandwidth):
    """The Gaussian kernel, k(x, y) = exp(−‖x − y‖² / (2σ²)).

    Attributes:
        bandwidth: σ: a number, a vector of scales (k is then the mean over them), or a rule. In
            float32 from 10⁻¹⁵ to 10¹⁹, since distances are squared, and otherwise k is NaN.

    Raises:
        ValueError: if the bandwidth is a Python number that is not positive.

    Example:
        >>> import jax.numpy as jnp
        >>> Gaussian(bandwidth=1.0)(jnp.array([[0.0], [2.0]])).round(3).tolist()
        [[1.0, 0.135], [0.135, 1.0]]
    """

    @property
    def log_slope(self) -> ArrayLike | None:
        """−1/σ² for a single σ: values and gradients then share one matrix product."""
        # With several scales the mean slope is not a multiple of the mean value.
        if isinstance(self.bandwidth, BandwidthRule) or jnp.ndim(self.bandwidth):
            return None
        sigma = nan_unless(jnp.asarray(self.bandwidth) > 0, self.bandwidth)
        return -jnp.square(quotient(1.0, sigma))

    def _radial(self, squared: _Block, sigma: ArrayLike) -> tuple[_Block, _Block]:
        # ∇_x k = −(k/σ²) (x − y).
        # The exponent avoids 1/σ², whose derivative −2/σ³ leaves the dtype's range long before it.
        inverse = quotient(1.0, sigma)
        value = jnp.exp(self._log_radial(squared, sigma))
        return value, value * -jnp.square(inverse)

    def _log_radial(self, squared: _Block, sigma: ArrayLike) -> _Block:
        inverse = quotient(1.0, sigma)
        # One factor after the other: the square of 1/σ may overflow, and 0 · ∞ is NaN.
        return -0.5 * (squared * inverse * inverse)

    def _spectral_width(
        self, key: Key[Array, ""], shape: tuple[int, ...], dtype: DTypeLike
    ) -> Float[Array, " k"]:
        # The Gaussian kernel's spectral distribution is N(0, I/σ²) itself.
        return jnp.ones(shape, dtype)

    def stein_trace(self, squared: _Block, dim: int) -> _Block:
        """Σ_i ∂²k/∂x_i∂y_i = (d/σ² − r²/σ⁴) k."""

        def trace(sigma: ArrayLike) -> _Block:
            inverse = quotient(1.0, sigma)
            # The slope is −k/σ².
            return (squared * inverse * inverse - dim) * self._radial(squared, sigma)[1]

        return self._mean_over_scales(trace, squared.dtype)


@pytree
class InverseMultiquadric(WithBandwidth):
    """The inverse multiquadric kernel, k(x, y) = (1 + ‖x − y‖²/σ²)^(−β), with heavy tails.

    Attributes:
        bandwidth: σ: a number, a vector of scales (k is then the mean over them), or a rule. In
            float32 from 10⁻¹⁵ to 10¹⁹, since distances are squared, and otherwise k is NaN.
        exponent: β > 0. For 0 < β < 1 the kernel Stein discrepancy controls convergence.

    Raises:
        ValueError: if bandwidth or exponent is a Python number that is not positive.

    Example:
        >>> import jax.numpy as jnp
        >>> InverseMultiquadric(bandwidth=1.0)(jnp.array([[0.0], [jnp.sqrt(3.0)]])).tolist()
        [[1.0, 0.5], [0.5, 1.0]]

    References:
        Gorham, Mackey 2017, section 4.
    """

    exponent: ArrayLike = 0.5

    def __post_init__(self):
        check_positive(bandwidth=self.bandwidth, exponent=self.exponent)

    def resolve(self, x: Float[Numbers, "n d"], state: PyTree[Array]) -> tuple[Self, PyTree[Array]]:
        """The kernel with its bandwidth at x, and the rule's next state."""
        check_positive_values(exponent=self.exponent)
        return super().resolve(x, state)

    def _valid_exponent(self) -> ArrayLike:
        check_scalar(exponent=self.exponent)
        return nan_unless(jnp.asarray(self.exponent) > 0, self.exponent)

    def _radial(self, squared: _Block, sigma: ArrayLike) -> tuple[_Block, _Block]:
        # ∇_x k = −(2β/σ²) (1 + u)^(−β−1) (x − y) with u = r²/σ².
        exponent = self._valid_exponent()
        inverse = quotient(1.0, sigma)
        base = 1 + squared * inverse * inverse
        value = safe_power(base, jnp.negative(exponent))
        return value, jnp.multiply(-2 * value / base * jnp.square(inverse), exponent)

    def _log_radial(self, squared: _Block, sigma: ArrayLike) -> _Block:
        inverse = quotient(1.0, sigma)
        # A negative squared distance has no logarithm, as it has no value.
        scaled = nan_entries_unless(squared >= 0, squared * inverse * inverse)
        return jnp.multiply(-jnp.log1p(scaled), self._valid_exponent())

    def _spectral_width(
        self, key: Key[Array, ""], shape: tuple[int, ...], dtype: DTypeLike
    ) -> Float[Array, " k"]:
        # (1 + u)^(−β) = E exp(−τ u) for τ with the Gamma distribution of shape β, and exp(−τ r²/σ²)
        # is the Gaussian kernel of bandwidth σ/√(2τ).
        exponent = jnp.asarray(self._valid_exponent(), dtype)
        return jnp.sqrt(2 * jax.random.gamma(key, exponent, shape, dtype))

    def stein_trace(self, squared: _Block, dim: int) -> _Block:
        """Σ_i ∂²k/∂x_i∂y_i = 2β/σ² [d − 2(β+1) u/(1+u)] (1+u)^(−β−1), with u = r²/σ²."""

        def trace(sigma: ArrayLike) -> _Block:
            # The slope is −(2β/σ²) (1 + u)^(−β−1), up to its sign the factor of the bracket.
            inverse = quotient(1.0, sigma)
            scaled = squared * inverse * inverse
            bracket = dim - 2 * jnp.add(self._valid_exponent(), 1) * scaled / (1 + scaled)
            return -bracket * self._radial(squared, sigma)[1]

        return self._mean_over_scales(trace, squared.dtype)


def distance_and_reciprocal(squared: _Block) -> tuple[_Block, _Block]:
    """The distance and its reciprocal, both zero with zero gradient at coincident points."""
    # Both branches of a `where` are differentiated: 1/0 must not arise in the one not taken.
    distance = safe_sqrt(squared)
    coincide = distance == 0
    return distance, jnp.where(coincide, 0, 1 / jnp.where(coincide, 1, distance))


@pytree
class Laplace(WithBandwidth):
    """The Laplace kernel, k(x, y) = exp(−‖x − y‖/σ).

    Not differentiable at coincident points, where the gradient is taken as zero. Points nearer than
    the root of the smallest number (10⁻¹⁹ in float32) count as coincident.

    Attributes:
        bandwidth: σ: a number, a vector of scales (k is then the mean over them), or a rule. In
            float32 from 10⁻¹⁵ to 10¹⁹, since distances are squared, and otherwise k is NaN.

    Raises:
        ValueError: if the bandwidth is a Python number that is not positive.

    Example:
        >>> import jax.numpy as jnp
        >>> Laplace(bandwidth=1.0)(jnp.array([[0.0], [2.0]])).round(3).tolist()
        [[1.0, 0.135], [0.135, 1.0]]
    """

    def _radial(self, squared: _Block, sigma: ArrayLike) -> tuple[_Block, _Block]:
        # ∇_x k = −(k/σ) (x − y)/r, taken as zero at coincident points, which have no direction.
        distance, reciprocal = distance_and_reciprocal(squared)
        value = jnp.exp(-distance / sigma)
        return value, -value * reciprocal / sigma

    def _log_radial(self, squared: _Block, sigma: ArrayLike) -> _Block:
        return -safe_sqrt(squared) / sigma

    def _spectral_width(
        self, key: Key[Array, ""], shape: tuple[int, ...], dtype: DTypeLike
    ) -> Float[Array, " k"]:
        # Frequencies have the multivariate Cauchy distribution: a normal vector over the modulus of
        # a normal number.
        return 1 / jnp.abs(jax.random.normal(key, shape, dtype))


@pytree
class Energy:
    """The energy kernel, k(x, y) = −‖x − y‖: conditionally positive definite, without a bandwidth.

    Its squared MMD is 2 E‖x − y‖ − E‖x − x′‖ − E‖y − y′‖, the squared energy distance. Not
    differentiable at coincident points, where the gradient is taken as zero. Points nearer than the
    square root of the smallest normal number (10⁻¹⁹ in float32) count as coincident.

    Example:
        >>> import jax.numpy as jnp
        >>> (-Energy()(jnp.array([[0.0], [2.0]]))).tolist()
        [[0.0, 2.0], [2.0, 0.0]]

    References:
        Sejdinovic, Sriperumbudur, Gretton, Fukumizu 2013, section 3.
    """

    positive_definite = False

    def init(self, x: Float[Numbers, "n d"]) -> tuple[()]:
        """The empty state; checks the points."""
        as_samples(x=x)
        return ()

    def resolve(self, x: Float[Numbers, "n d"], state: PyTree[Array]) -> tuple[Self, PyTree[Array]]:
        """The kernel itself."""
        return self, state

    def at(self, x: Float[Numbers, "n d"]) -> Self:
        """The kernel itself."""
        return self

    @property
    def log_slope(self) -> None:
        """None: the slope is not a multiple of the value."""
        return None

    def radial(self, squared: _Block) -> tuple[_Block, _Block]:
        """Values −r and slopes −1/r."""
        # ∇_x k = −(x − y)/r, taken as zero at coincident points, which have no direction.
        distance, reciprocal = distance_and_reciprocal(squared)
        return -distance, -reciprocal

    def __call__(self, x: Float[Numbers, "n d"], y: Float[Numbers, "m d"] | None = None) -> _Block:
        """The kernel matrix."""
        return self.radial(squared_distances(*as_points(x, y)))[0]
