"""The information of each of many features about one target."""

import functools

import jax
from jaxtyping import Array, ArrayLike, Float

from divjax.core.checks import check_count, check_probability
from divjax.core.samples import Numbers
from divjax.core.types import Estimate
from divjax.information.entropy_sums import MUTUAL, InformationMethod
from divjax.information.measures import check_method, paired_variables
from divjax.information.neighbor_methods import KSG

__all__ = ["mutual_information_screening"]


def mutual_information_screening(
    features: Float[Numbers, "n p"],
    target: Float[Numbers, "n d"],
    *,
    method: InformationMethod = KSG(reference="gaussian_copula"),
    confidence_level: ArrayLike = 0.95,
    batch_size: int | None = None,
) -> Estimate:
    """I(x_j; y) of each feature x_j alone with a target y, in one program.

    The same as `mutual_information` of each column. Features that inform only together with others
    have no information alone.

    Time O(p n log n) by neighbours for a target with one feature, memory O(n (p + k)).

    Args:
        features: samples of the features, one row each.
        target: samples of the target, in paired rows.
        method: as for `mutual_information`.
        confidence_level: the level of each confidence interval. They do not hold jointly.
        batch_size: the number of features at a time under vmap, one by default: faster on
            accelerators.

    Returns:
        An `Estimate` in nats whose arrays have one entry for each feature. Methods flag features
        by NaN as for `mutual_information`, each by itself.

    Raises:
        ValueError: as `mutual_information`, and if `batch_size` is not a positive integer.

    Example:
        >>> import jax
        >>> features = jax.random.normal(jax.random.key(0), (500, 5))
        >>> target = features[:, 2:3] ** 2 + features[:, 4:]
        >>> found = mutual_information_screening(features, target)
        >>> [j for j in range(5) if found.interval.lower[j] > 0]
        [2, 4]

    References:
        Kraskov, Stögbauer, Grassberger 2004.
    """
    features, target = paired_variables(features=features, target=target)
    check_method(method)
    check_probability(confidence_level=confidence_level)
    if batch_size is not None:
        check_count(1, batch_size=batch_size)
    return _screened(method, features, target, confidence_level, batch_size=batch_size)


@functools.partial(jax.jit, static_argnames="batch_size")
def _screened(
    method: InformationMethod,
    features: Float[Array, "n p"],
    target: Float[Array, "n d"],
    confidence_level: ArrayLike,
    *,
    batch_size: int | None,
) -> Estimate:
    # One feature at a time, or `batch_size` of them: memory does not grow with their number.
    of_feature = lambda x: method.estimate((x[:, None], target), MUTUAL, confidence_level)
    return jax.lax.map(of_feature, features.T, batch_size=batch_size)
