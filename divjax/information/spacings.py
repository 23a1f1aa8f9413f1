"""The entropy of one feature from the spacings of its sorted values."""

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from divjax.core.checks import check_count, check_full_precision
from divjax.core.numerics import nan_unless, safe_log
from divjax.core.pytrees import pytree, static
from divjax.core.types import Estimate, normal_estimate

__all__ = ["Ebrahimi", "Vasicek"]


def _window(window: int | None, x: Float[Array, "n 1"]) -> int:
    """The window m, by default the integer nearest to √n."""
    check_full_precision("x", x)
    n, d = x.shape
    if d != 1:
        raise ValueError(f"x must have one feature, whose values are sorted; got {d}.")
    m = math.floor(math.sqrt(n) + 0.5) if window is None else window
    # From 2m = n on windows in the middle would be the whole range.
    if not 2 <= 2 * m < n:
        raise ValueError(f"window must be at least 1 and below half of the {n} rows; got {m}.")
    return m


def _spacings(x: Float[Array, "n 1"], m: int) -> Float[Array, " n"]:
    """x_(i+m) − x_(i−m) of the sorted values, the ends repeated."""
    # Vasicek's convention beyond the ends, where there are no values.
    padded = jnp.pad(jnp.sort(x[:, 0]), m, mode="edge")
    return padded[2 * m :] - padded[: -2 * m]


def _estimate(
    x: Float[Array, "n 1"], inverse_densities: Float[Array, " n"], confidence_level: ArrayLike
) -> Estimate:
    """The mean of the logarithms of reciprocal densities."""
    terms = safe_log(inverse_densities)
    finite = jnp.isfinite(x).all()
    value = nan_unless(finite, jnp.mean(terms))
    # A spacing of zero makes the value −∞, which is reported, and leaves no spread.
    regular = finite & jnp.all(inverse_densities > 0)
    spread = jnp.where(regular, jax.lax.stop_gradient(terms), 0)
    std_error = nan_unless(regular, jnp.std(spread, ddof=1) / math.sqrt(len(spread)))
    return normal_estimate(value, std_error, len(spread), (), confidence_level)


@functools.partial(jax.jit, static_argnames="m")
def _vasicek(x: Float[Array, "n 1"], confidence_level: ArrayLike, *, m: int) -> Estimate:
    # 2m of n values lie in a spacing: its density is their share over its length.
    return _estimate(x, len(x) / (2 * m) * _spacings(x, m), confidence_level)


@functools.partial(jax.jit, static_argnames="m")
def _ebrahimi(x: Float[Array, "n 1"], confidence_level: ArrayLike, *, m: int) -> Estimate:
    # At the ends fewer than 2m spacings are summed.
    from_end = jnp.minimum(jnp.arange(len(x)), jnp.arange(len(x))[::-1]).astype(x.dtype)
    share = jnp.minimum(1 + from_end / m, 2)
    return _estimate(x, len(x) * _spacings(x, m) / (share * m), confidence_level)


@pytree
class Vasicek:
    """The entropy of one feature by m-spacings, (1/n) Σ_i log [n (x_(i+m) − x_(i−m))/(2m)].

    Beyond the ends the extreme values are repeated, so that the value is too small there. The bias
    is of order m/n + 1/m and negative: `Ebrahimi` corrects for the ends. The same number as
    `scipy.stats.differential_entropy(method="vasicek")`.

    Differentiable. The value is −∞ if more than 2m rows share a value. Time O(n log n).

    Attributes:
        window: m, static, by default the integer nearest to √n.

    Raises:
        ValueError: if x has several features, or the window is not between 1 and n/2.

    Example:
        >>> from divjax.information import entropy
        >>> x = jax.random.uniform(jax.random.key(0), (1000, 1))
        >>> bool(abs(entropy(x, method=Vasicek()).value) < 0.1)  # the uniform density's is 0
        True

    References:
        Vasicek 1976.
    """

    window: int | None = static(default=None)

    def __post_init__(self):
        if self.window is not None:
            check_count(1, window=self.window)

    def entropy(self, x: Float[Array, "n d"], confidence_level: ArrayLike) -> Estimate:
        """The estimate; its standard error is that of the mean of the logarithms."""
        return _vasicek(x, confidence_level, m=_window(self.window, x))


@pytree
class Ebrahimi:
    """`Vasicek` with the number of spacings that exist at the ends.

    2m is replaced by m (1 + (i − 1)/m) for the i-th value from either end, i ≤ m. The same number
    as `scipy.stats.differential_entropy(method="ebrahimi")`.

    Attributes:
        window: m, static, by default the integer nearest to √n.

    Raises:
        ValueError: as `Vasicek`.

    Example:
        >>> from divjax.information import entropy
        >>> x = jax.random.uniform(jax.random.key(0), (1000, 1))
        >>> bool(abs(entropy(x, method=Ebrahimi()).value) < 0.05)  # the uniform density's is 0
        True

    References:
        Ebrahimi, Pflughoeft, Soofi 1994.
    """

    window: int | None = static(default=None)

    def __post_init__(self):
        if self.window is not None:
            check_count(1, window=self.window)

    def entropy(self, x: Float[Array, "n d"], confidence_level: ArrayLike) -> Estimate:
        """The estimate; its standard error is that of the mean of the logarithms."""
        return _ebrahimi(x, confidence_level, m=_window(self.window, x))
