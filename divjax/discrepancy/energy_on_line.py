"""Sums of distances between points on the line, by sorting."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from divjax.core.simplex import mass_of_distinct_pairs

__all__ = ["energy_distance_on_line"]


def energy_distance_on_line(
    x: Float[Array, " n"],
    y: Float[Array, " m"],
    a: Float[Array, " n"],
    b: Float[Array, " m"],
    *,
    debias: bool,
) -> Float[Array, ""]:
    """The energy distance 2 ∫ (F − G)² of two samples on the line, for shares of sum one.

    Without the pairs i = j the mean distances within the samples grow by the factor 1/(1 − Σ a²).
    """
    value = _self_energy(jnp.concatenate([x, y]), jnp.concatenate([a, -b]))
    if not debias:
        return value
    # 1/(1 − s) is 1 + s/(1 − s): 2 ∫ (F − G)² stays free of cancellation, and only the bias is
    # subtracted from it.
    excess = lambda share: jnp.sum(jnp.square(share)) / mass_of_distinct_pairs(share)
    return value + excess(a) * _self_energy(x, a) + excess(b) * _self_energy(y, b)


@jax.custom_jvp
def _self_energy(z: Float[Array, " k"], charges: Float[Array, " k"]) -> Float[Array, ""]:
    """−Σ_ij c_i c_j |z_i − z_j|, the energy of charges c on the line.

    With C the cumulative sum of the sorted charges and T their total it is the sum of
    2 C (C − T) times the gap to the next point: no difference of large numbers.
    """
    # Between ties the gap is zero: their order does not matter, and an unstable sort is faster.
    keys, charges = jax.lax.sort((_ordered_bits(z), charges), num_keys=1, is_stable=False)
    z = _from_ordered_bits(keys, z.dtype)
    cumulative = jnp.cumsum(charges)
    gaps = jnp.diff(z)
    # Beyond the last charge C is the total, up to a rounding that a far point would multiply.
    index = jnp.arange(z.size)
    last = jnp.max(jnp.where(charges != 0, index, 0))
    below = cumulative[:-1]
    return 2 * jnp.sum(jnp.where(index[:-1] < last, below * (below - cumulative[-1]) * gaps, 0))


@_self_energy.defjvp
def _(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    z, charges = primals
    dz, d_charges = tangents
    # The order is locally constant, so that no derivative passes through the sort.
    order = jnp.argsort(_ordered_bits(jax.lax.stop_gradient(z)))
    sorted_z, sorted_charges = z[order], charges[order]
    first, last = _ties(jax.lax.stop_gradient(sorted_z))

    def balance(amounts: Float[Array, " k"]) -> Float[Array, " k"]:
        """The amount to the left of each point less that to its right; ties are on neither side."""
        up_to = jnp.cumsum(amounts)
        return (up_to - amounts)[first] - (up_to[-1] - up_to[last])

    # Σ_j c_j sign(z_k − z_j), of which c_k times −2 is the derivative in z_k.
    sides = balance(sorted_charges)
    # Σ_j c_j |z_k − z_j|, the derivative in a charge, up to the factor −2. About the middle one of
    # the charged points: far from zero the products would cancel.
    charged = jnp.cumsum(sorted_charges != 0)
    middle = jnp.argmax(charged >= (charged[-1] + 1) // 2)
    around = sorted_z - jax.lax.stop_gradient(sorted_z[middle])
    distances = around * sides - balance(sorted_charges * around)
    change = jnp.sum(sorted_charges * sides * dz[order] + distances * d_charges[order])
    return _self_energy(z, charges), -2 * change


def _ordered_bits(z: Float[Array, " k"]) -> Int[Array, " k"]:
    """Integers in the order of the numbers, which a CPU sorts in less than half of the time."""
    bits = jax.lax.bitcast_convert_type(z, f"int{8 * z.dtype.itemsize}")
    # Negative numbers are in descending order by their bits, which are all but the sign's inverted.
    limits = jnp.iinfo(bits.dtype)
    return bits ^ ((bits >> (limits.bits - 1)) & limits.max)


def _from_ordered_bits(keys: Int[Array, " k"], dtype: DTypeLike) -> Float[Array, " k"]:
    """The numbers again: the sign is as it was."""
    limits = jnp.iinfo(keys.dtype)
    return jax.lax.bitcast_convert_type(keys ^ ((keys >> (limits.bits - 1)) & limits.max), dtype)


def _ties(sorted_z: Float[Array, " k"]) -> tuple[Int[Array, " k"], Int[Array, " k"]]:
    """The first and the last index of the points equal to each."""
    index = jnp.arange(sorted_z.size)
    differs = sorted_z[1:] != sorted_z[:-1]
    starts = jnp.where(jnp.append(True, differs), index, 0)
    ends = jnp.where(jnp.append(differs, True), index, sorted_z.size - 1)
    return jax.lax.cummax(starts), jax.lax.cummin(ends, reverse=True)
