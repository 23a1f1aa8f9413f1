"""Bandwidth rules: how far apart the particles are, as a length for a kernel.

A rule is a pytree; a kernel given one asks it anew at every step. `init(x)` makes its state, and
`rule(x, state)` returns the bandwidth and the next state, so that a rule may start from its last
answer. Bandwidths are constants to differentiation.
"""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from divjax.core.checks import check_matrix, check_positive
from divjax.core.pairwise import median_squared_distance
from divjax.core.pytrees import pytree, static

__all__ = ["BandwidthRule", "Mean", "Median", "MultiScale"]


@runtime_checkable
class BandwidthRule(Protocol):
    """A bandwidth computed from the particles."""

    def init(self, x: Float[Array, "n d"]) -> Any:
        """The state carried from one evaluation to the next."""
        ...

    def __call__(self, x: Float[Array, "n d"], state: Any) -> tuple[Float[Array, "..."], Any]:
        """The bandwidth, a scalar or a vector of scales, and the next state."""
        ...


def _from_squared(squared: Float[Array, ""], n: int) -> Float[Array, ""]:
    """σ with σ² = d² / (2 log(n+1)), and 1 where all particles coincide; NaN stays NaN."""
    coincide = squared == 0
    bandwidth = jnp.sqrt(jnp.where(coincide, 1, squared) / (2 * jnp.log(n + 1.0)))
    return jnp.where(coincide, 1, bandwidth).astype(squared.dtype)


def _mean_squared(x: Float[Array, "n d"]) -> Float[Array, ""]:
    """The mean of ‖x_i − x_j‖² over pairs i ≠ j is 2/(n−1) Σ_i ‖x_i − x̄‖²."""
    return 2 * jnp.sum((x - jnp.mean(x, axis=0)) ** 2) / max(x.shape[0] - 1, 1)


@pytree
class Mean:
    """σ² = mean_{i≠j} ‖x_i − x_j‖² / (2 log(n+1)), in O(nd) from the first two moments.

    Sensitive to outliers, unlike `Median`. All particles coincident (or a single one) gives σ = 1.

    Example:
        >>> import jax.numpy as jnp
        >>> rule, x = Mean(), jnp.array([[0.0], [1.0], [2.0]])
        >>> bandwidth, _ = rule(x, rule.init(x))
        >>> round(float(bandwidth**2 * 2 * jnp.log(4.0)), 4)
        2.0
    """

    def init(self, x: Float[Array, "n d"]) -> tuple[()]:
        """No state."""
        check_matrix(x=x)
        return ()

    def __call__(self, x: Float[Array, "n d"], state: Any) -> tuple[Float[Array, ""], Any]:
        """The bandwidth."""
        check_matrix(x=x)
        x = jax.lax.stop_gradient(x)
        return _from_squared(_mean_squared(x), x.shape[0]), state


@pytree
class Median:
    """The median heuristic, σ² = median_{i<j} ‖x_i − x_j‖² / (2 log(n+1)).

    With this σ the kernel's values at a particle sum to about one beside its own. The median is
    the lower one, found by counting passes over the pairs rather than by sorting n² numbers; each
    pass costs about a quarter of an SVGD step, and along a flow, started from the last two answers,
    one pass mostly suffices. Where half of the pairs coincide `Mean` takes over.

    Attributes:
        tolerance: the relative error allowed in the median of the squared distances; half of it in
            σ.

    Raises:
        ValueError: if `tolerance` is not positive.

    Example:
        >>> import jax.numpy as jnp
        >>> rule, x = Median(), jnp.array([[0.0], [1.0], [3.0]])
        >>> bandwidth, _ = rule(x, rule.init(x))
        >>> round(float(bandwidth**2 * 2 * jnp.log(4.0)), 2)
        4.0

    References:
        Liu, Wang 2016, section 5.
    """

    tolerance: float = static(default=2e-3)  # how a number is found, not which: no leaf

    def __post_init__(self):
        check_positive(tolerance=self.tolerance)

    def init(self, x: Float[Array, "n d"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """The logarithm of the median's first guess, and its expected change."""
        check_matrix(x=x)
        x = jax.lax.stop_gradient(x)
        squared = _mean_squared(x)
        return jnp.log(jnp.where(squared > 0, squared, 1)), jnp.zeros((), x.dtype)

    def __call__(self, x: Float[Array, "n d"], state: Any) -> tuple[Float[Array, ""], Any]:
        """The bandwidth, and the median and its last change on a logarithmic scale."""
        check_matrix(x=x)
        x = jax.lax.stop_gradient(x)
        if x.shape[0] == 1:
            return jnp.ones((), x.dtype), state
        last, change = state
        median = median_squared_distance(x, jnp.exp(last + change), self.tolerance)
        found = median > 0
        log_median = jnp.where(found, jnp.log(jnp.where(found, median, 1)), last)
        squared = jnp.where(found, median, _mean_squared(x))
        # The first change is from a guess: extrapolating from it would be no better than standing
        # still.
        small = jnp.abs(log_median - last) < 0.1
        state = (log_median, jnp.where(small, log_median - last, 0))
        return _from_squared(squared, x.shape[0]), state


@pytree
class MultiScale:
    """Several bandwidths at once: scales times another rule's. The kernel is their mean.

    Attributes:
        scales: factors.
        rule: the rule they multiply.

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
        for scale in self.scales:
            check_positive(scales=scale)

    def init(self, x: Float[Array, "n d"]) -> Any:
        """The rule's state."""
        return self.rule.init(x)

    def __call__(self, x: Float[Array, "n d"], state: Any) -> tuple[Float[Array, " s"], Any]:
        """The bandwidths, of shape (s,)."""
        bandwidth, state = self.rule(x, state)
        return jnp.stack([jnp.asarray(scale, x.dtype) for scale in self.scales]) * bandwidth, state
