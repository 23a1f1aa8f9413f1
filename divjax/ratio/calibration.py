"""Calibration: the affine map of a log ratio that fits rows which it was not fitted to."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from divjax.ratio.logistic import newton_logistic
from divjax.ratio.types import num_rows

__all__ = ["CALIBRATIONS", "calibrate"]

CALIBRATIONS = ("none", "temperature", "platt")

# The precision of the Gaussian prior around 0 and 1 on intercept and slope of a calibration, in
# rows: a log ratio is trusted to about a third unless the rows say otherwise.
CALIBRATION_PRIOR = 10.0


def calibrate(
    u_p: Float[Array, " n"],
    u_q: Float[Array, " m"],
    weights_p: Float[Array, " n"],
    weights_q: Float[Array, " m"],
    kind: str,
) -> Float[Array, " 2"]:
    """The intercept a and slope b of the log ratio a + b·u that fits these rows best.

    The prior decides where the rows do not, as when p and q hardly overlap.
    """
    identity = jnp.array([0.0, 1.0], u_p.dtype)
    if kind == "none":
        return identity
    used = jnp.array([1.0 if kind == "platt" else 0.0, 1.0], u_p.dtype)
    phi_p, phi_q = (jnp.stack([jnp.ones_like(u), u], axis=1) * used for u in (u_p, u_q))
    weights = weights_p, weights_q
    penalty = jnp.full(2, CALIBRATION_PRIOR / num_rows(weights_p, weights_q), u_p.dtype)
    change = newton_logistic(phi_p, phi_q, *weights, penalty, u_p, u_q)
    return identity + jnp.where(jnp.isfinite(change).all(), change, 0)
