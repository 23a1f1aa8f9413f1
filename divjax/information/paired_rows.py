"""Paired rows of several variables, their masses, and numbers of any kind made ready for sums."""

from collections.abc import Collection
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from divjax.core.checks import check_flag
from divjax.core.numerics import at_least_single
from divjax.core.pairwise import common_center
from divjax.core.representable import nan_if_lost
from divjax.core.samples import (
    Numbers,
    as_samples,
    as_weights,
    centered_samples,
    check_distinguishable,
)
from divjax.core.simplex import shares_of

__all__ = ["PairedRows", "check_debias", "masses_of", "paired_rows", "usable_rows"]

# A row without mass keeps its place up to this multiple of the largest deviation of the others:
# the derivative in its weight is then that of the row. Products of distances beyond overflow.
_FARTHEST = 2.0**10


class PairedRows(NamedTuple):
    """Variables observed together, in one dtype of at least single precision.

    Attributes:
        variables: a matrix for each, of n rows.
        weights: the rows' weights, None if they are uniform.
    """

    variables: tuple[Float[Array, "n _"], ...]
    weights: Float[Array, " n"] | None


def paired_rows(
    weights: Numbers | None, *, located: Collection[str] = (), **variables: Numbers
) -> tuple[PairedRows, jnp.dtype]:
    """The variables, checked, and the dtype of the results.

    Args:
        weights: the rows' weights, or None.
        located: the names of variables that are not centred, as it matters where they are.
        **variables: any inputs of `as_samples`, by their names in messages.

    Raises:
        ValueError: if one is empty or not a matrix of real numbers, their numbers of rows differ,
            or the weights do not fit.

    Example:
        >>> paired_rows(None, x=[[1], [2]], y=[[0, 1], [1, 0]])[0].variables[1].shape
        (2, 2)
    """
    rows: dict[str, Array] = {}
    for name, values in variables.items():
        if name in located:
            # A kernel that depends on the rows' location gets them without centring: their
            # differences must survive rounding as they are.
            check_distinguishable(name, values, weights)
            (rows[name],) = as_samples(**{name: values})
        else:
            _, rows[name] = centered_samples({name: weights}, **{name: values})
        rows[name] = nan_if_lost(name, values, rows[name])
    first, *others = rows
    for name in others:
        if len(rows[name]) != len(rows[first]):
            raise ValueError(
                f"{first} and {name} must have the same number of rows, which are pairs; "
                f"got {len(rows[first])} and {len(rows[name])}."
            )
    dtype = jnp.result_type(*rows.values())
    # Sums over pairs of rows saturate in half precision.
    work = at_least_single(dtype)
    if weights is not None:
        weights = as_weights("weights", weights, len(rows[first]), work)
    return PairedRows(tuple(values.astype(work) for values in rows.values()), weights), dtype


def check_debias(num_rows: int, debias: bool) -> None:
    """Raise `ValueError` if there are too few rows for an unbiased product of centred matrices."""
    check_flag(debias=debias)
    if debias and num_rows < 4:
        raise ValueError(f"x and y must have at least 4 rows to debias; got {num_rows}.")


def masses_of(
    weights: Float[Array, " n"] | None, num_rows: int, dtype: DTypeLike
) -> Float[Array, " n"]:
    """Weights divided by their sum, 1/n for None, and NaN for invalid traced weights."""
    if weights is None:
        return jnp.full(num_rows, 1 / num_rows, dtype)
    return shares_of(weights)


def usable_rows(
    x: Float[Array, "n d"], weights: Float[Array, " n"] | None
) -> tuple[Float[Array, "n d"], Float[Array, ""]]:
    """The rows less their centre, and the largest deviation of one with weight.

    Rows of weight zero that are not finite, or far from all others, are put at the centre.

    Example:
        >>> rows, largest = usable_rows(jnp.array([[1.0], [3.0], [jnp.nan]]), jnp.array([1, 1, 0]))
        >>> rows[:, 0].tolist(), float(largest)
        ([0.0, 2.0, 0.0], 2.0)
    """
    # Not `weights > 0`: a negative traced weight must reach the masses, which are then NaN.
    used = None if weights is None else weights != 0
    deviations = x - common_center(x, used)
    sizes = jax.lax.stop_gradient(jnp.max(jnp.abs(deviations), axis=1))
    if used is None:
        return deviations, jnp.max(sizes)
    largest = jnp.max(jnp.where(used, sizes, 0))
    # The comparison is false for NaN, too.
    keep = used | (sizes <= _FARTHEST * largest)
    return jnp.where(keep[:, None], deviations, 0), largest
