"""The debiased Sinkhorn divergence."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int

from divjax.core.numerics import nan_unless
from divjax.core.pytrees import pytree
from divjax.core.types import Outcome, Status
from divjax.ot.costs import SqEuclidean
from divjax.ot.formulation import check_epsilon, formulate, formulate_self
from divjax.ot.problem import PointPairs
from divjax.ot.schedules import Annealing, Relative
from divjax.ot.sinkhorn import SinkhornResult, solve, start_of

__all__ = [
    "SinkhornDivergenceResult",
    "self_transport",
    "sinkhorn_divergence",
]


@pytree
class SinkhornDivergenceResult(Outcome):
    """The divergence, how its three problems ended, and their results.

    Attributes:
        value: S(a, b).
        status: the gravest of the three problems' `Status`.
        xy: from x to y.
        xx: from x to itself.
        yy: from y to itself.
    """

    value: Float[Array, ""]
    status: Int[Array, ""]
    xy: SinkhornResult
    xx: SinkhornResult
    yy: SinkhornResult

    @property
    def potentials(self) -> tuple[Array, Array, Array, Array]:
        """Those of x and y, of x to itself and of y to itself: a start for a similar problem."""
        return self.xy.f, self.xy.g, self.xx.f, self.yy.f


def self_transport(
    x: Float[Array, "n d"],
    a: Float[Array, " n"] | None = None,
    *,
    epsilon: ArrayLike,
    cost: Callable[..., Array],
    max_iterations: int,
    tolerance: ArrayLike | None,
) -> SinkhornResult:
    """`sinkhorn(x, x, a, a)` by averaged symmetric updates, which take few iterations."""
    check_epsilon(epsilon)
    formulation = formulate_self(x, a, epsilon, cost, None, None)
    return solve(formulation, max_iterations=max_iterations, tolerance=tolerance, symmetric=True)


def sinkhorn_divergence(
    x: Float[Array, "n d"],
    y: Float[Array, "m d"],
    a: Float[Array, " n"] | None = None,
    b: Float[Array, " m"] | None = None,
    *,
    epsilon: ArrayLike | Relative,
    cost: Callable[..., Array] = SqEuclidean(),
    max_iterations: int = 2000,
    tolerance: ArrayLike | None = 1e-3,
    marginal_penalty: ArrayLike | tuple[ArrayLike | None, ArrayLike | None] | None = None,
    init: tuple[Array, Array, Array, Array] | None = None,
    annealing: Annealing | None = None,
    block_size: int | None = None,
) -> SinkhornDivergenceResult:
    """The Sinkhorn divergence S = OT(a, b) − ½ OT(a, a) − ½ OT(b, b) + ε/2 (Σa − Σb)².

    OT is the value of `sinkhorn`. S is zero where both measures agree; for costs with a positive
    kernel exp(−c/ε), such as the squared Euclidean one, it is otherwise positive and convex in each
    measure. From ε = 0 to ∞ it goes from the transport cost to (squared Euclidean) the squared
    distance of the means. The self terms are solved by averaged symmetric updates.

    Where iterations stop early, the value's error is quadratic in the potentials', and the value is
    kept; the status says whether they have converged. Where rounding moves a plan by more than the
    tolerance, as at an ε far below the costs, no number of iterations helps, and the value is NaN,
    so that a loss of it is no number. For fixed ε the bias from n samples is O(1/n). Memory as in
    `sinkhorn`: the three problems are solved one after another.

    Args:
        x: samples.
        y: samples.
        a: weights of x; uniform by default.
        b: weights of y.
        epsilon: ε > 0, in units of the cost; or `Relative` to the costs between x and y.
        cost: a symmetric cost of `divjax.ot`, or a function of two points.
        max_iterations: of each problem, at most; without tolerance exactly.
        tolerance: of the marginals' L1 error, as a share of the mass; or None.
        marginal_penalty: ρ, or (ρ_a, ρ_b): relaxed marginals.
        init: the `potentials` of another result of these shapes, to start from.
        annealing: a decreasing sequence of ε before.
        block_size: rows of costs held at a time.

    Returns:
        A `SinkhornDivergenceResult`. Its value is differentiable like `sinkhorn`'s, and NaN where
        the status is `FLOATING_POINT_RESOLUTION` or graver.

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
    formulation = formulate(x, y, a, b, epsilon, cost, marginal_penalty, block_size)
    problem = formulation.problem
    settings: Any = {
        "max_iterations": max_iterations,
        "tolerance": tolerance,
        "annealing": annealing,
    }
    # Both potentials of a self problem are one.
    start = (None,) * 3 if init is None else (init[:2], (init[2],) * 2, (init[3],) * 2)

    def to_itself(points: Any, weights: Array, side: int, start: Any, after: SinkhornResult) -> Any:
        # A self term has the ε of the problem between x and y, also if that is relative to its
        # costs, and the penalty of its own side on both.
        penalty = problem.penalties[side]
        options = problem.epsilon, cost, (penalty, penalty), block_size
        # Uniform weights may be traced by now; that none is zero is known from the first problem.
        own = formulate_self(points, weights, *options, vanishing=formulation.replaced[side])
        # After the problem before: simultaneously the matrices of all three would be held.
        pairs, previous = own.problem.pairs, jax.lax.stop_gradient(after.error)
        assert isinstance(pairs, PointPairs)
        # The barrier orders the work; as the error's gradient is stopped, no derivative goes back
        # through it.
        points, _ = jax.lax.optimization_barrier((pairs.x, previous))
        pairs = PointPairs(points, points, pairs.cost)
        own = dataclasses.replace(own, problem=dataclasses.replace(own.problem, pairs=pairs))
        return solve(own, start_of(own, start), symmetric=True, **settings)

    xy = solve(formulation, start_of(formulation, start[0]), **settings)
    xx = to_itself(x, formulation.a, 0, start[1], xy)
    yy = to_itself(y, formulation.b, 1, start[2], xx)
    # The plans' masses differ where marginals are relaxed; without this the divergence of a from
    # itself scaled would not be what it is for ε → ∞.
    masses = jnp.sum(formulation.a) - jnp.sum(formulation.b)
    value = xy.value - (xx.value + yy.value) / 2 + problem.epsilon / 2 * masses**2
    status = jnp.maximum(xy.status, jnp.maximum(xx.status, yy.status))
    value = nan_unless(status < Status.FLOATING_POINT_RESOLUTION, value)
    return SinkhornDivergenceResult(value, status, xy, xx, yy)
