"""Entropic optimal transport between two weighted samples, or from a cost matrix."""

import dataclasses
import functools
from collections.abc import Callable

import jax
from jaxtyping import Array, ArrayLike, Float

from divjax.core.samples import Numbers
from divjax.core.sharding import in_auto_axes
from divjax.ot.costs import SqEuclidean
from divjax.ot.entropic.finalize import finalize
from divjax.ot.entropic.formulate import formulate
from divjax.ot.entropic.formulation import Formulation
from divjax.ot.entropic.initial import given_potentials
from divjax.ot.entropic.loop import iterate
from divjax.ot.entropic.options import Sinkhorn, check_solver
from divjax.ot.entropic.problem import has_symmetric_costs
from divjax.ot.entropic.result import SinkhornResult
from divjax.ot.entropic.schedules import Relative

__all__ = ["sinkhorn", "solve"]


def sinkhorn(
    x: Float[Numbers, "n d"] | None,
    y: Float[Numbers, "m d"] | None,
    a: Float[Numbers, " n"] | None = None,
    b: Float[Numbers, " m"] | None = None,
    *,
    epsilon: ArrayLike | Relative,
    cost: Callable[..., Array] | Float[Numbers, "n m"] = SqEuclidean(),
    marginal_penalty: ArrayLike | tuple[ArrayLike | None, ArrayLike | None] | None = None,
    init: tuple[Float[Numbers, " n"], Float[Numbers, " m"]] | None = None,
    solver: Sinkhorn = Sinkhorn(),
) -> SinkhornResult:
    """Entropic optimal transport, min_P ⟨P, C⟩ + ε KL(P‖a⊗b), balanced or unbalanced.

    P ranges over plans with P1 = a and Pᵀ1 = b. With `marginal_penalty` it ranges over all P ≥ 0,
    and ρ_a KL(P1‖a) + ρ_b KL(Pᵀ1‖b) is added. KL(p‖q) = Σ p log(p/q) − Σ p + Σ q.

    Iterations are over-relaxed matrix–vector products with the kernel at the current potentials.
    They return to the log domain on overflow or underflow. Under `jax.vmap` every problem
    iterates until the slowest has converged: a fixed count, or on a CPU `jax.lax.map`, is faster.
    Memory is 2 n m numbers when dense, O(n + m) when blockwise.

    Args:
        x: samples, or None with a cost matrix.
        y: samples, or None with a cost matrix.
        a: weights of x, non-negative; by default uniform with b's total mass (1 without b). Rows of
            weight zero are padding.
        b: weights of y, in a balanced problem with the same sum as a.
        epsilon: ε > 0, in units of the cost, or `Relative` to the costs.
        cost: a cost of `divjax.ot` or of ott-jax, any function of two points, or a matrix of costs.
            A function is evaluated at the points in JAX's dtype: points from NumPy are refused if
            this rounds them by more than a thousandth of their range. An infinite cost forbids a
            pair. A row with only such costs stays unmatched if its marginal is relaxed. Otherwise,
            or if all costs are infinite, the value is infinite, and flagged by
            `Status.NOT_FINITE`. If rows share too few columns of finite cost for their mass,
            iterations do not converge.
        marginal_penalty: ρ > 0, in units of the cost, of both marginals; or (ρ_a, ρ_b). None or
            infinity for an exact marginal.
        init: potentials (f, g) to start from, such as those of a similar problem. Ignored if they
            are not finite, or so large that they are rounded by more than ε.
        solver: the solver's options: tolerance, limit, annealing, over-relaxation, block size.

    Returns:
        A `SinkhornResult`, the value first.

    Raises:
        ValueError: for wrong shapes, empty samples, a `solver` that is not a `Sinkhorn`, and, if
            their values are known at trace time, negative or non-finite weights, weights of unequal
            sums, and numbers out of range. NaN in a row with weight gives NaN and
            `Status.NOT_FINITE`; traced numbers out of range give NaN and `Status.INVALID_INPUT`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> x = jnp.array([[0.0], [1.0]])
        >>> result = sinkhorn(x, x + 2, epsilon=0.05)
        >>> float(result.value), bool(result.converged)  # 4 and ε times KL(P‖a⊗b) = log 2
        (4.034, True)
        >>> result.transport(x).round(2).ravel().tolist()
        [2.0, 3.0]
        >>> jax.grad(lambda y: sinkhorn(x, y, epsilon=0.05).value)(x + 2).ravel().tolist()
        [2.0, 2.0]

    References:
        Cuturi 2013, algorithm 1. Schmitzer 2019, section 3: absorption. Thibault, Chizat, Dossal,
        Papadakis 2021, section 3: over-relaxation. Chizat, Peyré, Schmitzer, Vialard 2018:
        unbalanced. Séjourné, Vialard, Peyré 2022, section 3: updates that are translation
        invariant.
    """
    check_solver(solver)
    formulation = formulate(x, y, a, b, epsilon, cost, marginal_penalty, solver.block_size)
    return solve(formulation, given_potentials(formulation, init), solver)


@functools.partial(jax.jit, static_argnames="symmetric")
@in_auto_axes
def solve(
    formulation: Formulation,
    init: tuple[Array, Array] | None,
    solver: Sinkhorn,
    *,
    symmetric: bool = False,
) -> SinkhornResult:
    """The result of a problem, with a checked solver, and `init` for centred points.

    `symmetric` is for a sample and itself: f = g, by averaged updates, which take few iterations.
    """
    if symmetric:
        valid = formulation.valid & has_symmetric_costs(formulation.problem)
        formulation = dataclasses.replace(formulation, valid=valid)
    solution = iterate(formulation.problem, init, solver, symmetric=symmetric)
    return finalize(formulation, solver, solution, symmetric=symmetric)
