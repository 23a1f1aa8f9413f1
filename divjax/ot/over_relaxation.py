"""How far Sinkhorn's updates go beyond their target: ω from the errors seen, with a way back.

Over-relaxed updates, log u ← log u + ω (target − log u), take the number of iterations from
1/(1 − η) to 1/√(1 − η), where η is the asymptotic contraction factor of plain iterations. η is
estimated from the errors of chunks of iterations, and a chunk after which the error is larger is
undone.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from divjax.core.pytrees import select

__all__ = ["Best", "Pace", "adapt", "start_pace"]

# Beyond it, iterations need not converge even where their rate suggests so.
_LARGEST_OMEGA = 1.98
# What the room between 1 and the largest ω is multiplied by after a step back, and else.
_LESS_ROOM, _MORE_ROOM = 0.4, 1.1
# ω is too large where the error is as many times the best, or no better for more than as many
# settled chunks.
_WORSE, _PATIENCE = 2, 2
# Plain chunks after the first step back.
_FIRST_REST = 4


class Best(NamedTuple):
    """Potentials, and the logarithms of Σ_j b_j exp((g_j − C_ij)/ε) and Σ_i a_i exp(…)."""

    f: Float[Array, " n"]
    g: Float[Array, " m"]
    log_rows: Float[Array, " n"]
    log_columns: Float[Array, " m"]
    error: Float[Array, ""]


class Pace(NamedTuple):
    """How far updates go beyond their target, and what is known about how far they may.

    Attributes:
        omega: of the next chunk.
        largest: that ω may be.
        settled: whether the last chunk began with the present ω, so that its rate tells of it.
        stalled: settled chunks in which the error was no less than the best.
        rest: plain chunks before ω may rise again.
        next_rest: how many there will be after the next step back.
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
    """Before the first chunk."""
    largest = jnp.asarray(_LARGEST_OMEGA, omega.dtype)
    zero, rest = jnp.asarray(0), jnp.asarray(_FIRST_REST)
    return Pace(omega, largest, jnp.array(True), zero, zero, rest, latest)


def adapt(
    pace: Pace, latest: Best, rate: Float[Array, ""], sound: Bool[Array, ""]
) -> tuple[Pace, Bool[Array, ""]]:
    """The next pace, from the rate of the last chunk, and whether to return to the best.

    Every other chunk, as a new ω needs some iterations to settle. When, with ω settled, the error
    exceeds twice the best one or has failed three times to improve on it, ω was too large: return
    to the best potentials, cut the largest ω allowed, and take plain chunks before the next
    attempt, twice as many each time.

    Args:
        pace: of the last chunk.
        latest: what it led to.
        rate: by which the error fell an iteration.
        sound: whether the rate tells of the end: the error is small, and nothing was done again.
    """
    better = latest.error < pace.best.error
    # Only a chunk that began with the present ω, and over-relaxed, can show that it is too large.
    judged = pace.settled & (pace.omega > 1)
    stalled = jnp.where(better, 0, pace.stalled + judged.astype(pace.stalled.dtype))
    worse = judged & (~(latest.error <= _WORSE * pace.best.error) | (stalled > _PATIENCE))
    # The room above 1 shrinks quickly after a failure, and grows back slowly while there is none.
    room = pace.largest - 1
    more = jnp.where(pace.settled, _MORE_ROOM * room, room)
    room = jnp.where(worse, _LESS_ROOM * room, more)
    largest = 1 + jnp.minimum(room, _LARGEST_OMEGA - 1)
    # A rate belongs to the ω that the chunk was begun with: in between ω stays.
    omega = jnp.minimum(next_omega(rate, pace.omega), largest)
    omega = jnp.where(pace.settled, omega, pace.omega)
    # Plain iterations converge from anywhere. They follow a failure, and go on until the rate is
    # that of the end.
    rest = jnp.where(worse, pace.next_rest, jnp.maximum(pace.rest - 1, 0))
    omega = jnp.where(worse | ~sound | (rest > 0), 1, omega)
    next_pace = Pace(
        omega=omega,
        largest=largest,
        # What follows a step back, or plain iterations, is plain: there is nothing to settle.
        settled=~pace.settled | (omega <= 1),
        stalled=jnp.where(worse, 0, stalled),
        rest=rest,
        next_rest=jnp.where(worse, 2 * pace.next_rest, pace.next_rest),
        best=select(better, latest, pace.best),
    )
    return next_pace, worse


def next_omega(rate: Float[Array, ""], omega: Float[Array, ""]) -> Float[Array, ""]:
    """The best ω for the plain rate η that explains the rate seen at ω.

    (rate + ω − 1)² = rate ω² η for the slowest direction (Young 1971, theorem 5.2.2), where
    rate ≥ ω − 1; and ω = 2/(1 + √(1 − η)).
    """
    # No rate at ω is below ω − 1 in theory; early iterations and rounding may show one.
    rate = jnp.clip(jnp.where(jnp.isfinite(rate), rate, 0), jnp.maximum(omega - 1, 1e-6), 1)
    eta = jnp.clip(((rate + omega - 1) / omega) ** 2 / rate, 0, 1)
    return 2 / (1 + jnp.sqrt(1 - eta))
