"""What every estimator returns."""

from typing import Any, NamedTuple

from jaxtyping import Array, Float

__all__ = ["Estimate", "Interval"]


class Interval(NamedTuple):
    """A confidence interval."""

    lower: Float[Array, ""]
    upper: Float[Array, ""]


class Estimate(NamedTuple):
    """An estimated number, how far it may be off, and what speaks against it.

    Attributes:
        value: the estimate, never clipped to where the truth must lie.
        std_error: its standard error.
        interval: the confidence interval, at the level that was asked for.
        effective_sample_size: of how many equally important samples it is worth; the estimator
            says which.
        diagnostics: a NamedTuple of the estimator's own.
    """

    value: Float[Array, ""]
    std_error: Float[Array, ""]
    interval: Interval
    effective_sample_size: Float[Array, ""]
    diagnostics: Any
