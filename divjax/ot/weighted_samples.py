"""Weighted samples for learned maps: checks, padding, splits and batches."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, Key

from divjax.core.checks import check_full_precision, check_shape, check_weights
from divjax.core.numerics import nan_unless
from divjax.core.pytrees import pytree
from divjax.core.samples import Center, Numbers, as_numbers, as_weights, centered_samples
from divjax.core.training import hold_out, row_batch, training_samples
from divjax.ot.scales import weighted_quantile

__all__ = [
    "Origins",
    "WeightedSamples",
    "batch_of_rows",
    "split",
    "squares_are_unresolved",
    "uniform_weights",
    "weighted_samples",
]


class WeightedSamples(NamedTuple):
    """Rows of both distributions, and their weights with sum one, None if uniform."""

    x: Float[Array, "n d"]
    y: Float[Array, "m d"]
    a: Float[Array, " n"] | None = None
    b: Float[Array, " m"] | None = None


def uniform_weights(rows: Float[Array, "n d"]) -> Float[Array, " n"]:
    """1/n for each row."""
    return jnp.full(rows.shape[0], 1 / rows.shape[0], rows.dtype)


@pytree
class Origins:
    """One origin per space, to float64's precision, that samples are taken relative to."""

    source: Center
    target: Center

    def relative(
        self, x: Numbers, y: Numbers, a: Numbers | None = None, b: Numbers | None = None
    ) -> WeightedSamples:
        """Further samples relative to the origins, with their weights."""
        x = jax.lax.stop_gradient(self.source.subtract(x))
        y = jax.lax.stop_gradient(self.target.subtract(y))
        a, b = shares("a", a, x), shares("b", b, y)
        return WeightedSamples(finite_rows(x, a), finite_rows(y, b), a, b)


def weighted_samples(
    x: Numbers,
    y: Numbers,
    a: Numbers | None = None,
    b: Numbers | None = None,
    *,
    apart: bool = False,
    least: int = 2,
) -> tuple[WeightedSamples, Origins]:
    """Two samples of `least` rows each or more, in one dtype, relative to origins, and these.

    Rows of weight zero are padding: the heaviest row replaces them. Gradients are stopped.

    Args:
        x: samples.
        y: samples.
        a: weights of x, with any sum, uniform by default.
        b: weights of y.
        apart: whether each sample has an origin of its own, its median, for results that depend on
            the samples' shift in a known way. Otherwise both have the same origin, which is zero
            unless float64 from NumPy would be rounded.
        least: the fewest rows of a sample.

    Raises:
        ValueError: if samples or weights are invalid.
    """
    for name, rows in (("x", x), ("y", y)):
        # Before half precision is promoted to the other sample's.
        if hasattr(rows, "dtype") and jnp.issubdtype(rows.dtype, jnp.floating):
            check_full_precision(name, rows)
    if apart:
        (source, x), (target, y) = centered_samples({"x": a}, x=x), centered_samples({"y": b}, y=y)
    else:
        source, x, y = centered_samples({"x": a, "y": b}, x=x, y=y)
        target = source
    x, y = training_samples(x, y, least)
    a, b = shares("a", a, x), shares("b", b, y)
    samples = WeightedSamples(finite_rows(x, a), finite_rows(y, b), a, b)
    if not apart:
        return samples, Origins(source, target)
    # The centre only covers float64's precision: most of the shift may remain.
    x, source = _about_the_median(samples.x, a, source)
    y, target = _about_the_median(samples.y, b, target)
    return WeightedSamples(x, y, a, b), Origins(source, target)


@jax.jit
def _about_the_median(
    rows: Float[Array, "n d"], weights: Float[Array, " n"] | None, center: Center
) -> tuple[Array, Center]:
    """The rows less their median, and the centre that includes it."""
    weights = uniform_weights(rows) if weights is None else weights
    # Rounded to the centre's resolution, so that subtraction and addition are exact inverses.
    median = jax.vmap(lambda feature: weighted_quantile(feature, weights, 0.5), 1)(rows)
    moved = center.moved(median)
    return rows - (moved.high - center.high), Center(moved.high, center.low)


def shares(
    name: str, weights: Numbers | None, rows: Float[Array, "n d"]
) -> Float[Array, " n"] | None:
    """Weights, checked and normalised, nan if they are traced and out of range."""
    if weights is None:
        return None
    given = as_numbers(name, weights)
    if not isinstance(given, Tracer):
        check_shape(name, given, rows.shape[0])
        check_weights(name, given)
        # In units of the largest: the sum may be out of the range of the samples' dtype.
        given = np.asarray(given, np.float64)
        given = given / given.max()
        # A split requires a row with weight on either side.
        if np.count_nonzero(given) < 2:
            raise ValueError(f"{name} must be positive for at least 2 rows; got 1.")
    masses = jax.lax.stop_gradient(as_weights(name, given, rows.shape[0], rows.dtype))
    # Traced weights have passed no check: a negative one makes all of them NaN.
    return nan_unless(jnp.min(masses) >= 0, masses) / jnp.sum(masses)


def squares_are_unresolved(*samples: Float[Array, "_ d"]) -> Bool[Array, ""]:
    """Whether a sample is not constant, but its spread is so small that squares underflow."""
    dtype = jnp.finfo(samples[0].dtype)
    spreads = jnp.stack([jnp.max(jnp.ptp(rows, axis=0)) for rows in samples])
    # Squares below tiny/eps have last digits that are subnormal.
    return jnp.any((spreads > 0) & (spreads < float(dtype.tiny / dtype.eps) ** 0.5))


@jax.jit
def finite_rows(rows: Float[Array, "_ d"], weights: Float[Array, " n"] | None) -> Array:
    """The rows, with those of weight zero replaced by the heaviest; all NaN if one is not finite.

    Batches and blocks might never draw a row that is not finite.
    """
    if weights is not None:
        # The heaviest row always has weight.
        rows = jnp.where((weights == 0)[:, None], rows[jnp.argmax(weights)], rows)
    return nan_unless(jnp.isfinite(rows).all(), rows)


@jax.jit
def split(key: Key[Array, ""], samples: WeightedSamples) -> tuple[WeightedSamples, WeightedSamples]:
    """The training rows, in random order, and the held-out rows, with renormalised weights."""
    # The samples are unpaired: each is split by a key of its own.
    x_key, y_key = jax.random.split(key)
    of_x = hold_out(x_key, samples.x.shape[0], samples.a)
    of_y = hold_out(y_key, samples.y.shape[0], samples.b)

    def part(i: Int[Array, " k"], j: Int[Array, " l"]) -> WeightedSamples:
        a = None if samples.a is None else normalised(samples.a[i])
        b = None if samples.b is None else normalised(samples.b[j])
        return WeightedSamples(samples.x[i], samples.y[j], a, b)

    return part(of_x[0], of_y[0]), part(of_x[1], of_y[1])


def normalised(weights: Float[Array, " n"] | None) -> Float[Array, " n"] | None:
    """Weights with sum one."""
    return None if weights is None else weights / jnp.sum(weights)


def batch_of_rows(
    key: Key[Array, ""], num_rows: int, size: int, weights: Float[Array, " n"] | None
) -> Int[Array, " size"]:
    """Rows in random order, by stratified sampling in proportion to their weights.

    With equal weights the rows are distinct. A row heavier than a stratum may be repeated.
    """
    if weights is None:
        return row_batch(key, num_rows, size)
    start_key, within_key, order_key = jax.random.split(key, 3)
    # One position in each of `size` strata of equal mass, with a common random offset: each is
    # equally likely, and means over a batch vary less than with independent draws.
    within = jax.random.uniform(within_key, (size,), weights.dtype)
    positions = (jnp.arange(size, dtype=within.dtype) + within) / size + jax.random.uniform(
        start_key, (), within.dtype
    )
    cumulative = jnp.cumsum(weights)
    # Positions increase: the permutation makes every part of a batch a random part of the sample.
    # Rounding may lead beyond the last row.
    rows = jnp.searchsorted(cumulative / cumulative[-1], positions % 1, side="right")
    return jax.random.permutation(order_key, jnp.minimum(rows, num_rows - 1))


def mean_over_rows(values: Float[Array, "n ..."], weights: Float[Array, " n"] | None) -> Array:
    """The weighted mean over the first axis."""
    if weights is None:
        return jnp.mean(values, axis=0)
    return jnp.tensordot(weights, values, 1)
