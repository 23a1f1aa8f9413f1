"""Calibration: the intercept and slope that correct the log ratios of each fold.

They are fitted to the held-out log ratios of the other folds, so that the corrected log ratios
remain out of fold. A prior keeps them near the identity if these rows are uninformative, as when p
and q hardly overlap.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from divjax.ratio.certificates import HeldOut
from divjax.ratio.heads.logistic import newton_logistic
from divjax.ratio.protocols import num_rows
from divjax.ratio.splits import CrossFitting, normalize_weights

__all__ = [
    "CALIBRATIONS",
    "CALIBRATION_PRIOR",
    "apply_calibrations",
    "calibrate_folds",
]

CALIBRATIONS = ("none", "temperature", "platt")

# The precision of the Gaussian prior around 0 and 1 on intercept and slope of a calibration, in
# rows: a prior standard deviation of about a third.
CALIBRATION_PRIOR = 10.0


def calibrate_folds(
    held_out: list[HeldOut], weights: tuple[Array, Array], plan: CrossFitting
) -> Float[Array, "folds 2"]:
    """Intercept and slope for each fold's log ratios, fitted to the rows of the other folds."""
    of_p, of_q = held_out
    a, b = weights

    def calibrate(fold):
        # The rows of the fold are excluded from its calibration, so that its log ratios remain out
        # of fold.
        others_p = normalize_weights(jnp.where(of_p.fold == fold, 0, a))
        others_q = normalize_weights(jnp.where(of_q.fold == fold, 0, b))
        return _calibrate(of_p.log_ratio, of_q.log_ratio, others_p, others_q, plan.calibration)

    return jax.vmap(calibrate)(jnp.arange(plan.num_folds))


def apply_calibrations(
    u: Float[Array, " n"], fold: Int[Array, " n"], calibrations: Float[Array, "folds 2"]
) -> Float[Array, " n"]:
    """The calibrated log ratios, zero for rows in no fold."""
    intercept, slope = calibrations[fold].T
    return jnp.where(fold >= 0, intercept + slope * u, 0)


def _calibrate(
    u_p: Float[Array, " n"],
    u_q: Float[Array, " m"],
    a: Float[Array, " n"],
    b: Float[Array, " m"],
    kind: str,
) -> Float[Array, " 2"]:
    """The intercept α and slope β of the log ratio α + β·u that fits these rows best.

    The prior dominates if the rows are uninformative, as when p and q hardly overlap.
    """
    identity = jnp.array([0.0, 1.0], u_p.dtype)
    if kind == "none":
        return identity
    # A temperature has no intercept: its feature is zero, hence its coefficient stays zero.
    used = jnp.array([1.0 if kind == "platt" else 0.0, 1.0], u_p.dtype)
    features = lambda u: jnp.stack([jnp.ones_like(u), u], axis=1) * used
    phi_p, phi_q = features(u_p), features(u_q)
    weights = a, b
    penalty = jnp.full(2, CALIBRATION_PRIOR / num_rows(a, b), u_p.dtype)
    # With u as offset the unknowns are the change from the identity, which the prior keeps near
    # zero.
    change = newton_logistic(phi_p, phi_q, *weights, penalty, u_p, u_q)
    # For infinite log ratios Newton's method has no finite result, and they stay uncalibrated.
    return identity + jnp.where(jnp.isfinite(change).all(), change, 0)
