"""Progress of the particles: Stein discrepancy, spread, distinct particles."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from divjax.core.checks import check_same_features
from divjax.core.pairwise import (
    coincidence_distances,
    common_center,
    living_rows,
    map_row_blocks,
)
from divjax.core.pytrees import as_pytree, pytree, ravel_particles
from divjax.core.samples import Numbers, as_numbers, centered_samples, loses_digits
from divjax.core.simplex import with_finite_padding
from divjax.core.types import summary
from divjax.discrepancy.stein import kernel_stein
from divjax.flows.mass import masses_or_equal, weighted_sum
from divjax.flows.objectives.targets import (
    TargetRows,
    as_particles,
    as_table,
    flagged,
    target_rows,
)
from divjax.flows.state import FlowState
from divjax.kernels.protocols import Kernel
from divjax.kernels.radial import InverseMultiquadric

__all__ = [
    "Diagnostics",
    "ParticleDiagnostics",
    "distinct_particles",
    "relative_spread",
]


def distinct_particles(
    particles: Float[Numbers, "n d"], weights: Float[Numbers, " n"] | None = None
) -> Int[Array, ""]:
    """The number of distinct particles: those that coincide count once.

    Particles coincide if all their coordinates agree up to rounding, a few units in the last place
    of the coordinate's size. Under every velocity except `Langevin` they then stay together.
    O(n²) time for each feature, blockwise memory.

    Args:
        particles: the particles.
        weights: their masses, summing to one. Particles of mass zero do not count. All count by
            default.

    Returns:
        The count, or −1 for invalid traced masses and for NaN in a particle that counts, as an
        integer cannot be NaN.

    Raises:
        ValueError: if `particles` is not a matrix of numbers, or concrete masses are invalid.

    Example:
        >>> import jax.numpy as jnp
        >>> int(distinct_particles(jnp.array([[0.3, 1.0], [0.3, 1.0], [0.3, 2.0]])))
        2
    """
    _, particles = centered_samples({"particles": weights}, particles=particles)
    masses = masses_or_equal(weights, particles)
    # Masses that round to zero in the particles' dtype count.
    alive = masses > 0 if weights is None else jnp.asarray(as_numbers("weights", weights) > 0)
    return _num_distinct(particles, alive, ~jnp.isnan(masses).any())


@jax.jit
def _num_distinct(
    particles: Float[Array, "n d"], alive: Bool[Array, " n"], is_valid: Bool[Array, ""]
) -> Int[Array, ""]:
    n, d = particles.shape
    is_valid &= ~jnp.any(alive[:, None] & jnp.isnan(particles))
    # Zero-weight particles may hold NaN, which must not reach the tolerance or a comparison.
    x = living_rows(particles, alive.astype(particles.dtype))
    index = jnp.arange(n)
    tolerance = coincidence_distances(x, float(jnp.finfo(x.dtype).eps))

    def coincides_with_earlier(rows: Float[Array, "b d"], row: Int[Array, " b"]) -> Array:
        # One feature at a time: memory for a block of pairs, not times d.
        def agree(feature: Array, so_far: Array) -> Array:
            return so_far & (jnp.abs(rows[:, feature, None] - x[:, feature]) <= tolerance[feature])

        # Of each coincident group, only the weighted particle of least index is not a repetition.
        earlier = (index < row[:, None]) & alive
        return jnp.any(jax.lax.fori_loop(0, d, agree, earlier), axis=1)

    repeated = map_row_blocks(coincides_with_earlier, n, x, index)
    return jnp.where(is_valid, jnp.sum(alive & ~repeated), -1)


def relative_spread(
    particles: Float[Numbers, "n d"],
    samples: Float[Numbers, "m d"],
    weights: Float[Numbers, " n"] | None = None,
) -> Float[Array, ""]:
    """The particles' standard deviation relative to the target's, √(tr Cov(q) / tr Cov(p)).

    Below one if particles collapse, as SVGD's do in many dimensions and MMD's without noise. NaN if
    the particles' precision in JAX is too low to distinguish the samples.

    Args:
        particles: the particles. NumPy's float64 is centred in float64, as are the samples.
        samples: draws from the target.
        weights: the particles' masses, summing to one; equal by default.

    Raises:
        ValueError: if samples and particles differ in their number of features, or concrete masses
            are invalid. Invalid traced ones give NaN.

    Example:
        >>> import jax.numpy as jnp
        >>> float(relative_spread(jnp.array([[0.0], [1.0]]), jnp.array([[5.0], [9.0]])))
        0.25
    """
    rows = _spread_rows(particles, samples, weights)
    return _spread_of_rows(rows, masses_or_equal(weights, rows.x))


@jax.jit
def _spread_of_rows(rows: TargetRows, weights: Float[Array, " n"]) -> Float[Array, ""]:
    """`relative_spread` of rows in one dtype."""
    # Squares of coordinates far from zero would cancel in a variance, so each side is centred
    # first.
    x = with_finite_padding(rows.x - common_center(rows.x, weights > 0), weights)
    y = rows.y - common_center(rows.y)
    # In units of the target's largest deviation, so that squares neither over- nor underflow.
    largest = jnp.max(jnp.abs(y))
    unit = jnp.where(largest == 0, 1, largest)
    x, y = x / unit, y / unit
    # The subtracted centres are medians.
    variance = weighted_sum(weights, jnp.sum((x - weighted_sum(weights, x)) ** 2, axis=1))
    of_samples = jnp.mean(jnp.sum((y - jnp.mean(y, axis=0)) ** 2, axis=1))
    return flagged(jnp.sqrt(variance / of_samples), rows)


def _spread_rows(
    particles: Numbers | PyTree[Numbers], samples: Numbers | PyTree[Array], weights: Numbers
) -> TargetRows:
    """Particles and samples as rows, each centred by itself if NumPy holds more digits than JAX."""
    tables = as_table("particles", particles), as_table("samples", samples)
    # Separate centres help only a matrix of particles that NumPy holds with more digits than JAX.
    if not all(hasattr(table, "shape") and jnp.ndim(table) == 2 for table in tables):
        return target_rows(tables[1], as_particles(tables[0]))
    if not loses_digits(tables[0]):
        return target_rows(tables[1], as_particles(tables[0]))
    # Standard deviations do not depend on the origin: each side has its own, near its rows.
    _, x = centered_samples({"particles": weights}, particles=particles)
    _, y = centered_samples(samples=samples)
    check_same_features(y, x, ("samples", "particles"))
    y = (y - common_center(y)).astype(x.dtype)
    return TargetRows(x, y, jnp.ones((), bool))


class ParticleDiagnostics(NamedTuple):
    """The values that `Diagnostics` records, None for those not asked for.

    Attributes:
        distinct: `distinct_particles`.
        spread: `relative_spread` to the samples.
        stein_discrepancy: `discrepancy.kernel_stein` to the density.
    """

    distinct: Int[Array, ""]
    spread: Float[Array, ""] | None
    stein_discrepancy: Float[Array, ""] | None

    __repr__ = summary


@pytree
class Diagnostics:
    """The statistics to record along a flow: `flow.run(..., observe=Diagnostics(...))`.

    Attributes:
        samples: draws from a target, for `relative_spread`; not recorded if None.
        log_prob: a target's log-density up to a constant, of one particle, for
            `discrepancy.kernel_stein`; not recorded if None.
        kernel: the kernel of the Stein discrepancy. A bandwidth rule is evaluated at each step's
            particles; give a number to compare steps.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from divjax import flows
        >>> target = flows.KL(lambda z: -0.5 * jnp.sum(z**2))
        >>> flow = flows.Flow((target,), velocity=flows.SVGD(), optimizer=optax.sgd(0.1))
        >>> result = flow.run(
        ...     jax.random.key(0), 3 + jax.random.normal(jax.random.key(1), (20, 2)),
        ...     num_steps=20, record_every=10,
        ...     observe=flows.Diagnostics(log_prob=lambda z: -0.5 * jnp.sum(z**2)))
        >>> seen = result.history.observed
        >>> seen.distinct.tolist(), bool(seen.stein_discrepancy[1] < seen.stein_discrepancy[0])
        ([20, 20], True)
    """

    samples: PyTree[Array] | None = None
    log_prob: Callable[..., Array] | None = None
    kernel: Kernel = dataclasses.field(default_factory=lambda: InverseMultiquadric(bandwidth=1.0))

    def __post_init__(self):
        object.__setattr__(self, "samples", as_table("samples", self.samples))
        if self.log_prob is not None:
            object.__setattr__(self, "log_prob", as_pytree(self.log_prob))

    def __call__(self, state: FlowState) -> ParticleDiagnostics:
        """The diagnostics at a flow's state."""
        x, unravel = ravel_particles(state.particles)
        weights = state.particle_weights
        log_prob, spread, discrepancy = self.log_prob, None, None
        if self.samples is not None:
            spread = relative_spread(state.particles, self.samples, weights)
        if log_prob is not None:
            # The discrepancy passes rows, log_prob takes a particle in the structure of the flow's.
            of_row = lambda row: log_prob(jax.tree.map(lambda leaf: leaf[0], unravel(row[None])))
            discrepancy = kernel_stein(x, log_prob=of_row, weights=weights, kernel=self.kernel)
        return ParticleDiagnostics(distinct_particles(x, weights), spread, discrepancy)
