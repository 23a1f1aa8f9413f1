"""Jensen gaps of a log-partition function A by quadrature, and the rounding errors of its values.

Each formula for a divergence comes with an error in units of epsilon, and the more accurate of two
is chosen.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from divjax.core.numerics import nan_entries_unless
from divjax.fdiv.named_families import LogPartition, Natural

__all__ = ["ROUNDINGS", "RULES", "Line", "gap_by_curvature", "more_accurate", "slope_gap"]

# A Gauss–Legendre rule along the line, and a coarser one for its error.
RULES = [np.polynomial.legendre.leggauss(count) for count in (16, 8)]
# The number of directions that differ from the line's in the signs of their coordinates.
_NUM_SIGNS = 16
# Rounding units per term of a sum, and the largest share of a value that they may reach.
ROUNDINGS = 4
_LARGEST_ERROR = 0.01

_WithError: TypeAlias = tuple[Array, Array]


class Line(NamedTuple):
    """A along a line through the parameters of p, φ(t) = A(η_p + tδ)."""

    log_partition: LogPartition
    start: Natural
    direction: Natural

    def point(self, t: ArrayLike) -> Natural:
        """The parameters η_p + tδ."""
        return self.start + t * self.direction

    def mean_slope(self, end: Array, rule: tuple[np.ndarray, np.ndarray]) -> Float[Array, ""]:
        """The average of φ' from 0 to an end of the line, by a Gauss–Legendre rule."""
        roots, weights = rule
        shares = jnp.asarray((roots + 1) / 2, self.start.dtype)

        def slope(share: Array) -> Array:
            return jax.jvp(self.log_partition, (self.point(share * end),), (self.direction,))[1]

        return jnp.asarray(weights / 2, self.start.dtype) @ jax.vmap(slope)(shares)

    def curvature(self, t: Array, signs: Natural) -> Float[Array, ""]:
        """φ''(t), or the second derivative of A in the direction with other signs."""
        direction = signs * self.direction

        def slope(eta: Natural) -> Array:
            return jax.jvp(self.log_partition, (eta,), (direction,))[1]

        return jax.jvp(slope, (self.point(t),), (direction,))[1]

    def integral(self, *parts: tuple[Array, Array, Callable, Callable]) -> _WithError:
        """Σ ∫₀¹ weight(u) φ''(t(u)) du over the parts, and its error in units of epsilon.

        Together the parts cover an interval of t that ends at 1. If ∫ φ'' over it is not the
        difference of φ' at its ends, the error is infinite: second derivatives underflow before
        first ones, since JAX's derivatives of a quotient contain the divisor to the power −2.

        Args:
            *parts: tuples of a point t at which the rounding is probed, the length of the part's
                interval of t, the map from u to t, and the weight as a function of u.
        """
        dtype = self.start.dtype
        nodes, of_rule, shares = [], [], []
        for rule, (roots, weights) in enumerate(RULES):
            u = jnp.asarray((roots + 1) / 2, dtype)
            mean = jnp.asarray(weights / 2, dtype)
            for _, length, place, weight in parts:
                nodes.append(place(u))
                shares.append(mean * jnp.stack([weight(u), jnp.broadcast_to(length, u.shape)]))
                of_rule += [rule] * len(roots)
        # Terms δ_i A_ij δ_j that cancel do not cancel with other signs: their mean is Σ δ_i² A_ii.
        signs = _signs(self.start)
        probed = jnp.stack([jnp.zeros((), dtype), jnp.ones((), dtype), *(p[0] for p in parts)])
        probes = jnp.tile(signs, (len(probed), 1))
        # All in one call, as the curvature takes long to compile.
        curvatures = jax.vmap(self.curvature)(
            jnp.concatenate([*nodes, jnp.repeat(probed, len(signs))]),
            jnp.concatenate([jnp.ones_like(signs, shape=(len(of_rule), signs.shape[1])), probes]),
        )
        count = len(of_rule)
        terms, all_of_it = jnp.concatenate(shares, axis=1) * curvatures[:count]
        # The error of the quadrature is the difference of the two rules.
        is_fine = np.array(of_rule) == 0
        fine, coarse = jnp.sum(terms[is_fine]), jnp.sum(terms[~is_fine])
        size = jnp.abs(curvatures[count:]).reshape(len(probed), len(signs)).mean(axis=1).max()
        epsilon = ROUNDINGS * jnp.finfo(dtype).eps
        error = size + jnp.abs(fine - coarse) / epsilon
        # The integral of φ'' must be the change of φ'. Otherwise the nodes have missed a bend of A.
        rise = jnp.sum(all_of_it[is_fine])
        length = sum(length for _, length, _, _ in parts)
        change, rounding = self._change_of_slope(1 - length, 1)
        allowed = _LARGEST_ERROR * jnp.abs(change) + epsilon * (error + ROUNDINGS * rounding)
        return fine, jnp.where(jnp.abs(rise - change) <= allowed, error, jnp.inf)

    def _change_of_slope(self, start: ArrayLike, end: ArrayLike) -> _WithError:
        """φ'(end) − φ'(start), and its error in units of epsilon."""
        places = jnp.stack([jnp.asarray(t, self.start.dtype) for t in (start, end)])
        gradients = jax.vmap(lambda t: jax.grad(self.log_partition)(self.point(t)))(places)
        before, after = gradients * self.direction
        return jnp.sum(after - before), jnp.sum(jnp.abs(before) + jnp.abs(after))

    def roundings(self, *places: ArrayLike) -> Float[Array, " places"]:
        """The errors of A at points of the line, computed together: each copy of A is compiled."""
        dtype = self.start.dtype
        return jax.vmap(self._rounding)(jnp.stack([jnp.asarray(t, dtype) for t in places]))

    def _rounding(self, t: Float[Array, ""]) -> Float[Array, ""]:
        """The error of A at a point of the line, in units of epsilon.

        The sum of its own rounding, that of its argument, and its noise at arguments a few
        roundings away, which exposes terms that cancel within A.
        """
        # An error of rounding has no useful derivative.
        eta = jax.lax.stop_gradient(self.point(t))
        value, slope = jax.value_and_grad(self.log_partition)(eta)
        epsilon = jnp.finfo(eta.dtype).eps
        signs = _signs(eta)
        steps = jnp.arange(1, _NUM_SIGNS + 1, dtype=eta.dtype)[:, None] / 2
        # At parameters a few roundings away A differs from its tangent by noise alone.
        near = eta * (1 + steps * signs * epsilon)
        noise = jax.vmap(self.log_partition)(near) - value - (near - eta) @ slope
        scatter = jnp.max(jnp.abs(noise)) / epsilon
        return jnp.abs(value) + jnp.dot(jnp.abs(eta), jnp.abs(slope)) + scatter


def _signs(eta: Natural) -> Float[Array, "signs d"]:
    signs = np.random.default_rng(0).choice([-1, 1], (_NUM_SIGNS, eta.shape[0]))
    return jnp.asarray(signs, eta.dtype)


def slope_gap(line: Line, eta_q: Natural, step: Array) -> Float[Array, ""]:
    """A(η_q) − A(η_p) − ∫₀¹ φ'(t·step) dt, Rényi's divergence at order 1 − step.

    This is KL at step 0, and +∞ if the end of the line is outside of the family.
    """
    rise = line.log_partition(eta_q) - line.log_partition(line.start)
    end = line.log_partition(line.point(step))
    return jnp.where(end == jnp.inf, jnp.inf, rise - line.mean_slope(step, RULES[0]))


def gap_by_curvature(line: Line, order: ArrayLike) -> _WithError:
    """Rényi's divergence as integrals of φ'' with weights that are not negative.

    With s = 1 − α: α/s ∫₀ˢ t φ''(t) dt + ∫ₛ¹ (1 − t) φ''(t) dt for α ≤ 1, KL at s = 0, and
    ∫₀¹ (1 − t) φ''(t) dt + 1/s ∫ₛ⁰ (s − t) φ''(t) dt for α > 1.
    """
    order = jnp.asarray(order, line.start.dtype)
    s = 1 - order
    share = jnp.where(s >= 0, order, 1)
    return line.integral(
        (s, jnp.abs(s), lambda u: s * u, lambda u: jnp.where(s >= 0, order * s * u, -s * (1 - u))),
        (s, share, lambda u: 1 - share * u, lambda u: share**2 * u),
    )


def more_accurate(one: _WithError, other: _WithError) -> Float[Array, ""]:
    """The value whose error is smaller, NaN if this leaves fewer than two digits.

    Errors are in units of epsilon: a value near zero may be off by a few. A value below zero gives
    NaN, as A is then not convex.
    """
    (value_one, error_one), (value_other, error_other) = one, other
    first = (error_one <= error_other) | ~jnp.isfinite(value_other + error_other)
    value = jnp.where(first, value_one, value_other)
    error = jax.lax.stop_gradient(jnp.where(first, error_one, error_other))
    epsilon = ROUNDINGS * jnp.finfo(value.dtype).eps
    # The absolute term is for values near zero, which have no relative accuracy.
    known = epsilon * error <= _LARGEST_ERROR * jnp.abs(value) + 10 * epsilon
    # Without a NaN in derivatives: a caller may know the value to be infinite.
    return nan_entries_unless(known & (value >= -10 * epsilon), value)
