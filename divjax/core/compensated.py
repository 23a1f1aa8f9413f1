"""Numbers held as sums of two floats, with twice the digits of their dtype.

The first float is the number rounded to the dtype, and the second its rounding error. Compared
lexicographically, such pairs have the order of the numbers.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from divjax.core.padding import pad_rows

__all__ = ["cumulative_sums", "exact_product", "exact_sum", "ratios"]

Pair = tuple[Array, Array]


def exact_sum(a: Array, b: Array) -> Pair:
    """The rounded sum, and its rounding error (Knuth's two-sum).

    Example:
        >>> total, error = exact_sum(jnp.float32(1), jnp.float32(1e-9))
        >>> float(total), float(error) == float(jnp.float32(1e-9))
        (1.0, True)
    """
    total = a + b
    of_b = total - a
    return total, (a - (total - of_b)) + (b - of_b)


def exact_product(a: Array, b: Array) -> Pair:
    """The rounded product, and its rounding error (Dekker's, by halves of the digits)."""
    product, precision = a * b, jnp.finfo(b.dtype)

    def halves(z: Array) -> Pair:
        first = jax.lax.reduce_precision(z, precision.nexp, precision.nmant // 2)
        return first, z - first

    # Products of halves are exact. The error is a constant for differentiation.
    (a, a_rest), (b, b_rest) = halves(jax.lax.stop_gradient(a)), halves(jax.lax.stop_gradient(b))
    # In Dekker's order: each sum is exact only after the larger terms have cancelled.
    error = ((a * b - jax.lax.stop_gradient(product)) + a * b_rest + a_rest * b) + a_rest * b_rest
    return product, error


@jax.custom_jvp
def cumulative_sums(z: Float[Array, " n"]) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """The sums z₁ + … + z_k as pairs. Their derivatives are those of the sums.

    Example:
        >>> high, low = cumulative_sums(jnp.float32([1, 1e-9, 1e-9]))
        >>> high.tolist(), round(float(low[2]) * 1e9, 6)
        ([1.0, 1.0, 1.0], 2.0)
    """

    def add(first: Pair, second: Pair) -> Pair:
        total, error = exact_sum(first[0], second[0])
        return exact_sum(total, error + (first[1] + second[1]))

    # As many runs as a run has numbers: all runs are summed at once, then their ends in sequence.
    size = math.isqrt(max(z.shape[0] - 1, 0)) + 1
    runs = pad_rows(z, size * size).reshape(size, size)
    nothing = jnp.zeros_like(runs[0]), jnp.zeros_like(runs[0])

    def step(so_far: Pair, values: Array) -> tuple[Pair, Pair]:
        total = add(so_far, (values, jnp.zeros_like(values)))
        return total, total

    ends, within = jax.lax.scan(step, nothing, runs.T)
    zero = jnp.zeros((), z.dtype)
    _, before = jax.lax.scan(lambda so_far, end: (add(so_far, end), so_far), (zero, zero), ends)
    # Each run continues at the sum of all runs before it.
    high, low = add(before, within)
    return high.T.reshape(-1)[: z.shape[0]], low.T.reshape(-1)[: z.shape[0]]


@cumulative_sums.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Pair, Pair]:
    change = jnp.cumsum(tangents[0])
    return cumulative_sums(*primals), (change, jnp.zeros_like(change))


def ratios(parts: Pair, whole: Pair) -> Pair:
    """The ratios of numbers as pairs. Equal ratios of integers are equal pairs.

    The first of a pair has the derivative of the ratio, the second none.

    Example:
        >>> third = (jnp.float32(1), jnp.float32(0)), (jnp.float32(3), jnp.float32(0))
        >>> high, low = ratios(*third)
        >>> abs(float(high) + float(low) - 1 / 3) < 1e-15
        True
    """
    ratio = parts[0] / whole[0]
    first, high, low, of_whole, rest = jax.lax.stop_gradient((ratio, *parts, *whole))
    product, error = exact_product(first, of_whole)
    # The remainder of a division is a number of the dtype.
    remainder = ((high - product) - error) + (low - first * rest)
    rounded, low = exact_sum(first, remainder / of_whole)
    return ratio + (rounded - first), low
