"""K fields at the particles: their inner products in L²(q), and their weighted sum."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from divjax.core.checks import check_shape
from divjax.core.numerics import in_units_of
from divjax.core.samples import Numbers, Unrounded, as_arrays, as_numbers
from divjax.core.simplex import with_finite_padding, within_range
from divjax.flows.mass import checked_masses

__all__ = [
    "MeanProducts",
    "check_objective_weights",
    "checked_fields",
    "combine",
    "gram",
    "unit_gram",
    "unit_gram_and_mean",
]


def checked_fields(velocities: Numbers) -> Unrounded:
    """K fields at some particles, by `as_numbers`; raise `ValueError` if they are invalid."""
    velocities = as_numbers("velocities", velocities)
    check_shape("velocities", velocities, "k", "n", "d")
    if 0 in velocities.shape:
        raise ValueError(f"velocities must not be empty; got shape {velocities.shape}.")
    return velocities


def gram(velocities: Float[Numbers, "k n d"], weights: Float[Numbers, " n"]) -> Float[Array, "k k"]:
    """The fields' inner products in L²(q): Q_kj = Σ_i a_i ⟨v_k(x_i), v_j(x_i)⟩.

    Args:
        velocities: the K fields at the n particles.
        weights: a, the particles' weights, summing to one.

    Returns:
        Q. The squared norm of Σ_k w_k v_k is wᵀQw.

    Raises:
        ValueError: if the shapes do not fit, or concrete weights are negative, not finite, or do
            not sum to one. Invalid traced weights give NaN.

    Example:
        >>> import jax.numpy as jnp
        >>> gram(jnp.array([[[1.0], [2.0]], [[0.0], [4.0]]]), jnp.full(2, 0.5)).tolist()
        [[2.5, 4.0], [4.0, 8.0]]
    """
    (velocities,) = as_arrays(velocities=checked_fields(velocities))
    weights = checked_masses(weights, velocities.shape[1], velocities.dtype)
    return _products(velocities, weights)


def unit_gram(velocities: Numbers, weights: Numbers) -> Float[Array, "k k"]:
    """`gram` of the fields divided by the power of two at their size, whose squares stay in range.

    For functions that are invariant to a common factor of the fields. Gradients are stopped at the
    size.
    """
    return _products(*_in_unit(velocities, weights))


class MeanProducts(NamedTuple):
    """Inner products of K fields, and those with their mean, to rounding of the mean itself.

    Sums of inner products lose a mean that is much shorter than the fields.

    Attributes:
        own: Q_kj = ⟨v_k, v_j⟩.
        to_mean: ⟨v_k, v̄⟩.
        mean: ‖v̄‖².
    """

    own: Float[Array, "k k"]
    to_mean: Float[Array, " k"]
    mean: Float[Array, ""]


def unit_gram_and_mean(velocities: Numbers, weights: Numbers) -> MeanProducts:
    """As `unit_gram`, with the fields' uniform mean among the fields."""
    velocities, weights = _in_unit(velocities, weights)
    mean = jnp.mean(velocities, axis=0, keepdims=True)
    products = _products(jnp.concatenate([velocities, mean]), weights)
    return MeanProducts(products[:-1, :-1], products[:-1, -1], products[-1, -1])


def _in_unit(
    velocities: Numbers, weights: Numbers
) -> tuple[Float[Array, "k n d"], Float[Array, " n"]]:
    """The fields in a power of two at their size, and the particles' masses."""
    (velocities,) = as_arrays(velocities=within_range(checked_fields(velocities)))
    weights = checked_masses(weights, velocities.shape[1], velocities.dtype)
    # The largest √a_i |v_k(x_i)| is the unit. Particles of mass zero may hold anything, and fields
    # that vanish or overflow keep the unit 1.
    fixed, masses = jax.lax.stop_gradient((velocities, weights))
    lengths = jnp.sqrt(masses)[:, None] * jnp.abs(fixed)
    size = jnp.max(jnp.where((masses > 0)[:, None], lengths, 0))
    size = jnp.where((size > 0) & jnp.isfinite(size), size, 1)
    return in_units_of(size, velocities)[0], weights


def _products(
    velocities: Float[Array, "k n d"], weights: Float[Array, " n"]
) -> Float[Array, "k k"]:
    rows = with_finite_padding(jnp.swapaxes(velocities, 0, 1), weights)
    # Q = Σ_i a_i V_iV_iᵀ with V_i "k d". Fields that nearly cancel are inaccurate in TF32.
    weighted = rows * weights[:, None, None]
    return jnp.einsum("nkd,njd->kj", weighted, rows, precision="highest")


def check_objective_weights(name: str, weights: ArrayLike, num_objectives: int, n: int) -> None:
    """Raise `ValueError` unless there are K weights, or K for each of the n particles."""
    if jnp.shape(weights) not in ((num_objectives,), (num_objectives, n)):
        raise ValueError(
            f"{name} must have shape ({num_objectives},), or ({num_objectives}, {n}) with weights "
            f"for each particle; got shape {jnp.shape(weights)}."
        )


def combine(
    weights: Float[Array, " k"] | Float[Array, "k n"], rows: Float[Array, "k n ..."]
) -> Float[Array, "n ..."]:
    """Σ_k w_k rows_k, with one weight per objective or one per objective and particle.

    Example:
        >>> rows = jnp.array([[1.0, 1.0], [3.0, 5.0]])
        >>> combine(jnp.array([0.5, 0.5]), rows).tolist()
        [2.0, 3.0]
        >>> combine(jnp.array([[1.0, 0.0], [0.0, 1.0]]), rows).tolist()
        [1.0, 5.0]
    """
    # If the fields nearly cancel, their sum must stay accurate.
    if weights.ndim == 1:
        return jnp.tensordot(weights, rows, 1, precision="highest")
    return jnp.einsum("kn,kn...->n...", weights, rows, precision="highest")
