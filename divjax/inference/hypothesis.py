"""The result of every test of a hypothesis."""

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from divjax.core.numerics import nan_unless
from divjax.core.pytrees import pytree
from divjax.core.types import Outcome, status_of

__all__ = ["TestResult", "compared_with_null"]


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


def compared_with_null(
    observed: Float[Array, ""],
    null: Float[Array, " resamples"],
    tolerance: Float[Array, ""],
    valid: Bool[ArrayLike, ""] = True,
    resolved: Bool[ArrayLike, ""] = True,
) -> TestResult:
    """The test with p = (1 + #{null ≥ observed})/(1 + N), ties within a tolerance counting as ≥.

    If the null statistics differ by less than the tolerance, and the observed one does not exceed
    all of them by more, they may differ by rounding alone, which the status reports.

    Example:
        >>> null = jnp.array([0.0, 2.0, 1.0])
        >>> float(compared_with_null(jnp.array(1.0), null, jnp.array(1e-6)).p_value)
        0.75
    """
    # An infinite statistic has no rounding error, and is meaningful among finite ones alone.
    tolerance = jnp.where(jnp.isinf(observed), 0, tolerance)
    below = jnp.sum(null < observed - tolerance)  # false for NaN
    size = null.shape[0]
    # The observed statistic is one of N + 1 exchangeable ones: no p-value is zero.
    p_value = (1 + size - below).astype(null.dtype) / (1 + size)
    known = jnp.isfinite(observed) | (jnp.isinf(observed) & jnp.isfinite(null).all())
    finite = known & ~jnp.isnan(null).any()
    spread = jnp.std(jnp.where(finite, null, 0))
    hidden = (spread > 0) & (spread < tolerance) & (below < size)
    status = status_of(converged=True, resolved=resolved & ~hidden, finite=finite, valid=valid)
    p_value = nan_unless(known & valid, p_value)
    return TestResult(observed, p_value, null, status)
