"""Ground costs c(x, y): pytrees called on two points, with a matrix that is never n × m × d."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float

from divjax.core.checks import (
    check_order,
    check_scalar,
    check_shape,
)
from divjax.core.numerics import (
    matmul,
    nan_unless,
    norm_and_direction,
    safe_power,
    safe_sqrt,
)
from divjax.core.pytrees import pytree
from divjax.core.samples import (
    Numbers,
    Unrounded,
    as_numbers,
    without_offset,
)
from divjax.ot.protocols import DisplacementCost

__all__ = [
    "Cosine",
    "Euclidean",
    "EuclideanPower",
    "PNorm",
    "PNormPower",
    "SphereGeodesic",
    "SqEuclidean",
]

_Points = Float[Array, "n d"]
_Point = Float[Array, " d"]

# Up to this many features the sum over them is unrolled; beyond, it is a loop.
_UNROLL_UP_TO = 16
# Up to this many features, squared distances are sums of squared differences, without cancellation.
_DIFFERENCES_UP_TO = 8


def as_floating(**points: ArrayLike) -> list[Array]:
    """Points or samples as floating-point arrays of one dtype and number of features.

    Differences of integers would overflow, and one feature would be broadcast to many.
    """
    arrays = [jnp.asarray(as_numbers(name, point)) for name, point in points.items()]
    sizes = [array.shape[-1] if array.ndim else 0 for array in arrays]
    if len(set(sizes)) > 1:
        names = " and ".join(points)
        raise ValueError(
            f"{names} must have the same number of features; got {sizes[0]} and {sizes[1]}."
        )
    dtype = jnp.result_type(*arrays)
    return [array.astype(dtype) for array in arrays]


def as_differences(x: ArrayLike, y: ArrayLike) -> list[Array]:
    """`as_floating`, less a common offset that float32 would round away."""
    # Only for its checks: the offset must be subtracted before rounding.
    as_floating(x=x, y=y)
    x, y = without_offset(x=x, y=y)
    return as_floating(x=x, y=y)


def _sum_over_features(
    term: Callable[[Array], Array],
    x: Unrounded,
    y: Unrounded,
    add: Callable[[Array, Array], Array] = jnp.add,
) -> Float[Array, "n m"]:
    """Σ_k term(x_ik − y_jk), with differences recomputed in reverse mode."""
    x, y = as_differences(x=x, y=y)
    term = jax.checkpoint(term)
    if x.shape[1] <= _UNROLL_UP_TO:
        return functools.reduce(add, (term(x[:, k, None] - y[:, k]) for k in range(x.shape[1])))
    # A scan carries one n × m matrix, and its program does not grow with d. The checkpoint avoids
    # storing the differences of every feature for reverse mode.
    pair = jax.checkpoint(lambda column, other: term(column[:, None] - other))
    zero = jnp.zeros((x.shape[0], y.shape[0]), jnp.result_type(x, y))
    total, _ = jax.lax.scan(lambda sum, columns: (add(sum, pair(*columns)), None), zero, (x.T, y.T))
    return total


def _unit_of(largest: Array) -> Array:
    """A unit in which powers neither over- nor underflow, with stopped gradient."""
    usable = (largest > 0) & jnp.isfinite(largest)
    return jax.lax.stop_gradient(jnp.where(usable, largest, 1))


def _squared(x: Unrounded, y: Unrounded) -> Float[Array, "n m"]:
    """Squared distances with correct derivatives at coincident points.

    `core.pairwise.squared_distances` clips at zero, which would halve a derivative there.
    """
    x, y = as_differences(x=x, y=y)
    if x.shape[1] <= _DIFFERENCES_UP_TO:
        return _sum_over_features(jnp.square, x, y)
    # |x|² + |y|² − 2⟨x, y⟩ suffers cancellation from a common offset, which is subtracted first.
    # The distance does not depend on the centre, so its gradient is stopped.
    center = jax.lax.stop_gradient(jnp.mean(y, axis=0))
    x, y = x - center, y - center
    # The rows are doubled, not the product, which saves a pass over n × m, also in reverse mode.
    # The barrier keeps XLA from writing the derivative's product in transposed order, on a CPU ten
    # times slower.
    columns = jax.lax.optimization_barrier(y.T)
    product = matmul(2 * x, columns)
    return jnp.sum(x**2, axis=1)[:, None] + jnp.sum(y**2, axis=1) - product


def rounding_scale(
    cost: Callable[..., Array], x: _Points, y: Float[Array, "m d"], costs: Float[Array, "n m"]
) -> Float[Array, "n m"]:
    """The magnitude that sets a cost's rounding error: the cost itself, or its summands."""
    if isinstance(cost, SqEuclidean) and x.shape[1] > _DIFFERENCES_UP_TO:
        # A cost from the matrix product is a difference of these squares, and has their rounding.
        center = jnp.mean(y, axis=0)
        return jnp.sum((x - center) ** 2, axis=1)[:, None] + jnp.sum((y - center) ** 2, axis=1)
    return jnp.abs(costs)


class LibraryCost:
    """A cost of the library, defined by its matrix: a single pair is a 1 × 1 matrix."""

    def matrix(self, x: _Points, y: Float[Numbers, "m d"]) -> Float[Array, "n m"]:
        raise NotImplementedError

    def __call__(self, x: _Point, y: _Point) -> Float[Array, ""]:
        """The cost of one pair."""
        for name, point in (("x", x), ("y", y)):
            check_shape(name, point, "d")
        moves_along = isinstance(self, DisplacementCost)
        x, y = (as_differences if moves_along else as_floating)(x=x, y=y)
        return self.matrix(x[None], y[None])[0, 0]


class _TranslationInvariant(LibraryCost):
    """c(x, y) = h(x − y)."""

    @property
    def quadratic(self) -> bool:
        """Whether h is a quadratic form, as far as can be decided at trace time."""
        return False

    def h(self, z: _Point) -> Float[Array, ""]:
        """The cost of a displacement."""
        return self(z, jnp.zeros_like(z))


@pytree
class SqEuclidean(_TranslationInvariant):
    """The squared Euclidean distance, c(x, y) = ‖x − y‖², without a factor ½.

    h(z) = ‖z‖² and ∇h*(w) = w/2.

    Example:
        >>> import jax.numpy as jnp
        >>> float(SqEuclidean()(jnp.array([0.0, 0.0]), jnp.array([3.0, 4.0])))
        25.0
    """

    @property
    def quadratic(self) -> bool:
        """Whether h is a quadratic form: always for this cost."""
        return True

    def matrix(self, x: _Points, y: Float[Numbers, "m d"]) -> Float[Array, "n m"]:
        """With more than 8 features rounded relative to ‖x − ȳ‖², and possibly negative."""
        return _squared(x, y)

    def grad_conjugate(self, w: Float[Numbers, "... d"]) -> Float[Array, "... d"]:
        """∇h*(w) = w/2."""
        return w / 2


@pytree
class Euclidean(_TranslationInvariant):
    """The Euclidean distance, c(x, y) = ‖x − y‖, with zero derivative at coincident points.

    Points closer than the root of the smallest number (10⁻¹⁹ in float32) count as coincident.

    Example:
        >>> import jax.numpy as jnp
        >>> float(Euclidean()(jnp.array([0.0, 0.0]), jnp.array([3.0, 4.0])))
        5.0
    """

    def matrix(self, x: _Points, y: Float[Numbers, "m d"]) -> Float[Array, "n m"]:
        """From sums of squared differences, which are accurate for small distances."""
        return safe_sqrt(_sum_over_features(jnp.square, x, y))


def _is_order(p: ArrayLike, *, above_one: bool = False) -> Array:
    """Whether an exponent, possibly traced, is finite and at least one, or above it."""
    p = jnp.asarray(p)
    return jnp.isfinite(p) & ((p > 1) if above_one else (p >= 1))


@pytree
class _Power(_TranslationInvariant):
    """A cost with an exponent p > 1, by default 1.5."""

    p: ArrayLike = 1.5

    def __post_init__(self):
        check_order(self.p, above_one=True)

    @property
    def quadratic(self) -> bool:
        """Whether p is 2 and not traced."""
        check_scalar(p=self.p)
        return not isinstance(self.p, Tracer) and bool(np.asarray(self.p) == 2)

    @property
    def _exponent(self) -> Array:
        """p, NaN if it is traced and out of range."""
        check_scalar(p=self.p)
        return nan_unless(_is_order(self.p, above_one=True), self.p)


@pytree
class EuclideanPower(_Power):
    """A power of the Euclidean distance, c(x, y) = ‖x − y‖^p / p for p > 1.

    `EuclideanPower(2)` is half of `SqEuclidean()`.

    ∇h*(w) = ‖w‖^{q−2} w with 1/p + 1/q = 1.

    Attributes:
        p: the exponent.

    Raises:
        ValueError: if p is a Python number out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> float(EuclideanPower(3.0)(jnp.array([0.0, 0.0]), jnp.array([3.0, 4.0]))).__round__(3)
        41.667

    References:
        Gangbo, McCann 1996, theorem 1.2: maps for strictly convex h.
    """

    def matrix(self, x: _Points, y: Float[Numbers, "m d"]) -> Float[Array, "n m"]:
        """From sums of squared differences."""
        p = self._exponent
        return safe_power(_sum_over_features(jnp.square, x, y), p / 2) / p

    def grad_conjugate(self, w: Float[Numbers, "... d"]) -> Float[Array, "... d"]:
        """∇h*(w) = ‖w‖^{q−2} w."""
        norm, direction = norm_and_direction(w)
        # ‖w‖^{q−1} times the direction, with q − 1 = 1/(p − 1) > 0: zero at zero.
        return direction * safe_power(norm, 1 / (self._exponent - 1))


@pytree
class PNorm(_TranslationInvariant):
    """A p-norm, c(x, y) = (Σ_k |x_k − y_k|^p)^{1/p} for p ≥ 1.

    Attributes:
        p: the exponent.

    Raises:
        ValueError: if p is a Python number out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> float(PNorm(1.0)(jnp.array([0.0, 0.0]), jnp.array([3.0, 4.0])))
        7.0
    """

    p: ArrayLike = 2.0

    def __post_init__(self):
        check_order(self.p)

    def matrix(self, x: _Points, y: Float[Numbers, "m d"]) -> Float[Array, "n m"]:
        """From sums over features, in units of a pair's largest difference."""
        check_scalar(p=self.p)
        p = nan_unless(_is_order(self.p), self.p)
        # The unit cancels in the result, so its gradient may be stopped.
        unit = _unit_of(_sum_over_features(jnp.abs, x, y, jnp.maximum))
        powers = _sum_over_features(lambda z: safe_power(jnp.abs(z) / unit, p), x, y)
        return unit * safe_power(powers, 1 / p)


@pytree
class PNormPower(_Power):
    """The p-th power of a p-norm, c(x, y) = Σ_k |x_k − y_k|^p / p for p > 1.

    ∇h*(w)_k = sign(w_k) |w_k|^{q−1} with 1/p + 1/q = 1.

    Attributes:
        p: the exponent.

    Raises:
        ValueError: if p is a Python number out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> float(PNormPower(3.0)(jnp.array([0.0, 0.0]), jnp.array([1.0, 2.0])))
        3.0
    """

    def matrix(self, x: _Points, y: Float[Numbers, "m d"]) -> Float[Array, "n m"]:
        """From sums over features."""
        p = self._exponent
        return _sum_over_features(lambda z: safe_power(jnp.abs(z), p), x, y) / p

    def grad_conjugate(self, w: Float[Numbers, "... d"]) -> Float[Array, "... d"]:
        """∇h*(w)_k = sign(w_k) |w_k|^{1/(p−1)}."""
        return jnp.sign(w) * safe_power(jnp.abs(w), 1 / (self._exponent - 1))


def _directions(x: _Points) -> _Points:
    """Rows normalised to length one, except rows of zeros."""
    return norm_and_direction(x)[1]


@pytree
class Cosine(LibraryCost):
    """One minus the cosine of the angle, c(x, y) = 1 − ⟨x, y⟩ / (‖x‖ ‖y‖), 1 for a zero vector.

    Example:
        >>> import jax.numpy as jnp
        >>> float(Cosine()(jnp.array([0.0, 2.0]), jnp.array([3.0, 0.0])))
        1.0
    """

    def matrix(self, x: _Points, y: Float[Numbers, "m d"]) -> Float[Array, "n m"]:
        """From one matrix product."""
        x, y = as_floating(x=x, y=y)
        return 1 - matmul(_directions(x), _directions(y).T)


@pytree
class SphereGeodesic(LibraryCost):
    """The geodesic distance on the unit sphere, c(x, y) = arccos⟨x/‖x‖, y/‖y‖⟩, in radians.

    Computed as 2 atan(‖x − y‖ / ‖x + y‖) of unit vectors, which is accurate for small angles in
    single precision. The derivative at coincident or antipodal points is zero. Directions nearer
    than 16 units of rounding are coincident: 2·10⁻⁶ radians in single precision.

    Example:
        >>> import jax.numpy as jnp
        >>> float(SphereGeodesic()(jnp.array([0.0, 2.0]), jnp.array([3.0, 0.0]))).__round__(3)
        1.571
    """

    def matrix(self, x: _Points, y: Float[Numbers, "m d"]) -> Float[Array, "n m"]:
        """From sums over features."""
        x, y = map(_directions, as_floating(x=x, y=y))
        # Unit vectors at an angle θ are 2 sin(θ/2) apart, and x from −y 2 cos(θ/2).
        apart, opposite = (_sum_over_features(jnp.square, x, z) for z in (y, -y))
        return 2 * jnp.arctan2(safe_sqrt(_unrounded(apart)), safe_sqrt(_unrounded(opposite)))


def _unrounded(squares: Float[Array, "n m"]) -> Float[Array, "n m"]:
    """Squared distances of unit vectors, 0 where they are rounding.

    Equal directions are rounded to different vectors, whose difference has a direction that says
    nothing: that of the derivative of their distance.
    """
    return jnp.where(squares <= (16 * jnp.finfo(squares.dtype).eps) ** 2, 0, squares)
