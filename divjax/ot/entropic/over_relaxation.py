"""Over-relaxation of Sinkhorn's updates: ω from the observed errors, with rollback.

Over-relaxed updates, log u ← log u + ω (target − log u), reduce the number of iterations from
1/(1 − η) to 1/√(1 − η), where η is the asymptotic contraction factor of plain iterations. η is
estimated from the errors of chunks of iterations, and a chunk that increases the error is
undone.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from divjax.core.pytrees import select

__all__ = ["Best", "Pace", "adapt", "start_pace"]

# Beyond it, iterations may diverge even if their rate suggests convergence.
_LARGEST_OMEGA = 1.98
# Factors of the headroom, the largest ω less 1: after a rollback, and otherwise.
_LESS_ROOM, _MORE_ROOM = 0.4, 1.1
# ω is too large if the error is this multiple of the best, or has not improved on it in more than
# this number of settled chunks.
_WORSE, _PATIENCE = 2, 2
# Plain chunks after the first rollback.
_FIRST_REST = 4


class Best(NamedTuple):
    """Potentials, and the logarithms of Σ_j b_j exp((g_j − C_ij)/ε) and Σ_i a_i exp(…)."""

    f: Float[Array, " n"]
    g: Float[Array, " m"]
    log_rows: Float[Array, " n"]
    log_columns: Float[Array, " m"]
    error: Float[Array, ""]


class Pace(NamedTuple):
    """The state of the over-relaxation: ω, its upper limit, and the best potentials.

    Attributes:
        omega: ω of the next chunk.
        largest: the upper limit of ω.
        settled: whether the last chunk began with the present ω, so that its rate belongs to it.
        stalled: the number of settled chunks without an improvement on the best error.
        rest: the cooldown, in plain chunks before ω may rise again.
        next_rest: the cooldown after the next rollback.
        best: the best potentials seen.
    """

    omega: Float[Array, ""]
    largest: Float[Array, ""]
    settled: Bool[Array, ""]
    stalled: Int[Array, ""]
    rest: Int[Array, ""]
    next_rest: Int[Array, ""]
    best: Best


def start_pace(omega: Float[Array, ""], latest: Best) -> Pace:
    """The state before the first chunk."""
    largest = jnp.asarray(_LARGEST_OMEGA, omega.dtype)
    zero, rest = jnp.asarray(0), jnp.asarray(_FIRST_REST)
    return Pace(omega, largest, jnp.array(True), zero, zero, rest, latest)


def adapt(
    pace: Pace, latest: Best, rate: Float[Array, ""], sound: Bool[Array, ""]
) -> tuple[Pace, Bool[Array, ""]]:
    """The next pace, from the rate of the last chunk, and whether to roll back to the best.

    ω changes every other chunk, as a new ω needs some iterations to settle. If, with ω settled, the
    error exceeds twice the best one or has failed three times to improve on it, ω was too large:
    roll back to the best potentials, reduce the largest ω allowed, and take plain chunks before the
    next attempt, twice as many each time.

    Args:
        pace: the pace of the last chunk.
        latest: the result of the last chunk.
        rate: the error's factor per iteration.
        sound: whether the rate is asymptotic: the error is small, and the chunk was not repeated.
    """
    better = latest.error < pace.best.error
    # Only an over-relaxed chunk that began with the present ω can show that it is too large.
    judged = pace.settled & (pace.omega > 1)
    stalled = jnp.where(better, 0, pace.stalled + judged.astype(pace.stalled.dtype))
    worse = judged & (~(latest.error <= _WORSE * pace.best.error) | (stalled > _PATIENCE))
    # The headroom above 1 shrinks quickly after a failure, and grows back slowly otherwise.
    room = pace.largest - 1
    more = jnp.where(pace.settled, _MORE_ROOM * room, room)
    room = jnp.where(worse, _LESS_ROOM * room, more)
    largest = 1 + jnp.minimum(room, _LARGEST_OMEGA - 1)
    # A rate belongs to the ω at the start of its chunk: ω is constant in between.
    omega = jnp.minimum(next_omega(rate, pace.omega), largest)
    omega = jnp.where(pace.settled, omega, pace.omega)
    # Plain iterations converge from any potentials. They follow a failure, and continue until the
    # rate is asymptotic.
    rest = jnp.where(worse, pace.next_rest, jnp.maximum(pace.rest - 1, 0))
    omega = jnp.where(worse | ~sound | (rest > 0), 1, omega)
    next_pace = Pace(
        omega=omega,
        largest=largest,
        # A plain chunk, such as one after a rollback, has no ω to settle.
        settled=~pace.settled | (omega <= 1),
        stalled=jnp.where(worse, 0, stalled),
        rest=rest,
        next_rest=jnp.where(worse, 2 * pace.next_rest, pace.next_rest),
        best=select(better, latest, pace.best),
    )
    return next_pace, worse


def next_omega(rate: Float[Array, ""], omega: Float[Array, ""]) -> Float[Array, ""]:
    """The best ω for the plain rate η implied by the rate observed at ω.

    (rate + ω − 1)² = rate ω² η for the slowest direction (Young 1971, theorem 5.2.2), with
    rate ≥ ω − 1, and ω = 2/(1 + √(1 − η)).
    """
    # In theory no rate at ω is below ω − 1; early iterations and rounding may yield one.
    rate = jnp.clip(jnp.where(jnp.isfinite(rate), rate, 0), jnp.maximum(omega - 1, 1e-6), 1)
    eta = jnp.clip(((rate + omega - 1) / omega) ** 2 / rate, 0, 1)
    return 2 / (1 + jnp.sqrt(1 - eta))
