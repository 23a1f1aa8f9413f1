"""Samples of a target and particles: converted, checked, and about one center."""

from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from divjax.core.checks import check_same_features
from divjax.core.numerics import nan_unless
from divjax.core.pairwise import common_center, spread_places
from divjax.core.pytrees import num_particles, ravel_particles
from divjax.core.samples import (
    Numbers,
    Unrounded,
    as_numbers,
    as_samples,
    centered_samples,
    check_distinguishable,
)
from divjax.core.simplex import with_finite_padding
from divjax.flows.mass import checked_masses

T = TypeVar("T")

__all__ = [
    "TargetRows",
    "as_particles",
    "as_table",
    "flagged",
    "target_rows",
    "weighted_particles",
]


def as_table(name: str, value: Numbers | PyTree[Array]) -> Unrounded | PyTree[Array]:
    """Lists and frames of numbers as one NumPy array; arrays and pytrees of arrays unchanged.

    Raises:
        ValueError: for text, and for an invalid table. The message explains how to convert it.
    """
    if not _is_table(value):
        return value
    # Called only for its errors, which name the argument.
    as_samples(**{name: value})
    if not hasattr(value, "to_numpy"):
        return as_numbers(name, value)
    try:
        return value.to_numpy(dtype=float, na_value=np.nan)
    except TypeError:  # a frame of another library than pandas
        return np.asarray(value.to_numpy(), float)


def as_particles(particles: Numbers | PyTree[Numbers]) -> PyTree[Array]:
    """Particles as JAX arrays, integers as floating-point numbers."""
    particles = as_table("particles", particles)
    for leaf in jax.tree.leaves(particles):
        check_distinguishable("particles", leaf)
    if not hasattr(particles, "shape"):
        return jax.tree.map(_as_floats, particles)
    # Other shapes and empty arrays are rejected later, with error messages of their own.
    is_matrix = jnp.ndim(particles) == 2 and 0 not in jnp.shape(particles)
    return as_samples(particles=particles)[0] if is_matrix else particles


def weighted_particles(
    particles: Numbers | PyTree[Numbers], weights: Numbers
) -> tuple[PyTree[Array], Float[Array, " n"]]:
    """`as_particles`, with finite numbers in those of weight zero, and their masses.

    Raises:
        ValueError: for invalid particles, and as `checked_masses`.
    """
    particles = as_particles(particles)
    dtype = jnp.result_type(*jax.tree.leaves(particles))
    masses = checked_masses(weights, num_particles(particles), dtype)
    return jax.tree.map(lambda leaf: with_finite_padding(leaf, masses), particles), masses


def _as_floats(leaf: Numbers) -> Array:
    return jnp.asarray(as_numbers("particles", leaf))


def _is_table(value: object) -> bool:
    """Whether the value is text, a frame, or a list of numbers rather than of arrays."""
    if isinstance(value, (str, bytes)) or hasattr(value, "to_numpy"):
        return True
    if isinstance(value, np.ndarray):
        return value.dtype != np.float64 and not jnp.issubdtype(value.dtype, jnp.floating)
    is_list = isinstance(value, (list, tuple)) and not hasattr(value, "_fields")
    leaves = jax.tree.leaves(value) if is_list else []
    return bool(leaves) and all(isinstance(leaf, (bool, int, float, str)) for leaf in leaves)


# Rows of which the spread of the samples is computed.
_ROWS_OF_SPREAD = 63


class TargetRows(NamedTuple):
    """Particles and samples as rows about a common origin, in the particles' dtype.

    Attributes:
        x: the particles.
        y: the samples.
        resolved: whether the particles' dtype can distinguish the samples at their location.
    """

    x: Float[Array, "n d"]
    y: Float[Array, "m d"]
    resolved: Bool[Array, ""]


def target_rows(
    samples: PyTree[Numbers], particles: PyTree[Array], *, centered: bool = True
) -> TargetRows:
    """Both as rows; samples of higher precision are centred before they are rounded.

    Without `centered` both stay where they are, for functions that depend on it, and samples that
    the particles' dtype rounds together are not resolved.

    A translation-invariant discrepancy then compares the original samples with the particles as
    they are. But particles in float32 at an offset of 10⁸ lie on a grid of 8, and cannot come
    nearer to the target. `resolved` is then False.

    Raises:
        ValueError: if samples and particles differ in their number of features, or an array of
            samples is empty or not a matrix.
    """
    particles = as_particles(particles)
    num_particles(particles)
    x, _ = ravel_particles(particles)
    eps = float(jnp.finfo(x.dtype).eps)
    if not hasattr(samples, "shape"):
        y = ravel_particles(samples)[0].astype(x.dtype)
        check_same_features(y, x, ("samples", "particles"))
        return TargetRows(x, y, jnp.ones((), bool))
    center, y = centered_samples(samples=samples)
    check_same_features(y, x, ("samples", "particles"))
    # The centre in two parts: the second is the rounding error of the first in the dtype.
    origin, rest = center.high, center.low
    # Samples of a wider dtype lose their remaining offset before they are rounded.
    wide = y.dtype
    if jnp.finfo(wide).bits > jnp.finfo(x.dtype).bits:
        left = common_center(y)
        whole = origin.astype(wide) + rest.astype(wide) + left
        origin = whole.astype(x.dtype)
        y, rest = y - left, whole - origin.astype(wide)
    y = y.astype(x.dtype)
    # At the origin the particles' grid has the width ε |origin|. If it is coarser than the samples'
    # spread, particles cannot move. NaN counts as resolved, and is flagged elsewhere.
    spread = _spread(y)
    grid = eps * jnp.abs(origin.astype(x.dtype))
    # Where all samples are alike there is one place to reach: half the grid away, or nearer.
    apart = 2 * jnp.abs(rest.astype(x.dtype) + y[0])
    grid = jnp.where(jnp.all(y == y[0], axis=0), apart, grid)
    resolved = (spread == 0) | ~(jnp.max(grid) > spread / 2)
    if not centered:
        return TargetRows(x, (y + rest.astype(x.dtype)) + origin.astype(x.dtype), resolved)
    # The high part first: near it the difference is exact, and the low part then still counts.
    return TargetRows((x - origin.astype(x.dtype)) - rest.astype(x.dtype), y, resolved)


def _spread(y: Float[Array, "m d"]) -> Float[Array, ""]:
    """The largest deviation of a coordinate from the centre, of all rows but one in ten.

    A row far from all others spreads none of them. If nine in ten are equal, of all rows.
    """
    deviations = jnp.max(jnp.abs(y - common_center(y)), axis=1)
    # Of many rows some suffice, as for the centre: sorting all would take longer than a step.
    some = jnp.sort(deviations[spread_places(len(y), _ROWS_OF_SPREAD)])
    usual = some[len(some) - 1 - len(some) // 10]
    return jnp.where(usual > 0, usual, jnp.max(deviations))


def flagged(tree: T, rows: TargetRows) -> T:
    """Numbers that depend on the rows, NaN if the particles' dtype cannot resolve the target."""
    return jax.tree.map(lambda leaf: nan_unless(rows.resolved, leaf), tree)
