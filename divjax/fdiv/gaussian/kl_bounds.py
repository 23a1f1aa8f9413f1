"""Bounds on KL between Gaussians from KL in the other direction, and along a triangle.

Both go through the roots w of w − 1 − log w = 2ε, given by Lambert's W.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from divjax.core.arguments import as_leaves
from divjax.core.checks import check_nonnegative
from divjax.fdiv.special import as_floats, exp_remainder, remainder_root

__all__ = ["kl_triangle_bound", "reverse_kl_infimum", "reverse_kl_supremum"]


def reverse_kl_supremum(epsilon: ArrayLike) -> Array:
    """The largest KL(N₁‖N₂) of Gaussians with KL(N₂‖N₁) ≤ ε, in any dimension.

    ½ (1/w − 1 + log w) with w = −W₀(−e^{−(1+2ε)}), that is ε + (4/3) ε^{3/2} + O(ε²). Computed from
    log w, which keeps full relative precision as ε → 0.

    Args:
        epsilon: ε ≥ 0 in nats, of any shape.

    Returns:
        The supremum in nats, which is attained, or NaN for an array entry below 0. Its derivative
        is 1/w.

    Raises:
        ValueError: if epsilon is a negative Python number.

    Example:
        >>> float(reverse_kl_supremum(0.1)), float(reverse_kl_supremum(1.0))
        (0.16033, 7.5557)

    References:
        Zhang, Liu, Chen, Wang, Li 2023 (the constant 2 of their expansion is 4/3).
    """
    check_nonnegative(epsilon=epsilon)
    return _reversed_below(*as_leaves(epsilon=epsilon))


def reverse_kl_infimum(minimum: ArrayLike) -> Array:
    """The smallest KL(N₁‖N₂) of Gaussians with KL(N₂‖N₁) ≥ M, in any dimension.

    ½ (1/w − 1 + log w) with w = −W₋₁(−e^{−(1+2M)}), that is M − (4/3) M^{3/2} + O(M²).

    Args:
        minimum: M ≥ 0 in nats, of any shape.

    Returns:
        The infimum in nats, which is attained, or NaN for an array entry below 0. Its derivative is
        1/w.

    Raises:
        ValueError: if the minimum is a negative Python number.

    Example:
        >>> float(reverse_kl_infimum(0.1)), float(reverse_kl_infimum(1.0))
        (0.06825, 0.36360)

    References:
        Zhang, Liu, Chen, Wang, Li 2023.
    """
    check_nonnegative(minimum=minimum)
    return _reversed_above(*as_leaves(minimum=minimum))


@jax.jit
def _reversed_below(epsilon: ArrayLike) -> Array:
    return _lower_reversal(*as_floats(epsilon))


@jax.jit
def _reversed_above(minimum: ArrayLike) -> Array:
    return _upper_reversal(*as_floats(minimum))


@jax.custom_jvp
def _lower_reversal(epsilon: Array) -> Array:
    return exp_remainder(-remainder_root(2 * epsilon, 0)) / 2


@jax.custom_jvp
def _upper_reversal(epsilon: Array) -> Array:
    return exp_remainder(-remainder_root(2 * epsilon, -1)) / 2


# With δ = log w the chain rule's −(e^{−δ} − 1)/(e^δ − 1) is e^{−δ}, also at 0.
@_lower_reversal.defjvp
def _(primals, tangents):
    slope = jnp.exp(-remainder_root(2 * primals[0], 0))
    return _lower_reversal(*primals), tangents[0] * slope


@_upper_reversal.defjvp
def _(primals, tangents):
    slope = jnp.exp(-remainder_root(2 * primals[0], -1))
    return _upper_reversal(*primals), tangents[0] * slope


def kl_triangle_bound(first: ArrayLike, second: ArrayLike) -> Array:
    """A bound on KL(N₁‖N₃) of Gaussians with KL(N₁‖N₂) ≤ ε₁ and KL(N₂‖N₃) ≤ ε₂.

    ε₁ + ε₂ + ½ [(w₁(ε₁) − 1)(w₁(ε₂) − 1) + w₁(ε₂) (√(2ε₁) + √(2ε₂/w₀(ε₂)))²] with the roots
    w₀(ε) ≤ 1 ≤ w₁(ε) of w − 1 − log w = 2ε. The bound holds in any dimension and is not tight: at
    ε₁ = ε₂ = 0.1 it is 1.54, and the largest known KL(N₁‖N₃) is 0.50.

    Args:
        first: ε₁ ≥ 0 in nats, of any shape.
        second: ε₂ ≥ 0 in nats, of any shape.

    Returns:
        The bound in nats, or NaN for an array entry below 0. Its derivatives at 0 are infinite or
        NaN.

    Raises:
        ValueError: if an argument is a negative Python number.

    Example:
        >>> float(kl_triangle_bound(0.1, 0.1)), float(kl_triangle_bound(0.0, 0.0))
        (1.539, 0.0)

    References:
        Zhang, Liu, Chen, Wang, Li 2023.
    """
    check_nonnegative(first=first, second=second)
    return _kl_triangle_bound(*as_leaves(first=first, second=second))


@jax.jit
def _kl_triangle_bound(first: ArrayLike, second: ArrayLike) -> Array:
    first, second = as_floats(first, second)
    upper_1, upper_2 = remainder_root(2 * first, -1), remainder_root(2 * second, -1)
    # The roots are given by their logarithms, log w₁ and log w₀.
    inverse_w0 = jnp.exp(-remainder_root(2 * second, 0))
    means = jnp.sqrt(2 * first) + jnp.sqrt(2 * second * inverse_w0)
    product = jnp.expm1(upper_1) * jnp.expm1(upper_2)
    return first + second + (product + jnp.exp(upper_2) * means**2) / 2
