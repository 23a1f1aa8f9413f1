"""The result of every test of a hypothesis."""

from jaxtyping import Array, Float, Int

from divjax.core.pytrees import pytree
from divjax.core.types import Outcome

__all__ = ["TestResult"]


@pytree
class TestResult(Outcome):
    """A statistic and where it lies among what the null hypothesis lets one expect.

    Attributes:
        statistic: the observed statistic, the larger the more it speaks against the hypothesis.
        p_value: at most α with a probability of at most α if the hypothesis holds: exactly for a
            permutation test, where it is at least 1/(1 + number of permutations), and for large
            samples where a test says so. NaN if the data are not finite.
        null: the statistic of each permutation or bootstrap sample, empty for a test whose null
            distribution is a formula.
        status: a `Status`: `NOT_FINITE` if the p-value or an entry of `null` is NaN,
            `INVALID_INPUT`, with a p-value of NaN, if a traced argument is out of its range or
            traced labels do not allow the test, `FLOATING_POINT_RESOLUTION` if rounding hides
            what the data differ in.
    """

    statistic: Float[Array, ""]
    p_value: Float[Array, ""]
    null: Float[Array, " resamples"]
    status: Int[Array, ""]
