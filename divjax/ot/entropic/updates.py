"""One iteration of Sinkhorn's algorithm, in three implementations with the same result.

Potentials are f + ε log u and g + ε log v, with scalings u and v relative to base potentials f and
g. With K = exp((f ⊕ g − C)/ε) at the base,

    scaled        two matrix–vector products with K, which is materialised once for many iterations
    blocked       blocks of rows of K at the latest potentials, each computed once per iteration
    logarithmic   log-sum-exp at the latest potentials: two exponentials per pair, always in range

Between relaxed marginals, a constant moved from g to f leaves the plan unchanged, and plain
iterations approach the best constant only at a rate of 1 − O(ε/ρ). Updates therefore maximise the
dual objective in one potential and that constant jointly, in closed form: they are translation
invariant (Séjourné, Vialard, Peyré 2022, section 3).

If both sides are one sample, f = g, and each update moves them half-way (Feydy et al. 2019,
section 3.1).
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PyTree

from divjax.core.numerics import if_needed
from divjax.core.padding import pad_rows
from divjax.core.pair_reductions import LOG_SUM
from divjax.core.sharding import even_size, fold_blocks, mesh_in_use, shared_rows
from divjax.ot.entropic.over_relaxation import Iterate
from divjax.ot.entropic.problem import MatrixPairs, Problem, log_tilted_mass, optimal_shift

__all__ = ["Base", "LogScalings", "Updates", "log_row_sums"]

# The step of the symmetric case. A full step would flip the sign of a constant added to f, and
# oscillate for ever. Half a step removes it.
_HALF = 0.5


class Base(NamedTuple):
    """Potentials that scalings are relative to, and K at them, or () if it is not materialised."""

    f: Float[Array, " n"]
    g: Float[Array, " m"]
    kernel: PyTree[Array]


class LogScalings(NamedTuple):
    """log u, log v, log K(b v) and log Kᵀ(a u): P has marginals a u K(b v) and b v Kᵀ(a u)."""

    log_u: Float[Array, " n"]
    log_v: Float[Array, " m"]
    log_rows: Float[Array, " n"]
    log_columns: Float[Array, " m"]


@dataclasses.dataclass(frozen=True)
class Updates:
    """The iterations of one problem, with costs in memory if it is dense.

    Attributes:
        problem: the centred problem, with costs in memory or on demand.
        symmetric: whether both sides are one sample.
    """

    problem: Problem
    symmetric: bool

    def base(self, f: Array, g: Array) -> Base:
        """Base potentials, with K."""
        problem = self.problem
        kernel = problem.exponentials(problem.pairs.rows, f, g) if problem.dense else ()
        return Base(f, g, kernel)

    def start(self, base: Base) -> LogScalings:
        """Zero log scalings, and the initial column sums, without row sums yet."""
        f, g, kernel = base
        rows = jnp.zeros_like(f)
        if self.problem.dense:
            columns = jnp.log(self.problem.a @ kernel)
        else:
            columns = jnp.log(self.problem.transposed.row_sums(g, f, self.problem.a))
        # The sum of a column far from all rows may have underflowed.
        columns = if_needed(
            ~jnp.isfinite(columns).all(),
            lambda _: log_row_sums(self.problem.transposed, g, f),
            columns,
        )
        # For one sample with itself the sums of rows are those of columns.
        return LogScalings(rows, jnp.zeros_like(g), columns if self.symmetric else rows, columns)

    def fast(self, base: Base, s: LogScalings, omega: ArrayLike) -> LogScalings:
        """`scaled`, or `blocked` if K is not materialised."""
        return self.scaled(base, s, omega) if self.problem.dense else self.blocked(base, s, omega)

    def scaled(self, base: Base, s: LogScalings, omega: ArrayLike) -> LogScalings:
        """One iteration by two products with K, by one in the symmetric case."""
        a, b, kernel = self.problem.a, self.problem.b, base.kernel
        if self.symmetric:
            return self._half_way(base, s, lambda log_u: jnp.log(kernel @ (a * jnp.exp(log_u))))
        log_v = self._relax_columns(base, s, omega)
        # Columns are updated by the last iteration's sums. The two products below are at the new v
        # and the new u, and also give this plan's marginals, from which the error is computed.
        rows = jnp.log(kernel @ (b * jnp.exp(log_v)))
        log_u = self._relax_rows(base, s, rows, log_v, omega)
        columns = jnp.log((a * jnp.exp(log_u)) @ kernel)
        return self._recentered(base, LogScalings(log_u, log_v, rows, columns))

    def blocked(self, base: Base, s: LogScalings, omega: ArrayLike) -> LogScalings:
        """One iteration by blocks of K at the latest potentials, each computed once."""
        problem, epsilon, b = self.problem, self.problem.epsilon, self.problem.b
        if self.symmetric:
            latest = lambda log_u: base.f + epsilon * log_u
            # Sums at the latest potentials already contain u, as a factor of a row.
            return self._half_way(
                base,
                s,
                lambda u: jnp.log(problem.row_sums(latest(u), latest(u), b)) - u,
            )
        log_v = self._relax_columns(base, s, omega)
        g = base.g + epsilon * log_v

        # On several devices each has its share of the columns, and all have one block of rows.
        shared, (b, g) = shared_rows(problem.pairs), shared_rows((b, g))

        def block(rows):
            pairs, a, f, log_u = rows
            kernel = problem.exponentials(shared.block(pairs), f + epsilon * log_u, g)
            # The block is at the old u. For the columns it is multiplied by the ratio of new to old
            # u, so that its exponentials are computed once for both halves.
            log_sums = jnp.log(kernel @ b) - log_u
            new = _relax(log_u, self._target(0, f, log_sums), omega)
            return (a * jnp.exp(new - log_u)) @ kernel, (new, log_sums)

        rows = problem.pairs.rows, problem.a, base.f, s.log_u
        sums, (log_u, log_sums) = _sum_blocks(block, jnp.zeros_like(b), rows, problem)
        # The correction, one number for all rows, requires all blocks.
        target = self._target(0, base.f, log_sums)
        shift = omega * self.correction(0, base.f, target, g)
        # The sums contain the factor v, and u without the shift, which is common to all rows.
        columns = jnp.log(sums) - log_v + shift
        return self._recentered(base, LogScalings(log_u + shift, log_v, log_sums, columns))

    def logarithmic(self, base: Base, s: LogScalings, omega: ArrayLike) -> LogScalings:
        """One iteration by log-sum-exp, accurate whenever the result is finite."""
        problem, epsilon = self.problem, self.problem.epsilon
        if self.symmetric:
            latest = lambda log_u: base.f + epsilon * log_u
            return self._half_way(
                base, s, lambda u: log_row_sums(problem, latest(u), latest(u)) - u
            )
        log_v = self._relax_columns(base, s, omega)
        # The halves of `scaled`, with sums at complete potentials, so that neither K can underflow
        # nor a scaling overflow.
        f, g = base.f + epsilon * s.log_u, base.g + epsilon * log_v
        rows = log_row_sums(problem, f, g) - s.log_u
        log_u = self._relax_rows(base, s, rows, log_v, omega)
        f = base.f + epsilon * log_u
        columns = log_row_sums(problem.transposed, g, f) - log_v
        return self._recentered(base, LogScalings(log_u, log_v, rows, columns))

    def error(self, base: Base, s: LogScalings) -> Float[Array, ""]:
        """Σ |P1 − a exp(−f/ρ)| over both sides, ρ = ∞ for an exact marginal."""

        def side(index, weights, base, scaling, sums):
            rho = self.problem.penalties[index]
            potential = base + self.problem.epsilon * scaling
            wanted = 1 if rho is None else jnp.exp(-potential / rho)
            # P1 = a u K(b v), from available scalings: the error requires no pass over pairs. A row
            # of weight zero may have infinite sums, and zero times infinity is NaN.
            off = jnp.abs(jnp.exp(scaling + sums) - wanted)
            return jnp.sum(jnp.where(weights > 0, weights * off, 0))

        error = side(0, self.problem.a, base.f, s.log_u, s.log_rows)
        if self.symmetric:
            return error
        return error + side(1, self.problem.b, base.g, s.log_v, s.log_columns)

    def potentials(self, base: Base, s: LogScalings) -> tuple[Array, Array]:
        """The potentials f and g for given scalings."""
        epsilon = self.problem.epsilon
        return base.f + epsilon * s.log_u, base.g + epsilon * s.log_v

    def to_iterate(self, base: Base, s: LogScalings, error: Array) -> Iterate:
        """The scalings as an `Iterate`: potentials and sums that do not depend on the base."""
        epsilon = self.problem.epsilon
        log_rows, log_columns = s.log_rows - base.f / epsilon, s.log_columns - base.g / epsilon
        return Iterate(*self.potentials(base, s), log_rows, log_columns, error)

    def from_iterate(self, base: Base, iterate: Iterate) -> LogScalings:
        """The inverse of `iterate`: scalings relative to another base."""
        epsilon = self.problem.epsilon
        return LogScalings(
            (iterate.f - base.f) / epsilon,
            (iterate.g - base.g) / epsilon,
            iterate.log_rows + base.f / epsilon,
            iterate.log_columns + base.g / epsilon,
        )

    def correction(
        self, side: int, base: Array, target: Array, other: Array
    ) -> Float[Array, ""] | float:
        """The change of one side's target by the best constant moved between the sides.

        f maximises sup_t D(f + t, g − t): with f̂ the soft transform of g, κ = ρ_a/(ρ_a + ε),

            f = f̂ − ε κ/ρ_a · log(⟨a, exp(−f̂/ρ_a)⟩ / ⟨b, exp(−g/ρ_b)⟩) / (1/ρ_b + κ/ρ_a).

        Zero if this side's marginal is exact. ρ_b = ∞ is a limit in which the plan has b's mass.

        Args:
            side: 0 for rows.
            base: the potential that `target` is relative to.
            target: f̂, as a scaling.
            other: the other side's potential.
        """
        problem = self.problem
        if problem.balanced or self.symmetric:
            return 0.0
        weights = problem.a, problem.b
        inverse, inverse_other = (
            problem.inverse_penalties[side],
            problem.inverse_penalties[1 - side],
        )
        # The logarithm of the formula's ratio of masses. This side's mass is that of f̂, before
        # over-relaxation.
        penalty, penalty_other = problem.penalties[side], problem.penalties[1 - side]
        own = log_tilted_mass(weights[side], base + problem.epsilon * target, penalty)
        ratio = own - log_tilted_mass(weights[1 - side], other, penalty_other)
        # κ/ρ_a, and its sum with 1/ρ_b. Traced infinite penalties make both zero: all constants are
        # equally good, and none is added.
        slope = problem.damping[side] * inverse
        total = inverse_other + slope
        return -slope * ratio / jnp.where(total > 0, total, 1)

    def _target(self, side: int, base: Array, sums: Array) -> Array:
        """The scaling for which a side's marginal is optimal: u = 1/(K b v) if balanced."""
        rho = self.problem.penalties[side]
        if rho is None:
            return -sums
        # The damped transform κ (f − ε log Σ) less the base f, in units of ε. As κ − 1 = −κ ε/ρ,
        # the factor of f involves no subtraction.
        kappa = self.problem.damping[side]
        return -kappa * sums - kappa / rho * base

    def _relax_rows(
        self, base: Base, s: LogScalings, rows: Array, log_v: Array, omega: ArrayLike
    ) -> Array:
        target = self._target(0, base.f, rows)
        g = base.g + self.problem.epsilon * log_v
        return _relax(s.log_u, target + self.correction(0, base.f, target, g), omega)

    def _relax_columns(self, base: Base, s: LogScalings, omega: ArrayLike) -> Array:
        target = self._target(1, base.g, s.log_columns)
        f = base.f + self.problem.epsilon * s.log_u
        return _relax(s.log_v, target + self.correction(1, base.g, target, f), omega)

    def _half_way(
        self, base: Base, s: LogScalings, log_sums: Callable[[Array], Array]
    ) -> LogScalings:
        """An update of the symmetric case, with the logarithm of K(b u) as a function of log u."""
        log_u = self._relax_rows(base, s, s.log_rows, s.log_v, _HALF)
        rows = log_sums(log_u)
        return LogScalings(log_u, log_u, rows, rows)

    def _recentered(self, base: Base, s: LogScalings) -> LogScalings:
        """The same plan with the best potentials."""
        if self.problem.balanced or self.symmetric:
            return s
        t = optimal_shift(self.problem, *self.potentials(base, s)) / self.problem.epsilon
        # K(b v) has the factor v, and Kᵀ(a u) the factor u: the sums move with the other side's
        # scaling, and the plan is unchanged.
        return LogScalings(s.log_u + t, s.log_v - t, s.log_rows - t, s.log_columns + t)


def _relax(scaling: Array, target: Array, omega: ArrayLike) -> Array:
    return scaling + omega * (target - scaling)


def log_row_sums(
    problem: Problem, f: Float[Array, " n"], g: Float[Array, " m"]
) -> Float[Array, " n"]:
    """The logarithm of Σ_j b_j E_ij, stable for sums of any size."""
    g = g + problem.epsilon * jnp.log(problem.b)

    def block(costs, f, g):
        exponent = (f[:, None] + g - costs) / problem.epsilon
        # Subtracting the maximum avoids overflow. A row of −∞ alone has no finite maximum: −∞ less
        # itself would be NaN.
        largest = jnp.max(exponent, axis=1)
        largest = jnp.where(jnp.isfinite(largest), largest, 0)
        return largest + jnp.log(jnp.sum(jnp.exp(exponent - largest[:, None]), axis=1))

    return problem.map_rows(block, f, columns=(g,), reduction=LOG_SUM)


def _sum_blocks(
    function: Callable[[PyTree[Array]], tuple[Array, PyTree[Array]]],
    zero: Array,
    rows: tuple[Array, ...],
    problem: Problem,
) -> tuple[Array, PyTree[Array]]:
    """The sum of a function over blocks of rows, and its results for all rows."""
    n, size, mesh = rows[0].shape[0], problem.block_rows, mesh_in_use()
    if mesh is not None and n % mesh.size == 0:
        # A device computes its share of a block's columns, hence as many rows of every share. Rows
        # of a given matrix are received with all columns.
        most = size // mesh.size if isinstance(problem.pairs, MatrixPairs) else size
        return fold_blocks(function, jnp.add, zero, rows, even_size(n // mesh.size, most))
    # Blocks are of one size, the last padded with zeros, whose results are cut off.
    count = math.ceil(n / size)
    padded = tuple(pad_rows(row, count * size) for row in rows)
    total, results = fold_blocks(function, jnp.add, zero, padded, size)
    return total, jax.tree.map(lambda found: found[:n], results)
