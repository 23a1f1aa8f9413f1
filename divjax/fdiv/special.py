"""Special functions of the divergences, each smooth where its textbook form cancels."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, ArrayLike

from divjax.core.numerics import at_least_single

__all__ = [
    "entropy_deficit",
    "exp_remainder",
    "expm1_over",
    "lambert_w",
    "log1p_over",
    "log_mixture",
    "power_remainder",
    "remainder_root",
]

# Terms of a power series about 0 that suffice for float64 accuracy for arguments up to 1.
_TERMS = 18
_INVERSE_FACTORIALS = [1 / math.factorial(k + 2) for k in range(_TERMS)]


def as_floats(*values: ArrayLike) -> tuple[Array, ...]:
    """The values as floating-point arrays of their common dtype, which Python numbers adopt."""
    dtype = jnp.result_type(float, *values)
    return tuple(jnp.asarray(value, dtype) for value in values)


def as_singles(*values: ArrayLike) -> tuple[Array, ...]:
    """`as_floats`, with half precision as float32, for ranks and sums over many rows.

    bfloat16 has no integers beyond 256, and float16 none beyond 65504.

    Example:
        >>> as_singles(jnp.ones(2, jnp.bfloat16))[0].dtype.name
        'float32'
    """
    values = as_floats(*values)
    dtype = at_least_single(values[0].dtype)
    return tuple(value.astype(dtype) for value in values)


def times_exp(value: Array, x: Array) -> Array:
    """`value · e^x`, which overflows (or underflows) only if the product does."""
    half = jnp.exp(x / 2)
    return value * half * half


def nan_where_nan(value: ArrayLike, *inputs: ArrayLike) -> Array:
    """The value, NaN where an input is NaN: comparisons in its branches do not propagate it."""
    for x in inputs:
        value = jnp.where(jnp.isnan(x), jnp.nan, value)
    return jnp.asarray(value)


def _along(*terms: tuple[Array | SymbolicZero, Callable[[], Array]]) -> Any:
    """Σ tangent · slope() over the tangents that are not symbolic zeros."""
    return sum(t * slope() for t, slope in terms if not isinstance(t, SymbolicZero))


def _remainder_ratio(x: Array) -> Array:
    """The ratio (e^x − 1 − x)/x², ½ at 0."""
    # The closed form cancels near 0, where the series converges. The unused one of the two gets a
    # harmless argument.
    small = jnp.abs(x) < 1
    near, far = jnp.where(small, x, 0), jnp.where(small, 1, x)
    series = jnp.zeros_like(x)
    for k in reversed(range(_TERMS)):
        series = series * near + _INVERSE_FACTORIALS[k]
    return jnp.where(small, series, (jnp.expm1(far) / far - 1) / far)


@jax.custom_jvp
def _exp_remainder(x: Array) -> Array:
    small = jnp.abs(x) < 1
    near = jnp.where(small, x, 0)
    return jnp.where(
        small,
        near * near * _remainder_ratio(near),
        jnp.where(x == jnp.inf, x, jnp.expm1(x) - x),
    )


@_exp_remainder.defjvp
def _(primals, tangents):
    (x,), (dx,) = primals, tangents
    return _exp_remainder(x), dx * jnp.expm1(x)


def exp_remainder(x: ArrayLike) -> Array:
    """e^x − 1 − x ≥ 0, to full relative precision near 0 where it is x²/2.

    Example:
        >>> float(exp_remainder(1e-3))
        5.0017e-07
    """
    return _exp_remainder(*as_floats(x))


@jax.custom_jvp
def _expm1_over(u: Array, c: Array) -> Array:
    x = c * u
    # Three ranges: x = 0, where the ratio is its limit, small x, and large x, for which only the
    # quotient may be finite.
    large = x > 1
    near, far = jnp.where(large | (x == 0), 1, x), jnp.where(large, x, 1)
    quotient = times_exp(u / far * -jnp.expm1(-far), far)
    return jnp.where(large, quotient, jnp.where(x == 0, u, u * (jnp.expm1(near) / near)))


def _expm1_over_jvp(primals, tangents):
    (u, c), (du, dc) = primals, tangents
    x = c * u

    def along_c():
        # ∫₀ᵘ s e^{cs} ds = u² (x e^x − e^x + 1)/x²: the numerator is e^x (e^{−x} − 1 + x).
        below = x < -1
        # Each formula is used on its own side alone: elsewhere it overflows or divides by zero.
        near, far = jnp.where(below, 0, x), jnp.where(below, x, -1)
        slope = (jnp.exp(far) - jnp.expm1(far) / far) / far
        return u * u * jnp.where(below, slope, times_exp(_remainder_ratio(-near), near))

    return _expm1_over(u, c), _along((du, lambda: jnp.exp(x)), (dc, along_c))


_expm1_over.defjvp(_expm1_over_jvp, symbolic_zeros=True)


def expm1_over(u: ArrayLike, c: ArrayLike) -> Array:
    """(e^{cu} − 1)/c = ∫₀ᵘ e^{cs} ds, smooth in c with the limit u at c = 0, for u = ±∞ too.

    Example:
        >>> float(expm1_over(2.0, 0.0)), float(expm1_over(jnp.inf, -0.5))
        (2.0, 2.0)
    """
    u, c = jnp.broadcast_arrays(*as_floats(u, c))
    finite = jnp.isfinite(u)
    # For infinite u the integral is −1/c if e^{cs} decays towards u, and infinite otherwise.
    converges = c * jnp.sign(u) < 0
    limit = jnp.where(converges, -1 / jnp.where(converges, c, 1), u)
    return jnp.where(finite, _expm1_over(jnp.where(finite, u, 0), c), nan_where_nan(limit, c))


@jax.custom_jvp
def _log1p_over(t: Array, c: Array) -> Array:
    x = c * t
    # For small x = ct it is t log(1 + x)/x, whose limit at c = 0 is t.
    large = jnp.abs(x) > 1
    near = jnp.where(large | (x == 0), 1, x)
    ratio = jnp.where(x == 0, t, t * (jnp.log1p(near) / near))
    return jnp.where(large, jnp.log1p(x) / jnp.where(large, c, 1), ratio)


def _log1p_over_jvp(primals, tangents):
    (t, c), (dt, dc) = primals, tangents
    u = _log1p_over(t, c)
    # From t = (e^{cu} − 1)/c: ∂u/∂c = −(∂t/∂c)/(∂t/∂u).
    along_c = lambda: -u * u * _remainder_ratio(-c * u)
    return u, _along((dt, lambda: 1 / (1 + c * t)), (dc, along_c))


_log1p_over.defjvp(_log1p_over_jvp, symbolic_zeros=True)


def log1p_over(t: ArrayLike, c: ArrayLike) -> Array:
    """log(1 + ct)/c, the inverse of `expm1_over` in its first argument, smooth at c = 0.

    Example:
        >>> float(log1p_over(3.0, 0.0)), float(log1p_over(3.0, 1.0))
        (3.0, 1.3863)
    """
    return _log1p_over(*jnp.broadcast_arrays(*as_floats(t, c)))


def _power_remainder_value(u: Array, alpha: Array) -> Array:
    """u² exp[0, u, αu], the second divided difference of the exponential."""
    v = alpha * u
    # The nodes 0, u, αu in order. Each formula is analytic across ties, so that selecting (unlike
    # minima and maxima, which average) keeps derivatives of all orders.
    larger, smaller = jnp.where(v > u, v, u), jnp.where(v > u, u, v)
    high = jnp.where(larger > 0, larger, 0)
    middle = jnp.where(larger > 0, jnp.where(smaller > 0, smaller, 0), larger)
    low = jnp.where(smaller > 0, 0, smaller)
    narrow = high - low < 1
    # Nodes close to each other: Σ_k h_k(u, αu)/(k + 2)! with complete homogeneous polynomials h_k.
    x, y = jnp.where(narrow, u, 0), jnp.where(narrow, v, 0)
    homogeneous, power, series = jnp.ones_like(u), jnp.ones_like(u), jnp.full_like(u, 0.5)
    for k in range(1, _TERMS):
        power = power * y
        homogeneous = x * homogeneous + power
        series = series + homogeneous * _INVERSE_FACTORIALS[k]
    # Nodes apart: the difference of two first divided differences over the spread, e^high factored
    # out.
    high = jnp.where(narrow, 1, high)
    middle, low = jnp.where(narrow, 0, middle), jnp.where(narrow, 0, low)
    one = jnp.ones_like(u)
    bracket = _expm1_over(one, middle - high)
    bracket = bracket - jnp.exp(middle - high) * _expm1_over(one, low - middle)
    wide = times_exp(u / (high - low) * bracket * u, high)
    return jnp.where(narrow, u * u * series, wide)


@jax.custom_jvp
def _power_remainder(u: Array, alpha: Array) -> Array:
    return _power_remainder_value(u, alpha)


def _power_remainder_jvp(primals, tangents):
    (u, alpha), (du, dalpha) = primals, tangents

    def along_u():
        # (e^{αu} − e^u)/(α − 1), with the larger exponential factored out.
        v = alpha * u
        larger, gap = jnp.where(v > u, v, u), jnp.where(v > u, u - v, v - u)
        return times_exp(u * _expm1_over(jnp.ones_like(u), gap), larger)

    def along_alpha():
        return jax.jvp(lambda a: _power_remainder_value(u, a), (alpha,), (jnp.ones_like(alpha),))[1]

    return _power_remainder(u, alpha), _along((du, along_u), (dalpha, along_alpha))


_power_remainder.defjvp(_power_remainder_jvp, symbolic_zeros=True)


def power_remainder(u: ArrayLike, alpha: ArrayLike) -> Array:
    """(r^α − 1 − α(r − 1))/(α(α − 1)) ≥ 0 at r = e^u, smooth in α through 0 and 1.

    It is u² times the divided difference exp[0, u, αu], with the values r log r − r + 1 at α = 1
    and r − 1 − log r at α = 0. Infinite u give the limits.

    Example:
        >>> float(power_remainder(1.0, 1.0)), float(power_remainder(-jnp.inf, 0.5))
        (1.0, 2.0)
    """
    u, alpha = jnp.broadcast_arrays(*as_floats(u, alpha))
    finite = jnp.isfinite(u)
    # At r = 0 the value is 1/α for α > 0. All other infinite u give infinity.
    at_zero = (u < 0) & (alpha > 0)
    limit = jnp.where(at_zero, 1 / jnp.where(at_zero, alpha, 1), jnp.abs(u))
    value = _power_remainder(jnp.where(finite, u, 0), alpha)
    return jnp.where(finite, value, nan_where_nan(limit, alpha))


@jax.custom_jvp
def _log_mixture(x: Array, weight: Array, rest: Array) -> Array:
    near = jnp.clip(x, -1, 1)
    # The smaller of `weight` and `rest` is accurate, and the larger is one minus it.
    log_weight = jnp.where(rest < 0.5, jnp.log1p(-rest), jnp.log(weight))
    log_rest = jnp.where(weight < 0.5, jnp.log1p(-weight), jnp.log(rest))
    return jnp.where(
        jnp.abs(x) < 1,
        jnp.log1p(weight * jnp.expm1(near)),
        jnp.logaddexp(log_rest, log_weight + x),
    )


def _log_mixture_jvp(primals, tangents):
    # The rest is one minus the weight and changes with it: the weight's tangent stands for both.
    (x, weight, rest), (dx, dweight, _) = primals, tangents
    # Numerator and denominator are divided by the larger of 1 and e^x. Not by |x|, whose derivative
    # at 0 JAX takes as 1, that of the other branch.
    positive = x > 0
    negative = jnp.where(positive, -x, x)
    decay, drift = jnp.exp(negative), jnp.expm1(negative)
    one, other = jnp.where(positive, 1, decay), jnp.where(positive, decay, 1)
    total = weight * one + rest * other
    # At a weight of 0 or 1, far from x = 0, the only term underflows: the ratio is then the weight.
    lost = total == 0
    safe = jnp.where(lost, jnp.finfo(x.dtype).tiny, total)
    along_x = lambda: jnp.where(lost, weight, weight * one / safe)
    along_weight = lambda: jnp.where(positive, -drift, drift) / safe
    return _log_mixture(x, weight, rest), _along((dx, along_x), (dweight, along_weight))


_log_mixture.defjvp(_log_mixture_jvp, symbolic_zeros=True)


def log_mixture(x: ArrayLike, weight: ArrayLike, rest: ArrayLike | None = None) -> Array:
    """log(1 − w + w e^x), to full relative precision near its zero x = 0.

    For w near one, `rest` is 1 − w with the digits that w has lost.

    Example:
        >>> float(log_mixture(0.0, 0.5)), float(log_mixture(-jnp.inf, 0.5))
        (0.0, -0.6931)
    """
    rest = jnp.subtract(1, weight) if rest is None else rest
    return _log_mixture(*jnp.broadcast_arrays(*as_floats(x, weight, rest)))


def entropy_deficit(squared: ArrayLike) -> Array:
    """The deficit log 2 − h((1 − x)/2) of binary entropy (nats) at x² = `squared`, smooth at 0.

    Args:
        squared: x² in [0, 1], with NaN outside.

    Example:
        >>> float(entropy_deficit(0.0)), float(entropy_deficit(1.0))
        (0.0, 0.6931)
    """
    (squared,) = as_floats(squared)
    # The series Σ x^{2k}/(2k(2k − 1)) is used where the closed form cancels and its root has no
    # derivative.
    small = (squared >= 0) & (squared < 1e-2)
    near = jnp.where(small, squared, 0)
    series = jnp.zeros_like(near)
    # Eight terms suffice: for x² below 10⁻² the next one is below the rounding of float64.
    for k in reversed(range(1, 9)):
        series = (series + 1 / (2 * k * (2 * k - 1))) * near
    inside = (squared >= 1e-2) & (squared < 1)
    x = jnp.sqrt(jnp.where(inside, squared, 0.25))
    closed = ((1 + x) * jnp.log1p(x) + (1 - x) * jnp.log1p(-x)) / 2
    # At x = 1 the closed form is 0 · −∞, and its limit is log 2.
    return jnp.where(
        small, series, jnp.where(squared == 1, math.log(2), jnp.where(inside, closed, jnp.nan))
    )


def _check_branch(branch: int) -> None:
    if branch not in (0, -1):
        raise ValueError(f"branch must be 0 or -1; got {branch!r}.")


def remainder_root(value: ArrayLike, branch: int) -> Array:
    """The root δ of e^δ − 1 − δ = value: δ ≤ 0 on branch 0, δ ≥ 0 on branch −1.

    W_k(−e^{−(1 + value)}) = −e^δ: this is Lambert's function at a positive `value`, without the
    cancellation that costs it half of its digits as `value` → 0.

    Args:
        value: v ≥ 0, with NaN below.
        branch: 0 or −1.

    Returns:
        The root δ, by Newton's iteration. Its derivative is the implicit one, 1/(e^δ − 1), infinite
        at 0.

    Raises:
        ValueError: if the branch is neither 0 nor −1.

    Example:
        >>> [round(float(remainder_root(1e-6, branch)), 7) for branch in (0, -1)]
        [-0.0014145, 0.0014139]
    """
    _check_branch(branch)
    return (_lower_root if branch == 0 else _upper_root)(*as_floats(value))


def _newton_root(value: Array, start: Array) -> Array:
    def step(_, delta):
        # At the double root δ = 0 slope and numerator vanish together.
        slope = jnp.expm1(delta)
        return delta - (_exp_remainder(delta) - value) / jnp.where(slope == 0, 1, slope)

    return jax.lax.fori_loop(0, 7, step, start)


@jax.custom_jvp
def _lower_root(value: Array) -> Array:
    finite = jnp.where(jnp.isinf(value), 1, value)
    root = _newton_root(finite, -(finite + jnp.sqrt(2 * finite)))
    return jnp.where(jnp.isposinf(value), -value, root)


@jax.custom_jvp
def _upper_root(value: Array) -> Array:
    finite = jnp.where(jnp.isinf(value), 1, value)
    root = _newton_root(finite, jnp.log1p(finite + jnp.sqrt(2 * finite)))
    return jnp.where(jnp.isposinf(value), value, root)


@_lower_root.defjvp
def _(primals, tangents):
    root = _lower_root(*primals)
    return root, tangents[0] / jnp.expm1(root)


@_upper_root.defjvp
def _(primals, tangents):
    root = _upper_root(*primals)
    return root, tangents[0] / jnp.expm1(root)


def lambert_w(z: ArrayLike, branch: int = 0) -> Array:
    """Lambert's W: the real root of w e^w = z, by Halley's iteration.

    Near the branch point −1/e, and on branch −1, the iteration runs on δ = log(−w) instead
    (`remainder_root`), for which the equation stays accurate.

    Args:
        z: at least −1/e, and below 0 on branch −1, with NaN elsewhere.
        branch: 0 for w ≥ −1, −1 for w ≤ −1.

    Returns:
        w, with the implicit derivative e^{−w}/(1 + w), infinite at the branch point.

    Raises:
        ValueError: if the branch is neither 0 nor −1.

    Example:
        >>> float(lambert_w(1.0)), float(lambert_w(-0.1, -1))
        (0.5671, -3.5772)

    References:
        Corless, Gonnet, Hare, Jeffrey, Knuth 1996, section 4 and eq. 5.9: the iteration.
    """
    _check_branch(branch)
    return (_lambert_0 if branch == 0 else _lambert_minus_1)(*as_floats(z))


def _log_gap(z: Array) -> Array:
    """The gap −1 − log(−z), zero at z = −1/e and exact around it, NaN outside of [−1/e, 0)."""
    # 1/e is split into two numbers of the dtype, so that 1 + e·z has no cancellation of rounded
    # terms. The second is added after the product, as compilers merge sums with two constants.
    head = jnp.asarray(math.exp(-1), z.dtype)
    tail = {4: -9.149756e-09, 8: -1.2428753672788363e-17}.get(z.dtype.itemsize, 0.0)
    above = (z + head) * math.e + tail * math.e
    near = (z < -0.25) & (above >= 0)
    far = (z >= -0.25) & (z < 0)
    gap = jnp.where(
        near,
        -jnp.log1p(-jnp.where(near, above, 0)),
        -1 - jnp.log(jnp.where(far, -z, 1)),
    )
    # The float nearest to −1/e may lie just outside: it is the branch point.
    return jnp.where(near | far, gap, jnp.where(z == -head, 0, jnp.nan))


@jax.custom_jvp
def _lambert_0(z: Array) -> Array:
    near = z < -0.3
    regular = jnp.where(near | jnp.isposinf(z), 1, z)

    def halley(_, w):
        # The residual w eʷ − z is divided by eʷ, which keeps it in range for the largest z.
        excess = w - regular * jnp.exp(-w)
        return w - excess / (w + 1 - (w + 2) * excess / (2 * w + 2))

    # Winitzki's approximation of W is near enough everywhere that a few steps suffice.
    log = jnp.log1p(regular)
    start = log * (1 - jnp.log1p(log) / (2 + log))
    root = jax.lax.fori_loop(0, 5, halley, start)
    # Near the branch point −1/e Halley's denominator vanishes, so the iteration solves for
    # δ = log(−w).
    at_branch = -jnp.exp(_lower_root(_log_gap(jnp.where(near, z, -0.3))))
    return jnp.where(near, at_branch, jnp.where(jnp.isposinf(z), z, root))


@jax.custom_jvp
def _lambert_minus_1(z: Array) -> Array:
    return jnp.where(z == 0, -jnp.inf, -jnp.exp(_upper_root(_log_gap(z))))


@_lambert_0.defjvp
def _(primals, tangents):
    w = _lambert_0(*primals)
    return w, tangents[0] * (jnp.exp(-w) / (1 + w))


@_lambert_minus_1.defjvp
def _(primals, tangents):
    w = _lambert_minus_1(*primals)
    return w, tangents[0] * (jnp.exp(-w) / (1 + w))
