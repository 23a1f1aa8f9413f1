"""Weights: minimum-norm combinations, projection on the simplex, checks, padding.

The first two are exact. They run inside every step of a flow, for K objectives, so they are a few
fused operations per iteration, without a call to LAPACK.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from divjax.core.numerics import at_least_single, in_units_of, nan_unless
from divjax.core.samples import Numbers, Unrounded, as_numbers, as_vectors, without_offset

__all__ = [
    "are_distributions",
    "are_weights",
    "check_distributions",
    "effective_sample_size",
    "in_units_of_largest",
    "largest_mass_difference",
    "mass_of_distinct_pairs",
    "min_norm_weights",
    "project_simplex",
    "shares_of",
    "sum_to_one",
    "sum_tolerance",
    "with_finite_padding",
    "within_range",
]

# In units of the dtype's epsilon, for a matrix of unit diagonal: the ridge on the diagonal of the
# eliminated matrix (not of the one that is solved), and the largest gradient that counts as 0.
_RIDGE = 4
_TOLERANCE = 2


def min_norm_weights(gram: Float[Numbers, "k k"]) -> Float[Array, " k"]:
    """The weights of the minimum-norm convex combination of K vectors, from their Gram matrix.

    w* = argmin_{w ≥ 0, Σ_k w_k = 1} wᵀQw,   Q_kj = ⟨v_k, v_j⟩.

    Two vectors have a closed form. For more it is Wolfe's active-set algorithm: the vector that
    most shortens the combination joins its support, and a weight that would turn negative leaves.
    Each such change costs O(K²), and their number is about the size of the support.

    Of several minimisers (duplicate vectors) it returns one whose support is affinely independent.
    For Q = 0 the weights are uniform. Multiplying Q by a positive number changes nothing.

    Args:
        gram: Q, symmetric and positive semidefinite up to rounding.

    Returns:
        w*, with wᵀQw ≤ (Qw)_k and equality if w_k > 0, up to a few roundings of the largest
        diagonal entry. NaN if Q holds a non-finite value, is not symmetric, or has
        |Q_kj| > √(Q_kk Q_jj), beyond half of its digits. Its derivative is that of the minimiser on
        a fixed support, which is exact unless the support is about to change. For K ≥ 3 reverse
        mode is first-order only; `jax.jacfwd` of it gives second derivatives.

    Raises:
        ValueError: if `gram` is empty or not a square matrix of real numbers.

    Example:
        >>> import jax.numpy as jnp
        >>> min_norm_weights(jnp.diag(jnp.array([1.0, 3.0]))).tolist()
        [0.75, 0.25]

    References:
        Wolfe 1976, the algorithm; Lawson, Hanson 1974, chapter 23, the least-squares form used
        here; Désidéri 2012, for descent in several objectives.
    """
    gram = as_numbers("gram", gram)
    if gram.ndim != 2 or gram.shape[0] != gram.shape[1] or gram.shape[0] == 0:
        raise ValueError(f"gram must be a non-empty square matrix; got shape {gram.shape}.")
    return _min_norm_weights(within_range(gram))


def within_range(array: Unrounded) -> Unrounded:
    """NumPy's numbers in units of the power of two above their largest; JAX's unchanged.

    For functions that are invariant to a common factor. Beyond float32's range the numbers would be
    rounded to zero or infinity.

    Example:
        >>> within_range(np.array([1e-50, -3e-50])).round(3).tolist()
        [0.234, -0.702]
    """
    if not isinstance(array, np.ndarray) or not array.size:
        return array
    # NaN and infinities have exponent zero.
    return np.ldexp(array, -np.frexp(np.max(np.abs(array)))[1])


@jax.jit
def _min_norm_weights(gram: Float[Array, "k k"]) -> Float[Array, " k"]:
    weights = _two_weights(gram) if gram.shape[0] == 2 else _weights(gram)
    return nan_unless(_is_gram(gram), weights)


def _is_gram(gram: Float[Array, "k k"]) -> Bool[Array, ""]:
    """Whether the matrix is finite, symmetric, and satisfies the Cauchy–Schwarz inequality.

    Up to half of the digits, as rows may be sums over many particles.
    """
    gram, _ = in_units_of(_size(gram), jax.lax.stop_gradient(gram))
    diagonal = jnp.diagonal(gram)
    rounding = float(jnp.finfo(gram.dtype).eps) ** 0.5
    lengths = jnp.sqrt(jnp.maximum(diagonal, 0))
    symmetric = jnp.abs(gram - gram.T) <= rounding
    # Cauchy–Schwarz: |⟨v_k, v_j⟩| ≤ ‖v_k‖ ‖v_j‖.
    bounded = jnp.abs(gram) <= (1 + rounding) * lengths[:, None] * lengths + rounding
    return jnp.all(symmetric & bounded & jnp.isfinite(gram))


def _two_weights(gram: Float[Array, "2 2"]) -> Float[Array, " 2"]:
    """The point closest to the origin on the line through two points, clipped to the segment."""
    gram, _ = in_units_of(_size(gram), gram)
    # w_1 = ⟨v_2, v_2 − v_1⟩ / ‖v_1 − v_2‖², and the two excesses sum to the denominator.
    excess = jnp.diagonal(gram)[::-1] - 0.5 * (gram[0, 1] + gram[1, 0])
    squared_distance = excess.sum()
    apart = squared_distance > 0
    foot = jnp.clip(excess / jnp.where(apart, squared_distance, 1), 0, 1)
    # Points whose distance is lost to rounding may still differ in length.
    longer_other = (excess > excess[::-1]).astype(excess.dtype)
    shorter = jnp.where(excess == excess[::-1], 0.5, longer_other)
    return jnp.where(apart, foot, shorter)


@jax.custom_jvp
def _weights(gram: Float[Array, "k k"]) -> Float[Array, " k"]:
    return _active_set(gram)[0]


@_weights.defjvp
def _weights_jvp(
    primals: tuple[Float[Array, "k k"]], tangents: tuple[Float[Array, "k k"]]
) -> tuple[Float[Array, " k"], Float[Array, " k"]]:
    """On the support, Q dw + dQ w = 1 dλ and 1ᵀdw = 0; off it, dw = 0."""
    weights, inverse = _active_set(*primals)
    # The inverse is in units of the size, whose own reciprocal may overflow.
    change, _ = in_units_of(_size(*primals), tangents[0])
    response = _matvec(inverse, _matvec(0.5 * (change + change.T), weights))
    # dw = λQ⁻¹1 − Q⁻¹dQ w with Q⁻¹1 ∝ w: the multiple of w makes the change sum to zero.
    return weights, weights * response.sum() - response


def _size(gram: Float[Array, "k k"]) -> Float[Array, ""]:
    """The largest diagonal entry, or 1 if that is not positive."""
    largest = jax.lax.stop_gradient(jnp.max(jnp.diagonal(gram)))
    return jnp.where(largest > 0, largest, 1)


def _matvec(matrix: Float[Array, "k k"], vector: Float[Array, " k"]) -> Float[Array, " k"]:
    return jnp.matmul(matrix, vector, precision="highest")


class _Search(NamedTuple):
    """Non-negative least squares, min_{z ≥ 0} ½ zᵀMz − bᵀz, between two changes of its support.

    Attributes:
        table: M swept on the support, minus the inverse of M there.
        support: the indices at which z may be positive.
        point: z.
        pivot: the next index to join or to leave.
        leaves: whether it leaves.
        solved: whether z is the solution.
        count: the number of changes so far.
    """

    table: Float[Array, "k k"]
    support: Bool[Array, " k"]
    point: Float[Array, " k"]
    pivot: Int[Array, ""]
    leaves: Bool[Array, ""]
    solved: Bool[Array, ""]
    count: Int[Array, ""]


def _with_unit_diagonal(
    gram: Float[Array, "k k"],
) -> tuple[Float[Array, "k k"], Float[Array, " k"]]:
    """Q + γ11ᵀ in units of `_size`, scaled to a unit diagonal, and the factor of each row."""
    # Done first, as sums of entries near the largest number overflow.
    gram, _ = in_units_of(_size(gram), gram)
    gram = 0.5 * (gram + gram.T)
    diagonal = jnp.diagonal(gram)
    # The minimum-norm combination is no longer than the shortest vector: γ on its scale keeps small
    # vectors accurate next to large ones. A unit diagonal makes tolerances free of scale.
    constant = jnp.maximum(jnp.min(diagonal), jnp.finfo(gram.dtype).eps ** 2)
    unit = jax.lax.rsqrt(diagonal + constant)
    return (gram + constant) * unit[:, None] * unit[None, :], unit


def _first_search(table: Float[Array, "k k"], side: Float[Array, " k"]) -> _Search:
    """The search at zero, which the index of steepest descent joins first."""
    return _Search(
        table,
        support=jnp.zeros(side.shape, bool),
        point=jnp.zeros_like(side),
        pivot=jnp.argmax(side),
        leaves=jnp.zeros((), bool),
        solved=jnp.zeros((), bool),
        count=jnp.zeros((), jnp.int32),
    )


def _active_set(gram: Float[Array, "k k"]) -> tuple[Float[Array, " k"], Float[Array, "k k"]]:
    """The weights, and the inverse on their support of Q plus a constant, in units of `_size`.

    On the simplex a constant γ added to all of Q adds γ to wᵀQw. It makes Q invertible on every
    affinely independent support, even if the minimum-norm combination is zero, and the constraint
    Σ_k w_k = 1 a mere normalisation: w ∝ z = argmin_{z ≥ 0} ½ zᵀ(Q + γ11ᵀ)z − 1ᵀz.
    """
    size = gram.shape[0]
    epsilon = jnp.finfo(gram.dtype).eps
    largest = jnp.max(jnp.diagonal(gram))
    matrix, unit = _with_unit_diagonal(gram)
    side = unit / jnp.max(unit)
    # Rounding may leave the matrix slightly indefinite, hence a ridge. A nearly dependent pivot
    # swept in and out leaves errors in the table. Both affect only how fast a point is corrected,
    # not the limit: residuals are computed from the matrix itself.
    unswept = matrix + _RIDGE * epsilon * jnp.eye(size, dtype=gram.dtype)

    def correct(point: Array, table: Array, free: Array) -> Array:
        residual = jnp.where(free, side - _matvec(matrix, point), 0)
        return point - jnp.where(free, _matvec(table, residual), 0)

    def change_support(s: _Search) -> _Search:
        here = jnp.arange(size) == s.pivot
        table = _sweep(s.table, s.pivot, s.leaves)
        support = jnp.where(s.leaves, s.support & ~here, s.support | here)

        # Towards the solution on the support, as far as all entries stay non-negative.
        point = jnp.where(support, s.point, 0)
        target = correct(point, table, support)
        negative = target < 0
        ratio = jnp.where(negative, point / (point - target), 1)
        point = jnp.maximum(point + jnp.min(ratio) * (target - point), 0)

        # An entry that would turn negative leaves. Otherwise the index of steepest descent joins,
        # unless its pivot indicates linear dependence on the support. If there is neither, the
        # point is optimal.
        pivots = jnp.diagonal(table)
        descent = side - _matvec(matrix, point) - _TOLERANCE * epsilon * (side + point.sum())
        joins = jnp.where(~support & (pivots > epsilon), descent, 0)
        leaves = jnp.any(negative)
        return _Search(
            table,
            support,
            point,
            pivot=jnp.where(leaves, jnp.argmin(ratio), jnp.argmax(joins)),
            leaves=leaves,
            solved=~(leaves | (jnp.max(joins) > 0)),
            count=s.count + 1,
        )

    end = jax.lax.while_loop(
        lambda s: ~s.solved & (s.count < 16 * size),
        change_support,
        _first_search(unswept, side),
    )
    # One step of refinement removes the table's rounding error, if it stays non-negative.
    corrected = correct(end.point, end.table, end.support)
    point = jnp.where(jnp.all(corrected >= 0), corrected, end.point) * unit
    # Back from the unit diagonal, and normalised: w ∝ z. For Q = 0 all points are equally short.
    weights = jnp.where(largest > 0, point / point.sum(), 1 / size)
    inverse = -end.table * unit[:, None] * unit[None, :]
    return weights, jnp.where(end.support[:, None] & end.support[None, :], inverse, 0)


def _sweep(
    table: Float[Array, "k k"], pivot: Int[Array, ""], undo: Bool[Array, ""]
) -> Float[Array, "k k"]:
    """Goodnight's symmetric sweep: solve row `pivot` for its variable and substitute, or undo it.

    Sweeping M on S leaves −M_SS⁻¹ at SS, M_SS⁻¹M_SN at SN, and the Schur complement at NN.
    """
    here = jnp.arange(table.shape[0]) == pivot
    row, column = here[:, None], here[None, :]
    values = table[:, pivot]
    scaled = values / values[pivot]
    signed = jnp.where(undo, -scaled, scaled)
    # The Schur complement of the pivot everywhere, then its own row and column, which differ in
    # sign between sweep and undo.
    swept = table - values[:, None] * scaled[None, :]
    swept = jnp.where(row, signed[None, :], jnp.where(column, signed[:, None], swept))
    return jnp.where(row & column, -1 / values[pivot], swept)


def project_simplex(v: Float[Numbers, " k"]) -> Float[Array, " k"]:
    """The point of the probability simplex closest to v: max(v − θ, 0), θ such that it sums to one.

    With v in descending order, θ = max_j (v_1 + … + v_j − 1)/j.

    Args:
        v: any vector.

    Returns:
        Non-negative weights that sum to one, or NaN if v holds NaN.

    Raises:
        ValueError: if `v` is empty or not a vector.

    Example:
        >>> import jax.numpy as jnp
        >>> project_simplex(jnp.array([1.0, 0.5, -2.0])).tolist()
        [0.75, 0.25, 0.0]

    References:
        Held, Wolfe, Crowder 1974; Duchi et al. 2008, figure 1.
    """
    as_vectors(v=v)
    (v,) = as_vectors(v=without_offset(np.max, v=v)[0])
    # Adding a constant to v changes only θ: relative to the largest entry the others stay accurate.
    v = v - jax.lax.stop_gradient(jnp.max(v))
    counts = jnp.arange(1, v.shape[0] + 1, dtype=v.dtype)
    threshold = jnp.max((jnp.cumsum(jnp.sort(v, descending=True)) - 1) / counts)
    return jnp.maximum(v - threshold, 0)


def are_weights(weights: Float[Array, " n"]) -> Bool[Array, ""]:
    """Whether traced weights are finite, non-negative and not all zero.

    Example:
        >>> import jax.numpy as jnp
        >>> [bool(are_weights(jnp.array(w))) for w in ([1.0, 0.0], [1.0, -1.0], [0.0, 0.0])]
        [True, False, False]
    """
    return jnp.all((weights >= 0) & jnp.isfinite(weights)) & jnp.any(weights > 0)


def shares_of(weights: Float[Array, " n"]) -> Float[Array, " n"]:
    """Weights of any scale divided by their sum; NaN for traced ones that are none.

    Example:
        >>> import jax.numpy as jnp
        >>> shares_of(jnp.array([3e38, 1e38])).round(3).tolist()  # their sum is infinite
        [0.75, 0.25]
        >>> shares_of(jnp.array([1.0, -1.0])).tolist()
        [nan, nan]
    """
    scaled = in_units_of_largest(weights)
    return nan_unless(are_weights(weights), scaled) / jnp.sum(scaled)


def in_units_of_largest(weights: Float[Array, " n"]) -> Float[Array, " n"]:
    """Weights in units of the power of two at or below the largest, so that equal ones are ones.

    Sums and products of them neither over- nor underflow. The unit is a constant to
    differentiation, for functions that do not depend on it.

    Example:
        >>> import jax.numpy as jnp
        >>> in_units_of_largest(jnp.array([2.0**-60, 2.0**-61])).tolist()
        [1.0, 0.5]
    """
    return in_units_of(jax.lax.stop_gradient(jnp.max(weights)), weights)[0]


# How far from one the sum of shares may be, or by how many of the dtype's epsilon.
_SUM_TOLERANCE, _SUM_ULPS = 1e-3, 4


def with_finite_padding(
    rows: Float[Array, "..."], weights: Float[Array, " n"] | None, axis: int = 0
) -> Float[Array, "..."]:
    """The rows, along an axis, with unusable entries of those of weight zero replaced by zero.

    Those that are not finite, or whose squares are not.

    Sums weighted by `weights`, and their derivatives, then never multiply 0 by infinity or NaN,
    while derivatives in the weights stay those of the rows, also at weight zero.

    Example:
        >>> import jax.numpy as jnp
        >>> rows = jnp.array([jnp.nan, jnp.inf, 3.0])
        >>> with_finite_padding(rows, jnp.array([1.0, 0.0, 0.0])).tolist()
        [nan, 0.0, 3.0]
    """
    if weights is None:
        return rows
    others = [i for i in range(rows.ndim) if i != axis % rows.ndim]
    counts = jnp.expand_dims(weights != 0, others)
    largest = float(jnp.finfo(at_least_single(rows.dtype)).max) ** 0.5 / 16
    # False for NaN. Compared in a dtype that holds the limit.
    usable = jnp.abs(rows.astype(at_least_single(rows.dtype))) <= largest
    return jnp.where(counts | usable, rows, 0)


def sum_tolerance(n: int, dtype: DTypeLike) -> float:
    """How far from one the sum of n shares stored in the dtype may be.

    Example:
        >>> sum_tolerance(10, jnp.float32), sum_tolerance(10, jnp.float16)
        (0.001, 0.0039)
    """
    # Relative roundings do not grow with n, but absolute ones do: below the normal numbers each
    # share may be off by a gap.
    held = jnp.finfo(dtype)
    gap = float(held.smallest_subnormal)
    return max(_SUM_TOLERANCE, _SUM_ULPS * float(held.eps), n * gap)


def largest_mass_difference(dtype: DTypeLike) -> float:
    """How far two masses that count as equal may differ, as a share of the larger.

    Example:
        >>> largest_mass_difference(jnp.float32)
        0.0001
    """
    return max(1e-4, 4 * float(jnp.finfo(dtype).eps))


def sum_to_one(shares: Float[Array, " n"], tolerance: float | None = None) -> Bool[Array, ""]:
    """Whether traced shares sum to one, by default within `sum_tolerance`.

    Example:
        >>> bool(sum_to_one(jnp.full(3, 1 / 3))), bool(sum_to_one(jnp.ones(3)))
        (True, False)
    """
    if tolerance is None:
        tolerance = sum_tolerance(shares.size, shares.dtype)
    # Half precision would round the sum itself.
    total = jnp.sum(shares, dtype=at_least_single(shares.dtype))
    return jnp.abs(total - 1) <= tolerance


def check_distributions(name: str, rows: Unrounded, dtype: DTypeLike) -> None:
    """Raise `ValueError` unless known rows are probabilities that sum to one in the dtype.

    Example:
        >>> check_distributions("channel", np.array([[0.5, 0.5], [0.9, 0.1]]), jnp.float32)
    """
    if isinstance(rows, Tracer):
        return
    known = np.asarray(rows, float)
    sums, tolerance = known.sum(axis=1), sum_tolerance(known.shape[1], dtype)
    if not ((known >= 0).all() and (abs(sums - 1) <= tolerance).all()):
        raise ValueError(
            f"{name} must have rows of probabilities that sum to one; got sums from "
            f"{sums.min():g} to {sums.max():g} and entries from {known.min():g}."
        )


def are_distributions(rows: Float[Array, "k m"]) -> Bool[Array, " k"]:
    """Which traced rows are probabilities that sum to one.

    Example:
        >>> are_distributions(jnp.array([[0.5, 0.5], [1.5, -0.5]])).tolist()
        [True, False]
    """
    return jax.vmap(sum_to_one)(rows) & jnp.all(rows >= 0, axis=1)


def effective_sample_size(weights: Float[Numbers, " n"]) -> Float[Array, ""]:
    """(Σ a)² / Σ a², the equivalent number of equal weights; NaN for a negative weight.

    Multiplying the weights by a positive number changes nothing.

    Raises:
        ValueError: if `weights` is empty or not a vector of real numbers.

    Example:
        >>> import jax.numpy as jnp
        >>> float(effective_sample_size(jnp.array([0.5, 0.5, 0.0, 0.0])))
        2.0

    References:
        Kong, Liu, Wong 1994, section 4.1.
    """
    (weights,) = as_vectors(weights=within_range(as_numbers("weights", weights)))
    # In units of the largest first, to avoid underflow of squares of tiny weights.
    scaled, _ = in_units_of(jnp.max(weights), weights)
    scaled = nan_unless(jnp.all(weights >= 0), scaled)
    return jnp.sum(scaled) ** 2 / jnp.sum(scaled**2)


def mass_of_distinct_pairs(weights: Float[Array, " n"]) -> Float[Array, ""]:
    """Σ_{i≠j} w_i w_j of weights that sum to one, which is 1 − Σ w_i² without its cancellation.

    Dividing by it makes a weighted variance unbiased.

    Example:
        >>> import jax.numpy as jnp
        >>> float(mass_of_distinct_pairs(jnp.array([1.0, 1e-8])))
        2e-08
    """
    # Twice the sum over j < i.
    return 2 * jnp.dot(weights[1:], jnp.cumsum(weights)[:-1], precision="highest")
