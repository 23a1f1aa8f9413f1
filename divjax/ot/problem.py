"""An entropic transport problem, and its reductions over all pairs, dense or by blocks of rows.

Throughout, P_ij = a_i b_j E_ij with E = exp((f ⊕ g − C)/ε).
"""

from collections.abc import Callable
from typing import Any, Self

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from divjax.core.pairwise import map_row_blocks
from divjax.core.pytrees import pytree, static
from divjax.ot.costs import cost_matrix

__all__ = ["MatrixPairs", "PointPairs", "Problem", "conjugate", "dual_objective", "soft_transform"]

# E is at most 1/min(a, b) where both weights count. Where neither does, it may be anything: it is
# cut here, so that weight · E is zero rather than 0 · ∞.
LARGEST_EXPONENT = 70.0


@pytree
class PointPairs:
    """Costs of all pairs of two samples, computed where they are needed."""

    x: Float[Array, "n d"]
    y: Float[Array, "m d"]
    cost: Any
    swapped: bool = static(default=False)

    @property
    def rows(self) -> Float[Array, "n d"]:
        """What a block of rows is cut from."""
        return self.x

    @property
    def shape(self) -> tuple[int, int]:
        """(n, m)."""
        return self.x.shape[0], self.y.shape[0]

    @property
    def transposed(self) -> "PointPairs":
        """The pairs with their sides exchanged; the cost's arguments keep their order."""
        return PointPairs(self.y, self.x, self.cost, not self.swapped)

    def block(self, rows: Float[Array, "k d"]) -> Float[Array, "k m"]:
        """The costs of some rows."""
        if self.swapped:
            return cost_matrix(self.cost, self.y, rows).T
        return cost_matrix(self.cost, rows, self.y)


@pytree
class MatrixPairs:
    """A given cost matrix."""

    matrix: Float[Array, "n m"]

    @property
    def rows(self) -> Float[Array, "n m"]:
        """What a block of rows is cut from."""
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


@pytree
class Problem:
    """min_P ⟨P, C⟩ + ε KL(P‖a⊗b) + ρ_a KL(P1‖a) + ρ_b KL(Pᵀ1‖b).

    Attributes:
        pairs: where C comes from.
        a: weights of the rows.
        b: weights of the columns.
        epsilon: ε.
        penalties: (ρ_a, ρ_b), each None for a marginal that is met exactly.
        block_rows: rows of C held at a time.
    """

    pairs: PointPairs | MatrixPairs
    a: Float[Array, " n"]
    b: Float[Array, " m"]
    epsilon: Float[Array, ""]
    penalties: tuple[ArrayLike | None, ArrayLike | None]
    block_rows: int = static()

    @property
    def transposed(self) -> Self:
        """The same problem with its sides exchanged."""
        sides = self.pairs.transposed, self.b, self.a
        return type(self)(
            *sides, self.epsilon, (self.penalties[1], self.penalties[0]), self.block_rows
        )

    @property
    def dense(self) -> bool:
        """Whether n × m is held whole."""
        return self.block_rows >= max(self.pairs.shape)

    @property
    def balanced(self) -> bool:
        """Whether both marginals are met exactly, so that potentials are unique up to a shift."""
        return self.penalties == (None, None)

    @property
    def damping(self) -> tuple[Array, Array]:
        """κ = ρ/(ρ + ε) of both sides, with which a potential is κ times its soft transform."""
        one = jnp.ones_like(self.epsilon)
        sides = (one if rho is None else 1 / (1 + self.epsilon / rho) for rho in self.penalties)
        return tuple(sides)  # pyright: ignore[reportReturnType]

    def map_rows(self, function: Callable[..., Any], *vectors: Array) -> Any:
        """`function(costs "k m", *vectors "k")` of blocks of rows, in reverse mode recomputed."""

        def block(rows, *vectors):
            return function(self.pairs.block(rows), *vectors)

        size = self.pairs.shape[0] if self.dense else self.block_rows
        return map_row_blocks(
            block, self.pairs.shape[1], self.pairs.rows, *vectors, block_rows=size
        )

    def exponentials(
        self, costs: Float[Array, "k m"], f: Float[Array, " k"], g: Float[Array, " m"]
    ) -> Float[Array, "k m"]:
        """E of some rows."""
        exponent = (f[:, None] + g - costs) / self.epsilon
        return jnp.exp(jnp.minimum(exponent, LARGEST_EXPONENT))

    def row_sums(
        self, f: Float[Array, " n"], g: Float[Array, " m"], values: Float[Array, "m ..."]
    ) -> Float[Array, "n ..."]:
        """Σ_j E_ij values_j."""

        def block(costs, f):
            kernel = self.exponentials(costs, f, g)
            # A sum is one pass in which the exponentials are not stored; a product stores them.
            return kernel @ values if values.ndim > 1 else jnp.sum(kernel * values, axis=1)

        return self.map_rows(block, f)

    def products(
        self, f: Float[Array, " n"], g: Float[Array, " m"]
    ) -> tuple[Callable[[Array], Array], Callable[[Array], Array]]:
        """The maps v ↦ E v and u ↦ Eᵀ u, for many vectors: E is computed once if it may be held."""
        if self.dense:
            kernel = self.exponentials(self.pairs.block(self.pairs.rows), f, g)
            return (lambda v: kernel @ v), (lambda u: u @ kernel)
        return (lambda v: self.row_sums(f, g, v)), (lambda u: self.transposed.row_sums(g, f, u))


def soft_transform(
    problem: Problem, f: Float[Array, " n"], g: Float[Array, " m"]
) -> Float[Array, " n"]:
    """−κ_a ε log Σ_j b_j exp((g_j − C_ij)/ε), the row potential that is best for g.

    f, a constant near the result, only keeps the sum near one.
    """
    f = jax.lax.stop_gradient(f)
    sums = problem.row_sums(f, g, problem.b)
    return problem.damping[0] * (f - problem.epsilon * jnp.log(sums))


def conjugate(potential: Float[Array, " n"], penalty: ArrayLike | None) -> Float[Array, " n"]:
    """−φ*(−f): what a unit of mass adds to the dual: f, or ρ (1 − exp(−f/ρ))."""
    return potential if penalty is None else -jnp.expm1(-potential / penalty) * penalty


def dual_objective(
    problem: Problem,
    f: Float[Array, " n"],
    g: Float[Array, " m"],
    excess: Float[Array, ""] | None = None,
) -> Float[Array, ""]:
    """⟨a, −φ*(−f)⟩ + ⟨b, −φ*(−g)⟩ − ε Σ_ij a_i b_j (E_ij − 1), a lower bound on the value.

    The last sum, the excess, may be given where it is known.
    """
    a, b = problem.a, problem.b
    linear = a @ conjugate(f, problem.penalties[0]) + b @ conjugate(g, problem.penalties[1])
    if excess is None:
        excess = a @ (problem.row_sums(f, g, b) - jnp.sum(b))
    return linear - problem.epsilon * excess
