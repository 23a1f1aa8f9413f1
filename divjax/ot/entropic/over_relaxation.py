"""Over-relaxation of Sinkhorn's updates: ω from the observed errors, with rollback.

Over-relaxed updates, log u ← log u + ω (target − log u), reduce the number of iterations from
1/(1 − η) to 1/√(1 − η), where η is the asymptotic contraction factor of plain iterations. η is
estimated from the errors of chunks of iterations. An over-relaxed chunk that more than doubles the
best error is undone, and so is the third in a row that does not improve on it.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from divjax.core.pytrees import select

__all__ = ["TUNING", "Iterate", "Relaxation", "adapt", "start_relaxation"]


class Tuning(NamedTuple):
    """Constants of the adaptation. They affect the number of iterations, not the solution.

    Attributes:
        max_omega: the largest ω. Beyond it, iterations may diverge even if their rate suggests
            convergence.
        shrinkage: multiplies the headroom, max_omega − 1 of the state, after a rollback.
        growth: multiplies it after any other warmed-up chunk.
        tolerated_increase: ω is too large if the error is more than this multiple of the best one.
        patience: ω is too large if more than this number of chunks bring no improvement.
        first_cooldown: the plain chunks after the first rollback, doubled by every further one.
        asymptotic_error: the error, as a share of the mass, below which its rate is taken as
            asymptotic.
    """

    max_omega: float = 1.98
    shrinkage: float = 0.4
    growth: float = 1.1
    tolerated_increase: float = 2
    patience: int = 2
    first_cooldown: int = 4
    asymptotic_error: float = 0.2


TUNING = Tuning()


class Iterate(NamedTuple):
    """Potentials, and the logarithms of Σ_j b_j exp((g_j − C_ij)/ε) and Σ_i a_i exp(…)."""

    f: Float[Array, " n"]
    g: Float[Array, " m"]
    log_rows: Float[Array, " n"]
    log_columns: Float[Array, " m"]
    error: Float[Array, ""]


class Relaxation(NamedTuple):
    """The state of the over-relaxation.

    Attributes:
        omega: ω of the next chunk.
        max_omega: the largest ω allowed at present.
        warmed_up: whether the last chunk began with the present ω, so that its rate belongs to it.
        stalled: the number of warmed-up chunks without an improvement on the best error.
        cooldown: the number of plain chunks before ω may rise again.
        next_cooldown: the cooldown after the next rollback.
        best: the iterate of least error, to which a rollback returns.
    """

    omega: Float[Array, ""]
    max_omega: Float[Array, ""]
    warmed_up: Bool[Array, ""]
    stalled: Int[Array, ""]
    cooldown: Int[Array, ""]
    next_cooldown: Int[Array, ""]
    best: Iterate


def start_relaxation(omega: Float[Array, ""], first: Iterate) -> Relaxation:
    """The state before the first chunk."""
    zero = jnp.asarray(0)
    return Relaxation(
        omega=omega,
        max_omega=jnp.asarray(TUNING.max_omega, omega.dtype),
        # The first chunk begins with its ω.
        warmed_up=jnp.array(True),
        stalled=zero,
        cooldown=zero,
        next_cooldown=jnp.asarray(TUNING.first_cooldown),
        best=first,
    )


def adapt(
    state: Relaxation, latest: Iterate, rate: Float[Array, ""], asymptotic: Bool[Array, ""]
) -> tuple[Relaxation, Bool[Array, ""]]:
    """The next state, and whether to roll back to the best iterate.

    ω changes every other chunk, as a new ω needs some iterations to warm up. If a warmed-up chunk
    exceeds twice the best error, or the third one fails to improve on it, ω was too large: roll
    back, reduce the largest ω allowed, and take plain chunks before the next attempt, twice as many
    each time.

    Args:
        state: the state during the last chunk.
        latest: the result of the last chunk.
        rate: the error's factor per iteration.
        asymptotic: whether the rate is asymptotic.
    """
    stalled, rollback = _judge(state, latest)
    max_omega = _next_max_omega(state, rollback)
    # Plain iterations converge from any potentials. They follow a rollback, and continue until the
    # rate is asymptotic.
    cooldown = jnp.where(rollback, state.next_cooldown, jnp.maximum(state.cooldown - 1, 0))
    plain = rollback | ~asymptotic | (cooldown > 0)
    # Only the rate of a warmed-up chunk is that of its ω: otherwise ω is kept.
    omega = jnp.minimum(best_omega(rate, state.omega), max_omega)
    omega = jnp.where(plain, 1, jnp.where(state.warmed_up, omega, state.omega))
    return Relaxation(
        omega=omega,
        max_omega=max_omega,
        # A plain chunk, such as one after a rollback, has no ω to warm up.
        warmed_up=~state.warmed_up | (omega <= 1),
        stalled=jnp.where(rollback, 0, stalled),
        cooldown=cooldown,
        next_cooldown=jnp.where(rollback, 2 * state.next_cooldown, state.next_cooldown),
        best=select(latest.error < state.best.error, latest, state.best),
    ), rollback


def _judge(state: Relaxation, latest: Iterate) -> tuple[Int[Array, ""], Bool[Array, ""]]:
    """The number of chunks without improvement, and whether ω has proved too large."""
    # Only an over-relaxed chunk that began with the present ω can show that it is too large.
    judged = state.warmed_up & (state.omega > 1)
    improved = latest.error < state.best.error
    stalled = jnp.where(improved, 0, state.stalled + judged.astype(state.stalled.dtype))
    # Negated, so that a NaN error counts as an increase.
    increased = ~(latest.error <= TUNING.tolerated_increase * state.best.error)
    return stalled, judged & (increased | (stalled > TUNING.patience))


def _next_max_omega(state: Relaxation, rollback: Bool[Array, ""]) -> Float[Array, ""]:
    """The largest ω allowed: its headroom above 1 shrinks quickly, and grows back slowly."""
    headroom = state.max_omega - 1
    grown = jnp.where(state.warmed_up, TUNING.growth * headroom, headroom)
    headroom = jnp.where(rollback, TUNING.shrinkage * headroom, grown)
    return 1 + jnp.minimum(headroom, TUNING.max_omega - 1)


def best_omega(rate: Float[Array, ""], omega: Float[Array, ""]) -> Float[Array, ""]:
    """The best ω for the plain rate η implied by the rate observed at ω.

    (rate + ω − 1)² = rate ω² η for the slowest direction (Young 1971, theorem 5.2.2), with
    rate ≥ ω − 1, and ω = 2/(1 + √(1 − η)).
    """
    # In theory no rate at ω is below ω − 1; early iterations and rounding may yield one.
    rate = jnp.clip(jnp.where(jnp.isfinite(rate), rate, 0), jnp.maximum(omega - 1, 1e-6), 1)
    eta = jnp.clip(((rate + omega - 1) / omega) ** 2 / rate, 0, 1)
    return 2 / (1 + jnp.sqrt(1 - eta))
