"""The potentials that iterations start from: given ones, a cold start, and annealing."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array

from divjax.core.checks import check_shape
from divjax.core.numerics import if_needed
from divjax.core.pair_reductions import SMALLEST
from divjax.ot.entropic.derivatives import normalized_potentials
from divjax.ot.entropic.formulation import Formulation
from divjax.ot.entropic.problem import Problem, recentered
from divjax.ot.entropic.schedules import Annealing, largest_cost
from divjax.ot.entropic.updates import Updates, log_row_sums

__all__ = ["annealed", "given_potentials", "initial_potentials"]


def given_potentials(
    formulation: Formulation, init: tuple[Array, ...] | None
) -> tuple[Array, Array] | None:
    """The initial potentials, checked, for centred points."""
    problem = formulation.problem
    n, m = problem.pairs.shape
    if init is None:
        return None
    if not isinstance(init, tuple) or len(init) != 2:
        raise ValueError(f"init must be a pair of potentials (f, g); got {type(init).__name__}.")
    f, g = init
    check_shape("init[0]", f, n)
    check_shape("init[1]", g, m)
    f, g = jnp.asarray(f, problem.a.dtype), jnp.asarray(g, problem.b.dtype)
    # The given potentials are for the original points, the problem is one of centred points.
    f, g = formulation.reduced(f, g)
    # Potentials of rows of weight zero have no effect, and may hold any value.
    f = jnp.where(problem.a > 0, f, f[jnp.argmax(problem.a)])
    g = jnp.where(problem.b > 0, g, g[jnp.argmax(problem.b)])
    return normalized_potentials(problem, f, g)


def initial_potentials(
    problem: Problem, init: tuple[Array, Array] | None, symmetric: bool
) -> tuple[Array, Array]:
    """The given potentials, or a cold start without useful ones."""
    if init is None:
        return _cold_start(problem, symmetric)
    return _warm_start(problem, init, symmetric)


def _cold_start(problem: Problem, symmetric: bool) -> tuple[Array, Array]:
    """g_j = min_i C_ij and f_i = min_j (C_ij − g_j), the transforms at ε = 0, from f = 0.

    Every row and every column of f ⊕ g − C then has a zero as its maximum, so that K neither
    overflows nor has an empty row or column. In the symmetric case the diagonal of K is one anyway.
    """
    if symmetric:
        return jnp.zeros_like(problem.a), jnp.zeros_like(problem.b)
    of_columns = lambda costs: jnp.min(costs, axis=1)
    g = problem.transposed.map_rows(of_columns, reduction=SMALLEST)
    of_rows = lambda costs, g: jnp.min(costs - g, axis=1)
    return problem.map_rows(of_rows, columns=(g,), reduction=SMALLEST), g


def _warm_start(
    problem: Problem, init: tuple[Array, Array], symmetric: bool
) -> tuple[Array, Array]:
    """The given potentials, or a cold start if they are not finite, or rounded by more than ε."""
    f, g = init
    size = jnp.maximum(jnp.max(jnp.abs(f)), jnp.max(jnp.abs(g)))
    useful = size * jnp.finfo(f.dtype).eps < problem.epsilon
    return if_needed(~useful, lambda _: _cold_start(problem, symmetric), init)


def annealed(
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
            # Half a step, since full symmetric updates may oscillate.
            f = (f + stage.damping[1] * (g - stage.epsilon * log_row_sums(stage, g, f))) / 2
            return f, f, count + 1
        # Each potential is the other's soft transform plus its best constant. K is not stored, as
        # it is useless at the next ε.
        correction = Updates(stage, symmetric).correction
        g = stage.damping[1] * (g - stage.epsilon * log_row_sums(stage.transposed, g, f))
        g = g + stage.epsilon * correction(1, g, jnp.zeros_like(g), f)
        f = stage.damping[0] * (f - stage.epsilon * log_row_sums(stage, f, g))
        f = f + stage.epsilon * correction(0, f, jnp.zeros_like(f), g)
        return *recentered(stage, f, g), count + 1

    return jax.lax.while_loop(unfinished, body, (f, g, jnp.asarray(0)))
