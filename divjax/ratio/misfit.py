"""Whether held-out rows show a log ratio to be too simple: does a probe of other shape gain?"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from divjax.core import linalg

__all__ = ["Misfit", "misfit"]

# Random cosines at each of these length scales, in standard deviations of a feature times √d.
_NUM_COSINES, _LENGTH_SCALES = 32, (0.1, 0.3, 1.0)
# The precision of the prior on each of the probe's coefficients, in rows.
_RIDGE = 30.0
# Shares of a Newton step, of which the fitted rows choose.
_LENGTHS = (1.0, 0.3, 0.1, 0.03, 0.0)


class Misfit(NamedTuple):
    """What a probe gains on rows that neither it nor the log ratio was fitted to.

    Attributes:
        gain: by how much it lowers the balanced cross-entropy, in nats; negative where the log
            ratio is better left alone. A lower bound, in expectation, on the log ratio's excess.
        std_error: of the gain, the models taken as given.
    """

    gain: Float[Array, ""]
    std_error: Float[Array, ""]

    @property
    def significant(self) -> Array:
        """Whether the gain exceeds three standard errors."""
        return self.gain > 3 * self.std_error


def misfit(
    features: Sequence[Float[Array, "n d"]],
    log_ratios: Sequence[Float[Array, " n"]],
    weights: Sequence[Float[Array, " n"]],
    folds: Sequence[Int[Array, " n"]],
    num_folds: int,
) -> Misfit:
    """Fit the residuals of all folds but one by random cosines, and score them on that one.

    The residual of a row, its label less the classifier's probability, has mean zero given the
    features if the log ratio is right. The probe is one of Newton's steps from the log ratio u
    towards the ridge logistic regression on cosines φ, c = (Φᵀ W Φ + ridge)⁻¹ Φᵀ residual.

    Args:
        features: of both samples, standardised.
        log_ratios: out of fold.
        weights: each sample's sum to one.
        folds: each row's; −1 for rows without weight.
        num_folds: how many.
    """
    x, u, fold = (jnp.concatenate(pair) for pair in (features, log_ratios, folds))
    sign = jnp.repeat(jnp.array([1, -1], u.dtype), np.array([len(f) for f in folds]))
    weight = jnp.concatenate(weights) / 2
    used = weight > 0
    u = jnp.where(used, u, 0)
    phi = jnp.where(used[:, None], _cosines(jnp.where(used[:, None], x, 0)), 0)
    wrong = jax.nn.sigmoid(-sign * u)
    residual, curvature = weight * sign * wrong, weight * wrong * (1 - wrong)
    ridge = _RIDGE * jnp.eye(phi.shape[1], dtype=phi.dtype) * jnp.sum(weight**2)

    def losses_at(rows, u):
        return jnp.where(rows, weight * jax.nn.softplus(-sign * u), 0)

    def gains(k):
        others = fold != k
        fitted = jnp.where(others, curvature, 0)
        hessian = jnp.matmul(phi.T * fitted, phi, precision="highest")
        step = linalg.solve(hessian + ridge, phi.T @ jnp.where(others, residual, 0))
        # A full step overshoots where u is surely wrong, and its curvature vanishes.
        change = phi @ step
        lengths = jnp.asarray(_LENGTHS, u.dtype)
        losses = jax.lax.map(
            lambda length: jnp.sum(losses_at(others, u + length * change)), lengths
        )
        moved = u + lengths[jnp.argmin(losses)] * change
        return jnp.where(others, 0, jax.nn.softplus(-sign * u) - jax.nn.softplus(-sign * moved))

    each = jnp.sum(jax.lax.map(gains, jnp.arange(num_folds)), axis=0)
    total = variance = jnp.zeros((), u.dtype)
    for own in (sign > 0, sign < 0):
        mean = 2 * jnp.sum(jnp.where(own, weight * each, 0))
        total += mean / 2
        variance += jnp.sum(jnp.where(own, weight**2 * (each - mean) ** 2, 0))
    return Misfit(total, jnp.sqrt(variance))


def _cosines(x: Float[Array, "n d"]) -> Float[Array, "n m"]:
    """A constant and random cosines; the same for all samples of as many features."""
    d = x.shape[1]
    rng = np.random.default_rng(0)
    scales = np.repeat(_LENGTH_SCALES, _NUM_COSINES) * np.sqrt(d)
    frequencies = rng.normal(size=(d, scales.size)) / scales
    phases = rng.uniform(0, 2 * np.pi, scales.size)
    waves = jnp.cos(x @ jnp.asarray(frequencies, x.dtype) + jnp.asarray(phases, x.dtype))
    return jnp.concatenate([jnp.ones_like(x[:, :1]), waves], axis=1)
