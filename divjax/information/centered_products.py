"""Products of doubly centred matrices, biased and unbiased, from their row means.

For symmetric matrices a and b of all pairs of rows, of masses w with sum one, the biased product is
that of A_ij = a_ij − a_i. − a_j. + a.., with the means a_i. = Σ_j w_j a_ij:

    ⟨A, B⟩ = Σ_ij w_i w_j A_ij B_ij.

The unbiased one leaves out the diagonal. Ã_ij = a_ij − f_i − f_j is the part of a that is
orthogonal, under ⟨A, B⟩ without i = j, to all matrices g_i + g_j. Its expectation is linear in
E a_12 b_12, E a_12 b_13 and E a_12 b_34, and vanishes if a is such a matrix, so that it is a
multiple c of E a_12 b_12 − 2 E a_12 b_13 + E a_12 b_34, the population's product. c follows from
the coefficient of a_ij in Ã_ij. For equal masses Ã is the U-centred matrix of Székely and Rizzo,
and ⟨Ã, B̃⟩/c is Σ_{i≠j} Ã_ij B̃_ij / (n (n − 3)).
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from divjax.core.numerics import nan_unless

__all__ = [
    "CenteredSums",
    "centered_product",
    "correlation",
    "offsets",
    "square_or_nan",
    "unbiased_mass",
]


class CenteredSums(NamedTuple):
    """The sums that give the product of two matrices; a part g_i + g_j in either changes nothing.

    Attributes:
        within: Σ_i w_i (Σ_j w_j a_ij b_ij − a_i. b_i.).
        first: the row means a_i., of the first matrix.
        second: the row means b_i., of the second.
    """

    within: Float[Array, ""]
    first: Float[Array, " n"]
    second: Float[Array, " n"]


def _dot(u: Float[Array, " n"], v: Float[Array, " n"]) -> Float[Array, ""]:
    return jnp.dot(u, v, precision="highest")


def centered_product(
    sums: CenteredSums, masses: Float[Array, " n"], *, debias: bool
) -> Float[Array, ""]:
    """⟨A, B⟩, or with `debias` ⟨Ã, B̃⟩/c from sums over j ≠ i.

    Differences of terms that nearly cancel are taken row by row, before they are summed.

    Example:
        >>> a = jnp.abs(jnp.arange(5.0)[:, None] - jnp.arange(5.0))
        >>> w = jnp.full(5, 0.2)
        >>> sums = CenteredSums(w @ (a**2 @ w - (a @ w) ** 2), a @ w, a @ w)
        >>> float(centered_product(sums, w, debias=False))  # the distance variance of 0, …, 4
        1.216
    """
    within, first, second = sums
    mean, other_mean = _dot(masses, first), _dot(masses, second)
    deviation, other_deviation = first - mean, second - other_mean
    biased = within - _dot(masses, deviation * other_deviation)
    if not debias:
        return biased
    # With u_i = 1/(1 − 2 w_i) = 1 + 2 w_i u_i, the row terms are f_i = u_i (a_i. − F), where F is
    # Σ_i w_i u_i a_i. / (1 + Σ_i w_i u_i), nearly half of the mean a... What remains of the product
    # beyond the biased form is a sum of terms of order 1/n.
    factor = _leverage(masses)
    squares = masses**2 * factor
    rho, moment = jnp.sum(squares), _dot(squares, first)
    constant = (mean + 2 * moment) / (2 + 2 * rho)
    rest = 4 * _dot(squares, other_deviation * (first - constant))
    product = biased - rest + other_mean * (rho * mean - 2 * moment) / (1 + rho)
    return product / unbiased_mass(masses)


def _leverage(masses: Float[Array, " n"]) -> Float[Array, " n"]:
    return 1 / (1 - 2 * masses)


def unbiased_mass(masses: Float[Array, " n"]) -> Float[Array, ""]:
    """c, by which ⟨Ã, B̃⟩ is divided to be unbiased: (n − 3)/n for n equal masses.

    NaN for fewer than four rows with mass, and if one row has half of the mass, up to a thousandth,
    where the equations for f are singular.

    Example:
        >>> round(float(unbiased_mass(jnp.full(5, 0.2))), 4)
        0.4
    """
    factor, squares = _leverage(masses), masses**2
    rho = _dot(squares, factor)
    # Σ_{i≠j} w_i w_j [1 − w_j u_i − w_i u_j + w_i w_j (u_i + u_j)²/(2 + 2 Σ_i w_i² u_i)], by sums
    # of powers less the terms i = j.
    first = _dot(masses, factor) * jnp.sum(squares) - _dot(masses * squares, factor)
    fourth = _dot(squares**2, factor**2)
    second = _dot(squares, factor**2) * jnp.sum(squares) + rho**2 - 2 * fourth
    mass = 1 - jnp.sum(squares) - 2 * first + second / (1 + rho)
    enough = jnp.sum(masses > 0) >= 4
    return nan_unless(enough & jnp.all(jnp.abs(1 - 2 * masses) > 1e-3), mass)


def offsets(means: Float[Array, " n"], masses: Float[Array, " n"], *, debias: bool) -> Array:
    """The f of A_ij = a_ij − f_i − f_j, from the matrix's row means (over j ≠ i with `debias`).

    Example:
        >>> offsets(jnp.array([1.0, 3.0]), jnp.array([0.5, 0.5]), debias=False).tolist()
        [0.0, 2.0]
    """
    if not debias:
        return means - _dot(masses, means) / 2
    factor = _leverage(masses)
    weights = masses * factor
    return factor * (means - _dot(weights, means) / (1 + jnp.sum(weights)))


# In units of epsilon: below this share of its terms a difference of them has lost two digits.
_LOST_ULPS = 2000


def square_or_nan(
    sums: CenteredSums, masses: Float[Array, " n"], least: Float[Array, ""], *, debias: bool
) -> Float[Array, ""]:
    """⟨A, A⟩, NaN where an unbiased one of a variable that varies is mostly rounding.

    The distances of a row that is far from all others are nearly g_i + g_j, which centring removes:
    a small difference of large sums remains.

    Args:
        sums: of the matrix with itself.
        masses: of the rows.
        least: the value up to which a variable counts as constant.
        debias: whether the square is unbiased.
    """
    square = centered_product(sums, masses, debias=debias)
    if not debias:
        return square
    size = jnp.abs(sums.within) + _dot(masses, jnp.square(sums.first))
    lost = jnp.abs(square) < _LOST_ULPS * float(jnp.finfo(size.dtype).eps) * size
    return nan_unless(~lost | (size <= _LOST_ULPS * least), square)


def correlation(
    product: Float[Array, ""], squares: tuple[Array, Array], least: tuple[Array, Array]
) -> Float[Array, ""]:
    """⟨A, B⟩ / (⟨A, A⟩ ⟨B, B⟩)^½, zero if either square is at most what rounding may leave of zero.

    Args:
        product: ⟨A, B⟩.
        squares: ⟨A, A⟩ and ⟨B, B⟩.
        least: their values up to which a variable counts as constant.
    """
    constant = (squares[0] <= least[0]) | (squares[1] <= least[1])  # false for NaN
    roots = [jnp.sqrt(jnp.where(constant, 1, square)) for square in squares]
    # One after the other: the product of both may leave the dtype's range.
    return jnp.where(constant, 0, product / roots[0] / roots[1])
