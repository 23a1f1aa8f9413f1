"""What an encoder's divergence from its prior consists of."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from divjax.core.checks import check_full_precision, check_no_negatives, check_shape, key_first
from divjax.core.keys import own_key
from divjax.core.numerics import nan_unless
from divjax.core.pairwise import map_row_blocks
from divjax.core.pytrees import pytree
from divjax.core.samples import Numbers, as_samples
from divjax.core.types import summary

__all__ = ["TotalCorrelationDecomposition", "total_correlation_decomposition"]


@pytree
class TotalCorrelationDecomposition:
    """The parts of an encoder's mean divergence from a standard normal prior, in nats.

    Attributes:
        mutual_information: I(x; z), of the rows and their codes.
        total_correlation: KL(q(z)‖∏_j q(z_j)), the dependence between the code's features.
        dimension_wise_kl: Σ_j KL(q(z_j)‖p(z_j)), of each feature from its prior.
    """

    mutual_information: Float[Array, ""]
    total_correlation: Float[Array, ""]
    dimension_wise_kl: Float[Array, ""]

    __repr__ = summary


@key_first
def total_correlation_decomposition(
    key: Key[Array, ""], mean: Float[Numbers, "n d"], scale: Float[Numbers, "n d"]
) -> TotalCorrelationDecomposition:
    """The mean of KL(q(z|x_i)‖p(z)) as I(x; z) + KL(q(z)‖∏_j q(z_j)) + Σ_j KL(q(z_j)‖p(z_j)).

    For encoders q(z|x_i) = N(mean_i, diag(scale_i²)), the prior p = N(0, I), and q(z) the mixture
    of the encoders of all n rows. Each part is the mean over one code drawn from each encoder:
    unbiased for these n rows, of which the mutual information cannot exceed log n. (The authors,
    with mini-batches, weight the encoders of a batch to stand for those of all rows.)

    Time O(n² d), memory O(n d) plus one block of the budget of `divjax.core.pairwise`.
    Differentiable through the codes.

    Args:
        key: the key for the codes.
        mean: the mean of each encoder, by rows.
        scale: the standard deviations of each encoder, positive.

    Returns:
        A `TotalCorrelationDecomposition`. NaN if a number is not finite, or a traced scale is not
        positive.

    Raises:
        ValueError: if the arguments are not matrices of one shape, or a known scale is negative.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> one = jax.random.normal(jax.random.key(0), (500, 1))
        >>> both = jnp.concatenate([one, one], axis=1)  # one number, encoded twice
        >>> scale = jnp.full((500, 2), 0.1)
        >>> parts = total_correlation_decomposition(jax.random.key(1), both, scale)
        >>> bool(parts.total_correlation > 1.5), bool(parts.dimension_wise_kl < 0.2)
        (True, True)

    References:
        Chen, Li, Grosse, Duvenaud 2018, equation 2.
    """
    key = own_key(key)
    mean, scale = as_samples(mean=mean, scale=scale)
    check_full_precision("mean", mean)
    check_shape("scale", scale, *mean.shape)
    check_no_negatives(scale=scale)
    return _decomposition(key, mean, scale)


@jax.jit
def _decomposition(
    key: Key[Array, ""], mean: Float[Array, "n d"], scale: Float[Array, "n d"]
) -> TotalCorrelationDecomposition:
    """`total_correlation_decomposition` after its checks."""
    n, d = mean.shape
    valid = jnp.isfinite(mean).all() & jnp.isfinite(scale).all() & (scale > 0).all()
    scale = nan_unless(valid, scale)
    noise = jax.random.normal(key, mean.shape, mean.dtype)
    deviations = scale * noise
    codes = mean + deviations

    # Without the constants −½ log 2π, which cancel in every difference.
    def log_mixtures(
        own: Float[Array, "b d"], deviations: Float[Array, "b d"]
    ) -> tuple[Array, Array]:
        """The log-density of all features together, and the sum of those of each."""

        def add(
            carry: tuple[Array, Array], feature: tuple[Array, ...]
        ) -> tuple[tuple[Array, Array], None]:
            joint, marginal = carry
            mean, deviation, center, width = feature
            # Not from the code itself, whose rounding may be as large as its encoder's scale.
            apart = (mean[:, None] - center) + deviation[:, None]
            logs = -0.5 * jnp.square(apart / width) - jnp.log(width)
            return (joint + logs, marginal + jax.nn.logsumexp(logs, axis=1)), None

        start = jnp.zeros((own.shape[0], n), own.dtype), jnp.zeros(own.shape[0], own.dtype)
        # Feature after feature, so that no array of rows × encoders × features is needed.
        features = own.T, deviations.T, mean.T, scale.T
        (joint, marginal), _ = jax.lax.scan(add, start, features)
        return jax.nn.logsumexp(joint, axis=1) - math.log(n), marginal - d * math.log(n)

    # The backward pass keeps a block for each feature.
    joint, marginal = map_row_blocks(log_mixtures, n * d, mean, deviations)
    # In units of its scale a code's distance from its mean is the noise.
    encoder = jnp.sum(-0.5 * jnp.square(noise) - jnp.log(scale), axis=1)
    prior = -0.5 * jnp.sum(jnp.square(codes), axis=1)
    return TotalCorrelationDecomposition(
        jnp.mean(encoder - joint), jnp.mean(joint - marginal), jnp.mean(marginal - prior)
    )
