"""How far an estimate of information from nearest neighbours can be trusted."""

import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from divjax.core.pytrees import pytree
from divjax.core.types import summary

__all__ = ["DependenceDiagnostics"]


@pytree
class DependenceDiagnostics:
    """Diagnostics of an estimate from nearest neighbours.

    Attributes:
        terms: each row's term, whose mean is the value.
        repeated: the largest share of rows that have a feature's value in common with another row,
            over the features that are not constant.
        zero_distances: the number of rows that coincide with their k-th neighbour in all variables.
        suitable: whether the method is meant for such variables. If it is False for `KSG`, use
            `MixedNeighbors`.
        resolved: whether the rows limit the information from above. It is False where neighbours in
            one variable are neighbours in the others, as for functions of each other, whose
            information is infinite, and with `reference="gaussian_copula"` where a feature is a
            linear function of another variable, as by chance if there are as many features as rows;
            and where the interval would reach what k neighbours can show at most. It then has no
            upper end.
        larger_neighborhoods: the value with 3k neighbours, at most n − 2. It differs from the value
            where the bias is not small.
        center_distances: the value for the distances from their centres of variables with several
            features, by the same method on normal scores. The information cannot be less. NaN where
            there is no such bound: for conditional and interaction information, and where all
            variables have one feature.
    """

    terms: Float[Array, " n"]
    repeated: Float[Array, ""]
    zero_distances: Int[Array, ""]
    suitable: Bool[Array, ""]
    resolved: Bool[Array, ""]
    larger_neighborhoods: Float[Array, ""]
    center_distances: Float[Array, ""]

    def check(self) -> "DependenceDiagnostics":
        """The diagnostics; raises `RuntimeError` unless `suitable`. Traced ones pass."""
        if not isinstance(self.suitable, Tracer) and not bool(jnp.all(self.suitable)):
            raise RuntimeError(
                "a variable has repeated values, which KSG's neighbours do not expect: use "
                "information.MixedNeighbors."
            )
        return self

    __repr__ = summary
