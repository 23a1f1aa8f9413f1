"""Costs as users pass them: of the library, of ott-jax, or any function of two points.

They are converted, checked, evaluated on all pairs or row by row, and their ∇h* is looked up.
"""

import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float

from divjax.core.checks import check_callable, check_scalar_output
from divjax.core.pytrees import as_pytree, as_traced, pytree
from divjax.core.samples import Numbers, as_samples, centered_samples, check_distinguishable
from divjax.ot.costs import (
    Euclidean,
    LibraryCost,
    PNormPower,
    SqEuclidean,
    as_differences,
    as_floating,
)
from divjax.ot.protocols import ConvexCost, DisplacementCost, MatrixCost, QuadraticCost

__all__ = [
    "as_cost",
    "checked_cost",
    "cost_matrix",
    "grad_conjugate",
    "is_quadratic",
    "paired_costs",
]


def cost_matrix(
    cost: Callable[..., Array], x: Float[Numbers, "n d"], y: Float[Numbers, "m d"]
) -> Float[Array, "n m"]:
    """All costs c(x_i, y_j), from the cost's own `matrix` if it has one, otherwise pair by pair.

    Args:
        cost: a cost of the library, or any `(x "d", y "d") -> scalar`. A cost without `matrix` may
            need n × m × d memory.
        x: samples.
        y: samples.

    Returns:
        The matrix "n m" of c(x_i, y_j).

    Raises:
        ValueError: if a sample is empty or not a matrix, or the numbers of features differ.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.array([[0.0, 0.0], [3.0, 4.0]])
        >>> cost_matrix(Euclidean(), x, x).tolist()
        [[0.0, 5.0], [5.0, 0.0]]
        >>> cost_matrix(lambda x, y: jnp.sum(x * y), x, x).tolist()
        [[0.0, 0.0], [0.0, 25.0]]
    """
    cost = as_cost(cost)
    if isinstance(cost, DisplacementCost):
        # A common shift does not change displacements, and keeps the digits of NumPy's float64.
        _, x, y = centered_samples(x=x, y=y)
    else:
        # Other costs may depend on positions, so that the rows cannot be shifted.
        check_distinguishable("x", x)
        check_distinguishable("y", y)
        x, y = as_samples(x=x, y=y)
    if isinstance(cost, MatrixCost):
        return cost.matrix(x, y)
    check_callable(cost=cost)
    return jax.vmap(jax.vmap(cost, (None, 0)), (0, None))(x, y)


def checked_cost(
    cost: Callable[..., Array], samples: Float[Array, "... d"]
) -> Callable[..., Array]:
    """A cost as a pytree whose leaves include the arguments a function is bound to or closes over.

    A cost of the library, or one of the protocols in `divjax.ot.protocols`, is returned unchanged
    unless it closes over traced values that are not among its leaves.

    Args:
        cost: a cost, or a function of two points.
        samples: points that it takes; only their features and dtype matter.

    Raises:
        ValueError: if it is a class, not a function, or does not return a floating-point scalar.
    """
    check_callable(cost=cost)
    if isinstance(cost, type):
        raise ValueError(f"cost must be an instance; got the class {cost.__name__} itself.")
    cost = as_cost(cost)
    # The library's costs return a scalar, and refer to nothing but their leaves.
    if isinstance(cost, LibraryCost):
        return cost
    point = jax.ShapeDtypeStruct(samples.shape[-1:], samples.dtype)
    check_scalar_output("cost", cost, point, point)
    traced = as_traced(cost, point, point)
    if not isinstance(cost, (MatrixCost, DisplacementCost)):
        return traced
    # Traced values in the closure that are not leaves would leak from their trace. The function
    # with its closure made explicit is correct, although it loses `h` and `matrix`.
    leaves = {id(leaf) for leaf in jax.tree.leaves(cost)}
    hidden = [c for c in traced.closed_over if isinstance(c, Tracer) and id(c) not in leaves]
    return traced if hidden else as_pytree(cost)


def is_quadratic(cost: Callable[..., Array]) -> bool:
    """Whether a cost declares itself a quadratic form of x − y."""
    return isinstance(cost, QuadraticCost) and cost.quadratic


def paired_costs(
    cost: Callable[..., Array], x: Float[Array, "n d"], y: Float[Array, "n d"]
) -> Float[Array, " n"]:
    """The n costs c(x_i, y_i)."""
    if isinstance(cost, SqEuclidean):  # one pair at a time its matrix product is slow
        return jnp.sum(jnp.square(jnp.subtract(*as_differences(x=x, y=y))), axis=1)
    moves_along = isinstance(cost, DisplacementCost)
    return jax.vmap(cost)(*(as_differences if moves_along else as_floating)(x=x, y=y))


@pytree
class _OttCost:
    """A cost h(x − y) of ott-jax."""

    cost: Any

    def __call__(self, x: Float[Array, " d"], y: Float[Array, " d"]) -> Float[Array, ""]:
        """The cost of one pair."""
        return self.cost(x, y)

    def h(self, z: Float[Array, " d"]) -> Float[Array, ""]:
        """The cost of a displacement."""
        return self.cost.h(z)

    def grad_conjugate(self, w: Float[Array, "... d"]) -> Float[Array, "... d"]:
        """∇h*(w)."""
        return jnp.vectorize(jax.grad(self.cost.h_legendre), signature="(d)->(d)")(w)


def as_cost(cost: Callable[..., Array]) -> Callable[..., Array]:
    """A cost of ott-jax as one of this package, any other cost unchanged.

    Example:
        >>> from ott.geometry import costs as theirs
        >>> as_cost(theirs.SqEuclidean())
        SqEuclidean()
    """
    theirs: Any = sys.modules.get("ott.geometry.costs")  # such a cost requires its import
    if theirs is None or not isinstance(cost, theirs.CostFn):
        return cost
    # The exact type: a subclass may have another formula.
    if type(cost) is theirs.SqEuclidean:
        return SqEuclidean()
    if type(cost) is theirs.Euclidean:
        return Euclidean()
    if type(cost) is theirs.PNormP and cost.p > 1:
        return PNormPower(cost.p)
    return _OttCost(cost) if isinstance(cost, theirs.TICost) else cost


def grad_conjugate(cost: Callable[..., Array]) -> Callable[[Array], Array]:
    """The cost's ∇h*, or `ValueError` if it is missing."""
    cost = as_cost(cost)
    if not isinstance(cost, ConvexCost):
        raise ValueError(
            "cost must be h(x − y) with a known ∇h* for a transport map in closed form "
            "(SqEuclidean, EuclideanPower, PNormPower, or one with `h` and `grad_conjugate`); "
            f"got {type(cost).__name__}."
        )
    # The conjugate's parameters are the cost's, and are differentiated through the tree.
    if jax.tree_util.all_leaves([cost]):
        raise ValueError(
            "cost must be a pytree for its ∇h* to be used: decorate the class "
            f"{type(cost).__name__} with `divjax.pytree`."
        )
    return cost.grad_conjugate
