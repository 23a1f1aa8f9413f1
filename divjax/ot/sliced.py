"""Sliced and max-sliced transport: costs on the line, along directions."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float, Key

from divjax.core.checks import check_count, check_flag, check_order, check_same_features
from divjax.core.keys import own_key
from divjax.core.numerics import (
    in_units_of,
    matmul,
    norm_and_direction,
)
from divjax.core.pytrees import pytree, select
from divjax.core.samples import Numbers, as_samples, centered_samples
from divjax.core.simplex import min_norm_weights, shares_of
from divjax.core.types import summary
from divjax.ot.quantile_coupling import (
    Line,
    compiled_for_order,
    given_weights,
    line_cost,
    rooted,
    working_arrays,
)

__all__ = [
    "MaxSlicedResult",
    "max_sliced_wasserstein",
    "projected_wasserstein",
    "sliced_wasserstein",
]


class _Samples(NamedTuple):
    """Two samples in one dtype, less an origin near y, and their weights."""

    x: Float[Array, "n d"]
    y: Float[Array, "m d"]
    a: Float[Array, " n"] | None
    b: Float[Array, " m"] | None


# A direction, its cost, the cost's slope, and the size of the next step.
_Ascent = tuple[Array, Array, Array, Array]


def _arguments(
    x: Numbers, y: Numbers, a: Numbers | None, b: Numbers | None, p: ArrayLike
) -> tuple[_Samples, jnp.dtype]:
    """The samples, checked and in at least single precision, and the dtype of the result."""
    check_order(p)
    _, x, y = centered_samples({"x": a, "y": b}, x=x, y=y)
    dtype = jnp.result_type(x, y)
    x, y, a, b = working_arrays(x, y, a, b)
    # Projections of far points lose precision; rows of weight zero may be anywhere.
    origin = jax.lax.stop_gradient(_mean(y, b))
    return _Samples(x - origin, y - origin, a, b), dtype


def _mean(z: Float[Array, "n d"], weights: Float[Array, " n"] | None) -> Float[Array, " d"]:
    if weights is None:
        return jnp.mean(z, axis=0)
    share = shares_of(weights)[:, None]
    # A row of weight zero may be NaN, and so would be its product with zero.
    return jnp.sum(jnp.where(share > 0, share * z, 0), axis=0)


@compiled_for_order()
def _costs(
    samples: _Samples, directions: Float[Array, "k d"], *, p: ArrayLike
) -> Float[Array, " k"]:
    """W_p^p along each direction."""
    x, y, a, b = samples
    # One product for all directions, at full precision: costs are of differences of projections.
    project = lambda z: jnp.matmul(directions, z.T, precision="highest")
    return jax.vmap(lambda u, v: line_cost(Line(u, v, a, b), p))(project(x), project(y))


def _own_directions(directions: Numbers, x: Float[Array, "n d"]) -> Float[Array, "k d"]:
    (directions,) = as_samples(directions=directions)
    check_same_features(directions, x, ("directions", "x"))
    return directions.astype(x.dtype)


def _unit(v: Float[Array, "... d"]) -> Float[Array, "... d"]:
    # The slope between equal samples is zero, and so is its direction.
    return norm_and_direction(v)[1]


def projected_wasserstein(
    directions: Float[Numbers, "k d"],
    x: Float[Numbers, "n d"],
    y: Float[Numbers, "m d"],
    a: Float[Numbers, " n"] | None = None,
    b: Float[Numbers, " m"] | None = None,
    *,
    p: ArrayLike = 2,
) -> Float[Array, " k"]:
    """The costs W_p^p(θᵀx, θᵀy) along given directions, one for each.

    `sliced_wasserstein` is their mean over random unit vectors, `max_sliced_wasserstein` the
    largest over all of them. Differentiable in the directions too.

    Args:
        directions: θ, one per row, of any length.
        x: samples of p.
        y: samples of q.
        a: weights of x, non-negative, with any sum, uniform by default. Rows of weight zero are
            padding.
        b: weights of y.
        p: the order, at least 1.

    Returns:
        The costs, in the unit of θᵀx to the power p.

    Raises:
        ValueError: if an argument is empty or not a matrix, the numbers of features differ,
            weights do not fit, or p is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.array([[0.0, 0.0], [1.0, 5.0]])
        >>> projected_wasserstein(jnp.eye(2), x, x + jnp.array([3.0, 0.0])).tolist()
        [9.0, 0.0]

    References:
        Bonneel, Rabin, Peyré, Pfister 2015, section 3.
    """
    samples, dtype = _arguments(x, y, a, b, p)
    directions = _own_directions(directions, samples.x)
    return _costs(samples, directions, p=p).astype(dtype)


def sliced_wasserstein(
    key: Key[Array, ""] | None,
    x: Float[Numbers, "n d"],
    y: Float[Numbers, "m d"],
    a: Float[Numbers, " n"] | None = None,
    b: Float[Numbers, " m"] | None = None,
    *,
    p: ArrayLike = 2,
    num_projections: int = 128,
    directions: Float[Numbers, "k d"] | None = None,
    direction_weights: Float[Numbers, " k"] | None = None,
    root: bool = False,
) -> Float[Array, ""]:
    """The sliced cost SW_p^p, the mean of `wasserstein_1d` over random directions.

    SW_p^p = E_θ W_p^p(θᵀx, θᵀy) with θ uniform on the sphere. The mean over drawn directions is an
    unbiased estimate of SW_p^p for the two samples, with a variance ∝ 1/num_projections. The
    same key and dtype give the same directions. `projected_wasserstein` gives the cost along each.

    Time O(L (n + m)(d + log(n + m))) and memory O(L (n + m)) for L directions.

    Args:
        key: the key for the directions, None if `directions` are given.
        x: samples of p.
        y: samples of q.
        a: weights of x, non-negative, with any sum, uniform by default. Rows of weight zero are
            padding.
        b: weights of y.
        p: the order, at least 1.
        num_projections: the number of directions drawn.
        directions: θ, one per row, of any length, in place of drawn ones.
        direction_weights: the directions' weights in the mean, non-negative, with any sum,
            uniform by default.
        root: whether to return SW_p, the root of the mean.

    Returns:
        The cost, in the samples' unit to the power p, or with `root` in their unit.

    Raises:
        ValueError: if a sample is empty or not a matrix, the numbers of features differ, weights
            do not fit, or a number is out of range.

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
    check_flag(root=root)
    samples, dtype = _arguments(x, y, a, b, p)
    if directions is None:
        key = own_key(key)
        check_count(1, num_projections=num_projections)
        # Normal vectors are uniform in direction.
        shape = (num_projections, samples.x.shape[1])
        directions = _unit(jax.random.normal(key, shape, dtype).astype(samples.x.dtype))
    elif key is not None:
        raise ValueError("key must be None if directions are given; got a key.")
    else:
        directions = _own_directions(directions, samples.x)
    costs = _costs(samples, directions, p=p)
    weights = given_weights("direction_weights", direction_weights, len(costs), costs.dtype)
    if weights is None:
        value = jnp.mean(costs)
    else:
        # A direction of weight zero may have an infinite cost. If its cost is finite, so is the
        # derivative in its weight.
        lost = (weights == 0) & ~jnp.isfinite(costs)
        shares = shares_of(weights)
        value = jnp.dot(shares, jnp.where(lost, 0, costs), precision="highest")
    return (rooted(value, p) if root else value).astype(dtype)


@pytree
class MaxSlicedResult:
    """The largest cost found by a search over directions; only the value is differentiable.

    Attributes:
        value: the cost along `direction`, W_p^p or with `root` W_p: a lower bound on the maximum.
        direction: the unit vector, with arbitrary sign.
        values: the final cost of each start. If several agree on the largest, it is more credible.
    """

    value: Float[Array, ""]
    direction: Float[Array, " d"]
    values: Float[Array, " starts"]

    def __repr__(self) -> str:
        return summary(self)


def max_sliced_wasserstein(
    key: Key[Array, ""],
    x: Float[Numbers, "n d"],
    y: Float[Numbers, "m d"],
    a: Float[Numbers, " n"] | None = None,
    b: Float[Numbers, " m"] | None = None,
    *,
    p: ArrayLike = 2,
    num_starts: int = 8,
    num_steps: int = 50,
    root: bool = False,
) -> MaxSlicedResult:
    """The max-sliced cost max_θ W_p^p(θᵀx, θᵀy) over unit vectors θ, by ascent from several starts.

    A step goes to (θ + s g)/‖θ + s g‖ with the unit gradient g. s doubles after a step that
    increases the cost. Any other step is rejected and s is halved, so the cost never decreases. The
    first start is the difference of the means, the others are random. The cost is not concave in θ,
    and only a local maximum is guaranteed: `values` shows how many starts agree.

    The value's gradient in samples and weights follows from the envelope theorem. At the maximising
    direction projections often coincide, so that several plans are optimal, and the gradient is
    that of the mixture of them for which θ is stationary. It is found from the gradients along
    directions nearby (gradient sampling), and is accurate to about a thousandth, or to the angle
    between the direction found and the maximum if that is larger.

    Args:
        key: the key for the starts.
        x: samples of p.
        y: samples of q.
        a: weights of x, non-negative, with any sum, uniform by default. Rows of weight zero are
            padding.
        b: weights of y.
        p: the order, at least 1.
        num_starts: the number of ascents, run simultaneously.
        num_steps: the number of steps of each ascent.
        root: whether `value` and `values` are W_p rather than W_p^p.

    Returns:
        A `MaxSlicedResult`, with its value in the samples' unit to the power p.

    Raises:
        ValueError: if a sample is empty or not a matrix, the numbers of features differ, weights
            do not fit, or a number is out of range.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> x = jax.random.normal(jax.random.key(0), (50, 3))
        >>> found = max_sliced_wasserstein(jax.random.key(1), x, x + jnp.array([3.0, 0.0, 0.0]))
        >>> float(found.value), jnp.abs(found.direction).round(2).tolist()
        (9.0, [1.0, 0.0, 0.0])

    References:
        Deshpande et al. 2019, definition 2. Burke, Lewis, Overton 2005: gradient sampling.
    """
    key = own_key(key)
    check_count(1, num_starts=num_starts, num_steps=num_steps)
    check_flag(root=root)
    samples, dtype = _arguments(x, y, a, b, p)
    options = {"num_starts": num_starts, "num_steps": num_steps, "root": root}
    found = _max_sliced(key, samples, p=p, dtype=dtype, **options)
    return jax.tree.map(lambda leaf: leaf.astype(dtype), found)


@compiled_for_order("dtype", "num_starts", "num_steps", "root")
def _max_sliced(
    key: Key[Array, ""],
    samples: _Samples,
    *,
    p: ArrayLike,
    dtype: DTypeLike,
    num_starts: int,
    num_steps: int,
    root: bool,
) -> MaxSlicedResult:
    """`max_sliced_wasserstein` after its checks, in the samples' precision."""
    # The search has stopped gradients: `_change` adds the derivative at the maximum.
    fixed = jax.lax.stop_gradient(samples)
    climb = jax.value_and_grad(lambda direction: _costs(fixed, direction[None], p=p)[0])

    def ascend(direction: Float[Array, " d"]) -> tuple[Array, Array]:
        def step(carry: _Ascent, _: None) -> tuple[_Ascent, None]:
            direction, value, slope, size = carry
            # The length of the slope has the cost's unit. Normalised, a step is independent of the
            # unit.
            trial = _unit(direction + size * _unit(slope))
            trial_value, trial_slope = climb(trial)
            rises = trial_value > value
            # The cost and slope of a trial are computed together, and the next step starts from
            # them if the trial is accepted: one evaluation per step.
            kept = (direction, value, slope, size / 2)
            moved = (trial, trial_value, trial_slope, size * 2)
            return select(rises, moved, kept), None

        start = (direction, *climb(direction), jnp.ones((), direction.dtype))
        (direction, value, *_), _ = jax.lax.scan(step, start, length=num_steps)
        return direction, value

    # A shift is largest along the difference of the means. Equal means have a zero difference, and
    # a random direction is used.
    gap = _mean(fixed.x, fixed.a) - _mean(fixed.y, fixed.b)
    starts = jax.random.normal(key, (num_starts, gap.size), dtype).astype(gap.dtype)
    starts = starts.at[0].set(jnp.where(jnp.any(gap != 0), gap, starts[0]))
    directions, values = jax.lax.stop_gradient(jax.vmap(ascend)(_unit(starts)))
    best = directions[jnp.argmax(values)]
    value = jnp.max(values) + _change(key, samples, best, p)
    if root:
        value, values = rooted(value, p), rooted(values, p)
    return MaxSlicedResult(value, best, values)


# The angle between a maximal direction and those at which gradients are sampled.
_NEARBY = 1e-3
# At most this many pairs of them.
_MAX_PAIRS = 16


def _change(
    key: Key[Array, ""], samples: _Samples, best: Float[Array, " d"], p: ArrayLike
) -> Float[Array, ""]:
    """Zero, with the derivative of the largest cost in samples and weights."""
    # Nearby directions in opposite pairs, each with an optimal plan of its own.
    count = min(best.size, _MAX_PAIRS)
    offsets = _unit(jax.random.normal(jax.random.fold_in(key, 1), (count, best.size), best.dtype))
    near = _unit(best + _NEARBY * jnp.concatenate([offsets, -offsets]))
    fixed = jax.lax.stop_gradient(samples)
    slopes = jax.vmap(jax.grad(lambda direction: _costs(fixed, direction[None], p=p)[0]))(near)
    # At a maximum over unit vectors some mixture of the slopes points outwards.
    tangential = slopes - jnp.sum(slopes * near, axis=1, keepdims=True) * near
    # In units of the largest slope, so that squares stay within the dtype's range.
    scaled, _ = in_units_of(jnp.max(jnp.abs(tangential)), tangential)
    mixture = min_norm_weights(matmul(scaled, scaled.T))
    costs = _costs(samples, near, p=p)
    mixture, fixed_costs = jax.lax.stop_gradient((mixture, costs))
    # An infinite cost less itself would be NaN.
    change = jnp.where(jnp.isfinite(fixed_costs), costs - fixed_costs, 0)
    return jnp.dot(mixture, change, precision="highest")
