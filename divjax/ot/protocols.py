"""A cost, and what it may declare beyond its value at two points, as protocols.

Any function of two points is a cost. One that declares more is computed faster, is centred without
loss of precision, or has transport maps in closed form.
"""

from typing import Protocol, runtime_checkable

from jaxtyping import Array, Float

__all__ = ["ConvexCost", "Cost", "DisplacementCost", "MatrixCost", "QuadraticCost"]


@runtime_checkable
class Cost(Protocol):
    """A ground cost c(x, y): any callable of two points with a scalar value."""

    def __call__(self, x: Float[Array, " d"], y: Float[Array, " d"], /) -> Float[Array, ""]:
        """The cost of one pair."""
        ...


@runtime_checkable
class MatrixCost(Cost, Protocol):
    """A cost that computes all pairs at once, rather than pair by pair."""

    def matrix(self, x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Float[Array, "n m"]:
        """The costs c(x_i, y_j)."""
        ...


@runtime_checkable
class DisplacementCost(Cost, Protocol):
    """A cost c(x, y) = h(x − y). It is translation invariant, so the samples are centred."""

    def h(self, z: Float[Array, " d"]) -> Float[Array, ""]:
        """The cost of a displacement."""
        ...


@runtime_checkable
class QuadraticCost(DisplacementCost, Protocol):
    """A cost h(x − y) that tells whether h is a quadratic form.

    If so, each sample is centred at its own mean: precision is kept for samples far apart.
    """

    @property
    def quadratic(self) -> bool:
        """Whether h is a quadratic form."""
        ...


@runtime_checkable
class ConvexCost(DisplacementCost, Protocol):
    """A cost h(x − y) with h strictly convex and a known gradient of its conjugate h*.

    The transport map of a potential f is T(x) = x − ∇h*(∇f(x)).
    """

    def grad_conjugate(self, w: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
        """∇h*(w)."""
        ...
