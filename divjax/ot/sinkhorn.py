"""Entropic optimal transport between two weighted samples, or from a cost matrix."""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from divjax.core.checks import (
    check_callable,
    check_count,
    check_matrix,
    check_positive,
    check_positive_values,
    check_same_features,
    check_shape,
    check_weights,
)
from divjax.core.numerics import nan_unless
from divjax.core.pairwise import map_row_blocks
from divjax.ot import costs
from divjax.ot.costs import SqEuclidean
from divjax.ot.derivatives import envelope_value, gauge, with_implicit_derivatives
from divjax.ot.iterations import Annealing, iterate
from divjax.ot.problem import MatrixPairs, PointPairs, Problem
from divjax.ot.rounding import costs_are_lost, refined_where_large, sampled_error

__all__ = ["SinkhornResult", "sinkhorn"]

# Pairs up to which the matrices of costs and of the plan are held whole: 128 MiB each in float32.
DENSE_PAIRS_CPU = 2**25
DENSE_PAIRS_ACCELERATOR = 2**28
# Pairs a block holds beyond.
BLOCK_PAIRS_CPU = 2**20
BLOCK_PAIRS_ACCELERATOR = 2**26

# The L1 error, as a share of the mass, up to which a fixed number of iterations has converged.
FIXED_TOLERANCE = 1e-3
# With rounding, the rows' error may be as many times the tolerance, and as large a share of the
# mass beyond: what single precision leaves at a tight tolerance is no failure of the iterations.
ROUNDING_MARGIN, ROUNDING_FLOOR = 2, 5e-5


class SinkhornResult(NamedTuple):
    """The value, the potentials and the plan of an entropic transport problem.

    The plan is P_ij = a_i b_j exp((f_i + g_j − C_ij)/ε); it is computed where it is asked for.
    Value, potentials and whatever follows from them are differentiable to any order, forwards and
    backwards, with respect to points, weights, ε and the cost's parameters: derivatives are those
    at the optimum, so they are as good as the iterations have converged.

    Attributes:
        value: the dual objective at f and g: a lower bound on the problem's value, with an error
            quadratic in that of the potentials.
        f: the potential of x, with ⟨a, f⟩ = ⟨b, g⟩ if balanced; where a_i = 0 it is the soft
            transform of g, −ε log Σ_j b_j exp((g_j − C_ij)/ε).
        g: the potential of y.
        error: the L1 distance of the plan's marginals from a and b, of both sides together; of
            relaxed marginals from a exp(−f/ρ) and b exp(−g/ρ), which they are at the optimum. Where
            rounding of f and g makes it larger, that of the rows, estimated from 64 of them.
        num_iterations: the iterations made, annealing included.
        converged: whether the iterations' error is at most tolerance × mass (without a tolerance,
            1e-3 × mass), rounding leaves the rows within about twice that, and the value is finite.
        problem: what the methods need: costs, weights, ε, penalties. Points are centred.
        center: what points were shifted by, or None.
    """

    value: Float[Array, ""]
    f: Float[Array, " n"]
    g: Float[Array, " m"]
    error: Float[Array, ""]
    num_iterations: Int[Array, ""]
    converged: Bool[Array, ""]
    problem: Problem
    center: Float[Array, " d"] | None

    def plan(self) -> Float[Array, "n m"]:
        """The plan P, held whole also where the problem was solved by blocks: O(n m) numbers."""
        problem = self.problem
        kernel = problem.map_rows(lambda c, f: problem.exponentials(c, f, self.g), self.f)
        return problem.a[:, None] * problem.b * kernel

    def marginals(self) -> tuple[Float[Array, " n"], Float[Array, " m"]]:
        """P1 and Pᵀ1."""
        ones = jnp.ones_like(self.f), jnp.ones_like(self.g)
        return self.apply(ones[1]), self.apply(ones[0], transpose=True)

    def apply(self, v: Float[Array, "m ..."], *, transpose: bool = False) -> Float[Array, "n ..."]:
        """P v, without the plan where blocks are used; Pᵀ v with `transpose`.

        Args:
            v: a vector, or a matrix of vectors as columns.
            transpose: whether the plan's columns are summed over instead.

        Raises:
            ValueError: if v's length is not the plan's.
        """
        problem, f, g, v = self.problem, self.f, self.g, jnp.asarray(v)
        if transpose:
            problem, f, g = problem.transposed, g, f
        if v.ndim not in (1, 2) or v.shape[0] != g.shape[0]:
            raise ValueError(f"v must have {g.shape[0]} rows; got shape {v.shape}.")
        along = (slice(None),) + (None,) * (v.ndim - 1)
        return problem.a[along] * problem.row_sums(f, g, problem.b[along] * v)

    def potential(self, z: Float[Array, "k d"]) -> Float[Array, " k"]:
        """The potential f_ε of x's side, also away from x: −ε log Σ_j b_j exp((g_j − c(z, y_j))/ε).

        At x it equals f at the optimum; its gradient at x_i is that of the value divided by a_i.

        Args:
            z: points.

        Raises:
            ValueError: for a cost matrix, or points of another dimension.
        """
        return self._at_points(z, self._soft_minimum)

    def transport(self, z: Float[Array, "k d"]) -> Float[Array, "k d"]:
        """The entropic map from x's side to y's, z − ∇h*(∇f_ε(z)), also away from x.

        For the squared Euclidean cost it is the mean of y under P(·|z), the barycentric projection.

        Args:
            z: points.

        Raises:
            ValueError: for a cost whose ∇h* is not known, a cost matrix, or points of another
                dimension.

        References:
            Pooladian, Niles-Weed 2021, definition 1; Cuturi, Klein, Ablin 2023, proposition 2.
        """

        def displacement(z):
            gradient = jax.grad(lambda z: jnp.sum(self._soft_minimum(z)))(z)
            return costs.grad_conjugate(cast(PointPairs, self.problem.pairs).cost)(gradient)

        return z - self._at_points(z, displacement)

    def _at_points(self, z: Any, function: Callable[[Array], Array]) -> Array:
        """A function of centred points, by blocks of them."""
        problem, pairs = self.problem, self.problem.pairs
        if not isinstance(pairs, PointPairs):
            raise ValueError("z needs a cost between points; this problem has a cost matrix.")
        check_matrix(z=z)
        check_same_features(z, pairs.y, ("z", "y"))
        shifted = z if self.center is None else z - self.center
        rows = z.shape[0] if problem.dense else problem.block_rows
        return map_row_blocks(function, pairs.shape[1], shifted, block_rows=rows)

    def _soft_minimum(self, z: Float[Array, "k d"]) -> Float[Array, " k"]:
        problem, pairs = self.problem, cast(PointPairs, self.problem.pairs)
        matrix = costs.cost_matrix(pairs.cost, z, pairs.y)
        # By the weights' logarithms, so that what has no weight plays no part however near.
        exponent = (self.g - matrix) / problem.epsilon + _safe_log(problem.b)
        weighted = jnp.where(problem.b > 0, exponent, -jnp.inf)
        return -problem.epsilon * jax.nn.logsumexp(weighted, axis=1)


def _safe_log(weights: Array) -> Array:
    return jnp.log(jnp.where(weights > 0, weights, 1))


def sinkhorn(
    x: Float[Array, "n d"] | None,
    y: Float[Array, "m d"] | None,
    a: Float[Array, " n"] | None = None,
    b: Float[Array, " m"] | None = None,
    *,
    epsilon: ArrayLike,
    cost: Callable[..., Array] | Float[Array, "n m"] = SqEuclidean(),
    max_iterations: int = 2000,
    tolerance: ArrayLike | None = 1e-3,
    marginal_penalty: ArrayLike | tuple[ArrayLike | None, ArrayLike | None] | None = None,
    init: tuple[Float[Array, " n"], Float[Array, " m"]] | None = None,
    annealing: Annealing | None = None,
    over_relaxation: ArrayLike | None = None,
    block_size: int | None = None,
) -> SinkhornResult:
    """Entropic optimal transport, min_P ⟨P, C⟩ + ε KL(P‖a⊗b), balanced or unbalanced.

    Over plans with P1 = a and Pᵀ1 = b; with `marginal_penalty`, over all P ≥ 0, with
    ρ_a KL(P1‖a) + ρ_b KL(Pᵀ1‖b) added instead. KL(p‖q) = Σ p log(p/q) − Σ p + Σ q.

    Iterations are matrix–vector products with the kernel at the potentials found so far,
    over-relaxed; they go back to the log domain where numbers leave their range.
    Under `jax.vmap` every problem iterates until the slowest has converged; a fixed count, or on a
    CPU `jax.lax.map`, is faster. Memory is 2 n m numbers when dense, O(n + m) by blocks.

    Args:
        x: samples, or None with a cost matrix.
        y: samples, or None with a cost matrix.
        a: weights of x, non-negative; uniform by default, of b's total mass (1 without b).
        b: weights of y. Balanced, of the same sum as a.
        epsilon: ε > 0, in units of the cost.
        cost: a cost of `divjax.ot`, any function of two points, or a matrix of costs.
        max_iterations: the largest number of iterations.
        tolerance: stop at an L1 error of the marginals, of both together, of tolerance × mass; None
            for exactly `max_iterations` iterations.
        marginal_penalty: ρ > 0, in units of the cost, of both marginals; or (ρ_a, ρ_b), None for
            one that is met exactly.
        init: potentials (f, g) to start from, such as those of a neighbouring problem.
        annealing: solve along a decreasing sequence of ε first; helps where ε is far below the mean
            cost.
        over_relaxation: a fixed ω in (0, 2), 1 for plain iterations; None finds ω and is plain
            again where the error grows.
        block_size: rows of costs held at a time, for both sides; n and m, or more, for all of
            them. By default all where they are at most 2²⁵ (2²⁸ on an accelerator).

    Returns:
        A `SinkhornResult`, the value first.

    Raises:
        ValueError: for wrong shapes, empty samples, and, where their values are known while
            tracing, negative or not finite weights, weights of unequal sums, and numbers out of
            range. NaNs in the points make `converged` false.

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
        unbalanced.
    """
    problem, center = make_problem(x, y, a, b, epsilon, cost, marginal_penalty, block_size)
    return solve_problem(
        problem,
        center,
        _start(problem, init),
        max_iterations=max_iterations,
        tolerance=tolerance,
        annealing=annealing,
        over_relaxation=over_relaxation,
    )


def solve_problem(
    problem: Problem,
    center: Array | None,
    init: tuple[Array, Array] | None = None,
    *,
    max_iterations: int,
    tolerance: ArrayLike | None,
    annealing: Annealing | None = None,
    over_relaxation: ArrayLike | None = None,
    symmetric: bool = False,
) -> SinkhornResult:
    """The result of a problem; a tolerance is a share of the mass."""
    check_count(1, max_iterations=max_iterations)
    check_positive(tolerance=tolerance, over_relaxation=over_relaxation)
    if annealing is not None and not isinstance(annealing, Annealing):
        raise ValueError(f"annealing must be an `Annealing`; got {annealing!r}.")
    if isinstance(over_relaxation, (int, float)) and not over_relaxation < 2:
        raise ValueError(f"over_relaxation must be a number in (0, 2); got {over_relaxation}.")
    mass = (jnp.sum(problem.a) + jnp.sum(problem.b)) / 2
    solution = iterate(
        problem,
        init,
        max_iterations=max_iterations,
        tolerance=None if tolerance is None else mass * tolerance,
        annealing=annealing,
        over_relaxation=over_relaxation,
        symmetric=symmetric,
    )
    f, g, excess = refined_where_large(problem, solution.f, solution.g, solution.excess)
    f, g = jax.lax.stop_gradient(gauge(problem, f, g))
    value = envelope_value(problem, f, g, excess)
    # What is traced cannot be refused; it has no value.
    valid = (problem.epsilon > 0) & jnp.all(problem.a >= 0) & jnp.all(problem.b >= 0)
    for penalty in problem.penalties:
        valid = valid if penalty is None else valid & (jnp.asarray(penalty) > 0)
    value = nan_unless(valid, value)
    enough = mass * (FIXED_TOLERANCE if tolerance is None else tolerance)
    # What rounding does to the potentials, the iterations' error does not know.
    sampled = sampled_error(problem, f, g)
    error = jnp.maximum(solution.error, sampled)
    sound = sampled <= ROUNDING_MARGIN * enough + ROUNDING_FLOOR * mass
    if not symmetric:  # a sample may be far closer to itself than what it is compared with
        sound &= ~costs_are_lost(problem)
    f, g = gauge(problem, *with_implicit_derivatives(problem, f, g))
    converged = (solution.error <= enough) & sound & jnp.isfinite(value)
    return SinkhornResult(value, f, g, error, solution.num_iterations, converged, problem, center)


def make_problem(
    x: Any, y: Any, a: Any, b: Any, epsilon: Any, cost: Any, marginal_penalty: Any, block_size: Any
) -> tuple[Problem, Array | None]:
    """The problem, checked, in one dtype, of centred points, and the centre."""
    if not _is_real(epsilon) or jnp.ndim(epsilon) != 0:
        raise ValueError(f"epsilon must be a positive number; got {epsilon!r}.")
    check_positive_values(epsilon=epsilon)
    center = None
    if hasattr(cost, "shape"):
        if x is not None or y is not None:
            raise ValueError("x and y must be None where cost is a matrix.")
        check_matrix(cost=cost)
        dtype = cost.dtype
        pairs: Any = MatrixPairs(jnp.asarray(cost))
    else:
        check_callable(cost=cost)
        check_matrix(x=x, y=y)
        check_same_features(x, y)
        dtype = jnp.result_type(x, y)
        x, y = jnp.asarray(x, dtype), jnp.asarray(y, dtype)
        cost = costs.checked_cost(cost, x[0])
        if getattr(cost, "translation_invariant", False):
            center = jax.lax.stop_gradient((jnp.mean(x, axis=0) + jnp.mean(y, axis=0)) / 2)
            x, y = x - center, y - center
        pairs = PointPairs(x, y, jax.tree.map(lambda leaf: _as_dtype(leaf, dtype), cost))
    n, m = pairs.shape
    penalties = _penalties(marginal_penalty, dtype)
    a, b = _weights(a, b, n, m, dtype, penalties == (None, None))
    rows = _block_rows(n, m, block_size)
    return Problem(pairs, a, b, jnp.asarray(epsilon, dtype), penalties, rows), center


def _is_real(number: Any) -> bool:
    """Whether it is a number, or an array of them."""
    numeric = isinstance(number, (int, float)) or hasattr(number, "dtype")
    return numeric and not jnp.issubdtype(jnp.result_type(number), jnp.complexfloating)


def _as_dtype(leaf: Any, dtype: Any) -> Any:
    """A floating-point leaf of a cost in the points' dtype."""
    floating = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
    return jnp.asarray(leaf, dtype) if floating else leaf


def _penalties(marginal_penalty: Any, dtype: Any) -> tuple[Any, Any]:
    pair = marginal_penalty if isinstance(marginal_penalty, tuple) else (marginal_penalty,) * 2
    if len(pair) != 2:
        raise ValueError(f"marginal_penalty must be one or two numbers; got {len(pair)}.")
    for penalty in pair:
        if penalty is not None:
            check_positive_values(marginal_penalty=penalty)
    return tuple(None if rho is None else jnp.asarray(rho, dtype) for rho in pair)  # pyright: ignore


def _weights(a: Any, b: Any, n: int, m: int, dtype: Any, balanced: bool) -> tuple[Array, Array]:
    """Both weights: uniform where not given, of the other's mass."""
    for name, weights, size in (("a", a, n), ("b", b, m)):
        if weights is not None:
            check_shape(name, weights, size)
            check_weights(name, weights)
    concrete = [w for w in (a, b) if w is not None and not isinstance(w, Tracer)]
    if balanced and len(concrete) == 2:
        sums = [float(np.asarray(w, np.float64).sum()) for w in concrete]
        if abs(sums[0] - sums[1]) > 1e-4 * max(sums):
            raise ValueError(f"a and b must have the same sum; got {sums[0]} and {sums[1]}.")
    given = a if a is not None else b
    mass = jnp.ones((), dtype) if given is None else jnp.sum(jnp.asarray(given, dtype))
    uniform = lambda size: jnp.full(size, mass / size, dtype)
    a = uniform(n) if a is None else jnp.asarray(a, dtype)
    return a, uniform(m) if b is None else jnp.asarray(b, dtype)


def _block_rows(n: int, m: int, block_size: int | None) -> int:
    """Rows held at a time; as many as there are where all fit."""
    if block_size is not None:
        check_count(1, block_size=block_size)
        return block_size
    cpu = jax.default_backend() == "cpu"
    if n * m <= (DENSE_PAIRS_CPU if cpu else DENSE_PAIRS_ACCELERATOR):
        return max(n, m)
    block = BLOCK_PAIRS_CPU if cpu else BLOCK_PAIRS_ACCELERATOR
    return max(1, block // max(n, m))


def _start(problem: Problem, init: Any) -> tuple[Array, Array] | None:
    """The potentials to start from, checked."""
    n, m = problem.pairs.shape
    if init is None:
        return None
    if not isinstance(init, tuple) or len(init) != 2:
        raise ValueError(f"init must be a pair of potentials (f, g); got {type(init).__name__}.")
    f, g = init
    check_shape("init[0]", f, n)
    check_shape("init[1]", g, m)
    return gauge(problem, jnp.asarray(f, problem.a.dtype), jnp.asarray(g, problem.b.dtype))
