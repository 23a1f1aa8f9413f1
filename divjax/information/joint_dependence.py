"""Dependence of more than two variables by distances."""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int

from divjax.core.checks import check_nonnegative, check_scalar
from divjax.core.numerics import in_units_of, matmul, nan_unless
from divjax.core.pairwise import map_row_blocks
from divjax.core.pytrees import pytree
from divjax.core.samples import Numbers
from divjax.core.types import summary
from divjax.information.centered_products import centered_product, offsets, unbiased_mass
from divjax.information.distance_dependence import check_exponent, compiled_for_exponent
from divjax.information.pair_sums import Variable, distances, pair_sums
from divjax.information.paired_rows import (
    PairedRows,
    check_debias,
    masses_of,
    paired_rows,
    usable_rows,
)

__all__ = [
    "AttributeDependence",
    "concatenated_distance_covariance",
    "joint_distance_covariance",
]


def joint_distance_covariance(
    variables: Sequence[Float[Numbers, "n _"]],
    weights: Float[Numbers, " n"] | None = None,
    *,
    offset: ArrayLike = 1.0,
    exponent: ArrayLike = 1.0,
    debias: bool = False,
) -> Float[Array, ""]:
    """The squared joint distance covariance: zero if the variables are mutually independent.

    JdCov² = E Π_k (U_k + c) − c^K, where U_k is E‖X − X″‖ + E‖X′ − X″‖ − ‖X − X′‖ − E‖X − X′‖ of
    the k-th of K variables: minus the doubly centred distance. Multiplied out, it is the sum over
    all sets S of two or more variables of c^(K−|S|) E Π_{k∈S} U_k, the dependence of each set
    beyond that of its parts. For two variables it is dCov². A small c lets sets of many variables
    count most, a large one pairs.

    The V-statistic is Σ_ij w_i w_j Π_k (U_k(i, j) + c) − c^K with distances centred by sample
    means. With `debias` they are U-centred, zero for i = j, and the sum, over i ≠ j and less c^K,
    is divided by n (n − 3) (of weighted rows as in `distance_covariance`). Its terms of pairs then
    are unbiased, those of larger sets are not. Both formulas are in the literature, with the sum
    over all i and j: there c^K n/(n − 3) is subtracted, which is the same.

    Time O(n² Σ_k d_k), two passes over the pairs; memory is that of `hsic`. Differentiable.

    Args:
        variables: two or more matrices of n rows.
        weights: weights of the rows, non-negative, with any sum, uniform by default. Rows of weight
            zero may hold anything.
        offset: c, not negative, in the variables' common unit to the power α.
        exponent: α in (0, 2), for ‖x − y‖^α.
        debias: whether to centre without bias.

    Returns:
        JdCov², in the unit of c to the power K. NaN if a row with weight is not finite.

    Raises:
        ValueError: for fewer than two variables, a negative offset, and as `distance_covariance`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> x, y = jax.random.bernoulli(jax.random.key(0), 0.5, (2, 400, 1)).astype(float)
        >>> z = jnp.abs(x - y)  # pairwise independent of each, and a function of both
        >>> joint = float(joint_distance_covariance([x, y, z], debias=True))
        >>> pair = float(joint_distance_covariance([x, z], debias=True))
        >>> joint > 20 * abs(pair)
        True

    References:
        Chakraborty, Zhang 2019, sections 2 and 3: the measure, and its estimates.
    """
    if not isinstance(variables, (list, tuple)) or len(variables) < 2:
        raise ValueError("variables must be a list or tuple of at least two matrices.")
    check_exponent(exponent)
    check_scalar(offset=offset)
    check_nonnegative(offset=offset)
    named = {f"variables[{k}]": values for k, values in enumerate(variables)}
    rows, dtype = paired_rows(weights, **named)
    check_debias(len(rows.variables[0]), debias)
    return _joint(rows, offset, exponent=exponent, debias=debias).astype(dtype)


@compiled_for_exponent("debias")
def _joint(
    rows: PairedRows, offset: ArrayLike, *, exponent: ArrayLike, debias: bool
) -> Float[Array, ""]:
    """`joint_distance_covariance` after its checks."""
    n, dtype = len(rows.variables[0]), rows.variables[0].dtype
    masses = masses_of(rows.weights, n, dtype)
    given = [
        _distances_of(*usable_rows(values, rows.weights), exponent) for values in rows.variables
    ]
    usable = [one.rows for one in given]
    # Products of more than two centred matrices do not follow from sums: a second pass centres each
    # entry.
    means = pair_sums(given, masses, (), diagonal=not debias).means
    shifts = [offsets(mean, masses, debias=debias) for mean in means]
    c = jnp.asarray(offset, dtype)
    c = nan_unless(c >= 0, c)

    def block(index: Int[Array, " b"], *parts: Array) -> Float[Array, " b"]:
        same = index[:, None] == jnp.arange(n)
        product = excess = jnp.zeros(same.shape, dtype)
        power = jnp.ones((), dtype)
        # For each variable its rows in this block, followed by their row terms.
        own_rows, own_shifts = parts[: len(usable)], parts[len(usable) :]
        for one, shift, own, own_shift in zip(given, shifts, own_rows, own_shifts, strict=True):
            centered = own_shift[:, None] + shift - one.function(own, one.rows, same)
            centered = jnp.where(same, 0, centered) if debias else centered
            # Π_k (U_k + c) − c^k and the same less c^(k−1) Σ_k U_k, whose mean is zero: without the
            # large terms that cancel in the sum.
            excess = c * excess + product * centered
            product = product * (centered + c) + power * centered
            power = power * c
        return matmul(excess, masses)

    total = jnp.dot(masses, map_row_blocks(block, n, jnp.arange(n), *usable, *shifts))
    return total / unbiased_mass(masses) if debias else total


def _distances_of(
    rows: Float[Array, "n d"], largest: Float[Array, ""], exponent: ArrayLike
) -> Variable:
    """Rows in a unit of theirs, whose squares do not underflow, and their distances."""
    scaled, unit = in_units_of(largest, rows)
    return Variable(scaled, distances(exponent, unit))


@pytree
class AttributeDependence:
    """How a prediction depends on several attributes together, and on each of them.

    Attributes:
        value: dCov² of the prediction with all attributes as one vector.
        parts: dCov² with each attribute.
        interaction: η, the value less the sum of the parts.
    """

    value: Float[Array, ""]
    parts: Float[Array, " k"]
    interaction: Float[Array, ""]

    __repr__ = summary


def concatenated_distance_covariance(
    prediction: Float[Numbers, "n d"],
    attributes: Sequence[Float[Numbers, "n _"]],
    weights: Float[Numbers, " n"] | None = None,
    *,
    exponent: ArrayLike = 1.0,
    debias: bool = True,
) -> AttributeDependence:
    """The squared distance covariance CCdCov of a prediction with attributes side by side.

    dCov²(ŷ, (s_1, …, s_K)) = Σ_k dCov²(ŷ, s_k) + η: a prediction may be independent of each of
    several protected attributes, and not of their combination (η > 0). As a penalty of a model the
    value makes it independent of all of them jointly. Attributes in different units are
    standardised first, since their distances add up.

    Time O(n² (d + Σ_k d_k)), one pass over the pairs; memory is that of `hsic`. Differentiable.

    Args:
        prediction: ŷ, such as a model's scores, a column.
        attributes: a matrix for each attribute, such as a column of zeros and ones.
        weights: weights of the rows, non-negative, with any sum, uniform by default. Rows of weight
            zero may hold anything.
        exponent: α in (0, 2), for ‖x − y‖^α.
        debias: whether each dCov² is the unbiased one.

    Returns:
        An `AttributeDependence`. NaN if a row with weight is not finite.

    Raises:
        ValueError: for no attribute, and as `distance_covariance`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> a, b = jax.random.bernoulli(jax.random.key(0), 0.5, (2, 400, 1)).astype(float)
        >>> found = concatenated_distance_covariance(jnp.abs(a - b), [a, b])
        >>> float(found.interaction) > 20 * float(jnp.max(jnp.abs(found.parts)))
        True

    References:
        Lee, Antonio, Avanzi, Marchi, Zhou 2025: CCdCov. Székely, Rizzo 2014: unbiased dCov².
    """
    if not isinstance(attributes, (list, tuple)) or not attributes:
        raise ValueError("attributes must be a list or tuple of at least one matrix.")
    check_exponent(exponent)
    named = {f"attributes[{k}]": values for k, values in enumerate(attributes)}
    rows, dtype = paired_rows(weights, prediction=prediction, **named)
    check_debias(len(rows.variables[0]), debias)
    found = _concatenated(rows, exponent=exponent, debias=debias).astype(dtype)
    value, parts = found[0], found[1:]
    return AttributeDependence(value, parts, value - jnp.sum(parts))


@compiled_for_exponent("debias")
def _concatenated(
    rows: PairedRows, *, exponent: ArrayLike, debias: bool
) -> Float[Array, " attributes"]:
    """dCov² with all attributes, then with each."""
    masses = masses_of(rows.weights, len(rows.variables[0]), rows.variables[0].dtype)
    prediction, *attributes = [usable_rows(values, rows.weights) for values in rows.variables]
    together = jnp.concatenate([values for values, _ in attributes], axis=1)
    # One unit for the attributes together, whose squared distances are added.
    largest = jnp.max(jnp.stack([size for _, size in attributes]))
    variables = prediction, (together, largest), *attributes
    given = [_distances_of(values, size, exponent) for values, size in variables]
    # The prediction with all attributes, then with each of them.
    pairs = [(0, k) for k in range(1, len(given))]
    sums = pair_sums(given, masses, pairs, diagonal=not debias).products
    return jnp.stack([centered_product(one, masses, debias=debias) for one in sums])
