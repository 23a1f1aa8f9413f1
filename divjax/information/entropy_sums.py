"""Measures of dependence as signed sums of entropies, which every method estimates in one way.

I(x; y) = H(x) + H(y) − H(x, y), and so on: a measure is a list of groups of variables with signs,
such that each variable's signs sum to zero. Volumes of neighbourhoods then cancel, and the measure
does not depend on the variables' units.
"""

import itertools
from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import Array, ArrayLike, Float

from divjax.core.types import Estimate

__all__ = [
    "CONDITIONAL",
    "INTERACTION",
    "MUTUAL",
    "EntropySum",
    "InformationMethod",
    "total_correlation_of",
]


class EntropySum(NamedTuple):
    """Σ sign · H(group), in which the last group holds all variables.

    Attributes:
        groups: the variables of each entropy, by their positions.
        signs: 1 or −1 for each.
    """

    groups: tuple[tuple[int, ...], ...]
    signs: tuple[int, ...]


MUTUAL = EntropySum(((0,), (1,), (0, 1)), (1, 1, -1))
# I(x; y | z), z last.
CONDITIONAL = EntropySum(((0, 2), (1, 2), (2,), (0, 1, 2)), (1, 1, -1, -1))
# I(x; y) − I(x; y | z).
INTERACTION = EntropySum(
    ((0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)), (1, 1, 1, -1, -1, -1, 1)
)


def total_correlation_of(num_variables: int) -> EntropySum:
    """Σ H(x_i) − H(x_1, …, x_m).

    Example:
        >>> total_correlation_of(2) == MUTUAL
        True
    """
    single = tuple((i,) for i in range(num_variables))
    everything = tuple(itertools.chain(*single))
    return EntropySum((*single, everything), (1,) * num_variables + (-1,))


@runtime_checkable
class InformationMethod(Protocol):
    """How a sum of entropies is estimated from samples of its variables.

    `estimate` is called under `jax.jit`, with the method as an argument: its fields that are not
    leaves are static.
    """

    def estimate(
        self,
        variables: tuple[Float[Array, "n _"], ...],
        measure: EntropySum,
        confidence_level: ArrayLike,
    ) -> Estimate:
        """The sum for paired rows of the variables, in nats."""
        ...
