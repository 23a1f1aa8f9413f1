"""An entropic transport problem, and its reductions over all pairs, dense or blockwise.

Throughout, P_ij = a_i b_j E_ij with E = exp((f ⊕ g − C)/ε).
"""

import dataclasses
from collections.abc import Callable
from typing import Self

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, PyTree

from divjax.core.numerics import quotient, safe_log
from divjax.core.pair_reductions import LOG_SUM, SMALLEST, SUM, Reduction, reduce_pairs
from divjax.core.pairwise import map_row_blocks
from divjax.core.pytrees import pytree, static
from divjax.ot.costs import LibraryCost, rounding_scale
from divjax.ot.given_costs import cost_matrix

__all__ = [
    "MatrixPairs",
    "PointPairs",
    "Problem",
    "conjugate",
    "dual_objective",
    "has_symmetric_costs",
    "log_tilted_mass",
    "optimal_shift",
    "recentered",
    "soft_minimum",
    "soft_transform",
]

# Between exact marginals the optimal E_ij is at most 1/max(a_i, b_j). If both weights are zero it
# is arbitrary, and is cut here so that weight · E is zero rather than 0 · ∞.
LARGEST_EXPONENT = 70.0

# Rows whose costs are compared with those of the reversed pairs, and the relative difference from
# which a cost counts as asymmetric: more than the rounding of any that is not.
_FEW_ROWS = 8
_ASYMMETRY = 1e-2


@pytree
class PointPairs:
    """Costs of all pairs of two samples, computed on demand."""

    x: Float[Array, "n d"]
    y: Float[Array, "m d"]
    cost: Callable[..., Array]
    swapped: bool = static(default=False)

    @property
    def rows(self) -> Float[Array, "n d"]:
        """The array that blocks of rows are taken from."""
        return self.x

    @property
    def shape(self) -> tuple[int, int]:
        """(n, m)."""
        return self.x.shape[0], self.y.shape[0]

    @property
    def transposed(self) -> "PointPairs":
        """The pairs with their sides exchanged, but not the cost's arguments."""
        return PointPairs(self.y, self.x, self.cost, not self.swapped)

    def block(
        self, rows: Float[Array, "k d"], columns: Float[Array, "c d"] | None = None
    ) -> Float[Array, "k c"]:
        """The costs of some rows, in some columns or in all."""
        columns = self.y if columns is None else columns
        # The cost need not be symmetric.
        if self.swapped:
            return cost_matrix(self.cost, columns, rows).T
        return cost_matrix(self.cost, rows, columns)

    def at(self, rows: Float[Array, "k d"]) -> "PointPairs":
        """The pairs of other rows with the same columns."""
        return PointPairs(rows, self.y, self.cost, self.swapped)

    def rounding_scale(
        self, rows: Float[Array, "k d"], costs: Float[Array, "k m"]
    ) -> Float[Array, "k m"]:
        """The magnitudes that set the rounding errors of these rows' costs."""
        return rounding_scale(self.cost, rows, self.y, costs)


@pytree
class MatrixPairs:
    """A given cost matrix."""

    matrix: Float[Array, "n m"]

    @property
    def rows(self) -> Float[Array, "n m"]:
        """The array that blocks of rows are taken from."""
        return self.matrix

    @property
    def shape(self) -> tuple[int, int]:
        """(n, m)."""
        return self.matrix.shape  # pyright: ignore[reportReturnType]

    @property
    def transposed(self) -> "MatrixPairs":
        """The transposed matrix."""
        return MatrixPairs(self.matrix.T)

    def block(self, rows: Float[Array, "k m"]) -> Float[Array, "k m"]:
        """The rows themselves."""
        return rows

    def at(self, rows: Float[Array, "k m"]) -> "MatrixPairs":
        """The pairs of other rows with the same columns."""
        return MatrixPairs(rows)

    def rounding_scale(
        self, rows: Float[Array, "k m"], costs: Float[Array, "k m"]
    ) -> Float[Array, "k m"]:
        """The magnitudes that set the rounding errors of these rows' costs."""
        return jnp.abs(costs)


@pytree
class Problem:
    """min_P ⟨P, C⟩ + ε KL(P‖a⊗b) + ρ_a KL(P1‖a) + ρ_b KL(Pᵀ1‖b).

    Attributes:
        pairs: the source of C.
        a: weights of the rows.
        b: weights of the columns.
        epsilon: ε.
        penalties: (ρ_a, ρ_b), each None, or infinite, for an exact marginal.
        block_rows: rows of C in memory at a time.
        infinite: whether costs may be infinite: such pairs are never matched.
    """

    pairs: PointPairs | MatrixPairs
    a: Float[Array, " n"]
    b: Float[Array, " m"]
    epsilon: Float[Array, ""]
    penalties: tuple[ArrayLike | None, ArrayLike | None]
    block_rows: int = static()
    infinite: bool = static(default=False)

    @property
    def transposed(self) -> Self:
        """The same problem with its sides exchanged."""
        sides = self.pairs.transposed, self.b, self.a
        penalties = self.penalties[1], self.penalties[0]
        return type(self)(*sides, self.epsilon, penalties, self.block_rows, self.infinite)

    @property
    def mass(self) -> Float[Array, ""]:
        """The mean of both sides' masses (unequal if relaxed), the unit of tolerances."""
        return (jnp.sum(self.a) + jnp.sum(self.b)) / 2

    @property
    def dense(self) -> bool:
        """Whether an n × m matrix is materialised."""
        return self.block_rows >= max(self.pairs.shape)

    @property
    def balanced(self) -> bool:
        """Whether both marginals are exact, so that potentials are unique up to a shift."""
        return self.penalties == (None, None)

    @property
    def has_free_constant(self) -> bool | Bool[Array, ""]:
        """Whether potentials are unique only up to a constant: no ρ, or infinite traced ones."""
        sides = [rho is None or jnp.isinf(rho) for rho in self.penalties]
        return self.balanced or sides[0] & sides[1]

    @property
    def damping(self) -> tuple[Array, Array]:
        """κ = ρ/(ρ + ε) of both sides: a potential is κ times its soft transform."""
        # 1/(1 + ε/ρ) rather than ρ/(ρ + ε), which is NaN for an infinite ρ.
        one = jnp.ones_like(self.epsilon)
        of_side = lambda rho: one if rho is None else 1 / (1 + quotient(self.epsilon, rho))
        return tuple(map(of_side, self.penalties))  # pyright: ignore[reportReturnType]

    @property
    def inverse_penalties(self) -> tuple[Array, Array]:
        """1/ρ of both sides, zero for an exact marginal."""
        zero, one = jnp.zeros_like(self.epsilon), jnp.ones_like(self.epsilon)
        sides = (zero if rho is None else one / rho for rho in self.penalties)
        return tuple(sides)  # pyright: ignore[reportReturnType]

    def map_rows(
        self,
        function: Callable[..., PyTree[Array]],
        *vectors: Array,
        columns: tuple[Array, ...] = (),
        reduction: Reduction | None = None,
    ) -> PyTree[Array]:
        """`function(costs "k m", *vectors "k", *columns)` by blocks of rows, again in reverse mode.

        With a reduction each device of a mesh holds blocks of the columns, arrays "m ..." and y,
        rather than all of them.
        """
        pairs, size = self.pairs, self.pairs.shape[0] if self.dense else self.block_rows
        # A matrix's rows are whole on the device that has them.
        if reduction is None or isinstance(pairs, MatrixPairs):
            block = lambda rows, *vectors: function(pairs.block(rows), *vectors, *columns)
            return map_row_blocks(block, pairs.shape[1], pairs.rows, *vectors, block_rows=size)

        def of_columns(y: Array, *columns: Array) -> Callable[..., PyTree[Array]]:
            return lambda x, *vectors: function(pairs.block(x, y), *vectors, *columns)

        rows, columns = (pairs.x, *vectors), (pairs.y, *columns)
        return reduce_pairs(of_columns, reduction, rows, columns, block_rows=size)

    def exponentials(
        self, costs: Float[Array, "k m"], f: Float[Array, " k"], g: Float[Array, " m"]
    ) -> Float[Array, "k m"]:
        """E of some rows."""
        exponent = self.exponents(costs, f, g)
        return jnp.exp(jnp.minimum(exponent, LARGEST_EXPONENT))

    def exponents(
        self, costs: Float[Array, "k m"], f: Float[Array, " k"], g: Float[Array, " m"]
    ) -> Float[Array, "k m"]:
        """(f ⊕ g − C)/ε of some rows, with finite derivatives at infinite costs."""
        if not self.infinite:
            return quotient(f[:, None] + g - costs, self.epsilon)
        # Replaced before the division: the derivative in ε would be 0 · ∞.
        forbidden = costs == jnp.inf
        exponent = quotient(f[:, None] + g - jnp.where(forbidden, 0, costs), self.epsilon)
        return jnp.where(forbidden, -jnp.inf, exponent)

    def row_sums(
        self, f: Float[Array, " n"], g: Float[Array, " m"], values: Float[Array, "m ..."]
    ) -> Float[Array, "n ..."]:
        """Σ_j E_ij values_j."""

        def block(costs, f, g, values):
            kernel = self.exponentials(costs, f, g)
            # A sum is one pass without storing the exponentials; a product stores them.
            return kernel @ values if values.ndim > 1 else jnp.sum(kernel * values, axis=1)

        return self.map_rows(block, f, columns=(g, values), reduction=SUM)

    def products(
        self, f: Float[Array, " n"], g: Float[Array, " m"]
    ) -> tuple[Callable[[Array], Array], Callable[[Array], Array]]:
        """The maps v ↦ E v and u ↦ Eᵀ u, for many vectors: E is computed once if it fits."""
        if self.dense:
            kernel = self.exponentials(self.pairs.block(self.pairs.rows), f, g)
            return (lambda v: kernel @ v), (lambda u: u @ kernel)
        return (lambda v: self.row_sums(f, g, v)), (lambda u: self.transposed.row_sums(g, f, u))


def soft_transform(
    problem: Problem, f: Float[Array, " n"], g: Float[Array, " m"]
) -> Float[Array, " n"]:
    """−κ_a ε log Σ_j b_j exp((g_j − C_ij)/ε), the optimal row potential for g.

    f, a constant near the result, only keeps the sum near one.
    """
    f = jax.lax.stop_gradient(f)
    sums = problem.row_sums(f, g, problem.b)
    return problem.damping[0] * (f - problem.epsilon * jnp.log(sums))


def soft_minimum(problem: Problem, rows: Array, g: Float[Array, " m"]) -> Float[Array, " k"]:
    """−κ_a ε log Σ_j b_j exp((g_j − c_ij)/ε) at any rows: points, or rows of a cost matrix.

    In the log domain, stable for sums of any size, +∞ if all costs are.
    """

    def block(costs: Array, g: Array, b: Array) -> Array:
        # Costs are replaced before division by ε: a derivative would be 0 · ∞.
        possible = (b > 0) & (costs != jnp.inf)
        exponent = quotient(g - jnp.where(possible, costs, 0), problem.epsilon)
        exponent = jnp.where(possible, exponent + safe_log(b), -jnp.inf)
        # A row without possible pairs has no maximum, and is replaced by zeros.
        some = jnp.any(possible, axis=1)
        logs = jax.nn.logsumexp(jnp.where(some[:, None], exponent, 0), axis=1)
        return jnp.where(some, logs, -jnp.inf)

    # The problem of these rows; their weights do not matter.
    size = max(rows.shape[0], problem.pairs.shape[1]) if problem.dense else problem.block_rows
    given = dataclasses.replace(problem, pairs=problem.pairs.at(rows), block_rows=size)
    logs = given.map_rows(block, columns=(g, problem.b), reduction=LOG_SUM)
    # Without possible pairs the minimum is +∞.
    some = logs != -jnp.inf
    minimum = -problem.damping[0] * problem.epsilon * jnp.where(some, logs, 0)
    return jnp.where(some, minimum, jnp.inf)


def has_symmetric_costs(problem: Problem) -> Bool[Array, ""]:
    """Whether c(x, x') = c(x', x) for a few x and all x', up to rounding.

    Every cost of the library has this property, and is not looked at.
    """
    pairs = problem.pairs
    if isinstance(pairs, PointPairs) and isinstance(pairs.cost, LibraryCost):
        return jnp.array(True)
    few = pairs.rows[:_FEW_ROWS]
    costs, reversed_costs = pairs.block(few), pairs.transposed.block(few)
    largest = jnp.maximum(jnp.abs(costs), jnp.abs(reversed_costs))
    # What is not finite is not asymmetric, but flagged elsewhere.
    unequal = jnp.abs(costs - reversed_costs) > _ASYMMETRY * largest
    return ~jnp.any(unequal & jnp.isfinite(largest))


def has_lone_row(problem: Problem) -> Bool[Array, ""]:
    """Whether all costs of a row or of a column are infinite, without NaN or −∞.

    Then there is no plan if both marginals are exact.
    """
    of_rows = lambda costs: jnp.min(costs, axis=1)
    smallest = lambda problem: problem.map_rows(of_rows, reduction=SMALLEST)
    # A minimum is +∞ only if all costs are, and NaN if one is, which fails every comparison.
    ends = jnp.concatenate([smallest(problem), smallest(problem.transposed)])
    return jnp.any(jnp.isposinf(ends)) & jnp.all(ends > -jnp.inf)


def conjugate(potential: Float[Array, " n"], penalty: ArrayLike | None) -> Float[Array, " n"]:
    """−φ*(−f), a unit mass's contribution to the dual: f, or ρ (1 − exp(−f/ρ)), f if ρ = ∞."""
    if penalty is None:
        return potential
    # A traced ρ may be infinite: it is replaced first, as 0 · ∞ is NaN. expm1 keeps f accurate for
    # a large ρ.
    infinite = jnp.isinf(penalty)
    finite = jnp.where(infinite, 1, penalty)
    return jnp.where(infinite, potential, -jnp.expm1(-quotient(potential, finite)) * finite)


def log_tilted_mass(
    weights: Float[Array, " n"], potential: Float[Array, " n"], penalty: ArrayLike | None
) -> Float[Array, ""]:
    """The log ⟨a, exp(−f/ρ)⟩: a marginal's log mass at the optimum, accurate even if ρ ≫ f."""
    if penalty is None:
        return jnp.log(jnp.sum(weights))
    exponent = quotient(potential, penalty)
    # The result does not depend on it, so its gradient is stopped.
    lowest = jax.lax.stop_gradient(jnp.min(jnp.where(weights > 0, exponent, jnp.inf)))
    # Relative to the lowest exponent there is no overflow. log1p and expm1 preserve the differences
    # between rows, which for ρ ≫ f are as small as the rounding of the mass.
    change = jnp.sum(jnp.where(weights > 0, weights * jnp.expm1(lowest - exponent), 0))
    mass = jnp.sum(weights)
    return jnp.log(mass) + jnp.log1p(change / mass) - lowest


def optimal_shift(
    problem: Problem, f: Float[Array, " n"], g: Float[Array, " m"]
) -> Float[Array, ""]:
    """The t that maximises the dual objective at (f + t, g − t), with the same plan.

    At this t both relaxed marginals have the same mass,
    ⟨a, exp(−(f + t)/ρ_a)⟩ = ⟨b, exp(−(g − t)/ρ_b)⟩, so

        t = ρ_a ρ_b / (ρ_a + ρ_b) · log(⟨a, exp(−f/ρ_a)⟩ / ⟨b, exp(−g/ρ_b)⟩),

    with the limit ρ_a log(⟨a, exp(−f/ρ_a)⟩ / Σb) for ρ_b = ∞. Zero if both marginals are exact.

    References:
        Séjourné, Vialard, Peyré 2022, proposition 2.
    """
    # In terms of 1/ρ the formula includes ρ = ∞: 1/(1/ρ_a + 1/ρ_b) is its first factor.
    row_inverse, column_inverse = problem.inverse_penalties
    rows = log_tilted_mass(problem.a, f, problem.penalties[0])
    columns = log_tilted_mass(problem.b, g, problem.penalties[1])
    total = row_inverse + column_inverse
    return jnp.where(total > 0, (rows - columns) / jnp.where(total > 0, total, 1), 0)


def recentered(
    problem: Problem, f: Float[Array, " n"], g: Float[Array, " m"]
) -> tuple[Float[Array, " n"], Float[Array, " m"]]:
    """(f + t, g − t) with the optimal shift, zero for balanced potentials."""
    if problem.balanced:
        return f, g
    t = optimal_shift(problem, f, g)
    return f + t, g - t


def dual_objective(
    problem: Problem,
    f: Float[Array, " n"],
    g: Float[Array, " m"],
    mass_defect: Float[Array, ""] | None = None,
) -> Float[Array, ""]:
    """⟨a, −φ*(−f)⟩ + ⟨b, −φ*(−g)⟩ − ε Σ_ij a_i b_j (E_ij − 1), a lower bound on the value.

    The last sum may be given as `mass_defect`.
    """
    a, b = problem.a, problem.b
    linear = a @ conjugate(f, problem.penalties[0]) + b @ conjugate(g, problem.penalties[1])
    if mass_defect is None:
        # A sum of differences, each small between balanced probabilities: a difference of the two
        # totals would lose them to rounding.
        mass_defect = a @ (problem.row_sums(f, g, b) - jnp.sum(b))
    return linear - problem.epsilon * mass_defect
