"""Sinkhorn's iterations: chunks of fast updates, checked, and repeated in the log domain if needed.

One iteration in the log domain, g ← T_b(f) and f ← T_a(g), takes two exponentials per pair. With
K = exp((f ⊕ g − C)/ε) at earlier potentials it is two matrix–vector products, and later potentials
are f + ε log u and g + ε log v (Schmitzer 2019, section 3.2). The first K is at the transforms for
ε = 0, for which it is in range. The phases of a chunk of iterations:

    iterate    with products, over-relaxed by ω
    recover    a chunk that left the range of numbers is repeated from its start in the log domain
    adapt      ω for the next chunk from the errors, or a rollback to the best potentials
    absorb     large scalings become part of the base potentials, and of K
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from divjax.core.numerics import if_needed
from divjax.core.pytrees import select
from divjax.ot.entropic.initial import annealed, initial_potentials
from divjax.ot.entropic.options import Sinkhorn
from divjax.ot.entropic.over_relaxation import TUNING, Relaxation, adapt, start_relaxation
from divjax.ot.entropic.problem import MatrixPairs, Problem, recentered
from divjax.ot.entropic.updates import Base, LogScalings, Updates

__all__ = ["Solution", "iterate"]

# Iterations between checks.
CHUNK = 10
# A chunk that moves either potential by more than this share of the exponent range, in units of ε,
# may have underflowed in K. Potentials that have moved by half as much are absorbed into K.
_TOO_FAR = 0.4


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


class SinkhornState(NamedTuple):
    """The state between two chunks of iterations.

    Attributes:
        base: potentials, and K at them.
        scalings: the log scalings that lead from the base to the latest potentials.
        error: the L1 error of the latest plan's marginals, infinite before the first chunk.
        relaxation: ω, and the best potentials.
        num_iterations: the iterations made, annealing included.
        errors: the recorded errors.
    """

    base: Base
    scalings: LogScalings
    error: Float[Array, ""]
    relaxation: Relaxation
    num_iterations: Int[Array, ""]
    errors: Float[Array, " max_iterations"] | None


class _Chunk(NamedTuple):
    """The scalings after a chunk, the number of its iterations, and the recorded errors."""

    scalings: LogScalings
    num_iterations: Int[Array, ""]
    errors: Float[Array, " max_iterations"] | None


@dataclasses.dataclass(frozen=True)
class _Run:
    """The constants of a run.

    Attributes:
        updates: the iterations of the problem, in three implementations.
        tolerance: the largest L1 error of the marginals, absolute; None for a fixed count.
        max_iterations: the limit, or the fixed count.
        num_annealed: the iterations made before the first chunk.
        adaptive: whether ω adapts.
    """

    updates: Updates
    tolerance: Float[Array, ""] | None
    max_iterations: int
    num_annealed: Int[Array, ""]
    adaptive: bool

    @property
    def problem(self) -> Problem:
        return self.updates.problem

    def unfinished(self, state: SinkhornState) -> Bool[Array, ""]:
        left = state.num_iterations < self.max_iterations
        return left if self.tolerance is None else left & ~(state.error <= self.tolerance)

    def chunk_size(self, state: SinkhornState) -> Int[Array, ""]:
        """The number of iterations of the next chunk: 1, 2, 4, 8, then `CHUNK`.

        Potentials move far initially: the first chunks are short, as they may be discarded.
        """
        steps = jnp.minimum(CHUNK, state.num_iterations - self.num_annealed + 1)
        return jnp.minimum(steps, self.max_iterations - state.num_iterations)


def iterate(
    problem: Problem,
    init: tuple[Float[Array, " n"], Float[Array, " m"]] | None,
    solver: Sinkhorn,
    *,
    symmetric: bool = False,
) -> Solution:
    """Iterate to the tolerance, or for a fixed count, with stopped gradients.

    Args:
        problem: the centred problem, with costs in memory or on demand.
        init: potentials to start from.
        solver: the options.
        symmetric: whether both sides are one sample: f = g, by averaged updates (Feydy et al. 2019,
            section 3.1), which converge in few iterations for a positive kernel exp(−c/ε).

    Returns:
        The last potentials, or with an adaptive ω the best, and their error.
    """
    # Without the barrier, subexpressions shared with other computations would keep n × m numbers
    # in memory through all iterations.
    problem, init = jax.lax.optimization_barrier(jax.lax.stop_gradient((problem, init)))
    solver = jax.lax.stop_gradient(solver)
    # 1. The tolerance in units of mass, and all costs in memory if they fit.
    tolerance = None
    if solver.tolerance is not None:
        tolerance = problem.mass * jnp.asarray(solver.tolerance, problem.mass.dtype)
    problem = _with_costs_in_memory(problem)
    # 2. Potentials to start from, by annealing if asked for.
    f, g = initial_potentials(problem, init, symmetric)
    count = jnp.asarray(0)
    if solver.annealing is not None:
        # One iteration is reserved for an error at the problem's own ε.
        most = solver.max_iterations - 1
        f, g, count = annealed(problem, solver.annealing, symmetric, f, g, most)
    # 3. Chunks of iterations. Averaged updates are not over-relaxed.
    adaptive = solver.over_relaxation is None and not symmetric
    updates = Updates(problem, symmetric)
    run = _Run(updates, tolerance, solver.max_iterations, count, adaptive)
    state = start(run, f, g, solver)
    state = jax.lax.while_loop(run.unfinished, functools.partial(iterate_chunk, run), state)
    return finish(run, state)


def _with_costs_in_memory(problem: Problem) -> Problem:
    """The problem with a matrix of costs if it is dense: all later passes read it."""
    if not problem.dense:
        return problem
    pairs = MatrixPairs(problem.pairs.block(problem.pairs.rows))
    return dataclasses.replace(problem, pairs=pairs)


def start(run: _Run, f: Array, g: Array, solver: Sinkhorn) -> SinkhornState:
    """The state before the first chunk."""
    # Relaxed marginals have a best constant, which exact ones do not. One sample with itself has
    # f = g, which a shift would break.
    if not run.updates.symmetric:
        f, g = recentered(run.problem, f, g)
    base, infinite = run.updates.base(f, g), jnp.asarray(jnp.inf, f.dtype)
    scalings = run.updates.start(base)
    omega = 1 if solver.over_relaxation is None else solver.over_relaxation
    first = run.updates.to_iterate(base, scalings, infinite)
    # Of a fixed length: iterations not made stay NaN.
    errors = None
    if solver.record_errors:
        errors = jnp.full(run.max_iterations, jnp.nan, f.dtype)
    return SinkhornState(
        base=base,
        scalings=scalings,
        error=infinite,
        relaxation=start_relaxation(jnp.asarray(omega, f.dtype), first),
        num_iterations=run.num_annealed,
        errors=errors,
    )


def iterate_chunk(run: _Run, state: SinkhornState) -> SinkhornState:
    """Several iterations from one base, checked together at their end."""
    steps, omega = run.chunk_size(state), state.relaxation.omega
    # 1. Fast iterations, and their repetition where they failed.
    chunk = _run_updates(run, run.updates.fast, state, steps, omega, state.errors)
    lost = _is_lost(run.problem, chunk.scalings)
    chunk = recover_in_log_domain(run, state, chunk, steps, lost)
    after = state._replace(
        scalings=chunk.scalings,
        error=run.updates.error(state.base, chunk.scalings),
        num_iterations=state.num_iterations + chunk.num_iterations,
        errors=chunk.errors,
    )
    # 2. ω of the next chunk, possibly with a return to earlier scalings.
    if run.adaptive:
        after = update_relaxation(run, state.error, after, chunk.num_iterations, lost)
    # 3. Absorption into K, which blocks do not need.
    if not run.problem.dense:
        return after
    far = _size(after.scalings) > _largest_size(after.error.dtype) / 2
    # A branch would copy K even if there is nothing to absorb.
    return if_needed(lost | far, functools.partial(absorb, run), after)


def _run_updates(
    run: _Run,
    update: Callable[[Base, LogScalings, ArrayLike], LogScalings],
    state: SinkhornState,
    steps: Int[Array, ""],
    omega: ArrayLike,
    errors: Array | None,
    wanted: ArrayLike = True,
) -> _Chunk:
    """At most `steps` updates, fewer if they meet the tolerance; none unless `wanted`."""
    if run.tolerance is None and errors is None:
        # A loop of no steps, not a branch: under vmap a branch is always taken.
        upper = jnp.where(wanted, steps, 0)
        step = lambda _, s: update(state.base, s, omega)
        return _Chunk(jax.lax.fori_loop(0, upper, step, state.scalings), steps, errors)

    def unfinished(carry):
        chunk, error = carry
        # Not `error > tolerance`: a NaN error keeps iterating to the end of the chunk.
        done = False if run.tolerance is None else error <= run.tolerance
        return jnp.logical_not(done) & (chunk.num_iterations < steps) & wanted

    def body(carry):
        (s, count, errors), _ = carry
        s = update(state.base, s, omega)
        error = run.updates.error(state.base, s)
        if errors is not None:
            errors = errors.at[state.num_iterations + count].set(error)
        return _Chunk(s, count + 1, errors), error

    # The initial error is infinite, so that every chunk makes at least one iteration.
    first = _Chunk(state.scalings, jnp.zeros_like(steps), errors)
    return jax.lax.while_loop(unfinished, body, (first, jnp.full_like(state.error, jnp.inf)))[0]


def _size(s: LogScalings) -> Float[Array, ""]:
    """The largest change of a potential since the base, in units of ε."""
    return jnp.maximum(jnp.max(jnp.abs(s.log_u)), jnp.max(jnp.abs(s.log_v)))


def _largest_size(dtype: jnp.dtype) -> Float[Array, ""]:
    """The size of scalings from which entries of K may have underflowed."""
    return -_TOO_FAR * jnp.log(jnp.finfo(dtype).tiny)


def _is_lost(problem: Problem, s: LogScalings) -> Bool[Array, ""]:
    """Whether numbers are not finite, or may come from underflowed entries of a stored K."""
    size = _size(s)
    lost = ~(jnp.isfinite(size) & jnp.isfinite(jnp.sum(s.log_rows) + jnp.sum(s.log_columns)))
    # Blocks are at the latest potentials: nothing underflows as scalings grow.
    return lost | (size > _largest_size(size.dtype)) if problem.dense else lost


def recover_in_log_domain(
    run: _Run, state: SinkhornState, chunk: _Chunk, steps: Int[Array, ""], lost: Bool[Array, ""]
) -> _Chunk:
    """The chunk, if lost repeated from its start by log-sum-exp, without over-relaxation."""
    again = _run_updates(run, run.updates.logarithmic, state, steps, 1, chunk.errors, lost)
    # A fixed count does not depend on data: the loop's condition is not batched under vmap.
    taken = steps
    if run.tolerance is not None:
        taken = jnp.where(lost, again.num_iterations, chunk.num_iterations)
    return _Chunk(select(lost, again.scalings, chunk.scalings), taken, again.errors)


def update_relaxation(
    run: _Run,
    error_before: Float[Array, ""],
    state: SinkhornState,
    taken: Int[Array, ""],
    lost: Bool[Array, ""],
) -> SinkhornState:
    """The state with ω of the next chunk, or a rollback."""
    # The mean factor of the error per iteration.
    rate = (state.error / error_before) ** (1 / jnp.maximum(taken, 1).astype(state.error.dtype))
    # Far from convergence the rate is not yet the slowest direction's, from which ω is chosen. The
    # rate of a repeated chunk is that of plain iterations.
    near = state.error <= TUNING.asymptotic_error * jnp.sum(run.problem.b)
    latest = run.updates.to_iterate(state.base, state.scalings, state.error)
    relaxation, rollback = adapt(state.relaxation, latest, rate, near & ~lost)
    return roll_back(run, state._replace(relaxation=relaxation), rollback)


def roll_back(run: _Run, state: SinkhornState, when: Bool[Array, ""]) -> SinkhornState:
    """The state at the best potentials so far if the condition holds, otherwise unchanged."""
    best = state.relaxation.best
    earlier = run.updates.from_iterate(state.base, best), best.error
    scalings, error = select(when, earlier, (state.scalings, state.error))
    return state._replace(scalings=scalings, error=error)


def absorb(run: _Run, state: SinkhornState) -> SinkhornState:
    """The same potentials with scalings of one: the latest potentials are the base, and in K."""
    s = state.scalings
    base = run.updates.base(*run.updates.potentials(state.base, s))
    # The new K has u and v as factors of its rows and columns, and so do its sums.
    zeros = jnp.zeros_like(s.log_u), jnp.zeros_like(s.log_v)
    scalings = LogScalings(*zeros, s.log_rows + s.log_u, s.log_columns + s.log_v)
    return state._replace(base=base, scalings=scalings)


def finish(run: _Run, state: SinkhornState) -> Solution:
    """The solution, at the best potentials."""
    if run.adaptive:
        # With an adaptive ω the last chunk may not be the best.
        state = roll_back(run, state, state.relaxation.best.error < state.error)
    s, problem = state.scalings, run.problem
    f, g = run.updates.potentials(state.base, s)
    # ΣP − Σa Σb as a sum of differences, each small between balanced probabilities: a difference of
    # the two totals would lose them to rounding. Columns without weight may be infinite.
    columns = jnp.exp(s.log_v + s.log_columns) - jnp.sum(problem.a)
    mass_defect = problem.b @ jnp.where(problem.b > 0, columns, 0)
    return Solution(f, g, state.error, mass_defect, state.num_iterations, state.errors)
