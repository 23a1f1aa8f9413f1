"""What rooms hand to each other."""

from typing import Any, NamedTuple

from jaxtyping import Array, Float

__all__ = ["Estimate"]


class Estimate(NamedTuple):
    """A number estimated from samples, and how far to trust it.

    Attributes:
        value: the estimate.
        std_error: its standard error.
        interval: the lower and the upper end of a confidence interval.
        effective_sample_size: how many independent, equally weighted samples it rests on.
        diagnostics: what else tells whether it can be trusted.
    """

    value: Float[Array, ""]
    std_error: Float[Array, ""]
    interval: tuple[Float[Array, ""], Float[Array, ""]]
    effective_sample_size: Float[Array, ""]
    diagnostics: Any
