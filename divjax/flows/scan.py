"""Many steps: the scan that records them, its stop at a tolerance, its progress from Python."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, PyTree

from divjax.core.programs import is_traced
from divjax.core.progress import progress_bar
from divjax.core.pytrees import select
from divjax.core.types import status_of
from divjax.flows.state import FlowResult, FlowState, History, StepInfo

T = TypeVar("T")

__all__ = ["record", "report_progress", "run_in_chunks"]

Advance = Callable[[FlowState], tuple[FlowState, StepInfo]]
Observe = Callable[[FlowState], PyTree[Array]]
# A state, whether the tolerance was reached there, and the last entry of the history.
Checked = tuple[FlowState, Bool[Array, ""], History]

# Enough reports to follow a run, few enough that Python's overhead is negligible.
_NUM_CHUNKS = 20


def record(
    advance: Advance,
    state: FlowState,
    *,
    num_steps: int,
    record_every: int,
    observe: Observe | None,
    tolerance: ArrayLike | None,
) -> FlowResult:
    """Take steps from a state and record the first of every `record_every`.

    Args:
        advance: takes one step.
        state: the state to start from.
        num_steps: the number of steps; with a tolerance, the maximum.
        record_every: the number of steps for one entry of the history.
        observe: maps a state to anything that the history records.
        tolerance: the norm of the combined field at which steps are no longer taken, or None.
    """
    observe = observe or (lambda state: None)
    if tolerance is None:
        stretch = functools.partial(_recorded, advance, observe)
        state, history = _scan_stretches(stretch, state, num_steps, record_every)
        # All steps are taken, as asked: there is no tolerance to be missed.
        converged = valid = True
    else:
        stretch = functools.partial(_recorded_until, advance, observe, tolerance)
        # The carry holds the latest entry, which the entries after a stop repeat.
        start = state, jnp.zeros((), bool), _blank_entry(advance, observe, state)
        (state, converged, _), history = _scan_stretches(stretch, start, num_steps, record_every)
        # A traced tolerance cannot be validated eagerly. Comparisons with NaN are False.
        valid = jnp.asarray(tolerance) >= 0
    status = status_of(
        converged=converged, resolved=state.resolved, finite=state.finite, valid=valid
    )
    return FlowResult(state.particles, state.particle_weights, history, state, status)


def _scan_stretches(
    stretch: Callable[[int], Callable[[T, None], tuple[T, History]]],
    carry: T,
    num_steps: int,
    record_every: int,
) -> tuple[T, History]:
    """Scan whole stretches of `record_every` steps, then a shorter one for the rest.

    The history holds a stretch's first step: only recorded steps cost memory and `observe`.
    """
    # All iterations of a scan have the same length, so the remainder needs a second scan.
    whole, rest = divmod(num_steps, record_every)
    carry, history = jax.lax.scan(stretch(record_every), carry, length=whole)
    if rest:
        carry, tail = jax.lax.scan(stretch(rest), carry, length=1)
        history = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), history, tail)
    return carry, history


def _recorded(
    advance: Advance, observe: Observe, length: int
) -> Callable[[FlowState, None], tuple[FlowState, History]]:
    """A stretch of steps, of which the first is recorded."""

    def stretch(state: FlowState, _: None) -> tuple[FlowState, History]:
        # Before the step: an entry belongs to the state at which its fields were computed.
        observed = observe(state)
        later, info = advance(state)
        if length > 1:
            later = jax.lax.fori_loop(1, length, lambda _, s: advance(s)[0], later)
        return later, History(state.step, *info, observed)

    return stretch


def _recorded_until(
    advance: Advance, observe: Observe, tolerance: ArrayLike, length: int
) -> Callable[[Checked, None], tuple[Checked, History]]:
    """A stretch that stops at the tolerance. After it, the state and the last entry stay."""

    def check_and_advance(state: FlowState) -> tuple[FlowState, Bool[Array, ""], StepInfo]:
        later, info = advance(state)
        norm = jnp.sqrt(info.squared_norm)
        reached = norm <= jnp.asarray(tolerance, norm.dtype)
        # The step that finds a small norm is not taken. Its values count all the same.
        return select(reached, state._replace(finite=later.finite), later), reached, info

    # A branch, not a select: after the stop no step is computed.
    def rest(_: Array, carry: tuple[FlowState, Bool[Array, ""]]):
        move = lambda state, _: check_and_advance(state)[:2]
        return jax.lax.cond(carry[1], lambda *same: same, move, *carry)

    # The first step of a stretch is the recorded one.
    def move(state: FlowState, _: Bool[Array, ""], last: History) -> Checked:
        observed = observe(state)
        later, reached, info = check_and_advance(state)
        if length > 1:
            later, reached = jax.lax.fori_loop(1, length, rest, (later, reached))
        return later, reached, History(state.step, *info, observed)

    def stretch(carry: Checked, _: None) -> tuple[Checked, History]:
        carry = jax.lax.cond(carry[1], lambda *same: same, move, *carry)
        return carry, carry[2]

    return stretch


def _blank_entry(advance: Advance, observe: Observe, state: FlowState) -> History:
    """An entry of the right shapes, which the first recorded step replaces."""
    info = jax.eval_shape(lambda state: advance(state)[1], state)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), info)
    observed = jax.tree.map(jnp.asarray, observe(state))
    return History(state.step, zeros.values, zeros.weights, zeros.squared_norm, observed)


def run_in_chunks(
    run_chunk: Callable[[FlowState, int], FlowResult],
    state: FlowState,
    num_steps: int,
    record_every: int,
    report: Callable[[History, int], None],
) -> FlowResult:
    """The result of one run, by about twenty shorter ones that continue each other.

    Args:
        run_chunk: runs a number of steps from a state.
        state: the state to start from.
        num_steps: the number of steps of all chunks.
        record_every: divides the number of steps of every chunk except the last.
        report: gets each chunk's history and number of steps.

    Raises:
        ValueError: if a state is traced. Nothing can then be reported.
    """
    num_entries = -(-num_steps // record_every)
    size = max(1, -(-num_entries // _NUM_CHUNKS)) * record_every
    # Chunks of one length are one program. The last may be shorter.
    whole, rest = divmod(num_steps, size)
    lengths = [size] * whole + [rest] * (rest > 0 or whole == 0)
    histories, result = [], None
    for length in lengths:
        result = run_chunk(state, length)
        _refuse_traced(result)
        histories.append(result.history)
        report(result.history, length)
        # Only a stop at the tolerance leaves steps out.
        stopped = int(result.state.step) < int(state.step) + length
        state = result.state
        if stopped:
            break
    assert result is not None  # there is at least one chunk
    history = _joined(histories, num_entries)
    return dataclasses.replace(result, history=history)


def _refuse_traced(tree: PyTree[Array]) -> None:
    if is_traced(tree):
        raise ValueError(
            "progress must be False if arguments are traced: under jit, vmap and grad there are "
            "no values yet to report."
        )


def _joined(histories: list[History], num_entries: int) -> History:
    """The histories one after another. Entries that a stop left out repeat the last one."""
    missing = num_entries - sum(len(history.step) for history in histories)
    # Nothing is compiled for a single history that is complete.
    if len(histories) == 1 and not missing:
        return histories[0]

    def join(*leaves: Array) -> Array:
        last = leaves[-1]
        repeated = jnp.broadcast_to(last[-1:], (missing, *last.shape[1:]))
        return jnp.concatenate([*leaves, repeated])

    return jax.tree.map(join, *histories)


@contextlib.contextmanager
def report_progress(
    progress: bool | Callable[[History], object], num_steps: int
) -> Iterator[Callable[[History, int], None]]:
    """A callback for each chunk's history and number of steps: a bar's, or the caller's function.

    Raises:
        ValueError: if `progress` is neither a boolean nor a function.
        ImportError: if tqdm, which draws the bar, is not installed.
    """
    # A function of the caller's own does the reporting.
    if callable(progress):
        call = progress

        def pass_on(history: History, length: int) -> None:
            call(history)

        yield pass_on
        return
    if not isinstance(progress, bool):
        raise ValueError(
            f"progress must be True, False or a function; got {type(progress).__name__}."
        )
    # Otherwise a bar, by a library that not every install has.
    with progress_bar(progress, num_steps, "step") as bar:

        def report(history: History, length: int) -> None:
            # A run of no steps has no last entry to show.
            if length:
                values = " ".join(f"{float(value):.4g}" for value in history.values[-1])
                norm = float(jnp.sqrt(history.squared_norm[-1]))
                bar.set_postfix(values=values, norm=f"{norm:.3g}", refresh=False)
            bar.update(length)

        yield report
