"""Bandwidth rules: kernel length scales from distances between particles.

A rule is a pytree, which a kernel evaluates at every step. `init(x)` makes its state, and
`rule(x, state)` returns the bandwidth and the next state, so that a rule may start from its last
result. Gradients are stopped at bandwidths.
"""

import math
from collections.abc import Sequence
from typing import Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float, PyTree

from divjax.core.checks import check_positive, check_positive_values, known_number
from divjax.core.distance_quantiles import in_typical_units, median_distance
from divjax.core.numerics import at_least_single, in_units_of
from divjax.core.pairwise import coincidence_distances, common_center
from divjax.core.pytrees import pytree, static
from divjax.core.samples import Numbers, as_samples, centered_samples

__all__ = ["BandwidthRule", "Mean", "Median", "MedianDistance", "MultiScale"]


@runtime_checkable
class BandwidthRule(Protocol):
    """A bandwidth computed from the particles."""

    def init(self, x: Float[Array, "n d"]) -> PyTree[Array]:
        """The state carried from one evaluation to the next."""
        ...

    def __call__(
        self, x: Float[Array, "n d"], state: PyTree[Array]
    ) -> tuple[Float[Array, "..."], PyTree[Array]]:
        """The bandwidth, a scalar or a vector of scales, and the next state."""
        ...


def _mean_distance(x: Float[Array, "n d"]) -> Float[Array, ""]:
    """The root of the mean of ‖x_i − x_j‖² over pairs i ≠ j, zero if all rows coincide.

    The mean is 2/(n−1) Σ_i ‖x_i − x̄‖².
    """
    # Gradients are stopped at bandwidths. Squares would be out of half precision's range.
    wide = jax.lax.stop_gradient(x).astype(at_least_single(x.dtype))
    deviations = wide - common_center(wide)
    # In units of the largest deviation squares neither over- nor underflow.
    largest = jnp.max(jnp.abs(deviations))
    scaled, unit = in_units_of(largest, deviations)
    # The common centre is an entry of the rows, and the formula above is about their mean.
    scaled = scaled - jnp.mean(scaled, axis=0)
    # A single row has no pairs, and the mean 0.
    squares = 2 * jnp.sum(scaled**2, axis=0) / max(x.shape[0] - 1, 1)
    # Rows coincide if they are equal up to rounding in the dtype in which they are given, in every
    # feature.
    apart, _ = in_units_of(largest, coincidence_distances(wide, float(jnp.finfo(x.dtype).eps)))
    coincide = jnp.all(squares <= jnp.square(apart))
    return jnp.where(coincide, 0, jnp.sqrt(jnp.sum(squares)) * unit)


def _bandwidth(distance: Float[Array, ""], dtype: DTypeLike, divisor: float) -> Float[Array, ""]:
    """σ with σ² = distance² / divisor, or 1 if all particles coincide; NaN stays NaN."""
    return jnp.where(distance == 0, 1, distance / math.sqrt(divisor)).astype(dtype)


def _of_flow(num_particles: int) -> float:
    """2 log(n+1): a particle's kernel values with all others sum to about one."""
    return 2 * math.log(num_particles + 1.0)


@pytree
class Mean:
    """σ² = mean_{i≠j} ‖x_i − x_j‖² / (2 log(n+1)), in O(nd) from the first two moments.

    Its gradient is stopped. Sensitive to outliers, unlike `Median`. Particles that coincide up to
    rounding, a few units in the last place of their coordinates, give σ = 1, as does a single one.
    Weights do not enter: a flow replaces a particle of weight zero by a copy of another, and the
    copy counts.

    Example:
        >>> import jax.numpy as jnp
        >>> rule, x = Mean(), jnp.array([[0.0], [1.0], [2.0]])
        >>> bandwidth, _ = rule(x, rule.init(x))
        >>> round(float(bandwidth**2 * 2 * jnp.log(4.0)), 4)
        2.0
    """

    def init(self, x: Float[Numbers, "n d"]) -> tuple[()]:
        """The empty state; checks the particles."""
        as_samples(x=x)
        return ()

    def __call__(
        self, x: Float[Numbers, "n d"], state: tuple[()]
    ) -> tuple[Float[Array, ""], tuple[()]]:
        """The bandwidth."""
        (x,) = centered_samples(x=x)[1:]
        return _bandwidth(_mean_distance(x), x.dtype, _of_flow(x.shape[0])), state


# The logarithm of the last median, and its change.
_MedianState: TypeAlias = tuple[Float[Array, ""], Float[Array, ""]]


@pytree
class Median:
    """The median heuristic, σ² = median_{i<j} ‖x_i − x_j‖² / (2 log(n+1)).

    Its gradient is stopped. With this σ a particle's kernel values with all others sum to about
    one. The median is the lower one, found by passes that count pairs, not by sorting n² numbers.
    Each pass costs about a quarter of an SVGD step. Along a flow, where the search starts from the
    last two results, one pass usually suffices. If half of the pairs coincide up to rounding,
    `Mean` is used. A few rows far from the others, such as sentinels for missing values, move the
    median by their share of the pairs, however far they are. Weights do not enter: a flow replaces
    a particle of weight zero by a copy of another, and the copy counts.

    Attributes:
        tolerance: the relative error allowed in the median of the squared distances, half of it in
            σ.

    Raises:
        ValueError: if `tolerance` is not a positive number.

    Example:
        >>> import jax.numpy as jnp
        >>> rule, x = Median(), jnp.array([[0.0], [1.0], [3.0]])
        >>> bandwidth, _ = rule(x, rule.init(x))
        >>> round(float(bandwidth**2 * 2 * jnp.log(4.0)), 2)
        4.0

    References:
        Liu, Wang 2016, section 5.
    """

    tolerance: float = static(default=2e-3)  # a numerical setting: static

    def __post_init__(self):
        known_number("tolerance", self.tolerance, 0, above=True)

    def init(self, x: Float[Numbers, "n d"]) -> _MedianState:
        """The logarithm of the median's first guess, and its expected change."""
        (x,) = centered_samples(x=x)[1:]
        rows, unit, _ = in_typical_units(x)
        # Twice the median square of a deviation from the centre: of normal samples on the line the
        # median of the squared distances, and mostly of its order. It costs O(n log n).
        squared = 2 * jnp.median(jnp.sum(rows**2, axis=1))
        log_guess = jnp.log(jnp.where(squared > 0, squared, 1)) + 2 * jnp.log(unit)
        return log_guess, jnp.zeros_like(log_guess)

    def __call__(
        self, x: Float[Numbers, "n d"], state: _MedianState
    ) -> tuple[Float[Array, ""], _MedianState]:
        """The bandwidth, and the median and its last change on a logarithmic scale."""
        (x,) = centered_samples(x=x)[1:]
        if x.shape[0] == 1:
            return jnp.ones((), x.dtype), state
        # Extrapolated on a logarithmic scale the guess stays positive.
        last, change = state
        median = median_distance(x, jnp.exp((last + change) / 2), self.tolerance)
        # The median is zero if half of the pairs coincide. The state then keeps the last one.
        found = median > 0
        log_median = jnp.where(found, 2 * jnp.log(jnp.where(found, median, 1)), last)
        distance = jnp.where(found, median, _mean_distance(x))
        # A large change, such as the first, which is from a guess, is not extrapolated.
        small = jnp.abs(log_median - last) < 0.1
        state = (log_median, jnp.where(small, log_median - last, 0))
        return _bandwidth(distance, x.dtype, self._divisor(x.shape[0])), state

    def _divisor(self, num_rows: int) -> float:
        return _of_flow(num_rows)


@pytree
class MedianDistance(Median):
    """The median heuristic of two-sample tests, σ = median_{i<j} ‖x_i − x_j‖.

    Found and differentiated as `Median`, which divides σ² by 2 log(n+1) for the particles of a
    flow. This one is a length of the distribution, which does not shrink with the number of rows:
    the default of discrepancies and of measures of dependence. It is wide: differences at scales
    far below the distances of rows are not seen by it.

    Attributes:
        tolerance: the relative error allowed in the median of the squared distances.

    Raises:
        ValueError: if `tolerance` is not a positive number.

    Example:
        >>> import jax.numpy as jnp
        >>> rule, x = MedianDistance(), jnp.array([[0.0], [1.0], [3.0]])
        >>> round(float(rule(x, rule.init(x))[0]), 2)
        2.0

    References:
        Gretton, Borgwardt, Rasch, Schölkopf, Smola 2012, section 8.
    """

    def _divisor(self, num_rows: int) -> float:
        return 1.0


@pytree
class MultiScale:
    """Several bandwidths: each of `scales` times each bandwidth of another rule.

    The kernel is then the mean of the kernels of these bandwidths.

    Attributes:
        scales: the factors.
        rule: the rule whose bandwidth they multiply.

    Example:
        >>> import jax.numpy as jnp
        >>> rule, x = MultiScale(scales=(1.0, 2.0), rule=Mean()), jnp.array([[0.0], [1.0], [2.0]])
        >>> bandwidth, _ = rule(x, rule.init(x))
        >>> float(bandwidth[1] / bandwidth[0])
        2.0

    References:
        Li, Swersky, Zemel 2015, section 4: mixtures of kernels for the MMD.
    """

    scales: Sequence[ArrayLike] = (0.25, 0.5, 1.0, 2.0, 4.0)
    rule: BandwidthRule = Median()

    def __post_init__(self):
        check_positive(scales=self.scales)
        if isinstance(self.scales, (list, tuple)) and not self.scales:
            raise ValueError("scales must hold at least one number; got none.")
        # Other objects pass, as JAX rebuilds pytrees with placeholders in place of their leaves.
        if isinstance(self.rule, (int, float, type)):
            raise ValueError(f"rule must be a bandwidth rule such as Median(); got {self.rule!r}.")

    def init(self, x: Float[Numbers, "n d"]) -> PyTree[Array]:
        """The rule's state."""
        return self.rule.init(*centered_samples(x=x)[1:])

    def __call__(
        self, x: Float[Numbers, "n d"], state: PyTree[Array]
    ) -> tuple[Float[Array, " s"], PyTree[Array]]:
        """The bandwidths, a vector."""
        (x,) = centered_samples(x=x)[1:]
        bandwidth, state = self.rule(x, state)
        # Stored scales may be JAX's placeholders, hence values are checked only here.
        for scale in self.scales:
            check_positive_values(scales=scale)
        scales = jnp.stack([jnp.asarray(scale, x.dtype) for scale in self.scales])
        # A rule of several bandwidths has all their multiples.
        return jnp.ravel(scales[:, None] * bandwidth), state
