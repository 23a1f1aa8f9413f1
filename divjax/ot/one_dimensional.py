"""Transport on the line in closed form, and distances made of it: sliced and max-sliced.

Every function here returns the cost W_p^p, the p-th power of the distance: the power has finite
gradients where two measures agree, its average over directions is estimated without bias, and it is
what `gaussian_wasserstein` and the solvers of transport return. Take the root where a metric is
needed.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Key

from divjax.core.checks import (
    check_count,
    check_key,
    check_matrix,
    check_order,
    check_same_features,
    check_shape,
    check_weights,
)
from divjax.core.numerics import nan_unless
from divjax.core.pytrees import select

__all__ = ["MaxSlicedResult", "max_sliced_wasserstein", "sliced_wasserstein", "wasserstein_1d"]


def _check_values(**samples: Any) -> None:
    for name, values in samples.items():
        check_shape(name, values, "n")
        if 0 in jnp.shape(values):
            raise ValueError(f"{name} must not be empty; got shape {jnp.shape(values)}.")
        if not jnp.issubdtype(jnp.result_type(values), jnp.floating):
            raise ValueError(f"{name} must be floating-point; got {jnp.result_type(values)}.")


def _given(name: str, weights: Any, size: int, dtype: Any) -> Float[Array, " n"] | None:
    if weights is None:
        return None
    check_shape(name, weights, size)
    check_weights(name, weights)
    return jnp.asarray(weights, dtype)


def _levels(weights: Float[Array, " n"] | None, size: int, dtype: Any) -> Float[Array, " n-1"]:
    """The quantile function's jumps strictly inside of (0, 1)."""
    if weights is None:
        return jnp.arange(1, size, dtype=dtype) / size
    cumulative = jnp.cumsum(weights)
    return cumulative[:-1] / cumulative[-1]


def _power(difference: Array, p: ArrayLike) -> Array:
    """|difference|^p with a zero derivative at zero."""
    if isinstance(p, (int, float)) and p == 2:
        return jnp.square(difference)
    distance = jnp.abs(difference)
    if isinstance(p, (int, float)) and p == 1:
        return distance
    moved = distance > 0
    power = jnp.where(moved, distance, 1) ** jnp.asarray(p, distance.dtype)
    return jnp.where(moved, power, 0)


def _cost(
    x: Float[Array, " n"],
    y: Float[Array, " m"],
    a: Float[Array, " n"] | None,
    b: Float[Array, " m"] | None,
    p: ArrayLike,
) -> Float[Array, ""]:
    valid = jnp.asarray(p) >= 1
    for weights in (a, b):
        valid = valid if weights is None else valid & (jnp.min(weights) >= 0)
    return nan_unless(valid, _cost_between_quantiles(x, y, a, b, p))


def _cost_between_quantiles(x: Array, y: Array, a: Any, b: Any, p: ArrayLike) -> Array:
    (n,), (m,) = x.shape, y.shape
    if a is None and b is None and n == m:
        return jnp.mean(_power(jnp.sort(x) - jnp.sort(y), p))
    x_order, y_order = jnp.argsort(x), jnp.argsort(y)
    levels = jnp.concatenate(
        [
            _levels(None if a is None else a[x_order], n, x.dtype),
            _levels(None if b is None else b[y_order], m, x.dtype),
        ]
    )
    order = jnp.argsort(levels)
    # At each level one of the two quantile functions goes on to its next value: counting which
    # ones have needs no search, and no rounding of a level leads beyond the last value.
    of_x = jnp.append(0, jnp.cumsum(order < n - 1))
    of_y = jnp.arange(n + m - 1) - of_x
    widths = jnp.diff(levels[order], prepend=jnp.zeros(1, x.dtype), append=jnp.ones(1, x.dtype))
    return jnp.dot(widths, _power(x[x_order[of_x]] - y[y_order[of_y]], p), precision="highest")


def _arguments(x: Any, y: Any, a: Any, b: Any) -> tuple[Any, Any, Any, Any]:
    """Samples of one dtype, and their weights in it."""
    dtype = jnp.result_type(x, y)
    a, b = _given("a", a, x.shape[0], dtype), _given("b", b, y.shape[0], dtype)
    return jnp.asarray(x, dtype), jnp.asarray(y, dtype), a, b


def wasserstein_1d(
    x: Float[Array, " n"],
    y: Float[Array, " m"],
    a: Float[Array, " n"] | None = None,
    b: Float[Array, " m"] | None = None,
    *,
    p: ArrayLike = 2,
) -> Float[Array, ""]:
    """The transport cost W_p^p = ∫₀¹ |F_x⁻¹(u) − F_y⁻¹(u)|^p du of two samples on the line, exact.

    The quantile functions are steps: the integral is a sum over the at most n + m − 1 intervals
    between their merged jumps. The power W_p^p is returned, not its root.

    Differentiable in everything. In the samples: almost everywhere, with a derivative of zero for a
    pair that is matched at distance zero; among duplicates the matching is one of several. In the
    weights, which are normalised: everywhere but where two cumulative weights coincide, also at
    zero weights.

    Time O((n + m) log(n + m)), memory O(n + m).

    Args:
        x: samples of p.
        y: samples of q.
        a: weights of x, non-negative, in any unit; equal ones by default.
        b: weights of y.
        p: the order, at least 1.

    Returns:
        The cost in the samples' unit to the power p.

    Raises:
        ValueError: if a sample is not a non-empty vector of floating-point numbers, weights do not
            fit, are negative or zero throughout, or p is a Python number below 1. Where they are
            only known when the program runs, the cost is nan.

    Example:
        >>> import jax.numpy as jnp
        >>> x, y = jnp.array([0.0, 1.0]), jnp.array([3.0])
        >>> float(wasserstein_1d(x, y, p=1)), float(wasserstein_1d(x, y))
        (2.5, 6.5)
        >>> float(wasserstein_1d(x, y, jnp.array([3.0, 1.0])))  # ¾ 3² + ¼ 2²
        7.75

    References:
        Peyré, Cuturi 2019, eq. 2.32 and remark 2.30.
    """
    check_order(p)
    _check_values(x=x, y=y)
    return _cost(*_arguments(x, y, a, b), p)


def _check_samples(key: Any, x: Any, y: Any, p: ArrayLike) -> None:
    check_key(key)
    check_order(p)
    check_matrix(x=x, y=y)
    check_same_features(x, y)


def _along(x: Array, y: Array, directions: Float[Array, "k d"]) -> tuple[Array, Array]:
    """Both samples along each direction, "k n" and "k m", from a common origin near them."""
    origin = jax.lax.stop_gradient(jnp.mean(y, axis=0))
    project = lambda z: jnp.matmul(directions, (z - origin).T, precision="highest")
    return project(x), project(y)


def _unit(v: Float[Array, "... d"]) -> Float[Array, "... d"]:
    norm = jnp.linalg.norm(v, axis=-1, keepdims=True)
    return v / jnp.where(norm > 0, norm, 1)


def sliced_wasserstein(
    key: Key[Array, ""],
    x: Float[Array, "n d"],
    y: Float[Array, "m d"],
    a: Float[Array, " n"] | None = None,
    b: Float[Array, " m"] | None = None,
    *,
    p: ArrayLike = 2,
    num_projections: int = 128,
) -> Float[Array, ""]:
    """The sliced cost SW_p^p, the mean of `wasserstein_1d` over random directions.

    SW_p^p = E_θ W_p^p(θᵀx, θᵀy) with θ uniform on the sphere. The mean over drawn directions is an
    unbiased estimate of that of the two samples, with a variance that falls as 1/num_projections;
    the same key gives the same directions.

    Time O(L (n + m)(d + log(n + m))) and memory O(L (n + m)) for L directions.

    Args:
        key: for the directions.
        x: samples of p.
        y: samples of q.
        a: weights of x, non-negative, in any unit; equal ones by default.
        b: weights of y.
        p: the order, at least 1.
        num_projections: how many directions.

    Returns:
        The cost, in the samples' unit to the power p: the power, not its root.

    Raises:
        ValueError: if a sample is not a non-empty matrix, the features differ in number, weights do
            not fit, or a number is out of range.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> x = jax.random.normal(jax.random.key(0), (50, 3))
        >>> shift = jnp.array([3.0, 0.0, 0.0])
        >>> cost = sliced_wasserstein(jax.random.key(1), x, x + shift, num_projections=2000)
        >>> bool(abs(cost - 3) < 0.2)  # E (θᵀ shift)² = 3²/3
        True

    References:
        Bonneel, Rabin, Peyré, Pfister 2015, definition 4.
    """
    _check_samples(key, x, y, p)
    check_count(1, num_projections=num_projections)
    x, y, a, b = _arguments(x, y, a, b)
    directions = _unit(jax.random.normal(key, (num_projections, x.shape[1]), x.dtype))
    costs = jax.vmap(lambda u, v: _cost(u, v, a, b, p))(*_along(x, y, directions))
    return jnp.mean(costs)


class MaxSlicedResult(NamedTuple):
    """The largest cost that a search over directions found.

    Attributes:
        value: the cost W_p^p along `direction`: a lower bound on the supremum.
        direction: the unit vector; its sign means nothing.
        values: the cost each start ended at. That several agree on the largest speaks for it.
    """

    value: Float[Array, ""]
    direction: Float[Array, " d"]
    values: Float[Array, " starts"]


def max_sliced_wasserstein(
    key: Key[Array, ""],
    x: Float[Array, "n d"],
    y: Float[Array, "m d"],
    a: Float[Array, " n"] | None = None,
    b: Float[Array, " m"] | None = None,
    *,
    p: ArrayLike = 2,
    num_starts: int = 8,
    num_steps: int = 50,
) -> MaxSlicedResult:
    """The max-sliced cost max_θ W_p^p(θᵀx, θᵀy) over unit vectors θ, by ascent from several starts.

    A step goes to (θ + s g)/‖θ + s g‖ with the unit gradient g; s doubles after a step that rises
    and halves, without moving, after one that would not, so no start ever falls. The first start is
    the difference of the means, the others are random. The cost is not concave in θ, and a local
    maximum is all that is certain: `values` shows how many starts agree.

    The value's gradient in samples and weights is that along the fixed direction, as the envelope
    theorem has it; the direction is a constant to differentiation.

    Args:
        key: for the starts.
        x: samples of p.
        y: samples of q.
        a: weights of x, non-negative, in any unit; equal ones by default.
        b: weights of y.
        p: the order, at least 1.
        num_starts: how many ascents, run side by side.
        num_steps: of each.

    Returns:
        A `MaxSlicedResult`; its value is in the samples' unit to the power p.

    Raises:
        ValueError: if a sample is not a non-empty matrix, the features differ in number, weights do
            not fit, or a number is out of range.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> x = jax.random.normal(jax.random.key(0), (50, 3))
        >>> found = max_sliced_wasserstein(jax.random.key(1), x, x + jnp.array([3.0, 0.0, 0.0]))
        >>> float(found.value), jnp.abs(found.direction).round(2).tolist()
        (9.0, [1.0, 0.0, 0.0])

    References:
        Deshpande et al. 2019, definition 2.
    """
    _check_samples(key, x, y, p)
    check_count(1, num_starts=num_starts, num_steps=num_steps)
    x, y, a, b = _arguments(x, y, a, b)

    def along(direction: Float[Array, " d"], x: Array, y: Array, a: Any, b: Any) -> Array:
        u, v = _along(x, y, direction[None])
        return _cost(u[0], v[0], a, b, p)

    fixed = jax.lax.stop_gradient((x, y, a, b))
    climb = jax.value_and_grad(lambda direction: along(direction, *fixed))

    def ascend(direction: Float[Array, " d"]) -> tuple[Array, Array]:
        def step(carry: Any, _: None) -> tuple[Any, None]:
            direction, value, slope, size = carry
            trial = _unit(direction + size * _unit(slope))
            trial_value, trial_slope = climb(trial)
            rises = trial_value > value
            kept = (direction, value, slope, size / 2)
            moved = (trial, trial_value, trial_slope, size * 2)
            return select(rises, moved, kept), None

        start = (direction, *climb(direction), jnp.ones((), x.dtype))
        (direction, value, *_), _ = jax.lax.scan(step, start, length=num_steps)
        return direction, value

    x_fixed, y_fixed, a_fixed, b_fixed = fixed
    share = lambda w, z: None if w is None else w / jnp.sum(w)
    mean = lambda z, w: jnp.average(z, axis=0, weights=share(w, z))
    gap = mean(x_fixed, a_fixed) - mean(y_fixed, b_fixed)
    starts = jax.random.normal(key, (num_starts, x.shape[1]), x.dtype)
    starts = starts.at[0].set(jnp.where(jnp.any(gap != 0), gap, starts[0]))
    directions, values = jax.lax.stop_gradient(jax.vmap(ascend)(_unit(starts)))
    best = directions[jnp.argmax(values)]
    return MaxSlicedResult(along(best, x, y, a, b), best, values)
