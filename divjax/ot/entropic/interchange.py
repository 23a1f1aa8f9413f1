"""Conversion to and from ott-jax, which is imported on demand."""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Self

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from divjax.ot import given_costs
from divjax.ot.entropic.problem import PointPairs

if TYPE_CHECKING:
    from ott.problems.linear.potentials import DualPotentials
    from ott.solvers.linear.sinkhorn import SinkhornOutput

    from divjax.ot.entropic.result import SinkhornResult

__all__ = ["potentials_from_ott", "potentials_to_ott"]


@functools.cache
def _cost_class() -> type:
    """The class that wraps a cost of this package as one of ott-jax."""
    from ott.geometry import costs as theirs

    # On demand, as its base class is ott-jax's. Cached, as a new class would be a new pytree type,
    # which requires recompilation.
    @jax.tree_util.register_pytree_node_class
    class Cost(theirs.CostFn):
        """c(x, y), or c(y, x) if swapped."""

        def __init__(self, cost: Callable[..., Array], swapped: bool):
            super().__init__()
            self.cost, self.swapped = cost, swapped

        def __call__(self, x: Array, y: Array) -> Array:
            return self.cost(y, x) if self.swapped else self.cost(x, y)

        def twist_operator(self, vec: Array, dual_vec: Array, variable: bool) -> Array:
            # T(x) = x − ∇h*(∇f(x)); from y's side the cost is h(−z), and both signs change.
            conjugate = given_costs.grad_conjugate(self.cost)
            if bool(variable) == self.swapped:  # vec is the first argument of h(x − y)
                return vec - conjugate(dual_vec)
            return vec + conjugate(-dual_vec)

        def tree_flatten(self) -> tuple[tuple[Callable[..., Array]], bool]:
            return (self.cost,), self.swapped

        @classmethod
        def tree_unflatten(cls, aux_data: bool, children: tuple[Callable[..., Array]]) -> Self:
            return cls(children[0], aux_data)

    return Cost


def potentials_to_ott(result: "SinkhornResult") -> "DualPotentials":
    """`ott.problems.linear.potentials.DualPotentials` of a result: `SinkhornResult.to_ott`."""
    # Imported here, as most uses of this package do not need ott-jax.
    from ott.problems.linear import potentials

    pairs = result.problem.pairs
    if not isinstance(pairs, PointPairs):
        raise ValueError("to_ott is for a cost between points; this problem has a cost matrix.")
    # Theirs are functions of one point, ours of rows. A relaxed marginal damps a potential, and not
    # the map: its conditionals are those of the soft transform.
    backward = result.transposed
    return potentials.DualPotentials(
        lambda x: result.potential(x[None])[0] / result.problem.damping[0],
        lambda y: backward.potential(y[None])[0] / backward.problem.damping[0],
        cost_fn=_cost_class()(pairs.cost, pairs.swapped),
    )


def potentials_from_ott(output: "SinkhornOutput") -> tuple[Float[Array, " n"], Float[Array, " m"]]:
    """The potentials (f, g) of a `SinkhornOutput` of ott-jax, in the form of `sinkhorn`'s `init`.

    Those of ott-jax, unlike the result, absorb the weights: P_ij = exp((f_i + g_j − C_ij)/ε).

    Args:
        output: the result of `ott.solvers.linear.sinkhorn.Sinkhorn`.

    Returns:
        f − ε log a and g − ε log b, zero for rows of weight zero.

    Raises:
        ValueError: if it is not such an output.

    Example:
        >>> import jax
        >>> from divjax import ot
        >>> from ott.solvers import linear
        >>> from ott.geometry import pointcloud
        >>> x, y = jax.random.normal(jax.random.key(0), (2, 64, 2))
        >>> theirs = linear.solve(pointcloud.PointCloud(x, y, epsilon=0.2), threshold=1e-5)
        >>> ours = ot.sinkhorn(x, y, epsilon=0.2, init=ot.potentials_from_ott(theirs))
        >>> int(ours.num_iterations)
        1
    """
    problem = getattr(output, "ot_prob", None)
    if problem is None or not hasattr(output, "potentials"):
        raise ValueError(
            f"output must be ott-jax's SinkhornOutput, with its problem; got "
            f"{type(output).__name__}."
        )
    # ott-jax's plan lacks the factor a_i b_j. A weight of zero has no logarithm.
    epsilon = problem.geom.epsilon
    f, g = output.potentials
    return (
        jnp.where(problem.a > 0, f - epsilon * jnp.log(problem.a), 0),
        jnp.where(problem.b > 0, g - epsilon * jnp.log(problem.b), 0),
    )
