"""The result of an entropic transport problem: value, potentials, plan and map."""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from divjax.core.checks import check_count, check_same_features
from divjax.core.keys import own_key
from divjax.core.pairwise import map_row_blocks
from divjax.core.pytrees import pytree
from divjax.core.samples import Numbers, as_numbers, as_samples
from divjax.core.types import Outcome
from divjax.ot import given_costs
from divjax.ot.entropic.formulation import Formulation
from divjax.ot.entropic.interchange import potentials_to_ott
from divjax.ot.entropic.problem import PointPairs, Problem, soft_minimum

if TYPE_CHECKING:
    from ott.problems.linear.potentials import DualPotentials

__all__ = ["SinkhornResult"]


@pytree
class SinkhornResult(Outcome):
    """The value, the potentials and the plan of an entropic transport problem.

    The plan is P_ij = a_i b_j exp((f_i + g_j − C_ij)/ε), computed on demand. Value, potentials and
    all quantities derived from them are differentiable to any order, forwards and backwards, with
    respect to points, weights, ε and the cost's parameters. Derivatives are those at the optimum:
    their error is that of the iterations. Second derivatives in ε divide by ε², which must be in
    the dtype's range. In a weight of zero, only the value's first derivative is that of the row
    itself. All other results treat the row as a copy of the heaviest one.

    Attributes:
        value: the dual objective at f and g: a lower bound on the problem's value, with an error
            quadratic in that of the potentials. It is infinite if a row with exact marginal has
            only infinite costs.
        f: the potential of x, with ⟨a, f⟩ = ⟨b, g⟩ if balanced. If a_i = 0 it is the soft transform
            of g, −ε log Σ_j b_j exp((g_j − C_ij)/ε), infinite for a row of infinite costs.
        g: the potential of y.
        error: the L1 distance of the plan's marginals from a and b, both sides together, or for
            relaxed marginals from a exp(−f/ρ) and b exp(−g/ρ), their values at the optimum. If
            larger, the distance for f and g as rounded, estimated from 64 rows and columns.
        num_iterations: the iterations made, annealing included.
        status: `Status.CONVERGED` if the iterations' error is at most tolerance × mass (without a
            tolerance, 1e-3 × mass), and rounding of costs and potentials moves the plan by no more
            than about twice that; `FLOATING_POINT_RESOLUTION` if rounding moves it by more.
        errors: the error after each iteration, NaN for iterations not made or of annealing, None
            unless requested.
        formulation: the solved problem, and its relation to the given one.
        centered_f: the potential of the rows of `problem`, from which methods compute. Its
            derivatives are those at fixed centres.
        centered_g: the potential of its columns.
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
            >>> from divjax.ot import sinkhorn
            >>> x = jnp.array([[0.0], [1.0]])
            >>> result = sinkhorn(x, x + 2, epsilon=0.05)
            >>> result.transposed.transport(x + 2).round(2).ravel().tolist()
            [0.0, 1.0]
        """
        # Both sides share the plan, and with it the value, the error and the status.
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

    def apply(
        self, v: Float[Numbers, "m ..."], *, transpose: bool = False
    ) -> Float[Array, "n ..."]:
        """P v, without forming the plan if the problem is blockwise; Pᵀ v with `transpose`.

        Args:
            v: a vector, or a matrix of vectors as columns.
            transpose: whether to multiply by Pᵀ instead.

        Raises:
            ValueError: if v's length does not match the plan.
        """
        v, size = jnp.asarray(as_numbers("v", v)), self.f.shape[0] if transpose else self.g.shape[0]
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
            >>> from divjax.ot import sinkhorn
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
            >>> from divjax.ot import sinkhorn
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
        # A weight of zero has no logarithm, and its pairs are excluded below.
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
            The indices i of x and j of y, zeros for a NaN plan. Memory is that of a block of
            pairs × m.

        Raises:
            ValueError: if `key` is not a key, or `num_pairs` is not a positive integer.

        Example:
            >>> import jax, jax.numpy as jnp
            >>> from divjax.ot import sinkhorn
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

        A row of weight zero gets the partner that it would have with weight; NaN potentials give 0.

        Example:
            >>> import jax.numpy as jnp
            >>> from divjax.ot import sinkhorn
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

    def potential(self, z: Float[Numbers, "k d"]) -> Float[Array, " k"]:
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

    def transport(self, z: Float[Numbers, "k d"]) -> Float[Array, "k d"]:
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
        conjugate = given_costs.grad_conjugate(pairs.cost)
        # A relaxed marginal damps the potential, but not the plan that the map is the mean of.
        undamped = lambda z: (
            soft_minimum(self.problem, z, self.centered_g) / self.problem.damping[0]
        )
        gradient = jax.grad(lambda z: jnp.sum(undamped(z)))(z)
        # The transposed problem's h is h(−z). Between centred points a quadratic h has no shift.
        image = z + conjugate(-gradient) if pairs.swapped else z - conjugate(gradient)
        return self.formulation.transposed.uncentered(image)

    def to_ott(self) -> "DualPotentials":
        """The potentials as ott-jax's `DualPotentials`, functions of one point each, and the cost.

        Its `transport` is that of this result, both ways, and ott-jax's own tools, such as plots,
        accept it. `potentials_from_ott` is the converse.

        Raises:
            ValueError: for a cost matrix.

        Example:
            >>> import jax.numpy as jnp
            >>> from divjax.ot import sinkhorn
            >>> x = jnp.array([[0.0], [1.0]])
            >>> theirs = sinkhorn(x, x + 2, epsilon=0.05).to_ott()
            >>> theirs.transport(x).round(2).ravel().tolist()
            [2.0, 3.0]
            >>> theirs.transport(x + 2, forward=False).round(2).ravel().tolist()
            [0.0, 1.0]
        """
        return potentials_to_ott(self)

    def _centered(self, z: Numbers) -> Float[Array, "k d"]:
        """Points relative to the centre of x, checked."""
        pairs = self.problem.pairs
        if not isinstance(pairs, PointPairs):
            raise ValueError(
                "z can be mapped only for a cost between points; this problem has a cost matrix."
            )
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
