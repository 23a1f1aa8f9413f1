"""Numbers relative to a problem's costs: ε, and the decreasing sequence that ends at ε."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float

from divjax.core.checks import check_choice, check_positive, check_scalar
from divjax.core.numerics import nan_unless
from divjax.core.pair_reductions import LARGEST, SUM
from divjax.core.pytrees import pytree, static
from divjax.core.training import spread_rows
from divjax.ot.entropic.problem import Problem

__all__ = ["Annealing", "Relative", "largest_cost", "marginal_penalty_from_tau", "resolved_epsilon"]

# The limit on rows of each sample for the median cost.
_MEDIAN_ROWS = 256


@pytree
class Relative:
    """An ε relative to the costs: `sinkhorn(x, y, epsilon=Relative(0.05, of="std"))`.

    ε = share · s(C), with s the mean, the standard deviation or the median of C_ij under a⊗b. The
    costs are those of the solved problem: for the squared Euclidean cost and exact marginals each
    sample is centred, as a shift changes neither plan nor potentials beyond linear terms. The
    gradient of ε is stopped.

    Attributes:
        share: a positive number.
        of: "std", "median" (over pairs of at most 256 rows of each sample) or "mean".

    Raises:
        ValueError: if `share` is a Python number that is not positive, or `of` is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax import ot
        >>> x = jnp.array([[0.0], [2.0]])
        >>> result = ot.sinkhorn(x, x, epsilon=Relative(0.1, of="mean"))  # costs 0, 4, 4, 0
        >>> float(result.problem.epsilon)
        0.2
    """

    share: ArrayLike = 0.05
    of: str = static(default="std")

    def __post_init__(self):
        check_positive(share=self.share)
        check_choice(("std", "median", "mean"), of=self.of)


@pytree
class Annealing:
    """A decreasing sequence of ε that ends at the problem's, with one iteration each.

    ε_k = max(ε, ε_0 · decay^k). At small ε an iteration moves the potentials by only a few ε.
    Annealing saves those iterations.

    Attributes:
        start: ε_0 as a multiple of the problem's ε, None for the largest finite cost.
        decay: the ratio of successive ε, in (0, 1).

    Raises:
        ValueError: if `start` or `decay` is a Python number out of range.

    Example:
        >>> Annealing(start=100.0).decay
        0.9
    """

    start: ArrayLike | None = None
    decay: ArrayLike = 0.9

    def __post_init__(self):
        check_positive(start=self.start, decay=self.decay)
        if isinstance(self.decay, (int, float)) and not self.decay < 1:
            raise ValueError(f"decay must be a number in (0, 1); got {self.decay}.")

    @property
    def valid(self) -> Bool[Array, ""]:
        """Whether traced numbers are in range."""
        decay = jnp.asarray(self.decay)
        valid = (decay > 0) & (decay < 1)
        return valid if self.start is None else valid & (jnp.asarray(self.start) > 0)


def marginal_penalty_from_tau(tau: ArrayLike, epsilon: ArrayLike) -> Array:
    """The ρ of `marginal_penalty` for τ = ρ/(ρ + ε), ott-jax's parameter of relaxed marginals.

        ρ = ε τ/(1 − τ)

    Args:
        tau: in (0, 1]; 1 for an exact marginal, ρ = ∞.
        epsilon: ε > 0.

    Returns:
        ρ, NaN for a traced τ or ε out of range.

    Raises:
        ValueError: if τ is a Python number outside of (0, 1].

    Example:
        >>> float(marginal_penalty_from_tau(0.9, epsilon=0.1)).__round__(3)
        0.9
    """
    if isinstance(tau, (int, float)) and not 0 < tau <= 1:
        raise ValueError(f"tau must be a number in (0, 1]; got {tau}.")
    check_positive(epsilon=epsilon)
    tau = jnp.asarray(tau)
    # Replaced before the quotient, which has a pole at τ = 1.
    exact = tau == 1
    rho = jnp.where(exact, jnp.inf, epsilon * tau / jnp.where(exact, 1, 1 - tau))
    return nan_unless((tau > 0) & (tau <= 1) & (jnp.asarray(epsilon) > 0), rho)


def resolved_epsilon(epsilon: Relative, problem: Problem) -> Float[Array, ""]:
    """The value of a relative ε for a problem, ignoring the problem's own ε."""
    check_scalar(share=epsilon.share)
    problem = jax.lax.stop_gradient(problem)
    share = jax.lax.stop_gradient(jnp.asarray(epsilon.share, problem.a.dtype))
    scale = _median_cost(problem) if epsilon.of == "median" else _moment(problem, epsilon.of)
    return nan_unless(share > 0, share * scale)


def _moment(problem: Problem, of: str) -> Float[Array, ""]:
    """The mean or the standard deviation of the finite costs under a⊗b."""
    a, b = problem.a, problem.b

    def average(function: Callable[[Array], Array]) -> Array:
        def sums(costs: Array, b: Array) -> tuple[Array, Array]:
            # Pairs forbidden by an infinite cost count neither in the sum nor in its mass.
            finite = ~jnp.isinf(costs)
            values = jnp.where(finite, function(jnp.where(finite, costs, 0)), 0)
            return jnp.sum(values * b, axis=1), jnp.sum(jnp.where(finite, b, 0), axis=1)

        total, mass = problem.map_rows(sums, columns=(b,), reduction=SUM)
        return a @ total / (a @ mass)

    # In two passes: E C² − (E C)² would suffer cancellation if costs vary little.
    mean = average(lambda costs: costs)
    if of == "mean":
        return mean
    return jnp.sqrt(average(lambda costs: (costs - mean) ** 2))


def _median_cost(problem: Problem) -> Float[Array, ""]:
    """The weighted median of the finite costs of evenly spread rows of both samples."""
    rows, columns = spread_rows(problem.a, _MEDIAN_ROWS), spread_rows(problem.b, _MEDIAN_ROWS)
    costs = problem.pairs.block(problem.pairs.rows[rows])[:, columns].ravel()
    weights = (problem.a[rows, None] * problem.b[columns]).ravel()
    # Pairs forbidden by infinite costs have weight zero.
    weights = jnp.where(jnp.isinf(costs), 0, weights)
    order = jnp.argsort(costs)
    cumulated = jnp.cumsum(weights[order])
    median = costs[order][jnp.argmax(cumulated >= cumulated[-1] / 2)]
    # A NaN cost is sorted to the end.
    return nan_unless(~jnp.any(jnp.isnan(costs) & (weights > 0)), median)


def largest_cost(problem: Problem) -> Float[Array, ""]:
    """The largest finite |C_ij|."""
    finite = lambda costs: jnp.max(jnp.where(jnp.isinf(costs), 0, jnp.abs(costs)), axis=1)
    return jnp.max(problem.map_rows(finite, reduction=LARGEST))
