"""Sinkhorn's iterations: products with a kernel matrix that contains the current potentials.

One iteration in the log domain, g ← T_b(f) and f ← T_a(g), takes two exponentials per pair. With
K = exp((f ⊕ g − C)/ε) at earlier potentials it is two matrix–vector products, and later potentials
are f + ε log u and g + ε log v (Schmitzer 2019, section 3.2). The first K is at the transforms for
ε = 0, for which it is in range. Iterations are checked in chunks: a chunk that left the range of
numbers is repeated in the log domain. If K does not fit in memory, each of its blocks is computed
once per iteration and used for both halves.

Between relaxed marginals, a constant moved from g to f leaves the plan unchanged, and plain
iterations approach the best constant only at a rate of 1 − O(ε/ρ). Updates therefore maximise the
dual objective in one potential and that constant jointly, in closed form: they are translation
invariant (Séjourné, Vialard, Peyré 2022, section 3).

Updates are over-relaxed, log u ← log u + ω (target − log u), with ω chosen by `over_relaxation`.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int

from divjax.core.numerics import if_needed
from divjax.core.pytrees import select
from divjax.ot.entropic.options import Sinkhorn
from divjax.ot.entropic.over_relaxation import Best, Pace, adapt, start_pace
from divjax.ot.entropic.problem import (
    MatrixPairs,
    Problem,
    log_tilted_mass,
    optimal_shift,
    recentered,
)
from divjax.ot.entropic.schedules import Annealing, largest_cost

__all__ = ["Solution", "iterate"]

# Iterations between checks.
CHUNK = 10
# A chunk that moves both potentials by more than this share of the exponent range, in units of ε,
# may have underflowed in K. From half of it on, the potentials are absorbed into K.
_TOO_FAR = 0.4
# The error, as a share of the mass, below which its rate is taken as asymptotic.
_NEAR = 0.2


class Solution(NamedTuple):
    """Potentials, the L1 error of their plan's marginals, ΣP − Σa Σb, and the iterations taken.

    `errors` are the errors after each iteration, NaN for iterations not made, or None.
    """

    f: Float[Array, " n"]
    g: Float[Array, " m"]
    error: Float[Array, ""]
    mass_defect: Float[Array, ""]
    num_iterations: Int[Array, ""]
    errors: Float[Array, " max_iterations"] | None


class _LogScalings(NamedTuple):
    """log u, log v, log K(b v) and log Kᵀ(a u): P has marginals a u K(b v) and b v Kᵀ(a u)."""

    log_u: Float[Array, " n"]
    log_v: Float[Array, " m"]
    log_rows: Float[Array, " n"]
    log_columns: Float[Array, " m"]


class _State(NamedTuple):
    f: Float[Array, " n"]
    g: Float[Array, " m"]
    scalings: _LogScalings
    kernel: Any
    error: Float[Array, ""]
    pace: Pace
    num_iterations: Int[Array, ""]
    errors: Float[Array, " max_iterations"] | None


def _log_row_sums(
    problem: Problem, f: Float[Array, " n"], g: Float[Array, " m"]
) -> Float[Array, " n"]:
    """The logarithm of Σ_j b_j E_ij, stable for sums of any size."""
    g = g + problem.epsilon * jnp.log(problem.b)

    def block(costs, f):
        exponent = (f[:, None] + g - costs) / problem.epsilon
        # Subtracting the maximum avoids overflow. A row of −∞ alone has no finite maximum: −∞ less
        # itself would be NaN.
        largest = jnp.max(exponent, axis=1)
        largest = jnp.where(jnp.isfinite(largest), largest, 0)
        return largest + jnp.log(jnp.sum(jnp.exp(exponent - largest[:, None]), axis=1))

    return problem.map_rows(block, f)


def _cold_start(problem: Problem, symmetric: bool) -> tuple[Array, Array]:
    """g_j = min_i C_ij and f_i = min_j (C_ij − g_j), the transforms at ε = 0, from f = 0.

    Every row and every column of f ⊕ g − C then has a zero as its maximum, so that K neither
    overflows nor has an empty row or column. In the symmetric case the diagonal of K is one anyway.
    """
    if symmetric:
        return jnp.zeros_like(problem.a), jnp.zeros_like(problem.b)
    g = problem.transposed.map_rows(lambda costs: jnp.min(costs, axis=1))
    return problem.map_rows(lambda costs: jnp.min(costs - g, axis=1)), g


def _warm_start(
    problem: Problem, init: tuple[Array, Array], symmetric: bool
) -> tuple[Array, Array]:
    """The given potentials, or a cold start if they are not finite, or rounded by more than ε."""
    f, g = init
    size = jnp.maximum(jnp.max(jnp.abs(f)), jnp.max(jnp.abs(g)))
    useful = size * jnp.finfo(f.dtype).eps < problem.epsilon
    return if_needed(~useful, lambda _: _cold_start(problem, symmetric), init)


class _Iteration:
    """Three implementations of one iteration, on scalings relative to base potentials f and g."""

    def __init__(self, problem: Problem, symmetric: bool, omega: ArrayLike | None):
        self.problem, self.symmetric, self.omega = problem, symmetric, omega

    def target(self, side: int, base: Array, sums: Array) -> Array:
        """The scaling for which a side's marginal is optimal: u = 1/(K b v) if balanced."""
        rho = self.problem.penalties[side]
        if rho is None:
            return -sums
        # The damped transform κ (f − ε log Σ) less the base f, in units of ε. As κ − 1 = −κ ε/ρ,
        # the factor of f involves no subtraction.
        kappa = self.problem.damping[side]
        return -kappa * sums - kappa / rho * base

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
        own = log_tilted_mass(weights[side], base + problem.epsilon * target, inverse)
        ratio = own - log_tilted_mass(weights[1 - side], other, inverse_other)
        # κ/ρ_a, and its sum with 1/ρ_b. Traced infinite penalties make both zero: all constants are
        # equally good, and none is added.
        slope = problem.damping[side] * inverse
        total = inverse_other + slope
        return -slope * ratio / jnp.where(total > 0, total, 1)

    def potentials(self, state: _State, s: _LogScalings) -> tuple[Array, Array]:
        """The potentials f and g for given scalings."""
        epsilon = self.problem.epsilon
        return state.f + epsilon * s.log_u, state.g + epsilon * s.log_v

    def recentered(self, state: _State, s: _LogScalings) -> _LogScalings:
        """The same plan with the best potentials."""
        if self.problem.balanced or self.symmetric:
            return s
        t = optimal_shift(self.problem, *self.potentials(state, s)) / self.problem.epsilon
        # K(b v) has the factor v, and Kᵀ(a u) the factor u: the sums move with the other side's
        # scaling, and the plan is unchanged.
        return _LogScalings(s.log_u + t, s.log_v - t, s.log_rows - t, s.log_columns + t)

    def relax(self, scaling: Array, target: Array, omega: ArrayLike) -> Array:
        return scaling + omega * (target - scaling)

    def relax_rows(
        self, state: _State, s: _LogScalings, rows: Array, log_v: Array, omega: ArrayLike
    ) -> Array:
        target = self.target(0, state.f, rows)
        g = state.g + self.problem.epsilon * log_v
        return self.relax(s.log_u, target + self.correction(0, state.f, target, g), omega)

    def relax_columns(self, state: _State, s: _LogScalings, omega: ArrayLike) -> Array:
        target = self.target(1, state.g, s.log_columns)
        f = state.f + self.problem.epsilon * s.log_u
        return self.relax(s.log_v, target + self.correction(1, state.g, target, f), omega)

    def scaled(self, state: _State, s: _LogScalings, omega: ArrayLike) -> _LogScalings:
        """By two products with K, or by one in the symmetric case, where f and g move half-way."""
        a, b, kernel = self.problem.a, self.problem.b, state.kernel
        if self.symmetric:
            # A full step would flip the sign of a constant added to f, and oscillate for ever. Half
            # a step removes it.
            log_u = self.relax_rows(state, s, s.log_rows, s.log_v, 0.5)
            rows = jnp.log(kernel @ (a * jnp.exp(log_u)))
            return _LogScalings(log_u, log_u, rows, rows)
        log_v = self.relax_columns(state, s, omega)
        # Columns are updated by the last iteration's sums. The two products below are at the new v
        # and the new u, and also give this plan's marginals, from which the error is computed.
        rows = jnp.log(kernel @ (b * jnp.exp(log_v)))
        log_u = self.relax_rows(state, s, rows, log_v, omega)
        columns = jnp.log((a * jnp.exp(log_u)) @ kernel)
        return self.recentered(state, _LogScalings(log_u, log_v, rows, columns))

    def blocked(self, state: _State, s: _LogScalings, omega: ArrayLike) -> _LogScalings:
        """By blocks of rows of K at the latest potentials, each computed once and used twice."""
        problem = self.problem
        epsilon, b = problem.epsilon, problem.b
        if self.symmetric:
            log_u = self.relax_rows(state, s, s.log_rows, s.log_v, 0.5)
            # Sums at the latest potentials already contain u, as a factor of a row.
            latest = state.f + epsilon * log_u
            rows = jnp.log(problem.row_sums(latest, latest, b)) - log_u
            return _LogScalings(log_u, log_u, rows, rows)
        log_v = self.relax_columns(state, s, omega)
        g = state.g + epsilon * log_v

        def block(sums, rows):
            pairs, a, f, log_u = rows
            kernel = problem.exponentials(problem.pairs.block(pairs), f + epsilon * log_u, g)
            # The block is at the old u. For the columns it is multiplied by the ratio of new to old
            # u, so that its exponentials are computed once for both halves.
            log_sums = jnp.log(kernel @ b) - log_u
            new = self.relax(log_u, self.target(0, f, log_sums), omega)
            return sums + (a * jnp.exp(new - log_u)) @ kernel, (new, log_sums)

        rows = problem.pairs.rows, problem.a, state.f, s.log_u
        sums, (log_u, log_sums) = _scan_blocks(block, jnp.zeros_like(b), rows, problem.block_rows)
        # The correction, one number for all rows, requires all blocks.
        target = self.target(0, state.f, log_sums)
        shift = omega * self.correction(0, state.f, target, g)
        # The sums contain the factor v, and u without the shift, which is common to all rows.
        columns = jnp.log(sums) - log_v + shift
        return self.recentered(state, _LogScalings(log_u + shift, log_v, log_sums, columns))

    def logarithmic(self, state: _State, s: _LogScalings, omega: ArrayLike) -> _LogScalings:
        """By log-sum-exp: accurate whenever the result is a finite number."""
        problem = self.problem
        if self.symmetric:
            log_u = self.relax_rows(state, s, s.log_rows, s.log_v, 0.5)
            latest = state.f + problem.epsilon * log_u
            rows = _log_row_sums(problem, latest, latest) - log_u
            return _LogScalings(log_u, log_u, rows, rows)
        log_v = self.relax_columns(state, s, omega)
        # The halves of `scaled`, with sums at complete potentials, so that neither K can underflow
        # nor a scaling overflow.
        f, g = state.f + problem.epsilon * s.log_u, state.g + problem.epsilon * log_v
        rows = _log_row_sums(problem, f, g) - s.log_u
        log_u = self.relax_rows(state, s, rows, log_v, omega)
        f = state.f + problem.epsilon * log_u
        columns = _log_row_sums(self.problem.transposed, g, f) - log_v
        return self.recentered(state, _LogScalings(log_u, log_v, rows, columns))

    def start(self, f: Array, g: Array, kernel: Any) -> _LogScalings:
        """Zero log scalings, and the initial column sums, without row sums yet."""
        rows = jnp.zeros_like(f)
        if self.problem.dense:
            columns = jnp.log(self.problem.a @ kernel)
        else:
            columns = jnp.log(self.problem.transposed.row_sums(g, f, self.problem.a))
        # The sum of a column far from all rows may have underflowed.
        columns = if_needed(
            ~jnp.isfinite(columns).all(),
            lambda _: _log_row_sums(self.problem.transposed, g, f),
            columns,
        )
        return _LogScalings(rows, jnp.zeros_like(g), columns if self.symmetric else rows, columns)

    def latest(self, f: Array, g: Array, s: _LogScalings, error: Array) -> Best:
        """The potentials and sums that scalings relative to f and g represent."""
        epsilon = self.problem.epsilon
        potentials = f + epsilon * s.log_u, g + epsilon * s.log_v
        return Best(*potentials, s.log_rows - f / epsilon, s.log_columns - g / epsilon, error)

    def step_back(self, state: _State, when: Array) -> _State:
        """Rollback to the best potentials seen, as scalings of the present base."""
        best, epsilon = state.pace.best, self.problem.epsilon
        scalings = _LogScalings(
            (best.f - state.f) / epsilon,
            (best.g - state.g) / epsilon,
            best.log_rows + state.f / epsilon,
            best.log_columns + state.g / epsilon,
        )
        present = state.scalings, state.error
        scalings, error = select(when, (scalings, best.error), present)
        return state._replace(scalings=scalings, error=error)

    def adapt(self, state: _State, rate: Array, lost: Array) -> _State:
        """The next ω, or a rollback."""
        # Far from convergence the error's rate is not yet that of the slowest direction, by which ω
        # is chosen. In a repeated chunk it is that of plain iterations.
        near = state.error <= _NEAR * jnp.sum(self.problem.b)
        latest = self.latest(state.f, state.g, state.scalings, state.error)
        pace, worse = adapt(state.pace, latest, rate, near & ~lost)
        return self.step_back(state._replace(pace=pace), worse)

    def error(self, state: _State, s: _LogScalings) -> Float[Array, ""]:
        """Σ |P1 − a exp(−f/ρ)| over both sides, ρ = ∞ for an exact marginal."""

        def side(index, weights, base, scaling, sums):
            rho = self.problem.penalties[index]
            potential = base + self.problem.epsilon * scaling
            wanted = 1 if rho is None else jnp.exp(-potential / rho)
            # P1 = a u K(b v), from available scalings: the error requires no pass over pairs. A row
            # of weight zero may have infinite sums, and zero times infinity is NaN.
            off = jnp.abs(jnp.exp(scaling + sums) - wanted)
            return jnp.sum(jnp.where(weights > 0, weights * off, 0))

        error = side(0, self.problem.a, state.f, s.log_u, s.log_rows)
        if self.symmetric:
            return error
        return error + side(1, self.problem.b, state.g, s.log_v, s.log_columns)


def _scan_blocks(function: Any, carry: Any, rows: Any, size: int) -> Any:
    """A scan over blocks of rows, padded with zeros."""
    n = rows[0].shape[0]
    count = -(-n // size)

    def cut(row):
        padding = [(0, count * size - n)] + [(0, 0)] * (row.ndim - 1)
        return jnp.pad(row, padding).reshape(count, size, *row.shape[1:])

    carry, results = jax.lax.scan(function, carry, jax.tree.map(cut, rows))
    return carry, jax.tree.map(lambda out: out.reshape(count * size, *out.shape[2:])[:n], results)


def _anneal(
    problem: Problem, annealing: Annealing, symmetric: bool, f: Array, g: Array, most: int
) -> tuple[Array, Array, Array]:
    """One iteration in the log domain at each ε above the problem's."""
    dtype = f.dtype
    if annealing.start is None:
        start = largest_cost(problem)
    else:
        start = problem.epsilon * jnp.asarray(annealing.start, dtype)
    decay = jnp.asarray(annealing.decay, dtype)

    def epsilon(count):
        return start * decay ** count.astype(dtype)

    def unfinished(state):
        # A vmapped loop runs until its slowest lane stops; finished lanes are frozen.
        return (epsilon(state[2]) > problem.epsilon) & (state[2] < most)

    def body(state):
        f, g, count = state
        stage = dataclasses.replace(problem, epsilon=epsilon(count))
        if symmetric:
            f = (f + stage.damping[1] * (g - stage.epsilon * _log_row_sums(stage, g, f))) / 2
            return f, f, count + 1
        # Each potential is the other's soft transform plus its best constant. K is not stored, as
        # it is useless at the next ε.
        correction = _Iteration(stage, symmetric, None).correction
        g = stage.damping[1] * (g - stage.epsilon * _log_row_sums(stage.transposed, g, f))
        g = g + stage.epsilon * correction(1, g, jnp.zeros_like(g), f)
        f = stage.damping[0] * (f - stage.epsilon * _log_row_sums(stage, f, g))
        f = f + stage.epsilon * correction(0, f, jnp.zeros_like(f), g)
        return *recentered(stage, f, g), count + 1

    return jax.lax.while_loop(unfinished, body, (f, g, jnp.asarray(0)))


def iterate(
    problem: Problem,
    init: tuple[Float[Array, " n"], Float[Array, " m"]] | None,
    solver: Sinkhorn,
    *,
    symmetric: bool = False,
) -> Solution:
    """Iterate to the tolerance, or for a fixed count.

    Args:
        problem: the problem, with stopped gradients.
        init: potentials to start from.
        solver: the options.
        symmetric: whether both sides are one sample: f = g, by averaged updates (Feydy et al. 2019,
            section 3.1), which converge in few iterations for a positive kernel exp(−c/ε).

    Returns:
        The solution.
    """
    # Shared with other computations on the problem, common subexpressions would keep n × m numbers
    # in memory through all iterations.
    problem, init = jax.lax.optimization_barrier(jax.lax.stop_gradient((problem, init)))
    solver = jax.lax.stop_gradient(solver)
    max_iterations, annealing, over_relaxation = (
        solver.max_iterations,
        solver.annealing,
        solver.over_relaxation,
    )
    tolerance = None
    if solver.tolerance is not None:
        tolerance = problem.mass * jnp.asarray(solver.tolerance, problem.mass.dtype)
    if problem.dense:
        # Costs of points are computed once, and read by all later passes.
        pairs = MatrixPairs(problem.pairs.block(problem.pairs.rows))
        problem = dataclasses.replace(problem, pairs=pairs)
    f, g = (
        _cold_start(problem, symmetric) if init is None else _warm_start(problem, init, symmetric)
    )
    iteration = _Iteration(problem, symmetric, over_relaxation)
    dtype, count = f.dtype, jnp.asarray(0)
    if annealing is not None:
        # One iteration is reserved for an error at the problem's own ε.
        f, g, count = _anneal(problem, annealing, symmetric, f, g, max_iterations - 1)
    too_far = -_TOO_FAR * jnp.log(jnp.finfo(dtype).tiny)
    plain = jnp.asarray(1 if over_relaxation is None else over_relaxation, dtype)
    fast = iteration.scaled if problem.dense else iteration.blocked

    def kernel(f, g):
        return problem.exponentials(problem.pairs.rows, f, g) if problem.dense else ()

    def absorb(state: _State) -> _State:
        """The scalings become part of the potentials, and of K."""
        s = state.scalings
        f, g = state.f + problem.epsilon * s.log_u, state.g + problem.epsilon * s.log_v
        # The new K has u and v as factors of its rows and columns, and so do its sums.
        none = jnp.zeros_like(s.log_u), jnp.zeros_like(s.log_v)
        scalings = _LogScalings(*none, s.log_rows + s.log_u, s.log_columns + s.log_v)
        return state._replace(f=f, g=g, scalings=scalings, kernel=kernel(f, g))

    def run(step, state, s, errors, steps, omega, wanted: ArrayLike = True):
        """At most `steps` iterations, their number, and their errors if recorded."""
        if tolerance is None and errors is None:
            # A loop, not a branch: under vmap a branch is always taken.
            upper = jnp.where(wanted, steps, 0)
            s = jax.lax.fori_loop(0, upper, lambda _, s: step(state, s, omega), s)
            return s, steps, errors

        def unfinished(carry):
            _, count, error, _ = carry
            # Not `error > tolerance`: a NaN error keeps iterating to the end of the chunk.
            done = False if tolerance is None else error <= tolerance
            return jnp.logical_not(done) & (count < steps) & wanted

        def body(carry):
            s, count, _, errors = carry
            s = step(state, s, omega)
            error = iteration.error(state, s)
            if errors is not None:
                errors = errors.at[state.num_iterations + count].set(error)
            return s, count + 1, error, errors

        # An infinite initial error exceeds every tolerance, so that a chunk has an iteration.
        first = s, jnp.zeros_like(steps), jnp.asarray(jnp.inf, dtype), errors
        s, taken, _, errors = jax.lax.while_loop(unfinished, body, first)
        return s, taken, errors

    def chunk(state: _State) -> _State:
        # Potentials move far initially: the first chunks are short, as they may be discarded.
        steps = jnp.minimum(CHUNK, state.num_iterations - count + 1)
        steps = jnp.minimum(steps, max_iterations - state.num_iterations)
        before = state.scalings
        s, taken, errors = run(fast, state, before, state.errors, steps, state.pace.omega)
        # A chunk is discarded if a number is not finite or, for a materialised K, if the scalings
        # have grown so far that entries of K may have underflowed. It is repeated from its start in
        # the log domain, without over-relaxation. Blocks are at the latest potentials.
        size = lambda s: jnp.maximum(jnp.max(jnp.abs(s.log_u)), jnp.max(jnp.abs(s.log_v)))
        finite = jnp.isfinite(size(s)) & jnp.isfinite(jnp.sum(s.log_rows) + jnp.sum(s.log_columns))
        lost = ~finite | (size(s) > too_far) if problem.dense else ~finite
        again, taken_again, errors = run(
            iteration.logarithmic, state, before, errors, steps, 1, lost
        )
        s = select(lost, again, s)
        # A fixed count is the same for all lanes of a vmap, which stop without a test.
        taken = steps if tolerance is None else jnp.where(lost, taken_again, taken)
        old, error = state.error, iteration.error(state, s)
        state = state._replace(
            scalings=s,
            error=error,
            num_iterations=state.num_iterations + taken,
            errors=errors,
        )
        if over_relaxation is None and not symmetric:
            # The mean factor of the error per iteration.
            rate = (error / old) ** (1 / jnp.maximum(taken, 1).astype(dtype))
            state = iteration.adapt(state, rate, lost)
        if not problem.dense:
            return state
        # A branch would copy K even if there is nothing to absorb.
        return if_needed(lost | (size(state.scalings) > too_far / 2), absorb, state)

    def unfinished(state: _State):
        left = state.num_iterations < max_iterations
        return left if tolerance is None else left & ~(state.error <= tolerance)

    if not symmetric:
        f, g = recentered(problem, f, g)
    matrix, far = kernel(f, g), jnp.asarray(jnp.inf, dtype)
    scalings = iteration.start(f, g, matrix)
    pace = start_pace(plain, iteration.latest(f, g, scalings, far))
    errors = jnp.full(max_iterations, jnp.nan, dtype) if solver.record_errors else None
    state = _State(f, g, scalings, matrix, far, pace, count, errors)
    state = jax.lax.while_loop(unfinished, chunk, state)
    if over_relaxation is None and not symmetric:
        # With an adaptive ω the last chunk may not be the best.
        state = iteration.step_back(state, state.pace.best.error < state.error)
    s = state.scalings
    f, g = iteration.potentials(state, s)
    # ΣP − Σa Σb as a sum of differences, each small between balanced probabilities: a difference of
    # the two totals would lose them to rounding. Columns without weight may be infinite.
    columns = jnp.exp(s.log_v + s.log_columns) - jnp.sum(problem.a)
    mass_defect = problem.b @ jnp.where(problem.b > 0, columns, 0)
    return Solution(f, g, state.error, mass_defect, state.num_iterations, state.errors)
