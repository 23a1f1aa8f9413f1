"""The options of the Sinkhorn solver, one object wherever an entropic problem is solved."""

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool

from divjax.core.checks import check_count, check_flag, check_positive, check_scalar
from divjax.core.pytrees import pytree, static
from divjax.ot.entropic.schedules import Annealing

__all__ = ["Sinkhorn", "check_solver", "check_solver_type"]


@pytree
class Sinkhorn:
    """Options of the Sinkhorn solver, the `solver` argument wherever a problem is solved.

    The problem itself (samples, weights, ε, cost, marginal penalties) belongs to the caller.
    Numbers are leaves: they may be traced and stacked, and another value does not recompile.

    Attributes:
        tolerance: stop once the marginals' L1 errors sum to at most tolerance × mass; None for
            exactly `max_iterations` iterations.
        annealing: solve along a decreasing sequence of ε first, which helps if ε is far below the
            mean cost.
        over_relaxation: a fixed ω in (0, 2), 1 for plain iterations; None for an adaptive ω, which
            returns to plain iterations if the error grows.
        max_iterations: the largest number of iterations, annealing included.
        block_size: the rows of the cost matrix, or of its transpose, in memory at a time. With
            max(n, m) or more the matrix is stored, by default if it has at most 2²⁵ costs (2²⁸ on
            an accelerator).
        record_errors: whether a result holds the error after every iteration.

    Raises:
        ValueError: if a number is known at trace time and out of range, or `annealing` is not an
            `Annealing`. Traced numbers out of range give NaN and `Status.INVALID_INPUT`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from divjax import ot
        >>> x, y = jnp.array([[0.0], [1.0]]), jnp.array([[0.0], [1.0], [5.0]])
        >>> precise = Sinkhorn(tolerance=1e-6, max_iterations=5000)
        >>> bool(ot.sinkhorn(x, y, epsilon=1.0, solver=precise).converged)
        True
        >>> solve = lambda t: ot.sinkhorn(x, y, epsilon=1.0, solver=Sinkhorn(tolerance=t))
        >>> jax.vmap(solve)(jnp.array([1e-1, 1e-5])).num_iterations.tolist()
        [5, 12]
    """

    tolerance: ArrayLike | None = 1e-3
    annealing: Annealing | None = None
    over_relaxation: ArrayLike | None = None
    max_iterations: int = static(default=2000)
    block_size: int | None = static(default=None)
    record_errors: bool = static(default=False)

    def __post_init__(self):
        check_positive(tolerance=self.tolerance, over_relaxation=self.over_relaxation)
        # From ω = 2 on the iterations diverge.
        omega = self.over_relaxation
        if isinstance(omega, (int, float)) and not omega < 2:
            raise ValueError(f"over_relaxation must be a number in (0, 2); got {omega}.")
        if self.annealing is not None and not isinstance(self.annealing, Annealing):
            raise ValueError(f"annealing must be an `Annealing`; got {self.annealing!r}.")
        check_count(1, max_iterations=self.max_iterations)
        if self.block_size is not None:
            check_count(1, block_size=self.block_size)
        check_flag(record_errors=self.record_errors)

    @property
    def valid(self) -> Bool[Array, ""]:
        """Whether traced numbers are in range."""
        valid = jnp.array(True)
        # An option that is None is not a number.
        if self.tolerance is not None:
            valid &= jnp.asarray(self.tolerance) > 0
        if self.annealing is not None:
            valid &= self.annealing.valid
        if self.over_relaxation is not None:
            omega = jnp.asarray(self.over_relaxation)
            valid &= (omega > 0) & (omega < 2)
        return valid


def check_solver(solver: "Sinkhorn", *, records: bool = True, result: str = "") -> None:
    """Raise `ValueError` unless `solver` is a `Sinkhorn` whose options the caller can honour.

    To be called when the solver is used: a stored one may hold arrays of several values.

    Args:
        solver: the argument.
        records: whether the caller's result holds the recorded errors.
        result: that result, for the message.

    Example:
        >>> check_solver({"tolerance": 1e-3})
        Traceback (most recent call last):
        ValueError: solver must be an `ot.Sinkhorn`, such as ot.Sinkhorn(tolerance=1e-5); got dict.
    """
    check_solver_type(solver)
    check_scalar(tolerance=solver.tolerance, over_relaxation=solver.over_relaxation)
    if solver.annealing is not None:
        check_scalar(start=solver.annealing.start, decay=solver.annealing.decay)
    if solver.record_errors and not records:
        raise ValueError(f"solver must have record_errors=False: {result} holds no errors.")


def check_solver_type(solver: object) -> None:
    """Raise `ValueError` for anything but a `Sinkhorn`, such as the class itself."""
    if isinstance(solver, Sinkhorn):
        return
    if isinstance(solver, type):
        got = f"the class {solver.__qualname__} itself"
    else:
        # Other libraries have a class of this name too.
        kind = type(solver)
        package = "" if kind.__module__ == "builtins" else f"{kind.__module__.split('.')[0]}'s "
        got = package + kind.__qualname__
    raise ValueError(
        f"solver must be an `ot.Sinkhorn`, such as ot.Sinkhorn(tolerance=1e-5); got {got}."
    )
