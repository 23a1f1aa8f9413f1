"""The problem that is solved, and its relation to the given one.

`formulate` removes three properties that would harm accuracy: offsets of the samples, rows of
weight zero, and rows of infinite costs. A `Formulation` restores their effect in closed form.
"""

from typing import Self

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from divjax.core.pytrees import pytree, static
from divjax.core.samples import Center, Numbers, as_samples
from divjax.ot.entropic.problem import PointPairs, Problem

__all__ = ["Formulation", "ShiftedCenter"]


@pytree
class ShiftedCenter:
    """The centre of a sample: a point in double precision, plus the mean of the remainder."""

    point: Center
    mean: Float[Array, " d"]

    def subtract(self, z: Numbers) -> Float[Array, "k d"]:
        """Points relative to the centre."""
        return self.point.subtract(z) - self.mean

    def add(self, z: Float[Array, "k d"]) -> Float[Array, "k d"]:
        """Points in the original coordinates."""
        return self.point.add(z + self.mean)

    def difference(self, other: "ShiftedCenter") -> Float[Array, " d"]:
        """This centre relative to another."""
        # The large parts are subtracted from each other first, to avoid rounding the small ones.
        high, low = self.point.high - other.point.high, self.point.low - other.point.low
        return high + (low + (self.mean - other.mean))


@pytree
class Formulation:
    """The problem that is solved, and its relation to the given one.

    Attributes:
        problem: the problem of centred points; rows that are unmatched or have weight zero are
            copies of others.
        a: the weights of x.
        b: the weights of y.
        rows: the centred points of x, or the rows of the cost matrix, as given, except that rows of
            weight zero that are not finite are copies of others.
        columns: the same of y, or the columns of the cost matrix.
        centers: the centres of x and y, or None. Each is a point in double precision, plus the mean
            of the remainder.
        slope: ∇h(δ) of a quadratic cost with samples centred separately, or None.
        offset: h(δ).
        unmatched: the cost of unmatched mass.
        valid: whether traced weights, ε and penalties are in range.
        replaced: whether rows, and columns, of weight zero are possible: false for uniform weights,
            true for traced ones.
    """

    problem: Problem
    a: Float[Array, " n"]
    b: Float[Array, " m"]
    rows: Array
    columns: Array
    centers: tuple["ShiftedCenter", "ShiftedCenter"] | None
    slope: Float[Array, " d"] | None
    offset: Float[Array, ""] | None
    unmatched: Float[Array, ""]
    valid: Bool[Array, ""]
    replaced: tuple[bool, bool] = static()

    @property
    def transposed(self) -> Self:
        """With the sides exchanged."""
        return type(self)(
            self.problem.transposed,
            self.b,
            self.a,
            self.columns,
            self.rows,
            # Only translation-invariant quadratic costs have centres, and a linear term.
            None if self.centers is None else (self.centers[1], self.centers[0]),
            None if self.slope is None else -self.slope,
            self.offset,
            self.unmatched,
            self.valid,
            (self.replaced[1], self.replaced[0]),
        )

    @property
    def may_replace_rows(self) -> bool:
        """Whether rows of x may be replaced."""
        return self.replaced[0]

    def centered(self, z: Numbers) -> Float[Array, "k d"]:
        """Points of x's side relative to its centre."""
        if self.centers is None:
            return as_samples(z=z)[0]
        return self.centers[0].subtract(z)

    def uncentered(self, z: Float[Array, "k d"]) -> Float[Array, "k d"]:
        """Points relative to x's centre, in the original coordinates."""
        return z if self.centers is None else self.centers[0].add(z)

    def linear_terms(self, centered: Float[Array, "k d"]) -> Array | float:
        """α at centred points of x's side: h(δ)/2 + ⟨∇h(δ), x' − m⟩.

        m is the mean of both centred samples, a constant that keeps ⟨a, f⟩ = ⟨b, g⟩. It is zero,
        as the samples are centred, but its derivatives are not, since those of the centres are
        stopped.
        """
        if self.slope is None or self.offset is None:
            return 0.0
        pairs, a, b = self.problem.pairs, self.problem.a, self.problem.b
        assert isinstance(pairs, PointPairs)
        mean = (a @ pairs.x + b @ pairs.y) / (jnp.sum(a) + jnp.sum(b))
        return (centered - mean) @ self.slope + self.offset / 2

    def restored(self, f: Array, g: Array) -> tuple[Array, Array]:
        """Potentials of the given problem."""
        if self.slope is None:
            return f, g
        return f + self.linear_terms(self.rows), g + self.transposed.linear_terms(self.columns)

    def reduced(self, f: Array, g: Array) -> tuple[Array, Array]:
        """Potentials of the problem that is solved, the inverse of `restored`."""
        if self.slope is None:
            return f, g
        return f - self.linear_terms(self.rows), g - self.transposed.linear_terms(self.columns)

    @property
    def shift_cost(self) -> Array | float:
        """⟨a, α⟩ + ⟨b, β⟩, the given problem's value minus that of the solved one."""
        if self.slope is None:
            return 0.0
        pairs = self.problem.pairs
        assert isinstance(pairs, PointPairs)
        own = self.problem.a @ self.linear_terms(pairs.x)
        return own + self.problem.b @ self.transposed.linear_terms(pairs.y)
