"""Entropic optimal transport between two weighted samples, or from a cost matrix."""

import functools
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int, Key

from divjax.core.checks import (
    check_count,
    check_positive,
    check_same_features,
    check_scalar,
    check_shape,
)
from divjax.core.keys import own_key
from divjax.core.numerics import if_needed, nan_unless
from divjax.core.pairwise import map_row_blocks
from divjax.core.pytrees import pytree
from divjax.core.samples import as_samples, owned
from divjax.core.types import Outcome, status_of
from divjax.ot import costs
from divjax.ot.costs import SqEuclidean
from divjax.ot.derivatives import (
    envelope_value,
    gauge,
    mass_price,
    rows_potential,
    weightless,
    with_implicit_derivatives,
)
from divjax.ot.formulation import Formulation, formulate
from divjax.ot.interchange import potentials_to_ott
from divjax.ot.iterations import iterate
from divjax.ot.problem import PointPairs, Problem, has_lone_row, soft_minimum
from divjax.ot.rounding import cost_error, costs_are_lost, refined_where_large, sampled_error
from divjax.ot.schedules import Annealing, Relative

__all__ = ["SinkhornResult", "sinkhorn", "solve", "start_of"]

# The largest L1 error, as a share of the mass, with which a fixed number of iterations converges.
FIXED_TOLERANCE = 1e-3
# With rounding, the error may be this multiple of the tolerance, plus this share of the mass: the
# errors of single precision at a tight tolerance are not a failure of the iterations.
ROUNDING_MARGIN, ROUNDING_FLOOR = 2, 5e-5


@pytree
class SinkhornResult(Outcome):
    """The value, the potentials and the plan of an entropic transport problem.

    The plan is P_ij = a_i b_j exp((f_i + g_j − C_ij)/ε), computed on demand. Value, potentials and
    all quantities derived from them are differentiable to any order, forwards and backwards, with
    respect to points, weights, ε and the cost's parameters. Derivatives are those at the optimum,
    so they are as accurate as the iterations have converged. (Second derivatives in both the weight
    and the point of a row of weight zero are omitted.)

    Attributes:
        value: the dual objective at f and g: a lower bound on the problem's value, with an error
            quadratic in that of the potentials. It is infinite if a row with exact marginal has
            only infinite costs.
        f: the potential of x, with ⟨a, f⟩ = ⟨b, g⟩ if balanced. If a_i = 0 it is the soft transform
            of g, −ε log Σ_j b_j exp((g_j − C_ij)/ε), infinite for a row of infinite costs.
        g: the potential of y.
        error: the L1 distance of the plan's marginals from a and b, both sides together, or for
            relaxed marginals from a exp(−f/ρ) and b exp(−g/ρ), their values at the optimum. If
            rounding of f and g makes it larger, the larger one, estimated from 64 rows and columns.
        num_iterations: the iterations made, annealing included.
        status: `Status.CONVERGED` if the iterations' error is at most tolerance × mass (without a
            tolerance, 1e-3 × mass), and rounding of costs and potentials moves the plan by no more
            than about twice that; `FLOATING_POINT_RESOLUTION` if rounding moves it by more.
        errors: the error after each iteration, NaN for iterations not made or of annealing, None
            unless requested.
        formulation: the solved problem, and its relation to the given one.
        centered_f: the potential of the rows of `problem`, from which methods compute.
        centered_g: likewise.
        centered_value: the value without the contribution of a shift of quadratic costs.
    """

    value: Float[Array, ""]
    f: Float[Array, " n"]
    g: Float[Array, " m"]
    error: Float[Array, ""]
    num_iterations: Int[Array, ""]
    status: Int[Array, ""]
    errors: Float[Array, " max_iterations"] | None
    formulation: Formulation
    centered_f: Float[Array, " n"]
    centered_g: Float[Array, " m"]
    centered_value: Float[Array, ""]

    @property
    def problem(self) -> Problem:
        """The solved problem, of centred points: weights, ε, penalties, costs."""
        return self.formulation.problem

    @property
    def transposed(self) -> "SinkhornResult":
        """The same plan from y to x: its `potential` and `transport` are those of y's side.

        Example:
            >>> import jax.numpy as jnp
            >>> x = jnp.array([[0.0], [1.0]])
            >>> result = sinkhorn(x, x + 2, epsilon=0.05)
            >>> result.transposed.transport(x + 2).round(2).ravel().tolist()
            [0.0, 1.0]
        """
        return SinkhornResult(
            value=self.value,
            f=self.g,
            g=self.f,
            error=self.error,
            num_iterations=self.num_iterations,
            status=self.status,
            errors=self.errors,
            formulation=self.formulation.transposed,
            centered_f=self.centered_g,
            centered_g=self.centered_f,
            centered_value=self.centered_value,
        )

    @jax.jit
    def plan(self) -> Float[Array, "n m"]:
        """The plan P, materialised even if the problem was solved blockwise: O(n m) numbers."""
        problem = self.problem
        kernel = problem.map_rows(
            lambda c, f: problem.exponentials(c, f, self.centered_g), self.centered_f
        )
        # In this order: a product of two small weights would underflow.
        return problem.a[:, None] * (problem.b * kernel)

    @jax.jit
    def marginals(self) -> tuple[Float[Array, " n"], Float[Array, " m"]]:
        """P1 and Pᵀ1."""
        ones = jnp.ones_like(self.f), jnp.ones_like(self.g)
        return self.apply(ones[1]), self.apply(ones[0], transpose=True)

    def apply(self, v: Float[Array, "m ..."], *, transpose: bool = False) -> Float[Array, "n ..."]:
        """P v, without forming the plan if the problem is blockwise; Pᵀ v with `transpose`.

        Args:
            v: a vector, or a matrix of vectors as columns.
            transpose: whether the plan's columns are summed over instead.

        Raises:
            ValueError: if v's length does not match the plan.
        """
        v, size = jnp.asarray(owned(v)), self.f.shape[0] if transpose else self.g.shape[0]
        if v.ndim not in (1, 2) or v.shape[0] != size:
            raise ValueError(f"v must have {size} rows; got shape {v.shape}.")
        return self._apply(v, transpose=transpose)

    @functools.partial(jax.jit, static_argnames="transpose")
    def _apply(self, v: Float[Array, "m ..."], *, transpose: bool) -> Float[Array, "n ..."]:
        problem, f, g = self.problem, self.centered_f, self.centered_g
        if transpose:
            problem, f, g = problem.transposed, g, f
        # Weights have a trailing axis for the columns of a matrix v.
        along = (slice(None),) + (None,) * (v.ndim - 1)
        return problem.a[along] * problem.row_sums(f, g, problem.b[along] * v)

    @property
    @jax.jit
    def transport_cost(self) -> Float[Array, ""]:
        """⟨P, C⟩, the cost of the plan without entropy, blockwise if the problem is.

        Example:
            >>> import jax.numpy as jnp
            >>> x = jnp.array([[0.0], [1.0]])
            >>> float(sinkhorn(x, x + 2, epsilon=0.05).transport_cost)
            4.000
        """
        # A forbidden pair has no mass, and its infinite cost is excluded.
        paid = self._plan_sum(lambda c, exponent, log_b: jnp.where(c == jnp.inf, 0, c))
        formulation = self.formulation
        if formulation.slope is None:
            return paid
        # Centring removed linear terms from the costs: the marginals restore them.
        pairs, (rows, columns) = cast(PointPairs, self.problem.pairs), self.marginals()
        paid += rows @ formulation.linear_terms(pairs.x)
        return paid + columns @ formulation.transposed.linear_terms(pairs.y)

    @property
    @jax.jit
    def plan_entropy(self) -> Float[Array, ""]:
        """H(P) = −Σ_ij P_ij log P_ij, blockwise if the problem is.

        Example:
            >>> import jax.numpy as jnp
            >>> x = jnp.array([[0.0], [1.0]])
            >>> float(sinkhorn(x, x + 2, epsilon=0.05).plan_entropy)  # one to one: log 2
            0.693
        """
        # log P_ij = log a_i + (exponent + log b_j), where the first term requires only the rows'
        # sums. A row of weight zero has no mass, and its logarithm is ignored.
        logs = self._plan_sum(lambda c, exponent, log_b: exponent + log_b)
        rows = self.apply(jnp.ones_like(self.g))
        a = self.problem.a
        return -logs - jnp.sum(rows * jnp.log(jnp.where(a > 0, a, 1)))

    def _plan_sum(self, function: Callable[[Array, Array, Array], Array]) -> Float[Array, ""]:
        """Σ_ij P_ij h(C_ij, (f_i + g_j − C_ij)/ε, log b_j)."""
        problem, b = self.problem, self.problem.b
        log_b = jnp.log(jnp.where(b > 0, b, 1))

        def block(costs: Array, f: Array) -> Array:
            exponent = problem.exponents(costs, f, self.centered_g)
            share = b * problem.exponentials(costs, f, self.centered_g)
            # A pair without mass is excluded, as its cost or logarithm may be infinite.
            counted = share > 0
            exponent = jnp.where(counted, exponent, 0)
            terms = function(jnp.where(counted, costs, 0), exponent, log_b)
            return jnp.sum(share * terms, axis=1)

        return problem.a @ problem.map_rows(block, self.centered_f)

    def sample_pairs(
        self, key: Key[Array, ""], num_pairs: int
    ) -> tuple[Int[Array, " num_pairs"], Int[Array, " num_pairs"]]:
        """Independent pairs (i, j) with probability P_ij/ΣP, such as minibatches of flow matching.

        Args:
            key: the key for the draws.
            num_pairs: the number of pairs.

        Returns:
            The rows of x and the rows of y, zeros for a NaN plan. Memory is that of a block of
            pairs × m.

        Raises:
            ValueError: if `key` is not a key, or `num_pairs` is not a positive integer.

        Example:
            >>> import jax, jax.numpy as jnp
            >>> x = jnp.array([[0.0], [1.0]])
            >>> i, j = sinkhorn(x, x + 2, epsilon=0.05).sample_pairs(jax.random.key(0), 100)
            >>> bool(jnp.all(i == j))
            True

        References:
            Tong et al. 2024, algorithm 3: flow matching with such pairs.
        """
        key = own_key(key)
        check_count(1, num_pairs=num_pairs)
        return self._sample_pairs(key, num_pairs=num_pairs)

    @functools.partial(jax.jit, static_argnames="num_pairs")
    def _sample_pairs(
        self, key: Key[Array, ""], *, num_pairs: int
    ) -> tuple[Int[Array, " num_pairs"], Int[Array, " num_pairs"]]:
        row_key, column_key = jax.random.split(key)
        problem, pairs = self.problem, self.problem.pairs
        # A row from the first marginal, then a column from that row of the plan: at most a block of
        # the plan is materialised.
        masses, _ = self.marginals()
        i = _inverse_cdf(masses, jax.random.uniform(row_key, (num_pairs,), masses.dtype))

        def block(rows: Array, f: Array, u: Array) -> Array:
            kernel = problem.exponentials(pairs.block(rows), f, self.centered_g)
            return _inverse_cdf(problem.b * kernel, u)

        # Drawn for all rows at once, so that the pairs do not depend on the block size.
        u = jax.random.uniform(column_key, (num_pairs,), masses.dtype)
        size = num_pairs if problem.dense else problem.block_rows
        rows = pairs.rows[i], self.centered_f[i], u
        return i, map_row_blocks(block, pairs.shape[1], *rows, block_rows=size)

    @jax.jit
    def assignment(self) -> Int[Array, " n"]:
        """The most likely partner of each row, argmax_j P_ij, in general not a permutation.

        A row of weight zero gets its conditional partner; NaN potentials give 0.

        Example:
            >>> import jax.numpy as jnp
            >>> x = jnp.array([[0.0], [1.0]])
            >>> sinkhorn(x, x[::-1] + 2, epsilon=0.05).assignment().tolist()
            [1, 0]
        """
        problem = self.problem

        def block(rows: Array) -> Array:
            # f_i is common to a row: it does not change the maximum, and is unavailable for a row
            # of weight zero.
            exponent = (self.centered_g - problem.pairs.block(rows)) / problem.epsilon
            exponent = exponent + jnp.log(jnp.where(problem.b > 0, problem.b, 1))
            return jnp.argmax(jnp.where(problem.b > 0, exponent, -jnp.inf), axis=1)

        rows = self.formulation.rows
        size = rows.shape[0] if problem.dense else problem.block_rows
        return map_row_blocks(block, problem.pairs.shape[1], rows, block_rows=size)

    def potential(self, z: Float[Array, "k d"]) -> Float[Array, " k"]:
        """The potential f_ε of x's side, also away from x: −ε log Σ_j b_j exp((g_j − c(z, y_j))/ε).

        For a relaxed marginal it is ρ/(ρ + ε) times that. At x it equals f at the optimum. Between
        exact marginals its gradient at x_i is that of the value divided by a_i. The potential of
        y's side is `transposed.potential`.

        Args:
            z: points.

        Raises:
            ValueError: for a cost matrix, or points of another dimension.
        """
        return self._potential(self._centered(z))

    @jax.jit
    def _potential(self, z: Float[Array, "k d"]) -> Float[Array, " k"]:
        return soft_minimum(self.problem, z, self.centered_g) + self.formulation.linear_terms(z)

    def transport(self, z: Float[Array, "k d"]) -> Float[Array, "k d"]:
        """The entropic map from x's side to y's, z − ∇h*(∇f_ε(z)), also away from x.

        For the squared Euclidean cost it is the mean of y under P(·|z), the barycentric projection.
        The map from y to x is `transposed.transport`.

        Args:
            z: points.

        Raises:
            ValueError: for a cost with unknown ∇h*, a cost matrix, or points of another
                dimension.

        References:
            Pooladian, Niles-Weed 2021, definition 1; Cuturi, Klein, Ablin 2023, proposition 2.
        """
        return self._transport(self._centered(z))

    @jax.jit
    def _transport(self, z: Float[Array, "k d"]) -> Float[Array, "k d"]:
        pairs = cast(PointPairs, self.problem.pairs)
        conjugate = costs.grad_conjugate(pairs.cost)
        # A relaxed marginal damps the potential, but not the plan that the map is the mean of.
        undamped = lambda z: (
            soft_minimum(self.problem, z, self.centered_g) / self.problem.damping[0]
        )
        gradient = jax.grad(lambda z: jnp.sum(undamped(z)))(z)
        # The transposed problem's h is h(−z). Between centred points a quadratic h has no shift.
        image = z + conjugate(-gradient) if pairs.swapped else z - conjugate(gradient)
        return self.formulation.transposed.uncentered(image)

    def to_ott(self) -> Any:
        """The potentials as ott-jax's `DualPotentials`, functions of one point each, and the cost.

        Its `transport` is that of this result, both ways, and ott-jax's own tools, such as plots,
        accept it. `potentials_from_ott` is the converse.

        Raises:
            ValueError: for a cost matrix.

        Example:
            >>> import jax.numpy as jnp
            >>> x = jnp.array([[0.0], [1.0]])
            >>> theirs = sinkhorn(x, x + 2, epsilon=0.05).to_ott()
            >>> theirs.transport(x).round(2).ravel().tolist()
            [2.0, 3.0]
            >>> theirs.transport(x + 2, forward=False).round(2).ravel().tolist()
            [0.0, 1.0]
        """
        return potentials_to_ott(self)

    def _centered(self, z: Any) -> Float[Array, "k d"]:
        """Points relative to the centre of x, checked."""
        pairs = self.problem.pairs
        if not isinstance(pairs, PointPairs):
            raise ValueError("z needs a cost between points; this problem has a cost matrix.")
        (points,) = as_samples(z=z)
        check_same_features(points, pairs.y, ("z", "y"))
        return self.formulation.centered(z)


def _inverse_cdf(masses: Float[Array, "... m"], u: Float[Array, " k"]) -> Int[Array, " k"]:
    """Indices with probabilities in proportion to masses, from uniform numbers in [0, 1)."""
    # Indices are not differentiable.
    masses = jax.lax.stop_gradient(masses)
    cumulated = jnp.cumsum(masses, axis=-1)
    total = cumulated[..., -1]
    # Below the total, as rounding of u · total would lead beyond the last index.
    goal = jnp.minimum(u * total, jnp.nextafter(total, jnp.zeros_like(total)))
    # With 2-D masses each number has its own row; otherwise one search serves all numbers.
    if masses.ndim > 1:
        return jnp.argmax((cumulated > goal[:, None]) & (masses > 0), axis=1)
    index = jnp.searchsorted(cumulated, goal, side="right")
    # Rounding may let sums rise at an index without mass: the preceding index with mass is taken.
    with_mass = jax.lax.cummax(jnp.where(masses > 0, jnp.arange(masses.size), 0))
    return with_mass[jnp.minimum(index, masses.size - 1)]


def sinkhorn(
    x: Float[Array, "n d"] | None,
    y: Float[Array, "m d"] | None,
    a: Float[Array, " n"] | None = None,
    b: Float[Array, " m"] | None = None,
    *,
    epsilon: ArrayLike | Relative,
    cost: Callable[..., Array] | Float[Array, "n m"] = SqEuclidean(),
    max_iterations: int = 2000,
    tolerance: ArrayLike | None = 1e-3,
    marginal_penalty: ArrayLike | tuple[ArrayLike | None, ArrayLike | None] | None = None,
    init: tuple[Float[Array, " n"], Float[Array, " m"]] | None = None,
    annealing: Annealing | None = None,
    over_relaxation: ArrayLike | None = None,
    block_size: int | None = None,
    record_errors: bool = False,
) -> SinkhornResult:
    """Entropic optimal transport, min_P ⟨P, C⟩ + ε KL(P‖a⊗b), balanced or unbalanced.

    P ranges over plans with P1 = a and Pᵀ1 = b. With `marginal_penalty` it ranges over all P ≥ 0,
    and ρ_a KL(P1‖a) + ρ_b KL(Pᵀ1‖b) is added. KL(p‖q) = Σ p log(p/q) − Σ p + Σ q.

    Iterations are over-relaxed matrix–vector products with the kernel at the current potentials.
    They return to the log domain if numbers leave their range. Under `jax.vmap` every problem
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
            An infinite cost forbids a pair. A row with only such costs stays unmatched if its
            marginal is relaxed. Otherwise there is no plan: the value is infinite, and flagged by
            `Status.NOT_FINITE`. If rows have finite costs, but together too few columns, the
            iterations do not converge.
        max_iterations: the largest number of iterations.
        tolerance: stop at an L1 error of the marginals, of both together, of tolerance × mass; None
            for exactly `max_iterations` iterations.
        marginal_penalty: ρ > 0, in units of the cost, of both marginals; or (ρ_a, ρ_b). None or
            infinity for an exact marginal.
        init: potentials (f, g) to start from, such as those of a similar problem. Ignored if they
            are not finite, or so large that they are rounded by more than ε.
        annealing: solve along a decreasing sequence of ε first, which helps if ε is far below the
            mean cost.
        over_relaxation: a fixed ω in (0, 2), 1 for plain iterations; None for an adaptive ω, which
            returns to plain iterations if the error grows.
        block_size: rows of costs in memory at a time, for both sides (n and m, or more, for all).
            By default all if there are at most 2²⁵ costs (2²⁸ on an accelerator).
        record_errors: whether the result holds the error after every iteration.

    Returns:
        A `SinkhornResult`, the value first.

    Raises:
        ValueError: for wrong shapes, empty samples, and, if their values are known at trace time,
            negative or non-finite weights, weights of unequal sums, and numbers out of range. NaN
            in a row with weight gives NaN and `Status.NOT_FINITE`; traced numbers out of range give
            NaN and `Status.INVALID_INPUT`.

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
    formulation = formulate(x, y, a, b, epsilon, cost, marginal_penalty, block_size)
    return solve(
        formulation,
        start_of(formulation, init),
        max_iterations=max_iterations,
        tolerance=tolerance,
        annealing=annealing,
        over_relaxation=over_relaxation,
        record_errors=record_errors,
    )


def solve(
    formulation: Formulation,
    init: tuple[Array, Array] | None = None,
    *,
    max_iterations: int,
    tolerance: ArrayLike | None,
    annealing: Annealing | None = None,
    over_relaxation: ArrayLike | None = None,
    symmetric: bool = False,
    record_errors: bool = False,
) -> SinkhornResult:
    """The result of a problem, with tolerance a share of the mass, and `init` of centred points."""
    check_count(1, max_iterations=max_iterations)
    check_scalar(tolerance=tolerance, over_relaxation=over_relaxation)
    check_positive(tolerance=tolerance, over_relaxation=over_relaxation)
    if annealing is not None:
        if not isinstance(annealing, Annealing):
            raise ValueError(f"annealing must be an `Annealing`; got {annealing!r}.")
        check_scalar(start=annealing.start, decay=annealing.decay)
    if isinstance(over_relaxation, (int, float)) and not over_relaxation < 2:
        raise ValueError(f"over_relaxation must be a number in (0, 2); got {over_relaxation}.")
    return _solve(
        formulation,
        init,
        tolerance,
        annealing,
        over_relaxation,
        max_iterations=max_iterations,
        symmetric=symmetric,
        record_errors=record_errors,
    )


@functools.partial(jax.jit, static_argnames=("max_iterations", "symmetric", "record_errors"))
def _solve(
    formulation: Formulation,
    init: tuple[Array, Array] | None,
    tolerance: ArrayLike | None,
    annealing: Annealing | None,
    over_relaxation: ArrayLike | None,
    *,
    max_iterations: int,
    symmetric: bool,
    record_errors: bool,
) -> SinkhornResult:
    """`solve` after its checks."""
    problem = formulation.problem
    # Tolerances are shares of this mass. With relaxed marginals the two sums may differ.
    mass = (jnp.sum(problem.a) + jnp.sum(problem.b)) / 2

    # 1. Iterate, with stopped gradients.
    solution = iterate(
        problem,
        init,
        max_iterations=max_iterations,
        tolerance=None if tolerance is None else mass * jnp.asarray(tolerance, mass.dtype),
        annealing=annealing,
        over_relaxation=over_relaxation,
        symmetric=symmetric,
        record_errors=record_errors,
    )
    # At a large ε the iterations' logarithms of almost one have lost the potentials' last digits,
    # and so would the value.
    f, g, excess = refined_where_large(problem, solution.f, solution.g, solution.excess)
    # Balanced potentials are unique up to a constant, which the iterations leave arbitrary.
    f, g = jax.lax.stop_gradient(gauge(problem, f, g))

    # 2. The value, by the envelope theorem, and the potentials, by the implicit function theorem.
    centered_value = envelope_value(problem, f, g, excess) + formulation.unmatched
    # Adds zero, to correct derivatives in weights that are zero.
    centered_value += _weightless(formulation, f, g)
    centered_f, centered_g = _normalized(formulation, *with_implicit_derivatives(problem, f, g))
    if problem.infinite:
        centered_value = _infinite_without_a_plan(problem, centered_value)

    # 3. Validity of traced arguments, and rounding. The iteration error excludes the rounding error
    # of the stored potentials and costs.
    valid = formulation.valid
    if annealing is not None:
        valid &= annealing.valid
    if over_relaxation is not None:
        omega = jnp.asarray(over_relaxation)
        valid &= (omega > 0) & (omega < 2)
    if tolerance is not None:
        valid &= jnp.asarray(tolerance) > 0
    numbers = centered_value, centered_f, centered_g
    centered_value, centered_f, centered_g = (nan_unless(valid, number) for number in numbers)
    f_rows, g_rows = _at_all_rows(formulation, centered_f, centered_g)
    value = centered_value + formulation.shift_cost
    enough = mass * (FIXED_TOLERANCE if tolerance is None else jnp.asarray(tolerance, mass.dtype))
    bound = ROUNDING_MARGIN * enough + ROUNDING_FLOOR * mass
    sampled = sampled_error(problem, f, g, symmetric=symmetric)
    moved = cost_error(problem, f, g)
    done = solution.error <= enough
    # An error of the stored potentials is due to rounding only if the iteration error is small.
    resolved = (moved <= bound) & ((sampled <= bound) | ~done)
    if not symmetric:  # a sample may be far closer to itself than to the other
        resolved &= ~costs_are_lost(problem)
    status = status_of(converged=done, resolved=resolved, finite=jnp.isfinite(value), valid=valid)
    return SinkhornResult(
        value=value,
        f=f_rows,
        g=g_rows,
        error=jnp.maximum(solution.error, sampled),
        num_iterations=solution.num_iterations,
        status=status,
        errors=solution.errors,
        formulation=formulation,
        centered_f=centered_f,
        centered_g=centered_g,
        centered_value=centered_value,
    )


def _infinite_without_a_plan(problem: Problem, value: Array) -> Array:
    """+∞ in place of NaN if a row or a column with mass has only infinite costs."""
    # Tested only if the value is not finite.
    problem, given = jax.lax.stop_gradient((problem, value))
    lone = if_needed(jnp.isnan(given), lambda _: has_lone_row(problem), jnp.array(False))
    return jnp.where(lone, jnp.inf, value)


def _normalized(formulation: Formulation, f: Array, g: Array) -> tuple[Array, Array]:
    """Balanced centred potentials, shifted so that the final ones have ⟨a, f⟩ = ⟨b, g⟩."""
    if formulation.slope is None:
        return gauge(formulation.problem, f, g)
    # The normalisation is of the final potentials, which include the linear terms α and β; the
    # constant shifts the centred ones equally.
    pairs = cast(PointPairs, formulation.problem.pairs)
    full_f = f + formulation.linear_terms(pairs.x)
    full_g = g + formulation.transposed.linear_terms(pairs.y)
    a, b = formulation.problem.a, formulation.problem.b
    shift = (a @ full_f - b @ full_g) / (jnp.sum(a) + jnp.sum(b))
    return f - shift, g + shift


def _at_all_rows(formulation: Formulation, f: Array, g: Array) -> tuple[Array, Array]:
    """The final potentials, also at rows of weight zero."""
    problem = formulation.problem
    rows_f, rows_g = f, g
    # A replaced row still has its copy's potential, and is evaluated at its own point. Uniform
    # weights are never zero, and skip this.
    if formulation.may_replace_rows:
        rows_f = rows_potential(problem, formulation.rows, f, g)
    if formulation.transposed.may_replace_rows:
        rows_g = rows_potential(problem.transposed, formulation.columns, g, f)
    return formulation.restored(rows_f, rows_g)


def _weightless(formulation: Formulation, f: Array, g: Array) -> Array | float:
    """Zero, with derivatives that correct those of the value in weights that are zero."""
    total: Array | float = 0.0
    for side, u, v in ((formulation, f, g), (formulation.transposed, g, f)):
        if not side.may_replace_rows:
            continue
        problem = side.problem
        # The value's derivative in a weight is the price of mass at its row. For a replaced row the
        # problem gives the price at the copy; the difference is added here.
        price = lambda potential, problem=problem: mass_price(
            potential, problem.penalties[0], problem.damping[0]
        )
        own = rows_potential(problem, side.rows, u, v) + side.linear_terms(side.rows)
        copied = u
        if isinstance(problem.pairs, PointPairs):
            copied = u + side.linear_terms(problem.pairs.x)
        total += weightless(side.a, price(own) - price(copied))
    return total


def start_of(formulation: Formulation, init: Any) -> tuple[Array, Array] | None:
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
    return gauge(problem, f, g)
