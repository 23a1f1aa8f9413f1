"""The debiased Sinkhorn divergence."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int

from divjax.core.numerics import nan_unless
from divjax.core.pytrees import pytree
from divjax.core.samples import Center, Numbers
from divjax.core.sharding import in_auto_axes
from divjax.core.types import Outcome, Status
from divjax.ot.costs import SqEuclidean
from divjax.ot.entropic.formulate import (
    CheckedPoints,
    center_alone,
    check_points,
    check_self,
    formulate_points,
)
from divjax.ot.entropic.formulation import Formulation
from divjax.ot.entropic.initial import given_potentials
from divjax.ot.entropic.options import Sinkhorn, check_solver
from divjax.ot.entropic.problem import PointPairs
from divjax.ot.entropic.result import SinkhornResult
from divjax.ot.entropic.schedules import Relative
from divjax.ot.entropic.solver import solve

__all__ = [
    "SinkhornDivergenceResult",
    "self_transport",
    "sinkhorn_divergence",
]


@pytree
class SinkhornDivergenceResult(Outcome):
    """The divergence, its status, and the results of its three problems.

    Attributes:
        value: S(a, b).
        status: the most severe `Status` of the three problems.
        xy: the result from x to y.
        xx: the result from x to itself.
        yy: the result from y to itself.
    """

    value: Float[Array, ""]
    status: Int[Array, ""]
    xy: SinkhornResult
    xx: SinkhornResult
    yy: SinkhornResult

    @property
    def potentials(self) -> tuple[Array, Array, Array, Array]:
        """The potentials of x and y, of x to itself and of y to itself, as `init` takes them."""
        return self.xy.f, self.xy.g, self.xx.f, self.yy.f


def self_transport(
    x: Float[Array, "n d"],
    a: Float[Array, " n"] | None = None,
    *,
    epsilon: ArrayLike,
    cost: Callable[..., Array],
    solver: Sinkhorn,
) -> SinkhornResult:
    """`sinkhorn(x, x, a, a)` by averaged symmetric updates, which take few iterations."""
    given = check_self(x, a, epsilon, cost, solver.block_size)
    return solve(formulate_points(given), None, solver, symmetric=True)


def sinkhorn_divergence(
    x: Float[Numbers, "n d"],
    y: Float[Numbers, "m d"],
    a: Float[Numbers, " n"] | None = None,
    b: Float[Numbers, " m"] | None = None,
    *,
    epsilon: ArrayLike | Relative,
    cost: Callable[..., Array] = SqEuclidean(),
    marginal_penalty: ArrayLike | tuple[ArrayLike | None, ArrayLike | None] | None = None,
    init: tuple[Array, Array, Array, Array] | None = None,
    solver: Sinkhorn = Sinkhorn(),
) -> SinkhornDivergenceResult:
    """The Sinkhorn divergence S = OT(a, b) − ½ OT(a, a) − ½ OT(b, b) + ε/2 (Σa − Σb)².

    OT is the value of `sinkhorn`. S is zero if both measures agree. For costs with a positive
    kernel exp(−c/ε), such as the squared Euclidean one, it is otherwise positive and convex in each
    measure. From ε = 0 to ∞ it interpolates between the transport cost and (squared Euclidean) the
    squared distance of the means. The self terms are solved by averaged symmetric updates.

    If iterations stop early, the value's error is quadratic in that of the potentials, and the
    value is kept. The status tells whether they converged. If rounding moves a plan by more than
    the tolerance, as at an ε far below the costs, further iterations do not help, and the value is
    NaN. For fixed ε the bias from n samples is O(1/n). Memory is that of `sinkhorn`: the three
    problems are solved sequentially.

    Args:
        x: samples.
        y: samples.
        a: weights of x, uniform by default.
        b: weights of y.
        epsilon: ε > 0, in units of the cost, or `Relative` to the costs between x and y.
        cost: a symmetric cost of `divjax.ot`, or a symmetric function of two points; one that is
            not gives NaN and `Status.INVALID_INPUT`.
        marginal_penalty: ρ, or (ρ_a, ρ_b), for relaxed marginals.
        init: the `potentials` of another result of these shapes, to start from.
        solver: the options for each of the three problems. The averaged updates of the self terms
            have no over-relaxation: ω is that of the problem between x and y.

    Returns:
        A `SinkhornDivergenceResult`. Its value is differentiable like that of `sinkhorn`, and NaN
        if the status is `FLOATING_POINT_RESOLUTION` or more severe.

    Raises:
        ValueError: as `sinkhorn`.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.array([[0.0], [1.0]])
        >>> result = sinkhorn_divergence(x, x + 2, epsilon=0.5)
        >>> float(result.value), bool(result.converged)
        (4.000, True)

    References:
        Feydy, Séjourné, Vialard, Amari, Trouvé, Peyré 2019, eq. 3 and theorem 1.
        Séjourné, Feydy, Vialard, Trouvé, Peyré 2019, eq. 5: unbalanced.
    """
    if hasattr(cost, "shape"):
        raise ValueError("cost must be a function of two points; a matrix has no self terms.")
    if init is not None and (not isinstance(init, tuple) or len(init) != 4):
        raise ValueError("init must be the four `potentials` of a `SinkhornDivergenceResult`.")
    check_solver(solver)
    given = check_points(x, y, a, b, epsilon, cost, marginal_penalty, solver.block_size)
    # Each self term is centred by itself: the other sample does not enter its costs.
    alone = tuple(
        center_alone(rows, weights, given.cost, given.samples[0].dtype)
        for rows, weights in zip((x, y), given.weights, strict=True)
    )
    return _solve_three(given, alone, init, solver)


@jax.jit
@in_auto_axes
def _solve_three(
    given: CheckedPoints,
    alone: tuple[tuple[tuple[Center] | None, Array], ...],
    init: tuple[Array, ...] | None,
    solver: Sinkhorn,
) -> SinkhornDivergenceResult:
    """The divergence, with each sample also centred for the problem with itself."""
    formulation = formulate_points(given)
    problem = formulation.problem
    # Both potentials of a self problem are equal.
    start = (None,) * 3 if init is None else (init[:2], (init[2],) * 2, (init[3],) * 2)

    def self_term(side: int, after: SinkhornResult) -> SinkhornResult:
        points, sample = alone[side]
        # A self term takes ε from the problem between x and y, even if that is relative to the
        # costs there, and the penalty of its own side for both marginals.
        own = CheckedPoints(
            samples=(sample,),
            weights=((formulation.a, formulation.b)[side],),
            points=points,
            epsilon=problem.epsilon,
            cost=given.cost,
            penalties=(problem.penalties[side],) * 2,
            block_size=given.block_size,
            vanishing=(formulation.replaced[side],) * 2,
        )
        # One problem at a time holds its matrices in memory.
        own = _ordered_after(formulate_points(own), after)
        return solve(own, given_potentials(own, start[1 + side]), solver, symmetric=True)

    xy = solve(formulation, given_potentials(formulation, start[0]), solver)
    xx = self_term(0, xy)
    yy = self_term(1, xx)
    # With relaxed marginals the plans' masses differ. Without this term the divergence of a from a
    # rescaled a would have the wrong limit for ε → ∞.
    masses = jnp.sum(formulation.a) - jnp.sum(formulation.b)
    value = xy.value - (xx.value + yy.value) / 2 + problem.epsilon / 2 * masses**2
    status = jnp.maximum(xy.status, jnp.maximum(xx.status, yy.status))
    value = nan_unless(status < Status.FLOATING_POINT_RESOLUTION, value)
    return SinkhornDivergenceResult(value, status, xy, xx, yy)


def _ordered_after(formulation: Formulation, result: SinkhornResult) -> Formulation:
    """The problem of a sample and itself, to be solved after another one.

    XLA may run independent problems simultaneously, and all three would need their matrices in
    memory. The barrier makes this problem's points wait for the other's result.
    """
    pairs = formulation.problem.pairs
    assert isinstance(pairs, PointPairs)
    # The error's gradient is stopped, so that no derivative passes from one problem to the other.
    points, _ = jax.lax.optimization_barrier((pairs.x, jax.lax.stop_gradient(result.error)))
    problem = dataclasses.replace(formulation.problem, pairs=PointPairs(points, points, pairs.cost))
    return dataclasses.replace(formulation, problem=problem)
