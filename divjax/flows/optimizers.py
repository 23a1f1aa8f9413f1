"""Optimizers in addition to optax: Nesterov's accelerated flow with restart."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Int

from divjax.core.checks import check_flag, check_positive, check_positive_values, check_scalar
from divjax.core.numerics import nan_unless

__all__ = ["AcceleratedState", "accelerated"]


class AcceleratedState(NamedTuple):
    """The momentum, the number of steps since its last restart, and the total number of steps."""

    momentum: optax.Updates
    since_restart: Int[Array, ""]
    count: Int[Array, ""]


def accelerated(
    step_size: optax.ScalarOrSchedule,
    strong_convexity: ArrayLike | None = None,
    restart: bool = True,
) -> optax.GradientTransformation:
    """Nesterov's accelerated flow, discretised as A-MWGraD, with adaptive restart.

    The second-order flow ẍ + α_t ẋ + g(x) = 0, with friction α_t = 3/t for convex objectives or 2√β
    for β-strongly convex ones, is stepped by the semi-implicit Euler method. With η = `step_size`,

        v ← γ_n v − √η g(x),   x ← x + √η v,

    where the factor γ_n is (n−1)/(n+2), or (1−√(βη))/(1+√(βη)). The gradient is taken at the
    particles, as in the heavy-ball method, with Nesterov's factors. In a flow g = −Σ_k w_k v_k, so
    momentum acts on the combined velocity.

    Two things differ from the published scheme. The position moves with the *new* momentum: moving
    it with the old one, as published, is explicit Euler's method on an oscillator, which adds
    energy at every step and diverges once γ_n nears one. And momentum that points uphill, Σ_i ⟨v_i,
    g_i⟩ > 0, has passed the minimum along its path: with `restart` it is set to zero there, and n
    to 1.

    Args:
        step_size: η > 0, or an optax schedule of it.
        strong_convexity: β > 0, or None for the friction 3/t.
        restart: whether momentum that points uphill is reset.

    Returns:
        An optax transformation.

    Raises:
        ValueError: if `step_size` or `strong_convexity` is a number or an array that is not
            positive. A traced one then makes the step NaN.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> optimizer = accelerated(0.1)
        >>> x = jnp.array([1.0])
        >>> state = optimizer.init(x)
        >>> for _ in range(100):
        ...     updates, state = optimizer.update(x, state)  # the gradient of ½x²
        ...     x = optax.apply_updates(x, updates)
        >>> bool(jnp.abs(x[0]) < 1e-6)
        True

    References:
        Su, Boyd, Candès 2016, eq. 3: the flow. A-MWGraD, arXiv 2601.19220: its use on particles.
        O'Donoghue, Candès 2015, section 3.2: the gradient test of restart.
    """
    check_flag(restart=restart)
    check_positive(step_size=step_size)
    check_scalar(strong_convexity=strong_convexity)
    if not callable(step_size):
        check_scalar(step_size=step_size)
        check_positive_values(step_size=step_size)
    if strong_convexity is not None:
        check_positive(strong_convexity=strong_convexity)
        check_positive_values(strong_convexity=strong_convexity)

    def valid(number: ArrayLike) -> Array:
        return nan_unless(jnp.asarray(number) > 0, number)

    def init(params: optax.Params) -> AcceleratedState:
        zero = jnp.zeros((), jnp.int32)
        return AcceleratedState(optax.tree.zeros_like(params), zero, zero)

    def update(
        updates: optax.Updates, state: AcceleratedState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, AcceleratedState]:
        del params
        # The root of a negative step is NaN.
        eta = _scheduled(step_size, state.count) if callable(step_size) else valid(step_size)
        root = jnp.sqrt(eta)
        # Σ_i ⟨v_i, g_i⟩ > 0: the momentum points uphill, hence it has passed the minimum along its
        # path.
        uphill = jnp.asarray(optax.tree.vdot(state.momentum, updates)) > 0
        kept = jnp.where(uphill, 0.0, 1.0) if restart else jnp.ones(())
        # n counts from 1, at which (n−1)/(n+2) is zero: the step after a restart is plain descent.
        since_restart = (state.since_restart * kept).astype(jnp.int32) + 1
        if strong_convexity is None:
            factor = (since_restart - 1) / (since_restart + 2)
        else:
            ratio = jnp.sqrt(valid(strong_convexity) * eta)
            factor = (1 - ratio) / (1 + ratio)
        # Semi-implicit Euler: v first, then x by the new v. A step size of a wider type must not
        # change the parameters' dtype.
        momentum = jax.tree.map(
            lambda v, g: (kept * factor * v - root * g).astype(v.dtype), state.momentum, updates
        )
        step = jax.tree.map(lambda v: (root * v).astype(v.dtype), momentum)
        return step, AcceleratedState(momentum, since_restart, state.count + 1)

    return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]


def _scheduled(schedule: Callable[[ArrayLike], ArrayLike], count: Int[Array, ""]) -> Array:
    """A schedule's step size. One that ends at zero may miss it by a rounding of its start."""
    size = 1.0 * jnp.asarray(schedule(count))
    rounding = 4 * jnp.finfo(size.dtype).eps * schedule(jnp.zeros_like(count))
    return jnp.where((size < 0) & (size >= -rounding), 0, size)
